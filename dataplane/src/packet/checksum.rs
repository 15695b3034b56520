//! The Internet checksum: full sums (RFC 1071), pseudo-headers, and incremental update (RFC 1624).
//!
//! Two forms of a checksum field occur. A *complete* one holds the inverted sum. A *partial* one
//! (`VIRTIO_NET_HDR_F_NEEDS_CSUM`) holds the sum of the pseudo-header only, not inverted; whoever
//! sends the frame on a wire adds the rest.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A one's complement sum of 16-bit words that is not yet folded. Pieces may be added in any
/// order as long as each but the last has an even length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The empty sum.
    pub const ZERO: Self = Self(0);

    /// Adds the 16-bit words of `bytes`; an odd last byte is the upper half of a word.
    #[inline]
    #[must_use]
    pub fn add_bytes(self, bytes: &[u8]) -> Self {
        Self(self.0 + u64::from(u16::from_be(sum_native(bytes))))
    }

    /// Adds one word.
    #[inline]
    #[must_use]
    pub const fn add_u16(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds two words.
    #[inline]
    #[must_use]
    pub const fn add_u32(self, words: u32) -> Self {
        Self(self.0 + (words >> 16) as u64 + (words & 0xffff) as u64)
    }

    /// The sum in 16 bits, not inverted: what a partial checksum field holds.
    #[inline]
    #[must_use]
    pub const fn fold(self) -> u16 {
        fold(self.0)
    }

    /// The inverted sum: what a complete checksum field holds.
    #[inline]
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// The checksum of a UDP datagram, in which zero means "none" and is sent as `0xffff`
    /// (RFC 768).
    #[inline]
    #[must_use]
    pub const fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            checksum => checksum,
        }
    }

    /// Whether the sum of data and its checksum says that both are sound.
    #[inline]
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }
}

/// The upper half plus the lower one plus the carry of just that, which is what a sum with its halves
/// exchanged has in its upper half: twice, from 64 to 32 and from 32 to 16 bits. Zero of zero only.
#[inline]
const fn fold(sum: u64) -> u16 {
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// The folded sum in the machine's byte order. The one's complement sum does not mind the byte
/// order of its words as long as the result is read in the same order (RFC 1071 §2 (B)), nor does
/// it mind words of 32 bits (§2 (C)): eight lanes of them, for the vector unit.
#[inline]
fn sum_native(bytes: &[u8]) -> u16 {
    const LANES: usize = 8;
    let mut lanes = [0u64; LANES];
    let (blocks, rest) = bytes.as_chunks::<{ LANES * 4 }>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    // A frame has fewer than 2^16 blocks, so no lane has more than 48 bits.
    let mut sum: u64 = lanes.iter().sum();
    let (words, tail) = rest.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    sum += match *tail {
        [a] => u64::from(u32::from_ne_bytes([a, 0, 0, 0])),
        [a, b] => u64::from(u32::from_ne_bytes([a, b, 0, 0])),
        [a, b, c] => u64::from(u32::from_ne_bytes([a, b, c, 0])),
        _ => 0,
    };
    fold(sum)
}

/// The checksum of `bytes`; zero when they hold a sound checksum themselves.
#[inline]
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::ZERO.add_bytes(bytes).checksum()
}

/// Whether an IPv4 header, options included, has a sound checksum.
#[inline]
#[must_use]
pub fn ipv4_header_is_valid(header: &[u8]) -> bool {
    Sum::ZERO.add_bytes(header).is_valid()
}

/// The same of a header without options.
#[inline]
#[must_use]
pub(crate) fn plain_ipv4_header_is_valid(header: &[u8; 20]) -> bool {
    let (words, _) = header.as_chunks::<4>();
    fold(words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum()) == 0xffff
}

/// The sum of the pseudo-header of TCP and UDP over IPv4 (RFC 9293 §3.1, RFC 768); `l4_len` counts
/// the transport header and its payload.
#[inline]
#[must_use]
pub fn pseudo_ipv4(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, l4_len: u32) -> Sum {
    Sum::ZERO
        .add_u32(u32::from(src))
        .add_u32(u32::from(dst))
        .add_u16(u16::from(proto))
        .add_u32(l4_len)
}

/// The sum of the pseudo-header of TCP, UDP and ICMPv6 over IPv6 (RFC 8200 §8.1).
#[inline]
#[must_use]
pub fn pseudo_ipv6(src: Ipv6Addr, dst: Ipv6Addr, proto: u8, l4_len: u32) -> Sum {
    Sum::ZERO
        .add_bytes(&src.octets())
        .add_bytes(&dst.octets())
        .add_u16(u16::from(proto))
        .add_u32(l4_len)
}

/// What changing some fields does to a checksum over them: `~m + m'` of RFC 1624. Deltas of several
/// fields add up; they are folded once, when they are applied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delta(u64);

impl Delta {
    /// Nothing changed.
    pub const NONE: Self = Self(0);

    /// A 16-bit field, at an even offset, changed.
    #[inline]
    #[must_use]
    pub const fn of_u16(old: u16, new: u16) -> Self {
        Self((!old) as u64 + new as u64)
    }

    /// A 32-bit field, at an even offset, changed.
    #[inline]
    #[must_use]
    pub const fn of_u32(old: u32, new: u32) -> Self {
        Self((!old) as u64 + new as u64)
    }

    /// Four 16-bit words, at an even offset, changed.
    #[inline]
    #[must_use]
    pub const fn of_u64(old: u64, new: u64) -> Self {
        let old = !old;
        Self((old >> 32) + (old & 0xffff_ffff) + (new >> 32) + (new & 0xffff_ffff))
    }

    /// An address changed.
    #[inline]
    #[must_use]
    pub fn of_address(old: Ipv4Addr, new: Ipv4Addr) -> Self {
        Self::of_u32(u32::from(old), u32::from(new))
    }

    /// An IPv6 address changed.
    #[inline]
    #[must_use]
    pub const fn of_address6(old: Ipv6Addr, new: Ipv6Addr) -> Self {
        let ((old_high, old_low), (new_high, new_low)) = (halves(old), halves(new));
        Self::of_u64(old_high, new_high).and(Self::of_u64(old_low, new_low))
    }

    /// Both changes.
    #[inline]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// A complete checksum after the change: `~(~HC + ~m + m')`, RFC 1624 equation 3.
    #[inline]
    #[must_use]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold((!checksum) as u64 + self.0)
    }

    /// The same for UDP: "no checksum" (zero) stays, and a result of zero is sent as `0xffff`
    /// (RFC 768, RFC 3022 §4.1). Over IPv6 there is a checksum of zero too, for tunnels, and nobody
    /// on the way is to judge or mend it (RFC 6935 §5, RFC 6936 §5).
    #[inline]
    #[must_use]
    pub const fn apply_udp(self, checksum: u16) -> u16 {
        if checksum == 0 {
            return 0;
        }
        match self.apply(checksum) {
            0 => 0xffff,
            checksum => checksum,
        }
    }

    /// A partial checksum after the change of a field of the pseudo-header.
    #[inline]
    #[must_use]
    pub const fn apply_partial(self, sum: u16) -> u16 {
        fold(sum as u64 + self.0)
    }
}

/// The upper and the lower half of an address.
#[inline]
const fn halves(address: Ipv6Addr) -> (u64, u64) {
    let bits = address.to_bits();
    ((bits >> 64) as u64, ((bits << 64) >> 64) as u64)
}

#[cfg(test)]
mod tests;
