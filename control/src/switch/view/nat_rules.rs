//! What the API shows of NAT: the readable answer to `iptables -t nat -vnL`.

use std::net::IpAddr;

use dataplane::engine::NatRule;

use crate::api::types;
use crate::model::Publish;
use crate::options::NetworkOptions;
use crate::publish::bracketed;
use crate::switch::Switch;

impl Switch {
    /// NAT rules with what they did: first those of published ports, then masquerading.
    #[must_use]
    pub fn nat_rules(&self) -> Vec<types::NatRule> {
        let world = self.world();
        let mut rules = Vec::new();
        for (sandbox, publish) in world.desired.publishes() {
            for (endpoint, to) in world.desired.ways_in(sandbox) {
                let Some((id, host_ip)) = publish.half(to) else { continue };
                let (packets, bytes) = self.engine.rule_counters(NatRule::Dnat(id));
                rules.push(types::NatRule {
                    kind: "dnat".to_owned(),
                    network: Some(endpoint.network.clone()),
                    r#match: rule_match(publish, host_ip),
                    to: format!("{}:{}", bracketed(to), publish.ports),
                    packets,
                    bytes,
                });
            }
        }
        for network in world.desired.networks.values().filter(|network| !network.internal) {
            let Ok(options) = NetworkOptions::parse(types::Driver::Bridge, &network.options) else {
                continue;
            };
            let is_translated = |address| {
                options.masquerade && !options.routed().of(address) && !network.is_isolated(address)
            };
            let subnets: Vec<String> = network
                .prefixes()
                .filter(|net| is_translated(net.addr()))
                .map(|net| net.to_string())
                .collect();
            if subnets.is_empty() {
                continue;
            }
            let (packets, bytes) =
                self.engine.rule_counters(NatRule::Masquerade(network.network_id()));
            let outside: Vec<String> = world
                .attached
                .uplinks
                .iter()
                .flat_map(|(interface, state)| {
                    let v4 = state.addresses.first().map(|net| IpAddr::V4(net.addr()));
                    let v6 = state.ipv6.addresses.first().map(|net| IpAddr::V6(net.addr()));
                    let v6 = v6.filter(|_| network.has_ipv6());
                    let own = v4.into_iter().chain(v6).filter(|own| is_translated(*own));
                    own.map(move |address| format!("{address} ({interface})"))
                })
                .collect();
            rules.push(types::NatRule {
                kind: "masquerade".to_owned(),
                network: Some(network.name.clone()),
                r#match: subnets.join(", "),
                to: outside.join(", "),
                packets,
                bytes,
            });
        }
        rules
    }
}

/// What a rule of a published port takes, the unspecified address of a family standing for all of it.
pub(super) fn rule_match(publish: &Publish, host_ip: IpAddr) -> String {
    let address = match host_ip {
        IpAddr::V4(any) if any.is_unspecified() => "*".to_owned(),
        other => bracketed(other),
    };
    format!("{} {address}:{}", publish.proto, publish.host_ports)
}
