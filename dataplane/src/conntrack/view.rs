//! The table as people and the next run of the daemon see it.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::entry::{ASSURED, ConnId, DNAT, Insert, NewConnection, SEEN_REPLY, SNAT};
use super::table::{COLD_WORDS, ConnTable, FORMAT, HOT_WORDS};
use super::tcp::TcpState;
use super::tuple::{Direction, Tuple};
use super::words::{Meta, deadline_of};
use crate::config::MAX_TIMEOUT_SECS;
use crate::engine::{Connection, ConntrackStats};
use crate::hash::HashKey;
use crate::io::region::Region;
use crate::packet::types::{NetworkId, ip_proto};

/// One connection with its number and rule, as control walks them.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Number, for [`ConnTable::remove`].
    pub id: ConnId,
    /// DNAT rule or zero.
    pub rule: u32,
    /// The rest.
    pub connection: Connection,
}

struct Raw {
    version: u32,
    new: NewConnection,
    counters: [[u64; COLD_WORDS]; 2],
}

impl ConnTable {
    fn raw(&self, index: u32) -> Option<Raw> {
        let hot = self.hot(index)?;
        let cold = |direction| self.cold(index, direction);
        let cold = [cold(Direction::Original)?, cold(Direction::Reply)?];
        let meta = Meta(hot[4].load(Ordering::Acquire));
        let tuple = |at: usize| Tuple {
            addresses: hot[at].load(Ordering::Acquire),
            rest: hot[at + 1].load(Ordering::Acquire),
        };
        let new = NewConnection {
            original: tuple(0),
            reply: tuple(2),
            state: meta.state(),
            flags: meta.flags(),
            network: meta.network(),
            rule: if meta.flags() & DNAT != 0 { self.rule(index) } else { 0 },
            deadline: deadline_of(hot[5].load(Ordering::Acquire)),
        };
        let counters = cold.map(|of| std::array::from_fn(|at| of[at].load(Ordering::Acquire)));
        let again = Meta(hot[4].load(Ordering::Acquire));
        (meta.is_live() && again.version() == meta.version()).then_some(Raw {
            version: meta.version(),
            new,
            counters,
        })
    }

    /// Every connection that has not expired.
    pub fn entries(&self, now: u32) -> impl Iterator<Item = Entry> {
        (0..self.high_water()).filter_map(move |index| {
            let Raw { version, new, counters } = self.raw(index)?;
            let left = new.deadline.checked_sub(now).filter(|left| *left > 0)?;
            let [[packets_o, bytes_o], [packets_r, bytes_r]] = counters;
            Some(Entry {
                id: ConnId { index, version },
                rule: new.rule,
                connection: Connection {
                    proto: new.original.proto(),
                    state: state_name(&new),
                    original: new.original.flow(),
                    reply: new.reply.flow(),
                    snat: new.flags & SNAT != 0,
                    dnat: new.flags & DNAT != 0,
                    timeout: Duration::from_secs(u64::from(left)),
                    packets: [packets_o, packets_r],
                    bytes: [bytes_o, bytes_r],
                    network: new.network,
                },
            })
        })
    }

    /// Totals.
    #[must_use]
    pub fn stats(&self) -> ConntrackStats {
        let totals = &self.totals;
        ConntrackStats {
            entries: self.len(),
            limit: self.limit(),
            inserted: totals.inserted.load(Ordering::Relaxed),
            expired: totals.expired.load(Ordering::Relaxed),
            flushed: totals.flushed.load(Ordering::Relaxed),
            full: totals.full.load(Ordering::Relaxed),
            clashes: totals.clashes.load(Ordering::Relaxed),
            ports_exhausted: totals.ports_exhausted.load(Ordering::Relaxed),
        }
    }

    /// A table in a file, with the sound connections that an earlier run left there. The new table
    /// is made beside the old one and takes its place at the end, so that a crash on the way loses
    /// nothing.
    ///
    /// # Errors
    /// When the new file cannot be made. An unsound old file is an empty one.
    pub fn adopt(
        path: &Path,
        limit: u32,
        key: HashKey,
        now: u32,
    ) -> io::Result<(Self, EarlierRun)> {
        let fresh = path.with_extension("new");
        // Left by a crash between making and renaming.
        let _ = std::fs::remove_file(&fresh);
        let table = Self::in_file(&fresh, limit, key)?;
        let mut earlier = EarlierRun::None;
        if let Ok(old) = std::fs::symlink_metadata(path) {
            let words = usize::try_from(old.len()).unwrap_or(0) / size_of::<u64>();
            earlier = match Region::file(path, words) {
                Ok(old) => table.take_over(old, now),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Err(error),
                Err(_) => EarlierRun::Unsound,
            };
        }
        std::fs::rename(&fresh, path)?;
        Ok((table, earlier))
    }

    /// Entries are taken one by one, each checked: the file may be torn or made by anybody who
    /// could write to the run directory.
    fn take_over(&self, old: Region, now: u32) -> EarlierRun {
        let Some((format, entries)) = old.split_last() else { return EarlierRun::Unsound };
        if format.load(Ordering::Relaxed) != FORMAT {
            return EarlierRun::Unsound;
        }
        let words = old.len();
        // Half a word an entry is for rules.
        let Ok(limit) = u32::try_from(entries.len() * 2 / (2 * HOT_WORDS + 4 * COLD_WORDS + 1))
        else {
            return EarlierRun::Unsound;
        };
        if limit == 0 || Self::entry_words(limit) != words {
            return EarlierRun::Unsound;
        }
        let Ok(old) = Self::over(old, limit) else { return EarlierRun::Unsound };
        let mut refused = 0;
        for raw in (0..limit).filter_map(|index| old.raw(index)) {
            if raw.new.deadline <= now {
                continue;
            }
            if !is_plausible(&raw.new, now) {
                refused += 1;
                continue;
            }
            if let Insert::Inserted(id) = self.insert(&raw.new, now) {
                let [original, reply] = raw.counters;
                for (of, values) in [(Direction::Original, original), (Direction::Reply, reply)] {
                    let cells = self.cold(id.index, of).into_iter().flatten();
                    for (cell, value) in cells.zip(values) {
                        cell.store(value, Ordering::Relaxed);
                    }
                }
            }
        }
        EarlierRun::TakenOver { refused }
    }
}

/// What became of the connections that an earlier run left in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlierRun {
    /// There was no file.
    None,
    /// They go on.
    TakenOver {
        /// Entries that no run of ours can have written.
        refused: u32,
    },
    /// The file is not one of ours, of another format, or damaged: all are lost.
    Unsound,
}

fn is_plausible(new: &NewConnection, now: u32) -> bool {
    let state_ok = new.original.proto() != ip_proto::TCP || TcpState::from_u8(new.state).is_some();
    state_ok
        && new.original.proto() == new.reply.proto()
        && new.deadline.saturating_sub(now) <= MAX_TIMEOUT_SECS
        && new.network != NetworkId(u16::MAX)
}

/// Every name that [`Connection::state`] can have: those of TCP, then those of the rest.
pub const STATES: [&str; 12] = [
    "SYN_SENT",
    "SYN_SENT2",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "UNREPLIED",
    "REPLIED",
    "ASSURED",
];

fn state_name(new: &NewConnection) -> &'static str {
    if new.original.proto() == ip_proto::TCP {
        return TcpState::from_u8(new.state).map_or("NONE", TcpState::name);
    }
    if new.flags & ASSURED != 0 {
        "ASSURED"
    } else if new.flags & SEEN_REPLY != 0 {
        "REPLIED"
    } else {
        "UNREPLIED"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::tuple::Zone;

    #[test]
    fn any_timeout_that_configuration_accepts_outlives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("conntrack");
        let address = std::net::Ipv4Addr::new(10, 0, 0, 1);
        let connection = |port, left: u32| NewConnection {
            original: Tuple::new(address, address, port, 2, Zone(1), ip_proto::UDP),
            reply: Tuple::new(address, address, 2, port, Zone::OUTSIDE, ip_proto::UDP),
            state: 0,
            flags: 0,
            network: NetworkId(1),
            rule: 0,
            deadline: 1000 + left,
        };
        let (longest, unsound) = (connection(1, 31_536_000), connection(2, 31_536_001));
        let table = ConnTable::in_file(&path, 16, HashKey::new(1, 2)).unwrap();
        for new in [&longest, &unsound] {
            assert!(matches!(table.insert(new, 1000), Insert::Inserted(_)));
        }
        drop(table);
        let (table, earlier) = ConnTable::adopt(&path, 16, HashKey::new(3, 4), 1000).unwrap();
        assert_eq!(earlier, EarlierRun::TakenOver { refused: 1 });
        let hit = table.lookup(longest.original, 1000).unwrap();
        assert_eq!(hit.deadline, longest.deadline);
        assert_eq!((table.len(), table.lookup(unsound.original, 1000)), (1, None));
    }

    #[test]
    fn a_damaged_file_is_told_from_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("conntrack");
        let adopt = || ConnTable::adopt(&path, 16, HashKey::new(1, 2), 1000).unwrap().1;
        assert_eq!(adopt(), EarlierRun::None);
        assert_eq!(adopt(), EarlierRun::TakenOver { refused: 0 });
        for length in [0, 7, 500] {
            std::fs::write(&path, vec![0xa5; length]).unwrap();
            assert_eq!(adopt(), EarlierRun::Unsound, "{length}");
            assert_eq!(adopt(), EarlierRun::TakenOver { refused: 0 });
        }
    }

    #[test]
    fn a_file_of_another_format_is_refused_whatever_its_length() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("conntrack");
        let adopt = || ConnTable::adopt(&path, 16, HashKey::new(1, 2), 1000).unwrap().1;
        assert_eq!(adopt(), EarlierRun::None);
        let mut words = std::fs::read(&path).unwrap();
        let last = words.len() - 8;
        assert_eq!(words[last..], FORMAT.to_ne_bytes());
        words[last..].copy_from_slice(&(FORMAT - 1).to_ne_bytes());
        std::fs::write(&path, words).unwrap();
        assert_eq!(adopt(), EarlierRun::Unsound);
        assert_eq!(adopt(), EarlierRun::TakenOver { refused: 0 });
    }

    #[test]
    fn every_state_is_listed() {
        let tuple = |proto| {
            let address = std::net::Ipv4Addr::new(10, 0, 0, 1);
            Tuple::new(address, address, 1, 2, Zone::OUTSIDE, proto)
        };
        let connection = |proto, state, flags| NewConnection {
            original: tuple(proto),
            reply: tuple(proto),
            state,
            flags,
            network: NetworkId(1),
            rule: 0,
            deadline: 1,
        };
        let tcp = (0..=u8::MAX).filter(|state| TcpState::from_u8(*state).is_some());
        let others = [0, SEEN_REPLY, ASSURED, SEEN_REPLY | ASSURED];
        let mut named: Vec<&str> = tcp
            .map(|state| connection(ip_proto::TCP, state, 0))
            .chain(others.map(|flags| connection(ip_proto::UDP, 0, flags)))
            .map(|new| state_name(&new))
            .collect();
        let mut listed = STATES.to_vec();
        named.sort_unstable();
        named.dedup();
        listed.sort_unstable();
        assert_eq!(named, listed);
    }
}
