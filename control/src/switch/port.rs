//! Published ports: choose, reserve on the host, publish and unpublish.

use std::net::Ipv4Addr;

use super::undo::{Done, Undo};
use super::{Switch, Work, view};
use crate::api::types::{Driver, PortMapping, UplinkMode};
use crate::check;
use crate::compile::merge;
use crate::error::{Error, Result};
use crate::model::{Counters, Edit, Publish, Sandbox};
use crate::name::Name;
use crate::options::NetworkOptions;
use crate::proxy::{self, ProxyError, Publication};
use crate::publish::{PortRange, Proto, PublishSpec};

pub(super) use crate::proxy::Reservation;

/// Where host ports come from that nobody named: the dynamic ports of RFC 6335 §6, without the
/// first, as Docker has it.
const FREE_PORTS: (u16, u16) = (49_153, 65_535);

/// Where a sandbox's published ports lead, and at which host address unless they say.
#[derive(Debug, Clone, Copy)]
struct Target {
    address: Ipv4Addr,
    binding: Option<Ipv4Addr>,
}

impl Switch {
    /// Publishes ports of a sandbox that is there.
    ///
    /// # Errors
    /// When a port is taken, or the sandbox has no network with a way in. All or nothing.
    pub async fn publish_on(&self, name: &Name, specs: &[PublishSpec]) -> Result<Vec<PortMapping>> {
        let wrap = |error: Error| error.context(format!("sandbox {name:?}"));
        check::publish(specs).map_err(wrap)?;
        let mut work = self.work.lock().await;
        let sandbox = self.sandbox_record(name)?;
        let mut undo = Undo::default();
        match self.publish_in(&mut work, sandbox, specs, &mut undo).await {
            Ok(added) => {
                Ok(added.iter().map(|publish| view::port_mapping(name, publish)).collect())
            }
            Err(error) => {
                self.roll_back(&mut work, undo).await;
                Err(wrap(error))
            }
        }
    }

    async fn publish_in(
        &self,
        work: &mut Work,
        mut sandbox: Sandbox,
        specs: &[PublishSpec],
        undo: &mut Undo,
    ) -> Result<Vec<Publish>> {
        let mut counters = self.counters();
        let added = self.plan_publishes(work, &sandbox, specs, &mut counters, undo).await?;
        sandbox.publishes.extend(&added);
        let name = sandbox.name.clone();
        let edits = vec![Edit::Counters(counters), Edit::PutSandbox(sandbox)];
        self.commit_noting(work, edits, undo)?;
        self.publish_ports(work).await?;
        for publish in &added {
            let detail = view::describe_publish(publish);
            self.emit("port_publish", None, Some(&name), Some(detail));
        }
        Ok(added)
    }

    /// Takes published ports back. Connections through them end, others do not notice.
    ///
    /// # Errors
    /// When one of them is not published. All or nothing.
    pub async fn unpublish(&self, name: &Name, specs: &[PublishSpec]) -> Result<Vec<PortMapping>> {
        let mut work = self.work.lock().await;
        let mut sandbox = self.sandbox_record(name)?;
        let mut removed: Vec<Publish> = Vec::new();
        for spec in specs {
            let before = sandbox.publishes.len();
            sandbox.publishes.retain(|publish| {
                let hit = names(spec, publish);
                if hit {
                    removed.push(*publish);
                }
                !hit
            });
            if sandbox.publishes.len() == before {
                return Err(Error::not_found(format!(
                    "sandbox {name:?}: {spec} is not published; see `vswitchctl port ls`"
                )));
            }
        }
        let mut undo = Undo::default();
        self.commit_noting(&work, vec![Edit::PutSandbox(sandbox)], &mut undo)?;
        if let Err(error) = self.publish_ports(&mut work).await {
            self.roll_back(&mut work, undo).await;
            return Err(error.context(format!("sandbox {name:?}")));
        }
        for publish in &removed {
            work.unreserve(publish.id).await;
            let detail = view::describe_publish(publish);
            self.emit("port_unpublish", None, Some(name), Some(detail));
        }
        Ok(removed.iter().map(|publish| view::port_mapping(name, publish)).collect())
    }

    /// Chooses host ports and reserves them. Numbers are taken from `counters`.
    pub(super) async fn plan_publishes(
        &self,
        work: &mut Work,
        sandbox: &Sandbox,
        specs: &[PublishSpec],
        counters: &mut Counters,
        undo: &mut Undo,
    ) -> Result<Vec<Publish>> {
        if specs.is_empty() {
            return Ok(Vec::new());
        }
        let target = self.target_of(sandbox)?;
        let mut planned: Vec<Publish> = Vec::with_capacity(specs.len());
        for spec in specs {
            if spec.proto == Proto::Sctp {
                return Err(Error::invalid(format!(
                    "publish {spec}: SCTP is not built yet; publish tcp or udp"
                )));
            }
            counters.publish = counters.publish.wrapping_add(1);
            let host_ip = spec.host_ip.or(target.binding);
            let wanted = Publish {
                id: counters.publish,
                proto: spec.proto,
                host_ip,
                host_ports: spec.host_ports.unwrap_or(spec.ports),
                ports: spec.ports,
            };
            let publish = match spec.host_ports {
                Some(_) => {
                    self.check_free(&wanted, &planned)?;
                    self.reserve(work, &wanted, target.address)?;
                    wanted
                }
                None => self.reserve_free(work, wanted, target.address, &planned)?,
            };
            undo.push(Done::Reservation(publish.id));
            planned.push(publish);
        }
        Ok(planned)
    }

    fn target_of(&self, sandbox: &Sandbox) -> Result<Target> {
        let world = self.world();
        let endpoint = world.desired.gateway_endpoint(sandbox).ok_or_else(|| {
            Error::invalid(
                "has no network that is reachable from outside; connect it to one that is not \
                 internal",
            )
        })?;
        let binding = world
            .desired
            .networks
            .get(&endpoint.network)
            .and_then(|network| NetworkOptions::parse(Driver::Bridge, &network.options).ok())
            .and_then(|options| options.host_binding);
        Ok(Target { address: endpoint.ipv4, binding })
    }

    fn check_free(&self, wanted: &Publish, planned: &[Publish]) -> Result<()> {
        let world = self.world();
        let owner = world.desired.publishes().find(|(_, publish)| publish.clashes(wanted));
        let text = view::describe_host_side(wanted);
        if let Some((owner, _)) = owner {
            return Err(Error::conflict(format!(
                "port {text} is published by sandbox {:?} already; choose another host port",
                owner.name
            )));
        }
        if planned.iter().any(|publish| publish.clashes(wanted)) {
            return Err(Error::conflict(format!("port {text} is published twice")));
        }
        Ok(())
    }

    /// Tries the free ports from where the last search ended, so that a port is not reused at once.
    fn reserve_free(
        &self,
        work: &mut Work,
        wanted: Publish,
        target: Ipv4Addr,
        planned: &[Publish],
    ) -> Result<Publish> {
        let count = wanted.ports.len();
        for avoid_nat in [true, false] {
            let taken = self.taken_ports(&wanted, planned, avoid_nat);
            let start = work.next_free_port.clamp(FREE_PORTS.0, FREE_PORTS.1);
            for (from, to) in [(start, FREE_PORTS.1), (FREE_PORTS.0, FREE_PORTS.1)] {
                let mut first = from;
                while let Some(host_ports) = next_gap(first, to, count, &taken) {
                    let candidate = Publish { host_ports, ..wanted };
                    match self.try_reserve(work, &candidate, target) {
                        Ok(()) => {
                            work.next_free_port = host_ports.last().saturating_add(1);
                            return Ok(candidate);
                        }
                        Err(ProxyError::Busy { port, .. }) => first = port.saturating_add(1),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Err(Error::conflict(format!(
            "no {count} consecutive free host ports from {} to {}; name a host port",
            FREE_PORTS.0, FREE_PORTS.1
        )))
    }

    /// Ports that are no candidates, merged and ascending.
    fn taken_ports(
        &self,
        wanted: &Publish,
        planned: &[Publish],
        avoid_nat: bool,
    ) -> Vec<PortRange> {
        let world = self.world();
        let published = world.desired.publishes().map(|(_, publish)| publish);
        let mut taken: Vec<PortRange> = published
            .chain(planned)
            .filter(|other| {
                // Clashes wherever it is put: same protocol, same address.
                Publish { host_ports: wanted.host_ports, ..**other }.clashes(wanted)
            })
            .map(|other| other.host_ports)
            .collect();
        if avoid_nat {
            taken.extend(world.attached.uplinks.values().flat_map(|uplink| &uplink.nat_ports));
        }
        merge(&taken)
    }

    fn reserve(&self, work: &mut Work, publish: &Publish, target: Ipv4Addr) -> Result<()> {
        self.try_reserve(work, publish, target).map_err(|error| {
            let hint = match error {
                ProxyError::Busy { .. } => "; choose another host port",
                _ => "",
            };
            let error = Error::from(error);
            Error::new(error.kind, format!("{}{hint}", error.message))
        })
    }

    fn try_reserve(
        &self,
        work: &mut Work,
        publish: &Publish,
        target: Ipv4Addr,
    ) -> std::result::Result<(), ProxyError> {
        // Nothing of the host's stack can be at an address that is the engine's alone.
        if publish.host_ip.is_some_and(|ip| self.is_dedicated(ip)) {
            return Ok(());
        }
        let reservation = proxy::reserve(&Publication {
            proto: publish.proto,
            host_ip: publish.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
            host_ports: publish.host_ports,
            to: target,
            to_port: publish.ports.first(),
        })?;
        work.reservations.insert(publish.id, reservation);
        Ok(())
    }

    fn is_dedicated(&self, address: Ipv4Addr) -> bool {
        let world = self.world();
        world.desired.uplinks.values().any(|uplink| {
            uplink.mode == UplinkMode::Dedicated
                && uplink.addresses.iter().any(|net| net.addr() == address)
        })
    }

    /// Holds the ports of a sandbox's records: at start, and when they lead elsewhere.
    pub(super) async fn hold_publishes(&self, work: &mut Work, sandbox: &Sandbox) -> Result<()> {
        if sandbox.publishes.is_empty() {
            return Ok(());
        }
        let target = self.target_of(sandbox)?;
        for publish in &sandbox.publishes {
            work.unreserve(publish.id).await;
            self.reserve(work, publish, target.address)?;
        }
        Ok(())
    }

    /// Gives workers and steering the rules as they are now.
    pub(super) async fn publish_ports(&self, work: &mut Work) -> Result<()> {
        let outcome = self.publish().and_then(|()| self.refresh_steering(work));
        self.world_mut().stale = outcome.is_err();
        outcome
    }

    /// As [`Switch::publish_ports`], where there is no way back: what fails is tried again by the
    /// follower.
    pub(super) async fn publish_or_later(&self, work: &mut Work) {
        if let Err(error) = self.publish_ports(work).await {
            tracing::warn!("{error}");
        }
    }
}

impl Work {
    /// Lets host ports go; returns when they are free.
    pub(super) async fn unreserve(&mut self, publish: u32) {
        if let Some(reservation) = self.reservations.remove(&publish) {
            reservation.release().await;
        }
    }
}

/// Whether the user means this mapping. A host port left out means every one.
fn names(spec: &PublishSpec, publish: &Publish) -> bool {
    spec.proto == publish.proto
        && spec.ports == publish.ports
        && spec.host_ports.is_none_or(|ports| ports == publish.host_ports)
        && spec.host_ip.is_none_or(|ip| publish.host_ip == Some(ip))
}

/// The first `count` ports from `from` on that are not in `taken` (merged, ascending) and do not
/// run past `to`.
fn next_gap(from: u16, to: u16, count: u16, taken: &[PortRange]) -> Option<PortRange> {
    let mut first = from;
    for range in taken {
        if range.last() < first {
            continue;
        }
        let last = first.checked_add(count.checked_sub(1)?)?;
        if last < range.first() {
            break;
        }
        first = range.last().checked_add(1)?;
    }
    let last = first.checked_add(count.checked_sub(1)?)?;
    if last <= to { PortRange::new(first, last) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange::new(first, last).unwrap()
    }

    #[test]
    fn gaps_are_found_between_what_is_taken() {
        let taken = [range(10, 19), range(22, 29)];
        assert_eq!(next_gap(5, 100, 5, &taken), Some(range(5, 9)));
        assert_eq!(next_gap(5, 100, 6, &taken), Some(range(30, 35)));
        assert_eq!(next_gap(12, 100, 2, &taken), Some(range(20, 21)));
        assert_eq!(next_gap(12, 100, 3, &taken), Some(range(30, 32)));
        assert_eq!(next_gap(12, 31, 3, &taken), None);
        assert_eq!(next_gap(65_535, 65_535, 1, &[]), Some(range(65_535, 65_535)));
        assert_eq!(next_gap(65_535, 65_535, 1, &[range(65_535, 65_535)]), None);
        assert_eq!(next_gap(65_535, 65_535, 2, &[]), None);
    }

    #[test]
    fn unpublishing_names_mappings_as_publishing_does() {
        let publish = Publish {
            id: 1,
            proto: Proto::Tcp,
            host_ip: Some(Ipv4Addr::LOCALHOST),
            host_ports: range(8080, 8080),
            ports: range(80, 80),
        };
        for (text, hit) in [
            ("80", true),
            ("8080:80", true),
            ("127.0.0.1:8080:80", true),
            ("127.0.0.1::80", true),
            ("80/udp", false),
            ("8081:80", false),
            ("10.0.0.1:8080:80", false),
            ("81", false),
        ] {
            assert_eq!(names(&text.parse().unwrap(), &publish), hit, "{text}");
        }
    }
}
