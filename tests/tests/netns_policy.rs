//! Policies from outside: who reaches a published port, a neighbor and the world, by rules that come and go under
//! running connections.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::host::family::ANY;
use tests::host::namespace::Namespace;
use tests::host::traffic::{TcpClient, TcpServer, UdpServer, ping, udp_ask, uninterrupted};
use tests::host::{BOTH, Family, Host, Sandbox, Uplink, WIRE, one, rows};

/// Another client outside.
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77);

/// For what must not come: beside it the same takes a few milliseconds.
const IN_VAIN: Duration = Duration::from_secs(1);

/// Adds a rule; its number.
fn add(host: &Host, network: &str, line: &str) -> String {
    let args = ["policy", "add", network].into_iter().chain(line.split_whitespace());
    one(&host.json(args))["id"].to_string()
}

fn remove(host: &Host, network: &str, id: &str) {
    host.ok(["policy", "rm", network, id]);
}

fn rules(host: &Host, network: &str) -> Vec<Value> {
    rows(&host.json(["policy", "ls", "--network", network]))
}

/// How often a rule decided.
fn packets(host: &Host, network: &str, id: &str) -> u64 {
    let rules = rules(host, network);
    let rule = rules.iter().find(|rule| rule["id"].as_u64() == id.parse().ok());
    rule.unwrap_or_else(|| panic!("no rule {id}: {rules:?}"))["packets"].as_u64().unwrap()
}

fn dropped(host: &Host) -> u64 {
    let drops = rows(&host.json(["drops"]));
    let policy = drops.iter().find(|row| row["reason"] == "policy");
    policy.map_or(0, |row| row["count"].as_u64().unwrap())
}

fn try_tcp(ns: &Namespace, to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
    let to = to.into();
    ns.enter(|| TcpStream::connect_timeout(&to, IN_VAIN))
}

fn assert_no_tcp(ns: &Namespace, to: impl Into<SocketAddr>) {
    let error = try_tcp(ns, to).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
}

/// A datagram from this very address is answered.
fn is_answered(ns: &Namespace, from: IpAddr, to: (IpAddr, u16)) -> bool {
    let socket = ns.enter(|| UdpSocket::bind((from, 0))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let mut buffer = [0; 256];
    (0..3).any(|_| {
        socket.send_to(b"question", to).unwrap();
        uninterrupted(|| socket.recv_from(&mut buffer)).is_ok()
    })
}

/// What holds of a published port under rules about one client, in one family.
struct Published {
    family: Family,
    denied: TcpClient,
    other: TcpClient,
    /// The numbers of the rules.
    tcp: String,
    udp: String,
}

/// Rules about the client outside, one after the other.
fn denied_by_rules(host: &Host, family: Family) -> Published {
    let (client, published) = (family.outside(), family.host());
    let another = family.pick([OTHER.into(), OTHER6.into()]);
    let mut denied = TcpClient::connect(&host.outside, (published, 8080));
    let mut other = TcpClient::connect(&host.outside, (published, 8081));
    assert_eq!(denied.seen_as.ip(), client, "the client's real address");
    denied.echo("before");
    other.echo("before");

    let tcp = add(host, "app", &format!("--deny --src {client} --proto tcp --port 80"));
    assert!(denied.try_echo("after", IN_VAIN).is_err(), "a rule ends the flows it denies");
    other.echo("another port");
    assert_no_tcp(&host.outside, (published, 8080));
    let counted = packets(host, "app", &tcp);
    assert!(counted > 0 && dropped(host) >= counted, "{counted}");

    // By the published port, and by who asks.
    assert!(is_answered(&host.outside, client, (published, 5353)));
    let udp = add(host, "app", &format!("--deny --in --src {client} --host-port 5353"));
    assert!(!is_answered(&host.outside, client, (published, 5353)));
    assert!(is_answered(&host.outside, another, (published, 5353)));

    // The first that matches decides.
    let first = add(host, "app", &format!("--allow --src {client} --port 80 --position 1"));
    let order = order(host);
    assert_eq!(
        (order.first(), &order[order.len() - 2..]),
        (Some(&first), &[tcp.clone(), udp.clone()][..])
    );
    let mut allowed = TcpClient::connect(&host.outside, (published, 8080));
    allowed.echo("allowed");
    assert_eq!(packets(host, "app", &first), 1, "one connection");
    remove(host, "app", &first);
    assert!(allowed.try_echo("after", IN_VAIN).is_err(), "nor is what it let in");
    Published { family, denied, other, tcp, udp }
}

/// The numbers of the rules, as they are asked.
fn order(host: &Host) -> Vec<String> {
    rules(host, "app").iter().map(|rule| rule["id"].to_string()).collect()
}

fn a_published_port(uplink: Uplink, signal: Signal) {
    let mut host = Host::start_dual(uplink);
    host.outside.ip(&format!("address add {OTHER}/24 dev {WIRE}"));
    // Not preferred: nobody speaks from it who is not told to.
    host.outside.ip(&format!("address add {OTHER6}/64 dev {WIRE} nodad preferred_lft 0"));
    let web = host.sandbox("web", "--network app -p 8080:80 -p 8081:81 -p 5353:53/udp");
    let _servers = [80, 81].map(|port| TcpServer::start(&web.ns, (ANY, port)));
    let _server = UdpServer::start(&web.ns, (ANY, 53));
    let mut published = BOTH.map(|family| denied_by_rules(&host, family));
    let all: Vec<_> = published.iter().flat_map(|it| [it.tcp.clone(), it.udp.clone()]).collect();
    // A rule about one family is none about the other.
    assert_eq!(order(&host), all);

    // Delayed acknowledgments must not meet the host while no daemon runs.
    std::thread::sleep(Duration::from_millis(300));
    host.stop(signal);
    host.launch();
    assert_eq!(order(&host), all, "rules outlive the daemon");
    for Published { family, denied, other, tcp, udp } in &mut published {
        let (client, at) = (family.outside(), family.host());
        assert!(denied.try_echo("after", IN_VAIN).is_err(), "{family}");
        assert_no_tcp(&host.outside, (at, 8080));
        assert!(!is_answered(&host.outside, client, (at, 5353)), "{family}");
        other.echo("over the restart");
        remove(&host, "app", tcp);
        remove(&host, "app", udp);
        TcpClient::connect(&host.outside, (at, 8080)).echo("again");
        assert!(is_answered(&host.outside, client, (at, 5353)), "{family}");
    }
    assert!(rules(&host, "app").is_empty());
}

#[test]
#[ignore = "needs root"]
fn a_client_is_kept_from_a_published_port_by_its_own_address() {
    a_published_port(Uplink::Shared, Signal::SIGTERM);
}

#[test]
#[ignore = "needs root"]
fn a_client_is_kept_from_a_published_port_of_a_dedicated_uplink() {
    a_published_port(Uplink::Dedicated, Signal::SIGKILL);
}

#[test]
#[ignore = "needs root"]
fn neighbors_are_kept_apart_in_both_families() {
    let host = Host::start_dual(Uplink::None);
    let [a, b, c] = ["a", "b", "c"].map(|name| host.sandbox(name, "--network app"));
    let (of_a, of_b) = (BOTH.map(|family| family.of(&a)), BOTH.map(|family| family.of(&b)));
    let _servers = [&a, &b].map(|at| TcpServer::start(&at.ns, (ANY, 80)));
    let connect =
        |from: &Sandbox, to: &IpAddr| TcpClient::connect(&from.ns, SocketAddr::new(*to, 80));
    let mut ended: Vec<TcpClient> = of_b.iter().map(|to| connect(&a, to)).collect();
    let mut other: Vec<TcpClient> = of_b.iter().map(|to| connect(&c, to)).collect();
    let mut back: Vec<TcpClient> = of_a.iter().map(|to| connect(&c, to)).collect();
    for client in ended.iter_mut().chain(&mut other).chain(&mut back) {
        client.echo("before");
    }
    let line = format!("--deny --src sandbox:{} --dst sandbox:{}", a.name, b.name);
    let rule = add(&host, "app", &line);
    for client in &mut ended {
        assert!(client.try_echo("after", IN_VAIN).is_err(), "a rule ends the flows it denies");
    }
    for client in other.iter_mut().chain(&mut back) {
        client.echo("others go on");
    }
    for to in &of_b {
        assert_no_tcp(&a.ns, SocketAddr::new(*to, 80));
        assert_eq!(ping(&a.ns, *to, 1).received, 0);
        assert_eq!(ping(&c.ns, *to, 1).received, 1);
    }
    // Who may not begin may answer.
    for to in &of_a {
        connect(&b, to).echo("the other way round");
        assert_eq!(ping(&b.ns, *to, 1).received, 1);
    }
    assert!(packets(&host, "app", &rule) >= 4);
    remove(&host, "app", &rule);
    for to in &of_b {
        connect(&a, to).echo("again");
        assert_eq!(ping(&a.ns, *to, 1).received, 1);
    }
}

#[test]
#[ignore = "needs root"]
fn what_leaves_a_network_is_judged_and_traced() {
    let host = Host::start_dual(Uplink::Shared);
    host.network("web", "--subnet 10.91.2.0/24 --subnet fd00:91:2::/64");
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network app"));
    let w = host.sandbox("w", "--network web -p 8080:80");
    let _servers = [7000, 7001].map(|port| UdpServer::start(&host.outside, (ANY, port)));
    let _server = TcpServer::start(&w.ns, (ANY, 80));
    for family in BOTH {
        let (outside, published) = (family.outside(), family.host());
        let there = family.pick(["192.0.2.0/24", "2001:db8::/64"]);
        let line =
            format!("--deny --out --src sandbox:{} --dst {there} --proto udp --port 7000", a.name);
        let rule = add(&host, "app", &line);
        assert_eq!(udp_ask(&a.ns, (outside, 7000)), None);
        assert!(udp_ask(&a.ns, (outside, 7001)).is_some());
        assert!(udp_ask(&b.ns, (outside, 7000)).is_some());
        // Between networks, by a published port.
        TcpClient::connect(&a.ns, (published, 8080)).echo("before");
        let between = add(&host, "web", "--deny --src network:app");
        assert_no_tcp(&a.ns, (published, 8080));
        TcpClient::connect(&host.outside, (published, 8080)).echo("from elsewhere");
        assert!(packets(&host, "web", &between) > 0);
        remove(&host, "web", &between);

        let end = |ip, port| SocketAddr::new(ip, port);
        let packet = format!("udp {} > {}", end(family.of(&a), 4000), end(outside, 7000));
        let shown = host.ok(["trace", "--sandbox", &a.name, "--", &packet]);
        assert!(shown.contains(&format!("{rule} deny direction out")), "{shown}");
    }
    // A sandbox that comes again under its name is the same to the rules.
    host.ok(["sandbox", "rm", &a.name]);
    let a = host.sandbox("a", "--network app --ip 10.91.1.99 --ip6 fd00:91::99");
    for family in BOTH {
        assert_eq!(udp_ask(&a.ns, (family.outside(), 7000)), None);
        assert!(udp_ask(&a.ns, (family.outside(), 7001)).is_some());
    }
}

#[test]
#[ignore = "needs root"]
fn wrong_rules_are_refused() {
    let host = Host::start(Uplink::None);
    host.network("app", "--subnet 10.91.1.0/24");
    let refused = |code, word: &str, line: &str| {
        let args = ["policy"].into_iter().chain(line.split_whitespace());
        host.refused(code, &[word], args);
    };
    refused(3, "no such network", "add nowhere --deny");
    refused(3, "no such network", "add app --deny --src network:nowhere");
    refused(3, "no such sandbox", "add app --deny --src sandbox:nobody");
    refused(2, "has no policy", "add host --deny");
    refused(2, "two IP versions", "add app --deny --src 10.0.0.0/8 --dst fd00::/8");
    refused(2, "has no ports", "add app --deny --proto icmp --port 80");
    refused(2, "position 3: there are 0 rules", "add app --deny --position 3");
    refused(2, "counted from 1", "add app --deny --position 0");
    refused(2, "write 10.0.0.0/8", "add app --deny --src 10.0.0.1/8");
    refused(3, "no rule 7", "rm app 7");
    refused(3, "no such network", "ls --network nowhere");
    let id = add(&host, "app", "--deny --in --src 10.0.0.0/8 --proto sctp --port 36412-36413");
    let rule = one(&host.json(["policy", "ls"]));
    assert_eq!(rule["network"], "app");
    assert_eq!((&rule["position"], &rule["packets"]), (&1.into(), &0.into()));
    assert_eq!((&rule["action"], &rule["direction"]), (&"deny".into(), &"in".into()));
    assert_eq!((&rule["src"], &rule["dst"]), (&"10.0.0.0/8".into(), &Value::Null));
    assert_eq!((&rule["proto"], &rule["port"]), (&"sctp".into(), &"36412-36413".into()));
    remove(&host, "app", &id);
    assert!(rows(&host.json(["policy", "ls"])).is_empty());
    // With its network its rules go.
    add(&host, "app", "--deny");
    host.ok(["network", "rm", "app"]);
    host.network("app", "--subnet 10.91.1.0/24");
    assert!(rows(&host.json(["policy", "ls"])).is_empty());
    for _ in 0..256 {
        add(&host, "app", "--allow");
    }
    refused(4, "as many as a network may have", "add app --deny");
}
