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
mod tests {
    use std::thread;

    use super::*;
    use crate::io::poll::Poller;
    use crate::io::vnet_hdr::{F_NEEDS_CSUM, GSO_TCPV4};
    use crate::packet::types::PortId;

    fn halves(port: MemoryPort) -> (Box<dyn PortRx>, Box<dyn PortTx>) {
        let mut halves = Box::new(port).split(1).unwrap();
        (halves.rx, halves.tx.pop().unwrap())
    }

    fn readable(rx: &dyn PortRx) -> bool {
        let mut fds = [PollFd::new(rx.fd().unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn frames_pass_both_ways_with_their_offload_state() {
        let (port, peer) = MemoryPort::pair(4).unwrap();
        let (mut rx, mut tx) = halves(port);
        let mut pool = Pool::new(8);
        let mut batch = Vec::new();
        let vnet = VnetHdr {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            gso_size: 1448,
            ..VnetHdr::default()
        };
        assert!(peer.send(b"first", vnet));
        assert!(peer.send(b"second", VnetHdr::default()));
        assert_eq!(rx.rx(8, &mut pool, &mut batch), Ok(2));
        assert_eq!((batch[0].bytes(), batch[0].vnet), (&b"first"[..], vnet));
        assert_eq!((batch[1].bytes(), batch[1].vnet), (&b"second"[..], VnetHdr::default()));
        let report = tx.tx(&mut batch, &mut pool);
        assert_eq!(report, TxReport { sent: 2, sent_bytes: 11, ..TxReport::default() });
        assert!(batch.is_empty());
        assert_eq!(peer.recv(), Some((b"first".to_vec(), vnet)));
        assert_eq!(peer.recv(), Some((b"second".to_vec(), VnetHdr::default())));
        assert_eq!(peer.recv(), None);
        assert_eq!(pool.available(), 8);
    }

    #[test]
    fn a_full_wire_refuses_and_loses_no_buffer() {
        let (port, peer) = MemoryPort::pair(2).unwrap();
        let (mut rx, mut tx) = halves(port);
        let mut pool = Pool::new(8);
        let mut batch = Vec::new();
        for _ in 0..3 {
            while peer.send(b"x", VnetHdr::default()) {}
            assert_eq!(rx.rx(8, &mut pool, &mut batch), Ok(2));
            batch.push(pool.take().unwrap());
            let report = tx.tx(&mut batch, &mut pool);
            assert_eq!((report.sent, report.full), (2, 1));
            let mut frame = pool.take().unwrap();
            assert_eq!(tx.tx_copy(&mut frame, &mut pool).full, 1);
            pool.put(frame);
            while peer.recv().is_some() {}
            assert_eq!(pool.available(), 8);
        }
    }

    #[test]
    fn an_empty_pool_leaves_frames_on_the_wire_and_the_port_readable() {
        let (port, peer) = MemoryPort::pair(4).unwrap();
        let (mut rx, _tx) = halves(port);
        let mut pool = Pool::new(1);
        let mut batch = Vec::new();
        for byte in 0..3u8 {
            assert!(peer.send(&[byte], VnetHdr::default()));
        }
        for byte in 0..3u8 {
            assert!(readable(&*rx));
            assert_eq!(rx.rx(8, &mut pool, &mut batch), Ok(1));
            let frame = batch.pop().unwrap();
            assert_eq!(frame.bytes(), [byte]);
            pool.put(frame);
        }
        assert_eq!(rx.rx(8, &mut pool, &mut batch), Ok(0));
        assert!(!readable(&*rx));
    }

    #[test]
    fn the_ingress_of_the_pool_s_frame_is_kept() {
        let (port, peer) = MemoryPort::pair(1).unwrap();
        let (mut rx, _tx) = halves(port);
        let mut pool = Pool::new(1);
        let mut frame = pool.take().unwrap();
        frame.ingress = PortId(9);
        pool.put(frame);
        let mut batch = Vec::new();
        peer.send(b"x", VnetHdr::default());
        assert_eq!(rx.rx(1, &mut pool, &mut batch), Ok(1));
        assert_eq!(batch[0].ingress, PortId(9));
    }

    #[test]
    fn a_removed_device_is_told_and_takes_nothing() {
        let (port, peer) = MemoryPort::pair(4).unwrap();
        let (mut rx, mut tx) = halves(port);
        let mut pool = Pool::new(2);
        let mut frames = vec![pool.take().unwrap()];
        peer.set_down(true);
        assert_eq!(tx.tx(&mut frames, &mut pool).down, 1);
        peer.set_down(false);
        peer.remove();
        assert!(readable(&*rx));
        assert_eq!(rx.rx(1, &mut pool, &mut Vec::new()), Err(Gone));
        let mut frame = pool.take().unwrap();
        assert_eq!(tx.tx_copy(&mut frame, &mut pool).down, 1);
    }

    #[test]
    fn no_frame_is_left_behind_by_a_sleeping_worker() {
        const COUNT: u32 = 20_000;
        let (port, peer) = MemoryPort::pair(8).unwrap();
        let (mut rx, mut tx) = halves(port);
        let worker = thread::spawn(move || {
            let mut poller = Poller::new().unwrap();
            let mut pool = Pool::new(4);
            let (mut batch, mut events) = (Vec::new(), Vec::new());
            poller.add(rx.fd().unwrap(), 0).unwrap();
            let mut seen = 0;
            while seen < COUNT {
                poller.wait(Some(Duration::from_secs(20)), &mut events).unwrap();
                assert!(!events.is_empty(), "slept on {seen} of {COUNT}");
                let count = rx.rx(3, &mut pool, &mut batch).unwrap();
                seen += u32::try_from(count).unwrap();
                while !batch.is_empty() {
                    // One after the other and only when there is room, so that none is dropped.
                    let mut one = vec![batch.remove(0)];
                    while tx.tx_copy(&mut one[0], &mut pool).sent == 0 {
                        thread::yield_now();
                    }
                    pool.put(one.remove(0));
                }
            }
        });
        let reader = peer.clone();
        let reader = thread::spawn(move || {
            for expected in 0..COUNT {
                let (bytes, _) = reader.recv_timeout(Duration::from_secs(20)).unwrap();
                assert_eq!(bytes, expected.to_be_bytes());
            }
        });
        for number in 0..COUNT {
            while !peer.send(&number.to_be_bytes(), VnetHdr::default()) {
                thread::yield_now();
            }
        }
        worker.join().unwrap();
        reader.join().unwrap();
    }
}
