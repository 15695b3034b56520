//! The connection table: flat, pre-allocated, addressed by number, without a pointer inside.
//!
//! Invariants:
//! - both tuples of a live connection are in the index, or neither is;
//! - no two live connections share a tuple, in either direction;
//! - an entry is live when the lowest bit of its version is set; every change between live and free
//!   raises the version, so that a number kept too long is noticed.
//!
//! ```text
//! entry   0  original addresses      index  buckets of eight slots, one cache line;
//! (hot)   1  original ports, zone           slot = tag:31 | direction:1 | entry + 1:32
//!         2  reply addresses                a tuple is in one of its two buckets
//!         3  reply ports, zone
//!         4  version:32 | state:8 | flags:8 | network:16
//!         5  version:32 | deadline, seconds:32; free: 0:32 | next free entry + 1:32
//!         6  way of the original direction
//!         7  way of the reply direction
//! (cold)  packets and bytes of every original direction, then of every reply direction
//! (rules) DNAT rules, two a word, of the connections that have one
//! ```
//!
//! A way is what a worker remembers of how packets of that direction go (`crate::express`).
//!
//! Looking up takes no lock: slot, entry, version again. Inserting and removing lock the shards of
//! both tuples, the lower one first, so that two workers inserting one flow meet; slots are claimed
//! by compare-and-swap because one bucket serves tuples of many shards. Memory: 96 bytes an entry, 4
//! more with a DNAT rule, and 24 bytes of index.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::entry::{ConnId, Hit};
use super::tuple::{Direction, Tuple};
use super::words::{LIVE, Meta, deadline_of, slot_direction, slot_index, slot_tag};
use crate::hash::{HashKey, TableHash};
use crate::io::prefetch::prefetch;
use crate::io::region::Region;
use crate::sync::Mutex;

pub(super) const HOT_WORDS: usize = 8;
/// Of one direction.
pub(super) const COLD_WORDS: usize = 2;
/// The last word of a table in a file: "vsw" and the number of what the words mean, to be raised
/// when that changes. A file of another build is an unsound one, whatever its length.
pub(super) const FORMAT: u64 = u64::from_be_bytes(*b"vswct\0\0\x02");
const BUCKET_SLOTS: usize = 8;
/// Slots of the index a connection, which has two tuples.
const SLOTS_EACH: usize = 3;
pub(super) const SHARDS: usize = 256;

#[derive(Debug, Default)]
pub(super) struct FreeList {
    /// Number of the first free entry, plus one.
    pub(super) head: u32,
}

/// Totals that the table keeps itself.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) inserted: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) flushed: AtomicU64,
    pub(super) full: AtomicU64,
    pub(super) clashes: AtomicU64,
    pub(super) ports_exhausted: AtomicU64,
}

/// The table. Shared by all workers and control.
#[derive(Debug)]
pub struct ConnTable {
    pub(super) entries: Region,
    index: Region,
    buckets: u64,
    hash: TableHash,
    pub(super) limit: u32,
    pub(super) used: AtomicU32,
    pub(super) high_water: AtomicU32,
    pub(super) free: Mutex<FreeList>,
    /// Where the next packet that finds the table full looks.
    pub(super) reclaim: AtomicU32,
    pub(super) shards: Vec<Mutex<()>>,
    pub(super) totals: Totals,
}

impl ConnTable {
    /// A table for `limit` connections in anonymous memory.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(limit: u32, key: HashKey) -> io::Result<Self> {
        let limit = limit.max(1);
        Self::with_entries(Region::anonymous(Self::entry_words(limit))?, limit, key)
    }

    /// A table whose entries live in a file, so that they outlive the process.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn in_file(path: &Path, limit: u32, key: HashKey) -> io::Result<Self> {
        let limit = limit.max(1);
        let entries = Region::file(path, Self::entry_words(limit))?;
        if let Some(word) = entries.last() {
            word.store(FORMAT, Ordering::Relaxed);
        }
        Self::with_entries(entries, limit, key)
    }

    /// Entries, counters, rules, and [`FORMAT`].
    pub(super) fn entry_words(limit: u32) -> usize {
        limit as usize * (HOT_WORDS + 2 * COLD_WORDS) + (limit as usize).div_ceil(2) + 1
    }

    pub(super) fn over(entries: Region, limit: u32) -> io::Result<Self> {
        Self::with_entries(entries, limit, HashKey::new(0, 0))
    }

    fn with_entries(entries: Region, limit: u32, key: HashKey) -> io::Result<Self> {
        // At least four buckets, so that the two of a tuple are seldom one.
        let slots = limit as usize * SLOTS_EACH;
        let buckets = slots.div_ceil(BUCKET_SLOTS).max(4);
        Ok(Self {
            entries,
            index: Region::anonymous(buckets * BUCKET_SLOTS)?,
            buckets: buckets as u64,
            hash: TableHash::new(key),
            limit,
            used: AtomicU32::new(0),
            high_water: AtomicU32::new(0),
            free: Mutex::new(FreeList::default()),
            reclaim: AtomicU32::new(0),
            shards: (0..SHARDS).map(|_| Mutex::new(())).collect(),
            totals: Totals::default(),
        })
    }

    /// Where the lookups of a tuple go: computed for a whole batch first.
    #[must_use]
    #[inline]
    pub fn hash(&self, tuple: Tuple) -> u64 {
        self.hash.hash(tuple.addresses, tuple.rest)
    }

    /// Connections now.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Connections at most.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// No entry from this number on was ever used.
    #[must_use]
    pub fn high_water(&self) -> u32 {
        self.high_water.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn hot(&self, index: u32) -> Option<&[AtomicU64; HOT_WORDS]> {
        self.entries.words().get(index as usize * HOT_WORDS..)?.first_chunk()
    }

    /// Packets and bytes of a direction. Each is written by the one worker that receives it, so that
    /// the two directions lie apart.
    #[inline]
    pub(super) fn cold(
        &self,
        index: u32,
        direction: Direction,
    ) -> Option<&[AtomicU64; COLD_WORDS]> {
        let limit = self.limit as usize;
        let base = limit * HOT_WORDS + direction.index() * limit * COLD_WORDS;
        self.entries.words().get(base + index as usize * COLD_WORDS..)?.first_chunk()
    }

    /// Where the rule of an entry is, and how far from the lowest bit.
    fn rule_cell(&self, index: u32) -> Option<(&AtomicU64, u32)> {
        let base = self.limit as usize * (HOT_WORDS + 2 * COLD_WORDS);
        Some((self.entries.words().get(base + index as usize / 2)?, index % 2 * 32))
    }

    /// The rule of a connection with [`super::entry::DNAT`].
    pub(super) fn rule(&self, index: u32) -> u32 {
        self.rule_cell(index).map_or(0, |(cell, shift)| {
            let [a, b, c, d, ..] = (cell.load(Ordering::Acquire) >> shift).to_le_bytes();
            u32::from_le_bytes([a, b, c, d])
        })
    }

    /// Sets it. The other half of the word is another entry's.
    pub(super) fn set_rule(&self, index: u32, rule: u32) {
        if let Some((cell, shift)) = self.rule_cell(index) {
            let with = |word: u64| word & !(0xffff_ffff << shift) | u64::from(rule) << shift;
            let set = Ordering::AcqRel;
            let _ = cell.fetch_update(set, Ordering::Relaxed, |word| Some(with(word)));
        }
    }

    /// Asks for the part of the index that a lookup will look at.
    #[inline]
    pub(crate) fn prefetch_index(&self, hash: u64) {
        if let Some(slot) = self.bucket(hash).first() {
            prefetch(slot);
        }
    }

    /// Asks for all of the index that a tuple can be in: for one that probably has no connection.
    #[inline]
    pub(crate) fn prefetch_both(&self, hash: u64) {
        self.prefetch_index(hash);
        self.prefetch_index(hash >> 32);
    }

    /// Asks for the entry that a lookup will probably find, and says where: see
    /// [`ConnTable::lookup_at`]. Zero: it is not in the first of its buckets; the second is asked for.
    #[inline]
    pub(crate) fn prefetch_entry(&self, hash: u64) -> u64 {
        let slot = self.prefetch_from(self.bucket(hash), hash);
        if slot == 0 {
            self.prefetch_index(hash >> 32);
        }
        slot
    }

    /// The same for one that is not in the first of its buckets.
    #[inline]
    pub(crate) fn prefetch_second(&self, hash: u64) -> u64 {
        self.prefetch_from(self.bucket(hash >> 32), hash)
    }

    #[inline]
    fn prefetch_from(&self, bucket: &[AtomicU64], hash: u64) -> u64 {
        let tag = slot_tag(hash);
        let slots = bucket.iter().map(|slot| slot.load(Ordering::Relaxed));
        let mut likely = slots.filter(|slot| slot >> 33 == tag && slot_index(*slot) != 0);
        let slot = likely.next().unwrap_or(0);
        if let Some(index) = slot_index(slot).checked_sub(1)
            && let (Some(hot), Some(cold)) =
                (self.hot(index), self.cold(index, slot_direction(slot)))
        {
            prefetch(hot);
            prefetch(cold);
        }
        slot
    }

    #[inline]
    pub(super) fn buckets(&self, hash: u64) -> [&[AtomicU64]; 2] {
        [self.bucket(hash), self.bucket(hash >> 32)]
    }

    #[inline]
    fn bucket(&self, number: u64) -> &[AtomicU64] {
        // The low 32 bits as a fraction of the buckets (Lemire 2019), which need be no power of two.
        #[allow(clippy::cast_possible_truncation, reason = "less than the number of buckets")]
        let at = (((number & 0xffff_ffff) * self.buckets) >> 32) as usize * BUCKET_SLOTS;
        self.index.words().get(at..at + BUCKET_SLOTS).unwrap_or_default()
    }

    /// The connection of a tuple, if it has one that has not expired.
    #[must_use]
    #[inline]
    pub fn lookup(&self, tuple: Tuple, now: u32) -> Option<Hit> {
        self.lookup_hashed(self.hash(tuple), tuple, now)
    }

    /// [`ConnTable::lookup`] with the hash computed before.
    #[must_use]
    #[inline]
    pub fn lookup_hashed(&self, hash: u64, tuple: Tuple, now: u32) -> Option<Hit> {
        self.find(hash, tuple).filter(|hit| hit.deadline > now)
    }

    /// [`ConnTable::lookup_hashed`] that looks first where [`ConnTable::prefetch_entry`] said.
    #[must_use]
    #[inline]
    pub(crate) fn lookup_at(&self, slot: u64, hash: u64, tuple: Tuple, now: u32) -> Option<Hit> {
        let likely = slot_index(slot).checked_sub(1);
        let hit = likely.and_then(|index| self.read(index, slot_direction(slot), tuple));
        hit.or_else(|| self.find(hash, tuple)).filter(|hit| hit.deadline > now)
    }

    #[inline]
    pub(super) fn find(&self, hash: u64, tuple: Tuple) -> Option<Hit> {
        let tag = slot_tag(hash);
        for bucket in self.buckets(hash) {
            for slot in bucket {
                let slot = slot.load(Ordering::Acquire);
                if slot >> 33 != tag || slot_index(slot) == 0 {
                    continue;
                }
                let hit = self.read(slot_index(slot) - 1, slot_direction(slot), tuple);
                if hit.is_some() {
                    return hit;
                }
            }
        }
        None
    }

    #[inline]
    fn read(&self, index: u32, direction: Direction, tuple: Tuple) -> Option<Hit> {
        let words = self.hot(index)?;
        let meta = Meta(words[4].load(Ordering::Acquire));
        let original = Tuple {
            addresses: words[0].load(Ordering::Relaxed),
            rest: words[1].load(Ordering::Relaxed),
        };
        let reply = Tuple {
            addresses: words[2].load(Ordering::Relaxed),
            rest: words[3].load(Ordering::Relaxed),
        };
        let deadline = words[5].load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let again = Meta(words[4].load(Ordering::Relaxed));
        if meta.version() & LIVE == 0 || again.version() != meta.version() {
            return None;
        }
        let (this, other) = match direction {
            Direction::Original => (original, reply),
            Direction::Reply => (reply, original),
        };
        (this == tuple).then_some(Hit {
            id: ConnId { index, version: meta.version() },
            direction,
            other,
            meta,
            deadline: deadline_of(deadline),
        })
    }

    /// Counts a new connection that found no outside port.
    pub fn note_ports_exhausted(&self) {
        self.totals.ports_exhausted.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
