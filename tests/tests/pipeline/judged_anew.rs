//! Connections that began before the configuration said otherwise: the next packet is judged anew. The
//! names are those of Linux' selftests (`conntrack_reverse_clash.sh`, `conntrack_tcp_unreplied.sh`,
//! `nft_nat.sh`) where there is one.

use std::net::Ipv4Addr;

use dataplane::config::{DnatRule, PortRole, StaticRoute, UplinkConfig, UplinkMode};
use dataplane::engine::Link;
use dataplane::packet::types::tcp_flags::{ACK, SYN};
use dataplane::packet::types::{Mac, UplinkId, ip_proto};
use tests::lab::{
    A, B, C, CLIENT, GATEWAY1, Lab, ROUTER, SECOND_UP, SERVER, UP, prefix, publish, publish_tcp,
    topology,
};
use tests::packet::{Host, Packet, echo, ip, speaks_ipv6, tcp, udp};

tests::in_ipv6! {
    a_container_s_own_flow_goes_on_by_what_is_published_for_it
    a_conversation_over_tcp_outlives_the_publishing_of_its_port
    a_flow_whose_way_out_is_another_gets_another_source
    a_narrower_rule_takes_over_from_a_wider_one
    port_shadow
    reverse_clash
    stale_udp
    tcp_unreplied
}

/// As a packet from inside looks on the uplink.
fn outside(packet: &Packet) -> Packet {
    packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac)
}

/// As a packet from outside looks inside.
fn inside(packet: &Packet, to: &Host, port: u16) -> Packet {
    packet.clone().dst(to.ip).dport(port).routed(GATEWAY1.mac, to.mac)
}

/// A packet from outside begins a connection by a rule.
#[track_caller]
fn led(lab: &mut Lab, packet: &Packet, to: (&Host, u16), rule: u32) {
    lab.rx(UP.port, packet)
        .tx(to.0.port, inside(packet, to.0, to.1))
        .moved("conn.new", 1)
        .moved(&format!("dnat.{rule}.packets"), 1)
        .moved(&format!("dnat.{rule}.bytes"), packet.ip_len() as i64);
}

/// A packet from inside begins a connection from its own port.
#[track_caller]
fn leaves(lab: &mut Lab, from: &Host, packet: &Packet) {
    lab.rx(from.port, packet).tx(UP.port, outside(packet)).masqueraded(packet);
}

fn publish_udp(id: u32, port: u16, to: &Host, to_port: u16) -> DnatRule {
    publish(id, ip_proto::UDP, port, to, to_port)
}

#[test]
fn stale_udp() {
    let mut lab = Lab::default();
    // It asks on and on, from one port, whatever is there.
    let asks = udp(&CLIENT, 5000, &UP, 5353);
    lab.rx(UP.port, &asks).dropped("up", "unsolicited");
    lab.reconfigure(|spec| spec.dnat = vec![publish_udp(7, 5353, &B, 53)]);
    led(&mut lab, &asks, (&B, 53), 7);
    lab.reconfigure(|spec| spec.dnat = vec![publish_udp(8, 5353, &C, 53)]);
    led(&mut lab, &asks, (&C, 53), 8);
    lab.reconfigure(|spec| spec.dnat.clear());
    lab.rx(UP.port, &asks).dropped("up", "unsolicited");
    // A container speaks from the port, and is answered, before it is published for another.
    let speaks = udp(&A, 5353, &CLIENT, 5000).via(GATEWAY1.mac);
    leaves(&mut lab, &A, &speaks);
    lab.rx(UP.port, &asks).tx(A.port, inside(&asks, &A, 5353));
    let elsewhere = udp(&A, 5354, &CLIENT, 5000).via(GATEWAY1.mac);
    leaves(&mut lab, &A, &elsewhere);
    lab.reconfigure(|spec| spec.dnat = vec![publish_udp(9, 5353, &B, 53)]);
    assert_eq!(lab.connection().original.src_port, 5354, "what was not covered goes on");
    led(&mut lab, &asks, (&B, 53), 9);
    // The container goes on from another port.
    let came = lab.rx(A.port, &speaks).masqueraded(&speaks).take_one(UP.port);
    assert_ne!(came.l4_u16(0), 5353);
}

/// Rows: Linux `conntrack_tcp_unreplied.sh`.
#[test]
fn tcp_unreplied() {
    let mut lab = Lab::default();
    let syn = tcp(&CLIENT, 5000, &UP, 8080, SYN);
    lab.rx(UP.port, &syn).dropped("up", "unsolicited");
    // From inside somebody tries the other way in vain.
    let tries = tcp(&A, 8080, &CLIENT, 5000, SYN).via(GATEWAY1.mac);
    leaves(&mut lab, &A, &tries);
    lab.reconfigure(|spec| spec.dnat = vec![publish_tcp(7, 8080, &C, 80)]);
    assert!(lab.connections().is_empty());
    led(&mut lab, &syn, (&C, 80), 7);
    // Nobody answers there; the retries reach whom it is published for next.
    lab.rx(UP.port, &syn).tx(C.port, inside(&syn, &C, 80));
    lab.reconfigure(|spec| spec.dnat = vec![publish_tcp(8, 8080, &B, 80)]);
    led(&mut lab, &syn, (&B, 80), 8);
    let answer = tcp(&B, 80, &CLIENT, 5000, SYN | ACK).via(GATEWAY1.mac);
    let seen = answer.clone().src(UP.ip).sport(8080).routed(UP.mac, ROUTER.mac);
    lab.rx(B.port, &answer).tx(UP.port, seen);
}

#[test]
fn a_narrower_rule_takes_over_from_a_wider_one() {
    let mut lab = Lab::default();
    let wide = DnatRule { host_ports: (8080, 8081), ..publish_tcp(7, 8080, &C, 80) };
    lab.reconfigure(|spec| spec.dnat = vec![wide]);
    let [covered, other] = [8080, 8081].map(|port| tcp(&CLIENT, 5000, &UP, port, SYN));
    led(&mut lab, &covered, (&C, 80), 7);
    led(&mut lab, &other, (&C, 81), 7);
    let narrow = DnatRule { host_ip: Some(ip(UP.ip)), ..publish_tcp(8, 8080, &B, 80) };
    lab.reconfigure(|spec| spec.dnat.push(narrow));
    assert_eq!(lab.connection().original.dst_port, 8081, "what was not covered goes on");
    led(&mut lab, &covered, (&B, 80), 8);
    lab.rx(UP.port, &other).tx(C.port, inside(&other, &C, 81));
    // And back.
    lab.reconfigure(|spec| spec.dnat.truncate(1));
    led(&mut lab, &covered, (&C, 80), 7);
}

#[test]
fn a_conversation_over_tcp_outlives_the_publishing_of_its_port() {
    let mut lab = Lab::default();
    let out = |flags| tcp(&A, 8080, &SERVER, 80, flags).via(GATEWAY1.mac);
    let back = |flags| tcp(&SERVER, 80, &UP, 8080, flags);
    leaves(&mut lab, &A, &out(SYN));
    lab.rx(UP.port, back(SYN | ACK)).tx(A.port, inside(&back(SYN | ACK), &A, 8080));
    lab.rx(A.port, out(ACK)).tx(UP.port, outside(&out(ACK)));
    lab.reconfigure(|spec| spec.dnat = vec![publish_tcp(7, 8080, &B, 80)]);
    lab.rx(UP.port, back(ACK)).tx(A.port, inside(&back(ACK), &A, 8080));
    led(&mut lab, &tcp(&CLIENT, 5000, &UP, 8080, SYN), (&B, 80), 7);
}

/// VPP's `dynamic_to_static`, and its static mapping over a dynamic session: a container has the outside port
/// by a flow of its own, and then by a rule. From then on the rule leads in, and whoever speaks has another.
///
/// Rows: VPP `test_nat44_ed_output: static mapping over an existing dynamic session`; VPP `dynamic_to_static`.
#[test]
fn a_container_s_own_flow_goes_on_by_what_is_published_for_it() {
    let mut lab = Lab::default();
    let asks = udp(&A, 5353, &CLIENT, 5000).via(GATEWAY1.mac);
    let answers = udp(&CLIENT, 5000, &UP, 5353);
    leaves(&mut lab, &A, &asks);
    lab.rx(UP.port, &answers).tx(A.port, inside(&answers, &A, 5353));
    lab.reconfigure(|spec| spec.dnat = vec![publish_udp(7, 5353, &A, 53)]);
    assert!(lab.connections().is_empty(), "{:?}", lab.connections());
    led(&mut lab, &answers, (&A, 53), 7);
    // By its old port it is somebody else to the client, who has an answer for each of the two.
    let came = lab.rx(A.port, &asks).masqueraded(&asks).take_one(UP.port);
    let port = came.l4_u16(0);
    assert_ne!(port, 5353);
    let to_other = answers.clone().dport(port);
    lab.rx(UP.port, &to_other).tx(A.port, inside(&to_other, &A, 5353));
    let reply = udp(&A, 53, &CLIENT, 5000).via(GATEWAY1.mac);
    let seen = reply.clone().src(UP.ip).sport(5353).routed(UP.mac, ROUTER.mac);
    lab.rx(A.port, &reply).tx(UP.port, seen);
    // And back: the port is free for a flow again.
    lab.reconfigure(|spec| spec.dnat.clear());
    lab.rx(UP.port, &answers).dropped("up", "unsolicited");
    lab.rx(A.port, &asks)
        .tx(UP.port, asks.clone().src(UP.ip).sport(port).routed(UP.mac, ROUTER.mac));
    leaves(&mut lab, &B, &udp(&B, 5353, &CLIENT, 5000).via(GATEWAY1.mac));
}

/// A port of the host's own is not in the range: nobody inside can speak from it, and so receive what is
/// for the host.
#[test]
fn port_shadow() {
    let mut spec = topology();
    spec.uplinks[0].mode = UplinkMode::Shared;
    spec.uplinks[0].nat_ports = vec![(1024, 5352), (5354, 65_535)];
    let mut lab = Lab::new(spec);
    let casts = udp(&A, 5353, &CLIENT, 5000).via(GATEWAY1.mac);
    let came = lab.rx(A.port, &casts).masqueraded(&casts).take_one(UP.port);
    assert_ne!(came.l4_u16(0), 5353);
    lab.rx(UP.port, udp(&CLIENT, 5000, &UP, 5353)).moved("consumed", 1);
}

/// Both sides of a UDP flow begin it at once: it is one, and nobody's port changes.
///
/// Rows: Linux `conntrack_reverse_clash.sh`.
#[test]
fn reverse_clash() {
    let mut lab = Lab::default();
    let (there, back) = (udp(&A, 5000, &B, 5000), udp(&B, 5000, &A, 5000));
    let (there, back) = (there.via(GATEWAY1.mac), back.via(GATEWAY1.mac));
    lab.batch(vec![(A.port, (&there).into()), (B.port, (&back).into())])
        .tx(B.port, there.clone().routed(GATEWAY1.mac, B.mac))
        .tx(A.port, back.clone().routed(GATEWAY1.mac, A.mac))
        .moved("conn.new", 1)
        .tolerate("conn.clashes");
    assert_eq!(lab.connection().packets, [1, 1]);
    // By masquerade: who is first outside is unsolicited, who is second answers.
    let mut lab = Lab::default();
    let out = udp(&A, 5000, &SERVER, 5000).via(GATEWAY1.mac);
    let answer = udp(&SERVER, 5000, &UP, 5000);
    let both = [(A.port, (&out).into()), (UP.port, (&answer).into())];
    lab.rx(UP.port, &answer).dropped("up", "unsolicited");
    lab.batch(both.into())
        .tx(UP.port, outside(&out))
        .tx(A.port, inside(&answer, &A, 5000))
        .masqueraded(&out);
}

/// Another way out.
const UP2: Host =
    Host { port: SECOND_UP, mac: Mac([2, 0, 0, 0, 0, 0x20]), ip: Ipv4Addr::new(198, 18, 0, 5) };
const ROUTER2: Host =
    Host { mac: Mac([2, 0, 0, 0, 0, 0x21]), ip: Ipv4Addr::new(198, 18, 0, 1), ..UP2 };

fn with_another_way_out() -> Lab {
    let mut spec = topology();
    let second = UplinkConfig {
        id: UplinkId(1),
        port: UP2.port,
        mac: UP2.mac,
        addresses: vec![(ip(UP2.ip), prefix(UP2.ip, 24))],
        gateway: (!speaks_ipv6()).then_some(ROUTER2.ip),
        gateway6: speaks_ipv6().then_some(ROUTER2.ip6()),
        ..spec.uplinks[0].clone()
    };
    spec.uplinks.push(second);
    let mut port = spec.ports.last().unwrap().clone();
    port.id = UP2.port;
    port.role = PortRole::Uplink { uplink: UplinkId(1) };
    spec.ports.push(port);
    let lab = Lab::new(spec);
    let link = Link::Uplink(UplinkId(1));
    lab.plane.tables().neighbors.confirm(link, ip(ROUTER2.ip), ROUTER2.mac, true, lab.now);
    lab
}

fn by_the_other_way(to: &Host) -> StaticRoute {
    StaticRoute { prefix: prefix(to.ip, 24), via: ip(ROUTER2.ip), uplink: UplinkId(1) }
}

#[test]
fn a_flow_whose_way_out_is_another_gets_another_source() {
    let mut lab = with_another_way_out();
    let again = udp(&A, 5000, &SERVER, 53).via(GATEWAY1.mac);
    leaves(&mut lab, &A, &again);
    leaves(&mut lab, &B, &echo(&B, &SERVER, 40_007).via(GATEWAY1.mac));
    let stays = udp(&A, 5000, &CLIENT, 53).via(GATEWAY1.mac);
    leaves(&mut lab, &A, &stays);
    lab.reconfigure(|spec| spec.routes.push(by_the_other_way(&SERVER)));
    assert_eq!(lab.connection().reply.src, ip(CLIENT.ip), "what leaves as before goes on");
    let from_there = again.clone().src(UP2.ip).routed(UP2.mac, ROUTER2.mac);
    lab.rx(A.port, &again).tx(UP2.port, from_there).masqueraded(&again);
    // A way that is lost may come back: nothing ends meanwhile.
    lab.reconfigure(|spec| {
        spec.uplinks[0].gateway = None;
        spec.uplinks[0].gateway6 = None;
        spec.uplinks[1].gateway = None;
        spec.uplinks[1].gateway6 = None;
    });
    assert_eq!(lab.connections().len(), 2);
}
