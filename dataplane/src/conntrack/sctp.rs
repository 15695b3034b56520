//! The states of an SCTP association and its verification tags: pure, one function.
//!
//! States and transitions are those of Linux' `nf_conntrack_proto_sctp.c`, except that the ABORT which
//! answers the HEARTBEAT of a connection's first packet passes. Beyond Linux' checks,
//! - a HEARTBEAT or an INIT alone begins a connection: nothing else that comes out of the blue;
//! - the tag of a SHUTDOWN ACK is checked;
//! - an INIT, which anybody can send blindly, does not put the tags of an association out of force that
//!   exists: the new ones are taken beside them, until the COOKIE ECHO that belongs to them.
//!
//! Each side is known by what it has said itself, so that the worker of one direction never writes what the
//! other's writes. It is kept where [`super::window::Side`] of TCP is.

use super::tuple::Direction;
use super::window::Side;
use crate::packet::sctp::{Chunks, kind};

/// State of an association as seen from the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SctpState {
    /// INIT from the original side, or the association has ended.
    Closed = 1,
    /// INIT ACK from the reply side.
    CookieWait = 2,
    /// COOKIE ECHO.
    CookieEchoed = 3,
    /// COOKIE ACK, or the answer to the HEARTBEAT that was the first packet.
    Established = 4,
    /// SHUTDOWN from the original side.
    ShutdownSent = 5,
    /// SHUTDOWN from the reply side.
    ShutdownReceived = 6,
    /// SHUTDOWN ACK.
    ShutdownAckSent = 7,
    /// HEARTBEAT from the original side was the first packet.
    HeartbeatSent = 8,
}

/// Why a packet does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unbelievable {
    /// It contradicts the state.
    State,
    /// It has a tag that its receiver would not take.
    Tag,
}

/// What becomes of a packet that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// The state after it.
    pub state: SctpState,
    /// What its side has said now.
    pub said: Peer,
    /// Whether the connection lives on from now.
    pub revives: bool,
}

/// `tag` is what this side wants to be spoken to with.
const KNOWN: u16 = 1;
/// So may `offered` be.
const OFFERED: u16 = 2;
/// This side has sent an INIT, and no cookie since.
const INIT: u16 = 4;
/// `tag` is what this side speaks with: nobody has heard the other one ask for it.
const SPOKEN: u16 = 8;
/// This side has sent a HEARTBEAT with a tag that is not right.
const DOUBTED: u16 = 16;
/// The COOKIE ECHO of this side had the tag that the other one has offered last.
const TOOK: u16 = 32;

/// What one side of an association has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peer {
    tag: u32,
    offered: u32,
    flags: u16,
}

impl From<Side> for Peer {
    fn from(side: Side) -> Self {
        let (tag, offered, flags) = side.to_words();
        Self { tag, offered, flags }
    }
}

impl From<Peer> for Side {
    fn from(peer: Peer) -> Self {
        Self::from_words(peer.tag, peer.offered, peer.flags)
    }
}

impl Peer {
    const fn heard(tag: u32) -> Self {
        Self { tag, offered: 0, flags: SPOKEN }
    }

    const fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether it has asked to be spoken to with this tag.
    const fn asks_for(self, tag: u32) -> bool {
        self.has(KNOWN) && self.tag == tag || self.offers(tag)
    }

    const fn offers(self, tag: u32) -> bool {
        self.has(OFFERED) && self.offered == tag
    }

    /// It asks for a tag.
    const fn announce(&mut self, tag: u32) {
        if !self.has(KNOWN) {
            *self = Self { tag, offered: 0, flags: self.flags & !SPOKEN | KNOWN };
        } else if self.tag != tag {
            self.offered = tag;
            self.flags |= OFFERED;
        }
    }

    /// The handshake that brought the last tag is over.
    const fn settle(&mut self) {
        if self.has(OFFERED) {
            *self = Self { tag: self.offered, offered: 0, flags: self.flags & !OFFERED };
        }
    }
}

impl SctpState {
    /// The state stored as a number; `None` for numbers that are none.
    #[must_use]
    pub const fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Closed,
            2 => Self::CookieWait,
            3 => Self::CookieEchoed,
            4 => Self::Established,
            5 => Self::ShutdownSent,
            6 => Self::ShutdownReceived,
            7 => Self::ShutdownAckSent,
            8 => Self::HeartbeatSent,
            _ => return None,
        })
    }

    /// As `conntrack -L` prints it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "CLOSED",
            Self::CookieWait => "COOKIE_WAIT",
            Self::CookieEchoed => "COOKIE_ECHOED",
            Self::Established => "ESTABLISHED",
            Self::ShutdownSent => "SHUTDOWN_SENT",
            Self::ShutdownReceived => "SHUTDOWN_RECD",
            Self::ShutdownAckSent => "SHUTDOWN_ACK_SENT",
            Self::HeartbeatSent => "HEARTBEAT_SENT",
        }
    }

    /// Whether a state that the other side has had a part in says that it has ended.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::ShutdownAckSent)
    }

    const fn is_opening(self) -> bool {
        matches!(self, Self::Closed | Self::CookieWait | Self::CookieEchoed)
    }

    /// The state of a connection whose first packet has these chunks, and what its sender has said.
    #[must_use]
    pub fn first(chunks: &Chunks) -> Option<(Self, Peer)> {
        if chunks.is_fragment {
            return None;
        }
        if chunks.has_only(kind::INIT) && chunks.tag == 0 {
            let said = Peer { tag: chunks.init_tag, offered: 0, flags: KNOWN | INIT };
            return Some((Self::Closed, said));
        }
        // Another way to an endpoint with several addresses begins with one (RFC 9260 §8.3).
        let is_path = chunks.has_only(kind::HEARTBEAT) && chunks.tag != 0;
        is_path.then(|| (Self::HeartbeatSent, Peer::heard(chunks.tag)))
    }

    /// The state after a chunk of this type. `None`: none such can belong to the connection.
    const fn next(self, chunk: u8, direction: Direction) -> Option<Self> {
        use SctpState::{
            Closed, CookieEchoed, CookieWait, Established, HeartbeatSent, ShutdownAckSent,
            ShutdownReceived, ShutdownSent,
        };
        let original = matches!(direction, Direction::Original);
        if matches!(self, HeartbeatSent) {
            return match (chunk, original) {
                (kind::ABORT, _) => Some(Closed),
                (kind::HEARTBEAT, _) | (kind::HEARTBEAT_ACK, true) => Some(HeartbeatSent),
                (kind::HEARTBEAT_ACK, false) => Some(Established),
                (_, false) => None,
                (kind::INIT, true) => Some(CookieWait),
                (kind::SHUTDOWN_ACK, true) => Some(ShutdownAckSent),
                (_, true) => Some(Closed),
            };
        }
        Some(match (chunk, self, original) {
            (kind::INIT, ShutdownSent | ShutdownReceived, true)
            | (kind::ERROR, CookieEchoed, false)
            | (kind::SHUTDOWN_COMPLETE, ShutdownAckSent, _)
            | (kind::ABORT, ..) => Closed,
            (kind::INIT_ACK, Closed, false) => CookieWait,
            (kind::COOKIE_ECHO, CookieWait, _) => CookieEchoed,
            (kind::COOKIE_ACK, CookieEchoed, _) => Established,
            (kind::SHUTDOWN, Established, true) => ShutdownSent,
            (kind::SHUTDOWN, Established, false) => ShutdownReceived,
            (kind::SHUTDOWN_ACK, ShutdownSent | ShutdownReceived, _) => ShutdownAckSent,
            _ => self,
        })
    }
}

/// Types that change a state, in the order in which they count where one packet has several: a cookie comes
/// first (RFC 9260 §6.10), and after an ABORT there is nothing.
const ORDER: [u8; 11] = [
    kind::INIT,
    kind::INIT_ACK,
    kind::COOKIE_ECHO,
    kind::COOKIE_ACK,
    kind::ERROR,
    kind::HEARTBEAT,
    kind::HEARTBEAT_ACK,
    kind::SHUTDOWN,
    kind::SHUTDOWN_ACK,
    kind::SHUTDOWN_COMPLETE,
    kind::ABORT,
];

/// Whether a packet that `from` sends to `to` may have this tag: one that `to` asks for, or that `from` has
/// been heard with.
const fn is_right(tag: u32, from: Peer, to: Peer) -> bool {
    from.has(SPOKEN) && from.tag == tag || to.asks_for(tag)
}

/// Whether a packet can belong to an association in this state, whose sides have said what they have.
///
/// # Errors
/// When it cannot: nobody must receive it.
pub fn judge(
    state: SctpState,
    direction: Direction,
    chunks: &Chunks,
    mine: Peer,
    theirs: Peer,
) -> Result<Judgement, Unbelievable> {
    let tag = chunks.tag;
    let right = is_right(tag, mine, theirs);
    let mut said = mine;
    let passes = |said| Ok(Judgement { state, said, revives: false });
    if chunks.has(kind::INIT) {
        // RFC 9260 §8.5.1 A.
        if tag != 0 {
            return Err(Unbelievable::Tag);
        }
    } else if chunks.has(kind::ABORT) || chunks.has(kind::SHUTDOWN_COMPLETE) {
        // §8.5.1 B and C.
        let right = if chunks.is_reflected { is_right(tag, theirs, mine) } else { right };
        if !right {
            return Err(Unbelievable::Tag);
        }
    } else if right {
        if chunks.has(kind::HEARTBEAT) || chunks.has(kind::HEARTBEAT_ACK) {
            said.flags &= !DOUBTED;
        }
    } else if chunks.has(kind::SHUTDOWN_ACK) && state.is_opening() {
        // §8.5.1 E: of an earlier association, as its receiver will tell.
        return passes(mine);
    } else if !heartbeat(state, chunks, mine, theirs, &mut said)? {
        return passes(said);
    }

    // No INIT may keep a mapping open by itself.
    let revives = !(chunks.has(kind::INIT) && state == SctpState::Closed);
    if chunks.has(kind::INIT) {
        said.announce(chunks.init_tag);
        said.flags |= INIT;
    } else if chunks.has(kind::INIT_ACK) {
        // It answers no INIT, or comes too late for the handshake that both have begun (§5.2.1).
        let is_new = mine.has(KNOWN) && !mine.asks_for(chunks.init_tag);
        if is_new && (!theirs.has(INIT) || mine.has(INIT)) {
            return Err(Unbelievable::Tag);
        }
        said.announce(chunks.init_tag);
    } else if chunks.has(kind::COOKIE_ECHO) {
        said.flags &= !(INIT | TOOK);
        if theirs.offers(tag) {
            said.settle();
            said.flags |= TOOK;
        }
    } else if chunks.has(kind::COOKIE_ACK) {
        said.flags &= !INIT;
        if theirs.has(TOOK) && !theirs.has(OFFERED) {
            said.settle();
        }
    }
    let mut next = state;
    for chunk in ORDER.into_iter().filter(|chunk| chunks.has(*chunk)) {
        next = next.next(chunk, direction).ok_or(Unbelievable::State)?;
    }
    Ok(Judgement { state: next, said, revives })
}

/// A packet whose tag is not right: where it is a HEARTBEAT or the answer to one, its sender may know of a
/// newer association than we. Whether it changes the state; if not it passes.
fn heartbeat(
    state: SctpState,
    chunks: &Chunks,
    mine: Peer,
    theirs: Peer,
    said: &mut Peer,
) -> Result<bool, Unbelievable> {
    let (asks, answers) = (chunks.has(kind::HEARTBEAT), chunks.has(kind::HEARTBEAT_ACK));
    if !asks && !answers || chunks.has_data() || state.is_opening() {
        return Err(Unbelievable::Tag);
    }
    let is_known = mine.has(SPOKEN) || theirs.has(KNOWN);
    if !is_known || answers && theirs.has(DOUBTED) {
        *said = Peer::heard(chunks.tag);
        return Ok(true);
    }
    if !asks {
        return Err(Unbelievable::Tag);
    }
    said.flags |= DOUBTED;
    Ok(false)
}

#[cfg(test)]
#[path = "sctp/tests.rs"]
mod tests;
