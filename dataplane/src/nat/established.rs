//! What a packet changes in its connection, whichever way it goes; and the shortcut of those that have
//! one.

use crate::conntrack::entry::{ASSURED, SEEN_REPLY};
use crate::conntrack::sctp::{self, SctpState};
use crate::conntrack::tcp::TcpState;
use crate::conntrack::window::{self, Judgement, Segment, Side, Unbelievable};
use crate::conntrack::{Direction, Hit, Key, timeout};
use crate::core::Cx;
use crate::frame::Frame;
use crate::nat::ip::{Ip, Tracked};
use crate::packet::headers::L4;
use crate::packet::parse::ETH_LEN;
use crate::packet::quick::{self, Change, Quick};
use crate::packet::sctp::Chunks;
use crate::packet::tcp;
use crate::packet::types::{ip_proto, tcp_flags};
use crate::pipeline::Lane;
use crate::verdict::{DropReason, Verdict};

/// What a connection is told of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    proto: u8,
    says: Says,
    len: u64,
}

/// What its transport header tells.
#[derive(Debug, Clone, Copy)]
enum Says {
    /// Nothing of a state.
    Nothing,
    Segment(Segment),
    /// Of SCTP; `None`: they contradict themselves.
    Chunks(Option<Chunks>),
}

impl Seen {
    /// `proto` is the connection's: a later fragment of IPv6 may name any.
    #[inline]
    pub(super) fn of(frame: &Frame, ip: &impl Ip, proto: u8) -> Self {
        let at = usize::from(ip.l4_offset());
        let says = match ip.l4() {
            L4::Tcp { flags, header_len, .. } => {
                match segment(frame, at, header_len, ip.end(), flags) {
                    Some(segment) => {
                        Says::Segment(Segment { is_fragment: ip.more_fragments(), ..segment })
                    }
                    None => Says::Nothing,
                }
            }
            L4::Sctp { .. } => Says::Chunks(chunks(frame, at, ip)),
            _ => Says::Nothing,
        };
        Self { proto, says, len: u64::from(ip.total_len()) }
    }

    /// Has `map` change what a segment acknowledges. A SYN comes before everything that a helper changes.
    pub(super) fn map_ack(&mut self, map: impl FnOnce(u32) -> u32) {
        if let Says::Segment(segment) = &mut self.says
            && segment.flags & (tcp_flags::ACK | tcp_flags::SYN) == tcp_flags::ACK
        {
            segment.ack = map(segment.ack);
        }
    }

    /// Whether it ends the connection at once.
    #[inline(always)]
    fn is_reset(&self) -> bool {
        matches!(self.says, Says::Segment(segment) if segment.flags & tcp_flags::RST != 0)
    }

    /// The state that a connection of SCTP begins in with this packet; `None`: it can begin none.
    pub(super) fn first_of_sctp(&self) -> Option<u8> {
        let Says::Chunks(Some(chunks)) = &self.says else { return None };
        SctpState::first(chunks).map(|(state, _)| state as u8)
    }

    /// Why it begins no connection.
    pub(super) const fn refusal(&self) -> DropReason {
        match self.says {
            Says::Chunks(None) => DropReason::L4Malformed,
            _ => DropReason::ConntrackInvalid,
        }
    }

    /// Of a packet that begins a connection, in this state.
    pub(super) fn begins(&self, state: u8) -> Judged {
        let said = match &self.says {
            Says::Segment(segment) => Some(Side::first(segment)),
            Says::Chunks(Some(chunks)) => SctpState::first(chunks).map(|(_, said)| said.into()),
            Says::Chunks(None) | Says::Nothing => None,
        };
        Judged { state, said, revives: true }
    }
}

#[inline(never)]
fn chunks(frame: &Frame, at: usize, ip: &impl Ip) -> Option<Chunks> {
    Chunks::read(frame.bytes().get(at..ip.end())?, ip.more_fragments())
}

/// The segment whose header of this length is `at`; the packet ends at `end`.
#[inline]
fn segment(frame: &Frame, at: usize, header_len: u8, end: usize, flags: u8) -> Option<Segment> {
    let bytes = frame.bytes();
    let tcp::Numbers { seq, ack, window } = tcp::numbers(bytes, at)?;
    let payload = end.saturating_sub(at + usize::from(header_len));
    let marks = u32::from(flags & tcp_flags::SYN != 0) + u32::from(flags & tcp_flags::FIN != 0);
    let len = u32::try_from(payload).ok()?.saturating_add(marks);
    let scale =
        if flags & tcp_flags::SYN == 0 { None } else { tcp::window_scale(bytes, at, header_len) };
    Some(Segment { flags, seq, ack, window, len, scale, is_fragment: false })
}

/// What a packet makes of its connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judged {
    state: u8,
    /// What its side has said with it, of TCP and SCTP.
    said: Option<Side>,
    /// Whether the connection lives on from now.
    revives: bool,
}

/// What a packet makes of its connection, if it can belong to it.
#[inline]
pub(super) fn judge<K: Tracked>(
    cx: &Cx<'_>,
    seen: &Seen,
    hit: &Hit<K>,
) -> Result<Judged, DropReason> {
    let segment = match &seen.says {
        // Of another protocol, or a fragment that is not the first and goes where the first one went.
        Says::Nothing => return Ok(Judged { state: hit.state(), said: None, revives: true }),
        Says::Chunks(chunks) => return judge_sctp(cx, chunks.as_ref(), hit),
        Says::Segment(segment) => segment,
    };
    let state = TcpState::from_u8(hit.state()).ok_or(DropReason::ConntrackInvalid)?;
    let next =
        state.next(segment.flags, hit.direction).map_err(|_| DropReason::ConntrackInvalid)?;
    let [mine, theirs] = K::table(cx.tables).sides(hit);
    Ok(match window::judge(state, hit.direction, segment, mine, theirs) {
        Ok(Judgement::Continues(side)) => {
            Judged { state: next as u8, said: (side != mine).then_some(side), revives: true }
        }
        Ok(Judgement::BeginsAnew(side)) => {
            Judged { state: TcpState::SynReceived as u8, said: Some(side), revives: true }
        }
        Ok(Judgement::Asks(side)) => {
            Judged { state: hit.state(), said: (side != mine).then_some(side), revives: false }
        }
        Ok(Judgement::Passes) => Judged { state: hit.state(), said: None, revives: false },
        Err(Unbelievable::OutOfWindow) => return Err(DropReason::TcpOutOfWindow),
        Err(Unbelievable::Reset) => return Err(DropReason::TcpResetInvalid),
    })
}

/// What a packet of SCTP makes of its association.
#[inline(never)]
fn judge_sctp<K: Tracked>(
    cx: &Cx<'_>,
    chunks: Option<&Chunks>,
    hit: &Hit<K>,
) -> Result<Judged, DropReason> {
    let chunks = chunks.ok_or(DropReason::L4Malformed)?;
    let state = SctpState::from_u8(hit.state()).ok_or(DropReason::ConntrackInvalid)?;
    let [mine, theirs] = K::table(cx.tables).sides(hit).map(sctp::Peer::from);
    match sctp::judge(state, hit.direction, chunks, mine, theirs) {
        Ok(sctp::Judgement { state, said, revives }) => {
            let said = (said != mine).then(|| said.into());
            Ok(Judged { state: state as u8, said, revives })
        }
        Err(sctp::Unbelievable::State) => Err(DropReason::ConntrackInvalid),
        Err(sctp::Unbelievable::Tag) => Err(DropReason::SctpTagInvalid),
    }
}

/// Counts the packet and moves the connection's state and deadline; false: see
/// [`crate::conntrack::ConnTable::touch`].
#[inline(always)]
pub(super) fn note<K: Tracked>(
    cx: &Cx<'_>,
    seen: &Seen,
    hit: &Hit<K>,
    judged: &Judged,
    service: u16,
) -> bool {
    let state = judged.state;
    let flags = match hit.direction {
        Direction::Reply => SEEN_REPLY,
        Direction::Original => 0,
    };
    let assured = match seen.proto {
        ip_proto::TCP => state == TcpState::Established as u8,
        ip_proto::SCTP => state == SctpState::Established as u8,
        // Both have spoken, and the first again.
        _ => hit.flags() & SEEN_REPLY != 0 && matches!(hit.direction, Direction::Original),
    };
    let flags = flags | if assured { ASSURED } else { 0 };
    let idle = timeout::idle(cx.config.timeouts_of(hit.network()), seen.proto, service, state);
    let deadline = if judged.revives {
        let deadline = cx.secs.saturating_add(u32::try_from(idle.as_secs()).unwrap_or(u32::MAX));
        // One that answers whoever speaks from outside must not keep the way in open (RFC 7857 §7.1).
        if seen.is_reset() { deadline.min(hit.deadline) } else { deadline }
    } else {
        hit.deadline
    };
    let connections = K::table(cx.tables);
    if !connections.touch(hit, seen.len, state, flags, deadline) {
        return false;
    }
    if let Some(side) = judged.said {
        connections.set_side(hit, side);
    }
    true
}

/// [`note`] until it is noted, beginning with what was judged.
#[inline(always)]
pub(super) fn settle<K: Tracked>(
    cx: &Cx<'_>,
    seen: &Seen,
    hit: &mut Hit<K>,
    mut judged: Judged,
    service: u16,
) -> Result<(), DropReason> {
    while !note(cx, seen, hit, &judged, service) {
        // The worker of the other direction was faster: judge by the state that it left.
        let Some(now) = K::table(cx.tables).refresh(hit) else { break };
        *hit = now;
        judged = judge(cx, seen, hit)?;
    }
    Ok(())
}

/// [`judge`] and [`settle`].
#[inline(never)]
fn weigh<K: Tracked>(
    cx: &Cx<'_>,
    seen: &Seen,
    hit: &mut Hit<K>,
    service: u16,
) -> Result<(), DropReason> {
    let judged = judge(cx, seen, hit)?;
    settle(cx, seen, hit, judged, service)
}

/// [`weigh`] for a segment in the middle of an established connection, as nearly all are. False: it is none
/// of these, and nothing is noted.
#[inline(always)]
fn carry_on<K: Tracked>(cx: &Cx<'_>, segment: &Segment, hit: &Hit<K>, len: u64) -> bool {
    use tcp_flags::{ACK, FIN, RST, SYN};
    const STATE: u8 = TcpState::Established as u8;
    if hit.state() != STATE || segment.flags & (SYN | FIN | RST | ACK) != ACK {
        return false;
    }
    let connections = K::table(cx.tables);
    let [mine, theirs] = connections.sides(hit);
    let Some(side) = window::flows(segment, mine, theirs) else { return false };
    let idle = timeout::idle(cx.config.timeouts_of(hit.network()), ip_proto::TCP, 0, STATE);
    let deadline = cx.secs.saturating_add(u32::try_from(idle.as_secs()).unwrap_or(u32::MAX));
    let flags = match hit.direction {
        Direction::Reply => SEEN_REPLY | ASSURED,
        Direction::Original => ASSURED,
    };
    if !connections.touch(hit, len, STATE, flags, deadline) {
        return false;
    }
    if side != mine {
        connections.set_side(hit, side);
    }
    true
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
    let len = u64::from(lane.total_len);
    let service = match direction {
        Direction::Original => lane.tuple.dst_port(),
        Direction::Reply => hit.other.dst_port(),
    };
    // Two ways, so that datagrams do not carry along what segments need.
    let noted = if proto == ip_proto::TCP {
        let end = ETH_LEN + usize::from(lane.total_len);
        let segment = quick::tcp_header_len(frame)
            .and_then(|header_len| segment(frame, quick::L4, header_len, end, lane.tcp_flags));
        if segment.is_some_and(|segment| carry_on(cx, &segment, &hit, len)) {
            Ok(())
        } else {
            let says = segment.map_or(Says::Nothing, Says::Segment);
            weigh(cx, &Seen { proto, says, len }, &mut hit, service)
        }
    } else {
        let judged = Judged { state: hit.state(), said: None, revives: true };
        settle(cx, &Seen { proto, says: Says::Nothing, len }, &mut hit, judged, service)
    };
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
