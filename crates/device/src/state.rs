//! How a device is doing: a [`DeviceState`] in a `watch`, which only `StateKeeper` changes.

use std::time::Duration;

use aip::{Command, SessionId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// How a device is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Whether a server has it right now.
    pub is_connected: bool,
    /// Since when that is so.
    pub since: Timestamp,
    /// What went wrong last with the connection.
    pub last_error: Option<LastError>,
    /// Tries to connect that failed, since it was connected last.
    pub tries: u32,
    /// When it tries again; in the past while it tries.
    pub next_try: Option<Timestamp>,
    /// The COMMANDs of which an action runs, in the order in which these began.
    pub running: Vec<Running>,
    /// How many wait for a place, for the owner's answer, or for the start of an MCP server.
    pub waiting: usize,
    /// What it has done since it was started.
    pub counts: Counts,
    /// Each MCP server's name, and how it is.
    pub mcp_servers: Vec<(String, String)>,
}

/// What went wrong last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// When.
    pub at: Timestamp,
    /// Why: text that may come from the server, to be escaped before it is shown.
    pub text: String,
}

/// A COMMAND of which an action runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// A number of its own.
    pub number: u64,
    /// Its task, if the server says so.
    pub session_id: Option<String>,
    /// The tools it calls, one after the other: names from the server, to be escaped before they are shown.
    pub tools: Vec<String>,
    /// Since when the action that is under way runs.
    pub since: Timestamp,
}

/// What a device has done since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Connections that a server confirmed.
    pub connections: u64,
    /// COMMANDs that were answered.
    pub commands: u64,
    /// Those of them with an action that failed.
    pub failed: u64,
}

/// Most tools of one COMMAND that are named.
const MAX_TOOLS: usize = 8;

/// The longest name of a tool that is kept, in characters.
const MAX_NAME: usize = 100;

/// The longest text that is kept, in characters.
const MAX_TEXT: usize = 500;

/// The one place where the state is changed.
#[derive(Debug)]
pub(crate) struct StateKeeper(watch::Sender<DeviceState>);

impl StateKeeper {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(DeviceState {
            is_connected: false,
            since: Timestamp::now(),
            last_error: None,
            tries: 0,
            next_try: None,
            running: Vec::new(),
            waiting: 0,
            counts: Counts::default(),
            mcp_servers: Vec::new(),
        }))
    }

    pub(crate) fn watch(&self) -> watch::Receiver<DeviceState> {
        self.0.subscribe()
    }

    pub(crate) fn connected(&self) {
        self.0.send_modify(|state| {
            (state.is_connected, state.since) = (true, Timestamp::now());
            (state.tries, state.next_try) = (0, None);
            state.counts.connections += 1;
        });
    }

    /// The connection is gone, or could not be made.
    pub(crate) fn disconnected(&self, why: &str, retry: Option<Duration>) {
        let now = Timestamp::now();
        self.0.send_modify(|state| {
            if std::mem::take(&mut state.is_connected) {
                state.since = now;
            } else {
                state.tries = state.tries.saturating_add(1);
            }
            state.last_error = Some(LastError { at: now, text: head(why, MAX_TEXT) });
            state.next_try = retry.and_then(|wait| now.checked_add(wait).ok());
        });
    }

    /// An action of a COMMAND has to wait for its turn, until what is returned is dropped.
    pub(crate) fn waits(&self) -> impl Drop + '_ {
        self.0.send_modify(|state| state.waiting += 1);
        OnDrop(|| self.0.send_modify(|state| state.waiting -= 1))
    }

    /// An action of a COMMAND runs, until what is returned is dropped.
    pub(crate) fn runs(
        &self,
        number: u64,
        session_id: Option<&SessionId>,
        actions: &[Command],
    ) -> impl Drop + '_ {
        let name = |action: &Command| head(&action.tool_name, MAX_NAME);
        let running = Running {
            number,
            session_id: session_id.map(ToString::to_string),
            tools: actions.iter().map(name).take(MAX_TOOLS).collect(),
            since: Timestamp::now(),
        };
        self.0.send_modify(|state| state.running.push(running));
        OnDrop(move || {
            self.0.send_modify(|state| state.running.retain(|running| running.number != number));
        })
    }

    /// How an MCP server is now.
    pub(crate) fn mcp_server(&self, namespace: &str, is: String) {
        self.0.send_modify(|state| {
            match state.mcp_servers.iter_mut().find(|(name, _)| name == namespace) {
                Some(known) => known.1 = is,
                None => state.mcp_servers.push((namespace.to_owned(), is)),
            }
        });
    }

    /// A COMMAND was answered.
    pub(crate) fn answered(&self, failed: bool) {
        self.0.send_modify(|state| {
            state.counts.commands += 1;
            state.counts.failed += u64::from(failed);
        });
    }
}

/// Does something when it is dropped, however that comes about.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn head(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_count_from_the_last_connection_on() {
        let keeper = StateKeeper::new();
        let state = keeper.watch();
        keeper.disconnected("refused", Some(Duration::from_secs(1)));
        keeper.disconnected("refused", Some(Duration::from_secs(2)));
        assert_eq!((state.borrow().tries, state.borrow().is_connected), (2, false));
        let started = state.borrow().since;
        keeper.connected();
        assert_eq!((state.borrow().tries, state.borrow().is_connected), (0, true));
        assert!(state.borrow().next_try.is_none() && state.borrow().since >= started);
        keeper.disconnected("lost", None);
        let state = state.borrow();
        assert_eq!((state.tries, state.counts.connections), (0, 1));
        assert_eq!(state.last_error.as_ref().map(|error| error.text.as_str()), Some("lost"));
    }

    #[test]
    fn what_runs_is_shown_until_it_is_dropped() {
        let keeper = StateKeeper::new();
        let state = keeper.watch();
        let running = [1, 2].map(|number| keeper.runs(number, None, &[]));
        let waits = keeper.waits();
        assert_eq!((state.borrow().running.len(), state.borrow().waiting), (2, 1));
        drop((running, waits));
        assert_eq!((state.borrow().running.len(), state.borrow().waiting), (0, 0));
    }
}
