//! Connections that others announce: FTP and TFTP, where a network asks for it; and sequence numbers that are
//! not the same on both sides.

use std::net::Ipv4Addr;
use std::time::Duration;

use dataplane::config::{Helpers, SnapshotSpec};
use dataplane::engine::FlowTuple;
use dataplane::packet::types::tcp_flags::{ACK, FIN, PSH, RST, SYN};
use dataplane::trace::Fact;
use tests::lab::{
    A, B, CLIENT, GATEWAY1, Lab, NEIGHBOR, NET1, ROUTER, SERVER, UP, publish, publish_tcp, topology,
};
use tests::packet::{Host, Packet, Wire, ip, ip6, reassemble, reported, speaks_ipv6, tcp, udp};

tests::in_ipv6! {
    a_client_inside_is_called_back
    a_connection_taken_over_by_nobody_is_not_helped
    a_hairpinned_server_is_called_by_its_outside_address
    a_reset_is_judged_by_the_numbers_of_its_side
    a_server_inside_is_called_where_it_says
    a_segment_sent_again_says_the_same
    a_skewed_connection_ends_as_any_other
    a_trace_says_who_has_announced_a_connection
    an_expectation_ends_with_its_connection
    an_expectation_ends_with_its_time
    an_expectation_is_for_one
    another_s_address_is_not_called
    nothing_is_expected_unless_a_network_asks
    numbers_are_skewed_both_ways
    selective_acknowledgments_are_skewed_too
    what_a_device_finishes_stays_right
    tftp_answers_from_another_port
    tftp_into_a_published_port_is_answered
    what_outgrows_the_way_out_is_told_to_its_sender
    what_is_unpublished_is_not_called
}

pub(crate) const HELPERS: Helpers = Helpers { ftp: true, tftp: true };

/// Network 1 has helpers, and FTP of B is published at port 2121.
pub(crate) fn helped() -> SnapshotSpec {
    let mut spec = topology();
    spec.networks[0].helpers = HELPERS;
    spec.dnat = vec![publish_tcp(7, 2121, &B, 21)];
    spec
}

/// One side of a TCP connection: its numbers, those of the other as it sees them, and its packets.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    pub(crate) packet: Packet,
    pub(crate) next: u32,
    heard: u32,
}

/// A control connection through the gateway.
pub(crate) struct Talk {
    pub(crate) client: Side,
    server: Side,
    /// The ports by which both ends are reached, and what they look like where their packets arrive.
    ports: [dataplane::packet::types::PortId; 2],
    seen: [Packet; 2],
}

impl Side {
    pub(crate) fn says(&self, text: &str) -> Packet {
        let flags = ACK | PSH;
        self.packet.clone().flags(flags).seq(self.next).acks(self.heard).payload(text.as_bytes())
    }
}

impl Talk {
    /// The handshake of a client inside with a server outside.
    pub(crate) fn out(lab: &mut Lab) -> Self {
        let client = tcp(&A, 40_000, &SERVER, 21, ACK).via(GATEWAY1.mac);
        let server = tcp(&SERVER, 21, &UP, 40_000, ACK);
        let syn = client.clone().flags(SYN).seq(4_999).acks(0);
        let left = |packet: &Packet| packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
        let came = |packet: &Packet| packet.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac);
        let answer = server.clone().flags(SYN | ACK).seq(8_999).acks(5_000);
        lab.rx(A.port, &syn).masqueraded(&syn).tx(UP.port, left(&syn));
        lab.rx(UP.port, &answer).tx(A.port, came(&answer));
        let last = client.clone().seq(5_000).acks(9_000);
        lab.rx(A.port, &last).tx(UP.port, left(&last));
        let seen = [left(&client), came(&server)];
        Self::of(client, server, [A.port, UP.port], seen)
    }

    /// The handshake of a client outside with the published server.
    pub(crate) fn into(lab: &mut Lab) -> Self {
        let client = tcp(&CLIENT, 6000, &UP, 2121, ACK);
        let server = tcp(&B, 21, &CLIENT, 6000, ACK).via(GATEWAY1.mac);
        let came = |packet: &Packet| packet.clone().dst(B.ip).dport(21).routed(GATEWAY1.mac, B.mac);
        let left =
            |packet: &Packet| packet.clone().src(UP.ip).sport(2121).routed(UP.mac, ROUTER.mac);
        let syn = client.clone().flags(SYN).seq(4_999).acks(0);
        let answer = server.clone().flags(SYN | ACK).seq(8_999).acks(5_000);
        lab.rx(UP.port, &syn)
            .tx(B.port, came(&syn))
            .moved("conn.new", 1)
            .moved("dnat.7.packets", 1)
            .moved("dnat.7.bytes", syn.ip_len() as i64);
        lab.rx(B.port, &answer).tx(UP.port, left(&answer));
        let last = client.clone().seq(5_000).acks(9_000);
        lab.rx(UP.port, &last).tx(B.port, came(&last));
        let seen = [came(&client), left(&server)];
        Self::of(client, server, [UP.port, B.port], seen)
    }

    pub(crate) fn of(
        client: Packet,
        server: Packet,
        ports: [dataplane::packet::types::PortId; 2],
        seen: [Packet; 2],
    ) -> Self {
        let side = |packet, next, heard| Side { packet, next, heard };
        Self { client: side(client, 5_000, 9_000), server: side(server, 9_000, 5_000), ports, seen }
    }

    /// The client says something, and the server hears it as it should; nobody answers yet.
    #[track_caller]
    pub(crate) fn command(
        &mut self,
        lab: &mut Lab,
        said: &str,
        heard: &str,
        moved: &[(&str, i64)],
    ) {
        let packet = self.client.says(said);
        // What the server has said so far, in the numbers that it knows.
        let expected = self.seen[0]
            .clone()
            .flags(ACK | PSH)
            .seq(self.server.heard)
            .acks(self.server.next)
            .payload(heard.as_bytes());
        let step = lab.rx(self.ports[0], &packet).tx(self.ports[1], expected);
        drop(moved.iter().fold(step, |step, (name, by)| step.moved(name, *by)));
        self.client.next += said.len() as u32;
        self.server.heard += heard.len() as u32;
    }

    /// The client asks where the server can be called.
    #[track_caller]
    pub(crate) fn ask(&mut self, lab: &mut Lab) {
        let ask = if speaks_ipv6() { "EPSV\r\n" } else { "PASV\r\n" };
        self.command(lab, ask, ask, &[]);
    }

    /// The same of the server.
    #[track_caller]
    pub(crate) fn reply(&mut self, lab: &mut Lab, said: &str, heard: &str, moved: &[(&str, i64)]) {
        let packet = self.server.says(said);
        let expected = self.seen[1]
            .clone()
            .flags(ACK | PSH)
            .seq(self.client.heard)
            .acks(self.client.next)
            .payload(heard.as_bytes());
        let step = lab.rx(self.ports[1], &packet).tx(self.ports[0], expected);
        drop(moved.iter().fold(step, |step, (name, by)| step.moved(name, *by)));
        self.server.next += said.len() as u32;
        self.client.heard += heard.len() as u32;
    }
}

pub(crate) const EXPECTED: &[(&str, i64)] = &[("helpers.expected", 1)];

/// What a client says of where it can be called, in the words of the family that is spoken.
pub(crate) fn active(address: Ipv4Addr, port: u16) -> String {
    if speaks_ipv6() {
        return format!("EPRT |2|{}|{port}|\r\n", ip6(address));
    }
    let ([a, b, c, d], [high, low]) = (address.octets(), port.to_be_bytes());
    format!("PORT {a},{b},{c},{d},{high},{low}\r\n")
}

/// The same of a server.
pub(crate) fn passive(address: Ipv4Addr, port: u16) -> String {
    if speaks_ipv6() {
        return format!("229 Entering Extended Passive Mode (|||{port}|)\r\n");
    }
    let ([a, b, c, d], [high, low]) = (address.octets(), port.to_be_bytes());
    format!("227 Entering Passive Mode ({a},{b},{c},{d},{high},{low}).\r\n")
}

/// A SYN from outside that is expected, and how it looks to whom it is for.
pub(crate) fn call(
    from: &Host,
    src_port: u16,
    outside: u16,
    to: &Host,
    port: u16,
) -> (Packet, Packet) {
    let syn = tcp(from, src_port, &UP, outside, SYN);
    let came = syn.clone().dst(to.ip).dport(port).routed(GATEWAY1.mac, to.mac);
    (syn, came)
}

/// Rows: Open vSwitch `conntrack: FTP, no conntrack, non-standard port, expectation dump, passive, multiple
/// expectations`; Open vSwitch `conntrack: FTP over IPv6, passive`; Linux `nft_conntrack_helper.sh`.
#[test]
fn a_client_inside_is_called_back() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    talk.reply(&mut lab, "220 hello\r\n", "220 hello\r\n", &[]);
    talk.command(&mut lab, &active(A.ip, 41_000), &active(UP.ip, 41_000), EXPECTED);
    talk.reply(&mut lab, "200 ok\r\n", "200 ok\r\n", &[]);
    talk.command(&mut lab, "LIST\r\n", "LIST\r\n", &[]);
    let (syn, came) = call(&SERVER, 20, 41_000, &A, 41_000);
    lab.rx(UP.port, &syn).tx(A.port, came).moved("conn.new", 1).moved("helpers.used", 1);
    let answer = tcp(&A, 41_000, &SERVER, 20, SYN | ACK).via(GATEWAY1.mac);
    lab.rx(A.port, &answer).tx(UP.port, answer.clone().src(UP.ip).routed(UP.mac, ROUTER.mac));
    let data = lab.connections().into_iter().find(|c| c.original.src_port == 20).unwrap();
    assert_eq!((data.dnat, data.reply.src_port), (true, 41_000));
    // The next one; and the numbers of both directions still fit.
    talk.reply(&mut lab, "226 done\r\n", "226 done\r\n", &[]);
    talk.command(&mut lab, &active(A.ip, 41_001), &active(UP.ip, 41_001), EXPECTED);
    talk.command(&mut lab, "QUIT\r\n", "QUIT\r\n", &[]);
    talk.reply(&mut lab, "221 bye\r\n", "221 bye\r\n", &[]);
}

#[test]
fn a_server_inside_is_called_where_it_says() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::into(&mut lab);
    talk.ask(&mut lab);
    talk.reply(&mut lab, &passive(B.ip, 5001), &passive(UP.ip, 5001), EXPECTED);
    talk.command(&mut lab, "LIST\r\n", "LIST\r\n", &[]);
    talk.reply(&mut lab, "150 here\r\n", "150 here\r\n", &[]);
    let (syn, came) = call(&CLIENT, 6001, 5001, &B, 5001);
    lab.rx(UP.port, &syn)
        .tx(B.port, came)
        .moved("conn.new", 1)
        .moved("helpers.used", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64);
    // It goes with the mapping by which it was announced.
    assert_eq!(lab.connections().len(), 2);
    lab.reconfigure(|spec| spec.dnat.push(publish_tcp(8, 80, &A, 80)));
    assert_eq!(lab.connections().len(), 2);
    lab.reconfigure(|spec| spec.dnat.retain(|rule| rule.id != 7));
    assert_eq!(lab.connections().len(), 0);
}

/// Outside there is one port alone, which has more digits than that inside, or fewer.
///
/// Rows: Open vSwitch `conntrack: FTP with SNAT and DNAT, active, passive, with reverse skew`.
#[test]
fn numbers_are_skewed_both_ways() {
    for (inside, outside) in [(1024, 65_000), (65_000, 1024)] {
        let mut spec = helped();
        spec.uplinks[0].nat_ports = vec![(outside, outside)];
        let mut lab = Lab::new(spec);
        let mut talk = Talk::into(&mut lab);
        let (said, heard) = (passive(B.ip, inside), passive(UP.ip, outside));
        assert_eq!(heard.len() > said.len(), outside > inside);
        assert_ne!(heard.len(), said.len());
        talk.ask(&mut lab);
        talk.reply(&mut lab, &said, &heard, EXPECTED);
        for _ in 0..6 {
            talk.ask(&mut lab);
            talk.reply(&mut lab, &said, &heard, EXPECTED);
            talk.reply(&mut lab, "200 ok\r\n", "200 ok\r\n", &[]);
        }
        // What the client says of itself needs no change: it is called as anybody outside.
        talk.command(&mut lab, &active(CLIENT.ip, 7000), &active(CLIENT.ip, 7000), &[]);
    }
}

#[test]
fn a_skewed_connection_ends_as_any_other() {
    let mut spec = helped();
    spec.uplinks[0].nat_ports = vec![(40_000, 40_000), (60_000, 60_003)];
    let mut lab = Lab::new(spec);
    let mut talk = Talk::out(&mut lab);
    for port in [61_000, 61_001] {
        let said = active(A.ip, port);
        let packet = talk.client.says(&said);
        let came = lab.rx(A.port, &packet).moved("helpers.expected", 1).take_one(UP.port);
        let end = came.bytes.len();
        talk.client.next += said.len() as u32;
        talk.server.heard += (end - came.l4() - 20) as u32;
        talk.reply(&mut lab, "200 ok\r\n", "200 ok\r\n", &[]);
        talk.command(&mut lab, "LIST\r\n", "LIST\r\n", &[]);
    }
    assert_ne!(talk.client.next, talk.server.heard, "the numbers of the client are skewed");
    // Both ends close, and all of it fits.
    let fin =
        talk.client.packet.clone().flags(FIN | ACK).seq(talk.client.next).acks(talk.client.heard);
    let seen = talk.seen[0].clone().flags(FIN | ACK).seq(talk.server.heard).acks(talk.server.next);
    lab.rx(A.port, &fin).tx(UP.port, seen);
    let end = (talk.server.next, talk.server.heard + 1);
    let fin = talk.server.packet.clone().flags(FIN | ACK).seq(end.0).acks(end.1);
    let seen = talk.seen[1].clone().flags(FIN | ACK).seq(end.0).acks(talk.client.next + 1);
    lab.rx(UP.port, &fin).tx(A.port, seen);
    assert_eq!(lab.connections()[0].state, "LAST_ACK");
}

#[test]
fn a_segment_sent_again_says_the_same() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    let before = talk.client.clone();
    let (said, heard) = (active(A.ip, 41_000), active(UP.ip, 41_000));
    let was = talk.server.heard;
    talk.command(&mut lab, &said, &heard, EXPECTED);
    let expected = talk.seen[0].clone().flags(ACK | PSH).seq(was).acks(9_000);
    lab.rx(A.port, before.says(&said)).tx(UP.port, expected.clone().payload(heard.as_bytes()));
    // Together with what follows, and of several segments at once.
    let (more, all) = (format!("{said}LIST\r\n"), format!("{heard}LIST\r\n"));
    lab.rx(A.port, before.says(&more)).tx(UP.port, expected.clone().payload(all.as_bytes()));
    // What came in two parts then would have to be said in two parts.
    let (first, _) = said.split_at(10);
    lab.rx(A.port, before.says(first)).dropped("a", "helper_split");
    // Once used nobody else may come, whatever is sent again.
    let (syn, came) = call(&SERVER, 20, 41_000, &A, 41_000);
    lab.rx(UP.port, &syn).tx(A.port, came).moved("conn.new", 1).moved("helpers.used", 1);
    lab.rx(A.port, before.says(&said)).tx(UP.port, expected.payload(heard.as_bytes()));
    lab.rx(UP.port, call(&SERVER, 21, 41_000, &A, 41_000).0).dropped("up", "unsolicited");
}

/// What is sent again together with more may be as long as the way out takes, but not with what has to stand
/// in it.
#[test]
fn what_outgrows_the_way_out_is_told_to_its_sender() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    let before = talk.client.clone();
    let (said, heard) = (active(A.ip, 41_000), active(UP.ip, 41_000));
    let growth = heard.len() - said.len();
    assert!(growth > 0, "{said:?} becomes {heard:?}");
    let was = talk.server.heard;
    talk.command(&mut lab, &said, &heard, EXPECTED);
    let headers = before.says("").ip_len();
    let of_length =
        |text: &str, len: usize| text.to_owned() + &"x".repeat(len - headers - text.len());
    let expected = talk.seen[0].clone().flags(ACK | PSH).seq(was).acks(9_000);
    // As long as may be.
    let fits = before.says(&of_length(&said, 1500 - growth));
    let left = expected.clone().payload(of_length(&heard, 1500).as_bytes());
    lab.rx(A.port, &fits).tx(UP.port, &left);
    let told = 1500 - growth as u16;
    for len in [1501 - growth, 1500] {
        let long = before.says(&of_length(&said, len));
        lab.rx(A.port, &long)
            .tx(A.port, reported(&GATEWAY1, &A, 3, 4, &long).icmp_low(told))
            .moved("generated", 1)
            .dropped("a", "mtu_exceeded");
    }
    // What no change is in may be as long as ever.
    let after = talk.client.says(&of_length("", 1500));
    let seen = talk.seen[0].clone().flags(ACK | PSH).seq(talk.server.heard).acks(9_000);
    lab.rx(A.port, &after).tx(UP.port, seen.payload(of_length("", 1500).as_bytes()));
}

/// Nor is there anything to tell where a router may cut.
#[test]
fn what_outgrows_the_way_out_is_cut_where_it_may_be() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    let before = talk.client.clone();
    let (said, heard) = (active(A.ip, 41_000), active(UP.ip, 41_000));
    let was = talk.server.heard;
    talk.command(&mut lab, &said, &heard, EXPECTED);
    let more = "x".repeat(1500 - before.says(&said).ip_len());
    let long = before.says(&format!("{said}{more}")).may_fragment().ident(0x4321);
    let sent = lab.rx(A.port, &long).moved("replicated", 1).take(UP.port);
    assert!(sent.len() == 2 && sent.iter().all(|wire| wire.bytes.len() <= 14 + 1500));
    let left = talk.seen[0].clone().flags(ACK | PSH).seq(was).acks(9_000);
    let left = left.payload(format!("{heard}{more}").as_bytes()).may_fragment().ident(0x4321);
    assert_eq!(reassemble(&sent), left.into());
}

/// On the narrowest link of IPv6 nobody would believe an MTU that is less.
#[test]
fn what_outgrows_the_narrowest_way_out_is_dropped() {
    tests::packet::speak_ipv6();
    let mut spec = helped();
    spec.uplinks[0].mtu = 1280;
    let mut lab = Lab::new(spec);
    let mut talk = Talk::out(&mut lab);
    let before = talk.client.clone();
    talk.command(&mut lab, &active(A.ip, 41_000), &active(UP.ip, 41_000), EXPECTED);
    let text = active(A.ip, 41_000);
    let more = "x".repeat(1280 - before.says(&text).ip_len());
    lab.rx(A.port, before.says(&format!("{text}{more}"))).dropped("a", "helper_split");
}

#[test]
fn a_trace_says_who_has_announced_a_connection() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    let said = |lab: &Lab, packet: &Packet| {
        let wire = Wire::from(packet);
        let traced = lab.tracer().trace(UP.port, &wire.bytes, wire.vnet, lab.now);
        let led = traced.sent.iter().any(|sent| sent.port == A.port);
        let step = traced.steps.into_iter().find(|step| step.stage == "expected");
        assert_eq!(step.is_some(), led);
        step.map(|step| step.facts)
    };
    let (syn, came) = call(&SERVER, 20, 41_000, &A, 41_000);
    assert_eq!(said(&lab, &syn), None);
    talk.command(&mut lab, &active(A.ip, 41_000), &active(UP.ip, 41_000), EXPECTED);
    let by = FlowTuple { src: ip(A.ip), dst: ip(SERVER.ip), src_port: 40_000, dst_port: 21 };
    let facts = vec![
        ("helper", Fact::Word("ftp")),
        ("by", Fact::Flow(by)),
        ("address", Fact::Address(ip(A.ip))),
        ("dst_port", Fact::Number(41_000)),
        ("network", Fact::Network(NET1)),
    ];
    // To look is not to come.
    for _ in 0..2 {
        assert_eq!(said(&lab, &syn), Some(facts.clone()));
    }
    for (from, port) in [(&SERVER, 41_001), (&CLIENT, 41_000)] {
        assert_eq!(said(&lab, &call(from, 20, port, &A, port).0), None);
    }
    lab.rx(UP.port, &syn).tx(A.port, came).moved("conn.new", 1).moved("helpers.used", 1);
    assert_eq!(said(&lab, &call(&SERVER, 21, 41_000, &A, 41_000).0), None);
}

/// The checksum and the segments are left to the device.
#[test]
fn what_a_device_finishes_stays_right() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    let text = format!("{}{}", active(A.ip, 41_000), "NOOP\r\n".repeat(20));
    let shown = text.replace(&active(A.ip, 41_000), &active(UP.ip, 41_000));
    let expected = talk.seen[0].clone().flags(ACK | PSH).seq(5_000).acks(9_000);
    let expected = expected.payload(shown.as_bytes());
    lab.rx(A.port, talk.client.says(&text).gso(100))
        .tx(UP.port, expected.gso(100))
        .moved("helpers.expected", 1);
    talk.client.next += text.len() as u32;
    talk.server.heard += shown.len() as u32;
    let said = talk.client.says(&active(A.ip, 41_001)).partial();
    let expected = talk.seen[0].clone().flags(ACK | PSH).seq(talk.server.heard).acks(9_000);
    let expected = expected.payload(active(UP.ip, 41_001).as_bytes());
    lab.rx(A.port, said).tx(UP.port, expected.partial()).moved("helpers.expected", 1);
}

/// Blocks that the other side has received are told in its numbers.
#[test]
fn selective_acknowledgments_are_skewed_too() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    let (said, heard) = (active(A.ip, 41_000), active(UP.ip, 41_000));
    let delta = heard.len() as u32 - said.len() as u32;
    assert!(delta > 0);
    talk.command(&mut lab, &said, &heard, EXPECTED);
    let end = talk.client.next;
    let sack = |from: u32, to: u32| {
        let mut options = vec![1, 1, 5, 10];
        options.extend(from.to_be_bytes());
        options.extend(to.to_be_bytes());
        options
    };
    let packet = talk.server.packet.clone().seq(9_000).acks(end + delta);
    let seen = talk.seen[1].clone().seq(9_000).acks(end);
    let (from, to) = (end + delta + 10, end + delta + 20);
    lab.rx(UP.port, packet.tcp_options(&sack(from, to)))
        .tx(A.port, seen.tcp_options(&sack(end + 10, end + 20)));
}

#[test]
fn another_s_address_is_not_called() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    let foreign = &[("helpers.foreign", 1)];
    for address in [B.ip, SERVER.ip, GATEWAY1.ip, UP.ip] {
        let said = active(address, 41_000);
        talk.command(&mut lab, &said, &said, foreign);
    }
    for port in [22, 1023] {
        let said = active(A.ip, port);
        talk.command(&mut lab, &said, &said, &[("helpers.privileged", 1)]);
    }
    // Nor what is not the beginning of a line, or no line, or said by the wrong side.
    let mut nothing = |said: &str| talk.command(&mut lab, said, said, &[]);
    let port = active(A.ip, 41_000);
    nothing(&format!("NOOP\r\n{port}"));
    nothing("X");
    nothing(&port);
    nothing(&format!("{}{port}", " ".repeat(300)));
    nothing(port.trim_end());
    nothing("\r\n");
    let said = passive(SERVER.ip, 5001);
    talk.reply(&mut lab, &said, &said, &[]);
    talk.reply(&mut lab, &port, &port, &[]);
    for port in [22, 41_000] {
        lab.rx(UP.port, call(&SERVER, 20, port, &A, port).0).dropped("up", "unsolicited");
    }
}

#[test]
fn an_expectation_is_for_one() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    talk.command(&mut lab, &active(A.ip, 41_000), &active(UP.ip, 41_000), EXPECTED);
    // Not for others, nor for other ports, protocols and beginnings.
    lab.rx(UP.port, call(&CLIENT, 20, 41_000, &A, 41_000).0).dropped("up", "unsolicited");
    lab.rx(UP.port, call(&SERVER, 20, 41_001, &A, 41_001).0).dropped("up", "unsolicited");
    lab.rx(UP.port, udp(&SERVER, 20, &UP, 41_000)).dropped("up", "unsolicited");
    lab.rx(UP.port, tcp(&SERVER, 20, &UP, 41_000, ACK)).dropped("up", "conntrack_invalid");
    // Another announcement takes the place of the one before.
    talk.command(&mut lab, &active(A.ip, 41_002), &active(UP.ip, 41_002), EXPECTED);
    lab.rx(UP.port, call(&SERVER, 20, 41_000, &A, 41_000).0).dropped("up", "unsolicited");
    // From any port, but one.
    let (syn, came) = call(&SERVER, 5555, 41_002, &A, 41_002);
    lab.rx(UP.port, &syn).tx(A.port, came).moved("conn.new", 1).moved("helpers.used", 1);
    lab.rx(UP.port, call(&SERVER, 20, 41_002, &A, 41_002).0).dropped("up", "unsolicited");
}

#[test]
fn an_expectation_ends_with_its_time() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    talk.command(&mut lab, &active(A.ip, 41_000), &active(UP.ip, 41_000), EXPECTED);
    lab.after(Duration::from_secs(299)).only_balanced();
    assert_eq!(limit(&lab, "expectations").0, 1);
    lab.after(Duration::from_secs(1)).only_balanced();
    assert_eq!(limit(&lab, "expectations"), (0, 1));
    lab.rx(UP.port, call(&SERVER, 20, 41_000, &A, 41_000).0).dropped("up", "unsolicited");
}

#[test]
fn an_expectation_ends_with_its_connection() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    talk.command(&mut lab, &active(A.ip, 41_000), &active(UP.ip, 41_000), EXPECTED);
    assert_eq!(lab.plane.flush_connections(&|_| true), 1);
    lab.rx(UP.port, call(&SERVER, 20, 41_000, &A, 41_000).0).dropped("up", "unsolicited");
    lab.after(Duration::from_secs(2)).only_balanced();
    assert_eq!((limit(&lab, "expectations"), limit(&lab, "helped_controls")), ((0, 1), (0, 1)));
}

#[test]
fn what_is_unpublished_is_not_called() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::into(&mut lab);
    talk.ask(&mut lab);
    talk.reply(&mut lab, &passive(B.ip, 5001), &passive(UP.ip, 5001), EXPECTED);
    lab.reconfigure(|spec| spec.dnat.clear());
    lab.rx(UP.port, call(&CLIENT, 6001, 5001, &B, 5001).0).dropped("up", "unsolicited");
}

#[test]
fn nothing_is_expected_unless_a_network_asks() {
    let mut spec = helped();
    spec.networks[0].helpers = Helpers { ftp: false, tftp: true };
    let mut lab = Lab::new(spec);
    let mut talk = Talk::out(&mut lab);
    let said = active(A.ip, 41_000);
    talk.command(&mut lab, &said, &said, &[]);
    lab.rx(UP.port, call(&SERVER, 20, 41_000, &A, 41_000).0).dropped("up", "unsolicited");
    // Nor once it does no longer, whose connections go on.
    lab.reconfigure(|spec| spec.networks[0].helpers = HELPERS);
    let mut talk = Talk::into(&mut lab);
    lab.reconfigure(|spec| spec.networks[0].helpers = Helpers::default());
    let said = passive(B.ip, 5001);
    talk.ask(&mut lab);
    talk.reply(&mut lab, &said, &said, &[]);
    let request = request(&A, 3000, &SERVER).via(GATEWAY1.mac);
    let left = request.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
    lab.rx(A.port, &request).masqueraded(&request).tx(UP.port, left);
    lab.rx(UP.port, udp(&SERVER, 2000, &UP, 3000)).dropped("up", "unsolicited");
}

/// As after a restart: what was said before is not known, and a line begins behind the next one's end.
#[test]
fn a_connection_taken_over_by_nobody_is_not_helped() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| Some(directory.path().join(name));
    let options = dataplane::EngineOptions {
        conntrack_file: file("conntrack"),
        conntrack6_file: file("conntrack6"),
        ..tests::lab::small()
    };
    let mut lab = Lab::with(&options, helped());
    let mut plain = Talk::into(&mut lab);
    let mut skewed = Talk::out(&mut lab);
    skewed.command(&mut lab, &active(A.ip, 41_000), &active(UP.ip, 41_000), EXPECTED);
    drop(lab);
    let mut lab = Lab::with(&options, helped());
    assert_eq!(lab.plane.end_orphans(), 0);
    // Nobody knows the numbers of the one any more; the other goes on.
    assert_eq!(lab.connection().original.dst_port, 2121);
    let lost = skewed.client.says("NOOP\r\n");
    lab.rx(A.port, &lost).dropped("a", "conntrack_invalid");
    let first = passive(B.ip, 5001);
    plain.ask(&mut lab);
    plain.reply(&mut lab, &first, &first, &[]);
    plain.ask(&mut lab);
    plain.reply(&mut lab, &passive(B.ip, 5002), &passive(UP.ip, 5002), EXPECTED);
}

/// A read request.
pub(crate) fn request(from: &Host, port: u16, to: &Host) -> Packet {
    udp(from, port, to, 69).payload(b"\0\x01kernel\0octet\0")
}

/// Rows: Open vSwitch `conntrack: TFTP, with SNAT`.
#[test]
fn tftp_answers_from_another_port() {
    let mut lab = Lab::new(helped());
    let ask = request(&A, 3000, &SERVER).via(GATEWAY1.mac);
    let left = ask.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
    lab.rx(A.port, &ask).masqueraded(&ask).tx(UP.port, left.clone()).moved("helpers.expected", 1);
    // Asked again, and by nobody else answered.
    lab.rx(A.port, &ask).tx(UP.port, left).moved("helpers.expected", 1);
    lab.rx(UP.port, udp(&CLIENT, 2000, &UP, 3000)).dropped("up", "unsolicited");
    let data = udp(&SERVER, 2000, &UP, 3000);
    let came = |packet: &Packet| packet.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac);
    lab.rx(UP.port, &data).tx(A.port, came(&data)).moved("conn.new", 1).moved("helpers.used", 1);
    let ack = udp(&A, 3000, &SERVER, 2000).via(GATEWAY1.mac);
    lab.rx(A.port, &ack).tx(UP.port, ack.clone().src(UP.ip).routed(UP.mac, ROUTER.mac));
    lab.rx(UP.port, udp(&SERVER, 2001, &UP, 3000)).dropped("up", "unsolicited");
    // What is no request, or a late one, is not answered from elsewhere.
    let other = udp(&A, 3001, &SERVER, 69).via(GATEWAY1.mac);
    let left = other.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
    lab.rx(A.port, &other).masqueraded(&other).tx(UP.port, left);
    lab.rx(UP.port, udp(&SERVER, 2000, &UP, 3001)).dropped("up", "unsolicited");
    let ask = request(&A, 3002, &SERVER).via(GATEWAY1.mac);
    lab.rx(A.port, &ask).masqueraded(&ask).moved("helpers.expected", 1).accept(&[UP.port]);
    lab.after(Duration::from_secs(30)).only_balanced();
    lab.rx(UP.port, udp(&SERVER, 2000, &UP, 3002)).dropped("up", "unsolicited");
}

/// The answers leave from the published address; the port is the one that they got on the way out.
#[test]
fn tftp_into_a_published_port_is_answered() {
    let mut spec = helped();
    spec.dnat = vec![publish(9, 17, 6969, &B, 69)];
    let mut lab = Lab::new(spec);
    let ask = request(&CLIENT, 3000, &UP).dport(6969);
    let came = ask.clone().dst(B.ip).dport(69).routed(GATEWAY1.mac, B.mac);
    lab.rx(UP.port, &ask)
        .tx(B.port, came)
        .moved("conn.new", 1)
        .moved("dnat.9.packets", 1)
        .moved("dnat.9.bytes", ask.ip_len() as i64);
    let data = udp(&B, 2000, &CLIENT, 3000).via(GATEWAY1.mac);
    let left = data.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
    lab.rx(B.port, &data).masqueraded(&data).tx(UP.port, left);
    let ack = udp(&CLIENT, 3000, &UP, 2000);
    lab.rx(UP.port, &ack).tx(B.port, ack.clone().dst(B.ip).routed(GATEWAY1.mac, B.mac));
}

/// How many there are, and were.
pub(crate) fn limit(lab: &Lab, name: &str) -> (u64, u64) {
    let limit = lab.plane.limits().into_iter().find(|limit| limit.name == name).unwrap();
    (limit.current, limit.peak)
}

/// An eighth is one address's, and the others are others'.
#[test]
fn expectations_are_bounded() {
    let mut lab = Lab::new(helped());
    let ask = |lab: &mut Lab, from: &Host, port: u16, result: &str| {
        let ask = request(from, port, &SERVER).via(GATEWAY1.mac);
        lab.rx(from.port, &ask).masqueraded(&ask).moved(result, 1).accept(&[UP.port]);
    };
    for port in 0..128 {
        ask(&mut lab, &A, 3000 + port, "helpers.expected");
    }
    ask(&mut lab, &A, 4000, "helpers.full");
    ask(&mut lab, &B, 5000, "helpers.expected");
    assert_eq!(limit(&lab, "expectations"), (129, 129));
    lab.rx(UP.port, udp(&SERVER, 2000, &UP, 4000)).dropped("up", "unsolicited");
    // Whose connection has ended is no longer in the way.
    lab.plane.flush_connections(&|c| c.original.src_port == 3000);
    lab.after(Duration::from_secs(2)).only_balanced();
    ask(&mut lab, &A, 4001, "helpers.expected");
}

/// A trace says what would become of it, and expects and uses nothing.
#[test]
fn a_trace_expects_nothing() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    let said = talk.client.says(&active(A.ip, 41_000));
    let seen = talk.seen[0].clone().flags(ACK | PSH).seq(5_000).acks(9_000);
    let seen = seen.payload(active(UP.ip, 41_000).as_bytes());
    let mut tracer = lab.tracer();
    let traced = tracer.trace(A.port, &said.bytes(), Default::default(), lab.now);
    assert_eq!(traced.sent[0].bytes, seen.bytes());
    let (syn, came) = call(&SERVER, 20, 41_000, &A, 41_000);
    let traced = tracer.trace(UP.port, &syn.bytes(), Default::default(), lab.now);
    assert_eq!(traced.sent[0].bytes, came.bytes());
    drop(tracer);
    assert_eq!(limit(&lab, "expectations"), (0, 0));
    lab.rx(UP.port, &syn).dropped("up", "unsolicited");
    talk.command(&mut lab, &active(A.ip, 41_000), &active(UP.ip, 41_000), EXPECTED);
    let traced = lab.tracer().trace(UP.port, &syn.bytes(), Default::default(), lab.now);
    assert_eq!(traced.sent[0].bytes, came.bytes());
    lab.rx(UP.port, &syn).tx(A.port, came).moved("conn.new", 1).moved("helpers.used", 1);
}

/// A client of the network reaches the published server as those outside do, and it reaches the client.
#[test]
fn a_hairpinned_server_is_called_by_its_outside_address() {
    let mut lab = Lab::new(helped());
    let client = tcp(&A, 40_000, &UP, 2121, ACK).via(GATEWAY1.mac);
    let syn = client.clone().flags(SYN).seq(4_999).acks(0);
    let at_server =
        |packet: &Packet| packet.clone().src(UP.ip).dst(B.ip).dport(21).routed(GATEWAY1.mac, B.mac);
    lab.rx(A.port, &syn)
        .tx(B.port, at_server(&syn))
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64);
    let server = tcp(&B, 21, &UP, 40_000, ACK).via(GATEWAY1.mac);
    let at_client = |packet: &Packet| {
        packet.clone().src(UP.ip).sport(2121).dst(A.ip).routed(GATEWAY1.mac, A.mac)
    };
    let answer = server.clone().flags(SYN | ACK).seq(8_999).acks(5_000);
    lab.rx(B.port, &answer).tx(A.port, at_client(&answer));
    let last = client.clone().seq(5_000).acks(9_000);
    lab.rx(A.port, &last).tx(B.port, at_server(&last));
    let mut talk = Talk::of(
        client.clone(),
        server.clone(),
        [A.port, B.port],
        [at_server(&client), at_client(&server)],
    );
    talk.ask(&mut lab);
    talk.reply(&mut lab, &passive(B.ip, 5001), &passive(UP.ip, 5001), EXPECTED);
    let syn = tcp(&A, 40_001, &UP, 5001, SYN).via(GATEWAY1.mac);
    let came = syn.clone().src(UP.ip).dst(B.ip).routed(GATEWAY1.mac, B.mac);
    lab.rx(A.port, &syn)
        .tx(B.port, came)
        .moved("conn.new", 1)
        .moved("helpers.used", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64);
    // The numbers of both sides are skewed from here on.
    talk.command(&mut lab, &active(A.ip, 41_000), &active(UP.ip, 41_000), EXPECTED);
    for _ in 0..3 {
        talk.reply(&mut lab, "200 ok\r\n", "200 ok\r\n", &[]);
        talk.ask(&mut lab);
        talk.reply(&mut lab, &passive(B.ip, 5002), &passive(UP.ip, 5002), EXPECTED);
        talk.command(&mut lab, &active(A.ip, 41_001), &active(UP.ip, 41_001), EXPECTED);
    }
    let syn = tcp(&B, 20, &UP, 41_001, SYN).via(GATEWAY1.mac);
    let arrived = lab
        .rx(B.port, &syn)
        .moved("conn.new", 1)
        .moved("helpers.used", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64)
        .take_one(A.port);
    assert_eq!(arrived.l4_u16(2), 41_001);
}

/// A reset is of the skewed numbers too, and the reset of somebody who guesses is not believed.
#[test]
fn a_reset_is_judged_by_the_numbers_of_its_side() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    talk.command(&mut lab, &active(A.ip, 41_000), &active(UP.ip, 41_000), EXPECTED);
    talk.reply(&mut lab, "200 ok\r\n", "200 ok\r\n", &[]);
    let reset = talk.client.packet.clone().flags(RST).seq(talk.client.next).acks(0);
    let seen = talk.seen[0].clone().flags(RST).seq(talk.server.heard).acks(0);
    lab.rx(A.port, &reset).tx(UP.port, seen);
    assert_eq!(lab.connection().state, "CLOSE");
}

#[test]
fn a_stranger_on_the_wire_is_not_expected() {
    let mut lab = Lab::new(helped());
    lab.resolve(&NEIGHBOR);
    let mut talk = Talk::out(&mut lab);
    talk.command(&mut lab, &active(A.ip, 41_000), &active(UP.ip, 41_000), EXPECTED);
    let syn: Wire = tcp(&NEIGHBOR, 20, &UP, 41_000, SYN).into();
    lab.rx(UP.port, syn).dropped("up", "unsolicited");
}
