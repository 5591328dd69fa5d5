//! Tools that the program around the device brings: one that embeds this crate, or a simulation.

use std::pin::Pin;
use std::sync::Arc;

use aip::message::Channel;
use aip::{Payload, ToolInfo};
use tokio_util::sync::CancellationToken;

use super::Call;
use super::catalog::{Origin, Tool};
use crate::flow::Flow;
use crate::policy::Decision;
use crate::progress::Progress;

/// A tool that the program around the device brings. It is offered, judged and bounded like the device's own.
pub trait EmbeddedTool: Send + Sync {
    /// The tool, as it is listed. Its key is made by the device.
    fn info(&self) -> ToolInfo;

    /// Runs the tool. It must end soon after `stop`.
    ///
    /// # Errors
    /// Why it could not run, for its caller to read.
    fn call(
        &self,
        arguments: Option<Payload>,
        stop: CancellationToken,
        progress: Progress,
        output: Output,
    ) -> Running;
}

/// Where a tool writes what its requester gets as it is written; nowhere, where none asked for that.
#[derive(Clone, Default)]
pub struct Output(Option<Flow>);

impl Output {
    /// Whether anybody gets it.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Writes some bytes. Waits until the requester has taken enough of what came before.
    pub async fn write(&self, channel: Channel, bytes: &[u8]) {
        let (Some(flow), mut rest) = (&self.0, bytes) else { return };
        while !rest.is_empty() {
            let room = flow.room(channel).await;
            let (now, later) = rest.split_at(room.min(rest.len()));
            flow.push(channel, now);
            rest = later;
        }
    }
}

/// A call of an [`EmbeddedTool`] on its way.
pub type Running = Pin<Box<dyn Future<Output = Result<Payload, String>> + Send>>;

/// The embedded tools of a device.
#[derive(Clone, Default)]
pub(super) struct Embedded(Vec<Arc<dyn EmbeddedTool>>);

impl Embedded {
    pub(super) fn new(tools: &[Arc<dyn EmbeddedTool>]) -> Self {
        Self(tools.to_vec())
    }

    pub(super) fn tools(&self) -> Vec<Tool> {
        let tool = |(n, tool): (usize, &Arc<dyn EmbeddedTool>)| {
            let info = tool.info();
            let believed = info.tool_type;
            Tool { info, origin: Origin::Embedded(n), believed, usual: Decision::Allow }
        };
        self.0.iter().enumerate().map(tool).collect()
    }

    pub(super) async fn call(&self, number: usize, call: &Call<'_>) -> Result<Payload, String> {
        let tool = self.0.get(number).ok_or("there is no such tool")?;
        let flow = call.flow.filter(|flow| flow.takes_output());
        flow.into_iter().for_each(Flow::begin);
        let (parameters, stop) = (call.parameters.cloned(), call.stop.clone());
        let output = Output(flow.cloned());
        let returned = tool.call(parameters, stop, call.progress.clone(), output).await;
        for channel in Channel::ALL {
            flow.into_iter().for_each(|flow| flow.push(channel, &[]));
        }
        returned
    }
}
