//! The front: who connects over TCP, within which limits, and how an HTTP request comes in.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Response;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use link::Pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::audit::{Entry, Event};
use crate::hosts::{AllowedHosts, AllowedOrigins, Gate};
use crate::http;
use crate::limits::{Addresses, Place};
use crate::metrics::RefusalReason;
use crate::patient::Patient;
use crate::server::{ServeError, Server};
use crate::tls::Tls;

/// Connections that the kernel keeps for us until they are accepted: ten thousand devices may come
/// back in the same second.
const LISTEN_BACKLOG: u32 = 4096;

/// The largest head of an HTTP request, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// How many requests that Host or Origin forbid, and connections that find no room, are written down in
/// a minute, of all addresses together. It is no one's key that stops them, not even on this machine,
/// where any page may send them; beyond the bound they are refused and counted, and do not fill the
/// logs.
const TOLD_PER_MINUTE: NonZeroU32 = NonZeroU32::new(60).unwrap();

/// How long a connection that has shown no valid key does not count among those of its address.
const UNPROVEN_GRACE: Duration = Duration::from_secs(2);

/// After an accept that failed for want of a resource, how long to wait for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Listens on an address, with room for a crowd.
///
/// # Errors
/// When the address is taken or not ours.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(LISTEN_BACKLOG)
    };
    listen().map_err(|error| ServeError::Listen(address, error))
}

/// From where a request comes; it rides along as an extension.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) address: SocketAddr,
    /// The public key that it was shown, if it came over TLS.
    pub(crate) pin: Option<Pin>,
    standing: Arc<Mutex<Standing>>,
}

/// How a connection stands with the limit of its address.
enum Standing {
    /// It came just now.
    New,
    /// It has shown no valid key for a while, and has one of the places of its address.
    Unproven(#[expect(dead_code, reason = "held until it is dropped")] Place),
    /// It has shown a valid key.
    Proven,
}

impl Caller {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, pin: None, standing: Arc::new(Mutex::new(Standing::New)) }
    }

    /// It has shown a valid key, so its connection does not count any more.
    pub(crate) fn has_valid_key(&self) {
        *self.standing() = Standing::Proven;
    }

    /// Counts the connection now, if it has not shown a valid key yet. `false` when its address has all
    /// of its places already.
    pub(crate) fn count(&self, addresses: &Arc<Addresses>) -> bool {
        let mut standing = self.standing();
        if matches!(*standing, Standing::New) {
            match addresses.enter(self.address.ip()) {
                Some(place) => *standing = Standing::Unproven(place),
                None => return false,
            }
        }
        true
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all connections share.
#[derive(Clone)]
struct Front {
    server: Server,
    router: Router,
    gate: Arc<Gate>,
    /// How many more refusals of requests and connections that needed no key may be logged now.
    told: Arc<DefaultDirectRateLimiter>,
    tls: Option<Tls>,
}

/// Accepts connections until `stop`, then shuts the server down.
pub(crate) async fn serve(
    server: &Server,
    listener: TcpListener,
    tls: Option<Tls>,
    stop: CancellationToken,
) {
    server.audit().record(Entry::new(Event::Started));
    server.flush_audit().await;
    let gate = Arc::new(gate(server, &listener, tls.clone()));
    let told = Arc::new(RateLimiter::direct(Quota::per_minute(TOLD_PER_MINUTE)));
    let router = server.router();
    let front = Front { server: server.clone(), router, gate, told, tls };
    server.start_upkeep();
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, address)) => front.accept(stream, address),
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    server.shut_down().await;
}

/// The check of Host and Origin, for where the server listens.
fn gate(server: &Server, listener: &TcpListener, tls: Option<Tls>) -> Gate {
    let config = server.config();
    let bound = listener.local_addr().ok().map(|address| address.ip());
    let is_certified =
        tls.map(|tls| -> crate::hosts::IsCertified { Box::new(move |name| tls.names(name)) });
    let hosts = AllowedHosts::new(&config.allowed_hosts, bound, &config.host_names, is_certified);
    Gate::new(hosts, AllowedOrigins::new(&config.allowed_origins))
}

/// Serves a connection, and cuts it if it shows no valid key for a while and is one too many of its
/// address. A crowd of devices behind one address is not: each shows its key at once.
async fn counted(server: Server, caller: Caller, served: impl Future<Output = ()>) {
    tokio::pin!(served);
    if tokio::time::timeout(UNPROVEN_GRACE, &mut served).await.is_ok() {
        return;
    }
    if caller.count(server.addresses()) {
        return served.await;
    }
    server.metrics().count_refused(RefusalReason::NoRoom);
    tracing::debug!(address = %caller.address, "too many connections of one address without a key");
}

/// How much may wait in the system to be sent before it takes more, in bytes. It takes some MB without this, and then
/// nothing for a long time from a peer that reads slowly, who looks as if it had stopped.
#[cfg(any(target_os = "android", target_os = "linux"))]
const UNSENT_BYTES: u32 = 256 * 1024;

fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(any(target_os = "android", target_os = "linux"))]
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)?;
    Ok(())
}

impl Front {
    /// Serves a connection in a task of its own, if there is room for it.
    fn accept(&self, stream: TcpStream, address: SocketAddr) {
        if let Err(error) = set_options(&stream) {
            tracing::debug!(%error, "failed to set an option of a connection");
        }
        let Ok(permit) = self.server.http_places().clone().try_acquire_owned() else {
            self.server.metrics().count_refused(RefusalReason::NoRoom);
            if self.told.check().is_ok() {
                tracing::warn!(%address, "too many HTTP connections; one was dropped");
            }
            return;
        };
        let caller = Caller::new(address);
        let front = self.clone();
        let Some(tls) = self.tls.clone() else {
            let served = front.serve_http(stream, caller.clone(), permit);
            self.server.spawn(counted(self.server.clone(), caller, served));
            return;
        };
        let header_timeout = self.server.config().header_timeout;
        let known = caller.clone();
        let served = async move {
            if let Some((stream, pin)) = tls.accept(stream, address, header_timeout).await {
                let known = Caller { pin: Some(pin), ..known };
                front.serve_http(stream, known, permit).await;
            }
        };
        self.server.spawn(counted(self.server.clone(), caller, served));
    }

    async fn serve_http(
        self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        caller: Caller,
        permit: OwnedSemaphorePermit,
    ) {
        let (address, server) = (caller.address, self.server.clone());
        let config = server.config();
        let (header_timeout, write_timeout) = (config.header_timeout, config.write_timeout);
        let service = service_fn(move |request: Request<Incoming>| {
            let (front, caller) = (self.clone(), caller.clone());
            async move { Ok::<_, Infallible>(front.call(request, caller).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(Patient::new(stream, write_timeout)), service)
            .with_upgrades();
        tokio::pin!(connection);
        let served = tokio::select! {
            biased;
            served = &mut connection => served,
            () = server.answering_last() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%address, %error, "an HTTP connection ended early");
        }
        drop(permit);
    }

    async fn call(mut self, mut request: Request<Incoming>, caller: Caller) -> Response<Body> {
        if let Err(forbidden) = self.gate.check(request.headers(), request.uri()) {
            let reason = forbidden.to_string();
            self.server.metrics().count_refused(RefusalReason::Forbidden);
            if self.told.check().is_ok() {
                self.tell_forbidden(&caller, &reason);
            }
            return http::forbidden(&reason);
        }
        request.extensions_mut().insert(caller);
        http::call(&mut self.router, request).await
    }

    fn tell_forbidden(&self, caller: &Caller, reason: &str) {
        tracing::warn!(address = %caller.address, reason, "a request was refused");
        self.server.audit().record(Entry {
            address: Some(caller.address),
            reason: Some(reason),
            ..Entry::new(Event::Refused)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::auth::Keys;
    use crate::config::Config;

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_one_address_is_let_in_and_whoever_lingers_without_a_key_is_cut() {
        let config = Config { max_unproven_per_address: 1, ..Config::default() };
        let server = Server::new(config, Keys::local("key".to_owned().into()));
        let address: SocketAddr = "192.0.2.7:1".parse().unwrap();
        let start = || {
            let caller = Caller::new(address);
            let served = counted(server.clone(), caller.clone(), pending());
            (caller, tokio::spawn(served))
        };
        let lingering = start();
        let crowd = [(); 50].map(|()| start());
        tokio::time::sleep(UNPROVEN_GRACE / 2).await;
        crowd[..40].iter().for_each(|(caller, _)| caller.has_valid_key());
        tokio::time::sleep(UNPROVEN_GRACE).await;
        assert!(!lingering.1.is_finished(), "it has the one place");
        assert!(crowd[..40].iter().all(|(_, served)| !served.is_finished()));
        assert!(crowd[40..].iter().all(|(_, served)| served.is_finished()));
    }
}
