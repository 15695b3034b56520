//! Makes everything of a document that [`super::export`] wrote, or nothing.
//!
//! What contradicts what there is, is found before anything is made; what only making it can tell (a
//! port that the host has taken, a device) takes back all that was made before it. Networks with their
//! rules, uplinks, routes and FDB entries that are there already exactly so stay as they are: the config file of the
//! other daemon may have made them. A sandbox of a name that exists is always a conflict.
//!
//! Each thing is recorded as it is made: a daemon that is killed in between keeps those that it had
//! made.

use std::collections::HashSet;

use dataplane::engine::FdbKind;

use super::adopt::same_uplink;
use super::declare::compare;
use super::endpoint::Wanted;
use super::export::rules_of;
use super::network::unknown as unknown_network;
use super::policy::describe;
use super::sandbox::{Asked, unknown as unknown_sandbox};
use super::undo::{Done, Undo};
use super::{Switch, Work};
use crate::api::types::{
    EndpointState, FdbAdd, FdbState, Imported, NetworkCreate, PolicyPeer, RouteAdd, SandboxState,
    State, UplinkAdd,
};
use crate::check;
use crate::error::{Error, Result};
use crate::model::{Network, Origin};
use crate::name::Name;

impl Switch {
    /// Makes what a document says.
    ///
    /// # Errors
    /// When it contradicts itself or what is there, or something of it cannot be made. Nothing of it
    /// is left then.
    pub async fn import(&self, state: State) -> Result<Imported> {
        check::state(&state)?;
        let mut work = self.work.lock().await;
        self.check_import(&state)?;
        self.revive(&mut work).await?;
        // Once more: a network that a purge had put to sleep is there now.
        self.check_import(&state)?;
        self.refresh_host().await?;
        let mut undo = Undo::default();
        let imported = match self.import_in(&mut work, &state, &mut undo).await {
            Ok(imported) => imported,
            Err(error) => {
                self.roll_back(&mut work, undo).await;
                return Err(error);
            }
        };
        drop(work);
        for interface in &imported.uplinks {
            self.emit("uplink_add", None, None, Some(interface.clone()));
        }
        for network in &imported.networks {
            self.emit("network_create", Some(network), None, None);
        }
        for name in &imported.policy {
            let of = |network: &Network| network.policy.iter().map(describe).collect::<Vec<_>>();
            let rules = self.world().desired.networks.get(name).map(of);
            for rule in rules.into_iter().flatten() {
                self.emit("policy_add", Some(name), None, Some(rule));
            }
        }
        for sandbox in &imported.sandboxes {
            self.emit("sandbox_create", None, Some(sandbox), None);
        }
        tracing::info!(
            "state imported: {} networks, rules of {}, {} sandboxes, {} uplinks, {} routes, {} FDB entries",
            imported.networks.len(),
            imported.policy.len(),
            imported.sandboxes.len(),
            imported.uplinks.len(),
            imported.routes.len(),
            imported.fdb.len()
        );
        Ok(imported)
    }

    /// Finds what contradicts the records.
    fn check_import(&self, state: &State) -> Result<()> {
        state.networks.iter().try_for_each(|request| self.has_network(request).map(drop))?;
        state.uplinks.iter().try_for_each(|request| self.has_uplink(request).map(drop))?;
        state.routes.iter().try_for_each(|request| self.has_route(request).map(drop))?;
        state.policy.iter().try_for_each(|rule| self.has_policy(state, &rule.network).map(drop))?;
        let desired = &self.world().desired;
        let known = |name| {
            desired.networks.contains_key(name) || state.networks.iter().any(|n| n.name == *name)
        };
        let named = |name| {
            desired.sandboxes.contains_key(name) || state.sandboxes.iter().any(|s| s.name == *name)
        };
        for rule in &state.policy {
            let wrap =
                |error: Error| error.context(format!("policy of network {:?}", rule.network));
            if !known(&rule.network) {
                return Err(wrap(unknown_network(&rule.network)));
            }
            for peer in [&rule.src, &rule.dst].into_iter().flatten() {
                match peer {
                    PolicyPeer::Network(name) if !known(name) => {
                        return Err(wrap(unknown_network(name)));
                    }
                    PolicyPeer::Sandbox(name) if !named(name) => {
                        return Err(wrap(unknown_sandbox(name)));
                    }
                    _ => {}
                }
            }
        }
        for sandbox in &state.sandboxes {
            let wrap = |error: Error| error.context(format!("sandbox {:?}", sandbox.name));
            if desired.sandboxes.contains_key(&sandbox.name) {
                return Err(wrap(Error::conflict(
                    "exists already; remove it first, or take it out of the document",
                )));
            }
            if let Some(endpoint) = sandbox.endpoints.iter().find(|e| !known(&e.network)) {
                return Err(wrap(unknown_network(&endpoint.network)));
            }
        }
        for entry in &state.fdb {
            let wrap = |error: Error| error.context(format!("fdb {}", entry.mac));
            if !known(&entry.network) {
                return Err(wrap(unknown_network(&entry.network)));
            }
            let Some(name) = &entry.sandbox else { continue };
            if !named(name) {
                return Err(wrap(unknown_sandbox(name)));
            }
        }
        Ok(())
    }

    /// Whether the network is there, exactly so.
    fn has_network(&self, request: &NetworkCreate) -> Result<bool> {
        let world = self.world();
        let Some(network) = world.desired.networks.get(&request.name) else { return Ok(false) };
        let wrap = |error: Error| error.context(format!("network {:?}", request.name));
        let comparison = compare(request, network, self.settings.mtu).map_err(wrap)?;
        if comparison.is_equal() {
            return Ok(true);
        }
        Err(wrap(Error::conflict(format!(
            "exists already and differs from the document in {}; make them equal, or take one away",
            comparison.differences()
        ))))
    }

    /// Whether the network has rules, exactly those of the document.
    fn has_policy(&self, state: &State, name: &Name) -> Result<bool> {
        let world = self.world();
        let network = world.desired.networks.get(name);
        let Some(network) = network.filter(|network| !network.policy.is_empty()) else {
            return Ok(false);
        };
        if rules_of(network).eq(state.policy.iter().filter(|rule| rule.network == *name).cloned()) {
            return Ok(true);
        }
        Err(Error::conflict(format!(
            "network {name:?}: has other rules than the document; remove them first, or take those of \
             the document out"
        )))
    }

    /// Whether the uplink is there, exactly so. One that nobody named gives way to one that differs.
    fn has_uplink(&self, request: &UplinkAdd) -> Result<bool> {
        let world = self.world();
        let Some(uplink) = world.desired.uplinks.get(&request.interface) else { return Ok(false) };
        match (same_uplink(request, uplink), uplink.origin) {
            (true, _) => Ok(true),
            (false, Origin::Automatic) => Ok(false),
            (false, Origin::Config | Origin::User) => Err(Error::conflict(format!(
                "uplink {:?}: exists already and differs from the document; remove it first, or \
                 take it out of the document",
                request.interface
            ))),
        }
    }

    /// Whether the route is there, exactly so.
    fn has_route(&self, request: &RouteAdd) -> Result<bool> {
        let world = self.world();
        match world.desired.routes.get(&request.destination) {
            None => Ok(false),
            Some(route) if route.is(request) => Ok(true),
            Some(route) => Err(Error::conflict(format!(
                "route {}: exists already, via {}; remove it first, or take it out of the document",
                request.destination, route.via
            ))),
        }
    }

    /// Uplinks first: ports are published at their addresses.
    async fn import_in(&self, work: &mut Work, state: &State, undo: &mut Undo) -> Result<Imported> {
        let mut imported = Imported::default();
        for request in &state.uplinks {
            if self.has_uplink(request)? {
                imported.kept += 1;
                continue;
            }
            self.check_unpublished(work, request)?;
            self.make_uplink(work, request, Origin::User, undo).await?;
            imported.uplinks.push(request.interface.clone());
        }
        for request in &state.networks {
            if self.has_network(request)? {
                imported.kept += 1;
                continue;
            }
            self.make_network(work, request, Origin::User, undo).await?;
            imported.networks.push(request.name.clone());
        }
        // Before there is anybody whom they are about.
        let mut kept = HashSet::new();
        for request in &state.policy {
            if imported.policy.contains(&request.network) {
                self.make_policy(work, request, undo).await?;
            } else if self.has_policy(state, &request.network)? {
                kept.insert(&request.network);
            } else {
                self.make_policy(work, request, undo).await?;
                imported.policy.push(request.network.clone());
            }
            imported.kept += u64::from(kept.contains(&request.network));
        }
        for request in &state.sandboxes {
            self.import_sandbox(work, request, undo).await?;
            imported.sandboxes.push(request.name.clone());
        }
        for request in &state.routes {
            if self.has_route(request)? {
                imported.kept += 1;
                continue;
            }
            self.make_route(work, request, undo).await?;
            imported.routes.push(request.destination);
        }
        for entry in &state.fdb {
            if self.import_mac(entry, undo)? {
                imported.fdb.push(entry.mac);
            } else {
                imported.kept += 1;
            }
        }
        Ok(imported)
    }

    async fn import_sandbox(
        &self,
        work: &mut Work,
        request: &SandboxState,
        undo: &mut Undo,
    ) -> Result<()> {
        let wrap = |error: Error| error.context(format!("sandbox {:?}", request.name));
        if request.host {
            return self.create_host_sandbox(work, &request.name, undo).map_err(wrap);
        }
        let endpoints = request.endpoints.iter();
        let asked = Asked {
            name: &request.name,
            netns: request.netns.as_ref(),
            endpoints: endpoints.map(|e| (e.network.clone(), wanted(e))).collect(),
            publish: &request.publish,
        };
        self.make_sandbox(work, &asked, undo).await.map_err(wrap)
    }

    /// False: it is there already, exactly so.
    fn import_mac(&self, entry: &FdbState, undo: &mut Undo) -> Result<bool> {
        let network = self.network_record(&entry.network)?;
        let id = network.network_id();
        let mut present = self.engine.fdb_entries();
        present.retain(|known| {
            (known.network, known.vlan, known.mac, known.kind)
                == (id, entry.vlan, entry.mac.0, FdbKind::Static)
        });
        if let Some(known) = present.first() {
            let world = self.world();
            let owner = world.owners().remove(&known.port);
            return match owner {
                Some(owner) if owner.sandbox == entry.sandbox => Ok(false),
                _ => Err(Error::conflict(format!(
                    "fdb {}: is in network {:?} behind another port already; remove it first, or \
                     take it out of the document",
                    entry.mac, entry.network
                ))),
            };
        }
        let leg = entry.sandbox.is_none().then(|| network.host_device());
        let request = FdbAdd {
            network: entry.network.clone(),
            mac: entry.mac,
            sandbox: entry.sandbox.clone(),
            port: leg,
            vlan: entry.vlan,
        };
        self.fdb_add(&request)?;
        undo.push(Done::StaticMac(id, entry.vlan, entry.mac.0));
        Ok(true)
    }
}

fn wanted(endpoint: &EndpointState) -> Wanted {
    Wanted {
        ip: endpoint.ip,
        ip6: endpoint.ip6,
        mac: endpoint.mac,
        aliases: endpoint.aliases.clone(),
        options: endpoint.options.clone(),
        ifname: endpoint.ifname.clone(),
    }
}
