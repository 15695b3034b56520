//! How much payload TCP streams carry, and what processor time that takes.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use nix::sys::socket::{setsockopt, sockopt};

use super::cpu::Cpu;
use super::{Better, Family, Run, STALL, Sample, WARM_UP, Way, float};
use crate::contender::Contender;
use crate::error::{VersusError, io as failed};

/// As `iperf3` writes.
const CHUNK: usize = 128 * 1024;

pub(super) fn measure(
    on: &Contender,
    over: (Way, Family),
    streams: usize,
    run: Run<'_>,
) -> Result<Vec<Sample>, VersusError> {
    let pairs = open(on, over, streams, run.cc)?;
    let received = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut working = Vec::new();
        for (sender, receiver) in &pairs {
            working.push(scope.spawn(|| receive(receiver, &received, &stop)));
            working.push(scope.spawn(|| send(sender, &stop)));
        }
        let figures = watch(on, run, &received);
        stop.store(true, Ordering::Relaxed);
        for (sender, receiver) in &pairs {
            // Ends writes and reads that wait; those who find the stream closed already do not care.
            let _ = sender.shutdown(std::net::Shutdown::Both);
            let _ = receiver.shutdown(std::net::Shutdown::Both);
        }
        for thread in working {
            let ended = thread.join().unwrap_or_else(|_| Err(io::Error::other("panicked")));
            ended.map_err(failed("TCP stream"))?;
        }
        figures
    })
}

/// Looks at the counter twice.
fn watch(on: &Contender, run: Run<'_>, received: &AtomicU64) -> Result<Vec<Sample>, VersusError> {
    thread::sleep(WARM_UP);
    let cpu = Cpu::now(on.process)?;
    let (begin, from) = (Instant::now(), received.load(Ordering::Relaxed));
    thread::sleep(run.duration);
    let (seconds, bytes) = (begin.elapsed(), received.load(Ordering::Relaxed) - from);
    let used = Cpu::now(on.process)?;
    if bytes == 0 {
        return Err(VersusError::Traffic("no byte came through in the time of a run".to_owned()));
    }
    let gbit = float(bytes) * 8.0 / 1e9;
    let mut samples = vec![
        Sample::new("rate", "Gbit/s", Better::More, gbit / seconds.as_secs_f64()),
        Sample::new("CPU, machine", "s/Gbit", Better::Less, used.machine_since(&cpu) / gbit),
    ];
    if let Some(process) = used.process_since(&cpu) {
        samples.push(Sample::new("CPU, switch", "s/Gbit", Better::Less, process / gbit));
    }
    Ok(samples)
}

/// Connected pairs of sender and receiver.
fn open(
    on: &Contender,
    (way, family): (Way, Family),
    streams: usize,
    cc: Option<&str>,
) -> Result<Vec<(TcpStream, TcpStream)>, VersusError> {
    let path = way.path(on, family);
    let bind = || TcpListener::bind((family.unspecified(), path.port));
    let listener = path.server.run(bind)?.map_err(failed("listen for TCP streams"))?;
    let port = listener.local_addr().map_err(failed("listen for TCP streams"))?.port();
    let target = path.target(port);
    let pair = || {
        let client = path.client.run(|| TcpStream::connect_timeout(&target, STALL));
        let accept = |client: TcpStream| {
            let (server, _) = listener.accept()?;
            let back = matches!(way, Way::Back);
            let (sender, receiver) = if back { (server, client) } else { (client, server) };
            if let Some(cc) = cc {
                setsockopt(&sender.as_fd(), sockopt::TcpCongestion, &OsString::from(cc))?;
            }
            sender.set_write_timeout(Some(STALL))?;
            receiver.set_read_timeout(Some(STALL))?;
            Ok((sender, receiver))
        };
        client?.and_then(accept).map_err(failed(format!("open a TCP stream to {target}")))
    };
    (0..streams).map(|_| pair()).collect()
}

fn send(mut stream: &TcpStream, stop: &AtomicBool) -> io::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    until(stop, || stream.write(&chunk).map(|_| ()))
}

fn receive(mut stream: &TcpStream, received: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    until(stop, || {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received.fetch_add(u64::try_from(length).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(())
    })
}

/// Repeats. What fails because the end has come has not failed.
fn until(stop: &AtomicBool, mut step: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        match step() {
            // A signal came: with a time limit the kernel does not go on by itself.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if !stop.load(Ordering::Relaxed) => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
