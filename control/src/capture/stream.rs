//! Reading the pcapng stream as it arrives, in pieces of any size.
//!
//! Reads what [`super::Recorder`] writes: one section, little-endian, times in nanoseconds. Other
//! blocks are passed over, as the format asks. Lengths are checked before they are believed.

use dataplane::io::pcap::Direction;

use crate::error::{Error, Result};

/// No block of ours is longer: a frame of 64 KiB with its headers.
const MAX_BLOCK: usize = 1 << 20;

/// A frame out of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamFrame {
    /// Name of the port.
    pub port: String,
    /// From the port or to it.
    pub direction: Direction,
    /// Nanoseconds since the epoch.
    pub unix_nanos: u64,
    /// Length on the wire.
    pub original_len: u32,
    /// The bytes that were captured.
    pub bytes: Vec<u8>,
}

/// Collects pieces and gives frames.
#[derive(Debug, Default)]
pub struct StreamReader {
    pending: Vec<u8>,
    ports: Vec<String>,
}

impl StreamReader {
    /// Adds a piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.pending.extend_from_slice(piece);
    }

    /// The next frame, once all of it is there.
    ///
    /// # Errors
    /// When the stream makes no sense; the rest cannot be read then.
    pub fn next_frame(&mut self) -> Result<Option<StreamFrame>> {
        loop {
            let Some(len) = word(&self.pending, 4) else { return Ok(None) };
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            if !(12..=MAX_BLOCK).contains(&len) || len % 4 != 0 {
                return Err(Error::failed("capture stream is damaged: impossible block length"));
            }
            if self.pending.len() < len {
                return Ok(None);
            }
            let block: Vec<u8> = self.pending.drain(..len).collect();
            if let Some(frame) = self.block(&block)? {
                return Ok(Some(frame));
            }
        }
    }

    fn block(&mut self, block: &[u8]) -> Result<Option<StreamFrame>> {
        const INTERFACE: u32 = 1;
        const ENHANCED_PACKET: u32 = 6;
        const OPTION_NAME: u16 = 2;
        const OPTION_FLAGS: u16 = 2;
        let damaged = || Error::failed("capture stream is damaged: a block is cut short");
        match word(block, 0) {
            Some(INTERFACE) => {
                let name = option(block, 16, OPTION_NAME).unwrap_or_default();
                self.ports.push(String::from_utf8_lossy(name).into_owned());
                Ok(None)
            }
            Some(ENHANCED_PACKET) => {
                let field = |at| word(block, at).ok_or_else(damaged);
                let interface = usize::try_from(field(8)?).unwrap_or(usize::MAX);
                let unix_nanos = u64::from(field(12)?) << 32 | u64::from(field(16)?);
                let captured = usize::try_from(field(20)?).unwrap_or(usize::MAX);
                let original_len = field(24)?;
                let port = self.ports.get(interface).cloned().unwrap_or_default();
                let end = captured.checked_add(28).ok_or_else(damaged)?;
                let bytes = block.get(28..end).ok_or_else(damaged)?.to_vec();
                let flags = option(block, end.next_multiple_of(4), OPTION_FLAGS)
                    .and_then(|value| word(value, 0))
                    .unwrap_or(0);
                // Bits 0 and 1: 1 inbound, 2 outbound.
                let direction =
                    if flags & 3 == 2 { Direction::Outbound } else { Direction::Inbound };
                Ok(Some(StreamFrame { port, direction, unix_nanos, original_len, bytes }))
            }
            _ => Ok(None),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The value of an option in the list that begins at `at` and ends four bytes before the block.
fn option(block: &[u8], mut at: usize, wanted: u16) -> Option<&[u8]> {
    loop {
        let [a, b, c, d] = *block.get(at..)?.first_chunk()?;
        let (code, len) = (u16::from_le_bytes([a, b]), usize::from(u16::from_le_bytes([c, d])));
        let value = block.get(at + 4..at + 4 + len)?;
        if code == wanted {
            return Some(value);
        }
        if code == 0 {
            return None;
        }
        at += 4 + len.next_multiple_of(4);
    }
}
