//! Tables and configuration without workers: what control changes and looks at.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::capture::{self, Capture, Sinks};
use crate::clock::Timestamp;
use crate::config::{PortEntry, Snapshot};
use crate::conntrack::{EarlierRun, EndReason, Watch};
use crate::core::{Core, Start};
use crate::engine::{
    Connection, ConntrackStats, EngineOptions, FdbEntry, FdbKind, FdbStats, GroupEntry, LimitUse,
    Link, NatRule, NeighborEntry, PortStats, WorkerStats,
};
use crate::gone::Gone;
use crate::hash::HashKey;
use crate::io::{Missed, Offloads};
use crate::l2::fdb::{Learned, StaticRefused};
use crate::l3::fragments::Source;
use crate::limits;
use crate::orphans::has_place;
use crate::packet::types::{Mac, NetworkId, PortId};
use crate::pool::Pool;
use crate::publish::Publisher;
use crate::shared::Tables;
use crate::stats::{PortCounters, WorkerCounters};
use crate::sync::Mutex;
use crate::trace::{Places, Tracer, WorkerState};

/// The shared half of an engine. [`crate::Engine`] adds threads and devices; tests, replay and
/// benches add a [`Core`] and call it themselves.
#[derive(Debug)]
pub struct Plane {
    tables: Arc<Tables>,
    config: Publisher<Snapshot>,
    captures: Arc<Publisher<Sinks>>,
    counters: Vec<Arc<WorkerCounters>>,
    ports: Mutex<BTreeMap<PortId, Registered>>,
    capture_uses: Arc<capture::Uses>,
    tracers: Arc<Places>,
    options: EngineOptions,
    /// What an earlier run left has been held against a complete configuration. Until then a part of it
    /// says nothing of connections whose rules and ways are still to come.
    has_judged: AtomicBool,
}

/// What is counted of a port.
#[derive(Debug)]
struct Registered {
    counters: PortCounters,
    missed: Option<Arc<dyn Missed>>,
}

impl Plane {
    /// Makes the tables and an empty configuration.
    ///
    /// # Errors
    /// When memory, the connection files or random keys cannot be had.
    pub fn new(options: &EngineOptions) -> io::Result<Self> {
        let tables = Tables::new(options, Timestamp::now())?;
        let has_judged = !matches!(tables.earlier, EarlierRun::TakenOver { .. });
        Ok(Self {
            has_judged: AtomicBool::new(has_judged),
            tables: Arc::new(tables),
            config: Publisher::new(Snapshot::default()),
            captures: Arc::new(Publisher::new(Sinks::new())),
            counters: (0..options.workers.max(1)).map(|_| Arc::default()).collect(),
            ports: Mutex::new(BTreeMap::new()),
            capture_uses: Arc::default(),
            tracers: Arc::default(),
            options: EngineOptions {
                buffers_per_worker: options.buffers_per_worker.max(2),
                ..options.clone()
            },
        })
    }

    /// The part of worker number `worker`.
    ///
    /// # Errors
    /// When a random key cannot be had.
    pub fn core(&self, worker: usize) -> io::Result<Core> {
        let counters = self.counters.get(worker).ok_or(io::ErrorKind::InvalidInput)?;
        let pool = Pool::new(self.options.buffers_per_worker);
        let mut core = Core::new(
            self.start(worker, pool)?,
            Arc::clone(&self.tables),
            self.config.subscribe(),
            self.captures.subscribe(),
            Arc::clone(counters),
        );
        core.set_gro(self.options.gro);
        Ok(core)
    }

    fn start(&self, worker: usize, pool: Pool) -> io::Result<Start> {
        Ok(Start {
            worker,
            pool,
            waiting_frames: self.options.waiting_frames,
            waiting_frames_per_neighbor: self.options.waiting_frames_per_neighbor,
            fragment_bytes: usize::try_from(self.options.fragment_bytes).unwrap_or(usize::MAX),
            icmp_errors: self.options.icmp_errors,
            announce: self.options.announce,
            key: HashKey::random()?,
        })
    }

    /// Finds out what would become of frames that come in where the worker of this state receives: from
    /// copies of everything, as it is now.
    ///
    /// # Errors
    /// When memory for the copies or a random key cannot be had; [`io::ErrorKind::ResourceBusy`] when there
    /// are as many as there may be ([`EngineOptions::traces`]).
    pub fn tracer(&self, state: WorkerState) -> io::Result<Tracer> {
        let place = self.tracers.take(self.options.traces).ok_or(io::ErrorKind::ResourceBusy)?;
        let pool = Pool::on_demand(self.options.buffers_per_worker);
        let mut core = Core::new(
            self.start(state.worker, pool)?,
            Arc::new(self.tables.copy()?),
            self.config.subscribe(),
            Publisher::new(Sinks::new()).subscribe(),
            Arc::default(),
        );
        core.resume(state);
        Ok(Tracer::new(core, place))
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Makes a port known to a core, with counters that [`Plane::port_stats`] shows.
    pub fn add_port(&self, core: &mut Core, port: PortId, offloads: Offloads) {
        let counters = self.register(port);
        core.add_port(port, offloads, counters);
    }

    pub(crate) fn register(&self, port: PortId) -> PortCounters {
        let counters = PortCounters::new(self.counters.len());
        let fresh = Registered { counters, missed: None };
        self.ports.lock().entry(port).or_insert(fresh).counters.clone()
    }

    /// [`Plane::port_stats`] asks the device of a registered port what it lost.
    pub(crate) fn ask_for_missed(&self, port: PortId, missed: Arc<dyn Missed>) {
        if let Some(registered) = self.ports.lock().get_mut(&port) {
            registered.missed = Some(missed);
        }
    }

    pub(crate) fn unregister(&self, port: PortId) {
        let mut ports = self.ports.lock();
        // Before the number can be another's.
        capture::forget(&self.captures.current(), port);
        self.tables.fragments.forget_source(Source::Port(port));
        self.tables.groups.forget_port(port);
        ports.remove(&port);
        drop(ports);
        self.tables.fdb.retain_not(|entry| entry.port == port, now_secs());
    }

    /// The lowest number of no port.
    pub(crate) fn free_port(&self) -> Option<PortId> {
        let ports = self.ports.lock();
        (1..u16::MAX).map(PortId).find(|port| !ports.contains_key(port))
    }

    /// See [`crate::Engine::publish`].
    pub fn publish(&self, next: Snapshot) {
        self.publish_then(next, || {});
    }

    /// Publishes, waits by `settle` until no batch works with the old configuration any more, and
    /// only then ends what the new one no longer allows: a batch under way could still begin it.
    pub(crate) fn publish_then(&self, next: Snapshot, settle: impl FnOnce()) {
        let old = self.config.current();
        let secs = now_secs();
        for network in next.networks() {
            let id = network.config.id;
            for (mac, port) in &network.macs {
                let vlan = vlan_of(&next, *port);
                self.tables.fdb.insert(id, vlan, *mac, *port, FdbKind::Local, secs);
            }
        }
        let mut gone = Gone::between(&old, &next);
        if !self.has_judged.load(Ordering::Relaxed) {
            gone.ignore_what_is_new();
        }
        let (owners, limits) = (next.owners(), next.connection_limits());
        let macs: Vec<_> = next.networks().map(|it| (it.config.id, it.config.fdb_limit)).collect();
        self.config.publish(next);
        self.tables.connections.accounts().regroup(owners);
        self.tables.connections.accounts().limit_networks(&limits);
        self.tables.fdb.limit_networks(&macs);
        let now = self.config.current();
        for network in old.networks() {
            let id = network.config.id;
            let there = |mac: &Mac| {
                let port = now.network(id).and_then(|network| network.macs.get(mac));
                port.map(|port| vlan_of(&now, *port))
            };
            for (mac, port) in &network.macs {
                let vlan = vlan_of(&old, *port);
                if there(mac) != Some(vlan) {
                    self.tables.fdb.remove(id, vlan, *mac);
                }
            }
        }
        if !gone.is_empty() {
            if gone.has_taken_away() {
                self.tables.end_grace();
            }
            settle();
            self.forget(&gone);
        }
        // What was known when a network last looked is too old when it does again.
        let snoops = |id| now.network(id).is_some_and(|network| network.config.snooping);
        self.tables.groups.retain_networks(snoops);
    }

    fn forget(&self, gone: &Gone) {
        for link in gone.links() {
            self.tables.neighbors.forget_link(*link);
            if let Link::Network(id) = link {
                self.fdb_flush(Some(*id));
            }
        }
        let snapshot = self.config.current();
        for entry in self.tables.entries(now_secs()) {
            if let Some(reason) = gone.ends(&snapshot, &entry) {
                self.tables.end(&entry, reason);
            }
        }
        self.tables.retain_rules(|rule| !gone.has_rule(rule));
    }

    /// The configuration in force.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.config.current()
    }

    /// Totals of each worker.
    #[must_use]
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        self.counters.iter().map(|counters| counters.view()).collect()
    }

    /// Totals of one port.
    #[must_use]
    pub fn port_stats(&self, port: PortId) -> Option<PortStats> {
        let (stats, missed) = {
            let ports = self.ports.lock();
            let registered = ports.get(&port)?;
            (registered.counters.view(), registered.missed.clone())
        };
        Some(PortStats { rx_missed: missed.map_or(0, |missed| missed.frames()), ..stats })
    }

    /// How full everything is that has a limit.
    #[must_use]
    pub fn limits(&self) -> Vec<LimitUse> {
        self.limits_at(Timestamp::now())
    }

    /// The same at this time.
    #[must_use]
    pub fn limits_at(&self, now: Timestamp) -> Vec<LimitUse> {
        let config = self.config.current();
        let waiting = capture::waiting(&self.captures.current());
        let (capture_peak, missed) = self.capture_uses.view();
        let beside = limits::Beside {
            captures: ((waiting, capture_peak), missed),
            traces: (self.tracers.uses(), self.tracers.refused()),
            storm_limit: config
                .networks()
                .map(|network| network.config.storm_limit)
                .filter(|limit| *limit > 0)
                .min(),
        };
        limits::of(&self.options, &self.tables, &self.counters, &beside, now)
    }

    /// All FDB entries: learned, static and local.
    #[must_use]
    pub fn fdb_entries(&self) -> Vec<FdbEntry> {
        let config = self.config.current();
        let mut entries = self.tables.fdb.entries(now_secs(), |id| config.ageing_of(id));
        entries.sort_by_key(|entry| (entry.network, entry.mac, entry.vlan));
        entries
    }

    /// Members of multicast groups, and multicast routers.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupEntry> {
        self.tables.groups.entries(now_secs())
    }

    /// Adds a static FDB entry.
    ///
    /// # Errors
    /// When the MAC is an endpoint's own, or the table is full.
    pub fn fdb_add(
        &self,
        network: NetworkId,
        vlan: u16,
        mac: Mac,
        port: PortId,
    ) -> Result<(), StaticRefused> {
        let fdb = &self.tables.fdb;
        match fdb.insert(network, vlan, mac, port, FdbKind::Static, now_secs()) {
            Learned::Full => Err(StaticRefused::Full),
            Learned::Flapping | Learned::Kept => Err(StaticRefused::Local),
            Learned::Known | Learned::Moved | Learned::New => Ok(()),
        }
    }

    /// Totals of the FDB.
    #[must_use]
    pub fn fdb_stats(&self) -> FdbStats {
        self.tables.fdb.stats()
    }

    /// Removes a learned or static FDB entry. False: there was none.
    pub fn fdb_remove(&self, network: NetworkId, vlan: u16, mac: Mac) -> bool {
        let doomed = |e: &FdbEntry| {
            (e.network, e.vlan, e.mac) == (network, vlan, mac) && e.kind != FdbKind::Local
        };
        self.tables.fdb.retain_not(doomed, now_secs()) > 0
    }

    /// Removes learned entries of one or all networks; returns how many.
    pub fn fdb_flush(&self, network: Option<NetworkId>) -> usize {
        let doomed = |e: &FdbEntry| {
            e.kind == FdbKind::Learned && network.is_none_or(|network| e.network == network)
        };
        self.tables.fdb.retain_not(doomed, now_secs())
    }

    /// Neighbors that were asked for.
    #[must_use]
    pub fn neighbors(&self) -> Vec<NeighborEntry> {
        self.tables.neighbors.entries(Timestamp::now())
    }

    /// Tracked connections.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        self.tables.entries(now_secs()).map(|entry| entry.connection).collect()
    }

    /// Ends the connections for which `matches` says so; returns how many.
    pub fn flush_connections(&self, matches: &dyn Fn(&Connection) -> bool) -> usize {
        self.tables.end_grace();
        self.tables
            .entries(now_secs())
            .filter(|entry| matches(&entry.connection))
            .filter(|entry| self.tables.end(entry, EndReason::Flushed))
            .count()
    }

    /// Ends the connections that the configuration in force has no place for: their rule leads
    /// elsewhere, their network, endpoint or outside address is not there. For those of an earlier
    /// run, once everything that exists is published. Returns how many.
    pub fn end_orphans(&self) -> usize {
        let snapshot = self.config.current();
        self.has_judged.store(true, Ordering::Relaxed);
        self.tables
            .entries(now_secs())
            .filter(|entry| !has_place(&snapshot, entry))
            .filter(|entry| self.tables.end(entry, EndReason::EndpointGone))
            .count()
    }

    /// Is told of connections as they begin and end from now on, with `updates` also as they change. `None`:
    /// there are [`WATCHERS`](crate::conntrack::WATCHERS) already.
    #[must_use]
    pub fn watch_connections(&self, updates: bool) -> Option<Watch> {
        self.tables.connections.watchers().watch(updates)
    }

    /// What became of the connections that an earlier run left.
    #[must_use]
    pub fn earlier_run(&self) -> EarlierRun {
        self.tables.earlier
    }

    /// For how long segments of connections that are not known may begin them: zero but after a start
    /// without a table. See [`crate::config::SnapshotSpec::grace`].
    #[must_use]
    pub fn grace_left(&self) -> Duration {
        self.tables.grace_left(self.config.current().grace, now_secs())
    }

    /// Totals of the connection tables.
    #[must_use]
    pub fn conntrack_stats(&self) -> ConntrackStats {
        self.tables.conntrack_stats()
    }

    /// Packets and bytes of the first packets of connections that used the rule, as
    /// `iptables -t nat -vnL` counts.
    #[must_use]
    pub fn rule_counters(&self, rule: NatRule) -> (u64, u64) {
        self.tables.rule(rule)
    }

    /// Starts to copy frames of these ports, both ways, cut to `snaplen`. Ports that are gone
    /// already show nothing.
    #[must_use]
    pub fn capture(&self, ports: &[PortId], snaplen: usize) -> Capture {
        let known = self.ports.lock();
        let here: Vec<_> = ports.iter().copied().filter(|port| known.contains_key(port)).collect();
        let slots = self.options.capture_frames;
        Capture::start(&self.captures, &here, (snaplen, slots), Arc::clone(&self.capture_uses))
    }
}

/// The VLAN in which a port's own MAC is known.
fn vlan_of(config: &Snapshot, port: PortId) -> u16 {
    config.port(port).and_then(PortEntry::untagged).unwrap_or(0)
}

fn now_secs() -> u32 {
    Timestamp::now().as_secs()
}
