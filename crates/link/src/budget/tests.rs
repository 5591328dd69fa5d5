use std::sync::Arc;

use aip::ClientMessage;
use aip::CloseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::connection::Watch;
use crate::{Connection, Event, Outbox, OutboxLimits, Socket};

const WATCH: Watch =
    Watch { ping_every: Duration::from_secs(30), timeout: Duration::from_secs(90) };

/// What goes through a [`duplex`] before its writer waits, in bytes.
const PIPE: usize = 4096;

const MIB: usize = 1024 * 1024;

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn has_room(reader: &mut Reader, message: usize) -> bool {
    reader.poll_room(&mut cx(), message).is_ready()
}

fn usage(bytes: usize, waiting: usize) -> Usage {
    Usage { bytes, waiting }
}

#[tokio::test]
async fn room_is_taken_as_bytes_come_and_comes_back_in_turn() {
    let budget = Budget::new(100);
    let [mut one, mut two, mut three, mut four] = [(); 4].map(|()| budget.reader());
    assert!(has_room(&mut one, 20) && has_room(&mut one, 30) && has_room(&mut two, 20));
    assert_eq!(budget.usage(), usage(100, 0), "each byte counts twice");
    // The first who finds no room reads its message to the end beyond the limit.
    assert!(has_room(&mut two, 30) && has_room(&mut two, 500));
    assert!(!has_room(&mut three, 1) && !has_room(&mut four, 1) && !has_room(&mut one, 40));
    assert_eq!(budget.usage(), usage(1060, 3));
    drop(two);
    assert!(has_room(&mut three, 1) && has_room(&mut four, 1) && has_room(&mut one, 40));
    assert_eq!(budget.usage(), usage(84, 0));
    drop((one, three, four));
    assert_eq!(budget.usage(), usage(0, 0));
}

#[tokio::test]
async fn who_leaves_the_line_keeps_none_of_it() {
    let budget = Budget::new(100);
    let [mut one, mut two, mut three, mut four] = [(); 4].map(|()| budget.reader());
    assert!(has_room(&mut one, 50) && has_room(&mut two, 10), "the second overdraws");
    assert!(!has_room(&mut three, 10) && !has_room(&mut four, 10));
    // The third has its room, does not notice, and leaves.
    drop(one);
    assert_eq!(budget.usage(), usage(60, 0));
    drop((two, three, four));
    assert_eq!(budget.usage(), usage(0, 0));
}

#[tokio::test]
async fn what_is_kept_counts_beyond_the_limit_and_until_it_is_gone() {
    let budget = Budget::new(1000);
    let mut kept = budget.nothing();
    kept.grow(1500);
    let mut reader = budget.reader();
    assert!(!has_room(&mut reader, 1), "none may overdraw what does not become less by reading");
    assert!(budget.try_keep(&Bytes::from_static(b"more")).is_none());
    drop(kept);
    assert!(has_room(&mut reader, 1));
    let message = budget.keep(Bytes::from_static(b"text"));
    let part = message.slice(1..2);
    drop((message, reader));
    assert_eq!(budget.usage(), usage(4 + KEPT_OVERHEAD, 0));
    drop(part);
    assert_eq!(budget.usage(), usage(0, 0));
}

/// The server's end of a connection that takes room, and the bare stream of its peer.
fn connected(budget: &Budget) -> (Connection<ClientMessage>, DuplexStream) {
    let (ours, theirs) = duplex(PIPE);
    let mut socket = Socket::server(ours, Bytes::new(), 100 * MIB);
    socket.set_budget(budget.clone());
    let outbox = Arc::new(Outbox::new(OutboxLimits::default()));
    (Connection::new(socket, outbox, WATCH, None), theirs)
}

/// The frame of a heartbeat of about this size, masked with zeros.
fn frame(bytes: usize) -> Vec<u8> {
    let text = format!(r#"{{"type":"heartbeat","error":"{}"}}"#, "x".repeat(bytes));
    let mut frame = vec![0x81];
    match u8::try_from(text.len()) {
        Ok(short @ ..126) => frame.push(0x80 | short),
        _ => {
            assert!(text.len() > usize::from(u16::MAX), "its length takes eight bytes");
            frame.push(0x80 | 127);
            frame.extend((text.len() as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    frame
}

fn is_message(event: &Event<ClientMessage>) -> bool {
    matches!(event, Event::Message(_))
}

async fn pause(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_room_is_not_silent_and_small_messages_pass() {
    let budget = Budget::new(MIB);
    let mut kept = budget.nothing();
    kept.grow(2 * MIB);
    let (mut waiting, mut large) = connected(&budget);
    let (mut other, mut small) = connected(&budget);
    let waiting = tokio::spawn(async move { (waiting.next_event(None).await, waiting) });
    // Its peer does not answer pings, as it cannot while its message is not through.
    let sending = tokio::spawn(async move {
        large.write_all(&frame(MIB)).await.unwrap();
        large
    });
    pause(3600).await;
    assert!(!waiting.is_finished() && !sending.is_finished());
    assert_eq!(budget.usage().waiting, 1);
    small.write_all(&frame(50)).await.unwrap();
    assert!(is_message(&other.next_event(None).await));
    drop(kept);
    let (event, connection) = waiting.await.unwrap();
    assert!(is_message(&event));
    assert!(budget.usage().bytes >= 2 * MIB, "it has its room until it is handled");
    drop(connection);
    assert_eq!(budget.usage(), usage(0, 0));
    drop(sending);
}

#[tokio::test(start_paused = true)]
async fn messages_that_fill_the_budget_half_read_are_all_read_to_the_end() {
    let budget = Budget::new(MIB);
    let mut reading = Vec::new();
    for _ in 0..5 {
        let (mut connection, mut peer) = connected(&budget);
        tokio::spawn(async move { peer.write_all(&frame(MIB)).await.map(|()| peer) });
        reading.push(tokio::spawn(async move { connection.next_event(None).await }));
    }
    for event in reading {
        assert!(is_message(&event.await.unwrap()));
    }
    assert_eq!(budget.usage(), usage(0, 0));
}

/// Sends a large message at this many bytes a second. Returns how its connection ends.
async fn trickle(budget: &Budget, a_second: usize) -> Event<ClientMessage> {
    let (mut connection, mut peer) = connected(budget);
    tokio::spawn(async move {
        let frame = frame(4 * MIB);
        // So much that it takes room.
        let (head, rest) = frame.split_at(MIB / 4);
        peer.write_all(head).await?;
        for piece in rest.chunks(a_second) {
            peer.write_all(piece).await?;
            pause(1).await;
        }
        peer.read_u8().await
    });
    connection.next_event(None).await
}

#[tokio::test(start_paused = true)]
async fn a_slow_sender_gives_its_room_back_while_others_wait_and_only_then() {
    let budget = Budget::new(MIB / 2);
    assert!(is_message(&trickle(&budget, 16 * 1024).await), "nobody waits");
    let (mut waiting, mut large) = connected(&budget);
    tokio::spawn(async move { large.write_all(&frame(MIB)).await.map(|()| large) });
    let slow = trickle(&budget, 16 * 1024);
    let (slow, waited) = tokio::join!(slow, async {
        pause(1).await;
        waiting.next_event(None).await
    });
    let Event::Closed(closed) = slow else { panic!("{slow:?}") };
    assert_eq!((closed.code, closed.by_us), (CloseCode::OVERLOADED, true), "{closed}");
    assert!(is_message(&waited));
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_is_fast_enough_keeps_its_room_while_others_wait() {
    let budget = Budget::new(MIB / 2);
    let (mut waiting, mut large) = connected(&budget);
    tokio::spawn(async move { large.write_all(&frame(MIB)).await.map(|()| large) });
    let (steady, waited) = tokio::join!(trickle(&budget, 80 * 1024), async {
        pause(1).await;
        waiting.next_event(None).await
    });
    assert!(is_message(&steady) && is_message(&waited));
}

#[tokio::test(start_paused = true)]
async fn a_large_frame_takes_no_memory_before_those_that_come_leave_room_for_it() {
    let budget = Budget::new(3 * MIB);
    let announced = || budget.lock().announced;
    let mut coming = Vec::new();
    for _ in 0..3 {
        let (mut connection, mut peer) = connected(&budget);
        // The header and a little more.
        peer.write_all(&frame(2 * MIB)[..50]).await.unwrap();
        let reading = tokio::spawn(async move { connection.next_event(None).await });
        pause(1).await;
        coming.push((peer, reading));
    }
    let (refused, mut peer) = connected(&budget);
    let mut refused = refused;
    refused.set_max_message(MIB);
    peer.write_all(&frame(2 * MIB)[..50]).await.unwrap();
    let event = refused.next_event(None).await;
    assert!(matches!(event, Event::Closed(_)), "one that is too large does not wait to be refused");
    assert!((2 * MIB..3 * MIB).contains(&announced()), "{}", announced());
    assert_eq!(budget.usage().waiting, 2);
    let mut coming = coming.into_iter();
    let (first, reading) = coming.next().unwrap();
    drop(first);
    assert!(matches!(reading.await.unwrap(), Event::Closed(_)));
    for (mut peer, reading) in coming {
        peer.write_all(&frame(2 * MIB)[50..]).await.unwrap();
        assert!(is_message(&reading.await.unwrap()));
    }
    assert_eq!((announced(), budget.usage()), (0, usage(0, 0)));
}

/// A message of about this size in frames of 50 KB.
fn fragments(bytes: usize) -> Vec<u8> {
    const PART: usize = 50_000;
    let whole = frame(bytes);
    let text = &whole[14..];
    let mut frames = Vec::new();
    for (n, part) in text.chunks(PART).enumerate() {
        let is_last = (n + 1) * PART >= text.len();
        let first = if n == 0 { 1 } else { 0 } | if is_last { 0x80 } else { 0 };
        frames.extend([first, 0x80 | 126]);
        frames.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
        frames.extend([0; 4]);
        frames.extend(part);
    }
    frames
}

#[tokio::test(start_paused = true)]
async fn a_sender_of_message_after_message_lets_others_have_the_room_in_between() {
    let budget = Budget::new(MIB);
    let (mut greedy, mut fast) = connected(&budget);
    let sending = tokio::spawn(async move {
        // The end of one and the beginning of the next come together.
        let messages = fragments(MIB).repeat(200);
        let _cut_at_the_end = fast.write_all(&messages).await;
    });
    let came = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = came.clone();
    let reading = tokio::spawn(async move {
        while is_message(&greedy.next_event(None).await) {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    let (mut other, mut victim) = connected(&budget);
    tokio::spawn(async move { victim.write_all(&frame(MIB)).await.map(|()| victim) });
    assert!(is_message(&other.next_event(None).await));
    let before = came.load(std::sync::atomic::Ordering::Relaxed);
    assert!(before < 10, "{before} others went first");
    reading.abort();
    sending.abort();
}

#[tokio::test(start_paused = true)]
async fn who_is_cut_gives_its_room_back_at_once() {
    let budget = Budget::new(3 * MIB);
    let (mut connection, mut peer) = connected(&budget);
    let outbox = connection.outbox().clone();
    let reading = tokio::spawn(async move {
        let Event::Closed(closed) = connection.next_event(None).await else { panic!() };
        connection.close(closed.code, &closed.reason).await;
    });
    peer.write_all(&frame(2 * MIB)[..MIB]).await.unwrap();
    pause(1).await;
    assert!(budget.usage().bytes > MIB);
    outbox.close(CloseCode::OVERLOADED, "cut");
    pause(1).await;
    assert!(!reading.is_finished(), "it says goodbye");
    assert_eq!((budget.usage(), budget.lock().announced), (usage(0, 0), 0));
    drop(peer);
}

#[tokio::test(start_paused = true)]
async fn one_that_all_wait_for_waits_for_none_of_their_frames() {
    let budget = Budget::new(MIB);
    let kib = |n: usize| n * 1024;
    // A message in two large frames.
    let parts = [vec![b'{'; kib(600)], vec![b' '; kib(800)]];
    let (mut first, mut split) = connected(&budget);
    let reading = tokio::spawn(async move { first.next_event(None).await });
    let part = |first_byte: u8, payload: &[u8]| {
        let mut frame = vec![first_byte, 0x80 | 127];
        frame.extend((payload.len() as u64).to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(payload);
        frame
    };
    split.write_all(&part(0x01, &parts[0])).await.unwrap();
    pause(1).await;
    let (mut second, mut whole) = connected(&budget);
    let waiting = tokio::spawn(async move { second.next_event(None).await });
    let sending = tokio::spawn(async move {
        whole.write_all(&frame(kib(300))).await.unwrap();
        whole
    });
    pause(1).await;
    assert_eq!(budget.usage().waiting, 1, "it has come in between");
    split.write_all(&part(0x80, &parts[1])).await.unwrap();
    assert!(matches!(reading.await.unwrap(), Event::Unreadable(..)), "it was read to its end");
    assert!(is_message(&waiting.await.unwrap()));
    drop((sending, split));
}

#[tokio::test(start_paused = true)]
async fn who_announces_a_large_frame_and_sends_none_of_it_gives_its_room_back() {
    let budget = Budget::new(3 * MIB);
    let (mut silent, mut peer) = connected(&budget);
    let start = now();
    peer.write_all(&frame(2 * MIB)[..14]).await.unwrap();
    let cut = tokio::spawn(async move {
        let Event::Closed(closed) = silent.next_event(None).await else { panic!() };
        closed
    });
    pause(1).await;
    let (mut other, mut large) = connected(&budget);
    tokio::spawn(async move { large.write_all(&frame(2 * MIB)).await.map(|()| large) });
    assert!(is_message(&other.next_event(None).await));
    assert_eq!(cut.await.unwrap().code, CloseCode::OVERLOADED);
    assert!((now() - start).as_secs() <= 10);
}
