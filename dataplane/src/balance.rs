//! Which worker receives from which port, by load.
//!
//! One worker that handles both directions of a conversation wakes once where two wake twice, and
//! leaves a processor to the programs that talk; so ports are received by one worker until it has
//! all it can do. Then ports move to idle workers, one at a time, and back when it is quiet again.
//! Figures: docs/performance.md, "Devices".
//!
//! Workers measure themselves ([`Meter`]); the balancer's thread sleeps until one of them is busy.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::clock::{Timestamp, thread_time};
use crate::crew::{Crew, HOME};
use crate::packet::types::PortId;

/// How long a worker's load is measured at a time, and the balancer's step.
const WINDOW: Duration = Duration::from_millis(20);
/// Load from which a worker should give some of it away, in thousandths: what one bulk TCP stream
/// makes stays below.
const HOT: u32 = 750;
/// The same between small frames: there a second wake-up a conversation costs as much as the help
/// of a second worker brings, until the first is at its end. New connections on two cores: 0.61 of
/// the kernel's bridge by one worker, 0.49 by two.
const HOT_SMALL: u32 = 900;
/// Mean length in bytes below which frames are small: a few without segmentation.
const SMALL: u64 = 3000;
/// A worker with more load than this is given no more.
const COOL: u32 = 500;
/// Load of all workers together below which one is enough.
const QUIET: u32 = 500;
/// Windows that a worker must be hot for: shorter bursts are over before a port has moved.
const HOT_FOR: u32 = 3;
/// Windows of quiet before ports move back; an idle worker measures itself every 5 only.
const QUIET_FOR: u32 = 6;
/// Ports with a smaller part of a worker's load than one in so many stay. The acknowledgments of a
/// stream of 185,000-byte frames are one in thirty, and worth a second worker.
const WORTH: u64 = 100;
/// What a frame costs beside its bytes, in bytes: 3 µs in two system calls and the receiver's
/// stack, at 5 bytes a nanosecond for two copies.
const FRAME_COST: u64 = 15_000;

/// How busy a worker is; written by it, read by the balancer.
#[derive(Debug, Default)]
pub(crate) struct Load(AtomicU32);

impl Load {
    /// Thousandths of the last window.
    pub(crate) fn permille(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the balancer is told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Note {
    /// A worker is hot.
    Hot,
    /// The engine stops.
    Stop,
}

/// A worker's measure of itself.
#[derive(Debug)]
pub(crate) struct Meter {
    load: Arc<Load>,
    notes: Sender<Note>,
    from: Timestamp,
    /// Processor time of the thread, less what it spent looking for work, at `from`.
    worked: Duration,
}

impl Meter {
    pub(crate) fn new(load: Arc<Load>, notes: Sender<Note>) -> Self {
        Self { load, notes, from: Timestamp::ZERO, worked: Duration::ZERO }
    }

    /// Called once a batch by the worker's thread; reads the thread's clock, a system call, once a
    /// window. `idled` is the time it spent looking for work so far.
    pub(crate) fn look(&mut self, now: Timestamp, idled: Duration) {
        let passed = now.since(self.from);
        if passed < WINDOW {
            return;
        }
        let worked = thread_time().saturating_sub(idled);
        let share = permille(worked.saturating_sub(self.worked), passed);
        self.from = now;
        self.worked = worked;
        self.load.0.store(share, Ordering::Relaxed);
        if share >= HOT {
            // Full: it knows.
            let _ = self.notes.try_send(Note::Hot);
        }
    }
}

fn permille(part: Duration, whole: Duration) -> u32 {
    let share = part.as_nanos().saturating_mul(1000) / whole.as_nanos().max(1);
    u32::try_from(share).unwrap_or(1000).min(1000)
}

/// What a port has received, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortWork {
    pub(crate) port: PortId,
    pub(crate) worker: usize,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

/// A port and the worker that shall receive from it.
type Move = (PortId, usize);

/// The balancer's thread. Dropping it stops the thread.
#[derive(Debug)]
pub(crate) struct Balancer {
    notes: Sender<Note>,
    thread: Option<JoinHandle<()>>,
}

impl Balancer {
    /// A channel for [`Balancer::start`] and the workers' meters.
    pub(crate) fn channel() -> (Sender<Note>, Receiver<Note>) {
        bounded(1)
    }

    pub(crate) fn start(
        crew: Arc<Crew>,
        notes: Sender<Note>,
        inbox: Receiver<Note>,
    ) -> std::io::Result<Self> {
        let work = move || run(&crew, &inbox);
        let thread = thread::Builder::new().name("balancer".to_owned()).spawn(work)?;
        Ok(Self { notes, thread: Some(thread) })
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // It waits for room, which the balancer makes.
        let _ = self.notes.send(Note::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(crew: &Crew, inbox: &Receiver<Note>) {
    loop {
        match inbox.recv() {
            Ok(Note::Hot) => {}
            Ok(Note::Stop) | Err(_) => return,
        }
        let mut watch = Watch::default();
        watch.step(&crew.loads(), &crew.work());
        while !watch.is_over {
            thread::sleep(WINDOW);
            match inbox.recv_timeout(Duration::ZERO) {
                Ok(Note::Hot) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Note::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            for (port, to) in watch.step(&crew.loads(), &crew.work()) {
                match crew.hand_over(port, to) {
                    // What would not move may by now.
                    Ok(true) => watch.refused.clear(),
                    Ok(false) => drop(watch.refused.insert(port)),
                    Err(_) => return,
                }
            }
        }
    }
}

/// What the balancer remembers from the first hot worker to the last port that is home again.
#[derive(Debug, Default)]
struct Watch {
    seen: HashMap<PortId, (u64, u64)>,
    hot: u32,
    quiet: u32,
    /// What would not move: others' turn, until one has moved or none is left.
    refused: HashSet<PortId>,
    is_over: bool,
}

impl Watch {
    /// One window later: what should move now.
    fn step(&mut self, loads: &[u32], ports: &[PortWork]) -> Vec<Move> {
        let recent: Vec<PortWork> = ports.iter().map(|port| self.since(port)).collect();
        self.seen = ports.iter().map(|port| (port.port, (port.frames, port.bytes))).collect();
        let mut each = loads.iter().copied().enumerate();
        let is_hot = each.any(|(worker, load)| load >= limit(worker, &recent));
        let is_quiet = loads.iter().sum::<u32>() <= QUIET;
        self.hot = if is_hot { self.hot + 1 } else { 0 };
        self.quiet = if is_quiet { self.quiet + 1 } else { 0 };
        if self.quiet >= QUIET_FOR {
            self.quiet = 0;
            let away: Vec<Move> =
                ports.iter().filter(|p| p.worker != HOME).map(|p| (p.port, HOME)).collect();
            self.is_over = away.is_empty();
            return away;
        }
        if self.hot < HOT_FOR {
            return Vec::new();
        }
        // The next one has to be as sure.
        self.hot = 0;
        let next = share_out(loads, &recent, &self.refused);
        if next.is_none() {
            self.refused.clear();
        }
        next.into_iter().collect()
    }

    fn since(&self, port: &PortWork) -> PortWork {
        let (frames, bytes) = self.seen.get(&port.port).copied().unwrap_or_default();
        PortWork {
            frames: port.frames.saturating_sub(frames),
            bytes: port.bytes.saturating_sub(bytes),
            ..*port
        }
    }
}

/// Takes from a busy worker, for the idlest, the port with the largest part of at most half of its
/// load; from the busiest that has one.
fn share_out(loads: &[u32], ports: &[PortWork], refused: &HashSet<PortId>) -> Option<Move> {
    let (to, least) = loads.iter().copied().enumerate().min_by_key(|(_, load)| *load)?;
    if least > COOL {
        return None;
    }
    let mut busy: Vec<(usize, u32)> = loads.iter().copied().enumerate().collect();
    busy.retain(|(worker, load)| *load >= limit(*worker, ports));
    busy.sort_by_key(|(_, load)| Reverse(*load));
    busy.iter().find_map(|(from, _)| largest_half(*from, ports, refused)).map(|port| (port, to))
}

fn largest_half(worker: usize, ports: &[PortWork], refused: &HashSet<PortId>) -> Option<PortId> {
    let own = || ports.iter().filter(|port| port.worker == worker);
    let total: u64 = own().map(cost).sum();
    own()
        .filter(|port| cost(port) * 2 <= total && cost(port) * WORTH >= total && cost(port) > 0)
        .filter(|port| !refused.contains(&port.port))
        .max_by_key(|port| cost(port))
        .map(|port| port.port)
}

/// The load from which a worker should give some of what it received away.
fn limit(worker: usize, ports: &[PortWork]) -> u32 {
    let own = || ports.iter().filter(|port| port.worker == worker);
    let (frames, bytes): (u64, u64) = (own().map(|p| p.frames).sum(), own().map(|p| p.bytes).sum());
    if bytes < frames.saturating_mul(SMALL) { HOT_SMALL } else { HOT }
}

fn cost(port: &PortWork) -> u64 {
    port.frames.saturating_mul(FRAME_COST).saturating_add(port.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16, worker: usize, frames: u64, bytes: u64) -> PortWork {
        PortWork { port: PortId(number), worker, frames, bytes }
    }

    #[test]
    fn a_meter_tells_the_share_of_a_window_and_calls_when_it_is_hot() {
        let (notes, inbox) = Balancer::channel();
        let load = Arc::new(Load::default());
        let mut meter = Meter::new(Arc::clone(&load), notes);
        let from = Timestamp::from_secs(5);
        meter.look(from, Duration::ZERO);
        let begun = thread_time();
        while thread_time() - begun < WINDOW {
            std::hint::black_box(0);
        }
        meter.look(from + WINDOW / 2, Duration::ZERO);
        assert!(inbox.try_recv().is_err(), "in the middle of a window");
        meter.look(from + WINDOW, Duration::ZERO);
        assert!(load.permille() >= HOT, "{}", load.permille());
        assert!(matches!(inbox.try_recv(), Ok(Note::Hot)));
        // All of it was looking for work.
        let idled = thread_time();
        meter.look(from + WINDOW * 2, idled);
        assert_eq!(load.permille(), 0);
        assert!(inbox.try_recv().is_err());
    }

    #[test]
    fn the_port_with_the_largest_part_of_at_most_half_moves_to_the_idlest() {
        let ports = [port(1, 0, 100, 0), port(2, 0, 60, 0), port(3, 0, 50, 0), port(4, 1, 1, 0)];
        assert_eq!(share_out(&[900, 300, 100], &ports, &HashSet::new()), Some((PortId(1), 2)));
        // More than half would only move the trouble.
        let ports = [port(1, 0, 10, 9_000_000), port(2, 0, 50, 0), port(3, 0, 1, 0)];
        assert_eq!(share_out(&[900, 100], &ports, &HashSet::new()), Some((PortId(2), 1)));
    }

    #[test]
    fn a_worker_that_one_port_fills_keeps_nobody_else_from_being_helped() {
        let ports = [port(1, 0, 50, 0), port(2, 0, 50, 0), port(3, 1, 100, 0)];
        let (moved, to) = share_out(&[1000, 1000, 0], &ports, &HashSet::new()).unwrap();
        assert!([PortId(1), PortId(2)].contains(&moved));
        assert_eq!(to, 2);
        // One that would not move keeps no other from it.
        let other = share_out(&[1000, 1000, 0], &ports, &[moved].into()).unwrap();
        assert!(other.0 != moved && other.1 == 2);
    }

    #[test]
    fn ports_that_would_not_move_keep_no_third_one_from_it() {
        let mut watch = Watch::default();
        let at = |n: u64| [port(1, 0, 40 * n, 0), port(2, 0, 35 * n, 0), port(3, 0, 25 * n, 0)];
        let mut window = 0;
        let mut next = |watch: &mut Watch| {
            loop {
                window += 1;
                if let Some(found) = watch.step(&[1000, 0], &at(window)).first() {
                    return Some(found.0);
                }
                if window.is_multiple_of(20) {
                    return None;
                }
            }
        };
        for number in 1..=3 {
            assert_eq!(next(&mut watch), Some(PortId(number)));
            watch.refused.insert(PortId(number));
        }
        // None is left: from the beginning.
        assert_eq!(next(&mut watch), Some(PortId(1)));
    }

    #[test]
    fn nothing_moves_without_need_use_or_room() {
        let two = [port(1, 0, 50, 0), port(2, 0, 50, 0)];
        assert_eq!(share_out(&[HOT_SMALL - 1, 0], &two, &HashSet::new()), None, "not hot");
        let bulk = [port(1, 0, 50, 500_000), port(2, 0, 50, 500_000)];
        assert!(share_out(&[HOT, 0], &bulk, &HashSet::new()).is_some());
        assert_eq!(share_out(&[HOT - 1, 0], &bulk, &HashSet::new()), None, "not hot");
        assert_eq!(share_out(&[HOT, COOL + 1], &bulk, &HashSet::new()), None, "nobody has room");
        assert_eq!(share_out(&[HOT], &bulk, &HashSet::new()), None, "nobody else");
        assert_eq!(
            share_out(&[1000, 0], &[port(1, 0, 500, 0), port(2, 0, 2, 0)], &HashSet::new()),
            None,
            "one port"
        );
        assert_eq!(
            share_out(&[1000, 0], &[port(1, 0, 0, 0), port(2, 0, 0, 0)], &HashSet::new()),
            None,
            "no frames"
        );
        assert_eq!(share_out(&[], &[], &HashSet::new()), None);
    }

    #[test]
    fn a_burst_moves_nothing_and_lasting_load_one_port() {
        let mut watch = Watch::default();
        let at = |n: u64| [port(1, 0, 50 * n, 0), port(2, 0, 50 * n, 0)];
        assert_eq!(watch.step(&[1000, 0], &at(1)), []);
        assert_eq!(watch.step(&[1000, 0], &at(2)), []);
        assert_eq!(watch.step(&[600, 0], &at(3)), []);
        assert_eq!(watch.step(&[1000, 0], &at(4)), []);
        assert_eq!(watch.step(&[1000, 0], &at(5)), []);
        assert_eq!(watch.step(&[1000, 0], &at(6)).len(), 1);
        assert_eq!(watch.step(&[1000, 0], &at(7)), [], "measured anew first");
        assert!(!watch.is_over);
    }

    #[test]
    fn ports_come_home_when_it_is_quiet_and_the_watch_ends() {
        let mut watch = Watch::default();
        let away = [port(1, 0, 5, 0), port(2, 1, 5, 0), port(3, 2, 0, 0)];
        for _ in 1..QUIET_FOR {
            assert_eq!(watch.step(&[200, 200, 100], &away), []);
        }
        assert_eq!(watch.step(&[200, 200, 100], &away), [(PortId(2), HOME), (PortId(3), HOME)]);
        assert!(!watch.is_over);
        let home = [port(1, 0, 5, 0), port(2, 0, 5, 0), port(3, 0, 0, 0)];
        for _ in 0..QUIET_FOR {
            assert!(!watch.is_over);
            assert_eq!(watch.step(&[0, 0, 0], &home), []);
        }
        assert!(watch.is_over);
    }

    #[test]
    fn a_port_that_came_while_watching_counts_from_nothing() {
        let watch = Watch { seen: [(PortId(1), (5, 500))].into(), ..Watch::default() };
        assert_eq!(watch.since(&port(1, 0, 8, 700)), port(1, 0, 3, 200));
        assert_eq!(watch.since(&port(2, 0, 8, 700)), port(2, 0, 8, 700));
    }
}
