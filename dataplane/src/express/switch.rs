//! Frames between two hosts that are where they have been heard in this very second: nothing is to be
//! learned, and the FDB is asked for two places alone.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::links::LinkHead;
use crate::config::PortRole;
use crate::core::Cx;
use crate::frame::Frame;
use crate::io::vnet_hdr::VnetHdr;
use crate::l2::fdb::network_of;
use crate::l2::forward::fits;
use crate::l2::{guard, guard6};
use crate::packet::parse::{ETH_LEN, ipv4_source_at};
use crate::packet::types::{NetworkId, PortId, ethertype};
use crate::pipeline::{Lane, Shortcut};
use crate::verdict::Verdict;

/// Length of a link header without a tag.
const LINK: u16 = 14;

/// What the frames of a port must be like, for as long as they come from the same one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    network: NetworkId,
    gateway: u64,
    /// Where there is a guard.
    guard: Option<Own<'a>>,
}

/// The only MAC and the only addresses of a port.
#[derive(Debug, Clone, Copy)]
struct Own<'a> {
    mac: u64,
    ipv4: &'a [Ipv4Addr],
    /// See [`crate::config::PortEntry::own6`].
    ipv6: &'a [Ipv6Addr],
}

impl<'a> Source<'a> {
    /// `None`: frames of this port go the whole way.
    pub(crate) fn of(cx: &Cx<'a>, port: PortId) -> Option<Self> {
        // What is looked up is VLAN 0.
        let port = cx.config.port(port).filter(|port| port.untagged() == Some(0))?;
        let PortRole::Endpoint { network, mac, ipv4, guard, .. } = &port.config.role else {
            return None;
        };
        let own = Own { mac: mac.as_u64(), ipv4, ipv6: &port.own6 };
        // Where the policy is about what is switched, each packet is looked at.
        let there = cx.config.network(*network).filter(|there| !there.policy.looks_inside())?;
        Some(Self {
            network: *network,
            gateway: there.config.gateway_mac.as_u64(),
            guard: guard.then_some(own),
        })
    }

    /// Whether a frame is one that the stages would admit and switch. Its FDB keys then.
    #[inline(always)]
    fn admit(&self, head: &LinkHead, frame: &Frame) -> Option<(u64, u64)> {
        const GROUP: u64 = 1 << 40;
        let (dst, src) = (head.dst(), head.src());
        if (dst | src) & GROUP != 0
            || src == 0
            || dst == self.gateway
            || src == self.gateway
            || !guard::is_ordinary(frame.bytes(), head.kind())
            || !self.guard.is_none_or(|own| src == own.mac && own.may_send(head.kind(), frame))
        {
            return None;
        }
        let network = u64::from(self.network.0);
        Some((src << 16 | network, dst << 16 | network))
    }
}

impl Own<'_> {
    /// Whether a frame of this EtherType is from an address of the port's.
    #[inline(always)]
    fn may_send(&self, kind: u16, frame: &Frame) -> bool {
        let bytes = frame.bytes();
        match kind {
            ethertype::IPV4 => {
                ipv4_source_at(bytes, ETH_LEN).is_some_and(|source| self.ipv4.contains(&source))
            }
            ethertype::IPV6 => self.may_send6(bytes),
            _ => true,
        }
    }

    #[inline(never)]
    fn may_send6(&self, bytes: &[u8]) -> bool {
        guard6::is_own_source(bytes, ETH_LEN, self.ipv6)
    }
}

/// Asks for the places of both hosts, if the frame may be switched.
#[inline(always)]
pub(crate) fn prepare(
    cx: &Cx<'_>,
    source: &Source<'_>,
    head: &LinkHead,
    frame: &Frame,
    lane: &mut Lane,
) {
    let Some((src, dst)) = source.admit(head, frame) else { return };
    let fdb = &cx.tables.fdb;
    lane.src_hash = fdb.hash_key(src);
    lane.dst_hash = fdb.hash_key(dst);
    fdb.prefetch(lane.src_hash);
    fdb.prefetch(lane.dst_hash);
    lane.tuple.addresses = src;
    lane.tuple.rest = dst;
    lane.shortcut = Shortcut::Switch;
}

/// What is known of the port to which the frame before was switched.
#[derive(Debug, Default)]
pub(crate) struct LastPort(Option<(PortId, u16)>);

/// Switches a frame that was prepared, if both hosts are where they were. False: it has to go the whole
/// way.
#[inline(always)]
pub(crate) fn switch(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    last: &mut LastPort,
) -> bool {
    let fdb = &cx.tables.fdb;
    let (src, dst) = (lane.tuple.addresses, lane.tuple.rest);
    let ageing = cx.config.ageing_of(network_of(dst));
    if !fdb.is_known(lane.src_hash, src, frame.ingress, cx.secs) {
        return false;
    }
    let Some(port) = fdb.lookup_key(lane.dst_hash, dst, cx.secs, ageing) else { return false };
    let known = last.0.filter(|(same, _)| *same == port).map(|(_, mtu)| mtu);
    let Some(mtu) = known.or_else(|| mtu_between(cx, dst, port)) else { return false };
    last.0 = Some((port, mtu));
    if port == frame.ingress || !fits(frame, LINK, mtu) {
        return false;
    }
    // What it claims of its checksum nobody has to believe.
    frame.vnet = VnetHdr::default();
    lane.verdict = Some(Verdict::Forward(port));
    lane.shortcut = Shortcut::None;
    if lane.comes_again {
        remember(cx, frame, port, mtu);
    }
    true
}

/// The MTU of a port that endpoints of the network of `key` may send to.
fn mtu_between(cx: &Cx<'_>, key: u64, port: PortId) -> Option<u16> {
    let network = cx.config.network(network_of(key))?;
    let egress = cx.config.port(port).filter(|port| {
        port.network == Some(network.config.id) && port.leaves_tagged(0, false) == Some(false)
    })?;
    let open = network.config.icc || !matches!(egress.config.role, PortRole::Endpoint { .. });
    open.then_some(egress.config.mtu)
}

/// Remembers a link header that comes in trains.
#[cold]
fn remember(cx: &mut Cx<'_>, frame: &Frame, port: PortId, mtu: u16) {
    let Some(head) = LinkHead::of(frame) else { return };
    cx.express.links.learn_port(head, cx.express.epoch, frame, port, mtu);
}
