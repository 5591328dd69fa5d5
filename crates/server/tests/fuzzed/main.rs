//! Conversations of real peers, damaged in every way, with a server that must not mind.
//!
//! The fuzz target `connection` holds others for as long as one likes: `cargo fuzz run connection`.

#![allow(clippy::unwrap_used)]

mod conversation;
#[path = "../../../aip/tests/fuzzed/mutation.rs"]
mod mutation;
#[path = "../../../aip/tests/fuzzed/recorded.rs"]
mod recorded;

use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use conversation::Conversation;
use mutation::{mutated, mutation};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

/// Conversations that are tried: a few seconds of them.
const CASES: u32 = 400;

fn conversations() -> Vec<Conversation> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../aip/tests/golden");
    Conversation::recorded(&recorded::recorded(&folder))
}

/// Holds a conversation. A panic inside the server is noticed wherever it was caught.
fn check(conversation: &Conversation) -> Result<(), String> {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            usual(panic);
        }));
    });
    let before = PANICS.load(Ordering::SeqCst);
    conversation.check()?;
    if PANICS.load(Ordering::SeqCst) == before { Ok(()) } else { Err("a panic".to_owned()) }
}

/// One frame of any conversation, damaged or not.
fn frame(frames: Vec<Bytes>) -> impl Strategy<Value = Bytes> {
    let damage = (any::<Index>(), prop_oneof![Just(vec![]), vec(mutation(), 1..4)]);
    damage.prop_map(move |(at, damage)| mutated(at.get(&frames), &damage, &frames[..]))
}

#[test]
fn every_recorded_conversation_ends_as_it_should() {
    for (n, recorded) in conversations().into_iter().enumerate() {
        for manner in (0..16).filter(|manner| (manner ^ recorded.manner) & 1 == 0) {
            let conversation = Conversation { manner, ..recorded.clone() };
            assert_eq!(check(&conversation), Ok(()), "{n}: {conversation:?}");
        }
    }
}

#[test]
fn whatever_a_peer_says_the_server_answers_and_forgets_it() {
    let all = conversations();
    let mut frames: Vec<Bytes> = all.iter().flat_map(|one| one.frames.clone()).collect();
    frames.push("$W".into());
    let damaged = (0..16_u8, select(all), vec(frame(frames), 0..6));
    let damaged = damaged.prop_map(|(manner, recorded, more)| {
        let frames = recorded.frames.into_iter().chain(more).collect();
        Conversation { manner, frames }
    });
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let checked = TestRunner::new(config)
        .run(&damaged, |conversation| check(&conversation).map_err(TestCaseError::fail));
    assert!(checked.is_ok(), "{}", checked.unwrap_err());
}
