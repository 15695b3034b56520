//! Machines with a real TCP/IP stack (smoltcp) talk through the engine: over cables that lose,
//! repeat and reorder, in virtual time; and over a threaded engine, in real time.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dataplane::clock::Timestamp;
use dataplane::config::{PortConfig, PortRole, Snapshot, SnapshotSpec};
use dataplane::io::Offloads;
use dataplane::io::memory::{MemoryPeer, MemoryPort};
use dataplane::io::vnet_hdr::VnetHdr;
use dataplane::packet::types::{Mac, PortId, ip_proto};
use dataplane::{Engine, EngineOptions};
use smoltcp::socket::udp;
use tests::lab::{
    A, B, C, D, GATEWAY1, GATEWAY2, ROUTER, SINGLE, UP, publish, publish_tcp, small, topology,
};
use tests::packet::{Host, arp_reply, udp as datagram};
use tests::rig::assert_balances;
use tests::sim::{Faults, Machine, Rng, Talk, Weather, World};

/// On the uplink's wire.
const OUTSIDE: Host =
    Host { port: UP.port, mac: Mac([2, 0, 0, 0, 0, 0x20]), ip: Ipv4Addr::new(203, 0, 113, 20) };
/// Another one there.
const OTHER: Host =
    Host { port: UP.port, mac: Mac([2, 0, 0, 0, 0, 0x21]), ip: Ipv4Addr::new(203, 0, 113, 21) };

/// Two frames in a hundred lost, one repeated, and delays that reorder.
const BAD: Faults = Faults {
    loss: 20,
    repeat: 10,
    delay: Duration::from_millis(1),
    jitter: Duration::from_millis(4),
};

const LIMIT: Duration = Duration::from_secs(600);
const BYTES: usize = 100_000;

fn published() -> SnapshotSpec {
    let mut spec = topology();
    spec.dnat = vec![publish_tcp(7, 8080, &B, 80), publish(8, ip_proto::UDP, 5353, &B, 53)];
    spec
}

/// Machines A, B, C, D, OUTSIDE, OTHER: the index is the place in this list.
fn world(faults: Faults, seed: u64) -> World {
    let hosts = [
        (A, GATEWAY1.ip),
        (B, GATEWAY1.ip),
        (C, GATEWAY1.ip),
        (D, GATEWAY2.ip),
        (OUTSIDE, ROUTER.ip),
        (OTHER, ROUTER.ip),
    ];
    World::new(published(), &hosts, faults, seed)
}

fn index(host: &Host) -> usize {
    [A, B, C, D, OUTSIDE, OTHER].iter().position(|other| other == host).unwrap()
}

/// Both ends of a conversation in which each sends its own bytes.
fn talk(
    world: &mut World,
    rng: &mut Rng,
    (client, from_port): (&Host, u16),
    (to, to_port): (Ipv4Addr, u16),
    (server, port): (&Host, u16),
) -> [Talk; 2] {
    let listening = world.machines[index(server)].listen(port);
    let connecting = world.machines[index(client)].connect(from_port, to, to_port);
    [
        Talk::new(index(client), connecting, rng.bytes(BYTES)),
        Talk::new(index(server), listening, rng.bytes(BYTES)),
    ]
}

#[track_caller]
fn assert_transferred(talks: &[Talk]) {
    for pair in talks.chunks(2) {
        let [client, server] = pair else { panic!("pairs") };
        assert!(client.received == server.sent_bytes(), "the client got something else");
        assert!(server.received == client.sent_bytes(), "the server got something else");
    }
}

fn assert_bad(weather: Weather) {
    assert!(weather.lost > 10 && weather.repeated > 5 && weather.overtaken > 50, "{weather:?}");
}

#[test]
fn tcp_through_the_switch() {
    for seed in 0..8 {
        let (mut world, mut rng) = (world(BAD, seed), Rng(seed + 100));
        let mut talks = Vec::from(talk(&mut world, &mut rng, (&A, 40_000), (B.ip, 80), (&B, 80)));
        talks.extend(talk(&mut world, &mut rng, (&C, 40_000), (B.ip, 81), (&B, 81)));
        world.talk(&mut talks, LIMIT);
        assert_transferred(&talks);
        assert_bad(world.weather);
        assert!(world.plane.connections().is_empty(), "switching tracks nothing");
    }
}

/// Rows: VPP `test_open_retransmit1, test_open_retransmit2`.
#[test]
fn tcp_through_snat_and_dnat_ends_in_time_wait_and_is_forgotten() {
    for seed in 0..8 {
        let (mut world, mut rng) = (world(BAD, seed), Rng(seed + 200));
        let mut talks = Vec::new();
        let ways = [
            // Out, with the same port from three machines to one server: two are translated.
            ((&A, 40_000), (OUTSIDE.ip, 80), (&OUTSIDE, 80)),
            ((&C, 40_000), (OUTSIDE.ip, 80), (&OUTSIDE, 80)),
            ((&D, 40_000), (OUTSIDE.ip, 80), (&OUTSIDE, 80)),
            // In, by the published port; and by a hairpin from the same network and another.
            ((&OTHER, 50_000), (UP.ip, 8080), (&B, 80)),
            ((&A, 41_000), (UP.ip, 8080), (&B, 80)),
            ((&D, 41_000), (UP.ip, 8080), (&B, 80)),
        ];
        for (client, to, server) in ways {
            talks.extend(talk(&mut world, &mut rng, client, to, server));
            // One after the other, so that each listener meets its client.
            world.run(LIMIT, |world| {
                talks.iter_mut().for_each(|t| t.pump(&mut world.machines[t.machine]));
                talks.iter().all(Talk::is_open)
            });
        }
        world.talk(&mut talks, LIMIT);
        assert_transferred(&talks);
        assert_bad(world.weather);
        let now = world.now.as_secs();
        let connections: Vec<_> =
            world.plane.tables().connections.entries(now).map(|e| e.connection).collect();
        assert_eq!(connections.len(), 6, "{connections:#?}");
        let mut resets = world.weather.resets;
        for connection in &connections {
            if connection.state == "CLOSE" && resets > 0 {
                resets -= 1;
            } else {
                assert_eq!(connection.state, "TIME_WAIT", "{connection:?}");
            }
            assert!(connection.packets.iter().all(|packets| *packets > 50));
        }
        assert_eq!(connections.iter().filter(|c| c.dnat).count(), 3);
        assert_eq!(connections.iter().filter(|c| c.snat).count(), 5);
        let stats = &world.plane.worker_stats()[0];
        assert_eq!(stats.dropped(), 0, "{stats:?}");
        world.run(Duration::from_secs(260), |world| world.plane.conntrack_stats().entries == 0);
        assert_eq!(world.plane.conntrack_stats().expired, 6);
    }
}

#[test]
fn datagrams_and_echoes_out_in_and_across() {
    const COUNT: u16 = 40;
    let (mut world, mut rng) = (world(BAD, 7), Rng(300));
    // Who asks whom by which address and port.
    let ways: [(&Host, Ipv4Addr, u16, &Host, u16); 4] = [
        (&A, C.ip, 53, &C, 53),
        (&A, OUTSIDE.ip, 53, &OUTSIDE, 53),
        (&OTHER, UP.ip, 5353, &B, 53),
        (&D, UP.ip, 5353, &B, 53),
    ];
    let mut servers = BTreeSet::new();
    for (number, (client, to, port, server, server_port)) in ways.into_iter().enumerate() {
        let serving = index(server);
        if servers.insert(serving) {
            let handle = world.machines[serving].udp(server_port);
            world.machines[serving].serve(handle);
        }
        let asking = index(client);
        let udp_socket = world.machines[asking].udp(42_000 + number as u16);
        let icmp_id = 7000 + number as u16;
        let icmp_socket = world.machines[asking].icmp(icmp_id);
        let ping_to = if to == UP.ip { GATEWAY1.ip } else { to };
        let ping_to = if client.port == UP.port { UP.ip } else { ping_to };
        let data: Vec<Vec<u8>> = (0..COUNT)
            .map(|n| [n.to_be_bytes().to_vec(), rng.bytes(usize::from(n) * 20)].concat())
            .collect();
        let (mut answered, mut echoed) = (BTreeSet::new(), BTreeSet::new());
        let mut round = 0u32;
        world.run(LIMIT, |world| {
            let machine = &mut world.machines[asking];
            if round.is_multiple_of(50) {
                for n in (0..COUNT).filter(|n| !answered.contains(n)).take(8) {
                    let socket = machine.sockets.get_mut::<udp::Socket<'_>>(udp_socket);
                    let _ = socket.send_slice(&data[usize::from(n)], (to, port));
                }
                for n in (0..COUNT).filter(|n| !echoed.contains(n)).take(8) {
                    machine.ping(icmp_socket, ping_to, icmp_id, n, &data[usize::from(n)]);
                }
            }
            round += 1;
            while let Some((seq, bytes, from)) = machine.pong(icmp_socket) {
                assert_eq!((bytes, from), (data[usize::from(seq)].clone(), ping_to.into()));
                echoed.insert(seq);
            }
            let socket = machine.sockets.get_mut::<udp::Socket<'_>>(udp_socket);
            while let Ok((bytes, meta)) = socket.recv() {
                assert_eq!((meta.endpoint.addr, meta.endpoint.port), (to.into(), port));
                let n = u16::from_be_bytes([bytes[0], bytes[1]]);
                assert!(bytes == data[usize::from(n)]);
                answered.insert(n);
            }
            world.machines.iter_mut().for_each(Machine::answer);
            answered.len() == usize::from(COUNT) && echoed.len() == usize::from(COUNT)
        });
    }
    assert!(world.weather.lost > 10, "{:?}", world.weather);
}

#[test]
fn on_a_good_cable_nothing_is_sent_twice() {
    let (mut world, mut rng) = (world(Faults::NONE, 1), Rng(1));
    let mut talks =
        Vec::from(talk(&mut world, &mut rng, (&A, 40_000), (OUTSIDE.ip, 80), (&OUTSIDE, 80)));
    world.talk(&mut talks, LIMIT);
    assert_transferred(&talks);
    let connection = world.plane.connections().remove(0);
    // Data, headers, and fewer than one segment's worth on top.
    let segments = connection.packets[0] + connection.packets[1];
    let total = connection.bytes[0] + connection.bytes[1];
    assert!(total < 2 * BYTES as u64 + 44 * segments, "{connection:?}");
}

/// The same machines over a running engine.
struct Attached {
    engine: Engine,
    peers: Vec<(Host, MemoryPeer)>,
    ids: Vec<(Host, PortId)>,
}

impl Attached {
    /// One engine with two workers; machines' ports in the order of `hosts`.
    fn new(hosts: &[Host], offloads: Offloads) -> Self {
        let options = EngineOptions { workers: 2, buffers_per_worker: 512, ..small() };
        let engine = Engine::start(&options).unwrap();
        let mut spec = published();
        let all = std::mem::take(&mut spec.ports);
        let (mut peers, mut ids) = (Vec::new(), Vec::new());
        for host in hosts {
            let (port, peer) = MemoryPort::pair_with(512, offloads).unwrap();
            let id = engine.attach(Box::new(port)).unwrap();
            let known = all.iter().find(|port| port.id == host.port).unwrap();
            if let PortRole::Uplink { .. } = known.role {
                spec.uplinks[0].port = id;
            }
            spec.ports.push(PortConfig { id, ..known.clone() });
            peers.push((*host, peer));
            ids.push((*host, id));
        }
        engine.publish(Snapshot::build(spec).unwrap());
        Self { engine, peers, ids }
    }

    fn peer(&self, host: &Host) -> &MemoryPeer {
        &self.peers.iter().find(|(other, _)| other.port == host.port).unwrap().1
    }

    fn finish(self) {
        assert_balances(&self.engine);
        self.engine.stop();
    }
}

/// Sends numbered frames of several flows and sees that each flow's come out in order, none
/// missing: no more are under way than the wires hold.
fn numbered(attached: &Attached, flows: &[(Host, u16)], to: &Host, via: Mac, frames: u32) {
    const WINDOW: u32 = 100;
    let out = attached.peer(to);
    let mut sent = vec![0u32; flows.len()];
    let mut came = vec![0u32; flows.len()];
    let deadline = Instant::now() + Duration::from_secs(60);
    while came.iter().any(|came| *came < frames) {
        assert!(Instant::now() < deadline, "came {came:?} of {frames}");
        for (flow, (from, port)) in flows.iter().enumerate() {
            let ahead = sent[flow] - came[flow];
            for _ in 0..WINDOW.saturating_sub(ahead).min(frames - sent[flow]).min(16) {
                let number = [(flow as u32).to_be_bytes(), sent[flow].to_be_bytes()].concat();
                let frame = datagram(from, *port, to, 53).via(via).payload(&number);
                if !attached.peer(from).send(&frame.bytes(), VnetHdr::default()) {
                    break;
                }
                sent[flow] += 1;
            }
        }
        while let Some((bytes, _)) = out.recv() {
            if bytes[12..14] != [8, 0] {
                continue;
            }
            let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            let (flow, number) = (word(42) as usize, word(46));
            assert_eq!(number, came[flow], "flow {flow} is out of order");
            came[flow] += 1;
        }
        thread::yield_now();
    }
}

#[test]
fn two_workers_keep_the_order_of_each_flow() {
    let attached = Attached::new(&[A, B, C, UP], SINGLE);
    let flows = [(A, 1001), (C, 1002), (A, 1003)];
    numbered(&attached, &flows, &B, B.mac, 20_000);
    // The same through NAT; the first frames wait for the neighbor.
    let flows = [(A, 2001), (C, 2002), (B, 2003)];
    let answering = attached.peer(&UP).clone();
    let answered = arp_reply(&OUTSIDE, &UP);
    assert!(answering.send(&answered, VnetHdr::default()));
    let asked = datagram(&A, 2000, &OUTSIDE, 53).via(GATEWAY1.mac).bytes();
    assert!(attached.peer(&A).send(&asked, VnetHdr::default()));
    let (question, _) = answering.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(question[12..14], [8, 6], "an ARP question");
    assert!(answering.send(&answered, VnetHdr::default()));
    let (first, _) = answering.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(first[..6], OUTSIDE.mac.0);
    numbered(&attached, &flows, &OUTSIDE, GATEWAY1.mac, 20_000);
    assert_eq!(attached.engine.connections().len(), 4);
    attached.finish();
}

#[test]
fn flows_stay_in_order_while_their_ports_move_between_workers() {
    let attached = Attached::new(&[A, B, C, UP], SINGLE);
    let over = AtomicBool::new(false);
    let moves = thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let mut moves = 0u32;
            let mut worker = 0;
            while !over.load(Ordering::Relaxed) {
                worker = 1 - worker;
                for (_, port) in &attached.ids {
                    moves += u32::from(attached.engine.receive_by(*port, worker).unwrap());
                }
            }
            moves
        });
        let flows = [(A, 1001), (C, 1002), (A, 1003)];
        numbered(&attached, &flows, &B, B.mac, 20_000);
        over.store(true, Ordering::Relaxed);
        mover.join().unwrap()
    });
    assert!(moves > 20, "{moves} moves");
    let last = attached.ids.last().unwrap().1;
    assert!(!attached.engine.receive_by(last, 2).unwrap(), "there is no third worker");
    attached.engine.detach(last).unwrap();
    assert!(!attached.engine.receive_by(last, 1).unwrap(), "the port is gone");
    attached.finish();
}

/// Who asks for a neighbor that never answers keeps its own port, not those of others.
#[test]
fn only_the_port_whose_frames_wait_stays_with_its_worker() {
    let attached = Attached::new(&[A, C, UP], Offloads::ALL);
    let [a, c] = [0, 1].map(|at| attached.ids[at].1);
    // Both with the same worker.
    for port in [a, c] {
        let _ = attached.engine.receive_by(port, 0).unwrap();
    }
    let asked = datagram(&A, 2000, &OUTSIDE, 53).via(GATEWAY1.mac).bytes();
    assert!(attached.peer(&A).send(&asked, VnetHdr::default()));
    let (question, _) = attached.peer(&UP).recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(question[12..14], [8, 6], "an ARP question");
    assert!(!attached.engine.receive_by(a, 1).unwrap());
    assert!(attached.engine.receive_by(c, 1).unwrap());
    assert!(attached.peer(&UP).send(&arp_reply(&OUTSIDE, &UP), VnetHdr::default()));
    let (first, _) = attached.peer(&UP).recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(first[..6], OUTSIDE.mac.0);
    assert!(attached.engine.receive_by(a, 1).unwrap(), "nothing waits any more");
    attached.finish();
}

#[test]
fn tcp_over_a_running_engine() {
    const BYTES: usize = 2_000_000;
    let attached = Attached::new(&[A, B, UP], Offloads::NONE);
    let mut rng = Rng(5);
    let mut machines: Vec<Machine> = [(A, GATEWAY1.ip), (B, GATEWAY1.ip), (OUTSIDE, ROUTER.ip)]
        .into_iter()
        .map(|(host, gateway)| Machine::new(&host, gateway, Timestamp::now()))
        .collect();
    let mut talks = Vec::new();
    for (client, to, port, server, server_port) in
        [(0, B.ip, 90, 1, 90), (0, OUTSIDE.ip, 80, 2, 80), (2, UP.ip, 8080, 1, 80)]
    {
        let listening = machines[server].listen(server_port);
        let connecting = machines[client].connect(40_000 + port, to, port);
        talks.push(Talk::new(client, connecting, rng.bytes(BYTES)));
        talks.push(Talk::new(server, listening, rng.bytes(BYTES)));
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while !talks.iter().all(|talk| talk.is_over(&machines[talk.machine])) {
        assert!(Instant::now() < deadline, "{:?}", attached.engine.worker_stats());
        for (machine, (_, peer)) in machines.iter_mut().zip(&attached.peers) {
            while let Some((bytes, vnet)) = peer.recv() {
                assert_eq!(vnet, VnetHdr::default(), "this port takes plain frames only");
                machine.nic.rx.push_back(bytes);
            }
            machine.poll(Timestamp::now());
            while let Some(bytes) = machine.nic.tx.front() {
                if !peer.send(bytes, VnetHdr::default()) {
                    break;
                }
                machine.nic.tx.pop_front();
            }
        }
        for talk in &mut talks {
            talk.pump(&mut machines[talk.machine]);
        }
    }
    assert_transferred(&talks);
    let states: Vec<_> = attached.engine.connections().iter().map(|c| c.state).collect();
    assert_eq!(states, ["TIME_WAIT", "TIME_WAIT"]);
    attached.finish();
}
