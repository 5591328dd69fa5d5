//! Whose turn it is on one device: keys take turns, within a key its clients do, and within a client the tasks
//! come in their order.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::session::TaskId;

/// How many times the bound of one client the queue holds for all clients of a key together.
const CLIENTS_OF_A_KEY: usize = 2;

/// How many times the bound of one client the queue holds in all.
const ALL_CLIENTS: usize = 4;

/// The queue has no room for this client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueFull {
    pub(super) waiting: usize,
}

/// Whether a session may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Now,
    /// After this many others, as it stands.
    After(usize),
}

/// Whose a place is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Share {
    /// The key that it was submitted with.
    pub(super) key: Arc<str>,
    /// The client's incarnation; 0 for all who use the HTTP API with that key.
    pub(super) client: u64,
}

/// The places of one device, who has them, and who waits for one.
#[derive(Debug, Default)]
pub(super) struct Lane {
    running: Vec<(Share, TaskId)>,
    /// In the order of their turns.
    waiting: VecDeque<OfKey>,
}

/// What the clients of one key have waiting.
#[derive(Debug)]
struct OfKey {
    key: Arc<str>,
    /// In the order of their turns.
    clients: VecDeque<(u64, VecDeque<TaskId>)>,
}

impl OfKey {
    fn len(&self) -> usize {
        self.clients.iter().map(|(_, queue)| queue.len()).sum()
    }

    /// Takes the next: of the clients with the fewest running tasks the one whose turn it is.
    fn pop(&mut self, running: impl Fn(u64) -> usize) -> Option<(u64, TaskId)> {
        let at = fewest(self.clients.iter().map(|(client, _)| running(*client)))?;
        let (client, mut queue) = self.clients.remove(at)?;
        let next = queue.pop_front()?;
        if !queue.is_empty() {
            self.clients.push_back((client, queue));
        }
        Some((client, next))
    }

    /// All, in the order of their turns, as it stands.
    fn in_turn(&self) -> Vec<TaskId> {
        let queues: Vec<_> = self.clients.iter().map(|(_, queue)| queue).collect();
        rounds(queues.len(), |client, round| queues[client].get(round).copied())
    }
}

/// The first of the smallest.
fn fewest(counts: impl Iterator<Item = usize>) -> Option<usize> {
    counts.enumerate().min_by_key(|(at, count)| (*count, *at)).map(|(at, _)| at)
}

/// One after the other of each of `n` lists, round by round.
fn rounds(n: usize, get: impl Fn(usize, usize) -> Option<TaskId>) -> Vec<TaskId> {
    let mut all = Vec::new();
    for round in 0.. {
        let before = all.len();
        all.extend((0..n).filter_map(|list| get(list, round)));
        if all.len() == before {
            break;
        }
    }
    all
}

impl Lane {
    /// Takes a session in: with a place if one of `places` is free, else into the queue. A client that waits
    /// alone may have `capacity` tasks there. Those of a key share twice that, and all keys four times: each
    /// newcomer may take half of what the others leave, so that none can shut the others out.
    pub(super) fn join(
        &mut self,
        share: Share,
        session: TaskId,
        places: usize,
        capacity: usize,
    ) -> Result<Turn, QueueFull> {
        if self.running.len() < places {
            self.running.push((share, session));
            return Ok(Turn::Now);
        }
        let waiting = self.waiting_len();
        if !self.has_room(&share, capacity) {
            return Err(QueueFull { waiting });
        }
        self.queue(share, session);
        Ok(Turn::After(waiting + self.running.len()))
    }

    /// Takes a session in as it was before a restart: however many wait.
    pub(super) fn put_back(&mut self, share: Share, session: TaskId, places: usize) {
        if self.running.len() < places {
            self.running.push((share, session));
        } else {
            self.queue(share, session);
        }
    }

    /// Takes in all of another device, however many there are then. What waits of one client comes in its order.
    pub(super) fn absorb(&mut self, other: Self, places: usize) {
        let waiting = other.waiting.into_iter().flat_map(|OfKey { key, clients }| {
            clients.into_iter().flat_map(move |(client, queue)| {
                let share = Share { key: key.clone(), client };
                queue.into_iter().map(move |session| (share.clone(), session))
            })
        });
        for (share, session) in other.running.into_iter().chain(waiting) {
            self.put_back(share, session, places);
        }
        let clients = self.waiting.iter_mut().flat_map(|of_key| &mut of_key.clients);
        clients.for_each(|(_, queue)| queue.make_contiguous().sort_unstable());
    }

    fn has_room(&self, share: &Share, capacity: usize) -> bool {
        let of_key = self.waiting.iter().find(|of_key| of_key.key == share.key);
        let all_of_key = of_key.map_or(0, OfKey::len);
        let of_client = of_key
            .and_then(|of_key| of_key.clients.iter().find(|(client, _)| *client == share.client));
        let own = of_client.map_or(0, |(_, queue)| queue.len());
        let left = |times: usize, taken| capacity.saturating_mul(times).saturating_sub(taken);
        own < left(CLIENTS_OF_A_KEY, all_of_key)
            && all_of_key < left(ALL_CLIENTS, self.waiting_len())
    }

    fn queue(&mut self, share: Share, session: TaskId) {
        let Share { key, client } = share;
        let at = self.waiting.iter().position(|of_key| of_key.key == key).unwrap_or_else(|| {
            self.waiting.push_back(OfKey { key, clients: VecDeque::new() });
            self.waiting.len() - 1
        });
        let clients = &mut self.waiting[at].clients;
        match clients.iter_mut().find(|(known, _)| *known == client) {
            Some((_, queue)) => queue.push_back(session),
            None => clients.push_back((client, VecDeque::from([session]))),
        }
    }

    /// Takes a session out, wherever it is. When that frees a place, returns whose turn it is now.
    pub(super) fn leave(&mut self, session: TaskId) -> Option<TaskId> {
        if let Some(at) = self.running.iter().position(|(_, id)| *id == session) {
            self.running.swap_remove(at);
            let (share, next) = self.pop()?;
            self.running.push((share, next));
            return Some(next);
        }
        for of_key in &mut self.waiting {
            of_key.clients.iter_mut().for_each(|(_, queue)| queue.retain(|id| *id != session));
            of_key.clients.retain(|(_, queue)| !queue.is_empty());
        }
        self.waiting.retain(|of_key| !of_key.clients.is_empty());
        None
    }

    /// The next in line: of the keys with the fewest running tasks the one whose turn it is.
    fn pop(&mut self) -> Option<(Share, TaskId)> {
        let Self { running, waiting } = self;
        let has = |wanted: &dyn Fn(&Share) -> bool| {
            running.iter().filter(|(share, _)| wanted(share)).count()
        };
        let counts = waiting.iter().map(|of_key| has(&|share| share.key == of_key.key));
        let mut first = waiting.remove(fewest(counts)?)?;
        let key = first.key.clone();
        let of_client = |client| has(&|share| share.key == key && share.client == client);
        let (client, next) = first.pop(of_client)?;
        if !first.clients.is_empty() {
            waiting.push_back(first);
        }
        Some((Share { key, client }, next))
    }

    pub(super) fn waiting_len(&self) -> usize {
        self.waiting.iter().map(OfKey::len).sum()
    }

    pub(super) fn running(&self) -> impl ExactSizeIterator<Item = TaskId> {
        self.running.iter().map(|(_, id)| *id)
    }

    /// Everybody: those with a place first, then the others in the order of their turns, as it stands.
    pub(super) fn sessions(&self) -> Vec<TaskId> {
        let keys: Vec<Vec<TaskId>> = self.waiting.iter().map(OfKey::in_turn).collect();
        let waiting = rounds(keys.len(), |key, round| keys[key].get(round).copied());
        self.running().chain(waiting).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(key: &str, client: u64) -> Share {
        Share { key: key.into(), client }
    }

    /// Runs everything in the lane one after the other and returns the order.
    fn drain(lane: &mut Lane) -> Vec<TaskId> {
        let mut order = Vec::new();
        loop {
            let Some(first) = lane.running().next() else { break order };
            order.push(first);
            lane.leave(first);
        }
    }

    #[test]
    fn keys_take_turns_and_within_a_key_its_clients_and_within_a_client_its_tasks_in_order() {
        let mut lane = Lane::default();
        let ids: Vec<TaskId> = (0..8).map(|_| TaskId::fresh()).collect();
        let whose =
            [("a", 1), ("a", 1), ("a", 1), ("a", 2), ("b", 3), ("b", 3), ("a", 2), ("b", 3)];
        for (id, (key, client)) in ids.iter().zip(whose) {
            lane.join(share(key, client), *id, 1, 100).unwrap();
        }
        let expected: Vec<TaskId> = [0, 1, 4, 3, 5, 2, 7, 6].map(|n| ids[n]).to_vec();
        assert_eq!(lane.sessions(), expected, "it is shown in the order in which it will happen");
        assert_eq!(drain(&mut lane), expected);
        assert!(lane.is_empty());
    }

    #[test]
    fn a_free_place_goes_to_the_key_that_has_the_fewest() {
        let mut lane = Lane::default();
        let [one, two, more, other] = [(); 4].map(|()| TaskId::fresh());
        lane.join(share("a", 1), one, 2, 9).unwrap();
        lane.join(share("a", 1), two, 2, 9).unwrap();
        lane.join(share("a", 1), more, 2, 9).unwrap();
        lane.join(share("b", 2), other, 2, 9).unwrap();
        assert_eq!(lane.leave(one), Some(other));
        assert_eq!(lane.leave(two), Some(more));
    }

    #[test]
    fn a_lone_client_has_the_whole_queue_and_shuts_no_other_out() {
        let mut lane = Lane::default();
        let mut join = |key: &str, client| lane.join(share(key, client), TaskId::fresh(), 1, 100);
        let mut most = |key: &str, client| (0..).take_while(|_| join(key, client).is_ok()).count();
        assert_eq!(most("a", 1), 101, "one runs");
        assert_eq!(most("a", 2), 50, "another client of the same key");
        assert_eq!(most("a", 3), 25);
        assert_eq!(most("b", 4), 100, "another key");
        assert!(most("c", 5) >= 50);
    }

    #[test]
    fn the_queue_is_bounded_and_says_how_much_waits() {
        let mut lane = Lane::default();
        let mut join = |client| lane.join(share("a", client), TaskId::fresh(), 1, 2);
        assert_eq!(join(1), Ok(Turn::Now));
        assert_eq!([join(1), join(1)], [Ok(Turn::After(1)), Ok(Turn::After(2))]);
        assert_eq!(join(1), Err(QueueFull { waiting: 2 }));
        let all = (2..1000).filter(|client| join(*client).is_ok()).count();
        assert!(all <= 2, "{all}");
    }

    #[test]
    fn what_leaves_the_queue_frees_no_place() {
        let mut lane = Lane::default();
        let [one, two, three, stranger] = [(); 4].map(|()| TaskId::fresh());
        for id in [one, two, three] {
            lane.join(share("a", 1), id, 1, 9).unwrap();
        }
        assert_eq!(lane.leave(two), None);
        assert_eq!(lane.leave(one), Some(three));
        assert_eq!(lane.leave(three), None);
        assert_eq!(lane.leave(stranger), None);
        assert!(lane.is_empty());
    }
}
