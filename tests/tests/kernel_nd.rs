//! The kernel's Neighbor Discovery against ours: a TAP whose interface in a namespace is a container's,
//! and the engine alone behind it, without a daemon.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{Ipv6Addr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use dataplane::Engine;
use dataplane::config::{Snapshot, SnapshotSpec};
use dataplane::io::tap::{Tap, TapOptions};
use dataplane::verdict::DropReason;
use nix::sched::{CloneFlags, unshare};
use tests::lab::{A, B, GATEWAY1, dual, small};
use tests::rig::assert_balances;

const DEADLINE: Duration = Duration::from_secs(20);
const DEVICE: &str = "nd0";

/// Runs `test` on a thread of its own in a network namespace of its own, which has no name and goes
/// with the thread and what it opened.
fn in_namespace(test: impl FnOnce() + Send) {
    let enter = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
        test();
    };
    thread::scope(|scope| {
        if let Err(panic) = scope.spawn(enter).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// What `ip` prints.
fn ip(arguments: &str) -> String {
    let words = arguments.split_whitespace();
    let output = Command::new("ip").args(words).output().expect("`ip`, of package iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn sysctl(key: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{DEVICE}/{key}"), value).unwrap();
}

/// Waits until `ip` prints what is wanted.
#[track_caller]
fn awaited(arguments: &str, wanted: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let printed = ip(arguments);
        if wanted(&printed) {
            return printed;
        }
        assert!(Instant::now() < deadline, "ip {arguments}: {printed}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn dropped(engine: &Engine, reason: DropReason) -> u64 {
    engine.worker_stats().iter().map(|worker| worker.drops_for(reason)).sum()
}

/// The engine with A behind a TAP, whose other side is an interface of this namespace with A's MAC; and what is
/// configured.
fn connect() -> (Engine, SnapshotSpec) {
    let tap = Tap::create(&TapOptions { name: DEVICE.to_owned(), persistent: false }).unwrap();
    ip(&format!("link set {DEVICE} address {}", A.mac));
    // As they are in a sandbox, whatever this host has as defaults.
    for (key, value) in [
        ("disable_ipv6", "0"),
        ("addr_gen_mode", "0"),
        ("accept_dad", "1"),
        ("accept_ra", "1"),
        ("autoconf", "1"),
        ("forwarding", "0"),
    ] {
        sysctl(key, value);
    }
    let engine = Engine::start(&small()).unwrap();
    let port = engine.attach(Box::new(tap)).unwrap();
    let mut spec = dual();
    spec.uplinks.clear();
    spec.ports.retain(|port| port.id == A.port);
    spec.ports[0].id = port;
    spec.networks[0].ra = true;
    spec.networks[0].mtu = 1400;
    engine.publish(Snapshot::build(spec.clone()).unwrap());
    ip(&format!("link set {DEVICE} up"));
    (engine, spec)
}

fn address(what: &str, address: Ipv6Addr) -> String {
    ip(&format!("-6 address {what} {address}/120 dev {DEVICE}"))
}

#[test]
#[ignore = "needs root"]
fn the_kernel_forgets_a_router_that_ceases_to_be_one() {
    in_namespace(|| {
        let (engine, mut spec) = connect();
        let default = "-6 route show default";
        awaited(default, |text| !text.is_empty());
        spec.networks[0].ra = false;
        engine.publish(Snapshot::build(spec.clone()).unwrap());
        awaited(default, str::is_empty);
        spec.networks[0].ra = true;
        engine.publish(Snapshot::build(spec).unwrap());
        awaited(default, |text| !text.is_empty());
        assert_balances(&engine);
    });
}

#[test]
#[ignore = "needs root"]
fn the_kernel_finds_its_router_and_its_neighbors() {
    in_namespace(|| {
        let (engine, _) = connect();
        address("add", A.ip6());
        let shown = format!("-6 address show dev {DEVICE}");
        let settled =
            |text: &str| text.matches("inet6").count() == 2 && !text.contains("tentative");
        let addresses = awaited(&shown, settled);
        assert!(!addresses.contains("dadfailed"), "{addresses}");
        assert!(addresses.contains(&A.link_local().to_string()), "{addresses}");

        // By a router advertisement, which it asked for.
        let route = awaited("-6 route show default", |text| !text.is_empty());
        let via = format!("default via {} dev {DEVICE} proto ra", GATEWAY1.link_local());
        assert!(route.starts_with(&via), "{route}");
        assert!(route.contains("mtu 1400") && route.contains("hoplimit 64"), "{route}");
        // It made no address of the prefix.
        assert_eq!(ip(&shown).matches("inet6").count(), 2);

        let socket = UdpSocket::bind("[::]:0").unwrap();
        // The first address of the prefix is every router's (RFC 4291 §2.6.1).
        let [.., last] = GATEWAY1.ip6().octets();
        let anycast = Ipv6Addr::from_bits(GATEWAY1.ip6().to_bits() - u128::from(last));
        for gateway in [GATEWAY1.ip6(), anycast, "2001:db8::1".parse().unwrap()] {
            socket.send_to(b"anybody?", (gateway, 9)).unwrap();
        }
        for gateway in [GATEWAY1.ip6(), anycast, GATEWAY1.link_local()] {
            let entry = awaited(&format!("-6 neighbor show {gateway}"), |text| {
                text.contains("lladdr") && text.contains("router")
            });
            assert!(entry.contains(&GATEWAY1.mac.to_string()), "{entry}");
        }
        // What a kernel says by itself, the guard has nothing against.
        for reason in [DropReason::SpoofedIpv6, DropReason::SpoofedNd, DropReason::RaUntrusted] {
            assert_eq!(dropped(&engine, reason), 0, "{reason:?}");
        }
        assert_balances(&engine);
    });
}

#[test]
#[ignore = "needs root"]
fn the_kernel_does_not_take_an_address_that_the_gateway_has() {
    in_namespace(|| {
        let (engine, _) = connect();
        address("add", GATEWAY1.ip6());
        let failed = format!("-6 address show dev {DEVICE} dadfailed");
        awaited(&failed, |text| text.contains(&GATEWAY1.ip6().to_string()));
        assert_eq!(dropped(&engine, DropReason::SpoofedNd), 0);
        // Another container's is not defended here, and its owner does not hear of it.
        address("add", B.ip6());
        let deadline = Instant::now() + DEADLINE;
        while dropped(&engine, DropReason::SpoofedNd) == 0 {
            assert!(Instant::now() < deadline, "{:?}", engine.worker_stats());
            thread::sleep(Duration::from_millis(20));
        }
        assert_balances(&engine);
    });
}
