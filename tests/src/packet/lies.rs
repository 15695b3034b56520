//! Offload headers that lie.

use std::net::IpAddr;

use dataplane::io::vnet_hdr::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, VnetHdr};
use dataplane::packet::types::tcp_flags::ACK;

use super::{Host, Packet, Wire, echo, ethernet, tcp, udp};

/// IEEE 802 local experimental: nobody else sends it.
const OURS: u16 = 0x88b5;

/// Headers of every field wrong, beside frames that they might be of, in IPv4.
#[must_use]
pub fn lies(from: &Host, to: &Host) -> Vec<Wire> {
    lies_between(from, to, from.ip.into(), to.ip.into())
}

/// The same between two addresses of either family.
#[must_use]
pub fn lies_between(from: &Host, to: &Host, src: IpAddr, dst: IpAddr) -> Vec<Wire> {
    let between = |packet: Packet| packet.between(src, dst);
    let long = between(tcp(from, 5000, to, 80, ACK).long(9000));
    let (right, datagram) = (long.gso(1000), between(udp(from, 5000, to, 53).long(9000)).gso(1000));
    // The frame contradicts itself: version and header length, the packet's length, its protocol, and the length
    // of a TCP header.
    let faults: [(usize, u8); 5] = match src {
        IpAddr::V4(_) => [(14, 0x4f), (16, 0xff), (23, 99), (46, 0xf0), (46, 0)],
        IpAddr::V6(_) => [(14, 0x4f), (18, 0xff), (20, 99), (66, 0xf0), (66, 0)],
    };
    let mut lies = Vec::new();
    for base in [&right, &datagram] {
        for gso_size in [0, 1, 7, 8, 100, 60_000, 0xffff] {
            lies.push(Wire { vnet: VnetHdr { gso_size, ..base.vnet }, bytes: base.bytes.clone() });
        }
        for gso_type in [0, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, 0x7f, 0x80] {
            lies.push(Wire { vnet: VnetHdr { gso_type, ..base.vnet }, bytes: base.bytes.clone() });
        }
        for hdr_len in [0, 1, 9000, 0xffff] {
            lies.push(Wire { vnet: VnetHdr { hdr_len, ..base.vnet }, bytes: base.bytes.clone() });
        }
        for (csum_start, csum_offset) in
            [(0, 0), (14, 10), (40, 0), (34, 2), (9000, 16), (0xffff, 0xffff)]
        {
            let vnet = VnetHdr { csum_start, csum_offset, ..base.vnet };
            lies.push(Wire { vnet, bytes: base.bytes.clone() });
        }
        for (at, byte) in faults {
            let mut bytes = base.bytes.clone();
            bytes[at] = byte;
            lies.push(Wire { vnet: base.vnet, bytes });
        }
    }
    // A checksum where none is, in frames of any kind.
    let vnet =
        VnetHdr { flags: F_NEEDS_CSUM, csum_start: 14, csum_offset: 2, ..VnetHdr::default() };
    lies.push(Wire { vnet, bytes: ethernet(from.mac, to.mac, OURS, &[1; 46]) });
    lies.push(Wire { vnet, bytes: between(echo(from, to, 7)).bytes() });
    lies
}
