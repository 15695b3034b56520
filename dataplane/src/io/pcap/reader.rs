//! Reading of pcap and pcapng.

use super::{
    BLOCK_ENHANCED_PACKET, BLOCK_INTERFACE, BLOCK_PACKET, BLOCK_SECTION, BLOCK_SIMPLE_PACKET,
    BYTE_ORDER_MAGIC, LINKTYPE_ETHERNET, MAGIC_KUZNETZOV, MAGIC_MICROS, MAGIC_NANOS, OPTION_END,
    OPTION_IF_TSOFFSET, OPTION_IF_TSRESOL,
};

/// Why a file, or the rest of it, cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PcapError {
    /// The file begins like no capture file.
    #[error("not a pcap or pcapng file")]
    NotACapture,
    /// The file ends within a header, record or block.
    #[error("capture file is cut short: at byte {0} something begins that does not end")]
    CutShort(usize),
    /// A block whose lengths contradict each other.
    #[error("capture file is damaged: block at byte {0} has contradicting lengths")]
    BlockLength(usize),
    /// A section whose byte order mark is none.
    #[error("capture file is damaged: section at byte {0} has no byte order mark")]
    ByteOrder(usize),
    /// A packet of an interface that was not described before.
    #[error("capture file is damaged: packet at byte {0} names an interface that is not there")]
    UnknownInterface(usize),
}

/// One captured Ethernet frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PcapFrame<'a> {
    /// Time in nanoseconds since the epoch; zero if the file does not say.
    pub unix_nanos: u64,
    /// Interface number within its section; zero in pcap files.
    pub interface: u32,
    /// Length on the wire; more than there are bytes when the capture cut the frame.
    pub original_len: u32,
    /// The frame.
    pub bytes: &'a [u8],
}

/// Reads frames one after the other out of a whole file in memory.
#[derive(Debug)]
pub struct PcapReader<B> {
    bytes: B,
    state: State,
}

#[derive(Debug)]
struct State {
    at: usize,
    order: Order,
    format: Format,
    interfaces: Vec<Interface>,
    skipped: u64,
    ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Big,
    Little,
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Pcap { header_len: usize, nanos_per_unit: u64, link: u16 },
    Pcapng,
}

#[derive(Debug, Clone, Copy)]
struct Interface {
    link: u16,
    snap_len: u32,
    /// As the file has it: the high bit chooses powers of two, the others are the exponent.
    resolution: u8,
    offset_secs: i64,
}

/// Where a frame lies; resolved into bytes when the reader's state is not borrowed any more.
struct Found {
    unix_nanos: u64,
    interface: u32,
    original_len: u32,
    from: usize,
    to: usize,
}

impl<B: AsRef<[u8]>> PcapReader<B> {
    /// Looks at the file's beginning.
    ///
    /// # Errors
    /// When it is no capture file.
    pub fn new(bytes: B) -> Result<Self, PcapError> {
        let state = State::open(bytes.as_ref())?;
        Ok(Self { bytes, state })
    }

    /// The next Ethernet frame; `None` at the end of the file and after an error.
    ///
    /// # Errors
    /// When the rest of the file cannot be read. The frames before it were sound.
    pub fn next_frame(&mut self) -> Result<Option<PcapFrame<'_>>, PcapError> {
        let bytes = self.bytes.as_ref();
        let found = match self.state.next(bytes) {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.state.ended = true;
                return Ok(None);
            }
            Err(error) => {
                self.state.ended = true;
                return Err(error);
            }
        };
        Ok(Some(PcapFrame {
            unix_nanos: found.unix_nanos,
            interface: found.interface,
            original_len: found.original_len,
            bytes: bytes.get(found.from..found.to).unwrap_or_default(),
        }))
    }

    /// Records passed over so far because they are not Ethernet.
    #[must_use]
    pub const fn skipped(&self) -> u64 {
        self.state.skipped
    }
}

impl Order {
    fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let raw = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { u16::from_be_bytes(raw) } else { u16::from_le_bytes(raw) })
    }

    fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let raw = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { u32::from_be_bytes(raw) } else { u32::from_le_bytes(raw) })
    }

    fn i64(self, bytes: &[u8], at: usize) -> Option<i64> {
        let raw = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { i64::from_be_bytes(raw) } else { i64::from_le_bytes(raw) })
    }

    fn usize(self, bytes: &[u8], at: usize) -> Option<usize> {
        usize::try_from(self.u32(bytes, at)?).ok()
    }
}

impl State {
    fn open(bytes: &[u8]) -> Result<Self, PcapError> {
        let sections = |order, format, at| Self {
            at,
            order,
            format,
            interfaces: Vec::new(),
            skipped: 0,
            ended: false,
        };
        if Order::Big.u32(bytes, 0) == Some(BLOCK_SECTION) {
            // The byte order is told by the section itself, which is read as the first block.
            return Ok(sections(Order::Big, Format::Pcapng, 0));
        }
        for order in [Order::Little, Order::Big] {
            let (header_len, nanos_per_unit) = match order.u32(bytes, 0) {
                Some(MAGIC_MICROS) => (16, 1000),
                Some(MAGIC_NANOS) => (16, 1),
                Some(MAGIC_KUZNETZOV) => (24, 1000),
                _ => continue,
            };
            // The upper bits of the link type field tell of a frame check sequence.
            let raw = order.u32(bytes, 20).ok_or(PcapError::CutShort(0))?;
            let link = u16::try_from(raw & 0xffff).unwrap_or(u16::MAX);
            return Ok(sections(order, Format::Pcap { header_len, nanos_per_unit, link }, 24));
        }
        Err(PcapError::NotACapture)
    }

    fn next(&mut self, bytes: &[u8]) -> Result<Option<Found>, PcapError> {
        while !self.ended && self.at < bytes.len() {
            let found = match self.format {
                Format::Pcap { header_len, nanos_per_unit, link } => {
                    self.record(bytes, header_len, nanos_per_unit, link)?
                }
                Format::Pcapng => self.block(bytes)?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Reads one record of a pcap file; `None` when it is not Ethernet.
    fn record(
        &mut self,
        bytes: &[u8],
        header_len: usize,
        nanos_per_unit: u64,
        link: u16,
    ) -> Result<Option<Found>, PcapError> {
        let (at, order) = (self.at, self.order);
        let field = |offset| order.u32(bytes, at + offset).ok_or(PcapError::CutShort(at));
        let (secs, units, captured, original_len) = (field(0)?, field(4)?, field(8)?, field(12)?);
        let from = at + header_len;
        let to = usize::try_from(captured)
            .ok()
            .and_then(|len| from.checked_add(len))
            .filter(|to| *to <= bytes.len())
            .ok_or(PcapError::CutShort(at))?;
        self.at = to;
        if link != LINKTYPE_ETHERNET {
            self.skipped += 1;
            return Ok(None);
        }
        let unix_nanos = u64::from(secs) * 1_000_000_000 + u64::from(units) * nanos_per_unit;
        Ok(Some(Found { unix_nanos, interface: 0, original_len, from, to }))
    }

    /// Reads one block of a pcapng file; `None` when it has no Ethernet frame.
    fn block(&mut self, bytes: &[u8]) -> Result<Option<Found>, PcapError> {
        let at = self.at;
        let kind = self.order.u32(bytes, at).ok_or(PcapError::CutShort(at))?;
        if kind == BLOCK_SECTION {
            self.order = match Order::Big.u32(bytes, at + 8) {
                Some(BYTE_ORDER_MAGIC) => Order::Big,
                Some(magic) if magic.swap_bytes() == BYTE_ORDER_MAGIC => Order::Little,
                Some(_) => return Err(PcapError::ByteOrder(at)),
                None => return Err(PcapError::CutShort(at)),
            };
            self.interfaces.clear();
        }
        let order = self.order;
        // Type and length before the body, the length again behind it.
        let len = order.usize(bytes, at + 4).ok_or(PcapError::CutShort(at))?;
        if len < 12 || !len.is_multiple_of(4) {
            return Err(PcapError::BlockLength(at));
        }
        let end = at.checked_add(len).ok_or(PcapError::CutShort(at))?;
        let body = bytes.get(at + 8..end - 4).ok_or(PcapError::CutShort(at))?;
        if order.usize(bytes, end - 4) != Some(len) {
            return Err(PcapError::BlockLength(at));
        }
        self.at = end;
        match kind {
            BLOCK_INTERFACE => {
                let interface = interface(order, body).ok_or(PcapError::BlockLength(at))?;
                self.interfaces.push(interface);
                Ok(None)
            }
            BLOCK_ENHANCED_PACKET => {
                let id = order.u32(body, 0).ok_or(PcapError::BlockLength(at))?;
                self.packet(at, body, id)
            }
            BLOCK_PACKET => {
                let id = order.u16(body, 0).ok_or(PcapError::BlockLength(at))?;
                self.packet(at, body, id.into())
            }
            BLOCK_SIMPLE_PACKET => self.simple_packet(at, body),
            _ => Ok(None),
        }
    }

    fn interface(&self, at: usize, id: u32) -> Result<Interface, PcapError> {
        let index = usize::try_from(id).ok();
        index
            .and_then(|index| self.interfaces.get(index).copied())
            .ok_or(PcapError::UnknownInterface(at))
    }

    /// An enhanced packet block, or an old packet block: the same from the time on.
    fn packet(&mut self, at: usize, body: &[u8], id: u32) -> Result<Option<Found>, PcapError> {
        let field = |offset| self.order.u32(body, offset).ok_or(PcapError::BlockLength(at));
        let (high, low, captured, original_len) = (field(4)?, field(8)?, field(12)?, field(16)?);
        let len = usize::try_from(captured)
            .ok()
            .filter(|len| *len <= body.len() - 20)
            .ok_or(PcapError::BlockLength(at))?;
        let interface = self.interface(at, id)?;
        if interface.link != LINKTYPE_ETHERNET {
            self.skipped += 1;
            return Ok(None);
        }
        let from = at + 8 + 20;
        let unix_nanos = interface.unix_nanos(u64::from(high) << 32 | u64::from(low));
        Ok(Some(Found { unix_nanos, interface: id, original_len, from, to: from + len }))
    }

    /// A simple packet block: of the first interface, cut to its snap length, without a time.
    fn simple_packet(&mut self, at: usize, body: &[u8]) -> Result<Option<Found>, PcapError> {
        let original_len = self.order.u32(body, 0).ok_or(PcapError::BlockLength(at))?;
        let interface = self.interface(at, 0)?;
        let captured = match interface.snap_len {
            0 => original_len,
            snap_len => original_len.min(snap_len),
        };
        let len = usize::try_from(captured)
            .ok()
            .filter(|len| *len <= body.len() - 4)
            .ok_or(PcapError::BlockLength(at))?;
        if interface.link != LINKTYPE_ETHERNET {
            self.skipped += 1;
            return Ok(None);
        }
        let from = at + 8 + 4;
        Ok(Some(Found { unix_nanos: 0, interface: 0, original_len, from, to: from + len }))
    }
}

/// Reads an interface description block.
fn interface(order: Order, body: &[u8]) -> Option<Interface> {
    let mut interface = Interface {
        link: order.u16(body, 0)?,
        snap_len: order.u32(body, 4)?,
        resolution: 6,
        offset_secs: 0,
    };
    let mut options = body.get(8..)?;
    // Options may be left out altogether, or end with the block. Damaged ones end the list: they
    // only concern times.
    while let (Some(code), Some(len)) = (order.u16(options, 0), order.u16(options, 2)) {
        let len = usize::from(len);
        let Some(value) = options.get(4..4 + len) else { break };
        match code {
            OPTION_END => break,
            OPTION_IF_TSRESOL => interface.resolution = *value.first().unwrap_or(&6),
            OPTION_IF_TSOFFSET => interface.offset_secs = order.i64(value, 0).unwrap_or(0),
            _ => {}
        }
        options = options.get(4 + len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(interface)
}

impl Interface {
    /// Nanoseconds since the epoch of a time in the interface's units; zero when it is before it
    /// or too far in the future.
    fn unix_nanos(self, units: u64) -> u64 {
        const NANOS: u128 = 1_000_000_000;
        let exponent = u32::from(self.resolution & 0x7f);
        let scaled = u128::from(units) * NANOS;
        let nanos = if self.resolution & 0x80 != 0 {
            scaled.checked_shr(exponent).unwrap_or(0)
        } else {
            10u128.checked_pow(exponent).map_or(0, |divisor| scaled / divisor)
        };
        i128::try_from(nanos)
            .ok()
            .and_then(|nanos| nanos.checked_add(i128::from(self.offset_secs) * 1_000_000_000))
            .and_then(|nanos| u64::try_from(nanos).ok())
            .unwrap_or(0)
    }
}
