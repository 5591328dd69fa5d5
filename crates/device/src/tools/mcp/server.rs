//! One MCP server as its callers see it, fresh for each task where its owner wants that. `supervisor.rs` keeps it
//! running; one that is no program of ours is only connected to, and tried anew by whoever calls it.
//!
//! It must not know how a server is reached, nor who asks for which of its tools.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::{Payload, SessionId, ToolType};
use link::Trust;
use tokio::sync::{Notify, RwLock, RwLockReadGuard, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::OnEvent;
use super::client::{CallError, McpClient};
use super::listing::Listed;
use super::settings::{Section, ServerSettings};
use super::state::{Now, ServerState, is_down};
use crate::confine::Confinement;
use crate::tools::catalog::{Origin, Tool};
use crate::tools::{Call, STOPPED};
use crate::watchdog::Watchdog;

/// Longest wait of somebody who looks for tools, for a server that was down to be tried anew.
const LOOK_TIME: Duration = Duration::from_secs(1);

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

/// One server. Dropping it stops the server.
pub(super) struct Server {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _dropped: DropGuard,
}

/// What calls share with the task that keeps it running.
pub(super) struct Shared {
    pub(super) origin: Origin,
    pub(super) settings: ServerSettings,
    pub(super) limits: Limits,
    pub(super) watchdog: Option<Arc<Watchdog>>,
    pub(super) on_event: OnEvent,
    pub(super) now: watch::Sender<Now>,
    /// What the owner was told last.
    pub(super) told: Mutex<ServerState>,
    /// What was warned of last.
    pub(super) warned: Mutex<String>,
    /// The tools as they were listed last, also while it does not run.
    pub(super) tools: Mutex<Arc<[Listed]>>,
    /// Somebody wants it started anew.
    pub(super) restart: Notify,
    /// The task that it runs for, where each gets a fresh one. Calls hold it for reading.
    pub(super) task: RwLock<Option<SessionId>>,
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
        let shared = Arc::new(Shared {
            origin,
            settings,
            limits,
            watchdog,
            on_event,
            now: watch::Sender::new(Now::starting()),
            told: Mutex::new(ServerState::Starting),
            warned: Mutex::default(),
            tools: Mutex::new(Arc::from([])),
            restart: Notify::new(),
            task: RwLock::default(),
        });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(shared.clone().supervise(stop.clone()));
        tasks.close();
        Arc::new(Self { shared, tasks, _dropped: stop.clone().drop_guard(), stop })
    }

    pub(super) fn namespace(&self) -> &str {
        &self.shared.settings.namespace
    }

    pub(super) fn sections(&self) -> &[Section] {
        &self.shared.settings.sections
    }

    #[cfg(test)]
    pub(super) fn watch(&self) -> watch::Receiver<Now> {
        self.shared.now.subscribe()
    }

    #[cfg(test)]
    pub(super) fn state(&self) -> ServerState {
        self.shared.now.borrow().state.clone()
    }

    /// Why it does not run, if it has not run since.
    pub(super) fn trouble(&self) -> Option<String> {
        self.shared.now.borrow().trouble.clone()
    }

    /// The same as a sentence, for its owner.
    pub(super) fn out_of_service(&self) -> Option<String> {
        let why = self.trouble()?;
        Some(format!("{} {}: {why}", self.shared.name(), is_down(self.shared.is_program())))
    }

    /// Whether the first start is still to come to something, good or bad.
    pub(super) fn is_starting(&self) -> bool {
        !self.shared.now.borrow().has_started()
    }

    /// Whether nothing would come of [`Self::settled`].
    pub(super) fn is_settled(&self) -> bool {
        let now = self.shared.now.borrow();
        now.has_started() && (self.shared.is_program() || !(now.is_down() || now.is_pending()))
    }

    /// Waits until the first start has come to something, good or bad, which takes no longer than a start
    /// may. Later it has one that can be tried anew tried anew, and waits a little for that.
    pub(super) async fn settled(&self) {
        let mut now = self.shared.now.subscribe();
        if self.is_starting() {
            let _gone = now.wait_for(Now::has_started).await;
        } else if !self.is_settled() {
            self.shared.want();
            let _late = timeout(LOOK_TIME, now.wait_for(|now| !now.is_pending())).await;
        }
    }

    /// Its tools, as they were listed last.
    pub(super) fn tools(&self, as_type: Option<ToolType>) -> Vec<Arc<Tool>> {
        self.shared.listed().iter().map(|tool| tool.offered(as_type).clone()).collect()
    }

    /// Calls a tool.
    ///
    /// # Errors
    /// What the tool says went wrong, or why it could not be called.
    pub(super) async fn call(&self, tool_name: &str, call: &Call<'_>) -> Result<Payload, String> {
        let shared = &self.shared;
        let _task = shared.fresh_for(call).await?;
        let client = shared.client(None, call.stop).await?;
        let called = match shared.call(&client, tool_name, call).await {
            // As nothing was sent, it may be sent to the server that is there now.
            Err(CallError::NotSent(_)) if !shared.is_program() => {
                let client = shared.client(Some(&client), call.stop).await?;
                shared.call(&client, tool_name, call).await
            }
            called => called,
        };
        called.map_err(|error| shared.in_words(error))
    }

    /// Stops it, in its own time at first.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        let _killed_when_dropped = timeout(STOP_TIME, self.tasks.wait()).await;
    }
}

impl Shared {
    fn name(&self) -> String {
        format!("The MCP server '{}'", self.settings.namespace)
    }

    /// Whether it is a program that we start, and not one that we only connect to.
    pub(super) const fn is_program(&self) -> bool {
        self.settings.transport.is_program()
    }

    fn listed(&self) -> Arc<[Listed]> {
        lock(&self.tools).clone()
    }

    async fn call(
        &self,
        client: &McpClient,
        tool_name: &str,
        call: &Call<'_>,
    ) -> Result<Payload, CallError> {
        let tools = self.listed();
        let wraps = tools.iter().any(|tool| tool.name() == tool_name && tool.wraps);
        client.call(tool_name, wraps, call, self.limits.call_timeout).await
    }

    fn in_words(&self, error: CallError) -> String {
        let server = self.name();
        let unknown = |what: &str, why: &str| {
            format!("{server} {what} ({why}); it is not known whether the tool ran")
        };
        match error {
            CallError::Failed(why) => why,
            CallError::Unanswered(why) => unknown("did not answer as it should", &why),
            CallError::Lost(why) => unknown("was lost in the middle of the call", &why),
            CallError::NotSent(why) if self.is_program() => format!(
                "{server} has just been lost ({why}) and is started again; the tool did not run"
            ),
            CallError::NotSent(why) => {
                format!("{server} has just been lost ({why}); the tool did not run")
            }
        }
    }

    /// The way to it, once it has started; another one than that which was `lost`.
    async fn client(
        &self,
        lost: Option<&McpClient>,
        stop: &CancellationToken,
    ) -> Result<McpClient, String> {
        self.want();
        let mut now = self.now.subscribe();
        let is_known = |now: &Now| {
            let is_lost = lost.zip(now.client.as_ref()).is_some_and(|(lost, now)| lost.is(now));
            !is_lost && !now.is_pending()
        };
        tokio::select! {
            known = now.wait_for(is_known) => {
                known.ok().and_then(|now| now.client.clone()).ok_or_else(|| self.not_running())
            }
            () = stop.cancelled() => Err(STOPPED.to_owned()),
        }
    }

    /// Has one that waits for its next try tried at once, or as soon as the last try was long enough ago. All
    /// who want that share the try. A program is started again in its own time: it may be one that dies of
    /// each start.
    fn want(&self) {
        self.now.send_if_modified(|now| {
            let is_news = !self.is_program() && now.is_down() && !now.is_wanted;
            now.is_wanted |= is_news;
            is_news
        });
    }

    fn not_running(&self) -> String {
        let (server, now) = (self.name(), self.now.borrow());
        let is_down = is_down(self.is_program());
        match (&now.state, &now.trouble) {
            (ServerState::Down { retry, .. }, Some(why)) if self.is_program() => {
                let wait = retry.as_secs_f64().ceil();
                format!("{server} {is_down}: {why}. It is started again in at most {wait} s")
            }
            (_, Some(why)) => format!("{server} {is_down}: {why}; the tool did not run"),
            (_, None) => format!("{server} {is_down}"),
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
        let stopped = || STOPPED.to_owned();
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
        let (is_starting, is_down, starts) = {
            let now = now.borrow();
            (now.state == ServerState::Starting, now.is_down(), now.starts)
        };
        // The call itself has it tried.
        if is_down && !self.is_program() {
            return Ok(());
        }
        // What is just being started is new already.
        if !is_starting {
            self.restart.notify_one();
        }
        tokio::select! {
            _started = now.wait_for(|now| now.starts > starts) => Ok(()),
            () = stop.cancelled() => Err(STOPPED.to_owned()),
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
