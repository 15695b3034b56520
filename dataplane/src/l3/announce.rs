//! Announcements: those on the wire of a dedicated uplink are told which MAC its addresses have, and the
//! containers of a network which one its gateway has, so that they need not wait until what they know is too old.
//!
//! Each address is announced when it appears, at start and after a restart too, when its MAC has changed, and when
//! the wire has a carrier again:
//! in IPv4 by an ARP announcement (RFC 5227 §3), in IPv6 by an unsolicited Neighbor Advertisement to all
//! nodes (RFC 4861 §7.2.6), [`TIMES`] times, [`INTERVAL`] apart. The first worker sends them in its
//! housekeeping, [`AT_ONCE`] at most each time. The addresses of a shared uplink are the host's. Who comes to a network
//! later asks.

use std::net::IpAddr;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::config::{Network, Snapshot, UplinkConfig, UplinkMode};
use crate::core::Cx;
use crate::engine::Link;
use crate::packet::arp::ArpPacket;
use crate::packet::ndp::{Message, NdpOption, link_local};
use crate::packet::types::{Mac, PortId};

/// RFC 4861 §10 `MAX_NEIGHBOR_ADVERTISEMENT`; RFC 5227 §1.1 has `ANNOUNCE_NUM` 2.
const TIMES: u8 = 3;
/// RFC 5227 §1.1 `ANNOUNCE_INTERVAL`; RFC 4861 §7.2.6 asks for one second at least.
const INTERVAL: Duration = Duration::from_secs(2);
/// Announcements in one round of housekeeping, of which there are ten a second.
const AT_ONCE: usize = 8;

/// What is announced, and how often it has been. Of the first worker.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    all: Vec<Announced>,
    /// The configuration that they follow from.
    generation: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Announced {
    what: What,
    sent: u8,
    at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct What {
    link: Link,
    mac: Mac,
    address: IpAddr,
    /// Of [`UplinkConfig::carrier_ups`]; of a network zero.
    carrier: u32,
}

impl Announcements {
    /// Finds what is to be announced; false: there is nothing.
    pub(crate) fn is_due(&mut self, config: &Snapshot, generation: u64, now: Timestamp) -> bool {
        if self.generation != Some(generation) {
            self.generation = Some(generation);
            let known = std::mem::take(&mut self.all);
            let dedicated = |uplink: &&UplinkConfig| uplink.mode == UplinkMode::Dedicated;
            let uplinks = config.uplinks().filter(dedicated).flat_map(of);
            let networks = config.networks().flat_map(of_gateway);
            self.all.extend(uplinks.chain(networks).map(|what| {
                let old = known.iter().find(|old| old.what == what);
                old.copied().unwrap_or(Announced { what, sent: 0, at: now })
            }));
        }
        self.all.iter().any(|it| it.is_due(now))
    }

    /// Sends what has been found.
    pub(crate) fn send(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        for announced in self.all.iter_mut().filter(|it| it.is_due(now)).take(AT_ONCE) {
            announced.at = now + INTERVAL;
            announced.sent += u8::from(send(cx, announced.what));
        }
    }
}

impl Announced {
    fn is_due(&self, now: Timestamp) -> bool {
        self.sent < TIMES && self.at <= now
    }
}

/// Every address that an uplink answers for.
fn of(uplink: &UplinkConfig) -> impl Iterator<Item = What> {
    let own = uplink.addresses.iter().map(|(address, _)| *address);
    let derived = IpAddr::V6(link_local(uplink.mac));
    let has_ipv6 = uplink.addresses.iter().any(|(address, _)| address.is_ipv6());
    let is_told = uplink.has(derived) || !has_ipv6;
    let all = own.chain((!is_told).then_some(derived));
    let UplinkConfig { id, mac, carrier_ups: carrier, .. } = *uplink;
    all.map(move |address| What { link: Link::Uplink(id), mac, address, carrier })
}

/// Every address of a network's gateway.
fn of_gateway(network: &Network) -> impl Iterator<Item = What> {
    let own = network.config.subnets.iter().filter_map(|subnet| subnet.gateway);
    let derived = network.link_local.map(IpAddr::V6);
    let (link, mac) = (Link::Network(network.config.id), network.config.gateway_mac);
    own.chain(derived).map(move |address| What { link, mac, address, carrier: 0 })
}

/// False: there was no buffer.
fn send(cx: &mut Cx<'_>, what: What) -> bool {
    match what.link {
        Link::Uplink(id) => {
            cx.config.uplink(id).is_none_or(|uplink| send_by(cx, uplink.port, what))
        }
        Link::Network(id) => {
            let Some(network) = cx.config.network(id) else { return true };
            // The host's leg is skipped: its stack has the address.
            network.untagged.iter().all(|port| send_by(cx, *port, what))
        }
    }
}

fn send_by(cx: &mut Cx<'_>, port: PortId, What { mac, address, .. }: What) -> bool {
    let Some(mut frame) = cx.pool.take() else { return false };
    match address {
        IpAddr::V4(address) => {
            ArpPacket::announcement(mac, address).write(&mut frame, Mac::BROADCAST, mac);
        }
        IpAddr::V6(address) => {
            let options = [NdpOption::TargetLink(mac)];
            Message::announcement(address, true).write_multicast(&mut frame, mac, &options);
        }
    }
    cx.ports.push_generated(cx.counters, port, frame);
    true
}
