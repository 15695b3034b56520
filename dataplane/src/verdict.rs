//! How a frame ends. Every frame that enters the engine is forwarded, queued, consumed or dropped,
//! and each drop has exactly one of the reasons below.

use crate::packet::types::{NetworkId, PortId};

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a frame was dropped. The names are stable: they are what `vswitchctl drops`, the
        /// metrics and `docs/operations.md` use.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The stable snake_case name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

drop_reasons! {
    /// An ARP frame that is not Ethernet/IPv4 or is cut short.
    ArpMalformed = "arp_malformed",
    /// A packet from a link-local address of IPv6 would have left its link; the sender was told with ICMPv6 1/2.
    BeyondScope = "beyond_scope",
    /// No free connection entry; raise `limits.conntrack` or look for the flood.
    ConntrackFull = "conntrack_full",
    /// A TCP segment or SCTP packet that fits no connection and cannot begin one, or contradicts the connection's state.
    ConntrackInvalid = "conntrack_invalid",
    /// What a DHCP server says, from an endpoint that is not trusted.
    DhcpUntrusted = "dhcp_untrusted",
    /// The endpoint, or the address it speaks from, has as many connections as it may have.
    EndpointLimit = "endpoint_limit",
    /// From the MAC of another endpoint of the network: a loop by way of both, or one who plays the other.
    EndpointMac = "endpoint_mac",
    /// The endpoint has begun as many connections in this second as it may begin.
    EndpointRate = "endpoint_rate",
    /// A fragment of the same octets as another one of its datagram.
    FragmentDuplicate = "fragment_duplicate",
    /// A fragment of one datagram too many of those that are unfinished, or of a datagram with too many.
    FragmentLimit = "fragment_limit",
    /// A fragment that no datagram can have, or that contradicts another one of its datagram.
    FragmentMalformed = "fragment_malformed",
    /// A fragment that overlaps another one of its datagram, or is of a datagram with such.
    FragmentOverlap = "fragment_overlap",
    /// A fragment whose first fragment did not come or did not pass, so that it belongs to no connection.
    FragmentUntracked = "fragment_untracked",
    /// A report of multicast groups from a port, or in a network, that is in as many as it may be.
    GroupLimit = "group_limit",
    /// IGMP or MLD that is cut short, in fragments, from afar or with a wrong checksum, in a network that snoops.
    GroupMalformed = "group_malformed",
    /// A segment with a part only of what a helper had changed in it before, or too long with that.
    HelperSplit = "helper_split",
    /// The host's stack passed it on for somebody else: the source is no address of the host.
    HostForwarded = "host_forwarded",
    /// An ICMP error about no connection we know.
    IcmpUnrelated = "icmp_unrelated",
    /// Containers of this network may not talk to each other (`icc=false`).
    IccDisabled = "icc_disabled",
    /// The network is internal: nothing leaves it.
    InternalNetwork = "internal_network",
    /// The destination is in another network, which only its published ports open.
    InterNetwork = "inter_network",
    /// The source MAC is a group address or zero.
    InvalidSourceMac = "invalid_source_mac",
    /// The IPv4 header checksum is wrong.
    Ipv4Checksum = "ipv4_checksum",
    /// The IPv4 header is cut short or contradicts itself.
    Ipv4Malformed = "ipv4_malformed",
    /// The IPv6 header or what follows it is cut short, out of order, too long, or a routing header of type 0.
    Ipv6Malformed = "ipv6_malformed",
    /// IPv6 reached the gateway of a network that has none of it.
    Ipv6NotRouted = "ipv6_not_routed",
    /// The TCP, UDP, SCTP or ICMP header, or a chunk of SCTP, is cut short or contradicts itself.
    L4Malformed = "l4_malformed",
    /// Addressed to 01-80-C2-00-00-0x, which a bridge never forwards.
    LinkLocalGroup = "link_local_group",
    /// From a MAC that moves to and fro between ports, at the port where it is not held for now.
    MacFlap = "mac_flap",
    /// An address that cannot be on the wire, or our own address as the source.
    Martian = "martian",
    /// Longer than the egress MTU, with DF set or of IPv6; the sender was told with ICMP 3/4 or ICMPv6 2/0.
    MtuExceeded = "mtu_exceeded",
    /// Too many frames wait for the same or for all neighbors.
    NeighborQueueFull = "neighbor_queue_full",
    /// Too many neighbors of this link are asked for, or known, to enter another.
    NeighborTableFull = "neighbor_table_full",
    /// The neighbor did not answer ARP or Neighbor Discovery in time.
    NeighborUnresolved = "neighbor_unresolved",
    /// The network has as many connections as it may have.
    NetworkLimit = "network_limit",
    /// The worker's buffers are all in use.
    NoBuffer = "no_buffer",
    /// A flood with no other port to go to.
    NoEgress = "no_egress",
    /// Addressed to the gateway of a network that has none.
    NoGateway = "no_gateway",
    /// No route to the destination; the sender was told with ICMP 3/0 or ICMPv6 1/0.
    NoRoute = "no_route",
    /// Addressed to us from inside, but nothing here serves it.
    NoService = "no_service",
    /// Multicast or broadcast is not routed.
    NotUnicast = "not_unicast",
    /// Longer than a buffer or than the port's MTU allows.
    Oversize = "oversize",
    /// Our own gateway or uplink MAC came in as a source: a loop or a spoof.
    OwnMac = "own_mac",
    /// A rule of a network's policy denies it.
    Policy = "policy",
    /// The ingress port is attached but not (or no longer) configured.
    PortUnconfigured = "port_unconfigured",
    /// A question who is in multicast groups, from an endpoint that is not trusted, in a network that snoops.
    QuerierUntrusted = "querier_untrusted",
    /// An IPv6 Router Advertisement or Redirect from an endpoint that is not trusted, or what could hide one.
    RaUntrusted = "ra_untrusted",
    /// Shorter than an Ethernet header.
    Runt = "runt",
    /// The destination is on the port the frame came from.
    SamePort = "same_port",
    /// A fragment of SCTP whose port would have to change: its CRC is over what only the whole packet has.
    SctpFragmented = "sctp_fragmented",
    /// An SCTP packet whose verification tag its receiver would not take (RFC 9260).
    SctpTagInvalid = "sctp_tag_invalid",
    /// No free outside port for this destination.
    SnatPortsExhausted = "snat_ports_exhausted",
    /// An IPv4 packet that says by which routers it is to go (LSRR, SSRR): a way past filters.
    SourceRouted = "source_routed",
    /// An ARP sender address that the endpoint does not own.
    SpoofedArp = "spoofed_arp",
    /// An IPv4 source address that the endpoint does not own.
    SpoofedIpv4 = "spoofed_ipv4",
    /// An IPv6 source address that the endpoint does not own.
    SpoofedIpv6 = "spoofed_ipv6",
    /// A source MAC that the endpoint does not own.
    SpoofedMac = "spoofed_mac",
    /// A Neighbor Discovery message that speaks for an address, or names a MAC, that the endpoint does not own.
    SpoofedNd = "spoofed_nd",
    /// More frames for all ports than one port may send in a second.
    StormLimited = "storm_limited",
    /// A TCP segment beyond what its receiver has room for, or that acknowledges what was never sent.
    TcpOutOfWindow = "tcp_out_of_window",
    /// A RST whose sequence number its receiver would not believe (RFC 5961), or that acknowledges what was never sent or is long past.
    TcpResetInvalid = "tcp_reset_invalid",
    /// The TTL or hop limit ran out; the sender was told with ICMP 11/0 or ICMPv6 3/0.
    TtlExceeded = "ttl_exceeded",
    /// The egress device is down or gone.
    TxPortDown = "tx_port_down",
    /// The egress device's queue is full.
    TxQueueFull = "tx_queue_full",
    /// The egress device refused the frame.
    TxRefused = "tx_refused",
    /// From outside to an address or port that nothing publishes.
    Unsolicited = "unsolicited",
    /// The network needs an uplink for this, and there is none.
    UplinkMissing = "uplink_missing",
    /// An IP protocol that NAT cannot translate.
    UnsupportedProtocol = "unsupported_protocol",
    /// Of a VLAN that the port is not in, by its tag or for want of one; or routed between VLANs of a network.
    VlanDenied = "vlan_denied",
    /// A VLAN tag with the reserved number 4095, or a second one without a number.
    VlanInvalid = "vlan_invalid",
    /// The virtio-net header contradicts the frame.
    VnetInvalid = "vnet_invalid",
}

impl DropReason {
    /// The reason as a counter index.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// How a frame goes on. Decided by one stage, carried out by `egress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The frame was turned into the answer to itself: back to where it came from.
    Answer,
    /// It ends here by design: it told us something, or it is the host stack's business.
    Consume,
    /// It ends here for this reason.
    Drop(DropReason),
    /// To all ports of the network but the one it came from.
    Flood(NetworkId),
    /// The same, and the storm limit has counted it.
    FloodCounted(NetworkId),
    /// To this port.
    Forward(PortId),
    /// To this port, in fragments that fit the link.
    ForwardInPieces(PortId),
    /// It waits until the first fragment of its datagram has come.
    HoldFragment,
    /// It waits until the neighbor is known.
    Hold,
    /// To all ports of the network that are in the packet's group, and to multicast routers.
    Multicast(NetworkId),
    /// To the multicast routers of the network.
    Routers(NetworkId),
}
