//! Nothing but copying: what one TAP device gives goes into the other, without a look at a single byte. No
//! switch that takes frames from one TAP device and gives them to another can do with less, so it shows what of a
//! figure is the devices' and what is the switch's.

use std::fs::File;
use std::io::{self as stdio, Read, Write};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use control::lab::Lab;
use control::netns::Netns;
use dataplane::io::poll::Poller;
use dataplane::io::ring::Ring;
use dataplane::io::tap::{Tap, TapOptions};
use dataplane::io::{Port, PortHalves, PortRx, PortTx, Reading};
use dataplane::packet::types::PortId;
use dataplane::pool::Pool;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{Built, Contender, Kind};
use crate::error::{VersusError, io};
use crate::wiring::{Machines, carry_out};

const PORTS: [PortId; 2] = [PortId(0), PortId(1)];
const BUFFERS: usize = 512;
/// As many frames, and bytes, at a time as a worker of the daemon takes.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 2 << 20;
const LOOK: Duration = Duration::from_millis(100);
/// The longest frame of a TAP device, with its virtio-net header, and room to spare.
const LONGEST: usize = 70_000;

/// How it is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copying {
    /// Both directions by one thread and one ring, as the daemon reads and writes.
    OneRing,
    /// A thread and a ring for each direction.
    TwoRings,
    /// A thread for each direction, which reads a frame and writes it, and waits in these calls.
    Blocking,
}

/// One direction.
#[derive(Debug)]
struct Way {
    from: PortId,
    rx: Box<dyn PortRx>,
    tx: Box<dyn PortTx>,
}

/// What a thread copies until the devices are gone.
type Job = Box<dyn FnOnce() + Send>;

pub(super) fn build(
    lab: &Lab,
    label: &str,
    kind: Kind,
    copying: Copying,
) -> Result<Built, VersusError> {
    let machines = Machines::new(lab, label)?;
    let ways = ways(open(&machines.a)?, open(&machines.b)?);
    carry_out(machines.address_containers())?;
    let threads: Vec<Vec<Way>> = match copying {
        Copying::OneRing => vec![ways.into_iter().collect()],
        Copying::TwoRings | Copying::Blocking => ways.into_iter().map(|way| vec![way]).collect(),
    };
    for ways in threads {
        if let Err(error) = start(ways, copying)? {
            return Ok(Built::LeftOut(error));
        }
    }
    Ok(Built::Ready(Contender { kind, machines, process: None, counting: None }))
}

fn open(machine: &Netns) -> Result<PortHalves, VersusError> {
    let options = TapOptions { name: "eth0".to_owned(), persistent: false };
    let tap = machine.run(|| Tap::create(&options))?;
    let tap = tap.map_err(|error| VersusError::Program(error.to_string()))?;
    Box::new(tap).split(1).map_err(io("open a TAP device"))
}

fn ways(a: PortHalves, b: PortHalves) -> Vec<Way> {
    let [from_a, from_b] = PORTS;
    let there = b.tx.into_iter().map(|tx| (from_a, tx)).zip([a.rx]);
    let back = a.tx.into_iter().map(|tx| (from_b, tx)).zip([b.rx]);
    there.chain(back).map(|((from, tx), rx)| Way { from, rx, tx }).collect()
}

/// Starts a thread. It ends with the devices, which end with their namespaces. The inner error: it cannot
/// copy so here.
fn start(ways: Vec<Way>, copying: Copying) -> Result<Result<(), String>, VersusError> {
    let (tell, told) = mpsc::channel();
    thread::Builder::new()
        .name("bare".to_owned())
        .spawn(move || {
            let job = match copying {
                Copying::OneRing | Copying::TwoRings => by_ring(ways),
                Copying::Blocking => by_calls(&ways),
            };
            match job {
                Ok(job) => {
                    let _ = tell.send(Ok(()));
                    job();
                }
                Err(error) => drop(tell.send(Err(error.to_string()))),
            }
        })
        .map_err(io("start a thread"))?;
    Ok(told.recv().unwrap_or_else(|_| Err("its thread ended".to_owned())))
}

fn by_ring(ways: Vec<Way>) -> stdio::Result<Job> {
    let (mut ring, poller) = (Ring::new()?, Poller::new()?);
    Ok(Box::new(move || {
        let mut pool = Pool::new(BUFFERS);
        let (mut batch, mut run) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        for way in &ways {
            ring.add(way.from, Reading::Plain);
        }
        let way_from = |port: PortId| ways.iter().find(|way| way.from == port);
        while ring.take_ended().is_none() {
            ring.wait(LOOK, &mut pool, poller.fd(), |port| way_from(port)?.rx.stream());
            ring.take(&mut batch, BATCH, BATCH_BYTES);
            for frame in batch.drain(..) {
                let to = PORTS[1 - frame.ingress.index()];
                let fd = way_from(frame.ingress).and_then(|way| way.tx.stream());
                run.push(frame);
                if let Some(fd) = fd {
                    ring.write(to, fd, &mut run, &mut pool);
                }
            }
            ring.flush(&mut pool);
            ring.reports(|_, _| {});
        }
    }))
}

fn by_calls(ways: &[Way]) -> stdio::Result<Job> {
    let blocking = |fd: Option<std::os::fd::BorrowedFd<'_>>| {
        let fd = fd.ok_or_else(|| stdio::Error::other("the device has no descriptor"))?;
        let own = fd.as_fd().try_clone_to_owned()?;
        // Of the open file, which the device's halves share: nobody else reads or writes it here.
        let flags = OFlag::from_bits_retain(fcntl(&own, FcntlArg::F_GETFL)?);
        fcntl(&own, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
        Ok::<_, stdio::Error>(File::from(own))
    };
    let way = ways.first().ok_or_else(|| stdio::Error::other("nothing to copy"))?;
    let (mut from, mut to) = (blocking(way.rx.stream())?, blocking(way.tx.stream())?);
    Ok(Box::new(move || {
        let mut frame = vec![0; LONGEST];
        // A device that is down refuses frames; one that is gone has nothing to read.
        while let Ok(len @ 1..) = from.read(&mut frame) {
            let _ = to.write(&frame[..len]);
        }
    }))
}
