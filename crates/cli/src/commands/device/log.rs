//! `flightdeck device log`: what was run on this machine, for which tasks, and how it ended.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::record::{Entry, FILE_NAME, STARTED, numbered};
use super::status_file::file_word;
use crate::args::{DeviceLog, Global};
use crate::output::{print, print_json};
use crate::state::StateFolder;
use crate::{Code, Ended};

/// What the name of a device's own folder begins with, in the state folder.
const FOLDER: &str = "journal-";

pub(super) fn run(args: &DeviceLog, global: &Global) -> Ended {
    let state = StateFolder::new(global.state_dir.clone())?;
    let mut entries = Vec::new();
    for file in files(state.path(), args.id.as_deref()) {
        read(&file, &mut entries)?;
    }
    entries.sort_by_key(|entry: &Entry| entry.at);
    let ended = entries.iter().filter(|entry| entry.outcome != STARTED);
    let ended: HashSet<_> = ended.map(|entry| entry.call.clone()).collect();
    entries.retain(|entry| entry.outcome != STARTED || !ended.contains(&entry.call));
    if entries.is_empty() {
        say!("Nothing was run here by a device of yours that keeps a record.");
        return Ok(Code::FAILED);
    }
    let first = entries.len().saturating_sub(args.last);
    for entry in entries.drain(first..) {
        match args.json {
            true => print_json(&serde_json::to_string(&entry).map_err(anyhow::Error::from)?)?,
            false => print(&format!("{}\n", entry.line()))?,
        }
    }
    Ok(Code::COMPLETED)
}

/// The files of one device, or of all.
fn files(state: &Path, id: Option<&str>) -> Vec<PathBuf> {
    let named = id.map(|id| format!("{FOLDER}{}", file_word(id)));
    let folders = fs::read_dir(state).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_meant = |folder: &PathBuf| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        named.as_ref().map_or_else(|| name.starts_with(FOLDER), |named| *named == name)
    };
    let records = folders.filter(is_meant).map(|folder| folder.join(FILE_NAME));
    let there = |path: PathBuf| {
        (0..).map(move |number| numbered(&path, number)).take_while(|file| file.exists())
    };
    records.flat_map(there).collect()
}

/// Reads the entries of a file. A line that a crash cut short is none.
fn read(file: &Path, entries: &mut Vec<Entry>) -> anyhow::Result<()> {
    for line in BufReader::new(fs::File::open(file)?).lines() {
        entries.extend(serde_json::from_str::<Entry>(&line?).ok());
    }
    Ok(())
}
