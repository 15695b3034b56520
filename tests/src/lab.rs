//! A host without threads and devices: networks, containers, the host's leg and an uplink, with
//! time that passes when the test says so.
//!
//! ```text
//! network 1, 10.1.0.0/24   A .2   B .3   C .4   host's leg (H1)   gateway GATEWAY1 .1
//! network 2, 10.2.0.0/24   D .2                                   gateway GATEWAY2 .1
//! uplink 203.0.113.5/24    ROUTER .1 (next hop for SERVER and CLIENT), NEIGHBOR .9 on the wire
//! ```
//!
//! A step gives frames to the engine and states what happens: every frame that comes out, in its
//! order and to the last byte, and every counter that moves. Frames and bytes received and sent are
//! counted by the step itself; what else moves is stated with [`Step::moved`]. A step is checked
//! when it is dropped, so none can be forgotten. After each one every worker must balance, every
//! buffer be back in its pool or with a waiting frame, and every checksum that came out be right.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::panic::Location;
use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::clock::Timestamp;
use dataplane::config::{
    DnatRule, NetworkConfig, PortConfig, PortRole, Snapshot, SnapshotSpec, Subnet, UplinkConfig,
    UplinkMode, Vlans,
};
use dataplane::core::Core;
use dataplane::engine::{
    Connection, ErrorRate, GroupLimits, HelperLimits, Link, NeighborLimits, Placement,
};
use dataplane::frame::Frame;
use dataplane::io::{Offloads, TxReport};
use dataplane::l3::route::Prefix;
use dataplane::packet::types::{Mac, NetworkId, PortId, UplinkId, ip_proto};
use dataplane::plane::Plane;
use dataplane::trace::Tracer;

use crate::ledger::Ledger;
use crate::outlet::{Outlet, Outside, sent};
use crate::packet::{Host, Packet, Wire, ip, ip6, speaks_ipv6};
use crate::sums;

/// The first network.
pub const NET1: NetworkId = NetworkId(1);
/// The second network.
pub const NET2: NetworkId = NetworkId(2);
/// The uplink.
pub const UPLINK: UplinkId = UplinkId(0);

const fn host(port: u16, mac: [u8; 6], ip: [u8; 4]) -> Host {
    let [a, b, c, d] = ip;
    Host { port: PortId(port), mac: Mac(mac), ip: Ipv4Addr::new(a, b, c, d) }
}

/// A container in network 1.
pub const A: Host = host(1, [2, 0x42, 10, 1, 0, 2], [10, 1, 0, 2]);
/// A container in network 1.
pub const B: Host = host(2, [2, 0x42, 10, 1, 0, 3], [10, 1, 0, 3]);
/// A container in network 1.
pub const C: Host = host(3, [2, 0x42, 10, 1, 0, 4], [10, 1, 0, 4]);
/// The gateway of network 1: its MAC and address in the engine, and the host's leg as a port.
pub const GATEWAY1: Host = host(4, [2, 0x42, 10, 1, 0, 1], [10, 1, 0, 1]);
/// A container in network 2.
pub const D: Host = host(5, [2, 0x42, 10, 2, 0, 2], [10, 2, 0, 2]);
/// The gateway of network 2; it has no leg of the host.
pub const GATEWAY2: Host = host(6, [2, 0x42, 10, 2, 0, 1], [10, 2, 0, 1]);
/// The uplink itself: its MAC and outside address.
pub const UP: Host = host(10, [2, 0, 0, 0, 0, 0x10], [203, 0, 113, 5]);
/// The wire of another uplink, for tests that make one.
pub const SECOND_UP: PortId = PortId(11);
/// The router behind the uplink.
pub const ROUTER: Host = host(10, [2, 0, 0, 0, 0, 0x11], [203, 0, 113, 1]);
/// A server on the internet, behind the router.
pub const SERVER: Host = host(10, [2, 0, 0, 0, 0, 0x11], [198, 51, 100, 7]);
/// A client on the internet, behind the router.
pub const CLIENT: Host = host(10, [2, 0, 0, 0, 0, 0x11], [192, 0, 2, 99]);
/// A machine on the uplink's wire.
pub const NEIGHBOR: Host = host(10, [2, 0, 0, 0, 0, 0x19], [203, 0, 113, 9]);
/// Another address of the host's own stack, on no uplink.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 1);

const MTU: u16 = 1500;

/// The prefix of so many bits of IPv4 in the IP version that is spoken: see [`ip6`].
#[must_use]
pub fn prefix(address: Ipv4Addr, len: u8) -> Prefix {
    Prefix::new(ip(address), if speaks_ipv6() { 96 + len } else { len })
}

/// The topology above, for tests to change before they make a [`Lab`] of it. It has the one IP version
/// that is spoken.
#[must_use]
pub fn topology() -> SnapshotSpec {
    SnapshotSpec {
        ports: vec![
            endpoint(&A, NET1),
            endpoint(&B, NET1),
            endpoint(&C, NET1),
            endpoint(&D, NET2),
            port(GATEWAY1.port, PortRole::Host { network: NET1 }),
            port(UP.port, PortRole::Uplink { uplink: UPLINK }),
        ],
        networks: vec![network(NET1, &GATEWAY1), network(NET2, &GATEWAY2)],
        uplinks: vec![UplinkConfig {
            id: UPLINK,
            port: UP.port,
            mode: UplinkMode::Dedicated,
            mac: UP.mac,
            addresses: vec![(ip(UP.ip), prefix(UP.ip, 24))],
            gateway: (!speaks_ipv6()).then_some(ROUTER.ip),
            gateway6: speaks_ipv6().then_some(ROUTER.ip6()),
            nat_ports: vec![(1024, 65_535)],
            mtu: MTU,
            carrier_ups: 0,
        }],
        host_addresses: vec![ip(HOST_ADDRESS)],
        ..SnapshotSpec::default()
    }
}

/// The topology with both IP versions: beside each address there is its twin, see [`ip6`].
#[must_use]
pub fn dual() -> SnapshotSpec {
    let mut spec = topology();
    for (network, gateway) in spec.networks.iter_mut().zip([GATEWAY1, GATEWAY2]) {
        let prefix = Prefix::new(gateway.ip6(), 120);
        network.subnets.push(Subnet { prefix, gateway: Some(gateway.ip6().into()) });
    }
    for port in &mut spec.ports {
        if let PortRole::Endpoint { ipv4, ipv6, .. } = &mut port.role {
            ipv6.extend(ipv4.iter().map(|address| ip6(*address)));
        }
    }
    let uplink = &mut spec.uplinks[0];
    uplink.addresses.push((UP.ip6().into(), Prefix::new(UP.ip6(), 120)));
    uplink.gateway6 = Some(ROUTER.ip6());
    spec.host_addresses.push(ip6(HOST_ADDRESS).into());
    spec
}

fn port(id: PortId, role: PortRole) -> PortConfig {
    PortConfig { id, role, mtu: MTU }
}

/// A guarded container.
#[must_use]
pub fn endpoint(host: &Host, network: NetworkId) -> PortConfig {
    let (ipv4, ipv6) =
        if speaks_ipv6() { (Vec::new(), vec![host.ip6()]) } else { (vec![host.ip], Vec::new()) };
    let role = PortRole::Endpoint {
        network,
        mac: host.mac,
        ipv4,
        ipv6,
        guard: true,
        trusted: false,
        vlans: Vlans::All,
    };
    port(host.port, role)
}

/// A masquerading network of 254 addresses.
#[must_use]
pub fn network(id: NetworkId, gateway: &Host) -> NetworkConfig {
    NetworkConfig {
        mtu: MTU,
        ..NetworkConfig::new(
            id,
            gateway.mac,
            vec![Subnet { prefix: prefix(gateway.ip, 24), gateway: Some(ip(gateway.ip)) }],
        )
    }
}

/// A published TCP port.
#[must_use]
pub fn publish_tcp(id: u32, host_port: u16, to: &Host, to_port: u16) -> DnatRule {
    publish(id, ip_proto::TCP, host_port, to, to_port)
}

/// A published port.
#[must_use]
pub fn publish(id: u32, proto: u8, host_port: u16, to: &Host, to_port: u16) -> DnatRule {
    let network = if to.port == D.port { NET2 } else { NET1 };
    DnatRule {
        id,
        proto,
        host_ip: None,
        host_ports: (host_port, host_port),
        to: ip(to.ip),
        to_port,
        network,
    }
}

/// Everything that guards a port turned off.
pub fn without_guard(spec: &mut SnapshotSpec) {
    for port in &mut spec.ports {
        if let PortRole::Endpoint { guard, .. } = &mut port.role {
            *guard = false;
        }
    }
}

/// All that a device can take but trains of datagrams: each leaves by itself.
pub const SINGLE: Offloads = Offloads { uso: false, ..Offloads::ALL };

/// Sizes that keep a lab small.
#[must_use]
pub fn small() -> EngineOptions {
    EngineOptions {
        workers: 1,
        buffers_per_worker: 256,
        conntrack_limit: 4096,
        conntrack_per_endpoint: 4096,
        new_connections_per_endpoint: u32::MAX,
        conntrack_file: None,
        conntrack6_file: None,
        fdb_limit: 1024,
        fdb_per_port: 1024,
        neighbors: NeighborLimits::default(),
        groups: GroupLimits::default(),
        waiting_frames: 128,
        waiting_frames_per_neighbor: 32,
        helpers: HelperLimits::default(),
        icmp_errors: ErrorRate::default(),
        fragment_limit: 256,
        fragments_per_datagram: 64,
        fragment_bytes: 4 << 20,
        traces: 2,
        capture_frames: 1024,
        conntrack_events: 8192,
        io: crate::io_choice(),
        gro: true,
        placement: Placement::Spread,
        announce: false,
    }
}

/// What came out of the ports, and how the devices behind them are.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    pub(crate) sent: Vec<(PortId, Wire)>,
    down: BTreeSet<PortId>,
    full: BTreeSet<PortId>,
}

impl Outlet for Devices {
    fn take(&mut self, port: PortId, frame: &Frame, report: &mut TxReport) {
        if self.down.contains(&port) {
            report.down += 1;
        } else if self.full.contains(&port) {
            report.full += 1;
        } else {
            sent(frame, report);
            self.sent.push((port, Wire { bytes: frame.bytes().to_vec(), vnet: frame.vnet }));
        }
    }
}

/// A host.
#[derive(Debug)]
pub struct Lab {
    /// What is configured; [`Lab::publish`] puts it into force.
    pub spec: SnapshotSpec,
    /// Tables and counters.
    pub plane: Plane,
    /// The time.
    pub now: Timestamp,
    cores: Vec<Core>,
    outside: Outside<Devices>,
    router_is_known: bool,
    names: BTreeMap<PortId, &'static str>,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new(topology())
    }
}

impl Lab {
    /// A host with this configuration; the router is known.
    #[must_use]
    pub fn new(spec: SnapshotSpec) -> Self {
        Self::with(&small(), spec)
    }

    /// As [`Lab::new`], with other sizes.
    #[must_use]
    pub fn with(options: &EngineOptions, spec: SnapshotSpec) -> Self {
        let mut lab = Self::unresolved(options, spec);
        lab.router_is_known = true;
        lab.resolve(&ROUTER);
        lab
    }

    /// As [`Lab::with`], and no neighbor is known.
    #[must_use]
    pub fn unresolved(options: &EngineOptions, spec: SnapshotSpec) -> Self {
        let plane = Plane::new(options).unwrap();
        let mut cores: Vec<Core> = (0..options.workers).map(|n| plane.core(n).unwrap()).collect();
        for core in &mut cores {
            for port in &spec.ports {
                plane.add_port(core, port.id, Offloads::ALL);
            }
        }
        // A whole second, so that steps of a second never depend on when the test began; not
        // before the clock that control reads.
        let now = Timestamp::from_secs(u64::from(Timestamp::now().as_secs()) + 1);
        let names = [
            (A.port, "a"),
            (B.port, "b"),
            (C.port, "c"),
            (GATEWAY1.port, "host"),
            (D.port, "d"),
            (UP.port, "up"),
            (SECOND_UP, "up2"),
        ];
        let outside = Outside::default();
        let names = names.into();
        let mut lab = Self { spec, plane, now, cores, outside, router_is_known: false, names };
        lab.publish();
        lab
    }

    /// Puts [`Lab::spec`] into force.
    pub fn publish(&mut self) {
        self.plane.publish(Snapshot::build(self.spec.clone()).unwrap());
    }

    /// Puts a changed configuration into force.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut SnapshotSpec)) {
        change(&mut self.spec);
        self.publish();
    }

    /// What a port takes whole.
    pub fn set_offloads(&mut self, port: PortId, offloads: Offloads) {
        for core in &mut self.cores {
            self.plane.add_port(core, port, offloads);
        }
    }

    /// The device behind a port takes no trains of datagrams: each leaves by itself.
    pub fn keep_datagrams_apart(&mut self, port: PortId) {
        self.set_offloads(port, SINGLE);
    }

    /// The device behind a port is down.
    pub fn set_down(&mut self, port: PortId) {
        self.outside.0.down.insert(port);
    }

    /// The device behind a port takes nothing at the moment.
    pub fn set_full(&mut self, port: PortId) {
        self.outside.0.full.insert(port);
    }

    /// A neighbor on the uplink's wire has told its MAC.
    pub fn resolve(&mut self, who: &Host) {
        let link = Link::Uplink(UPLINK);
        self.plane.tables().neighbors.confirm(link, ip(who.ip), who.mac, true, self.now);
    }

    /// How many addresses are learned, and how many were evicted.
    #[must_use]
    pub fn fdb(&self) -> (i64, i64) {
        let ledger = Ledger::read(&self.plane, &self.names);
        (ledger.value("fdb.learned"), ledger.value("fdb.evictions"))
    }

    /// The connections, oldest entry first.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        let (tables, now) = (self.plane.tables(), self.now.as_secs());
        let entries = tables.connections.entries(now).chain(tables.connections6.entries(now));
        entries.map(|entry| entry.connection).collect()
    }

    /// The only connection there is.
    ///
    /// # Panics
    /// When there are none or several.
    #[must_use]
    pub fn connection(&self) -> Connection {
        let mut connections = self.connections();
        assert_eq!(connections.len(), 1, "{connections:#?}");
        connections.remove(0)
    }

    /// What would become of frames that arrive at the first worker now.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        self.try_tracer().unwrap()
    }

    /// The same, if there is a place for one more.
    ///
    /// # Errors
    /// When there is none.
    pub fn try_tracer(&self) -> std::io::Result<Tracer> {
        self.plane.tracer(self.cores[0].state())
    }

    /// One frame arrives.
    #[track_caller]
    pub fn rx(&mut self, port: PortId, frame: impl Into<Wire>) -> Step<'_> {
        self.batch(vec![(port, frame.into())])
    }

    /// Several frames arrive at once.
    #[track_caller]
    pub fn batch(&mut self, frames: Vec<(PortId, Wire)>) -> Step<'_> {
        self.batch_on(0, frames)
    }

    /// Several frames arrive at once at one worker.
    #[track_caller]
    pub fn batch_on(&mut self, worker: usize, frames: Vec<(PortId, Wire)>) -> Step<'_> {
        let mut step = Step::begin(self);
        let lab = &mut *step.lab;
        let core = &mut lab.cores[worker];
        let mut batch = Vec::new();
        for (port, wire) in frames {
            step.expected.add("rx", 1);
            let name = lab.names.get(&port).copied().unwrap_or("unknown");
            step.expected.add(&format!("{name}.rx"), 1);
            step.expected.add(&format!("{name}.rx_bytes"), wire.bytes.len() as i64);
            let mut frame = core.pool().take().expect("a buffer");
            frame.copy_from(&wire.bytes);
            frame.vnet = wire.vnet;
            frame.ingress = port;
            batch.push(frame);
        }
        core.process(&mut batch, lab.now, &mut lab.outside);
        assert!(batch.is_empty(), "frames left in the batch");
        step
    }

    /// Time passes; every worker does its housekeeping at the end of it. A router that was known
    /// has said so again meanwhile.
    #[track_caller]
    pub fn after(&mut self, time: Duration) -> Step<'_> {
        let step = Step::begin(self);
        let lab = &mut *step.lab;
        lab.now = lab.now + time;
        if lab.router_is_known {
            lab.resolve(&ROUTER);
        }
        for core in &mut lab.cores {
            core.housekeep(lab.now, &mut lab.outside);
        }
        step
    }

    fn check_invariants(&mut self) {
        let mut waiting = 0;
        for (number, stats) in self.plane.worker_stats().iter().enumerate() {
            assert!(stats.is_balanced(), "worker {number} does not balance: {stats:?}");
            waiting += stats.queued as usize;
        }
        let (mut free, mut size) = (0, 0);
        for core in &mut self.cores {
            free += core.pool().available();
            size += core.pool().size();
            // Without a buffer.
            waiting -= core.waiting_fragments();
        }
        assert_eq!(free + waiting, size, "buffers lost or doubled; {waiting} frames wait");
    }
}

/// What a step does; see the module.
#[derive(Debug)]
pub struct Step<'a> {
    lab: &'a mut Lab,
    before: Ledger,
    expected: Ledger,
    frames: BTreeMap<PortId, VecDeque<Wire>>,
    accepted: BTreeSet<PortId>,
    sums_may_be_wrong: bool,
    only_balanced: bool,
    place: &'static Location<'static>,
}

impl<'a> Step<'a> {
    #[track_caller]
    fn begin(lab: &'a mut Lab) -> Self {
        let before = Ledger::read(&lab.plane, &lab.names);
        Self {
            lab,
            before,
            expected: Ledger::default(),
            frames: BTreeMap::new(),
            accepted: BTreeSet::new(),
            sums_may_be_wrong: false,
            only_balanced: false,
            place: Location::caller(),
        }
    }

    /// The next frame that leaves by a port.
    pub fn tx(mut self, port: PortId, frame: impl Into<Wire>) -> Self {
        self.frames.entry(port).or_default().push_back(frame.into());
        self
    }

    /// A counter that moves. `conn.new` stands for a connection more and one made.
    pub fn moved(mut self, name: &str, by: i64) -> Self {
        match name {
            "conn.new" => {
                self.expected.add("conn.entries", by);
                self.expected.add("conn.inserted", by);
            }
            name => self.expected.add(name, by),
        }
        self
    }

    /// A frame that came in by `port` is dropped: the port's counter and the workers'.
    pub fn dropped(self, port: &str, reason: &str) -> Self {
        self.moved(&format!("{port}.drop.{reason}"), 1).moved(&format!("drop.{reason}"), 1)
    }

    /// The engine answers the frame itself: one consumed, one generated.
    pub fn answered(self) -> Self {
        self.moved("consumed", 1).moved("generated", 1)
    }

    /// A new connection by the first network's masquerade.
    pub fn masqueraded(self, packet: &Packet) -> Self {
        self.moved("conn.new", 1)
            .moved("masquerade.1.packets", 1)
            .moved("masquerade.1.bytes", packet.ip_len() as i64)
    }

    /// The frame leaves by each of the ports.
    pub fn flooded(self, ports: &[PortId], frame: impl Into<Wire>) -> Self {
        let frame = frame.into();
        ports.iter().fold(self, |step, port| step.tx(*port, frame.clone()))
    }

    /// The frame that came in had wrong checksums, so what comes out may.
    pub fn sums_may_be_wrong(mut self) -> Self {
        self.sums_may_be_wrong = true;
        self
    }

    /// One of many steps whose frames and counters are not stated: nothing is checked but that
    /// workers and buffers balance.
    pub fn only_balanced(mut self) {
        self.only_balanced = true;
    }

    /// As [`Step::only_balanced`]; what left, and by which port.
    #[must_use]
    pub fn sent(mut self) -> Vec<(PortId, Wire)> {
        self.only_balanced = true;
        self.lab.outside.0.sent.clone()
    }

    /// As [`Lab::fdb`], after the step.
    #[must_use]
    pub fn fdb(&self) -> (i64, i64) {
        self.lab.fdb()
    }

    /// Frames that wait, after the step.
    #[must_use]
    pub fn queued(&self) -> i64 {
        Ledger::read(&self.lab.plane, &self.lab.names).value("queued")
    }

    /// A counter that may move or not.
    pub fn tolerate(mut self, name: &str) -> Self {
        let now = Ledger::read(&self.lab.plane, &self.lab.names);
        let by = now.value(name) - self.before.value(name) - self.expected.value(name);
        self.expected.add(name, by);
        self
    }

    /// Checks the step; the frames that left by `port` are not compared but returned.
    pub fn take(mut self, port: PortId) -> Vec<Wire> {
        self.accepted.insert(port);
        let sent = &self.lab.outside.0.sent;
        sent.iter().filter(|(to, _)| *to == port).map(|(_, wire)| wire.clone()).collect()
    }

    /// Checks the step; whatever left by these ports is not compared.
    pub fn accept(mut self, ports: &[PortId]) {
        self.accepted.extend(ports);
    }

    /// As [`Step::take`], for exactly one frame.
    ///
    /// # Panics
    /// When it is not exactly one.
    pub fn take_one(self, port: PortId) -> Wire {
        let place = self.place;
        let mut wires = self.take(port);
        assert_eq!(wires.len(), 1, "frames by {port:?} in the step at {place}: {wires:#?}");
        wires.remove(0)
    }

    fn check(&mut self) {
        let place = self.place;
        let sent = std::mem::take(&mut self.lab.outside.0.sent);
        if self.only_balanced {
            return self.lab.check_invariants();
        }
        for (port, wire) in sent {
            let name = self.lab.names.get(&port).copied().unwrap_or("unknown");
            self.expected.add("tx", 1);
            self.expected.add(&format!("{name}.tx"), 1);
            self.expected.add(&format!("{name}.tx_bytes"), wire.bytes.len() as i64);
            let sums = sums::check(&wire);
            assert!(
                self.sums_may_be_wrong || sums.are_right(),
                "step at {place}: wrong checksum by {name}: {sums:?}\n  {wire:?}"
            );
            if self.accepted.contains(&port) {
                continue;
            }
            let Some(expected) = self.frames.get_mut(&port).and_then(VecDeque::pop_front) else {
                panic!("step at {place}: one frame too many by {name}:\n  {wire:?}");
            };
            assert!(
                wire == expected,
                "step at {place}: by {name}\n  expected {expected:?}\n  came     {wire:?}"
            );
        }
        for (port, missing) in &self.frames {
            assert!(missing.is_empty(), "step at {place}: missing by {port:?}: {missing:#?}");
        }
        let after = Ledger::read(&self.lab.plane, &self.lab.names);
        let moved = after.since(&self.before);
        let expected = std::mem::take(&mut self.expected).without_zeros();
        assert!(
            moved == expected,
            "step at {place}: counters, as they moved less what was stated:\n{}",
            moved.since(&expected),
        );
        self.lab.check_invariants();
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check();
        }
    }
}
