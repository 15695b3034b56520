//! Helpers: connections that announce others, which are then let through. FTP and TFTP, where a network asks
//! for it (ADR 25).
//!
//! - `ftp`, `tftp`: what a payload announces. Pure.
//! - `expect`: connections that were announced, until they come.
//! - `control`, `skew`: what is known of a control connection of FTP whose payload is changed.
//! - `announce`: from the one to the other: an outside port for what is announced.
//!
//! The way of a packet of a helped connection, in `nat::translate`: [`hear`] before it is judged, as its
//! acknowledgment counts what the other side was shown; [`pass`] once it is translated. It takes no shortcut.
//! The way of a packet that begins a connection, in `nat::begin`: [`claim`]; [`give_back`] if it did not pass.

mod announce;
mod control;
mod expect;
mod ftp;
mod skew;
mod tftp;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use self::control::{Control, Controls, Locked, id_of};
pub(super) use self::expect::Expected;
use self::expect::{Caller, Expectations};
use self::skew::{Split, Toward};
use crate::config::Helpers;
use crate::conntrack::entry::{SKEWED, is_skewed};
use crate::conntrack::tcp::TcpState;
use crate::conntrack::{ConnTable, Direction, Hit, Key};
use crate::core::Cx;
use crate::engine::{FlowTuple, HelperStats};
use crate::family::Address;
use crate::frame::Frame;
use crate::nat::dnat::DnatTarget;
use crate::nat::established::Seen;
use crate::nat::ip::{Ip, Tracked};
use crate::nat::translate::WayOut;
use crate::packet::headers::L4;
use crate::packet::splice::{self, Place};
use crate::packet::tcp::{self, Edge};
use crate::packet::types::{NetworkId, ip_proto, tcp_flags};
use crate::pipeline::Lane;
use crate::shared::Tables;
use crate::verdict::DropReason;

/// What every link of IPv6 takes (RFC 8200 §5).
const IPV6_MIN_MTU: u16 = 1280;

/// Why something that was announced is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// Another address than the sender's own.
    Foreign,
    /// Too many are expected, or followed.
    Full,
    /// No outside port is free.
    NoPort,
    /// A port below 1024.
    Privileged,
    /// What has to be said would not fit into the segment, or too much of what was said before is not
    /// acknowledged.
    TooLong,
}

/// How much helpers may have to do with; one inside address has an eighth of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HelperLimits {
    /// Connections that others have announced.
    pub expectations: u32,
    /// Control connections of FTP that are followed.
    pub controls: u32,
}

impl Default for HelperLimits {
    fn default() -> Self {
        Self { expectations: 1024, controls: 1024 }
    }
}

/// How full it is, now and at most, what the limit is, and how often there was no room.
pub(crate) type Uses = ((u32, u32), u32, u64);

/// What all workers know of helped connections.
#[derive(Debug, Default)]
pub(crate) struct Helped {
    limits: HelperLimits,
    expectations: Expectations,
    controls: Controls,
    expected: AtomicU64,
    used: AtomicU64,
    /// By [`Refusal`].
    refused: [AtomicU64; 5],
}

impl Helped {
    /// Nothing yet.
    pub(crate) fn new(limits: HelperLimits) -> Self {
        Self {
            limits,
            expectations: Expectations::new(limits.expectations),
            controls: Controls::new(limits.controls),
            ..Self::default()
        }
    }

    fn refuse(&self, refusal: Refusal) {
        if let Some(count) = self.refused.get(refusal as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Totals.
    pub(crate) fn stats(&self) -> HelperStats {
        let [foreign, full, no_port, privileged, too_long] = [0, 1, 2, 3, 4]
            .map(|at: usize| self.refused.get(at).map_or(0, |count| count.load(Ordering::Relaxed)));
        HelperStats {
            expected: self.expected.load(Ordering::Relaxed),
            used: self.used.load(Ordering::Relaxed),
            foreign,
            full,
            no_port,
            privileged,
            too_long,
        }
    }

    /// Of expectations, and of control connections that are followed.
    pub(crate) fn uses(&self) -> [Uses; 2] {
        let HelperLimits { expectations, controls } = self.limits;
        [
            (self.expectations.uses(), expectations, self.expectations.refused()),
            (self.controls.uses(), controls, self.controls.refused()),
        ]
    }

    /// A copy to try things out on. It counts anew.
    pub(crate) fn copy(&self) -> Self {
        let (expectations, controls) = (self.expectations.copy(), self.controls.copy());
        Self { limits: self.limits, expectations, controls, ..Self::default() }
    }

    /// Forgets what belongs to connections that have ended, and expectations whose time is over.
    pub(crate) fn expire(tables: &Tables, now: u32) {
        let is_live = |(is_ipv6, id)| {
            if is_ipv6 {
                tables.connections6.is_live(id, now)
            } else {
                tables.connections.is_live(id, now)
            }
        };
        let helped = &tables.helped;
        helped.expectations.expire(now, |known| is_live((known.is_ipv6(), known.master)));
        helped.controls.expire(is_live);
    }
}

/// Whether a connection to a server at this port is helped, because one of the networks asks for it.
pub(super) fn serve(cx: &Cx<'_>, networks: [Option<NetworkId>; 2], proto: u8, port: u16) -> bool {
    const ALL: Helpers = Helpers { ftp: true, tftp: true };
    ALL.serve(proto, port)
        && networks.into_iter().flatten().any(|id| helpers_of(cx, id).serve(proto, port))
}

fn helpers_of(cx: &Cx<'_>, network: NetworkId) -> Helpers {
    cx.config.network(network).map(|network| network.config.helpers).unwrap_or_default()
}

/// The expectation of who sends a packet that begins a connection, which nobody else has from then on.
#[inline(always)]
pub(super) fn claim<K: Tracked>(cx: &Cx<'_>, tuple: K) -> Option<Expected> {
    if cx.tables.helped.expectations.any() { claim_any(cx, tuple) } else { None }
}

#[cold]
fn claim_any<K: Tracked>(cx: &Cx<'_>, tuple: K) -> Option<Expected> {
    let expected = cx.tables.helped.expectations.take(&Caller::of(tuple))?;
    holds(cx, tuple, &expected).then_some(expected)
}

/// Whether its time is not over, and nothing has come in between.
fn holds<K: Tracked>(cx: &Cx<'_>, tuple: K, expected: &Expected) -> bool {
    let connections: &ConnTable<K> = K::table(cx.tables);
    expected.deadline > cx.secs
        && connections.is_live(expected.master, cx.secs)
        && !is_another_s_by_now(cx, tuple, expected)
}

/// An expectation as a trace tells it.
#[derive(Debug)]
pub(crate) struct Announced {
    /// The helper, by the name of its option.
    pub(crate) helper: &'static str,
    /// The connection that announced it, as its first packet came.
    pub(crate) by: FlowTuple,
    /// Where it leads.
    pub(crate) to: (IpAddr, u16),
    pub(crate) network: NetworkId,
}

/// The expectation that [`claim`] would take.
pub(crate) fn announced<K: Tracked>(cx: &Cx<'_>, tuple: K) -> Option<Announced> {
    let expected = cx.tables.helped.expectations.find(&Caller::of(tuple))?;
    if !holds(cx, tuple, &expected) {
        return None;
    }
    let master = K::table(cx.tables).at(expected.master, Direction::Reply)?;
    Some(Announced {
        helper: if tuple.proto() == ip_proto::TCP { "ftp" } else { "tftp" },
        by: master.other.flow(),
        to: expected.listener,
        network: expected.network,
    })
}

/// Whether the port that a caller comes to was published, or mapped, since it was announced.
fn is_another_s_by_now<K: Tracked>(cx: &Cx<'_>, tuple: K, expected: &Expected) -> bool {
    let (address, port): (IpAddr, u16) = (tuple.dst().into(), tuple.dst_port());
    // Of UDP the mapping is that by which the request left.
    let is_mapped = || {
        let mappings = K::table(cx.tables).room().mappings();
        tuple.proto() == ip_proto::TCP && mappings.has(ip_proto::TCP, address, port)
    };
    // At its own address nothing is published for another.
    expected.listener.0 != address
        && (cx.config.dnat.lookup(tuple.proto(), tuple.dst(), port).is_some() || is_mapped())
}

/// Puts an expectation back whose caller did not pass.
#[cold]
pub(super) fn give_back(cx: &Cx<'_>, expected: Expected) {
    cx.tables.helped.expectations.put_back(expected);
}

/// Counts a connection that came as expected.
#[cold]
pub(super) fn note_used(cx: &Cx<'_>) {
    cx.tables.helped.used.fetch_add(1, Ordering::Relaxed);
}

impl Expected {
    /// Where its connection is led.
    pub(super) fn target<A: Address>(&self) -> Option<DnatTarget<A>> {
        let (address, port) = self.listener;
        let (network, rule) = (self.network, self.rule);
        A::of(address).map(|address| DnatTarget { address, port, network, rule })
    }
}

/// What a segment of a helped connection acknowledges, in the numbers of whom it acknowledges.
#[cold]
pub(super) fn hear<K: Tracked>(cx: &Cx<'_>, seen: &mut Seen, hit: &Hit<K>) {
    if let Some(mut control) = cx.tables.helped.controls.get(id_of(hit)) {
        let flow = control.flow(hit.direction.reversed());
        seen.map_ack(|ack| flow.own(ack, Toward::Start));
    }
}

/// The way of a packet of a helped connection that is longer, with what was changed in it before, than the link
/// takes: in fragments. `Err`: it may not be cut; so long a packet would fit.
#[cold]
pub(super) fn widen<P: Ip>(
    cx: &Cx<'_>,
    frame: &Frame,
    ip: &P,
    hit: &Hit<P::Tuple>,
    way: WayOut,
) -> Result<WayOut, u16> {
    let L4::Tcp { header_len, .. } = ip.l4() else { return Ok(way) };
    let start = usize::from(ip.l4_offset());
    let Some(tcp::Numbers { seq, .. }) = tcp::numbers(frame.bytes(), start) else { return Ok(way) };
    if ip.is_fragment() || frame.vnet.is_gso() || way.fragment {
        return Ok(way);
    }
    let Some(mut control) = cx.tables.helped.controls.get(id_of(hit)) else { return Ok(way) };
    let payload = ip.end().saturating_sub(start + usize::from(header_len));
    let within = control.flow(hit.direction).within(seq, u32::try_from(payload).unwrap_or(0));
    // What is split is refused later.
    let Ok(changes) = within else { return Ok(way) };
    let growth: i64 = changes.iter().flatten().map(skew::Change::growth).sum();
    let mtu = i64::from(way.hop.mtu);
    if i64::from(ip.total_len()) + growth <= mtu {
        return Ok(way);
    }
    if ip.may_be_cut() {
        return Ok(WayOut { fragment: true, ..way });
    }
    // Nobody believes less than what every link takes (RFC 8201 §4).
    let least = if IpAddr::is_ipv6(&ip.src().into()) { IPV6_MIN_MTU } else { 0 };
    match u16::try_from(mtu - growth) {
        Ok(mtu) if mtu >= least => Err(mtu),
        _ => Ok(way),
    }
}

/// Reads what a packet of a helped connection announces, and makes of it what the other side must see.
#[cold]
#[inline(never)]
pub(super) fn pass<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    tuple: P::Tuple,
    hit: &Hit<P::Tuple>,
    way: &WayOut,
) -> Result<(), DropReason> {
    let Some(ip) = P::of(&mut lane.headers).map(|ip| *ip) else { return Ok(()) };
    match ip.l4() {
        L4::Tcp { flags, header_len, .. } => {
            let start = usize::from(ip.l4_offset());
            let place = Place { start, payload: start + usize::from(header_len), end: ip.end() };
            segment::<P>(cx, frame, lane, (place, flags), tuple, hit, way)
        }
        L4::Udp { .. } if !ip.is_fragment() && hit.direction == Direction::Original => {
            let payload = frame.bytes().get(usize::from(ip.l4_offset()) + 8..ip.end());
            if payload.is_some_and(tftp::is_request) && splice::is_sound(frame, &lane.headers) {
                announce::answer_to_request(cx, tuple, hit);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A segment of a control connection.
fn segment<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    (place, flags): (Place, u8),
    tuple: P::Tuple,
    hit: &Hit<P::Tuple>,
    way: &WayOut,
) -> Result<(), DropReason> {
    let Some(ip) = P::of(&mut lane.headers).map(|ip| *ip) else { return Ok(()) };
    let Some(tcp::Numbers { seq, ack, .. }) = tcp::numbers(frame.bytes(), place.start) else {
        return Ok(());
    };
    let (direction, tables) = (hit.direction, cx.tables);
    let acks = flags & tcp_flags::ACK != 0;
    let known = tables.helped.controls.get(id_of(hit));
    // Its numbers come before all changes.
    if flags & tcp_flags::SYN != 0 {
        if let Some(mut control) = known
            && is_opening(P::Tuple::table(tables), hit)
        {
            control.open(direction, seq.wrapping_add(1), acks.then_some(ack));
        }
        return Ok(());
    }
    let Some(mut control) = known.or_else(|| follow(cx, tuple, hit)) else { return Ok(()) };
    let is_whole = !ip.is_fragment();
    let payload = frame.bytes().get(place.payload..place.end).unwrap_or_default();
    // How much of a segment comes in fragments its first one does not say.
    let len = if is_whole { u32::try_from(payload.len()).unwrap_or(0) } else { u16::MAX.into() };
    if is_whole && let Some(last) = payload.last() {
        let (begins_line, ends_line) = (control.flow(direction).begins_line(seq), *last == b'\n');
        let is_sound = || splice::is_sound(frame, &lane.headers);
        if direction == Direction::Original
            && let Some(at) = ftp::asks(payload, begins_line)
            && is_sound()
        {
            control.note_asked(seq.wrapping_add(at));
        }
        if begins_line
            && control.may_announce(direction)
            && let Some(line) = announce::read_line(cx, payload, tuple, direction)
            && is_sound()
        {
            let cut = way.fragment || frame.vnet.is_gso();
            let room = announce::Room { ip_len: ip.total_len(), mtu: way.hop.mtu, cut };
            announce::expect(cx, &line, seq, control.flow(direction), tuple, hit, room);
        }
        if direction == Direction::Reply && begins_line && ftp::answers(payload) && is_sound() {
            control.note_answered();
            control.flow(direction).note_handled(seq);
        }
        if ends_line {
            control.flow(direction).note_line(seq.wrapping_add(len));
        }
    }
    let changes =
        control.flow(direction).within(seq, len).map_err(|Split| DropReason::HelperSplit)?;
    let shown = control.flow(direction).shown(seq);
    let other = control.flow(direction.reversed());
    let acked = if acks { other.own(ack, Toward::Start) } else { ack };
    if acks {
        other.note_acked(acked);
    }
    if (shown, acked) != (seq, ack) || acks && other.is_skewed() {
        splice::renumber(frame, place, (shown, acked), |header| {
            tcp::map_sack(header, |number, edge| {
                let toward = if edge == Edge::Left { Toward::End } else { Toward::Start };
                other.own(number, toward)
            });
        });
    }
    drop(control);
    if changes.iter().any(Option::is_some) {
        put_in::<P>(frame, lane, place, seq, &changes, way)?;
        if !is_skewed(hit.flags()) {
            P::Tuple::table(tables).mark(hit.id, SKEWED);
        }
    }
    Ok(())
}

/// Begins to follow a connection of which nothing is known so far, if it is established and there is room.
fn follow<'a, K: Tracked>(cx: &Cx<'a>, tuple: K, hit: &Hit<K>) -> Option<Locked<'a>> {
    let connections = K::table(cx.tables);
    if state_after(connections, hit) != Some(TcpState::Established) {
        return None;
    }
    // This packet completes the handshake: all that the other side has said and acknowledged is of a SYN.
    let is_first =
        hit.direction == Direction::Original && hit.state() == TcpState::SynReceived as u8;
    let [_, theirs] = connections.sides(hit);
    let control =
        if is_first { Control::starting_at(theirs.ack, theirs.end) } else { Control::default() };
    let helped = &cx.tables.helped;
    let followed = helped.controls.begin(hit, control::owner_of(tuple, hit), control);
    if followed.is_none() && is_first {
        helped.controls.refuse();
        helped.refuse(Refusal::Full);
    }
    followed
}

/// The state of a connection after this packet.
fn state_after<K: Key>(connections: &ConnTable<K>, hit: &Hit<K>) -> Option<TcpState> {
    connections.refresh(hit).and_then(|now| TcpState::from_u8(now.state()))
}

/// Whether a connection has not been established yet, after this packet.
fn is_opening<K: Key>(connections: &ConnTable<K>, hit: &Hit<K>) -> bool {
    let state = state_after(connections, hit);
    matches!(state, Some(TcpState::SynSent | TcpState::SynSent2 | TcpState::SynReceived))
}

/// Puts what the other side must see into a segment that begins with `seq`.
fn put_in<P: Ip>(
    frame: &mut Frame,
    lane: &mut Lane,
    place: Place,
    seq: u32,
    changes: &[Option<skew::Change>],
    way: &WayOut,
) -> Result<(), DropReason> {
    let Some(ip) = P::of(&mut lane.headers) else { return Ok(()) };
    let (before, may_grow) = (frame.len(), frame.vnet.is_gso() || way.fragment);
    let mut all_fit = true;
    splice::change_payload(frame, place, |frame| {
        // From behind, so that what comes before stays where it is.
        for change in changes.iter().rev().flatten() {
            let at = usize::try_from(change.seq.wrapping_sub(seq)).unwrap_or(usize::MAX);
            let (at, old_len) = (place.payload.saturating_add(at), usize::from(change.old_len));
            all_fit &= splice::replace(frame, at, old_len, change.text.as_bytes());
        }
    });
    let len = usize::try_from(ip.total_len()).unwrap_or(usize::MAX);
    let len = len.saturating_add(frame.len()).saturating_sub(before);
    let fits = may_grow || frame.len() <= before || len <= usize::from(way.hop.mtu);
    let len = u16::try_from(len).ok().filter(|_| all_fit && fits).ok_or(DropReason::HelperSplit)?;
    ip.set_total_len(frame, len);
    Ok(())
}
