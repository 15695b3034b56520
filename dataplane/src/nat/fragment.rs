//! Fragments of routed packets: the first one has a connection or begins one, the others follow it, those
//! that overtook it later. See [`crate::l3::fragments`].

use std::net::IpAddr;

use crate::conntrack::Key;
use crate::core::{BATCH, Cx, Transmit};
use crate::egress;
use crate::frame::Frame;
use crate::l3::fragments::early::{Group, Held};
use crate::l3::fragments::{Carries, Datagram, Entered, Label, News, Source};
use crate::nat::ip::{Ip, Tracked};
use crate::nat::local;
use crate::nat::lookup::zone;
use crate::nat::translate::{established, not_ours, packet};
use crate::packet::headers::Net;
use crate::packet::parse::parse_net;
use crate::packet::types::PortId;
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

/// A fragment, first or later.
#[inline(never)]
pub(super) fn pass<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    ip: &P,
) -> Result<Verdict, DropReason> {
    let piece = ip.piece().ok_or(DropReason::FragmentMalformed)?;
    let datagram = Datagram::of(ip, source(frame.ingress, lane.from, ip.src()));
    // Which network those from outside are for only the first one says.
    let timeouts = match lane.from.network() {
        Some(network) => cx.config.timeouts_of(network),
        None => &cx.config.timeouts,
    };
    let lifetime = P::fragment_timeout(timeouts);
    let fragments = &cx.tables.fragments;
    match fragments.enter(datagram, piece, cx.early.worker(), cx.now, lifetime) {
        Entered::First(number) => {
            let passed = packet(cx, frame, lane, ip);
            let carries = lane.is_tracked.then(|| P::tuple_in(lane)).map(|tuple| Carries {
                src_port: tuple.src_port(),
                dst_port: tuple.dst_port(),
                proto: tuple.proto(),
                id: passed.ok().and_then(|_| depart::<P>(cx, frame, lane, datagram, &tuple)),
            });
            cx.tables.fragments.settle(&datagram, number, passed.is_ok().then_some(carries));
            passed
        }
        Entered::Follow(carries) => follow(cx, frame, lane, ip, carries),
        Entered::Wait(number) => {
            lane.datagram = number;
            Ok(Verdict::HoldFragment)
        }
        Entered::Drop(reason) if is_the_host_s(reason) => not_ours(cx, lane.from, reason),
        Entered::Drop(reason) => Err(reason),
    }
}

/// Notes as what a datagram leaves whose first fragment, or whole, `frame` is now; `tuple` is what it came
/// as. Its identification where it goes, if it got another one there.
#[cold]
pub(super) fn depart<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    whose: Datagram,
    tuple: &P::Tuple,
) -> Option<u32> {
    let hit = P::Tuple::table(cx.tables).lookup(*tuple, cx.secs)?;
    let ip = *P::of(&mut lane.headers)?;
    // Its answers come to where it has left from.
    let carries = Carries {
        src_port: hit.other.dst_port(),
        dst_port: hit.other.src_port(),
        proto: tuple.proto(),
        id: None,
    };
    let (src, dst) = (ip.src().into(), ip.dst().into());
    let (proto, id) = ip.fragment_of();
    let lifetime = P::fragment_timeout(cx.config.timeouts_of(hit.network()));
    let rng = &mut *cx.rng;
    let leaves = (Label { src, dst, proto, id }, carries);
    let draw = || P::identification(rng.next());
    let other = cx.tables.fragments.depart(whose, leaves, cx.now, lifetime, draw)?;
    ip.identify(frame, other);
    Some(other)
}

/// Whether the host's stack, where it has received the fragment too, may still make use of it: nothing is
/// wrong with it.
fn is_the_host_s(reason: DropReason) -> bool {
    use DropReason::{FragmentDuplicate, FragmentLimit, FragmentUntracked};
    matches!(reason, FragmentDuplicate | FragmentLimit | FragmentUntracked)
}

fn source(ingress: PortId, from: From, src: impl Into<IpAddr>) -> Source {
    match from {
        From::Endpoint(_) | From::Host(_) => Source::Port(ingress),
        From::Uplink(_) | From::Nowhere => Source::Outside(src.into()),
    }
}

/// A whole packet that came as `tuple`, was translated and is cut into fragments now: see [`depart`].
#[cold]
pub(super) fn cut<P: Ip>(cx: &mut Cx<'_>, frame: &mut Frame, lane: &mut Lane, tuple: &P::Tuple) {
    let Some(ip) = P::of(&mut lane.headers).map(|ip| *ip) else { return };
    // Segments of one frame have many.
    if ip.is_fragment() || frame.vnet.is_gso() {
        return;
    }
    let source = source(frame.ingress, lane.from, tuple.src());
    let whose = Datagram::translated(&ip, source, (tuple.src().into(), tuple.dst().into()));
    depart::<P>(cx, frame, lane, whose, tuple);
}

/// A later fragment, whose first one has passed and carried this.
fn follow<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    ip: &P,
    carries: Option<Carries>,
) -> Result<Verdict, DropReason> {
    if let Some(Carries { src_port, dst_port, proto, id }) = carries {
        let zone = zone(lane.from);
        let tuple = P::Tuple::new(ip.src(), ip.dst(), src_port, dst_port, zone, proto);
        if let Some(hit) = P::Tuple::table(cx.tables).lookup(tuple, cx.secs) {
            let passed = established(cx, frame, lane, ip, tuple, hit)?;
            if let Some(id) = id {
                ip.identify(frame, id);
            }
            return Ok(passed);
        }
    }
    local::untracked(cx, frame, lane, ip)
}

/// Lets a fragment wait for its first one; others that have waited longer make room for it.
#[cold]
pub(crate) fn hold(cx: &mut Cx<'_>, frame: Frame, lane: &Lane) {
    let number = lane.datagram;
    let held = Held::new(&frame, lane.from);
    cx.pool.put(frame);
    let datagram = match &lane.headers.net {
        Net::Ipv4(ip) => Datagram::of(ip, source(held.ingress, lane.from, ip.src)),
        Net::Ipv6(ip) => Datagram::of(ip, source(held.ingress, lane.from, ip.src)),
        _ => return give_up(cx, &held, DropReason::FragmentUntracked),
    };
    let port = cx.early.port_of(number).unwrap_or(held.ingress);
    while let Some(oldest) = cx.early.push_out_for(&held, port) {
        cx.tables.fragments.give_up(&oldest.datagram, oldest.number);
        let is_own = oldest.number == number;
        give_up_all(cx, &oldest, DropReason::FragmentLimit);
        if is_own {
            return give_up(cx, &held, DropReason::FragmentLimit);
        }
    }
    cx.early.push(datagram, number, port, held, cx.now);
}

/// Lets go on what waited for a first fragment that has come, and drops what waited in vain.
#[cold]
pub(crate) fn release(
    cx: &mut Cx<'_>,
    frames: &mut Vec<Frame>,
    lanes: &mut Vec<Lane>,
    out: &mut dyn Transmit,
) {
    let mut all = cx.early.take_list();
    cx.tables.fragments.take_news(cx.early.worker(), &mut all);
    for (number, news) in all.drain(..) {
        let Some(group) = cx.early.take(number) else { continue };
        match news {
            News::Follow(carries) => {
                for some in group.held.chunks(BATCH) {
                    send(cx, some, carries, frames, lanes, out);
                }
            }
            News::Drop(reason) => give_up_all(cx, &group, reason),
        }
    }
    cx.early.give_list(all);
}

/// Takes fragments through what they have waited for, and sends them.
fn send(
    cx: &mut Cx<'_>,
    all: &[Held],
    carries: Option<Carries>,
    frames: &mut Vec<Frame>,
    lanes: &mut Vec<Lane>,
    out: &mut dyn Transmit,
) {
    if lanes.len() < all.len() {
        lanes.resize_with(all.len(), || Lane::EMPTY);
    }
    for held in all {
        let (Some(lane), Some(mut frame)) = (lanes.get_mut(frames.len()), cx.pool.take()) else {
            give_up(cx, held, DropReason::NoBuffer);
            continue;
        };
        held.restore(&mut frame);
        lane.reset();
        lane.begin(&frame);
        lane.from = held.from;
        parse_net(frame.bytes(), &mut lane.headers);
        lane.verdict = Some(again(cx, &mut frame, lane, carries).unwrap_or_else(Verdict::Drop));
        frames.push(frame);
    }
    let lanes = lanes.get_mut(..frames.len()).unwrap_or_default();
    egress::stage(cx, frames, lanes, out);
}

fn again(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    carries: Option<Carries>,
) -> Result<Verdict, DropReason> {
    // The port may have become another network's since.
    let port = cx.config.port(frame.ingress);
    if port.is_none_or(|port| From::of(&port.config.role) != lane.from) {
        return Err(DropReason::PortUnconfigured);
    }
    match lane.headers.net {
        Net::Ipv4(ip) => follow(cx, frame, lane, &ip, carries),
        Net::Ipv6(ip) => follow(cx, frame, lane, &ip, carries),
        _ => Err(DropReason::FragmentUntracked),
    }
}

fn give_up_all(cx: &mut Cx<'_>, group: &Group, reason: DropReason) {
    for held in &group.held {
        give_up(cx, held, reason);
    }
}

/// Ends a fragment that waits. What the host's stack has received too is its business, unless it cannot be
/// of use to anybody.
fn give_up(cx: &Cx<'_>, held: &Held, reason: DropReason) {
    let end = if is_the_host_s(reason) { not_ours(cx, held.from, reason) } else { Err(reason) };
    match end {
        Err(reason) => cx.ports.drop_rx(cx.counters, held.ingress, reason),
        Ok(_) => cx.counters.consumed.add(1),
    }
}
