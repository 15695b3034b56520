//! Full tables, and several workers with one flow.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use dataplane::EngineOptions;
use dataplane::clock::Timestamp;
use dataplane::config::Snapshot;
use dataplane::core::Core;
use dataplane::engine::Link;
use dataplane::frame::Frame;
use dataplane::io::{Offloads, TxReport};
use dataplane::packet::types::PortId;
use dataplane::packet::types::tcp_flags::{ACK, FIN, SYN};
use dataplane::plane::Plane;
use tests::lab::{A, B, GATEWAY1, Lab, ROUTER, SERVER, UP, UPLINK, small, topology};
use tests::outlet::{Outlet, Outside, Sink, sent};
use tests::packet::{Wire, ip, speak_ipv6, speaks_ipv6, tcp, udp};

tests::in_ipv6! {
    a_flow_that_changes_workers_stays_one_connection
    a_full_connection_table_refuses_new_ones_and_keeps_the_others
    two_workers_that_begin_one_flow_at_once_agree
    two_workers_that_see_both_sides_close_at_once_miss_neither
}

#[test]
fn a_full_connection_table_refuses_new_ones_and_keeps_the_others() {
    let mut lab = Lab::with(&EngineOptions { conntrack_limit: 4, ..small() }, topology());
    let packet = |n: u16| udp(&A, 40_000 + n, &SERVER, 53).via(GATEWAY1.mac);
    for n in 0..4 {
        lab.rx(A.port, packet(n))
            .tx(UP.port, packet(n).src(UP.ip).routed(UP.mac, ROUTER.mac))
            .masqueraded(&packet(n));
    }
    lab.rx(A.port, packet(4)).moved("conn.full", 1).dropped("a", "conntrack_full");
    lab.rx(A.port, packet(0)).tx(UP.port, packet(0).src(UP.ip).routed(UP.mac, ROUTER.mac));
    let back = udp(&SERVER, 53, &UP, 40_003);
    lab.rx(UP.port, &back).tx(A.port, back.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac));
    // Switching needs no connection.
    let bridged = udp(&A, 1, &B, 2);
    lab.rx(A.port, &bridged).tx(B.port, &bridged);
    // Thirty seconds later the place of an idle one is free, but not that of the one in use.
    lab.after(std::time::Duration::from_secs(30))
        .moved("conn.entries", -4)
        .moved("conn.expired", 4);
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
    lab.after(std::time::Duration::ZERO)
        .tx(UP.port, frame.src(UP.ip).routed(UP.mac, neighbor.mac))
        .moved("queued", -1);
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
    let options = EngineOptions { workers: 2, buffers_per_worker: 64, ..small() };
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
