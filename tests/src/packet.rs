//! Packets for tests: described by a few words, built by etherparse with full checksums.
//!
//! A table is written in IPv4's words and serves both families: [`Packet::v6`] makes of a packet its
//! twin, which says the same in IPv6. Every address has one, too: [`ip6`]. After [`speak_ipv6`] all packets
//! are made as twins.

use std::net::Ipv4Addr;

use dataplane::io::vnet_hdr::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHdr};
use dataplane::packet::types::{Mac, PortId, tcp_flags};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, IpHeaders, IpNumber, Ipv4Header,
    Ipv4Options, PacketBuilder, SingleVlanHeader, TcpHeader, VlanHeader, VlanId,
};

use crate::sums;

mod lies;
pub mod nd;
pub mod sctp;
mod six;

pub use lies::{lies, lies_between};
use six::Six;
pub use six::{icmp6, icmp6_error, ip, ip6, speak_ipv6, speaks_ipv6};

/// A machine: where it is plugged in and who it is. A machine behind a router has the router's
/// port and MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// The port of the engine behind which it is.
    pub port: PortId,
    /// Its MAC, or that of the router before it.
    pub mac: Mac,
    /// Its address.
    pub ip: Ipv4Addr,
}

/// A frame as it goes in or comes out.
#[derive(Clone, PartialEq, Eq)]
pub struct Wire {
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
    /// Offload state.
    pub vnet: VnetHdr,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", describe(&self.bytes))?;
        if self.vnet != VnetHdr::default() {
            write!(f, " {:?}", self.vnet)?;
        }
        let shown = &self.bytes[..self.bytes.len().min(120)];
        write!(f, "\n      ")?;
        for byte in shown {
            write!(f, "{byte:02x}")?;
        }
        if shown.len() < self.bytes.len() { f.write_str("…") } else { Ok(()) }
    }
}

impl From<Vec<u8>> for Wire {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, vnet: VnetHdr::default() }
    }
}

impl From<&[u8]> for Wire {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

impl From<&Packet> for Wire {
    fn from(packet: &Packet) -> Self {
        packet.bytes().into()
    }
}

impl From<Packet> for Wire {
    fn from(packet: Packet) -> Self {
        Self::from(&packet)
    }
}

impl Wire {
    /// Where the transport header begins, of a packet without tags, options and extension headers.
    #[must_use]
    pub fn l4(&self) -> usize {
        if self.bytes[12..14] == [0x86, 0xdd] { 54 } else { 34 }
    }

    /// Two bytes of the transport header, from `at` on.
    #[must_use]
    pub fn l4_u16(&self, at: usize) -> u16 {
        let at = self.l4() + at;
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }
}

impl From<&Wire> for Wire {
    fn from(wire: &Wire) -> Self {
        wire.clone()
    }
}

/// One line about a frame.
#[must_use]
pub fn describe(bytes: &[u8]) -> String {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let Ok(sliced) = SlicedPacket::from_ethernet(bytes) else {
        return format!("{} bytes, unreadable", bytes.len());
    };
    let mac = |at: usize| {
        bytes
            .get(at..at + 6)
            .map_or_else(String::new, |m| Mac(m.try_into().unwrap_or([0; 6])).to_string())
    };
    let mut text = format!("{} bytes {} > {}", bytes.len(), mac(6), mac(0));
    match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            text += &format!(
                ", {} > {} ttl {} id {}",
                header.source_addr(),
                header.destination_addr(),
                header.ttl(),
                header.identification()
            );
            if header.more_fragments() || header.fragments_offset().value() != 0 {
                text += &format!(
                    " fragment {}{}",
                    header.fragments_offset().byte_offset(),
                    if header.more_fragments() { "+" } else { "" }
                );
            }
        }
        Some(NetSlice::Arp(arp)) => {
            text += &format!(
                ", arp {} {:?} at {:02x?} to {:?}",
                arp.operation().0,
                arp.sender_protocol_addr(),
                arp.sender_hw_addr(),
                arp.target_protocol_addr()
            );
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            text += &format!(
                ", {} > {} hop limit {}",
                header.source_addr(),
                header.destination_addr(),
                header.hop_limit()
            );
            let extensions = ip.extensions().slice();
            if !extensions.is_empty() {
                text += &format!(" extensions {extensions:02x?}");
            }
        }
        None => {}
    }
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            text += &format!(
                ", tcp {} > {} flags {:#04x} seq {} ack {}",
                tcp.source_port(),
                tcp.destination_port(),
                tcp.slice()[13],
                tcp.sequence_number(),
                tcp.acknowledgment_number()
            );
        }
        Some(TransportSlice::Udp(udp)) => {
            text += &format!(", udp {} > {}", udp.source_port(), udp.destination_port());
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            text += &format!(", icmp {}/{} {:?}", icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8());
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let (kind, code) = (icmp.type_u8(), icmp.code_u8());
            text += &format!(", icmpv6 {kind}/{code} {:?}", icmp.bytes5to8());
        }
        _ => {}
    }
    text
}

#[derive(Debug, Clone)]
enum Transport {
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    Raw(u8),
    Sctp { src: u16, dst: u16, tag: u32 },
    Tcp(Box<TcpHeader>),
    Udp { src: u16, dst: u16 },
}

/// The number of the first octet that a side of a TCP connection sends.
pub const FIRST_SEQ: u32 = 1000;

/// An IP packet in an Ethernet frame. Methods change one thing each.
#[derive(Debug, Clone)]
pub struct Packet {
    src_mac: Mac,
    dst_mac: Mac,
    vlan: Option<u16>,
    ip: Ipv4Header,
    six: Option<Six>,
    transport: Transport,
    payload: Vec<u8>,
    /// What an ICMP error is about, and how much of it it quotes.
    about: Option<(Box<Packet>, usize)>,
}

fn packet(from: &Host, to: &Host, transport: Transport) -> Packet {
    let ip = Ipv4Header {
        time_to_live: 64,
        source: from.ip.octets(),
        destination: to.ip.octets(),
        identification: 0x1234,
        dont_fragment: true,
        ..Default::default()
    };
    let packet = Packet {
        src_mac: from.mac,
        dst_mac: to.mac,
        vlan: None,
        ip,
        six: None,
        transport,
        payload: Vec::new(),
        about: None,
    };
    if speaks_ipv6() { packet.v6() } else { packet }
}

/// A TCP segment. Both sides begin with the same number, and nobody has sent anything yet: so any of
/// them follows any other.
#[must_use]
pub fn tcp(from: &Host, src_port: u16, to: &Host, dst_port: u16, flags: u8) -> Packet {
    let seq = if flags & tcp_flags::SYN == 0 { FIRST_SEQ } else { FIRST_SEQ - 1 };
    let mut header = TcpHeader::new(src_port, dst_port, seq, 65_000);
    if flags & tcp_flags::ACK != 0 {
        header.acknowledgment_number = FIRST_SEQ;
    }
    packet(from, to, Transport::Tcp(Box::new(header))).flags(flags)
}

/// A UDP datagram.
#[must_use]
pub fn udp(from: &Host, src_port: u16, to: &Host, dst_port: u16) -> Packet {
    packet(from, to, Transport::Udp { src: src_port, dst: dst_port }).payload(b"datagram")
}

/// An ICMP echo request.
#[must_use]
pub fn echo(from: &Host, to: &Host, id: u16) -> Packet {
    icmp(from, to, 8, 0, echo_rest(id)).payload(b"abcdefgh")
}

/// An ICMP echo reply.
#[must_use]
pub fn echo_reply(from: &Host, to: &Host, id: u16) -> Packet {
    icmp(from, to, 0, 0, echo_rest(id)).payload(b"abcdefgh")
}

fn echo_rest(id: u16) -> [u8; 4] {
    let [a, b] = id.to_be_bytes();
    [a, b, 0, 7]
}

/// Any ICMP message.
#[must_use]
pub fn icmp(from: &Host, to: &Host, kind: u8, code: u8, rest: [u8; 4]) -> Packet {
    packet(from, to, Transport::Icmp { kind, code, rest })
}

/// An ICMP error that quotes `about`, cut to `limit` bytes. Where IPv6 is spoken it quotes as many behind
/// the longer header, and where it is all that ICMP may, all that ICMPv6 may.
#[must_use]
pub fn icmp_error(
    from: &Host,
    to: &Host,
    kind: u8,
    code: u8,
    about: &Packet,
    limit: usize,
) -> Packet {
    let limit = match limit {
        limit if !speaks_ipv6() => limit,
        ..548 => limit + 20,
        _ => 1232,
    };
    icmp(from, to, kind, code, [0; 4]).quoting(about, limit)
}

/// An ICMP error as the engine itself reports it (RFC 1812 §4.3.2, RFC 4443 §2.4): as much of the packet as
/// may be quoted; in IPv4 with precedence 6 and identification zero.
#[must_use]
pub fn reported(from: &Host, to: &Host, kind: u8, code: u8, about: &Packet) -> Packet {
    let error = icmp_error(from, to, kind, code, about, 548);
    if speaks_ipv6() { error } else { error.tos(0xc0).ident(0) }
}

/// A packet of any protocol.
#[must_use]
pub fn raw_ip(from: &Host, to: &Host, proto: u8) -> Packet {
    packet(from, to, Transport::Raw(proto)).payload(b"whatever this is")
}

impl Packet {
    /// Both Ethernet addresses.
    #[must_use]
    pub fn macs(mut self, from: Mac, to: Mac) -> Self {
        (self.src_mac, self.dst_mac) = (from, to);
        self
    }

    /// To another machine on the link, such as a gateway.
    #[must_use]
    pub fn via(mut self, mac: Mac) -> Self {
        self.dst_mac = mac;
        self
    }

    /// As it looks after a router: other MACs, TTL one less.
    #[must_use]
    pub fn routed(mut self, from: Mac, to: Mac) -> Self {
        self.ip.time_to_live -= 1;
        self.macs(from, to)
    }

    /// An 802.1Q tag.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        self.vlan = Some(id);
        self
    }

    /// Source address; of an IPv6 packet the one that stands for it.
    #[must_use]
    pub fn src(mut self, ip: Ipv4Addr) -> Self {
        self.ip.source = ip.octets();
        if let Some(six) = &mut self.six {
            six.src = ip6(ip);
        }
        self
    }

    /// Destination address; of an IPv6 packet the one that stands for it.
    #[must_use]
    pub fn dst(mut self, ip: Ipv4Addr) -> Self {
        self.ip.destination = ip.octets();
        if let Some(six) = &mut self.six {
            six.dst = ip6(ip);
        }
        self
    }

    /// Time to live, or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ip.time_to_live = ttl;
        self
    }

    /// Identification.
    #[must_use]
    pub fn ident(mut self, id: u16) -> Self {
        self.ip.identification = id;
        self
    }

    /// May be fragmented: "don't fragment" is off.
    #[must_use]
    pub fn may_fragment(mut self) -> Self {
        self.ip.dont_fragment = false;
        self
    }

    /// The third and fourth byte of ICMP's rest, such as the MTU of 3/4 and 2/0.
    #[must_use]
    pub fn icmp_low(mut self, value: u16) -> Self {
        if let Transport::Icmp { rest, .. } = &mut self.transport {
            rest[2..].copy_from_slice(&value.to_be_bytes());
        }
        self
    }

    /// The code of an ICMP or ICMPv6 message, for those of which the other has none.
    #[must_use]
    pub fn icmp_code(mut self, new: u8) -> Self {
        if let Transport::Icmp { code, .. } = &mut self.transport {
            *code = new;
        }
        self
    }

    /// Type of service, or traffic class.
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        self.ip.dscp = (tos >> 2).try_into().unwrap();
        self.ip.ecn = (tos & 3).try_into().unwrap();
        self
    }

    /// IPv4 options (a multiple of four bytes).
    #[must_use]
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.ip.options = Ipv4Options::try_from(options).unwrap();
        self
    }

    /// TCP sequence number.
    #[must_use]
    pub fn seq(mut self, seq: u32) -> Self {
        if let Transport::Tcp(tcp) = &mut self.transport {
            tcp.sequence_number = seq;
        }
        self
    }

    /// TCP acknowledgment number.
    #[must_use]
    pub fn acks(mut self, number: u32) -> Self {
        if let Transport::Tcp(tcp) = &mut self.transport {
            tcp.acknowledgment_number = number;
        }
        self
    }

    /// TCP flags.
    #[must_use]
    pub fn flags(mut self, flags: u8) -> Self {
        if let Transport::Tcp(tcp) = &mut self.transport {
            tcp.fin = flags & tcp_flags::FIN != 0;
            tcp.syn = flags & tcp_flags::SYN != 0;
            tcp.rst = flags & tcp_flags::RST != 0;
            tcp.psh = flags & tcp_flags::PSH != 0;
            tcp.ack = flags & tcp_flags::ACK != 0;
            tcp.cwr = flags & tcp_flags::CWR != 0;
        }
        self
    }

    /// TCP options (a multiple of four bytes).
    #[must_use]
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        if let Transport::Tcp(tcp) = &mut self.transport {
            tcp.set_options_raw(options).unwrap();
        }
        self
    }

    /// What the transport carries.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self.about = None;
        self
    }

    /// Carries the beginning of `about`.
    fn quoting(self, about: &Packet, limit: usize) -> Self {
        let quote = about.ip_bytes();
        let mut error = self.payload(&quote[..quote.len().min(limit)]);
        error.about = Some((Box::new(about.clone()), limit));
        error
    }

    /// `len` bytes that are not all alike.
    #[must_use]
    pub fn long(self, len: usize) -> Self {
        let bytes: Vec<u8> = (0..len).map(|n| (n * 7 + n / 251) as u8).collect();
        self.payload(&bytes)
    }

    /// Length of the IP packet.
    #[must_use]
    pub fn ip_len(&self) -> usize {
        self.ip_bytes().len()
    }

    /// The IP packet.
    #[must_use]
    pub fn ip_bytes(&self) -> Vec<u8> {
        self.bytes()[self.l3()..].to_vec()
    }

    fn l3(&self) -> usize {
        14 + if self.vlan.is_some() { 4 } else { 0 }
    }

    fn l4(&self) -> usize {
        self.l3()
            + match &self.six {
                None => self.ip.header_len(),
                Some(six) => six.header_len(),
            }
    }

    /// Source and destination address.
    fn addresses(&self) -> (Vec<u8>, Vec<u8>) {
        match &self.six {
            None => (self.ip.source.to_vec(), self.ip.destination.to_vec()),
            Some(six) => (six.src.octets().to_vec(), six.dst.octets().to_vec()),
        }
    }

    /// The frame with every checksum computed.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        match &self.six {
            None => self.plain(IpHeaders::Ipv4(self.ip.clone(), Default::default())),
            Some(six) => self.bytes_v6(six),
        }
    }

    /// The frame without extension headers.
    fn plain(&self, ip: IpHeaders) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(self.src_mac.0, self.dst_mac.0);
        let step = match self.vlan {
            None => ethernet.ip(ip),
            Some(id) => ethernet
                .vlan(VlanHeader::Single(SingleVlanHeader {
                    vlan_id: VlanId::try_new(id).unwrap(),
                    ..Default::default()
                }))
                .ip(ip),
        };
        let mut bytes = Vec::new();
        match &self.transport {
            Transport::Icmp { kind, code, rest } if self.six.is_some() => {
                step.icmpv6_raw(*kind, *code, *rest).write(&mut bytes, &self.payload).unwrap();
            }
            Transport::Icmp { kind, code, rest } => {
                step.icmpv4_raw(*kind, *code, *rest).write(&mut bytes, &self.payload).unwrap();
            }
            Transport::Raw(proto) => {
                step.write(&mut bytes, IpNumber(*proto), &self.payload).unwrap();
            }
            Transport::Sctp { src, dst, tag } => {
                let bytes_of = sctp::with_crc(*src, *dst, *tag, &self.payload);
                step.write(&mut bytes, IpNumber::SCTP, &bytes_of).unwrap();
            }
            Transport::Tcp(tcp) => {
                step.tcp_header((**tcp).clone()).write(&mut bytes, &self.payload).unwrap();
            }
            Transport::Udp { src, dst } => {
                step.udp(*src, *dst).write(&mut bytes, &self.payload).unwrap();
            }
        }
        bytes
    }

    /// As a kernel sends it that leaves the transport checksum to the device: the field holds the
    /// pseudo-header's sum (of SCTP zero), and the virtio-net header says so.
    #[must_use]
    pub fn partial(&self) -> Wire {
        let mut bytes = self.bytes();
        let l4 = self.l4();
        if let Transport::Sctp { .. } = &self.transport {
            bytes[l4 + 8..l4 + 12].fill(0);
            let vnet = VnetHdr {
                flags: F_NEEDS_CSUM,
                csum_start: l4 as u16,
                csum_offset: 8,
                ..VnetHdr::default()
            };
            return Wire { bytes, vnet };
        }
        let (proto, at) = match &self.transport {
            Transport::Tcp(_) => (6, 16),
            Transport::Udp { .. } => (17, 6),
            _ => panic!("only TCP, UDP and SCTP have partial checksums"),
        };
        let (src, dst) = self.addresses();
        let sum = sums::pseudo_header(&src, &dst, proto, bytes.len() - l4);
        bytes[l4 + at..l4 + at + 2].copy_from_slice(&sum.to_be_bytes());
        let vnet = VnetHdr {
            flags: F_NEEDS_CSUM,
            csum_start: l4 as u16,
            csum_offset: at as u16,
            ..VnetHdr::default()
        };
        Wire { bytes, vnet }
    }

    /// As a kernel sends it that leaves segmentation, too, to the device.
    #[must_use]
    pub fn gso(&self, size: u16) -> Wire {
        let mut wire = self.partial();
        let (kind, header) = match &self.transport {
            Transport::Tcp(tcp) if self.six.is_some() => (GSO_TCPV6, tcp.header_len()),
            Transport::Tcp(tcp) => (GSO_TCPV4, tcp.header_len()),
            _ => (GSO_UDP_L4, 8),
        };
        wire.vnet.gso_type = kind;
        wire.vnet.gso_size = size;
        wire.vnet.hdr_len = (self.l4() + header) as u16;
        wire
    }

    /// As a kernel sends TCP with a payload that the length field cannot say (BIG TCP).
    #[must_use]
    pub fn big(&self, len: usize, size: u16) -> Wire {
        let mut wire = self.clone().payload(&[]).gso(size);
        let payload = self.clone().long(len).payload;
        wire.bytes.extend_from_slice(&payload);
        let (l3, l4) = (self.l3(), self.l4());
        if self.six.is_some() {
            wire.bytes[l3 + 4..l3 + 6].fill(0);
        } else {
            wire.bytes[l3 + 2..l3 + 4].fill(0);
            wire.bytes[l3 + 10..l3 + 12].fill(0);
            let sum = !sums::sum(&wire.bytes[l3..l4]);
            wire.bytes[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
        }
        let length = wire.bytes.len() - l4;
        let (src, dst) = self.addresses();
        let sum = sums::pseudo_header(&src, &dst, 6, length);
        wire.bytes[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
        wire
    }

    /// The segments that a device makes of [`Packet::gso`], complete.
    #[must_use]
    pub fn segments(&self, size: usize) -> Vec<Packet> {
        let chunks: Vec<&[u8]> = self.payload.chunks(size).collect();
        let last = chunks.len() - 1;
        let mut segments = Vec::new();
        for (number, chunk) in chunks.into_iter().enumerate() {
            let mut segment = self.clone().payload(chunk);
            segment.ip.identification = self.ip.identification.wrapping_add(number as u16);
            if let Transport::Tcp(tcp) = &mut segment.transport {
                tcp.sequence_number = tcp.sequence_number.wrapping_add((number * size) as u32);
                tcp.fin &= number == last;
                tcp.psh &= number == last;
                tcp.cwr &= number == 0;
            }
            segments.push(segment);
        }
        segments
    }
}

/// An ARP frame.
#[must_use]
pub fn arp(op: u16, macs: (Mac, Mac), sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation(op),
        &sender.0.0,
        &sender.1.octets(),
        &target.0.0,
        &target.1.octets(),
    )
    .unwrap();
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(macs.0.0, macs.1.0).arp(packet).write(&mut bytes).unwrap();
    bytes
}

/// `from` asks everybody who has `target`.
#[must_use]
pub fn arp_request(from: &Host, target: Ipv4Addr) -> Vec<u8> {
    arp(1, (from.mac, Mac::BROADCAST), (from.mac, from.ip), (Mac::ZERO, target))
}

/// `from` answers `to`.
#[must_use]
pub fn arp_reply(from: &Host, to: &Host) -> Vec<u8> {
    arp(2, (from.mac, to.mac), (from.mac, from.ip), (to.mac, to.ip))
}

/// A frame that is not IP.
#[must_use]
pub fn ethernet(from: Mac, to: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes(), payload].concat()
}

/// Puts the fragments of one datagram together again: a frame with the first one's headers and
/// the whole payload.
///
/// # Panics
/// When they do not fit together: a hole, an overlap, unlike identifications.
#[must_use]
pub fn reassemble(fragments: &[Wire]) -> Wire {
    let mut whole = fragments[0].bytes.clone();
    let header = 14 + usize::from(whole[14] & 0x0f) * 4;
    whole.truncate(header);
    for (number, fragment) in fragments.iter().enumerate() {
        assert_eq!(sums::check(fragment), sums::Sums::all_right(), "fragment {number}");
        let (ip, payload) = Ipv4Header::from_slice(&fragment.bytes[14..]).unwrap();
        assert_eq!(usize::from(ip.total_len) + 14, fragment.bytes.len(), "fragment {number}");
        assert_eq!(ip.fragment_offset.byte_offset() as usize, whole.len() - header);
        assert_eq!(ip.more_fragments, number + 1 < fragments.len(), "fragment {number}");
        assert_eq!(fragment.bytes[18..20], whole[18..20], "identification");
        whole.extend_from_slice(payload);
    }
    let total = (whole.len() - 14) as u16;
    whole[16..18].copy_from_slice(&total.to_be_bytes());
    whole[20..22].copy_from_slice(&[0, 0]);
    whole[24..26].copy_from_slice(&[0, 0]);
    let sum = !sums::sum(&whole[14..header]);
    whole[24..26].copy_from_slice(&sum.to_be_bytes());
    whole.into()
}
