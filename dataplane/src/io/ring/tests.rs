use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::thread;

use super::*;
use crate::io::poll::Poller;

const LONG: Duration = Duration::from_secs(20);
const PORT: PortId = PortId(3);

/// A stream of frames and its other end: datagrams keep their bounds as a TAP's frames do.
struct Bench {
    ring: Ring,
    pool: Pool,
    poller: Poller,
    ours: UnixDatagram,
    theirs: UnixDatagram,
}

impl Bench {
    fn new(buffers: usize) -> Option<Self> {
        let ring = match Ring::new() {
            Ok(ring) => ring,
            // Not here: the suites over it run by epoll then, and say so.
            Err(error) => {
                eprintln!("SKIPPED: no io_uring here: {error}");
                return None;
            }
        };
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let poller = Poller::new().unwrap();
        let mut bench = Self { ring, pool: Pool::new(buffers), poller, ours, theirs };
        bench.ring.add(PORT, Reading::Plain);
        Some(bench)
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        let Self { ring, pool, poller, ours, .. } = self;
        ring.wait(timeout, pool, poller.fd(), |port| (port == PORT).then(|| ours.as_fd()))
    }

    /// Waits until frames come.
    fn receive(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        let deadline = Instant::now() + LONG;
        while frames.is_empty() {
            assert!(Instant::now() < deadline, "no frame in time");
            self.wait(LONG);
            self.ring.take(&mut frames, usize::MAX, usize::MAX);
        }
        frames
    }

    fn send(&self, number: u16) {
        let mut bytes = vec![0; VNET_HDR_LEN];
        bytes.extend([0xab; 60]);
        bytes.extend(number.to_be_bytes());
        self.theirs.send(&bytes).unwrap();
    }
}

fn number(frame: &Frame) -> u16 {
    assert_eq!((frame.len(), frame.ingress), (62, PORT));
    u16::from_be_bytes(*frame.bytes().last_chunk().unwrap())
}

/// Where the kernel told nothing, a frame's buffer holds what an earlier one left there.
#[test]
fn what_was_not_told_is_not_believed() {
    let told = u32::try_from(vlan::TOLD_LEN).unwrap();
    for (len, is_told) in [(0, false), (told - 1, false), (told, true), (told + 4, true)] {
        let mut gap = [0xab; CONTROL_GAP];
        gap[4..8].copy_from_slice(&len.to_ne_bytes());
        assert_eq!(control_data(&gap).is_some(), is_told, "{len}");
    }
}

#[test]
fn frames_come_in_order_and_more_of_them_than_buffers_are_posted() {
    let Some(mut bench) = Bench::new(64) else { return };
    let count = 10_000;
    let theirs = bench.theirs.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..count {
                let mut bytes = vec![0; VNET_HDR_LEN];
                bytes.extend([0xab; 60]);
                bytes.extend(u16::to_be_bytes(number));
                theirs.send(&bytes).unwrap();
            }
        });
        let mut next = 0;
        while next < count {
            for frame in bench.receive() {
                assert_eq!(number(&frame), next);
                next += 1;
                bench.pool.put(frame);
            }
        }
    });
}

#[test]
fn reading_goes_on_after_the_pool_ran_dry() {
    let Some(mut bench) = Bench::new(2) else { return };
    for number in 0..5 {
        bench.send(number);
    }
    let mut got = Vec::new();
    while got.len() < 5 {
        let frames = bench.receive();
        assert!(frames.len() <= 2);
        assert_eq!(bench.pool.available() + bench.ring.uring.posted(), 2 - frames.len());
        for frame in frames {
            got.push(number(&frame));
            bench.pool.put(frame);
        }
    }
    assert_eq!(got, [0, 1, 2, 3, 4]);
}

#[test]
fn fewer_frames_are_read_ahead_the_longer_they_are() {
    assert_eq!([0, 64, 32 << 10].map(ahead), [64; 3]);
    assert_eq!([64 << 10, 128 << 10, 185_000].map(ahead), [32, 16, 16]);
    let Some(mut bench) = Bench::new(128) else { return };
    bench.wait(Duration::ZERO);
    assert_eq!(bench.ring.uring.posted(), 64);
    let long = vec![0; VNET_HDR_LEN + 100_000];
    for _ in 0..100 {
        bench.theirs.send(&long).unwrap();
        for frame in bench.receive() {
            assert_eq!(frame.len(), 100_000);
            bench.pool.put(frame);
        }
    }
    bench.wait(Duration::ZERO);
    assert_eq!(bench.ring.uring.posted(), 20);
}

#[test]
fn the_virtio_net_header_is_taken_from_before_the_frame() {
    let Some(mut bench) = Bench::new(4) else { return };
    let vnet = VnetHdr { flags: 1, csum_start: 34, csum_offset: 16, ..VnetHdr::default() };
    let mut bytes = vnet.encode().to_vec();
    bytes.extend([7; 1000]);
    bench.theirs.send(&bytes).unwrap();
    let frames = bench.receive();
    assert_eq!(frames[0].vnet, vnet);
    assert_eq!(frames[0].bytes(), [7; 1000]);
}

/// Takes the total of what was reported, all of it about our port.
fn total(ring: &mut Ring) -> TxReport {
    let mut total = TxReport::default();
    ring.reports(|port, report| {
        assert_eq!(port, PORT);
        total.sent += report.sent;
        total.sent_bytes += report.sent_bytes;
        total.full += report.full;
    });
    total
}

fn numbered(pool: &mut Pool, numbers: std::ops::Range<u16>) -> Vec<Frame> {
    let mut frames = Vec::new();
    for number in numbers {
        let mut frame = pool.take().unwrap();
        frame.copy_from(&number.to_be_bytes());
        frames.push(frame);
    }
    frames
}

#[test]
fn writes_are_carried_out_in_order_and_reported() {
    let Some(mut bench) = Bench::new(16) else { return };
    // Far fewer than a socket holds.
    for round in 0..200u16 {
        let numbers = round * 8..round * 8 + 8;
        let mut frames = numbered(&mut bench.pool, numbers.clone());
        bench.ring.write(PORT, bench.ours.as_fd(), &mut frames, &mut bench.pool);
        bench.ring.flush(&mut bench.pool);
        for number in numbers {
            let mut buffer = [0; 64];
            assert_eq!(bench.theirs.recv(&mut buffer).unwrap(), VNET_HDR_LEN + 2);
            assert_eq!(buffer[VNET_HDR_LEN..VNET_HDR_LEN + 2], number.to_be_bytes());
        }
        assert_eq!((bench.ring.writing(), bench.pool.available()), (0, 16));
        let expected = TxReport { sent: 8, sent_bytes: 16, ..TxReport::default() };
        assert_eq!(total(&mut bench.ring), expected);
    }
}

/// What does not fit is refused at once: a write that waited would be overtaken by later ones.
#[test]
fn a_full_device_takes_the_first_frames_and_no_later_ones() {
    let Some(mut bench) = Bench::new(1200) else { return };
    let mut frames = numbered(&mut bench.pool, 0..1000);
    bench.ring.write(PORT, bench.ours.as_fd(), &mut frames, &mut bench.pool);
    bench.ring.flush(&mut bench.pool);
    assert_eq!((bench.ring.writing(), bench.pool.available()), (0, 1200));
    let report = total(&mut bench.ring);
    assert!(report.sent > 0 && report.full > 0, "{report:?}");
    assert_eq!(report.sent + report.full, 1000);
    bench.theirs.set_nonblocking(true).unwrap();
    let mut buffer = [0; 64];
    let mut next = 0u16;
    while bench.theirs.recv(&mut buffer).is_ok() {
        assert_eq!(buffer[VNET_HDR_LEN..VNET_HDR_LEN + 2], next.to_be_bytes());
        next += 1;
    }
    assert_eq!(u32::from(next), report.sent);
}

#[test]
fn a_refused_write_is_reported_and_its_buffer_comes_back() {
    let Some(mut bench) = Bench::new(4) else { return };
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    drop(theirs);
    let mut frames = vec![bench.pool.take().unwrap()];
    frames[0].copy_from(&[1; 60]);
    bench.ring.write(PORT, ours.as_fd(), &mut frames, &mut bench.pool);
    bench.ring.flush(&mut bench.pool);
    assert_eq!(bench.pool.available(), 4);
    let mut reports = Vec::new();
    bench.ring.reports(|port, report| reports.push((port, report)));
    assert_eq!(reports, [(PORT, TxReport { refused: 1, ..TxReport::default() })]);
}

#[test]
fn a_removed_port_is_read_no_more_and_keeps_no_buffer() {
    let Some(mut bench) = Bench::new(8) else { return };
    bench.send(0);
    assert_eq!(bench.receive().len(), 1);
    // One frame that is read and not taken.
    bench.send(1);
    bench.wait(LONG);
    bench.ring.remove(PORT, &mut bench.pool);
    bench.send(2);
    assert!(!bench.wait(Duration::from_millis(20)));
    let mut frames = Vec::new();
    bench.ring.take(&mut frames, usize::MAX, usize::MAX);
    assert!(frames.is_empty() && !bench.ring.has(PORT));
    // The same number again is another stream.
    bench.ring.add(PORT, Reading::Plain);
    assert_eq!(number(&bench.receive()[0]), 2);
}

/// A port moves from ring to ring while frames come: none is lost, none overtaken.
#[test]
fn a_stopped_port_is_read_on_by_another_ring_in_order() {
    let Some(mut bench) = Bench::new(64) else { return };
    let mut other = Ring::new().unwrap();
    let count = 10_000;
    let theirs = bench.theirs.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..count {
                let mut bytes = vec![0; VNET_HDR_LEN];
                bytes.extend([0xab; 60]);
                bytes.extend(u16::to_be_bytes(number));
                theirs.send(&bytes).unwrap();
            }
        });
        let (mut next, mut taken) = (0, Vec::new());
        while next < count {
            bench.wait(Duration::from_millis(1));
            bench.ring.stop(PORT, &mut bench.pool);
            assert!(!bench.ring.has(PORT));
            bench.ring.take(&mut taken, usize::MAX, usize::MAX);
            for frame in taken.drain(..) {
                assert_eq!(number(&frame), next);
                next += 1;
                bench.pool.put(frame);
            }
            assert_eq!(bench.ring.take_ended(), None);
            std::mem::swap(&mut bench.ring, &mut other);
            bench.ring.add(PORT, Reading::Plain);
        }
    });
}

#[test]
fn what_ends_reading_is_told_once() {
    let Some(mut bench) = Bench::new(8) else { return };
    bench.ring.remove(PORT, &mut bench.pool);
    let gone = PortId(9);
    bench.ring.add(gone, Reading::Plain);
    // A descriptor that cannot be read: a socket that listens.
    let dir = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let Bench { ring, pool, poller, .. } = &mut bench;
    ring.wait(LONG, pool, poller.fd(), |_| Some(listener.as_fd()));
    assert_eq!((ring.take_ended(), ring.take_ended()), (Some(gone), None));
    assert!(!ring.has(gone));
}

#[test]
fn the_poller_is_waited_for_until_it_has_nothing_more() {
    let Some(mut bench) = Bench::new(8) else { return };
    let (a, b) = UnixDatagram::pair().unwrap();
    bench.poller.add(a.as_fd(), 5).unwrap();
    assert!(!bench.wait(Duration::from_millis(5)));
    b.send(b"x").unwrap();
    // Nobody reads it: it is told again and again, as epoll does.
    assert!(bench.wait(LONG));
    assert!(bench.wait(LONG));
    a.recv(&mut [0; 8]).unwrap();
    let mut woken = 0;
    while bench.wait(Duration::from_millis(20)) {
        woken += 1;
        assert!(woken < 3, "there is nothing to be told");
    }
    bench.poller.waker().wake();
    assert!(bench.wait(LONG));
}

/// A pipe that keeps the bounds of what is written to it, with many frames in it.
fn full_pipe(frames: usize) -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (read, write) = nix::unistd::pipe2(OFlag::O_DIRECT | OFlag::O_NONBLOCK).unwrap();
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
    for _ in 0..frames {
        nix::unistd::write(&write, &[0; VNET_HDR_LEN + 60]).unwrap();
    }
    (read, write)
}

/// However much one port has, the others have their turn.
#[test]
fn ports_that_have_much_share_what_is_read_at_a_time() {
    const FRAMES: usize = 250;
    let mut ring = match Ring::new() {
        Ok(ring) => ring,
        Err(error) => return eprintln!("SKIPPED: no io_uring here: {error}"),
    };
    let pipes: Vec<_> = (0..3).map(|_| full_pipe(FRAMES)).collect();
    let fd_of = |port: PortId| pipes.get(port.index()).map(|(read, _)| read.as_fd());
    let poller = Poller::new().unwrap();
    let mut pool = Pool::new(512);
    for port in 0..3 {
        ring.add(PortId(port), Reading::Plain);
    }
    let mut came = [0; 3];
    let mut frames = Vec::new();
    while came.iter().sum::<usize>() < 3 * FRAMES {
        ring.wait(LONG, &mut pool, poller.fd(), fd_of);
        ring.take(&mut frames, 64, usize::MAX);
        for frame in frames.drain(..) {
            came[frame.ingress.index()] += 1;
            pool.put(frame);
        }
        let (least, most) = (came.iter().min().unwrap(), came.iter().max().unwrap());
        assert!(most - least <= 2 * usize::from(READ_AHEAD), "{came:?}");
    }
}
