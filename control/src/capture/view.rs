//! A frame as filters and summaries see it, read laxly: what is cut short or contradicts itself
//! simply has no value.

use std::net::IpAddr;

use dataplane::packet::types::{Mac, ip_proto};
use etherparse::{
    EtherType, IpNumber, Ipv6ExtensionsSlice, LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket,
    LinkSlice, TransportSlice, ip_number,
};

/// What was found in a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Source and destination MAC.
    pub macs: Option<(Mac, Mac)>,
    /// VLAN ids, outermost first.
    pub vlans: Vec<u16>,
    /// EtherType behind all tags.
    pub ethertype: Option<u16>,
    /// The network layer.
    pub net: NetView,
    /// Source and destination port of TCP, UDP or SCTP.
    pub ports: Option<(u16, u16)>,
    /// The transport layer, as far as summaries tell.
    pub detail: Detail,
    /// Length on the wire.
    pub len: u32,
}

/// The network layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetView {
    /// ARP for IPv4 over Ethernet.
    Arp {
        /// 1: request, 2: reply.
        operation: u16,
        /// Sender's address.
        sender: IpAddr,
        /// Target's address.
        target: IpAddr,
        /// Sender's MAC.
        sender_mac: Mac,
    },
    /// IPv4 or IPv6.
    Ip {
        /// Source.
        src: IpAddr,
        /// Destination.
        dst: IpAddr,
        /// Protocol number, behind IPv6 extension headers.
        proto: u8,
        /// Not the first fragment: without ports.
        later_fragment: bool,
        /// Bytes behind the IP headers.
        payload_len: usize,
    },
    /// Anything else.
    #[default]
    Other,
}

/// What a summary tells of the transport layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// ICMP or ICMPv6.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Identifier and sequence number of an echo.
        echo: Option<(u16, u16)>,
    },
    /// Nothing.
    #[default]
    None,
    /// TCP.
    Tcp {
        /// Flags as tcpdump writes them.
        flags: TcpFlags,
        /// Sequence number.
        seq: u32,
        /// Acknowledgment number, if significant.
        ack: Option<u32>,
        /// Window.
        window: u16,
        /// Bytes of data.
        len: usize,
    },
}

/// The flags that summaries show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags {
    /// SYN.
    pub syn: bool,
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
    /// PSH.
    pub psh: bool,
    /// ACK.
    pub ack: bool,
}

impl View {
    /// Reads a frame of which `bytes` are there and `len` were on the wire.
    #[must_use]
    pub fn parse(bytes: &[u8], len: u32) -> Self {
        let mut view = Self { len, ..Self::default() };
        let Ok(packet) = LaxSlicedPacket::from_ethernet(bytes) else { return view };
        if let Some(LinkSlice::Ethernet2(ethernet)) = &packet.link {
            view.macs = Some((Mac(ethernet.source()), Mac(ethernet.destination())));
            view.ethertype = Some(ethernet.ether_type().0);
        }
        for extension in &packet.link_exts {
            if let LaxLinkExtSlice::Vlan(vlan) = extension {
                view.vlans.push(vlan.vlan_identifier().value());
                view.ethertype = Some(vlan.ether_type().0);
            }
        }
        view.network(&packet);
        view.transport(&packet);
        view
    }

    fn network(&mut self, packet: &LaxSlicedPacket<'_>) {
        match &packet.net {
            Some(LaxNetSlice::Ipv4(ip)) => {
                let header = ip.header();
                self.net = NetView::Ip {
                    src: header.source_addr().into(),
                    dst: header.destination_addr().into(),
                    proto: ip.payload().ip_number.0,
                    later_fragment: header.fragments_offset().value() != 0,
                    payload_len: ip.payload().payload.len(),
                };
                self.read_ports(ip.payload().payload);
            }
            Some(LaxNetSlice::Ipv6(ip)) => {
                let header = ip.header();
                self.net = NetView::Ip {
                    src: header.source_addr().into(),
                    dst: header.destination_addr().into(),
                    proto: ip.payload().ip_number.0,
                    later_fragment: is_later_fragment(ip.extensions()),
                    payload_len: ip.payload().payload.len(),
                };
                self.read_ports(ip.payload().payload);
            }
            Some(LaxNetSlice::Arp(arp)) => {
                let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
                let sender = address(arp.sender_protocol_addr());
                let target = address(arp.target_protocol_addr());
                let mac = <[u8; 6]>::try_from(arp.sender_hw_addr()).ok().map(Mac);
                if let (Some(sender), Some(target), Some(sender_mac)) = (sender, target, mac)
                    && arp.proto_addr_type() == EtherType::IPV4
                {
                    let operation = arp.operation().0;
                    self.net = NetView::Arp { operation, sender, target, sender_mac };
                }
            }
            None => {}
        }
    }

    /// The ports, as long as their four bytes are there: the rest of the header may be missing.
    fn read_ports(&mut self, payload: &[u8]) {
        let NetView::Ip { proto, later_fragment: false, .. } = self.net else { return };
        let with_ports = matches!(proto, ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP);
        if let (true, Some([a, b, c, d])) = (with_ports, payload.first_chunk()) {
            self.ports = Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])));
        }
    }

    fn transport(&mut self, packet: &LaxSlicedPacket<'_>) {
        let echo = |is_echo: bool, [a, b, c, d]: [u8; 4]| {
            is_echo.then_some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
        };
        self.detail = match &packet.transport {
            Some(TransportSlice::Icmpv4(icmp)) => Detail::Icmp {
                kind: icmp.type_u8(),
                code: icmp.code_u8(),
                echo: echo(matches!(icmp.type_u8(), 0 | 8), icmp.bytes5to8()),
            },
            Some(TransportSlice::Icmpv6(icmp)) => Detail::Icmp {
                kind: icmp.type_u8(),
                code: icmp.code_u8(),
                echo: echo(matches!(icmp.type_u8(), 128 | 129), icmp.bytes5to8()),
            },
            Some(TransportSlice::Tcp(tcp)) => Detail::Tcp {
                flags: TcpFlags {
                    syn: tcp.syn(),
                    fin: tcp.fin(),
                    rst: tcp.rst(),
                    psh: tcp.psh(),
                    ack: tcp.ack(),
                },
                seq: tcp.sequence_number(),
                ack: tcp.ack().then(|| tcp.acknowledgment_number()),
                window: tcp.window_size(),
                len: tcp.payload().len(),
            },
            _ => Detail::None,
        };
    }
}

/// Whether a fragment header says that this is not the first one. The headers are walked here: etherparse's own
/// iterator goes by what the last one says follows, without looking whether that is there, and after lax
/// reading it need not be.
fn is_later_fragment(extensions: &Ipv6ExtensionsSlice<'_>) -> bool {
    let mut rest = extensions.slice();
    let Some(first) = extensions.first_header() else { return false };
    let mut kind = first;
    while let Some([next, length, high, low, ..]) = rest.first_chunk::<8>() {
        let length = usize::from(*length);
        let length = match kind {
            ip_number::IPV6_FRAG => return u16::from_be_bytes([*high, *low]) >> 3 != 0,
            ip_number::IPV6_HOP_BY_HOP | ip_number::IPV6_ROUTE | ip_number::IPV6_DEST_OPTIONS => {
                (length + 1) * 8
            }
            ip_number::AUTH => (length + 2) * 4,
            _ => return false,
        };
        kind = IpNumber(*next);
        rest = rest.get(length..).unwrap_or_default();
    }
    false
}
