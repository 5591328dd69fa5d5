//! How an MCP server is doing: as those see it who wait for it, and as its owner is told.
//!
//! It must not know what makes it so.

use std::fmt;
use std::time::Duration;

use super::client::McpClient;

/// How a server is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerState {
    /// It is being started, or connected to.
    Starting,
    /// It runs.
    Up {
        /// How many tools it has.
        tools: usize,
    },
    /// It does not run, or there is no connection to it.
    Down {
        /// Why.
        why: String,
        /// When it is tried again, unless a call has it tried earlier.
        retry: Duration,
    },
    /// It was stopped.
    Stopped,
}

/// What happens to an MCP server, for whoever shows it. In words it completes "the server …".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerEvent {
    /// The server.
    pub namespace: String,
    /// Whether it is a program that the device starts, and not one that it only connects to.
    pub is_program: bool,
    /// How it is now. While it stays down, only another reason is told.
    pub state: ServerState,
}

impl fmt::Display for ServerEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.state, self.is_program) {
            (ServerState::Starting, true) => f.write_str("starting"),
            (ServerState::Starting, false) => f.write_str("connecting"),
            (ServerState::Up { tools }, true) => write!(f, "runs: {}", Tools(*tools)),
            (ServerState::Up { tools }, false) => write!(f, "is connected: {}", Tools(*tools)),
            (ServerState::Down { why, .. }, is_program) => {
                write!(f, "{}: {why}", is_down(is_program))
            }
            (ServerState::Stopped, _) => f.write_str("stopped"),
        }
    }
}

/// What is said of a server that is down: one that is only connected to may well run.
pub(super) const fn is_down(is_program: bool) -> &'static str {
    if is_program { "does not run" } else { "is not connected" }
}

/// So many tools.
struct Tools(usize);

impl fmt::Display for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tool{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

impl ServerState {
    /// Whether this is news for an owner who was told `last`. A server that never comes is tried for ever,
    /// and says the same each time, but for numbers: times, ports, process ids.
    pub(super) fn is_news(&self, last: &Self) -> bool {
        let but_numbers = |why: &str| why.split(|c: char| c.is_ascii_digit()).collect::<String>();
        match (last, self) {
            (Self::Down { .. }, Self::Starting) => false,
            (Self::Down { why: last, .. }, Self::Down { why, .. }) => {
                but_numbers(last) != but_numbers(why)
            }
            (last, state) => last != state,
        }
    }
}

/// How a server is, and the way to it.
#[derive(Clone)]
pub(super) struct Now {
    pub(super) state: ServerState,
    /// Why it did not run, the last time that it did not; none while it runs.
    pub(super) trouble: Option<String>,
    pub(super) client: Option<McpClient>,
    /// How many starts have come to something, good or bad.
    pub(super) starts: u64,
    /// Whether somebody waits for a try that has not begun.
    pub(super) is_wanted: bool,
}

impl Now {
    pub(super) const fn starting() -> Self {
        Self {
            state: ServerState::Starting,
            trouble: None,
            client: None,
            starts: 0,
            is_wanted: false,
        }
    }

    pub(super) fn change(&mut self, state: ServerState, client: Option<McpClient>) {
        self.starts += u64::from(state != ServerState::Starting);
        match &state {
            ServerState::Down { why, .. } => self.trouble = Some(why.clone()),
            ServerState::Up { .. } => self.trouble = None,
            ServerState::Starting | ServerState::Stopped => {}
        }
        (self.state, self.client, self.is_wanted) = (state, client, false);
    }

    /// Whether the first start has come to something, good or bad.
    pub(super) const fn has_started(&self) -> bool {
        self.starts > 0
    }

    pub(super) const fn is_down(&self) -> bool {
        matches!(self.state, ServerState::Down { .. })
    }

    /// Whether it will soon be known how it is: a try has begun, or is about to.
    pub(super) const fn is_pending(&self) -> bool {
        self.is_wanted || matches!(self.state, ServerState::Starting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(why: &str) -> ServerState {
        ServerState::Down { why: why.to_owned(), retry: Duration::from_secs(fastrand::u64(1..9)) }
    }

    #[test]
    fn the_same_reason_with_other_numbers_is_no_news_and_any_other_is() {
        let up = || ServerState::Up { tools: 2 };
        let log = |time| down(&format!("exit status: 1; it last said: see /logs/{time}-debug.log"));
        for (last, state) in [
            (log("09_45_01"), log("10_00_59")),
            (down("refused"), ServerState::Starting),
            (up(), up()),
        ] {
            assert!(!state.is_news(&last), "{last:?} {state:?}");
        }
        for (last, state) in [
            (ServerState::Starting, down("refused")),
            (down("refused"), down("HTTP 500")),
            (down("refused"), up()),
            (up(), down("refused")),
            (up(), ServerState::Starting),
            (up(), ServerState::Up { tools: 3 }),
            (down("refused"), ServerState::Stopped),
        ] {
            assert!(state.is_news(&last), "{last:?} {state:?}");
        }
    }

    #[test]
    fn only_a_program_is_said_to_run_or_not() {
        let words = |is_program, state| {
            ServerEvent { namespace: "x".to_owned(), is_program, state }.to_string()
        };
        assert_eq!(words(true, ServerState::Starting), "starting");
        assert_eq!(words(true, ServerState::Up { tools: 1 }), "runs: 1 tool");
        assert_eq!(words(true, down("why")), "does not run: why");
        assert_eq!(words(false, ServerState::Starting), "connecting");
        assert_eq!(words(false, ServerState::Up { tools: 0 }), "is connected: 0 tools");
        assert_eq!(words(false, down("why")), "is not connected: why");
    }
}
