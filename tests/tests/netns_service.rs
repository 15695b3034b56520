//! The daemon as a service: what it tells its manager, and that the unit leaves it what it needs.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use tests::host::namespace::{Namespace, Process};
use tests::host::traffic::assert_ping;
use tests::host::{Host, Uplink};

/// A service manager as far as `NOTIFY_SOCKET` goes.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(host: &Host) -> Self {
        let socket = UnixDatagram::bind(host.path("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self(socket)
    }

    /// What it is told next.
    fn told(&self) -> Vec<String> {
        let mut text = [0; 4096];
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if let Ok(length) = self.0.recv(&mut text) {
                let text = std::str::from_utf8(&text[..length]).unwrap();
                return text.lines().map(str::to_owned).collect();
            }
        }
        panic!("nothing was told");
    }
}

fn start(host: &Host, command: &mut Command) -> Process {
    let log = fs::File::create(host.path("log")).unwrap();
    Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log))
}

fn log(host: &Host) -> String {
    fs::read_to_string(host.path("log")).unwrap()
}

fn now() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000
}

#[test]
#[ignore = "needs root"]
fn the_manager_is_told_of_start_reload_and_stop() {
    let host = Host::prepare(Uplink::None);
    let manager = Manager::listen(&host);
    let mut command = host.daemon_command();
    command.env("NOTIFY_SOCKET", host.path("notify")).env("JOURNAL_STREAM", "8:1");
    let mut daemon = start(&host, &mut command);
    assert_eq!(manager.told()[0], "READY=1");
    // Ready means that it answers, without another try.
    assert_eq!(host.ctl(["status"]).code, 0);
    for wrong in [false, true] {
        host.configure(if wrong { "[daemon]\nworkers = 0\n" } else { "" });
        let before = now();
        daemon.signal(Signal::SIGHUP);
        let told = manager.told();
        assert_eq!(told[0], "RELOADING=1");
        let at: i64 = told[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((before..=now()).contains(&at), "{at} is not from {before} on");
        assert_eq!(manager.told()[0], "READY=1");
        assert_eq!(log(&host).contains("<3>configuration not taken: "), wrong, "{}", log(&host));
    }
    daemon.signal(Signal::SIGTERM);
    assert_eq!(manager.told()[0], "STOPPING=1");
    assert_eq!(daemon.wait(Duration::from_secs(15)).code(), Some(0));
    // To the journal, each line begins with its level.
    assert!(log(&host).lines().all(|line| line.starts_with('<')), "{}", log(&host));
}

#[test]
#[ignore = "needs root"]
fn nobody_to_tell_is_no_reason_to_fail() {
    let host = Host::prepare(Uplink::None);
    let mut command = host.daemon_command();
    command.env("NOTIFY_SOCKET", host.path("nobody"));
    let mut daemon = start(&host, &mut command);
    let deadline = Instant::now() + Duration::from_secs(15);
    while host.ctl(["status"]).code != 0 {
        assert!(Instant::now() < deadline, "{}", log(&host));
        std::thread::sleep(Duration::from_millis(30));
    }
    // It answers before it tells.
    while !log(&host).contains("tell the service manager: ") {
        assert!(Instant::now() < deadline, "{}", log(&host));
        std::thread::sleep(Duration::from_millis(30));
    }
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(Duration::from_secs(15)).code(), Some(0));
}

/// The capabilities that the unit leaves, as `setpriv` takes them.
fn capabilities() -> String {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../control/systemd/vswitchd.service");
    let unit = fs::read_to_string(unit).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let names = line.split(' ').map(|name| name.trim_start_matches("CAP_").to_lowercase());
    names.fold("-all".to_owned(), |all, name| format!("{all},+{name}"))
}

/// The daemon with what the unit leaves of root's powers.
fn confined(host: &Host) -> Command {
    let whole = host.daemon_command();
    let mut args = whole.get_args();
    let mut command = Command::new(whole.get_program());
    // Into the namespace, as root is; then all else.
    command.arg(args.next().unwrap()).arg("setpriv");
    command.arg(format!("--bounding-set={}", capabilities())).arg("--no-new-privs").args(args);
    command
}

#[test]
#[ignore = "needs root"]
fn the_unit_s_capabilities_are_enough() {
    let host = Host::prepare(Uplink::Shared);
    let manager = Manager::listen(&host);
    let mut command = confined(&host);
    command.env("NOTIFY_SOCKET", host.path("notify"));
    let mut daemon = start(&host, &mut command);
    assert_eq!(manager.told()[0], "READY=1", "{}", log(&host));
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    assert_eq!(line("NoNewPrivs:"), "1");
    assert_eq!(line("CapEff:"), line("CapBnd:"), "all that is left, and no more");
    assert_ne!(line("CapEff:"), "000001ffffffffff");
    // TAP, veth, namespaces by name and by process, a published port below 1024, steering, captures.
    host.network("app", "--subnet 10.91.1.0/24");
    host.network("pairs", "--subnet 10.91.2.0/24 -o link=veth");
    let a = host.sandbox("a", "--network app --network pairs -p 80:80");
    let b = host.sandbox("b", "--network app --network pairs");
    assert_ping(&a.ns, b.ip, 64);
    assert_ping(&a.ns, tests::host::GATEWAY, 63);
    let name = host.name("other");
    let other = Namespace::create(&name);
    let inside = Process::start(other.handle().command("sleep").arg("60"));
    let netns = format!("pid:{}", inside.id());
    let adopted = host.name("c");
    host.ok(["sandbox", "create", &adopted, "--network", "app", "--netns", &netns]);
    assert_ping(&a.ns, host.find(&adopted).ip, 64);
    host.ok(["sandbox", "rm", &adopted, &a.name, &b.name]);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(Duration::from_secs(15)).code(), Some(0), "{}", log(&host));
    assert!(
        !log(&host).contains("denied") && !log(&host).contains("not permitted"),
        "{}",
        log(&host)
    );
}
