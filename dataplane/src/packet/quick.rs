//! The commonest packet: Ethernet without a tag, IPv4 without options and not a fragment, TCP or UDP.
//! Every field is at a fixed place, so that it is read and translated in one go.
//!
//! Whatever is unusual about a packet, sound or not, is `None` here and the business of
//! [`super::parse`]: nothing but speed depends on which of the two reads it.

use super::checksum::{Delta, plain_ipv4_header_is_valid};
use super::parse::{ETH_LEN, TCP_LEN, UDP_LEN};
use super::rewrite::{TCP_CHECKSUM, UDP_CHECKSUM};
use super::types::ip_proto;
use crate::frame::Frame;
use crate::io::vnet_hdr::{F_NEEDS_CSUM, GSO_NONE, VnetHdr};

/// Where the transport header is.
pub(crate) const L4: usize = ETH_LEN + super::parse::IPV4_LEN;
/// Ethernet and IPv4 header, and what TCP and UDP have in common in theirs.
const COMMON: usize = L4 + UDP_LEN;
/// Version 4, header length 20.
const PLAIN_IPV4: u8 = 0x45;
/// "More fragments" and the fragment offset.
const FRAGMENT_MASK: u16 = 0x3fff;

/// Length of the TCP header of such a packet.
#[inline]
pub(crate) fn tcp_header_len(frame: &Frame) -> Option<u8> {
    frame.bytes().get(L4 + 12).map(|offset| (offset >> 4) * 4)
}

/// What such a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quick {
    /// `src:32 | dst:32`.
    pub(crate) addresses: u64,
    /// `src_port:16 | dst_port:16`.
    pub(crate) ports: u32,
    /// TCP or UDP.
    pub(crate) proto: u8,
    /// TCP's flags; nothing for UDP.
    pub(crate) tcp_flags: u8,
    /// Length of the packet.
    pub(crate) total_len: u16,
}

impl Quick {
    /// Reads a packet that may be forwarded: its TTL does not run out, its header checksum is sound,
    /// and its frame has a virtio-net header that [`super::offload::admit`] would leave as it is but
    /// for claims.
    #[inline]
    pub(crate) fn read(frame: &Frame) -> Option<Self> {
        let bytes = frame.bytes();
        let head = bytes.first_chunk::<COMMON>()?;
        let (ethernet, header) = head.split_first_chunk::<ETH_LEN>()?;
        let (header, l4) = header.split_first_chunk::<20>()?;
        let [vi, _, l0, l1, _, _, f0, f1, ttl, proto, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
            *header;
        let [.., t0, t1] = *ethernet;
        let &[p0, p1, p2, p3, u0, u1, _, _] = l4.first_chunk::<UDP_LEN>()?;
        let total_len = u16::from_be_bytes([l0, l1]);
        let end = ETH_LEN + usize::from(total_len);
        if [t0, t1] != [0x08, 0x00]
            || vi != PLAIN_IPV4
            || u16::from_be_bytes([f0, f1]) & FRAGMENT_MASK != 0
            || ttl <= 1
            || end > bytes.len()
            || !plain_ipv4_header_is_valid(header)
        {
            return None;
        }
        let (tcp_flags, checksum) = match proto {
            ip_proto::UDP => {
                let length = usize::from(u16::from_be_bytes([u0, u1]));
                if length < UDP_LEN || L4 + length > end {
                    return None;
                }
                (0, UDP_CHECKSUM)
            }
            ip_proto::TCP => {
                let tcp = bytes.get(L4..end)?.first_chunk::<TCP_LEN>()?;
                let header_len = usize::from(tcp[12] >> 4) * 4;
                if header_len < TCP_LEN || L4 + header_len > end {
                    return None;
                }
                (tcp[13], TCP_CHECKSUM)
            }
            _ => return None,
        };
        if !is_plain(&frame.vnet) && !is_partial(&frame.vnet, checksum) {
            return None;
        }
        Some(Self {
            addresses: u64::from_be_bytes([s0, s1, s2, s3, d0, d1, d2, d3]),
            ports: u32::from_be_bytes([p0, p1, p2, p3]),
            proto,
            tcp_flags,
            total_len,
        })
    }
}

/// One segment with a complete checksum.
#[inline]
pub(crate) fn is_plain(vnet: &VnetHdr) -> bool {
    vnet.flags & F_NEEDS_CSUM == 0 && vnet.gso_type == GSO_NONE
}

/// One segment whose own transport checksum is left open.
#[inline]
fn is_partial(vnet: &VnetHdr, checksum: usize) -> bool {
    vnet.flags & F_NEEDS_CSUM != 0
        && vnet.gso_type == GSO_NONE
        && usize::from(vnet.csum_start) == L4
        && usize::from(vnet.csum_offset) == checksum
}

/// What a packet becomes on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// Destination and source MAC.
    pub(crate) macs: [u8; 12],
    /// As in [`Quick::addresses`].
    pub(crate) addresses: u64,
    /// As in [`Quick::ports`].
    pub(crate) ports: u32,
}

/// Forwards a packet that [`Quick::read`] has read: one off the TTL, other addresses and ports, other
/// MACs, and the frame ends with the packet. As [`super::rewrite`] does it step by step.
#[inline]
pub(crate) fn forward(frame: &mut Frame, was: &Quick, change: &Change) {
    frame.truncate(ETH_LEN + usize::from(was.total_len));
    let partial = frame.vnet.needs_csum();
    frame.vnet = if partial {
        let VnetHdr { csum_start, csum_offset, .. } = frame.vnet;
        VnetHdr { flags: F_NEEDS_CSUM, csum_start, csum_offset, ..VnetHdr::default() }
    } else {
        VnetHdr::default()
    };
    let bytes = frame.bytes_mut();
    let Some(head) = bytes.first_chunk_mut::<COMMON>() else { return };
    if let Some(macs) = head.first_chunk_mut() {
        *macs = change.macs;
    }
    // The TTL is the upper byte of its word.
    let ttl = head[22];
    let aged = Delta::of_u16(u16::from(ttl) << 8, u16::from(ttl - 1) << 8);
    head[22] = ttl - 1;
    let moved = change.addresses != was.addresses || change.ports != was.ports;
    let addresses =
        if moved { Delta::of_u64(was.addresses, change.addresses) } else { Delta::NONE };
    let sum = u16::from_be_bytes([head[24], head[25]]);
    [head[24], head[25]] = aged.and(addresses).apply(sum).to_be_bytes();
    if !moved {
        return;
    }
    let [.., a0, a1, a2, a3, a4, a5, a6, a7, p0, p1, p2, p3, _, _, _, _] = head;
    [*a0, *a1, *a2, *a3, *a4, *a5, *a6, *a7] = change.addresses.to_be_bytes();
    [*p0, *p1, *p2, *p3] = change.ports.to_be_bytes();
    let both = addresses.and(Delta::of_u32(was.ports, change.ports));
    let at = L4 + if was.proto == ip_proto::UDP { UDP_CHECKSUM } else { TCP_CHECKSUM };
    let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>) else { return };
    let sum = u16::from_be_bytes(*field);
    let sum = match (partial, was.proto) {
        (true, _) => addresses.apply_partial(sum),
        (false, ip_proto::UDP) => both.apply_udp(sum),
        (false, _) => both.apply(sum),
    };
    *field = sum.to_be_bytes();
}

#[cfg(test)]
#[path = "quick_tests.rs"]
mod tests;
