//! Copies of frames for people: what `capture` shows.
//!
//! Slots are allocated when a capture starts; a worker that finds no free slot counts the frame as
//! missed and goes on. Workers look at captures only while there are any.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam::queue::ArrayQueue;

use crate::engine::CapturedFrame;
use crate::frame::Frame;
use crate::packet::types::PortId;
use crate::publish::Publisher;

/// Frames waiting for a reader at most.
const SLOTS: usize = 1024;

#[derive(Debug)]
pub(crate) struct Sink {
    ports: Vec<PortId>,
    snaplen: usize,
    free: ArrayQueue<CapturedFrame>,
    full: ArrayQueue<CapturedFrame>,
    missed: AtomicU64,
}

impl Sink {
    fn new(ports: &[PortId], snaplen: usize) -> Self {
        let sink = Self {
            ports: ports.to_vec(),
            snaplen,
            free: ArrayQueue::new(SLOTS),
            full: ArrayQueue::new(SLOTS),
            missed: AtomicU64::new(0),
        };
        for _ in 0..SLOTS {
            let slot = CapturedFrame {
                port: PortId(0),
                egress: false,
                unix_nanos: 0,
                original_len: 0,
                bytes: Vec::with_capacity(snaplen.min(2048)),
            };
            // The queue has exactly this many places.
            let _ = sink.free.push(slot);
        }
        sink
    }

    fn take(&self, port: PortId, egress: bool, frame: &Frame, unix_nanos: u64) {
        if !self.ports.contains(&port) {
            return;
        }
        let Some(mut slot) = self.free.pop() else {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let bytes = frame.bytes();
        slot.port = port;
        slot.egress = egress;
        slot.unix_nanos = unix_nanos;
        slot.original_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        slot.bytes.clear();
        slot.bytes.extend_from_slice(bytes.get(..self.snaplen).unwrap_or(bytes));
        let _ = self.full.push(slot);
    }
}

/// The captures that run.
pub(crate) type Sinks = Vec<Arc<Sink>>;

/// Copies one frame to every capture that wants it.
pub(crate) fn copy(sinks: &Sinks, port: PortId, egress: bool, frame: &Frame) {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_nanos = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
    for sink in sinks {
        sink.take(port, egress, frame, unix_nanos);
    }
}

/// A running capture; dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    sink: Arc<Sink>,
    running: Arc<Publisher<Sinks>>,
}

impl Capture {
    pub(crate) fn start(running: &Arc<Publisher<Sinks>>, ports: &[PortId], snaplen: usize) -> Self {
        let sink = Arc::new(Sink::new(ports, snaplen));
        running.update(|sinks| {
            let mut sinks = sinks.clone();
            sinks.push(Arc::clone(&sink));
            sinks
        });
        Self { sink, running: Arc::clone(running) }
    }

    /// Passes the next captured frame, if there is one, to `f`. Never blocks.
    pub fn next<T>(&self, f: impl FnOnce(&CapturedFrame) -> T) -> Option<T> {
        let slot = self.sink.full.pop()?;
        let result = f(&slot);
        let _ = self.sink.free.push(slot);
        Some(result)
    }

    /// The next captured frame, if there is one. Never blocks.
    #[must_use]
    pub fn next_frame(&self) -> Option<CapturedFrame> {
        self.next(Clone::clone)
    }

    /// Frames that were not captured because the reader was too slow.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.sink.missed.load(Ordering::Relaxed)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.running.update(|sinks| {
            let mut sinks = sinks.clone();
            sinks.retain(|sink| !Arc::ptr_eq(sink, &self.sink));
            sinks
        });
    }
}
