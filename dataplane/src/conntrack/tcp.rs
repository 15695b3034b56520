//! The TCP state machine: pure, one function.
//!
//! States and transitions are those of Linux' `nf_conntrack_proto_tcp.c`: a segment is judged by its
//! flags and direction alone, here; its numbers are the business of [`super::window`]. Beyond Linux'
//! states we remember which side sent the first FIN, so that its retransmission is not taken for the
//! other side's.

use super::tuple::Direction;
use crate::packet::types::tcp_flags::{ACK, FIN, RST, SYN};

/// State of a TCP connection as seen from the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TcpState {
    /// SYN from the original side.
    SynSent = 1,
    /// SYN from both sides, nothing acknowledged: simultaneous open.
    SynSent2 = 2,
    /// SYN+ACK from the reply side.
    SynReceived = 3,
    /// Both sides have sent and acknowledged a SYN.
    Established = 4,
    /// FIN from the original side.
    FinWait = 5,
    /// FIN from the original side, acknowledged.
    CloseWait = 6,
    /// FIN from both sides, the original one first.
    LastAck = 7,
    /// Both FINs acknowledged.
    TimeWait = 8,
    /// RST.
    Close = 9,
    /// FIN from the reply side.
    ReplyFinWait = 10,
    /// FIN from the reply side, acknowledged.
    ReplyCloseWait = 11,
    /// FIN from both sides, the reply one first.
    ReplyLastAck = 12,
    /// RST, and since then the original side goes on as if there had been none.
    CloseDoubted = 13,
    /// RST, and since then the reply side goes on as if there had been none.
    ReplyCloseDoubted = 14,
    /// Segments of the original side, in the middle of a connection that was in a table which was lost
    /// ([`Self::continues`]).
    PickedUp = 15,
}

/// A segment that contradicts the connection's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid;

impl TcpState {
    /// The state stored as a number; `None` for numbers that are none.
    #[must_use]
    pub const fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::SynSent,
            2 => Self::SynSent2,
            3 => Self::SynReceived,
            4 => Self::Established,
            5 => Self::FinWait,
            6 => Self::CloseWait,
            7 => Self::LastAck,
            8 => Self::TimeWait,
            9 => Self::Close,
            10 => Self::ReplyFinWait,
            11 => Self::ReplyCloseWait,
            12 => Self::ReplyLastAck,
            13 => Self::CloseDoubted,
            14 => Self::ReplyCloseDoubted,
            15 => Self::PickedUp,
            _ => return None,
        })
    }

    /// As `conntrack -L` prints it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "SYN_SENT",
            Self::SynSent2 => "SYN_SENT2",
            Self::SynReceived => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait | Self::ReplyFinWait => "FIN_WAIT",
            Self::CloseWait | Self::ReplyCloseWait => "CLOSE_WAIT",
            Self::LastAck | Self::ReplyLastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close | Self::CloseDoubted | Self::ReplyCloseDoubted => "CLOSE",
            Self::PickedUp => "PICKED_UP",
        }
    }

    /// Whether a state says that both sides have closed, or one has reset.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(
            self,
            Self::LastAck
                | Self::ReplyLastAck
                | Self::TimeWait
                | Self::Close
                | Self::CloseDoubted
                | Self::ReplyCloseDoubted
        )
    }

    /// The state of a connection whose first segment has these flags; only a SYN begins one.
    #[must_use]
    pub const fn first(flags: u8) -> Option<Self> {
        if flags & (SYN | ACK | RST | FIN) == SYN { Some(Self::SynSent) } else { None }
    }

    /// Whether a segment with these flags can be from the middle of a connection, so that it may begin one in
    /// [`Self::PickedUp`]: an acknowledgment, as for Linux (`nf_conntrack_tcp_loose`).
    #[must_use]
    pub const fn continues(flags: u8) -> bool {
        flags & (SYN | ACK | RST | FIN) == ACK
    }

    /// The state after a segment with these flags in this direction.
    ///
    /// # Errors
    /// [`Invalid`] when no such segment can belong to the connection.
    #[inline]
    pub const fn next(self, flags: u8, direction: Direction) -> Result<Self, Invalid> {
        let original = matches!(direction, Direction::Original);
        if flags & RST != 0 {
            // A RST that answers a SYN closes; in every later state too. RFC 7857 §2.2 keeps the
            // mapping for its transitory time, and data from both sides revives it: see `ack`.
            return if flags & SYN != 0 { Err(Invalid) } else { Ok(Self::Close) };
        }
        match (flags & SYN != 0, flags & ACK != 0, flags & FIN != 0) {
            (true, _, true) => Err(Invalid),
            (true, false, false) => self.syn(original),
            (true, true, false) => self.syn_ack(original),
            (false, true, true) => self.fin(original),
            (false, true, false) => self.ack(original),
            // Neither SYN, ACK, FIN with ACK nor RST: no segment of a sane stack (RFC 9293 §3.10.7).
            (false, false, _) => Err(Invalid),
        }
    }

    const fn syn(self, original: bool) -> Result<Self, Invalid> {
        match (self, original) {
            (Self::SynSent, true) => Ok(Self::SynSent),
            (Self::SynSent, false) => Ok(Self::SynSent2),
            (Self::SynSent2, _) => Ok(Self::SynSent2),
            // A retransmission, or an attempt that the endpoint answers with a challenge ACK
            // (RFC 5961 §4): let the endpoint decide.
            (
                Self::SynReceived
                | Self::Established
                | Self::FinWait
                | Self::ReplyFinWait
                | Self::CloseWait
                | Self::ReplyCloseWait
                | Self::LastAck
                | Self::ReplyLastAck
                | Self::PickedUp,
                _,
            ) => Ok(self),
            // RFC 1122 §4.2.2.13: a SYN may reopen a connection in TIME-WAIT, if its number is right
            // (`window`); from the original side only, as Linux has it.
            (Self::TimeWait | Self::Close | Self::CloseDoubted | Self::ReplyCloseDoubted, true) => {
                Ok(Self::SynSent)
            }
            (
                Self::TimeWait | Self::Close | Self::CloseDoubted | Self::ReplyCloseDoubted,
                false,
            ) => Err(Invalid),
        }
    }

    const fn syn_ack(self, original: bool) -> Result<Self, Invalid> {
        match (self, original) {
            (Self::SynSent, false) | (Self::SynSent2, _) => Ok(Self::SynReceived),
            (Self::SynSent, true) => Err(Invalid),
            // In later states: a retransmission because the ACK was lost.
            (_, _) => Ok(self),
        }
    }

    const fn fin(self, original: bool) -> Result<Self, Invalid> {
        match (self, original) {
            // The reply side cannot close what it has not accepted.
            (Self::SynSent | Self::SynSent2, false) => Err(Invalid),
            (
                Self::SynSent
                | Self::SynSent2
                | Self::SynReceived
                | Self::Established
                | Self::PickedUp,
                true,
            ) => Ok(Self::FinWait),
            (Self::SynReceived | Self::Established | Self::PickedUp, false) => {
                Ok(Self::ReplyFinWait)
            }
            (Self::FinWait | Self::CloseWait, false) => Ok(Self::LastAck),
            (Self::ReplyFinWait | Self::ReplyCloseWait, true) => Ok(Self::ReplyLastAck),
            // A retransmission.
            (_, _) => Ok(self),
        }
    }

    const fn ack(self, original: bool) -> Result<Self, Invalid> {
        match (self, original) {
            // An ACK from the original side before any answer: it answers an old duplicate.
            (Self::SynSent, true) => Err(Invalid),
            (Self::SynReceived, true) | (Self::PickedUp, false) => Ok(Self::Established),
            (Self::FinWait, false) => Ok(Self::CloseWait),
            (Self::ReplyFinWait, true) => Ok(Self::ReplyCloseWait),
            (Self::LastAck, true) | (Self::ReplyLastAck, false) => Ok(Self::TimeWait),
            // RFC 7857 §2.2: an endpoint may not have believed a RST, which anybody can send blindly.
            // Its segments pass, also the challenge ACK that answers a SYN; once both sides have
            // gone on, nobody believed it. Either one that did answers the other's with a RST.
            (Self::Close, true) => Ok(Self::CloseDoubted),
            (Self::Close, false) => Ok(Self::ReplyCloseDoubted),
            (Self::CloseDoubted, false) | (Self::ReplyCloseDoubted, true) => Ok(Self::Established),
            (_, _) => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Direction::{Original, Reply};
    use super::*;

    fn run(steps: &[(u8, Direction)]) -> Result<TcpState, Invalid> {
        let mut state = TcpState::first(steps[0].0).ok_or(Invalid)?;
        for (flags, direction) in &steps[1..] {
            state = state.next(*flags, *direction)?;
        }
        Ok(state)
    }

    const OPEN: [(u8, Direction); 3] = [(SYN, Original), (SYN | ACK, Reply), (ACK, Original)];

    fn opened(more: &[(u8, Direction)]) -> Result<TcpState, Invalid> {
        let mut steps = OPEN.to_vec();
        steps.extend_from_slice(more);
        run(&steps)
    }

    #[test]
    fn handshake() {
        assert_eq!(run(&OPEN[..1]), Ok(TcpState::SynSent));
        assert_eq!(run(&OPEN[..2]), Ok(TcpState::SynReceived));
        assert_eq!(run(&OPEN), Ok(TcpState::Established));
    }

    #[test]
    fn only_a_syn_begins() {
        for flags in [ACK, SYN | ACK, RST, FIN, FIN | ACK, SYN | RST, SYN | FIN, 0] {
            assert_eq!(TcpState::first(flags), None, "{flags:#x}");
        }
    }

    #[test]
    fn what_is_picked_up_is_established_by_an_answer() {
        use TcpState::{Close, Established, FinWait, PickedUp, ReplyFinWait};
        for flags in [SYN, SYN | ACK, ACK | RST, ACK | FIN, RST, FIN, 0] {
            assert!(!TcpState::continues(flags), "{flags:#x}");
        }
        assert!(TcpState::continues(ACK) && TcpState::continues(ACK | 0x08));
        for (flags, direction, state) in [
            (ACK, Original, Ok(PickedUp)),
            (ACK, Reply, Ok(Established)),
            (SYN, Original, Ok(PickedUp)),
            (SYN | ACK, Reply, Ok(PickedUp)),
            (FIN | ACK, Original, Ok(FinWait)),
            (FIN | ACK, Reply, Ok(ReplyFinWait)),
            (RST, Reply, Ok(Close)),
            (0, Reply, Err(Invalid)),
        ] {
            assert_eq!(PickedUp.next(flags, direction), state, "{flags:#x}");
        }
    }

    /// Rows: VPP `test_half_reopen_inside, test_half_reopen_outside`.
    #[test]
    fn orderly_close() {
        assert_eq!(opened(&[(FIN | ACK, Original)]), Ok(TcpState::FinWait));
        assert_eq!(opened(&[(FIN | ACK, Original), (ACK, Reply)]), Ok(TcpState::CloseWait));
        let last = [(FIN | ACK, Original), (ACK, Reply), (FIN | ACK, Reply)];
        assert_eq!(opened(&last), Ok(TcpState::LastAck));
        let done = [last[0], last[1], last[2], (ACK, Original)];
        assert_eq!(opened(&done), Ok(TcpState::TimeWait));
        let again = [done[0], done[1], done[2], done[3], (SYN, Original)];
        assert_eq!(opened(&again), Ok(TcpState::SynSent));
        let wrong = [done[0], done[1], done[2], done[3], (SYN, Reply)];
        assert_eq!(opened(&wrong), Err(Invalid));
    }

    #[test]
    fn a_retransmitted_fin_does_not_close_the_other_side() {
        let fin = (FIN | ACK, Reply);
        assert_eq!(opened(&[fin, fin, fin]), Ok(TcpState::ReplyFinWait));
        assert_eq!(opened(&[fin, (ACK, Original), fin]), Ok(TcpState::ReplyCloseWait));
        let both = [fin, (ACK, Original), (FIN | ACK, Original)];
        assert_eq!(opened(&both), Ok(TcpState::ReplyLastAck));
        assert_eq!(
            opened(&[both[0], both[1], both[2], (ACK, Original)]),
            Ok(TcpState::ReplyLastAck),
            "only the other side's ACK ends it"
        );
        assert_eq!(opened(&[both[0], both[1], both[2], (ACK, Reply)]), Ok(TcpState::TimeWait));
    }

    #[test]
    fn simultaneous_open() {
        let steps = [
            (SYN, Original),
            (SYN, Reply),
            (SYN | ACK, Original),
            (SYN | ACK, Reply),
            (ACK, Original),
        ];
        assert_eq!(run(&steps), Ok(TcpState::Established));
    }

    #[test]
    fn reset() {
        assert_eq!(run(&[(SYN, Original), (RST | ACK, Reply)]), Ok(TcpState::Close));
        assert_eq!(opened(&[(RST, Reply)]), Ok(TcpState::Close));
        assert_eq!(opened(&[(RST | SYN, Reply)]), Err(Invalid));
    }

    #[test]
    fn a_reset_that_nobody_believed_is_forgotten() {
        use TcpState::{Close, CloseDoubted, Established, ReplyCloseDoubted, SynSent};
        let (there, back) = ((ACK, Original), (ACK, Reply));
        let (reset, closing) = ((RST, Reply), (FIN | ACK, Reply));
        for (after_reset, state) in [
            (&[there][..], Ok(CloseDoubted)),
            (&[there, there], Ok(CloseDoubted)),
            (&[back, back], Ok(ReplyCloseDoubted)),
            (&[there, back], Ok(Established)),
            (&[back, there], Ok(Established)),
            // Whoever believed it says so again, and both must begin anew.
            (&[there, reset], Ok(Close)),
            (&[there, reset, back], Ok(ReplyCloseDoubted)),
            (&[back, (RST | ACK, Original), there], Ok(CloseDoubted)),
            // A FIN does not prove that the other side goes on, nor does a late SYN+ACK.
            (&[there, closing], Ok(CloseDoubted)),
            (&[there, (SYN | ACK, Reply)], Ok(CloseDoubted)),
            (&[there, (SYN, Original)], Ok(SynSent)),
            (&[back, (SYN, Original)], Ok(SynSent)),
            (&[there, (SYN, Reply)], Err(Invalid)),
            (&[back, (SYN, Reply)], Err(Invalid)),
        ] {
            let steps: Vec<_> = std::iter::once(reset).chain(after_reset.iter().copied()).collect();
            assert_eq!(opened(&steps), state, "{after_reset:?}");
        }
    }

    #[test]
    fn nonsense_flags_are_invalid() {
        for flags in [0, FIN, SYN | FIN, SYN | FIN | ACK] {
            assert_eq!(opened(&[(flags, Original)]), Err(Invalid), "{flags:#x}");
        }
    }

    #[test]
    fn numbers_round_trip() {
        for n in 0..=255 {
            if let Some(state) = TcpState::from_u8(n) {
                assert_eq!(state as u8, n);
            }
        }
    }
}
