//! Two worlds of the same shape: two hosts on a network behind a NAT, and one machine outside that
//! plays all others. What is between them is the daemon, or the kernel with a bridge and nftables.
//!
//! The hosts' own stacks are deaf: they answer ARP and Neighbor Discovery and nothing else, so that
//! every packet is one of the script's.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use dataplane::packet::types::{Mac, PortId};
use tests::host::namespace::{Namespace, Owned};
use tests::host::raw::{RawListener, RawSender};
use tests::host::traffic::ping;
use tests::host::{Host, Uplink, eventually};
use tests::packet::{self, Packet, Wire, ip6};

use super::words::describe;

/// The hosts inside.
pub(crate) const INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 91, 1, 2), Ipv4Addr::new(10, 91, 1, 3)];
/// Their gateway.
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(10, 91, 1, 1);
/// The NAT's address outside.
pub(crate) const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The machine outside, which everybody else outside is behind.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// Of the wire outside; inside it is 1500.
pub(crate) const MTU: u16 = 1400;

/// How long an answer may take, and how long it must be quiet before a step is over.
const SOON: Duration = Duration::from_millis(1500);
const QUIET: Duration = Duration::from_millis(120);

/// Whose interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    One,
    Two,
    Outside,
}

type Frames = Arc<Mutex<Vec<Wire>>>;

/// A host's interface, and who it is on the wire.
struct Player {
    sender: RawSender,
    heard: Frames,
    mac: Mac,
    /// Where it sends what leaves its link.
    router: Mac,
    _listener: RawListener,
}

/// One of the worlds.
pub(crate) struct World {
    pub(crate) kind: &'static str,
    players: [Player; 3],
    /// What was heard in the step under way, in words.
    lines: Vec<String>,
    six: bool,
    host: Host,
    _namespaces: Vec<Owned>,
}

fn mac_of(ns: &Namespace, interface: &str) -> Mac {
    let shown = ns.ip(&format!("-o link show {interface}"));
    let mac = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    mac.expect("a MAC").parse().unwrap()
}

/// Its stack hears nothing from here on.
fn deafen(ns: &Namespace) {
    let nd = "nd-neighbor-solicit, nd-neighbor-advert";
    ns.ok("nft add table inet deaf");
    // Before routing, as a stack may be told to forward.
    ns.ok(
        "nft add chain inet deaf in { type filter hook prerouting priority -300 ; policy drop ; }",
    );
    ns.ok(&format!("nft add rule inet deaf in icmpv6 type {{ {nd} }} accept"));
}

impl Player {
    fn new(ns: &Namespace, interface: &str, router: Ipv4Addr) -> Self {
        // So that its neighbor, and the neighbor's neighbor, are known.
        eventually(Duration::from_secs(10), "the neighbor answers", || {
            ping(ns, router, 1).received == 1 && ping(ns, ip6(router), 1).received == 1
        });
        let shown = ns.ip(&format!("neighbor show to {router} dev {interface}"));
        let mac = shown.split("lladdr ").nth(1).and_then(|rest| rest.split(' ').next());
        let router = mac.expect("the neighbor's MAC").parse().unwrap();
        deafen(ns);
        let heard = Frames::default();
        let to = Arc::clone(&heard);
        let listener = RawListener::start_whole(ns, interface, move |wire| {
            to.lock().unwrap().push(wire.clone());
            false
        });
        let (sender, mac) = (RawSender::open(ns, interface), mac_of(ns, interface));
        Self { sender, heard, mac, router, _listener: listener }
    }
}

/// The wire outside, of both IP versions.
fn outside(host: &Host) {
    for ns in [&host.ns, &host.outside] {
        ns.enable_ipv6();
        ns.ip(&format!("link set up0 mtu {MTU}"));
    }
    host.outside.ip(&format!("-6 address add {}/120 dev up0 nodad", ip6(OUTSIDE)));
}

/// With the daemon.
pub(crate) fn ours() -> World {
    let mut host = Host::prepare(Uplink::Dedicated);
    outside(&host);
    // As it is once a start without a table is long past.
    host.configure("[timeouts]\nrestart_grace = 0");
    host.launch();
    let line = format!(
        "uplink add up0 --mode dedicated --address {UPLINK}/24 --address {}/120 --gateway {OUTSIDE} \
         --gateway {}",
        ip6(UPLINK),
        ip6(OUTSIDE)
    );
    host.ok(line.split_whitespace());
    let six = ip6(PEER);
    host.network(
        "app",
        &format!(
            "--subnet 10.91.1.0/24 --gateway {PEER} --subnet fd00::a5b:100/120 --gateway {six}"
        ),
    );
    let sandbox = |name: &str, ip: Ipv4Addr, more: &str| {
        host.sandbox(name, &format!("--network app --ip {ip} --ip6 {} {more}", ip6(ip))).ns
    };
    let one = sandbox("one", INSIDE[0], "");
    let two = sandbox("two", INSIDE[1], "-p 8080:80 -p 8081:81/udp -p 8082:82 -p 8083:83/udp");
    World::new("vswitchd", host, [&one, &two], Vec::new())
}

/// With the kernel's bridge, conntrack and masquerade, as container networks set them up.
pub(crate) fn kernel() -> World {
    let host = Host::prepare(Uplink::Shared);
    outside(&host);
    let ns = &host.ns;
    ns.ip(&format!("-6 address add {}/120 dev up0 nodad", ip6(UPLINK)));
    ns.ip(&format!("-6 route add default via {}", ip6(OUTSIDE)));
    ns.ip("link add br0 type bridge forward_delay 0");
    ns.ip(&format!("address add {PEER}/24 dev br0"));
    ns.ip(&format!("-6 address add {}/120 dev br0 nodad", ip6(PEER)));
    ns.ip("link set br0 up");
    for key in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        ns.ok(&format!("sysctl -qw {key}"));
    }
    let mut namespaces = Vec::new();
    for (number, ip) in INSIDE.into_iter().enumerate() {
        let owned = Namespace::create(&host.name(&format!("k{number}")));
        let inner = owned.handle();
        inner.enable_ipv6();
        let port = format!("port{number}");
        ns.ip(&format!("link add {port} type veth peer name eth0 netns {}", inner.name()));
        ns.ip(&format!("link set {port} master br0 up"));
        inner.ip(&format!("address add {ip}/24 dev eth0"));
        inner.ip(&format!("-6 address add {}/120 dev eth0 nodad", ip6(ip)));
        inner.ip("link set eth0 up");
        inner.ip(&format!("route add default via {PEER}"));
        inner.ip(&format!("-6 route add default via {}", ip6(PEER)));
        namespaces.push(owned);
    }
    let two = INSIDE[1];
    for line in [
        "add table inet nat".to_owned(),
        "add chain inet nat pre { type nat hook prerouting priority dstnat ; }".to_owned(),
        // A port that is unpublished by and by.
        "add chain inet nat gone { type nat hook prerouting priority dstnat + 1 ; }".to_owned(),
        format!("add rule inet nat gone fib daddr type local udp dport 8083 dnat ip to {two}:83"),
        format!(
            "add rule inet nat gone fib daddr type local udp dport 8083 dnat ip6 to [{}]:83",
            ip6(two)
        ),
        "add chain inet nat post { type nat hook postrouting priority srcnat ; }".to_owned(),
        "add chain inet nat forward { type filter hook forward priority filter ; }".to_owned(),
        "add rule inet nat forward ct state invalid drop".to_owned(),
        "add rule inet nat forward ct state established,related accept".to_owned(),
        "add rule inet nat forward ct status dnat accept".to_owned(),
        "add rule inet nat forward iifname up0 drop".to_owned(),
        format!("add rule inet nat pre fib daddr type local tcp dport 8080 dnat ip to {two}:80"),
        format!(
            "add rule inet nat pre fib daddr type local tcp dport 8080 dnat ip6 to [{}]:80",
            ip6(two)
        ),
        format!("add rule inet nat pre fib daddr type local udp dport 8081 dnat ip to {two}:81"),
        format!(
            "add rule inet nat pre fib daddr type local udp dport 8081 dnat ip6 to [{}]:81",
            ip6(two)
        ),
        format!("add rule inet nat pre fib daddr type local tcp dport 8082 dnat ip to {two}:82"),
        format!(
            "add rule inet nat pre fib daddr type local tcp dport 8082 dnat ip6 to [{}]:82",
            ip6(two)
        ),
        "add rule inet nat post oifname br0 ip saddr 10.91.1.0/24 ct status dnat masquerade"
            .to_owned(),
        "add rule inet nat post oifname br0 ip6 saddr fd00::/64 ct status dnat masquerade"
            .to_owned(),
        "add rule inet nat post oifname up0 masquerade".to_owned(),
    ] {
        ns.ok(&format!("nft {line}"));
    }
    let inner: Vec<_> = namespaces.iter().map(Owned::handle).collect();
    World::new("kernel", host, [&inner[0], &inner[1]], namespaces)
}

impl World {
    fn new(kind: &'static str, host: Host, inside: [&Namespace; 2], owned: Vec<Owned>) -> Self {
        let players = [
            Player::new(inside[0], "eth0", PEER),
            Player::new(inside[1], "eth0", PEER),
            Player::new(&host.outside, "up0", UPLINK),
        ];
        Self { kind, players, lines: Vec::new(), six: false, host, _namespaces: owned }
    }

    /// All packets are IPv6 from here on, or no longer.
    pub(crate) fn speak(&mut self, six: bool) {
        self.six = six;
    }

    pub(crate) fn speaks_ipv6(&self) -> bool {
        self.six
    }

    /// A host of the script as it is on the wire of this world: everybody outside has the MAC of the
    /// machine there, and inside everybody but the two the gateway's.
    pub(crate) fn host(&self, ip: Ipv4Addr) -> packet::Host {
        let mac = match INSIDE.iter().position(|own| *own == ip) {
            Some(number) => self.players[number].mac,
            None => self.players[0].router,
        };
        packet::Host { port: PortId(0), mac, ip }
    }

    /// Sends a packet, by way of its router unless it is for the other one inside.
    pub(crate) fn send(&mut self, who: Who, packet: Packet) {
        let packet = if self.six { packet.v6() } else { packet };
        let player = &self.players[who as usize];
        let wire = Wire::from(packet.macs(player.mac, player.router));
        self.send_frame(who, &wire.bytes);
    }

    /// Takes the publication of port 8083 away.
    pub(crate) fn unpublish(&self) {
        if self.kind == "kernel" {
            self.host.ns.ok("nft flush chain inet nat gone");
        } else {
            self.host.ok(["port", "unpublish", &self.host.name("two"), "8083:83/udp"]);
        }
    }

    /// As it is.
    pub(crate) fn send_frame(&mut self, who: Who, frame: &[u8]) {
        self.players[who as usize].sender.send(frame);
    }

    /// The MACs that it sends with beyond its link: its own, and its router's.
    pub(crate) fn macs(&self, who: Who) -> (Mac, Mac) {
        let player = &self.players[who as usize];
        (player.mac, player.router)
    }

    /// Waits until it hears one, which must not take long.
    pub(crate) fn hear(&mut self, who: Who) -> Vec<u8> {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(frame) = self.take(who) {
                return frame;
            }
            assert!(Instant::now() < deadline, "{}: {who:?} hears nothing", self.kind);
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The next frame of those that are spoken of, if there is one.
    fn take(&mut self, who: Who) -> Option<Vec<u8>> {
        loop {
            let mut heard = self.players[who as usize].heard.lock().unwrap();
            if heard.is_empty() {
                return None;
            }
            let wire = heard.remove(0);
            drop(heard);
            if let Some(line) = describe(&wire) {
                self.lines.push(format!("{who:?} hears {line}").to_lowercase());
                return Some(wire.bytes);
            }
        }
    }

    /// The step is over once it is quiet: all that was heard, in no order.
    pub(crate) fn heard(&mut self) -> Vec<String> {
        let mut quiet = Instant::now();
        while quiet.elapsed() < QUIET {
            for who in [Who::One, Who::Two, Who::Outside] {
                if self.take(who).is_some() {
                    quiet = Instant::now();
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
        let mut lines = std::mem::take(&mut self.lines);
        lines.sort();
        lines
    }
}
