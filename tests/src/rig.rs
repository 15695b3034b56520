//! An engine without threads for frames that nobody wrote an expectation for: captures. After every
//! frame the worker must balance, every buffer be accounted for, and what came out be no worse than
//! what went in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dataplane::Engine;
use dataplane::clock::Timestamp;
use dataplane::config::{PortRole, Snapshot, SnapshotSpec};
use dataplane::core::Core;
use dataplane::engine::WorkerStats;
use dataplane::io::Offloads;
use dataplane::io::vnet_hdr::VnetHdr;
use dataplane::packet::types::PortId;
use dataplane::plane::Plane;
use dataplane::verdict::DropReason;

use crate::lab::{Devices, small};
use crate::outlet::Outside;
use crate::packet::Wire;
use crate::sums;

/// An engine whose ports take plain frames only.
#[derive(Debug)]
pub struct Rig {
    /// Tables and counters.
    pub plane: Plane,
    /// The time.
    pub now: Timestamp,
    core: Core,
    outside: Outside<Devices>,
    mtus: BTreeMap<PortId, usize>,
}

impl Rig {
    /// An engine with this configuration.
    #[must_use]
    pub fn new(spec: SnapshotSpec) -> Self {
        let plane = Plane::new(&small()).unwrap();
        let mut core = plane.core(0).unwrap();
        let mut mtus = BTreeMap::new();
        for port in &spec.ports {
            plane.add_port(&mut core, port.id, Offloads::NONE);
            let mtu = match port.role {
                PortRole::Uplink { uplink } => {
                    spec.uplinks.iter().find(|u| u.id == uplink).unwrap().mtu.min(port.mtu)
                }
                _ => port.mtu,
            };
            mtus.insert(port.id, usize::from(mtu));
        }
        plane.publish(Snapshot::build(spec).unwrap());
        let now = Timestamp::from_secs(u64::from(Timestamp::now().as_secs()) + 1);
        Self { plane, now, core, outside: Outside::default(), mtus }
    }

    /// A frame arrives; returns what leaves.
    ///
    /// # Panics
    /// When an invariant does not hold; `what` names the frame.
    pub fn feed(&mut self, port: PortId, wire: &Wire, what: &str) -> Vec<(PortId, Wire)> {
        let mut frame = self.core.pool().take().expect("a buffer");
        frame.copy_from(&wire.bytes);
        frame.vnet = wire.vnet;
        frame.ingress = port;
        let (before, drops_before) = (sums::check(wire), self.dropped());
        self.core.process(&mut vec![frame], self.now, &mut self.outside);
        self.core.housekeep(self.now, &mut self.outside);
        self.check(what);
        let sent = std::mem::take(&mut self.outside.0.sent);
        for (to, wire) in &sent {
            let after = sums::check(wire);
            // What goes out is a frame that came in, or one that waited, or one of ours.
            let is_fine = after.are_right()
                || (!before.are_right() && (after.ip != Some(false) || before.ip == Some(false)));
            assert!(is_fine, "{what}: {before:?} became {after:?}\n{wire:?}");
            assert_eq!(wire.vnet, VnetHdr::default(), "{what}: offloads by {to:?}\n{wire:?}");
            let (l3, mtu) = (network_header(&wire.bytes), self.mtus[to]);
            assert!(
                wire.bytes.len() - l3 <= mtu,
                "{what}: beyond the MTU {mtu} of {to:?}\n{wire:?}"
            );
        }
        assert!(
            !sent.is_empty() || self.dropped() > drops_before || self.is_quiet(),
            "{what}: the frame went nowhere"
        );
        sent
    }

    /// Consumed frames, and those that wait, end without a frame or a drop.
    fn is_quiet(&self) -> bool {
        let stats = self.core.stats();
        stats.consumed > 0 || stats.queued > 0
    }

    fn dropped(&self) -> u64 {
        self.core.stats().dropped()
    }

    fn check(&mut self, what: &str) {
        let stats = self.core.stats();
        assert!(stats.is_balanced(), "{what}: {stats:?}");
        let queued = usize::try_from(stats.queued).unwrap();
        let waiting = queued - self.core.waiting_fragments();
        let pool = self.core.pool();
        assert_eq!(pool.available() + waiting, pool.size(), "{what}: a buffer was lost");
    }

    /// Adds the drops by reason to `totals`.
    pub fn add_drops(&self, totals: &mut BTreeMap<&'static str, u64>) {
        for (reason, count) in DropReason::ALL.iter().zip(self.core.stats().drops) {
            if count > 0 {
                *totals.entry(reason.name()).or_default() += count;
            }
        }
    }

    /// Frames that were sent and consumed.
    #[must_use]
    pub fn sent_and_consumed(&self) -> (u64, u64) {
        let stats = self.core.stats();
        (stats.tx_frames, stats.consumed)
    }
}

/// Waits until every worker of a running engine balances: counters read while a batch is worked on
/// do not.
///
/// # Panics
/// When one does not in 10 seconds.
pub fn assert_balances(engine: &Engine) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let stats = engine.worker_stats();
        if stats.iter().all(WorkerStats::is_balanced) {
            return;
        }
        assert!(Instant::now() < deadline, "{stats:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Offset of what follows Ethernet header and tags.
#[must_use]
pub fn network_header(bytes: &[u8]) -> usize {
    let mut at = 14;
    while matches!(bytes.get(at - 2..at), Some([0x81, 0x00] | [0x88, 0xa8])) && bytes.len() > at + 4
    {
        at += 4;
    }
    at.min(bytes.len())
}
