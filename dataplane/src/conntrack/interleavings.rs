//! The table under a scheduler that chooses, before every operation on a word or a lock of it, which thread goes
//! on: `shuttle`. A schedule that fails is printed, and `shuttle::replay` goes the same way again.
//!
//! `tests/run` runs them with the feature `shuttle`, in a build of their own: see `crate::sync`.

use std::sync::Arc;

use shuttle::rand::{RngCore, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};

use super::entry::{Insert, SEEN_REPLY};
use super::samples::{Sample, connection, for_both_families, tuple};
use super::stress_tests::{Few, Random, check, disturb};
use super::{ConnTable, Room, Tuple, Tuple6};
use crate::hash::HashKey;

for_both_families! {
    both_tuples_or_none_in_every_order
    of_two_that_begin_one_flow_one_does
    room_that_is_made_is_not_lost_to_a_flood
    what_is_evicted_and_used_again_is_never_found_as_what_it_was
}

/// Schedules of each kind: those of a table that is full, as looking for whom to evict has hundreds of steps.
const FULL: usize = 100;
const ROOMY: usize = 600;
/// Priorities of threads change at so many places (Burckhardt et al., "A Randomized Scheduler with Probabilistic
/// Guarantees of Finding Bugs", ASPLOS 2010).
const DEPTH: usize = 3;
/// Bytes: frames of the standard library's formatting are longer than the default is.
const STACK: usize = 1 << 18;

/// Tries schedules of both kinds.
fn explore(schedules: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let scenario = Arc::new(scenario);
    let mut config = Config::new();
    config.stack_size = STACK;
    let own = Arc::clone(&scenario);
    Runner::new(RandomScheduler::new(schedules), config.clone()).run(move || own());
    Runner::new(PctScheduler::new(DEPTH, schedules), config).run(move || scenario());
}

fn table<K: Sample>(limit: u32) -> Arc<ConnTable<K>> {
    Arc::new(ConnTable::within(&Room::new(limit), HashKey::new(5, 6)).unwrap())
}

/// Threads that enter, look up, refresh, end and expire what shares its entries and its places in the index; a
/// full table evicts.
fn both_tuples_or_none_in_every_order<K: Sample>() {
    const FEW: Few = Few { flows: 3, limit: 2, steps: 4 };
    explore(FULL, || {
        let table = table::<K>(FEW.limit);
        let now = 10;
        let threads: Vec<_> = (0..3)
            .map(|number| {
                let (table, seed) = (Arc::clone(&table), thread_rng().next_u64() | 1);
                thread::spawn(move || disturb(&table, number, &mut Random(seed), now, &FEW))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        check(&table, now, 0, &FEW);
    });
}

/// Whoever makes room for himself is not the only one who makes and takes it.
fn room_that_is_made_is_not_lost_to_a_flood<K: Sample>() {
    explore(FULL, || {
        let table = table::<K>(2);
        for port in [1, 2] {
            table.insert(&connection::<K>(1, port, port, 100), 0);
        }
        let flood = Arc::clone(&table);
        let flood = thread::spawn(move || {
            for port in [3, 4] {
                flood.insert(&connection::<K>(1, port, port, 100), 0);
            }
        });
        let inserted = table.insert(&connection::<K>(3, 5, 5, 100), 0);
        flood.join().unwrap();
        assert!(matches!(inserted, Insert::Inserted(_)), "{inserted:?}");
    });
}

/// Commit against commit: the one that comes too late is shown the other's.
fn of_two_that_begin_one_flow_one_does<K: Sample>() {
    explore(ROOMY, || {
        let table = table::<K>(4);
        let threads: Vec<_> = [70, 71]
            .into_iter()
            .map(|port| {
                let table = Arc::clone(&table);
                thread::spawn(move || table.insert(&connection::<K>(1, 7, port, 100), 0))
            })
            .collect();
        let done: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let hit = table.lookup(tuple::<K>(1, 7), 0).expect("it was begun");
        let outcome = |at: usize| match &done[at] {
            Insert::Inserted(id) => {
                assert_eq!((*id, hit.other.flow().dst_port), (hit.id, [70, 71][at]));
                true
            }
            Insert::Exists(other) => {
                assert_eq!((other.id, other.other), (hit.id, hit.other));
                false
            }
            other => panic!("{other:?}"),
        };
        assert_ne!(outcome(0), outcome(1), "{done:?}");
        assert_eq!(table.len(), 1);
    });
}

/// Evict against lookup and refresh: a table of one entry, in which one flow makes the other go all the time.
fn what_is_evicted_and_used_again_is_never_found_as_what_it_was<K: Sample>() {
    explore(FULL, || {
        let table = table::<K>(1);
        let enters = |flow: u16| {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                for _ in 0..2 {
                    table.insert(&connection::<K>(1, flow, flow, 100), 0);
                }
            })
        };
        let reads = Arc::clone(&table);
        let reader = thread::spawn(move || {
            for flow in [1, 2, 1] {
                let new = connection::<K>(1, flow, flow, 100);
                if let Some(hit) = reads.lookup(new.original, 0) {
                    assert_eq!(hit.other, new.reply, "another connection's tuple");
                    // Answered, it stays; gone, nobody else's is.
                    if flow == 2 && reads.touch(&hit, 1, 0, SEEN_REPLY, 100) {
                        assert_eq!(
                            reads.lookup(new.reply, 0).map(|hit| hit.other),
                            Some(new.original)
                        );
                    }
                }
            }
        });
        for thread in [enters(1), enters(2), reader] {
            thread.join().unwrap();
        }
        let there = [1, 2].map(|flow| {
            let new = connection::<K>(1, flow, flow, 100);
            let [forth, back] = [new.original, new.reply].map(|tuple| table.lookup(tuple, 0));
            assert_eq!(forth.map(|hit| hit.id), back.map(|hit| hit.id));
            forth.is_some()
        });
        assert_eq!(table.len(), 1, "{there:?}");
        assert_ne!(there[0], there[1]);
        assert!(table.counts_its_ports());
    });
}
