//! A batch ends as its frames would have ended one by one: what the stages remember of a train of
//! frames must never be told of another frame.

use std::collections::BTreeMap;

use dataplane::clock::Timestamp;
use dataplane::config::Snapshot;
use dataplane::core::Core;
use dataplane::engine::Link;
use dataplane::frame::Frame;
use dataplane::io::TxReport;
use dataplane::packet::types::{Mac, PortId, tcp_flags};
use dataplane::plane::Plane;
use proptest::prelude::*;
use tests::lab::{
    A, B, C, D, GATEWAY1, GATEWAY2, ROUTER, SERVER, SINGLE, UP, UPLINK, dual, small, without_guard,
};
use tests::outlet::{Outlet, Outside, sent};
use tests::packet::{Host, Packet, Wire, arp_reply, arp_request, ethernet, tcp, udp};

/// Time stands still, so that no way has to be found anew.
const NOW: Timestamp = Timestamp::from_secs(1000);

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
        let mut spec = dual();
        if !guard {
            without_guard(&mut spec);
        }
        spec.networks[0].icc = icc;
        let plane = Plane::new(&small()).unwrap();
        let mut core = plane.core(0).unwrap();
        for port in &spec.ports {
            // What is merged depends on what is in a batch.
            plane.add_port(&mut core, port.id, SINGLE);
        }
        plane.publish(Snapshot::build(spec).unwrap());
        let neighbors = &plane.tables().neighbors;
        neighbors.confirm(Link::Uplink(UPLINK), ROUTER.ip, ROUTER.mac, true, NOW);
        neighbors.confirm(Link::Uplink(UPLINK), ROUTER.ip6(), ROUTER.mac, true, NOW);
        Self { _plane: plane, core, outside: Outside::default() }
    }

    fn process(&mut self, frames: &[(PortId, Wire)]) {
        let mut batch = Vec::new();
        for (port, wire) in frames {
            let mut frame = self.core.pool().take().unwrap();
            frame.copy_from(&wire.bytes);
            frame.vnet = wire.vnet;
            frame.ingress = *port;
            batch.push(frame);
        }
        self.core.process(&mut batch, NOW, &mut self.outside);
    }
}

fn flow(of: &Host) -> u16 {
    2000 + u16::from(of.ip.octets()[1]) * 256 + u16::from(of.ip.octets()[3])
}

fn host(at: usize) -> Host {
    [A, B, C, D, GATEWAY1, GATEWAY2][at % 6]
}

/// A frame to be: where it comes in, who it says it is from, to whom, what, and whether by IPv6.
pub(crate) type Choice = (usize, usize, usize, u8, u16, bool);

/// Few senders and receivers, so that trains and near-trains are common.
pub(crate) fn choice() -> impl Strategy<Value = Choice> {
    (0..14usize, 0..8usize, 0..9usize, 0..18u8, 0..3u16, proptest::bool::weighted(0.3))
}

pub(crate) fn frame((port, from, to, kind, vlan, six): Choice) -> (PortId, Wire) {
    let by = |packet: Packet| if six { packet.v6() } else { packet };
    let at = [A, B, C, D, GATEWAY1, UP];
    let ingress = at[if port < 6 { port } else { port % 2 }];
    // Most tell the truth, and are heard again.
    let sender = if from < 4 { ingress } else { host(from) };
    let stranger = |of: Host| Mac([2, 0, 0, 0, 0x55, of.mac.0[5] ^ of.mac.0[3]]);
    let receiver = host(to);
    let mac = match to {
        7 => stranger(receiver),
        8 => Mac::BROADCAST,
        _ => receiver.mac,
    };
    let packet = by(udp(&sender, 1000, &receiver, 2000).macs(sender.mac, mac));
    let wire: Wire = match kind {
        0..=2 => Wire::from(&packet),
        3 => Wire::from(&packet.long(1600)),
        4 => Wire::from(&packet.vlan(vlan)),
        5 => arp_request(&sender, receiver.ip).into(),
        6 => ethernet(sender.mac, mac, 0x88b5, &[7; 46]).into(),
        7 => ethernet(stranger(ingress), mac, 0x88b5, &[7; 46]).into(),
        8 => by(tcp(&sender, 80, &receiver, 81, tcp_flags::ACK))
            .macs(sender.mac, mac)
            .long(2000)
            .gso(500),
        9 => ethernet(sender.mac, mac, 0x0800, &[0x45; 30]).into(),
        10 => Wire::from(&packet.src(host(from + 1).ip)),
        // Out through SNAT, each from a port of its own, and back.
        11 | 12 => {
            let packet = by(udp(&sender, flow(&sender), &SERVER, 53));
            Wire::from(&packet.macs(sender.mac, GATEWAY1.mac))
        }
        13 => {
            let flags =
                [tcp_flags::SYN, tcp_flags::ACK, tcp_flags::FIN | tcp_flags::ACK][vlan as usize];
            let packet = by(tcp(&sender, flow(&sender), &SERVER, 80, flags));
            packet.macs(sender.mac, GATEWAY1.mac).partial()
        }
        14 => return (UP.port, Wire::from(&by(udp(&SERVER, 53, &UP, flow(&receiver))))),
        15 => {
            let flags =
                [tcp_flags::SYN | tcp_flags::ACK, tcp_flags::ACK, tcp_flags::RST][vlan as usize];
            return (UP.port, Wire::from(&by(tcp(&SERVER, 80, &UP, flow(&receiver), flags))));
        }
        // What the router says is believed for the whole batch, so it says the same.
        16 if vlan == 0 => return (UP.port, arp_reply(&ROUTER, &UP).into()),
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
        let frames: Vec<_> = choices.into_iter().map(frame).collect();
        let (mut together, mut apart) = (Side::new(guard, icc), Side::new(guard, icc));
        // The first time everybody is learned; from then on ways are remembered.
        for _ in 0..4 {
            together.process(&frames);
            for frame in &frames {
                apart.process(std::slice::from_ref(frame));
            }
        }
        prop_assert_eq!(together.outside.0, apart.outside.0);
        prop_assert_eq!(together.core.stats(), apart.core.stats());
    }
}
