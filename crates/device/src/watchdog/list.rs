//! What the device tells its helper, as the helper reads it: which groups are guarded in the end.
//!
//! It must not know what becomes of a group.
//!
//! A line each: `+NUMBER\n` guards a process group, `+NUMBER MARK\n` also all processes that bear that
//! mark, `-NUMBER\n` lets it go.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::str::FromStr;

use super::MAX_GUARDED;
use crate::mark::Mark;

/// The longest line the helper takes, in bytes, with its end.
pub(super) const MAX_LINE: u64 = 40;

/// A line, made without an allocation: a child writes one before its program begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    bytes: [u8; MAX_LINE as usize],
    len: usize,
}

impl Line {
    pub(super) fn guards(group: u32, mark: Option<Mark>) -> Self {
        match mark {
            Some(mark) => Self::of(format_args!("+{group} {mark}\n")),
            None => Self::of(format_args!("+{group}\n")),
        }
    }

    pub(super) fn lets_go(group: u32) -> Self {
        Self::of(format_args!("-{group}\n"))
    }

    fn of(text: fmt::Arguments<'_>) -> Self {
        let mut bytes = [0; MAX_LINE as usize];
        let mut rest = bytes.as_mut_slice();
        // The largest numbers have ten and twenty digits.
        let _it_fits = rest.write_fmt(text);
        let len = MAX_LINE as usize - rest.len();
        Self { bytes, len }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The groups that are guarded in the end, each with the mark of its descendants.
pub(super) type Groups = BTreeMap<u32, Option<Mark>>;

pub(super) fn guarded_at_the_end(input: impl Read) -> Groups {
    let mut input = BufReader::new(input);
    let mut groups = Groups::new();
    let mut line = Vec::new();
    // An error to read is an end as well: nothing will ever be heard of the device again.
    while matches!(input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line), Ok(1..)) {
        take_line(&line, &mut groups);
        line.clear();
    }
    groups
}

/// Takes one line into account, and passes over what isn't one: the beginning of a number would
/// be another group's.
fn take_line(line: &[u8], groups: &mut Groups) {
    let Some(line) = str::from_utf8(line).ok().and_then(|line| line.strip_suffix('\n')) else {
        return;
    };
    if let Some((group, mark)) = line.strip_prefix('+').and_then(guarded)
        && groups.len() < MAX_GUARDED
    {
        groups.insert(group, mark);
    } else if let Some(group) = line.strip_prefix('-').and_then(number) {
        groups.remove(&group);
    }
}

/// Reads `NUMBER` or `NUMBER MARK`.
fn guarded(text: &str) -> Option<(u32, Option<Mark>)> {
    match text.split_once(' ') {
        Some((group, mark)) => Some((number(group)?, Some(number(mark)?))),
        None => Some((number(text)?, None)),
    }
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    // `parse` alone would let "+5" pass.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}
