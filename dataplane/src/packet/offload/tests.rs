//! What real senders deliver passes and comes out as it went in; what only an attacker sends does
//! not pass.

use proptest::prelude::*;

use super::super::fixtures::{
    assert_checksums, echo_request, frame, gso, make_partial, slow_sum, tagged, tcp, tcp6, udp,
    udp6,
};
use super::super::parse::parse;
use super::*;
use crate::io::vnet_hdr::{F_DATA_VALID, GSO_UDP};

fn admitted(mut frame: Frame) -> Result<Frame, DropReason> {
    let headers = parse(frame.bytes()).unwrap();
    admit(&mut frame, &headers).map(|()| frame)
}

/// Admits the frame after `change` to its virtio-net header.
fn with(frame: &Frame, change: impl FnOnce(&mut VnetHdr)) -> Result<Frame, DropReason> {
    let mut copy = Frame::new();
    copy.clone_from_frame(frame);
    change(&mut copy.vnet);
    admitted(copy)
}

fn assert_refused(frame: &Frame, change: impl FnOnce(&mut VnetHdr), why: &str) {
    let result = with(frame, change);
    assert_eq!(result.map(|frame| frame.vnet), Err(DropReason::VnetInvalid), "{why}");
}

/// TCP flags of an untagged TCP/IPv4 frame set to `flags`.
fn with_flags(mut bytes: Vec<u8>, flags: u8) -> Vec<u8> {
    bytes[47] = flags;
    bytes
}

#[test]
fn what_kernels_deliver_passes_unchanged() {
    let big = vec![7; 40_000];
    let tags: [&[(u16, u16)]; 3] = [&[], &[(0x8100, 5)], &[(0x88a8, 5), (0x8100, 6)]];
    for tags in tags {
        let frames = [
            gso(&tagged(&tcp(&big), tags), GSO_TCPV4, 1448),
            gso(&tagged(&tcp6(&big), tags), GSO_TCPV6, 1428),
            gso(&tagged(&udp(&big), tags), GSO_UDP_L4, 1200),
            gso(&tagged(&udp6(&big), tags), GSO_UDP_L4, 1200),
            gso(&tagged(&with_flags(tcp(&big), 0x90), tags), GSO_TCPV4 | GSO_ECN, 1448),
        ];
        for frame in frames {
            let before = frame.vnet;
            let after = admitted(frame).unwrap().vnet;
            assert_eq!(after, before, "{tags:?}");
        }
        for bytes in [tcp(b"x"), udp(b"x"), tcp6(b"x"), udp6(b"x"), tcp(b""), udp(&[0; 1472])] {
            let mut partial = frame(&tagged(&bytes, tags));
            make_partial(&mut partial);
            let before = partial.vnet;
            assert_eq!(admitted(partial).unwrap().vnet, before);
        }
        let mut plain = frame(&tagged(&tcp(b"x"), tags));
        plain.vnet.flags = F_DATA_VALID;
        assert_eq!(admitted(plain).unwrap().vnet, VnetHdr::default(), "a claim is dropped");
    }
}

#[test]
fn a_connection_with_the_smallest_mss_passes() {
    // MSS 48, of which 12 bytes are timestamps: 36 bytes of payload, 20 + 12 of header.
    let mut bytes = tcp(&vec![1; 60_012]);
    bytes[46] = 0x80;
    let mut frame = gso(&bytes, GSO_TCPV4, 36);
    frame.vnet.hdr_len += 12;
    let before = frame.vnet;
    assert_eq!(with(&frame, |_| ()).unwrap().vnet, before);
    assert_refused(&frame, |vnet| vnet.gso_size = 35, "below the smallest MSS");
}

#[test]
fn small_segments_that_a_kernel_merged_pass() {
    let merged = gso(&tcp(&[1; 640]), GSO_TCPV4, 10);
    assert_eq!(with(&merged, |_| ()).unwrap().vnet, merged.vnet);
    let more = gso(&tcp(&[1; 641]), GSO_TCPV4, 10);
    assert_refused(&more, |_| (), "65, more than one poll gives");
}

#[test]
fn hints_are_derived_anew() {
    let frame = gso(&tcp(&[1; 5000]), GSO_TCPV4, 1448);
    assert_eq!(with(&frame, |vnet| vnet.hdr_len = 9000).unwrap().vnet, frame.vnet);
    assert_eq!(with(&frame, |vnet| vnet.hdr_len = 0).unwrap().vnet, frame.vnet);
    // CWR and the ECN bit go together, whatever was said.
    let ecn = with(&frame, |vnet| vnet.gso_type |= GSO_ECN).unwrap();
    assert_eq!(ecn.vnet.gso_type, GSO_TCPV4);
    let cwr = gso(&with_flags(tcp(&[1; 5000]), 0x90), GSO_TCPV4, 1448);
    assert_eq!(with(&cwr, |_| ()).unwrap().vnet.gso_type, GSO_TCPV4 | GSO_ECN);
    // A frame of one segment is none to be cut.
    let small = with(&frame, |vnet| vnet.gso_size = 5000).unwrap();
    assert!(!small.vnet.is_gso() && small.vnet.needs_csum());
    assert_eq!((small.vnet.gso_size, small.vnet.hdr_len), (0, 0));
}

#[test]
fn contradictions_are_refused() {
    let tso = gso(&tcp(&[1; 9000]), GSO_TCPV4, 1448);
    assert_refused(&tso, |vnet| vnet.gso_size = 1, "9000 segments");
    assert_refused(&tso, |vnet| vnet.gso_size = 0, "no size");
    assert_refused(&tso, |vnet| vnet.gso_size = 0xffff, "GSO_BY_FRAGS");
    assert_refused(&tso, |vnet| vnet.gso_type = GSO_TCPV6, "TSO6 on IPv4");
    assert_refused(&tso, |vnet| vnet.gso_type = GSO_UDP_L4, "USO on TCP");
    assert_refused(&tso, |vnet| vnet.gso_type = GSO_UDP, "UFO");
    assert_refused(&tso, |vnet| vnet.gso_type = 2, "an unknown type");
    assert_refused(&tso, |vnet| vnet.gso_type = GSO_ECN, "ECN without a type");
    assert_refused(&tso, |vnet| vnet.flags = 0, "GSO with a complete checksum");
    assert_refused(&tso, |vnet| vnet.csum_start = 40, "checksum starts within the TCP header");
    assert_refused(&tso, |vnet| vnet.csum_start = 14, "checksum starts at the IP header");
    assert_refused(&tso, |vnet| vnet.csum_start = 60_000, "checksum starts beyond the frame");
    assert_refused(&tso, |vnet| vnet.csum_offset = 6, "UDP's checksum offset on TCP");

    let uso = gso(&udp(&[1; 9000]), GSO_UDP_L4, 1200);
    assert_refused(&uso, |vnet| vnet.gso_type |= GSO_ECN, "ECN on UDP");
    assert_refused(&uso, |vnet| vnet.gso_size = 70, "129 datagrams");
    assert!(with(&uso, |vnet| vnet.gso_size = 71).is_ok(), "127 datagrams");

    for flags in [0x02, 0x12, 0x04, 0x14] {
        let opening = gso(&with_flags(tcp(&[1; 9000]), flags), GSO_TCPV4, 1448);
        assert_refused(&opening, |_| (), "SYN or RST in segments");
    }
    let mut trailer = gso(&tcp(&[1; 9000]), GSO_TCPV4, 1448);
    trailer.append(b"more");
    assert_refused(&trailer, |_| (), "bytes behind the packet");
    let mut short = udp(&[1; 9000]);
    short[38..40].copy_from_slice(&8000u16.to_be_bytes());
    assert_refused(&gso(&short, GSO_UDP_L4, 1200), |_| (), "datagram shorter than the packet");
}

#[test]
fn partial_checksums_need_a_transport_header() {
    let mut partial = frame(&tcp(b"hello"));
    make_partial(&mut partial);
    let vnet = partial.vnet;
    let changed = |at: usize, value: u8| {
        let mut bytes = partial.bytes().to_vec();
        bytes[at] = value;
        let mut frame = frame(&bytes);
        frame.vnet = vnet;
        frame
    };
    assert_refused(&changed(20, 0x20), |_| (), "a first fragment");
    assert_refused(&changed(21, 0x08), |_| (), "a later fragment");
    assert_refused(&changed(46, 0x10), |_| (), "a broken TCP header");
    assert_refused(&changed(23, 132), |_| (), "a CRC of SCTP where TCP has its checksum");
    assert_refused(&changed(13, 0x06), |_| (), "ARP");
    assert_refused(&changed(16, 0xff), |_| (), "a broken IP header");
    let mut echo = frame(&echo_request(b"x"));
    echo.vnet = VnetHdr { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 2, ..vnet };
    assert_refused(&echo, |_| (), "ICMP, which nobody leaves partial");
}

#[test]
fn long_packets_need_gso() {
    let mut bytes = tcp(b"");
    bytes.resize(14 + 65_536, 7);
    bytes[16..18].copy_from_slice(&[0, 0]);
    assert_refused(&frame(&bytes), |_| (), "65,536 bytes in one packet");
    let mut partial = frame(&bytes);
    partial.vnet =
        VnetHdr { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..VnetHdr::default() };
    assert_refused(&partial, |_| (), "the same with a partial checksum");
    assert!(with(&partial, |vnet| (vnet.gso_type, vnet.gso_size) = (GSO_TCPV4, 1448)).is_ok());
    assert_refused(
        &partial,
        |vnet| (vnet.gso_type, vnet.gso_size) = (GSO_TCPV4, 65_496),
        "segments of 65,536 bytes",
    );
}

#[test]
fn the_inner_checksum_of_a_tunnel_is_completed() {
    // VXLAN: an Ethernet frame in UDP, its own TCP checksum left open.
    let mut inner = frame(&tcp(b"inner"));
    make_partial(&mut inner);
    let mut payload = vec![8, 0, 0, 0, 0, 0, 5, 0];
    payload.extend_from_slice(inner.bytes());
    let mut outer = frame(&udp(&payload));
    let inner_at = 42 + 8;
    outer.vnet = VnetHdr {
        flags: F_NEEDS_CSUM,
        csum_start: 50 + inner.vnet.csum_start,
        csum_offset: 16,
        ..VnetHdr::default()
    };
    let done = with(&outer, |_| ()).unwrap();
    assert_eq!(done.vnet, VnetHdr::default());
    assert_checksums(&done.bytes()[inner_at..]);
    assert_eq!(done.bytes()[..inner_at], outer.bytes()[..inner_at]);
    assert_refused(&outer, |vnet| vnet.csum_start = 41, "within the outer UDP header");
    assert_refused(&outer, |vnet| vnet.csum_offset = 60_000, "field beyond the packet");
    assert_refused(&outer, |vnet| vnet.csum_start = 60_000, "start beyond the packet");
    assert_refused(&outer, |vnet| vnet.gso_type = GSO_TCPV4, "GSO of a tunnel");
}

#[test]
fn the_longest_packet_is_a_segment_or_the_packet() {
    let measure = |frame: &Frame| longest_packet(frame, &parse(frame.bytes()).unwrap());
    let tso = with(&gso(&tagged(&tcp(&[1; 5000]), &[(0x8100, 5)]), GSO_TCPV4, 1448), |_| ());
    assert_eq!(measure(&tso.unwrap()), 1448 + 40);
    let uso6 = with(&gso(&udp6(&[1; 5000]), GSO_UDP_L4, 1200), |_| ());
    assert_eq!(measure(&uso6.unwrap()), 1200 + 48);
    let mut padded = tcp(b"");
    padded.resize(60, 0);
    assert_eq!(measure(&frame(&padded)), 40);
    assert_eq!(measure(&frame(&tcp6(b"x"))), 61);
    let mut llc = vec![0; 64];
    llc[13] = 50;
    assert_eq!(measure(&frame(&llc)), 50);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is said about whatever frame: what passes is consistent, and no byte outside one
    /// checksum field has changed.
    #[test]
    fn what_passes_is_consistent(
        shape in 0usize..6, size in 0usize..3000, cut in proptest::option::of(14usize..200),
        change in proptest::option::of((12usize..60, any::<u8>())),
        flags in 0u8..4, gso_type in prop_oneof![Just(0u8), Just(1), Just(4), Just(5), any::<u8>()],
        hdr_len: u16, gso_size in prop_oneof![0u16..100, any::<u16>()],
        csum_start in prop_oneof![Just(34u16), Just(54), Just(38), 0u16..100, any::<u16>()],
        csum_offset in prop_oneof![Just(16u16), Just(6), 0u16..20, any::<u16>()],
    ) {
        let payload = vec![0x5a; size];
        let mut bytes = match shape {
            0 => tcp(&payload),
            1 => udp(&payload),
            2 => tcp6(&payload),
            3 => udp6(&payload),
            4 => echo_request(&payload),
            _ => tagged(&tcp(&payload), &[(0x8100, 5)]),
        };
        if let Some((at, value)) = change && at < bytes.len() {
            bytes[at] = value;
        }
        bytes.truncate(cut.unwrap_or(bytes.len()));
        let Ok(headers) = parse(&bytes) else { return Ok(()) };
        let mut frame = frame(&bytes);
        frame.vnet = VnetHdr { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset };
        if admit(&mut frame, &headers).is_err() {
            return Ok(());
        }
        let vnet = frame.vnet;
        let changed: Vec<_> =
            (0..bytes.len()).filter(|&at| frame.bytes()[at] != bytes[at]).collect();
        if let [first, .., last] = changed[..] {
            prop_assert_eq!(last - first, 1);
        }
        if !vnet.needs_csum() {
            prop_assert_eq!(vnet, VnetHdr::default());
            return Ok(());
        }
        prop_assert!(changed.is_empty());
        let field = usize::from(vnet.csum_start + vnet.csum_offset);
        prop_assert!(field + 2 <= frame.len());
        prop_assert!(matches!(vnet.csum_offset, 6 | 16));
        if vnet.is_gso() {
            prop_assert!(usize::from(vnet.hdr_len) < frame.len());
            let payload = frame.len() - usize::from(vnet.hdr_len);
            let segments = payload.div_ceil(usize::from(vnet.gso_size));
            prop_assert!((2..=TCP_MAX_SEGMENTS).contains(&segments));
            prop_assert!(longest_packet(&frame, &headers) <= 65_575);
        } else {
            prop_assert_eq!((vnet.hdr_len, vnet.gso_size, vnet.gso_type), (0, 0, 0));
        }
        // Admitting is idempotent: it holds for what it made itself.
        prop_assert_eq!(admit(&mut frame, &headers), Ok(()));
        prop_assert_eq!(frame.vnet, vnet);
        prop_assert_eq!(slow_sum(frame.bytes()), slow_sum(&bytes));
    }
}
