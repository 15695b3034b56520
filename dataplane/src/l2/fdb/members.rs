//! Who of the table's learned entries is behind which port, and how restless ports and MACs are.
//!
//! Each port has a list of its entries through the slots, the one heard from longest ago first, as nearly
//! as that can be told without writing to the list for every frame: an entry that was heard from since it
//! was put into its place is put last when its turn comes. All of it belongs to whoever holds the
//! table's lock.
//!
//! What is here bounds what a port can do to others: how many entries it has, how often it makes the
//! workers forget their shortcuts by pushing out and moving entries, and how often a MAC moves.

use std::ops::Range;

use rustc_hash::FxHashSet;

use crate::packet::types::{NetworkId, PortId};

/// Entries of a port looked at for one that has not been heard from since it was put into its place.
const LOOK: usize = 8;
/// Entries that a port may push out or take over in a second. Each makes every worker forget its
/// shortcuts, so that thousands would slow the traffic of all others down.
const CHANGES_PER_SECOND: u32 = 256;
/// Moves of one MAC in a second before it is held where it is. A host that really moves does so once;
/// frames that go round in a loop, and two hosts with one MAC, move it with every frame.
const MOVES_PER_SECOND: u32 = 16;

/// Bits of a second in a word of [`Members::moves`]; the rest counts.
const SECOND_BITS: u32 = 24;
const SECOND_MASK: u32 = (1 << SECOND_BITS) - 1;

/// A slot's number, from 1 on; zero stands for none.
pub(super) type Slot = u32;

/// Where an entry belongs: its network, and the port that it is behind.
pub(super) type Place = (NetworkId, PortId);

#[derive(Clone, Copy, Debug, Default)]
struct Port {
    first: Slot,
    last: Slot,
    len: u32,
    /// The second of `changes`.
    second: u32,
    changes: u32,
    /// Of its latest entry.
    network: Option<NetworkId>,
}

/// The learned entries of a network.
#[derive(Clone, Copy, Debug, Default)]
struct Network {
    len: u32,
    most: u32,
    limit: Option<u32>,
}

/// What the lock of the table holds.
#[derive(Debug)]
pub(super) struct Members {
    /// By slot: `previous:32 | next:32` in the list of its port.
    links: Vec<u64>,
    /// By slot: when its entry had been heard from when it was put into its place.
    noted: Vec<u32>,
    /// By slot: `moves:8 | second:24`, the moves in that second.
    moves: Vec<u32>,
    ports: Vec<Port>,
    networks: Vec<Network>,
    /// What would be written to if the lists did not grow to have whom they are asked for.
    no_port: Port,
    no_network: Network,
    learned: u32,
    /// The longest that a list has been.
    longest: u32,
}

#[allow(clippy::cast_possible_truncation, reason = "the two halves are taken apart")]
const fn unpack(link: u64) -> (Slot, Slot) {
    ((link >> 32) as u32, link as u32)
}

const fn pack(previous: Slot, next: Slot) -> u64 {
    (previous as u64) << 32 | next as u64
}

impl Members {
    /// For a table of that many slots. The memory is taken when it is written to.
    pub(super) fn new(slots: usize) -> Self {
        Self {
            links: vec![0; slots + 1],
            noted: vec![0; slots + 1],
            moves: vec![0; slots + 1],
            ports: Vec::new(),
            networks: Vec::new(),
            no_port: Port::default(),
            no_network: Network::default(),
            learned: 0,
            longest: 0,
        }
    }

    /// Learned entries behind a port.
    pub(super) fn len(&self, port: PortId) -> u32 {
        self.ports.get(port.index()).map_or(0, |port| port.len)
    }

    /// Adds an entry that was heard from at `seen`.
    pub(super) fn add(&mut self, slot: Slot, (network, port): Place, seen: u32) {
        if let Some(moves) = self.moves.get_mut(slot as usize) {
            *moves = 0;
        }
        self.enlist(slot, (network, port), seen);
    }

    /// When an entry had been heard from when it was put into its place.
    pub(super) fn noted(&self, slot: Slot) -> u32 {
        self.noted.get(slot as usize).copied().unwrap_or(0)
    }

    /// Notes of these slots what another table's members have noted.
    pub(super) fn copy_slots(&mut self, from: &Self, slots: Range<Slot>) {
        let slots = slots.start as usize..slots.end as usize;
        let pairs = [(&mut self.noted, &from.noted), (&mut self.moves, &from.moves)];
        for (ours, theirs) in pairs {
            if let (Some(ours), Some(theirs)) =
                (ours.get_mut(slots.clone()), theirs.get(slots.clone()))
            {
                ours.copy_from_slice(theirs);
            }
        }
    }

    /// Takes over what is noted of ports, without their lists.
    pub(super) fn copy_ports(&mut self, from: &Self) {
        let bare = |port: &Port| Port { first: 0, last: 0, len: 0, ..*port };
        self.ports = from.ports.iter().map(bare).collect();
        let bare = |network: &Network| Network { len: 0, ..*network };
        self.networks = from.networks.iter().map(bare).collect();
        self.longest = from.longest;
    }

    /// Lists an entry behind those of its port that are.
    pub(super) fn enlist(&mut self, slot: Slot, (network, port): Place, noted: u32) {
        self.learned += 1;
        let members = self.network(network);
        members.len += 1;
        members.most = members.most.max(members.len);
        self.port(port).network = Some(network);
        self.lengthen(port);
        self.put_last(slot, port, noted);
    }

    fn lengthen(&mut self, port: PortId) {
        let members = self.port(port);
        members.len += 1;
        let len = members.len;
        self.longest = self.longest.max(len);
    }

    /// The length of the longest list now, and what it has been at most.
    pub(super) fn most(&self) -> (u32, u32) {
        (self.ports.iter().map(|port| port.len).max().unwrap_or(0), self.longest)
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, slot: Slot, (network, port): Place) {
        self.learned = self.learned.saturating_sub(1);
        let members = self.network(network);
        members.len = members.len.saturating_sub(1);
        let members = self.port(port);
        members.len = members.len.saturating_sub(1);
        self.unlink(slot, port);
    }

    /// An entry is behind another port now.
    pub(super) fn relocate(&mut self, slot: Slot, from: PortId, to: PortId, seen: u32) {
        self.unlink(slot, from);
        let members = self.port(from);
        members.len = members.len.saturating_sub(1);
        self.lengthen(to);
        self.put_last(slot, to, seen);
    }

    /// The entry of a port that was heard from longest ago; `seen` says when one was.
    pub(super) fn oldest(&mut self, port: PortId, seen: impl Fn(Slot) -> u32) -> Option<Slot> {
        for _ in 0..LOOK {
            let first = self.port(port).first;
            let noted = self.noted.get(first as usize).copied().filter(|_| first != 0)?;
            let heard = seen(first);
            if heard == noted {
                return Some(first);
            }
            self.unlink(first, port);
            self.put_last(first, port, heard);
        }
        Some(self.port(port).first)
    }

    /// The port with the most entries; among equals `preferred`. `None`: nothing is learned.
    pub(super) fn heaviest(&self, preferred: PortId) -> Option<PortId> {
        if self.learned == 0 {
            return None;
        }
        let (most, len) =
            (0u16..).zip(&self.ports).fold((preferred, self.len(preferred)), |best, (n, port)| {
                if port.len > best.1 { (PortId(n), port.len) } else { best }
            });
        (len > 0).then_some(most)
    }

    /// The port of a network with the most entries; among equals `preferred`. `None`: nothing is learned there.
    pub(super) fn heaviest_in(&self, network: NetworkId, preferred: PortId) -> Option<PortId> {
        let own = |port: &Port| if port.network == Some(network) { port.len } else { 0 };
        let first = self.ports.get(preferred.index()).map_or(0, own);
        let (most, len) = (0u16..).zip(&self.ports).fold((preferred, first), |best, (n, port)| {
            if own(port) > best.1 { (PortId(n), own(port)) } else { best }
        });
        (len > 0).then_some(most)
    }

    /// Whether a network has as many entries as it may have.
    pub(super) fn is_full(&self, network: NetworkId) -> bool {
        let network = self.networks.get(network.index());
        network.is_some_and(|it| it.limit.is_some_and(|limit| it.len >= limit))
    }

    /// Sets how many entries networks may have, those that are not named as many as there may be. What there
    /// is stays.
    pub(super) fn limit(&mut self, limits: &[(NetworkId, Option<u32>)]) {
        let named: FxHashSet<usize> = limits.iter().map(|(network, _)| network.index()).collect();
        for (index, network) in self.networks.iter_mut().enumerate() {
            if !named.contains(&index) {
                *network = Network { len: network.len, ..Network::default() };
            }
        }
        for (network, limit) in limits {
            self.network(*network).limit = *limit;
        }
    }

    /// Of the network that has the least room left of its limit: what it has, has had at most, and may have.
    pub(super) fn fullest_network(&self) -> Option<(u32, u32, u32)> {
        let shown = self.networks.iter().filter_map(|it| Some((it.len, it.most, it.limit?)));
        shown.min_by_key(|(len, _, limit)| limit.saturating_sub(*len))
    }

    /// Whether a port may push an entry out or take one over in this second; it has done so then.
    pub(super) fn may_change(&mut self, port: PortId, now: u32) -> bool {
        let port = self.port(port);
        if port.second != now {
            port.second = now;
            port.changes = 0;
        }
        let may = port.changes < CHANGES_PER_SECOND;
        port.changes += u32::from(may);
        may
    }

    /// Whether an entry may move, or is held because it moved too often. It is held until a whole second
    /// has passed.
    pub(super) fn may_move(&self, slot: Slot, now: u32) -> bool {
        let (moves, second) = self.moves_of(slot);
        let since = now.wrapping_sub(second) & SECOND_MASK;
        moves < MOVES_PER_SECOND || since > 1
    }

    /// Counts a move.
    pub(super) fn count_move(&mut self, slot: Slot, now: u32) {
        let (moves, second) = self.moves_of(slot);
        let moves = if second == now & SECOND_MASK { moves + 1 } else { 1 };
        if let Some(word) = self.moves.get_mut(slot as usize) {
            *word = moves.min(MOVES_PER_SECOND) << SECOND_BITS | now & SECOND_MASK;
        }
    }

    /// The entries that the list of a port leads to.
    #[cfg(test)]
    pub(super) fn listed(&self, port: PortId) -> usize {
        let first = self.ports.get(port.index()).map_or(0, |port| port.first);
        let next = |slot: &Slot| Some(unpack(self.links[*slot as usize]).1);
        std::iter::successors(Some(first), next).take_while(|slot| *slot != 0).count()
    }

    fn moves_of(&self, slot: Slot) -> (u32, u32) {
        let word = self.moves.get(slot as usize).copied().unwrap_or(0);
        (word >> SECOND_BITS, word & SECOND_MASK)
    }

    fn port(&mut self, port: PortId) -> &mut Port {
        if self.ports.len() <= port.index() {
            self.ports.resize(port.index() + 1, Port::default());
        }
        self.ports.get_mut(port.index()).unwrap_or(&mut self.no_port)
    }

    fn network(&mut self, network: NetworkId) -> &mut Network {
        if self.networks.len() <= network.index() {
            self.networks.resize(network.index() + 1, Network::default());
        }
        self.networks.get_mut(network.index()).unwrap_or(&mut self.no_network)
    }

    fn put_last(&mut self, slot: Slot, port: PortId, seen: u32) {
        let members = self.port(port);
        let before = std::mem::replace(&mut members.last, slot);
        if before == 0 {
            members.first = slot;
        }
        self.set_next(before, slot);
        if let Some(link) = self.links.get_mut(slot as usize) {
            *link = pack(before, 0);
        }
        if let Some(noted) = self.noted.get_mut(slot as usize) {
            *noted = seen;
        }
    }

    fn unlink(&mut self, slot: Slot, port: PortId) {
        let Some(link) = self.links.get_mut(slot as usize) else { return };
        let (previous, next) = unpack(std::mem::take(link));
        self.set_next(previous, next);
        if next != 0
            && let Some(link) = self.links.get_mut(next as usize)
        {
            *link = pack(previous, unpack(*link).1);
        }
        let members = self.port(port);
        if members.first == slot {
            members.first = next;
        }
        if members.last == slot {
            members.last = previous;
        }
    }

    fn set_next(&mut self, slot: Slot, next: Slot) {
        if slot != 0
            && let Some(link) = self.links.get_mut(slot as usize)
        {
            *link = pack(unpack(*link).0, next);
        }
    }
}
