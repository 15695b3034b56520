//! How many of the smallest UDP frames a receiver gets when a sender sends all it can.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

use super::{Better, Path, Sample, WARM_UP, float};
use crate::error::{VersusError, io as failed};

/// With Ethernet, IPv4 and UDP headers and the checksum that only wires have: 64 bytes.
const PAYLOAD: [u8; 18] = [0x5a; 18];
/// Messages of one call.
const BATCH: usize = 64;
/// How long a receiver waits before it looks whether the end has come.
const PATIENCE: Duration = Duration::from_millis(50);

pub(super) fn measure(path: &Path<'_>, duration: Duration) -> Result<Vec<Sample>, VersusError> {
    let what = "UDP frames";
    let receiver = path
        .server
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, path.port)))?
        .map_err(failed(what))?;
    receiver.set_read_timeout(Some(PATIENCE)).map_err(failed(what))?;
    let target = path.target(receiver.local_addr().map_err(failed(what))?.port());
    let sender = path
        .client
        .run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(target).map(|()| socket)
        })?
        .map_err(failed(what))?;
    let received = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let rate = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&receiver, &received, &stop));
        let sending = scope.spawn(|| send(&sender, &stop));
        thread::sleep(WARM_UP);
        let (begin, from) = (Instant::now(), received.load(Ordering::Relaxed));
        thread::sleep(duration);
        let frames = received.load(Ordering::Relaxed) - from;
        let rate = float(frames) / begin.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        for thread in [receiving, sending] {
            thread
                .join()
                .unwrap_or(Err(Errno::ECANCELED))
                .map_err(|code| failed(what)(code.into()))?;
        }
        Ok::<_, VersusError>(rate)
    })?;
    if rate == 0.0 {
        return Err(VersusError::Traffic("no UDP frame came in the time of a run".to_owned()));
    }
    Ok(vec![Sample::new("delivered", "kframes/s", Better::More, rate / 1e3)])
}

fn send(socket: &UdpSocket, stop: &AtomicBool) -> Result<(), Errno> {
    let fd = socket.as_raw_fd();
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let messages = [[IoSlice::new(&PAYLOAD)]; BATCH];
    // The socket is connected.
    let nobody = [None; BATCH];
    while !stop.load(Ordering::Relaxed) {
        match sendmmsg(fd, &mut headers, &messages, nobody, [], MsgFlags::empty()) {
            Ok(_) => {}
            // A full queue is what overload looks like here.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
            Err(code) => return Err(code),
        }
    }
    Ok(())
}

fn receive(socket: &UdpSocket, received: &AtomicU64, stop: &AtomicBool) -> Result<(), Errno> {
    let fd = socket.as_raw_fd();
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut buffers = vec![[0; 64]; BATCH];
    while !stop.load(Ordering::Relaxed) {
        let mut slices: Vec<_> =
            buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        match recvmmsg(fd, &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None) {
            Ok(messages) => {
                received.fetch_add(u64::try_from(messages.count()).unwrap_or(0), Ordering::Relaxed);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(code) => return Err(code),
        }
    }
    Ok(())
}
