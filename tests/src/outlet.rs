//! Where frames go out in tests without devices.

use dataplane::core::Transmit;
use dataplane::frame::Frame;
use dataplane::io::TxReport;
use dataplane::packet::types::PortId;
use dataplane::pool::Pool;

/// Looks at every frame that leaves, whether its buffer goes with it or not.
pub trait Outlet {
    /// A frame leaves by a port; its end is to be counted in `report`.
    fn take(&mut self, port: PortId, frame: &Frame, report: &mut TxReport);
}

/// An [`Outlet`] as the engine wants it: buffers go back to their pool at once.
#[derive(Debug, Default)]
pub struct Outside<O>(pub O);

impl<O: Outlet> Transmit for Outside<O> {
    fn tx(&mut self, port: PortId, frames: &mut Vec<Frame>, pool: &mut Pool) -> TxReport {
        let mut report = TxReport::default();
        for frame in frames.drain(..) {
            self.0.take(port, &frame, &mut report);
            pool.put(frame);
        }
        report
    }

    fn tx_copy(&mut self, port: PortId, frame: &mut Frame, _pool: &mut Pool) -> TxReport {
        let mut report = TxReport::default();
        self.0.take(port, frame, &mut report);
        report
    }
}

/// Counts a frame as sent.
pub fn sent(frame: &Frame, report: &mut TxReport) {
    report.sent += 1;
    report.sent_bytes += frame.len() as u64;
}

/// Takes whatever comes and looks at nothing.
#[derive(Debug, Default)]
pub struct Sink;

impl Outlet for Sink {
    fn take(&mut self, _port: PortId, frame: &Frame, report: &mut TxReport) {
        sent(frame, report);
    }
}
