//! A network whose own addresses are used on the wire, beside machines that take them for neighbors.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::host::traffic::{TcpClient, TcpServer, assert_ping, ping};
use tests::host::{GATEWAY, Host, Sandbox, Uplink, WIRE, eventually, one, rows};

/// How long a connection may take to go on.
const GOES_ON: Duration = Duration::from_secs(15);

const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// A dedicated uplink with 192.0.2.0/24 and 2001:db8::/64 on its wire, and a network with a part of both.
fn routed() -> Host {
    let mut host = Host::prepare(Uplink::Dedicated);
    host.ns.enable_ipv6();
    host.outside.enable_ipv6();
    host.outside.ip(&format!("-6 address add {ROUTER6}/64 dev {WIRE} nodad"));
    host.launch();
    let line = format!(
        "uplink add {WIRE} --mode dedicated --address 192.0.2.2/24 --address 2001:db8::2/64 \
         --gateway {GATEWAY} --gateway {ROUTER6}"
    );
    host.ok(line.split_whitespace());
    host.network(
        "app",
        "--subnet 192.0.2.128/25 --ipv6 --subnet 2001:db8:0:0:1::/80 -o gateway_mode=routed",
    );
    host
}

/// Of both families.
fn addresses(host: &Host, sandbox: &Sandbox) -> [IpAddr; 2] {
    let shown = one(&host.json(["sandbox", "inspect", &sandbox.name]));
    let ipv6 = shown["endpoints"][0]["ipv6"].as_str().unwrap().parse().unwrap();
    [IpAddr::V4(sandbox.ip), IpAddr::V6(ipv6)]
}

/// Rows: moby `TestBridgeINCRouted`.
#[test]
#[ignore = "needs root"]
fn machines_on_the_wire_take_its_sandboxes_for_neighbors() {
    let mut host = routed();
    let web = host.sandbox("web", "--network app -p 8080:80");
    for own in addresses(&host, &web) {
        let (any, router): (IpAddr, IpAddr) = match own {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), GATEWAY.into()),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), ROUTER6.into()),
        };
        // Both ways, by ARP and Neighbor Discovery on the wire: one router is between them.
        assert_ping(&host.outside, own, 63);
        assert_ping(&web.ns, router, 63);
        let _server = TcpServer::start(&web.ns, (any, 80));
        let _closed = TcpServer::start(&web.ns, (any, 81));
        let mut client = TcpClient::connect(&host.outside, (own, 80));
        client.echo("at its own address");
        assert_eq!(client.seen_as.ip(), router);
        assert!(TcpClient::try_connect(&host.outside, (own, 81)).is_err(), "{own} 81");
        let _outside = TcpServer::start(&host.outside, (any, 7000));
        let mut out = TcpClient::connect(&web.ns, (router, 7000));
        out.echo("from its own address");
        assert_eq!(out.seen_as.ip(), own);
    }
    // A network that is not routed has no part of the wire's prefix, and no next hop is in one that is.
    host.ns.ip("link add wire1 type veth peer name wire2");
    host.network("nat", "--subnet 198.51.100.128/25");
    let wires = "uplink add wire1 --mode dedicated --address 198.51.100.2/24";
    host.refused(4, &["overlaps network \"nat\""], wires.split_whitespace());
    let hop = "uplink add wire1 --mode dedicated --address 192.0.2.3/24 --gateway 192.0.2.130";
    host.refused(4, &["gateway 192.0.2.130", "\"app\""], hop.split_whitespace());
    let own = addresses(&host, &web)[0];
    let _server = TcpServer::start(&web.ns, (Ipv4Addr::UNSPECIFIED, 80));
    let shown = rows(&host.json(["conntrack", "list"]));
    assert!(!shown.is_empty());
    assert!(shown.iter().all(|row| row["nat"] == "none"), "{shown:?}");
    let dropped = rows(&host.json(["drops"]));
    assert!(dropped.iter().any(|row| row["reason"] == "unsolicited"), "{dropped:?}");
    let masquerade =
        |row: &serde_json::Value| row["kind"] == "masquerade" && row["network"] == "app";
    assert!(!rows(&host.json(["nat", "rules"])).iter().any(masquerade));
    // A connection outlives the daemon, and not what it came by.
    let mut client = TcpClient::connect(&host.outside, (own, 80));
    host.stop(Signal::SIGKILL);
    host.launch();
    client.try_echo("still there", GOES_ON).unwrap();
    host.ok(["port", "unpublish", &web.name, "8080:80"]);
    assert!(client.try_echo("once more", Duration::from_secs(1)).is_err());
}

#[test]
#[ignore = "needs root"]
fn each_family_is_routed_by_itself() {
    let host = routed();
    host.network(
        "six",
        "--subnet 10.91.1.0/24 --ipv6 --subnet 2001:db8:0:0:2::/80 -o gateway_mode_ipv6=routed",
    );
    let web = host.sandbox("web", "--network six");
    let [_, own] = addresses(&host, &web);
    assert_ping(&host.outside, own, 63);
    let _servers = [
        TcpServer::start(&host.outside, (Ipv4Addr::UNSPECIFIED, 7000)),
        TcpServer::start(&host.outside, (Ipv6Addr::UNSPECIFIED, 7001)),
    ];
    let by4 = TcpClient::connect(&web.ns, (GATEWAY, 7000));
    assert_eq!(by4.seen_as.ip(), IpAddr::from([192, 0, 2, 2]));
    let by6 = TcpClient::connect(&web.ns, (ROUTER6, 7001));
    assert_eq!(by6.seen_as.ip(), own);
}

/// The addresses that the host has by its leg in a network.
fn at_leg(host: &Host, network: &str) -> String {
    let shown = one(&host.json(["network", "inspect", network]));
    let leg = format!("vsw-{}", &shown["id"].as_str().unwrap()[..8]);
    host.ns.ip(&format!("-o address show dev {leg}"))
}

/// Rows: moby `TestIsolated`.
#[test]
#[ignore = "needs root"]
fn an_isolated_network_reaches_itself_alone() {
    let mut host = routed();
    let alone = "--subnet 10.91.1.0/24 --ipv6 --subnet fd00:91::/64 -o gateway_mode=isolated";
    host.network("alone", alone);
    host.refused(
        2,
        &["gateway 10.92.1.9", "isolated"],
        "network create g --subnet 10.92.1.0/24 --gateway 10.92.1.9 -o gateway_mode=isolated"
            .split_whitespace(),
    );
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network alone"));
    let c = host.sandbox("c", "--network alone --network app");
    let there = |host: &Host| {
        for to in addresses(host, &b) {
            assert_ping(&a.ns, to, 64);
            assert_ping(&c.ns, to, 64);
        }
        // Neither a way out nor somebody to ask for one.
        for family in ["-4", "-6"] {
            assert_eq!(a.ns.ip(&format!("{family} route show default")), "", "{family}");
        }
        assert!(!at_leg(host, "alone").contains("10.91.1.1"), "{}", at_leg(host, "alone"));
        assert!(!at_leg(host, "alone").contains("fd00:91"), "{}", at_leg(host, "alone"));
        let shown = one(&host.json(["network", "inspect", "alone"]));
        for subnet in rows(&shown["subnets"]) {
            assert_eq!(subnet["gateway"], serde_json::Value::Null, "{shown}");
        }
        let shown = one(&host.json(["sandbox", "inspect", &a.name]));
        let endpoint = &shown["endpoints"][0];
        assert_eq!((&endpoint["gateway"], &endpoint["gateway6"]), (&().into(), &().into()));
    };
    there(&host);
    let is_silent = |from: &Sandbox, to: IpAddr| {
        let seen = ping(&from.ns, to, 1);
        assert_eq!(seen.received, 0, "{to}: {}", seen.text);
    };
    is_silent(&a, [10, 91, 1, 1].into());
    // The host is not in it, and has no way to it.
    assert_eq!(ping(&host.ns, b.ip, 1).received, 0);
    // Who sends to where the gateway would be reaches neither the outside nor the host.
    a.ns.ip("neighbor replace 10.91.1.1 lladdr 02:42:0a:5b:01:01 dev eth0 nud permanent");
    a.ns.ip("route add default via 10.91.1.1 dev eth0");
    for to in [IpAddr::from(GATEWAY), [192, 0, 2, 2].into()] {
        is_silent(&a, to);
    }
    let dropped = rows(&host.json(["drops", "--sandbox", &a.name]));
    assert!(dropped.iter().any(|row| row["reason"] == "no_gateway"), "{dropped:?}");
    a.ns.ip("route del default");
    // Nothing can be published there; who is in another network too has the way of that.
    host.refused(2, &["neither internal nor isolated"], ["port", "publish", &a.name, "8080:80"]);
    // Where only IPv4 is isolated, IPv6 is published all the same.
    let half = "--subnet 10.94.1.0/24 --subnet fd00:94::/64 -o gateway_mode=isolated";
    host.network("half", &format!("{half} -o gateway_mode_ipv6=nat"));
    let e = host.sandbox("e", "--network half");
    host.refused(2, &["no IPv4 address"], ["port", "publish", &e.name, "0.0.0.0:8080:80"]);
    host.ok(["port", "publish", &e.name, "8080:80"]);
    let published = rows(&host.json(["port", "ls"]));
    let published: Vec<_> = published.iter().map(|row| row["host_ip"].as_str().unwrap()).collect();
    assert_eq!(published, ["::"]);
    host.ok(["sandbox", "rm", &e.name]);
    assert_ping(&c.ns, GATEWAY, 63);
    host.stop(Signal::SIGKILL);
    host.launch();
    there(&host);
    // Whether there is a gateway does not change under those who are connected.
    let declare = |host: &Host, mode: &str| {
        host.configure(&format!(
            "[[network]]\nname = \"bridge\"\n[[network]]\nname = \"declared\"\n\
             subnet = \"10.93.1.0/24\"\noptions = {{ gateway_mode = \"{mode}\" }}\n"
        ));
        let pid = i32::try_from(host.pid()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGHUP).unwrap();
    };
    let declared = |host: &Host| {
        let all = rows(&host.json(["network", "ls"]));
        all.into_iter().find(|network| network["name"] == "declared")
    };
    declare(&host, "isolated");
    eventually(GOES_ON, "the declared network", || declared(&host).is_some());
    let d = host.sandbox("d", "--network declared");
    declare(&host, "nat");
    eventually(GOES_ON, "the warning", || {
        let warnings = host.json(["status"])["warnings"].to_string();
        warnings.contains("gateway_mode isolated (declared: nat)")
    });
    assert_eq!(d.ns.ip("route show default"), "");
    host.ok(["sandbox", "rm", &d.name]);
    declare(&host, "nat");
    eventually(GOES_ON, "a gateway", || {
        declared(&host).is_some_and(|network| network["subnets"][0]["gateway"] == "10.93.1.1")
    });
    let d = host.sandbox("d2", "--network declared");
    assert_ping(&d.ns, GATEWAY, 63);
}

#[test]
#[ignore = "needs root"]
fn without_a_dedicated_uplink_it_is_said() {
    let host = Host::start(Uplink::Shared);
    host.network("app", "--subnet 10.91.1.0/24 -o gateway_mode=routed");
    let warns = || {
        let status = host.json(["status"]);
        rows(&status["warnings"]).iter().any(|text| {
            let text = text.as_str().unwrap();
            text.contains("\"app\" is routed") && text.contains("dedicated uplink")
        })
    };
    assert!(warns());
    host.ok(["network", "rm", "app"]);
    eventually(Duration::from_secs(5), "it is over", || !warns());
}
