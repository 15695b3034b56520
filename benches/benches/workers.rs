//! The same load on one worker and on two, which share all tables: half of the frames go one way, half the
//! other, of the same hosts and the same connections. Two workers receive a direction each.
//!
//! Names: `workers/<load>/<workers>/<flows>`. Time is that of the whole load by its frames: two workers that
//! do not get into each other's way take half. Needs two processors that do nothing else. In `nat44_tcp` each
//! worker reads what the other writes into the entry, a connection's sequence numbers.
#![allow(missing_docs, reason = "criterion_group! makes a public function")]
#![allow(clippy::expect_used, reason = "a bench that cannot be set up must stop")]

use std::cell::LazyCell;
use std::sync::Barrier;
use std::time::Duration;

use benches::frames::{Load, MacPairs, NatFlows, Way};
use benches::segments::{Bursts, Step, Streams, TcpFlows, TcpPairs};
use benches::switch::Switch;
use benches::{SIZES, stay_on};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const BATCH: usize = 64;
const LEN: usize = 64;
/// Flows of datagrams that take turns.
const FLOWS: u16 = 16;

fn both(
    c: &mut Criterion,
    what: &str,
    flows: &str,
    make: impl FnOnce() -> Switch,
    loads: [Box<dyn Load + Send>; 2],
) {
    // Made when a bench runs: a filter then costs nothing.
    let mut two = LazyCell::new(|| {
        let first = make();
        let second = first.beside().expect("a second worker");
        (first, second)
    });
    let [mut out, mut back] = loads;
    let mut group = c.benchmark_group("workers");
    group.throughput(Throughput::Elements(1));
    group.bench_function(BenchmarkId::new(format!("{what}/1"), flows), |b| {
        let (first, _) = LazyCell::force_mut(&mut two);
        b.iter_custom(|iters| {
            let half = iters.div_ceil(2);
            first.run(&mut out, BATCH, half) + first.run(&mut back, BATCH, half)
        });
    });
    group.bench_function(BenchmarkId::new(format!("{what}/2"), flows), |b| {
        let (first, second) = LazyCell::force_mut(&mut two);
        b.iter_custom(|iters| {
            let half = iters.div_ceil(2);
            first.agree(second);
            let start = Barrier::new(2);
            let one =
                |processor, switch: &mut Switch, load: &mut Box<dyn Load + Send>| -> Duration {
                    // On one processor they would take turns, and each find its rounds as short as if it were alone.
                    stay_on(processor);
                    start.wait();
                    switch.run(load, BATCH, half)
                };
            std::thread::scope(|scope| {
                let other = scope.spawn(|| one(1, second, &mut back));
                let this = one(0, first, &mut out);
                this.max(other.join().expect("no panic"))
            })
        });
    });
    group.finish();
}

fn l2(c: &mut Criterion) {
    for (count, name) in SIZES {
        let switch = || Switch::bridge(count).expect("memory");
        let loads: [Box<dyn Load + Send>; 2] =
            [Box::new(MacPairs::new(LEN, count)), Box::new(MacPairs::back(LEN, count))];
        both(c, "l2", name, switch, loads);
    }
}

fn nat44(c: &mut Criterion) {
    for (count, name) in SIZES {
        let switch = || Switch::nat(count).expect("memory");
        let load = |way| Box::new(NatFlows::random(LEN, count, way)) as Box<dyn Load + Send>;
        both(c, "nat44", name, switch, [load(Way::Out), load(Way::In)]);
    }
}

/// Each worker receives what one of two containers sends, which begin connections by turns.
fn containers(c: &mut Criterion) {
    for (count, name) in [(2, "2"), (16, "16"), (10_000, "10k")] {
        let switch = || Switch::nat_of_two(count).expect("memory");
        let load = |which| Box::new(NatFlows::of_one(LEN, count, which)) as Box<dyn Load + Send>;
        both(c, "nat44_containers", name, switch, [load(0), load(1)]);
    }
}

/// What comes back of a stream acknowledges what goes out: each worker reads what the other writes.
fn tcp(c: &mut Criterion) {
    for (count, name) in SIZES {
        let switch = || Switch::bridge(count).expect("memory");
        let load = |way| Box::new(TcpPairs::new(LEN, count, way)) as Box<dyn Load + Send>;
        both(c, "l2_tcp", name, switch, [load(Way::Out), load(Way::In)]);
    }
    for (count, name) in SIZES {
        let streams = Streams::new(count);
        let switch = || Switch::nat_tcp(&streams).expect("open connections");
        let load =
            |way| Box::new(TcpFlows::new(LEN, &streams, way, Step::Data)) as Box<dyn Load + Send>;
        both(c, "nat44_tcp", name, switch, [load(Way::Out), load(Way::In)]);
    }
}

/// Datagrams of flows that take turns, for ports that take trains of them: so many in a row.
fn bursts(c: &mut Criterion) {
    for in_a_row in [1, 8] {
        let switch = || Switch::bridge(1).expect("memory").merging_datagrams();
        let load = |way| Box::new(Bursts::new(LEN, FLOWS, in_a_row, way)) as Box<dyn Load + Send>;
        let name = in_a_row.to_string();
        both(c, "l2_bursts", &name, switch, [load(Way::Out), load(Way::In)]);
    }
}

criterion_group! {
    name = workers;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = l2, nat44, containers, tcp, bursts
}
criterion_main!(workers);
