//! The front: who connects over TCP, within which limits, and how an HTTP request comes in.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::audit::{Entry, Event};
use crate::hosts::{AllowedHosts, AllowedOrigins, Gate};
use crate::http;
use crate::limits::Place;
use crate::metrics::Refused;
use crate::patient::Patient;
use crate::server::{ServeError, Server};
use crate::tls::Tls;

/// Connections that the kernel keeps for us until they are accepted: ten thousand devices may come
/// back in the same second.
const LISTEN_BACKLOG: u32 = 4096;

/// The largest head of an HTTP request, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// How often to look for what is due.
const TIDY: Duration = Duration::from_secs(1);

/// How many requests that Host or Origin forbid are written down in a minute, of all addresses
/// together. It is no one's key that stops them, not even on this machine, where any page may send
/// them; beyond the bound they are refused and counted, and do not fill the logs.
const FORBIDDEN_TOLD_PER_MINUTE: NonZeroU32 = NonZeroU32::new(60).unwrap();

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
    /// Its connection's place among those of its address.
    place: Arc<Mutex<Option<Place>>>,
}

impl Caller {
    /// Somebody with a place of their own.
    #[cfg(test)]
    pub(crate) fn new(address: SocketAddr, place: Place) -> Self {
        Self { address, place: Arc::new(Mutex::new(Some(place))) }
    }

    /// It has shown a valid key, so its connection does not count any more.
    pub(crate) fn has_valid_key(&self) {
        let _given_back = self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// What all connections share.
#[derive(Clone)]
struct Front {
    server: Server,
    router: Router,
    gate: Arc<Gate>,
    /// What may still be told of forbidden requests.
    forbidden_told: Arc<DefaultDirectRateLimiter>,
    tls: Option<Tls>,
}

/// Accepts whoever connects until `stop`, then shuts the server down.
pub(crate) async fn serve(
    server: &Server,
    listener: TcpListener,
    tls: Option<Tls>,
    stop: CancellationToken,
) {
    server.audit().record(Entry::new(Event::Started));
    let gate = Arc::new(gate(server, &listener, tls.clone()));
    let forbidden_told =
        Arc::new(RateLimiter::direct(Quota::per_minute(FORBIDDEN_TOLD_PER_MINUTE)));
    let router = server.router();
    let front = Front { server: server.clone(), router, gate, forbidden_told, tls };
    let mut tidy = tokio::time::interval(TIDY);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
            _ = tidy.tick() => {
                server.tidy();
                continue;
            }
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

impl Front {
    /// Serves a connection in a task of its own, if there is room for it.
    fn accept(&self, stream: TcpStream, address: SocketAddr) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "failed to set TCP_NODELAY");
        }
        let Ok(permit) = self.server.http_places().clone().try_acquire_owned() else {
            self.server.metrics().count_refused(Refused::NoRoom);
            return tracing::warn!(%address, "too many HTTP connections; one was dropped");
        };
        let Some(place) = self.server.addresses().enter(address.ip()) else {
            self.server.metrics().count_refused(Refused::NoRoom);
            return tracing::debug!(%address, "too many connections of one address without a key");
        };
        let caller = Caller { address, place: Arc::new(Mutex::new(Some(place))) };
        let front = self.clone();
        let Some(tls) = self.tls.clone() else {
            self.server.spawn(front.serve_http(stream, caller, permit));
            return;
        };
        let header_timeout = self.server.config().header_timeout;
        self.server.spawn(async move {
            if let Some(stream) = tls.accept(stream, address, header_timeout).await {
                front.serve_http(stream, caller, permit).await;
            }
        });
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
            self.server.metrics().count_refused(Refused::Forbidden);
            if self.forbidden_told.check().is_ok() {
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
