//! The gateway: what it answers, what it routes, what it refuses and how it says so.

use std::time::Duration;

use dataplane::config::StaticRoute;
use dataplane::packet::types::tcp_flags::{ACK, FIN, RST, SYN};
use dataplane::packet::types::{Mac, PortId, ip_proto};
use tests::fragments::in_two;
use tests::lab::{
    A, B, C, CLIENT, D, GATEWAY1, GATEWAY2, HOST_ADDRESS, Lab, NEIGHBOR, ROUTER, SERVER, UP,
    UPLINK, prefix, publish, topology, without_guard,
};
use tests::packet::{
    Host, Packet, Wire, arp_request, echo, echo_reply, ethernet, icmp, icmp_error, icmp6, ip,
    raw_ip, reassemble, reported, speaks_ipv6, tcp, udp,
};

tests::in_ipv6! {
    a_missing_route_is_reported
    a_neighbor_that_falls_silent_is_reported
    a_static_route_is_taken
    a_ttl_that_runs_out_is_reported
    an_internal_network_has_no_way_out
    errors_are_limited_in_rate
    ethernet_padding_is_neither_echoed_nor_routed
    networks_reach_each_other_by_published_ports_only
    one_that_floods_leaves_others_their_errors
    packets_that_wait_for_a_silent_neighbor_are_reported
    protocols_without_ports_and_messages_without_a_query
    routed_within_a_network
    the_gateway_answers_echo
    what_is_for_the_host_goes_to_its_leg
    what_the_host_refuses_is_counted_at_whom_it_was_asked_by
    what_is_too_long_is_neither_echoed_nor_for_the_host
    without_a_leg_of_the_host_nobody_serves_there
}

/// The answer to an echo request, with its identification, and free to be fragmented.
fn pong(from: &Host, to: &Host, id: u16) -> Packet {
    echo_reply(from, to, id).may_fragment()
}

fn edited(packet: &Packet, edit: impl FnOnce(&mut Vec<u8>)) -> Wire {
    let mut bytes = packet.bytes();
    edit(&mut bytes);
    bytes.into()
}

/// Rows: RFC 4443 §4.2.
#[test]
fn the_gateway_answers_echo() {
    let mut lab = Lab::default();
    lab.rx(A.port, echo(&A, &GATEWAY1, 7)).tx(A.port, pong(&GATEWAY1, &A, 7)).answered();
    let other = echo(&A, &GATEWAY2, 8).via(GATEWAY1.mac);
    lab.rx(A.port, &other).tx(A.port, pong(&GATEWAY2, &A, 8).macs(GATEWAY1.mac, A.mac)).answered();
    // Type of service is kept, options are not; a TTL of one is enough to be heard.
    let odd = echo(&A, &GATEWAY1, 9).tos(0x28).ttl(1);
    let odd = if speaks_ipv6() { odd } else { odd.ip_options(&[1, 1, 1, 0]) };
    lab.rx(A.port, &odd).tx(A.port, pong(&GATEWAY1, &A, 9).tos(0x28)).answered();
    let large = echo(&A, &GATEWAY1, 10).long(1452);
    lab.rx(A.port, &large).tx(A.port, pong(&GATEWAY1, &A, 10).long(1452)).answered();
    let wrong = edited(&echo(&A, &GATEWAY1, 11), |bytes| *bytes.last_mut().unwrap() ^= 1);
    lab.rx(A.port, wrong).dropped("a", "l4_malformed");
}

/// Rows: VPP `test_icmp_echo_reply_trailer`.
#[test]
fn ethernet_padding_is_neither_echoed_nor_routed() {
    let mut lab = Lab::default();
    let ping = echo(&A, &GATEWAY1, 7).payload(b"");
    let padded = edited(&ping, |bytes| bytes.resize(90, 0xee));
    lab.rx(A.port, padded).tx(A.port, pong(&GATEWAY1, &A, 7).payload(b"")).answered();
    let datagram = udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac).payload(b"x");
    let padded = edited(&datagram, |bytes| bytes.resize(1600, 0xee));
    lab.rx(A.port, padded)
        .tx(UP.port, datagram.clone().src(UP.ip).routed(UP.mac, ROUTER.mac))
        .masqueraded(&datagram);
}

/// Rows: Linux `local_termination.sh`.
#[test]
fn what_is_for_the_host_goes_to_its_leg() {
    let mut lab = Lab::default();
    for packet in [
        udp(&A, 4000, &GATEWAY1, 53),
        tcp(&A, 4000, &GATEWAY1, 22, SYN),
        tcp(&A, 4000, &GATEWAY1, 22, SYN).dst(HOST_ADDRESS),
        echo(&A, &GATEWAY1, 3).dst(HOST_ADDRESS),
        udp(&A, 4000, &GATEWAY1, 53).dst(GATEWAY2.ip),
    ] {
        lab.rx(A.port, &packet).tx(GATEWAY1.port, &packet);
    }
    let answer = udp(&GATEWAY1, 53, &A, 1000);
    lab.rx(GATEWAY1.port, &answer).tx(A.port, &answer);
}

#[test]
fn what_is_too_long_is_neither_echoed_nor_for_the_host() {
    let mut lab = Lab::default();
    for packet in [
        udp(&A, 4000, &GATEWAY1, 53),
        echo(&A, &GATEWAY1, 3).dst(HOST_ADDRESS),
        echo(&A, &GATEWAY1, 3),
    ] {
        lab.rx(A.port, packet.long(1473)).dropped("a", "oversize");
    }
    let ping = echo(&SERVER, &UP, 3).macs(ROUTER.mac, UP.mac);
    lab.rx(UP.port, ping.long(1473)).dropped("up", "oversize");
    let datagram = udp(&A, 4000, &GATEWAY1, 53).long(1452);
    lab.rx(A.port, &datagram).tx(GATEWAY1.port, &datagram);
}

#[test]
fn a_host_that_forwards_is_no_way_into_a_network() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.networks[0].internal = true);
    // As the host's stack would hand them on with `ip_forward=1`.
    for outsider in [CLIENT.ip, NEIGHBOR.ip, D.ip, A.ip, [127, 0, 0, 1].into()] {
        let from = Host { ip: outsider, ..GATEWAY1 };
        for packet in [udp(&from, 53, &A, 1000), tcp(&from, 4000, &A, 22, SYN), echo(&from, &A, 1)]
        {
            lab.rx(GATEWAY1.port, &packet).dropped("host", "host_forwarded");
        }
        // By way of the gateway, and to all.
        let routed = udp(&from, 53, &B, 1000).macs(GATEWAY1.mac, GATEWAY1.mac);
        lab.rx(GATEWAY1.port, routed).dropped("host", "host_forwarded");
        let to_all = udp(&from, 53, &A, 1000).macs(GATEWAY1.mac, Mac::BROADCAST);
        lab.rx(GATEWAY1.port, to_all).dropped("host", "host_forwarded");
        lab.rx(GATEWAY1.port, arp_request(&from, A.ip)).dropped("host", "host_forwarded");
    }
    // The host itself, by any address that it has; a proxy on it too.
    for own in [GATEWAY1.ip, GATEWAY2.ip, HOST_ADDRESS] {
        let from = Host { ip: own, ..GATEWAY1 };
        let packet = tcp(&from, 4000, &A, 22, SYN);
        lab.rx(GATEWAY1.port, &packet).tx(A.port, &packet);
        let who = arp_request(&from, A.ip);
        lab.rx(GATEWAY1.port, who.clone())
            .flooded(&[A.port, B.port, C.port], who)
            .moved("replicated", 2);
    }
    let mut odd = arp_request(&GATEWAY1, A.ip);
    odd[15] = 9;
    lab.rx(GATEWAY1.port, odd).dropped("host", "arp_malformed");
}

#[test]
fn without_a_leg_of_the_host_nobody_serves_there() {
    let mut lab = Lab::default();
    let packet = udp(&D, 4000, &GATEWAY2, 53);
    lab.rx(D.port, &packet)
        .tx(D.port, reported(&GATEWAY2, &D, 3, 3, &packet))
        .moved("generated", 1)
        .dropped("d", "no_service");
}

/// Rows: RFC 4443 §2.2; RFC 4443 §3.3; VPP `test_dynamic_icmp_errors_in2out_ttl_1, _in2out_ttl_2`.
#[test]
fn a_ttl_that_runs_out_is_reported() {
    let mut lab = Lab::default();
    for ttl in [0, 1] {
        let packet = udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac).ttl(ttl).long(1000);
        lab.rx(A.port, &packet)
            .tx(A.port, reported(&GATEWAY1, &A, 11, 0, &packet))
            .moved("generated", 1)
            .dropped("a", "ttl_exceeded");
    }
}

/// Whether it is asked for by ARP or by Neighbor Discovery.
///
/// Rows: RFC 4861 §7.3.
#[test]
fn a_neighbor_that_falls_silent_is_reported() {
    let mut lab = Lab::default();
    lab.resolve(&NEIGHBOR);
    let packet = udp(&A, 4000, &NEIGHBOR, 2000).via(GATEWAY1.mac);
    let out = Wire::from(packet.clone().src(UP.ip).routed(UP.mac, NEIGHBOR.mac));
    lab.rx(A.port, &packet).tx(UP.port, out.clone()).masqueraded(&packet);
    lab.after(Duration::from_secs(60)).only_balanced();
    // What was once known holds while it is asked three times.
    for asked in 1..=3 {
        let sent = lab.rx(A.port, &packet).moved("generated", 1).take(UP.port);
        assert_eq!((sent.len(), sent.contains(&out)), (2, true), "question {asked}: {sent:?}");
        lab.after(Duration::from_secs(1)).only_balanced();
    }
    lab.rx(A.port, &packet)
        .tx(A.port, reported(&GATEWAY1, &A, 3, 1, &packet))
        .moved("generated", 1)
        .dropped("a", "neighbor_unresolved");
}

/// Each of them, as it was before it was translated.
///
/// Rows: RFC 4861 §7.2.2.
#[test]
fn packets_that_wait_for_a_silent_neighbor_are_reported() {
    let mut spec = topology();
    spec.uplinks[0].nat_ports = vec![(50_000, 50_999)];
    let mut lab = Lab::new(spec);
    let all = [
        udp(&A, 4000, &NEIGHBOR, 2000),
        tcp(&A, 4000, &NEIGHBOR, 80, SYN),
        echo(&A, &NEIGHBOR, 4000),
        raw_ip(&A, &NEIGHBOR, 47),
        udp(&B, 4000, &NEIGHBOR, 2000),
    ];
    let all = all.map(|packet| packet.via(GATEWAY1.mac));
    for (packet, from) in all.iter().zip([&A, &A, &A, &A, &B]) {
        let step = lab.rx(from.port, packet).masqueraded(packet).moved("queued", 1);
        step.tolerate("neighbors").tolerate("generated").accept(&[UP.port]);
    }
    let mut told = vec![Vec::new(), Vec::new()];
    for _ in 0..12 {
        let sent = lab.after(Duration::from_millis(300)).sent();
        for (port, wire) in sent {
            match port {
                port if port == A.port => told[0].push(wire),
                port if port == B.port => told[1].push(wire),
                _ => {}
            }
        }
    }
    let error = |packet: &Packet, to: &Host| {
        Wire::from(reported(&GATEWAY1, to, 3, 1, &packet.clone().ttl(63)))
    };
    let of_a: Vec<_> = all[..4].iter().map(|packet| error(packet, &A)).collect();
    assert_eq!(told, [of_a, vec![error(&all[4], &B)]]);
    assert!(lab.connections().is_empty());
}

/// Rows: RFC 4443 §3.1.
#[test]
fn a_missing_route_is_reported() {
    let mut lab = Lab::default();
    let packet = udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac);
    lab.reconfigure(|spec| (spec.uplinks[0].gateway, spec.uplinks[0].gateway6) = (None, None));
    lab.rx(A.port, &packet)
        .tx(A.port, reported(&GATEWAY1, &A, 3, 0, &packet))
        .moved("generated", 1)
        .dropped("a", "no_route");
    lab.reconfigure(|spec| {
        spec.uplinks.clear();
        spec.ports.retain(|port| port.id != UP.port);
    });
    lab.rx(A.port, &packet)
        .tx(A.port, reported(&GATEWAY1, &A, 3, 0, &packet))
        .moved("generated", 1)
        .dropped("a", "uplink_missing");
}

#[test]
fn a_static_route_is_taken() {
    let mut lab = Lab::default();
    lab.resolve(&NEIGHBOR);
    lab.reconfigure(|spec| {
        spec.routes.push(StaticRoute {
            prefix: prefix(SERVER.ip, 24),
            via: ip(NEIGHBOR.ip),
            uplink: UPLINK,
        });
    });
    let packet = udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac);
    lab.rx(A.port, &packet)
        .tx(UP.port, packet.clone().src(UP.ip).routed(UP.mac, NEIGHBOR.mac))
        .masqueraded(&packet);
}

#[test]
fn what_must_not_be_reported_is_not() {
    let mut spec = topology();
    without_guard(&mut spec);
    let mut lab = Lab::new(spec);
    let dead = |packet: Packet| packet.via(GATEWAY1.mac).ttl(1);
    let quoted = udp(&SERVER, 53, &A, 1000);
    let error = dead(icmp_error(&A, &SERVER, 3, 3, &quoted, 28));
    // Of no connection, and no error about an error.
    lab.rx(A.port, &error).dropped("a", "icmp_unrelated");
    // A source that is not one host.
    let nowhere = dead(udp(&A, 1, &SERVER, 2)).src([0, 0, 0, 0].into());
    lab.rx(A.port, &nowhere).dropped("a", "martian");
}

/// Rows: RFC 4443 §2.4 (f).
#[test]
fn errors_are_limited_in_rate() {
    let mut lab = Lab::default();
    let packet = udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac).ttl(1);
    let batch = || (0..60).map(|_| (A.port, packet.clone().into())).collect();
    // Three quarters of a worker's are one port's at once, and a quarter in the long run.
    let sent = lab
        .batch(batch())
        .moved("generated", 38)
        .moved("a.drop.ttl_exceeded", 60)
        .moved("drop.ttl_exceeded", 60)
        .take(A.port);
    assert!(sent.iter().all(|wire| *wire == reported(&GATEWAY1, &A, 11, 0, &packet).into()));
    lab.now = lab.now + Duration::from_millis(5);
    lab.batch(batch())
        .moved("generated", 1)
        .moved("a.drop.ttl_exceeded", 60)
        .moved("drop.ttl_exceeded", 60)
        .take(A.port);
}

/// Whatever A has to be told of, B is told what it has to know.
#[test]
fn one_that_floods_leaves_others_their_errors() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.uplinks[0].mtu = 1280);
    let dead = udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac).ttl(1);
    let long = udp(&B, 4000, &SERVER, 53).via(GATEWAY1.mac).long(1400);
    let told = Wire::from(reported(&GATEWAY1, &B, 3, 4, &long).icmp_low(1280));
    let mut flood = 0;
    for _ in 0..100 {
        let mut batch: Vec<(PortId, Wire)> = (0..60).map(|_| (A.port, Wire::from(&dead))).collect();
        batch.push((B.port, Wire::from(&long)));
        let sent = lab.batch(batch).sent();
        let of =
            |port: PortId| sent.iter().filter(move |(to, _)| *to == port).map(|(_, wire)| wire);
        assert_eq!(of(B.port).collect::<Vec<_>>(), [&told]);
        flood += of(A.port).count();
        lab.now = lab.now + Duration::from_millis(10);
    }
    // In 990 ms.
    assert_eq!(flood, 38 + 247);
}

/// Rows: RFC 4787 REQ-13; Linux `pmtu.sh`.
#[test]
fn too_long_for_the_way_out() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.uplinks[0].mtu = 1280);
    let packet = udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac).long(1400);
    lab.rx(A.port, &packet)
        .tx(A.port, reported(&GATEWAY1, &A, 3, 4, &packet).icmp_low(1280))
        .moved("generated", 1)
        .dropped("a", "mtu_exceeded");
    let packet = packet.may_fragment().ident(0x4321);
    let sent = lab.rx(A.port, &packet).moved("replicated", 1).masqueraded(&packet).take(UP.port);
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|wire| wire.bytes.len() <= 14 + 1280));
    let whole = packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
    assert_eq!(reassemble(&sent), whole.into());
    let fits = packet.long(1252);
    lab.rx(A.port, &fits).tx(UP.port, fits.clone().src(UP.ip).routed(UP.mac, ROUTER.mac));
}

#[test]
fn frames_that_waited_are_fragmented_too() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.uplinks[0].mtu = 600);
    let packet = udp(&A, 4000, &NEIGHBOR, 53).via(GATEWAY1.mac).long(1400).may_fragment();
    lab.rx(A.port, &packet)
        .moved("generated", 1)
        .moved("queued", 1)
        .moved("neighbors", 1)
        .masqueraded(&packet)
        .take(UP.port);
    lab.rx(UP.port, tests::packet::arp_reply(&NEIGHBOR, &UP)).moved("consumed", 1);
    let sent = lab.after(Duration::ZERO).moved("queued", -1).moved("replicated", 2).take(UP.port);
    assert_eq!(sent.len(), 3);
    assert_eq!(reassemble(&sent), packet.src(UP.ip).routed(UP.mac, NEIGHBOR.mac).into());
}

/// Rows: RFC 4787 REQ-14; Open vSwitch `conntrack: IPv4 fragmentation, with NAT`; Linux `conntrack_ipip_mtu.sh,
/// vxlan_mtu_frag.sh`; VPP `test_frag_in_order`; VPP `test_reassembly`.
#[test]
fn fragments_follow_the_first_one_through_nat() {
    let mut lab = Lab::default();
    let datagram = udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac).may_fragment().long(1200);
    let [first, second] = in_two(&datagram, 800);
    let out = lab
        .rx(A.port, first)
        .moved("conn.new", 1)
        .moved("masquerade.1.packets", 1)
        .moved("masquerade.1.bytes", 820)
        .take_one(UP.port);
    let rest = lab.rx(A.port, second).take_one(UP.port);
    let expected = datagram.src(UP.ip).routed(UP.mac, ROUTER.mac);
    assert_eq!(reassemble(&[out, rest]), expected.into());
}

#[test]
fn networks_reach_each_other_by_published_ports_only() {
    let mut lab = Lab::default();
    lab.rx(A.port, udp(&A, 1, &D, 2).via(GATEWAY1.mac)).dropped("a", "inter_network");
    lab.rx(D.port, echo(&D, &B, 2).via(GATEWAY2.mac)).dropped("d", "inter_network");
}

/// Rows: Linux `router_bridge*.sh`.
#[test]
fn routed_within_a_network() {
    let mut lab = Lab::default();
    let packet = udp(&A, 4000, &B, 2000).via(GATEWAY1.mac);
    lab.rx(A.port, &packet).tx(B.port, packet.routed(GATEWAY1.mac, B.mac)).moved("conn.new", 1);
}

/// Rows: moby `TestInternalNwConnectivity`.
#[test]
fn an_internal_network_has_no_way_out() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.networks[0].internal = true);
    lab.rx(A.port, udp(&A, 1, &SERVER, 2).via(GATEWAY1.mac)).dropped("a", "internal_network");
    lab.rx(A.port, udp(&A, 1, &D, 2).via(GATEWAY1.mac)).dropped("a", "internal_network");
    let inside = udp(&A, 1, &B, 2);
    lab.rx(A.port, &inside).tx(B.port, &inside);
    lab.rx(A.port, echo(&A, &GATEWAY1, 7)).tx(A.port, pong(&GATEWAY1, &A, 7)).answered();
    lab.rx(D.port, udp(&D, 1, &A, 2).via(GATEWAY2.mac)).dropped("d", "inter_network");
    lab.rx(UP.port, udp(&CLIENT, 1, &A, 2).via(UP.mac)).dropped("up", "unsolicited");
}

/// Rows: Linux `router_broadcast.sh, router_multicast.sh`.
#[test]
fn addresses_that_cannot_be_on_the_wire() {
    let mut spec = topology();
    without_guard(&mut spec);
    let mut lab = Lab::new(spec);
    let sent = |src: [u8; 4], dst: [u8; 4]| {
        udp(&A, 1, &SERVER, 2).via(GATEWAY1.mac).src(src.into()).dst(dst.into())
    };
    let (inside, outside) = (A.ip.octets(), SERVER.ip.octets());
    for src in [[127, 0, 0, 1], [0, 0, 0, 0], [0, 1, 2, 3], [224, 0, 0, 1], [240, 0, 0, 1]] {
        lab.rx(A.port, sent(src, outside)).dropped("a", "martian");
    }
    for src in [GATEWAY1.ip, GATEWAY2.ip, UP.ip] {
        lab.rx(A.port, sent(src.octets(), outside)).dropped("a", "martian");
    }
    for dst in [[127, 0, 0, 1], [0, 0, 0, 0]] {
        lab.rx(A.port, sent(inside, dst)).dropped("a", "martian");
    }
    for dst in [[224, 0, 0, 251], [239, 1, 2, 3], [255, 255, 255, 255]] {
        lab.rx(A.port, sent(inside, dst)).dropped("a", "not_unicast");
    }
    for dst in [[10, 1, 0, 255], [10, 1, 0, 0], [203, 0, 113, 255], [203, 0, 113, 0]] {
        lab.rx(A.port, sent(inside, dst)).dropped("a", "not_unicast");
    }
    // From outside: our own and inside addresses.
    for src in [UP.ip, GATEWAY1.ip, HOST_ADDRESS] {
        lab.rx(UP.port, udp(&CLIENT, 1, &UP, 2).src(src)).dropped("up", "martian");
    }
}

#[test]
fn packets_that_say_by_which_routers_they_go_are_not_routed() {
    // Loose and strict, with hops left and without, behind others and in front of them.
    let routes: [&[u8]; 4] = [
        &[131, 7, 4, 192, 0, 2, 9, 0],
        &[137, 7, 8, 192, 0, 2, 9, 0],
        &[1, 131, 3, 4],
        &[7, 7, 4, 0, 0, 0, 0, 1, 137, 7, 4, 192, 0, 2, 9, 0],
    ];
    let mut spec = topology();
    spec.dnat = vec![publish(7, ip_proto::UDP, 5353, &B, 53)];
    let mut lab = Lab::new(spec);
    for route in routes {
        let with = |packet: Packet| packet.ip_options(route);
        let out = with(udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac));
        lab.rx(A.port, out).dropped("a", "source_routed");
        let ping = with(echo(&A, &GATEWAY1, 7));
        lab.rx(A.port, ping).dropped("a", "source_routed");
        let published = with(udp(&CLIENT, 4000, &UP, 5353));
        lab.rx(UP.port, published).dropped("up", "source_routed");
        // What is only switched is as it is.
        let neighbor = with(udp(&A, 4000, &B, 53));
        lab.rx(A.port, &neighbor).tx(B.port, &neighbor);
    }
    // Other options are passed on, and what only looks like a route.
    for options in [[7, 7, 4, 131, 3, 4, 0, 0], [148, 4, 0, 0, 0, 131, 3, 4]] {
        let out = udp(&A, 4001, &SERVER, 53).via(GATEWAY1.mac).ip_options(&options);
        let sent = out.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
        let step = lab.rx(A.port, &out).tx(UP.port, sent);
        drop(if options[0] == 7 { step.masqueraded(&out) } else { step });
    }
}

#[test]
fn packets_that_contradict_themselves() {
    let mut lab = Lab::default();
    let packet = udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac);
    let broken = |at: usize, xor: u8| edited(&packet, |bytes| bytes[at] ^= xor);
    lab.rx(A.port, broken(24, 1)).dropped("a", "ipv4_checksum");
    lab.rx(A.port, broken(14, 0x10)).dropped("a", "ipv4_malformed");
    lab.rx(A.port, broken(14, 0x01)).dropped("a", "ipv4_malformed");
    lab.rx(A.port, broken(16, 0x80)).dropped("a", "ipv4_malformed");
    // UDP length beyond the packet.
    lab.rx(A.port, broken(38, 0x80)).dropped("a", "l4_malformed");
    let mut short = packet.clone().payload(b"").bytes();
    short.truncate(30);
    lab.rx(A.port, short).dropped("a", "ipv4_malformed");
    let mut six = packet.bytes();
    six[12..14].copy_from_slice(&[0x86, 0xdd]);
    lab.rx(A.port, six).dropped("a", "ipv6_malformed");
    lab.rx(A.port, ethernet(A.mac, GATEWAY1.mac, 0x88b5, &[0; 46])).dropped("a", "no_service");
    // The same broken packets are switched like any others.
    for wire in [broken(24, 1), broken(14, 0x10), broken(38, 0x80)] {
        let mut bytes = wire.bytes;
        bytes[..6].copy_from_slice(&B.mac.0);
        lab.rx(A.port, bytes.clone()).tx(B.port, bytes).sums_may_be_wrong();
    }
}

#[test]
fn ipv6_is_switched_and_not_routed_by_a_gateway_without_it() {
    let mut lab = Lab::default();
    let mut payload = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    payload.extend_from_slice(&A.link_local().octets());
    payload.extend_from_slice(&[0xfe; 16]);
    payload.extend_from_slice(&[0, 1, 0, 2, 0, 8, 0, 0]);
    let switched = ethernet(A.mac, B.mac, 0x86dd, &payload);
    lab.rx(A.port, switched.clone()).tx(B.port, switched);
    let routed = ethernet(A.mac, GATEWAY1.mac, 0x86dd, &payload);
    lab.rx(A.port, routed).dropped("a", "ipv6_not_routed");
}

/// Rows: RFC 5508 REQ-11; Open vSwitch `conntrack: generic IP protocol`; VPP `test_unknown_proto`.
#[test]
fn protocols_without_ports_and_messages_without_a_query() {
    let mut lab = Lab::default();
    let gre = raw_ip(&A, &SERVER, 47).via(GATEWAY1.mac);
    lab.rx(A.port, &gre)
        .tx(UP.port, gre.clone().src(UP.ip).routed(UP.mac, ROUTER.mac))
        .masqueraded(&gre);
    let back = raw_ip(&SERVER, &UP, 47);
    lab.rx(UP.port, &back).tx(A.port, back.dst(A.ip).routed(GATEWAY1.mac, A.mac));
    // ICMP of the other IP version is one like any other.
    let foreign = if speaks_ipv6() { 1 } else { 58 };
    let there = raw_ip(&A, &SERVER, foreign).via(GATEWAY1.mac);
    lab.rx(A.port, &there)
        .tx(UP.port, there.clone().src(UP.ip).routed(UP.mac, ROUTER.mac))
        .masqueraded(&there)
        .sums_may_be_wrong();
    let back = raw_ip(&SERVER, &UP, foreign);
    lab.rx(UP.port, &back)
        .tx(A.port, back.dst(A.ip).routed(GATEWAY1.mac, A.mac))
        .sums_may_be_wrong();
    // The one tuple that there is to this server is taken.
    let second = raw_ip(&B, &SERVER, 47).via(GATEWAY1.mac);
    lab.rx(B.port, &second)
        .tx(B.port, reported(&GATEWAY1, &B, 3, 13, &second))
        .moved("generated", 1)
        .moved("conn.ports_exhausted", 1)
        .dropped("b", "snat_ports_exhausted");
    // A timestamp query; a multicast listener report.
    let no_query = if speaks_ipv6() {
        icmp6(&A, &SERVER, 131, 0, [0; 4])
    } else {
        icmp(&A, &SERVER, 13, 0, [0; 4])
    };
    let no_query = no_query.via(GATEWAY1.mac).payload(&[0; 16]);
    lab.rx(A.port, &no_query).dropped("a", "unsupported_protocol");
    let unasked = echo_reply(&A, &SERVER, 5).via(GATEWAY1.mac);
    lab.rx(A.port, &unasked).dropped("a", "conntrack_invalid");
}

#[test]
fn a_protocol_without_ports_is_forgotten_when_nothing_comes() {
    let mut lab = Lab::default();
    let there = raw_ip(&A, &SERVER, 47).via(GATEWAY1.mac);
    let back = raw_ip(&SERVER, &UP, 47);
    lab.rx(A.port, &there).masqueraded(&there).take_one(UP.port);
    // Each packet counts from anew, whichever way it goes.
    for _ in 0..2 {
        lab.after(Duration::from_secs(599));
        lab.rx(UP.port, &back).take_one(A.port);
        lab.after(Duration::from_secs(599));
        lab.rx(A.port, &there).take_one(UP.port);
    }
    lab.after(Duration::from_secs(599));
    assert_eq!(lab.connections().len(), 1);
    lab.after(Duration::from_secs(1)).moved("conn.entries", -1).moved("conn.expired", 1);
    lab.rx(UP.port, &back).dropped("up", "unsolicited");
}

#[test]
fn a_whole_first_conversation() {
    let mut lab = Lab::default();
    lab.batch(vec![
        (A.port, arp_request(&A, GATEWAY1.ip).into()),
        (A.port, echo(&A, &GATEWAY1, 1).into()),
        (C.port, udp(&C, 1, &A, 2).into()),
        (A.port, udp(&A, 2, &C, 1).into()),
    ])
    .tx(A.port, tests::packet::arp_reply(&GATEWAY1, &A))
    .tx(A.port, pong(&GATEWAY1, &A, 1))
    .tx(A.port, udp(&C, 1, &A, 2))
    .tx(C.port, udp(&A, 2, &C, 1))
    .moved("consumed", 2)
    .moved("generated", 2);
}

/// By the shortcut that a train of them would take, too; and nothing else is one.
#[test]
fn what_the_host_refuses_is_counted_at_whom_it_was_asked_by() {
    let mut lab = Lab::default();
    let says = |flags: u8, seq: u32| tcp(&GATEWAY1, 81, &A, 40_000, flags).seq(seq);
    let asked = udp(&A, 40_000, &GATEWAY1, 81);
    for _ in 0..4 {
        let unreachable = reported(&GATEWAY1, &A, 3, 3, &asked);
        for refusal in [says(RST | ACK, 0).into(), says(RST, 77).into(), Wire::from(unreachable)] {
            for _ in 0..3 {
                lab.rx(GATEWAY1.port, &refusal).tx(A.port, &refusal).moved("a.refused", 1);
            }
        }
        // Somebody who has served ends so.
        let prohibited = reported(&GATEWAY1, &A, 3, 13, &asked);
        let others = [says(SYN | ACK, 0), says(ACK, 0), says(RST | ACK, 77), says(FIN | ACK, 0)];
        let others = others.map(Wire::from).into_iter().chain([Wire::from(prohibited)]);
        for other in others {
            for _ in 0..3 {
                lab.rx(GATEWAY1.port, &other).tx(A.port, &other);
            }
        }
    }
    // A neighbor's.
    let neighbor = tcp(&B, 81, &A, 40_000, RST | ACK).seq(0);
    lab.rx(B.port, &neighbor).tx(A.port, &neighbor);
}
