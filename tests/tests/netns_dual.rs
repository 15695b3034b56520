//! Networks with IPv6: addresses, routes and traffic of sandboxes, over restarts and reloads.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::host::namespace::Namespace;
use tests::host::traffic::{TcpClient, TcpServer, UdpServer, assert_ping, udp_ask};
use tests::host::{GATEWAY, HOST_IP, Host, Sandbox, Uplink, eventually, one, rows};

/// How long the daemon may take to see what was done behind its back, or by a new file.
const SEES: Duration = Duration::from_secs(10);

/// How long a connection may take to go on.
const GOES_ON: Duration = Duration::from_secs(15);

fn ip6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// A host with IPv6 whose daemon was not started yet.
fn prepared(uplink: Uplink) -> Host {
    let host = Host::prepare(uplink);
    host.ns.enable_ipv6();
    host.outside.enable_ipv6();
    host
}

fn started() -> Host {
    let mut host = prepared(Uplink::None);
    host.launch();
    host
}

/// The IPv6 address of a sandbox in its first network.
fn address(host: &Host, sandbox: &Sandbox) -> Ipv6Addr {
    let shown = one(&host.json(["sandbox", "inspect", &sandbox.name]));
    shown["endpoints"][0]["ipv6"].as_str().unwrap_or_else(|| panic!("{shown}")).parse().unwrap()
}

fn setting(ns: &Namespace, ifname: &str, key: &str) -> String {
    let path = format!("/proc/sys/net/ipv6/conf/{ifname}/{key}");
    ns.enter(|| fs::read_to_string(path)).unwrap().trim().to_owned()
}

/// What the kernel has at `eth0`: addresses with their flags, and routes.
fn at_eth0(ns: &Namespace) -> String {
    let addresses: Value = serde_json::from_str(&ns.ip("-j -6 address show dev eth0")).unwrap();
    let mut lines: Vec<String> = rows(&addresses[0]["addr_info"])
        .iter()
        .map(|own| {
            assert_eq!(own.get("tentative"), None, "{own}");
            format!("{}/{} {}", own["local"], own["prefixlen"], own["scope"])
        })
        .collect();
    lines.sort();
    lines.push(ns.ip("-6 route show"));
    lines.join("\n")
}

/// The link-local address of a MAC (RFC 4291 appendix A).
fn link_local(mac: &str) -> Ipv6Addr {
    let m: Vec<u16> = mac.split(':').map(|byte| u16::from_str_radix(byte, 16).unwrap()).collect();
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        (m[0] ^ 2) << 8 | m[1],
        m[2] << 8 | 0xff,
        0xfe00 | m[3],
        m[4] << 8 | m[5],
    )
}

/// Rows: Open vSwitch `datapath: ping6 between two ports`; Linux `bridge_vlan_unaware.sh: ping_ipv6`; moby
/// `TestBridgeICC, TestAccessToPublishedPort and others with IPv6`.
#[test]
#[ignore = "needs root"]
fn sandboxes_of_a_network_speak_both_families() {
    let host = started();
    host.network("app", "--ipv6");
    let a = host.sandbox("a", "--network app");
    // A program that starts with its sandbox can bind at once.
    let to = address(&host, &a);
    let _servers = (TcpServer::start(&a.ns, (to, 7000)), UdpServer::start(&a.ns, (to, 7001)));
    let b = host.sandbox("b", "--network app");
    let shown = one(&host.json(["network", "inspect", "app"]));
    assert_eq!(shown["ipv6"], true);
    let [v4, v6] = rows(&shown["subnets"]).try_into().unwrap();
    assert!(v4["subnet"].as_str().unwrap().parse::<ipnet::Ipv4Net>().is_ok(), "{v4}");
    // RFC 4193: locally assigned, the gateway and the endpoints one after the other.
    let subnet: ipnet::Ipv6Net = v6["subnet"].as_str().unwrap().parse().unwrap();
    assert_eq!((subnet.network().octets()[0], subnet.prefix_len()), (0xfd, 64), "{v6}");
    let nth = |n: u128| Ipv6Addr::from_bits(subnet.network().to_bits() + n);
    assert_eq!(v6["gateway"], json!(nth(1)));
    assert_eq!((to, address(&host, &b)), (nth(2), nth(3)));

    let mac = rows(&shown["endpoints"])[0]["mac"].as_str().unwrap().to_owned();
    let expected = [
        format!("{}/64 \"global\"", json!(to)),
        format!("{}/64 \"link\"", json!(link_local(&mac))),
        String::new(),
    ];
    let there = at_eth0(&a.ns);
    assert!(there.starts_with(expected.join("\n").trim_end()), "{there}");
    assert!(there.contains(&format!("default via {} dev eth0", nth(1))), "{there}");
    for (key, value) in [("disable_ipv6", "0"), ("accept_ra", "0"), ("addr_gen_mode", "0")] {
        assert_eq!(setting(&a.ns, "eth0", key), value, "{key}");
    }
    // Routes of one network are no way out of another one's, and its gateway is the host's.
    let leg = format!("vsw-{}", &shown["id"].as_str().unwrap()[..8]);
    let own = host.ns.ip(&format!("-6 address show dev {leg}"));
    assert!(own.contains(&format!("{}/64", nth(1))) && !own.contains("tentative"), "{own}");

    assert_ping(&b.ns, to, 64);
    assert_ping(&b.ns, a.ip, 64);
    let mut client = TcpClient::connect(&b.ns, (to, 7000));
    assert_eq!(client.seen_as.ip(), IpAddr::from(nth(3)));
    client.echo("both");
    assert_eq!(udp_ask(&b.ns, (to, 7001)).map(|seen| seen.ip()), Some(nth(3).into()));
    // Addresses stay when the interface goes down, as those of IPv4 do.
    b.ns.ip("link set eth0 down");
    b.ns.ip("link set eth0 up");
    assert!(b.ns.ip("-6 address show dev eth0").contains(&nth(3).to_string()));
    assert_ping(&b.ns, to, 64);

    // Networks without it stay as they were.
    host.network("plain", "--subnet 10.92.0.0/24");
    let c = host.sandbox("c", "--network plain");
    assert_eq!(one(&host.json(["network", "inspect", "plain"]))["ipv6"], false);
    assert_eq!(setting(&c.ns, "eth0", "disable_ipv6"), "1");
    assert_eq!(c.ns.ip("-6 address show dev eth0"), "");
    // The other family of a sandbox in both leads by the network that has it.
    let d = host.sandbox("d", "--network plain --network app");
    let routes = d.ns.ip("route show default") + &d.ns.ip("-6 route show default");
    assert!(routes.starts_with("default via 10.92.0.1 dev eth0"), "{routes}");
    assert!(routes.contains(&format!("default via {} dev eth1", nth(1))), "{routes}");
    // What was given back is given out again, later.
    host.ok(["sandbox", "rm", &b.name]);
    let e = host.sandbox("e", "--network app");
    assert_eq!(address(&host, &e), nth(5));
}

#[test]
#[ignore = "needs root"]
fn addresses_are_those_that_were_asked_for() {
    let host = started();
    host.network("app", "--subnet 10.91.1.0/24 --subnet fd00:91::/64 --gateway fd00:91::ff");
    let a = host.sandbox("a", "--network app --ip6 fd00:91::5");
    let b = host.sandbox("b", "--network app --ip 10.91.1.9");
    assert_eq!(address(&host, &a), ip6("fd00:91::5"));
    assert_eq!((address(&host, &b), b.ip), (ip6("fd00:91::1"), Ipv4Addr::new(10, 91, 1, 9)));
    assert!(a.ns.ip("-6 route show default").contains("via fd00:91::ff dev eth0"));
    assert_ping(&a.ns, ip6("fd00:91::1"), 64);

    let refused = |code, words: &[&str], line: &str| {
        host.refused(code, words, line.split_whitespace());
    };
    let on = |network: &str, ip6: &str| {
        format!("sandbox create {} --network {network} --ip6 {ip6}", host.name("no"))
    };
    refused(4, &["address fd00:91::5 is in use"], &on("app", "fd00:91::5"));
    refused(2, &["fd00:91::ff is reserved as the gateway"], &on("app", "fd00:91::ff"));
    refused(2, &["fd00:92::5 lies in no subnet"], &on("app", "fd00:92::5"));
    host.network("plain", "--subnet 10.92.0.0/24");
    refused(2, &["network \"plain\" has no IPv6", "--ipv6"], &on("plain", "fd00:91::6"));
    let create = |flags: &str| format!("network create other {flags}");
    refused(4, &["overlaps network \"app\""], &create("--subnet fd00:91::/48"));
    refused(2, &["MTU of 1280"], &create("--ipv6 -o mtu=1000"));
    host.ns.ip("link add wan0 type veth peer name wan1");
    host.ns.ip("link set wan1 up");
    host.ns.ip("link set wan0 up");
    host.ns.ip("-6 address add 2001:db8:7::5/64 dev wan0 nodad");
    host.ns.ip("-6 route add 2001:db8:8::/48 dev wan0");
    refused(4, &["2001:db8:7::5/64", "wan0"], &create("--subnet 2001:db8:7::/64"));
    refused(4, &["overlaps the host's route"], &create("--subnet 2001:db8:8::/48"));
    // Nothing of all that was left behind: the addresses are the next ones.
    let c = host.sandbox("c", "--network app");
    assert_eq!((address(&host, &c), c.ip), (ip6("fd00:91::2"), Ipv4Addr::new(10, 91, 1, 3)));
    // Two that nobody named: neighbors in the host's own prefix.
    let subnet = |name: &str| -> ipnet::Ipv6Net {
        host.network(name, "--ipv6");
        let shown = one(&host.json(["network", "inspect", name]));
        shown["subnets"][1]["subnet"].as_str().unwrap().parse().unwrap()
    };
    let (one, two) = (subnet("one"), subnet("two"));
    assert_eq!(two.network().to_bits() - one.network().to_bits(), 1 << 64, "{one}, {two}");
    // Connected later, with an address of its own choice.
    host.ok(["network", "connect", "app", &host.sandbox("z", "--network one").name, "--ip6"]
        .into_iter()
        .chain(["fd00:91::77"]));
    let z = host.find(&host.name("z"));
    assert!(z.ns.ip("-6 address show dev eth1").contains("fd00:91::77/64"));
    host.ok(["network", "disconnect", "app", &z.name]);
    host.sandbox("y", "--network app --ip6 fd00:91::77");
}

fn goes_on_over_a_restart(signal: Signal) {
    let mut host = started();
    host.network("app", "--ipv6");
    let (a, b) = (host.sandbox("a", "--network app"), host.sandbox("b", "--network app"));
    let to = address(&host, &b);
    let _server = TcpServer::start(&b.ns, (to, 7000));
    let mut client = TcpClient::connect(&a.ns, (to, 7000));
    client.echo("before");
    let shown = host.json(["network", "ls"]);
    let before = [at_eth0(&a.ns), at_eth0(&b.ns)];
    host.stop(signal);
    client.send("meanwhile").unwrap();
    host.launch();
    assert_eq!(client.receive("meanwhile".len(), GOES_ON).unwrap(), "meanwhile");
    client.try_echo("after", GOES_ON).unwrap();
    assert_eq!([at_eth0(&a.ns), at_eth0(&b.ns)], before);
    assert_eq!(host.json(["network", "ls"]), shown);
    assert_ping(&a.ns, to, 64);
    // Taken addresses are known, and the search goes on where it was.
    let c = host.sandbox("c", "--network app");
    assert_eq!(address(&host, &c).to_bits(), to.to_bits() + 1);
}

#[test]
#[ignore = "needs root"]
fn addresses_stay_over_a_clean_restart() {
    goes_on_over_a_restart(Signal::SIGTERM);
}

#[test]
#[ignore = "needs root"]
fn addresses_stay_over_a_kill() {
    goes_on_over_a_restart(Signal::SIGKILL);
}

#[test]
#[ignore = "needs root"]
fn what_was_deleted_comes_back_with_both_families() {
    let host = started();
    host.network("app", "--ipv6");
    let (a, b) = (host.sandbox("a", "--network app"), host.sandbox("b", "--network app"));
    let (to, before) = (address(&host, &b), at_eth0(&a.ns));
    let id = one(&host.json(["network", "inspect", "app"]))["id"].as_str().unwrap().to_owned();
    let leg = format!("vsw-{}", &id[..8]);
    a.ns.ip("link delete eth0");
    host.ns.ip(&format!("link delete {leg}"));
    eventually(SEES, "both devices are back", || {
        let there = |ns: &Namespace, ifname: &str| {
            ns.run(&format!("ip link show {ifname}")).code == 0
                && ns.ip(&format!("-6 address show dev {ifname}")).contains("global")
        };
        there(&a.ns, "eth0") && there(&host.ns, &leg)
    });
    eventually(SEES, "the default route is back", || {
        a.ns.ip("-6 route show default").contains("default")
    });
    assert_eq!(at_eth0(&a.ns), before);
    assert_ping(&a.ns, to, 64);
}

#[test]
#[ignore = "needs root"]
fn a_reload_keeps_what_is_declared() {
    let mut host = prepared(Uplink::None);
    let declare = |host: &Host, fields: &str| {
        host.configure(&format!("[[network]]\nname = \"app\"\n{fields}\n"));
    };
    let reload = |host: &Host| {
        let pid = i32::try_from(host.pid()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGHUP).unwrap();
    };
    let app = |host: &Host| one(&host.json(["network", "inspect", "app"]));
    declare(&host, "subnet = [\"10.91.1.0/24\", \"fd00:91::/64\"]\nlabels = { n = \"1\" }");
    host.launch();
    let a = host.sandbox("a", "--network app");
    let before = (app(&host)["id"].clone(), at_eth0(&a.ns));
    // What can change does, the rest stays; each of them is what `labels` say.
    declare(
        &host,
        "subnet = [\"10.91.1.0/24\", \"fd00:91::/64\"]\nip_range = \"fd00:91::100/120\"\n\
         labels = { n = \"2\" }",
    );
    reload(&host);
    eventually(SEES, "the second file", || app(&host)["labels"]["n"] == "2");
    assert_eq!((app(&host)["id"].clone(), at_eth0(&a.ns)), before);
    let b = host.sandbox("b", "--network app");
    assert_eq!(address(&host, &b), ip6("fd00:91::100"));
    // IPv6 cannot be taken from under those who use it.
    declare(&host, "subnet = \"10.91.1.0/24\"\nlabels = { n = \"3\" }");
    reload(&host);
    eventually(SEES, "the third file", || app(&host)["labels"]["n"] == "3");
    assert_eq!((app(&host)["ipv6"].clone(), at_eth0(&a.ns)), (json!(true), before.1.clone()));
    let warnings = host.json(["status"])["warnings"].to_string();
    assert!(warnings.contains("ipv6 true (declared: false)"), "{warnings}");
    assert_ping(&a.ns, ip6("fd00:91::100"), 64);
    for sandbox in [&a, &b] {
        host.ok(["sandbox", "rm", &sandbox.name]);
    }
    reload(&host);
    // While it is made anew there is none.
    let has_ipv6 = |host: &Host| {
        let all = rows(&host.json(["network", "ls"]));
        all.iter().find(|network| network["name"] == "app").map(|app| app["ipv6"] == true)
    };
    eventually(SEES, "a network without IPv6", || has_ipv6(&host) == Some(false));
    assert_ne!(app(&host)["id"], before.0);
    // And back, from the pools of the file.
    declare(&host, "subnet = \"10.91.1.0/24\"\nipv6 = true");
    reload(&host);
    eventually(SEES, "a network with IPv6", || has_ipv6(&host) == Some(true));
    assert_eq!(host.json(["status"])["warnings"], json!([]));
}

#[test]
#[ignore = "needs root"]
fn a_namespace_without_ipv6_is_adopted_all_the_same() {
    let host = started();
    host.network("app", "--ipv6");
    let b = host.sandbox("b", "--network app");
    let theirs = Namespace::create(&host.name("theirs"));
    let ns = theirs.handle();
    let line = format!("sandbox create {} --network app --netns {}", host.name("a"), {
        ns.path().display()
    });
    host.refused(
        4,
        &["fd00::5", "its namespace has no IPv6", "net.ipv6.conf.all.disable_ipv6"],
        format!("{line} --ip6 fd00::5").split_whitespace(),
    );
    host.ok(line.split_whitespace());
    let shown = one(&host.json(["sandbox", "inspect", &host.name("a")]));
    assert_eq!(shown["endpoints"][0]["ipv6"], Value::Null);
    let warnings = host.json(["status"])["warnings"].to_string();
    assert!(warnings.contains("has no IPv6 address in network \\\"app\\\""), "{warnings}");
    assert_eq!(setting(&ns, "eth0", "disable_ipv6"), "1");
    assert_ping(&ns, b.ip, 64);
    host.ok(["sandbox", "rm", &host.name("a")]);
    assert_eq!(host.json(["status"])["warnings"], json!([]));
    // One that has IPv6 keeps its own default route.
    ns.enable_ipv6();
    ns.ip("link add own0 type veth peer name own1");
    ns.ip("link set own1 up");
    ns.ip("link set own0 up");
    ns.ip("-6 address add 2001:db8::2/64 dev own0 nodad");
    ns.ip("-6 route add default via 2001:db8::1 dev own0");
    host.ok(line.split_whitespace());
    let default = ns.ip("-6 route show default");
    assert!(default.contains("own0") && !default.contains("eth0"), "{default}");
    assert_ping(&ns, address(&host, &b), 64);
}

#[test]
#[ignore = "needs root"]
fn a_host_without_ipv6_has_networks_with_it() {
    let mut host = Host::prepare(Uplink::None);
    host.launch();
    host.network("app", "--ipv6");
    let (a, b) = (host.sandbox("a", "--network app"), host.sandbox("b", "--network app"));
    let shown = one(&host.json(["network", "inspect", "app"]));
    let leg = format!("vsw-{}", &shown["id"].as_str().unwrap()[..8]);
    assert_eq!(setting(&host.ns, &leg, "disable_ipv6"), "1");
    let warnings = host.json(["status"])["warnings"].to_string();
    assert!(warnings.contains("the host has no IPv6 address in it"), "{warnings}");
    assert_ping(&a.ns, address(&host, &b), 64);
    host.ok(["sandbox", "rm", &a.name]);
    host.ok(["sandbox", "rm", &b.name]);
    host.ok(["network", "rm", "app"]);
    assert_eq!(host.json(["status"])["warnings"], json!([]));
    assert!(!Path::new("/run/netns").join(&a.name).exists());
}

/// The outside machine, the daemon's own address there, and a host with both as its only way out.
const OUTSIDE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const OURS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

fn with_a_way_out() -> Host {
    let mut host = prepared(Uplink::Dedicated);
    host.outside.ip(&format!("-6 address add {OUTSIDE}/64 dev up0 nodad"));
    host.launch();
    let line = "uplink add up0 --mode dedicated --address 192.0.2.2/24 --address 2001:db8::2/64 \
                --gateway 192.0.2.1 --gateway 2001:db8::1";
    host.ok(line.split_whitespace());
    host
}

#[test]
#[ignore = "needs root"]
fn both_families_lead_out_and_to_the_host() {
    let host = with_a_way_out();
    host.network("app", "--ipv6");
    let a = host.sandbox("a", "--network app");
    let _servers = (
        TcpServer::start(&host.outside, (Ipv6Addr::UNSPECIFIED, 7000)),
        UdpServer::start(&host.outside, (Ipv6Addr::UNSPECIFIED, 7001)),
        TcpServer::start(&host.ns, (Ipv6Addr::UNSPECIFIED, 7002)),
        TcpServer::start(&a.ns, (Ipv6Addr::UNSPECIFIED, 7003)),
    );
    assert_ping(&a.ns, OUTSIDE, 63);
    assert_ping(&a.ns, GATEWAY, 63);
    let mut out = TcpClient::connect(&a.ns, (OUTSIDE, 7000));
    assert_eq!(out.seen_as.ip(), IpAddr::from(OURS));
    out.echo("out");
    assert_eq!(udp_ask(&a.ns, (OUTSIDE, 7001)).map(|seen| seen.ip()), Some(OURS.into()));
    // To the host by the gateway's address, and back.
    let own = address(&host, &a);
    let gateway = Ipv6Addr::from_bits(own.to_bits() - 1);
    assert_ping(&a.ns, gateway, 64);
    assert_eq!(TcpClient::connect(&a.ns, (gateway, 7002)).seen_as.ip(), IpAddr::from(own));
    assert_ping(&host.ns, own, 64);
    TcpClient::connect(&host.ns, (own, 7003)).echo("the host");
}

/// Rows: netavark `port forwarding, IPv6, dual stack`.
#[test]
#[ignore = "needs root"]
fn ports_are_published_in_both_families() {
    let mut host = with_a_way_out();
    host.network("app", "--ipv6");
    host.network("plain", "--subnet 10.92.0.0/24");
    let web = host.sandbox("web", "--network app -p 8080:80 -p 5353:53/udp -p [::]:8081:80");
    let _servers = [
        TcpServer::start(&web.ns, (Ipv4Addr::UNSPECIFIED, 80)),
        TcpServer::start(&web.ns, (address(&host, &web), 80)),
    ];
    let _udp = UdpServer::start(&web.ns, (address(&host, &web), 53));
    let outside = |to: IpAddr, port| TcpClient::try_connect(&host.outside, (to, port));
    let seen = |to: IpAddr, port| outside(to, port).map(|client| client.seen_as.ip()).ok();
    let (v4, v6) = (IpAddr::from(HOST_IP), IpAddr::from(OURS));
    assert_eq!((seen(v4, 8080), seen(v6, 8080)), (Some(GATEWAY.into()), Some(OUTSIDE.into())));
    assert_eq!((seen(v4, 8081), seen(v6, 8081)), (None, Some(OUTSIDE.into())));
    assert_eq!(udp_ask(&host.outside, (v6, 5353)).map(|seen| seen.ip()), Some(OUTSIDE.into()));
    // The host's own programs, and nobody else's, have the ports.
    for to in [IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()] {
        TcpClient::connect(&host.ns, (to, 8080)).echo("the host itself");
        assert!(host.ns.enter(|| std::net::TcpListener::bind((to, 8080))).is_err(), "{to}");
    }
    let shown = |host: &Host| -> Vec<String> {
        let row = |row: &Value| format!("{} {}", row["host_ip"], row["host_port"]);
        rows(&host.json(["port", "ls"])).iter().map(row).collect()
    };
    let all = ["\"0.0.0.0\" 8080", "\"::\" 8080", "\"::\" 8081", "\"0.0.0.0\" 5353", "\"::\" 5353"];
    assert_eq!(shown(&host), all);
    let rules = host.json(["nat", "rules"]).to_string();
    assert!(rules.contains("tcp *:8080") && rules.contains("tcp [::]:8080"), "{rules}");

    // One without IPv6 is refused there, by name or by the host.
    let refused = |code, words: &[&str], line: String| {
        host.refused(code, words, line.split_whitespace());
    };
    let create = |flags: &str| format!("sandbox create {} {flags}", host.name("no"));
    refused(2, &["has no IPv6 address", "--ipv6"], create("--network plain -p [::]:9090:80"));
    refused(4, &["8080/tcp", "published"], create("--network app -p [::]:8080:80"));
    refused(4, &["8081/tcp", "published"], create("--network plain -p 8081:80"));
    let plain = host.sandbox("plain", "--network plain -p 9090:80");
    let _server = TcpServer::start(&plain.ns, (Ipv4Addr::UNSPECIFIED, 80));
    assert_eq!(seen(v4, 9090), Some(GATEWAY.into()));
    assert_eq!(seen(v6, 9090), None);
    // With IPv6 it is there, as soon as it is connected.
    host.ok(["network", "connect", "app", &plain.name]);
    let added = one(&host.json(["sandbox", "inspect", &plain.name]));
    let its: Ipv6Addr = added["endpoints"][1]["ipv6"].as_str().unwrap().parse().unwrap();
    let _server6 = TcpServer::start(&plain.ns, (its, 80));
    assert_eq!(seen(v6, 9090), Some(OUTSIDE.into()));
    TcpClient::connect(&host.ns, (Ipv6Addr::LOCALHOST, 9090)).echo("the host itself");

    // What runs goes on, and the other half goes with its mapping.
    let mut running = outside(v6, 8080).unwrap();
    running.echo("before");
    let before = shown(&host);
    host.stop(Signal::SIGKILL);
    host.launch();
    running.try_echo("after", GOES_ON).unwrap();
    assert_eq!(shown(&host), before);
    TcpClient::connect(&host.ns, (Ipv6Addr::LOCALHOST, 8080)).echo("the host itself");
    host.ok(["port", "unpublish", &web.name, "8080:80"]);
    let gone = |to: IpAddr| TcpClient::try_connect(&host.outside, (to, 8080)).is_err();
    assert!(gone(v4) && gone(v6));
    assert!(running.try_echo("gone", Duration::from_secs(1)).is_err());
    assert_eq!(TcpClient::connect(&host.outside, (v6, 8081)).seen_as.ip(), IpAddr::from(OUTSIDE));
}

/// Each row as IPv4 has it: networks are apart but for what they publish, `icc=false` holds, and a published port
/// is reached by the host's address from everywhere, its own sandbox included.
#[test]
#[ignore = "needs root"]
fn networks_are_apart_and_hairpins_join_them_in_ipv6() {
    let host = with_a_way_out();
    host.network("app", "--ipv6");
    host.network("other", "--ipv6");
    host.network("alone", "--ipv6 -o icc=false");
    let web = host.sandbox("web", "--network app -p 8080:80 -p 5353:53/udp");
    let neighbor = host.sandbox("neighbor", "--network app");
    let stranger = host.sandbox("stranger", "--network other");
    let [alone, beside] = ["alone", "beside"].map(|name| host.sandbox(name, "--network alone"));
    let to = address(&host, &web);
    let _servers = (TcpServer::start(&web.ns, (to, 80)), UdpServer::start(&web.ns, (to, 53)));
    for (from, near) in [(&neighbor, true), (&stranger, false)] {
        let asked = from.ns.run(&format!("ping -n -c 1 -W 1 {to}"));
        assert_eq!(asked.code == 0, near, "{asked}");
        assert_eq!(udp_ask(&from.ns, (to, 53)).is_some(), near, "{}", from.name);
    }
    let count = |sandbox: &Sandbox, reason: &str| {
        let rows = rows(&host.json(["drops", "--sandbox", &sandbox.name]));
        let row = rows.into_iter().find(|row| row["reason"] == reason);
        row.map_or(0, |row| row["count"].as_u64().unwrap())
    };
    assert!(count(&stranger, "inter_network") > 0);
    // Who knows its neighbor all the same, without having asked for it.
    let shown = one(&host.json(["sandbox", "inspect", &beside.name]));
    let (to_it, mac) = (address(&host, &beside), shown["endpoints"][0]["mac"].as_str().unwrap());
    alone.ns.ip(&format!("neighbor replace {to_it} lladdr {mac} dev eth0"));
    let asked = alone.ns.run(&format!("ping -n -c 1 -W 1 {to_it}"));
    assert_ne!(asked.code, 0, "{asked}");
    assert!(count(&alone, "icc_disabled") > 0);
    assert_ping(&alone.ns, OUTSIDE, 63);
    for from in [&neighbor, &stranger, &alone, &web] {
        let mut client = TcpClient::connect(&from.ns, (OURS, 8080));
        assert_eq!(client.seen_as.ip(), IpAddr::from(OURS), "{}", from.name);
        client.echo("round the corner");
        let seen = udp_ask(&from.ns, (OURS, 5353));
        assert_eq!(seen.map(|seen| seen.ip()), Some(OURS.into()), "{}", from.name);
    }
}

#[test]
#[ignore = "needs root"]
fn a_dedicated_uplink_has_both_families() {
    let mut host = prepared(Uplink::Dedicated);
    host.launch();
    let line = "uplink add up0 --mode dedicated --address 192.0.2.2/24 --address 2001:db8::2/64 \
                --gateway 192.0.2.1 --gateway 2001:db8::1";
    host.ok(line.split_whitespace());
    let shown = || rows(&host.json(["uplink", "ls"]))[0].clone();
    assert_eq!(shown()["addresses"], json!(["192.0.2.2/24", "2001:db8::2/64"]));
    assert_eq!(
        (&shown()["gateway"], &shown()["gateway6"]),
        (&json!("192.0.2.1"), &json!("2001:db8::1"))
    );
    host.ok("route add 2001:db8:99::/48 via 2001:db8::9".split_whitespace());
    let refused = |words: &[&str], line: &str| host.refused(2, words, line.split_whitespace());
    refused(&["not of the same family"], "route add 2001:db8:98::/48 via 192.0.2.1");
    refused(&["no uplink has 2001:db8:1::9"], "route add 2001:db8:98::/48 via 2001:db8:1::9");
    let routes = |host: &Host| -> Vec<String> {
        let all = rows(&host.json(["route", "ls"]));
        let out = all.iter().filter(|route| route["uplink"] == "up0");
        out.map(|route| format!("{} {}", route["destination"], route["via"])).collect()
    };
    let expected = [
        "\"192.0.2.0/24\" null",
        "\"2001:db8::/64\" null",
        "\"2001:db8:99::/48\" \"2001:db8::9\"",
        "\"0.0.0.0/0\" \"192.0.2.1\"",
        "\"::/0\" \"2001:db8::1\"",
    ];
    assert_eq!(routes(&host), expected);
    host.stop(Signal::SIGKILL);
    host.launch();
    assert_eq!(routes(&host), expected);
    host.ok("route rm 2001:db8:99::/48".split_whitespace());
    host.ok(["uplink", "rm", "up0"]);
}
