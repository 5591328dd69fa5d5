//! Tells what a running child writes while it runs: line by line, at a pace that people can follow.
//!
//! It must not know who listens. It promises nothing either: what comes too fast is left out, and
//! what was not told before the end comes with the result.

use std::convert::Infallible;
use std::future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::message::Channel;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::output::ended_character;
use crate::progress::Progress;

/// Least time between two texts.
pub(super) const PACE: Duration = Duration::from_millis(250);

/// How long a line waits for its end before it is told without.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Longest text, in bytes; of more, the newest lines are told.
pub(super) const MAX_TEXT: usize = 8 * 1024;

/// What was read but not told yet, of both streams.
pub(super) struct Telling<'a> {
    progress: &'a Progress,
    heard: Mutex<Heard>,
    news: Notify,
}

struct Heard {
    lines: [Lines; 2],
    /// When the last text was told, or the child was started: of one that ends soon, nothing is told.
    last_text: Instant,
}

impl<'a> Telling<'a> {
    pub(super) fn new(progress: &'a Progress) -> Self {
        let heard = Heard { lines: Default::default(), last_text: Instant::now() };
        Self { progress, heard: Mutex::new(heard), news: Notify::new() }
    }

    /// Takes note of what a stream wrote.
    pub(super) fn hear(&self, source: Channel, bytes: &[u8]) {
        if self.progress.is_wanted() {
            self.heard().lines[source as usize].push(bytes, Instant::now());
            self.news.notify_one();
        }
    }

    /// Keeps what a stream wrote, where somebody may ask for it later.
    pub(super) fn keep(&self, source: Channel, bytes: &[u8]) {
        self.progress.keep(source, bytes);
    }

    /// Tells for ever, at most one text each [`PACE`].
    pub(super) async fn go_on(&self) -> Infallible {
        if !self.progress.is_wanted() {
            return future::pending().await;
        }
        loop {
            self.something_due().await;
            let last_text = self.heard().last_text;
            sleep_until(last_text + PACE).await;
            let text = self.heard().take_text(Instant::now());
            if !text.is_empty() {
                self.progress.tell(&text);
            }
        }
    }

    async fn something_due(&self) {
        loop {
            let due = self.heard().due();
            match due {
                Some(due) if due <= Instant::now() => return,
                // Whichever comes first, what is due is found out anew.
                Some(due) => drop(timeout_at(due, self.news.notified()).await),
                None => self.news.notified().await,
            }
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn due(&self) -> Option<Instant> {
        self.lines.iter().filter_map(Lines::due).min()
    }

    fn take_text(&mut self, now: Instant) -> String {
        let lines: Vec<String> = self.lines.iter_mut().flat_map(|lines| lines.take(now)).collect();
        let text = newest(&lines.join("\n")).to_owned();
        if !text.is_empty() {
            self.last_text = now;
        }
        text
    }
}

/// The lines of one stream, in bounded memory.
#[derive(Default)]
struct Lines {
    /// The newest of what was written; the last line may have no end yet.
    bytes: Vec<u8>,
    /// Whether the first line in there has lost its beginning.
    is_cut: bool,
    /// When the line without an end began, or was last told.
    since: Option<Instant>,
    /// Whether there is something to be told at once: the end of a line, or a carriage return.
    has_end: bool,
    /// Whether the line without an end is still to be told.
    is_untold: bool,
    /// How the line without an end was told last.
    told: Option<String>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], now: Instant) {
        if self.bytes.is_empty() {
            self.since = Some(now);
        }
        self.has_end |= bytes.iter().any(|byte| matches!(byte, b'\n' | b'\r'));
        self.is_untold = true;
        self.bytes.extend_from_slice(bytes);
        // Only now and then, so that many short writes cost little each.
        if self.bytes.len() > 2 * MAX_TEXT {
            self.bytes.drain(..self.bytes.len() - MAX_TEXT);
            self.is_cut = true;
        }
    }

    /// When something is to be told; in the past, if it is to be told at once.
    fn due(&self) -> Option<Instant> {
        let since = self.since?;
        if self.has_end { Some(since) } else { self.is_untold.then_some(since + PATIENCE) }
    }

    /// Takes what is due at `now`.
    fn take(&mut self, now: Instant) -> Vec<String> {
        self.forget_cut_line();
        let mut lines = self.take_ended(now);
        lines.extend(self.take_open(now));
        self.has_end = false;
        lines
    }

    /// A line without its beginning is left out, unless there is nothing else.
    fn forget_cut_line(&mut self) {
        if std::mem::take(&mut self.is_cut) {
            let next = self.bytes.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
            let next = next.filter(|next| *next < self.bytes.len());
            let cut = next.unwrap_or_else(|| ended_character(&self.bytes));
            self.bytes.drain(..cut);
            self.told = None;
        }
    }

    fn take_ended(&mut self, now: Instant) -> Vec<String> {
        let Some(end) = self.bytes.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let ended: Vec<u8> = self.bytes.drain(..=end).collect();
        self.since = Some(now);
        let mut lines: Vec<String> = ended[..end].split(|byte| *byte == b'\n').map(shown).collect();
        // Nothing but its end has come since it was told.
        if self.told.take().as_ref() == lines.first() {
            lines.remove(0);
        }
        lines
    }

    /// The line without an end, if it has waited long enough or overwrites itself, as progress bars do.
    fn take_open(&mut self, now: Instant) -> Option<String> {
        let is_bar = self.bytes.contains(&b'\r');
        let is_old = self.since.is_some_and(|since| since + PATIENCE <= now);
        self.is_untold &= !self.bytes.is_empty();
        if !self.is_untold || !(is_bar || is_old) {
            return None;
        }
        (self.is_untold, self.since) = (false, Some(now));
        let line = Some(shown(&self.bytes)).filter(|line| Some(line) != self.told.as_ref())?;
        self.told = Some(line.clone());
        Some(line)
    }
}

/// A line as a terminal would show it in the end: what was written after the last carriage return.
/// What is no UTF-8 becomes U+FFFD.
fn shown(line: &[u8]) -> String {
    let states = line.split(|byte| *byte == b'\r');
    let last = states.rev().find(|state| !state.is_empty());
    String::from_utf8_lossy(last.unwrap_or_default()).into_owned()
}

/// The newest lines that fit into one text.
fn newest(text: &str) -> &str {
    let mut start = text.len().saturating_sub(MAX_TEXT);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let is_whole = start == 0 || text.as_bytes()[start - 1] == b'\n';
    match text[start..].find('\n') {
        Some(end) if !is_whole => &text[start + end + 1..],
        _ => &text[start..],
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Somebody who listens, and hears at which millisecond.
    struct Listener {
        progress: Progress,
        texts: Arc<Mutex<Vec<(u128, String)>>>,
    }

    impl Listener {
        fn new() -> Self {
            let (begun, texts) = (Instant::now(), Arc::<Mutex<Vec<(u128, String)>>>::default());
            let kept = texts.clone();
            let progress = Progress::to(move |text| {
                kept.lock().unwrap().push((begun.elapsed().as_millis(), text.to_owned()));
            });
            Self { progress, texts }
        }

        /// What is heard when these bytes are written, each so many milliseconds after the last,
        /// with time to spare at the end.
        async fn hears(&self, writes: &[(u64, &[u8])]) -> Vec<(u128, String)> {
            let telling = Telling::new(&self.progress);
            let writing = async {
                for (pause, bytes) in writes {
                    tokio::time::sleep(Duration::from_millis(*pause)).await;
                    telling.hear(Channel::Stdout, bytes);
                }
                tokio::time::sleep(Duration::from_secs(60)).await;
            };
            tokio::select! {
                () = writing => {}
                never = telling.go_on() => match never {},
            }
            std::mem::take(&mut self.texts.lock().unwrap())
        }
    }

    fn text(at: u128, text: &str) -> (u128, String) {
        (at, text.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn lines_are_told_together_and_none_of_a_child_that_ends_soon() {
        let writes: [(u64, &[u8]); 4] = [(0, b"a\n"), (10, b"b\n"), (10, b"c\nd"), (500, b"!\n")];
        let texts = Listener::new().hears(&writes).await;
        assert_eq!(texts, [text(250, "a\nb\nc"), text(520, "d!")]);
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_four_texts_a_second_go_out() {
        let writes = [(10, b"line\n".as_slice()); 500];
        let texts = Listener::new().hears(&writes).await;
        assert!((20..=22).contains(&texts.len()), "{}", texts.len());
        let lines: usize = texts.iter().map(|(_, text)| text.lines().count()).sum();
        assert_eq!(lines, 500);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_without_its_end_is_told_after_a_second_and_not_twice() {
        let writes: [(u64, &[u8]); 2] = [(0, b"Password: "), (5000, b"\nok\n")];
        let texts = Listener::new().hears(&writes).await;
        assert_eq!(texts, [text(1000, "Password: "), text(5000, "ok")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_grows_is_told_once_a_second() {
        let writes = [(100, b".".as_slice()); 25];
        let texts = Listener::new().hears(&writes).await;
        let counts: Vec<_> = texts.iter().map(|(_, text)| text.len()).collect();
        assert_eq!(counts.len(), 3, "{texts:?}");
        assert_eq!(counts.last(), Some(&25));
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_progress_bar_the_last_state_is_told() {
        let writes: [(u64, &[u8]); 5] =
            [(0, b"\r 1%"), (10, b"\r 2%"), (10, b"\r 3%"), (300, b"\r100%"), (10, b"\nend\r\n")];
        let texts = Listener::new().hears(&writes).await;
        let expected = [text(250, " 3%"), text(500, "100%\nend")];
        assert_eq!(texts, expected);
        let writes: [(u64, &[u8]); 3] = [(0, b"1%\r"), (300, b"2%\r"), (300, b"\r\n")];
        let texts = Listener::new().hears(&writes).await;
        assert_eq!(texts.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["1%", "2%"]);
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_flood_the_newest_whole_lines_are_told() {
        let flood: String = (0..100_000).map(|number| format!("line {number}\n")).collect();
        let writes: Vec<(u64, &[u8])> = flood.as_bytes().chunks(7000).map(|it| (0, it)).collect();
        let texts = Listener::new().hears(&writes).await;
        for (_, text) in &texts {
            assert!(text.len() <= MAX_TEXT);
            let number = |line: &str| line.strip_prefix("line ")?.parse::<u32>().ok();
            assert!(text.lines().all(|line| number(line).is_some()), "{text}");
        }
        assert!(texts.last().unwrap().1.ends_with("line 99999"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_of_any_length_takes_bounded_memory_and_bytes_that_are_no_text_are_replaced() {
        let mut lines = Lines::default();
        for _ in 0..1000 {
            lines.push("€".repeat(1000).as_bytes(), Instant::now());
            assert!(lines.bytes.capacity() <= 4 * MAX_TEXT);
        }
        lines.push(b"\xff\n", Instant::now());
        assert!(newest(&lines.take(Instant::now()).join("\n")).ends_with("€\u{FFFD}"));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_gathered_for_nobody() {
        let progress = Progress::default();
        let telling = Telling::new(&progress);
        telling.hear(Channel::Stderr, b"line\n");
        assert!(telling.heard().lines[1].bytes.is_empty());
    }
}
