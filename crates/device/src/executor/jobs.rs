//! The COMMANDs that a device holds: how many, how heavy, and who stops which of them why.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use aip::{Command, Payload, ResponseId, ServerMessage, SessionId, Status};
use tokio_util::sync::CancellationToken;

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
}

impl Job {
    /// Keeps what is needed of a COMMAND.
    pub(super) fn of(command: ServerMessage) -> Self {
        Self {
            status: command.status,
            response_id: command.response_id,
            caller: Caller {
                agent_name: command.agent_name,
                root_name: command.root_name,
                session_id: command.session_id,
            },
            actions: command.actions.unwrap_or_default(),
        }
    }

    /// What it takes of memory, about, in bytes.
    fn bytes(&self) -> usize {
        let names = [&self.caller.agent_name, &self.caller.root_name];
        let names = names.into_iter().flatten().map(String::len).sum::<usize>();
        let action = |action: &Command| {
            let parameters = action.parameters.as_ref().map_or(0, Payload::len);
            size_of::<Command>() + action.tool_name.len() + parameters
        };
        size_of::<Self>() + names + self.actions.iter().map(action).sum::<usize>()
    }
}

/// Stops a COMMAND, and says why. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Stop {
    pub(super) token: CancellationToken,
    why: Arc<OnceLock<&'static str>>,
}

impl Stop {
    /// Why it was stopped, if it was: the beginning of a sentence.
    pub(super) fn why(&self) -> Option<&'static str> {
        self.why.get().copied()
    }

    fn because(&self, why: &'static str) {
        let _the_first_counts = self.why.set(why);
        self.token.cancel();
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
    pub(super) fn add(&mut self, job: &Job) -> Result<(u64, Stop), String> {
        let (Capacity { commands, bytes: most }, bytes) = (self.capacity, job.bytes());
        if self.is_leaving {
            return Err(super::LEAVING.to_owned());
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

    /// Stops those of a session.
    pub(super) fn stop_session(&self, session_id: &SessionId, why: &'static str) {
        let is_its = |held: &&Held| held.session_id.as_ref() == Some(session_id);
        self.held.values().filter(is_its).for_each(|held| held.stop.because(why));
    }

    /// Stops all.
    pub(super) fn stop_all(&self, why: &'static str) {
        self.held.values().for_each(|held| held.stop.because(why));
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
        let first = jobs.add(&job(1)).ok().unwrap().0;
        jobs.add(&job(1)).ok().unwrap();
        let why = jobs.add(&job(1)).err().unwrap();
        assert_eq!(why, "This device has 2 commands to do already");
        jobs.remove(first);
        assert!(jobs.add(&job(1)).is_ok());
    }

    #[test]
    fn commands_are_weighed_and_the_first_one_may_have_any_size() {
        let mut jobs = jobs(10, 5000);
        let heavy = jobs.add(&job(9000)).ok().unwrap().0;
        let why = jobs.add(&job(1)).err().unwrap();
        assert!(why.contains("over its limit of 5000 bytes"), "{why}");
        jobs.remove(heavy);
        assert_eq!(jobs.bytes, 0);
        for _ in 0..2 {
            jobs.add(&job(2000)).ok().unwrap();
        }
        assert!(jobs.add(&job(2000)).is_err() && jobs.add(&job(1)).is_ok());
    }

    #[test]
    fn results_that_wait_for_the_next_action_are_weighed_too() {
        let mut jobs = jobs(10, 5000);
        let first = jobs.add(&job(1)).ok().unwrap().0;
        assert!(jobs.keep_results(first, 9000).is_ok(), "it is alone");
        assert!(jobs.add(&job(1)).is_err());
        jobs.keep_results(first, 1000).unwrap();
        let second = jobs.add(&job(1)).ok().unwrap().0;
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
        let stop = jobs.add(&job(1)).ok().unwrap().1;
        assert_eq!(stop.why(), None);
        jobs.stop_all("One");
        jobs.stop_all("Two");
        assert_eq!((stop.why(), stop.token.is_cancelled()), (Some("One"), true));
    }
}
