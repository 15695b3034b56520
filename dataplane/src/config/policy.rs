//! Policy of networks: who may begin a connection with whom (ADR 29).
//!
//! Rules are judged in order, the first that matches decides, and what none matches is allowed. Whoever asks
//! is what the packet said when it came, so a published port sees its real client; whom it is for is the
//! sandbox itself and its own port, with the port of the host beside.

use std::net::IpAddr;

use super::Snapshot;
use crate::conntrack::Entry;
use crate::l3::route::Prefix;
use crate::packet::types::{NetworkId, ip_proto};

/// What a rule does with connections that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyAction {
    /// No later rule is asked. What nobody publishes or routes stays closed.
    Allow,
    /// Their packets are dropped.
    Deny,
}

/// Which connections a rule is about, seen from its network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PolicyWay {
    /// All.
    #[default]
    Any,
    /// From elsewhere to its endpoints.
    In,
    /// From its endpoints to elsewhere.
    Out,
    /// Between its endpoints.
    Inside,
}

/// One rule of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// Stable number, for counters: not 0.
    pub id: u32,
    /// What it does.
    pub action: PolicyAction,
    /// Which way connections go.
    pub way: PolicyWay,
    /// From any of these; `None`: from anywhere. None at all: from nobody.
    pub src: Option<Vec<Prefix>>,
    /// To any of these, after a published port has led it in; `None`: anywhere.
    pub dst: Option<Vec<Prefix>>,
    /// IP protocol number; that of ICMP stands for ICMPv6 too, and the other way round.
    pub proto: Option<u8>,
    /// First and last port of whom it is for, after a published port has led it in: of TCP, UDP and SCTP.
    pub ports: Option<(u16, u16)>,
    /// First and last port of the host that led it in.
    pub host_ports: Option<(u16, u16)>,
}

/// A connection as rules see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) proto: u8,
    /// Of TCP, UDP and SCTP.
    pub(crate) port: u16,
    /// The published port that led it in, if one did.
    pub(crate) host_port: Option<u16>,
}

impl PolicyRule {
    fn matches(&self, way: PolicyWay, flow: &Flow) -> bool {
        let has = |prefixes: &Option<Vec<Prefix>>, address: IpAddr| {
            prefixes.as_ref().is_none_or(|all| all.iter().any(|prefix| prefix.contains(address)))
        };
        let within = |(first, last): (u16, u16), port| (first..=last).contains(&port);
        (self.way == PolicyWay::Any || self.way == way)
            && self.proto.is_none_or(|proto| icmp_as_one(proto) == icmp_as_one(flow.proto))
            && self.ports.is_none_or(|ports| has_ports(flow.proto) && within(ports, flow.port))
            && self
                .host_ports
                .is_none_or(|ports| flow.host_port.is_some_and(|at| within(ports, at)))
            && has(&self.src, flow.src)
            && has(&self.dst, flow.dst)
    }

    /// Whether it may match what is switched between endpoints with addresses of these prefixes only.
    fn looks_inside(&self, own: &[Prefix]) -> bool {
        let meets = |prefixes: &Option<Vec<Prefix>>| {
            prefixes.as_ref().is_none_or(|all| {
                all.iter().any(|prefix| own.iter().any(|own| overlap(*own, *prefix)))
            })
        };
        matches!(self.way, PolicyWay::Any | PolicyWay::Inside)
            && self.host_ports.is_none()
            && meets(&self.src)
            && meets(&self.dst)
    }
}

/// ICMP is the same to people in both families.
const fn icmp_as_one(proto: u8) -> u8 {
    if proto == ip_proto::ICMPV6 { ip_proto::ICMP } else { proto }
}

const fn has_ports(proto: u8) -> bool {
    matches!(proto, ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP)
}

fn overlap(a: Prefix, b: Prefix) -> bool {
    a.prefix_len() <= b.prefix_len() && a.contains(b.network())
        || b.prefix_len() <= a.prefix_len() && b.contains(a.network())
}

/// The rules of a network.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<PolicyRule>,
    /// Some may match what is switched between endpoints, which is followed then.
    inside: bool,
}

impl Policy {
    /// `subnets`: the prefixes that endpoints have their addresses of.
    pub(super) fn new(rules: Vec<PolicyRule>, subnets: impl Iterator<Item = Prefix>) -> Self {
        let own: Vec<Prefix> = subnets.chain([Prefix::link_local()]).collect();
        let inside = rules.iter().any(|rule| rule.looks_inside(&own));
        Self { rules, inside }
    }

    /// Endpoints may have other addresses than those of their subnets.
    pub(super) fn may_meet_any_address(&mut self) {
        let everywhere = [
            Prefix::new(std::net::Ipv4Addr::UNSPECIFIED, 0),
            Prefix::new(std::net::Ipv6Addr::UNSPECIFIED, 0),
        ];
        self.inside = self.rules.iter().any(|rule| rule.looks_inside(&everywhere));
    }

    /// Whether what is switched between endpoints has to be judged.
    #[must_use]
    #[inline]
    pub const fn looks_inside(&self) -> bool {
        self.inside
    }

    /// Its rules, in order.
    #[must_use]
    pub fn rules(&self) -> &[PolicyRule] {
        &self.rules
    }

    /// The first rule that matches.
    fn first(&self, way: PolicyWay, flow: &Flow) -> Option<&PolicyRule> {
        self.rules.iter().find(|rule| rule.matches(way, flow))
    }
}

/// What the policies of both ends say of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) is_denied: bool,
    /// The rule that decided at each end, the denying one last; zero: none matched.
    pub(crate) rules: [u32; 2],
}

impl Decision {
    /// The rule that had the last word, and what it said.
    pub(crate) fn last(&self) -> Option<(u32, PolicyAction)> {
        let action = if self.is_denied { PolicyAction::Deny } else { PolicyAction::Allow };
        let [first, second] = self.rules;
        [second, first].into_iter().find(|rule| *rule != 0).map(|rule| (rule, action))
    }
}

impl Snapshot {
    /// What the policies of the networks from which and to which a connection goes say; that of the former
    /// first, and if it denies it alone.
    pub(crate) fn decide(
        &self,
        from: Option<NetworkId>,
        to: Option<NetworkId>,
        flow: &Flow,
    ) -> Decision {
        let ask = |network: Option<NetworkId>, way| {
            let policy = &self.network(network?)?.policy;
            policy.first(way, flow).map(|rule| (rule.id, rule.action))
        };
        let ends = if from == to {
            [(from, PolicyWay::Inside), (None, PolicyWay::In)]
        } else {
            [(from, PolicyWay::Out), (to, PolicyWay::In)]
        };
        let (mut is_denied, mut rules) = (false, [0; 2]);
        for ((network, way), place) in ends.into_iter().zip(&mut rules) {
            if let Some((rule, action)) = ask(network, way) {
                *place = rule;
                is_denied = action == PolicyAction::Deny;
            }
            if is_denied {
                break;
            }
        }
        Decision { is_denied, rules }
    }

    /// Whether a connection that is there would not be let in any more. What others announced as theirs is
    /// judged like any other.
    pub(crate) fn denies(&self, entry: &Entry) -> bool {
        let Entry { connection, from, to, rule, .. } = entry;
        if !self.has_policies || self.is_of_the_host(connection.original.src) {
            return false;
        }
        let (original, reply) = (&connection.original, &connection.reply);
        let by_host_port = *rule != 0 && original.dst != reply.src;
        let flow = Flow {
            src: original.src,
            dst: reply.src,
            proto: connection.proto,
            port: reply.src_port,
            host_port: by_host_port.then_some(original.dst_port),
        };
        self.decide(*from, *to, &flow).is_denied
    }

    fn is_of_the_host(&self, address: IpAddr) -> bool {
        self.local(address).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, len) = text.split_once('/').unwrap();
        Prefix::new(address.parse::<IpAddr>().unwrap(), len.parse().unwrap())
    }

    fn rule(id: u32) -> PolicyRule {
        PolicyRule {
            id,
            action: PolicyAction::Deny,
            way: PolicyWay::Any,
            src: None,
            dst: None,
            proto: None,
            ports: None,
            host_ports: None,
        }
    }

    fn flow(src: &str, proto: u8, port: u16, host_port: Option<u16>) -> Flow {
        let (src, dst) = (src.parse().unwrap(), "10.0.0.2".parse().unwrap());
        Flow { src, dst, proto, port, host_port }
    }

    #[test]
    fn each_condition_of_a_rule_holds_by_itself() {
        let web = flow("203.0.113.7", ip_proto::TCP, 80, Some(8080));
        let matches = |rule: PolicyRule| rule.matches(PolicyWay::In, &web);
        let of = |text: &str| Some(vec![prefix("2001:db8::/32"), prefix(text)]);
        assert!(matches(rule(1)));
        for (holds, rule) in [
            (true, PolicyRule { src: of("203.0.113.0/24"), ..rule(1) }),
            (false, PolicyRule { src: of("203.0.112.0/24"), ..rule(1) }),
            (false, PolicyRule { src: Some(Vec::new()), ..rule(1) }),
            (true, PolicyRule { dst: of("10.0.0.2/32"), ..rule(1) }),
            (false, PolicyRule { dst: of("10.0.0.3/32"), ..rule(1) }),
            (true, PolicyRule { proto: Some(ip_proto::TCP), ..rule(1) }),
            (false, PolicyRule { proto: Some(ip_proto::UDP), ..rule(1) }),
            (true, PolicyRule { ports: Some((80, 90)), ..rule(1) }),
            (true, PolicyRule { ports: Some((70, 80)), ..rule(1) }),
            (false, PolicyRule { ports: Some((81, 90)), ..rule(1) }),
            (true, PolicyRule { host_ports: Some((8080, 8080)), ..rule(1) }),
            (false, PolicyRule { host_ports: Some((80, 80)), ..rule(1) }),
            (true, PolicyRule { way: PolicyWay::In, ..rule(1) }),
            (false, PolicyRule { way: PolicyWay::Out, ..rule(1) }),
            (false, PolicyRule { way: PolicyWay::Inside, ..rule(1) }),
        ] {
            assert_eq!(matches(rule.clone()), holds, "{rule:?}");
        }
        let straight = flow("203.0.113.7", ip_proto::TCP, 8080, None);
        let by_host_port = PolicyRule { host_ports: Some((8080, 8080)), ..rule(1) };
        assert!(!by_host_port.matches(PolicyWay::In, &straight), "by no published port");
        // The identifier of an echo is no port; its protocol has two numbers.
        let echo = flow("203.0.113.7", ip_proto::ICMPV6, 80, None);
        let port = PolicyRule { ports: Some((80, 80)), ..rule(1) };
        assert!(!port.matches(PolicyWay::In, &echo));
        let icmp = PolicyRule { proto: Some(ip_proto::ICMP), ..rule(1) };
        assert!(icmp.matches(PolicyWay::In, &echo));
    }

    #[test]
    fn what_is_switched_is_judged_only_where_a_rule_may_match_it() {
        let looks = |rule: PolicyRule| {
            let subnets = [prefix("10.0.0.0/24"), prefix("fd00::/64")];
            Policy::new(vec![rule], subnets.into_iter()).looks_inside()
        };
        let of = |text: &str| Some(vec![prefix(text)]);
        assert!(looks(rule(1)));
        for (inside, rule) in [
            (true, PolicyRule { way: PolicyWay::Inside, ..rule(1) }),
            (false, PolicyRule { way: PolicyWay::In, ..rule(1) }),
            (false, PolicyRule { way: PolicyWay::Out, ..rule(1) }),
            (false, PolicyRule { host_ports: Some((80, 80)), ..rule(1) }),
            (false, PolicyRule { src: of("203.0.113.0/24"), ..rule(1) }),
            (false, PolicyRule { dst: of("203.0.113.0/24"), ..rule(1) }),
            (true, PolicyRule { src: of("0.0.0.0/0"), ..rule(1) }),
            (true, PolicyRule { src: of("10.0.0.7/32"), ..rule(1) }),
            (true, PolicyRule { src: of("fe80::1/128"), ..rule(1) }),
            (false, PolicyRule { src: Some(Vec::new()), ..rule(1) }),
        ] {
            assert_eq!(looks(rule.clone()), inside, "{rule:?}");
        }
        let far = PolicyRule { src: of("203.0.113.0/24"), ..rule(1) };
        let mut policy = Policy::new(vec![far], std::iter::once(prefix("10.0.0.0/24")));
        policy.may_meet_any_address();
        assert!(policy.looks_inside(), "who is not guarded may say anything");
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let web = flow("203.0.113.7", ip_proto::TCP, 80, None);
        let allow = PolicyRule { action: PolicyAction::Allow, ports: Some((80, 80)), ..rule(1) };
        let first = |rules: [PolicyRule; 2]| {
            let policy = Policy::new(rules.to_vec(), std::iter::empty());
            policy.first(PolicyWay::In, &web).map(|rule| rule.action)
        };
        assert_eq!(first([allow.clone(), rule(2)]), Some(PolicyAction::Allow));
        assert_eq!(first([rule(2), allow.clone()]), Some(PolicyAction::Deny));
        let other = PolicyRule { ports: Some((81, 81)), ..rule(2) };
        assert_eq!(first([other, allow]), Some(PolicyAction::Allow));
    }
}
