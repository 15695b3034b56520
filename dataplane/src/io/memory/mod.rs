//! A port whose other end is in this process: for tests and benches.
//!
//! Two bounded rings each way: one with frames, one with the empty buffers that go back. The port
//! exchanges a full buffer for an empty one of the pool, so nothing is copied or allocated on its
//! side. An eventfd tells the worker that there is something, once per burst; another one tells
//! the peer. Frames that find the ring full are counted as `full`, as with a device.
//!
//! Memory: `2 * capacity` buffers of [`crate::frame::BUFFER_LEN`], touched as they are used.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::poll::Signal;
use super::vnet_hdr::VnetHdr;
use super::{Gone, Offloads, Port, PortHalves, PortRx, PortTx, TxReport};
use crate::frame::Frame;
use crate::pool::Pool;

/// One direction.
#[derive(Debug)]
struct Lane {
    full: ArrayQueue<Frame>,
    empty: ArrayQueue<Frame>,
    signal: Signal,
}

impl Lane {
    fn new(capacity: usize) -> io::Result<Self> {
        let empty = ArrayQueue::new(capacity);
        for _ in 0..capacity {
            let _ = empty.push(Frame::new());
        }
        Ok(Self { full: ArrayQueue::new(capacity), empty, signal: Signal::new()? })
    }

    /// Puts `frame` in and returns an empty buffer for it, or `frame` itself when the lane is full.
    fn exchange(&self, frame: Frame) -> Result<Frame, Frame> {
        let Some(empty) = self.empty.pop() else { return Err(frame) };
        match self.full.push(frame) {
            Ok(()) => Ok(empty),
            // Cannot be: there are never more buffers than places. No buffer is lost anyhow.
            Err(frame) => {
                let _ = self.empty.push(empty);
                Err(frame)
            }
        }
    }

    fn put_back(&self, mut frame: Frame) {
        frame.reset();
        // Cannot fail: there are never more buffers than places.
        let _ = self.empty.push(frame);
    }
}

#[derive(Debug)]
struct Wire {
    to_port: Lane,
    to_peer: Lane,
    removed: AtomicBool,
    down: AtomicBool,
}

/// The engine's end.
#[derive(Debug)]
pub struct MemoryPort {
    wire: Arc<Wire>,
    offloads: Offloads,
}

/// The test's end. Dropping it leaves the port as it is, with nobody reading.
#[derive(Debug, Clone)]
pub struct MemoryPeer {
    wire: Arc<Wire>,
}

impl MemoryPort {
    /// Both ends of a wire that holds `capacity` frames (at least 1) each way. The port takes all
    /// offloads.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn pair(capacity: usize) -> io::Result<(Self, MemoryPeer)> {
        Self::pair_with(capacity, Offloads::ALL)
    }

    /// As [`MemoryPort::pair`], for a port that takes `offloads` only.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn pair_with(capacity: usize, offloads: Offloads) -> io::Result<(Self, MemoryPeer)> {
        let capacity = capacity.max(1);
        let wire = Arc::new(Wire {
            to_port: Lane::new(capacity)?,
            to_peer: Lane::new(capacity)?,
            removed: AtomicBool::new(false),
            down: AtomicBool::new(false),
        });
        Ok((Self { wire: Arc::clone(&wire), offloads }, MemoryPeer { wire }))
    }
}

impl Port for MemoryPort {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn split(self: Box<Self>, workers: usize) -> io::Result<PortHalves> {
        let half = || Box::new(MemoryTx { wire: Arc::clone(&self.wire) }) as Box<dyn PortTx>;
        let tx = (0..workers).map(|_| half()).collect();
        Ok(PortHalves { rx: Box::new(MemoryRx { wire: self.wire }), tx })
    }
}

#[derive(Debug)]
struct MemoryRx {
    wire: Arc<Wire>,
}

impl MemoryRx {
    fn take(&self, budget: usize, pool: &mut Pool, batch: &mut Vec<Frame>) -> usize {
        let lane = &self.wire.to_port;
        let mut count = 0;
        while count < budget {
            let Some(mut empty) = pool.take() else { break };
            let Some(mut frame) = lane.full.pop() else {
                pool.put(empty);
                break;
            };
            // The frame's buffer stays with the engine, so the ingress it had is the engine's.
            std::mem::swap(&mut frame.ingress, &mut empty.ingress);
            lane.put_back(empty);
            batch.push(frame);
            count += 1;
        }
        count
    }
}

impl PortRx for MemoryRx {
    fn rx(
        &mut self,
        budget: usize,
        pool: &mut Pool,
        batch: &mut Vec<Frame>,
    ) -> Result<usize, Gone> {
        if self.wire.removed.load(Ordering::Acquire) {
            return Err(Gone);
        }
        let lane = &self.wire.to_port;
        let mut count = self.take(budget, pool, batch);
        if lane.full.is_empty() {
            lane.signal.clear();
            count += self.take(budget - count, pool, batch);
            // What did not fit, and a removal that came between, must be told again.
            if !lane.full.is_empty() || self.wire.removed.load(Ordering::SeqCst) {
                lane.signal.raise();
            }
        }
        Ok(count)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wire.to_port.signal.as_fd())
    }
}

#[derive(Debug)]
struct MemoryTx {
    wire: Arc<Wire>,
}

impl MemoryTx {
    fn is_down(&self) -> bool {
        self.wire.removed.load(Ordering::Acquire) || self.wire.down.load(Ordering::Acquire)
    }
}

impl PortTx for MemoryTx {
    fn tx(&mut self, frames: &mut Vec<Frame>, pool: &mut Pool) -> TxReport {
        let mut report = TxReport::default();
        let down = self.is_down();
        for frame in frames.drain(..) {
            let len = frame.len() as u64;
            if down {
                report.down += 1;
                pool.put(frame);
                continue;
            }
            match self.wire.to_peer.exchange(frame) {
                Ok(empty) => {
                    report.sent += 1;
                    report.sent_bytes += len;
                    pool.put(empty);
                }
                Err(frame) => {
                    report.full += 1;
                    pool.put(frame);
                }
            }
        }
        if report.sent > 0 {
            self.wire.to_peer.signal.raise();
        }
        report
    }

    fn tx_copy(&mut self, frame: &mut Frame, _pool: &mut Pool) -> TxReport {
        if self.is_down() {
            return TxReport { down: 1, ..TxReport::default() };
        }
        let lane = &self.wire.to_peer;
        let Some(mut copy) = lane.empty.pop() else {
            return TxReport { full: 1, ..TxReport::default() };
        };
        copy.clone_from_frame(frame);
        if let Err(copy) = lane.full.push(copy) {
            lane.put_back(copy);
            return TxReport { full: 1, ..TxReport::default() };
        }
        lane.signal.raise();
        TxReport { sent: 1, sent_bytes: frame.len() as u64, ..TxReport::default() }
    }
}

impl MemoryPeer {
    /// Gives the port a frame, as the device's other end would. False: the wire is full.
    pub fn send(&self, bytes: &[u8], vnet: VnetHdr) -> bool {
        self.send_with(|frame| {
            frame.copy_from(bytes);
            frame.vnet = vnet;
        })
    }

    /// As [`MemoryPeer::send`], without a copy: `fill` writes the frame into an empty buffer.
    pub fn send_with(&self, fill: impl FnOnce(&mut Frame)) -> bool {
        let lane = &self.wire.to_port;
        let Some(mut frame) = lane.empty.pop() else { return false };
        fill(&mut frame);
        let sent = lane.full.push(frame).is_ok();
        lane.signal.raise();
        sent
    }

    /// The next frame that the port sent, if there is one.
    #[must_use]
    pub fn recv(&self) -> Option<(Vec<u8>, VnetHdr)> {
        self.recv_with(|frame| (frame.bytes().to_vec(), frame.vnet))
    }

    /// As [`MemoryPeer::recv`], without a copy: `look` sees the frame in its buffer.
    pub fn recv_with<T>(&self, look: impl FnOnce(&Frame) -> T) -> Option<T> {
        let lane = &self.wire.to_peer;
        let frame = lane.full.pop().or_else(|| {
            lane.signal.clear();
            lane.full.pop()
        })?;
        let seen = look(&frame);
        lane.put_back(frame);
        // The second look may have left frames behind that nobody tells of any more.
        if !lane.full.is_empty() {
            lane.signal.raise();
        }
        Some(seen)
    }

    /// As [`MemoryPeer::recv`], waiting for a frame for at most `timeout`.
    #[must_use]
    pub fn recv_timeout(&self, timeout: Duration) -> Option<(Vec<u8>, VnetHdr)> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(received) = self.recv() {
                return Some(received);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let fd = PollFd::new(self.wire.to_peer.signal.as_fd(), PollFlags::POLLIN);
            // Interrupted or not: the loop looks at the ring and the clock again.
            let _ = poll(&mut [fd], left);
        }
    }

    /// Frames on their way to the port.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.wire.to_port.full.len()
    }

    /// Sets the device down or up: down, it takes no frame.
    pub fn set_down(&self, down: bool) {
        self.wire.down.store(down, Ordering::Release);
    }

    /// Removes the device under the engine: from now on the port reports [`Gone`].
    pub fn remove(&self) {
        self.wire.removed.store(true, Ordering::SeqCst);
        self.wire.to_port.signal.raise();
    }
}

#[cfg(test)]
mod tests;
