//! Random programs against a small model of what a NAT owes its hosts: whatever was begun, answered,
//! published, unpublished, restarted and waited for in between,
//!
//! - a connection looks to its receiver as it did before, and to nobody else as it does to him;
//! - every answer returns to who began, under the address that he spoke to;
//! - nobody from outside reaches an endpoint but by an answer or a published port;
//! - the table has as many connections as are alive, each tuple once, and all sums balance.
//!
//! The model knows no table and no translation. It remembers what came out, and expects the same.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::packet::types::tcp_flags::{ACK, SYN};
use dataplane::packet::types::{Mac, PortId, ip_proto};
use proptest::prelude::*;
use tempfile::TempDir;
use tests::lab::{
    A, B, C, CLIENT, D, GATEWAY1, GATEWAY2, Lab, ROUTER, SERVER, UP, publish, small, topology,
};
use tests::packet::{Host, Packet, Wire, echo, echo_reply, speak_ipv6, tcp, udp};
use tests::sums;

const INSIDE: [Host; 4] = [A, B, C, D];
/// Ports that are published now and then, and what leads to them.
const HOST_PORT: u16 = 8080;
const SERVICE: u16 = 80;
/// Enough for all flows of a program to one destination: senders times their ports.
const NAT_PORTS: (u16, u16) = (40_000, 40_039);
/// Nobody whom an inside host has ever spoken to.
const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);

#[derive(Clone, Copy, Debug)]
enum Op {
    /// An inside host speaks to a server outside, or to a published port; again, if it did before.
    Speak {
        who: usize,
        to: usize,
        proto: usize,
        port: u16,
    },
    /// Somebody outside speaks to a published port.
    Call {
        proto: usize,
        rule: usize,
        port: u16,
    },
    /// Whoever was spoken to answers: one of the connections, be it alive or not.
    Answer {
        which: usize,
    },
    /// Somebody sends to where a connection is seen to come from, and is not who it speaks to.
    Intrude {
        which: usize,
        other_port: bool,
    },
    Wait {
        secs: u64,
    },
    Publish {
        rule: usize,
    },
    Unpublish {
        rule: usize,
    },
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..4usize, 0..5usize, 0..3usize, 0..4u16)
            .prop_map(|(who, to, proto, port)| Op::Speak { who, to, proto, port }),
        3 => (0..2usize, 0..3usize, 0..3u16)
            .prop_map(|(proto, rule, port)| Op::Call { proto, rule, port }),
        8 => (0..64usize).prop_map(|which| Op::Answer { which }),
        2 => (0..64usize, any::<bool>())
            .prop_map(|(which, other_port)| Op::Intrude { which, other_port }),
        2 => prop::sample::select(vec![7, 61, 113, 251, 311])
            .prop_map(|secs| Op::Wait { secs }),
        2 => (0..3usize).prop_map(|rule| Op::Publish { rule }),
        1 => (0..3usize).prop_map(|rule| Op::Unpublish { rule }),
        1 => Just(Op::Restart),
    ]
}

/// Who is spoken to by number, and at which port.
fn target(to: usize, proto: u8) -> (Ipv4Addr, u16) {
    match to {
        0 => (SERVER.ip, 53),
        1 => (SERVER.ip, 443),
        2 => (CLIENT.ip, 443),
        _ if proto == ip_proto::ICMP => (SERVER.ip, 0),
        rule => (UP.ip, HOST_PORT + rule as u16 - 3),
    }
}

const PROTOS: [u8; 3] = [ip_proto::UDP, ip_proto::TCP, ip_proto::ICMP];

/// A packet's ends, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ends {
    proto: u8,
    src: (Ipv4Addr, u16),
    dst: (Ipv4Addr, u16),
}

impl Ends {
    const fn reversed(self) -> Self {
        Self { proto: self.proto, src: self.dst, dst: self.src }
    }

    /// Of a frame that came out; `None`: it is none of TCP, UDP and echo.
    fn of(wire: &Wire) -> Option<Self> {
        let (bytes, l4) = (&wire.bytes, wire.l4());
        let (proto, [src, dst]) = match bytes[12..14] {
            [0x08, 0x00] => (bytes[23], [&bytes[26..30], &bytes[30..34]]),
            // The end of an address is that of its twin.
            [0x86, 0xdd] => (bytes[20], [&bytes[34..38], &bytes[50..54]]),
            _ => return None,
        };
        let address = |octets: &[u8]| Ipv4Addr::from(<[u8; 4]>::try_from(octets).unwrap());
        let (proto, ports) = match (proto, bytes[l4]) {
            (ip_proto::TCP | ip_proto::UDP, _) => (proto, (wire.l4_u16(0), wire.l4_u16(2))),
            (ip_proto::ICMP, 0 | 8) | (58, 128 | 129) => {
                (ip_proto::ICMP, (wire.l4_u16(4), wire.l4_u16(4)))
            }
            _ => return None,
        };
        Some(Self { proto, src: (address(src), ports.0), dst: (address(dst), ports.1) })
    }
}

/// A connection, as the model knows it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// As who began it sends, and from which port of the engine.
    original: Ends,
    origin: PortId,
    /// As the receiver gets it, and by which port.
    seen: Ends,
    receiver: PortId,
    rule: Option<usize>,
    /// Alive before the first, gone after the second; in between it may be either.
    until: (u64, u64),
    /// TCP: the SYN was answered, and that was acknowledged.
    answered: bool,
    established: bool,
    ended: bool,
}

impl Flow {
    fn is_alive(&self, now: u64) -> bool {
        !self.ended && now < self.until.0
    }

    fn is_gone(&self, now: u64) -> bool {
        self.ended || now > self.until.1
    }

    /// A packet of it has passed; `again`: one that says nothing new.
    fn pass(&mut self, now: u64, again: bool) {
        let idle = match self.original.proto {
            ip_proto::UDP if self.original.dst.1 == 53 => 30,
            ip_proto::UDP => 300,
            ip_proto::ICMP => 60,
            _ if self.established => 432_000,
            _ => 240,
        };
        // What keeps no connection alive may still be taken for something that does.
        let surely = if again { self.until.0 } else { now + idle };
        self.until = (surely, now + idle);
    }
}

struct Model {
    lab: Lab,
    options: EngineOptions,
    flows: Vec<Flow>,
    published: [bool; 3],
    now: u64,
    worker: usize,
    _files: TempDir,
}

impl Model {
    fn new() -> Self {
        let files = TempDir::new().unwrap();
        let options = EngineOptions {
            workers: 2,
            buffers_per_worker: 16,
            conntrack_file: Some(files.path().join("conntrack")),
            conntrack6_file: Some(files.path().join("conntrack6")),
            ..small()
        };
        let mut spec = topology();
        spec.uplinks[0].nat_ports = vec![NAT_PORTS];
        let lab = Lab::with(&options, spec);
        let (flows, published) = (Vec::new(), [false; 3]);
        Self { lab, options, flows, published, now: 0, worker: 0, _files: files }
    }

    fn run(&mut self, op: Op) {
        // Both see every flow sooner or later.
        self.worker ^= 1;
        match op {
            Op::Speak { who, to, proto, port } => {
                let (from, proto) = (INSIDE[who], PROTOS[proto]);
                // The same ports everywhere, so that they are wanted twice outside.
                let dst = target(to, proto);
                let sport = 40_000 + port;
                let dport = if proto == ip_proto::ICMP { sport } else { dst.1 };
                let ends = Ends { proto, src: (from.ip, sport), dst: (dst.0, dport) };
                self.send(from.port, ends);
            }
            Op::Call { proto, rule, port } => {
                let dst = (UP.ip, HOST_PORT + rule as u16);
                let src = (CLIENT.ip, 50_000 + port);
                self.send(UP.port, Ends { proto: PROTOS[proto], src, dst });
            }
            Op::Answer { which } if !self.flows.is_empty() => {
                let flow = self.flows[which % self.flows.len()];
                self.send(flow.receiver, flow.seen.reversed());
            }
            Op::Intrude { which, other_port } if !self.flows.is_empty() => {
                let flow = self.flows[which % self.flows.len()];
                if flow.receiver == UP.port {
                    let mut ends = flow.seen.reversed();
                    if other_port && ends.proto != ip_proto::ICMP {
                        ends.src.1 = 7;
                    } else {
                        ends.src.0 = STRANGER;
                    }
                    self.send(UP.port, ends);
                }
            }
            Op::Answer { .. } | Op::Intrude { .. } => {}
            Op::Wait { secs } => {
                self.now += secs;
                self.lab.after(Duration::from_secs(secs)).only_balanced();
            }
            Op::Publish { rule } => self.publish(rule, true),
            Op::Unpublish { rule } => self.publish(rule, false),
            Op::Restart => self.restart(),
        }
        self.check_table();
    }

    /// Rule 0 leads to A, 1 to B in UDP alone, 2 to D.
    fn publish(&mut self, rule: usize, on: bool) {
        self.published[rule] = on;
        let published = self.published;
        self.lab.reconfigure(|spec| {
            spec.dnat = (0..3).filter(|rule| published[*rule]).flat_map(rules).collect();
        });
        for flow in self.flows.iter_mut().filter(|flow| !on && flow.rule == Some(rule)) {
            flow.ended = true;
        }
    }

    /// The process ends and another one goes on with its files.
    fn restart(&mut self) {
        let (spec, now) = (self.lab.spec.clone(), self.lab.now);
        // The old one's files are its own as long as it lives.
        let nobody_s =
            EngineOptions { conntrack_file: None, conntrack6_file: None, ..self.options.clone() };
        self.lab = Lab::with(&nobody_s, topology());
        self.lab = Lab::with(&self.options, spec);
        self.lab.plane.end_orphans();
        self.lab.now = now;
        self.lab.resolve(&ROUTER);
    }

    /// A packet of these ends comes in by a port, as the protocol has it at this point.
    fn send(&mut self, port: PortId, ends: Ends) {
        let now = self.now;
        let unsure = |flow: &Flow| !flow.is_alive(now) && !flow.is_gone(now);
        let is_of = |flow: &Flow| {
            flow.original == ends && flow.origin == port
                || flow.seen.reversed() == ends && flow.receiver == port
        };
        if self.flows.iter().any(|flow| is_of(flow) && unsure(flow)) {
            return;
        }
        let living = self.flows.iter().position(|flow| is_of(flow) && flow.is_alive(now));
        let Some(at) = living else { return self.begin(port, ends) };
        let mut flow = self.flows[at];
        let forth = flow.original == ends && flow.origin == port;
        let (flags, again) = match (forth, flow.answered, flow.established) {
            (true, false, _) => (SYN, true),
            (true, true, established) => (ACK, established),
            (false, false, _) => (SYN | ACK, false),
            (false, true, false) => (SYN | ACK, true),
            (false, true, true) => (ACK, true),
        };
        let sent = self.process(port, &packet(port, ends, flags, forth));
        let expected = if forth {
            (flow.receiver, flow.seen)
        } else {
            (flow.origin, flow.original.reversed())
        };
        assert_eq!(sent, [expected], "{ends:?} by {port:?}, of {flow:?}");
        flow.established |= forth && flow.answered;
        flow.answered |= !forth;
        flow.pass(now, again && flow.original.proto == ip_proto::TCP);
        self.flows[at] = flow;
    }

    /// The same of no connection that there is.
    fn begin(&mut self, port: PortId, ends: Ends) {
        let from_outside = port == UP.port;
        // An answer to what is forgotten: only UDP does not know that it is one.
        let known = self.flows.iter().any(|flow| flow.seen.reversed() == ends);
        let is_answer = match ends.proto {
            ip_proto::UDP => false,
            ip_proto::ICMP => known || from_outside,
            _ => known,
        };
        let flags = if is_answer { SYN | ACK } else { SYN };
        let rule = (0..3)
            .find(|rule| self.published[*rule] && ends.dst == (UP.ip, HOST_PORT + *rule as u16));
        let rule = rule.filter(|rule| leads_to(*rule, ends.proto).is_some());
        let sent = self.process(port, &packet(port, ends, flags, !is_answer));
        let reached: Vec<_> = sent.iter().filter(|(to, _)| *to != GATEWAY1.port).collect();
        let speaks = !is_answer && (rule.is_some() || !from_outside && ends.dst.0 != UP.ip);
        if !speaks {
            return assert!(reached.is_empty(), "{ends:?} by {port:?} reached {reached:?}");
        }
        let [(receiver, seen)] = sent[..] else { panic!("{ends:?} by {port:?}: {sent:?}") };
        if let Some(rule) = rule {
            let to = leads_to(rule, ends.proto).unwrap();
            assert_eq!(
                (receiver, seen.dst),
                (to.port, (to.ip, SERVICE)),
                "{ends:?} of rule {rule}"
            );
            // A client from outside is seen as he is; one from inside as the address that he spoke to.
            let source = if from_outside { ends.src.0 } else { UP.ip };
            assert_eq!(seen.src.0, source, "{ends:?}: {seen:?}");
        } else {
            assert_eq!(
                (receiver, seen.dst.0, seen.src.0),
                (UP.port, ends.dst.0, UP.ip),
                "{ends:?}"
            );
            if ends.proto != ip_proto::ICMP {
                assert_eq!(seen.dst.1, ends.dst.1, "{ends:?}: {seen:?}");
            }
            assert!((NAT_PORTS.0..=NAT_PORTS.1).contains(&seen.src.1), "{ends:?}: {seen:?}");
        }
        let now = self.now;
        let shared = self
            .flows
            .iter()
            .find(|flow| flow.is_alive(now) && flow.seen == seen && flow.receiver == receiver);
        assert!(shared.is_none(), "{ends:?} is seen as {seen:?}, and so is {shared:?}");
        let mut flow = Flow {
            original: ends,
            origin: port,
            seen,
            receiver,
            rule,
            until: (0, 0),
            answered: false,
            established: false,
            ended: false,
        };
        flow.pass(now, false);
        self.flows.push(flow);
    }

    /// What comes out, with right checksums.
    fn process(&mut self, port: PortId, packet: &Packet) -> Vec<(PortId, Ends)> {
        let sent = self.lab.batch_on(self.worker, vec![(port, packet.into())]).sent();
        let ends = |(port, wire): (PortId, Wire)| {
            assert!(sums::check(&wire).are_right(), "{wire:?}");
            Ends::of(&wire).map(|ends| (port, ends))
        };
        sent.into_iter().filter_map(ends).collect()
    }

    fn check_table(&self) {
        let (now, mut tuples) = (self.now, HashSet::new());
        let connections = self.lab.connections();
        for connection in &connections {
            for tuple in [connection.original, connection.reply] {
                assert!(
                    tuples.insert((connection.proto, format!("{tuple:?}"))),
                    "{tuple:?} is there twice: {connections:#?}"
                );
            }
        }
        let alive = self.flows.iter().filter(|flow| flow.is_alive(now)).count();
        let perhaps = self.flows.iter().filter(|flow| !flow.is_gone(now)).count();
        assert!(
            (alive..=perhaps).contains(&connections.len()),
            "{alive} to {perhaps} are alive: {connections:#?}\n{:#?}",
            self.flows
        );
    }
}

/// Whom a rule leads to, in a protocol.
const fn leads_to(rule: usize, proto: u8) -> Option<Host> {
    match (rule, proto) {
        (0, ip_proto::TCP | ip_proto::UDP) => Some(A),
        (1, ip_proto::UDP) => Some(B),
        (2, ip_proto::TCP | ip_proto::UDP) => Some(D),
        _ => None,
    }
}

fn rules(rule: usize) -> Vec<dataplane::config::DnatRule> {
    let of = |proto: u8| {
        let to = leads_to(rule, proto)?;
        let id = rule as u32 * 256 + u32::from(proto);
        Some(publish(id, proto, HOST_PORT + rule as u16, &to, SERVICE))
    };
    [ip_proto::TCP, ip_proto::UDP].into_iter().filter_map(of).collect()
}

/// A packet of these ends as it comes in by a port; an echo is a request or a reply.
fn packet(port: PortId, ends: Ends, flags: u8, forth: bool) -> Packet {
    let (from_mac, gateway): (Mac, Mac) = match INSIDE.iter().find(|host| host.port == port) {
        Some(host) if host.port == D.port => (host.mac, GATEWAY2.mac),
        Some(host) => (host.mac, GATEWAY1.mac),
        None => (ROUTER.mac, UP.mac),
    };
    let [from, to] = [ends.src, ends.dst].map(|(ip, _)| Host { port, mac: from_mac, ip });
    let (src, dst) = (ends.src.1, ends.dst.1);
    let packet = match ends.proto {
        ip_proto::TCP => tcp(&from, src, &to, dst, flags),
        ip_proto::UDP => udp(&from, src, &to, dst),
        _ if forth => echo(&from, &to, src),
        _ => echo_reply(&from, &to, src),
    };
    packet.macs(from_mac, gateway)
}

fn run(program: &[Op]) {
    let mut model = Model::new();
    for op in program {
        model.run(*op);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Rows: RFC 4787 REQ-3.
    #[test]
    fn a_program_ends_as_the_model_says(program in prop::collection::vec(op(), 1..80)) {
        run(&program);
    }

    #[test]
    fn a_program_in_ipv6_ends_as_the_model_says(program in prop::collection::vec(op(), 1..80)) {
        speak_ipv6();
        run(&program);
    }
}
