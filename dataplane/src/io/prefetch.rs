//! Asking for memory ahead of its use.
//!
//! A batch asks for what its lookups will need, then looks: the cache misses of all frames overlap
//! instead of adding up.

#![allow(
    unsafe_code,
    reason = "the prefetch instruction has no safe wrapper in the standard library"
)]

/// Asks for the cache line of `at`. A hint: nothing is read. Does nothing where the instruction is
/// not to be had from stable Rust.
#[inline(always)]
pub(crate) fn prefetch<T>(at: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // JUSTIFICATION: `core::hint::prefetch_read` is not stable yet.
        // SAFETY: prefetching never faults and changes nothing but the cache; SSE is part of
        // x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
