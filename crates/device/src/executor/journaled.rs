//! COMMANDs that are in a journal: they are run once, whatever becomes of their connection, and their results stay
//! until the server has them.

use std::sync::Arc;

use aip::codec::Wire;
use aip::message::HeldState;
use aip::{ActionResult, ResponseId, ServerMessage};
use bytes::Bytes;
use link::Outbox;

use super::jobs::{Job, Stop, Why};
use super::line::Line;
use super::results::all_failed;
use super::{Executor, Run, Way};
use crate::journal::{ASIDE_BYTES, CommandId, Finished, Kept, Known, Ticket};

/// Why a command is stopped whose results the server does not want.
pub(super) const DISCARDED: &str = "stopped: the server has settled it";

/// What is said of a command that was executed and acknowledged.
const FORGOTTEN: &str = "already executed, results no longer kept";

/// What is said of a command whose id is so old that nothing is known of it.
const TOO_OLD: &str = "older than this device remembers, not run";

/// What is said of a command that cannot be told from others.
const NO_ID: &str = "its response_id is no UUID, so this device cannot keep a journal of it";

impl Executor {
    /// Takes a COMMAND on a connection that resumes commands. One that is known is not run again.
    pub(super) fn start_journaled(
        &self,
        journal: u32,
        command: ServerMessage,
        line: &Line,
        answered: impl FnOnce() + Send + 'static,
    ) {
        let id = command.response_id.as_ref().and_then(CommandId::of);
        let ticket = id.map(|id| Ticket { journal, id });
        let known = ticket.map(|ticket| (ticket, self.desk().journals.known(ticket)));
        let (ticket, error) = match known {
            None => (None, NO_ID),
            Some((ticket, Known::New)) => return self.receive(ticket, command, line, answered),
            // It may be one that a loss had kept from being sent, or from being started.
            Some((ticket, Known::Held(_))) => return self.go_on(vec![ticket]),
            Some((ticket, Known::Forgotten)) => {
                self.desk().journals.remember(ticket);
                (Some(ticket), FORGOTTEN)
            }
            Some((ticket, Known::TooOld)) => (Some(ticket), TOO_OLD),
        };
        tracing::debug!(?ticket, error, "a command is not run");
        let job = Job::of(command);
        self.refuse(&line.outbox, &job, all_failed(&job.actions, error));
        answered();
    }

    /// Writes the receipt, and runs the COMMAND.
    fn receive(
        &self,
        ticket: Ticket,
        command: ServerMessage,
        line: &Line,
        answered: impl FnOnce() + Send + 'static,
    ) {
        let receipt = command.encode();
        let job = Job::of(command);
        let taken = self.take(&job, Some(ticket)).and_then(|(number, stop)| {
            let session_id = job.caller.session_id.as_ref();
            let written = self.desk().journals.receive(ticket, session_id, &receipt);
            written.map(|()| (number, stop)).map_err(|error| {
                self.jobs().remove(number);
                all_failed(&job.actions, &error)
            })
        });
        match taken {
            Ok((number, stop)) => {
                self.spawn(Run { number, job, stop, way: Way::Journaled(ticket) }, answered);
            }
            Err(refusal) => {
                self.refuse(&line.outbox, &job, refusal);
                answered();
            }
        }
    }

    /// Has held commands go on: what is done is sent, what runs runs on, and what was never started is started.
    pub(super) fn go_on(&self, tickets: Vec<Ticket>) {
        let (mut done, mut received) = (Vec::new(), Vec::new());
        for ticket in tickets {
            let known = self.desk().journals.known(ticket);
            match known {
                Known::Held(HeldState::Done) => done.push(ticket),
                Known::Held(HeldState::Received) => received.push(ticket),
                _ => {}
            }
        }
        self.send_held(done);
        received.into_iter().for_each(|ticket| self.start_held(ticket, None));
    }

    /// Starts a command of which there is a receipt, unless it waits already; stopped at once if there is a reason.
    pub(super) fn start_held(&self, ticket: Ticket, why: Option<&'static str>) {
        if self.jobs().has(ticket) {
            return;
        }
        let read = self.desk().journals.command(ticket);
        let job = match read {
            Ok(command) => Job::of(command),
            Err(error) => {
                tracing::warn!(%error, "the receipt of a command cannot be read");
                return;
            }
        };
        match self.take(&job, Some(ticket)) {
            Ok((number, stop)) => {
                why.into_iter().for_each(|why| stop.because(Why::Borrowed(why)));
                self.spawn(Run { number, job, stop, way: Way::Journaled(ticket) }, || {});
            }
            Err(refusal) => {
                let answer = self.answer(&job, refusal);
                self.desk().journals.finish(ticket, Finished::Small(answer), false);
                self.send_held(vec![ticket]);
            }
        }
    }

    /// Stops a command that the server has settled, and forgets its results.
    pub(super) fn discard(&self, ticket: Ticket) {
        self.desk().journals.forget(ticket);
        self.jobs().stop_where(|held| held == Some(ticket), &Why::Borrowed(DISCARDED));
    }

    /// The server has the results of a COMMAND, or does not want them.
    pub(crate) fn handle_acknowledged(&self, response_id: &ResponseId) {
        let Some(id) = CommandId::of(response_id) else { return };
        let mut desk = self.desk();
        let Some(journal) = desk.line.as_ref().and_then(|line| line.journal) else { return };
        let ticket = Ticket { journal, id };
        if desk.journals.known(ticket) == Known::Held(HeldState::Done) {
            desk.journals.forget(ticket);
            drop(desk);
            self.0.spools.note_acknowledged(id);
        }
    }

    /// Keeps the results of a command. Returns the queue to send them through, if there is a connection for them, and
    /// the message.
    pub(super) async fn keep(
        &self,
        ticket: Ticket,
        job: &Job,
        mut answer: Bytes,
        stop: &Stop,
    ) -> (Option<Arc<Outbox>>, Bytes) {
        if !self.desk().journals.has_room(ticket, answer.len()) {
            let error = format!("executed, but its {} bytes of results did not fit", answer.len());
            let failed: Vec<ActionResult> = all_failed(&job.actions, &error);
            let at = self.0.ambient.time_text();
            answer = super::results::answer(&self.0.client_id, &at, job, failed);
        }
        let finished = match answer.len() {
            ..=ASIDE_BYTES => Finished::Small(answer.clone()),
            _ => self.put_aside(ticket.id, &answer).await,
        };
        let mut desk = self.desk();
        let is_wanted = desk.journals.finish(ticket, finished, stop.has_hit());
        let line = desk.line_of(ticket.journal).filter(|_| is_wanted);
        (line.map(|line| line.outbox.clone()), answer)
    }

    /// Writes large results into a file of their own, on another thread.
    async fn put_aside(&self, id: CommandId, results: &Bytes) -> Finished {
        let (shelf, written) = (self.desk().journals.shelf(), results.clone());
        let putting = tokio::task::spawn_blocking(move || shelf.put(id, &written));
        match putting.await.map_err(std::io::Error::other).and_then(|put| put) {
            Ok(crc) => Finished::Aside { len: results.len() as u64, crc },
            Err(error) => {
                tracing::warn!(%error, "failed to write large results");
                Finished::Unwritten(results.clone())
            }
        }
    }

    /// Sends the results of commands that are done, one after the other, on the connection of the moment.
    pub(super) fn send_held(&self, tickets: Vec<Ticket>) {
        let Some(line) = self.line().filter(|_| !tickets.is_empty()) else { return };
        let executor = self.clone();
        let sending = async move {
            for ticket in tickets {
                if let Some(results) = executor.read_results(ticket).await {
                    line.outbox.push_in_turn(results, || {}).await;
                }
            }
        };
        self.0.ambient.spawn(self.0.tasks.track_future(sending));
    }

    /// The results of a command. Damaged ones are told as such: it is settled then, and not run again.
    async fn read_results(&self, ticket: Ticket) -> Option<Bytes> {
        let kept = self.desk().journals.results(ticket);
        let read = match kept {
            Ok(None) => return None,
            Ok(Some(Kept::Here(frame))) => Ok(frame),
            Ok(Some(Kept::Aside { len, crc })) => {
                let shelf = self.desk().journals.shelf();
                let reading =
                    tokio::task::spawn_blocking(move || shelf.take_out(ticket.id, len, crc));
                reading.await.map_err(std::io::Error::other).and_then(|read| read)
            }
            Err(error) => Err(error),
        };
        read.or_else(|error| self.unreadable_results(ticket, &error).ok_or(error)).ok()
    }

    fn unreadable_results(&self, ticket: Ticket, error: &std::io::Error) -> Option<Bytes> {
        tracing::warn!(%error, "the results of a command cannot be read");
        let session_id = self.desk().journals.session(ticket);
        let about = aip::ClientMessage {
            session_id,
            client_id: Some(self.0.client_id.clone()),
            prev_response_id: ticket.id.to_response_id(),
            action_results: Some(vec![ActionResult::failure(
                None,
                format!("executed, but its results cannot be read any more: {error}"),
            )]),
            timestamp: Some(self.0.ambient.time_text()),
            status: aip::Status::Continue,
            ..aip::ClientMessage::new(
                aip::ClientMessageType::CommandResults,
                aip::ClientType::Device,
            )
        };
        Some(about.encode())
    }
}
