//! Where IPv6 is not IPv4 with longer addresses: scopes, extension headers, packets that no router cuts,
//! and both versions beside each other. What is the same in both is in the other tables, which are run
//! for each (`ipv6::` in front of their names).

use std::net::Ipv6Addr;
use std::time::Duration;

use dataplane::config::{PortRole, SnapshotSpec};
use dataplane::engine::Link;
use dataplane::l3::route::Prefix;
use dataplane::packet::ndp::link_local;
use dataplane::packet::types::tcp_flags::{ACK, PSH, SYN};
use tests::lab::{
    A, B, C, CLIENT, D, GATEWAY1, GATEWAY2, HOST_ADDRESS, Lab, NEIGHBOR, ROUTER, SERVER, UP,
    UPLINK, dual, publish_tcp, small, topology, without_guard,
};
use tests::packet::nd::{advertisement, solicitation};
use tests::packet::{
    Packet, Wire, echo, echo_reply, icmp_error, icmp6, reported, speak_ipv6, tcp, udp,
};

/// A lab that speaks IPv6 alone, after a change.
fn lab(change: impl FnOnce(&mut SnapshotSpec)) -> Lab {
    speak_ipv6();
    let mut spec = topology();
    change(&mut spec);
    Lab::new(spec)
}

/// Nothing is looked at before the gateway.
pub(crate) fn trusted(spec: &mut SnapshotSpec) {
    without_guard(spec);
    for port in &mut spec.ports {
        if let PortRole::Endpoint { trusted, .. } = &mut port.role {
            *trusted = true;
        }
    }
}

/// As a packet from inside looks on the uplink.
fn outside(packet: &Packet) -> Packet {
    packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac)
}

/// From A to the server.
fn datagram() -> Packet {
    udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac)
}

fn edited(packet: &Packet, edit: impl FnOnce(&mut Vec<u8>)) -> Wire {
    let mut bytes = packet.bytes();
    edit(&mut bytes);
    bytes.into()
}

/// Rows: RFC 4291 §2.5.2, §2.5.3, §2.7.
#[test]
fn addresses_that_cannot_be_on_the_wire() {
    let mut lab = lab(without_guard);
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    for src in ["::", "::1", "ff02::1", "ff0e::7", "::ffff:10.1.0.2"] {
        lab.rx(A.port, datagram().src6(address(src))).dropped("a", "martian");
    }
    for own in [GATEWAY1.ip, GATEWAY2.ip, UP.ip] {
        lab.rx(A.port, datagram().src(own)).dropped("a", "martian");
    }
    for dst in ["::", "::1", "::ffff:198.51.100.7"] {
        lab.rx(A.port, datagram().dst6(address(dst))).dropped("a", "martian");
    }
    for dst in ["ff02::fb", "ff05::2", "ff0e::1", "2001:db8::203.0.113.0"] {
        lab.rx(A.port, datagram().dst6(address(dst))).dropped("a", "not_unicast");
    }
    for own in [UP.ip, GATEWAY1.ip, HOST_ADDRESS] {
        lab.rx(UP.port, udp(&CLIENT, 1, &UP, 2).src(own)).dropped("up", "martian");
    }
    for src in ["::1", "ff02::1", "::ffff:192.0.2.99"] {
        lab.rx(UP.port, udp(&CLIENT, 1, &UP, 2).src6(address(src))).dropped("up", "martian");
    }
}

/// Rows: RFC 4291 §2.5.6.
#[test]
fn what_is_link_local_stays_on_its_link() {
    let mut lab = lab(|spec| spec.dnat.push(publish_tcp(7, 22, &B, 22)));
    let (own, gateway) = (link_local(A.mac), link_local(GATEWAY1.mac));
    let leaves = datagram().src6(own);
    lab.rx(A.port, &leaves)
        .tx(A.port, reported(&GATEWAY1, &A, 3, 0, &leaves).icmp_code(2).dst6(own))
        .moved("generated", 1)
        .dropped("a", "beyond_scope");
    // Through a published port as little.
    let hairpin = tcp(&A, 4000, &UP, 22, SYN).via(GATEWAY1.mac).src6(own);
    lab.rx(A.port, &hairpin)
        .tx(A.port, reported(&GATEWAY1, &A, 3, 0, &hairpin).icmp_code(2).dst6(own))
        .moved("generated", 1)
        .dropped("a", "beyond_scope");
    let elsewhere = datagram().dst6(link_local(D.mac));
    lab.rx(A.port, &elsewhere)
        .tx(A.port, reported(&GATEWAY1, &A, 3, 0, &elsewhere))
        .moved("generated", 1)
        .dropped("a", "no_route");
    // The gateway itself has one, and the host's leg the same. Nothing is published there.
    let ping = echo(&A, &GATEWAY1, 7).src6(own).dst6(gateway);
    lab.rx(A.port, &ping)
        .tx(A.port, echo_reply(&GATEWAY1, &A, 7).src6(gateway).dst6(own))
        .answered();
    let to_host = tcp(&A, 4000, &GATEWAY1, 22, SYN).src6(own).dst6(gateway);
    lab.rx(A.port, &to_host).tx(GATEWAY1.port, &to_host);
    let from_outside = udp(&CLIENT, 1, &B, 2).via(UP.mac).src6(link_local(ROUTER.mac));
    lab.rx(UP.port, &from_outside).dropped("up", "unsolicited");
}

#[test]
fn a_router_may_have_a_link_local_address_and_nobody_speaks_from_one() {
    let router = link_local(ROUTER.mac);
    let mut lab = lab(|spec| {
        let uplink = &mut spec.uplinks[0];
        let own = link_local(UP.mac);
        uplink.addresses.insert(0, (own.into(), Prefix::new(own, 64)));
        uplink.gateway6 = Some(router);
    });
    let (neighbors, link) = (&lab.plane.tables().neighbors, Link::Uplink(UPLINK));
    neighbors.confirm(link, router, ROUTER.mac, true, lab.now);
    lab.rx(A.port, datagram()).tx(UP.port, outside(&datagram())).masqueraded(&datagram());
    // It has no other: what is inside is shown to nobody.
    lab.reconfigure(|spec| spec.uplinks[0].addresses.truncate(1));
    let told = reported(&GATEWAY1, &A, 3, 0, &datagram());
    lab.rx(A.port, datagram()).tx(A.port, told).moved("generated", 1).dropped("a", "no_route");
}

/// Rows: RFC 4443 §3.2, RFC 8200 §5.
#[test]
fn too_long_for_the_way_out() {
    let mut lab = lab(|spec| spec.uplinks[0].mtu = 1280);
    let long = datagram().may_fragment().long(1233);
    lab.rx(A.port, &long)
        .tx(A.port, reported(&GATEWAY1, &A, 3, 4, &long).icmp_low(1280))
        .moved("generated", 1)
        .dropped("a", "mtu_exceeded");
    let fits = datagram().long(1232);
    lab.rx(A.port, &fits).tx(UP.port, outside(&fits)).masqueraded(&fits);
    // Nor is one of many segments: each has to fit.
    let flow = tcp(&A, 4000, &SERVER, 80, SYN).via(GATEWAY1.mac);
    lab.rx(A.port, &flow).tx(UP.port, outside(&flow)).masqueraded(&flow);
    let back = tcp(&SERVER, 80, &UP, 4000, SYN | ACK);
    lab.rx(UP.port, &back).tx(A.port, back.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac));
    let stream = flow.flags(ACK | PSH).seq(1000).acks(1000).long(6000);
    lab.rx(A.port, stream.gso(1220)).tx(UP.port, outside(&stream).gso(1220));
    lab.rx(A.port, stream.gso(1221))
        .moved("generated", 1)
        .dropped("a", "mtu_exceeded")
        .take_one(A.port);
}

#[test]
fn offloads_pass_through_a_translation() {
    let mut lab = lab(|_| {});
    let syn = tcp(&A, 4000, &SERVER, 80, SYN).via(GATEWAY1.mac);
    lab.rx(A.port, syn.partial()).tx(UP.port, outside(&syn).partial()).masqueraded(&syn);
    let back = tcp(&SERVER, 80, &UP, 4000, SYN | ACK);
    let inside = |packet: &Packet| packet.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac);
    lab.rx(UP.port, back.partial()).tx(A.port, inside(&back).partial());
    let data = back.flags(ACK | PSH).seq(1000).long(20_000);
    lab.rx(UP.port, data.gso(1400)).tx(A.port, inside(&data).gso(1400));
}

/// Rows: RFC 8201 §4.
#[test]
fn a_path_narrower_than_ipv6_is_not_believed() {
    let mut lab = lab(|_| {});
    let packet = datagram().long(1400);
    lab.rx(A.port, &packet).tx(UP.port, outside(&packet)).masqueraded(&packet);
    let too_big = |mtu| icmp_error(&ROUTER, &UP, 3, 4, &outside(&packet), 548).icmp_low(mtu);
    for mtu in [0, 68, 1279] {
        lab.rx(UP.port, too_big(mtu)).dropped("up", "l4_malformed");
    }
    let told = icmp_error(&ROUTER, &A, 3, 4, &packet.clone().ttl(63), 548).icmp_low(1280);
    lab.rx(UP.port, too_big(1280)).tx(A.port, told.routed(GATEWAY1.mac, A.mac));
}

/// Rows: RFC 6946 §4; RFC 8200 §4; Open vSwitch `conntrack: IPv6 fragmentation and multiple extension headers,
/// out of order, 2`; VPP `test_atomic_fragment`.
#[test]
fn extension_headers_stay_where_they_are() {
    const PAD: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];
    // Segment routing, of which nothing is left.
    const ROUTING: [u8; 7] = [0, 4, 0, 0, 0, 0, 0];
    let mut lab = lab(|_| {});
    for (number, packet) in [
        datagram().extension(0, &PAD),
        datagram().extension(60, &PAD),
        datagram().extension(0, &PAD).extension(60, &PAD).extension(43, &ROUTING),
        // A fragment header without fragments (RFC 6946).
        datagram().extension(60, &PAD).fragment_header(0, false, 77),
        tcp(&A, 4000, &SERVER, 80, SYN).via(GATEWAY1.mac).extension(60, &PAD),
        echo(&A, &SERVER, 4000).via(GATEWAY1.mac).extension(60, &PAD),
    ]
    .into_iter()
    .enumerate()
    {
        let step = lab.rx(A.port, &packet).tx(UP.port, outside(&packet));
        // All of the datagrams are one connection's.
        drop(if matches!(number, 0 | 4 | 5) { step.masqueraded(&packet) } else { step });
    }
}

/// Rows: RFC 5095 §3; RFC 7112 §5.
#[test]
fn chains_that_nobody_reads_alike_are_dropped() {
    const PAD: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];
    // The guard refuses some of them before.
    let mut lab = lab(trusted);
    let many = (0..9).fold(datagram(), |packet, _| packet.extension(60, &PAD));
    for packet in [
        // Routing type 0, whether or not anything is left of it.
        datagram().extension(43, &[0, 0, 0, 0, 0, 0, 0]),
        datagram().extension(43, &[0, 0, 1, 0, 0, 0, 0]),
        // Hop-by-hop options behind others; two fragment headers; a header that ends nowhere.
        datagram().extension(60, &PAD).extension(0, &PAD),
        datagram().fragment_header(0, false, 1).fragment_header(0, false, 2),
        datagram().extension(60, &[200, 1, 4, 0, 0, 0, 0]),
        // A first fragment without all of the transport header.
        datagram().payload(b"").extension(60, &[0xff; 7]).fragment_header(0, true, 1),
        many,
    ] {
        lab.rx(A.port, &packet).dropped("a", "ipv6_malformed");
    }
    let broken = |at: usize, xor: u8| edited(&datagram(), |bytes| bytes[at] ^= xor);
    lab.rx(A.port, broken(14, 0x20)).dropped("a", "ipv6_malformed");
    lab.rx(A.port, broken(18, 0x80)).dropped("a", "ipv6_malformed");
    lab.rx(A.port, edited(&datagram(), |bytes| bytes.truncate(50))).dropped("a", "ipv6_malformed");
    // UDP length beyond the packet.
    lab.rx(A.port, broken(58, 0x80)).dropped("a", "l4_malformed");
    // They are switched like any others.
    let mut to_b = broken(14, 0x20).bytes;
    to_b[..6].copy_from_slice(&B.mac.0);
    lab.rx(A.port, to_b.clone()).tx(B.port, to_b).sums_may_be_wrong();
}

/// A packet in two fragments, cut after so many bytes behind its header: a multiple of eight.
fn in_two(packet: &Packet, cut: usize) -> [Wire; 2] {
    const HEADERS: usize = 54;
    let whole = packet.bytes();
    let piece = |from: usize, to: usize, word: u16| {
        let [w0, w1] = word.to_be_bytes();
        let header = [whole[20], 0, w0, w1, 0, 0, 0, 99];
        let mut bytes = [&whole[..HEADERS], &header, &whole[HEADERS + from..to]].concat();
        let length = u16::try_from(bytes.len() - HEADERS).unwrap();
        bytes[18..20].copy_from_slice(&length.to_be_bytes());
        bytes[20] = 44;
        Wire::from(bytes)
    };
    let offset = u16::try_from(cut).unwrap();
    [piece(0, HEADERS + cut, 1), piece(cut, whole.len(), offset)]
}

/// Rows: Open vSwitch `conntrack: IPv6 fragmentation, with NAT, vlan, cvlan, expiry, out of order, overlaps,
/// incomplete`.
#[test]
fn fragments_follow_the_first_one_through_nat() {
    let mut lab = lab(|_| {});
    let packet = datagram().long(1200);
    let [first, second] = in_two(&packet, 800);
    let [first_out, second_out] = in_two(&outside(&packet), 800);
    let length = first.bytes.len() as i64 - 14;
    lab.rx(A.port, first)
        .tx(UP.port, first_out)
        .moved("conn.new", 1)
        .moved("masquerade.1.packets", 1)
        .moved("masquerade.1.bytes", length);
    lab.rx(A.port, second).tx(UP.port, second_out);
    assert_eq!(lab.connection().packets, [2, 0]);
}

#[test]
fn fragments_of_two_senders_are_told_apart_and_errors_about_them_reach_theirs() {
    let mut lab = lab(|_| {});
    for (from, has_own) in [(&A, true), (&B, false)] {
        let packet = udp(from, 4000, &SERVER, 53).via(GATEWAY1.mac).long(1200);
        let [first, second] = in_two(&packet, 800);
        let sent = in_two(&packet.ttl(63), 800);
        let mut step = lab.rx(from.port, first);
        for name in ["packets", "bytes"] {
            step = step.tolerate(&format!("masquerade.1.{name}"));
        }
        let first = step.moved("conn.new", 1).take_one(UP.port);
        let second = lab.rx(from.port, second).take_one(UP.port);
        let own = [0, 0, 0, 99];
        assert_eq!((first.bytes[58..62] == own, second.bytes[58..62] == own), (has_own, has_own));
        assert_eq!(first.bytes[58..62], second.bytes[58..62]);
        for (out, sent) in [first, second].iter().zip(&sent) {
            for quoted in [48, 56, 300] {
                let error = |to, about: &[u8]| {
                    icmp6(&ROUTER, to, 1, 3, [0; 4]).payload(&about[14..14 + quoted])
                };
                let told = error(from, &sent.bytes).routed(GATEWAY1.mac, from.mac);
                lab.rx(UP.port, error(&UP, &out.bytes)).tx(from.port, told);
            }
        }
    }
}

#[test]
fn a_packet_waits_for_its_neighbor() {
    let mut lab = lab(|_| {});
    let packet = udp(&A, 4000, &NEIGHBOR, 53).via(GATEWAY1.mac);
    lab.rx(A.port, &packet)
        .tx(UP.port, solicitation(&UP, UP.link_local(), NEIGHBOR.ip6()))
        .moved("generated", 1)
        .moved("queued", 1)
        .moved("neighbors", 1)
        .masqueraded(&packet);
    let told = advertisement(&NEIGHBOR, NEIGHBOR.ip6(), &UP, UP.link_local());
    lab.rx(UP.port, told).moved("consumed", 1);
    lab.after(Duration::ZERO)
        .tx(UP.port, packet.clone().src(UP.ip).routed(UP.mac, NEIGHBOR.mac))
        .moved("queued", -1);
    // In a network, too, one that is no endpoint of ours is asked for: another rule leads to it.
    lab.reconfigure(|spec| {
        spec.dnat.push(publish_tcp(7, 8080, &B, 80));
        spec.ports.retain(|port| port.id != B.port);
    });
    let syn = tcp(&CLIENT, 5000, &UP, 8080, SYN);
    let question = solicitation(&GATEWAY1, GATEWAY1.link_local(), B.ip6());
    lab.rx(UP.port, &syn)
        .tx(A.port, &question)
        .tx(C.port, &question)
        .moved("generated", 2)
        .moved("queued", 1)
        .moved("neighbors", 1)
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64);
    // Nobody answers: the connection goes with its only packet.
    let mut given_up = 0;
    for _ in 0..20 {
        let before = lab.plane.worker_stats()[0].queued;
        let mut step = lab.after(Duration::from_millis(300));
        step = step.tolerate("neighbors").tolerate("generated");
        if before == 1 && step.queued() == 0 {
            given_up += 1;
            // The client outside is told of the address that it spoke to.
            let told = reported(&UP, &CLIENT, 3, 1, &syn.clone().ttl(63));
            step = step
                .tx(UP.port, told.macs(UP.mac, ROUTER.mac))
                .moved("queued", -1)
                .moved("conn.entries", -1)
                .moved("conn.expired", 1)
                .dropped("up", "neighbor_unresolved");
        }
        step.accept(&[A.port, C.port]);
    }
    assert_eq!(given_up, 1);
}

/// Rows: RFC 5722 §4, RFC 8200 §4.5; Linux `ip_defrag.sh -6, -6o`.
#[test]
fn fragments_in_reverse_and_with_others_overlapping() {
    let mut lab = lab(|_| {});
    let packet = datagram().long(1200);
    let [first, second] = in_two(&packet, 800);
    let [first_out, second_out] = in_two(&outside(&packet), 800);
    let length = first.bytes.len() as i64 - 14;
    lab.rx(A.port, &second).moved("queued", 1);
    lab.rx(A.port, &second).dropped("a", "fragment_duplicate");
    lab.rx(A.port, &first)
        .tx(UP.port, first_out)
        .tx(UP.port, second_out)
        .moved("queued", -1)
        .moved("conn.new", 1)
        .moved("masquerade.1.packets", 1)
        .moved("masquerade.1.bytes", length);
    assert!(lab.plane.tables().fragments.is_empty());
    // By one group of eight octets.
    let [_, overlapping] = in_two(&packet, 792);
    lab.rx(A.port, &second).moved("queued", 1);
    lab.rx(A.port, overlapping)
        .dropped("a", "fragment_overlap")
        .dropped("a", "fragment_overlap")
        .moved("queued", -1);
    lab.rx(A.port, &first).dropped("a", "fragment_overlap");
    // For a minute (RFC 8200 §4.5).
    drop(lab.after(Duration::from_secs(59)).tolerate("conn.entries").tolerate("conn.expired"));
    lab.rx(A.port, &second).dropped("a", "fragment_overlap");
    lab.after(Duration::from_secs(1));
    lab.rx(A.port, &second).moved("queued", 1);
}

#[test]
fn an_uplink_without_ipv6_hears_none() {
    let mut lab = Lab::default();
    lab.rx(UP.port, udp(&CLIENT, 1, &UP, 2).v6()).moved("consumed", 1);
}

#[test]
fn both_versions_beside_each_other() {
    let mut spec = dual();
    spec.dnat.push(publish_tcp(7, 8080, &B, 80));
    let mut lab = Lab::new(spec);
    let (now, link) = (lab.now, Link::Uplink(UPLINK));
    lab.plane.tables().neighbors.confirm(link, ROUTER.ip6(), ROUTER.mac, true, now);
    // The same numbers in both are two connections.
    for packet in [datagram(), datagram().v6()] {
        lab.rx(A.port, &packet).tx(UP.port, outside(&packet)).masqueraded(&packet);
    }
    for back in [udp(&SERVER, 53, &UP, 4000), udp(&SERVER, 53, &UP, 4000).v6()] {
        lab.rx(UP.port, &back).tx(A.port, back.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac));
    }
    assert_eq!(lab.connections().len(), 2);
    // B serves by IPv4 alone: who comes by IPv6 is not let in, and told if it is one of ours.
    lab.rx(UP.port, tcp(&CLIENT, 5000, &UP, 8080, SYN).v6()).dropped("up", "unsolicited");
    let from_c = tcp(&C, 5000, &UP, 8080, SYN).via(GATEWAY1.mac).v6();
    let told = icmp_error(&GATEWAY1, &C, 3, 3, &from_c, 1232).v6();
    lab.rx(C.port, &from_c).tx(C.port, told).moved("generated", 1).dropped("c", "no_service");
    assert_eq!(lab.plane.flush_connections(&|entry| entry.original.src == A.ip6()), 1);
    assert_eq!(lab.connection().original.src, A.ip);
}

#[test]
fn both_versions_share_the_room() {
    let options = dataplane::EngineOptions { conntrack_limit: 2, ..small() };
    let mut lab = Lab::with(&options, dual());
    let (now, link) = (lab.now, Link::Uplink(UPLINK));
    lab.plane.tables().neighbors.confirm(link, ROUTER.ip6(), ROUTER.mac, true, now);
    lab.rx(A.port, datagram()).masqueraded(&datagram()).take_one(UP.port);
    let six = datagram().v6();
    lab.rx(A.port, &six).masqueraded(&six).take_one(UP.port);
    // What has been answered does not go for others.
    for back in [udp(&SERVER, 53, &UP, 4000), udp(&SERVER, 53, &UP, 4000).v6()] {
        lab.rx(UP.port, &back).tx(A.port, back.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac));
    }
    for refused in [datagram().sport(1), datagram().v6().sport(1)] {
        lab.rx(A.port, refused).moved("conn.full", 1).dropped("a", "conntrack_full");
    }
    // What has expired of the one makes room for the other, swept or not.
    lab.now = lab.now + Duration::from_secs(30);
    lab.plane.tables().neighbors.confirm(link, ROUTER.ip6(), ROUTER.mac, true, lab.now);
    let next = datagram().v6().sport(1).dport(54);
    lab.rx(A.port, &next)
        .masqueraded(&next)
        .tolerate("conn.entries")
        .tolerate("conn.expired")
        .take_one(UP.port);
}

#[test]
fn one_version_makes_room_for_the_other() {
    let options = dataplane::EngineOptions { conntrack_limit: 2, ..small() };
    let mut lab = Lab::with(&options, dual());
    let (now, link) = (lab.now, Link::Uplink(UPLINK));
    lab.plane.tables().neighbors.confirm(link, ROUTER.ip6(), ROUTER.mac, true, now);
    for sport in [4000, 4001] {
        let six = datagram().v6().sport(sport);
        lab.rx(A.port, &six).masqueraded(&six).take_one(UP.port);
    }
    // Nobody is refused, so that none is counted as refused.
    let four = udp(&B, 4000, &SERVER, 53).via(GATEWAY1.mac);
    lab.rx(B.port, &four)
        .masqueraded(&four)
        .moved("conn.entries", -1)
        .moved("conn.evicted", 1)
        .take_one(UP.port);
}

#[test]
fn a_later_fragment_does_not_say_what_the_connection_is() {
    let mut lab = lab(|_| {});
    let packet = datagram().long(1200);
    let [first, mut second] = in_two(&packet, 800);
    lab.rx(A.port, first).only_balanced();
    let lives = lab.connection().timeout;
    // Next header of the fragment header, which only the first fragment's has to be right.
    second.bytes[14 + 40] = 253;
    lab.rx(A.port, second).only_balanced();
    assert_eq!((lab.connection().packets, lab.connection().timeout), ([2, 0], lives));
}

#[test]
fn no_frame_of_ipv6_is_routed_by_shortcut() {
    let mut lab = lab(without_guard);
    lab.keep_datagrams_apart(UP.port);
    let there = datagram();
    lab.rx(A.port, &there).tx(UP.port, outside(&there)).masqueraded(&there);
    let mut train: Vec<_> = (0..8).map(|_| (A.port, Wire::from(&there))).collect();
    train.push((A.port, datagram().src6(Ipv6Addr::LOCALHOST).into()));
    train.push((A.port, datagram().extension(43, &[0; 7]).into()));
    let step = lab.batch(train).dropped("a", "martian").dropped("a", "ipv6_malformed");
    drop((0..8).fold(step, |step, _| step.tx(UP.port, outside(&there))));
}
