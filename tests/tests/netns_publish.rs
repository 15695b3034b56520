//! Published ports beside the host's own sockets: what they take, keep off, and leave alone.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::host::namespace::Namespace;
use tests::host::traffic::{PATIENCE, TcpClient, TcpServer, UdpServer, udp_ask};
use tests::host::{GATEWAY, HOST_IP, Host, Uplink, WIRE, eventually, rows};

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const NET_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 91, 1, 1);

/// A second interface of the host, which is no uplink.
const LAN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

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
fn live_connection(host: &Host, port: u16) -> (TcpStream, TcpStream) {
    let listener = host.ns.enter(|| TcpListener::bind((ANY, port)).unwrap());
    let client = host
        .outside
        .enter(|| TcpStream::connect_timeout(&(HOST_IP, port).into(), PATIENCE).unwrap());
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

#[test]
#[ignore = "needs root"]
fn a_connection_of_the_host_keeps_its_port() {
    let host = Host::start(Uplink::Shared);
    let web = host.sandbox("web", "");
    let mut live = live_connection(&host, 30_001);
    host.refused(
        4,
        &["port 30001/tcp is in use by a connection of the host"],
        ["port", "publish", &web.name, "30001:80"],
    );
    host.refused(
        4,
        &["port 30001/tcp is in use by a connection of the host"],
        ["port", "publish", &web.name, "29001-31000:29001-31000"],
    );
    talk(&mut live);
    assert_eq!(rows(&host.json(["port", "ls"])).len(), 0);
    // Another protocol, another address, one of a range: not that port.
    host.ok(["port", "publish", &web.name, "30001:80/udp", "127.0.0.1:30001:80"]);
    host.ok(["port", "unpublish", &web.name, "127.0.0.1:30001:80"]);
    host.ok(["port", "publish", &web.name, "30001-30002:80"]);
    let ports = rows(&host.json(["port", "ls"]));
    assert!(ports.iter().any(|port| port["host_port"] == 30_002), "{ports:?}");
    talk(&mut live);
    // Closed by the host: its socket is in TIME_WAIT, and nobody's.
    let (client, server) = live;
    drop(server);
    drop(client);
    host.ok(["port", "publish", &web.name, "30001:81"]);
    let _server = TcpServer::start(&web.ns, (ANY, 81));
    TcpClient::connect(&host.outside, (HOST_IP, 30_001)).echo("in");
}

#[test]
#[ignore = "needs root"]
fn the_daemons_own_connections_do_not_keep_a_port() {
    let mut host = Host::prepare(Uplink::Shared);
    host.launch();
    host.network("one", "--subnet 10.91.1.0/24");
    host.network("two", "--subnet 10.91.2.0/24");
    let web = host.sandbox("web", "--network one --network two -p 8080:80");
    let _server = TcpServer::start(&web.ns, (ANY, 80));
    let mut from_host = TcpClient::connect(&host.ns, (HOST_IP, 8080));
    from_host.echo("by the proxy");
    // The port leads elsewhere now.
    host.ok(["network", "disconnect", "one", &web.name]);
    assert_eq!(warnings(&host), Vec::<String>::new());
    let mut from_host = TcpClient::connect(&host.ns, (HOST_IP, 8080));
    from_host.echo("by the proxy");
    host.stop(Signal::SIGKILL);
    host.launch();
    assert_eq!(warnings(&host), Vec::<String>::new());
    TcpClient::connect(&host.ns, (HOST_IP, 8080)).echo("by the proxy");
}

/// Answers go back the way the client came, whichever network the sandbox's default route is in.
#[test]
#[ignore = "needs root"]
fn a_sandbox_of_two_networks_serves_a_client_outside() {
    let host = Host::start(Uplink::Shared);
    host.network("one", "--subnet 10.91.1.0/24");
    host.network("two", "--subnet 10.91.2.0/24");
    let web = host.sandbox("web", "--network one --network two -p 8080:80 -p 5353:53/udp");
    let _servers = (TcpServer::start(&web.ns, (ANY, 80)), UdpServer::start(&web.ns, (ANY, 53)));
    let mut client = TcpClient::connect(&host.outside, (HOST_IP, 8080));
    assert_eq!(client.seen_as.ip(), GATEWAY);
    client.echo("whichever way");
    assert_eq!(udp_ask(&host.outside, (HOST_IP, 5353)).map(|seen| seen.ip()), Some(GATEWAY.into()));
    // The kernel there checks that packets come from where it would send to, as strictly as it can.
    web.ns.enter(|| fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap());
    // The network that serves goes; the other one serves on.
    for (gone, left) in [("one", "10.91.2."), ("two", "10.91.1.")] {
        let before = TcpClient::connect(&host.outside, (HOST_IP, 8080));
        host.ok(["network", "disconnect", gone, &web.name]);
        drop(before);
        let mut after = None;
        eventually(SEEN, "the other network serves", || {
            after = TcpClient::try_connect(&host.outside, (HOST_IP, 8080)).ok();
            after.is_some()
        });
        let shown = host.json(["conntrack", "list", "--state", "established"]);
        assert!(shown.to_string().contains(left), "{shown}");
        host.ok(["network", "connect", gone, &web.name]);
    }
}

#[test]
#[ignore = "needs root"]
fn a_port_that_was_lost_is_warned_of_until_it_is_back() {
    let mut host = Host::prepare(Uplink::Shared);
    host.launch();
    host.sandbox("web", "-p 8080:80 -p 8081:81");
    host.stop(Signal::SIGTERM);
    let squatter = host.ns.enter(|| TcpListener::bind((ANY, 8080)).unwrap());
    let live = live_connection(&host, 8081);
    host.launch();
    let shown = warnings(&host);
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert!(warned(&host, "port 8080/tcp is in use on the host by another program"), "{shown:?}");
    assert!(warned(&host, "port 8081/tcp is in use by a connection of the host"), "{shown:?}");
    drop((squatter, live));
    eventually(SEEN, "nothing to warn of", || warnings(&host).is_empty());
    let taken = host.ns.enter(|| TcpListener::bind((ANY, 8080)).unwrap_err());
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
}

#[test]
#[ignore = "needs root"]
fn a_long_range_is_kept_from_the_hosts_connections() {
    let mut host = Host::prepare(Uplink::Shared);
    let _outside = TcpServer::start(&host.outside, (ANY, 7000));
    // A connection that has ended keeps its port from being bound for a minute.
    set_local_ports(&host.ns, "20800 20800");
    drop(TcpClient::connect(&host.ns, (GATEWAY, 7000)));
    set_local_ports(&host.ns, "20000 21020");
    host.launch();
    let web = host.sandbox("web", "-p 20000-20999:20000-20999 -p 20000-20999:20000-20999/udp");
    let _server = TcpServer::start(&web.ns, (ANY, 20_500));
    let mut clients: Vec<TcpClient> =
        (0..10).map(|_| TcpClient::connect(&host.ns, (GATEWAY, 7000))).collect();
    for client in &mut clients {
        assert!(client.local().port() > 20_999, "{}", client.local());
        client.echo("the host's own");
    }
    let mut published = TcpClient::connect(&host.outside, (HOST_IP, 20_500));
    published.echo("in");
    assert_eq!(published.seen_as.ip(), GATEWAY);
    let taken = host.ns.enter(|| TcpListener::bind((HOST_IP, 20_700)).unwrap_err());
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    // Nobody serves them to the host itself.
    let error = TcpClient::try_connect(&host.ns, (HOST_IP, 20_500)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

    host.ok(["port", "unpublish", &web.name, "20000-20999:20000-20999"]);
    host.ns.enter(|| TcpListener::bind((HOST_IP, 20_700)).unwrap());
    assert_eq!(warnings(&host), Vec::<String>::new());
}

#[test]
#[ignore = "needs root"]
fn a_range_too_long_to_hold_is_none_of_the_hosts() {
    let mut host = Host::prepare(Uplink::Shared);
    host.ns.ip("route del default");
    set_local_ports(&host.ns, "20000 21000");
    host.launch();
    let web = host.sandbox("web", "");
    let publish = |range: &str| {
        host.ok(["port", "publish", &web.name, &format!("{range}:{range}")]);
    };
    // Without an uplink nobody's frames are taken.
    publish("2000-50000");
    host.refused(4, &["2000-50000/tcp", "20000-21000"], ["uplink", "add", WIRE]);
    host.ok(["port", "unpublish", &web.name, "2000-50000:2000-50000"]);
    host.ok(["uplink", "add", WIRE]);
    host.refused(
        4,
        &["ports 2000-50000/tcp overlap 20000-21000", "dedicated"],
        ["port", "publish", &web.name, "2000-50000:2000-50000"],
    );
    publish("21001-50000");
    let _server = TcpServer::start(&web.ns, (ANY, 45_000));
    TcpClient::connect(&host.outside, (HOST_IP, 45_000)).echo("in");
}

#[test]
#[ignore = "needs root"]
fn only_the_host_and_containers_are_served_beside_the_uplink() {
    let mut host = Host::prepare(Uplink::Shared);
    host.ns.ip("route del default");
    let peer = host.outside.name().to_owned();
    host.ns.ip(&format!("link add lan0 type veth peer name lan0 netns {peer}"));
    host.ns.ip(&format!("address add {LAN}/24 dev lan0"));
    host.ns.ip("link set lan0 up");
    host.outside.ip("address add 198.51.100.2/24 dev lan0");
    host.outside.ip("link set lan0 up");
    host.launch();
    host.ok(["uplink", "add", WIRE]);
    host.network("app", "--subnet 10.91.1.0/24");
    let web = host.sandbox("web", "--network app -p 8080:80 -p 5353:53/udp -p 127.0.0.1:8081:80");
    let client = host.sandbox("client", "--network app");
    let _tcp = TcpServer::start(&web.ns, (ANY, 80));
    let _udp = UdpServer::start(&web.ns, (ANY, 53));

    let mut by_the_uplink = TcpClient::connect(&host.outside, (HOST_IP, 8080));
    assert_eq!(by_the_uplink.seen_as.ip(), GATEWAY);
    by_the_uplink.echo("in");
    for address in [Ipv4Addr::LOCALHOST, HOST_IP, LAN, NET_GATEWAY] {
        TcpClient::connect(&host.ns, (address, 8080)).echo("the host itself");
        assert!(udp_ask(&host.ns, (address, 5353)).is_some(), "the host asks {address}");
    }
    TcpClient::connect(&host.ns, (Ipv4Addr::LOCALHOST, 8081)).echo("the host itself");
    for address in [HOST_IP, LAN, NET_GATEWAY] {
        TcpClient::connect(&client.ns, (address, 8080)).echo("a container");
        assert!(udp_ask(&client.ns, (address, 5353)).is_some(), "a container asks {address}");
    }
    let refused = |address| {
        let error = TcpClient::try_connect(&host.outside, (address, 8080)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{address}: {error}");
        assert_eq!(udp_ask(&host.outside, (address, 5353)), None, "{address}");
    };
    refused(LAN);
    drop(by_the_uplink);
    host.ok(["uplink", "rm", WIRE]);
    refused(HOST_IP);
    TcpClient::connect(&host.ns, (HOST_IP, 8080)).echo("the host itself");
    // And the ports are ours all the same.
    for port in [8080, 8081] {
        let taken = host.ns.enter(|| TcpListener::bind((ANY, port)).unwrap_err());
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    }
}

#[test]
#[ignore = "needs root"]
fn nat_without_ports_is_said_while_it_lasts() {
    const WORDS: &str = "no port is left for NAT";
    let host = Host::start(Uplink::Shared);
    let a = host.sandbox("a", "");
    let _outside = TcpServer::start(&host.outside, (ANY, 7000));
    TcpClient::connect(&a.ns, (GATEWAY, 7000)).echo("out");
    assert_eq!(warnings(&host), Vec::<String>::new());
    let before = host.ns.ok("cat /proc/sys/net/ipv4/ip_local_port_range");
    set_local_ports(&host.ns, "1024 65535");
    eventually(SEEN, "a warning", || warned(&host, WORDS));
    assert!(TcpClient::try_connect(&a.ns, (GATEWAY, 7000)).is_err());
    // The next look says nothing new.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(host.log_tail().matches(WORDS).count(), 1, "{}", host.log_tail());
    set_local_ports(&host.ns, before.trim());
    eventually(SEEN, "no warning", || warnings(&host).is_empty());
    TcpClient::connect(&a.ns, (GATEWAY, 7000)).echo("out");
}

#[test]
#[ignore = "needs root"]
fn a_declared_uplink_may_come_later() {
    let mut host = Host::prepare(Uplink::Shared);
    host.ns.ip("route del default");
    let uplink = "[[uplink]]\ninterface = \"lan0\"\nmode = \"shared\"\n";
    host.configure(uplink);
    host.launch();
    assert!(warned(&host, "lan0"), "{:?}", warnings(&host));
    assert_eq!(rows(&host.json(["uplink", "ls"])).len(), 0);
    let peer = host.outside.name().to_owned();
    host.ns.ip(&format!("link add lan0 type veth peer name lan0 netns {peer}"));
    host.ns.ip(&format!("address add {LAN}/24 dev lan0"));
    host.ns.ip("link set lan0 up");
    let steered = || host.ns.ok("tc filter show dev lan0 ingress").contains("bpf");
    eventually(SEEN, "the uplink is there", steered);
    assert_eq!(rows(&host.json(["uplink", "ls"])).len(), 1);
    eventually(SEEN, "nothing to warn of", || warnings(&host).is_empty());
    // It may go again.
    host.ns.ip("link del lan0");
    eventually(SEEN, "a warning", || warned(&host, "lan0"));
    host.ok(["uplink", "rm", "lan0"]);
    assert_eq!(warnings(&host), Vec::<String>::new());
}

#[test]
#[ignore = "needs root"]
fn the_first_free_port_of_a_range_is_chosen() {
    let host = Host::start(Uplink::Shared);
    let _busy = host.ns.enter(|| TcpListener::bind((ANY, 8081)).unwrap());
    let port_of = |name: &str| {
        let sandbox = host.sandbox(name, "-p 8080-8083:80");
        let ports = rows(&host.json(["port", "ls"]));
        let own = ports.iter().find(|port| port["sandbox"] == sandbox.name.as_str()).unwrap();
        assert_eq!(own["host_port"], own["host_port_end"]);
        assert_eq!((&own["port"], &own["port_end"]), (&80.into(), &80.into()));
        let _server = TcpServer::start(&sandbox.ns, (ANY, 80));
        let port = u16::try_from(own["host_port"].as_u64().unwrap()).unwrap();
        TcpClient::connect(&host.outside, (HOST_IP, port)).echo("in");
        port
    };
    assert_eq!(port_of("a"), 8080);
    assert_eq!(port_of("b"), 8082);
    // What another mapping of the same request names is left to it.
    host.sandbox("c", "-p 8080-8084:81 -p 8083:80");
    let ports = rows(&host.json(["port", "ls"]));
    for (host_port, port) in [(8083, 80), (8084, 81)] {
        let there = |row: &Value| row["host_port"] == host_port && row["port"] == port;
        assert!(ports.iter().any(there), "{host_port} to {port}: {ports:?}");
    }
    let name = host.name("d");
    host.refused(4, &["8080-8083/tcp", "free"], ["sandbox", "create", &name, "-p", "8080-8083:80"]);
    host.refused(
        4,
        &["port 8082/tcp (of 8082-8090) is published"],
        ["sandbox", "create", &name, "-p", "8082-8090:1-9"],
    );
    host.refused(
        4,
        &["port 8080/tcp (of 8070-8090) is published"],
        ["sandbox", "create", &name, "-p", "8070-8090:70-90"],
    );
    // Taken back by the name it was asked for with.
    host.ok(["port", "unpublish", &host.name("b"), "8080-8083:80"]);
    assert_eq!(rows(&host.json(["port", "ls"])).len(), 3);
}
