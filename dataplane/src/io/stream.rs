//! Receiving from a descriptor that gives one frame a call, with its virtio-net header before it: a
//! TAP device, or a packet socket without a ring.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::read;

use super::sys::packet;
use super::vlan;
use super::vnet_hdr::{VNET_HDR_LEN, VnetHdr};
use super::{Gone, PortRx, Reading};
use crate::frame::Frame;
use crate::pool::Pool;

/// Whether a descriptor that failed to read will never read again.
pub(super) type IsGone = fn(BorrowedFd<'_>) -> bool;

/// The receiving half.
pub(super) struct StreamRx {
    fd: Arc<OwnedFd>,
    reading: Reading,
    is_gone: IsGone,
}

impl StreamRx {
    pub(super) fn new(fd: Arc<OwnedFd>, reading: Reading, is_gone: IsGone) -> Self {
        Self { fd, reading, is_gone }
    }

    /// Reads a frame, with the tag that is told beside it.
    fn read(&self, buffer: &mut [u8]) -> Result<(usize, Option<[u8; 4]>), Errno> {
        match self.reading {
            Reading::Plain => Ok((read(&self.fd, buffer)?, None)),
            Reading::Tagged => {
                let mut control = [0; vlan::CONTROL_LEN];
                let len = packet::receive(self.fd.as_fd(), buffer, &mut control)?;
                Ok((len, vlan::tag_in(&control)))
            }
        }
    }
}

impl fmt::Debug for StreamRx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamRx").field("fd", &self.fd).finish_non_exhaustive()
    }
}

impl PortRx for StreamRx {
    fn rx(
        &mut self,
        budget: usize,
        pool: &mut Pool,
        batch: &mut Vec<Frame>,
    ) -> Result<usize, Gone> {
        let mut count = 0;
        while count < budget {
            let Some(mut frame) = pool.take() else { break };
            let buffer = frame.receive_buffer(VNET_HDR_LEN);
            match self.read(buffer) {
                Ok((len, tag)) => {
                    let vnet = buffer.first_chunk().copied().map(VnetHdr::decode);
                    frame.set_received(len.saturating_sub(VNET_HDR_LEN));
                    frame.vnet = vnet.unwrap_or_default();
                    if let Some(tag) = tag {
                        vlan::put_back(&mut frame, tag);
                    }
                    batch.push(frame);
                    count += 1;
                }
                Err(Errno::EINTR) => pool.put(frame),
                Err(errno) => {
                    pool.put(frame);
                    if errno != Errno::EAGAIN && count == 0 && self.is_gone() {
                        return Err(Gone);
                    }
                    break;
                }
            }
        }
        Ok(count)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn stream(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn reading(&self) -> Reading {
        self.reading
    }

    fn is_gone(&self) -> bool {
        (self.is_gone)(self.fd.as_fd())
    }
}
