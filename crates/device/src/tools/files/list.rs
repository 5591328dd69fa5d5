//! `list_directory`: what is in a folder.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::folder::{Facts, Folder};
use super::{Reach, Watch, failed};

/// Most entries that are told; the first ones by name.
pub(super) const MAX_ENTRIES: usize = 1000;

/// Arguments of `list_directory`.
#[derive(Debug, Deserialize)]
pub(super) struct ListDirectory {
    #[serde(default, deserialize_with = "crate::tools::optional")]
    path: Option<String>,
}

/// The names in a folder that may be seen.
pub(super) struct Names {
    /// Sorted.
    pub(super) first: BTreeSet<OsString>,
    /// How many there are in all.
    pub(super) total: usize,
}

/// Lists a folder.
///
/// # Errors
/// When the path is refused or no folder, or cannot be read.
pub(super) fn list_directory(
    reach: &Reach,
    arguments: &ListDirectory,
    watch: &Watch,
) -> Result<Value, String> {
    let asked = arguments.path.as_deref().unwrap_or(".");
    let path = reach.resolve(asked)?;
    let list = || {
        let folder = Folder::open(&path)?;
        let names = names(&folder, &path, MAX_ENTRIES, reach, watch)?;
        Ok::<_, io::Error>((folder, names))
    };
    let (folder, names) = list().map_err(|error| failed("list", asked, &error))?;
    // What is gone meanwhile is left out.
    let told = names.first.iter().filter_map(|name| Some(entry(name, &folder.facts(name).ok()?)));
    Ok(json!({
        "entries": told.collect::<Vec<_>>(),
        "total": names.total,
        "truncated": names.total > names.first.len(),
    }))
}

/// Gives the first `max` names in a folder, which lies at `path`.
///
/// # Errors
/// When it cannot be read, or `watch` says so.
pub(super) fn names(
    folder: &Folder,
    path: &Path,
    max: usize,
    reach: &Reach,
    watch: &Watch,
) -> io::Result<Names> {
    let (mut first, mut total) = (BTreeSet::new(), 0);
    for name in folder.entries()? {
        watch.check()?;
        let name = name?;
        if !reach.bounds.holds(&path.join(&name)) {
            continue;
        }
        total += 1;
        first.insert(name);
        if first.len() > max {
            first.pop_last();
        }
    }
    Ok(Names { first, total })
}

/// A name that is no UTF-8 is shown as well as it can be.
fn entry(name: &OsString, facts: &Facts) -> Value {
    json!({
        "name": name.to_string_lossy(),
        "type": facts.kind.as_str(),
        "size": facts.size,
        "modified": facts.modified.map(aip::timestamp::format),
    })
}
