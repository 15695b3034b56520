//! Generic receive offload: consecutive TCP segments of a flow that wait for the same device become
//! one GSO frame; consecutive UDP datagrams of a flow too ([`udp`]).
//!
//! A sender without segmentation offload gives a frame of at most one MTU for each segment, and
//! every device and stack behind us would handle each by itself. Where this is done and why:
//! docs/adr/0009-gro-at-egress.md. The rules are those of Linux (`tcp_gro_receive` and
//! `inet_gro_receive`), and its own test is ours (`tools/testing/selftests/net/gro.c`).
//!
//! Invariant: cutting the merged frame again ([`super::segment`]) gives the frames that were merged,
//! byte for byte, with complete checksums. One field is excepted, as in Linux: the identification
//! of IPv4 packets that must not be fragmented, which means nothing (RFC 6864 §4.1), counts up
//! afterwards if it stood still before. Whatever does not come out the same is not merged.
//! Frames of a flow stay in order: one that does not join ends what was gathered before it.
//!
//! Limits: no segment begins with a frame of fewer than [`SHORTEST`] bytes; plain frames only (one that
//! stands for several segments already is left as it is), and only what waits at the same moment.

mod udp;

use super::checksum::ipv4_header_is_valid;
use super::field::{chunk, low_u16, low_u32, read_u16, write, write_u16};
use super::parse::{ETH_LEN, IPV4_LEN, IPV6_LEN, TCP_LEN, VLAN_TAG_LEN};
use super::rewrite::{IPV4_CHECKSUM, TCP_CHECKSUM};
use super::segment::{TCP_FLAGS, seal_ipv4_header};
use super::transport::Transport;
use super::types::{ethertype, ip_proto, tcp_flags};
use crate::frame::Frame;
use crate::io::Offloads;
use crate::io::vnet_hdr::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHdr};
use crate::pool::Pool;

/// The longest packet made: what kernels take that know no BIG TCP (`GRO_LEGACY_MAX_SIZE`).
const MAX_PACKET: usize = 65_535;
/// Segments of one frame at most: as many of any size as [`super::offload`] believes, of which
/// another switch behind the next device may be the judge.
const MAX_SEGMENTS: usize = super::offload::GRO_SEGMENTS;
/// The shortest frame that others may join. Merging such as are shorter would not pay for looking at
/// them, and they come in great numbers: acknowledgements.
const SHORTEST: usize = 128;
/// Flows gathered at a time; the one begun first makes room for another.
const MAX_FLOWS: usize = 8;
/// VLAN tags of a frame that is merged at most: 802.1ad has two.
const MAX_TAGS: usize = 2;

/// More fragments, or an offset, in the IPv4 flags and fragment offset word.
const IPV4_FRAGMENT: u16 = 0x3fff;
/// "Don't fragment" in the same word.
const IPV4_DF: u16 = 0x4000;
/// An IPv4 header without options.
const IPV4_PLAIN: u8 = 0x45;
/// IPv6 extension headers that may precede TCP, if they are the same in all segments.
const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;

/// Flags that a segment in the middle may have.
const MIDDLE: u8 = tcp_flags::ACK | tcp_flags::ECE;
/// Flags that only the last segment may have.
const LAST: u8 = tcp_flags::PSH | tcp_flags::FIN;

/// Merges what waits for a device. It keeps nothing from one call to the next.
#[derive(Debug)]
pub(crate) struct Gro {
    open: Vec<Open>,
}

impl Default for Gro {
    fn default() -> Self {
        Self { open: Vec::with_capacity(MAX_FLOWS) }
    }
}

/// A TCP segment in one frame.
#[derive(Clone, Copy, Debug)]
struct Segment {
    at: Transport,
    ports: [u8; 4],
    sequence: u32,
    flags: u8,
    /// May become a part of a larger frame.
    joins: bool,
}

impl Segment {
    fn payload_len(&self) -> usize {
        self.at.end.saturating_sub(self.at.payload)
    }
}

/// A frame that later ones may join.
#[derive(Debug)]
struct Open {
    /// Where it waits.
    index: usize,
    /// As it was received.
    first: Segment,
    segments: usize,
    /// The sequence number that comes next.
    next: u32,
    ids: Ids,
    /// Its checksums have been verified.
    sound: bool,
}

/// What the identification fields of a flow's IPv4 packets do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ids {
    Unknown,
    Fixed,
    Rising,
}

/// What a frame is to this module.
enum Look {
    /// No TCP: none of its business.
    Other,
    /// TCP of a flow that cannot be told.
    Unreadable,
    Tcp(Segment),
}

impl Gro {
    /// Merges what can be merged in `queue`, whose frames have been admitted and wait for a device
    /// that takes `offloads`. Returns how many frames became part of another; their buffers go back
    /// to `pool`.
    pub(crate) fn merge(
        &mut self,
        queue: &mut Vec<Frame>,
        offloads: Offloads,
        pool: &mut Pool,
    ) -> u64 {
        if queue.len() < 2 || !offloads.csum {
            return 0;
        }
        let datagrams = if offloads.uso { udp::merge(queue, pool) } else { 0 };
        datagrams + self.merge_segments(queue, offloads, pool)
    }

    fn merge_segments(
        &mut self,
        queue: &mut Vec<Frame>,
        offloads: Offloads,
        pool: &mut Pool,
    ) -> u64 {
        if !(offloads.tso4 || offloads.tso6) || !queue.iter().any(may_begin) {
            return 0;
        }
        let mut kept = 0;
        for at in 0..queue.len() {
            if !self.absorb(queue, kept, at, offloads) {
                if kept != at {
                    queue.swap(kept, at);
                }
                kept += 1;
            }
        }
        self.seal_all(queue);
        let mut merged = 0;
        for frame in queue.drain(kept..) {
            pool.put(frame);
            merged += 1;
        }
        merged
    }

    /// Whether the frame at `at` became part of one before it. If not, it will be at `kept`.
    fn absorb(&mut self, queue: &mut [Frame], kept: usize, at: usize, offloads: Offloads) -> bool {
        let Some((before, [frame, ..])) = queue.split_at_mut_checked(at) else { return false };
        let segment = match look(frame) {
            Look::Other => return false,
            Look::Unreadable => {
                self.seal_all(before);
                return false;
            }
            Look::Tcp(segment) => segment,
        };
        let same_flow = |open: &Open| {
            before.get(open.index).is_some_and(|head| is_same_flow(head, open, frame, &segment))
        };
        if let Some(found) = self.open.iter().position(same_flow)
            && let Some(open) = self.open.get_mut(found)
            && let Some(head) = before.get_mut(open.index)
        {
            let joined = open.join(head, frame, &segment);
            let full = segment.payload_len() == open.first.payload_len();
            if !joined || !full || segment.flags & LAST != 0 {
                // There are few, and they stay in the order in which they were begun.
                self.open.remove(found).seal(head);
            }
            if joined {
                return true;
            }
        }
        let begins = may_begin(frame) && segment.joins && segment.flags & LAST == 0;
        let takes = if segment.at.is_ipv6 { offloads.tso6 } else { offloads.tso4 };
        if begins && takes {
            if self.open.len() == MAX_FLOWS {
                let oldest = self.open.remove(0);
                oldest.seal_in(before);
            }
            self.open.push(Open::begin(kept, segment));
        }
        false
    }

    fn seal_all(&mut self, queue: &mut [Frame]) {
        for open in self.open.drain(..) {
            open.seal_in(queue);
        }
    }
}

impl Open {
    fn begin(index: usize, first: Segment) -> Self {
        let next = first.sequence.wrapping_add(low_u32(first.payload_len()));
        Self { index, first, segments: 1, next, ids: Ids::Unknown, sound: false }
    }

    /// Appends a segment of the same flow to `head`, if it continues it.
    fn join(&mut self, head: &mut Frame, frame: &Frame, segment: &Segment) -> bool {
        let length = segment.payload_len();
        if !segment.joins
            || segment.sequence != self.next
            || length > self.first.payload_len()
            || self.segments == MAX_SEGMENTS
            || head.len() - self.first.at.l3 + length > MAX_PACKET
        {
            return false;
        }
        let Some(ids) = self.headers_allow(head.bytes(), frame.bytes(), segment) else {
            return false;
        };
        self.sound = self.sound || is_sound(head, &self.first.at);
        if !self.sound || !is_sound(frame, &segment.at) {
            return false;
        }
        head.append(frame.bytes().get(segment.at.payload..).unwrap_or_default());
        let flags = self.first.flags | segment.flags & LAST;
        write(head.bytes_mut(), self.first.at.start + TCP_FLAGS, [flags]);
        self.segments += 1;
        self.next = self.next.wrapping_add(low_u32(length));
        self.ids = ids;
        true
    }

    /// Whether the headers differ only in what segmentation changes; what the identification does
    /// then.
    fn headers_allow(&self, head: &[u8], bytes: &[u8], segment: &Segment) -> Option<Ids> {
        let Transport { l3, start, payload, is_ipv6, .. } = self.first.at;
        if (l3, start, payload) != (segment.at.l3, segment.at.start, segment.at.payload) {
            return None;
        }
        let same = |from: usize, to: usize| head.get(from..to) == bytes.get(from..to);
        // Acknowledgement number and header length; window; urgent pointer and options. Flags
        // differ in the last segment only, where they are looked at.
        let tcp = same(start + 8, start + TCP_FLAGS)
            && same(start + 14, start + TCP_CHECKSUM)
            && same(start + 18, payload)
            && self.first.flags & !LAST == segment.flags & !LAST;
        if is_ipv6 {
            // Traffic class and flow label; next header and hop limit; extension headers.
            let ip = same(l3, l3 + 4) && same(l3 + 6, l3 + 8) && same(l3 + IPV6_LEN, start);
            return (tcp && ip).then_some(Ids::Unknown);
        }
        // Type of service; flags, TTL and protocol.
        if !tcp || !same(l3, l3 + 2) || !same(l3 + 6, l3 + IPV4_CHECKSUM) {
            return None;
        }
        self.ids.continued(head, bytes, l3, self.segments)
    }

    fn seal_in(self, queue: &mut [Frame]) {
        if let Some(head) = queue.get_mut(self.index) {
            self.seal(head);
        }
    }

    /// Makes a GSO frame of what was gathered.
    fn seal(self, head: &mut Frame) {
        if self.segments < 2 {
            return;
        }
        seal(head, &self.first.at);
    }
}

impl Ids {
    /// What they do if the packet in `bytes` is the one after `count` that are in `head`; `None`: that
    /// cannot be said of it.
    fn continued(self, head: &[u8], bytes: &[u8], l3: usize, count: usize) -> Option<Self> {
        let first = read_u16(head, l3 + 4)?;
        let id = read_u16(bytes, l3 + 4)?;
        let atomic = read_u16(head, l3 + 6)? & IPV4_DF != 0;
        let ids = if id == first.wrapping_add(low_u16(count)) {
            Self::Rising
        } else if id == first && atomic {
            Self::Fixed
        } else {
            return None;
        };
        (self == Self::Unknown || self == ids).then_some(ids)
    }
}

/// Makes a GSO frame of `head`, whose first part was `first` and to which the payloads of others have
/// been appended.
fn seal(head: &mut Frame, first: &Transport) {
    let Transport { l3, start, payload, checksum, is_ipv6, .. } = *first;
    let transport = Transport { end: head.len(), ..*first };
    let bytes = head.bytes_mut();
    let packet = bytes.len() - l3;
    if is_ipv6 {
        write_u16(bytes, l3 + 4, low_u16(packet - IPV6_LEN));
    } else {
        write_u16(bytes, l3 + 2, low_u16(packet));
        seal_ipv4_header(bytes, l3, start - l3);
    }
    if let Some(sum) = transport.pseudo_header(bytes, transport.end - start) {
        write_u16(bytes, start + checksum, sum.fold());
    }
    let gso_type = match (first.tcp_flags, is_ipv6) {
        (None, _) => GSO_UDP_L4,
        (Some(_), true) => GSO_TCPV6,
        (Some(_), false) => GSO_TCPV4,
    };
    head.vnet = VnetHdr {
        flags: F_NEEDS_CSUM,
        gso_type,
        hdr_len: low_u16(payload),
        gso_size: low_u16(first.end - payload),
        csum_start: low_u16(start),
        csum_offset: low_u16(checksum),
    };
}

/// Whether other frames might join this one, by the little that is quickly seen: most batches have
/// none of that kind and are left at that.
#[inline]
fn may_begin(frame: &Frame) -> bool {
    const IPV4_PROTO: usize = ETH_LEN + 9;
    const IPV6_NEXT: usize = ETH_LEN + 6;
    if frame.len() < SHORTEST || frame.vnet.is_gso() {
        return false;
    }
    let Some(&[.., t0, t1, _, _, _, _, _, _, next, _, _, proto]) =
        chunk::<{ IPV4_PROTO + 1 }>(frame.bytes(), 0)
    else {
        return false;
    };
    const { assert!(IPV6_NEXT + 4 == IPV4_PROTO + 1) };
    match u16::from_be_bytes([t0, t1]) {
        ethertype::IPV4 => proto == ip_proto::TCP,
        ethertype::IPV6 => matches!(next, ip_proto::TCP | HOP_BY_HOP | DESTINATION_OPTIONS),
        ethertype::VLAN | ethertype::QINQ => true,
        _ => false,
    }
}

/// Whether ports, addresses and everything before the IP header are the same.
fn is_same_flow(head: &Frame, open: &Open, frame: &Frame, segment: &Segment) -> bool {
    let Transport { l3, is_ipv6, .. } = segment.at;
    if open.first.ports != segment.ports
        || open.first.at.l3 != l3
        || open.first.at.is_ipv6 != is_ipv6
    {
        return false;
    }
    let addresses = if is_ipv6 { l3 + 8..l3 + IPV6_LEN } else { l3 + 12..l3 + IPV4_LEN };
    let (head, bytes) = (head.bytes(), frame.bytes());
    head.get(addresses.clone()) == bytes.get(addresses) && head.get(..l3) == bytes.get(..l3)
}

/// Whether the checksums are what computing them anew will give.
fn is_sound(frame: &Frame, at: &Transport) -> bool {
    let bytes = frame.bytes();
    let Transport { l3, start, is_ipv6, .. } = *at;
    // The other zero of one's complement is valid too, but nobody writes it.
    let ip = is_ipv6
        || read_u16(bytes, l3 + IPV4_CHECKSUM) != Some(0xffff)
            && bytes.get(l3..start).is_some_and(ipv4_header_is_valid);
    let stored = || read_u16(bytes, start + at.checksum);
    // A partial sum is completed by whoever sends the frame, merged or not.
    ip && (frame.vnet.needs_csum() || at.full_checksum(bytes) == stored())
}

/// Reads as much of a frame as merging asks for; for most frames, the protocol number.
#[inline]
fn look(frame: &Frame) -> Look {
    let bytes = frame.bytes();
    let mut l3 = ETH_LEN;
    let mut kind = read_u16(bytes, ETH_LEN - 2);
    while let Some(ethertype::VLAN | ethertype::QINQ) = kind
        && l3 < ETH_LEN + MAX_TAGS * VLAN_TAG_LEN
    {
        kind = read_u16(bytes, l3 + 2);
        l3 += VLAN_TAG_LEN;
    }
    match kind {
        Some(ethertype::IPV4) => look_ipv4(frame, l3),
        Some(ethertype::IPV6) => look_ipv6(frame, l3),
        _ => Look::Other,
    }
}

fn look_ipv4(frame: &Frame, l3: usize) -> Look {
    let bytes = frame.bytes();
    let Some(&[vi, _, l0, l1, _, _, f0, f1, _, proto, ..]) = chunk::<IPV4_LEN>(bytes, l3) else {
        return Look::Other;
    };
    if proto != ip_proto::TCP {
        return Look::Other;
    }
    if vi >> 4 != 4 || u16::from_be_bytes([f0, f1]) & IPV4_FRAGMENT != 0 {
        return Look::Unreadable;
    }
    let start = l3 + usize::from(vi & 0x0f) * 4;
    let exact = usize::from(u16::from_be_bytes([l0, l1])) == bytes.len() - l3;
    look_tcp(frame, l3, start, false, vi == IPV4_PLAIN && exact)
}

fn look_ipv6(frame: &Frame, l3: usize) -> Look {
    let bytes = frame.bytes();
    let Some(&[vi, _, _, _, l0, l1, next, ..]) = chunk::<IPV6_LEN>(bytes, l3) else {
        return Look::Other;
    };
    let mut start = l3 + IPV6_LEN;
    let proto = match next {
        HOP_BY_HOP | DESTINATION_OPTIONS => {
            let Some(&[proto, units]) = chunk::<2>(bytes, start) else { return Look::Unreadable };
            start += (usize::from(units) + 1) * 8;
            proto
        }
        proto => proto,
    };
    match proto {
        ip_proto::TCP if vi >> 4 == 6 => {
            let length = usize::from(u16::from_be_bytes([l0, l1]));
            look_tcp(frame, l3, start, true, length + IPV6_LEN == bytes.len() - l3)
        }
        ip_proto::UDP | ip_proto::ICMPV6 => Look::Other,
        _ => Look::Unreadable,
    }
}

/// `sound`: the IP header is one that may be merged, and its packet ends where the frame does.
fn look_tcp(frame: &Frame, l3: usize, start: usize, is_ipv6: bool, sound: bool) -> Look {
    let bytes = frame.bytes();
    let Some(&[p0, p1, p2, p3, s0, s1, s2, s3, _, _, _, _, offset, flags, ..]) =
        chunk::<TCP_LEN>(bytes, start)
    else {
        return Look::Unreadable;
    };
    let header_len = usize::from(offset >> 4) * 4;
    let payload = start + header_len;
    let joins = sound
        && header_len >= TCP_LEN
        && payload < bytes.len()
        && flags & tcp_flags::ACK != 0
        && flags & !(MIDDLE | LAST) == 0
        && !frame.vnet.is_gso();
    let end = bytes.len();
    let tcp_flags = Some(flags);
    let at = Transport { l3, start, payload, end, checksum: TCP_CHECKSUM, is_ipv6, tcp_flags };
    let sequence = u32::from_be_bytes([s0, s1, s2, s3]);
    Look::Tcp(Segment { at, ports: [p0, p1, p2, p3], sequence, flags, joins })
}

#[cfg(test)]
mod tests;
