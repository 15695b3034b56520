//! The demo's machines: network namespaces with names of their own, and how to be rid of them.
//!
//! Whatever is made is noted first in one place, [`LEFTOVERS`], which is cleared on every way out:
//! at the end, by a signal, by a panic (the release build aborts on panic, so unwinding alone would
//! not do). Only `kill -9` leaves something; the next demo removes what dead ones left.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{self, Child};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::DemoError;
use crate::netns::{self, Netns, NetnsId};

/// Every name begins so; the process id follows.
const PREFIX: &str = "vswitchd-demo-";

/// The daemon removes its devices when asked to end; this is how long it may take.
const DAEMON_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Leftovers {
    daemon: Option<Child>,
    namespaces: Vec<String>,
    directory: Option<PathBuf>,
    names: Option<netns::Directory>,
}

static LEFTOVERS: Mutex<Leftovers> =
    Mutex::new(Leftovers { daemon: None, namespaces: Vec::new(), directory: None, names: None });

fn leftovers() -> MutexGuard<'static, Leftovers> {
    LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Clears up when dropped, and on signals and panics as long as the process lives.
#[derive(Debug)]
pub(super) struct Lab {
    directory: PathBuf,
}

impl Lab {
    /// Prepares the ways out and a private directory.
    pub(super) fn open() -> Result<Self, DemoError> {
        watch_signals()?;
        watch_panics();
        remove_what_dead_demos_left();
        leftovers().names = Some(netns::directory());
        let directory = std::env::temp_dir().join(format!("{PREFIX}{}", process::id()));
        leftovers().directory = Some(directory.clone());
        fs::DirBuilder::new().mode(0o700).create(&directory).map_err(|source| {
            leftovers().directory = None;
            DemoError::Io { action: format!("create {}", directory.display()), source }
        })?;
        Ok(Self { directory })
    }

    /// A directory for the daemon's files.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A namespace of the demo.
    pub(super) fn machine(&self, role: &str) -> Result<Netns, DemoError> {
        let name = name_of(role);
        leftovers().namespaces.push(name.clone());
        Netns::create(&name).map_err(|error| {
            // Not ours, if somebody has that name.
            leftovers().namespaces.retain(|noted| *noted != name);
            error.into()
        })
    }

    /// Entrusts the daemon's process to the lab.
    pub(super) fn keep_daemon(&self, child: Child) {
        leftovers().daemon = Some(child);
    }

    /// The daemon's exit status, if it has ended.
    pub(super) fn daemon_ended(&self) -> Option<String> {
        let mut guard = leftovers();
        match guard.daemon.as_mut()?.try_wait() {
            Ok(Some(status)) => Some(status.to_string()),
            Ok(None) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// Clears up now and says what is still there.
    pub(super) fn close(self) -> Vec<String> {
        let names = leftovers().namespaces.clone();
        let directory = self.directory.clone();
        drop(self);
        let mut left: Vec<String> = names
            .into_iter()
            .filter(|name| netns::path_of(name).is_ok_and(|path| path.exists()))
            .collect();
        if directory.exists() {
            left.push(directory.display().to_string());
        }
        left
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        clear();
    }
}

/// The namespace's name for a role.
pub(super) fn name_of(role: &str) -> String {
    format!("{PREFIX}{}-{role}", process::id())
}

/// Ends the daemon and removes namespaces and files. Safe to call again. Goes on after failures:
/// the next thing may still be removable.
fn clear() {
    let Leftovers { daemon, namespaces, directory, names } = std::mem::take(&mut *leftovers());
    if let Some(child) = daemon {
        end(child);
    }
    for name in namespaces {
        match netns::delete(&name) {
            Ok(()) | Err(netns::NetnsError::NotFound(_)) => {}
            Err(error) => eprintln!("vswitchd demo: {error}"),
        }
    }
    if let Some(Err(error)) = names.map(netns::restore_directory) {
        eprintln!("vswitchd demo: {error}");
    }
    if let Some(directory) = directory
        && let Err(error) = fs::remove_dir_all(&directory)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("vswitchd demo: remove {}: {error}", directory.display());
    }
}

fn end(mut child: Child) {
    if let Ok(pid) = i32::try_from(child.id())
        && matches!(child.try_wait(), Ok(None))
    {
        // An error means that it has just ended.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let deadline = Instant::now() + DAEMON_GRACE;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Handlers rather than a blocked mask: a mask would be inherited by the daemon, which then could
/// not be asked to end.
fn watch_signals() -> Result<(), DemoError> {
    let failed = |source| DemoError::Io { action: "watch for signals".to_owned(), source };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let entered = runtime.enter();
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    drop(entered);
    thread::Builder::new()
        .name("demo-signals".to_owned())
        .spawn(move || {
            let caught = runtime.block_on(async {
                tokio::select! {
                    _ = hangup.recv() => Signal::SIGHUP,
                    _ = interrupt.recv() => Signal::SIGINT,
                    _ = terminate.recv() => Signal::SIGTERM,
                }
            });
            eprintln!("vswitchd demo: {caught}, cleaning up");
            clear();
            // The shell's way to say "ended by a signal".
            process::exit(128 + caught as i32);
        })
        .map_err(failed)?;
    Ok(())
}

fn watch_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        clear();
    }));
}

/// Names, daemons and files of demos whose process is gone: they were killed.
fn remove_what_dead_demos_left() {
    let dead =
        |name: &str| owner_of(name).filter(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    for name in netns::list().unwrap_or_default() {
        let Some(pid) = dead(&name) else { continue };
        if let Ok(id) = Netns::open(&name).and_then(|netns| netns.id()) {
            end_daemons_in(id);
        }
        // Another demo may be doing the same: what fails here is gone already.
        let _ = netns::delete(&name);
        let directory = std::env::temp_dir().join(format!("{PREFIX}{pid}"));
        let ours = fs::symlink_metadata(&directory)
            .is_ok_and(|meta| meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw());
        if ours {
            let _ = fs::remove_dir_all(&directory);
        }
    }
}

/// Ends processes that run our program in that namespace. A shell that someone opened there stays.
fn end_daemons_in(id: NetnsId) {
    let Ok(own) = std::env::current_exe() else { return };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // The path of a rebuilt program ends in " (deleted)".
        let is_ours = fs::read_link(entry.path().join("exe"))
            .is_ok_and(|exe| exe.to_string_lossy().starts_with(&*own.to_string_lossy()));
        let is_there = is_ours
            && Netns::open_pid(pid).and_then(|netns| netns.id()).is_ok_and(|found| found == id);
        if is_there && let Ok(pid) = i32::try_from(pid) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

fn owner_of(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_demos_have_an_owner() {
        assert_eq!(owner_of("vswitchd-demo-123-web"), Some(123));
        assert_eq!(owner_of(&name_of("web")), Some(process::id()));
        for name in ["web", "vswitchd-demo-", "vswitchd-demo-x-web", "vswitchd-demo-123"] {
            assert_eq!(owner_of(name), None, "{name}");
        }
    }
}
