//! The frame that a packet in words stands for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::packet::crc32c::crc32c;
use dataplane::packet::types::{Mac, ethertype, ip_proto};

use super::packet::{Carried, Packet};

/// The link header's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Macs {
    /// Who sends it.
    pub from: Mac,
    /// To whom.
    pub to: Mac,
}

/// "Don't fragment" (RFC 791).
const DF: u16 = 0x4000;
const ICMPV6: u8 = 58;

impl Packet {
    /// The frame, with right checksums.
    #[must_use]
    pub fn frame(&self, macs: Macs) -> Vec<u8> {
        let (kind, packet) = match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => (ethertype::IPV4, self.ipv4(src, dst)),
            (src, dst) => (ethertype::IPV6, self.ipv6(six(src), six(dst))),
        };
        [&macs.to.0[..], &macs.from.0, &kind.to_be_bytes(), &packet].concat()
    }

    fn ipv4(&self, src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
        let proto = match self.carried {
            Carried::Echo { .. } => ip_proto::ICMP,
            Carried::Tcp { .. } => ip_proto::TCP,
            Carried::Sctp { .. } => ip_proto::SCTP,
            Carried::Udp => ip_proto::UDP,
        };
        let payload = self.transport(proto, &[src.octets(), dst.octets()].concat());
        let total = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
        let flags = if self.df { DF } else { 0 };
        let mut header = vec![0x45, 0];
        for word in [total, 0, flags] {
            header.extend(word.to_be_bytes());
        }
        header.extend([self.ttl, proto, 0, 0]);
        header.extend(src.octets());
        header.extend(dst.octets());
        put_sum(&mut header, 10, &[]);
        header.extend(payload);
        header
    }

    fn ipv6(&self, src: Ipv6Addr, dst: Ipv6Addr) -> Vec<u8> {
        let proto = match self.carried {
            Carried::Echo { .. } => ICMPV6,
            Carried::Tcp { .. } => ip_proto::TCP,
            Carried::Sctp { .. } => ip_proto::SCTP,
            Carried::Udp => ip_proto::UDP,
        };
        let payload = self.transport(proto, &[src.octets(), dst.octets()].concat());
        let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(len.to_be_bytes());
        header.extend([proto, self.ttl]);
        header.extend(src.octets());
        header.extend(dst.octets());
        header.extend(payload);
        header
    }

    /// The transport header and zeros behind it; `addresses` are what its checksum covers of IP.
    fn transport(&self, proto: u8, addresses: &[u8]) -> Vec<u8> {
        let (src, dst) = (self.src.port().to_be_bytes(), self.dst.port().to_be_bytes());
        let zeros = vec![0; usize::from(self.len)];
        let (mut bytes, sum_at) = match self.carried {
            Carried::Echo { request, id } => {
                let kind = match (request, proto) {
                    (true, ICMPV6) => 128,
                    (false, ICMPV6) => 129,
                    (true, _) => 8,
                    (false, _) => 0,
                };
                (vec![kind, 0, 0, 0, id.to_be_bytes()[0], id.to_be_bytes()[1], 0, 1], 2)
            }
            Carried::Tcp { flags, seq, ack, window } => {
                let header = [
                    &src[..],
                    &dst,
                    &seq.to_be_bytes(),
                    &ack.to_be_bytes(),
                    &[5 << 4, flags],
                    &window.to_be_bytes(),
                    &[0; 4],
                ];
                (header.concat(), 16)
            }
            Carried::Sctp { tag } => return self.init(tag),
            Carried::Udp => {
                let len = u16::try_from(8 + zeros.len()).unwrap_or(u16::MAX).to_be_bytes();
                ([src, dst, len, [0, 0]].concat(), 6)
            }
        };
        bytes.extend(zeros);
        let pseudo = if proto == ip_proto::ICMP {
            Vec::new()
        } else {
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
            [addresses, &len, &[0, 0, 0, proto]].concat()
        };
        put_sum(&mut bytes, sum_at, &pseudo);
        if proto == ip_proto::UDP && bytes.get(6..8) == Some(&[0, 0]) {
            // Zero says that there is none (RFC 768).
            bytes.splice(6..8, [0xff, 0xff]);
        }
        bytes
    }

    /// An SCTP packet with an INIT (RFC 9260 §3.3.2): a window of 64 KiB, ten streams each way, and a
    /// parameter of zeros, of a type that its receiver passes over, for what else it is to be long.
    fn init(&self, tag: u32) -> Vec<u8> {
        const HEADER: usize = 20;
        let zeros = usize::from(self.len).next_multiple_of(4);
        let parameter = match u16::try_from(zeros) {
            Ok(0) | Err(_) => Vec::new(),
            Ok(len) => {
                let mut parameter = [[0x80, 0], (len.max(4)).to_be_bytes()].concat();
                parameter.resize(zeros, 0);
                parameter
            }
        };
        let len = u16::try_from(HEADER + parameter.len()).unwrap_or(u16::MAX);
        let ports = [self.src.port().to_be_bytes(), self.dst.port().to_be_bytes()].concat();
        let chunk = [
            &[1, 0][..],
            &len.to_be_bytes(),
            &tag.to_be_bytes(),
            &65_536_u32.to_be_bytes(),
            &[0, 10, 0, 10],
            &1_u32.to_be_bytes(),
            &parameter,
        ]
        .concat();
        let crc = crc32c([&ports[..], &[0; 8], &chunk]);
        [&ports[..], &[0; 4], &crc.to_le_bytes(), &chunk].concat()
    }
}

fn six(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// Puts the Internet checksum of both parts into the first one, where it is zero yet.
fn put_sum(bytes: &mut Vec<u8>, at: usize, pseudo: &[u8]) {
    let words = |part: &[u8]| {
        part.chunks(2)
            .map(|word| match word {
                [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
                [high] => u64::from(*high) << 8,
                _ => 0,
            })
            .sum::<u64>()
    };
    let mut sum = words(bytes) + words(pseudo);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap_or(u16::MAX);
    bytes.splice(at..at + 2, sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::summary::describe;
    use crate::capture::view::View;

    const MACS: Macs = Macs { from: Mac([2, 0, 0, 0, 0, 1]), to: Mac([2, 0, 0, 0, 0, 2]) };

    #[test]
    fn frames_are_what_the_words_say() {
        for (text, expected, len) in [
            (
                "tcp 10.0.0.1:1 > 10.0.0.2:2 syn seq 7 win 9",
                "IP 10.0.0.1.1 > 10.0.0.2.2: Flags [S], seq 7, win 9, length 0",
                54,
            ),
            ("udp 10.0.0.1:1 > 10.0.0.2:2 len 3", "IP 10.0.0.1.1 > 10.0.0.2.2: UDP, length 3", 45),
            (
                "icmp echo 10.0.0.1 > 10.0.0.2 id 5",
                "IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 5, seq 1, length 8",
                42,
            ),
            (
                "icmp reply fd00::1 > fd00::2",
                "IP6 fd00::1 > fd00::2: ICMP6 echo reply, id 1, seq 1, length 8",
                62,
            ),
            ("sctp 10.0.0.1:1 > 10.0.0.2:2", "IP 10.0.0.1.1 > 10.0.0.2.2: SCTP, length 32", 66),
            (
                "sctp [fd00::1]:1 > [fd00::2]:2 len 9",
                "IP6 fd00::1.1 > fd00::2.2: SCTP, length 44",
                98,
            ),
            ("udp [fd00::1]:1 > [fd00::2]:2", "IP6 fd00::1.1 > fd00::2.2: UDP, length 0", 62),
        ] {
            let frame = text.parse::<Packet>().unwrap().frame(MACS);
            let whole = u32::try_from(frame.len()).unwrap();
            assert_eq!(describe(&View::parse(&frame, whole)), expected);
            assert_eq!(frame.len(), len, "{text}");
            assert_eq!(frame.get(..12), Some(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1][..]));
        }
    }

    #[test]
    fn checksums_are_right() {
        // Over what it covers, with the checksum in it, the sum is all ones.
        let sum = |parts: &[&[u8]]| {
            let mut all = parts.concat();
            all.extend([0, 0]);
            let at = all.len() - 2;
            put_sum(&mut all, at, &[]);
            [all[at], all[at + 1]]
        };
        let frame =
            "tcp 10.0.0.1:1 > 10.0.0.2:2 len 4 df ttl 9".parse::<Packet>().unwrap().frame(MACS);
        assert_eq!(sum(&[&frame[14..34]]), [0, 0]);
        assert_eq!(sum(&[&frame[34..], &frame[26..34], &[0, 6, 0, 24]]), [0, 0]);
        assert_eq!((&frame[20..22], frame[22]), (&[0x40, 0][..], 9));
        let frame = "icmp echo fd00::1 > fd00::2".parse::<Packet>().unwrap().frame(MACS);
        assert_eq!(sum(&[&frame[54..], &frame[22..54], &[0, 0, 0, 8, 0, 0, 0, 58]]), [0, 0]);
    }
}
