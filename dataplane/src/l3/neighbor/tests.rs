//! Questions, answers, and who may enter how much.

use std::net::Ipv4Addr;

use super::*;
use crate::frame::Frame;
use crate::packet::types::{NetworkId, UplinkId};
use crate::pipeline::Hold;

const LINK: Link = Link::Network(NetworkId(1));
const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

const ASKER: Asker = Asker::Port(PortId(1));
const OTHER: Asker = Asker::Port(PortId(2));

fn at(millis: u64) -> Timestamp {
    Timestamp::from_nanos(100_000_000_000 + millis * 1_000_000)
}

#[test]
fn asked_three_times_a_second_apart_then_failed() {
    let table = Neighbors::default();
    let mut asked = Vec::new();
    for tick in 0..40 {
        match table.resolve(LINK, A, ASKER, at(tick * 100)) {
            Resolution::Unknown { ask: true } => asked.push(tick),
            Resolution::Unknown { ask: false } => {}
            Resolution::Failed => {
                assert_eq!((tick, asked.as_slice()), (30, &[0, 10, 20][..]));
                return;
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("never failed");
}

#[test]
fn an_answer_is_believed_and_later_confirmed() {
    let table = Neighbors::default();
    table.resolve(LINK, A, ASKER, at(0));
    let before = table.changes();
    table.confirm(LINK, A, MAC, false, at(10));
    assert!(table.changes() > before);
    assert_eq!(table.resolve(LINK, A, ASKER, at(20_000)), Resolution::Known(MAC));
    assert_eq!(table.resolve(LINK, A, ASKER, at(40_000)), Resolution::KnownAsk(MAC));
    assert_eq!(table.resolve(LINK, A, ASKER, at(40_100)), Resolution::Known(MAC));
    assert_eq!(table.resolve(LINK, A, ASKER, at(41_100)), Resolution::KnownAsk(MAC));
    table.confirm(LINK, A, MAC, false, at(41_200));
    assert_eq!(table.resolve(LINK, A, ASKER, at(41_300)), Resolution::Known(MAC));
}

/// RFC 4861 §7.2.5.
#[test]
fn what_nobody_asked_for_confirms_nothing() {
    let table = Neighbors::default();
    let (other, unknown) = (Mac([2, 0, 0, 0, 0, 2]), IpAddr::from([10, 0, 0, 2]));
    table.confirm(LINK, A, MAC, true, at(0));
    let before = table.changes();
    table.announced(LINK, A, MAC, at(25_000));
    assert_eq!(table.changes(), before);
    assert_eq!(table.resolve(LINK, A, ASKER, at(29_000)), Resolution::Known(MAC));
    assert_eq!(table.resolve(LINK, A, ASKER, at(31_000)), Resolution::KnownAsk(MAC));
    table.confirm(LINK, A, MAC, false, at(31_500));
    // Another MAC is used at once, and asked for.
    table.announced(LINK, A, other, at(32_000));
    assert!(table.changes() > before);
    assert_eq!(table.resolve(LINK, A, ASKER, at(32_000)), Resolution::KnownAsk(other));
    table.confirm(LINK, A, other, false, at(32_100));
    assert_eq!(table.resolve(LINK, A, ASKER, at(32_200)), Resolution::Known(other));
    // Whoever waits need not wait longer; and nobody is entered.
    assert_eq!(table.resolve(LINK, unknown, ASKER, at(0)), Resolution::Unknown { ask: true });
    table.announced(LINK, unknown, MAC, at(100));
    assert_eq!(table.resolve(LINK, unknown, ASKER, at(100)), Resolution::KnownAsk(MAC));
    table.announced(LINK, IpAddr::from([10, 0, 0, 3]), MAC, at(0));
    assert_eq!(table.entries(at(200)).len(), 2);
}

#[test]
fn what_says_nothing_new_changes_nothing() {
    let table = Neighbors::default();
    let silent = IpAddr::from([10, 0, 0, 2]);
    table.confirm(LINK, A, MAC, true, at(0));
    let before = table.changes();
    for second in 1..20 {
        table.confirm(LINK, A, MAC, true, at(second * 1000));
        // Nobody answers here; what nobody knew is not forgotten either.
        table.resolve(LINK, silent, ASKER, at(second * 1000));
    }
    // Who asks for us is entered: no frame was ever sent there.
    table.confirm(LINK, IpAddr::from([10, 0, 0, 3]), MAC, true, at(20_000));
    table.confirm(LINK, IpAddr::from([10, 0, 0, 4]), MAC, false, at(20_000));
    assert_eq!(table.changes(), before);
    // It is confirmed nevertheless.
    assert_eq!(table.resolve(LINK, A, ASKER, at(48_000)), Resolution::Known(MAC));
    table.confirm(LINK, A, Mac([2, 0, 0, 0, 0, 2]), false, at(48_000));
    assert_eq!(table.changes(), before + 1, "another MAC");
    for second in 80..90 {
        table.resolve(LINK, A, ASKER, at(second * 1000));
    }
    assert_eq!(table.changes(), before + 2, "a known one is silent");
    table.confirm(LINK, A, MAC, false, at(90_000));
    assert_eq!(table.changes(), before + 3, "and back");
}

#[test]
fn what_a_worker_remembers_follows_the_table() {
    let table = Neighbors::default();
    let mut worker = Remembered::default();
    let other = Mac([2, 0, 0, 0, 0, 2]);
    table.confirm(LINK, A, MAC, true, at(0));
    let mut resolve = |millis| worker.resolve(&table, LINK, A, || ASKER, at(millis));
    assert_eq!(resolve(1), Resolution::Known(MAC));
    assert_eq!(resolve(29_999), Resolution::Known(MAC));
    assert_eq!(resolve(30_000), Resolution::KnownAsk(MAC));
    table.confirm(LINK, A, other, false, at(30_100));
    assert_eq!(resolve(30_200), Resolution::Known(other));
    table.forget_link(LINK);
    assert_eq!(resolve(30_300), Resolution::Unknown { ask: true });
    let elsewhere = Link::Network(NetworkId(2));
    table.confirm(LINK, A, MAC, true, at(30_400));
    assert_eq!(resolve(30_500), Resolution::Known(MAC));
    let there = worker.resolve(&table, elsewhere, A, || ASKER, at(30_500));
    assert_eq!(there, Resolution::Unknown { ask: true });
}

fn address(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 0, 0).to_bits() + n).into()
}

fn network(n: u16) -> Link {
    Link::Network(NetworkId(n))
}

const WIRE: Link = Link::Uplink(UplinkId(0));

#[test]
fn a_silent_neighbor_leaves_no_entry_behind() {
    let table = Neighbors::default();
    for tick in 0..=30 {
        table.resolve(LINK, A, ASKER, at(tick * 100));
    }
    assert!(table.entries(at(3000)).is_empty(), "the last question failed");
    assert_eq!(table.resolve(LINK, A, ASKER, at(3100)), Resolution::Unknown { ask: true });
    // Nobody asks again.
    table.forget_unused(at(8_099));
    assert_eq!(table.entries(at(8_099)).len(), 1);
    table.forget_unused(at(8_100));
    assert!(table.entries(at(8_100)).is_empty());
    // The place is free again, as often as that happens.
    for n in 0..4 * MAX_UNHEARD {
        let now = at(10_000 + u64::from(n) * 100);
        assert_eq!(table.resolve(LINK, address(n), ASKER, now), Resolution::Unknown { ask: true });
        table.forget_unused(now);
    }
}

#[test]
fn one_link_that_asks_for_everybody_leaves_the_others_their_places() {
    let table = Neighbors::default();
    let ask = |link, n| table.resolve(link, address(n), ASKER, at(0));
    for n in 0..MAX_UNHEARD {
        assert_eq!(ask(LINK, n), Resolution::Unknown { ask: true }, "{n}");
    }
    assert_eq!(ask(LINK, MAX_UNHEARD), Resolution::Full);
    assert_eq!(ask(network(2), 0), Resolution::Unknown { ask: true });
    // An answer makes room for a question.
    table.confirm(LINK, address(0), MAC, false, at(0));
    assert_eq!(ask(LINK, MAX_UNHEARD), Resolution::Unknown { ask: true });
    assert_eq!(ask(LINK, MAX_UNHEARD + 1), Resolution::Full);
    table.forget_link(LINK);
    assert_eq!(ask(LINK, MAX_UNHEARD + 1), Resolution::Unknown { ask: true });
}

#[test]
fn whoever_asks_for_the_most_of_a_link_makes_room_for_others() {
    let table = Neighbors::default();
    let ask = |asker, n| table.resolve(WIRE, address(n), asker, at(0));
    let asked = Resolution::Unknown { ask: true };
    for n in 0..MAX_UNHEARD {
        assert_eq!(ask(ASKER, n), asked);
    }
    assert_eq!(ask(ASKER, 1000), Resolution::Full);
    for n in 0..MAX_UNHEARD / 2 {
        assert_eq!(ask(OTHER, 2000 + n), asked, "{n}");
    }
    assert_eq!(ask(OTHER, 1000), Resolution::Full, "both have as many");
    assert_eq!(ask(Asker::Port(PortId(3)), 1000), asked);
    assert_eq!(table.uses().unheard.0.0, MAX_UNHEARD);
    assert_eq!(table.entries(at(0)).len(), MAX_UNHEARD as usize);
    let is_known = |n| table.entries(at(0)).iter().any(|entry| entry.address == address(n));
    assert!(!is_known(0) && is_known(MAX_UNHEARD - 1), "the oldest went");
    // A router is asked for whoever needs it, and in nobody's place.
    assert_eq!(ask(Asker::Engine, 3000), asked);
    assert_eq!(table.uses().unheard.0.0, MAX_UNHEARD);
    // All come to an end, answered or not, and none is counted twice.
    table.confirm(WIRE, address(2000), MAC, false, at(0));
    table.forget_unused(at(5_000));
    assert_eq!(table.uses().unheard.0.0, 0);
    assert_eq!(table.entries(at(5_000)).len(), 1);
}

#[test]
fn who_asks_for_us_has_a_share_of_the_places() {
    const SHARE: u32 = MAX_FOR_ONE_UPLINK / TOLD_SHARE;
    let table = Neighbors::default();
    for n in 0..SHARE {
        table.confirm(WIRE, address(n), MAC, true, at(0));
    }
    assert_eq!(table.peek(WIRE, address(SHARE - 1)), Some(MAC));
    let more = address(SHARE);
    table.confirm(WIRE, more, MAC, true, at(0));
    assert_eq!(table.peek(WIRE, more), None);
    // Those are asked for when they are needed.
    assert_eq!(table.resolve(WIRE, more, ASKER, at(0)), Resolution::Unknown { ask: true });
    table.confirm(WIRE, more, MAC, true, at(0));
    assert_eq!(table.peek(WIRE, more), Some(MAC));
    // That one that asked for us says so again does not make two of it.
    table.confirm(WIRE, address(0), MAC, true, at(700_000));
    table.forget_unused(at(700_000));
    assert_eq!(table.entries(at(700_000)).len(), 1);
    for n in 1..SHARE {
        table.confirm(WIRE, address(n), MAC, true, at(700_000));
    }
    assert_eq!(table.peek(WIRE, address(SHARE - 1)), Some(MAC));
}

#[test]
fn answers_of_one_network_are_limited_too() {
    let table = Neighbors::default();
    for n in 0..MAX_FOR_ONE_NETWORK {
        table.resolve(LINK, address(n), ASKER, at(0));
        table.confirm(LINK, address(n), MAC, false, at(0));
    }
    assert_eq!(table.resolve(LINK, address(70_000), ASKER, at(0)), Resolution::Full);
    assert_eq!(table.resolve(LINK, address(7), ASKER, at(0)), Resolution::Known(MAC));
}

#[test]
fn networks_leave_places_for_uplinks() {
    let table = Neighbors::default();
    let networks = || (1..100).map(network);
    for link in networks() {
        for n in 0..MAX_UNHEARD {
            table.resolve(link, address(n), ASKER, at(0));
        }
    }
    let used = u32::try_from(table.entries(at(0)).len()).unwrap();
    assert_eq!(used, MAX_NEIGHBORS - KEPT_FOR_UPLINKS);
    assert_eq!(table.resolve(network(200), A, ASKER, at(0)), Resolution::Full);
    for n in 0..KEPT_FOR_UPLINKS {
        assert_eq!(
            table.resolve(WIRE, address(n), ASKER, at(0)),
            Resolution::Unknown { ask: true }
        );
        table.confirm(WIRE, address(n), MAC, false, at(0));
    }
    let more = address(KEPT_FOR_UPLINKS);
    assert_eq!(table.resolve(WIRE, more, ASKER, at(0)), Resolution::Full);
    table.confirm(WIRE, more, MAC, true, at(0));
    assert_eq!(table.peek(WIRE, more), None);
    // What is configured has a place nevertheless.
    let asked = table.resolve(WIRE, more, Asker::Engine, at(0));
    assert_eq!(asked, Resolution::Unknown { ask: true });
    table.confirm(WIRE, more, MAC, false, at(0));
    table.forget_link(WIRE);
    for n in 0..KEPT_FOR_UPLINKS {
        table.resolve(WIRE, address(n), ASKER, at(0));
        table.confirm(WIRE, address(n), MAC, false, at(0));
    }
    table.forget_unused(at(5_000));
    assert_eq!(table.entries(at(5_000)).len(), KEPT_FOR_UPLINKS as usize);
    assert_eq!(table.resolve(network(200), A, ASKER, at(5_000)), Resolution::Unknown { ask: true });
}

#[test]
fn a_neighbor_that_once_answered_keeps_its_place_while_it_is_asked_for() {
    let table = Neighbors::default();
    table.confirm(WIRE, A, MAC, true, at(0));
    for n in 0..MAX_UNHEARD {
        table.resolve(WIRE, address(n), ASKER, at(0));
    }
    let silent = (300..400).map(|tick| table.resolve(WIRE, A, ASKER, at(tick * 100)));
    assert!(silent.clone().any(|it| it == Resolution::Failed), "it is silent now");
    assert!(!silent.clone().any(|it| it == Resolution::Full));
    table.confirm(WIRE, A, MAC, false, at(40_000));
    assert_eq!(table.resolve(WIRE, A, ASKER, at(40_000)), Resolution::Known(MAC));
}

const PORT: PortId = PortId(1);

fn held(next_hop: IpAddr, port: PortId) -> Held {
    let mut frame = Frame::new();
    frame.ingress = port;
    let (fragment, connection, is_unanswered) = (None, None, false);
    Held::new(frame, Hold { link: LINK, next_hop, fragment, connection, is_unanswered }, at(0))
}

#[test]
fn frames_that_wait_leave_the_worker_buffers_to_receive_into() {
    for (buffers, room) in [(4, 1), (256, 64), (512, 128), (65_536, 128)] {
        let mut waiting = Waiting::beside(buffers, MAX_WAITING, MAX_WAITING_FOR_ONE);
        let mut count = 0;
        for n in 0.. {
            if !waiting.has_room(LINK, address(n), PORT) {
                break;
            }
            waiting.push(held(address(n), PORT));
            count += 1;
        }
        assert_eq!(count, room, "of {buffers}");
    }
}

/// In the whole queue as well as for one neighbor.
#[test]
fn the_port_with_the_most_frames_that_wait_makes_room_for_others() {
    for (limit, neighbors) in [(64, 64), (MAX_WAITING_FOR_ONE, 1)] {
        let mut waiting = Waiting::beside(256, MAX_WAITING, MAX_WAITING_FOR_ONE);
        let next_hop = |n: usize| address(u32::try_from(n % neighbors).unwrap());
        for n in 0..limit {
            assert_eq!(waiting.place(LINK, next_hop(n), PORT), Place::Free);
            waiting.push(held(next_hop(n), PORT));
        }
        assert_eq!(waiting.place(LINK, next_hop(limit), PORT), Place::None);
        for n in 0..limit / 2 {
            let hop = next_hop(limit + n);
            let Place::InsteadOf(index) = waiting.place(LINK, hop, PortId(2)) else {
                panic!("{n}")
            };
            assert_eq!(index, limit - 1 - n, "the last of the other");
            assert_eq!(waiting.remove(index).unwrap().frame.ingress, PORT);
            waiting.push(held(hop, PortId(2)));
        }
        assert_eq!(waiting.place(LINK, next_hop(0), PortId(2)), Place::None, "as many each");
        assert_eq!(waiting.place(LINK, next_hop(0), PORT), Place::None);
        assert!(waiting.has_room(LINK, next_hop(0), PortId(3)));
        assert_eq!(waiting.len(), limit);
    }
}

/// Those that wait for others wait on.
#[test]
fn who_waits_for_one_that_has_failed_waits_no_longer() {
    let table = Neighbors::default();
    let mut waiting = Waiting::beside(256, MAX_WAITING, MAX_WAITING_FOR_ONE);
    for n in [1, 2, 1] {
        waiting.push(held(address(n), PORT));
    }
    assert!(waiting.is_due(&table, at(1000)));
    waiting.end(LINK, address(3));
    assert!(!waiting.is_due(&table, at(1001)));
    waiting.end(LINK, address(1));
    assert!(waiting.is_due(&table, at(1001)));
    let (all, silent) = waiting.take();
    let over: Vec<_> = all.iter().map(|held| held.until <= at(1001)).collect();
    assert_eq!((over, silent.is_empty()), (vec![true, false, true], true));
    assert_eq!(all[1].until, at(4000));
}

#[test]
fn unasked_announcements_do_not_enter() {
    let table = Neighbors::default();
    table.confirm(LINK, A, MAC, false, at(0));
    assert_eq!(table.peek(LINK, A), None);
    table.confirm(LINK, A, MAC, true, at(0));
    assert_eq!(table.peek(LINK, A), Some(MAC));
    table.confirm(LINK, A, Mac::BROADCAST, true, at(0));
    assert_eq!(table.peek(LINK, A), Some(MAC));
}
