//! A sandbox with raw sockets says what no stack would: offload headers that lie, others' addresses,
//! tags, fragments without end. Each has its counter, none reaches a neighbor, and neighbors go on.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use dataplane::packet::types::tcp_flags::SYN;
use dataplane::packet::types::{Mac, PortId, ethertype};
use tests::fragments::{piece, piece6, renumber};
use tests::host::bystander::Bystander;
use tests::host::namespace::Namespace;
use tests::host::raw::{RawListener, RawSender};
use tests::host::traffic::ping;
use tests::host::{BOTH, Family, Host, Sandbox, Uplink, eventually, rows};
use tests::packet::{self, arp, echo, ethernet, lies_between, nd, tcp, udp};
use tests::sums;

const NET_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 91, 1, 1);
/// IEEE 802 local experimental: nobody else sends it.
const OURS: u16 = 0x88b5;
/// What the daemon's memory may grow by under attack: buffers that were never used before are used, and
/// fragments wait in 4 MiB a worker.
const GROWTH_KIB: u64 = 96 << 10;

fn mac_of(ns: &Namespace) -> Mac {
    let shown = ns.ip("-o link show eth0");
    let mac = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    mac.expect("a MAC").parse().unwrap()
}

/// A sandbox as a sender of frames, and the gateway's MAC with an address.
struct Attacker {
    raw: RawSender,
    own: packet::Host,
    gateway: packet::Host,
    /// Its addresses.
    sandbox: Sandbox,
}

impl Attacker {
    fn new(sandbox: &Sandbox) -> Self {
        assert_eq!(ping(&sandbox.ns, NET_GATEWAY, 1).received, 1);
        let shown = sandbox.ns.ip(&format!("neighbor show to {NET_GATEWAY}"));
        let mac = shown.split("lladdr ").nth(1).and_then(|rest| rest.split(' ').next());
        let on_the_wire = |mac, ip| packet::Host { port: PortId(0), mac, ip };
        Self {
            raw: RawSender::open(&sandbox.ns, "eth0"),
            own: on_the_wire(mac_of(&sandbox.ns), sandbox.ip),
            gateway: on_the_wire(mac.expect("its MAC").parse().unwrap(), NET_GATEWAY),
            sandbox: sandbox.clone(),
        }
    }

    /// A packet as it is between this sandbox and that address.
    fn to(&self, packet: packet::Packet, address: IpAddr) -> packet::Packet {
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        packet.between(family.of(&self.sandbox), address)
    }
}

fn started() -> (Host, [Sandbox; 3]) {
    let host = Host::start_dual(Uplink::Dedicated);
    let sandboxes = ["bad", "one", "two"].map(|name| host.sandbox(name, "--network app"));
    (host, sandboxes)
}

fn dropped(host: &Host, sandbox: &Sandbox, reason: &str) -> u64 {
    let counts = rows(&host.json(["drops", "--sandbox", &sandbox.name]));
    let row = counts.into_iter().find(|row| row["reason"] == reason);
    row.map_or(0, |row| row["count"].as_u64().unwrap())
}

#[test]
#[ignore = "needs root"]
fn offload_headers_that_lie_reach_nobody() {
    let (host, [bad, one, two]) = started();
    let mut attacker = Attacker::new(&bad);
    let neighbor = packet::Host { mac: mac_of(&one.ns), ip: one.ip, ..attacker.own };
    let own = attacker.own;
    let heard = RawListener::start_whole(&one.ns, "eth0", move |wire| {
        wire.bytes.get(6..12) == Some(&own.mac.0)
    });
    let bystander = Bystander::start(&two.ns, &host.outside, &BOTH);
    let (mut taken, mut refused, mut sent) = (0, 0, Vec::new());
    for family in BOTH {
        let lies = |to, address| lies_between(&own, to, family.of(&bad), address);
        let near = lies(&neighbor, family.of(&one));
        let beyond = lies(&attacker.gateway, family.outside());
        for _ in 0..3 {
            for wire in near.iter().chain(&beyond) {
                // Once: what it cannot cut the kernel refuses before a veth device, which has no queue,
                // as if for want of room. A TAP's queue takes it, and loses it.
                *if attacker.raw.offer(wire) { &mut taken } else { &mut refused } += 1;
            }
        }
        sent.extend(near);
    }
    // The kernel lets by what it does not look at: what of it came is here, and none of it unseen.
    assert!(taken > 50 && refused > 50, "the kernel took {taken} and refused {refused}");
    eventually(Duration::from_secs(5), "lies are counted", || {
        dropped(&host, &bad, "vnet_invalid") + dropped(&host, &bad, "l4_malformed") > 0
    });
    bystander.went_on();
    for wire in heard.seen_whole() {
        let (sums, vnet) = (sums::check(&wire), wire.vnet);
        let long = wire.bytes.len() > 14 + 1500;
        assert!(!long || vnet.is_gso() && vnet.gso_size > 7 && vnet.gso_size <= 1460, "{wire:?}");
        // As it was sent, whatever that says of itself; or made by us of it, and then without a fault.
        let as_sent = sent.iter().any(|lie| lie.bytes == wire.bytes);
        assert!(as_sent || sums.are_right(), "{sums:?} {wire:?}");
    }
}

/// Rows: IEEE L10 source guard.
#[test]
#[ignore = "needs root"]
fn nobody_takes_the_gateway_s_or_a_neighbor_s_address() {
    let host = Host::start_dual(Uplink::None);
    let [bad, one, two] = ["bad", "one", "two"].map(|name| host.sandbox(name, "--network app"));
    let mut attacker = Attacker::new(&bad);
    // Both know each other before.
    assert_eq!((ping(&one.ns, two.ip, 1).received, ping(&one.ns, NET_GATEWAY, 1).received), (1, 1));
    let neighbors = || {
        let shown = one.ns.ip("neighbor show");
        let mut macs: Vec<_> = shown
            .lines()
            .filter_map(|line| Some((line.split(' ').next()?, line.split("lladdr ").nth(1)?)))
            .map(|(ip, rest)| format!("{ip} {}", rest.split(' ').next().unwrap()))
            .collect();
        macs.sort();
        macs
    };
    let before = neighbors();
    assert!(before.len() >= 2, "{before:?}");
    let (own, victim) =
        (attacker.own, packet::Host { mac: mac_of(&one.ns), ip: one.ip, ..attacker.own });
    let all = Mac::BROADCAST;
    let mut frames = Vec::new();
    for claimed in [NET_GATEWAY, two.ip] {
        for op in [1, 2] {
            // To everybody as an announcement, and to the victim as an answer.
            frames.push(arp(op, (own.mac, all), (own.mac, claimed), (all, claimed)));
            frames.push(arp(
                op,
                (own.mac, victim.mac),
                (own.mac, claimed),
                (victim.mac, victim.ip),
            ));
        }
    }
    let arps = frames.len() as u64;
    let IpAddr::V6(gateway6) = Family::V6.gateway() else { panic!("no IPv6") };
    let claims = [nd::announcement(&own, gateway6), nd::router_s_announcement(&own, gateway6)];
    frames.extend(claims.iter().map(packet::Packet::bytes));
    for frame in &frames {
        attacker.raw.send(frame);
    }
    eventually(Duration::from_secs(5), "all are refused", || {
        dropped(&host, &bad, "spoofed_arp") == arps
            && dropped(&host, &bad, "spoofed_nd") + dropped(&host, &bad, "spoofed_ipv6") == 2
    });
    let known = before.iter().all(|line| neighbors().contains(line));
    assert!(known, "{before:?} became {:?}", neighbors());
    assert_eq!(ping(&one.ns, two.ip, 2).received, 2);
}

/// The identifiers of Linux' `no_forwarding.sh`.
const VLANS: [u16; 14] = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 4000, 4094];

/// RFC 4291 §2.7.1.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Rows: Linux `no_forwarding.sh: standalone, two_bridges`.
#[test]
#[ignore = "needs root"]
fn no_tag_and_no_address_leads_into_another_network() {
    let host = Host::start(Uplink::None);
    for (name, subnet) in [("app", "10.91.1.0/24"), ("other", "10.91.2.0/24")] {
        host.network(name, &format!("--subnet {subnet} -o spoof_check=false -o storm_limit=0"));
    }
    let bad = host.sandbox("bad", "--network app");
    let near = host.sandbox("near", "--network app");
    let far = host.sandbox("far", "--network other");
    let mut attacker = Attacker::new(&bad);
    let (own, target) = (attacker.own.mac, mac_of(&far.ns));
    let mine = move |frame: &[u8]| frame.get(6..12) == Some(&own.0);
    let (here, there) =
        (RawListener::start(&near.ns, "eth0", mine), RawListener::start(&far.ns, "eth0", mine));
    let groups =
        [Mac([1, 2, 3, 4, 5, 6]), Mac([1, 0, 0x5e, 0, 0, 1]), Mac([0x33, 0x33, 0, 0, 0, 1])];
    let mut count = 0;
    for to in groups.into_iter().chain([Mac::BROADCAST, target]) {
        let untagged = ethernet(own, to, OURS, &[1; 46]);
        attacker.raw.send(&untagged);
        let packet = udp(&attacker.own, 1, &packet::Host { ip: far.ip, ..attacker.own }, 2);
        let packet = packet.macs(own, to);
        let to_nodes = packet.clone().dst6(ALL_NODES);
        for packet in [packet.clone(), packet.v6(), to_nodes] {
            attacker.raw.send(&packet.bytes());
            count += 1;
        }
        for outer in VLANS {
            for (inner, kind) in
                [(None, ethertype::VLAN), (Some(7), ethertype::QINQ), (Some(0), ethertype::VLAN)]
            {
                let mut frame = untagged[..12].to_vec();
                frame.extend(kind.to_be_bytes());
                frame.extend(outer.to_be_bytes());
                if let Some(inner) = inner {
                    let inner: u16 = inner;
                    frame.extend(ethertype::VLAN.to_be_bytes());
                    frame.extend(inner.to_be_bytes());
                }
                frame.extend(&untagged[12..]);
                attacker.raw.send(&frame);
                count += 1;
            }
        }
    }
    eventually(Duration::from_secs(5), "all came", || {
        let ports = rows(&host.json(["stats", "--sandbox", &bad.name]));
        ports[0]["rx_frames"].as_u64().unwrap() >= count
    });
    std::thread::sleep(Duration::from_millis(200));
    let (here, there) = (here.seen(), there.seen());
    assert!(here.len() > 100, "those of the same network see {}", here.len());
    assert_eq!(there, Vec::<Vec<u8>>::new());
}

/// Short frames after long ones of other contents: nothing of those is behind them.
#[test]
#[ignore = "needs root"]
fn nothing_leaks_behind_short_frames() {
    const SECRET: u8 = 0xa7;
    let (_host, [bad, one, two]) = started();
    let mut attacker = Attacker::new(&bad);
    let (secret, to) = (Attacker::new(&one), mac_of(&two.ns));
    let mut talker = secret.raw;
    let heard = RawListener::start(&bad.ns, "eth0", |frame| frame.len() < 200);
    let at_two =
        RawListener::start(&two.ns, "eth0", |frame| frame.get(12..14) == Some(&OURS.to_be_bytes()));
    let mut sent = Vec::new();
    for round in 0..40usize {
        talker.send(&ethernet(secret.own.mac, to, 0x88b6, &[SECRET; 1400]));
        let short = ethernet(attacker.own.mac, to, OURS, &vec![round as u8; round + 1]);
        attacker.raw.send(&short);
        sent.push(short);
        // What the engine itself says about it.
        attacker.raw.send(&arp(
            1,
            (attacker.own.mac, Mac::BROADCAST),
            (attacker.own.mac, bad.ip),
            (Mac::ZERO, NET_GATEWAY),
        ));
        for family in BOTH {
            let ping = echo(&attacker.own, &attacker.gateway, 3).payload(&vec![1; round]);
            let ping = attacker.to(ping, family.gateway());
            let last = udp(&attacker.own, 9, &attacker.gateway, 9).ttl(1).payload(b"x");
            let last = attacker.to(last, family.outside());
            attacker.raw.send(&ping.bytes());
            attacker.raw.send(&last.bytes());
        }
    }
    assert_eq!(ping(&one.ns, two.ip, 1).received, 1);
    std::thread::sleep(Duration::from_millis(200));
    let seen = at_two.seen();
    assert_eq!(seen.len(), sent.len());
    for (seen, sent) in seen.iter().zip(&sent) {
        let (same, tail) = seen.split_at(sent.len());
        assert_eq!(same, sent);
        assert!(tail.iter().all(|byte| *byte == 0), "{seen:02x?} of {sent:02x?}");
    }
    let answers = heard.seen();
    assert!(answers.len() >= 120, "{}", answers.len());
    for frame in answers {
        assert!(!frame.contains(&SECRET), "{frame:02x?}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_scan_of_the_gateway_costs_nobody_anything() {
    // By each family.
    const PORTS: u16 = 5_000;
    let (host, [bad, _, two]) = started();
    let mut attacker = Attacker::new(&bad);
    let bystander = Bystander::start(&two.ns, &host.outside, &BOTH);
    let before = host.json(["conntrack", "stats"])["entries"].as_u64().unwrap();
    let (own, gateway) = (attacker.own, attacker.gateway);
    let open = RawListener::start(&bad.ns, "eth0", |frame| {
        // SYN and ACK: somebody listens.
        let (proto, flags) = if frame.get(12..14) == Some(&[8, 0]) { (23, 47) } else { (20, 67) };
        frame.get(proto) == Some(&6) && frame.get(flags) == Some(&0x12)
    });
    let refused = |sandbox: &Sandbox| {
        let ports = rows(&host.json(["stats", "--sandbox", &sandbox.name]));
        ports.iter().map(|port| port["refused"].as_u64().unwrap()).sum::<u64>()
    };
    for family in BOTH {
        let counted = refused(&bad);
        for port in 1..=PORTS {
            let syn = tcp(&own, 50_000, &gateway, port, SYN);
            attacker.raw.send(&attacker.to(syn, family.gateway()).bytes());
            if port % 4 == 0 {
                let datagram = udp(&own, 50_000, &gateway, port);
                attacker.raw.send(&attacker.to(datagram, family.gateway()).bytes());
            }
        }
        // The host answers each SYN; of unreachable ports it tells as often as it likes.
        let least = counted + u64::from(PORTS) * 9 / 10;
        eventually(Duration::from_secs(10), "the scan is counted", || refused(&bad) >= least);
    }
    assert_eq!(refused(&two), 0, "of nobody else");
    bystander.went_on();
    assert_eq!(open.seen(), Vec::<Vec<u8>>::new(), "nothing listens at the gateway");
    // What is for the host itself takes no room of those who are translated.
    let after = host.json(["conntrack", "stats"])["entries"].as_u64().unwrap();
    assert!(after < before + 100, "{before} connections became {after}");
}

/// Rows: RFC 4787 REQ-14a.
#[test]
#[ignore = "needs root"]
fn fragments_without_end_stop_nobody_s() {
    // Of each family.
    const EACH: u32 = 50_000;
    let (host, [bad, one, two]) = started();
    let mut attacker = Attacker::new(&bad);
    // Buffers are used by then as far as they ever are by traffic of this kind.
    assert_eq!(ping(&two.ns, one.ip, 3).received, 3);
    let before = host.memory_kib();
    // The machine outside would keep what is never whole, in room of its own that all share who speak
    // from the NAT's address.
    host.outside.ok("nft add table inet t");
    host.outside.ok("nft add chain inet t c { type filter hook prerouting priority -500 ; }");
    host.outside.ok("nft add rule inet t c meta l4proto udp drop");
    let fragmented = |when: &str| {
        for family in BOTH {
            let line = format!("ping -n -c 5 -i 0.1 -W 2 -s 3200 {}", family.outside());
            let said = two.ns.run(&line).stdout;
            assert!(said.contains(" 5 received"), "{when}, {family}: {said}");
        }
    };
    fragmented("before");
    for family in BOTH {
        let whole = udp(&attacker.own, 5000, &attacker.gateway, 53).may_fragment().long(600);
        let whole = attacker.to(whole, family.outside());
        let bytes = whole.bytes();
        let part = |from, to| match family {
            Family::V4 => piece(&bytes, from, to),
            Family::V6 => piece6(&bytes, from, to, 0),
        };
        let start = Instant::now();
        let mut orphan = part(256, 512);
        for number in 0..EACH {
            renumber(&mut orphan, number);
            attacker.raw.send(&orphan);
            if number % 20_000 == 0 {
                fragmented(&format!("after {number} orphans of {family}"));
            }
        }
        let orphans = start.elapsed();
        // The first one, the one behind it, one over both, and the first again.
        let mut overlapping = [part(0, 256), part(256, 512), part(128, 384), part(0, 256)];
        for number in 0..EACH / 4 {
            for part in &mut overlapping {
                renumber(part, number);
                attacker.raw.send(part);
            }
            if number % 5000 == 0 {
                fragmented(&format!("after {number} that overlap, of {family}"));
            }
        }
        println!(
            "{EACH} orphans of {family} in {orphans:?}, as many that overlap in {:?}",
            start.elapsed() - orphans
        );
    }
    fragmented("at the end");
    assert!(dropped(&host, &bad, "fragment_overlap") > 0);
    assert!(
        dropped(&host, &bad, "fragment_limit") + dropped(&host, &bad, "fragment_untracked") > 0
    );
    let limits = rows(&host.json(["status"])["limits"]);
    let fragments = limits.iter().find(|limit| limit["name"] == "fragments").unwrap();
    assert!(fragments["peak"].as_u64() <= fragments["limit"].as_u64(), "{fragments}");
    let after = host.memory_kib();
    assert!(after < before + GROWTH_KIB, "{before} KiB became {after}");
}
