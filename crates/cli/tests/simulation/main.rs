//! The real server, real devices and constellations, on a network that is slow, loses and dies, with a store that is no
//! better. One seed decides everything; a checker reads what happened.
//!
//! `SIMULATION_SEEDS=200000` runs more of them, `SIMULATION_SEED=7` runs one and prints its history.

#![allow(clippy::unwrap_used, clippy::panic)]

mod checker;
mod history;
mod network;
mod parties;
mod stutterer;
#[path = "../../../server/tests/common/unsteady.rs"]
mod unsteady;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use link::Ambient;
use server::agent::Auto;
use server::store::{Query, Store};
use server::{Audit, Config, Keys, Server, Services};

use history::History;
use network::Network;
use parties::{WATCH, World};
use unsteady::{Moods, UnsteadyStore};

pub(crate) const KEY: &str = "key";

/// Seeds that are run, unless there is a wish.
const SEEDS: u64 = 2000;

/// Where the clocks start.
const EPOCH: i64 = 1_800_000_000;

fn config(chance: &mut fastrand::Rng) -> Config {
    Config {
        sessions_per_device: chance.usize(1..3),
        queue_per_device: chance.usize(1..6),
        command_timeout: Duration::from_secs(20),
        session_timeout: Duration::from_secs(60),
        stop_grace: Duration::from_secs(10),
        liveness_timeout: WATCH.timeout,
        ping_interval: WATCH.ping_every,
        ..Config::default()
    }
}

fn moods(chance: &mut fastrand::Rng) -> Moods {
    let longest = Duration::from_millis([0, 20, 2000][chance.usize(..3)]);
    Moods { longest, failing: [0, 5, 20][chance.usize(..3)], refuses: true }
}

/// Runs a seed. Returns what happened, and what is wrong with it.
fn simulate(seed: u64) -> (History, Vec<String>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(simulation(seed))
}

async fn simulation(seed: u64) -> (History, Vec<String>) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let (history, epoch) = (History::new(), Timestamp::from_second(EPOCH).unwrap());
    let (config, moods) = (config(&mut chance), moods(&mut chance));
    history.note(format!("seed {seed}: {moods:?}"));
    let ambient = Ambient::simulated(chance.u64(..), epoch);
    let of_store = Ambient::simulated(chance.u64(..), epoch);
    let store = Arc::new(UnsteadyStore::new(config.history(), moods, of_store));
    let (agent, audit) = (Arc::new(Auto), Audit::none());
    let services = Services { store: store.clone(), agent, audit, ambient };
    let server = Server::with(config, Keys::local(KEY.to_owned().into()), services);
    let network = Network::new(chance.u64(..), &history);
    let world = World { server, network, history: history.clone(), epoch };
    let mut wrong: Vec<String> =
        workload::run(&world, chance.u64(..)).await.err().into_iter().collect();
    world.network.forget_wires();
    let mut journals = Vec::new();
    for known in store.tasks(Query { limit: 1000, ..Query::default() }).await.unwrap() {
        journals.extend(store.journal(known.task.id).await.unwrap());
    }
    wrong.extend(checker::check(&history.events(), &journals, epoch));
    (history, wrong)
}

/// Runs seeds on all cores. Returns the first few whose histories are wrong.
fn run(seeds: std::ops::Range<u64>) -> Vec<u64> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let every = |n: u64| seeds.clone().skip(n as usize).step_by(threads as usize);
    let fails = |seed: &u64| !simulate(*seed).1.is_empty();
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|n| scope.spawn(move || every(n).filter(fails).take(3).collect::<Vec<u64>>()))
            .collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn nothing_is_lost_doubled_or_left_behind_whatever_the_seed() {
    if let Some(seed) = number("SIMULATION_SEED") {
        let (history, wrong) = simulate(seed);
        println!("{history}\n{}", wrong.join("\n"));
        assert!(wrong.is_empty());
        return;
    }
    let failed = run(0..number("SIMULATION_SEEDS").unwrap_or(SEEDS));
    let Some(first) = failed.first() else { return };
    let (history, wrong) = simulate(*first);
    panic!(
        "{history}\nseeds {failed:?} failed; the history of {first} is above:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn one_seed_gives_one_history() {
    for seed in 0..10 {
        let [one, other] = [(); 2].map(|()| simulate(seed).0.to_string());
        assert_eq!(one, other, "seed {seed}");
    }
}
