//! Networks: create, remove, prune.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::undo::{Done, Undo};
use super::{Switch, Work, World, next_number, random_hex, since_epoch};
use crate::api::types::{self, Driver, NetworkCreate, Pruned};
use crate::check;
use crate::error::{Error, Result};
use crate::ipam::{self, AddressPool, IpamError, SubnetPlan};
use crate::model::{BRIDGE_NETWORK, Edit, Intent, Network, Origin, is_unswitched};
use crate::name::Name;
use crate::options;
use crate::place::DeviceSpec;

/// Digits of a network's public id.
const UID_DIGITS: usize = 64;

impl From<IpamError> for Error {
    fn from(error: IpamError) -> Self {
        if error.is_conflict() {
            Self::conflict(error.to_string())
        } else {
            Self::invalid(error.to_string())
        }
    }
}

impl Switch {
    /// Makes a network with its host's leg.
    ///
    /// # Errors
    /// When the request is wrong, clashes with what is there, or a device cannot be made.
    pub async fn create_network(&self, request: NetworkCreate) -> Result<types::Network> {
        let mut work = self.work.lock().await;
        self.revive(&mut work).await?;
        self.create_network_in(&mut work, &request, Origin::User).await?;
        drop(work);
        self.network(&request.name)
    }

    pub(super) async fn create_network_in(
        &self,
        work: &mut Work,
        request: &NetworkCreate,
        origin: Origin,
    ) -> Result<()> {
        let wrap = |error: Error| error.context(format!("network {:?}", request.name));
        if is_unswitched(&request.name) || self.world().desired.networks.contains_key(&request.name)
        {
            return Err(wrap(Error::conflict(
                "exists already; choose another name or remove it first",
            )));
        }
        let asked = check::network(request)?;
        self.refresh_host().await?;
        let mut network = self.plan_network(request, asked.mtu).map_err(wrap)?;
        network.origin = origin;
        let mut undo = Undo::default();
        match self.build_network(work, &network, &mut undo).await {
            Ok(()) => {
                self.emit("network_create", Some(&network.name), None, None);
                Ok(())
            }
            Err(error) => {
                self.roll_back(work, undo).await;
                Err(wrap(error))
            }
        }
    }

    fn plan_network(&self, request: &NetworkCreate, mtu: Option<u16>) -> Result<Network> {
        let world = self.world();
        let subnets = if request.subnets.is_empty() {
            let taken = world.taken_prefixes();
            vec![SubnetPlan::new(
                ipam::next_subnet(&self.settings.pools, &taken)?,
                None,
                None,
                BTreeMap::new(),
            )?]
        } else {
            request.subnets.iter().map(|subnet| world.plan_subnet(subnet)).collect::<Result<_>>()?
        };
        let used = |id| world.desired.networks.values().any(|network| network.id == id);
        Ok(Network {
            id: next_number(world.desired.counters.network, used)?,
            uid: random_hex(UID_DIGITS)?,
            name: request.name.clone(),
            cursors: vec![0; subnets.len()],
            subnets,
            internal: request.internal,
            options: options::canonical(Driver::Bridge, &request.options)?,
            labels: request.labels.clone(),
            mtu: mtu.unwrap_or(self.settings.mtu),
            created: since_epoch().as_secs(),
            origin: Origin::User,
        })
    }

    pub(super) async fn build_network(
        &self,
        work: &mut Work,
        network: &Network,
        undo: &mut Undo,
    ) -> Result<()> {
        let ifname = network.host_device();
        let intent = self.announce(work, Intent::HostDevice { ifname: ifname.clone() })?;
        undo.push(Done::Intent(intent));
        let tap = self.host.make(&host_device(network)).await?;
        undo.push(Done::HostDevice(ifname.clone()));
        self.host.mark(&ifname).await?;
        let port = self.attach(Box::new(tap))?;
        undo.push(Done::Port(port));
        let counters = crate::model::Counters { network: network.id, ..self.counters() };
        self.commit_noting(
            work,
            vec![
                Edit::Counters(counters),
                Edit::PutNetwork(network.clone()),
                Edit::RemoveIntent(intent),
            ],
            undo,
        )?;
        self.world_mut().attached.hosts.insert(network.name.clone(), port);
        work.pools.insert(network.name.clone(), address_pools(network));
        self.publish()
    }

    /// Removes a network that nobody is connected to.
    ///
    /// # Errors
    /// When there is none, it is predefined, or it is in use.
    pub async fn remove_network(&self, name: &Name) -> Result<()> {
        let mut work = self.work.lock().await;
        self.remove_network_in(&mut work, name).await
    }

    async fn remove_network_in(&self, work: &mut Work, name: &Name) -> Result<()> {
        let wrap = |error: Error| error.context(format!("network {name:?}"));
        if *name == BRIDGE_NETWORK || is_unswitched(name) {
            return Err(wrap(Error::conflict("is predefined and exists always")));
        }
        let (network, users) = {
            let world = self.world();
            let network = world.desired.networks.get(name).cloned().ok_or_else(|| unknown(name))?;
            let users: Vec<String> = world
                .desired
                .endpoints_of(name.as_str())
                .map(|(s, _)| s.name.to_string())
                .collect();
            (network, users)
        };
        if !users.is_empty() {
            return Err(wrap(Error::conflict(format!(
                "is in use by {}; disconnect or remove {} first",
                shortened(&users),
                if users.len() == 1 { "it" } else { "them" }
            ))));
        }
        self.drop_network(work, &network).await.map_err(wrap)?;
        self.emit("network_remove", Some(name), None, None);
        Ok(())
    }

    /// Removes record, rules and device. The announcement covers the device from the moment the
    /// record is gone.
    pub(super) async fn drop_network(&self, work: &mut Work, network: &Network) -> Result<()> {
        let ifname = network.host_device();
        let mut counters = self.counters();
        counters.intent = counters.intent.wrapping_add(1);
        self.commit(
            work,
            vec![
                Edit::Counters(counters),
                Edit::PutIntent(counters.intent, Intent::HostDevice { ifname: ifname.clone() }),
                Edit::RemoveNetwork(network.name.clone()),
            ],
        )?;
        work.pools.remove(&network.name);
        let port = self.world_mut().attached.hosts.remove(&network.name);
        self.publish_or_later(work).await;
        if let Some(port) = port {
            self.detach(port);
        }
        self.host.restore_name(&ifname, network.gateway_mac()).await?;
        self.host.remove(&ifname).await?;
        self.commit(work, vec![Edit::RemoveIntent(counters.intent)])
    }

    /// Removes every network that nobody is connected to, the predefined ones left out.
    ///
    /// # Errors
    /// When one cannot be removed; those before it are gone.
    pub async fn prune_networks(&self) -> Result<Pruned> {
        let mut work = self.work.lock().await;
        let unused: Vec<Name> = {
            let world = self.world();
            world
                .desired
                .networks
                .keys()
                .filter(|name| name.as_str() != BRIDGE_NETWORK)
                .filter(|name| world.desired.endpoints_of(name.as_str()).next().is_none())
                .cloned()
                .collect()
        };
        for name in &unused {
            self.remove_network_in(&mut work, name).await?;
        }
        Ok(Pruned { networks: unused })
    }
}

impl World {
    /// Prefixes that an automatic subnet must not overlap.
    pub(super) fn taken_prefixes(&self) -> Vec<Ipv4Net> {
        let networks =
            self.desired.networks.values().flat_map(|n| n.subnets.iter().map(|plan| plan.subnet));
        let uplinks =
            self.desired.uplinks.values().flat_map(|u| u.addresses.iter().map(Ipv4Net::trunc));
        let routes = self.desired.routes.keys().filter(|net| net.prefix_len() > 0).copied();
        networks.chain(uplinks).chain(routes).chain(self.host.prefixes()).collect()
    }

    /// Checks a subnet that the user named against what is there.
    fn plan_subnet(&self, wanted: &types::Subnet) -> Result<SubnetPlan> {
        let subnet = check::ipv4_net(&wanted.subnet)?;
        for other in self.desired.networks.values() {
            if other.subnets.iter().any(|plan| ipam::overlaps(plan.subnet, subnet)) {
                return Err(Error::conflict(format!(
                    "subnet {subnet} overlaps network {:?}",
                    other.name
                )));
            }
        }
        // A subnet inside a wider route of the host is the user's choice; one that swallows a
        // route or an address of the host would cut the host off.
        let swallowed = self
            .host
            .addresses
            .iter()
            .map(|(link, net)| (self.host.link_by_index(*link).map_or("?", |l| &l.name), *net))
            .chain(
                self.desired
                    .uplinks
                    .values()
                    .flat_map(|u| u.addresses.iter().map(|net| (u.interface.as_str(), *net))),
            )
            .find(|(_, net)| subnet.contains(&net.addr()));
        if let Some((interface, net)) = swallowed {
            return Err(Error::conflict(format!(
                "subnet {subnet} overlaps {net} of the host's interface {interface:?}"
            )));
        }
        let routed = self.host.routes.iter().find_map(|route| match route.destination {
            IpNet::V4(net) if net.prefix_len() > 0 && subnet.contains(&net) => Some(net),
            _ => None,
        });
        if let Some(net) = routed {
            return Err(Error::conflict(format!(
                "subnet {subnet} overlaps the host's route to {net}; choose another"
            )));
        }
        plan_of(wanted)
    }
}

/// A subnet as asked for, with the gateway filled in.
pub(super) fn plan_of(wanted: &types::Subnet) -> Result<SubnetPlan> {
    let subnet = check::ipv4_net(&wanted.subnet)?;
    let ip_range = wanted.ip_range.as_ref().map(check::ipv4_net).transpose()?;
    let mut aux = BTreeMap::new();
    for (name, address) in &wanted.aux_addresses {
        aux.insert(name.clone(), ipv4(*address)?);
    }
    let gateway = wanted.gateway.map(ipv4).transpose()?;
    Ok(SubnetPlan::new(subnet, gateway, ip_range, aux)?)
}

impl Work {
    /// Takes an address of a network: this one, or the next free one of the first subnet that has
    /// any.
    pub(super) fn allocate(
        &mut self,
        network: &Network,
        wanted: Option<Ipv4Addr>,
    ) -> Result<Ipv4Addr> {
        let pools =
            self.pools.entry(network.name.clone()).or_insert_with(|| address_pools(network));
        if let Some(address) = wanted {
            let pool = pools.iter_mut().find(|pool| pool.plan().subnet.contains(&address));
            let pool = pool.ok_or_else(|| {
                Error::invalid(format!(
                    "address {address} lies in no subnet of network {:?}",
                    network.name
                ))
            })?;
            pool.allocate_this(address).map_err(|error| {
                Error::from(error).context(format!("network {:?}", network.name))
            })?;
            return Ok(address);
        }
        let mut exhausted = Error::conflict("no subnet");
        for pool in pools {
            match pool.allocate() {
                Ok(address) => return Ok(address),
                Err(error) => exhausted = error.into(),
            }
        }
        Err(exhausted.context(format!("network {:?}", network.name)))
    }

    /// Gives an address back.
    pub(super) fn release(&mut self, network: &Name, address: Ipv4Addr) {
        for pool in self.pools.get_mut(network).into_iter().flatten() {
            pool.release(address);
        }
    }

    /// Takes an allocation back that came to nothing.
    pub(super) fn retract(&mut self, network: &Name, address: Ipv4Addr) {
        for pool in self.pools.get_mut(network).into_iter().flatten() {
            pool.retract(address);
        }
    }

    /// The network's record with the cursors as they are now.
    pub(super) fn with_cursors(&self, network: &Network) -> Network {
        let mut network = network.clone();
        if let Some(pools) = self.pools.get(&network.name) {
            network.cursors = pools.iter().map(AddressPool::cursor).collect();
        }
        network
    }
}

/// The pools of a network, all addresses free.
pub(super) fn address_pools(network: &Network) -> Vec<AddressPool> {
    network
        .subnets
        .iter()
        .enumerate()
        .map(|(at, plan)| {
            AddressPool::new(plan.clone(), network.cursors.get(at).copied().unwrap_or(0))
        })
        .collect()
}

/// The host's leg: it carries the gateway addresses in the host's own stack.
pub(super) fn host_device(network: &Network) -> DeviceSpec {
    DeviceSpec {
        ifname: network.host_device(),
        mac: network.gateway_mac(),
        mtu: network.mtu,
        addresses: network
            .subnets
            .iter()
            .filter_map(|plan| Ipv4Net::new(plan.gateway, plan.subnet.prefix_len()).ok())
            .collect(),
    }
}

pub(super) fn unknown(name: &Name) -> Error {
    if is_unswitched(name) {
        return Error::invalid(format!(
            "network {name:?}: has no ports, FDB or addresses; name another network"
        ));
    }
    Error::not_found(format!("network {name:?}: no such network; see `vswitchctl network ls`"))
}

fn ipv4(address: IpAddr) -> Result<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(Error::invalid(format!("address {address}: IPv6 is not built yet"))),
    }
}

/// The first few of a list, for a message.
pub(super) fn shortened(names: &[String]) -> String {
    /// More would hide what the message says.
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

/// The subnet as the API shows it.
pub(super) fn subnet_view(plan: &SubnetPlan) -> types::Subnet {
    types::Subnet {
        subnet: IpNet::V4(plan.subnet),
        gateway: Some(IpAddr::V4(plan.gateway)),
        ip_range: plan.ip_range.map(IpNet::V4),
        aux_addresses: plan
            .aux_addresses
            .iter()
            .map(|(name, address)| (name.clone(), IpAddr::V4(*address)))
            .collect(),
    }
}
