//! One MCP server for the device's life: started, listed, called, and started again when it dies.
//!
//! It must not know how a server is reached, nor who asks for which of its tools.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aip::machine::Backoff;
use aip::{Payload, SessionId, ToolType};
use link::Trust;
use tokio::sync::{Notify, RwLock, RwLockReadGuard, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::client::{CallError, Client};
use super::listing::Listed;
use super::settings::{Section, ServerSettings};
use super::start::{self, Started};
use super::{OnEvent, ServerEvent};
use crate::confine::Confinement;
use crate::tools::Call;
use crate::tools::catalog::{Origin, Tool};
use crate::watchdog::Watchdog;

/// First wait before a server is started again; it doubles up to [`BACKOFF_CAP`].
const BACKOFF_BASE: Duration = Duration::from_millis(500);

/// Longest wait before a server is started again.
const BACKOFF_CAP: Duration = Duration::from_secs(60);

/// A server that has run for so long counts as sound: the waits start over.
const SOUND_AFTER: Duration = Duration::from_secs(60);

/// Least time between two listings that a server asks for.
const LISTING_PAUSE: Duration = Duration::from_millis(200);

/// Longest wait for a server to end at the device's own end.
const STOP_TIME: Duration = Duration::from_secs(4);

/// The limits of every server.
#[derive(Clone)]
pub(in crate::tools) struct Limits {
    pub(in crate::tools) start_timeout: Duration,
    pub(in crate::tools) call_timeout: Duration,
    /// Whose certificates are trusted, beside the system's.
    pub(in crate::tools) trust: Option<Trust>,
    /// What no child process may do.
    pub(in crate::tools) confinement: Confinement,
}

/// How a server is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerState {
    /// It is being started.
    Starting,
    /// It runs.
    Up {
        /// How many tools it has.
        tools: usize,
    },
    /// It does not run.
    Down {
        /// Why.
        why: String,
        /// When it is started again.
        retry: Duration,
    },
    /// It was stopped.
    Stopped,
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Up { tools: 1 } => f.write_str("runs: 1 tool"),
            Self::Up { tools } => write!(f, "runs: {tools} tools"),
            Self::Down { why, .. } => write!(f, "does not run: {why}"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// One server. Dropping it stops the server.
pub(super) struct Server {
    inner: Arc<Inner>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _dropped: DropGuard,
}

struct Inner {
    origin: Origin,
    settings: ServerSettings,
    limits: Limits,
    watchdog: Option<Arc<Watchdog>>,
    on_event: OnEvent,
    now: watch::Sender<Now>,
    /// The tools as they were listed last, also while it does not run.
    tools: Mutex<Arc<[Listed]>>,
    /// Somebody wants it started anew.
    restart: Notify,
    /// The task that it runs for, where each gets a fresh one. Calls hold it for reading.
    task: RwLock<Option<SessionId>>,
}

/// How a server is, and the way to it.
#[derive(Clone)]
pub(super) struct Now {
    pub(super) state: ServerState,
    /// Why it did not run, the last time that it did not; none while it runs.
    trouble: Option<String>,
    client: Option<Client>,
    /// How many starts have come to something, good or bad.
    starts: u64,
}

impl Server {
    /// Starts a server. Must be called in a runtime.
    pub(super) fn start(
        origin: Origin,
        settings: ServerSettings,
        limits: Limits,
        watchdog: Option<Arc<Watchdog>>,
        on_event: OnEvent,
    ) -> Arc<Self> {
        let now = Now { state: ServerState::Starting, trouble: None, client: None, starts: 0 };
        let inner = Arc::new(Inner {
            origin,
            settings,
            limits,
            watchdog,
            on_event,
            now: watch::Sender::new(now),
            tools: Mutex::new(Arc::from([])),
            restart: Notify::new(),
            task: RwLock::default(),
        });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(inner.clone().supervise(stop.clone()));
        tasks.close();
        Arc::new(Self { inner, tasks, _dropped: stop.clone().drop_guard(), stop })
    }

    pub(super) fn namespace(&self) -> &str {
        &self.inner.settings.namespace
    }

    pub(super) fn sections(&self) -> &[Section] {
        &self.inner.settings.sections
    }

    #[cfg(test)]
    pub(super) fn watch(&self) -> watch::Receiver<Now> {
        self.inner.now.subscribe()
    }

    #[cfg(test)]
    pub(super) fn state(&self) -> ServerState {
        self.inner.now.borrow().state.clone()
    }

    /// Why it does not run, if it has not run since.
    pub(super) fn trouble(&self) -> Option<String> {
        self.inner.now.borrow().trouble.clone()
    }

    /// Whether the first start has come to something, good or bad.
    pub(super) fn is_settled(&self) -> bool {
        self.inner.now.borrow().starts > 0
    }

    /// Waits for that. It takes no longer than a start may.
    pub(super) async fn settled(&self) {
        let mut now = self.inner.now.subscribe();
        let _gone = now.wait_for(|now| now.starts > 0).await;
    }

    /// Its tools, as they were listed last.
    pub(super) fn tools(&self, as_type: Option<ToolType>) -> Vec<Arc<Tool>> {
        self.inner.listed().iter().map(|tool| tool.offered(as_type).clone()).collect()
    }

    /// Calls a tool.
    ///
    /// # Errors
    /// What the tool says went wrong, or why it could not be called.
    pub(super) async fn call(&self, tool_name: &str, call: &Call<'_>) -> Result<Payload, String> {
        let inner = &self.inner;
        let _task = inner.fresh_for(call).await?;
        let client = inner.client(call.stop).await?;
        let tools = inner.listed();
        let wraps = tools.iter().any(|tool| tool.name() == tool_name && tool.wraps);
        let called = client.call(tool_name, wraps, call, inner.limits.call_timeout).await;
        let namespace = &inner.settings.namespace;
        let unknown = |what: &str, why: &str| {
            format!(
                "The MCP server '{namespace}' {what} ({why}); it is not known whether the tool ran"
            )
        };
        called.map_err(|error| match error {
            CallError::Failed(why) => why,
            CallError::Unanswered(why) => unknown("did not answer as it should", &why),
            CallError::Lost(why) => unknown("was lost in the middle of the call", &why),
            CallError::NotSent(why) => format!(
                "The MCP server '{}' has just been lost ({why}) and is started again; the tool did not run",
                inner.settings.namespace
            ),
        })
    }

    /// Stops it, in its own time at first.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        let _killed_when_dropped = tokio::time::timeout(STOP_TIME, self.tasks.wait()).await;
    }
}

impl Inner {
    fn listed(&self) -> Arc<[Listed]> {
        self.tools.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, tools: Vec<Listed>) {
        *self.tools.lock().unwrap_or_else(PoisonError::into_inner) = tools.into();
    }

    /// The way to it, once it has started.
    async fn client(&self, stop: &CancellationToken) -> Result<Client, String> {
        let mut now = self.now.subscribe();
        tokio::select! {
            started = now.wait_for(|now| now.state != ServerState::Starting) => {
                started.ok().and_then(|now| now.client.clone()).ok_or_else(|| self.not_running())
            }
            () = stop.cancelled() => Err("stopped".to_owned()),
        }
    }

    fn not_running(&self) -> String {
        let (namespace, now) = (&self.settings.namespace, self.now.borrow());
        match (&now.state, &now.trouble) {
            (ServerState::Down { retry, .. }, Some(why)) => {
                let wait = retry.as_secs_f64().ceil();
                format!(
                    "The MCP server '{namespace}' does not run: {why}. It is started again in at most {wait} s"
                )
            }
            _ => format!("The MCP server '{namespace}' does not run"),
        }
    }

    /// For a server that each task gets fresh: sees to it that it runs for this one, and for no other until
    /// the answer is dropped.
    async fn fresh_for(
        &self,
        call: &Call<'_>,
    ) -> Result<Option<RwLockReadGuard<'_, Option<SessionId>>>, String> {
        if !self.settings.reset {
            return Ok(None);
        }
        let stopped = || "stopped".to_owned();
        // Also to read is to wait, for whoever waits to write.
        let held = tokio::select! {
            held = self.task.read() => held,
            () = call.stop.cancelled() => return Err(stopped()),
        };
        if *held == call.caller.session_id {
            return Ok(Some(held));
        }
        drop(held);
        let mut held = tokio::select! {
            held = self.task.write() => held,
            () = call.stop.cancelled() => return Err(stopped()),
        };
        // The first task finds it fresh.
        if held.is_some() && *held != call.caller.session_id {
            self.start_anew(call.stop).await?;
        }
        held.clone_from(&call.caller.session_id);
        Ok(Some(held.downgrade()))
    }

    async fn start_anew(&self, stop: &CancellationToken) -> Result<(), String> {
        let mut now = self.now.subscribe();
        let (is_starting, starts) = {
            let now = now.borrow();
            (now.state == ServerState::Starting, now.starts)
        };
        // What is just being started is new already.
        if !is_starting {
            self.restart.notify_one();
        }
        tokio::select! {
            _started = now.wait_for(|now| now.starts > starts) => Ok(()),
            () = stop.cancelled() => Err("stopped".to_owned()),
        }
    }

    /// Keeps it running until it is told to stop.
    async fn supervise(self: Arc<Self>, stop: CancellationToken) {
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
            () = stop.cancelled() => Err("stopped".to_owned()),
        }
    }

    /// Serves calls until it dies, which has a reason, or is to be started anew.
    async fn run(&self, mut started: Started, stop: &CancellationToken) -> Option<String> {
        let client = started.client.clone();
        self.up(&client, std::mem::take(&mut started.tools));
        let end = async {
            tokio::select! {
                never = self.keep_listed(&client) => match never {},
                () = client.lost() => return Some("the connection to it was lost"),
                () = self.restart.notified() => {}
                () = stop.cancelled() => {}
            }
            // From here on calls wait for the next start.
            self.set(ServerState::Starting, None);
            None
        };
        let (came, how) = started.until(end).await;
        let why = came.unwrap_or(Some("it ended"))?;
        let why = client.why_broken_off().unwrap_or_else(|| why.to_owned());
        Some(match how {
            Some(how) => format!("{why} ({how})"),
            None => why,
        })
    }

    fn up(&self, client: &Client, tools: Vec<Listed>) {
        let state = ServerState::Up { tools: tools.len() };
        self.keep(tools);
        self.set(state, Some(client.clone()));
    }

    /// Lists the tools again whenever the server says that they have changed.
    async fn keep_listed(&self, client: &Client) -> Infallible {
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
            match start::list(client, self.origin, &self.settings).await {
                Ok(tools) => self.up(client, tools),
                Err(error) => {
                    tracing::warn!(server = %self.settings.namespace, %error, "its tools cannot be listed");
                }
            }
            tokio::time::sleep(LISTING_PAUSE).await;
        }
    }

    async fn wait(&self, time: Duration, stop: &CancellationToken) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.restart.notified() => {}
            () = stop.cancelled() => {}
        }
    }

    fn set(&self, state: ServerState, client: Option<Client>) {
        let is_news = self.now.borrow().state != state;
        self.now.send_modify(|now| {
            now.starts += u64::from(state != ServerState::Starting);
            match &state {
                ServerState::Down { why, .. } => now.trouble = Some(why.clone()),
                ServerState::Up { .. } => now.trouble = None,
                ServerState::Starting | ServerState::Stopped => {}
            }
            now.client = client;
            now.state = state.clone();
        });
        if is_news {
            (self.on_event)(ServerEvent { namespace: self.settings.namespace.clone(), state });
        }
    }
}
