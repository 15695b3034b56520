//! Per-worker frame buffers. No lock, no allocation after start.

use crate::frame::Frame;

/// A stack of empty frames. The last one returned is the next one handed out: its headers are
/// still in the cache.
#[derive(Debug)]
pub struct Pool {
    free: Vec<Frame>,
    size: usize,
    /// How many are made when they are wanted.
    unmade: usize,
    ran_out: bool,
}

impl Pool {
    /// Allocates `size` buffers.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self { free: (0..size).map(Frame::colored).collect(), size, unmade: 0, ran_out: false }
    }

    /// A pool of as many buffers, each made when it is wanted: for few frames, away from workers.
    pub(crate) const fn on_demand(size: usize) -> Self {
        Self { free: Vec::new(), size, unmade: size, ran_out: false }
    }

    /// An empty frame, or `None` when every buffer is in use.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        let frame = self.free.pop();
        if frame.is_none() { self.make() } else { frame }
    }

    #[cold]
    fn make(&mut self) -> Option<Frame> {
        match self.unmade.checked_sub(1) {
            Some(left) => {
                self.unmade = left;
                Some(Frame::colored(left))
            }
            None => {
                self.ran_out = true;
                None
            }
        }
    }

    /// Gives a frame back.
    #[inline]
    pub fn put(&mut self, frame: Frame) {
        self.free.push(frame);
        // In its place: what is written in parts cannot be moved on as a whole at once.
        if let Some(frame) = self.free.last_mut() {
            frame.reset();
        }
    }

    /// Gives all of them back.
    #[inline]
    pub fn put_all(&mut self, frames: &mut Vec<Frame>) {
        let from = self.free.len();
        self.free.append(frames);
        self.free.iter_mut().skip(from).for_each(Frame::reset);
    }

    /// Moves the frames of `full` to the end of `batch` and leaves an empty one in the place of each, as
    /// far as there are any; returns how many.
    #[inline]
    pub fn exchange(&mut self, full: &mut [Frame], batch: &mut Vec<Frame>) -> usize {
        while self.unmade > 0
            && self.free.len() < full.len()
            && let Some(frame) = self.make()
        {
            self.free.push(frame);
        }
        let from = self.free.len().saturating_sub(full.len());
        let moved = self.free.len() - from;
        self.ran_out |= moved < full.len();
        swap_first(full, self.free.get_mut(from..).unwrap_or_default());
        batch.extend(self.free.drain(from..));
        moved
    }

    /// The other way round: leaves the first of `frames` in the places of empty ones, in order, and takes those;
    /// returns how many.
    #[inline]
    pub fn exchange_back(&mut self, empty: &mut [Frame], frames: &mut Vec<Frame>) -> usize {
        let moved = empty.len().min(frames.len());
        swap_first(empty, frames);
        self.free.extend(frames.drain(..moved));
        moved
    }

    /// Buffers not in use.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len() + self.unmade
    }

    /// Buffers that have been in use at most since the last look, as far as that is known without
    /// counting them one by one: those that are, or all if somebody has found none.
    pub(crate) fn most_used(&mut self) -> usize {
        if std::mem::take(&mut self.ran_out) { self.size } else { self.size - self.available() }
    }

    /// Buffers in all.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }
}

/// Exchanges the first frames of both, as many as both have. As wholes: each by itself through an iterator that
/// gives them away is taken apart on its way (20 ns a frame).
#[inline]
fn swap_first(these: &mut [Frame], those: &mut [Frame]) {
    let count = these.len().min(those.len());
    if let (Some(these), Some(those)) = (these.get_mut(..count), those.get_mut(..count)) {
        these.swap_with_slice(those);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::vnet_hdr::VnetHdr;

    fn frame(first: u8) -> Frame {
        let mut frame = Frame::new();
        frame.copy_from(&[first; 60]);
        frame.vnet = VnetHdr { flags: 1, ..VnetHdr::default() };
        frame
    }

    #[test]
    fn full_buffers_are_exchanged_for_empty_ones_in_order_as_far_as_there_are_any() {
        let mut pool = Pool::new(2);
        let mut full = vec![frame(1), frame(2), frame(3)];
        let mut batch = vec![frame(0)];
        // Of three, the first two.
        assert_eq!(pool.exchange(&mut full, &mut batch), 2);
        let firsts: Vec<_> = batch.iter().map(|frame| frame.bytes()[0]).collect();
        assert_eq!(firsts, [0, 1, 2]);
        assert_eq!(full.iter().map(Frame::len).collect::<Vec<_>>(), [0, 0, 60]);
        assert_eq!((pool.available(), pool.most_used()), (0, 2));
        assert_eq!(pool.exchange(&mut full, &mut batch), 0);
    }

    #[test]
    fn buffers_are_made_for_a_train_too() {
        let mut pool = Pool::on_demand(2);
        let (mut full, mut batch) = (vec![frame(1), frame(2), frame(3)], Vec::new());
        assert_eq!(pool.exchange(&mut full, &mut batch), 2);
        assert_eq!((pool.available(), batch.len(), pool.most_used()), (0, 2, 2));
        pool.put_all(&mut batch);
        assert_eq!((pool.available(), pool.exchange(&mut full[..1], &mut batch)), (2, 1));
    }

    #[test]
    fn frames_are_left_in_the_places_of_empty_ones_as_far_as_there_are_any() {
        let mut pool = Pool::new(0);
        let mut places = [Frame::new(), Frame::new()];
        let mut frames = vec![frame(1), frame(2), frame(3)];
        assert_eq!(pool.exchange_back(&mut places, &mut frames), 2);
        assert_eq!(places.each_ref().map(|frame| frame.bytes()[0]), [1, 2]);
        assert_eq!(frames.iter().map(|frame| frame.bytes()[0]).collect::<Vec<_>>(), [3]);
        assert_eq!(pool.exchange_back(&mut [Frame::new()], &mut frames), 1);
        assert_eq!(pool.exchange_back(&mut [Frame::new()], &mut frames), 0);
        assert_eq!(pool.available(), 3);
        while let Some(frame) = pool.take() {
            assert!(frame.is_empty());
        }
    }

    #[test]
    fn what_comes_back_is_empty() {
        let mut pool = Pool::new(0);
        let mut frames = vec![frame(1), frame(2)];
        pool.put_all(&mut frames);
        pool.put(frame(3));
        assert!(frames.is_empty());
        assert_eq!(pool.available(), 3);
        while let Some(frame) = pool.take() {
            assert!(frame.is_empty());
            assert_eq!(frame.vnet, VnetHdr::default());
        }
    }
}
