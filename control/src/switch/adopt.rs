//! Start: what is there already is taken over, what is missing is made, what a crash left
//! half-made is cleared away.
//!
//! Devices are persistent and keep addresses, routes and neighbors while no daemon runs; taking
//! one over touches nothing but its descriptor. A sandbox that cannot be taken over does not keep
//! the others from it: it is marked as gone, and said in the log and in `status`.

use super::endpoint::{inode_of, open_namespace};
use super::network::Pools;
use super::sandbox::{clear_away, name_namespace};
use super::warnings::Subject;
use super::{Switch, Work};
use crate::api::types::{NetworkCreate, UplinkAdd};
use crate::error::{Error, Result};
use crate::model::{Desired, Edit, Namespace, Network, Origin, Sandbox, Uplink};
use crate::netns::{self, NETNS_DIR, Netns};
use crate::place::{Found, Place};

impl Switch {
    /// Brings everything that should exist to life.
    ///
    /// # Errors
    /// When the host cannot be read or the state not be written. Networks and sandboxes that
    /// cannot be brought up are warned of.
    pub async fn adopt(&self, networks: &[NetworkCreate]) -> Result<()> {
        let mut work = self.work.lock().await;
        self.refresh_host().await?;
        self.clear_leftovers(&work).await?;
        self.fill_pools(&mut work);
        let records: Vec<Network> = self.world().desired.networks.values().cloned().collect();
        for network in &records {
            if let Err(error) = self.adopt_network(network).await {
                let subject = Subject::Network(network.name.clone());
                self.warn(subject, format!("network {:?}: {error}", network.name));
            }
        }
        let sandboxes: Vec<Sandbox> = self.world().desired.sandboxes.values().cloned().collect();
        for sandbox in &sandboxes {
            if let Err(error) = self.adopt_sandbox(&mut work, sandbox).await {
                self.world_mut().gone.insert(sandbox.name.clone());
                let subject = Subject::Sandbox(sandbox.name.clone());
                self.warn(subject, format!("sandbox {:?}: {error}", sandbox.name));
            }
        }
        self.publish()?;
        self.adopt_uplinks(&mut work).await?;
        self.hold_every_publish(&mut work).await;
        self.publish_ports(&mut work).await?;
        self.declare_networks(&mut work, networks).await?;
        // The file or a crash may have taken from connections of the earlier run what they go by.
        let ended = self.engine.end_orphans();
        if ended > 0 {
            tracing::info!("{ended} connections ended: what they went by is not there any more");
        }
        Ok(())
    }

    async fn clear_leftovers(&self, work: &Work) -> Result<()> {
        let intents = self.world().desired.intents.clone();
        for (id, intent) in intents {
            let unowned = self.world().desired.unowned(intent.clone());
            let cleared = match unowned {
                Some(intent) => {
                    tracing::info!("clearing away what an interrupted run left: {intent:?}");
                    clear_away(&self.host, &intent).await
                }
                None => Ok(()),
            };
            match cleared {
                Ok(()) => self.commit(work, vec![Edit::RemoveIntent(id)])?,
                Err(error) => {
                    self.warn(
                        Subject::Intent(id),
                        format!("cannot clear away {intent:?}: {error}"),
                    );
                }
            }
        }
        Ok(())
    }

    fn fill_pools(&self, work: &mut Work) {
        let world = self.world();
        for network in world.desired.networks.values() {
            work.pools.insert(network.name.clone(), filled_pools(&world.desired, network));
        }
    }

    /// Takes the host's leg over, or makes it anew.
    pub(super) async fn adopt_network(&self, network: &Network) -> Result<()> {
        self.host.restore_name(&network.host_device(), network.gateway_mac()).await?;
        let (tap, found) = self.host.adopt(&self.host_leg(network)?).await?;
        if found == Found::Made {
            tracing::info!("network {:?}: made {} anew", network.name, network.host_device());
        }
        if found != Found::Existing {
            self.host.mark(&network.host_device()).await?;
        }
        let port = self.attach(Box::new(tap))?;
        self.world_mut().attached.hosts.insert(network.name.clone(), port);
        Ok(())
    }

    async fn adopt_sandbox(&self, work: &mut Work, sandbox: &Sandbox) -> Result<()> {
        let mut record = sandbox.clone();
        let place = match (&sandbox.namespace, open_namespace(&sandbox.name, &sandbox.namespace)?) {
            (Namespace::Host, _) => return Ok(()),
            (_, Some(netns)) => Place::open(netns)?,
            (Namespace::Adopted { path, .. }, None) => {
                return Err(Error::conflict(format!(
                    "its namespace {} is gone; remove the sandbox",
                    path.display()
                )));
            }
            (Namespace::Made { .. }, None)
                if netns::exists(sandbox.name.as_str()).unwrap_or(false) =>
            {
                return Err(Error::conflict(format!(
                    "{NETNS_DIR}/{} is another namespace now; remove the sandbox",
                    sandbox.name
                )));
            }
            // After a reboot, or removed by hand.
            (Namespace::Made { .. }, None) => {
                tracing::info!("sandbox {:?}: its namespace is gone, making it anew", sandbox.name);
                let netns = Netns::anonymous()?;
                record.namespace = Namespace::Made { inode: inode_of(&netns)? };
                // Known before it can be seen: whatever happens in between, it is ours.
                self.commit(work, vec![Edit::PutSandbox(record.clone())])?;
                name_namespace(&netns, &sandbox.name)?;
                Place::open(netns)?
            }
        };
        record = self.follow_names(work, &place, &record).await?;
        let mut unfinished = Vec::new();
        for endpoint in &record.endpoints {
            let network = self.network_record(&endpoint.network)?;
            let (device, found) = self.adopt_device(&place, &network, endpoint).await?;
            if found != Found::Existing {
                unfinished.push(endpoint);
            }
            let port = self.attach(device)?;
            let key = (record.name.clone(), endpoint.ifname.clone());
            self.world_mut().attached.endpoints.insert(key, port);
        }
        if !unfinished.is_empty() {
            self.route_by_gateway(&place, &record).await?;
        }
        for endpoint in unfinished {
            self.finish_device(&place, endpoint).await?;
        }
        Ok(())
    }

    /// Uplinks of the config, then those of earlier, then the automatic one.
    async fn adopt_uplinks(&self, work: &mut Work) -> Result<()> {
        let declared = self.settings.uplinks.clone();
        let records: Vec<_> = self.world().desired.uplinks.values().cloned().collect();
        for uplink in records {
            let wanted = declared.iter().find(|request| request.interface == uplink.interface);
            let stale = match (uplink.origin, wanted) {
                (Origin::Automatic, _) => !declared.is_empty(),
                (Origin::Config, None) | (Origin::User, Some(_)) => true,
                (Origin::Config, Some(request)) => !same_uplink(request, &uplink),
                (Origin::User, None) => false,
            };
            let outcome = if stale {
                self.drop_uplink(work, &uplink).await
            } else {
                self.bring_up(work, &uplink).await
            };
            if let Err(error) = outcome {
                let subject = Subject::Uplink(uplink.interface.clone());
                self.warn(subject, format!("uplink {:?}: {error}", uplink.interface));
            }
        }
        for request in &declared {
            if self.world().desired.uplinks.contains_key(&request.interface) {
                continue;
            }
            if let Err(error) = self.add_uplink_in(work, request, Origin::Config).await {
                let subject = Subject::MissingUplink(request.interface.clone());
                self.warn(subject, error.to_string());
            }
        }
        if let Err(error) = self.follow_default_route(work).await {
            self.warn(Subject::AutomaticUplink, error.to_string());
        }
        Ok(())
    }

    /// Brings back what a purge of the running daemon took down: the predefined network with its
    /// device, and the automatic uplink.
    pub(super) async fn revive(&self, work: &mut Work) -> Result<()> {
        let dormant = {
            let mut world = self.world_mut();
            let purged = std::mem::take(&mut world.purged);
            let hosts = &world.attached.hosts;
            purged
                || world.desired.networks.len() > hosts.len()
                || world.desired.networks.is_empty()
        };
        if !dormant {
            return Ok(());
        }
        self.refresh_host().await?;
        self.ensure_bridge(work).await?;
        let records: Vec<Network> = {
            let world = self.world();
            let all = world.desired.networks.values();
            all.filter(|n| !world.attached.hosts.contains_key(&n.name)).cloned().collect()
        };
        for network in &records {
            if let Err(error) = self.adopt_network(network).await {
                tracing::warn!("network {:?}: {error}", network.name);
            }
        }
        if let Err(error) = self.follow_default_route(work).await {
            self.warn(Subject::AutomaticUplink, error.to_string());
        }
        self.publish_ports(work).await
    }

    /// Clean stop: the host gets its uplinks back, everything else stays for the next start.
    ///
    /// Nothing is published: a snapshot without uplinks would end the connections through them,
    /// which are to go on. The ports close with the engine.
    pub async fn stop(&self) {
        let mut work = self.work.lock().await;
        let uplinks: Vec<Uplink> = self.world().desired.uplinks.values().cloned().collect();
        for uplink in uplinks.iter().filter(|uplink| work.uplinks.contains_key(&uplink.interface)) {
            if let Err(error) = self.give_back(uplink).await {
                tracing::warn!("uplink {:?}: {error}", uplink.interface);
            }
        }
        let held: Vec<u32> = work.reservations.keys().copied().collect();
        for publish in held {
            work.unreserve(publish).await;
        }
    }
}

/// Whether an uplink is as asked for.
pub(super) fn same_uplink(request: &UplinkAdd, uplink: &Uplink) -> bool {
    request.mode == uplink.mode
        && request.addresses == uplink.addresses
        && request.gateway == uplink.gateway
        && request.gateway6 == uplink.gateway6
        && request.nat_ports.iter().eq(uplink.nat_ports.iter())
}

/// The pools of a network with the addresses of its endpoints taken.
pub(super) fn filled_pools(desired: &Desired, network: &Network) -> Pools {
    let mut pools = Pools::of(network);
    for (sandbox, endpoint) in desired.endpoints_of(network.name.as_str()) {
        if let Err(error) = pools.take(endpoint) {
            tracing::warn!("sandbox {:?}: {error}", sandbox.name);
        }
    }
    pools
}
