//! Bad input: one clear line, the right exit code, and nothing half-made.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use redb::ReadableDatabase as _;
use tests::host::inventory::Inventory;
use tests::host::traffic::{TcpServer, assert_ping};
use tests::host::{Host, Uplink, one, programs, ran};

const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const CONFLICT: i32 = 4;

/// What the API says and what the host has.
fn everything(host: &Host) -> (Vec<String>, Inventory) {
    let shown = [
        ["network", "ls"],
        ["sandbox", "ls"],
        ["port", "ls"],
        ["uplink", "ls"],
        ["route", "ls"],
        ["nat", "rules"],
    ];
    let shown = shown.into_iter().map(|args| host.json(args).to_string()).collect();
    (shown, Inventory::of(host))
}

/// Runs every command line (words separated by blanks, `SELF` is the sandbox's name), each of
/// which must be refused and change nothing.
fn all_refused(host: &Host, table: &[(i32, &[&str], &str)]) {
    let (shown, before) = everything(host);
    for (code, words, line) in table {
        let line = line.replace("SELF", &host.name("web")).replace("NEW", &host.name("new"));
        let args = line.split(' ').map(|word| if word == "''" { "" } else { word });
        host.refused(*code, words, args);
    }
    let (shown_after, after) = everything(host);
    before.assert_same(&after, "refused commands");
    assert_eq!(shown, shown_after);
}

fn host_with_web() -> Host {
    let host = Host::start(Uplink::Shared);
    host.network("app", "--subnet 10.91.1.0/24 --gateway 10.91.1.1");
    host.sandbox("web", "--network app -p 8080:80");
    host
}

#[test]
#[ignore = "needs root"]
fn malformed_values_are_refused() {
    let long = "x".repeat(300);
    all_refused(
        &host_with_web(),
        &[
            (USAGE, &["10.91.300.0/24"], "network create n --subnet 10.91.300.0/24"),
            (USAGE, &["10.91.2.0/33"], "network create n --subnet 10.91.2.0/33"),
            (USAGE, &["10.91.2.1/24", "10.91.2.0/24"], "network create n --subnet 10.91.2.1/24"),
            (USAGE, &["10.91.2.0/31"], "network create n --subnet 10.91.2.0/31"),
            (USAGE, &["224.0.0.0/24"], "network create n --subnet 224.0.0.0/24"),
            (USAGE, &["127.0.0.0/24"], "network create n --subnet 127.0.0.0/24"),
            (USAGE, &["169.254.0.0/16", "link-local"], "network create n --subnet 169.254.0.0/16"),
            (USAGE, &["126.0.0.0/7", "loopback"], "network create n --subnet 126.0.0.0/7"),
            (USAGE, &["0.0.0.0/8"], "network create n --subnet 0.0.0.0/8"),
            (USAGE, &["240.0.0.0/4", "reserved"], "network create n --subnet 240.0.0.0/4"),
            (USAGE, &["10.91.2.0/32"], "network create n --subnet 10.91.2.0/32"),
            (USAGE, &["10.91.3.1"], "network create n --subnet 10.91.2.0/24 --gateway 10.91.3.1"),
            (USAGE, &["10.91.2.0"], "network create n --subnet 10.91.2.0/24 --gateway 10.91.2.0"),
            (
                USAGE,
                &["10.91.9.0/25"],
                "network create n --subnet 10.91.2.0/24 --ip-range 10.91.9.0/25",
            ),
            (USAGE, &["x"], "network create n --subnet 10.91.2.0/24 --aux-address x"),
            (USAGE, &["gateway 10.91.2.1", "--subnet"], "network create n --gateway 10.91.2.1"),
            (USAGE, &["colour", "known", "mtu", "icc"], "network create n -o colour=red"),
            (USAGE, &["mtu"], "network create n -o mtu=12"),
            (USAGE, &["icc"], "network create n -o icc=maybe"),
            (USAGE, &["not built yet"], "network create n -d macvlan"),
            (USAGE, &["not built yet"], "network create n -d ipvlan"),
            (USAGE, &["not built yet"], "network create n -d overlay"),
            (USAGE, &["\"tokenring\""], "network create n -d tokenring"),
            (USAGE, &["IPv6", "1280"], "network create n --ipv6 -o mtu=1000"),
            (USAGE, &["'/'"], "network create a/b"),
            (USAGE, &["\"..\""], "network create .."),
            (USAGE, &["\"..\""], "network create a..b"),
            (USAGE, &["empty"], "network create ''"),
            (USAGE, &["300 bytes"], &format!("network create {long}")),
            (USAGE, &["'/'"], "sandbox create ../../etc/passwd"),
            (USAGE, &[".."], "sandbox create .."),
            (USAGE, &["empty"], "sandbox create ''"),
            (USAGE, &["300 bytes"], &format!("sandbox create {long}")),
            (USAGE, &["10.91.1"], "sandbox create NEW --network app --ip 10.91.1"),
            (USAGE, &["10.91.7.7", "\"app\""], "sandbox create NEW --network app --ip 10.91.7.7"),
            (USAGE, &["02:00"], "sandbox create NEW --network app --mac 02:00"),
            (
                USAGE,
                &["01:00:00:00:00:01"],
                "sandbox create NEW --network app --mac 01:00:00:00:00:01",
            ),
            (USAGE, &["70000"], "sandbox create NEW --network app -p 70000:80"),
            (USAGE, &["80/quic"], "sandbox create NEW --network app -p 80/quic"),
            (USAGE, &["9000-9001:80-82"], "sandbox create NEW --network app -p 9000-9001:80-82"),
            (USAGE, &["9000-8000"], "sandbox create NEW --network app -p 9000-8000:80-90"),
            (USAGE, &["-p"], "sandbox create NEW --network none -p 8081:80"),
            (USAGE, &["none"], "sandbox create NEW --network none --network app"),
            (USAGE, &["app"], "sandbox create NEW --network app --network app"),
            (USAGE, &["netns"], "sandbox create NEW --netns relative/path"),
            (USAGE, &["pid:x"], "sandbox create NEW --netns pid:x"),
            (USAGE, &["8080x"], "port publish SELF 8080x:80"),
            (USAGE, &["dedicated", "--address"], "uplink add up0 --mode dedicated"),
            (
                USAGE,
                &["192.0.2.300/24"],
                "uplink add up0 --mode dedicated --address 192.0.2.300/24",
            ),
            (USAGE, &["198.51.100.0/40"], "route add 198.51.100.0/40 via 192.0.2.1"),
            (USAGE, &["over"], "route add 198.51.100.0/24 over 192.0.2.1"),
            (USAGE, &["zz"], "fdb add zz --network app --sandbox SELF"),
            (USAGE, &["carp"], "conntrack list --proto carp"),
            (USAGE, &["\"FOO\"", "ESTABLISHED", "ASSURED"], "conntrack list --state FOO"),
            (USAGE, &["\"FOO\"", "ESTABLISHED", "ASSURED"], "conntrack flush --state FOO"),
            (USAGE, &["quux"], "capture --sandbox SELF quux"),
            (USAGE, &["--sandbox"], "capture"),
            (USAGE, &["frobnicate"], "frobnicate"),
            (USAGE, &["frobnicate"], "network frobnicate"),
            (USAGE, &["--frobnicate"], "sandbox create NEW --frobnicate"),
            (USAGE, &["<NAME>"], "sandbox create"),
            (USAGE, &["yaml"], "--format yaml status"),
        ],
    );
}

#[test]
#[ignore = "needs root"]
fn networks_that_are_but_a_name_are_settled_at_creation() {
    all_refused(
        &host_with_web(),
        &[
            (USAGE, &["\"none\"", "--network none"], "network connect none SELF"),
            (USAGE, &["\"host\"", "--network host"], "network connect host SELF"),
            (USAGE, &["\"none\"", "connect"], "network disconnect none SELF"),
            (USAGE, &["\"host\"", "remove the sandbox"], "network disconnect host SELF"),
            (USAGE, &["\"host\""], "fdb add 02:00:00:00:00:01 --network host --sandbox SELF"),
            (USAGE, &["\"none\""], "fdb flush --network none"),
            (CONFLICT, &["\"host\"", "no interface"], "capture --network host"),
        ],
    );
}

#[test]
#[ignore = "needs root"]
fn a_long_word_makes_a_short_line() {
    let host = Host::start(Uplink::None);
    let long = "x".repeat(100_000);
    for (code, args) in [
        (USAGE, ["network", "create", &long]),
        (USAGE, ["sandbox", "inspect", &long]),
        (USAGE, ["network", &long, "x"]),
        (USAGE, ["--format", &long, "status"]),
        (5, ["--socket", &long, "status"]),
        (5, ["--socket", "a\u{1b}[31m\nb", "status"]),
    ] {
        let ran = host.ctl(args);
        ran.is_refusal("vswitchctl", code, &[]);
        assert!(ran.stderr.len() < 1200, "{}", ran.stderr.len());
        assert!(!ran.stderr.trim_end().contains(char::is_control), "{:?}", ran.stderr);
    }
}

#[test]
#[ignore = "needs root"]
fn unknown_names_are_refused() {
    all_refused(
        &host_with_web(),
        &[
            (NOT_FOUND, &["\"nosuch\""], "network inspect nosuch"),
            (NOT_FOUND, &["\"nosuch\""], "network rm nosuch"),
            (NOT_FOUND, &["\"nosuch\""], "network connect nosuch SELF"),
            (NOT_FOUND, &["\"nosuch\""], "network connect app nosuch"),
            (NOT_FOUND, &["\"nosuch\""], "network disconnect nosuch SELF"),
            (NOT_FOUND, &["\"nosuch\""], "network disconnect app nosuch"),
            (NOT_FOUND, &["bridge"], "network disconnect bridge SELF"),
            (NOT_FOUND, &["\"nosuch\""], "sandbox create NEW --network nosuch"),
            (NOT_FOUND, &["/run/netns/nosuch"], "sandbox create NEW --netns /run/netns/nosuch"),
            (NOT_FOUND, &["\"nosuch\""], "sandbox inspect nosuch"),
            (NOT_FOUND, &["\"nosuch\""], "sandbox rm nosuch"),
            (NOT_FOUND, &["\"nosuch\""], "exec nosuch -- true"),
            (NOT_FOUND, &["\"nosuch\""], "run --name NEW --network nosuch -- true"),
            (NOT_FOUND, &["\"nosuch\""], "port publish nosuch 8081:80"),
            (NOT_FOUND, &["\"nosuch\""], "port unpublish nosuch 8080:80"),
            (NOT_FOUND, &["8081"], "port unpublish SELF 8081:80"),
            (NOT_FOUND, &["\"nosuch0\""], "uplink add nosuch0"),
            (NOT_FOUND, &["\"nosuch0\""], "uplink rm nosuch0"),
            (NOT_FOUND, &["nosuch0"], "route add 198.51.100.0/24 via 192.0.2.1 --uplink nosuch0"),
            (NOT_FOUND, &["198.51.100.0/24"], "route rm 198.51.100.0/24"),
            (NOT_FOUND, &["\"nosuch\""], "fdb show --network nosuch"),
            (
                NOT_FOUND,
                &["\"nosuch\""],
                "fdb add 02:00:00:00:00:01 --network nosuch --sandbox SELF",
            ),
            (
                NOT_FOUND,
                &["\"nosuch\""],
                "fdb add 02:00:00:00:00:01 --network app --sandbox nosuch",
            ),
            (NOT_FOUND, &["02:00:00:00:00:01"], "fdb del 02:00:00:00:00:01 --network app"),
            (NOT_FOUND, &["\"nosuch\""], "fdb flush --network nosuch"),
            (NOT_FOUND, &["\"nosuch\""], "conntrack list --network nosuch"),
            (NOT_FOUND, &["\"nosuch\""], "drops --network nosuch"),
            (NOT_FOUND, &["\"nosuch\""], "drops --sandbox nosuch"),
            (NOT_FOUND, &["\"nosuch\""], "stats --sandbox nosuch"),
            (NOT_FOUND, &["\"nosuch\""], "capture --sandbox nosuch"),
            (NOT_FOUND, &["\"nosuch\""], "capture --network nosuch"),
            (NOT_FOUND, &["\"nosuch0\""], "capture --uplink nosuch0"),
        ],
    );
}

/// Rows: RFC 4787 REQ-7.
#[test]
#[ignore = "needs root"]
fn clashes_are_refused() {
    let host = host_with_web();
    // A route of the host that is nobody's network.
    host.ns.ip("route add 10.93.0.0/16 via 192.0.2.1");
    host.network("tiny", "--subnet 10.91.9.0/30 --gateway 10.91.9.1");
    host.sandbox("only", "--network tiny");
    let _busy = TcpServer::start(&host.ns, (Ipv4Addr::UNSPECIFIED, 8090));
    let foreign = tests::host::namespace::Namespace::create(&host.name("taken"));
    foreign.handle().ip("link add eth0 type bridge");
    all_refused(
        &host,
        &[
            (CONFLICT, &["\"app\""], "network create app"),
            (CONFLICT, &["\"bridge\""], "network create bridge"),
            (CONFLICT, &["10.91.1.0/25", "\"app\""], "network create n --subnet 10.91.1.0/25"),
            (CONFLICT, &["10.0.0.0/8"], "network create n --subnet 10.0.0.0/8"),
            (CONFLICT, &["10.93.0.0/16", "route"], "network create n --subnet 10.93.0.0/16"),
            (CONFLICT, &["10.93.0.0/16", "route"], "network create n --subnet 10.92.0.0/15"),
            (CONFLICT, &["192.0.2.0/25"], "network create n --subnet 192.0.2.0/25"),
            (CONFLICT, &["\"app\"", "web"], "network rm app"),
            (CONFLICT, &["exists"], "sandbox create SELF"),
            (USAGE, &["10.91.1.1", "gateway"], "sandbox create NEW --network app --ip 10.91.1.1"),
            (CONFLICT, &["10.91.1.2"], "sandbox create NEW --network app --ip 10.91.1.2"),
            (CONFLICT, &["\"tiny\"", "10.91.9.0/30"], "sandbox create NEW --network tiny"),
            (CONFLICT, &["8080"], "sandbox create NEW --network app -p 8080:80"),
            (
                CONFLICT,
                &["8000-8100", "web"],
                "sandbox create NEW --network app -p 8000-8100:8000-8100",
            ),
            (CONFLICT, &["8090"], "sandbox create NEW --network app -p 8090:80"),
            (CONFLICT, &["8090"], "port publish SELF 8090:80"),
            (CONFLICT, &["8080"], "port publish SELF 8080:81"),
            (CONFLICT, &["already"], "network connect app SELF"),
        ],
    );
    // A namespace of that name exists that is not ours; and adopting it works around its eth0.
    let taken = host.name("taken");
    host.refused(CONFLICT, &["namespace", "--netns"], ["sandbox", "create", &taken]);
    assert!(foreign.handle().exists());
    // Predefined networks stay.
    for name in ["bridge", "host", "none"] {
        let ran = host.ctl(["network", "rm", name]);
        assert!(ran.code == USAGE || ran.code == CONFLICT, "{ran}");
        ran.is_refusal("vswitchctl", ran.code, &[name]);
    }
}

#[test]
#[ignore = "needs root"]
fn a_second_daemon_does_not_disturb_the_first() {
    let host = host_with_web();
    let web = host.find(&host.name("web"));
    let before = everything(&host);
    let second = |socket: &str, state: &str, run_dir: &str| {
        ran(host.ns.command(programs().join("vswitchd")).args([
            "--socket",
            host.path(socket).to_str().unwrap(),
            "--state-dir",
            host.path(state).to_str().unwrap(),
            "--run-dir",
            host.path(run_dir).to_str().unwrap(),
        ]))
    };
    host.run_daemon([]).is_refusal("vswitchd", CONFLICT, &["api.sock"]);
    second("run/vswitchd/api.sock", "lib/second", "run/vswitchd").is_refusal(
        "vswitchd",
        CONFLICT,
        &["api.sock"],
    );
    second("run/second.sock", "lib/state", "run/second").is_refusal(
        "vswitchd",
        CONFLICT,
        &["lib/state"],
    );
    second("run/second.sock", "lib/second", "run/second").is_refusal(
        "vswitchd",
        CONFLICT,
        &["network namespace"],
    );
    assert_eq!(everything(&host), before);
    assert_eq!(one(&host.json(["status"]))["pid"], host.pid());
    assert_ping(&web.ns, Ipv4Addr::new(10, 91, 1, 1), 64);
}

#[test]
#[ignore = "needs root"]
fn what_anybody_can_take_does_not_keep_it_from_starting() {
    let mut host = Host::prepare(Uplink::None);
    let name = SocketAddr::from_abstract_name("vswitchd").unwrap();
    let _taken = host.ns.enter(|| UnixListener::bind_addr(&name).unwrap());
    host.launch();
    let namespace = fs::metadata(host.ns.path()).unwrap().ino();
    let claim = PathBuf::from(format!("/run/vswitchd-netns-{namespace}.lock"));
    assert_eq!(fs::metadata(&claim).unwrap().permissions().mode() & 0o7777, 0o600);
    // A killed one leaves it, which is in nobody's way; a clean stop takes it along.
    host.stop(Signal::SIGKILL);
    host.launch();
    host.stop(Signal::SIGTERM);
    assert!(!claim.exists());
}

#[test]
#[ignore = "needs root"]
fn the_socket_is_for_root_and_its_group() {
    let host = Host::start(Uplink::None);
    let mode = fs::metadata(host.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
}

#[test]
#[ignore = "needs root"]
fn without_a_daemon_the_client_says_so() {
    let mut host = Host::prepare(Uplink::None);
    for line in ["status", "sandbox ls", "network create n", "capture --network bridge"] {
        host.refused(5, &["api.sock"], line.split(' '));
    }
    host.launch();
    host.stop(Signal::SIGTERM);
    host.refused(5, &["api.sock"], ["status"]);
    assert!(!host.socket().exists());
    // A socket that a killed daemon left, and a file that is none.
    host.launch();
    host.stop(Signal::SIGKILL);
    host.refused(5, &["api.sock"], ["status"]);
    fs::remove_file(host.socket()).unwrap();
    fs::write(host.socket(), "").unwrap();
    host.refused(5, &["api.sock"], ["status"]);
    host.run_daemon([]).is_refusal("vswitchd", CONFLICT, &["api.sock", "remove"]);
}

/// A copy of the program that anybody may run.
fn for_everybody(program: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::TempDir::with_prefix("vsw-t-").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join(program);
    fs::copy(programs().join(program), &copy).unwrap();
    (folder, copy)
}

#[test]
#[ignore = "needs root"]
fn without_root_daemon_and_client_say_so() {
    let host = Host::start(Uplink::None);
    let nobody = |program: &std::path::Path| {
        let mut command = host.ns.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
        command
    };
    let (_folder, vswitchd) = for_everybody("vswitchd");
    let before = Inventory::of(&host);
    ran(&mut nobody(&vswitchd)).is_refusal("vswitchd", 1, &["root"]);
    ran(nobody(&vswitchd).arg("--purge")).is_refusal("vswitchd", 1, &["root"]);
    ran(nobody(&vswitchd).arg("demo")).is_refusal("vswitchd demo", 1, &["root"]);
    before.assert_same(&Inventory::of(&host), "a daemon without root");
    let (_folder, vswitchctl) = for_everybody("vswitchctl");
    let socket = host.socket();
    let denied = ran(nobody(&vswitchctl).args(["--socket", socket.to_str().unwrap(), "status"]));
    denied.is_refusal("vswitchctl", 5, &["api.sock", "ermission denied"]);
}

#[test]
#[ignore = "needs root"]
fn without_dev_net_tun_the_daemon_says_so() {
    let host = Host::prepare(Uplink::Shared);
    let before = Inventory::of(&host);
    let empty = tempfile::TempDir::new().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /dev/net && exec \"$@\""]);
    command.arg(empty.path());
    let daemon = host.daemon_command();
    command.arg(daemon.get_program()).args(daemon.get_args());
    ran(&mut command).is_refusal("vswitchd", 1, &["/dev/net/tun"]);
    before.assert_same(&Inventory::of(&host), "a daemon without /dev/net/tun");
}

#[test]
#[ignore = "needs root"]
fn a_broken_config_is_refused_by_line() {
    let host = Host::prepare(Uplink::Shared);
    let table: [(&str, &[&str]); 9] = [
        ("[daemon]\nworkers = 1\ncolour = 3\n", &["vswitchd.toml:3", "colour"]),
        ("[daemon]\n[dream]\n", &["vswitchd.toml:2", "dream"]),
        ("[daemon\n", &["vswitchd.toml:1"]),
        ("[defaults]\n\nmtu = \"big\"\n", &["vswitchd.toml:3", "mtu"]),
        ("[limits]\nconntrack = 1\n", &["vswitchd.toml:2", "conntrack"]),
        ("[[network]]\nname = \"a/b\"\n", &["vswitchd.toml:2", "a/b"]),
        (
            "[[network]]\nname = \"n\"\nsubnet = \"10.1.1.1/24\"\n",
            &["vswitchd.toml:", "10.1.1.1/24"],
        ),
        (
            "[[network]]\nname = \"n\"\nsubnet = \"169.254.0.0/16\"\n",
            &["vswitchd.toml:1", "\"n\"", "169.254.0.0/16", "link-local"],
        ),
        ("[[uplink]]\ninterface = \"up0\"\nmode = \"dedicated\"\n", &["vswitchd.toml:", "up0"]),
    ];
    for (text, words) in table {
        fs::write(host.path("vswitchd.toml"), text).unwrap();
        let before = Inventory::of(&host);
        host.run_daemon([]).is_refusal("vswitchd", USAGE, words);
        host.run_daemon(["--check-config"]).is_refusal("vswitchd", USAGE, words);
        before.assert_same(&Inventory::of(&host), "a daemon with a broken config");
    }
    let folder = host.path("");
    let folder = folder.to_str().unwrap();
    for flags in [["--config", folder].as_slice(), &["--config", folder, "--check-config"]] {
        let mut daemon = host.ns.command(programs().join("vswitchd"));
        ran(daemon.args(flags)).is_refusal("vswitchd", USAGE, &[folder, "is a directory"]);
    }
    for (flags, words) in [
        (["--workers", "0"], "workers"),
        (["--metrics", "nowhere"], "metrics"),
        (["--frobnicate", "x"], "frobnicate"),
    ] {
        fs::write(host.path("vswitchd.toml"), "").unwrap();
        host.run_daemon(flags).is_refusal("vswitchd", USAGE, &[words]);
    }
}

#[test]
#[ignore = "needs root"]
fn a_config_declares_networks_and_uplinks() {
    let mut host = Host::prepare(Uplink::Dedicated);
    let config = "[daemon]\nworkers = 1\n[defaults]\nmtu = 1400\n\
                  [[uplink]]\ninterface = \"up0\"\nmode = \"dedicated\"\n\
                  addresses = [\"192.0.2.2/24\"]\ngateway = \"192.0.2.1\"\n\
                  [[network]]\nname = \"app\"\nsubnet = \"10.91.1.0/24\"\n";
    fs::write(host.path("vswitchd.toml"), config).unwrap();
    let checked = host.run_daemon(["--check-config"]);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""), "{checked}");
    host.launch();
    let a = host.sandbox("a", "--network app");
    assert_ping(&a.ns, tests::host::GATEWAY, 63);
    assert!(a.ns.ip("link show eth0").contains("mtu 1400"));
    assert_eq!(one(&host.json(["status"]))["workers"].as_array().unwrap().len(), 1);
    // SIGHUP reads it again.
    let more = format!("{config}[[network]]\nname = \"late\"\nsubnet = \"10.91.2.0/24\"\n");
    fs::write(host.path("vswitchd.toml"), more).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(host.pid()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
    tests::host::eventually(std::time::Duration::from_secs(5), "the network is there", || {
        host.ctl(["network", "inspect", "late"]).code == 0
    });
}

#[test]
#[ignore = "needs root"]
fn a_broken_state_is_refused_and_left_alone() {
    let mut host = host_with_web();
    host.stop(Signal::SIGTERM);
    let path = host.path("lib/state/state.redb");
    let sound = fs::read(&path).unwrap();
    let mut flipped = sound.clone();
    flipped[..64].fill(0xff);
    let broken: [(&str, &[u8]); 3] = [
        ("garbage", b"this is not a database"),
        ("truncated", &sound[..sound.len() / 2]),
        ("overwritten", &flipped),
    ];
    for (what, bytes) in broken {
        fs::write(&path, bytes).unwrap();
        let before = Inventory::of(&host);
        host.run_daemon([]).is_refusal("vswitchd", 1, &["state.redb"]);
        assert_eq!(fs::read(&path).unwrap(), bytes, "{what}: the file was changed");
        before.assert_same(&Inventory::of(&host), what);
    }
    // Written by a version to come.
    fs::write(&path, &sound).unwrap();
    {
        let meta = redb::TableDefinition::<&str, &[u8]>::new("meta");
        let db = redb::Database::open(&path).unwrap();
        let found = db.begin_read().unwrap().open_table(meta).unwrap();
        assert!(redb::ReadableTable::get(&found, "version").unwrap().is_some());
        drop(found);
        let txn = db.begin_write().unwrap();
        txn.open_table(meta).unwrap().insert("version", b"4711".as_slice()).unwrap();
        txn.commit().unwrap();
    }
    let newer = fs::read(&path).unwrap();
    host.run_daemon([]).is_refusal("vswitchd", 1, &["state.redb", "4711"]);
    assert!(fs::read(&path).unwrap() == newer, "the file was changed");
    // The sound one is taken.
    fs::write(&path, &sound).unwrap();
    host.launch();
    assert_ping(&host.find(&host.name("web")).ns, Ipv4Addr::new(10, 91, 1, 1), 64);
}
