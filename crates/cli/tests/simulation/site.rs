//! The server's machine: the server dies there, is stopped, and is started again on what its disk holds.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use link::{Ambient, Socket};
use serde_json::Value;
use server::agent::{Agent, Auto, Question, Thinking};
use server::{Audit, Config, Keys, Server, Services, Snapshot};
use tower_service::Service;

use crate::KEY;
use crate::disk::{Disk, Moods};
use crate::history::{History, Life, What};
use crate::parties::World;

/// How often others may go on before a server reads what there is. That happens on another thread, so nothing must be
/// left to do meanwhile, or one seed would give more than one history.
const QUIET: usize = 200;

/// Runs plans as ever. Those that keep going share their device with their like, as plans of commands do.
struct Sharing;

impl Agent for Sharing {
    fn next(&self, question: Question) -> Thinking {
        Auto.next(question)
    }

    fn shares_device(&self, request: &str) -> bool {
        shares_device(request)
    }
}

/// Whether a plan shares its device.
pub(crate) fn shares_device(request: &str) -> bool {
    request.contains(r#""keep_going":true"#)
}

#[derive(Clone)]
pub(crate) struct Site(Arc<Mutex<Inner>>);

struct Inner {
    config: Config,
    disk: Disk,
    /// Nobody while it is down.
    running: Option<Running>,
    /// How often the machine lost power.
    losses: usize,
}

#[derive(Clone)]
struct Running {
    server: Server,
    ambient: Ambient,
    /// Made when somebody asks, which costs something.
    routes: Arc<OnceLock<Router>>,
}

impl Site {
    /// A machine on which no server runs yet.
    pub(crate) fn new(
        config: Config,
        moods: Moods,
        seed: u64,
        history: &History,
        ambient: &Ambient,
    ) -> Self {
        let disk = Disk::new(config.history(), moods, seed, history, ambient);
        Self(Arc::new(Mutex::new(Inner { config, disk, running: None, losses: 0 })))
    }

    /// Starts a server on what the disk holds. It listens once it has read that.
    pub(crate) async fn start(&self, world: &World, seed: u64) {
        let ambient = world.ambient(seed);
        let (config, disk) = {
            let mut inner = self.lock();
            inner.disk = inner.disk.pass_on(&ambient);
            (inner.config.clone(), inner.disk.clone())
        };
        let services = Services {
            store: Arc::new(disk),
            agent: Arc::new(Sharing),
            audit: Audit::none(),
            ambient: ambient.clone(),
            key_store: None,
        };
        let server = Server::with(config, Keys::local(KEY.to_owned().into()), services);
        for _ in 0..QUIET {
            tokio::task::yield_now().await;
        }
        // What recovers is part of the server: it dies with it.
        let recovering = server.clone();
        let recovered = ambient.spawn(async move { recovering.recover().await });
        if recovered.await.is_ok_and(|recovered| recovered.is_ok()) {
            let routes = Arc::default();
            self.lock().running = Some(Running { server, ambient, routes });
            world.history.push(What::Server(Life::Started));
        }
    }

    /// The server dies, and with its machine also the power. Of a program that dies its peers hear the end.
    pub(crate) fn kill(&self, world: &World, with_machine: bool) {
        world.network.lose_server(with_machine);
        world.history.push(What::Server(if with_machine { Life::LostPower } else { Life::Killed }));
        let mut inner = self.lock();
        inner.running = None;
        inner.disk.ambient().crash();
        inner.disk = inner.disk.pass_on(&world.ambient(0));
        if with_machine {
            inner.disk.lose_power();
            inner.losses += 1;
        }
    }

    /// The server dies, and an older copy of its files is put back.
    pub(crate) fn put_back(&self, world: &World) {
        self.kill(world, false);
        self.lock().disk.put_back();
    }

    /// The server is told to stop, as by SIGTERM, and does so unless that takes too long.
    pub(crate) async fn stop(&self, world: &World, within: Duration) {
        let Some(running) = self.lock().running.take() else { return };
        world.history.push(What::Server(Life::Stopping));
        let server = running.server.clone();
        let stopping = running.ambient.spawn(async move { server.shut_down().await });
        if tokio::time::timeout(within, stopping).await.is_ok() {
            self.lock().disk.close();
        }
        self.kill(world, false);
    }

    /// Makes its disk full, or makes room there.
    pub(crate) fn fill(&self, is_full: bool) {
        self.lock().disk.fill(is_full);
    }

    /// Hands a connection to the server. `false` while it is down.
    pub(crate) fn accept(&self, socket: Socket) -> bool {
        let Some(Running { server, ambient, .. }) = self.running() else { return false };
        ambient.spawn(async move { server.accept(socket, None).await });
        true
    }

    /// How often the machine has lost power.
    pub(crate) fn losses(&self) -> usize {
        self.lock().losses
    }

    pub(crate) fn is_up(&self) -> bool {
        self.lock().running.is_some()
    }

    /// How much there is of everything, while the server runs.
    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        self.running().map(|running| running.server.snapshot())
    }

    /// Asks the HTTP API. Nobody answers while the server is down, or when it dies meanwhile.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        sent: Option<(&str, &Value)>,
    ) -> Option<(StatusCode, Value)> {
        let Running { server, ambient, routes } = self.running()?;
        let mut routes = routes.get_or_init(|| server.router()).clone();
        let mut request = Request::builder().method(method).uri(path).header("X-API-Key", KEY);
        let mut body = Body::empty();
        if let Some((key, sent)) = sent {
            request = request.header("Idempotency-Key", key);
            body = Body::from(sent.to_string());
        }
        let request = request.header("content-type", "application/json").body(body).unwrap();
        let asking = ambient.spawn(async move {
            let response = routes.call(request).await.unwrap();
            let status = response.status();
            let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
            // The answer was written on another thread: who had a turn meanwhile must make no difference.
            tokio::time::sleep(Duration::from_millis(1)).await;
            (status, serde_json::from_slice(&bytes).unwrap_or_default())
        });
        asking.await.ok()
    }

    fn running(&self) -> Option<Running> {
        self.lock().running.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
