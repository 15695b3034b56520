//! Devices: everything that has file descriptors, and all the `unsafe` of the project.
//!
//! A device is opened by control (or a test), handed to [`crate::Engine::attach`] and split there
//! into one receiving half, owned by one worker, and one sending half for each worker. The engine
//! cannot tell a kernel device from a test channel.

pub(crate) mod give_way;
pub mod memory;
pub mod packet_socket;
pub mod pcap;
pub mod poll;
pub(crate) mod prefetch;
pub mod region;
pub mod ring;
pub(crate) mod spin;
pub mod steer;
mod stream;
mod sys;
pub mod tap;
#[cfg(test)]
mod testing;
mod vlan;
pub mod vnet_hdr;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use nix::errno::Errno;

use crate::clock::Timestamp;
use crate::frame::Frame;
use crate::pool::Pool;

/// A number that no other network namespace has had since the machine was started, of the calling
/// thread's.
///
/// # Errors
/// Before Linux 5.14, or when no descriptor is left.
pub fn netns_cookie() -> std::io::Result<u64> {
    // A socket of any kind is in the namespace.
    sys::netns::cookie(UnixDatagram::unbound()?.as_fd())
}

/// How a descriptor that gives one frame a call is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// As a file: what is read is all there is.
    #[default]
    Plain,
    /// As a packet socket that tells beside a frame which VLAN tag the kernel took out of it.
    Tagged,
}

/// What a port takes without our help. Frames are completed or segmented in software for the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Takes frames whose L4 checksum is only partial.
    pub csum: bool,
    /// Takes TCP/IPv4 frames beyond the MTU with a segment size.
    pub tso4: bool,
    /// Takes TCP/IPv6 frames beyond the MTU with a segment size.
    pub tso6: bool,
    /// Takes UDP frames beyond the MTU with a segment size (USO).
    pub uso: bool,
    /// Takes TCP frames with a segment size that are longer than IP's length field can say (BIG
    /// TCP).
    pub big_tcp: bool,
}

impl Offloads {
    /// Takes everything.
    pub const ALL: Self = Self { csum: true, tso4: true, tso6: true, uso: true, big_tcp: true };
    /// Takes plain frames only.
    pub const NONE: Self =
        Self { csum: false, tso4: false, tso6: false, uso: false, big_tcp: false };
}

/// How workers shall read and write streams of frames ([`PortRx::stream`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    /// By io_uring where the kernel has it and allows it, else by epoll.
    #[default]
    Auto,
    /// By io_uring or not at all.
    Uring,
    /// By epoll, read and write.
    Epoll,
}

/// How a worker reads and writes streams of frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IoBackend {
    /// By io_uring ([`ring`]).
    Uring,
    /// By epoll, read and write ([`poll`]).
    Epoll {
        /// Why not by io_uring, if that was tried.
        refused: Option<String>,
    },
}

/// The device is gone for good (its namespace was deleted, its link removed): it delivers and
/// takes nothing any more and must not be polled again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device is gone")]
pub struct Gone;

/// What became of the frames given to [`PortTx::tx`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxReport {
    /// Frames the device took.
    pub sent: u32,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Frames the device refused because its queue was full (`EAGAIN`, `ENOBUFS`).
    pub full: u32,
    /// Frames the device refused because it is down (`EIO`, `ENETDOWN`) or gone.
    pub down: u32,
    /// Frames the device refused for any other reason.
    pub refused: u32,
}

impl TxReport {
    /// Counts `frames` frames that a system call refused with `errno`.
    fn count_refused(&mut self, errno: Errno, frames: u32) {
        match errno {
            // TAP: the socket's send buffer; AF_PACKET: that, or the device's queue.
            Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => self.full += frames,
            // A TAP that is down says EIO, one that is gone EBADFD; AF_PACKET says ENETDOWN when
            // it is down and ENXIO or ENODEV when it is gone.
            Errno::EIO | Errno::EBADFD | Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV => {
                self.down += frames;
            }
            _ => self.refused += frames,
        }
    }
}

/// A device before it is attached.
pub trait Port: Send + fmt::Debug {
    /// What the sending halves take.
    fn offloads(&self) -> Offloads;
    /// Tells how many frames were lost before the receiving half could have them. `None`: the device
    /// loses none, or only its other end knows.
    fn missed(&self) -> Option<Arc<dyn Missed>> {
        None
    }
    /// Tells whether somebody took the device elsewhere. `None`: nobody can, or reading it ends then.
    fn tether(&self) -> Option<Arc<dyn Tether>> {
        None
    }
    /// Splits into one receiving half and `workers` sending halves.
    ///
    /// # Errors
    /// When descriptors cannot be duplicated.
    fn split(self: Box<Self>, workers: usize) -> std::io::Result<PortHalves>;
}

/// Counts frames that a device lost before the engine had them. No worker has any part in it.
pub trait Missed: Send + Sync + fmt::Debug {
    /// How many, since the device was opened. Asks the kernel: not for every frame.
    fn frames(&self) -> u64;
}

/// Watches a device that goes on working wherever somebody moves it. Does not keep it open.
pub trait Tether: Send + Sync + fmt::Debug {
    /// Whether it was deleted, or is in another network namespace than when it was opened. Asks the
    /// kernel.
    fn is_lost(&self) -> bool;
    /// Lets the device end with its last half, even a persistent one.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn let_go(&self) -> std::io::Result<()>;
}

/// The two kinds of halves of a device.
#[derive(Debug)]
pub struct PortHalves {
    /// For the worker that owns the port.
    pub rx: Box<dyn PortRx>,
    /// One for each worker, in worker order.
    pub tx: Vec<Box<dyn PortTx>>,
}

/// The receiving half of a device. Owned by one worker, never blocks.
pub trait PortRx: Send + fmt::Debug {
    /// Appends up to `budget` frames to `batch`, with `frame.vnet` set, in the order the device delivered
    /// them; `frame.ingress` is the caller's to set. Returns fewer than `budget` only when the
    /// device had no more or the pool had no buffer.
    ///
    /// # Errors
    /// [`Gone`] when there will never be another frame.
    fn rx(&mut self, budget: usize, pool: &mut Pool, batch: &mut Vec<Frame>)
    -> Result<usize, Gone>;

    /// Readable when [`PortRx::rx`] may have frames. `None`: there is nothing to
    /// wait for, ask without waiting. All ports of this module have one but polled ones in memory.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// A descriptor that gives one frame a call, with its virtio-net header before it: the worker
    /// may read it by its [`ring::Ring`] instead of calling [`PortRx::rx`].
    fn stream(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// How its [`PortRx::stream`] is read.
    fn reading(&self) -> Reading {
        Reading::Plain
    }

    /// After reading its [`PortRx::stream`] has failed: whether there will never be another frame.
    fn is_gone(&self) -> bool {
        true
    }
}

/// A sending half of a device. Each worker has its own; never blocks.
pub trait PortTx: Send + fmt::Debug {
    /// Takes every frame out of `frames`, in order. Each is sent or counted in the report; its
    /// buffer goes back to `pool` at once or when the device has done with it.
    fn tx(&mut self, frames: &mut Vec<Frame>, pool: &mut Pool) -> TxReport;

    /// Sends one frame without taking it: for replication to many ports.
    fn tx_copy(&mut self, frame: &mut Frame, pool: &mut Pool) -> TxReport;

    /// Whether the device would take frames now and lose them without a word, so that they are not to
    /// be given to it. Asked before each call of the others, with the time of the batch.
    fn loses_all(&mut self, _now: Timestamp) -> bool {
        false
    }

    /// A descriptor that takes one frame a call, with its virtio-net header before it: the worker
    /// may write to it by its [`ring::Ring`] instead of calling [`PortTx::tx`].
    fn stream(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
