//! Policy at the beginning of connections: what is routed, and what is published. What is switched inside a
//! network is in [`super::inside`].

use crate::config::Flow;
use crate::conntrack::Key;
use crate::core::Cx;
use crate::engine::{Link, NatRule};
use crate::nat::dnat::DnatTarget;
use crate::packet::types::NetworkId;
use crate::pipeline::{From, Lane};
use crate::verdict::DropReason;

/// Asks the networks at both ends whether a packet that came as `tuple`, and was led to be `to`, may begin a
/// connection. What the host itself says is not theirs to judge.
#[cold]
pub(super) fn may_begin<K: Key>(
    cx: &Cx<'_>,
    lane: &mut Lane,
    (tuple, to): (K, K),
    link: Option<Link>,
    target: Option<&DnatTarget<K::Addr>>,
    bytes: u64,
) -> Result<(), DropReason> {
    let from = match lane.from {
        From::Endpoint(id) => Some(id),
        From::Host(_) => return Ok(()),
        From::Uplink(_) | From::Nowhere => None,
    };
    let network = match (target, link) {
        (Some(target), _) => Some(target.network),
        (None, Some(Link::Network(id))) => Some(id),
        (None, Some(Link::Uplink(_)) | None) => None,
    };
    let by_host_port = target.is_some_and(|target| target.rule != 0) && tuple.dst() != to.dst();
    let flow = Flow { host_port: by_host_port.then_some(tuple.dst_port()), ..of(to) };
    decide(cx, lane, (from, network), &flow, bytes)
}

/// Asks, counts and notes.
pub(super) fn decide(
    cx: &Cx<'_>,
    lane: &mut Lane,
    (from, to): (Option<NetworkId>, Option<NetworkId>),
    flow: &Flow,
    bytes: u64,
) -> Result<(), DropReason> {
    let decision = cx.config.decide(from, to, flow);
    for rule in decision.rules.into_iter().filter(|rule| *rule != 0) {
        cx.tables.count_rule(NatRule::Policy(rule), bytes);
    }
    lane.policy = decision.last();
    if decision.is_denied { Err(DropReason::Policy) } else { Ok(()) }
}

/// A tuple as rules see it.
pub(super) fn of<K: Key>(tuple: K) -> Flow {
    Flow {
        src: tuple.src().into(),
        dst: tuple.dst().into(),
        proto: tuple.proto(),
        port: tuple.dst_port(),
        host_port: None,
    }
}
