//! A device's journal: which COMMANDs it took, how far each came, and their results until the server has them.
//!
//! Each store (a server's memory) has one. A record is written, not synced, before the next thing happens, so that a
//! device that is killed knows what it did; after a loss of power it does not, which the machine's boot shows. Results
//! over 64 KiB lie in files of their own, so that nobody waits for them.
//!
//! - `record`: a line of a journal.
//! - `ledger`: what a journal says; pure.
//! - `disk`: the files, or their place in memory.
//! - `start`: what a device that starts finds in them.

mod disk;
mod ledger;
mod record;
mod start;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use aip::codec::Wire;
use aip::message::{Held, Word};
use aip::{
    ActionResult, ClientMessage, ClientMessageType, ClientType, ResponseId, ServerMessage,
    SessionId,
};
use bytes::Bytes;
use link::Retention;
use uuid::Uuid;

use self::disk::Log;
pub(crate) use self::disk::Shelf;
pub(crate) use self::ledger::Known;
use self::ledger::{Entry, Ledger, Results, Stage};
use self::record::Record;

/// Results over this size, in bytes, are kept in a file of their own.
pub(crate) const ASIDE_BYTES: usize = 64 * 1024;

/// A journal of this length, in bytes, is worth being made shorter.
const COMPACT_BYTES: u64 = 1024 * 1024;

/// Where a device keeps its journals, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalSettings {
    /// The folder of this one device, which must exist; without it the journals are in memory, and end with the device.
    pub folder: Option<PathBuf>,
    /// Most COMMANDs that they hold, at most 4096.
    pub commands: usize,
    /// Most bytes of results that they hold, with the COMMANDs that are still to be done.
    pub bytes: usize,
    /// Of how many COMMANDs that are over each journal still knows the ids, the greatest ones.
    pub forgotten: usize,
    /// What is kept for other stores than the present one.
    pub retention: Retention,
}

impl Default for JournalSettings {
    fn default() -> Self {
        Self {
            folder: None,
            commands: 256,
            bytes: 256 * 1024 * 1024,
            forgotten: 4096,
            retention: Retention::default(),
        }
    }
}

/// The id of a COMMAND, *R*: a UUID, in the order in which its store made them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CommandId(u128);

impl CommandId {
    /// `None` where it is none that a store makes.
    pub(crate) fn of(id: &ResponseId) -> Option<Self> {
        let read = Uuid::try_parse(id.as_str()).ok().filter(|read| !read.is_nil())?;
        let mut text = Uuid::encode_buffer();
        // What is said of it has to be said in the same letters.
        (read.hyphenated().encode_lower(&mut text) == id.as_str()).then(|| Self(read.as_u128()))
    }

    pub(crate) fn to_response_id(self) -> Option<ResponseId> {
        let mut text = Uuid::encode_buffer();
        ResponseId::new(Uuid::from_u128(self.0).hyphenated().encode_lower(&mut text)).ok()
    }
}

/// A command in a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// The number of the journal, which it keeps when its store gets another id.
    pub(crate) journal: u32,
    pub(crate) id: CommandId,
}

/// The results of a command, when it is done.
pub(crate) enum Finished {
    /// Small ones, to be written into the journal.
    Small(Bytes),
    /// Large ones, which lie aside already.
    Aside { len: u64, crc: u32 },
    /// Large ones that could not be written.
    Unwritten(Bytes),
}

/// Where the results of a command are to be had.
pub(crate) enum Kept {
    Here(Bytes),
    Aside { len: u64, crc: u32 },
}

/// All journals of a device.
pub(crate) struct Journals {
    shelf: Shelf,
    boot: String,
    bounds: JournalSettings,
    journals: Vec<Journal>,
    next: u32,
}

struct Journal {
    number: u32,
    ledger: Ledger,
    log: Log,
    /// At which length to make it shorter.
    compact_at: u64,
}

impl Journals {
    /// Journals that end with the device.
    pub(crate) fn in_memory(bounds: &JournalSettings, boot: &str) -> Self {
        Self::new(Shelf::new(None), bounds.clone(), boot)
    }

    fn new(shelf: Shelf, bounds: JournalSettings, boot: &str) -> Self {
        Self { shelf, boot: boot.to_owned(), bounds, journals: Vec::new(), next: 0 }
    }

    fn add(&mut self, ledger: Ledger, log: Log, compact: bool) -> u32 {
        let (number, compact_at) = (self.next, COMPACT_BYTES);
        self.next += 1;
        let mut journal = Journal { number, ledger, log, compact_at };
        if compact {
            journal.compact();
        }
        self.journals.push(journal);
        number
    }

    /// The place of large results.
    pub(crate) fn shelf(&self) -> Shelf {
        self.shelf.clone()
    }

    /// The journal of a store, if there is one.
    pub(crate) fn find(&self, store: &str) -> Option<u32> {
        let mut journals = self.journals.iter();
        journals.find(|journal| journal.ledger.store == store).map(|journal| journal.number)
    }

    /// The journal of a store, a new one if there is none; what is held for the `former` id of that store moves there.
    /// Of what was held for the present id meanwhile, the ids stay.
    pub(crate) fn select(&mut self, store: &str, former: Option<&str>) -> u32 {
        if let Some(moved) = former.and_then(|former| self.find(former)) {
            let replaced = self.find(store).and_then(|number| self.journal(number));
            let ids: Vec<_> =
                replaced.into_iter().flat_map(|journal| journal.ledger.ids()).collect();
            ids.into_iter().for_each(|id| self.remember(Ticket { journal: moved, id }));
            self.retain(|held| held != store);
            if let Err(error) = self.write(moved, &Record::Store(store)) {
                tracing::warn!(%error, "failed to write the new id of the server's store");
                self.apply(moved, &Record::Store(store));
            }
            return moved;
        }
        self.find(store).unwrap_or_else(|| {
            let log = self.shelf.new_log(&Uuid::new_v4().simple().to_string());
            let ledger = Ledger::new(store, &self.boot, self.bounds.forgotten);
            self.add(ledger, log, false)
        })
    }

    /// Removes the journals of the stores that are not to be kept.
    pub(crate) fn retain(&mut self, keeps: impl Fn(&str) -> bool) {
        let (kept, gone) = std::mem::take(&mut self.journals)
            .into_iter()
            .partition(|journal| keeps(&journal.ledger.store));
        self.journals = kept;
        let gone: Vec<Journal> = gone;
        for journal in gone {
            journal.ledger.held.keys().for_each(|id| self.shelf.remove(*id));
            journal.log.remove();
        }
    }

    /// What REGISTER says of a store: the greatest id with a receipt, and all that is held.
    pub(crate) fn list(&self, store: &str) -> (Option<ResponseId>, Vec<Held>) {
        let journal = self.find(store).and_then(|number| self.journal(number));
        let Some(Journal { ledger, .. }) = journal else { return (None, Vec::new()) };
        (ledger.newest.and_then(CommandId::to_response_id), ledger.list())
    }

    /// What is known of a command. No two stores make the same id, unless one is a copy of the other: what was taken
    /// for the copy is over for the store itself, and the other way round.
    pub(crate) fn known(&self, ticket: Ticket) -> Known {
        let journal = self.journal(ticket.journal);
        match journal.map_or(Known::New, |journal| journal.ledger.known(ticket.id)) {
            Known::New if self.journals.iter().any(|other| other.ledger.has(ticket.id)) => {
                Known::Forgotten
            }
            known => known,
        }
    }

    /// The commands of a session that are held, and what a cancel of each is answered with, once it is done.
    pub(crate) fn of_session(
        &self,
        number: u32,
        session_id: &SessionId,
    ) -> Vec<(Ticket, Option<Word>)> {
        let held = self.journal(number).into_iter().flat_map(|journal| &journal.ledger.held);
        let its = held.filter(|(_, entry)| entry.session.as_ref() == Some(session_id));
        its.map(|(id, entry)| (Ticket { journal: number, id: *id }, entry.word())).collect()
    }

    /// The session of a command.
    pub(crate) fn session(&self, ticket: Ticket) -> Option<SessionId> {
        self.entry(ticket)?.session.clone()
    }

    /// Writes the receipt of a COMMAND: its text, as a frame has it.
    ///
    /// # Errors
    /// Why there is none, for its caller to read.
    pub(crate) fn receive(
        &mut self,
        ticket: Ticket,
        session_id: Option<&SessionId>,
        command: &[u8],
    ) -> Result<(), String> {
        let held = self.journals.iter().map(|journal| journal.ledger.held.len()).sum::<usize>();
        let bytes = self.bytes() + command.len() as u64;
        if held >= self.bounds.commands || bytes > self.most_bytes() {
            return Err("journal full".to_owned());
        }
        let session = session_id.map_or("", SessionId::as_str);
        let record = Record::Received { id: ticket.id, session, command };
        self.write(ticket.journal, &record).map_err(|error| unwritable(&error))
    }

    /// Notes that its first action is about to start, once.
    ///
    /// # Errors
    /// When that cannot be written, for its caller to read: it must not start then.
    pub(crate) fn start(&mut self, ticket: Ticket) -> Result<(), String> {
        match self.entry(ticket).map(|entry| &entry.stage) {
            Some(Stage::Received) => self
                .write(ticket.journal, &Record::Running(ticket.id))
                .map_err(|error| unwritable(&error)),
            Some(_) => Ok(()),
            None => Err("the server has settled it".to_owned()),
        }
    }

    /// Keeps the result of an action that others follow. Without it the action counts as interrupted after a crash.
    pub(crate) fn keep_action(&mut self, ticket: Ticket, result: &ActionResult) {
        let room = self.most_bytes().saturating_sub(self.bytes());
        if self.entry(ticket).is_none()
            || result.bytes() > ASIDE_BYTES
            || result.bytes() as u64 > room
        {
            return;
        }
        let one = ClientMessage {
            action_results: Some(vec![result.clone()]),
            ..ClientMessage::new(ClientMessageType::CommandResults, ClientType::Device)
        };
        let record = Record::Action { id: ticket.id, result: &one.encode() };
        if let Err(error) = self.write(ticket.journal, &record) {
            tracing::debug!(%error, "failed to keep the result of an action");
        }
    }

    /// Whether there is room for the results of a command.
    pub(crate) fn has_room(&self, ticket: Ticket, results: usize) -> bool {
        let own = self.entry(ticket).map_or(0, Entry::bytes);
        (self.bytes() - own).saturating_add(results as u64) <= self.most_bytes()
    }

    /// Notes the results of a command. They count also when they cannot be written. `false` when nobody wants them any
    /// more.
    pub(crate) fn finish(&mut self, ticket: Ticket, finished: Finished, was_stopped: bool) -> bool {
        let id = ticket.id;
        if self.entry(ticket).is_none() {
            self.shelf.remove(id);
            return false;
        }
        let (written, results) = match finished {
            Finished::Small(results) => {
                let record = Record::Done { id, was_stopped, results: &results };
                (self.write(ticket.journal, &record), Results::Memory(results))
            }
            Finished::Aside { len, crc } => {
                let record = Record::DoneAside { id, was_stopped, len, crc };
                (self.write(ticket.journal, &record), Results::Aside { len, crc })
            }
            Finished::Unwritten(results) => {
                (Err(io::ErrorKind::StorageFull.into()), Results::Memory(results))
            }
        };
        if let Err(error) = written {
            tracing::warn!(%error, "the results of a command cannot be written: a crash would lose them");
            let journal = self.journal_mut(ticket.journal);
            journal.into_iter().for_each(|journal| {
                journal.ledger.note(id, Stage::Done { results: results.clone(), was_stopped });
            });
        }
        true
    }

    /// Forgets all of a command but its id. Its results are gone.
    pub(crate) fn forget(&mut self, ticket: Ticket) {
        let Some(entry) = self.entry(ticket) else { return };
        if let Stage::Done { results: Results::Aside { .. }, .. } = entry.stage {
            self.shelf.remove(ticket.id);
        }
        self.write_over(ticket);
    }

    /// Keeps the id of a command that another journal knows, which may go before this one.
    pub(crate) fn remember(&mut self, ticket: Ticket) {
        if self.journal(ticket.journal).is_some_and(|journal| !journal.ledger.has(ticket.id)) {
            self.write_over(ticket);
        }
    }

    fn write_over(&mut self, ticket: Ticket) {
        let record = Record::Forgotten(ticket.id);
        if let Err(error) = self.write(ticket.journal, &record) {
            tracing::debug!(%error, "failed to write that a command is over");
            self.apply(ticket.journal, &record);
        }
    }

    /// The COMMAND, as it was received.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn command(&mut self, ticket: Ticket) -> io::Result<ServerMessage> {
        let span = self.entry(ticket).map(|entry| entry.command).ok_or(io::ErrorKind::NotFound)?;
        let journal = self.journal_mut(ticket.journal).ok_or(io::ErrorKind::NotFound)?;
        let text = journal.log.read(span)?;
        ServerMessage::decode(&text).map_err(io::Error::other)
    }

    /// The results of a command; `None` when it has none.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn results(&mut self, ticket: Ticket) -> io::Result<Option<Kept>> {
        let results = match self.entry(ticket).map(|entry| &entry.stage) {
            Some(Stage::Done { results, .. }) => results.clone(),
            _ => return Ok(None),
        };
        let kept = match results {
            Results::Memory(frame) => Kept::Here(frame),
            Results::Aside { len, crc } => Kept::Aside { len, crc },
            Results::Log(span) => {
                let journal = self.journal_mut(ticket.journal).ok_or(io::ErrorKind::NotFound)?;
                Kept::Here(journal.log.read(span)?)
            }
        };
        Ok(Some(kept))
    }

    const fn most_bytes(&self) -> u64 {
        self.bounds.bytes as u64
    }

    /// Of all journals.
    fn bytes(&self) -> u64 {
        self.journals.iter().map(|journal| journal.ledger.bytes()).sum()
    }

    fn journal(&self, number: u32) -> Option<&Journal> {
        self.journals.iter().find(|journal| journal.number == number)
    }

    fn journal_mut(&mut self, number: u32) -> Option<&mut Journal> {
        self.journals.iter_mut().find(|journal| journal.number == number)
    }

    fn entry(&self, ticket: Ticket) -> Option<&Entry> {
        self.journal(ticket.journal)?.ledger.held.get(&ticket.id)
    }

    fn write(&mut self, number: u32, record: &Record<'_>) -> io::Result<()> {
        let journal = self.journal_mut(number).ok_or(io::ErrorKind::NotFound)?;
        journal.write(record)
    }

    /// Takes in what could not be written.
    fn apply(&mut self, number: u32, record: &Record<'_>) {
        let journal = self.journal_mut(number);
        journal.into_iter().for_each(|journal| journal.ledger.apply(record, 0));
    }
}

impl Journal {
    fn write(&mut self, record: &Record<'_>) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(64 + record.tail());
        if self.log.len() == 0 {
            Record::Store(&self.ledger.store).write(&mut bytes);
            Record::Boot(&self.ledger.boot).write(&mut bytes);
        }
        record.write(&mut bytes);
        self.log.append(&bytes)?;
        self.ledger.apply(record, self.log.len());
        if self.log.len() >= self.compact_at {
            self.compact();
        }
        Ok(())
    }

    /// Makes the file shorter. When that fails, it stays as it is for a while.
    fn compact(&mut self) {
        if let Err(error) = self.try_compact() {
            tracing::warn!(%error, "failed to make a journal shorter");
        }
        self.compact_at = COMPACT_BYTES.max(self.log.len().saturating_mul(2));
    }

    fn try_compact(&mut self) -> io::Result<()> {
        let log = &mut self.log;
        let bytes = self.ledger.compacted(|span| log.read(span))?;
        let (ledger, _, _) = Ledger::read(&bytes, self.ledger.most_forgotten());
        self.log.replace(bytes)?;
        self.ledger = ledger;
        Ok(())
    }
}

/// What the caller of a COMMAND is told that cannot be written down.
fn unwritable(error: &io::Error) -> String {
    format!("this device cannot write its journal, so the command is not run: {error}")
}
