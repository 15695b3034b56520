//! Captures: the filter expression, the pcapng stream, and its reading at the other end.
//!
//! The engine copies frames; the daemon turns them into a stream with [`Recorder`]; the client
//! writes the stream to a file or prints a line for each frame. Not the hot path: allocation is
//! fine here, blocking is the caller's affair.

pub mod filter;
pub mod stream;
pub mod summary;
pub mod view;

use std::collections::HashMap;

use dataplane::engine::CapturedFrame;
use dataplane::io::pcap::{Direction, PcapngWriter};
use dataplane::packet::types::PortId;

use crate::error::{Result, ResultExt as _};

use filter::Filter;
use view::View;

/// Makes a pcapng stream of captured frames, piece by piece: each piece is whole blocks, so that a
/// program reading the stream through a pipe can show every frame as it comes.
///
/// Directions are those of the switch port: inbound is what the sandbox sent.
#[derive(Debug)]
pub struct Recorder {
    writer: PcapngWriter<Vec<u8>>,
    interfaces: HashMap<PortId, u32>,
    filter: Option<Filter>,
    /// Frames still wanted; `None`: no end.
    remaining: Option<u64>,
}

impl Recorder {
    /// A stream of frames from `ports`, which it names as given. `count`: how many frames at most.
    ///
    /// # Errors
    /// When a port's name is too long for the format.
    pub fn new(
        ports: &[(PortId, String)],
        filter: Option<Filter>,
        count: Option<u64>,
    ) -> Result<Self> {
        let mut writer = PcapngWriter::new(Vec::new()).failed("capture")?;
        let mut interfaces = HashMap::new();
        for (port, name) in ports {
            let number = writer.add_interface(name, 0).failed("capture")?;
            interfaces.insert(*port, number);
        }
        Ok(Self { writer, interfaces, filter, remaining: count })
    }

    /// Takes what was written since the last call; the first time, that is the header.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.writer.inner_mut())
    }

    /// Writes the frame if the filter wants it. True: it was written.
    pub fn record(&mut self, frame: &CapturedFrame) -> bool {
        if self.finished() {
            return false;
        }
        let Some(interface) = self.interfaces.get(&frame.port) else { return false };
        let wanted = self
            .filter
            .as_ref()
            .is_none_or(|filter| filter.matches(&View::parse(&frame.bytes, frame.original_len)));
        if !wanted {
            return false;
        }
        let direction = if frame.egress { Direction::Outbound } else { Direction::Inbound };
        // A vector takes everything; the only error is a frame beyond 4 GiB.
        let written = self
            .writer
            .write(*interface, direction, frame.unix_nanos, frame.original_len, &frame.bytes)
            .is_ok();
        if written && let Some(remaining) = &mut self.remaining {
            *remaining -= 1;
        }
        written
    }

    /// Whether as many frames were written as were asked for.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.remaining == Some(0)
    }
}

#[cfg(test)]
mod tests;
