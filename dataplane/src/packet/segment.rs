//! What a device would do with offloads, for one that cannot: completing a partial checksum,
//! cutting a GSO frame into segments or, if it is too long, into shorter GSO frames, and cutting a
//! packet into IPv4 fragments.
//!
//! Frames have passed [`super::offload::admit`]. Checksums are computed from the bytes, not from
//! the partial sum: what leaves here is right even if the sender's sum was not. On an error
//! nothing has been taken from the pool and `out` is as it was.
//!
//! Limits: the destination of a routing header with segments left is not looked up, so the
//! checksum of such an IPv6 packet is computed for its present destination.

use super::checksum::checksum;
use super::field::{chunk, low_u16, read_u16, write, write_u16};
use super::headers::{Headers, Net};
use super::parse::IPV4_LEN;
use super::rewrite::IPV4_CHECKSUM;
use super::transport::{IPV6_NEXT_HEADER, JUMBO_LEN, Transport};
use super::types::tcp_flags;
use crate::frame::Frame;
use crate::io::vnet_hdr::{F_NEEDS_CSUM, GSO_ECN, GSO_TCPV4, GSO_TCPV6, VnetHdr};
use crate::pool::Pool;
use crate::verdict::DropReason;

/// Offset of the flags in the TCP header.
pub(super) const TCP_FLAGS: usize = 13;
/// Offset of the sequence number in the TCP header.
const TCP_SEQUENCE: usize = 4;

/// Completes a partial checksum; a frame without one, and a GSO frame, stays as it is.
pub fn complete_checksum(frame: &mut Frame, headers: &Headers) {
    if !frame.vnet.needs_csum() || frame.vnet.is_gso() {
        return;
    }
    if let Some(transport) = Transport::of(headers)
        && let Some(sum) = transport.full_checksum(frame.bytes())
    {
        write_u16(frame.bytes_mut(), transport.start + transport.checksum, sum);
    }
    frame.vnet = VnetHdr::default();
}

/// Up to this length a GSO frame is taken by every device that takes GSO frames: the packet's
/// length is one that its length field can say.
pub(crate) const PLAIN_GSO_LEN: usize = super::parse::ETH_LEN + u16::MAX as usize;
/// The longest headers of which [`show_split`] makes others: all tags, options and a few IPv6
/// extension headers.
const LONGEST_SHOWN_HEAD: usize = 256;

/// What a frame is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pieces {
    /// GSO frames of up to 64 KiB each, their checksums partial.
    GsoFrames,
    /// Plain frames, one for each segment, their checksums complete.
    Segments,
}

/// Cuts a GSO frame into plain frames with complete checksums, appends them to `out` and returns
/// how many. A frame that is no GSO frame becomes one frame.
///
/// # Errors
/// [`DropReason::NoBuffer`] when the pool has too few buffers, [`DropReason::VnetInvalid`] when
/// the frame is no TCP or UDP packet.
pub fn segment(
    frame: &Frame,
    headers: &Headers,
    pool: &mut Pool,
    out: &mut Vec<Frame>,
) -> Result<usize, DropReason> {
    cut(frame, headers, Pieces::Segments, pool, out)
}

/// Cuts a TCP GSO frame that is longer than IP's length field can say (BIG TCP) into GSO frames
/// that are not, appends them to `out` and returns how many.
///
/// # Errors
/// As [`segment`].
pub fn split(
    frame: &Frame,
    headers: &Headers,
    pool: &mut Pool,
    out: &mut Vec<Frame>,
) -> Result<usize, DropReason> {
    cut(frame, headers, Pieces::GsoFrames, pool, out)
}

fn cut(
    frame: &Frame,
    headers: &Headers,
    into: Pieces,
    pool: &mut Pool,
    out: &mut Vec<Frame>,
) -> Result<usize, DropReason> {
    let whole = Transport::of(headers).ok_or(DropReason::VnetInvalid)?;
    let payload = frame.bytes().get(whole.payload..whole.end).ok_or(DropReason::VnetInvalid)?;
    let head = Head::of_pieces(frame.bytes(), &whole).ok_or(DropReason::VnetInvalid)?;
    let transport = head.transport;
    let segment = match usize::from(frame.vnet.gso_size) {
        0 => payload.len().max(1),
        size => size,
    };
    let size = match into {
        Pieces::Segments => segment,
        Pieces::GsoFrames => head.room(segment),
    };
    let fixed = if transport.is_ipv6 { super::parse::IPV6_LEN } else { 0 };
    let longest = transport.payload - transport.l3 - fixed + size.min(payload.len());
    if longest > usize::from(u16::MAX) {
        return Err(DropReason::VnetInvalid);
    }
    let count = payload.len().div_ceil(size).max(1);
    if pool.available() < count {
        return Err(DropReason::NoBuffer);
    }
    for index in 0..count {
        let Some(mut piece) = pool.take() else { return Err(DropReason::NoBuffer) };
        let from = index * size;
        let to = payload.len().min(from + size);
        piece.copy_from(head.before);
        piece.append(head.after);
        piece.append(payload.get(from..to).unwrap_or_default());
        piece.ingress = frame.ingress;
        let place = Place { from, segments: from / segment, last: index + 1 == count };
        let end = piece.len();
        head.finish(piece.bytes_mut(), end, &place);
        let piece_of = Transport { end: piece.len(), ..transport };
        match into {
            Pieces::Segments => {
                if let Some(sum) = piece_of.full_checksum(piece.bytes()) {
                    write_u16(piece.bytes_mut(), transport.start + transport.checksum, sum);
                }
            }
            Pieces::GsoFrames => leave_to_device(&mut piece, &piece_of, frame.vnet.gso_size),
        }
        out.push(piece);
    }
    Ok(count)
}

/// Shows the frames that [`split`] would make of a frame that may not have been admitted, each as
/// headers and payload. False: it is none to be split.
pub(crate) fn show_split(frame: &Frame, mut each: impl FnMut(&[u8], &[u8])) -> bool {
    let segment = usize::from(frame.vnet.gso_size);
    let is_long = frame.vnet.is_gso() && segment != 0 && frame.len() > PLAIN_GSO_LEN;
    let Some(headers) = is_long.then(|| super::parse::parse(frame.bytes()).ok()).flatten() else {
        return false;
    };
    let whole = Transport::of(&headers).filter(|transport| transport.tcp_flags.is_some());
    let Some((whole, head)) =
        whole.and_then(|whole| Some((whole, Head::of_pieces(frame.bytes(), &whole)?)))
    else {
        return false;
    };
    let payload = frame.bytes().get(whole.payload..whole.end).unwrap_or_default();
    let mut buffer = [0; LONGEST_SHOWN_HEAD];
    let Some(bytes) = buffer.get_mut(..head.transport.payload) else { return false };
    let size = head.room(segment);
    for (index, part) in payload.chunks(size).enumerate() {
        let (before, after) = bytes.split_at_mut(head.before.len());
        before.copy_from_slice(head.before);
        after.copy_from_slice(head.after);
        let from = index * size;
        let last = from + part.len() == payload.len();
        let end = head.transport.payload + part.len();
        head.finish(bytes, end, &Place { from, segments: from / segment, last });
        let piece = Transport { end, ..head.transport };
        if let Some(sum) = piece.partial_checksum(bytes) {
            write_u16(bytes, piece.start + piece.checksum, sum);
        }
        each(bytes, part);
    }
    true
}

/// The headers that every piece begins with.
struct Head<'a> {
    before: &'a [u8],
    /// Behind a jumbo payload option, if there is one.
    after: &'a [u8],
    /// What that option was followed by.
    next_header: Option<u8>,
    /// Where the fields lie in a piece; `end` is that of the whole.
    transport: Transport,
}

/// Which part of the whole a piece is.
struct Place {
    /// Where its payload starts in that of the whole.
    from: usize,
    /// How many segments come before it.
    segments: usize,
    /// Nothing comes behind it.
    last: bool,
}

impl<'a> Head<'a> {
    /// No piece needs a jumbo payload option.
    fn of_pieces(bytes: &'a [u8], whole: &Transport) -> Option<Self> {
        let head = bytes.get(..whole.payload)?;
        let Some(next_header) = whole.behind_jumbo_option(bytes) else {
            return Some(Self { before: head, after: &[], next_header: None, transport: *whole });
        };
        let fixed = whole.l3 + super::parse::IPV6_LEN;
        let mut transport = *whole;
        transport.start -= JUMBO_LEN;
        transport.payload -= JUMBO_LEN;
        let after = head.get(fixed + JUMBO_LEN..)?;
        Some(Self { before: head.get(..fixed)?, after, next_header: Some(next_header), transport })
    }

    /// Payload of a GSO frame that every device takes. A segment by itself fits anyway: it has been
    /// admitted.
    fn room(&self, segment: usize) -> usize {
        let room = usize::from(u16::MAX).saturating_sub(self.transport.payload);
        (room / segment * segment).max(segment)
    }

    /// Sets lengths, identification, sequence number and flags in the headers of a piece that has
    /// `end` bytes.
    fn finish(&self, bytes: &mut [u8], end: usize, place: &Place) {
        let Transport { l3, start, is_ipv6, tcp_flags, .. } = self.transport;
        let packet_len = end - l3;
        if is_ipv6 {
            write_u16(bytes, l3 + 4, low_u16(packet_len - super::parse::IPV6_LEN));
            if let Some(next_header) = self.next_header {
                write(bytes, l3 + IPV6_NEXT_HEADER, [next_header]);
            }
        } else {
            write_u16(bytes, l3 + 2, low_u16(packet_len));
            // As inet_gso_segment does: segments are packets of their own (RFC 6864 §4.3).
            let id = read_u16(bytes, l3 + 4).unwrap_or(0).wrapping_add(low_u16(place.segments));
            write_u16(bytes, l3 + 4, id);
            seal_ipv4_header(bytes, l3, start - l3);
        }
        let Some(mut flags) = tcp_flags else {
            write_u16(bytes, start + 4, low_u16(end - start));
            return;
        };
        let first = chunk(bytes, start + TCP_SEQUENCE).copied().unwrap_or_default();
        let sequence = u32::from_be_bytes(first).wrapping_add(super::field::low_u32(place.from));
        write(bytes, start + TCP_SEQUENCE, sequence.to_be_bytes());
        if place.from != 0 {
            flags &= !tcp_flags::CWR;
        }
        if !place.last {
            flags &= !(tcp_flags::FIN | tcp_flags::PSH);
        }
        write(bytes, start + TCP_FLAGS, [flags]);
    }
}

/// Leaves checksum and segments of a TCP piece to the device, as they were left to us.
fn leave_to_device(piece: &mut Frame, transport: &Transport, segment: u16) {
    let Some(sum) = transport.partial_checksum(piece.bytes()) else { return };
    write_u16(piece.bytes_mut(), transport.start + transport.checksum, sum);
    piece.vnet = VnetHdr {
        flags: F_NEEDS_CSUM,
        csum_start: low_u16(transport.start),
        csum_offset: low_u16(transport.checksum),
        ..VnetHdr::default()
    };
    if transport.end - transport.payload > usize::from(segment) {
        let flags = piece.bytes().get(transport.start + TCP_FLAGS).copied().unwrap_or(0);
        let ecn = if flags & tcp_flags::CWR == 0 { 0 } else { GSO_ECN };
        piece.vnet.gso_type = ecn | if transport.is_ipv6 { GSO_TCPV6 } else { GSO_TCPV4 };
        piece.vnet.gso_size = segment;
        piece.vnet.hdr_len = low_u16(transport.payload);
    }
}

/// Sets the checksum of an IPv4 header anew.
pub(super) fn seal_ipv4_header(bytes: &mut [u8], l3: usize, header_len: usize) {
    write_u16(bytes, l3 + IPV4_CHECKSUM, 0);
    if let Some(header) = bytes.get(l3..l3 + header_len) {
        let sum = checksum(header);
        write_u16(bytes, l3 + IPV4_CHECKSUM, sum);
    }
}

/// Cuts an IPv4 packet into fragments no longer than `mtu` (RFC 791 §3.2), appends them to `out`
/// and returns how many; one, if the packet fits. A partial checksum is completed. A GSO frame is
/// segmented first. A packet that is a fragment itself may be cut further.
///
/// # Errors
/// [`DropReason::MtuExceeded`] when "don't fragment" is set or the MTU has no room for eight
/// bytes; [`DropReason::NoBuffer`] when the pool has too few buffers; [`DropReason::Ipv4Malformed`]
/// for fragments that would reach beyond 65,535 bytes and for what is not IPv4; and those of
/// [`segment`].
pub fn fragment(
    frame: &Frame,
    headers: &Headers,
    mtu: u16,
    pool: &mut Pool,
    out: &mut Vec<Frame>,
) -> Result<usize, DropReason> {
    if !frame.vnet.is_gso() {
        return fragment_packet(frame, headers, mtu, pool, out);
    }
    let before = out.len();
    let segments = segment(frame, headers, pool, out)?;
    let result = fragment_segments(before..before + segments, mtu, pool, out);
    let waste = if result.is_ok() { before..before + segments } else { before..out.len() };
    for piece in out.drain(waste) {
        pool.put(piece);
    }
    result
}

/// Appends the fragments of the segments that lie in `out` at `segments`.
fn fragment_segments(
    segments: std::ops::Range<usize>,
    mtu: u16,
    pool: &mut Pool,
    out: &mut Vec<Frame>,
) -> Result<usize, DropReason> {
    // Stands in for the segment that is being cut, so that `out` can grow meanwhile.
    let mut whole = pool.take().ok_or(DropReason::NoBuffer)?;
    let mut result = Ok(0);
    for at in segments {
        let Ok(count) = result else { break };
        if let Some(slot) = out.get_mut(at) {
            std::mem::swap(slot, &mut whole);
        }
        result = super::parse::parse(whole.bytes())
            .map_err(|_| DropReason::Ipv4Malformed)
            .and_then(|headers| fragment_packet(&whole, &headers, mtu, pool, out))
            .map(|pieces| count + pieces);
        if let Some(slot) = out.get_mut(at) {
            std::mem::swap(slot, &mut whole);
        }
    }
    pool.put(whole);
    result
}

fn fragment_packet(
    frame: &Frame,
    headers: &Headers,
    mtu: u16,
    pool: &mut Pool,
    out: &mut Vec<Frame>,
) -> Result<usize, DropReason> {
    let Net::Ipv4(ip) = &headers.net else { return Err(DropReason::Ipv4Malformed) };
    let bytes = frame.bytes();
    let start = usize::from(ip.l4_offset);
    let head = bytes.get(..start).ok_or(DropReason::Ipv4Malformed)?;
    let payload = bytes.get(start..ip.end()).ok_or(DropReason::Ipv4Malformed)?;
    let room = usize::from(mtu).saturating_sub(usize::from(ip.header_len));
    // All fragments but the last carry a multiple of eight bytes.
    let size = if payload.len() <= room { payload.len().max(1) } else { room & !7 };
    if size == 0 || (payload.len() > room && ip.dont_fragment) {
        return Err(DropReason::MtuExceeded);
    }
    if usize::from(ip.header_len) + usize::from(ip.frag_offset) + payload.len()
        > usize::from(u16::MAX)
    {
        return Err(DropReason::Ipv4Malformed);
    }
    let count = payload.len().div_ceil(size).max(1);
    if pool.available() < count {
        return Err(DropReason::NoBuffer);
    }
    // Where the completed checksum goes, from the start of the payload.
    let checksum = Transport::of(headers)
        .filter(|_| frame.vnet.needs_csum())
        .and_then(|transport| Some((transport.checksum, transport.full_checksum(bytes)?)));

    for index in 0..count {
        let Some(mut piece) = pool.take() else { return Err(DropReason::NoBuffer) };
        let from = index * size;
        let to = payload.len().min(from + size);
        piece.copy_from(head);
        piece.append(payload.get(from..to).unwrap_or_default());
        piece.ingress = frame.ingress;
        let out_bytes = piece.bytes_mut();
        if let Some((at, sum)) = checksum
            && (from..to).contains(&at)
        {
            write_u16(out_bytes, start + at - from, sum);
        }
        let l3 = ip.l3_offset();
        let more = ip.more_fragments || index + 1 < count;
        let units = low_u16((usize::from(ip.frag_offset) + from) / 8);
        let df = if ip.dont_fragment { 0x4000 } else { 0 };
        write_u16(out_bytes, l3 + 6, units | df | if more { 0x2000 } else { 0 });
        let packet_len = low_u16(out_bytes.len() - l3);
        write_u16(out_bytes, l3 + 2, packet_len);
        if index != 0
            && let Some(options) = out_bytes.get_mut(l3 + IPV4_LEN..start)
        {
            blank_uncopied_options(options);
        }
        seal_ipv4_header(out_bytes, l3, start - l3);
        out.push(piece);
    }
    Ok(count)
}

/// Only options with the "copied" bit belong into later fragments (RFC 791 §3.1). The others
/// become no-operations, as in Linux (`ip_options_fragment`), so that the header keeps its length.
fn blank_uncopied_options(options: &mut [u8]) {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        let length = match kind {
            END => return,
            NO_OPERATION => 1,
            _ => usize::from(options.get(at + 1).copied().unwrap_or(0)),
        };
        // A length below two is nonsense; so is one beyond the header, which `get_mut` refuses.
        let Some(option) = options.get_mut(at..at + length).filter(|_| kind == 1 || length >= 2)
        else {
            return;
        };
        if kind & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        at += length;
    }
}

#[cfg(test)]
mod big_tests;
#[cfg(test)]
mod tests;
