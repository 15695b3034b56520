//! How long the scheduler lets a thread run at a time (`sched_setattr(2)`).

#![allow(unsafe_code, reason = "sched_getattr and sched_setattr have no safe wrapper")]

use std::io;
use std::time::Duration;

/// The calling thread.
const SELF: libc::pid_t = 0;
/// No flags.
const FLAGS: libc::c_uint = 0;

/// Lets the calling thread run for `slice` at a time, if it is of the default policy. The share it gets
/// of its processor stays the same. False: the kernel knows no such thing (before Linux 6.12).
///
/// # Errors
/// When the kernel refuses.
pub(in crate::io) fn set_slice(slice: Duration) -> io::Result<bool> {
    let wanted = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    let mut attr = attributes()?;
    if i64::from(attr.sched_policy) != i64::from(libc::SCHED_OTHER) {
        return Ok(false);
    }
    attr.sched_runtime = wanted;
    // JUSTIFICATION: neither libc nor nix has a wrapper.
    // SAFETY: `attr` is a whole `sched_attr` that says its size, which the kernel only reads, and of
    // which it keeps nothing.
    let rc = unsafe { libc::syscall(libc::SYS_sched_setattr, SELF, &raw const attr, FLAGS) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(attributes()?.sched_runtime == wanted)
}

/// What the scheduler goes by for the calling thread.
fn attributes() -> io::Result<libc::sched_attr> {
    let size = u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(0);
    let mut attr = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let to: *mut libc::sched_attr = &raw mut attr;
    // JUSTIFICATION: neither libc nor nix has a wrapper.
    // SAFETY: the kernel writes at most `size` bytes, the size of `attr`, and keeps no pointer.
    let rc = unsafe { libc::syscall(libc::SYS_sched_getattr, SELF, to, size, FLAGS) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(attr) }
}
