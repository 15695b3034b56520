//! What a packet changes in its connection, whichever way it goes; and the shortcut of those that have
//! one.

use crate::conntrack::entry::{ASSURED, SEEN_REPLY};
use crate::conntrack::tcp::TcpState;
use crate::conntrack::{Direction, Hit, Key, timeout};
use crate::core::Cx;
use crate::frame::Frame;
use crate::packet::headers::{Ipv4, L4};
use crate::packet::quick::{self, Change, Quick};
use crate::packet::types::ip_proto;
use crate::pipeline::Lane;
use crate::verdict::{DropReason, Verdict};

/// What a connection is told of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    proto: u8,
    /// Of TCP segments only.
    tcp_flags: Option<u8>,
    len: u64,
}

impl Seen {
    #[inline]
    pub(super) fn of(ip: &Ipv4) -> Self {
        let tcp_flags = match ip.l4 {
            L4::Tcp { flags, .. } => Some(flags),
            _ => None,
        };
        Self { proto: ip.proto, tcp_flags, len: u64::from(ip.total_len) }
    }
}

/// The state after a packet.
#[inline]
pub(super) fn next_state(seen: &Seen, hit: &Hit) -> Result<u8, DropReason> {
    let Some(flags) = seen.tcp_flags else { return Ok(hit.state()) };
    let state = TcpState::from_u8(hit.state()).ok_or(DropReason::ConntrackInvalid)?;
    let next = state.next(flags, hit.direction).map_err(|_| DropReason::ConntrackInvalid)?;
    Ok(next as u8)
}

/// Counts the packet and moves the connection's state and deadline; false: see
/// [`crate::conntrack::ConnTable::touch`].
#[inline]
pub(super) fn note(cx: &Cx<'_>, seen: &Seen, hit: &Hit, state: u8, service: u16) -> bool {
    let flags = match hit.direction {
        Direction::Reply => SEEN_REPLY,
        Direction::Original => 0,
    };
    let assured = if seen.proto == ip_proto::TCP {
        state == TcpState::Established as u8
    } else {
        // Both have spoken, and the first again.
        hit.flags() & SEEN_REPLY != 0 && matches!(hit.direction, Direction::Original)
    };
    let flags = flags | if assured { ASSURED } else { 0 };
    let idle = timeout::idle(&cx.config.timeouts, seen.proto, service, state);
    let deadline = cx.secs.saturating_add(u32::try_from(idle.as_secs()).unwrap_or(u32::MAX));
    cx.tables.connections.touch(hit, seen.len, state, flags, deadline)
}

/// [`note`] until it is noted, beginning with the state that is to follow.
#[inline]
pub(super) fn settle(
    cx: &Cx<'_>,
    seen: &Seen,
    hit: &mut Hit,
    mut state: u8,
    service: u16,
) -> Result<(), DropReason> {
    while !note(cx, seen, hit, state, service) {
        // The worker of the other direction was faster: judge by the state that it left.
        let Some(now) = cx.tables.connections.refresh(hit) else { break };
        *hit = now;
        state = next_state(seen, hit)?;
    }
    Ok(())
}

/// Sends a packet on by its shortcut. `None`: the connection has ended since it was looked up, by a
/// packet before this one or by another worker.
#[inline(always)]
pub(super) fn travel(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &Lane,
    direction: Direction,
) -> Option<Result<Verdict, DropReason>> {
    let mut hit = cx.tables.connections.at(lane.id, direction)?;
    let exit = cx.express.ways.at(lane.way)?.exit;
    let proto = lane.tuple.proto();
    let tcp_flags = (proto == ip_proto::TCP).then_some(lane.tcp_flags);
    let seen = Seen { proto, tcp_flags, len: u64::from(lane.total_len) };
    let service = match direction {
        Direction::Original => lane.tuple.dst_port(),
        Direction::Reply => hit.other.dst_port(),
    };
    let noted =
        next_state(&seen, &hit).and_then(|state| settle(cx, &seen, &mut hit, state, service));
    if let Err(reason) = noted {
        return Some(Err(reason));
    }
    let was = Quick {
        addresses: lane.tuple.addresses,
        ports: lane.tuple.ports(),
        proto,
        tcp_flags: lane.tcp_flags,
        total_len: lane.total_len,
    };
    let (addresses, ports) = hit.other.back();
    quick::forward(frame, &was, &Change { macs: exit.macs, addresses, ports });
    Some(Ok(Verdict::Forward(exit.port)))
}
