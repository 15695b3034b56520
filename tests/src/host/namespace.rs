//! Network namespaces, and programs that end with the test that started them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::command::{Ran, ran};

/// Where `ip netns` keeps names.
pub const DIRECTORY: &str = "/run/netns";

/// A namespace, whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    path: PathBuf,
}

impl Namespace {
    /// Makes one, with `lo` up.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn create(name: &str) -> Owned {
        let made = ran(Command::new("ip").args(["netns", "add", name]));
        assert_eq!(made.code, 0, "{made}");
        let owned = Owned(Self::at(&Path::new(DIRECTORY).join(name)));
        // Router solicitations and link-local addresses come at times of their own choosing, and
        // would make every comparison a matter of luck.
        owned.0.enter(|| {
            for which in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
                if Path::new(&path).exists() {
                    fs::write(path, "1").unwrap();
                }
            }
        });
        owned.0.ip("link set lo up");
        owned
    }

    /// One that exists.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(OsStr::to_str).unwrap()
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// A program to run in it. `nsenter` becomes the program: its process id is the program's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path.display())).arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a command line, separated by blanks, in it.
    pub fn run(&self, line: &str) -> Ran {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a program");
        ran(self.command(program).args(words))
    }

    /// Runs a command line that must succeed; what it printed.
    ///
    /// # Panics
    /// When it does not.
    pub fn ok(&self, line: &str) -> String {
        self.run(line).succeeded().stdout
    }

    /// Turns IPv6 on, which is off in those that are made here: link-local addresses come at once,
    /// and are asked about for a second.
    ///
    /// # Panics
    /// When the kernel has no IPv6.
    pub fn enable_ipv6(&self) {
        self.enter(|| {
            for which in ["default", "all"] {
                fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "0").unwrap();
            }
        });
    }

    /// Addresses of interfaces that come later can be used at once: nobody is asked whether they have them.
    /// (Both settings count: `addrconf_dad_begin` in `net/ipv6/addrconf.c`.)
    ///
    /// # Panics
    /// When the kernel has no IPv6.
    pub fn trust_addresses(&self) {
        self.enter(|| {
            for which in ["default", "all"] {
                fs::write(format!("/proc/sys/net/ipv6/conf/{which}/accept_dad"), "0").unwrap();
            }
        });
    }

    /// Runs `ip` in it; what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ip(&self, args: &str) -> String {
        self.ok(&format!("ip {args}"))
    }

    /// Does something on a thread in it. Sockets opened there stay there.
    ///
    /// # Panics
    /// As the closure does, or when the namespace is gone.
    pub fn enter<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        let file = File::open(&self.path)
            .unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                task()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// A namespace that is deleted at the end.
#[derive(Debug)]
pub struct Owned(Namespace);

impl Owned {
    /// The namespace.
    #[must_use]
    pub fn handle(&self) -> Namespace {
        self.0.clone()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        delete(self.0.name());
    }
}

fn delete(name: &str) {
    // It may be gone already; a test that wants to know looks itself.
    let _ = ran(Command::new("ip").args(["netns", "delete", name]));
}

/// The names that begin with `prefix` and a dash.
#[must_use]
pub fn names(prefix: &str) -> Vec<String> {
    let prefix = format!("{prefix}-");
    let mut names: Vec<_> = fs::read_dir(DIRECTORY)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect();
    names.sort();
    names
}

pub(super) fn delete_all(prefix: &str) {
    for name in names(prefix) {
        delete(&name);
    }
}

/// A running program, killed at the end.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// How it ended, if it did.
    ///
    /// # Panics
    /// When it cannot be looked at.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "process {} does not end", self.0.id());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its standard output, which must be a pipe, for another program to read; none the second
    /// time.
    pub fn stdout(&mut self) -> Stdio {
        self.0.stdout.take().map_or_else(Stdio::null, Stdio::from)
    }

    /// Waits for its end; its standard output, which must be a pipe.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn output(mut self, limit: Duration) -> String {
        use std::io::Read as _;
        let mut stdout = self.0.stdout.take().expect("a pipe");
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text)
        });
        self.wait(limit);
        reader.join().unwrap().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail when it ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
