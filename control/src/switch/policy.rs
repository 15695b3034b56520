//! Policies of networks.

use dataplane::engine::NatRule;

use super::network::unknown as unknown_network;
use super::sandbox::unknown as unknown_sandbox;
use super::undo::Undo;
use super::{Switch, Work, World};
use crate::api::types::{self, PolicyAdd, PolicyPeer, PolicyQuery, PolicyRemove};
use crate::check;
use crate::error::{Error, Result};
use crate::model::{Counters, Edit, Network, PolicyRule, is_unswitched};
use crate::name::Name;

impl Switch {
    /// Adds a rule to a network. Connections that are not let in any more end.
    ///
    /// # Errors
    /// When it makes no sense, names what is not there, or there are too many.
    pub async fn add_policy(&self, request: PolicyAdd) -> Result<types::PolicyRule> {
        check::policy(&request)?;
        let mut work = self.work.lock().await;
        for peer in [&request.src, &request.dst].into_iter().flatten() {
            self.world().peer_exists(peer)?;
        }
        let mut undo = Undo::default();
        let rule = match self.make_policy(&mut work, &request, &mut undo).await {
            Ok(rule) => rule,
            Err(error) => {
                self.roll_back(&mut work, undo).await;
                return Err(error);
            }
        };
        drop(work);
        self.emit("policy_add", Some(&request.network), None, Some(describe(&rule)));
        let query = PolicyQuery { network: Some(request.network) };
        self.policies(&query)?
            .into_iter()
            .find(|shown| shown.id == rule.id)
            .ok_or_else(|| Error::failed("the rule is gone again"))
    }

    /// The same, of a rule whose peers may come later, and what was done until an error is left to `undo`.
    pub(super) async fn make_policy(
        &self,
        work: &mut Work,
        request: &PolicyAdd,
        undo: &mut Undo,
    ) -> Result<PolicyRule> {
        let (counters, network, rule) = self.plan_policy(request)?;
        let edits = vec![Edit::Counters(counters), Edit::PutNetwork(network)];
        self.commit_noting(work, edits, undo)?;
        let published = self.publish_ports(work).await;
        published.map_err(|error| error.context(format_args!("network {:?}", request.network)))?;
        Ok(rule)
    }

    fn plan_policy(&self, request: &PolicyAdd) -> Result<(Counters, Network, PolicyRule)> {
        let wrap = |error: Error| error.context(format_args!("network {:?}", request.network));
        let world = self.world();
        let mut network = world.policed(&request.network)?.clone();
        let have = network.policy.len();
        let limit = &self.services.policy_rules;
        if have >= usize::try_from(limit.limit()).unwrap_or(usize::MAX) {
            limit.refuse();
            return Err(wrap(Error::conflict(format!(
                "has {have} rules, as many as a network may have; remove some first, or raise \
                 limits.policy_rules"
            ))));
        }
        let at = request.position.map_or(have, |position| {
            usize::try_from(position).map_or(usize::MAX, |position| position.saturating_sub(1))
        });
        if at > have {
            return Err(wrap(Error::invalid(format!(
                "position {}: there are {have} rules; give one from 1 to {}",
                request.position.unwrap_or_default(),
                have + 1
            ))));
        }
        let used = |id| {
            world.desired.networks.values().flat_map(|it| &it.policy).any(|rule| rule.id == id)
        };
        let mut counters = world.desired.counters;
        loop {
            counters.policy = counters.policy.wrapping_add(1);
            if counters.policy != 0 && !used(counters.policy) {
                break;
            }
        }
        let rule = PolicyRule {
            id: counters.policy,
            action: request.action,
            direction: request.direction,
            src: request.src.clone(),
            dst: request.dst.clone(),
            proto: request.proto,
            port: request.port,
            host_port: request.host_port,
        };
        network.policy.insert(at, rule.clone());
        limit.note(u32::try_from(have + 1).unwrap_or(u32::MAX));
        Ok((counters, network, rule))
    }

    /// Removes a rule. What it let in and no other rule does ends.
    ///
    /// # Errors
    /// When the network has none of that number.
    pub async fn remove_policy(&self, request: PolicyRemove) -> Result<()> {
        let PolicyRemove { network: name, id } = request;
        let mut work = self.work.lock().await;
        let mut network = self.world().policed(&name)?.clone();
        let Some(at) = network.policy.iter().position(|rule| rule.id == id) else {
            return Err(Error::not_found(format!(
                "network {name:?}: no rule {id}; see `vswitchctl policy ls --network {name}`"
            )));
        };
        let rule = network.policy.remove(at);
        let mut undo = Undo::default();
        self.commit_noting(&work, vec![Edit::PutNetwork(network)], &mut undo)?;
        if let Err(error) = self.publish_ports(&mut work).await {
            self.roll_back(&mut work, undo).await;
            return Err(error.context(format_args!("network {name:?}")));
        }
        self.emit("policy_remove", Some(&name), None, Some(describe(&rule)));
        Ok(())
    }

    /// Rules with what they did, by network, in the order in which they are asked.
    ///
    /// # Errors
    /// When the network is unknown.
    pub fn policies(&self, query: &PolicyQuery) -> Result<Vec<types::PolicyRule>> {
        let world = self.world();
        if let Some(name) = &query.network {
            world.policed(name)?;
        }
        let wanted =
            |network: &&Network| query.network.as_ref().is_none_or(|it| *it == network.name);
        let networks = world.desired.networks.values().filter(wanted);
        let rules = networks.flat_map(|network| {
            (1..).zip(&network.policy).map(|(position, rule)| self.shown(network, position, rule))
        });
        Ok(rules.collect())
    }

    fn shown(&self, network: &Network, position: u32, rule: &PolicyRule) -> types::PolicyRule {
        let (packets, bytes) = self.engine.rule_counters(NatRule::Policy(rule.id));
        let PolicyRule { id, action, direction, src, dst, proto, port, host_port } = rule.clone();
        types::PolicyRule {
            network: network.name.clone(),
            position,
            id,
            action,
            direction,
            src,
            dst,
            proto,
            port,
            host_port,
            packets,
            bytes,
        }
    }
}

impl World {
    /// A network that can have a policy.
    fn policed(&self, name: &Name) -> Result<&Network> {
        if is_unswitched(name) {
            return Err(Error::invalid(format!(
                "network {name:?}: is no network of ours and has no policy; name another network"
            )));
        }
        self.desired.networks.get(name).ok_or_else(|| unknown_network(name))
    }

    /// A name that nobody bears is most probably misspelt.
    fn peer_exists(&self, peer: &PolicyPeer) -> Result<()> {
        match peer {
            PolicyPeer::Net(_) => Ok(()),
            PolicyPeer::Network(name) => self.policed(name).map(|_| ()),
            PolicyPeer::Sandbox(name) if self.desired.sandboxes.contains_key(name) => Ok(()),
            PolicyPeer::Sandbox(name) => Err(unknown_sandbox(name)),
        }
    }
}

/// A rule in one line, as events and traces show it.
pub(super) fn describe(rule: &PolicyRule) -> String {
    let mut text = format!("{} {}", rule.id, rule.action);
    let mut add = |word: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!(" {word} {value}"));
        }
    };
    let direction = Some(rule.direction).filter(|it| *it != types::PolicyDirection::Any);
    add("direction", direction.map(|it| it.to_string()));
    add("src", rule.src.as_ref().map(ToString::to_string));
    add("dst", rule.dst.as_ref().map(ToString::to_string));
    add("proto", rule.proto.map(|it| it.to_string()));
    add("port", rule.port.map(|it| it.to_string()));
    add("host_port", rule.host_port.map(|it| it.to_string()));
    text
}
