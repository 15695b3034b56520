//! SCTP through the built daemon, in both families and in frames of our own: the test's kernel need not have it.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use dataplane::packet::types::{Mac, PortId};
use serde_json::Value;
use tests::host::namespace::Namespace;
use tests::host::raw::{RawListener, RawSender};
use tests::host::traffic::ping;
use tests::host::{BOTH, Family, GATEWAY, Host, Sandbox, Uplink, WIRE, eventually, one, rows};
use tests::packet::sctp::{COOKIE_ACK, COOKIE_ECHO, DATA, INIT, INIT_ACK, sctp};
use tests::packet::{self, Packet};

const PORT: u16 = 36_412;
/// What the two sides ask to be spoken to with.
const CLIENTS: u32 = 0x0c11_e471;
const SERVERS: u32 = 0x5e57_e571;

/// Addresses are given to each packet.
fn on_the_wire(mac: Mac) -> packet::Host {
    packet::Host { port: PortId(0), mac, ip: GATEWAY }
}

fn mac_of(ns: &Namespace, interface: &str) -> Mac {
    let shown = ns.ip(&format!("-o link show {interface}"));
    let mac = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    mac.expect("a MAC").parse().unwrap()
}

fn neighbor(ns: &Namespace, interface: &str, address: IpAddr) -> Mac {
    assert_eq!(ping(ns, address, 1).received, 1);
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
    own: IpAddr,
    /// Who is next on the way to the other end, and the address that this end knows that by.
    next: packet::Host,
    other: IpAddr,
}

impl End {
    fn inside(sandbox: &Sandbox, family: Family) -> Self {
        Self {
            sender: RawSender::open(&sandbox.ns, "eth0"),
            me: on_the_wire(mac_of(&sandbox.ns, "eth0")),
            own: family.of(sandbox),
            next: on_the_wire(neighbor(&sandbox.ns, "eth0", family.gateway())),
            other: family.outside(),
            ns: sandbox.ns.clone(),
            interface: "eth0",
        }
    }

    fn outside(host: &Host, family: Family) -> Self {
        Self {
            sender: RawSender::open(&host.outside, WIRE),
            me: on_the_wire(mac_of(&host.outside, WIRE)),
            own: family.outside(),
            next: on_the_wire(neighbor(&host.outside, WIRE, family.host())),
            other: family.host(),
            ns: host.outside.clone(),
            interface: WIRE,
        }
    }

    fn packet(&self, src: u16, dst: u16, tag: u32, to: IpAddr) -> Packet {
        sctp(&self.me, src, &self.next, dst, tag).between(self.own, to)
    }

    /// Sends a packet, and expects exactly it at the other end, from this address and these ports.
    fn reaches(&mut self, other: &End, packet: &Packet, from: IpAddr, ports: (u16, u16)) {
        let listener = RawListener::start(&other.ns, other.interface, |frame| {
            let next = match frame.get(12..14) {
                Some([8, 0]) => frame.get(23),
                Some([0x86, 0xdd]) => frame.get(20),
                _ => None,
            };
            next == Some(&132)
        });
        // The socket is open when this is called; what it reads begins with it.
        self.sender.send(&packet.bytes());
        thread::sleep(Duration::from_millis(300));
        let expected = packet.clone().between(from, other.own).sport(ports.0).dport(ports.1);
        let expected = expected.routed(other.next.mac, other.me.mac).ip_bytes();
        // What this end sends itself is seen there too, by its kernel's answers if by anybody.
        let seen: Vec<Vec<u8>> = listener.seen().into_iter().map(|f| f[14..].to_vec()).collect();
        assert_eq!(seen, [expected]);
    }
}

/// The only association of a family.
fn state(host: &Host, family: Family) -> Value {
    let outside = family.outside().to_string();
    let is_its = |row: &Value| row["orig"]["src"] == *outside || row["orig"]["dst"] == *outside;
    let all = rows(&host.json(["conntrack", "list", "--proto", "sctp"]));
    one(&all.into_iter().filter(is_its).collect())
}

/// INIT, INIT ACK, COOKIE ECHO and COOKIE ACK, and data each way. `seen` is what the server sees the client
/// as; the client knows the server's port as another.
fn talk(
    (client, port): (&mut End, u16),
    (server, known): (&mut End, u16),
    (seen, seen_port): (IpAddr, u16),
) {
    for (tag, answer_tag) in [(0, CLIENTS), (SERVERS, CLIENTS), (SERVERS, CLIENTS)] {
        let step = (tag, answer_tag);
        let ask = client.packet(port, known, tag, client.other);
        let answer = server.packet(PORT, seen_port, answer_tag, seen);
        let (ask, answer) = match step.0 {
            0 => (ask.asks_for(INIT, CLIENTS), answer.asks_for(INIT_ACK, SERVERS)),
            _ => (
                ask.chunk(COOKIE_ECHO, 0, b"a cookie").chunk(DATA, 3, &[7; 777]),
                answer.chunk(COOKIE_ACK, 0, b"").chunk(DATA, 3, &[9; 333]),
            ),
        };
        client.reaches(server, &ask, seen, (seen_port, PORT));
        server.reaches(client, &answer, client.other, (known, port));
    }
}

fn published(uplink: Uplink) {
    let host = Host::start_dual(uplink);
    let web = host.sandbox("web", &format!("--network app -p 9000:{PORT}/sctp"));
    let ports = rows(&host.json(["port", "ls"]));
    assert_eq!(ports.len(), 2, "{ports:?}");
    for port in ports {
        assert_eq!((&port["proto"], &port["host_port"]), (&"sctp".into(), &9000.into()));
    }
    host.refused(
        4,
        &["9000/sctp", "is published by sandbox"],
        ["port", "publish", &web.name, "9000:1/sctp"],
    );
    for family in BOTH {
        let mut server = End::inside(&web, family);
        let mut client = End::outside(&host, family);
        talk((&mut client, 5000), (&mut server, 9000), (family.outside(), 5000));
        let shown = state(&host, family);
        assert_eq!((&shown["state"], &shown["nat"]), (&"ESTABLISHED".into(), &"dnat".into()));
    }
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
    let host = Host::start_dual(Uplink::Shared);
    let sandbox = host.sandbox("client", "--network app");
    for family in BOTH {
        let mut client = End::inside(&sandbox, family);
        let mut server = End::outside(&host, family);
        // A port that the shared uplink may speak from.
        let port = 20_000;
        talk((&mut client, port), (&mut server, PORT), (family.host(), port));
        let shown = state(&host, family);
        assert_eq!((&shown["state"], &shown["nat"]), (&"ESTABLISHED".into(), &"snat".into()));
    }
}
