//! What tells network namespaces apart (`asm-generic/socket.h`).

#![allow(unsafe_code, reason = "SO_NETNS_COOKIE has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The cookie of the namespace that a socket is in.
pub(in crate::io) fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of_val(&cookie)).unwrap_or(0);
    let to: *mut u64 = &raw mut cookie;
    // JUSTIFICATION: nix has no wrapper for SO_NETNS_COOKIE.
    // SAFETY: `socket` is borrowed, so open; the kernel writes at most `len` bytes, the size of
    // `cookie`, and keeps no pointer.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            to.cast(),
            &raw mut len,
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
