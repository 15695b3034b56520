//! Fragments as the kernel's stacks and a raw sender make them, through the built daemon: out, in, and from
//! somebody who means no good.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use dataplane::packet::types::{Mac, PortId};
use tests::fragments::{in_pieces, in_pieces6, piece, piece6, renumber};
use tests::host::family::ANY;
use tests::host::namespace::Namespace;
use tests::host::raw::RawSender;
use tests::host::traffic::{TcpClient, TcpServer, ping, uninterrupted};
use tests::host::{APP, BOTH, Family, Host, Sandbox, Uplink, WIRE, eventually, one, rows};
use tests::packet::{self, Packet, udp};
use tests::sim::Rng;

const PORT: u16 = 7001;

/// A host of [`tests::packet`]; its port means nothing here.
fn on_the_wire(mac: Mac, ip: Ipv4Addr) -> packet::Host {
    packet::Host { port: PortId(0), mac, ip }
}

/// The MAC of an interface.
fn mac_of(ns: &Namespace, interface: &str) -> Mac {
    let shown = ns.ip(&format!("-o link show {interface}"));
    let mac = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    mac.expect("a MAC").parse().unwrap()
}

/// The MAC that a stack has for a neighbor.
fn neighbor(ns: &Namespace, interface: &str, address: IpAddr) -> Mac {
    let shown = ns.ip(&format!("neighbor show to {address} dev {interface}"));
    let mac = shown.split("lladdr ").nth(1).and_then(|rest| rest.split(' ').next());
    mac.unwrap_or_else(|| panic!("{shown:?}")).parse().unwrap()
}

/// Who sends, by which MACs, and the addresses that it speaks from and to.
#[derive(Clone, Copy)]
struct Ends {
    macs: (Mac, Mac),
    addresses: (IpAddr, IpAddr),
}

impl Ends {
    /// From a sandbox to the machine outside.
    fn out(sandbox: &Sandbox, family: Family) -> Self {
        assert_eq!(ping(&sandbox.ns, family.gateway(), 1).received, 1);
        let gateway = neighbor(&sandbox.ns, "eth0", family.gateway());
        Self {
            macs: (mac_of(&sandbox.ns, "eth0"), gateway),
            addresses: (family.of(sandbox), family.outside()),
        }
    }

    /// From the machine outside to a published port.
    fn into(host: &Host, family: Family) -> Self {
        assert_eq!(ping(&host.outside, family.host(), 1).received, 1);
        let ours = neighbor(&host.outside, WIRE, family.host());
        Self {
            macs: (mac_of(&host.outside, WIRE), ours),
            addresses: (family.outside(), family.host()),
        }
    }

    fn packet(self, len: usize, seed: u32) -> Packet {
        let [from, to] =
            [self.macs.0, self.macs.1].map(|mac| on_the_wire(mac, Ipv4Addr::UNSPECIFIED));
        udp(&from, 40_000, &to, PORT)
            .between(self.addresses.0, self.addresses.1)
            .payload(&Rng(u64::from(seed) + 1).bytes(len))
    }

    /// A datagram of its own number and contents.
    fn datagram(self, ident: u32, len: usize) -> Datagram {
        let packet = self.packet(len, ident);
        let packet = match self.addresses.0 {
            IpAddr::V4(_) => packet.ident(u16::try_from(ident % 0x1_0000).unwrap()).may_fragment(),
            IpAddr::V6(_) => packet,
        };
        let payload = Rng(u64::from(ident) + 1).bytes(len);
        Datagram { is_v6: self.addresses.0.is_ipv6(), packet, ident, payload }
    }
}

struct Datagram {
    is_v6: bool,
    packet: Packet,
    ident: u32,
    payload: Vec<u8>,
}

impl Datagram {
    /// Fragments of so many octets.
    fn pieces(&self, size: usize) -> Vec<Vec<u8>> {
        match self.is_v6 {
            true => in_pieces6(&self.packet, size, self.ident),
            false => in_pieces(&self.packet, size),
        }
    }

    /// One fragment.
    fn piece(&self, from: usize, to: usize) -> Vec<u8> {
        match self.is_v6 {
            true => piece6(&self.packet.bytes(), from, to, self.ident),
            false => piece(&self.packet.bytes(), from, to),
        }
    }

    /// Whether it comes, and is what was sent.
    fn comes(&self, socket: &UdpSocket) -> Result<(), String> {
        let mut bytes = vec![0; 65_536];
        let len = uninterrupted(|| socket.recv(&mut bytes)).map_err(|error| error.to_string())?;
        if bytes[..len] == self.payload { Ok(()) } else { Err(format!("{len} other bytes")) }
    }

    #[track_caller]
    fn assert_comes(&self, socket: &UdpSocket, what: &str) {
        self.comes(socket).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

fn socket(ns: &Namespace, port: u16) -> UdpSocket {
    let socket = ns.enter(|| UdpSocket::bind((ANY, port))).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// Frames that the kernel lost before the engine received them.
fn missed(host: &Host) -> u64 {
    let ports = rows(&host.json(["stats"]));
    ports.iter().map(|port| port["rx_missed"].as_u64().unwrap()).sum()
}

/// Sends fragments in this order, no faster than a queue of some hundred frames is emptied: one that is lost
/// on the way loses the datagram, and is nobody's fault.
fn send_all(sender: &mut RawSender, pieces: &[Vec<u8>], order: &[usize]) {
    for some in order.chunks(64) {
        for number in some {
            sender.send(&pieces[*number]);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// All of `pieces` in the orders that Linux' selftest ip_defrag.c sends them in, and reversed.
fn orders(count: usize) -> Vec<(&'static str, Vec<usize>)> {
    let (even, odd) = ((0..count).step_by(2), (1..count).step_by(2));
    let mut random: Vec<usize> = (0..count).collect();
    let mut rng = Rng(count as u64);
    for n in (1..count).rev() {
        let bytes = rng.bytes(4);
        let other = u32::from_be_bytes(bytes.try_into().unwrap()) as usize % (n + 1);
        random.swap(n, other);
    }
    vec![
        ("in order", (0..count).collect()),
        ("reversed", (0..count).rev().collect()),
        ("odd ones first", odd.chain(even).collect()),
        ("at random", random),
    ]
}

fn in_any_order(uplink: Uplink) {
    let host = Host::start_dual(uplink);
    let inside = host.sandbox("a", &format!("--network app -p {PORT}:{PORT}/udp"));
    let (at_server, at_sandbox) = (socket(&host.outside, PORT), socket(&inside.ns, PORT));
    let mut out = RawSender::open(&inside.ns, "eth0");
    let mut from_outside = RawSender::open(&host.outside, WIRE);
    let mut ident = 0;
    for family in BOTH {
        let ways = [
            ("out", Ends::out(&inside, family), &mut out, &at_server),
            ("in", Ends::into(&host, family), &mut from_outside, &at_sandbox),
        ];
        // The longest that fits into a frame; IPv6 has its header of 40 and one of fragments.
        let longest = family.pick([1480, 1448]);
        for (way, ends, sender, socket) in ways {
            for (len, size) in [(3000, longest), (8000, 800), (60_000, longest), (9000, 8)] {
                for (order, numbers) in orders((len + 8usize).div_ceil(size)) {
                    loop {
                        ident += 1;
                        let before = missed(&host);
                        let datagram = ends.datagram(ident, len);
                        send_all(sender, &datagram.pieces(size), &numbers);
                        let came = datagram.comes(socket);
                        // What the kernel lost before us on a busy machine is sent again, as a sender would.
                        if came.is_ok() || missed(&host) == before {
                            came.unwrap_or_else(|error| {
                                panic!("{way} by {family}: {len} in {size}, {order}: {error}")
                            });
                            break;
                        }
                    }
                }
            }
        }
        // What the kernel cuts itself, both ways.
        let pings = format!("ping -n -c 3 -i 0.2 -W 2 -s 8000 {}", family.outside());
        let pings = inside.ns.run(&pings);
        assert!(pings.stdout.contains(" 3 received"), "{}", pings.stdout);
    }
}

/// Rows: Linux `ip_defrag.sh -4`.
#[test]
#[ignore = "needs root"]
fn fragments_in_any_order_by_a_dedicated_uplink() {
    in_any_order(Uplink::Dedicated);
}

#[test]
#[ignore = "needs root"]
fn fragments_in_any_order_by_a_shared_uplink() {
    in_any_order(Uplink::Shared);
}

fn dropped(host: &Host, sandbox: &Sandbox, reason: &str) -> u64 {
    let counts = rows(&host.json(["drops", "--sandbox", &sandbox.name]));
    let row = counts.into_iter().find(|row| row["reason"] == reason);
    row.map_or(0, |row| row["count"].as_u64().unwrap())
}

/// As ip_defrag.c does with `-o`: one more fragment, after those at odd places, that overlaps some.
///
/// Rows: Linux `ip_defrag.sh -4o`.
#[test]
#[ignore = "needs root"]
fn overlapping_fragments_never_arrive() {
    let host = Host::start_dual(Uplink::Dedicated);
    let inside = host.sandbox("a", "--network app");
    let mut out = RawSender::open(&inside.ns, "eth0");
    let at_server = socket(&host.outside, PORT);
    at_server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut refused = 0;
    for family in BOTH {
        let ends = Ends::out(&inside, family);
        let size = family.pick([1480, 1448]);
        for (round, (from, to)) in
            [(8, size + 8), (2 * size - 8, 3 * size - 8), (3 * size - 8, 4 * size - 8)]
                .into_iter()
                .enumerate()
        {
            let overlapped = ends.datagram(u32::try_from(round).unwrap() + 10, 8000);
            let pieces = overlapped.pieces(size);
            for number in [1, 3, 5] {
                out.send(&pieces[number]);
            }
            out.send(&overlapped.piece(from, to));
            for number in [0, 2, 4] {
                out.send(&pieces[number]);
            }
            let came = uninterrupted(|| at_server.recv(&mut [0; 65_536]));
            assert!(came.is_err(), "overlap from {from} to {to}, {family}");
            refused += 7;
            eventually(Duration::from_secs(5), "all of them are dropped", || {
                dropped(&host, &inside, "fragment_overlap") == refused
            });
        }
        let sound = ends.datagram(1, 8000);
        for piece in sound.pieces(size).iter().rev() {
            out.send(piece);
        }
        sound.assert_comes(&at_server, &format!("a sound one after them, {family}"));
    }
}

/// 10^5 orphans and as many that overlap, from one sandbox, while another sends sound datagrams in reverse.
#[test]
#[ignore = "needs root"]
fn a_flood_of_fragments_stops_nobody_else() {
    // Of each family.
    const FLOOD: u32 = 50_000;
    let mut host = Host::prepare_dual(Uplink::Dedicated);
    host.configure("[timeouts]\nfragments = 5\nfragments_v6 = 5\n");
    host.launch();
    host.dedicate("");
    host.network("app", APP);
    let [bad, good] = ["bad", "good"].map(|name| host.sandbox(name, "--network app"));
    let [mut flood, mut out] = [&bad, &good].map(|it| RawSender::open(&it.ns, "eth0"));
    let at_server = socket(&host.outside, PORT);
    let _tcp = TcpServer::start(&host.outside, (ANY, 7000));
    let began = Instant::now();
    for family in BOTH {
        let (theirs, ours) = (Ends::out(&bad, family), Ends::out(&good, family));
        let whole = theirs.datagram(0, 2900);
        let mut overlapping = [whole.piece(1440, 2840), whole.piece(1432, 2848)];
        for n in 0..FLOOD {
            for piece in &mut overlapping {
                renumber(piece, n);
                flood.send(piece);
            }
            if n % 5000 == 0 {
                let sound = ours.datagram(n, 8000);
                for piece in sound.pieces(1440).iter().rev() {
                    out.send(piece);
                }
                sound.assert_comes(&at_server, &format!("beside {n} of the flood, {family}"));
                TcpClient::connect(&good.ns, (family.outside(), 7000)).echo("hello");
            }
        }
    }
    println!("{} frames in {:?}", 4 * FLOOD, began.elapsed());
    assert!(dropped(&host, &bad, "fragment_overlap") > 0);
    for reason in ["fragment_limit", "fragment_overlap", "fragment_untracked"] {
        assert_eq!(dropped(&host, &good, reason), 0, "{reason}");
    }
    // What waits in vain ends.
    eventually(Duration::from_secs(20), "nothing waits", || {
        let status = one(&host.json(["status"]));
        let workers = status["workers"].as_array().unwrap();
        workers.iter().all(|worker| worker["queued"].as_u64().unwrap() == 0)
    });
}
