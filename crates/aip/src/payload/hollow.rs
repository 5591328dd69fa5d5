//! A JSON text without what stands in its long strings.
//!
//! A library that finds its way through a text looks at every byte of it, and at each level of what is carried inside
//! another message once more. What stands in a long string says nothing of the way, so it is left out, and whatever
//! is carried is then taken from the whole text.

use std::ops::Range;
use std::rc::Rc;

use memchr::memchr;

use crate::json_string;

/// A string of this length is long.
const LONG_BYTES: usize = 1024;

/// The most that is left of a text: more is not worth it.
const MAX_BYTES: usize = 16 * 1024;

/// A text without what stands in its long strings.
#[derive(Debug)]
pub(super) struct Hollow {
    text: Rc<str>,
    holes: Vec<Hole>,
}

#[derive(Debug)]
struct Hole {
    /// Where it is in what is left.
    at: usize,
    /// How much is missing up to here, its own bytes included.
    missing: usize,
    /// Whether it is in something that is carried.
    is_carried: bool,
}

impl Hollow {
    /// `None` of a text in which no string is long, or in which too much else is, or some string is none, unless it is
    /// known to be JSON.
    pub(super) fn of(whole: &str, is_json: bool) -> Option<Self> {
        if whole.len() < LONG_BYTES {
            return None;
        }
        let (mut text, mut holes, mut missing) = (String::new(), Vec::new(), 0);
        let (mut copied, mut at) = (0, 0);
        while let Some(quote) = memchr(b'"', whole.as_bytes().get(at..)?) {
            let start = at + quote + 1;
            if text.len() + (start - copied) > MAX_BYTES {
                return None;
            }
            let rest = whole.as_bytes().get(start..)?;
            let length = match is_json {
                true => json_string::length_of_valid(rest)?,
                false => json_string::length(rest)?,
            };
            at = start + length + 1;
            if length >= LONG_BYTES {
                text.push_str(whole.get(copied..start)?);
                copied = start + length;
                missing += length;
                holes.push(Hole { at: text.len(), missing, is_carried: false });
            }
        }
        let rest = whole.get(copied..).filter(|rest| text.len() + rest.len() <= MAX_BYTES)?;
        text.push_str(rest);
        (!holes.is_empty()).then(|| Self { text: text.into(), holes })
    }

    pub(super) fn text(&self) -> Rc<str> {
        Rc::clone(&self.text)
    }

    /// Where in the whole a part of what is left stands, which is carried.
    pub(super) fn carry(&mut self, part: &str) -> Option<Range<usize>> {
        let start = part.as_ptr().addr().checked_sub(self.text.as_ptr().addr())?;
        let end = start.checked_add(part.len()).filter(|end| *end <= self.text.len())?;
        let (before, up_to) = (self.count(start), self.count(end));
        let missing = |count: usize| {
            let last = count.checked_sub(1).and_then(|last| self.holes.get(last));
            last.map_or(0, |hole| hole.missing)
        };
        let range = start + missing(before)..end + missing(up_to);
        self.holes.get_mut(before..up_to)?.iter_mut().for_each(|hole| hole.is_carried = true);
        Some(range)
    }

    /// How many holes there are up to some place.
    fn count(&self, at: usize) -> usize {
        self.holes.partition_point(|hole| hole.at <= at)
    }

    /// Whether nothing was looked at that is missing.
    pub(super) fn is_all_carried(&self) -> bool {
        self.holes.iter().all(|hole| hole.is_carried)
    }
}
