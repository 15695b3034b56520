//! Limits as the engine is told them: at each, what finds no room is dropped with its reason or counted as refused.

use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::engine::{ErrorRate, HelperLimits, NeighborLimits, Refusal};
use dataplane::packet::types::tcp_flags::{ACK, SYN};
use dataplane::packet::types::{Mac, PortId};
use tests::fragments::in_two;
use tests::lab::{A, B, GATEWAY1, Lab, NEIGHBOR, SERVER, UP, small, topology};
use tests::packet::{Host, ethernet, tcp, udp};

use crate::helpers::{helped, request};
use crate::limits::use_of;

/// What becomes of what finds no room, and how often it has.
fn refusals(lab: &Lab, name: &str) -> (Option<Refusal>, Option<u64>) {
    let limits = lab.plane.limits_at(lab.now);
    let limit = limits.iter().find(|limit| limit.name == name).expect(name);
    assert!(limit.drop_reason.is_none(), "{limit:?}");
    (limit.refusal, limit.refused)
}

fn drop_reason(lab: &Lab, name: &str) -> &'static str {
    let limits = lab.plane.limits_at(lab.now);
    let limit = limits.iter().find(|limit| limit.name == name).expect(name);
    assert_eq!((limit.refusal, limit.refused), (None, None));
    limit.drop_reason.expect(name).name()
}

#[test]
fn so_much_is_expected_and_followed() {
    let helpers = HelperLimits { expectations: 16, controls: 8 };
    let mut lab = Lab::with(&EngineOptions { helpers, ..small() }, helped());
    let ask = |lab: &mut Lab, port: u16, result: &str| {
        let ask = request(&A, port, &SERVER).via(GATEWAY1.mac);
        lab.rx(A.port, &ask).masqueraded(&ask).moved(result, 1).accept(&[UP.port]);
    };
    // An eighth is one address's.
    ask(&mut lab, 3000, "helpers.expected");
    ask(&mut lab, 3001, "helpers.expected");
    ask(&mut lab, 3002, "helpers.full");
    assert_eq!(use_of(&lab, "expectations"), (2, 2, 16));
    assert_eq!(refusals(&lab, "expectations"), (Some(Refusal::NotEntered), Some(1)));
    for (port, refused) in [(40_000, 0), (40_001, 1)] {
        let client = tcp(&A, port, &SERVER, 21, ACK).via(GATEWAY1.mac);
        let syn = client.clone().flags(SYN).seq(4_999).acks(0);
        lab.rx(A.port, &syn).masqueraded(&syn).accept(&[UP.port]);
        let answer = tcp(&SERVER, 21, &UP, port, SYN | ACK).seq(8_999).acks(5_000);
        lab.rx(UP.port, answer).accept(&[A.port]);
        let step = lab.rx(A.port, client.seq(5_000).acks(9_000));
        if refused > 0 { step.moved("helpers.full", 1) } else { step }.accept(&[UP.port]);
        assert_eq!(use_of(&lab, "helped_controls"), (1, 1, 8));
        assert_eq!(refusals(&lab, "helped_controls"), (Some(Refusal::NotEntered), Some(refused)));
    }
    // A copy for a trace has the same limits.
    drop(lab.tracer());
}

/// Somebody on the wire whom nobody has asked for yet.
fn nobody(n: u8) -> Host {
    Host { ip: [203, 0, 113, 100 + n].into(), ..NEIGHBOR }
}

#[test]
fn an_uplink_has_so_many_neighbors_and_a_link_so_many_that_never_answered() {
    let limits = |uplink, unanswered| NeighborLimits { all: 256, network: 9, uplink, unanswered };
    for (limits, name, places) in
        [(limits(3, 100), "neighbors_per_uplink", 2), (limits(100, 2), "neighbors_unanswered", 2)]
    {
        let mut lab = Lab::with(&EngineOptions { neighbors: limits, ..small() }, topology());
        for n in 0..places + 1 {
            let frame = udp(&A, 4000, &nobody(n), 2000).via(GATEWAY1.mac);
            let step = lab.rx(A.port, &frame);
            if n < places {
                step.only_balanced();
            } else {
                step.dropped("a", "neighbor_table_full");
            }
        }
        let (now, peak, limit) = use_of(&lab, name);
        assert_eq!((now, peak), (limit, limit), "{name}");
        assert_eq!(drop_reason(&lab, name), "neighbor_table_full");
    }
}

#[test]
fn so_many_frames_wait_for_one_neighbor() {
    let options = EngineOptions { waiting_frames_per_neighbor: 3, ..small() };
    let mut lab = Lab::with(&options, topology());
    lab.keep_datagrams_apart(UP.port);
    let frame = udp(&A, 4000, &nobody(1), 2000).via(GATEWAY1.mac);
    for _ in 0..3 {
        lab.rx(A.port, &frame).only_balanced();
    }
    lab.rx(A.port, &frame).dropped("a", "neighbor_queue_full");
    // For another there is room.
    let other = udp(&A, 4000, &nobody(2), 2000).via(GATEWAY1.mac);
    lab.rx(A.port, &other).only_balanced();
    lab.after(Duration::from_millis(100)).only_balanced();
    assert_eq!(use_of(&lab, "waiting_frames_per_neighbor"), (3, 3, 3));
    assert_eq!(drop_reason(&lab, "waiting_frames_per_neighbor"), "neighbor_queue_full");
    assert_eq!(use_of(&lab, "waiting_frames").0, 4);
}

#[test]
fn so_much_waits_for_who_looks_on() {
    let options = EngineOptions { capture_frames: 2, conntrack_events: 3, ..small() };
    let mut lab = Lab::with(&options, topology());
    let capture = lab.plane.capture(&[A.port], 100);
    let watch = lab.plane.watch_connections(true).unwrap();
    for port in 1000..1005 {
        let frame = udp(&A, port, &SERVER, 53).via(GATEWAY1.mac);
        lab.rx(A.port, &frame).masqueraded(&frame).accept(&[UP.port]);
    }
    assert_eq!(use_of(&lab, "capture_frames"), (2, 2, 2));
    assert_eq!(refusals(&lab, "capture_frames"), (Some(Refusal::Missed), Some(3)));
    assert_eq!((capture.missed(), std::iter::from_fn(|| capture.next_frame()).count()), (3, 2));
    assert_eq!(use_of(&lab, "conntrack_events"), (3, 3, 3));
    assert_eq!(refusals(&lab, "conntrack_events"), (Some(Refusal::Missed), Some(2)));
    assert_eq!((watch.take_missed(), std::iter::from_fn(|| watch.next_event()).count()), (2, 3));
    // Those that are gone count on.
    drop((capture, watch));
    assert_eq!(refusals(&lab, "capture_frames").1, Some(3));
    assert_eq!(use_of(&lab, "conntrack_events"), (0, 3, 3));
}

#[test]
fn what_is_not_sent_or_not_traced_is_counted() {
    let options = EngineOptions { icmp_errors: ErrorRate { per_second: 80 }, traces: 1, ..small() };
    let mut lab = Lab::with(&options, topology());
    // Of four errors at once three may be one port's.
    for (from, all, own) in [(&A, 0, 2), (&B, 4, 2)] {
        for n in 0..5 {
            let frame = udp(from, 5000 + n, &SERVER, 53).ttl(1).via(GATEWAY1.mac);
            lab.rx(from.port, frame).only_balanced();
        }
        assert_eq!(refusals(&lab, "icmp_errors"), (Some(Refusal::NotSent), Some(all)));
        assert_eq!(refusals(&lab, "icmp_errors_per_port"), (Some(Refusal::NotSent), Some(own)));
    }
    assert_eq!(use_of(&lab, "icmp_errors"), (4, 4, 4));
    assert_eq!(use_of(&lab, "icmp_errors_per_port"), (3, 3, 3));
    let tracer = lab.tracer();
    assert_eq!(refusals(&lab, "traces"), (Some(Refusal::Conflict), Some(0)));
    assert!(lab.try_tracer().is_err());
    assert_eq!(refusals(&lab, "traces"), (Some(Refusal::Conflict), Some(1)));
    drop(tracer);
    assert_eq!(use_of(&lab, "traces"), (0, 1, 1));
}

/// The fullest port's, of what its network lets one send; where nobody does, of the lowest limit.
#[test]
fn what_goes_to_all_is_shown() {
    let mut spec = topology();
    (spec.networks[0].storm_limit, spec.networks[1].storm_limit) = (10, 7);
    let mut lab = Lab::new(spec);
    assert_eq!(use_of(&lab, "storm_frames"), (0, 0, 7));
    let all = |from: Mac| ethernet(from, Mac::BROADCAST, 0x88b5, &[7; 46]);
    let mut flood = |port: PortId, mac: Mac, frames: usize| {
        for _ in 0..frames {
            lab.rx(port, all(mac)).only_balanced();
        }
        use_of(&lab, "storm_frames")
    };
    assert_eq!(flood(A.port, A.mac, 4), (4, 4, 10));
    assert_eq!(flood(B.port, B.mac, 6), (6, 6, 10));
    assert_eq!(flood(A.port, A.mac, 1), (6, 6, 10), "the fullest one's");
    assert_eq!(flood(B.port, B.mac, 5), (10, 10, 10));
    assert_eq!(drop_reason(&lab, "storm_frames"), "storm_limited");
    lab.after(Duration::from_millis(500)).only_balanced();
    assert_eq!(use_of(&lab, "storm_frames"), (5, 10, 10));
    lab.after(Duration::from_secs(5)).only_balanced();
    assert_eq!(use_of(&lab, "storm_frames"), (0, 7, 7));
}

/// Sixteen datagrams are remembered at most here, of a sender with the most its oldest goes.
#[test]
fn datagrams_that_have_left_are_shown() {
    let mut lab = Lab::with(&EngineOptions { fragment_limit: 16, ..small() }, topology());
    for n in 0..20u16 {
        let datagram = udp(&A, 6000, &SERVER, 53).via(GATEWAY1.mac).may_fragment().long(1200);
        for piece in in_two(&datagram.ident(n + 1), 600) {
            lab.rx(A.port, piece).only_balanced();
        }
    }
    assert_eq!(use_of(&lab, "departed_datagrams"), (16, 16, 16));
    assert_eq!(refusals(&lab, "departed_datagrams"), (Some(Refusal::PushedOut), Some(4)));
    lab.after(Duration::from_secs(60)).only_balanced();
    assert_eq!(use_of(&lab, "departed_datagrams"), (0, 16, 16));
}

/// One inside address has a quarter of the ports, where they are its own for whomever it speaks to.
#[test]
fn an_address_s_part_of_the_ports_is_shown() {
    let mut spec = topology();
    spec.networks[0].endpoint_independent = true;
    let mut lab = Lab::new(spec);
    let shows = |lab: &Lab| {
        lab.plane.limits_at(lab.now).iter().any(|limit| limit.name == "mapped_ports_per_address")
    };
    assert!(!shows(&lab), "nobody has any");
    for port in 40_000..40_003 {
        let frame = udp(&A, port, &SERVER, 53).via(GATEWAY1.mac);
        lab.rx(A.port, &frame).masqueraded(&frame).accept(&[UP.port]);
    }
    let (now, peak, limit) = use_of(&lab, "mapped_ports_per_address");
    assert_eq!((now, peak), (3, 3));
    assert!(limit >= 1000, "{limit}");
    assert_eq!(drop_reason(&lab, "mapped_ports_per_address"), "snat_ports_exhausted");
    lab.plane.flush_connections(&|_| true);
    assert_eq!(use_of(&lab, "mapped_ports_per_address"), (0, 3, limit));
}
