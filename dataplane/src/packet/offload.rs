//! What to believe of a virtio-net header.
//!
//! The header is the sender's word: a container with `CAP_NET_RAW` delivers any values, and the
//! next device takes many of them at face value. After [`admit`] every field is either zero or
//! follows from the headers of the frame, so that later stages and devices may rely on it:
//!
//! - `NEEDS_CSUM`: an unfragmented TCP or UDP packet, `csum_start` and `csum_offset` its own;
//! - a segment size: besides, the type fits protocol and IP version, the payload is longer than
//!   one segment, segments are not too many for their size, and nothing follows the packet;
//! - neither: the packet is no longer than IP allows.
//!
//! Limits: GSO frames of tunnels (`SKB_GSO_UDP_TUNNEL` and the like, which a device shows as
//! plain TCP GSO with an inner `csum_start`) are refused. Devices that are endpoints deliver none: a
//! TAP never does, and a veth device is told to leave them to the stack before it. SCTP with its CRC left
//! open, as a veth device delivers it, gets its CRC here: not every device could be told to.

use super::checksum::Sum;
use super::field::{low_u16, read_u16, write_u16};
use super::headers::{Headers, L4, Net};
use super::sctp;
use super::transport::{JUMBO_LEN, Transport};
use super::types::tcp_flags;
use crate::frame::{Frame, MAX_FRAME_LEN};
use crate::io::vnet_hdr::{
    F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHdr,
};
use crate::verdict::DropReason;

/// Payload and TCP options of the shortest segment Linux makes: `TCP_MIN_SND_MSS` in
/// `include/net/tcp.h`, the least `sysctl_tcp_min_snd_mss` (CVE-2019-11479). The size in the
/// virtio-net header excludes options, which `tcp_mtu_to_mss` takes off after that limit.
const TCP_MIN_SND_MSS: usize = 48;
/// Segments of any size that may be one frame all the same: a kernel that received them one by one
/// merges small equal ones too (GRO), as many as one poll of a device gives it
/// (`NAPI_POLL_WEIGHT` in `linux/netdevice.h`).
pub(super) const GRO_SEGMENTS: usize = 64;
/// TCP segments of one frame at most: the longest frame in segments of [`TCP_MIN_SND_MSS`] less 12
/// bytes of timestamps.
const TCP_MAX_SEGMENTS: usize = MAX_FRAME_LEN / (TCP_MIN_SND_MSS - 12);
/// UDP datagrams of one frame at most: `UDP_MAX_SEGMENTS` in `linux/udp.h`.
const UDP_MAX_SEGMENTS: usize = 128;
/// `GSO_BY_FRAGS` in `linux/skbuff.h`: no size but a marker, which kernels refuse in the header.
const GSO_BY_FRAGS: u16 = 0xffff;
/// The longest IP packet without segmentation: its length field has 16 bits. IPv6 does not count
/// its header.
const MAX_IP_LEN: usize = u16::MAX as usize;
const IPV6_HEADER: usize = super::parse::IPV6_LEN;
/// Offset of the data offset in the TCP header.
const TCP_DATA_OFFSET: usize = 12;

/// Checks the virtio-net header of a frame and replaces it by one derived from `headers`, which
/// have been read as far as [`needs_net`] says.
///
/// # Errors
/// [`DropReason::VnetInvalid`] when it contradicts the frame, [`DropReason::Oversize`] when not all
/// of a GSO frame may be there.
#[inline]
pub fn admit(frame: &mut Frame, headers: &Headers) -> Result<(), DropReason> {
    let vnet = frame.vnet;
    if vnet.needs_csum() {
        return admit_partial(frame, headers);
    }
    // Segments get their checksums from a partial one, so no sender leaves that out.
    if vnet.gso_type != GSO_NONE || !fits_length_field(headers) {
        return Err(DropReason::VnetInvalid);
    }
    // `DATA_VALID` is a claim that nobody after us should have to believe.
    frame.vnet = VnetHdr::default();
    Ok(())
}

/// Whether [`admit`] looks behind the link headers.
#[must_use]
#[inline]
pub fn needs_net(frame: &Frame) -> bool {
    frame.vnet.needs_csum() || frame.len() > MAX_IP_LEN
}

/// Whether the IP packet is one that its length field can hold.
fn fits_length_field(headers: &Headers) -> bool {
    match &headers.net {
        Net::Ipv4(ip) => ip.total_len as usize <= MAX_IP_LEN,
        Net::Ipv6(ip) => ip.total_len as usize <= MAX_IP_LEN + IPV6_HEADER,
        _ => true,
    }
}

fn admit_partial(frame: &mut Frame, headers: &Headers) -> Result<(), DropReason> {
    let vnet = frame.vnet;
    let transport = Transport::of(headers);
    let ours = transport.filter(|transport| {
        usize::from(vnet.csum_start) == transport.start
            && usize::from(vnet.csum_offset) == transport.checksum
    });
    let Some(transport) = ours else {
        return complete(frame, headers);
    };
    let mut derived = VnetHdr {
        flags: F_NEEDS_CSUM,
        csum_start: vnet.csum_start,
        csum_offset: vnet.csum_offset,
        ..VnetHdr::default()
    };
    if vnet.gso_type != GSO_NONE {
        let size = check_gso(frame, &transport)?;
        // "Too small packets are not really GSO ones" (virtio_net_hdr_to_skb).
        if transport.end - transport.payload > usize::from(size) {
            derived.gso_type = gso_type(&transport);
            derived.gso_size = size;
            // Of a segment, which has no jumbo payload option any more.
            let jumbo = match transport.behind_jumbo_option(frame.bytes()) {
                Some(_) => JUMBO_LEN,
                None => 0,
            };
            derived.hdr_len = low_u16(transport.payload - jumbo);
        }
    }
    if derived.gso_type == GSO_NONE && !fits_length_field(headers) {
        return Err(DropReason::VnetInvalid);
    }
    frame.vnet = derived;
    Ok(())
}

/// The type that belongs to the headers. The ECN bit says that CWR is set, which must not be
/// repeated in every segment.
fn gso_type(transport: &Transport) -> u8 {
    match (transport.tcp_flags, transport.is_ipv6) {
        (None, _) => GSO_UDP_L4,
        (Some(flags), is_ipv6) => {
            let ecn = if flags & tcp_flags::CWR == 0 { 0 } else { GSO_ECN };
            ecn | if is_ipv6 { GSO_TCPV6 } else { GSO_TCPV4 }
        }
    }
}

/// The segment size, if type and size can be meant.
fn check_gso(frame: &Frame, transport: &Transport) -> Result<u16, DropReason> {
    // A sandbox may tell its interface to make longer frames than a buffer holds: cut by reading.
    if frame.len() >= MAX_FRAME_LEN {
        return Err(DropReason::Oversize);
    }
    let VnetHdr { gso_type: claimed, gso_size, .. } = frame.vnet;
    let size = usize::from(gso_size);
    let segments = (transport.end - transport.payload).div_ceil(size.max(1));
    let sound = match transport.tcp_flags {
        Some(flags) => {
            let options = transport.payload - transport.start - super::parse::TCP_LEN;
            // A connection starts and is reset with one segment.
            flags & (tcp_flags::SYN | tcp_flags::RST) == 0
                && (size + options >= TCP_MIN_SND_MSS || segments <= GRO_SEGMENTS)
                && segments <= TCP_MAX_SEGMENTS
        }
        None => {
            let length = read_u16(frame.bytes(), transport.start + 4).map(usize::from);
            length == Some(transport.end - transport.start) && segments <= UDP_MAX_SEGMENTS
        }
    };
    let type_fits = claimed & !GSO_ECN == gso_type(transport) & !GSO_ECN
        && (claimed & GSO_ECN == 0 || transport.tcp_flags.is_some());
    let fixed = if transport.is_ipv6 { IPV6_HEADER } else { 0 };
    let segment_fits = transport.payload - transport.l3 - fixed + size <= MAX_IP_LEN;
    let nothing_follows = transport.end == frame.len();
    if sound
        && type_fits
        && segment_fits
        && nothing_follows
        && gso_size != 0
        && gso_size != GSO_BY_FRAGS
    {
        Ok(gso_size)
    } else {
        Err(DropReason::VnetInvalid)
    }
}

/// The CRC of SCTP may be left open, and a tunnel's frame may come with the checksum of the *inner* packet
/// left open. Nothing behind us
/// should have to know about that, so it is completed here, as `skb_checksum_help` does; all it
/// can spoil is the sender's own payload.
fn complete(frame: &mut Frame, headers: &Headers) -> Result<(), DropReason> {
    let vnet = frame.vnet;
    let (l4, l4_offset, end, fragment) = match &headers.net {
        Net::Ipv4(ip) => (ip.l4, ip.l4_offset, ip.end(), ip.is_fragment()),
        Net::Ipv6(ip) => (ip.l4, ip.l4_offset, ip.end(), ip.is_fragment()),
        _ => return Err(DropReason::VnetInvalid),
    };
    let start = usize::from(vnet.csum_start);
    let offset = usize::from(vnet.csum_offset);
    let is_whole = !fragment && vnet.gso_type == GSO_NONE && fits_length_field(headers);
    if matches!(l4, L4::Sctp { .. }) && start == usize::from(l4_offset) && offset == sctp::CRC {
        let packet = frame.bytes_mut().get_mut(start..end).filter(|_| is_whole);
        if !packet.is_some_and(sctp::complete) {
            return Err(DropReason::VnetInvalid);
        }
        frame.vnet = VnetHdr::default();
        return Ok(());
    }
    // The inner checksum lies behind an outer UDP header, or in something we do not look into.
    let behind_outer = match l4 {
        L4::Udp { .. } => start >= usize::from(l4_offset) + super::parse::UDP_LEN,
        L4::Other => start > usize::from(l4_offset),
        _ => false,
    };
    if !behind_outer || !is_whole {
        return Err(DropReason::VnetInvalid);
    }
    let inner = frame.bytes_mut().get_mut(start..end).ok_or(DropReason::VnetInvalid)?;
    // The field holds the pseudo-header's sum: summing it along adds what belongs to it.
    let checksum = Sum::ZERO.add_bytes(inner).udp_checksum();
    if !write_u16(inner, offset, checksum) {
        return Err(DropReason::VnetInvalid);
    }
    frame.vnet = VnetHdr::default();
    Ok(())
}

/// Whether the packet of an admitted TCP GSO frame has a jumbo payload option: the header length is
/// that of its segments, which have none.
#[must_use]
pub fn has_jumbo_option(frame: &Frame) -> bool {
    let start = usize::from(frame.vnet.csum_start);
    let tcp_len = frame.bytes().get(start + TCP_DATA_OFFSET).map_or(0, |byte| byte >> 4) * 4;
    start + usize::from(tcp_len) > usize::from(frame.vnet.hdr_len)
}

/// Length of the longest IP packet that will be on a wire: of a segment for GSO frames, of the
/// packet otherwise. Frames without IP count what follows the link header. This is what an MTU is
/// compared with. The frame has been admitted.
#[inline]
#[must_use]
pub fn longest_packet(frame: &Frame, headers: &Headers) -> usize {
    let l3 = usize::from(headers.l3);
    if frame.vnet.is_gso() {
        return usize::from(frame.vnet.hdr_len).saturating_sub(l3)
            + usize::from(frame.vnet.gso_size);
    }
    match &headers.net {
        Net::Ipv4(ip) => ip.total_len as usize,
        Net::Ipv6(ip) => ip.total_len as usize,
        _ => frame.len().saturating_sub(l3),
    }
}

#[cfg(test)]
mod tests;
