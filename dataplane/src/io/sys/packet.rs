//! Packet sockets (`packet(7)`, `linux/if_packet.h`).

#![allow(
    unsafe_code,
    reason = "socket options, ring and sendmmsg of AF_PACKET have no safe wrapper"
)]

use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;

use nix::errno::Errno;

use super::map::Mapping;
use crate::io::vlan;

/// Frames given to the kernel in one call.
pub(in crate::io) const SEND_BATCH: usize = 32;

/// Bytes of the virtio-net header.
const VNET_HDR_LEN: usize = crate::io::vnet_hdr::VNET_HDR_LEN;

/// Offsets in `struct tpacket2_hdr`; read as words because the kernel writes the first.
const TP_STATUS: usize = 0;
const TP_LEN: usize = 4;
const TP_SNAPLEN: usize = 8;
const TP_MAC: usize = 12;
const TP_VLAN_TCI: usize = 24;

const _: () = assert!(
    TP_MAC == std::mem::offset_of!(libc::tpacket2_hdr, tp_mac)
        && TP_VLAN_TCI == std::mem::offset_of!(libc::tpacket2_hdr, tp_vlan_tci)
);

/// A number as a socket option.
pub(in crate::io) fn set_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    set(fd, level, name, &value)
}

/// Receives everything on the wire of the interface, not only what is for it.
pub(in crate::io) fn add_promiscuous(fd: BorrowedFd<'_>, ifindex: libc::c_int) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: ifindex,
        mr_type: libc::c_ushort::try_from(libc::PACKET_MR_PROMISC).unwrap_or(0),
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
}

/// Frames that the kernel counted and dropped for this socket since the last call.
pub(in crate::io) fn take_drops(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = libc::socklen_t::try_from(size_of_val(&stats)).unwrap_or(0);
    let to: *mut libc::tpacket_stats = &raw mut stats;
    // JUSTIFICATION: nix has no wrapper for PACKET_STATISTICS.
    // SAFETY: `fd` is borrowed, so open; the kernel writes at most `len` bytes, the size of
    // `stats`, and keeps no pointer.
    let rc = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            to.cast(),
            &raw mut len,
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(stats.tp_drops) }
}

/// Binds to an interface; `protocol` 0 receives nothing.
pub(in crate::io) fn bind(
    fd: BorrowedFd<'_>,
    ifindex: libc::c_int,
    protocol: u16,
) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).unwrap_or(0),
        sll_protocol: protocol.to_be(),
        sll_ifindex: ifindex,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    let from: *const libc::sockaddr_ll = &raw const address;
    // JUSTIFICATION: nix makes packet addresses only from what the kernel returned.
    // SAFETY: `fd` is borrowed, so open; `from` points to `len` initialised bytes.
    let rc = unsafe { libc::bind(fd.as_raw_fd(), from.cast(), len) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The interface a socket is bound to: -1 once it has been removed.
pub(in crate::io) fn bound_interface(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    let mut address = MaybeUninit::<libc::sockaddr_ll>::zeroed();
    let mut len = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    let to = address.as_mut_ptr();
    // JUSTIFICATION: nix gives the address without its interface once that is gone.
    // SAFETY: `fd` is borrowed, so open; the kernel writes at most `len` bytes, the size of
    // `address`.
    let rc = unsafe { libc::getsockname(fd.as_raw_fd(), to.cast(), &raw mut len) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed at first; every bit pattern is a valid `sockaddr_ll`.
    Ok(unsafe { address.assume_init() }.sll_ifindex)
}

/// `ARPHRD_*` of the interface `name`, which must be an interface name.
pub(in crate::io) fn hardware_type(fd: BorrowedFd<'_>, name: &str) -> io::Result<u16> {
    // `struct ifreq`: the name, then a `struct sockaddr` whose family is the hardware type.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        family: u16,
        rest: [u8; 22],
    }
    const _: () = assert!(size_of::<Request>() >= size_of::<libc::ifreq>());
    let mut request = Request { name: [0; libc::IFNAMSIZ], family: 0, rest: [0; 22] };
    match request.name.get_mut(..name.len()) {
        Some(to) if name.len() < libc::IFNAMSIZ => to.copy_from_slice(name.as_bytes()),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    let to: *mut Request = &raw mut request;
    // JUSTIFICATION: nix has no wrapper for SIOCGIFHWADDR.
    // SAFETY: `fd` is borrowed, so open; the kernel reads and writes one `struct ifreq`, which is
    // not longer than `request`, and keeps no pointer.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFHWADDR, to) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(request.family) }
}

/// Whether the interface of this index, in the socket's namespace, is up and has a carrier: both ends of a
/// veth pair are up.
pub(in crate::io) fn is_running(fd: BorrowedFd<'_>, ifindex: libc::c_int) -> io::Result<bool> {
    // `struct ifreq`: the name, then a union of which an index and flags are at the beginning.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        value: libc::c_int,
        rest: [u8; 20],
    }
    const _: () = assert!(size_of::<Request>() >= size_of::<libc::ifreq>());
    let mut request = Request { name: [0; libc::IFNAMSIZ], value: ifindex, rest: [0; 20] };
    let to: *mut Request = &raw mut request;
    // Somebody may have renamed it, and flags are asked for by name.
    for question in [libc::SIOCGIFNAME, libc::SIOCGIFFLAGS] {
        // JUSTIFICATION: nix has no wrapper for either.
        // SAFETY: `fd` is borrowed, so open; the kernel reads and writes one `struct ifreq`, which
        // is not longer than `request`, and keeps no pointer.
        if unsafe { libc::ioctl(fd.as_raw_fd(), question, to) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(request.value & libc::IFF_RUNNING != 0)
}

fn set<T>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    let from: *const T = value;
    // JUSTIFICATION: nix has no wrapper for the options of packet sockets.
    // SAFETY: `fd` is borrowed, so open; the kernel reads `len` bytes of the plain structures that
    // this file passes, none of which contains a pointer, and keeps none.
    let rc = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, from.cast(), len) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives a frame into `buffer`, and what is told beside it into `control`, which is zeroed.
pub(in crate::io) fn receive(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    control: &mut [u8; vlan::CONTROL_LEN],
) -> Result<usize, Errno> {
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = MaybeUninit::<libc::msghdr>::zeroed();
    // SAFETY: zeroed: null pointers and zero lengths are a valid `msghdr`.
    let message = unsafe { message.assume_init_mut() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = vlan::CONTROL_LEN as _;
    // JUSTIFICATION: nix's recvmsg knows no PACKET_AUXDATA.
    // SAFETY: `fd` is borrowed, so open; the message points to one vector, that to `buffer`, and to
    // `control`, with their lengths. They live until the call returns; the kernel keeps no pointer
    // and has no need of their alignment.
    let len = unsafe { libc::recvmsg(fd.as_raw_fd(), message, libc::MSG_DONTWAIT) };
    usize::try_from(len).map_err(|_| Errno::last())
}

/// Sends the packets, at most [`SEND_BATCH`], in order; returns how many went before one failed.
/// An error is that of the first.
pub(in crate::io) fn send_many(fd: BorrowedFd<'_>, packets: &[&[u8]]) -> Result<usize, Errno> {
    let mut vectors = [const { MaybeUninit::<libc::iovec>::uninit() }; SEND_BATCH];
    let mut messages = [const { MaybeUninit::<libc::mmsghdr>::zeroed() }; SEND_BATCH];
    let mut count: libc::c_uint = 0;
    for ((packet, vector), message) in packets.iter().zip(&mut vectors).zip(&mut messages) {
        let vector = vector.write(libc::iovec {
            // The kernel only reads: `iovec` knows no const.
            iov_base: packet.as_ptr().cast_mut().cast(),
            iov_len: packet.len(),
        });
        // SAFETY: zeroed: null pointers and zero lengths are a valid `mmsghdr`.
        let message = unsafe { message.assume_init_mut() };
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // JUSTIFICATION: nix's sendmmsg allocates its headers on the heap.
    // SAFETY: `fd` is borrowed, so open; the first `count` messages are initialised, each points to
    // one initialised vector, and those to packets that live until the call returns. The kernel
    // keeps no pointer.
    let sent = unsafe {
        libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr().cast(), count, libc::MSG_DONTWAIT)
    };
    usize::try_from(sent).map_err(|_| Errno::last())
}

/// A receive ring of `TPACKET_V2`, one frame a block, with virtio-net headers.
#[derive(Debug)]
pub(in crate::io) struct RxRing {
    map: Mapping,
    slot_len: usize,
    slots: usize,
    next: usize,
}

/// A received frame in its slot.
#[derive(Debug, Clone, Copy)]
pub(in crate::io) struct Received<'a> {
    /// The virtio-net header.
    pub(in crate::io) vnet: [u8; VNET_HDR_LEN],
    /// The frame, as much as fitted.
    pub(in crate::io) bytes: &'a [u8],
    /// Whether all of it fitted.
    pub(in crate::io) whole: bool,
    /// The VLAN tag that the kernel took out of it, as it was on the wire.
    pub(in crate::io) tag: Option<[u8; 4]>,
}

impl RxRing {
    /// Gives the socket a ring. It must have been set to `TPACKET_V2` and virtio-net headers.
    /// `slot_len` must be a multiple of the page size.
    pub(in crate::io) fn new(
        fd: BorrowedFd<'_>,
        slot_len: NonZeroUsize,
        slots: NonZeroUsize,
    ) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let len = slot_len.checked_mul(slots).ok_or_else(invalid)?;
        let frame_size = libc::c_uint::try_from(slot_len.get()).map_err(|_| invalid())?;
        let frames = libc::c_uint::try_from(slots.get()).map_err(|_| invalid())?;
        let request = libc::tpacket_req {
            tp_block_size: frame_size,
            tp_block_nr: frames,
            tp_frame_size: frame_size,
            tp_frame_nr: frames,
        };
        set(fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let map = Mapping::shared(fd, len)?;
        Ok(Self { map, slot_len: slot_len.get(), slots: slots.get(), next: 0 })
    }

    /// Shows the next received frame to `look` and gives its slot back to the kernel; `None` when
    /// there is none.
    pub(in crate::io) fn read<T>(&mut self, look: impl FnOnce(Received<'_>) -> T) -> Option<T> {
        let slot = self.next * self.slot_len;
        let word = |offset| Some(self.map.word32(slot + offset)?.load(Ordering::Relaxed));
        let status = self.map.word32(slot + TP_STATUS)?;
        // Acquire: the kernel writes the frame, then the status.
        let flags = status.load(Ordering::Acquire);
        if flags & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let len = usize::try_from(word(TP_SNAPLEN)?).ok()?;
        let [a, b, ..] = word(TP_MAC)?.to_ne_bytes();
        let mac = usize::from(u16::from_ne_bytes([a, b]));
        let [a, b, c, d] = word(TP_VLAN_TCI)?.to_ne_bytes();
        let tag = vlan::tag(flags, u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
        let from = slot + mac.checked_sub(VNET_HDR_LEN)?;
        // JUSTIFICATION: the frame is copied out of the ring as a whole slice.
        // SAFETY: the status says that the slot is ours. The kernel does not touch it until the
        // status is set back, which happens below, after the borrow; nobody else maps the ring.
        let bytes = unsafe { self.map.bytes(from, VNET_HDR_LEN + len) }?;
        let (vnet, bytes) = bytes.split_first_chunk()?;
        let whole = word(TP_LEN)? == word(TP_SNAPLEN)?;
        let seen = look(Received { vnet: *vnet, bytes, whole, tag });
        // Release: we have read the frame before the kernel may overwrite it.
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % self.slots;
        Some(seen)
    }
}
