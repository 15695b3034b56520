//! What all workers share: the tables.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use rustc_hash::FxBuildHasher;

use crate::clock::Timestamp;
use crate::conntrack::{ConnId, ConnTable, EarlierRun, EndReason, Entry, Key, Room, Tuple6};
use crate::engine::{ConntrackStats, EngineOptions, NatRule};
use crate::hash::HashKey;
use crate::l2::fdb::Fdb;
use crate::l2::groups::Groups;
use crate::l3::fragments::Fragments;
use crate::l3::neighbor::Neighbors;
use crate::limits::Peak;
use crate::nat::helpers::Helped;

/// The tables.
#[derive(Debug)]
pub struct Tables {
    /// MACs.
    pub fdb: Fdb,
    /// Connections of IPv4.
    pub connections: ConnTable,
    /// Connections of IPv6. Both have the same limit together.
    pub connections6: ConnTable<Tuple6>,
    /// Datagrams that are in the middle of coming in fragments.
    pub fragments: Fragments,
    /// The most that there were when somebody looked.
    pub(crate) fragments_peak: Peak,
    /// What became of the connections of an earlier run.
    pub earlier: EarlierRun,
    /// Where the search for outside ports begins is a hash with it. Not the key of a table: ports are shown
    /// to everybody.
    pub(crate) ports_key: HashKey,
    /// Whether the table of IPv4, and that of IPv6, began empty.
    lost: [bool; 2],
    /// When the tables were made, in seconds.
    made: u32,
    /// Connections were ended since, by hand or because of what is configured: nobody may go on with them.
    has_ended_some: AtomicBool,
    /// Connections that announce others.
    pub(crate) helped: Helped,
    /// Neighbors.
    pub neighbors: Neighbors,
    /// Multicast groups.
    pub groups: Groups,
    /// First packets of connections and their bytes, by rule. Control alone makes rules, so that they
    /// need no keyed hash.
    rules: DashMap<NatRule, (AtomicU64, AtomicU64), FxBuildHasher>,
}

impl Tables {
    /// Makes the tables; adopts the connections of an earlier run if the options name files.
    ///
    /// # Errors
    /// When memory, a file or random keys cannot be had.
    pub fn new(options: &EngineOptions, now: Timestamp) -> io::Result<Self> {
        let room = Room::new(options.conntrack_limit);
        room.limit_events(options.conntrack_events);
        let secs = now.as_secs();
        let (connections, earlier) = table(options.conntrack_file.as_deref(), &room, secs)?;
        let (connections6, earlier6) = table(options.conntrack6_file.as_deref(), &room, secs)?;
        // Not before: what an earlier run let in stays.
        let (most, a_second) =
            (options.conntrack_per_endpoint, options.new_connections_per_endpoint);
        room.accounts().limit(most, a_second);
        Ok(Self {
            fdb: Fdb::new(options.fdb_limit, options.fdb_per_port, HashKey::random()?)?,
            connections,
            connections6,
            ports_key: HashKey::random()?,
            lost: [&earlier, &earlier6].map(|it| !matches!(it, EarlierRun::TakenOver { .. })),
            earlier: earlier.and(earlier6),
            made: secs,
            has_ended_some: AtomicBool::new(false),
            fragments: Fragments::new(
                options.fragment_limit,
                options.fragments_per_datagram,
                options.workers.max(1),
            ),
            fragments_peak: Peak::default(),
            helped: Helped::new(options.helpers),
            neighbors: Neighbors::new(options.neighbors),
            groups: Groups::new(options.groups),
            rules: DashMap::default(),
        })
    }

    /// Copies of all that a frame can change, to try things out on. Counters of rules begin anew.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub(crate) fn copy(&self) -> io::Result<Self> {
        let room = self.connections.room().like();
        Ok(Self {
            fdb: self.fdb.copy()?,
            connections: self.connections.copy(&room)?,
            connections6: self.connections6.copy(&room)?,
            earlier: self.earlier,
            ports_key: self.ports_key,
            lost: self.lost,
            made: self.made,
            has_ended_some: AtomicBool::new(self.has_ended_some.load(Ordering::Relaxed)),
            fragments: self.fragments.copy(),
            fragments_peak: Peak::default(),
            helped: self.helped.copy(),
            neighbors: self.neighbors.copy(),
            groups: self.groups.copy(),
            rules: DashMap::default(),
        })
    }

    /// Whether connections of this address may be under way that are not known any more, because the table
    /// of its family began empty less than `grace` ago.
    pub(crate) fn is_in_grace(&self, address: IpAddr, grace: Duration, now: u32) -> bool {
        let [of_ipv4, of_ipv6] = self.lost;
        (if address.is_ipv4() { of_ipv4 } else { of_ipv6 })
            && !self.grace_left(grace, now).is_zero()
    }

    /// For how long from now there may be such of one family or both.
    pub(crate) fn grace_left(&self, grace: Duration, now: u32) -> Duration {
        if self.lost == [false; 2] || self.has_ended_some.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        grace.saturating_sub(Duration::from_secs(now.saturating_sub(self.made).into()))
    }

    /// Ends the time in which connections are picked up: those that are ended from now on must stay ended.
    pub(crate) fn end_grace(&self) {
        self.has_ended_some.store(true, Ordering::Relaxed);
    }

    /// Every connection that has not expired.
    pub(crate) fn entries(&self, now: u32) -> impl Iterator<Item = Entry> {
        self.connections.entries(now).chain(self.connections6.entries(now))
    }

    /// Ends a connection; false when it has ended already.
    pub(crate) fn end(&self, entry: &Entry, reason: EndReason) -> bool {
        match entry.connection.original.src {
            IpAddr::V4(_) => self.connections.end(entry.id, reason),
            IpAddr::V6(_) => self.connections6.end(entry.id, reason),
        }
    }

    /// See [`ConnTable::take_back`]; the packet was on its way to `next_hop`.
    pub(crate) fn take_back(&self, next_hop: IpAddr, id: ConnId, bytes: u64) {
        match next_hop {
            IpAddr::V4(_) => self.connections.take_back(id, bytes),
            IpAddr::V6(_) => self.connections6.take_back(id, bytes),
        };
    }

    /// Totals of both connection tables.
    pub(crate) fn conntrack_stats(&self) -> ConntrackStats {
        let helpers = self.helped.stats();
        ConntrackStats { helpers, ..self.connections.stats().and(&self.connections6.stats()) }
    }

    /// Counts the first packet of a connection for a rule.
    pub(crate) fn count_rule(&self, rule: NatRule, bytes: u64) {
        let add = |(connections, sum): &(AtomicU64, AtomicU64)| {
            connections.fetch_add(1, Ordering::Relaxed);
            sum.fetch_add(bytes, Ordering::Relaxed);
        };
        // Most rules have been used before; workers that look do not exclude each other.
        match self.rules.get(&rule) {
            Some(entry) => add(&entry),
            None => add(&self.rules.entry(rule).or_default()),
        }
    }

    pub(crate) fn rule(&self, rule: NatRule) -> (u64, u64) {
        self.rules.get(&rule).map_or((0, 0), |entry| {
            (entry.0.load(Ordering::Relaxed), entry.1.load(Ordering::Relaxed))
        })
    }

    pub(crate) fn retain_rules(&self, keep: impl Fn(NatRule) -> bool) {
        self.rules.retain(|rule, _| keep(*rule));
    }
}

fn table<K: Key>(
    file: Option<&Path>,
    room: &Room,
    now: u32,
) -> io::Result<(ConnTable<K>, EarlierRun)> {
    let key = HashKey::random()?;
    match file {
        Some(path) => ConnTable::adopt(path, room, key, now),
        None => Ok((ConnTable::within(room, key)?, EarlierRun::None)),
    }
}
