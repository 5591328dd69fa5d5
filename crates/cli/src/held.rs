//! Standard error while a question stands on the terminal: whatever else is said waits until it is over, so
//! that the owner sees what is asked and where to type.
//!
//! It must not know who asks. The question itself goes past it.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anstream::adapter::strip_str;

use crate::log;
use crate::output::DIM;

/// Most bytes that wait, about two screens; beyond it the oldest go.
const MAX_BYTES: usize = 16 * 1024;

/// What waits; `None` while nothing has to.
static HELD: Mutex<Option<Held>> = Mutex::new(None);

/// Lines that wait, within limits.
#[derive(Debug, Default)]
struct Held {
    texts: VecDeque<String>,
    bytes: usize,
    left_out: usize,
}

impl Held {
    fn push(&mut self, text: String) {
        self.bytes += text.len();
        self.texts.push_back(text);
        while self.bytes > MAX_BYTES
            && let Some(oldest) = self.texts.pop_front()
        {
            self.bytes -= oldest.len();
            self.left_out += oldest.lines().count();
        }
    }

    fn into_text(self) -> String {
        let mut text = String::new();
        if self.left_out > 0 {
            let lines = self.left_out;
            text = log::said(format_args!(
                "{DIM}[{lines} lines were left out while a question stood here]{DIM:#}"
            ));
        }
        text.extend(self.texts);
        text
    }
}

/// From now on what is said waits; what was logged before is written first.
pub(crate) fn hold() {
    held().get_or_insert_default();
    log::flush();
}

/// Says what waited, and from now on everything at once.
pub(crate) fn release() {
    release_behind("");
}

/// The same where the owner was still asked to type, so that it begins on a new line.
pub(crate) fn interrupt() {
    release_behind("\n");
}

fn release_behind(before: &str) {
    let mut held = held();
    if let Some(waited) = held.take() {
        put(format!("{before}{}", waited.into_text()).as_bytes());
    }
}

/// Says a line, behind what was logged before, or has it wait. Where standard error is stuck, it waits with
/// the log.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    let text = log::said(text);
    if !log::flush() {
        return log::push(strip_str(&text).to_string().as_bytes());
    }
    match &mut *held() {
        Some(waiting) => waiting.push(text),
        None => put(text.as_bytes()),
    }
}

/// Says something at once. A terminal that is gone, or a full disk behind it, is no reason to end.
pub(crate) fn put(text: &[u8]) {
    let _unsaid = anstream::stderr().write_all(text);
}

fn held() -> MutexGuard<'static, Option<Held>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes lines of the log, or has them wait. While it writes, [`hold`] waits for [`log::flush`] alone.
///
/// # Errors
/// When standard error does not take them.
pub(crate) fn write_log(lines: &[u8]) -> io::Result<()> {
    if let Some(waiting) = &mut *held() {
        waiting.push(String::from_utf8_lossy(lines).into_owned());
        return Ok(());
    }
    io::stderr().write_all(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept_and_the_others_counted() {
        let mut held = Held::default();
        for number in 0..1000 {
            held.push(format!("line {number:3} {}\n", "x".repeat(90)));
        }
        held.push("two\nlines\n".to_owned());
        let left_out = held.left_out;
        let text = held.into_text();
        assert!(text.len() < MAX_BYTES + 100 && text.ends_with("\ntwo\nlines\n"), "{text}");
        assert_eq!(text.lines().count() - 1 + left_out, 1002);
    }

    #[test]
    fn one_text_that_is_too_long_is_left_out_too() {
        let mut held = Held::default();
        held.push("x".repeat(MAX_BYTES + 1));
        held.push("last\n".to_owned());
        assert_eq!((held.left_out, held.bytes), (1, 5));
    }
}
