//! When each key was last used: a file beside the keys, which the server writes and `key list` reads. It may be lost.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::state::replace_private_note;

/// The name of the file in the state folder.
const NAME: &str = "key-uses.json";

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// The most keys whose uses are kept.
const MAX_KEYS: usize = 65_536;

/// The file.
pub(crate) struct KeyUses(PathBuf);

impl KeyUses {
    pub(crate) fn at(folder: &Path) -> Self {
        Self(folder.join(NAME))
    }

    /// When the keys were last used, by their ids; nothing where that is not known.
    pub(crate) fn read(&self) -> HashMap<String, Timestamp> {
        let is_readable = fs::metadata(&self.0).is_ok_and(|found| found.len() <= MAX_BYTES);
        let text = is_readable.then(|| fs::read(&self.0).ok()).flatten();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Adds newer uses.
    pub(crate) fn note(&self, newer: HashMap<String, Timestamp>) {
        let mut uses = self.read();
        uses.extend(newer);
        if uses.len() > MAX_KEYS {
            let mut all: Vec<_> = uses.values().copied().collect();
            all.sort_unstable();
            let oldest = all[all.len() - MAX_KEYS];
            uses.retain(|_, last| *last >= oldest);
        }
        let written = serde_json::to_string(&uses)
            .map_err(std::io::Error::from)
            .and_then(|text| replace_private_note(&self.0, &text));
        if let Err(error) = written {
            tracing::debug!(%error, "when keys were used could not be written");
        }
    }
}
