//! A frame in words that are the same for both worlds and both IP versions: hosts by name, ports of
//! the outside address that nobody chose by `p`, no identifications and no hop limits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tests::packet::{Wire, ip6};
use tests::rig::network_header;
use tests::sums;

use super::world::{CLIENT, INSIDE, OUTSIDE, PEER, SERVER, STRANGER, UPLINK};

/// Ports of the outside address that are somebody's choice.
const CHOSEN: [u16; 6] = [8080, 8081, 8082, 8083, 9999, 53];

fn name(address: IpAddr) -> String {
    let known = [
        (INSIDE[0], "one"),
        (INSIDE[1], "two"),
        (PEER, "gateway"),
        (UPLINK, "uplink"),
        (OUTSIDE, "outside"),
        (SERVER, "server"),
        (CLIENT, "client"),
        (STRANGER, "stranger"),
    ];
    let found = known.iter().find(|(ip, _)| address == IpAddr::V4(*ip) || address == ip6(*ip));
    found.map_or_else(|| address.to_string(), |(_, name)| (*name).to_owned())
}

fn end(address: IpAddr, port: Option<u16>) -> String {
    let at = name(address);
    match port {
        None => at,
        Some(port) if at == "uplink" && !CHOSEN.contains(&port) => format!("{at}:p"),
        Some(port) => format!("{at}:{port}"),
    }
}

/// `None`: what hosts say for themselves (ARP, Neighbor Discovery, group membership), or no IP.
pub(crate) fn describe(wire: &Wire) -> Option<String> {
    let l3 = network_header(&wire.bytes);
    let text = packet(&wire.bytes[l3..], true)?;
    let right = sums::check(wire).are_right();
    Some(if right { text } else { format!("{text}, wrong checksum") })
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// A packet, or as much of it as an error quotes.
fn packet(bytes: &[u8], whole: bool) -> Option<String> {
    let (src, dst, mut proto, mut at, len, mut fragment): (IpAddr, IpAddr, _, _, _, _);
    match bytes.first()? >> 4 {
        4 => {
            let address = |at: usize| <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap();
            (src, dst) = (Ipv4Addr::from(address(12)).into(), Ipv4Addr::from(address(16)).into());
            (proto, at, len) =
                (bytes[9], usize::from(bytes[0] & 15) * 4, usize::from(be16(bytes, 2)?));
            let field = be16(bytes, 6)?;
            fragment = (usize::from(field & 0x1fff) * 8, field & 0x2000 != 0);
        }
        6 => {
            let address = |at: usize| <[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap();
            (src, dst) = (Ipv6Addr::from(address(8)).into(), Ipv6Addr::from(address(24)).into());
            (proto, at, len) = (bytes[6], 40, 40 + usize::from(be16(bytes, 4)?));
            fragment = (0, false);
            if proto == 0 {
                (proto, at) = (bytes[40], 48 + usize::from(bytes[41]) * 8);
            }
            if proto == 44 {
                let field = be16(bytes, at + 2)?;
                fragment = (usize::from(field & !7), field & 1 != 0);
                (proto, at) = (bytes[at], at + 8);
            }
        }
        _ => return None,
    }
    let carried = bytes.get(at..len.min(bytes.len()))?;
    let sum = |payload: &[u8]| format!("{} bytes {:04x}", payload.len(), sums::sum(payload));
    if fragment != (0, false) {
        let (offset, more) = fragment;
        let more = if more { "+" } else { "" };
        let (src, dst) = (end(src, None), end(dst, None));
        // The first one's begins with what was translated.
        let payload = if offset == 0 { carried.get(8..)? } else { carried };
        return Some(format!("fragment {proto} {offset}{more} {src} > {dst} {}", sum(payload)));
    }
    let ports = (be16(carried, 0), be16(carried, 2));
    let said = |payload: Option<&[u8]>| match payload {
        Some(payload) if whole => format!(" {}", sum(payload)),
        _ => String::new(),
    };
    Some(match proto {
        6 => {
            let header = usize::from(carried.get(12).copied().unwrap_or(0x50) >> 4) * 4;
            let flags = carried.get(13).map_or_else(String::new, |flags| {
                let names = ["fin", "syn", "rst", "psh", "ack"];
                let set = (0..5).filter(|bit| flags & (1 << bit) != 0).map(|bit| names[bit]);
                format!(" {}", set.collect::<Vec<_>>().join(" "))
            });
            let flags = if whole { flags } else { String::new() };
            let payload = said(carried.get(header..));
            format!("tcp {} > {}{flags}{payload}", end(src, ports.0), end(dst, ports.1))
        }
        17 => {
            let payload = said(carried.get(8..));
            format!("udp {} > {}{payload}", end(src, ports.0), end(dst, ports.1))
        }
        132 => {
            // The first chunk's type; ports and sum are before it.
            let chunk = carried.get(12).map_or_else(String::new, |kind| format!(" chunk {kind}"));
            let payload = said(carried.get(12..));
            format!("sctp {} > {}{chunk}{payload}", end(src, ports.0), end(dst, ports.1))
        }
        1 | 58 => return icmp(proto, carried, &name(src), &name(dst), &said(carried.get(8..))),
        // IGMP.
        2 => return None,
        other => format!("protocol {other} {} > {}{}", name(src), name(dst), sum(carried)),
    })
}

fn icmp(proto: u8, message: &[u8], src: &str, dst: &str, payload: &str) -> Option<String> {
    let (kind, code) = (message[0], message[1]);
    let what = match (proto, kind, code) {
        (1, 8, 0) | (58, 128, 0) => return Some(format!("echo {src} > {dst}{payload}")),
        (1, 0, 0) | (58, 129, 0) => return Some(format!("echo reply {src} > {dst}{payload}")),
        (58, 130..=137 | 143, _) => return None,
        (1, 3, 0) | (58, 1, 0) => "no route".to_owned(),
        (1, 3, 1) | (58, 1, 3) => "host unreachable".to_owned(),
        (1, 3, 2) | (58, 4, 1) => "protocol unreachable".to_owned(),
        (1, 3, 3) | (58, 1, 4) => "port unreachable".to_owned(),
        (1, 3, 4) => format!("too big for {}", be16(message, 6)?),
        (58, 2, 0) => format!("too big for {}", be16(message, 6)?),
        (1, 3, 13) | (58, 1, 1) => "prohibited".to_owned(),
        (1, 11, 0) | (58, 3, 0) => "time exceeded".to_owned(),
        _ => format!("icmp {kind}/{code}"),
    };
    let quoted = message.get(8..).and_then(|quote| packet(quote, false));
    Some(format!("{what} {src} > {dst} about [{}]", quoted.unwrap_or_default()))
}
