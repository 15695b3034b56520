//! A host in a network namespace of its own, with the built daemon on it, for tests that use the
//! kernel's stacks as clients and servers.
//!
//! - [`Host`]: the namespace, the daemon, its files and `vswitchctl`.
//! - [`family`]: the addresses of everybody in each IP version, for what is shown of both.
//! - [`namespace`]: namespaces, what runs in them, and programs that end with their test.
//! - [`traffic`]: servers and clients on the kernel's sockets, and `ping`.
//! - [`watch`]: what arrives at an interface.
//! - [`bystander`]: somebody who goes on while something else happens.
//! - [`load`]: a steady load, and what of it got through.
//! - [`flood`]: frames of an attacker's own making, so many a second.
//! - [`raw`]: frames that no stack would send, and all that arrive.
//! - [`inventory`]: everything a host has, to compare before with after.
//!
//! Names begin with the process id and a counter, so that suites run side by side; everything is
//! removed when a test ends, by a panic too. Needs root. The programs are looked for in
//! `VSWITCHD_BIN`, else in `target/release`.

pub mod bystander;
pub mod family;
pub mod flood;
pub mod inventory;
pub mod load;
pub mod namespace;
pub mod raw;
pub mod traffic;
pub mod watch;

mod command;
mod events;
mod uplink;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dataplane::io::IoChoice;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

pub use command::{Ran, ran};
pub use family::{APP, BOTH, Family};
use namespace::{Namespace, Owned, Process};
pub use uplink::{GATEWAY, GATEWAY6, HOST_IP, HOST_IP6, Uplink, WIRE};

/// How long a daemon may take to answer.
const READY: Duration = Duration::from_secs(15);

/// How long a daemon may take to end.
const STOPPED: Duration = Duration::from_secs(15);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The folder with the built programs.
#[must_use]
pub fn programs() -> PathBuf {
    let folder = std::env::var_os("VSWITCHD_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"),
        PathBuf::from,
    );
    assert!(
        folder.join("vswitchd").exists() && folder.join("vswitchctl").exists(),
        "{}: no vswitchd and vswitchctl there; run `cargo build --release --bins`",
        folder.display()
    );
    folder
}

/// Something the daemon gave a namespace to.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Name for `vswitchctl`, which is the namespace's too.
    pub name: String,
    /// Its namespace.
    pub ns: Namespace,
    /// Address in its first network; unspecified without one.
    pub ip: Ipv4Addr,
    /// IPv6 address there; unspecified without one.
    pub ip6: Ipv6Addr,
}

/// A configuration with the link that is to be tested, unless it has its own defaults.
fn with_link(text: &str) -> String {
    match crate::link() {
        Some(link) if !text.contains("[defaults]") => {
            format!("{text}\n[defaults]\nlink = \"{link}\"\n")
        }
        _ => text.to_owned(),
    }
}

/// A host and its daemon.
#[derive(Debug)]
pub struct Host {
    prefix: String,
    /// The namespace that the daemon takes for the host.
    pub ns: Namespace,
    /// The machine at the other end of the uplink.
    pub outside: Namespace,
    /// Whether its wire has both families.
    dual: bool,
    daemon: Option<Process>,
    flags: Vec<String>,
    files: TempDir,
    /// Standard error of the daemon, apart from the files it makes.
    log: TempDir,
    _namespaces: [Owned; 2],
}

impl Host {
    /// A host with a running daemon and a way out.
    #[must_use]
    pub fn start(uplink: Uplink) -> Self {
        Self::prepare(uplink).begun(uplink)
    }

    /// A host with a running daemon and a way out in both families, and the network `app` with both
    /// ([`APP`]).
    #[must_use]
    pub fn start_dual(uplink: Uplink) -> Self {
        let host = Self::prepare_dual(uplink).begun(uplink);
        host.network("app", APP);
        host
    }

    fn begun(mut self, uplink: Uplink) -> Self {
        self.launch();
        if uplink == Uplink::Dedicated {
            self.dedicate("");
        }
        self
    }

    /// Adds the wire as a dedicated uplink, in the families that it has; more `flags` as on the command line,
    /// separated by blanks.
    pub fn dedicate(&self, flags: &str) {
        let both = if self.dual {
            format!("--address {HOST_IP6}/64 --gateway {GATEWAY6}")
        } else {
            String::new()
        };
        let line = format!(
            "uplink add {WIRE} --mode dedicated --address {HOST_IP}/24 --gateway {GATEWAY} {both} {flags}"
        );
        self.ok(line.split_whitespace());
    }

    /// A host whose daemon was not started yet.
    #[must_use]
    pub fn prepare(uplink: Uplink) -> Self {
        Self::prepared(uplink, false)
    }

    /// A host with both families, whose daemon was not started yet.
    #[must_use]
    pub fn prepare_dual(uplink: Uplink) -> Self {
        Self::prepared(uplink, true)
    }

    fn prepared(uplink: Uplink, dual: bool) -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("vsw-t-{}-{count}", std::process::id());
        let namespaces = [
            Namespace::create(&format!("{prefix}-host")),
            Namespace::create(&format!("{prefix}-outside")),
        ];
        let [ns, outside] = [namespaces[0].handle(), namespaces[1].handle()];
        if dual {
            for ns in [&ns, &outside] {
                ns.enable_ipv6();
                ns.trust_addresses();
            }
        }
        uplink::connect(&ns, &outside, uplink, dual);
        let files = TempDir::with_prefix("vsw-t-").unwrap();
        // There, so that the daemon does not warn that it is not.
        fs::write(files.path().join("vswitchd.toml"), with_link("")).unwrap();
        Self {
            prefix,
            ns,
            outside,
            dual,
            daemon: None,
            flags: Vec::new(),
            files,
            log: TempDir::with_prefix("vsw-t-log-").unwrap(),
            _namespaces: namespaces,
        }
    }

    /// Writes the daemon's configuration file, for its next start or reload.
    pub fn configure(&self, text: &str) {
        fs::write(self.path("vswitchd.toml"), with_link(text)).unwrap();
    }

    /// More flags for the daemon, from its next start on.
    pub fn flags<const N: usize>(&mut self, flags: [&str; N]) {
        self.flags = flags.map(str::to_owned).to_vec();
    }

    /// Starts the daemon and waits until it answers.
    pub fn launch(&mut self) {
        assert!(self.daemon.is_none(), "the daemon runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = self.daemon_command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut daemon = Process::start(&mut command);
        let deadline = Instant::now() + READY;
        while self.ctl(["status"]).code != 0 {
            if let Some(status) = daemon.ended() {
                panic!("vswitchd ended with {status}:\n{}", self.log_tail());
            }
            assert!(Instant::now() < deadline, "vswitchd does not answer:\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.daemon = Some(daemon);
    }

    /// The command line that starts the daemon as this host's.
    #[must_use]
    pub fn daemon_command(&self) -> Command {
        let mut command = self.ns.command(programs().join("vswitchd"));
        command
            .arg("--config")
            .arg(self.path("vswitchd.toml"))
            .arg("--socket")
            .arg(self.socket())
            .arg("--state-dir")
            .arg(self.path("lib/state"))
            .arg("--run-dir")
            .arg(self.path("run/vswitchd"))
            .args(&self.flags);
        match crate::io_choice() {
            IoChoice::Auto => {}
            IoChoice::Uring => drop(command.args(["--io", "io_uring"])),
            IoChoice::Epoll => {
                command.args(["--io", "epoll"]);
                // The other placement too, where a test does not say which it is about: neither is seen
                // by the suites' default.
                if !self.flags.iter().any(|flag| flag == "--placement") {
                    command.args(["--placement", "spread"]);
                }
            }
        }
        command
    }

    /// Runs the daemon with more flags to its end.
    #[must_use]
    pub fn run_daemon<const N: usize>(&self, flags: [&str; N]) -> Ran {
        ran(self.daemon_command().args(flags))
    }

    /// Removes, with no daemon running, all that it ever made.
    ///
    /// # Panics
    /// When that fails.
    pub fn purge_offline(&self) {
        assert!(self.daemon.is_none(), "the daemon runs");
        let _ = self.run_daemon(["--purge"]).succeeded();
    }

    /// Sends the daemon a signal and waits for its end.
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        let mut daemon = self.daemon.take().expect("a running daemon");
        daemon.signal(signal);
        let status = daemon.wait(STOPPED);
        let expected = match signal {
            Signal::SIGKILL => status.signal() == Some(9),
            _ => status.code() == Some(0),
        };
        assert!(expected, "vswitchd ended with {status} on {signal}:\n{}", self.log_tail());
        status
    }

    /// Process id of the running daemon.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("a running daemon").id()
    }

    /// What the running daemon has of the machine's memory, in KiB.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// A file among those that the daemon is told to use.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.files.path().join(relative)
    }

    /// The API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("run/vswitchd/api.sock")
    }

    /// A name nobody else uses on this machine.
    #[must_use]
    pub fn name(&self, short: &str) -> String {
        format!("{}-{short}", self.prefix)
    }

    /// What begins every name of this host.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn log_path(&self) -> PathBuf {
        self.log.path().join("vswitchd.log")
    }

    /// The last lines that the daemon wrote.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// `vswitchctl` for this host's daemon, in the host's namespace.
    #[must_use]
    pub fn ctl_command<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Command {
        let mut command = Command::new(programs().join("vswitchctl"));
        command.env("VSWITCHD_SOCKET", self.socket()).args(args).stdin(Stdio::null());
        command
    }

    /// Runs `vswitchctl`.
    pub fn ctl<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Ran {
        ran(&mut self.ctl_command(args))
    }

    /// Runs `vswitchctl`, which must succeed; what it printed.
    pub fn ok<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> String {
        let ran = self.ctl(args);
        assert_eq!(ran.code, 0, "{ran}\n{}", self.log_tail());
        assert_eq!(ran.stderr, "", "{ran}");
        ran.stdout
    }

    /// Runs `vswitchctl --format json`, which must succeed and print JSON.
    pub fn json<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Value {
        let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let text = self.ok([OsStr::new("--format"), OsStr::new("json")]
            .into_iter()
            .chain(args.iter().map(AsRef::as_ref)));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error} in {text}"))
    }

    /// Runs `vswitchctl`, which must refuse: this exit code, nothing on stdout, one line on stderr
    /// that contains every one of `words`.
    pub fn refused<I: IntoIterator<Item: AsRef<OsStr>>>(&self, code: i32, words: &[&str], args: I) {
        self.ctl(args).is_refusal("vswitchctl", code, words);
    }

    /// Makes a sandbox; `flags` as on the command line, separated by blanks.
    pub fn sandbox(&self, short: &str, flags: &str) -> Sandbox {
        let name = self.name(short);
        self.ok(["sandbox", "create", &name].into_iter().chain(flags.split_whitespace()));
        self.find(&name)
    }

    /// A sandbox that exists.
    pub fn find(&self, name: &str) -> Sandbox {
        let shown = one(&self.json(["sandbox", "inspect", name]));
        let ip = shown["endpoints"][0]["ipv4"].as_str().map(|ip| ip.parse().unwrap());
        let ip6 = shown["endpoints"][0]["ipv6"].as_str().map(|ip| ip.parse().unwrap());
        let path = shown["netns"].as_str().unwrap();
        Sandbox {
            name: name.to_owned(),
            ns: Namespace::at(Path::new(path)),
            ip: ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
            ip6: ip6.unwrap_or(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// Makes a network; `flags` as on the command line, separated by blanks.
    pub fn network(&self, name: &str, flags: &str) {
        self.ok(["network", "create", name].into_iter().chain(flags.split_whitespace()));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}\n---", self.prefix, self.log_tail());
        }
        // The daemon first: it would make namespaces anew.
        self.daemon = None;
        // It was killed, so its claim on the namespace is still there.
        if let Ok(namespace) = fs::metadata(self.ns.path()) {
            let claim = format!("/run/vswitchd-netns-{}.lock", namespace.ino());
            let _ = fs::remove_file(claim);
        }
        namespace::delete_all(&self.prefix);
    }
}

/// The object, or the only element of the array.
#[must_use]
pub fn one(shown: &Value) -> Value {
    match shown {
        Value::Array(items) => {
            assert_eq!(items.len(), 1, "one object expected: {shown}");
            items[0].clone()
        }
        other => other.clone(),
    }
}

/// The elements of an array.
#[must_use]
pub fn rows(shown: &Value) -> Vec<Value> {
    shown.as_array().unwrap_or_else(|| panic!("an array expected: {shown}")).clone()
}

/// Asks again until it is so, for at most `limit`.
///
/// # Panics
/// When it does not come true.
pub fn eventually(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "after {limit:?} still not: {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}
