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

/// The fifth word of an entry: the deadline with the version it belongs to, as far as that has room, so that
/// one who was slow cannot give an entry's next connection the deadline of the last: he would have to be slow
/// for 32,768 of them. Between them a part of the rule, here zero.
#[inline]
pub(super) fn deadline_word(version: u32, deadline: u32) -> u64 {
    u64::from(version) << 48 | u64::from(deadline)
}

/// A fifth word with another deadline, if its version is `version`.
#[inline]
pub(super) fn with_deadline(word: u64, version: u32, deadline: u32) -> Option<u64> {
    let is_of = word >> 48 == deadline_word(version, 0) >> 48;
    is_of.then_some(word & !u64::from(u32::MAX) | u64::from(deadline))
}

/// Bits of the last word of a tuple that are none of it: a part of the rule.
pub(super) const SPARE: u64 = 0xff;

/// The DNAT rule in the last words of an entry's tuples and in its fifth word: what has room in each.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the field is 32 bits wide")]
pub(super) const fn rule_in(original: u64, reply: u64, fifth: u64) -> u32 {
    (original & SPARE | (reply & SPARE) << 8 | (fifth >> 32 & 0xffff) << 16) as u32
}

/// What of a rule is in each of those words.
#[inline]
pub(super) fn rule_parts(rule: u32) -> [u64; 3] {
    let rule = u64::from(rule);
    [rule & SPARE, rule >> 8 & SPARE, (rule >> 16) << 32]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_a_version_and_a_deadline_do_not_touch_each_other() {
        for rule in [0, 1, 0x1234_5678, u32::MAX] {
            let [original, reply, fifth] = rule_parts(rule);
            assert_eq!((original & !SPARE, reply & !SPARE), (0, 0));
            let word = deadline_word(0x0003_0005, 77) | fifth;
            assert_eq!((rule_in(original, reply, word), deadline_of(word)), (rule, 77));
            let later = with_deadline(word, 0x0003_0005, u32::MAX).unwrap();
            assert_eq!((rule_in(original, reply, later), deadline_of(later)), (rule, u32::MAX));
            assert_eq!(with_deadline(later, 0x0003_0007, 1), None);
            assert_eq!(rule_in(original | !SPARE, reply | !SPARE, later), rule);
        }
        // Of a free entry nobody moves the deadline, which is the next free one.
        assert_eq!(with_deadline(5, 1, 1), None);
    }
}
