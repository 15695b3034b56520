//! ARP for IPv4 over Ethernet (RFC 826): reading, and the three frames the engine sends.
//!
//! Frames made here have 42 bytes: a TAP or AF_PACKET device takes them as they are, and a NIC
//! pads to the minimum itself.

use std::net::Ipv4Addr;

use super::headers::Headers;
use super::types::{Mac, ethertype};
use crate::frame::Frame;

/// Bytes of an ARP packet for IPv4 over Ethernet.
pub const ARP_LEN: usize = 28;
const FRAME_LEN: usize = super::parse::ETH_LEN + ARP_LEN;

/// Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4: how every packet starts
/// that is not malformed.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];

/// What an ARP packet wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpOp {
    /// Any other operation, such as RARP's.
    Other(u16),
    /// An answer.
    Reply,
    /// A question.
    Request,
}

impl ArpOp {
    const fn from_bits(bits: u16) -> Self {
        match bits {
            1 => Self::Request,
            2 => Self::Reply,
            other => Self::Other(other),
        }
    }

    const fn to_bits(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Reply => 2,
            Self::Other(other) => other,
        }
    }
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArpPacket {
    /// Operation.
    pub op: ArpOp,
    /// Sender hardware address. Not necessarily the source of the frame.
    pub sender_mac: Mac,
    /// Sender protocol address; zero in a probe.
    pub sender_ip: Ipv4Addr,
    /// Target hardware address; meaningless in a request.
    pub target_mac: Mac,
    /// Target protocol address.
    pub target_ip: Ipv4Addr,
}

impl ArpPacket {
    /// Reads the ARP packet of a frame whose [`Headers::net`] is ARP. `None`: it is cut short or
    /// not for IPv4 over Ethernet.
    #[must_use]
    pub fn parse(bytes: &[u8], headers: &Headers) -> Option<Self> {
        Self::read(bytes.get(usize::from(headers.l3)..)?)
    }

    /// The same of a packet that begins with these bytes.
    #[must_use]
    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        let packet = packet.first_chunk::<ARP_LEN>()?;
        let (start, rest) = packet.split_first_chunk::<6>()?;
        if *start != ETHERNET_IPV4 {
            return None;
        }
        let (op, rest) = rest.split_first_chunk::<2>()?;
        let (sender_mac, rest) = rest.split_first_chunk::<6>()?;
        let (sender_ip, rest) = rest.split_first_chunk::<4>()?;
        let (target_mac, rest) = rest.split_first_chunk::<6>()?;
        let target_ip = rest.first_chunk::<4>()?;
        Some(Self {
            op: ArpOp::from_bits(u16::from_be_bytes(*op)),
            sender_mac: Mac(*sender_mac),
            sender_ip: Ipv4Addr::from(*sender_ip),
            target_mac: Mac(*target_mac),
            target_ip: Ipv4Addr::from(*target_ip),
        })
    }

    /// Asks who has `target_ip`.
    #[must_use]
    pub const fn request(sender_mac: Mac, sender_ip: Ipv4Addr, target_ip: Ipv4Addr) -> Self {
        Self { op: ArpOp::Request, sender_mac, sender_ip, target_mac: Mac::ZERO, target_ip }
    }

    /// Says, unasked, that `ip` is at `mac` (a gratuitous request, RFC 5227 §3 "announcement").
    #[must_use]
    pub const fn announcement(mac: Mac, ip: Ipv4Addr) -> Self {
        Self::request(mac, ip, ip)
    }

    /// Answers this request: its target is at `mac`.
    #[must_use]
    pub const fn reply(&self, mac: Mac) -> Self {
        Self {
            op: ArpOp::Reply,
            sender_mac: mac,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
        }
    }

    /// A probe asks whether an address is free without claiming it (RFC 5227 §1.1): its sender
    /// address must not be learned.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.op == ArpOp::Request && self.sender_ip.is_unspecified()
    }

    /// An announcement of the sender's own address (RFC 5227 §1.1, RFC 5944 §4.6: request or
    /// reply).
    #[must_use]
    pub fn is_gratuitous(&self) -> bool {
        self.sender_ip == self.target_ip && !self.sender_ip.is_unspecified()
    }

    /// Replaces `frame` by this packet in an untagged Ethernet frame from `src` to `dst`.
    pub fn write(&self, frame: &mut Frame, dst: Mac, src: Mac) {
        let Mac([d0, d1, d2, d3, d4, d5]) = dst;
        let Mac([s0, s1, s2, s3, s4, s5]) = src;
        let [e0, e1] = ethertype::ARP.to_be_bytes();
        let [h0, h1, p0, p1, hl, pl] = ETHERNET_IPV4;
        let [o0, o1] = self.op.to_bits().to_be_bytes();
        let Mac([sm0, sm1, sm2, sm3, sm4, sm5]) = self.sender_mac;
        let [si0, si1, si2, si3] = self.sender_ip.octets();
        let Mac([tm0, tm1, tm2, tm3, tm4, tm5]) = self.target_mac;
        let [ti0, ti1, ti2, ti3] = self.target_ip.octets();
        let bytes: [u8; FRAME_LEN] = [
            d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, e0, e1, // Ethernet
            h0, h1, p0, p1, hl, pl, o0, o1, // what follows
            sm0, sm1, sm2, sm3, sm4, sm5, si0, si1, si2, si3, // sender
            tm0, tm1, tm2, tm3, tm4, tm5, ti0, ti1, ti2, ti3, // target
        ];
        frame.copy_from(&bytes);
    }

    /// Replaces `frame` by this packet, broadcast from the sender's MAC.
    pub fn write_broadcast(&self, frame: &mut Frame) {
        self.write(frame, Mac::BROADCAST, self.sender_mac);
    }

    /// Replaces `frame` by this packet, to the target's MAC from the sender's.
    pub fn write_unicast(&self, frame: &mut Frame) {
        self.write(frame, self.target_mac, self.sender_mac);
    }
}

#[cfg(test)]
mod tests {
    use super::super::headers::Net;
    use super::super::parse::parse;
    use super::*;

    const US: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEM: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn read_back(frame: &Frame) -> ArpPacket {
        let headers = parse(frame.bytes()).unwrap();
        assert_eq!(headers.net, Net::Arp);
        ArpPacket::parse(frame.bytes(), &headers).unwrap()
    }

    #[test]
    fn a_request_has_the_bytes_of_rfc_826() {
        let mut frame = Frame::new();
        ArpPacket::request(US, OURS, THEIRS).write_broadcast(&mut frame);
        assert_eq!(
            frame.bytes(),
            [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1,
                2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2
            ]
        );
    }

    #[test]
    fn a_reply_goes_back_to_the_one_who_asked() {
        let request = ArpPacket::request(THEM, THEIRS, OURS);
        let mut frame = Frame::new();
        request.reply(US).write_unicast(&mut frame);
        let reply = read_back(&frame);
        assert_eq!(reply.op, ArpOp::Reply);
        assert_eq!((reply.sender_mac, reply.sender_ip), (US, OURS));
        assert_eq!((reply.target_mac, reply.target_ip), (THEM, THEIRS));
        assert_eq!(frame.bytes().first_chunk(), Some(&THEM.0));
        assert!(!reply.is_probe() && !reply.is_gratuitous());
    }

    #[test]
    fn a_reply_to_a_probe_is_no_announcement() {
        let probe = ArpPacket::request(THEM, Ipv4Addr::UNSPECIFIED, OURS);
        assert!(probe.is_probe() && !probe.is_gratuitous());
        assert!(!probe.reply(US).is_gratuitous());
        assert!(ArpPacket::announcement(US, OURS).is_gratuitous());
        assert!(
            !ArpPacket::request(THEM, Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED).is_gratuitous()
        );
    }

    #[test]
    fn other_hardware_other_protocols_and_short_packets_are_refused() {
        let mut frame = Frame::new();
        ArpPacket::request(US, OURS, THEIRS).write_broadcast(&mut frame);
        let headers = parse(frame.bytes()).unwrap();
        for at in 14..20 {
            let mut bytes = frame.bytes().to_vec();
            bytes[at] ^= 0x10;
            assert_eq!(ArpPacket::parse(&bytes, &headers), None, "byte {at}");
        }
        for len in 0..frame.len() {
            assert_eq!(ArpPacket::parse(&frame.bytes()[..len], &headers), None, "length {len}");
        }
    }
}
