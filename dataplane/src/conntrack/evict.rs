//! Who has to go when there is no room: a connection that nobody has answered, of somebody who has
//! more than the one who asks. A flood pays for itself, and never at the cost of a conversation.

use std::sync::atomic::Ordering;

use super::accounts::{Accounts, Payer, Standing, is_open};
use super::entry::{ConnId, NewConnection};
use super::key::Key;
use super::table::ConnTable;
use super::watch::EndReason;
use super::words::{Meta, slot_index};

/// Entries looked at for one that can go. Of a flood that has a tenth of a table, all of them miss one
/// time in a million.
const LOOK: u32 = 128;
/// The golden ratio's fractional part, times 2^32: steps of it come everywhere. Entries that lie together
/// were begun together, so that a walk in order could meet nothing but what one client has left.
const GOLDEN: u32 = 0x9e37_79b9;

/// Payers of whom is remembered how they stand while entries are looked at. Most are of a flood, of few.
const REMEMBERED: usize = 4;

/// How payers stand: each is looked up once in a row of entries, not for each of them.
struct Standings<'a> {
    accounts: &'a Accounts,
    known: [Option<(Payer, Standing)>; REMEMBERED],
    next: usize,
}

impl<'a> Standings<'a> {
    const fn new(accounts: &'a Accounts) -> Self {
        Self { accounts, known: [None; REMEMBERED], next: 0 }
    }

    fn of(&mut self, payer: Payer) -> Standing {
        let known = self.known.iter().flatten().find(|(other, _)| *other == payer);
        if let Some((_, standing)) = known {
            return *standing;
        }
        let standing = self.accounts.standing(&payer);
        if let Some(place) = self.known.get_mut(self.next % REMEMBERED) {
            *place = Some((payer, standing));
        }
        self.next += 1;
        standing
    }
}

/// What can go.
struct Candidate {
    id: ConnId,
    /// Of whoever pays for it.
    standing: Standing,
}

impl<K: Key> ConnTable<K> {
    /// Ends a connection to make room for a new one, if one of the next few entries can go; false: none
    /// can. What it is to end may be ended by another worker at the same time.
    #[cold]
    pub(crate) fn evict_for<N: Key>(&self, new: &NewConnection<N>) -> bool {
        let mut standings = Standings::new(self.room.accounts());
        let asks = standings.of(Payer::of(new.original, new.reply, new.flags));
        let from = self.evict.fetch_add(LOOK, Ordering::Relaxed);
        let used = u64::from(self.high_water());
        let places = (0..LOOK).map(|step| from.wrapping_add(step).wrapping_mul(GOLDEN));
        #[allow(clippy::cast_possible_truncation, reason = "less than the number of entries")]
        let indexes = places.map(|place| ((u64::from(place) * used) >> 32) as u32);
        let mut heaviest: Option<Candidate> = None;
        for index in indexes {
            let Some(candidate) = self.candidate(index, &asks, &mut standings) else { continue };
            let open = candidate.standing.open;
            if heaviest.as_ref().is_none_or(|other| open >= other.standing.open) {
                heaviest = Some(candidate);
            }
            // Nobody has more than who has most of the table.
            if u64::from(open) * 2 > used {
                break;
            }
        }
        let Some(candidate) = heaviest else { return false };
        self.evict(&candidate);
        true
    }

    /// Ends a connection to make room in the index for a new one whose tuples have these hashes.
    #[cold]
    pub(super) fn evict_near(&self, hashes: [u64; 2], new: &NewConnection<K>) -> bool {
        let mut standings = Standings::new(self.room.accounts());
        let asks = standings.of(Payer::of(new.original, new.reply, new.flags));
        let near = |hash| {
            let slots = self.buckets(hash).into_iter().flatten();
            let entries = slots.map(|slot| slot_index(slot.load(Ordering::Relaxed)));
            let used = entries.filter_map(|number| number.checked_sub(1));
            let can_go = used.filter_map(|index| self.candidate(index, &asks, &mut standings));
            can_go.max_by_key(|it| it.standing.open)
        };
        let mut found = false;
        for candidate in hashes.into_iter().filter_map(near) {
            found |= self.evict(&candidate);
        }
        found
    }

    /// Ends the connection whose tuple stands in the way of a new one, if it is somebody else's and can
    /// go.
    #[cold]
    pub(crate) fn evict_from(&self, hash: u64, tuple: K, new: &NewConnection<K>) -> bool {
        let Some(hit) = self.find(hash, tuple) else { return false };
        let mut standings = Standings::new(self.room.accounts());
        let asks = standings.of(Payer::of(new.original, new.reply, new.flags));
        let candidate =
            self.candidate(hit.id.index, &asks, &mut standings).filter(|it| it.id == hit.id);
        // Whoever has used up a server's ports is told so, and keeps what it waits for.
        let other = candidate.filter(|candidate| !candidate.standing.is_of(&asks));
        other.is_some_and(|candidate| self.evict(&candidate))
    }

    /// The entry, if it may go for a connection of `asks`: one of the same, or of somebody who has
    /// more that nobody has answered than `asks` has connections.
    fn candidate(
        &self,
        index: u32,
        asks: &Standing,
        standings: &mut Standings<'_>,
    ) -> Option<Candidate> {
        let raw = self.raw_of(index, || 0)?;
        let new = raw.new;
        if !is_open(new.original.proto(), Meta::new(0, new.state, new.flags, new.network)) {
            return None;
        }
        let standing = standings.of(Payer::of(new.original, new.reply, new.flags));
        let may_go = standing.is_of(asks) || standing.open > asks.connections;
        may_go.then_some(Candidate { id: ConnId { index, version: raw.version }, standing })
    }

    fn evict(&self, candidate: &Candidate) -> bool {
        let evicted = self.remove_if(candidate.id.index, EndReason::Evicted, |hot, meta| {
            let proto = K::load(hot.original, Ordering::Acquire).proto();
            meta.version() == candidate.id.version && is_open(proto, meta)
        });
        if evicted {
            self.room.accounts().note_evicted();
        }
        evicted
    }
}

#[cfg(test)]
mod tests;
