//! A batch ends as its frames would have ended one by one: what the stages remember of a train of
//! frames must never be told of another frame.

use std::collections::BTreeMap;

use dataplane::clock::Timestamp;
use dataplane::config::Snapshot;
use dataplane::core::Core;
use dataplane::frame::Frame;
use dataplane::io::{Offloads, TxReport};
use dataplane::packet::types::{Mac, PortId, tcp_flags};
use dataplane::plane::Plane;
use proptest::prelude::*;
use tests::lab::{A, B, C, D, GATEWAY1, GATEWAY2, UP, small, topology, without_guard};
use tests::outlet::{Outlet, Outside, sent};
use tests::packet::{Host, Wire, arp_request, ethernet, tcp, udp};

/// What came out of one port. What the router answers and what it reports leave a batch in another
/// order than one by one, which no flow can see; so its frames are only counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sent {
    switched: Vec<Wire>,
    routed: BTreeMap<Vec<u8>, usize>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Recorded(BTreeMap<PortId, Sent>);

impl Outlet for Recorded {
    fn take(&mut self, port: PortId, frame: &Frame, report: &mut TxReport) {
        let wire = Wire { bytes: frame.bytes().to_vec(), vnet: frame.vnet };
        let Sent { switched, routed } = self.0.entry(port).or_default();
        if [GATEWAY1.mac.0, GATEWAY2.mac.0, UP.mac.0]
            .contains(&wire.bytes[6..12].try_into().unwrap())
        {
            *routed.entry(wire.bytes).or_default() += 1;
        } else {
            switched.push(wire);
        }
        sent(frame, report);
    }
}

/// An engine, and all that came out of it.
struct Side {
    // The tables that the core works on.
    _plane: Plane,
    core: Core,
    outside: Outside<Recorded>,
}

impl Side {
    fn new(guard: bool, icc: bool) -> Self {
        let mut spec = topology();
        if !guard {
            without_guard(&mut spec);
        }
        spec.networks[0].icc = icc;
        let plane = Plane::new(&small()).unwrap();
        let mut core = plane.core(0).unwrap();
        for port in &spec.ports {
            plane.add_port(&mut core, port.id, Offloads::ALL);
        }
        plane.publish(Snapshot::build(spec).unwrap());
        Self { _plane: plane, core, outside: Outside::default() }
    }

    fn process(&mut self, frames: &[(PortId, Wire)], now: Timestamp) {
        let mut batch = Vec::new();
        for (port, wire) in frames {
            let mut frame = self.core.pool().take().unwrap();
            frame.copy_from(&wire.bytes);
            frame.vnet = wire.vnet;
            frame.ingress = *port;
            batch.push(frame);
        }
        self.core.process(&mut batch, now, &mut self.outside);
    }
}

fn host(at: usize) -> Host {
    [A, B, C, D, GATEWAY1, GATEWAY2][at % 6]
}

/// A frame to be: where it comes in, who it says it is from, to whom, what.
type Choice = (usize, usize, usize, u8, u16);

/// Few senders and receivers, so that trains and near-trains are common.
fn choice() -> impl Strategy<Value = Choice> {
    (0..14usize, 0..8usize, 0..9usize, 0..12u8, 0..3u16)
}

/// Without a guard everybody tells the truth about the sender: learning comes before all lookups of
/// a batch, so a MAC that moves within a batch is found elsewhere than one by one.
fn frame((port, from, to, kind, vlan): Choice, guard: bool) -> (PortId, Wire) {
    let at = [A, B, C, D, GATEWAY1, UP];
    let ingress = at[if port < 6 { port } else { port % 2 }];
    let sender = if guard { host(from) } else { ingress };
    let stranger = |of: Host| Mac([2, 0, 0, 0, 0x55, of.mac.0[5] ^ of.mac.0[3]]);
    let receiver = host(to);
    let mac = match to {
        7 => stranger(receiver),
        8 => Mac::BROADCAST,
        _ => receiver.mac,
    };
    let packet = udp(&sender, 1000, &receiver, 2000).macs(sender.mac, mac);
    let wire: Wire = match kind {
        0..=2 => Wire::from(&packet),
        3 => Wire::from(&packet.long(1600)),
        4 => Wire::from(&packet.vlan(vlan)),
        5 => arp_request(&sender, receiver.ip).into(),
        6 => ethernet(sender.mac, mac, 0x88b5, &[7; 46]).into(),
        7 => ethernet(stranger(ingress), mac, 0x88b5, &[7; 46]).into(),
        8 => tcp(&sender, 80, &receiver, 81, tcp_flags::ACK)
            .macs(sender.mac, mac)
            .long(2000)
            .gso(500),
        9 => ethernet(sender.mac, mac, 0x0800, &[0x45; 30]).into(),
        10 => Wire::from(&packet.src(host(from + 1).ip)),
        _ => vec![0xff; 12].into(),
    };
    (ingress.port, wire)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_batch_ends_as_its_frames_one_by_one(
        choices in proptest::collection::vec(choice(), 1..60),
        guard: bool,
        icc: bool,
    ) {
        let frames: Vec<_> = choices.into_iter().map(|choice| frame(choice, guard)).collect();
        let now = Timestamp::from_secs(1000);
        let (mut together, mut apart) = (Side::new(guard, icc), Side::new(guard, icc));
        // The first time everybody is learned.
        for _ in 0..2 {
            together.outside.0.0.clear();
            apart.outside.0.0.clear();
            together.process(&frames, now);
            for frame in &frames {
                apart.process(std::slice::from_ref(frame), now);
            }
        }
        prop_assert_eq!(together.outside.0, apart.outside.0);
    }
}
