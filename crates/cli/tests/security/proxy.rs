//! A network between a peer and the server: it forwards, slowly if it shall, or swallows everything.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

/// A proxy in front of the server.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    is_open: Arc<watch::Sender<bool>>,
    /// Rung when all connections are to end.
    cut: Arc<Notify>,
}

impl Proxy {
    /// Forwards to this port; after each piece of at most `piece` bytes it rests.
    pub(crate) async fn start(to: u16, piece: usize, rest: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (is_open, opened) = watch::channel(true);
        let cut = Arc::new(Notify::new());
        let cutting = cut.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let ((near_in, near_out), (far_in, far_out)) =
                    (near.into_split(), far.into_split());
                let there = forward(near_in, far_out, opened.clone(), piece, rest);
                let back = forward(far_in, near_out, opened.clone(), piece, rest);
                tokio::spawn(until(cutting.clone(), there));
                tokio::spawn(until(cutting.clone(), back));
            }
        });
        Self { port, is_open: Arc::new(is_open), cut }
    }

    /// Ends all connections. New ones can be made.
    pub(crate) fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// From now on nothing comes through, and nobody is told.
    pub(crate) fn swallow(&self) {
        self.is_open.send_replace(false);
    }

    /// What waits goes through, and so does everything after it.
    pub(crate) fn heal(&self) {
        self.is_open.send_replace(true);
    }
}

async fn until(cut: Arc<Notify>, forwarding: impl Future<Output = ()>) {
    tokio::select! {
        () = forwarding => {}
        () = cut.notified() => {}
    }
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut is_open: watch::Receiver<bool>,
    piece: usize,
    rest: Duration,
) {
    let mut buffer = vec![0; piece];
    loop {
        let Ok(n @ 1..) = from.read(&mut buffer).await else { return };
        // Not even a close comes through while it swallows.
        if is_open.wait_for(|is_open| *is_open).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
        tokio::time::sleep(rest).await;
    }
}
