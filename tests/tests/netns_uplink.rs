//! A shared uplink: the daemon takes its own frames and leaves the host exactly as it was, in both families. Of the
//! host's own IPv6 there is more in `netns_shared6`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::host::family::ANY;
use tests::host::inventory::{Inventory, filters};
use tests::host::namespace::Namespace;
use tests::host::traffic::{TcpClient, TcpServer, UdpServer, assert_ping, udp_ask, uninterrupted};
use tests::host::{APP, BOTH, Family, Host, Sandbox, Uplink, WIRE, eventually, rows};

/// A rule set that a careless switch would touch: policy, NAT and a rule at netdev.
const RULES: &str = "
table inet firewall {
    chain input { type filter hook input priority 0; policy drop;
        iif lo accept; ct state established,related accept; icmp type echo-request accept;
        meta l4proto ipv6-icmp accept; tcp dport 7100 accept; udp dport 7101 accept;
    }
    chain forward { type filter hook forward priority 0; policy drop; }
}
table inet nat {
    chain post { type nat hook postrouting priority 100; }
}
";

/// Counts the resets that reach the outside machine.
const COUNT_RESETS: &str = "table inet count {
    chain in {
        type filter hook prerouting priority -300;
        tcp flags & rst == rst counter
    }
}";

fn load_rules(ns: &Namespace, rules: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, rules.as_bytes()).unwrap();
    ns.ok(&format!("nft -f {}", file.path().display()));
}

fn resets_seen(host: &Host) -> u64 {
    let shown = host.outside.ok("nft list table inet count");
    let packets = shown.split("counter packets ").nth(1).unwrap();
    packets.split(' ').next().unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn the_host_keeps_its_services_rules_and_connections() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    load_rules(&host.ns, RULES);
    load_rules(&host.outside, COUNT_RESETS);
    let before = Inventory::of_namespace(&host.ns);
    let _host_tcp = TcpServer::start(&host.ns, (ANY, 7100));
    let _host_udp = UdpServer::start(&host.ns, (ANY, 7101));
    let _outside_tcp = TcpServer::start(&host.outside, (ANY, 7000));
    // They began before the daemon came, and outlive it.
    let mut old: Vec<TcpClient> = BOTH
        .into_iter()
        .flat_map(|family| {
            [
                TcpClient::connect(&host.outside, (family.host(), 7100)),
                TcpClient::connect(&host.ns, (family.outside(), 7000)),
            ]
        })
        .collect();

    host.launch();
    host.network("app", APP);
    let web = host.sandbox("web", "--network app -p 8080:80");
    let _web_tcp = TcpServer::start(&web.ns, (ANY, 80));
    for round in 0..3 {
        for family in BOTH {
            let (own, far) = (family.host(), family.outside());
            TcpClient::connect(&web.ns, (far, 7000)).echo("out");
            TcpClient::connect(&host.outside, (own, 8080)).echo("in");
            let mut service = TcpClient::connect(&host.outside, (own, 7100));
            service.echo("the host's own");
            assert_eq!(service.seen_as.ip(), far);
            TcpClient::connect(&host.ns, (far, 7000)).echo("the host's own");
            assert!(udp_ask(&host.outside, (own, 7101)).is_some(), "{family}, round {round}");
            assert_ping(&host.outside, own, 64);
            assert_ping(&host.ns, far, 64);
            assert_ping(&web.ns, far, 63);
        }
        old.iter_mut().for_each(|connection| connection.echo("still"));
    }
    // Closing is part of it: the host's stack must not answer the last segments either.
    assert_eq!(resets_seen(&host), 0, "the host answered with resets");
    assert_eq!(Inventory::of_namespace(&host.ns).part("nft"), before.part("nft"));

    host.stop(Signal::SIGTERM);
    old.iter_mut().for_each(|connection| connection.echo("after"));
    host.purge_offline();
    drop((old, _host_tcp, _host_udp));
    Inventory::of_namespace(&host.ns).assert_same(&before, "a daemon on a shared uplink");
}

/// Sends a datagram to a server until it answers; as whom the server saw it.
fn asks(socket: &UdpSocket, to: (IpAddr, u16)) -> Option<SocketAddr> {
    let mut buffer = [0; 2048];
    (0..3).find_map(|_| {
        socket.send_to(b"asks", to).unwrap();
        let (length, from) = uninterrupted(|| socket.recv_from(&mut buffer)).ok()?;
        let answer = String::from_utf8_lossy(&buffer[..length]);
        let (seen, payload) = answer.split_once(' ')?;
        (from == to.into() && payload == "asks").then(|| seen.parse().ok())?
    })
}

fn udp_from(ns: &Namespace, family: Family, port: u16) -> UdpSocket {
    let socket = ns.enter(|| UdpSocket::bind((family.any(), port))).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket
}

/// Speaks to whoever is at port 5000 outside, who sees it come from there.
fn seen_from(speaker: &UdpSocket, family: Family, client: &UdpSocket) -> SocketAddr {
    let mut buffer = [0; 2048];
    // The first may be lost while a neighbor is asked for.
    let seen = (0..3).find_map(|_| {
        speaker.send_to(b"casts", (family.outside(), 5000)).unwrap();
        uninterrupted(|| client.recv_from(&mut buffer)).ok()
    });
    let (_, seen) = seen.unwrap();
    assert_eq!(seen.ip(), family.host());
    seen
}

/// Whoever inside spoke from the port of a service first would get what is for it: `nft_nat.sh` calls it a
/// port shadow.
#[test]
#[ignore = "needs root"]
fn a_udp_service_of_the_host_is_not_shadowed() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    let services = BOTH.map(|family| UdpServer::start(&host.ns, (family.host(), 7101)));
    host.launch();
    host.network("app", APP);
    let web = host.sandbox("web", "--network app");
    for family in BOTH {
        let client = udp_from(&host.outside, family, 5000);
        let shadow = udp_from(&web.ns, family, 7101);
        assert_ne!(seen_from(&shadow, family, &client).port(), 7101, "{family}");
        let seen = asks(&client, (family.host(), 7101));
        assert_eq!(seen, Some((family.outside(), 5000).into()), "the service answers");
    }
    drop(services);
}

/// A program of the host begins to listen where a sandbox could have spoken from, and did.
#[test]
#[ignore = "needs root"]
fn a_service_that_comes_later_is_not_shadowed_either() {
    let host = Host::start_dual(Uplink::Shared);
    let web = host.sandbox("web", "--network app");
    // Below the ports that the host hands out to its own clients: NAT's.
    for (family, port) in BOTH.into_iter().zip([20_101, 20_102]) {
        let client = udp_from(&host.outside, family, 5000);
        let shadow = udp_from(&web.ns, family, port);
        assert_eq!(seen_from(&shadow, family, &client).port(), port, "nobody needs it");
        let _service = UdpServer::start(&host.ns, (family.host(), port));
        // What is there goes on; the next one gets another port, once the host's sockets were looked at.
        eventually(Duration::from_secs(10), "it gets another port", || {
            host.ok(["conntrack", "flush", "--src", &family.of(&web).to_string()]);
            seen_from(&shadow, family, &client).port() != port
        });
        let seen = asks(&client, (family.host(), port));
        assert_eq!(seen, Some((family.outside(), 5000).into()), "the service answers");
    }
}

/// A client that goes on from one port reaches the sandbox that a port is published for, whatever took its
/// datagrams before; and a sandbox that spoke from the port goes on from another.
#[test]
#[ignore = "needs root"]
fn udp_that_began_before_the_publish_reaches_the_sandbox() {
    let host = Host::start_dual(Uplink::Shared);
    let before = host.sandbox("before", "--network app");
    for family in BOTH {
        let client = udp_from(&host.outside, family, 5000);
        let spoken = udp_from(&before.ns, family, 40_101);
        let port = seen_from(&spoken, family, &client).port();
        client.send_to(b"back", (family.host(), port)).unwrap();
        let (length, _) = uninterrupted(|| spoken.recv_from(&mut [0; 2048])).unwrap();
        assert_eq!(length, 4, "it is that flow's");
        let publish = |name: &str, inside: u16| -> (Sandbox, UdpServer) {
            let web = host.sandbox(name, &format!("--network app -p {port}:{inside}/udp"));
            let server = UdpServer::start(&web.ns, (ANY, inside));
            (web, server)
        };
        let (web, _server) = publish("web", 53);
        let as_it_is = Some((family.outside(), 5000).into());
        assert_eq!(asks(&client, (family.host(), port)), as_it_is, "{family}");
        assert_ne!(seen_from(&spoken, family, &client).port(), port, "{family}");
        // The next one to have the port.
        host.ok(["sandbox", "rm", &web.name]);
        let (next, _server) = publish("next", 54);
        assert_eq!(asks(&client, (family.host(), port)), as_it_is, "{family}");
        host.ok(["sandbox", "rm", &next.name]);
    }
}

/// Counts the datagrams that reach a sandbox, answered or not.
const COUNT_DATAGRAMS: &str = "table inet count {
    chain in {
        type filter hook prerouting priority -300;
        udp dport 7101 counter
    }
}";

/// Rows: moby `TestDirectRemoteAccessOnExposedPort`.
#[test]
#[ignore = "needs root"]
fn a_host_that_forwards_lets_nobody_into_a_network() {
    let host = Host::start_dual(Uplink::Shared);
    host.network("closed", "--subnet 10.91.2.0/24 --subnet fd00:91:2::/64 --internal");
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        host.ns.enter(|| std::fs::write(format!("/proc/sys/net/{setting}"), "1").unwrap());
    }
    // One that forwards takes nobody's word for its default route.
    host.outside.ip(&format!("route add 10.91.0.0/16 via {}", Family::V4.host()));
    host.outside.ip(&format!("-6 route add fd00:91::/32 via {}", Family::V6.host()));
    let mut expected = 0;
    for network in ["app", "closed"] {
        let inside = host.sandbox(network, &format!("--network {network}"));
        load_rules(&inside.ns, COUNT_DATAGRAMS);
        let _server = UdpServer::start(&inside.ns, (ANY, 7101));
        let arrived = || inside.ns.ok("nft list table inet count");
        for family in BOTH {
            // The host reaches its containers, and would know the way for others.
            let before = arrived();
            let to = (family.of(&inside), 7101);
            assert!(udp_ask(&host.ns, to).is_some(), "{network} by {family}");
            let by_the_host = arrived();
            assert_ne!(by_the_host, before, "{network} by {family}");
            assert!(udp_ask(&host.outside, to).is_none(), "{network} by {family}");
            assert_eq!(arrived(), by_the_host, "{network} by {family}");
            expected += 1;
            let drops = rows(&host.json(["drops"]));
            let forwarded = drops.iter().find(|drop| drop["reason"] == "host_forwarded");
            let count = forwarded.and_then(|drop| drop["count"].as_u64());
            assert!(count >= Some(expected), "{network} by {family}: {drops:?}");
        }
    }
}

/// Rows: moby `TestDropInForwardChain`.
#[test]
#[ignore = "needs root"]
fn the_hosts_firewall_does_not_see_containers() {
    // Published ports go past the host's INPUT chain, as they do past Docker's.
    let mut host = Host::prepare_dual(Uplink::Shared);
    load_rules(&host.ns, RULES);
    host.launch();
    host.network("app", APP);
    let web = host.sandbox("web", "--network app -p 8080:80");
    let _web_tcp = TcpServer::start(&web.ns, (ANY, 80));
    for family in BOTH {
        TcpClient::connect(&host.outside, (family.host(), 8080)).echo("in");
        // What is not published stays the firewall's.
        assert!(TcpClient::try_connect(&host.outside, (family.host(), 8081)).is_err());
    }
}

#[test]
#[ignore = "needs root"]
fn steering_goes_with_a_clean_stop() {
    let mut host = Host::start_dual(Uplink::Shared);
    assert!(!filters(&host.ns).is_empty(), "no steering on a shared uplink");
    host.stop(Signal::SIGTERM);
    assert_eq!(filters(&host.ns), "");
    let qdiscs = host.ns.ok(&format!("tc qdisc show dev {WIRE}"));
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
}

fn comes_in(host: &Host) {
    for family in BOTH {
        TcpClient::connect(&host.outside, (family.host(), 8080)).echo("in");
    }
}

#[test]
#[ignore = "needs root"]
fn steering_is_replaced_after_a_kill() {
    let mut host = Host::start_dual(Uplink::Shared);
    let count = |host: &Host| filters(&host.ns).matches("bpf").count();
    let before = count(&host);
    host.stop(Signal::SIGKILL);
    assert_eq!(count(&host), before, "a killed daemon cannot take its steering away");
    host.launch();
    assert_eq!(count(&host), before, "{}", filters(&host.ns));
    let web = host.sandbox("web", "--network app -p 8080:80");
    let _web_tcp = TcpServer::start(&web.ns, (ANY, 80));
    comes_in(&host);
    host.stop(Signal::SIGTERM);
    assert_eq!(filters(&host.ns), "");
}

#[test]
#[ignore = "needs root"]
fn steering_that_somebody_took_off_is_set_again() {
    let mut host = Host::start_dual(Uplink::Shared);
    let web = host.sandbox("web", "--network app -p 8080:80");
    let _web_tcp = TcpServer::start(&web.ns, (ANY, 80));
    let _outside_tcp = TcpServer::start(&host.outside, (ANY, 7000));
    let before = filters(&host.ns);
    assert!(before.contains("vswitchd-steer"), "{before}");
    // With the qdisc it hangs on, and alone; the second time it is not set at once.
    for what in ["qdisc del dev WIRE clsact", "filter del dev WIRE ingress"] {
        host.ns.ok(&format!("tc {}", what.replace("WIRE", WIRE)));
        let limit = Duration::from_secs(12);
        eventually(limit, "the steering is there", || filters(&host.ns).contains("vswitchd-steer"));
        // The host does not answer for the sandboxes.
        for _ in 0..5 {
            comes_in(&host);
            for family in BOTH {
                TcpClient::connect(&web.ns, (family.outside(), 7000)).echo("out");
            }
        }
    }
    host.stop(Signal::SIGTERM);
    assert_eq!(filters(&host.ns), "");
    let qdiscs = host.ns.ok(&format!("tc qdisc show dev {WIRE}"));
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
}

fn gets_out(sandbox: &Sandbox) {
    for family in BOTH {
        assert_ping(&sandbox.ns, family.outside(), 63);
    }
}

#[test]
#[ignore = "needs root"]
fn a_clsact_and_filters_of_others_stay() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    host.ns.ok(&format!("tc qdisc add dev {WIRE} clsact"));
    let foreign = format!(
        "tc filter add dev {WIRE} ingress prio 77 protocol all u32 match u32 0 0 flowid 1:1"
    );
    host.ns.ok(&foreign);
    let wire = host.ns.clone();
    let seen = || (filters(&wire), wire.ok(&format!("tc qdisc show dev {WIRE}")));
    let before = seen();
    host.launch();
    assert_ne!(seen().0, before.0);
    host.network("app", APP);
    gets_out(&host.sandbox("web", "--network app"));
    host.stop(Signal::SIGTERM);
    assert_eq!(seen(), before);
}

#[test]
#[ignore = "needs root"]
fn an_uplink_comes_and_goes() {
    let host = Host::start_dual(Uplink::Shared);
    let uplinks = rows(&host.json(["uplink", "ls"]));
    assert_eq!(uplinks.len(), 1, "the default route's interface: {uplinks:?}");
    assert_eq!((&uplinks[0]["interface"], &uplinks[0]["mode"]), (&WIRE.into(), &"shared".into()));
    let a = host.sandbox("a", "--network app");
    gets_out(&a);
    host.ok(["uplink", "add", WIRE, "--mode", "shared"]);
    gets_out(&a);
    host.refused(4, &[WIRE], ["uplink", "add", WIRE]);
    host.ok(["uplink", "rm", WIRE]);
    assert_eq!(filters(&host.ns), "");
    for family in BOTH {
        assert_ping(&host.ns, family.outside(), 64);
    }
}
