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
//! that add, move or remove hold the lock (`change`); refreshing an entry is a compare-and-swap of
//! its value. A learned entry is refreshed at most once a second, so that a busy pair of hosts does not
//! write to a shared cache line for each frame.
//!
//! Limits: `limit` learned and static entries, `per_port` learned ones behind one port. A port at its
//! limit loses its own oldest entry; at the table's limit the port with the most entries loses its
//! oldest, at the limit of a network that has one the port in it with the most; with both buckets full, the one of them whose port has the most goes. Local entries
//! (endpoints' own MACs) and static ones never do. Where there is none to go, the MAC is not entered
//! and the refusal counted; frames to it are flooded. How often a MAC may move, and a port make
//! changes, is bounded too (`members`).
//!
//! Who has the last word: local over static over learned.

mod change;
mod copy;
mod members;
mod slot;

use std::io;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use self::members::Members;
pub(crate) use self::slot::network_of;
use self::slot::{Value, entry_of, key_word};
use crate::engine::{FdbEntry, FdbKind, FdbStats};
use crate::hash::{HashKey, TableHash};
use crate::io::prefetch::prefetch;
use crate::io::region::Region;
use crate::limits::Peak;
use crate::packet::types::{Mac, NetworkId, PortId};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU32, AtomicU64};

const SLOTS: usize = 4;
const WORDS: usize = SLOTS * 2;

/// The table. Shared by all workers and control.
#[derive(Debug)]
pub struct Fdb {
    region: Region,
    mask: u64,
    hash: TableHash,
    limit: u32,
    /// Learned and static entries.
    used: AtomicU32,
    peak: Peak,
    moves: AtomicU64,
    evictions: AtomicU64,
    refused: AtomicU64,
    changes: AtomicU64,
    per_port: u32,
    writer: Mutex<Members>,
}

/// What learning did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// Known there already.
    Known,
    /// The MAC is static or local at another port, or another worker has just seen it there, or this
    /// port has taken as many over in this second as it may; the entry stays.
    Kept,
    /// It was behind another port before.
    Moved,
    /// It moves to and fro more than a host does: the entry stays for a while.
    Flapping,
    /// New.
    New,
    /// No room: everything in its buckets is static or local, or its port has pushed out as many in
    /// this second as it may.
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

impl Fdb {
    /// A table for `limit` learned entries, half full at the limit; `per_port` of them behind one port.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(limit: u32, per_port: u32, key: HashKey) -> io::Result<Self> {
        let buckets = (limit.max(16) as usize * 2 / SLOTS).next_power_of_two();
        Ok(Self {
            region: Region::anonymous(buckets * WORDS)?,
            mask: buckets as u64 - 1,
            hash: TableHash::new(key),
            limit: limit.max(1),
            used: AtomicU32::new(0),
            peak: Peak::default(),
            moves: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            per_port: per_port.max(1),
            writer: Mutex::new(Members::new(buckets * SLOTS)),
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
            let (Some(word), Some(value)) = (bucket.get(at), bucket.get((at + 1) % WORDS)) else {
                break;
            };
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
        self.insert(network, vlan, mac, port, FdbKind::Learned, now)
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

    /// All entries.
    #[must_use]
    pub fn entries(&self, now: u32, ageing: impl Fn(NetworkId) -> Duration) -> Vec<FdbEntry> {
        let slots = self.region.words().chunks_exact(2);
        slots
            .filter_map(|slot| {
                let [word, cell] = slot else { return None };
                let entry = entry_of(word, cell, now)?;
                let aged =
                    matches!(entry.kind, FdbKind::Learned) && entry.age > ageing(entry.network);
                (!aged).then_some(entry)
            })
            .collect()
    }

    /// Learned and static entries now.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Learned and static entries at most since the start.
    pub(crate) fn peak(&self) -> u32 {
        self.peak.value()
    }

    /// Learned entries behind the port that has the most: now, and at most since the start.
    pub(crate) fn heaviest(&self) -> (u32, u32) {
        self.writer.lock().most()
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

#[cfg(test)]
mod tests;
