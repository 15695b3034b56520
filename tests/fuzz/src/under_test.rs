//! An engine that anything is done to, and what must hold of it whatever that was.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::clock::Timestamp;
use dataplane::config::{Helpers, PortRole, Snapshot, SnapshotSpec};
use dataplane::core::Core;
use dataplane::engine::{GroupLimits, Link};
use dataplane::frame::Frame;
use dataplane::io::vnet_hdr::VnetHdr;
use dataplane::io::{Offloads, TxReport};
use dataplane::packet::offload;
use dataplane::packet::parse::parse;
use dataplane::packet::types::PortId;
use dataplane::plane::Plane;
use dataplane::pool::Pool;
use tests::lab::{
    A, B, C, D, GATEWAY1, NEIGHBOR, ROUTER, UP, UPLINK, dual, publish, publish_tcp, small,
};
use tests::outlet::{Outlet, Outside, sent};
use tests::packet::Wire;
use tests::rig::network_header;
use tests::sums;

/// When every input begins.
const START: Timestamp = Timestamp::from_secs(100_000);

/// The ports of the topology.
pub(crate) const PORTS: [PortId; 6] = [A.port, B.port, C.port, GATEWAY1.port, D.port, UP.port];

#[derive(Debug, Default)]
struct Sent(Vec<(PortId, Wire)>);

impl Outlet for Sent {
    fn take(&mut self, port: PortId, frame: &Frame, report: &mut TxReport) {
        sent(frame, report);
        self.0.push((port, Wire { bytes: frame.bytes().to_vec(), vnet: frame.vnet }));
    }
}

/// Buffers of an engine.
const BUFFERS: usize = 96;

thread_local! {
    /// The buffers, kept for the next input: to make them takes longer than most inputs.
    static KEPT: RefCell<Pool> = RefCell::new(Pool::new(BUFFERS));
}

/// Memberships: two ports fill their network.
const GROUPS: GroupLimits = GroupLimits { network: 9, port: 6 };

/// Sizes at which every limit is soon met.
pub(crate) fn sizes() -> EngineOptions {
    EngineOptions {
        // Those that it gets besides are not made for each input; what may wait goes by these.
        buffers_per_worker: 16,
        conntrack_limit: 64,
        conntrack_per_endpoint: 24,
        fdb_limit: 64,
        fdb_per_port: 16,
        waiting_frames: 8,
        fragment_limit: 64,
        groups: GROUPS,
        ..small()
    }
}

/// Both IP versions, a port published in each; a network that asks for members of groups and snoops, where C
/// may be a router.
pub(crate) fn topology() -> SnapshotSpec {
    let mut spec = dual();
    (spec.networks[0].snooping, spec.networks[0].querier) = (true, true);
    spec.networks[0].helpers = Helpers { ftp: true, tftp: true };
    for port in spec.ports.iter_mut().filter(|port| port.id == C.port) {
        if let PortRole::Endpoint { trusted, .. } = &mut port.role {
            *trusted = true;
        }
    }
    spec.dnat = vec![publish_tcp(1, 8080, &B, 80), publish(2, 17, 5353, &B, 53)];
    let mut six = publish_tcp(3, 8080, &B, 80);
    six.to = B.ip6().into();
    spec.dnat.push(six);
    spec.dnat.push(publish_tcp(4, 2121, &B, 21));
    spec
}

/// The engine.
#[derive(Debug)]
pub(crate) struct UnderTest {
    pub(crate) plane: Plane,
    pub(crate) now: Timestamp,
    core: Core,
    outside: Outside<Sent>,
    takes: BTreeMap<PortId, Offloads>,
    mtus: BTreeMap<PortId, usize>,
    /// Every checksum that came was right, so every one that goes must be.
    clean: bool,
}

impl UnderTest {
    /// Endpoints that take whole frames, or plain ones only.
    pub(crate) fn new(spec: SnapshotSpec, whole: bool) -> Self {
        let plane = Plane::new(&sizes()).unwrap();
        let mut core = plane.core(0).unwrap();
        KEPT.with_borrow_mut(|kept| std::mem::swap(core.pool(), kept));
        let (mut takes, mut mtus) = (BTreeMap::new(), BTreeMap::new());
        for port in &spec.ports {
            let offloads = if whole { Offloads::ALL } else { Offloads::NONE };
            plane.add_port(&mut core, port.id, offloads);
            takes.insert(port.id, offloads);
            let uplink = matches!(port.role, PortRole::Uplink { .. });
            let mtu = if uplink { spec.uplinks[0].mtu.min(port.mtu) } else { port.mtu };
            mtus.insert(port.id, usize::from(mtu));
        }
        let mut this =
            Self { plane, now: START, core, outside: Outside::default(), takes, mtus, clean: true };
        this.publish(spec);
        this.know();
        this
    }

    /// Puts a configuration into force.
    pub(crate) fn publish(&mut self, spec: SnapshotSpec) {
        self.plane.publish(Snapshot::build(spec).unwrap());
    }

    /// Those on the uplink's wire have told their MACs.
    fn know(&self) {
        let (neighbors, link) = (&self.plane.tables().neighbors, Link::Uplink(UPLINK));
        for who in [ROUTER, NEIGHBOR] {
            neighbors.confirm(link, who.ip, who.mac, true, self.now);
            neighbors.confirm(link, who.ip6(), who.mac, true, self.now);
        }
    }

    /// Time passes.
    pub(crate) fn wait(&mut self, time: Duration) -> Vec<(PortId, Wire)> {
        self.now = self.now + time;
        self.know();
        self.core.housekeep(self.now, &mut self.outside);
        self.checked()
    }

    /// Frames arrive at once, as many as there are buffers for; what leaves.
    pub(crate) fn feed(&mut self, frames: &[(PortId, Wire)]) -> Vec<(PortId, Wire)> {
        let mut batch = Vec::new();
        for (port, wire) in frames {
            let Some(mut frame) = self.core.pool().take() else { break };
            frame.copy_from(&wire.bytes);
            frame.vnet = wire.vnet;
            frame.ingress = *port;
            self.clean &= sums::check(wire).are_right();
            batch.push(frame);
        }
        self.core.process(&mut batch, self.now, &mut self.outside);
        assert!(batch.is_empty(), "frames left in the batch");
        self.checked()
    }

    fn checked(&mut self) -> Vec<(PortId, Wire)> {
        let stats = self.core.stats();
        assert!(stats.is_balanced(), "{stats:?}");
        let queued = usize::try_from(stats.queued).unwrap();
        let waiting = queued - self.core.waiting_fragments();
        let pool = self.core.pool();
        assert_eq!(pool.available() + waiting, pool.size(), "a buffer was lost or doubled");
        self.check_groups();
        let sent = std::mem::take(&mut self.outside.0.0);
        for (port, wire) in &sent {
            self.check(*port, wire);
        }
        sent
    }

    /// Nobody has more than it may, and only who is trusted is a router.
    fn check_groups(&self) {
        let groups = self.plane.groups();
        let members = groups.iter().filter(|entry| entry.group.is_some());
        assert!(members.count() <= GROUPS.network as usize, "{groups:?}");
        for port in PORTS {
            let of_port = groups.iter().filter(|entry| entry.port == port);
            let (members, routers): (Vec<_>, Vec<_>) = of_port.partition(|e| e.group.is_some());
            assert!(members.len() <= GROUPS.port as usize, "{groups:?}");
            assert!(routers.is_empty() || port == C.port, "{groups:?}");
        }
    }

    fn check(&self, port: PortId, wire: &Wire) {
        let (takes, mtu) = (self.takes[&port], self.mtus[&port]);
        let l3 = network_header(&wire.bytes);
        let sums = sums::check(wire);
        assert!(!self.clean || sums.are_right(), "wrong sum by {port:?}: {sums:?}\n{wire:?}");
        if wire.vnet == VnetHdr::default() {
            assert!(wire.bytes.len() - l3 <= mtu, "beyond the MTU {mtu} of {port:?}\n{wire:?}");
            return;
        }
        assert!(takes.csum, "offloads by {port:?}\n{wire:?}");
        derived(wire);
        let vnet = wire.vnet;
        if vnet.is_gso() {
            let segment = usize::from(vnet.hdr_len) + usize::from(vnet.gso_size) - l3;
            assert!(segment <= mtu, "a segment beyond the MTU {mtu} of {port:?}\n{wire:?}");
        } else {
            assert!(wire.bytes.len() - l3 <= mtu, "beyond the MTU {mtu} of {port:?}\n{wire:?}");
        }
    }
}

impl Drop for UnderTest {
    fn drop(&mut self) {
        let pool = self.core.pool();
        // Those that wait go with the engine.
        while pool.available() < BUFFERS {
            pool.put(Frame::new());
        }
        KEPT.with_borrow_mut(|kept| std::mem::swap(pool, kept));
    }
}

/// What a device is told of a frame follows from the frame.
fn derived(wire: &Wire) {
    let vnet = wire.vnet;
    let stored = usize::from(vnet.csum_start) + usize::from(vnet.csum_offset) + 2;
    assert!(vnet.needs_csum() && stored <= wire.bytes.len(), "{wire:?}");
    assert!(!vnet.is_gso() || vnet.gso_size > 0, "{wire:?}");
    assert!(usize::from(vnet.hdr_len) <= wire.bytes.len(), "{wire:?}");
    // Whoever gets it finds the same.
    let mut frame = Frame::new();
    frame.copy_from(&wire.bytes);
    frame.vnet = vnet;
    let headers = parse(frame.bytes()).expect("link headers");
    assert_eq!(offload::admit(&mut frame, &headers), Ok(()), "{wire:?}");
    assert_eq!(frame.vnet, vnet, "{wire:?}");
}
