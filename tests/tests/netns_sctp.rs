//! SCTP through the built daemon, in frames of our own: the test's kernel need not have it.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use dataplane::packet::types::{Mac, PortId};
use serde_json::Value;
use tests::host::namespace::Namespace;
use tests::host::raw::{RawListener, RawSender};
use tests::host::traffic::ping;
use tests::host::{GATEWAY, HOST_IP, Host, Sandbox, Uplink, WIRE, eventually, one, rows};
use tests::packet::sctp::{COOKIE_ACK, COOKIE_ECHO, DATA, INIT, INIT_ACK, sctp};
use tests::packet::{self, Packet};

const NET_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 91, 1, 1);
const PORT: u16 = 36_412;
/// What the two sides ask to be spoken to with.
const CLIENTS: u32 = 0x0c11_e471;
const SERVERS: u32 = 0x5e57_e571;

fn on_the_wire(mac: Mac, ip: Ipv4Addr) -> packet::Host {
    packet::Host { port: PortId(0), mac, ip }
}

fn mac_of(ns: &Namespace, interface: &str) -> Mac {
    let shown = ns.ip(&format!("-o link show {interface}"));
    let mac = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    mac.expect("a MAC").parse().unwrap()
}

fn neighbor(ns: &Namespace, interface: &str, address: Ipv4Addr) -> Mac {
    let shown = ns.ip(&format!("neighbor show to {address} dev {interface}"));
    let mac = shown.split("lladdr ").nth(1).and_then(|rest| rest.split(' ').next());
    mac.unwrap_or_else(|| panic!("{shown:?}")).parse().unwrap()
}

/// One who sends frames at an interface and sees what comes there.
struct End {
    ns: Namespace,
    interface: &'static str,
    sender: RawSender,
    me: packet::Host,
    /// By its MAC; the address is that of the other end.
    next: packet::Host,
}

impl End {
    fn inside(sandbox: &Sandbox) -> Self {
        assert_eq!(ping(&sandbox.ns, NET_GATEWAY, 1).received, 1);
        Self {
            sender: RawSender::open(&sandbox.ns, "eth0"),
            me: on_the_wire(mac_of(&sandbox.ns, "eth0"), sandbox.ip),
            next: on_the_wire(neighbor(&sandbox.ns, "eth0", NET_GATEWAY), GATEWAY),
            ns: sandbox.ns.clone(),
            interface: "eth0",
        }
    }

    fn outside(host: &Host) -> Self {
        assert_eq!(ping(&host.outside, HOST_IP, 1).received, 1);
        Self {
            sender: RawSender::open(&host.outside, WIRE),
            me: on_the_wire(mac_of(&host.outside, WIRE), GATEWAY),
            next: on_the_wire(neighbor(&host.outside, WIRE, HOST_IP), HOST_IP),
            ns: host.outside.clone(),
            interface: WIRE,
        }
    }

    fn packet(&self, src: u16, dst: u16, tag: u32) -> Packet {
        sctp(&self.me, src, &self.next, dst, tag)
    }

    /// Sends a packet, and expects exactly it at the other end, from this address and these ports.
    fn reaches(&mut self, other: &End, packet: &Packet, from: Ipv4Addr, ports: (u16, u16)) {
        let listener = RawListener::start(&other.ns, other.interface, |frame| {
            frame.len() > 34 && frame[12..14] == [8, 0] && frame[23] == 132
        });
        // The socket is open when this is called; what it reads begins with it.
        self.sender.send(&packet.bytes());
        thread::sleep(Duration::from_millis(300));
        let expected = packet.clone().src(from).dst(other.me.ip).sport(ports.0).dport(ports.1);
        let expected = expected.routed(other.next.mac, other.me.mac).ip_bytes();
        // What this end sends itself is seen there too, by its kernel's answers if by anybody.
        let seen: Vec<Vec<u8>> = listener.seen().into_iter().map(|f| f[14..].to_vec()).collect();
        assert_eq!(seen, [expected]);
    }
}

fn state(host: &Host) -> Value {
    one(&host.json(["conntrack", "list", "--proto", "sctp"]))
}

/// INIT, INIT ACK, COOKIE ECHO and COOKIE ACK, and data each way. `seen` is what the server sees the client
/// as; the client knows the server's port as another.
fn talk(
    (client, port): (&mut End, u16),
    (server, known): (&mut End, u16),
    (seen, seen_port): (Ipv4Addr, u16),
) {
    for (tag, answer_tag) in [(0, CLIENTS), (SERVERS, CLIENTS), (SERVERS, CLIENTS)] {
        let step = (tag, answer_tag);
        let ask = client.packet(port, known, tag);
        let answer = server.packet(PORT, seen_port, answer_tag).dst(seen);
        let (ask, answer) = match step.0 {
            0 => (ask.asks_for(INIT, CLIENTS), answer.asks_for(INIT_ACK, SERVERS)),
            _ => (
                ask.chunk(COOKIE_ECHO, 0, b"a cookie").chunk(DATA, 3, &[7; 777]),
                answer.chunk(COOKIE_ACK, 0, b"").chunk(DATA, 3, &[9; 333]),
            ),
        };
        client.reaches(server, &ask, seen, (seen_port, PORT));
        server.reaches(client, &answer, client.next.ip, (known, port));
    }
}

fn published(uplink: Uplink) {
    let host = Host::start(uplink);
    host.network("app", "--subnet 10.91.1.0/24 --gateway 10.91.1.1");
    let web = host.sandbox("web", &format!("--network app -p 9000:{PORT}/sctp"));
    let port = one(&host.json(["port", "ls"]));
    assert_eq!((&port["proto"], &port["host_port"]), (&"sctp".into(), &9000.into()));
    host.refused(
        4,
        &["9000/sctp", "is published by sandbox"],
        ["port", "publish", &web.name, "9000:1/sctp"],
    );
    let mut server = End::inside(&web);
    let mut client = End::outside(&host);
    talk((&mut client, 5000), (&mut server, 9000), (GATEWAY, 5000));
    let shown = state(&host);
    assert_eq!((&shown["state"], &shown["nat"]), (&"ESTABLISHED".into(), &"dnat".into()));
    host.ok(["port", "unpublish", &web.name, "9000:36412/sctp"]);
    eventually(Duration::from_secs(5), "its associations end", || {
        rows(&host.json(["conntrack", "list", "--proto", "sctp"])).is_empty()
    });
}

#[test]
#[ignore = "needs root"]
fn sctp_is_published_on_a_shared_uplink() {
    published(Uplink::Shared);
}

#[test]
#[ignore = "needs root"]
fn sctp_is_published_on_a_dedicated_uplink() {
    published(Uplink::Dedicated);
}

#[test]
#[ignore = "needs root"]
fn sctp_goes_out_by_a_shared_uplink() {
    let host = Host::start(Uplink::Shared);
    host.network("app", "--subnet 10.91.1.0/24 --gateway 10.91.1.1");
    let mut client = End::inside(&host.sandbox("client", "--network app"));
    let mut server = End::outside(&host);
    // A port that the shared uplink may speak from.
    let port = 20_000;
    talk((&mut client, port), (&mut server, PORT), (HOST_IP, port));
    let shown = state(&host);
    assert_eq!((&shown["state"], &shown["nat"]), (&"ESTABLISHED".into(), &"snat".into()));
}
