//! Numbers in no order, the same in every run.

/// xorshift64* (Marsaglia 2003, Vigna 2016): small, fast, and no part of what is measured.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A sequence.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub const fn below(&mut self, bound: u32) -> u32 {
        // The upper half times the bound, upper half again (Lemire 2019).
        (((self.next() >> 32) * bound as u64) >> 32) as u32
    }

    /// The numbers below `count`, each once, in no order.
    #[must_use]
    pub fn permutation(&mut self, count: u32) -> Vec<u32> {
        let mut all: Vec<u32> = (0..count).collect();
        for at in (1..count).rev() {
            all.swap(at as usize, self.below(at + 1) as usize);
        }
        all
    }
}
