//! Running a command inside a namespace, the way `ip netns exec` does.
//!
//! A command expects `/sys/class/net` to show the interfaces of its namespace and `/etc/resolv.conf`
//! to be the one kept under `/etc/netns/NAME`. Both need a mount namespace of its own.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::{Netns, NetnsError, errno, on_own_thread, path_of, system};

/// Files that replace those of `/etc` for commands run in the namespace of that name.
const ETC_NETNS_DIR: &str = "/etc/netns";

/// Moves the *calling thread* into the namespace for good: network, `/sys` and the files of
/// `/etc/netns/NAME`. For a thread that is about to `exec` or to spawn a command, and does nothing
/// else afterwards; [`spawn`] does that for you.
///
/// # Errors
/// When the kernel refuses. The thread may be halfway in then and must end.
pub fn enter_for_exec(netns: BorrowedFd<'_>, name: Option<&str>) -> Result<(), NetnsError> {
    let etc = match name {
        Some(name) => {
            path_of(name)?;
            Some(Path::new(ETC_NETNS_DIR).join(name))
        }
        None => None,
    };
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(errno("enter the network namespace"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(errno("create a mount namespace"))?;
    // Slave, not private: unmounts of the host still reach us, ours do not reach the host.
    let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", Some("none"), flags, None::<&str>)
        .map_err(errno("detach the mount namespace"))?;
    remount_sys()?;
    if let Some(etc) = etc {
        bind_etc(&etc)?;
    }
    Ok(())
}

/// Spawns `command` inside the namespace, entered as [`enter_for_exec`] does.
///
/// # Errors
/// When the namespace cannot be entered; the inner result is that of spawning.
pub fn spawn(
    netns: &Netns,
    name: Option<&str>,
    command: &mut Command,
) -> Result<io::Result<Child>, NetnsError> {
    on_own_thread(|| {
        enter_for_exec(std::os::fd::AsFd::as_fd(netns), name)?;
        Ok(command.spawn())
    })
}

fn remount_sys() -> Result<(), NetnsError> {
    let mut flags = MsFlags::empty();
    if umount2("/sys", MntFlags::MNT_DETACH).is_err() {
        // Not mounted, or locked by an outer container: mount over it, as read-only as it was.
        if statvfs("/sys").is_ok_and(|stat| stat.flags().contains(FsFlags::ST_RDONLY)) {
            flags |= MsFlags::MS_RDONLY;
        }
    }
    mount(Some("sysfs"), "/sys", Some("sysfs"), flags, None::<&str>)
        .map_err(errno("mount /sys for the network namespace"))
}

fn bind_etc(directory: &Path) -> Result<(), NetnsError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system(format!("read {}", directory.display()))(error)),
    };
    for entry in entries.flatten() {
        let target = Path::new("/etc").join(entry.file_name());
        let bound =
            mount(Some(&entry.path()), &target, Some("none"), MsFlags::MS_BIND, None::<&str>);
        if let Err(code) = bound {
            // As `ip netns exec`: a file without a counterpart in /etc does not stop the command.
            tracing::warn!("bind {} to {}: {code}", entry.path().display(), target.display());
        }
    }
    Ok(())
}

/// How our mount namespace relates to that of process 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountNamespace {
    /// The same: names made here are seen by everyone.
    Init,
    /// Another, as under `ip netns exec` or a unit with private mounts: names made here may stay
    /// invisible outside.
    Other,
    /// Not ours to know (`/proc` hidden or restricted).
    Unknown,
}

/// Compares our mount namespace with that of process 1.
#[must_use]
pub fn mount_namespace() -> MountNamespace {
    let identity = |path: &str| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    match (identity("/proc/self/ns/mnt"), identity("/proc/1/ns/mnt")) {
        (Ok(own), Ok(init)) if own == init => MountNamespace::Init,
        (Ok(_), Ok(_)) => MountNamespace::Other,
        _ => MountNamespace::Unknown,
    }
}
