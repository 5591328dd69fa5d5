//! Checks paths with an expression of tests and actions, as `find` takes them.
//!
//! It must not know which tests there are. Where dot files are hidden it encloses the expression
//! in one of its own, so that the asked one is never tried on them, whatever it says.

use super::arguments::{entry, not_allowed};
use super::commands::{Accept, Command, Takes, includes};
use super::links;
use super::refusal::Refusal;
use super::values::{Place, checked_value};

/// Words that hold for the whole walk wherever they stand, and belong in front.
const GLOBAL: &str = "-maxdepth -mindepth -mount -xdev";

/// Words that do something with what is found, so that it is not printed by default.
const ACTIONS: &str = "-print -print0 -printf -ls -quit";

/// Checks `words` and gives the arguments to run the command with.
pub(super) fn checked(
    command: &'static Command,
    words: &[String],
    place: &Place<'_>,
) -> Result<Vec<String>, Refusal> {
    let first = words.iter().position(|word| begins_expression(word)).unwrap_or(words.len());
    let (starts, expression) = words.split_at(first);
    let here = [".".to_owned()];
    let starts = if starts.is_empty() { here.as_slice() } else { starts };
    let starts = starts.iter().map(|start| entry(command, start, Accept::Entries, true, place));
    let starts = starts.collect::<Result<Vec<_>, _>>()?;
    let expression = Expression::parse(command, expression, place)?;
    let tests = if place.bounds.hides_dots() { expression.hiding_dots() } else { expression.tests };
    Ok([starts, expression.global, tests].concat())
}

/// Tells whether a word ends the paths. A path that looks like it can be given with `./` in front.
fn begins_expression(word: &str) -> bool {
    (word.starts_with('-') && word != "-") || ["(", ")", "!", ","].contains(&word)
}

struct Expression {
    global: Vec<String>,
    tests: Vec<String>,
    acts: bool,
    /// Whether it shows where symbolic links lead.
    shows_links: bool,
}

impl Expression {
    fn parse(
        command: &'static Command,
        words: &[String],
        place: &Place<'_>,
    ) -> Result<Self, Refusal> {
        let mut parsed = Self { global: vec![], tests: vec![], acts: false, shows_links: false };
        let mut words = words.iter();
        let mut depth = 0_usize;
        while let Some(word) = words.next() {
            let value = match command.takes(word) {
                None => return Err(not_allowed(command, word)),
                Some(Takes::Nothing) => None,
                Some(Takes::A(kind) | Takes::Maybe(kind)) => {
                    let value = words.next().map(String::as_str);
                    Some(checked_value(command, word, value, kind, place)?)
                }
            };
            depth = depth_after(word, depth)?;
            refuse_late_pruning(command, word, value.as_deref(), place)?;
            parsed.push(word, value);
        }
        if depth == 0 { Ok(parsed) } else { Err(Refusal::Parentheses) }
    }

    fn push(&mut self, word: &str, value: Option<String>) {
        self.acts |= includes(ACTIONS, word);
        let format = value.as_deref().filter(|_| word == "-printf");
        self.shows_links |= word == "-ls" || format.is_some_and(links::shows_links);
        let words = [word.to_owned()].into_iter().chain(value);
        if !includes(GLOBAL, word) {
            return self.tests.extend(words);
        }
        self.global.extend(words);
        // Something has to stay that is as true as the word was, for `!` or `-o` to stand before.
        if !self.tests.is_empty() {
            self.tests.push("-true".to_owned());
        }
    }

    /// Encloses the tests so that they are only tried on what has no dot in front of any part.
    /// Pruning alone would do for the walk, the test of the whole path makes sure of it.
    fn hiding_dots(&self) -> Vec<String> {
        let prune = ["(", "-name", ".*", "-prune", "-false", ")", "-o"];
        let open = ["(", "!", "-path", "*/.*"];
        let hidden: Vec<&str> = match self.shows_links {
            true => links::HIDDEN.iter().flat_map(|pattern| ["!", "-lname", pattern]).collect(),
            false => vec![],
        };
        let asked: Vec<&str> = match self.tests.as_slice() {
            [] => vec![],
            tests => {
                ["("].into_iter().chain(tests.iter().map(String::as_str)).chain([")"]).collect()
            }
        };
        let print: &[&str] = if self.acts { &[] } else { &["-print"] };
        let words = [&prune[..], &open, &hidden, &asked, print, &[")"]].concat();
        words.into_iter().map(str::to_owned).collect()
    }
}

/// Follows how deep the parentheses go. They must match, or the asked expression could close the
/// one that is put around it.
fn depth_after(word: &str, depth: usize) -> Result<usize, Refusal> {
    match word {
        "(" => Ok(depth + 1),
        ")" => depth.checked_sub(1).ok_or(Refusal::Parentheses),
        _ => Ok(depth),
    }
}

/// Refuses what would keep the topmost dot folders from being pruned: above the least depth no test
/// is tried at all, so that folders further down would be walked, and errors in them be told.
fn refuse_late_pruning(
    command: &'static Command,
    word: &str,
    value: Option<&str>,
    place: &Place<'_>,
) -> Result<(), Refusal> {
    let value = value.unwrap_or_default();
    if word != "-mindepth" || !place.bounds.hides_dots() || ["0", "1"].contains(&value) {
        return Ok(());
    }
    let (option, value) = (word.to_owned(), value.to_owned());
    let wants = "0 or 1 where dot files may not be read".to_owned();
    Err(Refusal::BadValue { command: command.name, option, value, wants })
}
