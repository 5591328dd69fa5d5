//! `flightdeck task`: one task, which is named by the beginning of its id.

mod follow;
mod output;
mod show;

use std::time::Duration;

use aip::Payload;
use serde_json::json;

use super::follow::{ended_line, print_ending};
use crate::api::{Api, Listed, Task};
use crate::args::{FollowTask, Global, OneTask, TaskCommand};
use crate::connect::Target;
use crate::ending::{Ending, results};
use crate::output::{RED, print_json};
use crate::{Code, Ended};

/// Longest wait for the end of a task that is being cancelled: its device has ten seconds to confirm it.
const CANCEL_WAIT: Duration = Duration::from_secs(15);

pub(crate) async fn run(command: TaskCommand, global: Global) -> Ended {
    let (TaskCommand::Show(args)
    | TaskCommand::Follow(FollowTask { task: args, .. })
    | TaskCommand::Cancel(args)
    | TaskCommand::Result(args)) = &command;
    let target = Target::new(args.client.clone(), &global)?;
    let api = Api::new(&target)?;
    let task = api.find(&args.id).await?;
    match &command {
        TaskCommand::Show(args) => show::run(&api, task.id, args.json).await,
        TaskCommand::Follow(FollowTask { from: None, .. }) => {
            let (task, _) = follow::until_over(&api, task.id, args.json, false).await?;
            print_end(&task, args.json)
        }
        TaskCommand::Follow(FollowTask { from: Some(_), .. }) => {
            let (task, is_cut) = follow::until_over(&api, task.id, args.json, true).await?;
            let cut = |code| if is_cut && code == Code::COMPLETED { Code::FAILED } else { code };
            if args.json {
                return print_end(&task, true).map(cut);
            }
            // Standard output is the commands' own.
            let ending = ending(&task);
            print_ending(&ending, None)?;
            Ok(cut(code_of(&task, ending.code())))
        }
        TaskCommand::Cancel(args) => cancel(&api, &task, args).await,
        TaskCommand::Result(args) => {
            let Listed { task, .. } = api.task(task.id).await?;
            if task.is_over() {
                return print_end(&task, args.json);
            }
            say!(
                "It is not over: {}. To wait for it: flightdeck task follow {}",
                task.state,
                task.id
            );
            Ok(Code::FAILED)
        }
    }
}

/// How a task that is over ended.
fn ending(task: &Task) -> Ending {
    match task.state.as_str() {
        "completed" => Ending::completed(),
        _ => Ending::failed(task.error.clone(), &results(task.value().as_ref())),
    }
}

fn print_end(task: &Task, as_json: bool) -> Ended {
    let (ending, value) = (ending(task), task.value());
    if as_json {
        // As a TASK_END has it.
        let (request, value) =
            (json!(task.request), value.as_ref().map_or("null", Payload::as_str));
        let result = format!(r#"[{{"request":{request},"result":{value}}}]"#);
        print_json(&ended_line(&ending, Some(&task.id.to_string()), &result))?;
    } else {
        print_ending(&ending, value.as_ref())?;
    }
    Ok(code_of(task, ending.code()))
}

/// The exit code for a task that was shown: what is damaged is not shown as if it were fine.
fn code_of(task: &Task, code: Code) -> Code {
    if !task.is_damaged() {
        return code;
    }
    say!(
        "{RED}damaged:{RED:#} the server's store has lost some of what this task returned, where it says \"damaged\""
    );
    if code == Code::COMPLETED { Code::FAILED } else { code }
}

async fn cancel(api: &Api<'_>, task: &Task, args: &OneTask) -> Ended {
    let was_open = api.cancel(task.id).await?;
    let Listed { task, json } = api.wait(task.id, CANCEL_WAIT).await?;
    if args.json {
        print_json(json.as_str())?;
    } else if !was_open {
        say!("It had ended before: {}.", task.state);
    } else if task.is_over() {
        print_ending(&ending(&task), None)?;
    } else {
        say!("It is being cancelled, and its device has not confirmed that it stopped.");
    }
    Ok(if task.state == "cancelled" { Code::COMPLETED } else { Code::FAILED })
}
