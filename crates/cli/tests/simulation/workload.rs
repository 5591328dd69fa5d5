//! What happens in a simulation: tasks are submitted and cancelled, parties and the server die, leave and come back, wires
//! and the store fail.

use std::time::Duration;

use crate::parties::{Worker, World};
use crate::requesters::{over_http, requester};
use crate::stutterer::stutter;

pub(crate) const DEVICES: [&str; 3] = ["d1", "d2", "d3"];
pub(crate) const REQUESTERS: [&str; 3] = ["g1", "g2", "g3"];

/// How long there is trouble.
const TROUBLE: Duration = Duration::from_secs(30);

/// By when everything must be over.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What may go wrong under one seed, beside wires and the programs of devices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Perils {
    /// The server is killed, or stopped.
    pub(crate) of_server: bool,
    /// Machines lose power.
    pub(crate) of_power: bool,
    /// Devices come back with other folders.
    pub(crate) of_folders: bool,
    /// The disk of the server is full for a while.
    pub(crate) of_disk: bool,
    /// Older copies of the server's files are put back.
    pub(crate) of_copies: bool,
}

/// Runs everything, and waits until it is quiet.
///
/// # Errors
/// What never ended.
pub(crate) async fn run(world: &World, perils: Perils, seed: u64) -> Result<(), String> {
    let mut chance = fastrand::Rng::with_seed(seed);
    world.site.start(world, chance.u64(..)).await;
    let mut requesters: Vec<_> = REQUESTERS
        .map(|id| tokio::spawn(requester(world.clone(), id, chance.u64(..))))
        .into_iter()
        .collect();
    if chance.bool() {
        requesters.push(tokio::spawn(over_http(world.clone(), chance.u64(..))));
    }
    if chance.bool() {
        requesters.push(tokio::spawn(stutter(world.clone(), chance.u64(..))));
    }
    let workers = trouble(world, perils, &mut chance).await;
    world.network.calm();
    world.history.note("from here on there is no trouble");
    for requester in requesters {
        let over = tokio::time::timeout(PATIENCE, requester).await;
        over.map_err(|_| "a requester waits for ever".to_owned())?
            .map_err(|error| format!("a requester failed: {error}"))?;
    }
    quiet(world, "tasks are over", |left| left.sessions == 0 && left.commands == 0).await?;
    let there = DEVICES.len();
    quiet(world, "devices are there", |left| left.clients == there).await?;
    workers.iter().for_each(|worker| worker.leave(world));
    // Who may come back is known for a while.
    let nothing = |left: &server::Snapshot| {
        let (dropped_results, identities) = (left.dropped_results, left.identities);
        *left == server::Snapshot { dropped_results, identities, ..Default::default() }
    };
    quiet(world, "tables are empty", nothing).await?;
    if perils.of_server {
        world.site.kill(world, false);
        world.site.start(world, chance.u64(..)).await;
        quiet(world, "tables are still empty", nothing).await?;
    }
    Ok(())
}

async fn quiet(
    world: &World,
    what: &str,
    is_quiet: impl Fn(&server::Snapshot) -> bool,
) -> Result<(), String> {
    for _ in 0..PATIENCE.as_secs() {
        if world.site.snapshot().is_some_and(|left| is_quiet(&left)) {
            world.history.note(format!("the {what}"));
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Err(format!("it never came to be that the {what}: {:?}", world.site.snapshot()))
}

/// Gives everybody trouble. Returns the devices that are there at the end; the server runs, and has room.
async fn trouble(world: &World, perils: Perils, chance: &mut fastrand::Rng) -> Vec<Worker> {
    let mut workers: Vec<Worker> =
        DEVICES.iter().map(|id| Worker::new(world, id, chance.u64(..))).collect();
    let end = tokio::time::Instant::now() + TROUBLE;
    while tokio::time::Instant::now() < end {
        pause(chance, 5000).await;
        let at = chance.usize(..DEVICES.len());
        let party = chance.choice([DEVICES, REQUESTERS].as_flattened()).copied().unwrap_or("d1");
        match chance.u8(..11) {
            0 => world.network.cut(party),
            1 => world.network.swallow(party),
            2 | 3 => crash(world, &mut workers[at], perils, chance).await,
            4 => {
                workers[at].leave(world);
                pause(chance, 8000).await;
                workers[at].crash(world);
                workers[at].start(world, chance.u64(..));
            }
            5..9 if perils.of_server => restart(world, perils, chance).await,
            9 if perils.of_disk => {
                world.history.note("the disk is full");
                world.site.fill(true);
                pause(chance, 8000).await;
                world.site.fill(false);
                world.history.note("the disk has room");
            }
            10 => {
                world.network.jam(DEVICES[at], true);
                pause(chance, 8000).await;
                world.network.jam(DEVICES[at], false);
            }
            _ => {}
        }
    }
    workers
}

/// A device crashes, and comes back after a while.
async fn crash(world: &World, worker: &mut Worker, perils: Perils, chance: &mut fastrand::Rng) {
    let is_slow = chance.bool();
    if is_slow {
        // The results that it sends arrive when it is back, before or after what it sends then, or not at all.
        world.network.slow_down(worker.id, Duration::from_secs(15));
        let ticks = chance.u8(..30);
        for _ in 0..ticks {
            if world.network.has_slow_results() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    if perils.of_power && chance.bool() {
        worker.lose_power(world, chance);
    } else {
        worker.crash(world);
    }
    if perils.of_folders && chance.u8(..3) == 0 {
        worker.move_house(world, chance);
    }
    let away = [500, 10_000, 10_000, 40_000][chance.usize(..4)];
    pause(chance, if is_slow { 1000 } else { away }).await;
    worker.start(world, chance.u64(..));
}

/// The server ends in one way or another, and is started again after a while. It may die while it starts.
async fn restart(world: &World, perils: Perils, chance: &mut fastrand::Rng) {
    match chance.u8(..5) {
        0 => world.site.stop(world, Duration::from_millis(chance.u64(..12_000))).await,
        1 if perils.of_power => world.site.kill(world, true),
        1 | 2 if perils.of_copies => world.site.put_back(world),
        _ => world.site.kill(world, false),
    }
    let away = [10, 1000, 10_000, 40_000][chance.usize(..4)];
    pause(chance, away).await;
    if chance.u8(..5) == 0 {
        let within = Duration::from_millis(chance.u64(..3000));
        let seed = chance.u64(..);
        let _it_may_be_up = tokio::time::timeout(within, world.site.start(world, seed)).await;
        world.site.kill(world, false);
        pause(chance, 500).await;
    }
    world.site.start(world, chance.u64(..)).await;
}

/// Waits up to so many milliseconds.
pub(crate) async fn pause(chance: &mut fastrand::Rng, millis: u64) {
    tokio::time::sleep(Duration::from_millis(chance.u64(..millis))).await;
}
