//! Floods of either family: packets of which each is another connection's or another datagram's.

use dataplane::packet::types::tcp_flags::SYN;
use tests::fragments::{in_pieces, in_pieces6, piece};
use tests::host::Family;
use tests::packet::{Packet, Wire, tcp, udp};
use tests::sums;

use crate::attacks::View;

/// Ethernet and IPv4 header.
const L4: usize = 34;
/// Ethernet, IPv6 and fragment header of eight bytes.
const ID6: usize = 14 + 40 + 4;

/// A packet of TCP or UDP whose ports are put in later.
struct Template {
    frame: Vec<u8>,
    /// Where TCP or UDP begins, and where its checksum is.
    l4: usize,
    sum_at: usize,
    /// Of all that the checksum is over, without ports.
    rest: u32,
}

impl Template {
    fn of(packet: &Packet, family: Family) -> Self {
        let frame = Wire::from(packet).bytes;
        let l4 = family.pick([L4, 14 + 40]);
        let is_tcp = frame[family.pick([14 + 9, 14 + 6])] == 6;
        let sum_at = l4 + if is_tcp { 16 } else { 6 };
        let word = |at: usize| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
        // RFC 1624: taking a word away is adding its complement.
        let rest = (word(sum_at) ^ 0xffff) + (word(l4) ^ 0xffff) + (word(l4 + 2) ^ 0xffff);
        Self { frame, l4, sum_at, rest }
    }

    fn with_ports(&self, src: u16, dst: u16) -> Wire {
        let mut frame = self.frame.clone();
        let mut sum = self.rest + u32::from(src) + u32::from(dst);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // UDP says by zero that it has none (RFC 768); to TCP both are the same.
        let sum = match !(sum as u16) {
            0 => 0xffff,
            sum => sum,
        };
        for (at, word) in [(self.l4, src), (self.l4 + 2, dst), (self.sum_at, sum)] {
            frame[at..at + 2].copy_from_slice(&word.to_be_bytes());
        }
        frame.into()
    }
}

/// SYNs, each of another connection, to a machine that drops them.
pub(crate) fn syns(bad: &View, family: Family, first_port: u16) -> impl Fn(u64) -> Wire + use<> {
    let (own, to) = bad.ends(family);
    let syn = tcp(&bad.own, 1024, &bad.outside(), first_port, SYN).between(own, to);
    let template = Template::of(&syn, family);
    move |n| {
        let to = first_port.wrapping_add((n >> 16) as u16 % 100);
        template.with_ports(1024 | (n as u16), to)
    }
}

/// Datagrams, each of another connection, which nobody answers: from one sender and the other by turns.
pub(crate) fn datagrams(bad: &View, loose: &View, family: Family) -> impl Fn(u64) -> Wire + use<> {
    let templates = [bad, loose].map(|view| {
        let (own, to) = view.ends(family);
        let datagram = udp(&view.own, 1024, &view.outside(), 9).between(own, to);
        Template::of(&datagram, family)
    });
    move |n| {
        let template = &templates[n as usize % 2];
        let n = n / 2;
        template.with_ports(1024 | (n as u16), 20_000 + (n >> 16) as u16 % 100)
    }
}

/// SYNs to all ports of the gateway.
pub(crate) fn scan(bad: &View, family: Family) -> impl Fn(u64) -> Wire + use<> {
    let view = View { beyond: bad.gateway, beyond6: bad.gateway6, ..*bad };
    let make: Vec<_> = (0..656).map(|n| syns(&view, family, n * 100)).collect();
    // Each of them has a hundred ports, by the upper bits of its number.
    move |n| make[n as usize / 100 % make.len()](n % 100 * 65_536 + n % 0xfc00)
}

/// A datagram that is long enough for several fragments.
fn whole(bad: &View, family: Family) -> Packet {
    let (own, to) = bad.ends(family);
    udp(&bad.own, 5000, &bad.outside(), 53).may_fragment().long(600).between(own, to)
}

/// Last parts of datagrams of which nothing else ever comes.
pub(crate) fn orphans(bad: &View, family: Family) -> impl Fn(u64) -> Wire + use<> {
    let whole = whole(bad, family);
    let orphan = match family {
        Family::V4 => piece(&whole.bytes(), 256, 512),
        Family::V6 => in_pieces6(&whole, 256, 0)[1].clone(),
    };
    move |n| numbered(&orphan, family, n)
}

/// The first part, the one behind it, one over both, and the first again.
pub(crate) fn overlapping(bad: &View, family: Family) -> impl Fn(u64) -> Wire + use<> {
    let whole = whole(bad, family);
    let (parts, over) = match family {
        Family::V4 => (in_pieces(&whole, 256), piece(&whole.bytes(), 128, 384)),
        Family::V6 => (in_pieces6(&whole, 256, 0), in_pieces6(&whole, 384, 0)[0].clone()),
    };
    let parts = [parts[0].clone(), parts[1].clone(), over, parts[0].clone()];
    move |n| numbered(&parts[n as usize % 4], family, n / 4)
}

/// A fragment with another identification.
fn numbered(frame: &[u8], family: Family, n: u64) -> Wire {
    let mut frame = frame.to_vec();
    match family {
        Family::V4 => {
            frame[18..20].copy_from_slice(&(n as u16).to_be_bytes());
            frame[24..26].fill(0);
            let sum = !sums::sum(&frame[14..L4]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        Family::V6 => frame[ID6..ID6 + 4].copy_from_slice(&(n as u32).to_be_bytes()),
    }
    frame.into()
}
