//! The forwarding database beside the concurrent hash map it was chosen over
//! (`docs/adr/0003-fdb-flat-table.md`). Every lookup is of another MAC, in random order, and hits.
#![allow(missing_docs, reason = "criterion_group! makes a public function")]
#![allow(clippy::expect_used, reason = "a bench that cannot be set up must stop")]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use benches::SIZES;
use benches::frames::mac;
use benches::random::Random;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dashmap::DashMap;
use dataplane::engine::FdbKind;
use dataplane::hash::HashKey;
use dataplane::l2::fdb::Fdb;
use dataplane::packet::types::{Mac, NetworkId, PortId};

const NETWORK: NetworkId = NetworkId(1);
const PORT: PortId = PortId(1);
const AGEING: Duration = Duration::from_secs(300);
const NOW: u32 = 1000;
/// Lookups in one iteration: a batch.
const BATCH: usize = 64;

/// Calls `look` with [`BATCH`] MACs an iteration, going round through all of `macs`.
fn round(b: &mut criterion::Bencher<'_>, macs: &[Mac], mut look: impl FnMut(Mac)) {
    let mut all = macs.iter().cycle();
    b.iter(|| {
        for mac in all.by_ref().take(BATCH) {
            look(*mac);
        }
    });
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("fdb");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (count, name) in SIZES {
        let mut macs: Vec<Mac> =
            Random::new(7).permutation(count).into_iter().map(|n| mac(0, n)).collect();

        let limit = count.max(65_536);
        let fdb = Fdb::new(limit, limit, HashKey::new(1, 2)).expect("memory");
        let map: DashMap<(NetworkId, u16, Mac), (PortId, AtomicU64)> =
            DashMap::with_capacity(count as usize);
        for mac in &macs {
            fdb.insert(NETWORK, 0, *mac, PORT, FdbKind::Learned, NOW);
            map.insert((NETWORK, 0, *mac), (PORT, AtomicU64::new(u64::from(NOW))));
        }
        // At the limit a few have had to go.
        macs.retain(|mac| fdb.lookup(NETWORK, 0, *mac, NOW, AGEING).is_some());
        assert!(macs.len() >= (count - count / 1000) as usize, "{} of {count}", macs.len());

        group.bench_function(BenchmarkId::new("lookup/flat", name), |b| {
            round(b, &macs, |mac| {
                let port = fdb.lookup(NETWORK, 0, mac, NOW, AGEING);
                assert_eq!(black_box(port), Some(PORT));
            });
        });
        group.bench_function(BenchmarkId::new("lookup/dashmap", name), |b| {
            round(b, &macs, |mac| {
                let port = map.get(&(NETWORK, 0, mac)).map(|entry| entry.0);
                assert_eq!(black_box(port), Some(PORT));
            });
        });
        group.bench_function(BenchmarkId::new("learn/flat", name), |b| {
            round(b, &macs, |mac| {
                black_box(fdb.learn(NETWORK, 0, mac, PORT, NOW));
            });
        });
        group.bench_function(BenchmarkId::new("learn/dashmap", name), |b| {
            round(b, &macs, |mac| {
                // As ours: nothing is written when nothing changes.
                if let Some(entry) = map.get(&(NETWORK, 0, mac))
                    && entry.1.load(Ordering::Relaxed) != u64::from(NOW)
                {
                    entry.1.store(u64::from(NOW), Ordering::Relaxed);
                }
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = fdb;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = bench
}
criterion_main!(fdb);
