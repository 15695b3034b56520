//! How many connections there may be, and for whom. The tables of both families share it, so that neither
//! needs a limit of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::accounts::Accounts;
use super::mappings::Mappings;
use super::watch::Watchers;
use crate::limits::Peak;
use crate::sync::atomic::AtomicU32;

/// Places for connections; clones share them.
#[derive(Debug, Clone)]
pub struct Room {
    limit: u32,
    places: Arc<Places>,
    accounts: Arc<Accounts>,
    mappings: Arc<Mappings>,
}

/// Written together, so in one cache line.
#[derive(Debug, Default)]
struct Places {
    used: AtomicU32,
    peak: Peak,
    watchers: Watchers,
}

impl Room {
    /// Room for so many connections, one at least.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self {
            limit: limit.max(1),
            places: Arc::default(),
            accounts: Arc::default(),
            mappings: Arc::default(),
        }
    }

    /// So many events wait for each watcher at most. Before the first of them.
    pub(crate) fn limit_events(&self, queue: u32) {
        self.places.watchers.limit(queue);
    }

    /// Connections at most.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Places taken now, and at most since the start.
    pub(crate) fn uses(&self) -> (u32, u32) {
        // One that is refused takes a place for a moment.
        let used = self.places.used.load(Ordering::Relaxed).min(self.limit);
        (used, self.places.peak.value())
    }

    /// As much room, empty, with the same accounts, limits and mappings: for a copy of the tables.
    pub(crate) fn like(&self) -> Self {
        Self {
            accounts: Arc::new(self.accounts.copy()),
            mappings: Arc::new(self.mappings.copy()),
            ..Self::new(self.limit)
        }
    }

    /// The endpoint-independent mappings by which connections in it go.
    pub(crate) fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    /// Whose the places are.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Who is told of the connections in it.
    pub(super) fn watchers(&self) -> Watchers {
        self.places.watchers.clone()
    }

    /// Whether there is no place.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.places.used.load(Ordering::Relaxed) >= self.limit
    }

    /// Takes a place; false: there is none.
    pub(super) fn take(&self) -> bool {
        let before = self.places.used.fetch_add(1, Ordering::Relaxed);
        let has = before < self.limit;
        if has {
            self.places.peak.note(before + 1);
        } else {
            self.give_back();
        }
        has
    }

    /// Gives a place back.
    pub(super) fn give_back(&self) {
        self.places.used.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_shared_and_come_back() {
        let room = Room::new(2);
        let same = room.clone();
        assert!(room.take() && same.take());
        assert!(room.is_full() && !room.take() && !same.take());
        same.give_back();
        assert!(!room.is_full() && room.take());
        room.give_back();
        assert_eq!(room.uses(), (1, 2));
        assert_eq!(Room::new(0).limit(), 1);
    }
}
