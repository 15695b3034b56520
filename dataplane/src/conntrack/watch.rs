//! Who is told of connections as they begin, change and end.
//!
//! A watcher has a bounded queue; what finds no place in it is counted as missed, and no worker waits. While
//! nobody watches, beginning and ending a connection, and changing its state, cost one relaxed load more;
//! packets that change nothing cost nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam::queue::ArrayQueue;

use crate::engine::Connection;
use crate::limits::Peak;
use crate::sync::Mutex;

/// Events waiting for a watcher at most.
pub(crate) const QUEUE: u32 = 8192;

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

#[derive(Debug)]
struct Queue {
    /// Who only asks what begins and ends has room for more of that.
    updates: bool,
    events: ArrayQueue<ConnectionEvent>,
    missed: AtomicU64,
}

/// Those who watch. The tables of both families share them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Watchers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    any: AtomicBool,
    any_updates: AtomicBool,
    /// The most that waited.
    peak: Peak,
    /// Held for moments, and only while somebody watches.
    queues: Mutex<Vec<Arc<Queue>>>,
}

impl Watchers {
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
        for queue in self.0.queues.lock().iter() {
            if change == Change::Update && !queue.updates {
                continue;
            }
            let event = ConnectionEvent { unix_nanos, change, connection: connection.clone() };
            if queue.events.push(event).is_err() {
                queue.missed.fetch_add(1, Ordering::Relaxed);
            }
            self.0.peak.note(u32::try_from(queue.events.len()).unwrap_or(u32::MAX));
        }
    }

    pub(crate) fn watch(&self, updates: bool) -> Watch {
        let events = ArrayQueue::new(QUEUE as usize);
        let queue = Arc::new(Queue { updates, events, missed: AtomicU64::new(0) });
        let mut queues = self.0.queues.lock();
        queues.push(Arc::clone(&queue));
        self.note_who(&queues);
        drop(queues);
        Watch { queue, watchers: self.clone() }
    }

    fn note_who(&self, queues: &[Arc<Queue>]) {
        self.0.any.store(!queues.is_empty(), Ordering::Release);
        let updates = queues.iter().any(|queue| queue.updates);
        self.0.any_updates.store(updates, Ordering::Release);
    }

    /// Events that wait for the slowest watcher, and that waited at most since the start.
    pub(crate) fn uses(&self) -> (u32, u32) {
        let queues = self.0.queues.lock();
        let most = queues.iter().map(|queue| queue.events.len()).max().unwrap_or(0);
        (u32::try_from(most).unwrap_or(u32::MAX), self.0.peak.value())
    }
}

/// What happens to connections from its beginning on; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    queue: Arc<Queue>,
    watchers: Watchers,
}

impl Watch {
    /// The next event, if there is one. Never blocks.
    #[must_use]
    pub fn next_event(&self) -> Option<ConnectionEvent> {
        self.queue.events.pop()
    }

    /// Events that found no place since the last look.
    #[must_use]
    pub fn take_missed(&self) -> u64 {
        self.queue.missed.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut queues = self.watchers.0.queues.lock();
        queues.retain(|queue| !Arc::ptr_eq(queue, &self.queue));
        self.watchers.note_who(&queues);
    }
}

#[cfg(test)]
mod tests {
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
        let watch = table.watchers().watch(true);
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
        let watch = table.watchers().watch(true);
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
        let watch = table.watchers().watch(false);
        assert!(table.watchers().any() && !table.watchers().any_updates());
        let all = table.watchers().watch(true);
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
        let watch = table.watchers().watch(true);
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
        let (slow, fast) = (table.watchers().watch(true), table.watchers().watch(true));
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
    }
}
