use super::*;
use crate::budget::Budget;

fn outbox() -> Outbox {
    Outbox::new(OutboxLimits { messages: 3, bytes: 10 })
}

fn next(outbox: &Outbox) -> Option<Next> {
    match outbox.poll_next(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(next) => Some(next),
        Poll::Pending => None,
    }
}

fn frame(bytes: usize) -> Bytes {
    Bytes::from(vec![b'x'; bytes])
}

#[test]
fn a_queue_takes_one_message_of_any_size_and_beside_it_its_bounds_hold() {
    let outbox = outbox();
    for (place, bytes) in [(0, 5), (1, 1000), (2, 5)] {
        assert_eq!(outbox.push(frame(bytes)), Ok(place));
    }
    assert_eq!(next(&outbox), Some(Next::Frame(frame(5))));
    let overflow = Overflow { messages: 2, bytes: 1005, refused: 6, bound: Bound::Bytes };
    assert_eq!(outbox.push(frame(6)), Err(overflow.into()));
    let close = Next::Close(CloseCode::TOO_SLOW, overflow.to_string());
    assert_eq!(next(&outbox), Some(close));
    assert!(!outbox.is_open());
    assert_eq!(outbox.overflow(), Some(overflow), "it is known when the queue is gone");
}

#[tokio::test]
async fn who_can_wait_for_room_closes_nothing_and_waits_for_no_closed_queue() {
    let outbox = outbox();
    for _ in 0..2 {
        outbox.push(frame(8)).unwrap();
    }
    let (mut first, mut second) = (false, false);
    let mut pushing = Box::pin(outbox.push_in_turn(frame(20), || first = true));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(pushing.as_mut().poll(&mut cx).is_pending());
    assert_eq!(next(&outbox), Some(Next::Frame(frame(8))));
    assert!(pushing.as_mut().poll(&mut cx).is_ready() && outbox.len() == 2);
    drop(pushing);

    let mut pushing = Box::pin(outbox.push_in_turn(frame(20), || second = true));
    assert!(pushing.as_mut().poll(&mut cx).is_pending());
    outbox.abort(CloseCode::NORMAL, "gone");
    assert!(pushing.as_mut().poll(&mut cx).is_ready() && outbox.is_empty());
    drop(pushing);
    assert!(first && second);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_another_goes_with_it_or_when_the_actor_hurries() {
    let outbox = outbox();
    assert_eq!(outbox.push_lazily(frame(1)), Ok(0));
    assert_eq!((next(&outbox), outbox.lazy_until()), (None, Some(now() + LAZY)));
    assert_eq!(outbox.push(frame(2)), Ok(1));
    assert_eq!(next(&outbox), Some(Next::Frame(frame(1))));
    assert_eq!(next(&outbox), Some(Next::Frame(frame(2))));
    assert_eq!(outbox.lazy_until(), None);
    outbox.push_lazily(frame(3)).unwrap();
    assert_eq!(next(&outbox), None);
    outbox.hurry();
    assert_eq!(outbox.lazy_until(), None, "also while the socket takes nothing");
    assert_eq!(next(&outbox), Some(Next::Frame(frame(3))));
    outbox.hurry();
    outbox.push_lazily(frame(4)).unwrap();
    assert_eq!(next(&outbox), None, "there was nothing to hurry");
    outbox.close(CloseCode::NORMAL, "done");
    assert_eq!(next(&outbox), Some(Next::Frame(frame(4))));
}

#[tokio::test(start_paused = true)]
async fn a_patient_queue_is_over_its_bounds_while_its_peer_takes_bytes_and_there_is_room() {
    let budget = Budget::new(10_000);
    let patience = Duration::from_secs(10);
    let outbox = outbox().patient(budget.clone(), patience);
    let start = now();
    for place in 0..6 {
        assert_eq!(outbox.push(frame(8)), Ok(place));
    }
    assert!(outbox.is_over() && budget.usage().bytes > 0);
    assert_eq!(outbox.slow_at(start), Some(start + patience));
    let later = start + Duration::from_secs(7);
    assert_eq!(outbox.slow_at(later), Some(later + patience), "it took something meanwhile");
    for _ in 0..4 {
        next(&outbox);
    }
    assert!(!outbox.is_over() && outbox.slow_at(start).is_none());
    assert!(outbox.is_open());
    while next(&outbox).is_some() {}
    assert_eq!(budget.usage().bytes, 0);

    (0..4).for_each(|_| assert!(outbox.push(frame(8)).is_ok()));
    let Err(NotQueued::Full(overflow)) = outbox.push(frame(20_000)) else { panic!() };
    assert_eq!((overflow.bound, overflow.refused), (Bound::Budget, 20_000));
    assert!(!outbox.is_open() && !outbox.is_over());
    assert_eq!(budget.usage().bytes, 0, "what it had goes at once");
}

#[test]
fn it_is_bounded_by_messages_too() {
    let outbox = outbox();
    for place in 0..3 {
        assert_eq!(outbox.push(frame(1)), Ok(place));
    }
    let overflow = Overflow { messages: 3, bytes: 3, refused: 1, bound: Bound::Messages };
    assert_eq!(outbox.push(frame(1)), Err(overflow.into()));
}

#[test]
fn progress_goes_first() {
    let dropped = Arc::new(AtomicU64::new(0));
    let outbox = outbox().counting_dropped_progress(dropped.clone());
    outbox.push(frame(1)).unwrap();
    outbox.push_progress(frame(2));
    outbox.push_progress(frame(3));
    outbox.push_progress(frame(4));
    assert_eq!(outbox.len(), 3, "the fourth found no room");
    outbox.push(frame(5)).unwrap();
    assert_eq!(next(&outbox), Some(Next::Frame(frame(1))));
    assert_eq!(next(&outbox), Some(Next::Frame(frame(5))));
    assert_eq!(next(&outbox), None);
    assert_eq!(dropped.load(Ordering::Relaxed), 3);
}

#[test]
fn closing_sends_what_is_queued_and_aborting_does_not() {
    let closing = outbox();
    closing.push(frame(1)).unwrap();
    closing.close(CloseCode::GOING_AWAY, "bye");
    assert_eq!(closing.push(frame(2)), Err(NotQueued::Closed));
    assert_eq!(next(&closing), Some(Next::Frame(frame(1))));
    assert_eq!(next(&closing), Some(Next::Close(CloseCode::GOING_AWAY, "bye".to_owned())));

    let aborting = outbox();
    aborting.push(frame(1)).unwrap();
    aborting.abort(CloseCode::NO_LIFE, "silent");
    aborting.abort(CloseCode::NORMAL, "closed");
    assert_eq!(next(&aborting), Some(Next::Close(CloseCode::NO_LIFE, "silent".to_owned())));
}

#[test]
fn the_first_close_says_why() {
    let outbox = outbox();
    outbox.push(frame(1)).unwrap();
    outbox.close(CloseCode::GOING_AWAY, "bye");
    outbox.abort(CloseCode::NORMAL, "closed");
    assert_eq!(next(&outbox), Some(Next::Close(CloseCode::GOING_AWAY, "bye".to_owned())));
}

#[test]
fn it_is_known_what_was_never_sent_also_behind_progress_that_was_dropped() {
    let outbox = outbox();
    let first = outbox.push(frame(1)).unwrap();
    next(&outbox);
    outbox.push_progress(frame(1));
    outbox.push_progress(frame(1));
    let second = outbox.push(frame(2)).unwrap();
    let third = outbox.push(frame(8)).unwrap();
    assert_eq!(next(&outbox), Some(Next::Frame(frame(2))), "the progress gave way");
    let taken = outbox.abort(CloseCode::NORMAL, "gone");
    assert!(first < taken && second < taken && third >= taken);
    assert_eq!(outbox.push(frame(1)), Err(NotQueued::Closed), "and nothing is sent after that");
}

#[test]
fn what_is_queued_when_the_connection_closes_is_sent_or_never_sent_and_nothing_between() {
    let outbox = outbox();
    let place = outbox.push(frame(1)).unwrap();
    outbox.close(CloseCode::GOING_AWAY, "bye");
    assert_eq!(outbox.take_frames().len(), 1, "the goodbye sends what was queued before it");
    assert!(place < outbox.abort(CloseCode::NORMAL, "closed"));
}

#[tokio::test]
async fn a_question_whether_the_peer_is_alive_ends_with_the_connection() {
    let outbox = outbox();
    let asked = outbox.probe();
    outbox.abort(CloseCode::NORMAL, "closed");
    assert!(asked.await.is_err());
    assert!(outbox.probe().await.is_err(), "of a closed connection it is known at once");
}

#[test]
fn a_message_can_be_taken_back_until_the_socket_has_it() {
    let outbox = outbox();
    let [first, second, third] = [(); 3].map(|()| outbox.push(frame(1)).unwrap());
    next(&outbox);
    assert!(!outbox.withdraw(first));
    assert!(outbox.withdraw(second));
    assert_eq!(next(&outbox), Some(Next::Frame(frame(1))));
    assert!(!outbox.withdraw(third) && outbox.is_empty());
    let dropped = outbox.push(frame(1)).unwrap();
    outbox.abort(CloseCode::NORMAL, "gone");
    assert!(outbox.withdraw(dropped), "what the end dropped is never sent either");
}
