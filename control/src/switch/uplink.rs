//! Uplinks: add and remove.
//!
//! A dedicated uplink answers for its own addresses with a MAC of its own. A shared one uses the
//! addresses the host has on the interface, and takes from the host only the frames of our own
//! connections and published ports ([steering](dataplane::io::steer)). Invariant: while a shared
//! uplink is attached, its steering covers exactly the ports that the published snapshot uses;
//! when the daemon stops, no steering stays.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::io::IoBackend;
use dataplane::io::packet_socket::{DEFAULT_SLOTS, PacketOptions, PacketSocket, Receive};
use dataplane::io::steer::MAX_ADDRESSES;
use dataplane::packet::types::{Mac, PortId};
use ipnet::{IpNet, Ipv4Net};

use super::undo::{Done, Undo};
use super::warnings::Subject;
use super::{Switch, Work, World, next_number};
use crate::api::types::{self, Driver, UplinkAdd, UplinkMode};
use crate::check;
use crate::compile::{UplinkIpv6, UplinkState};
use crate::error::{Error, Result, ResultExt};
use crate::host::HostFacts;
use crate::ipam::Prefix;
use crate::model::{Counters, Edit, Network, Origin, Uplink};
use crate::netlink::sockets::HostPorts;
use crate::options::NetworkOptions;
use crate::publish::PortRange;
use crate::state::number_for;

mod follow;
pub(super) mod steering;

pub use follow::Look;
pub(super) use steering::Live;

/// What a dedicated uplink uses for SNAT: all but the well-known ports.
const DEDICATED_PORTS: (u16, u16) = (1024, 65_535);

/// A shared uplink leaves the ports below to services that the host may start later.
const LOWEST_SHARED_PORT: u16 = 16_384;

impl Switch {
    /// Adds a way out.
    ///
    /// # Errors
    /// When the interface is unknown, in use, or cannot be opened.
    pub async fn add_uplink(&self, request: UplinkAdd) -> Result<types::Uplink> {
        let mut work = self.work.lock().await;
        let interface = request.interface.clone();
        self.refresh_host().await?;
        self.check_unpublished(&work, &request)?;
        self.add_uplink_in(&mut work, &request, Origin::User).await?;
        drop(work);
        let found = self.uplinks().into_iter().find(|uplink| uplink.interface == interface);
        found.ok_or_else(|| unknown(&interface))
    }

    /// What is published is not the host's own at the addresses of a new shared uplink.
    pub(super) fn check_unpublished(&self, work: &Work, request: &UplinkAdd) -> Result<()> {
        match request.mode {
            UplinkMode::Dedicated => Ok(()),
            UplinkMode::Shared => self
                .check_published(work, &request.interface)
                .map_err(|error| error.context(format!("uplink {:?}", request.interface))),
        }
    }

    pub(super) async fn add_uplink_in(
        &self,
        work: &mut Work,
        request: &UplinkAdd,
        origin: Origin,
    ) -> Result<()> {
        let mut undo = Undo::default();
        match self.make_uplink(work, request, origin, &mut undo).await {
            Ok(()) => {
                self.emit("uplink_add", None, None, Some(request.interface.clone()));
                Ok(())
            }
            Err(error) => {
                self.roll_back(work, undo).await;
                Err(error)
            }
        }
    }

    /// Adds a way out; what is done when that fails is for the caller to take back.
    pub(super) async fn make_uplink(
        &self,
        work: &mut Work,
        request: &UplinkAdd,
        origin: Origin,
        undo: &mut Undo,
    ) -> Result<()> {
        check::uplink(request)?;
        let wrap = |error: Error| error.context(format!("uplink {:?}", request.interface));
        let uplink = self.plan_uplink(request, origin).map_err(wrap)?;
        // Whoever names an uplink does not want the one we chose.
        let automatic = self.world().desired.uplinks.get(&request.interface).cloned();
        if let Some(automatic) = automatic {
            undo.push(Done::UplinkGone(automatic.clone()));
            self.drop_uplink(work, &automatic).await.map_err(wrap)?;
        }
        self.build_uplink(work, uplink, undo).await.map_err(wrap)
    }

    /// Brings back an uplink that was taken down for another one.
    pub(super) async fn raise_again(&self, work: &mut Work, uplink: &Uplink) -> Result<()> {
        self.commit(work, vec![Edit::PutUplink(uplink.clone())])?;
        if work.uplinks.contains_key(&uplink.interface) {
            return Ok(());
        }
        self.bring_up(work, uplink).await
    }

    fn plan_uplink(&self, request: &UplinkAdd, origin: Origin) -> Result<Uplink> {
        let world = self.world();
        let present = world.desired.uplinks.get(&request.interface);
        if present.is_some_and(|uplink| uplink.origin != Origin::Automatic) {
            return Err(Error::conflict("is an uplink already; remove it first"));
        }
        let link = world
            .host
            .link(&request.interface)
            .ok_or_else(|| Error::not_found("there is no such interface"))?;
        let own_leg = world.desired.networks.values().any(|n| n.host_device() == link.name);
        if link.loopback || !link.ethernet || own_leg {
            return Err(Error::invalid("is not an Ethernet interface with a way out"));
        }
        let on_link: Vec<IpNet> = world
            .host
            .nets()
            .filter_map(|(index, net)| (index == link.index).then_some(net))
            .collect();
        match request.mode {
            UplinkMode::Shared => {
                let foreign = request.addresses.iter().find(|net| !on_link.contains(net));
                if let Some(net) = foreign {
                    return Err(Error::invalid(format!(
                        "the interface does not have {net}; a shared uplink uses the host's \
                         addresses, give --mode dedicated for one of its own"
                    )));
                }
            }
            UplinkMode::Dedicated => {
                for net in &request.addresses {
                    check_dedicated(&world, net)?;
                }
                let v4 = request.gateway.map(IpAddr::V4);
                for gateway in v4.into_iter().chain(request.gateway6.map(IpAddr::V6)) {
                    check_next_hop(&world, gateway)?;
                }
            }
        }
        let used = |id| world.desired.uplinks.values().any(|uplink| uplink.id == id);
        Ok(Uplink {
            id: next_number(world.desired.counters.uplink, used)?,
            interface: request.interface.clone(),
            mode: request.mode,
            origin,
            addresses: request.addresses.clone(),
            gateway: request.gateway,
            gateway6: request.gateway6,
            nat_ports: request.nat_ports.into_iter().collect(),
            made_qdisc: false,
        })
    }

    /// The record comes first: steering that a crash leaves behind is then known.
    async fn build_uplink(
        &self,
        work: &mut Work,
        mut uplink: Uplink,
        undo: &mut Undo,
    ) -> Result<()> {
        if uplink.mode == UplinkMode::Shared {
            let link = self.interface_index(&uplink.interface)?;
            let present = self.host.netlink.has_clsact(link).await.failed("look for a qdisc")?;
            uplink.made_qdisc = !present;
        }
        let counters = Counters { uplink: uplink.id, ..self.counters() };
        self.commit(work, vec![Edit::Counters(counters), Edit::PutUplink(uplink.clone())])?;
        undo.push(Done::Uplink(uplink.interface.clone()));
        self.bring_up(work, &uplink).await
    }

    /// Opens, attaches, publishes, and steers.
    /// Nothing of it is left when that fails.
    pub(super) async fn bring_up(&self, work: &mut Work, uplink: &Uplink) -> Result<()> {
        let ports = self.host_ports()?;
        let live = Live::open(uplink)?;
        let receive = match self.engine.backend() {
            IoBackend::Uring => Receive::Stream,
            IoBackend::Epoll { .. } => Receive::Ring(DEFAULT_SLOTS),
        };
        let socket = self
            .host
            .netns
            .run(|| {
                let options = PacketOptions {
                    promiscuous: uplink.mode == UplinkMode::Dedicated,
                    filter: live.filter(),
                    receive,
                    big_tcp: false,
                    watch_carrier: false,
                };
                PacketSocket::open(&uplink.interface, &options)
            })
            .failed("enter the host's namespace")?
            .map_err(|error| Error::failed(error.to_string()))?;
        let port = self.attach(Box::new(socket))?;
        let state = {
            let installation = work.store.installation().id.clone();
            let world = self.world();
            uplink_state(&world.host, uplink, port, &installation, &ports)
        };
        let Some(state) = state else {
            self.detach(port);
            return Err(Error::not_found("there is no such interface"));
        };
        self.world_mut().attached.uplinks.insert(uplink.interface.clone(), state);
        work.uplinks.insert(uplink.interface.clone(), live);
        if let Err(error) = self.put_to_use(work, &uplink.interface).await {
            // Half an uplink would be taken for one, and never tried again.
            if let Err(again) = self.give_back(uplink).await {
                tracing::warn!("uplink {:?}: could not undo: {again}", uplink.interface);
            }
            self.close_uplink(work, &uplink.interface).await;
            return Err(error);
        }
        self.note_addresses(uplink);
        self.recheck_publishes(work);
        Ok(())
    }

    /// First the engine knows what to do with the frames, then they come.
    async fn put_to_use(&self, work: &mut Work, interface: &str) -> Result<()> {
        self.publish_ports(work).await?;
        let index = self.interface_index(interface)?;
        match work.uplinks.get_mut(interface) {
            Some(live) => live.steer(&self.host, index).await.map(drop),
            None => Ok(()),
        }
    }

    /// Removes a way out.
    ///
    /// # Errors
    /// When there is none, or a static route needs it.
    pub async fn remove_uplink(&self, interface: &str) -> Result<()> {
        let mut work = self.work.lock().await;
        let uplink = {
            let world = self.world();
            let uplink = world.desired.uplinks.get(interface).cloned();
            let uplink = uplink.ok_or_else(|| unknown(interface))?;
            let route =
                world.desired.routes.values().find(|r| r.uplink.as_deref() == Some(interface));
            if let Some(route) = route {
                return Err(Error::conflict(format!(
                    "uplink {interface:?}: is in use by route {}; remove that first",
                    route.destination
                )));
            }
            uplink
        };
        self.drop_uplink(&mut work, &uplink)
            .await
            .map_err(|error| error.context(format!("uplink {interface:?}")))?;
        self.emit("uplink_remove", None, None, Some(interface.to_owned()));
        Ok(())
    }

    pub(super) async fn drop_uplink(&self, work: &mut Work, uplink: &Uplink) -> Result<()> {
        self.take_down_uplink(work, &uplink.interface).await
    }

    /// Steering off, port closed, record gone.
    pub(super) async fn take_down_uplink(&self, work: &mut Work, interface: &str) -> Result<()> {
        self.lay_down(work, interface).await?;
        self.commit(work, vec![Edit::RemoveUplink(interface.to_owned())])?;
        self.publish_or_later(work).await;
        Ok(())
    }

    /// Steering off and port closed; the record stays.
    pub(super) async fn lay_down(&self, work: &mut Work, interface: &str) -> Result<()> {
        let record = self.world().desired.uplinks.get(interface).cloned();
        if let Some(uplink) = record {
            self.give_back(&uplink).await?;
        }
        self.close_uplink(work, interface).await;
        Ok(())
    }

    async fn close_uplink(&self, work: &mut Work, interface: &str) {
        work.uplinks.remove(interface);
        let state = self.world_mut().attached.uplinks.remove(interface);
        if let Some(state) = state {
            self.publish_or_later(work).await;
            self.detach(state.port);
        }
    }

    /// Leaves the frames of a shared uplink to the host.
    pub(super) async fn give_back(&self, uplink: &Uplink) -> Result<()> {
        match uplink.mode {
            UplinkMode::Dedicated => Ok(()),
            UplinkMode::Shared => steering::remove(&self.host, uplink).await,
        }
    }

    /// Says so if some of the interface's addresses are left out.
    fn note_addresses(&self, uplink: &Uplink) {
        if !self.world().has_room_for_addresses(uplink) {
            self.services.uplink_addresses.refuse();
            let name = &uplink.interface;
            self.warn(
                Subject::Addresses(name.clone()),
                format!(
                    "uplink {name:?}: only the first {MAX_ADDRESSES} addresses of each family of its \
                     interface are used; published ports do not answer at the others"
                ),
            );
        }
    }

    pub(super) fn interface_index(&self, interface: &str) -> Result<u32> {
        let world = self.world();
        world
            .host
            .link(interface)
            .map(|link| link.index)
            .ok_or_else(|| Error::not_found("there is no such interface"))
    }
}

fn check_dedicated(world: &super::World, net: &IpNet) -> Result<()> {
    if let Some(link) = world.host.link_with(net.addr()) {
        return Err(Error::conflict(format!(
            "address {} is the host's own on interface {:?}; give another, or --mode shared",
            net.addr(),
            link.name
        )));
    }
    let mut networks = world.desired.networks.values();
    match networks.find(|network| network.prefixes().any(|own| meets(network, own, *net))) {
        Some(network) => {
            Err(Error::conflict(format!("address {net} overlaps network {:?}", network.name)))
        }
        None => Ok(()),
    }
}

/// Whether a subnet of a network and the prefix of a wire are in each other's way. A part of the wire's
/// may be a network's that is routed, since the engine answers there for its sandboxes.
fn meets(network: &Network, own: IpNet, wire: IpNet) -> bool {
    let is_part = own.prefix_len() > wire.prefix_len() && !own.contains(&wire.addr());
    let is_routed = || {
        NetworkOptions::parse(Driver::Bridge, &network.options)
            .is_ok_and(|options| options.routed().of(own.addr()))
    };
    check::overlap(&own, &wire) && !(is_part && is_routed())
}

/// A next hop is on the wire, not in a network.
fn check_next_hop(world: &super::World, gateway: IpAddr) -> Result<()> {
    let mut networks = world.desired.networks.values();
    match networks.find(|network| network.prefixes().any(|own| own.contains(&gateway))) {
        Some(network) => Err(Error::conflict(format!(
            "gateway {gateway} is in the subnet of network {:?}",
            network.name
        ))),
        None => Ok(()),
    }
}

/// What the uplink looks like with the host as it is; `None`: its interface is not there.
fn uplink_state(
    host: &HostFacts,
    uplink: &Uplink,
    port: PortId,
    installation: &str,
    ports: &HostPorts,
) -> Option<UplinkState> {
    let link = host.link(&uplink.interface)?;
    let range = |(first, last): (u16, u16)| PortRange::new(first, last);
    let (mac, addresses, gateway, ipv6, default_ports) = match uplink.mode {
        UplinkMode::Dedicated => (
            made_up_mac(installation, &uplink.interface),
            uplink.addresses_of().collect(),
            uplink.gateway,
            UplinkIpv6 { addresses: uplink.addresses_of().collect(), gateway: uplink.gateway6 },
            range(DEDICATED_PORTS).into_iter().collect(),
        ),
        UplinkMode::Shared => {
            let addresses = shared_addresses(host, link.index, uplink);
            let gateway = uplink.gateway.or_else(|| host.gateway_of(link.index));
            let free = ports
                .nat_ports()
                .into_iter()
                .filter_map(|(first, last)| range((first.max(LOWEST_SHARED_PORT), last)));
            let mut ipv6 = shared_ipv6(host, link.index, uplink);
            ipv6.addresses = within_limit(ipv6.addresses).0;
            (link.mac?, within_limit(addresses).0, gateway, ipv6, free.collect())
        }
    };
    Some(UplinkState {
        port,
        mac,
        addresses,
        gateway,
        ipv6,
        nat_ports: if uplink.nat_ports.is_empty() {
            default_ports
        } else {
            uplink.nat_ports.clone()
        },
        mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
        up: link.up && link.carrier,
        // The host announces its own addresses.
        carrier_ups: if uplink.mode == UplinkMode::Dedicated { link.carrier_ups } else { 0 },
    })
}

/// Addresses that a shared uplink would use.
fn shared_addresses(host: &HostFacts, link: u32, uplink: &Uplink) -> Vec<Ipv4Net> {
    let mut addresses = host.addresses_of(link);
    if !uplink.addresses.is_empty() {
        addresses.retain(|net| uplink.addresses.contains(&IpNet::V4(*net)));
    }
    addresses
}

/// IPv6 that a shared uplink would use.
fn shared_ipv6(host: &HostFacts, link: u32, uplink: &Uplink) -> UplinkIpv6 {
    let mut addresses = host.addresses6_of(link);
    if !uplink.addresses.is_empty() {
        addresses.retain(|net| uplink.addresses.contains(&IpNet::V6(*net)));
    }
    let gateway = uplink.gateway6.or_else(|| host.gateway6_of(link));
    UplinkIpv6 { gateway: gateway.filter(|_| !addresses.is_empty()), addresses }
}

/// As many as there is steering for, and whether that is all. The same address may be there with
/// several prefixes.
fn within_limit<N: Prefix>(mut addresses: Vec<N>) -> (Vec<N>, bool) {
    let mut taken: Vec<IpAddr> = Vec::with_capacity(MAX_ADDRESSES);
    let all = addresses.len();
    addresses.retain(|net| {
        let net: IpNet = (*net).into();
        let known = taken.contains(&net.addr());
        if !known && taken.len() < MAX_ADDRESSES {
            taken.push(net.addr());
        }
        known || taken.last() == Some(&net.addr())
    });
    let complete = addresses.len() == all;
    (addresses, complete)
}

impl World {
    /// Addresses of one family of the shared uplink that uses the most.
    pub(super) fn most_steered(&self) -> usize {
        let shared = self.desired.uplinks.values().filter(|it| it.mode == UplinkMode::Shared);
        let states = shared.filter_map(|uplink| self.attached.uplinks.get(&uplink.interface));
        let most = states.map(|state| {
            let addresses: BTreeSet<IpAddr> = state.nets().map(|net| net.addr()).collect();
            let of_ipv4 = addresses.iter().filter(|address| address.is_ipv4()).count();
            of_ipv4.max(addresses.len() - of_ipv4)
        });
        most.max().unwrap_or(0)
    }

    /// Whether an uplink uses every address that it should.
    pub(super) fn has_room_for_addresses(&self, uplink: &Uplink) -> bool {
        let link = self.host.link(&uplink.interface);
        uplink.mode == UplinkMode::Dedicated
            || link.is_none_or(|link| {
                within_limit(shared_addresses(&self.host, link.index, uplink)).1
                    && within_limit(shared_ipv6(&self.host, link.index, uplink).addresses).1
            })
    }
}

/// A locally administered MAC (IEEE 802-2014 §8.4) that is the same after every start and another
/// on every host.
fn made_up_mac(installation: &str, interface: &str) -> Mac {
    let [_, _, _, b, c, d, e, f] = number_for(installation, interface).to_be_bytes();
    // Not 02:42, which endpoints and gateways have.
    Mac([0x06, b, c, d, e, f])
}

pub(super) fn unknown(interface: &str) -> Error {
    Error::not_found(format!("uplink {interface:?}: no such uplink; see `vswitchctl uplink ls`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_beyond_the_limit_are_left_out() {
        let net = |last: u8, len| Ipv4Net::new([192, 0, 2, last].into(), len).unwrap();
        let all: Vec<Ipv4Net> = (1..=16).map(|last| net(last, 24)).collect();
        assert_eq!(within_limit(all.clone()), (all.clone(), true));
        let again: Vec<Ipv4Net> = all.iter().copied().chain([net(16, 32), net(1, 32)]).collect();
        assert_eq!(within_limit(again.clone()), (again.clone(), true));
        let more = again.iter().copied().chain([net(17, 24), net(2, 32)]).collect();
        let left = again.iter().copied().chain([net(2, 32)]).collect();
        assert_eq!(within_limit(more), (left, false));
    }

    #[test]
    fn made_up_macs_are_stable_local_and_distinct() {
        let mac = made_up_mac("0123456789abcdef", "eth0");
        assert_eq!(mac, made_up_mac("0123456789abcdef", "eth0"));
        assert_ne!(mac, made_up_mac("0123456789abcdef", "eth1"));
        assert_ne!(mac, made_up_mac("1123456789abcdef", "eth0"));
        assert!(!mac.is_multicast());
        assert_eq!(mac.0[0] & 2, 2);
    }
}
