//! One worker's fragments that came before the first of their datagram.
//!
//! They are kept as copies: a frame that waits for a neighbor takes a buffer, and buffers are few; of these one
//! datagram may send thousands. What comes back is a frame again, in the order in which it came.
//!
//! Limits: so many bytes a worker ([`EngineOptions::fragment_bytes`](crate::EngineOptions)), and a [`SHARE`] of them of
//! what came in by one port. At the latter the port's
//! oldest datagram goes, at the former that of the port with the most: fragments of a sound sender follow each other
//! at once, so that what waits longest waits in vain, and a port that floods pushes out its own.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use rustc_hash::FxBuildHasher;

use super::{Datagram, News};
use crate::clock::Timestamp;
use crate::frame::Frame;
use crate::packet::types::PortId;
use crate::pipeline::From;

/// What came in by one port may have one of so many parts: of 4 MiB a MiB. A datagram in fragments of eight octets
/// has 1.4 MB, half of which may overtake the first.
pub(crate) const SHARE: u32 = 4;
/// What a fragment is counted for besides its bytes.
const OVERHEAD: usize = 128;
/// How long after the last one came another worker's news is looked for often.
const SOON: Duration = Duration::from_millis(100);

/// A fragment that waits. Its virtio-net header says nothing: see `packet::offload::admit`.
#[derive(Debug)]
pub(crate) struct Held {
    bytes: Box<[u8]>,
    /// Where it came from.
    pub(crate) from: From,
    pub(crate) ingress: PortId,
}

impl Held {
    pub(crate) fn new(frame: &Frame, from: From) -> Self {
        Self { bytes: frame.bytes().into(), from, ingress: frame.ingress }
    }

    /// Makes `frame` what came in.
    pub(crate) fn restore(&self, frame: &mut Frame) {
        frame.copy_from(&self.bytes);
        frame.ingress = self.ingress;
    }

    fn cost(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }
}

/// The waiting fragments of one datagram, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) datagram: Datagram,
    pub(crate) number: u64,
    pub(crate) held: Vec<Held>,
    /// By which the first of them came, and which all of them are counted for.
    port: PortId,
    bytes: usize,
}

#[derive(Debug)]
struct Share {
    port: PortId,
    bytes: usize,
    /// Numbers of datagrams: the oldest first.
    groups: BTreeSet<u64>,
}

/// One worker's.
#[derive(Debug)]
pub(crate) struct Early {
    worker: usize,
    /// Bytes at most.
    limit: usize,
    /// By the number of the datagram, which we count ourselves.
    groups: HashMap<u64, Group, FxBuildHasher>,
    shares: Vec<Share>,
    fragments: usize,
    bytes: usize,
    /// How full it is has changed since it was last told.
    is_news: bool,
    /// The most bytes since then, of all and of one port.
    most: [usize; 2],
    newest: Timestamp,
    /// Emptied, so that it is not allocated again.
    news: Vec<(u64, News)>,
}

impl Early {
    pub(crate) fn new(worker: usize, limit: usize) -> Self {
        Self {
            worker,
            limit,
            groups: HashMap::default(),
            shares: Vec::new(),
            fragments: 0,
            bytes: 0,
            is_news: false,
            most: [0; 2],
            newest: Timestamp::ZERO,
            news: Vec::new(),
        }
    }

    /// The bytes of all and of the port with the most: now, and at most since this was last asked for. `None`: it is
    /// as it was then.
    pub(crate) fn take_uses(&mut self) -> Option<[(usize, usize); 2]> {
        if !std::mem::take(&mut self.is_news) {
            return None;
        }
        let fullest = self.shares.iter().map(|share| share.bytes).max().unwrap_or(0);
        let [all, one] = std::mem::take(&mut self.most);
        Some([(self.bytes, all), (fullest, one)])
    }

    /// Bytes at most.
    pub(crate) const fn limit(&self) -> usize {
        self.limit
    }

    /// Whose they are.
    pub(crate) const fn worker(&self) -> usize {
        self.worker
    }

    pub(crate) const fn len(&self) -> usize {
        self.fragments
    }

    /// Whether the first fragment of one of them may come in at another worker at any moment.
    pub(crate) fn is_expectant(&self, now: Timestamp) -> bool {
        self.fragments > 0 && now.since(self.newest) < SOON
    }

    /// A list for [`super::Fragments::take_news`]; give it back with [`Early::give_list`].
    pub(crate) fn take_list(&mut self) -> Vec<(u64, News)> {
        std::mem::take(&mut self.news)
    }

    pub(crate) fn give_list(&mut self, list: Vec<(u64, News)>) {
        self.news = list;
    }

    /// The datagram that has to go before this fragment has room, if there is one.
    pub(crate) fn push_out_for(&mut self, held: &Held, port: PortId) -> Option<Group> {
        let cost = held.cost();
        let own = self.shares.iter().find(|share| share.port == port);
        let share = if own.is_some_and(|own| own.bytes + cost > self.limit / SHARE as usize) {
            own
        } else if self.bytes + cost > self.limit {
            self.shares.iter().max_by_key(|share| share.bytes)
        } else {
            None
        };
        let oldest = *share?.groups.first()?;
        self.take(oldest)
    }

    /// The port that the waiting fragments of a datagram are counted for: that by which the first of them came.
    pub(crate) fn port_of(&self, number: u64) -> Option<PortId> {
        self.groups.get(&number).map(|group| group.port)
    }

    /// Lets a fragment wait.
    pub(crate) fn push(
        &mut self,
        datagram: Datagram,
        number: u64,
        port: PortId,
        held: Held,
        now: Timestamp,
    ) {
        let cost = held.cost();
        let group = self.groups.entry(number).or_insert_with(|| Group {
            datagram,
            number,
            held: Vec::new(),
            port,
            bytes: 0,
        });
        group.bytes += cost;
        group.held.push(held);
        let at = self.shares.iter().position(|share| share.port == group.port);
        let at = at.unwrap_or_else(|| {
            let share = Share { port: group.port, bytes: 0, groups: BTreeSet::new() };
            self.shares.push(share);
            self.shares.len() - 1
        });
        if let Some(share) = self.shares.get_mut(at) {
            share.bytes += cost;
            share.groups.insert(number);
            self.most[1] = self.most[1].max(share.bytes);
        }
        self.fragments += 1;
        self.bytes += cost;
        self.most[0] = self.most[0].max(self.bytes);
        self.is_news = true;
        self.newest = now;
    }

    /// Takes out what waits of a datagram.
    pub(crate) fn take(&mut self, number: u64) -> Option<Group> {
        let group = self.groups.remove(&number)?;
        self.fragments -= group.held.len();
        self.bytes -= group.bytes;
        self.is_news = true;
        if let Some(at) = self.shares.iter().position(|share| share.port == group.port)
            && let Some(share) = self.shares.get_mut(at)
        {
            share.bytes -= group.bytes;
            share.groups.remove(&number);
            if share.groups.is_empty() {
                self.shares.swap_remove(at);
            }
        }
        Some(group)
    }

    /// Takes out a datagram whose fragments came by this port.
    pub(crate) fn take_from(&mut self, port: PortId) -> Option<Group> {
        let share = self.shares.iter().find(|share| share.port == port)?;
        let number = *share.groups.first()?;
        self.take(number)
    }
}
