//! The part of an entry that is written for every packet of a direction: what is counted, and what its
//! side has said of TCP's sequence numbers. By the one worker that receives it, so that load and store
//! suffice.

use std::sync::atomic::{AtomicU32, Ordering};

/// Halves of words of one direction.
pub(super) const COLD_HALVES: usize = 5;
/// Bits of the last half that are the bytes' upper ones; the packets' are above them.
const BYTES_HIGH: u32 = 24;

/// Five halves of words:
///
/// ```text
/// 0  end of what was sent         3  bytes, low 32 bits
/// 1  what was acknowledged        4  packets, bits 32 to 39 | bytes, bits 32 to 55
/// 2  packets, low 32 bits
/// ```
#[derive(Debug, Clone, Copy)]
pub(super) struct Cold<'a>(pub(super) &'a [AtomicU32; COLD_HALVES]);

impl Cold<'_> {
    /// Counts a packet.
    #[inline]
    pub(super) fn count(self, bytes: u64) {
        let [_, _, low_packets, low_bytes, _] = self.0;
        let packets = low_packets.load(Ordering::Relaxed).checked_add(1);
        let sum = u64::from(low_bytes.load(Ordering::Relaxed)).wrapping_add(bytes);
        if let (Some(packets), Ok(sum)) = (packets, u32::try_from(sum)) {
            low_packets.store(packets, Ordering::Relaxed);
            low_bytes.store(sum, Ordering::Relaxed);
        } else {
            self.carry(bytes);
        }
    }

    /// [`Cold::count`] of one that does not fit the lower bits.
    #[cold]
    fn carry(self, bytes: u64) {
        let [packets, octets] = self.counters();
        self.set_counters([packets.wrapping_add(1), octets.wrapping_add(bytes)]);
    }

    /// Takes a packet back, and says how many are left.
    pub(super) fn take_back(self, bytes: u64) -> u64 {
        let [packets, octets] = self.counters();
        let left = packets.saturating_sub(1);
        self.set_counters([left, octets.saturating_sub(bytes)]);
        left
    }

    /// Packets and bytes.
    #[inline]
    pub(super) fn counters(self) -> [u64; 2] {
        let [_, _, packets, bytes, high] = self.0;
        let high = high.load(Ordering::Acquire);
        let packets = u64::from(packets.load(Ordering::Relaxed));
        let bytes = u64::from(bytes.load(Ordering::Relaxed));
        let bytes_high = u64::from(high) & ((1 << BYTES_HIGH) - 1);
        [u64::from(high >> BYTES_HIGH) << 32 | packets, bytes_high << 32 | bytes]
    }

    /// The same in as many bits as there are.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "what does not fit begins anew at zero")]
    pub(super) fn set_counters(self, [packets, bytes]: [u64; 2]) {
        let [_, _, low_packets, low_bytes, high] = self.0;
        low_packets.store(packets as u32, Ordering::Relaxed);
        low_bytes.store(bytes as u32, Ordering::Relaxed);
        let bytes_high = (bytes >> 32) as u32 & ((1 << BYTES_HIGH) - 1);
        let next = ((packets >> 32) as u32) << BYTES_HIGH | bytes_high;
        if high.load(Ordering::Relaxed) != next {
            high.store(next, Ordering::Release);
        }
    }

    /// The end of what was sent, and what was acknowledged.
    #[inline]
    pub(super) fn numbers(self) -> (u32, u32) {
        let [end, ack, ..] = self.0;
        (end.load(Ordering::Relaxed), ack.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn set_numbers(self, end: u32, ack: u32) {
        let [end_half, ack_half, ..] = self.0;
        end_half.store(end, Ordering::Relaxed);
        ack_half.store(ack, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_numbers_do_not_touch_each_other() {
        let halves = [const { AtomicU32::new(0) }; COLD_HALVES];
        let cold = Cold(&halves);
        cold.set_numbers(u32::MAX, 7);
        let most = [(1 << 40) - 1, (1 << 56) - 1];
        for counters in [[0, 0], [u32::MAX.into(), u32::MAX.into()], [1 << 32, 1 << 32], most] {
            cold.set_counters(counters);
            assert_eq!(cold.counters(), counters);
            assert_eq!(cold.numbers(), (u32::MAX, 7));
        }
        cold.set_numbers(1, 2);
        assert_eq!((cold.counters(), cold.numbers()), (most, (1, 2)));
        cold.count(1);
        assert_eq!(cold.counters(), [0, 0], "they begin anew");
        cold.set_counters([u32::MAX.into(), u32::MAX.into()]);
        cold.count(1500);
        assert_eq!(cold.counters(), [1 << 32, (1 << 32) + 1499]);
        assert_eq!(cold.take_back(1500), (1 << 32) - 1);
        assert_eq!(cold.counters(), [u32::MAX.into(), u32::MAX.into()]);
    }
}
