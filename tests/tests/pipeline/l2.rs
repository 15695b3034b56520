//! Switching: learning, flooding, guards, VLANs, sizes.

use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::engine::{FdbKind, StaticRefused};
use dataplane::packet::types::{Mac, PortId, tcp_flags};
use tests::lab::{
    A, B, C, D, GATEWAY1, GATEWAY2, Lab, NET1, NET2, UP, dual, small, topology, without_guard,
};
use tests::packet::nd::solicitation;
use tests::packet::{Host, Wire, arp, echo, ethernet, tcp, udp};

const BRIDGE: u16 = 0x88b5; // IEEE 802 local experimental
const NOBODY: Mac = Mac([2, 0, 0, 0, 0, 0x77]);
const STRANGER: Mac = Mac([2, 0, 0, 0, 0, 0x55]);

fn unguarded() -> Lab {
    let mut spec = topology();
    without_guard(&mut spec);
    Lab::new(spec)
}

/// A frame of 60 bytes that is not IP.
fn plain(from: Mac, to: Mac) -> Vec<u8> {
    ethernet(from, to, BRIDGE, &[7; 46])
}

#[test]
fn between_containers_a_frame_passes_unchanged() {
    let mut lab = Lab::default();
    let there = udp(&A, 1000, &B, 2000);
    lab.rx(A.port, &there).tx(B.port, &there);
    let back = udp(&B, 2000, &A, 1000).ttl(1);
    lab.rx(B.port, &back).tx(A.port, &back);
}

/// Rows: IEEE L1 learning; Linux `bridge_vlan_unaware.sh: ping_ipv4, learning, flooding`; VPP `test_l2bd`.
#[test]
fn endpoints_need_no_learning_and_strangers_are_learned() {
    let mut lab = unguarded();
    let frame = plain(STRANGER, B.mac);
    lab.rx(A.port, frame.clone()).tx(B.port, frame).moved("fdb.learned", 1);
    let answer = plain(B.mac, STRANGER);
    lab.rx(B.port, answer.clone()).tx(A.port, answer);
    let learned: Vec<_> = lab.plane.fdb_entries();
    let stranger = learned.iter().find(|e| e.mac == STRANGER).unwrap();
    assert_eq!((stranger.kind, stranger.port), (FdbKind::Learned, A.port));
    assert!(learned.iter().any(|e| e.mac == B.mac && e.kind == FdbKind::Local));
}

/// Rows: IEEE L4 flooding; Open vSwitch `IGMP: flood under normal action, forward with ICMP`; VPP
/// `test_l2_flood: flood`.
#[test]
fn unknown_unicast_broadcast_and_multicast_flood_within_the_network_and_never_back() {
    for to in [NOBODY, Mac::BROADCAST, Mac([0x33, 0x33, 0, 0, 0, 1]), Mac([1, 0, 0x5e, 0, 0, 9])] {
        let mut lab = Lab::default();
        let frame = plain(A.mac, to);
        lab.rx(A.port, frame.clone())
            .tx(B.port, frame.clone())
            .tx(C.port, frame.clone())
            .tx(GATEWAY1.port, frame)
            .moved("replicated", 2);
    }
}

#[test]
fn a_flood_does_not_overtake_what_came_before_it() {
    let mut lab = Lab::default();
    let first = plain(A.mac, B.mac);
    let all = plain(A.mac, Mac::BROADCAST);
    let last = ethernet(A.mac, B.mac, BRIDGE, &[9; 46]);
    lab.batch(vec![
        (A.port, first.clone().into()),
        (A.port, all.clone().into()),
        (A.port, last.clone().into()),
    ])
    .tx(B.port, first)
    .tx(B.port, all.clone())
    .tx(B.port, last)
    .tx(C.port, all.clone())
    .tx(GATEWAY1.port, all)
    .moved("replicated", 2);
}

#[test]
fn a_flood_with_nowhere_to_go_is_dropped() {
    let mut lab = Lab::default();
    lab.rx(D.port, plain(D.mac, Mac::BROADCAST)).dropped("d", "no_egress");
}

#[test]
fn a_networks_addresses_age_in_a_time_of_their_own() {
    let mut lab = unguarded();
    lab.reconfigure(|spec| spec.networks[0].fdb_ageing = Some(Duration::from_secs(10)));
    lab.rx(A.port, plain(STRANGER, B.mac))
        .tx(B.port, plain(STRANGER, B.mac))
        .moved("fdb.learned", 1);
    let other = plain(STRANGER, GATEWAY2.mac);
    lab.rx(D.port, other).moved("fdb.learned", 1).only_balanced();
    let to = plain(B.mac, STRANGER);
    for (seconds, is_known) in [(10, true), (1, false)] {
        lab.now = lab.now + Duration::from_secs(seconds);
        let step = lab.rx(B.port, to.clone()).tx(A.port, to.clone());
        if !is_known {
            step.tx(C.port, to.clone()).tx(GATEWAY1.port, to.clone()).moved("replicated", 2);
        }
    }
    // Housekeeping leaves the other network's.
    let buckets = lab.plane.tables().fdb.bucket_count();
    for _ in 0..buckets.div_ceil(256) {
        lab.after(Duration::from_millis(100)).only_balanced();
    }
    let learned = lab.plane.fdb_entries().into_iter().filter(|e| e.kind == FdbKind::Learned);
    assert_eq!(learned.map(|entry| entry.network).collect::<Vec<_>>(), [NET2]);
}

/// Rows: IEEE L2 ageing.
#[test]
fn a_learned_address_ages_out_and_then_floods() {
    let mut lab = unguarded();
    lab.rx(A.port, plain(STRANGER, B.mac))
        .tx(B.port, plain(STRANGER, B.mac))
        .moved("fdb.learned", 1);
    let to = plain(B.mac, STRANGER);
    lab.after(Duration::from_secs(300));
    lab.rx(B.port, to.clone()).tx(A.port, to.clone());
    // The entry is dead now; housekeeping removes it within a round over the table.
    lab.now = lab.now + Duration::from_secs(1);
    lab.rx(B.port, to.clone())
        .tx(A.port, to.clone())
        .tx(C.port, to.clone())
        .tx(GATEWAY1.port, to)
        .moved("replicated", 2);
    let buckets = lab.plane.tables().fdb.bucket_count();
    let mut removed = 0;
    for _ in 0..buckets.div_ceil(256) {
        let before = lab.fdb().0;
        let step = lab.after(Duration::from_millis(100));
        let gone = step.fdb().0 - before;
        removed -= gone;
        step.moved("fdb.learned", gone);
    }
    assert_eq!(removed, 1);
}

#[test]
fn a_frame_refreshes_the_age() {
    let mut lab = unguarded();
    let hello = plain(STRANGER, B.mac);
    lab.rx(A.port, hello.clone()).tx(B.port, hello.clone()).moved("fdb.learned", 1);
    for _ in 0..4 {
        lab.now = lab.now + Duration::from_secs(200);
        lab.rx(A.port, hello.clone()).tx(B.port, hello.clone());
    }
    let to = plain(B.mac, STRANGER);
    lab.rx(B.port, to.clone()).tx(A.port, to);
}

/// Rows: IEEE L7 move.
#[test]
fn a_host_that_moved_is_found_at_its_new_port_at_once() {
    let mut lab = unguarded();
    let hello = plain(STRANGER, B.mac);
    lab.rx(A.port, hello.clone()).tx(B.port, hello.clone()).moved("fdb.learned", 1);
    lab.rx(C.port, hello.clone()).tx(B.port, hello).moved("fdb.moves", 1);
    let to = plain(B.mac, STRANGER);
    lab.rx(B.port, to.clone()).tx(C.port, to);
}

/// Rows: Linux `bridge_locked_port.sh: mab_roam`.
#[test]
fn an_endpoint_s_own_address_cannot_be_taken_by_another() {
    let mut lab = unguarded();
    let stolen = plain(B.mac, C.mac);
    lab.rx(A.port, stolen).dropped("a", "endpoint_mac");
    let to = plain(C.mac, B.mac);
    lab.rx(C.port, to.clone()).tx(B.port, to);
}

/// Rows: Linux `bridge_vlan_aware.sh: extern_learn`; Linux `bridge_sticky_fdb.sh`.
#[test]
fn a_static_entry_stays_where_it_was_put() {
    let mut lab = unguarded();
    lab.plane.fdb_add(NET1, 0, STRANGER, C.port).unwrap();
    let hello = plain(STRANGER, B.mac);
    lab.rx(A.port, hello.clone()).tx(B.port, hello);
    let to = plain(B.mac, STRANGER);
    lab.rx(B.port, to.clone()).tx(C.port, to.clone());
    assert!(lab.plane.fdb_remove(NET1, 0, STRANGER));
    lab.rx(B.port, to.clone())
        .tx(A.port, to.clone())
        .tx(C.port, to.clone())
        .tx(GATEWAY1.port, to)
        .moved("replicated", 2);
}

#[test]
fn no_static_entry_takes_an_endpoint_s_own_address() {
    let mut lab = unguarded();
    for own in [C.mac, GATEWAY1.mac] {
        assert_eq!(lab.plane.fdb_add(NET1, 0, own, A.port), Err(StaticRefused::Local));
    }
    let to = plain(B.mac, C.mac);
    lab.rx(B.port, to.clone()).tx(C.port, to);
    assert!(!lab.plane.fdb_remove(NET1, 0, C.mac));
}

/// Rows: Linux `bridge_fdb_learning_limit.sh: check_accounting, check_limit`.
#[test]
fn an_address_that_finds_no_room_is_counted_and_its_frame_goes_on() {
    let mut spec = topology();
    without_guard(&mut spec);
    let mut lab = Lab::with(&EngineOptions { fdb_limit: 16, ..small() }, spec);
    // Two buckets of a MAC may be full before the table is.
    let mut entered = 0;
    for n in 0..=u8::MAX {
        let mac = Mac([2, 0, 0, 0, 1, n]);
        entered += usize::from(lab.plane.fdb_add(NET1, 0, mac, C.port).is_ok());
    }
    assert_eq!(entered, 16);
    let hello = plain(STRANGER, B.mac);
    lab.rx(A.port, hello.clone()).tx(B.port, hello).moved("fdb.refused", 1);
}

/// Rows: IEEE L5 order; IEEE L6 own MAC as destination.
#[test]
fn what_is_on_the_same_port_is_not_sent_back() {
    let mut lab = unguarded();
    let hello = plain(STRANGER, B.mac);
    lab.rx(A.port, hello.clone()).tx(B.port, hello).moved("fdb.learned", 1);
    lab.rx(A.port, plain(A.mac, STRANGER)).dropped("a", "same_port");
    lab.rx(A.port, plain(A.mac, A.mac)).dropped("a", "same_port");
}

/// Rows: IEEE L3 reserved groups.
#[test]
fn frames_that_no_bridge_forwards() {
    let mut lab = unguarded();
    for last in 0..16 {
        let to = Mac([1, 0x80, 0xc2, 0, 0, last]);
        lab.rx(A.port, plain(A.mac, to)).dropped("a", "link_local_group");
    }
    let beyond = plain(A.mac, Mac([1, 0x80, 0xc2, 0, 0, 0x10]));
    lab.rx(A.port, beyond.clone())
        .tx(B.port, beyond.clone())
        .tx(C.port, beyond.clone())
        .tx(GATEWAY1.port, beyond)
        .moved("replicated", 2);
    for source in [Mac::ZERO, Mac::BROADCAST, Mac([3, 0, 0, 0, 0, 1])] {
        lab.rx(A.port, plain(source, B.mac)).dropped("a", "invalid_source_mac");
    }
}

/// Rows: IEEE L13 lengths.
#[test]
fn runts_are_dropped_and_fourteen_bytes_are_not() {
    let mut lab = Lab::default();
    let whole = plain(A.mac, B.mac);
    for len in 0..14 {
        lab.rx(A.port, &whole[..len]).dropped("a", "runt");
    }
    lab.rx(A.port, &whole[..14]).tx(B.port, &whole[..14]);
    let tagged = udp(&A, 1, &B, 2).vlan(5).bytes();
    for len in 14..18 {
        lab.rx(A.port, &tagged[..len]).dropped("a", "runt");
    }
}

#[test]
fn a_port_without_configuration_carries_nothing() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.ports.retain(|port| port.id != C.port));
    lab.rx(C.port, plain(C.mac, B.mac)).dropped("c", "port_unconfigured");
    let all = plain(A.mac, Mac::BROADCAST);
    lab.rx(A.port, all.clone())
        .tx(B.port, all.clone())
        .tx(GATEWAY1.port, all)
        .moved("replicated", 1);
}

/// Rows: Linux `bridge_locked_port.sh: locked_port_ipv4, locked_port_vlan`; Linux `rpath.sh`; VPP
/// `test_acl_plugin_macip (66 cases)`.
#[test]
fn the_guard_drops_what_an_endpoint_is_not() {
    let mut lab = Lab::default();
    lab.rx(A.port, plain(STRANGER, B.mac)).dropped("a", "spoofed_mac");
    lab.rx(A.port, udp(&A, 1, &B, 2).src(C.ip)).dropped("a", "spoofed_ipv4");
    lab.rx(A.port, udp(&A, 1, &B, 2).src(C.ip).vlan(7)).dropped("a", "spoofed_ipv4");
    let claim = |sender| arp(1, (A.mac, Mac::BROADCAST), sender, (Mac::ZERO, B.ip));
    lab.rx(A.port, claim((A.mac, C.ip))).dropped("a", "spoofed_arp");
    lab.rx(A.port, claim((C.mac, A.ip))).dropped("a", "spoofed_arp");
    let mut short = claim((A.mac, A.ip));
    short.truncate(30);
    lab.rx(A.port, short).dropped("a", "arp_malformed");
    // DHCP and duplicate address detection speak from 0.0.0.0.
    let dhcp = udp(&A, 68, &B, 67).src([0, 0, 0, 0].into());
    lab.rx(A.port, &dhcp).tx(B.port, &dhcp);
    let none = [0, 0, 0, 0].into();
    // Who asks whether another's is free keeps it from that.
    lab.rx(A.port, claim((A.mac, none))).dropped("a", "spoofed_arp");
    let probe = arp(1, (A.mac, Mac::BROADCAST), (A.mac, none), (Mac::ZERO, A.ip));
    lab.rx(A.port, probe.clone())
        .tx(B.port, probe.clone())
        .tx(C.port, probe.clone())
        .tx(GATEWAY1.port, probe)
        .moved("replicated", 2);
}

/// Rows: IEEE L12 loop.
#[test]
fn nobody_speaks_with_the_gateway_s_mac_but_the_host() {
    for mut lab in [Lab::default(), unguarded()] {
        lab.rx(A.port, plain(GATEWAY1.mac, B.mac)).dropped("a", "own_mac");
        let from_host = plain(GATEWAY1.mac, B.mac);
        lab.rx(GATEWAY1.port, from_host.clone()).tx(B.port, from_host);
        let from_host = udp(&GATEWAY1, 5, &A, 6);
        lab.rx(GATEWAY1.port, &from_host).tx(A.port, &from_host);
    }
}

/// A container that bridges two endpoints of the network, or one that plays its neighbor.
#[test]
fn an_endpoint_s_mac_from_another_one_s_port_is_a_loop() {
    for mut lab in [Lab::default(), unguarded()] {
        let hello = plain(A.mac, Mac::BROADCAST);
        let others = [B.port, C.port, GATEWAY1.port];
        let step = lab.rx(A.port, hello.clone());
        step.flooded(&others, hello.clone()).moved("replicated", 2);
        for frame in [hello.clone(), plain(A.mac, B.mac)] {
            lab.rx(C.port, frame).dropped("c", "endpoint_mac");
        }
        let answer = plain(B.mac, A.mac);
        lab.rx(B.port, answer.clone()).tx(A.port, answer);
    }
    // In another network it is any MAC.
    Lab::default().rx(D.port, plain(A.mac, B.mac)).dropped("d", "spoofed_mac");
}

/// Rows: Linux `bridge_port_isolation.sh: ping_ipv4, flooding`.
#[test]
fn without_icc_containers_reach_the_host_only() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.networks[0].icc = false);
    lab.rx(A.port, plain(A.mac, B.mac)).dropped("a", "icc_disabled");
    let all = plain(A.mac, Mac::BROADCAST);
    lab.rx(A.port, all.clone()).tx(GATEWAY1.port, all);
    let unknown = plain(A.mac, NOBODY);
    lab.rx(A.port, unknown.clone()).tx(GATEWAY1.port, unknown);
    let from_host = plain(GATEWAY1.mac, Mac::BROADCAST);
    lab.rx(GATEWAY1.port, from_host.clone())
        .tx(A.port, from_host.clone())
        .tx(B.port, from_host.clone())
        .tx(C.port, from_host)
        .moved("replicated", 2);
}

#[test]
fn without_icc_the_gateway_is_no_way_round() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.networks[0].icc = false);
    lab.rx(A.port, udp(&A, 1, &B, 2).via(GATEWAY1.mac)).dropped("a", "icc_disabled");
}

#[test]
fn a_frame_is_not_sent_to_a_port_it_does_not_fit() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.ports[1].mtu = 1400);
    let fits = ethernet(A.mac, B.mac, BRIDGE, &[1; 1400]);
    lab.rx(A.port, fits.clone()).tx(B.port, fits);
    let over = ethernet(A.mac, B.mac, BRIDGE, &[1; 1401]);
    lab.rx(A.port, over).dropped("a", "oversize");
    let tagged = udp(&A, 1, &B, 2).vlan(5).long(1372);
    lab.rx(A.port, &tagged)
        .tx(B.port, &tagged)
        .tx(C.port, &tagged)
        .tx(GATEWAY1.port, &tagged)
        .moved("replicated", 2)
        .moved("fdb.learned", 1);
}

#[test]
fn a_large_segment_is_not_sent_to_a_port_it_does_not_fit() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.ports[1].mtu = 1400);
    let large = tcp(&A, 1000, &B, 80, tcp_flags::ACK).long(20_000);
    lab.rx(A.port, large.gso(1360)).tx(B.port, large.gso(1360));
    lab.rx(A.port, large.gso(1361)).dropped("a", "oversize");
}

#[test]
fn a_flood_leaves_out_the_ports_it_does_not_fit() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.ports[1].mtu = 1400);
    let over = ethernet(A.mac, Mac::BROADCAST, BRIDGE, &[1; 1500]);
    lab.rx(A.port, over.clone())
        .tx(C.port, over.clone())
        .tx(GATEWAY1.port, over)
        .moved("replicated", 2)
        .moved("b.tx_drop.oversize", 1)
        .moved("drop.oversize", 1);
}

/// Rows: IEEE L9 VLAN; Open vSwitch `datapath: ping on vlan, cvlan; ping6 on both`; Open vSwitch `802.1ad:
/// vlan_limit, push and pop, 802.1q tunnel, double vlan match`; Linux `bridge_vlan_aware.sh: ping, learning,
/// flooding, 8021p, drop_untagged`.
#[test]
fn tags_are_carried_and_keep_networks_apart() {
    let mut lab = unguarded();
    // Learned in VLAN 5, not known in VLAN 6 nor untagged.
    let hello = udp(&A, 1, &B, 2).macs(STRANGER, NOBODY).vlan(5);
    lab.rx(A.port, &hello)
        .tx(B.port, &hello)
        .tx(C.port, &hello)
        .tx(GATEWAY1.port, &hello)
        .moved("replicated", 2)
        .moved("fdb.learned", 1);
    let back = udp(&B, 2, &A, 1).macs(NOBODY, STRANGER).vlan(5);
    lab.rx(B.port, &back).tx(A.port, &back).moved("fdb.learned", 1);
    for vlan in [None, Some(6)] {
        let other = udp(&C, 2, &A, 1).macs(C.mac, STRANGER);
        let other = vlan.map_or_else(|| other.clone(), |id| other.clone().vlan(id));
        lab.rx(C.port, &other)
            .tx(A.port, &other)
            .tx(B.port, &other)
            .tx(GATEWAY1.port, &other)
            .moved("replicated", 2)
            .moved("fdb.learned", i64::from(vlan.is_some()));
    }
    // Two tags: forwarded by the outer one, both kept.
    let mut double = back.bytes();
    double.splice(16..16, [0, 9, 0x81, 0]);
    double[12..18].copy_from_slice(&[0x88, 0xa8, 0, 5, 0x81, 0]);
    lab.rx(B.port, double.clone()).tx(A.port, double);
}

#[test]
fn the_gateway_does_not_speak_tagged() {
    let mut lab = Lab::default();
    let frame = udp(&A, 1, &UP, 2).via(GATEWAY1.mac).vlan(5);
    lab.rx(A.port, &frame).dropped("a", "no_gateway").moved("fdb.learned", 1);
}

#[test]
fn full_and_down_devices_are_counted_at_their_port() {
    let mut lab = Lab::default();
    lab.set_full(B.port);
    lab.rx(A.port, plain(A.mac, B.mac))
        .moved("b.tx_drop.tx_queue_full", 1)
        .moved("drop.tx_queue_full", 1);
    lab.set_down(C.port);
    let all = plain(A.mac, Mac::BROADCAST);
    lab.rx(A.port, all.clone())
        .tx(GATEWAY1.port, all)
        .moved("replicated", 2)
        .moved("b.tx_drop.tx_queue_full", 1)
        .moved("drop.tx_queue_full", 1)
        .moved("c.tx_drop.tx_port_down", 1)
        .moved("drop.tx_port_down", 1);
}

#[test]
fn a_port_that_was_never_attached_takes_nothing_and_loses_nothing() {
    let mut lab = Lab::default();
    let ghost = Host { port: PortId(77), mac: STRANGER, ip: [10, 1, 0, 99].into() };
    lab.reconfigure(|spec| spec.ports.push(tests::lab::endpoint(&ghost, NET1)));
    lab.set_down(ghost.port);
    lab.rx(A.port, plain(A.mac, ghost.mac)).moved("drop.tx_port_down", 1);
}

#[test]
fn networks_are_separate_at_layer_two() {
    let mut lab = unguarded();
    let hello = plain(STRANGER, NOBODY);
    lab.rx(D.port, hello).dropped("d", "no_egress").moved("fdb.learned", 1);
    let to = plain(A.mac, STRANGER);
    lab.rx(A.port, to.clone())
        .tx(B.port, to.clone())
        .tx(C.port, to.clone())
        .tx(GATEWAY1.port, to)
        .moved("replicated", 2);
}

/// Rows: VPP `test_l2bd_learnlimit: none, for each domain, global`.
#[test]
fn the_oldest_learned_address_makes_room() {
    let mut options = tests::lab::small();
    options.fdb_limit = 16;
    let mut spec = topology();
    without_guard(&mut spec);
    let mut lab = Lab::with(&options, spec);
    let (mut evicted, mut refused) = (0, 0);
    for n in 0..200u8 {
        lab.now = lab.now + Duration::from_secs(1);
        let frame: Wire = plain(Mac([2, 0, 0, 0, 1, n]), B.mac).into();
        let before = lab.fdb();
        let step = lab.rx(A.port, &frame).tx(B.port, &frame);
        let after = step.fdb();
        let (learned, went) = (after.0 - before.0, after.1 - before.1);
        step.moved("fdb.learned", learned)
            .moved("fdb.evictions", went)
            .moved("fdb.refused", 1 - learned - went);
        match (learned, went) {
            (1, 0) => {}
            (0, 1) => evicted += 1,
            // Its two buckets hold nothing that could go.
            (0, 0) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(lab.fdb().0, 16);
    assert!(evicted > 100 && refused < 60, "{evicted} evicted, {refused} refused");
    let known = plain(B.mac, A.mac);
    lab.rx(B.port, known.clone()).tx(A.port, known);
}

/// Rows: Open vSwitch `datapath: ping6 with IPv6 later fragments`; Linux `bridge_locked_port.sh:
/// locked_port_ipv6`.
#[test]
fn ipv6_is_switched_and_guarded_by_its_macs() {
    let mut lab = Lab::new(dual());
    let there = udp(&A, 1, &B, 2).v6();
    lab.rx(A.port, &there).tx(B.port, &there);
    lab.rx(A.port, there.clone().macs(STRANGER, B.mac)).dropped("a", "spoofed_mac");
    lab.rx(A.port, there.clone().macs(B.mac, C.mac)).dropped("a", "endpoint_mac");
    // A later fragment has nothing behind its headers that could be read: identification 7, offset 8.
    let header = [0x60, 0, 0, 0, 0, 16, 44, 64];
    let [from, to] = [A.ip6(), B.ip6()].map(|address| address.octets());
    let later = [&header[..], &from, &to, &[17, 0, 0, 8, 0, 0, 0, 7], &[0x5a; 8]].concat();
    let later = ethernet(A.mac, B.mac, 0x86dd, &later);
    lab.rx(A.port, later.clone()).tx(B.port, later);
}

/// Rows: Linux `bridge_port_isolation.sh: ping_ipv6`.
#[test]
fn without_icc_ipv6_reaches_the_host_only() {
    let mut lab = Lab::new(dual());
    lab.reconfigure(|spec| spec.networks[0].icc = false);
    for packet in [udp(&A, 1, &B, 2).v6(), echo(&A, &B, 7).v6()] {
        lab.rx(A.port, &packet).dropped("a", "icc_disabled");
    }
    let question = solicitation(&A, A.ip6(), B.ip6());
    lab.rx(A.port, &question).tx(GATEWAY1.port, &question);
}

/// Rows: IEEE L14 LLC.
#[test]
fn frames_with_a_length_instead_of_a_type_are_switched() {
    let mut lab = Lab::default();
    // LLC: a bridge's BPDU to one host, and SNAP with something that is no IP.
    for payload in [&[0x42, 0x42, 3, 0, 0][..], &[0xaa, 0xaa, 3, 0, 0, 0, 0x88, 0xb5, 1]] {
        let length = payload.len() as u16;
        let padded = [payload, &vec![0; 46 - payload.len()]].concat();
        let frame = ethernet(A.mac, B.mac, length, &padded);
        lab.rx(A.port, frame.clone()).tx(B.port, frame);
        let frame = ethernet(A.mac, Mac::BROADCAST, length, &padded);
        lab.rx(A.port, frame.clone())
            .flooded(&[B.port, C.port, GATEWAY1.port], frame)
            .moved("replicated", 2);
    }
}
