//! A connection as it is entered and as a lookup finds it.

use super::accounts::Overdrawn;
use super::key::Key;
use super::tuple::{Direction, Tuple};
use super::words::Meta;
use crate::packet::types::NetworkId;

/// The reply side has sent.
pub const SEEN_REPLY: u8 = 1;
/// Both sides have spoken and the first one again; TCP: it was established. For people only, as
/// `conntrack -L` shows it: what may be evicted is decided by less.
pub const ASSURED: u8 = 2;
/// The source was rewritten.
pub const SNAT: u8 = 4;
/// The destination was rewritten.
pub const DNAT: u8 = 8;

/// Booked to its network, as the address it was begun from is not the sender's own.
pub const POOLED: u8 = 16;

/// It goes by an endpoint-independent mapping.
pub const MAPPED: u8 = 32;

/// What it says of further connections is read (`crate::nat::helpers`), so its packets take no shortcut.
pub const HELPED: u8 = 64;

/// With [`HELPED`]: its sequence numbers are not the same on both sides. Alone: [`EXPECTED`].
pub const SKEWED: u8 = 128;

/// Without [`HELPED`]: another connection announced it.
pub const EXPECTED: u8 = 128;

/// Whether flags are those of a connection with other sequence numbers on one side than on the other.
#[must_use]
pub const fn is_skewed(flags: u8) -> bool {
    flags & (HELPED | SKEWED) == HELPED | SKEWED
}

/// Whether flags are those of a connection that another one announced.
#[must_use]
pub const fn is_expected(flags: u8) -> bool {
    flags & (HELPED | EXPECTED) == EXPECTED
}

/// A connection's number, good until the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnId {
    pub(super) index: u32,
    pub(super) version: u32,
}

impl ConnId {
    /// Of no connection: no live entry has an even version.
    pub(crate) const NONE: Self = Self { index: u32::MAX, version: 0 };

    /// One of many, for those who only tell them apart.
    #[cfg(test)]
    pub(crate) const fn numbered(index: u32) -> Self {
        Self { index, version: 1 }
    }
}

/// What a lookup found, copied out. Whole words: a copy made soon after of what was written in
/// bytes would have to wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit<K = Tuple> {
    /// The connection.
    pub id: ConnId,
    /// The tuple of the other direction.
    pub other: K,
    pub(super) meta: Meta,
    /// Until when it lives, in seconds.
    pub deadline: u32,
    /// Which of its directions the tuple is.
    pub direction: Direction,
}

impl<K: Key> Hit<K> {
    /// The original direction of a connection that was just inserted.
    #[must_use]
    pub fn begun(id: ConnId, new: &NewConnection<K>) -> Self {
        Self {
            id,
            other: new.reply,
            meta: Meta::new(id.version, new.state, new.flags, new.network),
            deadline: new.deadline,
            direction: Direction::Original,
        }
    }

    /// State of the protocol.
    #[must_use]
    #[inline]
    pub const fn state(&self) -> u8 {
        self.meta.state()
    }

    /// [`SEEN_REPLY`], [`ASSURED`], [`SNAT`], [`DNAT`], [`POOLED`], [`MAPPED`], [`HELPED`], [`SKEWED`], [`EXPECTED`].
    #[must_use]
    #[inline]
    pub const fn flags(&self) -> u8 {
        self.meta.flags()
    }

    /// The inside network.
    #[must_use]
    #[inline]
    pub const fn network(&self) -> NetworkId {
        self.meta.network()
    }
}

/// A connection to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewConnection<K = Tuple> {
    /// As its packets come.
    pub original: K,
    /// As the replies will come.
    pub reply: K,
    /// State of the protocol.
    pub state: u8,
    /// [`SNAT`], [`DNAT`] and the like.
    pub flags: u8,
    /// The inside network.
    pub network: NetworkId,
    /// DNAT rule or zero.
    pub rule: u32,
    /// Until when it lives, in seconds.
    pub deadline: u32,
}

/// What inserting did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insert<K = Tuple> {
    /// Somebody was faster: the original tuple has a connection already.
    Exists(Hit<K>),
    /// No entry is free.
    Full,
    /// Its endpoint has too many.
    Overdrawn(Overdrawn),
    /// Done.
    Inserted(ConnId),
    /// The reply tuple belongs to another connection: take another port.
    ReplyTaken,
}
