//! What a table is keyed by: the tuple of one family, and how its entries hold it.
//!
//! The table is the same code for both. It never compares with the family at run time: what differs
//! are constants and the two or five words of a tuple.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::Ordering;

use super::tuple::{Direction, Zone};
use crate::engine::FlowTuple;
use crate::family::Address;
use crate::hash::TableHash;
use crate::sync::atomic::AtomicU64;

/// The tuple of one family.
pub trait Key: stored::Stored + Copy + Debug + Eq + Hash {
    /// Its addresses.
    type Addr: Address;

    /// A tuple of its addresses and of what [`Key::rest`] gives.
    #[must_use]
    fn of_parts(src: Self::Addr, dst: Self::Addr, rest: u64) -> Self;

    /// `src_port:16 | dst_port:16 | zone:16 | proto:8 | 0:8`.
    #[must_use]
    fn rest(self) -> u64;

    /// Source address.
    #[must_use]
    fn src(self) -> Self::Addr;

    /// Destination address.
    #[must_use]
    fn dst(self) -> Self::Addr;

    /// A tuple of its parts. For ICMP queries both ports are the identifier.
    #[must_use]
    #[inline]
    fn new(
        src: Self::Addr,
        dst: Self::Addr,
        src_port: u16,
        dst_port: u16,
        zone: Zone,
        proto: u8,
    ) -> Self {
        let ports = u64::from(src_port) << 48 | u64::from(dst_port) << 32;
        Self::of_parts(src, dst, ports | u64::from(zone.0) << 16 | u64::from(proto) << 8)
    }

    /// Source port or ICMP identifier.
    #[must_use]
    #[inline]
    fn src_port(self) -> u16 {
        (self.rest() >> 48) as u16
    }

    /// Destination port or ICMP identifier.
    #[must_use]
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the field is 16 bits wide")]
    fn dst_port(self) -> u16 {
        (self.rest() >> 32) as u16
    }

    /// Where packets of this direction enter.
    #[must_use]
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the field is 16 bits wide")]
    fn zone(self) -> Zone {
        Zone((self.rest() >> 16) as u16)
    }

    /// Protocol number.
    #[must_use]
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the field is 8 bits wide")]
    fn proto(self) -> u8 {
        (self.rest() >> 8) as u8
    }

    /// Source and destination exchanged, entering at `zone`.
    #[must_use]
    #[inline]
    fn reversed(self, zone: Zone) -> Self {
        Self::new(self.dst(), self.src(), self.dst_port(), self.src_port(), zone, self.proto())
    }

    /// The same with another destination.
    #[must_use]
    #[inline]
    fn with_dst(self, dst: Self::Addr, dst_port: u16) -> Self {
        Self::new(self.src(), dst, self.src_port(), dst_port, self.zone(), self.proto())
    }

    /// The same with another source.
    #[must_use]
    #[inline]
    fn with_src(self, src: Self::Addr, src_port: u16) -> Self {
        Self::new(src, self.dst(), src_port, self.dst_port(), self.zone(), self.proto())
    }

    /// As listed.
    #[must_use]
    fn flow(self) -> FlowTuple {
        FlowTuple {
            src: self.src().into(),
            dst: self.dst().into(),
            src_port: self.src_port(),
            dst_port: self.dst_port(),
        }
    }
}

/// The part of an entry that every packet of the connection needs.
#[derive(Debug, Clone, Copy)]
pub struct Hot<'a, C> {
    pub(super) original: &'a C,
    pub(super) reply: &'a C,
    pub(super) meta: &'a AtomicU64,
    pub(super) deadline: &'a AtomicU64,
    /// Of the original direction and of the reply direction.
    pub(super) ways: [&'a AtomicU64; 2],
}

impl<'a, C> Hot<'a, C> {
    /// The word with the way and the window of a direction.
    #[inline]
    pub(super) const fn way(&self, direction: Direction) -> &'a AtomicU64 {
        let [original, reply] = self.ways;
        match direction {
            Direction::Original => original,
            Direction::Reply => reply,
        }
    }
}

/// How the table keeps a tuple; for the table alone.
pub(super) mod stored {
    use super::{AtomicU64, Hot, Ordering, TableHash};

    pub trait Stored: Sized {
        /// The words of a tuple in an entry.
        type Cells;
        /// Words of the [`Hot`] part of an entry: whole cache lines.
        const HOT_WORDS: usize;
        /// What the words of a table in a file mean, to be raised when that changes. A file of
        /// another build is an unsound one, whatever its length.
        const FORMAT: u64;
        /// Whether the table gets its memory as it fills: see [`super::super::table`].
        const IN_STEPS: bool;

        /// The hot part that begins here.
        fn split(words: &[AtomicU64]) -> Option<Hot<'_, Self::Cells>>;
        /// The tuple in an entry. Whether its words belong together the caller finds out.
        fn load(cells: &Self::Cells, order: Ordering) -> Self;
        /// Writes it, without a rule.
        fn store(self, cells: &Self::Cells);
        /// The word that has [`super::Key::rest`].
        fn last(cells: &Self::Cells) -> &AtomicU64;
        /// Its hash.
        fn hash_with(self, hash: &TableHash) -> u64;
    }
}
