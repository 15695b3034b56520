//! What becomes of a routed packet: the established way, and the common end of both ways.

use crate::config::{FROM_GATEWAY, UplinkMode};
use crate::conntrack::entry::{HELPED, SEEN_REPLY};
use crate::conntrack::{Direction, Hit, Key};
use crate::core::Cx;
use crate::express::ways::{Ends, Exit};
use crate::frame::Frame;
use crate::l3::hop::{self, Hop, Reach};
use crate::l3::report::{Trouble, report};
use crate::nat::established::{Seen, judge, settle, travel};
use crate::nat::ip::{Addr, Ip, Tracked};
use crate::nat::{begin, fragment, helpers, local, mss, related};
use crate::packet::headers::{Ipv6, L4, Net};
use crate::packet::rewrite::{self, Rewrite};
use crate::packet::types::ip_proto;
use crate::pipeline::{From, Hold, Lane, reopen};
use crate::verdict::{DropReason, Verdict};

pub(crate) fn stage(cx: &mut Cx<'_>, frames: &mut [Frame], lanes: &mut [Lane]) {
    for (frame, lane) in frames.iter_mut().zip(lanes) {
        if let Some(direction) = lane.shortcut.direction() {
            if let Some(end) = travel(cx, frame, lane, direction) {
                lane.verdict = Some(end.unwrap_or_else(Verdict::Drop));
                continue;
            }
            reopen(cx, frame, lane);
        }
        if lane.is_open() {
            lane.verdict = Some(one(cx, frame, lane).unwrap_or_else(Verdict::Drop));
        }
    }
}

#[inline(always)]
fn one(cx: &mut Cx<'_>, frame: &mut Frame, lane: &mut Lane) -> Result<Verdict, DropReason> {
    match lane.headers.net {
        Net::Ipv4(ip) if ip.is_fragment() => fragment::pass(cx, frame, lane, &ip),
        Net::Ipv4(ip) => packet(cx, frame, lane, &ip),
        Net::Ipv6(ip) if ip.is_fragment() => fragment::pass(cx, frame, lane, &ip),
        Net::Ipv6(ip) => ipv6(cx, frame, lane, &ip),
        _ => Err(DropReason::NoService),
    }
}

/// Apart, so that the way of IPv4 stays as short as it is.
#[inline(never)]
fn ipv6(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    ip: &Ipv6,
) -> Result<Verdict, DropReason> {
    packet(cx, frame, lane, ip)
}

/// A packet that has, or may begin, a connection of its own.
#[inline(always)]
pub(super) fn packet<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    ip: &P,
) -> Result<Verdict, DropReason> {
    if let L4::Icmp { kind, .. } = ip.l4()
        && P::is_error(kind)
    {
        return related::translate(cx, frame, lane, ip);
    }
    if !lane.is_tracked {
        return local::untracked(cx, frame, lane, ip);
    }
    let tuple = P::tuple_in(lane);
    match P::Tuple::table(cx.tables).lookup_hashed(lane.hash, tuple, cx.secs) {
        Some(hit) => established(cx, frame, lane, ip, tuple, hit),
        None => begin::begin(cx, frame, lane, ip, tuple),
    }
}

/// A packet of a connection we know.
#[inline(always)]
pub(super) fn established<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    ip: &P,
    tuple: P::Tuple,
    mut hit: Hit<P::Tuple>,
) -> Result<Verdict, DropReason> {
    let mut seen = Seen::of(frame, ip, tuple.proto());
    if hit.flags() & HELPED != 0 {
        helpers::hear(cx, &mut seen, &hit);
    }
    let judged = judge(cx, &seen, &hit)?;
    if tuple.proto() == ip_proto::SCTP && ip.is_fragment() && changes_ports(tuple, &hit) {
        return Err(DropReason::SctpFragmented);
    }
    let mut way = way_out(cx, frame, lane, ip, hit.other.src())?;
    if hit.flags() & HELPED != 0 {
        way = helpers::widen(cx, frame, ip, &hit, way).map_err(|mtu| {
            report_no_way(cx, frame, lane, DropReason::MtuExceeded, mtu);
            DropReason::MtuExceeded
        })?;
    }
    let original = match hit.direction {
        Direction::Original => tuple,
        Direction::Reply => hit.other,
    };
    settle(cx, &seen, &mut hit, judged, original.dst_port())?;
    finish::<P>(cx, frame, lane, tuple, &hit, &way)
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
pub(super) fn way_out<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &Frame,
    lane: &Lane,
    ip: &P,
    dst: Addr<P>,
) -> Result<WayOut, DropReason> {
    find_way(cx, frame, lane, ip, dst).map_err(|(reason, mtu)| {
        report_no_way(cx, frame, lane, reason, mtu);
        reason
    })
}

#[cold]
fn report_no_way(cx: &mut Cx<'_>, frame: &Frame, lane: &Lane, reason: DropReason, mtu: u16) {
    let trouble = match reason {
        DropReason::BeyondScope => Trouble::BeyondScope,
        DropReason::TtlExceeded => Trouble::TimeExceeded,
        DropReason::MtuExceeded => Trouble::TooLong { mtu },
        DropReason::NoRoute | DropReason::UplinkMissing => Trouble::NoRoute,
        DropReason::NeighborUnresolved => Trouble::NeighborSilent,
        _ => return,
    };
    report(cx, frame, &lane.headers, lane.from, trouble);
}

#[inline(always)]
fn find_way<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &Frame,
    lane: &Lane,
    ip: &P,
    dst: Addr<P>,
) -> Result<WayOut, (DropReason, u16)> {
    if P::Tuple::stays_on_link(ip.src()) {
        return Err((DropReason::BeyondScope, 0));
    }
    if P::Tuple::stays_on_link(dst) {
        return Err((DropReason::NoRoute, 0));
    }
    // RFC 1812 §5.2.1.2: the TTL is checked only for packets that are forwarded.
    if ip.hops_left() <= 1 {
        return Err((DropReason::TtlExceeded, 0));
    }
    let hop = hop::route(cx, dst).map_err(|reason| (reason, 0))?;
    let fits = wire_len(frame, lane, ip) <= usize::from(hop.mtu);
    if !fits && !ip.may_be_cut() {
        return Err((DropReason::MtuExceeded, hop.mtu));
    }
    let reach = hop::reach(cx, &hop, frame.ingress).map_err(|reason| (reason, 0))?;
    Ok(WayOut { hop, reach, fragment: !fits })
}

/// Length of the IP packets that the frame stands for on the wire.
#[inline]
fn wire_len(frame: &Frame, lane: &Lane, ip: &impl Ip) -> usize {
    if !frame.vnet.is_gso() {
        return usize::try_from(ip.total_len()).unwrap_or(usize::MAX);
    }
    // Of a segment: the virtio-net header has been admitted.
    let headers = usize::from(frame.vnet.hdr_len).saturating_sub(usize::from(lane.headers.l3));
    headers + usize::from(frame.vnet.gso_size)
}

/// Rewrites the packet and says where it goes. Nothing can fail from here on but what a helper cannot say again.
#[inline(always)]
pub(super) fn finish<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    tuple: P::Tuple,
    hit: &Hit<P::Tuple>,
    way: &WayOut,
) -> Result<Verdict, DropReason> {
    let Some(ip) = P::of(&mut lane.headers) else { return Err(DropReason::NoService) };
    // What follows the packet is padding of the link it came by.
    frame.truncate(ip.end());
    ip.decrement(frame)?;
    let change = translation(tuple, hit);
    if !change.is_none() {
        ip.translate(frame, &change);
    }
    mss::clamp(cx, frame, &lane.headers, lane.from, hit.network(), way.hop.mtu);
    if hit.flags() & HELPED != 0 {
        helpers::pass::<P>(cx, frame, lane, tuple, hit, way)?;
    }
    if way.fragment {
        fragment::cut::<P>(cx, frame, lane, &tuple);
    }
    remember(cx, frame, tuple, hit, way);
    Ok(leave(frame, lane, way, Some(hit)))
}

/// What a packet of this direction becomes: the other direction's tuple, reversed.
#[inline(always)]
pub(super) fn translation<K: Key>(tuple: K, hit: &Hit<K>) -> Rewrite<K::Addr> {
    let to_src = (hit.other.dst(), hit.other.dst_port());
    let to_dst = (hit.other.src(), hit.other.src_port());
    Rewrite {
        src: (to_src != (tuple.src(), tuple.src_port())).then_some(to_src),
        dst: (to_dst != (tuple.dst(), tuple.dst_port())).then_some(to_dst),
    }
}

/// Whether packets of this direction get another port.
fn changes_ports<K: Key>(tuple: K, hit: &Hit<K>) -> bool {
    (hit.other.dst_port(), hit.other.src_port()) != (tuple.src_port(), tuple.dst_port())
}

/// Remembers the way of packets of this direction, of the kind that can go it again by themselves.
#[inline]
fn remember<K: Tracked>(cx: &mut Cx<'_>, frame: &Frame, tuple: K, hit: &Hit<K>, way: &WayOut) {
    let Reach::Port { port, dst, src } = way.reach else { return };
    // What a helped connection says is looked at each time.
    if !K::HAS_SHORTCUTS
        || hit.flags() & HELPED != 0
        || !matches!(tuple.proto(), ip_proto::TCP | ip_proto::UDP)
    {
        return;
    }
    let Hop { link, next_hop, mtu } = way.hop;
    let ends = Ends { ingress: frame.ingress, link, next_hop };
    if let Some(number) = cx.express.learn_way(ends, Exit::new(port, mtu, dst, src)) {
        K::table(cx.tables).set_way(hit, number);
    }
}

/// Addresses the frame to its next hop. `hit` is the connection in which the packet was counted.
#[inline(always)]
pub(super) fn leave<K: Key>(
    frame: &mut Frame,
    lane: &mut Lane,
    way: &WayOut,
    hit: Option<&Hit<K>>,
) -> Verdict {
    match way.reach {
        Reach::Port { port, dst, src } => {
            rewrite::set_ethernet(frame, dst, src);
            if way.fragment {
                lane.mtu = way.hop.mtu;
                return Verdict::ForwardInPieces(port);
            }
            Verdict::Forward(port)
        }
        Reach::Flood { network, dst, src } => {
            rewrite::set_ethernet(frame, dst, src);
            lane.headers.vlan = FROM_GATEWAY;
            Verdict::Flood(network)
        }
        Reach::Wait => {
            lane.hold = Some(Hold {
                link: way.hop.link,
                next_hop: way.hop.next_hop,
                fragment: way.fragment.then_some(way.hop.mtu),
                connection: hit.map(|hit| hit.id),
                is_unanswered: hit.is_some_and(is_unanswered),
            });
            Verdict::Hold
        }
    }
}

/// Whether only the side that began has spoken, and this is it.
fn is_unanswered<K: Key>(hit: &Hit<K>) -> bool {
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
