//! Host ports held for as long as they are published: reserved when chosen, again at every start
//! and when they lead elsewhere, and tried again while they cannot be had.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::api::types::{Driver, UplinkMode};
use crate::error::{Error, Result};
use crate::model::{Publish, Sandbox, Uplink};
use crate::netlink::sockets::HostPorts;
use crate::options::NetworkOptions;
use crate::proxy::{self, LongRanges, ProxyError, Publication, Reservation};
use crate::publish::{Proto, is_at};
use crate::switch::{Switch, Work, World, blocking};

/// Where a sandbox's published ports lead, and at which host address unless they say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
    pub(super) binding: Option<Ipv4Addr>,
}

impl Target {
    /// The halves of a mapping: the rule's number, at which host address, and to where.
    fn halves(self, publish: &Publish) -> impl Iterator<Item = (u32, IpAddr, IpAddr)> {
        let all = [self.ipv4.map(IpAddr::V4), self.ipv6.map(IpAddr::V6)].into_iter().flatten();
        let publish = *publish;
        all.filter_map(move |to| publish.half(to).map(|(rule, host_ip)| (rule, host_ip, to)))
    }
}

impl Switch {
    pub(super) fn target_of(&self, sandbox: &Sandbox) -> Result<Target> {
        let world = self.world();
        let endpoint = world.desired.gateway_endpoint(sandbox);
        let ipv6 = world.desired.gateway_endpoint6(sandbox).map(|(_, own)| own.addr());
        if endpoint.is_none() && ipv6.is_none() {
            return Err(Error::invalid(
                "has no network that is reachable from outside; connect it to one that is neither \
                 internal nor isolated",
            ));
        }
        let binding = endpoint
            .and_then(|endpoint| world.desired.networks.get(&endpoint.network))
            .and_then(|network| NetworkOptions::parse(Driver::Bridge, &network.options).ok())
            .and_then(|options| options.host_binding);
        Ok(Target { ipv4: endpoint.map(|endpoint| endpoint.ipv4), ipv6, binding })
    }

    pub(super) fn reserve(
        &self,
        work: &mut Work,
        publish: &Publish,
        target: Target,
        host: &HostPorts,
    ) -> Result<()> {
        self.try_reserve(work, publish, target, host).map_err(|error| {
            let hint = match error {
                ProxyError::Busy { .. }
                | ProxyError::Closing { .. }
                | ProxyError::Connected { .. } => "; choose another host port",
                _ => "",
            };
            let error = Error::from(error);
            Error::new(error.kind, format!("{}{hint}", error.message))
        })
    }

    /// Both halves, or none.
    pub(super) fn try_reserve(
        &self,
        work: &mut Work,
        publish: &Publish,
        target: Target,
        host: &HostPorts,
    ) -> std::result::Result<(), ProxyError> {
        let mut made = Vec::with_capacity(2);
        for (rule, host_ip, to) in target.halves(publish) {
            let half = self.reserve_half(publish, (host_ip, to), host)?;
            made.extend(half.map(|reservation| (rule, reservation)));
        }
        work.reservations.extend(made);
        Ok(())
    }

    /// Each half by itself, as far as it is not held yet; the first error.
    fn hold_halves(
        &self,
        work: &mut Work,
        publish: &Publish,
        target: Target,
        host: &HostPorts,
    ) -> std::result::Result<(), ProxyError> {
        let mut outcome = Ok(());
        for (rule, host_ip, to) in target.halves(publish) {
            if work.reservations.get(&rule).is_some_and(|held| !held.is_only_checked()) {
                continue;
            }
            match self.reserve_half(publish, (host_ip, to), host) {
                Ok(half) => work.reservations.extend(half.map(|made| (rule, made))),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// `None`: nothing of the host's stack can be there.
    fn reserve_half(
        &self,
        publish: &Publish,
        (host_ip, to): (IpAddr, IpAddr),
        host: &HostPorts,
    ) -> std::result::Result<Option<Reservation>, ProxyError> {
        let Publish { proto, host_ports, .. } = *publish;
        let shared = {
            let world = self.world();
            // It is the engine's alone.
            if world.is_dedicated(host_ip) {
                return Ok(None);
            }
            let addresses = world.shared_addresses(host_ip);
            if let Some(port) = world.first_connected(host, publish, &addresses) {
                return Err(ProxyError::Connected { port, proto });
            }
            // An uplink that is waiting for its interface may come back with any address.
            !addresses.is_empty() || host_ip.is_unspecified() && world.has_shared_uplink()
        };
        let publication =
            Publication { proto, host_ip, host_ports, to, to_port: publish.ports.first() };
        let long = LongRanges::new(&self.services.host, shared);
        blocking(|| proxy::reserve(&publication, long, &self.own, &self.services.host)).map(Some)
    }

    /// Holds what is not held yet of the ports of a sandbox: it has IPv6 now.
    pub(in crate::switch) fn hold_ipv6(&self, work: &mut Work, sandbox: &Sandbox) {
        let host = self.host_ports();
        for publish in &sandbox.publishes {
            self.hold(work, sandbox, publish, &host);
        }
    }

    /// Holds the ports of a sandbox's records anew: they lead elsewhere. What cannot be held is
    /// published all the same, warned of, and tried again.
    pub(in crate::switch) async fn hold_publishes(&self, work: &mut Work, sandbox: &Sandbox) {
        if !sandbox.publishes.is_empty() {
            let host = self.host_ports();
            self.hold_all_of(work, sandbox, &host).await;
        }
    }

    /// At start: the ports of every record.
    pub(in crate::switch) async fn hold_every_publish(&self, work: &mut Work) {
        let sandboxes: Vec<Sandbox> = self.world().desired.sandboxes.values().cloned().collect();
        let host = self.host_ports();
        for sandbox in &sandboxes {
            self.hold_all_of(work, sandbox, &host).await;
        }
    }

    async fn hold_all_of(&self, work: &mut Work, sandbox: &Sandbox, host: &Result<HostPorts>) {
        for publish in &sandbox.publishes {
            work.unreserve(publish.id).await;
            self.hold(work, sandbox, publish, host);
        }
    }

    /// Tries again what could not be held.
    pub(in crate::switch) fn retry_publishes(&self, work: &mut Work, host: &HostPorts) {
        for reservation in work.reservations.values_mut() {
            reservation.complete();
        }
        let waiting: Vec<(Sandbox, Publish)> = {
            let mut world = self.world_mut();
            let World { unheld, desired, .. } = &mut *world;
            if unheld.is_empty() {
                return;
            }
            unheld.retain(|id, _| desired.publishes().any(|(_, publish)| publish.id == *id));
            let all = desired.publishes().filter(|(_, publish)| unheld.contains_key(&publish.id));
            all.map(|(sandbox, publish)| (sandbox.clone(), *publish)).collect()
        };
        if waiting.is_empty() {
            return;
        }
        let host = Ok(host.clone());
        for (sandbox, publish) in &waiting {
            self.hold(work, sandbox, publish, &host);
        }
    }

    /// Looks again at ranges that were only checked: an uplink came.
    pub(in crate::switch) fn recheck_publishes(&self, work: &mut Work) {
        let unguarded: Vec<(Sandbox, Publish)> = {
            let world = self.world();
            let all = world.desired.publishes().filter(|(_, publish)| work.only_checked(publish));
            all.map(|(sandbox, publish)| (sandbox.clone(), *publish)).collect()
        };
        if unguarded.is_empty() {
            return;
        }
        let host = self.host_ports();
        for (sandbox, publish) in &unguarded {
            self.hold(work, sandbox, publish, &host);
        }
    }

    fn hold(
        &self,
        work: &mut Work,
        sandbox: &Sandbox,
        publish: &Publish,
        host: &Result<HostPorts>,
    ) {
        let outcome = self.target_of(sandbox).and_then(|target| {
            let host = host.as_ref().map_err(Clone::clone)?;
            Ok(self.hold_halves(work, publish, target, host)?)
        });
        let text = publish.host_side();
        match outcome {
            Ok(()) => {
                if self.world_mut().unheld.remove(&publish.id).is_some() {
                    tracing::info!("sandbox {:?}: port {text} is held now", sandbox.name);
                }
            }
            Err(error) => self.note_unheld(sandbox, publish, &error),
        }
    }

    fn note_unheld(&self, sandbox: &Sandbox, publish: &Publish, error: &Error) {
        let text = publish.host_side();
        let reason = format!("sandbox {:?}: published port {text}: {error}", sandbox.name);
        let known = self.world_mut().unheld.insert(publish.id, reason.clone());
        if known.as_ref() != Some(&reason) {
            tracing::warn!("{reason}");
        }
    }

    /// A shared uplink to be added must not take from the host what is published already.
    pub(in crate::switch) fn check_published(&self, work: &Work, interface: &str) -> Result<()> {
        let host = HostPorts::read_in(&self.host.netns)
            .map_err(|error| Error::failed(error.to_string()))?;
        let world = self.world();
        let Some(link) = world.host.link(interface) else { return Ok(()) };
        let on_link: Vec<IpAddr> = (world.host.nets())
            .filter_map(|(index, net)| (index == link.index).then_some(net.addr()))
            .collect();
        let (first, last) = host.ephemeral();
        for (sandbox, publish) in world.desired.halves() {
            let addresses: Vec<IpAddr> =
                on_link.iter().copied().filter(|ip| is_at(publish.host_ip, *ip)).collect();
            let owner = format!("published by sandbox {:?}", sandbox.name);
            if let Some(port) = world.first_connected(&host, &publish, &addresses) {
                return Err(Error::conflict(format!(
                    "port {port}/{}, {owner}, is in use by a connection of the host; unpublish it \
                     first",
                    publish.proto
                )));
            }
            let ephemeral =
                publish.host_ports.first() <= last && first <= publish.host_ports.last();
            let is_long = publish.proto != Proto::Sctp && work.only_checked(&publish);
            if !addresses.is_empty() && ephemeral && is_long {
                return Err(Error::conflict(format!(
                    "ports {}, {owner}, overlap {first}-{last}, which the host gives to its own \
                     connections, and are too many to hold; unpublish them first, or add the \
                     uplink with --mode dedicated",
                    publish.host_side()
                )));
            }
        }
        Ok(())
    }
}

impl Work {
    /// Lets host ports go; returns when they are free.
    pub(in crate::switch) async fn unreserve(&mut self, publish: u32) {
        for rule in Publish::rules(publish) {
            if let Some(reservation) = self.reservations.remove(&rule) {
                reservation.release().await;
            }
        }
    }

    fn only_checked(&self, publish: &Publish) -> bool {
        let mut held = Publish::rules(publish.id).into_iter();
        held.any(|rule| self.reservations.get(&rule).is_some_and(Reservation::is_only_checked))
    }
}

impl World {
    fn is_dedicated(&self, address: IpAddr) -> bool {
        self.desired.uplinks.values().any(|uplink| {
            uplink.mode == UplinkMode::Dedicated
                && uplink.addresses.iter().any(|net| net.addr() == address)
        })
    }

    pub(in crate::switch) fn has_shared_uplink(&self) -> bool {
        self.shared_uplinks().next().is_some()
    }

    fn shared_uplinks(&self) -> impl Iterator<Item = &Uplink> {
        self.desired.uplinks.values().filter(|uplink| uplink.mode == UplinkMode::Shared)
    }

    /// Addresses of shared uplinks at which a port published at `host_ip` is served.
    fn shared_addresses(&self, host_ip: IpAddr) -> Vec<IpAddr> {
        self.shared_uplinks()
            .filter_map(|uplink| self.attached.uplinks.get(&uplink.interface))
            .flat_map(|state| state.nets().map(|net| net.addr()))
            .filter(|address| is_at(Some(host_ip), *address))
            .collect()
    }

    fn first_connected(
        &self,
        host: &HostPorts,
        publish: &Publish,
        addresses: &[IpAddr],
    ) -> Option<u16> {
        let own: Vec<IpAddr> = self.host.nets().map(|(_, net)| net.addr()).collect();
        host.first_connected(publish.proto, addresses, publish.host_ports, &own)
    }
}
