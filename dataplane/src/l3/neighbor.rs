//! Neighbors: which MAC an address on a link has.
//!
//! Endpoints' own addresses are configuration and never asked for; everything else is asked for.
//! The table is shared; frames that wait for an answer wait with the worker that received them
//! (`Waiting`). States follow RFC 4861 as Linux applies them to ARP, reduced to what matters here:
//! incomplete, reachable, and stale with a probe on the way.
//!
//! Limits ([`NeighborLimits`]): [`MAX_NEIGHBORS`] entries, of which [`MAX_FOR_ONE_NETWORK`] in one network,
//! [`MAX_FOR_ONE_UPLINK`] on one wire and [`MAX_UNHEARD`] on one link that never answered, and
//! [`KEPT_FOR_UPLINKS`] for uplinks alone; so whoever asks for addresses that nobody has harms its
//! own link only. On that link the oldest question of the port that asks for the most goes for one of
//! a port that asks for fewer. Of neighbors that nobody asked for, but who asked for us, there is a quarter
//! of a link's entries at most. Next hops that are configured are counted, but always have a place. An entry that never answered goes
//! when the last question has failed.

mod askers;
mod queue;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use self::askers::Askers;
pub(crate) use self::queue::{Held, Place, Waiting};
pub use self::queue::{MAX_WAITING, MAX_WAITING_FOR_ONE};
use crate::clock::Timestamp;
use crate::engine::{Link, NeighborEntry};
use crate::limits::Peak;
use crate::packet::types::{Mac, PortId};
use crate::sync::Mutex;

/// Entries at most; Linux' `gc_thresh3` is 1024 a family, we serve many networks.
pub const MAX_NEIGHBORS: u32 = 16_384;
/// Entries of one network at most: endpoints need none. Linux' `gc_thresh3`.
pub const MAX_FOR_ONE_NETWORK: u32 = 1024;
/// Entries of one uplink at most.
pub const MAX_FOR_ONE_UPLINK: u32 = 8192;
/// Entries of one link at most that have never answered: one question a second for each of them is
/// as much as a link is to bear.
pub const MAX_UNHEARD: u32 = 512;
/// Of so many parts of a link's entries, one is for neighbors that nobody asked for.
const TOLD_SHARE: u32 = 4;
/// Places that networks cannot take from uplinks.
pub const KEPT_FOR_UPLINKS: u32 = 4096;
/// How long an answer is believed. Linux `base_reachable_time`: 30 s.
const REACHABLE: Duration = Duration::from_secs(30);
/// Time between questions. Linux `retrans_time`: 1 s.
const RETRANSMIT: Duration = Duration::from_secs(1);
/// Questions asked before giving up. Linux `mcast_solicit`: 3.
const ATTEMPTS: u8 = 3;
/// An entry that nobody has used and that has said nothing for this long goes. Linux forgets after
/// 60 s (`gc_stale_time`), but only where many are known; nothing else makes room here.
const FORGET: Duration = Duration::from_secs(600);
/// The same for an entry without a MAC: all its questions have been asked by then.
const FORGET_SILENT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
struct Neighbor {
    mac: Option<Mac>,
    confirmed: Timestamp,
    asked: Timestamp,
    used: Timestamp,
    attempts: u8,
    origin: Origin,
}

/// For whom a neighbor is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// The engine itself: it is a next hop that is configured.
    Engine,
    /// Whoever sends by this port.
    Port(PortId),
}

/// How a neighbor came to be in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It was asked for, and has answered some day.
    Heard,
    /// It asked for us.
    Told,
    /// It was asked for and has never answered.
    Unheard(Asker, u64),
}

/// How many entries there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighborLimits {
    /// In all; a quarter of them is for uplinks alone.
    pub all: u32,
    /// Of one network.
    pub network: u32,
    /// Of one uplink.
    pub uplink: u32,
    /// Of one link, that have never answered.
    pub unanswered: u32,
}

impl NeighborLimits {
    const fn kept_for_uplinks(self) -> u32 {
        self.all / (MAX_NEIGHBORS / KEPT_FOR_UPLINKS)
    }
}

impl Default for NeighborLimits {
    fn default() -> Self {
        Self {
            all: MAX_NEIGHBORS,
            network: MAX_FOR_ONE_NETWORK,
            uplink: MAX_FOR_ONE_UPLINK,
            unanswered: MAX_UNHEARD,
        }
    }
}

/// How full the table is: each now and at most since the start, and what the limit is. Of links, the
/// fullest one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NeighborUses {
    pub(crate) all: ((u32, u32), u32),
    pub(crate) network: ((u32, u32), u32),
    pub(crate) uplink: ((u32, u32), u32),
    pub(crate) unheard: ((u32, u32), u32),
}

/// The most that there have been.
#[derive(Debug, Default)]
struct Peaks {
    all: Peak,
    network: Peak,
    uplink: Peak,
    unheard: Peak,
}

/// How many entries a link has.
#[derive(Debug, Default)]
struct LinkUse {
    entries: AtomicU32,
    told: AtomicU32,
    askers: Mutex<Askers>,
}

/// What the table says about a neighbor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// It is here.
    Known(Mac),
    /// It is here, but confirm it with a question.
    KnownAsk(Mac),
    /// Not known: wait, and ask if `ask`.
    Unknown {
        /// Whether a question is due.
        ask: bool,
    },
    /// It did not answer.
    Failed,
    /// The table is full.
    Full,
}

/// The table. Shared by all workers and control.
#[derive(Debug, Default)]
pub struct Neighbors {
    table: DashMap<(Link, IpAddr), Neighbor>,
    /// Locked while an entry of `table` is, never the other way round.
    links: DashMap<Link, LinkUse>,
    /// Entries of all links.
    entries: AtomicU32,
    changes: AtomicU64,
    limits: NeighborLimits,
    peaks: Peaks,
}

impl Neighbors {
    /// An empty table.
    #[must_use]
    pub fn new(limits: NeighborLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// A copy to try things out on.
    pub(crate) fn copy(&self) -> Self {
        let same = |counter: &AtomicU32| AtomicU32::new(counter.load(Ordering::Relaxed));
        let links = self.links.iter().map(|link| {
            let askers = Mutex::new(link.askers.lock().clone());
            let (entries, told) = (same(&link.entries), same(&link.told));
            (*link.key(), LinkUse { entries, told, askers })
        });
        Self {
            table: self.table.clone(),
            links: links.collect(),
            entries: same(&self.entries),
            changes: AtomicU64::new(self.changes()),
            limits: self.limits,
            peaks: Peaks::default(),
        }
    }

    /// How full it is.
    pub(crate) fn uses(&self) -> NeighborUses {
        let (mut network, mut uplink, mut unheard) = (0, 0, 0);
        for link in &self.links {
            let has = link.entries.load(Ordering::Relaxed);
            match link.key() {
                Link::Network(_) => network = has.max(network),
                Link::Uplink(_) => uplink = has.max(uplink),
            }
            unheard = link.askers.lock().questions().max(unheard);
        }
        let all = self.entries.load(Ordering::Relaxed);
        let Peaks { all: most, network: most_in_one, uplink: most_at_one, unheard: most_unheard } =
            &self.peaks;
        NeighborUses {
            all: ((all, most.value()), self.limits.all),
            network: ((network, most_in_one.value()), self.limits.network),
            uplink: ((uplink, most_at_one.value()), self.limits.uplink),
            unheard: ((unheard, most_unheard.value()), self.limits.unanswered),
        }
    }

    /// What is known about `address`; notes the question as asked when it says so.
    pub fn resolve(&self, link: Link, address: IpAddr, asker: Asker, now: Timestamp) -> Resolution {
        match self.reachable(link, address, now) {
            Some((mac, _)) => Resolution::Known(mac),
            None => self.resolve_slow(link, address, asker, now),
        }
    }

    /// The MAC of a neighbor that has confirmed itself lately, and until when to believe it.
    fn reachable(&self, link: Link, address: IpAddr, now: Timestamp) -> Option<(Mac, Timestamp)> {
        let neighbor = self.table.get(&(link, address))?;
        let until = neighbor.confirmed + REACHABLE;
        neighbor.mac.filter(|_| now < until).map(|mac| (mac, until))
    }

    fn resolve_slow(
        &self,
        link: Link,
        address: IpAddr,
        asker: Asker,
        now: Timestamp,
    ) -> Resolution {
        let resolution = self.try_resolve(link, address, asker, now);
        if resolution == Resolution::Full && self.push_out_for(link, asker) {
            return self.try_resolve(link, address, asker, now);
        }
        resolution
    }

    fn try_resolve(&self, link: Link, address: IpAddr, asker: Asker, now: Timestamp) -> Resolution {
        let mut entry = match self.table.entry((link, address)) {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(entry) => {
                let Some(origin) = self.take_place(link, address, Some(asker)) else {
                    return Resolution::Full;
                };
                entry.insert(Neighbor {
                    mac: None,
                    confirmed: now,
                    asked: now,
                    used: now,
                    attempts: 1,
                    origin,
                });
                return Resolution::Unknown { ask: true };
            }
        };
        let neighbor = entry.get_mut();
        neighbor.used = now;
        let due = now.since(neighbor.asked) >= RETRANSMIT;
        if due && neighbor.attempts >= ATTEMPTS {
            // Unanswered: tell this sender, and begin anew with the next frame. One that has
            // answered before keeps its place, so that no flood of questions takes it meanwhile.
            let was_known = neighbor.mac.take().is_some();
            neighbor.attempts = 0;
            if was_known {
                self.changes.fetch_add(1, Ordering::Release);
            }
            if let origin @ Origin::Unheard(..) = neighbor.origin {
                self.leave_place(link, origin);
                entry.remove();
            }
            return Resolution::Failed;
        }
        let ask = due || neighbor.attempts == 0;
        if ask {
            neighbor.asked = now;
            neighbor.attempts += 1;
        }
        match neighbor.mac {
            Some(mac) if ask => Resolution::KnownAsk(mac),
            Some(mac) => Resolution::Known(mac),
            None => Resolution::Unknown { ask },
        }
    }

    /// Notes what `address` said of itself. Only neighbors that were asked for, or that speak to us
    /// (`enter`), are entered; others are only updated, so that nobody can fill the table with
    /// answers that nobody asked for. A MAC that is known already, or of somebody whom no frame was sent to,
    /// is no change: it ends nobody's shortcuts.
    pub fn confirm(
        &self,
        link: Link,
        address: impl Into<IpAddr>,
        mac: Mac,
        enter: bool,
        now: Timestamp,
    ) {
        let address = address.into();
        if !mac.is_valid_source() || address.is_unspecified() || address.is_multicast() {
            return;
        }
        match self.table.entry((link, address)) {
            Entry::Occupied(mut entry) => self.hear(link, entry.get_mut(), mac, now),
            Entry::Vacant(_) if !enter => {}
            Entry::Vacant(entry) => {
                let Some(origin) = self.take_place(link, address, None) else { return };
                let (mac, confirmed, asked, used) = (Some(mac), now, now, now);
                entry.insert(Neighbor { mac, confirmed, asked, used, attempts: 0, origin });
            }
        }
    }

    /// Notes what `address` said of itself though nobody had asked: another MAC than the known one is used, and
    /// confirmed by a question; the same is no news (RFC 4861 §7.2.5: stale, and unchanged). Enters nothing.
    pub fn announced(&self, link: Link, address: impl Into<IpAddr>, mac: Mac, now: Timestamp) {
        if !mac.is_valid_source() {
            return;
        }
        let Entry::Occupied(mut entry) = self.table.entry((link, address.into())) else { return };
        if entry.get().mac == Some(mac) {
            return;
        }
        let confirmed =
            now.as_nanos().saturating_sub(u64::try_from(REACHABLE.as_nanos()).unwrap_or(0));
        self.hear(link, entry.get_mut(), mac, Timestamp::from_nanos(confirmed));
    }

    /// A known neighbor has this MAC, as was confirmed then.
    fn hear(&self, link: Link, neighbor: &mut Neighbor, mac: Mac, confirmed: Timestamp) {
        if let Origin::Unheard(asker, number) = neighbor.origin
            && let Some(has) = self.links.get(&link)
        {
            has.askers.lock().end(asker, number);
        }
        if neighbor.origin != Origin::Told {
            neighbor.origin = Origin::Heard;
        }
        let is_news = neighbor.mac.replace(mac) != Some(mac);
        neighbor.confirmed = confirmed;
        neighbor.asked = confirmed;
        neighbor.attempts = 0;
        if is_news {
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Takes a place for an entry of `link`, which somebody asks for or which asked for us; `None`: there
    /// is none. Workers that ask at the same time may overstep a limit by their number.
    fn take_place(&self, link: Link, address: IpAddr, asker: Option<Asker>) -> Option<Origin> {
        let (Peaks { network, uplink, .. }, limits) = (&self.peaks, self.limits);
        let (own, all, most) = match link {
            Link::Network(_) => (limits.network, limits.all - limits.kept_for_uplinks(), network),
            Link::Uplink(_) => (limits.uplink, limits.all, uplink),
        };
        let has = self.links.entry(link).or_default();
        let is_full = self.entries.load(Ordering::Relaxed) >= all
            || has.entries.load(Ordering::Relaxed) >= own;
        let origin = match asker {
            _ if is_full && asker != Some(Asker::Engine) => return None,
            None if has.told.load(Ordering::Relaxed) >= (own / TOLD_SHARE).max(1) => return None,
            None => {
                has.told.fetch_add(1, Ordering::Relaxed);
                Origin::Told
            }
            Some(asker) => {
                let mut askers = has.askers.lock();
                let number = askers.begin(asker, address, limits.unanswered)?;
                self.peaks.unheard.note(askers.questions());
                Origin::Unheard(asker, number)
            }
        };
        self.peaks.all.note(self.entries.fetch_add(1, Ordering::Relaxed) + 1);
        most.note(has.entries.fetch_add(1, Ordering::Relaxed) + 1);
        Some(origin)
    }

    fn leave_place(&self, link: Link, origin: Origin) {
        self.entries.fetch_sub(1, Ordering::Relaxed);
        if let Some(has) = self.links.get(&link) {
            has.entries.fetch_sub(1, Ordering::Relaxed);
            match origin {
                Origin::Heard => {}
                Origin::Told => {
                    has.told.fetch_sub(1, Ordering::Relaxed);
                }
                Origin::Unheard(asker, number) => has.askers.lock().end(asker, number),
            }
        }
    }

    /// Ends a question of somebody who asks for more than `asker` on a link that bears no more; false:
    /// nobody does, or that is not what the place is missing for.
    #[cold]
    fn push_out_for(&self, link: Link, asker: Asker) -> bool {
        let Asker::Port(port) = asker else { return false };
        let heavier = self.links.get(&link).and_then(|has| {
            let askers = has.askers.lock();
            if askers.questions() < self.limits.unanswered {
                None
            } else {
                askers.heavier_than(port)
            }
        });
        let is_unheard = |neighbor: &Neighbor| matches!(neighbor.origin, Origin::Unheard(..));
        let ended = heavier.and_then(|address| {
            self.table.remove_if(&(link, address), |_, neighbor| is_unheard(neighbor))
        });
        if let Some((_, neighbor)) = &ended {
            self.leave_place(link, neighbor.origin);
        }
        ended.is_some()
    }

    /// Rises when somebody who was asked for becomes known, with another MAC of a known neighbor, when one fails that
    /// was known, and when a link is forgotten: a worker with waiting frames looks at them when it moved, and what it
    /// remembers is no longer believed. What says nothing new leaves it alone, as often as it is said.
    #[must_use]
    #[inline]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The MAC of a neighbor without asking.
    #[must_use]
    pub fn peek(&self, link: Link, address: IpAddr) -> Option<Mac> {
        self.table.get(&(link, address)).and_then(|neighbor| neighbor.mac)
    }

    /// Forgets what nobody has used for long.
    pub fn forget_unused(&self, now: Timestamp) {
        self.retain(|_, neighbor| {
            let idle = now.since(neighbor.used.max(neighbor.confirmed));
            idle < if neighbor.mac.is_some() { FORGET } else { FORGET_SILENT }
        });
    }

    fn retain(&self, keep: impl Fn(Link, &Neighbor) -> bool) {
        self.table.retain(|(link, _), neighbor| {
            let stays = keep(*link, neighbor);
            if !stays {
                self.leave_place(*link, neighbor.origin);
            }
            stays
        });
    }

    /// Forgets all of a link.
    pub fn forget_link(&self, link: Link) {
        self.retain(|have, _| have != link);
        self.links.remove_if(&link, |_, has| has.entries.load(Ordering::Relaxed) == 0);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self, now: Timestamp) -> Vec<NeighborEntry> {
        let view = |((link, address), n): (&(Link, IpAddr), &Neighbor)| NeighborEntry {
            link: *link,
            address: *address,
            mac: n.mac,
            age: now.since(n.confirmed),
        };
        let mut entries: Vec<_> = self.table.iter().map(|e| view(e.pair())).collect();
        entries.sort_by_key(|e| (e.link, e.address));
        entries
    }
}

/// What one worker resolved lately, so that a frame takes no lock of the shared table: the next hops
/// of a host are few.
#[derive(Debug)]
pub(crate) struct Remembered {
    slots: [Option<Reachable>; REMEMBERED],
    changes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Reachable {
    link: Link,
    address: IpAddr,
    mac: Mac,
    until: Timestamp,
}

/// Neighbors that a worker remembers, by the last octet of their address.
const REMEMBERED: usize = 64;

impl Default for Remembered {
    fn default() -> Self {
        Self { slots: [None; REMEMBERED], changes: 0 }
    }
}

impl Remembered {
    /// As [`Neighbors::resolve`].
    #[inline(always)]
    pub(crate) fn resolve(
        &mut self,
        neighbors: &Neighbors,
        link: Link,
        address: IpAddr,
        asker: impl FnOnce() -> Asker,
        now: Timestamp,
    ) -> Resolution {
        let changes = neighbors.changes();
        if changes != self.changes {
            self.slots.fill(None);
            self.changes = changes;
        }
        let last = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        let slot = self.slots.get_mut(usize::from(last) % REMEMBERED);
        if let Some(Some(known)) = &slot
            && known.address == address
            && known.link == link
            && now < known.until
        {
            return Resolution::Known(known.mac);
        }
        let Some((mac, until)) = neighbors.reachable(link, address, now) else {
            return neighbors.resolve_slow(link, address, asker(), now);
        };
        if let Some(slot) = slot {
            *slot = Some(Reachable { link, address, mac, until });
        }
        Resolution::Known(mac)
    }
}

#[cfg(test)]
mod tests;
