//! Recorded frames, damaged in every way: whatever comes out of it is read or refused as it should be.
//!
//! The fuzz target `codec` checks the same for as long as one likes: `cargo fuzz run codec`.

#![allow(clippy::unwrap_used)]

mod mutation;
mod properties;
mod recorded;

use std::path::Path;

use bytes::Bytes;
use mutation::{mutated, mutation};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

/// Frames that are tried: a second or two of them.
const CASES: u32 = 5000;

fn frames() -> Vec<Bytes> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    recorded::recorded(&folder).into_iter().map(|recorded| recorded.frame.into()).collect()
}

#[test]
fn every_recorded_frame_is_read_or_refused_as_it_should_be() {
    for frame in frames() {
        assert_eq!(properties::check(&frame), Ok(()), "{frame:?}");
    }
}

#[test]
fn a_refusal_is_short_also_when_what_it_quotes_needs_escapes() {
    let key = "\u{7f}".repeat(5000);
    let frame = format!(r#"{{"type":"task","{key}":oops}}"#).into();
    assert_eq!(properties::check(&frame), Ok(()));
}

#[test]
fn damaged_frames_are_read_or_refused_as_they_should_be() {
    let frames = frames();
    let damage = (any::<Index>(), vec(mutation(), 1..6));
    let damaged = damage.prop_map(|(at, damage)| mutated(at.get(&frames), &damage, &frames[..]));
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let checked = TestRunner::new(config)
        .run(&damaged, |frame| properties::check(&frame).map_err(TestCaseError::fail));
    assert!(checked.is_ok(), "{}", checked.unwrap_err());
}
