//! Senders without segmentation offload: what waits for one device at the same time is merged where
//! that device takes it, and every counter says so. Which segments are merged is shown beside the
//! code (`dataplane/src/packet/gro`).

use dataplane::EngineOptions;
use dataplane::io::Offloads;
use dataplane::packet::types::tcp_flags::{ACK, PSH, SYN};
use dataplane::packet::types::{Mac, PortId};
use tests::lab::{A, B, C, GATEWAY1, Lab, ROUTER, SERVER, UP, small, topology};
use tests::packet::{Host, Packet, Wire, tcp, udp};

const MSS: u16 = 1448;

/// What a container without offloads sends for `data`.
fn cut(port: PortId, data: &Packet) -> Vec<(PortId, Wire)> {
    data.segments(MSS.into()).iter().map(|segment| (port, segment.into())).collect()
}

fn to_b(from: &Host) -> Packet {
    tcp(from, 1, &B, 2, ACK | PSH).long(10_000)
}

#[test]
fn segments_for_one_device_leave_as_one_frame() {
    let mut lab = Lab::default();
    let data = to_b(&A);
    lab.batch(cut(A.port, &data)).tx(B.port, data.gso(MSS)).moved("merged", 6);
    // Also in the middle of other traffic, and of two senders to one receiver.
    let (from_c, other) = (to_b(&C), udp(&A, 5, &B, 6).long(100));
    let mut frames = cut(A.port, &data);
    for (at, segment) in cut(C.port, &from_c).into_iter().enumerate() {
        frames.insert(2 * at, segment);
    }
    frames.insert(4, (A.port, (&other).into()));
    lab.batch(frames)
        .tx(B.port, from_c.gso(MSS))
        .tx(B.port, data.gso(MSS))
        .tx(B.port, other)
        .moved("merged", 12);
}

/// Rows: Linux `udpgro*.sh`.
#[test]
fn trains_of_datagrams_leave_as_one_frame() {
    let mut lab = Lab::default();
    let (data, other) = (udp(&A, 1, &B, 2).long(400), udp(&A, 5, &B, 6).long(100));
    let mut frames: Vec<_> =
        data.segments(100).iter().map(|datagram| (A.port, Wire::from(datagram))).collect();
    frames.push((A.port, (&other).into()));
    lab.batch(frames).tx(B.port, data.gso(100)).tx(B.port, other).moved("merged", 3);
    let out = |packet: &Packet| packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
    let data = udp(&A, 40_000, &SERVER, 53).via(GATEWAY1.mac).long(400);
    let datagrams = data.segments(100);
    let frames = datagrams.iter().map(|datagram| (A.port, datagram.into())).collect();
    let step = lab.batch(frames).tx(UP.port, out(&data).gso(100)).moved("merged", 3);
    drop(step.masqueraded(&datagrams[0]));
    assert_eq!(lab.connection().packets, [4, 0]);
    // Each has its own counters before it is merged; a device that refuses the frame makes one drop.
    lab.keep_datagrams_apart(UP.port);
    let frames = datagrams.iter().map(|datagram| (A.port, datagram.into())).collect();
    let mut step = lab.batch(frames);
    for datagram in &datagrams {
        step = step.tx(UP.port, out(datagram));
    }
    drop(step);
}

#[test]
fn nat_comes_before_merging() {
    let mut lab = Lab::default();
    let syn = tcp(&A, 40_000, &SERVER, 80, SYN).via(GATEWAY1.mac);
    let out = |packet: &Packet| packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
    lab.rx(A.port, &syn).tx(UP.port, out(&syn)).masqueraded(&syn);
    let answer = tcp(&SERVER, 80, &UP, 40_000, SYN | ACK);
    lab.rx(UP.port, &answer).tx(A.port, answer.dst(A.ip).routed(GATEWAY1.mac, A.mac));
    let data = tcp(&A, 40_000, &SERVER, 80, ACK).via(GATEWAY1.mac).long(20_000);
    lab.batch(cut(A.port, &data)).tx(UP.port, out(&data).gso(MSS)).moved("merged", 13);
    let back = tcp(&SERVER, 80, &UP, 40_000, ACK).long(20_000);
    let inside = back.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac);
    lab.batch(cut(UP.port, &back)).tx(A.port, inside.gso(MSS)).moved("merged", 13);
}

#[test]
fn a_device_that_takes_no_large_frames_gets_what_was_sent() {
    let mut lab = Lab::default();
    let cases = [
        Offloads::NONE,
        Offloads { tso4: false, ..Offloads::ALL },
        Offloads { csum: false, ..Offloads::ALL },
    ];
    for offloads in cases {
        lab.set_offloads(B.port, offloads);
        let data = to_b(&A);
        let step = lab.batch(cut(A.port, &data));
        let _ =
            data.segments(MSS.into()).iter().fold(step, |step, segment| step.tx(B.port, segment));
    }
}

#[test]
fn turned_off_nothing_is_merged() {
    let mut lab = Lab::with(&EngineOptions { gro: false, ..small() }, topology());
    let data = to_b(&A);
    let step = lab.batch(cut(A.port, &data));
    let _ = data.segments(MSS.into()).iter().fold(step, |step, segment| step.tx(B.port, segment));
}

#[test]
fn a_flood_is_not_merged() {
    let mut lab = Lab::default();
    let data = to_b(&A).via(Mac([2, 0, 0, 0, 0, 0x77])).long(2000);
    let ports = [B.port, C.port, GATEWAY1.port];
    let step = lab.batch(cut(A.port, &data)).moved("replicated", 4);
    let _ =
        data.segments(MSS.into()).iter().fold(step, |step, segment| step.flooded(&ports, segment));
}

/// What the device refuses is one frame by then, and counted as one.
#[test]
fn a_merged_frame_that_is_refused_is_one_drop() {
    let mut lab = Lab::default();
    lab.set_full(B.port);
    let data = to_b(&A);
    lab.batch(cut(A.port, &data))
        .moved("merged", 6)
        .moved("b.tx_drop.tx_queue_full", 1)
        .moved("drop.tx_queue_full", 1);
}

#[test]
fn a_damaged_segment_stays_alone_and_damaged() {
    let mut lab = Lab::default();
    let data = to_b(&A).long(4 * 1448);
    let mut frames = cut(A.port, &data);
    let last = frames[1].1.bytes.len() - 1;
    frames[1].1.bytes[last] ^= 1;
    let damaged = frames[1].1.clone();
    let rest = data.segments(MSS.into());
    let merged = rest[2].clone().long(2 * 1448).flags(ACK | PSH);
    lab.batch(frames)
        .tx(B.port, &rest[0])
        .tx(B.port, damaged)
        .tx(B.port, sent(&merged, &data))
        .moved("merged", 1)
        .sums_may_be_wrong();
}

/// The last two segments of `data` in one frame.
fn sent(merged: &Packet, data: &Packet) -> Wire {
    let payload = data.bytes().split_off(54 + 2 * 1448);
    merged.clone().payload(&payload).gso(MSS)
}
