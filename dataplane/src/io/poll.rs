//! Waiting for devices and for other threads.
//!
//! A [`Poller`] belongs to one worker. Waiting is level-triggered: what is not drained is reported
//! again, so a device that reports [`Event::error`] for ever must be removed, or the worker spins.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Events taken from the kernel by one wait; the rest is reported by the next.
pub const MAX_EVENTS: usize = 64;

/// The token of the poller's own waker.
const WAKE_TOKEN: u64 = u64::MAX;

/// An eventfd that is written once per burst: raising it while it is raised costs no syscall.
///
/// The order matters. The producer publishes its work, then raises. The consumer drains the work,
/// then clears, then looks for work once more: what came between is found by that look, what comes
/// later raises again.
#[derive(Debug)]
pub(super) struct Signal {
    fd: EventFd,
    raised: AtomicBool,
}

impl Signal {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self { fd: EventFd::from_flags(flags)?, raised: AtomicBool::new(false) })
    }

    pub(super) fn raise(&self) {
        if !self.raised.swap(true, Ordering::SeqCst) {
            // Only a counter that is about to overflow refuses: it is readable then anyway.
            let _ = self.fd.write(1);
        }
    }

    pub(super) fn clear(&self) {
        if self.raised.load(Ordering::SeqCst) {
            // Read before the flag falls: the other way round, this read could swallow the write
            // of a producer that found the flag down.
            let _ = self.fd.read();
            self.raised.store(false, Ordering::SeqCst);
        }
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Ends the wait of one [`Poller`] from any thread.
#[derive(Debug, Clone)]
pub struct Waker(Arc<Signal>);

impl Waker {
    /// Ends the wait that is under way, or else the next one. Cheap while a wake-up is pending.
    pub fn wake(&self) {
        self.0.raise();
    }
}

/// One descriptor that has something to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// As given to [`Poller::add`].
    pub token: u64,
    /// There is something to read.
    pub readable: bool,
    /// `EPOLLERR` or `EPOLLHUP`: the device is down or gone. Asking it for frames tells which; if
    /// it is gone it must be removed.
    pub error: bool,
}

/// An epoll instance and its waker.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    wake: Arc<Signal>,
    buffer: Box<[EpollEvent]>,
}

impl Poller {
    /// A poller that waits for its waker only.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = Arc::new(Signal::new()?);
        epoll.add(wake.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE_TOKEN))?;
        Ok(Self { epoll, wake, buffer: vec![EpollEvent::empty(); MAX_EVENTS].into() })
    }

    /// A handle that ends the wait.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.wake))
    }

    /// Readable when [`Poller::wait`] would not wait.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Waits for `fd` too. `token` must not be `u64::MAX`.
    ///
    /// # Errors
    /// When `fd` is there already, or is of a kind that cannot be waited for.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        if token == WAKE_TOKEN {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Waits for `fd` no more. Needed before it is closed when duplicates of it live on: epoll
    /// goes by the open file, not by the number.
    ///
    /// # Errors
    /// When `fd` was not there.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Waits until something is ready, the waker is used, or `timeout` (rounded up to
    /// milliseconds; `None`: no limit) has passed. Replaces the contents of `events` by what is
    /// ready, at most [`MAX_EVENTS`]; with that capacity it never allocates. True: woken.
    ///
    /// # Errors
    /// Never, as long as the poller is sound. A signal only ends the wait.
    pub fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<bool> {
        events.clear();
        let timeout = timeout.map_or(EpollTimeout::NONE, |timeout| {
            let millis = timeout.as_nanos().div_ceil(1_000_000);
            EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
        });
        let ready = match self.epoll.wait(&mut self.buffer, timeout) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let mut woken = false;
        for event in self.buffer.iter().take(ready) {
            if event.data() == WAKE_TOKEN {
                self.wake.clear();
                woken = true;
                continue;
            }
            let flags = event.events();
            events.push(Event {
                token: event.data(),
                readable: flags.contains(EpollFlags::EPOLLIN),
                error: flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP),
            });
        }
        Ok(woken)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const SHORT: Option<Duration> = Some(Duration::from_millis(5));
    const LONG: Option<Duration> = Some(Duration::from_secs(20));

    #[test]
    fn times_out_with_nothing_ready() {
        let mut poller = Poller::new().unwrap();
        let mut events = Vec::new();
        assert!(!poller.wait(SHORT, &mut events).unwrap());
        assert!(events.is_empty());
    }

    #[test]
    fn a_wake_up_before_the_wait_is_not_lost_and_counts_once() {
        let mut poller = Poller::new().unwrap();
        let mut events = Vec::new();
        let waker = poller.waker();
        waker.wake();
        waker.wake();
        assert!(poller.wait(LONG, &mut events).unwrap());
        assert!(!poller.wait(SHORT, &mut events).unwrap());
        waker.wake();
        assert!(poller.wait(LONG, &mut events).unwrap());
    }

    #[test]
    fn wakes_from_another_thread_every_time() {
        let mut poller = Poller::new().unwrap();
        let waker = poller.waker();
        let (ack, acked) = crossbeam::channel::bounded(0);
        let other = thread::spawn(move || {
            for _ in 0..1000 {
                waker.wake();
                acked.recv().unwrap();
            }
        });
        let mut events = Vec::new();
        for _ in 0..1000 {
            assert!(poller.wait(LONG, &mut events).unwrap());
            ack.send(()).unwrap();
        }
        other.join().unwrap();
    }

    #[test]
    fn reports_a_readable_descriptor_until_drained_or_removed() {
        let mut poller = Poller::new().unwrap();
        let mut events = Vec::new();
        let signal = Signal::new().unwrap();
        poller.add(signal.as_fd(), 7).unwrap();
        signal.raise();
        let ready = Event { token: 7, readable: true, error: false };
        for _ in 0..2 {
            poller.wait(LONG, &mut events).unwrap();
            assert_eq!(events, [ready]);
        }
        signal.clear();
        poller.wait(SHORT, &mut events).unwrap();
        assert!(events.is_empty());
        signal.raise();
        poller.remove(signal.as_fd()).unwrap();
        poller.wait(SHORT, &mut events).unwrap();
        assert!(events.is_empty());
        assert!(poller.remove(signal.as_fd()).is_err());
    }

    #[test]
    fn shows_the_error_bit_of_a_hung_up_descriptor() {
        let mut poller = Poller::new().unwrap();
        let mut events = Vec::new();
        let (read, write) = nix::unistd::pipe().unwrap();
        poller.add(read.as_fd(), 3).unwrap();
        drop(write);
        poller.wait(LONG, &mut events).unwrap();
        assert_eq!(events, [Event { token: 3, readable: false, error: true }]);
    }

    #[test]
    fn refuses_its_own_token() {
        let poller = Poller::new().unwrap();
        let signal = Signal::new().unwrap();
        assert!(poller.add(signal.as_fd(), WAKE_TOKEN).is_err());
    }
}
