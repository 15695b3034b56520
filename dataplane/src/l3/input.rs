//! What reaches the gateway's MAC or an uplink's: is it a sound packet between addresses that can be
//! routed?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::LocalAddress;
use crate::core::Cx;
use crate::frame::Frame;
use crate::packet::checksum;
use crate::packet::headers::{Chain, Ipv4, Ipv6, L4, Net};
use crate::packet::parse::{IPV4_LEN, parse_net};
use crate::packet::types::ethertype;
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

// IANA "IP Option Numbers", with the bits for "copied" and class.
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LSRR: u8 = 131;
const SSRR: u8 = 137;

pub(crate) fn stage(cx: &mut Cx<'_>, frames: &[Frame], lanes: &mut [Lane]) {
    for (one, lane) in frames.iter().zip(lanes) {
        if lane.is_open() {
            frame(cx, one, lane);
        }
    }
}

#[inline]
pub(crate) fn frame(cx: &Cx<'_>, frame: &Frame, lane: &mut Lane) {
    parse_net(frame.bytes(), &mut lane.headers);
    if let Err(reason) = check(cx, frame, lane) {
        lane.verdict = Some(match lane.from {
            // The host's stack receives the same frame and counts its own errors.
            From::Uplink(id) if is_shared(cx, id) => Verdict::Consume,
            _ => Verdict::Drop(reason),
        });
    }
}

fn is_shared(cx: &Cx<'_>, id: crate::packet::types::UplinkId) -> bool {
    cx.config.uplink(id).is_some_and(|u| u.mode == crate::config::UplinkMode::Shared)
}

#[inline]
fn check(cx: &Cx<'_>, frame: &Frame, lane: &Lane) -> Result<(), DropReason> {
    match &lane.headers.net {
        Net::Ipv4(ip) => check4(cx, frame, lane, ip),
        Net::Ipv6(ip) => check6(cx, lane, ip),
        Net::Malformed(_) if lane.headers.ethertype == ethertype::IPV6 => {
            Err(DropReason::Ipv6Malformed)
        }
        Net::Malformed(_) => Err(DropReason::Ipv4Malformed),
        Net::Arp | Net::Other | Net::Unread => Err(DropReason::NoService),
    }
}

#[inline(always)]
fn check4(cx: &Cx<'_>, frame: &Frame, lane: &Lane, ip: &Ipv4) -> Result<(), DropReason> {
    if !is_routed(cx, lane.from, ip.src) {
        return Err(DropReason::NoGateway);
    }
    if ip.l4 == L4::Truncated {
        return Err(DropReason::L4Malformed);
    }
    if !header_is_sound(frame, lane, ip) {
        return Err(DropReason::Ipv4Checksum);
    }
    if usize::from(ip.header_len) > IPV4_LEN && is_source_routed(frame, ip) {
        return Err(DropReason::SourceRouted);
    }
    if !can_be_source(ip.src) || ip.dst.is_loopback() || ip.dst.is_unspecified() {
        return Err(DropReason::Martian);
    }
    if ip.dst.is_multicast() || ip.dst.is_broadcast() {
        return Err(DropReason::NotUnicast);
    }
    not_our_own(cx, lane.from, ip.src)
}

#[inline(never)]
fn check6(cx: &Cx<'_>, lane: &Lane, ip: &Ipv6) -> Result<(), DropReason> {
    if !is_routed(cx, lane.from, ip.src) {
        return Err(DropReason::Ipv6NotRouted);
    }
    // A packet whose end nobody reads alike is no packet to translate (RFC 5095, RFC 7112).
    if ip.chain != Chain::Whole {
        return Err(DropReason::Ipv6Malformed);
    }
    if ip.l4 == L4::Truncated {
        return Err(DropReason::L4Malformed);
    }
    if !can_be_source6(ip.src) || is_nowhere(ip.dst) {
        return Err(DropReason::Martian);
    }
    if ip.dst.is_multicast() {
        return Err(DropReason::NotUnicast);
    }
    not_our_own(cx, lane.from, ip.src)
}

/// Whether the network has a gateway of this family, the uplink an address to speak from.
#[inline(always)]
fn is_routed(cx: &Cx<'_>, from: From, source: impl Into<IpAddr>) -> bool {
    match from {
        From::Endpoint(id) | From::Host(id) => {
            cx.config.network(id).is_some_and(|network| network.routes(source))
        }
        // What has none does not come here.
        From::Uplink(_) => true,
        From::Nowhere => false,
    }
}

/// Our own addresses never come in as a source, except from the host's stack, which has them.
#[inline(always)]
fn not_our_own(cx: &Cx<'_>, from: From, source: impl Into<IpAddr>) -> Result<(), DropReason> {
    match (cx.config.local(source), from) {
        (Some(LocalAddress::Gateway(_) | LocalAddress::Uplink(_)), From::Endpoint(_))
        | (Some(_), From::Uplink(_)) => Err(DropReason::Martian),
        _ => Ok(()),
    }
}

fn header_is_sound(frame: &Frame, lane: &Lane, ip: &Ipv4) -> bool {
    let l3 = usize::from(lane.headers.l3);
    let header = frame.bytes().get(l3..l3 + usize::from(ip.header_len));
    header.is_some_and(checksum::ipv4_header_is_valid)
}

/// Whether its options name routers that it is to go by: a way past filters, dropped by default (RFC 7126
/// §4.3.5, §4.4.5), as by Linux with `accept_source_route=0`, whether or not any of the way is left.
#[cold]
fn is_source_routed(frame: &Frame, ip: &Ipv4) -> bool {
    let l3 = ip.l3_offset();
    let options = frame.bytes().get(l3 + IPV4_LEN..l3 + usize::from(ip.header_len));
    ipv4_options(options.unwrap_or_default()).any(|kind| matches!(kind, LSRR | SSRR))
}

/// The kinds of the options, as far as they can be read (RFC 791 §3.1).
fn ipv4_options(mut rest: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let kind = *rest.first().filter(|kind| **kind != END_OF_OPTIONS)?;
        let length = if kind == NO_OPERATION { 1 } else { usize::from(*rest.get(1)?).max(2) };
        rest = rest.get(length..).unwrap_or_default();
        Some(kind)
    })
}

/// RFC 1812 §5.3.7 and RFC 6890: "this network", loopback, multicast and class E.
fn can_be_source(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first != 0 && first != 127 && first < 224
}

/// RFC 4291 §2.5.2, §2.5.3, §2.5.5.2 and §2.7: unspecified, loopback, IPv4 in disguise and multicast.
fn can_be_source6(address: Ipv6Addr) -> bool {
    !is_nowhere(address) && !address.is_multicast()
}

/// Whether no packet on a wire is addressed like this.
fn is_nowhere(address: Ipv6Addr) -> bool {
    address.is_unspecified() || address.is_loopback() || address.to_ipv4_mapped().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_one_after_the_other() {
        let kinds = |options: &[u8]| ipv4_options(options).collect::<Vec<_>>();
        assert_eq!(kinds(&[]), []);
        assert_eq!(kinds(&[0, 131, 3, 4]), [], "behind the end");
        assert_eq!(kinds(&[1, 1, 131, 3, 4]), [1, 1, 131]);
        // Record route, whose data are no options; then a strict route.
        assert_eq!(kinds(&[7, 7, 4, 131, 3, 4, 0, 137, 3, 4, 0]), [7, 137]);
        // A length that cannot be ends nothing too early, nor the reading never.
        assert_eq!(kinds(&[7, 0, 131, 3, 4, 0]), [7, 131]);
        assert_eq!(kinds(&[7, 200, 131, 3]), [7]);
        assert_eq!(kinds(&[131]), [], "cut short");
    }
}
