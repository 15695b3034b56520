//! Whose IPv6 addresses an endpoint uses: its own and the link-local one of its MAC, whatever its packets
//! hide behind, and however well the way is known.

use std::net::Ipv6Addr;

use dataplane::config::PortRole;
use dataplane::packet::ndp::{multicast_mac, solicited_node};
use dataplane::packet::types::Mac;
use dataplane::packet::types::tcp_flags::ACK;
use tests::lab::{A, B, C, GATEWAY1, HOST_ADDRESS, Lab, dual, topology, without_guard};
use tests::packet::nd::{advertisement, announcement, probe, router_solicitation, solicitation};
use tests::packet::{Host, Packet, echo, ethernet, icmp6, ip6, tcp, udp};

const DESTINATION_OPTIONS: u8 = 60;
/// What an extension header of eight bytes holds behind the number of the next.
const EMPTY: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];
const OTHERS: [&Host; 3] = [&B, &C, &GATEWAY1];

/// Every address that is not A's.
fn foreign() -> [Ipv6Addr; 8] {
    [
        B.ip6(),
        C.link_local(),
        GATEWAY1.ip6(),
        GATEWAY1.link_local(),
        "fe80::1".parse().unwrap(),
        "2001:db8::77".parse().unwrap(),
        Ipv6Addr::LOCALHOST,
        Ipv6Addr::UNSPECIFIED,
    ]
}

fn between() -> Packet {
    udp(&A, 1000, &B, 2000).v6()
}

/// Comes out at all others.
fn passes(lab: &mut Lab, from: &Host, frame: &Packet) {
    let others: Vec<_> = OTHERS.iter().filter(|o| o.port != from.port).map(|o| o.port).collect();
    let copies = others.len() as i64 - 1;
    lab.rx(from.port, frame).flooded(&others, frame).moved("replicated", copies);
}

/// Goes somewhere.
fn is_admitted(lab: &mut Lab, from: &Host, frame: &Packet) {
    let dropped = |lab: &Lab| lab.plane.worker_stats()[0].dropped();
    let before = dropped(lab);
    lab.rx(from.port, frame).only_balanced();
    assert_eq!(dropped(lab), before, "{frame:?}");
}

/// The same in every dress that a receiver takes off, or could.
fn dresses(packet: &Packet) -> Vec<Packet> {
    vec![
        packet.clone(),
        packet.clone().vlan(5),
        packet.clone().vlan(0),
        packet.clone().extension(DESTINATION_OPTIONS, &EMPTY),
        packet.clone().extension(0, &EMPTY).extension(DESTINATION_OPTIONS, &EMPTY),
        packet.clone().extension(DESTINATION_OPTIONS, &EMPTY).vlan(5),
    ]
}

#[test]
fn an_endpoint_speaks_from_its_own_addresses_alone() {
    let mut lab = Lab::new(dual());
    for packet in [between(), tcp(&A, 1, &B, 2, ACK).v6(), echo(&A, &B, 7).v6()] {
        for own in [A.ip6(), A.link_local()] {
            for frame in dresses(&packet.clone().src6(own)) {
                is_admitted(&mut lab, &A, &frame);
            }
            let frame = packet.clone().src6(own);
            lab.rx(A.port, &frame).tx(B.port, &frame);
        }
        for address in foreign() {
            for frame in dresses(&packet.clone().src6(address)) {
                lab.rx(A.port, &frame).dropped("a", "spoofed_ipv6");
            }
        }
    }
    // What comes behind the first fragment has nothing but its source to be known by.
    let later = between().fragment_header(1448, false, 7);
    lab.rx(A.port, &later).tx(B.port, &later).sums_may_be_wrong();
    lab.rx(A.port, later.src6(B.ip6())).dropped("a", "spoofed_ipv6");
}

#[test]
fn to_the_gateway_and_to_groups_as_well() {
    let mut lab = Lab::new(dual());
    let query = udp(&A, 5353, &B, 5353).v6().dst6("ff02::fb".parse().unwrap());
    let query = query.macs(A.mac, Mac([0x33, 0x33, 0, 0, 0, 0xfb]));
    passes(&mut lab, &A, &query);
    for frame in [query, udp(&A, 1, &GATEWAY1, 2).v6(), between().via(GATEWAY1.mac)] {
        lab.rx(A.port, frame.src6(C.ip6())).dropped("a", "spoofed_ipv6");
    }
}

#[test]
fn no_shortcut_leads_past_the_addresses() {
    let mut lab = Lab::new(dual());
    let own = [between(), tcp(&A, 1, &B, 2, ACK).v6().src6(A.link_local())];
    let lies: Vec<_> = foreign()
        .into_iter()
        .flat_map(|address| own.iter().flat_map(move |one| dresses(&one.clone().src6(address))))
        .map(|frame| (frame, "spoofed_ipv6"))
        .chain([
            (advertisement(&A, C.ip6(), &B, B.ip6()).src6(A.ip6()), "spoofed_nd"),
            (
                advertisement(&A, C.ip6(), &B, B.ip6())
                    .src6(A.ip6())
                    .extension(DESTINATION_OPTIONS, &EMPTY),
                "spoofed_nd",
            ),
            (advertisement(&A, A.ip6(), &B, B.ip6()).fragment_header(0, false, 7), "ra_untrusted"),
        ])
        .collect();
    for (lie, reason) in lies {
        for one in &own {
            // By the FDB, and then by the link header alone.
            for _ in 0..4 {
                lab.rx(A.port, one).tx(B.port, one);
            }
            lab.rx(A.port, &lie).dropped("a", reason);
            let train = vec![
                (A.port, one.into()),
                (A.port, one.into()),
                (A.port, (&lie).into()),
                (A.port, one.into()),
            ];
            let step = lab.batch(train).tx(B.port, one).tx(B.port, one).tx(B.port, one);
            step.dropped("a", reason);
        }
    }
}

/// Rows: RFC 4862 §5.4.
#[test]
fn nobody_solicits_or_advertises_for_another() {
    let mut lab = Lab::new(dual());
    for own in [A.ip6(), A.link_local()] {
        passes(&mut lab, &A, &probe(&A, own));
        passes(&mut lab, &A, &announcement(&A, own));
        for target in [B.ip6(), C.link_local(), "2001:db8::77".parse().unwrap()] {
            passes(&mut lab, &A, &solicitation(&A, own, target));
        }
        let answer = advertisement(&A, own, &B, B.ip6());
        lab.rx(A.port, &answer).tx(B.port, &answer);
    }
    for target in [B.ip6(), B.link_local(), "fe80::1".parse().unwrap()] {
        // From its own address for another's, and from another's.
        for dressed in dresses(&announcement(&A, target).src6(A.ip6())) {
            lab.rx(A.port, dressed).dropped("a", "spoofed_nd");
        }
        lab.rx(A.port, announcement(&A, target)).dropped("a", "spoofed_ipv6");
        lab.rx(A.port, advertisement(&A, target, &C, C.ip6()).src6(A.link_local()))
            .dropped("a", "spoofed_nd");
        lab.rx(A.port, solicitation(&A, target, C.ip6())).dropped("a", "spoofed_ipv6");
        // Whoever tries this address for itself would think it taken.
        for dressed in dresses(&probe(&A, target)) {
            lab.rx(A.port, dressed).dropped("a", "spoofed_nd");
        }
    }
    // Another's MAC.
    let group = multicast_mac(solicited_node(C.ip6()));
    let lie = solicitation(&B, A.ip6(), C.ip6()).macs(A.mac, group);
    lab.rx(A.port, lie).dropped("a", "spoofed_nd");
    // A MAC beside no address.
    let claim = solicitation(&A, Ipv6Addr::UNSPECIFIED, A.ip6());
    lab.rx(A.port, claim).dropped("a", "spoofed_nd");
}

/// Rows: RFC 6980 §5.
#[test]
fn neighbor_discovery_in_pieces_is_refused() {
    let mut lab = Lab::new(dual());
    for (offset, more) in [(0, true), (0, false)] {
        for frame in [probe(&A, A.ip6()), announcement(&A, A.ip6())] {
            let piece = frame.fragment_header(offset, more, 9);
            lab.rx(A.port, &piece).dropped("a", "ra_untrusted");
            lab.rx(A.port, piece.vlan(5)).dropped("a", "ra_untrusted");
        }
    }
    // Nor from an endpoint that may be a router.
    lab.reconfigure(|spec| {
        for port in &mut spec.ports {
            if let PortRole::Endpoint { trusted, .. } = &mut port.role {
                *trusted = true;
            }
        }
    });
    let piece = announcement(&A, A.ip6()).fragment_header(0, false, 9);
    lab.rx(A.port, piece).dropped("a", "spoofed_nd");
}

#[test]
fn without_an_address_yet_one_asks_for_routers_and_joins_groups() {
    let mut lab = Lab::new(dual());
    passes(&mut lab, &A, &router_solicitation(&A, Ipv6Addr::UNSPECIFIED));
    passes(&mut lab, &A, &router_solicitation(&A, A.link_local()));
    let report = icmp6(&A, &B, 143, 0, [0, 0, 0, 0])
        .src6(Ipv6Addr::UNSPECIFIED)
        .dst6("ff02::16".parse().unwrap())
        .macs(A.mac, Mac([0x33, 0x33, 0, 0, 0, 0x16]))
        .extension(0, &[0, 5, 2, 0, 0, 1, 0]);
    passes(&mut lab, &A, &report);
    lab.rx(A.port, echo(&A, &B, 7).v6().src6(Ipv6Addr::UNSPECIFIED)).dropped("a", "spoofed_ipv6");
}

#[test]
fn a_guard_that_is_off_lets_every_address_pass() {
    let mut spec = dual();
    without_guard(&mut spec);
    let mut lab = Lab::new(spec);
    for address in foreign() {
        let frame = between().src6(address);
        for _ in 0..4 {
            lab.rx(A.port, &frame).tx(B.port, &frame);
        }
    }
    passes(&mut lab, &A, &announcement(&A, B.ip6()));
    passes(&mut lab, &A, &probe(&A, B.ip6()));
}

/// Nobody was given an address; the one of its MAC each has all the same.
#[test]
fn in_a_network_without_ipv6_an_endpoint_has_its_link_local_address_alone() {
    let mut lab = Lab::default();
    let own = between().src6(A.link_local());
    for _ in 0..4 {
        lab.rx(A.port, &own).tx(B.port, &own);
    }
    for address in foreign().into_iter().chain([A.ip6()]) {
        for frame in dresses(&between().src6(address)) {
            lab.rx(A.port, &frame).dropped("a", "spoofed_ipv6");
        }
        // By the shortcut that the others took.
        lab.rx(A.port, &own).tx(B.port, &own);
    }
    passes(&mut lab, &A, &probe(&A, A.link_local()));
    passes(&mut lab, &A, &announcement(&A, A.link_local()));
    passes(&mut lab, &A, &solicitation(&A, A.link_local(), B.link_local()));
    passes(&mut lab, &A, &router_solicitation(&A, A.link_local()));
    let lies = [
        (announcement(&A, B.ip6()), "spoofed_ipv6"),
        (announcement(&A, B.link_local()).src6(A.link_local()), "spoofed_nd"),
        (announcement(&A, A.ip6()).src6(A.link_local()), "spoofed_nd"),
        (probe(&A, B.link_local()), "spoofed_nd"),
        (probe(&A, A.ip6()), "spoofed_nd"),
    ];
    for (lie, reason) in lies {
        for dressed in dresses(&lie) {
            lab.rx(A.port, dressed).dropped("a", reason);
        }
    }
    let mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
    let other_s_mac = announcement(&B, A.link_local()).src6(A.link_local()).macs(A.mac, mac);
    lab.rx(A.port, other_s_mac).dropped("a", "spoofed_nd");
    // The host's end says there what it likes.
    let of_the_host = udp(&GATEWAY1, 1, &A, 2).v6().src6("2001:db8::77".parse().unwrap());
    lab.rx(GATEWAY1.port, &of_the_host).tx(A.port, &of_the_host);
    // Who needs others has no guard.
    let mut open = topology();
    without_guard(&mut open);
    let mut lab = Lab::new(open);
    for address in foreign() {
        let frame = between().src6(address);
        lab.rx(A.port, &frame).tx(B.port, &frame);
    }
    passes(&mut lab, &A, &announcement(&A, B.ip6()));
}

#[test]
fn an_address_that_is_taken_away_is_of_no_use_at_once() {
    let mut lab = Lab::new(dual());
    let frame = between();
    for _ in 0..5 {
        lab.rx(A.port, &frame).tx(B.port, &frame);
    }
    let only = |lab: &mut Lab, address: Ipv6Addr| {
        lab.reconfigure(|spec| {
            let port = spec.ports.iter_mut().find(|port| port.id == A.port).unwrap();
            let PortRole::Endpoint { ipv6, .. } = &mut port.role else { panic!("{port:?}") };
            *ipv6 = vec![address];
        });
    };
    only(&mut lab, "fd00::77".parse().unwrap());
    lab.rx(A.port, &frame).dropped("a", "spoofed_ipv6");
    let other = frame.clone().src6("fd00::77".parse().unwrap());
    lab.rx(A.port, &other).tx(B.port, &other);
    only(&mut lab, A.ip6());
    lab.rx(A.port, &frame).tx(B.port, &frame);
    lab.rx(A.port, &other).dropped("a", "spoofed_ipv6");
}

#[test]
fn the_host_s_leg_carries_what_the_host_itself_says() {
    let mut lab = Lab::new(dual());
    let say = |address: Ipv6Addr| udp(&GATEWAY1, 1, &A, 2).v6().src6(address);
    for own in [GATEWAY1.ip6(), GATEWAY1.link_local(), ip6(HOST_ADDRESS)] {
        for frame in [say(own), say(own).extension(DESTINATION_OPTIONS, &EMPTY)] {
            lab.rx(GATEWAY1.port, &frame).tx(A.port, &frame);
        }
    }
    for foreign in ["2001:db8::77", "fd00::77"] {
        let frame = say(foreign.parse().unwrap());
        for dressed in dresses(&frame) {
            lab.rx(GATEWAY1.port, dressed).dropped("host", "host_forwarded");
        }
    }
    let cut = ethernet(GATEWAY1.mac, A.mac, 0x86dd, &[0x60; 30]);
    lab.rx(GATEWAY1.port, cut.clone()).tx(A.port, cut).sums_may_be_wrong();
}
