//! One direction of a wire in memory: a ring of buffers, some of which hold frames.
//!
//! Both sides exchange: who takes a frame leaves an empty buffer in its place, who puts one in takes the empty
//! buffer that was there. So nothing is copied or allocated, and a whole train is moved under one lock.

use std::mem::swap;

use crate::frame::Frame;
use crate::io::poll::Signal;
use crate::pool::Pool;
use crate::sync::Mutex;

/// The ring: frames in `len` places from `head` on, the last place followed by the first. All other buffers are
/// empty.
#[derive(Debug)]
pub(super) struct Slots {
    places: Box<[Frame]>,
    head: usize,
    len: usize,
}

impl Slots {
    fn new(capacity: usize) -> Self {
        // Buffers of a wire are used side by side, as those of a pool are.
        Self { places: (0..capacity).map(Frame::colored).collect(), head: 0, len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn room(&self) -> usize {
        self.places.len() - self.len
    }

    /// Moves at most `budget` frames to the end of `batch`, as far as `pool` has buffers for them; returns how
    /// many.
    pub(super) fn take(&mut self, budget: usize, pool: &mut Pool, batch: &mut Vec<Frame>) -> usize {
        let mut taken = 0;
        // In two parts if the ring's end lies between them.
        for _ in 0..2 {
            let run = self.len.min(budget - taken).min(self.places.len() - self.head);
            let full = self.places.get_mut(self.head..self.head + run).unwrap_or_default();
            let moved = pool.exchange(full, batch);
            self.forget(moved);
            taken += moved;
            if moved < run {
                break;
            }
        }
        taken
    }

    /// Puts in the first of `frames`, as many as there is room for, each for an empty buffer that goes to `pool`.
    /// Returns how many.
    pub(super) fn put(&mut self, frames: &mut Vec<Frame>, pool: &mut Pool) -> usize {
        let mut put = 0;
        for _ in 0..2 {
            let tail = self.tail();
            let run = frames.len().min(self.room()).min(self.places.len() - tail);
            let empty = self.places.get_mut(tail..tail + run).unwrap_or_default();
            let moved = pool.exchange_back(empty, frames);
            self.len += moved;
            put += moved;
        }
        put
    }

    /// Exchanges one frame for the empty one in the next place. False: there is no room.
    pub(super) fn put_one(&mut self, frame: &mut Frame) -> bool {
        if self.room() == 0 {
            return false;
        }
        let tail = self.tail();
        let Some(place) = self.places.get_mut(tail) else { return false };
        swap(place, frame);
        self.len += 1;
        true
    }

    /// Copies a frame into the empty one in the next place. False: there is no room.
    pub(super) fn put_copy(&mut self, frame: &Frame) -> bool {
        if self.room() == 0 {
            return false;
        }
        let tail = self.tail();
        let Some(place) = self.places.get_mut(tail) else { return false };
        place.clone_from_frame(frame);
        self.len += 1;
        true
    }

    /// Exchanges an empty buffer for the next frame. False: there is none.
    pub(super) fn take_one(&mut self, empty: &mut Frame) -> bool {
        if self.len == 0 {
            return false;
        }
        let Some(place) = self.places.get_mut(self.head) else { return false };
        swap(place, empty);
        self.forget(1);
        true
    }

    /// The next place to be filled.
    const fn tail(&self) -> usize {
        let tail = self.head + self.len;
        if tail < self.places.len() { tail } else { tail - self.places.len() }
    }

    /// The first `count` frames, no more than there are up to the ring's end, were taken.
    const fn forget(&mut self, count: usize) {
        self.head += count;
        self.len -= count;
        // Of an empty ring the first places are the next, whose buffers the cache still has.
        if self.head == self.places.len() || self.len == 0 {
            self.head = 0;
        }
    }
}

/// One direction.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) slots: Mutex<Slots>,
    /// The buffer in which the end outside writes and reads; whoever holds it is the only one there.
    pub(super) hand: Mutex<Frame>,
    /// Tells the reader. `None`: it looks by itself.
    pub(super) signal: Option<Signal>,
}

impl Lane {
    pub(super) fn new(capacity: usize, signal: Option<Signal>) -> Self {
        Self {
            slots: Mutex::new(Slots::new(capacity)),
            hand: Mutex::new(Frame::colored(capacity)),
            signal,
        }
    }

    pub(super) fn raise(&self) {
        if let Some(signal) = &self.signal {
            signal.raise();
        }
    }

    pub(super) fn clear(&self) {
        if let Some(signal) = &self.signal {
            signal.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: u8) -> Frame {
        let mut frame = Frame::new();
        frame.copy_from(&[number; 60]);
        frame
    }

    /// Trains of every length that go around the ring, of every capacity up to 8, come out as they went in.
    #[test]
    fn trains_keep_their_order_around_the_end_and_no_buffer_is_lost() {
        for capacity in 1..=8 {
            for train in 1..=10usize {
                for budget in 1..=10 {
                    let mut slots = Slots::new(capacity);
                    let mut pool = Pool::new(16);
                    let (mut sent, mut seen) = (0u8, 0u8);
                    while seen < 100 {
                        let mut frames: Vec<_> = (0..train).map(|_| pool.take().unwrap()).collect();
                        for (n, frame) in (sent..).zip(&mut frames) {
                            frame.copy_from(&[n; 60]);
                        }
                        let room = capacity - slots.len();
                        let put = slots.put(&mut frames, &mut pool);
                        assert_eq!((put, frames.len()), (train.min(room), train - put));
                        pool.put_all(&mut frames);
                        sent += u8::try_from(put).unwrap();
                        let mut batch = Vec::new();
                        let there = slots.len();
                        assert_eq!(slots.take(budget, &mut pool, &mut batch), there.min(budget));
                        for frame in batch.drain(..) {
                            assert_eq!(frame.bytes(), [seen; 60]);
                            seen += 1;
                            pool.put(frame);
                        }
                        assert_eq!(pool.available(), 16);
                        assert_eq!(slots.len(), usize::from(sent - seen));
                    }
                }
            }
        }
    }

    #[test]
    fn one_at_a_time_is_the_same_ring() {
        let mut slots = Slots::new(2);
        let mut pool = Pool::new(2);
        let mut hand = frame(1);
        assert!(slots.put_one(&mut hand));
        assert!(hand.is_empty());
        assert_eq!(slots.put(&mut vec![frame(2)], &mut pool), 1);
        hand = frame(3);
        assert!(!slots.put_one(&mut hand));
        assert_eq!(hand.bytes(), [3; 60]);
        hand.reset();
        for expected in [1, 2] {
            assert!(slots.take_one(&mut hand));
            assert_eq!(hand.bytes(), [expected; 60]);
            hand.reset();
        }
        assert!(!slots.take_one(&mut hand));
    }
}
