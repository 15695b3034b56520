//! The CRC of SCTP (RFC 9260 §6.8, Appendix A): CRC32c, over the whole packet with its own field zero.
//!
//! The CRC is linear: what four changed bytes do to it depends on the change and on how many bytes
//! follow, not on those bytes. So a port is changed without reading the packet, a CRC that was right
//! stays right and one that was wrong stays wrong. All values here are in the reflected form, in which
//! the field in the packet is little-endian.

/// The polynomial of CRC32c (Castagnoli), reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The polynomial 1.
const ONE: u32 = 1 << 31;
/// Bits of the length of a packet in bytes.
const LENGTH_BITS: usize = 17;

/// What a byte does to the CRC.
const TABLE: [u32; 256] = table();
/// What `2^n` bytes of zeros do to it: x to the power of `8 * 2^n`.
const ZEROS: [u32; LENGTH_BITS] = zeros();

#[allow(clippy::cast_possible_truncation, reason = "less than 256")]
#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler, within the array")]
const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = times_x(crc);
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler, within the array")]
const fn zeros() -> [u32; LENGTH_BITS] {
    let mut powers = [ONE >> 8; LENGTH_BITS];
    let mut n = 1;
    while n < LENGTH_BITS {
        powers[n] = multiply(powers[n - 1], powers[n - 1]);
        n += 1;
    }
    powers
}

const fn times_x(a: u32) -> u32 {
    if a & 1 == 0 { a >> 1 } else { a >> 1 ^ POLYNOMIAL }
}

/// The product of two polynomials, modulo that of the CRC.
const fn multiply(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    while a != 0 {
        if a & ONE != 0 {
            product ^= b;
        }
        a <<= 1;
        b = times_x(b);
    }
    product
}

/// The CRC of `parts`, one behind the other.
#[must_use]
pub fn crc32c<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut crc = u32::MAX;
    for byte in parts.into_iter().flatten() {
        let [low, ..] = (crc ^ u32::from(*byte)).to_le_bytes();
        // The table has an entry for every byte.
        crc = crc >> 8 ^ TABLE.get(usize::from(low)).copied().unwrap_or(0);
    }
    !crc
}

/// What becomes of a CRC when four bytes, of which `followed_by` more follow, change from `old` to `new`.
#[must_use]
pub(super) fn update(crc: u32, old: [u8; 4], new: [u8; 4], followed_by: usize) -> u32 {
    let change = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    // Behind the change come its own four bytes and what follows.
    let mut left = followed_by + 4;
    let mut effect = change;
    for power in ZEROS {
        if left & 1 != 0 {
            effect = multiply(power, effect);
        }
        left >>= 1;
    }
    crc ^ effect
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(bytes: &[u8]) -> u32 {
        crc32c([bytes])
    }

    /// RFC 3720 Appendix B.4, whose values are printed byte by byte as they are sent.
    #[test]
    fn vectors_of_iscsi() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        for (bytes, sent) in [
            (&[0; 32][..], [0xaa, 0x36, 0x91, 0x8a]),
            (&[0xff; 32], [0x43, 0xab, 0xa8, 0x62]),
            (&ascending, [0x4e, 0x79, 0xdd, 0x46]),
            (&descending, [0x5c, 0xdb, 0x3f, 0x11]),
        ] {
            assert_eq!(of(bytes).to_le_bytes(), sent);
        }
        assert_eq!(of(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c([&b"1234"[..], b"", b"56789"]), 0xe306_9283);
    }

    #[test]
    fn the_longest_packet_is_updated_as_any() {
        for len in [4, 5, 12, 1480, 65_515] {
            let mut bytes: Vec<u8> = (0..len).map(|n: u32| (n % 251) as u8).collect();
            let before = of(&bytes);
            let old = [bytes[0], bytes[1], bytes[2], bytes[3]];
            bytes[..4].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
            let updated = update(before, old, [0xde, 0xad, 0xbe, 0xef], bytes.len() - 4);
            assert_eq!(updated, of(&bytes), "{len}");
        }
    }

    proptest! {
        #[test]
        fn an_update_is_what_a_new_sum_is(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..300),
            new in any::<[u8; 4]>(),
            wrong in any::<u32>(),
        ) {
            let old = [bytes[0], bytes[1], bytes[2], bytes[3]];
            let before = of(&bytes);
            bytes[..4].copy_from_slice(&new);
            let follow = bytes.len() - 4;
            prop_assert_eq!(update(before, old, new, follow), of(&bytes));
            // What was wrong by this much is wrong by as much.
            prop_assert_eq!(update(before ^ wrong, old, new, follow), of(&bytes) ^ wrong);
        }
    }
}
