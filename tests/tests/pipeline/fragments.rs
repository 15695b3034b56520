//! Fragments through the gateway: in any order, repeated, overlapping, from those who mean well and from
//! those who do not.

use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::config::{PortRole, SnapshotSpec, Timeouts, UplinkMode};
use dataplane::packet::types::tcp_flags::SYN;
use dataplane::packet::types::{PortId, ip_proto};
use dataplane::verdict::DropReason;
use tests::fragments::{in_pieces, in_pieces6, in_two, piece};
use tests::lab::{
    A, B, C, CLIENT, D, GATEWAY1, GATEWAY2, HOST_ADDRESS, Lab, NET2, ROUTER, SERVER, Step, UP,
    dual, publish, small, topology, without_guard,
};
use tests::packet::{Host, Packet, Wire, echo, icmp, icmp_error, raw_ip, reassemble, tcp, udp};

/// In Ethernet's frames.
const FRAGMENT: usize = 1480;
const RULE: u32 = 7;

/// A datagram to the outside, in four fragments.
fn outbound(from: &Host) -> Packet {
    udp(from, 4000, &SERVER, 53).via(GATEWAY1.mac).may_fragment().long(5000)
}

fn published() -> SnapshotSpec {
    let mut spec = topology();
    spec.dnat = vec![publish(RULE, ip_proto::UDP, 5353, &B, 53)];
    spec
}

/// Fragments in the order of their offsets.
fn sorted(mut wires: Vec<Wire>) -> Vec<Wire> {
    wires.sort_by_key(|wire| u16::from_be_bytes([wire.bytes[20], wire.bytes[21]]) & 0x1fff);
    wires
}

/// The step may begin a connection, and fragments may begin to wait or end it.
fn with_any_connection(step: Step<'_>) -> Step<'_> {
    let counters =
        ["queued", "conn.entries", "conn.inserted", "masquerade.1.packets", "masquerade.1.bytes"];
    counters.into_iter().fold(step, |step, name| step.tolerate(name))
}

/// Fragments of `packet` arrive by `from`'s port in reverse; what comes out by `to` when the first is there.
#[track_caller]
fn reversed(lab: &mut Lab, from: &Host, packet: &Packet, to: &Host, rule: &str) -> Vec<Wire> {
    let pieces = in_pieces(packet, FRAGMENT);
    let (first, later) = pieces.split_first().unwrap();
    for piece in later.iter().rev() {
        lab.rx(from.port, &piece[..]).moved("queued", 1);
    }
    let mut step = lab.rx(from.port, &first[..]).moved("queued", -(later.len() as i64));
    if !rule.is_empty() {
        step = step
            .moved("conn.new", 1)
            .moved(&format!("{rule}.packets"), 1)
            .moved(&format!("{rule}.bytes"), first.len() as i64 - 14);
    }
    step.take(to.port)
}

/// Rows: RFC 3022 §6.3; Open vSwitch `conntrack: IPv4 fragmentation out of order`; VPP
/// `test_frag_out_of_order`.
#[test]
fn reversed_out_through_snat() {
    let mut lab = Lab::default();
    let datagram = outbound(&A);
    let out = reversed(&mut lab, &A, &datagram, &UP, "masquerade.1");
    let expected: Wire = datagram.src(UP.ip).routed(UP.mac, ROUTER.mac).into();
    // The first, then the others in the order in which they came.
    assert_eq!(reassemble(&sorted(out.clone())), expected);
    let offsets: Vec<_> =
        out.iter().map(|w| u16::from_be_bytes([w.bytes[20], w.bytes[21]]) & 0x1fff).collect();
    assert_eq!(offsets, [0, 555, 370, 185]);
    assert_eq!(lab.connection().packets, [4, 0]);
    assert!(lab.plane.tables().fragments.is_empty(), "it is complete");
}

#[test]
fn reversed_in_through_dnat_and_back() {
    let mut lab = Lab::new(published());
    let datagram = udp(&CLIENT, 4000, &UP, 5353).may_fragment().long(5000);
    let came = reversed(&mut lab, &UP, &datagram, &B, "dnat.7");
    let expected = datagram.dst(B.ip).dport(53).routed(GATEWAY1.mac, B.mac);
    assert_eq!(reassemble(&sorted(came)), expected.into());
    let answer = udp(&B, 53, &CLIENT, 4000).via(GATEWAY1.mac).may_fragment().long(5000);
    let back = reversed(&mut lab, &B, &answer, &UP, "");
    let expected = answer.src(UP.ip).sport(5353).routed(UP.mac, ROUTER.mac);
    assert_eq!(reassemble(&sorted(back)), expected.into());
    assert_eq!(lab.connection().packets, [4, 4]);
}

/// Rows: VPP `test_frag_in_order_in_plus_out, test_frag_out_of_order_in_plus_out`; VPP
/// `test_reass_hairpinning`.
#[test]
fn reversed_through_a_hairpin() {
    for client in [A, B] {
        let mut lab = Lab::new(published());
        let datagram = udp(&client, 4000, &UP, 5353).via(GATEWAY1.mac).may_fragment().long(5000);
        let came = sorted(reversed(&mut lab, &client, &datagram, &B, "dnat.7"));
        let port = u16::from_be_bytes([came[0].bytes[34], came[0].bytes[35]]);
        let expected =
            datagram.src(UP.ip).sport(port).dst(B.ip).dport(53).routed(GATEWAY1.mac, B.mac);
        assert_eq!(reassemble(&came), expected.into());
        let answer = udp(&B, 53, &UP, port).via(GATEWAY1.mac).may_fragment().long(5000);
        let back = reversed(&mut lab, &B, &answer, &client, "");
        let expected = answer
            .src(UP.ip)
            .sport(5353)
            .dst(client.ip)
            .dport(4000)
            .routed(GATEWAY1.mac, client.mac);
        assert_eq!(reassemble(&sorted(back)), expected.into());
    }
}

#[test]
fn reversed_echo_within_a_network_and_to_the_host() {
    let mut lab = Lab::default();
    let ping = echo(&A, &SERVER, 5009).via(GATEWAY1.mac).may_fragment().long(5000);
    let out = reversed(&mut lab, &A, &ping, &UP, "masquerade.1");
    assert_eq!(reassemble(&sorted(out)), ping.src(UP.ip).routed(UP.mac, ROUTER.mac).into());
    // The host's own stack gets them as they are.
    let to_host = udp(&A, 4000, &GATEWAY1, 53).dst(HOST_ADDRESS).may_fragment().long(5000);
    let came = reversed(&mut lab, &A, &to_host, &GATEWAY1, "");
    assert_eq!(reassemble(&sorted(came)), to_host.into());
}

/// Where nothing is translated nothing has to wait for the first one: they are switched as they come.
///
/// Rows: VPP `test_frag_in_order_do_not_translate, test_frag_out_of_order_do_not_translate`.
#[test]
fn within_a_network_they_go_on_as_they_come() {
    let mut lab = Lab::new(dual());
    let whole = udp(&A, 4000, &B, 53).may_fragment().long(5000);
    let pieces = in_pieces(&whole, FRAGMENT);
    let pieces6 = in_pieces6(&whole.v6(), FRAGMENT - 32, 7);
    for pieces in [pieces, pieces6] {
        for piece in pieces.iter().chain(pieces.iter().rev()) {
            lab.rx(A.port, &piece[..]).tx(B.port, &piece[..]);
        }
    }
    assert!(lab.plane.tables().fragments.is_empty() && lab.connections().is_empty());
}

#[test]
fn without_masquerade_they_leave_as_they_are_in_any_order() {
    let mut spec = topology();
    spec.networks[0].masquerade = false;
    let mut lab = Lab::new(spec);
    let datagram = outbound(&A);
    let as_sent = |piece: &Vec<u8>| {
        let mut piece = piece.clone();
        piece[..6].copy_from_slice(&ROUTER.mac.0);
        piece[6..12].copy_from_slice(&UP.mac.0);
        piece
    };
    let expected = in_pieces(&datagram.clone().ttl(63), FRAGMENT);
    let pieces = in_pieces(&datagram, FRAGMENT);
    for (piece, out) in pieces.iter().zip(&expected).take(1) {
        lab.rx(A.port, &piece[..]).moved("conn.new", 1).tx(UP.port, as_sent(out));
    }
    for (piece, out) in pieces.iter().zip(&expected).skip(1).rev() {
        lab.rx(A.port, &piece[..]).tx(UP.port, as_sent(out));
    }
    // The first comes last.
    let again = reversed(&mut lab, &A, &datagram.clone().ident(9), &UP, "");
    let whole = datagram.ident(9).routed(UP.mac, ROUTER.mac);
    assert_eq!(reassemble(&sorted(again)), whole.into());
    assert!(lab.plane.tables().fragments.is_empty());
}

/// Rows: VPP `test_unsupp_ip_proto`.
#[test]
fn reversed_out_and_back_without_ports() {
    for proto in [47, 143] {
        let mut lab = Lab::default();
        let there = raw_ip(&A, &SERVER, proto).via(GATEWAY1.mac).may_fragment().long(5000);
        let out = reversed(&mut lab, &A, &there, &UP, "masquerade.1");
        let expected = there.src(UP.ip).routed(UP.mac, ROUTER.mac);
        assert_eq!(reassemble(&sorted(out)), expected.into());
        let answer = raw_ip(&SERVER, &UP, proto).may_fragment().long(5000);
        let back = reversed(&mut lab, &UP, &answer, &A, "");
        let expected = answer.dst(A.ip).routed(GATEWAY1.mac, A.mac);
        assert_eq!(reassemble(&sorted(back)), expected.into());
        assert_eq!(lab.connection().packets, [4, 4]);
    }
}

#[test]
fn a_batch_in_disorder() {
    let mut lab = Lab::default();
    let datagram = outbound(&A);
    let pieces = in_pieces(&datagram, FRAGMENT);
    let batch = [2, 0, 3, 1].map(|n: usize| (A.port, pieces[n].clone().into()));
    let out = lab
        .batch(batch.into())
        .moved("conn.new", 1)
        .moved("masquerade.1.packets", 1)
        .moved("masquerade.1.bytes", 1500)
        .take(UP.port);
    let expected = datagram.src(UP.ip).routed(UP.mac, ROUTER.mac);
    assert_eq!(reassemble(&sorted(out)), expected.into());
}

/// Rows: VPP `test_worker_conflict`.
#[test]
fn at_different_workers() {
    let mut lab = Lab::with(&EngineOptions { workers: 3, ..small() }, topology());
    let datagram = outbound(&A);
    let pieces = in_pieces(&datagram, FRAGMENT);
    let wire = |n: usize| vec![(A.port, pieces[n].clone().into())];
    lab.batch_on(1, wire(1)).moved("queued", 1);
    lab.batch_on(2, wire(3)).moved("queued", 1);
    let mut out = lab
        .batch_on(0, wire(0))
        .moved("conn.new", 1)
        .moved("masquerade.1.packets", 1)
        .moved("masquerade.1.bytes", 1500)
        .take(UP.port);
    out.extend(lab.batch_on(2, wire(2)).moved("queued", -1).take(UP.port));
    out.extend(lab.after(Duration::from_millis(1)).moved("queued", -1).take(UP.port));
    let expected = datagram.src(UP.ip).routed(UP.mac, ROUTER.mac);
    assert_eq!(reassemble(&sorted(out)), expected.into());
}

/// As Linux' selftest ip_defrag.c sends: all at odd places first, and the shortest fragments there are.
///
/// Rows: VPP `test_bunch_of_fragments, test_buffer_boundary`.
#[test]
fn thousands_of_fragments_that_overtake_the_first() {
    let mut lab = Lab::with(&EngineOptions { fragment_limit: 4096, ..small() }, topology());
    let datagram = udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac).may_fragment().long(59_992);
    let pieces = in_pieces(&datagram, 8);
    assert_eq!(pieces.len(), 7500);
    let (even, odd) = ((0..7500).step_by(2), (1..7500).step_by(2));
    let order: Vec<usize> = odd.chain(even).collect();
    let mut out = Vec::new();
    for some in order.chunks(64) {
        let batch = some.iter().map(|n| (A.port, pieces[*n].clone().into())).collect();
        out.extend(with_any_connection(lab.batch(batch)).take(UP.port));
    }
    let expected = datagram.src(UP.ip).routed(UP.mac, ROUTER.mac);
    assert_eq!(reassemble(&sorted(out)), expected.into());
}

#[test]
fn a_first_fragment_without_its_transport_header_is_refused() {
    let mut lab = Lab::default();
    let whole = tcp(&A, 4000, &SERVER, 80, SYN).via(GATEWAY1.mac).may_fragment();
    let [tiny, rest] = in_two(&whole, 16);
    lab.rx(A.port, rest).moved("queued", 1);
    lab.rx(A.port, tiny).dropped("a", "l4_malformed");
    lab.after(Duration::from_secs(31)).moved("queued", -1).dropped("a", "fragment_untracked");
}

/// A fragment that leaves by the uplink.
fn left(lab: &mut Lab, from: &Host, piece: &[u8]) -> Wire {
    with_any_connection(lab.rx(from.port, piece)).take_one(UP.port)
}

fn identification(wire: &Wire) -> u16 {
    u16::from_be_bytes([wire.bytes[18], wire.bytes[19]])
}

/// As it arrives where it goes: from this port, with this identification.
fn arrived(datagram: Packet, port: u16, ident: u16) -> Wire {
    datagram.src(UP.ip).sport(port).ident(ident).routed(UP.mac, ROUTER.mac).into()
}

/// Rows: RFC 7857 §10, RFC 6864 §5.3.1.
#[test]
fn fragments_of_two_senders_with_one_identification_do_not_mix() {
    let mut lab = Lab::default();
    let datagrams = [outbound(&A), outbound(&B)];
    let [a, b] = [0, 1].map(|n: usize| in_pieces(&datagrams[n], FRAGMENT));
    let mut of_a = vec![left(&mut lab, &A, &a[0])];
    // One of B's waits for its first.
    lab.rx(B.port, &b[1][..]).moved("queued", 1);
    let mut of_b = with_any_connection(lab.rx(B.port, &b[0][..])).take(UP.port);
    assert_eq!(of_b.len(), 2);
    for n in 1..4 {
        of_a.push(left(&mut lab, &A, &a[n]));
        if n > 1 {
            of_b.push(left(&mut lab, &B, &b[n]));
        }
    }
    let own = identification(&a[0].clone().into());
    let other = identification(&of_b[0]);
    assert!(other != own && other != 0, "{other}");
    let port = u16::from_be_bytes([of_b[0].bytes[34], of_b[0].bytes[35]]);
    let [a, b] = datagrams;
    assert_eq!(reassemble(&of_a), arrived(a.clone(), 4000, own));
    assert_eq!(reassemble(&of_b), arrived(b.clone(), port, other));

    // A packet that is cut here is a datagram in fragments from here on.
    lab.reconfigure(|spec| spec.uplinks[0].mtu = 1400);
    let whole = |from| udp(from, 4000, &SERVER, 53).via(GATEWAY1.mac).may_fragment().long(1450);
    for (from, port, has_own) in [(&A, 4000, true), (&B, port, false)] {
        let out = lab.rx(from.port, whole(from).ident(777)).moved("replicated", 1).take(UP.port);
        let ident = identification(&out[0]);
        assert_eq!(ident == 777, has_own, "{ident}");
        assert_eq!(reassemble(&out), arrived(whole(from), port, ident));
    }

    // When its time is over an identification is anybody's.
    lab.reconfigure(|spec| spec.uplinks[0].mtu = 1500);
    lab.after(Duration::from_secs(31)).only_balanced();
    let again = in_pieces(&b, FRAGMENT);
    assert_eq!(identification(&left(&mut lab, &B, &again[0])), own);
}

#[test]
fn errors_about_later_fragments_reach_the_sender() {
    let mut lab = Lab::default();
    // The second has another port and another identification outside.
    for from in [&A, &B] {
        let pieces = in_pieces(&outbound(from), FRAGMENT);
        let sent = in_pieces(&outbound(from).ttl(63), FRAGMENT);
        for (piece, sent) in pieces.iter().zip(&sent) {
            let out = left(&mut lab, from, piece);
            if out.bytes[20] & 0x1f == 0 && out.bytes[21] == 0 {
                continue;
            }
            for quoted in [28, 300] {
                let error = |to, about: &[u8]| {
                    icmp(&ROUTER, to, 3, 1, [0; 4]).payload(&about[14..14 + quoted])
                };
                let told = error(from, sent).routed(GATEWAY1.mac, from.mac);
                lab.rx(UP.port, error(&UP, &out.bytes)).tx(from.port, told);
            }
        }
    }
    assert_eq!(lab.connections().len(), 2);
    // About a datagram that never was, and about one whose time is over.
    let pieces = in_pieces(&outbound(&A).src(UP.ip).ident(9), FRAGMENT);
    let error = icmp(&ROUTER, &UP, 3, 1, [0; 4]).payload(&pieces[1][14..42]);
    lab.rx(UP.port, &error).dropped("up", "icmp_unrelated");
    lab.after(Duration::from_secs(31)).only_balanced();
    let pieces = in_pieces(&outbound(&A).src(UP.ip), FRAGMENT);
    let error = icmp(&ROUTER, &UP, 3, 1, [0; 4]).payload(&pieces[1][14..42]);
    lab.rx(UP.port, &error).dropped("up", "icmp_unrelated");
}

#[test]
fn errors_about_first_fragments_show_the_sender_s_identification() {
    let mut lab = Lab::default();
    let tells = |lab: &mut Lab, from: &Host, out: &Wire, sent: &[u8], quoted: usize| {
        let error =
            |to, about: &[u8]| icmp(&ROUTER, to, 3, 1, [0; 4]).payload(&about[14..14 + quoted]);
        let told = error(from, sent).routed(GATEWAY1.mac, from.mac);
        lab.rx(UP.port, error(&UP, &out.bytes)).tx(from.port, told);
    };
    // The second has another port and another identification outside.
    for from in [&A, &B] {
        let first = &in_pieces(&outbound(from), FRAGMENT)[0];
        let sent = &in_pieces(&outbound(from).ttl(63), FRAGMENT)[0];
        let out = left(&mut lab, from, first);
        assert_eq!(identification(&out) == 0x1234, from.port == A.port);
        for quoted in [20, 28, 300] {
            tells(&mut lab, from, &out, sent, quoted);
        }
    }
    // And of what is cut here, as its sender would have cut it.
    lab.reconfigure(|spec| spec.uplinks[0].mtu = 1400);
    for from in [&A, &B] {
        let whole = udp(from, 4000, &SERVER, 53).via(GATEWAY1.mac).may_fragment().long(1450);
        let whole = whole.ident(777);
        let out = lab.rx(from.port, &whole).moved("replicated", 1).take(UP.port);
        assert_eq!(identification(&out[0]) == 777, from.port == A.port);
        for (out, sent) in out.iter().zip(&in_pieces(&whole.ttl(63), 1376)) {
            for quoted in [28, 60] {
                tells(&mut lab, from, out, sent, quoted);
            }
        }
    }
}

#[test]
fn errors_about_later_fragments_of_what_came_in_show_the_published_address() {
    let mut lab = Lab::new(published());
    let datagram = udp(&CLIENT, 4000, &UP, 5353).may_fragment().long(5000);
    let came = in_pieces(&datagram, FRAGMENT);
    let mut step = lab.rx(UP.port, &came[0][..]);
    for name in ["conn.entries", "conn.inserted", "dnat.7.packets", "dnat.7.bytes"] {
        step = step.tolerate(name);
    }
    step.take_one(B.port);
    let inside = lab.rx(UP.port, &came[1][..]).take_one(B.port);
    let error = icmp(&B, &CLIENT, 3, 3, [0; 4]).via(GATEWAY1.mac);
    let error = error.payload(&inside.bytes[14..14 + 60]);
    let sent = in_pieces(&datagram.ttl(63), FRAGMENT);
    let told = icmp(&UP, &CLIENT, 3, 3, [0; 4]).payload(&sent[1][14..14 + 60]);
    lab.rx(B.port, error).tx(UP.port, told.routed(UP.mac, ROUTER.mac));
}

#[test]
fn errors_about_protocols_without_ports_go_by_their_addresses() {
    let mut lab = Lab::default();
    for proto in [50, 47] {
        let packet = raw_ip(&A, &SERVER, proto).via(GATEWAY1.mac);
        lab.rx(A.port, &packet).masqueraded(&packet).take_one(UP.port);
        let told = icmp_error(&ROUTER, &A, 3, 1, &packet.clone().ttl(63), 548);
        let error = icmp_error(&ROUTER, &UP, 3, 1, &packet.src(UP.ip).ttl(63), 548);
        lab.rx(UP.port, error).tx(A.port, told.routed(GATEWAY1.mac, A.mac));
    }
}

#[test]
fn what_waits_in_vain_is_dropped_when_its_time_is_over() {
    let mut spec = topology();
    spec.timeouts.fragments = Duration::from_secs(5);
    let mut lab = Lab::new(spec);
    let pieces = in_pieces(&outbound(&A), FRAGMENT);
    lab.rx(A.port, &pieces[1][..]).moved("queued", 1);
    lab.rx(A.port, &pieces[3][..]).moved("queued", 1);
    lab.after(Duration::from_secs(4));
    lab.after(Duration::from_secs(1))
        .moved("queued", -2)
        .dropped("a", "fragment_untracked")
        .dropped("a", "fragment_untracked");
    assert!(lab.plane.tables().fragments.is_empty());
    // Only the first one of another datagram: nothing waits, and it is forgotten too.
    with_any_connection(lab.rx(A.port, &pieces[0][..])).take_one(UP.port);
    lab.after(Duration::from_secs(5));
    assert!(lab.plane.tables().fragments.is_empty());
    lab.rx(A.port, &pieces[1][..]).moved("queued", 1);
}

/// Of what comes from it. What comes from outside before its first fragment is no network's yet.
#[test]
fn a_networks_fragments_have_a_time_of_their_own() {
    let mut spec = topology();
    let own = Timeouts {
        fragments: Duration::from_secs(5),
        fragments_v6: Duration::from_secs(5),
        ..Timeouts::default()
    };
    spec.networks[0].timeouts = Some(Box::new(own));
    let mut lab = Lab::new(spec);
    let later = |from: &Host, gateway: &Host| {
        in_pieces(&outbound(from).via(gateway.mac), FRAGMENT)[1].clone()
    };
    lab.rx(A.port, &later(&A, &GATEWAY1)[..]).moved("queued", 1);
    lab.rx(D.port, &later(&D, &GATEWAY2)[..]).moved("queued", 1);
    lab.after(Duration::from_secs(4));
    lab.after(Duration::from_secs(1)).moved("queued", -1).dropped("a", "fragment_untracked");
    lab.after(Duration::from_secs(24));
    lab.after(Duration::from_secs(1)).moved("queued", -1).dropped("d", "fragment_untracked");
}

#[test]
fn what_waits_does_not_go_to_the_network_that_its_port_came_to() {
    let mut lab = Lab::default();
    let pieces = in_pieces(&outbound(&A), FRAGMENT);
    lab.rx(A.port, &pieces[1][..]).moved("queued", 1);
    // Its first fragment passes in the other network.
    lab.reconfigure(|spec| {
        if let PortRole::Endpoint { network, .. } = &mut spec.ports[0].role {
            *network = NET2;
        }
        let [one, two] = &mut spec.networks[..] else { panic!("two networks") };
        std::mem::swap(&mut one.subnets, &mut two.subnets);
    });
    let first = udp(&A, 4000, &SERVER, 53).via(GATEWAY2.mac).may_fragment().long(5000);
    let first = in_pieces(&first, FRAGMENT).remove(0);
    lab.rx(A.port, &first[..])
        .moved("queued", -1)
        .moved("conn.new", 1)
        .moved("masquerade.2.packets", 1)
        .moved("masquerade.2.bytes", 1500)
        .dropped("a", "port_unconfigured")
        .take_one(UP.port);
}

#[test]
fn what_waits_for_a_first_fragment_that_is_dropped_goes_with_it() {
    let mut lab = Lab::default();
    let datagram = udp(&A, 1, &D, 2).via(GATEWAY1.mac).may_fragment().long(5000);
    let pieces = in_pieces(&datagram, FRAGMENT);
    lab.rx(A.port, &pieces[1][..]).moved("queued", 1);
    lab.rx(A.port, &pieces[0][..])
        .dropped("a", "inter_network")
        .dropped("a", "fragment_untracked")
        .moved("queued", -1);
    lab.rx(A.port, &pieces[2][..]).dropped("a", "fragment_untracked");
}

#[test]
fn an_overlap_drops_the_datagram_and_a_duplicate_only_itself() {
    let mut lab = Lab::default();
    let datagram = outbound(&A);
    let whole = datagram.bytes();
    let part = |from: usize, to: usize| piece(&whole, from, to);
    lab.rx(A.port, part(1480, 2960)).moved("queued", 1);
    lab.rx(A.port, part(1480, 2960)).dropped("a", "fragment_duplicate");
    lab.rx(A.port, part(2952, 4440))
        .dropped("a", "fragment_overlap")
        .moved("queued", -1)
        .dropped("a", "fragment_overlap");
    lab.rx(A.port, part(0, 1480)).dropped("a", "fragment_overlap");
    lab.rx(A.port, part(4440, 5008)).dropped("a", "fragment_overlap");
    // Another datagram is another one.
    let other = datagram.ident(0x4321);
    let out = reversed(&mut lab, &A, &other, &UP, "masquerade.1");
    assert_eq!(reassemble(&sorted(out)), other.src(UP.ip).routed(UP.mac, ROUTER.mac).into());
}

#[test]
fn malformed_fragments_are_dropped() {
    let mut lab = Lab::default();
    let whole = outbound(&A).bytes();
    // Not of groups of eight, though others follow.
    lab.rx(A.port, piece(&whole, 0, 1477)).dropped("a", "fragment_malformed");
    // Behind where the datagram ends, once that is known.
    lab.rx(A.port, piece(&whole, 4440, 5008)).moved("queued", 1);
    let longer = outbound(&A).long(6000).bytes();
    lab.rx(A.port, piece(&longer, 5008, 5504))
        .dropped("a", "fragment_malformed")
        .moved("queued", -1)
        .dropped("a", "fragment_malformed");
}

#[test]
fn fragments_of_the_hosts_own_are_left_to_it() {
    let mut spec = topology();
    spec.uplinks[0].mode = UplinkMode::Shared;
    let mut lab = Lab::new(spec);
    let pieces = in_pieces(&udp(&CLIENT, 53, &UP, 40_000).may_fragment().long(5000), FRAGMENT);
    // Its first fragment was steered past us.
    lab.rx(UP.port, &pieces[1][..]).moved("queued", 1);
    lab.after(Duration::from_secs(31)).moved("queued", -1).moved("consumed", 1);
}

/// Orphans: later fragments of datagrams that have no first one, `from` numbers of them on.
fn orphans(from: u32, count: u32, src: impl Fn(u32) -> Packet) -> Vec<(PortId, Wire)> {
    let one = |n: u32| {
        let whole = src(n).ident(n as u16).may_fragment().long(2900).bytes();
        (A.port, piece(&whole, FRAGMENT, 2 * FRAGMENT - 80).into())
    };
    (from..from + count).map(one).collect()
}

/// A bystander's datagram passes whole, though its first fragment comes last.
#[track_caller]
fn bystander_passes(lab: &mut Lab, ident: u16) {
    let datagram = outbound(&B).ident(ident);
    let pieces = in_pieces(&datagram, FRAGMENT);
    let mut out = Vec::new();
    for piece in pieces.iter().rev() {
        out.extend(with_any_connection(lab.rx(B.port, &piece[..])).take(UP.port));
    }
    let expected = datagram.src(UP.ip).routed(UP.mac, ROUTER.mac);
    assert_eq!(reassemble(&sorted(out)), expected.into(), "bystander's datagram {ident}");
}

const FLOOD: u32 = 100_000;

/// 10^5 orphans from one port; `src` makes the packets. A bystander's fragments that waited before it began go on
/// after it, and others pass meanwhile.
fn orphan_flood(lab: &mut Lab, most: i64, src: impl Fn(u32) -> Packet) {
    let patient = outbound(&C);
    let pieces = in_pieces(&patient, FRAGMENT);
    for piece in &pieces[1..] {
        lab.rx(C.port, &piece[..]).moved("queued", 1);
    }
    for (round, from) in (0..FLOOD).step_by(64).enumerate() {
        lab.batch(orphans(from, 64.min(FLOOD - from), &src)).only_balanced();
        if round.is_multiple_of(200) {
            bystander_passes(lab, round as u16);
            let queued = lab.batch(Vec::new()).queued();
            assert!(queued <= most, "{queued} fragments wait");
        }
    }
    let out = sorted(with_any_connection(lab.rx(C.port, &pieces[0][..])).take(UP.port));
    // B speaks by its port already.
    let port = u16::from_be_bytes([out[0].bytes[34], out[0].bytes[35]]);
    let expected = patient.src(UP.ip).sport(port).routed(UP.mac, ROUTER.mac);
    assert_eq!(reassemble(&out), expected.into());
    lab.after(Duration::from_secs(31)).only_balanced();
    assert_eq!(lab.batch(Vec::new()).queued(), 0);
    assert!(lab.plane.tables().fragments.is_empty());
}

#[test]
fn a_flood_of_orphans_from_one_source_stops_nobody() {
    let mut lab = Lab::with(&EngineOptions { fragment_limit: 4096, ..small() }, topology());
    // An eighth of the table, and what waits of C.
    orphan_flood(&mut lab, 512 + 3, |n| udp(&A, n as u16, &SERVER, 53).via(GATEWAY1.mac));
    let stats = lab.plane.port_stats(A.port).unwrap();
    assert_eq!(stats.rx_drops.iter().sum::<u64>(), u64::from(FLOOD));
    assert_eq!(lab.plane.port_stats(B.port).unwrap().rx_drops.iter().sum::<u64>(), 0);
}

#[test]
fn a_flood_of_orphans_from_invented_sources_stops_nobody() {
    let mut spec = topology();
    without_guard(&mut spec);
    let mut lab = Lab::with(&EngineOptions { fragment_limit: 4096, ..small() }, spec);
    orphan_flood(&mut lab, 512 + 3, |n| {
        let [_, a, b, c] = n.to_be_bytes();
        udp(&A, 9, &SERVER, 53).via(GATEWAY1.mac).src([10, 128 | a, b, c].into())
    });
    assert_eq!(lab.plane.port_stats(B.port).unwrap().rx_drops.iter().sum::<u64>(), 0);
}

#[test]
fn a_flood_of_overlapping_fragments_stops_nobody() {
    let mut lab = Lab::with(&EngineOptions { fragment_limit: 4096, ..small() }, topology());
    for (round, from) in (0..FLOOD / 2).step_by(32).enumerate() {
        let mut batch = Vec::new();
        for n in from..from + 32 {
            let packet = udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac).ident(n as u16);
            let whole = packet.may_fragment().long(2000).bytes();
            batch.push((A.port, piece(&whole, 800, 1600).into()));
            batch.push((A.port, piece(&whole, 792, 1608).into()));
        }
        lab.batch(batch).only_balanced();
        if round.is_multiple_of(200) {
            bystander_passes(&mut lab, round as u16);
        }
    }
    let queued = lab.batch(Vec::new()).queued();
    assert_eq!(queued, 0, "what overlaps does not wait");
    assert_eq!(lab.plane.tables().fragments.len(), 512);
    let drops = lab.plane.worker_stats()[0].clone();
    let overlaps = drops.drops_for(DropReason::FragmentOverlap);
    assert_eq!(overlaps, drops.dropped());
    assert_eq!(overlaps, u64::from((FLOOD / 2).next_multiple_of(32)) * 2);
}
