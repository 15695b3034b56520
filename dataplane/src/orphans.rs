//! Connections that a configuration has no place for.
//!
//! While the engine runs, a new configuration ends what it no longer allows by comparison with the
//! one before ([`crate::gone`]). What an earlier run left has none before: each connection is held
//! against the configuration itself, once, when it is complete.

use std::net::IpAddr;

use crate::config::{Network, PortRole, Snapshot};
use crate::conntrack::Entry;
use crate::engine::Connection;
use crate::l3::route::RouteTarget;
use crate::packet::types::{PortId, ip_proto};

/// Whether a connection could have been begun under this configuration.
pub(crate) fn has_place(snapshot: &Snapshot, entry: &Entry) -> bool {
    let connection = &entry.connection;
    snapshot.network(connection.network).is_some()
        && rule_stands(snapshot, entry)
        && !is_published_over(snapshot, entry)
        && !is_rerouted(snapshot, connection)
        && !snapshot.denies(entry)
        && [connection.original.src, connection.reply.src].iter().all(|a| is_known(snapshot, *a))
        && speaks_from_ours(snapshot, connection)
        && (!connection.dnat || snapshot.local(connection.original.dst).is_some())
}

/// The rule by which it was begun leads where the connection goes.
fn rule_stands(snapshot: &Snapshot, entry: &Entry) -> bool {
    let Entry { rule, connection, .. } = entry;
    if *rule == 0 {
        return true;
    }
    if entry.is_expected {
        return snapshot.dnat.rules().any(|known| known.id == *rule);
    }
    let (asked, serves) = (connection.original, connection.reply);
    let dnat = &snapshot.dnat;
    // Opened at the endpoint's own address, or published at one of ours, which may be gone for a moment.
    let target = dnat
        .opened(connection.proto, asked.dst, asked.dst_port)
        .or_else(|| dnat.lookup(connection.proto, asked.dst, asked.dst_port));
    target.is_some_and(|target| {
        (target.rule, target.address, target.port) == (*rule, serves.src, serves.src_port)
    })
}

/// What is published leads elsewhere than the connection: it came by a wider rule than there is now, or it
/// speaks from a port that is published by now. Packets from outside that look like answers would pass
/// by whoever the port is for. A conversation over TCP or SCTP goes on: the other side has agreed to it, and begins
/// no other from that very port.
pub(crate) fn is_published_over(snapshot: &Snapshot, entry: &Entry) -> bool {
    let Entry { connection, is_open, .. } = entry;
    if !rule_stands(snapshot, entry) {
        return true;
    }
    let (address, port) = (connection.reply.dst, connection.reply.dst_port);
    connection.snat
        && (!matches!(connection.proto, ip_proto::TCP | ip_proto::SCTP) || *is_open)
        && snapshot.local(address).is_some()
        && snapshot.dnat.lookup(connection.proto, address, port).is_some()
}

/// It speaks from the address of a way out that its packets do not take any more: the answers would come
/// to where nobody knows them, and the next router may drop what is not from there.
pub(crate) fn is_rerouted(snapshot: &Snapshot, connection: &Connection) -> bool {
    let Connection { original, reply, .. } = connection;
    if !connection.snat || connection.dnat || reply.dst == original.src {
        return false;
    }
    match snapshot.routes.lookup(reply.src) {
        Some(RouteTarget::Uplink { uplink, .. }) => {
            snapshot.uplink(uplink).is_none_or(|uplink| !uplink.has(reply.dst))
        }
        Some(RouteTarget::Network(_)) => true,
        // Nothing leaves. The way may come back.
        None => false,
    }
}

/// Nobody but us and our endpoints has an address in a network, unless its guard is off.
fn is_known(snapshot: &Snapshot, address: IpAddr) -> bool {
    match snapshot.routes.lookup(address) {
        Some(RouteTarget::Network(id)) => {
            snapshot.local(address).is_some()
                || snapshot.network(id).is_some_and(|network| {
                    network.endpoints.contains(address) || is_unguarded(snapshot, network)
                })
        }
        _ => true,
    }
}

fn is_unguarded(snapshot: &Snapshot, network: &Network) -> bool {
    let unguarded = |id: &PortId| {
        let role = snapshot.port(*id).map(|port| &port.config.role);
        matches!(role, Some(PortRole::Endpoint { guard: false, .. }))
    };
    network.ports.iter().any(unguarded)
}

/// The address that the other side sees is one of ours. A client that only got another port keeps
/// its own.
fn speaks_from_ours(snapshot: &Snapshot, connection: &Connection) -> bool {
    let spoken = connection.reply.dst;
    !connection.snat || spoken == connection.original.src || snapshot.local(spoken).is_some()
}
