//! `flightdeck tasks`: what was submitted, by whom and for which device, and where it stands.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::follow::AWAY_WAIT;
use crate::api::{Api, Listed, PAGE, Query, Task, TaskId};
use crate::args::{Global, Tasks};
use crate::connect::Target;
use crate::output::{human, print, print_json, print_line, safe_line, table};
use crate::{Code, Ended, Failure, Interrupts};

/// The most tasks that are looked at for those that match what only this program can filter by.
const MAX_LOOKED_AT: usize = 10_000;

/// How often `--watch` looks.
const PACE: Duration = Duration::from_secs(2);

/// The fewest characters of an id that are shown: its time, to the millisecond.
const ID_CHARS: usize = 13;

/// The most of what a task is about that a line shows, in characters.
const SUMMARY_CHARS: usize = 60;

const HEADINGS: [&str; 7] = ["ID", "STATE", "DEVICE", "REQUESTER", "SINCE", "TOOK", "WHAT"];

/// Clears a terminal and goes to its beginning.
const CLEAR: &str = "\x1b[2J\x1b[3J\x1b[H";

pub(crate) async fn run(args: Tasks, global: Global) -> Ended {
    let target = Target::new(args.client.clone(), &global)?;
    let api = Api::new(&target)?;
    if args.watch {
        return watch(&api, &args).await;
    }
    let found = look(&api, &args).await?;
    if args.json {
        for listed in &found.tasks {
            print_json(listed.json.as_str())?;
        }
    } else if found.tasks.is_empty() {
        say!("No such task is known.");
    } else {
        print(&shown(&found.tasks, Timestamp::now()))?;
    }
    if found.has_stopped_early {
        say!("These are those among the newest {MAX_LOOKED_AT} tasks.");
    }
    Ok(Code::COMPLETED)
}

/// Tasks that match, newest first.
struct Found {
    tasks: Vec<Listed>,
    /// Whether older ones may match that were not looked at.
    has_stopped_early: bool,
}

async fn look(api: &Api<'_>, args: &Tasks) -> Result<Found, Failure> {
    let is_filtered_here = args.key.is_some() || args.requester.is_some();
    let mut query = Query {
        device: args.device.clone(),
        state: args.state.map(|state| state.as_str()),
        name: args.name.clone(),
        before: None,
        limit: if is_filtered_here { PAGE } else { args.limit.into() },
    };
    let is_wanted = |task: &Task| {
        args.key.as_ref().is_none_or(|key| *key == task.key)
            && args.requester.as_ref().is_none_or(|requester| *requester == task.requester)
    };
    let (mut tasks, mut looked_at) = (Vec::new(), 0);
    loop {
        let (page, next) = api.tasks(&query).await?;
        looked_at += page.len();
        tasks.extend(page.into_iter().filter(|listed| is_wanted(&listed.task)));
        tasks.truncate(args.limit.into());
        let is_enough = tasks.len() >= usize::from(args.limit) || next.is_none();
        if is_enough || looked_at >= MAX_LOOKED_AT {
            return Ok(Found { tasks, has_stopped_early: !is_enough });
        }
        query.before = next;
    }
}

fn shown(tasks: &[Listed], now: Timestamp) -> String {
    let ids: Vec<TaskId> = tasks.iter().map(|listed| listed.task.id).collect();
    let row = |(at, listed): (usize, &Listed)| {
        // The next ones in order are the most alike.
        let beside = &ids[at.saturating_sub(1)..ids.len().min(at + 2)];
        row(&listed.task, &listed.task.id.short(beside, ID_CHARS), now)
    };
    table(HEADINGS, &tasks.iter().enumerate().map(row).collect::<Vec<_>>())
}

fn row(task: &Task, id: &str, now: Timestamp) -> [String; 7] {
    [
        id.to_owned(),
        safe_line(&state(task)),
        safe_line(&task.device),
        safe_line(&task.requester),
        format!("{} ago", human(between(task.created_at, now))),
        human(between(task.created_at, task.ended_at.unwrap_or(now))),
        safe_line(&what(task)),
    ]
}

/// Where it stands; while it waits, behind how many others.
pub(super) fn state(task: &Task) -> String {
    match task.ahead.filter(|_| task.state == "queued") {
        Some(ahead) => format!("queued ({ahead} ahead)"),
        None => task.state.clone(),
    }
}

/// What it is about: its name, if somebody gave it one, and its command.
pub(super) fn what(task: &Task) -> String {
    let has_name = task.task_name.parse::<uuid::Uuid>().is_err();
    let summary = match task.summary.char_indices().nth(SUMMARY_CHARS) {
        Some((end, _)) => format!("{}…", &task.summary[..end]),
        None => task.summary.clone(),
    };
    match (has_name, summary.is_empty()) {
        (true, true) => task.task_name.clone(),
        (true, false) => format!("{}: {summary}", task.task_name),
        (false, _) => summary,
    }
}

pub(super) fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// Shows them anew until Ctrl-C: on a terminal the whole list, else each task that is new or stands otherwise. A server
/// that has answered once may be away for a while.
async fn watch(api: &Api<'_>, args: &Tasks) -> Ended {
    let mut interrupts = Interrupts::listen();
    let is_screen = !args.json && std::io::stdout().is_terminal();
    let mut seen = HashMap::new();
    let mut link = Link::default();
    loop {
        let looked = tokio::select! {
            looked = look(api, args) => looked,
            () = interrupts.next() => return Ok(Code::COMPLETED),
        };
        if let Some(Found { tasks, .. }) = link.outlive(looked)? {
            if is_screen {
                print(&format!("{CLEAR}{}", shown(&tasks, Timestamp::now())))?;
            } else {
                print_changed(&tasks, &seen, args.json)?;
            }
            let stands = |listed: Listed| (listed.task.id.to_string(), stand(&listed.task));
            seen = tasks.into_iter().map(stands).collect();
        }
        tokio::select! {
            () = tokio::time::sleep(PACE) => {}
            () = interrupts.next() => return Ok(Code::COMPLETED),
        }
    }
}

/// Whether the server answers.
#[derive(Default)]
struct Link {
    answered_at: Option<Instant>,
    is_away: bool,
}

impl Link {
    /// What the server answered; `None` while it is waited for. Says once that it is away, and that it is back.
    fn outlive<T>(&mut self, answer: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match answer {
            Ok(answer) => {
                self.answered_at = Some(Instant::now());
                if std::mem::take(&mut self.is_away) {
                    say!("The server is back.");
                }
                Ok(Some(answer))
            }
            Err(failure) if failure.code == Code::UNREACHABLE && self.may_be_away() => {
                if !std::mem::replace(&mut self.is_away, true) {
                    // The lines after it say how to start one.
                    let text = format!("{:#}", failure.error);
                    say!("{}; asking again", safe_line(text.lines().next().unwrap_or_default()));
                }
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    fn may_be_away(&self) -> bool {
        self.answered_at.is_some_and(|at| at.elapsed() <= AWAY_WAIT)
    }
}

/// What of a task is looked at for a change.
type Stand = (String, usize);

fn stand(task: &Task) -> Stand {
    (task.state.clone(), task.step_count)
}

fn print_changed(
    found: &[Listed],
    seen: &HashMap<String, Stand>,
    as_json: bool,
) -> anyhow::Result<()> {
    for Listed { task, json } in found.iter().rev() {
        if seen.get(&task.id.to_string()) == Some(&stand(task)) {
            continue;
        }
        match as_json {
            true => print_json(json.as_str())?,
            false => print_line(&row(task, &task.id.to_string(), Timestamp::now()).join("  "))?,
        }
    }
    Ok(())
}
