//! What a device that starts finds in its journals: a torn end is cut off, and what was cut off in its work is done.

use std::collections::HashSet;
use std::io;

use aip::codec::Wire;
use aip::{ActionResult, ClientMessage, ServerMessage};
use bytes::Bytes;

use super::disk::{Log, Shelf, aside_name};
use super::ledger::{Ledger, Results, Span, Stage};
use super::record::{Record, Unreadable};
use super::{ASIDE_BYTES, CommandId, JournalSettings, Journals};

/// Makes COMMAND_RESULTS of a COMMAND that was interrupted, with the results of the actions before.
pub(crate) type Interrupt<'a> = &'a dyn Fn(ServerMessage, Vec<ActionResult>) -> Bytes;

impl Journals {
    /// Reads the journals of a device, whose client holds the lock of their folder. What was cut off is done now.
    /// `true` when one has lost in this boot what its server may rely on.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn open(
        bounds: JournalSettings,
        boot: &str,
        interrupt: Interrupt<'_>,
    ) -> io::Result<(Self, bool)> {
        let mut journals = Self::new(Shelf::new(bounds.folder.as_deref()), bounds, boot);
        let (logs, mut is_damaged) = (journals.shelf.logs()?, false);
        for (log, bytes) in logs {
            is_damaged |= journals.load(log, &bytes, interrupt);
        }
        if is_damaged {
            journals.count_anew();
        }
        journals.sweep();
        Ok((journals, is_damaged))
    }

    fn load(&mut self, mut log: Log, bytes: &[u8], interrupt: Interrupt<'_>) -> bool {
        let (mut ledger, read, why) = Ledger::read(bytes, self.bounds.forgotten);
        if let Some(why) = why {
            tracing::warn!(
                store = ledger.store,
                kept = read,
                of = bytes.len(),
                ?why,
                "the end of a journal cannot be read and is cut off"
            );
            if let Err(error) = log.cut(read as u64) {
                tracing::warn!(%error, "failed to cut the end of a journal off");
            }
        }
        let is_of_this_boot = ledger.boot == self.boot;
        // One that is damaged at its very beginning does not say in which boot it was written.
        let is_damaged =
            why == Some(Unreadable::Damaged) && (is_of_this_boot || ledger.boot.is_empty());
        if ledger.store.is_empty() {
            log.remove();
            return is_damaged;
        }
        for id in ledger.interrupted(is_damaged || !is_of_this_boot) {
            self.interrupt(&mut ledger, id, bytes, interrupt);
        }
        ledger.boot.clone_from(&self.boot);
        self.add(ledger, log, true);
        is_damaged
    }

    /// The device has a journal of another name from now on, and no server has sent anything to that one: the greatest
    /// receipt would say that the server has forgotten what it sent.
    fn count_anew(&mut self) {
        for journal in &mut self.journals {
            journal.ledger.newest = None;
            journal.compact();
        }
    }

    /// Makes a command that was cut off one that is done.
    fn interrupt(
        &self,
        ledger: &mut Ledger,
        id: CommandId,
        bytes: &[u8],
        interrupt: Interrupt<'_>,
    ) {
        let part = |span: Span| {
            let at = usize::try_from(span.at).ok()?;
            bytes.get(at..at.checked_add(span.len)?).map(Bytes::copy_from_slice)
        };
        let Some(entry) = ledger.held.get(&id) else { return };
        let command = part(entry.command).and_then(|text| ServerMessage::decode(&text).ok());
        let results = entry
            .actions
            .iter()
            .filter_map(|span| ClientMessage::decode(&part(*span)?).ok()?.action_results?.pop());
        let Some(command) = command else {
            return ledger.apply(&Record::Forgotten(id), 0);
        };
        let frame = interrupt(command, results.collect());
        let aside = (frame.len() > ASIDE_BYTES).then(|| self.shelf.put(id, &frame));
        let results = match aside {
            Some(Ok(crc)) => Results::Aside { len: frame.len() as u64, crc },
            _ => Results::Memory(frame),
        };
        ledger.note(id, Stage::Done { results, was_stopped: true });
    }

    /// Removes the results that no journal knows of.
    fn sweep(&self) {
        let held: Vec<_> =
            self.journals.iter().flat_map(|journal| journal.ledger.held.keys()).collect();
        let names: HashSet<_> = held.into_iter().map(|id| aside_name(*id)).collect();
        self.shelf.sweep(|path| {
            path.file_name().is_some_and(|name| names.contains(&*name.to_string_lossy()))
        });
    }
}
