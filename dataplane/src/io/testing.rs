//! What the tests of devices share: network namespaces without a name, so that nothing is left
//! behind when a test dies, and ports that are read one frame at a time.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use super::poll::Poller;
use super::{Port, PortRx, PortTx};
use crate::frame::Frame;
use crate::pool::Pool;

/// How long a frame may take.
pub(super) const WAIT: Option<Duration> = Some(Duration::from_secs(10));

/// A network namespace; gone when dropped.
#[derive(Debug)]
pub(super) struct Netns(File);

impl Netns {
    pub(super) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
            let ns = Self(File::open("/proc/thread-self/ns/net").unwrap());
            ip("link set lo up");
            ns
        };
        thread::scope(|scope| scope.spawn(make).join().unwrap())
    }

    /// Runs `f` inside, on a thread of its own.
    pub(super) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            f()
        };
        match thread::scope(|scope| scope.spawn(enter).join()) {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A path that `ip link set netns` takes.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Runs `ip` with `arguments` in the calling thread's namespace.
pub(super) fn ip(arguments: &str) {
    command(&format!("ip {arguments}"));
}

/// Runs a command in the calling thread's namespace; returns what it printed.
pub(super) fn command(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {text}{error}");
    text
}

/// Does it again when a signal came first, as that of another test's child: with a time limit the kernel does not
/// go on by itself.
pub(super) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Waits until `condition` holds. What closing a descriptor brings about may come late here: a
/// child process that another test starts holds every descriptor between its fork and its exec.
pub(super) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until the interface of the calling thread's namespace sends. The kernel lets a queue whose
/// carrier came back go only after a moment, and drops until then.
pub(super) fn wait_until_up(interface: &str) {
    eventually("the interface is up", || {
        command(&format!("ip -br link show dev {interface}")).contains(" UP ")
    });
}

/// The receiving half of a port, and its only sending half.
pub(super) fn halves(port: impl Port) -> (Box<dyn PortRx>, Box<dyn PortTx>) {
    let mut halves = Box::new(port).split(1).unwrap();
    (halves.rx, halves.tx.pop().unwrap())
}

/// Receives until a frame satisfies `wanted`; everything else (IPv6 neighbor discovery, MLD) is
/// passed over.
pub(super) fn receive(
    rx: &mut dyn PortRx,
    pool: &mut Pool,
    wanted: impl Fn(&Frame) -> bool,
) -> Frame {
    let mut poller = Poller::new().unwrap();
    poller.add(rx.fd().unwrap(), 0).unwrap();
    let (mut events, mut batch) = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        poller.wait(WAIT, &mut events).unwrap();
        assert!(!events.is_empty(), "no such frame came");
        rx.rx(1, pool, &mut batch).unwrap();
        if let Some(frame) = batch.pop() {
            if wanted(&frame) {
                return frame;
            }
            pool.put(frame);
        }
    }
    panic!("no such frame came");
}
