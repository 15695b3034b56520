//! One worker's fragments that came before the first of their datagram.
//!
//! They are kept as copies: a frame that waits for a neighbor takes a buffer, and buffers are few; of these one
//! datagram may send thousands. What comes back is a frame again, in the order in which it came.
//!
//! Limits: [`MAX_BYTES`] a worker and [`MAX_BYTES_FOR_ONE`] of what came in by one port. At the latter the port's
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

/// Bytes that wait at one worker: Linux' `ipfrag_high_thresh` is 4 MiB.
pub(crate) const MAX_BYTES: usize = 4 << 20;
/// Bytes of what came in by one port. A datagram in fragments of eight octets has 1.4 MB, half of which
/// may overtake the first.
pub(crate) const MAX_BYTES_FOR_ONE: usize = MAX_BYTES / 4;
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
    /// By the number of the datagram, which we count ourselves.
    groups: HashMap<u64, Group, FxBuildHasher>,
    shares: Vec<Share>,
    fragments: usize,
    bytes: usize,
    newest: Timestamp,
    /// Emptied, so that it is not allocated again.
    news: Vec<(u64, News)>,
}

impl Early {
    pub(crate) fn new(worker: usize) -> Self {
        Self {
            worker,
            groups: HashMap::default(),
            shares: Vec::new(),
            fragments: 0,
            bytes: 0,
            newest: Timestamp::ZERO,
            news: Vec::new(),
        }
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
        let share = if own.is_some_and(|own| own.bytes + cost > MAX_BYTES_FOR_ONE) {
            own
        } else if self.bytes + cost > MAX_BYTES {
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
        }
        self.fragments += 1;
        self.bytes += cost;
        self.newest = now;
    }

    /// Takes out what waits of a datagram.
    pub(crate) fn take(&mut self, number: u64) -> Option<Group> {
        let group = self.groups.remove(&number)?;
        self.fragments -= group.held.len();
        self.bytes -= group.bytes;
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
