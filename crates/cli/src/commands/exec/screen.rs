//! Where the output of commands goes: byte for byte, unless somebody looks at it. On a terminal what would drive it is
//! escaped, colour and style excepted; of several devices whole lines are shown, with their labels.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use bytes::Bytes;
use constellation::Channel;
use tokio::sync::Mutex;

use super::end::End;
use crate::output::{CYAN, Spinner, is_unsafe};

/// The longest line that is held back until its end is there, and the longest sequence that may be a style.
const MAX_LINE: usize = 1024 * 1024;
const MAX_STYLE: usize = 64;

/// Standard output and standard error, for all devices.
#[derive(Clone)]
pub(in crate::commands) struct Screen(Arc<Shared>);

struct Shared {
    spinner: Spinner,
    ends: [Mutex<End>; 2],
    escapes: [bool; 2],
    styles: [bool; 2],
}

impl Screen {
    /// With `escapes` what is shown is escaped or not, whatever it is shown on.
    pub(in crate::commands) fn new(spinner: Spinner, escapes: Option<bool>) -> Self {
        let terminals = [io::stdout().is_terminal(), io::stderr().is_terminal()];
        let is_coloured = |choice| choice != anstream::ColorChoice::Never;
        let styles = [
            is_coloured(anstream::AutoStream::choice(&io::stdout())),
            is_coloured(anstream::AutoStream::choice(&io::stderr())),
        ];
        Self(Arc::new(Shared {
            spinner,
            ends: Channel::ALL.map(|channel| Mutex::new(End::new(channel))),
            escapes: terminals.map(|is_terminal| escapes.unwrap_or(is_terminal)),
            styles,
        }))
    }

    pub(in crate::commands) fn spinner(&self) -> &Spinner {
        &self.0.spinner
    }

    /// The way to it of one stream of a device, labelled if there are several.
    pub(in crate::commands) fn view(&self, channel: Channel, label: Option<&str>) -> View {
        let style = if self.0.styles[channel as usize] { CYAN } else { anstyle::Style::new() };
        View {
            screen: self.clone(),
            channel,
            label: label.map(|label| format!("{style}[{label}]{style:#} ")),
            escape: self.0.escapes[channel as usize].then(Escape::default),
            line: Vec::new(),
        }
    }

    async fn write(&self, channel: Channel, bytes: Bytes) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.0.spinner.clear();
        self.0.ends[channel as usize].lock().await.write(bytes).await
    }
}

/// One stream of one device, on its way to the screen.
pub(in crate::commands) struct View {
    screen: Screen,
    channel: Channel,
    label: Option<String>,
    escape: Option<Escape>,
    /// Where lines are labelled: the one that has no end yet.
    line: Vec<u8>,
}

impl View {
    /// Shows what was written.
    pub(in crate::commands) async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let bytes = match &mut self.escape {
            Some(escape) => escape.push(&bytes).into(),
            None => bytes,
        };
        let shown = match &self.label {
            Some(label) => labelled(label, &mut self.line, &bytes, self.escape.is_some()).into(),
            None => bytes,
        };
        self.screen.write(self.channel, shown).await
    }

    /// Shows what is left at the end.
    pub(in crate::commands) async fn finish(&mut self) -> io::Result<()> {
        let rest = self.escape.as_mut().map(Escape::finish).unwrap_or_default();
        let Some(label) = &self.label else {
            return self.screen.write(self.channel, rest.into()).await;
        };
        let is_escaped = self.escape.is_some();
        let mut lines = labelled(label, &mut self.line, rest.as_bytes(), is_escaped);
        if !self.line.is_empty() {
            lines.extend(labelled(label, &mut self.line, b"\n", is_escaped));
        }
        self.screen.write(self.channel, lines.into()).await
    }
}

/// The lines that are whole now, each behind its label. Where output is escaped, what would go back over the label is too.
fn labelled(label: &str, line: &mut Vec<u8>, bytes: &[u8], is_escaped: bool) -> Vec<u8> {
    let mut lines = Vec::new();
    for part in bytes.split_inclusive(|byte| *byte == b'\n') {
        line.extend_from_slice(part);
        let is_long = line.len() > MAX_LINE;
        if line.ends_with(b"\n") || is_long {
            lines.extend_from_slice(label.as_bytes());
            if is_escaped && line.contains(&b'\r') {
                *line = without_returns(line);
            }
            lines.append(line);
            if is_long && !lines.ends_with(b"\n") {
                lines.push(b'\n');
            }
        }
    }
    lines
}

/// A line with all carriage returns escaped but one at its end.
fn without_returns(line: &[u8]) -> Vec<u8> {
    let end = if line.ends_with(b"\r\n") { line.len() - 2 } else { line.len() };
    let (text, end) = line.split_at(end);
    let escaped: Vec<_> = text.split(|byte| *byte == b'\r').collect();
    [&escaped.join(&b"\\r"[..]), end].concat()
}

/// Escapes what would drive a terminal, in pieces.
#[derive(Default)]
struct Escape {
    /// The beginning of a character or of a style.
    rest: Vec<u8>,
}

impl Escape {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let (mut shown, taken) = (String::with_capacity(bytes.len()), self.rest.len());
        let bytes = std::mem::take(&mut self.rest);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (text, behind) = valid(rest);
            let left = escape(text, &mut shown);
            if !left.is_empty() && behind.is_empty() {
                self.rest = left.as_bytes().to_vec();
                break;
            }
            shown.extend(left.chars().map(|c| c.escape_default().to_string()));
            // What may be the beginning of a character waits for its end.
            let error = std::str::from_utf8(behind).err();
            match error.map(|error| error.error_len()) {
                None => rest = behind,
                Some(None) => {
                    self.rest = behind.to_vec();
                    break;
                }
                Some(Some(length)) => {
                    let (wrong, next) = behind.split_at(length);
                    shown.extend(wrong.iter().map(|byte| format!("\\x{byte:02x}")));
                    rest = next;
                }
            }
        }
        debug_assert!(self.rest.len() <= taken);
        shown
    }

    fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.rest);
        let (text, behind) = valid(&rest);
        let text: String = text
            .chars()
            .map(|c| if is_unsafe(c) { c.escape_default().to_string() } else { c.to_string() })
            .collect();
        text + &behind.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>()
    }
}

/// The text at the beginning of bytes, and what stands behind it.
fn valid(bytes: &[u8]) -> (&str, &[u8]) {
    let end = std::str::from_utf8(bytes).map_or_else(|error| error.valid_up_to(), str::len);
    let (text, behind) = bytes.split_at(end);
    (std::str::from_utf8(text).unwrap_or_default(), behind)
}

/// Shows a text; returns what may be the beginning of a style.
fn escape<'a>(text: &'a str, shown: &mut String) -> &'a str {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let behind = &rest[c.len_utf8()..];
        match c {
            '\n' | '\t' | '\r' => shown.push(c),
            '\u{1b}' => match style(behind) {
                Style::Whole(length) => {
                    shown.push_str(&rest[..=length]);
                    rest = &behind[length..];
                    continue;
                }
                Style::Begun => return rest,
                Style::None => shown.extend(c.escape_default()),
            },
            c if is_unsafe(c) => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
        rest = behind;
    }
    ""
}

/// What stands behind an escape character.
enum Style {
    /// Colour or style, of this many bytes.
    Whole(usize),
    /// Perhaps the beginning of that.
    Begun,
    None,
}

fn style(behind: &str) -> Style {
    let Some(inner) = behind.strip_prefix('[') else {
        return if behind.is_empty() { Style::Begun } else { Style::None };
    };
    let is_part = |c: char| c.is_ascii_digit() || matches!(c, ';' | ':');
    let end = inner.find(|c| !is_part(c)).unwrap_or(inner.len());
    match inner[end..].chars().next() {
        Some('m') => Style::Whole(end + 2),
        None if end < MAX_STYLE => Style::Begun,
        _ => Style::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the pieces are in which it comes.
    fn escaped(bytes: &[u8]) -> String {
        let whole = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let mut escape = Escape::default();
            let shown: String = pieces.map(|piece| escape.push(piece)).collect();
            shown + &escape.finish()
        };
        let at_once = whole(&mut std::iter::once(bytes));
        assert_eq!(whole(&mut bytes.chunks(1)), at_once);
        assert_eq!(whole(&mut bytes.chunks(3)), at_once);
        at_once
    }

    #[test]
    fn a_line_cannot_go_back_over_its_label() {
        let lines = |escaped| labelled("[a] ", &mut Vec::new(), b"\r[b] forged\r\nx\r\n", escaped);
        assert_eq!(lines(true), b"[a] \\r[b] forged\r\n[a] x\r\n");
        assert_eq!(lines(false), b"[a] \r[b] forged\r\n[a] x\r\n");
    }

    #[test]
    fn a_terminal_sees_colours_and_nothing_else_that_drives_it() {
        assert_eq!(escaped(b"a\x1b[1;31mred\x1b[0m\tb\r\n"), "a\x1b[1;31mred\x1b[0m\tb\r\n");
        assert_eq!(escaped(b"\x1b[2J\x1b]0;t\x07\x08"), r"\u{1b}[2J\u{1b}]0;t\u{7}\u{8}");
        assert_eq!(escaped("é € 🙂 \u{9b}1m\u{202e}".as_bytes()), r"é € 🙂 \u{9b}1m\u{202e}");
        assert_eq!(escaped(b"\xff\xe2\x82x\xe2\x82"), r"\xff\xe2\x82x\xe2\x82");
        assert_eq!(escaped(b"end\x1b"), r"end\u{1b}");
        assert_eq!(escaped(b"end\x1b[3"), r"end\u{1b}[3");
    }

    #[test]
    fn lines_of_several_devices_are_whole() {
        let (mut line, mut out) = (Vec::new(), Vec::new());
        for piece in ["one\ntw", "o", "\n\n", "three"] {
            out.extend(labelled("[a] ", &mut line, piece.as_bytes(), false));
        }
        assert_eq!(String::from_utf8(out).unwrap(), "[a] one\n[a] two\n[a] \n");
        assert_eq!(line, b"three");
        let long = labelled("", &mut Vec::new(), &vec![b'x'; MAX_LINE + 1], false);
        assert_eq!(long.len(), MAX_LINE + 2, "in bounded memory");
    }
}
