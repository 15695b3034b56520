//! Keyed hashes of a few words.
//!
//! [`TableHash`] is that of the FDB and of the connection table. Keys come from the kernel's random
//! source at start, so that nobody outside can aim frames at one bucket: see
//! `docs/adr/0011-universal-hash.md`.
//!
//! [`HashKey::hash`] is SipHash-1-3, as Rust's own hash maps have it, with the message length fixed to
//! 16 bytes, so that it unrolls completely. It makes what outsiders see and must not be able to
//! foretell (outside ports), and the keys of the other.

use std::fs::File;
use std::io::{self, Read};

/// The secret key of a table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey {
    k0: u64,
    k1: u64,
}

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(..)")
    }
}

impl HashKey {
    /// A key of the caller's choice: for tests and for adopting a stored table.
    #[must_use]
    pub const fn new(k0: u64, k1: u64) -> Self {
        Self { k0, k1 }
    }

    /// A key from the kernel's random source.
    ///
    /// # Errors
    /// When `/dev/urandom` cannot be read.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0u8; 16];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Ok(Self {
            k0: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            k1: u64::from_le_bytes([i, j, k, l, m, n, o, p]),
        })
    }

    /// SipHash-1-3 of the 16 bytes of `a` and `b` in little-endian order.
    #[must_use]
    #[inline]
    pub const fn hash(self, a: u64, b: u64) -> u64 {
        let mut v = [
            self.k0 ^ 0x736f_6d65_7073_6575,
            self.k1 ^ 0x646f_7261_6e64_6f6d,
            self.k0 ^ 0x6c79_6765_6e65_7261,
            self.k1 ^ 0x7465_6462_7974_6573,
        ];
        v[3] ^= a;
        v = round(v);
        v[0] ^= a;
        v[3] ^= b;
        v = round(v);
        v[0] ^= b;
        // The final block: no bytes left, the length modulo 256 in the top byte.
        let last = 16 << 56;
        v[3] ^= last;
        v = round(v);
        v[0] ^= last;
        v[2] ^= 0xff;
        v = round(round(round(v)));
        v[0] ^ v[1] ^ v[2] ^ v[3]
    }
}

/// A universal hash: for any two keys chosen without knowing the secret, all 64 bits of both hashes
/// are independent and uniform, so that any choice of `n` bits is equal with probability 2^-n.
///
/// Each half is MULTILINEAR-HM of four 32-bit words (Lemire and Kaser, "Strongly universal string
/// hashing is fast", 2014, section 3): the upper 32 bits of a sum of products modulo 2^64. The end is a
/// fixed bijection, which keeps that property; it breaks up the arithmetic structure, so that two keys
/// in one bucket tell nothing about others that differ by as much.
#[derive(Clone)]
pub struct TableHash {
    secret: [u64; 10],
    /// For words behind the second, of long keys.
    more: [u64; 12],
}

impl std::fmt::Debug for TableHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TableHash(..)")
    }
}

impl TableHash {
    /// The hash with the secret that follows from a key.
    #[must_use]
    pub fn new(key: HashKey) -> Self {
        let mut number = 0;
        let mut next = |_| {
            number += 1;
            key.hash(number, 0)
        };
        Self { secret: std::array::from_fn(&mut next), more: std::array::from_fn(&mut next) }
    }

    /// The hash of two words.
    #[must_use]
    #[inline]
    pub const fn hash(&self, a: u64, b: u64) -> u64 {
        let [m0, m1, m2, m3, m4, n0, n1, n2, n3, n4] = self.secret;
        let upper = multilinear([m0, m1, m2, m3, m4], a, b);
        let lower = multilinear([n0, n1, n2, n3, n4], a, b);
        finish(upper, lower)
    }

    /// The hash of five words: the same sums, of as many products more.
    #[must_use]
    #[inline]
    pub const fn hash_long(&self, words: [u64; 5]) -> u64 {
        let [a, b, c, d, e] = words;
        let [m0, m1, m2, m3, m4, n0, n1, n2, n3, n4] = self.secret;
        let [m5, m6, m7, m8, m9, m10, n5, n6, n7, n8, n9, n10] = self.more;
        let upper = multilinear([m0, m1, m2, m3, m4], a, b);
        let upper = multilinear([upper, m5, m6, m7, m8], c, d).wrapping_add(product(m9, m10, e));
        let lower = multilinear([n0, n1, n2, n3, n4], a, b);
        let lower = multilinear([lower, n5, n6, n7, n8], c, d).wrapping_add(product(n9, n10, e));
        finish(upper, lower)
    }
}

/// 64 bits of two sums, of which the upper halves are good.
#[inline(always)]
const fn finish(upper: u64, lower: u64) -> u64 {
    let hash = upper >> 32 << 32 | lower >> 32;
    // Each step can be undone: an xor with bits that stay, a product with an odd number.
    let hash = (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 32
}

#[inline(always)]
const fn multilinear(m: [u64; 5], a: u64, b: u64) -> u64 {
    let [m0, m1, m2, m3, m4] = m;
    m0.wrapping_add(product(m1, m2, a)).wrapping_add(product(m3, m4, b))
}

#[inline(always)]
const fn product(m: u64, n: u64, word: u64) -> u64 {
    m.wrapping_add(word >> 32).wrapping_mul(n.wrapping_add(word & 0xffff_ffff))
}

#[inline]
const fn round(v: [u64; 4]) -> [u64; 4] {
    let [mut v0, mut v1, mut v2, mut v3] = v;
    v0 = v0.wrapping_add(v1);
    v1 = v1.rotate_left(13) ^ v0;
    v0 = v0.rotate_left(32);
    v2 = v2.wrapping_add(v3);
    v3 = v3.rotate_left(16) ^ v2;
    v0 = v0.wrapping_add(v3);
    v3 = v3.rotate_left(21) ^ v0;
    v2 = v2.wrapping_add(v1);
    v1 = v1.rotate_left(17) ^ v2;
    v2 = v2.rotate_left(32);
    [v0, v1, v2, v3]
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hasher};

    use super::*;

    /// `DefaultHasher::new()` is SipHash-1-3 with a zero key.
    #[test]
    fn agrees_with_the_standard_library() {
        for (a, b) in [(0u64, 0u64), (1, 2), (u64::MAX, 0x0123_4567_89ab_cdef)] {
            let mut hasher = DefaultHasher::new();
            hasher.write(&a.to_le_bytes());
            hasher.write(&b.to_le_bytes());
            assert_eq!(HashKey::new(0, 0).hash(a, b), hasher.finish());
        }
    }

    #[test]
    fn keys_matter() {
        assert_ne!(HashKey::new(1, 2).hash(3, 4), HashKey::new(2, 1).hash(3, 4));
    }

    /// Over many secrets, two fixed keys share 8 bits as often as they should, wherever the bits are
    /// taken from and however little the keys differ.
    #[test]
    fn any_two_keys_rarely_meet() {
        const SECRETS: u64 = 100_000;
        for (x, y) in [
            ((0, 0), (0, 1)),
            ((0, 0), (1 << 32, 0)),
            ((1 << 63, 7), (0, 7)),
            ((5, 1 << 32), (5, 2 << 32)),
            ((u64::MAX, u64::MAX), (u64::MAX - 1, u64::MAX)),
        ] {
            let mut met = [0u32; 8];
            for n in 0..SECRETS {
                let hash = TableHash::new(HashKey::new(n, 0x5eed));
                let differ = hash.hash(x.0, x.1) ^ hash.hash(y.0, y.1);
                for (at, count) in met.iter_mut().enumerate() {
                    *count += u32::from((differ >> (at * 8)).trailing_zeros() >= 8);
                }
            }
            // 391 expected, standard deviation 20.
            assert!(met.iter().all(|n| (280..500).contains(n)), "{x:?} {y:?}: {met:?}");
        }
    }

    /// The same for long keys, whichever of their words differs.
    #[test]
    fn any_two_long_keys_rarely_meet() {
        const SECRETS: u64 = 100_000;
        let base = [0x2001_0db8_0000_0001, 5, 0xfd00_0000_0000_0000, 9, 0x1234_0050_0001_0600];
        for at in 0..5 {
            for change in [1, 1 << 32, 1 << 63] {
                let mut other = base;
                other[at] ^= change;
                let mut met = [0u32; 8];
                for n in 0..SECRETS {
                    let hash = TableHash::new(HashKey::new(n, 0x5eed));
                    let differ = hash.hash_long(base) ^ hash.hash_long(other);
                    for (at, count) in met.iter_mut().enumerate() {
                        *count += u32::from((differ >> (at * 8)).trailing_zeros() >= 8);
                    }
                }
                // 391 expected, standard deviation 20.
                assert!(met.iter().all(|n| (280..500).contains(n)), "{at} {change}: {met:?}");
            }
        }
    }

    /// Keys as they come in a network, one after the other, fill buckets as random ones would.
    #[test]
    fn rising_keys_are_spread() {
        let hash = TableHash::new(HashKey::new(7, 9));
        for shift in [0, 16, 32, 48] {
            for part in [0, 24, 56] {
                let mut buckets = [0u32; 256];
                for n in 0..65_536u64 {
                    let hash = hash.hash(n << shift, 0x0102_0304) >> part;
                    buckets[usize::from(hash.to_le_bytes()[0])] += 1;
                }
                // 256 expected, standard deviation 16.
                assert!(buckets.iter().all(|n| (160..360).contains(n)), "{shift} {part}");
            }
        }
    }
}
