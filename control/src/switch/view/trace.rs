//! What would become of a frame, with names in place of numbers.

use std::collections::HashMap;
use std::net::IpAddr;

use dataplane::clock::Timestamp;
use dataplane::config::Snapshot;
use dataplane::engine::{EngineError, FlowTuple, Link};
use dataplane::frame::MAX_FRAME_LEN;
use dataplane::io::vnet_hdr::VnetHdr;
use dataplane::packet::types::{Mac, NetworkId, PortId};
use dataplane::trace::{Fact, SentFrame, Step, Traced};
use dataplane::verdict::Verdict;

use super::nat_rules::rule_match;
use super::tables::{Owner, uplink_name};
use super::unknown_sandbox;
use crate::api::types::{
    self, DropCount, IpProtocol, TraceFact, TraceRequest, TraceSent, TraceStep,
};
use crate::capture::summary::describe;
use crate::capture::view::View;
use crate::error::{Error, Result, ResultExt};
use crate::model::Sandbox;
use crate::name::Name;
use crate::switch::{Switch, World, blocking, policy};
use crate::trace::packet::Packet;
use crate::trace::{MAX_FRAMES, Macs};

/// Somebody on the wire, where nobody is known: an address that no device has.
const SOMEBODY: Mac = Mac([2, 0, 0, 0, 0, 1]);

impl Switch {
    /// What the workers would do with frames, one after the other. Nothing comes of it.
    ///
    /// # Errors
    /// When the request contradicts itself, names something unknown, or leaves open to which MAC a
    /// packet goes.
    pub fn trace(&self, request: &TraceRequest) -> Result<Vec<types::Trace>> {
        check(request)?;
        let port = self.ingress(request)?;
        let frames = match &request.packet {
            Some(text) => vec![self.frame_of(text.packet(), port)?],
            None => request.frames.iter().map(|frame| frame.0.clone()).collect(),
        };
        let mut tracer = match blocking(|| self.engine().tracer(port)) {
            Err(error @ EngineError::TooManyTraces) => {
                return Err(Error::conflict(format!("trace: {error}: try again")));
            }
            tracer => tracer.failed("trace")?,
        };
        let now = Timestamp::now();
        let traced: Vec<_> = blocking(|| {
            let trace = |frame: &Vec<u8>| tracer.trace(port, frame, VnetHdr::default(), now);
            frames.iter().map(trace).collect()
        });
        let names = self.names();
        let shown = frames.iter().zip(&traced);
        Ok(shown.map(|(frame, traced)| names.trace(port, frame, traced)).collect())
    }

    /// The port that the frames come in by.
    fn ingress(&self, request: &TraceRequest) -> Result<PortId> {
        let world = self.world();
        if let Some(interface) = &request.uplink {
            if !world.desired.uplinks.contains_key(interface) {
                return Err(super::super::uplink::unknown(interface));
            }
            let state = world.attached.uplinks.get(interface);
            return state.map(|state| state.port).ok_or_else(|| {
                Error::conflict(format!("uplink {interface:?}: its interface is not there"))
            });
        }
        let Some(name) = &request.sandbox else {
            return Err(Error::invalid("trace: name one of sandbox and uplink"));
        };
        let sandbox = world.desired.sandboxes.get(name).ok_or_else(|| unknown_sandbox(name))?;
        let src = request.packet.as_ref().map(|text| text.packet().src.ip());
        let ifname = interface_of(&world, sandbox, request.network.as_ref(), src)?;
        let port = world.attached.endpoints.get(&(name.clone(), ifname.clone()));
        port.copied()
            .ok_or_else(|| Error::conflict(format!("sandbox {name:?}: {ifname} is not attached")))
    }

    /// The frame of a packet: from the MAC of whoever is behind the port, to the one that it would use.
    fn frame_of(&self, packet: &Packet, port: PortId) -> Result<Vec<u8>> {
        let snapshot = self.engine().snapshot();
        let known = |link: Link, address: IpAddr| {
            let neighbors = self.engine().neighbors();
            neighbors.iter().find(|n| n.link == link && n.address == address).and_then(|n| n.mac)
        };
        let macs = usual_macs(&snapshot, port, packet, known);
        let (from, to) = (packet.from.map(|mac| mac.0), packet.to.map(|mac| mac.0));
        let (from, to) = match (from, to) {
            (Some(from), Some(to)) => (from, to),
            (from, to) => {
                let macs = macs?;
                (
                    from.unwrap_or(macs.from),
                    match (to, macs.to) {
                        (Some(to), _) | (None, Some(to)) => to,
                        (None, None) => {
                            return Err(Error::conflict(format!(
                                "packet: nobody is known to be at {}, so it would be asked for by ARP \
                             or Neighbor Discovery first; say 'to MAC'",
                                packet.dst.ip()
                            )));
                        }
                    },
                )
            }
        };
        Ok(packet.frame(Macs { from, to }))
    }

    fn names(&self) -> Names {
        let world = self.world();
        let networks = world.desired.networks.values();
        let networks = networks.map(|network| (network.network_id(), network.name.clone()));
        let rules = world.desired.publishes().flat_map(|(sandbox, publish)| {
            world.desired.ways_in(sandbox).into_iter().filter_map(move |(_, to)| {
                let (rule, host_ip) = publish.half(to)?;
                Some((rule, format!("{} of {}", rule_match(publish, host_ip), sandbox.name)))
            })
        });
        let policies = world.desired.networks.values().flat_map(|network| {
            let name = &network.name;
            network
                .policy
                .iter()
                .map(move |rule| (rule.id, format!("{} of {name}", policy::describe(rule))))
        });
        let uplinks = world.desired.uplinks.values();
        let uplinks = uplinks.filter_map(|uplink| {
            let id = uplink.uplink_id();
            Some((id.0, uplink_name(&world.desired, id)?))
        });
        Names {
            ports: world.owners(),
            networks: networks.collect(),
            rules: rules.collect(),
            policies: policies.collect(),
            uplinks: uplinks.collect(),
        }
    }
}

fn check(request: &TraceRequest) -> Result<()> {
    if request.sandbox.is_some() == request.uplink.is_some() {
        return Err(Error::invalid("trace: name one of sandbox and uplink"));
    }
    if request.network.is_some() && request.uplink.is_some() {
        return Err(Error::invalid("trace: network goes with sandbox only"));
    }
    if request.packet.is_some() != request.frames.is_empty() {
        return Err(Error::invalid("trace: give a packet, or frames"));
    }
    if request.frames.len() > MAX_FRAMES {
        let message = format!("trace: {} frames; at most {MAX_FRAMES}", request.frames.len());
        return Err(Error::invalid(message));
    }
    let wrong = |frame: &types::FrameHex| frame.0.is_empty() || frame.0.len() > MAX_FRAME_LEN;
    if request.frames.iter().any(wrong) {
        return Err(Error::invalid(format!("trace: a frame has 1 to {MAX_FRAME_LEN} bytes")));
    }
    Ok(())
}

/// The interface of a sandbox that a packet leaves by.
fn interface_of(
    world: &World,
    sandbox: &Sandbox,
    network: Option<&Name>,
    src: Option<IpAddr>,
) -> Result<String> {
    let name = &sandbox.name;
    if let Some(network) = network {
        world.network_exists(Some(network))?;
        let endpoint = sandbox.endpoints.iter().find(|endpoint| endpoint.network == *network);
        return endpoint.map(|endpoint| endpoint.ifname.clone()).ok_or_else(|| {
            Error::not_found(format!("sandbox {name:?}: is not in network {network:?}"))
        });
    }
    let speaks = sandbox.endpoints.iter().find(|endpoint| {
        let six = endpoint.ipv6.map(|net| IpAddr::V6(net.addr()));
        src.is_some_and(|src| src == IpAddr::V4(endpoint.ipv4) || Some(src) == six)
    });
    let usual = speaks.or_else(|| match src {
        Some(IpAddr::V6(_)) => world.desired.gateway_endpoint6(sandbox).map(|(usual, _)| usual),
        _ => world.desired.gateway_endpoint(sandbox),
    });
    let endpoint = usual.or_else(|| sandbox.endpoints.first());
    endpoint
        .map(|endpoint| endpoint.ifname.clone())
        .ok_or_else(|| Error::conflict(format!("sandbox {name:?}: has no interface to send by")))
}

/// Whom a packet comes from and to whom it goes where nothing is said; `to` may be unknown.
struct Usual {
    from: Mac,
    to: Option<Mac>,
}

fn usual_macs(
    snapshot: &Snapshot,
    port: PortId,
    packet: &Packet,
    known: impl Fn(Link, IpAddr) -> Option<Mac>,
) -> Result<Usual> {
    let dst = packet.dst.ip();
    if let Some(uplink) = snapshot.uplinks().find(|uplink| uplink.port == port) {
        let gateway = match dst {
            IpAddr::V4(_) => uplink.gateway.map(IpAddr::V4),
            IpAddr::V6(_) => uplink.gateway6.map(IpAddr::V6),
        };
        let router = gateway.and_then(|gateway| known(Link::Uplink(uplink.id), gateway));
        return Ok(Usual { from: router.unwrap_or(SOMEBODY), to: Some(uplink.mac) });
    }
    let network = snapshot.port(port).and_then(|entry| snapshot.network(entry.network?));
    let network =
        network.ok_or_else(|| Error::conflict("trace: the port carries no frames yet"))?;
    let own = network.macs.iter().find(|(_, behind)| **behind == port);
    let from = own.map_or(SOMEBODY, |(mac, _)| *mac);
    let near = network.config.subnets.iter().any(|subnet| subnet.prefix.contains(dst));
    let to = if dst.is_multicast() || is_broadcast(dst) {
        Some(group(dst))
    } else if !near || network.is_gateway(dst) {
        Some(network.config.gateway_mac)
    } else if let Some((mac, _)) = network.endpoints.get(dst) {
        Some(*mac)
    } else {
        known(Link::Network(network.config.id), dst)
    };
    Ok(Usual { from, to })
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

/// The MAC of a group (RFC 1112 §6.4, RFC 2464 §7).
fn group(address: IpAddr) -> Mac {
    match address {
        IpAddr::V4(address) if address.is_broadcast() => Mac::BROADCAST,
        IpAddr::V4(address) => {
            let [_, b, c, d] = address.octets();
            Mac([1, 0, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            Mac([0x33, 0x33, a, b, c, d])
        }
    }
}

/// The names of what the engine knows by number.
struct Names {
    ports: HashMap<PortId, Owner>,
    networks: HashMap<NetworkId, Name>,
    rules: HashMap<u32, String>,
    /// Rules of policies, with their networks.
    policies: HashMap<u32, String>,
    uplinks: HashMap<u16, String>,
}

impl Names {
    fn port(&self, port: PortId) -> String {
        self.ports.get(&port).map_or_else(|| port.0.to_string(), |owner| owner.port.clone())
    }

    fn network(&self, network: NetworkId) -> String {
        self.networks.get(&network).map_or_else(|| network.0.to_string(), Name::to_string)
    }

    fn trace(&self, port: PortId, frame: &[u8], traced: &Traced) -> types::Trace {
        let left = !traced.sent.is_empty();
        // What egress could not carry out.
        let lost = traced.drops.first().map(|(reason, _)| *reason);
        let (verdict, reason) = match traced.verdict {
            Verdict::Drop(reason) => ("drop", Some(reason)),
            Verdict::Flood(_)
            | Verdict::FloodCounted(_)
            | Verdict::Forward(_)
            | Verdict::ForwardInPieces(_)
            | Verdict::Multicast(_)
                if !left && lost.is_some() =>
            {
                ("drop", lost)
            }
            Verdict::Hold | Verdict::HoldFragment if lost.is_some() => ("drop", lost),
            Verdict::Answer => ("answer", None),
            Verdict::Consume => ("consume", None),
            // Routers alone, and there is none: it told us something.
            Verdict::Routers(_) if !left => ("consume", None),
            Verdict::Flood(_)
            | Verdict::FloodCounted(_)
            | Verdict::Multicast(_)
            | Verdict::Routers(_) => ("flood", None),
            Verdict::Forward(_) | Verdict::ForwardInPieces(_) => ("forward", None),
            Verdict::Hold | Verdict::HoldFragment => ("hold", None),
        };
        let waits_for = traced.waits_for.filter(|_| verdict == "hold");
        types::Trace {
            frame: summary(frame),
            port: self.port(port),
            steps: traced.steps.iter().map(|step| self.step(step)).collect(),
            verdict: verdict.to_owned(),
            drop_reason: reason.map(|reason| reason.name().to_owned()),
            waits_for: waits_for.map(|(_, address)| address.to_string()),
            sent: traced.sent.iter().map(|sent| self.sent(sent)).collect(),
            drops: traced
                .drops
                .iter()
                .map(|(reason, count)| DropCount {
                    reason: reason.name().to_owned(),
                    count: *count,
                    description: reason.describe().trim().to_owned(),
                })
                .collect(),
        }
    }

    fn step(&self, step: &Step) -> TraceStep {
        let fact = |(name, fact): &(&'static str, Fact)| TraceFact {
            name: (*name).to_owned(),
            value: self.value(name, *fact),
        };
        TraceStep { stage: step.stage.to_owned(), facts: step.facts.iter().map(fact).collect() }
    }

    fn value(&self, name: &str, fact: Fact) -> String {
        match fact {
            Fact::Address(address) => address.to_string(),
            Fact::Dropped(reason) => reason.name().to_owned(),
            Fact::Flow(flow) => flow_text(flow),
            Fact::Mac(mac) => mac.to_string(),
            Fact::Network(network) => self.network(network),
            Fact::Number(number) if name == "proto" => u8::try_from(number)
                .map_or_else(|_| number.to_string(), |n| IpProtocol(n).to_string()),
            Fact::Number(number) => number.to_string(),
            Fact::Policy(rule) => {
                self.policies.get(&rule).cloned().unwrap_or_else(|| rule.to_string())
            }
            Fact::Port(port) => self.port(port),
            Fact::Rule(rule) => self.rules.get(&rule).cloned().unwrap_or_else(|| rule.to_string()),
            Fact::Uplink(uplink) => {
                self.uplinks.get(&uplink.0).cloned().unwrap_or_else(|| uplink.0.to_string())
            }
            Fact::Word(word) => word.to_owned(),
        }
    }

    fn sent(&self, sent: &SentFrame) -> TraceSent {
        let mac = |at: usize| {
            let bytes = sent.bytes.get(at..at + 6).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(Mac::ZERO, Mac).into()
        };
        TraceSent {
            port: self.port(sent.port),
            from: mac(6),
            to: mac(0),
            length: u64::try_from(sent.bytes.len()).unwrap_or(u64::MAX),
            summary: summary(&sent.bytes),
        }
    }
}

fn summary(frame: &[u8]) -> String {
    describe(&View::parse(frame, u32::try_from(frame.len()).unwrap_or(u32::MAX)))
}

fn flow_text(flow: FlowTuple) -> String {
    let end = |address: IpAddr, port: u16| match (address, port) {
        (address, 0) => address.to_string(),
        (IpAddr::V4(address), port) => format!("{address}:{port}"),
        (IpAddr::V6(address), port) => format!("[{address}]:{port}"),
    };
    format!("{} > {}", end(flow.src, flow.src_port), end(flow.dst, flow.dst_port))
}
