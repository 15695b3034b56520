//! Network namespaces: by name as `iproute2` keeps them, by path, or of a process.
//!
//! A namespace is a property of a thread, so every visit gets a thread of its own that ends with
//! the visit: no thread of a pool can ever be left behind in the wrong namespace. Sockets opened
//! during a visit stay in that namespace and can be used from anywhere afterwards; a
//! [`std::process::Command`] spawned during a visit runs in it.
//!
//! Invariants: a name never leads out of [`NETNS_DIR`]; a descriptor held by [`Netns`] is always a
//! network namespace. Limit: names live in the mount namespace of this process; see
//! [`mount_namespace`].

mod directory;
mod exec;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs, statfs};

pub use directory::{Directory, directory, restore_directory};
pub use exec::{MountNamespace, enter_for_exec, mount_namespace, spawn};

use crate::error::{Error, Kind};
use crate::netlink::blocking::{BlockingSocket, route_request};

/// Where `ip netns` keeps its names.
pub const NETNS_DIR: &str = "/run/netns";

/// Least MTU of a link that has IPv6 (RFC 8200 section 5). Linux takes IPv6 off one with less, with
/// all its settings, and gives it anew, with the defaults, to one that gets more.
pub const IPV6_MIN_MTU: u32 = 1280;

/// Linux `NAME_MAX`: the longest file name.
const NAME_MAX: usize = 255;

/// Why a namespace could not be made, found or entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// A name that is no plain file name.
    #[error(
        "{0:?} cannot name a network namespace: use letters, digits, '-', '_' and '.', without '/'"
    )]
    BadName(String),
    /// The name is taken.
    #[error("network namespace {0:?} exists already")]
    Exists(String),
    /// Nothing of that name, or at that path.
    #[error("there is no network namespace {0:?}")]
    NotFound(String),
    /// The file is something else.
    #[error("{0:?} is not a network namespace")]
    NotANetns(PathBuf),
    /// The kernel refused.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The closure run inside panicked.
    #[error("a task inside a network namespace panicked")]
    Panicked,
}

impl From<NetnsError> for Error {
    fn from(error: NetnsError) -> Self {
        let kind = match &error {
            NetnsError::BadName(_) | NetnsError::NotANetns(_) => Kind::Invalid,
            NetnsError::Exists(_) => Kind::Conflict,
            NetnsError::NotFound(_) => Kind::NotFound,
            NetnsError::System { .. } | NetnsError::Panicked => Kind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}

fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> NetnsError {
    let action = action.into();
    move |source| NetnsError::System { action, source }
}

fn errno(action: impl Into<String>) -> impl FnOnce(Errno) -> NetnsError {
    let action = action.into();
    move |code| NetnsError::System { action, source: code.into() }
}

/// What makes two handles the same namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

/// An open network namespace. It keeps the namespace alive, also when its name is gone.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Netns {
    /// Sets `lo` up, as in the namespaces made here.
    ///
    /// # Errors
    /// When the namespace cannot be entered or netlink refuses.
    pub fn raise_loopback(&self) -> Result<(), NetnsError> {
        self.run(loopback_up)?.map_err(system("set lo up"))
    }

    /// Makes a namespace of that name, as `ip netns add` does, with `lo` up.
    ///
    /// # Errors
    /// When the name is bad or taken, or the kernel refuses; nothing is left behind then.
    pub fn create(name: &str) -> Result<Self, NetnsError> {
        let netns = Self::anonymous()?;
        netns.bind(name)?;
        Ok(netns)
    }

    /// Gives the namespace a name, as `ip netns attach` does.
    ///
    /// # Errors
    /// When the name is bad or taken, or the kernel refuses; nothing is left behind then.
    pub fn bind(&self, name: &str) -> Result<(), NetnsError> {
        let path = path_of(name)?;
        directory::prepare()?;
        let created = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o444)
            .custom_flags(OFlag::O_CLOEXEC.bits())
            .open(&path);
        match created {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(NetnsError::Exists(name.to_owned()));
            }
            Err(error) => return Err(system(format!("create {}", path.display()))(error)),
        }
        let bound = self.run(|| {
            let own = Some("/proc/thread-self/ns/net");
            mount(own, &path, Some("none"), MsFlags::MS_BIND, None::<&str>)
        });
        let result = bound.and_then(|bound| {
            bound.map_err(errno(format!("bind the network namespace to {}", path.display())))
        });
        if result.is_err() {
            // Best effort: the error that led here is the one to report.
            let _ = umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            let _ = fs::remove_file(&path);
        }
        result
    }

    /// Makes a namespace without a name, with `lo` up. It ends with the last handle and the last
    /// socket or process in it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn anonymous() -> Result<Self, NetnsError> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(errno("create a network namespace"))?;
            loopback_up().map_err(system("set lo up"))?;
            Self::current()
        })
    }

    /// Opens the namespace that `ip netns list` shows under `name`.
    ///
    /// # Errors
    /// When the name is bad or there is none.
    pub fn open(name: &str) -> Result<Self, NetnsError> {
        match Self::open_path(&path_of(name)?) {
            Err(NetnsError::NotFound(_)) => Err(NetnsError::NotFound(name.to_owned())),
            other => other,
        }
    }

    /// Opens a namespace file wherever it is.
    ///
    /// # Errors
    /// When the file is missing, unreadable or not a network namespace.
    pub fn open_path(path: &Path) -> Result<Self, NetnsError> {
        let netns = Self::open_file(path)?;
        let not_a_netns = || NetnsError::NotANetns(path.to_owned());
        let stat = fstatfs(&netns.file).map_err(errno(format!("inspect {}", path.display())))?;
        if stat.filesystem_type() != NSFS_MAGIC {
            return Err(not_a_netns());
        }
        // nsfs also holds mount, pid and other namespaces: those cannot be entered as a network.
        match netns.run(|| ()) {
            Ok(()) => Ok(netns),
            Err(NetnsError::System { source, .. })
                if source.raw_os_error() == Some(Errno::EINVAL as i32) =>
            {
                Err(not_a_netns())
            }
            Err(error) => Err(error),
        }
    }

    /// Opens the namespace a process is in.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn open_pid(pid: u32) -> Result<Self, NetnsError> {
        match Self::open_file(Path::new(&format!("/proc/{pid}/ns/net"))) {
            Err(NetnsError::NotFound(_)) => Err(NetnsError::NotFound(format!("pid:{pid}"))),
            other => other,
        }
    }

    fn open_file(path: &Path) -> Result<Self, NetnsError> {
        // O_NONBLOCK: the path may come from a user and name a FIFO.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
            .open(path);
        match opened {
            Ok(file) => Ok(Self { file }),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Err(NetnsError::NotFound(path.display().to_string()))
            }
            Err(error) => Err(system(format!("open {}", path.display()))(error)),
        }
    }

    /// Opens what a user named: `pid:N` or the path of a namespace file.
    ///
    /// # Errors
    /// As [`Netns::open_pid`] and [`Netns::open_path`]; a relative path is refused, since it would
    /// be looked up in the daemon's working directory.
    pub fn open_reference(text: &str) -> Result<Self, NetnsError> {
        if let Some(pid) = text.strip_prefix("pid:") {
            let pid = pid.parse().map_err(|_| NetnsError::NotFound(text.to_owned()))?;
            return Self::open_pid(pid);
        }
        let path = Path::new(text);
        if !path.is_absolute() {
            return Err(NetnsError::BadName(text.to_owned()));
        }
        Self::open_path(path)
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open_file(Path::new("/proc/thread-self/ns/net"))
    }

    /// Identity, for comparison.
    ///
    /// # Errors
    /// When the descriptor cannot be inspected.
    pub fn id(&self) -> Result<NetnsId, NetnsError> {
        let meta = self.file.metadata().map_err(system("inspect a network namespace"))?;
        Ok(NetnsId { device: meta.dev(), inode: meta.ino() })
    }

    /// Runs `f` inside, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// When the namespace cannot be entered or `f` panics.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        in_netns(self.as_fd(), f)
    }

    /// A second handle to the same namespace.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn try_clone(&self) -> Result<Self, NetnsError> {
        let file = self.file.try_clone().map_err(system("duplicate a descriptor"))?;
        Ok(Self { file })
    }

    /// Writes a setting under `/proc/sys` as seen inside, such as
    /// `net/ipv6/conf/eth0/disable_ipv6`. Components are separated by `/`, since interface names
    /// may contain dots. Where `/proc/sys` is read-only, as in most containers, one that is so already
    /// is left alone.
    ///
    /// # Errors
    /// When the setting does not exist or refuses the value, or cannot be written and is another.
    pub fn write_sysctl(&self, key: &str, value: &str) -> Result<(), NetnsError> {
        let path = sysctl_path(key)?;
        // The kernel resolves /proc/sys/net by the namespace of the thread that opens it.
        let written = self.run(|| match fs::write(&path, value) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                let is_so = fs::read_to_string(&path).is_ok_and(|text| text.trim_end() == value);
                if is_so { Ok(()) } else { Err(error) }
            }
            other => other,
        })?;
        written.map_err(system(format!("set {key} to {value}")))
    }

    /// Reads a setting under `/proc/sys` as seen inside, without the newline.
    ///
    /// # Errors
    /// When the setting does not exist.
    pub fn read_sysctl(&self, key: &str) -> Result<String, NetnsError> {
        let path = sysctl_path(key)?;
        let text =
            self.run(|| fs::read_to_string(&path))?.map_err(system(format!("read {key}")))?;
        Ok(text.trim_end().to_owned())
    }

    /// Turns IPv6 on for one device whose addresses are static: none comes from Router
    /// Advertisements, the link-local one is made from the MAC (RFC 4291 appendix A), and all can
    /// be used at once and stay when the device is set down. False: the kernel has no IPv6 for it,
    /// see [`Self::disable_ipv6`].
    ///
    /// # Errors
    /// When the device does not exist, or the kernel refuses a setting.
    pub fn enable_ipv6(&self, ifname: &str) -> Result<bool, NetnsError> {
        const SETTINGS: [(&str, &str); 7] = [
            ("accept_ra", "0"),
            ("autoconf", "0"),
            ("use_tempaddr", "0"),
            ("accept_dad", "0"),
            ("addr_gen_mode", "0"),
            ("keep_addr_on_down", "1"),
            // Last: with it the addresses come.
            ("disable_ipv6", "0"),
        ];
        for (key, value) in SETTINGS {
            match self.write_sysctl(&format!("net/ipv6/conf/{ifname}/{key}"), value) {
                Ok(()) => {}
                Err(error) if self.has_no_ipv6(ifname, &error)? => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Why no device here is to have IPv6, if so: the kernel has none, or somebody who may say so
    /// turned it off.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn without_ipv6(&self) -> Result<Option<&'static str>, NetnsError> {
        let kernel = kernel_without_ipv6();
        if kernel.is_some() {
            return Ok(kernel);
        }
        let off = self.read_sysctl("net/ipv6/conf/all/disable_ipv6")?;
        Ok((off != "0").then_some("net.ipv6.conf.all.disable_ipv6 is set there"))
    }

    /// Why a device that should have IPv6 has none, if so, as [`Self::without_ipv6`].
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn without_ipv6_at(&self, ifname: &str) -> Result<Option<&'static str>, NetnsError> {
        if let Some(reason) = self.without_ipv6()? {
            return Ok(Some(reason));
        }
        match self.read_sysctl(&format!("net/ipv6/conf/{ifname}/disable_ipv6")) {
            Ok(off) => Ok((off != "0").then_some("disable_ipv6 of the interface is set there")),
            // Its MTU is too short, or it is gone, which others notice.
            Err(NetnsError::System { .. }) => Ok(Some("the kernel has no IPv6 for it")),
            Err(error) => Err(error),
        }
    }

    /// Whether a setting could not be made because there is no IPv6 for the device.
    fn has_no_ipv6(&self, ifname: &str, error: &NetnsError) -> Result<bool, NetnsError> {
        let NetnsError::System { source, .. } = error else { return Ok(false) };
        let missing = source.kind() == io::ErrorKind::NotFound;
        Ok(missing && self.run(|| if_nametoindex(ifname))?.is_ok())
    }

    /// Turns IPv6 off for one device. One without the setting has it off already: the kernel has no
    /// IPv6, or the device's MTU is below [`IPV6_MIN_MTU`].
    ///
    /// # Errors
    /// When the device does not exist.
    pub fn disable_ipv6(&self, ifname: &str) -> Result<(), NetnsError> {
        let key = format!("net/ipv6/conf/{ifname}/disable_ipv6");
        match self.write_sysctl(&key, "1") {
            Err(error) if self.has_no_ipv6(ifname, &error)? => Ok(()),
            other => other,
        }
    }
}

/// Why no device of any namespace has IPv6, if so.
#[must_use]
pub fn kernel_without_ipv6() -> Option<&'static str> {
    (!Path::new("/proc/sys/net/ipv6").exists()).then_some("the kernel has no IPv6")
}

/// Runs `f` inside the namespace, on a thread of its own, and waits for it.
///
/// # Errors
/// When the namespace cannot be entered or `f` panics.
pub fn in_netns<T: Send>(
    netns: BorrowedFd<'_>,
    f: impl FnOnce() -> T + Send,
) -> Result<T, NetnsError> {
    on_own_thread(|| {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(errno("enter a network namespace"))?;
        Ok(f())
    })
}

/// Where the namespace of that name is, or would be.
///
/// # Errors
/// When `name` is no plain file name.
pub fn path_of(name: &str) -> Result<PathBuf, NetnsError> {
    let plain = !name.is_empty()
        && name.len() <= NAME_MAX
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c == '/' || c.is_control());
    if plain {
        Ok(Path::new(NETNS_DIR).join(name))
    } else {
        Err(NetnsError::BadName(name.to_owned()))
    }
}

/// Whether a namespace of that name is there.
///
/// # Errors
/// When the name is bad.
pub fn exists(name: &str) -> Result<bool, NetnsError> {
    Ok(is_mounted(&path_of(name)?))
}

/// The names of all namespaces, sorted.
///
/// # Errors
/// When the directory cannot be read; a missing one is an empty one.
pub fn list() -> Result<Vec<String>, NetnsError> {
    let entries = match fs::read_dir(NETNS_DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(system(format!("read {NETNS_DIR}"))(error)),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| is_mounted(&entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Removes the name. The namespace itself ends when nothing uses it any more.
///
/// # Errors
/// When the name is bad or there is none.
pub fn delete(name: &str) -> Result<(), NetnsError> {
    let path = path_of(name)?;
    match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: not a mount point, such as the file a crash left between open and bind.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(Errno::ENOENT) => return Err(NetnsError::NotFound(name.to_owned())),
        Err(code) => return Err(errno(format!("unmount {}", path.display()))(code)),
    }
    match fs::remove_file(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(NetnsError::NotFound(name.to_owned()))
        }
        Err(error) => Err(system(format!("remove {}", path.display()))(error)),
    }
}

fn is_mounted(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}

fn sysctl_path(key: &str) -> Result<PathBuf, NetnsError> {
    let sound = !key.is_empty()
        && key.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && !key.chars().any(char::is_control);
    if sound {
        Ok(Path::new("/proc/sys").join(key))
    } else {
        Err(NetnsError::NotFound(key.to_owned()))
    }
}

/// Runs `f` on a thread that ends with it, so that whatever it does to its namespaces dies with it.
fn on_own_thread<T: Send>(
    f: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, f)
            .map_err(system("start a thread"))?
            .join()
            .unwrap_or(Err(NetnsError::Panicked))
    })
}

fn loopback_up() -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::IfName("lo".to_owned()));
    let mut socket = BlockingSocket::open(netlink_sys::protocols::NETLINK_ROUTE)?;
    route_request(&mut socket, RouteNetlinkMessage::NewLink(message), NLM_F_REQUEST | NLM_F_ACK)?;
    Ok(())
}
