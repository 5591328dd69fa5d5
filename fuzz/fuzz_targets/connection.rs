//! Any bytes as what a registered peer says, a frame a line: see `crates/server/tests/fuzzed`.

#![no_main]

#[path = "../../crates/server/tests/fuzzed/conversation.rs"]
mod conversation;
#[path = "../../crates/aip/tests/fuzzed/recorded.rs"]
mod recorded;
mod seeds;

use conversation::Conversation;
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: seeds::sow("connection", |recorded| {
        Conversation::recorded(recorded).iter().map(Conversation::to_bytes).collect()
    }),
    |said: &[u8]| Conversation::from_bytes(said).check().unwrap()
);
