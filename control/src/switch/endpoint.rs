//! Endpoints: connecting a sandbox to a network and back.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::io::Port;
use dataplane::packet::types::Mac;
use ipnet::Ipv6Net;
use nix::sys::stat::fstat;

use super::network::unknown as unknown_network;
use super::sandbox::{clear_away, first_error, unknown as unknown_sandbox};
use super::undo::{Done, Undo};
use super::warnings::Subject;
use super::{Switch, Work, random_hex};
use crate::api::types::{self, ConnectRequest, MacAddr};
use crate::check;
use crate::error::{Error, Result, ResultExt};
use crate::ipam;
use crate::model::{Edit, Endpoint, Intent, Namespace, Network, Sandbox, Wire};
use crate::name::Name;
use crate::netlink::IfExists;
use crate::netns::{Netns, NetnsError, kernel_without_ipv6};
use crate::options::{LinkKind, NetworkOptions};
use crate::place::{DeviceSpec, Found, Place};

/// Random hexadecimal digits in the name of our end of a veth pair: with what is before them, 15 bytes, the
/// longest name of an interface.
const HOST_END_DIGITS: usize = 10;

/// What the user asks of one endpoint.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    /// This address; `None`: the next free one.
    pub(super) ip: Option<Ipv4Addr>,
    /// The same of IPv6.
    pub(super) ip6: Option<Ipv6Addr>,
    /// This MAC; `None`: made from the address.
    pub(super) mac: Option<MacAddr>,
    /// Further names.
    pub(super) aliases: Vec<Name>,
    /// Options, checked.
    pub(super) options: BTreeMap<String, String>,
    /// The interface's name, checked; `None`: the next free one.
    pub(super) ifname: Option<String>,
}

impl Switch {
    /// Gives a sandbox an interface in one more network.
    ///
    /// # Errors
    /// When either is unknown, they are connected already, or the interface cannot be made.
    pub async fn connect(
        &self,
        network: &Name,
        request: ConnectRequest,
    ) -> Result<types::NetworkEndpoint> {
        let name = request.sandbox.clone();
        let wrap = |error: Error| error.context(format!("sandbox {name:?}"));
        check::connect(network, &request)?;
        let ConnectRequest { ip, ip6, mac, aliases, options, .. } = request;
        let wanted = Wanted { ip, ip6, mac, aliases, options, ifname: None };
        let mut work = self.work.lock().await;
        let sandbox = self.sandbox_record(&name)?;
        let mut undo = Undo::default();
        match self.connect_in(&mut work, &sandbox, network, &wanted, &mut undo).await {
            Ok(()) => {
                drop(work);
                self.emit("network_connect", Some(network), Some(&name), None);
                let endpoints = self.network(network)?.endpoints;
                let made = endpoints.into_iter().find(|endpoint| endpoint.sandbox == name);
                made.ok_or_else(|| wrap(Error::failed("is not connected any more")))
            }
            Err(error) => {
                self.roll_back(&mut work, undo).await;
                Err(wrap(error))
            }
        }
    }

    async fn connect_in(
        &self,
        work: &mut Work,
        sandbox: &Sandbox,
        network: &Name,
        wanted: &Wanted,
        undo: &mut Undo,
    ) -> Result<()> {
        let record = self.network_record(network)?;
        if sandbox.endpoints.iter().any(|endpoint| endpoint.network == *network) {
            return Err(Error::conflict(format!("is connected to network {network:?} already")));
        }
        let place = self.enter(sandbox)?;
        let sandbox = &self.follow_names(work, &place, sandbox).await?;
        let mut names = interface_names(&place).await?;
        let without = place.netns.without_ipv6().failed("look for IPv6")?;
        let endpoint =
            self.plan_endpoint(work, (&sandbox.name, without), &record, wanted, &mut names, undo)?;
        let intent = self.announce(
            work,
            Intent::Endpoints {
                name: sandbox.name.clone(),
                namespace: sandbox.namespace.clone(),
                ifnames: vec![endpoint.ifname.clone()],
                host_ends: endpoint.wire.host_end().map(str::to_owned).into_iter().collect(),
            },
        )?;
        undo.push(Done::Intent(intent));
        let port = self.make_endpoint(&place, &record, &endpoint, undo).await?;
        let mut after = sandbox.clone();
        after.endpoints.push(endpoint.clone());
        self.route_by_gateway(&place, &after).await?;
        self.commit_noting(
            work,
            vec![
                Edit::PutSandbox(after),
                Edit::PutNetwork(work.with_cursors(&record)),
                Edit::RemoveIntent(intent),
            ],
            undo,
        )?;
        let key = (sandbox.name.clone(), endpoint.ifname.clone());
        self.world_mut().attached.endpoints.insert(key, port);
        self.publish()?;
        if endpoint.ipv6.is_some() {
            // Its ports may lead to both families from now on.
            let sandbox = self.sandbox_record(&sandbox.name)?;
            self.hold_ipv6(work, &sandbox);
        }
        Ok(())
    }

    /// Takes a sandbox's interface in a network away.
    ///
    /// # Errors
    /// When they are not connected, or published ports would lead nowhere.
    pub async fn disconnect(&self, network: &Name, name: &Name) -> Result<()> {
        let wrap = |error: Error| error.context(format!("sandbox {name:?}"));
        check::disconnect(network)?;
        let mut work = self.work.lock().await;
        let sandbox = self.sandbox_record(name)?;
        self.network_record(network)?;
        self.disconnect_in(&mut work, &sandbox, network).await.map_err(wrap)?;
        drop(work);
        self.emit("network_disconnect", Some(network), Some(name), None);
        Ok(())
    }

    async fn disconnect_in(
        &self,
        work: &mut Work,
        sandbox: &Sandbox,
        network: &Name,
    ) -> Result<()> {
        let place = match open_namespace(&sandbox.name, &sandbox.namespace)? {
            Some(netns) => Some(Place::open(netns)?),
            None => None,
        };
        let sandbox = &match &place {
            Some(place) => self.follow_names(work, place, sandbox).await?,
            None => sandbox.clone(),
        };
        let mut after = sandbox.clone();
        let at = after.endpoints.iter().position(|endpoint| endpoint.network == *network);
        let at =
            at.ok_or_else(|| Error::not_found(format!("is not connected to network {network:?}")))?;
        let endpoint = after.endpoints.remove(at);
        let leads_nowhere = {
            let world = self.world();
            after.publishes.iter().any(|publish| !world.desired.leads_in(&after, publish))
        };
        if leads_nowhere {
            return Err(Error::conflict(format!(
                "its published ports lead into network {network:?}; unpublish them first"
            )));
        }
        let counters = self.next_intent();
        let intent = Intent::Endpoints {
            name: sandbox.name.clone(),
            namespace: sandbox.namespace.clone(),
            ifnames: vec![endpoint.ifname.clone()],
            host_ends: endpoint.wire.host_end().map(str::to_owned).into_iter().collect(),
        };
        self.commit(
            work,
            vec![
                Edit::Counters(counters),
                Edit::PutIntent(counters.intent, intent.clone()),
                Edit::PutSandbox(after.clone()),
            ],
        )?;
        self.let_go(work, &sandbox.name, &endpoint);
        self.publish_or_later(work).await;
        let key = (sandbox.name.clone(), endpoint.ifname.clone());
        let port = self.world_mut().attached.endpoints.remove(&key);
        if let Some(port) = port {
            self.detach(port);
        }
        // Each of these is tried, whatever becomes of the one before. The announcement ends with the
        // devices that it names.
        self.hold_publishes(work, &after).await;
        let cleared = match clear_away(&self.host, &intent).await {
            Ok(()) => self.commit(work, vec![Edit::RemoveIntent(counters.intent)]),
            Err(error) => Err(error),
        };
        let routed = match &place {
            Some(place) => self.route_by_gateway(place, &after).await,
            None => Ok(()),
        };
        first_error(cleared, routed)
    }

    /// Chooses addresses, MAC and interface name, for a sandbox and why it is without IPv6, if it
    /// is. The name is added to `names`.
    pub(super) fn plan_endpoint(
        &self,
        work: &mut Work,
        sandbox: (&Name, Option<&str>),
        network: &Network,
        wanted: &Wanted,
        names: &mut HashSet<String>,
        undo: &mut Undo,
    ) -> Result<Endpoint> {
        let options = NetworkOptions::parse(types::Driver::Bridge, &network.options)?;
        let address = work.allocate(network, wanted.ip)?;
        undo.push(Done::Address(network.name.clone(), address.into()));
        let ipv6 = self.plan_ipv6(work, sandbox, network, wanted.ip6)?;
        if let Some(own) = ipv6 {
            undo.push(Done::Address(network.name.clone(), own.addr().into()));
        }
        let mac = wanted.mac.map_or_else(|| ipam::mac_for(address), |mac| mac.0);
        self.check_mac(network, mac)?;
        let ifname = match &wanted.ifname {
            Some(name) if names.contains(name) => {
                return Err(Error::conflict(format!(
                    "has an interface {name:?} already; choose another name"
                )));
            }
            Some(name) => name.clone(),
            None => (0..=u16::MAX)
                .map(|number| format!("{}{number}", options.iface_prefix))
                .find(|name| !names.contains(name))
                .ok_or_else(|| Error::conflict("has no interface name left"))?,
        };
        names.insert(ifname.clone());
        let wire = match options.link.unwrap_or(self.settings.link) {
            LinkKind::Tap => Wire::Tap,
            LinkKind::Veth => Wire::Veth { host_end: host_end()? },
        };
        let prefix_len = network.subnet_of(address).map_or(32, |plan| plan.subnet.prefix_len());
        Ok(Endpoint {
            network: network.name.clone(),
            ifname,
            mac: mac.into(),
            ipv4: address,
            prefix_len,
            ipv6,
            aliases: wanted.aliases.clone(),
            wire,
            options: wanted.options.clone(),
        })
    }

    /// An IPv6 address, if network and namespace have IPv6.
    fn plan_ipv6(
        &self,
        work: &mut Work,
        (sandbox, without): (&Name, Option<&str>),
        network: &Network,
        wanted: Option<Ipv6Addr>,
    ) -> Result<Option<Ipv6Net>> {
        match (network.has_ipv6(), without, wanted) {
            (false, _, None) => Ok(None),
            (false, _, Some(address)) => Err(Error::invalid(format!(
                "address {address}: network {:?} has no IPv6; leave --ip6 out, or create the \
                 network with --ipv6",
                network.name
            ))),
            (true, None, wanted) => work.allocate6(network, wanted).map(Some),
            (true, Some(reason), Some(address)) => Err(Error::conflict(format!(
                "address {address}: its namespace has no IPv6, {reason}; leave --ip6 out"
            ))),
            (true, Some(reason), None) => {
                let network = &network.name;
                self.warn(
                    Subject::InSandbox(sandbox.clone()),
                    format!(
                        "sandbox {sandbox:?}: has no IPv6 address in network {network:?}: {reason}"
                    ),
                );
                Ok(None)
            }
        }
    }

    fn check_mac(&self, network: &Network, mac: Mac) -> Result<()> {
        let world = self.world();
        let owner = world
            .desired
            .endpoints_of(network.name.as_str())
            .find(|(_, endpoint)| endpoint.mac.0 == mac)
            .map(|(sandbox, _)| format!("sandbox {:?}", sandbox.name));
        let gateway = (network.gateway_mac() == mac).then(|| "the gateway".to_owned());
        match owner.or(gateway) {
            Some(owner) => Err(Error::conflict(format!(
                "MAC {mac} belongs to {owner} in network {:?}; give another --mac",
                network.name
            ))),
            None => Ok(()),
        }
    }

    /// Makes and attaches the device.
    pub(super) async fn make_endpoint(
        &self,
        place: &Place,
        network: &Network,
        endpoint: &Endpoint,
        undo: &mut Undo,
    ) -> Result<dataplane::packet::types::PortId> {
        // Before the device is made: without it nothing could take that back.
        let made = match &endpoint.wire {
            Wire::Tap => {
                let netns = place.netns.try_clone().failed("duplicate a namespace")?;
                Done::Device(netns, endpoint.ifname.clone())
            }
            Wire::Veth { host_end } => Done::Pair(host_end.clone()),
        };
        let device = self.make_device(place, network, endpoint).await?;
        undo.push(made);
        let port = self.attach(device)?;
        undo.push(Done::Port(port));
        self.finish_device(place, endpoint).await?;
        Ok(port)
    }

    /// Makes the device of an endpoint, which [`Self::finish_device`] ends.
    pub(super) async fn make_device(
        &self,
        place: &Place,
        network: &Network,
        endpoint: &Endpoint,
    ) -> Result<Box<dyn Port>> {
        let spec = endpoint_device(network, endpoint, self.settings.services.tap_queue);
        Ok(match &endpoint.wire {
            Wire::Tap => Box::new(place.make(&spec).await?),
            Wire::Veth { host_end } => {
                Box::new(place.make_veth(&spec, &self.host, host_end).await?)
            }
        })
    }

    /// Takes the device of an endpoint over, or makes it anew. The second value says which.
    pub(super) async fn adopt_device(
        &self,
        place: &Place,
        network: &Network,
        endpoint: &Endpoint,
    ) -> Result<(Box<dyn Port>, Found)> {
        let spec = endpoint_device(network, endpoint, self.settings.services.tap_queue);
        match &endpoint.wire {
            Wire::Tap => {
                let (tap, found) = place.adopt(&spec).await?;
                Ok((Box::new(tap), found))
            }
            Wire::Veth { host_end } => {
                let (socket, found) = place.adopt_veth(&spec, &self.host, host_end).await?;
                Ok((Box::new(socket), found))
            }
        }
    }

    /// Marks the device of an endpoint as one that a start of the daemon can take over as it is.
    pub(super) async fn finish_device(&self, place: &Place, endpoint: &Endpoint) -> Result<()> {
        match &endpoint.wire {
            Wire::Tap => place.mark(&endpoint.ifname).await,
            Wire::Veth { host_end } => self.host.mark_end(host_end).await,
        }
    }

    /// Makes the default routes of a namespace, one for each family, lead by the endpoint that
    /// should have it, unless there is one: an adopted namespace may have its own.
    pub(super) async fn route_by_gateway(&self, place: &Place, sandbox: &Sandbox) -> Result<()> {
        let ways: Vec<(String, IpAddr)> = {
            let world = self.world();
            let ways = world.desired.ways_out(sandbox).into_iter();
            ways.map(|(endpoint, gateway)| (endpoint.ifname.clone(), gateway)).collect()
        };
        for (ifname, gateway) in ways {
            // After a boot without IPv6 there may be addresses in the records that no device has.
            if gateway.is_ipv6() && kernel_without_ipv6().is_some() {
                continue;
            }
            let existing = place.netlink.default_route_to(gateway).await;
            if existing.failed("read the default route")?.is_some() {
                continue;
            }
            // Whoever turned IPv6 off inside has no use for the route, and goes on by IPv4.
            if gateway.is_ipv6()
                && let Some(reason) =
                    place.netns.without_ipv6_at(&ifname).failed("look for IPv6")?
            {
                let name = &sandbox.name;
                self.warn(
                    Subject::InSandbox(name.clone()),
                    format!("sandbox {name:?}: {ifname} has no way out by IPv6: {reason}"),
                );
                continue;
            }
            place.set_default_route(&ifname, gateway, IfExists::Fail).await?;
        }
        Ok(())
    }

    /// Gives back what an endpoint held beside its device.
    pub(super) fn let_go(&self, work: &mut Work, sandbox: &Name, endpoint: &Endpoint) {
        for own in endpoint.addresses() {
            work.release(&endpoint.network, own.addr());
            tracing::debug!("sandbox {sandbox:?}: {} given back", own.addr());
        }
    }

    /// Opens the namespace of a sandbox.
    pub(super) fn enter(&self, sandbox: &Sandbox) -> Result<Place> {
        if sandbox.namespace == Namespace::Host {
            return Err(Error::conflict(
                "is the host's own namespace, which has no interfaces of networks",
            ));
        }
        match open_namespace(&sandbox.name, &sandbox.namespace)? {
            Some(netns) => Place::open(netns),
            None => Err(Error::conflict("its namespace is gone; remove the sandbox")),
        }
    }

    pub(super) fn network_record(&self, name: &Name) -> Result<Network> {
        self.world().desired.networks.get(name).cloned().ok_or_else(|| unknown_network(name))
    }

    pub(super) fn sandbox_record(&self, name: &Name) -> Result<Sandbox> {
        self.world().desired.sandboxes.get(name).cloned().ok_or_else(|| unknown_sandbox(name))
    }

    /// The counters with one more intent given out.
    pub(super) fn next_intent(&self) -> crate::model::Counters {
        let mut counters = self.counters();
        counters.intent = counters.intent.wrapping_add(1);
        counters
    }
}

/// A name for our end of a veth pair: unique among all daemons of the host.
fn host_end() -> Result<String> {
    Ok(format!("vswe-{}", random_hex(HOST_END_DIGITS)?))
}

/// The device of an endpoint.
pub(super) fn endpoint_device(network: &Network, endpoint: &Endpoint, queue: u32) -> DeviceSpec {
    DeviceSpec {
        ifname: endpoint.ifname.clone(),
        mac: endpoint.mac.0,
        mtu: network.mtu,
        addresses: endpoint.addresses(),
        queue,
    }
}

/// Names that are taken in a namespace.
pub(super) async fn interface_names(place: &Place) -> Result<HashSet<String>> {
    Ok(place.links().await?.into_iter().map(|link| link.name).collect())
}

/// The namespace, if it is still there and still the one we know.
pub(super) fn open_namespace(name: &Name, namespace: &Namespace) -> Result<Option<Netns>> {
    let (Some(path), Namespace::Made { inode } | Namespace::Adopted { inode, .. }) =
        (namespace.path(name), namespace)
    else {
        return Ok(None);
    };
    match Netns::open_path(&path) {
        Ok(netns) => Ok((inode_of(&netns)? == *inode).then_some(netns)),
        Err(NetnsError::NotFound(_) | NetnsError::NotANetns(_)) => Ok(None),
        Err(error) => Err(error).failed("open the namespace"),
    }
}

/// What tells a namespace from all others of its time.
pub(super) fn inode_of(netns: &Netns) -> Result<u64> {
    Ok(fstat(netns).failed("inspect a network namespace")?.st_ino)
}
