//! Whose a state directory is: a daemon neither starts nor purges in another network namespace than
//! the one where what it made lies.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use tests::host::inventory::Inventory;
use tests::host::namespace::{Namespace, Owned};
use tests::host::traffic::assert_ping;
use tests::host::{APP, BOTH, Host, Ran, Sandbox, Uplink, ran, rows};

/// A stopped daemon with sandboxes of both kinds, and a namespace that is not its host's.
/// Taken apart in this order: what is named first goes last, and the host cleans up in the namespace
/// that it is at home in by then.
struct Scene {
    elsewhere: Owned,
    host: Host,
    sandboxes: [Sandbox; 3],
}

fn scene() -> Scene {
    let mut host = Host::prepare_dual(Uplink::None);
    host.launch();
    host.network("app", &format!("{APP} -o link=tap"));
    host.network("fast", "--subnet 10.91.2.0/24 --subnet fd00:91:2::/64 -o link=veth");
    let sandboxes = [("a", "app"), ("b", "app"), ("c", "fast")]
        .map(|(name, network)| host.sandbox(name, &format!("--network {network}")));
    host.stop(Signal::SIGTERM);
    let elsewhere = Namespace::create(&host.name("elsewhere"));
    elsewhere.handle().enable_ipv6();
    Scene { elsewhere, host, sandboxes }
}

/// Runs the daemon, which is expected to end by itself, and soon.
fn run(host: &Host, flags: &[&str]) -> Ran {
    let command = host.daemon_command();
    let mut limited = Command::new("timeout");
    ran(limited.arg("10").arg(command.get_program()).args(command.get_args()).args(flags))
}

fn assert_works(host: &Host, [a, b, c]: &[Sandbox; 3]) {
    assert_eq!(rows(&host.json(["sandbox", "ls"])).len(), 3);
    for family in BOTH {
        assert_ping(&a.ns, family.of(b), 64);
        for sandbox in [a, b, c] {
            assert_ping(&host.ns, family.of(sandbox), 64);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn elsewhere_it_neither_starts_nor_purges() {
    let Scene { elsewhere, mut host, sandboxes } = scene();
    let home = std::mem::replace(&mut host.ns, elsewhere.handle());
    let before = (Inventory::of_namespace(&home), Inventory::of(&host));
    let file = || fs::read(host.path("lib/state/state.redb")).unwrap();
    let records = file();
    for flags in [&["--purge"][..], &[]] {
        let named = home.path().display().to_string();
        run(&host, flags).is_refusal("vswitchd", 4, &[named.as_str(), "--new-host"]);
        before.0.assert_same(&Inventory::of_namespace(&home), "at home");
        before.1.assert_same(&Inventory::of(&host), "elsewhere");
        assert!(file() == records, "the records changed");
    }
    host.ns = home;
    host.launch();
    assert_works(&host, &sandboxes);
    // There it may, and nothing stays.
    host.stop(Signal::SIGKILL);
    host.purge_offline();
    assert!(!host.ns.ip("link show").contains("vsw"));
    assert!(sandboxes.iter().all(|sandbox| !sandbox.ns.exists()));
}

#[test]
#[ignore = "needs root"]
fn what_was_made_elsewhere_can_be_given_up() {
    let Scene { elsewhere, mut host, sandboxes } = scene();
    host.ns = elsewhere.handle();
    host.flags(["--new-host"]);
    host.launch();
    assert_works(&host, &sandboxes);
    // From now on it is at home there.
    host.stop(Signal::SIGTERM);
    host.flags([]);
    host.launch();
    assert_works(&host, &sandboxes);
}

#[test]
#[ignore = "needs root"]
fn a_host_that_is_gone_stands_against_nothing() {
    let Scene { elsewhere, mut host, sandboxes } = scene();
    let home = std::mem::replace(&mut host.ns, elsewhere.handle());
    let _ = ran(Command::new("ip").args(["netns", "delete", home.name()])).succeeded();
    host.launch();
    assert_works(&host, &sandboxes);
    assert!(host.log_tail().contains("belongs to is gone"), "{}", host.log_tail());
}
