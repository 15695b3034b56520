//! A laboratory: network namespaces with names of their own, programs in them, and how to be rid of
//! both. The demo and the comparison with other switches work in one.
//!
//! Whatever is made is noted with it in one place, `LEFTOVERS`, which is cleared on every way out:
//! at the end, by a signal, by a panic (the release build aborts on panic, so unwinding alone would
//! not do). Only `kill -9` leaves something; the next laboratory of the same kind removes what dead
//! ones left. A process has one laboratory at a time.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use crate::netns::{self, Netns, NetnsError, NetnsId};

/// A program removes its devices when asked to end; this is how long it may take.
const GRACE: Duration = Duration::from_secs(5);

/// Why something could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The kernel refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A namespace could not be made.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// Whose laboratory it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The program, as it calls itself in messages.
    pub program: &'static str,
    /// Every name begins so; the process id follows. Ends in `-`.
    pub prefix: &'static str,
}

impl Owner {
    /// The namespace's name for a role.
    #[must_use]
    pub fn name_of(&self, role: &str) -> String {
        format!("{}{}-{role}", self.prefix, process::id())
    }

    fn directory_of(&self, pid: u32) -> PathBuf {
        std::env::temp_dir().join(format!("{}{pid}", self.prefix))
    }

    /// The process that made the namespace of that name, if one of this kind did.
    fn maker_of(&self, name: &str) -> Option<u32> {
        name.strip_prefix(self.prefix)?.split_once('-')?.0.parse().ok()
    }
}

#[derive(Debug, Default)]
struct Leftovers {
    programs: Vec<Child>,
    namespaces: Vec<String>,
    directory: Option<PathBuf>,
    names: Option<netns::Directory>,
}

static LEFTOVERS: Mutex<Leftovers> = Mutex::new(Leftovers {
    programs: Vec::new(),
    namespaces: Vec::new(),
    directory: None,
    names: None,
});

fn leftovers() -> MutexGuard<'static, Leftovers> {
    LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A signal came: its thread clears up and ends the process.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Held while one thread clears up: another one waits until all of it is gone.
static CLEARING: Mutex<()> = Mutex::new(());

/// A signal interrupts what other threads do before its own thread can say so.
const SIGNAL_IS_TOLD: Duration = Duration::from_millis(300);

/// Never returns once a signal came. Whatever fails then does so because everything is being taken
/// away, and ending the process meanwhile would leave the rest of it.
pub fn stay_if_ending() {
    while ENDING.load(Ordering::SeqCst) {
        thread::park_timeout(GRACE);
    }
}

/// The same after something has failed, perhaps because of a signal that has not been told yet.
pub fn stay_if_interrupted() {
    thread::sleep(SIGNAL_IS_TOLD);
    stay_if_ending();
}

/// What is made under this lock is noted, or not made: clearing up takes the notes under it too.
fn making() -> MutexGuard<'static, Leftovers> {
    let guard = leftovers();
    if ENDING.load(Ordering::SeqCst) {
        drop(guard);
        stay_if_ending();
        return leftovers();
    }
    guard
}

/// Clears up when dropped, and on signals and panics as long as the process lives.
#[derive(Debug)]
pub struct Lab {
    owner: Owner,
    directory: PathBuf,
}

impl Lab {
    /// Prepares the ways out and a private directory.
    ///
    /// Must be called from a process that runs nothing else: it takes over signals and the panic
    /// hook.
    ///
    /// # Errors
    /// When the directory cannot be made or signals cannot be watched.
    pub fn open(owner: Owner) -> Result<Self, LabError> {
        watch_signals(owner)?;
        watch_panics(owner);
        remove_what_dead_ones_left(owner);
        let mut notes = making();
        notes.names = Some(netns::directory());
        let directory = owner.directory_of(process::id());
        fs::DirBuilder::new().mode(0o700).create(&directory).map_err(|source| LabError::Io {
            action: format!("create {}", directory.display()),
            source,
        })?;
        notes.directory = Some(directory.clone());
        drop(notes);
        Ok(Self { owner, directory })
    }

    /// A directory for files of the programs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The namespace's name for a role.
    #[must_use]
    pub fn name_of(&self, role: &str) -> String {
        self.owner.name_of(role)
    }

    /// A namespace of the laboratory.
    ///
    /// # Errors
    /// When the role is taken or the kernel refuses.
    pub fn machine(&self, role: &str) -> Result<Netns, LabError> {
        let name = self.name_of(role);
        let mut notes = making();
        // Not ours when it fails: somebody has that name.
        let machine = Netns::create(&name)?;
        notes.namespaces.push(name);
        Ok(machine)
    }

    /// Starts a program, which the laboratory ends, the last one first; its process id.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, command: &mut Command) -> io::Result<u32> {
        let mut notes = making();
        let child = command.spawn()?;
        let pid = child.id();
        notes.programs.push(child);
        Ok(pid)
    }

    /// The exit status of a kept process, if it has ended.
    #[must_use]
    pub fn ended(&self, pid: u32) -> Option<String> {
        let mut guard = leftovers();
        let child = guard.programs.iter_mut().find(|child| child.id() == pid)?;
        match child.try_wait() {
            Ok(Some(status)) => Some(status.to_string()),
            Ok(None) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// Ends a kept process and waits for it.
    pub fn end(&self, pid: u32) {
        let mut guard = leftovers();
        let found = guard.programs.iter().position(|child| child.id() == pid);
        if let Some(index) = found {
            let child = guard.programs.remove(index);
            drop(guard);
            end(child);
        }
    }

    /// Clears up now and says what is still there.
    #[must_use]
    pub fn close(self) -> Vec<String> {
        let names = leftovers().namespaces.clone();
        let directory = self.directory.clone();
        drop(self);
        stay_if_ending();
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
        clear(self.owner);
    }
}

/// Ends the programs and removes namespaces and files. Safe to call again. Goes on after failures:
/// the next thing may still be removable.
fn clear(owner: Owner) {
    let _clearing = CLEARING.lock().unwrap_or_else(PoisonError::into_inner);
    let Leftovers { programs, namespaces, directory, names } = std::mem::take(&mut *leftovers());
    let program = owner.program;
    for child in programs.into_iter().rev() {
        end(child);
    }
    for name in namespaces {
        match netns::delete(&name) {
            Ok(()) | Err(NetnsError::NotFound(_)) => {}
            Err(error) => eprintln!("{program}: {error}"),
        }
    }
    if let Some(Err(error)) = names.map(netns::restore_directory) {
        eprintln!("{program}: {error}");
    }
    if let Some(directory) = directory
        && let Err(error) = fs::remove_dir_all(&directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("{program}: remove {}: {error}", directory.display());
    }
}

fn end(mut child: Child) {
    if let Ok(pid) = i32::try_from(child.id())
        && matches!(child.try_wait(), Ok(None))
    {
        // An error means that it has just ended.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let deadline = Instant::now() + GRACE;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Handlers rather than a blocked mask: a mask would be inherited by the programs, which then could
/// not be asked to end.
fn watch_signals(owner: Owner) -> Result<(), LabError> {
    let failed = |source| LabError::Io { action: "watch for signals".to_owned(), source };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let entered = runtime.enter();
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    drop(entered);
    thread::Builder::new()
        .name("lab-signals".to_owned())
        .spawn(move || {
            let caught = runtime.block_on(async {
                tokio::select! {
                    _ = hangup.recv() => Signal::SIGHUP,
                    _ = interrupt.recv() => Signal::SIGINT,
                    _ = terminate.recv() => Signal::SIGTERM,
                }
            });
            ENDING.store(true, Ordering::SeqCst);
            eprintln!("{}: {caught}, cleaning up", owner.program);
            clear(owner);
            // The shell's way to say "ended by a signal".
            process::exit(128 + caught as i32);
        })
        .map_err(failed)?;
    Ok(())
}

fn watch_panics(owner: Owner) {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        clear(owner);
    }));
}

/// Names, programs and files of laboratories whose process is gone: they were killed.
fn remove_what_dead_ones_left(owner: Owner) {
    for name in netns::list().unwrap_or_default() {
        let Some(pid) = owner.maker_of(&name) else { continue };
        if Path::new(&format!("/proc/{pid}")).exists() {
            continue;
        }
        let directory = owner.directory_of(pid);
        if let Ok(id) = Netns::open(&name).and_then(|netns| netns.id()) {
            end_programs(id, &directory);
        }
        // Another one may be doing the same: what fails here is gone already.
        let _ = netns::delete(&name);
        let ours = fs::symlink_metadata(&directory)
            .is_ok_and(|meta| meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw());
        if ours {
            let _ = fs::remove_dir_all(&directory);
        }
    }
}

/// Ends the programs that were given files of that directory and are in that namespace. A shell that
/// someone opened there stays.
fn end_programs(id: NetnsId, directory: &Path) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let is_there = fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| names_file_of(&line, directory))
            && Netns::open_pid(pid).and_then(|netns| netns.id()).is_ok_and(|found| found == id);
        if is_there && let Ok(pid) = i32::try_from(pid) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

/// Whether a command line, as `/proc` shows it, names a file of the directory.
fn names_file_of(command_line: &[u8], directory: &Path) -> bool {
    let start = format!("{}/", directory.display());
    command_line.split(|byte| *byte == 0).any(|word| String::from_utf8_lossy(word).contains(&start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { program: "test", prefix: "vswitchd-test-" };

    #[test]
    fn only_names_of_its_kind_have_a_maker() {
        assert_eq!(OWNER.maker_of("vswitchd-test-123-web"), Some(123));
        assert_eq!(OWNER.maker_of(&OWNER.name_of("web")), Some(process::id()));
        let others = ["web", "vswitchd-test-", "vswitchd-test-x-web", "vswitchd-test-123"];
        for name in others.into_iter().chain(["vswitchd-demo-123-web"]) {
            assert_eq!(OWNER.maker_of(name), None, "{name}");
        }
    }

    #[test]
    fn a_program_is_known_by_the_files_it_was_given() {
        let directory = OWNER.directory_of(12);
        let line = |word: String| format!("program\0--flag\0{word}\0").into_bytes();
        let file = format!("{}/socket", directory.display());
        assert!(names_file_of(&line(file.clone()), &directory));
        assert!(names_file_of(&line(format!("--remote=punix:{file}")), &directory));
        assert!(!names_file_of(&line(format!("{}3/socket", directory.display())), &directory));
        assert!(!names_file_of(&line("/tmp".to_owned()), &directory));
    }
}
