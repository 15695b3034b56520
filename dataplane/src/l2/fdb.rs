//! The forwarding database: which port a MAC is behind.
//!
//! One table for all networks. A bucket is one cache line of four slots; a slot is two words, so a
//! lookup that hits its first bucket costs one cache line and no lock:
//!
//! ```text
//! key   mac:48 | network:16             zero: the slot is empty (no source MAC is zero)
//! value port:16 | vlan:12 | kind:4 | last seen, seconds:32
//! ```
//!
//! Readers take key, value, key again: a slot that was reused in between is seen as a miss. Writers
//! that add or remove hold the lock; refreshing and moving an entry is a compare-and-swap of its
//! value. A learned entry is refreshed at most once a second, so that a busy pair of hosts does not
//! write to a shared cache line for each frame.
//!
//! Limits: `limit` learned and static entries. At the limit, or with both buckets full, the oldest
//! learned entry of the two buckets goes; local entries (endpoints' own MACs) and static ones never
//! do. Where there is none to go, the MAC is not entered and the refusal counted; frames to it are
//! flooded.
//!
//! Who has the last word: local over static over learned.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use crate::engine::{FdbEntry, FdbKind, FdbStats};
use crate::hash::{HashKey, TableHash};
use crate::io::prefetch::prefetch;
use crate::io::region::Region;
use crate::packet::types::{Mac, NetworkId, PortId};
use crate::sync::Mutex;

const SLOTS: usize = 4;
const WORDS: usize = SLOTS * 2;
/// An entry goes into the emptier of its buckets once the first one has this many: at the limit one
/// entry in 40,000 finds both full, where filling the first one up would lose one in 300.
const FIRST_CHOICE: usize = 2;

/// The table. Shared by all workers and control.
#[derive(Debug)]
pub struct Fdb {
    region: Region,
    mask: u64,
    hash: TableHash,
    limit: u32,
    /// Learned and static entries.
    used: AtomicU32,
    moves: AtomicU64,
    evictions: AtomicU64,
    refused: AtomicU64,
    changes: AtomicU64,
    writer: Mutex<()>,
}

/// What learning did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// Known there already.
    Known,
    /// The MAC is static or local at another port, or another worker has just seen it there; the
    /// entry stays.
    Kept,
    /// It was behind another port before.
    Moved,
    /// New.
    New,
    /// No room: everything in its buckets is static or local.
    Full,
}

/// Why a static entry was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StaticRefused {
    /// Its buckets, or the table, hold nothing that may go.
    #[error("the table is full")]
    Full,
    /// The MAC is an endpoint's own or the gateway's.
    #[error("the MAC belongs to an endpoint or to the gateway")]
    Local,
}

#[derive(Clone, Copy)]
struct Value(u64);

impl Value {
    fn new(port: PortId, vlan: u16, kind: FdbKind, seen: u32) -> Self {
        let kind = match kind {
            FdbKind::Learned => 0u64,
            FdbKind::Local => 1,
            FdbKind::Static => 2,
        };
        Self(u64::from(port.0) | u64::from(vlan & 0xfff) << 16 | kind << 28 | u64::from(seen) << 32)
    }

    #[allow(clippy::cast_possible_truncation, reason = "the field is 16 bits wide")]
    const fn port(self) -> PortId {
        PortId(self.0 as u16)
    }

    const fn vlan(self) -> u16 {
        (self.0 >> 16 & 0xfff) as u16
    }

    const fn kind(self) -> FdbKind {
        match self.0 >> 28 & 0xf {
            0 => FdbKind::Learned,
            1 => FdbKind::Local,
            _ => FdbKind::Static,
        }
    }

    const fn seen(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn is_live(self, now: u32, ageing: Duration) -> bool {
        !matches!(self.kind(), FdbKind::Learned)
            || u64::from(now.saturating_sub(self.seen())) <= ageing.as_secs()
    }
}

#[inline]
pub(super) fn key_word(network: NetworkId, mac: Mac) -> u64 {
    mac.as_u64() << 16 | u64::from(network.0)
}

impl Fdb {
    /// A table for `limit` learned entries, half full at the limit.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(limit: u32, key: HashKey) -> io::Result<Self> {
        let buckets = (limit.max(16) as usize * 2 / SLOTS).next_power_of_two();
        Ok(Self {
            region: Region::anonymous(buckets * WORDS)?,
            mask: buckets as u64 - 1,
            hash: TableHash::new(key),
            limit: limit.max(1),
            used: AtomicU32::new(0),
            moves: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            writer: Mutex::new(()),
        })
    }

    /// Where the lookups of a key go: computed for a whole batch first.
    #[must_use]
    #[inline]
    pub fn hash(&self, network: NetworkId, vlan: u16, mac: Mac) -> u64 {
        self.hash.hash(key_word(network, mac), u64::from(vlan))
    }

    #[inline]
    fn bucket(&self, number: u64) -> Option<&[AtomicU64; WORDS]> {
        #[allow(clippy::cast_possible_truncation, reason = "masked to the number of buckets")]
        let at = (number & self.mask) as usize * WORDS;
        self.region.words().get(at..)?.first_chunk()
    }

    /// Asks for the memory that a lookup will look at.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        if let Some(first) = self.bucket(hash) {
            prefetch(first);
        }
    }

    #[inline]
    fn buckets(&self, hash: u64) -> [Option<&[AtomicU64; WORDS]>; 2] {
        [self.bucket(hash), self.bucket(hash >> 32)]
    }

    #[inline(always)]
    fn find(&self, hash: u64, key: u64, vlan: u16) -> Option<(&AtomicU64, &AtomicU64, Value)> {
        let first = self.find_in(hash, key, vlan);
        if first.is_some() { first } else { self.find_in(hash >> 32, key, vlan) }
    }

    #[inline(always)]
    fn find_in(&self, number: u64, key: u64, vlan: u16) -> Option<(&AtomicU64, &AtomicU64, Value)> {
        let bucket = self.bucket(number)?;
        // All slots are compared before any is chosen: which one it is cannot be foretold, and a wrong
        // guess of the processor costs more than the four comparisons.
        let [a, _, b, _, c, _, d, _] = bucket;
        let is = |word: &AtomicU64| u32::from(word.load(Ordering::Acquire) == key);
        let mut found = is(a) | is(b) << 2 | is(c) << 4 | is(d) << 6;
        while found != 0 {
            let at = found.trailing_zeros() as usize % WORDS;
            found &= found - 1;
            let (word, value) = (&bucket[at], &bucket[(at + 1) % WORDS]);
            let seen = Value(value.load(Ordering::Acquire));
            fence(Ordering::Acquire);
            if word.load(Ordering::Relaxed) == key && seen.vlan() == vlan & 0xfff {
                return Some((word, value, seen));
            }
        }
        None
    }

    /// The port behind which `mac` is, if it is known and its entry has not aged out.
    #[must_use]
    #[inline]
    pub fn lookup(
        &self,
        network: NetworkId,
        vlan: u16,
        mac: Mac,
        now: u32,
        ageing: Duration,
    ) -> Option<PortId> {
        let hash = self.hash(network, vlan, mac);
        self.lookup_hashed(hash, network, vlan, mac, now, ageing)
    }

    /// [`Fdb::lookup`] with the hash computed before.
    #[must_use]
    #[inline(always)]
    pub fn lookup_hashed(
        &self,
        hash: u64,
        network: NetworkId,
        vlan: u16,
        mac: Mac,
        now: u32,
        ageing: Duration,
    ) -> Option<PortId> {
        let (_, _, value) = self.find(hash, key_word(network, mac), vlan)?;
        value.is_live(now, ageing).then(|| value.port())
    }

    /// Whether learning would change nothing: the MAC of this [`key_word`], untagged, is behind `port` and
    /// has been heard in this very second.
    #[must_use]
    #[inline(always)]
    pub(crate) fn is_known(&self, hash: u64, key: u64, port: PortId, now: u32) -> bool {
        self.find(hash, key, 0).is_some_and(|(_, _, value)| {
            value.port() == port
                && (value.seen() == now || !matches!(value.kind(), FdbKind::Learned))
        })
    }

    /// [`Fdb::lookup_hashed`] for a [`key_word`], untagged.
    #[must_use]
    #[inline(always)]
    pub(crate) fn lookup_key(
        &self,
        hash: u64,
        key: u64,
        now: u32,
        ageing: Duration,
    ) -> Option<PortId> {
        let (_, _, value) = self.find(hash, key, 0)?;
        value.is_live(now, ageing).then(|| value.port())
    }

    /// Where the lookups of a [`key_word`], untagged, go.
    #[must_use]
    #[inline(always)]
    pub(crate) fn hash_key(&self, key: u64) -> u64 {
        self.hash.hash(key, 0)
    }

    /// Notes that `mac` sent a frame through `port`. The caller has checked that it is a unicast
    /// address.
    #[inline]
    pub fn learn(
        &self,
        network: NetworkId,
        vlan: u16,
        mac: Mac,
        port: PortId,
        now: u32,
    ) -> Learned {
        self.learn_hashed(self.hash(network, vlan, mac), network, vlan, mac, port, now)
    }

    /// [`Fdb::learn`] with the hash computed before.
    #[inline(always)]
    pub fn learn_hashed(
        &self,
        hash: u64,
        network: NetworkId,
        vlan: u16,
        mac: Mac,
        port: PortId,
        now: u32,
    ) -> Learned {
        let Some((_, cell, value)) = self.find(hash, key_word(network, mac), vlan) else {
            return self.insert(network, vlan, mac, port, FdbKind::Learned, now);
        };
        if value.port() == port {
            if matches!(value.kind(), FdbKind::Learned) && value.seen() != now {
                let fresh = Value::new(port, vlan, FdbKind::Learned, now);
                // Losing the race is fine: whoever won knows better.
                let _ =
                    cell.compare_exchange(value.0, fresh.0, Ordering::AcqRel, Ordering::Relaxed);
            }
            return Learned::Known;
        }
        if !matches!(value.kind(), FdbKind::Learned) {
            return Learned::Kept;
        }
        self.relocate(cell, value, Value::new(port, vlan, FdbKind::Learned, now))
    }

    /// A learned MAC is seen behind another port.
    fn relocate(&self, cell: &AtomicU64, old: Value, new: Value) -> Learned {
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        if cell.compare_exchange(old.0, new.0, success, failure).is_ok() {
            self.moves.fetch_add(1, Ordering::Relaxed);
            self.note_change();
            return Learned::Moved;
        }
        // Somebody has just seen it elsewhere, or control has said where it is.
        Learned::Kept
    }

    /// Adds an entry, or replaces one that has no more to say; see the module.
    pub fn insert(
        &self,
        network: NetworkId,
        vlan: u16,
        mac: Mac,
        port: PortId,
        kind: FdbKind,
        now: u32,
    ) -> Learned {
        let _guard = self.writer.lock();
        let key = key_word(network, mac);
        let hash = self.hash(network, vlan, mac);
        let fresh = Value::new(port, vlan, kind, now);
        if let Some((_, cell, old)) = self.find(hash, key, vlan) {
            match (old.kind(), kind) {
                // Another worker learned it since the caller looked.
                (FdbKind::Learned, FdbKind::Learned) if old.port() != port => {
                    return self.relocate(cell, old, fresh);
                }
                // Control said where it is since the caller looked.
                (FdbKind::Local | FdbKind::Static, FdbKind::Learned) if old.port() == port => {
                    return Learned::Known;
                }
                (FdbKind::Local | FdbKind::Static, FdbKind::Learned)
                | (FdbKind::Local, FdbKind::Static) => return Learned::Kept,
                _ => {}
            }
            self.account(Some(old.kind()), Some(kind));
            cell.store(fresh.0, Ordering::Release);
            self.note_change();
            return Learned::Known;
        }
        let counted = !matches!(kind, FdbKind::Local);
        let at_limit = counted && self.used.load(Ordering::Relaxed) >= self.limit;
        let mut empty = None;
        let mut oldest: Option<(&AtomicU64, &AtomicU64, u32)> = None;
        for slot in self.by_preference(hash).into_iter().flatten().flat_map(|b| b.chunks_exact(2)) {
            let [word, cell] = slot else { continue };
            let value = Value(cell.load(Ordering::Relaxed));
            if word.load(Ordering::Relaxed) == 0 {
                empty = empty.or(Some((word, cell)));
            } else if matches!(value.kind(), FdbKind::Learned)
                && oldest.is_none_or(|(_, _, seen)| value.seen() < seen)
            {
                oldest = Some((word, cell, value.seen()));
            }
        }
        let (word, cell) = match (empty, oldest) {
            (Some(slot), _) if !at_limit => slot,
            (_, Some((word, cell, _))) => {
                word.store(0, Ordering::Release);
                self.account(Some(FdbKind::Learned), None);
                self.evictions.fetch_add(1, Ordering::Relaxed);
                // Behind another port it would be new now, and no move.
                self.note_change();
                (word, cell)
            }
            _ => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return Learned::Full;
            }
        };
        self.account(None, Some(kind));
        cell.store(fresh.0, Ordering::Release);
        word.store(key, Ordering::Release);
        Learned::New
    }

    /// Rises when a MAC is behind another port than before, when one is evicted, and when what control
    /// said of one has changed: who remembers places looks again. Not when an entry ages out, as no place
    /// is remembered beyond the second, and in this one it was found nowhere; nor with a new entry, for
    /// the same reason.
    #[must_use]
    #[inline]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// The buckets of a hash, the one that a new entry should go into first.
    fn by_preference(&self, hash: u64) -> [Option<&[AtomicU64; WORDS]>; 2] {
        let [first, second] = self.buckets(hash);
        let used = |bucket: Option<&[AtomicU64; WORDS]>| {
            let keys = bucket.into_iter().flatten().step_by(2);
            keys.filter(|key| key.load(Ordering::Relaxed) != 0).count()
        };
        if used(first) < FIRST_CHOICE || used(first) <= used(second) {
            [first, second]
        } else {
            [second, first]
        }
    }

    fn account(&self, old: Option<FdbKind>, new: Option<FdbKind>) {
        let counted = |kind: Option<FdbKind>| kind.is_some_and(|k| !matches!(k, FdbKind::Local));
        match (counted(old), counted(new)) {
            (true, false) => self.used.fetch_sub(1, Ordering::Relaxed),
            (false, true) => self.used.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    /// Removes an entry; returns what kind it was.
    pub fn remove(&self, network: NetworkId, vlan: u16, mac: Mac) -> Option<FdbKind> {
        let _guard = self.writer.lock();
        let hash = self.hash(network, vlan, mac);
        let (word, _, value) = self.find(hash, key_word(network, mac), vlan)?;
        word.store(0, Ordering::Release);
        self.note_change();
        self.account(Some(value.kind()), None);
        Some(value.kind())
    }

    /// Removes every entry for which `doomed` says so; returns how many.
    pub fn retain_not(&self, doomed: impl Fn(&FdbEntry) -> bool, now: u32) -> usize {
        let _guard = self.writer.lock();
        let mut removed = 0;
        for slot in self.region.words().chunks_exact(2) {
            let [word, cell] = slot else { continue };
            let Some(entry) = entry_of(word, cell, now) else { continue };
            if doomed(&entry) {
                word.store(0, Ordering::Release);
                self.account(Some(entry.kind), None);
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
    pub fn age(&self, cursor: u64, buckets: u64, now: u32, ageing: Duration) -> u64 {
        let mut guard = None;
        for number in cursor..cursor.saturating_add(buckets.min(self.mask + 1)) {
            for slot in self.bucket(number).into_iter().flat_map(|b| b.chunks_exact(2)) {
                let [word, cell] = slot else { continue };
                if word.load(Ordering::Relaxed) == 0
                    || Value(cell.load(Ordering::Relaxed)).is_live(now, ageing)
                {
                    continue;
                }
                guard.get_or_insert_with(|| self.writer.lock());
                if word.load(Ordering::Relaxed) != 0
                    && !Value(cell.load(Ordering::Relaxed)).is_live(now, ageing)
                {
                    word.store(0, Ordering::Release);
                    self.account(Some(FdbKind::Learned), None);
                }
            }
        }
        cursor.wrapping_add(buckets) & self.mask
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self, now: u32, ageing: Duration) -> Vec<FdbEntry> {
        let slots = self.region.words().chunks_exact(2);
        slots
            .filter_map(|slot| {
                let [word, cell] = slot else { return None };
                let entry = entry_of(word, cell, now)?;
                let aged = matches!(entry.kind, FdbKind::Learned) && entry.age > ageing;
                (!aged).then_some(entry)
            })
            .collect()
    }

    /// Learned and static entries now.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Buckets of the table, the unit of [`Fdb::age`].
    #[must_use]
    pub const fn bucket_count(&self) -> u64 {
        self.mask + 1
    }

    /// Totals.
    #[must_use]
    pub fn stats(&self) -> FdbStats {
        FdbStats {
            entries: self.used(),
            limit: self.limit,
            moves: self.moves.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the network is the low 16 bits")]
fn entry_of(word: &AtomicU64, cell: &AtomicU64, now: u32) -> Option<FdbEntry> {
    let key = word.load(Ordering::Acquire);
    let value = Value(cell.load(Ordering::Acquire));
    fence(Ordering::Acquire);
    if key == 0 || word.load(Ordering::Relaxed) != key {
        return None;
    }
    Some(FdbEntry {
        network: NetworkId(key as u16),
        mac: Mac::from_u64(key >> 16),
        vlan: value.vlan(),
        port: value.port(),
        kind: value.kind(),
        age: Duration::from_secs(u64::from(now.saturating_sub(value.seen()))),
    })
}

#[cfg(test)]
mod tests;
