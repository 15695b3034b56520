//! Changes of the table, all under its lock: entering, moving, making room, removing, ageing.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::members::{Members, Slot};
use super::slot::{Value, entry_of, key_word, network_of};
use super::{Fdb, Learned, SLOTS};
use crate::engine::{FdbEntry, FdbKind};
use crate::packet::types::{Mac, NetworkId, PortId};
use crate::sync::atomic::AtomicU64;

/// An entry goes into the emptier of its buckets once the first one has this many: at the limit one
/// entry in 40,000 finds both full, where filling the first one up would lose one in 300.
const FIRST_CHOICE: usize = 2;

/// Where a new entry goes.
#[derive(Clone, Copy)]
enum Place {
    Empty(Slot),
    /// In the place of a learned entry.
    Of(Slot),
}

impl Fdb {
    /// Adds an entry, or replaces one that has no more to say; see the module above.
    pub fn insert(
        &self,
        network: NetworkId,
        vlan: u16,
        mac: Mac,
        port: PortId,
        kind: FdbKind,
        now: u32,
    ) -> Learned {
        let mut members = self.writer.lock();
        let key = key_word(network, mac);
        let hash = self.hash(network, vlan, mac);
        let fresh = Value::new(port, vlan, kind, now);
        if let Some(slot) = self.position(hash, key, vlan) {
            return self.replace(&mut members, slot, fresh);
        }
        let Some(place) = self.make_room(&mut members, hash, (network, port), kind, now) else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Learned::Full;
        };
        let Some((word, cell)) = self.slot(place) else { return Learned::Full };
        self.account(None, Some(kind));
        if kind == FdbKind::Learned {
            members.add(place, (network, port), now);
        }
        cell.store(fresh.0, Ordering::Release);
        word.store(key, Ordering::Release);
        Learned::New
    }

    /// There is an entry for the MAC.
    fn replace(&self, members: &mut Members, slot: Slot, fresh: Value) -> Learned {
        let Some((_, cell)) = self.slot(slot) else { return Learned::Kept };
        let old = Value(cell.load(Ordering::Acquire));
        let same_port = old.port() == fresh.port();
        match (old.kind(), fresh.kind()) {
            (FdbKind::Learned, FdbKind::Learned) if !same_port => {
                return self.relocate(members, slot, old, fresh);
            }
            // Another worker learned it, or control said where it is, since the caller looked.
            (_, FdbKind::Learned) if same_port => return Learned::Known,
            (FdbKind::Local | FdbKind::Static, FdbKind::Learned)
            | (FdbKind::Local, FdbKind::Static) => return Learned::Kept,
            _ => {}
        }
        if old.kind() == FdbKind::Learned {
            members.remove(slot, (self.network(slot), old.port()));
        }
        self.account(Some(old.kind()), Some(fresh.kind()));
        cell.store(fresh.0, Ordering::Release);
        self.note_change();
        Learned::Known
    }

    /// A learned MAC is seen behind another port.
    fn relocate(&self, members: &mut Members, slot: Slot, old: Value, fresh: Value) -> Learned {
        let (from, to, now) = (old.port(), fresh.port(), fresh.seen());
        if !members.may_move(slot, now) {
            return Learned::Flapping;
        }
        if !members.may_change(to, now) {
            return Learned::Kept;
        }
        let Some((_, cell)) = self.slot(slot) else { return Learned::Kept };
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        if cell.compare_exchange(old.0, fresh.0, success, failure).is_err() {
            // Somebody has just seen it where it was.
            return Learned::Kept;
        }
        if members.len(to) >= self.per_port
            && let Some(oldest) = self.oldest(members, to)
        {
            self.evict(members, oldest);
        }
        members.relocate(slot, from, to, now);
        members.count_move(slot, now);
        self.moves.fetch_add(1, Ordering::Relaxed);
        self.note_change();
        Learned::Moved
    }

    /// A slot for a new entry, made free if need be. `None`: nothing that is in the way may go.
    fn make_room(
        &self,
        members: &mut Members,
        hash: u64,
        (network, port): (NetworkId, PortId),
        kind: FdbKind,
        now: u32,
    ) -> Option<Slot> {
        let place = self.place(members, hash)?;
        let at_own_limit = kind == FdbKind::Learned && members.len(port) >= self.per_port;
        let at_network_limit = kind == FdbKind::Learned && members.is_full(network);
        let at_limit = kind != FdbKind::Local && self.used.load(Ordering::Relaxed) >= self.limit;
        if !at_own_limit
            && !at_network_limit
            && !at_limit
            && let Place::Empty(slot) = place
        {
            return Some(slot);
        }
        // What control asks for is entered however much has changed in this second.
        if kind == FdbKind::Learned && !members.may_change(port, now) {
            return None;
        }
        if at_own_limit {
            let oldest = self.oldest(members, port)?;
            self.evict(members, oldest);
        } else if at_network_limit {
            let heaviest = members.heaviest_in(network, port)?;
            let oldest = self.oldest(members, heaviest)?;
            self.evict(members, oldest);
        }
        match place {
            Place::Of(slot) => self.evict(members, slot),
            Place::Empty(_) if at_limit && !at_own_limit && !at_network_limit => {
                let heaviest = members.heaviest(port)?;
                let oldest = self.oldest(members, heaviest)?;
                self.evict(members, oldest);
            }
            Place::Empty(_) => {}
        }
        let (Place::Empty(slot) | Place::Of(slot)) = place;
        Some(slot)
    }

    fn oldest(&self, members: &mut Members, port: PortId) -> Option<Slot> {
        members.oldest(port, |slot| self.value(slot).seen())
    }

    /// A learned entry goes to make room, unless it has gone already.
    fn evict(&self, members: &mut Members, slot: Slot) {
        let Some((word, _)) = self.slot(slot) else { return };
        if word.load(Ordering::Relaxed) == 0 {
            return;
        }
        let network = network_of(word.swap(0, Ordering::AcqRel));
        members.remove(slot, (network, self.value(slot).port()));
        self.account(Some(FdbKind::Learned), None);
        self.evictions.fetch_add(1, Ordering::Relaxed);
        // Behind another port it would be new now, and no move.
        self.note_change();
    }

    /// An empty slot for a hash, or the one whose learned entry's port has the most; of several of one
    /// port, the oldest.
    fn place(&self, members: &Members, hash: u64) -> Option<Place> {
        let mut worst: Option<(Slot, (u32, u32))> = None;
        for slot in self.by_preference(hash).into_iter().flatten() {
            let (word, _) = self.slot(slot)?;
            if word.load(Ordering::Relaxed) == 0 {
                return Some(Place::Empty(slot));
            }
            let value = self.value(slot);
            let weight = (members.len(value.port()), u32::MAX - value.seen());
            if value.kind() == FdbKind::Learned && worst.is_none_or(|(_, most)| weight > most) {
                worst = Some((slot, weight));
            }
        }
        worst.map(|(slot, _)| Place::Of(slot))
    }

    /// The slots of both buckets of a hash, those that a new entry should go into first.
    fn by_preference(&self, hash: u64) -> [[Slot; SLOTS]; 2] {
        let [first, second] = [self.slots(hash), self.slots(hash >> 32)];
        let used = |slots: [Slot; SLOTS]| {
            let words = slots.into_iter().filter_map(|slot| self.slot(slot));
            words.filter(|(word, _)| word.load(Ordering::Relaxed) != 0).count()
        };
        if used(first) < FIRST_CHOICE || used(first) <= used(second) {
            [first, second]
        } else {
            [second, first]
        }
    }

    /// The slots of a bucket.
    #[allow(clippy::cast_possible_truncation, reason = "no table has 2^32 slots")]
    fn slots(&self, number: u64) -> [Slot; SLOTS] {
        let first = (number & self.mask) as Slot * SLOTS as Slot + 1;
        std::array::from_fn(|at| first + at as Slot)
    }

    /// The words of a slot.
    pub(super) fn slot(&self, slot: Slot) -> Option<(&AtomicU64, &AtomicU64)> {
        let at = (slot as usize).checked_sub(1)? * 2;
        let [word, cell] = self.region.words().get(at..)?.first_chunk()?;
        Some((word, cell))
    }

    pub(super) fn value(&self, slot: Slot) -> Value {
        Value(self.slot(slot).map_or(0, |(_, cell)| cell.load(Ordering::Relaxed)))
    }

    /// The network of the entry in a slot.
    pub(super) fn network(&self, slot: Slot) -> NetworkId {
        network_of(self.slot(slot).map_or(0, |(word, _)| word.load(Ordering::Relaxed)))
    }

    /// Sets how many learned entries networks may have.
    pub(crate) fn limit_networks(&self, limits: &[(NetworkId, Option<u32>)]) {
        self.writer.lock().limit(limits);
    }

    /// See [`Members::fullest_network`].
    pub(crate) fn fullest_network(&self) -> Option<(u32, u32, u32)> {
        self.writer.lock().fullest_network()
    }

    /// The slot of a MAC.
    fn position(&self, hash: u64, key: u64, vlan: u16) -> Option<Slot> {
        let both = [self.slots(hash), self.slots(hash >> 32)];
        both.into_iter().flatten().find(|slot| {
            let key_is = |(word, _): (&AtomicU64, _)| word.load(Ordering::Relaxed) == key;
            self.slot(*slot).is_some_and(key_is) && self.value(*slot).vlan() == vlan & 0xfff
        })
    }

    pub(super) fn account(&self, old: Option<FdbKind>, new: Option<FdbKind>) {
        let counted = |kind: Option<FdbKind>| kind.is_some_and(|k| !matches!(k, FdbKind::Local));
        match (counted(old), counted(new)) {
            (true, false) => {
                self.used.fetch_sub(1, Ordering::Relaxed);
            }
            (false, true) => self.peak.note(self.used.fetch_add(1, Ordering::Relaxed) + 1),
            _ => {}
        }
    }

    /// Empties a slot; nobody is told.
    fn clear(&self, members: &mut Members, slot: Slot) {
        let Some((word, _)) = self.slot(slot) else { return };
        let value = self.value(slot);
        let network = network_of(word.swap(0, Ordering::AcqRel));
        if value.kind() == FdbKind::Learned {
            members.remove(slot, (network, value.port()));
        }
        self.account(Some(value.kind()), None);
    }

    /// Removes an entry; returns what kind it was.
    pub fn remove(&self, network: NetworkId, vlan: u16, mac: Mac) -> Option<FdbKind> {
        let mut members = self.writer.lock();
        let hash = self.hash(network, vlan, mac);
        let slot = self.position(hash, key_word(network, mac), vlan)?;
        let kind = self.value(slot).kind();
        self.clear(&mut members, slot);
        self.note_change();
        Some(kind)
    }

    /// Removes every entry for which `doomed` says so; returns how many.
    pub fn retain_not(&self, doomed: impl Fn(&FdbEntry) -> bool, now: u32) -> usize {
        let mut members = self.writer.lock();
        let mut removed = 0;
        for slot in (0..=self.mask).flat_map(|number| self.slots(number)) {
            let entry = self.slot(slot).and_then(|(word, cell)| entry_of(word, cell, now));
            if entry.is_some_and(|entry| doomed(&entry)) {
                self.clear(&mut members, slot);
                removed += 1;
            }
        }
        if removed > 0 {
            self.note_change();
        }
        removed
    }

    /// Removes aged entries among the next `buckets` buckets from `cursor` on; returns the next
    /// cursor. Housekeeping calls it a little at a time.
    pub fn age(
        &self,
        cursor: u64,
        buckets: u64,
        now: u32,
        ageing: impl Fn(NetworkId) -> Duration,
    ) -> u64 {
        let mut guard = None;
        let aged = |slot: Slot| {
            self.slot(slot).is_some_and(|(word, cell)| {
                let key = word.load(Ordering::Relaxed);
                let value = Value(cell.load(Ordering::Relaxed));
                key != 0 && !value.is_live(now, ageing(network_of(key)))
            })
        };
        let numbers = cursor..cursor.saturating_add(buckets.min(self.mask + 1));
        for slot in numbers.flat_map(|number| self.slots(number)) {
            if !aged(slot) {
                continue;
            }
            let members = guard.get_or_insert_with(|| self.writer.lock());
            if aged(slot) {
                self.clear(members, slot);
            }
        }
        cursor.wrapping_add(buckets) & self.mask
    }
}
