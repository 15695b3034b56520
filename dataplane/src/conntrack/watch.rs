//! Who is told of connections as they begin, change and end.
//!
//! A watcher has a bounded queue without a lock; what finds no place in it is counted as missed, and no worker
//! waits. While nobody watches, beginning and ending a connection, and changing its state, cost one relaxed
//! load more; packets that change nothing cost nothing.
//!
//! Order: what one thread tells is heard in that order. What different workers tell is heard in the order in
//! which it came into the queue, which need not be quite that of its times.
//!
//! Limits: [`QUEUE`] events for each watcher unless the engine is told otherwise, [`WATCHERS`] at a time. The memory of a queue stays for the next
//! watcher, since a worker may be about to put something in it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam::queue::ArrayQueue;

use crate::engine::Connection;
use crate::limits::Peak;
use crate::sync::Mutex;

/// Events waiting for a watcher at most, unless the engine is told otherwise.
pub(crate) const QUEUE: u32 = 8192;

/// Watchers at a time.
pub const WATCHERS: usize = 16;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Both sides had closed it, or one had reset it, and the time that it is kept then is over.
    Closed,
    /// Its endpoint, network or outside address is gone.
    EndpointGone,
    /// Nobody had answered it, and another needed its place.
    Evicted,
    /// By hand.
    Flushed,
    /// Its first packets waited in vain for a neighbor.
    NoNeighbor,
    /// A rule denies it now.
    Policy,
    /// No packet came for long enough.
    Timeout,
    /// The port that it spoke from is published now, or a narrower rule leads where it came in.
    Published,
    /// Its way out is another now, with another address.
    Rerouted,
    /// The published port that led it is gone, or leads elsewhere.
    Unpublished,
}

impl EndReason {
    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::EndpointGone => "endpoint_gone",
            Self::Evicted => "evicted",
            Self::Flushed => "flushed",
            Self::NoNeighbor => "no_neighbor",
            Self::Policy => "policy",
            Self::Published => "published",
            Self::Rerouted => "rerouted",
            Self::Timeout => "timeout",
            Self::Unpublished => "unpublished",
        }
    }
}

/// What has become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It ended.
    Destroy(EndReason),
    /// It began.
    New,
    /// Its state is another, or somebody has answered for the first time.
    Update,
}

/// Something that happened to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionEvent {
    /// Wall-clock time in nanoseconds since the epoch.
    pub unix_nanos: u64,
    /// What.
    pub change: Change,
    /// The connection as it is now; one that has ended, as it was last.
    pub connection: Connection,
}

/// Whether a place is taken, and by whom.
mod who {
    /// Nobody.
    pub(super) const NOBODY: u8 = 0;
    /// Who only asks what begins and ends, and so has room for more of that.
    pub(super) const OF_ENDS: u8 = 1;
    /// Who asks for changes too.
    pub(super) const OF_ALL: u8 = 2;
}

/// A place for a watcher.
#[derive(Debug, Default)]
struct Place {
    /// Of [`who`].
    who: AtomicU8,
    events: OnceLock<ArrayQueue<ConnectionEvent>>,
    missed: AtomicU64,
}

impl Place {
    fn len(&self) -> u32 {
        let len = self.events.get().map_or(0, ArrayQueue::len);
        u32::try_from(len).unwrap_or(u32::MAX)
    }

    fn clear(&self) {
        while self.events.get().and_then(ArrayQueue::pop).is_some() {}
        self.missed.store(0, Ordering::Relaxed);
    }
}

/// Those who watch. The tables of both families share them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Watchers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    any: AtomicBool,
    any_updates: AtomicBool,
    /// Events that may wait for each, if that is not [`QUEUE`].
    queue: OnceLock<u32>,
    /// The most that waited.
    peak: Peak,
    /// Events that found no place, of all watchers since the start.
    missed: AtomicU64,
    places: [Place; WATCHERS],
    /// Held while a watcher begins or ends; whoever tells does not take it.
    changing: Mutex<()>,
}

impl Watchers {
    /// So many events wait for each watcher at most, one at least. Only the first time, and before anybody watches.
    pub(crate) fn limit(&self, queue: u32) {
        // A second limit would not be that of queues that are there.
        let _ = self.0.queue.set(queue.max(1));
    }

    /// Events that may wait for each watcher.
    pub(crate) fn queue(&self) -> u32 {
        self.0.queue.get().copied().unwrap_or(QUEUE)
    }

    /// Events that found no place since the start.
    pub(crate) fn missed(&self) -> u64 {
        self.0.missed.load(Ordering::Relaxed)
    }

    /// Whether anybody is to be told.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.0.any.load(Ordering::Relaxed)
    }

    /// Whether anybody is to be told of a connection that has changed.
    #[inline]
    pub(crate) fn any_updates(&self) -> bool {
        self.0.any_updates.load(Ordering::Relaxed)
    }

    /// Tells everybody who watches.
    #[cold]
    pub(crate) fn tell(&self, change: Change, connection: &Connection) {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_nanos = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
        for place in &self.0.places {
            match place.who.load(Ordering::Acquire) {
                who::NOBODY => continue,
                who::OF_ENDS if change == Change::Update => continue,
                _ => {}
            }
            let Some(events) = place.events.get() else { continue };
            let event = ConnectionEvent { unix_nanos, change, connection: connection.clone() };
            if events.push(event).is_err() {
                place.missed.fetch_add(1, Ordering::Relaxed);
                self.0.missed.fetch_add(1, Ordering::Relaxed);
            }
            self.0.peak.note(place.len());
        }
    }

    /// `None`: there are [`WATCHERS`] already.
    pub(crate) fn watch(&self, updates: bool) -> Option<Watch> {
        let _changing = self.0.changing.lock();
        let is_free = |place: &Place| place.who.load(Ordering::Relaxed) == who::NOBODY;
        let at = self.0.places.iter().position(is_free)?;
        let place = self.0.places.get(at)?;
        place.events.get_or_init(|| ArrayQueue::new(self.queue() as usize));
        // What was told at the moment in which the one before ended.
        place.clear();
        place.who.store(if updates { who::OF_ALL } else { who::OF_ENDS }, Ordering::Release);
        self.note_who();
        Some(Watch { at, updates, watchers: self.clone() })
    }

    /// While `changing` is held.
    fn note_who(&self) {
        let all = || self.0.places.iter().map(|place| place.who.load(Ordering::Relaxed));
        self.0.any.store(all().any(|it| it != who::NOBODY), Ordering::Release);
        self.0.any_updates.store(all().any(|it| it == who::OF_ALL), Ordering::Release);
    }

    /// Events that wait for the slowest watcher, and that waited at most since the start.
    pub(crate) fn uses(&self) -> (u32, u32) {
        let is_taken = |place: &&Place| place.who.load(Ordering::Relaxed) != who::NOBODY;
        let most = self.0.places.iter().filter(is_taken).map(Place::len).max().unwrap_or(0);
        (most, self.0.peak.value())
    }
}

/// What happens to connections from its beginning on; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    /// Which of the places.
    at: usize,
    updates: bool,
    watchers: Watchers,
}

impl Watch {
    /// The next event, if there is one. Never blocks.
    #[must_use]
    pub fn next_event(&self) -> Option<ConnectionEvent> {
        let events = self.place()?.events.get()?;
        // Who began to tell when another had this place may tell a change that nobody asked for.
        std::iter::from_fn(|| events.pop())
            .find(|event| self.updates || event.change != Change::Update)
    }

    fn place(&self) -> Option<&Place> {
        self.watchers.0.places.get(self.at)
    }

    /// Events that found no place since the last look.
    #[must_use]
    pub fn take_missed(&self) -> u64 {
        self.place().map_or(0, |place| place.missed.swap(0, Ordering::Relaxed))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _changing = self.watchers.0.changing.lock();
        if let Some(place) = self.place() {
            place.who.store(who::NOBODY, Ordering::Release);
            place.clear();
        }
        self.watchers.note_who();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::samples::{Sample, connection, for_both_families, tuple};
    use super::*;
    use crate::conntrack::{ConnTable, Insert, Tuple, Tuple6};
    use crate::hash::HashKey;

    fn table<K: Sample>(limit: u32) -> ConnTable<K> {
        ConnTable::new(limit, HashKey::new(1, 2)).unwrap()
    }

    fn changes(watch: &Watch) -> Vec<(Change, u16)> {
        let next = || watch.next_event();
        std::iter::from_fn(next)
            .map(|event| (event.change, event.connection.original.src_port))
            .collect()
    }

    fn begin_change_and_end_are_told<K: Sample>() {
        let table = table::<K>(16);
        let enter = |port: u16| match table.insert(&connection(1, port, port, 50), 1) {
            Insert::Inserted(id) => id,
            other => panic!("{other:?}"),
        };
        let unseen = enter(999);
        let watch = table.watchers().watch(true).unwrap();
        let (first, second) = (enter(1000), enter(1001));
        assert_eq!(changes(&watch), [(Change::New, 1000), (Change::New, 1001)]);
        let hit = table.lookup(tuple(1, 1000), 1).unwrap();
        assert!(table.touch(&hit, 100, 3, 0, 60));
        let updated = watch.next_event().unwrap();
        assert_eq!(updated.change, Change::Update);
        // The same again, and another deadline, are no news.
        let hit = table.lookup(tuple(1, 1000), 1).unwrap();
        assert!(table.touch(&hit, 100, 3, 0, 70));
        assert!(watch.next_event().is_none());
        assert!(table.remove(second));
        assert!(!table.remove(second));
        assert!(table.expire(first.index, 100));
        let ended = [
            (Change::Destroy(EndReason::Flushed), 1001),
            (Change::Destroy(EndReason::Timeout), 1000),
        ];
        assert_eq!(changes(&watch), ended);
        assert!(table.end(unseen, EndReason::Unpublished));
        let last = watch.next_event().unwrap();
        assert_eq!(last.connection.original.src_port, 999);
        drop(watch);
        assert!(!table.watchers().any() && !table.watchers().any_updates());
    }

    fn what_is_counted_is_told_at_the_end<K: Sample>() {
        let table = table::<K>(16);
        let watch = table.watchers().watch(true).unwrap();
        let Insert::Inserted(id) = table.insert(&connection(1, 1000, 2000, 50), 1) else {
            panic!()
        };
        let hit = table.lookup(tuple(1, 1000), 1).unwrap();
        assert!(table.touch(&hit, 100, hit.state(), 0, 60));
        assert!(table.touch(&hit, 150, hit.state(), 0, 60));
        assert!(table.remove(id));
        assert_eq!(watch.next_event().unwrap().change, Change::New);
        let end = watch.next_event().unwrap();
        assert_eq!((end.connection.packets, end.connection.bytes), ([2, 0], [250, 0]));
    }

    fn who_does_not_ask_for_changes_is_told_none<K: Sample>() {
        let table = table::<K>(16);
        let watch = table.watchers().watch(false).unwrap();
        assert!(table.watchers().any() && !table.watchers().any_updates());
        let all = table.watchers().watch(true).unwrap();
        let Insert::Inserted(id) = table.insert(&connection(1, 1000, 2000, 50), 1) else {
            panic!()
        };
        let hit = table.lookup(tuple(1, 1000), 1).unwrap();
        assert!(table.touch(&hit, 100, 3, 0, 60));
        assert!(table.remove(id));
        let end = (Change::Destroy(EndReason::Flushed), 1000);
        assert_eq!(changes(&watch), [(Change::New, 1000), end]);
        assert_eq!(changes(&all), [(Change::New, 1000), (Change::Update, 1000), end]);
    }

    /// Whose places another takes ends by that, and not in silence.
    fn who_is_evicted_is_told<K: Sample>() {
        let table = table::<K>(2);
        let watch = table.watchers().watch(true).unwrap();
        for port in [1000, 1001] {
            assert!(matches!(table.insert(&connection(1, port, port, 50), 1), Insert::Inserted(_)));
        }
        assert!(matches!(table.insert(&connection(1, 1002, 1002, 50), 1), Insert::Inserted(_)));
        let told = changes(&watch);
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(matches!(told[2], (Change::Destroy(EndReason::Evicted), 1000 | 1001)), "{told:?}");
        assert_eq!(told[3], (Change::New, 1002));
    }

    for_both_families! {
        begin_change_and_end_are_told
        what_is_counted_is_told_at_the_end
        who_does_not_ask_for_changes_is_told_none
        who_is_evicted_is_told
    }

    #[test]
    fn a_slow_watcher_misses_events_and_is_told() {
        let table = table::<Tuple>(16);
        let [slow, fast] = [(); 2].map(|()| table.watchers().watch(true).unwrap());
        let mut told = 0;
        for _ in 0..QUEUE {
            let Insert::Inserted(id) = table.insert(&connection(1, 1000, 2000, 50), 1) else {
                panic!()
            };
            assert!(table.remove(id));
            told += changes(&fast).len();
        }
        assert_eq!((told, fast.take_missed()), (2 * QUEUE as usize, 0));
        assert_eq!(table.watchers().uses(), (QUEUE, QUEUE));
        assert_eq!(slow.take_missed(), u64::from(QUEUE));
        assert_eq!((changes(&slow).len(), slow.take_missed()), (QUEUE as usize, 0));
        assert_eq!(table.watchers().missed(), u64::from(QUEUE));
    }

    #[test]
    fn so_many_events_wait_as_the_engine_is_told() {
        let table = table::<Tuple>(16);
        table.watchers().limit(3);
        let watch = table.watchers().watch(true).unwrap();
        for _ in 0..4 {
            let Insert::Inserted(id) = table.insert(&connection(1, 1000, 2000, 50), 1) else {
                panic!()
            };
            assert!(table.remove(id));
        }
        assert_eq!((table.watchers().uses(), table.watchers().missed()), ((3, 3), 5));
        assert_eq!((changes(&watch).len(), watch.take_missed()), (3, 5));
    }

    #[test]
    fn there_are_so_many_watchers_and_no_more() {
        let table = table::<Tuple>(16);
        let mut all: Vec<_> =
            (0..WATCHERS).map(|_| table.watchers().watch(true).unwrap()).collect();
        assert!(table.watchers().watch(true).is_none());
        let begin = |port| {
            let Insert::Inserted(id) = table.insert(&connection(1, port, port, 50), 1) else {
                panic!()
            };
            id
        };
        begin(1000);
        all.truncate(1);
        // A place that is given again has nothing of what the one before did not hear.
        let next = table.watchers().watch(false).unwrap();
        assert!(next.next_event().is_none() && next.take_missed() == 0);
        begin(1001);
        assert_eq!(changes(&next), [(Change::New, 1001)]);
        assert_eq!(changes(&all[0]), [(Change::New, 1000), (Change::New, 1001)]);
        drop((all, next));
        assert!(!table.watchers().any());
        assert_eq!(table.watchers().uses().0, 0);
    }

    /// Each worker's in its order, none twice, none lost without being counted.
    #[test]
    fn workers_tell_at_the_same_time() {
        const EACH: u64 = 6000;
        let watchers = Watchers::default();
        let watch = watchers.watch(true).unwrap();
        let sample = {
            let table = table::<Tuple>(16);
            assert!(matches!(table.insert(&connection(1, 1, 1, 50), 1), Insert::Inserted(_)));
            table.entries(1).next().unwrap().connection
        };
        let mut heard = Vec::new();
        let mut missed = 0;
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..3u16)
                .map(|worker| {
                    let (watchers, mut connection) = (&watchers, sample.clone());
                    connection.original.src_port = worker;
                    scope.spawn(move || {
                        for number in 0..EACH {
                            connection.timeout = Duration::from_secs(number);
                            watchers.tell(Change::Update, &connection);
                        }
                    })
                })
                .collect();
            loop {
                let over = workers.iter().all(std::thread::ScopedJoinHandle::is_finished);
                heard.extend(std::iter::from_fn(|| watch.next_event()));
                missed += watch.take_missed();
                if over {
                    break;
                }
            }
        });
        assert_eq!(heard.len() as u64 + missed, 3 * EACH);
        for worker in 0..3u16 {
            let of = heard.iter().filter(|event| event.connection.original.src_port == worker);
            let numbers: Vec<_> = of.map(|event| event.connection.timeout).collect();
            assert!(numbers.is_sorted_by(|a, b| a < b));
        }
    }
}
