//! A trace says what the dataplane then does, and changes nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::clock::Timestamp;
use dataplane::config::{PortRole, Snapshot, SnapshotSpec};
use dataplane::core::Core;
use dataplane::engine::{Connection, FdbEntry, FlowTuple, Link, NeighborEntry, NeighborLimits};
use dataplane::frame::Frame;
use dataplane::io::{Offloads, TxReport};
use dataplane::packet::types::tcp_flags::{ACK, SYN};
use dataplane::packet::types::{Mac, PortId, ip_proto};
use dataplane::plane::Plane;
use dataplane::trace::{DEFAULT_TRACES, Fact, SentFrame, Traced};
use dataplane::verdict::{DropReason, Verdict};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tests::fragments::in_two;
use tests::lab::{
    A, B, C, CLIENT, D, GATEWAY1, NET1, ROUTER, SERVER, UP, UPLINK, publish, publish_tcp, small,
    topology, without_guard,
};
use tests::ledger::Ledger;
use tests::outlet::{Outlet, Outside, sent};
use tests::packet::{Host, Wire, icmp_error, raw_ip, tcp, udp};

use crate::batches::{choice, frame};

#[derive(Debug, Default)]
struct Recorded(Vec<SentFrame>);

impl Outlet for Recorded {
    fn take(&mut self, port: PortId, frame: &Frame, report: &mut TxReport) {
        self.0.push(SentFrame { port, bytes: frame.bytes().to_vec(), vnet: frame.vnet });
        sent(frame, report);
    }
}

/// Everything that a frame can change and anybody can see.
#[derive(Debug, PartialEq, Eq)]
struct Everything {
    ledger: Ledger,
    connections: Vec<Connection>,
    fdb: Vec<FdbEntry>,
    neighbors: Vec<NeighborEntry>,
    fragments: usize,
    /// Who remembers anything looks again when these rise.
    changes: [u64; 2],
    waiting: bool,
    buffers: usize,
}

struct Engine {
    plane: Plane,
    core: Core,
    outside: Outside<Recorded>,
    now: Timestamp,
}

impl Engine {
    fn new(options: &EngineOptions, spec: SnapshotSpec) -> Self {
        let plane = Plane::new(options).unwrap();
        let mut core = plane.core(0).unwrap();
        for port in &spec.ports {
            // One takes nothing but plain frames.
            let offloads = if port.id == C.port { Offloads::default() } else { Offloads::ALL };
            plane.add_port(&mut core, port.id, offloads);
        }
        plane.publish(Snapshot::build(spec).unwrap());
        let now = Timestamp::from_secs(u64::from(Timestamp::now().as_secs()) + 1);
        let mut engine = Self { plane, core, outside: Outside::default(), now };
        engine.resolve_router();
        engine
    }

    fn resolve_router(&mut self) {
        let neighbors = &self.plane.tables().neighbors;
        neighbors.confirm(Link::Uplink(UPLINK), ROUTER.ip, ROUTER.mac, true, self.now);
    }

    fn look(&mut self) -> Everything {
        let names = [(A.port, "a"), (B.port, "b"), (C.port, "c"), (D.port, "d"), (UP.port, "up")];
        let tables = self.plane.tables();
        let secs = self.now.as_secs();
        Everything {
            ledger: Ledger::read(&self.plane, &BTreeMap::from(names)),
            connections: tables
                .connections
                .entries(secs)
                .chain(tables.connections6.entries(secs))
                .map(|entry| entry.connection)
                .collect(),
            fdb: tables.fdb.entries(secs, |_| Duration::from_secs(300)),
            neighbors: tables.neighbors.entries(self.now),
            fragments: tables.fragments.len(),
            changes: [tables.fdb.changes(), tables.neighbors.changes()],
            waiting: self.core.is_waiting(),
            buffers: self.core.pool().available(),
        }
    }

    fn trace(&mut self, port: PortId, wire: &Wire) -> Traced {
        let before = self.look();
        let mut tracer = self.plane.tracer(self.core.state()).unwrap();
        let traced = tracer.trace(port, &wire.bytes, wire.vnet, self.now);
        assert_eq!(self.look(), before, "a trace of {wire:?}");
        traced
    }

    /// Everything that leaves.
    fn process(&mut self, port: PortId, wire: &Wire) -> Vec<SentFrame> {
        let mut frame = self.core.pool().take().unwrap();
        frame.copy_from(&wire.bytes);
        frame.vnet = wire.vnet;
        frame.ingress = port;
        self.core.process(&mut vec![frame], self.now, &mut self.outside);
        std::mem::take(&mut self.outside.0.0)
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        // What waits goes first, when its neighbor is known.
        self.core.housekeep(self.now, &mut self.outside);
        self.outside.0.0.clear();
    }

    /// Traces a frame, lets it in, and compares.
    fn check(&mut self, port: PortId, wire: &Wire) -> Traced {
        self.pass(Duration::ZERO);
        let traced = self.trace(port, wire);
        let before = self.core.stats();
        let left = self.process(port, wire);
        let after = self.core.stats();
        let shown = |text: &str| format!("{text} of {wire:?} by {port:?}: {traced:#?}");
        assert_eq!(left, traced.sent, "{}", shown("frames"));
        let dropped: Vec<_> = DropReason::ALL
            .iter()
            .map(|reason| (*reason, after.drops_for(*reason) - before.drops_for(*reason)))
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(dropped, traced.drops, "{}", shown("drops"));
        let ends = match traced.verdict {
            Verdict::Answer | Verdict::Consume => true,
            Verdict::Routers(_) => left.is_empty(),
            _ => false,
        };
        let consumed = u64::from(ends);
        assert_eq!(after.consumed - before.consumed, consumed, "{}", shown("end"));
        let stays = |verdict| traced.verdict == verdict && traced.drops.is_empty();
        let held = stays(Verdict::Hold) || stays(Verdict::HoldFragment);
        assert_eq!(after.queued - before.queued, u64::from(held), "{}", shown("wait"));
        let for_a_neighbor = traced.waits_for.is_some() && traced.drops.is_empty();
        assert_eq!(stays(Verdict::Hold), for_a_neighbor);
        traced
    }
}

fn spec(guard: bool, icc: bool) -> SnapshotSpec {
    let mut spec = topology();
    if !guard {
        without_guard(&mut spec);
    }
    spec.networks[0].icc = icc;
    spec.networks[0].storm_limit = 300;
    // Few, so that ports clash and run out.
    spec.uplinks[0].nat_ports = vec![(2000, 2015), (2600, 2620)];
    spec.dnat = vec![publish_tcp(7, 8080, &A, 80), publish(8, ip_proto::UDP, 5353, &D, 53)];
    spec
}

/// What the frames of batches have not.
fn rarity(n: usize) -> (PortId, Wire) {
    let low = u8::try_from(n % 7).unwrap();
    let nobody = Host { ip: Ipv4Addr::new(203, 0, 113, 100 + low), ..SERVER };
    let port = 3000 + u16::from(low);
    let datagram = udp(&A, port, &SERVER, 53).via(GATEWAY1.mac);
    match n % 13 {
        0 => (UP.port, tcp(&CLIENT, port, &UP, 8080, SYN).into()),
        1 => (UP.port, udp(&CLIENT, port, &UP, 5353).into()),
        2 => (A.port, udp(&A, port, &nobody, 9).via(GATEWAY1.mac).into()),
        3 => (A.port, datagram.ttl(1).into()),
        4 => (A.port, datagram.long(2000).into()),
        5 => (A.port, datagram.may_fragment().long(2000).into()),
        6 => {
            // The first before the second, which a fifth of the datagrams have alone: what waits for a
            // first one would leave with it, and no trace shows frames that came before.
            let (datagram_number, is_second) = (n / 26, n / 13 % 2 == 1);
            let ident = 0x4000 + u16::try_from(datagram_number).unwrap();
            let whole = udp(&A, 3000, &SERVER, 53).via(GATEWAY1.mac).ident(ident);
            let [first, second] = in_two(&whole.may_fragment().long(1200), 600);
            let is_orphan = datagram_number.is_multiple_of(5);
            (A.port, if is_second || is_orphan { second.into() } else { first.into() })
        }
        7 => (B.port, tcp(&B, port, &Host { ip: UP.ip, ..UP }, 8080, SYN).via(GATEWAY1.mac).into()),
        8 => (B.port, udp(&B, port, &D, 53).via(GATEWAY1.mac).into()),
        9 => (A.port, tests::packet::echo(&A, &GATEWAY1, port).into()),
        10 => (A.port, udp(&A, 2000, &SERVER, 53).via(GATEWAY1.mac).into()),
        11 => {
            let quoted = udp(&A, port, &SERVER, 53).src(UP.ip);
            (UP.port, icmp_error(&ROUTER, &UP, 3, 1, &quoted, 28).into())
        }
        _ => (A.port, udp(&A, port, &C, 9).macs(A.mac, Mac::BROADCAST).into()),
    }
}

#[test]
fn ten_thousand_frames_end_as_their_traces_said() {
    let options = EngineOptions {
        buffers_per_worker: 64,
        conntrack_limit: 48,
        fdb_limit: 64,
        fdb_per_port: 8,
        waiting_frames: 6,
        neighbors: NeighborLimits { all: 256, network: 8, ..NeighborLimits::default() },
        ..small()
    };
    let mut runner = TestRunner::deterministic();
    let mut verdicts: BTreeMap<String, u64> = BTreeMap::new();
    for (guard, icc) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut engine = Engine::new(&options, spec(guard, icc));
        for n in 0..2500 {
            let (port, wire) = match n % 3 {
                0 => rarity(n / 3),
                _ => frame(choice().new_tree(&mut runner).unwrap().current()),
            };
            let traced = engine.check(port, &wire);
            let name = match traced.verdict {
                Verdict::Drop(reason) => reason.name().to_owned(),
                other => format!("{other:?}").split('(').next().unwrap().to_owned(),
            };
            *verdicts.entry(name).or_default() += 1;
            match n % 50 {
                10 => engine.pass(Duration::from_secs(1)),
                20 => engine.resolve_router(),
                30 if n % 500 == 30 => engine.pass(Duration::from_secs(40)),
                _ => {}
            }
        }
    }
    // All kinds of ends were among them.
    for kind in ["Forward", "ForwardInPieces", "Flood", "Hold", "HoldFragment", "Answer", "Consume"]
    {
        assert!(verdicts.contains_key(kind), "{kind}: {verdicts:?}");
    }
    let reasons = verdicts.len();
    assert!(reasons > 22, "{verdicts:#?}");
}

/// The facts of a stage.
#[track_caller]
fn facts<'a>(traced: &'a Traced, stage: &str) -> &'a [(&'static str, Fact)] {
    let step = traced.steps.iter().find(|step| step.stage == stage);
    &step.unwrap_or_else(|| panic!("no {stage}: {traced:#?}")).facts
}

#[track_caller]
fn fact(traced: &Traced, stage: &str, name: &str) -> Fact {
    let found = facts(traced, stage).iter().find(|(is, _)| *is == name);
    found.unwrap_or_else(|| panic!("no {name} in {stage}: {traced:#?}")).1
}

fn stages(traced: &Traced) -> Vec<&'static str> {
    traced.steps.iter().map(|step| step.stage).collect()
}

fn flow(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16)) -> Fact {
    let (src_port, dst_port) = (src.1, dst.1);
    Fact::Flow(FlowTuple { src: src.0.into(), dst: dst.0.into(), src_port, dst_port })
}

#[test]
fn each_stage_says_what_it_found() {
    let mut spec = topology();
    spec.dnat = vec![publish_tcp(7, 8080, &A, 80)];
    let mut engine = Engine::new(&small(), spec);

    // Out by SNAT.
    let syn = Wire::from(tcp(&A, 40_000, &SERVER, 80, SYN).via(GATEWAY1.mac));
    let traced = engine.check(A.port, &syn);
    let all = [
        "parse",
        "admit",
        "learn",
        "switch",
        "input",
        "lookup",
        "route",
        "neighbor",
        "translate",
        "egress",
    ];
    assert_eq!(stages(&traced), all);
    assert_eq!(fact(&traced, "admit", "network"), Fact::Network(NET1));
    assert_eq!(fact(&traced, "learn", "fdb"), Fact::Word("known"));
    assert_eq!(fact(&traced, "switch", "fdb"), Fact::Word("gateway"));
    assert_eq!(fact(&traced, "lookup", "connection"), Fact::Word("none"));
    assert_eq!(fact(&traced, "route", "via"), Fact::Address(ROUTER.ip.into()));
    assert_eq!(fact(&traced, "neighbor", "mac"), Fact::Mac(ROUTER.mac));
    assert_eq!(fact(&traced, "translate", "connection"), Fact::Word("new"));
    assert_eq!(fact(&traced, "translate", "nat"), Fact::Word("snat"));
    let outside = flow((UP.ip, 40_000), (SERVER.ip, 80));
    assert_eq!(fact(&traced, "translate", "becomes"), outside);
    assert_eq!(traced.verdict, Verdict::Forward(UP.port));

    // Back in, by the connection that is there now.
    let answer = Wire::from(tcp(&SERVER, 80, &UP, 40_000, SYN | ACK));
    let traced = engine.check(UP.port, &answer);
    assert_eq!(fact(&traced, "lookup", "connection"), Fact::Word("found"));
    assert_eq!(fact(&traced, "lookup", "state"), Fact::Word("SYN_SENT"));
    assert_eq!(fact(&traced, "lookup", "direction"), Fact::Word("reply"));
    assert_eq!(fact(&traced, "neighbor", "endpoint"), Fact::Port(A.port));
    assert_eq!(traced.verdict, Verdict::Forward(A.port));
    let stray = Wire::from(tcp(&A, 41_000, &SERVER, 80, ACK).via(GATEWAY1.mac));
    let traced = engine.check(A.port, &stray);
    let reason = Fact::Dropped(DropReason::ConntrackInvalid);
    assert_eq!(fact(&traced, "translate", "drop"), reason);

    // In by a published port.
    let asked = Wire::from(tcp(&CLIENT, 5000, &UP, 8080, SYN));
    let traced = engine.check(UP.port, &asked);
    assert_eq!(fact(&traced, "dnat", "rule"), Fact::Rule(7));
    assert_eq!(fact(&traced, "dnat", "address"), Fact::Address(A.ip.into()));
    assert_eq!(fact(&traced, "translate", "nat"), Fact::Word("dnat"));
    let traced = engine.check(UP.port, &tcp(&CLIENT, 5000, &UP, 8081, SYN).into());
    assert_eq!(traced.verdict, Verdict::Drop(DropReason::Unsolicited));
    assert!(!stages(&traced).contains(&"route"), "{traced:#?}");

    // Switched: to one who is known, and to nobody.
    let traced = engine.check(A.port, &udp(&A, 1, &B, 2).into());
    assert_eq!(stages(&traced), ["parse", "admit", "learn", "switch", "egress"]);
    assert_eq!(fact(&traced, "switch", "behind"), Fact::Port(B.port));
    let stranger = Mac([2, 7, 7, 7, 7, 7]);
    let traced = engine.check(A.port, &udp(&A, 1, &B, 2).macs(A.mac, stranger).into());
    assert_eq!(fact(&traced, "switch", "fdb"), Fact::Word("miss"));
    assert_eq!((traced.verdict, traced.sent.len()), (Verdict::Flood(NET1), 3));

    // Who lies is not let in.
    let traced = engine.check(A.port, &udp(&B, 1, &C, 2).macs(A.mac, C.mac).into());
    assert_eq!(stages(&traced), ["parse", "admit", "egress"]);
    assert_eq!(fact(&traced, "admit", "drop"), Fact::Dropped(DropReason::SpoofedIpv4));

    // Somebody has to be asked for first.
    let nobody = Host { ip: Ipv4Addr::new(203, 0, 113, 77), ..SERVER };
    let traced = engine.check(A.port, &udp(&A, 1, &nobody, 9).via(GATEWAY1.mac).into());
    assert_eq!(traced.waits_for, Some((Link::Uplink(UPLINK), nobody.ip.into())));
    assert_eq!(fact(&traced, "neighbor", "mac"), Fact::Word("unknown"));
    assert_eq!(traced.sent.len(), 1, "the question");
}

#[test]
fn a_trace_tells_for_whom_a_group_is() {
    let mut spec = topology();
    spec.networks[0].snooping = true;
    for port in &mut spec.ports {
        if let PortRole::Endpoint { trusted, .. } = &mut port.role {
            *trusted = port.id == C.port;
        }
    }
    let mut engine = Engine::new(&small(), spec);
    let group = Mac([1, 0, 0x5e, 1, 2, 3]);
    let data = udp(&A, 1, &B, 2).dst([239, 1, 2, 3].into()).macs(A.mac, group);
    let told = |engine: &mut Engine, port, wire: &Wire, verdict, to, copies| {
        let traced = engine.check(port, wire);
        assert_eq!(fact(&traced, "switch", "for"), Fact::Word(to));
        assert_eq!((traced.verdict, traced.sent.len()), (verdict, copies));
    };
    told(&mut engine, A.port, &data.clone().into(), Verdict::Flood(NET1), "all", 3);
    // Version 2: B joins, C asks for members and gives them a second.
    let igmp = |host: &Host, message: [u8; 8]| {
        let packet = raw_ip(host, &A, 2).payload(&message).ttl(1);
        Wire::from(packet.dst([239, 1, 2, 3].into()).macs(host.mac, group))
    };
    let joins = igmp(&B, [0x16, 0, 0xf8, 0xfa, 239, 1, 2, 3]);
    told(&mut engine, B.port, &joins, Verdict::Routers(NET1), "routers", 1);
    let asks = igmp(&C, [0x11, 10, 0xee, 0xf5, 0, 0, 0, 0]);
    told(&mut engine, C.port, &asks, Verdict::FloodCounted(NET1), "all", 3);
    engine.now = engine.now + Duration::from_secs(3);
    told(&mut engine, A.port, &data.into(), Verdict::Multicast(NET1), "members and routers", 3);
    told(&mut engine, B.port, &joins, Verdict::Routers(NET1), "routers", 2);
}

#[test]
fn frames_of_one_trace_follow_each_other() {
    let mut engine = Engine::new(&small(), topology());
    let before = engine.look();
    let mut tracer = engine.plane.tracer(engine.core.state()).unwrap();
    let mut trace = |port, wire: Wire| tracer.trace(port, &wire.bytes, wire.vnet, engine.now);
    let syn = trace(A.port, tcp(&A, 40_000, &SERVER, 80, SYN).via(GATEWAY1.mac).into());
    assert_eq!(syn.verdict, Verdict::Forward(UP.port));
    let answer = trace(UP.port, tcp(&SERVER, 80, &UP, 40_000, SYN | ACK).into());
    assert_eq!(answer.verdict, Verdict::Forward(A.port));
    assert_eq!(engine.look(), before);
    let alone = engine.trace(UP.port, &tcp(&SERVER, 80, &UP, 40_000, SYN | ACK).into());
    assert_eq!(alone.verdict, Verdict::Drop(DropReason::Unsolicited));
}

#[test]
fn so_many_traces_are_made_at_a_time() {
    let engine = Engine::new(&small(), topology());
    let tracer = || engine.plane.tracer(engine.core.state());
    let mut all: Vec<_> = (0..DEFAULT_TRACES).map(|_| tracer().unwrap()).collect();
    for _ in 0..2 {
        assert_eq!(tracer().unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
    }
    let uses = || {
        let limits = engine.plane.limits();
        let it = limits.iter().find(|limit| limit.name == "traces").unwrap();
        (it.current, it.peak, it.limit)
    };
    assert_eq!(uses(), (2, 2, 2));
    all.pop();
    assert_eq!(uses(), (1, 2, 2));
    let again = tracer().unwrap();
    assert!(tracer().is_err());
    drop((all, again));
    assert!(tracer().is_ok());
    let one = dataplane::EngineOptions { traces: 1, ..small() };
    let engine = Engine::new(&one, topology());
    let only = engine.plane.tracer(engine.core.state()).unwrap();
    assert!(engine.plane.tracer(engine.core.state()).is_err());
    drop(only);
}
