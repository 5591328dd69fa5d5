//! The log: which events become lines on standard error, and in which form.

mod queue;
mod writer;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::panic;
use std::sync::OnceLock;

use anstream::adapter::strip_str;
use jiff::Timestamp;
use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::args::{Command, Global};
use crate::held;
use crate::output::log_safe;
use writer::Writer;

/// The target of a line that is no event of a module.
const TARGET: &str = env!("CARGO_PKG_NAME");

static WRITER: Writer = Writer::new();

static FORMAT: OnceLock<Format> = OnceLock::new();

/// The form of what goes to standard error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line, for programs
    Json,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Starts to log. By default the server logs its life, other commands trouble only.
///
/// # Errors
/// When the filter is none.
pub(crate) fn start(global: &Global, command: &Command) -> anyhow::Result<()> {
    let format = *FORMAT.get_or_init(|| global.log_format.unwrap_or_default());
    hook_panics();
    let log = tracing_subscriber::fmt().with_env_filter(filter(global, command)?);
    let log = log.with_writer(|| Log);
    match format {
        Format::Text => log.with_ansi(io::stderr().is_terminal()).init(),
        Format::Json => log.json().flatten_event(true).with_current_span(false).init(),
    }
    Ok(())
}

fn filter(global: &Global, command: &Command) -> anyhow::Result<EnvFilter> {
    let usual = if matches!(command, Command::Serve(_)) { "info" } else { "warn" };
    let filter = global.log.as_deref().unwrap_or(usual);
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        anyhow::anyhow!(
            "--log {filter:?} is no filter: {error}; use one such as info or link=debug"
        )
    })?;
    // The MCP library logs addresses and messages, which may hold keys; the device reports what matters of it.
    match global.log.as_deref().is_some_and(|log| log.contains("rmcp")) {
        true => Ok(filter),
        false => Ok(filter.add_directive("rmcp=off".parse()?)),
    }
}

/// Lets what was logged before a panic come before its message, which is an object too where all are.
fn hook_panics() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if flush() && format() == Format::Text {
            return usual(panic);
        }
        push(line("ERROR", &panic.to_string()).as_bytes());
        flush();
    }));
}

/// Queues a line. Does not wait.
pub(crate) fn push(line: &[u8]) {
    if WRITER.start(held::write_log) {
        WRITER.push(line);
    } else {
        // Without a thread the line is written here. A failure has no place to be logged.
        let _unwritten = held::write_log(line);
    }
}

/// Waits until what was logged is written, for a second at most. Returns whether it is; if not, standard error
/// is stuck.
pub(crate) fn flush() -> bool {
    WRITER.flush()
}

/// The form of a line that is said beside the log.
pub(crate) fn said(text: fmt::Arguments<'_>) -> String {
    let text = text.to_string();
    match format() {
        Format::Text => text + "\n",
        Format::Json if text.is_empty() => text,
        Format::Json => {
            let text = strip_str(&text).to_string();
            line(level_of(&text), text.trim())
        }
    }
}

/// The level of a line, by the word that it begins with for people.
fn level_of(said: &str) -> &'static str {
    match said.split(':').next() {
        Some("error") => "ERROR",
        Some("warning") => "WARN",
        _ => "INFO",
    }
}

/// A line as an event would have it.
fn line(level: &str, message: &str) -> String {
    let timestamp = format!("{:.6}", Timestamp::now());
    match format() {
        Format::Text => format!("{timestamp} {level:>5} {TARGET}: {message}\n"),
        Format::Json => {
            let object = json!({
                "timestamp": timestamp, "level": level, "message": message, "target": TARGET,
            });
            format!("{object}\n")
        }
    }
}

fn format() -> Format {
    FORMAT.get().copied().unwrap_or_default()
}

/// Where the subscriber writes; each write is a whole line.
struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) => push(log_safe(text, format() == Format::Json).as_bytes()),
            Err(_) => push(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names the form in which a child of a test is to panic.
    const FORM: &str = "FLIGHTDECK_TEST_PANIC";

    #[test]
    #[ignore = "it is what the children of the test below run"]
    fn panics() {
        let form = std::env::var(FORM).unwrap();
        FORMAT.set(if form == "json" { Format::Json } else { Format::Text }).unwrap();
        hook_panics();
        push(b"{\"last\":1}\n");
        panic!("oh\nno");
    }

    /// What is on standard error of a child that logs and panics.
    fn panicked(form: &str) -> Vec<String> {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["log::tests::panics", "--exact", "--ignored", "--nocapture"]).env(FORM, form);
        let stderr = child.output().unwrap().stderr;
        String::from_utf8(stderr).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_panic_comes_behind_what_was_logged_in_the_form_of_the_log() {
        let text = panicked("text").join("\n");
        let (before, after) = text.split_once("{\"last\":1}").unwrap();
        assert!(before.trim().is_empty() && after.contains("panicked at"), "{text}");
        let json = panicked("json");
        assert_eq!(json.len(), 2, "{json:?}");
        let object: serde_json::Value = serde_json::from_str(&json[1]).unwrap();
        assert_eq!(object["level"], "ERROR");
        assert!(object["message"].as_str().unwrap().ends_with("oh\nno"), "{object}");
    }

    #[test]
    fn the_word_that_a_line_begins_with_is_its_level() {
        let levels = ["error: x", "warning: x", "Stopping: x", "x"].map(level_of);
        assert_eq!(levels, ["ERROR", "WARN", "INFO", "INFO"]);
    }
}
