//! The same load on one worker and on two, which share all tables: half of the frames go one way, half the
//! other, of the same hosts and the same connections. Two workers receive a direction each.
//!
//! Two workers begin each round of frames together, so that all of it is beside the other's. `apart` are two workers
//! of two switches, which share nothing: that is what the machine gives two programs at once. What two workers of one
//! switch take more than these is what they cost each other.
//!
//! Names: `workers/<load>/<workers>/<flows>`. Time is that of the whole load by its frames: two workers that
//! do not get into each other's way take half. Needs two processors that do nothing else. In `nat44_tcp` each
//! worker reads what the other writes into the entry, a connection's sequence numbers.
#![allow(missing_docs, reason = "criterion_group! makes a public function")]
#![allow(clippy::expect_used, reason = "a bench that cannot be set up must stop")]

use std::cell::LazyCell;
use std::hint::spin_loop;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use benches::frames::{Load, MacPairs, NatFlows, Way};
use benches::segments::{BothWays, Bursts, Step, Streams, TcpFlows, TcpPairs};
use benches::switch::Switch;
use benches::{SIZES, stay_on};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const BATCH: usize = 64;
const LEN: usize = 64;
/// More flows than these two switches are not made for: it would take longer than all else.
const MOST_APART: u32 = 10_000;
/// Flows of datagrams that take turns.
const FLOWS: u16 = 16;

/// Where two workers meet before each round. Without it each would be beside the other's making of frames most of the
/// time, where nobody is in its way.
#[derive(Debug, Default)]
struct Meeting {
    /// Rounds that each has come to.
    rounds: [AtomicU64; 2],
}

/// One of the two; when it has gone nobody waits for it.
#[derive(Debug)]
struct Attendee<'a>(&'a Meeting, usize);

impl Attendee<'_> {
    fn meet(&self) {
        let Self(Meeting { rounds: [first, second] }, number) = self;
        let (own, other) = if *number == 0 { (first, second) } else { (second, first) };
        let round = own.fetch_add(1, Ordering::Release) + 1;
        while other.load(Ordering::Acquire) < round {
            spin_loop();
        }
    }
}

impl Drop for Attendee<'_> {
    fn drop(&mut self) {
        if let Some(own) = self.0.rounds.get(self.1) {
            own.store(u64::MAX, Ordering::Release);
        }
    }
}

type BoxedLoad = Box<dyn Load + Send>;

/// What the slower one of two workers takes for its half of the frames.
fn at_once(workers: [&mut Switch; 2], loads: &mut [BoxedLoad; 2], half: u64) -> Duration {
    let [first, second] = workers;
    let [out, back] = loads;
    first.agree(second);
    let start = Barrier::new(2);
    let meeting = Meeting::default();
    let one = |processor, switch: &mut Switch, load: &mut BoxedLoad| -> Duration {
        // On one processor they would take turns, and each find its rounds as short as if it were alone.
        stay_on(processor);
        let attendee = Attendee(&meeting, processor);
        start.wait();
        switch.run_by_turns(load, BATCH, half, || attendee.meet())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| one(1, second, back));
        let this = one(0, first, out);
        this.max(other.join().expect("no panic"))
    })
}

/// One worker, and two of the same switch.
fn both(
    c: &mut Criterion,
    what: &str,
    flows: &str,
    make: impl FnOnce() -> Switch,
    load: impl Fn(u32) -> BoxedLoad,
) {
    let mut loads = [load(0), load(1)];
    // Made when a bench runs: a filter then costs nothing.
    let mut two = LazyCell::new(|| {
        let first = make();
        let second = first.beside().expect("a second worker");
        (first, second)
    });
    let mut group = c.benchmark_group("workers");
    group.throughput(Throughput::Elements(1));
    group.bench_function(BenchmarkId::new(format!("{what}/1"), flows), |b| {
        let (first, _) = LazyCell::force_mut(&mut two);
        let [out, back] = &mut loads;
        b.iter_custom(|iters| {
            let half = iters.div_ceil(2);
            first.run(out, BATCH, half) + first.run(back, BATCH, half)
        });
    });
    group.bench_function(BenchmarkId::new(format!("{what}/2"), flows), |b| {
        let (first, second) = LazyCell::force_mut(&mut two);
        b.iter_custom(|iters| at_once([first, second], &mut loads, iters.div_ceil(2)));
    });
    group.finish();
}

/// Two workers of two switches.
fn apart(c: &mut Criterion, what: &str, flows: &str, make: impl Fn(u32) -> (Switch, BoxedLoad)) {
    let mut two = LazyCell::new(|| {
        let ((first, out), (second, back)) = (make(0), make(1));
        ([first, second], [out, back])
    });
    let mut group = c.benchmark_group("workers");
    group.throughput(Throughput::Elements(1));
    group.bench_function(BenchmarkId::new(format!("{what}/apart"), flows), |b| {
        let ([first, second], loads) = LazyCell::force_mut(&mut two);
        b.iter_custom(|iters| at_once([first, second], loads, iters.div_ceil(2)));
    });
    group.finish();
}

/// What goes one way, and what comes back.
const fn way(number: u32) -> Way {
    if number == 0 { Way::Out } else { Way::In }
}

fn l2(c: &mut Criterion) {
    for (count, name) in SIZES {
        let load = |number| match way(number) {
            Way::Out => Box::new(MacPairs::new(LEN, count)) as BoxedLoad,
            Way::In => Box::new(MacPairs::back(LEN, count)),
        };
        let switch = || Switch::bridge(count).expect("memory");
        both(c, "l2", name, switch, load);
        if count <= MOST_APART {
            apart(c, "l2", name, |number| (switch(), load(number)));
        }
    }
}

fn nat44(c: &mut Criterion) {
    for (count, name) in SIZES {
        let load = |number| Box::new(NatFlows::random(LEN, count, way(number))) as BoxedLoad;
        let switch = || Switch::nat(count).expect("memory");
        both(c, "nat44", name, switch, load);
        if count <= MOST_APART {
            apart(c, "nat44", name, |number| (switch(), load(number)));
        }
    }
}

/// Each worker receives what one of two containers sends, which begin connections by turns.
fn containers(c: &mut Criterion) {
    for (count, name) in [(2, "2"), (16, "16"), (10_000, "10k")] {
        let load = |which| Box::new(NatFlows::of_one(LEN, count, which)) as BoxedLoad;
        let switch = || Switch::nat_of_two(count).expect("memory");
        both(c, "nat44_containers", name, switch, load);
        apart(c, "nat44_containers", name, |number| (switch(), load(number)));
    }
}

/// What comes back of a stream acknowledges what goes out: each worker reads what the other writes.
fn tcp(c: &mut Criterion) {
    for (count, name) in SIZES {
        let load = |number| Box::new(TcpPairs::new(LEN, count, way(number))) as BoxedLoad;
        let switch = || Switch::bridge(count).expect("memory");
        both(c, "l2_tcp", name, switch, load);
        if count <= MOST_APART {
            apart(c, "l2_tcp", name, |number| (switch(), load(number)));
        }
    }
    for (count, name) in SIZES {
        let streams = Streams::new(count);
        let switch = || Switch::nat_tcp(&streams).expect("open connections");
        let data = |number| TcpFlows::new(LEN, &streams, way(number), Step::Data);
        both(c, "nat44_tcp", name, switch, |number| Box::new(data(number)));
        // Nothing is believed for long of which only one way is seen.
        if count <= MOST_APART {
            apart(c, "nat44_tcp", name, |_| {
                let streams = Streams::new(count);
                let switch = Switch::nat_tcp(&streams).expect("open connections");
                (switch, Box::new(BothWays::new(LEN, &streams)))
            });
        }
    }
}

/// Datagrams of flows that take turns, for ports that take trains of them: so many in a row.
fn bursts(c: &mut Criterion) {
    for in_a_row in [1, 8] {
        let switch = || Switch::bridge(1).expect("memory").merging_datagrams();
        let load = |number| Box::new(Bursts::new(LEN, FLOWS, in_a_row, way(number))) as BoxedLoad;
        let name = in_a_row.to_string();
        both(c, "l2_bursts", &name, switch, load);
        apart(c, "l2_bursts", &name, |number| (switch(), load(number)));
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
