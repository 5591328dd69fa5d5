//! Any bytes as a frame: see `crates/aip/tests/fuzzed`.

#![no_main]

#[path = "../../crates/aip/tests/fuzzed/properties.rs"]
mod properties;
#[path = "../../crates/aip/tests/fuzzed/recorded.rs"]
mod recorded;
mod seeds;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: seeds::sow("codec", |recorded| {
        recorded.iter().map(|recorded| recorded.frame.clone().into_bytes()).collect()
    }),
    |frame: &[u8]| properties::check(&Bytes::copy_from_slice(frame)).unwrap()
);
