//! What `status` warns of: each for as long as it is so, and no longer.
//!
//! Some warnings are read off the world when asked for. The others say what failed at one moment;
//! they are kept with their [`Subject`], which tells when they are over.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use dataplane::config::Routed;

use super::{Switch, Work, World};
use crate::api::types::{Driver, UplinkMode};
use crate::compile::{UplinkState, subtract};
use crate::model::{Network, Origin, Uplink};
use crate::name::Name;
use crate::options::NetworkOptions;
use crate::publish::{PortRange, Proto, is_at};

/// Warnings kept at most; older ones are in the log.
const KEPT: usize = 32;

/// What a warning is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    /// The configuration or how the daemon was started: until the next start.
    Start,
    /// Something interrupted that could not be cleared away.
    Intent(u64),
    /// A network without the host's leg.
    Network(Name),
    /// A network with IPv6 where the host has none.
    HostIpv6(Name),
    /// A network that should have been made.
    MissingNetwork(Name),
    /// A network, by its public id, that is not as the config file has it: until it is removed, or
    /// the file is read again.
    Declared(String),
    /// A network, by its public id, that left the config file while it was in use.
    Undeclared(String),
    /// A sandbox that could not be taken over, or lost a device or its namespace.
    Sandbox(Name),
    /// Something in a sandbox that could not be set, until it is removed: what others do there is
    /// theirs, and not looked at.
    InSandbox(Name),
    /// The host's end of a veth pair, or a shared uplink, without its filter.
    Filter(String),
    /// The host's ports could not be read: until they can be.
    HostPorts,
    /// The host leaves no ports to hairpins but those that it hands out itself: for as long as something is published.
    HairpinPorts,
    /// An uplink whose interface has more addresses than are used.
    Addresses(String),
    /// An uplink that could not be brought up.
    Uplink(String),
    /// A declared uplink that could not be added.
    MissingUplink(String),
    /// The automatic uplink.
    AutomaticUplink,
}

/// Warnings of things that failed.
#[derive(Debug, Default)]
pub struct Warnings {
    kept: Vec<(Subject, String)>,
}

impl Warnings {
    /// Those of the start.
    #[must_use]
    pub fn new(texts: Vec<String>) -> Self {
        Self { kept: texts.into_iter().map(|text| (Subject::Start, text)).collect() }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }

    /// What is known already is not said again.
    fn add(&mut self, subject: Subject, text: String) {
        let entry = (subject, text);
        if self.kept.contains(&entry) {
            return;
        }
        tracing::warn!("{}", entry.1);
        if self.kept.len() >= KEPT {
            self.kept.remove(0);
        }
        self.kept.push(entry);
    }
}

impl Switch {
    /// Says it in the log, and in `status` until it is over.
    pub(super) fn warn(&self, subject: Subject, text: String) {
        self.world_mut().warnings.add(subject, text);
    }

    /// Forgets what is about to be looked at anew.
    pub(super) fn forget_warnings(&self, about: impl Fn(&Subject) -> bool) {
        self.world_mut().warnings.kept.retain(|(subject, _)| !about(subject));
    }

    /// Forgets what is over.
    pub(super) fn settle_warnings(&self) {
        let mut world = self.world_mut();
        let mut warnings = std::mem::take(&mut world.warnings);
        warnings.kept.retain(|(subject, text)| {
            let over = world.is_over(subject);
            if over {
                tracing::info!("over: {text}");
            }
            !over
        });
        world.warnings = warnings;
    }

    /// Says in the log when NAT runs out of ports, and when it has some again.
    pub(super) fn note_nat_ports(&self, work: &mut Work) {
        let now = self.world().without_nat_ports();
        for lack in now.difference(&work.without_nat_ports) {
            tracing::warn!("{lack}");
        }
        for lack in work.without_nat_ports.difference(&now) {
            tracing::info!("over: {lack}");
        }
        work.without_nat_ports = now;
    }
}

impl World {
    /// What a person should know now: each one line.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let kept = self.warnings.kept.iter().filter(|(subject, _)| !self.is_over(subject));
        let unheld = self.desired.publishes().filter_map(|(_, p)| self.unheld.get(&p.id));
        kept.map(|(_, text)| text)
            .chain(unheld)
            .cloned()
            .chain(self.without_nat_ports().iter().map(ToString::to_string))
            .chain(self.routed_in_vain())
            .collect()
    }

    /// Networks whose addresses are used outside where no uplink brings what is for them: the host's stack
    /// gets what comes by a shared one.
    fn routed_in_vain(&self) -> Vec<String> {
        let uplinks = &self.desired.uplinks;
        let brings = |uplink: &Uplink| uplink.mode == UplinkMode::Dedicated;
        if uplinks.is_empty() || uplinks.values().any(brings) {
            return Vec::new();
        }
        let said = |network: &Network| {
            let what = bare_outside(network)?;
            Some(format!(
                "network {:?} {what}, but only a dedicated uplink brings what is for its addresses",
                network.name
            ))
        };
        self.desired.networks.values().filter_map(said).collect()
    }

    /// Whether a declared uplink is still to be added.
    pub(super) fn misses_uplink(&self, interface: &str) -> bool {
        let missing =
            |subject: &Subject| matches!(subject, Subject::MissingUplink(i) if i == interface);
        self.warnings.kept.iter().any(|(subject, _)| missing(subject) && !self.is_over(subject))
    }

    fn is_over(&self, subject: &Subject) -> bool {
        let (desired, attached) = (&self.desired, &self.attached);
        match subject {
            Subject::Start | Subject::HostPorts => false,
            Subject::HairpinPorts => attached.hairpin_ports.is_none(),
            Subject::Addresses(interface) => desired
                .uplinks
                .get(interface)
                .is_none_or(|uplink| self.has_room_for_addresses(uplink)),
            Subject::Intent(id) => !desired.intents.contains_key(id),
            Subject::Network(name) => {
                attached.hosts.contains_key(name) || !desired.networks.contains_key(name)
            }
            Subject::HostIpv6(name) => !desired.networks.contains_key(name),
            Subject::MissingNetwork(name) => desired.networks.contains_key(name),
            Subject::Declared(uid) => !desired.networks.values().any(|network| network.uid == *uid),
            Subject::Undeclared(uid) => !desired.networks.values().any(|network| {
                network.uid == *uid && desired.endpoints_of(network.name.as_str()).next().is_some()
            }),
            Subject::Sandbox(name) => !self.gone.contains(name),
            Subject::InSandbox(name) => !desired.sandboxes.contains_key(name),
            Subject::Filter(link) => {
                let mut sandboxes = desired.sandboxes.values();
                !self.unfiltered.contains(link)
                    || !attached.uplinks.contains_key(link)
                        && !sandboxes.any(|sandbox| sandbox.host_ends().contains(link))
            }
            Subject::Uplink(interface) => {
                attached.uplinks.contains_key(interface) || !desired.uplinks.contains_key(interface)
            }
            Subject::MissingUplink(interface) => {
                let present = desired.uplinks.get(interface);
                present.is_some_and(|uplink| uplink.origin != Origin::Automatic)
            }
            Subject::AutomaticUplink => !attached.uplinks.is_empty(),
        }
    }

    fn without_nat_ports(&self) -> BTreeSet<NoPorts> {
        let mut without = BTreeSet::new();
        for (interface, state) in &self.attached.uplinks {
            if state.nat_ports.is_empty() {
                without.insert(NoPorts { interface: interface.clone(), proto: "" });
                continue;
            }
            let protocols = [(Proto::Tcp, "tcp "), (Proto::Udp, "udp "), (Proto::Sctp, "sctp ")];
            for (proto, text) in protocols {
                let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) =
                    state.nets().map(|net| net.addr()).partition(IpAddr::is_ipv4);
                let all = |of: &[IpAddr]| {
                    of.iter().all(|address| self.all_are_published(state, proto, *address))
                };
                let lacks = if v4.is_empty() && v6.is_empty() {
                    // What only ports that are published everywhere are published at.
                    self.all_are_published(state, proto, Ipv4Addr::UNSPECIFIED.into())
                } else {
                    [v4, v6].iter().any(|of| !of.is_empty() && all(of))
                };
                if lacks {
                    without.insert(NoPorts { interface: interface.clone(), proto: text });
                }
            }
        }
        without
    }

    /// Whether nothing is left for NAT at an address.
    fn all_are_published(&self, state: &UplinkState, proto: Proto, address: IpAddr) -> bool {
        let taken: Vec<PortRange> = self
            .desired
            .publishes()
            .map(|(_, publish)| publish)
            .filter(|p| p.proto == proto && is_at(p.host_ip, address))
            .map(|publish| publish.host_ports)
            .collect();
        subtract(&state.nat_ports, &taken).is_empty()
    }
}

/// Why a network's own addresses are seen outside; `None`: they are not.
fn bare_outside(network: &Network) -> Option<&'static str> {
    if network.internal || network.has_no_gateway() {
        return None;
    }
    let options = NetworkOptions::parse(Driver::Bridge, &network.options).ok()?;
    if options.routed() != Routed::default() {
        return Some("is routed");
    }
    (!options.masquerade).then_some("is not translated (masquerade=false)")
}

/// An uplink that has no port left for NAT.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NoPorts {
    interface: String,
    /// With a blank after it; empty: of none.
    proto: &'static str,
}

impl fmt::Display for NoPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { interface, proto } = self;
        write!(
            f,
            "uplink {interface:?}: no {proto}port is left for NAT, new connections of sandboxes are \
             dropped (snat_ports_exhausted); unpublish some, or narrow ip_local_port_range"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ipam::SubnetPlan;
    use crate::model::{Edit, Namespace, Publish, Sandbox};

    #[test]
    fn a_warning_ends_with_its_cause() {
        let mut world =
            World { warnings: Warnings::new(vec!["start".to_owned()]), ..World::default() };
        let web: Name = "web".parse().unwrap();
        for (subject, text) in [
            (Subject::Sandbox(web.clone()), "sandbox"),
            (Subject::MissingUplink("up0".to_owned()), "uplink"),
            (Subject::AutomaticUplink, "automatic"),
        ] {
            for _ in 0..2 {
                world.warnings.add(subject.clone(), text.to_owned());
            }
        }
        // Nothing says that the sandbox is gone.
        assert_eq!(world.warnings(), ["start", "uplink", "automatic"]);
        world.gone.insert(web);
        assert_eq!(world.warnings(), ["start", "sandbox", "uplink", "automatic"]);
        assert!(world.misses_uplink("up0") && !world.misses_uplink("up1"));

        let nat_ports = crate::publish::PortRange::new(20_000, 20_001).into_iter().collect();
        let state = crate::compile::UplinkState {
            port: dataplane::packet::types::PortId(1),
            mac: Default::default(),
            addresses: Vec::new(),
            gateway: None,
            ipv6: Default::default(),
            nat_ports,
            mtu: 1500,
            up: true,
            carrier_ups: 1,
        };
        world.attached.uplinks.insert("up0".to_owned(), state);
        assert_eq!(world.warnings(), ["start", "sandbox", "uplink"]);
        let ports = PortRange::new(10_000, 65_535).unwrap();
        let publish = Publish { id: 1, proto: Proto::Udp, host_ip: None, host_ports: ports, ports };
        let mut sandbox = Sandbox {
            name: "db".parse().unwrap(),
            namespace: Namespace::Host,
            endpoints: Vec::new(),
            publishes: vec![publish],
            created: 0,
        };
        world.desired.apply(Edit::PutSandbox(sandbox.clone()));
        assert_eq!(world.warnings().len(), 4);
        assert!(world.warnings()[3].contains("no udp port is left for NAT"));
        // Elsewhere it takes nothing from NAT.
        sandbox.publishes[0].host_ip = Some(Ipv4Addr::LOCALHOST.into());
        world.desired.apply(Edit::PutSandbox(sandbox));
        assert_eq!(world.warnings().len(), 3);
        world.attached.uplinks.get_mut("up0").unwrap().nat_ports.clear();
        assert_eq!(world.warnings().len(), 4);
        assert!(world.warnings()[3].contains("no port is left for NAT"));
    }

    fn network(name: &str, internal: bool, options: &[(&str, &str)]) -> Network {
        let plan = SubnetPlan::new("10.1.0.0/24".parse().unwrap(), None, None, BTreeMap::new());
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Network {
            id: 1,
            uid: "1".repeat(64),
            name: name.parse().unwrap(),
            subnets: vec![plan.unwrap()],
            cursors: vec![0],
            subnets6: Vec::new(),
            cursors6: Vec::new(),
            internal,
            options: options.collect(),
            labels: BTreeMap::new(),
            mtu: 1500,
            created: 0,
            origin: Origin::User,
            policy: Vec::new(),
        }
    }

    fn uplink(interface: &str, mode: UplinkMode) -> Uplink {
        Uplink {
            id: 1,
            interface: interface.to_owned(),
            mode,
            origin: Origin::User,
            addresses: Vec::new(),
            gateway: None,
            gateway6: None,
            nat_ports: Vec::new(),
            made_qdisc: false,
        }
    }

    #[test]
    fn networks_that_get_no_answers_by_a_shared_uplink_are_named() {
        let mut world = World::default();
        for network in [
            network("nat", false, &[("masquerade", "true")]),
            network("bare", false, &[("masquerade", "false")]),
            network("routed", false, &[("gateway_mode", "routed")]),
            network("routed6", false, &[("gateway_mode_ipv6", "routed")]),
            // Nothing of these goes outside.
            network("internal", true, &[("masquerade", "false")]),
            network("alone", false, &[("masquerade", "false"), ("gateway_mode", "isolated")]),
        ] {
            world.desired.apply(Edit::PutNetwork(network));
        }
        assert_eq!(world.warnings(), Vec::<String>::new());
        world.desired.apply(Edit::PutUplink(uplink("up0", UplinkMode::Shared)));
        let warning = |name: &str, what: &str| {
            format!(
                "network {name:?} {what}, but only a dedicated uplink brings what is for its addresses"
            )
        };
        let expected = [
            warning("bare", "is not translated (masquerade=false)"),
            warning("routed", "is routed"),
            warning("routed6", "is routed"),
        ];
        assert_eq!(world.warnings(), expected);
        world.desired.apply(Edit::PutUplink(uplink("up1", UplinkMode::Dedicated)));
        assert_eq!(world.warnings(), Vec::<String>::new());
    }

    #[test]
    fn only_so_many_are_kept() {
        let mut warnings = Warnings::default();
        for number in 0..100 {
            warnings.add(Subject::Intent(number), number.to_string());
        }
        assert_eq!(warnings.kept.len(), KEPT);
        assert_eq!(warnings.kept.last().unwrap().1, "99");
    }
}
