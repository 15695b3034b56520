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
    pub fn put(&mut self, mut frame: Frame) {
        frame.reset();
        self.free.push(frame);
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
