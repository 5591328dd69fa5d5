//! The history of a task, out of its journal.

use std::sync::Arc;

use super::Step;
use crate::store::Record;

/// The steps that are over.
pub(crate) fn steps(journal: &[Record]) -> Vec<Step> {
    let mut decided = None;
    let mut steps = Vec::new();
    for record in journal {
        match record {
            Record::Decided { calls, is_discovery, .. } => decided = Some((calls, *is_discovery)),
            Record::Answered { results, .. } => {
                let (calls, is_discovery) = decided.take().unzip();
                let calls = calls.cloned().unwrap_or_else(|| Arc::new([]));
                let is_discovery = is_discovery.unwrap_or_default();
                steps.push(Step { calls, results: results.clone(), is_discovery });
            }
            Record::Created(_)
            | Record::Noted { .. }
            | Record::Readdressed { .. }
            | Record::Cancelling { .. }
            | Record::Ended(_) => {}
        }
    }
    steps
}
