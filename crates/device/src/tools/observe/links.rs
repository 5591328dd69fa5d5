//! Symbolic links that lead to hidden names: where dot files may not be seen, neither may such a name be
//! seen behind a link.
//!
//! It must not know which command shows where links lead.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::bounds::Bounds;
use super::refusal::Refusal;

/// Patterns of `find` on what a link holds, of which each fits a part with a dot in front. `.` and `..`
/// are none.
pub(super) const HIDDEN: [&str; 4] = [".[!./]*", "*/.[!./]*", "..[!/]*", "*/..[!/]*"];

/// Most entries that are looked at for links.
const MAX_ENTRIES: usize = 100_000;

/// Most names that are left out of one listing.
const MAX_NAMES: usize = 32;

/// Patterns of `ls` that fit the links in `folders` which lead to hidden names, with `deep` also of those
/// in all folders below.
///
/// # Errors
/// When there are too many to look at, or to leave out.
pub(super) fn to_leave_out(
    command: &'static str,
    folders: &[PathBuf],
    deep: bool,
    bounds: &Bounds,
) -> Result<Vec<String>, Refusal> {
    let (mut waiting, mut seen) = (folders.to_vec(), 0);
    let mut patterns: Vec<String> = Vec::new();
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            seen += 1;
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_symlink() && fs::read_link(&path).is_ok_and(|to| names_hidden(&to)) {
                let pattern = pattern(&entry.file_name().to_string_lossy());
                if !patterns.contains(&pattern) {
                    patterns.push(pattern);
                }
            } else if deep && kind.is_dir() && bounds.holds(&path) {
                waiting.push(path);
            }
            if seen > MAX_ENTRIES || patterns.len() > MAX_NAMES {
                return Err(Refusal::HiddenBehindLinks { command });
            }
        }
    }
    Ok(patterns)
}

/// Whether a part of a path has a dot in front.
fn names_hidden(path: &Path) -> bool {
    path.components().any(|part| {
        matches!(part, std::path::Component::Normal(name) if name.as_encoded_bytes().starts_with(b"."))
    })
}

/// A pattern that fits this name. What is no text in it fits more.
fn pattern(name: &str) -> String {
    let mut pattern = String::new();
    for letter in name.chars() {
        match letter {
            char::REPLACEMENT_CHARACTER => pattern.push('*'),
            '*' | '?' | '[' | ']' | '\\' => pattern.extend(['\\', letter]),
            letter => pattern.push(letter),
        }
    }
    pattern
}

/// Whether a format of `find -printf` shows where links lead.
pub(super) fn shows_links(format: &str) -> bool {
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => {
                letters.next();
            }
            '%' => {
                let is_field =
                    |letter: &char| !(letter.is_ascii_digit() || "-+ #.".contains(*letter));
                if letters.find(is_field) == Some('l') {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}
