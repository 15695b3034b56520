//! Which TCP, UDP and SCTP ports the host itself uses, and which are left for NAT.
//!
//! Read from `/proc/net/{tcp,tcp6,udp,udp6}` rather than asked by `sock_diag`: the files are in
//! every kernel, while the diagnostics are modules that a locked-down host may not load, and one
//! reading covers sockets in every state. It costs one pass over the host's connections and is
//! done when an uplink or a port range is set up, never per packet.
//!
//! SCTP's are in `/proc/net/sctp`, which is there when the kernel has loaded it.
//!
//! Limits: a TCP socket that is bound but neither listens nor is connected shows nowhere.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netns::{Netns, NetnsError};
use crate::publish::{PortRange, Proto};

/// Below are the ports of well-known services; NAT leaves them alone.
const FIRST_NAT_PORT: u16 = 1024;
/// `include/net/tcp_states.h`: `TCP_LISTEN`, as the files print it.
const STATE_LISTEN: &str = "0A";
/// The same as the files of SCTP print it (`SCTP_SS_LISTENING` in `net/sctp/constants.h`).
const SCTP_LISTENING: &str = "10";

/// Why the host's ports are not known.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// A file of `/proc` is missing or unreadable.
    #[error("read {0}: {1}")]
    Read(&'static str, #[source] io::Error),
    /// A line that is not of the form the kernel documents.
    #[error("{0} has a line of unknown form: {1:?}")]
    Malformed(&'static str, String),
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// One socket with a local port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundSocket {
    /// Protocol.
    pub proto: Proto,
    /// Local address; unspecified: any.
    pub address: IpAddr,
    /// Local port.
    pub port: u16,
    /// Takes traffic from anyone: listens (TCP, SCTP) or has no peer (UDP).
    pub serves: bool,
    /// The other end of a connection that a program has; `None` too for what the kernel goes on
    /// with by itself after the program closed it or died.
    pub peer: Option<IpAddr>,
}

impl BoundSocket {
    /// Whether a service on `address` (unspecified: any) at the same port would collide.
    fn overlaps(&self, address: IpAddr) -> bool {
        let met = |own: IpAddr| own.is_unspecified() || address.is_unspecified() || own == address;
        match (self.address, address) {
            // `::` takes IPv4 too unless told otherwise.
            (IpAddr::V6(own), IpAddr::V4(_)) if own.is_unspecified() => true,
            (own, IpAddr::V4(_)) => as_ipv4(own).is_some_and(|own| met(own.into())),
            (own, IpAddr::V6(_)) => as_ipv4(own).is_none() && met(own),
        }
    }

    /// Whether it is a connection from one of `addresses` to another machine.
    fn is_connected_at(&self, addresses: &[IpAddr], own: &[IpAddr]) -> bool {
        let at = |ip: IpAddr, list: &[IpAddr]| list.contains(&ip.to_canonical());
        self.peer.is_some_and(|peer| at(self.address, addresses) && !at(peer, own))
    }
}

/// IPv4 in either form: a socket of both families has mapped addresses.
const fn as_ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(address) => address.to_ipv4_mapped(),
    }
}

/// What the host's own stack says about its ports, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostPorts {
    sockets: Vec<BoundSocket>,
    ephemeral: (u16, u16),
    reserved: Vec<(u16, u16)>,
}

impl HostPorts {
    /// Reads the namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not what the kernel documents.
    pub fn read() -> Result<Self, SocketsError> {
        let mut ports = Self::default();
        // `/proc/net` is that of the process's first thread; this one may be elsewhere.
        for (path, proto) in [
            ("/proc/thread-self/net/tcp", Proto::Tcp),
            ("/proc/thread-self/net/udp", Proto::Udp),
            ("/proc/thread-self/net/tcp6", Proto::Tcp),
            ("/proc/thread-self/net/udp6", Proto::Udp),
        ] {
            match fs::read_to_string(path) {
                Ok(text) => ports.add_table(path, proto, &text)?,
                // No IPv6 in this kernel.
                Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => {}
                Err(error) => return Err(SocketsError::Read(path, error)),
            }
        }
        ports.add_sctp()?;
        let path = "/proc/sys/net/ipv4/ip_local_port_range";
        let text = fs::read_to_string(path).map_err(|error| SocketsError::Read(path, error))?;
        let mut numbers = text.split_whitespace().map(str::parse);
        ports.ephemeral = match (numbers.next(), numbers.next()) {
            (Some(Ok(first)), Some(Ok(last))) => (first, last),
            _ => return Err(SocketsError::Malformed(path, text)),
        };
        let path = "/proc/sys/net/ipv4/ip_local_reserved_ports";
        let text = fs::read_to_string(path).map_err(|error| SocketsError::Read(path, error))?;
        ports.reserved =
            parse_ranges(text.trim()).ok_or(SocketsError::Malformed(path, text.clone()))?;
        Ok(ports)
    }

    /// Reads another namespace.
    ///
    /// # Errors
    /// As [`HostPorts::read`], and when it cannot be entered.
    pub fn read_in(netns: &Netns) -> Result<Self, SocketsError> {
        netns.run(Self::read)?
    }

    /// The first port of the range at which the host itself serves on `address` (unspecified: on
    /// any).
    #[must_use]
    pub fn first_busy(&self, proto: Proto, address: IpAddr, ports: PortRange) -> Option<u16> {
        self.sockets
            .iter()
            .filter(|socket| socket.proto == proto && socket.serves && socket.overlaps(address))
            .map(|socket| socket.port)
            .filter(|port| (ports.first()..=ports.last()).contains(port))
            .min()
    }

    /// Whether any socket has the port on `address`, one that nobody owns any more included.
    #[must_use]
    pub fn has_socket(&self, proto: Proto, address: IpAddr, port: u16) -> bool {
        self.sockets
            .iter()
            .any(|socket| socket.proto == proto && socket.port == port && socket.overlaps(address))
    }

    /// The first port of the range from which the host has a connection to another machine, at one
    /// of `addresses`. `own` are all addresses of the host: what it says to itself never leaves it.
    #[must_use]
    pub fn first_connected(
        &self,
        proto: Proto,
        addresses: &[IpAddr],
        ports: PortRange,
        own: &[IpAddr],
    ) -> Option<u16> {
        self.sockets
            .iter()
            .filter(|socket| socket.proto == proto && socket.is_connected_at(addresses, own))
            .map(|socket| socket.port)
            .filter(|port| (ports.first()..=ports.last()).contains(port))
            .min()
    }

    /// Whether nothing but what is left of closed connections has the port.
    #[must_use]
    pub fn is_closing(&self, proto: Proto, port: u16) -> bool {
        let mut there = self.sockets.iter().filter(|s| s.proto == proto && s.port == port);
        let left_over = |socket: &BoundSocket| !socket.serves && socket.peer.is_none();
        there.next().is_some_and(left_over) && there.all(left_over)
    }

    /// First and last port the host hands out to its own outgoing connections
    /// (`ip_local_port_range`).
    #[must_use]
    pub const fn ephemeral(&self) -> (u16, u16) {
        self.ephemeral
    }

    /// Ports that the host never uses by itself, for NAT to share its address: outside
    /// `ip_local_port_range`, not reserved, without a socket, not below 1024. Ascending, inclusive,
    /// not overlapping.
    #[must_use]
    pub fn nat_ports(&self) -> Vec<(u16, u16)> {
        let mut taken = self.taken();
        taken.push(self.ephemeral);
        subtract((FIRST_NAT_PORT, u16::MAX), taken)
    }

    /// Ports with a socket, and the reserved ones; in no order.
    fn taken(&self) -> Vec<(u16, u16)> {
        let single: BTreeSet<u16> = self.sockets.iter().map(|socket| socket.port).collect();
        let mut taken: Vec<(u16, u16)> = single.into_iter().map(|port| (port, port)).collect();
        taken.extend(&self.reserved);
        taken
    }

    /// Ports for hairpins by addresses of the host that no uplink has: [`HostPorts::nat_ports`]. Where there are
    /// none, as the host hands out all of them itself, those that nobody is bound to and nobody reserved.
    #[must_use]
    pub fn hairpin_ports(&self) -> Vec<(u16, u16)> {
        let free = self.nat_ports();
        if free.is_empty() { subtract((FIRST_NAT_PORT, u16::MAX), self.taken()) } else { free }
    }

    fn add_table(
        &mut self,
        path: &'static str,
        proto: Proto,
        text: &str,
    ) -> Result<(), SocketsError> {
        for line in text.lines().skip(1) {
            let socket = parse_socket(proto, line)
                .ok_or_else(|| SocketsError::Malformed(path, line.to_owned()))?;
            // TIME_WAIT rows of sockets that never had a port, and the like.
            if socket.port != 0 {
                self.sockets.push(socket);
            }
        }
        Ok(())
    }

    fn add_sctp(&mut self) -> Result<(), SocketsError> {
        for (path, parse) in [
            ("/proc/thread-self/net/sctp/eps", parse_endpoint_of_sctp as fn(&str) -> _),
            ("/proc/thread-self/net/sctp/assocs", parse_association),
        ] {
            match fs::read_to_string(path) {
                Ok(text) => self.sockets.extend(text.lines().skip(1).flat_map(parse)),
                // The kernel has no SCTP, or nobody has used it yet.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(SocketsError::Read(path, error)),
            }
        }
        Ok(())
    }
}

/// A row of `eps`: `ENDPT SOCK STY SST HBKT LPORT UID INODE LADDRS…`, a socket for each address.
fn parse_endpoint_of_sctp(line: &str) -> Vec<BoundSocket> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (Some(state), Some(port)) = (fields.get(3), number(&fields, 5)) else { return Vec::new() };
    let serves = *state == SCTP_LISTENING;
    let socket = |address| BoundSocket { proto: Proto::Sctp, address, port, serves, peer: None };
    addresses(fields.get(8..).unwrap_or_default()).map(socket).collect()
}

/// A row of `assocs`: `ASSOC SOCK STY SST ST HBKT ASSOC-ID TX_QUEUE RX_QUEUE UID INODE LPORT RPORT
/// LADDRS… <-> RADDRS…`, a socket for each address of ours.
fn parse_association(line: &str) -> Vec<BoundSocket> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (Some(port), Some(ends)) = (number(&fields, 11), fields.get(13..)) else {
        return Vec::new();
    };
    let mut sides = ends.split(|field| *field == "<->");
    let own = sides.next().unwrap_or_default();
    let peer = addresses(sides.next().unwrap_or_default()).next();
    let socket = |address| BoundSocket { proto: Proto::Sctp, address, port, serves: false, peer };
    addresses(own).map(socket).collect()
}

fn number(fields: &[&str], at: usize) -> Option<u16> {
    fields.get(at)?.parse().ok().filter(|port| *port != 0)
}

/// Addresses, of which the primary one has a star, up to the first word that is none.
fn addresses<'a>(fields: &'a [&'a str]) -> impl Iterator<Item = IpAddr> + 'a {
    fields.iter().map_while(|field| field.trim_start_matches('*').parse().ok())
}

/// Takes ranges out of a range: what is left, ascending.
#[must_use]
pub fn subtract(whole: (u16, u16), mut taken: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    taken.sort_unstable();
    let mut left = Vec::new();
    // One past the last port is a valid position.
    let (mut next, end) = (u32::from(whole.0), u32::from(whole.1) + 1);
    for (first, last) in taken {
        push_range(&mut left, next, u32::from(first).min(end));
        next = next.max(u32::from(last) + 1);
    }
    push_range(&mut left, next, end);
    left
}

fn push_range(ranges: &mut Vec<(u16, u16)>, from: u32, to: u32) {
    if from < to
        && let (Ok(first), Ok(last)) = (u16::try_from(from), u16::try_from(to - 1))
    {
        ranges.push((first, last));
    }
}

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`, addresses in hex
/// with each 32-bit word in host order.
fn parse_socket(proto: Proto, line: &str) -> Option<BoundSocket> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, port) = parse_endpoint(fields.next()?)?;
    let (remote, remote_port) = parse_endpoint(fields.next()?)?;
    let state = fields.next()?;
    let serves = match proto {
        Proto::Tcp => state == STATE_LISTEN,
        Proto::Udp | Proto::Sctp => remote_port == 0,
    };
    // No inode: TIME_WAIT, a connection nobody has accepted yet, or an orphan.
    let owned = fields.nth(5)? != "0";
    let peer = (owned && remote_port != 0).then_some(remote);
    Some(BoundSocket { proto, address, port, serves, peer })
}

fn parse_endpoint(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let digits = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (at, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some((address, port))
}

/// `8080,9000-9010`, or nothing.
fn parse_ranges(text: &str) -> Option<Vec<(u16, u16)>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn lines_of_proc_are_read() {
        let rest = "00000000:00000000 00:00000000 00000000     0        0";
        let listen = format!("   0: 0100007F:1F90 00000000:0000 0A {rest} 48213 1 0");
        let socket = parse_socket(Proto::Tcp, &listen).unwrap();
        assert_eq!((socket.address, socket.port), (IpAddr::V4(Ipv4Addr::LOCALHOST), 8080));
        assert_eq!((socket.serves, socket.peer), (true, None));
        let connected = listen.replace("00000000:0000 0A", "010200C0:01BB 01");
        let socket = parse_socket(Proto::Tcp, &connected).unwrap();
        assert_eq!((socket.serves, socket.peer), (false, Some([192, 0, 2, 1].into())));
        let orphan = connected.replace("48213", "0");
        assert_eq!(parse_socket(Proto::Tcp, &orphan).unwrap().peer, None);
        // As the kernel prints TIME_WAIT: no more fields than that.
        let closed = format!(" 1: 0100007F:1F90 010200C0:01BB 06 {rest} 0 3 0000000000000000");
        assert_eq!(parse_socket(Proto::Tcp, &closed).unwrap().peer, None);
        let v6 = format!(
            "  1: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 \
             {rest} 48214"
        );
        let socket = parse_socket(Proto::Udp, &v6).unwrap();
        assert_eq!((socket.address, socket.port), (IpAddr::V6(Ipv6Addr::LOCALHOST), 53));
        for line in ["", "0:", "0: 0100007F 0", "0: 01:1F90 02:0000 0A", "0: 0100007F:XX 0:0 0A"] {
            assert_eq!(parse_socket(Proto::Tcp, line), None, "{line:?}");
        }
    }

    /// As `sctp_eps_seq_show` and `sctp_assocs_seq_show` of `net/sctp/proc.c` print them.
    #[test]
    fn lines_of_sctp_are_read() {
        let listens = "0000000012345678 00000000abcdef01 2   10  29   36412     0 48213 \
                       192.0.2.1 *10.0.0.1 ";
        let all = parse_endpoint_of_sctp(listens);
        let seen: Vec<_> = all.iter().map(|s| (s.address, s.port, s.serves, s.peer)).collect();
        let here = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([10, 0, 0, 1])];
        assert_eq!(seen, here.map(|address| (address, 36_412, true, None)));
        let closed = listens.replace(" 10  29", " 7   29");
        assert!(parse_endpoint_of_sctp(&closed).iter().all(|socket| !socket.serves));
        let any = "0 0 2 10 29 5000 0 1 0000:0000:0000:0000:0000:0000:0000:0000";
        assert!(parse_endpoint_of_sctp(any)[0].overlaps(here[0]), "of both families");
        let association = "0000000012345678 00000000abcdef01 2   1   3  29      5        0        0 \
                           \u{20}     0 48213 40000 36412  *192.0.2.1 <-> *198.51.100.9 198.51.100.10 \t \
                           \u{20}  30000    10    10   10    0    0        0        1        0   212992";
        let all = parse_association(association);
        let seen: Vec<_> = all.iter().map(|s| (s.address, s.port, s.serves, s.peer)).collect();
        assert_eq!(seen, [(here[0], 40_000, false, Some([198, 51, 100, 9].into()))]);
        assert!(all[0].is_connected_at(&here, &here));
        for line in ["", "0 0 2 10 29", "0 0 2 10 29 0 0 1 10.0.0.1", "a b c d e f g h i j k l m"] {
            assert_eq!((parse_endpoint_of_sctp(line), parse_association(line)), (vec![], vec![]));
        }
    }

    #[test]
    fn what_is_left_of_connections_is_told_from_what_lives() {
        let rest = "00000000:00000000 00:00000000 00000000     0        0";
        let row = |state: &str, inode: &str| {
            let remote = if state == "0A" { "00000000:0000" } else { "010200C0:01BB" };
            let line = format!("   0: 0100007F:1F90 {remote} {state} {rest} {inode} 1 0");
            parse_socket(Proto::Tcp, &line).unwrap()
        };
        let is_closing = |sockets: Vec<BoundSocket>| {
            let ports = HostPorts { sockets, ..HostPorts::default() };
            assert!(!ports.is_closing(Proto::Udp, 8080) && !ports.is_closing(Proto::Tcp, 8081));
            ports.is_closing(Proto::Tcp, 8080)
        };
        assert!(is_closing(vec![row("06", "0"), row("06", "0")]));
        assert!(!is_closing(vec![]));
        assert!(!is_closing(vec![row("06", "0"), row("0A", "48213")]));
        assert!(!is_closing(vec![row("06", "0"), row("01", "48214")]));
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(parse_ranges(""), Some(vec![]));
        assert_eq!(parse_ranges("8080,9000-9010"), Some(vec![(8080, 8080), (9000, 9010)]));
        assert_eq!(parse_ranges("70000"), None);
        assert_eq!(parse_ranges("1-2-3"), None);
    }

    #[test]
    fn what_is_taken_is_taken_out() {
        let all = (1024, 65535);
        assert_eq!(subtract(all, vec![]), [all]);
        assert_eq!(
            subtract(all, vec![(32768, 60999), (8080, 8080), (80, 80), (60000, 61000)]),
            [(1024, 8079), (8081, 32767), (61001, 65535)]
        );
        assert_eq!(subtract(all, vec![(0, 1024), (65535, 65535)]), [(1025, 65534)]);
        assert_eq!(subtract(all, vec![(0, 65535)]), []);
        assert_eq!(subtract((5, 9), vec![(20, 30)]), [(5, 9)]);
    }

    proptest::proptest! {
        #[test]
        fn subtract_agrees_with_a_set(
            taken in proptest::collection::vec((0u16..200, 0u16..200), 0..8),
        ) {
            let taken: Vec<_> = taken.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
            let expected: Vec<u16> = (50..=150)
                .filter(|port| !taken.iter().any(|(a, b)| (a..=b).contains(&port)))
                .collect();
            let left = subtract((50, 150), taken);
            let ports: Vec<u16> = left.iter().flat_map(|(a, b)| *a..=*b).collect();
            proptest::prop_assert_eq!(ports, expected);
            proptest::prop_assert!(left.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
        }
    }

    #[test]
    fn a_host_that_hands_out_every_port_has_some_for_hairpins() {
        let socket = |port| BoundSocket {
            proto: Proto::Tcp,
            address: Ipv4Addr::UNSPECIFIED.into(),
            port,
            serves: true,
            peer: None,
        };
        let mut ports = HostPorts {
            sockets: vec![socket(22), socket(8080)],
            ephemeral: (1024, 65_535),
            reserved: vec![(2000, 2010)],
        };
        assert_eq!(ports.nat_ports(), []);
        let expected = [(1024, 1999), (2011, 8079), (8081, 65_535)];
        assert_eq!(ports.hairpin_ports(), expected);
        ports.ephemeral = (32_768, 65_535);
        assert_eq!(ports.hairpin_ports(), [(1024, 1999), (2011, 8079), (8081, 32_767)]);
        assert_eq!(ports.hairpin_ports(), ports.nat_ports());
    }

    #[test]
    fn services_collide_by_address_and_protocol() {
        let socket = |address: &str, proto| BoundSocket {
            proto,
            address: address.parse().unwrap(),
            port: 53,
            serves: true,
            peer: None,
        };
        let busy = |sockets: Vec<BoundSocket>, address: &str| {
            let ports = HostPorts { sockets, ..HostPorts::default() };
            ports.first_busy(Proto::Tcp, address.parse().unwrap(), PortRange::new(50, 60).unwrap())
        };
        assert_eq!(busy(vec![socket("127.0.0.53", Proto::Tcp)], "0.0.0.0"), Some(53));
        assert_eq!(busy(vec![socket("127.0.0.53", Proto::Tcp)], "192.0.2.1"), None);
        assert_eq!(busy(vec![socket("0.0.0.0", Proto::Tcp)], "192.0.2.1"), Some(53));
        assert_eq!(busy(vec![socket("::", Proto::Tcp)], "192.0.2.1"), Some(53));
        assert_eq!(busy(vec![socket("::1", Proto::Tcp)], "0.0.0.0"), None);
        assert_eq!(busy(vec![socket("::ffff:192.0.2.1", Proto::Tcp)], "192.0.2.1"), Some(53));
        assert_eq!(busy(vec![socket("0.0.0.0", Proto::Udp)], "192.0.2.1"), None);
    }

    #[test]
    fn connections_count_at_their_address_and_to_others() {
        let connection = |address: &str, peer: &str| BoundSocket {
            proto: Proto::Tcp,
            address: address.parse().unwrap(),
            port: 40_000,
            serves: false,
            peer: Some(peer.parse().unwrap()),
        };
        let ips = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let at = ips(&["192.0.2.2", "2001:db8::2"]);
        let own = ips(&["192.0.2.2", "10.0.0.1", "127.0.0.1", "2001:db8::2", "fd00::1"]);
        let found = |socket: BoundSocket, proto| {
            let ports = HostPorts { sockets: vec![socket], ..HostPorts::default() };
            ports.first_connected(proto, &at, PortRange::new(30_000, 50_000).unwrap(), &own)
        };
        for (address, peer, expected) in [
            ("192.0.2.2", "198.51.100.7", Some(40_000)),
            ("::ffff:192.0.2.2", "::ffff:198.51.100.7", Some(40_000)),
            ("10.0.0.1", "198.51.100.7", None),
            ("192.0.2.2", "192.0.2.2", None),
            ("192.0.2.2", "10.0.0.1", None),
            ("127.0.0.1", "127.0.0.1", None),
            ("2001:db8::1", "2001:db8::2", None),
            ("2001:db8::2", "2001:db8::1", Some(40_000)),
            ("2001:db8::2", "fd00::1", None),
        ] {
            assert_eq!(found(connection(address, peer), Proto::Tcp), expected, "{address} {peer}");
        }
        assert_eq!(found(connection("192.0.2.2", "198.51.100.7"), Proto::Udp), None);
        let closed = BoundSocket { peer: None, ..connection("192.0.2.2", "198.51.100.7") };
        assert_eq!(found(closed, Proto::Tcp), None);
        let ports = HostPorts { sockets: vec![closed], ..HostPorts::default() };
        assert!(ports.has_socket(Proto::Tcp, Ipv4Addr::UNSPECIFIED.into(), 40_000));
        assert!(!ports.has_socket(Proto::Tcp, Ipv4Addr::LOCALHOST.into(), 40_000));
        assert!(!ports.has_socket(Proto::Tcp, at[0], 40_001));
    }

    #[test]
    #[ignore = "needs root"]
    fn a_namespace_tells_its_own_ports() {
        let netns = Netns::anonymous().unwrap();
        netns.write_sysctl("net/ipv4/ip_local_port_range", "40000 50000").unwrap();
        netns.write_sysctl("net/ipv4/ip_local_reserved_ports", "2000-2010,3000").unwrap();
        let (tcp, udp) = netns
            .run(|| {
                let tcp = TcpListener::bind("127.0.0.1:8080").unwrap();
                (tcp, UdpSocket::bind("0.0.0.0:5353").unwrap())
            })
            .unwrap();
        let ports = HostPorts::read_in(&netns).unwrap();
        let expected =
            [(1024, 1999), (2011, 2999), (3001, 5352), (5354, 8079), (8081, 39999), (50001, 65535)];
        assert_eq!(ports.nat_ports(), expected);
        assert_eq!(
            ports.first_busy(
                Proto::Tcp,
                Ipv4Addr::UNSPECIFIED.into(),
                PortRange::new(8000, 9000).unwrap()
            ),
            Some(8080)
        );
        assert_eq!(
            ports.first_busy(
                Proto::Udp,
                Ipv4Addr::UNSPECIFIED.into(),
                PortRange::new(8000, 9000).unwrap()
            ),
            None
        );
        drop((tcp, udp));
        let ports = HostPorts::read_in(&netns).unwrap();
        assert_eq!(
            ports.first_busy(
                Proto::Tcp,
                Ipv4Addr::UNSPECIFIED.into(),
                PortRange::new(1, 65535).unwrap()
            ),
            None
        );
    }
}
