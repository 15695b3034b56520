//! Packet sockets: a port on an interface that exists already, as an uplink does.
//!
//! Frames are received through a ring shared with the kernel (`TPACKET_V2`), each slot as large as
//! the largest plain frame, with the virtio-net header before it; they are copied into buffers of the
//! pool. Or they are read one by one into these buffers, which a worker's io_uring does best
//! ([`Receive`]). They are sent, many in a call, by a second socket, through the interface's queueing
//! discipline as the host's own are: what the card cannot cut or sum, the kernel does.
//! What the host itself sends on the interface is not received.
//!
//! The kernel takes the outer VLAN tag out of a frame; it is put back in here.
//!
//! Opened in the network namespace of the calling thread. When the interface goes down the port
//! waits for it to come up again; when it is removed or leaves the namespace the port is [`Gone`].
//! What is sent while there is no carrier the kernel takes and loses, without a word: a port that shall
//! count it asks for the carrier now and then ([`PacketOptions::watch_carrier`]).
//! Needs `CAP_NET_RAW` to open, nothing afterwards.

mod carrier;

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket, sockopt};
use nix::sys::utsname::uname;

use carrier::Carrier;

use super::stream::StreamRx;
use super::sys::packet::{self as sys, Received, RxRing, SEND_BATCH};
use super::tap::with_vnet_hdr;
use super::vnet_hdr::VnetHdr;
use super::{Gone, Missed, Offloads, Port, PortHalves, PortRx, PortTx, Reading, TxReport, vlan};
use crate::clock::Timestamp;
#[cfg(doc)]
use crate::frame::MAX_BIG_PACKET_LEN;
use crate::frame::{Frame, MAX_FRAME_LEN, MAX_PLAIN_FRAME_LEN};
use crate::pool::Pool;

/// A whole number of pages that holds the largest plain frame, its virtio-net and its slot header.
const SLOT_LEN: NonZeroUsize = NonZeroUsize::new(73_728).unwrap();
/// What the two headers and the gaps before the frame take at most: the kernel aligns them to 16 bytes.
const SLOT_HEADERS: usize = 256;
const _: () = assert!(SLOT_LEN.get().is_multiple_of(4096));
const _: () = assert!(SLOT_LEN.get() >= SLOT_HEADERS + MAX_PLAIN_FRAME_LEN);

/// Slots of the ring unless said otherwise. What comes while the worker is elsewhere must find
/// room: measured with four TCP streams on two busy cores, 32 slots lost frames for 17,000 to
/// 102,000 retransmissions in three seconds, 128 for fewer than 1,000, 512 for 136. The kernel
/// rounds a slot up to 128 KiB: 16 MiB in all, of which the cache sees what is used.
pub const DEFAULT_SLOTS: NonZeroUsize = NonZeroUsize::new(128).unwrap();

/// Send buffer. The default of 208 KiB holds three frames of 64 KiB.
const SEND_BUFFER: libc::c_int = 4 << 20;

/// Receive buffer without a ring; the kernel doubles it. A frame counts with its bookkeeping, so
/// that 64 KiB of payload take up to twice that.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// An error of the socket is looked for in every this many calls that find no frame: it costs a
/// syscall, and a worker that spins calls very often.
const IDLE_CALLS_PER_CHECK: u32 = 8;

/// How to open a socket.
#[derive(Debug, Clone, Copy)]
pub struct PacketOptions<'a> {
    /// Receive frames for every destination MAC, not only those of the interface.
    pub promiscuous: bool,
    /// A BPF socket filter program that chooses the frames, e.g. [`super::steer::Steering`]'s.
    pub filter: Option<BorrowedFd<'a>>,
    /// How frames are received.
    pub receive: Receive,
    /// The interface takes frames of up to [`MAX_BIG_PACKET_LEN`] bytes, and may deliver them.
    pub big_tcp: bool,
    /// Refuse what is sent while the interface has no carrier, as it is with a veth device whose other
    /// end is down.
    pub watch_carrier: bool,
}

/// How a packet socket receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receive {
    /// Through a ring of so many slots of 72 KiB, into which the kernel copies while it delivers.
    Ring(NonZeroUsize),
    /// Frame by frame, as [`super::ring::Ring`] reads best: copied once, by the worker.
    Stream,
}

impl Default for PacketOptions<'_> {
    fn default() -> Self {
        Self {
            promiscuous: false,
            filter: None,
            receive: Receive::Ring(DEFAULT_SLOTS),
            big_tcp: false,
            watch_carrier: false,
        }
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum PacketSocketError {
    /// There is no interface by that name.
    #[error("interface {0:?} does not exist in this network namespace")]
    NoInterface(String),
    /// The interface carries no Ethernet frames.
    #[error("interface {0:?} is not an Ethernet interface: choose one that has a MAC address")]
    NotEthernet(String),
    /// Not allowed.
    #[error("interface {0:?}: not permitted: packet sockets need root or CAP_NET_RAW")]
    Permission(String),
    /// Anything else.
    #[error("interface {interface:?}: cannot {action}: {source}")]
    Io {
        /// The interface.
        interface: String,
        /// What failed.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A pair of packet sockets on one interface.
#[derive(Debug)]
pub struct PacketSocket {
    rx: Arc<OwnedFd>,
    tx: OwnedFd,
    /// `None`: [`Receive::Stream`].
    ring: Option<RxRing>,
    counts: Arc<Counts>,
    offloads: Offloads,
    /// The interface, if its carrier is to be watched.
    watched: Option<libc::c_int>,
}

#[derive(Debug, Default)]
struct Counts {
    full: AtomicU64,
    oversized: AtomicU64,
}

/// Frames that the socket lost before the engine saw them. Outlives the port.
#[derive(Debug, Clone)]
pub struct PacketCounters {
    rx: Weak<OwnedFd>,
    counts: Arc<Counts>,
}

/// What [`PacketCounters::read`] found, counted since the socket was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PacketDrops {
    /// The ring or the receive buffer was full.
    pub full: u64,
    /// The frame was longer than a buffer.
    pub oversized: u64,
}

impl PacketCounters {
    /// Reads the counters.
    #[must_use]
    pub fn read(&self) -> PacketDrops {
        if let Some(rx) = self.rx.upgrade()
            && let Ok(drops) = sys::take_drops(rx.as_fd())
        {
            self.counts.full.fetch_add(drops.into(), Ordering::Relaxed);
        }
        PacketDrops {
            full: self.counts.full.load(Ordering::Relaxed),
            oversized: self.counts.oversized.load(Ordering::Relaxed),
        }
    }
}

impl Missed for PacketCounters {
    fn frames(&self) -> u64 {
        let PacketDrops { full, oversized } = self.read();
        full.saturating_add(oversized)
    }
}

impl PacketSocket {
    /// Opens both sockets on the interface `name` of the calling thread's network namespace.
    ///
    /// # Errors
    /// See [`PacketSocketError`].
    pub fn open(name: &str, options: &PacketOptions<'_>) -> Result<Self, PacketSocketError> {
        let failed = |action| {
            move |source: io::Error| match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EPERM | Errno::EACCES) => PacketSocketError::Permission(name.into()),
                Some(Errno::ENODEV | Errno::ENXIO) => PacketSocketError::NoInterface(name.into()),
                _ => PacketSocketError::Io { interface: name.into(), action, source },
            }
        };
        let index = if_nametoindex(name)
            .ok()
            .and_then(|index| libc::c_int::try_from(index).ok())
            .ok_or_else(|| PacketSocketError::NoInterface(name.into()))?;

        let rx = open_socket().map_err(failed("open a packet socket"))?;
        let fd = rx.as_fd();
        let kind = sys::hardware_type(fd, name).map_err(failed("read its kind"))?;
        if kind != libc::ARPHRD_ETHER {
            return Err(PacketSocketError::NotEthernet(name.into()));
        }
        let packet_option = |fd, option, value, action| {
            sys::set_option(fd, libc::SOL_PACKET, option, value).map_err(failed(action))
        };
        let version = libc::c_int::try_from(libc::tpacket_versions::TPACKET_V2 as u32).unwrap_or(1);
        packet_option(fd, libc::PACKET_VERSION, version, "choose TPACKET_V2")?;
        // Refused once there is a ring.
        packet_option(fd, libc::PACKET_VNET_HDR, 1, "turn virtio-net headers on")?;
        packet_option(fd, libc::PACKET_IGNORE_OUTGOING, 1, "ignore outgoing frames")?;
        if let Some(filter) = options.filter {
            let program = std::os::fd::AsRawFd::as_raw_fd(&filter);
            sys::set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, program)
                .map_err(failed("attach the socket filter"))?;
        }
        let ring = match options.receive {
            Receive::Ring(slots) => {
                Some(RxRing::new(fd, SLOT_LEN, slots).map_err(failed("make a receive ring"))?)
            }
            Receive::Stream => {
                packet_option(fd, libc::PACKET_AUXDATA, 1, "have VLAN tags told")?;
                force(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER)
                    .map_err(failed("set the receive buffer"))?;
                None
            }
        };
        // Only now frames come, so none of them passes by filter or ring.
        sys::bind(fd, index, ETH_P_ALL).map_err(failed("bind"))?;
        if options.promiscuous {
            sys::add_promiscuous(fd, index).map_err(failed("make it promiscuous"))?;
        }

        let tx = open_socket().map_err(failed("open a packet socket"))?;
        let fd = tx.as_fd();
        packet_option(fd, libc::PACKET_VNET_HDR, 1, "turn virtio-net headers on")?;
        // Through the queueing discipline, not past it (`PACKET_QDISC_BYPASS`): past it the kernel
        // drops what the device cannot take as it is, segments that it would have to cut above all.
        force(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER)
            .map_err(failed("set the send buffer"))?;
        sys::bind(fd, index, 0).map_err(failed("bind"))?;

        Ok(Self {
            rx: Arc::new(rx),
            tx,
            ring,
            counts: Arc::default(),
            offloads: Offloads { uso: kernel_has_uso(), big_tcp: options.big_tcp, ..Offloads::ALL },
            watched: options.watch_carrier.then_some(index),
        })
    }

    /// A handle to the counters of lost frames, for after the socket has been attached.
    #[must_use]
    pub fn counters(&self) -> PacketCounters {
        PacketCounters { rx: Arc::downgrade(&self.rx), counts: Arc::clone(&self.counts) }
    }
}

/// Sets the size of a buffer: beyond what `net.core` allows only with `CAP_NET_ADMIN`.
fn force(
    fd: BorrowedFd<'_>,
    forced: libc::c_int,
    plain: libc::c_int,
    bytes: libc::c_int,
) -> io::Result<()> {
    sys::set_option(fd, libc::SOL_SOCKET, forced, bytes)
        .or_else(|_| sys::set_option(fd, libc::SOL_SOCKET, plain, bytes))
}

/// Whether a socket's interface has been removed: one that is only down may come up again.
fn is_gone(fd: BorrowedFd<'_>) -> bool {
    sys::bound_interface(fd).map_or(true, |index| index <= 0)
}

/// `ETH_P_ALL`.
const ETH_P_ALL: u16 = 3;

/// A socket that receives nothing until it is bound.
fn open_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Packet, SockType::Raw, flags, None)?)
}

/// Virtio-net headers know UDP segmentation since Linux 6.2. A packet socket cannot be asked.
fn kernel_has_uso() -> bool {
    uname().is_ok_and(|name| at_least(&name.release().to_string_lossy(), (6, 2)))
}

fn at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= wanted,
        _ => false,
    }
}

impl Port for PacketSocket {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn missed(&self) -> Option<Arc<dyn Missed>> {
        Some(Arc::new(self.counters()))
    }

    fn split(self: Box<Self>, workers: usize) -> io::Result<PortHalves> {
        let fd = Arc::new(self.tx);
        let is_stream = self.ring.is_none();
        let half = |_| -> Box<dyn PortTx> {
            let carrier = self.watched.map(Carrier::new);
            Box::new(PacketTx { fd: Arc::clone(&fd), is_stream, carrier })
        };
        let tx = (0..workers).map(half).collect();
        let rx: Box<dyn PortRx> = match self.ring {
            Some(ring) => {
                Box::new(PacketRx { fd: self.rx, ring, counts: self.counts, idle_calls: 0 })
            }
            None => Box::new(StreamRx::new(self.rx, Reading::Tagged, is_gone)),
        };
        Ok(PortHalves { rx, tx })
    }
}

#[derive(Debug)]
struct PacketRx {
    fd: Arc<OwnedFd>,
    ring: RxRing,
    counts: Arc<Counts>,
    idle_calls: u32,
}

impl PortRx for PacketRx {
    fn rx(
        &mut self,
        budget: usize,
        pool: &mut Pool,
        batch: &mut Vec<Frame>,
    ) -> Result<usize, Gone> {
        let mut count = 0;
        while count < budget {
            let Some(mut frame) = pool.take() else { return Ok(count) };
            match self.ring.read(|received| fill(&mut frame, received)) {
                Some(true) => {
                    batch.push(frame);
                    count += 1;
                }
                Some(false) => {
                    self.counts.oversized.fetch_add(1, Ordering::Relaxed);
                    pool.put(frame);
                }
                None => {
                    pool.put(frame);
                    break;
                }
            }
        }
        if count > 0 || budget == 0 {
            self.idle_calls = 0;
            return Ok(count);
        }
        self.idle_calls += 1;
        if self.idle_calls >= IDLE_CALLS_PER_CHECK {
            self.idle_calls = 0;
            self.check()?;
        }
        Ok(0)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }
}

impl PacketRx {
    /// Takes the socket's error, which would make every wait return at once, and finds out whether
    /// the interface is only down.
    fn check(&self) -> Result<(), Gone> {
        match getsockopt(&self.fd, sockopt::SocketError) {
            Ok(0) => Ok(()),
            _ if !is_gone(self.fd.as_fd()) => Ok(()),
            _ => Err(Gone),
        }
    }
}

/// Copies a frame out of the ring, with its VLAN tag in place. False: it is not all there.
fn fill(frame: &mut Frame, received: Received<'_>) -> bool {
    let tag_len = received.tag.map_or(0, |tag| tag.len());
    if !received.whole || received.bytes.len() + tag_len > MAX_FRAME_LEN {
        return false;
    }
    frame.copy_from(received.bytes);
    frame.vnet = VnetHdr::decode(received.vnet);
    if let Some(tag) = received.tag {
        vlan::put_back(frame, tag);
    }
    true
}

/// All workers send by one socket, which the kernel allows. When one worker's frame is refused,
/// the error may reach another worker, which then counts a frame of its own as refused: rare, and
/// the sums still balance.
#[derive(Debug)]
struct PacketTx {
    fd: Arc<OwnedFd>,
    /// May be written to by the worker's ring.
    is_stream: bool,
    carrier: Option<Carrier>,
}

impl PacketTx {
    fn send(&self, frames: &mut [Frame], report: &mut TxReport) {
        let mut rest = frames;
        while !rest.is_empty() {
            let mut packets: [&[u8]; SEND_BATCH] = [&[]; SEND_BATCH];
            let mut count = 0;
            for (packet, frame) in packets.iter_mut().zip(rest.iter_mut()) {
                // Empty without headroom for the header: refused by the kernel as too short.
                *packet = with_vnet_hdr(frame).unwrap_or_default();
                count += 1;
            }
            let packets = packets.get(..count).unwrap_or_default();
            let (sent, failure) = match sys::send_many(self.fd.as_fd(), packets) {
                // The kernel keeps the reason why it stopped, and would give it as the answer to
                // the next call, whatever that sends. None kept: the next call finds it again.
                Ok(sent) if sent < count => {
                    (sent, getsockopt(&self.fd, sockopt::SocketError).unwrap_or(0))
                }
                Ok(sent) => (sent, 0),
                Err(Errno::EINTR) => (0, 0),
                Err(errno) => (0, errno as i32),
            };
            for frame in rest.iter().take(sent) {
                report.sent += 1;
                report.sent_bytes += frame.len() as u64;
            }
            let mut done = sent;
            if failure != 0 {
                let errno = Errno::from_raw(failure);
                let others = u32::try_from(rest.len() - sent - 1).unwrap_or(u32::MAX);
                let refused = report.refused;
                report.count_refused(errno, 1);
                if report.refused == refused {
                    // A full queue or a downed interface takes none of the others either.
                    report.count_refused(errno, others);
                    return;
                }
                done += 1;
            }
            rest = rest.get_mut(done..).unwrap_or_default();
        }
    }
}

impl PortTx for PacketTx {
    fn tx(&mut self, frames: &mut Vec<Frame>, pool: &mut Pool) -> TxReport {
        let mut report = TxReport::default();
        self.send(frames, &mut report);
        frames.drain(..).for_each(|frame| pool.put(frame));
        report
    }

    fn tx_copy(&mut self, frame: &mut Frame, _pool: &mut Pool) -> TxReport {
        let mut report = TxReport::default();
        self.send(std::slice::from_mut(frame), &mut report);
        report
    }

    fn stream(&self) -> Option<BorrowedFd<'_>> {
        self.is_stream.then(|| self.fd.as_fd())
    }

    fn loses_all(&mut self, now: Timestamp) -> bool {
        self.carrier.as_mut().is_some_and(|carrier| carrier.is_lost(self.fd.as_fd(), now))
    }
}

#[cfg(test)]
mod tests;
