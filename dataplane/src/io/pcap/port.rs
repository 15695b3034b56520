//! A port that receives the frames of a capture file, as fast as the worker takes them, and
//! collects what is sent to it. For replay tools and tests, not for the hot path: the collector
//! has a lock and grows.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{PcapError, PcapReader, PcapWriter};
use crate::frame::{Frame, MAX_FRAME_LEN};
use crate::io::poll::Signal;
use crate::io::vnet_hdr::VnetHdr;
use crate::io::{Gone, Offloads, Port, PortHalves, PortRx, PortTx, TxReport};
use crate::pool::Pool;

#[derive(Debug)]
struct Shared {
    output: Mutex<PcapWriter<Vec<u8>>>,
    error: Mutex<Option<PcapError>>,
    finished: AtomicBool,
    delivered: AtomicU64,
    skipped: AtomicU64,
    /// Time of the frame delivered last, which becomes that of the frames sent: replaying a file
    /// twice gives the same output.
    time: AtomicU64,
}

/// The engine's end. It takes plain frames only: a capture has no offload state.
#[derive(Debug)]
pub struct PcapPort {
    reader: PcapReader<Vec<u8>>,
    shared: Arc<Shared>,
}

/// The tool's end.
#[derive(Debug, Clone)]
pub struct PcapPeer(Arc<Shared>);

impl PcapPort {
    /// A port that delivers the Ethernet frames of the capture file `input`.
    ///
    /// # Errors
    /// When it is no capture file.
    pub fn new(input: Vec<u8>) -> Result<(Self, PcapPeer), PcapError> {
        let reader = PcapReader::new(input)?;
        // A vector takes everything.
        let output = PcapWriter::new(Vec::new()).map_err(|_| PcapError::NotACapture)?;
        let shared = Arc::new(Shared {
            output: Mutex::new(output),
            error: Mutex::new(None),
            finished: AtomicBool::new(false),
            delivered: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            time: AtomicU64::new(0),
        });
        Ok((Self { reader, shared: Arc::clone(&shared) }, PcapPeer(shared)))
    }
}

impl PcapPeer {
    /// Whether all frames have been delivered.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.0.finished.load(Ordering::Acquire)
    }

    /// Frames delivered so far.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.0.delivered.load(Ordering::Acquire)
    }

    /// Records passed over so far: not Ethernet, or longer than a frame can be.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.0.skipped.load(Ordering::Acquire)
    }

    /// Why the file ended early, if it did.
    #[must_use]
    pub fn error(&self) -> Option<PcapError> {
        *self.0.error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was sent to the port until now, as a pcap file.
    #[must_use]
    pub fn output(&self) -> Vec<u8> {
        self.0.output.lock().unwrap_or_else(PoisonError::into_inner).inner_mut().clone()
    }
}

impl Port for PcapPort {
    fn offloads(&self) -> Offloads {
        Offloads::NONE
    }

    fn split(self: Box<Self>, workers: usize) -> io::Result<PortHalves> {
        let half = || Box::new(PcapTx { shared: Arc::clone(&self.shared) }) as Box<dyn PortTx>;
        let tx = (0..workers).map(|_| half()).collect();
        let signal = Signal::new()?;
        signal.raise();
        let rx = PcapRx { reader: self.reader, shared: self.shared, signal, oversized: 0 };
        Ok(PortHalves { rx: Box::new(rx), tx })
    }
}

#[derive(Debug)]
struct PcapRx {
    reader: PcapReader<Vec<u8>>,
    shared: Arc<Shared>,
    /// Raised from the start until the file ends.
    signal: Signal,
    oversized: u64,
}

impl PcapRx {
    /// Fills `frame`; false at the end.
    fn next(&mut self, frame: &mut Frame) -> bool {
        loop {
            match self.reader.next_frame() {
                Ok(Some(found)) if found.bytes.len() > MAX_FRAME_LEN => self.oversized += 1,
                Ok(Some(found)) => {
                    frame.copy_from(found.bytes);
                    frame.vnet = VnetHdr::default();
                    self.shared.time.store(found.unix_nanos, Ordering::Release);
                    return true;
                }
                Ok(None) => return false,
                Err(error) => {
                    *self.shared.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return false;
                }
            }
        }
    }
}

impl PortRx for PcapRx {
    fn rx(
        &mut self,
        budget: usize,
        pool: &mut Pool,
        batch: &mut Vec<Frame>,
    ) -> Result<usize, Gone> {
        let mut count = 0;
        let mut ended = false;
        while count < budget {
            let Some(mut frame) = pool.take() else { break };
            if !self.next(&mut frame) {
                pool.put(frame);
                ended = true;
                break;
            }
            batch.push(frame);
            count += 1;
        }
        self.shared.delivered.fetch_add(count as u64, Ordering::AcqRel);
        self.shared.skipped.store(self.reader.skipped() + self.oversized, Ordering::Release);
        if ended {
            self.signal.clear();
            self.shared.finished.store(true, Ordering::Release);
        }
        Ok(count)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.signal.as_fd())
    }
}

#[derive(Debug)]
struct PcapTx {
    shared: Arc<Shared>,
}

impl PcapTx {
    fn write(&self, frame: &Frame, report: &mut TxReport) {
        let time = self.shared.time.load(Ordering::Acquire);
        let mut output = self.shared.output.lock().unwrap_or_else(PoisonError::into_inner);
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        match output.write(time, len, frame.bytes()) {
            Ok(()) => {
                report.sent += 1;
                report.sent_bytes += u64::from(len);
            }
            Err(_) => report.refused += 1,
        }
    }
}

impl PortTx for PcapTx {
    fn tx(&mut self, frames: &mut Vec<Frame>, pool: &mut Pool) -> TxReport {
        let mut report = TxReport::default();
        for frame in frames.drain(..) {
            self.write(&frame, &mut report);
            pool.put(frame);
        }
        report
    }

    fn tx_copy(&mut self, frame: &mut Frame, _pool: &mut Pool) -> TxReport {
        let mut report = TxReport::default();
        self.write(frame, &mut report);
        report
    }
}
