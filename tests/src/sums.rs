//! Checksums, verified word by word from the definition (RFC 1071), for any frame.

use dataplane::io::vnet_hdr::VnetHdr;

use crate::packet::Wire;

/// What the checksums of a frame are like. `None`: there is none, or it cannot be known (a
/// fragment, a packet cut short, a UDP checksum of zero).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// The IPv4 header's is right.
    pub ip: Option<bool>,
    /// The transport's is right; a partial one is the sum of the pseudo-header.
    pub l4: Option<bool>,
    /// In an ICMP error: that of the quoted IPv4 header is right.
    pub quoted: Option<bool>,
}

impl Sums {
    /// What a sound fragment of which no transport checksum can be known looks like.
    #[must_use]
    pub const fn all_right() -> Self {
        Self { ip: Some(true), l4: None, quoted: None }
    }

    /// Whether nothing is known to be wrong.
    #[must_use]
    pub fn are_right(&self) -> bool {
        [self.ip, self.l4, self.quoted].iter().all(|sum| *sum != Some(false))
    }
}

/// The ones' complement sum of 16-bit words, not inverted.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The pseudo-header's sum (RFC 9293 §3.1, RFC 8200 §8.1), not inverted.
#[must_use]
pub fn pseudo_header(src: &[u8], dst: &[u8], proto: u8, length: usize) -> u16 {
    let mut bytes = [src, dst, &[0, proto]].concat();
    bytes.extend_from_slice(&(length as u32).to_be_bytes());
    sum(&bytes)
}

/// CRC32c, bit by bit from its polynomial (RFC 9260 Appendix A).
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 0 { 0 } else { 0x82f6_3b78 };
        }
    }
    !crc
}

/// Zero has two forms.
fn same(a: u16, b: u16) -> bool {
    a % 0xffff == b % 0xffff
}

/// Looks at all checksums of a frame.
#[must_use]
pub fn check(wire: &Wire) -> Sums {
    look(&wire.bytes, &wire.vnet).unwrap_or_default()
}

fn look(bytes: &[u8], vnet: &VnetHdr) -> Option<Sums> {
    let mut l3 = 14;
    let mut kind = be16(bytes, 12)?;
    while matches!(kind, 0x8100 | 0x88a8) {
        kind = be16(bytes, l3 + 2)?;
        l3 += 4;
    }
    match kind {
        0x0800 => Some(ipv4(bytes.get(l3..)?, vnet.needs_csum())),
        0x86dd => ipv6(bytes.get(l3..)?, vnet.needs_csum()),
        _ => None,
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn ipv4(packet: &[u8], partial: bool) -> Sums {
    let mut sums = Sums::default();
    let Some(first) = packet.first() else { return sums };
    let header_len = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_len < 20 || packet.len() < header_len {
        return sums;
    }
    sums.ip = Some(sum(&packet[..header_len]) == 0xffff);
    let total = match usize::from(be16(packet, 2).unwrap_or(0)) {
        0 => packet.len(),
        total => total,
    };
    let whole = total >= header_len && total <= packet.len();
    if !whole || be16(packet, 6).unwrap_or(0) & 0x3fff != 0 {
        return sums;
    }
    let (proto, segment) = (packet[9], &packet[header_len..total]);
    sums.l4 = transport(&packet[12..16], &packet[16..20], proto, segment, partial);
    if proto == 1 && matches!(segment.first(), Some(3 | 4 | 5 | 11 | 12)) {
        sums.quoted = segment.get(8..).map(|quote| ipv4(quote, false)).and_then(|q| q.ip);
    }
    sums
}

fn ipv6(packet: &[u8], partial: bool) -> Option<Sums> {
    let length = usize::from(be16(packet, 4)?);
    let segment = packet.get(40..40 + length)?;
    let l4 = transport(&packet[8..24], &packet[24..40], packet[6], segment, partial);
    Some(Sums { l4, ..Sums::default() })
}

fn transport(src: &[u8], dst: &[u8], proto: u8, segment: &[u8], partial: bool) -> Option<bool> {
    if proto == 132 {
        let stored = segment.get(8..12)?;
        let zeroed = [&segment[..8], &[0; 4], &segment[12..]].concat();
        return Some(stored == crc32c(&zeroed).to_le_bytes());
    }
    // The ICMP of one IP version is an unknown protocol in the other, and IGMP in IPv6.
    let (field, with_pseudo, least) = match (proto, src.len()) {
        (1 | 2, 4) => (2, false, 8),
        (6, _) => (16, true, 20),
        (17, _) => (6, true, 8),
        (58, 16) => (2, true, 4),
        _ => return None,
    };
    if segment.len() < least {
        return None;
    }
    let stored = be16(segment, field)?;
    let pseudo = if with_pseudo { pseudo_header(src, dst, proto, segment.len()) } else { 0 };
    if partial {
        return Some(same(stored, pseudo));
    }
    if proto == 17 {
        // A datagram shorter than the packet that carries it, or without a checksum.
        let length = usize::from(be16(segment, 4)?);
        if stored == 0 || length != segment.len() {
            return None;
        }
    }
    let total = u32::from(sum(segment)) + u32::from(pseudo);
    Some(same((total % 0xffff) as u16, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720 Appendix B.4.
    #[test]
    fn crcs_as_rfc_3720_does() {
        assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
    }

    /// The example of RFC 1071 §3.
    #[test]
    fn sums_as_rfc_1071_does() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }
}
