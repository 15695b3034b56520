//! IPv6 on an uplink that is shared with the host: sandboxes get out by the host's address, published
//! ports lead in, and the host keeps what is its own. The router is known by its link-local address, as
//! router advertisements tell it.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::signal::Signal;
use serde_json::json;
use tests::host::inventory::{Inventory, filters};
use tests::host::namespace::Namespace;
use tests::host::traffic::{
    PATIENCE, TcpClient, TcpServer, UdpServer, assert_ping, udp_ask, uninterrupted,
};
use tests::host::{GATEWAY, HOST_IP, Host, Sandbox, Uplink, WIRE, eventually, rows};

/// The host's address, which the daemon shares.
const HOST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// The machine at the other end of the wire, which has [`FAR`] behind it.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const FAR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const ANY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

/// A host with both families on its wire, whose daemon was not started yet.
fn prepared() -> Host {
    let host = Host::prepare(Uplink::Shared);
    for ns in [&host.ns, &host.outside] {
        ns.enable_ipv6();
    }
    host.ns.ip(&format!("-6 address add {HOST}/64 dev {WIRE} nodad"));
    host.outside.ip(&format!("-6 address add {ROUTER}/64 dev {WIRE} nodad"));
    host.outside.ip(&format!("-6 address add fe80::1/64 dev {WIRE} nodad"));
    host.outside.ip(&format!("-6 address add {FAR}/128 dev lo nodad"));
    host.ns.ip(&format!("-6 route add default via fe80::1 dev {WIRE}"));
    for ns in [&host.ns, &host.outside] {
        // Link-local ones are asked about for a second.
        eventually(PATIENCE, "addresses can be used", || {
            !ns.ip("-6 address show").contains("tentative")
        });
    }
    host
}

fn started() -> Host {
    let mut host = prepared();
    host.launch();
    host.network("app", "--ipv6");
    host
}

/// What the outside sees a new connection of the sandbox come from.
fn seen_from(sandbox: &Sandbox) -> Option<IpAddr> {
    TcpClient::try_connect(&sandbox.ns, (FAR, 7000)).ok().map(|client| client.seen_as.ip())
}

#[test]
#[ignore = "needs root"]
fn sandboxes_get_out_and_ports_lead_in() {
    let host = started();
    host.network("plain", "--subnet 10.92.0.0/24");
    let uplink = rows(&host.json(["uplink", "ls"]))[0].clone();
    assert_eq!(uplink["addresses"], json!(["192.0.2.2/24", "2001:db8::2/64"]));
    assert_eq!((&uplink["gateway"], &uplink["gateway6"]), (&json!("192.0.2.1"), &json!("fe80::1")));
    let flags = "--network app -p 8080:80 -p 5353:53/udp -p [::]:8081:80 -p [2001:db8::2]:8082:80";
    let (web, other) = (host.sandbox("web", flags), host.sandbox("other", "--network app"));
    let _outside = (
        TcpServer::start(&host.outside, (ANY, 7000)),
        UdpServer::start(&host.outside, (ANY, 7001)),
    );
    let _inside = (TcpServer::start(&web.ns, (ANY, 80)), UdpServer::start(&web.ns, (ANY, 53)));

    for to in [ROUTER, FAR] {
        assert_ping(&web.ns, to, 63);
    }
    assert_ping(&web.ns, GATEWAY, 63);
    assert_eq!(seen_from(&web), Some(HOST.into()));
    assert_eq!(udp_ask(&web.ns, (ROUTER, 7001)).map(|seen| seen.ip()), Some(HOST.into()));
    // In fragments both ways.
    let long = web.ns.run(&format!("ping -n -c 2 -i 0.1 -W 2 -s 3000 {FAR}")).stdout;
    assert!(long.contains(" 2 received"), "{long}");

    let seen = |to: IpAddr, port: u16| {
        let client = TcpClient::try_connect(&host.outside, (to, port)).ok();
        // The server takes both families by one socket.
        client.map(|client| client.seen_as.ip().to_canonical())
    };
    let (v4, v6) = (IpAddr::from(HOST_IP), IpAddr::from(HOST));
    assert_eq!((seen(v4, 8080), seen(v6, 8080)), (Some(GATEWAY.into()), Some(ROUTER.into())));
    assert_eq!((seen(v4, 8081), seen(v6, 8081)), (None, Some(ROUTER.into())));
    assert_eq!((seen(v4, 8082), seen(v6, 8082)), (None, Some(ROUTER.into())));
    assert_eq!(udp_ask(&host.outside, (v6, 5353)).map(|seen| seen.ip()), Some(ROUTER.into()));
    // The host's own programs, and sandboxes by the host's address.
    for to in [HOST, Ipv6Addr::LOCALHOST] {
        TcpClient::connect(&host.ns, (to, 8080)).echo("the host itself");
    }
    TcpClient::connect(&other.ns, (HOST, 8080)).echo("a neighbor");
    TcpClient::connect(&web.ns, (HOST, 8080)).echo("itself");

    // One without IPv6 has no port there: the host refuses, at once.
    let plain = host.sandbox("plain", "--network plain -p 9090:80");
    let _server = TcpServer::start(&plain.ns, (Ipv4Addr::UNSPECIFIED, 80));
    assert_eq!(seen(v4, 9090), Some(GATEWAY.into()));
    let refused = TcpClient::try_connect(&host.outside, (v6, 9090)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    host.ok(["port", "unpublish", &web.name, "8080:80"]);
    let refused = TcpClient::try_connect(&host.outside, (v6, 8080)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(seen(v6, 8081), Some(ROUTER.into()));
}

/// What a careless switch would touch, and a policy that it would not pass.
const RULES: &str = "
table inet firewall {
    chain input { type filter hook input priority 0; policy drop;
        iif lo accept; ct state established,related accept; meta l4proto ipv6-icmp accept;
        tcp dport 7100 accept; udp dport 7101 accept;
    }
    chain forward { type filter hook forward priority 0; policy drop; }
}
table ip6 nat {
    chain post { type nat hook postrouting priority 100; }
}
";

/// Counts the resets and the refusals that reach the outside machine.
const COUNT_REFUSALS: &str = "table inet count {
    counter refused {}
    chain in {
        type filter hook prerouting priority -300;
        tcp flags & rst == rst counter name refused
        icmpv6 type destination-unreachable counter name refused
    }
}";

fn load_rules(ns: &Namespace, rules: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, rules.as_bytes()).unwrap();
    ns.ok(&format!("nft -f {}", file.path().display()));
}

#[test]
#[ignore = "needs root"]
fn the_host_keeps_its_own_ipv6() {
    let mut host = prepared();
    load_rules(&host.ns, RULES);
    load_rules(&host.outside, COUNT_REFUSALS);
    let before = Inventory::of_namespace(&host.ns);
    let servers =
        (TcpServer::start(&host.ns, (ANY, 7100)), UdpServer::start(&host.ns, (ANY, 7101)));
    let _outside = TcpServer::start(&host.outside, (ANY, 7000));
    // They began before the daemon came, and outlive it.
    let mut incoming = TcpClient::connect(&host.outside, (HOST, 7100));
    let mut outgoing = TcpClient::connect(&host.ns, (FAR, 7000));

    host.launch();
    host.network("app", "--ipv6");
    let web = host.sandbox("web", "--network app -p 8080:80");
    let _web = TcpServer::start(&web.ns, (ANY, 80));
    for round in 0..5 {
        TcpClient::connect(&web.ns, (FAR, 7000)).echo("out");
        TcpClient::connect(&host.outside, (HOST, 8080)).echo("in");
        let mut service = TcpClient::connect(&host.outside, (HOST, 7100));
        service.echo("the host's own");
        assert_eq!(service.seen_as.ip(), IpAddr::from(ROUTER));
        let mut own = TcpClient::connect(&host.ns, (FAR, 7000));
        own.echo("the host's own");
        assert_eq!(own.seen_as.ip(), IpAddr::from(HOST));
        assert!(udp_ask(&host.outside, (HOST, 7101)).is_some(), "round {round}");
        for (from, to, ttl) in [(&host.outside, HOST, 64), (&host.ns, FAR, 64), (&web.ns, FAR, 63)]
        {
            assert_ping(from, to, ttl);
        }
        incoming.echo("still");
        outgoing.echo("still");
        // The host finds its neighbors, and they find it.
        host.ns.run(&format!("ip -6 neigh flush dev {WIRE}"));
        host.outside.run(&format!("ip -6 neigh flush dev {WIRE}"));
    }
    // Closing is part of it: the host's stack must not answer the last segments either.
    let shown = host.outside.ok("nft list counter inet count refused");
    assert!(shown.contains("packets 0 "), "the host refused: {shown}");
    assert_eq!(Inventory::of_namespace(&host.ns).part("nft"), before.part("nft"));
    assert_eq!(filters(&host.ns).matches("vswitchd-steer").count(), 1);

    host.stop(Signal::SIGTERM);
    incoming.echo("after");
    outgoing.echo("after");
    host.purge_offline();
    drop((incoming, outgoing, servers));
    Inventory::of_namespace(&host.ns).assert_same(&before, "a daemon on a shared uplink");
}

#[test]
#[ignore = "needs root"]
fn what_routers_say_reaches_sandbox_and_host() {
    const NARROW: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);
    let host = started();
    let a = host.sandbox("a", "--network app");
    let narrow = Namespace::create(&host.name("narrow"));
    let far = narrow.handle();
    host.outside.ip(&format!(
        "link add far0 mtu 1300 type veth peer name far1 mtu 1300 netns {}",
        far.name()
    ));
    host.outside.enter(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    });
    far.enable_ipv6();
    host.outside.ip("-6 address add 2001:db8:2::1/64 dev far0 nodad");
    far.ip(&format!("-6 address add {NARROW}/64 dev far1 nodad"));
    host.outside.ip("link set far0 up");
    far.ip("link set far1 up");
    far.ip("-6 route add default via 2001:db8:2::1");
    eventually(PATIENCE, "the narrow link carries packets", || {
        host.outside.run(&format!("ping -n -c 1 -W 1 {NARROW}")).code == 0
    });
    let _server = TcpServer::start(&far, (ANY, 7000));
    // The host first: it hears what is said about echo requests of others too, and learns from it.
    for ns in [&host.ns, &a.ns] {
        let says = |what: &str, line: &str| {
            let said = ns.run(&format!("ping -n -c 1 -W 2 {line}")).stdout;
            assert!(said.contains(what), "{}: {line}: {said}", ns.name());
        };
        says("Packet too big: mtu=1300", &format!("-M do -s 1400 {NARROW}"));
        says("Time exceeded: Hop limit", &format!("-t {} {NARROW}", 1 + u8::from(ns == &a.ns)));
        says("Destination unreachable: No route", "2001:db8:3::1");
        // Segments that are too long for the way are sent again in shorter ones.
        ns.ip("-6 route flush cache");
        let mut client = TcpClient::connect(ns, (NARROW, 7000));
        client.echo(&"long ".repeat(4000));
        let closed = ns.enter(|| {
            let socket = UdpSocket::bind((ANY, 0)).unwrap();
            socket.connect((NARROW, 7999)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send(b"x").unwrap();
            uninterrupted(|| socket.recv(&mut [0; 8])).unwrap_err().kind()
        });
        assert_eq!(closed, ErrorKind::ConnectionRefused, "{}", ns.name());
    }
}

#[test]
#[ignore = "needs root"]
fn connections_outlive_a_kill() {
    let mut host = started();
    let web = host.sandbox("web", "--network app -p 8080:80");
    let _web = TcpServer::start(&web.ns, (ANY, 80));
    let _outside = TcpServer::start(&host.outside, (ANY, 7000));
    let mut out = TcpClient::connect(&web.ns, (FAR, 7000));
    let mut inward = TcpClient::connect(&host.outside, (HOST, 8080));
    out.echo("before");
    inward.echo("before");
    host.stop(Signal::SIGKILL);
    // The steering is there still: the host does not answer what is not its own.
    inward.send("meanwhile").unwrap();
    out.send("meanwhile").unwrap();
    host.launch();
    for connection in [&mut out, &mut inward] {
        assert_eq!(connection.receive("meanwhile".len(), 3 * PATIENCE).unwrap(), "meanwhile");
        connection.echo("after");
    }
    assert_eq!(seen_from(&web), Some(HOST.into()));
    assert_ping(&web.ns, FAR, 63);
}

/// A connection that is never silent; it ends with its value.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(TcpClient, u32)>>,
}

impl Busy {
    fn start(mut client: TcpClient) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut echoes = 0;
            while !told.load(Ordering::Relaxed) {
                client.echo("busy");
                echoes += 1;
            }
            (client, echoes)
        });
        Self { stop, thread: Some(thread) }
    }

    /// The connection, which is there still, and how often it was answered.
    fn went_on(mut self) -> (TcpClient, u32) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("asked once");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Whatever becomes of other addresses, not one frame for those that stay is the host's: it would be answered with
/// a reset.
#[test]
#[ignore = "needs root"]
fn connections_are_not_disturbed_by_addresses_that_come_go_and_change_places() {
    let host = started();
    load_rules(&host.outside, COUNT_REFUSALS);
    let web = host.sandbox("web", "--network app -p 8080:80");
    let _web = TcpServer::start(&web.ns, (ANY, 80));
    let _outside = TcpServer::start(&host.outside, (ANY, 7000));
    let out: [IpAddr; 2] = [GATEWAY.into(), FAR.into()];
    let inward: [IpAddr; 2] = [HOST_IP.into(), HOST.into()];
    let out = out.map(|to| TcpClient::connect(&web.ns, (to, 7000)));
    let inward = inward.map(|to| TcpClient::connect(&host.outside, (to, 8080)));
    let busy: Vec<Busy> = out.into_iter().chain(inward).map(Busy::start).collect();
    let shows = |what: &str, is_so: &dyn Fn(&[String]) -> bool| {
        eventually(2 * PATIENCE, what, || {
            let shown = rows(&host.json(["uplink", "ls"]))[0]["addresses"].clone();
            let addresses: Vec<String> = serde_json::from_value(shown).unwrap();
            is_so(&addresses)
        });
    };
    let first6 = |addresses: &[String]| addresses.iter().find(|it| it.contains(':')).cloned();
    for round in 1..=3 {
        let new = [format!("192.0.2.3{round}/24"), format!("2001:db8::3{round}/64")];
        let [new4, new6] = &new;
        // All of IPv6 is one place later, by another of IPv4.
        host.ns.ip(&format!("address add {new4} dev {WIRE}"));
        shows("another of IPv4", &|now| now.contains(new4));
        host.ns.ip(&format!("-6 address add {new6} dev {WIRE} nodad"));
        shows("another of IPv6", &|now| now.contains(new6));
        // The last one becomes the first, and the first one again.
        host.ns.ip(&format!("-6 address change {HOST}/64 dev {WIRE} preferred_lft 0"));
        shows("the other order", &|now| first6(now).as_ref() == Some(new6));
        host.ns.ip(&format!(
            "-6 address change {HOST}/64 dev {WIRE} valid_lft forever preferred_lft forever"
        ));
        host.ns.ip(&format!("-6 address change {new6} dev {WIRE} preferred_lft 0"));
        shows("the order as before", &|now| first6(now) == Some(format!("{HOST}/64")));
        host.ns.ip(&format!("-6 address del {new6} dev {WIRE}"));
        host.ns.ip(&format!("address del {new4} dev {WIRE}"));
        shows("they are gone", &|now| !now.contains(new4) && !now.contains(new6));
    }
    // While they are there still: closing is no part of it.
    let lasted: Vec<(TcpClient, u32)> = busy.into_iter().map(Busy::went_on).collect();
    let shown = host.outside.ok("nft list counter inet count refused");
    assert!(shown.contains("packets 0 "), "the host refused: {shown}");
    let echoes: Vec<u32> = lasted.iter().map(|(_, echoes)| *echoes).collect();
    println!("echoes of each connection: {echoes:?}");
    assert!(echoes.iter().all(|echoes| *echoes > 100), "too idle to show anything: {echoes:?}");
    // What comes is served there.
    host.ns.ip(&format!("-6 address add 2001:db8::40/64 dev {WIRE} nodad"));
    host.ns.ip(&format!("address add 192.0.2.40/24 dev {WIRE}"));
    for new in ["192.0.2.40", "2001:db8::40"] {
        let new: IpAddr = new.parse().unwrap();
        eventually(2 * PATIENCE, "the published port at a new address", || {
            TcpClient::try_connect(&host.outside, (new, 8080)).is_ok()
        });
    }
}

#[test]
#[ignore = "needs root"]
fn addresses_and_routes_of_the_host_are_followed() {
    let host = started();
    let web = host.sandbox("web", "--network app -p 8080:80");
    let _web = TcpServer::start(&web.ns, (ANY, 80));
    let _outside = TcpServer::start(&host.outside, (ANY, 7000));
    let mut old = TcpClient::connect(&web.ns, (FAR, 7000));
    let answers = |to: &str| {
        let to: Ipv6Addr = to.parse().unwrap();
        TcpClient::try_connect(&host.outside, (to, 8080)).is_ok()
    };
    // One that is not to be spoken from is spoken to.
    host.ns.ip(&format!("-6 address add 2001:db8::3/64 dev {WIRE} nodad preferred_lft 0"));
    eventually(2 * PATIENCE, "the published port at the new address", || answers("2001:db8::3"));
    assert_eq!(seen_from(&web), Some(HOST.into()));
    // Another takes over; what runs goes on by the first one.
    host.ns.ip(&format!("-6 address add 2001:db8::4/64 dev {WIRE} nodad"));
    host.ns.ip(&format!("-6 address change {HOST}/64 dev {WIRE} preferred_lft 0"));
    let new: IpAddr = "2001:db8::4".parse().unwrap();
    eventually(2 * PATIENCE, "the address that lasts", || seen_from(&web) == Some(new));
    old.echo("still");
    assert!(answers("2001:db8::2") && answers("2001:db8::4"));
    // One that goes takes what used it along, and nothing else.
    host.ns.ip(&format!("-6 address del {HOST}/64 dev {WIRE}"));
    eventually(2 * PATIENCE, "the published port left the old address", || {
        !rows(&host.json(["uplink", "ls"]))[0]["addresses"].to_string().contains("2001:db8::2/")
    });
    assert_eq!(seen_from(&web), Some(new));
    assert!(answers("2001:db8::4"));

    let shows = |gateway: serde_json::Value| {
        eventually(2 * PATIENCE, "the way out of the host", || {
            rows(&host.json(["uplink", "ls"]))[0]["gateway6"] == gateway
        });
    };
    host.ns.ip("-6 route del default");
    shows(json!(null));
    assert_eq!(seen_from(&web), None);
    host.ns.ip(&format!("-6 route add default via {ROUTER}"));
    shows(json!(ROUTER));
    assert_eq!(seen_from(&web), Some(new));
}
