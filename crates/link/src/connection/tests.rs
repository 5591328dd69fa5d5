use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use aip::{ClientMessage, ClientMessageType, ClientType, ServerMessage};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

use super::*;
use crate::budget::Budget;
use crate::memory::{KillSwitch, pair};
use crate::outbox::{Bound, LAZY, OutboxLimits};

const WATCH: Watch =
    Watch { ping_every: Duration::from_secs(30), timeout: Duration::from_secs(90) };

fn connected() -> (Connection<ClientMessage>, Connection<ServerMessage>, KillSwitch) {
    let (server, client, switch) = pair();
    let outbox = || Arc::new(Outbox::new(OutboxLimits::default()));
    let server = Connection::new(server, outbox(), WATCH, None);
    (server, Connection::new(client, outbox(), WATCH, None), switch)
}

fn heartbeat() -> ClientMessage {
    ClientMessage::new(ClientMessageType::Heartbeat, ClientType::Device)
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_noticed_by_both_ends() {
    let (mut server, mut client, switch) = connected();
    switch.swallow();
    let start = now();
    let (at_server, at_client) = tokio::join!(server.next_event(None), client.next_event(None));
    let Event::Closed(closed) = at_server else { panic!("{at_server:?}") };
    assert_eq!((closed.code, closed.by_us), (CloseCode::NO_LIFE, true));
    assert!(matches!(at_client, Event::Closed(_)));
    assert_eq!((now() - start).as_secs(), 90);
}

#[tokio::test(start_paused = true)]
async fn pings_keep_an_idle_link_alive() {
    let (mut server, mut client, _switch) = connected();
    let wake_at = now() + Duration::from_secs(3600);
    let client = tokio::spawn(async move { client.next_event(None).await });
    assert!(matches!(server.next_event(Some(wake_at)).await, Event::Due));
    assert!(!client.is_finished());
}

#[tokio::test(start_paused = true)]
async fn the_actor_is_woken_when_it_asked() {
    let (mut server, _client, _switch) = connected();
    let start = now();
    for seconds in [1, 5, 7] {
        let wake_at = start + Duration::from_secs(seconds);
        assert!(matches!(server.next_event(Some(wake_at)).await, Event::Due));
        assert_eq!((now() - start).as_secs(), seconds);
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_goes_with_the_next_message_or_by_itself_after_a_moment() {
    let (mut server, mut client, _switch) = connected();
    let (start, outbox) = (now(), server.outbox().clone());
    let server = tokio::spawn(async move { server.next_event(None).await });
    let mut arrives = async || {
        assert!(matches!(client.next_event(None).await, Event::Message(_)));
        now() - start
    };
    let message = || ServerMessage::task_failed(String::new(), aip::SessionId::new("s").unwrap());
    outbox.push_lazily(message().encode()).unwrap();
    assert_eq!(arrives().await, LAZY);
    outbox.push_lazily(message().encode()).unwrap();
    outbox.push(message().encode()).unwrap();
    for _ in 0..2 {
        assert_eq!(arrives().await, LAZY);
    }
    outbox.push_lazily(message().encode()).unwrap();
    outbox.close(CloseCode::NORMAL, "done");
    let Event::Closed(closed) = server.await.unwrap() else { panic!() };
    assert_eq!(closed.reason, "done");
}

#[tokio::test]
async fn messages_arrive_in_order_also_behind_a_large_one() {
    let (mut server, mut client, _switch) = connected();
    let mut large = heartbeat();
    large.error = Some("x".repeat(OFFLOAD_BYTES * 4));
    for message in [&large, &heartbeat()] {
        client.reply(message);
    }
    let client = tokio::spawn(async move { client.next_event(None).await });
    for length in [Some(OFFLOAD_BYTES * 4), None] {
        let Event::Message(message) = server.next_event(None).await else { panic!() };
        assert_eq!(message.error.map(|text| text.len()), length);
    }
    assert!(!client.is_finished());
}

const MIB: usize = 1024 * 1024;

const FEW_BYTES: OutboxLimits = OutboxLimits { messages: 1024, bytes: MIB };
const FEW_MESSAGES: OutboxLimits = OutboxLimits { messages: 16, bytes: 100 * MIB };

/// The server's end of a connection over which much more waits than its queue may hold, and the bare
/// stream of its peer.
fn over_its_bounds(limits: OutboxLimits) -> (Connection<ClientMessage>, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(4096);
    let outbox = Outbox::new(limits).patient(Budget::new(100 * MIB), Duration::from_secs(10));
    (0..20).for_each(|_| assert!(outbox.push(Bytes::from(vec![b'x'; MIB])).is_ok()));
    let socket = Socket::server(ours, Bytes::new(), 1024);
    (Connection::new(socket, Arc::new(outbox), WATCH, None), theirs)
}

#[tokio::test(start_paused = true)]
async fn who_takes_a_byte_now_and_then_is_not_cut_and_needs_no_sign_of_life() {
    let (mut connection, mut peer) = over_its_bounds(FEW_BYTES);
    let outbox = connection.outbox().clone();
    let sending = tokio::spawn(async move { connection.next_event(None).await });
    let mut piece = vec![0; 256 * 1024];
    while outbox.is_over() {
        peer.read_exact(&mut piece).await.unwrap();
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(!sending.is_finished());
    }
    drop(peer);
    let Event::Closed(closed) = sending.await.unwrap() else { panic!() };
    assert_eq!(closed.code, CloseCode(1006));
}

#[tokio::test(start_paused = true)]
async fn who_takes_no_byte_for_a_while_is_cut() {
    let (mut connection, mut peer) = over_its_bounds(FEW_BYTES);
    let (outbox, start) = (connection.outbox().clone(), now());
    let sending = tokio::spawn(async move { connection.next_event(None).await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    peer.read_exact(&mut vec![0; MIB]).await.unwrap();
    let Event::Closed(closed) = sending.await.unwrap() else { panic!() };
    assert_eq!((closed.code, closed.by_us), (CloseCode::TOO_SLOW, true));
    assert_eq!((now() - start).as_secs(), 15);
    assert!(outbox.overflow().is_some_and(|overflow| overflow.bound == Bound::Bytes));
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_keeps_no_room_from_others_who_wait_for_it() {
    let (budget, start) = (Budget::new(MIB), now());
    let (ours, _theirs) = tokio::io::duplex(4096);
    let outbox = Outbox::new(OutboxLimits::default());
    let outbox = Arc::new(outbox.patient(budget.clone(), Duration::from_secs(10)));
    // Within its bounds.
    outbox.push(Bytes::from(vec![b'x'; 2 * MIB])).unwrap();
    let socket = Socket::server(ours, Bytes::new(), 1024);
    let watch = Watch { ping_every: Duration::from_secs(3600), timeout: Duration::from_secs(7200) };
    let mut connection = Connection::<ClientMessage>::new(socket, outbox.clone(), watch, None);
    let sending = tokio::spawn(async move { connection.next_event(None).await });
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(!sending.is_finished(), "nobody waits for its room");
    let mut reader = budget.reader();
    let waiting = std::future::poll_fn(|cx| reader.poll_room(cx, MIB));
    let (closed, ()) = tokio::join!(sending, waiting);
    let Event::Closed(closed) = closed.unwrap() else { panic!() };
    assert_eq!((closed.code, closed.by_us), (CloseCode::TOO_SLOW, true));
    assert!((now() - start).as_secs() <= 111, "{:?}", now() - start);
    assert!(outbox.overflow().is_some_and(|overflow| overflow.bound == Bound::Room));
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_answered_whole_after_a_rest() {
    const BURST: usize = 100;
    let (ours, mut peer) = tokio::io::duplex(MIB);
    let outbox = Arc::new(Outbox::new(OutboxLimits::default()));
    let socket = Socket::server(ours, Bytes::new(), 1024);
    let mut connection = Connection::<ClientMessage>::new(socket, outbox, WATCH, None);
    let heard = tokio::spawn(async move {
        let mut heard = 0;
        while let Event::Message(_) = connection.next_event(None).await {
            heard += 1;
        }
        heard
    });
    for _ in 0..3 {
        tokio::time::sleep(QUIET * 2).await;
        let burst = Flood::new(BURST).0.into_inner();
        peer.write_all(&burst).await.unwrap();
    }
    tokio::time::sleep(QUIET).await;
    drop(peer);
    assert_eq!(heard.await.unwrap(), 3 * BURST);
}

#[tokio::test(start_paused = true)]
async fn who_is_behind_adds_no_more_than_it_takes() {
    let (mut connection, mut peer) = over_its_bounds(FEW_MESSAGES);
    let outbox = connection.outbox().clone();
    let asked = tokio::spawn(async move {
        let mut asked = 0;
        while let Event::Message(_) = connection.next_event(None).await {
            asked += 1;
            connection.outbox().push(Bytes::from(vec![b'x'; MIB])).unwrap();
        }
        asked
    });
    let beat = Flood::new(10).0.into_inner();
    peer.write_all(&beat).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(asked.await.unwrap(), 2, "one, and another since one was taken");
    assert!(!outbox.is_open());
}

/// A stream from which heartbeats can always be read, up to a number of them.
struct Flood(io::Cursor<Vec<u8>>);

impl Flood {
    fn new(heartbeats: usize) -> Self {
        let text = heartbeat().encode();
        assert!(text.len() < 126, "its length takes one byte");
        // A text frame, masked with zeros.
        let head = [0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
        Self(io::Cursor::new([&head, &text[..]].concat().repeat(heartbeats)))
    }
}

impl AsyncRead for Flood {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Flood {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn who_always_has_something_to_read_lets_the_others_have_their_turn() {
    let socket = Socket::server(Flood::new(10_000), Bytes::new(), 1024);
    let outbox = Arc::new(Outbox::new(OutboxLimits::default()));
    let mut connection = Connection::<ClientMessage>::new(socket, outbox, WATCH, None);
    let (handled, mut seen) = (Arc::new(AtomicUsize::new(0)), 0);
    let counting = handled.clone();
    let flooded = tokio::spawn(async move {
        while let Event::Message(message) = connection.next_event(None).await {
            connection.reply(&message);
            counting.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut most = 0;
    while handled.load(Ordering::Relaxed) < 10_000 && !flooded.is_finished() {
        tokio::task::yield_now().await;
        let now = handled.load(Ordering::Relaxed);
        most = most.max(now - std::mem::replace(&mut seen, now));
    }
    assert!((1..=64).contains(&most), "{most} messages in a row");
}

#[tokio::test]
async fn a_close_comes_after_what_was_queued_before_it() {
    let (mut server, mut client, _switch) = connected();
    client.outbox().push(heartbeat().encode()).unwrap();
    client.outbox().close(CloseCode::NORMAL, "done");
    let client = tokio::spawn(async move {
        if let Event::Closed(closed) = client.next_event(None).await {
            client.close(closed.code, &closed.reason).await;
        }
    });
    assert!(matches!(server.next_event(None).await, Event::Message(_)));
    let Event::Closed(closed) = server.next_event(None).await else { panic!() };
    assert_eq!(closed.to_string(), "1000 (closed normally): done");
    client.await.unwrap();
}
