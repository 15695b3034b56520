//! Many sandboxes, and many clients at once, in networks with both families.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tests::host::inventory::Inventory;
use tests::host::traffic::{assert_ping, ping};
use tests::host::{APP, BOTH, Host, Uplink, rows};

/// What the issue asks for is 20 s on an idle machine; this leaves room for noise.
const COME_UP: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs root"]
fn two_hundred_sandboxes_come_up_and_go() {
    const SANDBOXES: usize = 200;
    let host = Host::start_dual(Uplink::None);
    host.network("many", "--subnet 10.92.0.0/23 --subnet fd00:92::/64");
    let before = Inventory::of(&host);
    let names: Vec<_> = (0..SANDBOXES).map(|n| host.name(&format!("s{n}"))).collect();

    let from = Instant::now();
    for name in &names {
        host.ok(["sandbox", "create", name, "--network", "many"]);
    }
    let came_up = from.elapsed();
    println!("{SANDBOXES} sandboxes, one after the other, came up in {came_up:?}");
    assert!(came_up < COME_UP, "{came_up:?}");

    let shown = rows(&host.json(["sandbox", "ls"]));
    assert_eq!(shown.len(), SANDBOXES);
    for family in ["ipv4", "ipv6"] {
        let of = |sandbox: &serde_json::Value| sandbox["endpoints"][0][family].to_string();
        let mut addresses: Vec<_> = shown.iter().map(of).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), SANDBOXES, "{family} addresses given twice");
    }

    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let ns = tests::host::namespace::Namespace::at(
                        &std::path::Path::new(tests::host::namespace::DIRECTORY).join(name),
                    );
                    for gateway in ["10.92.0.1", "fd00:92::1"] {
                        let seen = ping(&ns, gateway.parse::<IpAddr>().unwrap(), 1);
                        assert_eq!(seen.received, 1, "{name}: {}", seen.text);
                    }
                }
            });
        }
    });

    let from = Instant::now();
    host.ok(["sandbox", "rm"].into_iter().chain(names.iter().map(String::as_str)));
    println!("and went in {:?}", from.elapsed());
    Inventory::of(&host).assert_same(&before, "200 sandboxes");
}

#[test]
#[ignore = "needs root"]
fn clients_at_once_leave_a_consistent_state() {
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 5;
    let mut host = Host::prepare_dual(Uplink::Shared);
    host.launch();
    host.network("app", APP);
    let before = Inventory::of(&host);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let host = &host;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let network = format!("net{client}");
                    host.network(&network, "--ipv6");
                    let port = format!("-p {}:80", 8000 + client);
                    let own =
                        host.sandbox(&format!("c{client}"), &format!("--network {network} {port}"));
                    let shared = host.sandbox(&format!("d{client}"), "--network app");
                    host.ok(["network", "connect", "app", &own.name]);
                    for family in BOTH {
                        assert_ping(&own.ns, family.of(&shared), 64);
                    }
                    host.refused(4, &[&network], ["network", "create", &network]);
                    host.ok(["sandbox", "rm", &own.name, &shared.name]);
                    // The last round leaves one thing behind for the look below.
                    if round + 1 < ROUNDS || client > 0 {
                        host.ok(["network", "rm", &network]);
                    }
                }
            });
        }
        // One more, that only looks.
        let host = &host;
        scope.spawn(move || {
            for _ in 0..20 {
                for args in [["network", "ls"], ["sandbox", "ls"], ["port", "ls"], ["fdb", "show"]]
                {
                    let _ = rows(&host.json(args));
                }
            }
        });
    });
    let networks = rows(&host.json(["network", "ls"]));
    let mut names: Vec<_> = networks.iter().map(|n| n["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["app", "bridge", "host", "net0", "none"]);
    host.ok(["network", "rm", "net0"]);
    Inventory::of(&host).assert_same(&before, "eight clients");
    for args in [["sandbox", "ls"], ["port", "ls"]] {
        assert_eq!(rows(&host.json(args)).len(), 0, "{args:?}");
    }
    let app = tests::host::one(&host.json(["network", "inspect", "app"]));
    assert_eq!(rows(&app["endpoints"]).len(), 0, "{app}");
}

/// Rows: CNI `host-local: race, exhaustion, lock`.
#[test]
#[ignore = "needs root"]
fn one_name_is_given_once_however_many_ask() {
    let host = Host::start(Uplink::None);
    let name = host.name("only");
    let codes: Vec<i32> = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..8).map(|_| scope.spawn(|| host.ctl(["sandbox", "create", &name]).code)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 4).count(), 7, "{codes:?}");
    assert_ping(&host.find(&name).ns, Ipv4Addr::new(172, 30, 0, 1), 64);
}
