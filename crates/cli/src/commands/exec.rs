//! `flightdeck exec`: runs a command on one device or several.

mod input;
mod recap;
mod schedule;
mod screen;
mod targets;

use std::io;
use std::time::Duration;

use aip::visible::escape_json;
use anyhow::Context;
use constellation::{
    Channel, ClientId, Constellation, NewTask, OnDisconnect, Output, Payload, RequestError,
    StepStatus, Streams, Task, TaskEvent,
};
use serde_json::{Map, Value, json};
use tokio::io::Stdin;
use tokio_util::sync::CancellationToken;

use self::recap::Recap;
use self::schedule::Schedule;
use self::screen::{Screen, View};
pub(super) use self::targets::TAG;
use super::follow::{
    CommandOutput, Followed, Notices, Watcher, describe, event_json, follow, interruptible,
    on_disconnect,
};
use crate::args::{Exec, Global, Variable};
use crate::connect::{Target, say_goodbye};
use crate::ending::{Known, is_timeout, results, value};
use crate::output::{RED, print_json, print_line, safe_line};
use crate::{Code, Ended, Failure, Interrupts};

pub(crate) async fn run(args: Exec, global: Global) -> Ended {
    let plan = plan(&args)?;
    let target = Target::new(args.client.clone(), &global)?;
    let chosen = targets::choose(&args, &target).await?;
    let escapes = (args.raw || args.escape).then_some(args.escape);
    let show = Show { labels: chosen.len() > 1, json: args.json, escapes };
    let (constellation, on_disconnect) = match connect(&target, args.detach).await {
        Ok(connected) => connected,
        Err(failure) => {
            for (device, failure) in &chosen.left_out {
                show_not_submitted(device, failure, show)?;
            }
            for device in &chosen.devices {
                show_not_submitted(device, &failure, show)?;
            }
            return Err(failure);
        }
    };
    let (mut recap, mut worst) = (Recap::default(), Code::COMPLETED);
    for (device, failure) in &chosen.left_out {
        worst = worst.max(say_not_submitted(device, failure, show)?);
        recap.left_out(device, failure.code);
    }
    let asked = Asked::new(&args, chosen.len(), &constellation);
    let submit = |device: &ClientId, has_input| {
        constellation.submit(NewTask {
            command_timeout: args.timeout.map(|timeout| timeout.0 + ANSWER_TIME),
            no_time_limit: has_no_limit(&args),
            on_disconnect,
            streams: Streams { output: asked.output, input: has_input, window: None },
            ..NewTask::new(device.clone(), plan.clone())
        })
    };
    let interrupts = Interrupts::listen();
    let stop = CancellationToken::new();
    let schedule = Schedule {
        submit: &submit,
        asked,
        at_once: usize::from(args.at_once),
        stop_after: args.stop_after_failures.map_or(usize::MAX, usize::from),
        show,
        stop: &stop,
    };
    let code = if args.detach {
        let accepting = schedule.all_accepted(chosen.devices, &mut recap);
        interruptible(&constellation, &stop, interrupts, accepting).await
    } else {
        let running = schedule.run(chosen.devices, &mut recap);
        interruptible(&constellation, &stop, interrupts, running).await
    };
    let code = code.unwrap_or_else(|left| Ok(left.exec_code()))?;
    if show.json && show.labels {
        say!("{}", escape_json(&recap.json().to_string()));
    } else if show.labels {
        say!("{}", recap.line(if args.detach { "submitted" } else { "ok" }));
    }
    say_goodbye(constellation).await;
    Ok(code.max(worst))
}

/// Submits the task for a device, with our standard input or without.
type Submit<'a> = &'a dyn Fn(&ClientId, bool) -> Result<Task, RequestError>;

/// The streams that are asked for.
#[derive(Clone, Copy)]
struct Asked {
    output: bool,
    input: bool,
    /// Whether there is input that cannot be passed on.
    has_vain_input: bool,
}

impl Asked {
    fn new(args: &Exec, devices: usize, constellation: &Constellation) -> Self {
        let is_followed = !args.detach;
        let wanted = is_followed && !args.no_input && devices == 1 && input::is_there();
        let input = wanted && constellation.may_send_input();
        let output = is_followed && constellation.may_stream();
        Self { output, input, has_vain_input: wanted && !input }
    }
}

/// Connects to a server that takes plans, and says what shall become of a task without us there.
async fn connect(
    target: &Target,
    is_detached: bool,
) -> Result<(Constellation, OnDisconnect), Failure> {
    let constellation = target.connect("exec").await?;
    if !constellation.is_flightdeck() {
        return Err(Failure::unreachable(anyhow::anyhow!(
            "the server at {} is no Flightdeck server: it takes no plans, which `exec` needs. \
             Send it a task in words with `flightdeck run`",
            target.server
        )));
    }
    let on_disconnect = on_disconnect(&constellation, target, is_detached)?;
    Ok((constellation, on_disconnect))
}

/// How much longer the server waits than the device, so that the device's own answer comes through.
const ANSWER_TIME: Duration = Duration::from_secs(15);

/// What a command asks its device for that is to take as long as it takes, in seconds: a year. Every device knows a number,
/// also those that know of no limit at all.
const NO_LIMIT_S: u64 = 366 * 24 * 3600;

/// Whether only the time that is asked for, and what others have set, may end the command: somebody waits for it, or has
/// said how long it may take.
const fn has_no_limit(args: &Exec) -> bool {
    !args.detach || args.timeout.is_some()
}

/// The tool that runs the command, with its namespace: an MCP server of the device may have one of the same name.
const TOOL: &str = "BashExecutor::execute_command";

/// How to print.
#[derive(Clone, Copy)]
struct Show {
    labels: bool,
    json: bool,
    /// Whether what would drive a terminal is escaped, whatever the output goes to.
    escapes: Option<bool>,
}

fn plan(args: &Exec) -> anyhow::Result<String> {
    let command = match args.command.as_slice() {
        [line] => line.clone(),
        words => shlex::try_join(words.iter().map(String::as_str))
            .context("a NUL character cannot be part of a command")?,
    };
    if command.trim().is_empty() {
        anyhow::bail!("the command is empty");
    }
    let mut parameters = Map::from_iter([("command".to_owned(), json!(command))]);
    if let Some(timeout) = args.timeout {
        anyhow::ensure!(!timeout.0.is_zero(), "--timeout must be more than 0");
        parameters.insert("timeout".to_owned(), json!(timeout.0.as_secs_f64()));
    } else if has_no_limit(args) {
        parameters.insert("timeout".to_owned(), json!(NO_LIMIT_S));
    }
    if let Some(cwd) = &args.cwd {
        parameters.insert("cwd".to_owned(), json!(cwd));
    }
    if !args.env.is_empty() {
        let set: Map<_, _> =
            args.env.iter().map(|Variable { name, value }| (name.clone(), json!(value))).collect();
        parameters.insert("env".to_owned(), Value::Object(set));
    }
    let command = json!({"tool_name": TOOL, "parameters": parameters, "tool_type": "action"});
    Ok(json!({"commands": [command]}).to_string())
}

fn print_id(device: &ClientId, id: &str, show: Show) -> anyhow::Result<()> {
    if show.json {
        return print_json(&json!({"device": device, "task": id}).to_string());
    }
    match show.labels {
        true => print_line(&format!("{}  {}", safe_line(id), safe_line(device.as_str()))),
        false => print_line(&safe_line(id)),
    }
}

fn waiting(devices: usize) -> String {
    format!("waiting for {devices} {}", if devices == 1 { "device" } else { "devices" })
}

/// Follows the task of one device, and gives its command our standard input if it takes that.
async fn one(
    mut teller: Teller,
    task: Task,
    stop: &CancellationToken,
    asked: Asked,
    submit: Submit<'_>,
) -> (Teller, Followed) {
    let mut source = tokio::io::stdin();
    if asked.input {
        let into = task.input();
        let followed = tokio::select! {
            biased;
            followed = follow(task, stop, &mut teller) => followed,
            never = input::pass_on(&into, &mut source) => match never {},
        };
        if !is_without_input(&followed) {
            return (teller, followed);
        }
        // Nothing of it was read, so the command can do without.
        let task = match submit(&teller.device, false) {
            Ok(task) => task,
            Err(error) => {
                let failure = Failure::unreachable(error);
                return (teller, Followed::not_submitted(&failure));
            }
        };
        return watching_input(teller, task, stop, &mut source).await;
    }
    if asked.has_vain_input {
        return watching_input(teller, task, stop, &mut source).await;
    }
    let followed = follow(task, stop, &mut teller).await;
    (teller, followed)
}

/// Follows a task that cannot have our standard input, and says so if something comes there.
async fn watching_input(
    mut teller: Teller,
    task: Task,
    stop: &CancellationToken,
    source: &mut Stdin,
) -> (Teller, Followed) {
    let device = safe_line(teller.device.as_str());
    let followed = {
        let following = follow(task, stop, &mut teller);
        tokio::pin!(following);
        tokio::select! {
            biased;
            followed = &mut following => followed,
            () = input::something_comes(source) => {
                say!("warning: standard input is not passed on: '{device}' takes none (-n says that it need not)");
                following.await
            }
        }
    };
    (teller, followed)
}

/// Whether a task was refused since its device takes no input.
fn is_without_input(followed: &Followed) -> bool {
    let error = followed.outcome.error.as_deref().unwrap_or_default();
    followed.outcome.refused.is_some() && error.ends_with("takes no input")
}

/// Most bytes of a stream that are kept for `--json`.
const MAX_KEPT: usize = 64 * 1024 * 1024;

/// Tells what happens to the task of one device, and shows what its command writes.
struct Teller {
    device: ClientId,
    screen: Screen,
    notices: Notices,
    show: Show,
    /// Where what it writes goes, and how much of it came.
    views: [View; 2],
    came: [u64; 2],
    /// How much nobody has any more.
    lost: [u64; 2],
    /// For programs: what came.
    kept: [Vec<u8>; 2],
    is_streamed: bool,
    /// Why it cannot be shown.
    broken: Option<io::Error>,
    stop: CancellationToken,
}

impl Teller {
    fn new(
        device: ClientId,
        screen: &Screen,
        notices: &Notices,
        show: Show,
        stop: &CancellationToken,
    ) -> Self {
        let name = safe_line(device.as_str());
        let label = show.labels.then_some(name.as_str());
        Self {
            screen: screen.clone(),
            notices: notices.clone(),
            show,
            views: Channel::ALL.map(|channel| screen.view(channel, label)),
            came: [0; 2],
            lost: [0; 2],
            kept: Default::default(),
            is_streamed: false,
            broken: None,
            stop: stop.clone(),
            device,
        }
    }

    fn tell_progress(&self, line: &str, step: Option<&constellation::Step>) {
        let said = match step.map(|step| step.status) {
            // What it writes; all of it is printed at the end.
            None => line.lines().last().map(safe_line),
            Some(StepStatus::Queued) => Some(safe_line(line)),
            Some(StepStatus::Running) => step.map(describe),
            Some(_) => None,
        };
        if let Some(said) = said {
            let device = safe_line(self.device.as_str());
            self.screen.spinner().say(&format!("{device}: {said}"));
        }
    }

    /// Shows what a device returned beside what was shown already; its exit code becomes ours.
    async fn show_outcome(&mut self, followed: &Followed) -> anyhow::Result<Code> {
        let results = results(value(&followed.outcome).as_ref());
        let returned = results.iter().flatten().next();
        let output = returned.and_then(CommandOutput::of);
        if self.show.json {
            print_json(&self.as_json(followed, output.as_ref()).to_string())?;
        } else {
            if let Some(output) = output.as_ref().filter(|_| !self.is_streamed) {
                self.show_text(Channel::Stdout, &output.stdout).await;
                self.show_text(Channel::Stderr, &output.stderr).await;
            }
            for view in &mut self.views {
                let finished = view.finish().await;
                self.broken = self.broken.take().or(finished.err());
            }
        }
        if let Some(error) = self.broken.take().filter(|error| !is_closed(error)) {
            return Err(anyhow::Error::from(error).context("cannot write the output"));
        }
        let name = safe_line(self.device.as_str());
        if !followed.outcome.completed {
            say!("{RED}{name}{RED:#}: {}", safe_line(&followed.ending.why()));
            return Ok(followed.ending.exec_code());
        }
        let missing = self.missing(output.as_ref());
        if let Some(missing) = &missing {
            say!("{RED}{name}{RED:#}: {missing}");
        }
        // An exit code is a byte; whatever else a device says is no command's own.
        let (code, error) = output.map_or((None, None), |output| (output.exit_code, output.error));
        if let Some(byte) = code.and_then(|code| u8::try_from(code).ok()) {
            return Ok(match Code(byte) {
                Code::COMPLETED if missing.is_some() => Code::EXEC_OTHER,
                code => code,
            });
        }
        let why = error.unwrap_or_else(|| {
            let result = returned.and_then(|returned| returned.result.as_ref());
            format!("this is no command's output: {}", result.map_or("nothing", Payload::as_str))
        });
        say!("{RED}{name}{RED:#}: {}", safe_line(&why));
        Ok(if is_timeout(&why) { Code::EXEC_TIMED_OUT } else { Code::EXEC_OTHER })
    }

    async fn show_text(&mut self, channel: Channel, text: &str) {
        let shown = self.views[channel as usize].write(text.as_bytes()).await;
        self.broken = self.broken.take().or(shown.err());
    }

    /// What is not there of what the command wrote, in words.
    fn missing(&self, output: Option<&CommandOutput>) -> Option<String> {
        let wrote = output.map(|output| [output.stdout_bytes, output.stderr_bytes]);
        if !self.is_streamed {
            let output = output.filter(|output| output.truncated)?;
            let [stdout, stderr] =
                [output.stdout_bytes, output.stderr_bytes].map(|n| n.unwrap_or(0));
            return Some(format!(
                "its output is not whole: of {} bytes its device has kept the beginning and the end",
                stdout + stderr
            ));
        }
        let wrote = wrote.unwrap_or_default();
        let missing = Channel::ALL.map(|channel| {
            let at = channel as usize;
            let whole = wrote[at].unwrap_or(self.came[at] + self.lost[at]);
            whole.saturating_sub(self.came[at])
        });
        let parts = Channel::ALL.iter().zip(missing).filter(|(_, bytes)| *bytes > 0);
        let parts: Vec<_> = parts
            .map(|(channel, bytes)| format!("{bytes} bytes of {}", channel.as_str()))
            .collect();
        (!parts.is_empty())
            .then(|| format!("its output is not whole: {} are lost", parts.join(" and ")))
    }

    fn as_json(&self, followed: &Followed, output: Option<&CommandOutput>) -> Value {
        let mut object = as_json(&self.device, followed, output);
        let is_cut = if self.is_streamed {
            for channel in Channel::ALL {
                let kept = String::from_utf8_lossy(&self.kept[channel as usize]);
                object[channel.as_str()] = json!(kept);
            }
            let kept = self.kept.iter().map(|kept| kept.len() as u64);
            self.missing(output).is_some() || kept.zip(self.came).any(|(kept, came)| kept < came)
        } else {
            output.is_some_and(|output| output.truncated)
        };
        object["truncated"] = json!(is_cut);
        object
    }
}

impl Watcher for Teller {
    /// For people the spinner says what it is about; programs are told that the task is accepted, and as what.
    fn tell(&mut self, event: &TaskEvent) {
        match event {
            TaskEvent::Progress { line, step } => self.tell_progress(line, step.as_deref()),
            _ if self.show.json => {
                if let Some(mut said) = event_json(event, &self.notices) {
                    if matches!(event, TaskEvent::Accepted { .. }) {
                        said["device"] = json!(self.device);
                    }
                    say!("{}", escape_json(&said.to_string()));
                }
            }
            _ => {
                let said = self.notices.of(event);
                said.iter().for_each(|said| self.screen.spinner().line(said));
            }
        }
    }

    async fn show(&mut self, output: &Output) {
        let at = output.channel as usize;
        self.is_streamed = true;
        self.came[at] += output.bytes.len() as u64;
        self.lost[at] += output.lost;
        if self.show.json {
            let room = MAX_KEPT - self.kept[at].len();
            self.kept[at].extend(output.bytes.iter().take(room));
        } else if self.broken.is_none()
            && let Err(error) = self.views[at].write(&output.bytes).await
        {
            // Nobody reads it any more: then nobody wants it to go on.
            self.broken = Some(error);
            self.stop.cancel();
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// Tells of a device whose task did not get as far as the server. Returns the code that it stands for.
fn say_not_submitted(device: &ClientId, failure: &Failure, show: Show) -> anyhow::Result<Code> {
    show_not_submitted(device, failure, show)?;
    let (name, why) = (device.as_str(), format!("{:#}", failure.error));
    say!("{RED}{}{RED:#}: {}", safe_line(name), safe_line(&why));
    Ok(failure.code.of_exec())
}

/// Tells programs of a device whose task did not get as far as the server.
fn show_not_submitted(device: &ClientId, failure: &Failure, show: Show) -> anyhow::Result<()> {
    if !show.json {
        return Ok(());
    }
    print_json(&as_json(device, &Followed::not_submitted(failure), None).to_string())
}

fn as_json(device: &ClientId, followed: &Followed, output: Option<&CommandOutput>) -> Value {
    let Followed { ending, task, .. } = followed;
    json!({
        "device": device,
        "task": task,
        "status": ending.status(),
        "known": ending.known.map(Known::as_str),
        "refused": ending.refused(),
        "error": ending.error.as_ref().or_else(|| output.and_then(|output| output.error.as_ref())),
        "exit_code": output.and_then(|output| output.exit_code),
        "stdout": output.map(|output| &output.stdout),
        "stderr": output.map(|output| &output.stderr),
        "truncated": false,
    })
}
