//! What arrives at an interface, as a packet socket there sees it before any stack does.
//!
//! The socket tells of each frame whether its checksum is complete and whether it stands for several
//! segments, so what a wire would have carried is known whatever the offloads are. When frames come
//! faster than they are looked at, some are passed over: this is a sample.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dataplane::io::Port;
use dataplane::io::packet_socket::{PacketOptions, PacketSocket};
use dataplane::io::poll::Poller;
use dataplane::pool::Pool;

use super::namespace::Namespace;
use crate::packet::Wire;
use crate::sums;

/// Faults told at most.
const FAULTS: usize = 5;
/// How often it is looked whether there is more to come.
const POLL: Duration = Duration::from_millis(20);
/// Reads without a pause at most: 32,000 frames.
const ENOUGH: usize = 1000;
/// Link header; the tests' frames have no tags.
const LINK: usize = 14;

/// What was seen of TCP over IPv4 and IPv6.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Frames.
    pub frames: u64,
    /// Those that stand for several segments.
    pub large: u64,
    /// Those that came with a complete checksum.
    pub complete: u64,
    /// Bytes of the longest IP packet, of frames that stand for several the whole.
    pub longest: usize,
    /// Bytes of the longest IP packet that a wire would carry.
    pub longest_segment: usize,
    /// Frames with a wrong checksum.
    pub faults: Vec<String>,
}

/// Watches an interface until it is asked.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
}

impl Watch {
    /// Begins.
    ///
    /// # Panics
    /// When there is no such interface.
    #[must_use]
    pub fn start(ns: &Namespace, interface: &str) -> Self {
        let socket = ns.enter(|| PacketSocket::open(interface, &PacketOptions::default())).unwrap();
        let mut halves = Box::new(socket).split(1).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut poller = Poller::new().unwrap();
            poller.add(halves.rx.fd().unwrap(), 0).unwrap();
            let mut pool = Pool::new(32);
            let (mut seen, mut batch, mut events) = (Seen::default(), Vec::new(), Vec::new());
            loop {
                // What came before it was told is still looked at.
                let last = told.load(Ordering::Relaxed);
                poller.wait(Some(POLL), &mut events).unwrap();
                // No longer than a buffer full of it, should it never end.
                for _ in 0..ENOUGH {
                    if halves.rx.rx(32, &mut pool, &mut batch).unwrap_or(0) == 0 {
                        break;
                    }
                    for frame in batch.drain(..) {
                        seen.look(&Wire { bytes: frame.bytes().to_vec(), vnet: frame.vnet });
                        pool.put(frame);
                    }
                }
                if last {
                    return seen;
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// Ends, and tells.
    ///
    /// # Panics
    /// When watching did.
    #[must_use]
    pub fn seen(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("asked once");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    fn look(&mut self, wire: &Wire) {
        let bytes = &wire.bytes;
        let transport = match bytes.get(12..14) {
            Some([0x08, 0x00]) if bytes.get(LINK + 9) == Some(&6) => {
                LINK + usize::from(bytes[LINK] & 0xf) * 4
            }
            Some([0x86, 0xdd]) if bytes.get(LINK + 6) == Some(&6) => LINK + 40,
            _ => return,
        };
        if bytes.len() < transport + 20 {
            return;
        }
        let payload = transport + usize::from(bytes[transport + 12] >> 4) * 4;
        let whole = bytes.len() - LINK;
        let segment = if wire.vnet.is_gso() {
            self.large += 1;
            payload - LINK + usize::from(wire.vnet.gso_size)
        } else {
            whole
        };
        self.frames += 1;
        self.complete += u64::from(!wire.vnet.needs_csum());
        self.longest = self.longest.max(whole);
        self.longest_segment = self.longest_segment.max(segment);
        let sums = sums::check(wire);
        if !sums.are_right() && self.faults.len() < FAULTS {
            self.faults.push(format!("{sums:?}: {wire:?}"));
        }
    }

    /// Asserts that every checksum was right, and every segment short enough.
    ///
    /// # Panics
    /// When one was not.
    pub fn assert_sound(&self, mtu: usize) {
        assert!(self.frames > 0, "nothing came: {self:?}");
        assert!(self.faults.is_empty(), "wrong checksums: {self:#?}");
        assert!(self.longest_segment <= mtu, "longer than the MTU of {mtu}: {self:?}");
    }
}
