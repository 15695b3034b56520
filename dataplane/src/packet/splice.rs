//! Changing what a TCP segment carries, and its numbers: other lengths, the same checksum or lack of one.
//!
//! Invariants: as for [`super::rewrite`]. A checksum that was wrong stays wrong: what is taken out and put in
//! is accounted for, not summed anew.

use super::checksum::{Delta, Sum};
use super::field::{low_u16, write};
use super::headers::Headers;
use super::rewrite::{TCP_CHECKSUM, update};
use super::transport::Transport;
use crate::frame::Frame;
use crate::io::vnet_hdr::{GSO_NONE, VnetHdr};

/// Offset of the sequence number in the TCP header.
const SEQUENCE: usize = 4;
/// Offset of the acknowledgment number.
const ACKNOWLEDGMENT: usize = 8;

/// Where a TCP segment lies in a frame; offsets count from the Ethernet header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The TCP header.
    pub(crate) start: usize,
    /// What it carries.
    pub(crate) payload: usize,
    /// Behind that.
    pub(crate) end: usize,
}

impl Place {
    fn sum(&self, frame: &Frame) -> u16 {
        let bytes = frame.bytes().get(self.payload..self.end).unwrap_or_default();
        Sum::ZERO.add_bytes(bytes).fold()
    }
}

/// Puts `new` in place of so many octets at `at`. What follows moves. Says whether they are there; if not,
/// nothing changes.
#[must_use]
pub(crate) fn replace(frame: &mut Frame, at: usize, old_len: usize, new: &[u8]) -> bool {
    let len = frame.len();
    let Some(tail) = at.checked_add(old_len).filter(|tail| *tail <= len) else { return false };
    frame.resize(len.max(at + new.len() + len - tail));
    frame.bytes_mut().copy_within(tail..len, at + new.len());
    if let Some(place) = frame.bytes_mut().get_mut(at..at + new.len()) {
        place.copy_from_slice(new);
    }
    frame.truncate(at + new.len() + len - tail);
    true
}

/// Has `change` change the payload of a segment that the frame ends with, and mends its checksum and its
/// virtio-net header. Not the length in the IP header. Returns where it lies then.
pub(crate) fn change_payload(
    frame: &mut Frame,
    place: Place,
    change: impl FnOnce(&mut Frame),
) -> Place {
    let before = place.sum(frame);
    change(frame);
    let changed = Place { end: frame.len(), ..place };
    let len = |place: Place| low_u16(place.end.saturating_sub(place.start));
    let length = Delta::of_u16(len(place), len(changed));
    let content = Delta::of_u16(before, changed.sum(frame));
    let partial = frame.vnet.needs_csum();
    if let Some(segment) = frame.bytes_mut().get_mut(place.start..) {
        update(segment, TCP_CHECKSUM, |old| {
            if partial { length.apply_partial(old) } else { length.and(content).apply(old) }
        });
    }
    // What is no longer than one segment is none of several.
    if frame.vnet.is_gso() && changed.end - changed.payload <= usize::from(frame.vnet.gso_size) {
        frame.vnet = VnetHdr { gso_type: GSO_NONE, gso_size: 0, hdr_len: 0, ..frame.vnet };
    }
    changed
}

/// Gives a segment another sequence number and acknowledgment, and has `options` change the options.
pub(crate) fn renumber(
    frame: &mut Frame,
    place: Place,
    (seq, ack): (u32, u32),
    options: impl FnOnce(&mut [u8]),
) {
    let partial = frame.vnet.needs_csum();
    let Some(header) = frame.bytes_mut().get_mut(place.start..place.payload) else { return };
    let before = Sum::ZERO.add_bytes(header).fold();
    write(header, SEQUENCE, seq.to_be_bytes());
    write(header, ACKNOWLEDGMENT, ack.to_be_bytes());
    options(header);
    let delta = Delta::of_u16(before, Sum::ZERO.add_bytes(header).fold());
    if !partial {
        update(header, TCP_CHECKSUM, |old| delta.apply(old));
    }
}

/// Whether the checksum of a whole TCP segment or UDP datagram is right, or left to a device, or one of UDP over
/// IPv4 that was not reckoned (RFC 768).
pub(crate) fn is_sound(frame: &Frame, headers: &Headers) -> bool {
    let Some(transport) = Transport::of(headers) else { return false };
    let field = super::field::read_u16(frame.bytes(), transport.start + transport.checksum);
    let has_none = field == Some(0) && transport.tcp_flags.is_none() && !transport.is_ipv6;
    let is_right = || field.is_some() && transport.full_checksum(frame.bytes()) == field;
    frame.vnet.needs_csum() || has_none || is_right()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_moves() {
        for (at, old_len, new, expected) in [
            (2, 3, &b"xy"[..], &b"01xy56789"[..]),
            (2, 3, b"wxyz", b"01wxyz56789"),
            (2, 3, b"xyz", b"01xyz56789"),
            (0, 10, b"x", b"x"),
            (9, 1, b"xyz", b"012345678xyz"),
            (9, 2, b"x", b"0123456789"),
        ] {
            let mut frame = Frame::new();
            frame.copy_from(b"0123456789");
            assert_eq!(replace(&mut frame, at, old_len, new), at + old_len <= 10);
            assert_eq!(frame.bytes(), expected);
        }
    }
}
