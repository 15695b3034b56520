//! Frames for the tests of this module, made by etherparse, and sums made the slow and obvious way:
//! nothing here shares code with what it checks.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{IcmpEchoHeader, Icmpv4Type, PacketBuilder};

use super::headers::{Headers, Ipv4, Ipv6, Net};
use super::parse::parse;
use crate::frame::Frame;

pub(crate) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc];
pub(crate) const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const CLIENT: [u8; 4] = [10, 0, 0, 2];
pub(crate) const SERVER: [u8; 4] = [198, 51, 100, 7];
pub(crate) const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);

pub(crate) const CLIENT6: Ipv6Addr = Ipv6Addr::from_octets([0xfd; 16]);
pub(crate) const SERVER6: Ipv6Addr = Ipv6Addr::from_octets([0xfe; 16]);
pub(crate) const EXTERNAL6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5);
pub(crate) const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

pub(crate) fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2(CLIENT_MAC, GATEWAY_MAC)
}

pub(crate) fn tcp(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ethernet()
        .ipv4(CLIENT, SERVER, 64)
        .tcp(40_000, 80, 0x1234_5678, 1000)
        .ack(99)
        .psh()
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

pub(crate) fn udp(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ethernet().ipv4(CLIENT, SERVER, 64).udp(40_000, 53).write(&mut bytes, payload).unwrap();
    bytes
}

pub(crate) fn tcp6(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ethernet()
        .ipv6(CLIENT6.octets(), SERVER6.octets(), 64)
        .tcp(40_000, 80, 0xffff_fff0, 1000)
        .ack(99)
        .psh()
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

pub(crate) fn udp6(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ethernet()
        .ipv6(CLIENT6.octets(), SERVER6.octets(), 64)
        .udp(40_000, 53)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

pub(crate) fn echo_request6(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ethernet()
        .ipv6(CLIENT6.octets(), SERVER6.octets(), 64)
        .icmpv6_echo_request(0x4242, 7)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

/// An IPv6 packet of these extension headers, of which `first` is the first one's number, and
/// what follows them.
pub(crate) fn chained(extensions: &[u8], first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [&GATEWAY_MAC[..], &CLIENT_MAC, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    let length = u16::try_from(extensions.len() + payload.len()).unwrap();
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[first, 63]);
    bytes.extend_from_slice(&CLIENT6.octets());
    bytes.extend_from_slice(&SERVER6.octets());
    bytes.extend_from_slice(extensions);
    bytes.extend_from_slice(payload);
    bytes
}

/// `bytes` with `tags` (TPID, TCI) put between the addresses and the EtherType.
pub(crate) fn tagged(bytes: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut result = bytes[..12].to_vec();
    for (tpid, tci) in tags {
        result.extend_from_slice(&tpid.to_be_bytes());
        result.extend_from_slice(&tci.to_be_bytes());
    }
    result.extend_from_slice(&bytes[12..]);
    result
}

pub(crate) fn echo_request(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ethernet()
        .ipv4(CLIENT, SERVER, 64)
        .icmpv4(Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 0x4242, seq: 7 }))
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

pub(crate) fn frame(bytes: &[u8]) -> Frame {
    let mut frame = Frame::new();
    frame.copy_from(bytes);
    frame
}

/// A frame with its parsed headers.
pub(crate) fn parsed(bytes: &[u8]) -> (Frame, Headers) {
    (frame(bytes), parse(bytes).unwrap())
}

pub(crate) fn ipv4(headers: &Headers) -> Ipv4 {
    let Net::Ipv4(ip) = headers.net else { panic!("not IPv4: {headers:?}") };
    ip
}

pub(crate) fn ipv6(headers: &Headers) -> Ipv6 {
    let Net::Ipv6(ip) = headers.net else { panic!("not IPv6: {headers:?}") };
    ip
}

/// RFC 1071 word by word.
pub(crate) fn slow_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(pair[0]) << 8 | u32::from(low);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    u16::try_from(sum).unwrap()
}

/// The L4 checksum field's offset in the transport header.
pub(crate) fn l4_checksum_offset(proto: u8) -> usize {
    match proto {
        6 => 16,
        17 => 6,
        _ => 2,
    }
}

/// The sum of pseudo-header (TCP, UDP, ICMPv6) and transport part of an IP packet.
pub(crate) fn slow_l4_sum(src: &[u8], dst: &[u8], proto: u8, segment: &[u8]) -> u16 {
    let mut all = Vec::new();
    if proto != 1 {
        all.extend_from_slice(src);
        all.extend_from_slice(dst);
        all.extend_from_slice(&[0, proto]);
        all.extend_from_slice(&u32::try_from(segment.len()).unwrap().to_be_bytes());
    }
    all.extend_from_slice(segment);
    slow_sum(&all)
}

/// Asserts that the IPv4 header checksum, if there is one, and the transport checksum of a whole
/// frame are right.
pub(crate) fn assert_checksums(bytes: &[u8]) {
    let headers = parse(bytes).unwrap();
    if let Net::Ipv6(ip) = headers.net {
        let segment = &bytes[usize::from(ip.l4_offset)..ip.end()];
        if ip.proto == 17 && segment[6..8] == [0, 0] {
            return;
        }
        let sum = slow_l4_sum(&ip.src.octets(), &ip.dst.octets(), ip.proto, segment);
        assert_eq!(sum, 0xffff, "L4 checksum of {:02x?}", &bytes[..bytes.len().min(80)]);
        return;
    }
    let ip = ipv4(&headers);
    let l3 = ip.l3_offset();
    let l4 = usize::from(ip.l4_offset);
    assert_eq!(slow_sum(&bytes[l3..l4]), 0xffff, "IPv4 header checksum");
    let segment = &bytes[l4..ip.end()];
    if ip.proto == 17 && segment[6..8] == [0, 0] {
        return;
    }
    let sum = slow_l4_sum(&bytes[l3 + 12..l3 + 16], &bytes[l3 + 16..l3 + 20], ip.proto, segment);
    assert_eq!(sum, 0xffff, "L4 checksum of {:02x?}", &bytes[..bytes.len().min(80)]);
}

/// Puts the pseudo-header's sum into the checksum field, as a kernel does that leaves the rest to
/// us, and says so in the virtio-net header.
pub(crate) fn make_partial(frame: &mut Frame) {
    let headers = parse(frame.bytes()).unwrap();
    let (src, dst, proto, l4, end) = match headers.net {
        Net::Ipv4(ip) => {
            (ip.src.octets().to_vec(), ip.dst.octets().to_vec(), ip.proto, ip.l4_offset, ip.end())
        }
        Net::Ipv6(ip) => {
            (ip.src.octets().to_vec(), ip.dst.octets().to_vec(), ip.proto, ip.l4_offset, ip.end())
        }
        _ => panic!("not IP"),
    };
    let length = end - usize::from(l4);
    let mut pseudo = [src, dst, vec![0, proto]].concat();
    pseudo.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
    let at = l4_checksum_offset(proto);
    let field = usize::from(l4) + at;
    frame.bytes_mut()[field..field + 2].copy_from_slice(&slow_sum(&pseudo).to_be_bytes());
    frame.vnet.flags = crate::io::vnet_hdr::F_NEEDS_CSUM;
    frame.vnet.csum_start = l4;
    frame.vnet.csum_offset = u16::try_from(at).unwrap();
}

/// A frame with a partial checksum that stands for segments of `size`.
pub(crate) fn gso(bytes: &[u8], gso_type: u8, size: u16) -> Frame {
    let mut frame = frame(bytes);
    make_partial(&mut frame);
    frame.vnet.gso_type = gso_type;
    frame.vnet.gso_size = size;
    // As the kernel: all headers, a hint.
    frame.vnet.hdr_len = frame.vnet.csum_start + if frame.vnet.csum_offset == 16 { 20 } else { 8 };
    frame
}
