//! The device's own record of what was run for whom: `commands.jsonl`, and a line on the terminal for each.
//!
//! An entry is written when a call begins, and again with its outcome when it is over: one that never ended was
//! cut off together with the device. The file belongs to this one device and is for its owner's eyes only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aip::visible::escape_json;
use anyhow::Context;
use device::{CallState, Called, OnCall};
use jiff::Timestamp;
use link::private;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::output::{DIM, human, safe_line};
use crate::settings::{DeviceValues, RecordMode};

/// The name of the file.
pub(super) const FILE_NAME: &str = "commands.jsonl";

/// Most bytes of a command or of arguments in an entry.
const MAX_COMMAND: usize = 4096;

/// Most bytes of an error in an entry.
const MAX_ERROR: usize = 200;

/// The outcome of an entry that was written when its call began.
pub(super) const STARTED: &str = "started";

/// One line of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    /// When it was written.
    pub(super) at: Timestamp,
    /// The same in both entries of one call.
    pub(super) call: String,
    /// The task, by its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) task: Option<String>,
    /// Who wanted it, as the server says: a client's id, or who uses the HTTP API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) requester: Option<String>,
    /// The name of the key that the requester has shown there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// The agent for whom it ran, as the server names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) agent: Option<String>,
    /// The tool, with its namespace once that is known.
    pub(super) tool: String,
    /// The command line, or the arguments of another tool as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) command: Option<String>,
    /// How many bytes of it are left out at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cut: Option<usize>,
    /// Instead of the command: the SHA-256 of it, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sha256: Option<String>,
    /// `started`, `success` or `failure`.
    pub(super) outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) exit_code: Option<i64>,
    /// The beginning of the error, without output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ms: Option<u64>,
}

/// What keeps the record of a device whose own folder this is; nothing, where its owner wants none.
pub(super) fn keeper(values: &DeviceValues, folder: Option<&Path>) -> OnCall {
    let path = folder.map(|folder| folder.join(FILE_NAME));
    let path = path.filter(|_| values.record != RecordMode::Off);
    let (bytes, files) = (values.record_max_bytes as u64, values.record_files);
    let log = path.and_then(|path| {
        let opened = Log::open(path.clone(), bytes, files);
        let opened = opened.with_context(|| format!("cannot write {}", path.display()));
        opened.inspect_err(|error| say!("warning: there is no record of commands: {error:#}")).ok()
    });
    let (log, mode) = (log.map(Mutex::new), values.record);
    let (is_shown, run) = (io::stderr().is_terminal(), Timestamp::now().as_microsecond());
    OnCall::to(move |called| {
        let entry = Entry::of(called, run, mode);
        if let Some(log) = &log {
            log.lock().unwrap_or_else(PoisonError::into_inner).append(&entry);
        }
        if is_shown && entry.outcome != STARTED {
            say!("{DIM}{}{DIM:#}", entry.line());
        }
    })
}

impl Entry {
    /// The entry for a call in the process that started at `run`.
    fn of(called: &Called<'_>, run: i64, mode: RecordMode) -> Self {
        let (outcome, exit_code, error, took) = match &called.state {
            CallState::Started => (STARTED, None, None, None),
            CallState::Succeeded { exit_code, took } => ("success", *exit_code, None, Some(*took)),
            CallState::Failed { why, took } => ("failure", None, Some(reason(why)), Some(*took)),
        };
        let text = command(called);
        let (head, sha256) = match mode {
            RecordMode::Digest => (None, text.as_deref().map(digest)),
            _ => (text.as_deref().map(|text| head(text, MAX_COMMAND)), None),
        };
        let cut = head.zip(text.as_deref()).map(|(head, text)| text.len() - head.len());
        Self {
            at: Timestamp::now(),
            call: format!("{run:x}-{}", called.number),
            task: called.task.map(ToString::to_string),
            requester: called.requester.map(str::to_owned),
            key: called.key.map(str::to_owned),
            agent: called.agent_name.map(str::to_owned),
            tool: tool(called),
            command: head.map(str::to_owned),
            cut: cut.filter(|cut| *cut > 0),
            sha256,
            outcome: outcome.to_owned(),
            exit_code,
            error,
            ms: took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// How it is shown to a person, on one line.
    pub(super) fn line(&self) -> String {
        let what =
            self.command.clone().or_else(|| Some(format!("sha256:{}", self.sha256.as_ref()?)));
        let what = what.map(|what| format!(" {}", head(&what, MAX_ERROR))).unwrap_or_default();
        let how = match (self.outcome.as_str(), self.exit_code, &self.error) {
            (STARTED, ..) => "no end: it runs, or was cut off".to_owned(),
            ("success", Some(code), _) => format!("exit {code}"),
            ("failure", _, Some(error)) => format!("failed: {error}"),
            (outcome, ..) => outcome.to_owned(),
        };
        let took = self.ms.map(|ms| format!(" in {}", human(Duration::from_millis(ms))));
        let of =
            |what: &str, name: &Option<String>| name.as_ref().map(|name| format!("{what} {name}"));
        let whose =
            [of("for", &self.requester), of("with the key", &self.key), of("task", &self.task)];
        let whose: Vec<_> = whose.into_iter().flatten().collect();
        let whose =
            if whose.is_empty() { String::new() } else { format!(" ({})", whose.join(", ")) };
        let time = self.at.strftime("%Y-%m-%d %H:%M:%SZ");
        let took = took.unwrap_or_default();
        safe_line(&format!("{time} {}{what}: {how}{took}{whose}", self.tool))
    }
}

/// The tool that is called, once: its name may have its type and namespace in front already.
fn tool(called: &Called<'_>) -> String {
    let name = called.tool_name;
    let name = ["action::", "data_collection::"].iter().find_map(|kind| name.strip_prefix(kind));
    let name = name.unwrap_or(called.tool_name);
    match called.namespace {
        Some(namespace) => {
            let own = name.strip_prefix(namespace).and_then(|rest| rest.strip_prefix("::"));
            format!("{namespace}.{}", own.unwrap_or(name))
        }
        None => name.to_owned(),
    }
}

/// The command line of a call, or its arguments.
fn command(called: &Called<'_>) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        command: String,
    }
    let parameters = called.parameters?;
    let is_command = called.tool_name.ends_with("execute_command");
    let line = is_command.then(|| parameters.parse::<Line>().ok()).flatten();
    Some(line.map_or_else(|| parameters.as_str().to_owned(), |line| line.command))
}

fn digest(text: &str) -> String {
    let bytes = Sha256::digest(text.as_bytes());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The beginning of an error. What a program wrote is no part of it.
fn reason(error: &str) -> String {
    let said = error.split("; stdout so far: ").next().unwrap_or_default();
    let said = said.split("; stderr so far: ").next().unwrap_or_default();
    head(said.lines().next().unwrap_or_default(), MAX_ERROR).to_owned()
}

fn head(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes.min(text.len()))]
}

/// The file, which is put aside when it is large.
struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
    max_bytes: u64,
    /// How many that were put aside are kept.
    files: u32,
    /// Whether the last entry could not be written: that is said once.
    is_failing: bool,
}

impl Log {
    fn open(path: PathBuf, max_bytes: u64, files: u32) -> io::Result<Self> {
        let mut file = append_to(&path)?;
        end_cut_line(&mut file)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path, file, bytes, max_bytes, files, is_failing: false })
    }

    fn append(&mut self, entry: &Entry) {
        let written = self.write(entry);
        if let Err(error) = &written
            && !self.is_failing
        {
            tracing::warn!(%error, "the record of commands cannot be written");
        }
        self.is_failing = written.is_err();
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = escape_json(&serde_json::to_string(entry)?).into_owned().into_bytes();
        line.push(b'\n');
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.max_bytes {
            self.put_aside()?;
        }
        self.file.write_all(&line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Begins a new file; the oldest one goes.
    fn put_aside(&mut self) -> io::Result<()> {
        for number in (0..self.files).rev() {
            let _not_there =
                fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1));
        }
        if self.files == 0 {
            fs::remove_file(&self.path)?;
        }
        self.file = append_to(&self.path)?;
        self.bytes = self.file.metadata()?.len();
        Ok(())
    }
}

/// Where the file of this number is: 0 is the one that is written to.
pub(super) fn numbered(path: &Path, number: u32) -> PathBuf {
    match number {
        0 => path.to_owned(),
        number => PathBuf::from(format!("{}.{number}", path.display())),
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    private(OpenOptions::new().read(true).append(true).create(true)).open(path)
}

/// Ends the last line if a crash cut it short.
fn end_cut_line(file: &mut File) -> io::Result<()> {
    let mut last = [b'\n'];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last != *b"\n" {
        file.write_all(b"\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use aip::Payload;

    use super::*;

    fn entry(parameters: &str, state: CallState<'_>, mode: RecordMode) -> Entry {
        let parameters = Payload::from_text(parameters.to_owned()).unwrap();
        let called = Called {
            number: 7,
            task: None,
            requester: Some("galaxy"),
            key: Some("me"),
            agent_name: None,
            tool_name: "execute_command",
            namespace: Some("BashExecutor"),
            parameters: Some(&parameters),
            state,
        };
        Entry::of(&called, 1, mode)
    }

    #[test]
    fn an_entry_has_the_command_or_its_digest_and_no_output() {
        let took = Duration::from_millis(12);
        let ended = || CallState::Succeeded { exit_code: Some(3), took };
        let text = entry(r#"{"command":"df -h\u001b[2J"}"#, ended(), RecordMode::Text);
        assert_eq!(text.command.as_deref(), Some("df -h\u{1b}[2J"));
        let line = text.line();
        assert!(
            line.contains(r"BashExecutor.execute_command df -h\u{1b}[2J: exit 3 in "),
            "{line}"
        );
        assert!(line.ends_with(" (for galaxy, with the key me)"), "{line}");
        let digest = entry(r#"{"command":"df -h"}"#, ended(), RecordMode::Digest);
        let known = "798339512a506f29d1c0b37e9e8cbaec68357873a3b840c9b10379d6632cbae2";
        assert_eq!((digest.command, digest.sha256.as_deref()), (None, Some(known)));
        let why = "Timed out after 5 s and was stopped; stdout so far: SECRET";
        let failed = entry("{}", CallState::Failed { why, took }, RecordMode::Text);
        assert_eq!(failed.error.as_deref(), Some("Timed out after 5 s and was stopped"));
        let long = format!(r#"{{"command":"{}"}}"#, "é".repeat(MAX_COMMAND));
        let long = entry(&long, CallState::Started, RecordMode::Text);
        assert_eq!((long.command.unwrap().len(), long.cut), (MAX_COMMAND, Some(MAX_COMMAND)));
    }

    #[test]
    fn a_line_that_a_crash_cut_short_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        fs::write(&path, br#"{"at":"2026-"#).unwrap();
        let one = entry("{}", CallState::Started, RecordMode::Text);
        Log::open(path.clone(), 500, 2).unwrap().append(&one);
        Log::open(path.clone(), 500, 2).unwrap().append(&one);
        let text = fs::read_to_string(&path).unwrap();
        let whole = text.lines().filter(|line| serde_json::from_str::<Entry>(line).is_ok());
        assert_eq!((text.lines().count(), whole.count()), (3, 2), "{text}");
    }

    #[test]
    fn the_file_is_put_aside_when_it_is_large_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let one = entry(r#"{"command":"df -h"}"#, CallState::Started, RecordMode::Text);
        let mut log = Log::open(path.clone(), 500, 2).unwrap();
        (0..20).for_each(|_| log.append(&one));
        for number in 0..=2 {
            let file = numbered(&path, number);
            let text = fs::read_to_string(&file).unwrap();
            assert!((1..=500).contains(&text.len()) && text.ends_with("}\n"), "{file:?}: {text}");
        }
        assert!(!numbered(&path, 3).exists());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
