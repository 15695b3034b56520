//! The incremental sweep: expired connections go a few at a time.
//!
//! There is no timer per connection and no scan under a lock. One worker calls [`Sweep::step`]
//! now and then; each call looks at, and ends, a bounded number of entries. Called ten times a second
//! it sees the whole table once in [`PERIOD`] up to 655,360 entries, and once in 51 s at the largest
//! limit that can be configured, 16,777,216. Being late costs memory only: lookups never return an
//! expired connection, and a packet that finds the table full looks for expired entries itself.

use std::time::Duration;

use super::key::Key;
use super::table::ConnTable;
use crate::clock::Timestamp;

/// How long one round over the table takes, unless it is very large.
pub const PERIOD: Duration = Duration::from_secs(2);

/// Entries looked at in one step at most, to bound the pause of the worker: 2 MiB read in order,
/// about half a millisecond.
const LOOK_MAX: u32 = 32_768;

/// Entries ended in one step at most, for the same reason: each costs two locks and two places in
/// the index.
const EXPIRE_MAX: u32 = 4096;

/// Where the sweep is.
#[derive(Debug, Default)]
pub struct Sweep {
    cursor: u32,
    last: Timestamp,
}

impl Sweep {
    /// Expires what is due among the entries whose turn it is; returns how many expired.
    pub fn step<K: Key>(&mut self, table: &ConnTable<K>, now: Timestamp) -> u32 {
        let elapsed = now.since(self.last).min(PERIOD);
        self.last = now;
        let high = u64::from(table.high_water());
        if high == 0 {
            return 0;
        }
        let due = high.saturating_mul(elapsed.as_micros().try_into().unwrap_or(u64::MAX))
            / u64::try_from(PERIOD.as_micros()).unwrap_or(1);
        let due = u32::try_from(due).unwrap_or(LOOK_MAX).clamp(1, LOOK_MAX);
        let mut expired = 0;
        for _ in 0..due {
            if self.cursor >= table.high_water() {
                self.cursor = 0;
            }
            expired += u32::from(table.expire(self.cursor, now.as_secs()));
            self.cursor += 1;
            if expired == EXPIRE_MAX {
                break;
            }
        }
        expired
    }
}
