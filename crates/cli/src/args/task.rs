//! What can be typed to submit tasks, and to look at them.

use std::str::FromStr;

use clap::{Args, Subcommand};

use crate::settings::{ClientKeys, Seconds};

/// Run a command on one device or several
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck exec --on mybox -- df -h
  flightdeck exec --on a --on b -- uptime
  flightdeck exec --on 'web-*' -- uptime             Those whose ids fit: also ? [ab] {a,b}
  flightdeck exec --on tag:gpu -- nvidia-smi         Those with this tag; `flightdeck devices` shows them
  flightdeck exec --all -- uname -r
  flightdeck exec --all --at-once 1 --stop-after-failures 1 -- ./upgrade
  flightdeck exec --on mybox --env LANG=C --env CI=1 -- make test
  flightdeck exec --on mybox -- 'dmesg | tail'       With a device that runs --exec shell
  flightdeck exec --on mybox --detach -- make        Leave it running, and print its task's id

With several devices each line has its device in front, and a line on stderr at the end says where it
was ok, where it failed, and which devices were unreachable: those that --all, a pattern or a tag
mean and that are away are among them. Patterns and tags that fit no device are an error.

Several words are passed on as they are; a single one is passed on as a whole command line.

A lost connection or a restarted server costs nothing: it comes back, with a line on stderr. If this
command itself ends, the server cancels what runs after a minute, unless it is detached. Ctrl-C
cancels it and waits for the device to confirm that. After a second one, which leaves at once, or if
the server does not answer the cancel within 12 s, the outcome is unknown: the command may go on.

Exit codes: the command's own, of several the greatest. Where there is none: 120 cancelled; 121 its
outcome is unknown; 122 it was never sent or begun; 123 server or device unreachable, or refused; 124
timed out; 125 anything else, a setting that forbids it included; 2 for a wrong command line only.

With --json each device is an object on stdout: device, task, status (completed, failed, cancelled),
known (outcome_unknown, never_sent; of a cancel not_confirmed, stopped, finished, could_not_stop),
refused (final, retry), error, exit_code, stdout, stderr (and stdout_base64, stderr_base64 of
what is no UTF-8); also where no server could be asked, except
with --all, patterns, tags and --env. Of several devices the last object on stderr is the recap. On stderr an object says each task's id as soon as the server has it.")]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) client: ClientKeys,
    /// The device: its id, a pattern on ids ('web-*') or a tag (tag:gpu); may be repeated
    #[arg(long, value_name = "ID", required_unless_present = "all")]
    pub(crate) on: Vec<String>,
    /// Every device; those that are away count as unreachable
    #[arg(long, conflicts_with = "on")]
    pub(crate) all: bool,
    /// On so many devices at the same time [default: all of them]
    #[arg(long, value_name = "N", conflicts_with = "detach")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) at_once: Option<u16>,
    /// Begin on no further device once it has failed on so many; unreachable ones do not count
    #[arg(long, value_name = "N", conflicts_with = "detach")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) stop_after_failures: Option<u16>,
    /// A variable of the command's environment; may be repeated. Needs a device that runs --exec shell
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<Variable>,
    /// Longest time for the command: seconds (30) or with a unit (90s, 5m) [default: none; of a detached one the device's, 30 s]
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<Seconds>,
    /// The folder to run in
    #[arg(long, value_name = "FOLDER")]
    pub(crate) cwd: Option<String>,
    /// Leave standard input alone, as in a `while read` loop
    #[arg(short = 'n', long)]
    pub(crate) no_input: bool,
    /// Print the bytes as they are also on a terminal, whatever they do to it
    #[arg(long, conflicts_with = "escape")]
    pub(crate) raw: bool,
    /// Escape control characters also where the output is no terminal
    #[arg(long)]
    pub(crate) escape: bool,
    /// Print one JSON object for each device, one a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the task's id and leave; see `flightdeck task`. The command's standard input is empty then
    #[arg(long)]
    pub(crate) detach: bool,
    /// The command
    #[arg(required = true, trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
}

/// A variable of a command's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl FromStr for Variable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("it has the form NAME=VALUE")?;
        let is_word = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_word || name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err("a name has letters, digits and _, and no digit first".to_owned());
        }
        Ok(Self { name: name.to_owned(), value: value.to_owned() })
    }
}

/// Submit a task to a device and follow it to its outcome
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck run --on mybox '{\"commands\":[{\"tool_name\":\"get_system_info\"}]}'
  flightdeck run --on mybox - < plan.json
  flightdeck run --on mybox --detach - < plan.json    Leave it running, and print the task's id

The outcome goes to stdout, the progress to stderr.

A lost connection or a restarted server costs nothing: it comes back, with a line on stderr. If this
command itself ends, the server cancels the task after a minute, unless it is detached. Ctrl-C
cancels the task and waits for the device to confirm that. After a second one, which leaves at once,
or if the server does not answer the cancel within 12 s, the task is lost to this command, and may go
on.

Exit codes: 0 completed, 1 the task failed, 2 wrong usage, 3 cancelled, 4 server unreachable or
refused: there is no task then, or it is lost to this command, as lost says with --json.

With --json stderr has an object for each event (accepted with the task's id, progress, disconnected,
reconnected) and stdout one for the end: task, status (completed, failed, cancelled), known
(outcome_unknown, never_sent; of a cancel not_confirmed, stopped, finished, could_not_stop), lost,
refused (final, retry), error, result; also where no server could be asked. Why stands on stderr then
as a text too.")]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) client: ClientKeys,
    /// The device
    #[arg(long, value_name = "ID")]
    pub(crate) on: String,
    /// A label for the task
    #[arg(long, value_name = "NAME")]
    pub(crate) task_name: Option<String>,
    /// Longest time for one of its commands: seconds (30) or with a unit (90s, 5m) [default: the server's, 300 s]
    #[arg(long, value_name = "TIME")]
    pub(crate) command_timeout: Option<Seconds>,
    /// Print JSON, one event a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the task's id and leave; see `flightdeck task`
    #[arg(long)]
    pub(crate) detach: bool,
    /// What to do: text, a plan ({"commands":[…]}), or - to read it from standard input
    pub(crate) text: String,
}

/// List the tasks that were submitted, newest first: who, where, what, and what became of them
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck tasks
  flightdeck tasks --device mybox --state running
  flightdeck tasks --watch                           Until Ctrl-C
  flightdeck tasks --json --limit 500 | jq .error

An operator's key shows everybody's tasks, any other those that were submitted with it.

A restart of the server does not end --watch: it asks again for ten minutes, with a line on stderr.")]
pub(crate) struct Tasks {
    #[command(flatten)]
    pub(crate) client: ClientKeys,
    /// Only tasks for this device
    #[arg(long, visible_alias = "on", value_name = "ID")]
    pub(crate) device: Option<String>,
    /// Only tasks in this state
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Option<TaskState>,
    /// Only tasks of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Only tasks that were submitted with the key of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) key: Option<String>,
    /// Only tasks of this requester
    #[arg(long, value_name = "ID")]
    pub(crate) requester: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) limit: u16,
    /// Go on showing what changes
    #[arg(long)]
    pub(crate) watch: bool,
    /// Print what the server says of each, one task a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TaskState {
    Queued,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl TaskState {
    /// As the HTTP API has it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Look at one task, or cancel it
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  flightdeck task show 019ab3c4-5d6e                 The beginning of its id is enough
  flightdeck task follow 019ab3c4-5d6e               Until it ends
  flightdeck task result 019ab3c4-5d6e > out.json
  flightdeck task cancel 019ab3c4-5d6e

Exit codes of `follow` and `result`: 0 it completed, 1 it failed, is not over or what it returned is
damaged (also of `show`), 3 it was cancelled, 4 server unreachable or refused. `cancel`: 0 it is cancelled, 1 it is not.")]
pub(crate) enum TaskCommand {
    /// Show it with its steps
    Show(OneTask),
    /// Show its steps as they happen, and then what it returned; with --from start what its commands write
    Follow(FollowTask),
    /// Cancel it, and wait until its device has confirmed that it stopped
    Cancel(OneTask),
    /// Print what it returned
    Result(OneTask),
}

/// Which task to follow, and from when on.
#[derive(Debug, Args)]
pub(crate) struct FollowTask {
    #[command(flatten)]
    pub(crate) task: OneTask,
    /// Show also what its commands have written, from their start on: what was detached keeps that on its device
    #[arg(long, value_name = "WHEN")]
    pub(crate) from: Option<FollowFrom>,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FollowFrom {
    /// With the first byte
    Start,
}

/// Which task.
#[derive(Debug, Args)]
pub(crate) struct OneTask {
    #[command(flatten)]
    pub(crate) client: ClientKeys,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Its id, or as much of the beginning of it as tells it from others; `flightdeck tasks` shows it
    pub(crate) id: String,
}
