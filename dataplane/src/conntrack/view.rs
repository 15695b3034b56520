//! The table as people see it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::accounts::is_open;
use super::cold::Cold;
use super::entry::{ASSURED, ConnId, DNAT, NewConnection, SEEN_REPLY, SNAT, is_expected};
use super::key::Key;
use super::sctp::SctpState;
use super::table::ConnTable;
use super::tcp::TcpState;
use super::tuple::Direction;
use super::window::Side;
use super::words::{Meta, deadline_of, side_of};
use crate::clock::Timestamp;
use crate::engine::{Connection, ConntrackStats, HelperStats};
use crate::packet::types::{NetworkId, ip_proto};

/// One connection with its number and rule, as control walks them.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Number, for [`ConnTable::remove`].
    pub id: ConnId,
    /// DNAT rule or zero.
    pub rule: u32,
    /// Another connection announced it, which came by the rule.
    pub is_expected: bool,
    /// The network that its first packet came from; `None`: from outside.
    pub from: Option<NetworkId>,
    /// The network that its answers come from.
    pub to: Option<NetworkId>,
    /// The two sides have not agreed on it: TCP or SCTP without a complete handshake, anything else that
    /// nobody has answered.
    pub is_open: bool,
    /// The rest.
    pub connection: Connection,
}

/// An entry as it is in memory.
pub(super) struct Raw<K> {
    pub(super) version: u32,
    pub(super) new: NewConnection<K>,
    /// Packets and bytes of both directions.
    pub(super) counters: [[u64; 2]; 2],
    /// What both sides have said.
    pub(super) sides: [Side; 2],
}

impl<K: Key> ConnTable<K> {
    pub(super) fn raw(&self, index: u32) -> Option<Raw<K>> {
        self.raw_with(index, || self.rule(index))
    }

    /// The same of a table that has its rules elsewhere.
    pub(super) fn raw_with(&self, index: u32, rule: impl Fn() -> u32) -> Option<Raw<K>> {
        let hot = self.hot(index)?;
        let cold = |direction| self.cold(index, direction);
        let cold = [cold(Direction::Original)?, cold(Direction::Reply)?];
        let mut raw = self.raw_of(index, rule)?;
        raw.counters = cold.map(Cold::counters);
        for ((side, cold), way) in raw.sides.iter_mut().zip(cold).zip(hot.ways) {
            let (end, ack) = cold.numbers();
            *side = Side::from_words(end, ack, side_of(way.load(Ordering::Acquire)));
        }
        let again = Meta(hot.meta.load(Ordering::Acquire));
        (again.version() == raw.version).then_some(raw)
    }

    /// What does not depend on the format of the rest: without counters and sides.
    pub(super) fn raw_of(&self, index: u32, rule: impl Fn() -> u32) -> Option<Raw<K>> {
        let hot = self.hot(index)?;
        let meta = Meta(hot.meta.load(Ordering::Acquire));
        let new = NewConnection {
            original: K::load(hot.original, Ordering::Acquire),
            reply: K::load(hot.reply, Ordering::Acquire),
            state: meta.state(),
            flags: meta.flags(),
            network: meta.network(),
            rule: if meta.flags() & DNAT != 0 { rule() } else { 0 },
            deadline: deadline_of(hot.deadline.load(Ordering::Acquire)),
        };
        let again = Meta(hot.meta.load(Ordering::Acquire));
        (meta.is_live() && again.version() == meta.version()).then_some(Raw {
            version: meta.version(),
            new,
            counters: Default::default(),
            sides: Default::default(),
        })
    }

    /// Every connection that has not expired.
    pub fn entries(&self, now: u32) -> impl Iterator<Item = Entry> {
        (0..self.high_water()).filter_map(move |index| {
            let raw = self.raw(index)?;
            let left = raw.new.deadline.checked_sub(now).filter(|left| *left > 0)?;
            Some(Entry {
                id: ConnId { index, version: raw.version },
                rule: raw.new.rule,
                is_expected: is_expected(raw.new.flags),
                from: raw.new.original.zone().inside(),
                to: raw.new.reply.zone().inside(),
                is_open: raw.is_open(),
                connection: raw.shown(left),
            })
        })
    }

    /// The connection of an entry, expired or not.
    pub(super) fn connection(&self, index: u32) -> Option<Connection> {
        let raw = self.raw(index)?;
        let left = raw.new.deadline.saturating_sub(Timestamp::now().as_secs());
        Some(raw.shown(left))
    }

    /// Totals.
    #[must_use]
    pub fn stats(&self) -> ConntrackStats {
        let totals = &self.totals;
        ConntrackStats {
            entries: self.len(),
            limit: self.limit(),
            inserted: totals.inserted.load(Ordering::Relaxed),
            expired: totals.expired.load(Ordering::Relaxed),
            flushed: totals.flushed.load(Ordering::Relaxed),
            full: totals.full.load(Ordering::Relaxed),
            clashes: totals.clashes.load(Ordering::Relaxed),
            ports_exhausted: totals.ports_exhausted.load(Ordering::Relaxed),
            picked_up: totals.picked_up.load(Ordering::Relaxed),
            evicted: self.room.accounts().evicted(),
            helpers: HelperStats::default(),
        }
    }
}

impl<K: Key> Raw<K> {
    fn is_open(&self) -> bool {
        let NewConnection { original, state, flags, network, .. } = self.new;
        is_open(original.proto(), Meta::new(self.version, state, flags, network))
    }

    /// As people see it; it has so many seconds left.
    fn shown(&self, left: u32) -> Connection {
        let Self { new, counters, .. } = self;
        let [[packets_o, bytes_o], [packets_r, bytes_r]] = *counters;
        let (original, reply) = (new.original.flow(), new.reply.flow());
        // A rule may also open the very address and port that a packet goes to.
        let led = (original.dst, original.dst_port) != (reply.src, reply.src_port);
        Connection {
            proto: new.original.proto(),
            state: state_name(new.original.proto(), new.state, new.flags),
            original,
            reply,
            snat: new.flags & SNAT != 0,
            dnat: new.flags & DNAT != 0 && led,
            timeout: Duration::from_secs(u64::from(left)),
            packets: [packets_o, packets_r],
            bytes: [bytes_o, bytes_r],
            network: new.network,
        }
    }
}

/// Every name that [`Connection::state`] can have: those of TCP, then those of SCTP beside, then those of the rest.
pub const STATES: [&str; 20] = [
    "SYN_SENT",
    "SYN_SENT2",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "PICKED_UP",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
    "UNREPLIED",
    "REPLIED",
    "ASSURED",
];

/// See [`Connection::state`].
pub(crate) fn state_name(proto: u8, state: u8, flags: u8) -> &'static str {
    if proto == ip_proto::TCP {
        return TcpState::from_u8(state).map_or("NONE", TcpState::name);
    }
    if proto == ip_proto::SCTP {
        return SctpState::from_u8(state).map_or("NONE", SctpState::name);
    }
    if flags & ASSURED != 0 {
        "ASSURED"
    } else if flags & SEEN_REPLY != 0 {
        "REPLIED"
    } else {
        "UNREPLIED"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn every_state_is_listed() {
        let tcp = (0..=u8::MAX).filter(|state| TcpState::from_u8(*state).is_some());
        let sctp = (0..=u8::MAX).filter(|state| SctpState::from_u8(*state).is_some());
        let others = [0, SEEN_REPLY, ASSURED, SEEN_REPLY | ASSURED];
        let mut named: Vec<&str> = tcp
            .map(|state| state_name(ip_proto::TCP, state, 0))
            .chain(sctp.map(|state| state_name(ip_proto::SCTP, state, 0)))
            .chain(others.map(|flags| state_name(ip_proto::UDP, 0, flags)))
            .collect();
        let mut listed = STATES.to_vec();
        named.sort_unstable();
        named.dedup();
        listed.sort_unstable();
        assert_eq!(named, listed);
    }
}
