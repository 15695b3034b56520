//! Reading and writing fields in network byte order at an offset of a frame.
//!
//! Everything is checked: a read beyond the end is `None`, a write beyond the end changes nothing
//! and says so.

/// The `N` bytes at `at`.
#[inline]
pub(crate) fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

/// The `N` bytes at `at`, to be changed.
#[inline]
pub(crate) fn chunk_mut<const N: usize>(bytes: &mut [u8], at: usize) -> Option<&mut [u8; N]> {
    bytes.get_mut(at..)?.first_chunk_mut()
}

/// The 16-bit field at `at`.
#[inline]
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    chunk(bytes, at).map(|field| u16::from_be_bytes(*field))
}

/// Sets the 16-bit field at `at`. False: it lies beyond the end.
#[inline]
pub(crate) fn write_u16(bytes: &mut [u8], at: usize, value: u16) -> bool {
    chunk_mut(bytes, at).map(|field| *field = value.to_be_bytes()).is_some()
}

/// Copies `value` to `at`. False: it would reach beyond the end.
#[inline]
pub(crate) fn write<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> bool {
    chunk_mut(bytes, at).map(|field| *field = value).is_some()
}

/// The low 16 bits, for lengths and offsets that are known to fit: frames are at most
/// [`crate::frame::MAX_FRAME_LEN`] long and every caller has bounded the value before.
#[inline]
#[must_use]
pub(crate) const fn low_u16(value: usize) -> u16 {
    let [.., a, b] = value.to_be_bytes();
    u16::from_be_bytes([a, b])
}

/// The low 32 bits of a length that is known to fit.
#[inline]
#[must_use]
pub(crate) const fn low_u32(value: usize) -> u32 {
    let [.., a, b, c, d] = value.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}
