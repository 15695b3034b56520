//! Which host a state directory belongs to: the network namespace that its daemon runs in.
//!
//! What the records name lies there. Started elsewhere, the daemon would find nothing of it, make it
//! all a second time, and forget what the first host has; so that is refused.
//!
//! A namespace is told by its number, as long as the machine runs: a boot ends all namespaces and the
//! devices in them. A number is given out again when its namespace is gone; then too nothing of ours
//! is left there.
//!
//! Limits: a namespace that only a socket keeps alive is taken for gone, since nobody can enter it any
//! more; so is one that only a process has open whose files we may not see. From a container with
//! processes of its own, only namespaces that its own daemons had can be looked for.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, ResultExt};

const PROC: &str = "/proc";

/// `include/linux/proc_ns.h`: `PROC_PID_INIT_INO`, the PID namespace from which all processes are
/// seen.
const ALL_PROCESSES: u64 = 0xEFFF_FFFC;

/// What tells a host from all others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostId {
    /// Which boot of the machine.
    boot: String,
    /// Number of the network namespace.
    netns: u64,
    /// Number of the PID namespace that the daemon ran in.
    pids: u64,
}

/// What became of a host's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// Nobody can enter it any more.
    Gone,
    /// It is there.
    There(Place),
    /// It may be where it cannot be seen from here.
    Unknown,
}

/// Where a namespace can be entered.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// By a file.
    File(String),
    /// By a process that is in it, or holds it open.
    Process(u32),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.write_str(path),
            Self::Process(pid) => write!(f, "/proc/{pid}/ns/net"),
        }
    }
}

impl HostId {
    /// That of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self> {
        let context = "tell this host from others";
        let path = |file: &str| Path::new(PROC).join(file);
        let boot = fs::read_to_string(path("sys/kernel/random/boot_id")).failed(context)?;
        let number = |file| fs::metadata(path(file)).map(|meta| meta.ino()).failed(context);
        Ok(Self {
            boot: boot.trim_end().to_owned(),
            netns: number("thread-self/ns/net")?,
            pids: number("thread-self/ns/pid")?,
        })
    }

    /// Whether the records of this host may be used `here`: as long as it can be entered, only in it.
    pub(super) fn yields_to(&self, here: &Self) -> Result<()> {
        if self.boot != here.boot || self.netns == here.netns {
            return Ok(());
        }
        let place = match self.fate(Path::new(PROC), here) {
            Fate::Gone => {
                tracing::warn!(
                    "the network namespace that the state belongs to is gone, and what was made in \
                     it; going on in this one"
                );
                return Ok(());
            }
            Fate::There(place) => format!("({place})"),
            Fate::Unknown => "that cannot be seen from here".to_owned(),
        };
        Err(Error::conflict(format!(
            "belongs to the host in another network namespace {place}; start vswitchd there, give \
             another --state-dir, or give up what was made there with --new-host"
        )))
    }

    fn fate(&self, proc: &Path, here: &Self) -> Fate {
        match find(proc, self.netns) {
            Ok(Fate::Gone) if here.pids != ALL_PROCESSES && here.pids != self.pids => Fate::Unknown,
            Ok(fate) => fate,
            Err(error) => {
                tracing::debug!("look for a network namespace: {error}");
                Fate::Unknown
            }
        }
    }
}

/// Looks for a network namespace among the mounts, threads and open files of all processes.
fn find(proc: &Path, netns: u64) -> io::Result<Fate> {
    let namespace = PathBuf::from(format!("net:[{netns}]"));
    let processes: Vec<(u32, PathBuf)> = fs::read_dir(proc)?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path()))
        })
        .collect();
    let mut mounts_seen = HashSet::new();
    for (_, process) in &processes {
        let mounts = fs::read_link(process.join("ns/mnt"));
        if mounts.is_ok_and(|mounts| !mounts_seen.insert(mounts)) {
            continue;
        }
        // One that cannot be read is that of a process that has just ended.
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        if let Some(path) = mount_point(&mounts, &namespace) {
            return Ok(Fate::There(Place::File(path)));
        }
    }
    let (mut elsewhere, mut hidden) = (Vec::new(), Vec::new());
    for (pid, process) in &processes {
        for thread in entries(&process.join("task")) {
            match fs::read_link(thread.join("ns/net")) {
                Ok(link) if link == namespace => return Ok(Fate::There(Place::Process(*pid))),
                Ok(_) => elsewhere.push(thread),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    hidden.push(thread);
                }
                Err(_) => {}
            }
        }
        let mut files = entries(&process.join("fd"));
        if files.any(|file| fs::read_link(file).is_ok_and(|link| link == namespace)) {
            return Ok(Fate::There(Place::Process(*pid)));
        }
    }
    Ok(if share_namespaces(&hidden, &elsewhere) { Fate::Gone } else { Fate::Unknown })
}

/// Whether each of the `hidden` threads, whose namespaces have no numbers for us, is in the same network
/// namespace as one of the others: the files below `net` are different ones in each.
fn share_namespaces(hidden: &[PathBuf], others: &[PathBuf]) -> bool {
    let file = |thread: &PathBuf| fs::metadata(thread.join("net/dev")).map(|meta| meta.ino());
    if hidden.is_empty() {
        return true;
    }
    let known: HashSet<u64> = others.iter().filter_map(|thread| file(thread).ok()).collect();
    hidden.iter().all(|thread| match file(thread) {
        Ok(number) => known.contains(&number),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    })
}

/// What lies in a directory; nothing when its process has just ended.
fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path()))
}

/// Where `root` is mounted (proc(5), `mountinfo`: the fourth and the fifth field).
fn mount_point(info: &str, root: &Path) -> Option<String> {
    info.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        (Path::new(fields.next()?) == root).then(|| fields.next().map(str::to_owned)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::error::Kind;

    fn host(boot: &str, netns: u64, pids: u64) -> HostId {
        HostId { boot: boot.to_owned(), netns, pids }
    }

    /// A process in namespace 7, which has 8 mounted and 9 open.
    fn proc() -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        for directory in ["12/ns", "12/fd", "12/task/12/ns", "12/task/13/ns", "sys", "13/ns"] {
            fs::create_dir_all(proc.path().join(directory)).unwrap();
        }
        let link = |to: &str, from: &str| symlink(to, proc.path().join(from)).unwrap();
        link("mnt:[1]", "12/ns/mnt");
        link("net:[6]", "12/task/12/ns/net");
        link("net:[7]", "12/task/13/ns/net");
        link("/dev/null", "12/fd/0");
        link("net:[9]", "12/fd/3");
        let info = "22 1 0:21 / /proc rw - proc proc rw\n\
                    30 29 0:4 net:[88] /run/netns/x rw shared:1 - nsfs nsfs rw\n\
                    31 29 0:4 net:[8] /run/netns/app rw shared:1 - nsfs nsfs rw\n";
        fs::write(proc.path().join("12/mountinfo"), info).unwrap();
        proc
    }

    #[test]
    fn a_namespace_is_found_by_mounts_threads_and_files() {
        let proc = proc();
        let file = |path: &str| Fate::There(Place::File(path.to_owned()));
        let process = || Fate::There(Place::Process(12));
        let table = [
            (6, ALL_PROCESSES, process()),
            (7, ALL_PROCESSES, process()),
            (8, ALL_PROCESSES, file("/run/netns/app")),
            (9, ALL_PROCESSES, process()),
            (10, ALL_PROCESSES, Fate::Gone),
            // In a container: where its own were, or another's.
            (10, 5, Fate::Gone),
            (10, 6, Fate::Unknown),
            (8, 6, file("/run/netns/app")),
        ];
        for (netns, pids, fate) in table {
            let found = host("a", netns, 5).fate(proc.path(), &host("a", 1, pids));
            assert_eq!(found, fate, "{netns} from {pids}");
        }
        let nowhere = proc.path().join("nowhere");
        assert_eq!(host("a", 7, 5).fate(&nowhere, &host("a", 1, 5)), Fate::Unknown);
    }

    #[test]
    fn threads_that_cannot_be_looked_into_are_known_by_their_files() {
        let proc = tempfile::tempdir().unwrap();
        let thread = |name: &str| {
            let path = proc.path().join(name);
            fs::create_dir_all(path.join("net")).unwrap();
            path
        };
        let [ours, same, other, ended] = ["1", "2", "3", "4"].map(thread);
        fs::write(ours.join("net/dev"), "").unwrap();
        fs::hard_link(ours.join("net/dev"), same.join("net/dev")).unwrap();
        fs::write(other.join("net/dev"), "").unwrap();
        let others = [ours];
        assert!(share_namespaces(&[], &others));
        assert!(share_namespaces(&[same.clone(), ended], &others));
        assert!(!share_namespaces(&[same, other], &others));
    }

    #[test]
    fn another_boot_and_the_same_namespace_are_fine() {
        let here = HostId::current().unwrap();
        assert_eq!(here, HostId::current().unwrap());
        let rebooted = HostId { boot: "before".to_owned(), netns: 1, ..here.clone() };
        rebooted.yields_to(&here).unwrap();
        let other_pids = HostId { pids: 1, ..here.clone() };
        other_pids.yields_to(&here).unwrap();
        // Here is a namespace that is there, seen from one that is not.
        let elsewhere = HostId { netns: 1, ..here.clone() };
        let error = here.yields_to(&elsewhere).unwrap_err();
        assert_eq!(error.kind, Kind::Conflict);
        assert!(error.message.contains("--new-host"), "{error}");
    }
}
