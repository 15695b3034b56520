//! Frames of several ports with their virtio-net headers, time, and changes of the configuration,
//! through the whole engine.
//!
//! An input is a list of steps, see [`step`]; what has to hold is in [`crate::under_test`].

use std::time::Duration;

use dataplane::config::{PortRole, SnapshotSpec, UplinkMode, Vlans};
use dataplane::io::vnet_hdr::VnetHdr;
use dataplane::packet::types::PortId;
use tests::lab::{A, B, C, CLIENT, D, GATEWAY1, GATEWAY2, ROUTER, SERVER, UP};
use tests::packet::{Host, Wire};
use tests::rig::network_header;

use crate::input::Input;
use crate::sound;
use crate::under_test::{PORTS, UnderTest, topology};

/// Steps of one input.
const STEPS: usize = 48;
/// The longest frame that is not made longer, and the longest of all.
const PLAIN: usize = 4096;

/// Kinds of steps that are not frames.
const WAIT: u8 = 250;
const CHANGE: u8 = 252;
/// What is done to a frame before it is sent.
const WITH_VNET: u8 = 1;
const MADE_SOUND: u8 = 2;
const LONGER: u8 = 4;
const OFFLOADED: u8 = 8;
/// It goes together with the one before it.
const TOGETHER: u8 = 16;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut test = UnderTest::new(topology(), input.u8() & 1 == 0);
    let mut batch: Vec<(PortId, Wire)> = Vec::new();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let kind = input.u8();
        if kind >= WAIT {
            test.feed(&batch);
            batch.clear();
            if kind >= CHANGE {
                change(&mut test, input.u8());
            } else {
                let time = Duration::from_millis(u64::from(input.u16()) * 10);
                test.wait(time);
            }
            continue;
        }
        if kind & TOGETHER == 0 || batch.len() >= 32 {
            test.feed(&batch);
            batch.clear();
        }
        batch.push(frame(kind, &mut input));
    }
    test.feed(&batch);
    test.wait(Duration::from_secs(400));
}

/// A frame, as [`write`] writes it.
fn frame(kind: u8, input: &mut Input<'_>) -> (PortId, Wire) {
    let port = input.choose(&PORTS);
    let role = input.u8();
    let vnet = (kind & WITH_VNET != 0).then(|| VnetHdr::decode(input.array()));
    let more = if kind & LONGER != 0 { usize::from(input.u16()) } else { 0 };
    let gso = if kind & OFFLOADED != 0 { input.u16() } else { 0 };
    let len = usize::from(input.u16()) % PLAIN;
    let mut wire = Wire::from(input.take(len));
    wire.vnet = vnet.unwrap_or_default();
    let fill = wire.bytes.last().copied().unwrap_or(0);
    wire.bytes.resize(wire.bytes.len() + more, fill);
    play(&mut wire.bytes, role);
    if kind & OFFLOADED != 0 {
        sound::offload(&mut wire, gso);
    }
    if kind & MADE_SOUND != 0 {
        sound::make(&mut wire);
    }
    (port, wire)
}

/// Somebody of the topology, rather than whoever the frame was from.
fn play(bytes: &mut [u8], role: u8) {
    let (from, to, mac): (Host, Host, _) = match role % 8 {
        1 => (A, SERVER, GATEWAY1.mac),
        2 => (B, SERVER, GATEWAY1.mac),
        3 => (D, SERVER, GATEWAY2.mac),
        4 => (SERVER, UP, UP.mac),
        5 => (CLIENT, UP, UP.mac),
        6 => (A, B, B.mac),
        7 => (A, UP, GATEWAY1.mac),
        _ => return,
    };
    if bytes.len() < 14 {
        return;
    }
    let sender = if from.port == UP.port { ROUTER.mac } else { from.mac };
    bytes[..6].copy_from_slice(&mac.0);
    bytes[6..12].copy_from_slice(&sender.0);
    let l3 = network_header(bytes);
    match bytes.get(l3 - 2..l3) {
        Some([0x08, 0x00]) if bytes.len() >= l3 + 20 => {
            bytes[l3 + 12..l3 + 16].copy_from_slice(&from.ip.octets());
            bytes[l3 + 16..l3 + 20].copy_from_slice(&to.ip.octets());
        }
        Some([0x86, 0xdd]) if bytes.len() >= l3 + 40 => {
            bytes[l3 + 8..l3 + 24].copy_from_slice(&from.ip6().octets());
            bytes[l3 + 24..l3 + 40].copy_from_slice(&to.ip6().octets());
        }
        _ => {}
    }
}

/// Ports are unpublished and published, a guard falls, an endpoint leaves, VLANs part them, the uplink is shared.
fn change(test: &mut UnderTest, what: u8) {
    let mut spec = topology();
    if what & 1 != 0 {
        spec.dnat.clear();
    }
    if what & 2 != 0 {
        tests::lab::without_guard(&mut spec);
    }
    if what & 4 != 0 {
        spec.ports.retain(|port| port.id != B.port);
        spec.dnat.clear();
    }
    if what & 8 != 0 {
        spec.networks[0].masquerade = false;
    }
    if what & 16 != 0 {
        spec.networks[0].icc = false;
    }
    if what & 32 != 0 {
        separate(&mut spec);
    }
    if what & 64 != 0 {
        spec.networks[0].endpoint_independent = true;
        spec.networks[0].storm_limit = 4;
        spec.networks[0].ra = true;
    }
    if what & 128 != 0 {
        spec.uplinks[0].mode = UplinkMode::Shared;
    }
    test.publish(spec);
}

/// A and B in a VLAN each, and C in both.
fn separate(spec: &mut SnapshotSpec) {
    for port in &mut spec.ports {
        let PortRole::Endpoint { vlans, .. } = &mut port.role else { continue };
        *vlans = match port.id {
            id if id == A.port => Vlans::Access(10),
            id if id == B.port => Vlans::Access(20),
            id if id == C.port => {
                Vlans::Trunk { native: Some(10), tagged: Box::new([20, 30].into_iter().collect()) }
            }
            _ => continue,
        };
    }
}

/// One frame of an input, for seeds: `role` 0 is as it is.
pub(crate) fn write(into: &mut Vec<u8>, port: PortId, role: u8, wire: &Wire) {
    let at = PORTS.iter().position(|known| *known == port).unwrap_or(0);
    let with_vnet = wire.vnet != VnetHdr::default();
    let mut kind = if role == 0 { 0 } else { MADE_SOUND };
    if with_vnet {
        kind |= WITH_VNET;
    }
    let bytes = &wire.bytes[..wire.bytes.len().min(PLAIN - 1)];
    into.extend([kind, at as u8, role]);
    if with_vnet {
        into.extend(wire.vnet.encode());
    }
    into.extend((bytes.len() as u16).to_le_bytes());
    into.extend(bytes);
}
