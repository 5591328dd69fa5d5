//! What a target begins with: the golden transcripts, which the tests read too.

use std::fs;
use std::path::Path;

use crate::recorded::{Recorded, recorded};

/// Writes the seeds of a target into its corpus, before libFuzzer reads that.
pub(crate) fn sow(target: &str, seeds: impl FnOnce(&[Recorded]) -> Vec<Vec<u8>>) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR"));
    let recorded = recorded(&fuzz.join("../crates/aip/tests/golden"));
    let corpus = fuzz.join("corpus").join(target);
    fs::create_dir_all(&corpus).unwrap();
    for (n, seed) in seeds(&recorded).into_iter().enumerate() {
        fs::write(corpus.join(format!("recorded-{n}")), seed).unwrap();
    }
}
