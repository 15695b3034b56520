//! The workers, and which of them receives from which port.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam::channel::bounded;

use crate::balance::{Load, PortWork};
use crate::engine::{EngineError, Placement};
use crate::io::{Offloads, PortHalves};
use crate::packet::types::PortId;
use crate::plane::Plane;
use crate::stats::PortCounters;
use crate::sync::Mutex;
use crate::trace::WorkerState;
use crate::worker::{Command, WorkerHandle};

/// The worker whose ports are received where there is nothing to share out.
pub(crate) const HOME: usize = 0;

/// A port, as the crew knows it.
#[derive(Debug)]
struct Owned {
    worker: usize,
    counters: PortCounters,
}

/// All workers of an engine. Dropping it stops them.
#[derive(Debug)]
pub(crate) struct Crew {
    workers: Vec<WorkerHandle>,
    loads: Vec<Arc<Load>>,
    placement: Placement,
    /// Locked while a port is taken, moves or goes.
    owners: Mutex<BTreeMap<PortId, Owned>>,
}

impl Crew {
    pub(crate) fn new(
        workers: Vec<WorkerHandle>,
        loads: Vec<Arc<Load>>,
        placement: Placement,
    ) -> Self {
        Self { workers, loads, placement, owners: Mutex::default() }
    }

    pub(crate) fn workers(&self) -> &[WorkerHandle] {
        &self.workers
    }

    /// Gives a device a number and its halves to the workers.
    pub(crate) fn attach(
        &self,
        halves: PortHalves,
        offloads: Offloads,
        plane: &Plane,
    ) -> Result<PortId, EngineError> {
        let mut owners = self.owners.lock();
        let port = plane.free_port().ok_or(EngineError::PortsExhausted)?;
        let count = |worker: &usize| owners.values().filter(|port| port.worker == *worker).count();
        let owner = match self.placement {
            Placement::Load => HOME,
            Placement::Spread => (0..self.workers.len()).min_by_key(count).unwrap_or(HOME),
        };
        let counters = plane.register(port);
        let mut rx = Some(halves.rx);
        for (number, (worker, tx)) in self.workers.iter().zip(halves.tx).enumerate() {
            let rx = if number == owner { rx.take() } else { None };
            let counters = counters.clone();
            worker.tell(|done| Command::Attach { port, rx, tx, offloads, counters, done })?;
        }
        owners.insert(port, Owned { worker: owner, counters });
        Ok(port)
    }

    /// Returns when no worker uses the port any more.
    pub(crate) fn detach(&self, port: PortId) -> Result<(), EngineError> {
        let mut owners = self.owners.lock();
        owners.remove(&port).ok_or(EngineError::UnknownPort)?;
        for worker in &self.workers {
            worker.tell(|done| Command::Detach { port, done })?;
        }
        Ok(())
    }

    /// Returns when every batch that is under way now is through.
    pub(crate) fn sync(&self) {
        for worker in &self.workers {
            // A worker that has stopped processes no batch either.
            let _ = worker.tell(|done| Command::Sync { done });
        }
    }

    /// Lets another worker receive from a port. Its frames stay in order: the one that had it has
    /// sent all it had received before the other receives the next. False: it would not do now, or
    /// there is no such port.
    pub(crate) fn hand_over(&self, port: PortId, to: usize) -> Result<bool, EngineError> {
        let mut owners = self.owners.lock();
        let (Some(owned), Some(taker)) = (owners.get_mut(&port), self.workers.get(to)) else {
            return Ok(false);
        };
        let Some(giver) = self.workers.get(owned.worker).filter(|_| owned.worker != to) else {
            return Ok(false);
        };
        let (give, given) = bounded(1);
        giver.tell(|done| Command::Release { port, give, done })?;
        let Ok(rx) = given.try_recv() else { return Ok(false) };
        taker.tell(|done| Command::Adopt { port, rx, done })?;
        owned.worker = to;
        Ok(true)
    }

    /// What the worker that receives from a port has of its own.
    pub(crate) fn state_of(&self, port: PortId) -> Result<WorkerState, EngineError> {
        let owners = self.owners.lock();
        let owned = owners.get(&port).ok_or(EngineError::UnknownPort)?;
        let worker = self.workers.get(owned.worker).ok_or(EngineError::Stopped)?;
        let (give, given) = bounded(1);
        worker.tell(|done| Command::Show { give, done })?;
        given.try_recv().map_err(|_| EngineError::Stopped)
    }

    /// How busy each worker is, in thousandths.
    pub(crate) fn loads(&self) -> Vec<u32> {
        self.loads.iter().map(|load| load.permille()).collect()
    }

    /// What each port has received since it was attached.
    pub(crate) fn work(&self) -> Vec<PortWork> {
        let owners = self.owners.lock();
        let work = |(port, owned): (&PortId, &Owned)| {
            let view = owned.counters.view();
            PortWork {
                port: *port,
                worker: owned.worker,
                frames: view.rx_frames,
                bytes: view.rx_bytes,
            }
        };
        owners.iter().map(work).collect()
    }
}
