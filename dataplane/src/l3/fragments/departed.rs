//! Datagrams whose first fragment has left, or that were cut here: by what those who put them together know
//! them.
//!
//! Two senders behind one address may use one identification to one destination at the same time; their
//! fragments would be put together as one datagram (RFC 6864 §5.3.1, RFC 7857 §10). The second gets another
//! identification. And an ICMP error that quotes a fragment is told by this which connection it is about, and
//! which identification its sender knows.
//!
//! Every packet that is cut here comes by, at whatever worker. So all memory is there from the start, and a label
//! has one of many small sets that it can be in, each with a lock of its own: workers meet only at the same one.
//!
//! Limits: as many as datagrams are followed, in sets of [`WAYS`]. In a full set the oldest goes of the source
//! that has the most there; addresses outside, which can be made up, have three quarters of a set together. One
//! that had to go can be mistaken for another.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use super::{Carries, Datagram, KEPT_INSIDE, Source};
use crate::clock::Timestamp;
use crate::limits::Peak;
use crate::sync::Mutex;

/// Identifications tried for one that is free. Few are ever taken.
const TRIES: usize = 16;

/// Places in a set: enough that few sets are full while most of all places are free.
const WAYS: usize = 16;

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
    label: Label,
    whose: Datagram,
    /// In the order in which they came into the set.
    number: u64,
    deadline: Timestamp,
    /// As it left.
    carries: Carries,
}

/// A datagram that leaves, and until when that is remembered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaving {
    pub(super) whose: Datagram,
    pub(super) label: Label,
    pub(super) carries: Carries,
    pub(super) now: Timestamp,
    pub(super) deadline: Timestamp,
}

/// Those whose labels have one hash.
#[derive(Debug, Clone, Default)]
struct Set {
    places: [Option<Departed>; WAYS],
    number: u64,
    /// Those that had to go before their time.
    pushed_out: u64,
}

/// Sets counted at a time: a few microseconds' work.
const STEP: usize = 32;

/// All of them.
#[derive(Debug)]
pub(super) struct Departures {
    sets: Box<[Mutex<Set>]>,
    /// Counted so far, up to which set.
    counted: Mutex<(usize, usize)>,
    /// The most that there were at once, as far as somebody looked.
    peak: Peak,
    hasher: RandomState,
}

impl Departures {
    /// Room for so many, in whole sets.
    pub(super) fn new(limit: usize) -> Self {
        let sets = (0..limit.div_ceil(WAYS).max(1)).map(|_| Mutex::default()).collect();
        Self::over(sets, RandomState::new())
    }

    /// The same, to try things out on. No lock is held for longer than one set takes.
    pub(super) fn copy(&self) -> Self {
        let sets = self.sets.iter().map(|set| Mutex::new(set.lock().clone())).collect();
        Self::over(sets, self.hasher.clone())
    }

    fn over(sets: Box<[Mutex<Set>]>, hasher: RandomState) -> Self {
        Self { sets, counted: Mutex::default(), peak: Peak::default(), hasher }
    }

    fn set_of(&self, label: &Label) -> Option<&Mutex<Set>> {
        let hash = self.hasher.hash_one(label);
        let sets = u64::try_from(self.sets.len()).unwrap_or(u64::MAX);
        self.sets.get(usize::try_from(hash % sets.max(1)).unwrap_or(0))
    }

    /// Notes that a datagram leaves, and says which identification it has to have then.
    pub(super) fn note(&self, mut leaving: Leaving, mut draw: impl FnMut() -> u32) -> u32 {
        let own = leaving.label.id;
        for _ in 0..TRIES {
            if self.enter(&leaving, false) {
                return leaving.label.id;
            }
            leaving.label.id = draw();
        }
        leaving.label.id = own;
        self.enter(&leaving, true);
        own
    }

    /// Enters it, unless another has its label and must not lose it. False: so it is.
    fn enter(&self, leaving: &Leaving, by_force: bool) -> bool {
        self.set_of(&leaving.label).is_some_and(|set| set.lock().enter(leaving, by_force))
    }

    /// What a datagram with this label carried, and the identification that its sender gave it.
    pub(super) fn find(&self, label: &Label, now: Timestamp) -> Option<(Carries, u32)> {
        let set = self.set_of(label)?.lock();
        let departed = set.live(now).find(|departed| departed.label == *label)?;
        Some((departed.carries, departed.whose.id))
    }

    pub(super) fn forget_source(&self, source: Source) {
        for set in &self.sets {
            for place in &mut set.lock().places {
                *place = place.filter(|departed| departed.whose.source != source);
            }
        }
    }

    /// Counts a few more of those that are remembered; what all of them are in turn is noted for
    /// [`Departures::peak`].
    pub(super) fn count_some(&self, now: Timestamp) {
        let mut counted = self.counted.lock();
        let (sum, first) = *counted;
        let last = (first + STEP).min(self.sets.len());
        let some = self.sets.get(first..last).unwrap_or_default();
        let sum = sum + some.iter().map(|set| set.lock().live(now).count()).sum::<usize>();
        *counted = if last < self.sets.len() { (sum, last) } else { (0, 0) };
        drop(counted);
        if last == self.sets.len() {
            self.note_peak(sum);
        }
    }

    fn note_peak(&self, all: usize) {
        self.peak.note(u32::try_from(all).unwrap_or(u32::MAX));
    }

    /// The most that there were, as far as somebody looked.
    pub(super) fn peak(&self) -> u32 {
        self.peak.value()
    }

    /// Those that are remembered now.
    pub(super) fn len(&self, now: Timestamp) -> usize {
        let all: usize = self.sets.iter().map(|set| set.lock().live(now).count()).sum();
        self.note_peak(all);
        all
    }

    /// Those that are remembered at most.
    pub(super) fn limit(&self) -> usize {
        self.sets.len() * WAYS
    }

    /// Those that had to go before their time, since the start.
    pub(super) fn pushed_out(&self) -> u64 {
        self.sets.iter().map(|set| set.lock().pushed_out).sum()
    }
}

impl Set {
    fn live(&self, now: Timestamp) -> impl Iterator<Item = &Departed> {
        self.places.iter().flatten().filter(move |departed| departed.deadline > now)
    }

    fn enter(&mut self, leaving: &Leaving, by_force: bool) -> bool {
        let Leaving { whose, label, carries, now, deadline } = *leaving;
        let has_label = |place: &Option<Departed>| place.is_some_and(|it| it.label == label);
        let place = match self.places.iter().position(has_label) {
            Some(place) => {
                let other = self.places.get(place).copied().flatten();
                // Its sender's own business.
                let is_free = other.is_none_or(|it| it.deadline <= now || it.whose == whose);
                if !is_free && !by_force {
                    return false;
                }
                place
            }
            None => self.room_for(whose.source, now),
        };
        self.number += 1;
        let departed = Departed { label, whose, number: self.number, deadline, carries };
        if let Some(place) = self.places.get_mut(place) {
            let before = place.replace(departed);
            self.pushed_out +=
                u64::from(before.is_some_and(|it| it.deadline > now && it.label != label));
        }
        true
    }

    /// A place for one more of this source: a free one, or that of one that has to go.
    fn room_for(&self, source: Source, now: Timestamp) -> usize {
        let is_outside = |source: Source| matches!(source, Source::Outside(_));
        let of_outside = self.live(now).filter(|it| is_outside(it.whose.source)).count();
        if is_outside(source) && of_outside >= WAYS - WAYS / KEPT_INSIDE {
            return self.oldest(|departed| is_outside(departed.whose.source));
        }
        let is_over = |place: &Option<Departed>| place.is_none_or(|it| it.deadline <= now);
        if let Some(free) = self.places.iter().position(is_over) {
            return free;
        }
        let count = |source: Source| self.live(now).filter(|it| it.whose.source == source).count();
        let most = self.live(now).map(|it| count(it.whose.source)).max().unwrap_or(0);
        self.oldest(|departed| count(departed.whose.source) == most)
    }

    /// The place of the oldest of those.
    fn oldest(&self, of: impl Fn(&Departed) -> bool) -> usize {
        let numbers = self.places.iter().enumerate().filter_map(|(place, departed)| {
            departed.filter(&of).map(|departed| (departed.number, place))
        });
        numbers.min().map_or(0, |(_, place)| place)
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

    fn leaving(whose: Datagram, label: Label, now: u64) -> Leaving {
        Leaving { whose, label, carries: CARRIES, now: at(now), deadline: at(now + 30) }
    }

    struct Table(Departures, u32);

    impl Table {
        fn new(limit: usize) -> Self {
            Self(Departures::new(limit), 1000)
        }

        fn note(&mut self, host: u8, id: u32, now: u64) -> u32 {
            let drawn = &mut self.1;
            self.0.note(leaving(datagram(host, id), label(id), now), || {
                *drawn += 1;
                *drawn
            })
        }

        /// Of somebody outside, whose datagrams leave with labels of their own.
        fn note_outside(&self, host: u8, id: u32) {
            let source = Source::Outside([192, 0, 2, host].into());
            let own = Label { dst: [192, 0, 2, host].into(), ..label(id) };
            let from = Datagram { source, ..datagram(9, id) };
            assert_eq!(self.0.note(leaving(from, own, 0), || 0), id);
        }

        fn whose(&self, id: u32, now: u64) -> Option<u32> {
            self.0.find(&label(id), at(now)).map(|(_, id)| id)
        }
    }

    #[test]
    fn no_two_senders_have_one_identification_at_a_time() {
        let mut table = Table::new(1024);
        assert_eq!(table.note(1, 7, 0), 7);
        assert_eq!(table.note(1, 7, 0), 7, "its sender's own business");
        assert_eq!(table.note(2, 7, 0), 1001);
        assert_eq!(table.note(3, 1001, 0), 1002, "another's new one is taken too");
        assert_eq!(table.note(4, 7, 0), 1003);
        assert_eq!([7, 1001, 1002, 1003].map(|id| table.whose(id, 1)), [7, 7, 1001, 7].map(Some));
        assert_eq!(table.whose(7, 30), None, "no longer");
        assert_eq!(table.note(5, 7, 30), 7, "its time is over");
        // Another destination has its own.
        let elsewhere = Label { dst: [192, 0, 2, 1].into(), ..label(7) };
        assert_eq!(table.0.note(leaving(datagram(6, 7), elsewhere, 30), || 0), 7);
        assert_eq!(table.0.len(at(30)), 2);
        table.0.forget_source(Source::Port(PortId(5)));
        assert_eq!((table.0.len(at(30)), table.whose(7, 30)), (1, None));
        assert_eq!(table.0.len(at(60)), 0);
    }

    #[test]
    fn addresses_outside_leave_a_quarter_to_those_inside() {
        let mut table = Table::new(WAYS);
        for id in [500, 501, 502, 503] {
            table.note(1, id, 0);
        }
        for host in 0..200 {
            table.note_outside(host, host.into());
        }
        assert_eq!([500, 501, 502, 503].map(|id| table.whose(id, 1)).iter().flatten().count(), 4);
        assert_eq!(table.0.len(at(1)), WAYS);
        // And whatever is free they do not take.
        let table = Table::new(WAYS);
        for host in 0..200 {
            table.note_outside(host, host.into());
        }
        assert_eq!(table.0.len(at(1)), WAYS - WAYS / KEPT_INSIDE);
    }

    #[test]
    fn the_most_are_seen_a_few_sets_at_a_time() {
        let mut table = Table::new(3 * STEP * WAYS);
        for id in 0..500 {
            table.note(1, id, 0);
        }
        // The last sets are not there yet.
        (0..2).for_each(|_| table.0.count_some(at(1)));
        assert_eq!(table.0.peak(), 0);
        table.0.count_some(at(1));
        assert_eq!(usize::try_from(table.0.peak()).unwrap(), table.0.len(at(1)));
        (0..3).for_each(|_| table.0.count_some(at(30)));
        assert_eq!((table.0.len(at(30)), table.0.peak()), (0, 500));
    }

    #[test]
    fn whoever_sends_many_forgets_its_own() {
        let mut table = Table::new(64);
        for id in 500..504 {
            table.note(1, id, 0);
        }
        for id in 0..400 {
            assert_eq!(table.note(2, id, 0), id);
        }
        assert_eq!(table.0.len(at(1)), 64);
        assert!((500..504).all(|id| table.whose(id, 1) == Some(id)), "of another");
        assert_eq!((table.whose(0, 1), table.whose(399, 1)), (None, Some(399)), "its oldest go");
        assert_eq!((table.0.pushed_out(), table.0.limit()), (404 - 64, 64));
    }

    #[test]
    fn one_that_finds_none_free_keeps_its_own() {
        let table = Departures::new(64);
        let note = |host| table.note(leaving(datagram(host, 7), label(7), 0), || 7);
        assert_eq!((note(1), note(2)), (7, 7));
        assert_eq!(table.len(at(1)), 1);
    }

    #[test]
    fn workers_that_cut_at_the_same_time_never_choose_the_same() {
        let table = Departures::new(1 << 16);
        let chosen: Vec<u32> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4u32)
                .map(|worker| {
                    let table = &table;
                    scope.spawn(move || {
                        let mut next = 1000 + worker;
                        let all = (0..500).map(|id| {
                            let whose = datagram(u8::try_from(worker).unwrap(), id);
                            table.note(leaving(whose, label(id), 0), || {
                                next += 4;
                                next
                            })
                        });
                        all.collect::<Vec<_>>()
                    })
                })
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        let different: std::collections::HashSet<_> = chosen.iter().collect();
        assert_eq!(different.len(), chosen.len());
    }

    #[test]
    fn a_copy_is_another() {
        let mut table = Table::new(64);
        table.note(1, 7, 0);
        let copy = Table(table.0.copy(), 2000);
        assert_eq!(copy.whose(7, 1), Some(7));
        copy.0.forget_source(Source::Port(PortId(1)));
        assert_eq!((copy.whose(7, 1), table.whose(7, 1)), (None, Some(7)));
    }
}
