//! Checks single values: numbers, formats, names and paths.
//!
//! It must not know which option or operand of which command a value is for.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use super::super::bounds::Bounds;
use super::Named;
use super::commands::{Command, Kind};
use super::refusal::Refusal;

/// The longest run of digits in a format, which limits how wide a field gets.
const MAX_WIDTH_DIGITS: usize = 3;

/// The longest that a regular expression may get with its repetitions written out. The memory that
/// it takes grows with the square of that, up to gigabytes for a few nested ones.
const MAX_PATTERN: usize = 2500;

/// The most digits a number may have, well within what 64 bits hold.
const MAX_DIGITS: usize = 18;

/// Where a command would run, what it may read, and what it asks to read.
pub(super) struct Place<'a> {
    pub(super) bounds: &'a Bounds,
    pub(super) cwd: &'a Path,
    /// Whether there is standard input to read.
    pub(super) has_input: bool,
    named: RefCell<Vec<Named>>,
    reads_below: Cell<bool>,
}

impl<'a> Place<'a> {
    pub(super) fn new(bounds: &'a Bounds, cwd: &'a Path, has_input: bool) -> Self {
        Self { bounds, cwd, has_input, named: RefCell::default(), reads_below: Cell::default() }
    }

    /// Notes that the command reads all files below the folders that it names.
    pub(super) fn reads_below(&self) {
        self.reads_below.set(true);
    }

    /// The paths that were named, and whether what is below them is read.
    pub(super) fn taken(self) -> (Vec<Named>, bool) {
        (self.named.into_inner(), self.reads_below.get())
    }

    /// The folders among the paths that were named.
    pub(super) fn folders(&self) -> Vec<PathBuf> {
        let named = self.named.borrow();
        named.iter().filter(|named| named.path.is_dir()).map(|named| named.path.clone()).collect()
    }

    fn name(&self, asked: &str, path: &Path) {
        self.named.borrow_mut().push(Named { asked: asked.to_owned(), path: path.to_owned() });
    }
}

/// Checks the value of an option or of a test in an expression.
pub(super) fn checked_value(
    command: &'static Command,
    option: &str,
    value: Option<&str>,
    kind: Kind,
    place: &Place<'_>,
) -> Result<String, Refusal> {
    let command = command.name;
    let value = value.ok_or_else(|| Refusal::NoValue { command, option: option.to_owned() })?;
    let (option, wants) = (option.to_owned(), kind.wants());
    let bad = || Refusal::BadValue { command, option, value: value.to_owned(), wants };
    kind.checked(value, place)?.ok_or_else(bad)
}

impl Kind {
    /// Gives `value` as it is to be passed on, if it is of this kind.
    pub(super) fn checked(self, value: &str, place: &Place<'_>) -> Result<Option<String>, Refusal> {
        if let Self::Path = self {
            return resolved(value, place).map(Some);
        }
        Ok(self.fits(value).then(|| value.to_owned()))
    }

    fn fits(self, value: &str) -> bool {
        match self {
            Self::Text => true,
            Self::Pattern => is_small_pattern(value),
            Self::Format => is_format(value),
            Self::PlusFormat => value.strip_prefix('+').is_some_and(is_format),
            Self::Digits => is_digits(value),
            Self::DigitList => value.split(',').all(is_digits),
            Self::Count => is_count(value),
            Self::Seconds => is_seconds(value),
            Self::Date => is_made_of(value, " :+-/,.@"),
            Self::Name => !value.starts_with('-') && is_made_of(value, "_.,@+-"),
            Self::OneOf(words) => words.contains(&value),
            Self::ListOf(words) => value.split(',').all(|item| words.contains(&bare_item(item))),
            Self::Path => false,
        }
    }

    /// Tells what a value of this kind looks like.
    pub(super) fn wants(self) -> String {
        let wants = match self {
            Self::Text => "text",
            Self::Pattern => "a pattern that is not too long with its {…} repetitions written out",
            Self::Format => "a format, with widths of at most 3 digits",
            Self::PlusFormat => "a +FORMAT, with widths of at most 3 digits",
            Self::Digits => "a number",
            Self::DigitList => "numbers with commas between them",
            Self::Count => "a number, with an optional sign and unit",
            Self::Seconds => "a number of seconds",
            Self::Date => "a date of letters, digits, spaces and :+-/,.@",
            Self::Name => "a name of letters, digits and _.,@+-",
            Self::OneOf(words) => return format!("one of {}", words.join(" ")),
            Self::ListOf(words) => return format!("a comma-separated list of {}", words.join(" ")),
            Self::Path => "a path",
        };
        wants.to_owned()
    }
}

/// Resolves a path that may be read, for use as an argument.
pub(super) fn resolved(path: &str, place: &Place<'_>) -> Result<String, Refusal> {
    let asked = Path::new(path);
    if path.is_empty() {
        return Err(place.bounds.outside(asked).into());
    }
    let real = place.bounds.resolve(asked, place.cwd)?;
    place.name(path, &real);
    // Arguments are text; what a link leads to need not be.
    real.into_os_string().into_string().map_err(|_| place.bounds.outside(asked).into())
}

/// Tells whether `text` is a number without a sign.
pub(super) fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_count(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = unsigned.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    is_digits(digits) && unsigned.len() - digits.len() <= 3
}

fn is_seconds(text: &str) -> bool {
    let number = text.strip_suffix(['s', 'm', 'h', 'd']).unwrap_or(text);
    match number.split_once('.') {
        Some((whole, part)) => is_digits(whole) && is_digits(part),
        None => is_digits(number),
    }
}

fn is_made_of(text: &str, punctuation: &str) -> bool {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || punctuation.contains(letter);
    !text.is_empty() && text.chars().all(fits)
}

fn is_format(text: &str) -> bool {
    text.split(|letter: char| !letter.is_ascii_digit())
        .all(|digits| digits.len() <= MAX_WIDTH_DIGITS)
}

/// Takes off an item of a list its direction in front and the sign behind that leaves out a title.
fn bare_item(item: &str) -> &str {
    let item = item.strip_prefix(['+', '-']).unwrap_or(item);
    item.strip_suffix('=').unwrap_or(item)
}

/// Estimates from above how long `pattern` is with its repetitions written out. Where one follows
/// what may be a group, all before it counts as repeated, since how groups are written varies.
fn is_small_pattern(pattern: &str) -> bool {
    let mut length = 0_usize;
    let mut previous = ' ';
    for (at, letter) in pattern.char_indices() {
        let times = if letter == '{' { most_times(&pattern[at + 1..]) } else { 1 };
        length = match previous {
            ')' | '}' | '*' | '+' | '?' => length.saturating_mul(times).saturating_add(1),
            _ => length.saturating_add(times),
        };
        if letter != '\\' {
            previous = letter;
        }
    }
    length <= MAX_PATTERN
}

/// Gives the greatest number in an interval, of which `rest` is what follows the opening brace.
fn most_times(rest: &str) -> usize {
    let interval = rest.split('}').next().unwrap_or(rest);
    let numbers = interval.split(|letter: char| !letter.is_ascii_digit());
    let numbers = numbers.filter(|digits| !digits.is_empty());
    numbers.map(|digits| digits.parse().unwrap_or(usize::MAX)).max().unwrap_or(1).max(1)
}
