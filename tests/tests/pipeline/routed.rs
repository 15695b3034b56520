//! Networks whose own addresses are used outside: nothing is translated, published ports and echo requests are
//! let in, and the uplink answers for the endpoints on its wire.

use std::net::Ipv4Addr;

use dataplane::config::{DnatRule, Routed, UplinkMode};
use dataplane::l3::route::Prefix;
use dataplane::packet::types::tcp_flags::{ACK, SYN};
use tests::lab::{
    A, B, CLIENT, D, GATEWAY1, GATEWAY2, Lab, NEIGHBOR, ROUTER, SERVER, UP, dual, publish_tcp,
    topology,
};
use tests::packet::nd::{probe, router_s_advertisement, router_s_announcement, solicitation};
use tests::packet::{arp_reply, arp_request, echo, echo_reply, ip, speaks_ipv6, tcp, udp};

tests::in_ipv6! {
    echo_requests_are_let_in
    its_own_addresses_are_seen_outside
    only_published_ports_of_its_addresses_are_let_in
    what_is_not_published_any_more_ends
    without_a_gateway_a_network_reaches_itself_alone
}

const BOTH: Routed = Routed { ipv4: true, ipv6: true };
const RULE: u32 = 7;

/// The first network is routed, the second is not; ports 81 and 82 of B are published at the host's 8081 and 8082.
fn routed() -> Lab {
    let mut spec = topology();
    spec.networks[0].routed = BOTH;
    let mut rule = publish_tcp(RULE, 8081, &B, 81);
    rule.host_ports = (8081, 8082);
    spec.dnat.push(rule);
    spec.dnat.push(publish_tcp(8, 8090, &D, 90));
    Lab::new(spec)
}

#[test]
fn its_own_addresses_are_seen_outside() {
    let mut lab = routed();
    let there = udp(&A, 40_000, &SERVER, 53).via(GATEWAY1.mac);
    lab.rx(A.port, &there).tx(UP.port, there.routed(UP.mac, ROUTER.mac)).moved("conn.new", 1);
    let back = udp(&SERVER, 53, &UP, 40_000).dst(A.ip);
    lab.rx(UP.port, &back).tx(A.port, back.routed(GATEWAY1.mac, A.mac));
    let connection = lab.connection();
    assert!(!connection.snat && !connection.dnat);
    // Those of others are not.
    let there = udp(&D, 40_000, &SERVER, 53).via(GATEWAY2.mac);
    let sent = there.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
    lab.rx(D.port, &there)
        .tx(UP.port, sent)
        .moved("conn.new", 1)
        .moved("masquerade.2.packets", 1)
        .moved("masquerade.2.bytes", there.ip_len() as i64);
}

/// Network 1 has no gateway of either family.
#[test]
fn without_a_gateway_a_network_reaches_itself_alone() {
    let mut spec = topology();
    spec.networks[0].subnets[0].gateway = None;
    spec.dnat = vec![publish_tcp(RULE, 8081, &B, 81)];
    spec.ports.retain(|port| port.id != GATEWAY1.port);
    let mut lab = Lab::new(spec);
    let inside = udp(&A, 1000, &B, 2000);
    lab.rx(A.port, &inside).tx(B.port, &inside);
    // Nobody has the gateway's address, and what goes to its MAC all the same goes nowhere: not outside, not to
    // the host, not to another network and not back into its own.
    let reason = if speaks_ipv6() { "ipv6_not_routed" } else { "no_gateway" };
    for to in [&SERVER, &UP, &GATEWAY1, &GATEWAY2, &D, &B] {
        lab.rx(A.port, udp(&A, 1000, to, 53).via(GATEWAY1.mac)).dropped("a", reason);
        lab.rx(A.port, echo(&A, to, 7).via(GATEWAY1.mac)).dropped("a", reason);
    }
    // Nor does anybody come in: by a published port from outside or inside, or straight.
    let syn = tcp(&CLIENT, 5000, &UP, 8081, SYN);
    lab.rx(UP.port, &syn).dropped("up", "internal_network");
    let syn = tcp(&D, 5000, &UP, 8081, SYN).via(GATEWAY2.mac);
    lab.rx(D.port, &syn).dropped("d", "internal_network");
    let straight = udp(&D, 5000, &B, 81).via(GATEWAY2.mac);
    lab.rx(D.port, &straight).dropped("d", "inter_network");
    assert!(lab.connections().is_empty());
}

/// One of its families may have a gateway.
#[test]
fn each_family_has_a_gateway_of_its_own() {
    for (alone, reason) in [(0, "no_gateway"), (1, "ipv6_not_routed")] {
        let mut spec = dual();
        spec.networks[0].subnets[alone].gateway = None;
        let rule = publish_tcp(RULE, 8081, &B, 81);
        spec.dnat = vec![rule, DnatRule { id: 8, to: B.ip6().into(), ..rule }];
        let mut lab = Lab::new(spec);
        let now = lab.now;
        let link = dataplane::engine::Link::Uplink(tests::lab::UPLINK);
        lab.plane.tables().neighbors.confirm(link, ROUTER.ip6(), ROUTER.mac, true, now);
        let of =
            |v6: usize, packet: tests::packet::Packet| if v6 == 1 { packet.v6() } else { packet };
        let query = udp(&A, 40_000, &SERVER, 53).via(GATEWAY1.mac);
        let syn = tcp(&CLIENT, 5000, &UP, 8081, SYN);
        lab.rx(A.port, of(alone, query.clone())).dropped("a", reason);
        lab.rx(UP.port, of(alone, syn.clone())).dropped("up", "internal_network");
        let there = of(1 - alone, query);
        drop(lab.rx(A.port, &there).masqueraded(&there).take_one(UP.port));
        let came = of(1 - alone, syn);
        let rule = if alone == 0 { "dnat.8" } else { "dnat.7" };
        lab.rx(UP.port, &came)
            .moved("conn.new", 1)
            .moved(&format!("{rule}.packets"), 1)
            .moved(&format!("{rule}.bytes"), came.ip_len() as i64)
            .take_one(B.port);
    }
}

#[test]
fn only_published_ports_of_its_addresses_are_let_in() {
    let mut lab = routed();
    for port in [81, 82] {
        let syn = tcp(&CLIENT, 5000, &B, port, SYN).via(UP.mac);
        lab.rx(UP.port, &syn)
            .tx(B.port, syn.clone().routed(GATEWAY1.mac, B.mac))
            .moved("conn.new", 1)
            .moved("dnat.7.packets", 1)
            .moved("dnat.7.bytes", syn.ip_len() as i64);
        let answer = tcp(&B, port, &CLIENT, 5000, SYN | ACK).via(GATEWAY1.mac);
        lab.rx(B.port, &answer).tx(UP.port, answer.routed(UP.mac, ROUTER.mac));
    }
    for connection in lab.connections() {
        assert!(!connection.snat && !connection.dnat, "{connection:?}");
        assert_eq!(connection.original.dst, ip(B.ip));
    }
    for packet in [
        tcp(&CLIENT, 5000, &B, 80, SYN).via(UP.mac),
        tcp(&CLIENT, 5000, &B, 83, SYN).via(UP.mac),
        tcp(&CLIENT, 5000, &B, 8081, SYN).via(UP.mac),
        tcp(&CLIENT, 5001, &B, 81, ACK).via(UP.mac),
        tcp(&CLIENT, 5000, &A, 81, SYN).via(UP.mac),
        udp(&CLIENT, 5000, &B, 81).via(UP.mac),
        // Another network's are published at the host's addresses alone.
        tcp(&CLIENT, 5000, &D, 90, SYN).via(UP.mac),
    ] {
        lab.rx(UP.port, &packet).dropped("up", "unsolicited");
    }
    // What is published at one address of the host is not open elsewhere.
    lab.reconfigure(|spec| {
        let at = DnatRule { host_ip: Some(ip(UP.ip)), ..publish_tcp(9, 8085, &B, 85) };
        spec.dnat.push(at);
    });
    let packet = tcp(&CLIENT, 5000, &B, 85, SYN).via(UP.mac);
    lab.rx(UP.port, &packet).dropped("up", "unsolicited");
    // Nobody outside is one of those inside.
    let spoofed = tcp(&CLIENT, 5000, &B, 81, SYN).via(UP.mac).src(A.ip);
    lab.rx(UP.port, &spoofed).dropped("up", "martian");
    // Other networks stay apart.
    let from_d = tcp(&D, 5000, &B, 81, SYN).via(GATEWAY2.mac);
    lab.rx(D.port, &from_d).dropped("d", "inter_network");
    // At the host's address it is published as ever.
    let syn = tcp(&CLIENT, 6000, &UP, 8082, SYN);
    let came = lab
        .rx(UP.port, &syn)
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64)
        .take_one(B.port);
    assert_eq!(came.l4_u16(2), 82);
}

#[test]
fn what_is_not_published_any_more_ends() {
    let mut lab = routed();
    let syn = tcp(&CLIENT, 5000, &B, 81, SYN).via(UP.mac);
    let inside = syn.clone().routed(GATEWAY1.mac, B.mac);
    lab.rx(UP.port, &syn)
        .tx(B.port, inside)
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64);
    // A rule for others changes nothing.
    lab.reconfigure(|spec| spec.dnat.retain(|rule| rule.id == RULE));
    assert_eq!(lab.connections().len(), 1);
    lab.reconfigure(|spec| spec.dnat.clear());
    assert!(lab.connections().is_empty());
    lab.rx(UP.port, &syn).dropped("up", "unsolicited");
}

#[test]
fn echo_requests_are_let_in() {
    let mut lab = routed();
    let ping = echo(&CLIENT, &A, 9).via(UP.mac);
    lab.rx(UP.port, &ping).tx(A.port, ping.routed(GATEWAY1.mac, A.mac)).moved("conn.new", 1);
    let pong = echo_reply(&A, &CLIENT, 9).via(GATEWAY1.mac);
    lab.rx(A.port, &pong).tx(UP.port, pong.routed(UP.mac, ROUTER.mac));
    assert!(!lab.connection().snat);
    // A reply begins nothing, another network is not routed, nobody has the address, it is not theirs.
    for packet in [
        echo_reply(&CLIENT, &B, 10).via(UP.mac),
        echo(&CLIENT, &D, 11).via(UP.mac),
        echo(&CLIENT, &A, 12).via(UP.mac).dst([10, 1, 0, 99].into()),
    ] {
        lab.rx(UP.port, &packet).dropped("up", "unsolicited");
    }
    lab.rx(UP.port, echo(&CLIENT, &A, 13).via(UP.mac).src(B.ip)).dropped("up", "martian");
    lab.reconfigure(|spec| spec.networks[0].internal = true);
    lab.rx(UP.port, echo(&CLIENT, &A, 14).via(UP.mac)).dropped("up", "unsolicited");
}

/// RFC 1027 and RFC 4861 §7.2.8: the wire takes the endpoints for its own.
#[test]
fn a_dedicated_uplink_answers_for_them() {
    let mut spec = dual();
    spec.networks[0].routed = BOTH;
    let mut lab = Lab::new(spec);
    // Not for what is no part of the wire's prefixes: it may be somebody else's there.
    lab.rx(UP.port, arp_request(&NEIGHBOR, A.ip)).moved("consumed", 1);
    lab.rx(UP.port, solicitation(&NEIGHBOR, NEIGHBOR.ip6(), A.ip6())).moved("consumed", 1);
    lab.reconfigure(|spec| {
        let own = Ipv4Addr::new(10, 255, 0, 1);
        let (v4, v6) = (own.into(), tests::packet::ip6(own).into());
        let wide = [(v4, Prefix::new(own, 8)), (v6, Prefix::new(tests::packet::ip6(own), 104))];
        spec.uplinks[0].addresses.extend(wide);
    });
    let reply = arp_reply(&tests::packet::Host { ip: A.ip, ..UP }, &NEIGHBOR);
    lab.rx(UP.port, arp_request(&NEIGHBOR, A.ip)).tx(UP.port, reply).answered();
    // It speaks from its own address and overrides nothing.
    let question = solicitation(&NEIGHBOR, NEIGHBOR.ip6(), A.ip6());
    let expected = router_s_advertisement(&UP, A.ip6(), &NEIGHBOR, NEIGHBOR.ip6());
    let expected = expected.src6(UP.link_local()).icmp_rest([0xc0, 0, 0, 0]);
    lab.rx(UP.port, &question).tx(UP.port, expected).answered();
    let taken = router_s_announcement(&UP, A.ip6());
    let taken = taken.src6(UP.link_local()).icmp_rest([0x80, 0, 0, 0]);
    lab.rx(UP.port, probe(&NEIGHBOR, A.ip6())).tx(UP.port, taken).answered();
    // Not for another network's, for who is not there, nor for the gateway.
    for target in [D.ip, [10, 1, 0, 99].into(), GATEWAY1.ip] {
        lab.rx(UP.port, arp_request(&NEIGHBOR, target)).moved("consumed", 1);
        let target = tests::packet::ip6(target);
        let question = solicitation(&NEIGHBOR, NEIGHBOR.ip6(), target);
        lab.rx(UP.port, question).moved("consumed", 1);
    }
    // Each family by itself.
    lab.reconfigure(|spec| spec.networks[0].routed.ipv6 = false);
    lab.rx(UP.port, &question).moved("consumed", 1);
    lab.reconfigure(|spec| spec.networks[0].routed = Routed { ipv4: false, ipv6: true });
    lab.rx(UP.port, arp_request(&NEIGHBOR, A.ip)).moved("consumed", 1);
    // The host's own stack answers on a shared one.
    lab.reconfigure(|spec| spec.uplinks[0].mode = UplinkMode::Shared);
    lab.rx(UP.port, &question).moved("consumed", 1);
}
