//! Policies of networks: who may begin a connection, published, routed, outward and switched (ADR 29).

use dataplane::config::{PolicyAction, PolicyRule, PolicyWay, PortRole};
use dataplane::l3::route::Prefix;
use dataplane::packet::types::tcp_flags::{ACK, SYN};
use dataplane::packet::types::{Mac, ip_proto};
use dataplane::trace::Fact;
use tests::fragments::{in_pieces, in_pieces6};
use tests::lab::{
    A, B, C, CLIENT, D, GATEWAY1, GATEWAY2, Lab, ROUTER, SERVER, Step, UP, prefix, publish_tcp,
    topology, without_guard,
};
use tests::packet::{Host, Packet, Wire, echo, echo_reply, reported, speaks_ipv6, tcp, udp};

tests::in_ipv6! {
    a_client_outside_is_denied_by_its_real_address
    a_flow_that_a_new_rule_denies_ends
    a_network_is_asked_about_what_leaves_it
    a_published_port_is_told_from_the_one_behind_it
    a_rule_for_elsewhere_leaves_what_is_switched_alone
    an_error_about_an_allowed_connection_passes
    both_networks_are_asked
    fragments_do_not_slip_past_a_port
    no_shortcut_outlives_a_new_rule
    the_first_rule_that_matches_decides
    traces_name_the_rule
    no_link_header_hides_a_packet
    what_goes_by_the_gateway_inside_is_judged_too
    what_is_addressed_to_all_is_judged_by_itself
    what_is_switched_is_judged_by_who_began
    what_was_under_way_goes_on_unless_it_is_denied
    who_is_not_guarded_is_judged_too
}

fn deny(id: u32) -> PolicyRule {
    PolicyRule {
        id,
        action: PolicyAction::Deny,
        way: PolicyWay::Any,
        src: None,
        dst: None,
        proto: None,
        ports: None,
        host_ports: None,
    }
}

fn allow(id: u32) -> PolicyRule {
    PolicyRule { action: PolicyAction::Allow, ..deny(id) }
}

fn only(host: &Host) -> Option<Vec<Prefix>> {
    Some(vec![prefix(host.ip, 32)])
}

/// The topology with these rules in network 1, and port 80 of B published at 8080.
fn with(rules: Vec<PolicyRule>) -> Lab {
    let mut spec = topology();
    spec.dnat = vec![publish_tcp(7, 8080, &B, 80)];
    spec.networks[0].policy = rules;
    Lab::new(spec)
}

trait Judged: Sized {
    /// A rule decided about a packet.
    fn judged(self, rule: u32, packet: &Packet) -> Self;
    /// And dropped it.
    fn denied(self, port: &str, rule: u32, packet: &Packet) -> Self;
}

impl Judged for Step<'_> {
    fn judged(self, rule: u32, packet: &Packet) -> Self {
        self.moved(&format!("policy.{rule}.packets"), 1)
            .moved(&format!("policy.{rule}.bytes"), packet.ip_len() as i64)
    }

    fn denied(self, port: &str, rule: u32, packet: &Packet) -> Self {
        self.judged(rule, packet).dropped(port, "policy")
    }
}

fn inside(packet: &Packet, to: &Host, port: u16) -> Packet {
    packet.clone().dst(to.ip).dport(port).routed(GATEWAY1.mac, to.mac)
}

fn outside(packet: &Packet) -> Packet {
    packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac)
}

/// A client outside begins a connection with B by the published port.
#[track_caller]
fn led<'a>(lab: &'a mut Lab, packet: &Packet) -> Step<'a> {
    lab.rx(UP.port, packet)
        .tx(B.port, inside(packet, &B, 80))
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", packet.ip_len() as i64)
}

/// Who receives IP behind LLC/SNAP (RFC 1042) takes it for what it is.
#[test]
fn no_link_header_hides_a_packet() {
    let rule = PolicyRule { proto: Some(ip_proto::TCP), ports: Some((80, 80)), ..deny(1) };
    let mut lab = with(vec![rule]);
    let denied = tcp(&A, 40_000, &B, 80, SYN);
    let allowed = tcp(&A, 40_000, &B, 81, SYN);
    let behind = |header: &[u8], frame: &[u8]| [&frame[..12], header, &frame[12..]].concat();
    let in_snap = |frame: &[u8]| behind(&[0, 60, 0xaa, 0xaa, 3, 0, 0, 0], frame);
    let tag = [0x81, 0, 0, 5];
    for round in 0..3 {
        lab.rx(A.port, in_snap(&denied.bytes())).denied("a", 1, &denied);
        let passes = in_snap(&allowed.bytes());
        let step = lab.rx(A.port, passes.clone()).tx(B.port, passes).sums_may_be_wrong();
        drop(if round == 0 { step.moved("conn.new", 1) } else { step });
        for frame in
            [behind(&tag, &in_snap(&denied.bytes())), in_snap(&behind(&tag, &denied.bytes()))]
        {
            lab.rx(A.port, frame).denied("a", 1, &denied).tolerate("fdb.learned");
        }
    }
    // What nobody has looked to the end of, from one who may say anything.
    lab.reconfigure(|spec| {
        for port in &mut spec.ports {
            if let PortRole::Endpoint { guard, trusted, .. } = &mut port.role {
                (*guard, *trusted) = (false, true);
            }
        }
    });
    let deep = behind(&tag.repeat(20), &denied.bytes());
    lab.rx(A.port, deep).dropped("a", "policy").tolerate("fdb.learned");
}

#[test]
fn a_client_outside_is_denied_by_its_real_address() {
    let src = Some(vec![prefix(CLIENT.ip, 24)]);
    let rule = PolicyRule { src, proto: Some(ip_proto::TCP), ports: Some((80, 80)), ..deny(1) };
    let mut lab = with(vec![rule]);
    let syn = tcp(&CLIENT, 5000, &UP, 8080, SYN);
    lab.rx(UP.port, &syn).denied("up", 1, &syn);
    lab.rx(UP.port, &syn).denied("up", 1, &syn);
    assert!(lab.connections().is_empty());
    drop(led(&mut lab, &tcp(&SERVER, 5000, &UP, 8080, SYN)));
}

#[test]
fn a_published_port_is_told_from_the_one_behind_it() {
    let syn = |port| tcp(&CLIENT, 5000, &UP, port, SYN);
    let lab = |rule| {
        let mut lab = with(vec![rule]);
        lab.reconfigure(|spec| spec.dnat.push(publish_tcp(8, 80, &B, 8080)));
        lab
    };
    let by_host = PolicyRule { host_ports: Some((8080, 8090)), ..deny(1) };
    let mut lab1 = lab(by_host);
    lab1.rx(UP.port, syn(8080)).denied("up", 1, &syn(8080));
    lab1.rx(UP.port, syn(80))
        .tx(B.port, inside(&syn(80), &B, 8080))
        .moved("conn.new", 1)
        .moved("dnat.8.packets", 1)
        .moved("dnat.8.bytes", syn(80).ip_len() as i64);
    let by_own = PolicyRule { ports: Some((8080, 8090)), ..deny(1) };
    let mut lab2 = lab(by_own);
    lab2.rx(UP.port, syn(80)).denied("up", 1, &syn(80));
    drop(led(&mut lab2, &syn(8080)));
}

#[test]
fn the_first_rule_that_matches_decides() {
    let allowed = PolicyRule { src: only(&CLIENT), ..allow(2) };
    let rest = PolicyRule { way: PolicyWay::In, ..deny(1) };
    let mut lab = with(vec![allowed.clone(), rest.clone()]);
    let [from_client, from_server] = [&CLIENT, &SERVER].map(|from| tcp(from, 5000, &UP, 8080, SYN));
    drop(led(&mut lab, &from_client).judged(2, &from_client));
    lab.rx(UP.port, &from_server).denied("up", 1, &from_server);
    // An allowing rule opens nothing that is not published.
    let closed = tcp(&CLIENT, 5001, &UP, 8081, SYN);
    lab.rx(UP.port, &closed).dropped("up", "unsolicited");
    lab.reconfigure(|spec| spec.networks[0].policy = vec![rest, allowed]);
    assert!(lab.connections().is_empty(), "the order has changed");
    lab.rx(UP.port, &from_client).denied("up", 1, &from_client);
}

#[test]
fn a_network_is_asked_about_what_leaves_it() {
    let rule = PolicyRule {
        way: PolicyWay::Out,
        src: only(&A),
        dst: only(&SERVER),
        proto: Some(ip_proto::UDP),
        ports: Some((50, 60)),
        ..deny(1)
    };
    let mut lab = with(vec![rule]);
    let denied = udp(&A, 5000, &SERVER, 53).via(GATEWAY1.mac);
    lab.rx(A.port, &denied).denied("a", 1, &denied);
    for packet in [
        udp(&A, 5000, &SERVER, 61),
        udp(&A, 5000, &CLIENT, 53),
        udp(&B, 5000, &SERVER, 53),
        echo(&A, &SERVER, 53),
    ] {
        let packet = packet.via(GATEWAY1.mac);
        let from = if packet.bytes()[6..12] == A.mac.0 { A.port } else { B.port };
        drop(lab.rx(from, &packet).masqueraded(&packet).take_one(UP.port));
    }
    // What was let out is answered, though nobody outside may begin anything.
    let asks = udp(&B, 5000, &SERVER, 53);
    let answer = udp(&SERVER, 53, &UP, 5000);
    lab.reconfigure(|spec| {
        spec.networks[0].policy = vec![PolicyRule { way: PolicyWay::In, ..deny(2) }];
    });
    let asks = asks.via(GATEWAY1.mac);
    lab.rx(B.port, &asks).tx(UP.port, outside(&asks));
    lab.rx(UP.port, &answer).tx(B.port, inside(&answer, &B, 5000));
}

#[test]
fn both_networks_are_asked() {
    let way = |way| {
        move |lab: &mut Lab, network: usize, rule: PolicyRule| {
            lab.reconfigure(|spec| {
                spec.networks[network].policy = vec![PolicyRule { way, ..rule }];
            });
        }
    };
    let (leaves, enters) = (way(PolicyWay::Out), way(PolicyWay::In));
    let mut lab = with(Vec::new());
    // D is in network 2 and speaks to B by its published port.
    let syn = tcp(&D, 5000, &UP, 8080, SYN).via(GATEWAY2.mac);
    leaves(&mut lab, 1, deny(1));
    lab.rx(D.port, &syn).denied("d", 1, &syn);
    leaves(&mut lab, 1, allow(1));
    enters(&mut lab, 0, PolicyRule { src: only(&D), ..deny(2) });
    lab.rx(D.port, &syn).judged(1, &syn).denied("d", 2, &syn);
    enters(&mut lab, 0, PolicyRule { src: only(&A), ..deny(2) });
    let there = inside(&syn, &B, 80).src(UP.ip);
    lab.rx(D.port, &syn)
        .judged(1, &syn)
        .tx(B.port, there)
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64);
    enters(&mut lab, 0, PolicyRule { src: only(&D), host_ports: Some((8080, 8080)), ..deny(2) });
    assert!(lab.connections().is_empty());
}

#[test]
fn a_flow_that_a_new_rule_denies_ends() {
    let mut lab = with(Vec::new());
    let [denied, other] =
        [&CLIENT, &SERVER].map(|from| move |flags| tcp(from, 5000, &UP, 8080, flags));
    let answer = |to: &Host| tcp(&B, 80, to, 5000, SYN | ACK).via(GATEWAY1.mac);
    for (packet, to) in [(&denied, &CLIENT), (&other, &SERVER)] {
        drop(led(&mut lab, &packet(SYN)));
        lab.rx(B.port, answer(to)).accept(&[UP.port]);
        // By a shortcut, where there is one.
        for _ in 0..3 {
            lab.rx(UP.port, packet(ACK)).tx(B.port, inside(&packet(ACK), &B, 80));
        }
    }
    let rule = PolicyRule { src: only(&CLIENT), ports: Some((80, 80)), ..deny(1) };
    lab.reconfigure(|spec| spec.networks[0].policy = vec![rule]);
    assert_eq!(lab.connection().original.src, tests::packet::ip(SERVER.ip));
    lab.rx(UP.port, denied(ACK)).dropped("up", "unsolicited");
    lab.rx(B.port, answer(&CLIENT)).dropped("b", "conntrack_invalid");
    lab.rx(UP.port, denied(SYN)).denied("up", 1, &denied(SYN));
    lab.rx(UP.port, other(ACK)).tx(B.port, inside(&other(ACK), &B, 80));
    lab.reconfigure(|spec| spec.networks[0].policy.clear());
    drop(led(&mut lab, &denied(SYN)));
    assert_eq!(lab.plane.rule_counters(dataplane::engine::NatRule::Policy(1)), (0, 0));
}

#[test]
fn what_goes_by_the_gateway_inside_is_judged_too() {
    let rule = PolicyRule { way: PolicyWay::Inside, dst: only(&B), ..deny(1) };
    let mut lab = with(vec![rule]);
    let to = |host: &Host| udp(&A, 5000, host, 53).via(GATEWAY1.mac);
    lab.rx(A.port, to(&B)).denied("a", 1, &to(&B));
    lab.rx(A.port, to(&C)).tx(C.port, to(&C).routed(GATEWAY1.mac, C.mac)).moved("conn.new", 1);
    // The host itself is not judged, nor what is for it.
    lab.reconfigure(|spec| spec.networks[0].policy = vec![deny(2)]);
    let of_the_host = udp(&GATEWAY1, 5000, &B, 53);
    lab.rx(GATEWAY1.port, &of_the_host).tx(B.port, &of_the_host);
    let to_the_host = udp(&B, 53, &GATEWAY1, 5000);
    lab.rx(B.port, &to_the_host).tx(GATEWAY1.port, &to_the_host);
}

#[test]
fn what_is_switched_is_judged_by_who_began() {
    let rule = PolicyRule { src: only(&A), dst: only(&B), ..deny(1) };
    let mut lab = with(vec![rule]);
    for packet in [tcp(&A, 5000, &B, 80, SYN), udp(&A, 5000, &B, 53), echo(&A, &B, 7)] {
        lab.rx(A.port, &packet).denied("a", 1, &packet);
    }
    // The other way round, and to others.
    let (syn, answer) = (tcp(&B, 5000, &A, 80, SYN), tcp(&A, 80, &B, 5000, SYN | ACK));
    lab.rx(B.port, &syn).tx(A.port, &syn).moved("conn.new", 1);
    lab.rx(A.port, &answer).tx(B.port, &answer);
    let (asks, says) = (udp(&B, 5000, &A, 53), udp(&A, 53, &B, 5000));
    lab.rx(B.port, &asks).tx(A.port, &asks).moved("conn.new", 1);
    lab.rx(A.port, &says).tx(B.port, &says);
    let (pings, pongs) = (echo(&B, &A, 9), echo_reply(&A, &B, 9));
    lab.rx(B.port, &pings).tx(A.port, &pings).moved("conn.new", 1);
    lab.rx(A.port, &pongs).tx(B.port, &pongs);
    let to_another = udp(&A, 5000, &C, 53);
    lab.rx(A.port, &to_another).tx(C.port, &to_another).moved("conn.new", 1);
    // Who was spoken to begins nothing of its own from there.
    let back = tcp(&A, 80, &B, 5000, SYN);
    lab.rx(A.port, &back).denied("a", 1, &back);
    // Many of one conversation, none of which is a new connection.
    for _ in 0..4 {
        lab.rx(B.port, &asks).tx(A.port, &asks);
    }
    assert_eq!(lab.connections().iter().filter(|it| it.original.dst_port == 53).count(), 2);
}

#[test]
fn a_rule_for_elsewhere_leaves_what_is_switched_alone() {
    let far = PolicyRule { src: only(&CLIENT), ..deny(1) };
    let mut lab = with(vec![far, PolicyRule { way: PolicyWay::In, ..deny(2) }]);
    let packet = udp(&A, 5000, &B, 53);
    lab.rx(A.port, &packet).tx(B.port, &packet);
    assert!(lab.connections().is_empty(), "nothing is tracked");
}

#[test]
fn who_is_not_guarded_is_judged_too() {
    let mut spec = topology();
    without_guard(&mut spec);
    spec.networks[0].policy = vec![PolicyRule { src: only(&CLIENT), ..deny(1) }];
    let mut lab = Lab::new(spec);
    let lie = udp(&A, 5000, &B, 53).src(CLIENT.ip);
    lab.rx(A.port, &lie).denied("a", 1, &lie);
}

#[test]
fn no_shortcut_outlives_a_new_rule() {
    let mut lab = with(Vec::new());
    let packet = udp(&A, 5000, &B, 53);
    for _ in 0..4 {
        lab.rx(A.port, &packet).tx(B.port, &packet);
    }
    let rule = PolicyRule { dst: only(&B), proto: Some(ip_proto::UDP), ..deny(1) };
    lab.reconfigure(|spec| spec.networks[0].policy = vec![rule]);
    for _ in 0..4 {
        lab.rx(A.port, &packet).denied("a", 1, &packet);
    }
    lab.reconfigure(|spec| spec.networks[0].policy.clear());
    lab.rx(A.port, &packet).tx(B.port, &packet);
}

#[test]
fn what_was_under_way_goes_on_unless_it_is_denied() {
    let mut lab = with(Vec::new());
    let (data, back) = (tcp(&A, 5000, &B, 80, ACK), tcp(&B, 80, &A, 5000, ACK));
    lab.rx(A.port, &data).tx(B.port, &data);
    let another = PolicyRule { proto: Some(ip_proto::TCP), ports: Some((81, 81)), ..deny(1) };
    lab.reconfigure(|spec| spec.networks[0].policy = vec![another]);
    lab.rx(A.port, &data).tx(B.port, &data).moved("conn.new", 1);
    lab.rx(B.port, &back).tx(A.port, &back);
    let this = PolicyRule { proto: Some(ip_proto::TCP), ports: Some((80, 80)), ..deny(2) };
    lab.reconfigure(|spec| spec.networks[0].policy = vec![this.clone()]);
    assert!(lab.connections().is_empty());
    lab.rx(A.port, &data).denied("a", 2, &data);
    // It could be the answer to what is denied.
    lab.rx(B.port, &back).denied("b", 2, &back);
    // So it is where it was not known before either.
    let mut lab = with(Vec::new());
    lab.rx(B.port, &back).tx(A.port, &back);
    lab.reconfigure(|spec| spec.networks[0].policy = vec![this]);
    lab.rx(B.port, &back).denied("b", 2, &back);
}

#[test]
fn what_is_addressed_to_all_is_judged_by_itself() {
    let rule = PolicyRule { dst: only(&B), proto: Some(ip_proto::UDP), ..deny(1) };
    let mut lab = with(vec![rule]);
    // To B, in a frame that everybody gets.
    let disguised = udp(&A, 5000, &B, 53).via(Mac::BROADCAST);
    lab.rx(A.port, &disguised).denied("a", 1, &disguised);
    let group =
        if speaks_ipv6() { Mac([0x33, 0x33, 0, 0, 0, 5]) } else { Mac([1, 0, 0x5e, 0, 0, 5]) };
    let group_packet = udp(&A, 5000, &B, 53).via(group);
    lab.rx(A.port, &group_packet).denied("a", 1, &group_packet);
    let others = udp(&A, 5000, &C, 53).via(Mac::BROADCAST);
    lab.rx(A.port, &others)
        .flooded(&[B.port, C.port, GATEWAY1.port], &others)
        .moved("replicated", 2);
    // And to a MAC that nobody is known to have.
    let nobody = udp(&A, 5000, &B, 53).via(Mac([2, 0, 0, 0, 0, 0x77]));
    lab.rx(A.port, &nobody).denied("a", 1, &nobody);
}

#[test]
fn an_error_about_an_allowed_connection_passes() {
    let no_icmp = PolicyRule { proto: Some(ip_proto::ICMP), ..deny(1) };
    let mut lab = with(vec![no_icmp]);
    let pings = echo(&A, &B, 7);
    lab.rx(A.port, &pings).denied("a", 1, &pings);
    let asks = udp(&A, 5000, &B, 53);
    lab.rx(A.port, &asks).tx(B.port, &asks).moved("conn.new", 1);
    let (kind, code) = (3, 3);
    let closed = reported(&B, &A, kind, code, &asks);
    lab.rx(B.port, &closed).tx(A.port, &closed);
    // Told to somebody else it is a packet like any other.
    let astray = reported(&B, &C, kind, code, &asks);
    lab.rx(B.port, &astray).denied("b", 1, &astray);
    // About nothing that was said it is a packet like any other.
    let made_up = reported(&B, &A, kind, code, &udp(&A, 5001, &B, 53));
    lab.rx(B.port, &made_up).denied("b", 1, &made_up);
    // Routed.
    let out = udp(&A, 5000, &SERVER, 53).via(GATEWAY1.mac);
    let came = lab.rx(A.port, &out).masqueraded(&out).take_one(UP.port);
    drop(came);
    let error = reported(&ROUTER, &UP, kind, code, &outside(&out));
    assert_eq!(lab.rx(UP.port, &error).take(A.port).len(), 1);
    let pings = echo(&A, &SERVER, 7).via(GATEWAY1.mac);
    lab.rx(A.port, &pings).denied("a", 1, &pings);
}

/// Fragments of a datagram from A to B, in order.
fn pieces(port: u16, id: u16) -> Vec<Wire> {
    let packet = udp(&A, 5000, &B, port).long(3000).ident(id).may_fragment();
    let bytes =
        if speaks_ipv6() { in_pieces6(&packet, 1232, id.into()) } else { in_pieces(&packet, 1480) };
    bytes.into_iter().map(Wire::from).collect()
}

#[test]
fn fragments_do_not_slip_past_a_port() {
    let rule = PolicyRule { proto: Some(ip_proto::UDP), ports: Some((53, 53)), ..deny(1) };
    let mut lab = with(vec![rule]);
    let denied = pieces(53, 1);
    assert!(denied.len() > 2);
    let len = |wire: &Wire| wire.bytes.len() as i64 - 14;
    let first = &denied[0];
    lab.rx(A.port, first.clone())
        .dropped("a", "policy")
        .moved("policy.1.packets", 1)
        .moved("policy.1.bytes", len(first))
        .accept(&[]);
    for later in &denied[1..] {
        lab.rx(A.port, later.clone()).dropped("a", "fragment_untracked");
    }
    let allowed = pieces(54, 2);
    lab.rx(A.port, allowed[0].clone()).tx(B.port, allowed[0].clone()).moved("conn.new", 1);
    for later in &allowed[1..] {
        lab.rx(A.port, later.clone()).tx(B.port, later.clone());
    }
    // Whoever sends the ports last hides them.
    let late = pieces(54, 3);
    lab.rx(A.port, late[1].clone()).dropped("a", "fragment_untracked");
    // A rule that ends the connection ends the datagram.
    let ended = pieces(55, 4);
    lab.rx(A.port, ended[0].clone()).tx(B.port, ended[0].clone()).moved("conn.new", 1);
    lab.reconfigure(|spec| {
        spec.networks[0].policy.push(PolicyRule { ports: Some((55, 55)), ..deny(2) });
    });
    lab.rx(A.port, ended[1].clone()).dropped("a", "fragment_untracked");
}

#[test]
fn traces_name_the_rule() {
    let rules = vec![
        PolicyRule { dst: only(&SERVER), ..deny(1) },
        PolicyRule { dst: only(&B), way: PolicyWay::Inside, ..allow(2) },
    ];
    let lab = with(rules);
    let mut tracer = lab.tracer();
    let mut facts = |packet: &Packet, stage: &str| {
        let traced = tracer.trace(A.port, &packet.bytes(), Default::default(), lab.now);
        let step = traced.steps.iter().find(|step| step.stage == stage).unwrap();
        let of = |name: &str| step.facts.iter().find(|fact| fact.0 == name).map(|fact| fact.1);
        (of("policy"), of("policy_rule"))
    };
    let denied = facts(&udp(&A, 5000, &SERVER, 53).via(GATEWAY1.mac), "translate");
    assert_eq!(denied, (Some(Fact::Word("deny")), Some(Fact::Policy(1))));
    let switched = facts(&udp(&A, 5000, &B, 53), "switch");
    assert_eq!(switched, (Some(Fact::Word("allow")), Some(Fact::Policy(2))));
    let unnamed = facts(&udp(&A, 5000, &C, 53), "switch");
    assert_eq!(unnamed, (None, None));
    assert_eq!(lab.plane.rule_counters(dataplane::engine::NatRule::Policy(1)), (0, 0));
}
