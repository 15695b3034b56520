//! BIG TCP: frames that are longer than IP's length field can say, as Linux makes them.

use proptest::prelude::*;

use super::super::fixtures::{assert_checksums, frame, gso, slow_sum, tagged, tcp, tcp6};
use super::super::offload::{admit, has_jumbo_option, longest_packet};
use super::super::parse::parse;
use super::*;
use crate::frame::MAX_FRAME_LEN;

/// How a kernel says that the length field is too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// A total length of zero.
    V4,
    /// A payload length of zero (Linux 7).
    V6,
    /// The same, and a jumbo payload option (Linux up to 6).
    V6Jumbo,
}

const FAMILIES: [Family; 3] = [Family::V4, Family::V6, Family::V6Jumbo];

impl Family {
    const fn gso_type(self) -> u8 {
        if matches!(self, Self::V4) { GSO_TCPV4 } else { GSO_TCPV6 }
    }

    /// A frame with this payload and all flags that only one segment may have.
    fn bytes(self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = if self == Self::V4 { tcp(b"") } else { tcp6(b"") };
        // CWR, ACK, PSH, FIN.
        let flags = bytes.len() - 7;
        bytes[flags] = 0x99;
        bytes.extend_from_slice(payload);
        match self {
            Self::V4 => {
                bytes[16..18].fill(0);
                bytes[24..26].fill(0);
                let sum = !slow_sum(&bytes[14..34]);
                bytes[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            Self::V6 => bytes[18..20].fill(0),
            Self::V6Jumbo => {
                bytes[18..20].fill(0);
                bytes[20] = 0;
                let length = u32::try_from(bytes.len() - 54 + 8).unwrap().to_be_bytes();
                let option = [[6, 0, 0xc2, 4], length].concat();
                bytes.splice(54..54, option);
            }
        }
        bytes
    }
}

fn payload(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

/// The frame admitted, then cut by `how`.
fn cut_by(
    how: fn(&Frame, &Headers, &mut Pool, &mut Vec<Frame>) -> Result<usize, DropReason>,
    mut whole: Frame,
    pool: &mut Pool,
) -> Vec<Frame> {
    let headers = parse(whole.bytes()).unwrap();
    let before = whole.vnet;
    let mut expected = before;
    if Transport::of(&headers).unwrap().behind_jumbo_option(whole.bytes()).is_some() {
        expected.hdr_len -= 8;
    }
    admit(&mut whole, &headers).unwrap();
    assert_eq!(whole.vnet, expected, "what a kernel makes is taken as it is");
    let ip = if whole.bytes()[usize::from(headers.l3)] >> 4 == 4 { 40 } else { 60 };
    let mtu = ip + usize::from(whole.vnet.gso_size);
    assert_eq!(longest_packet(&whole, &headers), mtu, "the option is no part of a segment");
    assert_eq!(has_jumbo_option(&whole), expected.hdr_len != before.hdr_len);
    let mut out = Vec::new();
    assert_eq!(how(&whole, &headers, pool, &mut out), Ok(out.len()));
    out
}

fn gso_of(family: Family, payload: &[u8], size: u16, tags: &[(u16, u16)]) -> Frame {
    let mut whole = gso(&tagged(&family.bytes(payload), tags), family.gso_type(), size);
    whole.vnet.gso_type |= GSO_ECN;
    whole
}

/// Payload of a piece.
fn payload_of(piece: &Frame) -> Vec<u8> {
    let headers = parse(piece.bytes()).unwrap();
    let transport = Transport::of(&headers).unwrap();
    assert_eq!(transport.end, piece.len(), "the length field holds");
    piece.bytes()[transport.payload..].to_vec()
}

#[test]
fn a_long_frame_becomes_frames_that_every_device_takes() {
    let sent = payload(180_000);
    for family in FAMILIES {
        for tags in [&[][..], &[(0x8100, 7)]] {
            let whole = gso_of(family, &sent, 1448, tags);
            let pieces = cut_by(split, whole, &mut Pool::new(3));
            // 45 segments are the most that 65,535 bytes hold.
            assert_eq!(pieces.len(), 3);
            let rejoined: Vec<u8> = pieces.iter().flat_map(payload_of).collect();
            assert_eq!(rejoined, sent, "{family:?}");
            let headers = parse(pieces[0].bytes()).unwrap();
            let first = Transport::of(&headers).unwrap();
            let seen: Vec<_> = pieces
                .iter()
                .map(|piece| {
                    assert!(piece.len() <= 65_535);
                    let sequence = *chunk(piece.bytes(), first.start + TCP_SEQUENCE).unwrap();
                    let flags = piece.bytes()[first.start + TCP_FLAGS];
                    (u32::from_be_bytes(sequence), flags, piece.vnet.gso_type)
                })
                .collect();
            let start = seen[0].0;
            let kind = family.gso_type();
            assert_eq!(
                seen,
                [
                    (start, 0x90, kind | GSO_ECN),
                    (start.wrapping_add(65_160), 0x10, kind),
                    (start.wrapping_add(130_320), 0x19, kind)
                ],
                "{family:?}: sequence number, flags, type"
            );
            for mut piece in pieces {
                // What comes out is again what a kernel could have made, down to the partial sum.
                let bytes = piece.bytes().to_vec();
                let headers = parse(&bytes).unwrap();
                let before = piece.vnet;
                admit(&mut piece, &headers).unwrap();
                assert_eq!(piece.vnet, before, "{family:?}");
                assert_eq!(gso(&bytes, family.gso_type(), 1448).bytes(), bytes, "{family:?}");
                for segment in cut_by(segment, piece, &mut Pool::new(64)) {
                    assert_checksums(segment.bytes());
                }
            }
        }
    }
}

#[test]
fn what_is_not_long_or_lies_is_shown_as_it_is() {
    let long = gso_of(Family::V4, &payload(70_000), 1448, &[]);
    let (mut plain, mut without_size) = (frame(long.bytes()), frame(long.bytes()));
    (plain.vnet.gso_type, without_size.vnet) = (0, VnetHdr { gso_size: 0, ..long.vnet });
    let short = gso(&tcp(&payload(5000)), GSO_TCPV4, 1448);
    let mut other = frame(long.bytes());
    other.vnet = long.vnet;
    other.bytes_mut()[23] = 17;
    for shown in [plain, without_size, short, other] {
        assert!(!show_split(&shown, |_, _| panic!("shown in pieces")));
    }
}

#[test]
fn identifications_count_segments() {
    let whole = gso_of(Family::V4, &payload(150_000), 1448, &[]);
    let id = read_u16(whole.bytes(), 18).unwrap();
    let pieces = cut_by(split, whole, &mut Pool::new(3));
    let seen: Vec<u16> = pieces.iter().map(|piece| read_u16(piece.bytes(), 18).unwrap()).collect();
    assert_eq!(seen, [id, id.wrapping_add(45), id.wrapping_add(90)]);
}

#[test]
fn a_rest_of_one_segment_is_no_gso_frame() {
    let whole = gso_of(Family::V6Jumbo, &payload(2 * 45 * 1428 + 1), 1428, &[]);
    let pieces = cut_by(split, whole, &mut Pool::new(3));
    let rest = &pieces[2].vnet;
    assert_eq!((rest.gso_type, rest.gso_size, rest.hdr_len), (0, 0, 0));
    assert!(rest.needs_csum());
}

#[test]
fn without_room_nothing_is_taken() {
    let whole = gso_of(Family::V4, &payload(150_000), 1448, &[]);
    let headers = parse(whole.bytes()).unwrap();
    let (mut pool, mut out) = (Pool::new(2), Vec::new());
    assert_eq!(split(&whole, &headers, &mut pool, &mut out), Err(DropReason::NoBuffer));
    assert_eq!((pool.available(), out.len()), (2, 0));
}

#[test]
fn a_long_frame_is_believed_only_as_segments() {
    for family in FAMILIES {
        let bytes = family.bytes(&payload(100_000));
        let mut plain = frame(&bytes);
        let headers = parse(&bytes).unwrap();
        assert_eq!(admit(&mut plain, &headers), Err(DropReason::VnetInvalid), "{family:?}: whole");
        let mut partial = gso(&bytes, 0, 0);
        assert_eq!(admit(&mut partial, &headers), Err(DropReason::VnetInvalid), "{family:?}");
        let mut other = gso(&bytes, crate::io::vnet_hdr::GSO_UDP_L4, 1400);
        assert_eq!(admit(&mut other, &headers), Err(DropReason::VnetInvalid), "{family:?}: UDP");
    }
    // A jumbo payload option in a packet that needs none: the packet ends before it.
    let mut short = Family::V6Jumbo.bytes(&payload(1000));
    let Net::Ipv6(ip) = parse(&short).unwrap().net else { panic!("not IPv6") };
    assert_eq!((ip.total_len, ip.l4), (40, super::super::headers::L4::Truncated));
    short.truncate(62);
    let mut gso_of_short = frame(&short);
    gso_of_short.vnet = gso_of(Family::V6Jumbo, &payload(70_000), 1428, &[]).vnet;
    let headers = parse(&short).unwrap();
    assert_eq!(admit(&mut gso_of_short, &headers), Err(DropReason::VnetInvalid));
}

/// Linux takes the option out of longer packets only, so that the segments here have it.
#[test]
fn a_jumbo_option_in_a_packet_that_needs_none_counts_as_a_part_of_its_segments() {
    let sent = payload(30_000);
    let mut bytes = Family::V6Jumbo.bytes(&sent);
    let length = u16::try_from(bytes.len() - 54).unwrap().to_be_bytes();
    bytes[18..20].copy_from_slice(&length);
    let mut whole = gso(&bytes, GSO_TCPV6, 1432);
    let headers = parse(whole.bytes()).unwrap();
    admit(&mut whole, &headers).unwrap();
    assert!(!has_jumbo_option(&whole));
    assert_eq!(longest_packet(&whole, &headers), 40 + 8 + 20 + 1432);
    let (mut pool, mut out) = (Pool::new(32), Vec::new());
    super::segment(&whole, &headers, &mut pool, &mut out).unwrap();
    assert_eq!(out.iter().map(|piece| piece.len() - 14).max(), Some(40 + 8 + 20 + 1432));
    assert_eq!(out.iter().flat_map(payload_of).collect::<Vec<_>>(), sent);
}

#[test]
fn a_frame_that_fills_a_buffer_may_have_been_cut() {
    let mut cut = gso_of(Family::V4, &payload(MAX_FRAME_LEN - 54 - 8), 1448, &[(0x8100, 1); 2]);
    assert_eq!(cut.len(), MAX_FRAME_LEN);
    let headers = parse(cut.bytes()).unwrap();
    assert_eq!(admit(&mut cut, &headers), Err(DropReason::Oversize));
    let sent = payload(MAX_FRAME_LEN - 54 - 8 - 1);
    let whole = gso_of(Family::V4, &sent, 1448, &[(0x8100, 1); 2]);
    let pieces = cut_by(split, whole, &mut Pool::new(3));
    assert_eq!(pieces.iter().flat_map(payload_of).collect::<Vec<u8>>(), sent);
}

proptest! {
    #[test]
    fn pieces_put_together_give_the_whole(
        which in 0..3usize,
        len in 65_536..185_000usize,
        size in 500..9000u16,
    ) {
        let family = FAMILIES[which];
        let sent = payload(len);
        let mut shown = Vec::new();
        let whole = gso_of(family, &sent, size, &[]);
        prop_assert!(show_split(&whole, |head, rest| shown.push([head, rest].concat())));
        let pieces = cut_by(split, whole, &mut Pool::new(4));
        prop_assert!(shown.iter().eq(pieces.iter().map(Frame::bytes)), "shown as it would be sent");
        prop_assert!(pieces.iter().all(|piece| piece.len() <= 65_535));
        prop_assert_eq!(pieces.iter().flat_map(payload_of).collect::<Vec<u8>>(), sent);
    }
}
