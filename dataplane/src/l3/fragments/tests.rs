//! The rows of VPP's `test_reassembly.py` and of Open vSwitch' and Linux' tests that concern a table.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::packet::headers::{Ipv4, L4};
use crate::packet::types::PortId;

const START: Timestamp = Timestamp::from_secs(100);
const LIFETIME: Duration = Duration::from_secs(30);
const PORTS: Option<Carries> = Some(Carries { src_port: 4000, dst_port: 53, proto: 17, id: None });

/// A fragment of a UDP datagram: from which octet to which.
fn ip(id: u16, from: u16, to: u16, more: bool) -> Ipv4 {
    Ipv4 {
        src: Ipv4Addr::new(10, 0, 0, 1),
        dst: Ipv4Addr::new(192, 0, 2, 1),
        proto: 17,
        ttl: 64,
        header_len: 20,
        total_len: 20 + u32::from(to - from),
        frag_offset: from,
        more_fragments: more,
        dont_fragment: false,
        id,
        l4: if from == 0 { L4::Udp { src_port: 4000, dst_port: 53 } } else { L4::LaterFragment },
        l4_offset: 34,
    }
}

/// Every sender has a port of its own.
fn datagram(ip: &Ipv4) -> Datagram {
    let [.., host] = ip.src.octets();
    Datagram::of(ip, Source::Port(PortId(host.into())))
}

struct Table {
    fragments: Fragments,
    now: Timestamp,
}

impl Table {
    fn new(limit: u32) -> Self {
        Self { fragments: Fragments::new(limit, DEFAULT_PER_DATAGRAM, 3), now: START }
    }

    fn enter_on(&self, worker: usize, ip: &Ipv4) -> Entered {
        let piece = ip.piece().expect("a sound piece");
        self.fragments.enter(datagram(ip), piece, worker, self.now, LIFETIME)
    }

    fn enter(&self, ip: &Ipv4) -> Entered {
        self.enter_on(0, ip)
    }

    /// What becomes of a fragment, the first of which passes at once.
    fn pass(&self, ip: &Ipv4) -> Entered {
        let entered = self.enter(ip);
        if let Entered::First(number) = entered {
            self.fragments.settle(&datagram(ip), number, Some(PORTS));
        }
        entered
    }

    fn news(&self, worker: usize) -> Vec<(u64, News)> {
        let mut news = vec![(0, News::Follow(None))];
        assert_eq!(self.fragments.has_news(worker), {
            self.fragments.take_news(worker, &mut news);
            !news.is_empty()
        });
        assert!(!self.fragments.has_news(worker));
        news
    }
}

const FOLLOW: Entered = Entered::Follow(PORTS);

const fn dropped(reason: DropReason) -> Entered {
    Entered::Drop(reason)
}

fn is_first(entered: Entered) -> bool {
    matches!(entered, Entered::First(_))
}

fn number(entered: Entered) -> u64 {
    match entered {
        Entered::First(number) | Entered::Wait(number) => number,
        other => panic!("{other:?}"),
    }
}

/// Rows: VPP `test_one_byte_last_fragment`.
#[test]
fn in_order_each_follows_the_first_and_nothing_is_left() {
    let table = Table::new(64);
    assert!(is_first(table.pass(&ip(7, 0, 800, true))));
    assert_eq!(table.fragments.len(), 1);
    assert_eq!(table.pass(&ip(7, 800, 1600, true)), FOLLOW);
    assert_eq!(table.pass(&ip(7, 1600, 1601, false)), FOLLOW, "one octet");
    assert!(table.fragments.is_empty());
    assert!(table.news(0).is_empty());
}

#[test]
fn other_datagrams_are_others() {
    let table = Table::new(64);
    table.pass(&ip(7, 0, 800, true));
    let later = ip(7, 800, 1600, true);
    let mut waits = vec![ip(8, 800, 1600, true)];
    waits.push(Ipv4 { src: Ipv4Addr::new(10, 0, 0, 2), ..later });
    waits.push(Ipv4 { dst: Ipv4Addr::new(192, 0, 2, 2), ..later });
    waits.push(Ipv4 { proto: 6, ..later });
    for other in waits {
        assert!(matches!(table.pass(&other), Entered::Wait(_)), "{other:?}");
    }
    let piece = later.piece().unwrap();
    for port in [11, 12] {
        let elsewhere = Datagram::of(&later, Source::Port(PortId(port)));
        let entered = table.fragments.enter(elsewhere, piece, 0, START, LIFETIME);
        assert!(matches!(entered, Entered::Wait(_)), "from port {port}");
    }
    assert_eq!(table.pass(&later), FOLLOW);
}

/// Rows: VPP `test_reversed, test_random`.
#[test]
fn reversed() {
    let table = Table::new(64);
    let waits = table.pass(&ip(7, 1600, 2000, false));
    assert_eq!(table.pass(&ip(7, 800, 1600, true)), waits, "the same datagram");
    assert!(table.news(0).is_empty());
    assert!(is_first(table.pass(&ip(7, 0, 800, true))));
    assert_eq!(table.news(0), [(number(waits), News::Follow(PORTS))]);
    assert!(table.news(1).is_empty(), "nothing waits there");
    assert!(table.fragments.is_empty());
}

/// Rows: VPP `test_frag_1`.
#[test]
fn disordered_with_the_last_first() {
    let table = Table::new(64);
    let waits = table.pass(&ip(7, 1600, 2000, false));
    assert!(is_first(table.pass(&ip(7, 0, 800, true))));
    assert_eq!(table.news(0), [(number(waits), News::Follow(PORTS))]);
    assert_eq!(table.fragments.len(), 1, "one is missing");
    assert_eq!(table.pass(&ip(7, 800, 1600, true)), FOLLOW);
    assert!(table.fragments.is_empty());
}

#[test]
fn every_worker_with_waiting_fragments_is_told() {
    let table = Table::new(64);
    let waits = table.enter_on(1, &ip(7, 800, 1600, true));
    assert_eq!(table.enter_on(2, &ip(7, 1600, 2000, false)), waits);
    let first = table.enter_on(0, &ip(7, 0, 800, true));
    assert!(is_first(first));
    assert!(table.news(1).is_empty(), "it has not passed yet");
    table.fragments.settle(&datagram(&ip(7, 0, 0, true)), number(first), Some(PORTS));
    for worker in [1, 2] {
        assert_eq!(table.news(worker), [(number(waits), News::Follow(PORTS))], "worker {worker}");
    }
    assert!(table.news(0).is_empty());
}

#[test]
fn what_follows_a_first_fragment_that_was_dropped_is_dropped() {
    let table = Table::new(64);
    let waits = table.enter(&ip(7, 800, 1600, true));
    let first = number(table.enter(&ip(7, 0, 800, true)));
    table.fragments.settle(&datagram(&ip(7, 0, 0, true)), first, None);
    let untracked = DropReason::FragmentUntracked;
    assert_eq!(table.news(0), [(number(waits), News::Drop(untracked))]);
    assert_eq!(table.enter(&ip(7, 1600, 2000, false)), dropped(untracked));
    assert!(table.fragments.is_empty(), "all of it has come");
}

/// Rows: VPP `test_duplicates`; VPP `test_duplicate_fragment_dos`.
#[test]
fn duplicates_are_dropped_alone() {
    let table = Table::new(64);
    let repeated = dropped(DropReason::FragmentDuplicate);
    table.pass(&ip(7, 1600, 2000, false));
    assert_eq!(table.pass(&ip(7, 1600, 2000, false)), repeated);
    table.pass(&ip(7, 0, 800, true));
    for _ in 0..100 {
        assert_eq!(table.pass(&ip(7, 0, 800, true)), repeated);
    }
    assert_eq!(table.pass(&ip(7, 800, 1600, true)), FOLLOW);
}

/// Rows: Open vSwitch `conntrack: IPv4 fragmentation overlapping by 1 octet, in order, out of order`; VPP
/// `test_overlap1, test_overlap2, test_invalid_overlap`.
#[test]
fn an_overlap_by_one_octet_spoils_the_datagram() {
    // What has come, and what overlaps it.
    let table = [
        ([(0, 808), (1600, 2400)], (800, 1600)),
        ([(0, 800), (1592, 2400)], (800, 1600)),
        ([(0, 800), (800, 1600)], (0, 1600)),
        ([(0, 800), (800, 1600)], (400, 1200)),
        ([(0, 800), (800, 1600)], (808, 1592)),
        ([(0, 800), (800, 1600)], (800, 1592)),
        ([(0, 800), (800, 1600)], (808, 1600)),
        ([(0, 800), (800, 1600)], (0, 8)),
        ([(0, 1600), (2400, 3200)], (8, 3192)),
    ];
    let overlap = dropped(DropReason::FragmentOverlap);
    for (came, (from, to)) in table {
        for backwards in [false, true] {
            let fragments = Table::new(64);
            let mut came = came;
            if backwards {
                came.reverse();
            }
            for (from, to) in came {
                assert!(!matches!(fragments.pass(&ip(7, from, to, true)), Entered::Drop(_)));
            }
            assert_eq!(fragments.pass(&ip(7, from, to, true)), overlap, "{from} to {to}");
            assert_eq!(fragments.pass(&ip(7, 4000, 4800, true)), overlap, "and the whole of it");
            assert_eq!(fragments.pass(&ip(7, 0, 800, true)), overlap);
            assert!(!matches!(fragments.pass(&ip(8, 0, 800, true)), Entered::Drop(_)), "no other");
        }
    }
    let odd = Table::new(64);
    odd.pass(&ip(7, 400, 805, false));
    assert_eq!(odd.pass(&ip(7, 800, 1600, true)), dropped(DropReason::FragmentMalformed));
}

#[test]
fn what_waits_for_a_datagram_that_is_spoilt_is_told() {
    let table = Table::new(64);
    let waits = number(table.enter_on(1, &ip(7, 800, 1600, true)));
    table.enter(&ip(7, 1592, 2400, true));
    let spoilt = News::Drop(DropReason::FragmentOverlap);
    assert_eq!(table.news(1), [(waits, spoilt)]);
    // A first fragment that was on its way then changes nothing.
    let table = Table::new(64);
    let first = number(table.enter(&ip(7, 0, 800, true)));
    table.enter(&ip(7, 8, 16, true));
    table.fragments.settle(&datagram(&ip(7, 0, 0, true)), first, Some(PORTS));
    assert_eq!(table.enter(&ip(7, 800, 1600, true)), dropped(DropReason::FragmentOverlap));
}

#[test]
fn a_spoilt_datagram_is_forgotten_with_its_time() {
    let mut table = Table::new(64);
    table.pass(&ip(7, 0, 800, true));
    table.pass(&ip(7, 8, 16, true));
    table.now = START + LIFETIME;
    assert!(is_first(table.pass(&ip(7, 0, 800, true))), "the number is another datagram's");
}

/// Rows: VPP `test_5737`; VPP `test_invalid_frag_size, test_invalid_packet_size`.
#[test]
fn malformed_fragments() {
    let piece = |from: u16, len: usize, more, header_len| Piece::new(from, len, more, header_len);
    // Not of groups of eight.
    assert_eq!(piece(0, 801, true, 20), None);
    assert!(piece(0, 801, false, 20).is_some());
    assert_eq!(piece(800, 0, true, 20), None, "nothing in it");
    assert_eq!(piece(800, 0, false, 20), None);
    // RFC 791: the whole has a length of 16 bits; VPP's test_5737 and "ping of death".
    assert!(piece(65_512, 3, false, 20).is_some());
    assert_eq!(piece(65_512, 4, false, 20), None);
    assert_eq!(piece(65_512, 3, false, 24), None);
    assert_eq!(piece(65_528, 1480, false, 20), None);
    assert_eq!(ip(7, 0, 805, true).piece(), None);
}

#[test]
fn where_a_datagram_ends_is_said_once() {
    // What has come, and what contradicts it.
    let table = [
        ((1600, 2000, false), (2000, 2800, true)),
        ((1600, 2000, false), (2400, 2800, false)),
        ((1600, 2000, false), (1200, 1600, false)),
        ((1600, 2000, false), (1600, 2000, true)),
        ((1600, 2000, true), (1600, 2000, false)),
        ((1600, 2000, true), (800, 1600, false)),
    ];
    for ((from, to, more), (next_from, next_to, next_more)) in table {
        let fragments = Table::new(64);
        fragments.pass(&ip(7, from, to, more));
        let next = fragments.pass(&ip(7, next_from, next_to, next_more));
        assert_eq!(next, dropped(DropReason::FragmentMalformed), "{next_from} to {next_to}");
        let first = fragments.pass(&ip(7, 0, 800, true));
        assert_eq!(first, dropped(DropReason::FragmentMalformed), "nothing of it passes");
    }
}

/// Rows: Open vSwitch `conntrack: IPv4 fragmentation expiry`; VPP `test_timeout_inline, test_timeout_cleanup`.
#[test]
fn unfinished_datagrams_are_forgotten() {
    let mut table = Table::new(64);
    let waits = table.enter_on(2, &ip(7, 800, 1600, true));
    table.pass(&ip(8, 0, 800, true));
    table.fragments.expire(START + (LIFETIME - Duration::from_nanos(1)));
    assert_eq!(table.fragments.len(), 2);
    table.fragments.expire(START + LIFETIME);
    assert!(table.fragments.is_empty());
    assert_eq!(table.news(2), [(number(waits), News::Drop(DropReason::FragmentUntracked))]);
    // Nobody has looked since: the next fragment finds out by itself.
    let waits = table.enter_on(2, &ip(7, 800, 1600, true));
    table.now = START + LIFETIME;
    let anew = table.enter(&ip(7, 800, 1600, true));
    assert!(matches!(anew, Entered::Wait(_)) && anew != waits, "{anew:?}");
    assert_eq!(table.news(2), [(number(waits), News::Drop(DropReason::FragmentUntracked))]);
}

#[test]
fn one_source_has_an_eighth_and_loses_its_own_oldest() {
    let table = Table::new(64);
    let bystander = Ipv4 { src: Ipv4Addr::new(10, 0, 0, 2), ..ip(7, 800, 1600, true) };
    let waits = table.pass(&bystander);
    for id in 0..10_000 {
        table.enter_on(1, &ip(id, 800, 1600, true));
        assert!(table.fragments.len() <= 9, "{}", table.fragments.len());
    }
    assert_eq!(table.news(1).len(), 10_000 - 8, "all but the latest were told");
    assert!(table.news(0).is_empty(), "and nobody else");
    assert!(is_first(table.pass(&Ipv4 { src: bystander.src, ..ip(7, 0, 800, true) })));
    assert_eq!(table.news(0), [(number(waits), News::Follow(PORTS))]);
    assert!(is_first(table.pass(&ip(9_999, 0, 800, true))), "the latest are there");
}

#[test]
fn all_addresses_behind_a_port_are_one_source() {
    let table = Table::new(64);
    for host in 0..100 {
        let invented = Ipv4 { src: Ipv4Addr::new(10, 0, 0, host), ..ip(7, 800, 1600, true) };
        let datagram = Datagram::of(&invented, Source::Port(PortId(3)));
        let piece = invented.piece().unwrap();
        table.fragments.enter(datagram, piece, 0, START, LIFETIME);
    }
    assert_eq!(table.fragments.len(), 8);
}

#[test]
fn addresses_outside_leave_a_quarter_however_many_they_are() {
    let table = Table::new(16);
    let waits = [1, 2].map(|id| number(table.pass(&ip(id, 800, 1600, true))));
    let mut numbers = Vec::new();
    for host in 0..100 {
        let invented = Ipv4 { src: Ipv4Addr::new(203, 0, 113, host), ..ip(7, 800, 1600, true) };
        let datagram = Datagram::of(&invented, Source::Outside(invented.src.into()));
        let piece = invented.piece().unwrap();
        numbers.push(number(table.fragments.enter(datagram, piece, 1, START, LIFETIME)));
        assert!(table.fragments.len() <= 14, "{}", table.fragments.len());
    }
    let told: Vec<_> = table.news(1).into_iter().map(|(number, _)| number).collect();
    assert_eq!(told, numbers[..88], "the oldest of them");
    for (id, number) in [1, 2].into_iter().zip(waits) {
        table.pass(&ip(id, 0, 800, true));
        assert_eq!(table.news(0), [(number, News::Follow(PORTS))], "two of one port stay");
    }
}

#[test]
fn what_lives_shorter_does_not_wait_for_what_was_there_before() {
    let table = Table::new(64);
    let enter = |id, lifetime| {
        let ip = ip(id, 800, 1600, true);
        table.fragments.enter(datagram(&ip), ip.piece().unwrap(), 0, START, lifetime);
    };
    enter(1, LIFETIME * 2);
    enter(2, LIFETIME);
    table.fragments.expire(START + LIFETIME);
    assert_eq!(table.fragments.len(), 1);
}

/// Rows: VPP `test_lru, test_mixed`.
#[test]
fn a_full_table_loses_the_oldest_of_the_heaviest_source() {
    let table = Table::new(16);
    let from =
        |host: u8, id: u16| Ipv4 { src: Ipv4Addr::new(10, 0, 0, host), ..ip(id, 800, 1600, true) };
    // Seven sources with two datagrams each, one with one, one with one.
    let numbers: Vec<_> = (0..14u8).map(|n| number(table.pass(&from(n / 2, n.into())))).collect();
    let modest = number(table.pass(&from(20, 1)));
    table.pass(&from(21, 1));
    assert_eq!(table.fragments.len(), 16);
    // Each new source takes the place of the oldest of those with two.
    for (host, gone) in (30..36).zip([0, 2, 4, 6, 8, 10]) {
        table.pass(&from(host, 1));
        assert_eq!(table.fragments.len(), 16);
        let limit = News::Drop(DropReason::FragmentLimit);
        assert_eq!(table.news(0), [(numbers[gone], limit)], "for 10.0.0.{host}");
    }
    table.pass(&from(36, 1));
    assert_eq!(table.news(0)[0].0, numbers[12]);
    // All have one now: the oldest of all goes.
    table.pass(&from(37, 1));
    assert_eq!(table.news(0)[0].0, numbers[1]);
    assert!(is_first(
        table.pass(&Ipv4 { src: Ipv4Addr::new(10, 0, 0, 20), ..ip(1, 0, 800, true) })
    ));
    assert_eq!(table.news(0), [(modest, News::Follow(PORTS))]);
}

/// Rows: VPP `test_long_fragment_chain`.
#[test]
fn too_many_fragments() {
    // One datagram may have as many as it likes while nobody else needs them.
    let table = Table::new(4096);
    assert!(is_first(table.pass(&ip(7, 0, 8, true))));
    for n in 1..8000 {
        assert_eq!(table.pass(&ip(7, n * 8, n * 8 + 8, true)), FOLLOW, "fragment {n}");
    }
    // In a small table a source has an eighth of 4 × 64, but each datagram 64.
    let table = Table::new(4);
    table.pass(&ip(7, 0, 8, true));
    for n in 1..64 {
        assert_eq!(table.pass(&ip(7, n * 8, n * 8 + 8, true)), FOLLOW, "fragment {n}");
    }
    let limit = dropped(DropReason::FragmentLimit);
    assert_eq!(table.pass(&ip(7, 64 * 8, 65 * 8, true)), limit);
    assert_eq!(table.pass(&ip(7, 65 * 8, 66 * 8, true)), limit, "nothing of it passes");
    let inner = table.fragments.table.lock();
    assert_eq!(inner.pieces, 0, "a spoilt datagram costs no more than its entry");
    drop(inner);
    assert_eq!(table.fragments.pieces(), (0, 64, 2 * 4 * 64));
    // Each two, if that is said.
    let table = Table { fragments: Fragments::new(4, 2, 3), now: START };
    table.pass(&ip(7, 0, 8, true));
    assert_eq!(table.pass(&ip(7, 8, 16, true)), FOLLOW);
    assert_eq!(table.pass(&ip(7, 16, 24, true)), limit);
}

#[test]
fn finished_datagrams_take_no_room() {
    let table = Table::new(64);
    for id in 0..10_000 {
        table.pass(&ip(id, 0, 800, true));
        table.pass(&ip(id, 800, 1600, false));
    }
    assert!(table.fragments.is_empty());
    let inner = table.fragments.table.lock();
    assert_eq!((inner.pieces, inner.sources.heaviest()), (0, None));
}

#[test]
fn what_a_worker_has_no_room_for_is_forgotten_once() {
    let table = Table::new(64);
    let waits = number(table.enter_on(1, &ip(7, 800, 1600, true)));
    table.enter_on(2, &ip(7, 1600, 2400, true));
    let datagram = datagram(&ip(7, 0, 0, true));
    table.fragments.give_up(&datagram, waits + 1);
    assert_eq!(table.fragments.len(), 1, "another datagram with its identification");
    table.fragments.give_up(&datagram, waits);
    assert!(table.fragments.is_empty());
    assert_eq!(table.news(2), [(waits, News::Drop(DropReason::FragmentLimit))]);
}

/// Cuts at these groups of eight octets, `len` octets in all.
fn cuts(len: u16, at: &[u16]) -> Vec<Ipv4> {
    let mut edges: Vec<u16> = at.iter().map(|at| at * 8).filter(|at| *at < len).collect();
    edges.extend([0, len]);
    edges.sort_unstable();
    edges.dedup();
    edges.windows(2).map(|edge| ip(7, edge[0], edge[1], edge[1] != len)).collect()
}

proptest! {
    /// Whatever the order, everything follows and nothing is left; with one more fragment of any other
    /// octets before the last one, nothing that comes after it does.
    #[test]
    fn random_order(
        len in 9u16..65_000,
        at in proptest::collection::vec(1u16..8_000, 1..40),
        seed in any::<u64>(),
        extra in (0u16..6_000, 1u16..2_000),
    ) {
        let mut pieces = cuts(len, &at);
        prop_assume!(pieces.len() > 1);
        let count = pieces.len();
        let mut random = seed;
        for n in (1..count).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            pieces.swap(n, (random >> 33) as usize % (n + 1));
        }
        let table = Table::new(64);
        let (mut followed, mut waited) = (0, 0);
        for piece in &pieces {
            match table.pass(piece) {
                Entered::First(_) | Entered::Follow(_) => followed += 1,
                Entered::Wait(_) => waited += 1,
                Entered::Drop(reason) => prop_assert!(false, "{reason:?} for {piece:?}"),
            }
        }
        prop_assert_eq!(followed + waited, count);
        prop_assert_eq!(table.news(0).len(), usize::from(waited > 0));
        prop_assert!(table.fragments.is_empty());

        let (from, to) = (extra.0 * 8, extra.0 * 8 + extra.1 * 8);
        let table = Table::new(64);
        let (last, before) = pieces.split_last().unwrap();
        for piece in before {
            table.pass(piece);
        }
        let end_of = |piece: &Ipv4| u32::from(piece.frag_offset) + piece.total_len - 20;
        let meets = before.iter().any(|piece| {
            piece.frag_offset < to && u32::from(from) < end_of(piece)
        });
        let repeats = before.iter().any(|piece| {
            (piece.frag_offset, end_of(piece), piece.more_fragments) == (from, to.into(), true)
        });
        let end = table.pass(&ip(7, from, to, true));
        if repeats {
            prop_assert_eq!(end, dropped(DropReason::FragmentDuplicate));
        } else if meets {
            prop_assert!(matches!(end, Entered::Drop(_)), "{:?}", end);
            prop_assert_eq!(table.pass(last), end);
        }
    }
}

#[test]
fn what_came_by_a_port_goes_with_it() {
    let table = Table::new(64);
    let by_another = Ipv4 { src: Ipv4Addr::new(10, 0, 0, 2), ..ip(1, 8, 16, true) };
    for (worker, fragment) in
        [(1, ip(1, 8, 16, true)), (2, ip(2, 8, 16, true)), (1, ip(2, 16, 24, false))]
    {
        assert!(matches!(table.enter_on(worker, &fragment), Entered::Wait(_)));
    }
    assert!(matches!(table.enter_on(0, &by_another), Entered::Wait(_)));
    table.fragments.forget_source(datagram(&ip(1, 8, 16, true)).source);
    assert_eq!(table.fragments.len(), 1);
    let mut news = Vec::new();
    for (worker, count) in [(0, 0), (1, 2), (2, 1)] {
        table.fragments.take_news(worker, &mut news);
        let all = vec![News::Drop(DropReason::FragmentUntracked); count];
        assert_eq!(news.iter().map(|(_, news)| *news).collect::<Vec<_>>(), all, "{worker}");
    }
}

#[test]
fn a_copy_goes_on_from_what_there_is_and_changes_nothing() {
    let table = Table::new(64);
    table.pass(&ip(7, 0, 800, true));
    table.pass(&ip(7, 1600, 1700, false));
    table.enter(&ip(8, 800, 900, false));
    let copy = Table { fragments: table.fragments.copy(), now: START };
    assert!(copy.fragments.is_empty(), "what nobody asks about is not copied");
    // Another datagram begins there before one is fetched.
    assert!(is_first(copy.pass(&ip(9, 0, 800, true))));
    assert_eq!(copy.enter(&ip(7, 0, 800, true)), dropped(DropReason::FragmentDuplicate));
    assert_eq!(copy.enter(&ip(7, 792, 800, true)), dropped(DropReason::FragmentOverlap));
    assert!(is_first(copy.pass(&ip(8, 0, 800, true))));
    // Whole there, and not fetched again.
    assert!(matches!(copy.enter(&ip(8, 800, 900, false)), Entered::Wait(_)));
    // Here it goes on as if nothing had been.
    assert_eq!(table.pass(&ip(7, 800, 1600, true)), FOLLOW);
    assert_eq!(table.fragments.len(), 1);
    assert!(is_first(table.pass(&ip(8, 0, 800, true))));
    assert!(table.fragments.is_empty());
}
