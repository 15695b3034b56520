//! Fragments as the kernel's stacks and a raw sender make them, through the built daemon: out, in, and from
//! somebody who means no good.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use dataplane::packet::types::{Mac, PortId};
use tests::fragments::{in_pieces, in_pieces6, piece};
use tests::host::namespace::Namespace;
use tests::host::raw::RawSender;
use tests::host::traffic::{TcpClient, TcpServer, ping, uninterrupted};
use tests::host::{GATEWAY, HOST_IP, Host, Sandbox, Uplink, WIRE, eventually, one, rows};
use tests::packet::{self, Packet, udp};
use tests::sim::Rng;

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const NET_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 91, 1, 1);
const PORT: u16 = 7001;
/// Where UDP's payload begins in a frame of [`tests::packet`].
const PAYLOAD: usize = 42;

fn host_with_app(uplink: Uplink) -> Host {
    let host = Host::start(uplink);
    host.network("app", "--subnet 10.91.1.0/24 --gateway 10.91.1.1");
    host
}

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
fn neighbor(ns: &Namespace, interface: &str, address: impl Display) -> Mac {
    let shown = ns.ip(&format!("neighbor show to {address} dev {interface}"));
    let mac = shown.split("lladdr ").nth(1).and_then(|rest| rest.split(' ').next());
    mac.unwrap_or_else(|| panic!("{shown:?}")).parse().unwrap()
}

/// A sender in a sandbox, and the two ends of what it sends out.
fn sender(sandbox: &Sandbox) -> (RawSender, packet::Host, packet::Host) {
    assert_eq!(ping(&sandbox.ns, NET_GATEWAY, 1).received, 1);
    let me = on_the_wire(mac_of(&sandbox.ns, "eth0"), sandbox.ip);
    let gateway = neighbor(&sandbox.ns, "eth0", NET_GATEWAY);
    (RawSender::open(&sandbox.ns, "eth0"), me, on_the_wire(gateway, GATEWAY))
}

fn socket(ns: &Namespace, port: u16) -> UdpSocket {
    let socket = ns.enter(|| UdpSocket::bind((ANY, port))).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// A datagram of its own number and contents.
fn datagram(from: &packet::Host, to: &packet::Host, ident: u16, len: usize) -> Packet {
    let payload = Rng(u64::from(ident) + 1).bytes(len);
    udp(from, 40_000, to, PORT).ident(ident).may_fragment().payload(&payload)
}

/// Whether it comes, and is what was sent.
fn comes(socket: &UdpSocket, datagram: &Packet) -> Result<(), String> {
    let mut bytes = vec![0; 65_536];
    let len = uninterrupted(|| socket.recv(&mut bytes)).map_err(|error| error.to_string())?;
    if bytes[..len] == datagram.bytes()[PAYLOAD..] {
        Ok(())
    } else {
        Err(format!("{len} other bytes"))
    }
}

#[track_caller]
fn assert_comes(socket: &UdpSocket, datagram: &Packet, what: &str) {
    comes(socket, datagram).unwrap_or_else(|error| panic!("{what}: {error}"));
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
    let host = host_with_app(uplink);
    let inside = host.sandbox("a", &format!("--network app -p {PORT}:{PORT}/udp"));
    let (mut out, me, server) = sender(&inside);
    let at_server = socket(&host.outside, PORT);
    assert_eq!(ping(&host.outside, HOST_IP, 1).received, 1);
    let client = on_the_wire(mac_of(&host.outside, WIRE), GATEWAY);
    let published = on_the_wire(neighbor(&host.outside, WIRE, HOST_IP), HOST_IP);
    let mut from_outside = RawSender::open(&host.outside, WIRE);
    let at_sandbox = socket(&inside.ns, PORT);
    let mut ident = 0;
    for (len, size) in [(3000, 1480), (8000, 800), (60_000, 1480), (9000, 8)] {
        for (order, numbers) in orders((len + 8usize).div_ceil(size)) {
            ident += 1;
            let what = format!("{len} octets in fragments of {size}, {order}");
            let datagram_out = datagram(&me, &server, ident, len);
            send_all(&mut out, &in_pieces(&datagram_out, size), &numbers);
            assert_comes(&at_server, &datagram_out, &format!("out: {what}"));
            loop {
                let before = missed(&host);
                let datagram_in = datagram(&client, &published, ident, len);
                send_all(&mut from_outside, &in_pieces(&datagram_in, size), &numbers);
                let came = comes(&at_sandbox, &datagram_in);
                // What the kernel lost before us on a busy machine is sent again, as a sender would.
                if came.is_ok() || missed(&host) == before {
                    came.unwrap_or_else(|error| panic!("in: {what}: {error}"));
                    break;
                }
                ident += 1;
            }
        }
    }
    // What the kernel cuts itself, both ways.
    let pings = inside.ns.run(&format!("ping -n -c 3 -i 0.2 -W 2 -s 8000 {GATEWAY}"));
    assert!(pings.stdout.contains(" 3 received"), "{}", pings.stdout);
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

/// As ip_defrag.c does with `-6`.
#[test]
#[ignore = "needs root"]
fn fragments_of_ipv6_in_any_order() {
    const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
    /// Where UDP's payload begins in a frame.
    const PAYLOAD6: usize = 62;
    let mut host = Host::prepare(Uplink::Dedicated);
    for ns in [&host.ns, &host.outside] {
        ns.enable_ipv6();
    }
    host.outside.ip(&format!("-6 address add {ROUTER6}/64 dev {WIRE} nodad"));
    host.launch();
    let line = format!("uplink add {WIRE} --mode dedicated --address {HOST6}/64");
    host.ok(line.split_whitespace());
    host.network("app", "--ipv6");
    let inside = host.sandbox("a", "--network app");
    let shown = one(&host.json(["sandbox", "inspect", &inside.name]))["endpoints"][0].clone();
    let address = |key: &str| -> Ipv6Addr { shown[key].as_str().unwrap().parse().unwrap() };
    let (own, gateway) = (address("ipv6"), address("gateway6"));
    assert_eq!(ping(&inside.ns, ROUTER6, 1).received, 1);
    let me = on_the_wire(mac_of(&inside.ns, "eth0"), inside.ip);
    let next = on_the_wire(neighbor(&inside.ns, "eth0", gateway), GATEWAY);
    let at_server = host.outside.enter(|| UdpSocket::bind((ROUTER6, PORT))).unwrap();
    at_server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut out = RawSender::open(&inside.ns, "eth0");
    let mut id = 0;
    for (len, size) in [(3000, 1448), (8000, 800), (60_000, 1448), (9000, 8)] {
        for (order, numbers) in orders((len + 8usize).div_ceil(size)) {
            loop {
                id += 1;
                let before = missed(&host);
                let payload = Rng(u64::from(id)).bytes(len);
                let datagram = udp(&me, 40_000, &next, PORT).v6().src6(own).dst6(ROUTER6);
                let datagram = datagram.payload(&payload);
                send_all(&mut out, &in_pieces6(&datagram, size, id), &numbers);
                let mut bytes = vec![0; 65_536];
                let came = uninterrupted(|| at_server.recv(&mut bytes));
                // What the kernel lost before us on a busy machine is sent again, as a sender would.
                if came.is_ok() || missed(&host) == before {
                    let got =
                        came.unwrap_or_else(|error| panic!("{len} in {size}, {order}: {error}"));
                    assert!(bytes[..got] == datagram.bytes()[PAYLOAD6..], "{len}, {order}");
                    break;
                }
            }
        }
    }
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
    let host = host_with_app(Uplink::Dedicated);
    let inside = host.sandbox("a", "--network app");
    let (mut out, me, server) = sender(&inside);
    let at_server = socket(&host.outside, PORT);
    at_server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let sound = datagram(&me, &server, 1, 8000);
    for (round, (from, to)) in [(8, 1488), (2952, 4432), (4432, 5912)].into_iter().enumerate() {
        let ident = u16::try_from(round).unwrap() + 10;
        let overlapped = datagram(&me, &server, ident, 8000);
        let pieces = in_pieces(&overlapped, 1480);
        for number in [1, 3, 5] {
            out.send(&pieces[number]);
        }
        out.send(&piece(&overlapped.bytes(), from, to));
        for number in [0, 2, 4] {
            out.send(&pieces[number]);
        }
        let came = uninterrupted(|| at_server.recv(&mut [0; 65_536]));
        assert!(came.is_err(), "overlap from {from} to {to}");
        let all = (round as u64 + 1) * 7;
        eventually(Duration::from_secs(5), "all of them are dropped", || {
            dropped(&host, &inside, "fragment_overlap") == all
        });
    }
    for piece in in_pieces(&sound, 1480).iter().rev() {
        out.send(piece);
    }
    assert_comes(&at_server, &sound, "a sound one after them");
}

/// 10^5 orphans and as many that overlap, from one sandbox, while another sends sound datagrams in reverse.
#[test]
#[ignore = "needs root"]
fn a_flood_of_fragments_stops_nobody_else() {
    const FLOOD: u32 = 100_000;
    let mut host = Host::prepare(Uplink::Dedicated);
    host.configure(&format!(
        "[timeouts]\nfragments = 5\n[[uplink]]\ninterface = \"{WIRE}\"\nmode = \"dedicated\"\n\
         addresses = [\"{HOST_IP}/24\"]\ngateway = \"{GATEWAY}\"\n"
    ));
    host.launch();
    host.network("app", "--subnet 10.91.1.0/24 --gateway 10.91.1.1");
    let bad = host.sandbox("bad", "--network app");
    let good = host.sandbox("good", "--network app");
    let (mut flood, bad_end, server) = sender(&bad);
    let (mut out, good_end, _) = sender(&good);
    let at_server = socket(&host.outside, PORT);
    let _tcp = TcpServer::start(&host.outside, (ANY, 7000));
    let whole = udp(&bad_end, 9, &server, 9).may_fragment().long(2900);
    let began = Instant::now();
    for n in 0..FLOOD {
        let ident = u16::try_from(n % 0x1_0000).unwrap();
        let bytes = whole.clone().ident(ident).bytes();
        flood.send(&piece(&bytes, 1480, 2880));
        flood.send(&piece(&bytes, 1472, 2888));
        if n % 10_000 == 0 {
            let sound = datagram(&good_end, &server, ident, 8000);
            for piece in in_pieces(&sound, 1480).iter().rev() {
                out.send(piece);
            }
            assert_comes(&at_server, &sound, &format!("beside {n} of the flood"));
            TcpClient::connect(&good.ns, (GATEWAY, 7000)).echo("hello");
        }
    }
    println!("{} frames in {:?}", 2 * FLOOD, began.elapsed());
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
