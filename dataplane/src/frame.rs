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

/// One frame in a buffer of the pool.
pub struct Frame {
    buffer: Box<[u8]>,
    /// Where the Ethernet header of a received frame lies.
    origin: usize,
    start: usize,
    len: usize,
    /// Offload state as received; re-derived from the parsed headers before it is believed.
    pub vnet: VnetHdr,
    /// The port it came in on.
    pub ingress: PortId,
}

impl Frame {
    /// A frame of length zero in a new buffer. Only pools and tests allocate.
    #[must_use]
    pub fn new() -> Self {
        Self::colored(0)
    }

    /// One that only takes a place: it has no buffer.
    pub(crate) fn unused() -> Self {
        let buffer = Box::default();
        Self { buffer, origin: 0, start: 0, len: 0, vnet: VnetHdr::default(), ingress: PortId(0) }
    }

    /// The same; frames that are used side by side have different numbers.
    #[must_use]
    pub(crate) fn colored(number: usize) -> Self {
        let origin = number % COLORS * LINE + HEADROOM;
        Self {
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
            origin,
            start: origin,
            len: 0,
            vnet: VnetHdr::default(),
            ingress: PortId(0),
        }
    }

    /// Makes the frame empty again. The old bytes stay in the buffer behind `len` and are never
    /// sent: every writer sets the length to what it wrote.
    #[inline]
    pub fn reset(&mut self) {
        self.start = self.origin;
        self.len = 0;
        self.vnet = VnetHdr::default();
    }

    /// The frame from the Ethernet header on.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.start + self.len).unwrap_or_default()
    }

    /// Asks for the headers ahead of their use.
    #[inline]
    pub(crate) fn prefetch(&self) {
        if let Some(first) = self.buffer.get(self.start) {
            prefetch(first);
        }
    }

    /// The frame from the Ethernet header on.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }

    /// Length of the frame in bytes, without virtio-net header and FCS.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the frame has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the longest frame ends.
    fn limit(&self) -> usize {
        self.start.max(self.origin) + MAX_FRAME_LEN
    }

    /// Replaces the frame by a copy of `bytes`, cut to [`MAX_FRAME_LEN`]; offload state is cleared.
    pub fn copy_from(&mut self, bytes: &[u8]) {
        self.reset();
        let len = bytes.len().min(MAX_FRAME_LEN);
        if let (Some(to), Some(from)) =
            (self.buffer.get_mut(self.origin..self.origin + len), bytes.get(..len))
        {
            to.copy_from_slice(from);
            self.len = len;
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
        let len = len.min(self.limit() - self.start);
        if len > self.len
            && let Some(fresh) = self.buffer.get_mut(self.start + self.len..self.start + len)
        {
            fresh.fill(0);
        }
        self.len = len;
    }

    /// Appends `bytes`, cut to what the buffer still holds.
    pub fn append(&mut self, bytes: &[u8]) {
        let end = self.start + self.len;
        let len = bytes.len().min(self.limit().saturating_sub(end));
        if let (Some(to), Some(from)) = (self.buffer.get_mut(end..end + len), bytes.get(..len)) {
            to.copy_from_slice(from);
            self.len += len;
        }
    }

    /// Cuts the frame to its first `len` bytes; no effect when it is shorter.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The room a device may read into: `prefix` bytes of the headroom (a virtio-net header) and
    /// everything behind it, which is `GAP` more than the longest frame. Resets the frame. Follow
    /// with [`Frame::set_received`].
    pub fn receive_buffer(&mut self, prefix: usize) -> &mut [u8] {
        self.reset();
        let from = self.origin - prefix.min(HEADROOM);
        let to = self.limit() + GAP;
        self.buffer.get_mut(from..to).unwrap_or_default()
    }

    /// States how many bytes a device wrote behind the prefix of [`Frame::receive_buffer`].
    pub fn set_received(&mut self, len: usize) {
        self.len = len.min(self.limit() - self.start);
    }

    /// The same, where the device wrote `gap` bytes, at most [`GAP`], before the frame.
    pub(crate) fn set_received_behind(&mut self, gap: usize, len: usize) {
        self.start = self.origin + gap.min(GAP);
        self.set_received(len);
    }

    /// Puts a VLAN tag behind the addresses: the frame is longer by it, up to [`MAX_FRAME_LEN`] and
    /// 4 bytes, and what the virtio-net header says of places moves along. False: there are no
    /// addresses, or encapsulation has used up the headroom.
    pub(crate) fn push_tag(&mut self, tag: [u8; 4]) -> bool {
        let Some(start) = self.start.checked_sub(tag.len()) else { return false };
        if self.len < ADDRESSES {
            return false;
        }
        self.buffer.copy_within(self.start..self.start + ADDRESSES, start);
        self.start = start;
        self.len += tag.len();
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
        if self.len < ADDRESSES + TAG {
            return false;
        }
        let end = self.start + ADDRESSES;
        self.buffer.copy_within(self.start..end, self.start + TAG);
        self.start += TAG;
        self.len -= TAG;
        self.vnet = self.vnet.moved(|place| place.saturating_sub(4));
        true
    }

    /// The bytes before the frame that a device filled: a virtio-net header.
    #[must_use]
    pub fn received_prefix<const N: usize>(&self) -> Option<[u8; N]> {
        self.buffer.get(self.start.checked_sub(N)?..self.start)?.first_chunk().copied()
    }

    /// The frame with `prefix` bytes of headroom before it, for a device that wants both in one
    /// piece. The caller fills the prefix.
    pub fn transmit_buffer(&mut self, prefix: usize) -> &mut [u8] {
        let from = self.start - prefix.min(self.start);
        self.buffer.get_mut(from..self.start + self.len).unwrap_or_default()
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
