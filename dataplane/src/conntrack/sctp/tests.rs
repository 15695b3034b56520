use Direction::{Original, Reply};
use SctpState::{
    Closed, CookieEchoed, CookieWait, Established, HeartbeatSent, ShutdownAckSent,
    ShutdownReceived, ShutdownSent,
};

use super::*;

/// Tags of the original side, of the reply side, and of later associations.
const A: u32 = 0xaaaa_0001;
const B: u32 = 0xbbbb_0001;
const A2: u32 = 0xaaaa_0002;
const B2: u32 = 0xbbbb_0002;
const WRONG: u32 = 77;

/// A packet with chunks of these types; `init` is the tag that an INIT or INIT ACK asks for.
fn packet(tag: u32, kinds: &[u8], init: u32) -> Chunks {
    reflected(tag, kinds, init, false)
}

fn reflected(tag: u32, kinds: &[u8], init: u32, is_reflected: bool) -> Chunks {
    let mut bytes = vec![0; 12];
    bytes[4..8].copy_from_slice(&tag.to_be_bytes());
    for kind in kinds {
        bytes.extend([*kind, u8::from(is_reflected), 0, 20]);
        bytes.extend(init.to_be_bytes());
        bytes.extend([0; 12]);
    }
    Chunks::read(&bytes, false).unwrap()
}

/// An association in the middle: its state, and what its sides have said.
#[derive(Debug, Clone, Copy)]
struct Middle {
    state: SctpState,
    sides: [Peer; 2],
}

impl Middle {
    fn begun(chunks: &Chunks) -> Self {
        let (state, said) = SctpState::first(chunks).unwrap();
        Self { state, sides: [said, Peer::default()] }
    }

    /// After INIT, INIT ACK, COOKIE ECHO and COOKIE ACK.
    fn open() -> Self {
        let mut middle = Self::begun(&packet(0, &[kind::INIT], A));
        middle.passes(Reply, packet(A, &[kind::INIT_ACK], B), CookieWait);
        middle.passes(Original, packet(B, &[kind::COOKIE_ECHO], 0), CookieEchoed);
        middle.passes(Reply, packet(A, &[kind::COOKIE_ACK], 0), Established);
        middle
    }

    fn judge(&self, direction: Direction, chunks: &Chunks) -> Result<Judgement, Unbelievable> {
        let [mine, theirs] = [direction, direction.reversed()].map(|d| self.sides[d.index()]);
        judge(self.state, direction, chunks, mine, theirs)
    }

    #[track_caller]
    fn passes(&mut self, direction: Direction, chunks: Chunks, state: SctpState) -> bool {
        let judged = self.judge(direction, &chunks).unwrap();
        assert_eq!(judged.state, state);
        self.state = state;
        // As the table keeps it.
        self.sides[direction.index()] = Side::from(judged.said).into();
        judged.revives
    }

    #[track_caller]
    fn refuses(&self, direction: Direction, chunks: Chunks, why: Unbelievable) {
        assert_eq!(self.judge(direction, &chunks), Err(why));
    }

    /// Data passes with these tags and no others.
    #[track_caller]
    fn speaks(&mut self, to_reply: u32, to_original: u32) {
        let state = self.state;
        self.passes(Original, packet(to_reply, &[kind::DATA], 0), state);
        self.passes(Reply, packet(to_original, &[kind::DATA], 0), state);
        for direction in [Original, Reply] {
            self.refuses(direction, packet(WRONG, &[kind::DATA], 0), Unbelievable::Tag);
            self.refuses(direction, packet(0, &[kind::DATA], 0), Unbelievable::Tag);
        }
        self.refuses(Original, packet(to_original, &[kind::DATA], 0), Unbelievable::Tag);
    }
}

#[test]
fn an_association_is_opened_and_shut_down() {
    let mut middle = Middle::open();
    middle.speaks(B, A);
    let shutdown = |tag| packet(tag, &[kind::SHUTDOWN], 0);
    middle.passes(Original, shutdown(B), ShutdownSent);
    middle.passes(Reply, packet(A, &[kind::SHUTDOWN_ACK], 0), ShutdownAckSent);
    middle.passes(Original, packet(B, &[kind::SHUTDOWN_COMPLETE], 0), Closed);
    let mut middle = Middle::open();
    middle.passes(Reply, shutdown(A), ShutdownReceived);
    middle.passes(Original, packet(B, &[kind::SHUTDOWN_ACK], 0), ShutdownAckSent);
    // One who knows of none any more sends the tag back (RFC 9260 §8.4).
    middle.passes(Reply, reflected(B, &[kind::SHUTDOWN_COMPLETE], 0, true), Closed);
}

#[test]
fn only_an_init_or_a_heartbeat_begins() {
    for (chunks, first) in [
        (packet(0, &[kind::INIT], A), Some(Closed)),
        (packet(9, &[kind::INIT], A), None),
        (packet(9, &[kind::HEARTBEAT], 0), Some(HeartbeatSent)),
        (packet(0, &[kind::HEARTBEAT], 0), None),
        (packet(9, &[kind::HEARTBEAT, kind::DATA], 0), None),
    ] {
        assert_eq!(SctpState::first(&chunks).map(|(state, _)| state), first, "{chunks:?}");
        let mut first_fragment = chunks;
        first_fragment.is_fragment = true;
        assert_eq!(SctpState::first(&first_fragment), None);
    }
    for kind in [
        kind::DATA,
        kind::INIT_ACK,
        kind::HEARTBEAT_ACK,
        kind::ABORT,
        kind::SHUTDOWN,
        kind::SHUTDOWN_ACK,
        kind::ERROR,
        kind::COOKIE_ECHO,
        kind::COOKIE_ACK,
        kind::SHUTDOWN_COMPLETE,
    ] {
        assert_eq!(SctpState::first(&packet(9, &[kind], A)), None, "{kind}");
    }
}

#[test]
fn tags_are_checked_before_anything_changes() {
    let middle = Middle::open();
    for direction in [Original, Reply] {
        for kinds in [
            &[kind::ABORT][..],
            &[kind::SHUTDOWN],
            &[kind::SHUTDOWN_ACK],
            &[kind::SHUTDOWN_COMPLETE],
            &[kind::COOKIE_ECHO],
            &[kind::COOKIE_ACK],
            &[kind::ERROR],
            &[kind::INIT_ACK],
            &[kind::HEARTBEAT_ACK],
            &[kind::HEARTBEAT, kind::DATA],
        ] {
            middle.refuses(direction, packet(WRONG, kinds, 5), Unbelievable::Tag);
        }
        for kind in [kind::ABORT, kind::SHUTDOWN_COMPLETE] {
            middle.refuses(direction, reflected(WRONG, &[kind], 0, true), Unbelievable::Tag);
        }
        middle.refuses(direction, packet(WRONG, &[kind::INIT], 5), Unbelievable::Tag);
    }
    // The sender's own tag counts where the flag says so, the receiver's where it does not.
    middle.refuses(Reply, packet(B, &[kind::ABORT], 0), Unbelievable::Tag);
    middle.refuses(Reply, reflected(A, &[kind::ABORT], 0, true), Unbelievable::Tag);
    for chunks in [packet(A, &[kind::ABORT], 0), reflected(B, &[kind::ABORT], 0, true)] {
        let mut middle = middle;
        middle.passes(Reply, chunks, Closed);
    }
}

#[test]
fn a_refused_init_closes() {
    let mut middle = Middle::begun(&packet(0, &[kind::INIT], A));
    middle.refuses(Reply, packet(WRONG, &[kind::ABORT], 0), Unbelievable::Tag);
    middle.passes(Reply, packet(A, &[kind::ABORT], 0), Closed);
    assert!(!middle.passes(Original, packet(0, &[kind::INIT], A), Closed), "no INIT revives it");
    // What nobody has asked for is no tag.
    middle.refuses(Original, packet(0, &[kind::DATA], 0), Unbelievable::Tag);
}

#[test]
fn a_stale_cookie_closes() {
    let mut middle = Middle::begun(&packet(0, &[kind::INIT], A));
    middle.passes(Reply, packet(A, &[kind::INIT_ACK], B), CookieWait);
    middle.passes(Original, packet(B, &[kind::COOKIE_ECHO, kind::DATA], 0), CookieEchoed);
    middle.passes(Reply, packet(A, &[kind::ERROR], 0), Closed);
}

/// Both sides begin, and the INIT ACK of the first one comes too late: scenarios A and B of Linux'
/// `conntrack_sctp_collision.sh`.
#[test]
fn a_late_init_ack_of_a_collision_changes_no_tag() {
    let mut both = Middle::begun(&packet(0, &[kind::INIT], A));
    both.passes(Reply, packet(0, &[kind::INIT], B), Closed);
    both.passes(Original, packet(B, &[kind::INIT_ACK], A), Closed);
    // Until the peer has got its own INIT ACK.
    both.refuses(Reply, packet(A, &[kind::INIT_ACK], B2), Unbelievable::Tag);
    // Until the peer has completed its own handshake.
    both.passes(Reply, packet(A, &[kind::COOKIE_ECHO], 0), Closed);
    both.passes(Original, packet(B, &[kind::COOKIE_ACK], 0), Closed);
    both.refuses(Reply, packet(A, &[kind::INIT_ACK], B2), Unbelievable::Tag);
    both.speaks(B, A);
}

#[test]
fn a_server_that_answers_an_init_twice_is_understood_either_way() {
    let mut middle = Middle::begun(&packet(0, &[kind::INIT], A));
    middle.passes(Original, packet(0, &[kind::INIT], A), Closed);
    middle.passes(Reply, packet(A, &[kind::INIT_ACK], B), CookieWait);
    middle.passes(Reply, packet(A, &[kind::INIT_ACK], B2), CookieWait);
    for cookie in [B, B2] {
        let mut middle = middle;
        middle.passes(Original, packet(cookie, &[kind::COOKIE_ECHO], 0), CookieEchoed);
        middle.passes(Reply, packet(A, &[kind::COOKIE_ACK], 0), Established);
        middle.passes(Original, packet(cookie, &[kind::DATA], 0), Established);
        // A third one comes when the handshake is over.
        middle.refuses(Reply, packet(A, &[kind::INIT_ACK], WRONG), Unbelievable::Tag);
    }
}

#[test]
fn a_peer_begins_anew() {
    let mut middle = Middle::open();
    middle.passes(Original, packet(0, &[kind::INIT], A2), Established);
    middle.passes(Reply, packet(A2, &[kind::INIT_ACK], B2), Established);
    middle.passes(Original, packet(B2, &[kind::COOKIE_ECHO], 0), Established);
    middle.passes(Reply, packet(A2, &[kind::COOKIE_ACK], 0), Established);
    middle.speaks(B2, A2);
    middle.refuses(Original, packet(B, &[kind::DATA], 0), Unbelievable::Tag);
    middle.refuses(Reply, packet(A, &[kind::DATA], 0), Unbelievable::Tag);
}

/// Who knows addresses and ports, and no tag.
#[test]
fn an_init_that_anybody_can_send_does_no_harm() {
    for direction in [Original, Reply] {
        let mut middle = Middle::open();
        for tag in 1..50 {
            middle.passes(direction, packet(0, &[kind::INIT], tag), Established);
        }
        // The server answers, and the client does not know what it is about.
        if matches!(direction, Original) {
            middle.passes(Reply, packet(49, &[kind::INIT_ACK], B2), Established);
            middle.passes(Reply, packet(49, &[kind::INIT_ACK], WRONG - 1), Established);
        }
        middle.passes(Original, packet(B, &[kind::DATA], 0), Established);
        middle.passes(Reply, packet(A, &[kind::DATA], 0), Established);
        middle.passes(Original, packet(B, &[kind::SHUTDOWN], 0), ShutdownSent);
    }
}

#[test]
fn another_way_begins_with_heartbeats() {
    let mut way = Middle::begun(&packet(B, &[kind::HEARTBEAT], 0));
    way.refuses(Reply, packet(A, &[kind::INIT], 5), Unbelievable::Tag);
    way.refuses(Original, packet(WRONG, &[kind::DATA], 0), Unbelievable::Tag);
    way.refuses(Reply, packet(A, &[kind::DATA], 0), Unbelievable::Tag);
    let mut unknown = way;
    unknown.passes(Reply, reflected(B, &[kind::ABORT], 0, true), Closed);
    way.passes(Reply, packet(A, &[kind::HEARTBEAT_ACK], 0), Established);
    way.speaks(B, A);
    way.passes(Reply, packet(A, &[kind::HEARTBEAT], 0), Established);
    way.passes(Original, packet(B, &[kind::HEARTBEAT_ACK], 0), Established);
    way.passes(Original, packet(B, &[kind::SHUTDOWN], 0), ShutdownSent);
}

/// A peer began anew by another way: this one hears of it by heartbeats.
#[test]
fn heartbeats_of_a_newer_association_are_believed_once_they_are_answered() {
    let mut middle = Middle::open();
    assert!(!middle.passes(Original, packet(B2, &[kind::HEARTBEAT], 0), Established));
    middle.speaks(B, A);
    middle.refuses(Original, packet(A2, &[kind::HEARTBEAT_ACK], 0), Unbelievable::Tag);
    assert!(middle.passes(Reply, packet(A2, &[kind::HEARTBEAT_ACK], 0), Established));
    assert!(middle.passes(Original, packet(B2, &[kind::HEARTBEAT], 0), Established));
    middle.passes(Original, packet(B2, &[kind::DATA], 0), Established);
    middle.passes(Reply, packet(A2, &[kind::DATA], 0), Established);
    middle.refuses(Original, packet(B, &[kind::DATA], 0), Unbelievable::Tag);
    // A right one takes the doubt away.
    let mut middle = Middle::open();
    middle.passes(Original, packet(B2, &[kind::HEARTBEAT], 0), Established);
    middle.passes(Original, packet(B, &[kind::HEARTBEAT], 0), Established);
    middle.refuses(Reply, packet(A2, &[kind::HEARTBEAT_ACK], 0), Unbelievable::Tag);
}

#[test]
fn a_shutdown_ack_of_an_earlier_association_passes_and_changes_nothing() {
    let mut middle = Middle::begun(&packet(0, &[kind::INIT], A));
    assert!(!middle.passes(Reply, packet(WRONG, &[kind::SHUTDOWN_ACK], 0), Closed));
    middle.passes(Reply, packet(A, &[kind::INIT_ACK], B), CookieWait);
}

#[test]
fn numbers_and_words_round_trip() {
    for n in 0..=255 {
        if let Some(state) = SctpState::from_u8(n) {
            assert_eq!(state as u8, n);
        }
    }
    let peer =
        Peer { tag: u32::MAX, offered: 7, flags: KNOWN | OFFERED | INIT | SPOKEN | DOUBTED | TOOK };
    assert_eq!(Peer::from(Side::from(peer)), peer);
}
