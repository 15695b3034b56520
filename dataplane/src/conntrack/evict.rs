//! Who has to go when there is no room: a connection that nobody has answered, of an account that has
//! more than the one which asks. A flood pays for itself, and never at the cost of a conversation.

use std::sync::atomic::Ordering;

use super::accounts::{Payer, is_open};
use super::entry::{ConnId, NewConnection};
use super::key::Key;
use super::table::ConnTable;
use super::words::Meta;

/// Entries looked at for one that can go: 16 KiB of memory in IPv4, read in order. Of a flood that has a
/// tenth of a table, such a walk misses one time in a million.
const LOOK: u32 = 128;

/// What can go.
struct Candidate {
    id: ConnId,
    payer: Payer,
    /// Connections of its account that nobody has answered.
    open: u32,
}

impl<K: Key> ConnTable<K> {
    /// Ends a connection to make room for a new one, if one of the next few entries can go; false: none
    /// can.
    #[cold]
    pub(crate) fn evict_for<N: Key>(&self, new: &NewConnection<N>) -> bool {
        let payer = Payer::of(new.original, new.reply, new.flags);
        let from = self.reclaim.fetch_add(LOOK, Ordering::Relaxed);
        let used = self.high_water();
        let next = (0..LOOK).filter_map(|step| from.wrapping_add(step).checked_rem(used));
        let can_go = next.filter_map(|index| self.candidate(index, payer));
        can_go.max_by_key(|it| it.open).is_some_and(|candidate| self.evict(&candidate))
    }

    /// Ends the connection whose tuple stands in the way of a new one, if it is another account's and can
    /// go.
    #[cold]
    pub(crate) fn evict_from(&self, hash: u64, tuple: K, new: &NewConnection<K>) -> bool {
        let Some(hit) = self.find(hash, tuple) else { return false };
        let payer = Payer::of(new.original, new.reply, new.flags);
        let candidate = self.candidate(hit.id.index, payer).filter(|it| it.id == hit.id);
        // Whoever has used up a server's ports is told so, and keeps what it waits for.
        let other = candidate.filter(|candidate| candidate.payer != payer);
        other.is_some_and(|candidate| self.evict(&candidate))
    }

    /// The entry, if it may go for a connection of `asks`: one of the same account, or of one that has
    /// more that nobody has answered than `asks` has connections.
    fn candidate(&self, index: u32, asks: Payer) -> Option<Candidate> {
        let raw = self.raw_of(index, || 0)?;
        let new = raw.new;
        if !is_open(new.original.proto(), Meta::new(0, new.state, new.flags, new.network)) {
            return None;
        }
        let payer = Payer::of(new.original, new.reply, new.flags);
        let accounts = self.room.accounts();
        let (_, open) = accounts.of(&payer);
        let may_go = payer == asks || open > accounts.of(&asks).0;
        may_go.then_some(Candidate { id: ConnId { index, version: raw.version }, payer, open })
    }

    fn evict(&self, candidate: &Candidate) -> bool {
        let evicted = self.remove_if(candidate.id.index, |hot, meta| {
            let proto = K::load(hot.original, Ordering::Acquire).proto();
            meta.version() == candidate.id.version && is_open(proto, meta)
        });
        if evicted {
            self.room.accounts().note_evicted();
        }
        evicted
    }
}

#[cfg(test)]
mod tests;
