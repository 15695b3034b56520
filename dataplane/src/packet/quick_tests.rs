//! The quick way beside the thorough one: what it reads is what parsing finds, what it writes is
//! what rewriting writes.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::packet::headers::{Ipv4, L4 as Transport, Net};
use crate::packet::offload;
use crate::packet::parse::parse;
use crate::packet::rewrite::{self, Rewrite};
use crate::packet::types::Mac;

/// A frame of the kind, with a payload, padding and options as asked for, sound checksums.
fn frame(tcp: bool, payload: usize, padding: usize, ttl: u8, ports: (u16, u16)) -> Frame {
    let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 2], [198, 51, 100, 7], ttl);
    let payload = vec![0xa5; payload];
    let mut bytes = Vec::new();
    let written = if tcp {
        builder.tcp(ports.0, ports.1, 1, 1000).ack(2).write(&mut bytes, &payload)
    } else {
        builder.udp(ports.0, ports.1).write(&mut bytes, &payload)
    };
    written.unwrap();
    bytes.resize(bytes.len() + padding, 0);
    let mut frame = Frame::new();
    frame.copy_from(&bytes);
    frame
}

fn ipv4(frame: &Frame) -> Option<Ipv4> {
    match parse(frame.bytes()).ok()?.net {
        Net::Ipv4(ip) => Some(ip),
        _ => None,
    }
}

fn partial(frame: &mut Frame, tcp: bool) {
    frame.vnet.flags = F_NEEDS_CSUM;
    frame.vnet.csum_start = 34;
    frame.vnet.csum_offset = if tcp { 16 } else { 6 };
}

proptest! {
    /// Any byte of the headers may be wrong: what is read at all is what the parser finds, sound and
    /// fit to be forwarded.
    #[test]
    fn reads_what_the_parser_reads(
        tcp: bool, payload in 0usize..64, padding in 0usize..20, at in 12usize..54, value: u8,
        needs_csum: bool, cut in 0usize..100,
    ) {
        let mut frame = frame(tcp, payload, padding, 64, (1000, 80));
        if let Some(byte) = frame.bytes_mut().get_mut(at) {
            *byte = value;
        }
        // A changed header with a sound checksum gets further.
        let sum = crate::packet::checksum::checksum(
            &[&frame.bytes()[14..24], &[0, 0], &frame.bytes()[26..34]].concat(),
        );
        if at != 24 && at != 25 {
            frame.bytes_mut()[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        if cut >= 20 {
            frame.truncate(cut);
        }
        if needs_csum {
            partial(&mut frame, tcp);
        }
        if let Some(quick) = Quick::read(&frame) {
            let headers = parse(frame.bytes()).unwrap();
            let ip = ipv4(&frame).unwrap();
            let (src, dst, flags) = match ip.l4 {
                Transport::Tcp { src_port, dst_port, flags, .. } => (src_port, dst_port, flags),
                Transport::Udp { src_port, dst_port } => (src_port, dst_port, 0),
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(quick.ports, u32::from(src) << 16 | u32::from(dst));
            let addresses = u64::from(u32::from(ip.src)) << 32 | u64::from(u32::from(ip.dst));
            prop_assert_eq!(quick.addresses, addresses);
            prop_assert_eq!((quick.proto, quick.tcp_flags), (ip.proto, flags));
            prop_assert_eq!(u32::from(quick.total_len), ip.total_len);
            prop_assert!(!ip.is_fragment() && ip.ttl > 1 && headers.l3 == 14);
            prop_assert!(crate::packet::checksum::ipv4_header_is_valid(&frame.bytes()[14..34]));
            prop_assert_eq!(offload::admit(&mut frame, &headers), Ok(()));
        }
    }

    /// Sound packets are read, and come out as by rewriting step by step.
    #[test]
    fn writes_what_rewriting_writes(
        tcp: bool, payload in 0usize..64, padding in 0usize..20, ttl in 2u8.., needs_csum: bool,
        src: Option<(u32, u16)>, dst: Option<(u32, u16)>, no_checksum: bool, ports: (u16, u16),
    ) {
        let mut quickly = frame(tcp, payload, padding, ttl, ports);
        if no_checksum && !tcp {
            quickly.bytes_mut()[40..42].fill(0);
        }
        if needs_csum {
            partial(&mut quickly, tcp);
        }
        let mut thoroughly = Frame::new();
        thoroughly.clone_from_frame(&quickly);
        let was = Quick::read(&quickly).unwrap();
        let mut change =
            Change { macs: [7; 12], addresses: was.addresses, ports: was.ports };
        if let Some((address, port)) = src {
            change.addresses = u64::from(address) << 32 | change.addresses & 0xffff_ffff;
            change.ports = u32::from(port) << 16 | change.ports & 0xffff;
        }
        if let Some((address, port)) = dst {
            change.addresses = change.addresses >> 32 << 32 | u64::from(address);
            change.ports = change.ports >> 16 << 16 | u32::from(port);
        }
        forward(&mut quickly, &was, &change);

        let headers = parse(thoroughly.bytes()).unwrap();
        offload::admit(&mut thoroughly, &headers).unwrap();
        let mut ip = ipv4(&thoroughly).unwrap();
        thoroughly.truncate(ip.end());
        rewrite::decrement_ttl(&mut thoroughly, &mut ip).unwrap();
        let side = |new: Option<(u32, u16)>, old| {
            new.map(|(address, port)| (Ipv4Addr::from(address), port)).filter(|new| *new != old)
        };
        let (old_src, old_dst) = ((ip.src, ports.0), (ip.dst, ports.1));
        let rewrite = Rewrite { src: side(src, old_src), dst: side(dst, old_dst) };
        if !rewrite.is_none() {
            rewrite::apply(&mut thoroughly, &mut ip, &rewrite);
        }
        rewrite::set_ethernet(&mut thoroughly, Mac([7; 6]), Mac([7; 6]));
        prop_assert_eq!(quickly.bytes(), thoroughly.bytes());
        prop_assert_eq!(quickly.vnet, thoroughly.vnet);
    }
}

#[test]
fn what_is_unusual_is_left_to_the_parser() {
    let sound = || frame(false, 10, 0, 64, (1, 2));
    assert!(Quick::read(&sound()).is_some());
    type Spoil = fn(&mut Frame);
    let cases: [(&str, Spoil); 6] = [
        ("BIG TCP", |f| f.bytes_mut()[16..18].fill(0)),
        ("a wrong header checksum", |f| f.bytes_mut()[24] ^= 1),
        ("GSO", |f| f.vnet.gso_type = crate::io::vnet_hdr::GSO_UDP_L4),
        ("a checksum elsewhere", |f| f.vnet = VnetHdr { flags: 1, csum_start: 40, ..f.vnet }),
        ("cut short", |f| f.truncate(40)),
        ("IPv6", |f| f.bytes_mut()[12..14].copy_from_slice(&[0x86, 0xdd])),
    ];
    for (what, spoil) in cases {
        let mut frame = sound();
        spoil(&mut frame);
        assert_eq!(Quick::read(&frame), None, "{what}");
    }
    assert_eq!(Quick::read(&frame(false, 10, 0, 1, (1, 2))), None, "the TTL runs out");
}
