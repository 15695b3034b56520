//! A worker: a plain thread that waits for frames, receives, processes and sends.
//!
//! Each port's receiving half belongs to one worker, so the frames of a flow, which all come in by
//! one port, stay in order. Every worker has a sending half of every port. Workers share the tables
//! and nothing else. Nothing here allocates, logs or awaits while frames flow; attaching and
//! detaching do.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use crate::balance::Meter;
use crate::clock::Timestamp;
use crate::core::{BATCH, Core, Transmit};
use crate::engine::EngineError;
use crate::frame::Frame;
use crate::io::give_way::GiveWay;
use crate::io::poll::{Event, MAX_EVENTS, Poller, Waker};
use crate::io::ring::Ring;
use crate::io::spin::Spin;
use crate::io::{IoBackend, IoChoice, Offloads, PortRx, PortTx, TxReport};
use crate::packet::types::PortId;
use crate::pool::Pool;
use crate::stats::PortCounters;
use crate::sync::Mutex;
use crate::trace::WorkerState;

/// Ports whose device is gone.
pub(crate) type GonePorts = Arc<Mutex<Vec<PortId>>>;

/// Frames taken from one port before the next one has its turn.
const PORT_BUDGET: usize = 32;
/// Bytes processed at a time, about half of a second-level cache: large frames are sent while
/// they are still in it.
const BATCH_BYTES: usize = 512 * 1024;
/// The longest sleep: housekeeping is due then.
const IDLE: Duration = Duration::from_millis(100);
/// The longest sleep while frames wait for a neighbor's answer or a first fragment, which another worker
/// may receive.
const WAITING: Duration = Duration::from_millis(1);

/// What the engine tells a worker. `done` is answered when it is.
#[derive(Debug)]
pub(crate) enum Command {
    Attach {
        port: PortId,
        rx: Option<Box<dyn PortRx>>,
        tx: Box<dyn PortTx>,
        offloads: Offloads,
        counters: PortCounters,
        done: Sender<()>,
    },
    Detach {
        port: PortId,
        done: Sender<()>,
    },
    /// Gives the receiving half of a port back, everything received sent. Not answered in `give`
    /// when it cannot be now.
    Release {
        port: PortId,
        give: Sender<Box<dyn PortRx>>,
        done: Sender<()>,
    },
    /// The receiving half that another worker gave back.
    Adopt {
        port: PortId,
        rx: Box<dyn PortRx>,
        done: Sender<()>,
    },
    /// Answered with what the worker has of its own.
    Show {
        give: Sender<WorkerState>,
        done: Sender<()>,
    },
    Stop,
    /// Nothing: the answer says that the batch that was under way is through.
    Sync {
        done: Sender<()>,
    },
}

/// The engine's end of a worker. Dropping it stops the worker and waits for it.
#[derive(Debug)]
pub(crate) struct WorkerHandle {
    commands: Sender<Command>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    backend: IoBackend,
}

impl WorkerHandle {
    pub(crate) fn spawn(
        number: usize,
        core: Core,
        gone: GonePorts,
        meter: Meter,
        choice: IoChoice,
    ) -> io::Result<Self> {
        let poller = Poller::new()?;
        let waker = poller.waker();
        let (commands, inbox) = unbounded();
        let (tell, told) = bounded(1);
        let start = move || {
            // A ring belongs to the thread that makes it.
            let (ring, backend) = match choice {
                IoChoice::Epoll => (Ok(None), IoBackend::Epoll { refused: None }),
                IoChoice::Auto | IoChoice::Uring => match Ring::new() {
                    Ok(ring) => (Ok(Some(ring)), IoBackend::Uring),
                    Err(error) if choice == IoChoice::Uring => {
                        let hint =
                            "allow it (sysctl kernel.io_uring_disabled, seccomp) or use epoll";
                        let text = format!("io_uring is not to be had: {error}; {hint}");
                        let error = io::Error::new(error.kind(), text);
                        (Err(error), IoBackend::Epoll { refused: None })
                    }
                    Err(error) => (Ok(None), IoBackend::Epoll { refused: Some(error.to_string()) }),
                },
            };
            let ring = match ring {
                Ok(ring) => ring,
                Err(error) => {
                    let _ = tell.send(Err(error));
                    return;
                }
            };
            let _ = tell.send(Ok(backend));
            let worker = Worker {
                core,
                poller,
                inbox,
                devices: Devices { ring, ..Devices::default() },
                polled: Vec::new(),
                spin: Spin::default(),
                give_way: GiveWay::new(),
                came: 0,
                batch: Vec::with_capacity(BATCH + PORT_BUDGET),
                gone,
                meter,
            };
            worker.run();
        };
        let thread = thread::Builder::new().name(format!("worker-{number}")).spawn(start)?;
        let backend = told.recv().map_err(|_| io::ErrorKind::BrokenPipe)??;
        Ok(Self { commands, waker, thread: Some(thread), backend })
    }

    /// How it reads and writes.
    pub(crate) const fn backend(&self) -> &IoBackend {
        &self.backend
    }

    /// Sends a command and waits until it was carried out.
    pub(crate) fn tell(
        &self,
        command: impl FnOnce(Sender<()>) -> Command,
    ) -> Result<(), EngineError> {
        let (done, answer) = bounded(1);
        self.commands.send(command(done)).map_err(|_| EngineError::Stopped)?;
        self.waker.wake();
        answer.recv().map_err(|_| EngineError::Stopped)
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The device halves of one worker, by port.
#[derive(Debug, Default)]
struct Devices {
    rx: Vec<Option<Box<dyn PortRx>>>,
    tx: Vec<Option<Box<dyn PortTx>>>,
    /// `None`: every device is asked by its own calls.
    ring: Option<Ring>,
    /// When the batch under way began.
    now: Timestamp,
}

impl Transmit for Devices {
    fn tx(&mut self, port: PortId, frames: &mut Vec<Frame>, pool: &mut Pool) -> TxReport {
        if let Some(Some(device)) = self.tx.get_mut(port.index())
            && !device.loses_all(self.now)
        {
            if let (Some(ring), Some(fd)) = (&mut self.ring, device.stream()) {
                ring.write(port, fd, frames, pool);
                return TxReport::default();
            }
            return device.tx(frames, pool);
        }
        let down = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        pool.put_all(frames);
        TxReport { down, ..TxReport::default() }
    }

    fn tx_copy(&mut self, port: PortId, frame: &mut Frame, pool: &mut Pool) -> TxReport {
        // What is queued goes first.
        if let Some(ring) = &mut self.ring {
            ring.flush(pool);
        }
        if let Some(Some(device)) = self.tx.get_mut(port.index())
            && !device.loses_all(self.now)
        {
            return device.tx_copy(frame, pool);
        }
        TxReport { down: 1, ..TxReport::default() }
    }

    fn finish(&mut self, pool: &mut Pool, report: &mut dyn FnMut(PortId, TxReport)) {
        if let Some(ring) = &mut self.ring {
            ring.flush(pool);
            ring.reports(report);
        }
    }
}

impl Devices {
    fn put(&mut self, port: PortId, rx: Option<Box<dyn PortRx>>, tx: Option<Box<dyn PortTx>>) {
        let index = port.index();
        if self.rx.len() <= index {
            self.rx.resize_with(index + 1, || None);
            self.tx.resize_with(index + 1, || None);
        }
        if let (Some(rx_slot), Some(tx_slot)) = (self.rx.get_mut(index), self.tx.get_mut(index)) {
            *rx_slot = rx;
            *tx_slot = tx;
        }
    }
}

#[derive(Debug)]
struct Worker {
    core: Core,
    poller: Poller,
    inbox: Receiver<Command>,
    devices: Devices,
    /// Ports without a descriptor: asked in every round.
    polled: Vec<PortId>,
    /// Without a ring, which looks for work by itself.
    spin: Spin,
    give_way: GiveWay,
    /// Bytes of what devices without a ring have given in this round.
    came: usize,
    batch: Vec<Frame>,
    gone: GonePorts,
    meter: Meter,
}

impl Worker {
    fn run(mut self) {
        let mut events: Vec<Event> = Vec::with_capacity(MAX_EVENTS);
        loop {
            let timeout = match (self.core.is_waiting(), self.polled.is_empty()) {
                (_, false) => Duration::ZERO,
                (true, true) => WAITING,
                (false, true) => IDLE,
            };
            let asked = Instant::now();
            let woken = self.wait(timeout, &mut events, asked);
            let waited = asked.elapsed();
            if woken && !self.obey() {
                return;
            }
            let now = Timestamp::now();
            self.devices.now = now;
            self.receive_from_ring(now);
            for event in &events {
                if let Ok(index) = u16::try_from(event.token) {
                    self.receive(PortId(index), now);
                }
            }
            for at in 0..self.polled.len() {
                if let Some(port) = self.polled.get(at) {
                    self.receive(*port, now);
                }
            }
            self.process(now);
            self.core.housekeep(now, &mut self.devices);
            self.spin.learn(waited, std::mem::take(&mut self.came));
            let looked =
                self.devices.ring.as_ref().map_or(self.spin.looked(), Ring::looked_for_work);
            self.meter.look(now, looked);
        }
    }

    /// Sleeps until there is something to do. True: the engine has said something.
    fn wait(&mut self, timeout: Duration, events: &mut Vec<Event>, from: Instant) -> bool {
        events.clear();
        let Self { devices, poller, spin, .. } = self;
        let Devices { rx, ring, .. } = devices;
        let timeout = match ring {
            None if timeout.is_zero() => timeout,
            None => {
                let mut woken = false;
                spin.look(from, || {
                    woken = poller.wait(Some(Duration::ZERO), events).unwrap_or(true);
                    woken || !events.is_empty()
                });
                if woken || !events.is_empty() {
                    return woken;
                }
                timeout
            }
            Some(ring) => {
                let fd_of = |port: PortId| rx.get(port.index())?.as_ref()?.stream();
                if !ring.wait(timeout, self.core.pool(), self.poller.fd(), fd_of) {
                    return false;
                }
                Duration::ZERO
            }
        };
        self.poller.wait(Some(timeout), events).unwrap_or(true)
    }

    /// Takes the frames that the ring has read.
    fn receive_from_ring(&mut self, now: Timestamp) {
        while let Some(ring) = &mut self.devices.ring {
            ring.take(&mut self.batch, BATCH, BATCH_BYTES);
            if self.batch.is_empty() {
                break;
            }
            self.process(now);
        }
        while let Some(port) = self.devices.ring.as_mut().and_then(Ring::take_ended) {
            let device = self.devices.rx.get(port.index()).and_then(Option::as_ref);
            let reading = device.filter(|rx| !rx.is_gone()).map(|rx| rx.reading());
            match (&mut self.devices.ring, reading) {
                (Some(ring), Some(reading)) => ring.add(port, reading),
                _ => self.lose(port),
            }
        }
    }

    /// Takes frames from one port; processes when the batch is full.
    fn receive(&mut self, port: PortId, now: Timestamp) {
        let Some(Some(device)) = self.devices.rx.get_mut(port.index()) else { return };
        let before = self.batch.len();
        let received = device.rx(PORT_BUDGET, self.core.pool(), &mut self.batch);
        for frame in self.batch.iter_mut().skip(before) {
            frame.ingress = port;
            self.came += frame.len();
        }
        if received.is_err() {
            self.lose(port);
        }
        let bytes: usize = self.batch.iter().map(Frame::len).sum();
        if self.batch.len() >= BATCH || bytes >= BATCH_BYTES {
            self.process(now);
        }
    }

    fn process(&mut self, now: Timestamp) {
        if !self.batch.is_empty() {
            let give_way = self.give_way.after(&self.batch);
            self.core.process(&mut self.batch, now, &mut self.devices);
            if give_way {
                thread::yield_now();
            }
        }
    }

    /// A device that is gone is never asked again; it would say so for ever.
    fn lose(&mut self, port: PortId) {
        self.forget_rx(port);
        self.gone.lock().push(port);
    }

    fn forget_rx(&mut self, port: PortId) {
        if let Some(ring) = &mut self.devices.ring {
            ring.remove(port, self.core.pool());
        }
        let rx = self.devices.rx.get_mut(port.index()).and_then(Option::take);
        if let Some(rx) = rx {
            self.unwatch(port, rx.as_ref());
        }
    }

    /// Carries out what the engine said; false: stop.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Attach { port, rx, tx, offloads, counters, done } => {
                    self.watch(port, rx.as_deref());
                    self.devices.put(port, rx, Some(tx));
                    self.core.add_port(port, offloads, counters);
                    let _ = done.send(());
                }
                Command::Detach { port, done } => {
                    self.forget_rx(port);
                    self.devices.put(port, None, None);
                    self.core.remove_port(port);
                    let _ = done.send(());
                }
                Command::Release { port, give, done } => {
                    if let Some(rx) = self.release(port) {
                        let _ = give.send(rx);
                    }
                    let _ = done.send(());
                }
                Command::Adopt { port, rx, done } => {
                    self.watch(port, Some(rx.as_ref()));
                    if let Some(slot) = self.devices.rx.get_mut(port.index()) {
                        *slot = Some(rx);
                    }
                    let _ = done.send(());
                }
                Command::Show { give, done } => {
                    let _ = give.send(self.core.state());
                    let _ = done.send(());
                }
                Command::Stop => return false,
                Command::Sync { done } => {
                    let _ = done.send(());
                }
            }
        }
        true
    }

    /// Receives from a port no more, and sends what was received. `None`: some of it waits for a
    /// neighbor and could be overtaken by what comes next, or the device is not ours or gone.
    fn release(&mut self, port: PortId) -> Option<Box<dyn PortRx>> {
        if self.core.holds_from(port) {
            return None;
        }
        if let Some(ring) = &mut self.devices.ring {
            ring.stop(port, self.core.pool());
        }
        self.receive_from_ring(Timestamp::now());
        let rx = self.devices.rx.get_mut(port.index())?.take()?;
        self.unwatch(port, rx.as_ref());
        if self.core.holds_from(port) {
            self.watch(port, Some(rx.as_ref()));
            *self.devices.rx.get_mut(port.index())? = Some(rx);
            return None;
        }
        Some(rx)
    }

    fn unwatch(&mut self, port: PortId, rx: &dyn PortRx) {
        if let Some(fd) = rx.fd() {
            // It may have removed itself with its descriptor, or be read by the ring.
            let _ = self.poller.remove(fd);
        }
        self.polled.retain(|polled| *polled != port);
    }

    fn watch(&mut self, port: PortId, rx: Option<&dyn PortRx>) {
        let Some(rx) = rx else { return };
        if let Some(ring) = &mut self.devices.ring
            && rx.stream().is_some()
        {
            return ring.add(port, rx.reading());
        }
        let watched = rx.fd().is_some_and(|fd| self.poller.add(fd, u64::from(port.0)).is_ok());
        if !watched {
            self.polled.push(port);
        }
    }
}
