//! Fragments of IPv6 between extension headers, and such that end before their headers do.

use super::ipv6::trusted;
use tests::fragments::in_pieces6;
use tests::lab::{A, GATEWAY1, Lab, ROUTER, SERVER, UP};
use tests::packet::{Packet, Wire, speak_ipv6, udp};

/// Of an extension header: its length, and options that say nothing.
const PAD: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];
/// The extension headers' numbers (RFC 8200).
const HOP_BY_HOP: u8 = 0;
const DESTINATION: u8 = 60;
/// Ethernet and IPv6 header.
const HEADERS: usize = 54;

fn lab() -> Lab {
    speak_ipv6();
    Lab::default()
}

/// From A to the server.
fn datagram() -> Packet {
    udp(&A, 4000, &SERVER, 53).via(GATEWAY1.mac)
}

/// The frame with these extension headers before what is behind its IPv6 header.
fn with_headers(frame: &[u8], kinds: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    for kind in kinds.iter().rev() {
        let header = [&[bytes[20]][..], &PAD].concat();
        bytes.splice(HEADERS..HEADERS, header);
        bytes[20] = *kind;
    }
    resized(bytes)
}

/// The frame with the length that it has.
fn resized(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(bytes.len() - HEADERS).unwrap();
    bytes[18..20].copy_from_slice(&length.to_be_bytes());
    bytes
}

#[test]
fn headers_before_and_behind_the_fragment_header_go_along() {
    for (before, behind) in [
        (&[][..], 1),
        (&[], 3),
        (&[HOP_BY_HOP], 0),
        (&[HOP_BY_HOP, DESTINATION], 0),
        (&[HOP_BY_HOP], 2),
        (&[HOP_BY_HOP, DESTINATION, DESTINATION], 3),
    ] {
        for reversed in [false, true] {
            let packet = (0..behind)
                .fold(datagram().long(1600), |packet, _| packet.extension(DESTINATION, &PAD));
            let pieces = |packet: &Packet| -> Vec<Wire> {
                let pieces = in_pieces6(packet, 600, 99);
                pieces.iter().map(|piece| with_headers(piece, before).into()).collect()
            };
            let mut lab = lab();
            let (inside, out) =
                (pieces(&packet), pieces(&packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac)));
            assert_eq!(inside.len(), 3);
            if reversed {
                for piece in inside[1..].iter().rev() {
                    lab.rx(A.port, piece).moved("queued", 1);
                }
            }
            let first = lab.rx(A.port, &inside[0]).moved("conn.new", 1);
            let length = inside[0].bytes.len() as i64 - 14;
            let first = first.moved("masquerade.1.packets", 1).moved("masquerade.1.bytes", length);
            if reversed {
                // Those that waited, as they came.
                let all = out[..1].iter().chain(out[1..].iter().rev());
                let all = all.fold(first, |step, piece| step.tx(UP.port, piece));
                drop(all.moved("queued", -2));
            } else {
                drop(first.tx(UP.port, &out[0]));
                for (piece, out) in inside.iter().zip(&out).skip(1) {
                    lab.rx(A.port, piece).tx(UP.port, out);
                }
            }
        }
    }
}

#[test]
fn fragments_that_end_before_their_headers_do_are_dropped() {
    // The guard refuses some of them before.
    let mut lab = lab();
    lab.reconfigure(trusted);
    let first = &in_pieces6(&datagram().long(1600), 600, 99)[0];
    let behind = &in_pieces6(&datagram().extension(DESTINATION, &PAD).long(1600), 600, 99)[0];
    for (frame, kept) in [
        // Without all of the fragment header, and with nothing behind it.
        (first, 0),
        (first, 4),
        (first, 8),
        // Without all of the UDP header.
        (first, 12),
        // Within the header behind the fragment header, at its end, and within UDP's.
        (behind, 12),
        (behind, 16),
        (behind, 20),
    ] {
        let cut = resized(frame[..HEADERS + kept].to_vec());
        lab.rx(A.port, cut).dropped("a", "ipv6_malformed");
    }
    assert!(lab.plane.tables().fragments.is_empty());
}
