//! The reasons why a command line is refused, in words for the agent and the person.
//!
//! It must not know how the reasons are found. Every text is one line, with whatever came from
//! outside escaped and shortened, so that it can be shown and logged anywhere.

use super::super::bounds::{Closed, Outside};
use super::super::quote::quote;
use super::Observe;
use super::words::{MAX_BYTES, MAX_WORDS};

const OTHERWISE: &str = "the owner can start the device with `--exec shell` to allow any command";

/// Why a command line or a folder is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each text says what it is")]
pub enum Refusal {
    #[error("the command line is empty; allowed commands: {}", names())]
    Empty,
    #[error("the command line is longer than {MAX_BYTES} bytes, the most that is allowed")]
    TooLong,
    #[error("the command line has more than {MAX_WORDS} words, the most that is allowed")]
    TooManyWords,
    #[error("the command line holds a NUL character, which no argument can hold; leave it out")]
    Nul,
    #[error("a quote or a backslash in the command line is left open; close it")]
    Unbalanced,
    #[error("{} is shell syntax, but no shell is involved here: {advice}; {OTHERWISE}", quote(.what))]
    ShellSyntax { what: String, advice: &'static str },
    #[error("{} is a path, but commands are given by their bare name, such as `ls`; allowed: {}", quote(.0), names())]
    NotBare(String),
    #[error("{} is not a command that only observes; allowed: {}; {OTHERWISE}", quote(.0), names())]
    UnknownCommand(String),
    #[error("`{0}` is allowed, but is not installed in a system folder of this device")]
    NotInstalled(&'static str),
    #[error(
        "{} is not allowed for `{command}`: only options that neither write, run programs, wait, \
         follow links nor read other files are, spelt in full: {allowed}; {OTHERWISE}",
        quote(.option)
    )]
    NotAllowed { command: &'static str, option: String, allowed: String },
    #[error("{} of `{command}` needs a value", quote(.option))]
    NoValue { command: &'static str, option: String },
    #[error("{} of `{command}` takes no value", quote(.option))]
    StrayValue { command: &'static str, option: String },
    #[error("{} is not allowed as {} of `{command}`: it takes {wants}", quote(.value), quote(.option))]
    BadValue { command: &'static str, option: String, value: String, wants: String },
    #[error("{} is not allowed after `{command}`: it takes {wants}", quote(.word))]
    BadOperand { command: &'static str, word: String, wants: String },
    #[error("`{command}` needs {wants}")]
    TooFewOperands { command: &'static str, wants: String },
    #[error("there is no input for `{command}` to read: name the files to look at")]
    NoInput { command: &'static str },
    #[error("{} is not among what may be read on this device: {allowed}; {OTHERWISE}", quote(.path))]
    Outside { path: String, allowed: String },
    #[error("{0}")]
    Kept(String),
    #[error(
        "too many links there lead to hidden names, which `{command}` would show; leave out the \
         option that shows where links lead, or name a folder further down"
    )]
    HiddenBehindLinks { command: &'static str },
    #[error("{} is a folder; `{command}` reads files{}", quote(.path), recursion(.command))]
    IsFolder { command: &'static str, path: String },
    #[error("{} is neither a file nor a folder, so that `{command}` could wait for ever", quote(.path))]
    IsSpecial { command: &'static str, path: String },
    #[error("`{command}` would walk through the whole system from `/`; name a folder further down")]
    WholeSystem { command: &'static str },
    #[error("{} is not a folder that exists", quote(.0))]
    NoFolder(String),
    #[error("the parentheses of the `find` expression do not match")]
    Parentheses,
}

impl From<Outside> for Refusal {
    fn from(Outside { path, allowed }: Outside) -> Self {
        Self::Outside { path, allowed }
    }
}

impl From<Closed> for Refusal {
    fn from(closed: Closed) -> Self {
        match closed {
            Closed::Outside(outside) => outside.into(),
            kept @ Closed::Kept { .. } => Self::Kept(kept.to_string()),
        }
    }
}

fn names() -> String {
    Observe::commands().collect::<Vec<_>>().join(" ")
}

fn recursion(command: &str) -> &'static str {
    if command == "grep" { " unless it is given -r" } else { "" }
}
