//! Every counter of an engine at one moment, by name, so that a step can state which ones it moves
//! and everything else must stay where it was.
//!
//! | name | |
//! |---|---|
//! | `rx`, `tx`, `merged`, `replicated`, `generated`, `consumed`, `queued`, `drop.REASON` | all workers |
//! | `PORT.rx`, `PORT.rx_bytes`, `PORT.tx`, `PORT.tx_bytes`, `PORT.refused`, `PORT.drop.REASON`, `PORT.tx_drop.REASON` | a port |
//! | `fdb.learned`, `fdb.moves`, `fdb.evictions`, `neighbors` | tables |
//! | `conn.entries`, `conn.inserted`, `conn.expired`, `conn.flushed`, `conn.full`, `conn.clashes`, `conn.ports_exhausted`, `conn.picked_up`, `conn.evicted` | connections |
//! | `helpers.expected`, `helpers.used`, `helpers.foreign`, `helpers.full`, `helpers.no_port`, `helpers.privileged`, `helpers.too_long` | what connections announce |
//! | `dnat.N.packets`, `dnat.N.bytes`, `masquerade.N.packets`, `masquerade.N.bytes` | rules |

use std::collections::BTreeMap;

use dataplane::engine::NatRule;
use dataplane::packet::types::PortId;
use dataplane::plane::Plane;
use dataplane::verdict::DropReason;

/// Counters by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger(BTreeMap<String, i64>);

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap()
}

impl Ledger {
    /// Reads everything there is.
    #[must_use]
    pub fn read(plane: &Plane, names: &BTreeMap<PortId, &'static str>) -> Self {
        let mut ledger = Self::default();
        for worker in plane.worker_stats() {
            ledger.add("rx", signed(worker.rx_frames));
            ledger.add("tx", signed(worker.tx_frames));
            ledger.add("merged", signed(worker.merged));
            ledger.add("replicated", signed(worker.replicated));
            ledger.add("generated", signed(worker.generated));
            ledger.add("consumed", signed(worker.consumed));
            ledger.add("queued", signed(worker.queued));
            ledger.drops("drop", &worker.drops);
        }
        for (port, name) in names {
            let Some(stats) = plane.port_stats(*port) else { continue };
            ledger.add(&format!("{name}.rx"), signed(stats.rx_frames));
            ledger.add(&format!("{name}.rx_bytes"), signed(stats.rx_bytes));
            ledger.add(&format!("{name}.tx"), signed(stats.tx_frames));
            ledger.add(&format!("{name}.tx_bytes"), signed(stats.tx_bytes));
            ledger.add(&format!("{name}.refused"), signed(stats.refused));
            ledger.drops(&format!("{name}.drop"), &stats.rx_drops);
            ledger.drops(&format!("{name}.tx_drop"), &stats.tx_drops);
        }
        let fdb = &plane.tables().fdb;
        let stats = fdb.stats();
        ledger.add("fdb.learned", i64::from(stats.entries));
        ledger.add("fdb.moves", signed(stats.moves));
        ledger.add("fdb.evictions", signed(stats.evictions));
        ledger.add("fdb.refused", signed(stats.refused));
        ledger.add("neighbors", plane.neighbors().len() as i64);
        let conn = plane.conntrack_stats();
        ledger.add("conn.entries", i64::from(conn.entries));
        ledger.add("conn.inserted", signed(conn.inserted));
        ledger.add("conn.expired", signed(conn.expired));
        ledger.add("conn.flushed", signed(conn.flushed));
        ledger.add("conn.full", signed(conn.full));
        ledger.add("conn.clashes", signed(conn.clashes));
        ledger.add("conn.ports_exhausted", signed(conn.ports_exhausted));
        ledger.add("conn.picked_up", signed(conn.picked_up));
        ledger.add("conn.evicted", signed(conn.evicted));
        let helpers = conn.helpers;
        ledger.add("helpers.expected", signed(helpers.expected));
        ledger.add("helpers.used", signed(helpers.used));
        ledger.add("helpers.foreign", signed(helpers.foreign));
        ledger.add("helpers.full", signed(helpers.full));
        ledger.add("helpers.no_port", signed(helpers.no_port));
        ledger.add("helpers.privileged", signed(helpers.privileged));
        ledger.add("helpers.too_long", signed(helpers.too_long));
        let snapshot = plane.snapshot();
        for rule in snapshot.dnat.rules() {
            ledger.rule(plane, &format!("dnat.{}", rule.id), NatRule::Dnat(rule.id));
        }
        for network in snapshot.networks() {
            let id = network.config.id;
            ledger.rule(plane, &format!("masquerade.{}", id.0), NatRule::Masquerade(id));
            for rule in network.policy.rules() {
                ledger.rule(plane, &format!("policy.{}", rule.id), NatRule::Policy(rule.id));
            }
        }
        ledger
    }

    fn drops(&mut self, prefix: &str, drops: &[u64]) {
        for (reason, count) in DropReason::ALL.iter().zip(drops) {
            self.add(&format!("{prefix}.{}", reason.name()), signed(*count));
        }
    }

    fn rule(&mut self, plane: &Plane, name: &str, rule: NatRule) {
        let (packets, bytes) = plane.rule_counters(rule);
        self.add(&format!("{name}.packets"), signed(packets));
        self.add(&format!("{name}.bytes"), signed(bytes));
    }

    /// Adds to one counter.
    pub fn add(&mut self, name: &str, by: i64) {
        *self.0.entry(name.to_owned()).or_default() += by;
    }

    /// One counter.
    #[must_use]
    pub fn value(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// What moved since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut moved = self.clone();
        for (name, value) in &before.0 {
            moved.add(name, -value);
        }
        moved.0.retain(|_, by| *by != 0);
        moved
    }

    /// Drops what did not move.
    #[must_use]
    pub fn without_zeros(mut self) -> Self {
        self.0.retain(|_, by| *by != 0);
        self
    }
}

impl std::fmt::Display for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, by) in &self.0 {
            writeln!(f, "    {name} {by:+}")?;
        }
        Ok(())
    }
}
