//! Consecutive UDP datagrams of a flow become one frame that the receiver's kernel cuts again
//! (`UDP_L4`, the type of UDP's segmentation offload).
//!
//! A device read or write takes a microsecond, whatever the length; a flood of small datagrams is little
//! else. The rules are those of `udp_gro_receive_segment` (net/ipv4/udp_offload.c): same headers, equal
//! lengths but for the last one, which may be shorter, checksums there and right. Datagrams stay
//! datagrams: a socket gets each by itself unless it asked for them together (`UDP_GRO`).
//!
//! Limits: unicast, no IPv4 options, no IPv6 extension headers; datagrams that follow each other at once in
//! the queue; no fewer than [`FEWEST`], so that what comes in ones and twos is seen by captures in a
//! sandbox as it was sent.

use super::super::field::{chunk, low_u16, read_u16, write_u16};
use super::super::parse::{ETH_LEN, IPV4_LEN, IPV6_LEN, UDP_LEN, VLAN_TAG_LEN};
use super::super::rewrite::{IPV4_CHECKSUM, UDP_CHECKSUM};
use super::super::transport::Transport;
use super::super::types::{ethertype, ip_proto};
use super::{IPV4_FRAGMENT, IPV4_PLAIN, Ids, MAX_PACKET, MAX_SEGMENTS, MAX_TAGS, is_sound, seal};
use crate::frame::Frame;
use crate::pool::Pool;

/// Datagrams that are merged, at least.
const FEWEST: usize = 4;
/// Pairs of neighbors that are looked at before the queue is looked through.
const SAMPLES: usize = 4;
/// Offset of the length in the UDP header.
const UDP_LENGTH: usize = 4;
/// The bit of the first byte of a MAC address that tells a group.
const GROUP: u8 = 1;

/// Merges trains of datagrams in `queue`, for a device that takes them. Returns how many frames became
/// part of another.
pub(super) fn merge(queue: &mut Vec<Frame>, pool: &mut Pool) -> u64 {
    if !may_have_trains(queue) {
        return 0;
    }
    let (mut kept, mut at) = (0, 0);
    while at < queue.len() {
        let run = queue.get_mut(at..).map_or(1, merge_train).max(1);
        if kept != at {
            queue.swap(kept, at);
        }
        kept += 1;
        at += run;
    }
    let mut merged = 0;
    for frame in queue.drain(kept..) {
        pool.put(frame);
        merged += 1;
    }
    merged
}

/// Most queues have no two of a flow behind each other: that is seen by a few pairs. A train that none
/// of them meets is a short one.
#[inline]
fn may_have_trains(queue: &[Frame]) -> bool {
    if queue.len() < FEWEST {
        return false;
    }
    let step = (queue.len() / SAMPLES).max(2);
    queue.chunks(step).any(|few| match few {
        [a, b, ..] => a.len() == b.len() && may_continue(a, b),
        _ => false,
    })
}

/// Whether two frames of equal length may be datagrams of a flow, by protocol, addresses and ports of
/// plain IPv4 (IPv6: protocol and the end of the destination's address with the ports).
#[inline]
fn may_continue(a: &Frame, b: &Frame) -> bool {
    const IPV4_PROTO: usize = ETH_LEN + 9;
    const IPV4_FLOW: usize = ETH_LEN + 12;
    const IPV6_NEXT: usize = ETH_LEN + 6;
    const IPV6_FLOW: usize = ETH_LEN + IPV6_LEN - 8;
    let (a, b) = (a.bytes(), b.bytes());
    let at = match (read_u16(a, ETH_LEN - 2), a.get(IPV4_PROTO), a.get(IPV6_NEXT)) {
        (Some(ethertype::IPV4), Some(&ip_proto::UDP), _) => IPV4_FLOW,
        (Some(ethertype::IPV6), _, Some(&ip_proto::UDP)) => IPV6_FLOW,
        // What is behind tags is looked at once more, whole.
        (Some(ethertype::VLAN | ethertype::QINQ), ..) => return true,
        _ => return false,
    };
    chunk::<12>(a, at) == chunk::<12>(b, at)
}

/// Merges the train that `frames` begins with into its first frame; how many that were, or 1.
fn merge_train(frames: &mut [Frame]) -> usize {
    let Some((head, rest)) = frames.split_first_mut() else { return 0 };
    let Some(first) = datagram(head) else { return 1 };
    let size = first.end - first.payload;
    let (mut run, mut ids, mut packet) = (1, Ids::Unknown, head.len() - first.l3);
    for frame in rest.iter() {
        let Some(next) = datagram(frame) else { break };
        let length = next.end - next.payload;
        packet += length;
        if run == MAX_SEGMENTS || length > size || packet > MAX_PACKET {
            break;
        }
        let Some(now) = headers_allow(head, frame, &first, &next, ids, run) else { break };
        if run == 1 && !is_sound(head, &first) || !is_sound(frame, &next) {
            break;
        }
        ids = now;
        run += 1;
        if length < size {
            break;
        }
    }
    if run < FEWEST {
        return 1;
    }
    for frame in rest.iter().take(run - 1) {
        head.append(frame.bytes().get(first.payload..).unwrap_or_default());
    }
    seal(head, &first);
    let length = low_u16(head.len() - first.start);
    write_u16(head.bytes_mut(), first.start + UDP_LENGTH, length);
    run
}

/// Whether the headers differ in lengths, identification and checksums alone; what the identifications
/// do then.
fn headers_allow(
    head: &Frame,
    frame: &Frame,
    first: &Transport,
    next: &Transport,
    ids: Ids,
    count: usize,
) -> Option<Ids> {
    let Transport { l3, start, is_ipv6, .. } = *first;
    if (l3, start, is_ipv6) != (next.l3, next.start, next.is_ipv6) {
        return None;
    }
    let (head, bytes) = (head.bytes(), frame.bytes());
    let same = |from: usize, to: usize| head.get(from..to) == bytes.get(from..to);
    // Ports and everything before the IP header.
    if !same(start, start + UDP_LENGTH) || !same(0, l3) {
        return None;
    }
    if is_ipv6 {
        return (same(l3, l3 + 4) && same(l3 + 6, start)).then_some(Ids::Unknown);
    }
    let ip = same(l3, l3 + 2) && same(l3 + 6, l3 + IPV4_CHECKSUM) && same(l3 + 12, start);
    if ip { ids.continued(head, bytes, l3, count) } else { None }
}

/// Where the datagram of a frame lies, if it may become part of another.
fn datagram(frame: &Frame) -> Option<Transport> {
    let bytes = frame.bytes();
    if frame.vnet.is_gso() || bytes.first()? & GROUP != 0 {
        return None;
    }
    let mut l3 = ETH_LEN;
    let mut kind = read_u16(bytes, ETH_LEN - 2)?;
    while matches!(kind, ethertype::VLAN | ethertype::QINQ)
        && l3 < ETH_LEN + MAX_TAGS * VLAN_TAG_LEN
    {
        kind = read_u16(bytes, l3 + 2)?;
        l3 += VLAN_TAG_LEN;
    }
    let packet = bytes.len() - l3;
    let (start, is_ipv6) = match kind {
        ethertype::IPV4 => {
            let &[vi, _, l0, l1, _, _, f0, f1, _, proto, ..] = chunk::<IPV4_LEN>(bytes, l3)?;
            let whole = usize::from(u16::from_be_bytes([l0, l1])) == packet
                && u16::from_be_bytes([f0, f1]) & IPV4_FRAGMENT == 0;
            let plain = vi == IPV4_PLAIN && proto == ip_proto::UDP;
            (whole && plain).then_some((l3 + IPV4_LEN, false))?
        }
        ethertype::IPV6 => {
            let &[vi, _, _, _, l0, l1, next, ..] = chunk::<IPV6_LEN>(bytes, l3)?;
            let whole = usize::from(u16::from_be_bytes([l0, l1])) + IPV6_LEN == packet;
            (whole && vi >> 4 == 6 && next == ip_proto::UDP).then_some((l3 + IPV6_LEN, true))?
        }
        _ => return None,
    };
    let &[_, _, _, _, l0, l1, c0, c1] = chunk::<UDP_LEN>(bytes, start)?;
    let end = bytes.len();
    let exact = usize::from(u16::from_be_bytes([l0, l1])) == end - start;
    // A datagram without payload or checksum cannot be made by cutting.
    let joins = exact && end > start + UDP_LEN && [c0, c1] != [0, 0];
    let payload = start + UDP_LEN;
    let at =
        Transport { l3, start, payload, end, checksum: UDP_CHECKSUM, is_ipv6, tcp_flags: None };
    joins.then_some(at)
}
