//! A sandbox with raw sockets says what no stack would: offload headers that lie, others' addresses,
//! tags, fragments without end. Each has its counter, none reaches a neighbor, and neighbors go on.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dataplane::packet::types::tcp_flags::SYN;
use dataplane::packet::types::{Mac, PortId, ethertype};
use tests::fragments::{in_pieces, piece};
use tests::host::bystander::Bystander;
use tests::host::namespace::Namespace;
use tests::host::raw::{RawListener, RawSender};
use tests::host::traffic::ping;
use tests::host::{BOTH, Family, Host, Sandbox, Uplink, eventually, rows};
use tests::packet::{self, Wire, arp, echo, ethernet, lies, nd, tcp, udp};
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
        }
    }

    /// Somebody beyond the gateway.
    fn beyond(&self) -> packet::Host {
        packet::Host { ip: tests::host::GATEWAY, ..self.gateway }
    }
}

fn started() -> (Host, [Sandbox; 3]) {
    let host = Host::start(Uplink::Dedicated);
    host.network("app", "--subnet 10.91.1.0/24 --gateway 10.91.1.1");
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
    let bystander = Bystander::start(&two.ns, &host.outside, &[Family::V4]);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..5 {
        for to in [neighbor, attacker.beyond()] {
            for wire in lies(&own, &to) {
                // Once: what it cannot cut the kernel refuses before a veth device, which has no queue,
                // as if for want of room. A TAP's queue takes it, and loses it.
                *if attacker.raw.offer(&wire) { &mut taken } else { &mut refused } += 1;
            }
        }
    }
    // The kernel lets by what it does not look at: what of it came is here, and none of it unseen.
    assert!(taken > 50 && refused > 50, "the kernel took {taken} and refused {refused}");
    eventually(Duration::from_secs(5), "lies are counted", || {
        dropped(&host, &bad, "vnet_invalid") + dropped(&host, &bad, "l4_malformed") > 0
    });
    bystander.went_on();
    let sent = lies(&own, &neighbor);
    for wire in heard.seen_whole() {
        let (sums, vnet) = (sums::check(&wire), wire.vnet);
        let long = wire.bytes.len() > 14 + 1500;
        assert!(!long || vnet.is_gso() && vnet.gso_size > 7 && vnet.gso_size <= 1460, "{wire:?}");
        // As it was sent, whatever that says of itself; or made by us of it, and then without a fault.
        let as_sent = sent.iter().any(|lie| lie.bytes == wire.bytes);
        assert!(as_sent || sums.are_right(), "{sums:?} {wire:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn nobody_takes_the_gateway_s_or_a_neighbor_s_address() {
    let host = Host::start(Uplink::None);
    host.ns.enable_ipv6();
    host.network("app", "--subnet 10.91.1.0/24 --gateway 10.91.1.1 --subnet fd00:91::/64");
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
    let gateway6 = "fd00:91::1".parse().unwrap();
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
const VLANS: [u16; 13] = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 4094];

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
        attacker.raw.send(&packet.macs(own, to).bytes());
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
        attacker
            .raw
            .send(&echo(&attacker.own, &attacker.gateway, 3).payload(&vec![1; round]).bytes());
        attacker
            .raw
            .send(&udp(&attacker.own, 9, &attacker.beyond(), 9).ttl(1).payload(b"x").bytes());
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
    assert!(answers.len() >= 80, "{}", answers.len());
    for frame in answers {
        assert!(!frame.contains(&SECRET), "{frame:02x?}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_scan_of_the_gateway_costs_nobody_anything() {
    const PORTS: u16 = 10_000;
    let host = Host::start_dual(Uplink::Dedicated);
    let [bad, two] = ["bad", "two"].map(|name| host.sandbox(name, "--network app"));
    let mut attacker = Attacker::new(&bad);
    let bystander = Bystander::start(&two.ns, &host.outside, &BOTH);
    let before = host.json(["conntrack", "stats"])["entries"].as_u64().unwrap();
    let (own, gateway) = (attacker.own, attacker.gateway);
    let open = RawListener::start(&bad.ns, "eth0", |frame| {
        // SYN and ACK: somebody listens.
        let (proto, flags) = match frame.get(12..14) {
            Some(&[8, 0]) => (23, 47),
            Some(&[0x86, 0xdd]) => (20, 67),
            _ => return false,
        };
        frame.get(proto) == Some(&6) && frame.get(flags) == Some(&0x12)
    });
    let refused = |sandbox: &Sandbox| {
        let ports = rows(&host.json(["stats", "--sandbox", &sandbox.name]));
        ports.iter().map(|port| port["refused"].as_u64().unwrap()).sum::<u64>()
    };
    for family in BOTH {
        let (from, to, counted) = (family.of(&bad), family.gateway(), refused(&bad));
        for port in 1..=PORTS {
            let syn = tcp(&own, 50_000, &gateway, port, SYN).between(from, to);
            attacker.raw.send(&Wire::from(&syn).bytes);
            if port % 4 == 0 {
                let datagram = udp(&own, 50_000, &gateway, port).between(from, to);
                attacker.raw.send(&Wire::from(&datagram).bytes);
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

#[test]
#[ignore = "needs root"]
fn fragments_without_end_stop_nobody_s() {
    const EACH: u32 = 100_000;
    let (host, [bad, one, two]) = started();
    let mut attacker = Attacker::new(&bad);
    // Buffers are used by then as far as they ever are by traffic of this kind.
    assert_eq!(ping(&two.ns, one.ip, 3).received, 3);
    let before = host.memory_kib();
    let (own, beyond) = (attacker.own, attacker.beyond());
    let whole = |ident: u32| {
        let [_, _, a, b] = ident.to_be_bytes();
        udp(&own, 5000, &beyond, 53).ident(u16::from_be_bytes([a, b])).may_fragment().long(600)
    };
    let orphan = piece(&whole(0).bytes(), 256, 512);
    let overlapping = in_pieces(&whole(0), 256);
    // The machine outside would keep what is never whole, in room of its own that all share who speak
    // from the NAT's address.
    host.outside.ok("nft add table ip t");
    host.outside.ok("nft add chain ip t c { type filter hook prerouting priority -300 ; }");
    host.outside.ok("nft add rule ip t c ip protocol udp drop");
    let fragmented = |when: &str| {
        let said = two.ns.run("ping -n -c 5 -i 0.1 -W 2 -s 3200 192.0.2.1").stdout;
        assert!(said.contains(" 5 received"), "{when}: {said}");
    };
    fragmented("before");
    let start = Instant::now();
    for number in 0..EACH {
        let mut frame = orphan.clone();
        renumber(&mut frame, number);
        attacker.raw.send(&frame);
        if number % 20_000 == 0 {
            fragmented(&format!("after {number} orphans"));
        }
    }
    let orphans = start.elapsed();
    for number in 0..EACH / 4 {
        // The first one, the one behind it, one over both, and the first again.
        let [first, second] = [&overlapping[0], &overlapping[1]];
        let over = piece(&whole(0).bytes(), 128, 384);
        for part in [first, second, &over, first] {
            let mut frame = part.clone();
            renumber(&mut frame, number);
            attacker.raw.send(&frame);
        }
        if number % 5000 == 0 {
            fragmented(&format!("after {number} that overlap"));
        }
    }
    println!(
        "{EACH} orphans in {orphans:?}, as many that overlap in {:?}",
        start.elapsed() - orphans
    );
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

/// Another identification, with the header's checksum.
fn renumber(frame: &mut [u8], number: u32) {
    let [_, _, a, b] = number.to_be_bytes();
    frame[18..20].copy_from_slice(&[a, b]);
    frame[24..26].copy_from_slice(&[0, 0]);
    let sum = !sums::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}
