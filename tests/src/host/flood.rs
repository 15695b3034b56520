//! Frames of an attacker's own making, so many a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::namespace::Namespace;
use super::raw::RawSender;
use crate::packet::Wire;

/// Between two looks at what is due.
const TICK: Duration = Duration::from_micros(500);
/// What was not sent for so long is not made up for.
const BACKLOG: Duration = Duration::from_millis(20);
/// One, at a rate in seconds and a time in nanoseconds.
const FRAME: u64 = 1_000_000_000;
/// Frames of one call.
const TRAIN: u64 = 32;

/// Makes the frame of a number.
pub type Make = Arc<dyn Fn(u64) -> Wire + Send + Sync>;

/// Sends frames until its value ends.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// So many a second, or as many as it can. What the device does not take is lost.
    ///
    /// # Panics
    /// When there is no such interface.
    #[must_use]
    pub fn start(ns: &Namespace, interface: &str, a_second: Option<u32>, make: &Make) -> Self {
        let mut raw = RawSender::open(ns, interface);
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, count, make) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(make));
        let thread = thread::spawn(move || {
            let mut number = 0;
            let mut last = Instant::now();
            // In billionths of a frame.
            let mut due = 0;
            while !told.load(Ordering::Relaxed) {
                if let Some(a_second) = a_second {
                    let now = Instant::now();
                    let time = now.duration_since(last).min(BACKLOG);
                    due += time.as_nanos() as u64 * u64::from(a_second);
                    last = now;
                } else {
                    due = TRAIN * FRAME;
                }
                while due >= FRAME {
                    let train = TRAIN.min(due / FRAME);
                    let taken = raw.send_train((number..number + train).map(|n| make(n)));
                    count.fetch_add(taken, Ordering::Relaxed);
                    number += train;
                    due -= train * FRAME;
                }
                if a_second.is_some() {
                    thread::sleep(TICK);
                }
            }
        });
        Self { stop, sent, thread: Some(thread) }
    }

    /// Frames that the device took until now.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
