//! Policy inside a network: what endpoints say to each other without the gateway, where a rule may be about it.
//!
//! To know who began, what is switched there is tracked like what is routed: without translation, in the same
//! table, with the same limits. A policy says who may begin, so numbers and states that contradict the
//! connection are the receiver's to judge, as everywhere on a switch. Whoever is heard first in the middle of
//! a conversation may be its client or its server: the rules have to allow either.
//!
//! Frames for groups, and what has no tuple, begin nothing: each is judged by itself. ARP, Neighbor Discovery,
//! IGMP and MLD are the network's own and pass, as does what is not IP.

use crate::config::{Flow, Network};
use crate::conntrack::tcp::TcpState;
use crate::conntrack::{Direction, Key, NewConnection, timeout};
use crate::core::Cx;
use crate::frame::Frame;
use crate::l2::guard;
use crate::l3::fragments::{Carries, Datagram, Entered, Source};
use crate::nat::begin::{booking, first_state};
use crate::nat::established::{Seen, judge, note, settle};
use crate::nat::ip::{Ip, Tracked};
use crate::nat::lookup::zone;
use crate::nat::outside::{Refusal, insert};
use crate::nat::policy;
use crate::packet::headers::{Chain, L4, Net};
use crate::packet::parse::parse_net;
use crate::packet::types::{ethertype, tcp_flags};
use crate::pipeline::Lane;
use crate::verdict::DropReason;

/// RFC 9776.
const IGMP: u8 = 2;

/// Whether a frame of an endpoint may go on to others of its network.
#[inline(never)]
pub(crate) fn admit(
    cx: &Cx<'_>,
    network: &Network,
    frame: &Frame,
    lane: &mut Lane,
) -> Result<(), DropReason> {
    let mut headers = lane.headers;
    // What is in front of a packet hides it from no receiver that steps over it as the guard does.
    if guard::is_wrapped(headers.ethertype) && !guard::unwrap(frame.bytes(), &mut headers) {
        return Err(DropReason::Policy);
    }
    parse_net(frame.bytes(), &mut headers);
    match &headers.net {
        // Nobody could say what it carries, but its receiver may.
        Net::Malformed(_) if headers.ethertype == ethertype::IPV6 => Err(DropReason::Ipv6Malformed),
        Net::Malformed(_) => Err(DropReason::Ipv4Malformed),
        Net::Ipv4(ip) if ip.proto == IGMP => Ok(()),
        Net::Ipv4(ip) => packet(cx, network, frame, lane, ip),
        Net::Ipv6(ip) if ip.chain != Chain::Whole => Err(DropReason::Ipv6Malformed),
        Net::Ipv6(ip) => packet(cx, network, frame, lane, ip),
        Net::Arp | Net::Other | Net::Unread => Ok(()),
    }
}

fn packet<P: Ip>(
    cx: &Cx<'_>,
    network: &Network,
    frame: &Frame,
    lane: &mut Lane,
    ip: &P,
) -> Result<(), DropReason> {
    if ip.l4() == L4::Truncated {
        return Err(DropReason::L4Malformed);
    }
    if !ip.is_fragment() {
        return whole(cx, network, frame, lane, ip);
    }
    let piece = ip.piece().ok_or(DropReason::FragmentMalformed)?;
    let datagram = Datagram::of(ip, Source::Port(frame.ingress));
    let lifetime = P::fragment_timeout(cx.config.timeouts_of(network.config.id));
    let fragments = &cx.tables.fragments;
    match fragments.enter(datagram, piece, cx.early.worker(), cx.now, lifetime) {
        Entered::First(number) => {
            let passed = whole(cx, network, frame, lane, ip);
            let tuple = ip.tuple(zone(lane.from)).filter(|_| is_tracked(lane, ip));
            let carries = tuple.map(|tuple| Carries {
                src_port: tuple.src_port(),
                dst_port: tuple.dst_port(),
                proto: tuple.proto(),
                id: None,
            });
            fragments.settle(&datagram, number, passed.is_ok().then_some(carries));
            passed
        }
        Entered::Follow(None) => Ok(()),
        Entered::Follow(Some(Carries { src_port, dst_port, proto, .. })) => {
            let zone = zone(lane.from);
            let tuple = P::Tuple::new(ip.src(), ip.dst(), src_port, dst_port, zone, proto);
            match P::Tuple::table(cx.tables).lookup(tuple, cx.secs) {
                Some(_) => Ok(()),
                // It has ended since, because the policy has changed.
                None => Err(DropReason::FragmentUntracked),
            }
        }
        // Senders send in order, and a switch keeps it: whoever sends the ports last hides them.
        Entered::Wait(number) => {
            fragments.give_up(&datagram, number);
            Err(DropReason::FragmentUntracked)
        }
        Entered::Drop(reason) => Err(reason),
    }
}

/// Whether a packet belongs to a connection: those for groups have many who answer, or none.
fn is_tracked<P: Ip>(lane: &Lane, ip: &P) -> bool {
    !lane.headers.dst.is_multicast() && !ip.is_for_many()
}

/// A packet, or the first fragment of one.
fn whole<P: Ip>(
    cx: &Cx<'_>,
    network: &Network,
    frame: &Frame,
    lane: &mut Lane,
    ip: &P,
) -> Result<(), DropReason> {
    if let L4::Icmp { kind, .. } = ip.l4() {
        if P::is_of_the_link(kind) {
            return Ok(());
        }
        if P::is_error(kind) {
            let inner = ip.quoted(frame.bytes())?;
            // Told to whom it concerns: to others anything could be said behind a quote.
            let about = P::answers(&inner, zone(lane.from)).filter(|it| it.dst() == ip.dst());
            let known = about.and_then(|it| P::Tuple::table(cx.tables).lookup(it, cx.secs));
            return if known.is_some() { Ok(()) } else { alone(cx, network, lane, ip) };
        }
    }
    match ip.tuple(zone(lane.from)).filter(|_| is_tracked(lane, ip)) {
        Some(tuple) => tracked(cx, network, frame, lane, ip, tuple),
        None => alone(cx, network, lane, ip),
    }
}

/// A packet that neither has a connection nor begins one.
fn alone<P: Ip>(cx: &Cx<'_>, network: &Network, lane: &mut Lane, ip: &P) -> Result<(), DropReason> {
    let port = match ip.l4() {
        L4::Tcp { dst_port, .. } | L4::Udp { dst_port, .. } | L4::Sctp { dst_port, .. } => dst_port,
        _ => 0,
    };
    let (src, dst) = (ip.src().into(), ip.dst().into());
    let flow = Flow { src, dst, proto: ip.proto(), port, host_port: None };
    decide(cx, network, lane, &flow, ip)
}

fn decide<P: Ip>(
    cx: &Cx<'_>,
    network: &Network,
    lane: &mut Lane,
    flow: &Flow,
    ip: &P,
) -> Result<(), DropReason> {
    let id = Some(network.config.id);
    policy::decide(cx, lane, (id, id), flow, u64::from(ip.total_len()))
}

fn tracked<P: Ip>(
    cx: &Cx<'_>,
    network: &Network,
    frame: &Frame,
    lane: &mut Lane,
    ip: &P,
    tuple: P::Tuple,
) -> Result<(), DropReason> {
    let seen = Seen::of(frame, ip, tuple.proto());
    match P::Tuple::table(cx.tables).lookup(tuple, cx.secs) {
        Some(mut hit) => {
            let (original, is_answer) = match hit.direction {
                Direction::Original => (tuple, false),
                Direction::Reply => (hit.other, true),
            };
            // Who was spoken to begins another one, from the very port.
            if is_answer && is_first_segment(ip) {
                decide(cx, network, lane, &policy::of(tuple), ip)?;
            }
            if let Ok(judged) = judge(cx, &seen, &hit) {
                // What the other worker's packet made of it is as good.
                let _ = settle(cx, &seen, &mut hit, judged, original.dst_port());
            }
            Ok(())
        }
        None => begin(cx, network, frame, lane, ip, (tuple, &seen)),
    }
}

fn is_first_segment(ip: &impl Ip) -> bool {
    use tcp_flags::{ACK, SYN};
    matches!(ip.l4(), L4::Tcp { flags, .. } if flags & (SYN | ACK) == SYN)
}

fn begin<P: Ip>(
    cx: &Cx<'_>,
    network: &Network,
    frame: &Frame,
    lane: &mut Lane,
    ip: &P,
    (tuple, seen): (P::Tuple, &Seen),
) -> Result<(), DropReason> {
    let first = first_state(ip, seen);
    let zone = tuple.zone();
    decide(cx, network, lane, &policy::of(tuple), ip)?;
    if first.is_none() {
        decide(cx, network, lane, &policy::of(tuple.reversed(zone)), ip)?;
    }
    let picked_up = match ip.l4() {
        L4::Tcp { flags, .. } if TcpState::continues(flags) => Some(TcpState::PickedUp as u8),
        _ => None,
    };
    // The end of what nobody knows begins nothing.
    let Some(state) = first.or(picked_up) else { return Ok(()) };
    let (id, service) = (network.config.id, tuple.dst_port());
    let idle = timeout::idle(cx.config.timeouts_of(id), tuple.proto(), service, state);
    let new = NewConnection {
        original: tuple,
        reply: tuple.reversed(zone),
        state,
        flags: booking(cx, frame.ingress, lane.from, ip.src()),
        network: id,
        rule: 0,
        deadline: cx.secs.saturating_add(u32::try_from(idle.as_secs()).unwrap_or(u32::MAX)),
    };
    match insert(cx, &new) {
        Ok(hit) => {
            note(cx, seen, &hit, &seen.begins(state), service);
            Ok(())
        }
        // Another worker was faster; or the answers look like another connection's, which a router has
        // translated: they will pass with that one.
        Err(Refusal::Exists(_) | Refusal::Drop(DropReason::SnatPortsExhausted)) => Ok(()),
        Err(Refusal::Drop(reason)) => Err(reason),
    }
}
