//! A new connection: DNAT, route, SNAT, commit, in this order. Until the commit nothing is kept: a
//! packet that is dropped leaves no trace. One that then waits for a neighbor in vain takes its
//! connection along (`l3::waiting::give_up`).

use std::net::IpAddr;

use crate::config::PortEntry;
use crate::conntrack::entry::{DNAT, EXPECTED, HELPED, POOLED, SNAT};
use crate::conntrack::tcp::TcpState;
use crate::conntrack::{Hit, Key, NewConnection, Zone, timeout};
use crate::core::Cx;
use crate::engine::{Link, NatRule};
use crate::family::Address;
use crate::frame::Frame;
use crate::l3::hop::{self, Hop};
use crate::l3::report::{Trouble, report};
use crate::nat::dnat::DnatTarget;
use crate::nat::established::{Seen, note};
use crate::nat::helpers::{self, Expected};
use crate::nat::ip::{Addr, Ip, Tracked};
use crate::nat::local;
use crate::nat::outside::{Refusal, commit, outside_source};
use crate::nat::policy;
use crate::nat::translate::{established, finish, not_ours, way_out};
use crate::packet::headers::L4;
use crate::packet::types::{NetworkId, PortId};
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

/// The first packet of what may become a connection.
#[inline(never)]
pub(super) fn begin<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    ip: &P,
    tuple: P::Tuple,
) -> Result<Verdict, DropReason> {
    let expected = helpers::claim(cx, tuple);
    let target = expected.as_ref().and_then(Expected::target);
    let begun = begin_to(cx, frame, lane, ip, tuple, target);
    match expected {
        Some(expected) if begun.is_err() => helpers::give_back(cx, expected),
        Some(_) => helpers::note_used(cx),
        None => {}
    }
    begun
}

/// The same, led to where it is expected if it is.
#[inline(always)]
fn begin_to<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    ip: &P,
    tuple: P::Tuple,
    expected: Option<DnatTarget<Addr<P>>>,
) -> Result<Verdict, DropReason> {
    let local = P::local(cx, lane.from, ip.dst());
    let seen = Seen::of(frame, ip, tuple.proto());
    let state = first_state(ip, &seen);
    let target = match (local, ip.l4()) {
        _ if expected.is_some() => expected,
        // Nothing is published on a link's own addresses: servers on others could not answer.
        (
            Some(_),
            L4::Tcp { dst_port, .. } | L4::Udp { dst_port, .. } | L4::Sctp { dst_port, .. },
        ) if state.is_some() && !P::Tuple::stays_on_link(ip.dst()) => {
            cx.config.dnat.lookup(ip.proto(), ip.dst(), dst_port)
        }
        (None, L4::Tcp { dst_port, .. } | L4::Udp { dst_port, .. } | L4::Sctp { dst_port, .. })
            if state.is_some() && matches!(lane.from, From::Uplink(_)) =>
        {
            cx.config.dnat.opened(ip.proto(), ip.dst(), dst_port)
        }
        _ => None,
    };
    match (target, local, lane.from) {
        (Some(_), _, From::Uplink(_)) if is_inside(cx, ip.src()) => {
            return not_ours(cx, lane.from, DropReason::Martian);
        }
        (Some(_), ..) => {}
        (None, Some(local), _) => return local::deliver(cx, frame, lane, ip, local),
        (None, None, From::Uplink(_)) => {
            let echo = matches!(ip.l4(), L4::Icmp { kind, .. } if kind == P::ECHO_REQUEST);
            if !(echo && cx.config.is_routed_endpoint(ip.dst())) {
                return not_ours(cx, lane.from, DropReason::Unsolicited);
            }
            if is_inside(cx, ip.src()) {
                return not_ours(cx, lane.from, DropReason::Martian);
            }
        }
        (None, None, _) => {}
    }
    let is_picked_up = state.is_none() && target.is_none() && may_pick_up(cx, lane.from, ip);
    let state = if is_picked_up { Some(TcpState::PickedUp as u8) } else { state };
    let state = state.ok_or_else(|| seen.refusal())?;
    let to = target.map_or(tuple, |t| tuple.with_dst(t.address, t.port));
    // Forbidden ways are refused before anybody is asked for anything.
    let link = hop::route(cx, to.dst()).ok().map(|hop| hop.link);
    permitted(cx, lane.from, link, target.as_ref())?;
    if target.is_none() && link.is_some() && link == lane.from.network().map(Link::Network) {
        within_vlan(cx, frame.ingress, lane.from, to.dst())?;
    }
    // What a connection has announced was let in with that one.
    if cx.config.has_policies && expected.is_none() {
        let len = u64::from(ip.total_len());
        policy::may_begin(cx, lane, (tuple, to), link, target.as_ref(), len)?;
    }
    let way = way_out(cx, frame, lane, ip, to.dst())?;
    let source = match outside_source(cx, lane.from, ip, &way.hop, target.as_ref()) {
        Ok(source) => source,
        Err(reason) => {
            report(cx, frame, &lane.headers, lane.from, Trouble::NoRoute);
            return Err(reason);
        }
    };

    let service = tuple.dst_port();
    let network = inside_network(lane.from, target.as_ref(), way.hop.link);
    let idle = timeout::idle(cx.config.timeouts_of(network), ip.proto(), service, state);
    // Without a rule: what a connection of the network itself has announced.
    let is_led =
        target.as_ref().is_some_and(|t| t.rule != 0 || (t.address, t.port) != (ip.dst(), service));
    let is_helped = {
        let inside = [lane.from.network(), target.as_ref().map(|t| t.network)];
        helpers::serve(cx, inside, ip.proto(), to.dst_port())
    };
    let new = NewConnection {
        original: tuple,
        reply: to.reversed(zone_of(way.hop.link)),
        state,
        flags: if is_led { DNAT } else { 0 }
            | if expected.is_some() { EXPECTED } else { 0 }
            | if is_helped && expected.is_none() { HELPED } else { 0 }
            | booking(cx, frame.ingress, lane.from, ip.src()),
        network,
        rule: target.map_or(0, |t| t.rule),
        deadline: cx.secs.saturating_add(u32::try_from(idle.as_secs()).unwrap_or(u32::MAX)),
    };
    let original = lane.hash;
    let hit = match commit(cx, new, original, to, source) {
        Ok(hit) => hit,
        // Another worker was faster.
        Err(Refusal::Exists(hit)) => return established(cx, frame, lane, ip, tuple, hit),
        // By another port its server would not know it.
        Err(Refusal::Drop(DropReason::SnatPortsExhausted)) if is_picked_up => {
            return Err(seen.refusal());
        }
        Err(Refusal::Drop(DropReason::SnatPortsExhausted)) => {
            P::Tuple::table(cx.tables).note_ports_exhausted();
            report(cx, frame, &lane.headers, lane.from, Trouble::AdminProhibited);
            return Err(DropReason::SnatPortsExhausted);
        }
        Err(Refusal::Drop(reason)) => return Err(reason),
    };
    if is_picked_up {
        P::Tuple::table(cx.tables).note_picked_up();
    }
    count_rules(cx, &hit, target.as_ref(), u64::from(ip.total_len()));
    // Should the answer have come by another worker already, its state is the later one.
    note(cx, &seen, &hit, &seen.begins(state), service);
    finish::<P>(cx, frame, lane, tuple, &hit, &way)
}

/// To whom a connection is booked: to the endpoint that the packet came from where the address is its
/// own, else to the network.
pub(super) fn booking(cx: &Cx<'_>, ingress: PortId, from: From, src: impl Into<IpAddr>) -> u8 {
    let network = from.network().and_then(|id| cx.config.network(id));
    let owner = network.and_then(|network| network.endpoints.get(src));
    let is_own = from.network().is_none() || owner.is_some_and(|(_, port)| *port == ingress);
    if is_own { 0 } else { POOLED }
}

/// The state a connection begins in; `None` when this packet cannot begin one.
pub(super) fn first_state<P: Ip>(ip: &P, seen: &Seen) -> Option<u8> {
    match ip.l4() {
        L4::Tcp { flags, .. } => TcpState::first(flags).map(|state| state as u8),
        L4::Sctp { .. } => seen.first_of_sctp(),
        // An echo reply answers something, or nothing.
        L4::Icmp { kind, .. } => (kind != P::ECHO_REPLY).then_some(0),
        _ => Some(0),
    }
}

/// Whether this is a segment of a connection that may have been in the table that was lost (ADR 28): of a
/// sandbox, as nobody outside can tell by whom its port was used.
#[cold]
fn may_pick_up<P: Ip>(cx: &Cx<'_>, from: From, ip: &P) -> bool {
    let L4::Tcp { flags, src_port, .. } = ip.l4() else { return false };
    matches!(from, From::Endpoint(_))
        && TcpState::continues(flags)
        && cx.tables.is_in_grace(ip.src().into(), cx.config.grace, cx.secs)
        && !cx.config.dnat.is_server(ip.proto(), ip.src(), src_port)
}

/// Whether an address is one of a network's, which nobody outside has: the answers would go to the
/// one who does.
fn is_inside(cx: &Cx<'_>, address: impl Address) -> bool {
    matches!(hop::route(cx, address), Ok(Hop { link: Link::Network(_), .. }))
}

/// Which ways are open to a new connection.
fn permitted<A: Address>(
    cx: &Cx<'_>,
    from: From,
    link: Option<Link>,
    target: Option<&DnatTarget<A>>,
) -> Result<(), DropReason> {
    let internal = |id: NetworkId| cx.config.network(id).is_some_and(|n| n.config.internal);
    // Nor does anything lead to where nobody could answer.
    let routes = |id, address: A| cx.config.network(id).is_none_or(|n| n.routes(address));
    if target.is_some_and(|t| internal(t.network) || !routes(t.network, t.address)) {
        return Err(DropReason::InternalNetwork);
    }
    let Some(id) = from.network() else { return Ok(()) };
    match link {
        Some(Link::Network(to)) if to == id => {
            // The gateway is no way round the switch's rule.
            let icc = cx.config.network(id).is_none_or(|n| n.config.icc);
            if icc || target.is_some() || matches!(from, From::Host(_)) {
                Ok(())
            } else {
                Err(DropReason::IccDisabled)
            }
        }
        _ if internal(id) => Err(DropReason::InternalNetwork),
        Some(Link::Network(_)) if target.is_none() => Err(DropReason::InterNetwork),
        _ => Ok(()),
    }
}

/// The gateway is no way between the VLANs of a network either.
#[cold]
fn within_vlan(
    cx: &Cx<'_>,
    ingress: PortId,
    from: From,
    dst: impl Into<IpAddr>,
) -> Result<(), DropReason> {
    let From::Endpoint(id) = from else { return Ok(()) };
    let Some(network) = cx.config.network(id).filter(|network| network.is_divided()) else {
        return Ok(());
    };
    let vlan = |port: PortId| cx.config.port(port).and_then(PortEntry::untagged);
    let to = network.endpoints.get(dst).and_then(|(_, port)| vlan(*port));
    if to.is_some() && to == vlan(ingress) { Ok(()) } else { Err(DropReason::VlanDenied) }
}

fn zone_of(link: Link) -> Zone {
    match link {
        Link::Network(id) => Zone::network(id),
        Link::Uplink(_) => Zone::OUTSIDE,
    }
}

/// The network a connection is listed under, and ends with.
fn inside_network<A>(from: From, target: Option<&DnatTarget<A>>, to: Link) -> NetworkId {
    match (from.network(), target, to) {
        (Some(network), _, _) | (None, None, Link::Network(network)) => network,
        (None, Some(target), _) => target.network,
        (None, None, Link::Uplink(_)) => NetworkId(0),
    }
}

fn count_rules<K: Key>(
    cx: &Cx<'_>,
    hit: &Hit<K>,
    target: Option<&DnatTarget<K::Addr>>,
    bytes: u64,
) {
    if let Some(target) = target {
        // Without one: what a connection of the network itself has announced.
        if target.rule == 0 {
            return;
        }
        cx.tables.count_rule(NatRule::Dnat(target.rule), bytes);
    } else if hit.flags() & SNAT != 0 {
        cx.tables.count_rule(NatRule::Masquerade(hit.network()), bytes);
    }
}
