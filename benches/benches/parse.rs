//! The first look at a frame.
#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use std::hint::black_box;
use std::net::Ipv4Addr;

use benches::frames::{CONTAINER_MAC, GATEWAY_MAC, udp};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dataplane::packet::parse::parse;
use etherparse::{PacketBuilder, PacketBuilderStep, VlanId};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

fn ethernet() -> PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2(CONTAINER_MAC.0, GATEWAY_MAC.0)
}

fn frames() -> [(&'static str, Vec<u8>); 5] {
    let v4 = (CLIENT.octets(), SERVER.octets());
    let v6 = (CLIENT.to_ipv6_mapped().octets(), SERVER.to_ipv6_mapped().octets());
    let tcp4 = ethernet().ipv4(v4.0, v4.1, 64).tcp(40_000, 443, 1, 1000);
    let tcp6 = ethernet().ipv6(v6.0, v6.1, 64).tcp(40_000, 443, 1, 1000);
    let tagged = ethernet().single_vlan(VlanId::try_new(5).unwrap_or_default());
    let tagged = tagged.ipv4(v4.0, v4.1, 64).udp(40_000, 443);
    let mut made = [Vec::new(), Vec::new(), Vec::new()];
    let [a, b, c] = &mut made;
    let written = [tcp4.write(a, &[0; 10]), tcp6.write(b, &[0; 10]), tagged.write(c, &[0; 10])];
    assert!(written.iter().all(Result::is_ok));
    let [tcp4, tcp6, tagged] = made;
    let macs = (CONTAINER_MAC, GATEWAY_MAC);
    [
        ("udp4/64", udp(64, macs, (CLIENT, 40_000), (SERVER, 443))),
        ("udp4/1500", udp(1500, macs, (CLIENT, 40_000), (SERVER, 443))),
        ("tcp4", tcp4),
        ("tcp6", tcp6),
        ("vlan_udp4", tagged),
    ]
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(1));
    for (name, bytes) in frames() {
        group.bench_function(name, |b| b.iter(|| parse(black_box(&bytes))));
    }
    group.finish();
}

criterion_group!(parsing, bench);
criterion_main!(parsing);
