//! What a stage did, told from what was there before and after it. Looking decides nothing.

use std::net::IpAddr;

use super::{Fact, Step};
use crate::config::PolicyAction;
use crate::conntrack::entry::{DNAT, SNAT};
use crate::conntrack::{ConnTable, Direction, Key, Tuple, Tuple6, Zone, state_name};
use crate::core::Cx;
use crate::engine::{FlowTuple, Link};
use crate::family::Address;
use crate::frame::Frame;
use crate::l2::forward::vlan_of;
use crate::l3::route::RouteTarget;
use crate::nat::dnat::DnatTarget;
use crate::nat::helpers::{self, Announced};
use crate::nat::lookup::zone;
use crate::packet::headers::{Headers, L4, Net};
use crate::packet::parse;
use crate::packet::types::{Mac, NetworkId, PortId};
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

/// The steps so far, and what the next ones are told from.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(super) steps: Vec<Step>,
    /// Where the source was known to be before it was learned.
    place: Option<PortId>,
    /// The network header as it came, and where it came from, of a packet that is routed.
    routed: Option<(Net, Zone)>,
    /// Its connection, before it was translated.
    known: Option<Known>,
    /// Where a new packet to one of our addresses is led by a published port.
    led: Option<IpAddr>,
}

/// A connection as its list has it, seen from a packet of it.
#[derive(Debug, Clone, Copy)]
struct Known {
    state: &'static str,
    direction: &'static str,
    original: FlowTuple,
    reply: FlowTuple,
    nat: &'static str,
    /// To whom packets of this direction go.
    to: IpAddr,
}

impl Known {
    fn facts(&self) -> [(&'static str, Fact); 5] {
        [
            ("state", Fact::Word(self.state)),
            ("direction", Fact::Word(self.direction)),
            ("orig", Fact::Flow(self.original)),
            ("reply", Fact::Flow(self.reply)),
            ("nat", Fact::Word(self.nat)),
        ]
    }
}

/// Whether a packet has a connection, or may: `None`, it may not.
fn find(cx: &Cx<'_>, (net, zone): (Net, Zone)) -> Option<Option<Known>> {
    match net {
        Net::Ipv4(ip) => Tuple::of(&ip, zone).map(|t| find_in(&cx.tables.connections, t, cx.secs)),
        Net::Ipv6(ip) => {
            Tuple6::of(&ip, zone).map(|t| find_in(&cx.tables.connections6, t, cx.secs))
        }
        _ => None,
    }
}

/// Which connection has announced the one that a packet would begin.
fn announced(cx: &Cx<'_>, (net, zone): (Net, Zone)) -> Option<Announced> {
    match net {
        Net::Ipv4(ip) => Tuple::of(&ip, zone).and_then(|tuple| helpers::announced(cx, tuple)),
        Net::Ipv6(ip) => Tuple6::of(&ip, zone).and_then(|tuple| helpers::announced(cx, tuple)),
        _ => None,
    }
}

fn find_in<K: Key>(table: &ConnTable<K>, tuple: K, secs: u32) -> Option<Known> {
    let hit = table.lookup(tuple, secs)?;
    let (direction, original, reply) = match hit.direction {
        Direction::Original => ("original", tuple, hit.other),
        Direction::Reply => ("reply", hit.other, tuple),
    };
    let nat = match (hit.flags() & SNAT != 0, hit.flags() & DNAT != 0) {
        (false, false) => "none",
        (true, false) => "snat",
        (false, true) => "dnat",
        (true, true) => "both",
    };
    Some(Known {
        state: state_name(tuple.proto(), hit.state(), hit.flags()),
        direction,
        original: original.flow(),
        reply: reply.flow(),
        nat,
        to: hit.other.src().into(),
    })
}

/// What is behind the link header, for people.
#[derive(Debug, Clone, Copy)]
struct Packet {
    flow: FlowTuple,
    proto: u8,
    ttl: u8,
}

impl Packet {
    fn of(frame: &Frame) -> Option<Self> {
        let headers = parse::parse(frame.bytes()).ok()?;
        let (src, dst, proto, ttl, l4): (IpAddr, IpAddr, _, _, _) = match headers.net {
            Net::Ipv4(ip) => (ip.src.into(), ip.dst.into(), ip.proto, ip.ttl, ip.l4),
            Net::Ipv6(ip) => (ip.src.into(), ip.dst.into(), ip.proto, ip.hop_limit, ip.l4),
            Net::Arp | Net::Malformed(_) | Net::Other | Net::Unread => return None,
        };
        let (src_port, dst_port) = match l4 {
            L4::Tcp { src_port, dst_port, .. }
            | L4::Udp { src_port, dst_port }
            | L4::Sctp { src_port, dst_port } => (src_port, dst_port),
            _ => (0, 0),
        };
        Some(Self { flow: FlowTuple { src, dst, src_port, dst_port }, proto, ttl })
    }
}

const fn kind(headers: &Headers) -> &'static str {
    match headers.net {
        Net::Arp => "arp",
        Net::Ipv4(_) => "ipv4",
        Net::Ipv6(_) => "ipv6",
        Net::Malformed(_) => "malformed",
        Net::Other | Net::Unread => "other",
    }
}

impl Notes {
    fn step(&mut self, stage: &'static str, facts: Vec<(&'static str, Fact)>) {
        self.steps.push(Step { stage, facts });
    }

    /// Adds to the last step which rule of a policy let the packet begin a connection, or did not.
    fn judged(&mut self, lane: &Lane) {
        let (Some(step), Some((rule, action))) = (self.steps.last_mut(), lane.policy) else {
            return;
        };
        let word = match action {
            PolicyAction::Allow => "allow",
            PolicyAction::Deny => "deny",
        };
        step.facts.extend([("policy", Fact::Word(word)), ("policy_rule", Fact::Policy(rule))]);
    }

    /// Adds to the last step how it ended, if the frame's end was decided there.
    fn decided(&mut self, lane: &Lane) {
        let Some(step) = self.steps.last_mut() else { return };
        match lane.verdict {
            None => {}
            Some(Verdict::Answer) => step.facts.push(("verdict", Fact::Word("answer"))),
            Some(Verdict::Consume) => step.facts.push(("verdict", Fact::Word("consume"))),
            Some(Verdict::Drop(reason)) => step.facts.push(("drop", Fact::Dropped(reason))),
            Some(
                Verdict::Flood(network)
                | Verdict::FloodCounted(network)
                | Verdict::Multicast(network)
                | Verdict::Routers(network),
            ) => step.facts.push(("flood", Fact::Network(network))),
            Some(Verdict::Forward(port)) => step.facts.push(("forward", Fact::Port(port))),
            Some(Verdict::ForwardInPieces(port)) => {
                step.facts.push(("forward_in_pieces", Fact::Port(port)));
            }
            Some(Verdict::Hold | Verdict::HoldFragment) => {
                step.facts.push(("verdict", Fact::Word("hold")));
            }
        }
    }

    pub(crate) fn parsed(&mut self, frame: &Frame, lane: &Lane) {
        let mut facts = vec![("length", Fact::Number(frame.len() as u64))];
        if let Ok(headers) = parse::parse(frame.bytes()) {
            facts.push(("from", Fact::Mac(headers.src)));
            facts.push(("to", Fact::Mac(headers.dst)));
            if headers.tagged {
                facts.push(("vlan", Fact::Number(headers.vlan.into())));
            }
            facts.push(("kind", Fact::Word(kind(&headers))));
        }
        if let Some(packet) = Packet::of(frame) {
            facts.push(("proto", Fact::Number(packet.proto.into())));
            facts.push(("packet", Fact::Flow(packet.flow)));
            facts.push(("ttl", Fact::Number(packet.ttl.into())));
        }
        self.step("parse", facts);
        self.decided(lane);
    }

    pub(crate) fn admitted(&mut self, cx: &Cx<'_>, frame: &Frame, lane: &Lane) {
        let mut facts = vec![("port", Fact::Port(frame.ingress))];
        match lane.from {
            From::Endpoint(network) => {
                facts.extend([("as", Fact::Word("endpoint")), ("network", Fact::Network(network))]);
            }
            From::Host(network) => {
                facts.extend([("as", Fact::Word("host")), ("network", Fact::Network(network))]);
            }
            From::Uplink(uplink) => {
                facts.extend([("as", Fact::Word("wire")), ("uplink", Fact::Uplink(uplink))]);
            }
            From::Nowhere => {}
        }
        if lane.verdict.is_none() && lane.headers.vlan != 0 {
            facts.push(("vlan", Fact::Number(lane.headers.vlan.into())));
        }
        self.step("admit", facts);
        self.decided(lane);
        self.place = place(cx, lane, lane.headers.src);
    }

    pub(crate) fn learned(&mut self, cx: &Cx<'_>, frame: &Frame, lane: &Lane) {
        if lane.from.network().is_none() {
            return;
        }
        let mut facts = vec![("mac", Fact::Mac(lane.headers.src))];
        let now = place(cx, lane, lane.headers.src);
        let word = match (self.place, now) {
            (None, None) => "no room",
            (None, Some(_)) => "new",
            (Some(was), _) if was == frame.ingress => "known",
            (Some(_), Some(is)) if is == frame.ingress => "moved",
            (Some(_), _) => "kept elsewhere",
        };
        facts.push(("fdb", Fact::Word(word)));
        if let Some(was) = self.place.filter(|was| *was != frame.ingress) {
            facts.push(("was_behind", Fact::Port(was)));
        }
        self.step("learn", facts);
        self.decided(lane);
    }

    pub(crate) fn switched(&mut self, cx: &Cx<'_>, lane: &Lane) {
        let dst = lane.headers.dst;
        let mut facts = vec![("mac", Fact::Mac(dst))];
        let network = lane.from.network().and_then(|id| cx.config.network(id));
        let arp = matches!(lane.headers.net, Net::Arp);
        match network {
            _ if arp => facts.push(("arp", Fact::Word("read"))),
            Some(network) if dst.is_multicast() => {
                facts.push(("fdb", Fact::Word("group")));
                match lane.verdict {
                    Some(Verdict::Flood(_) | Verdict::FloodCounted(_))
                        if network.config.snooping =>
                    {
                        facts.push(("for", Fact::Word("all")));
                    }
                    Some(Verdict::Multicast(_)) => {
                        facts.push(("for", Fact::Word("members and routers")));
                    }
                    Some(Verdict::Routers(_)) => facts.push(("for", Fact::Word("routers"))),
                    _ => {}
                }
            }
            Some(network) if dst == network.config.gateway_mac => {
                facts.push(("fdb", Fact::Word("gateway")));
            }
            Some(_) => match place(cx, lane, dst) {
                Some(port) => {
                    facts.extend([("fdb", Fact::Word("hit")), ("behind", Fact::Port(port))]);
                }
                None => facts.push(("fdb", Fact::Word("miss"))),
            },
            None => {}
        }
        if let Some(Verdict::Forward(port)) = lane.verdict
            && let Some(egress) = cx.config.port(port)
        {
            let (vlan, tagged) = (vlan_of(lane), lane.headers.tagged);
            match egress.leaves_tagged(vlan, tagged) {
                Some(true) if !tagged => facts.push(("tag", Fact::Word("put in"))),
                Some(false) if tagged => facts.push(("tag", Fact::Word("taken out"))),
                _ => {}
            }
        }
        self.step("switch", facts);
        self.judged(lane);
        self.decided(lane);
    }

    pub(crate) fn input(&mut self, lane: &Lane) {
        let sound = if lane.verdict.is_none() { "sound" } else { "refused" };
        self.step("input", vec![("packet", Fact::Word(sound))]);
        self.decided(lane);
    }

    /// Before anything is translated: which connection is it, and where is it led?
    pub(crate) fn looked_up(&mut self, cx: &Cx<'_>, frame: &Frame, lane: &Lane) {
        let mut facts = Vec::new();
        let routed = (lane.headers.net, zone(lane.from));
        self.routed = Some(routed);
        let found = find(cx, routed);
        self.known = found.flatten();
        match (found, &self.known) {
            (None, _) => facts.push(("connection", Fact::Word("not asked for"))),
            (Some(_), None) => facts.push(("connection", Fact::Word("none"))),
            (Some(_), Some(known)) => {
                facts.push(("connection", Fact::Word("found")));
                facts.extend(known.facts());
            }
        }
        self.step("lookup", facts);
        let packet = Packet::of(frame);
        let (Some(Packet { flow, proto, .. }), None) = (packet, &self.known) else { return };
        if let Some(announced) = announced(cx, routed) {
            self.led = Some(announced.to.0);
            return self.step(
                "expected",
                vec![
                    ("helper", Fact::Word(announced.helper)),
                    ("by", Fact::Flow(announced.by)),
                    ("address", Fact::Address(announced.to.0)),
                    ("dst_port", Fact::Number(announced.to.1.into())),
                    ("network", Fact::Network(announced.network)),
                ],
            );
        }
        let (port, dnat) = (flow.dst_port, &cx.config.dnat);
        let target = match (flow.dst, cx.config.local(flow.dst), lane.from) {
            (IpAddr::V4(dst), Some(_), _) => dnat.lookup(proto, dst, port).map(Led::of),
            (IpAddr::V6(dst), Some(_), _) => dnat.lookup(proto, dst, port).map(Led::of),
            (IpAddr::V4(dst), None, From::Uplink(_)) => dnat.opened(proto, dst, port).map(Led::of),
            (IpAddr::V6(dst), None, From::Uplink(_)) => dnat.opened(proto, dst, port).map(Led::of),
            _ => None,
        };
        if let Some(Led { rule, address, port, network }) = target {
            self.led = Some(address);
            self.step(
                "dnat",
                vec![
                    ("rule", Fact::Rule(rule)),
                    ("address", Fact::Address(address)),
                    ("dst_port", Fact::Number(port.into())),
                    ("network", Fact::Network(network)),
                ],
            );
        }
    }

    /// After it: route, neighbor, and what was rewritten.
    pub(crate) fn translated(&mut self, cx: &Cx<'_>, was: &FlowOf, frame: &Frame, lane: &Lane) {
        let to = match (&self.known, self.led) {
            (Some(known), _) => Some(known.to),
            (None, Some(address)) => Some(address),
            (None, None) => was.0.map(|flow| flow.dst),
        };
        // What is ours is not routed.
        let routed = to.filter(|to| {
            self.known.is_some() || self.led.is_some() || { cx.config.local(*to).is_none() }
        });
        if let Some(to) = routed {
            self.route(cx, to);
        }
        let mut facts = Vec::new();
        let now = self.routed.and_then(|routed| find(cx, routed)).flatten();
        if let (None, Some(begun)) = (&self.known, now) {
            facts.push(("connection", Fact::Word("new")));
            facts.extend(begun.facts());
        }
        if let (Some(was), Some(is)) = (was.0, Packet::of(frame)) {
            if was != is.flow {
                facts.push(("becomes", Fact::Flow(is.flow)));
            }
            facts.push(("ttl", Fact::Number(is.ttl.into())));
        }
        self.step("translate", facts);
        if self.known.is_none() {
            self.judged(lane);
        }
        self.decided(lane);
    }

    fn route(&mut self, cx: &Cx<'_>, to: IpAddr) {
        let mut facts = vec![("to", Fact::Address(to))];
        let hop = match cx.config.routes.lookup(to) {
            None => {
                facts.push(("route", Fact::Word("none")));
                None
            }
            Some(RouteTarget::Network(id)) => {
                facts.push(("network", Fact::Network(id)));
                Some((Link::Network(id), to))
            }
            Some(RouteTarget::Uplink { uplink, via }) => {
                facts.push(("uplink", Fact::Uplink(uplink)));
                if let Some(via) = via {
                    facts.push(("via", Fact::Address(via)));
                }
                Some((Link::Uplink(uplink), via.unwrap_or(to)))
            }
        };
        self.step("route", facts);
        let Some((link, address)) = hop else { return };
        let mut facts = vec![("address", Fact::Address(address))];
        let endpoint = match link {
            Link::Network(id) => {
                cx.config.network(id).and_then(|network| network.endpoints.get(address))
            }
            Link::Uplink(_) => None,
        };
        match (endpoint, cx.tables.neighbors.peek(link, address)) {
            (Some((mac, port)), _) => {
                facts.push(("mac", Fact::Mac(*mac)));
                facts.push(("endpoint", Fact::Port(*port)));
            }
            (None, Some(mac)) => facts.push(("mac", Fact::Mac(mac))),
            (None, None) => facts.push(("mac", Fact::Word("unknown"))),
        }
        self.step("neighbor", facts);
    }

    /// Before the verdict is carried out.
    pub(crate) fn ends(&mut self, lane: &Lane) {
        self.step("egress", Vec::new());
        self.decided(lane);
        if lane.verdict.is_none() {
            // As egress has it.
            let reason = Fact::Dropped(DropReason::NoService);
            self.steps.last_mut().into_iter().for_each(|step| step.facts.push(("drop", reason)));
        }
    }
}

/// Both ends of a packet as it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlowOf(Option<FlowTuple>);

impl FlowOf {
    pub(crate) fn frame(frame: &Frame) -> Self {
        Self(Packet::of(frame).map(|packet| packet.flow))
    }
}

fn place(cx: &Cx<'_>, lane: &Lane, mac: Mac) -> Option<PortId> {
    let network = lane.from.network()?;
    cx.tables.fdb.lookup(network, lane.headers.vlan, mac, cx.secs, cx.config.ageing_of(network))
}

/// Where a published port leads.
struct Led {
    rule: u32,
    address: IpAddr,
    port: u16,
    network: NetworkId,
}

impl Led {
    fn of<A: Address>(target: DnatTarget<A>) -> Self {
        let DnatTarget { address, port, network, rule } = target;
        Self { rule, address: address.into(), port, network }
    }
}
