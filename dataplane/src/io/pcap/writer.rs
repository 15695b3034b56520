//! Writing of pcap and pcapng, in little-endian order with times in nanoseconds.

use std::io::{self, Write};

use super::{
    BLOCK_ENHANCED_PACKET, BLOCK_INTERFACE, BLOCK_SECTION, BYTE_ORDER_MAGIC, LINKTYPE_ETHERNET,
    MAGIC_NANOS, OPTION_END, OPTION_EPB_FLAGS, OPTION_IF_NAME, OPTION_IF_TSRESOL,
};

/// What goes into the header as the limit of a record when frames are not cut.
const NO_SNAP_LEN: u32 = 262_144;

/// Whether a captured frame came from the interface or was sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Received from it.
    Inbound,
    /// Sent to it.
    Outbound,
}

/// Writes a pcap file of Ethernet frames.
#[derive(Debug)]
pub struct PcapWriter<W> {
    sink: W,
}

impl<W: Write> PcapWriter<W> {
    /// Writes the file header.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn new(mut sink: W) -> io::Result<Self> {
        let mut header = Vec::with_capacity(24);
        put32(&mut header, MAGIC_NANOS);
        put16(&mut header, 2); // version 2.4
        put16(&mut header, 4);
        put32(&mut header, 0); // time zone and accuracy: always zero
        put32(&mut header, 0);
        put32(&mut header, NO_SNAP_LEN);
        put32(&mut header, LINKTYPE_ETHERNET.into());
        sink.write_all(&header)?;
        Ok(Self { sink })
    }

    /// Writes one frame, of which `bytes` are there and `original_len` were on the wire.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn write(&mut self, unix_nanos: u64, original_len: u32, bytes: &[u8]) -> io::Result<()> {
        let mut header = [0; 16];
        let secs = unix_nanos / 1_000_000_000;
        let fields = [
            u32::try_from(secs).unwrap_or(u32::MAX),
            u32::try_from(unix_nanos % 1_000_000_000).unwrap_or(0),
            len32(bytes.len())?,
            original_len,
        ];
        for (to, field) in header.chunks_exact_mut(4).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        self.sink.write_all(&header)?;
        self.sink.write_all(bytes)
    }

    /// What was written to.
    pub fn into_inner(self) -> W {
        self.sink
    }

    /// What is written to: to flush it, or to take out what has piled up.
    pub fn inner_mut(&mut self) -> &mut W {
        &mut self.sink
    }
}

/// Writes a pcapng file of one section with Ethernet interfaces.
#[derive(Debug)]
pub struct PcapngWriter<W> {
    sink: W,
    interfaces: u32,
    block: Vec<u8>,
}

impl<W: Write> PcapngWriter<W> {
    /// Writes the section header.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn new(sink: W) -> io::Result<Self> {
        let mut writer = Self { sink, interfaces: 0, block: Vec::new() };
        writer.begin(BLOCK_SECTION);
        put32(&mut writer.block, BYTE_ORDER_MAGIC);
        put16(&mut writer.block, 1); // version 1.0
        put16(&mut writer.block, 0);
        writer.block.extend_from_slice(&u64::MAX.to_le_bytes()); // length of the section: unknown
        writer.end()?;
        Ok(writer)
    }

    /// Describes an interface; returns its number for [`PcapngWriter::write`]. May come between
    /// frames. `snap_len` 0: frames are not cut.
    ///
    /// # Errors
    /// Those of the sink, or a name of more than 65,535 bytes.
    pub fn add_interface(&mut self, name: &str, snap_len: u32) -> io::Result<u32> {
        self.begin(BLOCK_INTERFACE);
        put16(&mut self.block, LINKTYPE_ETHERNET);
        put16(&mut self.block, 0);
        put32(&mut self.block, snap_len);
        self.option(OPTION_IF_NAME, name.as_bytes())?;
        self.option(OPTION_IF_TSRESOL, &[9])?; // 10^-9 s
        self.option(OPTION_END, &[])?;
        self.end()?;
        let id = self.interfaces;
        self.interfaces += 1;
        Ok(id)
    }

    /// Writes one frame of `interface`, of which `bytes` are there and `original_len` were on the
    /// wire.
    ///
    /// # Errors
    /// Those of the sink, or an interface that was not added.
    pub fn write(
        &mut self,
        interface: u32,
        direction: Direction,
        unix_nanos: u64,
        original_len: u32,
        bytes: &[u8],
    ) -> io::Result<()> {
        if interface >= self.interfaces {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such interface"));
        }
        self.begin(BLOCK_ENHANCED_PACKET);
        put32(&mut self.block, interface);
        put32(&mut self.block, u32::try_from(unix_nanos >> 32).unwrap_or(0));
        put32(&mut self.block, u32::try_from(unix_nanos & 0xffff_ffff).unwrap_or(0));
        put32(&mut self.block, len32(bytes.len())?);
        put32(&mut self.block, original_len);
        self.block.extend_from_slice(bytes);
        self.pad();
        let flags: u32 = match direction {
            Direction::Inbound => 1,
            Direction::Outbound => 2,
        };
        self.option(OPTION_EPB_FLAGS, &flags.to_le_bytes())?;
        self.option(OPTION_END, &[])?;
        self.end()
    }

    /// What was written to.
    pub fn into_inner(self) -> W {
        self.sink
    }

    /// What is written to: to flush it, or to take out what has piled up.
    pub fn inner_mut(&mut self) -> &mut W {
        &mut self.sink
    }

    fn begin(&mut self, kind: u32) {
        self.block.clear();
        put32(&mut self.block, kind);
        put32(&mut self.block, 0); // the length, once known
    }

    fn pad(&mut self) {
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    fn option(&mut self, code: u16, value: &[u8]) -> io::Result<()> {
        let len = u16::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        put16(&mut self.block, code);
        put16(&mut self.block, len);
        self.block.extend_from_slice(value);
        self.pad();
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        let len = len32(self.block.len() + 4)?;
        put32(&mut self.block, len);
        if let Some(field) = self.block.get_mut(4..8) {
            field.copy_from_slice(&len.to_le_bytes());
        }
        // A block at a time: a reader at the other end of a pipe never sees half of one for long.
        self.sink.write_all(&self.block)
    }
}

fn len32(len: usize) -> io::Result<u32> {
    u32::try_from(len).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn put16(to: &mut Vec<u8>, value: u16) {
    to.extend_from_slice(&value.to_le_bytes());
}

fn put32(to: &mut Vec<u8>, value: u32) {
    to.extend_from_slice(&value.to_le_bytes());
}
