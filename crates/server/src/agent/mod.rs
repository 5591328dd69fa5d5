//! What to do next: an agent is a pure decider over a task and the steps that are over.
//!
//! It holds no state of its own, so a session can be continued from its journal, shown step by step,
//! and replayed in a test.

mod plan;

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use aip::Payload;
use link::connection::OFFLOAD_BYTES;

pub use plan::{Plan, PlanCommand};

use crate::session::{Call, Finish, Step, Task};

/// What an agent decides over.
#[derive(Debug, Clone)]
pub struct Question {
    /// The task.
    pub task: Arc<Task>,
    /// What is known of its device: a JSON object.
    pub facts: Option<Payload>,
    /// The device's tools, as `list_tools` returned them; `None` until the agent asked for them with
    /// [`Decision::Discover`].
    pub tools: Option<Payload>,
    /// All steps so far.
    pub history: Arc<Vec<Step>>,
    /// What the task may still take.
    pub remaining: Remaining,
    /// What the agent gave with its last answer, if it is still there.
    pub memo: Memo,
}

/// What a task may still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remaining {
    /// Steps.
    pub steps: u32,
    /// Time.
    pub time: Duration,
}

/// Something that spares the agent work at its next question about the same task. It is never stored, and may be
/// gone by then.
pub type Memo = Option<Arc<dyn Any + Send + Sync>>;

/// What an agent answers.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What to do next.
    pub decision: Decision,
    /// What it has to say beside: kept in the journal.
    pub notes: Vec<Payload>,
    /// What its model took for it.
    pub usage: Usage,
    /// What it wants to have at the next question.
    pub memo: Memo,
}

/// What a model took for an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens that it read.
    pub input_tokens: u64,
    /// Tokens that it wrote.
    pub output_tokens: u64,
}

/// What an agent decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Send these to the device, as one COMMAND. Their call ids are set when they are sent.
    Calls(Vec<Call>),
    /// Ask the device for its tools. It is a step like others, but no part of the outcome.
    Discover,
    /// The task is done.
    Finish(Finish),
    /// The task cannot be done, and why.
    Fail(String),
}

impl From<Decision> for Answer {
    fn from(decision: Decision) -> Self {
        Self { decision, notes: Vec::new(), usage: Usage::default(), memo: None }
    }
}

/// An answer that is there, or on its way.
pub enum Thinking {
    /// The agent knows at once.
    Done(Answer),
    /// It takes a while. Dropping the future cancels the thought.
    Later(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

/// Decides the next step of a task.
pub trait Agent: Send + Sync + 'static {
    /// The next step. A panic in here, or in the future, fails the task.
    fn next(&self, question: Question) -> Thinking;

    /// Whether a task may be at work on its device beside others of which this says so too. Asked when the task is
    /// accepted, and again after a restart of the server: the answer must depend on the request alone, and come at once.
    fn shares_device(&self, request: &str) -> bool {
        let _in_doubt_it_does_not = request;
        false
    }
}

/// The default agent: a request that is a plan runs as one; anything else would need a model.
#[derive(Debug, Clone, Copy, Default)]
pub struct Auto;

impl Agent for Auto {
    fn next(&self, question: Question) -> Thinking {
        let is_read = question.memo.is_some();
        if is_read || question.task.request.len() <= OFFLOAD_BYTES {
            return Thinking::Done(decide(&question));
        }
        // A large plan is read on a thread of its own, so that nothing else waits for it.
        Thinking::Later(Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || decide(&question));
            read.await.unwrap_or_else(|_| Decision::Fail(NOT_READ.to_owned()).into())
        }))
    }

    /// A plan of commands and of tools for files alone. One that takes a while to read has its device to itself.
    fn shares_device(&self, request: &str) -> bool {
        request.len() <= OFFLOAD_BYTES
            && matches!(Plan::read(request), Ok(Some(plan)) if plan.shares_device())
    }
}

fn decide(question: &Question) -> Answer {
    let known = question.memo.clone().and_then(|memo| memo.downcast::<Plan>().ok());
    let plan = match known {
        Some(plan) => plan,
        None => match Plan::read(&question.task.request) {
            Ok(Some(plan)) => Arc::new(plan),
            Ok(None) => return Decision::Fail(NO_MODEL.to_owned()).into(),
            Err(error) => {
                return Decision::Fail(format!("The plan is not valid: {error}")).into();
            }
        },
    };
    let decision = plan.next(&question.history);
    Answer { memo: Some(plan), ..decision.into() }
}

/// The error of a task whose plan could not be read at all.
const NOT_READ: &str = "The server failed to read the plan";

/// The error of a task in natural language.
const NO_MODEL: &str = "This server has no model, so it cannot run a task in natural language. \
    Send a plan instead: {\"commands\":[{\"tool_name\":\"execute_command\",\"parameters\":\
    {\"command\":\"uname -r\"},\"tool_type\":\"action\"}]}";
