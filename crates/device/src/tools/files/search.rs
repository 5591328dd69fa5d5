//! `search_files`: names that match, or lines that do.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::{Value, json};

use super::folder::{Folder, Kind, split};
use super::list::names;
use super::{Reach, Watch, failed};
use crate::tools::private::Known;

/// The longest glob or regular expression, in bytes.
const MAX_PATTERN: usize = 4096;

/// Most matches that are told.
pub(super) const MAX_MATCHES: usize = 500;

/// Most bytes that one search reads in files.
const MAX_BYTES: u64 = 1 << 30;

/// Most names in one folder that are looked at; the first ones.
const MAX_NAMES: usize = 100_000;

/// Most folders that wait for their turn.
const MAX_FOLDERS: usize = 100_000;

/// Longest piece of a line that is matched at once; a longer line is matched in pieces.
const MAX_LINE: u64 = 16 * 1024;

/// Most bytes of a compiled expression. The time that a piece of a line may take grows with it.
const MAX_EXPRESSION: usize = 1 << 20;

/// How much of a file is read at once; without a byte 0 in the first of it, it is a text.
const BUFFER: usize = 64 * 1024;

/// How much of a line is shown before its match, and from it on, in bytes.
const SHOWN: (usize, usize) = (100, 400);

/// Arguments of `search_files`.
#[derive(Debug, Deserialize)]
pub(super) struct SearchFiles {
    #[serde(default, deserialize_with = "crate::tools::optional")]
    path: Option<String>,
    #[serde(default, deserialize_with = "crate::tools::optional")]
    pattern: Option<String>,
    #[serde(default, deserialize_with = "crate::tools::optional")]
    content: Option<String>,
}

/// Why a search ends before its end.
enum Enough {
    /// The name of the limit it reached.
    Limit(&'static str),
    Stopped,
}

/// A search on its way.
struct Search<'a> {
    reach: &'a Reach,
    watch: &'a Watch,
    /// What the caller calls the folder.
    asked: &'a Path,
    /// That folder, resolved.
    start: PathBuf,
    /// What is kept from callers.
    known: Known,
    pattern: Option<Pattern>,
    content: Option<&'a Regex>,
    matches: Vec<Value>,
    bytes: u64,
    unreadable: u64,
}

struct Pattern {
    glob: GlobMatcher,
    /// Whether it is about the whole path below the folder, not the name alone.
    is_path: bool,
}

/// Searches a folder, or one file.
///
/// # Errors
/// When there is nothing to search for or it cannot be read as a pattern, when the path is refused or cannot
/// be read, and when the search was stopped.
pub(super) fn search_files(
    reach: &Reach,
    arguments: &SearchFiles,
    watch: &Watch,
) -> Result<Value, String> {
    if arguments.pattern.is_none() && arguments.content.is_none() {
        return Err("Bad arguments: give pattern, content, or both".to_owned());
    }
    let asked = arguments.path.as_deref().unwrap_or(".");
    let content = arguments.content.as_deref().map(expression).transpose()?;
    let mut search = Search {
        reach,
        watch,
        asked: asked.as_ref(),
        pattern: arguments.pattern.as_deref().map(pattern).transpose()?,
        content: content.as_ref(),
        start: reach.resolve(asked)?,
        known: reach.bounds.private().known(),
        matches: Vec::new(),
        bytes: 0,
        unreadable: 0,
    };
    let ended = search.run().map_err(|error| failed("search", asked, &error))?;
    let limit = match ended {
        Ok(()) => None,
        Err(Enough::Limit(limit)) => Some(limit),
        Err(Enough::Stopped) => return Err(crate::tools::STOPPED.to_owned()),
    };
    Ok(search.result(limit))
}

/// What is read of a pattern takes much more room than its text, before any limit of the library counts.
fn check_length(what: &str, text: &str) -> Result<(), String> {
    if text.len() <= MAX_PATTERN {
        return Ok(());
    }
    Err(format!("Bad arguments: {what} is longer than {MAX_PATTERN} bytes"))
}

fn pattern(text: &str) -> Result<Pattern, String> {
    check_length("pattern", text)?;
    let glob = GlobBuilder::new(text).literal_separator(true).build();
    let glob = glob.map_err(|error| format!("Bad arguments: pattern: {error}"))?.compile_matcher();
    Ok(Pattern { glob, is_path: text.contains('/') })
}

fn expression(text: &str) -> Result<Regex, String> {
    check_length("content", text)?;
    let regex = RegexBuilder::new(text).size_limit(MAX_EXPRESSION).build();
    regex.map_err(|error| format!("Bad arguments: content: {error}"))
}

impl Search<'_> {
    /// Searches. What cannot be read on the way is counted; the start must be readable.
    fn run(&mut self) -> io::Result<Result<(), Enough>> {
        if let Ok((folder, name)) = split(&self.start) {
            let folder = Folder::open(folder)?;
            if folder.facts(name)?.kind != Kind::Directory {
                let file = self.reach.opened(folder.file(name)?)?;
                return Ok(self.search_file(file, self.asked));
            }
        }
        let _readable = Folder::open(&self.start)?.entries()?;
        Ok(self.walk())
    }

    /// Goes through the folders from the top down, each in the order of its names.
    fn walk(&mut self) -> Result<(), Enough> {
        let mut folders = vec![PathBuf::new()];
        while let Some(below) = folders.pop() {
            let mut found = self.visit(&below)?;
            if folders.len() + found.len() > MAX_FOLDERS {
                return Err(Enough::Limit("folders"));
            }
            found.reverse();
            folders.append(&mut found);
        }
        Ok(())
    }

    /// Searches one folder, by its path below the start, and gives the folders in it.
    fn visit(&mut self, below: &Path) -> Result<Vec<PathBuf>, Enough> {
        let path = self.start.join(below);
        let opened = Folder::open(&path).and_then(|folder| {
            let names = names(&folder, &path, MAX_NAMES, self.reach, self.watch)?;
            Ok((folder, names))
        });
        self.check()?;
        let Ok((folder, names)) = opened else {
            self.unreadable += 1;
            return Ok(Vec::new());
        };
        let mut folders = Vec::new();
        for name in &names.first {
            self.check()?;
            // What is gone meanwhile was not found.
            let Ok(facts) = folder.facts(name) else { continue };
            let path = below.join(name);
            if self.pattern.as_ref().is_none_or(|pattern| pattern.matches(&path)) {
                self.meet(&folder, &path, facts.kind)?;
            }
            if facts.kind == Kind::Directory && !self.known.is_own(&self.start.join(&path)) {
                folders.push(path);
            }
        }
        if names.total > names.first.len() { Err(Enough::Limit("names")) } else { Ok(folders) }
    }

    /// Deals with what has a name that matches.
    fn meet(&mut self, folder: &Folder, below: &Path, kind: Kind) -> Result<(), Enough> {
        let shown = self.shown(below);
        if self.content.is_none() {
            return self.add(json!({"path": shown.to_string_lossy(), "type": kind.as_str()}));
        }
        let is_open = kind == Kind::File && !self.reach.is_closed(&self.start.join(below));
        let file = below.file_name().filter(|_| is_open);
        match file.map(|name| self.may_be_read(folder.file(name)?)) {
            Some(Ok(file)) => self.search_file(file, &shown),
            Some(Err(_)) => {
                self.unreadable += 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Gives back a file below the start that may be read.
    fn may_be_read(&self, file: File) -> io::Result<File> {
        match self.known.keeps_open(&file)? {
            Some(kept) => Err(io::Error::other(kept.to_string())),
            None => Ok(file),
        }
    }

    /// The path as the caller can use it in the next call.
    fn shown(&self, below: &Path) -> PathBuf {
        if self.asked == Path::new(".") { below.to_path_buf() } else { self.asked.join(below) }
    }

    fn search_file(&mut self, file: File, shown: &Path) -> Result<(), Enough> {
        let Some(content) = self.content else {
            return self.add(json!({"path": shown.to_string_lossy(), "type": Kind::File.as_str()}));
        };
        let mut reader = BufReader::with_capacity(BUFFER, file);
        match reader.fill_buf() {
            // A byte 0 makes a file one that is no text, as grep has it.
            Ok(head) if head.contains(&0) => return Ok(()),
            _ => {}
        }
        let (mut number, mut line) = (1, Vec::new());
        loop {
            line.clear();
            match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => return Ok(()),
                Ok(read) => self.bytes += read as u64,
                Err(_) => {
                    self.unreadable += 1;
                    return Ok(());
                }
            }
            let is_whole = line.last() == Some(&b'\n');
            if let Some(found) = content.find(line.strip_suffix(b"\n").unwrap_or(&line)) {
                let text = excerpt(&line, found.start());
                self.add(json!({"path": shown.to_string_lossy(), "line": number, "text": text}))?;
            }
            number += u64::from(is_whole);
            self.check()?;
        }
    }

    fn add(&mut self, found: Value) -> Result<(), Enough> {
        if self.matches.len() >= MAX_MATCHES {
            return Err(Enough::Limit("matches"));
        }
        self.matches.push(found);
        Ok(())
    }

    fn check(&self) -> Result<(), Enough> {
        if self.watch.is_stopped() {
            return Err(Enough::Stopped);
        }
        if self.watch.is_late() {
            return Err(Enough::Limit("time"));
        }
        if self.bytes > MAX_BYTES { Err(Enough::Limit("bytes")) } else { Ok(()) }
    }

    fn result(self, limit: Option<&str>) -> Value {
        let mut result = json!({
            "matches": self.matches,
            "truncated": limit.is_some(),
            "unreadable": self.unreadable,
        });
        if let Some(limit) = limit {
            result["limit"] = json!(limit);
        }
        result
    }
}

impl Pattern {
    fn matches(&self, below: &Path) -> bool {
        match below.file_name().filter(|_| !self.is_path) {
            Some(name) => self.glob.is_match(name),
            None => self.glob.is_match(below),
        }
    }
}

/// The part of a line around its match.
fn excerpt(line: &[u8], start: usize) -> String {
    let from = start.saturating_sub(SHOWN.0);
    let to = line.len().min(start + SHOWN.1);
    String::from_utf8_lossy(&line[from..to]).trim_end_matches(['\r', '\n']).to_owned()
}
