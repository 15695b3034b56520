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
//!         5  version:32 | deadline, seconds:32
//!         6  rule
//!         7  next free entry
//! (cold)  packets and bytes of both directions
//! ```
//!
//! Looking up takes no lock: slot, entry, version again. Inserting and removing lock the shards of
//! both tuples, the lower one first, so that two workers inserting one flow meet; slots are claimed
//! by compare-and-swap because one bucket serves tuples of many shards. Memory: 96 bytes an entry
//! and 32 to 64 bytes of index (a power of two).

use std::io;
use std::path::Path;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::tuple::{Direction, Tuple};
use super::words::{
    LIVE, Meta, deadline_of, deadline_word, slot_direction, slot_index, slot_tag, slot_word,
};
use crate::hash::HashKey;
use crate::io::prefetch::prefetch;
use crate::io::region::Region;
use crate::packet::types::NetworkId;
use crate::sync::Mutex;

pub(super) const HOT_WORDS: usize = 8;
pub(super) const COLD_WORDS: usize = 4;
const BUCKET_SLOTS: usize = 8;
/// A tuple goes into the emptier of its buckets once the first one has this many: at the limit, all
/// find a place (filling the first one up loses one in 4,000) and one lookup in 20 needs the second.
const FIRST_CHOICE: usize = 6;
const SHARDS: usize = 256;
/// Entries that the packet which finds the table full looks at for such as have expired: 2 KiB of
/// memory, read in order.
const RECLAIM: u32 = 32;

/// The reply side has sent.
pub const SEEN_REPLY: u8 = 1;
/// Both sides have spoken and the first one again; TCP: it was established. For people only, as
/// `conntrack -L` shows it: nothing is evicted.
pub const ASSURED: u8 = 2;
/// The source was rewritten.
pub const SNAT: u8 = 4;
/// The destination was rewritten.
pub const DNAT: u8 = 8;

/// A connection's number, good until the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnId {
    pub(super) index: u32,
    pub(super) version: u32,
}

/// What a lookup found, copied out. Whole words: a copy made soon after of what was written in
/// bytes would have to wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The connection.
    pub id: ConnId,
    /// The tuple of the other direction.
    pub other: Tuple,
    meta: Meta,
    /// Until when it lives, in seconds.
    pub deadline: u32,
    /// Which of its directions the tuple is.
    pub direction: Direction,
}

impl Hit {
    /// The original direction of a connection that was just inserted.
    #[must_use]
    pub fn begun(id: ConnId, new: &NewConnection) -> Self {
        Self {
            id,
            other: new.reply,
            meta: Meta::new(id.version, new.state, new.flags, new.network),
            deadline: new.deadline,
            direction: Direction::Original,
        }
    }

    /// State of the protocol.
    #[must_use]
    #[inline]
    pub const fn state(&self) -> u8 {
        self.meta.state()
    }

    /// [`SEEN_REPLY`], [`ASSURED`], [`SNAT`], [`DNAT`].
    #[must_use]
    #[inline]
    pub const fn flags(&self) -> u8 {
        self.meta.flags()
    }

    /// The inside network.
    #[must_use]
    #[inline]
    pub const fn network(&self) -> NetworkId {
        self.meta.network()
    }
}

/// A connection to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewConnection {
    /// As its packets come.
    pub original: Tuple,
    /// As the replies will come.
    pub reply: Tuple,
    /// State of the protocol.
    pub state: u8,
    /// [`SNAT`], [`DNAT`] and the like.
    pub flags: u8,
    /// The inside network.
    pub network: NetworkId,
    /// DNAT rule or zero.
    pub rule: u32,
    /// Until when it lives, in seconds.
    pub deadline: u32,
}

/// What inserting did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insert {
    /// Somebody was faster: the original tuple has a connection already.
    Exists(Hit),
    /// No entry is free.
    Full,
    /// Done.
    Inserted(ConnId),
    /// The reply tuple belongs to another connection: take another port.
    ReplyTaken,
}

#[derive(Debug, Default)]
struct FreeList {
    /// Number of the first free entry, plus one.
    head: u32,
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
    mask: u64,
    key: HashKey,
    limit: u32,
    used: AtomicU32,
    high_water: AtomicU32,
    free: Mutex<FreeList>,
    /// Where the next packet that finds the table full looks.
    reclaim: AtomicU32,
    shards: Vec<Mutex<()>>,
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
        Self::with_entries(Region::file(path, Self::entry_words(limit))?, limit, key)
    }

    pub(super) fn entry_words(limit: u32) -> usize {
        limit as usize * (HOT_WORDS + COLD_WORDS)
    }

    pub(super) fn over(entries: Region, limit: u32) -> io::Result<Self> {
        Self::with_entries(entries, limit, HashKey::new(0, 0))
    }

    fn with_entries(entries: Region, limit: u32, key: HashKey) -> io::Result<Self> {
        // Two slots a connection, at most half of them used.
        let buckets = (limit as usize * 4).div_ceil(BUCKET_SLOTS).next_power_of_two();
        Ok(Self {
            entries,
            index: Region::anonymous(buckets * BUCKET_SLOTS)?,
            mask: buckets as u64 - 1,
            key,
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
        self.key.hash(tuple.addresses, tuple.rest)
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

    #[inline]
    pub(super) fn cold(&self, index: u32) -> Option<&[AtomicU64; COLD_WORDS]> {
        let base = self.limit as usize * HOT_WORDS;
        self.entries.words().get(base + index as usize * COLD_WORDS..)?.first_chunk()
    }

    /// Asks for the part of the index that a lookup will look at.
    #[inline]
    pub(crate) fn prefetch_index(&self, hash: u64) {
        if let Some(slot) = self.bucket(hash).first() {
            prefetch(slot);
        }
    }

    /// Asks for the entry that a lookup will probably find. The index should be there by now.
    #[inline]
    pub(crate) fn prefetch_entry(&self, hash: u64) {
        let tag = slot_tag(hash);
        let slots = self.bucket(hash).iter().map(|slot| slot.load(Ordering::Relaxed));
        for slot in slots.filter(|slot| slot >> 33 == tag && slot_index(*slot) != 0) {
            let index = slot_index(slot) - 1;
            if let (Some(hot), Some(cold)) = (self.hot(index), self.cold(index)) {
                prefetch(hot);
                prefetch(cold);
            }
        }
    }

    #[inline]
    fn buckets(&self, hash: u64) -> [&[AtomicU64]; 2] {
        [self.bucket(hash), self.bucket(hash >> 32)]
    }

    #[inline]
    fn bucket(&self, number: u64) -> &[AtomicU64] {
        #[allow(clippy::cast_possible_truncation, reason = "masked to the number of buckets")]
        let at = (number & self.mask) as usize * BUCKET_SLOTS;
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

    #[inline]
    fn find(&self, hash: u64, tuple: Tuple) -> Option<Hit> {
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

    /// Adds a connection: both tuples, or neither.
    pub fn insert(&self, new: &NewConnection, now: u32) -> Insert {
        let hashes = [self.hash(new.original), self.hash(new.reply)];
        // What has expired but not been swept must not stand in the way; it goes before the locks
        // are taken, because its other tuple may lie in a third shard.
        for (hash, tuple) in [(hashes[0], new.original), (hashes[1], new.reply)] {
            if let Some(stale) = self.find(hash, tuple).filter(|hit| hit.deadline <= now) {
                self.expire(stale.id.index, now);
            }
        }
        if self.len() >= self.limit {
            self.reclaim(now);
        }
        let _pair = self.lock_pair(hashes);
        if let Some(hit) = self.find(hashes[0], new.original) {
            self.totals.clashes.fetch_add(1, Ordering::Relaxed);
            return Insert::Exists(hit);
        }
        // A connection whose two directions look the same (a host talking to itself through one
        // port) cannot be told apart.
        if new.reply == new.original || self.find(hashes[1], new.reply).is_some() {
            return Insert::ReplyTaken;
        }
        let Some(index) = self.allocate() else {
            self.totals.full.fetch_add(1, Ordering::Relaxed);
            return Insert::Full;
        };
        let id = self.fill(index, new);
        let claimed = self.claim(hashes[1], index, Direction::Reply)
            && (self.claim(hashes[0], index, Direction::Original) || {
                self.unclaim(hashes[1], index, Direction::Reply);
                false
            });
        if !claimed {
            self.release(id);
            self.totals.full.fetch_add(1, Ordering::Relaxed);
            return Insert::Full;
        }
        self.totals.inserted.fetch_add(1, Ordering::Relaxed);
        Insert::Inserted(id)
    }

    /// Makes room in a full table: ends what has expired among the next few entries. All who come
    /// share one round over the table, so that the work of each is bounded and no expired entry stays
    /// hidden.
    #[cold]
    fn reclaim(&self, now: u32) {
        let from = self.reclaim.fetch_add(RECLAIM, Ordering::Relaxed);
        for step in 0..RECLAIM {
            self.expire(from.wrapping_add(step) % self.limit, now);
        }
    }

    fn lock_pair(&self, hashes: [u64; 2]) -> [Option<MutexGuard<'_, ()>>; 2] {
        #[allow(clippy::cast_possible_truncation, reason = "reduced to the number of shards")]
        let [a, b] = hashes.map(|hash| (hash >> 16) as usize % SHARDS);
        let lock = |shard: usize| self.shards.get(shard).map(Mutex::lock);
        let first = lock(a.min(b));
        [first, if a == b { None } else { lock(a.max(b)) }]
    }

    fn allocate(&self) -> Option<u32> {
        let mut free = self.free.lock();
        let index = if let Some(index) = free.head.checked_sub(1) {
            let next = self.hot(index)?[7].load(Ordering::Relaxed);
            free.head = u32::try_from(next).unwrap_or(0);
            index
        } else {
            let fresh = self.high_water.load(Ordering::Relaxed);
            if fresh >= self.limit {
                return None;
            }
            self.high_water.store(fresh + 1, Ordering::Relaxed);
            fresh
        };
        self.used.fetch_add(1, Ordering::Relaxed);
        Some(index)
    }

    fn fill(&self, index: u32, new: &NewConnection) -> ConnId {
        let (Some(hot), Some(cold)) = (self.hot(index), self.cold(index)) else {
            return ConnId { index, version: 0 };
        };
        let version = Meta(hot[4].load(Ordering::Relaxed)).version().wrapping_add(1) | LIVE;
        // Whoever reads a word of the new connection must not find the old one's version after it:
        // the entry was marked free before, and this keeps what follows behind that. It pairs with
        // the fence of `read`.
        fence(Ordering::Release);
        hot[0].store(new.original.addresses, Ordering::Relaxed);
        hot[1].store(new.original.rest, Ordering::Relaxed);
        hot[2].store(new.reply.addresses, Ordering::Relaxed);
        hot[3].store(new.reply.rest, Ordering::Relaxed);
        hot[5].store(deadline_word(version, new.deadline), Ordering::Relaxed);
        hot[6].store(u64::from(new.rule), Ordering::Relaxed);
        for counter in cold {
            counter.store(0, Ordering::Relaxed);
        }
        let meta = Meta::new(version, new.state, new.flags, new.network);
        hot[4].store(meta.0, Ordering::Release);
        ConnId { index, version }
    }

    fn claim(&self, hash: u64, index: u32, direction: Direction) -> bool {
        let slot = slot_word(hash, index, direction);
        let [first, second] = self.buckets(hash);
        let used = |bucket: &[AtomicU64]| {
            bucket.iter().filter(|cell| cell.load(Ordering::Relaxed) != 0).count()
        };
        let order = if used(first) < FIRST_CHOICE || used(first) <= used(second) {
            [first, second]
        } else {
            [second, first]
        };
        order.into_iter().flatten().any(|cell| {
            cell.load(Ordering::Relaxed) == 0
                && cell.compare_exchange(0, slot, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    fn unclaim(&self, hash: u64, index: u32, direction: Direction) {
        let slot = slot_word(hash, index, direction);
        for cell in self.buckets(hash).into_iter().flatten() {
            if cell.compare_exchange(slot, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }

    fn release(&self, id: ConnId) {
        let Some(hot) = self.hot(id.index) else { return };
        let meta = Meta::new(id.version.wrapping_add(1), 0, 0, NetworkId(0));
        hot[4].store(meta.0, Ordering::Release);
        let mut free = self.free.lock();
        hot[7].store(u64::from(free.head), Ordering::Relaxed);
        free.head = id.index + 1;
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    /// Ends a connection; false when it has ended already.
    fn remove_if(&self, index: u32, ends: impl Fn(&[AtomicU64; HOT_WORDS], Meta) -> bool) -> bool {
        let Some(hot) = self.hot(index) else { return false };
        let tuples = || {
            let tuple = |at: usize| Tuple {
                addresses: hot[at].load(Ordering::Acquire),
                rest: hot[at + 1].load(Ordering::Acquire),
            };
            [tuple(0), tuple(2)]
        };
        let meta = Meta(hot[4].load(Ordering::Acquire));
        if meta.version() & LIVE == 0 || !ends(hot, meta) {
            return false;
        }
        let hashes = tuples().map(|tuple| self.hash(tuple));
        let _pair = self.lock_pair(hashes);
        // Between the look and the locks it may have ended and been used again.
        let now = Meta(hot[4].load(Ordering::Acquire));
        if now.version() != meta.version()
            || !ends(hot, now)
            || tuples().map(|tuple| self.hash(tuple)) != hashes
        {
            return false;
        }
        self.unclaim(hashes[0], index, Direction::Original);
        self.unclaim(hashes[1], index, Direction::Reply);
        self.release(ConnId { index, version: meta.version() });
        true
    }

    /// Ends entry `index` if its time has come.
    pub fn expire(&self, index: u32, now: u32) -> bool {
        let expired =
            self.remove_if(index, |hot, _| deadline_of(hot[5].load(Ordering::Relaxed)) <= now);
        if expired {
            self.totals.expired.fetch_add(1, Ordering::Relaxed);
        }
        expired
    }

    /// Ends a connection; false when it has ended already.
    pub fn remove(&self, id: ConnId) -> bool {
        let removed = self.remove_if(id.index, |_, meta| meta.version() == id.version);
        self.totals.flushed.fetch_add(u64::from(removed), Ordering::Relaxed);
        removed
    }

    /// Takes back a packet of the side that began, which was noted but never sent. A connection of
    /// which nothing is left, and that nobody has answered, ends: true.
    pub fn take_back(&self, id: ConnId, bytes: u64) -> bool {
        let (Some(hot), Some(cold)) = (self.hot(id.index), self.cold(id.index)) else {
            return false;
        };
        if Meta(hot[4].load(Ordering::Relaxed)).version() != id.version {
            return false;
        }
        let [packets, octets, ..] = cold;
        let left = packets.load(Ordering::Relaxed).saturating_sub(1);
        packets.store(left, Ordering::Relaxed);
        octets.store(octets.load(Ordering::Relaxed).saturating_sub(bytes), Ordering::Relaxed);
        let ended = left == 0
            && self.remove_if(id.index, |_, meta| {
                meta.version() == id.version && meta.flags() & SEEN_REPLY == 0
            });
        self.totals.expired.fetch_add(u64::from(ended), Ordering::Relaxed);
        ended
    }

    /// What a connection found earlier is now: an earlier frame of the same batch may have changed
    /// it. `None` when it has ended.
    #[must_use]
    #[inline]
    pub fn refresh(&self, hit: &Hit) -> Option<Hit> {
        let hot = self.hot(hit.id.index)?;
        let meta = Meta(hot[4].load(Ordering::Acquire));
        let deadline = deadline_of(hot[5].load(Ordering::Relaxed));
        (meta.version() == hit.id.version).then_some(Hit { meta, deadline, ..*hit })
    }

    /// Notes packets of a direction and, when it changed, state, flags and deadline. False, and
    /// nothing is noted: another worker has changed the state since `hit` was read, so that `state`
    /// may not be what follows.
    #[inline]
    pub fn touch(&self, hit: &Hit, bytes: u64, state: u8, flags: u8, deadline: u32) -> bool {
        let (Some(hot), Some(cold)) = (self.hot(hit.id.index), self.cold(hit.id.index)) else {
            return true;
        };
        let meta = Meta(hot[4].load(Ordering::Relaxed));
        if meta.version() != hit.id.version {
            return true;
        }
        if meta.state() != hit.state() {
            return false;
        }
        if meta.state() != state || meta.flags() | flags != meta.flags() {
            let next = Meta::new(meta.version(), state, meta.flags() | flags, meta.network());
            let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
            if hot[4].compare_exchange(meta.0, next.0, success, failure).is_err() {
                return false;
            }
        }
        if hit.deadline != deadline {
            let was = hot[5].load(Ordering::Relaxed);
            let next = deadline_word(hit.id.version, deadline);
            // Since the look at the version the entry may have become another connection's. Should
            // somebody else have moved this one's deadline just now, theirs is as good.
            if was >> 32 == next >> 32 {
                let _ = hot[5].compare_exchange(was, next, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        // Counters may get a packet of the connection that was here before: for people only.
        // Each direction is counted by the one worker that receives it, so load and store suffice.
        let [packets_o, bytes_o, packets_r, bytes_r] = cold;
        let (packet_cell, byte_cell) = match hit.direction {
            Direction::Original => (packets_o, bytes_o),
            Direction::Reply => (packets_r, bytes_r),
        };
        packet_cell.store(packet_cell.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        byte_cell.store(byte_cell.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
        true
    }

    /// Counts a new connection that found no outside port.
    pub fn note_ports_exhausted(&self) {
        self.totals.ports_exhausted.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
