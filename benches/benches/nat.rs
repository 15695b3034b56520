//! Translation: rewriting one frame, and beginning connections through SNAT.
#![allow(missing_docs, reason = "criterion_group! makes a public function")]
#![allow(clippy::expect_used, reason = "a bench that cannot be set up must stop")]

use std::cell::LazyCell;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use benches::frames::{
    CONTAINER, CONTAINER_MAC, GATEWAY_MAC, NewFlows, OUTSIDE, ROUTER_MAC, UPLINK_MAC, udp,
};
use benches::switch::Switch;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dataplane::frame::Frame;
use dataplane::packet::headers::{Ipv4, Net};
use dataplane::packet::parse::parse;
use dataplane::packet::rewrite::{Rewrite, apply, decrement_ttl, set_ethernet};

const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

fn ipv4(frame: &Frame) -> Option<Ipv4> {
    match parse(frame.bytes()).ok()?.net {
        Net::Ipv4(ip) => Some(ip),
        _ => None,
    }
}

fn rewrite(c: &mut Criterion) {
    let mut group = c.benchmark_group("nat/rewrite");
    group.throughput(Throughput::Elements(1));
    for len in [64, 1500] {
        let macs = (CONTAINER_MAC, GATEWAY_MAC);
        let bytes = udp(len, macs, (CONTAINER, 40_000), (SERVER, 443));
        let mut frame = Frame::new();
        frame.copy_from(&bytes);
        let ip = ipv4(&frame).expect("IPv4");
        let snat = Rewrite::snat(OUTSIDE, 50_000);
        // The TTL comes from `ip`, which is as it was each time, so it never runs out.
        group.bench_function(format!("snat/{len}"), |b| {
            b.iter(|| {
                let mut ip = black_box(ip);
                let forwarded = decrement_ttl(&mut frame, &mut ip);
                apply(&mut frame, &mut ip, black_box(&snat));
                set_ethernet(&mut frame, ROUTER_MAC, UPLINK_MAC);
                forwarded
            });
        });
    }
    group.finish();
}

/// Connections begun before the table is emptied.
const CHUNK: u64 = 32_768;

/// Clients in the network, each with an address of its own.
fn client(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a10_0000 + number)
}

/// Begins connections in chunks; ends them outside the stopwatch.
fn begin(
    b: &mut criterion::Bencher<'_>,
    switch: &mut Switch,
    chunk: u64,
    next: impl FnMut() -> (Ipv4Addr, u16),
) {
    let mut load = NewFlows::new(next);
    b.iter_custom(|iters| {
        let mut total = Duration::ZERO;
        let mut left = iters;
        while left > 0 {
            let count = left.min(chunk);
            total += switch.run(&mut load, 64, count);
            let ended = switch.end_new() as u64;
            assert!(ended >= count, "{ended} of {count} were new connections");
            left -= count;
        }
        total
    });
}

fn new_connections(c: &mut Criterion) {
    let mut group = c.benchmark_group("nat/new");
    group.throughput(Throughput::Elements(1));
    for (count, name) in [(0, "empty"), (1_000_000, "beside_1M")] {
        let limit = count + 131_072;
        // Every client port is free outside: one look.
        let clients = || Switch::clients(count, limit, (1024, 65_535)).expect("memory");
        let mut switch = LazyCell::new(clients);
        let mut number = 0u16;
        group.bench_function(format!("free_ports/{name}"), |b| {
            begin(b, LazyCell::force_mut(&mut switch), CHUNK, || {
                number = (number + 1) % 60_000;
                (client(1), 2000 + number)
            });
        });
        // Every client speaks from the same port to the same server: all but one get another.
        let mut clients = 0u32;
        group.bench_function(format!("colliding_ports/{name}"), |b| {
            begin(b, LazyCell::force_mut(&mut switch), CHUNK, || {
                clients = (clients + 1) % 100_000;
                (client(clients), 40_000)
            });
        });
    }
    // Nine of ten ports of the range are taken, 87 to 92 of a hundred: connections begin where they find a
    // gap.
    let mut switch = LazyCell::new(|| {
        let mut switch = Switch::clients(0, 262_144, (20_000, 39_999)).expect("memory");
        let mut clients = 0u32;
        let mut fill = NewFlows::new(|| {
            clients += 1;
            (CONTAINER, 20_000 + u16::try_from(clients).unwrap_or(0))
        });
        switch.run(&mut fill, 64, 17_408);
        switch
    });
    let mut clients = 0u32;
    group.bench_function("nearly_full_range", |b| {
        begin(b, LazyCell::force_mut(&mut switch), 1024, || {
            clients = (clients + 1) % 100_000;
            (client(clients), 25_000)
        });
    });
    let mut number = 0u16;
    group.bench_function("same_range_free", |b| {
        begin(b, LazyCell::force_mut(&mut switch), 1024, || {
            number = (number + 1) % 2000;
            (client(1), 37_600 + number)
        });
    });
    group.finish();
}

criterion_group! {
    name = nat;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = rewrite, new_connections
}
criterion_main!(nat);
