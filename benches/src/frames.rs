//! Frames of many flows: a template made by etherparse once, addresses and ports patched for each
//! frame. Patching is the generator's work and stays outside every measurement.
#![allow(clippy::panic, reason = "a bench without frames must stop")]

use std::net::{Ipv4Addr, Ipv6Addr};

use dataplane::frame::Frame;
use dataplane::packet::types::Mac;
use etherparse::PacketBuilder;

use crate::random::Random;

/// MAC of every network's gateway.
pub const GATEWAY_MAC: Mac = Mac([2, 0x42, 0, 0, 0, 1]);
/// MAC of the container.
pub const CONTAINER_MAC: Mac = Mac([2, 0x42, 0, 0, 0, 2]);
/// Address of the container.
pub const CONTAINER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// MAC of the uplink.
pub const UPLINK_MAC: Mac = Mac([2, 0x42, 0, 0, 1, 1]);
/// MAC of the router that the uplink leads to.
pub const ROUTER_MAC: Mac = Mac([2, 0x42, 0, 0, 1, 2]);
/// The uplink's address, from which translated connections speak.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The next hop.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
/// The container's address of IPv6.
pub const CONTAINER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// The uplink's, from which translated connections of IPv6 speak.
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The next hop of IPv6.
pub const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 254);
/// Outside, behind the router: 2001:2::/48 is for benchmarks (RFC 5180).
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1);
/// Port of every server.
pub const SERVER_PORT: u16 = 443;

/// Source ports used before the next server is taken.
const PORTS_A_SERVER: u32 = 50_000;
const FIRST_PORT: u16 = 10_000;
const HEADERS: usize = 14 + 20 + 8;

/// A UDP frame of `len` bytes without FCS.
///
/// # Panics
/// When `len` does not hold the headers.
#[must_use]
pub fn udp(len: usize, macs: (Mac, Mac), from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    let payload = vec![0x5a; len.checked_sub(HEADERS).unwrap_or_else(|| panic!("{len} bytes"))];
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(macs.0.0, macs.1.0)
        .ipv4(from.0.octets(), to.0.octets(), 64)
        .udp(from.1, to.1)
        .write(&mut bytes, &payload)
        .unwrap_or_else(|error| panic!("{error}"));
    bytes
}

/// The server and the source port of flow `number`.
#[must_use]
pub fn flow(number: u32) -> (Ipv4Addr, u16) {
    // 198.18.0.0/15 is for benchmarks (RFC 2544).
    let server = Ipv4Addr::from(0xc612_0001 + number / PORTS_A_SERVER);
    let port = u16::try_from(number % PORTS_A_SERVER).unwrap_or(0);
    (server, FIRST_PORT + port)
}

/// What writes the next frame of a load.
pub trait Load {
    /// Fills `frame`, ingress included.
    fn fill(&mut self, frame: &mut Frame);
}

/// The `number`-th MAC on side `side`.
#[must_use]
pub const fn mac(side: u8, number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([2, 0x10 + side, a, b, c, d])
}

/// Frames between random pairs of `count` MACs behind one port and `count` behind another.
#[derive(Debug)]
pub struct MacPairs {
    template: Vec<u8>,
    way: Way,
    count: u32,
    random: Random,
}

impl MacPairs {
    /// Frames of `len` bytes.
    #[must_use]
    pub fn new(len: usize, count: u32) -> Self {
        let template = udp(len, (mac(0, 0), mac(1, 0)), (CONTAINER, 1), (ROUTER, 2));
        Self { template, way: Way::Out, count, random: Random::new(0x1234_5678_9abc_def1) }
    }

    /// Frames of the second port's hosts to those of the first.
    #[must_use]
    pub fn back(len: usize, count: u32) -> Self {
        Self { way: Way::In, ..Self::new(len, count) }
    }
}

impl<L: Load + ?Sized> Load for Box<L> {
    fn fill(&mut self, frame: &mut Frame) {
        (**self).fill(frame);
    }
}

impl Load for MacPairs {
    fn fill(&mut self, frame: &mut Frame) {
        frame.copy_from(&self.template);
        let (ingress, from, to) = match self.way {
            Way::Out => (crate::switch::INSIDE, 0, 1),
            Way::In => (crate::switch::OTHER, 1, 0),
        };
        frame.ingress = ingress;
        let src = mac(from, self.random.below(self.count));
        let dst = mac(to, self.random.below(self.count));
        patch(frame, 0, &dst.0);
        patch(frame, 6, &src.0);
    }
}

/// Which way frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the container, or the first port.
    Out,
    /// Back to it, by the uplink or the second port.
    In,
}

/// Which flow the next frame is of.
#[derive(Debug)]
enum Order {
    Random(Random),
    /// Of every second flow, from this one on.
    Half(Random, u32),
    Rising(u32),
}

/// Frames of `count` UDP flows between the container and servers outside.
#[derive(Debug)]
pub struct NatFlows {
    template: Vec<u8>,
    way: Way,
    count: u32,
    order: Order,
    /// Out, flows are of so many containers by turns.
    containers: u32,
}

impl NatFlows {
    /// Frames of `len` bytes, flows in random order.
    #[must_use]
    pub fn random(len: usize, count: u32, way: Way) -> Self {
        let order = Order::Random(Random::new(0xfeed_beef_1234_5679));
        Self { template: Self::template(len, way), way, count, order, containers: 1 }
    }

    /// As [`NatFlows::random`], out, of the first (0) or the second (1) of two containers that begin connections by
    /// turns.
    #[must_use]
    pub fn of_one(len: usize, count: u32, which: u32) -> Self {
        let order = Order::Half(Random::new(0xfeed_beef_1234_5679), which);
        Self { order, containers: 2, ..Self::random(len, count, Way::Out) }
    }

    /// As [`NatFlows::all`], of two containers by turns.
    #[must_use]
    pub fn all_of_two(count: u32) -> Self {
        Self { containers: 2, ..Self::all(count) }
    }

    /// Every flow's first frame, one after the other: to begin the connections.
    #[must_use]
    pub fn all(count: u32) -> Self {
        let way = Way::Out;
        let order = Order::Rising(0);
        Self { template: Self::template(64, way), way, count, order, containers: 1 }
    }

    fn template(len: usize, way: Way) -> Vec<u8> {
        let (server, _) = flow(0);
        match way {
            Way::Out => {
                let macs = (CONTAINER_MAC, GATEWAY_MAC);
                udp(len, macs, (CONTAINER, 0), (server, SERVER_PORT))
            }
            Way::In => udp(len, (ROUTER_MAC, UPLINK_MAC), (server, SERVER_PORT), (OUTSIDE, 0)),
        }
    }
}

impl Load for NatFlows {
    fn fill(&mut self, frame: &mut Frame) {
        let number = match &mut self.order {
            Order::Random(random) => random.below(self.count),
            Order::Half(random, first) => random.below(self.count / 2) * 2 + *first,
            Order::Rising(next) => {
                *next = (*next + 1) % self.count;
                *next
            }
        };
        let (server, port) = flow(number);
        frame.copy_from(&self.template);
        match self.way {
            Way::Out => {
                frame.ingress = crate::switch::INSIDE;
                let container = CONTAINER.to_bits() + number % self.containers;
                patch(frame, IP_SRC, &container.to_be_bytes());
                set_flow(frame, IP_DST, server, L4_SRC, port);
            }
            Way::In => {
                frame.ingress = crate::switch::UPLINK;
                // The fixture's connections keep their source port: nothing stands in its way.
                set_flow(frame, IP_SRC, server, L4_DST, port);
            }
        }
    }
}

const IP_CHECKSUM: usize = 14 + 10;
pub(crate) const IP_SRC: usize = 14 + 12;
pub(crate) const IP_DST: usize = 14 + 16;
pub(crate) const L4_SRC: usize = 14 + 20;
pub(crate) const L4_DST: usize = L4_SRC + 2;

/// Sets an address and a port, and the IPv4 checksum that goes with them. The checksum behind stays the
/// template's: the engine updates it without asking whether it was right.
pub(crate) fn set_flow(
    frame: &mut Frame,
    address_at: usize,
    address: Ipv4Addr,
    port_at: usize,
    port: u16,
) {
    patch(frame, address_at, &address.octets());
    patch(frame, port_at, &port.to_be_bytes());
    patch(frame, IP_CHECKSUM, &[0, 0]);
    let words = frame.bytes().get(14..L4_SRC).unwrap_or_default().chunks_exact(2);
    let sum: u32 = words.map(|w| w.iter().fold(0, |sum, b| sum << 8 | u32::from(*b))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (!sum).to_be_bytes();
    patch(frame, IP_CHECKSUM, &[high, low]);
}

pub(crate) fn patch(frame: &mut Frame, at: usize, value: &[u8]) {
    if let Some(field) = frame.bytes_mut().get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}

/// The server of [`NewFlows`], to which no other load speaks: all its outside ports are free.
const NEW_SERVER: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);

/// Frames of connections that do not exist yet, all to one server: `next` gives the source address
/// and port.
#[derive(Debug)]
pub struct NewFlows<F> {
    template: Vec<u8>,
    next: F,
}

impl<F: FnMut() -> (Ipv4Addr, u16)> NewFlows<F> {
    /// Frames of 64 bytes.
    #[must_use]
    pub fn new(next: F) -> Self {
        let macs = (CONTAINER_MAC, GATEWAY_MAC);
        Self { template: udp(64, macs, (CONTAINER, 0), (NEW_SERVER, SERVER_PORT)), next }
    }
}

impl<F: FnMut() -> (Ipv4Addr, u16)> Load for NewFlows<F> {
    fn fill(&mut self, frame: &mut Frame) {
        frame.copy_from(&self.template);
        frame.ingress = crate::switch::INSIDE;
        let (client, port) = (self.next)();
        set_flow(frame, IP_SRC, client, L4_SRC, port);
    }
}
