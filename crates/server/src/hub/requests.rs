//! What a request's id names: the tasks of the last day, by whose id it is.
//!
//! There can be a million of them, also at a start, so they are kept flat: of the id and its owner 128 bits stay, which
//! are made under keys of this process, so that nobody can choose ids that agree in them.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, RandomState};
use std::sync::Arc;

use aip::machine::TaskRequest;
use aip::{RequestId, SessionId};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::session::{Incarnation, KeyName, LowHalf, RequestHash, TaskId};

/// Whose a request's id is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    Client(Incarnation),
    /// Who uses the HTTP API with this key.
    Key(Arc<str>),
}

impl Owner {
    /// Of a task that an identity submitted, or that came with a key over HTTP.
    pub(super) fn new(requester: Option<Incarnation>, key: &KeyName) -> Self {
        let of_key = || Self::Key(key.id.as_ref().unwrap_or(&key.name).clone());
        requester.map_or_else(of_key, Self::Client)
    }

    /// The identity, unless it came over HTTP.
    const fn client(&self) -> Option<Incarnation> {
        match self {
            Self::Client(id) => Some(*id),
            Self::Key(_) => None,
        }
    }
}

/// A request that was accepted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) hash: RequestHash,
    pub(super) task: TaskId,
}

/// Stands for an owner and the id of a request: 128 bits of a keyed hash.
type Name = u128;

/// When a request was accepted, in seconds, and from which client.
#[derive(Debug)]
struct Accepted {
    at: i64,
    name: Name,
    client: Option<Incarnation>,
}

/// The tasks that were accepted with a request's id, oldest first.
#[derive(Debug, Default)]
pub(super) struct Requests {
    keys: [RandomState; 2],
    known: HashMap<Name, Known, BuildHasherDefault<LowHalf>>,
    order: VecDeque<Accepted>,
}

impl Requests {
    fn name(&self, owner: &Owner, request_id: &RequestId) -> Name {
        let [high, low] =
            self.keys.each_ref().map(|key| Name::from(key.hash_one((owner, request_id))));
        high << 64 | low
    }

    /// Makes room for so many more.
    pub(super) fn reserve(&mut self, more: usize) {
        self.known.reserve(more);
        self.order.reserve(more);
    }

    pub(super) fn get(&self, owner: &Owner, request_id: &RequestId) -> Option<Known> {
        self.known.get(&self.name(owner, request_id)).copied()
    }

    pub(super) fn insert(
        &mut self,
        at: Timestamp,
        owner: &Owner,
        request_id: &RequestId,
        known: Known,
    ) {
        let name = self.name(owner, request_id);
        self.order.push_back(Accepted { at: at.as_second(), name, client: owner.client() });
        self.known.insert(name, known);
    }

    pub(super) fn remove(&mut self, owner: &Owner, request_id: &RequestId) {
        self.known.remove(&self.name(owner, request_id));
    }

    /// Lets go of those that were accepted before this time, and of the oldest while there are more than `most`, but of
    /// none whose task is needed, by its requester if that is a client.
    pub(super) fn forget_before(
        &mut self,
        oldest: Timestamp,
        most: usize,
        is_needed: impl Fn(Option<Incarnation>, TaskId) -> bool,
    ) {
        let oldest = oldest.as_second();
        for _ in 0..self.order.len() {
            let is_too_much = self.order.len() > most;
            let is_due = |first: &mut Accepted| is_too_much || first.at <= oldest;
            let Some(first) = self.order.pop_front_if(is_due) else { break };
            let Some(known) = self.known.get(&first.name) else { continue };
            if is_needed(first.client, known.task) {
                self.order.push_back(first);
            } else {
                self.known.remove(&first.name);
            }
        }
    }
}

/// What makes two requests the same: all that was asked for. Each part counts as it was written.
pub(super) fn hash(request: &TaskRequest) -> RequestHash {
    let mut hash = Sha256::new();
    // An absent part differs from an empty one, and none runs into the next.
    let mut add = |part: Option<&str>| {
        let length = part.map_or(u64::MAX, |part| part.len() as u64);
        hash.update(length.to_le_bytes());
        hash.update(part.unwrap_or_default().as_bytes());
    };
    add(Some(request.target_id.as_str()));
    add(Some(&request.request));
    add(request.as_sent.task_name.as_deref());
    add(request.session_id.as_ref().map(SessionId::as_str));
    for (name, value) in request.as_sent.settings.iter().flatten() {
        add(Some(name));
        add(Some(value.as_str()));
    }
    add(request.as_sent.settings.as_ref().map(|_| ""));
    RequestHash::new(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    fn id(n: u8) -> RequestId {
        RequestId::new(&n.to_string()).unwrap()
    }

    fn known(n: u8) -> Known {
        Known { hash: RequestHash::new([n; 32]), task: TaskId::from_bytes([n; 16]) }
    }

    #[test]
    fn an_id_names_a_task_of_its_owner_alone() {
        let mut requests = Requests::default();
        let key = |name: &str| Owner::Key(name.into());
        let owners =
            [Owner::Client(Incarnation(1)), Owner::Client(Incarnation(2)), key("1"), key("2")];
        for (n, owner) in (0..).zip(&owners) {
            requests.insert(Timestamp::UNIX_EPOCH, owner, &id(7), known(n));
        }
        for (n, owner) in (0..).zip(&owners) {
            assert_eq!(requests.get(owner, &id(7)).unwrap().task, known(n).task);
            assert!(requests.get(owner, &id(8)).is_none());
        }
        requests.remove(&owners[0], &id(7));
        let left = owners.map(|owner| requests.get(&owner, &id(7)).is_some());
        assert_eq!(left, [false, true, true, true]);
    }

    #[test]
    fn requests_go_when_they_are_old_or_too_many_but_not_while_they_are_needed() {
        let (mut requests, begin) = (Requests::default(), Timestamp::UNIX_EPOCH);
        let owner = |n: u8| Owner::Client(Incarnation(u64::from(n % 2)));
        for n in 0..8 {
            requests.insert(begin + i64::from(n).hours(), &owner(n), &id(n), known(n));
        }
        let left = |requests: &Requests| {
            (0..8).filter(|n| requests.get(&owner(*n), &id(*n)).is_some()).collect::<Vec<_>>()
        };
        let is_needed = |client: Option<Incarnation>, task: TaskId| {
            client == Some(Incarnation(0)) && task == known(0).task
        };
        requests.forget_before(begin + 1.hours(), 100, is_needed);
        assert_eq!(left(&requests), [0, 2, 3, 4, 5, 6, 7]);
        requests.forget_before(begin, 3, is_needed);
        assert_eq!(left(&requests), [0, 6, 7]);
        assert_eq!((requests.order.len(), requests.known.len()), (3, 3));
    }
}
