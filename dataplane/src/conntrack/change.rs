//! Entering connections and ending them: under the locks of both tuples.

use std::sync::atomic::{Ordering, fence};

use super::accounts::{Payer, is_open};
use super::entry::{ConnId, DNAT, Hit, Insert, MAPPED, NewConnection, SEEN_REPLY, SNAT};
use super::free::list_of;
use super::key::{Hot, Key};
use super::mappings::Inside;
use super::sctp::SctpState;
use super::table::{ConnTable, SHARDS};
use super::taken::Ports;
use super::tcp::TcpState;
use super::tuple::Direction;
use super::watch::{Change, EndReason};
use super::words::{LIVE, Meta, deadline_of, deadline_word, rule_parts, slot_tag, slot_word};
use crate::packet::types::{NetworkId, ip_proto};
use crate::sync::atomic::AtomicU64;
use crate::sync::{Mutex, MutexGuard};

/// The number of an entry that has expired and stands in the way.
struct Stale(u32);

/// A tuple goes into the emptier of its buckets once the first one has this many: at the limit, one in a
/// million finds no place (with 4, one in 440,000) and one lookup in four needs the second bucket; at half
/// the limit, one in six.
const FIRST_CHOICE: usize = 3;
/// How often a packet makes room, as others make room for theirs and take it first: beside floods of two workers one
/// in 600 was too late once.
pub(crate) const TRIES: u32 = 4;
/// Entries that the packet which finds the table full looks at for such as have expired: 2 KiB of
/// memory, read in order.
const RECLAIM: u32 = 32;

/// Sets the rule of an entry that nobody can find yet, whose tuples and deadline have been written.
pub(super) fn set_rule<K: Key>(hot: &Hot<'_, K::Cells>, rule: u32) {
    let [original, reply] = [hot.original, hot.reply].map(K::last);
    for (word, part) in [original, reply, hot.deadline].into_iter().zip(rule_parts(rule)) {
        word.store(word.load(Ordering::Relaxed) | part, Ordering::Relaxed);
    }
}

impl<K: Key> ConnTable<K> {
    /// Adds a connection: both tuples, or neither.
    pub fn insert(&self, new: &NewConnection<K>, now: u32) -> Insert<K> {
        let inserted =
            self.insert_hashed(new, [self.hash(new.original), self.hash(new.reply)], now);
        if inserted == Insert::Full {
            self.note_full();
        }
        inserted
    }

    /// Counts a connection that is refused because there is no room.
    pub(crate) fn note_full(&self) {
        self.totals.full.fetch_add(1, Ordering::Relaxed);
    }

    /// [`ConnTable::insert`] with the hashes of both tuples computed before, for a caller that may find
    /// room elsewhere: [`Insert::Full`] is not counted.
    pub(crate) fn insert_hashed(
        &self,
        new: &NewConnection<K>,
        hashes: [u64; 2],
        now: u32,
    ) -> Insert<K> {
        let mut can_go = true;
        if self.room.is_full() {
            // Whoever may have no more makes nobody go.
            let payer = Payer::of(new.original, new.reply, new.flags);
            if let Err(overdrawn) = self.room.accounts().may_book(&payer, now) {
                return Insert::Overdrawn(overdrawn);
            }
            if self.reclaim(now) == 0 && self.room.is_full() {
                can_go = self.evict_for(new);
            }
        }
        let mut left = TRIES;
        loop {
            match self.try_insert(new, hashes, now) {
                Ok(Insert::Full) => {
                    left -= 1;
                    if left == 0 || !self.makes_room(new, hashes, can_go) {
                        return Insert::Full;
                    }
                }
                Ok(insert) => return insert,
                // What has expired but not been swept must not stand in the way. It goes without the
                // locks, because its other tuple may lie in a third shard.
                Err(Stale(index)) => {
                    self.expire(index, now);
                }
            }
        }
    }

    /// Whether there may be room now for a connection that had none, by whoever's doing. `can_go`: some
    /// connection could go for it, wherever it lies.
    #[cold]
    fn makes_room(&self, new: &NewConnection<K>, hashes: [u64; 2], can_go: bool) -> bool {
        let is_full = self.room.is_full();
        if is_full && can_go && self.evict_for(new) {
            return true;
        }
        self.evict_near(hashes, new) || !is_full
    }

    fn try_insert(
        &self,
        new: &NewConnection<K>,
        hashes: [u64; 2],
        now: u32,
    ) -> Result<Insert<K>, Stale> {
        let _pair = self.lock_pair(hashes);
        let live =
            |hit: Hit<K>| if hit.deadline > now { Ok(hit) } else { Err(Stale(hit.id.index)) };
        if let Some(hit) = self.find(hashes[0], new.original) {
            let hit = live(hit)?;
            self.totals.clashes.fetch_add(1, Ordering::Relaxed);
            return Ok(Insert::Exists(hit));
        }
        if let Some(hit) = self.find(hashes[1], new.reply) {
            live(hit)?;
            return Ok(Insert::ReplyTaken);
        }
        // A connection whose two directions look the same (a host talking to itself through one
        // port) cannot be told apart.
        if new.reply == new.original {
            return Ok(Insert::ReplyTaken);
        }
        Ok(self.enter(new, hashes, now))
    }

    /// Whether a tuple with this hash probably has a connection, expired or not. False: it has none.
    pub(crate) fn may_be_taken(&self, hash: u64) -> bool {
        let tag = slot_tag(hash);
        self.buckets(hash).into_iter().any(|bucket| {
            // Each slot, without a branch for each. An empty one may look like a tuple whose tag is zero.
            let is = |slot: &AtomicU64| slot.load(Ordering::Relaxed) >> 33 == tag;
            bucket.iter().fold(false, |found, slot| found | is(slot))
        })
    }

    /// The outside ports towards the destination of which this is an answer.
    #[inline]
    pub(crate) fn ports_towards(&self, reply: K) -> Ports<'_> {
        self.taken.towards(&self.hash, reply)
    }

    /// Enters a connection whose tuples, locked, are free.
    fn enter(&self, new: &NewConnection<K>, hashes: [u64; 2], now: u32) -> Insert<K> {
        let payer = Payer::of(new.original, new.reply, new.flags);
        let is_open =
            is_open(new.original.proto(), Meta::new(0, new.state, new.flags, new.network));
        if let Err(overdrawn) = self.room.accounts().book(payer, is_open, now) {
            return Insert::Overdrawn(overdrawn);
        }
        let Some(index) = self.allocate(new) else {
            self.room.accounts().unbook(payer, is_open);
            return Insert::Full;
        };
        let id = if new.flags & MAPPED == 0 || self.enter_mapping(new) {
            self.fill(index, new)
        } else {
            self.fill(index, &NewConnection { flags: new.flags & !MAPPED, ..*new })
        };
        let claimed = self.claim(hashes[1], index, Direction::Reply)
            && (self.claim(hashes[0], index, Direction::Original) || {
                self.unclaim(hashes[1], index, Direction::Reply);
                false
            });
        if !claimed {
            self.release(id);
            return Insert::Full;
        }
        self.totals.inserted.fetch_add(1, Ordering::Relaxed);
        if self.watchers.any() {
            self.tell(Change::New, index);
        }
        Insert::Inserted(id)
    }

    fn enter_mapping(&self, new: &NewConnection<K>) -> bool {
        let inside = Inside::of(new.original, new.reply.dst());
        self.room.mappings().enter(inside, new.reply.dst_port())
    }

    /// Makes room in a full table: ends what has expired among the next few entries, and says how many
    /// that was. All who come share one round over the table, so that the work of each is bounded and
    /// no expired entry stays hidden.
    #[cold]
    pub(crate) fn reclaim(&self, now: u32) -> u32 {
        let from = self.reclaim.fetch_add(RECLAIM, Ordering::Relaxed);
        let used = self.high_water();
        let next = (0..RECLAIM).filter_map(|step| from.wrapping_add(step).checked_rem(used));
        next.map(|index| u32::from(self.expire(index, now))).sum()
    }

    fn lock_pair(&self, hashes: [u64; 2]) -> [Option<MutexGuard<'_, ()>>; 2] {
        #[allow(clippy::cast_possible_truncation, reason = "reduced to the number of shards")]
        let [a, b] = hashes.map(|hash| (hash >> 16) as usize % SHARDS);
        let lock = |shard: usize| self.shards.get(shard).map(Mutex::lock);
        let first = lock(a.min(b));
        [first, if a == b { None } else { lock(a.max(b)) }]
    }

    fn allocate(&self, new: &NewConnection<K>) -> Option<u32> {
        if !self.room.take() {
            return None;
        }
        let index = self.take_free(list_of(new.original, new.reply, new.flags));
        if index.is_none() {
            self.room.give_back();
        }
        index
    }

    fn fill(&self, index: u32, new: &NewConnection<K>) -> ConnId {
        let Some(hot) = self.hot(index) else { return ConnId { index, version: 0 } };
        let version = Meta(hot.meta.load(Ordering::Relaxed)).version().wrapping_add(1) | LIVE;
        // Whoever reads a word of the new connection must not find the old one's version after it:
        // the entry was marked free before, and this keeps what follows behind that. It pairs with
        // the fence of `read`.
        fence(Ordering::Release);
        new.original.store(hot.original);
        new.reply.store(hot.reply);
        hot.deadline.store(deadline_word(version, new.deadline), Ordering::Relaxed);
        // Pairs with the swap of `set_way`: whoever notes a way after this sees that the connection it
        // was for has ended.
        for way in hot.ways {
            way.store(0, Ordering::Release);
        }
        if new.flags & DNAT != 0 {
            set_rule::<K>(&hot, new.rule);
        }
        for direction in [Direction::Original, Direction::Reply] {
            if let Some(cold) = self.cold(index, direction) {
                cold.set_counters([0, 0]);
            }
        }
        if new.flags & SNAT != 0 {
            self.ports_towards(new.reply).enter(new.reply.dst_port());
        }
        let meta = Meta::new(version, new.state, new.flags, new.network);
        hot.meta.store(meta.0, Ordering::Release);
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
        let [original, reply] =
            [hot.original, hot.reply].map(|cells| K::load(cells, Ordering::Relaxed));
        let meta = Meta::new(id.version.wrapping_add(1), 0, 0, NetworkId(0));
        // What a packet changes in this moment is in the old word, or not at all.
        let was = Meta(hot.meta.swap(meta.0, Ordering::AcqRel));
        let payer = Payer::of(original, reply, was.flags());
        self.room.accounts().unbook(payer, is_open(original.proto(), was));
        if was.flags() & SNAT != 0 {
            self.ports_towards(reply).leave(reply.dst_port());
        }
        if was.flags() & MAPPED != 0 {
            self.room.mappings().release(Inside::of(original, reply.dst()));
        }
        self.give_free(id.index, list_of(original, reply, was.flags()));
        self.room.give_back();
    }

    /// Tells those who watch of a connection as it is.
    #[cold]
    pub(super) fn tell(&self, change: Change, index: u32) {
        if let Some(connection) = self.connection(index) {
            self.watchers.tell(change, &connection);
        }
    }

    /// Ends a connection; false when it has ended already.
    pub(super) fn remove_if(
        &self,
        index: u32,
        reason: EndReason,
        ends: impl Fn(&Hot<'_, K::Cells>, Meta) -> bool,
    ) -> bool {
        let Some(hot) = self.hot(index) else { return false };
        let tuples = || [hot.original, hot.reply].map(|cells| K::load(cells, Ordering::Acquire));
        let meta = Meta(hot.meta.load(Ordering::Acquire));
        if meta.version() & LIVE == 0 || !ends(&hot, meta) {
            return false;
        }
        let hashes = tuples().map(|tuple| self.hash(tuple));
        let _pair = self.lock_pair(hashes);
        // Between the look and the locks it may have ended and been used again.
        let now = Meta(hot.meta.load(Ordering::Acquire));
        if now.version() != meta.version()
            || !ends(&hot, now)
            || tuples().map(|tuple| self.hash(tuple)) != hashes
        {
            return false;
        }
        if self.watchers.any() {
            let [proto, _] = tuples().map(Key::proto);
            let is_over = match proto {
                ip_proto::TCP => TcpState::from_u8(now.state()).is_some_and(TcpState::is_over),
                // It begins in the state in which it ends.
                ip_proto::SCTP if now.flags() & SEEN_REPLY != 0 => {
                    SctpState::from_u8(now.state()).is_some_and(SctpState::is_over)
                }
                _ => false,
            };
            let closed = reason == EndReason::Timeout && is_over;
            let reason = if closed { EndReason::Closed } else { reason };
            self.tell(Change::Destroy(reason), index);
        }
        self.unclaim(hashes[0], index, Direction::Original);
        self.unclaim(hashes[1], index, Direction::Reply);
        self.release(ConnId { index, version: meta.version() });
        true
    }

    /// Ends entry `index` if its time has come.
    pub fn expire(&self, index: u32, now: u32) -> bool {
        let expired = self.remove_if(index, EndReason::Timeout, |hot, _| {
            deadline_of(hot.deadline.load(Ordering::Relaxed)) <= now
        });
        if expired {
            self.totals.expired.fetch_add(1, Ordering::Relaxed);
        }
        expired
    }

    /// Ends a connection; false when it has ended already.
    pub fn remove(&self, id: ConnId) -> bool {
        self.end(id, EndReason::Flushed)
    }

    /// The same for another reason than that somebody wanted it.
    pub fn end(&self, id: ConnId, reason: EndReason) -> bool {
        let removed = self.remove_if(id.index, reason, |_, meta| meta.version() == id.version);
        self.totals.flushed.fetch_add(u64::from(removed), Ordering::Relaxed);
        removed
    }

    /// Takes back a packet of the side that began, which was noted but never sent. A connection of
    /// which nothing is left, and that nobody has answered, ends: true.
    pub fn take_back(&self, id: ConnId, bytes: u64) -> bool {
        let original = self.cold(id.index, Direction::Original);
        let (Some(hot), Some(cold)) = (self.hot(id.index), original) else { return false };
        if Meta(hot.meta.load(Ordering::Relaxed)).version() != id.version {
            return false;
        }
        let left = cold.take_back(bytes);
        let ended = left == 0
            && self.remove_if(id.index, EndReason::NoNeighbor, |_, meta| {
                meta.version() == id.version && meta.flags() & SEEN_REPLY == 0
            });
        self.totals.expired.fetch_add(u64::from(ended), Ordering::Relaxed);
        ended
    }
}
