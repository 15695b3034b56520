//! Per-worker frame buffers. No lock, no allocation after start.

use crate::frame::Frame;

/// A stack of empty frames. The last one returned is the next one handed out: its headers are
/// still in the cache.
#[derive(Debug)]
pub struct Pool {
    free: Vec<Frame>,
    size: usize,
}

impl Pool {
    /// Allocates `size` buffers.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self { free: (0..size).map(Frame::colored).collect(), size }
    }

    /// An empty frame, or `None` when every buffer is in use.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        self.free.pop()
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
        self.free.len()
    }

    /// Buffers in all.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }
}
