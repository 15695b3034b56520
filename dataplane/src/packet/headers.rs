//! What parsing found in a frame: offsets and the few fields the pipeline decides by. Plain data,
//! valid for the bytes it was parsed from until a stage moves them.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::extensions::FRAGMENT_LEN;
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
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
    /// Protocol behind the extension headers that could be walked. In a later fragment what the
    /// fragment header says of the first, which may be one more extension header.
    pub proto: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Length of the packet in bytes, header included, never more than the frame has. A payload
    /// length of zero (BIG TCP) was replaced by what the frame has.
    pub total_len: u32,
    /// Length of the header and the extension headers that could be walked, in bytes: 40 or more.
    pub header_len: u16,
    /// Offset of the fragment header from the IPv6 header; zero without one.
    pub fragment_at: u16,
    /// Fragment offset in bytes; nonzero in every fragment but the first.
    pub frag_offset: u16,
    /// More fragments follow.
    pub more_fragments: bool,
    /// Identification in the fragment header; zero without one.
    pub frag_id: u32,
    /// Which extension headers were walked, see [`super::types::ip6_extensions`].
    pub extensions: u8,
    /// Whether the extension headers are as they may be.
    pub chain: Chain,
    /// The transport header.
    pub l4: L4,
    /// Offset of the transport header, or of what a later fragment carries.
    pub l4_offset: u16,
}

impl Ipv6 {
    /// Whether the packet is one fragment of a larger datagram. An atomic fragment is none: it has
    /// the header only, and is handled as a whole packet whatever others have its identification
    /// (RFC 6946 §4).
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        self.more_fragments || self.frag_offset != 0
    }

    /// Whether there is a fragment header, be it that of an atomic fragment. Neighbor discovery must
    /// have none (RFC 6980 §5).
    #[must_use]
    pub const fn has_fragment_header(&self) -> bool {
        self.fragment_at != 0
    }

    /// Offset of the IPv6 header from the Ethernet header.
    #[must_use]
    pub const fn l3_offset(&self) -> usize {
        (self.l4_offset as usize).saturating_sub(self.header_len as usize)
    }

    /// Offset of the part of the datagram that this fragment carries, from the Ethernet header:
    /// where the transport header lies unless extension headers are fragmented with it.
    #[must_use]
    pub const fn fragment_start(&self) -> usize {
        match self.fragment_at {
            0 => self.l4_offset as usize,
            at => self.l3_offset() + at as usize + FRAGMENT_LEN,
        }
    }

    /// Offset of the first byte behind the packet: whatever follows is Ethernet padding.
    #[must_use]
    pub const fn end(&self) -> usize {
        self.l3_offset() + self.total_len as usize
    }
}

/// What became of walking the extension headers of an IPv6 packet. Whoever has to know what a packet
/// carries refuses all but whole chains: the rest is what evasion is made of (RFC 7113).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// The packet ends within an extension header, or is a first fragment that ends before its
    /// transport header does, which nobody may send (RFC 7112 §4). Where the packet is no fragment a
    /// transport header cut short is [`L4::Truncated`] and no matter of the chain.
    Cut,
    /// A header where it may not be: hop-by-hop options that do not come first, or a second
    /// fragment header (RFC 8200 §4.1). Nothing behind it was read.
    Misplaced,
    /// A routing header of type 0 was met (RFC 5095). What is behind it was read.
    Routing0,
    /// More extension headers than are walked. Nothing behind those was read.
    TooLong,
    /// The chain ends with the transport header, or with a fragment header that says that it began
    /// in another packet.
    Whole,
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
    /// SCTP with a whole common header.
    Sctp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
    },
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
    /// TCP, UDP, SCTP, ICMP or an IPv6 extension header that is cut short or contradicts itself.
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
