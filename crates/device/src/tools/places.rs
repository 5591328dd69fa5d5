//! How many calls run at the same time, so that a machine that is asked for a lot does a little at a time.

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::catalog::Origin;
use super::{STOPPED, Tool, bash};

/// The places of the device's own tools, and those of each MCP server: one that hangs holds up nobody else.
pub(super) struct Places {
    own: Semaphore,
    /// By their numbers in the [host](super::mcp).
    servers: Vec<Semaphore>,
}

impl Places {
    /// `each` for the own tools, and for each of so many servers.
    pub(super) fn new(each: usize, servers: usize) -> Self {
        Self {
            own: Semaphore::new(each),
            servers: (0..servers).map(|_| Semaphore::new(each)).collect(),
        }
    }

    /// Waits for a place for a call of this tool; none, if it takes no time that would count.
    ///
    /// # Errors
    /// When it was stopped.
    pub(super) async fn take(
        &self,
        tool: &Tool,
        stop: &CancellationToken,
    ) -> Result<Option<SemaphorePermit<'_>>, String> {
        let Some(places) = self.of(tool) else { return Ok(None) };
        tokio::select! {
            biased;
            place = places.acquire() => Ok(place.ok()),
            () = stop.cancelled() => Err(STOPPED.to_owned()),
        }
    }

    fn of(&self, tool: &Tool) -> Option<&Semaphore> {
        match tool.origin {
            Origin::Bash if tool.info.tool_name == bash::GET_SYSTEM_INFO => None,
            Origin::Bash | Origin::Files | Origin::Screen | Origin::Embedded(_) => Some(&self.own),
            Origin::Mcp(number) => self.servers.get(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use aip::ToolType;

    use super::*;

    #[tokio::test]
    async fn whoever_takes_all_places_of_one_origin_holds_up_no_other() {
        let tool = |origin, name| Tool::built_in(origin, "n", name, ToolType::Action);
        let (places, stop) = (Places::new(1, 2), CancellationToken::new());
        let hung = tool(Origin::Mcp(0), "t");
        let taken = places.take(&hung, &stop).await.unwrap();
        let own = places.take(&tool(Origin::Files, "t"), &stop).await.unwrap();
        let other = places.take(&tool(Origin::Mcp(1), "t"), &stop).await.unwrap();
        assert!(own.is_some() && other.is_some());
        let free = places.take(&tool(Origin::Bash, bash::GET_SYSTEM_INFO), &stop).await;
        assert!(free.unwrap().is_none());

        stop.cancel();
        for waits in [hung, tool(Origin::Screen, "t")] {
            assert_eq!(places.take(&waits, &stop).await.unwrap_err(), STOPPED);
        }
        drop(taken);
    }
}
