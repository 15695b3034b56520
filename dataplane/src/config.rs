//! The configuration as the workers read it: immutable, complete, published as a whole.
//!
//! Control fills a [`SnapshotSpec`] from names and files; [`Snapshot::build`] checks it and adds
//! the indexes. No name and no string gets in here.

mod policy;
mod snapshot;
mod vlan;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

pub(crate) use policy::Flow;
pub use policy::{Policy, PolicyAction, PolicyRule, PolicyWay};
pub use snapshot::{LocalAddress, Network, PortEntry, Snapshot};
pub(crate) use vlan::FROM_GATEWAY;
pub use vlan::{MAX_VLAN, VlanSet, Vlans};

use crate::family::Address;
use crate::l3::route::Prefix;
use crate::packet::types::{Mac, NetworkId, PortId, UplinkId, ip_proto};

/// What control says; order does not matter.
#[derive(Debug, Clone, Default)]
pub struct SnapshotSpec {
    /// Every attached port that is to carry frames.
    pub ports: Vec<PortConfig>,
    /// Every network.
    pub networks: Vec<NetworkConfig>,
    /// Every way out.
    pub uplinks: Vec<UplinkConfig>,
    /// Static routes, beside those that follow from networks and uplinks.
    pub routes: Vec<StaticRoute>,
    /// Published ports.
    pub dnat: Vec<DnatRule>,
    /// Addresses of the host's own stack, loopback excluded. Packets from containers to them go to
    /// the host through the network's host port.
    pub host_addresses: Vec<IpAddr>,
    /// Ports that hairpins may speak from at addresses that no uplink has, inclusive ranges, ascending, not
    /// overlapping: what the host itself never uses. Published ones are left out where they are published.
    /// `None`: [`DEFAULT_HOST_PORTS`].
    pub host_ports: Option<Vec<(u16, u16)>>,
    /// Idle timeouts of connections.
    pub timeouts: Timeouts,
    /// For how long after a start without a table of connections segments of TCP from their middle begin
    /// them, if they come from a sandbox. Zero: only a SYN does.
    pub grace: Duration,
    /// How long an FDB entry lives without a frame from it. IEEE 802.1D default: 300 s.
    pub fdb_ageing: Option<Duration>,
}

/// What is outside Linux' default `ip_local_port_range` (32768 to 60999, ip-sysctl.rst) and not below 1024:
/// [`SnapshotSpec::host_ports`] while nobody has looked what the host uses.
pub const DEFAULT_HOST_PORTS: &[(u16, u16)] = &[(1024, 32_767), (61_000, 65_535)];

/// One port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// From [`crate::Engine::attach`].
    pub id: PortId,
    /// What is behind it.
    pub role: PortRole,
    /// The longest IP packet the port takes, in bytes (Ethernet header not counted).
    pub mtu: u16,
}

/// What is behind a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortRole {
    /// A container's interface.
    Endpoint {
        /// The network it is part of.
        network: NetworkId,
        /// Its MAC: known without learning.
        mac: Mac,
        /// Its IPv4 addresses: neighbors known without ARP.
        ipv4: Vec<Ipv4Addr>,
        /// Its IPv6 addresses: neighbors known without asking. In a network with IPv6 it has the link-local
        /// address that follows from its MAC (EUI-64) beside them, and no other.
        ipv6: Vec<Ipv6Addr>,
        /// Drop frames whose source MAC, IPv4, IPv6, ARP or Neighbor Discovery sender address is not one of
        /// the above. In a network without IPv6 nobody has an IPv6 address that is known, and the MACs alone
        /// are looked at.
        guard: bool,
        /// It may send what decides for others where their packets go: the answers of a DHCP server, Router
        /// Advertisements, Redirects.
        trusted: bool,
        /// The VLANs it is in.
        vlans: Vlans,
    },
    /// The host's own leg in a network; it carries the gateway's address in the host's stack.
    Host {
        /// The network it is part of.
        network: NetworkId,
    },
    /// The wire of an uplink.
    Uplink {
        /// The uplink.
        uplink: UplinkId,
    },
}

/// One L2 domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Stable number.
    pub id: NetworkId,
    /// MAC of the router port. The host port has the same MAC.
    pub gateway_mac: Mac,
    /// Address of the gateway and length of the prefix, for each subnet.
    pub subnets: Vec<Subnet>,
    /// No way out and no way in.
    pub internal: bool,
    /// Rewrite the source of what leaves by an uplink.
    pub masquerade: bool,
    /// Its own addresses are used outside.
    pub routed: Routed,
    /// Endpoints may talk to each other.
    pub icc: bool,
    /// The longest IP packet of the network, in bytes.
    pub mtu: u16,
    /// Frames of one port that are sent to all others, in a second; zero: as many as come.
    pub storm_limit: u32,
    /// The gateway sends router advertisements, if it has an address of IPv6.
    pub ra: bool,
    /// Lower the segment size that SYNs offer to what the way takes.
    pub mss_clamp: bool,
    /// Whoever speaks from one inside port through an uplink does so from one outside port, to all.
    pub endpoint_independent: bool,
    /// Idle timeouts of its connections, and lifetimes of fragments from it, where they are not those of all.
    pub timeouts: Option<Box<Timeouts>>,
    /// How long its FDB entries live, where that is not as everywhere.
    pub fdb_ageing: Option<Duration>,
    /// Connections of the network at most; `None`: as many as there may be.
    pub conntrack_limit: Option<u32>,
    /// Learned MACs of the network at most; `None`: as many as there may be.
    pub fdb_limit: Option<u32>,
    /// Packets for a multicast group go to who is in it.
    pub snooping: bool,
    /// The gateway asks who is in which group.
    pub querier: bool,
    /// What its connections say of further ones is read, and those are let through.
    pub helpers: Helpers,
    /// Who may begin a connection with whom, in order; what no rule matches is allowed.
    pub policy: Vec<PolicyRule>,
}

impl NetworkConfig {
    /// One with a way out by masquerade, open inside, for packets of 1500 bytes, and nothing else that a network
    /// may have.
    #[must_use]
    pub fn new(id: NetworkId, gateway_mac: Mac, subnets: Vec<Subnet>) -> Self {
        Self {
            id,
            gateway_mac,
            subnets,
            internal: false,
            masquerade: true,
            routed: Routed::default(),
            icc: true,
            mtu: 1500,
            storm_limit: 0,
            ra: false,
            mss_clamp: true,
            endpoint_independent: false,
            timeouts: None,
            fdb_ageing: None,
            conntrack_limit: None,
            fdb_limit: None,
            snooping: false,
            querier: false,
            helpers: Helpers::default(),
            policy: Vec::new(),
        }
    }
}

/// Families in which the addresses of a network are used outside as they are: nothing is masqueraded, published
/// ports and echo requests are let in to the endpoints' own addresses, and a dedicated uplink answers for these
/// where somebody on its wire asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Routed {
    /// IPv4 is routed.
    pub ipv4: bool,
    /// IPv6 is routed.
    pub ipv6: bool,
}

impl Routed {
    /// Whether the family of `address` is.
    #[must_use]
    pub fn of(self, address: impl Into<IpAddr>) -> bool {
        match address.into() {
            IpAddr::V4(_) => self.ipv4,
            IpAddr::V6(_) => self.ipv6,
        }
    }
}

/// Protocols whose connections announce others, and are helped with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Helpers {
    /// FTP: TCP to port 21.
    pub ftp: bool,
    /// TFTP: UDP to port 69.
    pub tftp: bool,
}

impl Helpers {
    /// Whether a connection to this port of a server is helped.
    #[must_use]
    pub const fn serve(self, proto: u8, port: u16) -> bool {
        match (proto, port) {
            (ip_proto::TCP, FTP_PORT) => self.ftp,
            (ip_proto::UDP, TFTP_PORT) => self.tftp,
            _ => false,
        }
    }
}

/// RFC 959 §8.
const FTP_PORT: u16 = 21;
/// RFC 1350 §4.
const TFTP_PORT: u16 = 69;

/// One subnet of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// The prefix.
    pub prefix: Prefix,
    /// The gateway's address in it; `None`: this subnet is not routed.
    pub gateway: Option<IpAddr>,
}

/// Whether the host's stack shares the uplink's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UplinkMode {
    /// The engine owns MAC and addresses alone: it answers ARP and echo.
    Dedicated,
    /// The host's stack owns them; the engine takes only frames of its own connections and of
    /// published ports, and leaves everything else to the host.
    Shared,
}

/// One way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkConfig {
    /// Stable number.
    pub id: UplinkId,
    /// The port with [`PortRole::Uplink`].
    pub port: PortId,
    /// Who owns the addresses.
    pub mode: UplinkMode,
    /// Source MAC of frames sent.
    pub mac: Mac,
    /// Addresses and their on-link prefixes. See [`UplinkConfig::source_for`] for which of them SNAT uses.
    pub addresses: Vec<(IpAddr, Prefix)>,
    /// Default next hop of IPv4.
    pub gateway: Option<Ipv4Addr>,
    /// Default next hop of IPv6.
    pub gateway6: Option<Ipv6Addr>,
    /// Ports that SNAT may use, inclusive ranges, ascending, not overlapping. Published ones are left
    /// out where they are published.
    pub nat_ports: Vec<(u16, u16)>,
    /// The longest IP packet of the wire, in bytes.
    pub mtu: u16,
    /// How often the wire has got a carrier. With another number its addresses are announced again: who is
    /// there now may not have heard of them.
    pub carrier_ups: u32,
}

impl UplinkConfig {
    /// The address to speak from to `neighbor`: one that has it on its prefix, or else the first of
    /// its family.
    #[must_use]
    pub fn address_for<A: Address>(&self, neighbor: A) -> Option<A> {
        let on_link = self.spoken().find(|(_, prefix)| prefix.contains(neighbor));
        on_link.and_then(|(address, _)| A::of(*address)).or_else(|| self.first_address(neighbor))
    }

    /// The address that an inside address speaks from to `neighbor`: always the same (RFC 4787 REQ-2), so
    /// that whoever knows it by one connection knows it by all. Of several that have the neighbor on
    /// their prefix each serves its share; with one more or less only those move that must (rendezvous hashing).
    /// Further addresses of a shared uplink are the host's, for other things.
    #[must_use]
    pub fn source_for(&self, neighbor: IpAddr, inside: IpAddr) -> Option<IpAddr> {
        let first = self.address_for(neighbor)?;
        let on_link = |prefix: &Prefix| prefix.contains(neighbor);
        let fit = || self.spoken().filter(|(_, p)| on_link(p)).map(|(address, _)| *address);
        if self.mode == UplinkMode::Shared || fit().nth(1).is_none() {
            return Some(first);
        }
        fit().max_by_key(|address| weight(inside, *address))
    }

    /// Whether its wire takes this address for one of its own.
    #[must_use]
    pub fn is_on_link(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        self.addresses.iter().any(|(_, prefix)| prefix.contains(address))
    }

    /// The first address of the family of `to`.
    #[must_use]
    pub fn first_address<A: Address>(&self, to: A) -> Option<A> {
        let mut same_family = self.spoken().filter(|(_, p)| p.is_of_family(to));
        same_family.find_map(|(address, _)| A::of(*address))
    }

    /// Its addresses but for link-local ones of IPv6, from which nobody speaks to the world.
    fn spoken(&self) -> impl Iterator<Item = &(IpAddr, Prefix)> {
        let stays = |address: IpAddr| matches!(address, IpAddr::V6(a) if a.is_unicast_link_local());
        self.addresses.iter().filter(move |(address, _)| !stays(*address))
    }

    /// Whether `address` is one of its own.
    #[must_use]
    pub fn has(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        self.addresses.iter().any(|(own, _)| *own == address)
    }
}

/// How much an inside address would like to speak from an outside one: FNV-1a over both, and the finalizer
/// of SplitMix64 (Steele 2014) for its upper bits.
fn weight(inside: IpAddr, outside: IpAddr) -> u64 {
    let octets = |address| match address {
        IpAddr::V4(v4) => Ipv4Addr::to_ipv6_mapped(&v4).octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let both = octets(inside).into_iter().chain(octets(outside));
    let fnv = both.fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A route that control was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticRoute {
    /// Destination.
    pub prefix: Prefix,
    /// Next hop, on-link at the uplink.
    pub via: IpAddr,
    /// The way out.
    pub uplink: UplinkId,
}

/// A published port or range of ports: one mapping whatever its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnatRule {
    /// Stable number, for counters and for ending connections when it goes.
    pub id: u32,
    /// IP protocol number (TCP, UDP, SCTP).
    pub proto: u8,
    /// Only packets to this address; `None`: to any address of the host or the engine that is of the
    /// same family as the inside one.
    pub host_ip: Option<IpAddr>,
    /// First and last outside port.
    pub host_ports: (u16, u16),
    /// Inside address.
    pub to: IpAddr,
    /// First inside port; the n-th outside port maps to the n-th inside port.
    pub to_port: u16,
    /// The network of the inside address.
    pub network: NetworkId,
}

/// Idle timeouts of connections. `nat.md` names the source of each default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP established. Linux: 432,000 s; RFC 5382 REQ-5 asks for at least 7,440 s.
    pub tcp_established: Duration,
    /// TCP before established. RFC 7857 §2.1: 240 s.
    pub tcp_opening: Duration,
    /// TCP after the first FIN. RFC 7857 §2.1: 240 s.
    pub tcp_closing: Duration,
    /// TCP after RST. RFC 7857 §2.2: 240 s.
    pub tcp_reset: Duration,
    /// TCP after both FINs were acknowledged. Linux: 120 s.
    pub tcp_time_wait: Duration,
    /// UDP. RFC 4787 REQ-5: 300 s recommended.
    pub udp: Duration,
    /// UDP to port 53. RFC 4787 REQ-5 allows shorter for well-known ports.
    pub udp_dns: Duration,
    /// ICMP queries. RFC 5508 REQ-2: 60 s.
    pub icmp: Duration,
    /// SCTP established. Linux before 6.0: 432,000 s; since then 210 s, as an association asks every 30 s
    /// whether the other side is there (RFC 9260 §8.3), unless told otherwise.
    pub sctp_established: Duration,
    /// SCTP in any other state: 60 s, above what Linux has for any of them.
    pub sctp_other: Duration,
    /// Other protocols. Linux: 600 s.
    pub other: Duration,
    /// Unfinished datagrams. RFC 791 §3.2 recommends 15 s for reassembly, Linux `ipfrag_time` is 30 s.
    pub fragments: Duration,
    /// The same of IPv6. RFC 8200 §4.5: 60 s.
    pub fragments_v6: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(432_000),
            tcp_opening: Duration::from_secs(240),
            tcp_closing: Duration::from_secs(240),
            tcp_reset: Duration::from_secs(240),
            tcp_time_wait: Duration::from_secs(120),
            udp: Duration::from_secs(300),
            udp_dns: Duration::from_secs(30),
            icmp: Duration::from_secs(60),
            sctp_established: Duration::from_secs(432_000),
            sctp_other: Duration::from_secs(60),
            other: Duration::from_secs(600),
            fragments: Duration::from_secs(30),
            fragments_v6: Duration::from_secs(60),
        }
    }
}

/// No timeout is longer, whoever sets it: a year. What an earlier run left behind is believed up to
/// this.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(MAX_TIMEOUT_SECS as u64);

/// [`MAX_TIMEOUT`] in seconds.
pub const MAX_TIMEOUT_SECS: u32 = 31_536_000;

/// IEEE 802.1D-2004 table 7-5: recommended ageing time.
pub const DEFAULT_FDB_AGEING: Duration = Duration::from_secs(300);

/// A specification that contradicts itself. Control checks user input before; this is the seam's
/// own guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Two ports, networks or uplinks with one id.
    #[error("id {0} is used twice")]
    DuplicateId(u16),
    /// A port names a network that is not there.
    #[error("port {0:?} names an unknown network or uplink")]
    UnknownParent(PortId),
    /// A rule or route names a network or uplink that is not there.
    #[error("a rule or route names an unknown network or uplink")]
    UnknownTarget,
    /// A network with the number that stands for the outside, [`crate::conntrack::Zone::OUTSIDE`].
    #[error("network number {0} is reserved")]
    ReservedId(u16),
    /// A route or rule from the one family to the other, or an address outside its prefix's.
    #[error("a rule, route or address mixes IPv4 and IPv6")]
    MixedFamilies,
    /// A range whose end lies before its start, or runs past port 65535.
    #[error("bad port range")]
    PortRange,
}
