//! Which octets of a datagram have come.

/// The longest IP packet, which its length field can state.
const MAX_PACKET: usize = 65_535;

/// The octets of a datagram that one fragment carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    start: u16,
    end: u16,
    /// Others follow it.
    more: bool,
}

impl Piece {
    /// A fragment at this offset with so many octets, behind headers of which so many count in the length of
    /// the packet. `None`: no datagram
    /// can have it. It is empty, not of whole groups of eight though others follow it, or ends behind the
    /// longest packet.
    #[must_use]
    pub fn new(offset: u16, len: usize, more: bool, header_len: usize) -> Option<Self> {
        let end = usize::from(offset) + len;
        let is_sound =
            len > 0 && (!more || len.is_multiple_of(8)) && header_len + end <= MAX_PACKET;
        let end = u16::try_from(end).ok().filter(|_| is_sound)?;
        Some(Self { start: offset, end, more })
    }

    pub(super) const fn is_first(self) -> bool {
        self.start == 0
    }
}

/// How a fragment fits what has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    New,
    /// The same octets as another one.
    Repeated,
    Overlaps,
    /// The datagram ends before it, or it says that the datagram ends before others.
    Contradicts,
    TooMany,
    /// One before it did not fit.
    Spoilt(crate::verdict::DropReason),
}

/// What has come of a datagram.
#[derive(Debug, Clone, Default)]
pub(super) struct Ranges {
    /// Start and end, in order. Neighbors stay apart: what repeats one of them is no overlap.
    pieces: Vec<(u16, u16)>,
    octets: usize,
    /// Where the datagram ends, once its last fragment has come.
    end: Option<u16>,
}

impl Ranges {
    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.end.is_some_and(|end| self.octets == usize::from(end))
    }

    pub(super) fn fit(&self, piece: Piece) -> Fit {
        let Piece { start, end, more } = piece;
        let farthest = self.pieces.last().map_or(0, |last| last.1);
        let contradicts = match (self.end, more) {
            (Some(known), true) => end >= known,
            (Some(known), false) => end != known,
            (None, true) => false,
            // Whatever came before said that more follows it.
            (None, false) => farthest >= end,
        };
        if contradicts {
            return Fit::Contradicts;
        }
        let at = self.place(start);
        let before = at.checked_sub(1).and_then(|before| self.pieces.get(before));
        let behind = self.pieces.get(at);
        if behind == Some(&(start, end)) {
            Fit::Repeated
        } else if before.is_some_and(|before| before.1 > start)
            || behind.is_some_and(|behind| behind.0 < end)
        {
            Fit::Overlaps
        } else {
            Fit::New
        }
    }

    /// Notes a piece that fits.
    pub(super) fn insert(&mut self, piece: Piece) {
        let at = self.place(piece.start);
        self.pieces.insert(at, (piece.start, piece.end));
        self.octets += usize::from(piece.end - piece.start);
        if !piece.more {
            self.end = Some(piece.end);
        }
    }

    /// The first that begins at `start` or behind it. Most fragments come in order, or in reverse.
    fn place(&self, start: u16) -> usize {
        match self.pieces.last() {
            Some(last) if last.0 < start => self.pieces.len(),
            _ => self.pieces.partition_point(|piece| piece.0 < start),
        }
    }
}
