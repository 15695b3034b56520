//! A copy of the table to try things out on, made while workers go on.

use std::io;
use std::sync::atomic::Ordering;

use super::Fdb;
use super::members::{Members, Slot};
use crate::engine::FdbKind;
use crate::io::region::Region;
use crate::limits::Peak;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU32, AtomicU64};

/// Slots copied under the lock at a time: 24 KiB, some microseconds, for which a worker that learns waits.
const AT_A_TIME: Slot = 1024;

impl Fdb {
    /// A copy to try things out on. A MAC that moves meanwhile may be in it where it was or where it is; which
    /// entries of a port have been heard from at the same time is not told apart.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub(crate) fn copy(&self) -> io::Result<Self> {
        let words = self.region.words();
        let same = |counter: &AtomicU64| AtomicU64::new(counter.load(Ordering::Relaxed));
        let slots = words.len() / 2;
        let copy = Self {
            region: Region::anonymous(words.len())?,
            mask: self.mask,
            hash: self.hash.clone(),
            limit: self.limit,
            used: AtomicU32::new(0),
            peak: Peak::default(),
            moves: same(&self.moves),
            evictions: same(&self.evictions),
            refused: same(&self.refused),
            changes: same(&self.changes),
            per_port: self.per_port,
            writer: Mutex::new(Members::new(slots)),
        };
        let mut members = copy.writer.lock();
        let slots = Slot::try_from(slots).unwrap_or(Slot::MAX);
        for first in (1..=slots).step_by(AT_A_TIME as usize) {
            let some = first..slots.saturating_add(1).min(first.saturating_add(AT_A_TIME));
            let theirs = self.writer.lock();
            for slot in some.clone() {
                copy.copy_slot(self, slot);
            }
            members.copy_slots(&theirs, some);
        }
        members.copy_ports(&self.writer.lock());
        copy.enlist_all(&mut members, slots);
        drop(members);
        Ok(copy)
    }

    fn copy_slot(&self, from: &Self, slot: Slot) {
        let (Some(ours), Some(theirs)) = (self.slot(slot), from.slot(slot)) else { return };
        for (ours, theirs) in [(ours.0, theirs.0), (ours.1, theirs.1)] {
            ours.store(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Lists what was copied.
    fn enlist_all(&self, members: &mut Members, slots: Slot) {
        let is_used = |slot: &Slot| {
            self.slot(*slot).is_some_and(|(word, _)| word.load(Ordering::Relaxed) != 0)
        };
        let mut learned = Vec::new();
        for slot in (1..=slots).filter(is_used) {
            let value = self.value(slot);
            if value.kind() == FdbKind::Learned {
                learned.push((members.noted(slot), slot, (self.network(slot), value.port())));
            }
            self.account(None, Some(value.kind()));
        }
        learned.sort_unstable_by_key(|(noted, slot, _)| (*noted, *slot));
        for (noted, slot, place) in learned {
            members.enlist(slot, place, noted);
        }
    }
}
