//! When a client comes back, also after its machine slept. The time asleep is the test's; the wire is
//! in memory.

use std::sync::atomic::{AtomicU64, Ordering};

use aip::machine::confirm;
use aip::{ResponseId, ServerMessageType};
use tokio::task::JoinHandle;

use super::*;
use crate::connection::Watch;
use crate::memory::{KillSwitch, pair};
use crate::{Ambient, OutboxLimits, ServerUrl};

/// A device that does nothing.
struct Idle(ClientId);

impl Role for Idle {
    fn identity(&self) -> (&ClientId, ClientType) {
        (&self.0, ClientType::Device)
    }

    fn register(&mut self) -> ClientMessage {
        ClientMessage::new(ClientMessageType::Register, ClientType::Device)
    }

    fn handle_connected(&mut self, _: &Arc<Outbox>, _: Option<&Confirmed>) {}

    fn handle_message(&mut self, _: ServerMessage) {}

    fn handle_unreadable(&mut self, _: &DecodeError, _: &About) {}

    fn handle_disconnected(&mut self, _: &str, _: Option<Duration>) {}
}

fn client_time() -> String {
    Ambient::system().time_text()
}

/// The seconds that the machine has slept in all.
#[derive(Clone, Default)]
struct Asleep(Arc<AtomicU64>);

impl Asleep {
    fn sleep(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

/// A device whose machine sleeps when the test says so.
fn client(asleep: &Asleep) -> Client<Idle> {
    let settings = ClientSettings::device(ServerUrl::default());
    let asleep = asleep.0.clone();
    let clock = move || Duration::from_secs(asleep.load(Ordering::Relaxed));
    let sleep = SleepWatch::with_clock(Box::new(clock));
    Client { sleep, ..Client::new(settings, Idle(ClientId::new("d").unwrap())) }
}

/// Runs a device on a connection with a server that confirms it, and after that answers pings only.
fn connected(asleep: &Asleep) -> (JoinHandle<(Client<Idle>, End)>, KillSwitch, CancellationToken) {
    run(client(asleep))
}

fn run(
    mut client: Client<Idle>,
) -> (JoinHandle<(Client<Idle>, End)>, KillSwitch, CancellationToken) {
    let ((near, far, switch), stop) = (pair(), CancellationToken::new());
    let watch = client.settings.watch;
    tokio::spawn(async move {
        let outbox = Arc::new(Outbox::new(OutboxLimits::default()));
        let mut server = Connection::<ClientMessage>::new(far, outbox, watch, None);
        while !matches!(server.next_event(None).await, Event::Closed(_)) {
            let id = ResponseId::new("r").unwrap();
            server.reply(&confirm(id, client_time(), None));
        }
    });
    let stopped = stop.clone();
    let running = tokio::spawn(async move {
        let end = client.run_on(near, &stopped).await;
        (client, end)
    });
    (running, switch, stop)
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_while_the_machine_slept_is_replaced_at_once() {
    let asleep = Asleep::default();
    let (running, switch, _stop) = connected(&asleep);
    tokio::time::sleep(Duration::from_secs(60)).await;
    switch.swallow();
    asleep.sleep(3600);
    let woke = now();
    let (mut client, end) = running.await.unwrap();
    let took = now() - woke;
    assert!(took <= LOOK_EVERY + PROOF_TIME, "{took:?}");
    assert!(end.text().contains("no sign of life after this machine slept"), "{}", end.text());
    assert_eq!(client.next_try(&end), Ok(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_outlived_the_sleep_stays() {
    let asleep = Asleep::default();
    let (running, _switch, stop) = connected(&asleep);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_secs(7)).await;
        asleep.sleep(60);
    }
    tokio::time::sleep(PROOF_TIME * 2).await;
    assert!(!running.is_finished());
    stop.cancel();
    assert!(matches!(running.await.unwrap().1, End::Stopped));
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_on_a_machine_that_is_awake_is_given_its_time() {
    let (running, switch, _stop) = connected(&Asleep::default());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let start = now();
    switch.swallow();
    let (_, end) = running.await.unwrap();
    assert!((now() - start).as_secs() > 150, "{:?}", now() - start);
    assert!(matches!(end, End::Closed(_)));
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_the_next_try_ends_when_the_machine_wakes_up() {
    let asleep = Asleep::default();
    let mut client = client(&asleep);
    for _ in 0..20 {
        client.reconnect.next_try(false, now(), 1.0);
    }
    let start = now();
    let waking = async {
        tokio::time::sleep(Duration::from_secs(12)).await;
        asleep.sleep(3600);
    };
    tokio::join!(client.rest(Duration::from_secs(300)), waking);
    assert_eq!((now() - start).as_secs(), 15);
    assert_eq!(client.reconnect.tries(), 0, "what was tried before the sleep does not count");

    let start = now();
    client.rest(Duration::from_secs(61)).await;
    assert_eq!((now() - start).as_secs(), 61, "without a sleep it is as long as it is");
}

/// A server that confirms the client, sends it what the test says, and closes.
async fn confirms_and_closes(far: Socket, watch: Watch, says: Option<ServerMessageType>) {
    let outbox = Arc::new(Outbox::new(OutboxLimits::default()));
    let mut server = Connection::<ClientMessage>::new(far, outbox, watch, None);
    assert!(matches!(server.next_event(None).await, Event::Message(_)));
    server.reply(&confirm(ResponseId::new("r").unwrap(), client_time(), None));
    if let Some(kind) = says {
        server.reply(&ServerMessage::new(kind, aip::Status::Continue));
    }
    server.close(CloseCode::GOING_AWAY, "not now").await;
}

/// How often a device has tried in vain, after it met such servers one after the other.
async fn tries(says: &[Option<ServerMessageType>]) -> u32 {
    let mut client = client(&Asleep::default());
    for says in says {
        let (near, far, _switch) = pair();
        tokio::spawn(confirms_and_closes(far, client.settings.watch, *says));
        let end = client.run_on(near, &CancellationToken::new()).await;
        assert!(end.text().contains("not now"), "{}", end.text());
        client.next_try(&end).unwrap();
    }
    client.reconnect.tries()
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_alone_does_not_start_the_waits_over() {
    assert_eq!(tries(&[None; 5]).await, 5);
    let heartbeat = Some(ServerMessageType::Heartbeat);
    assert_eq!(tries(&[heartbeat; 5]).await, 5);
}

#[tokio::test(start_paused = true)]
async fn work_that_passed_does() {
    assert_eq!(tries(&[None, None, Some(ServerMessageType::Command)]).await, 1);
    assert_eq!(tries(&[None, None, Some(ServerMessageType::TaskEnd), None]).await, 2);
}

#[tokio::test(start_paused = true)]
async fn no_wait_is_too_long_for_a_client() {
    for time in [Duration::MAX, Duration::from_secs(u64::MAX / 2)] {
        let settings = ClientSettings {
            heartbeat_interval: time,
            watch: Watch { ping_every: time, timeout: time },
            connect_timeout: time,
            backoff_base: time,
            backoff_cap: time,
            ..ClientSettings::device(ServerUrl::default())
        };
        let mut client = Client::new(settings, Idle(ClientId::new("d").unwrap()));
        let wait = client.next_try(&End::Closed(Closed::lost("x"))).unwrap();
        assert!(now().checked_add(wait).is_some(), "{wait:?}");
        let (running, _switch, stop) = run(client);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!running.is_finished());
        stop.cancel();
        assert!(matches!(running.await.unwrap().1, End::Stopped));
    }
}

/// A device that takes in what refusals say, or not.
struct Amending {
    inner: Idle,
    takes_in: bool,
}

impl Role for Amending {
    fn identity(&self) -> (&ClientId, ClientType) {
        self.inner.identity()
    }

    fn register(&mut self) -> ClientMessage {
        self.inner.register()
    }

    fn handle_refused(&mut self, _: &ServerMessage) -> bool {
        self.takes_in
    }

    fn handle_connected(&mut self, _: &Arc<Outbox>, _: Option<&Confirmed>) {}

    fn handle_message(&mut self, _: ServerMessage) {}

    fn handle_unreadable(&mut self, _: &DecodeError, _: &About) {}

    fn handle_disconnected(&mut self, _: &str, _: Option<Duration>) {}
}

/// How a client exits whose server refuses it again and again as older than its newest connection, and how often it
/// came.
async fn exit_of_refused(takes_in: bool) -> (Exit, usize) {
    let came = Arc::new(AtomicU64::new(0));
    let counted = came.clone();
    let connector: Connector = Arc::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let (near, far, _switch) = pair();
        tokio::spawn(async move {
            let outbox = Arc::new(Outbox::new(OutboxLimits::default()));
            let watch = ClientSettings::device(ServerUrl::default()).watch;
            let mut server = Connection::<ClientMessage>::new(far, outbox, watch, None);
            assert!(matches!(server.next_event(None).await, Event::Message(_)));
            server.reply(&ServerMessage::new(ServerMessageType::Error, aip::Status::Error));
            server.close(CloseCode::REPLACED, "older").await;
        });
        Box::pin(std::future::ready(Ok(near)))
    });
    let settings = ClientSettings {
        connector: Some(connector),
        max_retries: Some(0),
        ..ClientSettings::device(ServerUrl::default())
    };
    let role = Amending { inner: Idle(ClientId::new("d").unwrap()), takes_in };
    let exit = Client::new(settings, role).run(CancellationToken::new()).await;
    (exit, came.load(Ordering::Relaxed) as usize)
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_is_taken_in_brings_the_client_again_but_not_for_ever() {
    let start = now();
    let (exit, came) = exit_of_refused(true).await;
    assert!(matches!(exit, Exit::Refused(_)), "{exit:?}");
    assert_eq!(came, 4);
    assert!(now() - start < Duration::from_secs(1));
    assert_eq!(exit_of_refused(false).await.1, 1);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_was_granted_resume_is_given_up_after_forty_seconds_of_silence() {
    let mut client = client(&Asleep::default());
    let (near, far, switch) = pair();
    let watch = client.settings.watch;
    tokio::spawn(async move {
        let outbox = Arc::new(Outbox::new(OutboxLimits::default()));
        let mut server = Connection::<ClientMessage>::new(far, outbox, watch, None);
        while !matches!(server.next_event(None).await, Event::Closed(_)) {
            let granted = Confirmed { features: vec![Feature::Resume], ..Confirmed::default() };
            server.reply(&confirm(ResponseId::new("r").unwrap(), client_time(), Some(&granted)));
        }
    });
    let (stop, start) = (CancellationToken::new(), now());
    let silence = async {
        tokio::time::sleep(Duration::from_secs(65)).await;
        switch.swallow();
    };
    let (end, ()) = tokio::join!(client.run_on(near, &stop), silence);
    let took = (now() - start).as_secs();
    assert!(matches!(end, End::Closed(_)) && (100..=105).contains(&took), "{took}");
}
