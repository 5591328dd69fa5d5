//! The waits, second by second; the clock and the chance are the test's.

use super::*;

const S: Duration = Duration::from_secs(1);

fn device() -> Reconnect {
    Reconnect::new(S, 60 * S, None)
}

/// The longest waits in seconds of `tries` that follow each other, the first of them now.
fn waits(reconnect: &mut Reconnect, mut now: Instant, tries: usize) -> Vec<u64> {
    let mut next = || {
        let wait = reconnect.next_try(false, now, 1.0).unwrap();
        now += wait;
        wait.as_secs()
    };
    (0..tries).map(|_| next()).collect()
}

#[test]
fn waits_double_up_to_the_cap_and_start_over() {
    let mut backoff = Backoff::new(S, 60 * S);
    let waits: Vec<u64> = (0..8).map(|_| backoff.next_wait(1.0).as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    for _ in 0..1000 {
        assert!(backoff.next_wait(1.0) <= 60 * S);
    }
    backoff.reset();
    assert_eq!(backoff.next_wait(0.5), S / 2);
    assert_eq!(backoff.next_wait(0.0), Duration::ZERO);
    assert_eq!(backoff.next_wait(f64::NAN), Duration::ZERO);
}

#[test]
fn a_server_that_is_not_there_is_tried_ever_more_rarely() {
    let waits = waits(&mut device(), Instant::now(), 8);
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
}

#[test]
fn a_server_that_confirms_and_closes_is_not_hammered() {
    let (mut reconnect, mut now) = (device(), Instant::now());
    let mut waits = Vec::new();
    for _ in 0..8 {
        reconnect.handle_confirmed(now);
        reconnect.handle_message(ServerMessageType::Heartbeat);
        now += 59 * S;
        let wait = reconnect.next_try(false, now, 1.0).unwrap();
        waits.push(wait.as_secs());
        now += wait;
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(reconnect.tries(), 8);
}

#[test]
fn for_a_minute_after_a_link_that_lived_waits_are_short_and_then_they_double() {
    let (mut reconnect, now) = (device(), Instant::now());
    waits(&mut reconnect, now, 8);
    reconnect.handle_confirmed(now);
    let waits = waits(&mut reconnect, now + 60 * S, 38);
    let (quick, slow) = waits.split_at(31);
    assert_eq!(quick.iter().sum::<u64>(), 61);
    assert!(quick.iter().all(|wait| *wait <= 2), "{quick:?}");
    assert_eq!(slow, [4, 8, 16, 32, 60, 60, 60]);
}

#[test]
fn work_makes_a_short_link_a_success() {
    for kind in [ServerMessageType::Command, ServerMessageType::TaskEnd] {
        let (mut reconnect, now) = (device(), Instant::now());
        waits(&mut reconnect, now, 8);
        reconnect.handle_confirmed(now);
        reconnect.handle_message(kind);
        assert_eq!(waits(&mut reconnect, now, 4), [1, 2, 2, 2]);
        assert_eq!(reconnect.tries(), 4);
    }
}

#[test]
fn a_link_counts_once() {
    let (mut reconnect, now) = (device(), Instant::now());
    reconnect.handle_confirmed(now);
    reconnect.handle_message(ServerMessageType::Command);
    waits(&mut reconnect, now, 1);
    assert_eq!(waits(&mut reconnect, now + 3600 * S, 4), [2, 4, 8, 16]);
}

#[test]
fn the_settings_bound_the_short_waits_too() {
    for (first, cap, expected) in [(10, 60, [10, 10, 10]), (1, 1, [1, 1, 1]), (5, 3, [3, 3, 3])] {
        let (mut reconnect, now) = (Reconnect::new(first * S, cap * S, None), Instant::now());
        reconnect.handle_confirmed(now);
        assert_eq!(waits(&mut reconnect, now + 60 * S, 3), expected);
    }
}

#[test]
fn a_refused_client_comes_back_after_2_10_and_60_seconds_and_then_every_5_minutes() {
    let (mut reconnect, now) = (device(), Instant::now());
    let mut refused = |chance| reconnect.next_try(true, now, chance).unwrap().as_secs_f64();
    assert_eq!([0.0; 5].map(&mut refused), [2.0, 10.0, 60.0, 300.0, 300.0]);
    assert_eq!(refused(1.0), 330.0);
}

#[test]
fn only_a_success_makes_refusals_start_over() {
    let (mut reconnect, now) = (device(), Instant::now());
    let mut refused_at = |now| {
        reconnect.handle_confirmed(now);
        reconnect.next_try(true, now, 0.0);
        reconnect.next_try(false, now, 0.0);
        reconnect.handle_confirmed(now);
        reconnect.next_try(true, now + 59 * S, 0.0)
    };
    assert_eq!(refused_at(now), Some(10 * S));
    assert_eq!(refused_at(now), Some(300 * S));
    reconnect.handle_confirmed(now);
    assert_eq!(reconnect.next_try(true, now + 60 * S, 0.0), Some(2 * S));
}

#[test]
fn a_limit_counts_tries_since_the_last_success_and_ends_at_a_refusal() {
    let (mut reconnect, now) = (Reconnect::new(S, 60 * S, Some(3)), Instant::now());
    reconnect.handle_confirmed(now);
    assert_eq!(waits(&mut reconnect, now + 60 * S, 3), [1, 2, 4]);
    reconnect.handle_confirmed(now);
    assert_eq!(reconnect.next_try(false, now, 1.0), None);
    assert_eq!(reconnect.tries(), 4);
    reconnect.handle_confirmed(now);
    reconnect.handle_message(ServerMessageType::Command);
    assert_eq!(reconnect.next_try(false, now, 1.0), Some(S));
    assert_eq!(reconnect.next_try(true, now, 1.0), None);
}

#[test]
fn a_reset_forgets_what_was_tried() {
    let (mut reconnect, now) = (device(), Instant::now());
    waits(&mut reconnect, now, 5);
    reconnect.next_try(true, now, 0.0);
    reconnect.reset();
    assert_eq!(reconnect.tries(), 0);
    assert_eq!(waits(&mut reconnect, now, 2), [1, 2]);
    assert_eq!(reconnect.next_try(true, now, 0.0), Some(2 * S));
}
