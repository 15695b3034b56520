//! ICMP errors through NAT, both ways: the quoted packet is what its sender sent, and every
//! checksum, the quoted ones too, is right.

use dataplane::config::UplinkMode;
use dataplane::packet::types::tcp_flags::{ACK, SYN};
use tests::lab::{A, B, CLIENT, GATEWAY1, Lab, ROUTER, SERVER, UP, publish_tcp, topology};
use tests::packet::{
    Host, Packet, Wire, echo, echo_reply, icmp, icmp_error, icmp6_error, reported, speaks_ipv6,
    tcp, udp,
};

tests::in_ipv6! {
    a_quote_of_a_datagram_without_checksum_gets_none
    an_error_neither_refreshes_nor_ends_a_connection
    errors_about_nothing_we_know_or_that_are_damaged
    errors_about_what_came_in_show_the_published_address
    errors_about_what_was_sent_out_reach_the_sender
    errors_of_a_hairpin_go_back_the_same_way
    every_code_of_every_error_reaches_the_sender
    the_engine_s_own_errors_about_translated_packets_quote_what_the_sender_sent
}

/// Bytes of the quoted packet that there are: the header and eight bytes, some, or all.
const QUOTES: [usize; 4] = [28, 40, 68, 548];

/// Begins a connection from inside; returns the packet as it left and as its sender sent it, both
/// with the TTL it has behind the engine.
fn begun(lab: &mut Lab, from: &Host, packet: &Packet) -> (Packet, Packet) {
    let wire = lab.rx(from.port, packet).masqueraded(packet).take_one(UP.port);
    let is_icmp = matches!((wire.l4(), wire.bytes[23], wire.bytes[20]), (34, 1, _) | (54, _, 58));
    let out = packet.clone().src(UP.ip).ttl(63).sport(wire.l4_u16(if is_icmp { 4 } else { 0 }));
    (out, packet.clone().ttl(63))
}

/// The same error as `error`, but without the last byte's worth of trust: one bit flipped.
fn flipped(error: &Packet, at: usize) -> Wire {
    let mut bytes = error.bytes();
    bytes[at] ^= 1;
    bytes.into()
}

#[test]
fn an_error_about_another_query_with_a_ping_s_identifier_is_nobody_s() {
    let mut lab = Lab::default();
    let (out, _) = begun(&mut lab, &A, &echo(&A, &SERVER, 40_000).via(GATEWAY1.mac));
    assert_eq!(lab.connection().reply.dst_port, 40_000);
    lab.rx(UP.port, icmp_error(&ROUTER, &UP, 3, 1, &out, 548)).take_one(A.port);
    // A timestamp query (RFC 792), which is not translated and so was not the container's.
    let foreign = icmp(&UP, &SERVER, 13, 0, [0x9c, 0x40, 0, 0]).payload(&[0; 12]);
    lab.rx(UP.port, icmp_error(&ROUTER, &UP, 3, 1, &foreign, 548)).dropped("up", "icmp_unrelated");
}

/// Rows: RFC 5382 REQ-9; RFC 5508 REQ-4, REQ-5; Open vSwitch `conntrack: ICMP related, ICMP related 2, related
/// to original direction`; Open vSwitch `conntrack: multiple ICMP traverse`; Open vSwitch `conntrack: ICMP from
/// different source related with NAT`; Open vSwitch `conntrack: ICMP related with NAT, SNAT, NAT with single
/// port`; Open vSwitch `conntrack: ICMPv6 related with SNAT, NAT with single port`; Linux
/// `conntrack_icmp_related.sh`; VPP `test_icmp_error`.
#[test]
fn errors_about_what_was_sent_out_reach_the_sender() {
    let mut lab = Lab::default();
    // A first connection takes the ports, so that those of the second are translated.
    for taken in [
        udp(&B, 40_000, &SERVER, 4242),
        tcp(&B, 40_000, &SERVER, 80, SYN),
        echo(&B, &SERVER, 40_000),
    ] {
        begun(&mut lab, &B, &taken.via(GATEWAY1.mac));
    }
    for packet in [
        udp(&A, 40_000, &SERVER, 4242).long(700),
        tcp(&A, 40_000, &SERVER, 80, SYN),
        echo(&A, &SERVER, 40_000).long(100),
    ] {
        let (out, sent) = begun(&mut lab, &A, &packet.via(GATEWAY1.mac));
        for (from, kind, code) in
            [(&SERVER, 3, 3), (&ROUTER, 11, 0), (&ROUTER, 3, 1), (&SERVER, 12, 0)]
        {
            for limit in QUOTES {
                let error = icmp_error(from, &UP, kind, code, &out, limit);
                let told = icmp_error(from, &A, kind, code, &sent, limit);
                lab.rx(UP.port, &error).tx(A.port, told.routed(GATEWAY1.mac, A.mac));
            }
        }
        let error = icmp_error(&ROUTER, &UP, 3, 4, &out, 548).icmp_low(1280);
        let told = icmp_error(&ROUTER, &A, 3, 4, &sent, 548).icmp_low(1280);
        lab.rx(UP.port, &error).tx(A.port, told.routed(GATEWAY1.mac, A.mac));
    }
    for connection in lab.connections() {
        assert_eq!(connection.packets, [1, 0], "errors are no packets of the connection");
    }
}

#[test]
fn a_quote_of_a_datagram_without_checksum_gets_none() {
    let mut lab = Lab::default();
    let packet = udp(&A, 40_000, &SERVER, 4242).via(GATEWAY1.mac);
    let (out, sent) = begun(&mut lab, &A, &packet);
    let bare = |about: &Packet, to: &Host| {
        let mut quote = about.ip_bytes();
        let checksum = Wire::from(about).l4() - 14 + 6;
        quote[checksum..checksum + 2].fill(0);
        icmp_error(&SERVER, to, 3, 3, about, 0).payload(&quote)
    };
    let told = bare(&sent, &A).routed(GATEWAY1.mac, A.mac);
    lab.rx(UP.port, bare(&out, &UP)).tx(A.port, told);
}

/// Rows: VPP `test_icmp_error_fwd_outbound`; VPP `test_dynamic_icmp_errors_out2in_ttl_1, _out2in_ttl_2`.
#[test]
fn errors_about_what_came_in_show_the_published_address() {
    let mut spec = topology();
    spec.dnat.push(publish_tcp(7, 8080, &B, 80));
    let mut lab = Lab::new(spec);
    let syn = tcp(&CLIENT, 5000, &UP, 8080, SYN);
    let received = syn.clone().dst(B.ip).dport(80).routed(GATEWAY1.mac, B.mac);
    lab.rx(UP.port, &syn)
        .tx(B.port, &received)
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64);
    for limit in QUOTES {
        let error = icmp_error(&B, &CLIENT, 3, 3, &received, limit).via(GATEWAY1.mac);
        let told = icmp_error(&UP, &CLIENT, 3, 3, &syn.clone().ttl(63), limit);
        lab.rx(B.port, &error).tx(UP.port, told.routed(UP.mac, ROUTER.mac));
    }
    // Of others' connections nobody has anything to tell.
    let forged = icmp_error(&A, &CLIENT, 3, 3, &received, 548).via(GATEWAY1.mac);
    lab.rx(A.port, &forged).dropped("a", "icmp_unrelated");
    // And errors from outside about the server's answers.
    let answer = tcp(&B, 80, &CLIENT, 5000, SYN | 0x10).via(GATEWAY1.mac);
    let out = answer.clone().src(UP.ip).sport(8080).routed(UP.mac, ROUTER.mac);
    lab.rx(B.port, &answer).tx(UP.port, &out);
    for limit in QUOTES {
        let error = icmp_error(&ROUTER, &UP, 11, 0, &out, limit);
        let told = icmp_error(&ROUTER, &B, 11, 0, &answer.clone().ttl(63), limit);
        lab.rx(UP.port, &error).tx(B.port, told.routed(GATEWAY1.mac, B.mac));
    }
}

/// Rows: RFC 5508 REQ-7; RFC 7857 §12.
#[test]
fn errors_of_a_hairpin_go_back_the_same_way() {
    let mut spec = topology();
    spec.dnat.push(publish_tcp(7, 8080, &B, 80));
    let mut lab = Lab::new(spec);
    let syn = tcp(&A, 40_000, &UP, 8080, SYN).via(GATEWAY1.mac);
    let received = syn.clone().src(UP.ip).dst(B.ip).dport(80).routed(GATEWAY1.mac, B.mac);
    lab.rx(A.port, &syn)
        .tx(B.port, &received)
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64);
    let error = icmp_error(&B, &UP, 3, 3, &received, 548).via(GATEWAY1.mac);
    let told = icmp_error(&UP, &A, 3, 3, &syn.clone().ttl(63), 548);
    lab.rx(B.port, &error).tx(A.port, told.routed(GATEWAY1.mac, A.mac));
}

#[test]
fn the_engine_s_own_errors_about_translated_packets_quote_what_the_sender_sent() {
    let mut spec = topology();
    spec.dnat.push(publish_tcp(7, 8080, &B, 80));
    spec.networks[0].mtu = 1300;
    let mut lab = Lab::new(spec);
    // Too long for the inside: the client outside hears of it from the address it spoke to.
    let syn = tcp(&CLIENT, 5000, &UP, 8080, SYN).long(1400);
    let told = reported(&UP, &CLIENT, 3, 4, &syn).icmp_low(1300).macs(UP.mac, ROUTER.mac);
    lab.rx(UP.port, &syn).tx(UP.port, told).moved("generated", 1).dropped("up", "mtu_exceeded");
}

#[test]
fn errors_about_nothing_we_know_or_that_are_damaged() {
    let mut lab = Lab::default();
    let packet = udp(&A, 40_000, &SERVER, 4242).via(GATEWAY1.mac);
    let (out, _) = begun(&mut lab, &A, &packet);
    let unknown = icmp_error(&SERVER, &UP, 3, 3, &out.clone().dport(1), 28);
    let sound = icmp_error(&SERVER, &UP, 3, 3, &out, 28);
    lab.rx(UP.port, &unknown).dropped("up", "icmp_unrelated");
    // The error's own checksum, and that of the quoted header under a right outer one.
    let checksum = Wire::from(&sound).l4() + 2;
    lab.rx(UP.port, flipped(&sound, checksum)).dropped("up", "l4_malformed");
    // An IPv6 header has none: it must say its version at least.
    let mut quote = out.ip_bytes();
    quote[if speaks_ipv6() { 0 } else { 8 }] ^= 0x10;
    let liar = icmp_error(&SERVER, &UP, 3, 3, &out, 0).payload(&quote);
    let reason = if speaks_ipv6() { "l4_malformed" } else { "ipv4_checksum" };
    lab.rx(UP.port, &liar).dropped("up", reason);
    let cut = icmp_error(&SERVER, &UP, 3, 3, &out, 12);
    lab.rx(UP.port, &cut).dropped("up", "l4_malformed");
    let portless = icmp_error(&SERVER, &UP, 3, 3, &out, 24);
    lab.rx(UP.port, &portless).dropped("up", "icmp_unrelated");
    // A shared uplink leaves all of them to the host.
    lab.reconfigure(|spec| spec.uplinks[0].mode = UplinkMode::Shared);
    for wire in [Wire::from(&unknown), flipped(&sound, checksum), liar.into(), cut.into()] {
        lab.rx(UP.port, wire).moved("consumed", 1);
    }
    // But what is ours still comes in.
    lab.rx(UP.port, &sound).take_one(A.port);
}

/// An error of the IP version that is spoken, by its own numbers.
fn error(from: &Host, (kind, code): (u8, u8), about: &Packet) -> Packet {
    let error = match speaks_ipv6() {
        true => icmp6_error(from, &UP, kind, code, about, 548),
        false => icmp_error(from, &UP, kind, code, about, 548),
    };
    let is_too_long = (kind, code) == if speaks_ipv6() { (2, 0) } else { (3, 4) };
    if is_too_long { error.icmp_low(1280) } else { error }
}

/// All codes of the errors that there are (RFC 792, RFC 1122 §3.2.2.1, RFC 1812 §5.2.7.1; RFC 4443 §3).
fn every_error() -> Vec<(u8, u8)> {
    let codes: &[(u8, u8)] = match speaks_ipv6() {
        true => &[(1, 6), (2, 0), (3, 1), (4, 2)],
        false => &[(3, 15), (4, 0), (11, 1), (12, 2)],
    };
    codes.iter().flat_map(|(kind, last)| (0..=*last).map(|code| (*kind, code))).collect()
}

/// Rows: RFC 5508 REQ-10.
#[test]
fn every_code_of_every_error_reaches_the_sender() {
    let mut lab = Lab::default();
    for packet in [
        udp(&A, 40_000, &SERVER, 4242),
        tcp(&A, 40_000, &SERVER, 80, SYN),
        echo(&A, &SERVER, 40_000),
    ] {
        let (out, sent) = begun(&mut lab, &A, &packet.via(GATEWAY1.mac));
        for which in every_error() {
            let told = error(&ROUTER, which, &sent).dst(A.ip).routed(GATEWAY1.mac, A.mac);
            lab.rx(UP.port, error(&ROUTER, which, &out)).tx(A.port, told);
        }
    }
}

/// Rows: RFC 4787 REQ-12, RFC 5382 REQ-10; RFC 5508 REQ-6.
#[test]
fn an_error_neither_refreshes_nor_ends_a_connection() {
    let mut lab = Lab::default();
    let flows = [
        (udp(&A, 40_000, &SERVER, 4242), udp(&SERVER, 4242, &UP, 40_000)),
        (tcp(&A, 40_000, &SERVER, 80, SYN), tcp(&SERVER, 80, &UP, 40_000, SYN | ACK)),
        (echo(&A, &SERVER, 40_000), echo_reply(&SERVER, &UP, 40_000)),
    ];
    let flows =
        flows.map(|(packet, answer)| (begun(&mut lab, &A, &packet.via(GATEWAY1.mac)).0, answer));
    lab.now = lab.now + std::time::Duration::from_secs(20);
    let before = lab.connections();
    for (out, _) in &flows {
        for which in every_error() {
            lab.rx(UP.port, error(&SERVER, which, out)).take_one(A.port);
        }
        let redirect = error(&ROUTER, if speaks_ipv6() { (137, 0) } else { (5, 1) }, out);
        lab.rx(UP.port, redirect).only_balanced();
        assert_eq!(lab.connections(), before);
    }
    // They are there for whoever was spoken to.
    for (_, answer) in flows {
        lab.rx(UP.port, answer).take_one(A.port);
    }
}

#[test]
fn redirects_and_source_quenches_are_errors_too_and_never_reach_inside_unasked() {
    let mut lab = Lab::default();
    let about = udp(&UP, 1, &SERVER, 2);
    for kind in [4, 5] {
        lab.rx(UP.port, icmp_error(&ROUTER, &UP, kind, 0, &about, 28))
            .dropped("up", "icmp_unrelated");
    }
}

#[test]
fn a_redirect_about_what_was_translated_ends_here() {
    let mut lab = Lab::default();
    let packet = udp(&A, 40_000, &SERVER, 4242).via(GATEWAY1.mac);
    let (out, _) = begun(&mut lab, &A, &packet);
    let redirect = icmp_error(&ROUTER, &UP, 5, 1, &out, 28);
    lab.rx(UP.port, redirect).dropped("up", "icmp_unrelated");
    // Any other error about it goes on.
    lab.rx(UP.port, icmp_error(&ROUTER, &UP, 4, 0, &out, 28)).take_one(A.port);
    // And so does a redirect about what is routed as it is.
    lab.reconfigure(|spec| spec.networks[0].masquerade = false);
    let plain = udp(&A, 40_001, &SERVER, 4242).via(GATEWAY1.mac);
    lab.rx(A.port, &plain).moved("conn.new", 1).take_one(UP.port);
    let about = plain.routed(UP.mac, ROUTER.mac);
    lab.rx(UP.port, icmp_error(&ROUTER, &A, 5, 1, &about, 28).macs(ROUTER.mac, UP.mac))
        .take_one(A.port);
}
