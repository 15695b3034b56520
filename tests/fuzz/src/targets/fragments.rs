//! Fragments of a few datagrams in any order, cut anywhere, from both sides: of two that overlap not
//! both leave, whoever sent them, and nothing is kept beyond its time.

use std::collections::BTreeMap;
use std::time::Duration;

use dataplane::packet::types::PortId;
use tests::lab::{A, B, CLIENT, GATEWAY1, SERVER, UP};
use tests::packet::{Host, Packet, Wire, udp};
use tests::rig::network_header;

use crate::input::Input;
use crate::sound;
use crate::under_test::{UnderTest, topology};

/// Pieces of one input: fewer than one source may have unfinished, so that none is forgotten.
const PIECES: usize = 40;
/// Time that all steps together may take: less than a datagram may stay unfinished.
const MILLIS: u64 = 25_000;
/// What a datagram carries.
const PAYLOAD: usize = 2048;

/// A part of a datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    /// Which of the datagrams: two of each sender and version.
    pub(crate) datagram: u8,
    /// Where it begins, in units of eight bytes.
    pub(crate) from: u8,
    /// How many units.
    pub(crate) units: u8,
    /// More follow; and what is changed about it.
    pub(crate) flags: u8,
}

impl Piece {
    /// For seeds.
    pub(crate) fn write(self, into: &mut Vec<u8>) {
        into.extend([0, self.datagram, self.from, self.units, self.flags]);
    }

    fn read(input: &mut Input<'_>) -> Self {
        let [datagram, from, units, flags] = input.array();
        Self { datagram, from, units, flags }
    }

    const fn is_six(self) -> bool {
        self.datagram & 1 != 0
    }

    const fn is_from_outside(self) -> bool {
        self.datagram & 2 != 0
    }

    const fn number(self) -> u16 {
        (self.datagram >> 2 & 1) as u16
    }

    /// Of those inside: two that give the same identifications to one receiver.
    const fn sender(self) -> Host {
        if self.datagram & 8 == 0 { A } else { B }
    }
}

/// The whole of it, as UDP.
fn whole(of: Piece) -> Packet {
    let packet = if of.is_from_outside() {
        udp(&CLIENT, 4000 + of.number(), &UP, 5353).via(UP.mac)
    } else {
        udp(&of.sender(), 4000 + of.number(), &SERVER, 53).via(GATEWAY1.mac)
    };
    packet.long(PAYLOAD)
}

/// As it is sent.
fn frame(of: Piece) -> (PortId, Wire) {
    let whole = whole(of);
    let (from, units) = (usize::from(of.from) * 8, usize::from(of.units % 64 + 1) * 8);
    let more = of.flags & 1 == 0;
    // The last one may have any length.
    let odd = if more { 0 } else { usize::from(of.flags >> 4) % 8 };
    let id = 0x100 + of.number();
    let mut bytes;
    if of.is_six() {
        let whole = whole.v6().bytes();
        let carried = &whole[54..];
        bytes = whole[..54].to_vec();
        bytes[20] = 44;
        let offset = from as u16 | u16::from(more);
        bytes.extend([17, 0]);
        bytes.extend(offset.to_be_bytes());
        bytes.extend(u32::from(id).to_be_bytes());
        let from = from.min(carried.len());
        bytes.extend(&carried[from..(from + units - odd).min(carried.len())]);
    } else {
        let whole = whole.may_fragment().ident(id).bytes();
        let carried = &whole[34..];
        bytes = whole[..34].to_vec();
        let field = (from / 8) as u16 | if more { 0x2000 } else { 0 };
        bytes[20..22].copy_from_slice(&field.to_be_bytes());
        let from = from.min(carried.len());
        bytes.extend(&carried[from..(from + units - odd).min(carried.len())]);
    }
    let mut wire = Wire::from(bytes);
    sound::make(&mut wire);
    (if of.is_from_outside() { UP.port } else { of.sender().port }, wire)
}

/// Where a datagram's pieces went, and what they carry.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    port: PortId,
    addresses: Vec<u8>,
    id: u32,
}

/// Also whether more follow.
fn carried(port: PortId, wire: &Wire) -> Option<(Key, usize, usize, bool)> {
    let l3 = network_header(&wire.bytes);
    let packet = &wire.bytes[l3..];
    let be16 = |at: usize| usize::from(packet[at]) << 8 | usize::from(packet[at + 1]);
    match wire.bytes.get(l3 - 2..l3)? {
        [0x08, 0x00] if packet[9] == 17 && be16(6) & 0x3fff != 0 => {
            let from = (be16(6) & 0x1fff) * 8;
            let to = from + be16(2) - 20;
            let key = Key { port, addresses: packet[12..20].to_vec(), id: be16(4) as u32 };
            Some((key, from, to, be16(6) & 0x2000 != 0))
        }
        [0x86, 0xdd] if packet[6] == 44 => {
            let from = be16(42) & !7;
            let to = from + be16(4) - 8;
            let id = u32::from_be_bytes([packet[44], packet[45], packet[46], packet[47]]);
            Some((Key { port, addresses: packet[8..40].to_vec(), id }, from, to, be16(42) & 1 != 0))
        }
        _ => None,
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut test = UnderTest::new(topology(), input.u8() & 1 == 0);
    let mut left = BTreeMap::<Key, Vec<(usize, usize, bool)>>::new();
    let mut passed = 0;
    for _ in 0..PIECES {
        if input.is_empty() {
            break;
        }
        let sent = if input.u8() >= 200 {
            let time = u64::from(input.u8()) * 16;
            if passed + time > MILLIS {
                break;
            }
            passed += time;
            test.wait(Duration::from_millis(time))
        } else {
            test.feed(&[frame(Piece::read(&mut input))])
        };
        for (port, wire) in &sent {
            let Some((key, from, to, more)) = carried(*port, wire) else { continue };
            let others = left.entry(key).or_default();
            for (begin, end, _) in others.iter() {
                let apart = *end <= from || to <= *begin;
                assert!(apart, "{begin}..{end} and {from}..{to} left\n{wire:?}");
            }
            others.push((from, to, more));
            others.sort_unstable();
            let joined = others.windows(2).all(|pair| pair[0].1 == pair[1].0);
            if joined && others[0].0 == 0 && others.last().is_some_and(|last| !last.2) {
                // It is whole: what has its identification from now on is another datagram.
                others.clear();
            }
        }
    }
    test.wait(Duration::from_secs(61));
    assert!(test.plane.tables().fragments.is_empty(), "something is still unfinished");
}
