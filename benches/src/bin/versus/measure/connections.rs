//! New TCP connections a second through SNAT, each opened and closed again in order.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::{Better, Family, STALL, Sample, WARM_UP, Way, float};
use crate::contender::Contender;
use crate::error::{VersusError, io as failed};

/// How long a server waits before it looks whether the end has come: 50 ms.
const PATIENCE: TimeVal = TimeVal::new(0, 50_000);

/// Each client has a server of its own, so that no range of ports runs out.
pub(super) fn measure(
    on: &Contender,
    clients: usize,
    duration: Duration,
) -> Result<Vec<Sample>, VersusError> {
    let what = "new connections";
    let path = Way::Up.path(on, Family::V4);
    let mut listeners = Vec::new();
    for _ in 0..clients {
        let bind = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, path.port));
        let listener = path.server.run(bind)?.map_err(failed(what))?;
        let patience = setsockopt(&listener, sockopt::ReceiveTimeout, &PATIENCE);
        patience.map_err(|code| failed(what)(code.into()))?;
        listeners.push(listener);
    }
    let mut targets = Vec::new();
    for listener in &listeners {
        targets.push(path.target(listener.local_addr().map_err(failed(what))?.port()));
    }
    let done = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let rate = thread::scope(|scope| {
        let mut working = Vec::new();
        for (listener, target) in listeners.into_iter().zip(targets) {
            let (done, stop) = (&done, &stop);
            scope.spawn(move || serve(&listener, stop));
            // Sockets belong to the namespace of the thread that opens them.
            working.push(scope.spawn(move || path.client.run(|| connect(target, done, stop))));
        }
        thread::sleep(WARM_UP);
        let (begin, from) = (Instant::now(), done.load(Ordering::Relaxed));
        thread::sleep(duration);
        let rate = float(done.load(Ordering::Relaxed) - from) / begin.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        for thread in working {
            let panicked = || VersusError::Traffic("a client panicked".to_owned());
            thread.join().map_err(|_| panicked())??.map_err(failed(what))?;
        }
        Ok::<_, VersusError>(rate)
    })?;
    if rate == 0.0 {
        let text = "no connection was opened and closed in the time of a run";
        return Err(VersusError::Traffic(text.to_owned()));
    }
    Ok(vec![Sample::new("rate", "k/s", Better::More, rate / 1e3)])
}

/// The server closes first: the time that a closed connection is remembered is then spent outside,
/// and the client's ports are free again at once.
fn serve(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        // A connection that failed is the client's to report.
        drop(listener.accept());
    }
}

fn connect(target: SocketAddr, done: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        match cycle(target) {
            Ok(()) => done.fetch_add(1, Ordering::Relaxed),
            // Its server may have gone already.
            Err(_) if stop.load(Ordering::Relaxed) => break,
            Err(error) => return Err(error),
        };
    }
    Ok(())
}

fn cycle(target: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, STALL)?;
    stream.set_read_timeout(Some(STALL))?;
    // Unlike a single read, goes on after a signal.
    let length = stream.read_to_end(&mut Vec::new())?;
    debug_assert_eq!(length, 0, "nobody sends anything");
    Ok(())
}
