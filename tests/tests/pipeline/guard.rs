//! What only trusted ports may send: the answers of a DHCP server, IPv6 Router Advertisements and
//! Redirects. Whatever they hide behind, and however well the way is known.

use std::net::{Ipv4Addr, Ipv6Addr};

use dataplane::config::PortRole;
use dataplane::packet::types::tcp_flags::SYN;
use dataplane::packet::types::{Mac, ethertype};
use tests::fragments::in_two;
use tests::lab::{A, B, C, GATEWAY1, Lab, UP, dual, publish, topology, without_guard};
use tests::packet::{
    Host, Packet, arp, arp_reply, arp_request, echo, ethernet, icmp6, raw_ip, tcp, udp,
};

const ALL_NODES: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;
const ROUTER_ADVERTISEMENT: u8 = 134;

fn trust(lab: &mut Lab, host: &Host) {
    let id = host.port;
    lab.reconfigure(|spec| {
        let port = spec.ports.iter_mut().find(|port| port.id == id).unwrap();
        let PortRole::Endpoint { trusted, .. } = &mut port.role else { panic!("{port:?}") };
        *trusted = true;
    });
}

/// An IPv6 packet of A's with extension headers of eight bytes.
fn ipv6(chain: &[u8], proto: u8, payload: &[u8]) -> Vec<u8> {
    let next = |at: usize| chain.get(at).copied().unwrap_or(proto);
    let length = u16::try_from(chain.len() * 8 + payload.len()).unwrap();
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([next(0), 255]);
    packet.extend(A.link_local().octets());
    packet.extend([0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    for at in 0..chain.len() {
        packet.extend([next(at + 1), 0, 0, 0, 0, 0, 0, 0]);
    }
    packet.extend_from_slice(payload);
    packet
}

/// A message of ICMPv6 with room for what each type has before its options; of Neighbor Discovery about A.
fn message(kind: u8) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    bytes[0] = kind;
    if let 135 | 136 = kind {
        bytes[8..24].copy_from_slice(&A.link_local().octets());
    }
    bytes
}

/// UDP over IPv6; no data.
fn udp6(src: u16, dst: u16) -> Vec<u8> {
    let ports = [src.to_be_bytes(), dst.to_be_bytes()].concat();
    ipv6(&[], UDP, &[&ports[..], &[0, 8, 0, 0]].concat())
}

fn advertisement(to: Mac, chain: &[u8]) -> Vec<u8> {
    ethernet(A.mac, to, ethertype::IPV6, &ipv6(chain, ICMPV6, &message(ROUTER_ADVERTISEMENT)))
}

/// Between the MACs and the EtherType.
fn behind(header: &[u8], frame: &[u8]) -> Vec<u8> {
    [&frame[..12], header, &frame[12..]].concat()
}

/// Frames that nobody takes to the end of.
const OTHERS: [&Host; 3] = [&B, &C, &GATEWAY1];

/// Comes out at all others.
fn passes(lab: &mut Lab, from: &Host, frame: &[u8]) {
    let ports: Vec<_> = OTHERS.iter().map(|host| host.port).collect();
    let step = lab.rx(from.port, frame).sums_may_be_wrong();
    step.tolerate("fdb.learned").flooded(&ports, frame).moved("replicated", 2);
}

#[test]
fn neither_offers_nor_advertisements_leave_an_endpoint() {
    let offer = udp(&A, 67, &B, 68).macs(A.mac, Mac::BROADCAST).bytes();
    let offer6 = ethernet(A.mac, ALL_NODES, ethertype::IPV6, &udp6(547, 546));
    let redirect = ethernet(A.mac, B.mac, ethertype::IPV6, &ipv6(&[], ICMPV6, &message(137)));
    for guard in [true, false] {
        let mut spec = topology();
        if !guard {
            // Who may use any address is no router yet.
            without_guard(&mut spec);
        }
        let mut lab = Lab::new(spec);
        for (frame, reason) in [
            (&offer, "dhcp_untrusted"),
            (&offer6, "dhcp_untrusted"),
            (&advertisement(ALL_NODES, &[]), "ra_untrusted"),
            (&redirect, "ra_untrusted"),
        ] {
            lab.rx(A.port, frame.clone()).dropped("a", reason);
        }
    }
}

#[test]
fn a_trusted_endpoint_the_host_and_the_wire_may() {
    let mut lab = Lab::default();
    let frame = advertisement(ALL_NODES, &[]);
    trust(&mut lab, &A);
    passes(&mut lab, &A, &frame);
    passes(&mut lab, &A, &udp(&A, 67, &B, 68).macs(A.mac, Mac::BROADCAST).bytes());
    // It has its own addresses all the same.
    lab.rx(A.port, udp(&A, 67, &B, 68).src(C.ip)).dropped("a", "spoofed_ipv4");
    let of_the_host = udp(&GATEWAY1, 67, &A, 68);
    lab.rx(GATEWAY1.port, &of_the_host).tx(A.port, &of_the_host);
}

/// Rows: RFC 7113 §3.
#[test]
fn no_header_hides_an_advertisement() {
    let mut lab = Lab::default();
    let plain = advertisement(ALL_NODES, &[]);
    let mut snap = plain.clone();
    snap.splice(12..12, [0, 100, 0xaa, 0xaa, 3, 0, 0, 0]);
    for (name, frame) in [
        ("hop by hop", advertisement(ALL_NODES, &[HOP_BY_HOP])),
        ("options", advertisement(ALL_NODES, &[HOP_BY_HOP, DESTINATION_OPTIONS])),
        ("options twice", advertisement(ALL_NODES, &[DESTINATION_OPTIONS; 2])),
        ("too many", advertisement(ALL_NODES, &[DESTINATION_OPTIONS; 20])),
        ("an atomic fragment", advertisement(ALL_NODES, &[FRAGMENT])),
        ("cut short", advertisement(ALL_NODES, &[HOP_BY_HOP])[..60].to_vec()),
        ("a tag", behind(&[0x81, 0, 0, 5], &plain)),
        ("a priority tag", behind(&[0x81, 0, 0xe0, 0], &plain)),
        ("two tags", behind(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 9], &plain)),
        ("twenty tags", behind(&[0x81, 0, 0, 5].repeat(20), &plain)),
        ("SNAP", snap.clone()),
        ("SNAP behind a tag", behind(&[0x81, 0, 0, 0], &snap)),
        ("options behind a tag", behind(&[0x81, 0, 0, 5], &advertisement(ALL_NODES, &[60]))),
    ] {
        let before = lab.plane.worker_stats()[0].dropped();
        lab.rx(A.port, frame).dropped("a", "ra_untrusted");
        assert_eq!(lab.plane.worker_stats()[0].dropped(), before + 1, "{name}");
    }
}

#[test]
fn what_endpoints_say_every_day_passes() {
    let mut lab = Lab::default();
    let icmp = |kind| {
        let packet = ipv6(&[], ICMPV6, &message(kind));
        ethernet(A.mac, ALL_NODES, ethertype::IPV6, &packet)
    };
    // Solicitations, advertisements of neighbors, echo, reports of multicast listeners.
    for kind in [128, 129, 133, 135, 136] {
        passes(&mut lab, &A, &icmp(kind));
    }
    let report = ipv6(&[HOP_BY_HOP], ICMPV6, &message(143));
    passes(&mut lab, &A, &ethernet(A.mac, ALL_NODES, ethertype::IPV6, &report));
    passes(&mut lab, &A, &ethernet(A.mac, ALL_NODES, ethertype::IPV6, &udp6(546, 547)));
    passes(&mut lab, &A, &udp(&A, 68, &B, 67).macs(A.mac, Mac::BROADCAST).bytes());
    passes(&mut lab, &A, &udp(&A, 5353, &B, 5353).macs(A.mac, Mac::BROADCAST).bytes());
    passes(&mut lab, &A, &behind(&[0x81, 0, 0, 5], &icmp(128)));
}

/// A and B talk, so that frames from A to B are switched by their link header alone.
#[test]
fn no_shortcut_leads_past_the_guard() {
    for guard in [true, false] {
        let mut spec = topology();
        if !guard {
            without_guard(&mut spec);
        }
        let mut lab = Lab::new(spec);
        let v4 = udp(&A, 1000, &B, 2000);
        let segment = [0x0b, 0xb8, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0];
        let v6 = ethernet(A.mac, B.mac, ethertype::IPV6, &ipv6(&[], 6, &segment));
        let fill = ethernet(A.mac, B.mac, 0x88b5, &[7; 60]);
        let warm = |lab: &mut Lab| {
            for _ in 0..3 {
                lab.rx(A.port, &v4).tx(B.port, &v4);
                lab.rx(A.port, v6.clone()).tx(B.port, v6.clone()).sums_may_be_wrong();
                lab.rx(A.port, fill.clone()).tx(B.port, fill.clone());
            }
            for frame in [v6.clone(), fill.clone()] {
                for _ in 0..3 {
                    let step = lab.rx(A.port, frame.clone()).tx(B.port, frame.clone());
                    step.sums_may_be_wrong();
                }
            }
            for _ in 0..3 {
                lab.rx(A.port, &v4).tx(B.port, &v4);
            }
        };
        let options = udp(&A, 67, &B, 68).ip_options(&[1, 1, 1, 1]);
        let atomic = advertisement(B.mac, &[FRAGMENT]);
        let mut snap = advertisement(B.mac, &[]);
        snap.splice(12..12, [0, 100, 0xaa, 0xaa, 3, 0, 0, 0]);
        let unicast6 = ethernet(A.mac, B.mac, ethertype::IPV6, &udp6(547, 546));
        for (frame, reason) in [
            (udp(&A, 67, &B, 68).bytes(), "dhcp_untrusted"),
            (udp(&A, 67, &B, 67).bytes(), "dhcp_untrusted"),
            (udp(&A, 1067, &B, 68).bytes(), "dhcp_untrusted"),
            (options.bytes(), "dhcp_untrusted"),
            (udp(&A, 67, &B, 68).vlan(5).bytes(), "dhcp_untrusted"),
            (unicast6, "dhcp_untrusted"),
            (advertisement(B.mac, &[]), "ra_untrusted"),
            (advertisement(B.mac, &[HOP_BY_HOP]), "ra_untrusted"),
            (advertisement(B.mac, &[DESTINATION_OPTIONS]), "ra_untrusted"),
            (atomic, "ra_untrusted"),
            (behind(&[0x81, 0, 0, 5], &advertisement(B.mac, &[])), "ra_untrusted"),
            (snap, "ra_untrusted"),
        ] {
            warm(&mut lab);
            lab.rx(A.port, frame.clone()).dropped("a", reason);
            // In the middle of a train, too.
            let train = vec![
                (A.port, v4.clone().into()),
                (A.port, frame.into()),
                (A.port, v4.clone().into()),
            ];
            let step = lab.batch(train).tx(B.port, &v4).tx(B.port, &v4);
            step.dropped("a", reason);
        }
    }
}

/// LLC/SNAP (RFC 1042) in front of an EtherType, with the length of what follows.
fn in_snap(frame: &[u8]) -> Vec<u8> {
    let length = u16::try_from(frame.len() - 12 + 6).unwrap().to_be_bytes();
    behind(&[&length[..], &[0xaa, 0xaa, 3, 0, 0, 0]].concat(), frame)
}

/// Who receives IP and ARP so takes them for what they say; Open vSwitch too steps over it.
#[test]
fn nobody_uses_another_s_address_in_snap() {
    let own = [
        udp(&A, 1, &B, 2).bytes(),
        arp_request(&A, B.ip),
        udp(&A, 68, &B, 67).src(Ipv4Addr::UNSPECIFIED).macs(A.mac, Mac::BROADCAST).bytes(),
    ];
    let stolen_mac = arp(2, (A.mac, B.mac), (C.mac, A.ip), (B.mac, B.ip));
    let claim = arp_reply(&Host { ip: C.ip, ..A }, &B);
    let spoofed = [
        (udp(&A, 1, &B, 2).src(C.ip).bytes(), "spoofed_ipv4"),
        (udp(&A, 1, &B, 2).src(GATEWAY1.ip).bytes(), "spoofed_ipv4"),
        (claim.clone(), "spoofed_arp"),
        (stolen_mac, "spoofed_arp"),
        (claim[..30].to_vec(), "arp_malformed"),
    ];
    type Form = fn(&[u8]) -> Vec<u8>;
    let forms: [Form; 4] = [
        in_snap,
        |frame| behind(&[0x81, 0, 0, 5], &in_snap(frame)),
        |frame| in_snap(&behind(&[0x81, 0, 0, 5], frame)),
        |frame| behind(&[0x81, 0, 0, 0], &in_snap(frame)),
    ];
    for form in forms {
        let mut lab = Lab::default();
        trust(&mut lab, &B);
        let mut open = topology();
        without_guard(&mut open);
        let mut open = Lab::new(open);
        for (frame, reason) in &spoofed {
            // What is well known by its link header is looked at all the same.
            for _ in 0..3 {
                own.iter().for_each(|frame| lab.rx(A.port, form(frame)).only_balanced());
            }
            let dropped = lab.plane.worker_stats()[0].dropped();
            lab.rx(A.port, form(frame)).dropped("a", reason);
            assert_eq!(lab.plane.worker_stats()[0].dropped(), dropped + 1, "{reason}");
            // Without guard it is anybody's.
            open.rx(A.port, form(frame)).only_balanced();
            assert_eq!(open.plane.worker_stats()[0].dropped(), 0, "{reason}");
        }
        // From a trusted port, which is guarded too.
        let other = udp(&B, 1, &A, 2).src(C.ip).bytes();
        lab.rx(B.port, form(&other)).dropped("b", "spoofed_ipv4");
    }
    // Of IPv6 with the addresses that it has.
    let mut lab = Lab::new(dual());
    let segment = [0; 20];
    let [mut other, mut own] =
        [(); 2].map(|()| ethernet(A.mac, B.mac, ethertype::IPV6, &ipv6(&[], 6, &segment)));
    other[22..38].copy_from_slice(&C.link_local().octets());
    own[22..38].copy_from_slice(&A.ip6().octets());
    for form in forms {
        lab.rx(A.port, form(&other)).dropped("a", "spoofed_ipv6");
        let dropped = lab.plane.worker_stats()[0].dropped();
        lab.rx(A.port, form(&own)).only_balanced();
        assert_eq!(lab.plane.worker_stats()[0].dropped(), dropped);
    }
}

#[test]
fn trust_ends_at_once() {
    let mut lab = Lab::default();
    let offer = udp(&A, 67, &B, 68);
    trust(&mut lab, &A);
    for _ in 0..5 {
        lab.rx(A.port, &offer).tx(B.port, &offer);
    }
    lab.reconfigure(|spec| {
        for port in &mut spec.ports {
            if let PortRole::Endpoint { trusted, .. } = &mut port.role {
                *trusted = false;
            }
        }
    });
    lab.rx(A.port, &offer).dropped("a", "dhcp_untrusted");
}

#[test]
fn the_gateway_is_no_way_round() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.dnat = vec![publish(1, UDP, 67, &A, 67)]);
    lab.rx(A.port, udp(&A, 67, &B, 68).via(GATEWAY1.mac)).dropped("a", "dhcp_untrusted");
    // An answer of a published server is one too.
    let asked = udp(&tests::lab::CLIENT, 4000, &UP, 67);
    lab.rx(UP.port, &asked).only_balanced();
    let answer = udp(&A, 67, &tests::lab::CLIENT, 4000).via(GATEWAY1.mac);
    lab.rx(A.port, &answer).dropped("a", "dhcp_untrusted");
    trust(&mut lab, &A);
    lab.rx(A.port, &answer).only_balanced();
    assert_eq!(lab.connection().packets, [1, 1]);
}

#[test]
fn neighbor_discovery_names_the_endpoint_s_own_mac() {
    let neighbor = |kind: u8, at: usize, option: u8, mac: Mac| {
        let mut bytes = message(kind);
        bytes.truncate(at);
        bytes.extend([option, 1]);
        bytes.extend(mac.0);
        ethernet(A.mac, ALL_NODES, ethertype::IPV6, &ipv6(&[], ICMPV6, &bytes))
    };
    let mut lab = Lab::default();
    for (kind, at, option) in [(133, 8, 1), (135, 24, 1), (136, 24, 2)] {
        passes(&mut lab, &A, &neighbor(kind, at, option, A.mac));
        let spoofed = neighbor(kind, at, option, C.mac);
        lab.rx(A.port, spoofed.clone()).dropped("a", "spoofed_nd");
        let mut open = topology();
        without_guard(&mut open);
        passes(&mut Lab::new(open), &A, &spoofed);
    }
}

/// What hosts say before they have an address, and nothing else: neither the whole way nor by a shortcut that what
/// they may say has made.
#[test]
fn from_no_address_one_asks_for_one_or_for_groups_alone() {
    let none = Ipv4Addr::UNSPECIFIED;
    let nameless = Host { ip: none, ..A };
    let from = |packet: Packet| packet.src(none);
    let probe_for = |op, target| arp(op, (A.mac, B.mac), (A.mac, none), (Mac::ZERO, target));
    let probe = |op| probe_for(op, A.ip);
    let query = icmp6(&A, &B, 131, 0, [0; 4]).payload(&[0xff; 16]).src6(Ipv6Addr::UNSPECIFIED);
    let may = [
        from(udp(&A, 68, &B, 67)).bytes(),
        raw_ip(&nameless, &B, 2).payload(&[0x16, 0, 0, 0, 224, 1, 2, 3]).bytes(),
        probe(1),
        query.bytes(),
    ];
    let may_not = [
        (from(udp(&A, 68, &B, 69)).bytes(), "spoofed_ipv4"),
        (from(udp(&A, 1000, &B, 67)).bytes(), "spoofed_ipv4"),
        (from(tcp(&A, 68, &B, 67, SYN)).bytes(), "spoofed_ipv4"),
        (from(echo(&A, &B, 1)).bytes(), "spoofed_ipv4"),
        (raw_ip(&nameless, &B, 47).bytes(), "spoofed_ipv4"),
        // What is behind the ports of a datagram has none.
        (
            in_two(&from(udp(&A, 68, &B, 67)).may_fragment().long(400), 200)[1].clone(),
            "spoofed_ipv4",
        ),
        (from(udp(&A, 68, &B, 69)).vlan(7).bytes(), "spoofed_ipv4"),
        (probe(2), "spoofed_arp"),
        (probe_for(1, B.ip), "spoofed_arp"),
        (udp(&A, 1, &B, 2).src6(Ipv6Addr::UNSPECIFIED).dst6(B.ip6()).bytes(), "spoofed_ipv6"),
    ];
    let mut lab = Lab::new(dual());
    for (frame, reason) in may_not {
        for one in &may {
            for _ in 0..4 {
                lab.rx(A.port, one.clone()).tx(B.port, one.clone()).sums_may_be_wrong();
            }
            lab.rx(A.port, frame.clone()).dropped("a", reason);
        }
    }
}
