//! Neighbor discovery both ways: answering for the gateway and for dedicated uplinks, asking for
//! neighbors, and believing answers, as [`arp`](super::arp) does for IPv4.
//!
//! Only what passes the checks of RFC 4861 §7.1 is acted upon ([`ndp::parse`]): its hop limit is 255, its
//! checksum right, and it is in no fragment. What does not is switched or dropped as any other packet.
//! Who may say what is the guard's business ([`guard6`](crate::l2::guard6)).
//!
//! The gateway of a network with IPv6 has its subnets' addresses, the anycast ones that every router of a
//! subnet has, and a link-local one. It asks from that;
//! so does a dedicated uplink. A shared one asks from the address that it shares with the host, as the
//! host's link-local address is not known here.

use std::net::Ipv6Addr;

use crate::config::{Network, Snapshot, UplinkConfig, UplinkMode};
use crate::core::Cx;
use crate::engine::Link;
use crate::frame::Frame;
use crate::l2::forward;
use crate::l3::ra;
use crate::packet::headers::{Headers, Net};
use crate::packet::ndp::{self, ALL_NODES, Body, Message, NdpOption, link_local, multicast_mac};
use crate::packet::parse::{ETH_LEN, IPV6_LEN, parse_net};
use crate::packet::types::{Mac, PortId, ip_proto};
use crate::pipeline::{From, Lane};
use crate::verdict::Verdict;

/// Whether an untagged IPv6 frame could be neighbor discovery. With extension headers, which nobody puts
/// before it, it is switched like any packet.
#[inline]
pub(crate) fn may_be(bytes: &[u8]) -> bool {
    const NEXT_HEADER: usize = ETH_LEN + 6;
    const KIND: usize = ETH_LEN + IPV6_LEN;
    bytes.first_chunk::<{ KIND + 1 }>().is_some_and(|head| {
        head[NEXT_HEADER] == ip_proto::ICMPV6
            && matches!(head[KIND], ndp::ROUTER_SOLICITATION..=ndp::REDIRECT)
    })
}

/// Neighbor discovery in a network. `None`: it is between others, or for all, and is switched like any
/// frame.
pub(crate) fn in_network(
    cx: &mut Cx<'_>,
    network: &Network,
    frame: &mut Frame,
    lane: &Lane,
) -> Option<Verdict> {
    let mut headers = lane.headers;
    parse_net(frame.bytes(), &mut headers);
    let (message, options) = ndp::parse(frame.bytes(), &headers).ok()?;
    let link = Link::Network(network.config.id);
    let gateway_mac = network.config.gateway_mac;
    match message.body {
        // The host's own stack asks about its own address only to find duplicates: nobody answers.
        Body::NeighborSolicitation { target }
            if (network.is_gateway(target) || network.is_anycast(target))
                && !matches!(lane.from, From::Host(_)) =>
        {
            let asker = options.source_link();
            if let Some(mac) = asker {
                cx.tables.neighbors.confirm(link, message.src, mac, false, cx.now);
            }
            let own = network.link_local.filter(|_| network.is_anycast(target));
            answer(frame, &message, asker.unwrap_or(headers.src), gateway_mac, own)
        }
        Body::NeighborAdvertisement { target, .. } if !network.is_gateway(target) => {
            let mac = options.target_link().unwrap_or(headers.src);
            believe(cx, link, &message, mac);
            // The host's stack may have asked, with the same MAC.
            (headers.dst == gateway_mac).then(|| {
                forward::to_host(cx, network, frame, headers.l3).unwrap_or(Verdict::Consume)
            })
        }
        Body::RouterSolicitation if matches!(lane.from, From::Endpoint(_)) => {
            ra::answer(cx, network, frame.ingress, &message, headers.src);
            None
        }
        _ => None,
    }
}

/// Neighbor discovery from a wire, which ends here. `None`: it is something else.
pub(crate) fn on_uplink(
    cx: &mut Cx<'_>,
    uplink: &UplinkConfig,
    frame: &mut Frame,
    headers: &Headers,
) -> Option<Verdict> {
    let Net::Ipv6(ip) = &headers.net else { return None };
    if !ndp::is_ndp(ip) {
        return None;
    }
    let Ok((message, options)) = ndp::parse(frame.bytes(), headers) else {
        return Some(Verdict::Consume);
    };
    let link = Link::Uplink(uplink.id);
    match message.body {
        Body::NeighborSolicitation { target } => {
            let ours = is_own(uplink, target);
            let asker = options.source_link();
            if let Some(mac) = asker
                && mac != uplink.mac
            {
                // Who asks for us will hear from us: a neighbor on our prefix is entered, any other one
                // only updated.
                let near = message.src.is_unicast_link_local() || uplink.is_on_link(message.src);
                cx.tables.neighbors.confirm(link, message.src, mac, ours && near, cx.now);
            }
            if uplink.mode == UplinkMode::Dedicated {
                let asker = asker.unwrap_or(headers.src);
                if ours {
                    return answer(frame, &message, asker, uplink.mac, None);
                }
                // Where the wire takes a routed endpoint for its own: a proxy speaks from its own address and
                // overrides nothing (RFC 4861 §7.2.8).
                let own = link_local(uplink.mac);
                if uplink.is_on_link(target) && cx.config.is_routed_endpoint(target) {
                    return answer(frame, &message, asker, uplink.mac, Some(own));
                }
            }
        }
        Body::NeighborAdvertisement { .. } => {
            let mac = options.target_link().unwrap_or(headers.src);
            if mac != uplink.mac {
                believe(cx, link, &message, mac);
            }
        }
        Body::Redirect { .. } | Body::RouterAdvertisement(_) | Body::RouterSolicitation => {}
    }
    Some(Verdict::Consume)
}

/// Whether it is an address of the uplink. The host's stack owns those of a shared one, and its
/// link-local address is not known here.
fn is_own(uplink: &UplinkConfig, address: Ipv6Addr) -> bool {
    let has_link_local = uplink.mode == UplinkMode::Dedicated
        && uplink.addresses.iter().any(|(address, _)| address.is_ipv6());
    uplink.has(address) || has_link_local && address == link_local(uplink.mac)
}

/// Turns a solicitation into its answer. Who only tries the address is told with all nodes, on its own
/// port: nobody else was asked. An anycast address is no source: the answer comes from `unicast` then, and
/// overrides nothing (RFC 4861 §7.2.7).
fn answer(
    frame: &mut Frame,
    question: &Message,
    asker: Mac,
    own: Mac,
    unicast: Option<Ipv6Addr>,
) -> Option<Verdict> {
    let mut answer = question.answer(true)?;
    if let (Some(src), Body::NeighborAdvertisement { overrides, .. }) = (unicast, &mut answer.body)
    {
        answer.src = src;
        *overrides = false;
    }
    let dst = if question.is_probe() { multicast_mac(ALL_NODES) } else { asker };
    answer.write(frame, dst, own, &[NdpOption::TargetLink(own)]);
    Some(Verdict::Answer)
}

/// Notes what a neighbor advertises, if it is known or was asked for. One that does not override keeps
/// what is known, and one that answers nothing confirms nothing (RFC 4861 §7.2.5).
fn believe(cx: &Cx<'_>, link: Link, message: &Message, mac: Mac) {
    let Body::NeighborAdvertisement { target, overrides, solicited, .. } = message.body else {
        return;
    };
    let neighbors = &cx.tables.neighbors;
    let known = neighbors.peek(link, target.into());
    if !overrides && known.is_some_and(|known| known != mac) {
        return;
    }
    if solicited {
        neighbors.confirm(link, target, mac, false, cx.now);
    } else {
        neighbors.announced(link, target, mac, cx.now);
    }
}

/// Asks for a neighbor: on all ports of a network, or on the wire.
pub(crate) fn ask(cx: &mut Cx<'_>, link: Link, address: Ipv6Addr) {
    let Some((question, src)) = question(cx.config, link, address) else { return };
    match link {
        Link::Network(id) => {
            let Some(network) = cx.config.network(id) else { return };
            // The host's leg is skipped: it has the very MAC we ask with.
            for port in &network.untagged {
                send(cx, *port, &question, src);
            }
        }
        Link::Uplink(id) => {
            let Some(uplink) = cx.config.uplink(id) else { return };
            send(cx, uplink.port, &question, src);
        }
    }
}

/// The question for a neighbor, and the MAC that asks. `None`: there is no address to ask from.
fn question(config: &Snapshot, link: Link, address: Ipv6Addr) -> Option<(Message, Mac)> {
    let (sender, src) = match link {
        Link::Network(id) => {
            let network = config.network(id)?;
            (network.link_local?, network.config.gateway_mac)
        }
        Link::Uplink(id) => {
            let uplink = config.uplink(id)?;
            let shared = uplink.address_for(address)?;
            let sender = match uplink.mode {
                UplinkMode::Dedicated => link_local(uplink.mac),
                UplinkMode::Shared => shared,
            };
            (sender, uplink.mac)
        }
    };
    Some((Message::solicitation(sender, address), src))
}

fn send(cx: &mut Cx<'_>, port: PortId, question: &Message, src: Mac) {
    let Some(mut frame) = cx.pool.take() else { return };
    question.write_multicast(&mut frame, src, &[NdpOption::SourceLink(src)]);
    cx.ports.push_generated(cx.counters, port, frame);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{NetworkConfig, SnapshotSpec, Subnet, UplinkConfig};
    use crate::l3::route::Prefix;
    use crate::packet::types::{NetworkId, UplinkId};

    const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const OUTSIDE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5);
    const FAR: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

    fn config(gateway: Option<Ipv6Addr>, mode: UplinkMode, outside: &[Ipv6Addr]) -> Snapshot {
        let with_prefix = |a: &Ipv6Addr| ((*a).into(), Prefix::new(*a, 64));
        Snapshot::build(SnapshotSpec {
            networks: vec![NetworkConfig {
                ra: true,
                ..NetworkConfig::new(
                    NetworkId(1),
                    Mac([4; 6]),
                    vec![Subnet {
                        prefix: Prefix::new(GATEWAY, 64),
                        gateway: gateway.map(Into::into),
                    }],
                )
            }],
            uplinks: vec![UplinkConfig {
                id: UplinkId(1),
                port: PortId(2),
                mode,
                mac: Mac([6; 6]),
                addresses: outside.iter().map(with_prefix).collect(),
                gateway: None,
                gateway6: None,
                nat_ports: Vec::new(),
                mtu: 1500,
                carrier_ups: 0,
            }],
            ..SnapshotSpec::default()
        })
        .unwrap()
    }

    fn asker(config: &Snapshot, link: Link) -> Option<(Ipv6Addr, Mac)> {
        let (message, mac) = question(config, link, FAR)?;
        assert_eq!(message.body, Body::NeighborSolicitation { target: FAR });
        assert_eq!(message.dst, ndp::solicited_node(FAR));
        Some((message.src, mac))
    }

    #[test]
    fn each_link_is_asked_from_an_address_of_its_own() {
        let (network, uplink) = (Link::Network(NetworkId(1)), Link::Uplink(UplinkId(1)));
        let all = config(Some(GATEWAY), UplinkMode::Dedicated, &[OUTSIDE]);
        assert_eq!(asker(&all, network), Some((link_local(Mac([4; 6])), Mac([4; 6]))));
        assert_eq!(asker(&all, uplink), Some((link_local(Mac([6; 6])), Mac([6; 6]))));
        let shared = config(Some(GATEWAY), UplinkMode::Shared, &[OUTSIDE]);
        assert_eq!(asker(&shared, uplink), Some((OUTSIDE, Mac([6; 6]))));
        // Nobody asks where there is no IPv6.
        let none = config(None, UplinkMode::Dedicated, &[]);
        assert_eq!(asker(&none, network), None);
        assert_eq!(asker(&none, uplink), None);
        assert_eq!(asker(&none, Link::Network(NetworkId(9))), None);
    }
}
