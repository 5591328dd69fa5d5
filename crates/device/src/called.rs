//! What is told of each call of a tool to whoever keeps a record of it: before it begins, and when it is over.
//!
//! It must not know where that is kept.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aip::message::exit_code;
use aip::{Command, Payload, SessionId};

use crate::tools::{Caller, Returned};

/// A call of a tool, at one moment. All of it is a stranger's text.
#[derive(Debug, Clone)]
pub struct Called<'a> {
    /// The same at both moments of one call, and of no other call of this process.
    pub number: u64,
    /// The task, by its session.
    pub task: Option<&'a SessionId>,
    /// Who wants it, as the server says.
    pub requester: Option<&'a str>,
    /// The name of the key that the requester has shown there.
    pub key: Option<&'a str>,
    /// The agent for whom it runs, as the server names it.
    pub agent_name: Option<&'a str>,
    /// The tool, as it was called.
    pub tool_name: &'a str,
    /// Where the tool lives, once that is known.
    pub namespace: Option<&'a str>,
    /// Its arguments.
    pub parameters: Option<&'a Payload>,
    /// How it is going.
    pub state: CallState<'a>,
}

/// How a call is going.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallState<'a> {
    /// It is about to be looked at; it may wait for its owner or its turn, or be refused.
    Started,
    /// The tool did what it was asked.
    Succeeded {
        /// The code of the command that it ran, if it ran one.
        exit_code: Option<i64>,
        /// From the start.
        took: Duration,
    },
    /// It did not, or may not.
    Failed {
        /// The error that the caller got, which may hold output of the tool.
        why: &'a str,
        /// From the start.
        took: Duration,
    },
}

/// Who keeps a record of calls; nobody by default. It is told at once and must not block. Cheap to clone.
#[derive(Clone, Default)]
pub struct OnCall(Option<Arc<Tell>>);

type Tell = dyn Fn(&Called<'_>) + Send + Sync;

impl fmt::Debug for OnCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnCall").field(&self.0.is_some()).finish()
    }
}

impl OnCall {
    /// Tells `tell` of each call.
    pub fn to(tell: impl Fn(&Called<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    /// Tells of a call that begins; its end is to be told to what this returns. An action without a tool is none.
    pub(crate) fn begin<'a>(
        &'a self,
        action: &'a Command,
        caller: &'a Caller,
    ) -> Option<Begun<'a>> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let tell = self.0.as_deref().filter(|_| !action.tool_name.is_empty())?;
        let called = Called {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            task: caller.session_id.as_ref(),
            requester: caller.requester.as_deref(),
            key: caller.key.as_deref(),
            agent_name: caller.agent_name.as_deref(),
            tool_name: &action.tool_name,
            namespace: None,
            parameters: action.parameters.as_ref(),
            state: CallState::Started,
        };
        tell(&called);
        Some(Begun { tell, called, started: Instant::now() })
    }
}

/// A call that has begun. One that is dropped without its end was cut off.
pub(crate) struct Begun<'a> {
    tell: &'a Tell,
    called: Called<'a>,
    started: Instant,
}

impl Begun<'_> {
    /// Tells how it ended.
    pub(crate) fn end(self, result: &Result<Returned, String>) {
        let took = self.started.elapsed();
        let (namespace, state) = match result {
            Ok(returned) => {
                let exit_code = exit_code(&returned.result);
                (returned.namespace.as_deref(), CallState::Succeeded { exit_code, took })
            }
            Err(why) => (None, CallState::Failed { why, took }),
        };
        (self.tell)(&Called { namespace, state, ..self.called });
    }
}
