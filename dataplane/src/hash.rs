//! SipHash-1-3 of two words: the keyed hash of the FDB and of the connection table.
//!
//! Keys come from the kernel's random source at start, so that nobody outside can aim frames at
//! one bucket. SipHash-1-3 is what Rust's own hash maps use against the same attack; this is the
//! same function with the message length fixed to 16 bytes, so that it unrolls completely.

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
}
