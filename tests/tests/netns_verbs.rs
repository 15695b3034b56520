//! The verbs of `vswitchctl`, each with something to show or to change.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::host::inventory::Inventory;
use tests::host::namespace::{Namespace, Process};
use tests::host::traffic::{TcpClient, TcpServer, assert_ping, ping, udp_ask};
use tests::host::{GATEWAY, Host, Sandbox, Uplink, WIRE, eventually, one, ran, rows};

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const NET_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 91, 1, 1);

fn host_with_app(uplink: Uplink) -> Host {
    let host = Host::start(uplink);
    host.network("app", "--subnet 10.91.1.0/24 --gateway 10.91.1.1");
    host
}

fn count_of(host: &Host, sandbox: &Sandbox, reason: &str) -> u64 {
    let drops = rows(&host.json(["drops", "--sandbox", &sandbox.name]));
    let found = drops.iter().find(|drop| drop["reason"] == reason);
    found.map_or(0, |drop| drop["count"].as_u64().unwrap())
}

#[test]
#[ignore = "needs root"]
fn run_and_exec_pass_exit_codes_on() {
    let host = host_with_app(Uplink::None);
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
    let shown = host.ok(["exec", &a.name, "--", "ip", "-o", "-4", "address", "show", "eth0"]);
    assert!(shown.contains(&a.ip.to_string()), "{shown}");
    let name = host.name("once");
    let shown = host.ok([
        "run",
        "--name",
        &name,
        "--network",
        "app",
        "--ip",
        "10.91.1.99",
        "--",
        "ip",
        "-o",
        "a",
    ]);
    assert!(shown.contains("10.91.1.99"), "{shown}");
}

#[test]
#[ignore = "needs root"]
fn run_ends_with_its_client() {
    let host = host_with_app(Uplink::None);
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

#[test]
#[ignore = "needs root"]
fn a_sandbox_is_wired_as_told() {
    let host = host_with_app(Uplink::None);
    let a = host.sandbox("a", "--network app --ip 10.91.1.9 --mac 02:00:00:00:00:09");
    let b = host.sandbox("b", "--network app --network bridge --alias db");
    let link = a.ns.ip("-o link show eth0");
    assert!(link.contains("02:00:00:00:00:09") && link.contains("mtu 1500"), "{link}");
    assert!(a.ns.ip("-o -4 address show eth0").contains("10.91.1.9/24"));
    assert!(a.ns.ip("-o link show lo").contains("UP"));
    assert!(a.ns.ip("route show default").starts_with("default via 10.91.1.1 dev eth0"));
    // MACs come from the address, as Docker has it.
    let shown = one(&host.json(["sandbox", "inspect", &b.name]));
    let octets = b.ip.octets();
    let mac =
        format!("02:42:{:02x}:{:02x}:{:02x}:{:02x}", octets[0], octets[1], octets[2], octets[3]);
    assert_eq!(shown["endpoints"][0]["mac"], mac.as_str(), "{shown}");
    assert!(b.ns.ip("-o link show eth0").contains(&mac));
    assert!(b.ns.ip("-o -4 address show eth1").contains("172.30."));
    let routes = b.ns.ip("route show default");
    assert!(routes.starts_with("default via 10.91.1.1 dev eth0"), "{routes}");
    assert_eq!(routes.lines().count(), 1, "{routes}");
    let network = one(&host.json(["network", "inspect", "app"]));
    assert_eq!((&network["driver"], &network["internal"]), (&"bridge".into(), &false.into()));
    assert_eq!(network["subnets"][0]["gateway"], "10.91.1.1");
    assert_eq!(rows(&network["endpoints"]).len(), 2, "{network}");
}

#[test]
#[ignore = "needs root"]
fn none_has_only_lo_and_host_is_the_host() {
    let host = Host::start(Uplink::Shared);
    let none = host.sandbox("none", "--network none");
    assert_eq!(none.ns.ip("-o link show").lines().count(), 1);
    assert_ping(&none.ns, Ipv4Addr::LOCALHOST, 64);
    let name = host.name("hosted");
    host.ok(["sandbox", "create", &name, "--network", "host"]);
    let links = host.ok(["exec", &name, "--", "ip", "-o", "link", "show"]);
    assert!(links.contains(WIRE), "{links}");
    host.ok(["sandbox", "rm", &name, &none.name]);
    assert!(host.ns.exists() && !none.ns.exists());
    assert_ping(&host.ns, GATEWAY, 64);
}

#[test]
#[ignore = "needs root"]
fn an_internal_network_has_no_way_out() {
    let host = Host::start(Uplink::Shared);
    host.network("back", "--internal --subnet 10.91.3.0/24");
    host.network("app", "--subnet 10.91.1.0/24");
    let a = host.sandbox("a", "--network back");
    let b = host.sandbox("b", "--network back");
    assert_ping(&a.ns, b.ip, 64);
    assert_eq!(a.ns.ip("route show default"), "");
    // Not even for one who makes a route.
    let both = host.sandbox("both", "--network back --network app");
    assert_ping(&both.ns, GATEWAY, 63);
    let gateway = one(&host.json(["network", "inspect", "back"]))["subnets"][0]["gateway"].clone();
    if let Some(gateway) = gateway.as_str() {
        a.ns.ip(&format!("route add default via {gateway}"));
        assert_eq!(ping(&a.ns, GATEWAY, 2).received, 0);
    }
}

#[test]
#[ignore = "needs root"]
fn networks_are_connected_and_disconnected_live() {
    let host = host_with_app(Uplink::None);
    host.network("other", "--subnet 10.91.2.0/24");
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app");
    let far = host.sandbox("far", "--network other");
    let _server = TcpServer::start(&b.ns, (ANY, 7000));
    let mut kept = TcpClient::connect(&a.ns, (b.ip, 7000));
    assert_eq!(ping(&a.ns, far.ip, 1).received, 0);
    host.ok(["network", "connect", "other", &a.name, "--ip", "10.91.2.200"]);
    assert!(a.ns.ip("-o -4 address show eth1").contains("10.91.2.200/24"));
    assert_ping(&a.ns, far.ip, 64);
    assert_ping(&far.ns, Ipv4Addr::new(10, 91, 2, 200), 64);
    kept.echo("undisturbed");
    host.ok(["network", "disconnect", "other", &a.name]);
    assert!(!a.ns.ip("-o link show").contains("eth1"));
    assert_eq!(ping(&a.ns, far.ip, 1).received, 0);
    kept.echo("undisturbed");
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
    let host = host_with_app(Uplink::None);
    let foreign = Namespace::create(&host.name("foreign"));
    let ns = foreign.handle();
    ns.ip("link add own0 type bridge");
    ns.ip("address add 10.94.0.1/24 dev own0");
    let before = Inventory::of_namespace(&ns);
    let b = host.sandbox("b", "--network app");
    let a = host.sandbox("a", &format!("--network app --netns {}", ns.path().display()));
    assert_ping(&ns, b.ip, 64);
    assert_ping(&b.ns, a.ip, 64);
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
    assert_ping(&b.ns, a.ip, 64);
    assert_ping(&ns, b.ip, 64);
    host.ok(["sandbox", "rm", &a.name]);
    Inventory::of_namespace(&ns).assert_same(&before, "a sandbox adopted by process");
}

#[test]
#[ignore = "needs root"]
fn a_tun_with_the_name_stays_and_a_labelled_tap_goes() {
    let mut host = host_with_app(Uplink::None);
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
fn captured(host: &Host, args: &[&str], from: &Sandbox, to: Ipv4Addr) -> String {
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
    let host = host_with_app(Uplink::Shared);
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app");
    let seen = captured(&host, &["--sandbox", &a.name, "-w", "-", "-c", "4", "icmp"], &a, b.ip);
    assert_eq!(seen.lines().count(), 4, "{seen}");
    assert!(seen.contains(&format!("{} > {}: ICMP echo request", a.ip, b.ip)), "{seen}");
    assert!(seen.contains(&format!("{} > {}: ICMP echo reply", b.ip, a.ip)), "{seen}");
    let seen = captured(&host, &["--uplink", WIRE, "-w", "-", "-c", "2", "icmp"], &a, GATEWAY);
    assert!(seen.contains("192.0.2.2 > 192.0.2.1: ICMP echo request"), "{seen}");
    let seen = captured(&host, &["--network", "app", "-w", "-", "-c", "2", "icmp"], &a, b.ip);
    assert_eq!(seen.lines().count(), 2, "{seen}");
    // Into a file, and as lines.
    let file = host.path("capture.pcapng");
    let path = file.to_str().unwrap();
    captured(&host, &["--sandbox", &a.name, "-w", path, "-c", "2", "icmp"], &a, b.ip);
    let read = ran(Command::new("tcpdump").args(["-n", "-r", path])).succeeded();
    assert_eq!(read.stdout.lines().count(), 2, "{read}");
    let mut lines = host.ctl_command(["capture", "--sandbox", &a.name, "-c", "2", "icmp"]);
    let mut capture = Process::start(lines.stdout(Stdio::piped()));
    for _ in 0..100 {
        if capture.ended().is_some() {
            break;
        }
        assert_eq!(ping(&a.ns, b.ip, 1).received, 1);
    }
    let lines = capture.output(Duration::from_secs(5));
    assert_eq!(lines.lines().count(), 2, "{lines}");
}

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

#[test]
#[ignore = "needs root"]
fn connections_are_listed_and_flushed() {
    let host = host_with_app(Uplink::Shared);
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "");
    let _server = TcpServer::start(&host.outside, (ANY, 7000));
    let _udp = tests::host::traffic::UdpServer::start(&host.outside, (ANY, 7001));
    let mut from_a = TcpClient::connect(&a.ns, (GATEWAY, 7000));
    let mut from_b = TcpClient::connect(&b.ns, (GATEWAY, 7000));
    from_a.echo("hello");
    from_b.echo("hello");
    assert!(udp_ask(&a.ns, (GATEWAY, 7001)).is_some());
    assert_ping(&a.ns, GATEWAY, 63);

    let list = |flags: &str| {
        rows(&host.json(["conntrack", "list"].into_iter().chain(flags.split_whitespace())))
    };
    assert_eq!(list("").len(), 4);
    let source = a.ip.to_string();
    for (flags, count) in [
        ("--proto tcp".to_owned(), 2),
        ("--proto udp".to_owned(), 1),
        ("--proto icmp".to_owned(), 1),
        (format!("--src {source}"), 3),
        (format!("--src {source} --proto tcp"), 1),
        ("--src 10.91.1.0/24".to_owned(), 3),
        (format!("--dst {GATEWAY}"), 4),
        ("--dport 7000".to_owned(), 2),
        ("--dport 7002".to_owned(), 0),
        (format!("--sport {}", from_a.local().port()), 1),
        ("--state established".to_owned(), 2),
        ("--network app".to_owned(), 3),
        ("--network bridge --proto tcp".to_owned(), 1),
    ] {
        assert_eq!(list(&flags).len(), count, "{flags}: {:?}", list(&flags));
    }
    let shown = list(&format!("--src {source} --proto tcp"))[0].clone();
    assert_eq!(shown["nat"], "snat");
    assert_eq!(shown["reply"]["src"], GATEWAY.to_string());
    assert_eq!(shown["reply"]["dst"], "192.0.2.2");
    assert_eq!(shown["reply"]["dport"], from_a.seen_as.port());
    assert!(shown["packets"][0].as_u64() >= Some(3) && shown["bytes"][1].as_u64() > Some(0));
    let icmp = list("--proto icmp")[0].clone();
    assert_eq!(icmp["orig"]["sport"], icmp["orig"]["dport"], "{icmp}");

    let stats = one(&host.json(["conntrack", "stats"]));
    assert_eq!(stats["entries"], 4, "{stats}");
    let flush = ["conntrack", "flush", "--network", "app", "--proto", "tcp"];
    assert_eq!(host.json(flush)["removed"], 1);
    assert_eq!(list("--network app --proto tcp").len(), 0);
    from_b.echo("undisturbed");
    host.ok(["conntrack", "flush"]);
    assert_eq!(list("").len(), 0);
}

/// Linux' `conntrack_dump_flush.sh`: what is looked at and flushed is another's, while connections come and go.
#[test]
#[ignore = "needs root"]
fn lists_and_flushes_under_load_cost_nobody_else_anything() {
    let host = host_with_app(Uplink::Shared);
    let [busy, flushed] = ["busy", "flushed"].map(|name| host.sandbox(name, "--network app"));
    let _server = TcpServer::start(&host.outside, (ANY, 7000));
    let load = tests::host::load::Load::start(&busy.ns, &host.outside, GATEWAY);
    let of = |what: &str, sandbox: &Sandbox| {
        host.json(["conntrack", what, "--src", &sandbox.ip.to_string(), "--proto", "tcp"])
    };
    let (mut seen, mut gone) = (0, 0);
    for round in 0..8 {
        let mut clients: Vec<_> =
            (0..10).map(|_| TcpClient::connect(&flushed.ns, (GATEWAY, 7000))).collect();
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
    println!("{seen} connections listed, {gone} flushed");
}

#[test]
#[ignore = "needs root"]
fn static_routes_lead_behind_a_router() {
    let host = Host::start(Uplink::Shared);
    // A second machine behind the outside one, which the default route does not reach.
    let far = Namespace::create(&host.name("far"));
    let far = far.handle();
    let next = host.outside.clone();
    next.ip(&format!("link add far0 type veth peer name far0 netns {}", far.name()));
    next.ip("address add 192.0.2.9/24 dev up0");
    next.ip("address add 198.51.100.1/24 dev far0");
    next.ip("link set far0 up");
    next.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    far.ip("address add 198.51.100.2/24 dev far0");
    far.ip("link set far0 up");
    far.ip("route add default via 198.51.100.1");
    // A default route to nobody: only the static one can be right.
    host.ns.ip("route replace default via 192.0.2.77");
    let a = host.sandbox("a", "");
    let target = Ipv4Addr::new(198, 51, 100, 2);
    eventually(Duration::from_secs(5), "the default route is followed", || {
        rows(&host.json(["uplink", "ls"]))[0]["gateway"] == "192.0.2.77"
    });
    assert_eq!(ping(&a.ns, target, 1).received, 0);

    host.ok(["route", "add", "198.51.100.0/24", "via", "192.0.2.9", "--uplink", WIRE]);
    assert_ping(&a.ns, target, 62);
    let routes = rows(&host.json(["route", "ls"]));
    let shown = routes.iter().find(|route| route["destination"] == "198.51.100.0/24").unwrap();
    assert_eq!((&shown["via"], &shown["kind"]), (&"192.0.2.9".into(), &"static".into()));
    host.refused(4, &["198.51.100.0/24"], ["route", "add", "198.51.100.0/24", "via", "192.0.2.8"]);

    let neighbors = rows(&host.json(["neigh", "show"]));
    let known = neighbors.iter().find(|n| n["address"] == "192.0.2.9").expect("a neighbor");
    let link = next.ip("-o link show up0");
    assert!(link.contains(known["mac"].as_str().unwrap()), "{known} in {link}");

    host.ok(["route", "rm", "198.51.100.0/24"]);
    assert_eq!(ping(&a.ns, target, 1).received, 0);
}

#[test]
#[ignore = "needs root"]
fn spoofed_frames_are_dropped_and_counted() {
    let host = host_with_app(Uplink::None);
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app");
    assert_ping(&a.ns, b.ip, 64);
    // Another's address, then another's MAC.
    a.ns.ip("address add 10.91.1.200/24 dev eth0");
    a.ns.run(&format!("ping -n -c 2 -i 0.2 -W 1 -I 10.91.1.200 {}", b.ip));
    let spoofed = count_of(&host, &a, "spoofed_ipv4") + count_of(&host, &a, "spoofed_arp");
    assert!(spoofed > 0, "{}", host.ok(["drops", "--sandbox", &a.name]));
    assert_eq!(count_of(&host, &b, "spoofed_ipv4"), 0);
    a.ns.ip("address del 10.91.1.200/24 dev eth0");
    let before = a.ns.ip("-o link show eth0");
    a.ns.ip("link set eth0 address 02:00:00:00:00:66");
    assert_eq!(ping(&a.ns, b.ip, 2).received, 0);
    assert!(count_of(&host, &a, "spoofed_mac") > 0);
    let mac = before.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    a.ns.ip(&format!("link set eth0 address {mac}"));
    assert_ping(&a.ns, b.ip, 64);
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
    let host = Host::start(Uplink::Shared);
    host.network("apart", "--subnet 10.91.4.0/24 -o icc=false");
    let a = host.sandbox("a", "--network apart");
    let b = host.sandbox("b", "--network apart");
    assert_eq!(ping(&a.ns, b.ip, 2).received, 0);
    assert_ping(&a.ns, GATEWAY, 63);
    assert_ping(&a.ns, Ipv4Addr::new(10, 91, 4, 1), 64);
}

#[test]
#[ignore = "needs root"]
fn counters_add_up() {
    let host = host_with_app(Uplink::Shared);
    let a = host.sandbox("a", "--network app -p 8080:80");
    let b = host.sandbox("b", "--network app");
    assert_ping(&a.ns, b.ip, 64);
    assert_ping(&a.ns, GATEWAY, 63);
    assert_ping(&a.ns, NET_GATEWAY, 64);
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
    assert!(stats["rx_frames"].as_u64() >= Some(9) && stats["tx_frames"].as_u64() >= Some(9));
    assert_eq!((&stats["sandbox"], &stats["network"]), (&a.name.as_str().into(), &"app".into()));
    let rules = rows(&host.json(["nat", "rules"]));
    assert!(rules.iter().any(|rule| rule["match"].as_str().unwrap().contains("8080")), "{rules:?}");
    // Tables are for people; they only have to be there, with a head.
    for args in
        [&["status"][..], &["stats"], &["sandbox", "ls"], &["network", "ls"], &["uplink", "ls"]]
    {
        assert!(!host.ok(args).is_empty(), "{args:?}");
    }
}
