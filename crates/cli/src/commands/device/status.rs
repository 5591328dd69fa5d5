//! `flightdeck device status`: how the devices on this machine are doing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use device::state::{LastError, Running};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::status_file::{Report, all_in};
use crate::args::{DeviceStatus, Global};
use crate::output::{GREEN, RED, human, print, print_json, safe_line};
use crate::settings::File;
use crate::state::{StateFolder, expand_home};
use crate::{Code, Ended};

pub(super) fn run(args: &DeviceStatus, global: &Global) -> Ended {
    let mut found = reports(args, global)?;
    found.retain(|(_, report)| args.id.as_ref().is_none_or(|id| *id == report.id));
    if found.is_empty() {
        let which = args.id.as_ref().map_or_else(String::new, |id| format!(" '{}'", safe_line(id)));
        let flag = args.id.as_ref().map_or_else(String::new, |id| format!(" --id {}", quoted(id)));
        say!(
            "No device{which} of yours runs on this machine. Start one: flightdeck device{flag}\n\
             One that is a service of the machine: sudo flightdeck --state-dir \
             /var/lib/flightdeck-device device status"
        );
        return Ok(Code::FAILED);
    }
    for (file, report) in &found {
        match args.json {
            true => print_json(&as_json(file, report)?)?,
            false => print(&shown(file, report, Timestamp::now()))?,
        }
    }
    let are_connected = found.iter().all(|(_, report)| is_connected(report));
    Ok(if are_connected { Code::COMPLETED } else { Code::FAILED })
}

/// The reports in the file that was named, else in the state folder.
fn reports(args: &DeviceStatus, global: &Global) -> anyhow::Result<Vec<(PathBuf, Report)>> {
    let settings = File::load(global.config.as_deref())?;
    let named = args.status_file.clone().or(settings.device.status_file);
    match named.filter(|named| !named.is_empty()) {
        None => Ok(all_in(StateFolder::new(global.state_dir.clone())?.path())),
        Some(named) => {
            let path = expand_home(Path::new(&named));
            // Without the file no device runs; with another one in its place, something is wrong.
            if !path.exists() {
                return Ok(Vec::new());
            }
            let report = Report::read(&path)?;
            Ok(vec![(path, report)])
        }
    }
}

fn is_connected(report: &Report) -> bool {
    report.is_alive() && report.state.is_connected
}

fn as_json(file: &Path, report: &Report) -> anyhow::Result<String> {
    let mut told = serde_json::to_value(report)?;
    told["is_running"] = json!(report.is_alive());
    // What a device that is gone said last is no longer so.
    told["is_connected"] = json!(is_connected(report));
    if !report.is_alive() {
        (told["running"], told["waiting"], told["next_try"]) = (json!([]), json!(0), Value::Null);
    }
    told["file"] = json!(file);
    Ok(told.to_string())
}

fn shown(file: &Path, report: &Report, now: Timestamp) -> String {
    let (id, server) = (safe_line(&report.id), safe_line(&report.server));
    let state = &report.state;
    let since = ago(state.since, now);
    let mut text = match (report.is_alive(), state.is_connected) {
        (false, _) => return gone(file, report, now),
        (true, true) => format!("{GREEN}connected{GREEN:#}: '{id}' to {server}, for {since}\n"),
        (true, false) => {
            let tries = if state.tries == 1 {
                "1 try".to_owned()
            } else {
                format!("{} tries", state.tries)
            };
            let next = state.next_try.map_or_else(String::new, |at| match at > now {
                true => format!(", the next in {}", ago(now, at)),
                false => ", trying now".to_owned(),
            });
            format!(
                "{RED}not connected{RED:#}: '{id}' to {server}, for {since}; {tries} failed{next}\n"
            )
        }
    };
    for running in &state.running {
        text.push_str(&shown_running(running, now));
    }
    if state.waiting > 0 {
        text.push_str(&format!("  {} more wait for their turn\n", state.waiting));
    }
    for (name, how) in &state.mcp_servers {
        text.push_str(&format!("  MCP server {}: {}\n", safe_line(name), safe_line(how)));
    }
    if let Some(error) = &state.last_error {
        text.push_str(&shown_error(error, now));
    }
    let counts = state.counts;
    text.push_str(&format!(
        "  since its start: {} {}, {} {} answered, {} with a failure \
         (process {}, version {})\n",
        counts.connections,
        if counts.connections == 1 { "connection" } else { "connections" },
        counts.commands,
        if counts.commands == 1 { "command" } else { "commands" },
        counts.failed,
        report.pid,
        safe_line(&report.version)
    ));
    text
}

fn shown_running(running: &Running, now: Timestamp) -> String {
    let tools: Vec<_> = running.tools.iter().map(|tool| safe_line(tool)).collect();
    let session = running.session_id.as_deref().unwrap_or("–");
    let since = ago(running.since, now);
    format!("  runs {}, for {since} (session {})\n", tools.join(", "), safe_line(session))
}

fn shown_error(error: &LastError, now: Timestamp) -> String {
    format!("  last error, {} ago: {}\n", ago(error.at, now), safe_line(&error.text))
}

/// A device that is there no more: it ended by itself, or was killed.
fn gone(file: &Path, report: &Report, now: Timestamp) -> String {
    let why = match &report.ended {
        Some(why) => format!("it ended: {}", safe_line(why)),
        None => format!("its process {} is gone without a goodbye", report.pid),
    };
    let last = report.state.last_error.as_ref().filter(|_| report.ended.is_none());
    format!(
        "{RED}not running{RED:#}: '{}'; {why}\n{}  start it: flightdeck device --id {} --server {} \
         (and its other options)\n  forget it: rm {}\n",
        safe_line(&report.id),
        last.map_or_else(String::new, |error| shown_error(error, now)),
        quoted(&report.id),
        quoted(&report.server),
        quoted(&file.display().to_string()),
    )
}

fn ago(from: Timestamp, to: Timestamp) -> String {
    human(Duration::try_from(to.duration_since(from)).unwrap_or_default())
}

/// A word to be typed into a shell.
fn quoted(word: &str) -> String {
    shlex::try_quote(word).map_or_else(|_| "…".to_owned(), |quoted| safe_line(&quoted))
}
