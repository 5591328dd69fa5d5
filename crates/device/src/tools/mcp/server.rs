//! One MCP server for the device's life: started, listed, called, and started again when it dies. One that is
//! no program of ours is connected to instead, and tried anew by whoever calls it.
//!
//! It must not know how a server is reached, nor who asks for which of its tools.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aip::machine::Backoff;
use aip::{Payload, SessionId, ToolType};
use link::Trust;
use tokio::sync::{Notify, RwLock, RwLockReadGuard, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::OnEvent;
use super::client::{CallError, Client};
use super::listing::{Listed, Listing};
use super::settings::{Section, ServerSettings};
use super::start::{self, Started};
use super::state::{Now, ServerEvent, ServerState, is_down};
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

/// Least time from a try that came to nothing to one that a call asks for.
const CALLED_PAUSE: Duration = Duration::from_millis(250);

/// Longest wait of somebody who looks for tools, for a server that was down to be tried anew.
const LOOK_TIME: Duration = Duration::from_secs(1);

/// Longest wait for calls to find by themselves that their connection is lost.
const LOSS_TIME: Duration = Duration::from_millis(100);

const LOST: &str = "the connection to it was lost";

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
    /// What the owner was told last.
    told: Mutex<ServerState>,
    /// What was warned of last.
    warned: Mutex<String>,
    /// The tools as they were listed last, also while it does not run.
    tools: Mutex<Arc<[Listed]>>,
    /// Somebody wants it started anew.
    restart: Notify,
    /// The task that it runs for, where each gets a fresh one. Calls hold it for reading.
    task: RwLock<Option<SessionId>>,
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
        let inner = Arc::new(Inner {
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

    /// The same as a sentence, for its owner.
    pub(super) fn out_of_service(&self) -> Option<String> {
        let why = self.trouble()?;
        Some(format!("{} {}: {why}", self.inner.name(), is_down(self.inner.is_program())))
    }

    /// Whether the first start is still to come to something, good or bad.
    pub(super) fn is_starting(&self) -> bool {
        !self.inner.now.borrow().has_started()
    }

    /// Whether nothing would come of [`Self::settled`].
    pub(super) fn is_settled(&self) -> bool {
        let now = self.inner.now.borrow();
        now.has_started() && (self.inner.is_program() || !(now.is_down() || now.is_pending()))
    }

    /// Waits until the first start has come to something, good or bad, which takes no longer than a start
    /// may. Later it has one that can be tried anew tried anew, and waits a little for that.
    pub(super) async fn settled(&self) {
        let mut now = self.inner.now.subscribe();
        if self.is_starting() {
            let _gone = now.wait_for(Now::has_started).await;
        } else if !self.is_settled() {
            self.inner.want();
            let _late = timeout(LOOK_TIME, now.wait_for(|now| !now.is_pending())).await;
        }
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
        let client = inner.client(None, call.stop).await?;
        let called = match inner.call(&client, tool_name, call).await {
            // As nothing was sent, it may be sent to the server that is there now.
            Err(CallError::NotSent(_)) if !inner.is_program() => {
                let client = inner.client(Some(&client), call.stop).await?;
                inner.call(&client, tool_name, call).await
            }
            called => called,
        };
        called.map_err(|error| inner.in_words(error))
    }

    /// Stops it, in its own time at first.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        let _killed_when_dropped = timeout(STOP_TIME, self.tasks.wait()).await;
    }
}

impl Inner {
    fn name(&self) -> String {
        format!("The MCP server '{}'", self.settings.namespace)
    }

    /// Whether it is a program that we start, and not one that we only connect to.
    const fn is_program(&self) -> bool {
        self.settings.transport.is_program()
    }

    fn listed(&self) -> Arc<[Listed]> {
        lock(&self.tools).clone()
    }

    async fn call(
        &self,
        client: &Client,
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
        lost: Option<&Client>,
        stop: &CancellationToken,
    ) -> Result<Client, String> {
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
            () = stop.cancelled() => Err("stopped".to_owned()),
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

    /// Waits until somebody wants a try, and the last one was long enough ago.
    async fn wanted(&self) {
        let (pause, mut now) = (tokio::time::sleep(CALLED_PAUSE), self.now.subscribe());
        drop(now.wait_for(|now| now.is_wanted).await);
        pause.await;
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

    fn up(&self, client: &Client, Listing { tools, left_out }: Listing) {
        if left_out > 0 {
            self.warn(format!("{left_out} tools are left out: {}", Listing::WHY_LEFT_OUT));
        }
        let state = ServerState::Up { tools: tools.len() };
        *lock(&self.tools) = tools.into();
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
                Ok(listing) => self.up(client, listing),
                Err(why) => self.warn(format!("its tools cannot be listed: {why}")),
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

    fn set(&self, state: ServerState, client: Option<Client>) {
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
            return tracing::debug!(%server, "{}", what.escape_debug());
        }
        tracing::warn!(%server, "{}", what.escape_debug());
        *warned = what;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
