//! A new configuration: building the snapshot, publishing it, and what a worker sees of it.
#![allow(missing_docs, reason = "criterion_group! makes a public function")]
#![allow(clippy::expect_used, reason = "a bench that cannot be set up must stop")]

use std::net::Ipv4Addr;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use dataplane::config::{
    DnatRule, NetworkConfig, PortConfig, PortRole, Snapshot, SnapshotSpec, Subnet, Vlans,
};
use dataplane::engine::EngineOptions;
use dataplane::l3::route::Prefix;
use dataplane::packet::types::{Mac, NetworkId, PortId, ip_proto};
use dataplane::plane::Plane;
use dataplane::publish::Publisher;

/// Containers in a network, each with one published port.
const CONTAINERS: u16 = 4;

fn spec(networks: u16) -> SnapshotSpec {
    let mut spec = SnapshotSpec::default();
    for network in 1..=networks {
        let [high, low] = network.to_be_bytes();
        let address = |host| Ipv4Addr::new(10, high, low, host);
        let id = NetworkId(network);
        spec.networks.push(NetworkConfig::new(
            id,
            Mac([2, 0x42, 0, high, low, 1]),
            vec![Subnet { prefix: Prefix::new(address(0), 24), gateway: Some(address(1).into()) }],
        ));
        for (container, host) in (0..CONTAINERS).zip(2u8..) {
            let number = (network - 1) * CONTAINERS + container;
            spec.ports.push(PortConfig {
                id: PortId(number + 1),
                role: PortRole::Endpoint {
                    network: id,
                    mac: Mac([2, 0x42, 0, high, low, host]),
                    ipv4: vec![address(host)],
                    ipv6: Vec::new(),
                    guard: true,
                    trusted: false,
                    vlans: Vlans::All,
                },
                mtu: 1500,
            });
            spec.dnat.push(DnatRule {
                id: u32::from(number) + 1,
                proto: ip_proto::TCP,
                host_ip: None,
                host_ports: (number + 1, number + 1),
                to: address(host).into(),
                to_port: 80,
                network: id,
            });
        }
    }
    spec
}

fn build(networks: u16) -> Snapshot {
    Snapshot::build(spec(networks)).expect("sound")
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish");
    group.throughput(Throughput::Elements(1));
    for networks in [10, 1000] {
        group.bench_function(format!("build/{networks}"), |b| {
            b.iter_batched(|| spec(networks), Snapshot::build, BatchSize::LargeInput);
        });
        let plane = Plane::new(&EngineOptions::default()).expect("memory");
        plane.publish(build(networks));
        group.bench_function(format!("publish/{networks}"), |b| {
            b.iter_batched(
                || build(networks),
                |snapshot| plane.publish(snapshot),
                BatchSize::LargeInput,
            );
        });
    }
    let publisher = Publisher::new(build(10));
    let mut reader = publisher.subscribe();
    group.bench_function("refresh/unchanged", |b| b.iter(|| reader.refresh()));
    group.finish();
}

criterion_group! {
    name = publish;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = bench
}
criterion_main!(publish);
