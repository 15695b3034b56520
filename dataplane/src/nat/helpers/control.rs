//! Control connections of FTP: what is known of each, as long as it lives.
//!
//! A connection without an entry here, because there were too many when it began, is one without a helper;
//! it gets an entry once there is room. One whose numbers are skewed always has one: the file that outlives
//! the process keeps none that are ([`is_skewed`]). An entry is made once the handshake is complete, and each
//! inside address has a share of them, so that neither a flood of SYNs nor one container takes all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::one::RefMut;
use rustc_hash::FxBuildHasher;

use super::expect::SHARE;
use super::skew::{Flow, before};
use crate::conntrack::entry::is_skewed;
use crate::conntrack::{ConnId, Direction, Hit, Key};
use crate::limits::Peak;
use crate::sync::Mutex;

/// A connection, and whether it is one of IPv6: each family counts its own.
pub(super) type Id = (bool, ConnId);

/// The number of a connection here.
pub(super) fn id_of<K: Key>(hit: &Hit<K>) -> Id {
    let server: IpAddr = hit.other.src().into();
    (server.is_ipv6(), hit.id)
}

/// Both directions of one.
#[derive(Debug, Clone, Default)]
pub(super) struct Control {
    original: Flow,
    reply: Flow,
    /// The client's own number of its last line that asked where the server can be called.
    asked: Option<u32>,
    /// It was not answered.
    awaits: bool,
}

impl Control {
    /// One whose sides begin with these numbers.
    pub(super) fn starting_at(original: u32, reply: u32) -> Self {
        let [original, reply] = [original, reply].map(Flow::starting_at);
        Self { original, reply, ..Self::default() }
    }

    pub(super) fn flow(&mut self, direction: Direction) -> &mut Flow {
        match direction {
            Direction::Original => &mut self.original,
            Direction::Reply => &mut self.reply,
        }
    }

    /// The client has asked, with this number, where the server can be called. The same again is not new.
    pub(super) fn note_asked(&mut self, seq: u32) {
        if self.asked.is_none_or(|last| before(last, seq)) {
            self.asked = Some(seq);
            self.awaits = true;
        }
    }

    /// The server has answered that.
    pub(super) fn note_answered(&mut self) {
        self.awaits = false;
    }

    /// Whether what this side says of where it can be called is believed: of a server only what was asked for.
    pub(super) fn may_announce(&self, direction: Direction) -> bool {
        direction == Direction::Original || self.awaits
    }

    /// A SYN while the connection begins: `next` is the number behind it, `acked` what it acknowledges. With
    /// other numbers than before it begins anew, and nothing was changed in it yet.
    pub(super) fn open(&mut self, direction: Direction, next: u32, acked: Option<u32>) {
        if !self.flow(direction).starts_at(next) {
            *self.flow(direction) = Flow::starting_at(next);
            if direction == Direction::Original && acked.is_none() {
                let original = std::mem::take(&mut self.original);
                *self = Self { original, ..Self::default() };
            }
        }
        let other = self.flow(direction.reversed());
        if let Some(acked) = acked.filter(|acked| !other.starts_at(*acked)) {
            *other = Flow::starting_at(acked);
        }
    }
}

/// Whose a connection is: the inside address that began it, else the one that it was led to.
pub(super) fn owner_of<K: Key>(tuple: K, hit: &Hit<K>) -> IpAddr {
    let (original, reply) = match hit.direction {
        Direction::Original => (tuple, hit.other),
        Direction::Reply => (hit.other, tuple),
    };
    let owner = if original.zone().inside().is_some() { original } else { reply };
    owner.src().into()
}

/// An entry, and whose it is.
type Owned = (IpAddr, Control);

/// How many entries there are, and how many of them are whose. The keys are our own endpoints' addresses.
#[derive(Debug, Default)]
struct Places {
    limit: u32,
    count: u32,
    by_owner: HashMap<IpAddr, u32>,
    peak: Peak,
}

impl Places {
    fn take(&mut self, owner: IpAddr) -> bool {
        let share = self.by_owner.get(&owner).copied().unwrap_or(0);
        let is_free = self.count < self.limit && share < (self.limit / SHARE).max(1);
        if is_free {
            self.count += 1;
            self.by_owner.insert(owner, share + 1);
            self.peak.note(self.count);
        }
        is_free
    }

    fn give_back(&mut self, owner: IpAddr) {
        self.count = self.count.saturating_sub(1);
        let share = self.by_owner.remove(&owner).unwrap_or(0).saturating_sub(1);
        if share > 0 {
            self.by_owner.insert(owner, share);
        }
    }
}

/// All of them. The places are locked last, and only where an entry is made or goes.
#[derive(Debug, Default)]
pub(crate) struct Controls {
    /// Numbers of connections are nobody's choice: no keyed hash.
    all: DashMap<Id, Box<Owned>, FxBuildHasher>,
    places: Mutex<Places>,
    /// Those for which there was no room when they began.
    refused: AtomicU64,
}

/// An entry, locked.
pub(super) struct Locked<'a>(RefMut<'a, Id, Box<Owned>>);

impl std::ops::Deref for Locked<'_> {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.0.1
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Control {
        &mut self.0.1
    }
}

impl Controls {
    /// None yet, and at most so many.
    pub(super) fn new(limit: u32) -> Self {
        Self { places: Mutex::new(Places { limit, ..Places::default() }), ..Self::default() }
    }

    /// One began that is not followed.
    pub(super) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How many that were.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// What is known of a connection.
    pub(super) fn get(&self, id: Id) -> Option<Locked<'_>> {
        self.all.get_mut(&id).map(Locked)
    }

    /// One of which nothing is known so far is known from now on, if there is room.
    pub(super) fn begin<K: Key>(
        &self,
        hit: &Hit<K>,
        owner: IpAddr,
        control: Control,
    ) -> Option<Locked<'_>> {
        if is_skewed(hit.flags()) || !self.places.lock().take(owner) {
            return None;
        }
        let mut is_new = false;
        let entry = self.all.entry(id_of(hit)).or_insert_with(|| {
            is_new = true;
            Box::new((owner, control))
        });
        // Another worker was faster.
        if !is_new {
            self.places.lock().give_back(owner);
        }
        Some(Locked(entry))
    }

    /// Forgets those of which `is_live` says that they have ended.
    pub(super) fn expire(&self, is_live: impl Fn(Id) -> bool) {
        if self.uses().0 == 0 {
            return;
        }
        self.all.retain(|id, entry| {
            let stays = is_live(*id);
            if !stays {
                self.places.lock().give_back(entry.0);
            }
            stays
        });
    }

    /// How many there are, and were at most.
    pub(super) fn uses(&self) -> (u32, u32) {
        let places = self.places.lock();
        (places.count, places.peak.value())
    }

    /// A copy to try things out on.
    pub(super) fn copy(&self) -> Self {
        let all: DashMap<_, _, _> =
            self.all.iter().map(|entry| (*entry.key(), entry.value().clone())).collect();
        let limit = self.places.lock().limit;
        let mut places = Places { limit, ..Places::default() };
        for entry in &all {
            places.take(entry.value().0);
        }
        Self { all, places: Mutex::new(places), refused: AtomicU64::default() }
    }
}
