//! Reading and writing streams of frames by io_uring: one ring for each worker, for all its ports.
//!
//! A port whose descriptor gives and takes one frame a call ([`super::PortRx::stream`], a TAP
//! device) is read by one request that lasts as long as the device, into buffers that all ports
//! share; what a batch sends is one system call for all ports. Everything else is waited for by
//! the worker's [`super::poll::Poller`], which the ring waits for in turn.
//!
//! Why, and what it was measured against: docs/adr/0008-io-uring-for-taps.md.
//!
//! Ports take turns in what is read at a time, so that none is starved by a flood.
//!
//! Frames are in order: a port's frames are completed in the order of reading, and writes are
//! carried out in the order of queueing when the kernel is told of them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::spin::{SPIN, Spin};
use super::sys::uring::{CONTROL_GAP, Completion, Uring, control_data};
use super::vnet_hdr::{VNET_HDR_LEN, VnetHdr};
use super::{Reading, TxReport, vlan};
use crate::frame::Frame;
use crate::packet::types::PortId;
use crate::pool::Pool;

/// Frames that the kernel may read before the worker looks. Small frames like larger batches, up to
/// the size of one.
const READ_AHEAD: u16 = 64;
/// The least of them. With 8 TCP by four streams was at two thirds.
const LEAST_AHEAD: usize = 16;
/// Bytes that it may read, about: more would be out of the caches again when they are written. TCP
/// by frames of 64 KiB was as fast with 1, 2 and 4 MiB; by frames of 185,000 bytes, 64 of them were
/// slower by a tenth than 24.
const BYTES_AHEAD: usize = 2 << 20;

/// A stream that is read.
#[derive(Debug, Clone, Copy)]
struct Stream {
    /// Tells the requests of one stream from those of a port that had the same number before.
    serial: u32,
    reading: Reading,
}

/// The ring of one worker.
#[derive(Debug)]
pub struct Ring {
    uring: Uring,
    streams: Vec<Option<Stream>>,
    serial: u32,
    /// Ports to read from again, because there was no buffer when there was a frame.
    unread: Vec<PortId>,
    /// The port that was the first of several to be read from again.
    first: PortId,
    received: VecDeque<Frame>,
    /// Ports whose reading failed.
    ended: Vec<PortId>,
    writing: usize,
    reports: Vec<(PortId, TxReport)>,
    poller: PollState,
    spin: Spin,
    /// Mean length of the last frames.
    mean: usize,
}

/// Whether the poller's descriptor is being waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PollState {
    /// To be asked for at the next wait.
    Due,
    /// Asked for.
    Armed,
    /// It is readable.
    Ready,
}

impl Ring {
    /// A ring for the calling thread.
    ///
    /// # Errors
    /// When the kernel does not allow it or is older than Linux 6.7.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            uring: Uring::new(READ_AHEAD, VNET_HDR_LEN)?,
            streams: Vec::new(),
            serial: 0,
            unread: Vec::new(),
            first: PortId(0),
            received: VecDeque::with_capacity(usize::from(READ_AHEAD)),
            ended: Vec::new(),
            writing: 0,
            reports: Vec::new(),
            poller: PollState::Due,
            spin: Spin::default(),
            mean: 0,
        })
    }

    /// Reads from the stream of a port from now on.
    pub fn add(&mut self, port: PortId, reading: Reading) {
        self.serial = self.serial.wrapping_add(1);
        if self.streams.len() <= port.index() {
            self.streams.resize(port.index() + 1, None);
            // Attaching may allocate; a batch may not.
            self.unread.reserve(self.streams.len());
            self.ended.reserve(self.streams.len());
            self.reports.reserve(self.streams.len());
        }
        if let Some(stream) = self.streams.get_mut(port.index()) {
            *stream = Some(Stream { serial: self.serial, reading });
            self.unread.push(port);
        }
    }

    /// Whether the port is read by this ring.
    #[must_use]
    pub fn has(&self, port: PortId) -> bool {
        self.streams.get(port.index()).is_some_and(Option::is_some)
    }

    /// Reads no more from a port. Its descriptor is free afterwards; frames that were read are
    /// still to be taken.
    pub fn stop(&mut self, port: PortId, pool: &mut Pool) {
        let stream = self.streams.get(port.index()).copied().flatten();
        if let Some(stream) = stream {
            self.uring.cancel_read(stream.reading, token(port, stream));
            self.collect(pool);
        }
        if let Some(stream) = self.streams.get_mut(port.index()) {
            *stream = None;
        }
        self.unread.retain(|other| *other != port);
        self.ended.retain(|other| *other != port);
    }

    /// The same, and frames that were read and not yet taken are dropped.
    pub fn remove(&mut self, port: PortId, pool: &mut Pool) {
        self.stop(port, pool);
        for _ in 0..self.received.len() {
            match self.received.pop_front() {
                Some(frame) if frame.ingress == port => pool.put(frame),
                Some(frame) => self.received.push_back(frame),
                None => break,
            }
        }
    }

    /// Waits until a frame has come, `poller` has events, or `timeout` has passed. `fd_of` gives
    /// the descriptor of a stream. True: the poller has events.
    pub fn wait<'a>(
        &mut self,
        timeout: Duration,
        pool: &mut Pool,
        poller: BorrowedFd<'_>,
        fd_of: impl Fn(PortId) -> Option<BorrowedFd<'a>>,
    ) -> bool {
        self.prepare(pool, poller, fd_of);
        if self.uring.is_queued() || self.uring.is_pending() {
            self.uring.submit();
            self.collect(pool);
        }
        if !self.has_work() && timeout > Duration::ZERO {
            let from = Instant::now();
            let Self { spin, uring, .. } = self;
            spin.look(from, || uring.is_pending());
            if self.uring.is_pending() {
                self.uring.submit();
            } else {
                self.uring.submit_and_wait(timeout);
            }
            let waited = from.elapsed();
            self.collect(pool);
            let bytes = self.received.iter().map(Frame::len).sum();
            self.spin.learn(waited, bytes);
        }
        let ready = self.poller == PollState::Ready;
        if ready {
            self.poller = PollState::Due;
        }
        ready
    }

    /// Time spent looking for work instead of sleeping, since the ring was made.
    #[must_use]
    pub const fn looked_for_work(&self) -> Duration {
        self.spin.looked()
    }

    /// Buffers, reads and polls that are due.
    fn prepare<'a>(
        &mut self,
        pool: &mut Pool,
        poller: BorrowedFd<'_>,
        fd_of: impl Fn(PortId) -> Option<BorrowedFd<'a>>,
    ) {
        while self.uring.wants_buffer() && self.uring.posted() < ahead(self.mean) {
            let Some(frame) = pool.take() else { break };
            if let Some(frame) = self.uring.post(frame) {
                pool.put(frame);
                break;
            }
        }
        // Without a buffer reading ends at once, with an error.
        if self.uring.posted() > 0 {
            self.take_turns();
            for port in self.unread.drain(..) {
                let stream = self.streams.get(port.index()).copied().flatten();
                if let (Some(stream), Some(fd)) = (stream, fd_of(port)) {
                    self.uring.read(fd, stream.reading, token(port, stream));
                }
            }
        }
        if self.poller == PollState::Due {
            self.uring.poll(poller);
            self.poller = PollState::Armed;
        }
    }

    /// When buffers are too few for all that wait, the kernel gives one frame to each port and all the
    /// others to the one that is read from first: the next one's turn each time, so that a port with
    /// more frames than can be handled gets no more of them than others do.
    fn take_turns(&mut self) {
        let after = self.first.0.wrapping_add(1);
        self.unread.sort_unstable_by_key(|port| port.0.wrapping_sub(after));
        if let Some(first) = self.unread.first() {
            self.first = *first;
        }
    }

    fn has_work(&self) -> bool {
        !self.received.is_empty() || !self.ended.is_empty() || self.poller == PollState::Ready
    }

    /// Takes what the kernel has completed.
    fn collect(&mut self, pool: &mut Pool) {
        let Self {
            uring, streams, unread, received, ended, writing, reports, poller, mean, ..
        } = self;
        uring.completions(|completion| match completion {
            Completion::Ready => *poller = PollState::Ready,
            Completion::Written { token, frame, outcome } => {
                *writing -= 1;
                let port = PortId(u16::try_from(token).unwrap_or(u16::MAX));
                count(reports, port, outcome);
                pool.put(frame);
            }
            Completion::Read { token: of, reading, outcome, more } => {
                let port = port_of(of);
                let current = streams.get(port.index()).copied().flatten();
                if current.is_none_or(|stream| token(port, stream) != of) {
                    // What a port that was removed had still read.
                    if let Ok(frame) = outcome {
                        pool.put(frame);
                    }
                    return;
                }
                match outcome {
                    Ok(mut frame) => {
                        let header = frame.received_prefix();
                        frame.vnet = header.map(VnetHdr::decode).unwrap_or_default();
                        if reading == Reading::Tagged {
                            restore_tag(&mut frame);
                        }
                        frame.ingress = port;
                        *mean = (*mean * 7 + frame.len()) / 8;
                        received.push_back(frame);
                        if !more {
                            unread.push(port);
                        }
                    }
                    // No buffer was left, or the kernel would not wait any longer.
                    Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR | Errno::ENOMEM) => {
                        if !more {
                            unread.push(port);
                        }
                    }
                    // Whether it will ever be read again is for the device to say.
                    Err(_) => {
                        if let Some(stream) = streams.get_mut(port.index()) {
                            *stream = None;
                        }
                        ended.push(port);
                    }
                }
            }
        });
    }

    /// Takes frames that have come, at most `count` and not many more than `bytes` bytes.
    pub fn take(&mut self, batch: &mut Vec<Frame>, count: usize, bytes: usize) {
        let room = count.saturating_sub(batch.len());
        let mut before = 0;
        let fits = |frame: &&Frame| {
            let fits = before < bytes;
            before += frame.len();
            fits
        };
        let train = self.received.iter().take(room).take_while(fits).count();
        batch.extend(self.received.drain(..train));
    }

    /// A port whose reading failed, and which is not read any more.
    pub fn take_ended(&mut self) -> Option<PortId> {
        self.ended.pop()
    }

    /// Queues frames for a port. What became of them is told by [`Ring::reports`].
    pub fn write(
        &mut self,
        port: PortId,
        fd: BorrowedFd<'_>,
        frames: &mut Vec<Frame>,
        pool: &mut Pool,
    ) {
        for mut frame in frames.drain(..) {
            if self.uring.is_full() {
                // The kernel takes what is queued, and its answers make no heap.
                self.uring.submit();
                self.collect(pool);
            }
            if super::tap::with_vnet_hdr(&mut frame).is_some() {
                self.writing += 1;
                self.uring.write(fd, frame, u64::from(port.0));
            } else {
                count(&mut self.reports, port, Err(Errno::EINVAL));
                pool.put(frame);
            }
        }
    }

    /// Frames that are queued or being written.
    #[must_use]
    pub const fn writing(&self) -> usize {
        self.writing
    }

    /// Has everything written that is queued.
    pub fn flush(&mut self, pool: &mut Pool) {
        if self.writing > 0 {
            self.uring.submit();
            self.collect(pool);
        }
        // A device takes a frame or refuses it at once, so this is not entered in practice.
        while self.writing > 0 {
            self.uring.submit_and_wait(SPIN);
            self.collect(pool);
        }
    }

    /// What became of the frames since the last call.
    pub fn reports(&mut self, mut each: impl FnMut(PortId, TxReport)) {
        for (port, report) in self.reports.drain(..) {
            each(port, report);
        }
    }
}

/// Puts the VLAN tag back that is told of before a frame's virtio-net header.
#[inline]
fn restore_tag(frame: &mut Frame) {
    let told = frame.received_prefix::<{ CONTROL_GAP + VNET_HDR_LEN }>();
    let control = told.as_ref().and_then(|told| control_data(told.first_chunk()?));
    if let Some(tag) = control.and_then(vlan::tag_in) {
        vlan::put_back(frame, tag);
    }
}

/// How many frames of this length the kernel may read ahead.
fn ahead(mean: usize) -> usize {
    (BYTES_AHEAD / mean.max(1)).clamp(LEAST_AHEAD, usize::from(READ_AHEAD))
}

/// Counts a write under its port; frames for one port mostly follow each other.
fn count(reports: &mut Vec<(PortId, TxReport)>, port: PortId, outcome: Result<usize, Errno>) {
    if reports.last().is_none_or(|(last, _)| *last != port) {
        reports.push((port, TxReport::default()));
    }
    let Some((_, report)) = reports.last_mut() else { return };
    match outcome {
        Ok(len) => {
            report.sent += 1;
            report.sent_bytes += len.saturating_sub(VNET_HDR_LEN) as u64;
        }
        Err(errno) => report.count_refused(errno, 1),
    }
}

fn token(port: PortId, stream: Stream) -> u64 {
    u64::from(stream.serial) << 16 | u64::from(port.0)
}

fn port_of(token: u64) -> PortId {
    let [a, b, ..] = token.to_le_bytes();
    PortId(u16::from_le_bytes([a, b]))
}

#[cfg(test)]
mod tests;
