//! A server's end on which nothing is on its way.
//!
//! The WebSocket library's buffers take most of what an idle connection takes: 8 KiB to read into alone. So they are
//! there only while there is something to read or to write, or a connection is busy.

use tokio_websockets::{Limits, ServerBuilder};

use super::{Kind, Socket, WebSocket, config};
use crate::transport::Transport;

/// What is left of a WebSocket meanwhile.
pub(super) struct Resting {
    pub(super) transport: Transport,
    is_fresh: bool,
}

impl Resting {
    pub(super) fn new(transport: Transport) -> Self {
        Self { transport, is_fresh: true }
    }
}

impl Socket {
    pub(crate) fn is_resting(&self) -> bool {
        matches!(self.kind, Kind::Resting(_))
    }

    /// Whether all that was queued is written.
    pub(crate) fn is_flushed(&self) -> bool {
        match &self.kind {
            Kind::WebSocket(socket) => socket.is_flushed,
            Kind::Resting(_) | Kind::Memory(_) => true,
        }
    }

    /// Lets go of what the library needs to read and write, if nothing is on its way. It is there again when
    /// it is needed.
    pub(crate) fn rest(&mut self) {
        if let Kind::WebSocket(socket) = &mut self.kind
            && socket.may_rest()
        {
            let is_fresh = socket.is_fresh;
            let transport = socket.stream.get_mut().take();
            self.kind = Kind::Resting(Box::new(Resting { transport, is_fresh }));
        }
    }

    /// The opposite of [`Self::rest`].
    pub(super) fn wake(&mut self) {
        if let Kind::Resting(resting) = &mut self.kind {
            let limits = Limits::default().max_payload_len(Some(resting.transport.max_message()));
            let builder = ServerBuilder::new().config(config()).limits(limits);
            let stream = builder.serve(resting.transport.take());
            let socket = Box::new(WebSocket::new(stream, resting.is_fresh));
            self.kind = Kind::WebSocket(socket);
        }
    }
}

impl WebSocket {
    fn may_rest(&self) -> bool {
        self.is_flushed
            && self.is_drained
            && !self.has_peer_closed
            && self.stream.get_ref().is_between_messages()
    }
}
