//! Decides which command lines merely observe, so that a device can run them without a shell.
//!
//! It turns the text of a command line into a program with its arguments, or into a refusal.
//! It is a security boundary: whatever is not known to be harmless is refused. What gets through
//! must not write, run another program, wait for ever, or read a file outside the roots.
//!
//! It must not know how programs are run, who asks, or how answers travel. It relies on its
//! caller for three things:
//! - The program gets a scrubbed environment (`LC_ALL=C.UTF-8` or `C`, no `POSIXLY_CORRECT`, `TZ`,
//!   `PS_*`, `LS_*` or `LD_*`), a standard input that is empty or its requester's, and limits on time, memory and output.
//! - The program runs in the folder that `check` was given.
//! - A small race remains: paths are resolved here and opened later, so someone who can already
//!   change folders below a root could swap one for a symbolic link in between. None of the
//!   allowed commands can do that.
//!
//! The tables hold for GNU coreutils, findutils and grep, and procps-ng, as on common Linux
//! systems. The options that are added to hide dot files make other implementations fail instead
//! of reveal.

mod arguments;
mod commands;
mod expression;
mod links;
mod refusal;
#[cfg(test)]
mod tests;
mod values;
mod words;

use std::path::{Path, PathBuf};

use super::bounds::Bounds;
use super::private::Private;
use commands::{COMMANDS, Command};
pub use refusal::Refusal;
use values::Place;

/// The folders in which programs are looked for; `$PATH` is never asked.
const PROGRAM_FOLDERS: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// Decides which command lines only observe.
#[derive(Debug, Clone)]
pub struct Observe {
    bounds: Bounds,
}

/// A program that may be run, with the arguments it was checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The absolute path of the program, such as `/usr/bin/uname`.
    pub path: PathBuf,
    /// The arguments after the program's name; paths among them are absolute and resolved.
    pub args: Vec<String>,
    /// The paths among them, as they were asked for and as they resolve.
    pub named: Vec<Named>,
    /// Whether it reads all files below those of them that are folders.
    pub reads_below: bool,
}

/// A path that a command line names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// As it was asked for.
    pub asked: String,
    /// Absolute, and without links, `.` or `..`.
    pub path: PathBuf,
}

impl Observe {
    /// Allows to read what lies below `roots`, dot files included. When there are none, `home` is
    /// the only root and everything below it whose path has a part with a dot in front is left out.
    pub fn new(roots: &[PathBuf], home: Option<PathBuf>) -> Self {
        Self { bounds: Bounds::new(roots, home).with_facts() }
    }

    /// The same without what is private.
    pub(super) fn keeping(self, private: Private) -> Self {
        Self { bounds: self.bounds.keeping(private) }
    }

    /// What may be read.
    pub(super) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Splits `command` into words as a POSIX shell would, but expands nothing, and checks them.
    /// Relative paths start from `cwd`, which `check_cwd` or `default_cwd` gave. `has_input` says whether the caller
    /// sends standard input: a command that names no file reads that then.
    pub fn check(&self, command: &str, cwd: &Path, has_input: bool) -> Result<Program, Refusal> {
        let words = words::split(command)?;
        let (name, rest) = words.split_first().ok_or(Refusal::Empty)?;
        let command = known(name)?;
        let place = Place::new(&self.bounds, cwd, has_input);
        let args = arguments::checked(command, rest, &place)?;
        let path = installed(command.name)?;
        let (named, reads_below) = place.taken();
        Ok(Program { path, args, named, reads_below })
    }

    /// Resolves a folder to run in; a relative one starts from `default_cwd`.
    pub fn check_cwd(&self, cwd: &Path) -> Result<PathBuf, Refusal> {
        let asked = cwd.to_string_lossy();
        let folder = self.bounds.resolve(cwd, &self.default_cwd())?;
        if folder.is_dir() { Ok(folder) } else { Err(Refusal::NoFolder(asked.into_owned())) }
    }

    /// Gives the folder commands run in when none is asked for: the first root that exists, else
    /// `/`, in which no file may be read by that alone.
    pub fn default_cwd(&self) -> PathBuf {
        let root = self.bounds.roots().iter().find(|root| root.is_dir());
        root.cloned().unwrap_or_else(|| PathBuf::from("/"))
    }

    /// Names the commands that are allowed, for help and errors.
    pub fn commands() -> impl Iterator<Item = &'static str> {
        COMMANDS.iter().map(|command| command.name)
    }
}

fn known(name: &str) -> Result<&'static Command, Refusal> {
    if name.contains('/') {
        return Err(Refusal::NotBare(name.to_owned()));
    }
    let command = COMMANDS.iter().find(|command| command.name == name);
    command.ok_or_else(|| Refusal::UnknownCommand(name.to_owned()))
}

fn installed(name: &'static str) -> Result<PathBuf, Refusal> {
    let mut places = PROGRAM_FOLDERS.iter().map(|folder| Path::new(folder).join(name));
    places.find(|path| path.is_file()).ok_or(Refusal::NotInstalled(name))
}
