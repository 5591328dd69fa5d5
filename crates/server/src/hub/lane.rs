//! Whose turn it is on one device: keys take turns, within a key its clients do, and within a client the tasks
//! come in their order.
//!
//! Tasks that go [together](Manner::Together) share the device with their like. Any other has it to itself, and whose turn
//! it is waits for that in front of all others: none that comes later overtakes it, so neither kind starves.

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

/// How a task uses its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// With the device to itself, as far as [`Limits::any`] says.
    Alone,
    /// Beside others of this manner.
    Together,
}

/// How many tasks may be at work on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Of whichever manner.
    pub(crate) any: usize,
    /// As long as all of them go together.
    pub(crate) together: usize,
}

/// A task in the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entrant {
    pub(super) task: TaskId,
    pub(super) manner: Manner,
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
    running: Vec<(Share, Entrant)>,
    /// Whose turn it is, and who starts as soon as those that run have left it enough of the device.
    next: Option<(Share, Entrant)>,
    /// In the order of their turns.
    waiting: VecDeque<OfKey>,
}

/// What the clients of one key have waiting.
#[derive(Debug)]
struct OfKey {
    key: Arc<str>,
    /// In the order of their turns.
    clients: VecDeque<(u64, VecDeque<Entrant>)>,
}

impl OfKey {
    fn len(&self) -> usize {
        self.clients.iter().map(|(_, queue)| queue.len()).sum()
    }

    /// Takes the next: of the clients with the fewest running tasks the one whose turn it is.
    fn pop(&mut self, running: impl Fn(u64) -> usize) -> Option<(u64, Entrant)> {
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
        rounds(queues.len(), |client, round| Some(queues[client].get(round)?.task))
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
    /// Takes a session in: with a place if one is free and nobody waits, else into the queue. A client that waits
    /// alone may have `capacity` tasks there. Those of a key share twice that, and all keys four times: each
    /// newcomer may take half of what the others leave, so that none can shut the others out.
    pub(super) fn join(
        &mut self,
        share: Share,
        entrant: Entrant,
        limits: Limits,
        capacity: usize,
    ) -> Result<Turn, QueueFull> {
        let waiting = self.waiting_len();
        if waiting == 0 && self.has_place_for(entrant.manner, limits) {
            self.running.push((share, entrant));
            return Ok(Turn::Now);
        }
        if !self.has_room(&share, capacity) {
            return Err(QueueFull { waiting });
        }
        self.queue(share, entrant);
        self.choose_next(limits);
        Ok(Turn::After(waiting + self.running.len()))
    }

    /// Takes a session in as it was before a restart, or on another device: however many wait. One that `is_at_work` has
    /// its place already.
    pub(super) fn put_back(
        &mut self,
        share: Share,
        entrant: Entrant,
        limits: Limits,
        is_at_work: bool,
    ) {
        let waits = self.waiting_len() > 0;
        if is_at_work || !waits && self.has_place_for(entrant.manner, limits) {
            self.running.push((share, entrant));
        } else {
            self.queue(share, entrant);
        }
    }

    /// Takes in all of another device, however many there are then. What waits of one client comes in its order.
    pub(super) fn absorb(
        &mut self,
        other: Self,
        limits: Limits,
        is_at_work: impl Fn(TaskId) -> bool,
    ) {
        let waiting = other.waiting.into_iter().flat_map(|OfKey { key, clients }| {
            clients.into_iter().flat_map(move |(client, queue)| {
                let share = Share { key: key.clone(), client };
                queue.into_iter().map(move |entrant| (share.clone(), entrant))
            })
        });
        for (share, entrant) in other.running.into_iter().chain(other.next).chain(waiting) {
            self.put_back(share, entrant, limits, is_at_work(entrant.task));
        }
        let clients = self.waiting.iter_mut().flat_map(|of_key| &mut of_key.clients);
        let in_order = |queue: &mut VecDeque<Entrant>| {
            queue.make_contiguous().sort_unstable_by_key(|entrant| entrant.task);
        };
        clients.for_each(|(_, queue)| in_order(queue));
    }

    /// Whether another one of this manner may start beside those that run.
    fn has_place_for(&self, manner: Manner, limits: Limits) -> bool {
        let goes_together = |manner| manner == Manner::Together;
        let running = self.running.len();
        running < limits.any
            || running < limits.together
                && goes_together(manner)
                && self.running.iter().all(|(_, entrant)| goes_together(entrant.manner))
    }

    fn has_room(&self, share: &Share, capacity: usize) -> bool {
        let of_key = self.waiting.iter().find(|of_key| of_key.key == share.key);
        let has_next = |wanted: &dyn Fn(&Share) -> bool| {
            usize::from(self.next.as_ref().is_some_and(|(share, _)| wanted(share)))
        };
        let all_of_key = of_key.map_or(0, OfKey::len) + has_next(&|next| next.key == share.key);
        let of_client = of_key
            .and_then(|of_key| of_key.clients.iter().find(|(client, _)| *client == share.client));
        let own = of_client.map_or(0, |(_, queue)| queue.len()) + has_next(&|next| next == share);
        let left = |times: usize, taken| capacity.saturating_mul(times).saturating_sub(taken);
        own < left(CLIENTS_OF_A_KEY, all_of_key)
            && all_of_key < left(ALL_CLIENTS, self.waiting_len())
    }

    fn queue(&mut self, share: Share, entrant: Entrant) {
        let Share { key, client } = share;
        let at = self.waiting.iter().position(|of_key| of_key.key == key).unwrap_or_else(|| {
            self.waiting.push_back(OfKey { key, clients: VecDeque::new() });
            self.waiting.len() - 1
        });
        let clients = &mut self.waiting[at].clients;
        match clients.iter_mut().find(|(known, _)| *known == client) {
            Some((_, queue)) => queue.push_back(entrant),
            None => clients.push_back((client, VecDeque::from([entrant]))),
        }
    }

    /// Takes a session out, wherever it is. Returns who starts now.
    pub(super) fn leave(&mut self, session: TaskId, limits: Limits) -> Vec<TaskId> {
        let is_it = |entrant: &Entrant| entrant.task == session;
        if let Some(at) = self.running.iter().position(|(_, entrant)| is_it(entrant)) {
            self.running.swap_remove(at);
        } else if self.next.take_if(|(_, entrant)| is_it(entrant)).is_none() {
            for of_key in &mut self.waiting {
                of_key.clients.iter_mut().for_each(|(_, queue)| queue.retain(|one| !is_it(one)));
                of_key.clients.retain(|(_, queue)| !queue.is_empty());
            }
            self.waiting.retain(|of_key| !of_key.clients.is_empty());
        }
        self.start(limits)
    }

    /// Gives the places that are free to those whose turn it is, and returns them.
    pub(super) fn start(&mut self, limits: Limits) -> Vec<TaskId> {
        let mut started = Vec::new();
        loop {
            self.choose_next(limits);
            let manner = self.next.as_ref().map(|(_, next)| next.manner);
            if !manner.is_some_and(|manner| self.has_place_for(manner, limits)) {
                return started;
            }
            started.extend(self.next.iter().map(|(_, next)| next.task));
            self.running.extend(self.next.take());
        }
    }

    /// Where a place is free, says whose turn it is: who has it keeps it, also while the place is not enough for it.
    fn choose_next(&mut self, limits: Limits) {
        if self.next.is_none() && self.has_place_for(Manner::Together, limits) {
            self.next = self.pop();
        }
    }

    /// The next in line: of the keys with the fewest running tasks the one whose turn it is.
    fn pop(&mut self) -> Option<(Share, Entrant)> {
        let Self { running, waiting, .. } = self;
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
        usize::from(self.next.is_some()) + self.waiting.iter().map(OfKey::len).sum::<usize>()
    }

    pub(super) fn running(&self) -> impl ExactSizeIterator<Item = TaskId> {
        self.running.iter().map(|(_, entrant)| entrant.task)
    }

    /// Everybody: those with a place first, then the others in the order of their turns, as it stands.
    pub(super) fn sessions(&self) -> Vec<TaskId> {
        let keys: Vec<Vec<TaskId>> = self.waiting.iter().map(OfKey::in_turn).collect();
        let waiting = rounds(keys.len(), |key, round| keys[key].get(round).copied());
        let next = self.next.iter().map(|(_, entrant)| entrant.task);
        self.running().chain(next).chain(waiting).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.next.is_none() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many of any kind, and no more of those that go together.
    fn any(any: usize) -> Limits {
        Limits { any, together: any }
    }

    fn alone(task: TaskId) -> Entrant {
        Entrant { task, manner: Manner::Alone }
    }

    fn share(key: &str, client: u64) -> Share {
        Share { key: key.into(), client }
    }

    /// Runs everything in the lane one after the other and returns the order.
    fn drain(lane: &mut Lane) -> Vec<TaskId> {
        let mut order = Vec::new();
        loop {
            let Some(first) = lane.running().next() else { break order };
            order.push(first);
            lane.leave(first, any(1));
        }
    }

    #[test]
    fn keys_take_turns_and_within_a_key_its_clients_and_within_a_client_its_tasks_in_order() {
        let mut lane = Lane::default();
        let ids: Vec<TaskId> = (0..8).map(|_| TaskId::fresh()).collect();
        let whose =
            [("a", 1), ("a", 1), ("a", 1), ("a", 2), ("b", 3), ("b", 3), ("a", 2), ("b", 3)];
        for (id, (key, client)) in ids.iter().zip(whose) {
            lane.join(share(key, client), alone(*id), any(1), 100).unwrap();
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
        lane.join(share("a", 1), alone(one), any(2), 9).unwrap();
        lane.join(share("a", 1), alone(two), any(2), 9).unwrap();
        lane.join(share("a", 1), alone(more), any(2), 9).unwrap();
        lane.join(share("b", 2), alone(other), any(2), 9).unwrap();
        assert_eq!(lane.leave(one, any(2)), [other]);
        assert_eq!(lane.leave(two, any(2)), [more]);
    }

    #[test]
    fn a_lone_client_has_the_whole_queue_and_shuts_no_other_out() {
        let mut lane = Lane::default();
        let mut join =
            |key: &str, client| lane.join(share(key, client), alone(TaskId::fresh()), any(1), 100);
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
        let mut join = |client| lane.join(share("a", client), alone(TaskId::fresh()), any(1), 2);
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
            lane.join(share("a", 1), alone(id), any(1), 9).unwrap();
        }
        assert_eq!(lane.leave(two, any(1)), []);
        assert_eq!(lane.leave(one, any(1)), [three]);
        assert_eq!(lane.leave(three, any(1)), []);
        assert_eq!(lane.leave(stranger, any(1)), []);
        assert!(lane.is_empty());
    }

    const SHARED: Limits = Limits { any: 1, together: 3 };

    /// A lane that `joins` come to in this order: `true` is one that goes together with others. Each is of a client of
    /// its own.
    fn lane_of(joins: &[bool]) -> (Lane, Vec<TaskId>) {
        let mut lane = Lane::default();
        let join = |(n, together): (usize, &bool)| {
            let manner = if *together { Manner::Together } else { Manner::Alone };
            let entrant = Entrant { task: TaskId::fresh(), manner };
            lane.join(share("a", n as u64), entrant, SHARED, 100).unwrap();
            entrant.task
        };
        let ids = joins.iter().enumerate().map(join).collect();
        (lane, ids)
    }

    fn running(lane: &Lane) -> Vec<TaskId> {
        let mut running: Vec<_> = lane.running().collect();
        running.sort_unstable();
        running
    }

    #[test]
    fn those_that_go_together_share_the_device_as_far_as_may_be() {
        let (mut lane, ids) = lane_of(&[true; 5]);
        assert_eq!(running(&lane), ids[..3]);
        assert_eq!(lane.sessions(), ids);
        assert_eq!(lane.leave(ids[1], SHARED), [ids[3]]);
        assert_eq!(lane.leave(ids[0], Limits { any: 1, together: 2 }), [], "fewer may be now");
        assert_eq!(lane.start(SHARED), [ids[4]]);
    }

    #[test]
    fn any_other_has_the_device_to_itself() {
        let (mut lane, ids) = lane_of(&[false, true, true, false, true]);
        assert_eq!(running(&lane), ids[..1]);
        assert_eq!(lane.leave(ids[0], SHARED), ids[1..3]);
        assert_eq!(lane.leave(ids[1], SHARED), []);
        assert_eq!(lane.leave(ids[2], SHARED), [ids[3]]);
        assert_eq!(lane.leave(ids[3], SHARED), [ids[4]]);
    }

    #[test]
    fn nobody_who_comes_later_overtakes_one_that_waits_for_the_device_to_itself() {
        let (mut lane, ids) = lane_of(&[true, false]);
        for n in 2..50 {
            let late = Entrant { task: TaskId::fresh(), manner: Manner::Together };
            lane.join(share(&n.to_string(), n), late, SHARED, 100).unwrap();
            assert_eq!(running(&lane), ids[..1], "places are free, and kept for who was first");
        }
        assert_eq!(lane.sessions()[..2], ids, "it is shown where it stands");
        assert_eq!(lane.leave(ids[0], SHARED), [ids[1]]);
        assert_eq!(lane.leave(ids[1], SHARED).len(), 3);
    }

    #[test]
    fn one_that_waited_for_the_device_to_itself_and_goes_lets_the_others_start() {
        let (mut lane, ids) = lane_of(&[true, false, true, true, true]);
        assert_eq!(lane.leave(ids[1], SHARED), ids[2..4]);
        assert_eq!(running(&lane), [ids[0], ids[2], ids[3]]);
    }

    #[test]
    fn who_is_chosen_still_counts_among_those_that_wait() {
        let (mut lane, _) = lane_of(&[true, false]);
        assert_eq!(lane.waiting_len(), 1);
        let again = Entrant { task: TaskId::fresh(), manner: Manner::Alone };
        let full = lane.join(share("a", 1), again, SHARED, 1);
        assert_eq!(full, Err(QueueFull { waiting: 1 }));
    }

    #[test]
    fn who_was_at_work_before_a_restart_has_its_place_until_the_device_says_how_many_it_takes() {
        let mut lane = Lane::default();
        let ids: Vec<TaskId> = (0..4).map(|_| TaskId::fresh()).collect();
        for (n, task) in ids.iter().enumerate() {
            let entrant = Entrant { task: *task, manner: Manner::Together };
            lane.put_back(share("a", 1), entrant, any(1), n < 2);
        }
        assert_eq!(running(&lane), ids[..2]);
        assert_eq!(lane.leave(ids[0], any(1)), []);
        assert_eq!(lane.start(SHARED), ids[2..]);
    }
}
