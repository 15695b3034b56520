//! Fragments: later ones have no ports, so they go the way of the first one of their datagram.
//!
//! Reassembly without putting anything together: of each datagram the table knows which octets have
//! come and what became of the first fragment. What follows goes the same way; what overtakes the
//! first waits (`early`) and follows it, in the order in which it came. A fragment that overlaps
//! another one of its datagram by so much as one octet ends the datagram (RFC 5722, and CVE-2018-5391 for
//! IPv4): whoever puts the pieces together must have nothing to choose. So does one that says otherwise than
//! another where the datagram ends. An exact repetition is dropped alone, since networks repeat packets.
//!
//! A datagram is forgotten when all of it has passed, so only unfinished ones take room. As what it left is
//! remembered until its time is over (`departed`).
//!
//! The table is shared: fragments of one datagram may come in by several uplinks, and so at several
//! workers. It has one lock, held for a few lookups; only fragments wait for it. A worker with waiting
//! fragments is told by [`News`] what became of them. What has left has many locks of its own.
//!
//! A trace has a table of its own, which fetches from the other what it is asked about (`Origin`).
//!
//! Limits: a number of datagrams at once ([`EngineOptions::fragment_limit`](crate::EngineOptions)), each for a time
//! ([`Timeouts::fragments`](crate::config::Timeouts)). One [`Source`] has an eighth of them: its own oldest goes
//! then. Addresses outside have three quarters together. When all are taken the oldest of the source with the most goes, so that whoever leaves datagrams unfinished
//! keeps nobody out. A number of fragments of each datagram, and more only while few use that.

mod departed;
pub(crate) mod early;
mod ranges;
mod sources;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::nat::ip::Ip;
use crate::sync::Mutex;
use crate::verdict::DropReason;
pub use departed::Label;
use departed::{Departures, Leaving};
pub use ranges::Piece;
use ranges::{Fit, Ranges};
pub use sources::Source;
use sources::Sources;

/// Datagrams followed at a time, unless the engine is told otherwise.
pub const DEFAULT_LIMIT: u32 = 4096;

/// One source has one of so many parts of the table.
const PARTS: usize = 8;

/// One of so many parts of the table is never taken by addresses outside, all together: they can be made up.
const KEPT_INSIDE: usize = 4;

/// Fragments that every datagram may have, unless the engine is told otherwise: 64 KiB in the packets of Ethernet
/// are 45, in IPv6's shortest 53. Datagrams with more share as many as a full table could have.
pub const DEFAULT_PER_DATAGRAM: u32 = 64;

/// Bytes that wait at one worker for the first fragment of their datagram, unless the engine is told otherwise:
/// Linux' `ipfrag_high_thresh` is 4 MiB.
pub const DEFAULT_BYTES: u32 = 4 << 20;

/// Numbers of datagrams that begin in a copy are above this, those that it has fetched below.
const OF_COPIES: u64 = 1 << 63;

/// What the fragments of one datagram have in common (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Datagram {
    source: Source,
    src: IpAddr,
    dst: IpAddr,
    id: u32,
    /// Zero in IPv6, where only the first fragment says what it is.
    proto: u8,
}

impl Datagram {
    /// The datagram of a fragment that came from there.
    pub(crate) fn of<P: Ip>(ip: &P, source: Source) -> Self {
        Self::translated(ip, source, (ip.src().into(), ip.dst().into()))
    }

    /// The same of a packet that had these addresses when it came.
    pub(crate) fn translated<P: Ip>(ip: &P, source: Source, (src, dst): (IpAddr, IpAddr)) -> Self {
        let (proto, id) = ip.fragment_of();
        Self { source, src, dst, id, proto }
    }
}

/// What a first fragment that has passed says for those behind it. For ICMP queries both ports are the
/// identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carries {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Protocol number, which later fragments of IPv6 do not say.
    pub proto: u8,
    /// The identification that the datagram leaves with, if that is not its own.
    pub id: Option<u32>,
}

/// What to do with a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// The first of its datagram: let it pass, and say with [`Fragments::settle`] what became of it.
    First(u64),
    /// The first has passed: go the same way. `None`: it belongs to no connection.
    Follow(Option<Carries>),
    /// Wait for the first, under the number of the datagram.
    Wait(u64),
    /// It cannot pass.
    Drop(DropReason),
}

/// What became of a datagram that fragments wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Its first fragment has passed.
    Follow(Option<Carries>),
    /// Nothing comes of it.
    Drop(DropReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its first fragment has not come, or is on its way through the stages.
    Open,
    Passed(Option<Carries>),
    /// Its first fragment was dropped.
    Refused,
    /// Fragments contradict each other, or are too many.
    Spoilt(DropReason),
}

#[derive(Debug, Clone)]
struct Entry {
    number: u64,
    deadline: Timestamp,
    state: State,
    ranges: Ranges,
    /// Workers with waiting fragments, a bit each.
    waiting: u64,
}

/// The table.
#[derive(Debug)]
pub struct Fragments {
    table: Arc<Mutex<Table>>,
    departures: Departures,
    /// For each worker: whether there is news.
    news: Box<[AtomicBool]>,
}

/// What a table was copied from, a datagram at a time: who looks after a packet must not hold up all others.
#[derive(Debug)]
struct Origin {
    table: Arc<Mutex<Table>>,
    /// What has been asked for, whether it was there or not.
    asked: HashSet<Datagram>,
}

#[derive(Debug)]
struct Table {
    limit: usize,
    /// Fragments that every datagram may have.
    each: usize,
    datagrams: HashMap<Datagram, Entry>,
    sources: Sources,
    /// Fragments that have come, of all datagrams.
    pieces: usize,
    /// The most that there were.
    most_pieces: usize,
    /// Number of the latest datagram.
    number: u64,
    /// For each worker, by number.
    news: Box<[Vec<(u64, News)>]>,
    /// `None`: it is nobody's copy.
    origin: Option<Origin>,
}

impl Fragments {
    /// A table for so many datagrams, each of which may have so many fragments, and workers, of which there are 64
    /// at most.
    #[must_use]
    pub fn new(limit: u32, each: u32, workers: usize) -> Self {
        let [limit, each] = [limit, each].map(|n| usize::try_from(n).unwrap_or(usize::MAX).max(1));
        Self::over(Table::new((limit, each), workers, None), Departures::new(limit))
    }

    /// A copy, to try things out on; nobody is told what became of what waited before.
    pub(crate) fn copy(&self) -> Self {
        let origin = Origin { table: Arc::clone(&self.table), asked: HashSet::new() };
        let each = self.table.lock().each;
        let table = Table::new((self.limit(), each), self.news.len(), Some(origin));
        Self::over(table, self.departures.copy())
    }

    fn over(table: Table, departures: Departures) -> Self {
        let news = table.news.iter().map(|_| AtomicBool::new(false)).collect();
        Self { table: Arc::new(Mutex::new(table)), departures, news }
    }

    /// Enters a fragment that a worker has received, and says what to do with it.
    pub fn enter(
        &self,
        datagram: Datagram,
        piece: Piece,
        worker: usize,
        now: Timestamp,
        lifetime: Duration,
    ) -> Entered {
        let mut table = self.table.lock();
        table.fetch(&datagram);
        if table.datagrams.get(&datagram).is_some_and(|entry| entry.deadline <= now) {
            self.forget(&mut table, &datagram, DropReason::FragmentUntracked);
        }
        if !table.datagrams.contains_key(&datagram) {
            self.make_room(&mut table, datagram.source);
            table.begin(datagram, now + lifetime);
        }
        let fit = table.fit(&datagram, piece);
        match fit {
            Fit::New => table.follow(&datagram, piece, worker),
            Fit::Repeated => Entered::Drop(DropReason::FragmentDuplicate),
            Fit::Overlaps => self.spoil(&mut table, &datagram, DropReason::FragmentOverlap),
            Fit::Contradicts => self.spoil(&mut table, &datagram, DropReason::FragmentMalformed),
            Fit::TooMany => self.spoil(&mut table, &datagram, DropReason::FragmentLimit),
            Fit::Spoilt(reason) => Entered::Drop(reason),
        }
    }

    /// Notes as what a datagram leaves, and says which identification it has to have there if it must not
    /// keep its own; `draw` makes one up.
    pub fn depart(
        &self,
        whose: Datagram,
        leaves: (Label, Carries),
        now: Timestamp,
        lifetime: Duration,
        draw: impl FnMut() -> u32,
    ) -> Option<u32> {
        let (label, carries) = leaves;
        let leaving = Leaving { whose, label, carries, now, deadline: now + lifetime };
        let id = self.departures.note(leaving, draw);
        (id != label.id).then_some(id)
    }

    /// What the datagram carried, as it left, of which an ICMP error quotes a fragment, and the
    /// identification that its sender gave it.
    #[must_use]
    pub fn departed(&self, label: &Label, now: Timestamp) -> Option<(Carries, u32)> {
        self.departures.find(label, now)
    }

    /// States what became of a first fragment; `None`: it was dropped. Those that wait are told.
    pub fn settle(&self, datagram: &Datagram, number: u64, passed: Option<Option<Carries>>) {
        let mut table = self.table.lock();
        let Some(entry) = table.datagrams.get_mut(datagram) else { return };
        if entry.number != number || entry.state != State::Open {
            return;
        }
        let (state, news) = match passed {
            Some(carries) => (State::Passed(carries), News::Follow(carries)),
            None => (State::Refused, News::Drop(DropReason::FragmentUntracked)),
        };
        entry.state = state;
        let is_complete = entry.ranges.is_complete();
        self.tell(&mut table, datagram, news);
        if is_complete {
            table.remove(datagram);
        }
    }

    /// Forgets a datagram whose waiting fragments one worker has no room for; others are told.
    pub fn give_up(&self, datagram: &Datagram, number: u64) {
        let mut table = self.table.lock();
        if table.datagrams.get(datagram).is_some_and(|entry| entry.number == number) {
            self.forget(&mut table, datagram, DropReason::FragmentLimit);
        }
    }

    /// Forgets what came from there: a port that is gone, whose number another may get.
    pub fn forget_source(&self, source: Source) {
        self.departures.forget_source(source);
        let mut table = self.table.lock();
        while let Some(oldest) = table.sources.oldest_of(source) {
            self.forget(&mut table, &oldest, DropReason::FragmentUntracked);
        }
    }

    /// Datagrams that have left and are remembered: how many, at most as far as somebody looked, how many may be,
    /// and how many were forgotten for others.
    pub(crate) fn departed_uses(&self, now: Timestamp) -> ((u32, u32), u32, u64) {
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let all = narrow(self.departures.len(now));
        let limit = narrow(self.departures.limit());
        ((all, self.departures.peak()), limit, self.departures.pushed_out())
    }

    /// Counts a part of them, for [`Fragments::departed_uses`] to know how many there were.
    pub(crate) fn count_departed(&self, now: Timestamp) {
        self.departures.count_some(now);
    }

    /// Forgets datagrams whose time is over.
    pub fn expire(&self, now: Timestamp) {
        let mut table = self.table.lock();
        for datagram in table.expired(now) {
            self.forget(&mut table, &datagram, DropReason::FragmentUntracked);
        }
    }

    /// Whether a worker should [`Fragments::take_news`].
    #[must_use]
    #[inline]
    pub fn has_news(&self, worker: usize) -> bool {
        self.news.get(worker).is_some_and(|news| news.load(Ordering::Acquire))
    }

    /// Takes what a worker is to be told, in the order in which it happened; `into` is emptied before.
    pub fn take_news(&self, worker: usize, into: &mut Vec<(u64, News)>) {
        into.clear();
        let mut table = self.table.lock();
        if let (Some(news), Some(flag)) = (table.news.get_mut(worker), self.news.get(worker)) {
            std::mem::swap(news, into);
            flag.store(false, Ordering::Release);
        }
    }

    /// Datagrams followed now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().datagrams.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Datagrams followed at most.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.table.lock().limit
    }

    /// Fragments that have come of all of them: now, at most, and how many there may be: what every datagram may
    /// have, and as much again for those with more.
    #[must_use]
    pub fn pieces(&self) -> (usize, usize, usize) {
        let table = self.table.lock();
        let limit = table.limit.saturating_mul(table.each).saturating_mul(2);
        (table.pieces, table.most_pieces, limit)
    }

    /// Makes room for one more datagram of this source.
    fn make_room(&self, table: &mut Table, source: Source) {
        let own = (table.limit / PARTS).max(1);
        while table.sources.datagrams_of(source) >= own {
            let Some(oldest) = table.sources.oldest_of(source) else { break };
            self.forget(table, &oldest, DropReason::FragmentLimit);
        }
        if matches!(source, Source::Outside(_)) {
            let most = (table.limit - table.limit / KEPT_INSIDE).max(1);
            while let (have, Some(oldest)) = table.sources.outside()
                && have >= most
            {
                self.forget(table, &oldest, DropReason::FragmentLimit);
            }
        }
        while table.datagrams.len() >= table.limit {
            let heaviest = table.sources.heaviest();
            let Some(oldest) = heaviest.and_then(|heaviest| table.sources.oldest_of(heaviest))
            else {
                break;
            };
            self.forget(table, &oldest, DropReason::FragmentLimit);
        }
    }

    /// Lets nothing of a datagram pass any more. Its entry stays until its time is over, so that this holds.
    #[cold]
    fn spoil(&self, table: &mut Table, datagram: &Datagram, reason: DropReason) -> Entered {
        if let Some(entry) = table.datagrams.get_mut(datagram) {
            entry.state = State::Spoilt(reason);
            let pieces = std::mem::take(&mut entry.ranges).len();
            table.pieces -= pieces;
            table.sources.lose_pieces(datagram.source, pieces);
        }
        self.tell(table, datagram, News::Drop(reason));
        Entered::Drop(reason)
    }

    fn forget(&self, table: &mut Table, datagram: &Datagram, reason: DropReason) {
        self.tell(table, datagram, News::Drop(reason));
        table.remove(datagram);
    }

    /// Tells the workers that have fragments of the datagram.
    fn tell(&self, table: &mut Table, datagram: &Datagram, what: News) {
        let Some(entry) = table.datagrams.get_mut(datagram) else { return };
        let (number, waiting) = (entry.number, std::mem::take(&mut entry.waiting));
        if waiting == 0 {
            return;
        }
        for (worker, (news, flag)) in table.news.iter_mut().zip(&self.news).enumerate() {
            if waiting >> worker & 1 != 0 {
                news.push((number, what));
                flag.store(true, Ordering::Release);
            }
        }
    }
}

impl Table {
    fn new((limit, each): (usize, usize), workers: usize, origin: Option<Origin>) -> Self {
        Self {
            limit,
            each,
            datagrams: HashMap::new(),
            sources: Sources::default(),
            pieces: 0,
            most_pieces: 0,
            number: if origin.is_some() { OF_COPIES } else { 0 },
            news: (0..workers).map(|_| Vec::new()).collect(),
            origin,
        }
    }

    /// Takes over, if this is a copy, what the other has of a datagram.
    #[inline]
    fn fetch(&mut self, datagram: &Datagram) {
        let Some(origin) = &mut self.origin else { return };
        if !origin.asked.insert(*datagram) {
            return;
        }
        let other = origin.table.lock();
        let found = other.datagrams.get(datagram).cloned();
        drop(other);
        let Some(entry) = found else { return };
        self.pieces += entry.ranges.len();
        self.sources.begin(entry.number, *datagram);
        for _ in 0..entry.ranges.len() {
            self.sources.gain_piece(datagram.source);
        }
        self.datagrams.insert(*datagram, Entry { waiting: 0, ..entry });
    }

    fn begin(&mut self, datagram: Datagram, deadline: Timestamp) {
        self.number += 1;
        let number = self.number;
        let (state, ranges) = (State::Open, Ranges::default());
        self.datagrams.insert(datagram, Entry { number, deadline, state, ranges, waiting: 0 });
        self.sources.begin(number, datagram);
    }

    fn fit(&self, datagram: &Datagram, piece: Piece) -> Fit {
        let Some(entry) = self.datagrams.get(datagram) else { return Fit::TooMany };
        if let State::Spoilt(reason) = entry.state {
            return Fit::Spoilt(reason);
        }
        let fit = entry.ranges.fit(piece);
        let more = self.limit.saturating_mul(self.each);
        let is_long = entry.ranges.len() >= self.each;
        let has_room = || {
            self.pieces < more && self.sources.pieces_of(datagram.source) < (more / PARTS).max(1)
        };
        if fit == Fit::New && is_long && !has_room() { Fit::TooMany } else { fit }
    }

    /// Notes a fragment that fits, and says what to do with it.
    fn follow(&mut self, datagram: &Datagram, piece: Piece, worker: usize) -> Entered {
        let Some(entry) = self.datagrams.get_mut(datagram) else {
            return Entered::Drop(DropReason::FragmentLimit);
        };
        entry.ranges.insert(piece);
        self.pieces += 1;
        self.most_pieces = self.most_pieces.max(self.pieces);
        self.sources.gain_piece(datagram.source);
        let entered = match entry.state {
            State::Open if piece.is_first() => return Entered::First(entry.number),
            State::Open => {
                entry.waiting |= 1 << (worker % 64);
                return Entered::Wait(entry.number);
            }
            State::Passed(carries) => Entered::Follow(carries),
            State::Refused => Entered::Drop(DropReason::FragmentUntracked),
            State::Spoilt(reason) => Entered::Drop(reason),
        };
        if entry.ranges.is_complete() {
            self.remove(datagram);
        }
        entered
    }

    fn remove(&mut self, datagram: &Datagram) {
        let Some(entry) = self.datagrams.remove(datagram) else { return };
        self.pieces -= entry.ranges.len();
        self.sources.end(entry.number, datagram, entry.ranges.len());
    }

    fn expired(&self, now: Timestamp) -> Vec<Datagram> {
        let is_over = |datagram: &Datagram| {
            self.datagrams.get(datagram).is_some_and(|entry| entry.deadline <= now)
        };
        self.sources.those(is_over)
    }
}

#[cfg(test)]
mod tests;
