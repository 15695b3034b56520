//! Tables of segments, by hand. Six are the cases of Linux' `tools/testing/selftests/net/netfilter/packetdrill`,
//! told anew: their names are those of its files.

use proptest::prelude::*;

use super::*;
use crate::packet::types::tcp_flags::FIN;
use Direction::{Original, Reply};

const PSH: u8 = 8;

/// What a segment did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Did {
    /// It passed, and this is the state now.
    Pass(TcpState),
    Drop(Unbelievable),
    Invalid,
}

/// A connection as seen from the middle.
struct Middle {
    state: Option<TcpState>,
    sides: [Side; 2],
}

impl Middle {
    fn new() -> Self {
        Self { state: None, sides: [Side::default(); 2] }
    }

    fn see(&mut self, direction: Direction, segment: Segment) -> Did {
        let (mine, theirs) = (direction.index(), direction.reversed().index());
        let Some(state) = self.state else {
            let Some(first) = TcpState::first(segment.flags) else { return Did::Invalid };
            self.sides[mine] = Side::first(&segment);
            self.state = Some(first);
            return Did::Pass(first);
        };
        let Ok(next) = state.next(segment.flags, direction) else { return Did::Invalid };
        let judged = judge(state, direction, &segment, self.sides[mine], self.sides[theirs]);
        let (state, side) = match judged {
            Err(why) => return Did::Drop(why),
            Ok(Judgement::Passes) => (state, None),
            Ok(Judgement::Asks(side)) => (state, Some(side)),
            Ok(Judgement::Continues(side)) => (next, Some(side)),
            Ok(Judgement::BeginsAnew(side)) => (TcpState::SynReceived, Some(side)),
        };
        self.state = Some(state);
        if let Some(side) = side {
            // As a table keeps it.
            let (end, ack, rest) = side.to_words();
            assert_eq!(Side::from_words(end, ack, rest), side);
            self.sides[mine] = side;
        }
        Did::Pass(state)
    }

    /// Sees the segments one after the other.
    fn table(&mut self, rows: &[(Direction, Segment, Did)]) {
        for (row, (direction, segment, did)) in rows.iter().enumerate() {
            assert_eq!(self.see(*direction, *segment), *did, "row {row}: {segment:?}");
        }
    }

    /// Established with these initial numbers; every window is 8192 scaled by 7 (1 MiB).
    fn open(client: u32, server: u32) -> Self {
        let mut middle = Self::new();
        middle.table(&[
            (Original, syn(client), Did::Pass(TcpState::SynSent)),
            (Reply, syn_ack(server, client + 1), Did::Pass(TcpState::SynReceived)),
            (Original, ack(client + 1, server + 1), Did::Pass(TcpState::Established)),
            // The window of a SYN is not scaled.
            (Reply, ack(server + 1, client + 1), Did::Pass(TcpState::Established)),
        ]);
        middle
    }
}

fn segment(flags: u8, seq: u32, ack: u32, len: u32) -> Segment {
    let len = len + u32::from(flags & (SYN | FIN) != 0);
    let scale = (flags & SYN != 0).then_some(7);
    Segment { flags, seq, ack, window: 8192, len, scale, is_fragment: false }
}

fn syn(seq: u32) -> Segment {
    segment(SYN, seq, 0, 0)
}

fn syn_ack(seq: u32, acked: u32) -> Segment {
    segment(SYN | ACK, seq, acked, 0)
}

fn ack(seq: u32, acked: u32) -> Segment {
    segment(ACK, seq, acked, 0)
}

fn data(seq: u32, acked: u32, len: u32) -> Segment {
    segment(ACK | PSH, seq, acked, len)
}

fn rst(seq: u32) -> Segment {
    segment(RST, seq, 0, 0)
}

fn fin(seq: u32, acked: u32) -> Segment {
    segment(FIN | ACK, seq, acked, 0)
}

/// RFC 1122 §4.2.2.13, RFC 6191.
#[test]
fn in_time_wait_a_syn_beyond_all_numbers_opens_anew() {
    let closed = |client: u32| {
        let mut middle = Middle::open(client, 9000);
        let end = client.wrapping_add(101);
        middle.table(&[
            (Original, data(client.wrapping_add(1), 9001, 100), ESTABLISHED),
            (Original, fin(end, 9001), Did::Pass(TcpState::FinWait)),
            (Reply, fin(9001, end.wrapping_add(1)), Did::Pass(TcpState::LastAck)),
            (Original, ack(end.wrapping_add(1), 9002), TIME_WAIT),
        ]);
        middle
    };
    for client in [1000, u32::MAX - 50] {
        // The first number that was not used, and the last that is ahead.
        for ahead in [102, 102 + (1 << 31) - 1] {
            let mut middle = closed(client);
            let first = client.wrapping_add(ahead);
            middle.table(&[
                (Original, syn(first), SYN_SENT),
                (Reply, syn_ack(50, first.wrapping_add(1)), Did::Pass(TcpState::SynReceived)),
            ]);
        }
        // An old duplicate: the server says where it is, and sends its FIN again, and the client, which
        // knows of nothing, resets.
        let mut middle = closed(client);
        let old = client.wrapping_add(101);
        middle.table(&[
            (Original, syn(old), TIME_WAIT),
            (Reply, ack(9002, client.wrapping_add(102)), TIME_WAIT),
            (Reply, fin(9001, client.wrapping_add(102)), TIME_WAIT),
            (Original, ack(client.wrapping_add(102), 9002), TIME_WAIT),
            // Its first ACK after that has forgotten the SYN: this one belongs to nothing.
            (Reply, syn_ack(9001, client.wrapping_add(1)), TIME_WAIT),
        ]);
        // The server takes it all the same.
        let mut middle = closed(client);
        middle.table(&[
            (Original, syn(old), TIME_WAIT),
            (Reply, syn_ack(70_000, old.wrapping_add(1)), Did::Pass(TcpState::SynReceived)),
            (Original, ack(old.wrapping_add(1), 70_001), ESTABLISHED),
            (Original, data(old.wrapping_add(1), 70_001, 100), ESTABLISHED),
            (Reply, data(70_001, old.wrapping_add(101), 100), ESTABLISHED),
        ]);
    }
}

const TIME_WAIT: Did = Did::Pass(TcpState::TimeWait);
const ESTABLISHED: Did = Did::Pass(TcpState::Established);
const SYN_SENT: Did = Did::Pass(TcpState::SynSent);
const SYN_RECEIVED: Did = Did::Pass(TcpState::SynReceived);
const CLOSE: Did = Did::Pass(TcpState::Close);
const BAD_RESET: Did = Did::Drop(Unbelievable::Reset);
const OUT_OF_WINDOW: Did = Did::Drop(Unbelievable::OutOfWindow);

/// Rows: Linux `packetdrill/conntrack_rst_invalid.pkt`.
#[test]
fn packetdrill_conntrack_rst_invalid() {
    let mut middle = Middle::open(1000, 5000);
    middle.table(&[
        (Original, data(1001, 5001, 500), ESTABLISHED),
        (Reply, ack(5001, 1501), ESTABLISHED),
        (Original, rst(0), BAD_RESET),
        (Original, rst(1501 + (4 << 20)), BAD_RESET),
        (Original, rst(1502), ESTABLISHED),
        (Original, rst(1500), BAD_RESET),
        (Reply, data(5001, 1501, 100), ESTABLISHED),
        (Original, rst(1501), CLOSE),
    ]);
}

/// Rules III and IV hold for what a RST acknowledges, as in Linux' `tcp_in_window`.
#[test]
fn a_reset_acknowledges_what_was_sent_or_nothing() {
    let answers = |seq, acked| segment(RST | ACK, seq, acked, 0);
    // What it acknowledges beside the right sequence number, and what becomes of it.
    for (acked, did) in [
        (5001, CLOSE),
        (5101, CLOSE),
        (4000, CLOSE),
        (0, CLOSE),
        (5102, BAD_RESET),
        (5101 + (1 << 20), BAD_RESET),
        (5101 + (1 << 31) - 1, BAD_RESET),
        // Older than anything that anybody remembers.
        (5101u32.wrapping_sub(1 << 22), BAD_RESET),
        (5101u32.wrapping_sub(1 << 30), BAD_RESET),
    ] {
        let mut middle = Middle::open(1000, 5000);
        middle.table(&[
            (Original, data(1001, 5001, 500), ESTABLISHED),
            (Reply, data(5001, 1501, 100), ESTABLISHED),
            (Original, answers(1501, acked), did),
        ]);
        if did != CLOSE {
            middle.table(&[
                (Original, ack(1501, 5101), ESTABLISHED),
                (Original, answers(1501, 5101), CLOSE),
            ]);
        }
        let mut middle = Middle::open(5000, 1000);
        middle.table(&[
            (Reply, data(1001, 5001, 500), ESTABLISHED),
            (Original, data(5001, 1501, 100), ESTABLISHED),
            (Reply, answers(1501, acked), did),
        ]);
    }
    // Before anything was acknowledged, too.
    let mut opening = Middle::new();
    opening.table(&[
        (Original, syn(1000), SYN_SENT),
        (Reply, syn_ack(5000, 1001), SYN_RECEIVED),
        (Original, answers(1001, 5002), BAD_RESET),
        (Original, answers(1001, 5001), CLOSE),
    ]);
    // What is not known of a connection taken up in its middle passes.
    let mut picked_up = Middle { state: Some(TcpState::PickedUp), sides: [Side::default(); 2] };
    picked_up.table(&[(Original, answers(1001, 77), CLOSE)]);
}

/// Rows: Linux `packetdrill/conntrack_inexact_rst.pkt`.
#[test]
fn packetdrill_conntrack_inexact_rst() {
    let mut middle = Middle::open(1000, 5000);
    middle.table(&[
        (Reply, data(5001, 1001, 100), ESTABLISHED),
        (Reply, fin(5101, 1001), Did::Pass(TcpState::ReplyFinWait)),
        (Original, ack(1001, 5102), Did::Pass(TcpState::ReplyCloseWait)),
        (Original, rst(1003), CLOSE),
    ]);
}

/// Rows: Linux `packetdrill/conntrack_syn_challenge_ack.pkt`.
#[test]
fn packetdrill_conntrack_syn_challenge_ack() {
    let mut middle = Middle::new();
    middle.table(&[
        (Original, syn(1000), SYN_SENT),
        // The server knows an earlier connection of the same ports.
        (Reply, ack(145_824_453, 643_160_523), SYN_SENT),
        (Original, rst(643_160_523), CLOSE),
        (Original, syn(1000), SYN_SENT),
        (Reply, syn_ack(9000, 1001), SYN_RECEIVED),
        (Original, ack(1001, 9001), ESTABLISHED),
    ]);
}

/// Rows: Linux `packetdrill/conntrack_synack_old.pkt`.
#[test]
fn packetdrill_conntrack_synack_old() {
    let mut middle = Middle::new();
    middle.table(&[
        (Original, syn(1000), SYN_SENT),
        (Reply, syn_ack(145_824_453, 643_160_523), OUT_OF_WINDOW),
        (Reply, syn_ack(145_824_453, 1000), OUT_OF_WINDOW),
        (Original, syn(1000), SYN_SENT),
        (Reply, syn_ack(9000, 1001), SYN_RECEIVED),
        (Original, ack(1001, 9001), ESTABLISHED),
    ]);
}

/// Rows: RFC 5961 §4; Linux `packetdrill/conntrack_synack_reuse.pkt`.
#[test]
fn packetdrill_conntrack_synack_reuse() {
    let mut middle = Middle::open(1000, 5000);
    middle.table(&[
        (Original, data(1001, 5001, 10), ESTABLISHED),
        (Reply, ack(5001, 1011), ESTABLISHED),
        (Original, syn(90_000_000), ESTABLISHED),
        (Reply, ack(5001, 1011), ESTABLISHED),
        (Original, rst(1011), CLOSE),
        (Original, syn(90_000_000), SYN_SENT),
        (Reply, syn_ack(77, 90_000_001), SYN_RECEIVED),
        (Original, ack(90_000_001, 78), ESTABLISHED),
    ]);
}

/// Rows: Linux `packetdrill/conntrack_ack_loss_stall.pkt`.
#[test]
fn packetdrill_conntrack_ack_loss_stall() {
    let mut middle = Middle::open(1000, 5000);
    middle.table(&[
        (Original, data(1001, 5001, 1460), ESTABLISHED),
        (Original, data(2461, 5001, 1460), ESTABLISHED),
        // Acknowledged, and the acknowledgment lost behind us.
        (Reply, ack(5001, 3921), ESTABLISHED),
        (Original, data(1001, 5001, 1460), ESTABLISHED),
        (Reply, ack(5001, 3921), ESTABLISHED),
        (Original, data(3921, 5001, 1460), ESTABLISHED),
    ]);
}

#[test]
fn a_restarted_server_answers_a_syn_within_an_open_connection() {
    let mut middle = Middle::open(1000, 5000);
    middle.table(&[
        (Original, syn(90_000_000), ESTABLISHED),
        (Reply, syn_ack(77, 90_000_001), SYN_RECEIVED),
        (Original, ack(90_000_001, 78), ESTABLISHED),
        (Reply, data(78, 90_000_001, 1000), ESTABLISHED),
        (Original, data(90_000_001, 1078, 1000), ESTABLISHED),
        // Passes, since the scales are not known, but does not close.
        (Reply, rst(3), ESTABLISHED),
    ]);
    let mut refused = Middle::open(1000, 5000);
    refused.table(&[
        (Original, syn(90_000_000), ESTABLISHED),
        (Reply, segment(RST | ACK, 0, 90_000_001, 0), ESTABLISHED),
    ]);
    // Nobody has asked for these.
    let mut attacked = Middle::open(1000, 5000);
    attacked.table(&[
        (Reply, segment(RST | ACK, 0, 90_000_001, 0), BAD_RESET),
        (Reply, syn_ack(90_000_000, 77), Did::Drop(Unbelievable::OutOfWindow)),
        (Original, data(1001, 5001, 100), ESTABLISHED),
    ]);
}

#[test]
fn the_receivers_room_bounds_what_is_sent() {
    let mut middle = Middle::open(1000, 5000);
    let window = 8192 << 7;
    middle.table(&[
        (Original, data(1001 + window, 5001, 10), ESTABLISHED),
        (Original, data(1001 + 3 * window, 5001, 10), OUT_OF_WINDOW),
        (Reply, ack(5001, 1001 + window + 10), ESTABLISHED),
        (Reply, ack(5001, 1001 + window + 11), OUT_OF_WINDOW),
        (Original, data(1001u32.wrapping_sub(2 * window), 5001, 10), ESTABLISHED),
    ]);
    assert_eq!(middle.sides[0].end, 1011 + window, "old data changes nothing");
}

#[test]
fn the_largest_windows_there_are_hold_nothing_up() {
    for window in [0xf000, 0xf001, 0xffff] {
        let largest = |segment: Segment| Segment {
            window,
            scale: (segment.flags & SYN != 0).then_some(14),
            ..segment
        };
        let mut middle = Middle::new();
        middle.table(&[
            (Original, largest(syn(1000)), SYN_SENT),
            (Reply, largest(syn_ack(5000, 1001)), SYN_RECEIVED),
            (Original, largest(ack(1001, 5001)), ESTABLISHED),
            (Reply, largest(ack(5001, 1001)), ESTABLISHED),
            (Original, largest(data(1001, 5001, 100)), ESTABLISHED),
            (Reply, largest(ack(5001, 1101)), ESTABLISHED),
            (Original, largest(data(1101, 5001, 100)), ESTABLISHED),
            // Keep-alive, and sent again.
            (Original, largest(ack(1100, 5001)), ESTABLISHED),
            (Original, largest(data(1001, 5001, 100)), ESTABLISHED),
            (Reply, largest(ack(5001, 1201)), ESTABLISHED),
            (Original, largest(data(1201u32.wrapping_add(3 << 29), 5001, 1)), OUT_OF_WINDOW),
            (Original, rst(1201), CLOSE),
        ]);
    }
}

#[test]
fn one_segment_ahead_of_the_window_holds_up_nobody() {
    let mut middle = Middle::open(1000, 5000);
    let window = 8192 << 7;
    // Its receiver throws it away, and the transfer goes on where it was.
    middle.table(&[(Original, data(1001 + window + window / 2, 5001, 10), ESTABLISHED)]);
    for n in 0..20 {
        let (seq, next) = (1001 + n * 1000, 2001 + n * 1000);
        middle.table(&[
            (Original, data(seq, 5001 + n * 10, 1000), ESTABLISHED),
            (Reply, data(5001 + n * 10, next, 10), ESTABLISHED),
        ]);
    }
    assert_eq!(middle.sides[1].end, 5001 + 200, "what the other side says is noted");
}

#[test]
fn windows_are_scaled_only_when_both_sides_offer_it() {
    let mut middle = Middle::new();
    let plain = Segment { scale: None, ..syn_ack(5000, 1001) };
    middle.table(&[
        (Original, syn(1000), SYN_SENT),
        (Reply, plain, SYN_RECEIVED),
        (Original, ack(1001, 5001), ESTABLISHED),
        (Reply, data(5001 + 2 * 8192, 1001, 10), ESTABLISHED),
        (Reply, data(5001 + 3 * 8192, 1001, 10), OUT_OF_WINDOW),
    ]);
}

#[test]
fn simultaneous_open_is_judged_by_both_syns() {
    let mut middle = Middle::new();
    middle.table(&[
        (Original, syn(1000), SYN_SENT),
        (Reply, syn(5000), Did::Pass(TcpState::SynSent2)),
        (Original, syn_ack(1000, 4000), OUT_OF_WINDOW),
        (Original, syn_ack(1000, 5001), SYN_RECEIVED),
        (Reply, syn_ack(5000, 1001), SYN_RECEIVED),
        (Original, ack(1001, 5001), ESTABLISHED),
    ]);
}

#[test]
fn a_refused_connection_is_closed_by_who_acknowledges_it() {
    let mut middle = Middle::new();
    middle.table(&[
        (Original, syn(1000), SYN_SENT),
        (Reply, rst(1001), BAD_RESET),
        (Reply, segment(RST | ACK, 0, 77, 0), BAD_RESET),
        (Reply, segment(RST | ACK, 0, 1001, 0), CLOSE),
    ]);
}

#[test]
fn data_in_a_syn_need_not_be_acknowledged_with_it() {
    for acked in [1001, 1301, 1501] {
        let mut middle = Middle::new();
        middle.table(&[
            (Original, segment(SYN, 1000, 0, 500), SYN_SENT),
            (Reply, syn_ack(5000, acked), SYN_RECEIVED),
            (Original, data(acked, 5001, 100), ESTABLISHED),
        ]);
    }
    let mut middle = Middle::new();
    middle.table(&[
        (Original, segment(SYN, 1000, 0, 500), SYN_SENT),
        (Reply, syn_ack(5000, 1502), OUT_OF_WINDOW),
    ]);
}

#[test]
fn a_reset_behind_data_closes_before_the_data_is_acknowledged() {
    let mut middle = Middle::open(1000, 5000);
    middle.table(&[(Reply, data(5001, 1001, 700), ESTABLISHED), (Reply, rst(5701), CLOSE)]);
}

#[test]
fn a_connection_taken_over_without_numbers_is_not_held_to_them() {
    for answer in [syn_ack(77, 4_000_000_001), segment(RST | ACK, 0, 4_000_000_001, 0)] {
        let mut opening = Middle { state: Some(TcpState::SynSent), sides: [Side::default(); 2] };
        assert!(matches!(opening.see(Reply, answer), Did::Pass(_)));
    }
    let mut middle = Middle { state: Some(TcpState::Established), sides: [Side::default(); 2] };
    middle.table(&[
        (Original, data(1_000_000, 5_000_000, 10), ESTABLISHED),
        (Reply, data(7_000, 1_000_010, 10), ESTABLISHED),
        (Original, data(3_000_000_000, 5_000_000, 10), ESTABLISHED),
        (Reply, rst(9), ESTABLISHED),
        (Reply, data(7_010, 1_000_010, 10), ESTABLISHED),
        (Reply, rst(7_020), CLOSE),
    ]);
}

#[test]
fn fragments_make_a_connection_liberal() {
    let mut middle = Middle::open(1000, 5000);
    let first = Segment { is_fragment: true, ..data(1001, 5001, 1000) };
    middle.table(&[
        (Original, first, ESTABLISHED),
        // More than was seen: the rest came in fragments without a header.
        (Reply, ack(5001, 3001), ESTABLISHED),
    ]);
}

#[test]
fn packed_windows_are_never_smaller_and_an_eighth_larger_at_most() {
    for window in (0..100_000).chain((17..=30).map(|n| 1 << n)).chain([0xffff << 14]) {
        let (code, again) = (pack(window), unpack(pack(window)));
        assert!(code > 0 && again >= window, "{window}: {again}");
        assert!(again <= (window + window / 8).max(9), "{window}: {again}");
    }
}

/// A sender that sends, loses and repeats as TCP does.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many octets, as far as the receiver has room.
    Send(u32),
    /// The oldest unacknowledged octets again.
    Again(u32),
    /// The receiver has got a part of what is missing, and says so.
    Receive(u32),
    /// The receiver says again what it said.
    Repeat,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u32..200_000).prop_map(Step::Send),
        (1u32..3000).prop_map(Step::Again),
        (1u32..400_000).prop_map(Step::Receive),
        Just(Step::Repeat),
    ]
}

proptest! {
    /// Nothing of a sane transfer is dropped, wherever its numbers begin; what is far outside always is.
    #[test]
    fn a_sane_transfer_passes(
        client: u32,
        server: u32,
        steps in prop::collection::vec(step(), 1..200),
        lost in prop::collection::vec(any::<bool>(), 200),
    ) {
        let room = 8192u32 << 7;
        let (first, theirs) = (client.wrapping_add(1), server.wrapping_add(1));
        let mut middle = Middle::new();
        middle.see(Original, syn(client));
        middle.see(Reply, syn_ack(server, first));
        middle.see(Original, ack(first, theirs));
        middle.see(Reply, ack(theirs, first));
        let (mut unacked, mut next, mut received) = (first, first, first);
        for (step, lost) in steps.into_iter().zip(lost) {
            let (direction, segment) = match step {
                Step::Send(len) => {
                    let len = len.min(room - next.wrapping_sub(unacked));
                    let segment = data(next, theirs, len);
                    next = next.wrapping_add(len);
                    (Original, segment)
                }
                Step::Again(len) => (Original, data(unacked, theirs, len.min(next.wrapping_sub(unacked)))),
                Step::Receive(len) => {
                    received = received.wrapping_add(len.min(next.wrapping_sub(received)));
                    (Reply, ack(theirs, received))
                }
                Step::Repeat => (Reply, ack(theirs, received)),
            };
            prop_assert_eq!(middle.see(direction, segment), ESTABLISHED);
            // What is lost, is lost behind us.
            if direction == Reply && !lost {
                unacked = received;
            }
            let far = next.wrapping_add(4 * room);
            prop_assert_eq!(middle.see(Original, data(far, theirs, 1)), OUT_OF_WINDOW);
            prop_assert_eq!(middle.see(Original, rst(far)), BAD_RESET);
            prop_assert_eq!(middle.see(Reply, ack(theirs, next.wrapping_add(1))), OUT_OF_WINDOW);
        }
    }
}

/// The short way says what the long one does, or nothing.
#[test]
fn what_flows_is_what_is_judged() {
    let flags = || prop_oneof![4 => Just(ACKED), 1 => Just(ACKED | SYN_DATA), 1 => 0_u8..16];
    let side = || {
        (0_u32..200_000, 0_u32..200_000, any::<u8>(), 0_u8..16, flags()).prop_map(
            |(end, ack, window, scale, flags)| {
                // Near each other, and around where numbers wrap.
                let near = |offset: u32| offset.wrapping_sub(100_000);
                let rest = u16::from_be_bytes([window, scale << 4 | flags]);
                Side::from_words(near(end), near(ack), rest)
            },
        )
    };
    let segment = (0_u32..200_000, 0_u32..200_000, any::<u16>(), 0_u32..3000, any::<bool>());
    let flowed = std::cell::Cell::new(0);
    proptest!(|(mine in side(), theirs in side(), (seq, ack, window, len, fragment) in segment)| {
        let segment = Segment {
            flags: ACK,
            seq: seq.wrapping_sub(100_000),
            ack: ack.wrapping_sub(100_000),
            window,
            len,
            scale: None,
            is_fragment: fragment,
        };
        for direction in [Original, Reply] {
            let judged = judge(TcpState::Established, direction, &segment, mine, theirs);
            match flows(&segment, mine, theirs) {
                Some(side) => {
                    prop_assert_eq!(judged, Ok(Judgement::Continues(side)));
                    flowed.set(flowed.get() + 1);
                }
                None => {
                    let odd = |side: Side| side.flags & !SYN_DATA != ACKED || !side.is_known();
                    let is_odd = odd(mine) || odd(theirs);
                    prop_assert!(is_odd || !matches!(judged, Ok(Judgement::Continues(_))));
                }
            }
        }
    });
    assert!(flowed.get() > 5, "{} segments were in the middle", flowed.get());
}
