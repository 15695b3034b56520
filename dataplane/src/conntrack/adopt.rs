//! The connections that an earlier run of the daemon left in the table's file.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::cold::COLD_HALVES;
use super::entry::{Hit, Insert, NewConnection, is_skewed};
use super::key::Key;
use super::room::Room;
use super::sctp::SctpState;
use super::table::{ConnTable, HEADER, STEP};
use super::tcp::TcpState;
use super::tuple::Direction;
use super::view::Raw;
use crate::config::MAX_TIMEOUT_SECS;
use crate::hash::HashKey;
use crate::io::region::Region;
use crate::packet::types::{NetworkId, ip_proto};

/// Format 2 of IPv4.
const SECOND: u64 = u64::from_be_bytes(*b"vswct\0\0\x02");
const THIRD: u64 = u64::from_be_bytes(*b"vswct\0\0\x03");

impl<K: Key> ConnTable<K> {
    /// A table in a file, with the sound connections that an earlier run left there. The new table
    /// is made beside the old one and takes its place at the end, so that a crash on the way loses
    /// nothing.
    ///
    /// # Errors
    /// When the new file cannot be made. An unsound old file is an empty one.
    pub fn adopt(
        path: &Path,
        room: &Room,
        key: HashKey,
        now: u32,
    ) -> io::Result<(Self, EarlierRun)> {
        let fresh = path.with_extension("new");
        // Left by a crash between making and renaming.
        let _ = std::fs::remove_file(&fresh);
        let table = Self::in_file(&fresh, room, key)?;
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
        let format = Self::format_of(&old).map(|word| word.load(Ordering::Relaxed));
        let Some(layout) = Layout::of::<K>(format) else { return EarlierRun::Unsound };
        let Some(limit) = layout.entries_in::<K>(old.len()) else { return EarlierRun::Unsound };
        if limit == 0 {
            return EarlierRun::TakenOver { refused: 0 };
        }
        let Ok(old) = Self::over(old, limit) else { return EarlierRun::Unsound };
        let mut refused = 0;
        for raw in (0..limit).filter_map(|index| layout.read(&old, index)) {
            // Nobody knows any more by how much the numbers of a skewed one differ.
            if raw.new.deadline <= now || is_skewed(raw.new.flags) {
                continue;
            }
            if !is_plausible(&raw.new, now) {
                refused += 1;
                continue;
            }
            if let Insert::Inserted(id) = self.insert(&raw.new, now) {
                let hit = Hit::begun(id, &raw.new);
                for direction in [Direction::Original, Direction::Reply] {
                    let (Some(counters), Some(side), Some(cold)) = (
                        raw.counters.get(direction.index()),
                        raw.sides.get(direction.index()),
                        self.cold(id.index, direction),
                    ) else {
                        continue;
                    };
                    cold.set_counters(*counters);
                    self.set_side(&Hit { direction, ..hit }, *side);
                }
            }
        }
        EarlierRun::TakenOver { refused }
    }
}

/// How a file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// As this build writes it.
    Current,
    /// Format 3 of IPv4: rules behind all others, two a word.
    Third,
    /// Format 2 of IPv4: packets and bytes of each direction in a word each, and no sequence numbers.
    Second,
}

impl Layout {
    fn of<K: Key>(format: Option<u64>) -> Option<Self> {
        match format? {
            format if format == K::FORMAT => Some(Self::Current),
            SECOND if !K::IN_STEPS => Some(Self::Second),
            THIRD if !K::IN_STEPS => Some(Self::Third),
            _ => None,
        }
    }

    /// How many entries a file of so many words has room for; `None`: it is none of ours.
    fn entries_in<K: Key>(self, words: usize) -> Option<u32> {
        if K::IN_STEPS {
            // What is left of a step that a crash cut short was never used.
            let steps = words.checked_sub(HEADER)? / ConnTable::<K>::words_of(STEP);
            return u32::try_from(steps).ok()?.checked_mul(STEP);
        }
        let each = K::HOT_WORDS + self.cold_words();
        let has_rules = self != Self::Current;
        // Half a word an entry is for rules.
        let entries = (words.checked_sub(1)? * 2) / (2 * each + usize::from(has_rules));
        let limit = u32::try_from(entries).ok()?;
        let rules = if has_rules { entries.div_ceil(2) } else { 0 };
        (limit > 0 && entries * each + rules + 1 == words).then_some(limit)
    }

    /// Words of an entry beside the hot ones and, if it is behind, the rule.
    const fn cold_words(self) -> usize {
        match self {
            Self::Current | Self::Third => COLD_HALVES,
            Self::Second => 4,
        }
    }

    fn read<K: Key>(self, old: &ConnTable<K>, index: u32) -> Option<Raw<K>> {
        if self == Self::Current {
            return old.raw(index);
        }
        let (at, all) = (index as usize, old.limit as usize);
        let word = |at: usize| old.entries.get(at).map_or(0, |word| word.load(Ordering::Relaxed));
        let base = all * K::HOT_WORDS;
        let rule = || {
            let rules = base + self.cold_words() * all;
            let [a, b, c, d, ..] = (word(rules + at / 2) >> (index % 2 * 32)).to_le_bytes();
            u32::from_le_bytes([a, b, c, d])
        };
        if self == Self::Third {
            return old.raw_with(index, rule);
        }
        let mut raw = old.raw_of(index, rule)?;
        raw.counters =
            [base, base + 2 * all].map(|base| [word(base + 2 * at), word(base + 2 * at + 1)]);
        Some(raw)
    }
}

/// What became of the connections that an earlier run left in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlierRun {
    /// There was no file.
    None,
    /// They go on.
    TakenOver {
        /// Entries that no run of this build can have written.
        refused: u32,
    },
    /// The file is not one of ours, of another format, or damaged: all are lost.
    Unsound,
}

fn is_plausible<K: Key>(new: &NewConnection<K>, now: u32) -> bool {
    let state_ok = match new.original.proto() {
        ip_proto::TCP => TcpState::from_u8(new.state).is_some(),
        ip_proto::SCTP => SctpState::from_u8(new.state).is_some(),
        _ => true,
    };
    state_ok
        && new.original.proto() == new.reply.proto()
        && new.deadline.saturating_sub(now) <= MAX_TIMEOUT_SECS
        && new.network != NetworkId(u16::MAX)
}

impl EarlierRun {
    /// What became of the connections of two files.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unsound, _) | (_, Self::Unsound) => Self::Unsound,
            (Self::None, one) | (one, Self::None) => one,
            (Self::TakenOver { refused: one }, Self::TakenOver { refused: more }) => {
                Self::TakenOver { refused: one.saturating_add(more) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::entry::{DNAT, SNAT};
    use super::super::samples::{Sample, connection, for_both_families};
    use super::*;
    use crate::conntrack::{Tuple, Tuple6, Zone};

    for_both_families! {
        a_damaged_file_is_told_from_none
        a_file_is_adopted_and_rubbish_is_not
        a_file_of_another_format_is_refused_whatever_its_length
        any_timeout_that_configuration_accepts_outlives_a_restart
    }

    fn adopt<K: Key>(path: &Path, limit: u32, now: u32) -> (ConnTable<K>, EarlierRun) {
        ConnTable::adopt(path, &Room::new(limit), HashKey::new(1, 2), now).unwrap()
    }

    fn any_timeout_that_configuration_accepts_outlives_a_restart<K: Sample>() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("conntrack");
        let left = |port, left: u32| connection::<K>(1, port, port, 1000 + left);
        let (longest, unsound) = (left(1, 31_536_000), left(2, 31_536_001));
        let table = ConnTable::in_file(&path, &Room::new(16), HashKey::new(1, 2)).unwrap();
        for new in [&longest, &unsound] {
            assert!(matches!(table.insert(new, 1000), Insert::Inserted(_)));
        }
        drop(table);
        let (table, earlier) = adopt::<K>(&path, 16, 1000);
        assert_eq!(earlier, EarlierRun::TakenOver { refused: 1 });
        let hit = table.lookup(longest.original, 1000).unwrap();
        assert_eq!(hit.deadline, longest.deadline);
        assert_eq!((table.len(), table.lookup(unsound.original, 1000)), (1, None));
    }

    fn a_damaged_file_is_told_from_none<K: Sample>() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("conntrack");
        assert_eq!(adopt::<K>(&path, 16, 1000).1, EarlierRun::None);
        assert_eq!(adopt::<K>(&path, 16, 1000).1, EarlierRun::TakenOver { refused: 0 });
        for length in [0, 7, 500] {
            std::fs::write(&path, vec![0xa5; length]).unwrap();
            assert_eq!(adopt::<K>(&path, 16, 1000).1, EarlierRun::Unsound, "{length}");
            assert_eq!(adopt::<K>(&path, 16, 1000).1, EarlierRun::TakenOver { refused: 0 });
        }
    }

    fn a_file_of_another_format_is_refused_whatever_its_length<K: Sample>() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("conntrack");
        assert_eq!(adopt::<K>(&path, 16, 1000).1, EarlierRun::None);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = if K::IN_STEPS { 0 } else { bytes.len() - 8 };
        assert_eq!(bytes[at..at + 8], K::FORMAT.to_ne_bytes());
        bytes[at..at + 8].copy_from_slice(&(K::FORMAT + 1).to_ne_bytes());
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(adopt::<K>(&path, 16, 1000).1, EarlierRun::Unsound);
        assert_eq!(adopt::<K>(&path, 16, 1000).1, EarlierRun::TakenOver { refused: 0 });
    }

    fn a_file_is_adopted_and_rubbish_is_not<K: Sample>() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("conntrack");
        let new = connection::<K>(1, 1000, 2000, 1000);
        {
            let table = adopt::<K>(&path, 64, 0).0;
            table.insert(&new, 0);
            table.insert(&connection::<K>(2, 1, 1, 5), 0);
            let hit = table.lookup(new.original, 0).unwrap();
            table.touch(&hit, 99, 0, 0, 1000);
        }
        let table = adopt::<K>(&path, 128, 10).0;
        assert_eq!(table.len(), 1, "the expired one is left behind");
        assert_eq!(table.entries(10).next().unwrap().connection.bytes, [99, 0]);
        assert!(table.lookup(new.reply, 10).is_some());
        assert!(table.counts_its_ports() && table.ports_towards(new.reply).has(2000));
        drop(table);
        for rubbish in [vec![0xff; 96 * 64], vec![0xff; 7], Vec::new()] {
            std::fs::write(&path, rubbish).unwrap();
            let table = adopt::<K>(&path, 64, 10).0;
            for entry in table.entries(10) {
                assert!(entry.connection.timeout.as_secs() <= 30 * 86_400);
            }
        }
    }

    /// Connections outlive an upgrade: from builds before sequence numbers, and from those with rules of their own.
    #[test]
    fn files_of_ipv4_of_formats_2_and_3_are_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("conntrack");
        for format in [2u8, 3] {
            let (limit, entry) = (6, 4);
            let cold = if format == 2 { 4 } else { 5 };
            let mut words = vec![0u64; limit * (8 + cold) + 3 + 1];
            words[entry * 8..][..6].copy_from_slice(&[
                0x0a00_0002_c000_0201,                                // 10.0.0.2 to 192.0.2.1
                40_000 << 48 | 80 << 32 | 3 << 16 | 6 << 8,           // zone 3, TCP
                0xc000_0201_c633_6401,                                // 192.0.2.1 to 198.51.100.1
                80 << 48 | 50_000 << 32 | 0xffff << 16 | 6 << 8,      // outside
                9 << 32 | 4 << 24 | u64::from(SNAT | DNAT) << 16 | 3, // version, established, network 3
                9 << 32 | 5000,                                       // deadline
            ]);
            if format == 2 {
                words[limit * 8 + entry * 2..][..2].copy_from_slice(&[11, 1100]);
                words[limit * 10 + entry * 2..][..2].copy_from_slice(&[12, 1200]);
            } else {
                // Five halves of words for each direction; an even entry begins with a whole one.
                let packets_and_bytes = [(0, 11, 1100u64), (limit * 5 / 2, 12, 1200)];
                for (base, packets, bytes) in packets_and_bytes {
                    let at = limit * 8 + base + entry * 5 / 2;
                    words[at + 1] = bytes << 32 | packets;
                }
            }
            words[limit * (8 + cold) + entry / 2] = 0x1234_5678;
            words[limit * (8 + cold) + 3] = u64::from_be_bytes(*b"vswct\0\0\0") + u64::from(format);
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .unwrap();
            let (table, earlier) = adopt::<Tuple>(&path, 100, 1000);
            assert_eq!(earlier, EarlierRun::TakenOver { refused: 0 }, "{format}");
            let entry = table.entries(1000).next().unwrap();
            let connection = entry.connection;
            assert_eq!(
                (entry.rule, connection.network, connection.state),
                (0x1234_5678, NetworkId(3), "ESTABLISHED")
            );
            assert_eq!(
                (connection.packets, connection.bytes),
                ([11, 12], [1100, 1200]),
                "{format}"
            );
            let original =
                Tuple::new([10, 0, 0, 2].into(), [192, 0, 2, 1].into(), 40_000, 80, Zone(3), 6);
            let hit = table.lookup(original, 1000).unwrap();
            assert_eq!(hit.other.dst(), std::net::Ipv4Addr::new(198, 51, 100, 1));
            assert_eq!(
                (hit.other.dst_port(), hit.other.zone(), hit.deadline),
                (50_000, Zone::OUTSIDE, 5000)
            );
        }
    }

    #[test]
    fn a_table_of_ipv6_has_a_file_as_long_as_it_needs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("conntrack6");
        let length = || std::fs::metadata(&path).unwrap().len();
        let step = 8 * ConnTable::<Tuple6>::words_of(STEP) as u64;
        let header = 8 * HEADER as u64;
        let (table, earlier) = adopt::<Tuple6>(&path, 262_144, 0);
        assert_eq!((earlier, length()), (EarlierRun::None, header));
        assert!(std::fs::metadata(&path).unwrap().blocks() <= 8, "a page");
        // One more than a step has.
        let new = |n: u32| {
            let [_, source, high, low] = n.to_be_bytes();
            let port = u16::from_be_bytes([high, low]);
            connection::<Tuple6>(source, port, port, 1000)
        };
        for n in 0..=STEP {
            assert!(matches!(table.insert(&new(n), 0), Insert::Inserted(_)), "{n}");
            assert_eq!(length(), header + step * u64::from(n / STEP + 1));
        }
        let last = table.lookup(new(STEP).reply, 0).unwrap();
        table.touch(&last, 1500, 0, 0, 1000);
        drop(table);

        // What a crash left of a third step.
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(header + 2 * step + 4096).unwrap();
        let (table, earlier) = adopt::<Tuple6>(&path, 65_536, 10);
        assert_eq!(earlier, EarlierRun::TakenOver { refused: 0 });
        assert_eq!((table.len(), length()), (STEP + 1, header + 2 * step));
        let last = table.lookup(new(STEP).original, 10).unwrap();
        let entry = table.entries(10).find(|entry| entry.id == last.id).unwrap();
        assert_eq!(entry.connection.bytes, [0, 1500]);
        drop(table);

        // Into less room, as many as it takes; and when all have expired nothing is left of it.
        let (table, _) = adopt::<Tuple6>(&path, 100, 10);
        assert_eq!(table.len(), 100);
        drop(table);
        let (table, _) = adopt::<Tuple6>(&path, 100, 1000);
        assert_eq!((table.len(), length()), (0, header));
    }

    #[test]
    fn two_files_are_one_run() {
        let taken = |refused| EarlierRun::TakenOver { refused };
        for (one, other, both) in [
            (EarlierRun::None, EarlierRun::None, EarlierRun::None),
            (taken(1), EarlierRun::None, taken(1)),
            (taken(1), taken(2), taken(3)),
            (taken(1), EarlierRun::Unsound, EarlierRun::Unsound),
            (EarlierRun::None, EarlierRun::Unsound, EarlierRun::Unsound),
        ] {
            assert_eq!((one.and(other), other.and(one)), (both, both));
        }
    }
}
