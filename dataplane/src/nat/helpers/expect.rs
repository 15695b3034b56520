//! Connections that others have announced: who may come, to where, and until when.
//!
//! An expectation lets exactly one connection in, from one address to one outside port. It ends with its
//! time, with the connection that announced it, and when that one announces another. Limits:
//! [`HelperLimits::expectations`](super::HelperLimits) in all, a [`SHARE`] of them for one inside address, one for
//! each connection.
//! One lock, taken where one is made and, while there are any, by packets that begin connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::conntrack::{ConnId, Key, Zone};
use crate::limits::Peak;
use crate::packet::types::NetworkId;
use crate::sync::Mutex;

/// One inside address has one of so many parts, so that none keeps all others from being called.
pub(super) const SHARE: u32 = 8;

/// Who comes, as its packets come. From any port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Caller {
    zone: Zone,
    proto: u8,
    from: IpAddr,
    to: IpAddr,
    port: u16,
}

impl Caller {
    /// The one whose packet comes as `tuple`.
    pub(super) fn of<K: Key>(tuple: K) -> Self {
        Self {
            zone: tuple.zone(),
            proto: tuple.proto(),
            from: tuple.src().into(),
            to: tuple.dst().into(),
            port: tuple.dst_port(),
        }
    }
}

/// An expectation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(super) caller: Caller,
    /// To where it is led.
    pub(super) listener: (IpAddr, u16),
    pub(super) network: NetworkId,
    /// The DNAT rule of the connection that announced it, or zero.
    pub(super) rule: u32,
    /// The connection that announced it.
    pub(super) master: ConnId,
    /// In seconds.
    pub(super) deadline: u32,
}

impl Expected {
    pub(super) fn is_ipv6(&self) -> bool {
        self.caller.from.is_ipv6()
    }

    fn master(&self) -> Master {
        (self.is_ipv6(), self.master)
    }
}

/// Why an expectation is not entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotEntered {
    Full,
    /// The same caller is expected elsewhere.
    Taken,
}

/// A connection, and whether it is one of IPv6: each family counts its own.
type Master = (bool, ConnId);

/// What is expected, and by whom, so that nothing has to be searched for. Callers are chosen by who sends: the
/// standard hasher has a random key.
#[derive(Debug, Default, Clone)]
struct Table {
    limit: u32,
    by_caller: HashMap<Caller, Expected>,
    /// One each.
    by_master: HashMap<Master, Caller>,
    by_listener: HashMap<IpAddr, usize>,
}

impl Table {
    fn len(&self) -> usize {
        self.by_caller.len()
    }

    /// Whether there is no room for one more of this inside address.
    fn is_full_for(&self, listener: IpAddr) -> bool {
        let share = self.by_listener.get(&listener).copied().unwrap_or(0);
        let most = (self.limit / SHARE).max(1);
        self.len() >= self.limit as usize || share >= most as usize
    }

    /// Neither the caller nor the connection may have one.
    fn insert(&mut self, expected: Expected) {
        self.by_master.insert(expected.master(), expected.caller);
        *self.by_listener.entry(expected.listener.0).or_default() += 1;
        self.by_caller.insert(expected.caller, expected);
    }

    fn remove(&mut self, caller: &Caller) -> Option<Expected> {
        let expected = self.by_caller.remove(caller)?;
        self.by_master.remove(&expected.master());
        let listener = expected.listener.0;
        let share = self.by_listener.remove(&listener).unwrap_or(0).saturating_sub(1);
        if share > 0 {
            self.by_listener.insert(listener, share);
        }
        Some(expected)
    }

    fn remove_of(&mut self, master: Master) {
        if let Some(caller) = self.by_master.get(&master).copied() {
            self.remove(&caller);
        }
    }
}

/// The expectations.
#[derive(Debug, Default)]
pub(crate) struct Expectations {
    table: Mutex<Table>,
    /// How many there are: none, mostly.
    count: AtomicU32,
    peak: Peak,
    /// Those for which there was no room.
    refused: AtomicU64,
}

impl Expectations {
    /// None yet, and at most so many.
    pub(super) fn new(limit: u32) -> Self {
        let table = Mutex::new(Table { limit, ..Table::default() });
        Self { table, ..Self::default() }
    }

    /// Enters one instead of what the same connection has announced before. Those whose time is over keep
    /// their places until [`Expectations::expire`].
    pub(super) fn enter(&self, expected: Expected, now: u32) -> Result<(), NotEntered> {
        let mut table = self.table.lock();
        if let Some(known) = table.by_caller.get_mut(&expected.caller) {
            let is_same_s = known.master() == expected.master();
            if is_same_s && known.listener == expected.listener {
                *known = expected;
                return Ok(());
            }
            if !is_same_s && known.deadline > now {
                return Err(NotEntered::Taken);
            }
            table.remove(&expected.caller);
        }
        table.remove_of(expected.master());
        let entered = if table.is_full_for(expected.listener.0) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            Err(NotEntered::Full)
        } else {
            table.insert(expected);
            Ok(())
        };
        self.note(&table);
        entered
    }

    /// Takes the expectation of a caller, so that nobody else has it.
    #[inline]
    pub(super) fn take(&self, caller: &Caller) -> Option<Expected> {
        let mut table = self.table.lock();
        let taken = table.remove(caller);
        self.note(&table);
        taken
    }

    /// The expectation of a caller, which stays.
    pub(super) fn find(&self, caller: &Caller) -> Option<Expected> {
        self.table.lock().by_caller.get(caller).copied()
    }

    /// Whether there are any.
    #[inline(always)]
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) != 0
    }

    /// Puts one back that was taken in vain, unless its connection has announced another since.
    pub(super) fn put_back(&self, expected: Expected) {
        let mut table = self.table.lock();
        let is_outdated = table.by_master.contains_key(&expected.master())
            || table.by_caller.contains_key(&expected.caller);
        if !is_outdated && !table.is_full_for(expected.listener.0) {
            table.insert(expected);
        }
        self.note(&table);
    }

    /// Ends those whose time is over, and those of which `is_live` says that their connection has ended.
    pub(super) fn expire(&self, now: u32, is_live: impl Fn(&Expected) -> bool) {
        if self.any() {
            let mut table = self.table.lock();
            let ends = |known: &&Expected| known.deadline <= now || !is_live(known);
            let ended: Vec<Caller> =
                table.by_caller.values().filter(ends).map(|known| known.caller).collect();
            for caller in &ended {
                table.remove(caller);
            }
            self.note(&table);
        }
    }

    fn note(&self, table: &Table) {
        let count = u32::try_from(table.len()).unwrap_or(u32::MAX);
        self.count.store(count, Ordering::Relaxed);
        self.peak.note(count);
    }

    /// How many there are, and were at most.
    pub(super) fn uses(&self) -> (u32, u32) {
        (self.count.load(Ordering::Relaxed), self.peak.value())
    }

    /// For how many there was no room.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// A copy to try things out on.
    pub(super) fn copy(&self) -> Self {
        let table = self.table.lock().clone();
        let copy = Self::default();
        copy.note(&table);
        Self { table: Mutex::new(table), ..copy }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn expected(master: ConnId, port: u16, listener: u8, deadline: u32) -> Expected {
        let from = Ipv4Addr::new(192, 0, 2, 1).into();
        let to = Ipv4Addr::new(192, 0, 2, 2).into();
        Expected {
            caller: Caller { zone: Zone::OUTSIDE, proto: 6, from, to, port },
            listener: (Ipv4Addr::new(10, 0, 0, listener).into(), port),
            network: NetworkId(1),
            rule: 0,
            master,
            deadline,
        }
    }

    fn entries(all: &Expectations) -> [usize; 3] {
        let table = all.table.lock();
        [table.len(), table.by_master.len(), table.by_listener.values().sum()]
    }

    #[test]
    fn each_connection_has_one() {
        let (all, master) = (Expectations::new(16), ConnId::NONE);
        let first = expected(master, 2000, 1, 10);
        assert_eq!(all.enter(first, 0), Ok(()));
        // The same again lasts longer, and is no second one.
        assert_eq!(all.enter(expected(master, 2000, 1, 20), 0), Ok(()));
        assert_eq!(all.take(&first.caller).map(|taken| taken.deadline), Some(20));
        assert_eq!(entries(&all), [0, 0, 0]);
        // Another takes the place of it, which does not come back.
        all.put_back(first);
        let second = expected(master, 2001, 2, 10);
        assert_eq!(all.enter(second, 0), Ok(()));
        all.put_back(first);
        assert_eq!((entries(&all), all.take(&first.caller)), ([1, 1, 1], None));
        all.expire(9, |_| true);
        assert_eq!(entries(&all), [1, 1, 1]);
        all.expire(10, |_| true);
        assert_eq!((entries(&all), all.uses()), ([0, 0, 0], (0, 1)));
    }

    #[test]
    fn one_address_has_an_eighth_and_who_finds_no_room_is_counted() {
        let all = Expectations::new(16);
        let enter = |master: u32, listener| {
            let port = 2000 + u16::try_from(master).unwrap();
            all.enter(expected(ConnId::numbered(master), port, listener, 10), 0)
        };
        assert_eq!([1, 2].map(|master| enter(master, 1)), [Ok(()); 2]);
        assert_eq!(enter(3, 1), Err(NotEntered::Full));
        let others = (2..9u8).flat_map(|listener| [(listener, 0), (listener, 1)]);
        for (listener, n) in others {
            assert_eq!(enter(10 * u32::from(listener) + n, listener), Ok(()));
        }
        assert_eq!(enter(99, 9), Err(NotEntered::Full));
        assert_eq!((all.uses(), all.refused()), ((16, 16), 2));
    }
}
