//! Real traffic of the kernel's stacks through the built daemon: within a network, out, in through
//! published ports, and between host and containers.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use tests::host::namespace::Process;
use tests::host::traffic::{TcpClient, TcpServer, UdpServer, assert_ping, ping, udp_ask};
use tests::host::{GATEWAY, HOST_IP, Host, Uplink, WIRE, eventually, rows};

const NET_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 91, 1, 1);
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// A host with network `app`.
fn host_with_app(uplink: Uplink) -> Host {
    let host = Host::start(uplink);
    host.network("app", "--subnet 10.91.1.0/24 --gateway 10.91.1.1");
    host
}

#[test]
#[ignore = "needs root"]
fn sandboxes_of_a_network_reach_each_other() {
    let host = host_with_app(Uplink::None);
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app --ip 10.91.1.77");
    assert_eq!(b.ip, Ipv4Addr::new(10, 91, 1, 77));
    assert_ping(&a.ns, b.ip, 64);
    assert_ping(&b.ns, a.ip, 64);
    assert_ping(&a.ns, NET_GATEWAY, 64);
    for (client, server) in [(&a, &b), (&b, &a)] {
        let _tcp = TcpServer::start(&server.ns, (ANY, 7000));
        let mut connection = TcpClient::connect(&client.ns, (server.ip, 7000));
        connection.echo("hello");
        assert_eq!(connection.seen_as.ip(), client.ip);
        let _udp = UdpServer::start(&server.ns, (ANY, 7001));
        let seen = udp_ask(&client.ns, (server.ip, 7001)).expect("an answer");
        assert_eq!(seen.ip(), client.ip);
    }
}

#[test]
#[ignore = "needs root"]
fn networks_are_apart() {
    let host = host_with_app(Uplink::None);
    host.network("other", "--subnet 10.91.2.0/24");
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network other");
    assert_eq!(ping(&a.ns, b.ip, 2).received, 0);
    let drops = rows(&host.json(["drops", "--sandbox", &a.name]));
    let counted =
        drops.iter().any(|d| d["reason"] == "inter_network" && d["count"].as_u64() > Some(0));
    assert!(counted, "{drops:?}");
}

/// A server in two networks answers by the one that has the default route, whichever address it
/// was asked at: it must find the gateway there all the same.
#[test]
#[ignore = "needs root"]
fn an_address_of_one_network_does_not_keep_the_gateway_of_another_away() {
    let host = host_with_app(Uplink::None);
    host.network("other", "--subnet 10.91.2.0/24 --gateway 10.91.2.1");
    let both = host.sandbox("both", "--network app --network other");
    // The source guard keeps the packet itself out of the other network.
    let from_app = both.ns.run(&format!("ping -n -c 1 -W 1 -I {} 10.91.2.1", both.ip));
    assert!(from_app.stdout.contains(" 0 received"), "{}", from_app.stdout);
    let known = both.ns.ip("neighbor show to 10.91.2.1 dev eth1");
    assert!(known.contains("lladdr"), "{known:?}");
    let drops = rows(&host.json(["drops", "--sandbox", &both.name]));
    assert!(drops.iter().all(|d| d["reason"] != "spoofed_arp"), "{drops:?}");
}

/// The TTLs and source addresses of the next two echo requests that the outside gets.
fn requests_outside(host: &Host, ping_from: impl FnOnce()) -> String {
    let filter = "icmp[icmptype] == icmp-echo";
    let mut tcpdump = host.outside.command("tcpdump");
    tcpdump
        .args(["-i", WIRE, "-n", "-v", "-l", "-c", "2", "--immediate-mode", filter])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let tcpdump = Process::start(&mut tcpdump);
    // It says on no channel of its own that it listens.
    eventually(Duration::from_secs(10), "tcpdump listens", || {
        !host
            .outside
            .enter(|| std::fs::read_to_string("/proc/thread-self/net/packet"))
            .unwrap()
            .lines()
            .skip(1)
            .collect::<String>()
            .is_empty()
    });
    std::thread::sleep(Duration::from_millis(200));
    ping_from();
    tcpdump.output(Duration::from_secs(10))
}

fn the_way_out(uplink: Uplink) {
    let host = host_with_app(uplink);
    let a = host.sandbox("a", "--network app");
    let seen = requests_outside(&host, || assert_ping(&a.ns, GATEWAY, 63));
    assert_eq!(seen.matches("ttl 63").count(), 2, "{seen}");
    assert_eq!(seen.matches(&format!("{HOST_IP} > {GATEWAY}")).count(), 2, "{seen}");

    let _tcp = TcpServer::start(&host.outside, (ANY, 7000));
    let mut connection = TcpClient::connect(&a.ns, (GATEWAY, 7000));
    connection.echo("hello");
    assert_eq!(connection.seen_as.ip(), HOST_IP);
    let _udp = UdpServer::start(&host.outside, (ANY, 7001));
    let seen = udp_ask(&a.ns, (GATEWAY, 7001)).expect("an answer");
    assert_eq!(seen.ip(), HOST_IP);

    let rules = rows(&host.json(["nat", "rules"]));
    let counted =
        rules.iter().any(|rule| rule["network"] == "app" && rule["packets"].as_u64() > Some(0));
    assert!(counted, "{rules:?}");
}

#[test]
#[ignore = "needs root"]
fn the_way_out_by_a_dedicated_uplink_translates() {
    the_way_out(Uplink::Dedicated);
}

#[test]
#[ignore = "needs root"]
fn the_way_out_by_a_shared_uplink_translates() {
    the_way_out(Uplink::Shared);
}

fn published_ports(uplink: Uplink) {
    let host = host_with_app(uplink);
    let web = host.sandbox("web", "--network app -p 8080:80 -p 5353:53/udp");
    let _tcp = TcpServer::start(&web.ns, (ANY, 80));
    let _udp = UdpServer::start(&web.ns, (ANY, 53));
    let mut connection = TcpClient::connect(&host.outside, (HOST_IP, 8080));
    connection.echo("hello");
    assert_eq!(connection.seen_as.ip(), GATEWAY);
    assert_eq!(connection.seen_as.port(), connection.local().port());
    let seen = udp_ask(&host.outside, (HOST_IP, 5353)).expect("an answer");
    assert_eq!(seen.ip(), GATEWAY);

    let ports = rows(&host.json(["port", "ls"]));
    assert_eq!(ports.len(), 2, "{ports:?}");
    let tcp = ports.iter().find(|port| port["proto"] == "tcp").unwrap();
    assert_eq!(tcp["sandbox"], web.name.as_str());
    for (field, value) in
        [("host_port", 8080), ("host_port_end", 8080), ("port", 80), ("port_end", 80)]
    {
        assert_eq!(tcp[field], value, "{field} of {tcp}");
    }
    // Nothing else of it is reachable.
    assert!(TcpClient::try_connect(&host.outside, (HOST_IP, 80)).is_err());
}

#[test]
#[ignore = "needs root"]
fn a_published_port_of_a_dedicated_uplink_shows_the_client() {
    published_ports(Uplink::Dedicated);
}

#[test]
#[ignore = "needs root"]
fn a_published_port_of_a_shared_uplink_shows_the_client() {
    published_ports(Uplink::Shared);
}

#[test]
#[ignore = "needs root"]
fn a_range_is_one_mapping() {
    let host = host_with_app(Uplink::Shared);
    let web = host.sandbox("web", "--network app -p 9000-9199:7000-7199");
    let ports = rows(&host.json(["port", "ls"]));
    assert_eq!(ports.len(), 1, "{ports:?}");
    for (field, value) in
        [("host_port", 9000), ("host_port_end", 9199), ("port", 7000), ("port_end", 7199)]
    {
        assert_eq!(ports[0][field], value, "{field}");
    }
    for offset in [0, 100, 199] {
        let _server = TcpServer::start(&web.ns, (ANY, 7000 + offset));
        TcpClient::connect(&host.outside, (HOST_IP, 9000 + offset)).echo("hello");
    }
    host.ok(["port", "unpublish", &web.name, "9000-9199:7000-7199"]);
    assert_eq!(rows(&host.json(["port", "ls"])).len(), 0);
}

#[test]
#[ignore = "needs root"]
fn a_free_host_port_is_chosen_and_told() {
    let host = host_with_app(Uplink::Shared);
    let web = host.sandbox("web", "--network app -p 80");
    let ports = rows(&host.json(["port", "ls"]));
    let port = u16::try_from(ports[0]["host_port"].as_u64().unwrap()).unwrap();
    let _server = TcpServer::start(&web.ns, (ANY, 80));
    TcpClient::connect(&host.outside, (HOST_IP, port)).echo("hello");
}

#[test]
#[ignore = "needs root"]
fn published_ports_are_reachable_from_inside() {
    for uplink in [Uplink::Dedicated, Uplink::Shared] {
        let host = host_with_app(uplink);
        host.network("other", "--subnet 10.91.2.0/24");
        let web = host.sandbox("web", "--network app -p 8080:80 -p 5353:53/udp");
        let same = host.sandbox("same", "--network app");
        let other = host.sandbox("other", "--network other");
        let _server = TcpServer::start(&web.ns, (ANY, 80));
        let _udp = UdpServer::start(&web.ns, (ANY, 53));
        // Its own port, a neighbor's, and one of another network.
        for client in [&web, &same, &other] {
            TcpClient::connect(&client.ns, (HOST_IP, 8080)).echo("hello");
            assert!(
                udp_ask(&client.ns, (HOST_IP, 5353)).is_some(),
                "{uplink:?}: {} asks by UDP",
                client.name
            );
        }
    }
}

fn unpublishing(uplink: Uplink) {
    let host = host_with_app(uplink);
    let web = host.sandbox("web", "--network app -p 8080:80 -p 8081:81");
    let _servers = [80, 81].map(|port| TcpServer::start(&web.ns, (ANY, port)));
    let mut ended = TcpClient::connect(&host.outside, (HOST_IP, 8080));
    let mut kept = TcpClient::connect(&host.outside, (HOST_IP, 8081));
    ended.echo("before");
    kept.echo("before");
    host.ok(["port", "unpublish", &web.name, "8080:80"]);
    let left = rows(&host.json(["conntrack", "list", "--proto", "tcp"]));
    let dports: Vec<_> = left.iter().map(|entry| entry["orig"]["dport"].clone()).collect();
    assert_eq!(dports, [8081], "{left:?}");
    assert!(ended.try_echo("after", Duration::from_secs(1)).is_err());
    kept.echo("after");
    assert!(TcpClient::try_connect(&host.outside, (HOST_IP, 8080)).is_err());
    // And back again, without disturbing what runs.
    host.ok(["port", "publish", &web.name, "8080:80"]);
    TcpClient::connect(&host.outside, (HOST_IP, 8080)).echo("again");
    kept.echo("still");
}

#[test]
#[ignore = "needs root"]
fn unpublishing_on_a_dedicated_uplink_ends_connections_at_once() {
    unpublishing(Uplink::Dedicated);
}

#[test]
#[ignore = "needs root"]
fn unpublishing_on_a_shared_uplink_ends_connections_at_once() {
    unpublishing(Uplink::Shared);
}

#[test]
#[ignore = "needs root"]
fn host_and_containers_reach_each_other() {
    let host = host_with_app(Uplink::None);
    let a = host.sandbox("a", "--network app");
    assert_ping(&host.ns, a.ip, 64);
    let _inside = TcpServer::start(&a.ns, (ANY, 80));
    let mut connection = TcpClient::connect(&host.ns, (a.ip, 80));
    connection.echo("hello");
    assert_eq!(connection.seen_as.ip(), NET_GATEWAY);
    let _at_gateway = TcpServer::start(&host.ns, (NET_GATEWAY, 7000));
    let mut connection = TcpClient::connect(&a.ns, (NET_GATEWAY, 7000));
    connection.echo("hello");
    assert_eq!(connection.seen_as.ip(), a.ip);
    let _udp = UdpServer::start(&host.ns, (NET_GATEWAY, 7001));
    assert_eq!(udp_ask(&a.ns, (NET_GATEWAY, 7001)).expect("an answer").ip(), a.ip);
}

#[test]
#[ignore = "needs root"]
fn the_host_itself_reaches_published_ports() {
    let host = host_with_app(Uplink::Shared);
    let web = host.sandbox("web", "--network app -p 8080:80 -p 5353:53/udp");
    let _server = TcpServer::start(&web.ns, (ANY, 80));
    let _udp = UdpServer::start(&web.ns, (ANY, 53));
    for address in [Ipv4Addr::LOCALHOST, HOST_IP, NET_GATEWAY] {
        TcpClient::connect(&host.ns, (address, 8080)).echo("hello");
        assert!(udp_ask(&host.ns, (address, 5353)).is_some(), "UDP to {address}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_port_published_on_one_address_is_closed_on_others() {
    let host = host_with_app(Uplink::Shared);
    let web = host.sandbox("web", "--network app -p 127.0.0.1:8080:80 -p 192.0.2.2:8081:80");
    let _server = TcpServer::start(&web.ns, (ANY, 80));
    TcpClient::connect(&host.ns, (Ipv4Addr::LOCALHOST, 8080)).echo("hello");
    TcpClient::connect(&host.outside, (HOST_IP, 8081)).echo("hello");
    assert!(TcpClient::try_connect(&host.outside, (HOST_IP, 8080)).is_err());
    assert!(TcpClient::try_connect(&host.ns, (Ipv4Addr::LOCALHOST, 8081)).is_err());
}
