//! What a question looks like: all of it can be seen, and what is cut is told.

use aip::Payload;
use device::policy::Question;

use crate::output::{BOLD, RED, indented, visible};

/// Most characters of one text among the arguments that are shown at first.
const HEAD_CHARS: usize = 1000;

/// Most lines of the arguments that are shown at first.
const HEAD_LINES: usize = 40;

/// Most characters of a name.
const NAME_CHARS: usize = 200;

/// Bytes of the arguments that each `v` shows.
const PAGE_BYTES: usize = 64 * 1024;

/// A question in words.
pub(super) struct Text<'a> {
    question: &'a Question,
    /// Whether something has not been shown.
    is_cut: bool,
    /// All of the arguments, once somebody wants to see it.
    whole: Option<String>,
    /// How much of that was shown.
    seen: usize,
}

impl<'a> Text<'a> {
    pub(super) fn new(question: &'a Question) -> Self {
        Self { question, is_cut: false, whole: None, seen: 0 }
    }

    /// What the owner sees first: everything, or of each part the beginning and how much is missing.
    pub(super) fn brief(&mut self) -> String {
        let Question { session_id, rule, parameters, .. } = self.question;
        let rule = short(rule);
        let task = session_id.as_ref().map_or_else(|| "–".to_owned(), |id| short(id.as_str()));
        let name = name(self.question);
        let mut text = format!("\n{BOLD}May {name} run?{BOLD:#}  (rule: {rule}; task: {task})");
        let arguments = indented(parameters.as_ref().map_or("{}", Payload::as_str));
        let mut lines = arguments.lines();
        for line in lines.by_ref().take(HEAD_LINES) {
            let (line, is_cut) = shown(line, HEAD_CHARS);
            text.push_str(&format!("\n  {line}"));
            self.is_cut |= is_cut;
        }
        let (more, bytes) = lines.fold((0, 0), |(n, bytes), line| (n + 1, bytes + line.len()));
        if more > 0 {
            text.push_str(&format!("\n  {RED}[{more} more lines of {bytes} bytes]{RED:#}"));
            self.is_cut = true;
        }
        text
    }

    /// The line that waits for an answer. It names the tool again: arguments may be long, and look like
    /// another question.
    pub(super) fn options(&self) -> String {
        let name = name(self.question);
        let view = if self.is_cut { "; not all is shown, [v]iew it" } else { "" };
        format!("Allow {name}? [y]es, [n]o, [a]lways this tool until the device stops{view}: ")
    }

    /// The next piece of the whole.
    pub(super) fn next_page(&mut self) -> String {
        let parameters = self.question.parameters.as_ref().map_or("{}", Payload::as_str);
        let whole = self.whole.get_or_insert_with(|| whole(parameters));
        if self.seen == whole.len() {
            self.seen = 0;
        }
        let end = whole.floor_char_boundary(self.seen.saturating_add(PAGE_BYTES));
        let (page, left) = (&whole[self.seen..end], whole.len() - end);
        self.seen = end;
        self.is_cut = left > 0;
        match left {
            0 => page.to_owned(),
            left => format!("{page}\n{RED}[{left} more bytes]{RED:#}"),
        }
    }
}

/// The tool's name with its namespace. A dot in either must not make it look like one of another server.
pub(super) fn name(question: &Question) -> String {
    let (namespace, tool_name) = (short(&question.namespace), short(&question.tool_name));
    let has_dot = namespace.contains('.') || tool_name.contains('.');
    let between = if has_dot { "::" } else { "." };
    format!("{namespace}{between}{tool_name}")
}

/// A name on one line. One that is too long says so.
fn short(text: &str) -> String {
    let (text, more) = head(text, NAME_CHARS);
    let more = if more > 0 { format!("[{more} more bytes]") } else { String::new() };
    format!("{}{more}", visible(text))
}

fn whole(json: &str) -> String {
    let lines: Vec<_> = indented(json).lines().map(|line| shown(line, usize::MAX).0).collect();
    lines.join("\n")
}

/// The beginning of a text, and how many bytes follow it.
fn head(text: &str, chars: usize) -> (&str, usize) {
    let end = text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at);
    (&text[..end], text.len() - end)
}

/// A line of JSON as a person should see it: texts with their escapes decoded, so that `\u0072m` is `rm`,
/// and then whatever cannot be seen escaped. `true` if something of it is cut, which it says in place.
fn shown(line: &str, chars: usize) -> (String, bool) {
    let (mut out, mut is_cut) = (String::new(), false);
    for token in tokens(line) {
        let decoded = serde_json::from_str::<String>(token).ok().filter(|_| token.starts_with('"'));
        let text = decoded.as_deref().unwrap_or(token);
        let (text, more) = head(text, chars);
        match &decoded {
            // A text can always be written.
            Some(_) => out.push_str(&visible(&serde_json::to_string(text).unwrap_or_default())),
            None => out.push_str(&visible(text)),
        }
        if more > 0 {
            out.push_str(&format!("{RED}[{more} more bytes]{RED:#}"));
            is_cut = true;
        }
    }
    (out, is_cut)
}

/// The texts of a line of JSON with their quotes, and what is between them.
fn tokens(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let end = match rest.strip_prefix('"') {
            Some(inside) => 1 + closing(inside),
            None => rest.find('"').unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at_checked(end)?;
        rest = after;
        (!token.is_empty()).then_some(token)
    })
}

/// Where the text ends that begins here, behind its closing quote.
fn closing(inside: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in inside.bytes().enumerate() {
        match byte {
            b'"' if !escaped => return at + 1,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    inside.len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn question(parameters: &str) -> Question {
        Question {
            namespace: "Bash\u{202e}Executor".to_owned(),
            tool_name: "x".repeat(NAME_CHARS + 5),
            parameters: Payload::from_text(parameters.to_owned()).ok(),
            session_id: None,
            rule: "no\nkeys\u{1b}[2J".to_owned(),
        }
    }

    /// Without colours.
    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn escapes_are_decoded_and_what_cannot_be_seen_is_escaped() {
        let json =
            r#"{"c\u006fmmand": "\u0072m -rf /\u200b\u202e\u0007\n\ud83d\ude00 \\u0041 \"q\""}"#;
        let question = question(json);
        let text = plain(&Text::new(&question).brief());
        let expected = r#""command": "rm -rf /\u{200b}\u{202e}\u0007\n😀 \\u0041 \"q\"""#;
        assert!(text.contains(expected), "{text}");
        assert!(text.contains(r"Bash\u{202e}Executor.xxx"), "{text}");
        assert!(text.contains("x[5 more bytes] run?"), "{text}");
        assert!(text.contains(r"(rule: no\nkeys\u{1b}[2J; task: –)"), "{text}");
    }

    #[test]
    fn a_dot_in_a_name_does_not_make_it_look_like_a_tool_of_another_server() {
        let tool = |namespace: &str, tool_name: &str| {
            let (namespace, tool_name) = (namespace.to_owned(), tool_name.to_owned());
            name(&Question { namespace, tool_name, ..question("{}") })
        };
        assert_eq!(tool("Files", "write_file"), "Files.write_file");
        assert_eq!(tool("docs", "sub.write"), "docs::sub.write");
        assert_eq!(tool("docs.sub", "write"), "docs.sub::write");
    }

    #[test]
    fn a_long_text_hides_nothing_behind_it_and_says_how_much_is_missing() {
        let json = json!({"content": "é".repeat(HEAD_CHARS + 10), "path": "/etc/passwd"});
        let question = question(&json.to_string());
        let mut text = Text::new(&question);
        let brief = plain(&text.brief());
        assert!(brief.contains("é\"[20 more bytes],\n    \"path\": \"/etc/passwd\""), "{brief}");
        assert!(text.options().contains("[v]iew"));
        assert!(text.next_page().contains(&"é".repeat(HEAD_CHARS + 10)));
        assert!(!text.options().contains("[v]iew"), "all of it was shown");
    }

    #[test]
    fn the_whole_is_shown_page_by_page() {
        let items: Vec<_> = (0..20_000).map(|n| format!("item {n}")).collect();
        let question = question(&json!({ "items": items }).to_string());
        let mut text = Text::new(&question);
        let brief = plain(&text.brief());
        assert!(brief.contains("item 37") && !brief.contains("item 39"), "{brief}");
        assert!(brief.contains("[19964 more lines of "), "{brief}");
        let mut pages = 0;
        while text.options().contains("[v]iew") {
            let page = plain(&text.next_page());
            assert!(page.len() < PAGE_BYTES + 100);
            pages += 1;
        }
        assert!(pages > 3 && pages < 10, "{pages}");
    }

    #[test]
    fn what_is_no_text_is_cut_too() {
        let (line, is_cut) = shown(&format!("\"n\": {}", "9".repeat(1000)), 10);
        assert_eq!((plain(&line).as_str(), is_cut), ("\"n\": 99999999[992 more bytes]", true));
        assert_eq!(shown(r#""\ud800""#, 10), (r#""\ud800""#.to_owned(), false));
    }

    #[test]
    fn a_call_without_arguments_has_none() {
        let question = Question { parameters: None, ..question("{}") };
        assert!(plain(&Text::new(&question).brief()).ends_with("\n  {}"));
    }
}
