//! What a helper has changed in one direction of a TCP connection, and by how much sequence numbers differ
//! since then.
//!
//! A side's *own* numbers are those that it counts by; the *shown* ones are those that the other side sees.
//! Connection tracking knows own numbers alone. Every change is remembered by its own number until the other
//! side has acknowledged it and well beyond, so that a segment sent again gets what it got before; then only
//! its length is.

use super::ftp::Text;

/// Changes remembered at most. FTP waits for an answer after each of them.
const CHANGES: usize = 4;
/// So far behind what was acknowledged nothing is sent again that anybody takes: much more than the window of
/// a control connection.
const FORGOTTEN: u32 = 1 << 20;

/// Something said, and what stands there instead.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    /// Its first octet, in own numbers.
    pub(super) seq: u32,
    pub(super) old_len: u16,
    pub(super) text: Text,
}

impl Change {
    fn new_len(&self) -> u32 {
        u32::try_from(self.text.as_bytes().len()).unwrap_or(0)
    }

    fn end(&self) -> u32 {
        self.seq.wrapping_add(u32::from(self.old_len))
    }

    /// By how many octets a segment with it grows.
    pub(super) fn growth(&self) -> i64 {
        i64::from(self.new_len()) - i64::from(self.old_len)
    }

    /// By how much what follows moves.
    fn delta(&self) -> u32 {
        self.new_len().wrapping_sub(u32::from(self.old_len))
    }
}

/// Only a part of something that was changed: what would have to stand there cannot be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split;

/// Which end of a change a number within it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Toward {
    Start,
    End,
}

/// One direction.
#[derive(Debug, Clone, Default)]
pub(super) struct Flow {
    /// The first number of data, if the SYN was seen.
    start: Option<u32>,
    /// The last two numbers at which a line began, the later one first.
    lines: [Option<u32>; 2],
    /// The last line that was looked into.
    handled: Option<u32>,
    /// Own number up to which the other side has acknowledged.
    acked: Option<u32>,
    /// Behind the last octet that was changed.
    changed_to: Option<u32>,
    /// The sum of the changes that are not remembered.
    base: u32,
    /// The oldest one first.
    changes: [Option<Change>; CHANGES],
}

impl Flow {
    /// Its first octet has this number.
    pub(super) fn starting_at(seq: u32) -> Self {
        Self { start: Some(seq), lines: [Some(seq), None], ..Self::default() }
    }

    pub(super) fn starts_at(&self, seq: u32) -> bool {
        self.start == Some(seq)
    }

    /// Whether a line begins with this octet that was not looked into.
    pub(super) fn begins_line(&self, seq: u32) -> bool {
        self.lines.contains(&Some(seq)) && self.handled.is_none_or(|last| before(last, seq))
    }

    /// The line that begins with this octet has been looked into.
    pub(super) fn note_handled(&mut self, seq: u32) {
        self.handled = Some(seq);
    }

    /// A line ends before this octet.
    pub(super) fn note_line(&mut self, seq: u32) {
        let [last, _] = self.lines;
        if last.is_none_or(|last| before(last, seq)) {
            self.lines = [Some(seq), last];
        }
    }

    /// The other side has acknowledged up to this own number.
    pub(super) fn note_acked(&mut self, own: u32) {
        if self.acked.is_none_or(|acked| before(acked, own)) {
            self.acked = Some(own);
        }
        while let [Some(oldest), ..] = self.changes
            && before(oldest.end().wrapping_add(FORGOTTEN), own)
        {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let [Some(oldest), ..] = self.changes {
            self.base = self.base.wrapping_add(oldest.delta());
        }
        self.changes.rotate_left(1);
        let [.., last] = &mut self.changes;
        *last = None;
    }

    /// Whether one more change can be remembered, from this octet on. None goes into another.
    pub(super) fn has_room(&mut self, from: u32) -> bool {
        if self.changed_to.is_some_and(|end| before(from, end)) {
            return false;
        }
        if let [Some(oldest), .., Some(_)] = self.changes {
            if self.acked.is_none_or(|acked| before(acked, oldest.end())) {
                return false;
            }
            self.forget_oldest();
        }
        true
    }

    /// Remembers a change behind all others. The caller has asked for room.
    pub(super) fn add(&mut self, change: Change) {
        if let Some(place) = self.changes.iter_mut().find(|place| place.is_none()) {
            self.changed_to = Some(change.end());
            *place = Some(change);
        }
    }

    fn changes(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().flatten()
    }

    /// The changes in so many octets from `seq` on.
    pub(super) fn within(&self, seq: u32, len: u32) -> Result<[Option<Change>; CHANGES], Split> {
        let end = seq.wrapping_add(len);
        let mut within = [None; CHANGES];
        if len == 0 {
            return Ok(within);
        }
        for (place, change) in within.iter_mut().zip(self.changes()) {
            if !before(seq, change.end()) || !before(change.seq, end) {
                continue;
            }
            if before(change.seq, seq) || before(end, change.end()) {
                return Err(Split);
            }
            *place = Some(*change);
        }
        Ok(within)
    }

    /// Whether own and shown numbers are not the same.
    pub(super) fn is_skewed(&self) -> bool {
        self.base != 0 || self.changes().any(|change| change.delta() != 0)
    }

    /// The shown number of an own one.
    pub(super) fn shown(&self, own: u32) -> u32 {
        self.changes()
            .filter(|change| !before(own, change.end()))
            .fold(own.wrapping_add(self.base), |shown, change| shown.wrapping_add(change.delta()))
    }

    /// The own number of a shown one. Within a change there is none: it is the one or the other end.
    pub(super) fn own(&self, shown: u32, toward: Toward) -> u32 {
        let mut own = shown.wrapping_sub(self.base);
        for change in self.changes() {
            if !before(change.seq, own) {
                break;
            }
            if before(own, change.seq.wrapping_add(change.new_len())) {
                return match toward {
                    Toward::Start => change.seq,
                    Toward::End => change.end(),
                };
            }
            own = own.wrapping_sub(change.delta());
        }
        own
    }
}

/// Whether `a` is before `b`, in numbers that wrap (RFC 9293 §3.4).
pub(super) const fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) > u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn change(seq: u32, old_len: u16, new: &str) -> Change {
        let mut text = Text::EMPTY;
        text.write_str(new).unwrap();
        Change { seq, old_len, text }
    }

    /// Longer by three at 100, shorter by four at 200.
    fn skewed() -> Flow {
        let mut flow = Flow::starting_at(10);
        for change in [change(100, 5, "eightful"), change(200, 6, "tw")] {
            assert!(flow.has_room(change.seq));
            flow.add(change);
        }
        flow
    }

    #[test]
    fn numbers_move_behind_each_change() {
        let flow = skewed();
        for (own, shown) in
            [(10, 10), (100, 100), (105, 108), (200, 203), (206, 205), (207, 206), (999, 998)]
        {
            assert_eq!(flow.shown(own), shown, "{own}");
            for toward in [Toward::Start, Toward::End] {
                assert_eq!(flow.own(shown, toward), own, "{shown}");
            }
        }
        assert_eq!((flow.own(104, Toward::Start), flow.own(104, Toward::End)), (100, 105));
        assert_eq!((flow.own(204, Toward::Start), flow.own(204, Toward::End)), (200, 206));
    }

    #[test]
    fn a_change_is_within_a_segment_or_not_or_split() {
        let flow = skewed();
        let count = |seq, len| flow.within(seq, len).map(|all| all.into_iter().flatten().count());
        for (seq, len, expected) in [
            (90, 10, Ok(0)),
            (90, 11, Err(Split)),
            (90, 15, Ok(1)),
            (100, 5, Ok(1)),
            (101, 4, Err(Split)),
            (105, 95, Ok(0)),
            (10, 500, Ok(2)),
            (100, 0, Ok(0)),
            (102, 0, Ok(0)),
        ] {
            assert_eq!(count(seq, len), expected, "{seq} {len}");
        }
    }

    #[test]
    fn a_line_is_looked_into_once() {
        let mut flow = Flow::starting_at(10);
        assert!(flow.begins_line(10) && !flow.begins_line(11));
        flow.note_handled(10);
        flow.note_line(30);
        assert!(!flow.begins_line(10) && flow.begins_line(30));
        // An old segment again says nothing new.
        flow.note_line(20);
        flow.note_line(40);
        assert!(flow.begins_line(30) && flow.begins_line(40) && !flow.begins_line(20));
        flow.note_handled(40);
        assert!(!flow.begins_line(30));
    }

    #[test]
    fn no_change_goes_into_another() {
        let mut flow = skewed();
        for (from, has) in [(99, false), (150, false), (205, false), (206, true), (300, true)] {
            assert_eq!(flow.has_room(from), has, "{from}");
        }
        // Nor into one that is not remembered any more.
        flow.note_acked(206 + FORGOTTEN + 1);
        assert_eq!(
            (flow.changes().count(), flow.has_room(205), flow.has_room(206)),
            (0, false, true)
        );
    }

    #[test]
    fn what_was_not_acknowledged_is_not_forgotten() {
        let mut flow = Flow::starting_at(0);
        for n in 0..4 {
            assert!(flow.has_room(n * 100));
            flow.add(change(n * 100, 1, "ab"));
        }
        assert!(!flow.has_room(400));
        flow.note_acked(1);
        assert!(flow.has_room(400));
        flow.add(change(400, 1, "ab"));
        assert_eq!((flow.shown(400), flow.shown(401)), (404, 406));
        assert_eq!(flow.within(0, 1).unwrap().into_iter().flatten().count(), 0);
        flow.note_acked(401);
        // What is far behind goes by itself, and the numbers stay.
        let far = 401 + FORGOTTEN + 1;
        let shown = flow.shown(far);
        flow.note_acked(far);
        assert_eq!((flow.changes().count(), flow.shown(far)), (0, shown));
        assert_eq!(flow.own(shown, Toward::Start), far);
    }

    proptest! {
        #[test]
        fn every_octet_that_is_left_has_one_number(
            start: u32,
            gaps in prop::collection::vec((0..50u32, 1..20u16, "[a-z]{1,30}", 0..40u32), 0..4),
        ) {
            let mut flow = Flow::starting_at(start);
            let mut next = start;
            let mut own = Vec::new();
            for (gap, old_len, text, back) in &gaps {
                own.extend((0..*gap).map(|n| next.wrapping_add(n)));
                next = next.wrapping_add(*gap);
                prop_assert!(flow.has_room(next));
                flow.add(change(next, *old_len, text));
                // Whatever begins before the end of this one finds no room.
                let inside = next.wrapping_add(u32::from(*old_len)).wrapping_sub(*back + 1);
                prop_assert!(!flow.has_room(inside));
                next = next.wrapping_add(u32::from(*old_len));
            }
            own.extend((0..50).map(|n| next.wrapping_add(n)));
            let shown: Vec<u32> = own.iter().map(|own| flow.shown(*own)).collect();
            for (own, shown) in own.iter().zip(&shown) {
                prop_assert_eq!(flow.own(*shown, Toward::Start), *own);
                prop_assert_eq!(flow.own(*shown, Toward::End), *own);
            }
            let mut sorted = shown.clone();
            sorted.sort_by_key(|shown| shown.wrapping_sub(start));
            sorted.dedup();
            prop_assert_eq!(sorted, shown);
        }
    }
}
