//! The owner's say: which calls are allowed, denied, or asked about.
//!
//! It must not know how a tool works, nor where its rules or answers come from.

use std::future::Future;
use std::pin::Pin;

use aip::{Payload, SessionId, ToolType};

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// It runs.
    Allow,
    /// The owner is asked.
    Ask,
    /// It does not run.
    Deny,
}

/// A call that the policy judges.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Where the tool lives.
    pub namespace: &'a str,
    /// The tool's plain name.
    pub tool_name: &'a str,
    /// Whether it observes or changes, as far as that can be believed.
    pub tool_type: ToolType,
    /// Its arguments.
    pub parameters: Option<&'a Payload>,
    /// What holds where no rule speaks.
    pub usual: Decision,
}

/// What the policy says, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of the call.
    pub decision: Decision,
    /// The name of the rule.
    pub rule: String,
}

/// The owner's rules.
#[derive(Debug, Clone, Default)]
pub struct Policy {}

impl Policy {
    /// Judges a call: any rule that denies wins, then one that asks, then one that allows.
    #[must_use]
    pub fn judge(&self, subject: &Subject<'_>) -> Verdict {
        Verdict { decision: subject.usual, rule: "default".to_owned() }
    }
}

/// What the owner is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Where the tool lives.
    pub namespace: String,
    /// The tool.
    pub tool_name: String,
    /// Its arguments, as they came: a stranger's text, to be escaped before it is shown.
    pub parameters: Option<Payload>,
    /// The task.
    pub session_id: Option<SessionId>,
    /// The rule that asks.
    pub rule: String,
}

/// How an owner answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// This call may run.
    Yes,
    /// It may not.
    No,
    /// There is nobody to ask.
    Nobody,
}

/// Asks the owner. Dropping the future takes the question back.
pub trait Ask: Send + Sync {
    /// Asks one question; several may wait at the same time.
    fn ask(&self, question: Question) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>>;
}
