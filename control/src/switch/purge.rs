//! Purge: everything the daemon ever made on this host goes, and nothing else.
//!
//! With a running daemon through the API; without one by `vswitchd --purge`, which also removes
//! state, runtime files and the directories made for them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::follow::interfaces_now;
use super::sandbox::clear_away;
use super::uplink::steering;
use super::{Switch, Work};
use crate::api::types::{Purged, UplinkMode};
use crate::config::Daemon;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::model::{BRIDGE_NETWORK, Desired, Edit, Intent, Network, Sandbox};
use crate::netns::Netns;
use crate::place::Place;
use crate::state::{Installation, Lock, Store};

impl Switch {
    /// Removes every sandbox, network, device, uplink and rule. The predefined network stays known
    /// and comes back to life when it is used.
    ///
    /// # Errors
    /// When something cannot be removed; the rest is gone, and asking again goes on.
    pub async fn purge(&self) -> Result<Purged> {
        let mut work = self.work.lock().await;
        let mut purged = Purged::default();
        let mut failures = Vec::new();
        self.world_mut().purged = true;
        self.purge_sandboxes(&mut work, &mut purged, &mut failures).await;
        self.purge_routes_and_uplinks(&mut work, &mut purged, &mut failures).await;
        self.purge_networks(&mut work, &mut purged, &mut failures).await;
        self.world_mut().warnings.clear();
        self.emit("purge", None, None, None);
        summary(purged, &failures)
    }

    async fn purge_sandboxes(
        &self,
        work: &mut Work,
        purged: &mut Purged,
        failures: &mut Vec<Error>,
    ) {
        let sandboxes: Vec<Sandbox> = self.world().desired.sandboxes.values().cloned().collect();
        for sandbox in sandboxes {
            match self.drop_sandbox(work, &sandbox).await {
                Ok(()) => purged.sandboxes.push(sandbox.name),
                Err(error) => {
                    failures.push(error.context(format!("sandbox {:?}", sandbox.name)));
                }
            }
        }
    }

    async fn purge_routes_and_uplinks(
        &self,
        work: &mut Work,
        purged: &mut Purged,
        failures: &mut Vec<Error>,
    ) {
        let routes: Vec<Edit> =
            self.world().desired.routes.keys().map(|net| Edit::RemoveRoute(*net)).collect();
        failures.extend(self.commit(work, routes).err());
        let interfaces: Vec<String> = self.world().desired.uplinks.keys().cloned().collect();
        for interface in interfaces {
            match self.take_down_uplink(work, &interface).await {
                Ok(()) => purged.uplinks.push(interface),
                Err(error) => failures.push(error.context(format!("uplink {interface:?}"))),
            }
        }
    }

    async fn purge_networks(
        &self,
        work: &mut Work,
        purged: &mut Purged,
        failures: &mut Vec<Error>,
    ) {
        let networks: Vec<Network> = self.world().desired.networks.values().cloned().collect();
        for network in networks {
            if let Err(error) = self.drop_network(work, &network).await {
                failures.push(error.context(format!("network {:?}", network.name)));
                continue;
            }
            purged.devices.push(network.host_device());
            if network.name.as_str() == BRIDGE_NETWORK {
                // Its name exists always; the device is made when somebody connects.
                failures.extend(self.commit(work, vec![Edit::PutNetwork(network)]).err());
            } else {
                purged.networks.push(network.name);
            }
        }
    }
}

fn summary(purged: Purged, failures: &[Error]) -> Result<Purged> {
    match failures {
        [] => Ok(purged),
        [first, rest @ ..] => Err(Error::failed(match rest.len() {
            0 => format!("purge: {first}"),
            more => format!("purge: {first} (and {more} more)"),
        })),
    }
}

/// Removes everything with no daemon running: what the records name, the records, runtime files,
/// and the directories that were made for them.
///
/// # Errors
/// A conflict when a daemon runs, or when all that lies in another network namespace, unless that
/// is to be given up for a `new_host`; else when something cannot be removed: the records stay
/// then.
pub async fn purge_offline(daemon: &Daemon, new_host: bool) -> Result<Purged> {
    let Some(lock) = Lock::take_existing(&daemon.state_dir).map_err(running_hint)? else {
        return Ok(Purged::default());
    };
    let (store, desired) = Store::open(lock, new_host)?;
    let host = Place::open(Netns::current().failed("open the host's namespace")?)?;
    let mut purged = Purged::default();
    let mut failures = Vec::new();
    purge_records(&host, &desired, &mut purged, &mut failures).await;
    let purged = summary(purged, &failures)?;
    let installation = store.remove()?;
    remove_files(daemon, &installation)?;
    Ok(purged)
}

fn running_hint(error: Error) -> Error {
    match error.kind {
        Kind::Conflict => Error::conflict(
            "--purge is for when no daemon runs; stop it first, or use `vswitchctl purge`",
        ),
        _ => error,
    }
}

async fn purge_records(
    host: &Place,
    desired: &Desired,
    purged: &mut Purged,
    failures: &mut Vec<Error>,
) {
    for intent in desired.intents.values() {
        failures.extend(clear_away(host, intent).await.err());
    }
    for sandbox in desired.sandboxes.values() {
        let intent = Intent::Sandbox {
            name: sandbox.name.clone(),
            namespace: Some(sandbox.namespace.clone()),
            ifnames: interfaces_now(sandbox).await,
            host_ends: sandbox.host_ends(),
        };
        match clear_away(host, &intent).await {
            Ok(()) => purged.sandboxes.push(sandbox.name.clone()),
            Err(error) => failures.push(error.context(format!("sandbox {:?}", sandbox.name))),
        }
    }
    for uplink in desired.uplinks.values() {
        let removed = match uplink.mode {
            UplinkMode::Shared => steering::remove(host, uplink).await,
            UplinkMode::Dedicated => Ok(()),
        };
        match removed {
            Ok(()) => purged.uplinks.push(uplink.interface.clone()),
            Err(error) => failures.push(error.context(format!("uplink {:?}", uplink.interface))),
        }
    }
    for network in desired.networks.values() {
        let ifname = network.host_device();
        let removed = match host.restore_name(&ifname, network.gateway_mac()).await {
            Ok(()) => host.remove(&ifname).await,
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => {
                purged.devices.push(ifname);
                purged.networks.push(network.name.clone());
            }
            Err(error) => failures.push(error.context(format!("network {:?}", network.name))),
        }
    }
}

/// The files of the connections of IPv4 and of IPv6: two for each installation, since several daemons
/// may share a run directory.
#[must_use]
pub fn conntrack_files(run_dir: &Path, installation: &Installation) -> [PathBuf; 2] {
    ["conntrack", "conntrack6"].map(|name| run_dir.join(format!("{name}-{}", installation.id)))
}

fn remove_files(daemon: &Daemon, installation: &Installation) -> Result<()> {
    let [v4, v6] = conntrack_files(&daemon.run_dir, installation);
    for path in [&v4, &v6, &daemon.socket] {
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).failed(path.display()),
        }
    }
    let mut directories = installation.created_directories.clone();
    // Inner ones first.
    directories.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for path in directories {
        // One that is not empty holds something of others.
        if let Err(error) = fs::remove_dir(&path) {
            tracing::debug!("{} stays: {error}", path.display());
        }
    }
    Ok(())
}
