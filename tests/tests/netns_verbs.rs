//! The verbs of `vswitchctl`, each with something to show or to change; in both families where there is something
//! of either.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::host::family::ANY;
use tests::host::inventory::Inventory;
use tests::host::namespace::{Namespace, Process};
use tests::host::traffic::{TcpClient, TcpServer, assert_ping, ping, udp_ask};
use tests::host::{BOTH, Host, Sandbox, Uplink, WIRE, eventually, one, ran, rows};

/// Another network with both families.
const OTHER: &str = "--subnet 10.91.2.0/24 --subnet fd00:91:2::/64";

fn count_of(host: &Host, sandbox: &Sandbox, reason: &str) -> u64 {
    let drops = rows(&host.json(["drops", "--sandbox", &sandbox.name]));
    let found = drops.iter().find(|drop| drop["reason"] == reason);
    found.map_or(0, |drop| drop["count"].as_u64().unwrap())
}

#[test]
#[ignore = "needs root"]
fn run_and_exec_pass_exit_codes_on() {
    let host = Host::start_dual(Uplink::None);
    let a = host.sandbox("a", "--network app");
    for code in [0, 1, 7, 200] {
        let script = format!("exit {code}");
        assert_eq!(host.ctl(["exec", &a.name, "--", "sh", "-c", &script]).code, code);
        let name = host.name("once");
        let args = ["run", "--name", &name, "--network", "app", "--", "sh", "-c", &script];
        assert_eq!(host.ctl(args).code, code);
        assert_eq!(host.ctl(["sandbox", "inspect", &name]).code, 3, "it was removed");
    }
    for program in ["no-such-program", ""] {
        let quoted = format!("{program:?}");
        host.refused(127, &["command", &quoted], ["exec", &a.name, "--", program]);
    }
    assert_eq!(host.ctl(["run", "--name", &host.name("x"), "--", "no-such-program"]).code, 127);
    let killed = host.ctl(["run", "--name", &host.name("x"), "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(killed.code, 143, "{killed}");
    // It really is inside.
    let shown = host.ok(["exec", &a.name, "--", "ip", "-o", "address", "show", "eth0"]);
    for family in BOTH {
        assert!(shown.contains(&family.of(&a).to_string()), "{shown}");
    }
    let line = format!(
        "run --name {} --network app --ip 10.91.1.99 --ip6 fd00:91::99 -- ip -o a",
        host.name("once")
    );
    let shown = host.ok(line.split(' '));
    assert!(shown.contains("10.91.1.99/24") && shown.contains("fd00:91::99/64"), "{shown}");
}

#[test]
#[ignore = "needs root"]
fn run_ends_with_its_client() {
    let host = Host::start_dual(Uplink::None);
    let name = host.name("once");
    let mut command = host.ctl_command(["run", "--name", &name, "--", "sleep", "600"]);
    let mut run = Process::start(&mut command);
    let is_there = || host.ctl(["sandbox", "inspect", &name]).code == 0;
    eventually(Duration::from_secs(5), "it is there", is_there);
    std::thread::sleep(Duration::from_millis(200));
    run.signal(Signal::SIGTERM);
    assert_eq!(run.wait(Duration::from_secs(5)).code(), Some(143));
    assert!(!is_there());
}

/// Rows: netavark `static MAC`; moby `TestGatewaySelection`.
#[test]
#[ignore = "needs root"]
fn a_sandbox_is_wired_as_told() {
    let host = Host::start_dual(Uplink::None);
    let a =
        host.sandbox("a", "--network app --ip 10.91.1.9 --ip6 fd00:91::9 --mac 02:00:00:00:00:09");
    let b = host.sandbox("b", "--network app --network bridge --alias db");
    let link = a.ns.ip("-o link show eth0");
    assert!(link.contains("02:00:00:00:00:09") && link.contains("mtu 1500"), "{link}");
    assert!(a.ns.ip("-o -4 address show eth0").contains("10.91.1.9/24"));
    assert!(a.ns.ip("-o -6 address show eth0").contains("fd00:91::9/64"));
    assert!(a.ns.ip("-o link show lo").contains("UP"));
    assert!(a.ns.ip("route show default").starts_with("default via 10.91.1.1 dev eth0"));
    assert!(a.ns.ip("-6 route show default").starts_with("default via fd00:91::1 dev eth0"));
    // MACs come from the address, as Docker has it.
    let shown = one(&host.json(["sandbox", "inspect", &b.name]));
    let octets = b.ip.octets();
    let mac =
        format!("02:42:{:02x}:{:02x}:{:02x}:{:02x}", octets[0], octets[1], octets[2], octets[3]);
    assert_eq!(shown["endpoints"][0]["mac"], mac.as_str(), "{shown}");
    assert!(b.ns.ip("-o link show eth0").contains(&mac));
    assert!(b.ns.ip("-o -4 address show eth1").contains("172.30."));
    for (flags, gateway) in [("", "10.91.1.1"), ("-6", "fd00:91::1")] {
        let routes = b.ns.ip(&format!("{flags} route show default"));
        assert!(routes.starts_with(&format!("default via {gateway} dev eth0")), "{routes}");
        assert_eq!(routes.lines().count(), 1, "{routes}");
    }
    let network = one(&host.json(["network", "inspect", "app"]));
    assert_eq!((&network["driver"], &network["internal"]), (&"bridge".into(), &false.into()));
    assert_eq!(network["subnets"][0]["gateway"], "10.91.1.1");
    assert_eq!(network["subnets"][1]["gateway"], "fd00:91::1");
    assert_eq!(rows(&network["endpoints"]).len(), 2, "{network}");
}

#[test]
#[ignore = "needs root"]
fn none_has_only_lo_and_host_is_the_host() {
    let host = Host::start_dual(Uplink::Shared);
    let none = host.sandbox("none", "--network none");
    assert_eq!(none.ns.ip("-o link show").lines().count(), 1);
    assert_ping(&none.ns, Ipv4Addr::LOCALHOST, 64);
    let name = host.name("hosted");
    host.ok(["sandbox", "create", &name, "--network", "host"]);
    let links = host.ok(["exec", &name, "--", "ip", "-o", "link", "show"]);
    assert!(links.contains(WIRE), "{links}");
    host.ok(["sandbox", "rm", &name, &none.name]);
    assert!(host.ns.exists() && !none.ns.exists());
    for family in BOTH {
        assert_ping(&host.ns, family.outside(), 64);
    }
}

/// Rows: netavark `internal network`.
#[test]
#[ignore = "needs root"]
fn an_internal_network_has_no_way_out() {
    let host = Host::start_dual(Uplink::Shared);
    host.network("back", &format!("--internal {OTHER}"));
    let a = host.sandbox("a", "--network back");
    let b = host.sandbox("b", "--network back");
    let both = host.sandbox("both", "--network back --network app");
    let subnets = one(&host.json(["network", "inspect", "back"]))["subnets"].clone();
    for (family, subnet) in BOTH.into_iter().zip(rows(&subnets)) {
        let flag = family.pick(["-4", "-6"]);
        assert_ping(&a.ns, family.of(&b), 64);
        assert_eq!(a.ns.ip(&format!("{flag} route show default")), "");
        assert_ping(&both.ns, family.outside(), 63);
        // Not even for one who makes a route.
        if let Some(gateway) = subnet["gateway"].as_str() {
            a.ns.ip(&format!("{flag} route add default via {gateway}"));
            assert_eq!(ping(&a.ns, family.outside(), 2).received, 0);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn networks_are_connected_and_disconnected_live() {
    let host = Host::start_dual(Uplink::None);
    host.network("other", OTHER);
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app");
    let far = host.sandbox("far", "--network other");
    let _server = TcpServer::start(&b.ns, (ANY, 7000));
    let mut kept = BOTH.map(|family| TcpClient::connect(&a.ns, (family.of(&b), 7000)));
    let reaches = || BOTH.map(|family| ping(&a.ns, family.of(&far), 1).received);
    assert_eq!(reaches(), [0, 0]);
    let line = format!("network connect other {} --ip 10.91.2.200 --ip6 fd00:91:2::200", a.name);
    host.ok(line.split(' '));
    assert!(a.ns.ip("-o -4 address show eth1").contains("10.91.2.200/24"));
    assert!(a.ns.ip("-o -6 address show eth1").contains("fd00:91:2::200/64"));
    for family in BOTH {
        assert_ping(&a.ns, family.of(&far), 64);
    }
    assert_ping(&far.ns, Ipv4Addr::new(10, 91, 2, 200), 64);
    assert_ping(&far.ns, Ipv6Addr::new(0xfd00, 0x91, 2, 0, 0, 0, 0, 0x200), 64);
    kept.iter_mut().for_each(|connection| connection.echo("undisturbed"));
    host.ok(["network", "disconnect", "other", &a.name]);
    assert!(!a.ns.ip("-o link show").contains("eth1"));
    assert_eq!(reaches(), [0, 0]);
    kept.iter_mut().for_each(|connection| connection.echo("undisturbed"));
    // Only networks that nobody is connected to are pruned.
    host.network("unused", "");
    host.ok(["network", "prune"]);
    assert_eq!(host.ctl(["network", "inspect", "unused"]).code, 3);
    for network in ["app", "other", "bridge"] {
        host.ok(["network", "inspect", network]);
    }
}

#[test]
#[ignore = "needs root"]
fn an_adopted_namespace_survives() {
    let host = Host::start_dual(Uplink::None);
    let foreign = Namespace::create(&host.name("foreign"));
    let ns = foreign.handle();
    ns.enable_ipv6();
    ns.ip("link add own0 type bridge");
    ns.ip("address add 10.94.0.1/24 dev own0");
    ns.ip("-6 address add fd00:94::1/64 dev own0 nodad");
    let before = Inventory::of_namespace(&ns);
    let b = host.sandbox("b", "--network app");
    let a = host.sandbox("a", &format!("--network app --netns {}", ns.path().display()));
    let reach_each_other = |a: &Sandbox| {
        for family in BOTH {
            assert_ping(&ns, family.of(&b), 64);
            assert_ping(&b.ns, family.of(a), 64);
        }
    };
    reach_each_other(&a);
    host.ok(["sandbox", "rm", &a.name]);
    Inventory::of_namespace(&ns).assert_same(&before, "an adopted sandbox");

    let sleeper = Process::start(ns.command("sleep").arg("600"));
    // nsenter is in the namespace only when it has become the program.
    eventually(Duration::from_secs(5), "it sleeps", || {
        let line = std::fs::read_to_string(format!("/proc/{}/comm", sleeper.id()));
        line.is_ok_and(|line| line.trim() == "sleep")
    });
    let flags = format!("--network app --netns pid:{}", sleeper.id());
    let a = host.sandbox("a", &flags);
    reach_each_other(&a);
    host.ok(["sandbox", "rm", &a.name]);
    Inventory::of_namespace(&ns).assert_same(&before, "a sandbox adopted by process");
}

#[test]
#[ignore = "needs root"]
fn a_tun_with_the_name_stays_and_a_labelled_tap_goes() {
    let mut host = Host::start_dual(Uplink::None);
    let [tun, tap] = ["tun", "tap"].map(|name| Namespace::create(&host.name(name)));
    for (name, lent) in [("a", &tun), ("b", &tap)] {
        host.sandbox(name, &format!("--network app --netns {}", lent.handle().path().display()));
    }
    let label = ["link", "set", "eth0", "alias", "a label"];
    let _ = ran(tap.handle().command("ip").args(label)).succeeded();
    host.stop(Signal::SIGKILL);
    tun.handle().ip("link delete eth0");
    tun.handle().ip("tuntap add dev eth0 mode tun");
    host.purge_offline();
    assert!(tun.handle().ip("-o link show").contains("eth0"));
    assert!(!tap.handle().ip("-o link show").contains("eth0"));
}

/// Pings until the capture has enough, and returns what tcpdump reads of it.
fn captured(host: &Host, args: &[&str], from: &Sandbox, to: IpAddr) -> String {
    let mut command = host.ctl_command(["capture"].iter().chain(args));
    let mut capture = Process::start(command.stdout(Stdio::piped()));
    let mut tcpdump = Command::new("tcpdump");
    tcpdump.args(["-n", "-e", "-r", "-"]).stdin(capture.stdout()).stdout(Stdio::piped());
    let tcpdump = Process::start(tcpdump.stderr(Stdio::null()));
    let mut pings = 0;
    while capture.ended().is_none() {
        assert_eq!(ping(&from.ns, to, 1).received, 1);
        pings += 1;
        assert!(pings < 100, "the capture does not end");
    }
    tcpdump.output(Duration::from_secs(5))
}

#[test]
#[ignore = "needs root"]
fn captures_show_frames_to_tcpdump() {
    let host = Host::start_dual(Uplink::Shared);
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app");
    for family in BOTH {
        let (own, near, far) = (family.of(&a), family.of(&b), family.outside());
        // Neighbors are asked for in ICMPv6 too, in shorter frames.
        let (filter, protocol) =
            family.pick([("icmp", "ICMP"), ("icmp6 and greater 100 and not multicast", "ICMP6,")]);
        for to in [near, far] {
            assert_ping(&a.ns, to, if to == near { 64 } else { 63 });
        }
        let seen = captured(&host, &["--sandbox", &a.name, "-w", "-", "-c", "4", filter], &a, near);
        assert_eq!(seen.lines().count(), 4, "{seen}");
        assert!(seen.contains(&format!("{own} > {near}: {protocol} echo request")), "{seen}");
        assert!(seen.contains(&format!("{near} > {own}: {protocol} echo reply")), "{seen}");
        let seen = captured(&host, &["--uplink", WIRE, "-w", "-", "-c", "2", filter], &a, far);
        let request = format!("{} > {far}: {protocol} echo request", family.host());
        assert!(seen.contains(&request), "{seen}");
        let seen = captured(&host, &["--network", "app", "-w", "-", "-c", "2", filter], &a, near);
        assert_eq!(seen.lines().count(), 2, "{seen}");
        // Into a file, and as lines.
        let file = host.path(&format!("{family}.pcapng"));
        let path = file.to_str().unwrap();
        captured(&host, &["--sandbox", &a.name, "-w", path, "-c", "2", filter], &a, near);
        let read = ran(Command::new("tcpdump").args(["-n", "-r", path])).succeeded();
        assert_eq!(read.stdout.lines().count(), 2, "{read}");
        let mut lines = host.ctl_command(["capture", "--sandbox", &a.name, "-c", "2", filter]);
        let mut capture = Process::start(lines.stdout(Stdio::piped()));
        for _ in 0..100 {
            if capture.ended().is_some() {
                break;
            }
            assert_eq!(ping(&a.ns, near, 1).received, 1);
        }
        let lines = capture.output(Duration::from_secs(5));
        assert_eq!(lines.lines().count(), 2, "{lines}");
    }
}

/// Rows: VPP `test_l2_fib: program, delete, learn, flush of interface, domain, all; learn events, maximum`.
#[test]
#[ignore = "needs root"]
fn the_fdb_is_shown_and_changed() {
    let host = Host::start(Uplink::None);
    host.network("app", "--subnet 10.91.1.0/24 -o spoof_check=false");
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app");
    let entry = |mac: &str| {
        let entries = rows(&host.json(["fdb", "show", "--network", "app"]));
        entries.into_iter().find(|entry| entry["mac"] == mac)
    };
    let mac = one(&host.json(["sandbox", "inspect", &a.name]))["endpoints"][0]["mac"].clone();
    let own = entry(mac.as_str().unwrap()).expect("an endpoint's MAC is known");
    assert_eq!((&own["kind"], &own["sandbox"]), (&"local".into(), &a.name.as_str().into()));

    // Something behind the endpoint with a MAC of its own is learned.
    a.ns.ip("link add m0 link eth0 address 02:00:00:00:00:0a type macvlan mode bridge");
    a.ns.ip("address add 10.91.1.200/32 dev m0");
    a.ns.ip("link set m0 up");
    a.ns.ip(&format!("route add {} dev m0 src 10.91.1.200", b.ip));
    assert_ping(&a.ns, b.ip, 64);
    let learned = entry("02:00:00:00:00:0a").expect("it was learned");
    assert_eq!(
        (&learned["kind"], &learned["sandbox"]),
        (&"learned".into(), &a.name.as_str().into())
    );
    // It solicits routers and multicast listeners whenever it likes.
    a.ns.ip("link set m0 down");
    let removed = host.json(["fdb", "flush", "--network", "app"]);
    assert!(removed["removed"].as_u64() > Some(0), "{removed}");
    assert_eq!(entry("02:00:00:00:00:0a"), None);
    assert!(entry(mac.as_str().unwrap()).is_some(), "flush took an endpoint's own");

    host.ok(["fdb", "add", "02:00:00:00:00:99", "--network", "app", "--sandbox", &b.name]);
    let fixed = entry("02:00:00:00:00:99").expect("it was added");
    assert_eq!((&fixed["kind"], &fixed["sandbox"]), (&"static".into(), &b.name.as_str().into()));
    host.ok(["fdb", "flush", "--network", "app"]);
    assert!(entry("02:00:00:00:00:99").is_some(), "flush took a static one");
    host.ok(["fdb", "del", "02:00:00:00:00:99", "--network", "app"]);
    assert_eq!(entry("02:00:00:00:00:99"), None);
}

/// Rows: Open vSwitch `conntrack: ct flush, flush many by port`; Linux `conntrack_dump_flush.sh`; VPP
/// `test_users_dump`; VPP `test_del_session`.
#[test]
#[ignore = "needs root"]
fn connections_are_listed_and_flushed() {
    let host = Host::start_dual(Uplink::Shared);
    host.network("other", OTHER);
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network other");
    let _server = TcpServer::start(&host.outside, (ANY, 7000));
    let _udp = tests::host::traffic::UdpServer::start(&host.outside, (ANY, 7001));
    let mut clients = BOTH.map(|family| {
        let far = family.outside();
        let clients = [&a, &b].map(|from| TcpClient::connect(&from.ns, (far, 7000)));
        assert!(udp_ask(&a.ns, (far, 7001)).is_some());
        assert_ping(&a.ns, far, 63);
        clients
    });
    clients.as_flattened_mut().iter_mut().for_each(|client| client.echo("hello"));

    let list = |flags: &str| {
        rows(&host.json(["conntrack", "list"].into_iter().chain(flags.split_whitespace())))
    };
    assert_eq!(list("").len(), 8);
    for (flags, count) in [
        ("--proto tcp", 4),
        ("--proto udp", 2),
        ("--dport 7000", 4),
        ("--dport 7002", 0),
        ("--state established", 4),
        ("--network app", 6),
        ("--network other --proto tcp", 2),
    ] {
        assert_eq!(list(flags).len(), count, "{flags}: {:?}", list(flags));
    }
    for (family, [from_a, _]) in BOTH.into_iter().zip(&clients) {
        let (source, far) = (family.of(&a), family.outside());
        let echo = family.pick(["icmp", "icmpv6"]);
        let subnet = family.pick(["10.91.1.0/24", "fd00:91::/64"]);
        for (flags, count) in [
            (format!("--src {source}"), 3),
            (format!("--src {source} --proto tcp"), 1),
            (format!("--src {subnet}"), 3),
            (format!("--dst {far}"), 4),
            (format!("--proto {echo}"), 1),
            (format!("--src {source} --sport {}", from_a.local().port()), 1),
        ] {
            assert_eq!(list(&flags).len(), count, "{flags}: {:?}", list(&flags));
        }
        let shown = list(&format!("--src {source} --proto tcp"))[0].clone();
        assert_eq!(shown["nat"], "snat");
        assert_eq!(shown["reply"]["src"], far.to_string());
        assert_eq!(shown["reply"]["dst"], family.host().to_string());
        assert_eq!(shown["reply"]["dport"], from_a.seen_as.port());
        assert!(shown["packets"][0].as_u64() >= Some(3) && shown["bytes"][1].as_u64() > Some(0));
        let echoed = list(&format!("--proto {echo}"))[0].clone();
        assert_eq!(echoed["orig"]["sport"], echoed["orig"]["dport"], "{echoed}");
    }

    let stats = one(&host.json(["conntrack", "stats"]));
    assert_eq!(stats["entries"], 8, "{stats}");
    let one_only = ["conntrack", "flush", "--src", "fd00:91::/64", "--proto", "tcp"];
    assert_eq!(host.json(one_only)["removed"], 1);
    assert_eq!(list("--src 10.91.1.0/24 --proto tcp").len(), 1);
    let flush = ["conntrack", "flush", "--network", "app", "--proto", "tcp"];
    assert_eq!(host.json(flush)["removed"], 1);
    assert_eq!(list("--network app --proto tcp").len(), 0);
    for [_, from_b] in &mut clients {
        from_b.echo("undisturbed");
    }
    host.ok(["conntrack", "flush"]);
    assert_eq!(list("").len(), 0);
}

/// Linux' `conntrack_dump_flush.sh`: what is looked at and flushed is another's, while connections come and go.
#[test]
#[ignore = "needs root"]
fn lists_and_flushes_under_load_cost_nobody_else_anything() {
    let host = Host::start_dual(Uplink::Shared);
    let [busy, flushed] = ["busy", "flushed"].map(|name| host.sandbox(name, "--network app"));
    let _server = TcpServer::start(&host.outside, (ANY, 7000));
    let (mut seen, mut gone) = (0, 0);
    for family in BOTH {
        let far = family.outside();
        let load = tests::host::load::Load::start(&busy.ns, &host.outside, &[far]);
        let of = |what: &str, sandbox: &Sandbox| {
            let source = family.of(sandbox).to_string();
            host.json(["conntrack", what, "--src", &source, "--proto", "tcp"])
        };
        for round in 0..5 {
            let mut clients: Vec<_> =
                (0..10).map(|_| TcpClient::connect(&flushed.ns, (far, 7000))).collect();
            let listed = rows(&of("list", &busy));
            let stream = listed.iter().filter(|row| row["orig"]["dport"] == 7910);
            assert_eq!(stream.count(), 1, "round {round}: {listed:?}");
            seen += listed.len();
            assert_eq!(rows(&of("list", &flushed)).len(), 10, "round {round}");
            assert_eq!(of("flush", &flushed)["removed"], 10, "round {round}");
            gone += 10;
            assert_eq!(rows(&of("list", &flushed)).len(), 0, "round {round}");
            // Nobody's any more: a segment in the middle begins nothing.
            assert!(clients[0].try_echo("gone", Duration::from_millis(20)).is_err());
        }
        // None of it failed, and it went on meanwhile.
        let window = load.watch(Duration::from_millis(300));
        assert!(window.rate > 0.0 && window.pace > 0.0, "{window:?}");
        let stats = one(&host.json(["conntrack", "stats"]));
        assert_eq!(stats["flushed"], gone, "{stats}");
    }
    println!("{seen} connections listed, {gone} flushed");
}

#[test]
#[ignore = "needs root"]
fn static_routes_lead_behind_a_router() {
    let host = Host::start_dual(Uplink::Shared);
    // A second machine behind the outside one, which the default routes do not reach.
    let far = Namespace::create(&host.name("far"));
    let far = far.handle();
    far.enable_ipv6();
    far.trust_addresses();
    let next = host.outside.clone();
    next.ip(&format!("link add far0 type veth peer name far0 netns {}", far.name()));
    next.ip("address add 192.0.2.9/24 dev up0");
    next.ip("-6 address add 2001:db8::9/64 dev up0 nodad");
    next.ip("address add 198.51.100.1/24 dev far0");
    next.ip("-6 address add 2001:db8:7::1/64 dev far0 nodad");
    next.ip("link set far0 up");
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        next.enter(|| std::fs::write(format!("/proc/sys/net/{setting}"), "1").unwrap());
    }
    far.ip("address add 198.51.100.2/24 dev far0");
    far.ip("-6 address add 2001:db8:7::2/64 dev far0 nodad");
    far.ip("link set far0 up");
    far.ip("route add default via 198.51.100.1");
    far.ip("-6 route add default via 2001:db8:7::1");
    // Default routes to nobody: only the static ones can be right.
    host.ns.ip("route replace default via 192.0.2.77");
    host.ns.ip("-6 route replace default via 2001:db8::77");
    let a = host.sandbox("a", "--network app");
    eventually(Duration::from_secs(5), "the default routes are followed", || {
        let uplink = rows(&host.json(["uplink", "ls"]))[0].clone();
        (&uplink["gateway"], &uplink["gateway6"]) == (&"192.0.2.77".into(), &"2001:db8::77".into())
    });
    for (prefix, via, other, target) in [
        ("198.51.100.0/24", "192.0.2.9", "192.0.2.8", "198.51.100.2"),
        ("2001:db8:7::/64", "2001:db8::9", "2001:db8::8", "2001:db8:7::2"),
    ] {
        let target: IpAddr = target.parse().unwrap();
        assert_eq!(ping(&a.ns, target, 1).received, 0);
        host.ok(["route", "add", prefix, "via", via, "--uplink", WIRE]);
        assert_ping(&a.ns, target, 62);
        let routes = rows(&host.json(["route", "ls"]));
        let shown = routes.iter().find(|route| route["destination"] == prefix).unwrap();
        assert_eq!((&shown["via"], &shown["kind"]), (&via.into(), &"static".into()));
        host.refused(4, &[prefix], ["route", "add", prefix, "via", other]);

        let neighbors = rows(&host.json(["neigh", "show"]));
        let known = neighbors.iter().find(|n| n["address"] == via).expect("a neighbor");
        let link = next.ip("-o link show up0");
        assert!(link.contains(known["mac"].as_str().unwrap()), "{known} in {link}");

        host.ok(["route", "rm", prefix]);
        assert_eq!(ping(&a.ns, target, 1).received, 0);
    }
}

/// Rows: CNI `bridge: macspoofchk`.
#[test]
#[ignore = "needs root"]
fn spoofed_frames_are_dropped_and_counted() {
    let host = Host::start_dual(Uplink::None);
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app");
    for (family, stolen) in BOTH.into_iter().zip(["10.91.1.200/24", "fd00:91::200/64"]) {
        let near = family.of(&b);
        assert_ping(&a.ns, near, 64);
        // Another's address, then another's MAC.
        let flags = family.pick(["", "nodad"]);
        a.ns.ip(&format!("address add {stolen} dev eth0 {flags}"));
        let (address, _) = stolen.split_once('/').unwrap();
        a.ns.run(&format!("ping -n -c 2 -i 0.2 -W 1 -I {address} {near}"));
        let reasons =
            family.pick([["spoofed_ipv4", "spoofed_arp"], ["spoofed_ipv6", "spoofed_nd"]]);
        let spoofed: u64 = reasons.iter().map(|reason| count_of(&host, &a, reason)).sum();
        assert!(spoofed > 0, "{}", host.ok(["drops", "--sandbox", &a.name]));
        assert_eq!(count_of(&host, &b, reasons[0]), 0);
        a.ns.ip(&format!("address del {stolen} dev eth0"));
        let before = a.ns.ip("-o link show eth0");
        let counted = count_of(&host, &a, "spoofed_mac");
        a.ns.ip("link set eth0 address 02:00:00:00:00:66");
        assert_eq!(ping(&a.ns, near, 2).received, 0);
        assert!(count_of(&host, &a, "spoofed_mac") > counted);
        let mac = before.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        a.ns.ip(&format!("link set eth0 address {mac}"));
        assert_ping(&a.ns, near, 64);
    }
    // The sums of all sandboxes are those of the whole.
    let all = rows(&host.json(["drops"]));
    let whole = all.iter().find(|drop| drop["reason"] == "spoofed_mac").unwrap();
    assert_eq!(whole["count"], count_of(&host, &a, "spoofed_mac"));
    assert!(
        rows(&host.json(["drops", "--network", "app"]))
            .iter()
            .any(|d| d["reason"] == "spoofed_mac")
    );
}

#[test]
#[ignore = "needs root"]
fn icc_off_keeps_sandboxes_apart() {
    let host = Host::start_dual(Uplink::Shared);
    host.network("apart", &format!("{OTHER} -o icc=false"));
    let a = host.sandbox("a", "--network apart");
    let b = host.sandbox("b", "--network apart");
    for (family, gateway) in BOTH.into_iter().zip(["10.91.2.1", "fd00:91:2::1"]) {
        assert_eq!(ping(&a.ns, family.of(&b), 2).received, 0);
        assert_ping(&a.ns, family.outside(), 63);
        assert_ping(&a.ns, gateway.parse::<IpAddr>().unwrap(), 64);
    }
}

#[test]
#[ignore = "needs root"]
fn counters_add_up() {
    let host = Host::start_dual(Uplink::Shared);
    let a = host.sandbox("a", "--network app -p 8080:80");
    let b = host.sandbox("b", "--network app");
    for family in BOTH {
        assert_ping(&a.ns, family.of(&b), 64);
        assert_ping(&a.ns, family.outside(), 63);
        assert_ping(&a.ns, family.gateway(), 64);
    }
    let status = one(&host.json(["status"]));
    let networks = rows(&host.json(["network", "ls"])).len();
    assert_eq!((&status["networks"], &status["endpoints"]), (&networks.into(), &2.into()));
    assert_eq!(status["pid"], host.pid());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    for worker in rows(&status["workers"]) {
        let sum = |names: &[&str]| -> u64 {
            names
                .iter()
                .map(|name| worker[*name].as_u64().unwrap_or_else(|| panic!("{name}")))
                .sum()
        };
        assert_eq!(
            sum(&["rx_frames", "replicated", "generated"]),
            sum(&["tx_frames", "consumed", "queued", "drops"]),
            "{worker}"
        );
    }
    let stats = one(&host.json(["stats", "--sandbox", &a.name]));
    assert!(stats["rx_frames"].as_u64() >= Some(18) && stats["tx_frames"].as_u64() >= Some(18));
    assert_eq!((&stats["sandbox"], &stats["network"]), (&a.name.as_str().into(), &"app".into()));
    let rules = rows(&host.json(["nat", "rules"]));
    let published = rules.iter().filter(|rule| rule["match"].as_str().unwrap().contains(":8080"));
    assert_eq!(published.count(), 2, "{rules:?}");
    // Tables are for people; they only have to be there, with a head.
    for args in
        [&["status"][..], &["stats"], &["sandbox", "ls"], &["network", "ls"], &["uplink", "ls"]]
    {
        assert!(!host.ok(args).is_empty(), "{args:?}");
    }
}
