//! Segments of established TCP connections, and datagrams that come in bursts.
//!
//! A stream is known by what each side has sent so far, shared by the loads of both directions: each acknowledges
//! what the other has said, some frames late, so that no acknowledgment is ahead of its data where two workers
//! receive a direction each.
#![allow(clippy::panic, reason = "a bench without frames must stop")]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dataplane::frame::Frame;
use dataplane::packet::types::Mac;
use etherparse::{PacketBuilder, TcpOptionElement};

use crate::frames::{
    CONTAINER, CONTAINER_MAC, GATEWAY_MAC, IP_DST, IP_SRC, L4_DST, L4_SRC, Load, OUTSIDE, ROUTER,
    ROUTER_MAC, SERVER_PORT, UPLINK_MAC, Way, flow, mac, patch, set_flow, udp,
};
use crate::random::Random;
use crate::switch::{INSIDE, OTHER, UPLINK};

const SEQUENCE: usize = L4_SRC + 4;
const ACKNOWLEDGMENT: usize = L4_SRC + 8;
const TCP_CHECKSUM: usize = L4_SRC + 16;
const UDP_CHECKSUM: usize = L4_SRC + 6;
const TCP_HEADERS: usize = 14 + 20 + 20;
/// Both sides offer the largest window there is (RFC 7323 §2.3).
const WINDOW: u16 = u16::MAX;
const SCALE: u8 = 14;
/// The number of the first byte of either side: the SYN has the one before.
const FIRST: u64 = 1;
/// Frames of the other side that are not acknowledged yet: more than it writes before they are sent.
const LATE: u64 = 512;
/// Frames of a direction before those of the other.
const IN_A_ROW: usize = 256;

/// What both sides of so many connections have sent.
#[derive(Debug)]
pub struct Streams {
    /// The next sequence numbers of clients and of servers, each direction in memory of its own.
    next: [Vec<AtomicU64>; 2],
}

impl Streams {
    /// Connections that are still to be opened.
    #[must_use]
    pub fn new(count: u32) -> Arc<Self> {
        let side = || (0..count).map(|_| AtomicU64::new(FIRST)).collect();
        Arc::new(Self { next: [side(), side()] })
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u32 {
        let [clients, _] = &self.next;
        u32::try_from(clients.len()).unwrap_or(u32::MAX)
    }

    fn sides(&self, way: Way, number: u32) -> Option<[&AtomicU64; 2]> {
        let [client, server] = &self.next;
        let [mine, theirs] = match way {
            Way::Out => [client, server],
            Way::In => [server, client],
        };
        Some([mine.get(number as usize)?, theirs.get(number as usize)?])
    }
}

/// What the segments of a load are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The SYN of either side, of one connection after the other.
    Syn,
    /// The first data, of one connection after the other.
    First,
    /// What follows, of any.
    Data,
}

/// Segments of TCP connections between the container and servers outside: those of
/// [`crate::frames::NatFlows`], by TCP.
#[derive(Debug)]
pub struct TcpFlows {
    template: Vec<u8>,
    streams: Arc<Streams>,
    way: Way,
    step: Step,
    count: u32,
    payload: u64,
    random: Random,
    rising: u32,
}

impl TcpFlows {
    /// Segments in frames of `len` bytes, of connections in random order once they are open.
    ///
    /// # Panics
    /// When `len` does not hold the headers.
    #[must_use]
    pub fn new(len: usize, streams: &Arc<Streams>, way: Way, step: Step) -> Self {
        let payload = len.checked_sub(TCP_HEADERS).unwrap_or_else(|| panic!("{len} bytes"));
        let payload = if step == Step::Syn { 0 } else { payload };
        let (server, _) = flow(0);
        let (macs, from, to) = match way {
            Way::Out => ((CONTAINER_MAC, GATEWAY_MAC), (CONTAINER, 0), (server, SERVER_PORT)),
            Way::In => ((ROUTER_MAC, UPLINK_MAC), (server, SERVER_PORT), (OUTSIDE, 0)),
        };
        Self {
            template: tcp(macs, from, to, (step, way), &vec![0x5a; payload]),
            streams: Arc::clone(streams),
            way,
            step,
            count: streams.count(),
            payload: payload as u64,
            random: Random::new(0xfeed_beef_1234_5679),
            rising: 0,
        }
    }
}

/// Both directions of the same connections by turns, on one worker: of one alone nothing would be acknowledged, and
/// soon no more be believed.
#[derive(Debug)]
pub struct BothWays {
    ways: [TcpFlows; 2],
    turn: usize,
}

impl BothWays {
    /// Data in frames of `len` bytes.
    #[must_use]
    pub fn new(len: usize, streams: &Arc<Streams>) -> Self {
        let ways = [Way::Out, Way::In].map(|way| TcpFlows::new(len, streams, way, Step::Data));
        Self { ways, turn: 0 }
    }
}

impl Load for BothWays {
    fn fill(&mut self, frame: &mut Frame) {
        let [out, back] = &mut self.ways;
        let way = if (self.turn / IN_A_ROW).is_multiple_of(2) { out } else { back };
        way.fill(frame);
        self.turn += 1;
    }
}

/// A segment: a SYN of the client, one of the server that answers it, or data.
fn tcp(
    macs: (Mac, Mac),
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    kind: (Step, Way),
    payload: &[u8],
) -> Vec<u8> {
    let segment = PacketBuilder::ethernet2(macs.0.0, macs.1.0)
        .ipv4(from.0.octets(), to.0.octets(), 64)
        .tcp(from.1, to.1, 0, WINDOW);
    let scale = [TcpOptionElement::WindowScale(SCALE)];
    let segment = match kind {
        (Step::Syn, Way::Out) => segment.syn().options(&scale),
        (Step::Syn, Way::In) => segment.syn().ack(1).options(&scale),
        (Step::First | Step::Data, _) => Ok(segment.ack(1)),
    };
    let mut bytes = Vec::new();
    segment
        .unwrap_or_else(|error| panic!("{error}"))
        .write(&mut bytes, payload)
        .unwrap_or_else(|error| panic!("{error}"));
    bytes
}

impl Load for TcpFlows {
    fn fill(&mut self, frame: &mut Frame) {
        let number = if self.step == Step::Data {
            self.random.below(self.count)
        } else {
            self.rising = (self.rising + 1) % self.count;
            self.rising
        };
        let (server, port) = flow(number);
        frame.copy_from(&self.template);
        let (ingress, address_at, port_at) = match self.way {
            Way::Out => (INSIDE, IP_DST, L4_SRC),
            Way::In => (UPLINK, IP_SRC, L4_DST),
        };
        frame.ingress = ingress;
        set_summed(frame, address_at, &server.octets(), TCP_CHECKSUM);
        set_summed(frame, port_at, &port.to_be_bytes(), TCP_CHECKSUM);
        set_flow(frame, address_at, server, port_at, port);
        if self.step != Step::Syn
            && let Some([mine, theirs]) = self.streams.sides(self.way, number)
        {
            // One load alone writes each.
            let sequence = mine.load(Ordering::Relaxed);
            mine.store(sequence + self.payload, Ordering::Relaxed);
            let late = theirs.load(Ordering::Relaxed).saturating_sub(LATE * self.payload);
            set_summed(frame, SEQUENCE, &low(sequence), TCP_CHECKSUM);
            set_summed(frame, ACKNOWLEDGMENT, &low(late.max(FIRST)), TCP_CHECKSUM);
        }
    }
}

/// The low 32 bits, as numbers of TCP go.
fn low(number: u64) -> [u8; 4] {
    let [_, _, _, _, rest @ ..] = number.to_be_bytes();
    rest
}

/// Sets a field of a frame whose transport checksum is right, and the checksum with it (RFC 1624).
fn set_summed(frame: &mut Frame, at: usize, value: &[u8], checksum: usize) {
    let word = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
    let words = |bytes: &[u8]| -> u32 { bytes.chunks(2).map(word).sum() };
    let bytes = frame.bytes();
    let was =
        bytes.get(at..at + value.len()).unwrap_or_default().chunks(2).map(|w| !word(w) & 0xffff);
    let sum = (!words(bytes.get(checksum..checksum + 2).unwrap_or_default()) & 0xffff)
        + was.sum::<u32>()
        + words(value);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (!sum).to_be_bytes();
    patch(frame, at, value);
    patch(frame, checksum, &[high, low]);
}

/// Segments between random pairs of `count` MACs behind one port and `count` behind another, each of which
/// continues the one before it: of one pair, a stream.
#[derive(Debug)]
pub struct TcpPairs {
    template: Vec<u8>,
    way: Way,
    count: u32,
    payload: u32,
    sequence: u32,
    random: Random,
}

impl TcpPairs {
    /// Segments in frames of `len` bytes.
    ///
    /// # Panics
    /// When `len` does not hold the headers.
    #[must_use]
    pub fn new(len: usize, count: u32, way: Way) -> Self {
        let payload = len.checked_sub(TCP_HEADERS).unwrap_or_else(|| panic!("{len} bytes"));
        let kind = (Step::Data, way);
        let macs = (mac(0, 0), mac(1, 0));
        Self {
            template: tcp(macs, (CONTAINER, 1), (ROUTER, 2), kind, &vec![0x5a; payload]),
            way,
            count,
            payload: u32::try_from(payload).unwrap_or(0),
            sequence: 0,
            random: Random::new(0x1234_5678_9abc_def1),
        }
    }
}

impl Load for TcpPairs {
    fn fill(&mut self, frame: &mut Frame) {
        frame.copy_from(&self.template);
        let pair = [self.random.below(self.count), self.random.below(self.count)];
        address(frame, self.way, pair);
        set_summed(frame, SEQUENCE, &self.sequence.to_be_bytes(), TCP_CHECKSUM);
        self.sequence = self.sequence.wrapping_add(self.payload);
    }
}

/// From a MAC of one side to one of the other.
fn address(frame: &mut Frame, way: Way, [src, dst]: [u32; 2]) {
    let (ingress, from, to) = match way {
        Way::Out => (INSIDE, 0, 1),
        Way::In => (OTHER, 1, 0),
    };
    frame.ingress = ingress;
    patch(frame, 0, &mac(to, dst).0);
    patch(frame, 6, &mac(from, src).0);
}

/// Datagrams of several flows between two hosts that take turns, so many of each in a row.
#[derive(Debug)]
pub struct Bursts {
    template: Vec<u8>,
    way: Way,
    in_a_row: u16,
    flows: u16,
    number: u16,
    left: u16,
}

impl Bursts {
    /// Datagrams in frames of `len` bytes.
    #[must_use]
    pub fn new(len: usize, flows: u16, in_a_row: u16, way: Way) -> Self {
        let template = udp(len, (mac(0, 0), mac(1, 0)), (CONTAINER, 0), (ROUTER, 2));
        Self { template, way, in_a_row, flows, number: 0, left: in_a_row }
    }
}

impl Load for Bursts {
    fn fill(&mut self, frame: &mut Frame) {
        if self.left == 0 {
            self.left = self.in_a_row;
            self.number = (self.number + 1) % self.flows;
        }
        self.left -= 1;
        frame.copy_from(&self.template);
        address(frame, self.way, [0, 0]);
        set_summed(frame, L4_SRC, &(1000 + self.number).to_be_bytes(), UDP_CHECKSUM);
    }
}
