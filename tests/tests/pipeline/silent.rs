//! Neighbors that never answer: every packet that waits for one is told of in time, whatever else is sent there,
//! and to nobody but who sent it.

use std::collections::HashMap;
use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::clock::Timestamp;
use dataplane::engine::ErrorRate;
use dataplane::packet::types::PortId;
use dataplane::verdict::DropReason;
use tests::lab::{A, B, GATEWAY1, Lab, NEIGHBOR, UP, small, topology};
use tests::packet::{Host, Wire, ip, reported, udp};

tests::in_ipv6! {
    none_of_many_packets_to_a_silent_neighbor_waits_for_long
    packets_to_two_silent_neighbors_do_not_wait_for_each_other
    packets_to_a_silent_neighbor_at_two_workers_do_not_wait_for_each_other
}

/// Somebody else on the wire.
const OTHER: Host = Host { ip: std::net::Ipv4Addr::new(203, 0, 113, 10), ..NEIGHBOR };

/// Three questions a second apart, which frames that come later begin anew, and a look.
const LONGEST: Duration = Duration::from_millis(4_250);

/// Packets of A, each from a port of its own, and what A was told of them.
struct Watched {
    lab: Lab,
    /// When each was sent, until A was told of it.
    sent: Vec<Option<Timestamp>>,
    /// The error about each, had it waited or not.
    errors: HashMap<Vec<u8>, usize>,
    told: u64,
    longest: Duration,
}

impl Watched {
    fn new(workers: usize) -> Self {
        // Every error is sent.
        let icmp_errors = ErrorRate { per_second: 100_000 };
        let options = EngineOptions { workers, icmp_errors, ..small() };
        Self {
            lab: Lab::with(&options, topology()),
            sent: Vec::new(),
            errors: HashMap::new(),
            told: 0,
            longest: Duration::ZERO,
        }
    }

    /// One packet each, at once.
    fn send(&mut self, worker: usize, to: &[&Host]) {
        let mut batch: Vec<(PortId, Wire)> = Vec::new();
        for to in to {
            let number = self.sent.len();
            let port = 4000 + u16::try_from(number).unwrap();
            let packet = udp(&A, port, to, 2000).via(GATEWAY1.mac);
            // One that has waited had its time to live taken off.
            for about in [packet.clone(), packet.clone().ttl(63)] {
                let error = Wire::from(reported(&GATEWAY1, &A, 3, 1, &about));
                self.errors.insert(error.bytes, number);
            }
            self.sent.push(Some(self.lab.now));
            batch.push((A.port, packet.into()));
        }
        let out = self.lab.batch_on(worker, batch).sent();
        self.hear(&out);
    }

    fn after(&mut self, time: Duration) {
        let out = self.lab.after(time).sent();
        self.hear(&out);
    }

    fn hear(&mut self, out: &[(PortId, Wire)]) {
        for (_, wire) in out.iter().filter(|(port, _)| *port == A.port) {
            // Gateways have more to say.
            let Some(number) = self.errors.get(&wire.bytes).copied() else { continue };
            let sent = self.sent[number].take().expect("told of once");
            self.longest = self.longest.max(self.lab.now.since(sent));
            self.told += 1;
        }
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.lab.plane.worker_stats().iter().map(|worker| worker.drops_for(reason)).sum()
    }

    /// Nothing more is sent, and all that waited is told of; how long the longest took.
    fn end(mut self) -> Duration {
        for _ in 0..20 {
            self.after(Duration::from_millis(250));
        }
        let (unresolved, no_room) = (
            self.dropped(DropReason::NeighborUnresolved),
            self.dropped(DropReason::NeighborQueueFull),
        );
        assert_eq!(unresolved + no_room, self.sent.len() as u64, "{unresolved}, {no_room}");
        assert_eq!(self.told, unresolved);
        let queued: u64 = self.lab.plane.worker_stats().iter().map(|worker| worker.queued).sum();
        assert_eq!(queued, 0);
        assert!(self.lab.connections().is_empty());
        self.longest
    }
}

/// Rows: RFC 4861 §7.2.2.
#[test]
fn none_of_many_packets_to_a_silent_neighbor_waits_for_long() {
    let mut watched = Watched::new(1);
    for _ in 0..1000 {
        watched.send(0, &[&NEIGHBOR]);
        watched.after(Duration::from_millis(10));
    }
    // In each of three rounds of questions as many waited as there is room for.
    assert!(watched.told >= 3 * 32, "{}", watched.told);
    assert!(watched.end() <= LONGEST);
}

#[test]
fn packets_to_two_silent_neighbors_do_not_wait_for_each_other() {
    let mut watched = Watched::new(1);
    for _ in 0..4 {
        watched.send(0, &[&NEIGHBOR, &OTHER]);
    }
    for _ in 0..14 {
        watched.after(Duration::from_millis(250));
    }
    assert_eq!(watched.told, 8, "all with the first round of questions");
    for _ in 0..500 {
        watched.send(0, &[&NEIGHBOR, &OTHER]);
        watched.after(Duration::from_millis(20));
    }
    assert!(watched.end() <= LONGEST);
}

#[test]
fn packets_to_a_silent_neighbor_at_two_workers_do_not_wait_for_each_other() {
    let mut watched = Watched::new(2);
    for tick in 0..1000 {
        watched.send(tick % 2, &[&NEIGHBOR]);
        watched.after(Duration::from_millis(10));
    }
    assert!(watched.end() <= LONGEST);
}

/// Its connection ended while it waited, and B's has all that is seen of it outside.
#[test]
fn nobody_is_told_of_another_s_connection() {
    for has_answered in [false, true] {
        let mut spec = topology();
        spec.uplinks[0].nat_ports = vec![(50_000, 50_000)];
        let mut lab = Lab::new(spec);
        let packet = |from: &Host| udp(from, 4000, &NEIGHBOR, 2000).via(GATEWAY1.mac);
        if has_answered {
            lab.resolve(&NEIGHBOR);
            lab.rx(A.port, packet(&A)).only_balanced();
            lab.rx(UP.port, udp(&NEIGHBOR, 2000, &UP, 50_000)).only_balanced();
            // Since then it is silent.
            for _ in 0..3 {
                lab.after(Duration::from_secs(11)).only_balanced();
                lab.rx(A.port, packet(&A)).only_balanced();
            }
        }
        let mut waits = false;
        for _ in 0..8 {
            let step = lab.rx(A.port, packet(&A));
            waits = step.queued() == 1;
            step.only_balanced();
            if waits {
                break;
            }
            lab.after(Duration::from_secs(1)).only_balanced();
        }
        assert!(waits);
        assert_eq!(lab.connection().packets[1], u64::from(has_answered));
        assert_eq!(lab.plane.flush_connections(&|_| true), 1);
        lab.rx(B.port, packet(&B)).only_balanced();
        assert_eq!(lab.connection().original.src, ip(B.ip));
        assert_eq!(lab.connection().reply.dst_port, 50_000);
        let mut sent = Vec::new();
        for _ in 0..20 {
            sent.extend(lab.after(Duration::from_millis(250)).sent());
        }
        let told = |to: &Host| {
            let to = to.port;
            sent.iter().filter(move |(port, _)| *port == to).map(|(_, wire)| wire)
        };
        assert_eq!(told(&A).count(), 0);
        let error = Wire::from(reported(&GATEWAY1, &B, 3, 1, &packet(&B).ttl(63)));
        assert_eq!(told(&B).collect::<Vec<_>>(), [&error]);
    }
}
