//! The COMMANDs that a device holds: how many, how heavy, and who stops which of them why.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use aip::message::CommandNote;
use aip::{Command, Payload, ResponseId, ServerMessage, SessionId, Status};
use tokio_util::sync::CancellationToken;

use crate::flow::Flow;
use crate::journal::{CommandId, Ticket};
use crate::tools::Caller;

/// What an action before its turn is told when the results before it are too heavy to be kept.
const TOO_HEAVY: &str =
    "Not run: this device holds too many bytes of commands and results to keep those before it";

/// Bounds on the COMMANDs that a device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Most COMMANDs that run or wait.
    pub commands: usize,
    /// Most bytes of them, with the results that they have so far. A single COMMAND may have any size.
    pub bytes: usize,
}

/// A COMMAND, as it is kept.
pub(super) struct Job {
    pub(super) status: Status,
    pub(super) response_id: Option<ResponseId>,
    pub(super) caller: Caller,
    pub(super) actions: Vec<Command>,
    /// The streams of its one action, where its requester wants any.
    pub(super) flow: Option<Flow>,
    /// Whether what that action writes is kept for later.
    pub(super) is_spooled: bool,
}

impl Job {
    /// Keeps what is needed of a COMMAND.
    pub(super) fn of(command: ServerMessage) -> Self {
        let note = CommandNote::of(command.result.as_ref()).unwrap_or_default();
        let streams = note.streams;
        let (flow, is_spooled) = match command.actions.as_deref() {
            Some([action]) => (
                streams.and_then(|own| Flow::of(own, action.call_id.clone())),
                streams.is_some_and(|own| own.spool),
            ),
            _ => (None, false),
        };
        Self {
            flow,
            is_spooled,
            status: command.status,
            response_id: command.response_id,
            caller: Caller {
                agent_name: command.agent_name,
                root_name: command.root_name,
                session_id: command.session_id,
                requester: note.requester,
                key: note.key,
            },
            actions: command.actions.unwrap_or_default(),
        }
    }

    /// What it takes of memory, about, in bytes.
    fn bytes(&self) -> usize {
        let Caller { agent_name, root_name, requester, key, .. } = &self.caller;
        let names = [agent_name, root_name, requester, key];
        let names = names.into_iter().flatten().map(String::len).sum::<usize>();
        let action = |action: &Command| {
            let parameters = action.parameters.as_ref().map_or(0, Payload::len);
            size_of::<Command>() + action.tool_name.len() + parameters
        };
        size_of::<Self>() + names + self.actions.iter().map(action).sum::<usize>()
    }
}

/// Why a COMMAND is stopped: the beginning of a sentence.
pub(super) type Why = Cow<'static, str>;

/// Stops a COMMAND, and says why and what came of it. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Stop {
    pub(super) token: CancellationToken,
    /// Cancelled when the COMMAND is over.
    pub(super) over: CancellationToken,
    shared: Arc<StopShared>,
}

#[derive(Default)]
struct StopShared {
    why: OnceLock<Why>,
    /// Whether an action failed because of it.
    has_hit: AtomicBool,
    /// Whether somebody waits to confirm it.
    is_awaited: AtomicBool,
}

impl Stop {
    /// Why it was stopped, if it was.
    pub(super) fn why(&self) -> Option<&str> {
        self.shared.why.get().map(|why| &**why)
    }

    pub(super) fn because(&self, why: Why) {
        let _the_first_counts = self.shared.why.set(why);
        self.token.cancel();
    }

    /// An action failed because of it.
    pub(super) fn hit(&self) {
        self.shared.has_hit.store(true, Ordering::Relaxed);
    }

    /// Whether an action failed because of it.
    pub(super) fn has_hit(&self) -> bool {
        self.shared.has_hit.load(Ordering::Relaxed)
    }

    /// Whether somebody waited already to confirm it; from now on somebody does, or does not.
    pub(super) fn set_awaited(&self, is_awaited: bool) -> bool {
        self.shared.is_awaited.swap(is_awaited, Ordering::Relaxed)
    }
}

/// The COMMANDs that run or wait.
pub(super) struct Jobs {
    capacity: Capacity,
    next: u64,
    held: BTreeMap<u64, Held>,
    /// Of all that is held.
    bytes: usize,
    /// Nothing new is taken.
    is_leaving: bool,
}

struct Held {
    session_id: Option<SessionId>,
    response_id: Option<ResponseId>,
    /// Its place in a journal, where it is in one: a lost connection does not stop it then.
    ticket: Option<Ticket>,
    flow: Option<Flow>,
    stop: Stop,
    command_bytes: usize,
    result_bytes: usize,
}

impl Jobs {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self { capacity, next: 0, held: BTreeMap::new(), bytes: 0, is_leaving: false }
    }

    /// Makes room for one more.
    ///
    /// # Errors
    /// Why there is none, for the caller to read.
    pub(super) fn add(&mut self, job: &Job, ticket: Option<Ticket>) -> Result<(u64, Stop), String> {
        let (Capacity { commands, bytes: most }, bytes) = (self.capacity, job.bytes());
        if self.is_leaving {
            return Err(format!("{}: {}", super::LEAVING, super::NOT_RUN));
        }
        if self.held.len() >= commands {
            return Err(format!("This device has {commands} commands to do already"));
        }
        if !self.held.is_empty() && self.bytes + bytes > most {
            return Err(format!(
                "This device has {} bytes of commands to do already: together with this one's {bytes} bytes \
                 it is over its limit of {most} bytes; try again later",
                self.bytes
            ));
        }
        let (number, stop) = (self.next, Stop::default());
        self.next += 1;
        self.bytes += bytes;
        let held = Held {
            session_id: job.caller.session_id.clone(),
            response_id: job.response_id.clone(),
            ticket,
            flow: job.flow.clone(),
            stop: stop.clone(),
            command_bytes: bytes,
            result_bytes: 0,
        };
        self.held.insert(number, held);
        Ok((number, stop))
    }

    /// Makes room for the results that a COMMAND has so far, all of them, before it goes on.
    ///
    /// # Errors
    /// When there is none, for the caller to read.
    pub(super) fn keep_results(&mut self, number: u64, bytes: usize) -> Result<(), &'static str> {
        let is_alone = self.held.len() == 1;
        let Some(held) = self.held.get_mut(&number) else { return Ok(()) };
        let all = self.bytes - held.result_bytes + bytes;
        if all > self.capacity.bytes && !is_alone {
            return Err(TOO_HEAVY);
        }
        (self.bytes, held.result_bytes) = (all, bytes);
        Ok(())
    }

    /// Forgets one that is over.
    pub(super) fn remove(&mut self, number: u64) {
        if let Some(held) = self.held.remove(&number) {
            self.bytes -= held.command_bytes + held.result_bytes;
        }
    }

    /// Takes nothing new from now on.
    pub(super) fn close(&mut self) {
        self.is_leaving = true;
    }

    /// The streams of a COMMAND that runs or waits.
    pub(super) fn flow(&self, response_id: &ResponseId) -> Option<Flow> {
        let mut held = self.held.values();
        held.find(|held| held.response_id.as_ref() == Some(response_id))?.flow.clone()
    }

    /// There is another connection: what was not taken of any stream is said again.
    pub(super) fn rewind(&self) {
        self.held.values().filter_map(|held| held.flow.as_ref()).for_each(Flow::rewind);
    }

    /// Whether this one of a journal runs or waits.
    pub(super) fn has(&self, ticket: Ticket) -> bool {
        self.held.values().any(|held| held.ticket == Some(ticket))
    }

    /// Whether the one with this id runs or waits, in whichever journal.
    pub(super) fn has_id(&self, id: CommandId) -> bool {
        self.held.values().any(|held| held.ticket.is_some_and(|ticket| ticket.id == id))
    }

    /// Whether there is any.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Stops those of a session. Returns the id of each, and where it is seen when it is over.
    pub(super) fn stop_session(
        &self,
        session_id: &SessionId,
        why: &'static str,
    ) -> Vec<(ResponseId, Stop)> {
        let its = self.held.values().filter(|held| held.session_id.as_ref() == Some(session_id));
        its.inspect(|held| held.stop.because(Why::Borrowed(why)))
            .filter_map(|held| Some((held.response_id.clone()?, held.stop.clone())))
            .collect()
    }

    /// Stops those of which this is so; `None` is one in no journal.
    pub(super) fn stop_where(&self, is_so: impl Fn(Option<Ticket>) -> bool, why: &Why) {
        let its = self.held.values().filter(|held| is_so(held.ticket));
        its.for_each(|held| held.stop.because(why.clone()));
    }

    /// Stops all.
    pub(super) fn stop_all(&self, why: &'static str) {
        self.stop_where(|_| true, &Why::Borrowed(why));
    }
}

#[cfg(test)]
mod tests {
    use aip::{ServerMessageType, ToolType};

    use super::*;

    fn job(bytes: usize) -> Job {
        let action = Command {
            tool_name: String::new(),
            parameters: Some(Payload::string(&"x".repeat(bytes))),
            tool_type: ToolType::Action,
            call_id: None,
        };
        let command = ServerMessage::new(ServerMessageType::Command, Status::Continue);
        Job::of(ServerMessage { actions: Some(vec![action]), ..command })
    }

    fn jobs(commands: usize, bytes: usize) -> Jobs {
        Jobs::new(Capacity { commands, bytes })
    }

    #[test]
    fn commands_are_counted() {
        let mut jobs = jobs(2, 1 << 20);
        let first = jobs.add(&job(1), None).ok().unwrap().0;
        jobs.add(&job(1), None).ok().unwrap();
        let why = jobs.add(&job(1), None).err().unwrap();
        assert_eq!(why, "This device has 2 commands to do already");
        jobs.remove(first);
        assert!(jobs.add(&job(1), None).is_ok());
    }

    #[test]
    fn commands_are_weighed_and_the_first_one_may_have_any_size() {
        let mut jobs = jobs(10, 5000);
        let heavy = jobs.add(&job(9000), None).ok().unwrap().0;
        let why = jobs.add(&job(1), None).err().unwrap();
        assert!(why.contains("over its limit of 5000 bytes"), "{why}");
        jobs.remove(heavy);
        assert_eq!(jobs.bytes, 0);
        for _ in 0..2 {
            jobs.add(&job(2000), None).ok().unwrap();
        }
        assert!(jobs.add(&job(2000), None).is_err() && jobs.add(&job(1), None).is_ok());
    }

    #[test]
    fn results_that_wait_for_the_next_action_are_weighed_too() {
        let mut jobs = jobs(10, 5000);
        let first = jobs.add(&job(1), None).ok().unwrap().0;
        assert!(jobs.keep_results(first, 9000).is_ok(), "it is alone");
        assert!(jobs.add(&job(1), None).is_err());
        jobs.keep_results(first, 1000).unwrap();
        let second = jobs.add(&job(1), None).ok().unwrap().0;
        jobs.keep_results(second, 1000).unwrap();
        assert!(jobs.keep_results(second, 4000).unwrap_err().starts_with("Not run: "));
        for number in [first, second] {
            jobs.remove(number);
        }
        assert_eq!(jobs.bytes, 0);
    }

    #[test]
    fn the_first_reason_for_a_stop_counts() {
        let mut jobs = jobs(10, 5000);
        let stop = jobs.add(&job(1), None).ok().unwrap().1;
        assert_eq!(stop.why(), None);
        jobs.stop_all("One");
        jobs.stop_all("Two");
        assert_eq!((stop.why(), stop.token.is_cancelled()), (Some("One"), true));
    }
}
