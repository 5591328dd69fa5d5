//! A crowd at a server that is stopped and started again: who is sent away when, and who comes back when.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aip::codec::{About, Wire};
use aip::message::Confirmed;
use aip::{ClientId, ClientMessage, ClientType, DecodeError, ServerMessage};
use bytes::Bytes;
use jiff::Timestamp;
use link::{Ambient, ClientSettings, Connector, DialError, Outbox, Role, Socket};
use serde_json::json;
use server::Server;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::party::Party;
use crate::rig::{Client, Rig, settle};

const CROWD: usize = 50;

/// Longer than the server takes to be back.
const AWAY: Duration = Duration::from_secs(10);

/// What happened to the crowd, in order.
#[derive(Default)]
struct Seen {
    left: Vec<(Instant, &'static str)>,
    came: Vec<(Instant, &'static str)>,
}

type Log = Arc<Mutex<Seen>>;

/// The server that answers at the address of all, if one does.
type Address = Arc<Mutex<Option<Server>>>;

/// A device that does nothing but come, and come back.
struct Idler {
    id: ClientId,
    client: Client,
    seen: Log,
    is_here: bool,
}

impl Role for Idler {
    fn identity(&self) -> (&ClientId, ClientType) {
        (&self.id, ClientType::Device)
    }

    fn register(&mut self) -> ClientMessage {
        let register = json!({"type": "register", "client_type": "device",
            "client_id": self.client.id, "metadata": self.client.metadata()});
        ClientMessage::decode(&Bytes::from(register.to_string())).unwrap()
    }

    fn handle_connected(&mut self, _: &Arc<Outbox>, granted: Option<&Confirmed>) {
        let resumed = granted.and_then(|granted| granted.resumed.as_ref()).unwrap();
        self.client.store = Some(json!(resumed.store));
        self.client.key = Some(json!(resumed.resume_key));
        self.seen.lock().unwrap().came.push((Instant::now(), self.client.id));
        self.is_here = true;
    }

    fn handle_message(&mut self, _: ServerMessage) {}

    fn handle_unreadable(&mut self, _: &DecodeError, _: &About) {}

    fn handle_disconnected(&mut self, _: &str, _: Option<Duration>) {
        if std::mem::take(&mut self.is_here) {
            self.seen.lock().unwrap().left.push((Instant::now(), self.client.id));
        }
    }
}

/// Connects to whatever server answers at an address.
fn to(address: &Address) -> Connector {
    let address = address.clone();
    Arc::new(move || {
        let server = address.lock().unwrap().clone();
        let connecting = async move {
            let refused = || std::io::ErrorKind::ConnectionRefused.into();
            let server = server.ok_or_else(|| DialError::Unreachable("here".into(), refused()))?;
            let (theirs, ours, _) = link::memory::pair();
            tokio::spawn(async move { server.accept(theirs, None).await });
            Ok(ours)
        };
        Box::pin(connecting) as Pin<Box<dyn Future<Output = Result<Socket, DialError>> + Send>>
    })
}

fn start(id: &'static str, seed: u64, address: &Address, seen: &Log, stop: &CancellationToken) {
    let mut settings = ClientSettings::device("ws://here:1".parse().unwrap());
    settings.connector = Some(to(address));
    settings.ambient = Ambient::simulated(seed, Timestamp::UNIX_EPOCH);
    let client = Client { id, file: format!("file-{id}"), ..Client::device() };
    let idler = Idler { id: id.parse().unwrap(), client, seen: seen.clone(), is_here: false };
    tokio::spawn(link::Client::new(settings, idler).run(stop.clone()));
}

async fn until_all_came(seen: &Log, times: usize) {
    while seen.lock().unwrap().came.len() < times {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_crowd_comes_back_spread_over_time_and_legacy_peers_are_sent_away_last() {
    let mut rig = Rig::new().await;
    let (address, seen): (Address, Log) = (Address::default(), Log::default());
    *address.lock().unwrap() = Some(rig.server.clone());
    let stop = CancellationToken::new();
    for n in 0..CROWD {
        let id: &'static str = format!("d{n}").leak();
        start(id, n as u64, &address, &seen, &stop);
    }
    until_all_came(&seen, CROWD).await;
    for (id, role) in [("python", "device"), ("galaxy", "constellation")] {
        let mut legacy = Party::join(&rig.server, id, role).await;
        let seen = seen.clone();
        tokio::spawn(async move {
            assert_eq!(legacy.closed().await.code.0, 1001);
            seen.lock().unwrap().left.push((Instant::now(), id));
        });
    }
    // Who was connected for a while has every reason to come back soon.
    tokio::time::sleep(Duration::from_secs(120)).await;

    *address.lock().unwrap() = None;
    rig.server.shut_down().await;
    settle().await;
    let left: Vec<&str> = seen.lock().unwrap().left.iter().map(|(_, id)| *id).collect();
    assert_eq!(left.len(), CROWD + 2);
    let last: BTreeSet<&str> = left[CROWD..].iter().copied().collect();
    assert_eq!(last, BTreeSet::from(["galaxy", "python"]));

    tokio::time::sleep(AWAY).await;
    rig.restart().await;
    let back = Instant::now();
    *address.lock().unwrap() = Some(rig.server.clone());
    until_all_came(&seen, 2 * CROWD).await;
    let came: Vec<Duration> =
        seen.lock().unwrap().came[CROWD..].iter().map(|(at, _)| *at - back).collect();
    // Nobody waits for long, and no tenth of a second has a quarter of them.
    assert!(came.iter().all(|at| *at <= Duration::from_secs(2)), "{came:?}");
    let crowded = (0..20).map(|tenth| {
        let of_tenth = |at: &&Duration| at.as_millis() / 100 == tenth;
        came.iter().filter(of_tenth).count()
    });
    assert!(crowded.max() < Some(CROWD / 4), "{came:?}");
    assert_eq!(rig.server.snapshot().clients, CROWD);
    stop.cancel();
}
