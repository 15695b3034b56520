//! The IPv6 form of [`Packet`].

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpHeaders, Ipv6FlowLabel, Ipv6Header};

use super::{Host, Packet, Transport, packet};

impl Host {
    /// Its IPv6 address.
    #[must_use]
    pub const fn ip6(&self) -> Ipv6Addr {
        ip6(self.ip)
    }
}

/// The IPv6 address that stands for an IPv4 address: of private ones a local one (RFC 4193), of the
/// others one for documentation (RFC 3849), with the IPv4 address as its end. A prefix of n bits has
/// 96 + n.
#[must_use]
pub const fn ip6(ip: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = ip.octets();
    let low = u16::from_be_bytes([c, d]);
    let high = u16::from_be_bytes([a, b]);
    if ip.is_private() {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, high, low)
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, high, low)
    }
}

thread_local! {
    static SPEAKS_IPV6: Cell<bool> = const { Cell::new(false) };
}

/// From here on all packets that this thread makes are IPv6, and the topology of [`crate::lab`] is its
/// twin: what is written in IPv4's words is tested in IPv6. Every test has a thread of its own.
pub fn speak_ipv6() {
    SPEAKS_IPV6.set(true);
}

/// Whether [`speak_ipv6`] was called.
#[must_use]
pub fn speaks_ipv6() -> bool {
    SPEAKS_IPV6.get()
}

/// An address in the IP version that is spoken.
#[must_use]
pub fn ip(address: impl Into<Ipv4Addr>) -> IpAddr {
    let address = address.into();
    if speaks_ipv6() { ip6(address).into() } else { address.into() }
}

/// Runs the tests of these names once more, in IPv6: see [`speak_ipv6`].
#[macro_export]
macro_rules! in_ipv6 {
    ($($name:ident)*) => {
        mod ipv6 {
            $(#[test]
            fn $name() {
                $crate::packet::speak_ipv6();
                super::$name();
            })*
        }
    };
}

/// What an IPv6 packet has instead of an IPv4 header; what both have is taken from that.
#[derive(Debug, Clone)]
pub(super) struct Six {
    pub(super) src: Ipv6Addr,
    pub(super) dst: Ipv6Addr,
    flow_label: u32,
    /// Numbers of extension headers, and what they hold behind the number of the next.
    extensions: Vec<(u8, Vec<u8>)>,
}

impl Six {
    /// Length of the header and the extension headers.
    pub(super) fn header_len(&self) -> usize {
        40 + self.extensions.iter().map(|(_, rest)| 1 + rest.len()).sum::<usize>()
    }
}

/// Any ICMPv6 message.
#[must_use]
pub fn icmp6(from: &Host, to: &Host, kind: u8, code: u8, rest: [u8; 4]) -> Packet {
    let mut message = packet(from, to, Transport::Raw(58)).v6();
    message.transport = Transport::Icmp { kind, code, rest };
    message
}

/// An ICMPv6 error that quotes `about`, an IPv6 packet, cut to `limit` bytes.
#[must_use]
pub fn icmp6_error(
    from: &Host,
    to: &Host,
    kind: u8,
    code: u8,
    about: &Packet,
    limit: usize,
) -> Packet {
    icmp6(from, to, kind, code, [0; 4]).quoting(about, limit)
}

/// The ICMPv6 message that says what an ICMP message says (RFC 7915 §4.2 has most of them).
fn icmp_twin(kind: u8, code: u8) -> (u8, u8) {
    match (kind, code) {
        (8, 0) => (128, 0),
        (0, 0) => (129, 0),
        (3, 0) => (1, 0),
        (3, 1) => (1, 3),
        (3, 3) => (1, 4),
        (3, 4) => (2, 0),
        (3, 9 | 10 | 13) => (1, 1),
        (11, code) => (3, code),
        (12, 0) => (4, 0),
        other => panic!("nothing in ICMPv6 says what ICMP {other:?} does"),
    }
}

impl Packet {
    /// The same in IPv6: addresses are those of [`ip6`], ICMP becomes ICMPv6, and so does what an
    /// error quotes. Identification and "don't fragment" mean nothing any more.
    ///
    /// # Panics
    /// When there is no such thing: IPv4 options, an ICMP message that ICMPv6 does not have.
    #[must_use]
    pub fn v6(mut self) -> Self {
        if self.six.is_some() {
            return self;
        }
        assert!(self.ip.options.is_empty(), "IPv6 has no options of this kind");
        if let Transport::Icmp { kind, code, .. } = &mut self.transport {
            (*kind, *code) = icmp_twin(*kind, *code);
        }
        self.six = Some(Six {
            src: ip6(self.ip.source.into()),
            dst: ip6(self.ip.destination.into()),
            flow_label: 0,
            extensions: Vec::new(),
        });
        match self.about.take() {
            Some((about, limit)) => self.quoting(&about.v6(), limit),
            None => self,
        }
    }

    /// Source address, which makes it an IPv6 packet.
    #[must_use]
    pub fn src6(self, ip: Ipv6Addr) -> Self {
        self.with_six(|six| six.src = ip)
    }

    /// Destination address, which makes it an IPv6 packet.
    #[must_use]
    pub fn dst6(self, ip: Ipv6Addr) -> Self {
        self.with_six(|six| six.dst = ip)
    }

    /// Both addresses, of one IP version, which makes it a packet of that.
    ///
    /// # Panics
    /// When they are of different ones.
    #[must_use]
    pub fn between(self, src: IpAddr, dst: IpAddr) -> Self {
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.src(src).dst(dst),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.src6(src).dst6(dst),
            other => panic!("no packet goes between {other:?}"),
        }
    }

    /// Flow label, of an IPv6 packet.
    #[must_use]
    pub fn flow_label(self, label: u32) -> Self {
        self.with_six(|six| six.flow_label = label)
    }

    /// One more extension header behind those there are, of an IPv6 packet: its number, and all that
    /// follows the number of the next header, its length included.
    #[must_use]
    pub fn extension(self, number: u8, rest: &[u8]) -> Self {
        self.with_six(|six| six.extensions.push((number, rest.to_vec())))
    }

    /// A fragment header behind the extension headers there are. It claims what it says; the payload
    /// stays as it is, and so does the checksum over all of it.
    #[must_use]
    pub fn fragment_header(self, offset: u16, more: bool, id: u32) -> Self {
        let mut rest = vec![0];
        rest.extend_from_slice(&(offset & 0xfff8 | u16::from(more)).to_be_bytes());
        rest.extend_from_slice(&id.to_be_bytes());
        self.extension(44, &rest)
    }

    fn with_six(self, change: impl FnOnce(&mut Six)) -> Self {
        let mut this = self.v6();
        if let Some(six) = &mut this.six {
            change(six);
        }
        this
    }

    /// The fifth to the eighth byte of an ICMP or ICMPv6 message.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn icmp_rest(mut self, bytes: [u8; 4]) -> Self {
        let Transport::Icmp { rest, .. } = &mut self.transport else { panic!("no ICMP") };
        *rest = bytes;
        self
    }

    /// Source port, or the identifier of an echo message.
    #[must_use]
    pub fn sport(mut self, port: u16) -> Self {
        match &mut self.transport {
            Transport::Tcp(tcp) => tcp.source_port = port,
            Transport::Sctp { src, .. } | Transport::Udp { src, .. } => *src = port,
            Transport::Icmp { rest, .. } => rest[..2].copy_from_slice(&port.to_be_bytes()),
            Transport::Raw(_) => panic!("no ports"),
        }
        self
    }

    /// Destination port, or the identifier of an echo message.
    #[must_use]
    pub fn dport(mut self, port: u16) -> Self {
        match &mut self.transport {
            Transport::Tcp(tcp) => tcp.destination_port = port,
            Transport::Sctp { dst, .. } | Transport::Udp { dst, .. } => *dst = port,
            Transport::Icmp { rest, .. } => rest[..2].copy_from_slice(&port.to_be_bytes()),
            Transport::Raw(_) => panic!("no ports"),
        }
        self
    }

    /// The frame with every checksum computed.
    pub(super) fn bytes_v6(&self, six: &Six) -> Vec<u8> {
        let header = Ipv6Header {
            traffic_class: self.ip.dscp.value() << 2 | self.ip.ecn.value(),
            flow_label: Ipv6FlowLabel::try_new(six.flow_label).unwrap(),
            hop_limit: self.ip.time_to_live,
            source: six.src.octets(),
            destination: six.dst.octets(),
            ..Default::default()
        };
        let mut bytes = self.plain(IpHeaders::Ipv6(header, Default::default()));
        // etherparse orders extension headers itself and makes no wrong ones. No checksum counts
        // them.
        let l3 = self.l3();
        let numbers = six.extensions.iter().map(|(number, _)| *number).chain([bytes[l3 + 6]]);
        let numbers: Vec<u8> = numbers.collect();
        let chain: Vec<u8> = six
            .extensions
            .iter()
            .zip(&numbers[1..])
            .flat_map(|((_, rest), next)| [&[*next], &rest[..]].concat())
            .collect();
        bytes[l3 + 6] = numbers[0];
        bytes.splice(l3 + 40..l3 + 40, chain);
        let length = (bytes.len() - l3 - 40) as u16;
        bytes[l3 + 4..l3 + 6].copy_from_slice(&length.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests;
