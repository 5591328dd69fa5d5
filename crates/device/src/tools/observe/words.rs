//! Splits the text of a command line into words and refuses what only a shell could act on.
//!
//! It must not know any command. Refusing shell syntax is for clarity, not for safety: nothing is
//! ever expanded, so what is overlooked here stays a literal word that is checked as any other.

use super::refusal::Refusal;

/// The most bytes a command line may have.
pub(super) const MAX_BYTES: usize = 8 * 1024;

/// The most words a command line may have, the command's name included.
pub(super) const MAX_WORDS: usize = 64;

const ONE_COMMAND: &str = "give a single command, without pipes, lists, redirections or groups \
     (quote the character if it is meant literally, as in find \\( … \\))";
const ONE_LINE: &str = "give a single command on one line";
const NO_VARIABLES: &str = "variables and substitutions do not expand (put it in single quotes \
     if it is meant literally)";
const NO_PATTERNS: &str = "patterns do not expand; use find -name '…' to look for files, or \
     quote the character if it is meant literally";
const NO_HOME: &str = "`~` does not expand; give the whole path, or one relative to the folder";
const NO_COMMENTS: &str = "comments are not understood; leave it out or quote it";

/// Splits `line` into words as a POSIX shell would, without expanding anything.
pub(super) fn split(line: &str) -> Result<Vec<String>, Refusal> {
    if line.len() > MAX_BYTES {
        return Err(Refusal::TooLong);
    }
    if line.contains('\0') {
        return Err(Refusal::Nul);
    }
    let line = line.trim_matches(['\n', '\r']);
    refuse_shell_syntax(line)?;
    let words = shlex::split(line).ok_or(Refusal::Unbalanced)?;
    if words.len() > MAX_WORDS {
        return Err(Refusal::TooManyWords);
    }
    Ok(words)
}

/// Where in a word the next character stands, as far as quoting goes.
#[derive(Clone, Copy, PartialEq)]
enum Quoting {
    WordStart,
    Bare,
    Single,
    Double,
}

fn refuse_shell_syntax(line: &str) -> Result<(), Refusal> {
    let mut quoting = Quoting::WordStart;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if let Some(advice) = advice(character, quoting) {
            let what = character.to_string();
            return Err(Refusal::ShellSyntax { what, advice });
        }
        if character == '\\' && quoting != Quoting::Single {
            characters.next();
        }
        quoting = after(character, quoting);
    }
    Ok(())
}

/// Tells what to do instead if a shell would act on `character`.
fn advice(character: char, quoting: Quoting) -> Option<&'static str> {
    match (quoting, character) {
        (Quoting::Single, _) => None,
        (_, '$' | '`') => Some(NO_VARIABLES),
        (Quoting::Double, _) => None,
        (_, '|' | '&' | ';' | '<' | '>' | '(' | ')') => Some(ONE_COMMAND),
        (_, '\n' | '\r') => Some(ONE_LINE),
        (_, '*' | '?' | '[' | ']' | '{' | '}') => Some(NO_PATTERNS),
        (Quoting::WordStart, '~') => Some(NO_HOME),
        (Quoting::WordStart, '#') => Some(NO_COMMENTS),
        _ => None,
    }
}

fn after(character: char, quoting: Quoting) -> Quoting {
    match (quoting, character) {
        (Quoting::Single, '\'') | (Quoting::Double, '"') => Quoting::Bare,
        (Quoting::Single | Quoting::Double, _) => quoting,
        (_, '\'') => Quoting::Single,
        (_, '"') => Quoting::Double,
        (_, ' ' | '\t') => Quoting::WordStart,
        _ => Quoting::Bare,
    }
}
