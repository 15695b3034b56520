//! From which outside address and port a new connection speaks, and its entry into the table with the first
//! port that is free.

use std::net::IpAddr;

use crate::config::{LocalAddress, Network, UplinkConfig};
use crate::conntrack::entry::{MAPPED, SNAT};
use crate::conntrack::tcp::TcpState;
use crate::conntrack::{Hit, Insert, Inside, Key, NewConnection, Overdrawn, TRIES};
use crate::core::Cx;
use crate::engine::Link;
use crate::family::Address;
use crate::l3::hop::{self, Hop};
use crate::nat::dnat::DnatTarget;
use crate::nat::ip::{Addr, Ip, Tracked};
use crate::nat::port_alloc::Candidates;
use crate::packet::types::ip_proto;
use crate::pipeline::From;
use crate::verdict::DropReason;

/// Any port, for a client whose own port is taken at the server by its other connection.
const ANY_PORT: &[(u16, u16)] = &[(1024, 65_535)];
/// So many ports that are taken are looked at, under locks, for whether who has them may be ended for another. Where
/// all are of such as are answered it is in vain for each packet that comes; where one in ten is of a flood, one of
/// these is in 97 of 100 cases.
const CLOSE_LOOKS: usize = 32;

/// The address and ports that the connection speaks from, if not its own. An uplink without an address
/// of the family leads nowhere: what is inside is not shown to anybody.
pub(super) fn outside_source<'a, P: Ip>(
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
        Link::Network(_) if target.is_some() => Ok(Some(hairpin(cx, network, ip))),
        Link::Network(_) => Ok(None),
    }
}

/// What the server of a hairpin sees: it must answer to us. Of an inside address that has one outside it sees
/// that (RFC 4787 REQ-9a), as those see it who are on the wire of the address that was spoken to. By an address
/// that no uplink has, a gateway's say, nobody outside is spoken to, and who asked sees it answer: it is seen
/// itself, but where an inside port is to have one outside port for all (ADR 30).
fn hairpin<'a, P: Ip>(cx: &Cx<'a>, network: &Network, ip: &P) -> Source<'a, Addr<P>> {
    let (src, dst) = (ip.src(), ip.dst());
    let is_mapped = network.config.endpoint_independent;
    let way: Option<(&'a UplinkConfig, IpAddr)> = match cx.config.local(dst) {
        Some(LocalAddress::Gateway(_)) | None => None,
        _ => cx.config.uplinks().find(|uplink| uplink.has(dst)).map(|uplink| (uplink, dst.into())),
    };
    let default = || {
        let Hop { link: Link::Uplink(id), next_hop, .. } = hop::way_of_all(cx, dst)? else {
            return None;
        };
        Some((cx.config.uplink(id)?, next_hop))
    };
    // The address that speaks to the next router, where that is by the same wire.
    let way = match (way, default()) {
        (Some((uplink, _)), Some((same, router))) if same.id == uplink.id => Some((same, router)),
        (None, other) if is_mapped => other,
        (way, _) => way,
    };
    let is_shown = network.config.masquerade && !network.config.routed.of(src);
    let shown = way.filter(|_| is_shown).and_then(|(uplink, next_hop)| {
        let address = uplink.source_for(next_hop, src.into()).and_then(Addr::<P>::of)?;
        Some(Source {
            address,
            ports: cx.config.free_ports.at(uplink, ip.proto(), address),
            is_mapped,
        })
    });
    shown.unwrap_or_else(|| {
        let ports = match way.filter(|(uplink, _)| uplink.has(dst)) {
            Some((uplink, _)) => cx.config.free_ports.at(uplink, ip.proto(), dst),
            None => cx.config.free_ports.at_host(ip.proto(), dst),
        };
        Source { address: dst, ports, is_mapped }
    })
}

/// An address to speak from, and its ports.
pub(super) struct Source<'a, A> {
    address: A,
    ports: &'a [(u16, u16)],
    /// By an endpoint-independent mapping.
    is_mapped: bool,
}

/// Why a connection is not entered.
pub(super) enum Refusal<K> {
    Drop(DropReason),
    Exists(Hit<K>),
}

/// Enters the connection, whose original tuple has this hash, with the first outside port that is free.
pub(super) fn commit<K: Tracked>(
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
            Err(Refusal::Drop(DropReason::SnatPortsExhausted)) if !is_picked_up(&new) => {
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
    let begin = begins_at(cx, to);
    let mut candidates = Candidates::beginning(ranges, to.src_port(), begin, cx.rng);
    if is_picked_up(&new) {
        candidates.keep_only();
    }
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
    for port in again.filter(|port| !is_kept(cx, to, address, *port)).take(CLOSE_LOOKS) {
        new.reply = reply(port);
        match insert_or_evict(cx, &new, original) {
            Err(Refusal::Drop(DropReason::SnatPortsExhausted)) => {}
            other => return other,
        }
    }
    Err(Refusal::Drop(DropReason::SnatPortsExhausted))
}

/// Where the search for another port than the inside one begins: at one place for all that it speaks to, so
/// that it has one outside port as long as that is free (RFC 4787 REQ-1).
fn begins_at<K: Key>(cx: &Cx<'_>, to: K) -> u64 {
    let key = cx.tables.ports_key;
    let port = u64::from(to.src_port()) << 8 | u64::from(to.proto());
    match to.src().into() {
        IpAddr::V4(own) => key.hash(u64::from(u32::from(own)), port),
        IpAddr::V6(own) => {
            let own = u128::from(own);
            #[allow(clippy::cast_possible_truncation, reason = "taken apart")]
            let (prefix, id) = ((own >> 64) as u64, own as u64);
            key.hash(key.hash(prefix, id), port)
        }
    }
}

/// Whether the other side knows the connection already, by the port that it had: no other one helps.
fn is_picked_up<K: Key>(new: &NewConnection<K>) -> bool {
    new.original.proto() == ip_proto::TCP && new.state == TcpState::PickedUp as u8
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
    let is_another = is_picked_up(&new) && port != to.src_port();
    // Published while a conversation goes on from it: new ones are for whom it is published.
    let inserted = if is_another || is_published(cx, to, address, port) {
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

/// Enters the connection as it is.
pub(super) fn insert<K: Tracked>(
    cx: &Cx<'_>,
    new: &NewConnection<K>,
) -> Result<Hit<K>, Refusal<K>> {
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
    for _ in 1..TRIES {
        if inserted != Insert::Full {
            break;
        }
        // Where there is room by now, another worker has made it since. (Or the places of a tuple in the index are
        // taken: the other family is no help then.)
        if connections.is_full() && !K::evict_of_other(cx.tables, new) {
            break;
        }
        // Another worker may be faster to take what was made.
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
        Insert::Overdrawn(Overdrawn::Network) => Err(Refusal::Drop(DropReason::NetworkLimit)),
        Insert::ReplyTaken => Err(Refusal::Drop(DropReason::SnatPortsExhausted)),
    }
}

const fn has_ports<K: Tracked>(proto: u8) -> bool {
    matches!(proto, ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP) || proto == K::ICMP
}
