//! Full tables, and several workers with one flow.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::clock::Timestamp;
use dataplane::config::Snapshot;
use dataplane::core::Core;
use dataplane::engine::{ErrorRate, Link, NeighborLimits};
use dataplane::frame::Frame;
use dataplane::io::{Offloads, TxReport};
use dataplane::packet::types::tcp_flags::{ACK, FIN, SYN};
use dataplane::packet::types::{Mac, PortId};
use dataplane::plane::Plane;
use tests::fragments::in_two;
use tests::lab::{A, B, GATEWAY1, Lab, ROUTER, SERVER, UP, UPLINK, small, topology, without_guard};
use tests::outlet::{Outlet, Outside, Sink, sent};
use tests::packet::{Host, Wire, ip, speak_ipv6, speaks_ipv6, tcp, udp};

tests::in_ipv6! {
    a_flow_that_changes_workers_stays_one_connection
    a_full_connection_table_refuses_new_ones_and_keeps_the_others
    two_workers_that_begin_one_flow_at_once_agree
    two_workers_that_see_both_sides_close_at_once_miss_neither
}

/// Rows: Open vSwitch `conntrack: get_nconns, get and set maxconns`.
#[test]
fn a_full_connection_table_refuses_new_ones_and_keeps_the_others() {
    let mut lab = Lab::with(&EngineOptions { conntrack_limit: 4, ..small() }, topology());
    let packet = |n: u16| udp(&A, 40_000 + n, &SERVER, 53).via(GATEWAY1.mac);
    for n in 0..4 {
        lab.rx(A.port, packet(n))
            .tx(UP.port, packet(n).src(UP.ip).routed(UP.mac, ROUTER.mac))
            .masqueraded(&packet(n));
        let back = udp(&SERVER, 53, &UP, 40_000 + n);
        lab.rx(UP.port, &back).tx(A.port, back.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac));
    }
    lab.rx(A.port, packet(4)).moved("conn.full", 1).dropped("a", "conntrack_full");
    lab.rx(A.port, packet(0)).tx(UP.port, packet(0).src(UP.ip).routed(UP.mac, ROUTER.mac));
    let back = udp(&SERVER, 53, &UP, 40_003);
    lab.rx(UP.port, &back).tx(A.port, back.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac));
    // Switching needs no connection.
    let bridged = udp(&A, 1, &B, 2);
    lab.rx(A.port, &bridged).tx(B.port, &bridged);
    // Thirty seconds later the place of an idle one is free, but not that of the one in use.
    lab.after(Duration::from_secs(30)).moved("conn.entries", -4).moved("conn.expired", 4);
    lab.rx(A.port, packet(4)).masqueraded(&packet(4)).take_one(UP.port);
}

#[test]
fn a_flow_that_changes_workers_stays_one_connection() {
    let mut lab = Lab::with(&EngineOptions { workers: 2, ..small() }, topology());
    let syn = tcp(&A, 40_000, &SERVER, 80, SYN).via(GATEWAY1.mac);
    let out = |packet: &tests::packet::Packet| packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
    lab.batch_on(0, vec![(A.port, (&syn).into())]).tx(UP.port, out(&syn)).masqueraded(&syn);
    let answer = tcp(&SERVER, 80, &UP, 40_000, SYN | ACK);
    lab.batch_on(1, vec![(UP.port, (&answer).into())])
        .tx(A.port, answer.dst(A.ip).routed(GATEWAY1.mac, A.mac));
    let ack = syn.clone().flags(ACK).seq(1001);
    lab.batch_on(1, vec![(A.port, (&ack).into())]).tx(UP.port, out(&ack));
    assert_eq!((lab.connection().state, lab.connection().packets), ("ESTABLISHED", [2, 1]));
}

#[test]
fn a_neighbor_that_one_worker_hears_of_frees_the_frames_of_the_other() {
    let mut lab = Lab::with(&EngineOptions { workers: 2, ..small() }, topology());
    let neighbor = tests::lab::NEIGHBOR;
    let frame = udp(&A, 40_000, &neighbor, 53).via(GATEWAY1.mac);
    lab.batch_on(0, vec![(A.port, (&frame).into())])
        .moved("generated", 1)
        .moved("queued", 1)
        .moved("neighbors", 1)
        .masqueraded(&frame)
        .take_one(UP.port);
    let answer = tests::packet::arp_reply(&neighbor, &UP);
    lab.batch_on(1, vec![(UP.port, answer.into())]).moved("consumed", 1);
    lab.after(Duration::ZERO)
        .tx(UP.port, frame.src(UP.ip).routed(UP.mac, neighbor.mac))
        .moved("queued", -1);
}

/// Now, at most, and the limit.
pub(crate) fn use_of(lab: &Lab, name: &str) -> (u64, u64, u64) {
    let limits = lab.plane.limits_at(lab.now);
    let limit = limits.iter().find(|limit| limit.name == name).expect(name);
    (limit.current, limit.peak, limit.limit)
}

#[test]
fn every_limit_shows_how_full_it_is_and_has_been() {
    let options = EngineOptions {
        workers: 2,
        conntrack_limit: 4,
        fdb_limit: 64,
        fdb_per_port: 8,
        waiting_frames: 4,
        neighbors: NeighborLimits { all: 256, network: 3, uplink: 128, unanswered: 500 },
        icmp_errors: ErrorRate { per_second: 40 },
        ..small()
    };
    let mut spec = topology();
    without_guard(&mut spec);
    let mut lab = Lab::with(&options, spec);
    let untouched = lab.plane.limits();
    assert!(untouched.iter().all(|limit| limit.current <= limit.limit), "{untouched:?}");

    // Three connections, one more than there is room for, and none after their time.
    let asks = |n: u16| udp(&A, 40_000 + n, &SERVER, 53).via(GATEWAY1.mac);
    for n in 0..3 {
        lab.rx(A.port, asks(n)).only_balanced();
    }
    assert_eq!(use_of(&lab, "conntrack"), (3, 3, 4));
    lab.after(Duration::from_secs(30)).only_balanced();
    assert_eq!(use_of(&lab, "conntrack"), (0, 3, 4));
    for n in 0..6 {
        lab.rx(A.port, asks(n)).only_balanced();
    }
    assert_eq!(use_of(&lab, "conntrack"), (4, 4, 4));
    lab.after(Duration::from_secs(60)).only_balanced();

    // Ten MACs behind one port that may have eight, then none.
    let host = |n: u8| Host { mac: Mac([2, 9, 9, 9, 9, n]), ..A };
    for n in 0..10 {
        lab.rx(A.port, udp(&host(n), 1, &B, 2)).only_balanced();
    }
    assert_eq!(use_of(&lab, "fdb"), (8, 8, 64));
    assert_eq!(use_of(&lab, "fdb_per_port"), (8, 8, 8));
    lab.plane.fdb_flush(None);
    assert_eq!(use_of(&lab, "fdb"), (0, 8, 64));
    assert_eq!(use_of(&lab, "fdb_per_port"), (0, 8, 8));

    // Frames for addresses that nobody has wait, as many as may, at the worker that has them.
    for n in 0..8 {
        let nobody = Host { ip: Ipv4Addr::new(203, 0, 113, 100 + n / 3), ..SERVER };
        let frame = udp(&A, 1000 + u16::from(n), &nobody, 53).via(GATEWAY1.mac);
        lab.batch_on(1, vec![(A.port, frame.into())]).only_balanced();
    }
    assert_eq!(use_of(&lab, "waiting_frames"), (4, 4, 4));
    assert_eq!(use_of(&lab, "waiting_frames_per_neighbor").1, 3);
    // The router and three that are asked for.
    assert_eq!(use_of(&lab, "neighbors"), (4, 4, 256));
    assert_eq!(use_of(&lab, "neighbors_per_uplink"), (4, 4, 128));
    assert_eq!(use_of(&lab, "neighbors_per_network"), (0, 0, 3));
    assert_eq!(use_of(&lab, "neighbors_unanswered"), (3, 3, 500));
    lab.after(Duration::from_secs(1)).only_balanced();
    assert_eq!(use_of(&lab, "waiting_frames_per_neighbor"), (3, 3, 4));
    for _ in 0..10 {
        lab.after(Duration::from_secs(1)).only_balanced();
    }
    assert_eq!(use_of(&lab, "waiting_frames"), (0, 4, 4));
    assert_eq!(use_of(&lab, "neighbors_unanswered"), (0, 3, 500));

    // Two errors at once of forty in a second, and a frame that has its buffer.
    for n in 0..4 {
        lab.rx(A.port, udp(&A, 5000 + n, &SERVER, 53).ttl(1).via(GATEWAY1.mac)).only_balanced();
    }
    assert_eq!(use_of(&lab, "icmp_errors").1, 2);
    assert_eq!(use_of(&lab, "icmp_errors").2, 2);
    let (_, most, limit) = use_of(&lab, "buffers");
    assert!(most >= 1 && limit == 256, "{most}");

    // A datagram whose rest is missing.
    let datagram = udp(&A, 6000, &SERVER, 53).via(GATEWAY1.mac).may_fragment().long(1200);
    let [first, _] = in_two(&datagram, 600);
    lab.rx(A.port, first).only_balanced();
    assert_eq!((use_of(&lab, "fragments").0, use_of(&lab, "fragments").1), (1, 1));
    // For each of 256 datagrams 64, and as many for those with more.
    assert_eq!(use_of(&lab, "fragment_pieces"), (1, 1, 2 * 256 * 64));
    assert_eq!(use_of(&lab, "fragment_bytes"), (0, 0, 4 << 20));
    // Another one's, which waits for its first.
    let other = datagram.clone().ident(77);
    let [first, second] = in_two(&other, 600);
    let bytes = second.len() as u64 + 128;
    lab.rx(A.port, second).only_balanced();
    for (name, limit) in [("fragment_bytes", 4 << 20), ("fragment_bytes_per_port", 1 << 20)] {
        assert_eq!(use_of(&lab, name), (bytes, bytes, limit), "{name}");
    }
    lab.rx(A.port, first).only_balanced();
    assert_eq!(use_of(&lab, "fragment_bytes"), (0, bytes, 4 << 20));
    assert_eq!(use_of(&lab, "fragment_bytes_per_port"), (0, bytes, 1 << 20));
    assert_eq!(use_of(&lab, "fragment_pieces"), (1, 3, 2 * 256 * 64));

    // A capture whose reader sleeps.
    let capture = lab.plane.capture(&[A.port], 100);
    lab.rx(A.port, udp(&A, 1, &B, 2)).only_balanced();
    assert_eq!(use_of(&lab, "capture_frames"), (1, 1, 1024));
    drop(capture);
    assert_eq!(use_of(&lab, "capture_frames"), (0, 1, 1024));
}

/// What waits of one port has a quarter of the room; its oldest goes.
#[test]
fn fragments_that_wait_have_so_many_bytes() {
    let datagram =
        |n: u16| udp(&A, n, &SERVER, 53).via(GATEWAY1.mac).may_fragment().long(1200).ident(n);
    let second = |n: u16| in_two(&datagram(n), 600)[1].clone();
    let each = second(1).len() as u32 + 128;
    let mut lab = Lab::with(&EngineOptions { fragment_bytes: 8 * each, ..small() }, topology());
    for n in [1, 2] {
        lab.rx(A.port, second(n)).moved("queued", 1).tolerate("fragments");
    }
    lab.rx(A.port, second(3))
        .dropped("a", "fragment_limit")
        .moved("queued", 0)
        .tolerate("fragments");
    let each = u64::from(each);
    assert_eq!(use_of(&lab, "fragment_bytes"), (2 * each, 2 * each, 8 * each));
    assert_eq!(use_of(&lab, "fragment_bytes_per_port"), (2 * each, 2 * each, 2 * each));
}

/// Source ports by inside port, as they left.
#[derive(Default)]
struct Seen(HashMap<u16, u16>);

impl Outlet for Seen {
    fn take(&mut self, port: PortId, frame: &Frame, report: &mut TxReport) {
        assert_eq!(port, UP.port);
        let bytes = frame.bytes();
        let wire = Wire::from(bytes);
        let (outside, inside) = (wire.l4_u16(0), wire.l4_u16(8));
        let before = self.0.insert(inside, outside);
        assert!(before.is_none_or(|before| before == outside), "{inside} changed its port");
        sent(frame, report);
    }
}

/// Two workers receive the first packets of the same flows at the same time, A's and B's with the
/// same ports, so that they race for entries and for outside ports.
#[test]
fn two_workers_that_begin_one_flow_at_once_agree() {
    const FLOWS: u16 = 2000;
    // In a table that is nearly full one in some hundred thousand finds no place, and others go for it.
    let room = EngineOptions { conntrack_limit: 16_384, conntrack_per_endpoint: 16_384, ..small() };
    let options = EngineOptions { workers: 2, buffers_per_worker: 64, ..room };
    let plane = Plane::new(&options).unwrap();
    let now = Timestamp::now();
    plane.publish(Snapshot::build(topology()).unwrap());
    plane.tables().neighbors.confirm(Link::Uplink(UPLINK), ip(ROUTER.ip), ROUTER.mac, true, now);
    let six = speaks_ipv6();
    let seen: Vec<[HashMap<u16, u16>; 2]> = thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|number| {
                let plane = &plane;
                scope.spawn(move || {
                    if six {
                        speak_ipv6();
                    }
                    let mut core = plane.core(number).unwrap();
                    for port in [A.port, B.port, UP.port] {
                        plane.add_port(&mut core, port, Offloads::ALL);
                    }
                    let mut seen = [Outside::default(), Outside::default()];
                    for n in 0..FLOWS {
                        for (host, seen) in [&A, &B].into_iter().zip(&mut seen) {
                            let port = 10_000 + n;
                            let packet = udp(host, port, &SERVER, 53)
                                .via(GATEWAY1.mac)
                                .payload(&port.to_be_bytes());
                            let mut frame = core.pool().take().unwrap();
                            frame.copy_from(&packet.bytes());
                            frame.ingress = host.port;
                            core.process(&mut vec![frame], now, seen);
                        }
                    }
                    assert_eq!(core.pool().available(), 64);
                    assert!(core.stats().is_balanced());
                    seen.map(|Outside(Seen(ports))| ports)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let [first, second] = &seen[..] else { panic!("two workers") };
    for (one, other) in first.iter().zip(second) {
        assert_eq!(one.len(), usize::from(FLOWS));
        assert_eq!(one, other, "the workers disagree");
    }
    for (inside, outside) in &first[0] {
        assert_ne!(Some(outside), first[1].get(inside), "two hosts share a port");
    }
    let stats = plane.conntrack_stats();
    assert_eq!(stats.entries, u32::from(FLOWS) * 2, "{stats:?}");
}

/// One worker has the container, another the wire, as in life; both sides close at the same time.
#[test]
fn two_workers_that_see_both_sides_close_at_once_miss_neither() {
    const FLOWS: u16 = 2000;
    let options = EngineOptions { workers: 2, buffers_per_worker: 16, ..small() };
    let plane = Plane::new(&options).unwrap();
    let now = Timestamp::now();
    plane.publish(Snapshot::build(topology()).unwrap());
    plane.tables().neighbors.confirm(Link::Uplink(UPLINK), ip(ROUTER.ip), ROUTER.mac, true, now);
    let mut cores = [plane.core(0).unwrap(), plane.core(1).unwrap()];
    for core in &mut cores {
        for port in [A.port, UP.port] {
            plane.add_port(core, port, Offloads::ALL);
        }
    }
    let send = |core: &mut Core, from_client: bool, port: u16, flags: u8| {
        let (packet, ingress) = if from_client {
            (tcp(&A, port, &SERVER, 80, flags).via(GATEWAY1.mac), A.port)
        } else {
            (tcp(&SERVER, 80, &UP, port, flags), UP.port)
        };
        let mut frame = core.pool().take().unwrap();
        frame.copy_from(&packet.bytes());
        frame.ingress = ingress;
        core.process(&mut vec![frame], now, &mut Outside(Sink));
    };
    let ports = 10_000..10_000 + FLOWS;
    for port in ports.clone() {
        send(&mut cores[0], true, port, SYN);
        send(&mut cores[1], false, port, SYN | ACK);
        send(&mut cores[0], true, port, ACK);
    }
    // Both spin until both are there: waking up would take longer than a frame does.
    let arrived = AtomicU32::new(0);
    let six = speaks_ipv6();
    thread::scope(|scope| {
        for (core, from_client) in cores.iter_mut().zip([true, false]) {
            let (arrived, ports) = (&arrived, ports.clone());
            scope.spawn(move || {
                if six {
                    speak_ipv6();
                }
                for (round, port) in (1..).zip(ports) {
                    arrived.fetch_add(1, Ordering::AcqRel);
                    let mut spins = 0u32;
                    while arrived.load(Ordering::Acquire) < 2 * round {
                        spins += 1;
                        if spins.is_multiple_of(10_000) {
                            thread::yield_now();
                        }
                        std::hint::spin_loop();
                    }
                    send(core, from_client, port, FIN | ACK);
                }
            });
        }
    });
    let connections = plane.connections();
    assert_eq!(connections.len(), usize::from(FLOWS));
    for connection in connections {
        assert_eq!((connection.state, connection.packets), ("LAST_ACK", [3, 2]));
    }
    for mut core in cores {
        assert_eq!((core.stats().dropped(), core.pool().available()), (0, 16));
    }
}
