//! What a worker remembers of a way dies with everything that it was taken from: the frame after a
//! change goes as if there had been none before. Every case sends a few frames first, so that the way
//! is remembered.

use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::config::{PortRole, StaticRoute};
use dataplane::engine::FdbKind;
use dataplane::l3::route::Prefix;
use dataplane::packet::types::tcp_flags::{ACK, FIN, RST, SYN};
use dataplane::packet::types::{Mac, PortId};
use tests::lab::{
    A, B, C, CLIENT, GATEWAY1, Lab, NEIGHBOR, NET1, ROUTER, SERVER, UP, UPLINK, endpoint,
    publish_tcp, small, topology, without_guard,
};
use tests::packet::{Host, Packet, Wire, arp_reply, arp_request, ethernet, tcp, udp};

const STRANGER: Mac = Mac([2, 0, 0, 0, 0x55, 1]);

fn unguarded() -> Lab {
    let mut spec = topology();
    without_guard(&mut spec);
    Lab::new(spec)
}

fn there() -> Packet {
    udp(&A, 40_000, &SERVER, 7000).via(GATEWAY1.mac)
}

fn back() -> Packet {
    udp(&SERVER, 7000, &UP, 40_000)
}

/// As it leaves by the uplink, to this next hop.
fn outside(packet: &Packet, next: &Host) -> Packet {
    packet.clone().src(UP.ip).routed(UP.mac, next.mac)
}

fn inside(packet: &Packet, to: &Host) -> Packet {
    packet.clone().dst(to.ip).routed(GATEWAY1.mac, to.mac)
}

/// A flow between A and the server whose ways are remembered both ways.
fn established(lab: &mut Lab) {
    lab.rx(A.port, there()).tx(UP.port, outside(&there(), &ROUTER)).masqueraded(&there());
    for _ in 0..3 {
        lab.rx(UP.port, back()).tx(A.port, inside(&back(), &A));
        lab.rx(A.port, there()).tx(UP.port, outside(&there(), &ROUTER));
    }
}

/// A and B know each other, and frames from A to B go by themselves.
fn switched(lab: &mut Lab, frame: &Packet) {
    for _ in 0..4 {
        lab.rx(A.port, frame).tx(B.port, frame.clone());
    }
}

fn between() -> Packet {
    udp(&A, 1, &B, 2)
}

#[test]
fn all_packets_of_a_flow_are_counted_and_keep_it_alive() {
    let mut lab = Lab::default();
    established(&mut lab);
    let connection = lab.connection();
    assert_eq!(connection.packets, [4, 3]);
    let lengths = [4 * there().ip_len() as u64, 3 * back().ip_len() as u64];
    assert_eq!(connection.bytes, lengths);
    assert_eq!(connection.state, "ASSURED");
    for _ in 0..10 {
        lab.after(Duration::from_secs(100));
        lab.rx(A.port, there()).tx(UP.port, outside(&there(), &ROUTER));
        lab.rx(A.port, there()).tx(UP.port, outside(&there(), &ROUTER));
    }
}

#[test]
fn another_route_is_taken_at_once() {
    let mut lab = Lab::default();
    lab.resolve(&NEIGHBOR);
    established(&mut lab);
    // Somebody else's way to the old next hop is as it was.
    let other = udp(&A, 40_000, &CLIENT, 7000).via(GATEWAY1.mac);
    lab.rx(A.port, &other).tx(UP.port, outside(&other, &ROUTER)).masqueraded(&other);
    lab.reconfigure(|spec| {
        let prefix = Prefix::new(SERVER.ip, 24);
        spec.routes.push(StaticRoute { prefix, via: NEIGHBOR.ip.into(), uplink: UPLINK });
    });
    for _ in 0..3 {
        lab.rx(A.port, &other).tx(UP.port, outside(&other, &ROUTER));
        lab.rx(A.port, there()).tx(UP.port, outside(&there(), &NEIGHBOR));
    }
    lab.reconfigure(|spec| spec.routes.clear());
    lab.rx(A.port, there()).tx(UP.port, outside(&there(), &ROUTER));
}

#[test]
fn a_neighbor_with_another_mac_is_found_at_once() {
    let mut lab = Lab::default();
    established(&mut lab);
    let replaced = Host { mac: Mac([2, 0, 0, 0, 0, 0x77]), ..ROUTER };
    lab.rx(UP.port, arp_reply(&replaced, &UP)).moved("consumed", 1);
    lab.rx(A.port, there()).tx(UP.port, outside(&there(), &replaced));
}

/// As often as somebody says so.
#[test]
fn a_neighbor_that_says_nothing_new_ends_no_shortcut() {
    let mut lab = Lab::default();
    established(&mut lab);
    let changes = |lab: &Lab| lab.plane.tables().neighbors.changes();
    let before = changes(&lab);
    let bystander = Host { ip: [203, 0, 113, 77].into(), ..NEIGHBOR };
    for _ in 0..3 {
        lab.rx(UP.port, arp_reply(&ROUTER, &UP)).moved("consumed", 1);
        lab.rx(UP.port, arp_request(&ROUTER, bystander.ip)).moved("consumed", 1);
        lab.rx(UP.port, arp_request(&bystander, ROUTER.ip)).moved("consumed", 1);
        lab.rx(UP.port, arp_reply(&bystander, &UP)).moved("consumed", 1);
        lab.rx(A.port, there()).tx(UP.port, outside(&there(), &ROUTER));
    }
    assert_eq!(changes(&lab), before);
    let replaced = Host { mac: STRANGER, ..ROUTER };
    lab.rx(UP.port, arp_reply(&replaced, &UP)).moved("consumed", 1);
    assert_eq!(changes(&lab), before + 1);
    lab.rx(A.port, there()).tx(UP.port, outside(&there(), &replaced));
}

#[test]
fn a_neighbor_with_another_mac_is_found_by_the_next_frame_of_the_batch() {
    let mut lab = Lab::default();
    established(&mut lab);
    let replaced = Host { mac: Mac([2, 0, 0, 0, 0, 0x77]), ..ROUTER };
    let frames: Vec<(PortId, Wire)> = vec![
        (A.port, there().into()),
        (UP.port, arp_reply(&replaced, &UP).into()),
        (A.port, there().into()),
    ];
    lab.batch(frames)
        .tx(UP.port, outside(&there(), &ROUTER))
        .tx(UP.port, outside(&there(), &replaced))
        .moved("consumed", 1);
}

#[test]
fn a_way_is_found_anew_though_another_from_the_same_host_was_already() {
    let mut lab = Lab::default();
    lab.resolve(&NEIGHBOR);
    lab.reconfigure(|spec| {
        let prefix = Prefix::new(CLIENT.ip, 24);
        spec.routes.push(StaticRoute { prefix, via: NEIGHBOR.ip.into(), uplink: UPLINK });
    });
    established(&mut lab);
    let other = udp(&A, 40_000, &CLIENT, 7000).via(GATEWAY1.mac);
    lab.rx(A.port, &other).tx(UP.port, outside(&other, &NEIGHBOR)).masqueraded(&other);
    lab.rx(A.port, &other).tx(UP.port, outside(&other, &NEIGHBOR));
    let replaced = Host { mac: Mac([2, 0, 0, 0, 0, 0x77]), ..NEIGHBOR };
    lab.resolve(&replaced);
    lab.rx(A.port, there()).tx(UP.port, outside(&there(), &ROUTER));
    lab.rx(A.port, &other).tx(UP.port, outside(&other, &replaced));
}

#[test]
fn a_silent_neighbor_is_asked_again() {
    let mut lab = Lab::unresolved(&tests::lab::small(), topology());
    lab.resolve(&ROUTER);
    established(&mut lab);
    lab.after(Duration::from_secs(60));
    let question = tests::packet::arp_request(&UP, ROUTER.ip);
    lab.rx(A.port, there())
        .tx(UP.port, question)
        .tx(UP.port, outside(&there(), &ROUTER))
        .moved("generated", 1);
}

#[test]
fn an_unpublished_port_is_closed_at_once() {
    let mut spec = topology();
    spec.dnat.push(publish_tcp(7, 8080, &B, 80));
    let mut lab = Lab::new(spec);
    let syn = tcp(&CLIENT, 5000, &UP, 8080, SYN);
    lab.rx(UP.port, &syn)
        .tx(B.port, inside(&syn, &B).dport(80))
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", 40);
    let answer = tcp(&B, 80, &CLIENT, 5000, SYN | ACK).via(GATEWAY1.mac);
    lab.rx(B.port, &answer).tx(UP.port, outside(&answer, &ROUTER).sport(8080));
    let data = tcp(&CLIENT, 5000, &UP, 8080, ACK);
    for _ in 0..3 {
        lab.rx(UP.port, &data).tx(B.port, inside(&data, &B).dport(80));
    }
    lab.reconfigure(|spec| spec.dnat.clear());
    lab.rx(UP.port, &data).dropped("up", "unsolicited");
}

#[test]
fn a_host_that_moved_is_found_at_its_new_port_at_once() {
    let mut lab = unguarded();
    let hello = ethernet(STRANGER, A.mac, 0x88b5, &[7; 46]);
    let to = ethernet(A.mac, STRANGER, 0x88b5, &[7; 46]);
    lab.rx(B.port, hello.clone()).tx(A.port, hello.clone()).moved("fdb.learned", 1);
    for _ in 0..4 {
        lab.rx(B.port, hello.clone()).tx(A.port, hello.clone());
        lab.rx(A.port, to.clone()).tx(B.port, to.clone());
    }
    lab.rx(C.port, hello.clone()).tx(A.port, hello.clone()).moved("fdb.moves", 1);
    lab.rx(A.port, to.clone()).tx(C.port, to.clone());
    // In one batch, behind frames that go by themselves.
    for _ in 0..4 {
        lab.rx(A.port, to.clone()).tx(C.port, to.clone());
    }
    let frames: Vec<(PortId, Wire)> = vec![
        (A.port, to.clone().into()),
        (B.port, hello.clone().into()),
        (A.port, to.clone().into()),
    ];
    lab.batch(frames).tx(C.port, to.clone()).tx(A.port, hello).tx(B.port, to).moved("fdb.moves", 1);
}

#[test]
fn a_host_that_was_evicted_is_found_at_its_new_port_at_once() {
    let mut spec = topology();
    without_guard(&mut spec);
    let mut lab = Lab::with(&EngineOptions { fdb_per_port: 4, ..small() }, spec);
    let hello = ethernet(STRANGER, A.mac, 0x88b5, &[7; 46]);
    let to = ethernet(A.mac, STRANGER, 0x88b5, &[7; 46]);
    lab.rx(B.port, hello.clone()).tx(A.port, hello.clone()).moved("fdb.learned", 1);
    for _ in 0..4 {
        lab.rx(A.port, to.clone()).tx(B.port, to.clone());
    }
    // Others behind the same port push it out within the same second.
    let is_known = |lab: &Lab| lab.plane.fdb_entries().iter().any(|entry| entry.mac == STRANGER);
    for number in 0..4 {
        assert!(is_known(&lab), "{number}");
        let other = ethernet(Mac::from_u64(0x0200_0001_0000 + number), A.mac, 0x88b5, &[7; 46]);
        let step = lab.rx(B.port, other.clone()).tx(A.port, other);
        step.moved(if number < 3 { "fdb.learned" } else { "fdb.evictions" }, 1);
    }
    assert!(!is_known(&lab));
    // It is new at the other port, not moved.
    lab.rx(C.port, hello.clone()).tx(A.port, hello).moved("fdb.learned", 1);
    lab.rx(A.port, to.clone()).tx(C.port, to);
}

#[test]
fn packets_for_a_neighbor_that_moved_go_to_its_new_port() {
    // A host behind a port that nobody configured: found by ARP and the FDB.
    let hidden = Host { mac: STRANGER, ip: [10, 1, 0, 77].into(), ..B };
    let mut lab = unguarded();
    let out = udp(&hidden, 40_000, &SERVER, 7000).via(GATEWAY1.mac);
    lab.rx(B.port, arp_reply(&hidden, &GATEWAY1)).only_balanced();
    let link = dataplane::engine::Link::Network(NET1);
    let now = lab.now;
    lab.plane.tables().neighbors.confirm(link, hidden.ip, hidden.mac, true, now);
    lab.rx(B.port, &out).tx(UP.port, outside(&out, &ROUTER)).masqueraded(&out);
    let came = back().dst(hidden.ip).routed(GATEWAY1.mac, hidden.mac);
    for _ in 0..3 {
        lab.rx(UP.port, back()).tx(B.port, came.clone());
    }
    let hello = ethernet(STRANGER, A.mac, 0x88b5, &[7; 46]);
    lab.rx(C.port, hello.clone()).tx(A.port, hello).moved("fdb.moves", 1);
    lab.rx(UP.port, back()).tx(C.port, came);
}

#[test]
fn a_port_that_is_gone_is_sent_nothing_and_says_nothing() {
    let mut lab = Lab::default();
    switched(&mut lab, &between());
    established(&mut lab);
    lab.reconfigure(|spec| spec.ports.retain(|port| port.id != B.port));
    lab.rx(A.port, between()).flooded(&[C.port, GATEWAY1.port], between()).moved("replicated", 1);
    lab.reconfigure(|spec| spec.ports.retain(|port| port.id != A.port));
    lab.rx(A.port, there()).dropped("a", "port_unconfigured");
    lab.rx(A.port, between()).dropped("a", "port_unconfigured");
}

#[test]
fn another_s_way_is_of_no_use() {
    let mut lab = Lab::default();
    established(&mut lab);
    switched(&mut lab, &between());
    // With A's address from another port, with its own MAC and with A's.
    let own = there().macs(B.mac, GATEWAY1.mac);
    for _ in 0..3 {
        lab.rx(B.port, there()).dropped("b", "endpoint_mac");
        lab.rx(B.port, &own).dropped("b", "spoofed_ipv4");
    }
    // Even where its own frames go by themselves.
    let honest = udp(&B, 40_000, &CLIENT, 7000).via(GATEWAY1.mac);
    lab.rx(B.port, &honest)
        .tx(UP.port, outside(&honest, &ROUTER))
        .masqueraded(&honest)
        .tolerate("conn.new");
    for _ in 0..3 {
        lab.rx(B.port, &honest).tx(UP.port, outside(&honest, &ROUTER));
        lab.rx(B.port, &own).dropped("b", "spoofed_ipv4");
        let reply = udp(&B, 2, &A, 1);
        lab.rx(B.port, &reply).tx(A.port, reply.clone());
        lab.rx(B.port, reply.src(C.ip)).dropped("b", "spoofed_ipv4");
    }
    lab.rx(A.port, there()).tx(UP.port, outside(&there(), &ROUTER));
}

#[test]
fn an_address_that_is_taken_away_is_refused_at_once() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| {
        if let PortRole::Endpoint { ipv4, .. } = &mut spec.ports[0].role {
            ipv4.push([10, 1, 0, 200].into());
        }
    });
    let second = Host { ip: [10, 1, 0, 200].into(), ..A };
    let packet = udp(&second, 1, &B, 2);
    switched(&mut lab, &packet);
    lab.reconfigure(|spec| spec.ports[0] = endpoint(&A, NET1));
    lab.rx(A.port, &packet).dropped("a", "spoofed_ipv4");
}

#[test]
fn isolation_begins_at_once() {
    let mut lab = Lab::default();
    switched(&mut lab, &between());
    lab.reconfigure(|spec| spec.networks[0].icc = false);
    lab.rx(A.port, between()).dropped("a", "icc_disabled");
}

#[test]
fn a_smaller_mtu_holds_at_once() {
    let mut lab = Lab::default();
    let long = between().long(1000);
    switched(&mut lab, &long);
    let flow = there().long(1000);
    established(&mut lab);
    lab.rx(A.port, &flow).tx(UP.port, outside(&flow, &ROUTER));
    let huge = there().long(1600);
    lab.rx(A.port, &huge).dropped("a", "mtu_exceeded").moved("generated", 1).take_one(A.port);
    lab.reconfigure(|spec| {
        spec.uplinks[0].mtu = 900;
        spec.ports[1].mtu = 900;
    });
    lab.rx(A.port, &long).dropped("a", "oversize");
    lab.rx(A.port, &flow).dropped("a", "mtu_exceeded").moved("generated", 1).take_one(A.port);
}

#[test]
fn what_is_not_to_be_forwarded_is_not() {
    let mut lab = Lab::default();
    established(&mut lab);
    let dead = there().ttl(1);
    let report =
        lab.rx(A.port, &dead).dropped("a", "ttl_exceeded").moved("generated", 1).take_one(A.port);
    assert_eq!(report.bytes[34..36], [11, 0]);
    let mut broken = there().bytes();
    broken[24] ^= 1;
    lab.rx(A.port, broken).sums_may_be_wrong().dropped("a", "ipv4_checksum");
}

#[test]
fn flushing_ends_flows_and_places_at_once() {
    let mut lab = Lab::default();
    established(&mut lab);
    assert_eq!(lab.plane.flush_connections(&|_| true), 1);
    lab.rx(UP.port, back()).dropped("up", "unsolicited");
    lab.rx(A.port, there()).tx(UP.port, outside(&there(), &ROUTER)).masqueraded(&there());

    let mut lab = unguarded();
    let hello = ethernet(STRANGER, B.mac, 0x88b5, &[7; 46]);
    let to = ethernet(B.mac, STRANGER, 0x88b5, &[7; 46]);
    lab.rx(A.port, hello.clone()).tx(B.port, hello).moved("fdb.learned", 1);
    for _ in 0..4 {
        lab.rx(B.port, to.clone()).tx(A.port, to.clone());
    }
    assert_eq!(lab.plane.fdb_flush(None), 1);
    lab.rx(B.port, to.clone())
        .flooded(&[A.port, C.port, GATEWAY1.port], to.clone())
        .moved("replicated", 2);
    lab.plane.fdb_add(NET1, 0, STRANGER, C.port).unwrap();
    lab.rx(B.port, to.clone()).tx(C.port, to);
}

#[test]
fn a_connection_in_the_place_of_another_goes_its_own_way() {
    let mut lab = Lab::default();
    lab.resolve(&NEIGHBOR);
    lab.reconfigure(|spec| {
        let prefix = Prefix::new(CLIENT.ip, 24);
        spec.routes.push(StaticRoute { prefix, via: NEIGHBOR.ip.into(), uplink: UPLINK });
    });
    established(&mut lab);
    assert_eq!(lab.plane.flush_connections(&|_| true), 1);
    let other = udp(&A, 40_000, &CLIENT, 7000).via(GATEWAY1.mac);
    lab.rx(A.port, &other).tx(UP.port, outside(&other, &NEIGHBOR)).masqueraded(&other);
    for _ in 0..3 {
        lab.rx(A.port, &other).tx(UP.port, outside(&other, &NEIGHBOR));
    }
}

#[test]
fn tcp_states_follow_each_other_by_any_way() {
    let mut lab = Lab::default();
    let segment = |flags| tcp(&A, 40_000, &SERVER, 443, flags).via(GATEWAY1.mac);
    let answer = |flags| tcp(&SERVER, 443, &UP, 40_000, flags);
    let syn = segment(SYN);
    lab.rx(A.port, &syn).tx(UP.port, outside(&syn, &ROUTER)).masqueraded(&syn);
    lab.rx(UP.port, answer(SYN | ACK)).tx(A.port, inside(&answer(SYN | ACK), &A));
    // One batch, in which frames with options go the whole way and the others do not.
    let slow = segment(ACK).ip_options(&[1, 1, 1, 1]);
    let frames: Vec<(PortId, Wire)> = vec![
        (A.port, segment(ACK).into()),
        (A.port, slow.clone().into()),
        (A.port, segment(FIN | ACK).into()),
        (UP.port, answer(ACK).into()),
        (UP.port, answer(FIN | ACK).into()),
        (A.port, segment(ACK).into()),
    ];
    for _ in 0..2 {
        lab.rx(A.port, segment(ACK)).tx(UP.port, outside(&segment(ACK), &ROUTER));
    }
    lab.batch(frames)
        .tx(UP.port, outside(&segment(ACK), &ROUTER))
        .tx(UP.port, outside(&slow, &ROUTER))
        .tx(UP.port, outside(&segment(FIN | ACK), &ROUTER))
        .tx(A.port, inside(&answer(ACK), &A))
        .tx(A.port, inside(&answer(FIN | ACK), &A))
        .tx(UP.port, outside(&segment(ACK), &ROUTER));
    assert_eq!(lab.connection().state, "TIME_WAIT");
    lab.rx(A.port, segment(SYN | FIN)).dropped("a", "conntrack_invalid");
    lab.rx(UP.port, answer(RST)).tx(A.port, inside(&answer(RST), &A));
    assert_eq!(lab.connection().state, "CLOSE");
}

#[test]
fn a_host_that_only_speaks_by_shortcut_does_not_age() {
    let mut lab = unguarded();
    lab.reconfigure(|spec| spec.fdb_ageing = Some(Duration::from_secs(10)));
    let hello = ethernet(STRANGER, B.mac, 0x88b5, &[7; 46]);
    let to = ethernet(B.mac, STRANGER, 0x88b5, &[7; 46]);
    lab.rx(A.port, hello.clone()).tx(B.port, hello.clone()).moved("fdb.learned", 1);
    for _ in 0..30 {
        lab.after(Duration::from_millis(900));
        for _ in 0..3 {
            lab.rx(A.port, hello.clone()).tx(B.port, hello.clone());
        }
    }
    lab.rx(B.port, to.clone()).tx(A.port, to.clone());
    let learned =
        |lab: &Lab| lab.plane.fdb_entries().iter().filter(|e| e.kind == FdbKind::Learned).count();
    assert_eq!(learned(&lab), 1);
    // And one that is silent does, though it is spoken to.
    for _ in 0..11 {
        for _ in 0..3 {
            lab.rx(B.port, to.clone()).tx(A.port, to.clone());
        }
        lab.after(Duration::from_secs(1)).only_balanced();
    }
    lab.rx(B.port, to.clone()).flooded(&[A.port, C.port, GATEWAY1.port], to).only_balanced();
}
