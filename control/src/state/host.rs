//! Which host a state directory belongs to: the network namespace that its daemon runs in.
//!
//! What the records name lies there. Started elsewhere, the daemon would find nothing of it, make
//! it all a second time, and forget what the first host has; so that is refused.
//!
//! A namespace is told by its number and its cookie, as long as the machine runs: a boot ends all
//! namespaces and the devices in them. A number is given out again when its namespace is gone, a
//! cookie never; so what has the number with another cookie says that nothing of ours is left.
//!
//! Limits: a namespace that only a socket keeps alive is taken for gone, since nobody can enter it
//! any more; so is one that only a process has open whose files we may not see. From a container
//! with processes of its own, only namespaces that its own daemons had can be looked for. Linux
//! before 5.14 has no cookies: there another namespace that got the number is taken for ours.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::iter;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, ResultExt};
use crate::netns::Netns;

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
    /// Its cookie, which no other namespace of the boot has had. `None`: a version of before did
    /// not keep it, or the kernel has none.
    #[serde(default)]
    cookie: Option<u64>,
    /// Number of the PID namespace that the daemon ran in.
    pids: u64,
}

/// What became of a host's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// Nobody can enter it any more.
    Gone,
    /// It can be entered by this file.
    There(PathBuf),
    /// It may be where it cannot be seen from here.
    Unknown,
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
            cookie: dataplane::io::netns_cookie().ok(),
            pids: number("thread-self/ns/pid")?,
        })
    }

    /// Whether the records of this host may be used `here`: as long as it can be entered, only in
    /// it.
    pub(super) fn yields_to(&self, here: &Self) -> Result<()> {
        let same_netns = self.netns == here.netns && !self.denies(here.cookie);
        if self.boot != here.boot || same_netns {
            return Ok(());
        }
        let place = match self.fate(Path::new(PROC), here, cookie_at) {
            Fate::Gone => {
                tracing::warn!(
                    "the network namespace that the state belongs to is gone, and what was made in \
                     it; going on in this one"
                );
                return Ok(());
            }
            Fate::There(path) => format!("({path:?})"),
            Fate::Unknown => "that cannot be seen from here".to_owned(),
        };
        Err(Error::conflict(format!(
            "belongs to the host in another network namespace {place}; start vswitchd there, give \
             another --state-dir, or give up what was made there with --new-host"
        )))
    }

    /// Whether a namespace of its number is another one, by its cookie.
    fn denies(&self, cookie: Option<u64>) -> bool {
        matches!((self.cookie, cookie), (Some(ours), Some(theirs)) if ours != theirs)
    }

    /// What became of the namespace, which is not the one `here`. `cookie_at` tells the cookie of
    /// the one that a file leads to, if that has the number.
    fn fate(
        &self,
        proc: &Path,
        here: &Self,
        cookie_at: impl FnOnce(&Path, u64) -> Option<u64>,
    ) -> Fate {
        if self.netns == here.netns {
            return Fate::Gone;
        }
        match find(proc, self.netns) {
            Ok(Fate::There(path)) if self.denies(cookie_at(&path, self.netns)) => Fate::Gone,
            Ok(Fate::Gone) if here.pids != ALL_PROCESSES && here.pids != self.pids => Fate::Unknown,
            Ok(fate) => fate,
            Err(error) => {
                tracing::debug!("look for a network namespace: {error}");
                Fate::Unknown
            }
        }
    }
}

/// The cookie of the namespace that the file leads to, if that has the number `netns`.
fn cookie_at(path: &Path, netns: u64) -> Option<u64> {
    let entrance = Netns::open_path(path).ok()?;
    // The process by which it was found may have ended, and another have its number.
    if fstat(&entrance).ok()?.st_ino != netns {
        return None;
    }
    entrance.run(dataplane::io::netns_cookie).ok()?.ok()
}

/// Looks for a network namespace among the mounts, threads and open files of all processes.
fn find(proc: &Path, netns: u64) -> io::Result<Fate> {
    let namespace = PathBuf::from(format!("net:[{netns}]"));
    let is_process = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.parse::<u32>().is_ok())
    };
    let processes: Vec<PathBuf> = fs::read_dir(proc)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_process)
        .collect();
    // First what is mounted here: by that name people know it.
    let own = proc.join("self");
    let mut mounts_seen = HashSet::new();
    for process in iter::once(&own).chain(&processes) {
        let mounts = fs::read_link(process.join("ns/mnt"));
        if mounts.is_ok_and(|mounts| !mounts_seen.insert(mounts)) {
            continue;
        }
        // One that cannot be read is that of a process that has just ended.
        let mounts = fs::read(process.join("mountinfo")).unwrap_or_default();
        let Some(path) = mount_point(&mounts, &namespace) else { continue };
        return Ok(Fate::There(if *process == own {
            path
        } else {
            process.join("root").join(path.strip_prefix("/").unwrap_or(&path))
        }));
    }
    let (mut elsewhere, mut hidden) = (Vec::new(), Vec::new());
    for process in &processes {
        for thread in entries(&process.join("task")) {
            let file = thread.join("ns/net");
            match fs::read_link(&file) {
                Ok(link) if link == namespace => return Ok(Fate::There(file)),
                Ok(_) => elsewhere.push(thread),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    hidden.push(thread);
                }
                Err(_) => {}
            }
        }
        let mut files = entries(&process.join("fd"));
        if let Some(file) = files.find(|f| fs::read_link(f).is_ok_and(|link| link == namespace)) {
            return Ok(Fate::There(file));
        }
    }
    Ok(if share_namespaces(&hidden, &elsewhere) { Fate::Gone } else { Fate::Unknown })
}

/// Whether each of the `hidden` threads, whose namespaces have no numbers for us, is in the same
/// network namespace as one of the others: the files below `net` are different ones in each.
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
fn mount_point(info: &[u8], root: &Path) -> Option<PathBuf> {
    info.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let found = fields.next()? == root.as_os_str().as_encoded_bytes();
        found.then(|| fields.next().map(unescaped)).flatten()
    })
}

/// A path of `mountinfo`, where blanks, line ends and backslashes are octal numbers.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    loop {
        rest = match rest {
            [] => return OsString::from_vec(path).into(),
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', behind @ ..] => {
                path.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                behind
            }
            [byte, behind @ ..] => {
                path.push(*byte);
                behind
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::error::Kind;

    fn host(boot: &str, netns: u64, pids: u64) -> HostId {
        HostId { boot: boot.to_owned(), netns, cookie: Some(70), pids }
    }

    /// A process in namespace 7, which has 8 and 11 mounted and 9 open. We have 8 mounted too.
    fn proc() -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        for directory in ["12/ns", "12/fd", "12/task/12/ns", "12/task/13/ns", "sys", "13/ns"] {
            fs::create_dir_all(proc.path().join(directory)).unwrap();
        }
        fs::create_dir_all(proc.path().join("self/ns")).unwrap();
        let link = |to: &str, from: &str| symlink(to, proc.path().join(from)).unwrap();
        link("mnt:[1]", "12/ns/mnt");
        link("mnt:[2]", "self/ns/mnt");
        link("net:[6]", "12/task/12/ns/net");
        link("net:[7]", "12/task/13/ns/net");
        link("/dev/null", "12/fd/0");
        link("net:[9]", "12/fd/3");
        let info = "22 1 0:21 / /proc rw - proc proc rw\n\
                    30 29 0:4 net:[88] /run/netns/x rw shared:1 - nsfs nsfs rw\n\
                    31 29 0:4 net:[11] /run/my\\040nets/a\\134b rw shared:1 - nsfs nsfs rw\n\
                    32 29 0:4 net:[8] /there/app rw shared:1 - nsfs nsfs rw\n";
        fs::write(proc.path().join("12/mountinfo"), info).unwrap();
        let info = "31 29 0:4 net:[8] /run/netns/app rw shared:1 - nsfs nsfs rw\n";
        fs::write(proc.path().join("self/mountinfo"), info).unwrap();
        proc
    }

    #[test]
    fn a_namespace_is_found_by_mounts_threads_and_files() {
        let proc = proc();
        let at = |path: &str| Fate::There(proc.path().join(path));
        let table = [
            (6, ALL_PROCESSES, at("12/task/12/ns/net")),
            (7, ALL_PROCESSES, at("12/task/13/ns/net")),
            (8, ALL_PROCESSES, at("/run/netns/app")),
            (9, ALL_PROCESSES, at("12/fd/3")),
            (10, ALL_PROCESSES, Fate::Gone),
            (11, ALL_PROCESSES, at("12/root/run/my nets/a\\b")),
            // In a container: where its own were, or another's.
            (10, 5, Fate::Gone),
            (10, 6, Fate::Unknown),
            (8, 6, at("/run/netns/app")),
        ];
        for (netns, pids, fate) in table {
            for cookie in [None, Some(70)] {
                let found =
                    host("a", netns, 5).fate(proc.path(), &host("a", 1, pids), |_, number| {
                        assert_eq!(number, netns);
                        cookie
                    });
                assert_eq!(found, fate, "{netns} from {pids}");
            }
            // Where it was found there is another of its number, so that it is nowhere else.
            let found = host("a", netns, 5).fate(proc.path(), &host("a", 1, pids), |_, _| Some(71));
            let fate = if fate == Fate::Unknown { fate } else { Fate::Gone };
            assert_eq!(found, fate, "{netns} from {pids}, another cookie");
        }
        let nowhere = proc.path().join("nowhere");
        let found = host("a", 7, 5).fate(&nowhere, &host("a", 1, 5), |_, _| Some(71));
        assert_eq!(found, Fate::Unknown);
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
        // What a version wrote that kept no cookie, or a kernel without.
        let mut written = serde_json::to_value(&here).unwrap();
        written.as_object_mut().unwrap().remove("cookie").unwrap();
        let earlier: HostId = serde_json::from_value(written).unwrap();
        assert_eq!(earlier, HostId { cookie: None, ..here.clone() });
        earlier.yields_to(&here).unwrap();
        // Here is a namespace that is there, seen from one that is not.
        let elsewhere = HostId { netns: 1, ..here.clone() };
        let error = here.yields_to(&elsewhere).unwrap_err();
        assert_eq!(error.kind, Kind::Conflict);
        assert!(error.message.contains("--new-host"), "{error}");
    }

    #[test]
    fn a_number_that_was_given_out_again_is_another_namespace() {
        let here = HostId::current().unwrap();
        // Linux before 5.14 has none.
        let Some(cookie) = here.cookie else { return };
        let gone = HostId { cookie: Some(cookie + 1), ..here.clone() };
        assert_eq!(gone.fate(Path::new(PROC), &here, cookie_at), Fate::Gone);
        gone.yields_to(&here).unwrap();
    }

    #[test]
    #[ignore = "needs root"]
    fn what_has_the_number_of_a_namespace_that_is_gone_is_entered_to_see() {
        let here = HostId::current().unwrap();
        let other = Netns::anonymous().unwrap();
        let there = other.run(HostId::current).unwrap().unwrap();
        assert_ne!((there.netns, there.cookie), (here.netns, here.cookie));
        there.yields_to(&here).unwrap_err();
        let gone = HostId { cookie: here.cookie, ..there };
        gone.yields_to(&here).unwrap();
    }
}
