//! Tells what happens to the task of one device, and shows what its command writes.

use std::io;

use aip::visible::escape_json;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use constellation::{Channel, ClientId, Output, Payload, StepStatus, TaskEvent};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::super::follow::{CommandOutput, Followed, Notices, Watcher, describe, event_json};
use super::screen::{Screen, View};
use super::{Show, as_json};
use crate::Code;
use crate::ending::{is_timeout, results, value};
use crate::output::{RED, print_json, safe_line};

/// Most bytes of a stream that are kept for `--json`.
const MAX_KEPT: usize = 64 * 1024 * 1024;

/// Tells what happens to the task of one device, and shows what its command writes.
pub(super) struct Teller {
    pub(super) device: ClientId,
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
    pub(super) fn new(
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

    /// Shows what a device returned beside what was shown already; its exit code becomes ours. Returns also
    /// the one that is the command's own.
    pub(super) async fn show_outcome(
        &mut self,
        followed: &Followed,
    ) -> anyhow::Result<(Code, Option<i32>)> {
        let results = results(value(&followed.outcome).as_ref());
        let returned = results.iter().flatten().next();
        let output = returned.and_then(CommandOutput::of);
        if self.show.json {
            print_json(&self.as_json(followed, output.as_ref()).to_string())?;
        } else {
            if let Some(output) = output.as_ref().filter(|_| !self.is_streamed) {
                self.show_text(Channel::Stdout, output.stdout.clone()).await;
                self.show_text(Channel::Stderr, output.stderr.clone()).await;
            }
            for view in &mut self.views {
                let finished = view.finish().await;
                self.broken = self.broken.take().or(finished.err());
            }
        }
        if let Some(error) = self.broken.take().filter(|error| !is_closed(error)) {
            return Err(anyhow::Error::from(error).context("cannot write the output"));
        }
        if !followed.outcome.completed {
            self.say(&safe_line(&followed.ending.why()));
            return Ok((followed.ending.exec_code(), None));
        }
        let missing = self.missing(output.as_ref());
        if let Some(missing) = &missing {
            self.say(missing);
        }
        // An exit code is a byte; whatever else a device says is no command's own.
        let (code, error) = output.map_or((None, None), |output| (output.exit_code, output.error));
        if let Some(byte) = code.and_then(|code| u8::try_from(code).ok()) {
            return Ok(match Code(byte) {
                Code::COMPLETED if missing.is_some() => (Code::EXEC_OTHER, code),
                own => (own, code),
            });
        }
        let why = error.unwrap_or_else(|| {
            let result = returned.and_then(|returned| returned.result.as_ref());
            format!("this is no command's output: {}", result.map_or("nothing", Payload::as_str))
        });
        self.say(&safe_line(&why));
        let code = if is_timeout(&why) { Code::EXEC_TIMED_OUT } else { Code::EXEC_OTHER };
        Ok((code, None))
    }

    /// Says what is wrong with it, above what shows that others are waited for.
    fn say(&self, what: &str) {
        let name = safe_line(self.device.as_str());
        self.screen.spinner().line(&format!("{RED}{name}{RED:#}: {what}"));
    }

    async fn show_text(&mut self, channel: Channel, text: String) {
        let shown = self.views[channel as usize].write(text.into()).await;
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
                let (name, kept) = (channel.as_str(), &self.kept[channel as usize]);
                object[name] = json!(String::from_utf8_lossy(kept));
                if std::str::from_utf8(kept).is_err() {
                    object[format!("{name}_base64")] = json!(STANDARD.encode(kept));
                }
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
            && let Err(error) = self.views[at].write(output.bytes.clone()).await
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
