//! The connection of the moment: what comes and goes with it, and the journals, which stay.

use std::sync::Arc;
use std::time::Duration;

use aip::ResponseId;
use aip::message::{Held, Instruction, Resumed};
use link::Outbox;
use tokio::task::JoinHandle;

use super::jobs::Why;
use super::{Executor, LOST};
use crate::journal::{CommandId, Journals, Ticket};

/// How long a server waits for its device that does not say so.
const USUAL_WINDOW: Duration = Duration::from_secs(120);

/// A confirmed connection.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) outbox: Arc<Outbox>,
    /// Whether the server wants to hear what tools tell while they run.
    pub(crate) tells: bool,
    /// Whether it is told what became of commands that it cancels.
    pub(crate) confirms: bool,
    /// The journal of its store, if it resumes commands.
    pub(crate) journal: Option<u32>,
}

/// What the connection of the moment shares with the commands.
pub(super) struct Desk {
    pub(super) journals: Journals,
    pub(super) line: Option<Line>,
    /// How long the server waits for this device.
    window: Duration,
    /// Stops the commands when that is over; there while there is no connection.
    closing: Option<JoinHandle<()>>,
}

impl Desk {
    pub(super) fn new(journals: Journals) -> Self {
        Self { journals, line: None, window: USUAL_WINDOW, closing: None }
    }

    /// The connection, if it is one to the store of this journal.
    pub(super) fn line_of(&self, journal: u32) -> Option<&Line> {
        self.line.as_ref().filter(|line| line.journal == Some(journal))
    }
}

impl Executor {
    /// The connection of the moment.
    pub(super) fn line(&self) -> Option<Line> {
        self.desk().line.clone()
    }

    pub(super) fn line_of(&self, journal: u32) -> Option<Line> {
        self.desk().line_of(journal).cloned()
    }

    /// What REGISTER says that is held for a store.
    pub(crate) fn list(&self, store: Option<&str>) -> (Option<ResponseId>, Vec<Held>) {
        store.map_or_else(Default::default, |store| self.desk().journals.list(store))
    }

    /// A server that resumes nothing confirmed this device. What runs for another one has lost its connection.
    pub(crate) fn handle_connected(&self, line: Line) {
        self.open(Line { journal: None, ..line });
    }

    /// A server that resumes commands confirmed this device: does what it says about each. What is held for the
    /// `former` id of its store counts for the present one; of other stores those are kept of which `keeps` is true.
    pub(crate) fn handle_resumed(
        &self,
        line: Line,
        resumed: &Resumed,
        former: Option<&str>,
        keeps: impl Fn(&str) -> bool,
    ) {
        let journal = {
            let mut desk = self.desk();
            let journal = desk.journals.select(&resumed.store, former);
            desk.journals.retain(|store| store == resumed.store || keeps(store));
            let window = resumed.resume_window_s.map(Duration::try_from_secs_f64);
            desk.window = window.and_then(Result::ok).unwrap_or(USUAL_WINDOW);
            journal
        };
        self.open(Line { journal: Some(journal), ..line });
        let mut wanted = Vec::new();
        for (id, instruction) in &resumed.commands {
            let Some(id) = CommandId::of(id) else { continue };
            let ticket = Ticket { journal, id };
            match instruction {
                Instruction::Send | Instruction::Continue => wanted.push(ticket),
                Instruction::Discard => self.discard(ticket),
            }
        }
        self.go_on(wanted);
    }

    /// Takes a connection into use.
    fn open(&self, line: Line) {
        let journal = line.journal;
        self.forget_window();
        self.desk().line = Some(line);
        let is_others = |ticket: Option<Ticket>| ticket.map(|ticket| ticket.journal) != journal;
        self.jobs().stop_where(is_others, &Why::Borrowed(LOST));
        self.jobs().rewind();
    }

    /// Nothing is stopped any more because the server stays away.
    pub(super) fn forget_window(&self) {
        self.desk().closing.take().iter().for_each(JoinHandle::abort);
    }

    /// The connection is gone. What is in no journal is stopped: without a way to deliver results, going on would only
    /// keep the machine busy. What is in one goes on as long as the server waits for this device.
    pub(crate) fn handle_disconnected(&self) {
        let mut desk = self.desk();
        let Some(line) = desk.line.take() else { return };
        self.jobs().stop_where(|ticket| ticket.is_none(), &Why::Borrowed(LOST));
        if line.journal.is_some() {
            let (executor, window) = (self.clone(), desk.window);
            desk.closing = Some(self.0.ambient.spawn(async move {
                link::elapse(window).await;
                let why = format!("stopped: no server for {} s", window.as_secs());
                executor.jobs().stop_where(|_| true, &Why::Owned(why));
            }));
        }
    }
}
