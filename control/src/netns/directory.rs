//! The directory of the names: a shared mount of its own, as `ip netns add` makes it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{NETNS_DIR, NetnsError, errno, system};

/// Makes [`NETNS_DIR`] a shared mount of its own, as `ip netns add` does: names bound in it then
/// spread to (and unmounts reach) every mount namespace that got a copy.
pub(super) fn prepare() -> Result<(), NetnsError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(NETNS_DIR)
        .map_err(system(format!("create {NETNS_DIR}")))?;
    // Two programs at once would bind it twice; `ip netns` takes the same lock.
    let directory = File::open(NETNS_DIR).map_err(system(format!("open {NETNS_DIR}")))?;
    let lock = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, code)| errno(format!("lock {NETNS_DIR}"))(code))?;
    let share = || {
        let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(None::<&str>, NETNS_DIR, Some("none"), flags, None::<&str>)
    };
    let shared = match share() {
        // EINVAL: not a mount point yet.
        Err(Errno::EINVAL) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(NETNS_DIR), NETNS_DIR, Some("none"), flags, None::<&str>)
                .and_then(|()| share())
        }
        other => other,
    };
    drop(lock);
    shared.map_err(errno(format!("make {NETNS_DIR} a shared mount")))
}

/// How [`NETNS_DIR`] was found, for a program that leaves everything as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directory {
    /// Not there.
    Missing,
    /// A mount of its own, as after the first `ip netns add`.
    Mounted,
    /// Just a directory.
    Plain,
}

/// How [`NETNS_DIR`] is now.
#[must_use]
pub fn directory() -> Directory {
    if !Path::new(NETNS_DIR).exists() {
        return Directory::Missing;
    }
    let parent = Path::new(NETNS_DIR).parent().unwrap_or(Path::new("/"));
    // Not by the list of mounts: one may lie hidden under another.
    match (mount_id(Path::new(NETNS_DIR)), mount_id(parent)) {
        (Some(own), Some(parent)) if own != parent => Directory::Mounted,
        _ => Directory::Plain,
    }
}

/// The id of the mount that `directory` is on (proc(5), `fdinfo`).
fn mount_id(directory: &Path) -> Option<u64> {
    let file = File::open(directory).ok()?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// Puts [`NETNS_DIR`] back to how it was found, unless somebody has a name in it by now.
///
/// # Errors
/// When the kernel refuses.
pub fn restore_directory(found: Directory) -> Result<(), NetnsError> {
    let empty = || fs::read_dir(NETNS_DIR).is_ok_and(|mut entries| entries.next().is_none());
    if found == Directory::Mounted || !empty() {
        return Ok(());
    }
    if directory() == Directory::Mounted {
        umount2(NETNS_DIR, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(errno(format!("unmount {NETNS_DIR}")))?;
    }
    if found == Directory::Missing {
        // Refuses if it is not empty, which only somebody else can have caused.
        fs::remove_dir(NETNS_DIR).map_err(system(format!("remove {NETNS_DIR}")))?;
    }
    Ok(())
}
