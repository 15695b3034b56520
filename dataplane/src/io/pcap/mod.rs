//! Capture files: reading, writing, and a port that replays one.
//!
//! Files are untrusted. Reading checks every length against what is there, allocates nothing but
//! 16 bytes for each interface that a pcapng file describes, and ends at the first thing that
//! makes no sense, with its offset. Only Ethernet (link type 1) is delivered, everything else is
//! counted. Formats: `draft-ietf-opsawg-pcap` (and the variant of A. Kuznetzov) and
//! `draft-ietf-opsawg-pcapng`.

mod port;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use port::{PcapPeer, PcapPort};
pub use reader::{PcapError, PcapFrame, PcapReader};
pub use writer::{Direction, PcapWriter, PcapngWriter};

/// `LINKTYPE_ETHERNET`.
const LINKTYPE_ETHERNET: u16 = 1;

/// pcap, times in microseconds.
const MAGIC_MICROS: u32 = 0xa1b2_c3d4;
/// pcap, times in nanoseconds.
const MAGIC_NANOS: u32 = 0xa1b2_3c4d;
/// pcap with eight more bytes in each record header: written by libpcap 0.4 as patched by Kuznetzov.
const MAGIC_KUZNETZOV: u32 = 0xa1b2_cd34;

/// pcapng: Section Header Block. The same in both byte orders.
const BLOCK_SECTION: u32 = 0x0a0d_0d0a;
/// pcapng: Interface Description Block.
const BLOCK_INTERFACE: u32 = 1;
/// pcapng: Packet Block, obsolete.
const BLOCK_PACKET: u32 = 2;
/// pcapng: Simple Packet Block.
const BLOCK_SIMPLE_PACKET: u32 = 3;
/// pcapng: Enhanced Packet Block.
const BLOCK_ENHANCED_PACKET: u32 = 6;
/// pcapng: tells the byte order of a section.
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

/// pcapng option: end of options.
const OPTION_END: u16 = 0;
/// pcapng option of an interface: its name.
const OPTION_IF_NAME: u16 = 2;
/// pcapng option of an enhanced packet: flags.
const OPTION_EPB_FLAGS: u16 = 2;
/// pcapng option of an interface: resolution of times.
const OPTION_IF_TSRESOL: u16 = 9;
/// pcapng option of an interface: seconds to add to times.
const OPTION_IF_TSOFFSET: u16 = 14;
