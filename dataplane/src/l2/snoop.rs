//! IGMP and MLD snooping: packets for a group go to who is in it, and to multicast routers (RFC 4541).
//!
//! - Reports are read from every port and shown to routers alone, so that hosts of older versions do not hold
//!   theirs back. What is not sound is shown to nobody, for the same reason.
//! - Queries and PIM of trusted endpoints make their port one behind which a router is; queries of others are
//!   refused. The host's leg always is a router's.
//! - While somebody asks for members, a group that nobody is in goes to routers alone; else nothing is
//!   kept from anybody. The groups of the link itself go to all (`membership::is_for_all`).
//! - Who leaves by a guarded port, behind which nobody else is, has left at once; behind any other the
//!   others there are asked first.
//!
//! Nobody's frame goes further by this than a flood would: network, VLAN, `icc` and storm limit hold as ever. IGMP,
//! MLD and PIM count against the limit here, before anything is done about them, the rest at egress.

use std::net::IpAddr;

use crate::config::{FROM_GATEWAY, Network, PortRole};
use crate::core::Cx;
use crate::frame::Frame;
use crate::l2::forward::vlan_of;
use crate::l2::groups::{Joined, Place};
use crate::l2::storm;
use crate::l3::querier;
use crate::packet::headers::{Headers, Net};
use crate::packet::membership::{self, Change, LAST_MEMBER, Message, Query, ROBUSTNESS, Records};
use crate::packet::parse::parse_net;
use crate::packet::types::PortId;
use crate::pipeline::Lane;
use crate::verdict::{DropReason, Verdict};

/// Records of a report that are read for the price of a frame. A frame can have thousands.
const RECORDS_A_FRAME: usize = 16;
/// Groups of one report that others behind its port are asked for.
const ASKED_AT_ONCE: usize = 8;
/// Seconds that who is asked for one group has to answer.
const LAST_CALL: u32 = ROBUSTNESS as u32 * LAST_MEMBER as u32 + 1;

/// To whom of a network and VLAN a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    All,
    /// Who is in the packet's group, and routers.
    Members,
    Routers,
}

/// Decides to whom a frame with a group MAC goes, and learns from it.
#[inline(never)]
pub(crate) fn frame(cx: &mut Cx<'_>, network: &Network, frame: &Frame, lane: &Lane) -> Verdict {
    let id = network.config.id;
    let headers = parsed(frame, lane);
    let place = (id, vlan_of(lane));
    let message = membership::read(frame.bytes(), &headers);
    let price = price(&message);
    if price > 0 && !storm::allows_many(cx, id, frame.ingress, price) {
        return Verdict::Drop(DropReason::StormLimited);
    }
    match message {
        Message::Malformed => Verdict::Drop(DropReason::GroupMalformed),
        Message::Query(query) => {
            let is_ipv6 = matches!(headers.net, Net::Ipv6(_));
            asked(cx, network, frame.ingress, place, is_ipv6, &query)
        }
        Message::Report(records) => report(cx, network, frame, place, records),
        Message::Router => {
            if is_trusted(cx, frame.ingress) {
                cx.tables.groups.note_router(place, frame.ingress, None, cx.secs);
            }
            Verdict::FloodCounted(id)
        }
        Message::Unknown => Verdict::FloodCounted(id),
        Message::None => match membership::group_of(&headers) {
            Some(group) if is_kept(cx, network, place, group) => Verdict::Multicast(id),
            _ => Verdict::Flood(id),
        },
    }
}

/// What a message costs of its port's storm limit; nothing: that is for egress to say.
fn price(message: &Message<'_>) -> u64 {
    match message {
        Message::None => 0,
        Message::Report(records) => 1 + (records.at_most() / RECORDS_A_FRAME) as u64,
        Message::Malformed | Message::Query(_) | Message::Router | Message::Unknown => 1,
    }
}

fn parsed(frame: &Frame, lane: &Lane) -> Headers {
    let mut headers = lane.headers;
    parse_net(frame.bytes(), &mut headers);
    headers
}

fn is_trusted(cx: &Cx<'_>, port: PortId) -> bool {
    let role = cx.config.port(port).map(|port| &port.config.role);
    matches!(role, Some(PortRole::Endpoint { trusted: true, .. }))
}

/// Whether a group is kept from who is not in it.
fn is_kept(cx: &Cx<'_>, network: &Network, (id, vlan): Place, group: IpAddr) -> bool {
    let asked = |vlan: &u16| cx.tables.groups.is_asked_for((id, *vlan), group.is_ipv6(), cx.secs);
    !membership::is_for_all(group) && vlans(network, &[vlan]).iter().all(asked)
}

/// The VLANs that a frame is for: those of all untagged frames, if it is from the gateway.
fn vlans<'a>(network: &'a Network, one: &'a [u16; 1]) -> &'a [u16] {
    if *one == [FROM_GATEWAY] { &network.pvids } else { one }
}

/// Who asks decides what its neighbors get: those who do not answer are no members.
fn asked(
    cx: &Cx<'_>,
    network: &Network,
    port: PortId,
    place: Place,
    is_ipv6: bool,
    query: &Query,
) -> Verdict {
    let (id, groups) = (network.config.id, &cx.tables.groups);
    if place.1 == FROM_GATEWAY {
        // It does not reach those who are in their VLAN with a tag, so that silence says nothing.
        return Verdict::FloodCounted(id);
    }
    if !is_trusted(cx, port) {
        return Verdict::Drop(DropReason::QuerierUntrusted);
    }
    if query.is_router {
        groups.note_router(place, port, Some(query), cx.secs);
    }
    // Without `icc` endpoints do not hear each other.
    if network.config.icc {
        match query.group {
            Some(group) if query.counts => {
                let robustness = u32::from(ROBUSTNESS);
                let until = cx.secs.saturating_add(robustness.saturating_mul(query.response) + 1);
                groups.last_call(place, group, None, until);
            }
            Some(_) => {}
            None => groups.note_querier(place, is_ipv6, query, cx.secs),
        }
    }
    Verdict::FloodCounted(id)
}

/// Enters what a host says of itself.
fn report(
    cx: &mut Cx<'_>,
    network: &Network,
    frame: &Frame,
    place: Place,
    records: Records<'_>,
) -> Verdict {
    let (id, port) = (network.config.id, frame.ingress);
    let Some(PortRole::Endpoint { guard, .. }) = cx.config.port(port).map(|p| &p.config.role)
    else {
        // The host's leg gets every group.
        return Verdict::Routers(id);
    };
    let (is_alone, mut asked, mut has_too_many) = (*guard, 0, false);
    for (group, change) in records {
        if !group.is_multicast() || membership::is_for_all(group) {
            continue;
        }
        let groups = &cx.tables.groups;
        match change {
            Change::Join => {
                // Others have filled the network: that keeps nothing of this port's from routers.
                let joined = groups.join(place, group, port, cx.secs);
                has_too_many |= joined == Joined::PortFull;
            }
            Change::Leave if is_alone => groups.leave(place, group, port),
            // A router that hears of it asks; without one, or for one more, time tells.
            Change::Leave
                if asked == ASKED_AT_ONCE || !querier::can_ask(network, group.is_ipv6()) => {}
            Change::Leave => {
                let until = cx.secs.saturating_add(LAST_CALL);
                // At the cost of who leaves. Whoever was not asked stays.
                if groups.is_member(place, group, port, until)
                    && storm::allows_many(cx, id, port, 1)
                    && querier::ask(cx, network, port, place.1, group)
                {
                    asked += 1;
                    cx.tables.groups.last_call(place, group, Some(port), until);
                }
            }
        }
    }
    if has_too_many { Verdict::Drop(DropReason::GroupLimit) } else { Verdict::Routers(id) }
}

/// The ports of a network that a frame is for, if not for all.
pub(crate) fn audience(
    cx: &Cx<'_>,
    network: &Network,
    frame: &Frame,
    lane: &Lane,
    audience: Audience,
    ports: &mut Vec<PortId>,
) {
    ports.clear();
    ports.extend(network.host_port);
    let group = match audience {
        Audience::Members => membership::group_of(&parsed(frame, lane)),
        Audience::All | Audience::Routers => None,
    };
    for vlan in vlans(network, &[vlan_of(lane)]) {
        cx.tables.groups.audience((network.config.id, *vlan), group, cx.secs, ports);
    }
}
