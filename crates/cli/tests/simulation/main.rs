//! The real server, real devices and constellations, on a network that is slow, loses and dies, with a store that is no
//! better. One seed decides everything; a checker reads what happened.
//!
//! `SIMULATION_SEEDS=200000` runs more of them, `SIMULATION_SEED=7` runs one and prints its history.

#![allow(clippy::unwrap_used, clippy::panic)]

mod checker;
mod disk;
mod history;
mod home;
mod network;
mod parties;
mod requesters;
mod site;
mod stutterer;
mod workload;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use link::Ambient;
use server::Config;

use checker::Rules;
use disk::Moods;
use history::History;
use network::Network;
use parties::{WATCH, World};
use site::Site;
use workload::Perils;

pub(crate) const KEY: &str = "key";

/// Seeds that are run, unless there is a wish.
const SEEDS: u64 = 2000;

/// Where the clocks start.
const EPOCH: i64 = 1_800_000_000;

/// Where files cost least.
const IN_MEMORY: &str = "/dev/shm";

fn config(chance: &mut fastrand::Rng) -> Config {
    Config {
        sessions_per_device: chance.usize(1..3),
        shared_per_device: chance.usize(1..5),
        queue_per_device: chance.usize(1..6),
        command_timeout: Some(Duration::from_secs(20)),
        session_timeout: Some(Duration::from_secs(60)),
        stop_grace: Duration::from_secs(10),
        cancel_wait: Duration::from_secs(5),
        shutdown_grace: Duration::from_secs(5),
        resume_window: Duration::from_secs(chance.u64(15..60)),
        resume_ping: WATCH.ping_every,
        liveness_timeout: WATCH.timeout,
        ping_interval: WATCH.ping_every,
        ..Config::default()
    }
}

fn moods(chance: &mut fastrand::Rng) -> Moods {
    let longest = Duration::from_millis([0, 20, 2000][chance.usize(..3)]);
    Moods { longest, failing: [0, 5, 20][chance.usize(..3)], is_synced: chance.u8(..3) == 0 }
}

fn perils(chance: &mut fastrand::Rng) -> Perils {
    let of_server = chance.u8(..4) > 0;
    let of_copies = of_server && chance.u8(..5) == 0;
    Perils {
        of_server,
        // What was put back is noticed by what devices have in their journals.
        of_power: !of_copies && chance.bool(),
        of_folders: !of_copies && chance.u8(..3) == 0,
        of_disk: chance.u8(..3) == 0,
        of_copies,
    }
}

/// Those to which the network brings no extension. They keep no journal either.
fn legacy(chance: &mut fastrand::Rng, perils: &Perils) -> BTreeSet<&'static str> {
    let candidates = if perils.of_copies { &["g3"][..] } else { &["d2", "d3", "g3"] };
    candidates.iter().copied().filter(|_| chance.u8(..5) == 0).collect()
}

/// Runs a seed. Returns what happened, and what is wrong with it.
fn simulate(seed: u64) -> (History, Vec<String>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(simulation(seed))
}

async fn simulation(seed: u64) -> (History, Vec<String>) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let (history, epoch) = (History::new(), Timestamp::from_second(EPOCH).unwrap());
    let (config, moods, perils) = (config(&mut chance), moods(&mut chance), perils(&mut chance));
    let legacy = legacy(&mut chance, &perils);
    let rules = Rules {
        epoch,
        window: config.resume_window,
        legacy: legacy.clone(),
        places: (config.sessions_per_device, config.shared_per_device),
        keeps_places: !(perils.of_folders || perils.of_copies || perils.of_power),
    };
    history.note(format!(
        "seed {seed}: {moods:?}, {perils:?}, a window of {:?}, legacy {legacy:?}",
        rules.window
    ));
    let ambient = Ambient::simulated(chance.u64(..), epoch);
    let site = Site::new(config, moods, chance.u64(..), &history, &ambient);
    let network = Network::new(chance.u64(..), legacy, &history);
    let files = match Path::new(IN_MEMORY).is_dir() {
        true => tempfile::tempdir_in(IN_MEMORY),
        false => tempfile::tempdir(),
    };
    let files = files.unwrap();
    let folder = files.path().to_owned();
    let world = World { site, network, history: history.clone(), epoch, folder };
    let ran = workload::run(&world, perils, chance.u64(..)).await;
    let mut wrong: Vec<String> = ran.err().into_iter().collect();
    world.network.forget_wires();
    wrong.extend(history.look(|events| checker::check(events, &rules)));
    (history, wrong)
}

/// Runs seeds on all cores. Returns the first few whose histories are wrong, and what is wrong with them.
fn run(seeds: std::ops::Range<u64>) -> Vec<(u64, Vec<String>)> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let every = |n: u64| seeds.clone().skip(n as usize).step_by(threads as usize);
    let fails = |seed: u64| Some((seed, simulate(seed).1)).filter(|(_, wrong)| !wrong.is_empty());
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|n| scope.spawn(move || every(n).filter_map(fails).take(3).collect::<Vec<_>>()))
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
    let Some((first, _)) = failed.first() else { return };
    let (history, _) = simulate(*first);
    let list = failed.iter().flat_map(|(seed, wrong)| {
        wrong.iter().take(5).map(move |what| format!("seed {seed}: {what}"))
    });
    panic!("{history}\nthe history of {first} is above\n{}", list.collect::<Vec<_>>().join("\n"));
}

#[test]
fn one_seed_gives_one_history() {
    for seed in 0..10 {
        let [one, other] = [(); 2].map(|()| simulate(seed).0.to_string());
        assert_eq!(one, other, "seed {seed}");
    }
}
