//! Removing: what the daemon made goes without a trace, what others made stays. Of both families.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dataplane::packet::types::Mac;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::host::family::ANY;
use tests::host::flood::{Flood, Make};
use tests::host::inventory::Inventory;
use tests::host::namespace::{Namespace, Owned};
use tests::host::raw::RawListener;
use tests::host::traffic::{TcpClient, TcpServer, assert_ping};
use tests::host::{APP, BOTH, Host, Sandbox, Uplink, one, programs, rows};
use tests::packet::ethernet;

/// What others have on the host: a namespace, links, a rule set, files beside the daemon's.
struct Foreign {
    namespace: Owned,
}

impl Foreign {
    fn make(host: &Host) -> Self {
        for directory in ["lib", "run/vswitchd", "run/other"] {
            fs::create_dir_all(host.path(directory)).unwrap();
        }
        for file in ["lib/notes", "run/vswitchd/notes", "run/other/notes"] {
            fs::write(host.path(file), "not the daemon's").unwrap();
        }
        host.ns.ip("link add br-other type bridge");
        host.ns.ip("tuntap add dev vsw-other mode tap");
        host.ns.ip("address add 10.92.0.1/24 dev br-other");
        host.ns.ip("-6 address add fd00:92::1/64 dev br-other nodad");
        host.ns.ip("link set br-other up");
        host.ns.ok("nft add table inet other");
        let namespace = Namespace::create(&host.name("foreign"));
        namespace.handle().enable_ipv6();
        namespace.handle().ip("link add own0 type bridge");
        Self { namespace }
    }

    /// A namespace of others, which the daemon is lent.
    fn ns(&self) -> Namespace {
        self.namespace.handle()
    }
}

/// Makes something of every kind, and uses it.
fn make_everything(host: &Host, foreign: &Foreign) -> Vec<String> {
    host.network("app", APP);
    host.network("back", "--subnet 10.91.2.0/24 --subnet fd00:91:2::/64 --internal");
    let a = host.sandbox("a", "--network app --network back -p 8080:80 -p 9000-9100:9000-9100");
    let b = host.sandbox("b", "-p 8081:81/udp");
    let adopted = format!("--network app --netns {}", foreign.ns().path().display());
    let c = host.sandbox("c", &adopted);
    host.ok(["network", "connect", "back", &b.name]);
    for (prefix, family) in ROUTES.into_iter().zip(BOTH) {
        host.ok(["route", "add", prefix, "via", &family.outside().to_string()]);
    }
    host.ok(["fdb", "add", "02:00:00:00:00:99", "--network", "app", "--sandbox", &a.name]);
    let _server = TcpServer::start(&a.ns, (ANY, 80));
    for family in BOTH {
        TcpClient::connect(&host.outside, (family.host(), 8080)).echo("in");
        TcpClient::connect(&host.ns, (family.localhost(), 8080)).echo("from the host");
        assert_ping(&c.ns, family.of(&a), 64);
        assert_ping(&c.ns, family.outside(), 63);
    }
    assert_ping(&b.ns, BOTH[0].outside(), 63);
    [a, b, c].map(|sandbox| sandbox.name).to_vec()
}

/// Behind the outside machine.
const ROUTES: [&str; 2] = ["198.51.100.0/24", "2001:db8:9::/48"];

/// Rows: netavark `teardown`.
#[test]
#[ignore = "needs root"]
fn what_was_removed_leaves_no_trace() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    let foreign = Foreign::make(&host);
    host.launch();
    let before = Inventory::of(&host);
    let before_foreign = Inventory::of_namespace(&foreign.ns());
    for _ in 0..2 {
        let sandboxes = make_everything(&host, &foreign);
        host.ok(["sandbox", "rm"].into_iter().chain(sandboxes.iter().map(String::as_str)));
        host.ok(["network", "rm", "app", "back"]);
        for prefix in ROUTES {
            host.ok(["route", "rm", prefix]);
        }
        Inventory::of(&host).assert_same(&before, "sandboxes and networks");
        Inventory::of_namespace(&foreign.ns()).assert_same(&before_foreign, "an adopted sandbox");
    }
    assert_eq!(rows(&host.json(["port", "ls"])).len(), 0);
    assert_eq!(rows(&host.json(["conntrack", "list", "--network", "bridge"])).len(), 0);
}

/// Rows: passt `shutdown`.
#[test]
#[ignore = "needs root"]
fn purge_removes_all_of_ours_and_the_daemon_goes_on() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    let foreign = Foreign::make(&host);
    let before = Inventory::of(&host);
    let before_foreign = Inventory::of_namespace(&foreign.ns());
    host.launch();
    make_everything(&host, &foreign);
    host.refused(2, &["--yes"], ["purge"]);
    host.ok(["purge", "--yes"]);
    // Longer than from one look at the host to the next: nothing may come back by itself.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let after = Inventory::of(&host);
    for part in [
        "links",
        "addresses",
        "routes",
        "rules",
        "nft",
        "qdiscs",
        "filters",
        "namespaces",
        "listening",
    ] {
        assert_eq!(before.part(part), after.part(part), "{part}");
    }
    Inventory::of_namespace(&foreign.ns()).assert_same(&before_foreign, "purge");
    assert_eq!(rows(&host.json(["sandbox", "ls"])).len(), 0);
    // It can be used again as if it were new.
    let names = make_everything(&host, &foreign);
    assert_eq!(names.len(), 3);
    host.ok(["purge", "--yes"]);
    host.stop(Signal::SIGTERM);
    Inventory::of(&host).assert_same(&before, "purge, and a stop with nothing made since");
}

fn offline_purge(signal: Signal) {
    let mut host = Host::prepare_dual(Uplink::Shared);
    let foreign = Foreign::make(&host);
    let before = Inventory::of(&host);
    let before_foreign = Inventory::of_namespace(&foreign.ns());
    host.launch();
    make_everything(&host, &foreign);
    host.run_daemon(["--purge"]).is_refusal("vswitchd", 4, &["vswitchctl purge"]);
    host.stop(signal);
    host.purge_offline();
    Inventory::of(&host).assert_same(&before, "vswitchd --purge");
    Inventory::of_namespace(&foreign.ns()).assert_same(&before_foreign, "vswitchd --purge");
    // Nothing is left to purge, which is no error.
    host.purge_offline();
}

#[test]
#[ignore = "needs root"]
fn offline_purge_after_a_clean_stop_leaves_no_trace() {
    offline_purge(Signal::SIGTERM);
}

#[test]
#[ignore = "needs root"]
fn offline_purge_after_a_kill_leaves_no_trace() {
    offline_purge(Signal::SIGKILL);
}

/// Sandboxes go while frames are on their way to them, and others come that may have their places: in another
/// network, nothing of it reaches those.
#[test]
#[ignore = "needs root"]
fn who_comes_next_gets_nothing_of_what_was_on_its_way() {
    const PACE: u32 = 20_000;
    let host = Host::start(Uplink::None);
    host.network("app", "--subnet 10.91.1.0/24");
    host.network("other", "--subnet 10.91.2.0/24");
    let sender = host.sandbox("sender", "--network app");
    let mac_of = |sandbox: &Sandbox| -> Mac {
        let shown = one(&host.json(["sandbox", "inspect", &sandbox.name]));
        shown["endpoints"][0]["mac"].as_str().unwrap().parse().unwrap()
    };
    let own = mac_of(&sender);
    let its = move |frame: &[u8]| frame.get(6..12) == Some(&own.0);
    for round in 0..5 {
        let victim = host.sandbox("victim", "--network app");
        let frame = ethernet(own, mac_of(&victim), 0x88b5, &[7; 46]);
        let make: Make = Arc::new(move |_| frame.clone().into());
        let seen = RawListener::start(&victim.ns, "eth0", its);
        let flood = Flood::start(&sender.ns, "eth0", Some(PACE), &make);
        std::thread::sleep(Duration::from_millis(100));
        let came = seen.seen().len();
        assert!(came > 100, "round {round}: {came} came of {}", flood.sent());
        host.ok(["sandbox", "rm", &victim.name]);
        let next = host.sandbox("next", "--network other");
        let seen = RawListener::start(&next.ns, "eth0", its);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(seen.seen(), Vec::<Vec<u8>>::new(), "round {round}");
        let known = rows(&host.json(["fdb", "show"]));
        assert!(known.iter().all(|entry| entry["sandbox"] != *victim.name), "{known:?}");
        drop(flood);
        host.ok(["sandbox", "rm", &next.name]);
    }
}

/// Rows: netavark `teardown with the namespace missing`.
#[test]
#[ignore = "needs root"]
fn a_sandbox_whose_namespace_went_away_can_be_removed() {
    let host = Host::start(Uplink::None);
    let a = host.sandbox("a", "");
    let b = host.sandbox("b", "");
    let deleted =
        tests::host::ran(std::process::Command::new("ip").args(["netns", "del", &a.name]));
    assert_eq!(deleted.code, 0, "{deleted}");
    assert_ping(&b.ns, Ipv4Addr::new(172, 30, 0, 1), 64);
    host.ok(["sandbox", "rm", &a.name]);
    let again = host.sandbox("a", "");
    assert_ping(&again.ns, b.ip, 64);
}

#[test]
#[ignore = "needs root"]
fn a_namespace_of_the_same_name_made_by_others_is_not_touched() {
    let mut host = Host::start(Uplink::None);
    let a = host.sandbox("a", "");
    host.stop(Signal::SIGTERM);
    let replace = |args: [&str; 3]| {
        let ran = tests::host::ran(std::process::Command::new("ip").args(args));
        assert_eq!(ran.code, 0, "{ran}");
    };
    replace(["netns", "del", &a.name]);
    replace(["netns", "add", &a.name]);
    a.ns.ip("link add own0 type bridge");
    host.launch();
    host.ok(["sandbox", "rm", &a.name]);
    assert!(a.ns.exists(), "a namespace of others was removed");
    assert!(a.ns.ip("link show").contains("own0"));
}

/// At any moment: while it builds, measures, or has just begun to take everything away.
#[test]
#[ignore = "needs root"]
fn a_demo_that_is_broken_off_leaves_nothing() {
    for millis in [50, 400, 900, 1500, 3000] {
        let mut demo = Command::new(programs().join("vswitchd"))
            .arg("demo")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(millis));
        let pid = Pid::from_raw(i32::try_from(demo.id()).unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        let ended = demo.wait().unwrap();
        // Before it listens to signals, one ends it as it ends any program.
        let by_signal = ended.code() == Some(130) || ended.signal() == Some(2);
        assert!(by_signal, "after {millis} ms: {ended}");
        let name = format!("vswitchd-demo-{pid}");
        for folder in [Path::new("/run/netns"), &std::env::temp_dir()] {
            let left: Vec<_> = fs::read_dir(folder)
                .into_iter()
                .flatten()
                .map(|entry| entry.unwrap().file_name())
                .filter(|found| found.to_string_lossy().starts_with(&name))
                .collect();
            assert!(left.is_empty(), "after {millis} ms: {left:?}");
        }
    }
}
