//! Datagrams whose first fragment has left: by what those who put them together know them.
//!
//! Two senders behind one address may use one identification to one destination at the same time; their
//! fragments would be put together as one datagram (RFC 6864 §5.3.1, RFC 7857 §10). The second gets another
//! identification. And an ICMP error that quotes a later fragment, without ports, is told by this which
//! connection it is about.
//!
//! Limits: as many as datagrams are followed, shared as those are. One that had to go can be mistaken for another.

use std::collections::HashMap;
use std::net::IpAddr;

use super::sources::Sources;
use super::{Carries, Datagram, KEPT_INSIDE, PARTS, Source};
use crate::clock::Timestamp;

/// Identifications tried for one that is free. Few are ever taken.
const TRIES: usize = 16;

/// What the fragments of a datagram have in common where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Label {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol number, where all fragments say it; zero in IPv6.
    pub proto: u8,
    /// Identification.
    pub id: u32,
}

/// A datagram that has left.
#[derive(Debug, Clone, Copy)]
struct Departed {
    whose: Datagram,
    number: u64,
    deadline: Timestamp,
    /// As it left.
    carries: Carries,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Departures {
    by_label: HashMap<Label, Departed>,
    labels: HashMap<Datagram, Label>,
    sources: Sources,
    number: u64,
}

impl Departures {
    /// Notes that a datagram leaves as this, and says which identification it has to have there.
    pub(super) fn note(
        &mut self,
        whose: Datagram,
        (mut label, carries): (Label, Carries),
        (now, deadline): (Timestamp, Timestamp),
        limit: usize,
        mut draw: impl FnMut() -> u32,
    ) -> u32 {
        self.forget(&whose);
        let own = label.id;
        for _ in 0..TRIES {
            if self.is_free(&label, now) {
                break;
            }
            label.id = draw();
        }
        if !self.is_free(&label, now) {
            label.id = own;
        }
        if let Some(other) = self.by_label.get(&label).map(|other| other.whose) {
            self.forget(&other);
        }
        self.make_room(&whose, limit);
        self.number += 1;
        let number = self.number;
        self.by_label.insert(label, Departed { whose, number, deadline, carries });
        self.labels.insert(whose, label);
        self.sources.begin(number, whose);
        label.id
    }

    fn is_free(&self, label: &Label, now: Timestamp) -> bool {
        self.by_label.get(label).is_none_or(|departed| departed.deadline <= now)
    }

    fn make_room(&mut self, whose: &Datagram, limit: usize) {
        while self.sources.datagrams_of(whose.source) >= (limit / PARTS).max(1) {
            let Some(oldest) = self.sources.oldest_of(whose.source) else { break };
            self.forget(&oldest);
        }
        if matches!(whose.source, Source::Outside(_)) {
            let most = (limit - limit / KEPT_INSIDE).max(1);
            while let (have, Some(oldest)) = self.sources.outside()
                && have >= most
            {
                self.forget(&oldest);
            }
        }
        while self.by_label.len() >= limit {
            let heaviest = self.sources.heaviest();
            let oldest = heaviest.and_then(|heaviest| self.sources.oldest_of(heaviest));
            let Some(oldest) = oldest else { break };
            self.forget(&oldest);
        }
    }

    /// What a datagram with this label carried, and the identification that its sender gave it.
    pub(super) fn find(&self, label: &Label, now: Timestamp) -> Option<(Carries, u32)> {
        let departed = self.by_label.get(label).filter(|departed| departed.deadline > now)?;
        Some((departed.carries, departed.whose.id))
    }

    fn forget(&mut self, whose: &Datagram) {
        let Some(label) = self.labels.remove(whose) else { return };
        if let Some(departed) = self.by_label.remove(&label) {
            self.sources.end(departed.number, whose, 0);
        }
    }

    pub(super) fn forget_source(&mut self, source: super::Source) {
        while let Some(oldest) = self.sources.oldest_of(source) {
            self.forget(&oldest);
        }
    }

    pub(super) fn expire(&mut self, now: Timestamp) {
        let over = |departed: &&Departed| departed.deadline <= now;
        let all: Vec<_> = self.by_label.values().filter(over).map(|it| it.whose).collect();
        for whose in all {
            self.forget(&whose);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize, usize) {
        let sources = self.sources.those(|_| true).len();
        (self.by_label.len(), self.labels.len(), sources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::types::PortId;

    const CARRIES: Carries = Carries { src_port: 1, dst_port: 2, proto: 17, id: None };
    const OUTSIDE: [u8; 4] = [203, 0, 113, 5];
    const SERVER: [u8; 4] = [198, 51, 100, 7];

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    fn datagram(host: u8, id: u32) -> Datagram {
        let source = Source::Port(PortId(host.into()));
        Datagram { source, src: [10, 0, 0, host].into(), dst: SERVER.into(), id, proto: 17 }
    }

    fn label(id: u32) -> Label {
        Label { src: OUTSIDE.into(), dst: SERVER.into(), proto: 17, id }
    }

    struct Table(Departures, u32);

    impl Table {
        fn note(&mut self, host: u8, id: u32, now: u64) -> u32 {
            let drawn = &mut self.1;
            let draw = || {
                *drawn += 1;
                *drawn
            };
            let times = (at(now), at(now + 30));
            self.0.note(datagram(host, id), (label(id), CARRIES), times, 64, draw)
        }

        fn whose(&self, id: u32, now: u64) -> Option<u32> {
            self.0.find(&label(id), at(now)).map(|(_, id)| id)
        }
    }

    #[test]
    fn no_two_senders_have_one_identification_at_a_time() {
        let mut table = Table(Departures::default(), 99);
        assert_eq!(table.note(1, 7, 0), 7);
        assert_eq!(table.note(1, 7, 0), 7, "its sender's own business");
        assert_eq!(table.note(2, 7, 0), 100);
        assert_eq!(table.note(3, 100, 0), 101, "another's new one is taken too");
        assert_eq!(table.note(4, 7, 0), 102);
        assert_eq!([7, 100, 101, 102].map(|id| table.whose(id, 1)), [7, 7, 100, 7].map(Some));
        assert_eq!(table.whose(7, 30), None, "no longer");
        assert_eq!(table.note(5, 7, 30), 7, "its time is over");
        // Another destination has its own.
        let elsewhere = Label { dst: [192, 0, 2, 1].into(), ..label(7) };
        let times = (at(30), at(60));
        let noted = table.0.note(datagram(6, 7), (elsewhere, CARRIES), times, 64, || 0);
        assert_eq!(noted, 7);
        table.0.expire(at(30));
        assert_eq!(table.0.len(), (2, 2, 2));
        table.0.forget_source(Source::Port(PortId(5)));
        table.0.expire(at(60));
        assert_eq!(table.0.len(), (0, 0, 0));
    }

    #[test]
    fn addresses_outside_leave_a_quarter_to_those_inside() {
        let mut table = Table(Departures::default(), 1000);
        for id in [500, 501, 502] {
            table.note(1, id, 0);
        }
        for host in 0..200 {
            let source = Source::Outside([192, 0, 2, host].into());
            let from = Datagram { source, ..datagram(9, u32::from(host)) };
            let own = Label { dst: [192, 0, 2, host].into(), ..label(u32::from(host)) };
            table.0.note(from, (own, CARRIES), (at(0), at(30)), 64, || 0);
        }
        assert_eq!([500, 501, 502].map(|id| table.whose(id, 1)), [500, 501, 502].map(Some));
        assert_eq!(table.0.len(), (51, 51, 51));
    }

    #[test]
    fn whoever_sends_many_forgets_its_own() {
        let mut table = Table(Departures::default(), 1000);
        table.note(1, 500, 0);
        for id in 0..100 {
            assert_eq!(table.note(2, id, 0), id);
        }
        assert_eq!(table.0.len(), (9, 9, 9));
        assert_eq!(
            (table.whose(500, 1), table.whose(91, 1), table.whose(92, 1)),
            (Some(500), None, Some(92))
        );
        for host in 3..100 {
            table.note(host, 200 + u32::from(host), 0);
        }
        assert_eq!(table.0.len(), (64, 64, 64));
    }

    #[test]
    fn one_that_finds_none_free_keeps_its_own() {
        let mut table = Departures::default();
        let times = (at(0), at(30));
        let mut note = |host| table.note(datagram(host, 7), (label(7), CARRIES), times, 64, || 7);
        assert_eq!((note(1), note(2)), (7, 7));
        assert_eq!(table.len(), (1, 1, 1));
    }
}
