//! What one port may do to all others: floods, MACs without end, MACs that move with every frame.

use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::engine::FdbKind;
use dataplane::packet::types::{Mac, PortId, tcp_flags};
use tests::lab::{
    A, B, C, D, GATEWAY1, GATEWAY2, Lab, NEIGHBOR, NET1, NET2, UP, small, topology, without_guard,
};
use tests::packet::{Host, Wire, arp_reply, ethernet, tcp};

const BRIDGE: u16 = 0x88b5; // IEEE 802 local experimental
const NOBODY: Mac = Mac([2, 0, 0, 0, 0, 0x77]);
const STRANGER: Mac = Mac([2, 0, 0, 0, 0, 0x55]);

fn plain(from: Mac, to: Mac) -> Vec<u8> {
    ethernet(from, to, BRIDGE, &[7; 46])
}

fn limited(per_second: u32) -> Lab {
    let mut spec = topology();
    spec.networks[0].storm_limit = per_second;
    Lab::new(spec)
}

fn unguarded(options: &EngineOptions) -> Lab {
    let mut spec = topology();
    without_guard(&mut spec);
    Lab::with(options, spec)
}

/// How many of `count` frames reach B.
fn reach_b(lab: &mut Lab, port: PortId, frame: &Wire, count: usize) -> usize {
    let mut reached = 0;
    for _ in 0..count {
        let sent = lab.plane.port_stats(B.port).unwrap().tx_frames;
        lab.rx(port, frame).only_balanced();
        reached += (lab.plane.port_stats(B.port).unwrap().tx_frames - sent) as usize;
    }
    reached
}

/// Rows: IEEE L11 storm.
#[test]
fn a_port_floods_so_many_frames_a_second() {
    for to in [NOBODY, Mac::BROADCAST, Mac([1, 0, 0x5e, 0, 0, 9])] {
        let mut lab = limited(10);
        let frame: Wire = plain(A.mac, to).into();
        for _ in 0..10 {
            lab.rx(A.port, &frame)
                .flooded(&[B.port, C.port, GATEWAY1.port], &frame)
                .moved("replicated", 2);
        }
        lab.rx(A.port, &frame).dropped("a", "storm_limited");
        lab.after(Duration::from_millis(300));
        assert_eq!(reach_b(&mut lab, A.port, &frame, 20), 3);
        lab.after(Duration::from_secs(60));
        assert_eq!(reach_b(&mut lab, A.port, &frame, 100), 10);
    }
}

#[test]
fn the_limit_is_the_port_s_own_and_unicast_has_none() {
    let mut lab = limited(10);
    let all = |from: Mac| Wire::from(plain(from, Mac::BROADCAST));
    assert_eq!(reach_b(&mut lab, A.port, &all(A.mac), 50), 10);
    assert_eq!(reach_b(&mut lab, C.port, &all(C.mac), 50), 10);
    assert_eq!(reach_b(&mut lab, GATEWAY1.port, &all(GATEWAY1.mac), 50), 10, "the host's too");
    let unicast = Wire::from(plain(A.mac, B.mac));
    assert_eq!(reach_b(&mut lab, A.port, &unicast, 50), 50);
    // The gateway answers as ever: nothing is flooded.
    let question = tests::packet::arp_request(&A, GATEWAY1.ip);
    let answer = arp_reply(&GATEWAY1, &A);
    lab.rx(A.port, question).tx(A.port, answer).answered();
}

#[test]
fn without_a_limit_there_is_none() {
    let mut lab = limited(0);
    let frame = Wire::from(plain(A.mac, Mac::BROADCAST));
    assert_eq!(reach_b(&mut lab, A.port, &frame, 500), 500);
}

#[test]
fn a_frame_that_stands_for_many_counts_as_many() {
    let mut lab = limited(20);
    let large = tcp(&A, 1000, &B, 80, tcp_flags::ACK).long(20_000).macs(A.mac, NOBODY).gso(1000);
    assert_eq!(reach_b(&mut lab, A.port, &large, 5), 1);
    let small = Wire::from(plain(A.mac, Mac::BROADCAST));
    assert_eq!(reach_b(&mut lab, A.port, &small, 5), 0);
    lab.after(Duration::from_millis(250));
    assert_eq!(reach_b(&mut lab, A.port, &small, 10), 5);
}

#[test]
fn each_network_has_its_own_limit() {
    let mut lab = limited(1);
    // Nobody attached it: what is sent there is counted.
    let other = Host { port: PortId(77), mac: NOBODY, ip: [10, 2, 0, 9].into() };
    lab.reconfigure(|spec| spec.ports.push(tests::lab::endpoint(&other, NET2)));
    lab.set_down(other.port);
    let frame = plain(D.mac, Mac::BROADCAST);
    for _ in 0..20 {
        lab.rx(D.port, frame.clone()).moved("drop.tx_port_down", 1);
    }
}

/// Rows: IEEE L8 limit; Open vSwitch `mac-learning.at`.
#[test]
fn one_port_s_macs_do_not_push_out_another_s() {
    let mut lab = unguarded(&EngineOptions { fdb_per_port: 16, fdb_limit: 64, ..small() });
    lab.rx(C.port, plain(STRANGER, B.mac))
        .tx(B.port, plain(STRANGER, B.mac))
        .moved("fdb.learned", 1);
    for n in 0..2000u64 {
        if n % 100 == 0 {
            lab.now = lab.now + Duration::from_secs(1);
        }
        let other = plain(Mac::from_u64(0x0200_0001_0000 + n), B.mac);
        let step = lab.rx(A.port, other.clone()).tx(B.port, other);
        step.moved(if n < 16 { "fdb.learned" } else { "fdb.evictions" }, 1);
    }
    // Still found, and nobody else sees it.
    let to = plain(B.mac, STRANGER);
    lab.rx(B.port, to.clone()).tx(C.port, to);
    let entries = lab.plane.fdb_entries();
    let learned =
        |port| entries.iter().filter(move |e| e.kind == FdbKind::Learned && e.port == port);
    assert_eq!((learned(A.port).count(), learned(C.port).count()), (16, 1));
    // The newest of them are known.
    let to = plain(B.mac, Mac::from_u64(0x0200_0001_0000 + 1999));
    lab.rx(B.port, to.clone()).tx(A.port, to);
}

#[test]
fn a_network_s_limit_of_addresses_is_its_own() {
    let mut lab = unguarded(&small());
    lab.reconfigure(|spec| spec.networks[0].fdb_limit = Some(8));
    let stranger = |n: u64| plain(Mac::from_u64(0x0200_0001_0000 + n), B.mac);
    for n in 0..6 {
        lab.rx(A.port, stranger(n)).tx(B.port, stranger(n)).moved("fdb.learned", 1);
    }
    for n in 100..102 {
        lab.rx(C.port, stranger(n)).tx(B.port, stranger(n)).moved("fdb.learned", 1);
    }
    // The one with the most of that network loses, whoever asks.
    for (port, n) in [(C.port, 102), (A.port, 6), (C.port, 103)] {
        lab.rx(port, stranger(n)).tx(B.port, stranger(n)).moved("fdb.evictions", 1);
    }
    for n in 0..20 {
        lab.rx(D.port, plain(Mac::from_u64(0x0200_0002_0000 + n), GATEWAY2.mac))
            .moved("fdb.learned", 1)
            .only_balanced();
    }
    let entries = lab.plane.fdb_entries();
    let learned =
        |port| entries.iter().filter(move |e| e.kind == FdbKind::Learned && e.port == port).count();
    assert_eq!([A.port, C.port, D.port].map(learned), [4, 4, 20]);
    let limits = lab.plane.limits();
    let shown = limits.iter().find(|limit| limit.name == "fdb_per_network").unwrap();
    assert_eq!((shown.current, shown.peak, shown.limit), (8, 8, 8));
    lab.reconfigure(|spec| spec.networks[0].fdb_limit = None);
    lab.rx(A.port, stranger(7)).tx(B.port, stranger(7)).moved("fdb.learned", 1);
    assert!(lab.plane.limits().iter().all(|limit| limit.name != "fdb_per_network"));
}

#[test]
fn tags_are_no_way_round_the_limit() {
    // With one MAC: an address is learned in each VLAN.
    let mut lab = Lab::with(&EngineOptions { fdb_per_port: 8, ..small() }, topology());
    for vlan in 1..100u16 {
        let frame = tests::packet::udp(&A, 1, &B, 2).vlan(vlan).bytes();
        lab.rx(A.port, frame).only_balanced();
    }
    let entries = lab.plane.fdb_entries();
    assert_eq!(entries.iter().filter(|e| e.kind == FdbKind::Learned).count(), 8);
}

#[test]
fn a_mac_that_moves_with_every_frame_stays_for_a_second() {
    let mut lab = unguarded(&small());
    let hello = plain(STRANGER, B.mac);
    let from = |lab: &mut Lab, port| {
        lab.rx(port, hello.clone()).tx(B.port, hello.clone()).moved("fdb.moves", 1);
    };
    lab.rx(A.port, hello.clone()).tx(B.port, hello.clone()).moved("fdb.learned", 1);
    for _ in 0..8 {
        from(&mut lab, C.port);
        from(&mut lab, A.port);
    }
    for _ in 0..2 {
        lab.rx(C.port, hello.clone()).dropped("c", "mac_flap");
        lab.rx(A.port, hello.clone()).tx(B.port, hello.clone());
        let to = plain(B.mac, STRANGER);
        lab.rx(B.port, to.clone()).tx(A.port, to);
        lab.now = lab.now + Duration::from_secs(1);
    }
    from(&mut lab, C.port);
}

#[test]
fn a_static_entry_does_not_flap() {
    let mut lab = unguarded(&small());
    lab.plane.fdb_add(NET1, 0, STRANGER, A.port).unwrap();
    let hello = plain(STRANGER, B.mac);
    for _ in 0..100 {
        lab.rx(C.port, hello.clone()).tx(B.port, hello.clone());
        lab.rx(A.port, hello.clone()).tx(B.port, hello.clone());
    }
    let to = plain(B.mac, STRANGER);
    lab.rx(B.port, to.clone()).tx(A.port, to);
}

#[test]
fn our_own_mac_from_a_wire_of_ours_is_a_loop() {
    let mut lab = Lab::default();
    let ours = Host { mac: UP.mac, ..NEIGHBOR };
    lab.rx(UP.port, arp_reply(&ours, &UP)).dropped("up", "own_mac");
    lab.rx(UP.port, ethernet(UP.mac, Mac::BROADCAST, 0x88b5, &[7; 46])).dropped("up", "own_mac");
}
