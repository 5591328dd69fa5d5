//! Questions to devices for what they have kept of what a command wrote. The answers go to who asked, and are not stored.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use aip::message::{Channel, Chunk, Feature, ReadSpool, Spooled};
use aip::{ResponseId, SessionId};
use tokio::sync::oneshot;

use super::parties::Via;
use super::{Hub, Moment, queue};
use crate::session::{Incarnation, ask_device};

/// The most questions that are open.
const MAX_OPEN: usize = 1024;

/// A stream of a command, on the device that had it.
#[derive(Debug, Clone)]
pub(crate) struct SpoolPlace {
    pub(crate) device: Incarnation,
    pub(crate) session_id: SessionId,
    pub(crate) response_id: ResponseId,
    pub(crate) stream: Channel,
}

/// A question that is open: its number, and where its answer comes.
pub(crate) type Question = (u64, oneshot::Receiver<Vec<Chunk>>);

/// Why a device cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CannotAsk {
    /// It has no connection.
    Away,
    /// It keeps nothing.
    KeepsNothing,
    /// Too many questions are open.
    TooMany,
}

/// The questions that are open.
#[derive(Debug, Default)]
pub(super) struct Questions {
    last: u64,
    open: HashMap<u64, (Incarnation, oneshot::Sender<Vec<Chunk>>)>,
}

impl Hub {
    /// Asks for what a device has kept from an offset on. Who asks has to forget the question in the end.
    ///
    /// # Errors
    /// When it cannot be asked now.
    pub(crate) fn ask_for_spool(
        &mut self,
        moment: &Moment<'_>,
        place: &SpoolPlace,
        from: u64,
    ) -> Result<Question, CannotAsk> {
        let device = self.parties.handle(place.device).ok_or(CannotAsk::Away)?;
        if !device.has(Feature::Output) {
            return Err(CannotAsk::KeepsNothing);
        }
        if self.questions.open.len() >= MAX_OPEN {
            return Err(CannotAsk::TooMany);
        }
        self.questions.last += 1;
        let id = self.questions.last;
        let asked = ReadSpool { id, stream: place.stream, from };
        queue(device, ask_device(&place.session_id, &place.response_id, &asked, moment.text()));
        let (sender, receiver) = oneshot::channel();
        self.questions.open.insert(id, (place.device, sender));
        Ok((id, receiver))
    }

    /// Nobody waits for an answer any more.
    pub(crate) fn forget_question(&mut self, id: u64) {
        self.questions.open.remove(&id);
    }

    /// A device answers. What it was not asked is nobody's.
    pub(crate) fn handle_spooled(&mut self, via: Via, spooled: Spooled) {
        let Spooled { id, chunks } = spooled;
        if let Entry::Occupied(question) = self.questions.open.entry(id)
            && question.get().0 == via.identity
        {
            // Who asked may have left meanwhile.
            let _left = question.remove().1.send(chunks);
        }
    }
}
