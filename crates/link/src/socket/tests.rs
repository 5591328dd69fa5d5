use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

#[test]
fn every_code_can_be_sent_or_has_a_stand_in() {
    for code in 0..=u16::MAX {
        let _does_not_panic = message(Frame::Close(CloseCode(code), "r".repeat(500)));
    }
}

#[test]
fn a_reason_is_cut_between_characters() {
    assert_eq!(cut("ääää", 5), "ää");
    assert_eq!(cut("short", 123), "short");
    assert_eq!(cut("", 0), "");
}

/// A frame as a client sends it, with a mask of zeros.
fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first_byte];
    match payload.len() {
        short @ 0..=125 => frame.push(0x80 | u8::try_from(short).unwrap()),
        medium @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

fn server() -> (Socket, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    (Socket::server(ours, Bytes::new(), 1 << 20), theirs)
}

/// What has come, with a rest after each look, as an actor does it.
fn drain(socket: &mut Socket, into: &mut Vec<Incoming>) {
    let cx = &mut Context::from_waker(std::task::Waker::noop());
    // The first time it may only have come to the end of its turn.
    for _ in 0..2 {
        while let Poll::Ready(incoming) = socket.poll_recv(cx) {
            into.push(incoming);
        }
    }
    assert!(socket.poll_flush(cx).is_ready());
    socket.rest();
}

#[tokio::test]
async fn nothing_is_lost_however_frames_are_cut_when_a_connection_rests_in_between() {
    const TEXT: u8 = 0x81;
    const PING: u8 = 0x89;
    let long = vec![b'l'; 0x1_0000];
    let (whole, frames) = (
        ["one", "", &"m".repeat(126), std::str::from_utf8(&long).unwrap(), "parts", "last"],
        [
            frame(TEXT, b"one"),
            frame(PING, b"?"),
            frame(TEXT, b""),
            frame(TEXT, &[b'm'; 126]),
            frame(TEXT, &long),
            // One message in three frames, with a ping in between.
            frame(0x01, b"pa"),
            frame(0x00, b"r"),
            frame(PING, b""),
            frame(0x80, b"ts"),
            frame(TEXT, b"last"),
        ]
        .concat(),
    );
    for piece in [1, 2, 3, 5, 7, 64, 4096, 5000, usize::MAX] {
        let (mut socket, mut peer) = server();
        let mut came = Vec::new();
        for piece in frames.chunks(piece.min(frames.len())) {
            peer.write_all(piece).await.unwrap();
            drain(&mut socket, &mut came);
        }
        let expected = whole.map(|text| Incoming::Text(Bytes::copy_from_slice(text.as_bytes())));
        assert!(came == expected, "in pieces of {piece}");
        let mut pongs = [0; 5];
        peer.read_exact(&mut pongs).await.unwrap();
        assert_eq!(pongs, [0x8a, 1, b'?', 0x8a, 0]);
    }
}

#[tokio::test]
async fn what_the_library_has_not_handed_out_yet_does_not_rest() {
    let (mut socket, mut peer) = server();
    peer.write_all(&frame(0x81, b"text").repeat(3)).await.unwrap();
    for _ in 0..3 {
        assert!(matches!(poll_fn(|cx| socket.poll_recv(cx)).await, Incoming::Text(_)));
        socket.rest();
        assert!(!socket.is_resting());
    }
    let mut came = Vec::new();
    drain(&mut socket, &mut came);
    assert!(socket.is_resting() && came.is_empty());
}

#[tokio::test]
async fn a_connection_rests_when_nothing_is_on_its_way_and_only_then() {
    let (mut socket, mut peer) = server();
    let mut came = Vec::new();
    assert!(socket.is_resting(), "nothing came yet");
    let text = frame(0x81, b"whole");
    peer.write_all(&text).await.unwrap();
    drain(&mut socket, &mut came);
    assert!(socket.is_resting() && came.len() == 1);
    peer.write_all(&text[..6]).await.unwrap();
    drain(&mut socket, &mut came);
    assert!(!socket.is_resting(), "half a message is there");
    peer.write_all(&text[6..]).await.unwrap();
    drain(&mut socket, &mut came);
    assert!(socket.is_resting() && came.len() == 2);
    socket.start_send(Frame::Text(Bytes::from_static(b"answer"))).unwrap();
    socket.rest();
    assert!(!socket.is_resting(), "the answer is not written");
    drain(&mut socket, &mut came);
    assert!(socket.is_resting());
    drop(peer);
    let lost = poll_fn(|cx| socket.poll_recv(cx)).await;
    assert_eq!(lost, Incoming::Closed(Closed::lost("connection lost")));
}
