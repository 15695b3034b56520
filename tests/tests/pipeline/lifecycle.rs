//! Publishing another configuration: what goes ends, what stays goes on undisturbed.

use dataplane::EngineOptions;
use dataplane::config::{ConfigError, Snapshot, SnapshotSpec, StaticRoute, UplinkConfig};
use dataplane::engine::{Connection, NatRule};
use dataplane::packet::types::tcp_flags::{ACK, SYN};
use dataplane::packet::types::{Mac, NetworkId, PortId, UplinkId, ip_proto};
use tests::lab::{
    A, B, C, CLIENT, D, GATEWAY1, GATEWAY2, Lab, NET1, NET2, ROUTER, SERVER, UP, endpoint, prefix,
    publish, publish_tcp, small, topology, without_guard,
};
use tests::packet::{Host, Packet, arp_reply, ethernet, ip, speaks_ipv6, tcp, udp};

tests::in_ipv6! {
    a_removed_endpoint_takes_its_connections_and_addresses_along
    a_removed_network_takes_everything_along
    a_rule_that_leads_elsewhere_ends_its_connections_too
    an_outside_address_that_goes_ends_what_used_it
    flushing_ends_what_matches
    publishing_the_same_or_more_disturbs_nothing
    unpublishing_ends_the_connections_of_that_rule_only
    what_an_earlier_run_began_goes_on_if_its_rule_endpoint_and_address_are_there
}

/// B's port 80 as 8080 and A's as 8081.
fn published() -> Lab {
    let mut spec = topology();
    spec.dnat = vec![publish_tcp(7, 8080, &B, 80), publish_tcp(8, 8081, &A, 80)];
    Lab::new(spec)
}

fn from_client(lab: &mut Lab, port: u16, to: &Host, rule: u32) -> Packet {
    let syn = tcp(&CLIENT, 5000, &UP, port, SYN);
    let came = syn.clone().dst(to.ip).dport(80).routed(GATEWAY1.mac, to.mac);
    lab.rx(UP.port, &syn)
        .tx(to.port, came)
        .moved("conn.new", 1)
        .moved(&format!("dnat.{rule}.packets"), 1)
        .moved(&format!("dnat.{rule}.bytes"), syn.ip_len() as i64);
    syn
}

fn out(lab: &mut Lab, from: &Host, gateway: &Host, network: u16) -> Packet {
    let there = udp(from, 40_000 + network, &SERVER, 53).via(gateway.mac);
    lab.rx(from.port, &there)
        .tx(UP.port, there.clone().src(UP.ip).routed(UP.mac, ROUTER.mac))
        .moved("conn.new", 1)
        .moved(&format!("masquerade.{network}.packets"), 1)
        .moved(&format!("masquerade.{network}.bytes"), there.ip_len() as i64);
    there
}

#[test]
fn no_network_has_the_number_of_the_outside() {
    let mut spec = topology();
    spec.networks[1].id = NetworkId(u16::MAX);
    let refused = Snapshot::build(spec).unwrap_err();
    assert_eq!(refused, ConfigError::ReservedId(u16::MAX));
}

#[test]
fn unpublishing_ends_the_connections_of_that_rule_only() {
    let mut lab = published();
    let ends = from_client(&mut lab, 8080, &B, 7);
    let stays = from_client(&mut lab, 8081, &A, 8);
    out(&mut lab, &A, &GATEWAY1, 1);
    lab.reconfigure(|spec| spec.dnat.retain(|rule| rule.id != 7));
    assert_eq!(lab.connections().len(), 2);
    assert_eq!(lab.plane.conntrack_stats().flushed, 1);
    lab.rx(UP.port, ends.flags(ACK)).dropped("up", "unsolicited");
    let answer = tcp(&B, 80, &CLIENT, 5000, SYN | ACK).via(GATEWAY1.mac);
    lab.rx(B.port, &answer).dropped("b", "conntrack_invalid");
    let again = stays.dst(A.ip).dport(80).routed(GATEWAY1.mac, A.mac);
    lab.rx(UP.port, tcp(&CLIENT, 5000, &UP, 8081, SYN)).tx(A.port, again);
}

/// Rows: CNI `portmap: UDP goes on when a second container takes the port`.
#[test]
fn a_rule_that_leads_elsewhere_ends_its_connections_too() {
    let mut lab = published();
    let syn = from_client(&mut lab, 8080, &B, 7);
    lab.reconfigure(|spec| spec.dnat[0] = publish_tcp(7, 8080, &C, 80));
    assert!(lab.connections().is_empty());
    let came = syn.clone().dst(C.ip).dport(80).routed(GATEWAY1.mac, C.mac);
    lab.rx(UP.port, &syn)
        .tx(C.port, came)
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64);
}

#[test]
fn publishing_the_same_or_more_disturbs_nothing() {
    let mut lab = published();
    let syn = from_client(&mut lab, 8080, &B, 7);
    let there = out(&mut lab, &A, &GATEWAY1, 1);
    lab.publish();
    lab.reconfigure(|spec| {
        spec.dnat.push(publish_tcp(9, 9090, &C, 90));
        spec.dnat.reverse();
        spec.ports.push(endpoint(
            &Host { port: PortId(40), mac: Mac([2, 0, 0, 0, 0, 40]), ip: [10, 1, 0, 40].into() },
            NET1,
        ));
    });
    assert_eq!(lab.connections().len(), 2);
    assert_eq!(lab.plane.rule_counters(NatRule::Dnat(7)), (1, syn.ip_len() as u64));
    let back = udp(&SERVER, 53, &UP, 40_001);
    lab.rx(UP.port, &back).tx(A.port, back.dst(A.ip).routed(GATEWAY1.mac, A.mac));
    lab.rx(A.port, &there).tx(UP.port, there.src(UP.ip).routed(UP.mac, ROUTER.mac));
}

/// Rows: IEEE L15 port delete; VPP `test_delete_interface`.
#[test]
fn a_removed_endpoint_takes_its_connections_and_addresses_along() {
    let mut lab = published();
    let syn = from_client(&mut lab, 8080, &B, 7);
    out(&mut lab, &B, &GATEWAY1, 1);
    // Another's to it, through the gateway and by a hairpin.
    let routed = udp(&A, 1, &B, 2).via(GATEWAY1.mac);
    lab.rx(A.port, &routed).moved("conn.new", 1).take_one(B.port);
    let hairpin = tcp(&A, 40_000, &UP, 8080, SYN).via(GATEWAY1.mac);
    lab.rx(A.port, &hairpin)
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", hairpin.ip_len() as i64)
        .take_one(B.port);
    out(&mut lab, &D, &GATEWAY2, 2);
    lab.reconfigure(|spec| spec.ports.retain(|port| port.id != B.port));
    let left = lab.connections();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0].network, NET2);
    assert!(lab.plane.fdb_entries().iter().all(|entry| entry.mac != B.mac));
    // Nobody has the address now: the rule is still there and asks for it.
    if !speaks_ipv6() {
        lab.rx(UP.port, &syn)
            .moved("generated", 2)
            .moved("queued", 1)
            .moved("neighbors", 1)
            .moved("conn.new", 1)
            .moved("dnat.7.packets", 1)
            .moved("dnat.7.bytes", 40)
            .tx(A.port, tests::packet::arp_request(&GATEWAY1, B.ip))
            .tx(C.port, tests::packet::arp_request(&GATEWAY1, B.ip));
    }
    lab.rx(B.port, udp(&B, 1, &A, 2)).dropped("b", "port_unconfigured");
}

/// Rows: VPP `test_delete_interface`.
#[test]
fn a_removed_network_takes_everything_along() {
    let mut spec = topology();
    without_guard(&mut spec);
    let mut lab = Lab::new(spec);
    let stranger = ethernet(Mac([2, 0, 0, 0, 0, 0x55]), B.mac, 0x88b5, &[0; 46]);
    lab.rx(A.port, stranger.clone()).tx(B.port, stranger).moved("fdb.learned", 1);
    out(&mut lab, &A, &GATEWAY1, 1);
    out(&mut lab, &D, &GATEWAY2, 2);
    lab.reconfigure(|spec| {
        spec.networks.retain(|network| network.id != NET1);
        spec.ports.retain(|port| port.id == D.port || port.id == UP.port);
    });
    assert_eq!(lab.connection().network, NET2);
    assert_eq!(lab.plane.tables().fdb.used(), 0);
    assert!(lab.plane.fdb_entries().iter().all(|entry| entry.network == NET2));
    assert_eq!(lab.plane.rule_counters(NatRule::Masquerade(NET1)), (0, 0));
    // And nothing of it is back when the network is.
    let spec = topology();
    lab.reconfigure(|now| *now = spec);
    let entries = lab.plane.fdb_entries();
    assert!(entries.iter().all(|e| e.mac != Mac([2, 0, 0, 0, 0, 0x55])), "{entries:?}");
}

/// Rows: VPP `test_interface_addr`.
#[test]
fn an_outside_address_that_goes_ends_what_used_it() {
    let mut lab = published();
    from_client(&mut lab, 8080, &B, 7);
    out(&mut lab, &A, &GATEWAY1, 1);
    let inside = udp(&A, 1, &B, 2).via(GATEWAY1.mac);
    lab.rx(A.port, &inside).moved("conn.new", 1).take_one(B.port);
    lab.reconfigure(|spec| spec.uplinks[0].addresses[0].0 = ip([203, 0, 113, 6]));
    let left = lab.connections();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(!left[0].snat && !left[0].dnat);
}

/// Three connections of an earlier run (in by rule 7, out by the uplink, from network 2), and what
/// becomes of them under this configuration.
fn after_a_restart(change: impl FnOnce(&mut SnapshotSpec)) -> Vec<Connection> {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| Some(directory.path().join(name));
    let options = EngineOptions {
        conntrack_file: file("conntrack"),
        conntrack6_file: file("conntrack6"),
        ..small()
    };
    let mut spec = topology();
    spec.dnat = vec![publish_tcp(7, 8080, &B, 80)];
    let mut lab = Lab::with(&options, spec.clone());
    from_client(&mut lab, 8080, &B, 7);
    out(&mut lab, &A, &GATEWAY1, 1);
    out(&mut lab, &D, &GATEWAY2, 2);
    drop(lab);
    change(&mut spec);
    let lab = Lab::with(&options, spec);
    assert_eq!(lab.connections().len(), 3);
    let ended = lab.plane.end_orphans();
    let left = lab.connections();
    assert_eq!(left.len() + ended, 3);
    left
}

#[test]
fn what_an_earlier_run_began_goes_on_if_its_rule_endpoint_and_address_are_there() {
    type Change = fn(&mut SnapshotSpec);
    let table: [(&str, Change, [bool; 3]); 11] = [
        ("nothing changed", |_| {}, [true, true, true]),
        ("unpublished", |spec| spec.dnat.clear(), [false, true, true]),
        ("to another port", |spec| spec.dnat[0].to_port = 81, [false, true, true]),
        ("to another sandbox", |spec| spec.dnat[0].to = ip(C.ip), [false, true, true]),
        ("published anew", |spec| spec.dnat[0].id = 9, [false, true, true]),
        (
            "the outside port published",
            |spec| spec.dnat.push(publish(9, ip_proto::UDP, 40_001, &B, 53)),
            [true, false, true],
        ),
        ("another way out", by_another_uplink, [true, false, false]),
        ("no endpoint", |spec| spec.ports.retain(|p| p.id != A.port), [true, false, true]),
        ("no guard", without_guard_and_a, [true, true, true]),
        (
            "no network",
            |spec| {
                spec.networks.retain(|network| network.id != NET2);
                spec.ports.retain(|p| p.id != D.port);
            },
            [true, true, false],
        ),
        (
            "another outside address",
            |spec| spec.uplinks[0].addresses[0].0 = ip([203, 0, 113, 6]),
            [false, false, false],
        ),
    ];
    for (what, change, expected) in table {
        let left = after_a_restart(change);
        let there = [CLIENT.ip, A.ip, D.ip].map(|of| left.iter().any(|c| c.original.src == ip(of)));
        assert_eq!(there, expected, "{what}");
    }
}

fn by_another_uplink(spec: &mut SnapshotSpec) {
    let (id, address, via) = (UplinkId(1), ip([198, 18, 0, 5]), ip([198, 18, 0, 1]));
    let addresses = vec![(address, prefix([198, 18, 0, 5].into(), 24))];
    spec.uplinks.push(UplinkConfig { id, addresses, ..spec.uplinks[0].clone() });
    spec.routes.push(StaticRoute { prefix: prefix(SERVER.ip, 24), via, uplink: id });
}

/// A router in a container speaks for others.
fn without_guard_and_a(spec: &mut SnapshotSpec) {
    without_guard(spec);
    spec.ports.retain(|port| port.id != A.port);
}

/// Rows: VPP `test_clear_sessions`.
#[test]
fn flushing_ends_what_matches() {
    let mut lab = published();
    from_client(&mut lab, 8080, &B, 7);
    out(&mut lab, &A, &GATEWAY1, 1);
    assert_eq!(lab.plane.flush_connections(&|connection| connection.dnat), 1);
    assert!(lab.connection().snat);
    assert_eq!(lab.plane.flush_connections(&|_| true), 1);
    assert!(lab.connections().is_empty());
}

#[test]
fn frames_that_wait_for_a_neighbor_of_a_removed_uplink_are_given_up() {
    let mut lab = Lab::default();
    let neighbor = tests::lab::NEIGHBOR;
    let frame = udp(&A, 40_000, &neighbor, 2000).via(GATEWAY1.mac);
    lab.rx(A.port, &frame)
        .moved("generated", 1)
        .moved("queued", 1)
        .moved("neighbors", 1)
        .masqueraded(&frame)
        .take_one(UP.port);
    lab.reconfigure(|spec| {
        spec.uplinks.clear();
        spec.ports.retain(|port| port.id != UP.port);
    });
    assert!(lab.connections().is_empty());
    let mut given_up = 0;
    for _ in 0..20 {
        let before = lab.plane.worker_stats()[0].queued;
        let step = lab.after(std::time::Duration::from_millis(300));
        if before == 1 && step.queued() == 0 {
            given_up += 1;
            step.moved("queued", -1).dropped("a", "neighbor_unresolved").tolerate("neighbors");
        } else {
            step.tolerate("neighbors");
        }
    }
    assert_eq!(given_up, 1);
    lab.rx(UP.port, arp_reply(&neighbor, &UP)).dropped("up", "port_unconfigured");
}
