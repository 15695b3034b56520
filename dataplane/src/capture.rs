//! Copies of frames for people: what `capture` shows.
//!
//! Slots are allocated when a capture starts; a worker that finds no free slot counts the frame as
//! missed and goes on. Workers look at captures only while there are any.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam::queue::ArrayQueue;

use crate::engine::CapturedFrame;
use crate::frame::Frame;
use crate::limits::Peak;
use crate::packet::segment;
use crate::packet::types::PortId;
use crate::publish::Publisher;

/// Frames waiting for a reader at most, unless the engine is told otherwise.
pub(crate) const DEFAULT_SLOTS: u32 = 1024;

/// How all captures have fared since the start.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    /// The most frames that waited for a reader.
    peak: Peak,
    /// Frames that found no slot.
    missed: AtomicU64,
}

impl Uses {
    /// The most that waited, and how many were missed.
    pub(crate) fn view(&self) -> (u32, u64) {
        (self.peak.value(), self.missed.load(Ordering::Relaxed))
    }
}

/// A port whose frames are copied until it is gone.
#[derive(Debug)]
struct Watched {
    port: PortId,
    gone: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct Sink {
    ports: Vec<Watched>,
    snaplen: usize,
    free: ArrayQueue<CapturedFrame>,
    full: ArrayQueue<CapturedFrame>,
    missed: AtomicU64,
    all: Arc<Uses>,
}

impl Sink {
    fn new(ports: &[PortId], (snaplen, slots): (usize, u32), all: Arc<Uses>) -> Self {
        let slots = usize::try_from(slots).unwrap_or(usize::MAX).max(1);
        let sink = Self {
            ports: ports
                .iter()
                .map(|port| Watched { port: *port, gone: AtomicBool::new(false) })
                .collect(),
            snaplen,
            free: ArrayQueue::new(slots),
            full: ArrayQueue::new(slots),
            missed: AtomicU64::new(0),
            all,
        };
        for _ in 0..slots {
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

    /// Copies a frame, which lies in two parts.
    fn take(&self, port: PortId, egress: bool, frame: (&[u8], &[u8]), unix_nanos: u64) {
        // A worker learns of the next port with this number by a channel, after the mark was made.
        let watched = |w: &Watched| w.port == port && !w.gone.load(Ordering::Relaxed);
        if !self.ports.iter().any(watched) {
            return;
        }
        let Some(mut slot) = self.free.pop() else {
            self.missed.fetch_add(1, Ordering::Relaxed);
            self.all.missed.fetch_add(1, Ordering::Relaxed);
            self.all.peak.note(u32::try_from(self.full.capacity()).unwrap_or(u32::MAX));
            return;
        };
        let (head, rest) = frame;
        slot.port = port;
        slot.egress = egress;
        slot.unix_nanos = unix_nanos;
        slot.original_len = u32::try_from(head.len() + rest.len()).unwrap_or(u32::MAX);
        slot.bytes.clear();
        slot.bytes.extend_from_slice(head.get(..self.snaplen).unwrap_or(head));
        let room = self.snaplen.saturating_sub(head.len());
        slot.bytes.extend_from_slice(rest.get(..room).unwrap_or(rest));
        let _ = self.full.push(slot);
        self.all.peak.note(self.waiting());
    }

    /// Frames that wait for the reader.
    fn waiting(&self) -> u32 {
        u32::try_from(self.full.len()).unwrap_or(u32::MAX)
    }
}

/// The captures that run.
pub(crate) type Sinks = Vec<Arc<Sink>>;

/// Frames that wait for the slowest reader.
pub(crate) fn waiting(sinks: &Sinks) -> u32 {
    sinks.iter().map(|sink| sink.waiting()).max().unwrap_or(0)
}

/// Copies one frame to every capture that wants it. One that is longer than its length field can say
/// is shown as the frames that a device without BIG TCP would get: others do not understand it.
pub(crate) fn copy(sinks: &Sinks, port: PortId, egress: bool, frame: &Frame) {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_nanos = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
    let take = |head: &[u8], rest: &[u8]| {
        for sink in sinks {
            sink.take(port, egress, (head, rest), unix_nanos);
        }
    };
    if !segment::show_split(frame, take) {
        take(frame.bytes(), &[]);
    }
}

/// No capture shows what the next port with this number carries.
pub(crate) fn forget(sinks: &Sinks, port: PortId) {
    for watched in sinks.iter().flat_map(|sink| &sink.ports).filter(|w| w.port == port) {
        watched.gone.store(true, Ordering::Release);
    }
}

/// A running capture; dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    sink: Arc<Sink>,
    running: Arc<Publisher<Sinks>>,
}

impl Capture {
    pub(crate) fn start(
        running: &Arc<Publisher<Sinks>>,
        ports: &[PortId],
        (snaplen, slots): (usize, u32),
        all: Arc<Uses>,
    ) -> Self {
        let sink = Arc::new(Sink::new(ports, (snaplen, slots), all));
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

    /// Whether all its ports are gone: what [`Capture::next`] still has is all there will be.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.sink.ports.iter().all(|watched| watched.gone.load(Ordering::Acquire))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::core::{Core, Transmit};
    use crate::engine::EngineOptions;
    use crate::io::TxReport;
    use crate::plane::Plane;
    use crate::pool::Pool;

    /// Nothing is configured, so nothing is sent.
    struct Nowhere;

    impl Transmit for Nowhere {
        fn tx(&mut self, port: PortId, _: &mut Vec<Frame>, _: &mut Pool) -> TxReport {
            panic!("sent by {port:?}")
        }

        fn tx_copy(&mut self, port: PortId, _: &mut Frame, _: &mut Pool) -> TxReport {
            panic!("sent by {port:?}")
        }
    }

    fn attach(plane: &Plane) -> PortId {
        let port = plane.free_port().unwrap();
        plane.register(port);
        port
    }

    fn receive(core: &mut Core, port: PortId) {
        let mut frame = core.pool().take().unwrap();
        frame.copy_from(&[2; 60]);
        frame.ingress = port;
        core.process(&mut vec![frame], Timestamp::now(), &mut Nowhere);
    }

    #[test]
    fn a_capture_ends_with_its_ports_and_never_shows_the_next_one_s_frames() {
        let options = EngineOptions {
            buffers_per_worker: 4,
            conntrack_limit: 16,
            fdb_limit: 16,
            fdb_per_port: 16,
            fragment_limit: 16,
            ..EngineOptions::default()
        };
        let plane = Plane::new(&options).unwrap();
        let mut core = plane.core(0).unwrap();
        let (first, second) = (attach(&plane), attach(&plane));
        let capture = plane.capture(&[first, second], 100);
        let shown = || std::iter::from_fn(|| capture.next_frame()).map(|frame| frame.port);
        receive(&mut core, first);
        receive(&mut core, second);
        plane.unregister(first);
        assert_eq!(attach(&plane), first, "the number is another's now");
        receive(&mut core, first);
        receive(&mut core, second);
        assert_eq!(shown().collect::<Vec<_>>(), [first, second, second]);
        assert!(!capture.is_over());
        plane.unregister(second);
        assert!(capture.is_over());
        receive(&mut core, second);
        assert_eq!(shown().count(), 0);
        // Whoever asks for a port by a number that nobody has any more.
        let late = plane.capture(&[second], 100);
        assert_eq!(attach(&plane), second);
        receive(&mut core, second);
        assert!(late.is_over() && late.next_frame().is_none());
    }
}
