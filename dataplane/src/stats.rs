//! Counters. Each is written by one worker with plain loads and stores and read by anybody, so that
//! no cache line is shared between writers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::engine::{PortStats, WorkerStats};
use crate::limiter::{BucketGauge, ErrorGauges};
use crate::verdict::DropReason;

/// A counter with one writer.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How much of something is in use, now and at most, with one writer.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    now: Counter,
    peak: Counter,
}

impl Gauge {
    pub(crate) fn set(&self, n: usize) {
        self.now.set(n as u64);
        self.note_peak(n);
    }

    /// It was as much in between.
    pub(crate) fn note_peak(&self, n: usize) {
        if n as u64 > self.peak.value() {
            self.peak.set(n as u64);
        }
    }

    /// Now, and at most since the start.
    pub(crate) fn view(&self) -> (u32, u32) {
        let narrow = |counter: &Counter| u32::try_from(counter.value()).unwrap_or(u32::MAX);
        (narrow(&self.now), narrow(&self.peak))
    }
}

/// One counter for each reason.
#[derive(Debug)]
pub(crate) struct DropCounters([Counter; DropReason::COUNT]);

impl Default for DropCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl DropCounters {
    #[inline]
    pub(crate) fn add(&self, reason: DropReason, n: u64) {
        if let Some(counter) = self.0.get(reason.index()) {
            counter.add(n);
        }
    }

    fn values(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(Counter::value)
    }
}

/// Totals of one worker.
#[derive(Debug, Default)]
pub(crate) struct WorkerCounters {
    pub(crate) rx_frames: Counter,
    pub(crate) replicated: Counter,
    pub(crate) generated: Counter,
    pub(crate) tx_frames: Counter,
    pub(crate) merged: Counter,
    pub(crate) consumed: Counter,
    pub(crate) queued: Counter,
    /// Frames that wait for neighbors, and for the one for which the most wait.
    pub(crate) waiting: Gauge,
    pub(crate) waiting_for_one: Gauge,
    pub(crate) buffers: Gauge,
    /// Bytes of fragments that wait, and of the port with the most.
    pub(crate) early: Gauge,
    pub(crate) early_of_one: Gauge,
    pub(crate) errors: ErrorGauges,
    /// Frames to all others, of the port with the most of what it may send.
    pub(crate) storms: BucketGauge,
    pub(crate) drops: DropCounters,
}

impl WorkerCounters {
    #[inline]
    pub(crate) fn drop(&self, reason: DropReason, n: u64) {
        self.drops.add(reason, n);
    }

    pub(crate) fn view(&self) -> WorkerStats {
        WorkerStats {
            rx_frames: self.rx_frames.value(),
            replicated: self.replicated.value(),
            generated: self.generated.value(),
            tx_frames: self.tx_frames.value(),
            merged: self.merged.value(),
            consumed: self.consumed.value(),
            queued: self.queued.value(),
            drops: self.drops.values().collect(),
        }
    }
}

/// What one worker did with one port.
#[derive(Debug, Default)]
pub(crate) struct PortCell {
    pub(crate) rx_frames: Counter,
    pub(crate) rx_bytes: Counter,
    pub(crate) tx_frames: Counter,
    pub(crate) tx_bytes: Counter,
    /// What the host's own stack refused: it came in here.
    pub(crate) refused: Counter,
    pub(crate) rx_drops: DropCounters,
    pub(crate) tx_drops: DropCounters,
}

/// One port's counters, a cell for each worker.
#[derive(Debug, Clone)]
pub(crate) struct PortCounters(Arc<[CachePadded<PortCell>]>);

impl PortCounters {
    pub(crate) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| CachePadded::default()).collect())
    }

    #[inline]
    pub(crate) fn cell(&self, worker: usize) -> Option<&PortCell> {
        self.0.get(worker).map(|cell| &**cell)
    }

    pub(crate) fn view(&self) -> PortStats {
        let sum = |pick: fn(&PortCell) -> &Counter| -> u64 {
            self.0.iter().map(|cell| pick(cell).value()).sum()
        };
        let sums = |pick: fn(&PortCell) -> &DropCounters| -> Vec<u64> {
            let mut totals = vec![0; DropReason::COUNT];
            for cell in &*self.0 {
                for (total, value) in totals.iter_mut().zip(pick(cell).values()) {
                    *total += value;
                }
            }
            totals
        };
        PortStats {
            rx_frames: sum(|cell| &cell.rx_frames),
            rx_bytes: sum(|cell| &cell.rx_bytes),
            // No worker knows.
            rx_missed: 0,
            tx_frames: sum(|cell| &cell.tx_frames),
            tx_bytes: sum(|cell| &cell.tx_bytes),
            refused: sum(|cell| &cell.refused),
            rx_drops: sums(|cell| &cell.rx_drops),
            tx_drops: sums(|cell| &cell.tx_drops),
        }
    }
}

impl WorkerStats {
    /// Sum of all drops.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// Drops for one reason.
    #[must_use]
    pub fn drops_for(&self, reason: DropReason) -> u64 {
        self.drops.get(reason.index()).copied().unwrap_or(0)
    }

    /// Whether every frame is accounted for.
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        self.rx_frames + self.replicated + self.generated
            == self.tx_frames + self.merged + self.consumed + self.queued + self.dropped()
    }
}
