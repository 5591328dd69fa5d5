//! What a journal says, as of its last record. Pure: it reads records and decides, and touches no file.

use std::collections::{BTreeMap, BTreeSet};

use aip::SessionId;
use aip::message::{Held, HeldState, Word};
use bytes::Bytes;

use super::CommandId;
use super::record::{Record, Unreadable};

/// Where something stands in the journal's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) at: u64,
    pub(super) len: usize,
}

/// The commands of one store.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) store: String,
    /// The boot of the last record.
    pub(super) boot: String,
    /// The greatest id that a receipt was written for under this store id.
    pub(super) newest: Option<CommandId>,
    /// The greatest id forgotten for good.
    horizon: Option<CommandId>,
    pub(super) held: BTreeMap<CommandId, Entry>,
    /// Ids of commands that are over, the greatest of them.
    forgotten: BTreeSet<CommandId>,
    most_forgotten: usize,
}

/// A command that is held.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) session: Option<SessionId>,
    /// The COMMAND, as its receipt has it.
    pub(super) command: Span,
    /// The results of the first actions.
    pub(super) actions: Vec<Span>,
    pub(super) stage: Stage,
}

/// How far a command came.
#[derive(Debug)]
pub(super) enum Stage {
    Received,
    Running,
    Done { results: Results, was_stopped: bool },
}

/// Where results are.
#[derive(Debug, Clone)]
pub(super) enum Results {
    /// In the journal's file.
    Log(Span),
    /// In a file of their own.
    Aside { len: u64, crc: u32 },
    /// They could not be written, or are not written yet.
    Memory(Bytes),
}

/// What is known of a command's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is new.
    New,
    /// The command is held.
    Held(HeldState),
    /// It was taken once, and there are no results to send.
    Forgotten,
    /// It is not above the greatest id that was forgotten for good.
    TooOld,
}

impl Ledger {
    pub(super) fn new(store: &str, boot: &str, most_forgotten: usize) -> Self {
        Self {
            store: store.to_owned(),
            boot: boot.to_owned(),
            newest: None,
            horizon: None,
            held: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            most_forgotten,
        }
    }

    /// Reads a journal up to the first record that cannot be read. Returns how many bytes it read, and why no more.
    pub(super) fn read(bytes: &[u8], most_forgotten: usize) -> (Self, usize, Option<Unreadable>) {
        let mut ledger = Self::new("", "", most_forgotten);
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match Record::read(rest) {
                Ok((record, len)) => {
                    at += len;
                    ledger.apply(&record, at as u64);
                }
                Err(why) => return (ledger, at, Some(why)),
            }
        }
        (ledger, at, None)
    }

    /// Takes in a record that ends at this place of the file.
    pub(super) fn apply(&mut self, record: &Record<'_>, end: u64) {
        let span = Span { at: end.saturating_sub(record.tail() as u64), len: record.tail() };
        match *record {
            Record::Store(store) => {
                store.clone_into(&mut self.store);
                (self.newest, self.horizon) = (None, None);
            }
            Record::Boot(boot) => boot.clone_into(&mut self.boot),
            Record::Marks { newest, horizon } => {
                // Fewer ids may be remembered than when it was written.
                (self.newest, self.horizon) = (newest, self.horizon.max(horizon));
            }
            Record::Received { id, session, .. } => {
                self.newest = self.newest.max(Some(id));
                let session = SessionId::new(session).ok();
                let actions = Vec::new();
                let entry = Entry { session, command: span, actions, stage: Stage::Received };
                self.held.insert(id, entry);
            }
            Record::Running(id) => self.note(id, Stage::Running),
            Record::Action { id, .. } => {
                self.held.get_mut(&id).into_iter().for_each(|entry| entry.actions.push(span));
            }
            Record::Done { id, was_stopped, .. } => {
                self.note(id, Stage::Done { results: Results::Log(span), was_stopped });
            }
            Record::DoneAside { id, was_stopped, len, crc } => {
                self.note(id, Stage::Done { results: Results::Aside { len, crc }, was_stopped });
            }
            Record::Forgotten(id) => {
                self.held.remove(&id);
                self.forgotten.insert(id);
                while self.forgotten.len() > self.most_forgotten {
                    self.horizon = self.horizon.max(self.forgotten.pop_first());
                }
            }
        }
    }

    pub(super) const fn most_forgotten(&self) -> usize {
        self.most_forgotten
    }

    /// Takes in how far a command came.
    pub(super) fn note(&mut self, id: CommandId, stage: Stage) {
        if let Some(entry) = self.held.get_mut(&id) {
            entry.stage = stage;
        }
    }

    /// What is known of an id.
    pub(super) fn known(&self, id: CommandId) -> Known {
        match self.held.get(&id) {
            Some(entry) => Known::Held(entry.stage.state()),
            None if self.forgotten.contains(&id) => Known::Forgotten,
            None if Some(id) <= self.horizon => Known::TooOld,
            None => Known::New,
        }
    }

    /// Whether a command is held, or over and still known by its id.
    pub(super) fn has(&self, id: CommandId) -> bool {
        self.held.contains_key(&id) || self.forgotten.contains(&id)
    }

    /// The ids of all that it has.
    pub(super) fn ids(&self) -> impl Iterator<Item = CommandId> {
        self.held.keys().chain(&self.forgotten).copied()
    }

    /// What REGISTER lists.
    pub(super) fn list(&self) -> Vec<Held> {
        let held = self.held.iter().filter_map(|(id, entry)| {
            Some(Held { response_id: id.to_response_id()?, state: entry.stage.state() })
        });
        held.collect()
    }

    /// What its commands and results take, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.held.values().map(Entry::bytes).sum()
    }

    /// The commands that were cut off: those that ran, and where the end of the journal is lost those with a receipt
    /// too, since what was lost may have been their start.
    pub(super) fn interrupted(&self, has_lost: bool) -> Vec<CommandId> {
        let is_cut = |entry: &Entry| match entry.stage {
            Stage::Received => has_lost,
            Stage::Running => true,
            Stage::Done { .. } => false,
        };
        self.held.iter().filter(|(_, entry)| is_cut(entry)).map(|(id, _)| *id).collect()
    }

    /// A journal that says the same in fewer bytes. `read` reads out of the present one.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) fn compacted<E>(
        &self,
        mut read: impl FnMut(Span) -> Result<Bytes, E>,
    ) -> Result<Vec<u8>, E> {
        let mut to = Vec::new();
        Record::Store(&self.store).write(&mut to);
        Record::Boot(&self.boot).write(&mut to);
        for id in &self.forgotten {
            Record::Forgotten(*id).write(&mut to);
        }
        for (id, entry) in &self.held {
            entry.write(*id, &mut to, &mut read)?;
        }
        // Last, since receipts that were written under another store id say nothing about this one.
        Record::Marks { newest: self.newest, horizon: self.horizon }.write(&mut to);
        Ok(to)
    }
}

impl Entry {
    /// What a cancel is answered with, once it is done.
    pub(super) const fn word(&self) -> Option<Word> {
        match self.stage {
            Stage::Done { was_stopped: true, .. } => Some(Word::Stopped),
            Stage::Done { was_stopped: false, .. } => Some(Word::Finished),
            Stage::Received | Stage::Running => None,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let actions = self.actions.iter().map(|span| span.len as u64).sum::<u64>();
        match &self.stage {
            Stage::Received | Stage::Running => self.command.len as u64 + actions,
            Stage::Done { results, .. } => results.len(),
        }
    }

    fn write<E>(
        &self,
        id: CommandId,
        to: &mut Vec<u8>,
        read: &mut impl FnMut(Span) -> Result<Bytes, E>,
    ) -> Result<(), E> {
        let session = self.session.as_ref().map_or("", SessionId::as_str);
        // Of a command that is done nobody needs more than its results.
        let is_done = matches!(self.stage, Stage::Done { .. });
        let command = if is_done { Bytes::new() } else { read(self.command)? };
        Record::Received { id, session, command: &command }.write(to);
        match &self.stage {
            Stage::Received => {}
            Stage::Running => {
                Record::Running(id).write(to);
                for span in &self.actions {
                    Record::Action { id, result: &read(*span)? }.write(to);
                }
            }
            Stage::Done { results, was_stopped } => {
                let was_stopped = *was_stopped;
                let inline = match results {
                    Results::Aside { len, crc } => {
                        Record::DoneAside { id, was_stopped, len: *len, crc: *crc }.write(to);
                        return Ok(());
                    }
                    Results::Log(span) => read(*span)?,
                    Results::Memory(frame) => frame.clone(),
                };
                Record::Done { id, was_stopped, results: &inline }.write(to);
            }
        }
        Ok(())
    }
}

impl Stage {
    const fn state(&self) -> HeldState {
        match self {
            Self::Received => HeldState::Received,
            Self::Running => HeldState::Running,
            Self::Done { .. } => HeldState::Done,
        }
    }
}

impl Results {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Log(span) => span.len as u64,
            Self::Aside { len, .. } => *len,
            Self::Memory(frame) => frame.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes records as a journal does, and what they say.
    struct Written {
        bytes: Vec<u8>,
        ledger: Ledger,
    }

    impl Written {
        fn new(most_forgotten: usize) -> Self {
            let mut new = Self { bytes: Vec::new(), ledger: Ledger::new("", "", most_forgotten) };
            new.add(&Record::Store("S"));
            new.add(&Record::Boot("boot"));
            new
        }

        fn add(&mut self, record: &Record<'_>) {
            record.write(&mut self.bytes);
            self.ledger.apply(record, self.bytes.len() as u64);
        }

        fn receive(&mut self, id: u128) {
            self.add(&Record::Received { id: CommandId(id), session: "s", command: b"command" });
        }

        fn execute(&mut self, id: u128) {
            self.receive(id);
            self.add(&Record::Running(CommandId(id)));
            let (id, results) = (CommandId(id), b"results".as_slice());
            self.add(&Record::Done { id, was_stopped: false, results });
        }

        fn span(&self, span: Span) -> Bytes {
            let at = usize::try_from(span.at).unwrap();
            Bytes::copy_from_slice(&self.bytes[at..at + span.len])
        }

        fn compacted(&self) -> Self {
            let read = |span| Ok::<_, ()>(self.span(span));
            let bytes = self.ledger.compacted(read).unwrap();
            let (ledger, read, why) = Ledger::read(&bytes, self.ledger.most_forgotten);
            assert_eq!((read, why), (bytes.len(), None));
            Self { bytes, ledger }
        }

        fn states(&self) -> Vec<HeldState> {
            self.ledger.list().into_iter().map(|held| held.state).collect()
        }
    }

    #[test]
    fn a_shorter_journal_says_the_same() {
        let mut long = Written::new(2);
        (1..=5).for_each(|id| long.execute(id));
        (1..=4).for_each(|id| long.add(&Record::Forgotten(CommandId(id))));
        long.receive(6);
        long.receive(7);
        long.add(&Record::Running(CommandId(7)));
        long.add(&Record::Action { id: CommandId(7), result: b"first" });
        let short = long.compacted();
        assert!(short.bytes.len() < long.bytes.len());
        for written in [&long, &short, &short.compacted()] {
            let ledger = &written.ledger;
            let known = [1, 2, 3, 4, 8].map(|id| ledger.known(CommandId(id)));
            assert_eq!(
                known,
                [Known::TooOld, Known::TooOld, Known::Forgotten, Known::Forgotten, Known::New]
            );
            assert_eq!(
                written.states(),
                [HeldState::Done, HeldState::Received, HeldState::Running]
            );
            assert_eq!(
                (ledger.newest, &*ledger.store, &*ledger.boot),
                (Some(CommandId(7)), "S", "boot")
            );
            let Stage::Done { results: Results::Log(span), .. } = ledger.held[&CommandId(5)].stage
            else {
                panic!("{ledger:?}")
            };
            assert_eq!(written.span(span), "results");
            assert_eq!(written.span(ledger.held[&CommandId(7)].actions[0]), "first");
            assert_eq!(written.span(ledger.held[&CommandId(6)].command), "command");
        }
    }

    #[test]
    fn what_is_held_stays_and_what_counts_begins_anew_under_another_store_id() {
        let mut written = Written::new(1);
        (1..=3).for_each(|id| written.execute(id));
        [1, 2].iter().for_each(|id| written.add(&Record::Forgotten(CommandId(*id))));
        assert_eq!(written.ledger.known(CommandId(1)), Known::TooOld);
        written.add(&Record::Store("S2"));
        for written in [&written, &written.compacted()] {
            assert_eq!((written.ledger.newest, written.states().len()), (None, 1));
            assert_eq!(written.ledger.known(CommandId(1)), Known::New);
            assert_eq!(written.ledger.known(CommandId(2)), Known::Forgotten);
        }
    }

    #[test]
    fn what_ran_is_interrupted_and_after_a_loss_what_was_received_too() {
        let mut written = Written::new(9);
        written.receive(1);
        written.receive(2);
        written.add(&Record::Running(CommandId(2)));
        written.execute(3);
        assert_eq!(written.ledger.interrupted(false), [CommandId(2)]);
        assert_eq!(written.ledger.interrupted(true), [CommandId(1), CommandId(2)]);
    }
}
