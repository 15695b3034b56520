//! The whole way of a frame, from the receiving half of a port in memory to the sending half of one, on one core.
//!
//! Names: `pipeline/<load>/<frame bytes>/<batch>/<flows>`. `l2`: between random MACs of two
//! ports, source learned, destination looked up. `nat44_out`, `nat44_in`: established connections
//! through masquerading, from the container and back to it. Every frame is of a random flow, and leaves
//! by itself; in `l2_train` datagrams of one flow leave as one frame, in `l2_bursts` those of 16 flows that come
//! so many in a row, if that is enough. `l2_tcp`, `nat44_tcp` (both ways): segments; those of one pair or one
//! connection are in order, so that long ones leave as one frame.
#![allow(missing_docs, reason = "criterion_group! makes a public function")]
#![allow(clippy::expect_used, reason = "a bench that cannot be set up must stop")]

use std::cell::LazyCell;
use std::time::Duration;

use benches::SIZES;
use benches::frames::{Load, MacPairs, NatFlows, Way};
use benches::segments::{BothWays, Bursts, Streams, TcpPairs};
use benches::switch::Switch;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Frame length without FCS, and batch.
const SHAPES: [(usize, usize); 4] = [(64, 64), (64, 256), (64, 1), (1500, 64)];

/// Flows of datagrams that take turns.
const FLOWS: u16 = 16;

/// Made when the first bench that needs it runs: a filter then costs nothing.
type Fixture<F> = LazyCell<Switch, F>;

fn one<F: FnOnce() -> Switch>(
    c: &mut Criterion,
    what: &str,
    flows: &str,
    switch: &mut Fixture<F>,
    load: impl Fn(usize) -> Box<dyn Load>,
) {
    let mut group = c.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(1));
    for (len, batch) in SHAPES {
        let mut load = load(len);
        group.bench_function(BenchmarkId::new(format!("{what}/{len}/{batch}"), flows), |b| {
            let switch = LazyCell::force_mut(switch);
            b.iter_custom(|iters| switch.run(&mut load, batch, iters));
        });
    }
    group.finish();
}

fn l2(c: &mut Criterion) {
    for (count, name) in SIZES {
        let mut switch = LazyCell::new(|| Switch::bridge(count).expect("memory"));
        one(c, "l2", name, &mut switch, |len| Box::new(MacPairs::new(len, count)));
    }
}

/// What merging costs the engine; what it saves is behind it, in the devices.
fn trains(c: &mut Criterion) {
    let mut switch = LazyCell::new(|| Switch::bridge(1).expect("memory").merging_datagrams());
    one(c, "l2_train", "1", &mut switch, |len| Box::new(MacPairs::new(len, 1)));
    for in_a_row in [1, 2, 8, 32] {
        let bursts = |len| Box::new(Bursts::new(len, FLOWS, in_a_row, Way::Out)) as Box<dyn Load>;
        one(c, "l2_bursts", &in_a_row.to_string(), &mut switch, bursts);
    }
}

fn tcp(c: &mut Criterion) {
    for (count, name) in SIZES {
        let mut switch = LazyCell::new(|| Switch::bridge(count).expect("memory"));
        one(c, "l2_tcp", name, &mut switch, |len| Box::new(TcpPairs::new(len, count, Way::Out)));
        let streams = Streams::new(count);
        let mut switch = LazyCell::new(|| Switch::nat_tcp(&streams).expect("open connections"));
        one(c, "nat44_tcp", name, &mut switch, |len| Box::new(BothWays::new(len, &streams)));
    }
}

fn nat44(c: &mut Criterion) {
    for (count, name) in SIZES {
        let mut switch = LazyCell::new(|| Switch::nat(count).expect("memory"));
        for (what, way) in [("nat44_out", Way::Out), ("nat44_in", Way::In)] {
            one(c, what, name, &mut switch, |len| Box::new(NatFlows::random(len, count, way)));
        }
    }
}

criterion_group! {
    name = pipeline;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = l2, trains, nat44, tcp
}
criterion_main!(pipeline);
