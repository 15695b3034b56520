//! Whether anybody is at the other end of an interface.
//!
//! Without a carrier the kernel takes frames and loses them in the interface's queueing discipline
//! (`noop_enqueue`), which it reports as sent. So the interface's flags are asked for, by two system
//! calls: at most every [`INTERVAL`] while there is a carrier, once a batch while there is none, and
//! never while nothing is sent. What is sent in the interval in which the carrier goes still counts as
//! sent; from the moment it is back everything is sent.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::io::sys::packet;

/// How long a carrier is believed to be there.
const INTERVAL: Duration = Duration::from_millis(50);

/// What one sender knows of the carrier.
#[derive(Debug)]
pub(super) struct Carrier {
    interface: libc::c_int,
    asked: Timestamp,
    lost: bool,
}

impl Carrier {
    pub(super) const fn new(interface: libc::c_int) -> Self {
        Self { interface, asked: Timestamp::ZERO, lost: false }
    }

    /// Whether there is none now. The socket is bound to the interface.
    pub(super) fn is_lost(&mut self, socket: BorrowedFd<'_>, now: Timestamp) -> bool {
        let known = if self.lost { now == self.asked } else { now.since(self.asked) < INTERVAL };
        if !known {
            self.asked = now;
            // One that is gone is for sending to find out.
            self.lost = packet::is_running(socket, self.interface).is_ok_and(|running| !running);
        }
        self.lost
    }
}
