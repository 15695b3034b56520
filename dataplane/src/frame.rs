//! A frame: one pooled buffer, the bytes that count, and the virtio-net header that came with them.
//!
//! Layout of the buffer: `HEADROOM` bytes, then the Ethernet header. The ten bytes of the
//! virtio-net header are read and written directly before the Ethernet header, so that a device
//! read or write is one contiguous piece. The rest of the headroom is for encapsulation. A frame
//! that io_uring reads with what is told beside it ([`crate::io::Reading::Tagged`]) begins up to
//! `GAP` bytes later.
//!
//! A buffer is long enough for BIG TCP, and takes memory only as far as it was ever written to:
//! where no device delivers such frames, 64 KiB of it. Before the headroom a few cache lines are
//! left out, other ones in each buffer: buffers begin at page boundaries, and their headers would
//! all fall into the same cache set.

use std::fmt;
use std::num::NonZeroU16;

use crate::io::prefetch::prefetch;
use crate::io::vnet_hdr::VnetHdr;
use crate::packet::types::PortId;

/// Bytes before the Ethernet header of a received frame.
pub const HEADROOM: usize = 128;

/// The longest frame of devices without BIG TCP: an IP packet of 65,535 bytes, the Ethernet header
/// and two VLAN tags, rounded up.
pub const MAX_PLAIN_FRAME_LEN: usize = 65_600;

/// The longest IP packet that veth devices are told to make of many TCP segments (BIG TCP).
pub const MAX_BIG_PACKET_LEN: u32 = 185_000;

/// The longest frame a buffer holds: such a packet, the Ethernet header and eight VLAN tags,
/// rounded up.
pub const MAX_FRAME_LEN: usize = 185_088;

/// Cache lines of a page: where the headroom of a buffer may begin.
const COLORS: usize = 64;
const LINE: usize = 64;

/// Bytes of both addresses in an Ethernet header.
const ADDRESSES: usize = 12;

/// Bytes that a device may write between the prefix and the frame at most.
pub(crate) const GAP: usize = LINE;

/// Bytes of one buffer.
pub const BUFFER_LEN: usize = COLORS * LINE + HEADROOM + MAX_FRAME_LEN;
const _: () = assert!((COLORS - 1) * LINE + HEADROOM + GAP + MAX_FRAME_LEN <= BUFFER_LEN);

/// One frame in a buffer of the pool. It is moved from the device to the batch, to a lane, to a queue and
/// back to the pool: half a cache line of it.
pub struct Frame {
    /// `None`: one that only takes a place.
    buffer: Option<Box<[u8; BUFFER_LEN]>>,
    start: u32,
    len: u32,
    /// Where the Ethernet header of a received frame lies: behind the headroom, so never at zero, which
    /// makes an `Option<Frame>` no longer than a frame.
    origin: NonZeroU16,
    /// The port it came in on.
    pub ingress: PortId,
    /// Offload state as received; re-derived from the parsed headers before it is believed.
    pub vnet: VnetHdr,
}

const _: () = assert!(size_of::<Option<Frame>>() == LINE / 2);

impl Frame {
    /// A frame of length zero in a new buffer. Only pools and tests allocate.
    #[must_use]
    pub fn new() -> Self {
        Self::colored(0)
    }

    /// One that only takes a place: it has no buffer.
    pub(crate) fn unused() -> Self {
        Self::of(None, 0)
    }

    /// The same; frames that are used side by side have different numbers.
    #[must_use]
    pub(crate) fn colored(number: usize) -> Self {
        let buffer = vec![0; BUFFER_LEN].into_boxed_slice().try_into().ok();
        Self::of(buffer, number % COLORS * LINE + HEADROOM)
    }

    fn of(buffer: Option<Box<[u8; BUFFER_LEN]>>, origin: usize) -> Self {
        const _: () = assert!(COLORS * LINE + HEADROOM <= u16::MAX as usize);
        let origin = NonZeroU16::try_from(u16::try_from(origin).unwrap_or_default());
        let origin = origin.unwrap_or(NonZeroU16::MIN);
        Self {
            buffer,
            start: origin.get().into(),
            len: 0,
            origin,
            ingress: PortId(0),
            vnet: VnetHdr::default(),
        }
    }

    #[inline]
    fn memory(&self) -> &[u8] {
        self.buffer.as_deref().map_or(&[], |buffer| buffer.as_slice())
    }

    #[inline]
    fn memory_mut(&mut self) -> &mut [u8] {
        self.buffer.as_deref_mut().map_or(&mut [], |buffer| buffer.as_mut_slice())
    }

    #[inline]
    const fn start(&self) -> usize {
        self.start as usize
    }

    #[inline]
    fn origin(&self) -> usize {
        self.origin.get().into()
    }

    #[inline]
    const fn end(&self) -> usize {
        self.start() + self.len()
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "of a place in a buffer")]
    const fn set_start(&mut self, start: usize) {
        self.start = start as u32;
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "of bytes in a buffer")]
    const fn set_len(&mut self, len: usize) {
        self.len = len as u32;
    }

    /// Makes the frame empty again. The old bytes stay in the buffer behind `len` and are never
    /// sent: every writer sets the length to what it wrote.
    #[inline]
    pub fn reset(&mut self) {
        self.start = self.origin.get().into();
        self.len = 0;
        self.vnet = VnetHdr::default();
    }

    /// The frame from the Ethernet header on.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.memory().get(self.start()..self.end()).unwrap_or_default()
    }

    /// Asks for the headers ahead of their use.
    #[inline]
    pub(crate) fn prefetch(&self) {
        if let Some(first) = self.memory().get(self.start()) {
            prefetch(first);
        }
    }

    /// The frame from the Ethernet header on.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let range = self.start()..self.end();
        self.memory_mut().get_mut(range).unwrap_or_default()
    }

    /// Length of the frame in bytes, without virtio-net header and FCS.
    #[must_use]
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the frame has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the longest frame ends.
    fn limit(&self) -> usize {
        self.start().max(self.origin()) + MAX_FRAME_LEN
    }

    /// Replaces the frame by a copy of `bytes`, cut to [`MAX_FRAME_LEN`]; offload state is cleared.
    pub fn copy_from(&mut self, bytes: &[u8]) {
        self.reset();
        let len = bytes.len().min(MAX_FRAME_LEN);
        let origin = self.origin();
        if let (Some(to), Some(from)) =
            (self.memory_mut().get_mut(origin..origin + len), bytes.get(..len))
        {
            to.copy_from_slice(from);
            self.set_len(len);
        }
    }

    /// Replaces bytes, offload state and ingress by those of `other`.
    pub fn clone_from_frame(&mut self, other: &Self) {
        self.copy_from(other.bytes());
        self.vnet = other.vnet;
        self.ingress = other.ingress;
    }

    /// Sets the length to `len`, at most [`MAX_FRAME_LEN`]. Bytes that were not part of the frame
    /// before are zeroed, so that nothing of an earlier frame leaks.
    pub fn resize(&mut self, len: usize) {
        let len = len.min(self.limit() - self.start());
        let fresh = self.end()..self.start() + len;
        if len > self.len()
            && let Some(fresh) = self.memory_mut().get_mut(fresh)
        {
            fresh.fill(0);
        }
        self.set_len(len);
    }

    /// Appends `bytes`, cut to what the buffer still holds.
    pub fn append(&mut self, bytes: &[u8]) {
        let end = self.end();
        let len = bytes.len().min(self.limit().saturating_sub(end));
        if let (Some(to), Some(from)) =
            (self.memory_mut().get_mut(end..end + len), bytes.get(..len))
        {
            to.copy_from_slice(from);
            self.set_len(self.len() + len);
        }
    }

    /// Cuts the frame to its first `len` bytes; no effect when it is shorter.
    pub fn truncate(&mut self, len: usize) {
        self.set_len(self.len().min(len));
    }

    /// The room a device may read into: `prefix` bytes of the headroom (a virtio-net header) and
    /// everything behind it, which is `GAP` more than the longest frame. Resets the frame. Follow
    /// with [`Frame::set_received`].
    pub fn receive_buffer(&mut self, prefix: usize) -> &mut [u8] {
        self.reset();
        let from = self.origin().saturating_sub(prefix.min(HEADROOM));
        let to = self.limit() + GAP;
        self.memory_mut().get_mut(from..to).unwrap_or_default()
    }

    /// States how many bytes a device wrote behind the prefix of [`Frame::receive_buffer`].
    pub fn set_received(&mut self, len: usize) {
        self.set_len(len.min(self.limit() - self.start()));
    }

    /// The same, where the device wrote `gap` bytes, at most [`GAP`], before the frame.
    pub(crate) fn set_received_behind(&mut self, gap: usize, len: usize) {
        self.set_start(self.origin() + gap.min(GAP));
        self.set_received(len);
    }

    /// Puts a VLAN tag behind the addresses: the frame is longer by it, up to [`MAX_FRAME_LEN`] and
    /// 4 bytes, and what the virtio-net header says of places moves along. False: there are no
    /// addresses, or encapsulation has used up the headroom.
    pub(crate) fn push_tag(&mut self, tag: [u8; 4]) -> bool {
        let old = self.start();
        let Some(start) = old.checked_sub(tag.len()) else { return false };
        if self.len() < ADDRESSES {
            return false;
        }
        self.memory_mut().copy_within(old..old + ADDRESSES, start);
        self.set_start(start);
        self.set_len(self.len() + tag.len());
        let Some(place) = self.bytes_mut().get_mut(ADDRESSES..ADDRESSES + tag.len()) else {
            return false;
        };
        place.copy_from_slice(&tag);
        self.vnet = self.vnet.moved(|place| place.saturating_add(4));
        true
    }

    /// Takes the outermost VLAN tag out, which the caller knows to be there. False: it cannot be.
    pub(crate) fn pop_tag(&mut self) -> bool {
        const TAG: usize = 4;
        if self.len() < ADDRESSES + TAG {
            return false;
        }
        let start = self.start();
        self.memory_mut().copy_within(start..start + ADDRESSES, start + TAG);
        self.set_start(start + TAG);
        self.set_len(self.len() - TAG);
        self.vnet = self.vnet.moved(|place| place.saturating_sub(4));
        true
    }

    /// The bytes before the frame that a device filled: a virtio-net header.
    #[must_use]
    pub fn received_prefix<const N: usize>(&self) -> Option<[u8; N]> {
        self.memory().get(self.start().checked_sub(N)?..self.start())?.first_chunk().copied()
    }

    /// The frame with `prefix` bytes of headroom before it, for a device that wants both in one
    /// piece. The caller fills the prefix.
    pub fn transmit_buffer(&mut self, prefix: usize) -> &mut [u8] {
        let range = self.start().saturating_sub(prefix)..self.end();
        self.memory_mut().get_mut(range).unwrap_or_default()
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("ingress", &self.ingress)
            .field("len", &self.len)
            .field("vnet", &self.vnet)
            .finish_non_exhaustive()
    }
}
