//! ICMP for IPv4 (RFC 792): answering echo requests, reporting errors, and reading the packet that
//! an error quotes.
//!
//! Invariants: Ethernet padding never enters a checksum or a quote; an error is never made about a
//! packet that must not be answered ([`may_report`], RFC 1122 §3.2.2). The headers given must
//! describe the frame as it came in, before any rewriting, so that the sender recognises what is
//! quoted.

use std::net::Ipv4Addr;

use super::checksum::{Sum, checksum, ipv4_header_is_valid};
use super::field::{chunk, low_u16, write, write_u16};
use super::headers::{Headers, Ipv4, L4, Net};
use super::parse::{ICMP_LEN, IPV4_LEN, IPV4_MF, IPV4_OFFSET_MASK};
use super::rewrite::{ICMP_CHECKSUM, IPV4_CHECKSUM};
use super::types::ip_proto;
use crate::frame::Frame;
use crate::io::vnet_hdr::VnetHdr;
use crate::verdict::DropReason;

/// Echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// Source quench, no longer sent (RFC 6633).
pub const SOURCE_QUENCH: u8 = 4;
/// Redirect.
pub const REDIRECT: u8 = 5;
/// Echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;

/// TTL of what the engine sends itself: the default recommended by RFC 1700, which Linux uses.
const DEFAULT_TTL: u8 = 64;
/// Precedence "internetwork control" (RFC 1812 §4.3.2.5).
const ERROR_TOS: u8 = 0xc0;
/// An ICMP error with its quote is not to exceed this (RFC 1812 §4.3.2.3).
const MAX_ERROR_LEN: usize = 576;
/// Identification zero, "don't fragment": a packet that is never fragmented needs no
/// identification (RFC 6864 §4.1).
const ATOMIC: [u8; 4] = [0, 0, 0x40, 0];
/// Bytes of the quoted packet at most.
const MAX_QUOTE: usize = MAX_ERROR_LEN - IPV4_LEN - ICMP_LEN;

/// Whether messages of this type carry an identifier and get an answer: echo, timestamp,
/// information (RFC 792) and address mask (RFC 950), question and answer.
#[must_use]
pub const fn is_query(kind: u8) -> bool {
    matches!(kind, ECHO_REPLY | ECHO_REQUEST | 13..=18)
}

/// Whether messages of this type quote the packet they are about.
#[must_use]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// An error the engine reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// 3/13: administratively prohibited (RFC 1812 §5.2.7.1).
    AdminProhibited,
    /// 3/4: too long for the next hop, and "don't fragment" is set (RFC 1191 §4).
    FragmentationNeeded {
        /// The longest IP packet the next hop takes.
        mtu: u16,
    },
    /// 3/1: the neighbor does not answer.
    HostUnreachable,
    /// 3/0: no route.
    NetUnreachable,
    /// 3/3: nothing listens there.
    PortUnreachable,
    /// 11/0: the TTL ran out.
    TimeExceeded,
}

impl IcmpError {
    /// Type, code, and the last two of the eight header bytes.
    const fn fields(self) -> (u8, u8, u16) {
        match self {
            Self::AdminProhibited => (UNREACHABLE, 13, 0),
            Self::FragmentationNeeded { mtu } => (UNREACHABLE, 4, mtu),
            Self::HostUnreachable => (UNREACHABLE, 1, 0),
            Self::NetUnreachable => (UNREACHABLE, 0, 0),
            Self::PortUnreachable => (UNREACHABLE, 3, 0),
            Self::TimeExceeded => (TIME_EXCEEDED, 0, 0),
        }
    }
}

/// Whether an ICMP error may be sent about this packet (RFC 1122 §3.2.2, RFC 1812 §4.3.2.7): not
/// about an ICMP error or a type we do not know, a later fragment, a frame or packet to a group, or
/// a source that is not one host. Directed broadcasts come in Ethernet broadcasts and are
/// recognised by that.
#[must_use]
pub fn may_report(headers: &Headers) -> bool {
    let Net::Ipv4(ip) = &headers.net else { return false };
    let about_icmp_error = ip.proto == ip_proto::ICMP
        && !matches!(ip.l4, L4::Icmp { kind, .. } if is_query(kind) || matches!(kind, 9 | 10));
    let [first, ..] = ip.src.octets();
    // 224/4 is multicast, 240/4 reserved, 0/8 "this network", 127/8 loopback (RFC 6890).
    let source_is_host = first != 0 && first != 127 && first < 224;
    !about_icmp_error
        && ip.frag_offset == 0
        && !headers.dst.is_multicast()
        && headers.src.is_valid_source()
        && !ip.dst.is_multicast()
        && !ip.dst.is_broadcast()
        && source_is_host
}

/// Replaces `out` by an ICMP error from `src` about the packet in `original`, on its way back:
/// Ethernet addresses swapped, VLAN tags kept. False, and `out` unchanged: no error may be sent.
#[must_use]
pub fn write_error(
    out: &mut Frame,
    original: &Frame,
    headers: &Headers,
    src: Ipv4Addr,
    error: IcmpError,
) -> bool {
    let Net::Ipv4(ip) = &headers.net else { return false };
    if !may_report(headers) {
        return false;
    }
    let l3 = usize::from(headers.l3);
    let packet = original.bytes().get(l3..ip.end()).unwrap_or_default();
    let quote = packet.get(..packet.len().min(MAX_QUOTE)).unwrap_or_default();
    let Some(link) = original.bytes().get(..l3) else { return false };

    out.copy_from(link);
    out.ingress = original.ingress;
    out.resize(l3 + IPV4_LEN + ICMP_LEN + quote.len());
    let bytes = out.bytes_mut();
    write(bytes, 0, headers.src.0);
    write(bytes, 6, headers.dst.0);
    let total_len = low_u16(IPV4_LEN + ICMP_LEN + quote.len());
    write(bytes, l3, ipv4_header(ERROR_TOS, total_len, ATOMIC, src, ip.src));
    let (kind, code, last) = error.fields();
    let [l0, l1] = last.to_be_bytes();
    let header = [kind, code, 0, 0, 0, 0, l0, l1];
    let [c0, c1] = Sum::ZERO.add_bytes(&header).add_bytes(quote).checksum().to_be_bytes();
    write(bytes, l3 + IPV4_LEN, [kind, code, c0, c1, 0, 0, l0, l1]);
    if let Some(body) = bytes.get_mut(l3 + IPV4_LEN + ICMP_LEN..) {
        body.copy_from_slice(quote);
    }
    true
}

/// An ICMP packet's IPv4 header without options, with its checksum. `ident` holds identification,
/// flags and fragment offset.
fn ipv4_header(
    tos: u8,
    total_len: u16,
    ident: [u8; 4],
    src: Ipv4Addr,
    dst: Ipv4Addr,
) -> [u8; IPV4_LEN] {
    let [l0, l1] = total_len.to_be_bytes();
    let [i0, i1, f0, f1] = ident;
    let [s0, s1, s2, s3] = src.octets();
    let [d0, d1, d2, d3] = dst.octets();
    let (ttl, proto) = (DEFAULT_TTL, ip_proto::ICMP);
    let mut header =
        [0x45, tos, l0, l1, i0, i1, f0, f1, ttl, proto, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
    let sum = checksum(&header);
    write_u16(&mut header, IPV4_CHECKSUM, sum);
    header
}

/// Turns a frame with an ICMP echo request into the reply to it, in place: addresses swapped, TTL
/// 64, type of service kept (RFC 1122 §3.2.2.6), IP options and Ethernet padding dropped.
///
/// # Errors
/// [`DropReason::L4Malformed`] when the frame is no echo request in one piece or its ICMP checksum
/// is wrong. The frame is unchanged then.
pub fn echo_reply(frame: &mut Frame, headers: &Headers) -> Result<(), DropReason> {
    let Net::Ipv4(ip) = &headers.net else { return Err(DropReason::L4Malformed) };
    let is_request = matches!(ip.l4, L4::Icmp { kind: ECHO_REQUEST, .. });
    if !is_request || ip.is_fragment() || ip.total_len > u32::from(u16::MAX) {
        return Err(DropReason::L4Malformed);
    }
    let l3 = ip.l3_offset();
    let message = usize::from(ip.l4_offset)..ip.end();
    let length = message.len();
    let bytes = frame.bytes_mut();
    let sound = bytes.get(message.clone()).is_some_and(|m| Sum::ZERO.add_bytes(m).is_valid());
    let Some(&[_, tos, ..]) = chunk::<IPV4_LEN>(bytes, l3) else {
        return Err(DropReason::L4Malformed);
    };
    if !sound {
        return Err(DropReason::L4Malformed);
    }
    let to = l3 + IPV4_LEN;
    bytes.copy_within(message, to);
    let total_len = low_u16(IPV4_LEN + length);
    let [i0, i1] = ip.id.to_be_bytes();
    write(bytes, l3, ipv4_header(tos, total_len, [i0, i1, 0, 0], ip.dst, ip.src));
    write(bytes, 0, headers.src.0);
    write(bytes, 6, headers.dst.0);
    if let Some(reply) = bytes.get_mut(to..to + length) {
        write(reply, 0, [ECHO_REPLY, 0, 0, 0]);
        let sum = checksum(reply);
        write_u16(reply, ICMP_CHECKSUM, sum);
    }
    frame.truncate(to + length);
    frame.vnet = VnetHdr::default();
    Ok(())
}

/// The packet that an ICMP error quotes, as far as it is quoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerPacket {
    /// Offset of the quoted IPv4 header from the Ethernet header.
    pub offset: u16,
    /// Length of the quoted IPv4 header in bytes, options included.
    pub header_len: u8,
    /// Bytes of the transport layer that are quoted, RFC 4884 extensions not counted.
    pub quoted_len: u16,
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// Protocol number.
    pub proto: u8,
    /// Fragment offset in bytes.
    pub frag_offset: u16,
    /// More fragments follow.
    pub more_fragments: bool,
    /// Identification field, which fragments are known by.
    pub id: u16,
    /// What there is of the transport header.
    pub l4: InnerL4,
}

/// The transport header of a quoted packet, of which only eight bytes are certain (RFC 792).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InnerL4 {
    /// A later fragment, another protocol, an ICMP error, or fewer than eight bytes.
    None,
    /// TCP, UDP or SCTP.
    Ports {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
    },
    /// An ICMP message for which [`is_query`] holds.
    Query {
        /// Message type.
        kind: u8,
        /// Identifier.
        id: u16,
    },
}

/// Reads the packet that an ICMP error quotes. `ip` is the error's own header.
///
/// The checksum of the error and that of the quoted IPv4 header are verified (RFC 5508 §4.1); the
/// quoted transport checksum cannot be and is not.
///
/// # Errors
/// [`DropReason::L4Malformed`] when this is no ICMP error in one piece, its checksum is wrong or it
/// quotes no whole IPv4 header; [`DropReason::Ipv4Checksum`] when the quoted header's is wrong.
pub fn parse_inner(bytes: &[u8], ip: &Ipv4) -> Result<InnerPacket, DropReason> {
    let L4::Icmp { kind, .. } = ip.l4 else { return Err(DropReason::L4Malformed) };
    if !is_error(kind) || ip.is_fragment() {
        return Err(DropReason::L4Malformed);
    }
    let at = usize::from(ip.l4_offset);
    let message = bytes.get(at..ip.end()).ok_or(DropReason::L4Malformed)?;
    if !Sum::ZERO.add_bytes(message).is_valid() {
        return Err(DropReason::L4Malformed);
    }
    let (icmp, quote) = message.split_first_chunk::<ICMP_LEN>().ok_or(DropReason::L4Malformed)?;
    let &[_, _, _, _, _, rfc4884_words, _, _] = icmp;
    // RFC 4884 §3: behind this many 32-bit words come extensions, not the packet. The minimum of
    // 128 bytes tells a length from rubbish in a byte that once was reserved.
    let quote = match usize::from(rfc4884_words) * 4 {
        length @ 128.. if kind != REDIRECT && kind != SOURCE_QUENCH => {
            quote.get(..length).unwrap_or(quote)
        }
        _ => quote,
    };

    let &[vi, _, l0, l1, i0, i1, f0, f1, _, proto, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        quote.first_chunk::<IPV4_LEN>().ok_or(DropReason::L4Malformed)?;
    let header_len = (vi & 0x0f) * 4;
    let header = quote.get(..usize::from(header_len)).ok_or(DropReason::L4Malformed)?;
    if vi >> 4 != 4 || header.len() < IPV4_LEN {
        return Err(DropReason::L4Malformed);
    }
    if !ipv4_header_is_valid(header) {
        return Err(DropReason::Ipv4Checksum);
    }
    // What the error holds beyond the quoted packet's own end is not part of it. Zero: BIG TCP.
    let l4 = match usize::from(u16::from_be_bytes([l0, l1])) {
        0 => quote.get(header.len()..),
        total => quote.get(header.len()..total.clamp(header.len(), quote.len())),
    }
    .unwrap_or_default();
    let fragment_word = u16::from_be_bytes([f0, f1]);
    let frag_offset = (fragment_word & IPV4_OFFSET_MASK) << 3;
    let inner_l4 = match l4.first_chunk::<ICMP_LEN>() {
        Some(&[kind, _, _, _, i0, i1, _, _])
            if frag_offset == 0 && proto == ip_proto::ICMP && is_query(kind) =>
        {
            InnerL4::Query { kind, id: u16::from_be_bytes([i0, i1]) }
        }
        Some(&[s0, s1, d0, d1, ..])
            if frag_offset == 0
                && matches!(proto, ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP) =>
        {
            InnerL4::Ports {
                src_port: u16::from_be_bytes([s0, s1]),
                dst_port: u16::from_be_bytes([d0, d1]),
            }
        }
        _ => InnerL4::None,
    };
    Ok(InnerPacket {
        offset: low_u16(at + ICMP_LEN),
        header_len,
        quoted_len: low_u16(l4.len()),
        src: Ipv4Addr::new(s0, s1, s2, s3),
        dst: Ipv4Addr::new(d0, d1, d2, d3),
        proto,
        frag_offset,
        more_fragments: fragment_word & IPV4_MF != 0,
        id: u16::from_be_bytes([i0, i1]),
        l4: inner_l4,
    })
}

#[cfg(test)]
mod tests;
