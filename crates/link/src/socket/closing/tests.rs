//! What the peer sees of an end, and when: over real TCP, and over a pipe with a clock that is the
//! test's. The peers write their frames by hand.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, BufStream, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use super::*;
use crate::socket::Incoming;

const LINGER: Duration = Duration::from_secs(10);

/// The first byte of a text frame that others continue, and of the last of those.
const BEGINNING: u8 = 0x01;
const CONTINUATION: u8 = 0x80;

const MAX_MESSAGE: usize = 100;

/// A frame as a client sends it, with a mask that changes nothing.
fn masked(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    assert!(length < 126);
    [&[first_byte, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

/// A server's stream that notes what had come in when its writing side was shut down.
struct Noting {
    stream: TcpStream,
    heard: Vec<u8>,
    heard_at_end: Arc<Mutex<Option<Vec<u8>>>>,
}

impl AsyncRead for Noting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.heard.extend_from_slice(&buf.filled()[before..]);
        polled
    }
}

impl AsyncWrite for Noting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let heard = self.heard.clone();
        self.heard_at_end.lock().unwrap().get_or_insert(heard);
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A server's end, its peer, and what has come in when the server shuts its writing side.
async fn over_tcp() -> (Socket, TcpStream, Arc<Mutex<Option<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let heard_at_end = Arc::default();
    let noting = Noting { stream, heard: Vec::new(), heard_at_end: Arc::clone(&heard_at_end) };
    (Socket::server(noting, Bytes::new(), MAX_MESSAGE), peer, heard_at_end)
}

/// The same over a pipe that holds back what is not flushed, as TLS does.
fn over_a_pipe() -> (Socket, DuplexStream) {
    let (near, far) = tokio::io::duplex(4096);
    (Socket::server(BufStream::new(near), Bytes::new(), MAX_MESSAGE), far)
}

async fn received(socket: &mut Socket) -> Incoming {
    std::future::poll_fn(|cx| socket.poll_recv(cx)).await
}

async fn rest_of(peer: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).await.unwrap();
    rest
}

#[tokio::test]
async fn a_busy_peer_reads_the_close_and_answers_before_anything_is_shut() {
    let (socket, mut peer, heard_at_end) = over_tcp().await;
    let closing = tokio::spawn(socket.close(CloseCode::POLICY, "no", LINGER));
    let mut close = [0; 6];
    peer.read_exact(&mut close).await.unwrap();
    assert_eq!(&close, b"\x88\x04\x03\xf0no");
    let said = [masked(TEXT_FRAME, b"still busy"), masked(CLOSE_FRAME, b"\x03\xf0")].concat();
    peer.write_all(&said).await.unwrap();
    assert_eq!(rest_of(&mut peer).await, b"");
    assert_eq!(*heard_at_end.lock().unwrap(), Some(said));
    drop(peer);
    closing.await.unwrap();
}

#[tokio::test]
async fn a_peer_that_ends_without_an_answer_is_waited_for_no_longer() {
    let (socket, mut peer, heard_at_end) = over_tcp().await;
    let closing = tokio::spawn(socket.close(CloseCode::NORMAL, "", LINGER));
    let said = masked(TEXT_FRAME, b"and gone");
    peer.write_all(&said).await.unwrap();
    peer.shutdown().await.unwrap();
    assert_eq!(rest_of(&mut peer).await, b"\x88\x02\x03\xe8");
    closing.await.unwrap();
    assert_eq!(*heard_at_end.lock().unwrap(), Some(said));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_answers_is_cut_when_the_time_is_over() {
    let (socket, mut peer) = over_a_pipe();
    let start = Instant::now();
    tokio::spawn(socket.close(CloseCode::POLICY, "no", LINGER));
    assert_eq!(rest_of(&mut peer).await, b"\x88\x04\x03\xf0no");
    assert_eq!(start.elapsed().as_secs(), LINGER.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_closed_first_sees_the_end_at_once() {
    let (mut socket, mut peer) = over_a_pipe();
    let start = Instant::now();
    peer.write_all(&masked(CLOSE_FRAME, b"\x03\xe8bye")).await.unwrap();
    let Incoming::Closed(closed) = received(&mut socket).await else { panic!() };
    tokio::spawn(async move { socket.close(closed.code, &closed.reason, LINGER).await });
    assert_eq!(rest_of(&mut peer).await, b"\x88\x02\x03\xe8");
    assert_eq!(start.elapsed(), Duration::ZERO);
}

/// The beginnings of messages that are too big, the one in a frame and the other in several.
fn too_big() -> [Vec<u8>; 2] {
    let whole = [&[TEXT_FRAME, 0xfe, 0x04, 0x00, 0, 0, 0, 0][..], b"xxxx"].concat();
    let part = masked(BEGINNING, &[b'x'; 90]);
    [whole, [part, masked(CONTINUATION, &[b'x'; 90])].concat()]
}

#[tokio::test(start_paused = true)]
async fn a_peer_whose_message_is_too_big_is_heard_until_it_is_silent() {
    for beginning in too_big() {
        let (mut socket, mut peer) = over_a_pipe();
        let start = Instant::now();
        peer.write_all(&beginning).await.unwrap();
        let Incoming::Closed(closed) = received(&mut socket).await else { panic!() };
        assert_eq!(closed.code, CloseCode::TOO_BIG);
        tokio::spawn(async move { socket.close(closed.code, &closed.reason, LINGER).await });
        sleep(Duration::from_secs(1)).await;
        peer.write_all(b"the rest of it").await.unwrap();
        assert_eq!(rest_of(&mut peer).await[2..4], CloseCode::TOO_BIG.0.to_be_bytes());
        assert_eq!(start.elapsed().as_secs(), 1 + SILENCE.as_secs());
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_and_closed_before_anything_is_shut() {
    let (mut socket, mut peer) = over_a_pipe();
    let start = Instant::now();
    peer.write_all(&too_big()[0]).await.unwrap();
    assert!(matches!(received(&mut socket).await, Incoming::Closed(_)));
    tokio::spawn(socket.refuse(b"{}", CloseCode::TOO_BIG, "big", LINGER));
    let mut said = [0; 11];
    peer.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"\x81\x02{}\x88\x05\x03\xf1big");
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(rest_of(&mut peer).await, b"");
    assert_eq!(start.elapsed().as_secs(), SILENCE.as_secs());
}

#[test]
fn a_frame_written_by_hand_is_the_rfcs() {
    assert_eq!(frame(TEXT_FRAME, b"Hello"), b"\x81\x05Hello");
    assert_eq!(frame(TEXT_FRAME, &[b'x'; 256])[..4], [0x81, 126, 1, 0]);
    assert_eq!(frame(TEXT_FRAME, &[b'x'; 65536])[..10], [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
}
