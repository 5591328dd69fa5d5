//! What a row of the table is, and the steps it is made of.

use std::fmt;

use serde_json::{Value, json};

use crate::common::plan;

/// The name of a connection, and the placeholder of its `client_id`: who is on `d` is `$d`.
pub(crate) type Link = &'static str;

/// One thing that is true of the protocol, and the exchange that shows it.
pub(crate) struct Row {
    /// What is true, as a sentence. It stands in `docs/ufo-compatibility.md`.
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    /// The recorded transcripts of the Python server that it translates.
    pub(crate) golden: &'static [&'static str],
    pub(crate) setup: Setup,
    pub(crate) steps: Vec<Step>,
}

/// How this server and UFO's compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// UFO's server does it too.
    Same,
    /// UFO's server does something else; why ours does this.
    Ours(&'static str),
}

/// Which server a row talks to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Setup {
    /// One that it shares with other rows; ids are the row's own all the same.
    Shared,
    /// One of its own, with these flags.
    Flags(&'static [&'static str]),
    /// One of its own, with this settings file.
    File(&'static str),
}

/// A chapter of the table.
pub(crate) struct Group {
    pub(crate) title: &'static str,
    pub(crate) rows: Vec<Row>,
}

/// One step of an exchange.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// A WebSocket is opened, with the right key; nothing is said yet.
    Open(Link),
    /// The same, and a REGISTER with these fields, which is confirmed.
    Join(Link, Value),
    /// A ClientMessage, with all of Python's fields: unset ones are `null`, and `client_id`,
    /// `client_type` and `status` are the usual ones unless the row says otherwise.
    Say(Link, Value),
    /// Text as it is.
    SayText(Link, String),
    /// So many blanks in one text frame.
    SayBlanks(Link, usize),
    SayBinary(Link, &'static [u8]),
    /// The next message on a link, as far as it is stated here.
    Hear(Link, Value),
    /// The next messages on a link, in any order.
    HearAll(Link, Vec<Value>),
    /// The next message on a link, whose text holds this as it is.
    HearText(Link, String),
    /// Nothing is on its way to a link: its heartbeat's answer is the next message.
    Silence(Link),
    /// The server closes the link, with this code and a reason that contains this.
    Closed(Link, u16, &'static str),
    /// The client closes the link, and the server lets go of its id.
    HangUp(Link),
    /// The link is gone without a close, and the server lets go of its id.
    Cut(Link),
    /// The client neither reads nor writes any more until the server lets go of its id.
    FallSilent(Link),
    /// An HTTP request, the status that answers it, and the JSON of the answer as far as stated.
    Http(Request, u16, Value),
    /// The server is told to stop (SIGTERM).
    StopServer,
}

/// An HTTP request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) body: Option<String>,
}

/// A row whose behaviour is UFO's.
pub(crate) fn same(name: &'static str, steps: impl IntoIterator<Item = Step>) -> Row {
    row(name, Verdict::Same, steps)
}

/// A row whose behaviour is ours, and why.
pub(crate) fn ours(
    name: &'static str,
    because: &'static str,
    steps: impl IntoIterator<Item = Step>,
) -> Row {
    row(name, Verdict::Ours(because), steps)
}

fn row(name: &'static str, verdict: Verdict, steps: impl IntoIterator<Item = Step>) -> Row {
    let steps = steps.into_iter().collect();
    Row { name, verdict, golden: &[], setup: Setup::Shared, steps }
}

impl Row {
    pub(crate) fn golden(self, golden: &'static [&'static str]) -> Self {
        Self { golden, ..self }
    }

    pub(crate) fn flags(self, flags: &'static [&'static str]) -> Self {
        Self { setup: Setup::Flags(flags), ..self }
    }

    pub(crate) fn file(self, file: &'static str) -> Self {
        Self { setup: Setup::File(file), ..self }
    }
}

/// Some steps, and then others.
pub(crate) fn then(mut first: Vec<Step>, more: impl IntoIterator<Item = Step>) -> Vec<Step> {
    first.extend(more);
    first
}

// Joining.

pub(crate) fn open(link: Link) -> Step {
    Step::Open(link)
}

/// A Linux device joins.
pub(crate) fn device(link: Link) -> Step {
    device_on(link, "linux")
}

pub(crate) fn device_on(link: Link, platform: &str) -> Step {
    let facts = json!({"device_id": format!("${link}"), "platform": platform, "cpu_count": 2, "hostname": "h"});
    device_with(link, json!({"system_info": facts, "platform": platform}))
}

pub(crate) fn device_with(link: Link, metadata: Value) -> Step {
    Step::Join(link, json!({"client_type": "device", "metadata": metadata}))
}

/// A constellation joins that may work with any device.
pub(crate) fn constellation(link: Link) -> Step {
    galaxy(link, Value::Null)
}

/// A constellation joins that declares its device, as Galaxy does.
pub(crate) fn galaxy(link: Link, target: impl Into<Value>) -> Step {
    let metadata = json!({"type": "constellation_client"});
    let fields = json!({"client_type": "constellation", "target_id": target.into(),
        "metadata": metadata});
    Step::Join(link, fields)
}

// Speaking and hearing.

pub(crate) fn say(link: Link, kind: &str, mut fields: Value) -> Step {
    fields["type"] = json!(kind);
    Step::Say(link, fields)
}

pub(crate) fn say_text(link: Link, text: impl Into<String>) -> Step {
    Step::SayText(link, text.into())
}

pub(crate) fn hear(link: Link, kind: &str, mut fields: Value) -> Step {
    fields["type"] = json!(kind);
    Step::Hear(link, fields)
}

pub(crate) fn hear_text(link: Link, text: impl Into<String>) -> Step {
    Step::HearText(link, text.into())
}

/// These messages, whichever comes first: they have different causes.
pub(crate) fn in_either_order<const N: usize>(heard: [Step; N]) -> Step {
    let mut link = "";
    let messages = heard.map(|step| match step {
        Step::Hear(on, message) => {
            link = on;
            message
        }
        other => panic!("{other} hears nothing"),
    });
    Step::HearAll(link, messages.into())
}

/// An ERROR with this text.
pub(crate) fn hear_error(link: Link, error: impl Into<Value>) -> Step {
    hear(
        link,
        "error",
        json!({"status": "error", "error": error.into(), "response_id": some_text()}),
    )
}

/// An ERROR about a session.
pub(crate) fn hear_error_about(link: Link, session: &str, error: impl Into<Value>) -> Step {
    let fields = json!({"status": "error", "session_id": session, "error": error.into()});
    hear(link, "error", fields)
}

pub(crate) fn silence(link: Link) -> Step {
    Step::Silence(link)
}

pub(crate) fn closed(link: Link, code: u16, reason: &'static str) -> Step {
    Step::Closed(link, code, reason)
}

pub(crate) fn hang_up(link: Link) -> Step {
    Step::HangUp(link)
}

// A task's messages.

/// A TASK with a plan of one command.
pub(crate) fn task(link: Link, session: &str, target: &str) -> Step {
    let fields = json!({"session_id": session, "task_name": "t", "target_id": target,
        "request": plan("pwd")});
    say(link, "task", fields)
}

/// The ACK of a TASK.
pub(crate) fn ack(link: Link, session: &str) -> Step {
    let fields = json!({"status": "ok", "session_id": session, "response_id": some_text()});
    hear(link, "heartbeat", fields)
}

/// A COMMAND: `command`, such as `$R`, stands for its `response_id`, `$R_call` for its action's
/// `call_id`.
pub(crate) fn command(link: Link, session: &str, command: &str) -> Step {
    let action = json!({"tool_name": "execute_command", "call_id": format!("{command}_call")});
    let fields = json!({"status": "continue", "session_id": session, "response_id": command,
        "actions": [action]});
    hear(link, "command", fields)
}

/// COMMAND_RESULTS.
pub(crate) fn results(link: Link, session: &str, command: &str, results: Value) -> Step {
    let fields = json!({"status": "continue", "session_id": session, "prev_response_id": command,
        "action_results": results});
    say(link, "command_results", fields)
}

/// COMMAND_RESULTS of one action that went well.
pub(crate) fn works(link: Link, session: &str, command: &str) -> Step {
    results(link, session, command, json!([good(command)]))
}

/// What a Python device returns for a command that went well.
pub(crate) fn good(command: &str) -> Value {
    crate::common::good_result(&json!(format!("{command}_call")))
}

pub(crate) fn end(link: Link, session: &str, status: &str) -> Step {
    hear(link, "task_end", json!({"session_id": session, "status": status}))
}

pub(crate) fn failed(link: Link, session: &str, error: impl Into<Value>) -> Step {
    let fields = json!({"session_id": session, "status": "failed", "error": error.into()});
    hear(link, "task_end", fields)
}

/// Device `d` runs command `$R` of the task `$S` that constellation `g` has for it.
pub(crate) fn a_running_task() -> Vec<Step> {
    vec![
        device("d"),
        galaxy("g", "$d"),
        task("g", "$S", "$d"),
        ack("g", "$S"),
        command("d", "$S", "$R"),
    ]
}

/// Constellation `g` has a task for `d`, which gets a COMMAND as stated.
pub(crate) fn task_of(request: impl Into<Value>, stated: Value) -> [Step; 4] {
    [
        galaxy("g", "$d"),
        say("g", "task", json!({"session_id": "$S", "target_id": "$d", "request": request.into()})),
        ack("g", "$S"),
        hear("d", "command", stated),
    ]
}

/// Command `$R` of it goes well, and both are told of the end.
pub(crate) fn it_completes() -> [Step; 3] {
    [works("d", "$S", "$R"), end("g", "$S", "completed"), end("d", "$S", "completed")]
}

// HTTP.

/// A header with the right key.
pub(crate) const KEY: (&str, &str) = ("X-API-Key", "$KEY");

pub(crate) fn get(path: &str, status: u16, answer: Value) -> Step {
    http("GET", path, &[KEY], None, status, answer)
}

pub(crate) fn post(path: &str, body: &Value, status: u16, answer: Value) -> Step {
    http("POST", path, &[KEY], Some(&body.to_string()), status, answer)
}

pub(crate) fn http(
    method: &'static str,
    path: &str,
    headers: &[(&'static str, &'static str)],
    body: Option<&str>,
    status: u16,
    answer: Value,
) -> Step {
    let (path, headers, body) = (path.to_owned(), headers.to_vec(), body.map(str::to_owned));
    Step::Http(Request { method, path, headers, body }, status, answer)
}

/// A request to open a WebSocket.
pub(crate) fn upgrade(path: &str, headers: &[(&'static str, &'static str)], status: u16) -> Step {
    let asks = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    http("GET", path, &[&asks, headers].concat(), None, status, Value::Null)
}

/// JSON that only passes through unharmed if nobody reads and writes it anew.
pub(crate) const ODD: &str =
    r#"{"z":1,"a":123456789012345678901234567890,"f":1.10,"e":1E400,"s":"\u00e9\ud83d\ude00"}"#;

// What a field may be, other than a value.

/// Any text but an empty one.
pub(crate) fn some_text() -> Value {
    json!({"$some_text": true})
}

pub(crate) fn uuid() -> Value {
    json!({"$uuid": true})
}

pub(crate) fn contains(part: &str) -> Value {
    json!({"$contains": part})
}

/// This and no field more.
pub(crate) fn exactly(value: Value) -> Value {
    json!({"$exactly": value})
}

pub(crate) fn in_any_order(items: Value) -> Value {
    json!({"$in_any_order": items})
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(link) => write!(f, "{link} connects"),
            Self::Join(link, fields) => write!(f, "{link} joins: {fields}"),
            Self::Say(link, message) => write!(f, "{link}→ {message}"),
            Self::SayText(link, text) => write!(f, "{link}→ {text:.400}"),
            Self::SayBlanks(link, count) => write!(f, "{link}→ {count} blanks"),
            Self::SayBinary(link, bytes) => write!(f, "{link}→ binary {bytes:?}"),
            Self::Hear(link, message) => write!(f, "←{link} {message}"),
            Self::HearAll(link, messages) => {
                write!(f, "←{link} in any order {}", Value::from(messages.clone()))
            }
            Self::HearText(link, text) => write!(f, "←{link} … {text:.400} …"),
            Self::Silence(link) => write!(f, "nothing is on its way to {link}"),
            Self::Closed(link, code, reason) => write!(f, "←{link} close {code} … {reason} …"),
            Self::HangUp(link) => write!(f, "{link} hangs up"),
            Self::Cut(link) => write!(f, "{link} is cut"),
            Self::FallSilent(link) => write!(f, "{link} falls silent"),
            Self::Http(request, status, answer) => {
                write!(f, "{} {} → {status} {answer}", request.method, request.path)
            }
            Self::StopServer => f.write_str("the server is told to stop"),
        }
    }
}
