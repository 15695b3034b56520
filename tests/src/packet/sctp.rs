//! Packets of SCTP (RFC 9260).

use super::{Host, Packet, Transport, packet};
use crate::sums;

/// User data.
pub const DATA: u8 = 0;
/// Begins an association.
pub const INIT: u8 = 1;
/// Answers it.
pub const INIT_ACK: u8 = 2;
/// Acknowledges data.
pub const SACK: u8 = 3;
/// Asks whether somebody is there.
pub const HEARTBEAT: u8 = 4;
/// Answers it.
pub const HEARTBEAT_ACK: u8 = 5;
/// Ends an association at once.
pub const ABORT: u8 = 6;
/// Begins to end it.
pub const SHUTDOWN: u8 = 7;
/// Answers it.
pub const SHUTDOWN_ACK: u8 = 8;
/// Something went wrong.
pub const ERROR: u8 = 9;
/// Brings back the cookie.
pub const COOKIE_ECHO: u8 = 10;
/// Answers it.
pub const COOKIE_ACK: u8 = 11;
/// An association has ended.
pub const SHUTDOWN_COMPLETE: u8 = 14;

/// A packet with this verification tag, without any chunk.
#[must_use]
pub fn sctp(from: &Host, src: u16, to: &Host, dst: u16, tag: u32) -> Packet {
    packet(from, to, Transport::Sctp { src, dst, tag })
}

impl Packet {
    /// One more chunk, padded to four bytes.
    #[must_use]
    pub fn chunk(self, kind: u8, flags: u8, value: &[u8]) -> Self {
        let len = u16::try_from(4 + value.len()).expect("a length");
        self.raw_chunk(&[&[kind, flags][..], &len.to_be_bytes(), value].concat())
    }

    /// One more chunk whose length may lie.
    #[must_use]
    pub fn raw_chunk(self, bytes: &[u8]) -> Self {
        let mut all = self.payload.clone();
        all.extend_from_slice(bytes);
        all.resize(all.len().next_multiple_of(4), 0);
        self.payload(&all)
    }

    /// INIT, or another chunk of its form, that asks for a tag.
    #[must_use]
    pub fn asks_for(self, kind: u8, tag: u32) -> Self {
        let rest = [0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1];
        self.chunk(kind, 0, &[&tag.to_be_bytes()[..], &rest].concat())
    }
}

/// The common header and the chunks, with their CRC.
pub(super) fn with_crc(src: u16, dst: u16, tag: u32, chunks: &[u8]) -> Vec<u8> {
    let header = [src.to_be_bytes(), dst.to_be_bytes()].concat();
    let mut bytes = [&header[..], &tag.to_be_bytes(), &[0; 4], chunks].concat();
    let crc = sums::crc32c(&bytes);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    bytes
}
