//! Router advertisements of the gateways: to everybody now and then, and to who asks.
//!
//! A network with a gateway of IPv6 is advertised unless `ra` is off. Hosts learn the default router, the
//! prefixes that are on the link and the MTU; they are not to make addresses of the prefixes (the
//! autonomous flag is not set), since addresses are configuration here. An internal network's gateway is
//! no default router: its lifetime is zero.
//!
//! The first worker sends them in its housekeeping: three soon after a network appears or its lifetime
//! changes, then one every 200 to 600 s, at random (RFC 4861 §6.2.4). When `ra` is switched off, three more say that
//! the gateway is no default router any more (§6.2.5). Of a network that goes nobody is left to be told: it
//! has no endpoints then. Who asks is answered at once and alone; the RFC's delay is
//! for links with several routers, and its limit for answers that everybody hears.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::config::{Network, Snapshot};
use crate::core::Cx;
use crate::frame::Frame;
use crate::nat::port_alloc::PortRng;
use crate::packet::ndp::{
    ALL_NODES, Body, Message, NdpOption, PrefixInfo, RouterAdvertisement, multicast_mac,
};
use crate::packet::types::{Mac, NetworkId, PortId};

/// Time between advertisements: RFC 4861 §6.2.1, `MinRtrAdvInterval` and `MaxRtrAdvInterval`.
const MIN_INTERVAL: Duration = Duration::from_secs(200);
const MAX_INTERVAL: Duration = Duration::from_secs(600);
/// RFC 4861 §10: `MAX_INITIAL_RTR_ADVERTISEMENTS`, and their interval.
const INITIAL: u8 = 3;
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
/// RFC 4861 §10: `MAX_FINAL_RTR_ADVERTISEMENTS`, and `MIN_DELAY_BETWEEN_RAS`.
const FINAL: u8 = 3;
const FINAL_INTERVAL: Duration = Duration::from_secs(3);
/// `AdvDefaultLifetime`: three times the longest interval, in seconds.
const LIFETIME: u16 = 1800;
/// `AdvCurHopLimit`: IANA's default.
const HOP_LIMIT: u8 = 64;
/// `AdvValidLifetime` and `AdvPreferredLifetime`, in seconds: 30 and 7 days.
const VALID: u32 = 2_592_000;
const PREFERRED: u32 = 604_800;
/// Prefixes that are advertised at most.
const PREFIXES: usize = 8;
/// The smallest MTU of a link that carries IPv6 (RFC 8200 §5).
const MIN_MTU: u16 = 1280;

/// When each network is advertised next. Of the first worker.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    /// By network.
    networks: Vec<Option<Turn>>,
    /// Networks whose turn it is, while they are being looked for.
    due: Vec<u16>,
}

#[derive(Debug, Clone, Copy)]
struct Turn {
    at: Timestamp,
    sent: u8,
    /// What is told; `None`: that the gateway is no router any more.
    lifetime: Option<u16>,
}

impl Turn {
    const fn begins(at: Timestamp, lifetime: Option<u16>) -> Self {
        Self { at, sent: 0, lifetime }
    }

    /// What is to be told of a network now, if it was told something.
    fn goes_on(self, network: &Network, now: Timestamp) -> Option<Self> {
        network.link_local?;
        let lifetime = lifetime_of(network);
        if self.lifetime == lifetime {
            let is_over = lifetime.is_none() && self.sent == FINAL;
            return (!is_over).then_some(self);
        }
        Some(Self::begins(now, lifetime))
    }
}

/// For how long the gateway is a default router; `None`: it does not advertise itself.
fn lifetime_of(network: &Network) -> Option<u16> {
    let lifetime = if network.config.internal { 0 } else { LIFETIME };
    network.is_advertised().then_some(lifetime)
}

impl Schedule {
    /// Finds the networks whose turn it is, and sets their next one; false: there are none.
    pub(crate) fn is_due(&mut self, config: &Snapshot, now: Timestamp, rng: &mut PortRng) -> bool {
        self.due.clear();
        for (index, slot) in self.networks.iter_mut().enumerate() {
            let id = u16::try_from(index).unwrap_or(u16::MAX);
            let network = config.network(NetworkId(id));
            *slot = slot.zip(network).and_then(|(turn, network)| turn.goes_on(network, now));
            if let Some(turn) = slot
                && turn.lifetime.is_none()
                && turn.at <= now
            {
                turn.sent += 1;
                turn.at = now + FINAL_INTERVAL;
                self.due.push(id);
            }
        }
        for network in config.networks().filter(|network| network.is_advertised()) {
            let id = network.config.id;
            if self.networks.len() <= id.index() {
                self.networks.resize(id.index() + 1, None);
            }
            let Some(slot) = self.networks.get_mut(id.index()) else { continue };
            let turn = slot.get_or_insert(Turn::begins(now, lifetime_of(network)));
            if turn.at > now {
                continue;
            }
            turn.sent = turn.sent.saturating_add(1);
            let wait = if turn.sent < INITIAL { INITIAL_INTERVAL } else { between(rng.next()) };
            turn.at = now + wait;
            self.due.push(id.0);
        }
        !self.due.is_empty()
    }

    /// Advertises the networks that have been found.
    pub(crate) fn send(&self, cx: &mut Cx<'_>) {
        for id in &self.due {
            let Some(network) = cx.config.network(NetworkId(*id)) else { continue };
            // The host's stack is behind the very gateway.
            for port in &network.untagged {
                advertise(cx, network, *port, ALL_NODES, multicast_mac(ALL_NODES));
            }
        }
    }
}

/// A time between the two, as a fraction of what is between them.
fn between(random: u64) -> Duration {
    let range = (MAX_INTERVAL - MIN_INTERVAL).as_millis();
    let millis = (u128::from(random) * range) >> 64;
    MIN_INTERVAL + Duration::from_millis(u64::try_from(millis).unwrap_or_default())
}

/// Answers a solicitation by `port`, if the gateway is a router of IPv6 and says so.
pub(crate) fn answer(
    cx: &mut Cx<'_>,
    network: &Network,
    port: PortId,
    question: &Message,
    asker: Mac,
) {
    if !network.is_advertised() {
        return;
    }
    if question.src.is_unspecified() {
        advertise(cx, network, port, ALL_NODES, multicast_mac(ALL_NODES));
    } else {
        advertise(cx, network, port, question.src, asker);
    }
}

fn advertise(cx: &mut Cx<'_>, network: &Network, port: PortId, to: Ipv6Addr, mac: Mac) {
    let Some(src) = network.link_local else { return };
    let Some(mut frame) = cx.pool.take() else { return };
    write(network, &mut frame, src, to, mac);
    cx.ports.push_generated(cx.counters, port, frame);
}

fn write(network: &Network, frame: &mut Frame, src: Ipv6Addr, dst: Ipv6Addr, mac: Mac) {
    let config = &network.config;
    let body = Body::RouterAdvertisement(RouterAdvertisement {
        hop_limit: HOP_LIMIT,
        lifetime: lifetime_of(network).unwrap_or(0),
        ..RouterAdvertisement::default()
    });
    // What stays empty is left out.
    let mut options = [NdpOption::Other(0); 2 + PREFIXES];
    let mtu = (config.mtu >= MIN_MTU).then(|| NdpOption::Mtu(config.mtu.into()));
    let prefixes = config.subnets.iter().filter_map(|subnet| match subnet.prefix.network() {
        IpAddr::V6(prefix) => Some(NdpOption::Prefix(PrefixInfo {
            prefix,
            len: subnet.prefix.prefix_len(),
            on_link: true,
            autonomous: false,
            valid: VALID,
            preferred: PREFERRED,
        })),
        IpAddr::V4(_) => None,
    });
    let all = [NdpOption::SourceLink(config.gateway_mac)].into_iter().chain(mtu).chain(prefixes);
    for (place, option) in options.iter_mut().zip(all) {
        *place = option;
    }
    Message { src, dst, body }.write(frame, mac, config.gateway_mac, &options);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_is_random_within_its_bounds() {
        assert_eq!(between(0), MIN_INTERVAL);
        let longest = between(u64::MAX);
        assert!(longest < MAX_INTERVAL && longest > MAX_INTERVAL - Duration::from_millis(2));
        assert_eq!(between(1 << 63), Duration::from_secs(400));
    }
}
