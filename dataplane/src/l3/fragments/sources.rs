//! Who has how many unfinished datagrams.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::Datagram;
use crate::packet::types::PortId;

/// Who has a share of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Everybody behind a port of a network, whatever addresses they invent. Fragments of one datagram
    /// all come by it.
    Port(PortId),
    /// An address outside, whose fragments may come in by any uplink.
    Outside(IpAddr),
}

/// How many datagrams a source has, its oldest one (of two with equally many the one with the older goes
/// first), and the source.
type Rank = (usize, Reverse<u64>, Source);

#[derive(Debug, Clone, Default)]
struct Share {
    /// By number: the oldest first.
    datagrams: BTreeMap<u64, Datagram>,
    pieces: usize,
}

/// All sources that have any.
#[derive(Debug, Clone, Default)]
pub(super) struct Sources {
    shares: HashMap<Source, Share>,
    /// The heaviest last.
    ranks: BTreeSet<Rank>,
    /// Those of all addresses outside, by number.
    outside: BTreeMap<u64, Datagram>,
}

impl Share {
    fn rank(&self, source: Source) -> Option<Rank> {
        let (oldest, _) = self.datagrams.first_key_value()?;
        Some((self.datagrams.len(), Reverse(*oldest), source))
    }
}

impl Sources {
    pub(super) fn begin(&mut self, number: u64, datagram: Datagram) {
        if matches!(datagram.source, Source::Outside(_)) {
            self.outside.insert(number, datagram);
        }
        self.change(datagram.source, |share| {
            share.datagrams.insert(number, datagram);
        });
    }

    pub(super) fn end(&mut self, number: u64, datagram: &Datagram, pieces: usize) {
        self.outside.remove(&number);
        self.change(datagram.source, |share| {
            share.datagrams.remove(&number);
            share.pieces -= pieces;
        });
    }

    fn change(&mut self, source: Source, change: impl FnOnce(&mut Share)) {
        let share = self.shares.entry(source).or_default();
        if let Some(rank) = share.rank(source) {
            self.ranks.remove(&rank);
        }
        change(share);
        match share.rank(source) {
            Some(rank) => {
                self.ranks.insert(rank);
            }
            None => {
                self.shares.remove(&source);
            }
        }
    }

    pub(super) fn gain_piece(&mut self, source: Source) {
        if let Some(share) = self.shares.get_mut(&source) {
            share.pieces += 1;
        }
    }

    pub(super) fn lose_pieces(&mut self, source: Source, pieces: usize) {
        if let Some(share) = self.shares.get_mut(&source) {
            share.pieces -= pieces;
        }
    }

    pub(super) fn pieces_of(&self, source: Source) -> usize {
        self.shares.get(&source).map_or(0, |share| share.pieces)
    }

    pub(super) fn datagrams_of(&self, source: Source) -> usize {
        self.shares.get(&source).map_or(0, |share| share.datagrams.len())
    }

    pub(super) fn oldest_of(&self, source: Source) -> Option<Datagram> {
        let (_, datagram) = self.shares.get(&source)?.datagrams.first_key_value()?;
        Some(*datagram)
    }

    pub(super) fn heaviest(&self) -> Option<Source> {
        self.ranks.last().map(|(_, _, source)| *source)
    }

    /// How many come from outside, where addresses can be made up, and the oldest of them.
    pub(super) fn outside(&self) -> (usize, Option<Datagram>) {
        (self.outside.len(), self.outside.first_key_value().map(|(_, datagram)| *datagram))
    }

    /// The datagrams of which `goes` says so.
    pub(super) fn those(&self, goes: impl Fn(&Datagram) -> bool) -> Vec<Datagram> {
        let all = self.shares.values().flat_map(|share| share.datagrams.values());
        all.filter(|datagram| goes(datagram)).copied().collect()
    }
}
