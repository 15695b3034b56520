//! Networks: create, remove, prune.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::undo::{Done, Undo};
use super::warnings::Subject;
use super::{Switch, Work, World, next_number, random_hex, since_epoch};
use crate::api::types::{self, Driver, NetworkCreate, Pruned};
use crate::check;
use crate::config::Pool;
use crate::error::{Error, Result, ResultExt};
use crate::ipam::{self, AddressPool, IpamError, Prefix, SubnetPlan};
use crate::model::{BRIDGE_NETWORK, Edit, Endpoint, Intent, Network, Origin, is_unswitched};
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
        let mut undo = Undo::default();
        match self.make_network(work, request, origin, &mut undo).await {
            Ok(()) => {
                self.emit("network_create", Some(&request.name), None, None);
                Ok(())
            }
            Err(error) => {
                self.roll_back(work, undo).await;
                Err(error)
            }
        }
    }

    /// Makes a network; what is done when that fails is for the caller to take back.
    pub(super) async fn make_network(
        &self,
        work: &mut Work,
        request: &NetworkCreate,
        origin: Origin,
        undo: &mut Undo,
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
        let mut network = self.plan_network(work, request, asked.mtu).map_err(wrap)?;
        network.origin = origin;
        self.build_network(work, &network, undo).await.map_err(wrap)
    }

    fn plan_network(
        &self,
        work: &Work,
        request: &NetworkCreate,
        mtu: Option<u16>,
    ) -> Result<Network> {
        let world = self.world();
        let mtu = mtu.unwrap_or(self.settings.mtu);
        if request.wants_ipv6() && mtu < check::MIN_MTU_WITH_IPV6 {
            return Err(check::short_for_ipv6());
        }
        let subnets = world.plan_subnets(&request.subnets, &self.settings.pools)?;
        let subnets6 = if request.wants_ipv6() {
            world.plan_subnets(&request.subnets, &self.pools6(work))?
        } else {
            Vec::new()
        };
        let used = |id| world.desired.networks.values().any(|network| network.id == id);
        Ok(Network {
            id: next_number(world.desired.counters.network, used)?,
            uid: random_hex(UID_DIGITS)?,
            name: request.name.clone(),
            cursors: vec![0; subnets.len()],
            subnets,
            cursors6: vec![Ipv6Addr::UNSPECIFIED; subnets6.len()],
            subnets6,
            internal: request.internal,
            options: options::canonical(Driver::Bridge, &request.options)?,
            labels: request.labels.clone(),
            mtu,
            created: since_epoch().as_secs(),
            origin: Origin::User,
            policy: Vec::new(),
        })
    }

    /// Where IPv6 subnets come from that nobody named.
    fn pools6(&self, work: &Work) -> Vec<Pool<Ipv6Net>> {
        if self.settings.pools6.is_empty() {
            vec![ipam::local_pool(&work.store.installation().id)]
        } else {
            self.settings.pools6.clone()
        }
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
        let tap = self.host.make(&self.host_leg(network)?).await?;
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
        work.pools.insert(network.name.clone(), Pools::of(network));
        self.publish()
    }

    /// The host's leg of a network, as the host may have it.
    pub(super) fn host_leg(&self, network: &Network) -> Result<DeviceSpec> {
        let mut spec = host_device(network, self.settings.services.tap_queue);
        let about = |subject: &Subject| *subject == Subject::HostIpv6(network.name.clone());
        self.forget_warnings(about);
        if !network.has_ipv6() {
            return Ok(spec);
        }
        if let Some(reason) = self.host.netns.without_ipv6().failed("look for IPv6")? {
            spec.addresses.retain(|net| net.addr().is_ipv4());
            let name = &network.name;
            self.warn(
                Subject::HostIpv6(name.clone()),
                format!("network {name:?}: the host has no IPv6 address in it: {reason}"),
            );
        }
        Ok(spec)
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
    /// Prefixes of a family that an automatic subnet must not overlap.
    pub(super) fn taken_prefixes<N: Prefix>(&self) -> Vec<N> {
        let networks = self.desired.networks.values().flat_map(Network::prefixes);
        let uplinks =
            self.desired.uplinks.values().flat_map(|u| u.addresses.iter().map(IpNet::trunc));
        let routes = self.desired.routes.keys().filter(|net| net.prefix_len() > 0).copied();
        let taken = networks.chain(uplinks).chain(routes).chain(self.host.prefixes());
        taken.filter_map(N::of).collect()
    }

    /// The subnets of a family: those that the user named, or the next free one of the pools.
    fn plan_subnets<N: Prefix>(
        &self,
        wanted: &[types::Subnet],
        pools: &[Pool<N>],
    ) -> Result<Vec<SubnetPlan<N>>> {
        let named: Vec<&types::Subnet> =
            wanted.iter().filter(|subnet| N::of(subnet.subnet).is_some()).collect();
        if !named.is_empty() {
            return named.into_iter().map(|subnet| self.plan_subnet(subnet)).collect();
        }
        let next = ipam::next_subnet(pools, &self.taken_prefixes())?;
        Ok(vec![SubnetPlan::new(next, None, None, BTreeMap::new())?])
    }

    /// Checks a subnet that the user named against what is there.
    fn plan_subnet<N: Prefix>(&self, wanted: &types::Subnet) -> Result<SubnetPlan<N>> {
        let subnet = wanted.subnet;
        for other in self.desired.networks.values() {
            if other.prefixes().any(|prefix| check::overlap(&prefix, &subnet)) {
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
            .nets()
            .map(|(link, net)| (self.host.link_by_index(link).map_or("?", |l| &l.name), net))
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
        let routed = self.host.routes.iter().map(|route| route.destination);
        let routed = routed.filter(|net| net.prefix_len() > 0).find(|net| subnet.contains(net));
        if let Some(net) = routed {
            return Err(Error::conflict(format!(
                "subnet {subnet} overlaps the host's route to {net}; choose another"
            )));
        }
        plan_of(wanted)
    }
}

/// A subnet as asked for, with the gateway filled in.
pub(super) fn plan_of<N: Prefix>(wanted: &types::Subnet) -> Result<SubnetPlan<N>> {
    let alien = |what: String| Error::invalid(format!("{what}: is of the other family"));
    let net = |net: IpNet| N::of(net).ok_or_else(|| alien(net.to_string()));
    let address = |ip: IpAddr| N::address_of(ip).ok_or_else(|| alien(ip.to_string()));
    let ip_range = wanted.ip_range.map(net).transpose()?;
    let mut aux = BTreeMap::new();
    for (name, ip) in &wanted.aux_addresses {
        aux.insert(name.clone(), address(*ip)?);
    }
    let gateway = wanted.gateway.map(address).transpose()?;
    Ok(SubnetPlan::new(net(wanted.subnet)?, gateway, ip_range, aux)?)
}

/// The address pools of a network, one for each subnet.
#[derive(Debug, Default)]
pub(super) struct Pools {
    v4: Vec<AddressPool>,
    v6: Vec<AddressPool<Ipv6Net>>,
}

impl Pools {
    /// All addresses free.
    pub(super) fn of(network: &Network) -> Self {
        let cursors = network.cursors.iter().map(|cursor| u128::from(*cursor));
        let cursors6 = network.cursors6.iter().map(|cursor| cursor.to_bits());
        Self { v4: pools_of(&network.subnets, cursors), v6: pools_of(&network.subnets6, cursors6) }
    }

    /// Takes what an endpoint has.
    ///
    /// # Errors
    /// When it is not free. What can be taken is.
    pub(super) fn take(&mut self, endpoint: &Endpoint) -> std::result::Result<(), IpamError> {
        let v4 = take_one(&mut self.v4, endpoint.ipv4);
        let v6 = endpoint.ipv6.map_or(Ok(()), |own| take_one(&mut self.v6, own.addr()));
        v4.and(v6)
    }
}

fn pools_of<N: Prefix>(
    plans: &[SubnetPlan<N>],
    cursors: impl Iterator<Item = u128>,
) -> Vec<AddressPool<N>> {
    let cursors = cursors.chain(std::iter::repeat(0));
    plans.iter().zip(cursors).map(|(plan, at)| AddressPool::new(plan.clone(), at)).collect()
}

fn take_one<N: Prefix>(
    pools: &mut [AddressPool<N>],
    address: N::Address,
) -> std::result::Result<(), IpamError> {
    let pool = pools.iter_mut().find(|pool| pool.plan().subnet.has(address));
    pool.map_or(Ok(()), |pool| pool.allocate_this(address))
}

/// This address, or the next free one of the first subnet that has any.
fn take_any<N: Prefix>(
    pools: &mut [AddressPool<N>],
    wanted: Option<N::Address>,
) -> Result<N::Address> {
    if let Some(address) = wanted {
        let pool = pools.iter_mut().find(|pool| pool.plan().subnet.has(address));
        let pool = pool
            .ok_or_else(|| Error::invalid(format!("address {address} lies in no subnet of it")))?;
        pool.allocate_this(address)?;
        return Ok(address);
    }
    let mut exhausted = Error::conflict("no subnet");
    for pool in pools {
        match pool.allocate() {
            Ok(address) => return Ok(address),
            Err(error) => exhausted = error.into(),
        }
    }
    Err(exhausted)
}

impl Work {
    fn pools(&mut self, network: &Network) -> &mut Pools {
        self.pools.entry(network.name.clone()).or_insert_with(|| Pools::of(network))
    }

    /// Takes an address of a network: this one, or the next free one.
    pub(super) fn allocate(
        &mut self,
        network: &Network,
        wanted: Option<Ipv4Addr>,
    ) -> Result<Ipv4Addr> {
        let taken = take_any(&mut self.pools(network).v4, wanted);
        taken.map_err(|error| error.context(format!("network {:?}", network.name)))
    }

    /// The same of IPv6, with the length of its subnet's prefix.
    pub(super) fn allocate6(
        &mut self,
        network: &Network,
        wanted: Option<Ipv6Addr>,
    ) -> Result<Ipv6Net> {
        let taken = take_any(&mut self.pools(network).v6, wanted);
        let taken = taken.map_err(|error| error.context(format!("network {:?}", network.name)))?;
        let plan = network.subnet6_of(taken);
        let own = plan.and_then(|plan| Ipv6Net::new(taken, plan.subnet.prefix_len()).ok());
        Ok(own.unwrap_or(Ipv6Net::from(taken)))
    }

    /// Gives an address back.
    pub(super) fn release(&mut self, network: &Name, address: IpAddr) {
        let Some(pools) = self.pools.get_mut(network) else { return };
        match address {
            IpAddr::V4(v4) => pools.v4.iter_mut().any(|pool| pool.release(v4)),
            IpAddr::V6(v6) => pools.v6.iter_mut().any(|pool| pool.release(v6)),
        };
    }

    /// Takes an allocation back that came to nothing.
    pub(super) fn retract(&mut self, network: &Name, address: IpAddr) {
        let Some(pools) = self.pools.get_mut(network) else { return };
        match address {
            IpAddr::V4(v4) => pools.v4.iter_mut().for_each(|pool| pool.retract(v4)),
            IpAddr::V6(v6) => pools.v6.iter_mut().for_each(|pool| pool.retract(v6)),
        }
    }

    /// The network's record with the cursors as they are now.
    pub(super) fn with_cursors(&self, network: &Network) -> Network {
        let mut network = network.clone();
        if let Some(pools) = self.pools.get(&network.name) {
            let v4 = |pool: &AddressPool| u32::from(Ipv4Net::address(pool.cursor()));
            network.cursors = pools.v4.iter().map(v4).collect();
            let v6 = |pool: &AddressPool<Ipv6Net>| Ipv6Net::address(pool.cursor());
            network.cursors6 = pools.v6.iter().map(v6).collect();
        }
        network
    }
}

/// The host's leg: it carries the gateway addresses in the host's own stack, if there are any.
fn host_device(network: &Network, queue: u32) -> DeviceSpec {
    DeviceSpec {
        ifname: network.host_device(),
        mac: network.gateway_mac(),
        mtu: network.mtu,
        addresses: network
            .gateways()
            .filter_map(|(subnet, gateway)| IpNet::new(gateway?, subnet.prefix_len()).ok())
            .collect(),
        queue,
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

/// A network's subnets as the API shows them, those of IPv4 first.
pub(super) fn subnet_views(network: &Network) -> Vec<types::Subnet> {
    let v4 = network.subnets.iter().map(subnet_view);
    v4.chain(network.subnets6.iter().map(subnet_view)).collect()
}

/// The subnet as the API shows it.
pub(super) fn subnet_view<N: Prefix>(plan: &SubnetPlan<N>) -> types::Subnet {
    let aux = plan.aux_addresses.iter();
    types::Subnet {
        subnet: plan.subnet.into(),
        gateway: Some(plan.gateway.into()),
        ip_range: plan.ip_range.map(Into::into),
        aux_addresses: aux.map(|(name, address)| (name.clone(), (*address).into())).collect(),
    }
}
