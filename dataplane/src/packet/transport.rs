//! Where the TCP segment or UDP datagram of a frame lies, whichever IP version carries it: what
//! checksum and segmentation offload need to know.

use super::checksum::Sum;
use super::field::chunk;
use super::headers::{Headers, L4, Net};
use super::parse::{IPV6_LEN, UDP_LEN};
use super::rewrite::{TCP_CHECKSUM, UDP_CHECKSUM};
use super::types::ip_proto;

/// Offset of the payload length in the IPv6 header.
const IPV6_PAYLOAD_LEN: usize = 4;
/// Offset of the next header field in it.
pub(super) const IPV6_NEXT_HEADER: usize = 6;
/// The hop-by-hop options header.
const HOP_BY_HOP: u8 = 0;
/// The jumbo payload option.
const JUMBO_OPTION: u8 = 0xc2;
/// Bytes of a hop-by-hop options header with that option alone.
pub(super) const JUMBO_LEN: usize = 8;

/// A TCP segment or UDP datagram in one piece. Offsets count from the Ethernet header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transport {
    /// The IP header.
    pub(super) l3: usize,
    /// The transport header.
    pub(super) start: usize,
    /// The payload.
    pub(super) payload: usize,
    /// Behind the payload: where the IP packet ends.
    pub(super) end: usize,
    /// The checksum field, from `start`.
    pub(super) checksum: usize,
    /// IPv6 rather than IPv4.
    pub(super) is_ipv6: bool,
    /// TCP's flags; `None` for UDP.
    pub(super) tcp_flags: Option<u8>,
}

impl Transport {
    /// `None`: no whole TCP or UDP header, or only a fragment of the segment.
    pub(super) fn of(headers: &Headers) -> Option<Self> {
        let l3 = usize::from(headers.l3);
        let (is_ipv6, is_fragment, l4, start, end) = match &headers.net {
            Net::Ipv4(ip) => (false, ip.is_fragment(), ip.l4, ip.l4_offset, ip.end()),
            Net::Ipv6(ip) => (true, ip.is_fragment(), ip.l4, ip.l4_offset, ip.end()),
            _ => return None,
        };
        let start = usize::from(start);
        let (header_len, checksum, tcp_flags) = match l4 {
            _ if is_fragment => return None,
            L4::Tcp { header_len, flags, .. } => {
                (usize::from(header_len), TCP_CHECKSUM, Some(flags))
            }
            L4::Udp { .. } => (UDP_LEN, UDP_CHECKSUM, None),
            _ => return None,
        };
        let payload = start + header_len;
        Some(Self { l3, start, payload, end, checksum, is_ipv6, tcp_flags })
    }

    /// The sum of the pseudo-header with the addresses of `bytes` and a transport length of
    /// `length`.
    pub(super) fn pseudo_header(&self, bytes: &[u8], length: usize) -> Option<Sum> {
        let addresses = if self.is_ipv6 {
            bytes.get(self.l3 + 8..self.l3 + 40)
        } else {
            bytes.get(self.l3 + 12..self.l3 + 20)
        }?;
        let proto = if self.tcp_flags.is_some() { ip_proto::TCP } else { ip_proto::UDP };
        let length = u32::try_from(length).ok()?;
        Some(Sum::ZERO.add_bytes(addresses).add_u16(u16::from(proto)).add_u32(length))
    }

    /// The complete checksum of the segment in `bytes`, whatever its checksum field holds. A UDP
    /// datagram may end before the packet does; what follows it does not count.
    pub(super) fn full_checksum(&self, bytes: &[u8]) -> Option<u16> {
        let segment = bytes.get(self.start..self.end)?;
        let length = match (self.tcp_flags, super::field::read_u16(segment, 4)) {
            (None, Some(length)) if length != 0 => usize::from(length),
            _ => segment.len(),
        };
        let before = segment.get(..self.checksum)?;
        let after = segment.get(self.checksum + 2..length)?;
        let sum = self.pseudo_header(bytes, length)?.add_bytes(before).add_bytes(after);
        Some(match self.tcp_flags {
            Some(_) => sum.checksum(),
            None => sum.udp_checksum(),
        })
    }

    /// What follows a jumbo payload option (RFC 2675), if the packet begins with one and nothing
    /// else. Linux up to 6 puts it into IPv6 packets that are longer than the length field can say,
    /// and takes it out again when it cuts them (`ipv6_hopopt_jumbo_remove`). In one whose length
    /// field does say it, it is left alone, by Linux as by us.
    pub(super) fn behind_jumbo_option(&self, bytes: &[u8]) -> Option<u8> {
        let is_announced = self.is_ipv6
            && chunk(bytes, self.l3 + IPV6_PAYLOAD_LEN) == Some(&[0, 0])
            && bytes.get(self.l3 + IPV6_NEXT_HEADER) == Some(&HOP_BY_HOP);
        match chunk::<JUMBO_LEN>(bytes, self.l3 + IPV6_LEN) {
            Some([next_header, 0, JUMBO_OPTION, 4, ..]) if is_announced => Some(*next_header),
            _ => None,
        }
    }

    /// What the checksum field holds as long as the checksum is left to a device.
    pub(super) fn partial_checksum(&self, bytes: &[u8]) -> Option<u16> {
        Some(self.pseudo_header(bytes, self.end - self.start)?.fold())
    }
}
