//! Endpoints in VLANs of their own: who hears whom, with which tag, by the switch, the gateway, the host's
//! leg and the shortcuts (ADR 22). The rows of OVS' vlan tests, of VPP's l2 vlan tests and of the kernel's
//! bridge_vlan_aware, no_forwarding and one_bridge_two_pvids.

use std::net::{IpAddr, Ipv4Addr};

use dataplane::config::{PortRole, SnapshotSpec, Vlans};
use dataplane::engine::{FdbKind, Link};
use dataplane::io::Offloads;
use dataplane::packet::types::tcp_flags::{ACK, SYN};
use dataplane::packet::types::{Mac, PortId};
use tests::fragments::{in_pieces, in_pieces6, piece};
use tests::lab::{
    A, B, C, CLIENT, GATEWAY1, Lab, NET1, ROUTER, SERVER, UP, dual, publish_tcp, topology,
    without_guard,
};
use tests::packet::{Host, Packet, arp_reply, arp_request, echo, echo_reply, ethernet, tcp, udp};

const BRIDGE: u16 = 0x88b5;

fn put(spec: &mut SnapshotSpec, host: &Host, to: &Vlans) {
    for port in spec.ports.iter_mut().filter(|port| port.id == host.port) {
        let PortRole::Endpoint { vlans, .. } = &mut port.role else { panic!("{port:?}") };
        vlans.clone_from(to);
    }
}

fn trunk(native: Option<u16>, tagged: &[u16]) -> Vlans {
    Vlans::Trunk { native, tagged: Box::new(tagged.iter().copied().collect()) }
}

/// A, B and C in these VLANs.
fn lab(vlans: &[Vlans; 3]) -> Lab {
    let mut spec = topology();
    for (host, vlans) in [A, B, C].iter().zip(vlans) {
        put(&mut spec, host, vlans);
    }
    Lab::new(spec)
}

/// A and B in VLAN 10, C a trunk.
fn with_trunk(native: Option<u16>) -> Lab {
    lab(&[Vlans::Access(10), Vlans::Access(10), trunk(native, &[10, 20])])
}

fn to_all(from: &Host) -> Packet {
    udp(from, 1, &B, 2).macs(from.mac, Mac::BROADCAST)
}

/// The frame with this tag before what is there.
fn tagged(frame: &[u8], kind: u16, tci: u16) -> Vec<u8> {
    [&frame[..12], &kind.to_be_bytes(), &tci.to_be_bytes(), &frame[12..]].concat()
}

#[test]
fn access_ports_hear_their_vlan_alone() {
    let mut lab = lab(&[Vlans::Access(10), Vlans::Access(10), Vlans::Access(20)]);
    let all = to_all(&A);
    lab.rx(A.port, &all).flooded(&[B.port, GATEWAY1.port], &all).moved("replicated", 1);
    let (known, elsewhere) = (udp(&A, 1, &B, 2), udp(&A, 1, &C, 2));
    lab.rx(A.port, &known).tx(B.port, &known);
    lab.rx(A.port, &elsewhere).flooded(&[B.port, GATEWAY1.port], &elsewhere).moved("replicated", 1);
    let alone = to_all(&C);
    lab.rx(C.port, &alone).tx(GATEWAY1.port, &alone);
    // Untagged only, whatever the tag, and with two.
    for vlan in [1, 10, 20, 4094] {
        lab.rx(A.port, known.clone().vlan(vlan)).dropped("a", "vlan_denied");
    }
    let double = tagged(&known.clone().vlan(20).bytes(), 0x8100, 10);
    lab.rx(A.port, double).dropped("a", "vlan_denied");
}

/// Rows: Linux `no_forwarding.sh: one_bridge_two_pvids`.
#[test]
fn one_switch_two_pvids() {
    // Nothing passes between ports whose untagged frames are in different VLANs, in either direction and
    // for any kind of destination.
    let groups = [Mac([1, 0, 0x5e, 0, 0, 251]), Mac([0x33, 0x33, 0, 0, 0, 1]), Mac::BROADCAST];
    for other in [Vlans::Access(2), trunk(Some(2), &[1000]), Vlans::Access(0)] {
        let mut lab = lab(&[Vlans::Access(1), other, Vlans::Access(1000)]);
        for (from, to) in [(A, B), (B, A)] {
            for to in [to.mac, Mac([2, 0, 0, 0, 0, 9])].into_iter().chain(groups) {
                let frame = ethernet(from.mac, to, BRIDGE, &[1; 46]);
                // The host's leg is part of the gateway.
                lab.rx(from.port, frame.clone()).tx(GATEWAY1.port, frame);
            }
        }
    }
}

#[test]
fn reserved_groups_stay_where_they_are_in_every_vlan() {
    let mut lab = with_trunk(Some(30));
    let mut default = lab_of_default();
    for last in 0..16 {
        let group = Mac([1, 0x80, 0xc2, 0, 0, last]);
        let frame = ethernet(C.mac, group, BRIDGE, &[1; 46]);
        lab.rx(C.port, frame.clone()).dropped("c", "link_local_group");
        for vlan in [1, 10, 20, 1000, 4094] {
            let frame = tagged(&frame, 0x8100, vlan);
            lab.rx(C.port, frame.clone()).dropped("c", "link_local_group");
            default.rx(C.port, frame).dropped("c", "link_local_group");
        }
    }
}

fn lab_of_default() -> Lab {
    Lab::new(topology())
}

#[test]
fn a_trunk_has_tags_and_access_ports_have_none() {
    let mut lab = with_trunk(None);
    let all = to_all(&A);
    lab.rx(A.port, &all)
        .flooded(&[B.port, GATEWAY1.port], &all)
        .tx(C.port, all.clone().vlan(10))
        .moved("replicated", 2);
    let hello = udp(&C, 1, &A, 2);
    lab.rx(C.port, hello.clone().vlan(10)).tx(A.port, &hello).moved("fdb.learned", 1);
    let back = udp(&A, 2, &C, 1);
    lab.rx(A.port, &back).tx(C.port, back.clone().vlan(10));
    // Nobody else is in VLAN 20 but the host's leg, which gets frames as they are.
    let other = to_all(&C).vlan(20);
    lab.rx(C.port, &other).tx(GATEWAY1.port, &other).moved("fdb.learned", 1);
    for frame in [hello.clone(), hello.clone().vlan(11), hello.clone().vlan(0)] {
        lab.rx(C.port, frame).dropped("c", "vlan_denied");
    }
    // From the trunk to all: untagged to access ports, tagged to who has tags.
    lab.reconfigure(|spec| put(spec, &B, &Vlans::All));
    let all = to_all(&C).vlan(10);
    lab.rx(C.port, &all)
        .flooded(&[B.port, GATEWAY1.port], &all)
        .tx(A.port, to_all(&C))
        .moved("replicated", 2);
}

#[test]
fn the_native_vlan_of_a_trunk_has_no_tag() {
    let mut lab = lab(&[Vlans::Access(5), Vlans::Access(10), trunk(Some(5), &[10])]);
    let (five, ten) = (to_all(&A), to_all(&B));
    lab.rx(A.port, &five).flooded(&[C.port, GATEWAY1.port], &five).moved("replicated", 1);
    lab.rx(B.port, &ten)
        .tx(GATEWAY1.port, &ten)
        .tx(C.port, ten.clone().vlan(10))
        .moved("replicated", 1);
    let known = udp(&C, 1, &A, 2);
    lab.rx(C.port, &known).tx(A.port, &known);
    // Its tag is no second way in: what is behind it would come out at a port with the same native VLAN.
    let hop = tagged(&known.clone().vlan(10).bytes(), 0x8100, 5);
    lab.rx(C.port, hop).dropped("c", "vlan_denied");
}

#[test]
fn reserved_and_empty_tags() {
    let mut lab = with_trunk(Some(10));
    let mut default = lab_of_default();
    let frame = udp(&C, 1, &A, 2);
    lab.rx(C.port, frame.clone().vlan(4095)).dropped("c", "vlan_invalid");
    default.rx(C.port, frame.clone().vlan(4095)).dropped("c", "vlan_invalid");
    // Priority-tagged is untagged, and leaves so, from every kind of port.
    let urgent = tagged(&frame.bytes(), 0x8100, 5 << 13);
    default.rx(C.port, urgent.clone()).tx(A.port, &frame);
    lab.rx(C.port, urgent.clone()).tx(A.port, &frame);
    let back = udp(&A, 1, &C, 2);
    lab.rx(A.port, tagged(&back.bytes(), 0x88a8, 0)).tx(C.port, &back);
    let twice = tagged(&urgent, 0x8100, 0);
    default.rx(C.port, twice).dropped("c", "vlan_invalid");
    lab.rx(C.port, tagged(&back.bytes(), 0x8100, 0)[..16].to_vec()).dropped("c", "runt");
    // The gateway hears it too.
    let question = arp_request(&A, GATEWAY1.ip);
    lab.rx(A.port, tagged(&question, 0x8100, 1 << 13))
        .tx(A.port, arp_reply(&GATEWAY1, &A))
        .answered();
    let partial = frame.long(1000);
    let mut wire = partial.partial();
    wire.bytes = tagged(&wire.bytes, 0x8100, 0);
    wire.vnet.csum_start += 4;
    lab.rx(C.port, wire).tx(A.port, partial.partial());
}

#[test]
fn the_outer_of_two_tags_decides() {
    let mut lab = lab(&[Vlans::Access(10), trunk(None, &[10]), trunk(None, &[10, 20])]);
    let inner = to_all(&C).vlan(7).bytes();
    for kind in [0x8100, 0x88a8] {
        let both = tagged(&inner, kind, 3 << 13 | 10);
        // Not to a port that would get the inner one for its first.
        lab.rx(C.port, both.clone())
            .flooded(&[B.port, GATEWAY1.port], both)
            .moved("replicated", 1)
            .tolerate("fdb.learned");
        let to_a = tagged(&udp(&C, 1, &A, 2).vlan(7).bytes(), kind, 10);
        lab.rx(C.port, to_a).dropped("c", "vlan_denied");
        lab.rx(C.port, tagged(&inner, kind, 11)).dropped("c", "vlan_denied");
    }
}

#[test]
fn offload_metadata_moves_with_the_tag() {
    let mut lab = with_trunk(None);
    lab.rx(C.port, to_all(&C).vlan(10)).moved("replicated", 2).moved("fdb.learned", 1).accept(&[
        A.port,
        B.port,
        GATEWAY1.port,
    ]);
    let there = tcp(&A, 40_000, &C, 80, ACK).long(20_000);
    let back = tcp(&C, 80, &A, 40_000, ACK).long(20_000);
    let short = |packet: &Packet| packet.clone().long(1000);
    let datagram = udp(&A, 1, &C, 2).long(9000);
    lab.rx(A.port, short(&there).partial()).tx(C.port, short(&there).vlan(10).partial());
    lab.rx(A.port, there.gso(1400)).tx(C.port, there.clone().vlan(10).gso(1400));
    lab.rx(A.port, datagram.gso(1400)).tx(C.port, datagram.clone().vlan(10).gso(1400));
    lab.rx(C.port, short(&back).vlan(10).partial()).tx(A.port, short(&back).partial());
    lab.rx(C.port, back.clone().vlan(10).gso(1400)).tx(A.port, back.gso(1400));
    // Ports that take plain frames only get right sums.
    lab.set_offloads(A.port, Offloads::NONE);
    lab.set_offloads(C.port, Offloads::NONE);
    lab.rx(A.port, short(&there).partial()).tx(C.port, short(&there).vlan(10));
    let pieces = there.segments(1400);
    let step = lab.rx(A.port, there.gso(1400)).moved("replicated", pieces.len() as i64 - 1);
    let step = pieces.iter().fold(step, |step, piece| step.tx(C.port, piece.clone().vlan(10)));
    drop(step);
    let pieces = back.segments(1400);
    let step = lab
        .rx(C.port, back.clone().vlan(10).gso(1400))
        .moved("replicated", pieces.len() as i64 - 1);
    drop(pieces.iter().fold(step, |step, piece| step.tx(A.port, piece)));
    let all = to_all(&C).long(1000);
    lab.rx(C.port, all.clone().vlan(10).partial())
        .tx(A.port, &all)
        .tx(B.port, all.partial())
        .tx(GATEWAY1.port, all.clone().vlan(10).partial())
        .moved("replicated", 2);
}

#[test]
fn an_access_port_has_the_gateway_and_the_way_out() {
    let mut spec = topology();
    put(&mut spec, &A, &Vlans::Access(10));
    spec.dnat.push(publish_tcp(7, 8080, &A, 80));
    let mut lab = Lab::new(spec);
    let question = arp_request(&A, GATEWAY1.ip);
    lab.rx(A.port, question).tx(A.port, arp_reply(&GATEWAY1, &A)).answered();
    let ping = echo(&A, &GATEWAY1, 7);
    lab.rx(A.port, &ping).tx(A.port, echo_reply(&GATEWAY1, &A, 7).may_fragment()).answered();
    let out = udp(&A, 40_000, &SERVER, 7000).via(GATEWAY1.mac);
    let outside = out.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
    let answer = udp(&SERVER, 7000, &UP, 40_000);
    let inside = answer.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac);
    lab.rx(A.port, &out).tx(UP.port, &outside).masqueraded(&out);
    for _ in 0..3 {
        lab.rx(UP.port, &answer).tx(A.port, &inside);
        lab.rx(A.port, &out).tx(UP.port, &outside);
    }
    // Not with a tag, be it the right one, once the way is remembered.
    lab.rx(A.port, out.clone().vlan(10)).dropped("a", "vlan_denied");
    let syn = tcp(&CLIENT, 5000, &UP, 8080, SYN);
    lab.rx(UP.port, &syn)
        .tx(A.port, syn.clone().dst(A.ip).dport(80).routed(GATEWAY1.mac, A.mac))
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", 40);
}

#[test]
fn the_gateway_is_no_way_between_vlans() {
    let mut lab = lab(&[Vlans::Access(10), Vlans::Access(10), Vlans::Access(20)]);
    lab.rx(A.port, udp(&A, 1, &C, 2).via(GATEWAY1.mac)).dropped("a", "vlan_denied");
    lab.rx(C.port, udp(&C, 1, &A, 2).via(GATEWAY1.mac)).dropped("c", "vlan_denied");
    // Nor to somebody whose VLAN is not known, who would be asked for in all of them.
    let nobody = udp(&A, 1, &C, 2).dst([10, 1, 0, 77].into()).via(GATEWAY1.mac);
    lab.rx(A.port, nobody).dropped("a", "vlan_denied");
    let same = udp(&A, 1, &B, 2).via(GATEWAY1.mac);
    lab.rx(A.port, &same).tx(B.port, same.clone().routed(GATEWAY1.mac, B.mac)).moved("conn.new", 1);
}

#[test]
fn a_trunk_without_untagged_frames_has_no_gateway() {
    let mut lab = with_trunk(None);
    let tagged = udp(&C, 1, &SERVER, 2).via(GATEWAY1.mac).vlan(10);
    lab.rx(C.port, tagged).dropped("c", "no_gateway").moved("fdb.learned", 1);
    lab.rx(C.port, udp(&C, 1, &SERVER, 2).via(GATEWAY1.mac)).dropped("c", "vlan_denied");
    // And the gateway has no way to it: it asks those who might hear it.
    let syn = tcp(&A, 5000, &C, 80, SYN).via(GATEWAY1.mac);
    lab.rx(A.port, &syn).dropped("a", "vlan_denied");
}

#[test]
fn the_host_reaches_every_vlan_without_tags() {
    let mut spec = topology();
    put(&mut spec, &A, &Vlans::Access(10));
    put(&mut spec, &B, &trunk(Some(20), &[10]));
    put(&mut spec, &C, &trunk(None, &[10]));
    let mut lab = Lab::new(spec);
    let all = ethernet(GATEWAY1.mac, Mac::BROADCAST, BRIDGE, &[1; 46]);
    lab.rx(GATEWAY1.port, all.clone()).flooded(&[A.port, B.port], all).moved("replicated", 1);
    for to in [A, B] {
        let frame = udp(&GATEWAY1, 1, &to, 2);
        lab.rx(GATEWAY1.port, &frame).tx(to.port, &frame);
    }
    lab.rx(GATEWAY1.port, udp(&GATEWAY1, 1, &C, 2)).dropped("host", "vlan_denied");
    // Somebody of another VLAN who takes the MAC there draws nothing.
    lab.reconfigure(without_guard);
    lab.reconfigure(|spec| put(spec, &C, &Vlans::All));
    let thief = ethernet(A.mac, Mac::BROADCAST, BRIDGE, &[1; 46]);
    lab.rx(C.port, thief).moved("fdb.learned", 1).accept(&[GATEWAY1.port]);
    let frame = udp(&GATEWAY1, 1, &A, 2);
    lab.rx(GATEWAY1.port, &frame).tx(A.port, &frame);
}

/// A VLAN is a network of its own: who passes frames on from one to another makes no loop.
#[test]
fn an_endpoint_s_mac_is_its_own_in_its_vlan() {
    let mut lab = lab(&[Vlans::Access(10), Vlans::Access(20), trunk(None, &[10, 30])]);
    lab.reconfigure(without_guard);
    let frame = ethernet(A.mac, Mac::BROADCAST, BRIDGE, &[1; 46]);
    lab.rx(C.port, tagged(&frame, 0x8100, 10)).dropped("c", "endpoint_mac");
    let elsewhere = tagged(&frame, 0x8100, 30);
    lab.rx(C.port, elsewhere.clone()).moved("fdb.learned", 1).only_balanced();
}

/// Also where it has no untagged frames, and so no VLAN of those.
#[test]
fn a_trunk_s_mac_is_its_own_in_each_of_its_vlans() {
    let trunks = [trunk(None, &[10, 20]), trunk(Some(30), &[10, 40])];
    let mut lab = lab(&[Vlans::Access(10), trunks[0].clone(), trunks[1].clone()]);
    lab.reconfigure(without_guard);
    let from = |host: &Host| ethernet(host.mac, Mac::BROADCAST, BRIDGE, &[1; 46]);
    lab.rx(A.port, from(&B)).dropped("a", "endpoint_mac");
    lab.rx(A.port, from(&C)).dropped("a", "endpoint_mac");
    lab.rx(C.port, tagged(&from(&B), 0x8100, 10)).dropped("c", "endpoint_mac");
    lab.rx(B.port, tagged(&from(&C), 0x8100, 10)).dropped("b", "endpoint_mac");
    // Elsewhere it may have been passed on to.
    for frame in [from(&B), tagged(&from(&B), 0x8100, 40)] {
        lab.rx(C.port, frame).moved("fdb.learned", 1).only_balanced();
    }
    lab.rx(B.port, tagged(&from(&C), 0x8100, 20)).moved("fdb.learned", 1).only_balanced();
}

#[test]
fn nobody_draws_a_stranger_s_packets_into_another_vlan() {
    let mut spec = topology();
    without_guard(&mut spec);
    put(&mut spec, &A, &Vlans::Access(10));
    put(&mut spec, &B, &trunk(None, &[10]));
    put(&mut spec, &C, &Vlans::Access(20));
    let mut lab = Lab::new(spec);
    let stranger = Host { mac: Mac([2, 0, 0, 0, 0, 0x77]), ip: Ipv4Addr::new(10, 1, 0, 77), ..C };
    let link = Link::Network(NET1);
    let neighbors = &lab.plane.tables().neighbors;
    neighbors.confirm(link, IpAddr::V4(stranger.ip), stranger.mac, true, lab.now);
    let asks = udp(&stranger, 5000, &SERVER, 53).via(GATEWAY1.mac);
    lab.rx(C.port, &asks).masqueraded(&asks).moved("fdb.learned", 1).take_one(UP.port);
    let thief = tagged(&ethernet(stranger.mac, Mac::BROADCAST, BRIDGE, &[1; 46]), 0x8100, 10);
    lab.rx(B.port, thief).moved("fdb.learned", 1).only_balanced();
    let answer = udp(&SERVER, 53, &UP, 5000);
    let inside = answer.clone().dst(stranger.ip).routed(GATEWAY1.mac, stranger.mac);
    lab.rx(UP.port, &answer).tx(C.port, inside);
}

#[test]
fn the_guard_sees_behind_tags() {
    let mut lab = with_trunk(Some(30));
    for vlan in [10, 20] {
        let spoofed = udp(&C, 1, &A, 2).src(A.ip).vlan(vlan);
        lab.rx(C.port, spoofed).dropped("c", "spoofed_ipv4");
        let double = tagged(&udp(&C, 1, &A, 2).src(A.ip).vlan(7).bytes(), 0x88a8, vlan);
        lab.rx(C.port, double).dropped("c", "spoofed_ipv4");
        let mac = udp(&C, 1, &A, 2).macs(B.mac, A.mac).vlan(vlan);
        lab.rx(C.port, mac).dropped("c", "endpoint_mac");
        let claim = tagged(&arp_reply(&Host { ip: B.ip, ..C }, &A), 0x8100, vlan);
        lab.rx(C.port, claim).dropped("c", "spoofed_arp");
        let offer = udp(&C, 67, &A, 68).vlan(vlan);
        lab.rx(C.port, offer).dropped("c", "dhcp_untrusted");
    }
}

#[test]
fn no_shortcut_leads_into_another_vlan() {
    // Frames that lose a tag are not what is remembered of their MACs.
    let mut lab = lab(&[Vlans::Access(10), Vlans::All, Vlans::All]);
    let frame = udp(&C, 1, &A, 2);
    lab.rx(C.port, frame.clone().vlan(10)).tx(A.port, &frame).moved("fdb.learned", 1);
    for _ in 0..4 {
        lab.rx(C.port, frame.clone().vlan(10)).tx(A.port, &frame);
        lab.rx(C.port, &frame).flooded(&[B.port, GATEWAY1.port], &frame).moved("replicated", 1);
    }
    let train = (0..8).map(|_| (C.port, frame.clone().into())).collect();
    let step = lab.batch(train).moved("replicated", 8);
    drop((0..8).fold(step, |step, _| step.flooded(&[B.port, GATEWAY1.port], &frame)));
    // What is remembered between two ports ends when one changes its VLAN.
    let between = udp(&B, 1, &C, 2);
    for _ in 0..4 {
        lab.rx(B.port, &between).tx(C.port, &between);
    }
    lab.reconfigure(|spec| put(spec, &C, &Vlans::Access(10)));
    for _ in 0..4 {
        lab.rx(B.port, &between).tx(GATEWAY1.port, &between);
    }
    // Nor does a place in the FDB that somebody entered for VLAN 0.
    lab.plane.fdb_add(NET1, 0, Mac([2, 0, 0, 0, 0, 7]), C.port).unwrap();
    let there = ethernet(B.mac, Mac([2, 0, 0, 0, 0, 7]), BRIDGE, &[1; 46]);
    for _ in 0..4 {
        lab.rx(B.port, there.clone()).dropped("b", "vlan_denied");
    }
    // Those of one VLAN remember.
    lab.reconfigure(|spec| put(spec, &B, &Vlans::Access(10)));
    for _ in 0..4 {
        lab.rx(B.port, &between).tx(C.port, &between);
    }
}

#[test]
fn an_endpoint_s_mac_is_known_in_its_vlan() {
    let mut lab = lab(&[Vlans::Access(10), Vlans::Access(20), trunk(Some(30), &[10])]);
    let places = |lab: &mut Lab| {
        let entries = lab.plane.fdb_entries().into_iter();
        let local = entries.filter(|e| e.kind == FdbKind::Local && e.network == NET1);
        let mut places: Vec<(PortId, u16)> = local.map(|e| (e.port, e.vlan)).collect();
        places.sort_unstable();
        places
    };
    let host = (GATEWAY1.port, 0);
    assert_eq!(places(&mut lab), [(A.port, 10), (B.port, 20), (C.port, 30), host]);
    lab.reconfigure(|spec| {
        put(spec, &A, &Vlans::All);
        put(spec, &B, &Vlans::Access(21));
        put(spec, &C, &trunk(None, &[10]));
    });
    assert_eq!(places(&mut lab), [(A.port, 0), (B.port, 21), (C.port, 0), host]);
}

/// Fragments of both families from A to C, the last one first, one again, and one over two others; that
/// of the middle is not there.
fn fragments(from: &Host) -> Vec<Vec<u8>> {
    let packet = udp(from, 1, &C, 2).may_fragment().long(1800);
    let mut frames: Vec<_> = in_pieces(&packet, 512).into_iter().rev().collect();
    frames.extend([frames[0].clone(), piece(&packet.bytes(), 256, 768)]);
    frames.extend(in_pieces6(&packet.v6(), 512, 7).into_iter().rev());
    frames.remove(1);
    frames
}

/// Rows: Open vSwitch `conntrack: IPv4 fragmentation with vlan, cvlan`.
#[test]
fn fragments_behind_tags_go_on_as_they_are() {
    let liar = Host { ip: B.ip, ..A };
    for tags in [&[(0x8100, 5)][..], &[(0x88a8, 9), (0x8100, 5)]] {
        let behind_tags = |frame: Vec<u8>| {
            tags.iter().rev().fold(frame, |frame, (kind, tci)| tagged(&frame, *kind, *tci))
        };
        let mut lab = Lab::new(dual());
        // Who is where in that VLAN.
        for host in [A, C] {
            let hello = lab.rx(host.port, behind_tags(to_all(&host).bytes()));
            hello.moved("fdb.learned", 1).moved("replicated", 2).accept(&[
                A.port,
                B.port,
                C.port,
                GATEWAY1.port,
            ]);
        }
        for frame in fragments(&A).into_iter().map(behind_tags) {
            lab.rx(A.port, frame.clone()).tx(C.port, frame);
        }
        for frame in fragments(&liar) {
            let reason = if frame[12] == 8 { "spoofed_ipv4" } else { "spoofed_ipv6" };
            lab.rx(A.port, behind_tags(frame)).dropped("a", reason);
        }
        assert!(lab.plane.tables().fragments.is_empty());
    }
    // From and to a port where the tag is put on and taken off.
    let mut lab = with_trunk(None);
    lab.rx(C.port, to_all(&C).vlan(10)).moved("fdb.learned", 1).moved("replicated", 2).accept(&[
        A.port,
        B.port,
        GATEWAY1.port,
    ]);
    // That network has no IPv6 subnet.
    let is_from_no_subnet = |frame: &Vec<u8>| frame[12] == 0x86;
    for frame in fragments(&A) {
        let step = lab.rx(A.port, frame.clone());
        if is_from_no_subnet(&frame) {
            step.dropped("a", "spoofed_ipv6");
        } else {
            step.tx(C.port, tagged(&frame, 0x8100, 10));
        }
    }
    let own = udp(&A, 1, &C, 2).v6().src6(A.link_local()).long(1800);
    for frame in in_pieces6(&own, 512, 9).into_iter().rev() {
        lab.rx(A.port, frame.clone()).tx(C.port, tagged(&frame, 0x8100, 10));
    }
    assert!(lab.plane.tables().fragments.is_empty());
}
