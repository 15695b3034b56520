//! ioctls of `/dev/net/tun` (`linux/if_tun.h`).

#![allow(unsafe_code, reason = "ioctl has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Longest name of an interface in bytes: `IFNAMSIZ` less the closing zero.
pub(in crate::io) const MAX_NAME_LEN: usize = libc::IFNAMSIZ - 1;

/// `struct ifreq` as the tun ioctls use it: name and flags, padded to the full 40 bytes that the
/// kernel copies.
#[repr(C)]
#[derive(Clone, Copy)]
struct TunRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    // The union of `ifreq` is 24 bytes long on 64-bit machines, 16 on 32-bit ones.
    padding: [u8; 22],
}

const _: () = assert!(size_of::<TunRequest>() >= size_of::<libc::ifreq>());

/// Creates the device `name`, or attaches to it. `name` has at most [`MAX_NAME_LEN`] bytes.
pub(in crate::io) fn set_iff(fd: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> io::Result<()> {
    let flags = libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut request = TunRequest { name: [0; libc::IFNAMSIZ], flags, padding: [0; 22] };
    match request.name.get_mut(..name.len()) {
        Some(to) if name.len() <= MAX_NAME_LEN => to.copy_from_slice(name.as_bytes()),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    by_address(fd, libc::TUNSETIFF, &mut request)
}

/// Length of the virtio-net header.
pub(in crate::io) fn set_vnet_hdr_len(fd: BorrowedFd<'_>, len: libc::c_int) -> io::Result<()> {
    by_address(fd, libc::TUNSETVNETHDRSZ, &mut { len })
}

/// What the reader of the descriptor takes: `TUN_F_*`.
pub(in crate::io) fn set_offload(fd: BorrowedFd<'_>, features: u32) -> io::Result<()> {
    by_value(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(features))
}

/// Whether the device stays when the last descriptor is closed.
pub(in crate::io) fn set_persist(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    by_value(fd, libc::TUNSETPERSIST, libc::c_ulong::from(on))
}

/// The network namespace that the device is in now. Since Linux 5.2.
pub(in crate::io) fn netns(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // JUSTIFICATION: nix has no wrapper for the tun ioctls.
    // SAFETY: `fd` is borrowed, so open; the request has no argument.
    let netns = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETDEVNETNS) };
    if netns < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made the descriptor for this call, so nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(netns) })
}

/// For requests whose argument is copied in, and perhaps out, at an address. Only for the two
/// above whose structure `T` is.
fn by_address<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    let argument: *mut T = argument;
    // JUSTIFICATION: nix has no wrapper for the tun ioctls.
    // SAFETY: `fd` is borrowed, so open; the kernel reads and writes at most the structure of the
    // request, which is what the callers in this file pass, and keeps no pointer.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// For requests whose argument is the number itself.
fn by_value(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: libc::c_ulong) -> io::Result<()> {
    // JUSTIFICATION: nix has no wrapper for the tun ioctls.
    // SAFETY: `fd` is borrowed, so open; the argument is passed by value.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
