//! What a call does to which files, as far as that can be told before it runs: for rules that are about files.
//!
//! It must not know the rules.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::observe::Program;
use super::shell::home;
use super::{Call, Tool};
use crate::policy::{Effect, Touch};
use aip::ToolType;

/// Most words of a shell's command line that are looked at.
const MAX_WORDS: usize = 256;

/// The arguments in which tools of others are told of files.
const FILE_ARGUMENTS: [&str; 13] = [
    "path",
    "paths",
    "file",
    "files",
    "filename",
    "file_name",
    "file_path",
    "filepath",
    "uri",
    "source",
    "destination",
    "directory",
    "folder",
];

/// Those of a command that only observes: it runs a program, and reads what it names.
pub(super) fn of_program(program: &Program) -> Vec<Touch> {
    let path = program.path.to_string_lossy().into_owned();
    let runs = Touch::on(Effect::Execute, path.clone(), path);
    let reads = program.named.iter().map(|named| {
        let path = named.path.to_string_lossy().into_owned();
        Touch::on(Effect::Read, path, named.asked.clone())
    });
    [runs].into_iter().chain(reads).collect()
}

/// Those of a shell's command line: it may do anything, and each of its words may name a file. What a shell makes
/// of its words nobody knows before.
pub(super) fn of_shell(line: &str, cwd: &Path) -> Vec<Touch> {
    let is_between = |letter: char| letter.is_whitespace() || ";|&<>()`\"'=\\".contains(letter);
    let words = line.split(is_between).filter(|word| !word.is_empty() && !word.starts_with('-'));
    let named: Vec<_> = words.take(MAX_WORDS).map(|word| names(word, cwd)).collect();
    let touched = |effect| {
        let named = named.iter().map(move |names| Touch::perhaps_on(effect, names.clone()));
        [Touch::somewhere(effect)].into_iter().chain(named)
    };
    Effect::ALL.into_iter().flat_map(touched).collect()
}

/// Those of a tool of somebody else's: one that observes may read, one that acts may do anything, and both to the
/// files that their arguments name.
pub(super) fn of_foreign(tool: &Tool, call: &Call<'_>) -> Vec<Touch> {
    let effects: &[Effect] = match tool.believed {
        ToolType::DataCollection => &[Effect::Read],
        ToolType::Action => &Effect::ALL,
    };
    let arguments: Map<String, Value> = call.arguments().unwrap_or_default();
    let named = FILE_ARGUMENTS.iter().filter_map(|name| arguments.get(*name)).flat_map(texts);
    let named: Vec<_> = named.take(MAX_WORDS).map(|text| names(text, Path::new("/"))).collect();
    let touched = |effect: &Effect| {
        let effect = *effect;
        let named = named.iter().map(move |names| Touch::perhaps_on(effect, names.clone()));
        [Touch::somewhere(effect)].into_iter().chain(named)
    };
    effects.iter().flat_map(touched).collect()
}

/// A text, or the texts in a list.
fn texts(value: &Value) -> Box<dyn Iterator<Item = &str> + '_> {
    match value {
        Value::String(text) => Box::new([text.as_str()].into_iter()),
        Value::Array(items) => Box::new(items.iter().filter_map(Value::as_str)),
        _ => Box::new(std::iter::empty()),
    }
}

/// What a word may name: the file that it leads to from a folder, if there is one, and itself.
fn names(word: &str, cwd: &Path) -> Vec<String> {
    let path = word.strip_prefix("file://").unwrap_or(word);
    let path = match path.strip_prefix("~/").zip(home()) {
        Some((below, home)) => home.join(below),
        None => PathBuf::from(path),
    };
    let path = cwd.join(path);
    let path = path.canonicalize().unwrap_or(path);
    vec![path.to_string_lossy().into_owned(), word.to_owned()]
}
