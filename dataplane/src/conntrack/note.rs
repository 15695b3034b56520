//! What packets change in a connection that exists: state, deadline, counters. Without a lock.

use std::sync::atomic::{Ordering, fence};

use super::accounts::{Payer, is_open};
use super::entry::{ConnId, DNAT, Hit};
use super::key::{Hot, Key};
use super::table::ConnTable;
use super::tuple::Direction;
use super::watch::Change;
use super::window::Side;
use super::words::{Meta, deadline_of, side_of, way_of, way_word, with_deadline};

impl<K: Key> ConnTable<K> {
    /// What a connection found earlier is now: an earlier frame of the same batch may have changed
    /// it. `None` when it has ended.
    #[must_use]
    #[inline]
    pub fn refresh(&self, hit: &Hit<K>) -> Option<Hit<K>> {
        let hot = self.hot(hit.id.index)?;
        let meta = Meta(hot.meta.load(Ordering::Acquire));
        let deadline = deadline_of(hot.deadline.load(Ordering::Relaxed));
        (meta.version() == hit.id.version).then_some(Hit { meta, deadline, ..*hit })
    }

    /// A direction of a connection that was found earlier. `None` when it has ended.
    #[inline]
    pub(crate) fn at(&self, id: ConnId, direction: Direction) -> Option<Hit<K>> {
        let hot = self.hot(id.index)?;
        let meta = Meta(hot.meta.load(Ordering::Acquire));
        let other = match direction {
            Direction::Original => hot.reply,
            Direction::Reply => hot.original,
        };
        let other = K::load(other, Ordering::Relaxed);
        let deadline = deadline_of(hot.deadline.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let again = Meta(hot.meta.load(Ordering::Relaxed));
        let holds = meta.version() == id.version && again.version() == id.version;
        holds.then_some(Hit { id, other, meta, deadline, direction })
    }

    /// Notes packets of a direction and, when it changed, state, flags and deadline. False, and
    /// nothing is noted: another worker has changed the state since `hit` was read, so that `state`
    /// may not be what follows.
    // Called by both families, and so not inlined by itself; most packets change nothing but a counter.
    #[inline(always)]
    pub fn touch(&self, hit: &Hit<K>, bytes: u64, state: u8, flags: u8, deadline: u32) -> bool {
        let cold = self.cold(hit.id.index, hit.direction);
        let (Some(hot), Some(cold)) = (self.hot(hit.id.index), cold) else { return true };
        let meta = Meta(hot.meta.load(Ordering::Relaxed));
        if meta.version() != hit.id.version {
            return true;
        }
        if meta.state() != hit.state() {
            return false;
        }
        if (meta.state() != state || meta.flags() | flags != meta.flags())
            && !self.change(hit.id.index, &hot, meta, (state, flags))
        {
            return false;
        }
        if hit.deadline != deadline {
            let was = hot.deadline.load(Ordering::Relaxed);
            // Since the look at the version the entry may have become another connection's. Should
            // somebody else have moved this one's deadline just now, theirs is as good.
            if let Some(next) = with_deadline(was, hit.id.version, deadline) {
                let _ =
                    hot.deadline.compare_exchange(was, next, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        // Counters may get a packet of the connection that was here before: for people only.
        cold.count(bytes);
        true
    }

    /// Gives a connection another state, and flags that it has not. False: another worker was there first.
    #[inline(never)]
    fn change(
        &self,
        index: u32,
        hot: &Hot<'_, K::Cells>,
        meta: Meta,
        (state, flags): (u8, u8),
    ) -> bool {
        let next = Meta::new(meta.version(), state, meta.flags() | flags, meta.network());
        // Read before: should the entry be another connection's by now, the exchange fails.
        let tuples = [hot.original, hot.reply].map(|cells| K::load(cells, Ordering::Acquire));
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        if hot.meta.compare_exchange(meta.0, next.0, success, failure).is_err() {
            return false;
        }
        self.note_open(tuples, meta, next);
        if self.watchers.any_updates() {
            self.tell(Change::Update, index);
        }
        true
    }

    /// Gives a connection flags that it has not, whatever becomes of it meanwhile.
    #[cold]
    pub(crate) fn mark(&self, id: ConnId, flags: u8) {
        let Some(hot) = self.hot(id.index) else { return };
        let marked = |word: u64| {
            let meta = Meta(word);
            let flags = meta.flags() | flags;
            (meta.version() == id.version)
                .then(|| Meta::new(meta.version(), meta.state(), flags, meta.network()).0)
        };
        let _ = hot.meta.fetch_update(Ordering::AcqRel, Ordering::Relaxed, marked);
    }

    /// The DNAT rule of a connection, or zero.
    pub(crate) fn rule_of(&self, hit: &Hit<K>) -> u32 {
        if hit.flags() & DNAT == 0 { 0 } else { self.rule(hit.id.index) }
    }

    /// Whether a connection has neither ended nor expired.
    pub(crate) fn is_live(&self, id: ConnId, now: u32) -> bool {
        self.at(id, Direction::Original).is_some_and(|hit| hit.deadline > now)
    }

    /// Tells the account of a connection that has been answered, or that begins anew.
    fn note_open(&self, [original, reply]: [K; 2], was: Meta, is: Meta) {
        let proto = original.proto();
        let open = is_open(proto, is);
        if open != is_open(proto, was) {
            self.room.accounts().reopen(Payer::of(original, reply, is.flags()), open);
        }
    }

    /// What the side that sends in the hit's direction has said, and what the other has.
    #[inline]
    pub(crate) fn sides(&self, hit: &Hit<K>) -> [Side; 2] {
        [hit.direction, hit.direction.reversed()].map(|direction| {
            let cold = self.cold(hit.id.index, direction);
            let (Some(hot), Some(cold)) = (self.hot(hit.id.index), cold) else {
                return Side::default();
            };
            // First: the numbers that it goes with, or later ones.
            let way = hot.way(direction).load(Ordering::Acquire);
            let (end, ack) = cold.numbers();
            Side::from_words(end, ack, side_of(way))
        })
    }

    /// Notes what the side that sends in the hit's direction has said now.
    #[inline]
    pub(crate) fn set_side(&self, hit: &Hit<K>, side: Side) {
        let cold = self.cold(hit.id.index, hit.direction);
        let (Some(hot), Some(cold)) = (self.hot(hit.id.index), cold) else { return };
        let (end, ack, rest) = side.to_words();
        cold.set_numbers(end, ack);
        let cell = hot.way(hit.direction);
        let was = cell.load(Ordering::Relaxed);
        let next = way_word(way_of(was), rest);
        if next != was {
            let (success, failure) = (Ordering::Release, Ordering::Relaxed);
            let _ = cell.compare_exchange(was, next, success, failure);
        }
        // Since the lookup the entry may have become another connection's, which now has this one's
        // numbers. Without a window it knows of none, and passes more.
        if Meta(hot.meta.load(Ordering::Acquire)).version() != hit.id.version {
            cell.store(0, Ordering::Relaxed);
        }
    }

    /// What was noted last of how packets of this direction go; zero: nothing.
    #[inline]
    pub(crate) fn way(&self, hit: &Hit<K>) -> u64 {
        let hot = self.hot(hit.id.index);
        hot.map_or(0, |hot| way_of(hot.way(hit.direction).load(Ordering::Relaxed)))
    }

    /// Notes a way, which no worker but this one goes.
    pub(crate) fn set_way(&self, hit: &Hit<K>, way: u64) {
        let Some(hot) = self.hot(hit.id.index) else { return };
        let cell = hot.way(hit.direction);
        let was = cell.load(Ordering::Relaxed);
        if way_of(was) == way {
            return;
        }
        let next = way_word(way, side_of(was));
        cell.swap(next, Ordering::AcqRel);
        // Since the lookup the entry may have become another connection's, which has other ways and
        // another window. Nobody has gone this one yet: only we would, and we are here.
        if Meta(hot.meta.load(Ordering::Acquire)).version() != hit.id.version {
            let _ = cell.compare_exchange(next, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}
