//! Who the connections are for: how many each endpoint has, how many of those nobody has answered,
//! and how many it may have.
//!
//! A connection is booked to the address that began it; one from outside to the address it was
//! published for. What speaks from an address that is not the sender's own (the host's leg, a router
//! in a container) is booked to the network. Whose it is follows from the entry alone, as long as it
//! lives, so that booking and unbooking agree whatever the configuration has become in between.
//!
//! Limits are an endpoint's, of all its addresses together ([`Owner`]): which those are the configuration
//! says ([`Accounts::regroup`]), and what is booked to an address goes along when it becomes another's.
//! What came from outside has three quarters of an endpoint's places at most, so that a crowd there does
//! not use up what the sandbox may begin itself.
//!
//! A network may have a limit too ([`Budget`]), of which one endpoint has three quarters at most, and so have all
//! that came from outside.
//!
//! Invariants: every live entry of the tables is booked once, and those that [`is_open`] once more; an
//! account without connections is forgotten, so that there are never more accounts than connections; what
//! an owner has is the sum of its accounts, what a network with a limit has that of the accounts that say so.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use dashmap::DashMap;
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::entry::{ASSURED, POOLED, SEEN_REPLY};
use super::key::Key;
use super::tuple::Zone;
use super::words::Meta;
use crate::packet::types::{Mac, ip_proto};

/// Of so many parts of an endpoint's places, one is kept from those who come from outside; of a network's, one
/// from those and one from each endpoint.
const KEPT_INSIDE: u32 = 4;

/// What is not kept.
const fn share_of(limit: u32) -> u32 {
    limit - limit / KEPT_INSIDE
}

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

/// Whose limits an account counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    /// An endpoint, whatever addresses it has: its MAC stays the same when its device is made anew.
    Endpoint(Zone, Mac),
    /// An address that is no endpoint's: behind a router in a container, or not configured yet.
    Address(Zone, IpAddr),
    /// All that is booked to a network.
    Network(Zone),
}

/// The MAC of the endpoint that has an address in a zone.
pub(crate) type Owners = FxHashMap<(Zone, IpAddr), Mac>;

/// Whether a connection is one that the two sides have not agreed on: TCP and SCTP whose handshake was
/// never completed, refused ones too; anything else before the first answer. A full table may end those.
pub(super) const fn is_open(proto: u8, meta: Meta) -> bool {
    let agreed = if matches!(proto, ip_proto::TCP | ip_proto::SCTP) { ASSURED } else { SEEN_REPLY };
    meta.flags() & agreed == 0
}

/// Why a connection is not entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdrawn {
    /// Its endpoint has as many as it may have.
    Limit,
    /// Its endpoint has begun as many in this second as it may begin.
    Rate,
    /// Its network has as many as it may have.
    Network,
}

/// What a network with a limit has.
#[derive(Debug, Clone, Copy, Default)]
struct Budget {
    limit: u32,
    connections: u32,
    /// Of those, from outside.
    inbound: u32,
    peak: u32,
}

impl Budget {
    fn check(&self, is_inbound: bool) -> Result<(), Overdrawn> {
        if self.connections >= self.limit || is_inbound && self.inbound >= share_of(self.limit) {
            return Err(Overdrawn::Network);
        }
        Ok(())
    }

    fn add(&mut self, connections: u32, is_inbound: bool) {
        self.connections += connections;
        self.inbound += if is_inbound { connections } else { 0 };
        self.peak = self.peak.max(self.connections);
    }
}

/// What is booked to an address or a network.
#[derive(Debug, Clone)]
struct Account {
    owner: Owner,
    connections: u32,
    open: u32,
    /// They are counted in the network's [`Budget`].
    is_budgeted: bool,
}

/// What an owner has: of its own, or from outside.
#[derive(Debug, Clone, Copy, Default)]
struct Side {
    connections: u32,
    open: u32,
    /// The latest second in which one was begun, and how many were in it.
    second: u32,
    begun: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Balance {
    own: Side,
    inbound: Side,
}

impl Balance {
    const fn connections(&self) -> u32 {
        self.own.connections.saturating_add(self.inbound.connections)
    }

    const fn side(&self, is_inbound: bool) -> &Side {
        if is_inbound { &self.inbound } else { &self.own }
    }

    const fn side_mut(&mut self, is_inbound: bool) -> &mut Side {
        if is_inbound { &mut self.inbound } else { &mut self.own }
    }
}

/// How whoever pays for a connection stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    owner: Owner,
    is_inbound: bool,
    /// Connections that it has, of the kind that the connection is of: its own, or from outside.
    pub(super) connections: u32,
    /// How many of them nobody has answered.
    pub(super) open: u32,
}

impl Standing {
    /// Whether both are one.
    pub(super) fn is_of(&self, other: &Self) -> bool {
        (self.owner, self.is_inbound) == (other.owner, other.is_inbound)
    }
}

/// The accounts. Shared by the tables of both families.
///
/// Locks: an account, then the shard of a budget, then that of `owners` or of a balance; never two of a kind.
#[derive(Debug)]
pub struct Accounts {
    accounts: DashMap<Payer, Account, FxBuildHasher>,
    balances: DashMap<Owner, Balance, FxBuildHasher>,
    /// As [`Owners`]. Whoever asks takes a shard to read, which others may do at the same time.
    owners: DashMap<(Zone, IpAddr), Mac, FxBuildHasher>,
    /// Of the networks that have a limit, if any has.
    budgets: DashMap<Zone, Budget, FxBuildHasher>,
    has_budgets: AtomicBool,
    limit: AtomicU32,
    rate: AtomicU32,
    peak: AtomicU32,
    evicted: AtomicU64,
}

impl Default for Accounts {
    fn default() -> Self {
        Self {
            accounts: DashMap::default(),
            balances: DashMap::default(),
            owners: DashMap::default(),
            budgets: DashMap::default(),
            has_budgets: AtomicBool::new(false),
            limit: AtomicU32::new(u32::MAX),
            rate: AtomicU32::new(u32::MAX),
            peak: AtomicU32::new(0),
            evicted: AtomicU64::new(0),
        }
    }
}

impl Accounts {
    /// Sets how many connections an endpoint may have, and how many it may begin in a second. What there
    /// is stays.
    pub fn limit(&self, connections: u32, a_second: u32) {
        self.limit.store(connections, Ordering::Relaxed);
        self.rate.store(a_second, Ordering::Relaxed);
    }

    /// Sets how many connections a network may have, for those that have a limit. What there is stays.
    pub(crate) fn limit_networks(&self, limits: &FxHashMap<Zone, u32>) {
        if limits.is_empty() && !self.has_budgets.load(Ordering::Relaxed) {
            return;
        }
        self.budgets.retain(|zone, _| limits.contains_key(zone));
        for (zone, limit) in limits {
            self.budgets.entry(*zone).or_default().limit = *limit;
        }
        self.has_budgets.store(!limits.is_empty(), Ordering::Relaxed);
        // Fresh accounts are counted from here on; what is booked to the others meanwhile, with them.
        for mut account in self.accounts.iter_mut() {
            let Payer { zone, is_inbound, .. } = *account.key();
            match (account.is_budgeted, self.budgets.get_mut(&zone)) {
                (false, Some(mut budget)) => {
                    budget.add(account.connections, is_inbound);
                    account.is_budgeted = true;
                }
                (true, None) => account.is_budgeted = false,
                _ => {}
            }
        }
    }

    /// Of the network that has the least room left of its limit: what it has, has had at most, and may have.
    /// `None`: none has a limit.
    #[must_use]
    pub fn fullest_network(&self) -> Option<(u32, u32, u32)> {
        let shown = self.budgets.iter().map(|it| (it.connections, it.peak, it.limit));
        shown.min_by_key(|(connections, _, limit)| limit.saturating_sub(*connections))
    }

    /// The same accounts and limits, to try things out on.
    pub(super) fn copy(&self) -> Self {
        let word = |word: &AtomicU32| AtomicU32::new(word.load(Ordering::Relaxed));
        Self {
            accounts: self.accounts.clone(),
            balances: self.balances.clone(),
            owners: self.owners.clone(),
            budgets: self.budgets.clone(),
            has_budgets: AtomicBool::new(self.has_budgets.load(Ordering::Relaxed)),
            limit: word(&self.limit),
            rate: word(&self.rate),
            peak: word(&self.peak),
            evicted: AtomicU64::new(self.evicted()),
        }
    }

    /// The most connections that an owner has had at a time.
    #[must_use]
    pub fn peak(&self) -> u32 {
        self.peak.load(Ordering::Relaxed)
    }

    /// The most connections that an owner has now. Walks all of them.
    #[must_use]
    pub fn heaviest(&self) -> u32 {
        self.balances.iter().map(|balance| balance.connections()).max().unwrap_or(0)
    }

    /// Connections that were ended to make room for others.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    pub(super) fn note_evicted(&self) {
        self.evicted.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes whose addresses are whose from now on. What is booked to an address that became another's
    /// counts for that one.
    pub(crate) fn regroup(&self, owners: Owners) {
        // What stays as it is holds up nobody who asks.
        let mut has_changed = self.owners.iter().any(|known| !owners.contains_key(known.key()));
        if has_changed {
            self.owners.retain(|address, _| owners.contains_key(address));
        }
        for (address, mac) in owners {
            if self.owners.get(&address).is_none_or(|known| *known != mac) {
                self.owners.insert(address, mac);
                has_changed = true;
            }
        }
        if !has_changed {
            return;
        }
        // Whatever is booked to a fresh account from here on asks the new owners. Meanwhile some of it was
        // booked by the old ones: the accounts below say so.
        for mut account in self.accounts.iter_mut() {
            let owner = self.owner_of(account.key());
            let was = std::mem::replace(&mut account.owner, owner);
            if was == owner {
                continue;
            }
            let Account { connections, open, .. } = *account;
            let is_inbound = account.key().is_inbound;
            if let Some(mut balance) = self.balances.get_mut(&was) {
                let side = balance.side_mut(is_inbound);
                side.connections = side.connections.saturating_sub(connections);
                side.open = side.open.saturating_sub(open);
            }
            let mut balance = self.balances.entry(owner).or_default();
            let side = balance.side_mut(is_inbound);
            side.connections += connections;
            side.open += open;
            self.note_peak(&balance);
        }
    }

    fn owner_of(&self, payer: &Payer) -> Owner {
        let zone = payer.zone;
        let Some(address) = payer.address else { return Owner::Network(zone) };
        match self.owners.get(&(zone, address)) {
            Some(mac) => Owner::Endpoint(zone, *mac),
            None => Owner::Address(zone, address),
        }
    }

    /// Whether [`Accounts::book`] would book one more, as far as can be told without doing it.
    pub(super) fn may_book(&self, payer: &Payer, now: u32) -> Result<(), Overdrawn> {
        let mut share = u32::MAX;
        if self.has_budgets.load(Ordering::Relaxed)
            && let Some(budget) = self.budgets.get(&payer.zone)
        {
            budget.check(payer.is_inbound)?;
            share = share_of(budget.limit);
        }
        let owner = self.owner_of(payer);
        let Some(balance) = self.balances.get(&owner) else { return Ok(()) };
        self.check(&balance, share, payer.is_inbound, now)
    }

    /// `share`: how many its network lets it have.
    fn check(
        &self,
        balance: &Balance,
        share: u32,
        is_inbound: bool,
        now: u32,
    ) -> Result<(), Overdrawn> {
        let limit = self.limit.load(Ordering::Relaxed).min(share);
        let side = balance.side(is_inbound);
        if balance.connections() >= limit || (is_inbound && side.connections >= share_of(limit)) {
            return Err(Overdrawn::Limit);
        }
        // A worker whose clock is a little behind counts for the second that has begun.
        if side.second >= now && side.begun >= self.rate.load(Ordering::Relaxed) {
            return Err(Overdrawn::Rate);
        }
        Ok(())
    }

    /// Books a connection.
    pub(super) fn book(&self, payer: Payer, is_open: bool, now: u32) -> Result<(), Overdrawn> {
        let mut account = self.accounts.entry(payer).or_insert_with(|| Account {
            owner: self.owner_of(&payer),
            connections: 0,
            open: 0,
            is_budgeted: self.has_budgets.load(Ordering::Relaxed)
                && self.budgets.contains_key(&payer.zone),
        });
        let booked = if self.has_budgets.load(Ordering::Relaxed) {
            self.book_within(&account, payer, is_open, now)
        } else {
            self.book_to(account.owner, u32::MAX, payer.is_inbound, is_open, now)
        };
        if let Err(overdrawn) = booked {
            let is_empty = account.connections == 0;
            drop(account);
            if is_empty {
                self.accounts.remove_if(&payer, |_, account| account.connections == 0);
            }
            return Err(overdrawn);
        }
        account.connections += 1;
        account.open += u32::from(is_open);
        Ok(())
    }

    /// [`Accounts::book_to`] in a network that may have a limit.
    #[cold]
    fn book_within(
        &self,
        account: &Account,
        payer: Payer,
        is_open: bool,
        now: u32,
    ) -> Result<(), Overdrawn> {
        let is_inbound = payer.is_inbound;
        let Some(mut budget) = self.budgets.get_mut(&payer.zone) else {
            return self.book_to(account.owner, u32::MAX, is_inbound, is_open, now);
        };
        budget.check(is_inbound)?;
        self.book_to(account.owner, share_of(budget.limit), is_inbound, is_open, now)?;
        if account.is_budgeted {
            budget.add(1, is_inbound);
        }
        Ok(())
    }

    fn book_to(
        &self,
        owner: Owner,
        share: u32,
        is_inbound: bool,
        is_open: bool,
        now: u32,
    ) -> Result<(), Overdrawn> {
        let mut balance = self.balances.entry(owner).or_default();
        self.check(&balance, share, is_inbound, now)?;
        let is_rated = self.rate.load(Ordering::Relaxed) != u32::MAX;
        let side = balance.side_mut(is_inbound);
        if side.second < now {
            side.second = now;
            side.begun = 0;
        }
        // What an earlier run left is entered before there is a limit, and was not begun now.
        side.begun += u32::from(is_rated);
        side.connections += 1;
        side.open += u32::from(is_open);
        self.note_peak(&balance);
        Ok(())
    }

    fn note_peak(&self, balance: &Balance) {
        let connections = balance.connections();
        if connections > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(connections, Ordering::Relaxed);
        }
    }

    /// A connection has ended.
    pub(super) fn unbook(&self, payer: Payer, was_open: bool) {
        let was_open = u32::from(was_open);
        self.accounts.remove_if_mut(&payer, |_, account| {
            account.connections = account.connections.saturating_sub(1);
            account.open = account.open.saturating_sub(was_open);
            if account.is_budgeted
                && let Some(mut budget) = self.budgets.get_mut(&payer.zone)
            {
                budget.connections = budget.connections.saturating_sub(1);
                let inbound = u32::from(payer.is_inbound);
                budget.inbound = budget.inbound.saturating_sub(inbound);
            }
            if let Some(mut balance) = self.balances.get_mut(&account.owner) {
                let side = balance.side_mut(payer.is_inbound);
                side.connections = side.connections.saturating_sub(1);
                side.open = side.open.saturating_sub(was_open);
            }
            account.connections == 0
        });
    }

    /// A connection has been answered, or begins anew.
    pub(super) fn reopen(&self, payer: Payer, is_open: bool) {
        let change = |open: u32| if is_open { open + 1 } else { open.saturating_sub(1) };
        if let Some(mut account) = self.accounts.get_mut(&payer) {
            account.open = change(account.open);
            if let Some(mut balance) = self.balances.get_mut(&account.owner) {
                let side = balance.side_mut(payer.is_inbound);
                side.open = change(side.open);
            }
        }
    }

    /// Forgets owners that have nothing and have begun nothing in this second. Not before, or whoever
    /// ends its connections at once could begin more than it may.
    pub(crate) fn forget_idle(&self, now: u32) {
        let is_idle = |side: &Side| side.connections == 0 && side.second < now;
        self.balances.retain(|_, balance| !(is_idle(&balance.own) && is_idle(&balance.inbound)));
    }

    /// How whoever pays stands.
    pub(super) fn standing(&self, payer: &Payer) -> Standing {
        // What there is of an account says whose it is without the lock that all share.
        let owner = self.accounts.get(payer).map(|account| account.owner);
        let owner = owner.unwrap_or_else(|| self.owner_of(payer));
        let balance = self.balances.get(&owner).map_or_else(Balance::default, |balance| *balance);
        let Side { connections, open, .. } = *balance.side(payer.is_inbound);
        Standing { owner, is_inbound: payer.is_inbound, connections, open }
    }

    #[cfg(test)]
    fn len(&self) -> (usize, usize) {
        (self.accounts.len(), self.balances.len())
    }
}

#[cfg(test)]
mod tests;
