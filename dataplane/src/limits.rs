//! How full is what has a limit, and how full it has been.
//!
//! A peak is kept where an entry is made, in a cache line that is written there anyway, or by the worker
//! that owns the thing: no frame of an established connection pays for it.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::clock::Timestamp;
use crate::engine::EngineOptions;
use crate::l3::fragments::early;
use crate::l3::neighbor::Waiting;
use crate::limiter::{BucketUse, ErrorGauge, ErrorGauges};
use crate::nat::helpers;
use crate::shared::Tables;
use crate::stats::{Gauge, WorkerCounters};
use crate::verdict::DropReason;

/// The most that a number has been. Anybody may raise it.
#[derive(Debug, Default)]
pub(crate) struct Peak(AtomicU32);

impl Peak {
    pub(crate) fn note(&self, now: u32) {
        if now > self.0.load(Ordering::Relaxed) {
            self.0.fetch_max(now, Ordering::Relaxed);
        }
    }

    pub(crate) fn value(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How full something is. Where each worker, port or link has its own, the fullest one is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitUse {
    /// Its stable name: that of the key of the configuration, where there is one.
    pub name: &'static str,
    /// Now.
    pub current: u64,
    /// At most since the start.
    pub peak: u64,
    /// What it may hold.
    pub limit: u64,
    /// As what a frame is dropped that finds no room; `None`: none is.
    pub drop_reason: Option<DropReason>,
    /// What becomes of whatever else finds none; `None`: only frames look for some.
    pub refusal: Option<Refusal>,
    /// How often that was; `None`: it is counted elsewhere.
    pub refused: Option<u64>,
}

/// What becomes of what finds no room, and is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Who asks for it is told.
    Conflict,
    /// Whom it was for misses it, and is told how much.
    Missed,
    /// It is not entered, and things go on without.
    NotEntered,
    /// It is not sent.
    NotSent,
    /// It is entered, and an older one is forgotten for it.
    PushedOut,
}

impl LimitUse {
    /// One at which no frame is dropped.
    fn refusing(
        name: &'static str,
        used: (u32, u32),
        limit: u32,
        (refusal, refused): (Refusal, Option<u64>),
    ) -> Self {
        Self { refusal: Some(refusal), refused, ..Self::new(name, used, limit, None) }
    }

    fn new(name: &'static str, used: (u32, u32), limit: u32, reason: Option<DropReason>) -> Self {
        let (current, peak) = used;
        Self {
            name,
            current: current.into(),
            peak: peak.max(current).into(),
            limit: limit.into(),
            drop_reason: reason,
            refusal: None,
            refused: None,
        }
    }
}

/// What is in use of what no worker has: now, and at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside {
    /// And how many frames captures have missed.
    pub(crate) captures: ((u32, u32), u64),
    /// And how many were refused.
    pub(crate) traces: ((u32, u32), u64),
    /// The lowest limit that a network has for what is sent to all.
    pub(crate) storm_limit: Option<u32>,
}

/// Every limit of the engine, as the options set them.
pub(crate) fn of(
    options: &EngineOptions,
    tables: &Tables,
    workers: &[std::sync::Arc<WorkerCounters>],
    beside: &Beside,
    now: Timestamp,
) -> Vec<LimitUse> {
    use DropReason::{
        ConntrackFull, EndpointLimit, FragmentLimit, GroupLimit, NeighborQueueFull,
        NeighborTableFull, NoBuffer, SnatPortsExhausted,
    };
    let heaviest = |gauge: fn(&WorkerCounters) -> &Gauge| {
        workers.iter().map(|counters| gauge(counters).view()).fold((0, 0), most)
    };
    let size = |frames: usize| u32::try_from(frames).unwrap_or(u32::MAX);
    let waiting = Waiting::room_beside(options.buffers_per_worker, options.waiting_frames);
    let waiting_each = options.waiting_frames_per_neighbor.clamp(1, waiting);
    let room = tables.connections.room();
    let fdb = tables.fdb.stats();
    let neighbors = tables.neighbors.uses();
    let [expectations, controls] = tables.helped.uses();
    let [groups, own_groups] = tables.groups.uses();
    let fragments = size(tables.fragments.len());
    tables.fragments_peak.note(fragments);
    let (pieces, most_pieces, all_pieces) = tables.fragments.pieces();
    let errors = |name, burst: u32, gauge: fn(&ErrorGauges) -> &ErrorGauge| {
        let gauges = || workers.iter().map(move |counters| gauge(&counters.errors));
        let (current, peak) = gauges().map(|gauge| gauge.view(now)).fold((0, 0), most);
        let refused = gauges().map(ErrorGauge::refused).sum();
        // As it was a moment ago: by a clock that runs ahead there would be more.
        let used = (current.min(burst), peak);
        LimitUse::refusing(name, used, burst, (Refusal::NotSent, Some(refused)))
    };
    let (departed, departed_limit, pushed_out) = tables.fragments.departed_uses(now);
    let watchers = tables.connections.watchers();
    let per_network = |name, most: Option<(u32, u32, u32)>, reason| {
        most.map(|(now, peak, limit)| LimitUse::new(name, (now, peak), limit, reason))
    };
    let networks = [
        per_network(
            "conntrack_per_network",
            room.accounts().fullest_network(),
            Some(DropReason::NetworkLimit),
        ),
        tables.fdb.fullest_network().map(|(now, peak, limit)| {
            let refusal = (Refusal::NotEntered, None);
            LimitUse::refusing("fdb_per_network", (now, peak), limit, refusal)
        }),
        room.mappings().uses().map(|(used, limit)| {
            LimitUse::new("mapped_ports_per_address", used, limit, Some(SnatPortsExhausted))
        }),
        storms(workers, beside.storm_limit, now),
    ];
    let mut all = vec![
        LimitUse::new("conntrack", room.uses(), room.limit(), Some(ConntrackFull)),
        LimitUse::new(
            "conntrack_per_endpoint",
            (room.accounts().heaviest(), room.accounts().peak()),
            options.conntrack_per_endpoint,
            Some(EndpointLimit),
        ),
        LimitUse::refusing(
            "fdb",
            (fdb.entries, tables.fdb.peak()),
            fdb.limit,
            (Refusal::NotEntered, Some(fdb.refused)),
        ),
        LimitUse::refusing(
            "fdb_per_port",
            tables.fdb.heaviest(),
            options.fdb_per_port.max(1),
            (Refusal::NotEntered, None),
        ),
        LimitUse::new("neighbors", neighbors.all.0, neighbors.all.1, Some(NeighborTableFull)),
        LimitUse::new(
            "neighbors_per_network",
            neighbors.network.0,
            neighbors.network.1,
            Some(NeighborTableFull),
        ),
        LimitUse::new(
            "neighbors_per_uplink",
            neighbors.uplink.0,
            neighbors.uplink.1,
            Some(NeighborTableFull),
        ),
        LimitUse::new(
            "neighbors_unanswered",
            neighbors.unheard.0,
            neighbors.unheard.1,
            Some(NeighborTableFull),
        ),
        not_entered("expectations", expectations),
        not_entered("helped_controls", controls),
        LimitUse::new("groups", groups.0, groups.1, Some(GroupLimit)),
        LimitUse::new("groups_per_endpoint", own_groups.0, own_groups.1, Some(GroupLimit)),
        LimitUse::new(
            "waiting_frames",
            heaviest(|counters| &counters.waiting),
            size(waiting),
            Some(NeighborQueueFull),
        ),
        LimitUse::new(
            "waiting_frames_per_neighbor",
            heaviest(|counters| &counters.waiting_for_one),
            size(waiting_each),
            Some(NeighborQueueFull),
        ),
        LimitUse::new(
            "fragments",
            (fragments, tables.fragments_peak.value()),
            size(tables.fragments.limit()),
            Some(FragmentLimit),
        ),
        LimitUse::refusing(
            "departed_datagrams",
            departed,
            departed_limit,
            (Refusal::PushedOut, Some(pushed_out)),
        ),
        LimitUse::new(
            "fragment_pieces",
            (size(pieces), size(most_pieces)),
            size(all_pieces),
            Some(FragmentLimit),
        ),
        LimitUse::new(
            "fragment_bytes",
            heaviest(|counters| &counters.early),
            options.fragment_bytes,
            Some(FragmentLimit),
        ),
        LimitUse::new(
            "fragment_bytes_per_port",
            heaviest(|counters| &counters.early_of_one),
            options.fragment_bytes / early::SHARE,
            Some(FragmentLimit),
        ),
        LimitUse::new(
            "buffers",
            heaviest(|counters| &counters.buffers),
            size(options.buffers_per_worker),
            Some(NoBuffer),
        ),
        errors("icmp_errors", options.icmp_errors.burst(), |errors| &errors.all),
        errors("icmp_errors_per_port", options.icmp_errors.burst_of_port(), |errors| &errors.port),
        LimitUse::refusing(
            "capture_frames",
            beside.captures.0,
            options.capture_frames.max(1),
            (Refusal::Missed, Some(beside.captures.1)),
        ),
        LimitUse::refusing(
            "traces",
            beside.traces.0,
            options.traces,
            (Refusal::Conflict, Some(beside.traces.1)),
        ),
        LimitUse::refusing(
            "conntrack_events",
            watchers.uses(),
            watchers.queue(),
            (Refusal::Missed, Some(watchers.missed())),
        ),
    ];
    all.extend(networks.into_iter().flatten());
    all
}

fn not_entered(name: &'static str, (used, limit, refused): helpers::Uses) -> LimitUse {
    LimitUse::refusing(name, used, limit, (Refusal::NotEntered, Some(refused)))
}

/// What ports send to all others, of the one that has used up most of what it may send in a second: where none
/// does, of the lowest limit that there is.
fn storms(
    workers: &[std::sync::Arc<WorkerCounters>],
    lowest: Option<u32>,
    now: Timestamp,
) -> Option<LimitUse> {
    let all = workers.iter().map(|counters| counters.storms.view(now));
    let fullest = all.fold(BucketUse::default(), BucketUse::or);
    let holds = if fullest.holds > 0 { fullest.holds } else { lowest?.into() };
    let frames = |nanos| u32::try_from(BucketUse::tokens(nanos, holds)).unwrap_or(u32::MAX);
    let used = (frames(fullest.nanos), frames(fullest.peak));
    let limit = u32::try_from(holds).unwrap_or(u32::MAX);
    Some(LimitUse::new("storm_frames", used, limit, Some(DropReason::StormLimited)))
}

fn most(a: (u32, u32), b: (u32, u32)) -> (u32, u32) {
    (a.0.max(b.0), a.1.max(b.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_only_rises() {
        let peak = Peak::default();
        for (now, expected) in [(3, 3), (7, 7), (5, 7), (0, 7)] {
            peak.note(now);
            assert_eq!(peak.value(), expected);
        }
    }

    #[test]
    fn no_use_is_above_its_peak() {
        // Read one after the other, while entries are made.
        let shown = LimitUse::new("x", (9, 8), 10, None);
        assert_eq!((shown.current, shown.peak), (9, 9));
    }
}
