//! The NAT log: one line when an inside port is given an outside one, and one when that ends (RFC 6888 §4).
//!
//! No line has a destination: who spoke from an outside port at a time can be told, not with whom. A mapping
//! that serves several connections at once is told once. Lines are written by a thread of control from what
//! the engine tells it; traffic never waits for a disk. Each run begins with a line `start` and what it found:
//! of earlier mappings, those that are not told again have ended.
//!
//! Limits: the file's size, after which it is kept as one older file; lines that wait for a disk in trouble.
//! Beyond that lines are lost, which is counted, said once in the daemon's log, and shown by `status`.

mod journal;
mod mappings;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dataplane::conntrack::Watch;
use dataplane::packet::types::NetworkId;

use crate::api::types::IpProtocol;
use crate::config::Daemon;
use crate::name::Name;
use crate::switch::Switch;
use journal::Journal;
use mappings::{Mapping, Mappings, Told};

/// How often events are taken while there are few.
const PAUSE: Duration = Duration::from_millis(100);

/// The same while there are so many that the queue could fill meanwhile.
const SHORT_PAUSE: Duration = Duration::from_millis(5);

/// So many.
const BUSY: usize = 256;

/// After events were missed, all connections are looked at no oftener than this: it is work.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Events that are taken before their lines are written: half of the queue.
const ROUND: usize = 4096;

/// The date and time of day, UTC, in milliseconds (RFC 3339).
fn utc(unix_nanos: u64) -> String {
    let millis = unix_nanos / 1_000_000;
    let (days, of_day) = (millis / 86_400_000, millis % 86_400_000);
    // Days since 0000-03-01, so that a leap day is the last of its year; 400 years are 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let date = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (secs, millis) = (of_day / 1000, of_day % 1000);
    let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

fn line(
    text: &mut String,
    unix_nanos: u64,
    told: Told,
    mapping: &Mapping,
    names: &HashMap<NetworkId, Name>,
) {
    let Mapping { network, proto, inside, outside } = mapping;
    let network = names.get(network).map_or("-", Name::as_str);
    let what = match told {
        Told::Allocated => "allocate",
        Told::Released => "release",
    };
    let proto = IpProtocol(*proto);
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{} {what} network={network} proto={proto} inside={inside} outside={outside}",
        utc(unix_nanos)
    );
}

/// What others see of the log and say to it.
#[derive(Debug, Default)]
pub struct NatLog {
    path: PathBuf,
    /// Octets after which the file is set aside.
    size: u64,
    reopen: AtomicBool,
    stop: AtomicBool,
    /// Events or lines that are not in the file, and never will be.
    lost: AtomicU64,
    /// The file cannot be written at the moment.
    trouble: AtomicBool,
    /// Octets that wait for it.
    waiting: AtomicU32,
}

impl NatLog {
    /// The log that the configuration asks for.
    #[must_use]
    pub fn of(config: &Daemon) -> Option<Arc<Self>> {
        let path = config.nat_log.clone()?;
        let size = u64::from(config.nat_log_size) << 20;
        Some(Arc::new(Self { path, size, ..Self::default() }))
    }

    /// Opens the file anew with the next line.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
    }

    /// Ends with what has been told until now.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Octets that wait for the disk.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// What a person should know.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let lost = self.lost.load(Ordering::Relaxed);
        let path = self.path.display();
        if self.trouble.load(Ordering::Relaxed) {
            return Some(format!("nat_log {path} cannot be written; {lost} lines are lost"));
        }
        (lost > 0).then(|| format!("nat_log {path}: {lost} lines are lost"))
    }

    /// Writes until it is stopped: to be run by a thread of its own.
    pub fn run(&self, switch: &Switch) {
        let Some(watch) = switch.engine().watch_connections(false) else {
            // Others have fewer places than there are.
            tracing::error!("nat_log {}: no place to be told of connections", self.path.display());
            self.trouble.store(true, Ordering::Relaxed);
            return;
        };
        let limit = Arc::clone(&switch.services().nat_log_bytes);
        let mut journal = Journal::new(self.path.clone(), self.size, limit);
        let mut scribe = Scribe {
            switch,
            mappings: Mappings::default(),
            text: format!("{} start\n", utc(now())),
            renewed: Instant::now(),
            is_stale: false,
        };
        scribe.renew();
        loop {
            let over = self.stop.load(Ordering::Acquire);
            if self.reopen.swap(false, Ordering::Relaxed) {
                journal.reopen();
            }
            let (taken, missed) = scribe.take(&watch);
            let lost = journal.write(&scribe.text);
            scribe.text.clear();
            self.lost.fetch_add(missed + lost, Ordering::Relaxed);
            self.trouble.store(journal.is_in_trouble(), Ordering::Relaxed);
            self.waiting.store(journal.waiting(), Ordering::Relaxed);
            if over && taken < ROUND {
                return;
            }
            if taken < ROUND {
                std::thread::sleep(if taken < BUSY { PAUSE } else { SHORT_PAUSE });
            }
        }
    }
}

/// Turns what has happened into lines.
struct Scribe<'a> {
    switch: &'a Switch,
    mappings: Mappings,
    text: String,
    /// When all connections were looked at last.
    renewed: Instant,
    /// Events were missed since.
    is_stale: bool,
}

impl Scribe<'_> {
    /// How many events there were, and how many were missed.
    fn take(&mut self, watch: &Watch) -> (usize, u64) {
        let mut taken = 0;
        let mut events = std::iter::from_fn(|| watch.next_event()).take(ROUND).peekable();
        if events.peek().is_some() {
            let names = self.switch.network_names();
            for event in events {
                taken += 1;
                let text = &mut self.text;
                self.mappings.note(&event, &mut |told, mapping| {
                    line(text, event.unix_nanos, told, mapping, &names);
                });
            }
        }
        let missed = watch.take_missed();
        if missed > 0 {
            // Writing to a string cannot fail.
            let _ = writeln!(self.text, "{} lost {missed} events", utc(now()));
            self.is_stale = true;
        }
        // Not before what waits is written: it happened before what a look would show.
        if self.is_stale && taken < ROUND && self.renewed.elapsed() >= LOOK_PAUSE {
            self.renew();
        }
        (taken, missed)
    }

    /// Tells what has changed unseen. What is heard of it once more later changes nothing.
    fn renew(&mut self) {
        let names = self.switch.network_names();
        let now = now();
        let text = &mut self.text;
        self.mappings.renew(&self.switch.engine().connections(), &mut |told, mapping| {
            line(text, now, told, mapping, &names);
        });
        self.renewed = Instant::now();
        self.is_stale = false;
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc() {
        for (secs, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_799, "2000-02-29T23:59:59.000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(secs * 1_000_000_000), expected);
        }
        assert_eq!(utc(1_763_766_000_123_456_789), "2025-11-21T23:00:00.123Z");
    }

    /// Rows: RFC 6888 REQ-12, REQ-13, REQ-14.
    #[test]
    fn a_line_says_who_spoke_from_where_and_not_with_whom() {
        let mapping = Mapping {
            network: NetworkId(1),
            proto: 6,
            inside: "10.0.0.2:40000".parse().unwrap(),
            outside: "[2001:db8::1]:50000".parse().unwrap(),
        };
        let mut text = String::new();
        let names = HashMap::from([(NetworkId(1), "app".parse().unwrap())]);
        line(&mut text, 1_763_766_000_123_456_789, Told::Allocated, &mapping, &names);
        assert_eq!(
            text,
            "2025-11-21T23:00:00.123Z allocate network=app proto=tcp inside=10.0.0.2:40000 \
             outside=[2001:db8::1]:50000\n"
        );
    }
}
