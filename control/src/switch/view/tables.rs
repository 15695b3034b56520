//! What the API shows of the engine's tables and counters, with names in place of numbers.

use std::collections::HashMap;

use dataplane::engine::{FdbKind, LimitUse, Link, Refusal, StaticRefused};
use dataplane::io::IoBackend;
use dataplane::packet::types::{NetworkId, PortId, UplinkId};
use dataplane::verdict::DropReason;

use super::{port_name, unknown_network, unknown_sandbox};
use crate::api::types::{
    self, ConntrackUse, DropCount, DropsQuery, FdbEntry, FdbQuery, FdbUse, MdbEntry, MdbKind,
    MdbQuery, Neighbor, PortStats, Status, WorkerStatus,
};
use crate::check;
use crate::error::{Error, Result};
use crate::model::{Desired, Network, is_unswitched};
use crate::name::Name;
use crate::places::Limit;
use crate::switch::{Switch, World};

/// Who is behind a port.
#[derive(Debug, Clone)]
pub(in crate::switch) struct Owner {
    /// Name of the port.
    pub(super) port: String,
    /// The sandbox.
    pub(in crate::switch) sandbox: Option<Name>,
    /// The network.
    pub(in crate::switch) network: Option<Name>,
}

impl World {
    /// A network to look at, if one is named, is there. `host` and `none` are, with nothing in
    /// them to show.
    pub(super) fn network_exists(&self, name: Option<&Name>) -> Result<()> {
        match name {
            Some(name) if !self.desired.networks.contains_key(name) && !is_unswitched(name) => {
                Err(unknown_network(name))
            }
            _ => Ok(()),
        }
    }

    pub(in crate::switch) fn owners(&self) -> HashMap<PortId, Owner> {
        let mut owners = HashMap::new();
        for sandbox in self.desired.sandboxes.values() {
            for endpoint in &sandbox.endpoints {
                let key = (sandbox.name.clone(), endpoint.ifname.clone());
                if let Some(port) = self.attached.endpoints.get(&key) {
                    owners.insert(
                        *port,
                        Owner {
                            port: port_name(sandbox, endpoint),
                            sandbox: Some(sandbox.name.clone()),
                            network: Some(endpoint.network.clone()),
                        },
                    );
                }
            }
        }
        for (name, port) in &self.attached.hosts {
            if let Some(network) = self.desired.networks.get(name) {
                owners.insert(
                    *port,
                    Owner {
                        port: network.host_device(),
                        sandbox: None,
                        network: Some(name.clone()),
                    },
                );
            }
        }
        for (interface, state) in &self.attached.uplinks {
            let owner = Owner { port: interface.clone(), sandbox: None, network: None };
            owners.insert(state.port, owner);
        }
        owners
    }
}

fn network_by_id(desired: &Desired, id: NetworkId) -> Option<&Network> {
    desired.networks.values().find(|network| network.network_id() == id)
}

fn network_name(desired: &Desired, id: NetworkId) -> Option<Name> {
    network_by_id(desired, id).map(|network| network.name.clone())
}

pub(super) fn uplink_name(desired: &Desired, id: UplinkId) -> Option<String> {
    desired.uplinks.values().find(|u| u.uplink_id() == id).map(|u| u.interface.clone())
}

impl Switch {
    /// The daemon as a whole.
    #[must_use]
    pub fn status(&self) -> Status {
        let conntrack = self.engine.conntrack_stats();
        let fdb = self.engine.fdb_stats();
        let workers = self
            .engine
            .worker_stats()
            .into_iter()
            .zip(0..)
            .map(|(stats, id)| WorkerStatus {
                id,
                rx_frames: stats.rx_frames,
                tx_frames: stats.tx_frames,
                drops: stats.drops.iter().sum(),
                replicated: stats.replicated,
                merged: stats.merged,
                generated: stats.generated,
                consumed: stats.consumed,
                queued: stats.queued,
            })
            .collect();
        let nat_log = self.nat_log.get().and_then(|log| log.warning());
        let world = self.world();
        let services = &self.services;
        let rules = world.desired.networks.values().map(|network| network.policy.len()).max();
        let rules = u32::try_from(rules.unwrap_or(0)).unwrap_or(u32::MAX);
        let mut limits: Vec<_> = self.engine.limits().iter().map(limit_view).collect();
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let log_waits = self.nat_log.get().map_or(0, |log| log.waiting());
        let noted = [rules, narrow(self.events.len()), log_waits, narrow(world.most_steered())];
        limits.extend(services.noted().iter().zip(noted).map(|(limit, now)| limit.view_of(now)));
        limits.extend(services.counted().map(Limit::view));
        let endpoints = world.desired.sandboxes.values().map(|s| s.endpoints.len()).sum();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            io: match self.engine.backend() {
                IoBackend::Uring => "io_uring",
                IoBackend::Epoll { .. } => "epoll",
            }
            .to_owned(),
            workers,
            // Beside those with records: host and none.
            networks: count(world.desired.networks.len() + 2),
            endpoints: count(endpoints),
            conntrack: ConntrackUse {
                entries: conntrack.entries.into(),
                limit: conntrack.limit.into(),
                grace_s: self.engine.grace_left().as_secs(),
            },
            fdb: FdbUse {
                entries: fdb.entries.into(),
                limit: fdb.limit.into(),
                moves: fdb.moves,
                evictions: fdb.evictions,
                refused: fdb.refused,
            },
            limits,
            warnings: world.warnings().into_iter().chain(nat_log).collect(),
        }
    }

    /// The FDB, by network and MAC.
    ///
    /// # Errors
    /// When the network is unknown.
    pub fn fdb(&self, query: &FdbQuery) -> Result<Vec<FdbEntry>> {
        let entries = self.engine.fdb_entries();
        let world = self.world();
        world.network_exists(query.network.as_ref())?;
        let owners = world.owners();
        let mut shown: Vec<FdbEntry> = entries
            .iter()
            .filter_map(|entry| {
                let network = network_name(&world.desired, entry.network)?;
                let owner = owners.get(&entry.port);
                Some(FdbEntry {
                    network,
                    mac: entry.mac.into(),
                    vlan: entry.vlan,
                    port: owner.map_or_else(|| entry.port.0.to_string(), |o| o.port.clone()),
                    sandbox: owner.and_then(|o| o.sandbox.clone()),
                    kind: match entry.kind {
                        FdbKind::Learned => types::FdbKind::Learned,
                        FdbKind::Local => types::FdbKind::Local,
                        FdbKind::Static => types::FdbKind::Static,
                    },
                    age_s: entry.age.as_secs(),
                })
            })
            .filter(|entry| query.network.as_ref().is_none_or(|name| *name == entry.network))
            .collect();
        shown.sort_by(|a, b| (&a.network, a.mac, a.vlan).cmp(&(&b.network, b.mac, b.vlan)));
        Ok(shown)
    }

    /// Multicast groups and routers, by network, VLAN and group.
    ///
    /// # Errors
    /// When the network is unknown.
    pub fn mdb(&self, query: &MdbQuery) -> Result<Vec<MdbEntry>> {
        let entries = self.engine.groups();
        let world = self.world();
        world.network_exists(query.network.as_ref())?;
        let owners = world.owners();
        let shown = entries.iter().filter_map(|entry| {
            let network = network_name(&world.desired, entry.network)?;
            let owner = owners.get(&entry.port);
            Some(MdbEntry {
                network,
                vlan: entry.vlan,
                group: entry.group,
                port: owner.map_or_else(|| entry.port.0.to_string(), |o| o.port.clone()),
                sandbox: owner.and_then(|o| o.sandbox.clone()),
                kind: if entry.group.is_some() { MdbKind::Member } else { MdbKind::Router },
                expires_s: entry.expires.into(),
            })
        });
        let wanted =
            |entry: &MdbEntry| query.network.as_ref().is_none_or(|name| *name == entry.network);
        Ok(shown.filter(wanted).collect())
    }

    /// Adds a static FDB entry.
    ///
    /// # Errors
    /// When network, sandbox or port are unknown, the MAC is an endpoint's own, or the table is full.
    pub fn fdb_add(&self, request: &types::FdbAdd) -> Result<FdbEntry> {
        check::fdb_add(request)?;
        let (id, port, owner) = {
            let world = self.world();
            let network = world.desired.networks.get(&request.network);
            let network = network.ok_or_else(|| unknown_network(&request.network))?;
            if let Some(name) = &request.sandbox
                && !world.desired.sandboxes.contains_key(name)
            {
                return Err(unknown_sandbox(name));
            }
            let found = world.owners().into_iter().find(|(_, owner)| {
                owner.network.as_ref() == Some(&request.network)
                    && match (&request.sandbox, &request.port) {
                        (Some(name), _) => owner.sandbox.as_ref() == Some(name),
                        (None, Some(port)) => owner.port == *port,
                        (None, None) => false,
                    }
            });
            let (port, owner) = found.ok_or_else(|| {
                let what = match (&request.sandbox, &request.port) {
                    (Some(name), _) => format!("sandbox {name:?}"),
                    (None, port) => format!("port {:?}", port.as_deref().unwrap_or_default()),
                };
                Error::not_found(format!(
                    "fdb {}: {what} is not in network {:?}",
                    request.mac, request.network
                ))
            })?;
            (network.network_id(), port, owner)
        };
        if let Err(refused) = self.engine.fdb_add(id, request.vlan, request.mac.0, port) {
            let hint = match refused {
                StaticRefused::Full => "raise limits.fdb",
                StaticRefused::Local => "it is known without an entry",
            };
            return Err(Error::conflict(format!("fdb {}: {refused}; {hint}", request.mac)));
        }
        Ok(FdbEntry {
            network: request.network.clone(),
            mac: request.mac,
            vlan: request.vlan,
            port: owner.port,
            sandbox: owner.sandbox,
            kind: types::FdbKind::Static,
            age_s: 0,
        })
    }

    /// Removes a learned or static FDB entry.
    ///
    /// # Errors
    /// When there is none.
    pub fn fdb_remove(&self, request: &types::FdbRemove) -> Result<()> {
        check::fdb_remove(request)?;
        let id = self.network_record(&request.network)?.network_id();
        if self.engine.fdb_remove(id, request.vlan, request.mac.0) {
            Ok(())
        } else {
            Err(Error::not_found(format!(
                "fdb {}: no learned or static entry in network {:?}, VLAN {}",
                request.mac, request.network, request.vlan
            )))
        }
    }

    /// Forgets what was learned; returns how many entries.
    ///
    /// # Errors
    /// When the network is unknown.
    pub fn fdb_flush(&self, network: Option<&Name>) -> Result<usize> {
        let id = match network {
            Some(name) => Some(self.network_record(name)?.network_id()),
            None => None,
        };
        Ok(self.engine.fdb_flush(id))
    }

    /// Neighbors found by ARP.
    #[must_use]
    pub fn neighbors(&self) -> Vec<Neighbor> {
        let entries = self.engine.neighbors();
        let world = self.world();
        let mut shown: Vec<Neighbor> = entries
            .iter()
            .map(|entry| Neighbor {
                address: entry.address,
                mac: entry.mac.map(Into::into),
                network: match entry.link {
                    Link::Network(id) => network_name(&world.desired, id),
                    Link::Uplink(_) => None,
                },
                uplink: match entry.link {
                    Link::Uplink(id) => uplink_name(&world.desired, id),
                    Link::Network(_) => None,
                },
                age_s: entry.age.as_secs(),
            })
            .collect();
        shown.sort_by_key(|neighbor| neighbor.address);
        shown
    }

    /// Frames dropped, by reason: of all workers, or of the ports that the query names.
    ///
    /// # Errors
    /// When network or sandbox are unknown.
    pub fn drops(&self, query: &DropsQuery) -> Result<Vec<DropCount>> {
        let mut counts = vec![0u64; DropReason::COUNT];
        let mut add = |drops: &[u64]| {
            for (count, dropped) in counts.iter_mut().zip(drops) {
                *count = count.saturating_add(*dropped);
            }
        };
        if query.network.is_none() && query.sandbox.is_none() {
            for worker in self.engine.worker_stats() {
                add(&worker.drops);
            }
        } else {
            for port in self.ports_of(query.network.as_ref(), query.sandbox.as_ref())? {
                if let Some(stats) = self.engine.port_stats(port) {
                    add(&stats.rx_drops);
                    add(&stats.tx_drops);
                }
            }
        }
        let mut shown: Vec<DropCount> = DropReason::ALL
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| DropCount {
                reason: reason.name().to_owned(),
                count,
                description: reason.describe().trim().to_owned(),
            })
            .collect();
        shown.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.reason.cmp(&b.reason)));
        Ok(shown)
    }

    fn ports_of(&self, network: Option<&Name>, sandbox: Option<&Name>) -> Result<Vec<PortId>> {
        let world = self.world();
        world.network_exists(network)?;
        if let Some(name) = sandbox
            && !world.desired.sandboxes.contains_key(name)
        {
            return Err(unknown_sandbox(name));
        }
        Ok(world
            .owners()
            .into_iter()
            .filter(|(_, owner)| network.is_none() || owner.network.as_ref() == network)
            .filter(|(_, owner)| sandbox.is_none() || owner.sandbox.as_ref() == sandbox)
            .map(|(port, _)| port)
            .collect())
    }

    /// Totals of every port, or of one sandbox's.
    ///
    /// # Errors
    /// When the sandbox is unknown.
    pub fn port_stats(&self, sandbox: Option<&Name>) -> Result<Vec<PortStats>> {
        let wanted = self.ports_of(None, sandbox)?;
        let owners = self.world().owners();
        let mut shown: Vec<PortStats> = wanted
            .into_iter()
            .filter_map(|port| {
                let owner = owners.get(&port)?;
                let stats = self.engine.port_stats(port)?;
                Some(PortStats {
                    port: owner.port.clone(),
                    sandbox: owner.sandbox.clone(),
                    network: owner.network.clone(),
                    rx_frames: stats.rx_frames,
                    rx_bytes: stats.rx_bytes,
                    rx_missed: stats.rx_missed,
                    refused: stats.refused,
                    tx_frames: stats.tx_frames,
                    tx_bytes: stats.tx_bytes,
                    rx_drops: stats.rx_drops.iter().sum(),
                    tx_drops: stats.tx_drops.iter().sum(),
                })
            })
            .collect();
        shown.sort_by(|a, b| a.port.cmp(&b.port));
        Ok(shown)
    }
}

fn limit_view(limit: &LimitUse) -> types::LimitUse {
    types::LimitUse {
        name: limit.name.to_owned(),
        current: limit.current,
        peak: limit.peak,
        limit: limit.limit,
        drop_reason: limit.drop_reason.map(|reason| reason.name().to_owned()),
        refusal: limit.refusal.map(|refusal| match refusal {
            Refusal::Conflict => types::Refusal::Conflict,
            Refusal::Missed => types::Refusal::Missed,
            Refusal::NotEntered => types::Refusal::NotEntered,
            Refusal::NotSent => types::Refusal::NotSent,
            Refusal::PushedOut => types::Refusal::PushedOut,
        }),
        refused: limit.refused,
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
