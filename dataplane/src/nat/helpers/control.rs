//! Control connections of FTP: what is known of each, as long as it lives.
//!
//! A connection without an entry here, because there were too many when it began, is one without a helper;
//! it gets an entry once there is room. One whose numbers are skewed always has one: the file that outlives
//! the process keeps none that are ([`is_skewed`]).

use std::sync::atomic::{AtomicU32, Ordering};

use dashmap::DashMap;
use dashmap::mapref::one::RefMut;
use rustc_hash::FxBuildHasher;

use super::skew::Flow;
use crate::conntrack::entry::is_skewed;
use crate::conntrack::{ConnId, Direction, Hit, Key};
use crate::limits::Peak;

/// Control connections that are followed at a time.
pub(crate) const MAX_CONTROLS: u32 = 1024;

/// A connection, and whether it is one of IPv6: each family counts its own.
pub(super) type Id = (bool, ConnId);

/// The number of a connection here.
pub(super) fn id_of<K: Key>(hit: &Hit<K>) -> Id {
    let server: std::net::IpAddr = hit.other.src().into();
    (server.is_ipv6(), hit.id)
}

/// Both directions of one.
#[derive(Debug, Clone, Default)]
pub(super) struct Control {
    original: Flow,
    reply: Flow,
}

impl Control {
    pub(super) fn flow(&mut self, direction: Direction) -> &mut Flow {
        match direction {
            Direction::Original => &mut self.original,
            Direction::Reply => &mut self.reply,
        }
    }

    /// A SYN while the connection begins: `next` is the number behind it, `acked` what it acknowledges. With
    /// other numbers than before it begins anew, and nothing was changed in it yet.
    pub(super) fn open(&mut self, direction: Direction, next: u32, acked: Option<u32>) {
        if !self.flow(direction).starts_at(next) {
            *self.flow(direction) = Flow::starting_at(next);
            if direction == Direction::Original && acked.is_none() {
                self.reply = Flow::default();
            }
        }
        let other = self.flow(direction.reversed());
        if let Some(acked) = acked.filter(|acked| !other.starts_at(*acked)) {
            *other = Flow::starting_at(acked);
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Controls {
    /// Numbers of connections are nobody's choice: no keyed hash.
    all: DashMap<Id, Box<Control>, FxBuildHasher>,
    count: AtomicU32,
    peak: Peak,
}

impl Controls {
    /// What is known of a connection.
    pub(super) fn get(&self, id: Id) -> Option<RefMut<'_, Id, Box<Control>>> {
        self.all.get_mut(&id)
    }

    /// The same; it is known from now on, if there is room.
    pub(super) fn get_or_begin<K: Key>(
        &self,
        hit: &Hit<K>,
    ) -> Option<RefMut<'_, Id, Box<Control>>> {
        let id = id_of(hit);
        let known = self.get(id);
        if known.is_some() || is_skewed(hit.flags()) || !self.take_place() {
            return known;
        }
        let mut is_new = false;
        let control = self.all.entry(id).or_insert_with(|| {
            is_new = true;
            Box::default()
        });
        if !is_new {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        Some(control)
    }

    fn take_place(&self) -> bool {
        let taken = |count: u32| (count < MAX_CONTROLS).then_some(count + 1);
        let before = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        if let Ok(before) = before {
            self.peak.note(before + 1);
        }
        before.is_ok()
    }

    /// Forgets those of which `is_live` says that they have ended.
    pub(super) fn expire(&self, is_live: impl Fn(Id) -> bool) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.all.retain(|id, _| {
            let stays = is_live(*id);
            if !stays {
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
            stays
        });
    }

    /// How many there are, and were at most.
    pub(super) fn uses(&self) -> (u32, u32) {
        (self.count.load(Ordering::Relaxed), self.peak.value())
    }

    /// A copy to try things out on.
    pub(super) fn copy(&self) -> Self {
        let all: DashMap<_, _, _> =
            self.all.iter().map(|entry| (*entry.key(), entry.value().clone())).collect();
        let count = AtomicU32::new(u32::try_from(all.len()).unwrap_or(u32::MAX));
        Self { all, count, peak: Peak::default() }
    }
}
