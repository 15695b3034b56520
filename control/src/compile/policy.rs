//! Names in policies become the addresses that those who bear them have now.

use dataplane::config::{PolicyAction, PolicyRule, PolicyWay};
use dataplane::l3::route::Prefix;
use dataplane::packet::ndp::link_local;

use super::prefix;
use crate::api::types::{self, PolicyDirection, PolicyPeer};
use crate::model::{Desired, Network};
use crate::publish::PortRange;

/// The rules of a network as the engine takes them.
pub(super) fn rules(network: &Network, desired: &Desired) -> Vec<PolicyRule> {
    let range = |range: PortRange| (range.first(), range.last());
    let peer = |peer: &PolicyPeer| addresses(peer, desired);
    let rules = network.policy.iter().map(|rule| PolicyRule {
        id: rule.id,
        action: match rule.action {
            types::PolicyAction::Allow => PolicyAction::Allow,
            types::PolicyAction::Deny => PolicyAction::Deny,
        },
        way: match rule.direction {
            PolicyDirection::Any => PolicyWay::Any,
            PolicyDirection::In => PolicyWay::In,
            PolicyDirection::Out => PolicyWay::Out,
            PolicyDirection::Inside => PolicyWay::Inside,
        },
        src: rule.src.as_ref().map(peer),
        dst: rule.dst.as_ref().map(peer),
        proto: rule.proto.map(|proto| proto.0),
        ports: rule.port.map(range),
        host_ports: rule.host_port.map(range),
    });
    rules.collect()
}

fn addresses(peer: &PolicyPeer, desired: &Desired) -> Vec<Prefix> {
    match peer {
        PolicyPeer::Net(net) => vec![prefix(*net)],
        PolicyPeer::Network(name) => {
            let Some(network) = desired.networks.get(name) else { return Vec::new() };
            // Of those who are in a network with IPv6, and heard there alone.
            let local = network.has_ipv6().then(Prefix::link_local);
            network.prefixes().map(prefix).chain(local).collect()
        }
        PolicyPeer::Sandbox(name) => {
            let Some(sandbox) = desired.sandboxes.get(name) else { return Vec::new() };
            let of = |endpoint: &crate::model::Endpoint| {
                let v6 = endpoint.ipv6.map(|own| [own.addr(), link_local(endpoint.mac.0)]);
                let v6 = v6.into_iter().flatten().map(|own| Prefix::new(own, 128));
                std::iter::once(Prefix::new(endpoint.ipv4, 32)).chain(v6).collect::<Vec<_>>()
            };
            sandbox.endpoints.iter().flat_map(of).collect()
        }
    }
}
