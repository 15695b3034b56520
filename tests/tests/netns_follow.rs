//! What others do to the daemon's devices while it runs: deleted ones come back with the addresses and routes of
//! both families, renamed ones are known by their MAC, and nothing keeps the daemon busy.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::host::family::ANY;
use tests::host::inventory::Inventory;
use tests::host::namespace::Namespace;
use tests::host::traffic::{TcpClient, TcpServer, assert_ping};
use tests::host::{APP, BOTH, Host, Sandbox, Uplink, eventually, one};

/// How long the daemon may take to see and mend something.
const MENDED: Duration = Duration::from_secs(8);

/// The host's leg of a network.
fn leg(host: &Host, network: &str) -> String {
    let shown = one(&host.json(["network", "inspect", network]));
    format!("vsw-{}", &shown["id"].as_str().unwrap()[..8])
}

/// What makes an interface usable: MAC, MTU, addresses.
fn settings(ns: &Namespace, ifname: &str) -> Option<String> {
    let shown = ns.run(&format!("ip -o link show {ifname}"));
    if shown.code != 0 {
        return None;
    }
    let words: Vec<_> = shown.stdout.split_whitespace().collect();
    let after = |key: &str| words.iter().skip_while(|word| **word != key).nth(1).copied();
    let up = shown.stdout.contains("UP");
    let addresses = ns.ip(&format!("-o address show dev {ifname}"));
    let mut addresses: Vec<_> =
        addresses.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    addresses.sort_unstable();
    Some(format!("{:?} {:?} {up} {addresses:?}", after("link/ether"), after("mtu")))
}

/// The ways out and in of a sandbox of both families, beside a neighbor.
fn assert_works(a: &Sandbox, b: &Sandbox) {
    for family in BOTH {
        assert_ping(&a.ns, family.of(b), 64);
        assert_ping(&a.ns, family.outside(), 63);
    }
}

/// The routes of both families, but for those of multicast, which the kernel has of its own.
fn routes(ns: &Namespace) -> String {
    let all = ns.ip("route show table all");
    all.lines().filter(|line| !line.contains("multicast")).collect::<Vec<_>>().join("\n")
}

/// Connections to the machine outside.
fn clients(from: &Sandbox) -> [TcpClient; 2] {
    BOTH.map(|family| {
        let mut client = TcpClient::connect(&from.ns, (family.outside(), 7000));
        client.echo("before");
        client
    })
}

fn go_on(clients: &mut [TcpClient]) {
    for client in clients {
        client.try_echo("after", Duration::from_secs(10)).unwrap();
    }
}

/// How long each thread of the daemon has run.
fn run_times(host: &Host) -> HashMap<String, Duration> {
    let threads = fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap();
    let of = |thread: fs::DirEntry| {
        // One that has just ended has none.
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let nanos = text.split_whitespace().next()?.parse().ok()?;
        Some((thread.file_name().into_string().ok()?, Duration::from_nanos(nanos)))
    };
    threads.filter_map(|thread| of(thread.unwrap())).collect()
}

/// The daemon does next to nothing: it uses less than a hundredth of a processor.
fn assert_idle(host: &Host) {
    // The machine may have something to do for others, and the daemon something to finish.
    const WINDOWS: usize = 3;
    const WINDOW: Duration = Duration::from_secs(3);
    let mut seen = Vec::new();
    for _ in 0..WINDOWS {
        let (before, began) = (run_times(host), Instant::now());
        std::thread::sleep(WINDOW);
        let (after, took) = (run_times(host), began.elapsed());
        assert!(after.len() > 1, "no threads: {after:?}");
        let earlier = |thread| before.get(thread).copied().unwrap_or_default();
        let used: Duration = after.iter().map(|(thread, time)| *time - earlier(thread)).sum();
        println!("{used:?} of processor time in {took:?}");
        if used * 100 < took {
            return;
        }
        seen.push((used, took));
    }
    panic!("processor time used, and time: {seen:?}\n{}", host.log_tail());
}

#[test]
#[ignore = "needs root"]
fn a_deleted_leg_of_the_host_comes_back() {
    let mut host = Host::prepare_dual(Uplink::None);
    host.launch();
    host.network("app", &format!("{APP} -o mtu=1400"));
    let a = host.sandbox("a", "--network app");
    let _server = TcpServer::start(&a.ns, (ANY, 7000));
    let leg = leg(&host, "app");
    let before = settings(&host.ns, &leg).unwrap();
    for word in ["10.91.1.1/24", "fd00:91::1/64", "1400"] {
        assert!(before.contains(word), "{before}");
    }
    for family in BOTH {
        assert_ping(&host.ns, family.of(&a), 64);
    }

    host.ns.ip(&format!("link delete {leg}"));
    eventually(MENDED, "the leg is there again", || {
        settings(&host.ns, &leg).is_some_and(|now| now == before)
    });
    for family in BOTH {
        let own = family.of(&a);
        eventually(MENDED, "the host reaches the sandbox", || {
            host.ns.run(&format!("ping -c 1 -W 1 {own}")).code == 0
        });
        TcpClient::connect(&host.ns, (own, 7000)).echo("from the host");
    }
    assert_eq!(host.log_tail().matches(&format!("made {leg} anew")).count(), 1);
    // Somebody insists: it takes longer now, and comes back all the same.
    host.ns.ip(&format!("link delete {leg}"));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(settings(&host.ns, &leg), None);
    eventually(MENDED, "the leg is there once more", || {
        settings(&host.ns, &leg).is_some_and(|now| now == before)
    });
    assert_idle(&host);
    // It is the network's own: it goes with it.
    host.ok(["sandbox", "rm", &a.name]);
    host.ok(["network", "rm", "app"]);
    assert_eq!(settings(&host.ns, &leg), None);
}

#[test]
#[ignore = "needs root"]
fn a_device_deleted_in_a_sandbox_comes_back_with_its_connections() {
    let host = Host::start_dual(Uplink::Dedicated);
    let a = host.sandbox("a", "--network app -p 8080:80");
    let b = host.sandbox("b", "--network app");
    let _servers =
        [TcpServer::start(&a.ns, (ANY, 80)), TcpServer::start(&host.outside, (ANY, 7000))];
    let mut out = clients(&a);
    let (before, routes_before) = (settings(&a.ns, "eth0").unwrap(), routes(&a.ns));
    assert!(before.contains("10.91.1.") && before.contains("fd00:91::"), "{before}");

    a.ns.ip("link delete eth0");
    eventually(MENDED, "the interface is there again", || {
        settings(&a.ns, "eth0").is_some_and(|now| now == before)
    });
    eventually(MENDED, "the routes are there again", || routes(&a.ns) == routes_before);
    assert_works(&a, &b);
    for family in BOTH {
        TcpClient::connect(&host.outside, (family.host(), 8080)).echo("published");
    }
    go_on(&mut out);
    assert_idle(&host);
    host.ok(["sandbox", "rm", &a.name, &b.name]);
}

#[test]
#[ignore = "needs root"]
fn a_device_moved_to_another_namespace_is_made_anew() {
    let mut host = Host::start_dual(Uplink::Shared);
    let elsewhere = Namespace::create(&host.name("elsewhere"));
    let there = elsewhere.handle();
    there.enable_ipv6();
    let untouched = Inventory::of_namespace(&there);
    let a = host.sandbox("a", "--network app -p 8080:80");
    let b = host.sandbox("b", "--network app");
    let _server = TcpServer::start(&host.outside, (ANY, 7000));
    let (before, routes_before) = (settings(&a.ns, "eth0").unwrap(), routes(&a.ns));
    let assert_mended = |host: &Host| {
        eventually(MENDED, "the interface is there again", || {
            settings(&a.ns, "eth0").is_some_and(|now| now == before)
        });
        eventually(MENDED, "its routes too", || routes(&a.ns) == routes_before);
        assert_works(&a, &b);
        assert_eq!(one(&host.json(["status"]))["warnings"], serde_json::json!([]));
    };
    // While it runs, as it is and with another name and MAC.
    for disguised in [false, true] {
        let mut out = clients(&a);
        let mut name = "eth0";
        if disguised {
            name = "other0";
            rename(&a.ns, "eth0", name);
            a.ns.ip(&format!("link set {name} address 02:00:00:00:00:99"));
        }
        a.ns.ip(&format!("link set {name} netns {}", there.name()));
        assert_mended(&host);
        eventually(MENDED, "the one that was moved is gone", || names(&there) == ["lo"]);
        untouched.assert_same(&Inventory::of_namespace(&there), "moved there and gone");
        go_on(&mut out);
        // A device that was just made anew stays away for a while when it goes again.
        std::thread::sleep(Duration::from_secs(5));
    }
    let leg = leg(&host, "app");
    let leg_before = settings(&host.ns, &leg).unwrap();
    host.ns.ip(&format!("link set {leg} netns {}", there.name()));
    eventually(MENDED, "the leg is there again", || {
        settings(&host.ns, &leg).is_some_and(|now| now == leg_before)
    });
    eventually(MENDED, "the one that was moved is gone", || names(&there) == ["lo"]);
    for family in BOTH {
        assert_ping(&host.ns, family.of(&a), 64);
    }
    assert_idle(&host);
    // While none runs.
    host.stop(Signal::SIGTERM);
    a.ns.ip(&format!("link set eth0 netns {}", there.name()));
    host.launch();
    assert_mended(&host);
    // What the kernel does not lead to from here, nobody finds.
    let left = if tests::link() == Some("veth") { vec!["lo"] } else { vec!["eth0", "lo"] };
    assert_eq!(names(&there), left);
    host.ok(["sandbox", "rm", &a.name, &b.name]);
}

#[test]
#[ignore = "needs root"]
fn a_sandbox_whose_namespace_is_deleted_is_said_to_be_gone() {
    let host = Host::start(Uplink::None);
    let a = host.sandbox("a", "");
    let deleted = std::process::Command::new("ip").args(["netns", "delete", &a.name]).status();
    assert!(deleted.unwrap().success() && !a.ns.exists());
    eventually(MENDED, "status says so", || {
        let status = one(&host.json(["status"])).to_string();
        status.contains(&a.name) && status.contains("is gone; remove the sandbox")
    });
    assert_idle(&host);
    host.ok(["sandbox", "rm", &a.name]);
}

#[test]
#[ignore = "needs root"]
fn a_leg_that_is_down_or_without_address_is_left_so_and_costs_nothing() {
    let host = Host::start_dual(Uplink::None);
    let a = host.sandbox("a", "--network app");
    let leg = leg(&host, "app");
    let before = settings(&host.ns, &leg).unwrap();
    let from_the_host = || {
        for family in BOTH {
            assert_ping(&host.ns, family.of(&a), 64);
        }
    };
    host.ns.ip(&format!("link set {leg} down"));
    assert_idle(&host);
    // The network itself goes on, and the host when it is up again.
    for family in BOTH {
        assert_ping(&a.ns, family.gateway(), 64);
    }
    host.ns.ip(&format!("link set {leg} up"));
    from_the_host();
    host.ns.ip(&format!("address flush dev {leg}"));
    assert_idle(&host);
    assert_eq!(host.ns.ip(&format!("-o address show dev {leg}")), "");
    // The mend of the manual.
    host.ns.ip(&format!("link delete {leg}"));
    eventually(MENDED, "the addresses are back", || {
        settings(&host.ns, &leg).is_some_and(|now| now == before)
    });
    from_the_host();
}

fn rename(ns: &Namespace, from: &str, to: &str) {
    ns.ip(&format!("link set {from} down"));
    ns.ip(&format!("link set {from} name {to}"));
    ns.ip(&format!("link set {to} up"));
}

fn names(ns: &Namespace) -> Vec<String> {
    let links = ns.ip("-o link show");
    // A veth device is shown with its peer: `eth0@if7`.
    let name = |line: &str| line.split([':', '@']).nth(1).unwrap().trim().to_owned();
    let mut names: Vec<String> = links.lines().map(name).collect();
    names.sort();
    names
}

#[test]
#[ignore = "needs root"]
fn a_renamed_interface_is_taken_over_by_its_mac() {
    let mut host = Host::start_dual(Uplink::None);
    let lent = Namespace::create(&host.name("lent"));
    lent.handle().enable_ipv6();
    let untouched = Inventory::of_namespace(&lent.handle());
    host.network("back", "--subnet 10.91.2.0/24 --subnet fd00:91:2::/64");
    let a = host.sandbox("a", "--network app");
    let netns = lent.handle().path().display().to_string();
    let b = host.sandbox("b", &format!("--network app --network back --netns {netns}"));
    let reaches = || {
        for family in BOTH {
            assert_ping(&a.ns, family.of(&b), 64);
        }
    };
    reaches();
    rename(&a.ns, "eth0", "lan0");
    // Swapped, by way of a third name.
    rename(&b.ns, "eth0", "swap");
    rename(&b.ns, "eth1", "eth0");
    rename(&b.ns, "swap", "eth1");
    // A restart takes them over as they are.
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        host.stop(signal);
        host.launch();
        assert_eq!(names(&a.ns), ["lan0", "lo"]);
        assert_eq!(names(&b.ns), ["eth0", "eth1", "lo"]);
        let shown = one(&host.json(["sandbox", "inspect", &a.name]));
        assert_eq!(shown["endpoints"][0]["ifname"], "lan0");
        let shown = one(&host.json(["sandbox", "inspect", &b.name]));
        assert_eq!(shown["endpoints"][0]["ifname"], "eth1");
        reaches();
    }
    // Renamed while it runs: what is made next takes no name twice, and what is removed goes.
    rename(&b.ns, "eth0", "wan0");
    host.ok(["network", "connect", "bridge", &b.name]);
    assert_eq!(names(&b.ns), ["eth0", "eth1", "lo", "wan0"]);
    rename(&b.ns, "wan0", "wan1");
    host.ok(["network", "disconnect", "back", &b.name]);
    assert_eq!(names(&b.ns), ["eth0", "eth1", "lo"]);
    rename(&b.ns, "eth1", "odd");
    host.ok(["sandbox", "rm", &b.name]);
    untouched.assert_same(&Inventory::of_namespace(&lent.handle()), "a sandbox with odd names");
    // With no daemon too.
    let b = host.sandbox("b", &format!("--network app --netns {netns}"));
    rename(&b.ns, "eth0", "odd");
    host.stop(Signal::SIGKILL);
    host.purge_offline();
    untouched.assert_same(&Inventory::of_namespace(&lent.handle()), "a purge");
}

#[test]
#[ignore = "needs root"]
fn a_renamed_leg_of_the_host_is_no_second_one() {
    let mut host = Host::start_dual(Uplink::None);
    host.ok(["network", "rm", "app"]);
    let before = names(&host.ns);
    host.network("app", APP);
    let a = host.sandbox("a", "--network app");
    let own = BOTH.map(|family| family.of(&a));
    let home = host.ns.clone();
    let reached = || own.iter().for_each(|own| assert_ping(&home, *own, 64));
    let leg = leg(&host, "app");
    let with_app = names(&host.ns);
    rename(&host.ns, &leg, "odd0");
    reached();
    host.stop(Signal::SIGTERM);
    host.launch();
    assert_eq!(names(&host.ns), with_app);
    reached();
    rename(&host.ns, &leg, "odd0");
    host.ok(["sandbox", "rm", &a.name]);
    host.ok(["network", "rm", "app"]);
    assert_eq!(names(&host.ns), before);
    // With no daemon too.
    rename(&host.ns, before.iter().find(|name| name.starts_with("vsw-")).unwrap(), "odd0");
    host.stop(Signal::SIGTERM);
    host.purge_offline();
    assert_eq!(names(&host.ns), ["lo"]);
}
