//! The agent that needs no model: a request that is a list of commands, run in order.

use std::borrow::Cow;

use aip::codec::{MAX_DEPTH, check_depth};
use aip::{Payload, ToolType};
use serde::Deserialize;

use super::Decision;
use crate::session::{Call, CallResult, Finish, Step};

/// A request that says itself what to do: `{"commands":[{"tool_name", "parameters",
/// "tool_type"}…], "keep_going": false, "stop_on_nonzero": false}`. Each command is one step, one
/// COMMAND.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What to run, in this order.
    #[serde(deserialize_with = "aip::payload::objects")]
    pub commands: Vec<PlanCommand>,
    /// Whether to go on after a step that failed.
    #[serde(default)]
    pub keep_going: bool,
    /// Whether a command that ran and exited with another code than 0 fails the task, too.
    #[serde(default)]
    pub stop_on_nonzero: bool,
}

/// One command of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanCommand {
    /// Which tool.
    pub tool_name: String,
    /// Its arguments: a JSON object, passed on as it is.
    #[serde(default, deserialize_with = "aip::payload::optional_object")]
    pub parameters: Option<Payload>,
    /// Whether the tool observes or changes.
    #[serde(default = "action")]
    pub tool_type: ToolType,
}

fn action() -> ToolType {
    ToolType::Action
}

impl Plan {
    /// Reads a task's request as a plan. `None` when it is none: what does not begin with a brace is text.
    ///
    /// # Errors
    /// What is wrong with it, when it is meant as a plan.
    pub fn read(request: &str) -> Result<Option<Self>, String> {
        // A file may begin with a byte order mark.
        let text = request.trim_start_matches('\u{feff}').trim();
        if !text.starts_with('{') {
            return Ok(None);
        }
        // The frame's own check does not see into a string.
        check_depth(text.as_bytes(), MAX_DEPTH).map_err(|error| error.to_string())?;
        let plan: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if plan.commands.is_empty() {
            return Err("it has no commands".to_owned());
        }
        if plan.keep_going && plan.stop_on_nonzero {
            return Err("keep_going and stop_on_nonzero contradict each other".to_owned());
        }
        Ok(Some(plan))
    }

    /// Whether it runs nothing but commands and tools for files.
    pub(super) fn shares_device(&self) -> bool {
        self.commands.iter().all(|command| shares_device(&command.tool_name))
    }

    pub(super) fn next(&self, history: &[Step]) -> Decision {
        if let Some(failure) = history.last().and_then(failure)
            && !self.keep_going
        {
            return Decision::Fail(format!("Step {} failed: {failure}", history.len()));
        }
        if let Some(exit) = history.last().and_then(exit).filter(|_| self.stop_on_nonzero) {
            return Decision::Fail(self.stopped(history.len(), &exit));
        }
        match self.commands.get(history.len()) {
            Some(command) => Decision::Calls(vec![command.to_call()]),
            None => Decision::Finish(Finish::Results),
        }
    }

    /// Why a plan goes no further than a step whose command did not exit with 0.
    fn stopped(&self, n: usize, exit: &str) -> String {
        let left = match self.commands.len().saturating_sub(n) {
            0 => String::new(),
            1 => "; the step after it was skipped".to_owned(),
            left => format!("; the {left} steps after it were skipped"),
        };
        format!("Step {n} failed: {exit} (stop_on_nonzero){left}")
    }
}

/// The tools of a device that may be at work beside each other, by their namespaces.
const SHARING: [(&str, &[&str]); 2] = [
    ("BashExecutor", &["execute_command"]),
    ("Files", &["read_file", "list_directory", "search_files", "write_file"]),
];

/// Whether this names one of those tools: by its name, by `NAMESPACE::NAME`, or by either behind its type.
fn shares_device(name: &str) -> bool {
    let mut parts = name.rsplit("::");
    let tool = parts.next().unwrap_or_default();
    let Some((namespace, _)) = SHARING.iter().find(|(_, tools)| tools.contains(&tool)) else {
        return false;
    };
    let is_type = |word: &str| ["action", "data_collection"].contains(&word);
    match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => true,
        (Some(word), None, _) => word == *namespace || is_type(word),
        (Some(word), Some(first), None) => word == *namespace && is_type(first),
        _ => false,
    }
}

impl PlanCommand {
    fn to_call(&self) -> Call {
        Call {
            tool_name: self.tool_name.clone(),
            parameters: self.parameters.clone(),
            observes: self.tool_type == ToolType::DataCollection,
            call_id: None,
        }
    }
}

/// The most of a tool's name and of its reason that an outcome's error repeats, in characters. The
/// whole is in the results.
const MAX_TOOL_CHARS: usize = 100;
const MAX_REASON_CHARS: usize = 1000;

/// What failed in a step, if something did.
fn failure(step: &Step) -> Option<String> {
    let at = step.results.iter().position(CallResult::is_bad)?;
    let tool = step.calls.get(at).map_or("tool", Call::plain_name);
    let why = step.results[at].error.as_deref().unwrap_or("the tool gave no reason");
    Some(format!("{}: {}", head(tool, MAX_TOOL_CHARS), head(why, MAX_REASON_CHARS)))
}

/// How the command of a step exited, if not with 0.
fn exit(step: &Step) -> Option<String> {
    let (at, code) = step.results.iter().enumerate().find_map(|(at, result)| {
        let code = result.nonzero_exit()?;
        Some((at, code))
    })?;
    let tool = step.calls.get(at).map_or("tool", Call::plain_name);
    Some(format!("{}: exit {code}", head(tool, MAX_TOOL_CHARS)))
}

/// The beginning of a text that may be of any length.
fn head(text: &str, chars: usize) -> Cow<'_, str> {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::session::CallStatus;

    fn plan(keep_going: bool) -> Plan {
        let text = format!(
            r#"{{"commands":[{{"tool_name":"a","parameters":{{"x":1}}}},
                {{"tool_name":"b","tool_type":"data_collection"}}],"keep_going":{keep_going}}}"#
        );
        Plan::read(&text).unwrap().unwrap()
    }

    fn step(result: CallResult) -> Step {
        let call = plan(false).commands[0].to_call();
        Step { calls: Arc::new([call]), results: Arc::new([result]), is_discovery: false }
    }

    fn good() -> Step {
        let result = Some(Payload::from_text("true").unwrap());
        let status = CallStatus::Success;
        step(CallResult { status, error: None, result, namespace: None, call_id: None })
    }

    fn tools(decision: &Decision) -> Vec<&str> {
        match decision {
            Decision::Calls(calls) => calls.iter().map(|c| c.tool_name.as_str()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn its_commands_run_in_order_one_step_each() {
        assert_eq!(tools(&plan(false).next(&[])), ["a"]);
        assert_eq!(tools(&plan(false).next(&[good()])), ["b"]);
        let done = plan(false).next(&[good(), good()]);
        assert_eq!(done, Decision::Finish(Finish::Results));
    }

    #[test]
    fn a_failure_ends_it_unless_it_shall_keep_going() {
        let bad = step(CallResult::failure(None, "no such file"));
        let failed = Decision::Fail("Step 1 failed: a: no such file".to_owned());
        assert_eq!(plan(false).next(std::slice::from_ref(&bad)), failed);
        assert_eq!(tools(&plan(true).next(&[bad])), ["b"]);
        let wordy = step(CallResult::failure(None, "x".repeat(1_000_000)));
        let Decision::Fail(error) = plan(false).next(&[wordy]) else { panic!() };
        assert!(error.ends_with("xxx…") && error.len() < 1100, "{}", error.len());
    }

    #[test]
    fn a_command_that_does_not_exit_with_0_ends_it_where_the_plan_says_so() {
        let exited = |code: i32| {
            let mut step = good();
            let text = format!(r#"{{"success":false,"exit_code":{code},"stdout":""}}"#);
            let result = Some(Payload::from_text(text).unwrap());
            step.results =
                Arc::new([CallResult { result, ..step.results.first().unwrap().clone() }]);
            step
        };
        let strict = Plan { stop_on_nonzero: true, ..plan(false) };
        assert_eq!(tools(&strict.next(&[exited(0)])), ["b"]);
        let error = "Step 1 failed: a: exit 3 (stop_on_nonzero); the step after it was skipped";
        assert_eq!(strict.next(&[exited(3)]), Decision::Fail(error.to_owned()));
        let error = "Step 2 failed: a: exit 3 (stop_on_nonzero)";
        assert_eq!(strict.next(&[good(), exited(3)]), Decision::Fail(error.to_owned()));
        assert_eq!(tools(&plan(false).next(&[exited(3)])), ["b"]);
        let both = r#"{"commands":[{"tool_name":"a"}],"keep_going":true,"stop_on_nonzero":true}"#;
        assert!(Plan::read(both).unwrap_err().contains("contradict"));
    }

    #[test]
    fn text_is_no_plan_and_a_broken_plan_is_told_apart_from_it() {
        for text in ["tidy up", "[1]", ""] {
            assert_eq!(Plan::read(text), Ok(None), "{text}");
        }
        for (text, why) in [
            (r#"{"commands":[]}"#, "no commands"),
            (r#"{"commands":[{"tool_nam"#, "EOF while parsing a string at line 1 column 23"),
            ("{}", "missing field `commands`"),
            (r#"{"commands":null}"#, "invalid type: null"),
            (r#"{"commands":[["a"]]}"#, "invalid type: sequence, expected an object"),
            (r#"{"commands":[{"tool":"a"}]}"#, "unknown field `tool`"),
            (r#"{"commands":[{"tool_name":"a","parameters":[]}]}"#, "expected an object"),
            (r#"{"commands":[],"keepgoing":true}"#, "unknown field `keepgoing`"),
        ] {
            assert!(Plan::read(text).unwrap_err().contains(why), "{text}");
        }
        let deep = format!(r#"{{"commands":[{}]}}"#, "[".repeat(100_000));
        assert!(Plan::read(&deep).unwrap_err().contains("nested deeper"));
    }
}
