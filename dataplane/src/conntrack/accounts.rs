//! Who the connections are for: how many each endpoint has, how many of those nobody has answered,
//! and how many it may have.
//!
//! A connection is booked to the endpoint that began it; one from outside to the endpoint it was
//! published for, on an account of its own, so that a crowd outside does not use up what the sandbox
//! may begin itself. What speaks from an address that is not the sender's own (the host's leg, a router
//! in a container) is booked to the network. Whose it is follows from the entry alone, as long as it
//! lives.
//!
//! Invariants: every live entry of the tables is booked once, and those that [`is_open`] once more; an
//! account without connections is forgotten, so that there are never more accounts than connections.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dashmap::DashMap;
use rustc_hash::FxBuildHasher;

use super::entry::{ASSURED, POOLED, SEEN_REPLY};
use super::key::Key;
use super::tuple::Zone;
use super::words::Meta;
use crate::packet::types::ip_proto;

/// Whose a connection is. Addresses are those of endpoints, which control alone gives: they need no
/// keyed hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Payer {
    zone: Zone,
    /// `None`: the network's.
    address: Option<IpAddr>,
    /// From outside.
    is_inbound: bool,
}

impl Payer {
    /// Of a connection with these tuples and flags.
    pub(super) fn of<K: Key>(original: K, reply: K, flags: u8) -> Self {
        if original.zone() == Zone::OUTSIDE {
            let address = Some(reply.src().into());
            return Self { zone: reply.zone(), address, is_inbound: true };
        }
        let address = (flags & POOLED == 0).then(|| original.src().into());
        Self { zone: original.zone(), address, is_inbound: false }
    }
}

/// Whether a connection is one that the two sides have not agreed on: TCP whose handshake was never
/// completed, refused ones too; anything else before the first answer. A full table may end those.
pub(super) const fn is_open(proto: u8, meta: Meta) -> bool {
    let agreed = if proto == ip_proto::TCP { ASSURED } else { SEEN_REPLY };
    meta.flags() & agreed == 0
}

/// Why a connection is not entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdrawn {
    /// Its endpoint has as many as it may have.
    Limit,
    /// Its endpoint has begun as many in this second as it may begin.
    Rate,
}

#[derive(Debug, Clone, Default)]
struct Account {
    connections: u32,
    open: u32,
    /// The second that `begun` counts.
    second: u32,
    begun: u32,
}

/// The accounts. Shared by the tables of both families.
#[derive(Debug)]
pub struct Accounts {
    accounts: DashMap<Payer, Account, FxBuildHasher>,
    limit: AtomicU32,
    rate: AtomicU32,
    peak: AtomicU32,
    evicted: AtomicU64,
}

impl Default for Accounts {
    fn default() -> Self {
        Self {
            accounts: DashMap::default(),
            limit: AtomicU32::new(u32::MAX),
            rate: AtomicU32::new(u32::MAX),
            peak: AtomicU32::new(0),
            evicted: AtomicU64::new(0),
        }
    }
}

impl Accounts {
    /// Sets how many connections an account may have, and how many it may begin in a second. What there
    /// is stays.
    pub fn limit(&self, connections: u32, a_second: u32) {
        self.limit.store(connections, Ordering::Relaxed);
        self.rate.store(a_second, Ordering::Relaxed);
    }

    /// The same accounts and limits, to try things out on.
    pub(super) fn copy(&self) -> Self {
        let word = |word: &AtomicU32| AtomicU32::new(word.load(Ordering::Relaxed));
        Self {
            accounts: self.accounts.clone(),
            limit: word(&self.limit),
            rate: word(&self.rate),
            peak: word(&self.peak),
            evicted: AtomicU64::new(self.evicted()),
        }
    }

    /// The most connections that an account has had at a time.
    #[must_use]
    pub fn peak(&self) -> u32 {
        self.peak.load(Ordering::Relaxed)
    }

    /// The most connections that an account has now. Walks all of them.
    #[must_use]
    pub fn heaviest(&self) -> u32 {
        self.accounts.iter().map(|account| account.connections).max().unwrap_or(0)
    }

    /// Connections that were ended to make room for others.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    pub(super) fn note_evicted(&self) {
        self.evicted.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether [`Accounts::book`] would book one more, as far as can be told without doing it.
    pub(super) fn may_book(&self, payer: &Payer, now: u32) -> Result<(), Overdrawn> {
        let Some(account) = self.accounts.get(payer) else { return Ok(()) };
        self.check(&account, now)
    }

    fn check(&self, account: &Account, now: u32) -> Result<(), Overdrawn> {
        if account.connections >= self.limit.load(Ordering::Relaxed) {
            return Err(Overdrawn::Limit);
        }
        if account.second == now && account.begun >= self.rate.load(Ordering::Relaxed) {
            return Err(Overdrawn::Rate);
        }
        Ok(())
    }

    /// Books a connection.
    pub(super) fn book(&self, payer: Payer, is_open: bool, now: u32) -> Result<(), Overdrawn> {
        let mut account = self.accounts.entry(payer).or_default();
        self.check(&account, now)?;
        if account.second != now {
            account.second = now;
            account.begun = 0;
        }
        account.begun += 1;
        account.connections += 1;
        account.open += u32::from(is_open);
        if account.connections > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(account.connections, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A connection has ended.
    pub(super) fn unbook(&self, payer: Payer, was_open: bool) {
        self.accounts.remove_if_mut(&payer, |_, account| {
            account.connections = account.connections.saturating_sub(1);
            account.open = account.open.saturating_sub(u32::from(was_open));
            account.connections == 0
        });
    }

    /// A connection has been answered, or begins anew.
    pub(super) fn reopen(&self, payer: Payer, is_open: bool) {
        if let Some(mut account) = self.accounts.get_mut(&payer) {
            account.open = if is_open { account.open + 1 } else { account.open.saturating_sub(1) };
        }
    }

    /// How many connections an account has, and how many of them nobody has answered.
    pub(super) fn of(&self, payer: &Payer) -> (u32, u32) {
        self.accounts.get(payer).map_or((0, 0), |account| (account.connections, account.open))
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.accounts.len()
    }
}

#[cfg(test)]
mod tests;
