//! Connections of an earlier run that this run's configuration has no place for.
//!
//! While the engine runs, a new configuration ends what it no longer allows by comparison with the
//! one before ([`crate::plane`]). What an earlier run left has none before: each connection is held
//! against the configuration itself, once, when it is complete.

use std::net::IpAddr;

use crate::config::{Network, PortRole, Snapshot};
use crate::engine::Connection;
use crate::l3::route::RouteTarget;
use crate::packet::types::PortId;

/// Whether a connection could have been begun under this configuration.
pub(crate) fn has_place(snapshot: &Snapshot, connection: &Connection, rule: u32) -> bool {
    snapshot.network(connection.network).is_some()
        && rule_stands(snapshot, connection, rule)
        && [connection.original.src, connection.reply.src].iter().all(|a| is_known(snapshot, *a))
        && speaks_from_ours(snapshot, connection)
        && (!connection.dnat || snapshot.local(connection.original.dst).is_some())
}

/// The rule by which it was begun leads where the connection goes.
fn rule_stands(snapshot: &Snapshot, connection: &Connection, rule: u32) -> bool {
    if rule == 0 {
        return true;
    }
    let (asked, serves) = (connection.original, connection.reply);
    let target = snapshot.dnat.lookup(connection.proto, asked.dst, asked.dst_port);
    target.is_some_and(|target| {
        (target.rule, target.address, target.port) == (rule, serves.src, serves.src_port)
    })
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
