//! Multicast groups: which ports of a network and VLAN are in which, where multicast routers are, and whether
//! somebody asks for members at all.
//!
//! Memberships live as long as RFC 3376 §8.4 and RFC 3810 §9.4 say without being renewed. Limits: so many for
//! each port and for each network, routers counted with them and never refused. A port with one more than may
//! be entered is one of those that get every group of its network for now; there is one such entry a port. Besides there are at most two queriers a VLAN. One lock, held for a lookup or a change, taken by
//! multicast frames of networks that snoop alone.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::engine::GroupEntry;
use crate::limits::Peak;
use crate::packet::membership::{QUERY_INTERVAL, Query, RESPONSE, ROBUSTNESS};
use crate::packet::types::{NetworkId, PortId};
use crate::sync::Mutex;

/// How long a membership lives: robustness times the query interval, and the time to answer.
const MEMBERSHIP: u32 = ROBUSTNESS as u32 * QUERY_INTERVAL as u32 + RESPONSE as u32;
/// A querier may ask less often than ours; nobody stays longer than this unheard.
const LONGEST: u32 = 3600;

/// Where a group may be.
pub(crate) type Place = (NetworkId, u16);
/// A group at a place; `None`: all of them, which is what routers are in.
type Key = (Place, Option<IpAddr>);

/// A port that is meant until a second.
#[derive(Debug, Clone, Copy)]
struct Until {
    port: PortId,
    until: u32,
}

/// Somebody who asks: believed from one second to another.
#[derive(Debug, Clone, Copy)]
struct Querier {
    from: u32,
    until: u32,
    /// How long a membership lives.
    membership: u32,
}

#[derive(Debug, Clone, Default)]
struct Inner {
    /// The senders of reports choose the keys: the standard hasher has a random key.
    members: HashMap<Key, Vec<Until>>,
    queriers: HashMap<(Place, bool), Querier>,
    /// Ports that get every group.
    spared: HashMap<NetworkId, Vec<Until>>,
    ports: HashMap<PortId, u32>,
    networks: HashMap<NetworkId, u32>,
}

/// What became of a membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    Entered,
    /// The port is in as many groups as it may be.
    PortFull,
    /// Its network is.
    NetworkFull,
}

/// How many memberships there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimits {
    /// Of one network.
    pub network: u32,
    /// Of one port.
    pub port: u32,
}

impl Default for GroupLimits {
    fn default() -> Self {
        Self { network: 4096, port: 256 }
    }
}

/// The table. Shared by all workers and control.
#[derive(Debug, Default)]
pub struct Groups {
    inner: Mutex<Inner>,
    limits: GroupLimits,
    most_of_network: Peak,
    most_of_port: Peak,
}

impl Groups {
    /// An empty table.
    #[must_use]
    pub fn new(limits: GroupLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// A copy to try things out on.
    pub(crate) fn copy(&self) -> Self {
        Self { inner: Mutex::new(self.inner.lock().clone()), ..Self::new(self.limits) }
    }

    /// A port is in a group.
    pub(crate) fn join(&self, place: Place, group: IpAddr, port: PortId, now: u32) -> Joined {
        let inner = &mut *self.inner.lock();
        let querier = inner.queriers.get(&(place, group.is_ipv6()));
        let life = querier.map_or(MEMBERSHIP, |querier| querier.membership);
        self.enter(inner, (place, Some(group)), port, now.saturating_add(life))
    }

    /// A multicast router is behind a port, and gets every group until it should have asked again. Whatever
    /// sandboxes have joined, there is room for it: only trusted ports are a router's, once in each VLAN.
    pub(crate) fn note_router(&self, place: Place, port: PortId, asked: Option<&Query>, now: u32) {
        let again =
            asked.map_or(0, |query| query.renewal.min(LONGEST) + query.response.min(LONGEST));
        let until = now.saturating_add(again.max(MEMBERSHIP));
        self.enter(&mut self.inner.lock(), (place, None), port, until);
    }

    fn enter(&self, inner: &mut Inner, key: Key, port: PortId, until: u32) -> Joined {
        let network = key.0.0;
        let known = inner.members.get_mut(&key);
        if let Some(member) = known.and_then(|ports| ports.iter_mut().find(|m| m.port == port)) {
            member.until = until;
            return Joined::Entered;
        }
        let of_port = inner.ports.get(&port).copied().unwrap_or(0);
        let of_network = inner.networks.get(&network).copied().unwrap_or(0);
        let is_router = key.1.is_none();
        if !is_router && (of_port >= self.limits.port || of_network >= self.limits.network) {
            inner.spare(network, port, until);
            return if of_port >= self.limits.port {
                Joined::PortFull
            } else {
                Joined::NetworkFull
            };
        }
        inner.members.entry(key).or_default().push(Until { port, until });
        inner.ports.insert(port, of_port + 1);
        inner.networks.insert(network, of_network + 1);
        self.most_of_port.note(of_port + 1);
        self.most_of_network.note(of_network + 1);
        Joined::Entered
    }

    /// A port gets every group until a second.
    pub(crate) fn spare(&self, network: NetworkId, port: PortId, until: u32) {
        self.inner.lock().spare(network, port, until);
    }

    /// A port, behind which nobody else can be, left a group.
    pub(crate) fn leave(&self, place: Place, group: IpAddr, port: PortId) {
        let Inner { members, ports, networks, .. } = &mut *self.inner.lock();
        let key = (place, Some(group));
        let Some(of_group) = members.get_mut(&key) else { return };
        let Some(at) = of_group.iter().position(|member| member.port == port) else { return };
        of_group.swap_remove(at);
        if of_group.is_empty() {
            members.remove(&key);
        }
        count_down(ports, port);
        count_down(networks, place.0);
    }

    /// Whether a port is in a group, and for longer than until then.
    pub(crate) fn is_member(&self, place: Place, group: IpAddr, port: PortId, until: u32) -> bool {
        let inner = self.inner.lock();
        let members = inner.members.get(&(place, Some(group)));
        members.into_iter().flatten().any(|member| member.port == port && member.until > until)
    }

    /// Somebody asks who is in a group: those who do not answer by then are not. `port`: only there.
    pub(crate) fn last_call(&self, place: Place, group: IpAddr, port: Option<PortId>, until: u32) {
        let mut inner = self.inner.lock();
        let Some(members) = inner.members.get_mut(&(place, Some(group))) else { return };
        for member in members.iter_mut().filter(|m| port.is_none_or(|port| port == m.port)) {
            member.until = member.until.min(until);
        }
    }

    /// Somebody has asked for the members of all groups: who is in none wants none, once there was time to
    /// answer, until it should have been asked again (RFC 3376 §8.5, other querier present interval).
    pub(crate) fn note_querier(&self, place: Place, is_ipv6: bool, asked: &Query, now: u32) {
        let renewal = asked.renewal.min(LONGEST);
        let response = asked.response.min(LONGEST);
        let fresh = Querier { from: now.saturating_add(response + 1), until: now, membership: 0 };
        let mut inner = self.inner.lock();
        let querier = inner.queriers.entry((place, is_ipv6)).or_insert(fresh);
        if querier.until < now {
            *querier = fresh;
        }
        querier.until = querier.until.max(now.saturating_add(renewal + response / 2));
        querier.membership = querier.membership.max(renewal + response);
    }

    /// Whether who is in no group wants none.
    pub(crate) fn is_asked_for(&self, place: Place, is_ipv6: bool, now: u32) -> bool {
        let inner = self.inner.lock();
        let querier = inner.queriers.get(&(place, is_ipv6));
        querier.is_some_and(|querier| (querier.from..=querier.until).contains(&now))
    }

    /// Seconds within which everybody will have been asked by those who ask in a network, in whichever VLAN,
    /// and have answered; none, if nobody asks.
    pub(crate) fn answered_within(&self, network: NetworkId, is_ipv6: bool, now: u32) -> u32 {
        let inner = self.inner.lock();
        let asks = |((at, is_six), querier): (&(Place, bool), &Querier)| {
            let asks = at.0 == network && *is_six == is_ipv6 && querier.until >= now;
            asks.then_some(querier.membership)
        };
        inner.queriers.iter().filter_map(asks).max().unwrap_or(0)
    }

    /// Adds the ports that get every group, and those in this one.
    pub(crate) fn audience(
        &self,
        place: Place,
        group: Option<IpAddr>,
        now: u32,
        ports: &mut Vec<PortId>,
    ) {
        let inner = self.inner.lock();
        let of = |group| inner.members.get(&(place, group));
        let members = group.and_then(|group| of(Some(group)));
        // The latter get what is for members, not what hosts say to routers.
        let spared = group.and_then(|_| inner.spared.get(&place.0));
        let all = of(None).into_iter().chain(members).chain(spared).flatten();
        ports.extend(all.filter(|m| m.until >= now).map(|m| m.port));
    }

    /// Forgets who has not renewed his membership in time.
    pub(crate) fn expire(&self, now: u32) {
        let inner = &mut *self.inner.lock();
        inner.retain(|_, member| member.until >= now);
        inner.queriers.retain(|_, querier| querier.until >= now);
    }

    /// Forgets a port.
    pub(crate) fn forget_port(&self, port: PortId) {
        self.inner.lock().retain(|_, member| member.port != port);
    }

    /// Forgets every network but these.
    pub(crate) fn retain_networks(&self, stays: impl Fn(NetworkId) -> bool) {
        let inner = &mut *self.inner.lock();
        inner.retain(|network, _| stays(network));
        inner.queriers.retain(|((network, _), _), _| stays(*network));
    }

    /// All of it.
    pub(crate) fn entries(&self, now: u32) -> Vec<GroupEntry> {
        let inner = self.inner.lock();
        let entry = |((network, vlan), group): Key, member: &Until| GroupEntry {
            network,
            vlan,
            group,
            port: member.port,
            expires: member.until.saturating_sub(now),
        };
        let mut entries: Vec<_> = (inner.members.iter())
            .flat_map(|(key, members)| members.iter().map(|member| entry(*key, member)))
            .collect();
        // Workers wait for the lock.
        drop(inner);
        entries.sort_by_key(|e| (e.network, e.vlan, e.group, e.port));
        entries
    }

    /// Of the fullest network and of the fullest port: memberships now, at most, and what they may have.
    pub(crate) fn uses(&self) -> [((u32, u32), u32); 2] {
        let inner = self.inner.lock();
        let network = inner.networks.values().copied().max().unwrap_or(0);
        let port = inner.ports.values().copied().max().unwrap_or(0);
        [
            ((network, self.most_of_network.value()), self.limits.network),
            ((port, self.most_of_port.value()), self.limits.port),
        ]
    }
}

impl Inner {
    fn spare(&mut self, network: NetworkId, port: PortId, until: u32) {
        let spared = self.spared.entry(network).or_default();
        match spared.iter_mut().find(|spared| spared.port == port) {
            Some(spared) => spared.until = spared.until.max(until),
            None => spared.push(Until { port, until }),
        }
    }

    /// Keeps the ports for which `keep` says so, and the counts right.
    fn retain(&mut self, keep: impl Fn(NetworkId, &Until) -> bool) {
        let Self { members, ports, networks, spared, .. } = self;
        members.retain(|((network, _), _), of_group| {
            of_group.retain(|member| {
                let stays = keep(*network, member);
                if !stays {
                    count_down(ports, member.port);
                    count_down(networks, *network);
                }
                stays
            });
            !of_group.is_empty()
        });
        spared.retain(|network, spared| {
            spared.retain(|port| keep(*network, port));
            !spared.is_empty()
        });
    }
}

fn count_down<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: K) {
    if let std::collections::hash_map::Entry::Occupied(mut entry) = counts.entry(key) {
        *entry.get_mut() = entry.get().saturating_sub(1);
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests;
