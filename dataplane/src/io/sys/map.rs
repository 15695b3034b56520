//! Memory mappings with an owner.
//!
//! Invariants of [`Mapping`]: `ptr` is page-aligned and points to `len` mapped, readable and
//! writable bytes until the value is dropped; nobody else unmaps them. The memory may be shared
//! with another process or the kernel, so it is handed out only as atomics or through functions
//! that say what the other side does.

#![allow(unsafe_code, reason = "mmap and access to mapped memory have no safe wrapper")]

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Mapped memory; unmapped on drop.
#[derive(Debug)]
pub(in crate::io) struct Mapping {
    ptr: NonNull<c_void>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; it has no thread affinity.
unsafe impl Send for Mapping {}
// SAFETY: shared access hands out atomics only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` zero bytes that nobody else sees. A page costs memory from its first write on.
    pub(in crate::io) fn anonymous(len: NonZeroUsize) -> io::Result<Self> {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // MAP_NORESERVE: a table is sized for its limit, not for its use.
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // JUSTIFICATION: memory that is zero without being touched.
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let ptr = unsafe { mmap_anonymous(None, len, prot, flags) }?;
        Ok(Self { ptr, len: len.get() })
    }

    /// The first `len` bytes of `fd` (a file, or a socket with a ring), shared with whoever else
    /// has it.
    pub(in crate::io) fn shared(fd: BorrowedFd<'_>, len: NonZeroUsize) -> io::Result<Self> {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // JUSTIFICATION: memory shared with a file or with the kernel.
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let ptr = unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self { ptr, len: len.get() })
    }

    /// The memory as 64-bit words; a rest of less than a word is left out.
    pub(in crate::io) fn words(&self) -> &[AtomicU64] {
        let words = self.len / size_of::<AtomicU64>();
        // JUSTIFICATION: the whole point of a mapping is to be looked at.
        // SAFETY: page-aligned, so aligned for u64; `words` of them lie within the mapping, which
        // lives as long as the borrow; every bit pattern is valid; all access is atomic.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast(), words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // JUSTIFICATION: the counterpart of the mmap above.
        // SAFETY: `ptr` and `len` are those of our own mapping, and every borrow of it has ended.
        // An error is impossible for a range that was mapped as a whole.
        let _ = unsafe { munmap(self.ptr, self.len) };
    }
}
