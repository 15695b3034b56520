//! Nothing but copying: what one TAP device gives goes into the other, by the daemon's own way of reading
//! and writing, without a look at a single byte. No switch that takes frames from one TAP device and gives
//! them to another can do with less, so it shows what of a figure is the devices' and what is the switch's.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use control::lab::Lab;
use control::netns::Netns;
use dataplane::io::poll::Poller;
use dataplane::io::ring::Ring;
use dataplane::io::tap::{Tap, TapOptions};
use dataplane::io::{Port, PortHalves, Reading};
use dataplane::packet::types::PortId;
use dataplane::pool::Pool;

use super::{Built, Contender, Kind};
use crate::error::{VersusError, io};
use crate::wiring::{Machines, carry_out};

const PORTS: [PortId; 2] = [PortId(0), PortId(1)];
const BUFFERS: usize = 512;
/// As many frames, and bytes, at a time as a worker of the daemon takes.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 2 << 20;
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn build(lab: &Lab, label: &str) -> Result<Built, VersusError> {
    let machines = Machines::new(lab, label)?;
    let halves = [open(&machines.a)?, open(&machines.b)?];
    carry_out(machines.address_containers())?;
    let (tell, told) = mpsc::channel();
    // Ends with the devices, which end with their namespaces.
    thread::Builder::new()
        .name("bare".to_owned())
        .spawn(move || match (Ring::new(), Poller::new()) {
            (Ok(ring), Ok(poller)) => {
                let _ = tell.send(Ok(()));
                copy(ring, &poller, &halves);
            }
            (Err(error), _) | (_, Err(error)) => {
                let _ = tell.send(Err(error));
            }
        })
        .map_err(io("start a thread"))?;
    Ok(match told.recv() {
        Ok(Ok(())) => {
            Built::Ready(Contender { kind: Kind::Bare, machines, process: None, counting: None })
        }
        Ok(Err(error)) => Built::LeftOut(format!("no io_uring here: {error}")),
        Err(_) => Built::LeftOut("its thread ended".to_owned()),
    })
}

fn open(machine: &Netns) -> Result<PortHalves, VersusError> {
    let options = TapOptions { name: "eth0".to_owned(), persistent: false };
    let tap = machine.run(|| Tap::create(&options))?;
    let tap = tap.map_err(|error| VersusError::Program(error.to_string()))?;
    Box::new(tap).split(1).map_err(io("open a TAP device"))
}

fn copy(mut ring: Ring, poller: &Poller, halves: &[PortHalves; 2]) {
    let mut pool = Pool::new(BUFFERS);
    let (mut batch, mut run) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
    for port in PORTS {
        ring.add(port, Reading::Plain);
    }
    while ring.take_ended().is_none() {
        ring.wait(LOOK, &mut pool, poller.fd(), |port| halves.get(port.index())?.rx.stream());
        ring.take(&mut batch, BATCH, BATCH_BYTES);
        for frame in batch.drain(..) {
            let to = PORTS[1 - frame.ingress.index()];
            let fd = halves.get(to.index()).and_then(|port| port.tx.first()?.stream());
            run.push(frame);
            if let Some(fd) = fd {
                ring.write(to, fd, &mut run, &mut pool);
            }
        }
        ring.flush(&mut pool);
        ring.reports(|_, _| {});
    }
}
