//! What parsing found in a frame: offsets and the few fields the pipeline decides by. Plain data,
//! valid for the bytes it was parsed from until a stage moves them.

use std::net::Ipv4Addr;

use super::types::Mac;

/// Offsets and fields of one frame. Offsets count from the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Destination MAC.
    pub dst: Mac,
    /// Source MAC.
    pub src: Mac,
    /// VLAN id of the outermost 802.1Q or 802.1ad tag; zero for untagged and priority-tagged.
    pub vlan: u16,
    /// Whether the frame carries any tag.
    pub tagged: bool,
    /// EtherType (or 802.3 length) behind all tags.
    pub ethertype: u16,
    /// Offset of the network header.
    pub l3: u16,
    /// The network header.
    pub net: Net,
}

impl Headers {
    /// Of no frame.
    pub const EMPTY: Self = Self {
        dst: Mac::ZERO,
        src: Mac::ZERO,
        vlan: 0,
        tagged: false,
        ethertype: 0,
        l3: 0,
        net: Net::Unread,
    };
}

/// The network layer of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// ARP, of any shape; [`super::arp`] reads it.
    Arp,
    /// A sound IPv4 header. Its checksum has not been verified.
    Ipv4(Ipv4),
    /// A sound IPv6 header.
    Ipv6(Ipv6),
    /// EtherType IPv4 or IPv6 with a header that is cut short or contradicts itself. The frame can
    /// still be bridged.
    Malformed(ParseError),
    /// Anything else. The frame can still be bridged.
    Other,
    /// Not looked at: the frame is only switched.
    Unread,
}

/// Fields of an IPv4 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// Protocol number.
    pub proto: u8,
    /// Time to live.
    pub ttl: u8,
    /// Header length in bytes, options included: 20 to 60.
    pub header_len: u8,
    /// Total length of the packet in bytes, never more than the frame has. A total length field of
    /// zero (BIG TCP, TSO) was replaced by what the frame has.
    pub total_len: u32,
    /// Fragment offset in bytes; nonzero in every fragment but the first.
    pub frag_offset: u16,
    /// More fragments follow.
    pub more_fragments: bool,
    /// Don't fragment.
    pub dont_fragment: bool,
    /// Identification field.
    pub id: u16,
    /// The transport header.
    pub l4: L4,
    /// Offset of the transport header.
    pub l4_offset: u16,
}

impl Ipv4 {
    /// Whether the packet is one fragment of a larger datagram.
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        self.more_fragments || self.frag_offset != 0
    }

    /// Offset of the IPv4 header from the Ethernet header.
    #[must_use]
    pub const fn l3_offset(&self) -> usize {
        (self.l4_offset as usize).saturating_sub(self.header_len as usize)
    }

    /// Offset of the first byte behind the packet: whatever follows is Ethernet padding.
    #[must_use]
    pub const fn end(&self) -> usize {
        self.l3_offset() + self.total_len as usize
    }
}

/// Fields of an IPv6 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Protocol behind the extension headers that could be walked.
    pub proto: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Length of the packet in bytes, header included, never more than the frame has.
    pub total_len: u32,
    /// Whether a fragment header with nonzero offset or more-fragments was met.
    pub fragment: bool,
    /// The transport header.
    pub l4: L4,
    /// Offset of the transport header.
    pub l4_offset: u16,
}

impl Ipv6 {
    /// Offset of the first byte behind the packet; `l3` is [`Headers::l3`].
    #[must_use]
    pub const fn end(&self, l3: u16) -> usize {
        l3 as usize + self.total_len as usize
    }
}

/// The transport layer of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4 {
    /// ICMP or ICMPv6 with at least its 8 bytes.
    Icmp {
        /// Message type.
        kind: u8,
        /// Message code.
        code: u8,
        /// Identifier (for echo messages; the fifth and sixth byte otherwise).
        id: u16,
    },
    /// Not the first fragment: there is no transport header here.
    LaterFragment,
    /// A protocol the engine does not look into.
    Other,
    /// TCP with a whole header.
    Tcp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
        /// Flag bits, see [`super::types::tcp_flags`].
        flags: u8,
        /// Header length in bytes, options included: 20 to 60.
        header_len: u8,
    },
    /// TCP, UDP, ICMP or an IPv6 extension header that is cut short or contradicts itself.
    Truncated,
    /// UDP with a whole header.
    Udp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
    },
}

/// Why the engine cannot read a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer bytes than an IP header.
    #[error("IP header cut short")]
    IpCutShort,
    /// The IPv4 header length is below 20 or beyond the packet.
    #[error("bad IPv4 header length")]
    IpHeaderLength,
    /// The length field is below the header's or beyond the frame.
    #[error("bad IP total length")]
    IpTotalLength,
    /// The version is not that of the EtherType.
    #[error("bad IP version")]
    IpVersion,
    /// Fewer than 14 bytes, or cut short within VLAN tags.
    #[error("shorter than an Ethernet header")]
    Runt,
}
