//! Fragments as a sender makes them itself.

use crate::packet::Packet;
use crate::sums;

/// Ethernet and IPv4 header of [`Packet`], which has no options.
const HEADERS: usize = 34;
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
    let offset = u16::try_from(cut / 8).expect("an offset");
    let piece = |from: usize, to: usize, word: u16| {
        let mut bytes = [&whole[..HEADERS], &whole[from..to]].concat();
        let len = u16::try_from(bytes.len() - 14).expect("a length");
        bytes[16..18].copy_from_slice(&len.to_be_bytes());
        bytes[20..22].copy_from_slice(&word.to_be_bytes());
        bytes[24..26].copy_from_slice(&[0, 0]);
        let sum = !sums::sum(&bytes[14..HEADERS]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    [piece(HEADERS, HEADERS + cut, MORE), piece(HEADERS + cut, whole.len(), offset)]
}
