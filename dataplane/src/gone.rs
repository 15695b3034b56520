//! What a new configuration no longer has or decides otherwise than the one before, and with it the connections
//! that end: the next packet of each is judged anew.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::config::{Network, Policy, Snapshot};
use crate::conntrack::{EndReason, Entry};
use crate::engine::{Link, NatRule};
use crate::orphans::{is_published_over, is_rerouted};
use crate::packet::types::NetworkId;

/// What a new snapshot no longer has, and with it the connections that end.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    rules: HashSet<u32>,
    links: HashSet<Link>,
    networks: HashSet<NetworkId>,
    /// Addresses of endpoints that were removed. Networks never overlap, so they are unique.
    endpoints: HashSet<IpAddr>,
    /// Addresses that SNAT used.
    outside: HashSet<IpAddr>,
    /// A port is published that was not, or leads elsewhere.
    has_published: bool,
    /// Some destination may be reached another way.
    has_rerouted: bool,
    /// Rules of policies that are not there any more, whose counters go.
    policy_rules: HashSet<u32>,
    /// A network's policy says something else.
    has_other_policy: bool,
}

impl Gone {
    pub(crate) fn between(old: &Snapshot, next: &Snapshot) -> Self {
        let mut gone = Self::default();
        let rules: HashMap<u32, _> = next.dnat.rules().map(|rule| (rule.id, *rule)).collect();
        for rule in old.dnat.rules().filter(|rule| rules.get(&rule.id) != Some(*rule)) {
            gone.rules.insert(rule.id);
        }
        let rules: HashMap<u32, _> = old.dnat.rules().map(|rule| (rule.id, *rule)).collect();
        gone.has_published = next.dnat.rules().any(|rule| rules.get(&rule.id) != Some(rule));
        gone.has_rerouted = old.routes != next.routes;
        for network in old.networks() {
            gone.network(network, next.network(network.config.id));
        }
        for network in next.networks() {
            let before = old.network(network.config.id).map(|before| &before.policy);
            let before = before.map_or(&[][..], Policy::rules);
            gone.has_other_policy |= before != network.policy.rules();
        }
        let rules = |snapshot: &Snapshot| -> HashSet<u32> {
            let policies = snapshot.networks().flat_map(|network| network.policy.rules());
            policies.map(|rule| rule.id).collect()
        };
        gone.policy_rules = rules(old).difference(&rules(next)).copied().collect();
        for uplink in old.uplinks() {
            let now = next.uplink(uplink.id);
            if now.is_none() {
                gone.links.insert(Link::Uplink(uplink.id));
            }
            for (address, _) in &uplink.addresses {
                if !now.is_some_and(|now| now.has(*address)) {
                    gone.outside.insert(*address);
                }
            }
        }
        gone
    }

    fn network(&mut self, old: &Network, now: Option<&Network>) {
        let id = old.config.id;
        let Some(now) = now else {
            self.links.insert(Link::Network(id));
            self.networks.insert(id);
            return;
        };
        let left = old.endpoints.addresses().filter(|address| !now.endpoints.contains(*address));
        self.endpoints.extend(left);
    }

    /// While the configuration is not complete, what is new in it decides nothing.
    pub(crate) const fn ignore_what_is_new(&mut self) {
        self.has_published = false;
        self.has_rerouted = false;
        self.has_other_policy = false;
    }

    /// Links that are not there any more.
    pub(crate) fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter()
    }

    /// Whether a rule is not there any more.
    pub(crate) fn has_rule(&self, rule: NatRule) -> bool {
        match rule {
            NatRule::Dnat(id) => self.rules.contains(&id),
            NatRule::Masquerade(id) => self.links.contains(&Link::Network(id)),
            NatRule::Policy(id) => self.policy_rules.contains(&id),
        }
    }

    /// Whether something that was there is not there any more.
    pub(crate) fn has_taken_away(&self) -> bool {
        !(self.rules.is_empty()
            && self.links.is_empty()
            && self.endpoints.is_empty()
            && self.outside.is_empty())
    }

    /// Whether nothing has to end.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
            && self.links.is_empty()
            && self.endpoints.is_empty()
            && self.outside.is_empty()
            && self.policy_rules.is_empty()
            && !self.has_published
            && !self.has_rerouted
            && !self.has_other_policy
    }

    /// Why a connection ends under the new configuration, if it does.
    pub(crate) fn ends(&self, next: &Snapshot, entry: &Entry) -> Option<EndReason> {
        let Entry { connection, rule, .. } = entry;
        if *rule != 0 && self.rules.contains(rule) {
            return Some(EndReason::Unpublished);
        }
        let gone = self.networks.contains(&connection.network)
            || self.endpoints.contains(&connection.original.src)
            || self.endpoints.contains(&connection.reply.src)
            || (connection.snat && self.outside.contains(&connection.reply.dst))
            || (connection.dnat && self.outside.contains(&connection.original.dst));
        if gone {
            return Some(EndReason::EndpointGone);
        }
        if self.has_published && is_published_over(next, entry) {
            return Some(EndReason::Published);
        }
        if self.has_rerouted && is_rerouted(next, connection) {
            return Some(EndReason::Rerouted);
        }
        (self.has_other_policy && next.denies(entry)).then_some(EndReason::Policy)
    }
}
