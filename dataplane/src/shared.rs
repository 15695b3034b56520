//! What all workers share: the tables.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use rustc_hash::FxBuildHasher;

use crate::clock::Timestamp;
use crate::conntrack::{ConnTable, EarlierRun};
use crate::engine::{EngineOptions, NatRule};
use crate::hash::HashKey;
use crate::l2::fdb::Fdb;
use crate::l3::fragments::Fragments;
use crate::l3::neighbor::Neighbors;

/// The tables.
#[derive(Debug)]
pub struct Tables {
    /// MACs.
    pub fdb: Fdb,
    /// Connections.
    pub connections: ConnTable,
    /// Datagrams whose later fragments are expected.
    pub fragments: Fragments,
    /// What became of the connections of an earlier run.
    pub earlier: EarlierRun,
    /// Neighbors.
    pub neighbors: Neighbors,
    /// First packets of connections and their bytes, by rule. Control alone makes rules, so that they
    /// need no keyed hash.
    rules: DashMap<NatRule, (AtomicU64, AtomicU64), FxBuildHasher>,
}

impl Tables {
    /// Makes the tables; adopts the connections of an earlier run if the options name a file.
    ///
    /// # Errors
    /// When memory, the file or random keys cannot be had.
    pub fn new(options: &EngineOptions, now: Timestamp) -> io::Result<Self> {
        let key = HashKey::random()?;
        let limit = options.conntrack_limit;
        let (connections, earlier) = match &options.conntrack_file {
            Some(path) => ConnTable::adopt(path, limit, key, now.as_secs())?,
            None => (ConnTable::new(limit, key)?, EarlierRun::None),
        };
        Ok(Self {
            fdb: Fdb::new(options.fdb_limit, HashKey::random()?)?,
            connections,
            earlier,
            fragments: Fragments::default(),
            neighbors: Neighbors::default(),
            rules: DashMap::default(),
        })
    }

    /// Counts the first packet of a connection for a rule.
    pub(crate) fn count_rule(&self, rule: NatRule, bytes: u64) {
        let entry = self.rules.entry(rule).or_default();
        entry.0.fetch_add(1, Ordering::Relaxed);
        entry.1.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn rule(&self, rule: NatRule) -> (u64, u64) {
        self.rules.get(&rule).map_or((0, 0), |entry| {
            (entry.0.load(Ordering::Relaxed), entry.1.load(Ordering::Relaxed))
        })
    }

    pub(crate) fn retain_rules(&self, keep: impl Fn(NatRule) -> bool) {
        self.rules.retain(|rule, _| keep(*rule));
    }
}
