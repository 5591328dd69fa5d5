//! Whose turn it is on one device: first in first out for each requester, round robin between them.

use std::collections::VecDeque;

use super::{Requester, TaskId};

/// The queue of a device is full.
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

/// The places of one device, who has them, and who waits for one.
#[derive(Debug, Default)]
pub(super) struct Lane {
    running: Vec<TaskId>,
    /// One queue for each requester that waits, in the order of their turns.
    waiting: VecDeque<(Requester, VecDeque<TaskId>)>,
}

impl Lane {
    /// Takes a session in: with a place if one of `places` is free, else into the queue of at most
    /// `capacity`.
    pub(super) fn join(
        &mut self,
        requester: &Requester,
        session: TaskId,
        places: usize,
        capacity: usize,
    ) -> Result<Turn, QueueFull> {
        if self.running.len() < places {
            self.running.push(session);
            return Ok(Turn::Now);
        }
        let ahead = self.waiting_len();
        if ahead >= capacity {
            return Err(QueueFull { waiting: ahead });
        }
        match self.waiting.iter_mut().find(|(id, _)| id == requester) {
            Some((_, queue)) => queue.push_back(session),
            None => self.waiting.push_back((requester.clone(), VecDeque::from([session]))),
        }
        Ok(Turn::After(ahead + self.running.len()))
    }

    /// Takes a session out, wherever it is. When that frees a place, returns whose turn it is now.
    pub(super) fn leave(&mut self, session: TaskId) -> Option<TaskId> {
        if let Some(at) = self.running.iter().position(|id| *id == session) {
            self.running.swap_remove(at);
            let next = self.pop()?;
            self.running.push(next);
            return Some(next);
        }
        for (_, queue) in &mut self.waiting {
            queue.retain(|id| *id != session);
        }
        self.waiting.retain(|(_, queue)| !queue.is_empty());
        None
    }

    /// The next in line: the requester whose turn it is goes to the end.
    fn pop(&mut self) -> Option<TaskId> {
        let (requester, mut queue) = self.waiting.pop_front()?;
        let next = queue.pop_front();
        if !queue.is_empty() {
            self.waiting.push_back((requester, queue));
        }
        next
    }

    pub(super) fn waiting_len(&self) -> usize {
        self.waiting.iter().map(|(_, queue)| queue.len()).sum()
    }

    pub(super) fn running(&self) -> &[TaskId] {
        &self.running
    }

    /// Everybody: those with a place first, then the others in the order of their turns, as it stands.
    pub(super) fn sessions(&self) -> impl Iterator<Item = TaskId> {
        let rounds = self.waiting.iter().map(|(_, queue)| queue.len()).max().unwrap_or(0);
        let in_round = |round: usize| self.waiting.iter().filter_map(move |(_, q)| q.get(round));
        self.running.iter().chain((0..rounds).flat_map(in_round)).copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(id: &str) -> Requester {
        Requester::Client(aip::ClientId::new(id).unwrap())
    }

    /// Runs everything in the lane one after the other and returns the order.
    fn drain(lane: &mut Lane) -> Vec<TaskId> {
        let mut order = Vec::new();
        while let Some(first) = lane.running().first().copied() {
            order.push(first);
            lane.leave(first);
        }
        assert!(lane.is_empty());
        order
    }

    #[test]
    fn first_in_first_out_for_each_requester_and_round_robin_between_them() {
        let mut lane = Lane::default();
        let names = ["a1", "a2", "a3", "b1", "a4", "c1", "b2"];
        let ids = names.map(|name| (TaskId::fresh(), name));
        for (id, name) in ids {
            lane.join(&client(&name[..1]), id, 1, 100).unwrap();
        }
        let name = |id: TaskId| ids.iter().find(|(known, _)| *known == id).unwrap().1;
        let foreseen: Vec<&str> = lane.sessions().map(name).collect();
        let order: Vec<&str> = drain(&mut lane).into_iter().map(name).collect();
        assert_eq!(order, ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]);
        assert_eq!(foreseen, order);
    }

    #[test]
    fn places_and_queue_are_bounded() {
        let mut lane = Lane::default();
        let mut join = || lane.join(&client("a"), TaskId::fresh(), 2, 2);
        assert_eq!(join(), Ok(Turn::Now));
        assert_eq!(join(), Ok(Turn::Now));
        assert_eq!(join(), Ok(Turn::After(2)));
        assert_eq!(join(), Ok(Turn::After(3)));
        assert_eq!(join(), Err(QueueFull { waiting: 2 }));
    }

    #[test]
    fn who_leaves_the_queue_frees_no_place() {
        let mut lane = Lane::default();
        let [one, two, three, stranger] = [(); 4].map(|()| TaskId::fresh());
        for id in [one, two, three] {
            lane.join(&client("a"), id, 1, 9).unwrap();
        }
        assert_eq!(lane.leave(two), None);
        assert_eq!(lane.leave(one), Some(three));
        assert_eq!(lane.leave(three), None);
        assert_eq!(lane.leave(stranger), None);
        assert!(lane.is_empty());
    }
}
