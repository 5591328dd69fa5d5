//! Requests that wait for their reply: a bounded table with deadlines, in which each is settled once.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::time::Instant;

/// Why a request cannot wait for its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotWait {
    /// The table has no room for another entry.
    #[error("too many requests wait for a reply already")]
    Full,
    /// An entry with this key waits already.
    #[error("a request with the same id waits for its reply already")]
    Duplicate,
}

/// A bounded table of requests that wait for their reply, each with a deadline. Whoever takes an
/// entry out settles it: that is how a request is settled exactly once. An entry leaves by its reply
/// or a cancel ([`Self::take`]), its deadline ([`Self::take_expired`]) or a disconnect
/// ([`Self::take_all`]).
#[derive(Debug)]
pub struct Pending<K, V> {
    entries: BTreeMap<K, (V, Instant)>,
    capacity: usize,
}

impl<K: Ord + Clone, V> Pending<K, V> {
    /// An empty table for at most `capacity` entries.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { entries: BTreeMap::new(), capacity }
    }

    /// Puts a request in.
    ///
    /// # Errors
    /// When the table is full, or the key is in it.
    pub fn insert(&mut self, key: K, value: V, deadline: Instant) -> Result<(), CannotWait> {
        if self.entries.contains_key(&key) {
            return Err(CannotWait::Duplicate);
        }
        if self.entries.len() >= self.capacity {
            return Err(CannotWait::Full);
        }
        self.entries.insert(key, (value, deadline));
        Ok(())
    }

    /// Looks at an entry without settling it.
    #[must_use]
    pub fn peek<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// Looks at an entry, to note something in it.
    pub fn peek_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.entries.get_mut(key).map(|(value, _)| value)
    }

    /// Takes an entry out, to settle it by its reply or a cancel.
    pub fn take<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.entries.remove(key).map(|(value, _)| value)
    }

    /// Takes out what is due.
    pub fn take_expired(&mut self, now: Instant) -> Vec<(K, V)> {
        let due = |(_, deadline): &(V, Instant)| *deadline <= now;
        let keys: Vec<K> = self
            .entries
            .iter()
            .filter(|(_, entry)| due(entry))
            .map(|(key, _)| key.clone())
            .collect();
        keys.into_iter().filter_map(|key| self.take(&key).map(|value| (key, value))).collect()
    }

    /// Takes everything out, after a disconnect.
    pub fn take_all(&mut self) -> impl Iterator<Item = (K, V)> + use<K, V> {
        std::mem::take(&mut self.entries).into_iter().map(|(key, (value, _))| (key, value))
    }

    /// When the next entry is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.entries.values().map(|(_, deadline)| *deadline).min()
    }

    /// How many requests wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn one(now: Instant) -> Pending<String, u32> {
        let mut pending = Pending::new(2);
        pending.insert("R".to_owned(), 7, now + Duration::from_secs(5)).unwrap();
        pending
    }

    #[test]
    fn an_entry_leaves_by_its_reply() {
        let mut pending = one(Instant::now());
        assert_eq!(pending.take("R"), Some(7));
        assert_eq!(pending.take("R"), None, "a second reply settles nothing");
        assert!(pending.is_empty());
    }

    #[test]
    fn an_entry_leaves_by_its_deadline() {
        let now = Instant::now();
        let mut pending = one(now);
        assert_eq!(pending.next_deadline(), Some(now + Duration::from_secs(5)));
        assert!(pending.take_expired(now + Duration::from_secs(4)).is_empty());
        assert_eq!(pending.take_expired(now + Duration::from_secs(5)), [("R".to_owned(), 7)]);
        assert_eq!(pending.next_deadline(), None);
        assert_eq!(pending.take("R"), None, "a late reply settles nothing");
    }

    #[test]
    fn an_entry_leaves_by_a_cancel() {
        let now = Instant::now();
        let mut pending = one(now);
        assert_eq!(pending.take("R"), Some(7));
        assert!(pending.take_expired(now + Duration::from_secs(9)).is_empty());
    }

    #[test]
    fn an_entry_leaves_by_a_disconnect() {
        let mut pending = one(Instant::now());
        assert_eq!(pending.take_all().collect::<Vec<_>>(), [("R".to_owned(), 7)]);
        assert!(pending.is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let now = Instant::now();
        let mut pending = one(now);
        pending.insert("S".to_owned(), 8, now).unwrap();
        assert_eq!(pending.insert("T".to_owned(), 9, now), Err(CannotWait::Full));
        assert_eq!(pending.len(), 2);
    }
}
