//! Which host ports a sandbox gets: those that were named, one of a range, or any free ones.

use std::net::IpAddr;

use super::hold::Target;
use crate::compile::merge;
use crate::error::{Error, Result};
use crate::model::{Counters, Publish, Sandbox};
use crate::netlink::sockets::HostPorts;
use crate::proxy::ProxyError;
use crate::publish::{PortRange, PublishSpec};
use crate::switch::undo::{Done, Undo};
use crate::switch::{Switch, Work};

/// Where host ports come from that nobody named: the dynamic ports of RFC 6335 §6, without the
/// first, as Docker has it.
const FREE_PORTS: (u16, u16) = (49_153, 65_535);

/// A choice to be made.
#[derive(Debug)]
struct Choice<'a> {
    /// What is wanted; its host ports say only how many.
    wanted: Publish,
    target: Target,
    /// Other mappings of the same request, chosen already or named.
    others: &'a [Publish],
    host: &'a HostPorts,
}

impl Switch {
    /// Chooses host ports and reserves them. Numbers are taken from `counters`.
    pub(in crate::switch) async fn plan_publishes(
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
        let host = self.host_ports()?;
        let wanted = specs
            .iter()
            .map(|spec| {
                counters.publish = Publish::next_id(counters.publish);
                wanted(spec, counters.publish, target)
            })
            .collect::<Result<Vec<Publish>>>()?;
        // Whoever may choose leaves alone what another one named.
        let mut others: Vec<Publish> = specs
            .iter()
            .zip(&wanted)
            .filter(|(spec, _)| spec.host_ports.is_some() && !spec.chooses())
            .map(|(_, publish)| *publish)
            .collect();
        let mut planned: Vec<Publish> = Vec::with_capacity(specs.len());
        for (spec, wanted) in specs.iter().zip(wanted) {
            let choice = Choice { wanted, target, others: &others, host: &host };
            let publish = match spec.host_ports {
                Some(ports) if spec.chooses() => self.reserve_one_of(work, &choice, ports)?,
                Some(_) => {
                    self.check_free(&wanted)?;
                    if planned.iter().any(|publish| publish.clashes(&wanted)) {
                        let text = wanted.host_side();
                        return Err(Error::conflict(format!("port {text} is published twice")));
                    }
                    self.reserve(work, &wanted, target, &host)?;
                    wanted
                }
                None => self.reserve_free(work, &choice)?,
            };
            undo.push(Done::Reservation(publish.id));
            planned.push(publish);
            others.push(publish);
        }
        Ok(planned)
    }

    /// No sandbox has published it. Names the first port that one has.
    fn check_free(&self, wanted: &Publish) -> Result<()> {
        let world = self.world();
        let clash = world
            .desired
            .publishes()
            .filter(|(_, publish)| publish.clashes(wanted))
            .min_by_key(|(_, publish)| publish.host_ports.first());
        let Some((owner, publish)) = clash else { return Ok(()) };
        let first = publish.host_ports.first().max(wanted.host_ports.first());
        let only = PortRange::new(first, first).unwrap_or(wanted.host_ports);
        let text = Publish { host_ports: only, ..*wanted }.host_side();
        let range = match wanted.host_ports.len() {
            1 => String::new(),
            _ => format!(" (of {})", wanted.host_ports),
        };
        Err(Error::conflict(format!(
            "port {text}{range} is published by sandbox {:?} already; choose another host port",
            owner.name
        )))
    }

    /// The first free one of a range, as Docker has it.
    fn reserve_one_of(
        &self,
        work: &mut Work,
        choice: &Choice<'_>,
        ports: PortRange,
    ) -> Result<Publish> {
        let taken = self.taken_ports(choice, false);
        self.reserve_within(work, choice, &taken, (ports.first(), ports.last()))?.ok_or_else(|| {
            let text = Publish { host_ports: ports, ..choice.wanted }.host_side();
            Error::conflict(format!("none of the ports {text} is free; choose other host ports"))
        })
    }

    /// Tries the free ports from where the last search ended, so that a port is not reused at once.
    fn reserve_free(&self, work: &mut Work, choice: &Choice<'_>) -> Result<Publish> {
        for avoid_nat in [true, false] {
            let taken = self.taken_ports(choice, avoid_nat);
            let start = work.next_free_port.clamp(FREE_PORTS.0, FREE_PORTS.1);
            for window in [(start, FREE_PORTS.1), FREE_PORTS] {
                if let Some(publish) = self.reserve_within(work, choice, &taken, window)? {
                    work.next_free_port = publish.host_ports.last().saturating_add(1);
                    return Ok(publish);
                }
            }
        }
        Err(Error::conflict(format!(
            "no {} consecutive free host ports from {} to {}; name a host port",
            choice.wanted.ports.len(),
            FREE_PORTS.0,
            FREE_PORTS.1
        )))
    }

    /// The first ports of the window that are not taken and that the host has free.
    fn reserve_within(
        &self,
        work: &mut Work,
        choice: &Choice<'_>,
        taken: &[PortRange],
        window: (u16, u16),
    ) -> Result<Option<Publish>> {
        let count = choice.wanted.ports.len();
        let mut first = window.0;
        while let Some(host_ports) = next_gap(first, window.1, count, taken) {
            let candidate = Publish { host_ports, ..choice.wanted };
            match self.try_reserve(work, &candidate, choice.target, choice.host) {
                Ok(()) => return Ok(Some(candidate)),
                Err(
                    ProxyError::Busy { port, .. }
                    | ProxyError::Closing { port, .. }
                    | ProxyError::Connected { port, .. },
                ) => match port.checked_add(1) {
                    Some(next) => first = next,
                    None => return Ok(None),
                },
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Ports that are no candidates, merged and ascending.
    fn taken_ports(&self, choice: &Choice<'_>, avoid_nat: bool) -> Vec<PortRange> {
        let world = self.world();
        let published = world.desired.publishes().map(|(_, publish)| publish);
        let mut taken: Vec<PortRange> = published
            .chain(choice.others)
            .filter(|other| {
                // Clashes wherever it is put: same protocol, same address.
                let wanted = &choice.wanted;
                Publish { host_ports: wanted.host_ports, ..**other }.clashes(wanted)
            })
            .map(|other| other.host_ports)
            .collect();
        if avoid_nat {
            taken.extend(world.attached.uplinks.values().flat_map(|uplink| &uplink.nat_ports));
        }
        merge(&taken)
    }
}

/// The record, with the host ports that were named, if they were.
fn wanted(spec: &PublishSpec, id: u32, target: Target) -> Result<Publish> {
    if spec.host_ip.is_some_and(|ip| ip.is_ipv6()) && target.ipv6.is_none() {
        return Err(Error::invalid(format!(
            "publish {spec}: it has no IPv6 address that is reachable from outside; connect it to a \
             network with --ipv6, or publish at an IPv4 address"
        )));
    }
    if spec.host_ip.is_some_and(|ip| ip.is_ipv4()) && target.ipv4.is_none() {
        return Err(Error::invalid(format!(
            "publish {spec}: it has no IPv4 address that is reachable from outside; connect it to a \
             network without gateway_mode=isolated, or publish at an IPv6 address"
        )));
    }
    Ok(Publish {
        id,
        proto: spec.proto,
        host_ip: spec.host_ip.or(target.binding.map(IpAddr::V4)),
        host_ports: spec.host_ports.unwrap_or(spec.ports),
        ports: spec.ports,
    })
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
}
