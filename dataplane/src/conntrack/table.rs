//! The connection table of one family: flat, pre-allocated, addressed by number, without a pointer
//! inside.
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
//!         5  version:16 | rule:16 | deadline, seconds:32; free: 0:32 | next free entry + 1:32
//!         6  way of the original direction:48 | its TCP window:16
//!         7  way of the reply direction:48 | its TCP window:16
//! (cold)  packets, bytes, sequence numbers (`cold.rs`): of every original direction, then of every
//!         reply direction
//! ```
//!
//! The DNAT rule of a connection that has one is where there is room: eight bits behind the zone in each of the
//! words 1 and 3, the others in word 5.
//!
//! In IPv6 the addresses of a tuple take four words instead of one, and the hot part is two cache lines.
//!
//! A way is what a worker remembers of how packets of that direction go (`crate::express`).
//!
//! Looking up takes no lock: slot, entry, version again. Inserting and removing lock the shards of
//! both tuples, the lower one first, so that two workers inserting one flow meet; slots are claimed
//! by compare-and-swap because one bucket serves tuples of many shards. Memory: 104 bytes an entry in
//! IPv4 and 168 in IPv6, and 22.5 bytes of index.
//!
//! A file's space must be reserved before it is written to ([`Region`]). The table of IPv4 has all of
//! its own from the start: entries, counters, format. That of IPv6, which many a host never
//! needs, gets it as it fills: a line with the format, then steps of `STEP` entries, each with its own
//! counters behind it. No entry is looked at that was never used.

use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use crossbeam::utils::CachePadded;

use super::accounts::Accounts;
use super::cold::{COLD_HALVES, Cold};
use super::entry::{ConnId, Hit};
use super::free::FreeList;
use super::key::{Hot, Key};
use super::room::Room;
use super::taken::Taken;
use super::tuple::{Direction, Tuple};
use super::watch::Watchers;
use super::words::{LIVE, Meta, deadline_of, rule_in, slot_direction, slot_index, slot_tag};
use crate::hash::{HashKey, TableHash};
use crate::io::prefetch::prefetch;
use crate::io::region::Region;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU32, AtomicU64};

/// Of both directions.
const COLD_WORDS: usize = COLD_HALVES;
/// Words before the first step of a table that gets its memory in steps: the format, and what keeps
/// entries at the start of a pair of cache lines.
pub(super) const HEADER: usize = 16;
/// Entries of a step.
pub(super) const STEP: u32 = 16_384;
/// Of a cache line.
const LINE_WORDS: usize = 8;
const BUCKET_SLOTS: usize = LINE_WORDS;
/// Bytes of the index that two connections have, each with two tuples: of its slots 71 % are used at the limit.
const INDEX_BYTES_OF_TWO: usize = 45;
pub(super) const SHARDS: usize = 256;

/// Totals that the table keeps itself.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) inserted: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) flushed: AtomicU64,
    pub(super) full: AtomicU64,
    pub(super) clashes: AtomicU64,
    pub(super) ports_exhausted: AtomicU64,
    pub(super) picked_up: AtomicU64,
}

/// The table. Shared by all workers and control.
#[derive(Debug)]
pub struct ConnTable<K: Key = Tuple> {
    pub(super) entries: Region,
    index: Region,
    buckets: u64,
    pub(super) hash: TableHash,
    /// Of outside ports.
    pub(super) taken: Taken,
    pub(super) limit: u32,
    /// Shared with the table of the other family.
    pub(super) room: Room,
    // What each connection that begins or ends writes is in lines of its own: lookups read the others.
    pub(super) high_water: CachePadded<AtomicU32>,
    pub(super) free: CachePadded<Mutex<FreeList>>,
    /// Where the next packet that finds the table full looks.
    pub(super) reclaim: CachePadded<AtomicU32>,
    /// The same for what can be ended for it.
    pub(super) evict: CachePadded<AtomicU32>,
    pub(super) shards: Vec<Mutex<()>>,
    pub(super) totals: CachePadded<Totals>,
    pub(super) watchers: Watchers,
    key: PhantomData<fn() -> K>,
}

impl<K: Key> ConnTable<K> {
    /// A table for `limit` connections in anonymous memory.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(limit: u32, key: HashKey) -> io::Result<Self> {
        Self::within(&Room::new(limit), key)
    }

    /// A table in anonymous memory that shares its room with others.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn within(room: &Room, key: HashKey) -> io::Result<Self> {
        let entries = Region::anonymous(Self::entry_words(room.limit()))?;
        Self::with_entries(entries, room, key)
    }

    /// A table whose entries live in a file, so that they outlive the process.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn in_file(path: &Path, room: &Room, key: HashKey) -> io::Result<Self> {
        let words = Self::entry_words(room.limit());
        let entries = if K::IN_STEPS {
            let entries = Region::growing(path, words)?;
            entries.reserve(HEADER)?;
            entries
        } else {
            Region::file(path, words)?
        };
        if let Some(word) = Self::format_of(&entries) {
            word.store(K::FORMAT, Ordering::Relaxed);
        }
        Self::with_entries(entries, room, key)
    }

    /// Of a whole table with its format.
    pub(super) fn entry_words(limit: u32) -> usize {
        if K::IN_STEPS {
            HEADER + limit.div_ceil(STEP) as usize * Self::words_of(STEP)
        } else {
            Self::words_of(limit) + 1
        }
    }

    /// Of so many entries with their counters.
    pub(super) fn words_of(entries: u32) -> usize {
        entries as usize * (K::HOT_WORDS + COLD_WORDS)
    }

    /// The word of a file that says what the others mean.
    pub(super) fn format_of(entries: &[AtomicU64]) -> Option<&AtomicU64> {
        if K::IN_STEPS { entries.first() } else { entries.last() }
    }

    /// The table of a file that is only read.
    pub(super) fn over(entries: Region, limit: u32) -> io::Result<Self> {
        Self::with_entries(entries, &Room::new(limit), HashKey::new(0, 0))
    }

    fn with_entries(entries: Region, room: &Room, key: HashKey) -> io::Result<Self> {
        let limit = room.limit();
        // At least four buckets, so that the two of a tuple are seldom one.
        let slots = limit as usize * INDEX_BYTES_OF_TWO / (2 * size_of::<u64>());
        let buckets = slots.div_ceil(BUCKET_SLOTS).max(4);
        let reserved = if K::IN_STEPS { 0 } else { limit };
        Ok(Self {
            entries,
            index: Region::anonymous(buckets * BUCKET_SLOTS)?,
            buckets: buckets as u64,
            hash: TableHash::new(key),
            taken: Taken::new(limit)?,
            limit,
            room: room.clone(),
            high_water: CachePadded::default(),
            free: CachePadded::new(Mutex::new(FreeList::new(reserved))),
            reclaim: CachePadded::default(),
            evict: CachePadded::default(),
            shards: (0..SHARDS).map(|_| Mutex::new(())).collect(),
            totals: CachePadded::default(),
            watchers: room.watchers(),
            key: PhantomData,
        })
    }

    /// An empty table over these entries where the lookups of a tuple go as they do here.
    pub(super) fn like(&self, entries: Region, room: &Room) -> io::Result<Self> {
        let table = Self::with_entries(entries, room, HashKey::new(0, 0))?;
        let reclaim = CachePadded::new(AtomicU32::new(self.reclaim.load(Ordering::Relaxed)));
        Ok(Self { hash: self.hash.clone(), reclaim, ..table })
    }

    /// Makes the index of a table of the same size the same.
    pub(super) fn copy_index(&self, to: &Self) {
        for (slot, copy) in self.index.words().iter().zip(to.index.words()) {
            copy.store(slot.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Where the lookups of a tuple go: computed for a whole batch first.
    #[must_use]
    #[inline]
    pub fn hash(&self, tuple: K) -> u64 {
        tuple.hash_with(&self.hash)
    }

    /// Connections now.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.free.lock().used
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Connections at most, together with those of the tables that share the room.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// The room that it shares.
    pub(crate) const fn room(&self) -> &Room {
        &self.room
    }

    /// Whose the connections are.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        self.room.accounts()
    }

    /// Those who are told of its connections, and of those of the tables that share the room.
    pub(crate) const fn watchers(&self) -> &Watchers {
        &self.watchers
    }

    /// Whether no connection can be entered before another ends.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.room.is_full()
    }

    /// No entry from this number on was ever used; before it, some of each list's last block were not either.
    #[must_use]
    pub fn high_water(&self) -> u32 {
        self.high_water.load(Ordering::Relaxed)
    }

    /// Where the part of the memory with an entry begins, which of its entries it is, and how many
    /// they are.
    #[inline(always)]
    fn place(&self, index: u32) -> (usize, usize, usize) {
        if K::IN_STEPS {
            let base = HEADER + (index / STEP) as usize * Self::words_of(STEP);
            (base, (index % STEP) as usize, STEP as usize)
        } else {
            (0, index as usize, self.limit as usize)
        }
    }

    #[inline(always)]
    pub(super) fn hot(&self, index: u32) -> Option<Hot<'_, K::Cells>> {
        let (base, at, _) = self.place(index);
        K::split(self.entries.words().get(base + at * K::HOT_WORDS..)?)
    }

    /// What is written for every packet of a direction, by the one worker that receives it: so the two
    /// directions lie apart.
    #[inline]
    pub(super) fn cold(&self, index: u32, direction: Direction) -> Option<Cold<'_>> {
        let (base, at, all) = self.place(index);
        let base = 2 * (base + all * K::HOT_WORDS) + direction.index() * all * COLD_HALVES;
        self.entries.halves().get(base + at * COLD_HALVES..)?.first_chunk().map(Cold)
    }

    /// The rule of a connection with [`super::entry::DNAT`].
    pub(super) fn rule(&self, index: u32) -> u32 {
        self.hot(index).map_or(0, |hot| {
            let [original, reply] = [hot.original, hot.reply].map(K::last);
            let [original, reply, fifth] =
                [original, reply, hot.deadline].map(|word| word.load(Ordering::Acquire));
            rule_in(original, reply, fifth)
        })
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

    /// Asks for what the other side has said, by which this one's segments are judged.
    #[inline]
    pub(crate) fn prefetch_peer(&self, hit: &Hit<K>) {
        if let Some(cold) = self.cold(hit.id.index, hit.direction.reversed()) {
            let [first, second, ..] = cold.0;
            prefetch(first);
            prefetch(second);
        }
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
            prefetch(hot.original);
            if K::HOT_WORDS > LINE_WORDS {
                prefetch(hot.deadline);
            }
            // One in four lies in two cache lines.
            let [first, .., last] = cold.0;
            prefetch(first);
            prefetch(last);
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
    pub fn lookup(&self, tuple: K, now: u32) -> Option<Hit<K>> {
        self.lookup_hashed(self.hash(tuple), tuple, now)
    }

    /// [`ConnTable::lookup`] with the hash computed before.
    #[must_use]
    #[inline]
    pub fn lookup_hashed(&self, hash: u64, tuple: K, now: u32) -> Option<Hit<K>> {
        self.find(hash, tuple).filter(|hit| hit.deadline > now)
    }

    /// [`ConnTable::lookup_hashed`] that looks first where [`ConnTable::prefetch_entry`] said.
    #[must_use]
    #[inline]
    pub(crate) fn lookup_at(&self, slot: u64, hash: u64, tuple: K, now: u32) -> Option<Hit<K>> {
        let likely = slot_index(slot).checked_sub(1);
        let hit = likely.and_then(|index| self.read(index, slot_direction(slot), tuple));
        hit.or_else(|| self.find(hash, tuple)).filter(|hit| hit.deadline > now)
    }

    #[inline]
    pub(super) fn find(&self, hash: u64, tuple: K) -> Option<Hit<K>> {
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
    fn read(&self, index: u32, direction: Direction, tuple: K) -> Option<Hit<K>> {
        let hot = self.hot(index)?;
        let meta = Meta(hot.meta.load(Ordering::Acquire));
        let original = K::load(hot.original, Ordering::Relaxed);
        let reply = K::load(hot.reply, Ordering::Relaxed);
        let deadline = hot.deadline.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let again = Meta(hot.meta.load(Ordering::Relaxed));
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

    /// Counts a connection that was entered with a segment from its middle.
    pub fn note_picked_up(&self) {
        self.totals.picked_up.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
