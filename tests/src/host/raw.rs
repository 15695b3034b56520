//! Frames as they are: a packet socket at an interface, to send whatever a stack would not, and to
//! collect what arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dataplane::io::packet_socket::{PacketOptions, PacketSocket};
use dataplane::io::poll::Poller;
use dataplane::io::vnet_hdr::VnetHdr;
use dataplane::io::{Port, PortRx, PortTx, TxReport};
use dataplane::pool::Pool;

use super::namespace::Namespace;
use crate::packet::Wire;

/// Buffers of a socket.
const BUFFERS: usize = 64;
/// How often it is looked whether there is more to come.
const POLL: Duration = Duration::from_millis(20);
/// How long a queue may stay full.
const PATIENCE: Duration = Duration::from_secs(10);

fn open(ns: &Namespace, interface: &str) -> (Box<dyn PortRx>, Box<dyn PortTx>) {
    let socket = ns.enter(|| PacketSocket::open(interface, &PacketOptions::default())).unwrap();
    let mut halves = Box::new(socket).split(1).unwrap();
    (halves.rx, halves.tx.remove(0))
}

/// Sends frames.
#[derive(Debug)]
pub struct RawSender {
    tx: Box<dyn PortTx>,
    pool: Pool,
    // Nobody reads it.
    _rx: Box<dyn PortRx>,
}

impl RawSender {
    /// At an interface.
    ///
    /// # Panics
    /// When there is no such interface.
    #[must_use]
    pub fn open(ns: &Namespace, interface: &str) -> Self {
        let (rx, tx) = open(ns, interface);
        Self { tx, pool: Pool::new(BUFFERS), _rx: rx }
    }

    /// Sends one frame, and waits for room if there is none.
    ///
    /// # Panics
    /// When it is refused, or there is no room for long.
    pub fn send(&mut self, frame: &[u8]) {
        let wire = Wire::from(frame);
        assert!(self.try_send(&wire), "refused: {wire:?}");
    }

    /// Offers one frame with its virtio-net header, once; false: the kernel does not take it, be it
    /// for want of room.
    ///
    /// # Panics
    /// When the interface is down.
    pub fn offer(&mut self, wire: &Wire) -> bool {
        let report = self.offered(wire);
        assert!(report.down == 0, "not sent: {report:?}");
        report.sent == 1
    }

    /// Offers several frames, as many as there are buffers for at most; how many the kernel took. They go in one
    /// call, which ends at the first that is not taken; but for those that say something by their virtio-net
    /// headers, which may be refused for that.
    ///
    /// # Panics
    /// When there are more.
    pub fn send_train(&mut self, wires: impl Iterator<Item = Wire>) -> u64 {
        let (mut frames, mut alone) = (Vec::with_capacity(BUFFERS), 0);
        for wire in wires {
            if wire.vnet != VnetHdr::default() {
                alone += u64::from(self.offered(&wire).sent);
                continue;
            }
            let mut buffer = self.pool.take().expect("no more than there are buffers");
            buffer.copy_from(&wire.bytes);
            buffer.vnet = wire.vnet;
            frames.push(buffer);
        }
        alone + u64::from(self.tx.tx(&mut frames, &mut self.pool).sent)
    }

    fn offered(&mut self, wire: &Wire) -> TxReport {
        let mut buffer = self.pool.take().expect("each comes back");
        buffer.copy_from(&wire.bytes);
        buffer.vnet = wire.vnet;
        self.tx.tx(&mut vec![buffer], &mut self.pool)
    }

    /// Sends one frame with its virtio-net header; false: the kernel does not take it.
    ///
    /// # Panics
    /// When the interface is down, or there is no room for long.
    pub fn try_send(&mut self, wire: &Wire) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = self.offered(wire);
            if report.sent == 1 || report.refused == 1 {
                return report.sent == 1;
            }
            assert!(report.full == 1 && Instant::now() < deadline, "not sent: {report:?}");
            thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Collects frames until it is asked.
#[derive(Debug)]
pub struct RawListener {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Wire>>>,
}

impl RawListener {
    /// Begins to collect the frames for which `wanted` says so.
    ///
    /// # Panics
    /// When there is no such interface.
    #[must_use]
    pub fn start(
        ns: &Namespace,
        interface: &str,
        wanted: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Self {
        Self::start_whole(ns, interface, move |wire| wanted(&wire.bytes))
    }

    /// As [`RawListener::start`], with the virtio-net headers.
    ///
    /// # Panics
    /// When there is no such interface.
    #[must_use]
    pub fn start_whole(
        ns: &Namespace,
        interface: &str,
        wanted: impl Fn(&Wire) -> bool + Send + 'static,
    ) -> Self {
        let (mut rx, _tx) = open(ns, interface);
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut poller = Poller::new().unwrap();
            poller.add(rx.fd().unwrap(), 0).unwrap();
            let mut pool = Pool::new(BUFFERS);
            let (mut seen, mut batch, mut events) = (Vec::new(), Vec::new(), Vec::new());
            loop {
                // What came before it was told is still looked at.
                let last = told.load(Ordering::Relaxed);
                poller.wait(Some(POLL), &mut events).unwrap();
                while rx.rx(32, &mut pool, &mut batch).unwrap_or(0) > 0 {
                    for frame in batch.drain(..) {
                        let wire = Wire { bytes: frame.bytes().to_vec(), vnet: frame.vnet };
                        if wanted(&wire) {
                            seen.push(wire);
                        }
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

    /// Ends, and gives what came.
    ///
    /// # Panics
    /// When listening did.
    #[must_use]
    pub fn seen(self) -> Vec<Vec<u8>> {
        self.seen_whole().into_iter().map(|wire| wire.bytes).collect()
    }

    /// As [`RawListener::seen`], with the virtio-net headers.
    ///
    /// # Panics
    /// When listening did.
    #[must_use]
    pub fn seen_whole(mut self) -> Vec<Wire> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("asked once");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for RawListener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
