//! The way out in its two modes: alone on the wire, or beside the host's own stack.

use std::net::Ipv4Addr;
use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::config::{SnapshotSpec, UplinkMode};
use dataplane::l3::route::Prefix;
use dataplane::packet::types::Mac;
use dataplane::packet::types::tcp_flags::{ACK, RST, SYN};
use tests::lab::{
    A, B, C, CLIENT, D, GATEWAY1, HOST_ADDRESS, Lab, NEIGHBOR, ROUTER, SERVER, Step, UP, dual,
    publish_tcp, small, topology,
};
use tests::packet::nd::router_s_announcement;
use tests::packet::{Host, Wire, arp, echo, echo_reply, ethernet, icmp_error, tcp, udp};

fn lab(mode: UplinkMode) -> Lab {
    let mut spec = topology();
    spec.uplinks[0].mode = mode;
    spec.uplinks[0].nat_ports = vec![(61_000, 61_999)];
    spec.dnat.push(publish_tcp(7, 8080, &B, 80));
    Lab::new(spec)
}

/// What comes by the wire and is nothing of ours: each with the reason a dedicated uplink gives.
fn foreign() -> Vec<(Wire, &'static str)> {
    let mut damaged = udp(&SERVER, 53, &UP, 61_000).bytes();
    damaged[24] ^= 1;
    let mut cut = udp(&SERVER, 53, &UP, 61_000).bytes();
    cut.truncate(38);
    cut[16..18].copy_from_slice(&[0, 24]);
    cut[24..26].copy_from_slice(&[0, 0]);
    let sum = !tests::sums::sum(&cut[14..34]);
    cut[24..26].copy_from_slice(&sum.to_be_bytes());
    vec![
        (tcp(&CLIENT, 5000, &UP, 22, SYN).into(), "unsolicited"),
        (tcp(&CLIENT, 5000, &UP, 8080, ACK).into(), "unsolicited"),
        (tcp(&SERVER, 80, &UP, 61_000, SYN | ACK).into(), "unsolicited"),
        (tcp(&SERVER, 80, &UP, 61_000, RST).into(), "unsolicited"),
        (udp(&SERVER, 53, &UP, 61_000).into(), "unsolicited"),
        (echo_reply(&SERVER, &UP, 9).into(), "unsolicited"),
        (udp(&CLIENT, 1, &A, 2).via(UP.mac).into(), "unsolicited"),
        (udp(&CLIENT, 1, &CLIENT, 2).via(UP.mac).dst(HOST_ADDRESS).into(), "unsolicited"),
        (damaged.into(), "ipv4_checksum"),
        (cut.into(), "l4_malformed"),
        (udp(&CLIENT, 1, &UP, 2).dst([224, 0, 0, 1].into()).into(), "not_unicast"),
        (udp(&CLIENT, 1, &UP, 2).src([127, 0, 0, 1].into()).into(), "martian"),
    ]
}

/// Rows: RFC 5382 REQ-4.
#[test]
fn a_dedicated_uplink_drops_what_is_not_ours() {
    let mut lab = lab(UplinkMode::Dedicated);
    for (wire, reason) in foreign() {
        lab.rx(UP.port, wire).dropped("up", reason);
    }
}

#[test]
fn a_shared_uplink_leaves_to_the_host_what_is_not_ours() {
    let mut lab = lab(UplinkMode::Shared);
    for (wire, _) in foreign() {
        lab.rx(UP.port, wire).moved("consumed", 1);
    }
    lab.rx(UP.port, echo(&CLIENT, &UP, 7)).moved("consumed", 1);
}

#[test]
fn frames_to_others_on_the_wire_are_looked_over() {
    for mode in [UplinkMode::Dedicated, UplinkMode::Shared] {
        let mut lab = lab(mode);
        for frame in [
            tcp(&CLIENT, 5000, &UP, 8080, SYN).via(NEIGHBOR.mac).bytes(),
            tcp(&CLIENT, 5000, &UP, 8080, SYN).via(Mac::BROADCAST).bytes(),
            tcp(&CLIENT, 5000, &UP, 8080, SYN).vlan(5).bytes(),
            ethernet(ROUTER.mac, UP.mac, 0x88cc, &[0; 50]),
            ethernet(ROUTER.mac, Mac([1, 0x80, 0xc2, 0, 0, 0]), 38, &[0; 46]),
            ethernet(ROUTER.mac, UP.mac, 0x86dd, &[0x60; 60]),
        ] {
            lab.rx(UP.port, frame).moved("consumed", 1);
        }
    }
}

/// Rows: VPP `test_ping_out_interface_from_outside`.
#[test]
fn a_dedicated_uplink_answers_echo() {
    let mut lab = lab(UplinkMode::Dedicated);
    let pong = echo_reply(&UP, &CLIENT, 7).may_fragment();
    lab.rx(UP.port, echo(&CLIENT, &UP, 7)).tx(UP.port, pong).answered();
}

#[test]
fn both_modes_carry_our_connections() {
    for mode in [UplinkMode::Dedicated, UplinkMode::Shared] {
        let mut lab = lab(mode);
        let there = udp(&A, 61_500, &SERVER, 53).via(GATEWAY1.mac);
        lab.rx(A.port, &there)
            .tx(UP.port, there.clone().src(UP.ip).routed(UP.mac, ROUTER.mac))
            .masqueraded(&there);
        let back = udp(&SERVER, 53, &UP, 61_500);
        lab.rx(UP.port, &back).tx(A.port, back.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac));
        let syn = tcp(&CLIENT, 5000, &UP, 8080, SYN);
        lab.rx(UP.port, &syn)
            .tx(B.port, syn.clone().dst(B.ip).dport(80).routed(GATEWAY1.mac, B.mac))
            .moved("conn.new", 1)
            .moved("dnat.7.packets", 1)
            .moved("dnat.7.bytes", 40);
    }
}

#[test]
fn the_address_of_a_dedicated_uplink_is_ours_and_of_a_shared_one_the_host_s() {
    let mut dedicated = lab(UplinkMode::Dedicated);
    let ping = echo(&A, &UP, 7).via(GATEWAY1.mac);
    let pong = echo_reply(&UP, &A, 7).may_fragment().macs(GATEWAY1.mac, A.mac);
    dedicated.rx(A.port, &ping).tx(A.port, pong).answered();
    let ssh = tcp(&A, 40_000, &UP, 22, SYN).via(GATEWAY1.mac);
    let refused = icmp_error(&GATEWAY1, &A, 3, 3, &ssh, 548).tos(0xc0).ident(0);
    dedicated.rx(A.port, &ssh).tx(A.port, refused).moved("generated", 1).dropped("a", "no_service");
    let mut shared = lab(UplinkMode::Shared);
    shared.rx(A.port, &ping).tx(GATEWAY1.port, &ping);
    shared.rx(A.port, &ssh).tx(GATEWAY1.port, &ssh);
}

#[test]
fn our_own_frames_that_come_back_by_the_wire_are_no_news() {
    // A hub, or a capture socket that shows what was sent.
    let mut lab = lab(UplinkMode::Shared);
    let there = udp(&A, 61_500, &SERVER, 53).via(GATEWAY1.mac);
    let sent = lab.rx(A.port, &there).masqueraded(&there).take_one(UP.port);
    lab.rx(UP.port, sent).moved("consumed", 1);
}

/// Without networks, whose gateways are announced too.
fn uplink_alone(mut spec: SnapshotSpec) -> SnapshotSpec {
    spec.networks.clear();
    spec.ports.retain(|port| port.id == UP.port);
    spec
}

#[test]
fn gateways_are_announced_to_their_containers() {
    let options = EngineOptions { announce: true, ..small() };
    let mut spec = dual();
    spec.uplinks[0].mode = UplinkMode::Shared;
    spec.networks.truncate(1);
    spec.ports.retain(|port| port.id != D.port);
    let mut lab = Lab::unresolved(&options, spec);
    let (mac, ip) = (GATEWAY1.mac, GATEWAY1.ip);
    let all = |mut step: Step<'_>| {
        for frame in [
            Wire::from(arp(1, (mac, Mac::BROADCAST), (mac, ip), (Mac::ZERO, ip))),
            router_s_announcement(&GATEWAY1, GATEWAY1.ip6()).into(),
            router_s_announcement(&GATEWAY1, GATEWAY1.link_local()).into(),
        ] {
            step = step.flooded(&[A.port, B.port, C.port], frame).moved("generated", 3);
        }
        drop(step);
    };
    for _ in 0..3 {
        all(lab.after(Duration::from_secs(2)));
    }
    lab.after(Duration::from_secs(10));
    // Another configuration with the same addresses is nothing new; the host's own leg is never told.
    lab.reconfigure(|spec| spec.networks[0].mtu = 1400);
    lab.after(Duration::from_secs(2));
}

/// Rows: RFC 4861 §7.2.6; moby `TestAdvertiseAddresses, with live restore`.
#[test]
fn a_dedicated_uplink_announces_its_addresses_when_they_appear() {
    let options = EngineOptions { announce: true, ..small() };
    let mut lab = Lab::unresolved(&options, uplink_alone(dual()));
    let by_arp = |mac: Mac, ip: Ipv4Addr| arp(1, (mac, Mac::BROADCAST), (mac, ip), (Mac::ZERO, ip));
    let all = |step: Step<'_>, from: &Host| {
        step.tx(UP.port, by_arp(from.mac, UP.ip))
            .tx(UP.port, router_s_announcement(from, UP.ip6()))
            .tx(UP.port, router_s_announcement(from, from.link_local()))
            .moved("generated", 3);
    };
    all(lab.after(Duration::ZERO), &UP);
    for _ in 0..2 {
        lab.after(Duration::from_secs(1));
        all(lab.after(Duration::from_secs(1)), &UP);
    }
    lab.after(Duration::from_secs(10));

    // The wire was away, and who is there now may be somebody else.
    lab.reconfigure(|spec| spec.uplinks[0].carrier_ups += 1);
    for _ in 0..3 {
        all(lab.after(Duration::from_secs(2)), &UP);
    }
    lab.after(Duration::from_secs(2));

    // Another address, alone.
    let more = Ipv4Addr::new(203, 0, 113, 6);
    let entry = (more.into(), Prefix::new(more, 24));
    lab.reconfigure(|spec| spec.uplinks[0].addresses.push(entry));
    for _ in 0..3 {
        lab.after(Duration::from_secs(2)).tx(UP.port, by_arp(UP.mac, more)).moved("generated", 1);
    }
    lab.after(Duration::from_secs(2));
    lab.reconfigure(|spec| spec.uplinks[0].addresses.truncate(2));
    lab.after(Duration::from_secs(2));

    // Another MAC, and one that the host has.
    let other = Host { mac: Mac([2, 0, 0, 0, 0, 0x77]), ..UP };
    lab.reconfigure(|spec| spec.uplinks[0].mac = other.mac);
    all(lab.after(Duration::from_secs(2)), &other);
    lab.reconfigure(|spec| spec.uplinks[0].mode = UplinkMode::Shared);
    lab.after(Duration::from_secs(2));
}

#[test]
fn many_addresses_are_announced_a_few_at_a_time() {
    let options = EngineOptions { announce: true, ..small() };
    let mut spec = uplink_alone(topology());
    let more = (100..120).map(|n| Ipv4Addr::new(203, 0, 113, n));
    spec.uplinks[0].addresses.extend(more.map(|ip| (ip.into(), Prefix::new(ip, 24))));
    let mut lab = Lab::unresolved(&options, spec);
    for some in [8, 8, 5, 0] {
        let sent = lab.after(Duration::from_millis(100)).moved("generated", some);
        assert_eq!(sent.take(UP.port).len() as i64, some);
    }
}
