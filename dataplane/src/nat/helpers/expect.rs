//! Connections that others have announced: who may come, to where, and until when.
//!
//! An expectation lets exactly one connection in, from one address to one outside port. It ends with its
//! time, with the connection that announced it, and when that one announces another. Limits:
//! [`MAX_EXPECTATIONS`] in all, [`PER_LISTENER`] for one inside address, one for each connection.
//! One lock, taken where one is made and, while there are any, by packets that begin connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::conntrack::{ConnId, Key, Zone};
use crate::limits::Peak;
use crate::packet::types::NetworkId;
use crate::sync::Mutex;

/// At a time.
pub(crate) const MAX_EXPECTATIONS: u32 = 1024;
/// At a time for one inside address: an eighth, so that none keeps all others from being called.
pub(super) const PER_LISTENER: usize = MAX_EXPECTATIONS as usize / 8;

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

    /// Whether both were announced by one connection.
    fn has_master_of(&self, other: &Self) -> bool {
        (self.master, self.is_ipv6()) == (other.master, other.is_ipv6())
    }
}

/// Why an expectation is not entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotEntered {
    Full,
    /// The same caller is expected elsewhere.
    Taken,
}

/// The expectations. Callers are chosen by who sends: the standard hasher has a random key.
#[derive(Debug, Default)]
pub(crate) struct Expectations {
    table: Mutex<HashMap<Caller, Expected>>,
    /// How many there are: none, mostly.
    count: AtomicU32,
    peak: Peak,
}

impl Expectations {
    /// Enters one instead of what the same connection has announced before.
    pub(super) fn enter(&self, expected: Expected, now: u32) -> Result<(), NotEntered> {
        let mut table = self.table.lock();
        let stays = |known: &Expected| known.deadline > now && !known.has_master_of(&expected);
        let listener = expected.listener.0;
        let of_listener = |table: &HashMap<_, Expected>| {
            table.values().filter(|known| known.listener.0 == listener).count()
        };
        if table.get(&expected.caller).is_some_and(stays) {
            return Err(NotEntered::Taken);
        }
        table.retain(|_, known| stays(known));
        let is_full = table.len() >= MAX_EXPECTATIONS as usize;
        let entered = if is_full || of_listener(&table) >= PER_LISTENER {
            Err(NotEntered::Full)
        } else {
            table.insert(expected.caller, expected);
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

    /// Whether there are any.
    #[inline(always)]
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) != 0
    }

    /// Puts one back that was taken in vain, unless its connection has announced another since.
    pub(super) fn put_back(&self, expected: Expected) {
        let mut table = self.table.lock();
        let is_outdated = table.values().any(|known| known.has_master_of(&expected));
        if !is_outdated && table.len() < MAX_EXPECTATIONS as usize {
            table.entry(expected.caller).or_insert(expected);
        }
        self.note(&table);
    }

    /// Ends those whose time is over, and those of which `is_live` says that their connection has ended.
    pub(super) fn expire(&self, now: u32, is_live: impl Fn(&Expected) -> bool) {
        if self.any() {
            let mut table = self.table.lock();
            table.retain(|_, known| known.deadline > now && is_live(known));
            self.note(&table);
        }
    }

    fn note(&self, table: &HashMap<Caller, Expected>) {
        let count = u32::try_from(table.len()).unwrap_or(u32::MAX);
        self.count.store(count, Ordering::Relaxed);
        self.peak.note(count);
    }

    /// How many there are, and were at most.
    pub(super) fn uses(&self) -> (u32, u32) {
        (self.count.load(Ordering::Relaxed), self.peak.value())
    }

    /// A copy to try things out on.
    pub(super) fn copy(&self) -> Self {
        let table = self.table.lock().clone();
        let copy = Self::default();
        copy.note(&table);
        Self { table: Mutex::new(table), ..copy }
    }
}
