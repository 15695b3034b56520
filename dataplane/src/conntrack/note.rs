//! What packets change in a connection that exists: state, deadline, counters. Without a lock.

use std::sync::atomic::Ordering;

use super::entry::Hit;
use super::table::ConnTable;
use super::tuple::Direction;
use super::words::{Meta, deadline_of, deadline_word};

impl ConnTable {
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
}
