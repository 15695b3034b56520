//! What both programs make of IPv6.

use std::net::Ipv6Addr;

use super::*;

const OURS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const OTHER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);
const PEER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const SOLICITED: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2);

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const OPTIONS: u8 = 60;

/// An IPv6 packet whose payload begins with `next`.
fn ipv6(next: u8, (src, dst): (Ipv6Addr, Ipv6Addr), payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend(payload);
    packet
}

fn frame(packet: &[u8]) -> Vec<u8> {
    ethernet(0x86dd, packet)
}

fn to_us(next: u8, payload: &[u8]) -> Vec<u8> {
    frame(&ipv6(next, (PEER, OURS), payload))
}

/// An extension header of `units` times eight bytes beyond the first eight, before `payload`.
fn before(next: u8, units: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, units, 1, 4, 0, 0, 0, 0];
    header.resize(8 + usize::from(units) * 8, 0);
    header.extend(payload);
    header
}

/// A fragment header with this field of offset and flags, before `payload`.
fn fragment(next: u8, field: u16, payload: &[u8]) -> Vec<u8> {
    let [a, b] = field.to_be_bytes();
    [&[next, 0, a, b, 0, 0, 0, 1], payload].concat()
}

/// An ICMPv6 error of `kind` to us about `inner`.
fn error(kind: u8, inner: &[u8]) -> Vec<u8> {
    to_us(ICMPV6, &[&[kind, 0, 0, 0, 0, 0, 5, 0], inner].concat())
}

/// Slot 20 has our address, TCP ports 40000-40999 and 80, UDP port 65535, SCTP port 36412 and
/// identifier 7.
fn steering() -> Steering {
    let mut steering = Steering::load().unwrap();
    let [mut tcp, mut udp, mut icmp, mut sctp] = [(); 4].map(|()| PortBitmap::new());
    tcp.insert_range(40_000, 40_999);
    tcp.insert(80);
    udp.insert(65_535);
    icmp.insert(7);
    sctp.insert(36_412);
    steering.slots.set_address(20, Some(OURS.into())).unwrap();
    steering.slots.set_ports(20, SteerProto::Tcp, &tcp).unwrap();
    steering.slots.set_ports(20, SteerProto::Udp, &udp).unwrap();
    steering.slots.set_ports(20, SteerProto::Icmp, &icmp).unwrap();
    steering.slots.set_ports(20, SteerProto::Sctp, &sctp).unwrap();
    steering
}

/// Next header and payload of a packet to us, and whose it is.
fn packets() -> Vec<(u8, Vec<u8>, Seen)> {
    vec![
        (6, l4(1, 40_000), Seen::Ours),
        (6, l4(1, 40_999), Seen::Ours),
        (6, l4(1, 80), Seen::Ours),
        (6, l4(1, 39_999), Seen::Host),
        (6, l4(1, 41_000), Seen::Host),
        (6, l4(40_000, 1), Seen::Host),
        (6, l4(1, 65_535), Seen::Host),
        (17, l4(1, 65_535), Seen::Ours),
        (17, l4(1, 40_000), Seen::Host),
        (17, l4(65_535, 1), Seen::Host),
        (ICMPV6, echo(129, 7), Seen::Both),
        (ICMPV6, echo(129, 8), Seen::Host),
        (ICMPV6, echo(128, 7), Seen::Host),
        // ICMP of the other family, whatever it says.
        (ICMPV6, echo(0, 7), Seen::Host),
        (1, echo(0, 7), Seen::Host),
        (132, l4(1, 36_412), Seen::Ours),
        (132, l4(1, 40_000), Seen::Host),
        // Nothing behind it.
        (59, Vec::new(), Seen::Host),
    ]
}

#[test]
#[ignore = "needs root"]
fn ports_and_identifiers_decide_behind_extension_headers() {
    let steering = steering();
    for (next, payload, expected) in packets() {
        let seen = |next, payload: &[u8]| run(&steering, &to_us(next, payload));
        assert_eq!(seen(next, &payload), expected, "{next} {payload:?}");
        for units in [0, 1, 31] {
            let options = before(next, units, &payload);
            assert_eq!(seen(OPTIONS, &options), expected, "{next} {units}");
            let both = before(OPTIONS, units, &options);
            assert_eq!(seen(HOP_BY_HOP, &both), expected, "{next} {units}");
            let fragmented = fragment(OPTIONS, 0x0001, &options);
            assert_eq!(seen(HOP_BY_HOP, &before(FRAGMENT, 0, &fragmented)), expected);
        }
        // More headers than are looked behind, and one that leads elsewhere.
        let many = (0..5).fold((next, payload.clone()), |(next, payload), _| {
            (OPTIONS, before(next, 0, &payload))
        });
        assert_eq!(seen(many.0, &many.1), Seen::Host);
        assert_eq!(seen(ROUTING, &before(next, 0, &payload)), Seen::Host);
        let elsewhere = frame(&ipv6(next, (PEER, OTHER), &payload));
        assert_eq!(run(&steering, &elsewhere), Seen::Host);
        let on_the_link = frame(&ipv6(next, (PEER, LINK_LOCAL), &payload));
        assert_eq!(run(&steering, &on_the_link), Seen::Host);
    }
}

#[test]
#[ignore = "needs root"]
fn errors_follow_the_packet_within() {
    let steering = steering();
    let inner = |next, payload: &[u8]| ipv6(next, (OURS, PEER), payload);
    for kind in [1, 2, 3, 4] {
        for (packet, expected) in [
            (inner(6, &l4(40_000, 1)), Seen::Ours),
            (inner(6, &l4(1, 40_000)), Seen::Host),
            (inner(17, &l4(65_535, 1)), Seen::Ours),
            (inner(17, &l4(40_000, 1)), Seen::Host),
            (inner(ICMPV6, &echo(128, 7)), Seen::Both),
            (inner(ICMPV6, &echo(128, 6)), Seen::Host),
            (inner(ICMPV6, &echo(129, 7)), Seen::Host),
            (inner(132, &l4(40_000, 1)), Seen::Host),
            (inner(OPTIONS, &before(6, 2, &l4(40_000, 1))), Seen::Ours),
            // The first fragment; a later one; of somebody else; of the other family.
            (inner(FRAGMENT, &fragment(6, 1, &l4(40_000, 1))), Seen::Ours),
            (inner(FRAGMENT, &fragment(6, 8, &l4(40_000, 1))), Seen::Both),
            (ipv6(6, (OTHER, PEER), &l4(40_000, 1)), Seen::Host),
            (ipv6(FRAGMENT, (OTHER, PEER), &fragment(6, 8, &l4(40_000, 1))), Seen::Host),
            (ipv4(6, (super::OURS, super::PEER), 0, 0, &l4(40_000, 1)), Seen::Host),
        ] {
            assert_eq!(run(&steering, &error(kind, &packet)), expected, "{kind} {packet:?}");
        }
    }
    for kind in [0, 5, 100, 127, 130] {
        assert_eq!(run(&steering, &error(kind, &inner(6, &l4(40_000, 1)))), Seen::Host, "{kind}");
    }
}

#[test]
#[ignore = "needs root"]
fn neighbors_and_later_fragments_go_to_both() {
    let steering = steering();
    let neighbor = |kind, dst| {
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &OURS.octets()].concat();
        run(&steering, &frame(&ipv6(ICMPV6, (PEER, dst), &message)))
    };
    for dst in [OURS, OTHER, LINK_LOCAL, SOLICITED] {
        assert_eq!((neighbor(135, dst), neighbor(136, dst)), (Seen::Both, Seen::Both), "{dst}");
        // Routers are the host's business, and whatever else is said to groups.
        for kind in [130, 133, 134, 137, 143] {
            assert_eq!(neighbor(kind, dst), Seen::Host, "{kind} {dst}");
        }
    }
    let piece = |dst, field| {
        let payload = fragment(17, field, &l4(1, 65_535));
        run(&steering, &frame(&ipv6(FRAGMENT, (PEER, dst), &payload)))
    };
    assert_eq!(piece(OURS, 0x0001), Seen::Ours); // the first one has the ports
    assert_eq!(piece(OURS, 0x0000), Seen::Ours); // the only one (RFC 6946)
    assert_eq!(piece(OURS, 0x0009), Seen::Both);
    assert_eq!(piece(OURS, 0xfff8), Seen::Both);
    assert_eq!(piece(OTHER, 0x0008), Seen::Host);
}

#[test]
#[ignore = "needs root"]
fn malformed_and_foreign_frames_are_the_host_s() {
    let steering = steering();
    let sound = to_us(6, &l4(1, 80));
    let chained = to_us(HOP_BY_HOP, &before(FRAGMENT, 1, &fragment(6, 1, &l4(1, 80))));
    let within = error(3, &ipv6(ICMPV6, (OURS, PEER), &echo(128, 7)));
    for (whole, seen) in [
        (&sound[..58], Seen::Ours),
        (&chained[..chained.len() - 4], Seen::Ours),
        (&within[..], Seen::Both),
    ] {
        assert_eq!(run(&steering, whole), seen);
        for len in 1..whole.len() {
            assert_eq!(filter(&steering, &whole[..len]), REJECT, "{len} bytes");
        }
        // The kernel test-runs a classifier on whole IPv6 headers only.
        for len in 54..whole.len() {
            assert_eq!(run(&steering, &whole[..len]), Seen::Host, "{len} bytes");
        }
    }
    for version in [0x40, 0x50, 0x70, 0x00] {
        let mut frame = sound.clone();
        frame[14] = version;
        assert_eq!(run(&steering, &frame), Seen::Host, "{version:x}");
    }
    let mut tagged = ethernet(0x8100, &[0, 5, 0x86, 0xdd]);
    tagged.extend(&sound[14..]);
    assert_eq!(run(&steering, &tagged), Seen::Host);
    let mut for_another = sound;
    for_another[5] = 9;
    assert_eq!(
        test_run(steering.classifier_fd(), &for_another).unwrap().cast_signed(),
        TC_ACT_UNSPEC
    );
}

#[test]
#[ignore = "needs root"]
fn each_family_has_its_own_addresses_and_slots_take_either() {
    let mut steering = steering();
    let six = to_us(6, &l4(1, 80));
    let four = super::to_us(6, &l4(1, 80));
    assert_eq!((run(&steering, &six), run(&steering, &four)), (Seen::Ours, Seen::Host));
    // The ports go with the slot, to an address of the other family too.
    steering.slots.set_address(20, Some(super::OURS.into())).unwrap();
    assert_eq!((run(&steering, &six), run(&steering, &four)), (Seen::Host, Seen::Ours));
    let mut all = PortBitmap::new();
    all.insert_range(0, u16::MAX);
    steering.slots.set_address(21, Some(OURS.into())).unwrap();
    assert_eq!(run(&steering, &six), Seen::Host);
    steering.slots.set_ports(21, SteerProto::Tcp, &all).unwrap();
    assert_eq!((run(&steering, &six), run(&steering, &four)), (Seen::Ours, Seen::Ours));
    assert_eq!(
        steering.slots.set_address(22, Some(OURS.into())).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    steering.slots.set_address(21, None).unwrap();
    steering.slots.set_address(22, Some(OURS.into())).unwrap();
    assert_eq!((run(&steering, &six), run(&steering, &four)), (Seen::Host, Seen::Ours));
    // As many of one family as there are slots.
    for slot in 0..SLOTS {
        let last = u16::try_from(slot).unwrap();
        let address = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, last);
        steering.slots.set_address(slot, Some(address.into())).unwrap();
    }
}
