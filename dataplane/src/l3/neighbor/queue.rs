//! One worker's frames that wait for neighbors.
//!
//! Limits: [`MAX_WAITING`] a worker, but never more than a quarter of its buffers, and
//! [`MAX_WAITING_FOR_ONE`] for one neighbor, unless the engine is told otherwise. At either the last frame that came in by the port with the
//! most goes for one of a port with fewer, so that whoever asks for everybody, or for one with all its
//! might, keeps nobody from the gateway. None waits for longer than four seconds (`PATIENCE`).

use std::net::IpAddr;
use std::time::Duration;

use super::{ATTEMPTS, Neighbors, RETRANSMIT};
use crate::clock::Timestamp;
use crate::conntrack::ConnId;
use crate::engine::Link;
use crate::frame::Frame;
use crate::packet::types::PortId;
use crate::pipeline::Hold;

/// Frames a worker holds for all unresolved neighbors.
pub const MAX_WAITING: usize = 128;
/// Frames held for one neighbor.
pub const MAX_WAITING_FOR_ONE: usize = 32;
/// How often a worker looks at them: four times from one question to the next.
const LOOK: Duration = Duration::from_millis(250);
/// How long a frame waits at most, whatever becomes of its neighbor's entry meanwhile: others may have it
/// asked for anew again and again. As long as all questions take, each of which may be a look late, and a little.
const PATIENCE: Duration = RETRANSMIT.saturating_mul(ATTEMPTS as u32 + 1);

/// A frame that is ready but for its destination MAC.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) frame: Frame,
    pub(crate) link: Link,
    pub(crate) next_hop: IpAddr,
    pub(crate) fragment: Option<u16>,
    /// See [`Hold`].
    pub(crate) connection: Option<ConnId>,
    /// See [`Hold`].
    pub(crate) is_unanswered: bool,
    /// Until when it waits.
    pub(crate) until: Timestamp,
}

impl Held {
    /// One that begins to wait now.
    pub(crate) fn new(frame: Frame, hold: Hold, now: Timestamp) -> Self {
        let Hold { link, next_hop, fragment, connection, is_unanswered } = hold;
        let until = now + PATIENCE;
        Self { frame, link, next_hop, fragment, connection, is_unanswered, until }
    }

    /// Whether it waits for this neighbor.
    fn is_for(&self, link: Link, next_hop: IpAddr) -> bool {
        self.link == link && self.next_hop == next_hop
    }
}

/// One worker's frames that wait, in the order they came.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    limit: usize,
    /// For one neighbor.
    each: usize,
    frames: Vec<Held>,
    spare: Vec<Held>,
    /// Neighbors that a look has found silent; empty between looks.
    silent: Vec<(Link, IpAddr)>,
    seen: u64,
    checked: Timestamp,
    /// Emptied, so that it is not allocated again.
    tally: Vec<(PortId, usize)>,
}

/// Where one more frame can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// There is room.
    Free,
    /// In the place of this one.
    InsteadOf(usize),
    /// Nowhere.
    None,
}

impl Waiting {
    /// Frames that a worker with so many buffers lets wait, of `most` that it may: three quarters of
    /// the buffers are always there to receive into, the answers that the others wait for among it.
    pub(crate) fn room_beside(buffers: usize, most: usize) -> usize {
        most.min(buffers / 4).max(1)
    }

    /// For a worker with so many buffers; `each` at most for one neighbor.
    pub(crate) fn beside(buffers: usize, most: usize, each: usize) -> Self {
        let limit = Self::room_beside(buffers, most);
        Self {
            limit,
            each: each.max(1),
            frames: Vec::with_capacity(limit),
            spare: Vec::with_capacity(limit),
            silent: Vec::with_capacity(limit),
            ..Self::default()
        }
    }

    /// As many places taken for the same neighbors, by empty frames.
    pub(crate) fn shape(&self) -> Self {
        let mut shape = Self { limit: self.limit, each: self.each, ..Self::default() };
        let taken = self.frames.iter().map(|held| {
            let mut frame = Frame::unused();
            frame.ingress = held.frame.ingress;
            Held { frame, fragment: None, connection: None, is_unanswered: false, ..*held }
        });
        shape.frames.extend(taken);
        shape
    }

    /// Whether a frame that came by this port is among them.
    pub(crate) fn holds_from(&self, port: PortId) -> bool {
        self.frames.iter().any(|held| held.frame.ingress == port)
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether one more frame to this neighbor that came in by this port can wait.
    pub(crate) fn has_room(&mut self, link: Link, next_hop: IpAddr, port: PortId) -> bool {
        self.place(link, next_hop, port) != Place::None
    }

    /// Where one more frame to this neighbor that came in by this port can wait.
    pub(crate) fn place(&mut self, link: Link, next_hop: IpAddr, port: PortId) -> Place {
        let same = |held: &Held| held.is_for(link, next_hop);
        if self.count(link, next_hop) >= self.each {
            return self.heavier_than(port, self.each, same);
        }
        if self.frames.len() >= self.limit {
            return self.heavier_than(port, self.limit, |_| true);
        }
        Place::Free
    }

    /// The last of those frames that came in by the port with the most, if that is still not less than
    /// what `port` has then.
    fn heavier_than(&mut self, port: PortId, all: usize, of: impl Fn(&Held) -> bool) -> Place {
        let by = |port| move |held: &&Held| held.frame.ingress == port;
        let own = self.frames.iter().filter(|held| of(held)).filter(by(port)).count();
        // A flood ends here: nobody has more than who has half.
        if own >= all / 2 {
            return Place::None;
        }
        self.tally.clear();
        for held in self.frames.iter().filter(|held| of(held)) {
            let from = held.frame.ingress;
            match self.tally.iter_mut().find(|(port, _)| *port == from) {
                Some((_, count)) => *count += 1,
                None => self.tally.push((from, 1)),
            }
        }
        let heaviest = self.tally.iter().max_by_key(|(_, count)| *count);
        let Some((from, _)) = heaviest.filter(|(_, count)| *count > own + 1) else {
            return Place::None;
        };
        let last = self.frames.iter().rposition(|held| of(held) && held.frame.ingress == *from);
        last.map_or(Place::None, Place::InsteadOf)
    }

    /// Takes one out that has to make room.
    pub(crate) fn remove(&mut self, index: usize) -> Option<Held> {
        (index < self.frames.len()).then(|| self.frames.remove(index))
    }

    /// Frames that wait for this neighbor.
    pub(crate) fn count(&self, link: Link, next_hop: IpAddr) -> usize {
        self.frames.iter().filter(|held| held.is_for(link, next_hop)).count()
    }

    /// Frames that wait for the neighbor for which the most do.
    pub(crate) fn longest(&self) -> usize {
        let same = |a: &Held, b: &Held| a.is_for(b.link, b.next_hop);
        let first =
            |at: usize, held: &Held| !self.frames.iter().take(at).any(|before| same(before, held));
        let neighbors = self.frames.iter().enumerate().filter(|(at, held)| first(*at, held));
        let counts =
            neighbors.map(|(_, held)| self.frames.iter().filter(|o| same(o, held)).count());
        counts.max().unwrap_or(0)
    }

    /// Whether frames wait for this neighbor.
    #[inline]
    pub(crate) fn holds(&self, link: Link, next_hop: IpAddr) -> bool {
        self.frames.iter().any(|held| held.is_for(link, next_hop))
    }

    pub(crate) fn push(&mut self, held: Held) {
        self.frames.push(held);
    }

    /// A neighbor has not answered: who waits for it has waited long enough, though it may be asked for anew.
    #[cold]
    pub(crate) fn end(&mut self, link: Link, next_hop: IpAddr) {
        for held in self.frames.iter_mut().filter(|held| held.is_for(link, next_hop)) {
            held.until = Timestamp::ZERO;
            self.checked = Timestamp::ZERO;
        }
    }

    /// Whether it is time to look: somebody is known who was not, or a question may be due.
    pub(crate) fn is_due(&mut self, neighbors: &Neighbors, now: Timestamp) -> bool {
        if self.frames.is_empty() {
            return false;
        }
        let changes = neighbors.changes();
        let due = changes != self.seen || now.since(self.checked) >= LOOK;
        if due {
            self.seen = changes;
            self.checked = now;
        }
        due
    }

    /// Takes all frames out to be looked at, with an empty list of neighbors that are silent; put back with
    /// [`Waiting::push`] what must wait on.
    pub(crate) fn take(&mut self) -> (Vec<Held>, Vec<(Link, IpAddr)>) {
        let all = std::mem::replace(&mut self.frames, std::mem::take(&mut self.spare));
        (all, std::mem::take(&mut self.silent))
    }

    /// Gives the lists of [`Waiting::take`] back, so that nothing is allocated again.
    pub(crate) fn recycle(&mut self, mut all: Vec<Held>, mut silent: Vec<(Link, IpAddr)>) {
        all.clear();
        silent.clear();
        (self.spare, self.silent) = (all, silent);
    }
}
