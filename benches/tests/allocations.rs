//! The rule that frames never allocate, tested: a counting allocator watches the core while frames
//! of every kind of load pass through it.

use std::net::Ipv4Addr;

use benches::frames::{Load, MacPairs, NatFlows, NewFlows, Way};
use benches::switch::Switch;

/// Sends some batches, so that every queue has the size it needs, then counts what the next ones
/// allocate.
fn assert_allocates_nothing(switch: &mut Switch, load: &mut impl Load, batch: usize) {
    switch.run(load, batch, 1024);
    for _ in 0..16 {
        let mut frames = switch.prepare(load, batch);
        let expected = frames.len() as u64;
        let mut sent = 0;
        let counted = allocation_counter::measure(|| sent = switch.process(&mut frames));
        assert_eq!(sent, expected, "every frame went out");
        assert_eq!(counted.count_total, 0, "{counted:?} for {batch} frames");
    }
}

#[test]
fn the_counter_counts() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![1u8; 100])));
    assert_eq!((counted.count_total, counted.bytes_total), (1, 100));
}

#[test]
fn switching() {
    let mut switch = Switch::bridge(100).unwrap();
    for batch in [1, 64, 256] {
        for len in [64, 1500] {
            assert_allocates_nothing(&mut switch, &mut MacPairs::new(len, 100), batch);
        }
    }
}

#[test]
fn translating_established_connections() {
    let mut switch = Switch::nat(1000).unwrap();
    for batch in [1, 64, 256] {
        for way in [Way::Out, Way::In] {
            let mut load = NatFlows::random(64, 1000, way);
            assert_allocates_nothing(&mut switch, &mut load, batch);
        }
    }
}

#[test]
fn beginning_connections() {
    let mut switch = Switch::clients(0, 65_536, (1024, 65_535)).unwrap();
    let mut client = 0x0a10_0000u32;
    // Always from the same port, so that an outside port has to be searched.
    let mut load = NewFlows::new(|| {
        client += 1;
        (Ipv4Addr::from(client), 40_000)
    });
    assert_allocates_nothing(&mut switch, &mut load, 64);
}
