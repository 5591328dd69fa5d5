//! `Files`: reads, writes, lists and searches files below the roots that the owner names.
//!
//! A path that a caller gives is resolved first, links and `..` included, and checked against the roots;
//! then it is opened part by part without following any link, so that nobody can lead it astray in between.

mod folder;
mod list;
mod read;
mod search;
#[cfg(test)]
mod tests;
mod write;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aip::ToolType;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::bounds::{Bounds, Closed};
use super::catalog::Origin;
use super::quote::quote;
use super::work::{Watch, Workers};
use super::{Call, Tool, ToolSettings};
use crate::policy::{Decision, Effect, MeantFile, Policy, Subject, Touch};

/// The namespace of these tools.
pub(super) const NAMESPACE: &str = "Files";

/// Longest time for one call; `max_command_time` where that is less. Only searching, and counting the
/// lines of a very large file, ever come near it.
const MAX_TIME: Duration = Duration::from_secs(30);

/// The files below the roots.
pub(super) struct Files {
    reach: Arc<Reach>,
    workers: Workers,
    max_time: Duration,
}

/// What these tools may touch, and how much of it at once.
struct Reach {
    bounds: Bounds,
    /// Most bytes that one call reads out of a file.
    max_bytes: usize,
    /// Which files a search leaves out.
    policy: Policy,
}

impl Files {
    /// The files below the roots of `settings`; without any, those below `home` but for dot files.
    pub(super) fn new(settings: &ToolSettings, home: Option<PathBuf>) -> Self {
        let bounds = Bounds::new(&settings.roots, home).keeping(settings.private());
        let (max_bytes, policy) = (settings.max_output_bytes, settings.policy.clone());
        Self {
            reach: Arc::new(Reach { bounds, max_bytes, policy }),
            workers: Workers::new(),
            max_time: settings.max_command_time.map_or(MAX_TIME, |most| most.min(MAX_TIME)),
        }
    }

    /// The tools; none, where there is no root.
    pub(super) fn tools(&self) -> Vec<Tool> {
        let Some(first) = self.reach.bounds.roots().first() else { return Vec::new() };
        let paths = format!(
            "Paths are absolute, or relative to {}. Open is {}.",
            quote(&first.to_string_lossy()),
            self.reach.bounds.describe()
        );
        vec![read_file(&paths), write_file(&paths), list_directory(&paths), search_files(&paths)]
    }

    /// Runs one of them.
    ///
    /// # Errors
    /// What is wrong, naming the path as the caller gave it.
    pub(super) async fn call(&self, tool_name: &str, call: &Call<'_>) -> Result<Value, String> {
        match tool_name {
            "read_file" => self.run(call, read::read_file).await,
            "write_file" => self.run(call, write::write_file).await,
            "list_directory" => self.run(call, list::list_directory).await,
            "search_files" => self.run(call, search::search_files).await,
            _ => Err(format!("Unknown tool '{tool_name}'")),
        }
    }

    /// The file that the path of a call means, for the policy; `None` without a path.
    ///
    /// # Errors
    /// When it is outside the roots.
    pub(super) async fn meant(&self, call: &Call<'_>) -> Result<Option<MeantFile>, String> {
        let Ok(Paths { path: Some(path) }) = call.arguments() else { return Ok(None) };
        let reach = self.reach.clone();
        let meant = self.workers.run(call.stop, move || reach.meant(&path)).await?;
        Ok(Some(meant))
    }

    /// What a call of one of them does to the file that its path means.
    ///
    /// # Errors
    /// When that is outside the roots.
    pub(super) async fn touched(&self, tool_name: &str, call: &Call<'_>) -> Result<Touch, String> {
        let effect = if tool_name == "write_file" { Effect::Write } else { Effect::Read };
        let asked = call.arguments().ok().and_then(|paths: Paths| paths.path);
        let asked = asked.unwrap_or_else(|| ".".to_owned());
        let reach = self.reach.clone();
        let meant = {
            let asked = asked.clone();
            self.workers.run(call.stop, move || reach.meant(&asked)).await?
        };
        Ok(Touch::on(effect, meant.path, asked))
    }

    async fn run<A: DeserializeOwned + Send + 'static>(
        &self,
        call: &Call<'_>,
        tool: fn(&Reach, &A, &Watch) -> Result<Value, String>,
    ) -> Result<Value, String> {
        let arguments: A = call.arguments()?;
        let reach = self.reach.clone();
        let watch = Watch::new(call.stop.clone(), self.max_time);
        self.workers.run(call.stop, move || tool(&reach, &arguments, &watch)).await
    }
}

/// What all of them take.
#[derive(Deserialize)]
struct Paths {
    #[serde(default, deserialize_with = "crate::tools::optional")]
    path: Option<String>,
}

impl Reach {
    fn meant(&self, asked: &str) -> Result<MeantFile, String> {
        let file = self.resolve(asked)?;
        let is_plain = self.bounds.roots().iter().take(1).any(|root| root.join(asked) == file);
        Ok(MeantFile { path: file.to_string_lossy().into_owned(), is_plain })
    }

    /// Resolves a path as a caller gives it. Whatever comes out is absolute and has no link in it.
    fn resolve(&self, asked: &str) -> Result<PathBuf, String> {
        let root = self.bounds.roots().first().ok_or("No folder is open on this device")?;
        let resolved = self.bounds.resolve(&root.join(asked), root);
        resolved.map_err(|closed| match closed {
            Closed::Outside(_) => format!("Blocked: {}", self.bounds.outside(asked.as_ref())),
            Closed::Kept { kept, .. } => {
                format!("Blocked: {}", Closed::Kept { path: asked.to_owned(), kept })
            }
        })
    }

    /// Opens a file by its resolved path to read it. It may be another one than when the path was resolved.
    fn open(&self, path: &Path) -> io::Result<File> {
        self.opened(folder::open_file(path)?)
    }

    /// Gives back an open file that may be read.
    fn opened(&self, file: File) -> io::Result<File> {
        match self.bounds.private().keeps_open(&file)? {
            Some(kept) => Err(io::Error::other(format!("it is {kept}"))),
            None => Ok(file),
        }
    }

    /// Whether a search leaves a file out, since a rule is about reading it.
    fn is_closed(&self, path: &Path) -> bool {
        let subject = Subject {
            namespace: NAMESPACE,
            tool_name: "search_files",
            tool_type: ToolType::DataCollection,
            parameters: None,
            file: None,
            touched: &[],
            usual: Decision::Allow,
        };
        self.policy.closes(Effect::Read, &path.to_string_lossy(), &subject)
    }
}

/// The sentence about what went wrong with a path that a caller gave.
fn failed(doing: &str, asked: &str, error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    let reason = match error.kind() {
        ErrorKind::NotFound => "it does not exist",
        ErrorKind::PermissionDenied => "the user that this device runs as may not do that",
        ErrorKind::IsADirectory => "it is a folder; list_directory shows what is in it",
        ErrorKind::NotADirectory => "it is no folder, or a part of its path is none",
        ErrorKind::StorageFull => "the disk is full",
        ErrorKind::QuotaExceeded => "the disk quota is used up",
        ErrorKind::ReadOnlyFilesystem => "its file system can only be read",
        ErrorKind::InvalidFilename => "its name is too long",
        _ => return format!("Cannot {doing} {}: {error}", quote(asked)),
    };
    format!("Cannot {doing} {}: {reason}", quote(asked))
}

fn read_file(paths: &str) -> Tool {
    let about = "Reads a file: all of it, a range of bytes (offset, length), or a range of lines (from_line, \
        line_count). Returns content with its encoding: utf-8, or base64 where the bytes are no UTF-8; size, \
        the size of the whole file in bytes; and truncated: whether the file goes on, from next_offset.";
    let path = json!({"type": "string", "description": "The file"});
    observing("read_file", "Read a file", &format!("{about} {paths}")).taking(
        json!({"type": "object", "required": ["path"], "properties": {
            "path": path,
            "offset": {"type": "integer", "minimum": 0, "description": "The first byte, counted from 0"},
            "length": {"type": "integer", "minimum": 0, "description": "How many bytes"},
            "from_line": {"type": "integer", "minimum": 1, "description": "The first line, counted from 1"},
            "line_count": {"type": "integer", "minimum": 1, "description": "How many lines"},
        }}),
    )
}

fn write_file(paths: &str) -> Tool {
    let about = "Writes a file as a whole. It is made, with missing folders, or replaced at once, so that \
        nobody ever sees half of it; it keeps the permissions of the one it replaces.";
    Tool::built_in(Origin::Files, NAMESPACE, "write_file", ToolType::Action)
        .titled("Write a file", &format!("{about} {paths}"))
        .taking(json!({"type": "object", "required": ["path", "content"], "properties": {
            "path": {"type": "string", "description": "The file"},
            "content": {"type": "string", "description": "What it will hold"},
            "encoding": {"type": "string", "enum": ["utf-8", "base64"], "default": "utf-8",
                "description": "How content is written: as it is, or as base64 of the bytes"},
        }}))
        .asking()
}

fn list_directory(paths: &str) -> Tool {
    let about = "Lists a folder: name, type (file, directory, symlink or other), size in bytes and time of \
        the last change of each entry, sorted by name.";
    observing("list_directory", "List a folder", &format!("{about} {paths}")).taking(
        json!({"type": "object", "properties": {
            "path": {"type": "string", "description": "The folder", "default": "."},
        }}),
    )
}

fn search_files(paths: &str) -> Tool {
    let about = "Searches a folder and all folders in it, without following symbolic links: for files and \
        folders by name (pattern), for lines of text files (content), or for lines of those files whose name \
        matches (both).";
    observing("search_files", "Search files", &format!("{about} {paths}")).taking(
        json!({"type": "object", "properties": {
            "path": {"type": "string", "description": "The folder to search, or one file", "default": "."},
            "pattern": {"type": "string", "description":
                "Glob such as *.rs or *.{c,h} for the name, or with a / in it such as src/**/*.rs for the \
                 path below the folder"},
            "content": {"type": "string", "description":
                "Regular expression (Rust's syntax) that a line has to match; (?i) in front ignores case"},
        }}),
    )
}

fn observing(name: &str, title: &str, description: &str) -> Tool {
    Tool::built_in(Origin::Files, NAMESPACE, name, ToolType::DataCollection)
        .titled(title, description)
}
