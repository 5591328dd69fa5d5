//! Keeps one MCP server running for the device's life: starts it, lists its tools, and starts it again when it
//! dies. Who calls it sees only how it is [`Now`](super::state::Now).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aip::machine::Backoff;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::client::McpClient;
use super::listing::Listing;
use super::message::escaped;
use super::server::{Shared, lock};
use super::start::{self, Started};
use super::state::{ServerEvent, ServerState};
use crate::tools::STOPPED;

/// First wait before a server is started again; it doubles up to [`BACKOFF_CAP`].
const BACKOFF_BASE: Duration = Duration::from_millis(500);

/// Longest wait before a server is started again.
const BACKOFF_CAP: Duration = Duration::from_secs(60);

/// A server that has run for so long counts as sound: the waits start over.
const SOUND_AFTER: Duration = Duration::from_secs(60);

/// Least time from a try that came to nothing to one that a call asks for.
const CALLED_PAUSE: Duration = Duration::from_millis(250);

/// Least time between two listings that a server asks for.
const LISTING_PAUSE: Duration = Duration::from_millis(200);

/// Longest wait for calls to find by themselves that their connection is lost.
const LOSS_TIME: Duration = Duration::from_millis(100);

const LOST: &str = "the connection to it was lost";

impl Shared {
    /// Keeps it running until it is told to stop.
    pub(super) async fn supervise(self: Arc<Self>, stop: CancellationToken) {
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP);
        while !stop.is_cancelled() {
            self.set(ServerState::Starting, None);
            let why = match self.start_once(&stop).await {
                Ok(started) => {
                    let since = Instant::now();
                    let why = Box::pin(self.run(started, &stop)).await;
                    if since.elapsed() >= SOUND_AFTER {
                        backoff.reset();
                    }
                    why
                }
                Err(why) => Some(why),
            };
            if let Some(why) = why.filter(|_| !stop.is_cancelled()) {
                let retry = backoff.next_wait(fastrand::f64());
                self.set(ServerState::Down { why, retry }, None);
                self.wait(retry, &stop).await;
            }
        }
        self.set(ServerState::Stopped, None);
    }

    async fn start_once(&self, stop: &CancellationToken) -> Result<Started, String> {
        let starting =
            start::start(self.origin, &self.settings, &self.limits, self.watchdog.as_deref());
        tokio::select! {
            started = Box::pin(starting) => started,
            () = stop.cancelled() => Err(STOPPED.to_owned()),
        }
    }

    /// Serves calls until it dies, which has a reason, or is to be started anew. A server that is only
    /// connected to is that at once when its connection is lost: what is in the way then is the reason.
    async fn run(&self, mut started: Started, stop: &CancellationToken) -> Option<String> {
        let client = started.client.clone();
        self.up(&client, std::mem::take(&mut started.listing));
        let end = async {
            let is_lost = tokio::select! {
                never = self.keep_listed(&client) => match never {},
                () = client.lost() => true,
                () = self.restart.notified() => false,
                () = stop.cancelled() => false,
            };
            if is_lost && self.is_program() {
                return Some(LOST);
            }
            // From here on calls wait for the next start.
            self.set(ServerState::Starting, None);
            if is_lost {
                // Those that are not sent shall know it.
                let _cut_off = timeout(LOSS_TIME, client.idle()).await;
            }
            None
        };
        let (came, how) = started.until(end).await;
        let why = came.unwrap_or(Some(if self.is_program() { "it ended" } else { LOST }))?;
        let why = client.why_broken_off().unwrap_or_else(|| why.to_owned());
        Some(match how {
            Some(how) => format!("{why} ({how})"),
            None => why,
        })
    }

    fn up(&self, client: &McpClient, listing: Listing) {
        if let Some(which) = listing.left_out() {
            self.warn(format!("tools are left out: {which}"));
        }
        let state = ServerState::Up { tools: listing.tools.len() };
        *lock(&self.tools) = listing.tools.into();
        self.set(state, Some(client.clone()));
    }

    /// Lists the tools again whenever the server says that they have changed.
    async fn keep_listed(&self, client: &McpClient) -> Infallible {
        let mut subscription = client.subscribe().await;
        loop {
            match &mut subscription {
                Some(changes) => match changes.next().await {
                    Ok(Some(_)) => {}
                    // It tells no more: what it told by then was taken.
                    _ => subscription = None,
                },
                None => client.tools_changed().await,
            }
            let limit = self.limits.start_timeout;
            let listing = start::list(client, self.origin, &self.settings);
            match timeout(limit, listing).await {
                Ok(Ok(listing)) => self.up(client, listing),
                Ok(Err(why)) => self.warn(format!("its tools cannot be listed: {why}")),
                Err(_) => {
                    let limit = limit.as_secs_f64();
                    self.warn(format!("its tools cannot be listed: no answer within {limit} s"));
                }
            }
            tokio::time::sleep(LISTING_PAUSE).await;
        }
    }

    /// Waits so long, unless it shall be tried earlier.
    async fn wait(&self, time: Duration, stop: &CancellationToken) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.wanted() => {}
            () = self.restart.notified() => {}
            () = stop.cancelled() => {}
        }
    }

    /// Waits until somebody wants a try, and the last one was long enough ago.
    async fn wanted(&self) {
        let (pause, mut now) = (tokio::time::sleep(CALLED_PAUSE), self.now.subscribe());
        drop(now.wait_for(|now| now.is_wanted).await);
        pause.await;
    }

    fn set(&self, state: ServerState, client: Option<McpClient>) {
        self.now.send_modify(|now| now.change(state.clone(), client));
        self.tell(state);
    }

    /// Tells the owner, if it is news.
    fn tell(&self, state: ServerState) {
        let server = &self.settings.namespace;
        let is_news = {
            let mut told = lock(&self.told);
            let is_news = state.is_news(&told);
            if is_news {
                *told = state.clone();
            }
            is_news
        };
        match state {
            state if is_news => {
                let (namespace, is_program) = (server.clone(), self.is_program());
                (self.on_event)(ServerEvent { namespace, is_program, state });
            }
            ServerState::Down { why, retry } => {
                let why = why.escape_debug();
                tracing::debug!(%server, %why, ?retry, "another try came to nothing");
            }
            _ => {}
        }
    }

    /// Warns of what may come again and again: once, until it is something else.
    fn warn(&self, what: String) {
        let server = &self.settings.namespace;
        let mut warned = lock(&self.warned);
        if *warned == what {
            return tracing::debug!(%server, "{}", escaped(&what));
        }
        tracing::warn!(%server, "{}", escaped(&what));
        *warned = what;
    }
}
