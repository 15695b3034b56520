//! Changing an IPv6 packet in place: its hop limit, and what NAT translates. The Ethernet addresses
//! are set by [`super::rewrite::set_ethernet`].
//!
//! Invariants: those of [`super::rewrite`]. IPv6 has no checksum of its own; all that changes are
//! the transport checksums, of which ICMPv6's counts the addresses as well (RFC 4443 §2.3). The
//! first fragment of a datagram has the checksum of the whole of it, and is translated like a whole
//! packet; extension headers stay as they are.
//!
//! Limits: as for IPv4, unknown protocols and fragments of SCTP get new addresses only. Where the transport
//! checksum is not over the addresses of the header (a routing header with segments left, a home
//! address option: RFC 8200 §8.1, RFC 6275 §6.3) it is wrong after the translation, as it is after
//! Linux'. An authentication header does not survive a translation at all (RFC 4302 §3.3.3).

use std::net::Ipv6Addr;

use super::checksum::Delta;
use super::field::{low_u16, read_u16, write, write_u16};
use super::headers::{Ipv6, L4};
use super::icmp::InnerL4;
use super::icmp6::{self, InnerPacket};
use super::rewrite::{
    Deltas, ICMP_CHECKSUM, ICMP_ID, Rewrite, TCP_CHECKSUM, UDP_CHECKSUM, port_delta, set_ports,
    update,
};
use super::sctp;
use super::types::ip_proto;
use crate::frame::Frame;
use crate::verdict::DropReason;

/// Offset of the payload length in the IPv6 header.
const PAYLOAD_LENGTH: usize = 4;
/// Offset of the hop limit in the IPv6 header.
const HOP_LIMIT: usize = 7;
/// Offset of the source address.
const SOURCE: usize = 8;
/// Offset of the destination address.
const DESTINATION: usize = 24;
/// Offset of the identification in the fragment header.
const IDENTIFICATION: usize = 4;

impl Rewrite<Ipv6Addr> {
    /// What this does to the checksums of `ip` and of every packet with the same addresses,
    /// protocol and ports: a connection computes it once.
    #[must_use]
    pub fn deltas(&self, ip: &Ipv6) -> Deltas {
        let ports = match ip.l4 {
            L4::Tcp { src_port, dst_port, .. } | L4::Udp { src_port, dst_port } => {
                port_delta(src_port, self.src).and(port_delta(dst_port, self.dst))
            }
            L4::Icmp { kind, id, .. } if icmp6::is_query(kind) => {
                self.icmp_id().map_or(Delta::NONE, |new| Delta::of_u16(id, new))
            }
            _ => Delta::NONE,
        };
        Deltas { addresses: self.address_delta(ip.src, ip.dst), ports }
    }

    fn address_delta(&self, src: Ipv6Addr, dst: Ipv6Addr) -> Delta {
        let of = |old, new: Option<(Ipv6Addr, u16)>| {
            new.map_or(Delta::NONE, |(new, _)| Delta::of_address6(old, new))
        };
        of(src, self.src).and(of(dst, self.dst))
    }

    /// Writes the addresses into the IPv6 header at `l3` and into what was parsed from it. False,
    /// and nothing is changed: there is no whole header.
    #[inline]
    fn set_addresses(
        &self,
        bytes: &mut [u8],
        l3: usize,
        src: &mut Ipv6Addr,
        dst: &mut Ipv6Addr,
    ) -> bool {
        if bytes.len() < l3 + super::parse::IPV6_LEN {
            return false;
        }
        if let Some((address, _)) = self.src {
            write(bytes, l3 + SOURCE, address.octets());
            *src = address;
        }
        if let Some((address, _)) = self.dst {
            write(bytes, l3 + DESTINATION, address.octets());
            *dst = address;
        }
        true
    }
}

/// Sets the length of a packet, header included, that has been made longer or shorter.
pub(crate) fn set_total_len(frame: &mut Frame, ip: &mut Ipv6, len: u16) {
    let payload = len.saturating_sub(low_u16(super::parse::IPV6_LEN));
    write_u16(frame.bytes_mut(), ip.l3_offset() + PAYLOAD_LENGTH, payload);
    ip.total_len = len.into();
}

/// Translates a packet.
#[inline]
pub fn apply(frame: &mut Frame, ip: &mut Ipv6, rewrite: &Rewrite<Ipv6Addr>) {
    let deltas = rewrite.deltas(ip);
    apply_with(frame, ip, rewrite, deltas);
}

/// Translates a packet with deltas that [`Rewrite::deltas`] gave for a packet of the same
/// connection and direction. A fragment may use them too: what it does not have is not touched.
#[inline]
pub fn apply_with(frame: &mut Frame, ip: &mut Ipv6, rewrite: &Rewrite<Ipv6Addr>, deltas: Deltas) {
    let partial = frame.vnet.needs_csum();
    let l3 = ip.l3_offset();
    let l4 = usize::from(ip.l4_offset);
    let (end, is_fragment) = (ip.end(), ip.is_fragment());
    let bytes = frame.bytes_mut();
    if !rewrite.set_addresses(bytes, l3, &mut ip.src, &mut ip.dst) {
        return;
    }
    let Some(segment) = bytes.get_mut(l4..) else { return };
    let both = deltas.addresses.and(deltas.ports);
    match &mut ip.l4 {
        L4::Tcp { src_port, dst_port, .. } => {
            set_ports(segment, rewrite, src_port, dst_port);
            update(segment, TCP_CHECKSUM, |old| {
                if partial { deltas.addresses.apply_partial(old) } else { both.apply(old) }
            });
        }
        L4::Udp { src_port, dst_port } => {
            set_ports(segment, rewrite, src_port, dst_port);
            update(segment, UDP_CHECKSUM, |old| {
                if partial { deltas.addresses.apply_partial(old) } else { both.apply_udp(old) }
            });
        }
        // No sender leaves the checksum of ICMPv6 to a device, and none would be believed.
        L4::Icmp { kind, id, .. } => {
            let query = icmp6::is_query(*kind);
            if let (true, Some(new)) = (query, rewrite.icmp_id()) {
                write_u16(segment, ICMP_ID, new);
                *id = new;
            }
            let delta = if query { both } else { deltas.addresses };
            update(segment, ICMP_CHECKSUM, |old| delta.apply(old));
        }
        L4::Sctp { src_port, dst_port } if !is_fragment => {
            sctp::translate(segment, end.saturating_sub(l4), rewrite, src_port, dst_port);
        }
        L4::LaterFragment | L4::Other | L4::Sctp { .. } | L4::Truncated => {}
    }
}

/// Takes one from the hop limit.
///
/// # Errors
/// [`DropReason::TtlExceeded`] when nothing would be left; the frame is unchanged.
#[inline]
pub fn decrement_hop_limit(frame: &mut Frame, ip: &mut Ipv6) -> Result<(), DropReason> {
    if ip.hop_limit <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    ip.hop_limit -= 1;
    write(frame.bytes_mut(), ip.l3_offset() + HOP_LIMIT, [ip.hop_limit]);
    Ok(())
}

/// Sets the identification in the fragment header at `at`.
pub(crate) fn identify(bytes: &mut [u8], at: usize, id: u32) {
    write(bytes, at + IDENTIFICATION, id.to_be_bytes());
}

/// Sets the identification of the fragment that an ICMPv6 error quotes, and corrects the checksum of the
/// error.
pub(crate) fn identify_inner(frame: &mut Frame, outer: &Ipv6, inner: &InnerPacket, id: u32) {
    if inner.fragment_at == 0 {
        return;
    }
    let at = usize::from(inner.offset) + usize::from(inner.fragment_at);
    let halves = |id: u32| {
        let [a, b, c, d] = id.to_be_bytes();
        [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
    };
    let ([high, low], [new_high, new_low]) = (halves(inner.frag_id), halves(id));
    let delta = Delta::of_u16(high, new_high).and(Delta::of_u16(low, new_low));
    let bytes = frame.bytes_mut();
    identify(bytes, at, id);
    update(bytes, usize::from(outer.l4_offset) + ICMP_CHECKSUM, |old| delta.apply(old));
}

/// Translates the packet that an ICMPv6 error quotes: its addresses, ports or identifier, its
/// transport checksum if that far is quoted, and with all that the checksum of the error. `outer`
/// and `inner` describe the frame; the outer addresses are the business of [`apply`].
///
/// The quoted packet went the other way: see [`Rewrite::reversed`].
pub fn apply_inner(
    frame: &mut Frame,
    outer: &Ipv6,
    inner: &mut InnerPacket,
    rewrite: &Rewrite<Ipv6Addr>,
) {
    let icmp = usize::from(outer.l4_offset);
    let at = usize::from(inner.offset);
    let l4 = at + usize::from(inner.header_len);
    let quoted_end = l4 + usize::from(inner.quoted_len);
    let bytes = frame.bytes_mut();

    let addresses = rewrite.address_delta(inner.src, inner.dst);
    if !rewrite.set_addresses(bytes, at, &mut inner.src, &mut inner.dst) {
        return;
    }
    // Of the transport, as the quoted packet says, of which the error may have only the beginning.
    let payload = read_u16(bytes, at + PAYLOAD_LENGTH).map_or(0, usize::from);
    let whole = (super::parse::IPV6_LEN + payload).saturating_sub(usize::from(inner.header_len));
    let mut error = addresses;
    if let Some(segment) = bytes.get_mut(l4..quoted_end) {
        match &mut inner.l4 {
            InnerL4::Ports { src_port, dst_port } if inner.proto == ip_proto::SCTP => {
                let delta = sctp::translate(segment, whole, rewrite, src_port, dst_port);
                error = error.and(delta);
            }
            InnerL4::Ports { src_port, dst_port } => {
                let ports =
                    port_delta(*src_port, rewrite.src).and(port_delta(*dst_port, rewrite.dst));
                set_ports(segment, rewrite, src_port, dst_port);
                let both = addresses.and(ports);
                let checksum = if inner.proto == ip_proto::UDP {
                    update(segment, UDP_CHECKSUM, |old| both.apply_udp(old))
                } else {
                    update(segment, TCP_CHECKSUM, |old| both.apply(old))
                };
                error = error.and(ports).and(checksum);
            }
            InnerL4::Query { id, .. } => {
                let mut both = addresses;
                if let Some(new) = rewrite.icmp_id() {
                    let delta = Delta::of_u16(*id, new);
                    write_u16(segment, ICMP_ID, new);
                    *id = new;
                    both = both.and(delta);
                    error = error.and(delta);
                }
                error = error.and(update(segment, ICMP_CHECKSUM, |old| both.apply(old)));
            }
            InnerL4::None => {}
        }
    }
    update(bytes, icmp + ICMP_CHECKSUM, |old| error.apply(old));
}

#[cfg(test)]
mod tests;
