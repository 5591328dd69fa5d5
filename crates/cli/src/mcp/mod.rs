//! The files that list MCP servers: the common JSON, UFO's `mcp.yaml`, and our TOML.
//!
//! A server that cannot be used is left out with a message that says why; the others stay. No message
//! repeats a value that may be a secret.

mod common;
mod expand;
mod keys;
#[cfg(test)]
mod tests;
mod text;
mod transport;
mod ufo;

use std::fmt;
use std::path::{Path, PathBuf};

use device::tools::mcp::ServerSettings;
use serde_json::{Map, Value};

pub(crate) use self::common::redacted;
use self::expand::Place;
use self::text::Format;
use self::transport::MAX_NAME_BYTES;
use crate::output::safe_line;
use crate::state::expand_home;

/// Most servers of one device.
const MAX_SERVERS: usize = 64;

/// Most messages about the files; beyond them they are counted.
const MAX_PROBLEMS: usize = 100;

/// Something about a file that its owner should know, on one line: what is wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&safe_line(&self.0))
    }
}

/// Where servers are listed.
#[derive(Debug)]
pub(crate) enum Source {
    /// The tables `[mcp.NAME]` of the settings file.
    Settings {
        /// The settings file.
        path: PathBuf,
        /// What stands in it under `mcp`.
        servers: toml::Table,
    },
    /// A file of its own.
    File(PathBuf),
}

/// The servers that are listed, and what is wrong with the others.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// In the order in which they are listed, each namespace once.
    pub(crate) servers: Vec<ServerSettings>,
    pub(crate) problems: Vec<Problem>,
}

/// Reads all lists. Where two name the same server, the later one counts. `variable` tells the variables
/// of the environment.
pub(crate) fn read(
    sources: impl IntoIterator<Item = Source>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Listed {
    let mut all = All::default();
    for source in sources {
        all.add(read_source(source, variable));
    }
    all.finish()
}

fn read_source<'a>(source: Source, variable: &'a dyn Fn(&str) -> Option<String>) -> Reading<'a> {
    match source {
        Source::Settings { path, servers } => {
            let mut reading = Reading::new(&path, variable);
            if let Ok(servers) = serde_json::to_value(servers) {
                let top = Map::from_iter([("mcp".to_owned(), servers)]);
                common::read(&mut reading, top, &["mcp"]);
            }
            reading.warn_of_others(&path);
            reading
        }
        Source::File(path) => {
            let path = expand_home(&path);
            let mut reading = Reading::new(&path, variable);
            match text::read(&path) {
                Ok(text) => reading.read(Format::of(&path, &text), &text),
                Err(why) => reading.left_out(&why),
            }
            reading.warn_of_others(&path);
            reading
        }
    }
}

/// What is said of one server.
#[derive(Debug)]
enum Claim {
    Server(ServerSettings),
    /// `"disabled": true`.
    Disabled,
    /// It is listed, but cannot be used.
    Broken,
}

/// One file, as far as it has been read.
struct Reading<'a> {
    file: String,
    place: Place<'a>,
    claims: Vec<(String, Claim)>,
    problems: Vec<Problem>,
    /// Whether a value that may be secret stands in the file itself.
    has_secret: bool,
}

impl<'a> Reading<'a> {
    fn new(path: &Path, variable: &'a dyn Fn(&str) -> Option<String>) -> Self {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let base = absolute.parent().map(Path::to_owned).unwrap_or_default();
        Self {
            file: path.display().to_string(),
            place: Place { base, variable },
            claims: Vec::new(),
            problems: Vec::new(),
            has_secret: false,
        }
    }

    fn read(&mut self, format: Format, text: &str) {
        match (format.parse(text), format) {
            (Err(why), _) => self.left_out(&why),
            (Ok(Value::Object(top)), Format::Toml) => common::read(self, top, &["mcp"]),
            (Ok(Value::Object(top)), Format::Yaml) if !top.contains_key("mcpServers") => {
                self.place.base = std::env::current_dir().unwrap_or_default();
                ufo::read(self, top);
            }
            (Ok(Value::Object(top)), _) => common::read(self, top, &["mcpServers", "servers"]),
            (Ok(_), _) => self.left_out("it lists no servers"),
        }
    }

    /// Notes what a server is, or all that is wrong with it.
    fn claim(&mut self, name: &str, outcome: Result<Claim, Vec<String>>) {
        let name = if name.len() > MAX_NAME_BYTES { "…" } else { name };
        let claim = outcome.unwrap_or_else(|faults| {
            for fault in faults {
                let file = &self.file;
                self.problems
                    .push(Problem(format!("{file}: server '{name}' is left out: {fault}")));
            }
            Claim::Broken
        });
        self.claims.push((name.to_owned(), claim));
    }

    fn note(&mut self, what: &str) {
        self.problems.push(Problem(format!("{}: {what}", self.file)));
    }

    fn left_out(&mut self, why: &str) {
        self.problems.push(Problem(format!("{} is left out: {why}", self.file)));
    }

    /// Whoever can change the file decides what this device starts, and whoever can read it has its
    /// secrets. A group may, where root says so.
    fn warn_of_others(&mut self, path: &Path) {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let Ok(metadata) = std::fs::metadata(path) else { return };
            let strangers = if metadata.uid() == 0 { 0o007 } else { 0o077 };
            let mode = metadata.mode() & 0o777;
            let why = match mode & strangers {
                _ if self.claims.is_empty() || !metadata.is_file() => return,
                open if open & 0o022 != 0 => "change this file, and so what this device starts",
                open if open & 0o044 != 0 && self.has_secret => "read the secrets in this file",
                _ => return,
            };
            let path = &self.file;
            self.note(&format!(
                "other users of this machine can {why} (mode {mode:o}); close it: chmod 600 {path}"
            ));
        }
        #[cfg(not(unix))]
        let _no_modes_here = path;
    }
}

/// What all files say together.
#[derive(Default)]
struct All {
    /// Each name with the file that has it.
    claims: Vec<(String, String, Claim)>,
    problems: Vec<Problem>,
}

impl All {
    fn add(&mut self, reading: Reading<'_>) {
        self.problems.extend(reading.problems);
        for (name, claim) in reading.claims {
            let file = reading.file.clone();
            match self.claims.iter_mut().find(|(known, ..)| *known == name) {
                None => self.claims.push((name, file, claim)),
                Some(earlier) => {
                    let replaced = std::mem::replace(earlier, (name, file, claim));
                    self.problems.push(replacing(earlier, &replaced));
                }
            }
        }
    }

    fn finish(mut self) -> Listed {
        let mut servers = Vec::new();
        for (name, file, claim) in self.claims {
            match claim {
                Claim::Server(_) if servers.len() == MAX_SERVERS => {
                    self.problems.push(Problem(format!(
                        "{file}: server '{name}' is left out: a device has at most {MAX_SERVERS}"
                    )));
                }
                Claim::Server(server) => servers.push(server),
                Claim::Disabled | Claim::Broken => {}
            }
        }
        let more = self.problems.len().saturating_sub(MAX_PROBLEMS);
        self.problems.truncate(MAX_PROBLEMS);
        if more > 0 {
            self.problems.push(Problem(format!("and {more} more problems with MCP servers")));
        }
        Listed { servers, problems: self.problems }
    }
}

/// A server that is left out does not bring back an earlier one of its name: the later one is what its
/// owner meant, and may have been meant to be less trusted.
fn replacing(later: &(String, String, Claim), earlier: &(String, String, Claim)) -> Problem {
    let ((name, file, claim), (_, before, _)) = (later, earlier);
    Problem(match claim {
        Claim::Server(_) => format!("{file}: server '{name}' replaces the one of {before}"),
        Claim::Disabled => format!("{file}: server '{name}' is disabled, also the one of {before}"),
        Claim::Broken => {
            format!("{file}: server '{name}' is left out, and so is the one of {before}")
        }
    })
}
