//! Shows what the commands of a task have written since their start, out of what their device keeps of it.

use std::time::Duration;

use aip::message::Channel;
use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use super::super::exec::screen::{Screen, View};
use super::super::follow::CommandOutput;
use super::follow::{PACE, PATIENCE, say_json};
use crate::api::{Api, Output, Step, TaskId};
use crate::output::{RED, safe_line};
use crate::{Code, Failure};

/// Longest time without a byte before it is asked for anew: a silent command has none, and a lost server neither.
const SILENCE: Duration = Duration::from_secs(60);

/// The tool that runs commands.
const COMMAND: &str = "execute_command";

/// How much of an output there still is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kept {
    All,
    Some,
    None,
}

/// What is shown of a task's steps.
pub(super) struct Outputs<'a> {
    api: &'a Api<'a>,
    task: TaskId,
    /// Where it goes; as events for programs, where there is none.
    screen: Option<Screen>,
}

impl<'a> Outputs<'a> {
    pub(super) const fn new(api: &'a Api<'a>, task: TaskId, screen: Option<Screen>) -> Self {
        Self { api, task, screen }
    }

    /// Shows all that a step's command writes, up to its end.
    pub(super) async fn show(&self, step: &Step) -> Result<Kept, Failure> {
        if !is_command(step) {
            return Ok(Kept::All);
        }
        let [stdout, stderr] = Channel::ALL.map(|channel| self.show_stream(step.n, channel));
        let (stdout, stderr) = tokio::try_join!(stdout, stderr)?;
        Ok(stdout.max(stderr))
    }

    /// Shows what the results of a step have of its command's output.
    pub(super) async fn show_results(&self, step: &Step) -> Result<Kept, Failure> {
        let output =
            step.actions.first().and_then(|action| CommandOutput::read(action.result.as_ref()));
        let Some(output) = output.filter(|_| is_command(step)) else { return Ok(Kept::All) };
        for (channel, text) in Channel::ALL.into_iter().zip([output.stdout, output.stderr]) {
            let mut view = self.view(step.n, channel);
            view.write(0, text.into()).await?;
            view.finish().await?;
        }
        if output.truncated {
            say!("{RED}step {}{RED:#}: its device has kept the beginning and the end", step.n);
            return Ok(Kept::Some);
        }
        Ok(Kept::All)
    }

    async fn show_stream(&self, step: u32, channel: Channel) -> Result<Kept, Failure> {
        let (mut view, mut at) = (self.view(step, channel), 0);
        let (mut since, mut kept, mut is_told) = (Instant::now(), Kept::All, false);
        loop {
            let why = match self.api.output(self.task, step, channel.as_str(), at).await {
                Ok(Output::NotKept) if at == 0 => return Ok(Kept::None),
                Ok(Output::NotKept) => {
                    let text = "its device keeps the rest no more";
                    return Err(Failure { code: Code::FAILED, error: anyhow::anyhow!(text) });
                }
                Ok(Output::Bytes(begin, mut body)) => {
                    if begin > at {
                        let (name, lost) = (channel.as_str(), begin - at);
                        say!("{RED}step {step}{RED:#}: {lost} bytes of {name} are no longer kept");
                        (at, kept) = (begin, Kept::Some);
                    }
                    loop {
                        match tokio::time::timeout(SILENCE, body.chunk()).await {
                            Ok(Ok(Some(bytes))) => {
                                let end = at + bytes.len() as u64;
                                view.write(at, bytes).await?;
                                at = end;
                                since = Instant::now();
                            }
                            Ok(Ok(None)) => {
                                view.finish().await?;
                                return Ok(kept);
                            }
                            // It broke off.
                            Ok(Err(_)) => break "it breaks off again and again".to_owned(),
                            Err(_) => {
                                since = Instant::now();
                                break "it is silent".to_owned();
                            }
                        }
                    }
                }
                Ok(Output::NotNow(why)) => why,
                Err(failure) if failure.code == Code::UNREACHABLE => format!("{:#}", failure.error),
                Err(failure) => return Err(failure),
            };
            if since.elapsed() > PATIENCE {
                let error =
                    anyhow::anyhow!("the rest of the output cannot be had: {}", safe_line(&why));
                return Err(Failure { code: Code::UNREACHABLE, error });
            }
            // Once for both streams.
            if channel == Channel::Stdout && !std::mem::replace(&mut is_told, true) {
                say!("step {step}: {}; waiting for it", safe_line(&why));
            }
            tokio::time::sleep(PACE).await;
        }
    }

    fn view(&self, step: u32, channel: Channel) -> To {
        match &self.screen {
            Some(screen) => To::Screen(Box::new(screen.view(channel, None))),
            None => To::Events(step, channel),
        }
    }
}

/// Whether a step is one command.
fn is_command(step: &Step) -> bool {
    matches!(step.actions.as_slice(), [action] if action.tool_name.ends_with(COMMAND))
}

/// Where a stream goes.
enum To {
    Screen(Box<View>),
    /// Of this step, as events.
    Events(u32, Channel),
}

impl To {
    async fn write(&mut self, offset: u64, bytes: Bytes) -> anyhow::Result<()> {
        match self {
            Self::Screen(view) => view.write(bytes).await?,
            Self::Events(..) if bytes.is_empty() => {}
            Self::Events(step, channel) => say_json(&json!({
                "event": "output",
                "step": step,
                "stream": channel.as_str(),
                "offset": offset,
                "text": String::from_utf8_lossy(&bytes),
            })),
        }
        Ok(())
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        if let Self::Screen(view) = self {
            view.finish().await?;
        }
        Ok(())
    }
}
