//! TAP devices: the engine's end of a container's interface, and of the host's leg in a network.
//!
//! Opened in the network namespace of the calling thread; the descriptor goes on working when the
//! device is moved to another one. A persistent device outlives the process with its addresses,
//! routes and neighbors, and is attached to again by its name.
//!
//! **One queue.** A second queue would need `IFF_MULTI_QUEUE` from the device's creation on, for
//! life: attaching with the other setting is refused. The kernel then allocates 256 transmit
//! queues each with a queueing discipline: measured on Linux 6.18, 6.3 MiB and 25 ms for each
//! device instead of 1.6 MiB and 6 ms, and no gain in throughput on two cores. So devices are made
//! with one queue, which one worker reads and all workers write to. A device that was made with
//! several is attached to as it is, by one queue.
//!
//! **Offloads.** The virtio-net header (ten bytes) precedes every frame both ways. The container's
//! stack leaves checksums partial and hands over segments of up to 64 KiB, and takes both.
//!
//! **End of life.** A device that was deleted, alone or with its namespace, polls as an error for
//! ever; reading says `EBADFD`, reported as [`super::Gone`]. One that is down takes nothing (`EIO`).
//! One that was moved to another namespace says nothing: its [`Tether`] has to be asked.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::stat::fstat;
use nix::unistd::write;

use super::stream::StreamRx;
use super::sys::tun;
use super::vnet_hdr::VNET_HDR_LEN;
use super::{Offloads, Port, PortHalves, PortTx, Reading, Tether, TxReport};
use crate::frame::Frame;
use crate::pool::Pool;

const DEVICE: &str = "/dev/net/tun";

const BASE_OFFLOADS: u32 =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// UDP segmentation, for both families at once: since Linux 6.2.
const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Which device to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapOptions {
    /// Name of the interface, in the calling thread's network namespace.
    pub name: String,
    /// Whether the device outlives the process. Set anew on each attachment.
    pub persistent: bool,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name is none.
    #[error(
        "{0:?} is not an interface name: use 1 to 15 bytes without '/', ':', '%' or white space"
    )]
    Name(String),
    /// `/dev/net/tun` is not there.
    #[error(
        "{DEVICE} is missing: load the module `tun`, or give the device to the container that vswitchd runs in"
    )]
    NoDriver,
    /// Not allowed to open the driver or to make the device.
    #[error("interface {0:?}: not permitted: TAP devices need root or CAP_NET_ADMIN")]
    Permission(String),
    /// There is an interface of another kind by that name.
    #[error("interface {0:?} exists and is not a TAP device: rename or remove it")]
    NotTap(String),
    /// Somebody else is attached to the device.
    #[error("TAP device {0:?} is in use by another process: stop that process")]
    InUse(String),
    /// Anything else.
    #[error("TAP device {name:?}: cannot {action}: {source}")]
    Io {
        /// The device.
        name: String,
        /// What failed.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An open TAP device.
#[derive(Debug)]
pub struct Tap {
    name: String,
    fd: Arc<OwnedFd>,
    offloads: Offloads,
    /// Number of the namespace it is in. `None`: the kernel does not tell.
    netns: Option<u64>,
}

impl Tap {
    /// Creates the device, or attaches to the persistent one of that name, in the network
    /// namespace of the calling thread.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn create(options: &TapOptions) -> Result<Self, TapError> {
        let name = options.name.as_str();
        if !is_interface_name(name) {
            return Err(TapError::Name(name.to_owned()));
        }
        let failed = |action| move |source| TapError::Io { name: name.to_owned(), action, source };
        let file = open_driver(name)?;
        let fd = file.as_fd();
        attach(fd, name)?;
        let header_len = libc::c_int::try_from(VNET_HDR_LEN).unwrap_or(libc::c_int::MAX);
        tun::set_vnet_hdr_len(fd, header_len).map_err(failed("set the virtio-net header"))?;
        let uso = tun::set_offload(fd, BASE_OFFLOADS | USO).is_ok();
        if !uso {
            tun::set_offload(fd, BASE_OFFLOADS).map_err(failed("turn offloads on"))?;
        }
        tun::set_persist(fd, options.persistent).map_err(failed("make it persistent"))?;
        let netns = netns_of(fd).ok();
        Ok(Self {
            name: name.to_owned(),
            netns,
            fd: Arc::new(file.into()),
            // The driver's `tso_max_size` is that of a plain device.
            offloads: Offloads { uso, big_tcp: false, ..Offloads::ALL },
        })
    }

    /// The name by which it was opened. It changes when the interface is renamed.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets whether the device outlives the process. Without, it is deleted, wherever it was
    /// moved to, when the last half is dropped.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        tun::set_persist(self.fd.as_fd(), persistent)
    }
}

/// The kernel's `dev_valid_name`, and no `%`: it would be taken for a pattern.
fn is_interface_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= tun::MAX_NAME_LEN
        && name != "."
        && name != ".."
        && !name.chars().any(|c| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace())
}

fn open_driver(name: &str) -> Result<File, TapError> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE).map_err(
        |error| match errno(&error) {
            // ENODEV, ENXIO: a device node without a driver behind it.
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => TapError::NoDriver,
            Errno::EACCES | Errno::EPERM => TapError::Permission(name.to_owned()),
            _ => TapError::Io { name: name.to_owned(), action: "open the driver", source: error },
        },
    )
}

fn attach(fd: BorrowedFd<'_>, name: &str) -> Result<(), TapError> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let attached = tun::set_iff(fd, name, flags).or_else(|error| {
        // EINVAL is also the answer to the wrong IFF_MULTI_QUEUE: perhaps it has several queues.
        if errno(&error) == Errno::EINVAL && if_nametoindex(name).is_ok() {
            tun::set_iff(fd, name, flags | libc::IFF_MULTI_QUEUE)
        } else {
            Err(error)
        }
    });
    attached.map_err(|error| match errno(&error) {
        Errno::EPERM | Errno::EACCES => TapError::Permission(name.to_owned()),
        Errno::EBUSY => TapError::InUse(name.to_owned()),
        Errno::EINVAL if if_nametoindex(name).is_ok() => TapError::NotTap(name.to_owned()),
        _ => TapError::Io { name: name.to_owned(), action: "attach", source: error },
    })
}

/// Number of the namespace that the device is in now; `EBADFD`: it is nowhere, it was deleted.
fn netns_of(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let netns = tun::netns(fd).map_err(|error| errno(&error))?;
    fstat(netns).map(|stat| stat.st_ino)
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

impl Port for Tap {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn tether(&self) -> Option<Arc<dyn Tether>> {
        Some(Arc::new(TapTether { fd: Arc::downgrade(&self.fd), netns: self.netns? }))
    }

    fn split(self: Box<Self>, workers: usize) -> io::Result<PortHalves> {
        // One descriptor whatever the number of workers: hosts with many containers have few.
        let fd = self.fd;
        let half = |_| -> Box<dyn PortTx> { Box::new(TapTx { fd: Arc::clone(&fd) }) };
        let tx = (0..workers).map(half).collect();
        // EBADFD: deleted. EFAULT: being deleted just now (the driver's answer once its queue is
        // shut down). No other error of reading ends by itself either.
        let rx = StreamRx::new(fd, Reading::Plain, |_| true);
        Ok(PortHalves { rx: Box::new(rx), tx })
    }
}

/// Of one that is closed there is nothing to tell.
#[derive(Debug)]
struct TapTether {
    fd: Weak<OwnedFd>,
    netns: u64,
}

impl Tether for TapTether {
    fn is_lost(&self) -> bool {
        let Some(fd) = self.fd.upgrade() else { return false };
        match netns_of(fd.as_fd()) {
            Ok(now) => now != self.netns,
            // The reader is told too, but not always: the driver wakes it a moment before the device
            // is gone (`tun_detach_all`, drivers/net/tun.c), and never again.
            Err(errno) => errno == Errno::EBADFD,
        }
    }

    fn let_go(&self) -> io::Result<()> {
        self.fd.upgrade().map_or(Ok(()), |fd| tun::set_persist(fd.as_fd(), false))
    }
}

/// All workers write to one queue: the driver takes frames from several threads at once.
#[derive(Debug)]
struct TapTx {
    fd: Arc<OwnedFd>,
}

impl PortTx for TapTx {
    fn tx(&mut self, frames: &mut Vec<Frame>, pool: &mut Pool) -> TxReport {
        let mut report = TxReport::default();
        for mut frame in frames.drain(..) {
            self.send(&mut frame, &mut report);
            pool.put(frame);
        }
        report
    }

    fn tx_copy(&mut self, frame: &mut Frame, _pool: &mut Pool) -> TxReport {
        let mut report = TxReport::default();
        self.send(frame, &mut report);
        report
    }

    fn stream(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }
}

impl TapTx {
    fn send(&self, frame: &mut Frame, report: &mut TxReport) {
        let Some(bytes) = with_vnet_hdr(frame) else {
            report.refused += 1;
            return;
        };
        let result = loop {
            match write(&self.fd, bytes) {
                Err(Errno::EINTR) => {}
                result => break result,
            }
        };
        match result {
            Ok(len) => {
                report.sent += 1;
                report.sent_bytes += len.saturating_sub(VNET_HDR_LEN) as u64;
            }
            Err(errno) => report.count_refused(errno, 1),
        }
    }
}

/// The frame with its virtio-net header before it, as devices take it. `None`: encapsulation has
/// used up the headroom.
pub(super) fn with_vnet_hdr(frame: &mut Frame) -> Option<&[u8]> {
    let header = frame.vnet.encode();
    let len = frame.len();
    let bytes = frame.transmit_buffer(VNET_HDR_LEN);
    if bytes.len() != len + VNET_HDR_LEN {
        return None;
    }
    *bytes.first_chunk_mut()? = header;
    Some(bytes)
}

#[cfg(test)]
mod tests;
