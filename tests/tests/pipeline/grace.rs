//! After a start without a table of connections: segments from their middle begin them, for a time (ADR 28).

use std::time::{Duration, Instant};

use dataplane::EngineOptions;
use dataplane::config::SnapshotSpec;
use dataplane::packet::types::tcp_flags::{ACK, FIN, PSH, RST, SYN};
use dataplane::trace::Fact;
use tests::lab::{A, B, CLIENT, GATEWAY1, Lab, ROUTER, SERVER, UP, publish_tcp, small, topology};
use tests::packet::{Host, Packet, Wire, speaks_ipv6, tcp};

tests::in_ipv6! {
    each_family_has_a_grace_of_its_own
    a_published_server_picks_nothing_up
    what_was_flushed_stays_away
    what_was_unpublished_stays_away
    a_port_that_is_another_s_picks_nothing_up
    a_segment_of_a_sandbox_begins_its_connection
    a_table_that_was_taken_over_needs_no_grace
    a_trace_says_what_is_picked_up
    it_ends_in_time
    what_is_mapped_keeps_its_port_too
    what_is_picked_up_and_not_answered_is_forgotten_soon
    what_is_routed_is_picked_up_as_it_is
    who_is_outside_begins_nothing
}

const GRACE: Duration = Duration::from_secs(300);
/// Somewhere in the middle.
const SEQ: u32 = 4_000_000_000;
const ACKED: u32 = 1_000_000;

fn spec() -> SnapshotSpec {
    SnapshotSpec { grace: GRACE, ..topology() }
}

fn from(host: &Host, port: u16, flags: u8) -> Packet {
    tcp(host, port, &SERVER, 80, flags).via(GATEWAY1.mac).seq(SEQ).acks(ACKED)
}

/// It leaves by its own port, and its connection begins with it.
#[track_caller]
fn picked_up(lab: &mut Lab, host: &Host, packet: &Packet) {
    lab.rx(host.port, packet)
        .tx(UP.port, packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac))
        .masqueraded(packet)
        .moved("conn.picked_up", 1);
}

#[track_caller]
fn refused(lab: &mut Lab, packet: &Packet) {
    lab.rx(A.port, packet).dropped("a", "conntrack_invalid");
}

#[track_caller]
fn pass(lab: &mut Lab, packet: &Packet) {
    lab.rx(A.port, packet).tx(UP.port, packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac));
}

#[track_caller]
fn answer(lab: &mut Lab, packet: &Packet) {
    lab.rx(UP.port, packet).tx(A.port, packet.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac));
}

#[test]
fn a_segment_of_a_sandbox_begins_its_connection() {
    let mut lab = Lab::new(spec());
    for flags in [SYN | ACK, FIN | ACK, RST, RST | ACK, FIN, 0] {
        refused(&mut lab, &from(&A, 40_000, flags));
    }
    picked_up(&mut lab, &A, &from(&A, 40_000, ACK | PSH).payload(&[1; 100]));
    assert_eq!(lab.connection().state, "PICKED_UP");
    pass(&mut lab, &from(&A, 40_000, ACK | PSH).payload(&[1; 100]));
    assert_eq!(lab.connection().state, "PICKED_UP");
    // How much each has sent and may send nobody here knows: what was sent before the table was lost
    // is acknowledged, and sent again.
    let back = |seq, ack| tcp(&SERVER, 80, &UP, 40_000, ACK).seq(seq).acks(ack);
    answer(&mut lab, &back(ACKED - 200_000, SEQ).payload(&[2; 1000]));
    assert_eq!(lab.connection().state, "ESTABLISHED");
    assert_eq!(lab.connection().timeout, Duration::from_secs(432_000));
    pass(&mut lab, &from(&A, 40_000, ACK).acks(ACKED + 500_000));
    answer(&mut lab, &back(ACKED + 3_000_000, SEQ + 1_000_000));
    // What RSTs may do is known as ever: only the next number closes.
    let reset = |seq| tcp(&SERVER, 80, &UP, 40_000, RST).seq(seq);
    answer(&mut lab, &reset(ACKED + 600_000));
    assert_eq!(lab.connection().state, "ESTABLISHED");
    answer(&mut lab, &reset(ACKED + 500_000));
    assert_eq!(lab.connection().state, "CLOSE");
}

#[test]
fn it_ends_in_time() {
    for (grace, later, passes) in [(300, 299, true), (300, 300, false), (0, 0, false)] {
        let spec = SnapshotSpec { grace: Duration::from_secs(grace), ..topology() };
        // The tables were made up to a second before the lab's time began, if the processor was not away.
        let mut lab = loop {
            let from = Instant::now();
            let lab = Lab::new(spec.clone());
            if from.elapsed() < Duration::from_millis(500) {
                break lab;
            }
        };
        drop(lab.after(Duration::from_secs(later).saturating_sub(Duration::from_secs(1))));
        if !passes {
            drop(lab.after(Duration::from_secs(1)));
            refused(&mut lab, &from(&A, 40_000, ACK));
            continue;
        }
        picked_up(&mut lab, &A, &from(&A, 40_000, ACK));
        // What was picked up goes on afterwards.
        drop(lab.after(Duration::from_secs(2)));
        refused(&mut lab, &from(&A, 40_001, ACK));
        pass(&mut lab, &from(&A, 40_000, ACK));
    }
}

/// Its server would not know it by another.
#[test]
fn a_port_that_is_another_s_picks_nothing_up() {
    let mut lab = Lab::new(spec());
    picked_up(&mut lab, &B, &from(&B, 40_000, ACK));
    let back = tcp(&SERVER, 80, &UP, 40_000, ACK).seq(1).acks(SEQ);
    lab.rx(UP.port, &back).tx(B.port, back.clone().dst(B.ip).routed(GATEWAY1.mac, B.mac));
    refused(&mut lab, &from(&A, 40_000, ACK));
    picked_up(&mut lab, &A, &from(&A, 40_001, ACK));
    // Out of the range, or published.
    refused(&mut lab, &from(&A, 1023, ACK));
    lab.reconfigure(|spec| spec.dnat.push(publish_tcp(7, 8080, &A, 8080)));
    refused(&mut lab, &from(&A, 8080, ACK));
}

/// Its client knows it by the published port, and answers another with RST.
#[test]
fn a_published_server_picks_nothing_up() {
    let mut spec = spec();
    spec.dnat.push(publish_tcp(7, 8080, &A, 9000));
    let mut lab = Lab::new(spec);
    refused(&mut lab, &from(&A, 9000, ACK));
    picked_up(&mut lab, &A, &from(&A, 9001, ACK));
    picked_up(&mut lab, &B, &from(&B, 9000, ACK));
}

#[test]
fn what_was_flushed_stays_away() {
    let mut lab = Lab::new(spec());
    picked_up(&mut lab, &A, &from(&A, 40_000, ACK));
    assert_eq!(lab.plane.flush_connections(&|_| true), 1);
    assert!(lab.plane.grace_left().is_zero());
    refused(&mut lab, &from(&A, 40_000, ACK));
}

#[test]
fn what_was_unpublished_stays_away() {
    let mut spec = spec();
    spec.dnat.push(publish_tcp(7, 8080, &A, 8080));
    let mut lab = Lab::new(spec);
    lab.plane.end_orphans();
    assert!(!lab.plane.grace_left().is_zero());
    lab.reconfigure(|spec| spec.dnat.clear());
    refused(&mut lab, &from(&A, 8080, ACK));
}

#[test]
fn who_is_outside_begins_nothing() {
    let mut lab = Lab::new(spec());
    lab.reconfigure(|spec| spec.dnat.push(publish_tcp(7, 8080, &A, 80)));
    let stranger = |port| tcp(&CLIENT, 40_000, &UP, port, ACK).seq(SEQ).acks(ACKED);
    lab.rx(UP.port, stranger(40_000)).dropped("up", "unsolicited");
    lab.rx(UP.port, stranger(8080)).dropped("up", "unsolicited");
    // Nor who asks for a published port from inside.
    let inside = tcp(&B, 40_000, &UP, 8080, ACK).via(GATEWAY1.mac).seq(SEQ).acks(ACKED);
    lab.rx(B.port, &inside).only_balanced();
    assert!(lab.connections().is_empty());
}

#[test]
fn a_table_that_was_taken_over_needs_no_grace() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| Some(directory.path().join(name));
    let options = EngineOptions {
        conntrack_file: file("conntrack"),
        conntrack6_file: file("conntrack6"),
        ..small()
    };
    let mut lab = Lab::with(&options, spec());
    picked_up(&mut lab, &A, &from(&A, 40_000, ACK));
    assert!(!lab.plane.grace_left().is_zero());
    drop(lab);
    let mut lab = Lab::with(&options, spec());
    pass(&mut lab, &from(&A, 40_000, ACK));
    refused(&mut lab, &from(&A, 40_001, ACK));
    assert!(lab.plane.grace_left().is_zero());
    drop(lab);
    // Damaged: whatever was there is lost.
    for name in ["conntrack", "conntrack6"] {
        std::fs::write(directory.path().join(name), [0xa5; 500]).unwrap();
    }
    let mut lab = Lab::with(&options, spec());
    picked_up(&mut lab, &A, &from(&A, 40_000, ACK));
}

/// Of the two tables one may be lost alone: who was in the other is known.
#[test]
fn each_family_has_a_grace_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let options = EngineOptions {
        conntrack_file: Some(file("conntrack")),
        conntrack6_file: Some(file("conntrack6")),
        ..small()
    };
    for (lost, is_ipv6_kept, port) in [("conntrack", true, 40_000), ("conntrack6", false, 40_001)] {
        drop(Lab::with(&options, spec()));
        std::fs::remove_file(file(lost)).unwrap();
        let mut lab = Lab::with(&options, spec());
        assert!(!lab.plane.grace_left().is_zero());
        let segment = from(&A, port, ACK);
        if is_ipv6_kept == speaks_ipv6() {
            refused(&mut lab, &segment);
        } else {
            picked_up(&mut lab, &A, &segment);
        }
    }
}

#[test]
fn what_is_mapped_keeps_its_port_too() {
    let mut spec = spec();
    spec.networks[0].endpoint_independent = true;
    let mut lab = Lab::new(spec);
    picked_up(&mut lab, &A, &from(&A, 40_000, ACK));
    let elsewhere = tcp(&A, 40_000, &CLIENT, 80, ACK).via(GATEWAY1.mac).seq(SEQ).acks(ACKED);
    picked_up(&mut lab, &A, &elsewhere);
    let other = tcp(&B, 40_000, &CLIENT, 81, ACK).via(GATEWAY1.mac).seq(SEQ).acks(ACKED);
    lab.rx(B.port, other).dropped("b", "conntrack_invalid");
}

#[test]
fn what_is_routed_is_picked_up_as_it_is() {
    let mut spec = spec();
    spec.networks[0].masquerade = false;
    let mut lab = Lab::new(spec);
    let packet = from(&A, 40_000, ACK);
    lab.rx(A.port, &packet)
        .tx(UP.port, packet.clone().routed(UP.mac, ROUTER.mac))
        .moved("conn.new", 1)
        .moved("conn.picked_up", 1);
    assert_eq!(lab.connection().state, "PICKED_UP");
}

#[test]
fn what_is_picked_up_and_not_answered_is_forgotten_soon() {
    let mut lab = Lab::new(spec());
    picked_up(&mut lab, &A, &from(&A, 40_000, ACK));
    assert_eq!(lab.connection().timeout, Duration::from_secs(240));
}

#[test]
fn a_trace_says_what_is_picked_up() {
    let lab = Lab::new(spec());
    let wire = Wire::from(from(&A, 40_000, ACK));
    let traced = lab.tracer().trace(A.port, &wire.bytes, wire.vnet, lab.now);
    let facts = traced.steps.iter().flat_map(|step| &step.facts);
    assert!(facts.into_iter().any(|fact| *fact == ("state", Fact::Word("PICKED_UP"))));
    assert!(lab.connections().is_empty());
}
