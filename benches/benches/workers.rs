//! The same load on one worker and on two, which share all tables: half of the frames go one way, half the
//! other, of the same hosts and the same connections. Two workers receive a direction each.
//!
//! Names: `workers/<load>/<workers>/<flows>`. Time is that of the whole load by its frames: two workers that
//! do not get into each other's way take half. Needs two processors that do nothing else.
#![allow(missing_docs, reason = "criterion_group! makes a public function")]
#![allow(clippy::expect_used, reason = "a bench that cannot be set up must stop")]

use std::sync::Barrier;
use std::time::Duration;

use benches::SIZES;
use benches::frames::{Load, MacPairs, NatFlows, Way};
use benches::switch::Switch;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const BATCH: usize = 64;
const LEN: usize = 64;

fn both(
    c: &mut Criterion,
    what: &str,
    flows: &str,
    mut first: Switch,
    loads: [Box<dyn Load + Send>; 2],
) {
    let mut second = first.beside().expect("a second worker");
    let [mut out, mut back] = loads;
    let mut group = c.benchmark_group("workers");
    group.throughput(Throughput::Elements(1));
    group.bench_function(BenchmarkId::new(format!("{what}/1"), flows), |b| {
        b.iter_custom(|iters| {
            let half = iters.div_ceil(2);
            first.run(&mut out, BATCH, half) + first.run(&mut back, BATCH, half)
        });
    });
    group.bench_function(BenchmarkId::new(format!("{what}/2"), flows), |b| {
        b.iter_custom(|iters| {
            let half = iters.div_ceil(2);
            first.agree(&mut second);
            let start = Barrier::new(2);
            let one = |switch: &mut Switch, load: &mut Box<dyn Load + Send>| -> Duration {
                start.wait();
                switch.run(load, BATCH, half)
            };
            std::thread::scope(|scope| {
                let other = scope.spawn(|| one(&mut second, &mut back));
                let this = one(&mut first, &mut out);
                this.max(other.join().expect("no panic"))
            })
        });
    });
    group.finish();
}

fn l2(c: &mut Criterion) {
    for (count, name) in SIZES {
        let switch = Switch::bridge(count).expect("memory");
        let loads: [Box<dyn Load + Send>; 2] =
            [Box::new(MacPairs::new(LEN, count)), Box::new(MacPairs::back(LEN, count))];
        both(c, "l2", name, switch, loads);
    }
}

fn nat44(c: &mut Criterion) {
    for (count, name) in SIZES {
        let switch = Switch::nat(count).expect("memory");
        let load = |way| Box::new(NatFlows::random(LEN, count, way)) as Box<dyn Load + Send>;
        both(c, "nat44", name, switch, [load(Way::Out), load(Way::In)]);
    }
}

criterion_group! {
    name = workers;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = l2, nat44
}
criterion_main!(workers);
