//! When it is which device's turn: so many at once, and none any more after so many failures.

use std::collections::VecDeque;

use constellation::{ClientId, Task};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::super::follow::{Notices, accepted};
use super::recap::Recap;
use super::screen::Screen;
use super::{Asked, Show, Submit, Teller, one, print_id, say_not_submitted, waiting};
use crate::output::Spinner;
use crate::{Code, Failure};

/// Why it was not started on a device after Ctrl-C.
pub(super) const CANCELLED_BEFORE: &str = "not started, since it was cancelled before";

/// What is to be run on each device, and in which order.
pub(super) struct Schedule<'a> {
    pub(super) submit: Submit<'a>,
    pub(super) asked: Asked,
    /// Devices that run it at the same time.
    pub(super) at_once: usize,
    /// No further device begins once it has failed on so many.
    pub(super) stop_after: usize,
    pub(super) show: Show,
    pub(super) stop: &'a CancellationToken,
}

impl Schedule<'_> {
    /// Runs it on each device in its turn, and shows what each one writes as it comes. Returns the worst code.
    pub(super) async fn run(
        &self,
        devices: Vec<ClientId>,
        recap: &mut Recap,
    ) -> anyhow::Result<Code> {
        let (mut left, notices) = (devices.len(), Notices::default());
        let screen = Screen::new(Spinner::new(&waiting(left)), self.show.escapes);
        let (mut queue, mut running) = (VecDeque::from(devices), FuturesUnordered::new());
        let mut worst = Code::COMPLETED;
        loop {
            while running.len() < self.at_once && !self.is_over(recap) {
                let Some(device) = queue.pop_front() else { break };
                match self.submitted(&device, self.asked.input, recap)? {
                    Ok(task) => {
                        recap.begun(&device);
                        let teller = Teller::new(device, &screen, &notices, self.show, self.stop);
                        running.push(one(teller, task, self.stop, self.asked, self.submit));
                    }
                    Err(code) => {
                        left -= 1;
                        worst = worst.max(code);
                    }
                }
            }
            let Some((mut teller, followed)) = running.next().await else { break };
            left -= 1;
            if left > 0 {
                screen.spinner().say(&waiting(left));
            } else {
                screen.spinner().clear();
            }
            let (code, own) = teller.show_outcome(&followed).await?;
            recap.ended(&teller.device, code, own);
            worst = worst.max(code);
        }
        screen.spinner().clear();
        if self.stop.is_cancelled() && !queue.is_empty() {
            worst = worst.max(Code::EXEC_CANCELLED);
        }
        for device in queue {
            self.not_started(&device, recap)?;
        }
        Ok(worst)
    }

    /// Submits to all of them, waits until the server has each task, and prints their ids. Returns the worst code.
    pub(super) async fn all_accepted(
        &self,
        devices: Vec<ClientId>,
        recap: &mut Recap,
    ) -> anyhow::Result<Code> {
        let (spinner, notices) = (Spinner::new("submitted"), Notices::default());
        let (mut submitted, mut worst) = (Vec::new(), Code::COMPLETED);
        for device in devices {
            match self.submitted(&device, false, recap)? {
                Ok(task) => {
                    recap.begun(&device);
                    submitted.push((device, task));
                }
                Err(code) => worst = worst.max(code),
            }
        }
        for (device, task) in submitted {
            let tell = |event: &_| notices.of(event).iter().for_each(|said| spinner.line(said));
            match accepted(task, self.stop, tell).await {
                Ok(id) => {
                    recap.submitted(&device);
                    print_id(&device, &id, self.show)?;
                }
                Err(followed) => {
                    let screen = Screen::new(Spinner::new(""), self.show.escapes);
                    let mut teller = Teller::new(device, &screen, &notices, self.show, self.stop);
                    let (code, own) = teller.show_outcome(&followed).await?;
                    recap.ended(&teller.device, code, own);
                    worst = worst.max(code);
                }
            }
        }
        Ok(worst)
    }

    /// Submits the task for a device; where that does not work, says so and returns the code that it stands for.
    fn submitted(
        &self,
        device: &ClientId,
        has_input: bool,
        recap: &mut Recap,
    ) -> anyhow::Result<Result<Task, Code>> {
        match (self.submit)(device, has_input).map_err(Failure::unreachable) {
            Ok(task) => Ok(Ok(task)),
            Err(failure) => {
                recap.left_out(device, failure.code);
                say_not_submitted(device, &failure, self.show).map(Err)
            }
        }
    }

    /// Whether no further device begins.
    fn is_over(&self, recap: &Recap) -> bool {
        self.stop.is_cancelled() || recap.failures() >= self.stop_after
    }

    fn not_started(&self, device: &ClientId, recap: &mut Recap) -> anyhow::Result<()> {
        let why = match self.stop.is_cancelled() {
            true => CANCELLED_BEFORE.to_owned(),
            false => format!("not started, since it failed on {} before", recap.failures()),
        };
        recap.not_started(device);
        // The recap names it; a line for each would hide the others.
        super::show_not_started(device, why, self.show)
    }
}
