//! Before a call runs: what the policy says of it, and where that is "ask", what the owner says.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Call, STOPPED, Tool, ToolSettings};
use crate::policy::{
    Answer, Ask, Decision, MeantFile, PATH, Policy, Question, Subject, Touch, Verdict,
};

/// The owner's say on each call.
pub(super) struct Gate {
    pub(super) policy: Policy,
    ask: Option<Arc<dyn Ask>>,
    ask_timeout: Duration,
}

impl Gate {
    pub(super) fn new(settings: &ToolSettings) -> Self {
        Self {
            policy: settings.policy.clone(),
            ask: settings.ask.clone(),
            ask_timeout: settings.ask_timeout,
        }
    }

    /// Whether there are arguments with which a tool is not denied.
    pub(super) fn ever_allows(&self, tool: &Tool) -> bool {
        let (namespace, tool_name) = (&tool.info.namespace, &tool.info.tool_name);
        self.policy.never_allows(namespace, tool_name, tool.believed).is_none()
    }

    /// Whether it matters which file the path means that a tool is called with.
    pub(super) fn looks_at_path(&self, tool: &Tool) -> bool {
        self.policy.looks_at(PATH, &subject(tool))
    }

    /// Whether it matters what a call of a tool does to files.
    pub(super) fn looks_at_effects(&self, tool: &Tool) -> bool {
        self.policy.looks_at_effects(&subject(tool))
    }

    /// Lets a call pass, once the owner has been asked where the policy says so.
    ///
    /// # Errors
    /// That it may not run, and by which rule.
    pub(super) async fn permit(
        &self,
        tool: &Tool,
        call: &Call<'_>,
        file: Option<&MeantFile>,
        touched: &[Touch],
    ) -> Result<(), String> {
        let info = &tool.info;
        let subject = Subject { parameters: call.parameters, file, touched, ..subject(tool) };
        let Verdict { decision, rule } = self.policy.judge(&subject);
        let name = format!("{}.{}", info.namespace, info.tool_name);
        let why = match decision {
            Decision::Allow => return Ok(()),
            Decision::Deny => {
                return Err(format!("Denied by this device's policy: {name} (rule: {rule})"));
            }
            Decision::Ask => match self.ask(question(tool, call, &rule), call.stop).await? {
                Some(Answer::Yes) => return Ok(()),
                Some(Answer::No) => "who said no".to_owned(),
                Some(Answer::Nobody) => "and nobody is there to ask".to_owned(),
                None => format!("who did not answer within {} s", self.ask_timeout.as_secs_f64()),
            },
        };
        Err(format!("Refused: {name} needs the owner's yes, {why} (rule: {rule})"))
    }

    /// The owner's answer; none within the time for it.
    async fn ask(
        &self,
        question: Question,
        stop: &CancellationToken,
    ) -> Result<Option<Answer>, String> {
        let Some(ask) = &self.ask else { return Ok(Some(Answer::Nobody)) };
        tokio::select! {
            biased;
            answer = tokio::time::timeout(self.ask_timeout, ask.ask(question)) => Ok(answer.ok()),
            () = stop.cancelled() => Err(STOPPED.to_owned()),
        }
    }
}

/// A call of a tool without arguments, for the policy.
pub(super) fn subject(tool: &Tool) -> Subject<'_> {
    Subject {
        namespace: &tool.info.namespace,
        tool_name: &tool.info.tool_name,
        tool_type: tool.believed,
        parameters: None,
        file: None,
        touched: &[],
        usual: tool.usual,
    }
}

fn question(tool: &Tool, call: &Call<'_>, rule: &str) -> Question {
    Question {
        namespace: tool.info.namespace.clone(),
        tool_name: tool.info.tool_name.clone(),
        parameters: call.parameters.cloned(),
        session_id: call.caller.session_id.clone(),
        rule: rule.to_owned(),
    }
}
