//! Fragments as a sender makes them itself.

use crate::packet::Packet;
use crate::sums;

/// Ethernet and IPv4 header of [`Packet`], which has no options.
const HEADERS: usize = 34;
/// Ethernet and IPv6 header.
const HEADERS6: usize = 54;
/// Number of the fragment header (RFC 8200 §4.5).
const FRAGMENT_HEADER: u8 = 44;
/// "More fragments" (RFC 791).
const MORE: u16 = 0x2000;

/// A packet in two fragments, cut after so many bytes of what IP carries: a multiple of eight.
///
/// # Panics
/// When the packet is not longer than that, or than an IP packet can be.
#[must_use]
pub fn in_two(packet: &Packet, cut: usize) -> [Vec<u8>; 2] {
    let whole = packet.bytes();
    assert!(cut.is_multiple_of(8) && HEADERS + cut < whole.len());
    [piece(&whole, 0, cut), piece(&whole, cut, whole.len() - HEADERS)]
}

/// A packet in fragments of so many bytes, a multiple of eight; the last one may be shorter.
///
/// # Panics
/// When the packet is longer than an IP packet can be.
#[must_use]
pub fn in_pieces(packet: &Packet, len: usize) -> Vec<Vec<u8>> {
    let whole = packet.bytes();
    assert!(len.is_multiple_of(8));
    let end = whole.len() - HEADERS;
    (0..end).step_by(len).map(|from| piece(&whole, from, end.min(from + len))).collect()
}

/// The fragment of a whole frame that carries these bytes of what IP carries.
///
/// # Panics
/// When there are no such bytes.
#[must_use]
pub fn piece(whole: &[u8], from: usize, to: usize) -> Vec<u8> {
    let offset = u16::try_from(from / 8).expect("an offset");
    let more = if HEADERS + to < whole.len() { MORE } else { 0 };
    let mut bytes = [&whole[..HEADERS], &whole[HEADERS + from..HEADERS + to]].concat();
    let len = u16::try_from(bytes.len() - 14).expect("a length");
    bytes[16..18].copy_from_slice(&len.to_be_bytes());
    bytes[20..22].copy_from_slice(&(offset | more).to_be_bytes());
    bytes[24..26].copy_from_slice(&[0, 0]);
    let sum = !sums::sum(&bytes[14..HEADERS]);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// As [`in_pieces`], of an IPv6 packet without extension headers: fragments with this identification.
///
/// # Panics
/// When the packet is longer than an IP packet can be.
#[must_use]
pub fn in_pieces6(packet: &Packet, len: usize, id: u32) -> Vec<Vec<u8>> {
    let whole = packet.bytes();
    assert!(len.is_multiple_of(8));
    let end = whole.len() - HEADERS6;
    (0..end).step_by(len).map(|from| piece6(&whole, from, end.min(from + len), id)).collect()
}

/// As [`piece`], of an IPv6 packet without extension headers: a fragment with this identification.
///
/// # Panics
/// When there are no such bytes.
#[must_use]
pub fn piece6(whole: &[u8], from: usize, to: usize, id: u32) -> Vec<u8> {
    // In units of eight bytes above three bits of flags: the number of bytes.
    let more = HEADERS6 + to < whole.len();
    let field = u16::try_from(from).expect("an offset") | u16::from(more);
    let header = [&[whole[20], 0], &field.to_be_bytes()[..], &id.to_be_bytes()].concat();
    let carried = &whole[HEADERS6 + from..HEADERS6 + to];
    let mut bytes = [&whole[..HEADERS6], &header, carried].concat();
    let len = u16::try_from(bytes.len() - HEADERS6).expect("a length");
    bytes[18..20].copy_from_slice(&len.to_be_bytes());
    bytes[20] = FRAGMENT_HEADER;
    bytes
}

/// Gives a fragment another identification; of IPv4, which has 16 bits of it, with the header's checksum.
///
/// # Panics
/// When it is none.
pub fn renumber(frame: &mut [u8], number: u32) {
    if frame[12..14] == [0x86, 0xdd] {
        frame[HEADERS6 + 4..HEADERS6 + 8].copy_from_slice(&number.to_be_bytes());
        return;
    }
    frame[18..20].copy_from_slice(&number.to_be_bytes()[2..]);
    frame[24..26].copy_from_slice(&[0, 0]);
    let sum = !sums::sum(&frame[14..HEADERS]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}
