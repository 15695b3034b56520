//! The connection table alone: looking up, inserting, expiring and sweeping at 1, 10,000 and
//! 1,000,000 connections, in random order, beside a concurrent hash map
//! (`docs/adr/0004-conntrack-flat-table.md`).
#![allow(missing_docs, reason = "criterion_group! makes a public function")]
#![allow(clippy::expect_used, reason = "a bench that cannot be set up must stop")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use benches::SIZES;
use benches::frames::{CONTAINER, OUTSIDE, SERVER_PORT, flow};
use benches::random::Random;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dashmap::DashMap;
use dataplane::conntrack::entry::SNAT;
use dataplane::conntrack::{ConnTable, Insert, Key, NewConnection, Tuple, Zone};
use dataplane::hash::HashKey;
use dataplane::packet::types::{NetworkId, ip_proto};

const NETWORK: NetworkId = NetworkId(1);
const NOW: u32 = 1000;
const DEADLINE: u32 = 2000;
const BATCH: usize = 64;
/// Connections inserted or expired between two looks at the clock.
const CHUNK: u32 = 1024;

fn connection(number: u32) -> NewConnection {
    let (server, port) = flow(number);
    let zone = Zone::network(NETWORK);
    let original = Tuple::new(CONTAINER, server, port, SERVER_PORT, zone, ip_proto::UDP);
    NewConnection {
        original,
        reply: original.with_src(OUTSIDE, port).reversed(Zone::OUTSIDE),
        state: 0,
        flags: SNAT,
        network: NETWORK,
        rule: 0,
        deadline: DEADLINE,
    }
}

/// A table with connections `0..count`, entry `n` holding connection `n`, and room for a chunk more.
fn filled(count: u32) -> ConnTable {
    let table = ConnTable::new(count + CHUNK, HashKey::new(1, 2)).expect("memory");
    for number in 0..count {
        assert!(matches!(table.insert(&connection(number), NOW), Insert::Inserted(_)));
    }
    table
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("conntrack");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (count, name) in SIZES {
        let order = Random::new(3).permutation(count);
        let tuples: Vec<Tuple> = order
            .into_iter()
            .map(|n| if n % 2 == 0 { connection(n).original } else { connection(n).reply })
            .collect();
        let table = filled(count);
        group.bench_function(BenchmarkId::new("lookup/flat", name), |b| {
            let mut all = tuples.iter().cycle();
            b.iter(|| {
                for tuple in all.by_ref().take(BATCH) {
                    assert!(black_box(table.lookup(*tuple, NOW)).is_some());
                }
            });
        });
        drop(table);
        // What a map of both tuples would hold: the other tuple, and where the connection is.
        let map: DashMap<Tuple, (Tuple, u32)> = DashMap::with_capacity(count as usize * 2);
        for number in 0..count {
            let new = connection(number);
            map.insert(new.original, (new.reply, number));
            map.insert(new.reply, (new.original, number));
        }
        group.bench_function(BenchmarkId::new("lookup/dashmap", name), |b| {
            let mut all = tuples.iter().cycle();
            b.iter(|| {
                for tuple in all.by_ref().take(BATCH) {
                    assert!(black_box(map.get(tuple).map(|entry| *entry)).is_some());
                }
            });
        });
    }
    group.finish();
}

/// Times `work` on chunks, with `undo` outside the stopwatch.
fn chunks(iters: u64, mut work: impl FnMut(usize), mut undo: impl FnMut(usize)) -> Duration {
    let mut total = Duration::ZERO;
    let mut left = usize::try_from(iters).unwrap_or(usize::MAX);
    while left > 0 {
        let count = left.min(CHUNK as usize);
        let start = Instant::now();
        work(count);
        total += start.elapsed();
        undo(count);
        left -= count;
    }
    total
}

fn change(c: &mut Criterion) {
    let mut group = c.benchmark_group("conntrack");
    group.throughput(Throughput::Elements(1));
    for (count, name) in SIZES {
        let table = filled(count);
        let new: Vec<NewConnection> = (count..count + CHUNK).map(connection).collect();
        group.bench_function(BenchmarkId::new("insert/flat", name), |b| {
            let ids = std::cell::RefCell::new(Vec::with_capacity(CHUNK as usize));
            b.iter_custom(|iters| {
                chunks(
                    iters,
                    |chunk| {
                        for new in new.iter().take(chunk) {
                            if let Insert::Inserted(id) = table.insert(new, NOW) {
                                ids.borrow_mut().push(id);
                            }
                        }
                    },
                    |chunk| {
                        let mut ids = ids.borrow_mut();
                        assert_eq!(ids.len(), chunk, "every one was new");
                        assert!(ids.drain(..).all(|id| table.remove(id)));
                    },
                )
            });
        });

        // The entries of a chunk expire in random order and come back as they were: the free list
        // gives the last one back first.
        let order = Random::new(5).permutation(count);
        let mut at = 0;
        group.bench_function(BenchmarkId::new("expire/flat", name), |b| {
            b.iter_custom(|iters| {
                let mut total = Duration::ZERO;
                let mut left = usize::try_from(iters).unwrap_or(usize::MAX);
                while left > 0 {
                    let end = order.len().min(at + left.min(CHUNK as usize));
                    let due = order.get(at..end).unwrap_or_default();
                    let start = Instant::now();
                    for index in due {
                        assert!(table.expire(*index, DEADLINE));
                    }
                    total += start.elapsed();
                    for index in due.iter().rev() {
                        let back = table.insert(&connection(*index), NOW);
                        assert!(matches!(back, Insert::Inserted(_)));
                    }
                    left -= due.len();
                    at = end % order.len();
                }
                total
            });
        });

        let mut cursor = 0;
        group.bench_function(BenchmarkId::new("sweep/flat", name), |b| {
            b.iter(|| {
                cursor = (cursor + 1) % count;
                assert!(!black_box(table.expire(cursor, NOW)), "nothing is due");
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = conntrack;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = lookup, change
}
criterion_main!(conntrack);
