//! Published ports beside the host's own sockets: what they take, keep off, and leave alone, in both families.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::host::family::ANY;
use tests::host::namespace::Namespace;
use tests::host::traffic::{PATIENCE, TcpClient, TcpServer, UdpServer, udp_ask};
use tests::host::{APP, BOTH, Family, Host, Uplink, WIRE, eventually, rows};

/// A second interface of the host, which is no uplink.
const LAN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const LAN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 1);

/// How long the daemon may take to see what no message tells.
const SEEN: Duration = Duration::from_secs(10);

fn set_local_ports(ns: &Namespace, range: &str) {
    ns.enter(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap());
}

fn warnings(host: &Host) -> Vec<String> {
    let shown = host.json(["status"]);
    rows(&shown["warnings"]).iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

fn warned(host: &Host, word: &str) -> bool {
    warnings(host).iter().any(|line| line.contains(word))
}

/// A connection to the host at `port`, at which it does not listen any more: another socket could
/// be bound beside it.
fn live_connection(host: &Host, family: Family, port: u16) -> (TcpStream, TcpStream) {
    let listener = host.ns.enter(|| TcpListener::bind((family.any(), port)).unwrap());
    let client = host
        .outside
        .enter(|| TcpStream::connect_timeout(&(family.host(), port).into(), PATIENCE).unwrap());
    let (server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (client, server)
}

fn talk((client, server): &mut (TcpStream, TcpStream)) {
    let mut buffer = [0; 5];
    client.write_all(b"hello").unwrap();
    server.read_exact(&mut buffer).unwrap();
    server.write_all(&buffer).unwrap();
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"hello");
}

/// Networks with both families, of which no address begins as one of the other's does.
fn one_and_two(host: &Host) {
    for (name, number) in [("one", 1), ("two", 2)] {
        host.network(name, &format!("--subnet 10.91.{number}.0/24 --subnet fd00:91:{number}::/64"));
    }
}

/// A second interface, with both families and the outside machine at its other end.
fn with_lan(host: &Host) {
    let peer = host.outside.name();
    host.ns.ip(&format!("link add lan0 type veth peer name lan0 netns {peer}"));
    host.ns.ip(&format!("address add {LAN}/24 dev lan0"));
    host.ns.ip(&format!("-6 address add {LAN6}/64 dev lan0 nodad"));
    host.ns.ip("link set lan0 up");
}

fn without_default_route(host: &Host) {
    host.ns.ip("route del default");
    host.ns.ip("-6 route del default");
}

fn refused_kind(from: &Namespace, to: IpAddr, port: u16) -> ErrorKind {
    TcpClient::try_connect(from, (to, port)).unwrap_err().kind()
}

#[test]
#[ignore = "needs root"]
fn a_connection_of_the_host_keeps_its_port() {
    let host = Host::start_dual(Uplink::Shared);
    let web = host.sandbox("web", "--network app");
    let _server = TcpServer::start(&web.ns, (ANY, 81));
    // A range of its own for each, as the last one's connections are not gone at once.
    for (family, port) in BOTH.into_iter().zip([30_001, 30_101]) {
        let mut live = live_connection(&host, family, port);
        let kept = format!("port {port}/tcp is in use by a connection of the host");
        let range = format!("{}-{}", port - 1000, port + 999);
        for asked in [format!("{port}:80"), format!("{range}:{range}")] {
            host.refused(4, &[&kept], ["port", "publish", &web.name, &asked]);
        }
        talk(&mut live);
        assert_eq!(rows(&host.json(["port", "ls"])).len(), 0);
        // Another protocol, another address, the other family, one of a range: not that port.
        let local = family.pick(["127.0.0.1", "[::1]"]);
        let other = family.pick(["[::]", "0.0.0.0"]);
        for free in [
            format!("{port}:80/udp"),
            format!("{local}:{port}:80"),
            format!("{other}:{port}:80"),
            format!("{port}-{}:80", port + 1),
        ] {
            host.ok(["port", "publish", &web.name, &free]);
            if free.contains('-') {
                let ports = rows(&host.json(["port", "ls"]));
                assert!(ports.iter().all(|row| row["host_port"] == port + 1), "{ports:?}");
            }
            host.ok(["port", "unpublish", &web.name, &free]);
        }
        talk(&mut live);
        // Closed by the host: its socket is in TIME_WAIT, and nobody's.
        let (client, server) = live;
        drop(server);
        drop(client);
        let free = format!("{port}:81");
        host.ok(["port", "publish", &web.name, &free]);
        for family in BOTH {
            TcpClient::connect(&host.outside, (family.host(), port)).echo("in");
        }
        host.ok(["port", "unpublish", &web.name, &free]);
    }
}

/// Rows: netavark `port forwarding, two networks and reverse path`; moby `TestRestartUserlandProxyUnder2MSL`.
#[test]
#[ignore = "needs root"]
fn the_daemons_own_connections_do_not_keep_a_port() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    host.launch();
    one_and_two(&host);
    let web = host.sandbox("web", "--network one --network two -p 8080:80");
    let _server = TcpServer::start(&web.ns, (ANY, 80));
    let by_the_proxy = |host: &Host| {
        BOTH.map(|family| {
            let mut client = TcpClient::connect(&host.ns, (family.host(), 8080));
            client.echo("by the proxy");
            client
        })
    };
    let _first = by_the_proxy(&host);
    // The port leads elsewhere now.
    host.ok(["network", "disconnect", "one", &web.name]);
    assert_eq!(warnings(&host), Vec::<String>::new());
    let _second = by_the_proxy(&host);
    host.stop(Signal::SIGKILL);
    host.launch();
    assert_eq!(warnings(&host), Vec::<String>::new());
    let _third = by_the_proxy(&host);
}

/// Answers go back the way the client came, whichever network the sandbox's default routes are in.
#[test]
#[ignore = "needs root"]
fn a_sandbox_of_two_networks_serves_a_client_outside() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    host.launch();
    one_and_two(&host);
    let web = host.sandbox("web", "--network one --network two -p 8080:80 -p 5353:53/udp");
    let _servers = (TcpServer::start(&web.ns, (ANY, 80)), UdpServer::start(&web.ns, (ANY, 53)));
    for family in BOTH {
        let mut client = TcpClient::connect(&host.outside, (family.host(), 8080));
        assert_eq!(client.seen_as.ip(), family.outside());
        client.echo("whichever way");
        let seen = udp_ask(&host.outside, (family.host(), 5353)).map(|seen| seen.ip());
        assert_eq!(seen, Some(family.outside()));
    }
    // The kernel there checks that packets come from where it would send to, as strictly as it can; of IPv6 it
    // never does.
    web.ns.enter(|| fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap());
    // The network that serves goes; the other one serves on.
    for (gone, left) in [("one", 2), ("two", 1)] {
        let to_it = |family: Family| TcpClient::try_connect(&host.outside, (family.host(), 8080));
        let before = BOTH.map(|family| to_it(family).unwrap());
        host.ok(["network", "disconnect", gone, &web.name]);
        drop(before);
        for (family, left) in
            BOTH.into_iter().zip([format!("10.91.{left}."), format!("fd00:91:{left}::")])
        {
            let mut after = None;
            eventually(SEEN, "the other network serves", || {
                after = to_it(family).ok();
                after.is_some()
            });
            let shown = host.json(["conntrack", "list", "--state", "established"]);
            assert!(shown.to_string().contains(&left), "{left}: {shown}");
        }
        host.ok(["network", "connect", gone, &web.name]);
    }
}

#[test]
#[ignore = "needs root"]
fn a_port_that_was_lost_is_warned_of_until_it_is_back() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    host.launch();
    host.network("app", APP);
    host.sandbox("web", "--network app -p 8080:80 -p 8081:81");
    for family in BOTH {
        host.stop(Signal::SIGTERM);
        let squatter = host.ns.enter(|| TcpListener::bind((family.host(), 8080)).unwrap());
        let live = live_connection(&host, family, 8081);
        host.launch();
        let shown = warnings(&host);
        assert_eq!(shown.len(), 2, "{shown:?}");
        for (port, by) in
            [(8080, "on the host by another program"), (8081, "by a connection of the host")]
        {
            assert!(warned(&host, &format!("port {port}/tcp is in use {by}")), "{shown:?}");
        }
        drop((squatter, live));
        eventually(SEEN, "nothing to warn of", || warnings(&host).is_empty());
        let taken = host.ns.enter(|| TcpListener::bind((family.any(), 8080)).unwrap_err());
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    }
}

#[test]
#[ignore = "needs root"]
fn a_long_range_is_kept_from_the_hosts_connections() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    let _outside = TcpServer::start(&host.outside, (ANY, 7000));
    // A connection that has ended keeps its port from being bound for a minute.
    set_local_ports(&host.ns, "20800 20800");
    for family in BOTH {
        drop(TcpClient::connect(&host.ns, (family.outside(), 7000)));
    }
    set_local_ports(&host.ns, "20000 21020");
    host.launch();
    host.network("app", APP);
    let web = host
        .sandbox("web", "--network app -p 20000-20999:20000-20999 -p 20000-20999:20000-20999/udp");
    let _server = TcpServer::start(&web.ns, (ANY, 20_500));
    for family in BOTH {
        let mut clients: Vec<TcpClient> =
            (0..10).map(|_| TcpClient::connect(&host.ns, (family.outside(), 7000))).collect();
        for client in &mut clients {
            assert!(client.local().port() > 20_999, "{}", client.local());
            client.echo("the host's own");
        }
        let mut published = TcpClient::connect(&host.outside, (family.host(), 20_500));
        published.echo("in");
        assert_eq!(published.seen_as.ip(), family.outside());
        let taken = host.ns.enter(|| TcpListener::bind((family.host(), 20_700)).unwrap_err());
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        // Nobody serves them to the host itself.
        let kind = refused_kind(&host.ns, family.host(), 20_500);
        assert_eq!(kind, ErrorKind::ConnectionRefused, "{family}");
    }

    host.ok(["port", "unpublish", &web.name, "20000-20999:20000-20999"]);
    for family in BOTH {
        host.ns.enter(|| TcpListener::bind((family.host(), 20_700)).unwrap());
    }
    assert_eq!(warnings(&host), Vec::<String>::new());
}

#[test]
#[ignore = "needs root"]
fn a_range_too_long_to_hold_is_none_of_the_hosts() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    without_default_route(&host);
    set_local_ports(&host.ns, "20000 21000");
    host.launch();
    host.network("app", APP);
    let web = host.sandbox("web", "--network app");
    let publish = |range: &str| {
        host.ok(["port", "publish", &web.name, &format!("{range}:{range}")]);
    };
    // Without an uplink nobody's frames are taken.
    publish("2000-50000");
    host.refused(4, &["2000-50000/tcp", "20000-21000"], ["uplink", "add", WIRE]);
    host.ok(["port", "unpublish", &web.name, "2000-50000:2000-50000"]);
    host.ok(["uplink", "add", WIRE]);
    for address in ["", "0.0.0.0:", "[::]:"] {
        host.refused(
            4,
            &["ports 2000-50000/tcp overlap 20000-21000", "dedicated"],
            ["port", "publish", &web.name, &format!("{address}2000-50000:2000-50000")],
        );
    }
    publish("21001-50000");
    let _server = TcpServer::start(&web.ns, (ANY, 45_000));
    for family in BOTH {
        TcpClient::connect(&host.outside, (family.host(), 45_000)).echo("in");
    }
}

#[test]
#[ignore = "needs root"]
fn only_the_host_and_containers_are_served_beside_the_uplink() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    without_default_route(&host);
    with_lan(&host);
    host.outside.ip("address add 198.51.100.2/24 dev lan0");
    host.outside.ip("-6 address add 2001:db8:5::2/64 dev lan0 nodad");
    host.outside.ip("link set lan0 up");
    host.launch();
    host.ok(["uplink", "add", WIRE]);
    host.network("app", APP);
    let ports = "-p 8080:80 -p 5353:53/udp -p 127.0.0.1:8081:80 -p [::1]:8081:80";
    let web = host.sandbox("web", &format!("--network app {ports}"));
    let client = host.sandbox("client", "--network app");
    let _tcp = TcpServer::start(&web.ns, (ANY, 80));
    let _udp = UdpServer::start(&web.ns, (ANY, 53));

    let lan = |family: Family| family.pick([IpAddr::from(LAN), IpAddr::from(LAN6)]);
    let is_refused = |address| {
        let kind = refused_kind(&host.outside, address, 8080);
        assert_eq!(kind, ErrorKind::ConnectionReset, "{address}");
        assert_eq!(udp_ask(&host.outside, (address, 5353)), None, "{address}");
    };
    for family in BOTH {
        let mut by_the_uplink = TcpClient::connect(&host.outside, (family.host(), 8080));
        assert_eq!(by_the_uplink.seen_as.ip(), family.outside());
        by_the_uplink.echo("in");
        for address in [family.localhost(), family.host(), lan(family), family.gateway()] {
            TcpClient::connect(&host.ns, (address, 8080)).echo("the host itself");
            assert!(udp_ask(&host.ns, (address, 5353)).is_some(), "the host asks {address}");
        }
        TcpClient::connect(&host.ns, (family.localhost(), 8081)).echo("the host itself");
        for address in [family.host(), lan(family), family.gateway()] {
            TcpClient::connect(&client.ns, (address, 8080)).echo("a container");
            assert!(udp_ask(&client.ns, (address, 5353)).is_some(), "a container asks {address}");
        }
        is_refused(lan(family));
    }
    host.ok(["uplink", "rm", WIRE]);
    for family in BOTH {
        is_refused(family.host());
        TcpClient::connect(&host.ns, (family.host(), 8080)).echo("the host itself");
        // And the ports are ours all the same.
        for port in [8080, 8081] {
            let taken = host.ns.enter(|| TcpListener::bind((family.any(), port)).unwrap_err());
            assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn nat_without_ports_is_said_while_it_lasts() {
    const WORDS: &str = "no port is left for NAT";
    let host = Host::start_dual(Uplink::Shared);
    let a = host.sandbox("a", "--network app");
    let _outside = TcpServer::start(&host.outside, (ANY, 7000));
    let out = || {
        for family in BOTH {
            TcpClient::connect(&a.ns, (family.outside(), 7000)).echo("out");
        }
    };
    out();
    assert_eq!(warnings(&host), Vec::<String>::new());
    let before = host.ns.ok("cat /proc/sys/net/ipv4/ip_local_port_range");
    set_local_ports(&host.ns, "1024 65535");
    eventually(SEEN, "a warning", || warned(&host, WORDS));
    for family in BOTH {
        assert!(TcpClient::try_connect(&a.ns, (family.outside(), 7000)).is_err(), "{family}");
    }
    // The next look says nothing new.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(host.log_tail().matches(WORDS).count(), 1, "{}", host.log_tail());
    set_local_ports(&host.ns, before.trim());
    eventually(SEEN, "no warning", || warnings(&host).is_empty());
    out();
}

#[test]
#[ignore = "needs root"]
fn a_declared_uplink_may_come_later() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    without_default_route(&host);
    let uplink = "[[uplink]]\ninterface = \"lan0\"\nmode = \"shared\"\n";
    host.configure(uplink);
    host.launch();
    assert!(warned(&host, "lan0"), "{:?}", warnings(&host));
    assert_eq!(rows(&host.json(["uplink", "ls"])).len(), 0);
    with_lan(&host);
    let steered = || host.ns.ok("tc filter show dev lan0 ingress").contains("bpf");
    eventually(SEEN, "the uplink is there", steered);
    eventually(SEEN, "it has both families", || {
        let uplinks = rows(&host.json(["uplink", "ls"]));
        uplinks.len() == 1
            && uplinks[0]["addresses"]
                == serde_json::json!([format!("{LAN}/24"), format!("{LAN6}/64")])
    });
    eventually(SEEN, "nothing to warn of", || warnings(&host).is_empty());
    // It may go again.
    host.ns.ip("link del lan0");
    eventually(SEEN, "a warning", || warned(&host, "lan0"));
    host.ok(["uplink", "rm", "lan0"]);
    assert_eq!(warnings(&host), Vec::<String>::new());
}

/// A port that only one of the families has in use is free for neither.
#[test]
#[ignore = "needs root"]
fn the_first_free_port_of_a_range_is_chosen() {
    for family in BOTH {
        let host = Host::start_dual(Uplink::Shared);
        let _busy = host.ns.enter(|| TcpListener::bind((family.host(), 8081)).unwrap());
        first_free_ports(&host);
    }
}

fn first_free_ports(host: &Host) {
    let port_of = |name: &str| {
        let sandbox = host.sandbox(name, "--network app -p 8080-8083:80");
        let ports = rows(&host.json(["port", "ls"]));
        let own: Vec<_> = ports.iter().filter(|port| port["sandbox"] == *sandbox.name).collect();
        assert_eq!(own.len(), 2, "one of each family: {ports:?}");
        let port = own[0]["host_port"].clone();
        for own in own {
            assert_eq!((&own["host_port"], &own["host_port_end"]), (&port, &port));
            assert_eq!((&own["port"], &own["port_end"]), (&80.into(), &80.into()));
        }
        let _server = TcpServer::start(&sandbox.ns, (ANY, 80));
        let port = u16::try_from(port.as_u64().unwrap()).unwrap();
        for family in BOTH {
            TcpClient::connect(&host.outside, (family.host(), port)).echo("in");
        }
        port
    };
    assert_eq!(port_of("a"), 8080);
    assert_eq!(port_of("b"), 8082);
    // What another mapping of the same request names is left to it.
    host.sandbox("c", "--network app -p 8080-8084:81 -p 8083:80");
    let ports = rows(&host.json(["port", "ls"]));
    for (host_port, port) in [(8083, 80), (8084, 81)] {
        let there = |row: &&Value| row["host_port"] == host_port && row["port"] == port;
        assert_eq!(ports.iter().filter(there).count(), 2, "{host_port} to {port}: {ports:?}");
    }
    let name = host.name("d");
    for (words, asked) in [
        (&["8080-8083/tcp", "free"][..], "8080-8083:80"),
        (&["port 8082/tcp (of 8082-8090) is published"], "8082-8090:1-9"),
        (&["port 8080/tcp (of 8070-8090) is published"], "8070-8090:70-90"),
    ] {
        host.refused(4, words, ["sandbox", "create", &name, "--network", "app", "-p", asked]);
    }
    // Taken back by the name it was asked for with.
    host.ok(["port", "unpublish", &host.name("b"), "8080-8083:80"]);
    assert_eq!(rows(&host.json(["port", "ls"])).len(), 6);
}
