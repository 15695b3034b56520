//! What the API shows of connections, and which of them it ends.

use std::collections::HashMap;

use dataplane::conntrack::{Change, ConnectionEvent};
use dataplane::engine::FlowTuple;
use dataplane::packet::types::NetworkId;

use crate::api::types::{
    self, ConntrackFilter, ConntrackStats, HelperStats, IpProtocol, NatKind, Tuple,
};
use crate::error::Result;
use crate::name::Name;
use crate::switch::Switch;

impl Switch {
    /// Tracked connections that the filter asks for.
    ///
    /// # Errors
    /// When the filter names an unknown network.
    pub fn connections(&self, filter: &ConntrackFilter) -> Result<Vec<types::Connection>> {
        let names = self.filter_names(filter)?;
        Ok(self
            .engine
            .connections()
            .iter()
            .map(|connection| connection_view(connection, &names))
            .filter(|connection| filter.matches(connection))
            .collect())
    }

    /// Ends the connections that the filter asks for; returns how many.
    ///
    /// # Errors
    /// When the filter names an unknown network.
    pub fn flush_connections(&self, filter: &ConntrackFilter) -> Result<usize> {
        let names = self.filter_names(filter)?;
        Ok(self
            .engine
            .flush_connections(&|connection| filter.matches(&connection_view(connection, &names))))
    }

    /// Whether a filter can match anything.
    ///
    /// # Errors
    /// When it names an unknown network.
    pub fn check_filter(&self, filter: &ConntrackFilter) -> Result<()> {
        self.world().network_exists(filter.network.as_ref())
    }

    fn filter_names(&self, filter: &ConntrackFilter) -> Result<HashMap<NetworkId, Name>> {
        self.world().network_exists(filter.network.as_ref())?;
        Ok(self.network_names())
    }

    /// The names of the networks that the engine knows by number, and of those removed last: what is told of
    /// their connections is read when they are gone.
    #[must_use]
    pub fn network_names(&self) -> HashMap<NetworkId, Name> {
        let world = self.world();
        let networks = world.desired.networks.values();
        let present = networks.map(|network| (network.network_id(), network.name.clone()));
        world.former.names().chain(present).collect()
    }

    /// What happened to a connection that the filter asks for.
    #[must_use]
    pub fn connection_event(
        &self,
        event: &ConnectionEvent,
        filter: &ConntrackFilter,
        names: &HashMap<NetworkId, Name>,
    ) -> Option<types::ConnectionEvent> {
        let connection = connection_view(&event.connection, names);
        let (name, reason) = match event.change {
            Change::Destroy(reason) => ("destroy", Some(reason.name().to_owned())),
            Change::New => ("new", None),
            Change::Update => ("update", None),
        };
        filter.matches(&connection).then(|| types::ConnectionEvent {
            time_ms: event.unix_nanos / 1_000_000,
            event: name.to_owned(),
            reason,
            connection,
        })
    }

    /// Totals of the connection table.
    #[must_use]
    pub fn conntrack_stats(&self) -> ConntrackStats {
        let stats = self.engine.conntrack_stats();
        let helpers = stats.helpers;
        ConntrackStats {
            entries: stats.entries.into(),
            limit: stats.limit.into(),
            inserted: stats.inserted,
            expired: stats.expired,
            flushed: stats.flushed,
            full: stats.full,
            clashes: stats.clashes,
            ports_exhausted: stats.ports_exhausted,
            picked_up: stats.picked_up,
            evicted: stats.evicted,
            helpers: HelperStats {
                expected: helpers.expected,
                used: helpers.used,
                foreign: helpers.foreign,
                full: helpers.full,
                no_port: helpers.no_port,
                privileged: helpers.privileged,
                too_long: helpers.too_long,
            },
        }
    }
}

fn connection_view(
    connection: &dataplane::engine::Connection,
    names: &HashMap<NetworkId, Name>,
) -> types::Connection {
    types::Connection {
        proto: IpProtocol(connection.proto),
        state: connection.state.to_owned(),
        orig: tuple_view(connection.original),
        reply: tuple_view(connection.reply),
        nat: NatKind::new(connection.snat, connection.dnat),
        timeout_s: connection.timeout.as_secs(),
        packets: connection.packets,
        bytes: connection.bytes,
        network: names.get(&connection.network).cloned(),
    }
}

fn tuple_view(tuple: FlowTuple) -> Tuple {
    Tuple { src: tuple.src, dst: tuple.dst, sport: tuple.src_port, dport: tuple.dst_port }
}
