//! `vswitchctl exec` and `vswitchctl run`: commands inside a sandbox, as children of the client.
//!
//! The daemon only says where the namespace is; the client, which is root, enters it. Namespaces
//! belong to threads: see [`crate::netns`].

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use clap::Args;
use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, getpgrp, tcgetpgrp};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal as signals};

use super::output::complain;
use super::sandbox::{CreateFlags, path};
use super::{block_on, values};
use crate::api::client::Client;
use crate::api::types::{Sandbox, SandboxMode};
use crate::error::{Error, Result, ResultExt as _};
use crate::name::Name;
use crate::netns::{self, Netns};

/// The shell's code for a command that cannot be executed (POSIX XCU 2.8.2).
const NOT_EXECUTABLE: u8 = 126;
/// The shell's code for a command that is not found.
const NOT_FOUND: u8 = 127;
/// The shell's code for a command ended by a signal, to be added to its number.
const SIGNALLED: i32 = 128;

/// `exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// Sandbox
    #[arg(value_parser = values::sandbox)]
    name: Name,
    /// Command with its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

/// `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Name of the sandbox [default: run- and eight hex digits]
    #[arg(long, value_parser = values::sandbox)]
    name: Option<Name>,
    #[command(flatten)]
    flags: CreateFlags,
    /// Command with its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

impl Exec {
    /// Becomes the command; returns only when that fails.
    pub(super) fn run(self, client: &Client) -> Result<u8> {
        let sandbox: Sandbox = block_on(client.get(&path(&self.name)))??;
        let netns = open(&sandbox)?;
        netns::enter_for_exec(netns.as_fd(), etc_name(&sandbox))
            .failed(format_args!("sandbox {:?}", sandbox.name))?;
        let (mut command, program) = command(&self.command)?;
        // The command takes this process over, so that signals and exit code are its own.
        Ok(not_started(&program, &command.exec()))
    }
}

/// The program with its arguments, and its name for messages.
fn command(words: &[OsString]) -> Result<(Command, OsString)> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(Error::invalid("no command given"));
    };
    let mut command = Command::new(program);
    command.args(arguments);
    Ok((command, program.clone()))
}

fn open(sandbox: &Sandbox) -> Result<Netns> {
    Netns::open_path(&sandbox.netns).failed(format_args!("sandbox {:?}", sandbox.name))
}

/// Whose `/etc/netns` files apply.
fn etc_name(sandbox: &Sandbox) -> Option<&str> {
    match &sandbox.mode {
        SandboxMode::Host => None,
        SandboxMode::Container(other) => Some(other.as_str()),
        SandboxMode::Network | SandboxMode::None => Some(sandbox.name.as_str()),
    }
}

/// Tells why a command did not start; returns the shell's code for it.
fn not_started(program: &OsStr, error: &io::Error) -> u8 {
    complain(&Error::failed(format!("command {:?}: {error}", program.to_string_lossy())));
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}

impl Run {
    /// Creates, runs, removes: the last also when the command or this process is told to end.
    pub(super) fn run(self, client: &Client) -> Result<u8> {
        let name = match self.name {
            Some(name) => name,
            None => format!("run-{:08x}", random() & 0xffff_ffff).parse()?,
        };
        let request = self.flags.request(name)?;
        let (mut command, program) = command(&self.command)?;
        block_on(async {
            // Before anything is created: from here on, signals cannot end us halfway.
            let mut signals = Signals::new()?;
            let sandbox: Sandbox = client.post("/v1/sandboxes", &request).await?;
            let result = run_in(&sandbox, &mut command, &program, &mut signals).await;
            let removed = client.delete(&path(&sandbox.name)).await;
            match (result, removed) {
                (result, Ok(())) => result,
                (Ok(0), Err(error)) => Err(error),
                // The command's own failure counts more than that of cleaning up.
                (result, Err(error)) => {
                    complain(&error);
                    result
                }
            }
        })?
    }
}

/// Not for secrets: only so that two runs do not want the same name.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

async fn run_in(
    sandbox: &Sandbox,
    command: &mut Command,
    program: &OsStr,
    signals: &mut Signals,
) -> Result<u8> {
    let netns = open(sandbox)?;
    let spawned = netns::spawn(&netns, etc_name(sandbox), command)
        .failed(format_args!("sandbox {:?}", sandbox.name))?;
    match spawned {
        Ok(child) => signals.wait(child).await,
        Err(error) => Ok(not_started(program, &error)),
    }
}

/// The signals that `run` does not die of.
struct Signals {
    child: SignalStream,
    hangup: SignalStream,
    interrupt: SignalStream,
    quit: SignalStream,
    terminate: SignalStream,
}

impl Signals {
    fn new() -> Result<Self> {
        let stream = |kind| signals(kind).failed("signals");
        Ok(Self {
            child: stream(SignalKind::child())?,
            hangup: stream(SignalKind::hangup())?,
            interrupt: stream(SignalKind::interrupt())?,
            quit: stream(SignalKind::quit())?,
            terminate: stream(SignalKind::terminate())?,
        })
    }

    /// Waits for the child and passes signals on to it.
    async fn wait(&mut self, mut child: Child) -> Result<u8> {
        loop {
            if let Some(status) = child.try_wait().failed("wait for the command")? {
                return Ok(code(status));
            }
            let passed_on = tokio::select! {
                _ = self.child.recv() => None,
                _ = self.hangup.recv() => Some(Signal::SIGHUP),
                _ = self.terminate.recv() => Some(Signal::SIGTERM),
                _ = self.interrupt.recv() => from_elsewhere(Signal::SIGINT),
                _ = self.quit.recv() => from_elsewhere(Signal::SIGQUIT),
                // A SIGCHLD may be swallowed by whoever reaps first: look again now and then.
                () = tokio::time::sleep(Duration::from_millis(500)) => None,
            };
            if let (Some(signal), Ok(pid)) = (passed_on, i32::try_from(child.id())) {
                // The child may have ended meanwhile; it is not reaped yet, so the id is its own.
                let _ = signal::kill(Pid::from_raw(pid), signal);
            }
        }
    }
}

/// SIGINT and SIGQUIT of the terminal's keys went to the whole foreground group already, the
/// command included; twice would mean something else to many programs.
fn from_elsewhere(signal: Signal) -> Option<Signal> {
    let foreground = tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp());
    (!foreground).then_some(signal)
}

/// The exit code as a shell gives it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| SIGNALLED + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
