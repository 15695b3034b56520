//! What one port may do to the table, and one MAC.

use super::*;

fn limited(limit: u32, per_port: u32) -> Fdb {
    Fdb::new(limit, per_port, HashKey::new(1, 2)).unwrap()
}

/// The MACs behind a port, by number.
fn behind(fdb: &Fdb, port: u16, now: u32) -> Vec<u64> {
    let entries = fdb.entries(now, |_| AGEING).into_iter();
    let mut macs: Vec<u64> = entries
        .filter(|entry| entry.port == PortId(port))
        .map(|entry| entry.mac.as_u64() & 0xff_ffff)
        .collect();
    macs.sort_unstable();
    macs
}

#[test]
fn a_port_at_its_limit_loses_its_own_oldest() {
    let fdb = limited(1024, 8);
    for n in 0..4 {
        fdb.learn(NET, 0, mac(1000 + n), PortId(2), 0);
    }
    for n in 0..16 {
        assert_eq!(fdb.learn(NET, 0, mac(n), PortId(1), 1), Learned::New);
    }
    assert_eq!(behind(&fdb, 1, 1), (8..16).collect::<Vec<_>>());
    assert_eq!(behind(&fdb, 2, 1), (1000..1004).collect::<Vec<_>>());
    assert_eq!((fdb.used(), fdb.stats().evictions), (12, 8));
}

#[test]
fn what_was_heard_from_again_is_not_the_oldest() {
    let fdb = limited(1024, 4);
    for n in 0..4 {
        fdb.learn(NET, 0, mac(n), PortId(1), 1);
    }
    fdb.learn(NET, 0, mac(0), PortId(1), 2);
    fdb.learn(NET, 0, mac(2), PortId(1), 2);
    fdb.learn(NET, 0, mac(10), PortId(1), 3);
    assert_eq!(behind(&fdb, 1, 3), [0, 2, 3, 10]);
    fdb.learn(NET, 0, mac(11), PortId(1), 3);
    assert_eq!(behind(&fdb, 1, 3), [0, 2, 10, 11]);
}

#[test]
fn at_the_table_s_limit_the_port_with_the_most_loses_its_oldest() {
    let fdb = limited(64, 64);
    for n in 0..54 {
        fdb.learn(NET, 0, mac(n), PortId(1), 1);
    }
    for n in 1000..1010 {
        fdb.learn(NET, 0, mac(n), PortId(2), 0);
    }
    // Older by far, but not of the port that fills the table.
    for n in 2000..2020 {
        assert_eq!(fdb.learn(NET, 0, mac(n), PortId(3), 2), Learned::New);
    }
    assert_eq!(behind(&fdb, 1, 2), (20..54).collect::<Vec<_>>());
    assert_eq!((behind(&fdb, 2, 2).len(), behind(&fdb, 3, 2).len()), (10, 20));
    assert_eq!((fdb.used(), fdb.stats().evictions, fdb.stats().refused), (64, 20, 0));
    // Who is the heaviest itself makes its own room.
    fdb.learn(NET, 0, mac(100), PortId(1), 3);
    assert_eq!(behind(&fdb, 1, 3).first(), Some(&21));
    // And a static entry finds some too.
    fdb.insert(NET, 0, mac(3000), PortId(2), FdbKind::Static, 3);
    assert_eq!((fdb.used(), behind(&fdb, 1, 3).first()), (64, Some(&22)));
}

#[test]
fn static_and_local_entries_count_for_no_port_and_never_go() {
    let fdb = limited(64, 8);
    for n in 0..20 {
        fdb.insert(NET, 0, mac(n), PortId(1), FdbKind::Static, 0);
    }
    fdb.insert(NET, 0, mac(50), PortId(1), FdbKind::Local, 0);
    for n in 100..200u32 {
        assert_eq!(fdb.learn(NET, 0, mac(n.into()), PortId(1), n), Learned::New);
    }
    let kept: Vec<u64> = (0..20).chain([50]).chain(192..200).collect();
    assert_eq!(behind(&fdb, 1, 200), kept);
}

#[test]
fn room_that_entries_leave_is_room_again() {
    let fdb = limited(1024, 4);
    let fill = |from: u64, now| {
        for n in from..from + 4 {
            assert_eq!(fdb.learn(NET, 0, mac(n), PortId(1), now), Learned::New);
        }
    };
    fill(0, 0);
    fdb.remove(NET, 0, mac(1));
    // Control's from now on: not the port's to lose.
    fdb.insert(NET, 0, mac(2), PortId(1), FdbKind::Static, 0);
    assert_eq!(fdb.learn(NET, 0, mac(3), PortId(2), 0), Learned::Moved);
    for n in 10..13 {
        fdb.learn(NET, 0, mac(n), PortId(1), 0);
    }
    assert_eq!((behind(&fdb, 1, 0), fdb.stats().evictions), (vec![0, 2, 10, 11, 12], 0));
    fdb.retain_not(|entry| entry.kind == FdbKind::Learned, 0);
    fill(20, 0);
    fdb.age(0, fdb.bucket_count(), 1000, |_| AGEING);
    fill(30, 1000);
    assert_eq!((behind(&fdb, 1, 1000), fdb.stats().evictions), (vec![2, 30, 31, 32, 33], 0));
}

#[test]
fn a_mac_that_comes_to_a_full_port_makes_its_own_room() {
    let fdb = limited(1024, 4);
    for n in 0..4 {
        fdb.learn(NET, 0, mac(n), PortId(1), 0);
    }
    fdb.learn(NET, 0, mac(9), PortId(2), 0);
    assert_eq!(fdb.learn(NET, 0, mac(9), PortId(1), 0), Learned::Moved);
    assert_eq!((behind(&fdb, 1, 0), behind(&fdb, 2, 0).len()), (vec![1, 2, 3, 9], 0));
}

#[test]
fn a_port_makes_others_look_again_so_many_times_a_second() {
    let fdb = limited(1024, 8);
    for n in 0..10_000 {
        fdb.learn(NET, 0, mac(n), PortId(1), 7);
    }
    let stats = fdb.stats();
    assert_eq!((stats.evictions, stats.refused, fdb.changes()), (256, 10_000 - 264, 256));
    // Others are free to, and so is it in the next second.
    for n in 20_000..20_016 {
        assert_eq!(fdb.learn(NET, 0, mac(n), PortId(2), 7), Learned::New);
        assert_eq!(fdb.learn(NET, 0, mac(n + 100), PortId(1), 8), Learned::New);
    }
}

#[test]
fn a_mac_that_moves_with_every_frame_is_held_for_a_second() {
    let fdb = limited(64, 64);
    let seen = |port, now| fdb.learn(NET, 0, mac(1), PortId(port), now);
    assert_eq!(seen(1, 100), Learned::New);
    for n in 0..16 {
        assert_eq!(seen(2 - n % 2, 100), Learned::Moved, "{n}");
    }
    assert_eq!(fdb.lookup(NET, 0, mac(1), 100, AGEING), Some(PortId(1)));
    for now in [100, 101] {
        assert_eq!(seen(2, now), Learned::Flapping);
        assert_eq!(seen(1, now), Learned::Known);
    }
    // Others move as ever.
    fdb.learn(NET, 0, mac(2), PortId(1), 101);
    assert_eq!(fdb.learn(NET, 0, mac(2), PortId(2), 101), Learned::Moved);
    assert_eq!(seen(2, 102), Learned::Moved);
    assert_eq!(fdb.stats().moves, 18);
}

#[test]
fn a_mac_that_moves_now_and_then_is_never_held() {
    let fdb = limited(64, 64);
    fdb.learn(NET, 0, mac(1), PortId(1), 0);
    for n in 0..200u32 {
        let port = PortId(if n % 2 == 0 { 2 } else { 1 });
        assert_eq!(fdb.learn(NET, 0, mac(1), port, n / 10), Learned::Moved, "{n}");
    }
}

#[test]
fn a_slot_s_next_mac_does_not_answer_for_the_one_before() {
    let fdb = limited(16, 1);
    for round in 0..100u32 {
        // Ten of them in a second: fewer changes than a port may make in it.
        let (mac, now) = (mac(round.into()), round / 10);
        for n in 0..16 {
            fdb.learn(NET, 0, mac, PortId(1 + n % 2), now);
        }
        assert_eq!(fdb.learn(NET, 0, mac, PortId(1), now), Learned::Moved, "{round}");
        fdb.remove(NET, 0, mac);
    }
}

#[test]
fn a_copy_goes_on_where_the_table_is() {
    let fdb = limited(4096, 8);
    for n in 0..8 {
        fdb.learn(NET, 0, mac(n), PortId(1), 10 + u32::try_from(n).unwrap());
    }
    for n in 0..2000 {
        fdb.learn(NET, 0, mac(5000 + n), PortId(10 + u16::try_from(n).unwrap()), 20);
    }
    fdb.insert(NET, 0, mac(9), PortId(3), FdbKind::Static, 20);
    fdb.insert(NET, 0, mac(10), PortId(3), FdbKind::Local, 20);
    // Heard from again, and one that is held.
    fdb.learn(NET, 0, mac(0), PortId(1), 30);
    for n in 1..=16 {
        fdb.learn(NET, 0, mac(5001), PortId(11 + n % 2), 30);
    }
    let copy = fdb.copy().unwrap();
    let all = |fdb: &Fdb| {
        let mut all = fdb.entries(30, |_| AGEING);
        all.sort_by_key(|entry| entry.mac);
        all
    };
    assert_eq!((all(&copy), copy.used()), (all(&fdb), fdb.used()));
    for port in (0..2010).map(PortId) {
        let (ours, theirs) = (copy.writer.lock(), fdb.writer.lock());
        assert_eq!((ours.len(port), ours.listed(port)), (theirs.len(port), theirs.listed(port)));
    }
    for fdb in [&fdb, &copy] {
        let other =
            if fdb.lookup(NET, 0, mac(5001), 30, AGEING) == Some(PortId(11)) { 12 } else { 11 };
        assert_eq!(fdb.learn(NET, 0, mac(5001), PortId(other), 30), Learned::Flapping);
        // The oldest but one goes, as the oldest was heard from again.
        assert_eq!(fdb.learn(NET, 0, mac(11), PortId(1), 30), Learned::New);
        assert_eq!(behind(fdb, 1, 30), [0, 2, 3, 4, 5, 6, 7, 11]);
    }
    assert_eq!(all(&copy), all(&fdb));
}

#[test]
fn at_a_network_s_limit_its_port_with_the_most_loses_its_oldest() {
    let fdb = limited(1024, 64);
    fdb.limit_networks(&[(NET, Some(10)), (NetworkId(9), None)]);
    for n in 0..30 {
        assert_eq!(fdb.learn(NetworkId(9), 0, mac(n), PortId(9), 0), Learned::New);
    }
    for n in 0..7 {
        fdb.learn(NET, 0, mac(n), PortId(1), 1);
    }
    for n in 100..103 {
        fdb.learn(NET, 0, mac(n), PortId(2), 0);
    }
    assert_eq!(fdb.learn(NET, 0, mac(200), PortId(3), 2), Learned::New);
    assert_eq!(behind(&fdb, 1, 2), (1..7).collect::<Vec<_>>());
    assert_eq!((behind(&fdb, 2, 2), behind(&fdb, 3, 2)), ((100..103).collect(), vec![200]));
    // What control says is entered all the same, and counts for nothing.
    fdb.insert(NET, 0, mac(300), PortId(3), FdbKind::Static, 2);
    // One that moves makes room for none.
    assert_eq!(fdb.learn(NET, 0, mac(1), PortId(2), 3), Learned::Moved);
    assert_eq!((fdb.fullest_network(), behind(&fdb, 9, 2).len()), (Some((10, 10, 10)), 30));
    let copy = fdb.copy().unwrap();
    assert_eq!(copy.fullest_network(), Some((10, 10, 10)));
    assert_eq!(copy.learn(NET, 0, mac(201), PortId(3), 3), Learned::New);
    assert_eq!((behind(&copy, 1, 3).len(), behind(&copy, 2, 3).len()), (4, 4));
    fdb.limit_networks(&[(NET, None)]);
    assert_eq!(fdb.learn(NET, 0, mac(201), PortId(3), 3), Learned::New);
    assert_eq!((fdb.fullest_network(), behind(&fdb, 1, 3).len()), (None, 5));
}

proptest! {
    /// Whatever happens, each port has as many entries as the table shows, and not more than it may.
    #[test]
    fn the_lists_are_the_table(ops in proptest::collection::vec(any::<(u8, u8, u8)>(), 1..400)) {
        let fdb = limited(32, 6);
        fdb.limit_networks(&[(NET, Some(20))]);
        let mut now = 10;
        for (what, n, port) in ops {
            let (mac, port) = (mac(u64::from(n % 64)), PortId(u16::from(port % 6)));
            match what % 16 {
                0 => { fdb.remove(NET, 0, mac); }
                1 => { fdb.insert(NET, 0, mac, port, FdbKind::Static, now); }
                2 => { fdb.insert(NET, 0, mac, port, FdbKind::Local, now); }
                3 => { fdb.retain_not(|entry| entry.port == port, now); }
                4 => now += 100,
                5 => { fdb.age(0, fdb.bucket_count(), now, |_| AGEING); }
                _ => { fdb.learn(NET, 0, mac, port, now); }
            }
            let entries = fdb.entries(now, |_| Duration::MAX);
            let in_network = entries.iter().filter(|entry| entry.kind == FdbKind::Learned).count();
            prop_assert_eq!(fdb.fullest_network().map(|it| it.0 as usize), Some(in_network));
            prop_assert!(in_network <= 20);
            let counted = entries.iter().filter(|entry| entry.kind != FdbKind::Local).count();
            prop_assert_eq!(counted, fdb.used() as usize);
            let members = fdb.writer.lock();
            for port in (0..6).map(PortId) {
                let learned = entries.iter().filter(|e| e.kind == FdbKind::Learned && e.port == port);
                let count = learned.count();
                prop_assert!(count <= 6);
                prop_assert_eq!(members.len(port) as usize, count);
                prop_assert_eq!(members.listed(port), count);
            }
        }
    }
}
