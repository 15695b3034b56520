//! Whatever is cut: the pieces are sound by themselves and put together give what was cut.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::super::fixtures::{
    CLIENT, SERVER, assert_checksums, echo_request, ethernet, frame, gso, ipv4, make_partial,
    slow_l4_sum, slow_sum, tagged, tcp, tcp6, udp, udp6,
};
use super::super::offload;
use super::super::parse::parse;
use super::*;
use crate::io::vnet_hdr::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4};
use crate::packet::types::PortId;

fn cut(frame: &Frame, pool: &mut Pool) -> Result<Vec<Frame>, DropReason> {
    let headers = parse(frame.bytes()).unwrap();
    let mut out = Vec::new();
    let count = segment(frame, &headers, pool, &mut out)?;
    assert_eq!(count, out.len());
    Ok(out)
}

fn fragments(frame: &Frame, mtu: u16, pool: &mut Pool) -> Result<Vec<Frame>, DropReason> {
    let headers = parse(frame.bytes()).unwrap();
    let mut out = Vec::new();
    let count = fragment(frame, &headers, mtu, pool, &mut out)?;
    assert_eq!(count, out.len());
    Ok(out)
}

/// An untagged IPv4 frame without "don't fragment", which etherparse sets.
fn fragmentable(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[20] = 0;
    seal_ipv4_header(&mut bytes, 14, 20);
    bytes
}

#[test]
fn a_partial_checksum_is_completed() {
    for bytes in [tcp(b"hello"), udp(b"odd"), tcp6(b"hello"), udp6(b""), udp(b"")] {
        let bytes = tagged(&bytes, &[(0x8100, 5)]);
        let mut partial = frame(&bytes);
        make_partial(&mut partial);
        assert_ne!(partial.bytes(), bytes);
        let headers = parse(partial.bytes()).unwrap();
        complete_checksum(&mut partial, &headers);
        assert_eq!(partial.bytes(), bytes);
        assert_eq!(partial.vnet, VnetHdr::default());
    }
}

#[test]
fn padding_and_bytes_behind_a_datagram_do_not_count() {
    let mut bytes = udp(b"hi");
    bytes.resize(60, 0xee);
    let mut partial = frame(&bytes);
    make_partial(&mut partial);
    let headers = parse(partial.bytes()).unwrap();
    complete_checksum(&mut partial, &headers);
    assert_eq!(partial.bytes(), bytes);

    // A datagram of ten bytes in a packet with room for twelve.
    let mut bytes = udp(b"hi..");
    bytes[38..40].copy_from_slice(&10u16.to_be_bytes());
    let mut partial = frame(&bytes);
    make_partial(&mut partial);
    let headers = parse(partial.bytes()).unwrap();
    complete_checksum(&mut partial, &headers);
    assert_eq!(slow_l4_sum(&CLIENT, &SERVER, 17, &partial.bytes()[34..44]), 0xffff);
}

#[test]
fn a_complete_checksum_is_left_alone() {
    let mut bytes = tcp(b"hello");
    bytes[50] ^= 1;
    let mut wrong = frame(&bytes);
    let headers = parse(&bytes).unwrap();
    complete_checksum(&mut wrong, &headers);
    assert_eq!(wrong.bytes(), bytes);
}

/// Rows: Linux `tso.sh`.
#[test]
fn tcp_segments_one_by_one() {
    let payload: Vec<u8> = (0..=255).cycle().take(3500).collect();
    let mut bytes = tcp(&payload);
    // CWR, ACK, PSH, FIN.
    bytes[47] = 0x99;
    bytes[18..20].copy_from_slice(&0xffffu16.to_be_bytes());
    let mut whole = gso(&bytes, GSO_TCPV4, 1448);
    whole.ingress = PortId(9);
    let mut pool = Pool::new(8);
    let out = cut(&whole, &mut pool).unwrap();
    assert_eq!(pool.available(), 5);
    let seen: Vec<_> = out
        .iter()
        .map(|piece| {
            assert_checksums(piece.bytes());
            assert_eq!((piece.ingress, piece.vnet), (PortId(9), VnetHdr::default()));
            let ip = ipv4(&parse(piece.bytes()).unwrap());
            let sequence = u32::from_be_bytes(*chunk(piece.bytes(), 38).unwrap());
            (ip.total_len, ip.id, sequence.wrapping_sub(0x1234_5678), piece.bytes()[47])
        })
        .collect();
    assert_eq!(
        seen,
        [(1488, 0xffff, 0, 0x90), (1488, 0, 1448, 0x10), (644, 1, 2896, 0x19)],
        "length, identification, sequence number, flags: CWR first, PSH and FIN last"
    );
    let rejoined: Vec<u8> = out.iter().flat_map(|piece| piece.bytes()[54..].to_vec()).collect();
    assert_eq!(rejoined, payload);
}

#[test]
fn a_frame_that_is_no_gso_frame_becomes_one_frame() {
    let bytes = tcp(b"");
    let mut partial = frame(&bytes);
    make_partial(&mut partial);
    let out = cut(&partial, &mut Pool::new(1)).unwrap();
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].bytes(), bytes);
}

#[test]
fn an_empty_pool_leaves_everything_as_it_was() {
    let whole = gso(&fragmentable(tcp(&[1; 9000])), GSO_TCPV4, 1000);
    let mut pool = Pool::new(8);
    assert_eq!(cut(&whole, &mut pool).unwrap_err(), DropReason::NoBuffer);
    assert_eq!(pool.available(), 8);
    let echo = frame(&fragmentable(echo_request(&[1; 9000])));
    assert_eq!(fragments(&echo, 1000, &mut pool).unwrap_err(), DropReason::NoBuffer);
    assert_eq!(pool.available(), 8);
    // Nine segments fit, their fragments do not.
    let mut pool = Pool::new(12);
    let mut out = vec![Frame::new()];
    let headers = parse(whole.bytes()).unwrap();
    let result = fragment(&whole, &headers, 600, &mut pool, &mut out);
    assert_eq!(result, Err(DropReason::NoBuffer));
    assert_eq!((pool.available(), out.len()), (12, 1));
}

#[test]
fn what_is_neither_tcp_nor_udp_is_not_segmented() {
    let mut echo = frame(&echo_request(b"x"));
    echo.vnet.gso_size = 8;
    assert_eq!(cut(&echo, &mut Pool::new(8)).unwrap_err(), DropReason::VnetInvalid);
}

#[test]
fn fragments_one_by_one() {
    let bytes = fragmentable(echo_request(&[5; 3000]));
    let mut pool = Pool::new(8);
    let out = fragments(&frame(&bytes), 1500, &mut pool).unwrap();
    let seen: Vec<_> = out
        .iter()
        .map(|piece| {
            assert_eq!(slow_sum(&piece.bytes()[14..34]), 0xffff);
            let ip = ipv4(&parse(piece.bytes()).unwrap());
            (ip.total_len, ip.frag_offset, ip.more_fragments, ip.id)
        })
        .collect();
    assert_eq!(seen, [(1500, 0, true, 0), (1500, 1480, true, 0), (68, 2960, false, 0)]);
}

#[test]
fn dont_fragment_is_obeyed() {
    let mut bytes = udp(&[5; 3000]);
    bytes[20] = 0x40;
    let mut pool = Pool::new(8);
    let result = fragments(&frame(&bytes), 1500, &mut pool);
    assert_eq!(result.unwrap_err(), DropReason::MtuExceeded);
    // A packet that fits passes, and the bit with it.
    bytes.truncate(14 + 1500);
    bytes[16..18].copy_from_slice(&1500u16.to_be_bytes());
    let out = fragments(&frame(&bytes), 1500, &mut pool).unwrap();
    assert_eq!((out.len(), out[0].bytes()[20]), (1, 0x40));
    let result = fragments(&frame(&fragmentable(udp(&[5; 300]))), 27, &mut pool);
    assert_eq!(result.unwrap_err(), DropReason::MtuExceeded, "no room for eight bytes");
}

#[test]
fn options_are_copied_or_blanked() {
    let options = [0x94, 4, 0, 0, 7, 7, 4, 1, 2, 3, 4, 1];
    let mut bytes = Vec::new();
    ethernet()
        .ip(etherparse::IpHeaders::Ipv4(
            etherparse::Ipv4Header {
                options: options.into(),
                time_to_live: 9,
                dont_fragment: false,
                source: CLIENT,
                destination: SERVER,
                ..Default::default()
            },
            etherparse::Ipv4Extensions::default(),
        ))
        .udp(1, 2)
        .write(&mut bytes, &[9; 1000])
        .unwrap();
    bytes[20] = 0;
    let out = fragments(&frame(&bytes), 600, &mut Pool::new(4)).unwrap();
    assert_eq!(out[0].bytes()[34..46], options);
    assert_eq!(
        out[1].bytes()[34..46],
        [0x94, 4, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
        "router alert is copied, record route is not"
    );
    for piece in &out {
        assert_eq!(slow_sum(&piece.bytes()[14..46]), 0xffff);
        assert!(piece.len() <= 614);
    }
}

#[test]
fn broken_options_end_the_walk() {
    for options in [[7, 0, 5, 5], [7, 9, 5, 5], [0, 7, 2, 2], [5, 1, 1, 7]] {
        let mut bytes = options;
        blank_uncopied_options(&mut bytes);
        assert_eq!(bytes, options);
    }
    let mut bytes = [1, 7, 2, 7];
    blank_uncopied_options(&mut bytes);
    assert_eq!(bytes, [1, 1, 1, 7]);
}

#[test]
fn a_gso_frame_over_the_mtu_is_segmented_first() {
    let whole = gso(&fragmentable(udp(&[3; 4000])), GSO_UDP_L4, 1400);
    let mut pool = Pool::new(16);
    let out = fragments(&whole, 1000, &mut pool).unwrap();
    let shape: Vec<_> = out
        .iter()
        .map(|piece| {
            let ip = ipv4(&parse(piece.bytes()).unwrap());
            (ip.id, ip.frag_offset, ip.more_fragments, ip.total_len)
        })
        .collect();
    assert_eq!(
        shape,
        [
            (0, 0, true, 996),
            (0, 976, false, 452),
            (1, 0, true, 996),
            (1, 976, false, 452),
            (2, 0, true, 996),
            (2, 976, false, 252),
        ]
    );
    for pair in out.chunks(2) {
        assert_checksums(&join_fragments(pair));
    }
    assert_eq!(pool.available(), 10, "segments went back");
}

#[test]
fn a_fragment_beyond_the_end_of_any_datagram_is_refused() {
    let mut bytes = udp(&[5; 3000]);
    bytes[20..22].copy_from_slice(&0x1fffu16.to_be_bytes());
    let result = fragments(&frame(&bytes), 1500, &mut Pool::new(8));
    assert_eq!(result.unwrap_err(), DropReason::Ipv4Malformed);
}

/// The packet that the fragments, in order, were cut from; flags and checksum as in a packet.
fn join_fragments(pieces: &[Frame]) -> Vec<u8> {
    let first = ipv4(&parse(pieces[0].bytes()).unwrap());
    let (l3, l4) = (first.l3_offset(), usize::from(first.l4_offset));
    let mut joined = pieces[0].bytes()[..l4].to_vec();
    let last = pieces.len() - 1;
    for (index, piece) in pieces.iter().enumerate() {
        let ip = ipv4(&parse(piece.bytes()).unwrap());
        assert_eq!(slow_sum(&piece.bytes()[l3..l4]), 0xffff);
        assert_eq!(ip.id, first.id);
        assert_eq!(usize::from(ip.frag_offset), joined.len() - l4);
        assert_eq!(ip.more_fragments, index != last);
        assert_eq!(piece.len(), ip.end(), "nothing behind the fragment");
        joined.extend_from_slice(&piece.bytes()[l4..]);
    }
    let total = u16::try_from(joined.len() - l3).unwrap();
    joined[l3 + 2..l3 + 4].copy_from_slice(&total.to_be_bytes());
    joined[l3 + 6] = 0;
    seal_ipv4_header(&mut joined, l3, l4 - l3);
    joined
}

/// A GSO frame of any kind, its payload and its segment size.
fn any_gso() -> impl Strategy<Value = (Vec<u8>, Frame)> {
    (0usize..4, 1usize..8000, 64u16..3000, any::<u8>(), 0usize..3).prop_map(
        |(shape, size, mss, seed, tags)| {
            let payload: Vec<u8> = (0..size)
                .map(|at| seed.wrapping_mul(31).wrapping_add(u8::try_from(at * at % 251).unwrap()))
                .collect();
            let bytes = match shape {
                0 => tcp(&payload),
                1 => tcp6(&payload),
                2 => udp(&payload),
                _ => udp6(&payload),
            };
            let bytes = tagged(&bytes, &[(0x88a8, 1), (0x8100, 2)][..tags]);
            let mss = if shape < 2 { mss } else { mss.max(u16::try_from(size / 100).unwrap()) };
            let gso_type = [GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_UDP_L4][shape];
            (payload, gso(&bytes, gso_type, mss))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Rows: Linux `udpgso.sh`.
    #[test]
    fn segments_reassemble((payload, mut whole) in any_gso()) {
        let headers = parse(whole.bytes()).unwrap();
        prop_assert_eq!(offload::admit(&mut whole, &headers), Ok(()));
        let longest = offload::longest_packet(&whole, &headers);
        let mut pool = Pool::new(130);
        let out = cut(&whole, &mut pool).unwrap();
        prop_assert_eq!(pool.available() + out.len(), 130);
        let mut rejoined = Vec::new();
        for piece in &out {
            assert_checksums(piece.bytes());
            let sliced = SlicedPacket::from_ethernet(piece.bytes()).unwrap();
            let total = match sliced.net {
                Some(NetSlice::Ipv4(ip)) => usize::from(ip.header().total_len()),
                Some(NetSlice::Ipv6(ip)) => usize::from(ip.header().payload_length()) + 40,
                _ => 0,
            };
            prop_assert_eq!(total + usize::from(headers.l3), piece.len());
            prop_assert!(total <= longest);
            match sliced.transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    let start = if headers.ethertype == 0x86dd { 0xffff_fff0u32 } else { 0x1234_5678 };
                    let expected = start.wrapping_add(u32::try_from(rejoined.len()).unwrap());
                    prop_assert_eq!(tcp.sequence_number(), expected);
                    rejoined.extend_from_slice(tcp.payload());
                    prop_assert_eq!(tcp.psh(), rejoined.len() == payload.len());
                }
                Some(TransportSlice::Udp(udp)) => rejoined.extend_from_slice(udp.payload()),
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            }
        }
        prop_assert_eq!(rejoined, payload);
    }

    #[test]
    fn fragments_reassemble(
        size in 0usize..4000, mtu in 68u16..2000, shape in 0usize..3, partial: bool, tags in 0usize..3,
    ) {
        let payload: Vec<u8> = (0..=255).cycle().take(size).collect();
        let bytes = [udp(&payload), tcp(&payload), echo_request(&payload)][shape].clone();
        let bytes = fragmentable(bytes);
        let bytes = tagged(&bytes, &[(0x88a8, 1), (0x8100, 2)][..tags]);
        let mut whole = frame(&bytes);
        if partial && shape != 2 {
            make_partial(&mut whole);
        }
        let out = fragments(&whole, mtu, &mut Pool::new(90)).unwrap();
        let longest = usize::from(mtu) + usize::from(parse(&bytes).unwrap().l3);
        prop_assert!(out.iter().all(|piece| piece.len() <= longest));
        prop_assert_eq!(join_fragments(&out), bytes.clone());

        // Cut again, as a router with a smaller MTU does: still the same datagram.
        let mut pool = Pool::new(180);
        let again: Vec<Frame> = out
            .iter()
            .flat_map(|piece| fragments(piece, 68, &mut pool).unwrap())
            .collect();
        prop_assert_eq!(join_fragments(&again), bytes);
    }
}
