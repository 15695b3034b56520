//! ICMPv6 (RFC 4443): answering echo requests, reporting errors, and reading the packet that an
//! error quotes. Neighbor discovery, which is ICMPv6 too, is in [`super::ndp`].
//!
//! Invariants: Ethernet padding never enters a checksum or a quote; an error is never made about a
//! packet that must not be answered ([`may_report`]). The headers given must describe the frame as it
//! came in, before any rewriting, so that the sender recognises what is quoted.

use std::net::Ipv6Addr;

use super::checksum::pseudo_ipv6;
use super::extensions::walk_extensions;
use super::field::{chunk, low_u16, low_u32, read_u16, write, write_u16};
use super::headers::{Chain, Headers, Ipv6, L4, Net};
use super::icmp::InnerL4;
use super::ndp::REDIRECT;
use super::parse::{ICMP_LEN, IPV6_LEN};
use super::rewrite::ICMP_CHECKSUM;
use super::types::ip_proto;
use crate::frame::Frame;
use crate::io::vnet_hdr::VnetHdr;
use crate::verdict::DropReason;

/// Destination unreachable.
pub const UNREACHABLE: u8 = 1;
/// Packet too big.
pub const PACKET_TOO_BIG: u8 = 2;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 3;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 4;
/// Echo request.
pub const ECHO_REQUEST: u8 = 128;
/// Echo reply.
pub const ECHO_REPLY: u8 = 129;

/// The MTU every link has at least (RFC 8200 §5). An error with its quote is not to exceed it
/// (RFC 4443 §3.1), and one that reports a smaller one is not believed (RFC 8201 §4).
pub const MIN_MTU: usize = 1280;
/// Hop limit of what the engine sends itself: that of its IPv4 packets, and Linux' default.
const DEFAULT_HOP_LIMIT: u8 = 64;
/// Bytes of the quoted packet at most.
const MAX_QUOTE: usize = MIN_MTU - IPV6_LEN - ICMP_LEN;
/// Bytes before RFC 4884 extensions at least (RFC 4884 §3): a smaller length is rubbish in what once
/// was reserved.
const MIN_EXTENDED_QUOTE: usize = 128;

/// Whether messages of this type carry an identifier and get an answer: echo, question and answer.
#[must_use]
pub const fn is_query(kind: u8) -> bool {
    matches!(kind, ECHO_REPLY | ECHO_REQUEST)
}

/// Whether messages of this type quote the packet they are about. All types below 128 are errors;
/// the form of those not named here is not known.
#[must_use]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | PACKET_TOO_BIG | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// An error the engine reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp6Error {
    /// 1/3: the neighbor does not answer.
    AddressUnreachable,
    /// 1/1: administratively prohibited.
    AdminProhibited,
    /// 1/2: a link-local source would leave its link (RFC 4291 §2.5.6).
    BeyondScope,
    /// 4/0: a header field has a value that makes no sense, such as routing type 0 (RFC 5095 §3).
    HeaderField {
        /// Offset of the field from the IPv6 header.
        pointer: u32,
    },
    /// 3/0: the hop limit ran out.
    HopLimitExceeded,
    /// 1/0: no route.
    NoRoute,
    /// 2/0: too long for the next hop (RFC 8201).
    PacketTooBig {
        /// The longest IP packet the next hop takes.
        mtu: u32,
    },
    /// 1/4: nothing listens there.
    PortUnreachable,
    /// 1/5: the source address may not be used here.
    SourcePolicy,
    /// 4/1: no such protocol or extension header is known.
    UnknownNextHeader {
        /// Offset of the next header field from the IPv6 header.
        pointer: u32,
    },
}

impl Icmp6Error {
    /// Type, code, and the last four of the eight header bytes.
    const fn fields(self) -> (u8, u8, u32) {
        match self {
            Self::AddressUnreachable => (UNREACHABLE, 3, 0),
            Self::AdminProhibited => (UNREACHABLE, 1, 0),
            Self::BeyondScope => (UNREACHABLE, 2, 0),
            Self::HeaderField { pointer } => (PARAMETER_PROBLEM, 0, pointer),
            Self::HopLimitExceeded => (TIME_EXCEEDED, 0, 0),
            Self::NoRoute => (UNREACHABLE, 0, 0),
            Self::PacketTooBig { mtu } => (PACKET_TOO_BIG, 0, mtu),
            Self::PortUnreachable => (UNREACHABLE, 4, 0),
            Self::SourcePolicy => (UNREACHABLE, 5, 0),
            Self::UnknownNextHeader { pointer } => (PARAMETER_PROBLEM, 1, pointer),
        }
    }
}

/// Whether an ICMPv6 error may be sent about this packet (RFC 4443 §2.4 e): not about an error, a
/// redirect or what may be one, not about a frame or packet to a group, and not to a source that is
/// not one host. Groups are told of their path's MTU nevertheless, for they have no other way to
/// learn it. Later fragments are reported, as by Linux, unless they are ICMPv6 themselves.
#[must_use]
pub fn may_report(headers: &Headers, error: Icmp6Error) -> bool {
    let Net::Ipv6(ip) = &headers.net else { return false };
    let to_group = headers.dst.is_multicast() || ip.dst.is_multicast();
    let source_is_host = !ip.src.is_unspecified()
        && !ip.src.is_multicast()
        && !ip.src.is_loopback()
        && ip.src.to_ipv4_mapped().is_none();
    !may_be_error(ip)
        && (!to_group || matches!(error, Icmp6Error::PacketTooBig { .. }))
        && headers.src.is_valid_source()
        && source_is_host
}

/// Whether the packet is an ICMPv6 error or redirect, or hides what it is.
const fn may_be_error(ip: &Ipv6) -> bool {
    match ip.l4 {
        L4::Icmp { kind, .. } => kind < ECHO_REQUEST || kind == REDIRECT,
        _ => {
            ip.proto == ip_proto::ICMPV6
                || matches!(ip.chain, Chain::Cut | Chain::Misplaced | Chain::TooLong)
        }
    }
}

/// Replaces `out` by an ICMPv6 error from `src` about the packet in `original`, on its way back:
/// Ethernet addresses swapped (see [`super::rewrite::set_ethernet`] for a packet that came to a
/// group), VLAN tags kept. False, and `out` unchanged: no error may be sent.
#[must_use]
pub fn write_error(
    out: &mut Frame,
    original: &Frame,
    headers: &Headers,
    src: Ipv6Addr,
    error: Icmp6Error,
) -> bool {
    let Net::Ipv6(ip) = &headers.net else { return false };
    if !may_report(headers, error) {
        return false;
    }
    let l3 = usize::from(headers.l3);
    let packet = original.bytes().get(l3..ip.end()).unwrap_or_default();
    let quote = packet.get(..packet.len().min(MAX_QUOTE)).unwrap_or_default();
    let Some(link) = original.bytes().get(..l3) else { return false };

    out.copy_from(link);
    out.ingress = original.ingress;
    out.resize(l3 + IPV6_LEN + ICMP_LEN + quote.len());
    let bytes = out.bytes_mut();
    write(bytes, 0, headers.src.0);
    write(bytes, 6, headers.dst.0);
    let (kind, code, last) = error.fields();
    let [p0, p1, p2, p3] = last.to_be_bytes();
    if let Some(message) = bytes.get_mut(l3 + IPV6_LEN..) {
        write(message, 0, [kind, code, 0, 0, p0, p1, p2, p3]);
        if let Some(body) = message.get_mut(ICMP_LEN..) {
            body.copy_from_slice(quote);
        }
    }
    seal(bytes, l3, 0, DEFAULT_HOP_LIMIT, src, ip.src);
    true
}

/// Writes the IPv6 header at `l3` of an ICMPv6 message that is there already, to the end of `bytes`,
/// and the checksum of the message. The flow label is zero: there is no flow (RFC 6437 §3).
pub(super) fn seal(
    bytes: &mut [u8],
    l3: usize,
    traffic_class: u8,
    hop_limit: u8,
    src: Ipv6Addr,
    dst: Ipv6Addr,
) {
    let Some(message) = bytes.get_mut(l3 + IPV6_LEN..) else { return };
    write_u16(message, ICMP_CHECKSUM, 0);
    let sum = pseudo_ipv6(src, dst, ip_proto::ICMPV6, low_u32(message.len())).add_bytes(message);
    write_u16(message, ICMP_CHECKSUM, sum.checksum());
    let [l0, l1] = low_u16(message.len()).to_be_bytes();
    let (high, low) = (0x60 | traffic_class >> 4, traffic_class << 4);
    write(bytes, l3, [high, low, 0, 0, l0, l1, ip_proto::ICMPV6, hop_limit]);
    write(bytes, l3 + 8, src.octets());
    write(bytes, l3 + 24, dst.octets());
}

/// The ICMPv6 message of a packet in one piece, if its checksum is sound.
pub(super) fn sound_message<'a>(bytes: &'a [u8], ip: &Ipv6) -> Option<&'a [u8]> {
    if ip.proto != ip_proto::ICMPV6 || ip.is_fragment() {
        return None;
    }
    let message = bytes.get(usize::from(ip.l4_offset)..ip.end())?;
    let pseudo = pseudo_ipv6(ip.src, ip.dst, ip_proto::ICMPV6, low_u32(message.len()));
    pseudo.add_bytes(message).is_valid().then_some(message)
}

/// Turns a frame with an ICMPv6 echo request into the reply to it, in place: addresses swapped, hop
/// limit 64, traffic class kept as Linux does, extension headers and Ethernet padding dropped.
///
/// # Errors
/// [`DropReason::L4Malformed`] when the frame is no echo request to one host in one piece or its
/// checksum is wrong. The frame is unchanged then.
pub fn echo_reply(frame: &mut Frame, headers: &Headers) -> Result<(), DropReason> {
    let Net::Ipv6(ip) = &headers.net else { return Err(DropReason::L4Malformed) };
    let is_request = matches!(ip.l4, L4::Icmp { kind: ECHO_REQUEST, .. });
    let l3 = ip.l3_offset();
    let start = usize::from(ip.l4_offset);
    let bytes = frame.bytes_mut();
    let length = match sound_message(bytes, ip) {
        Some(message) if is_request && !ip.dst.is_multicast() => message.len(),
        _ => return Err(DropReason::L4Malformed),
    };
    let Some(&[v0, v1, ..]) = chunk::<IPV6_LEN>(bytes, l3) else {
        return Err(DropReason::L4Malformed);
    };
    if length > usize::from(u16::MAX) {
        return Err(DropReason::L4Malformed);
    }
    let to = l3 + IPV6_LEN;
    bytes.copy_within(start..start + length, to);
    write(bytes, to, [ECHO_REPLY, 0]);
    write(bytes, 0, headers.src.0);
    write(bytes, 6, headers.dst.0);
    frame.truncate(to + length);
    let traffic_class = v0 << 4 | v1 >> 4;
    seal(frame.bytes_mut(), l3, traffic_class, DEFAULT_HOP_LIMIT, ip.dst, ip.src);
    frame.vnet = VnetHdr::default();
    Ok(())
}

/// The packet that an ICMPv6 error quotes, as far as it is quoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerPacket {
    /// Offset of the quoted IPv6 header from the Ethernet header.
    pub offset: u16,
    /// Length of the quoted IPv6 header and extension headers in bytes.
    pub header_len: u16,
    /// Bytes of the transport layer that are quoted, RFC 4884 extensions not counted.
    pub quoted_len: u16,
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
    /// Protocol number, or that of the extension header where the quote or the walk ended.
    pub proto: u8,
    /// Fragment offset in bytes.
    pub frag_offset: u16,
    /// More fragments follow.
    pub more_fragments: bool,
    /// Offset of the fragment header from the quoted IPv6 header; zero without one.
    pub fragment_at: u16,
    /// Identification in the fragment header, which fragments are known by; zero without one.
    pub frag_id: u32,
    /// Whether the quoted extension headers are as they may be. Where the error ends among them it
    /// is [`Chain::Cut`].
    pub chain: Chain,
    /// What there is of the transport header.
    pub l4: InnerL4,
}

/// Reads the packet that an ICMPv6 error quotes. `ip` is the error's own header.
///
/// The checksum of the error is verified; the quoted transport checksum cannot be and is not. Eight
/// bytes of the transport header are enough, as with IPv4.
///
/// # Errors
/// [`DropReason::L4Malformed`] when this is no ICMPv6 error in one piece, its checksum is wrong, it
/// quotes no whole IPv6 header or reports an MTU below 1280.
pub fn parse_inner(bytes: &[u8], ip: &Ipv6) -> Result<InnerPacket, DropReason> {
    read_inner(bytes, ip).ok_or(DropReason::L4Malformed)
}

fn read_inner(bytes: &[u8], ip: &Ipv6) -> Option<InnerPacket> {
    let L4::Icmp { kind, .. } = ip.l4 else { return None };
    if !is_error(kind) {
        return None;
    }
    let message = sound_message(bytes, ip)?;
    let (icmp, quote) = message.split_first_chunk::<ICMP_LEN>()?;
    let &[_, _, _, _, rfc4884_units, b, c, d] = icmp;
    // No link of IPv6 takes less (RFC 8201 §4).
    let mtu = u32::from_be_bytes([rfc4884_units, b, c, d]);
    if kind == PACKET_TOO_BIG && mtu < low_u32(MIN_MTU) {
        return None;
    }
    // RFC 4884 §4.4, §4.5: behind this many 64-bit words come extensions, not the packet.
    let quote = match usize::from(rfc4884_units) * 8 {
        length @ MIN_EXTENDED_QUOTE.. if matches!(kind, UNREACHABLE | TIME_EXCEEDED) => {
            quote.get(..length).unwrap_or(quote)
        }
        _ => quote,
    };

    let (header, rest) = quote.split_first_chunk::<IPV6_LEN>()?;
    let &[version, _, _, _, _, _, next, _, ref addresses @ ..] = header;
    if version >> 4 != 6 {
        return None;
    }
    let (src, dst) = (*addresses.first_chunk::<16>()?, *addresses.last_chunk::<16>()?);
    // What the error holds beyond the quoted packet's own end is not part of it. Zero: BIG TCP, or
    // nothing at all, of which there is nothing to read either way.
    let payload_len = match read_u16(header, 4).map(usize::from)? {
        0 => rest.len(),
        length => length.min(rest.len()),
    };
    let packet = quote.get(..IPV6_LEN + payload_len)?;
    let walk = walk_extensions(packet, next);
    let l4 = packet.get(walk.offset..)?;
    let begins_here = walk.frag_offset == 0 && matches!(walk.chain, Chain::Routing0 | Chain::Whole);
    let inner_l4 = match (walk.proto, l4.first_chunk::<ICMP_LEN>()) {
        (ip_proto::ICMPV6, Some(&[kind, _, _, _, i0, i1, _, _]))
            if begins_here && is_query(kind) =>
        {
            InnerL4::Query { kind, id: u16::from_be_bytes([i0, i1]) }
        }
        (ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP, Some(&[s0, s1, d0, d1, ..]))
            if begins_here =>
        {
            InnerL4::Ports {
                src_port: u16::from_be_bytes([s0, s1]),
                dst_port: u16::from_be_bytes([d0, d1]),
            }
        }
        _ => InnerL4::None,
    };
    Some(InnerPacket {
        offset: ip.l4_offset.checked_add(low_u16(ICMP_LEN))?,
        header_len: low_u16(walk.offset),
        quoted_len: low_u16(l4.len()),
        src: Ipv6Addr::from(src),
        dst: Ipv6Addr::from(dst),
        proto: walk.proto,
        frag_offset: walk.frag_offset,
        more_fragments: walk.more_fragments,
        fragment_at: low_u16(walk.fragment_at),
        frag_id: walk.frag_id,
        chain: walk.chain,
        l4: inner_l4,
    })
}

#[cfg(test)]
mod tests;
