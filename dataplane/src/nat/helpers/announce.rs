//! From what is announced to an expectation: who comes, to which of our ports, and what the other side is told.

use std::net::IpAddr;
use std::time::Duration;

use super::expect::{Caller, Expected, NotEntered};
use super::ftp::{self, Announced};
use super::skew::{Change, Flow};
use super::{Refusal, helpers_of};
use crate::config::LocalAddress;
use crate::conntrack::{Direction, Hit, Key};
use crate::core::Cx;
use crate::nat::ip::Tracked;
use crate::nat::port_alloc::Candidates;
use crate::packet::types::{NetworkId, ip_proto};

/// `nf_conntrack_ftp`: 300 s.
const FTP_LIFETIME: Duration = Duration::from_secs(300);
/// A server answers at once, and its client asks again after some seconds (RFC 1123 §4.2.3.1).
const TFTP_LIFETIME: Duration = Duration::from_secs(30);
/// From which FTP servers call (RFC 959 §3.2): one below their own.
const FTP_DATA_PORT: u16 = 20;
/// Nobody listens below for one connection; what does is not meant for who is announced.
const FIRST_UNPRIVILEGED: u16 = 1024;
/// Outside ports tried for one announcement at most.
const ATTEMPTS: usize = 16;

/// How much longer a packet may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) ip_len: u32,
    pub(super) mtu: u16,
    /// It is cut into segments or fragments anyway.
    pub(super) cut: bool,
}

/// What the line announces that a segment of this direction begins with, if its sender is inside and is to
/// be helped.
pub(super) fn read_line<K: Key>(
    cx: &Cx<'_>,
    payload: &[u8],
    tuple: K,
    direction: Direction,
) -> Option<(Announced, NetworkId)> {
    let announced = match direction {
        Direction::Original => ftp::command(payload),
        Direction::Reply => ftp::reply(payload),
    };
    let network = tuple.zone().inside().filter(|id| helpers_of(cx, *id).ftp)?;
    announced.map(|announced| (announced, network))
}

/// Expects what a line announces that begins with `seq`, and notes what the other side must see instead.
pub(super) fn expect<K: Tracked>(
    cx: &mut Cx<'_>,
    (announced, network): &(Announced, NetworkId),
    seq: u32,
    flow: &mut Flow,
    tuple: K,
    hit: &Hit<K>,
    room: Room,
) {
    flow.note_handled(seq);
    let helped = &cx.tables.helped;
    let sender: IpAddr = tuple.src().into();
    // Who names another's address wants that one to be called (RFC 2577 §3).
    if announced.address.is_some_and(|address| address != sender) {
        return helped.refuse(Refusal::Foreign);
    }
    if announced.port < FIRST_UNPRIVILEGED {
        return helped.refuse(Refusal::Privileged);
    }
    let longest = announced.shown(hit.other.dst().into(), u16::MAX);
    let Some(longest) = longest else { return };
    let growth = longest.as_bytes().len().saturating_sub(announced.range.len());
    let len = usize::try_from(room.ip_len).unwrap_or(usize::MAX).saturating_add(growth);
    let fits = room.cut || len <= usize::from(room.mtu);
    let from = seq.wrapping_add(u32::try_from(announced.range.start).unwrap_or(0));
    if !fits || len > usize::from(u16::MAX) || !flow.has_room(from) {
        return helped.refuse(Refusal::TooLong);
    }
    let opened = open(cx, *network, tuple, hit, announced.port);
    let outside = match opened {
        Ok(outside) => outside,
        Err(refusal) => return cx.tables.helped.refuse(refusal),
    };
    let shown: IpAddr = hit.other.dst().into();
    if (shown, outside) == (sender, announced.port) {
        return;
    }
    if let Some(text) = announced.shown(shown, outside) {
        let old_len = u16::try_from(announced.range.len()).unwrap_or(0);
        flow.add(Change { seq: from, old_len, text });
    }
}

/// The server of a helped connection of TFTP will answer from another port.
pub(super) fn answer_to_request<K: Tracked>(cx: &Cx<'_>, tuple: K, hit: &Hit<K>) {
    let Some(network) = tuple.zone().inside().filter(|id| helpers_of(cx, *id).tftp) else { return };
    let expected = Expected {
        deadline: deadline(cx, TFTP_LIFETIME),
        ..expectation(cx, network, tuple, hit, tuple.src_port())
    };
    match cx.tables.helped.expectations.enter(expected, cx.secs) {
        Ok(()) => note_expected(cx),
        Err(NotEntered::Full) => cx.tables.helped.refuse(Refusal::Full),
        Err(NotEntered::Taken) => cx.tables.helped.refuse(Refusal::NoPort),
    }
}

/// Expects a connection to `port` of the sender of a packet, and says by which port of the address that the
/// other side sees it will come.
fn open<K: Tracked>(
    cx: &mut Cx<'_>,
    network: NetworkId,
    tuple: K,
    hit: &Hit<K>,
    port: u16,
) -> Result<u16, Refusal> {
    let config = cx.config;
    let shown = hit.other.dst();
    let template = Expected {
        deadline: deadline(cx, FTP_LIFETIME),
        ..expectation(cx, network, tuple, hit, port)
    };
    let enter = |cx: &Cx<'_>, outside: u16| {
        let called = as_called(hit, FTP_DATA_PORT, outside);
        let expected = Expected { caller: Caller::of(called), ..template };
        cx.tables.helped.expectations.enter(expected, cx.secs)
    };
    let entered = if shown == tuple.src() {
        // Nothing is translated.
        enter(cx, port).map(|()| port)
    } else {
        let owner = match config.local(shown) {
            Some(LocalAddress::Gateway(_)) | None => None,
            _ => config.uplinks().find(|uplink| uplink.has(shown)),
        };
        let free = |uplink| config.free_ports.at(uplink, ip_proto::TCP, shown);
        // An address of ours without a range for this has ports that are the host's.
        let ranges = owner.map(free).ok_or(Refusal::NoPort)?;
        let mut entered = Err(NotEntered::Taken);
        for outside in Candidates::new(ranges, port, cx.rng).take(ATTEMPTS) {
            if is_another_s(cx, hit, outside, (tuple.src().into(), port)) {
                continue;
            }
            entered = enter(cx, outside).map(|()| outside);
            if entered != Err(NotEntered::Taken) {
                break;
            }
        }
        entered
    };
    match entered {
        Ok(outside) => {
            note_expected(cx);
            Ok(outside)
        }
        Err(NotEntered::Full) => Err(Refusal::Full),
        Err(NotEntered::Taken) => Err(Refusal::NoPort),
    }
}

/// Whether what comes to an outside port would go to another: it is published or mapped, or an earlier
/// connection came by it from where servers call.
fn is_another_s<K: Tracked>(
    cx: &Cx<'_>,
    hit: &Hit<K>,
    outside: u16,
    listener: (IpAddr, u16),
) -> bool {
    let shown = hit.other.dst();
    let connections = K::table(cx.tables);
    let earlier = connections.lookup(as_called(hit, FTP_DATA_PORT, outside), cx.secs);
    cx.config.dnat.lookup(ip_proto::TCP, shown, outside).is_some()
        || connections.room().mappings().has(ip_proto::TCP, shown, outside)
        || earlier.is_some_and(|it| (it.other.src().into(), it.other.src_port()) != listener)
}

/// How the first packet of the other side comes that was told of a port.
fn as_called<K: Key>(hit: &Hit<K>, from: u16, outside: u16) -> K {
    let other = hit.other;
    K::new(other.src(), other.dst(), from, outside, other.zone(), other.proto())
}

/// What the sender of a packet expects at this port of its own, without a time.
fn expectation<K: Tracked>(
    cx: &Cx<'_>,
    network: NetworkId,
    tuple: K,
    hit: &Hit<K>,
    port: u16,
) -> Expected {
    Expected {
        caller: Caller::of(hit.other),
        listener: (tuple.src().into(), port),
        network,
        rule: K::table(cx.tables).rule_of(hit),
        master: hit.id,
        deadline: 0,
    }
}

fn deadline(cx: &Cx<'_>, lifetime: Duration) -> u32 {
    cx.secs.saturating_add(u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX))
}

fn note_expected(cx: &Cx<'_>) {
    cx.tables.helped.expected.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
}
