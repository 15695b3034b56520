//! Sequence numbers of a TCP connection: pure, one function.
//!
//! The rules are those of "Real Stateful TCP Packet Filtering in IP Filter" (van Rooij 2001) as Linux'
//! `nf_conntrack_proto_tcp.c` has them, and RFC 5961 §3.2 for RST. Each side is known by what it has
//! said itself, so that the worker of one direction never writes what the other's writes. Where that is
//! less exact than Linux it errs on the side of passing: an endpoint drops what it does not believe, and
//! a segment dropped here wrongly stalls a connection.

use super::tcp::TcpState;
use super::tuple::Direction;
use crate::packet::types::tcp_flags::{ACK, RST, SYN};

/// Acknowledgments may be as old as the largest window, or as this (`MAXACKWINCONST` of
/// `nf_conntrack_proto_tcp.c`): 66,000.
const OLD_ACK: u32 = 66_000;
/// No window scale was offered.
const UNSCALED: u8 = 15;
/// The largest scale (RFC 7323 §2.3): 14.
const MAX_SCALE: u8 = 14;
/// Room of a receiver at most: the largest window there is (RFC 7323 §2.3), 2^30.
const MAX_ROOM: u32 = 1 << 30;
/// Sequence numbers that data of a SYN can take at most (RFC 7413): 65,535.
const SYN_DATA_MAX: u32 = 65_535;

/// What cannot be known of this connection passes.
const LIBERAL: u8 = 1;
/// This side has acknowledged something: [`Side::ack`] is known.
const ACKED: u8 = 2;
/// This side's SYN carried data (TCP Fast Open), which need not be acknowledged with it.
const SYN_DATA: u8 = 4;
/// Within an open connection, or one in TIME_WAIT, this side has sent a SYN, which the other side may answer by beginning anew.
const SYN_AGAIN: u8 = 8;

/// What one side of a connection has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Side {
    /// The number after the highest one sent.
    pub end: u32,
    /// The highest number acknowledged.
    pub ack: u32,
    /// The largest window offered, packed; zero: this side has not spoken yet.
    window: u8,
    scale: u8,
    flags: u8,
}

/// What a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The flags of its header.
    pub flags: u8,
    /// Its first sequence number.
    pub seq: u32,
    /// What it acknowledges, with ACK.
    pub ack: u32,
    /// The window as written, unscaled.
    pub window: u16,
    /// Sequence numbers it takes: its data, one for SYN and one for FIN.
    pub len: u32,
    /// The window scale option of a SYN.
    pub scale: Option<u8>,
    /// Whether more follows that has no TCP header, so that the length is not all.
    pub is_fragment: bool,
}

/// What becomes of a segment that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It continues the connection; its side has said this now.
    Continues(Side),
    /// It passes and changes nothing: old, or the endpoint's to judge.
    Passes,
    /// The same, and the other side may answer by beginning anew: its side has said this now.
    Asks(Side),
    /// The answer to a SYN that came within a connection: the connection begins anew, in
    /// [`TcpState::SynReceived`].
    BeginsAnew(Side),
}

/// Why a segment does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unbelievable {
    /// Data that the receiver has no room for, or the acknowledgment of what was never sent.
    OutOfWindow,
    /// A RST that the receiver would have to ignore, or whose acknowledgment says that its sender is not the peer.
    Reset,
}

impl Side {
    /// Of the side that sent this segment first.
    #[must_use]
    pub fn first(segment: &Segment) -> Self {
        let is_syn = segment.flags & SYN != 0;
        let acked = segment.flags & ACK != 0;
        let scale = segment.scale.filter(|_| is_syn).map_or(UNSCALED, |scale| scale.min(MAX_SCALE));
        let mut flags = if acked { ACKED } else { 0 };
        if is_syn && segment.len > 1 {
            flags |= SYN_DATA;
        }
        let mut side = Self {
            end: segment.end(),
            ack: if acked { segment.ack } else { 0 },
            // The window of a SYN is never scaled (RFC 7323 §2.2).
            window: pack(u32::from(segment.window)),
            scale,
            flags,
        };
        if !is_syn || segment.is_fragment {
            // Without its SYN nobody knows the scale.
            side.window = pack(u32::from(segment.window) << MAX_SCALE);
            side.flags |= LIBERAL;
        }
        side
    }

    const fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether this side has spoken.
    #[must_use]
    pub const fn is_known(self) -> bool {
        self.window != 0
    }

    /// How far beyond what this side has acknowledged its peer may send: twice the largest window that
    /// it has offered, since some take more than they said (`nf_conntrack_proto_tcp.c`: "overshot"). At
    /// most half of the half that [`before`] can tell apart.
    const fn room(self) -> u32 {
        let room = unpack(self.window).saturating_mul(2);
        if room < MAX_ROOM { room } else { MAX_ROOM }
    }

    /// The same side after a segment that continues the connection.
    fn after(self, segment: &Segment, theirs: Self) -> Self {
        let mut side = self;
        if before(side.end, segment.end()) {
            side.end = segment.end();
        }
        if segment.flags & ACK != 0 && (!side.has(ACKED) || before(side.ack, segment.ack)) {
            side.ack = segment.ack;
            side.flags |= ACKED;
        }
        let scaled = side.scale != UNSCALED && theirs.scale != UNSCALED;
        let shift = if scaled && segment.flags & SYN == 0 { side.scale } else { 0 };
        let offered = u32::from(segment.window) << shift;
        if !side.is_known() || unpack(side.window) < offered {
            side.window = side.window.max(pack(offered));
        }
        // It goes on with the connection that there was.
        if segment.flags & SYN == 0 {
            side.flags &= !SYN_AGAIN;
        }
        if segment.is_fragment {
            side.flags |= LIBERAL;
        }
        side
    }

    /// Packed into words as a table keeps them: `end`, `ack`, and `window:8 | scale:4 | flags:4`.
    #[must_use]
    pub const fn to_words(self) -> (u32, u32, u16) {
        let rest =
            (self.window as u16) << 8 | (self.scale as u16 & 15) << 4 | self.flags as u16 & 15;
        (self.end, self.ack, rest)
    }

    /// The opposite of [`Side::to_words`].
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "masked to the width of the field")]
    pub const fn from_words(end: u32, ack: u32, rest: u16) -> Self {
        let (scale, flags) = ((rest >> 4 & 15) as u8, (rest & 15) as u8);
        Self { end, ack, window: (rest >> 8) as u8, scale, flags }
    }
}

impl Segment {
    const fn end(&self) -> u32 {
        self.seq.wrapping_add(self.len)
    }

    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// [`judge`] for a segment in the middle of an established connection, with ACK and none of SYN, FIN and RST:
/// what its side has said with it, when it continues the connection by all rules. `None`: [`judge`] decides.
#[inline(always)]
#[must_use]
pub fn flows(segment: &Segment, mine: Side, theirs: Side) -> Option<Side> {
    let is_plain = |side: Side| side.flags & (LIBERAL | ACKED | SYN_AGAIN) == ACKED;
    if !is_plain(mine) || !is_plain(theirs) || !mine.is_known() || !theirs.is_known() {
        return None;
    }
    let room = theirs.room();
    let oldest = mine.end.wrapping_sub(room).wrapping_sub(1);
    let oldest_ack = oldest_ack(mine, theirs);
    // All at once: none of them is ever likely, and a branch for each costs more than they do.
    let refused = before(theirs.ack.wrapping_add(room), segment.seq)
        | before(theirs.end, segment.ack)
        | before(segment.end(), oldest)
        | before(segment.ack, oldest_ack);
    if refused { None } else { Some(mine.after(segment, theirs)) }
}

/// Whether a segment can belong to a connection in this state, whose sides have said what they have. The
/// state machine has found nothing wrong with its flags.
///
/// # Errors
/// When it cannot: nobody must receive it.
#[inline]
pub fn judge(
    state: TcpState,
    direction: Direction,
    segment: &Segment,
    mine: Side,
    theirs: Side,
) -> Result<Judgement, Unbelievable> {
    let opening = matches!(state, TcpState::SynSent | TcpState::SynSent2);
    if segment.has(RST) {
        return reset(state, direction, segment, mine, theirs);
    }
    if segment.has(SYN) {
        return syn(state, segment, mine, theirs);
    }
    if opening {
        // An ACK that answers a SYN: the challenge of one who knows an earlier connection (RFC 5961 §4).
        return Ok(Judgement::Passes);
    }
    if mine.has(SYN_AGAIN) && state == TcpState::SynReceived && segment.ack == theirs.end {
        return Ok(Judgement::Continues(Side::first(segment)));
    }
    data(segment, mine, theirs)
}

/// Rules I to IV of a segment with an acknowledgment.
#[inline]
fn data(segment: &Segment, mine: Side, theirs: Side) -> Result<Judgement, Unbelievable> {
    if !mine.is_known() {
        return Ok(Judgement::Continues(Side::first(segment)));
    }
    let continues = Ok(Judgement::Continues(mine.after(segment, theirs)));
    if mine.has(LIBERAL) || theirs.has(LIBERAL) || !theirs.is_known() {
        return continues;
    }
    // I: not beyond what the receiver has room for.
    if theirs.has(ACKED) && before(theirs.ack.wrapping_add(theirs.room()), segment.seq) {
        return Err(Unbelievable::OutOfWindow);
    }
    // III: acknowledges only what was sent.
    if before(theirs.end, segment.ack) {
        return Err(Unbelievable::OutOfWindow);
    }
    // II and IV: old data and old acknowledgments are retransmissions and late ones.
    let oldest = mine.end.wrapping_sub(theirs.room()).wrapping_sub(1);
    if before(segment.end(), oldest) || before(segment.ack, oldest_ack(mine, theirs)) {
        return Ok(Judgement::Passes);
    }
    continues
}

/// Rule IV: who says `mine` may acknowledge as little as this.
#[inline(always)]
fn oldest_ack(mine: Side, theirs: Side) -> u32 {
    theirs.end.wrapping_sub(mine.room().max(OLD_ACK)).wrapping_sub(1)
}

fn syn(
    state: TcpState,
    segment: &Segment,
    mine: Side,
    theirs: Side,
) -> Result<Judgement, Unbelievable> {
    use TcpState::{Close, CloseDoubted, ReplyCloseDoubted, SynSent, SynSent2, TimeWait};
    let first = Ok(Judgement::Continues(Side::first(segment)));
    match (state, segment.has(ACK)) {
        // RFC 1122 §4.2.2.13: only a number beyond all that were used opens anew. Any other may be an old
        // duplicate; or its receiver takes it for its time stamp (RFC 6191), and says so.
        (TimeWait, false) if mine.is_known() && before(segment.seq, mine.end) => {
            let flags = mine.flags | SYN_AGAIN;
            Ok(Judgement::Asks(Side { flags, ..mine }))
        }
        (SynSent | SynSent2 | TimeWait | Close | CloseDoubted | ReplyCloseDoubted, false) => first,
        // The right one is on its way, or the client answers this one with a RST (RFC 9293 §3.10.7.3).
        (SynSent | SynSent2, true) if !acknowledges_syn(segment, theirs) => {
            Err(Unbelievable::OutOfWindow)
        }
        (SynSent | SynSent2, true) => first,
        // Whether it is an attempt to begin anew or an attack only the receiver knows (RFC 5961 §4).
        (_, false) if mine.is_known() && segment.end() != mine.end => {
            let flags = mine.flags | SYN_AGAIN;
            Ok(Judgement::Continues(Side { flags, ..mine }))
        }
        (_, false) => Ok(Judgement::Passes),
        (_, true) if theirs.has(SYN_AGAIN) && segment.end() != mine.end => {
            Ok(Judgement::BeginsAnew(Side::first(segment)))
        }
        (_, true) => data(segment, mine, theirs),
    }
}

/// Whether a segment acknowledges the SYN of the other side, and data at most that came with it.
const fn acknowledges_syn(segment: &Segment, theirs: Side) -> bool {
    let unacknowledged = theirs.end.wrapping_sub(segment.ack);
    segment.has(ACK)
        && (unacknowledged == 0
            // Taken over without its numbers.
            || !theirs.is_known() || theirs.has(SYN_DATA) && unacknowledged <= SYN_DATA_MAX)
}

fn reset(
    state: TcpState,
    direction: Direction,
    segment: &Segment,
    mine: Side,
    theirs: Side,
) -> Result<Judgement, Unbelievable> {
    let closes = Ok(Judgement::Continues(mine));
    match state {
        TcpState::SynSent | TcpState::SynSent2 => {
            // RFC 9293 §3.10.7.3: the answer to a SYN must acknowledge it. The client itself may give up,
            // also with the number that a challenge told it.
            let answers =
                matches!(direction, Direction::Original) || acknowledges_syn(segment, theirs);
            return if answers { closes } else { Err(Unbelievable::Reset) };
        }
        TcpState::SynReceived
        | TcpState::Established
        | TcpState::PickedUp
        | TcpState::CloseDoubted
        | TcpState::ReplyCloseDoubted => {}
        // Already ending: numbers may be those of an earlier connection.
        _ => return closes,
    }
    if !theirs.has(ACKED) {
        let exact = !mine.is_known() || segment.seq == mine.end;
        return if exact {
            reset_acknowledging(segment, mine, theirs)
        } else {
            Ok(Judgement::Passes)
        };
    }
    // The next number that the receiver expects, as far as it has said; or that of a RST right behind data.
    if segment.seq == theirs.ack || mine.is_known() && segment.seq == mine.end {
        return reset_acknowledging(segment, mine, theirs);
    }
    // The answer of one who knows of no connection to a SYN within this one.
    if theirs.has(SYN_AGAIN) && segment.seq == 0 && segment.has(ACK) {
        return Ok(Judgement::Passes);
    }
    let beyond = before(theirs.ack.wrapping_add(theirs.room()), segment.seq);
    if !theirs.has(LIBERAL) && (before(segment.seq, theirs.ack) || beyond) {
        return Err(Unbelievable::Reset);
    }
    // Within the window: the receiver asks whether it is meant (RFC 5961 §3.2).
    Ok(Judgement::Passes)
}

/// A RST with the number that its receiver expects. What it acknowledges is held against rules III and IV as
/// that of any segment (`tcp_in_window` of `nf_conntrack_proto_tcp.c`): who guesses the one number does not know
/// the other. Neither may pass: its receiver need not look at the acknowledgment, and would close what we take for open. Some stacks set ACK and acknowledge nothing, with zero.
fn reset_acknowledging(
    segment: &Segment,
    mine: Side,
    theirs: Side,
) -> Result<Judgement, Unbelievable> {
    let closes = Ok(Judgement::Continues(mine));
    let is_said = segment.has(ACK) && segment.ack != 0;
    let unknown = !theirs.is_known() || mine.has(LIBERAL) || theirs.has(LIBERAL);
    // Within the connection its peer has sent a SYN, whose number is not kept: the answer may be to that.
    if !is_said || unknown || theirs.has(SYN_AGAIN) {
        return closes;
    }
    if before(theirs.end, segment.ack) || before(segment.ack, oldest_ack(mine, theirs)) {
        return Err(Unbelievable::Reset);
    }
    closes
}

/// Whether `a` is before `b`, in numbers that wrap (RFC 9293 §3.4).
const fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) > u32::MAX / 2
}

/// Windows with four significant bits, never less than they are: `exponent:5 | mantissa:3`.
#[allow(clippy::cast_possible_truncation, reason = "five bits and three")]
const fn pack(window: u32) -> u8 {
    if window <= 9 {
        return 1;
    }
    let exponent = 28 - window.leading_zeros();
    let down = ((exponent << 3) + (window >> exponent) - 8) as u8;
    if unpack(down) < window { down + 1 } else { down }
}

const fn unpack(code: u8) -> u32 {
    (8 + (code & 7) as u32) << (code >> 3)
}

#[cfg(test)]
#[path = "window/tests.rs"]
mod tests;
