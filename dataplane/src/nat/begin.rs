//! A new connection: DNAT, route, SNAT, commit, in this order. Until the commit nothing is kept: a
//! packet that is dropped leaves no trace. One that then waits for a neighbor in vain takes its
//! connection along (`l3::waiting::give_up`).

use std::net::IpAddr;

use crate::config::{LocalAddress, Network, PortEntry, UplinkConfig};
use crate::conntrack::entry::{DNAT, EXPECTED, HELPED, MAPPED, POOLED, SNAT};
use crate::conntrack::tcp::TcpState;
use crate::conntrack::{Hit, Insert, Inside, Key, NewConnection, Overdrawn, Zone, timeout};
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
use crate::nat::port_alloc::Candidates;
use crate::nat::translate::{established, finish, not_ours, way_out};
use crate::packet::headers::L4;
use crate::packet::types::{NetworkId, PortId, ip_proto};
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

/// Outside ports of connections between networks through a published port, when the address they
/// speak from has no NAT range of its own: outside Linux' default `ip_local_port_range`, so that
/// they never meet a connection of the host's stack.
const HAIRPIN_PORTS: &[(u16, u16)] = &[(1024, 32_767), (61_000, 65_535)];

/// Any port, for a client whose own port is taken at the server by its other connection.
const ANY_PORT: &[(u16, u16)] = &[(1024, 65_535)];

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
    let state = state.ok_or_else(|| seen.refusal())?;
    let to = target.map_or(tuple, |t| tuple.with_dst(t.address, t.port));
    // Forbidden ways are refused before anybody is asked for anything.
    let link = hop::route(cx, to.dst()).ok().map(|hop| hop.link);
    permitted(cx, lane.from, link, target.as_ref())?;
    if target.is_none() && link.is_some() && link == lane.from.network().map(Link::Network) {
        within_vlan(cx, frame.ingress, lane.from, to.dst())?;
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
        Err(Refusal::Drop(DropReason::SnatPortsExhausted)) => {
            P::Tuple::table(cx.tables).note_ports_exhausted();
            report(cx, frame, &lane.headers, lane.from, Trouble::AdminProhibited);
            return Err(DropReason::SnatPortsExhausted);
        }
        Err(Refusal::Drop(reason)) => return Err(reason),
    };
    count_rules(cx, &hit, target.as_ref(), u64::from(ip.total_len()));
    // Should the answer have come by another worker already, its state is the later one.
    note(cx, &seen, &hit, &seen.begins(state), service);
    finish::<P>(cx, frame, lane, tuple, &hit, &way)
}

/// To whom a connection is booked: to the endpoint that the packet came from where the address is its
/// own, else to the network.
fn booking(cx: &Cx<'_>, ingress: PortId, from: From, src: impl Into<IpAddr>) -> u8 {
    let network = from.network().and_then(|id| cx.config.network(id));
    let owner = network.and_then(|network| network.endpoints.get(src));
    let is_own = from.network().is_none() || owner.is_some_and(|(_, port)| *port == ingress);
    if is_own { 0 } else { POOLED }
}

/// The state a connection begins in; `None` when this packet cannot begin one.
fn first_state<P: Ip>(ip: &P, seen: &Seen) -> Option<u8> {
    match ip.l4() {
        L4::Tcp { flags, .. } => TcpState::first(flags).map(|state| state as u8),
        L4::Sctp { .. } => seen.first_of_sctp(),
        // An echo reply answers something, or nothing.
        L4::Icmp { kind, .. } => (kind != P::ECHO_REPLY).then_some(0),
        _ => Some(0),
    }
}

/// Whether an address is one of a network's, which nobody outside has: the answers would go to the
/// one who does.
fn is_inside(cx: &Cx<'_>, address: impl Address) -> bool {
    matches!(hop::route(cx, address), Ok(Hop { link: Link::Network(_), .. }))
}

/// Which ways are open to a new connection.
fn permitted<A>(
    cx: &Cx<'_>,
    from: From,
    link: Option<Link>,
    target: Option<&DnatTarget<A>>,
) -> Result<(), DropReason> {
    let internal = |id: NetworkId| cx.config.network(id).is_some_and(|n| n.config.internal);
    if target.is_some_and(|t| internal(t.network)) {
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

/// The address and ports that the connection speaks from, if not its own. An uplink without an address
/// of the family leads nowhere: what is inside is not shown to anybody.
fn outside_source<'a, P: Ip>(
    cx: &Cx<'a>,
    from: From,
    ip: &P,
    hop: &Hop,
    target: Option<&DnatTarget<Addr<P>>>,
) -> Result<Option<Source<'a, Addr<P>>>, DropReason> {
    let network = from.network().and_then(|id| cx.config.network(id));
    let Some(network): Option<&Network> = network else { return Ok(None) };
    match hop.link {
        Link::Uplink(id) => {
            let uplink: &'a UplinkConfig = cx.config.uplink(id).ok_or(DropReason::NoRoute)?;
            if !network.config.masquerade || network.config.routed.of(ip.src()) {
                return Ok(None);
            }
            let address = uplink.source_for(hop.next_hop, ip.src().into()).and_then(Addr::<P>::of);
            let address = address.ok_or(DropReason::NoRoute)?;
            let ports = cx.config.free_ports.at(uplink, ip.proto(), address);
            let is_mapped = network.config.endpoint_independent;
            Ok(Some(Source { address, ports, is_mapped }))
        }
        // Hairpin: the server must answer to us, so it sees the address that was spoken to
        // (RFC 4787 REQ-9a).
        Link::Network(_) if target.is_some() => {
            let dst = ip.dst();
            let owner = match cx.config.local(dst) {
                Some(LocalAddress::Gateway(_)) | None => None,
                _ => cx.config.uplinks().find(|u| u.has(dst)),
            };
            let free = |uplink| cx.config.free_ports.at(uplink, ip.proto(), dst);
            let ports = owner.map_or(HAIRPIN_PORTS, free);
            Ok(Some(Source { address: dst, ports, is_mapped: false }))
        }
        Link::Network(_) => Ok(None),
    }
}

/// An address to speak from, and its ports.
struct Source<'a, A> {
    address: A,
    ports: &'a [(u16, u16)],
    /// By an endpoint-independent mapping.
    is_mapped: bool,
}

enum Refusal<K> {
    Drop(DropReason),
    Exists(Hit<K>),
}

/// Enters the connection, whose original tuple has this hash, with the first outside port that is free.
fn commit<K: Tracked>(
    cx: &mut Cx<'_>,
    mut new: NewConnection<K>,
    original: u64,
    to: K,
    source: Option<Source<'_, K::Addr>>,
) -> Result<Hit<K>, Refusal<K>> {
    let Source { address, ports: ranges, is_mapped } = match source {
        Some(source) => source,
        None => match insert(cx, &new) {
            // The same client port by two published ports to one server: the second gets another.
            Err(Refusal::Drop(DropReason::SnatPortsExhausted)) => {
                Source { address: to.src(), ports: ANY_PORT, is_mapped: false }
            }
            other => return other,
        },
    };
    new.flags |= SNAT;
    K::note_outside(cx, address);
    let zone = new.reply.zone();
    if !has_ports::<K>(to.proto()) {
        new.reply = to.with_src(address, 0).reversed(zone);
        return insert(cx, &new);
    }
    let mut candidates = Candidates::new(ranges, to.src_port(), cx.rng);
    if is_mapped {
        return commit_mapped(cx, new, original, (to, address), (candidates, share_of(ranges)));
    }
    let connections = K::table(cx.tables);
    let reply = |port| spoken(to, address, port).reversed(zone);
    let ports = connections.ports_towards(reply(0));
    let ask = |port| {
        let hash = connections.hash(reply(port));
        connections.prefetch_both(hash);
        (port, hash)
    };
    let again = candidates.clone();
    let first = candidates.next();
    let looks_taken = first.is_some_and(|port| ports.has(port));
    let mut others = candidates.filter(|port| !ports.has(*port)).map(ask);
    // Early enough to have come when it is wanted.
    let second = if looks_taken { others.next() } else { None };
    // The inside port is worth a closer look: who had it may have expired.
    let first = first.map(ask).filter(|(port, hash)| {
        !looks_taken || connections.lookup_hashed(*hash, reply(*port), cx.secs).is_none()
    });
    for (port, hash) in first.into_iter().chain(second).chain(others) {
        if is_kept(cx, to, address, port) {
            continue;
        }
        new.reply = reply(port);
        match insert_hashed(cx, &new, [original, hash]) {
            Err(Refusal::Drop(DropReason::SnatPortsExhausted)) => {}
            other => return other,
        }
    }
    // Those that only look taken, because another destination's ports are counted with them.
    let mut others = again.clone().filter(|port| ports.has(*port)).map(ask);
    let mut next = others.next();
    while let Some((port, hash)) = next {
        next = others.next();
        if connections.may_be_taken(hash) || is_kept(cx, to, address, port) {
            continue;
        }
        new.reply = reply(port);
        match insert_hashed(cx, &new, [original, hash]) {
            Err(Refusal::Drop(DropReason::SnatPortsExhausted)) => {}
            other => return other,
        }
    }
    // Some may belong to connections that have expired without having been swept, or to a flood of such
    // as nobody answers, which must not keep this server from others.
    for port in again.filter(|port| !is_kept(cx, to, address, *port)) {
        new.reply = reply(port);
        match insert_or_evict(cx, &new, original) {
            Err(Refusal::Drop(DropReason::SnatPortsExhausted)) => {}
            other => return other,
        }
    }
    Err(Refusal::Drop(DropReason::SnatPortsExhausted))
}

/// Enters the connection with the outside port that its inside one has, whomever it speaks to; or gives
/// it one that is nobody's.
fn commit_mapped<K: Tracked>(
    cx: &Cx<'_>,
    mut new: NewConnection<K>,
    original: u64,
    (to, address): (K, K::Addr),
    (candidates, share): (Candidates<'_>, u32),
) -> Result<Hit<K>, Refusal<K>> {
    let connections = K::table(cx.tables);
    let mappings = connections.room().mappings();
    let inside = Inside::of(new.original, address);
    let zone = new.reply.zone();
    let reply = |port| spoken(to, address, port).reversed(zone);
    let is_free = |port: &u16| {
        !is_published(cx, to, address, *port) && connections.lookup(reply(*port), cx.secs).is_none()
    };
    let exhausted = Refusal::Drop(DropReason::SnatPortsExhausted);
    let Some(port) = mappings.reserve(inside, share, candidates.filter(is_free)) else {
        return Err(exhausted);
    };
    new.reply = reply(port);
    new.flags |= MAPPED;
    // Published while a conversation goes on from it: new ones are for whom it is published.
    let inserted = if is_published(cx, to, address, port) {
        Err(exhausted)
    } else {
        insert_or_evict(cx, &new, original)
    };
    // From here on the connection itself counts.
    mappings.release(inside);
    inserted
}

/// Outside ports that one inside address may have for itself alone: a quarter, so that none keeps all
/// others from speaking.
fn share_of(ranges: &[(u16, u16)]) -> u32 {
    let all: u32 = ranges.iter().map(|(first, last)| u32::from(*last - *first) + 1).sum();
    all.div_ceil(4)
}

/// Enters a connection whose outside port may be in the way of nobody but one that has expired, or one
/// of a flood.
fn insert_or_evict<K: Tracked>(
    cx: &Cx<'_>,
    new: &NewConnection<K>,
    original: u64,
) -> Result<Hit<K>, Refusal<K>> {
    let connections = K::table(cx.tables);
    let hashes = [original, connections.hash(new.reply)];
    let inserted = insert_hashed(cx, new, hashes);
    if matches!(inserted, Err(Refusal::Drop(DropReason::SnatPortsExhausted)))
        && connections.evict_from(hashes[1], new.reply, new)
    {
        return insert_hashed(cx, new, hashes);
    }
    inserted
}

/// How a packet to its server looks from an outside port.
fn spoken<K: Tracked>(to: K, address: K::Addr, port: u16) -> K {
    let from = to.with_src(address, port);
    if to.proto() == K::ICMP { from.with_dst(to.dst(), port) } else { from }
}

/// A port that is another's alone: published, or mapped.
fn is_kept<K: Tracked>(cx: &Cx<'_>, to: K, address: K::Addr, port: u16) -> bool {
    is_published(cx, to, address, port)
        || K::table(cx.tables).room().mappings().has(to.proto(), address, port)
}

/// A published port is never spoken from, whatever the ranges say.
fn is_published<K: Key>(cx: &Cx<'_>, to: K, address: K::Addr, port: u16) -> bool {
    cx.config.dnat.lookup(to.proto(), address, port).is_some()
}

fn insert<K: Tracked>(cx: &Cx<'_>, new: &NewConnection<K>) -> Result<Hit<K>, Refusal<K>> {
    let hash = |tuple| K::table(cx.tables).hash(tuple);
    insert_hashed(cx, new, [hash(new.original), hash(new.reply)])
}

fn insert_hashed<K: Tracked>(
    cx: &Cx<'_>,
    new: &NewConnection<K>,
    hashes: [u64; 2],
) -> Result<Hit<K>, Refusal<K>> {
    let connections = K::table(cx.tables);
    if connections.is_full() {
        // The room is the other family's too: what of that has expired must not stand in the way.
        K::reclaim_of_other(cx.tables, cx.secs);
    }
    let mut inserted = connections.insert_hashed(new, hashes, cx.secs);
    // A tuple whose places in the index are taken is not helped by the other family.
    if inserted == Insert::Full && connections.is_full() && K::evict_of_other(cx.tables, new) {
        inserted = connections.insert_hashed(new, hashes, cx.secs);
    }
    match inserted {
        Insert::Inserted(id) => Ok(Hit::begun(id, new)),
        Insert::Exists(hit) => Err(Refusal::Exists(hit)),
        Insert::Full => {
            connections.note_full();
            Err(Refusal::Drop(DropReason::ConntrackFull))
        }
        Insert::Overdrawn(Overdrawn::Limit) => Err(Refusal::Drop(DropReason::EndpointLimit)),
        Insert::Overdrawn(Overdrawn::Rate) => Err(Refusal::Drop(DropReason::EndpointRate)),
        Insert::ReplyTaken => Err(Refusal::Drop(DropReason::SnatPortsExhausted)),
    }
}

const fn has_ports<K: Tracked>(proto: u8) -> bool {
    matches!(proto, ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP) || proto == K::ICMP
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
