//! A port whose other end is in this process: for tests and benches.
//!
//! A bounded ring of buffers each way (`lane`). Trains are moved as a whole, and the port exchanges full buffers
//! for empty ones of the pool, so nothing is copied or allocated on its side. An eventfd tells the worker that
//! there is something, once per burst; another one tells the peer. A polled port has neither: its worker looks in
//! every round. Frames that find the ring full are counted as `full`, as with a device.
//!
//! Memory: `2 * capacity` buffers of [`crate::frame::BUFFER_LEN`], touched as they are used.

mod lane;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::lane::Lane;
use super::poll::Signal;
use super::vnet_hdr::VnetHdr;
use super::{Gone, Offloads, Port, PortHalves, PortRx, PortTx, TxReport};
use crate::frame::Frame;
use crate::pool::Pool;

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
        Ok(Self::join(capacity, offloads, [Some(Signal::new()?), Some(Signal::new()?)]))
    }

    /// As [`MemoryPort::pair_with`], without descriptors: the port is looked at in every round of its worker, which
    /// never sleeps, and costs no system call.
    #[must_use]
    pub fn polled(capacity: usize, offloads: Offloads) -> (Self, MemoryPeer) {
        Self::join(capacity, offloads, [None, None])
    }

    fn join(
        capacity: usize,
        offloads: Offloads,
        [to_port, to_peer]: [Option<Signal>; 2],
    ) -> (Self, MemoryPeer) {
        let capacity = capacity.max(1);
        let wire = Arc::new(Wire {
            to_port: Lane::new(capacity, to_port),
            to_peer: Lane::new(capacity, to_peer),
            removed: AtomicBool::new(false),
            down: AtomicBool::new(false),
        });
        (Self { wire: Arc::clone(&wire), offloads }, MemoryPeer { wire })
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
        let mut slots = lane.slots.lock();
        let mut count = slots.take(budget, pool, batch);
        if slots.len() == 0 && lane.signal.is_some() {
            drop(slots);
            lane.clear();
            slots = lane.slots.lock();
            count += slots.take(budget - count, pool, batch);
            // What did not fit, and a removal that came between, must be told again.
            if slots.len() > 0 || self.wire.removed.load(Ordering::SeqCst) {
                lane.raise();
            }
        }
        Ok(count)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.wire.to_port.signal.as_ref().map(AsFd::as_fd)
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
        let given = frames.len();
        if self.is_down() {
            pool.put_all(frames);
            report.down = count(given);
            return report;
        }
        let lane = &self.wire.to_peer;
        let mut slots = lane.slots.lock();
        let room = slots.room();
        let bytes = frames.iter().take(room).map(Frame::len).sum::<usize>();
        let sent = slots.put(frames, pool);
        drop(slots);
        pool.put_all(frames);
        if sent > 0 {
            lane.raise();
        }
        (report.sent, report.sent_bytes) = (count(sent), bytes as u64);
        report.full = count(given - sent);
        report
    }

    fn tx_copy(&mut self, frame: &mut Frame, _pool: &mut Pool) -> TxReport {
        if self.is_down() {
            return TxReport { down: 1, ..TxReport::default() };
        }
        let lane = &self.wire.to_peer;
        if !lane.slots.lock().put_copy(frame) {
            return TxReport { full: 1, ..TxReport::default() };
        }
        lane.raise();
        TxReport { sent: 1, sent_bytes: frame.len() as u64, ..TxReport::default() }
    }
}

/// Of frames, of which there are no more than a wire holds.
fn count(frames: usize) -> u32 {
    u32::try_from(frames).unwrap_or(u32::MAX)
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
        let mut hand = lane.hand.lock();
        // Nobody else puts frames in as long as this one has the hand.
        if lane.slots.lock().room() == 0 {
            return false;
        }
        fill(&mut hand);
        let sent = lane.slots.lock().put_one(&mut hand);
        hand.reset();
        lane.raise();
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
        let mut hand = lane.hand.lock();
        let mut taken = lane.slots.lock().take_one(&mut hand);
        if !taken && lane.signal.is_some() {
            lane.clear();
            let mut slots = lane.slots.lock();
            taken = slots.take_one(&mut hand);
            // The second look may leave frames behind that nobody tells of any more.
            if slots.len() > 0 {
                lane.raise();
            }
        }
        if !taken {
            return None;
        }
        let seen = look(&hand);
        hand.reset();
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
            match &self.wire.to_peer.signal {
                // Interrupted or not: the loop looks at the ring and the clock again.
                Some(signal) => {
                    let _ = poll(&mut [PollFd::new(signal.as_fd(), PollFlags::POLLIN)], left);
                }
                None => std::thread::yield_now(),
            }
        }
    }

    /// Frames on their way to the port.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.wire.to_port.slots.lock().len()
    }

    /// Sets the device down or up: down, it takes no frame.
    pub fn set_down(&self, down: bool) {
        self.wire.down.store(down, Ordering::Release);
    }

    /// Removes the device under the engine: from now on the port reports [`Gone`].
    pub fn remove(&self) {
        self.wire.removed.store(true, Ordering::SeqCst);
        self.wire.to_port.raise();
    }
}

#[cfg(test)]
mod tests;
