//! The table under several threads at once that insert, look up, refresh, end, expire and evict the
//! same few connections, in rounds too short for any order but a random one.
//!
//! `interleavings` has a model checker choose the order, in fewer and shorter rounds; here the processor's own
//! memory model is part of it.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::entry::{Insert, SEEN_REPLY};
use super::expiry::Sweep;
use super::samples::{Sample, connection, for_both_families, tuple};
use super::{ConnTable, Room, Tuple, Tuple6};
use crate::clock::Timestamp;
use crate::hash::HashKey;

for_both_families! {
    both_tuples_or_none_whatever_many_threads_do
    several_threads_that_begin_one_flow_get_one_entry_each_time
}

/// How much there is to get in each other's way about.
pub(super) struct Few {
    /// More than have room.
    pub(super) flows: u16,
    /// Room for connections.
    pub(super) limit: u32,
    /// Steps of a thread.
    pub(super) steps: u32,
}

/// So many that they are at the same places of the index all the time.
const MANY: Few = Few { flows: 48, limit: 32, steps: 400 };
const THREADS: u16 = 3;
const ROUNDS: u32 = 150;

/// A sequence of its own for every thread (xorshift, George Marsaglia 2003).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self, below: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from((self.0 >> 11) % u64::from(below)).unwrap()
    }
}

/// The outside ports that threads want for a flow: other flows never have them, so that a lookup which
/// mixes two connections is seen.
fn outside_port(flow: u16, thread: u16) -> u16 {
    flow * THREADS + thread
}

/// One thread's part of a round.
pub(super) fn disturb<K: Sample>(
    table: &ConnTable<K>,
    thread: u16,
    random: &mut Random,
    now: u32,
    few: &Few,
) {
    for _ in 0..few.steps {
        let flow = u16::try_from(random.next(u32::from(few.flows))).unwrap();
        let original = tuple::<K>(1, flow);
        match random.next(8) {
            0..=2 => {
                let port = outside_port(flow, thread);
                let deadline = now + random.next(3);
                table.insert(&connection::<K>(1, flow, port, deadline), now);
            }
            3 | 4 => {
                let Some(hit) = table.lookup(original, now) else { continue };
                let port = hit.other.flow().dst_port;
                assert_eq!(port / THREADS, flow, "another connection's tuple");
                let flags = if random.next(4) == 0 { SEEN_REPLY } else { 0 };
                table.touch(&hit, 1, 0, flags, now + random.next(3));
            }
            5 => {
                let reply = connection::<K>(1, flow, outside_port(flow, thread), 0).reply;
                let Some(hit) = table.lookup(reply, now) else { continue };
                assert_eq!(hit.other, original, "another connection's tuple");
            }
            6 => {
                if let Some(hit) = table.lookup(original, now) {
                    table.remove(hit.id);
                }
            }
            _ => {
                table.expire(random.next(few.limit), now);
            }
        }
    }
}

/// Nobody does anything now.
pub(super) fn check<K: Sample>(table: &ConnTable<K>, now: u32, round: u32, few: &Few) {
    let mut living = 0;
    for flow in 0..few.flows {
        let forth = table.lookup(tuple::<K>(1, flow), now);
        let back: Vec<_> = (0..THREADS)
            .filter_map(|thread| {
                table.lookup(connection::<K>(1, flow, outside_port(flow, thread), 0).reply, now)
            })
            .collect();
        living += u32::from(forth.is_some());
        match (forth, &back[..]) {
            (None, []) => {}
            (Some(forth), [back]) => {
                assert_eq!(forth.id, back.id, "round {round}, flow {flow}");
                assert_eq!(back.other, tuple::<K>(1, flow));
            }
            found => panic!("round {round}, flow {flow}: {found:?}"),
        }
    }
    assert_eq!(table.entries(now).count(), usize::try_from(living).unwrap(), "round {round}");
    assert!(table.len() <= few.limit);
    assert!(table.counts_its_ports(), "round {round}");
}

fn both_tuples_or_none_whatever_many_threads_do<K: Sample>() {
    let table = ConnTable::<K>::within(&Room::new(MANY.limit), HashKey::new(5, 6)).unwrap();
    let (clock, barrier) = (AtomicU32::new(10), Barrier::new(usize::from(THREADS)));
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (table, clock, barrier) = (&table, &clock, &barrier);
            scope.spawn(move || {
                let mut random = Random(u64::from(number) + 1);
                for round in 0..ROUNDS {
                    let now = clock.load(Ordering::SeqCst);
                    disturb(table, number, &mut random, now, &MANY);
                    if barrier.wait().is_leader() {
                        check(table, now, round, &MANY);
                        clock.store(now + 1, Ordering::SeqCst);
                    }
                    barrier.wait();
                }
            });
        }
    });
    // All of it comes back, and all of it can be used again.
    let end = clock.load(Ordering::SeqCst) + 10;
    let mut sweep = Sweep::default();
    for second in 0..10 {
        sweep.step(&table, Timestamp::from_secs(u64::from(end + second)));
    }
    assert_eq!((table.len(), table.entries(end).count()), (0, 0));
    for flow in 0..u16::try_from(MANY.limit).unwrap() {
        let inserted = table.insert(&connection::<K>(2, flow, flow, end + 99), end);
        assert!(matches!(inserted, Insert::Inserted(_)), "{flow}: {inserted:?}");
    }
}

/// Rows: Linux `conntrack_clash.sh, udpclash.c`.
fn several_threads_that_begin_one_flow_get_one_entry_each_time<K: Sample>() {
    const TIMES: u16 = 3000;
    let table = ConnTable::<K>::within(&Room::new(65_536), HashKey::new(7, 8)).unwrap();
    let barrier = Barrier::new(usize::from(THREADS));
    let begun: Vec<Vec<bool>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (table, barrier) = (&table, &barrier);
                scope.spawn(move || {
                    let begin = |flow: u16| {
                        barrier.wait();
                        // All want the same tuples.
                        match table.insert(&connection::<K>(1, flow, flow, 100), 0) {
                            Insert::Inserted(_) => true,
                            // The one that came too late goes on with the other's.
                            Insert::Exists(hit) => {
                                assert_eq!(hit.other.flow().dst_port, flow);
                                false
                            }
                            other => panic!("{flow}: {other:?}"),
                        }
                    };
                    (0..TIMES).map(begin).collect()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for flow in 0..usize::from(TIMES) {
        let count = begun.iter().filter(|begun| begun[flow]).count();
        assert_eq!(count, 1, "flow {flow} was begun {count} times");
    }
    assert_eq!(table.len(), u32::from(TIMES));
}
