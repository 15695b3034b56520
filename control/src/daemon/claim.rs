//! One daemon a network namespace: two would take each other's steering and ports.
//!
//! The claim is a lock on a file that the namespace's number names, in a directory where only root
//! can make files: nobody else can hold it, whatever directories the daemons are given. The lock
//! ends with the process; the file goes at a clean stop, and one that a killed daemon left is taken
//! over.
//!
//! Limit: daemons that have different `/run`, in containers of their own, do not see each other.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, ResultExt};

const DIRECTORY: &str = "/run";

const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// The host is ours as long as this lives.
#[derive(Debug)]
pub(super) struct HostClaim {
    path: PathBuf,
    _lock: File,
}

impl HostClaim {
    /// Claims the network namespace of this thread.
    ///
    /// # Errors
    /// A conflict when another daemon has it; else when the file cannot be made.
    pub(super) fn take() -> Result<Self> {
        let namespace = fs::metadata(NAMESPACE).failed("claim the host")?.ino();
        Self::take_in(Path::new(DIRECTORY), namespace)
    }

    fn take_in(directory: &Path, namespace: u64) -> Result<Self> {
        let path = directory.join(format!("vswitchd-netns-{namespace}.lock"));
        let context = || format!("claim the host: {}", path.display());
        loop {
            let lock = open(&path).failed(context())?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::conflict(
                        "another vswitchd runs in this network namespace, with other directories; \
                         stop it first, or start this one in a namespace of its own",
                    ));
                }
                Err(TryLockError::Error(error)) => return Err(error).failed(context()),
            }
            // Another may have removed it at its end, between the two steps above: then this lock
            // is on nothing that the next one would see.
            if is_at(&lock, &path).failed(context())? {
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

impl Drop for HostClaim {
    fn drop(&mut self) {
        // While the lock is held: afterwards it could be another's.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("{}: {error}", self.path.display());
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(path)
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((own.dev(), own.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_namespace_is_claimed_once() {
        let directory = tempfile::tempdir().unwrap();
        let first = HostClaim::take_in(directory.path(), 7).unwrap();
        let error = HostClaim::take_in(directory.path(), 7).unwrap_err();
        assert_eq!(error.kind, Kind::Conflict);
        let other = HostClaim::take_in(directory.path(), 8).unwrap();
        drop(first);
        let _again = HostClaim::take_in(directory.path(), 7).unwrap();
        drop(other);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_daemon_left_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vswitchd-netns-7.lock");
        drop(open(&path).unwrap());
        let claim = HostClaim::take_in(directory.path(), 7).unwrap();
        assert_eq!(claim.path, path);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn of_many_who_come_and_go_one_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let holders = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        if let Ok(claim) = HostClaim::take_in(directory.path(), 7) {
                            assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                            holders.fetch_sub(1, Ordering::SeqCst);
                            drop(claim);
                        }
                    }
                });
            }
        });
    }
}
