//! While it runs: devices that somebody deleted or moved away are made anew, names that somebody gave
//! to interfaces of sandboxes are taken over, filters that somebody took off are set again (`ends`).
//!
//! What is in the records should exist, so a device of ours that was deleted comes back as it was
//! made: MAC, MTU, addresses and, in a sandbox, the default route. Connections go on: the rules that
//! they were made by are still there. A sandbox whose namespace is gone is marked as gone, and said
//! in the log and in `status`.
//!
//! What somebody sets on a device that is still there (down, another MTU, no address) is left so.
//!
//! Limit: one device or filter is made anew at most once in [`PAUSE`], so that two who disagree
//! about it do not keep each other busy.

mod ends;
mod pairs;

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use dataplane::packet::types::PortId;

pub use ends::Touched;

use super::endpoint::open_namespace;
use super::uplink::Look;
use super::warnings::Subject;
use super::{Switch, Work, blocking};
use crate::error::{Error, Result};
use crate::model::{Edit, Endpoint, Namespace, Network, Sandbox};
use crate::name::Name;
use crate::netlink::Link;
use crate::netns::Netns;
use crate::place::Place;

/// How long a device or filter that was made anew stays away when it is deleted again.
const PAUSE: Duration = Duration::from_secs(5);

/// An endpoint's interface that is gone.
struct Lost {
    sandbox: Sandbox,
    /// Which of its endpoints.
    at: usize,
    port: PortId,
}

impl Switch {
    /// Says of sandboxes whose namespace cannot be found any more. Nothing is taken from them: what
    /// runs there still has its network, and our devices keep the namespace until the sandbox is
    /// removed.
    pub fn follow_namespaces(&self) {
        let known: Vec<(Name, Namespace)> = {
            let world = self.world();
            let all = world.desired.sandboxes.values();
            all.map(|sandbox| (sandbox.name.clone(), sandbox.namespace.clone())).collect()
        };
        for (name, namespace) in known {
            let there = blocking(|| is_there(&name, &namespace));
            if there || self.world().gone.contains(&name) {
                continue;
            }
            let news = {
                let mut world = self.world_mut();
                // Removed in the meantime, it is nothing to talk about.
                world.desired.sandboxes.contains_key(&name) && world.gone.insert(name.clone())
            };
            if news {
                let path = namespace.path(&name).unwrap_or_default();
                let path = path.display();
                let text =
                    format!("sandbox {name:?}: its namespace {path} is gone; remove the sandbox");
                self.warn(Subject::Sandbox(name), text);
            }
        }
    }

    /// Makes devices anew that somebody deleted, or moved to another namespace.
    pub async fn follow_gone(&self, look: Look) {
        // What happens in a sandbox is not told here.
        blocking(|| self.engine.look_for_lost());
        if look == Look::Ports && self.engine.gone_ports().is_empty() {
            return;
        }
        let mut work = self.work.lock().await;
        if look == Look::All {
            let mut lost = self.unwired().await;
            lost.extend(self.unpaired(&mut work).await);
            lost.into_iter().for_each(|port| self.engine.lose(port));
        }
        // What was detached until the lock was free is not gone any more.
        let gone = self.engine.gone_ports();
        if gone.is_empty() {
            return;
        }
        work.remade.retain(|_, at| at.elapsed() < PAUSE);
        for (network, port) in self.lost_legs(&gone) {
            if let Err(error) = self.remake_leg(&mut work, &network, port).await {
                let subject = Subject::Network(network.name.clone());
                self.warn(subject, format!("network {:?}: {error}", network.name));
            }
        }
        for lost in self.lost_endpoints(&gone) {
            self.remake_endpoint(&mut work, &lost).await;
        }
    }

    fn lost_legs(&self, gone: &[PortId]) -> Vec<(Network, PortId)> {
        let world = self.world();
        let hosts = world.attached.hosts.iter().filter(|(_, port)| gone.contains(port));
        hosts
            .filter_map(|(name, port)| Some((world.desired.networks.get(name)?.clone(), *port)))
            .collect()
    }

    fn lost_endpoints(&self, gone: &[PortId]) -> Vec<Lost> {
        let world = self.world();
        let mut lost = Vec::new();
        for sandbox in world.desired.sandboxes.values() {
            for (at, endpoint) in sandbox.endpoints.iter().enumerate() {
                let key = (sandbox.name.clone(), endpoint.ifname.clone());
                let port = world.attached.endpoints.get(&key);
                if let Some(port) = port.filter(|port| gone.contains(port)) {
                    lost.push(Lost { sandbox: sandbox.clone(), at, port: *port });
                }
            }
        }
        lost
    }

    async fn remake_leg(&self, work: &mut Work, network: &Network, dead: PortId) -> Result<()> {
        let ifname = network.host_device();
        if work.remade.contains_key(&(None, ifname.clone())) {
            return Ok(());
        }
        work.remade.insert((None, ifname.clone()), Instant::now());
        // The new port first, then the snapshot, then the dead one goes: no moment without a port.
        let made = self.adopt_network(network).await;
        if made.is_err() {
            self.world_mut().attached.hosts.remove(&network.name);
        }
        let published = self.publish();
        self.detach(dead);
        made.map_err(|error| {
            error.context(format!("interface {ifname:?} is gone and cannot be made anew"))
        })?;
        published
    }

    /// Makes the device anew if its namespace is still there.
    async fn remake_endpoint(&self, work: &mut Work, lost: &Lost) {
        let name = &lost.sandbox.name;
        let Some(endpoint) = lost.sandbox.endpoints.get(lost.at) else { return };
        let remade = (Some(name.clone()), endpoint.mac.to_string());
        let netns = open_namespace(name, &lost.sandbox.namespace);
        if matches!(netns, Ok(Some(_))) && work.remade.contains_key(&remade) {
            return;
        }
        work.remade.insert(remade, Instant::now());
        let outcome = match netns {
            Ok(Some(netns)) => self.attach_anew(work, lost, netns).await,
            Ok(None) => Err(Error::conflict("its namespace is gone; remove the sandbox")),
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            let mut world = self.world_mut();
            world.attached.endpoints.retain(|_, port| *port != lost.port);
            world.gone.insert(name.clone());
        }
        let published = self.publish_ports(work).await;
        self.detach(lost.port);
        match outcome {
            Ok(ifname) => {
                tracing::warn!("sandbox {name:?}: interface {ifname:?} was gone, made it anew");
            }
            Err(error) => {
                let ifname = &endpoint.ifname;
                let text = format!("sandbox {name:?}: interface {ifname:?} is gone: {error}");
                self.warn(Subject::Sandbox(name.clone()), text);
            }
        }
        if let Err(error) = published {
            tracing::warn!("sandbox {name:?}: {error}");
        }
    }

    /// Device, port and default route of an endpoint; its name.
    async fn attach_anew(&self, work: &Work, lost: &Lost, netns: Netns) -> Result<String> {
        let place = Place::open(netns)?;
        let sandbox = self.follow_names(work, &place, &lost.sandbox).await?;
        let endpoint = sandbox.endpoints.get(lost.at);
        let endpoint = endpoint.ok_or_else(|| Error::failed("its record has changed"))?;
        let network = self.network_record(&endpoint.network)?;
        let device = self.make_device(&place, &network, endpoint).await?;
        let port = self.attach(device)?;
        let key = (sandbox.name.clone(), endpoint.ifname.clone());
        self.world_mut().attached.endpoints.insert(key, port);
        let routed = self.route_by_gateway(&place, &sandbox).await;
        let finished = self.finish_device(&place, endpoint).await;
        // The port is in use by now.
        for error in [routed, finished].into_iter().filter_map(Result::err) {
            let subject = Subject::InSandbox(sandbox.name.clone());
            self.warn(subject, format!("sandbox {:?}: {error}", sandbox.name));
        }
        Ok(endpoint.ifname.clone())
    }

    /// The record of a sandbox with the names that its interfaces have now: somebody inside may
    /// have renamed them. Stored if they differ.
    pub(super) async fn follow_names(
        &self,
        work: &Work,
        place: &Place,
        sandbox: &Sandbox,
    ) -> Result<Sandbox> {
        let Some(after) = renamed(place, sandbox).await? else { return Ok(sandbox.clone()) };
        self.commit(work, vec![Edit::PutSandbox(after.clone())])?;
        let mut world = self.world_mut();
        // All out before any goes in: names may have been swapped.
        let ports: Vec<Option<PortId>> = sandbox
            .endpoints
            .iter()
            .map(|e| world.attached.endpoints.remove(&(sandbox.name.clone(), e.ifname.clone())))
            .collect();
        for ((endpoint, port), before) in after.endpoints.iter().zip(ports).zip(&sandbox.endpoints)
        {
            if let Some(port) = port {
                let key = (sandbox.name.clone(), endpoint.ifname.clone());
                world.attached.endpoints.insert(key, port);
            }
            if before.ifname != endpoint.ifname {
                tracing::info!(
                    "sandbox {:?}: interface {:?} is called {:?} now",
                    sandbox.name,
                    before.ifname,
                    endpoint.ifname
                );
            }
        }
        Ok(after)
    }
}

/// Whether the file still leads to the namespace.
fn is_there(name: &Name, namespace: &Namespace) -> bool {
    match (namespace.path(name), namespace) {
        (Some(path), Namespace::Made { inode } | Namespace::Adopted { inode, .. }) => {
            std::fs::metadata(path).is_ok_and(|meta| meta.ino() == *inode)
        }
        _ => true,
    }
}

/// The names that a sandbox's interfaces have now, as far as its namespace can be looked into.
pub(super) async fn interfaces_now(sandbox: &Sandbox) -> Vec<String> {
    let look = async {
        let netns = open_namespace(&sandbox.name, &sandbox.namespace)?;
        let Some(netns) = netns else { return Ok(None) };
        renamed(&Place::open(netns)?, sandbox).await
    };
    let endpoints = match look.await {
        Ok(Some(after)) => after.endpoints,
        Ok(None) => sandbox.endpoints.clone(),
        Err(error) => {
            tracing::warn!("sandbox {:?}: {error}", sandbox.name);
            sandbox.endpoints.clone()
        }
    };
    endpoints.into_iter().map(|endpoint| endpoint.ifname).collect()
}

/// The record with the names that the interfaces have in the namespace; `None`: they have those of
/// the record.
async fn renamed(place: &Place, sandbox: &Sandbox) -> Result<Option<Sandbox>> {
    if sandbox.endpoints.is_empty() {
        return Ok(None);
    }
    let links = place.links().await?;
    let mut after = sandbox.clone();
    for (endpoint, name) in after.endpoints.iter_mut().zip(names_now(&links, &sandbox.endpoints)) {
        endpoint.ifname = name;
    }
    Ok((after != *sandbox).then_some(after))
}

/// The name of each endpoint's interface among `links`: an interface keeps its MAC when it is
/// renamed. One that is not there keeps the name of the record, unless another of them has it now.
fn names_now(links: &[Link], endpoints: &[Endpoint]) -> Vec<String> {
    let ours = |link: &&Link, endpoint: &Endpoint| {
        link.kind.as_deref() == Some(endpoint.wire.link_kind()) && link.mac == Some(endpoint.mac.0)
    };
    let mut names: Vec<Option<String>> = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        // Networks may give the same MAC twice: then the name decides, and none is taken twice.
        let free = |link: &&Link| {
            link.name == endpoint.ifname
                || !names.iter().flatten().any(|name| *name == link.name)
                    && !endpoints.iter().any(|e| e.ifname == link.name && ours(link, e))
        };
        let mut candidates = links.iter().filter(|link| ours(link, endpoint)).filter(free);
        let found = candidates
            .clone()
            .find(|link| link.name == endpoint.ifname)
            .or_else(|| candidates.next());
        names.push(found.map(|link| link.name.clone()));
    }
    let taken: Vec<String> = names.iter().flatten().cloned().collect();
    let keep = |endpoint: &Endpoint| {
        if !taken.contains(&endpoint.ifname) {
            return endpoint.ifname.clone();
        }
        let stem = endpoint.ifname.trim_end_matches(|c: char| c.is_ascii_digit());
        let unused = |name: &String| {
            !links.iter().any(|link| link.name == *name)
                && !endpoints.iter().any(|endpoint| endpoint.ifname == *name)
        };
        let mut names = (0..=u16::MAX).map(|number| format!("{stem}{number}"));
        names.find(unused).unwrap_or_else(|| endpoint.ifname.clone())
    };
    endpoints.iter().zip(names).map(|(e, name)| name.unwrap_or_else(|| keep(e))).collect()
}

#[cfg(test)]
mod tests {
    use dataplane::packet::types::Mac;

    use super::*;
    use crate::model::Wire;

    fn mac(last: u8) -> Mac {
        Mac([0x02, 0x42, 10, 0, 0, last])
    }

    fn endpoint(ifname: &str, last: u8) -> Endpoint {
        Endpoint {
            network: "app".parse().unwrap(),
            ifname: ifname.to_owned(),
            mac: mac(last).into(),
            ipv4: [10, 0, 0, last].into(),
            prefix_len: 24,
            ipv6: None,
            aliases: Vec::new(),
            wire: Wire::Tap,
            options: Default::default(),
        }
    }

    fn link(name: &str, kind: &str, last: u8) -> Link {
        Link {
            index: 1,
            name: name.to_owned(),
            mac: Some(mac(last)),
            mtu: 1500,
            up: true,
            carrier: true,
            carrier_ups: 1,
            loopback: false,
            ethernet: true,
            kind: Some(kind.to_owned()),
            controller: None,
            alias: None,
            far: None,
        }
    }

    /// What it is, the records, what is there, and the names expected.
    type Case<'a> = (&'a str, &'a [Endpoint], Vec<Link>, [&'a str; 2]);

    #[test]
    fn interfaces_are_known_by_their_mac() {
        let two = [endpoint("eth0", 1), endpoint("eth1", 2)];
        let twins = [endpoint("eth0", 1), endpoint("eth1", 1)];
        let tun = |name, last| link(name, "tun", last);
        let table: [Case<'_>; 9] = [
            ("unchanged", &two, vec![tun("eth0", 1), tun("eth1", 2)], ["eth0", "eth1"]),
            ("renamed", &two, vec![tun("lan0", 1), tun("eth1", 2)], ["lan0", "eth1"]),
            ("swapped", &two, vec![tun("eth0", 2), tun("eth1", 1)], ["eth1", "eth0"]),
            ("another MAC", &two, vec![tun("eth0", 9), tun("eth1", 2)], ["eth0", "eth1"]),
            ("of others", &two, vec![link("x", "veth", 1), tun("eth1", 2)], ["eth0", "eth1"]),
            ("deleted, name taken", &two, vec![tun("eth0", 2)], ["eth2", "eth0"]),
            ("all deleted", &two, vec![], ["eth0", "eth1"]),
            ("twins", &twins, vec![tun("lan0", 1), tun("eth1", 1)], ["lan0", "eth1"]),
            ("twins, second", &twins, vec![tun("lan0", 1), tun("eth0", 1)], ["eth0", "lan0"]),
        ];
        for (what, endpoints, links, names) in table {
            assert_eq!(names_now(&links, endpoints), names, "{what}");
        }
    }
}
