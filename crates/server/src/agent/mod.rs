//! What to do next: an agent is a pure decider over a task and the steps that are over.
//!
//! It holds no state of its own, so a session can be continued from its journal, shown step by step,
//! and replayed in a test.

mod plan;

use std::pin::Pin;
use std::sync::Arc;

use aip::{Command, Payload};
use link::connection::OFFLOAD_BYTES;

pub use plan::{Plan, PlanCommand};

use crate::session::{Step, Task};

/// What an agent decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Send these to the device, as one COMMAND. Their call ids are set when they are sent.
    Commands(Vec<Command>),
    /// The task is done.
    Finish(Finish),
    /// The task cannot be done, and why.
    Fail(String),
}

/// What a completed task returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The results of all its steps.
    Results,
    /// A value of the agent's own.
    Value(Payload),
}

/// A decision on its way.
pub type Deciding<'a> = Pin<Box<dyn Future<Output = Decision> + Send + 'a>>;

/// Decides the next step of a task.
pub trait Agent: Send + Sync + 'static {
    /// The next step, from the task and all its steps so far. Dropping the future cancels the thought.
    fn next<'a>(&'a self, task: &'a Arc<Task>, history: &'a [Step]) -> Deciding<'a>;
}

/// The default agent: a request that is a plan runs as one; anything else would need a model.
#[derive(Debug, Clone, Copy, Default)]
pub struct Auto;

impl Agent for Auto {
    fn next<'a>(&'a self, task: &'a Arc<Task>, history: &'a [Step]) -> Deciding<'a> {
        if task.request.len() <= OFFLOAD_BYTES || !history.is_empty() {
            return Box::pin(std::future::ready(decide(task, history)));
        }
        // A large plan is read on a thread of its own, so that nobody waits for it.
        Box::pin(async move {
            let read = task.clone();
            let _read_or_read_below = tokio::task::spawn_blocking(move || {
                let _memo = Plan::of(&read);
            })
            .await;
            decide(task, history)
        })
    }
}

fn decide(task: &Task, history: &[Step]) -> Decision {
    match Plan::of(task) {
        Ok(Some(plan)) => plan.next(history),
        Ok(None) => Decision::Fail(NO_MODEL.to_owned()),
        Err(error) => Decision::Fail(format!("The plan is not valid: {error}")),
    }
}

/// What the requester of a task in natural language is told.
const NO_MODEL: &str = "This server has no model, so it cannot run a task in natural language. \
    Send a plan instead: {\"commands\":[{\"tool_name\":\"execute_command\",\"parameters\":\
    {\"command\":\"uname -r\"},\"tool_type\":\"action\"}]}";
