//! Changing a frame in place: Ethernet addresses, TTL, and what NAT translates.
//!
//! Invariants: a checksum that was right before is right afterwards, complete or partial, and one
//! that was wrong stays wrong (RFC 3022 §4.2), because every change is incremental. The
//! [`Ipv4`] that a function takes by `&mut` describes the frame before and after. No function
//! changes the length of a frame, so every offset stays valid.
//!
//! Limits: unknown protocols get new addresses only. So do fragments of SCTP: what another port does to
//! its CRC depends on the length of the whole packet ([`super::crc32c`]).

use std::net::Ipv4Addr;

use super::checksum::Delta;
use super::field::{chunk, chunk_mut, read_u16, write, write_u16};
use super::headers::{Ipv4, L4};
use super::icmp::{self, InnerL4, InnerPacket};
use super::parse::IPV4_LEN;
use super::sctp;
use super::types::{Mac, ip_proto};
use crate::frame::Frame;
use crate::verdict::DropReason;

/// Offset of the total length in the IPv4 header.
const TOTAL_LENGTH: usize = 2;
/// Offset of the checksum in the IPv4 header.
pub(super) const IPV4_CHECKSUM: usize = 10;
/// Offset of the checksum in the TCP header.
pub(super) const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in the UDP header.
pub(super) const UDP_CHECKSUM: usize = 6;
/// Offset of the checksum in the ICMP header.
pub(super) const ICMP_CHECKSUM: usize = 2;
/// Offset of the identifier in ICMP queries.
pub(super) const ICMP_ID: usize = 4;

/// New addresses with their ports; `None` leaves that side as it is. For ICMP queries, which have
/// one identifier where others have two ports, the port is the identifier, and the source's counts
/// when both are given. Where there is no port (fragments, other protocols) only the address
/// changes. [`super::rewrite6`] has what applies one with IPv6 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite<A = Ipv4Addr> {
    /// Source address and port.
    pub src: Option<(A, u16)>,
    /// Destination address and port.
    pub dst: Option<(A, u16)>,
}

impl<A> Default for Rewrite<A> {
    fn default() -> Self {
        Self { src: None, dst: None }
    }
}

impl<A: Copy> Rewrite<A> {
    /// Changes the source only.
    #[must_use]
    pub const fn snat(address: A, port: u16) -> Self {
        Self { src: Some((address, port)), dst: None }
    }

    /// Changes the destination only.
    #[must_use]
    pub const fn dnat(address: A, port: u16) -> Self {
        Self { src: None, dst: Some((address, port)) }
    }

    /// For a packet that an ICMP error quotes, which went the other way: the sides change places.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src }
    }

    /// Whether nothing changes.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.src.is_none() && self.dst.is_none()
    }

    /// The new identifier of an ICMP query.
    pub(super) const fn icmp_id(&self) -> Option<u16> {
        match (self.src, self.dst) {
            (Some((_, id)), _) | (None, Some((_, id))) => Some(id),
            (None, None) => None,
        }
    }
}

impl Rewrite {
    /// What this does to the checksums of `ip` and of every packet with the same addresses,
    /// protocol and ports: a connection computes it once.
    #[must_use]
    pub fn deltas(&self, ip: &Ipv4) -> Deltas {
        let mut deltas = Deltas {
            addresses: address_delta(ip.src, self.src).and(address_delta(ip.dst, self.dst)),
            ports: Delta::NONE,
        };
        deltas.ports = match ip.l4 {
            L4::Tcp { src_port, dst_port, .. } | L4::Udp { src_port, dst_port } => {
                port_delta(src_port, self.src).and(port_delta(dst_port, self.dst))
            }
            L4::Icmp { kind, id, .. } if icmp::is_query(kind) => {
                self.icmp_id().map_or(Delta::NONE, |new| Delta::of_u16(id, new))
            }
            _ => Delta::NONE,
        };
        deltas
    }
}

fn address_delta(old: Ipv4Addr, new: Option<(Ipv4Addr, u16)>) -> Delta {
    new.map_or(Delta::NONE, |(new, _)| Delta::of_address(old, new))
}

pub(super) fn port_delta<A>(old: u16, new: Option<(A, u16)>) -> Delta {
    new.map_or(Delta::NONE, |(_, new)| Delta::of_u16(old, new))
}

/// The effect of a [`Rewrite`] on checksums. Addresses count in the header of IPv4, which alone has
/// a checksum, and in the pseudo-header; ports in the transport checksum only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deltas {
    /// Of the addresses.
    pub addresses: Delta,
    /// Of the ports, or of the ICMP identifier.
    pub ports: Delta,
}

/// Translates a packet.
#[inline]
pub fn apply(frame: &mut Frame, ip: &mut Ipv4, rewrite: &Rewrite) {
    let deltas = rewrite.deltas(ip);
    apply_with(frame, ip, rewrite, deltas);
}

/// Translates a packet with deltas that [`Rewrite::deltas`] gave for a packet of the same
/// connection and direction. A fragment may use them too: what it does not have is not touched.
#[inline]
pub fn apply_with(frame: &mut Frame, ip: &mut Ipv4, rewrite: &Rewrite, deltas: Deltas) {
    let partial = frame.vnet.needs_csum();
    let l3 = ip.l3_offset();
    let l4 = usize::from(ip.l4_offset);
    let (end, is_fragment) = (ip.end(), ip.is_fragment());
    let bytes = frame.bytes_mut();

    let Some(header) = chunk_mut::<IPV4_LEN>(bytes, l3) else { return };
    set_addresses(header, rewrite, deltas.addresses);
    if let Some((address, _)) = rewrite.src {
        ip.src = address;
    }
    if let Some((address, _)) = rewrite.dst {
        ip.dst = address;
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
        L4::Icmp { kind, id, .. } if icmp::is_query(*kind) => {
            if let Some(new) = rewrite.icmp_id()
                && write_u16(segment, ICMP_ID, new)
            {
                *id = new;
                update(segment, ICMP_CHECKSUM, |old| deltas.ports.apply(old));
            }
        }
        L4::Sctp { src_port, dst_port } if !is_fragment => {
            sctp::translate(segment, end.saturating_sub(l4), rewrite, src_port, dst_port);
        }
        L4::Icmp { .. } | L4::LaterFragment | L4::Other | L4::Sctp { .. } | L4::Truncated => {}
    }
}

/// Writes the addresses into an IPv4 header and corrects its checksum.
#[inline]
fn set_addresses(header: &mut [u8; IPV4_LEN], rewrite: &Rewrite, delta: Delta) {
    let [_, _, _, _, _, _, _, _, _, _, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    if let Some((address, _)) = rewrite.src {
        [*s0, *s1, *s2, *s3] = address.octets();
    }
    if let Some((address, _)) = rewrite.dst {
        [*d0, *d1, *d2, *d3] = address.octets();
    }
    [*c0, *c1] = delta.apply(u16::from_be_bytes([*c0, *c1])).to_be_bytes();
}

/// Writes the ports into a TCP or UDP header and into what was parsed from it.
#[inline]
pub(super) fn set_ports<A: Copy>(
    segment: &mut [u8],
    rewrite: &Rewrite<A>,
    src_port: &mut u16,
    dst_port: &mut u16,
) {
    if let Some((_, port)) = rewrite.src {
        write_u16(segment, 0, port);
        *src_port = port;
    }
    if let Some((_, port)) = rewrite.dst {
        write_u16(segment, 2, port);
        *dst_port = port;
    }
}

/// Replaces the 16-bit field at `at`, if it is there, by what `new` makes of it.
#[inline]
pub(super) fn update(bytes: &mut [u8], at: usize, new: impl FnOnce(u16) -> u16) -> Delta {
    let Some(old) = read_u16(bytes, at) else { return Delta::NONE };
    let new = new(old);
    write_u16(bytes, at, new);
    Delta::of_u16(old, new)
}

/// Takes one from the TTL.
///
/// # Errors
/// [`DropReason::TtlExceeded`] when nothing would be left; the frame is unchanged.
#[inline]
pub fn decrement_ttl(frame: &mut Frame, ip: &mut Ipv4) -> Result<(), DropReason> {
    if ip.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let ttl = ip.ttl - 1;
    if let Some(header) = chunk_mut::<IPV4_LEN>(frame.bytes_mut(), ip.l3_offset()) {
        let [_, _, _, _, _, _, _, _, at, proto, c0, c1, ..] = header;
        let delta =
            Delta::of_u16(u16::from_be_bytes([*at, *proto]), u16::from_be_bytes([ttl, *proto]));
        *at = ttl;
        [*c0, *c1] = delta.apply(u16::from_be_bytes([*c0, *c1])).to_be_bytes();
    }
    ip.ttl = ttl;
    Ok(())
}

/// Sets the length of a packet that has been made longer or shorter.
pub(crate) fn set_total_len(frame: &mut Frame, ip: &mut Ipv4, len: u16) {
    let l3 = ip.l3_offset();
    let Some(header) = frame.bytes_mut().get_mut(l3..) else { return };
    let delta = update(header, TOTAL_LENGTH, |_| len);
    update(header, IPV4_CHECKSUM, |old| delta.apply(old));
    ip.total_len = len.into();
}

/// Sets the identification in the IPv4 header at `l3`.
pub(crate) fn identify(bytes: &mut [u8], l3: usize, id: u32) {
    let Some(header) = chunk_mut::<IPV4_LEN>(bytes, l3) else { return };
    let [_, _, _, _, i0, i1, _, _, _, _, c0, c1, ..] = header;
    let [_, _, new0, new1] = id.to_be_bytes();
    let delta = Delta::of_u16(u16::from_be_bytes([*i0, *i1]), u16::from_be_bytes([new0, new1]));
    [*i0, *i1] = [new0, new1];
    [*c0, *c1] = delta.apply(u16::from_be_bytes([*c0, *c1])).to_be_bytes();
}

/// Sets the Ethernet addresses.
#[inline]
pub fn set_ethernet(frame: &mut Frame, dst: Mac, src: Mac) {
    let bytes = frame.bytes_mut();
    write(bytes, 0, dst.0);
    write(bytes, 6, src.0);
}

/// Translates the packet that an ICMP error quotes: its addresses, ports or identifier, its IPv4
/// checksum, its transport checksum if that far is quoted, and with all that the checksum of the
/// error. `outer` and `inner` describe the frame; the outer addresses are the business of
/// [`apply`].
///
/// The quoted packet went the other way: to undo SNAT in an error that comes back, the *source* of
/// the quoted packet is rewritten (see [`Rewrite::reversed`]).
pub fn apply_inner(frame: &mut Frame, outer: &Ipv4, inner: &mut InnerPacket, rewrite: &Rewrite) {
    let icmp = usize::from(outer.l4_offset);
    let at = usize::from(inner.offset);
    let l4 = at + usize::from(inner.header_len);
    let quoted_end = l4 + usize::from(inner.quoted_len);
    let bytes = frame.bytes_mut();

    let addresses =
        address_delta(inner.src, rewrite.src).and(address_delta(inner.dst, rewrite.dst));
    let Some(header) = chunk_mut::<IPV4_LEN>(bytes, at) else { return };
    // Of the transport, as the quoted packet says, of which the error may have only the beginning.
    let whole = read_u16(header, TOTAL_LENGTH).map_or(0, usize::from);
    let whole = whole.saturating_sub(usize::from(inner.header_len));
    let header_checksum_before = u16_at_checksum(header);
    set_addresses(header, rewrite, addresses);
    // Addresses and header checksum both lie under the checksum of the error.
    let mut error = addresses.and(Delta::of_u16(header_checksum_before, u16_at_checksum(header)));
    if let Some((address, _)) = rewrite.src {
        inner.src = address;
    }
    if let Some((address, _)) = rewrite.dst {
        inner.dst = address;
    }

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
                if let Some(new) = rewrite.icmp_id() {
                    let delta = Delta::of_u16(*id, new);
                    write_u16(segment, ICMP_ID, new);
                    *id = new;
                    let checksum = update(segment, ICMP_CHECKSUM, |old| delta.apply(old));
                    error = error.and(delta).and(checksum);
                }
            }
            InnerL4::None => {}
        }
    }
    update(bytes, icmp + ICMP_CHECKSUM, |old| error.apply(old));
}

fn u16_at_checksum(header: &[u8; IPV4_LEN]) -> u16 {
    chunk(header, IPV4_CHECKSUM).map_or(0, |field| u16::from_be_bytes(*field))
}

#[cfg(test)]
mod tests;
