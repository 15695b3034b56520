//! An io_uring that reads frames into buffers given to it beforehand and writes frames it is given.
//!
//! Invariants of [`Uring`]: a frame whose buffer the kernel may read or write belongs to the
//! `Uring` (in `posted` or `writes`) from before the request is queued until its completion has
//! been taken; a frame's buffer does not move when the frame does. The entries of the buffer ring
//! are mapped as long as the ring exists. Dropping cancels everything before buffers are freed.

#![allow(unsafe_code, reason = "requests hand addresses to the kernel")]

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::errno::Errno;

use super::map::Mapping;
use crate::frame::{Frame, GAP};
use crate::io::{Reading, vlan};

/// Requests that are queued before the kernel has to be told.
const REQUESTS: u32 = 256;
/// Room for completions: those of all requests, of all posted buffers and of ports that end.
const COMPLETIONS: u32 = 4096;
/// The only buffer group.
const GROUP: u16 = 0;
/// `struct io_uring_buf` (`linux/io_uring.h`) as two words: address; length, number, tail.
const ENTRY_WORDS: usize = 2;

const KIND_READ: u64 = 0;
const KIND_READY: u64 = 1;
const KIND_WRITE: u64 = 2;
const KIND_RECEIVE: u64 = 3;
const KIND_SHIFT: u32 = 62;

/// What the kernel puts before what is received with control data: its own header
/// (`struct io_uring_recvmsg_out`), and the control data. A cache line, so that the frame behind it
/// lies as others do.
pub(in crate::io) const CONTROL_GAP: usize = RECVMSG_OUT + vlan::CONTROL_LEN;
const RECVMSG_OUT: usize = 16;
const _: () = assert!(CONTROL_GAP == GAP);

/// The control data in what the kernel put before a frame. `None`: it is not all there, and the
/// bytes are what an earlier frame left.
#[inline]
pub(in crate::io) fn control_data(gap: &[u8; CONTROL_GAP]) -> Option<&[u8; vlan::CONTROL_LEN]> {
    // `struct io_uring_recvmsg_out`: lengths of name, control data and payload; flags.
    let (&[_, _, _, _, a, b, c, d, ..], control) = gap.split_first_chunk::<RECVMSG_OUT>()?;
    let len = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
    if len < vlan::TOLD_LEN { None } else { control.first_chunk() }
}

/// Asks for room for control data; the buffer is provided.
struct Receive(libc::msghdr);

// JUSTIFICATION: the kernel reads it through a pointer whenever a request is submitted.
// SAFETY: all pointers in it are null, and nobody writes to it.
unsafe impl Sync for Receive {}

static RECEIVE: Receive = {
    // JUSTIFICATION: C libraries pad the structure in ways of their own.
    // SAFETY: null pointers and zero lengths are a valid `msghdr`.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_controllen = vlan::CONTROL_LEN as _;
    Receive(header)
};

const fn kind(reading: Reading) -> u64 {
    match reading {
        Reading::Plain => KIND_READ,
        Reading::Tagged => KIND_RECEIVE,
    }
}

/// What the kernel has done.
#[derive(Debug)]
pub(in crate::io) enum Completion {
    /// A frame was read, or reading failed; without `more` nothing else will be read.
    Read { token: u64, reading: Reading, outcome: Result<Frame, Errno>, more: bool },
    /// The descriptor that was polled is readable, in error or hung up.
    Ready,
    /// A frame was written, or not.
    Written { token: u64, frame: Frame, outcome: Result<usize, Errno> },
}

/// A frame that is being written.
#[derive(Debug)]
struct Write {
    frame: Frame,
    token: u64,
}

/// The ring. Only the thread that made it may use it; the kernel refuses others.
pub(in crate::io) struct Uring {
    ring: IoUring,
    /// Frames that the kernel may write to, by buffer number.
    posted: Vec<Option<Frame>>,
    unposted: Vec<u16>,
    entries: Mapping,
    tail: u16,
    prefix: usize,
    /// Frames that the kernel may read.
    writes: Vec<Option<Write>>,
    unused: Vec<u16>,
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").field("posted", &self.posted()).finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring that takes up to `buffers` (rounded up to a power of two) frames to read into, with
    /// `prefix` bytes before each.
    ///
    /// # Errors
    /// When the kernel has no io_uring, does not allow it, or is older than 6.7.
    pub(in crate::io) fn new(buffers: u16, prefix: usize) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(REQUESTS)?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::ReadMulti::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let buffers = buffers.next_power_of_two();
        let len = usize::from(buffers) * ENTRY_WORDS * size_of::<u64>();
        let entries = Mapping::anonymous(NonZeroUsize::new(len).unwrap_or(NonZeroUsize::MIN))?;
        let address = entries.words().as_ptr().expose_provenance() as u64;
        // JUSTIFICATION: without provided buffers each port would need buffers of its own.
        // SAFETY: `entries` is mapped for `buffers` entries and lives as long as `ring`, which is
        // dropped first.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, buffers, GROUP, 0) }?;
        Ok(Self {
            ring,
            posted: (0..buffers).map(|_| None).collect(),
            unposted: (0..buffers).collect(),
            entries,
            tail: 0,
            prefix,
            writes: Vec::new(),
            unused: Vec::new(),
        })
    }

    /// Frames the kernel may read into now.
    pub(in crate::io) fn posted(&self) -> usize {
        self.posted.len() - self.unposted.len()
    }

    /// Whether [`Uring::post`] takes another frame.
    pub(in crate::io) fn wants_buffer(&self) -> bool {
        !self.unposted.is_empty()
    }

    /// Gives the kernel a frame to read into. Without room it comes back.
    pub(in crate::io) fn post(&mut self, mut frame: Frame) -> Option<Frame> {
        let Some(number) = self.unposted.pop() else { return Some(frame) };
        let buffer = frame.receive_buffer(self.prefix);
        let len = buffer.len();
        let address = buffer.as_mut_ptr().expose_provenance() as u64;
        if let Some(slot) = self.posted.get_mut(usize::from(number)) {
            *slot = Some(frame);
        }
        self.publish_buffer(number, address, u32::try_from(len).unwrap_or(u32::MAX));
        None
    }

    /// The tail that the kernel looks at shares a word with entry 0, so that word is written last,
    /// and only by us.
    fn publish_buffer(&mut self, number: u16, address: u64, len: u32) {
        let words = self.entries.words();
        let mask = self.posted.len() - 1;
        let at = (usize::from(self.tail) & mask) * ENTRY_WORDS;
        let entry = |len: u32, number: u16, tail: u16| {
            let ([a, b, c, d], [e, f], [g, h]) =
                (len.to_ne_bytes(), number.to_ne_bytes(), tail.to_ne_bytes());
            u64::from_ne_bytes([a, b, c, d, e, f, g, h])
        };
        let next = self.tail.wrapping_add(1);
        let (Some(first), Some(second), Some(head)) =
            (words.get(at), words.get(at + 1), words.get(1))
        else {
            return;
        };
        first.store(address, Ordering::Relaxed);
        if at == 0 {
            head.store(entry(len, number, next), Ordering::Release);
        } else {
            second.store(entry(len, number, 0), Ordering::Relaxed);
            let [a, b, c, d, e, f, _, _] = head.load(Ordering::Relaxed).to_ne_bytes();
            let [g, h] = next.to_ne_bytes();
            head.store(u64::from_ne_bytes([a, b, c, d, e, f, g, h]), Ordering::Release);
        }
        self.tail = next;
    }

    /// Reads from `fd` into posted buffers, one frame each, until something goes wrong.
    pub(in crate::io) fn read(&mut self, fd: BorrowedFd<'_>, reading: Reading, token: u64) {
        let fd = Fd(fd.as_raw_fd());
        let request = match reading {
            Reading::Plain => opcode::ReadMulti::new(fd, 0, GROUP).build(),
            Reading::Tagged => opcode::RecvMsgMulti::new(fd, &raw const RECEIVE.0, GROUP).build(),
        };
        self.push(&request.user_data(token | kind(reading) << KIND_SHIFT));
    }

    /// Tells once when `fd` is readable, which may be at once.
    pub(in crate::io) fn poll(&mut self, fd: BorrowedFd<'_>) {
        let events = u32::from(libc::POLLIN.unsigned_abs());
        let request = opcode::PollAdd::new(Fd(fd.as_raw_fd()), events).build();
        self.push(&request.user_data(KIND_READY << KIND_SHIFT));
    }

    /// Writes a frame with what stands before it in its buffer, at once or not at all.
    pub(in crate::io) fn write(&mut self, fd: BorrowedFd<'_>, mut frame: Frame, token: u64) {
        let bytes = frame.transmit_buffer(self.prefix);
        let (address, len) = (bytes.as_ptr(), u32::try_from(bytes.len()).unwrap_or(0));
        let write = Some(Write { frame, token });
        let number = match self.unused.pop() {
            Some(number) => number,
            None => {
                let number = u16::try_from(self.writes.len()).unwrap_or(u16::MAX);
                self.writes.push(None);
                number
            }
        };
        if let Some(slot) = self.writes.get_mut(usize::from(number)) {
            *slot = write;
        }
        // Never later: what waits would be overtaken.
        let request =
            opcode::Write::new(Fd(fd.as_raw_fd()), address, len).rw_flags(libc::RWF_NOWAIT).build();
        self.push(&request.user_data(u64::from(number) | KIND_WRITE << KIND_SHIFT));
    }

    fn push(&mut self, request: &squeue::Entry) {
        loop {
            // JUSTIFICATION: queueing a request is the purpose of this type.
            // SAFETY: whatever address the request has lies in a frame that `posted` or `writes`
            // holds until its completion (see above), or is that of a static; polls have none. The
            // kernel takes its own reference to the file at submission, and a descriptor that was
            // closed before fails.
            let pushed = unsafe { self.ring.submission().push(request) };
            if pushed.is_ok() {
                return;
            }
            // Full: the kernel takes all that is queued at once.
            self.submit();
        }
    }

    /// Requests that the kernel has not been told of.
    pub(in crate::io) fn is_queued(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Whether another request makes the kernel take all of them.
    pub(in crate::io) fn is_full(&mut self) -> bool {
        self.ring.submission().is_full()
    }

    /// Whether the kernel has something to complete as soon as it is asked.
    pub(in crate::io) fn is_pending(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.ring.submission().taskrun()
    }

    /// Tells the kernel what is queued and lets it complete what it can.
    pub(in crate::io) fn submit(&mut self) {
        // A signal, or completions that must be taken first: the next call goes on. The kernel has
        // no other reason to refuse a ring that it made.
        let _ = self.ring.submit();
    }

    /// The same, and sleeps until something is completed or `timeout` has passed.
    pub(in crate::io) fn submit_and_wait(&mut self, timeout: Duration) {
        let timeout = Timespec::from(timeout);
        let arguments = SubmitArgs::new().timespec(&timeout);
        // Beside the above: the time has passed.
        let _ = self.ring.submitter().submit_with_args(1, &arguments);
    }

    /// Takes what is completed, in the order in which it was.
    pub(in crate::io) fn completions(&mut self, mut each: impl FnMut(Completion)) {
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return };
            if let Some(completion) = self.complete(&entry) {
                each(completion);
            }
        }
    }

    fn complete(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let value = entry.user_data() & !(u64::MAX << KIND_SHIFT);
        let outcome = match usize::try_from(entry.result()) {
            Ok(len) => Ok(len),
            Err(_) => Err(Errno::from_raw(entry.result().saturating_neg())),
        };
        match entry.user_data() >> KIND_SHIFT {
            from @ (KIND_READ | KIND_RECEIVE) => {
                let (reading, gap) = match from {
                    KIND_RECEIVE => (Reading::Tagged, CONTROL_GAP),
                    _ => (Reading::Plain, 0),
                };
                let frame = cqueue::buffer_select(entry.flags()).and_then(|number| {
                    let frame = self.posted.get_mut(usize::from(number))?.take()?;
                    self.unposted.push(number);
                    Some(frame)
                });
                let outcome = match (outcome, frame) {
                    (Ok(len), Some(mut frame)) => {
                        frame.set_received_behind(gap, len.saturating_sub(gap + self.prefix));
                        Ok(frame)
                    }
                    (Err(errno), _) => Err(errno),
                    // A device does not end by reading nothing.
                    (Ok(_), None) => Err(Errno::EBADFD),
                };
                let more = cqueue::more(entry.flags());
                Some(Completion::Read { token: value, reading, outcome, more })
            }
            KIND_READY => Some(Completion::Ready),
            _ => {
                let number = u16::try_from(value).ok()?;
                let write = self.writes.get_mut(usize::from(number))?.take()?;
                self.unused.push(number);
                Some(Completion::Written { token: write.token, frame: write.frame, outcome })
            }
        }
    }

    /// Ends the reading that was begun with `token`; what it completed before is still to be
    /// taken.
    pub(in crate::io) fn cancel_read(&mut self, reading: Reading, token: u64) {
        self.submit();
        let data = token | kind(reading) << KIND_SHIFT;
        // NotFound: it has ended by itself.
        let _ = self.ring.submitter().register_sync_cancel(None, CancelBuilder::user_data(data));
        self.submit();
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Closing the ring cancels too, but after the buffers have been freed.
        let _ = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
        self.submit();
    }
}
