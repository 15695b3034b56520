//! Limits of what the daemon does beside moving frames: how many there may be at a time, how many there are, and
//! how often somebody found no place.
//!
//! A limit may be that of each of several (of every published mapping); the fullest of them is shown then.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::types::{LimitUse, Refusal};
use crate::config::ServiceLimits;

/// How many there may be of something.
#[derive(Debug)]
pub struct Limit {
    name: &'static str,
    limit: u32,
    refusal: Refusal,
    peak: AtomicU32,
    refused: AtomicU64,
    holders: Mutex<Vec<Weak<Semaphore>>>,
}

/// The places of one who has a limit for itself.
#[derive(Debug, Clone)]
pub struct Places {
    limit: Arc<Limit>,
    left: Arc<Semaphore>,
}

impl Limit {
    /// One with this name in `status`; `refusal` says what becomes of who finds no place.
    #[must_use]
    pub fn new(name: &'static str, limit: u32, refusal: Refusal) -> Arc<Self> {
        Arc::new(Self {
            name,
            limit,
            refusal,
            peak: AtomicU32::new(0),
            refused: AtomicU64::new(0),
            holders: Mutex::default(),
        })
    }

    /// All places, for one more who has them for itself.
    #[must_use]
    pub fn places(self: &Arc<Self>) -> Places {
        let left = Arc::new(Semaphore::new(usize::try_from(self.limit).unwrap_or(usize::MAX)));
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.retain(|holder| holder.strong_count() > 0);
        holders.push(Arc::downgrade(&left));
        drop(holders);
        Places { limit: Arc::clone(self), left }
    }

    /// How many there may be.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Notes that there are so many, of what counts itself.
    pub fn note(&self, now: u32) {
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    /// Somebody found no place.
    pub fn refuse(&self) {
        self.refuse_all(1);
    }

    /// So many found none.
    pub fn refuse_all(&self, many: u64) {
        self.refused.fetch_add(many, Ordering::Relaxed);
    }

    /// How full it is.
    #[must_use]
    pub fn view(&self) -> LimitUse {
        let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = holders.iter().filter_map(Weak::upgrade).map(|left| self.taken(&left));
        let now = taken.max().unwrap_or(0);
        drop(holders);
        self.view_of(now)
    }

    /// How full it is, of what counts itself.
    #[must_use]
    pub fn view_of(&self, now: u32) -> LimitUse {
        self.note(now);
        LimitUse {
            name: self.name.to_owned(),
            current: now.into(),
            peak: self.peak.load(Ordering::Relaxed).into(),
            limit: self.limit.into(),
            drop_reason: None,
            refusal: Some(self.refusal),
            refused: (self.refusal != Refusal::Waits).then(|| self.refused.load(Ordering::Relaxed)),
        }
    }

    fn taken(&self, left: &Semaphore) -> u32 {
        self.limit.saturating_sub(u32::try_from(left.available_permits()).unwrap_or(u32::MAX))
    }
}

impl Places {
    /// Takes a place until it is dropped; `None`: there is none, which is counted.
    #[must_use]
    pub fn try_take(&self) -> Option<OwnedSemaphorePermit> {
        self.try_take_all(1)
    }

    /// So many at once, or none.
    #[must_use]
    pub fn try_take_all(&self, many: u32) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.left).try_acquire_many_owned(many).ok();
        match place {
            Some(_) => self.limit.note(self.limit.taken(&self.left)),
            None => self.limit.refuse(),
        }
        place
    }

    /// How many are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left.available_permits()
    }

    /// The limit.
    #[must_use]
    pub fn limit(&self) -> &Limit {
        &self.limit
    }

    /// A place, as soon as there is one; nobody is refused.
    pub async fn take(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.left).acquire_owned().await.ok()?;
        self.limit.note(self.limit.taken(&self.left));
        Some(place)
    }
}

/// All of these limits of a daemon.
#[derive(Debug, Clone)]
pub struct Services {
    /// Readers of what happens to connections.
    pub event_readers: Arc<Limit>,
    /// Events about the switch that wait for the slowest reader.
    pub events: Arc<Limit>,
    /// Bytes of the NAT log that wait for a disk in trouble.
    pub nat_log_bytes: Arc<Limit>,
    /// Addresses of each family of a shared uplink.
    pub uplink_addresses: Arc<Limit>,
    /// Rules of a network's policy.
    pub policy_rules: Arc<Limit>,
    /// What the host itself sends through a published mapping.
    pub host: HostLimits,
}

/// Limits of each published mapping, for what the host itself sends through it.
#[derive(Debug, Clone)]
pub struct HostLimits {
    /// TCP connections.
    pub connections: Arc<Limit>,
    /// Clients over UDP.
    pub datagram_clients: Arc<Limit>,
    /// Ports.
    pub served_ports: Arc<Limit>,
    /// Ports of all mappings with more than that.
    pub held_ports: Places,
}

impl Services {
    /// As configured.
    #[must_use]
    pub fn new(limits: &ServiceLimits) -> Self {
        Self {
            event_readers: Limit::new("event_readers", limits.event_readers, Refusal::Busy),
            // The queue has that many places then.
            events: Limit::new("events", limits.events.next_power_of_two(), Refusal::Missed),
            nat_log_bytes: Limit::new("nat_log_bytes", limits.nat_log_bytes, Refusal::Missed),
            policy_rules: Limit::new("policy_rules", limits.policy_rules, Refusal::Conflict),
            uplink_addresses: Limit::new("uplink_addresses", ADDRESSES, Refusal::NotEntered),
            host: HostLimits::new(limits),
        }
    }

    /// Those whose places are counted.
    #[must_use]
    pub fn counted(&self) -> [&Limit; 5] {
        let HostLimits { connections, datagram_clients, served_ports, held_ports } = &self.host;
        [&self.event_readers, connections, datagram_clients, served_ports, held_ports.limit()]
    }

    /// Those of what counts itself.
    #[must_use]
    pub fn noted(&self) -> [&Limit; 4] {
        [&self.policy_rules, &self.events, &self.nat_log_bytes, &self.uplink_addresses]
    }
}

impl HostLimits {
    /// As configured.
    #[must_use]
    pub fn new(limits: &ServiceLimits) -> Self {
        let ServiceLimits { host_connections, host_datagram_clients, .. } = *limits;
        let held_ports = limits.held_ports.min(half_of_descriptors());
        Self {
            served_ports: Limit::new("served_ports", limits.served_ports, Refusal::NotServed),
            held_ports: Limit::new("held_ports", held_ports, Refusal::NotHeld).places(),
            connections: Limit::new("host_connections", host_connections, Refusal::Waits),
            datagram_clients: Limit::new(
                "host_datagram_clients",
                host_datagram_clients,
                Refusal::DatagramLost,
            ),
        }
    }
}

/// The other half is for everything else.
fn half_of_descriptors() -> u32 {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    u32::try_from(soft / 2).unwrap_or(u32::MAX)
}

/// The steering has no more slots.
#[allow(clippy::cast_possible_truncation, reason = "16")]
const ADDRESSES: u32 = dataplane::io::steer::MAX_ADDRESSES as u32;

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(limit: &Limit) -> (u64, u64, u64, Option<u64>) {
        let LimitUse { current, peak, limit, refused, .. } = limit.view();
        (current, peak, limit, refused)
    }

    #[tokio::test]
    async fn the_fullest_is_shown_and_who_finds_no_place_is_counted() {
        let limit = Limit::new("x", 2, Refusal::Busy);
        assert_eq!(uses(&limit), (0, 0, 2, Some(0)));
        let (one, other) = (limit.places(), limit.places());
        let taken = [one.try_take().unwrap(), other.try_take().unwrap(), other.try_take().unwrap()];
        assert_eq!(uses(&limit), (2, 2, 2, Some(0)));
        assert!(other.try_take().is_none() && one.try_take().is_some());
        assert_eq!(uses(&limit), (2, 2, 2, Some(1)));
        // Who waits gets the place that is given back.
        let waits = tokio::spawn({
            let other = other.clone();
            async move { other.take().await.is_some() }
        });
        tokio::task::yield_now().await;
        drop(taken);
        assert!(waits.await.unwrap());
        assert_eq!(uses(&limit), (0, 2, 2, Some(1)));
        // Several at once, or none.
        let both = one.try_take_all(2).unwrap();
        assert_eq!((uses(&limit).0, one.left(), other.left()), (2, 0, 2));
        drop(both);
        assert!(other.try_take_all(3).is_none());
        assert_eq!((uses(&limit), other.limit().limit()), ((0, 2, 2, Some(2)), 2));
        // Those who are gone have none.
        let place = one.try_take();
        drop((one, place));
        assert_eq!(uses(&limit).0, 0);
    }
}
