//! How the table packs what it knows into words: see the drawing in [`super::table`].

use super::tuple::Direction;
use crate::packet::types::NetworkId;

/// Lowest bit of the version: the entry is in use.
pub(super) const LIVE: u32 = 1;

/// The fourth word of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta(pub(super) u64);

impl Meta {
    pub(super) fn new(version: u32, state: u8, flags: u8, network: NetworkId) -> Self {
        Self(
            u64::from(version) << 32
                | u64::from(state) << 24
                | u64::from(flags) << 16
                | u64::from(network.0),
        )
    }

    pub(super) const fn version(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) const fn is_live(self) -> bool {
        self.version() & LIVE != 0
    }

    #[allow(clippy::cast_possible_truncation, reason = "the field is 8 bits wide")]
    pub(super) const fn state(self) -> u8 {
        (self.0 >> 24) as u8
    }

    #[allow(clippy::cast_possible_truncation, reason = "the field is 8 bits wide")]
    pub(super) const fn flags(self) -> u8 {
        (self.0 >> 16) as u8
    }

    #[allow(clippy::cast_possible_truncation, reason = "the field is 16 bits wide")]
    pub(super) const fn network(self) -> NetworkId {
        NetworkId(self.0 as u16)
    }
}

/// The fifth word of an entry: the deadline with the version it belongs to, so that one who was slow
/// cannot give an entry's next connection the deadline of the last.
#[inline]
pub(super) fn deadline_word(version: u32, deadline: u32) -> u64 {
    u64::from(version) << 32 | u64::from(deadline)
}

/// The deadline of a fifth word.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
pub(super) const fn deadline_of(word: u64) -> u32 {
    word as u32
}

/// The sixth and seventh word of an entry: the way of a direction, and of its side of a TCP connection
/// what [`super::window::Side::to_words`] has beside its sequence numbers.
#[inline]
pub(super) const fn way_word(way: u64, side: u16) -> u64 {
    way << 16 | side as u64
}

/// The way of such a word: 48 bits.
#[inline]
pub(super) const fn way_of(word: u64) -> u64 {
    word >> 16
}

/// The side of such a word.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the field is 16 bits wide")]
pub(super) const fn side_of(word: u64) -> u16 {
    word as u16
}

/// Bits that are independent of both bucket numbers.
#[inline]
pub(super) const fn slot_tag(hash: u64) -> u64 {
    hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33
}

#[inline]
pub(super) fn slot_word(hash: u64, index: u32, direction: Direction) -> u64 {
    slot_tag(hash) << 33 | (direction.index() as u64) << 32 | u64::from(index + 1)
}

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
pub(super) const fn slot_index(slot: u64) -> u32 {
    slot as u32
}

#[inline]
pub(super) const fn slot_direction(slot: u64) -> Direction {
    if slot >> 32 & 1 == 0 { Direction::Original } else { Direction::Reply }
}
