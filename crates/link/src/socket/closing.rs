//! How a connection is ended, so that the peer learns why.

use std::future::poll_fn;
use std::time::Duration;

use aip::CloseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::{Frame, Incoming, Kind, MAX_REASON_BYTES, Socket, WebSocket, cut};
use crate::budget::SMALL_MESSAGE_BYTES;
use crate::transport::Transport;

/// How much is read at once of what is dropped, in bytes.
const SINK_BYTES: usize = 2048;

/// How long a peer must say nothing to count as done, where its frames cannot be read any more.
const SILENCE: Duration = Duration::from_secs(2);

impl Socket {
    /// Says goodbye: sends what is queued and a close frame, waits for the peer's, hangs up, and reads
    /// on until the peer has hung up too, so that it sees the close and not a reset. A peer that has not
    /// done so after `linger` is cut.
    pub async fn close(mut self, code: CloseCode, reason: &str, linger: Duration) {
        self.release();
        let goodbye = async {
            // The library refuses it when a close frame is queued already: the answer to the peer's,
            // or its own for a message that was too big.
            let _queued_already = self.start_send(Frame::Close(code, reason.to_owned()));
            if poll_fn(|cx| self.poll_flush(cx)).await.is_err() {
                return;
            }
            let Kind::WebSocket(mut socket) = self.kind else { return };
            socket.stream.limits_mut().set_max_payload_len(Some(SMALL_MESSAGE_BYTES));
            socket.hear_out().await;
            // Without the library, and what it has of a message.
            let mut transport = socket.stream.into_inner();
            if !socket.has_peer_closed {
                drop_until_silent(&mut transport).await;
            }
            hang_up(&mut transport).await;
        };
        let _in_time = timeout(linger, goodbye).await;
    }

    /// Refuses a peer whose first message was too big: says why, closes and hangs up as
    /// [`Self::close`] does. The WebSocket library lets nothing be said any more once it has met such
    /// a message, so these two frames are written past it. Server only; `text` is UTF-8.
    pub async fn refuse(mut self, text: &[u8], code: CloseCode, reason: &str, linger: Duration) {
        self.release();
        self.wake();
        if !matches!(&self.kind, Kind::WebSocket(socket) if socket.is_fresh) {
            return self.close(code, reason, linger).await;
        }
        let mut frames = frame(TEXT_FRAME, text);
        let mut close = code.0.to_be_bytes().to_vec();
        close.extend_from_slice(cut(reason, MAX_REASON_BYTES).as_bytes());
        frames.extend(frame(CLOSE_FRAME, &close));
        let goodbye = async {
            let Kind::WebSocket(socket) = &mut self.kind else { return };
            let transport = socket.stream.get_mut();
            if transport.write_all(&frames).await.is_ok() && transport.flush().await.is_ok() {
                drop_until_silent(transport).await;
                hang_up(transport).await;
            }
        };
        let _in_time = timeout(linger, goodbye).await;
    }
}

impl WebSocket {
    /// Drops what comes until the peer has closed too, or its stream ends. Where the stream was shut
    /// before, a peer that is busy meanwhile could not answer, and would take the close for a loss. In the middle of
    /// a large message, after one that was too big, or after what was no frame, nothing more is read here.
    async fn hear_out(&mut self) {
        while !self.has_peer_closed && !self.stream.get_ref().is_amid_large() {
            if let Incoming::Closed(_) = poll_fn(|cx| self.poll_recv(cx)).await {
                break;
            }
        }
    }
}

/// Reads and drops until the stream ends or nothing came for a while.
async fn drop_until_silent(transport: &mut Transport) {
    let mut sink = vec![0; SINK_BYTES];
    let mut read_in_time = async || timeout(SILENCE, transport.read(&mut sink)).await;
    while matches!(read_in_time().await, Ok(Ok(1..))) {}
}

/// Ends our direction, then reads and drops until the peer has ended its own.
async fn hang_up(transport: &mut Transport) {
    let mut sink = vec![0; SINK_BYTES];
    if transport.shutdown().await.is_ok() {
        while matches!(transport.read(&mut sink).await, Ok(1..)) {}
    }
}

/// The first byte of a whole text frame, from RFC 6455.
const TEXT_FRAME: u8 = 0x81;

/// The first byte of a close frame.
const CLOSE_FRAME: u8 = 0x88;

/// A frame as a server sends it: not masked.
fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first_byte];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ ..=125), _) => frame.push(short),
        (_, Ok(medium)) => {
            frame.push(126);
            frame.extend(medium.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests;
