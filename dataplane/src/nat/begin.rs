//! A new connection: DNAT, route, SNAT, commit, in this order. Until the commit nothing is kept: a
//! packet that is dropped leaves no trace. One that then waits for a neighbor in vain takes its
//! connection along (`l3::waiting::give_up`).

use std::net::Ipv4Addr;

use crate::config::{LocalAddress, Network, UplinkConfig};
use crate::conntrack::entry::{DNAT, SNAT};
use crate::conntrack::tcp::TcpState;
use crate::conntrack::{Hit, Insert, Key, NewConnection, Tuple, Zone, timeout};
use crate::core::Cx;
use crate::engine::{Link, NatRule};
use crate::family::Address;
use crate::frame::Frame;
use crate::l3::hop::{self, Hop};
use crate::l3::report::report;
use crate::nat::dnat::DnatTarget;
use crate::nat::established::{Seen, note};
use crate::nat::local;
use crate::nat::port_alloc::Candidates;
use crate::nat::translate::{established, finish, not_ours, way_out};
use crate::packet::headers::{Ipv4, L4};
use crate::packet::icmp::{self, IcmpError};
use crate::packet::types::{NetworkId, ip_proto};
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
pub(super) fn begin(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    ip: &Ipv4,
    tuple: Tuple,
) -> Result<Verdict, DropReason> {
    let local = cx.config.local(ip.dst);
    let state = first_state(ip);
    let target = match (local, ip.l4) {
        (Some(_), L4::Tcp { dst_port, .. } | L4::Udp { dst_port, .. }) if state.is_some() => {
            cx.config.dnat.lookup(ip.proto, ip.dst, dst_port)
        }
        _ => None,
    };
    match (target, local, lane.from) {
        (Some(_), _, From::Uplink(_)) if is_inside(cx, ip.src) => {
            return not_ours(cx, lane.from, DropReason::Martian);
        }
        (Some(_), ..) => {}
        (None, Some(local), _) => return local::deliver(cx, frame, lane, ip, local),
        (None, None, From::Uplink(_)) => {
            return not_ours(cx, lane.from, DropReason::Unsolicited);
        }
        (None, None, _) => {}
    }
    let state = state.ok_or(DropReason::ConntrackInvalid)?;
    let to = target.map_or(tuple, |t| tuple.with_dst(t.address, t.port));
    // Forbidden ways are refused before anybody is asked for anything.
    let link = hop::route(cx, to.dst()).ok().map(|hop| hop.link);
    permitted(cx, lane.from, link, target.as_ref())?;
    let way = way_out(cx, frame, lane, ip, to.dst())?;
    let source = outside_source(cx, lane.from, ip, &way.hop, target.as_ref());

    let service = tuple.dst_port();
    let idle = timeout::idle(&cx.config.timeouts, ip.proto, service, state);
    let new = NewConnection {
        original: tuple,
        reply: to.reversed(zone_of(way.hop.link)),
        state,
        flags: if target.is_some() { DNAT } else { 0 },
        network: inside_network(lane.from, target.as_ref()),
        rule: target.map_or(0, |t| t.rule),
        deadline: cx.secs.saturating_add(u32::try_from(idle.as_secs()).unwrap_or(u32::MAX)),
    };
    let original = lane.hash;
    let hit = match commit(cx, new, original, to, source) {
        Ok(hit) => hit,
        // Another worker was faster.
        Err(Refusal::Exists(hit)) => return established(cx, frame, lane, ip, tuple, hit),
        Err(Refusal::Drop(DropReason::SnatPortsExhausted)) => {
            cx.tables.connections.note_ports_exhausted();
            report(cx, frame, &lane.headers, lane.from, IcmpError::AdminProhibited);
            return Err(DropReason::SnatPortsExhausted);
        }
        Err(Refusal::Drop(reason)) => return Err(reason),
    };
    count_rules(cx, &hit, target.as_ref(), u64::from(ip.total_len));
    // Should the answer have come by another worker already, its state is the later one.
    let seen = Seen::of(frame, ip);
    note(cx, &seen, &hit, &seen.begins(state), service);
    finish(cx, frame, lane, tuple, &hit, &way)
}

/// The state a connection begins in; `None` when this packet cannot begin one.
fn first_state(ip: &Ipv4) -> Option<u8> {
    match ip.l4 {
        L4::Tcp { flags, .. } => TcpState::first(flags).map(|state| state as u8),
        // An echo reply answers something, or nothing.
        L4::Icmp { kind, .. } => (kind != icmp::ECHO_REPLY).then_some(0),
        _ => Some(0),
    }
}

/// Whether an address is one of a network's, which nobody outside has: the answers would go to the
/// one who does.
fn is_inside(cx: &Cx<'_>, address: Ipv4Addr) -> bool {
    matches!(hop::route(cx, address), Ok(Hop { link: Link::Network(_), .. }))
}

/// Which ways are open to a new connection.
fn permitted(
    cx: &Cx<'_>,
    from: From,
    link: Option<Link>,
    target: Option<&DnatTarget<Ipv4Addr>>,
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

/// The address and ports that the connection speaks from, if not its own.
fn outside_source<'a>(
    cx: &Cx<'a>,
    from: From,
    ip: &Ipv4,
    hop: &Hop,
    target: Option<&DnatTarget<Ipv4Addr>>,
) -> Option<(Ipv4Addr, &'a [(u16, u16)])> {
    let network: &Network = cx.config.network(from.network()?)?;
    match hop.link {
        Link::Uplink(id) => {
            let uplink: &'a UplinkConfig = cx.config.uplink(id)?;
            if !network.config.masquerade {
                return None;
            }
            let address = Ipv4Addr::of(uplink.address_for(hop.next_hop)?)?;
            Some((address, cx.config.free_ports.at(uplink, ip.proto, address)))
        }
        // Hairpin: the server must answer to us, so it sees the address that was spoken to
        // (RFC 4787 REQ-9a).
        Link::Network(_) if target.is_some() => {
            let owner = match cx.config.local(ip.dst) {
                Some(LocalAddress::Gateway(_)) | None => None,
                _ => cx.config.uplinks().find(|u| u.has(ip.dst)),
            };
            let free = |uplink| cx.config.free_ports.at(uplink, ip.proto, ip.dst);
            Some((ip.dst, owner.map_or(HAIRPIN_PORTS, free)))
        }
        Link::Network(_) => None,
    }
}

enum Refusal {
    Drop(DropReason),
    Exists(Hit),
}

/// Enters the connection, whose original tuple has this hash, with the first outside port that is free.
fn commit(
    cx: &mut Cx<'_>,
    mut new: NewConnection,
    original: u64,
    to: Tuple,
    source: Option<(Ipv4Addr, &[(u16, u16)])>,
) -> Result<Hit, Refusal> {
    let (address, ranges) = match source {
        Some(source) => source,
        None => match insert(cx, &new) {
            // The same client port by two published ports to one server: the second gets another.
            Err(Refusal::Drop(DropReason::SnatPortsExhausted)) => (to.src(), ANY_PORT),
            other => return other,
        },
    };
    new.flags |= SNAT;
    *cx.outside = Some(address);
    let zone = new.reply.zone();
    if !has_ports(to.proto()) {
        new.reply = to.with_src(address, 0).reversed(zone);
        return insert(cx, &new);
    }
    let connections = &cx.tables.connections;
    let mut candidates = Candidates::new(ranges, to.src_port(), cx.rng);
    let again = candidates.clone();
    let reply = |port| spoken(to, address, port).reversed(zone);
    // The first one is free nearly always.
    let mut together = 1;
    loop {
        let mut group = [(0, 0); TOGETHER];
        let mut count = 0;
        for (place, port) in group.iter_mut().take(together).zip(&mut candidates) {
            let hash = connections.hash(reply(port));
            connections.prefetch_both(hash);
            *place = (port, hash);
            count += 1;
        }
        if count == 0 {
            break;
        }
        for (port, hash) in group.into_iter().take(count) {
            new.reply = reply(port);
            // The inside port is worth a closer look: who had it may have expired.
            let taken = connections.may_be_taken(hash)
                && (together > 1 || connections.lookup_hashed(hash, new.reply, cx.secs).is_some());
            if taken || is_published(cx, to, address, port) {
                continue;
            }
            match insert_hashed(cx, &new, [original, hash]) {
                Err(Refusal::Drop(DropReason::SnatPortsExhausted)) => {}
                other => return other,
            }
        }
        together = TOGETHER.min(together * 2);
    }
    // Some may belong to connections that have expired without having been swept.
    for port in again.filter(|port| !is_published(cx, to, address, *port)) {
        new.reply = reply(port);
        match insert(cx, &new) {
            Err(Refusal::Drop(DropReason::SnatPortsExhausted)) => {}
            other => return other,
        }
    }
    Err(Refusal::Drop(DropReason::SnatPortsExhausted))
}

/// Outside ports whose places in the index are asked for together at most; fewer at first, because most
/// are free.
const TOGETHER: usize = 8;

/// How a packet to its server looks from an outside port.
fn spoken(to: Tuple, address: Ipv4Addr, port: u16) -> Tuple {
    match to.proto() {
        ip_proto::ICMP => to.with_src(address, port).with_dst(to.dst(), port),
        _ => to.with_src(address, port),
    }
}

/// A published port is never spoken from, whatever the ranges say.
fn is_published(cx: &Cx<'_>, to: Tuple, address: Ipv4Addr, port: u16) -> bool {
    cx.config.dnat.lookup(to.proto(), address, port).is_some()
}

fn insert(cx: &Cx<'_>, new: &NewConnection) -> Result<Hit, Refusal> {
    let hash = |tuple| cx.tables.connections.hash(tuple);
    insert_hashed(cx, new, [hash(new.original), hash(new.reply)])
}

fn insert_hashed(cx: &Cx<'_>, new: &NewConnection, hashes: [u64; 2]) -> Result<Hit, Refusal> {
    let connections = &cx.tables.connections;
    if connections.is_full() {
        // The room is the other family's too: what of that has expired must not stand in the way.
        cx.tables.connections6.reclaim(cx.secs);
    }
    match connections.insert_hashed(new, hashes, cx.secs) {
        Insert::Inserted(id) => Ok(Hit::begun(id, new)),
        Insert::Exists(hit) => Err(Refusal::Exists(hit)),
        Insert::Full => Err(Refusal::Drop(DropReason::ConntrackFull)),
        Insert::ReplyTaken => Err(Refusal::Drop(DropReason::SnatPortsExhausted)),
    }
}

const fn has_ports(proto: u8) -> bool {
    matches!(proto, ip_proto::TCP | ip_proto::UDP | ip_proto::ICMP)
}

fn zone_of(link: Link) -> Zone {
    match link {
        Link::Network(id) => Zone::network(id),
        Link::Uplink(_) => Zone::OUTSIDE,
    }
}

/// The network a connection is listed under, and ends with.
fn inside_network(from: From, target: Option<&DnatTarget<Ipv4Addr>>) -> NetworkId {
    match (from.network(), target) {
        (None, Some(target)) => target.network,
        (Some(network), _) => network,
        (None, None) => NetworkId(0),
    }
}

fn count_rules(cx: &Cx<'_>, hit: &Hit, target: Option<&DnatTarget<Ipv4Addr>>, bytes: u64) {
    if let Some(target) = target {
        cx.tables.count_rule(NatRule::Dnat(target.rule), bytes);
    } else if hit.flags() & SNAT != 0 {
        cx.tables.count_rule(NatRule::Masquerade(hit.network()), bytes);
    }
}
