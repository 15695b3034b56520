//! TCP headers: what the connection tracking asks of them, and the options.

use super::checksum::Delta;
use super::field::{chunk, read_u16, write, write_u16};
use super::parse::TCP_LEN;
use super::rewrite::TCP_CHECKSUM;

/// End of the option list (RFC 9293 §3.1).
const END: u8 = 0;
/// No operation.
const NOP: u8 = 1;
/// Maximum segment size, four octets (RFC 9293 §3.7.1).
const MSS: u8 = 2;
/// Window scale, three octets (RFC 7323 §2.2).
const WINDOW_SCALE: u8 = 3;

/// Selective acknowledgment, eight octets for each block (RFC 2018 §3).
const SACK: u8 = 5;

/// The numbers of a TCP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// Sequence number of the first octet.
    pub seq: u32,
    /// What is acknowledged, with ACK.
    pub ack: u32,
    /// The window as written.
    pub window: u16,
}

/// The numbers of the TCP header that begins at `at`. `None`: it is cut short.
#[must_use]
#[inline]
pub fn numbers(bytes: &[u8], at: usize) -> Option<Numbers> {
    let &[_, _, _, _, s0, s1, s2, s3, a0, a1, a2, a3, _, _, w0, w1, ..] =
        chunk::<TCP_LEN>(bytes, at)?;
    Some(Numbers {
        seq: u32::from_be_bytes([s0, s1, s2, s3]),
        ack: u32::from_be_bytes([a0, a1, a2, a3]),
        window: u16::from_be_bytes([w0, w1]),
    })
}

/// The window scale that the header of this length at `at` offers.
#[must_use]
pub fn window_scale(bytes: &[u8], at: usize, header_len: u8) -> Option<u8> {
    let scale = option(bytes, at, header_len, WINDOW_SCALE, 3)?;
    bytes.get(scale + 2).copied()
}

/// Lowers the maximum segment size that a SYN offers to `limit`. False: there is none, or it is no
/// larger. `partial`: the checksum is that of the pseudo-header alone.
pub fn clamp_mss(bytes: &mut [u8], at: usize, header_len: u8, partial: bool, limit: u16) -> bool {
    let Some(option) = option(bytes, at, header_len, MSS, 4) else { return false };
    let Some(old) = read_u16(bytes, option + 2).filter(|old| *old > limit) else { return false };
    write(bytes, option + 2, limit.to_be_bytes());
    if !partial && let Some(sum) = read_u16(bytes, at + TCP_CHECKSUM) {
        // At an odd place each octet counts in the other half of a word.
        let word =
            |value: u16| if (option - at).is_multiple_of(2) { value } else { value.swap_bytes() };
        let sum = Delta::of_u16(word(old), word(limit)).apply(sum);
        write_u16(bytes, at + TCP_CHECKSUM, sum);
    }
    true
}

/// Has `edge` change the left and the right edge of each block that a TCP header says was received
/// (RFC 2018 §3).
pub(crate) fn map_sack(header: &mut [u8], edge: impl Fn(u32, Edge) -> u32) {
    let find = |len| option_in(header, SACK, len).map(|at| at + 2..at + usize::from(len));
    let Some(range) = (1..=4).find_map(|count| find(2 + 8 * count)) else { return };
    let Some(blocks) = header.get_mut(range) else { return };
    for (place, number) in blocks.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let side = if place.is_multiple_of(2) { Edge::Left } else { Edge::Right };
        *number = edge(u32::from_be_bytes(*number), side).to_be_bytes();
    }
}

/// An end of a block of a selective acknowledgment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
    /// The first octet of it.
    Left,
    /// The octet behind it.
    Right,
}

/// Where the first option of a kind is, if it has that length. A malformed list ends where it is.
fn option(bytes: &[u8], at: usize, header_len: u8, kind: u8, len: u8) -> Option<usize> {
    option_in(bytes.get(at..at + usize::from(header_len))?, kind, len).map(|option| at + option)
}

/// The same of a header alone.
fn option_in(header: &[u8], kind: u8, len: u8) -> Option<usize> {
    let mut next = TCP_LEN;
    loop {
        match *header.get(next)? {
            END => return None,
            NOP => next += 1,
            found => {
                let length = *header.get(next + 1)?;
                let end = next + usize::from(length);
                if length < 2 || end > header.len() {
                    return None;
                }
                if found == kind {
                    return (length == len).then_some(next);
                }
                next = end;
            }
        }
    }
}

#[cfg(test)]
mod tests;
