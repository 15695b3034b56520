//! What becomes of a routed packet: the established way, and the common end of both ways.

use crate::config::UplinkMode;
use crate::conntrack::entry::{ASSURED, SEEN_REPLY};
use crate::conntrack::tcp::TcpState;
use crate::conntrack::{Direction, Hit, Tuple, timeout};
use crate::core::Cx;
use crate::frame::Frame;
use crate::l3::hop::{self, Hop, Reach};
use crate::l3::report::report;
use crate::nat::lookup::zone;
use crate::nat::{begin, local, related};
use crate::packet::headers::{Ipv4, L4, Net};
use crate::packet::icmp::{self, IcmpError};
use crate::packet::rewrite::{self, Rewrite};
use crate::packet::types::ip_proto;
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

pub(crate) fn stage(cx: &mut Cx<'_>, frames: &mut [Frame], lanes: &mut [Lane]) {
    for (frame, lane) in frames.iter_mut().zip(lanes) {
        if lane.is_open() {
            lane.verdict = Some(one(cx, frame, lane).unwrap_or_else(Verdict::Drop));
        }
    }
}

#[inline(always)]
fn one(cx: &mut Cx<'_>, frame: &mut Frame, lane: &mut Lane) -> Result<Verdict, DropReason> {
    let Net::Ipv4(ip) = lane.headers.net else { return Err(DropReason::NoService) };
    if let L4::Icmp { kind, .. } = ip.l4
        && icmp::is_error(kind)
    {
        return related::translate(cx, frame, lane, &ip);
    }
    let Some(track) = lane.track else { return trackless(cx, frame, lane, &ip) };
    // An earlier frame of this very batch may have begun the connection, or moved its state.
    let connections = &cx.tables.connections;
    let hit = track.hit.and_then(|hit| connections.refresh(&hit));
    let hit = hit.or_else(|| connections.lookup_hashed(track.hash, track.tuple, cx.secs));
    match hit {
        Some(hit) => established(cx, frame, lane, &ip, track.tuple, hit),
        None => begin::begin(cx, frame, lane, &ip, track.tuple),
    }
}

/// A packet without ports: a later fragment goes the way of its first one.
fn trackless(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    ip: &Ipv4,
) -> Result<Verdict, DropReason> {
    if ip.l4 == L4::LaterFragment
        && let Some(tuple) = cx.tables.fragments.tuple(ip, zone(lane.from), cx.now)
        && let Some(hit) = cx.tables.connections.lookup(tuple, cx.secs)
    {
        let verdict = established(cx, frame, lane, ip, tuple, hit);
        if !ip.more_fragments {
            cx.tables.fragments.finish(ip, tuple.zone());
        }
        return verdict;
    }
    local::untracked(cx, frame, lane, ip)
}

/// A packet of a connection we know.
#[inline(always)]
pub(super) fn established(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    ip: &Ipv4,
    tuple: Tuple,
    mut hit: Hit,
) -> Result<Verdict, DropReason> {
    let mut state = next_state(ip, &hit)?;
    let way = way_out(cx, frame, lane, ip, hit.other.src())?;
    let original = match hit.direction {
        Direction::Original => tuple,
        Direction::Reply => hit.other,
    };
    while !note(cx, ip, &hit, state, original.dst_port()) {
        // The worker of the other direction was faster: judge by the state that it left.
        let Some(now) = cx.tables.connections.refresh(&hit) else { break };
        hit = now;
        state = next_state(ip, &hit)?;
    }
    finish(cx, frame, lane, tuple, &hit, &way)
}

/// Counts the packet and moves the connection's state and deadline; false: see
/// [`crate::conntrack::ConnTable::touch`].
#[inline]
pub(super) fn note(cx: &Cx<'_>, ip: &Ipv4, hit: &Hit, state: u8, service: u16) -> bool {
    let flags = match hit.direction {
        Direction::Reply => SEEN_REPLY,
        Direction::Original => 0,
    };
    let assured = if ip.proto == ip_proto::TCP {
        state == TcpState::Established as u8
    } else {
        // Both have spoken, and the first again.
        hit.flags() & SEEN_REPLY != 0 && matches!(hit.direction, Direction::Original)
    };
    let flags = flags | if assured { ASSURED } else { 0 };
    let idle = timeout::idle(&cx.config.timeouts, ip.proto, service, state);
    let deadline = cx.secs.saturating_add(u32::try_from(idle.as_secs()).unwrap_or(u32::MAX));
    cx.tables.connections.touch(hit, u64::from(ip.total_len), state, flags, deadline)
}

#[inline]
fn next_state(ip: &Ipv4, hit: &Hit) -> Result<u8, DropReason> {
    let L4::Tcp { flags, .. } = ip.l4 else { return Ok(hit.state()) };
    let state = TcpState::from_u8(hit.state()).ok_or(DropReason::ConntrackInvalid)?;
    let next = state.next(flags, hit.direction).map_err(|_| DropReason::ConntrackInvalid)?;
    Ok(next as u8)
}

/// Where a packet leaves, once nothing forbids it any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct WayOut {
    pub(super) hop: Hop,
    pub(super) reach: Reach,
    /// Longer than the link takes, and may be fragmented.
    pub(super) fragment: bool,
}

/// The way to `dst`, or the reason why there is none, told to the sender where the RFCs ask for it.
/// The frame is still as it was received.
#[inline(always)]
pub(super) fn way_out(
    cx: &mut Cx<'_>,
    frame: &Frame,
    lane: &Lane,
    ip: &Ipv4,
    dst: std::net::Ipv4Addr,
) -> Result<WayOut, DropReason> {
    find_way(cx, frame, lane, ip, dst).map_err(|(reason, mtu)| {
        report_no_way(cx, frame, lane, reason, mtu);
        reason
    })
}

#[cold]
fn report_no_way(cx: &mut Cx<'_>, frame: &Frame, lane: &Lane, reason: DropReason, mtu: u16) {
    let error = match reason {
        DropReason::TtlExceeded => IcmpError::TimeExceeded,
        DropReason::MtuExceeded => IcmpError::FragmentationNeeded { mtu },
        DropReason::NoRoute | DropReason::UplinkMissing => IcmpError::NetUnreachable,
        DropReason::NeighborUnresolved => IcmpError::HostUnreachable,
        _ => return,
    };
    report(cx, frame, &lane.headers, lane.from, error);
}

#[inline(always)]
fn find_way(
    cx: &mut Cx<'_>,
    frame: &Frame,
    lane: &Lane,
    ip: &Ipv4,
    dst: std::net::Ipv4Addr,
) -> Result<WayOut, (DropReason, u16)> {
    // RFC 1812 §5.2.1.2: the TTL is checked only for packets that are forwarded.
    if ip.ttl <= 1 {
        return Err((DropReason::TtlExceeded, 0));
    }
    let hop = hop::route(cx, dst).map_err(|reason| (reason, 0))?;
    let fits = wire_len(frame, lane, ip) <= usize::from(hop.mtu);
    if !fits && ip.dont_fragment {
        return Err((DropReason::MtuExceeded, hop.mtu));
    }
    let reach = hop::reach(cx, &hop).map_err(|reason| (reason, 0))?;
    Ok(WayOut { hop, reach, fragment: !fits })
}

/// Length of the IP packets that the frame stands for on the wire.
#[inline]
fn wire_len(frame: &Frame, lane: &Lane, ip: &Ipv4) -> usize {
    if !frame.vnet.is_gso() {
        return usize::try_from(ip.total_len).unwrap_or(usize::MAX);
    }
    let headers = usize::from(ip.l4_offset) - usize::from(lane.headers.l3)
        + match ip.l4 {
            L4::Tcp { header_len, .. } => usize::from(header_len),
            _ => 8,
        };
    headers + usize::from(frame.vnet.gso_size)
}

/// Rewrites the packet and says where it goes. Nothing can fail from here on.
#[inline(always)]
pub(super) fn finish(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    tuple: Tuple,
    hit: &Hit,
    way: &WayOut,
) -> Result<Verdict, DropReason> {
    let Net::Ipv4(ip) = &mut lane.headers.net else { return Err(DropReason::Ipv4Malformed) };
    if ip.more_fragments && ip.frag_offset == 0 {
        cx.tables.fragments.follow(ip, tuple, cx.now);
    }
    // What follows the packet is padding of the link it came by.
    frame.truncate(ip.end());
    rewrite::decrement_ttl(frame, ip)?;
    let change = translation(tuple, hit);
    if !change.is_none() {
        rewrite::apply(frame, ip, &change);
    }
    lane.fragment = way.fragment.then_some(way.hop.mtu);
    Ok(leave(frame, way, Some(hit)))
}

/// What a packet of this direction becomes: the other direction's tuple, reversed.
#[inline(always)]
pub(super) fn translation(tuple: Tuple, hit: &Hit) -> Rewrite {
    let to_src = (hit.other.dst(), hit.other.dst_port());
    let to_dst = (hit.other.src(), hit.other.src_port());
    Rewrite {
        src: (to_src != (tuple.src(), tuple.src_port())).then_some(to_src),
        dst: (to_dst != (tuple.dst(), tuple.dst_port())).then_some(to_dst),
    }
}

/// Addresses the frame to its next hop. `hit` is the connection in which the packet was counted.
#[inline(always)]
pub(super) fn leave(frame: &mut Frame, way: &WayOut, hit: Option<&Hit>) -> Verdict {
    match way.reach {
        Reach::Port { port, dst, src } => {
            rewrite::set_ethernet(frame, dst, src);
            Verdict::Forward(port)
        }
        Reach::Flood { network, dst, src } => {
            rewrite::set_ethernet(frame, dst, src);
            Verdict::Flood(network)
        }
        Reach::Wait => Verdict::Hold {
            link: way.hop.link,
            next_hop: way.hop.next_hop,
            begun: hit.filter(|hit| is_unanswered(hit)).map(|hit| hit.id),
        },
    }
}

/// Whether only the side that began has spoken, and this is it.
fn is_unanswered(hit: &Hit) -> bool {
    hit.direction == Direction::Original && hit.flags() & SEEN_REPLY == 0
}

/// What to do with a packet from outside that is nothing of ours.
pub(super) fn not_ours(cx: &Cx<'_>, from: From, reason: DropReason) -> Result<Verdict, DropReason> {
    match from {
        From::Uplink(id) if cx.config.uplink(id).is_some_and(|u| u.mode == UplinkMode::Shared) => {
            Ok(Verdict::Consume)
        }
        _ => Err(reason),
    }
}
