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
use std::sync::atomic::AtomicU32;

use crate::sync::atomic::AtomicU64;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Bytes of one where pages have 4096 (x86-64, and aarch64 as Debian builds it).
const HUGE_PAGE: usize = 2 << 20;

/// Mapped memory; unmapped on drop.
#[derive(Debug)]
pub(in crate::io) struct Mapping {
    ptr: NonNull<c_void>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; it has no thread affinity.
unsafe impl Send for Mapping {}
// SAFETY: shared access hands out atomics only, or bytes under the rules of `bytes`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` zero bytes that nobody else sees. A page costs memory from its first write on.
    pub(in crate::io) fn anonymous(len: NonZeroUsize) -> io::Result<Self> {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // MAP_NORESERVE: a table is sized for its limit, not for its use. Miri knows neither this nor advice.
        let sparse = if cfg!(miri) { MapFlags::empty() } else { MapFlags::MAP_NORESERVE };
        let flags = MapFlags::MAP_PRIVATE | sparse;
        // JUSTIFICATION: memory that is zero without being touched.
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let ptr = unsafe { mmap_anonymous(None, len, prot, flags) }?;
        if !cfg!(miri) {
            // A lookup in a large table misses the TLB as surely as the cache: huge pages make that
            // rare. A kernel without them says EINVAL, and all is well without.
            // JUSTIFICATION: as above; nix has no safe madvise.
            // SAFETY: our own whole mapping, and this advice changes nothing that a program can see.
            let _ = unsafe { madvise(ptr, len.get(), MmapAdvise::MADV_HUGEPAGE) };
        }
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

    /// As [`Mapping::shared`], of a file whose pages are there, in huge ones where the file system has them in
    /// memory. Pages that are small are copied now, a millisecond for each huge one; that the system makes no huge
    /// pages of its own accord (`shmem_enabled`) does not matter. Where there are none all is well without.
    pub(in crate::io) fn shared_huge(fd: BorrowedFd<'_>, len: NonZeroUsize) -> io::Result<Self> {
        let Some(room) = len.checked_add(HUGE_PAGE) else { return Self::shared(fd, len) };
        // Where so much is free there is a place that begins with a huge page, as the file does.
        let place = {
            let free = Self::anonymous(room)?;
            NonZeroUsize::new(free.ptr.as_ptr().addr().next_multiple_of(HUGE_PAGE))
        };
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // JUSTIFICATION: as `shared`.
        // SAFETY: as `shared`: without MAP_FIXED the place is a wish, and who has taken it meanwhile keeps it.
        let ptr = unsafe { mmap(place, len, prot, MapFlags::MAP_SHARED, fd, 0) }?;
        let mapping = Self { ptr, len: len.get() };
        if mapping.ptr.as_ptr().addr().is_multiple_of(HUGE_PAGE) {
            let whole = mapping.len / HUGE_PAGE * HUGE_PAGE;
            // JUSTIFICATION: nix knows neither this advice nor a safe madvise.
            // SAFETY: pages of our own mapping, whose bytes stay as they are.
            let _ = unsafe { libc::madvise(ptr.as_ptr(), whole, libc::MADV_COLLAPSE) };
        }
        Ok(mapping)
    }

    /// The memory as 64-bit words; a rest of less than a word is left out.
    pub(in crate::io) fn words(&self) -> &[AtomicU64] {
        let words = self.len / size_of::<AtomicU64>();
        // JUSTIFICATION: the whole point of a mapping is to be looked at.
        // SAFETY: page-aligned, so aligned for u64; `words` of them lie within the mapping, which
        // lives as long as the borrow; every bit pattern is valid; all access is atomic.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast(), words) }
    }

    /// The memory as 32-bit words. Who uses a place by these does not use it by [`Mapping::words`].
    pub(in crate::io) fn halves(&self) -> &[AtomicU32] {
        let halves = self.len / size_of::<AtomicU32>();
        // JUSTIFICATION: as above.
        // SAFETY: page-aligned, so aligned for u32; `halves` of them lie within the mapping, which
        // lives as long as the borrow; every bit pattern is valid; all access is atomic.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast(), halves) }
    }

    /// The 32-bit word at byte `offset`; `None` when it is not aligned or not inside.
    pub(in crate::io) fn word32(&self, offset: usize) -> Option<&AtomicU32> {
        let end = offset.checked_add(size_of::<AtomicU32>())?;
        if end > self.len || !offset.is_multiple_of(align_of::<AtomicU32>()) {
            return None;
        }
        // SAFETY: `offset` lies inside the mapping.
        let at = unsafe { self.ptr.as_ptr().byte_add(offset) };
        // JUSTIFICATION: the status word of a ring slot is written by the kernel.
        // SAFETY: aligned (checked above), inside the mapping, which lives as long as the borrow.
        Some(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    /// `len` bytes from `offset` on; `None` when they are not all inside.
    ///
    /// # Safety
    /// Nobody, in this process, in another or in the kernel, may write to these bytes while the
    /// result is borrowed.
    pub(in crate::io) unsafe fn bytes(&self, offset: usize, len: usize) -> Option<&[u8]> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset` lies inside the mapping.
        let at = unsafe { self.ptr.as_ptr().byte_add(offset) };
        // JUSTIFICATION: frames are copied out of the ring as whole slices.
        // SAFETY: inside the mapping, which lives as long as the borrow; the caller vouches that
        // nobody writes.
        Some(unsafe { std::slice::from_raw_parts(at.cast_const().cast(), len) })
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
