//! What goes to the terminal: nothing from a device, a model or a peer reaches it with its control
//! characters alive.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use aip::visible::{escape_json, is_hidden};
use anstyle::{AnsiColor, Style};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const GREEN: Style = AnsiColor::Green.on_default();
pub(crate) const RED: Style = AnsiColor::Red.on_default();
pub(crate) const CYAN: Style = AnsiColor::Cyan.on_default();

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(90);

/// Says a line on standard error, as `eprintln!` does; while a question stands there, once that is over. When
/// it cannot be said, since the disk with the log is full or whoever listened is gone, that is no reason to
/// end, as it is for `eprintln!`.
macro_rules! say {
    () => { $crate::held::say(format_args!("")) };
    ($($text:tt)*) => { $crate::held::say(format_args!($($text)*)) };
}

/// Writes to standard output. Whoever closed it wants no more of it, which is no error.
///
/// # Errors
/// When the output is lost for another reason, such as a full disk.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    written(anstream::stdout().lock().write_all(text.as_bytes()))
}

/// The same with a line break behind it.
pub(crate) fn print_line(text: &str) -> anyhow::Result<()> {
    print(&format!("{text}\n"))
}

/// The same for JSON on one line, with what hides in it escaped.
pub(crate) fn print_json(json: &str) -> anyhow::Result<()> {
    print_line(&escape_json(json))
}

fn written(written: io::Result<()>) -> anyhow::Result<()> {
    match written.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write the output")
        }
        _ => Ok(()),
    }
}

/// Rows under headings, each column as wide as its widest cell.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut table = format!("{BOLD}{}{BOLD:#}\n", line(headings));
    for row in rows {
        table.push_str(&line(row.each_ref().map(String::as_str)));
        table.push('\n');
    }
    table
}

/// Text from outside with its control characters escaped, except line breaks and tabs.
pub(crate) fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => safe.push(c),
            c if is_unsafe(c) => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

/// The same on one line, as an id, a name or a reason stands in it: also with everything escaped that leaves no mark, so
/// that two that differ look different.
pub(crate) fn safe_line(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => safe.push_str("\\n"),
            '\t' => safe.push(' '),
            c if is_unsafe(c) || is_hidden(c) => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

/// What is written to the log: its own lines, with what peers choose in them escaped. `as_json` says in which form. The
/// styles of a terminal stay.
pub(crate) fn log_safe(line: &str, as_json: bool) -> Cow<'_, str> {
    if as_json {
        return escape_json(line);
    }
    let is_bad = |c: char| !c.is_ascii() && (is_unsafe(c) || is_hidden(c));
    if !line.contains(is_bad) {
        return line.into();
    }
    let mut safe = String::with_capacity(line.len() + 16);
    for c in line.chars() {
        match is_bad(c) {
            true => safe.extend(c.escape_default()),
            false => safe.push(c),
        }
    }
    safe.into()
}

/// Text from outside on one line with everything escaped that cannot be seen, or that looks like a space
/// and is none: for a person who decides by it.
pub(crate) fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        if c == ' ' || c.is_ascii_graphic() || (!c.is_ascii() && is_visible(c)) {
            visible.push(c);
        } else {
            visible.extend(c.escape_default());
        }
    }
    visible
}

/// Whether a character leaves a mark, as far as the standard library's tables and the list of those that
/// they call letters or marks can say.
fn is_visible(c: char) -> bool {
    let blank = matches!(
        c,
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}'
            | '\u{e0100}'..='\u{e01ef}'
    );
    // Only at the beginning of a text are marks escaped that join the character before them.
    !blank && format!("x{c}").escape_debug().count() == 2
}

/// Control characters, and those that change the direction of the text around them.
pub(crate) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON with a line for each member, on the text itself: nothing in it is changed, whatever it is.
pub(crate) fn indented(json: &str) -> String {
    let (mut out, mut depth) = (String::with_capacity(json.len() * 2), 0_usize);
    let (mut in_string, mut escaped, mut before) = (false, false, ' ');
    for c in json.chars() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        if c.is_ascii_whitespace() {
            continue;
        }
        if matches!(c, '}' | ']') {
            depth = depth.saturating_sub(1);
        }
        // An empty array or object stays on one line.
        let opens = matches!(before, '{' | '[') && !matches!(c, '}' | ']');
        let closes = matches!(c, '}' | ']') && !matches!(before, '{' | '[');
        if opens || closes || before == ',' {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", depth));
        } else if before == ':' {
            out.push(' ');
        }
        out.push(c);
        in_string = c == '"';
        depth += usize::from(matches!(c, '{' | '['));
        before = c;
    }
    out
}

/// A length of time, for people: the two largest units.
pub(crate) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.as_millis() < 1 => "under 1 ms".to_owned(),
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// A line that shows that something is going on: a spinner on a terminal, nothing elsewhere.
pub(crate) struct Spinner(Option<ProgressBar>);

impl Spinner {
    pub(crate) fn new(text: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}") {
            bar.set_style(style);
        }
        bar.set_message(text.to_owned());
        bar.enable_steady_tick(TICK);
        Self(Some(bar))
    }

    pub(crate) fn say(&self, text: &str) {
        if let Some(bar) = self.0.as_ref().filter(|bar| !bar.is_finished()) {
            bar.set_message(text.to_owned());
        }
    }

    /// Takes it away: something else is shown from now on.
    pub(crate) fn clear(&self) {
        if let Some(bar) = self.0.as_ref().filter(|bar| !bar.is_finished()) {
            bar.finish_and_clear();
        }
    }

    /// Prints a line on stderr above the spinner.
    pub(crate) fn line(&self, line: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| say!("{line}")),
            None => say!("{line}"),
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_cannot_be_driven_from_outside() {
        assert_eq!(safe("a\x1b[31mred\x07\r\nb\tc"), "a\\u{1b}[31mred\\u{7}\\r\nb\tc");
        assert_eq!(safe("\u{9b}1m\u{202e}x é 日"), "\\u{9b}1m\\u{202e}x é 日");
        assert_eq!(safe_line("a\nb"), "a\\nb");
    }

    #[test]
    fn ids_that_look_alike_are_shown_as_they_are() {
        let id = "web\u{200b}-\u{202e}1\u{2066}\u{feff}\u{e0041}\u{7f}";
        let shown = "web\\u{200b}-\\u{202e}1\\u{2066}\\u{feff}\\u{e0041}\\u{7f}";
        assert_eq!(safe_line(id), shown);
        // Emoji and scripts that need a joiner are left alone in the output of commands.
        assert_eq!(super::safe("👩\u{200d}🔬"), "👩\u{200d}🔬");
    }

    #[test]
    fn the_log_keeps_its_own_styles_and_escapes_what_hides() {
        let line = "\u{1b}[2mINFO\u{1b}[0m d\u{202e}x\u{9b}\u{200b}é\n";
        let safe = "\u{1b}[2mINFO\u{1b}[0m d\\u{202e}x\\u{9b}\\u{200b}é\n";
        assert_eq!(log_safe(line, false), safe);
        let json = "{\"a\":\"\u{202e}\"}\n";
        assert_eq!(log_safe(json, true), "{\"a\":\"\\u202e\"}\n");
    }

    #[test]
    fn nothing_hides_from_who_must_decide() {
        let hidden = [
            '\u{0}',
            '\n',
            '\t',
            '\u{7f}',
            '\u{9b}',
            '\u{a0}',
            '\u{ad}',
            '\u{61c}',
            '\u{200b}',
            '\u{200d}',
            '\u{202e}',
            '\u{2028}',
            '\u{2066}',
            '\u{3000}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{e0041}',
            '\u{e0100}',
            '\u{e000}',
            '\u{10ffff}',
        ];
        for c in hidden {
            assert!(visible(&format!("a{c}b")).starts_with("a\\"), "{:x}", u32::from(c));
        }
        let seen = "rm -rf \"é\" e\u{301} 日本 हिन्दी עברית 😀 ~'\\";
        assert_eq!(visible(seen), seen);
    }

    #[test]
    fn indenting_changes_nothing_but_the_space() {
        let json = r#"{"b":[1.0,123456789012345678901],"a":{},"s":"{,:\\\" [","e":[]}"#;
        let expected = "{\n  \"b\": [\n    1.0,\n    123456789012345678901\n  ],\n  \"a\": {},\n  \
                        \"s\": \"{,:\\\\\\\" [\",\n  \"e\": []\n}";
        assert_eq!(indented(json), expected);
        assert_eq!(indented(&indented(json)), expected);
    }

    #[test]
    fn times_are_short() {
        assert_eq!(human(Duration::from_micros(30)), "under 1 ms");
        assert_eq!(human(Duration::from_millis(30)), "30 ms");
        assert_eq!(human(Duration::from_secs(3725)), "1 h 2 min");
    }
}
