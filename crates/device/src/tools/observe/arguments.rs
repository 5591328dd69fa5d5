//! Checks the words after a command's name against the table and writes them anew.
//!
//! It must not know any command by name. What is passed on is not what was typed but what was
//! understood: options one by one under their full name, values where nothing else can be meant,
//! paths resolved. So a program cannot understand the words in another way than this module did.

use std::path::Path;

use super::commands::{Absent, Accept, Command, Kind, Operands, Takes, Walk, includes};
use super::refusal::Refusal;
use super::values::{Place, checked_value, is_digits, resolved};
use super::{expression, links};

/// Checks `words` and gives the arguments to run the command with.
pub(super) fn checked(
    command: &'static Command,
    words: &[String],
    place: &Place<'_>,
) -> Result<Vec<String>, Refusal> {
    match command.operands {
        Operands::Verbatim => Ok(words.to_vec()),
        Operands::Expression => expression::checked(command, words, place),
        Operands::Words { kind, least, most } => {
            let given = Given::parse(command, words, place)?;
            let operands = given.words(kind, least, most, place)?;
            Ok([given.written(place.bounds.hides_dots()), operands].concat())
        }
        Operands::Paths { accept, absent } => {
            let given = Given::parse(command, words, place)?;
            given.with_paths(vec![], &given.operands, accept, absent, place)
        }
        Operands::Search => Given::parse(command, words, place)?.search(place),
    }
}

/// The words of a command line as they were understood.
struct Given {
    command: &'static Command,
    options: Vec<GivenOption>,
    operands: Vec<String>,
}

struct GivenOption {
    name: String,
    value: Option<String>,
}

impl Given {
    /// Tells options from operands as GNU programs do, but takes only exact names.
    fn parse(
        command: &'static Command,
        words: &[String],
        place: &Place<'_>,
    ) -> Result<Self, Refusal> {
        let mut given = Self { command, options: vec![], operands: vec![] };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                given.operands.extend(words.by_ref().cloned());
            } else if word.starts_with("--") {
                given.long(word, &mut words, place)?;
            } else if word.starts_with('-') && word != "-" {
                given.short(word, &mut words, place)?;
            } else {
                given.operands.push(word.clone());
            }
        }
        Ok(given)
    }

    fn long<'w>(
        &mut self,
        word: &str,
        next: &mut impl Iterator<Item = &'w String>,
        place: &Place<'_>,
    ) -> Result<(), Refusal> {
        let (name, attached) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        match (self.takes(name)?, attached) {
            (Takes::Nothing, None) | (Takes::Maybe(_), None) => self.push(name, None),
            (Takes::Nothing, Some(_)) => return Err(self.stray_value(name)),
            (Takes::A(kind), None) => {
                self.push_value(name, next.next().map(String::as_str), kind, place)?;
            }
            (Takes::A(kind) | Takes::Maybe(kind), value) => {
                self.push_value(name, value, kind, place)?;
            }
        }
        Ok(())
    }

    fn short<'w>(
        &mut self,
        word: &str,
        next: &mut impl Iterator<Item = &'w String>,
        place: &Place<'_>,
    ) -> Result<(), Refusal> {
        let cluster = word.strip_prefix('-').unwrap_or(word);
        if let (Some(name), true) = (self.command.number, is_digits(cluster)) {
            return self.push_value(name, Some(cluster), Kind::Digits, place);
        }
        let mut letters = cluster.chars();
        while let Some(letter) = letters.next() {
            let name = format!("-{letter}");
            let rest = letters.as_str();
            match self.takes(&name)? {
                Takes::Nothing => self.push(&name, None),
                Takes::Maybe(_) if rest.is_empty() => self.push(&name, None),
                Takes::Maybe(kind) => return self.push_value(&name, Some(rest), kind, place),
                Takes::A(kind) => {
                    let value =
                        if rest.is_empty() { next.next().map(String::as_str) } else { Some(rest) };
                    return self.push_value(&name, value, kind, place);
                }
            }
        }
        Ok(())
    }

    fn takes(&self, name: &str) -> Result<Takes, Refusal> {
        self.command.takes(name).ok_or_else(|| not_allowed(self.command, name))
    }

    fn push(&mut self, name: &str, value: Option<String>) {
        self.options.push(GivenOption { name: name.to_owned(), value });
    }

    fn push_value(
        &mut self,
        name: &str,
        value: Option<&str>,
        kind: Kind,
        place: &Place<'_>,
    ) -> Result<(), Refusal> {
        let value = checked_value(self.command, name, value, kind, place)?;
        self.push(name, Some(value));
        Ok(())
    }

    fn stray_value(&self, name: &str) -> Refusal {
        Refusal::StrayValue { command: self.command.name, option: name.to_owned() }
    }

    /// Finds the first option given that is one of `names`.
    fn one_of(&self, names: &str) -> Option<&GivenOption> {
        self.options.iter().find(|option| includes(names, &option.name))
    }

    /// Writes the options; where dot files are hidden, without those that would show them.
    fn written(&self, hides: bool) -> Vec<String> {
        let is_kept =
            |option: &&GivenOption| !(hides && includes(self.command.reveals, &option.name));
        let kept = self.options.iter().filter(is_kept);
        kept.flat_map(|option| option.written(self.command)).collect()
    }

    fn words(
        &self,
        kind: Kind,
        least: usize,
        most: usize,
        place: &Place<'_>,
    ) -> Result<Vec<String>, Refusal> {
        let command = self.command.name;
        if let Some(word) = self.operands.get(most) {
            let wants = if most == 0 {
                "no operand".to_owned()
            } else {
                format!("at most {most} of {}", kind.wants())
            };
            return Err(Refusal::BadOperand { command, word: word.clone(), wants });
        }
        if self.operands.len() < least {
            return Err(Refusal::TooFewOperands { command, wants: kind.wants() });
        }
        let checked = |word: &String| {
            let bad = || Refusal::BadOperand { command, word: word.clone(), wants: kind.wants() };
            kind.checked(word, place)?.ok_or_else(bad)
        };
        self.operands.iter().map(checked).collect()
    }

    fn search(&self, place: &Place<'_>) -> Result<Vec<String>, Refusal> {
        let needs = || Refusal::TooFewOperands {
            command: self.command.name,
            wants: "a pattern".to_owned(),
        };
        let (first, paths) = match self.one_of("-e --regexp") {
            Some(_) => (None, self.operands.as_slice()),
            None => self
                .operands
                .split_first()
                .map(|(first, rest)| (Some(first), rest))
                .ok_or_else(needs)?,
        };
        let checked = |first: &String| {
            checked_value(self.command, "PATTERN", Some(first), Kind::Pattern, place)
        };
        let pattern = first.map(checked).transpose()?.into_iter().collect();
        let absent = match self.walk() {
            Some(_) => {
                place.reads_below();
                Absent::Here
            }
            None => Absent::Input,
        };
        self.with_paths(pattern, paths, Accept::Files, absent, place)
    }

    /// Writes the options, what has to be added, `first`, and the resolved paths.
    fn with_paths(
        &self,
        first: Vec<String>,
        paths: &[String],
        accept: Accept,
        absent: Absent,
        place: &Place<'_>,
    ) -> Result<Vec<String>, Refusal> {
        let (walk, hides) = (self.walk(), place.bounds.hides_dots());
        let hiding = walk.filter(|_| hides).map_or(&[][..], |walk| walk.hides);
        let added = [walk.map_or(&[][..], |walk| walk.adds), hiding].concat();
        let mut added = added.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let paths = self.or_here(paths, absent, place.has_input)?;
        let resolved =
            paths.iter().map(|path| entry(self.command, path, accept, walk.is_some(), place));
        let resolved = resolved.collect::<Result<Vec<_>, _>>()?;
        if hides && self.one_of(self.command.links).is_some() {
            let (folders, deep) = (place.folders(), walk.is_some());
            let left_out = links::to_leave_out(self.command.name, &folders, deep, place.bounds)?;
            added.extend(left_out.into_iter().map(|pattern| format!("--ignore={pattern}")));
        }
        if first.is_empty() && resolved.is_empty() {
            return Ok([self.written(hides), added].concat());
        }
        Ok([self.written(hides), added, vec!["--".to_owned()], first, resolved].concat())
    }

    /// Tells how the command walks, if these options make it.
    fn walk(&self) -> Option<&'static Walk> {
        let walk = self.command.walk.as_ref();
        walk.filter(|walk| walk.options.is_empty() || self.one_of(walk.options).is_some())
    }

    fn or_here(
        &self,
        paths: &[String],
        absent: Absent,
        has_input: bool,
    ) -> Result<Vec<String>, Refusal> {
        match absent {
            _ if !paths.is_empty() => Ok(paths.to_vec()),
            Absent::Input if has_input => Ok(vec![]),
            Absent::Input => Err(Refusal::NoInput { command: self.command.name }),
            Absent::Here => Ok(vec![".".to_owned()]),
            Absent::Nothing => Ok(vec![]),
        }
    }
}

impl GivenOption {
    /// Writes the option so that its value can only be understood as its value.
    fn written(&self, command: &Command) -> Vec<String> {
        let renamed = command.rewrites.iter().find(|(from, _)| *from == self.name);
        let name = renamed.map_or(self.name.as_str(), |(_, to)| *to);
        match (&self.value, command.takes(&self.name)) {
            (None, _) => vec![name.to_owned()],
            (Some(value), _) if name.starts_with("--") => vec![format!("{name}={value}")],
            (Some(value), Some(Takes::Maybe(_))) => vec![format!("{name}{value}")],
            (Some(value), _) => vec![name.to_owned(), value.clone()],
        }
    }
}

/// Makes the refusal of an option, or of a word in an expression.
pub(super) fn not_allowed(command: &'static Command, option: &str) -> Refusal {
    let (option, allowed) = (option.to_owned(), command.allowed());
    Refusal::NotAllowed { command: command.name, option, allowed }
}

/// Resolves a path that a command is to look at, and checks what kind of thing it is.
pub(super) fn entry(
    command: &'static Command,
    path: &str,
    accept: Accept,
    walks: bool,
    place: &Place<'_>,
) -> Result<String, Refusal> {
    let name = command.name;
    if path == "-" && place.has_input {
        return Ok(path.to_owned());
    }
    if path == "-" {
        return Err(Refusal::NoInput { command: name });
    }
    if accept == Accept::Mounts && path == "/" {
        return Ok(path.to_owned());
    }
    let real = resolved(path, place)?;
    if walks && real == "/" {
        return Err(Refusal::WholeSystem { command: name });
    }
    if accept == Accept::Files {
        refuse_what_blocks(name, path, Path::new(&real), walks)?;
    }
    Ok(real)
}

/// Refuses what could be read for ever. What is not there is left for the command to report.
fn refuse_what_blocks(
    command: &'static str,
    asked: &str,
    real: &Path,
    walks: bool,
) -> Result<(), Refusal> {
    let path = asked.to_owned();
    match real.metadata() {
        Ok(found) if found.is_dir() && !walks => Err(Refusal::IsFolder { command, path }),
        Ok(found) if !found.is_dir() && !found.is_file() => {
            Err(Refusal::IsSpecial { command, path })
        }
        _ => Ok(()),
    }
}
