//! The promise itself: each task that was accepted has one outcome, which its requester knows, and no order is carried out
//! twice.

use server::store::Ending;

use super::Checker;
use super::mirror::ended;
use crate::history::{End, short};

impl Checker<'_> {
    pub(super) fn check_promise(&mut self) {
        let mut wrong = Vec::new();
        for (order, times) in self.ran.iter().filter(|(_, times)| **times > 1) {
            wrong.push(format!("{order} was carried out {times} times"));
        }
        for (party, session) in &self.submitted {
            let learned = self.learned.get(session).into_iter().flatten();
            if learned.filter(|(who, _)| who == party).count() == 0 {
                wrong.push(format!("{party} never learned of S={}", short(session)));
            }
        }
        for (session, learned) in &self.learned {
            for (party, end) in learned {
                if let Some(what) = self.wrong_with_end(party, session, end) {
                    wrong.push(format!(
                        "{party} was told of S={} that {end:?}, {what}",
                        short(session)
                    ));
                }
            }
        }
        self.wrong.extend(wrong);
    }

    /// What a requester was told is what the store has, unless the store has lost it.
    fn wrong_with_end(&self, party: &str, session: &str, end: &End) -> Option<&'static str> {
        let is_legacy = self.rules.legacy.contains(party);
        let journal = self.mirror.of_session(session);
        let stored = journal.and_then(ended).map(|ended| ended.ending);
        if self.mirror.forgotten.contains(session) {
            return None;
        }
        match (end, stored) {
            (End::Refused(_), None) if journal.is_none() => None,
            (End::Refused(_), _) => Some("and it was accepted"),
            (End::Lost(_), _) if is_legacy || self.mirror.has_lost => None,
            (End::Lost(_), _) => Some("and nothing was lost"),
            (End::Completed, Some(Ending::Completed)) => None,
            (End::Failed(_), Some(Ending::Failed | Ending::Cancelled)) => None,
            (End::Failed(_), None) if is_legacy && journal.is_none() => None,
            _ => Some("and the store has it otherwise"),
        }
    }
}
