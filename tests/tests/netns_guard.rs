//! Sandboxes that do harm with frames of their own making: they play DHCP server and router, flood, and
//! use MACs without end. What matters is what reaches the others.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dataplane::packet::ndp::link_local;
use dataplane::packet::types::{Mac, PortId, ethertype};
use tests::host::raw::{RawListener, RawSender};
use tests::host::traffic::ping;
use tests::host::{Host, Sandbox, Uplink, eventually, one, rows};
use tests::packet::{self, ethernet, udp};

/// IEEE 802 local experimental: nobody else sends it.
const OURS: u16 = 0x88b5;
const ALL_NODES: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

fn mac(host: &Host, sandbox: &Sandbox) -> Mac {
    let shown = one(&host.json(["sandbox", "inspect", &sandbox.name]));
    shown["endpoints"][0]["mac"].as_str().unwrap().parse().unwrap()
}

/// A host of [`tests::packet`]; its port means nothing here.
fn on_the_wire(mac: Mac, ip: Ipv4Addr) -> packet::Host {
    packet::Host { port: PortId(0), mac, ip }
}

fn dropped(host: &Host, sandbox: &Sandbox, reason: &str) -> u64 {
    let counts = rows(&host.json(["drops", "--sandbox", &sandbox.name]));
    let row = counts.into_iter().find(|row| row["reason"] == reason);
    row.map_or(0, |row| row["count"].as_u64().unwrap())
}

/// Frames that the engine received from a sandbox.
fn received_from(host: &Host, sandbox: &Sandbox) -> u64 {
    let ports = rows(&host.json(["stats", "--sandbox", &sandbox.name]));
    ports.iter().map(|port| port["rx_frames"].as_u64().unwrap()).sum()
}

fn is(kind: u16) -> impl Fn(&[u8]) -> bool + Send + 'static {
    move |frame| frame.get(12..14) == Some(&kind.to_be_bytes())
}

/// A Router Advertisement of no lifetime, behind a hop-by-hop header if asked for.
fn advertisement(from: Mac, behind_options: bool) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut packet = vec![0x60, 0, 0, 0, 0, 16, 58, 255];
    if behind_options {
        message.splice(0..0, [58, 0, 1, 4, 0, 0, 0, 0]);
        packet[5..7].copy_from_slice(&[24, 0]);
    }
    packet.extend(link_local(from).octets());
    packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend(message);
    ethernet(from, ALL_NODES, ethertype::IPV6, &packet)
}

/// Everything that a sandbox should not be able to say, in one go.
fn impersonations(sender: &Sandbox, own: Mac, victim: Mac) -> Vec<Vec<u8>> {
    let me = on_the_wire(own, sender.ip);
    let all = on_the_wire(Mac::BROADCAST, Ipv4Addr::BROADCAST);
    let one = on_the_wire(victim, sender.ip);
    vec![
        udp(&me, 67, &all, 68).payload(&[2; 300]).bytes(),
        udp(&me, 67, &one, 68).payload(&[2; 300]).bytes(),
        advertisement(own, false),
        advertisement(own, true),
    ]
}

#[test]
#[ignore = "needs root"]
fn nobody_plays_dhcp_server_or_router_who_is_not_trusted() {
    let host = Host::start(Uplink::None);
    host.network("app", "--subnet 10.91.1.0/24");
    let victim = host.sandbox("victim", "--network app");
    for (name, flags, trusted) in [("bad", "", false), ("good", "-o trusted=true", true)] {
        let sender = host.sandbox(name, &format!("--network app {flags}"));
        let own = mac(&host, &sender);
        let from_it = move |frame: &[u8]| {
            let dhcp = is(ethertype::IPV4)(frame) && frame.get(23) == Some(&17);
            frame[6..12] == own.0 && (dhcp || is(OURS)(frame) || frame.starts_with(&ALL_NODES.0))
        };
        let listener = RawListener::start(&victim.ns, "eth0", from_it);
        let mut raw = RawSender::open(&sender.ns, "eth0");
        let frames = impersonations(&sender, own, mac(&host, &victim));
        let last = ethernet(own, Mac::BROADCAST, OURS, &[7; 46]);
        for frame in frames.iter().chain([&last]) {
            raw.send(frame);
        }
        let total = frames.len() as u64;
        eventually(Duration::from_secs(5), "all is dealt with", || {
            let refused =
                dropped(&host, &sender, "dhcp_untrusted") + dropped(&host, &sender, "ra_untrusted");
            refused == if trusted { 0 } else { total }
        });
        // The last frame is behind all others, so nothing is still to come once it is there.
        assert_eq!(ping(&sender.ns, victim.ip, 1).received, 1);
        std::thread::sleep(Duration::from_millis(100));
        let seen: Vec<_> = listener
            .seen()
            .into_iter()
            .filter(|frame| *frame == last || frames.contains(frame))
            .collect();
        let expected = if trusted { [frames, vec![last]].concat() } else { vec![last] };
        assert_eq!(seen, expected, "{name}");
    }
    let good = host.find(&host.name("good"));
    let shown = one(&host.json(["sandbox", "inspect", &good.name]));
    assert_eq!(shown["endpoints"][0]["options"]["trusted"], "true");
    // Another network is asked for each.
    host.network("other", "--subnet 10.91.2.0/24");
    host.ok(["network", "connect", "-o", "trusted=true", "other", &victim.name]);
    host.refused(2, &["\"icc\"", "trusted"], ["network", "connect", "-o", "icc=0", "other", "x"]);
}

/// Whether a neighbor answers at an address of IPv6.
fn pings6(sandbox: &Sandbox, address: &str) -> bool {
    sandbox.ns.run(&format!("ping -6 -c 1 -W 1 {address}")).code == 0
}

#[test]
#[ignore = "needs root"]
fn without_an_ipv6_subnet_a_sandbox_has_its_link_local_address_alone() {
    let host = Host::start(Uplink::None);
    host.network("app", "--subnet 10.91.1.0/24");
    host.network("open", "--subnet 10.91.2.0/24 -o spoof_check=false");
    for (network, guarded) in [("app", true), ("open", false)] {
        let [a, b] = ["a", "b"]
            .map(|name| host.sandbox(&format!("{network}{name}"), &format!("--network {network}")));
        for (sandbox, last) in [(&a, 2), (&b, 3)] {
            for (key, value) in [("addr_gen_mode", "0"), ("disable_ipv6", "0")] {
                let path = format!("/proc/sys/net/ipv6/conf/eth0/{key}");
                sandbox.ns.enter(|| std::fs::write(path, value)).unwrap();
            }
            sandbox.ns.ip(&format!("-6 address add fd00:77::{last}/64 dev eth0 nodad"));
        }
        let of_b = format!("{}%eth0", link_local(mac(&host, &b)));
        // Until its kernel has asked whether it is free.
        eventually(Duration::from_secs(10), "neighbors reach each other", || pings6(&a, &of_b));
        assert_eq!(pings6(&a, "fd00:77::3"), !guarded, "{network}");
        assert_eq!(dropped(&host, &a, "spoofed_ipv6") > 0, guarded, "{network}");
        // Another's address, which nobody may say to have.
        let last = if guarded { "spoofed_nd" } else { "spoofed_ipv6" };
        a.ns.ip("-6 address add fe80::99/64 dev eth0");
        eventually(Duration::from_secs(5), "it asks for it", || {
            !guarded || dropped(&host, &a, last) > 0
        });
        assert_eq!(dropped(&host, &a, "spoofed_nd") > 0, guarded, "{network}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_storm_does_not_reach_the_others() {
    const FRAMES: u64 = 20_000;
    const LIMIT: u64 = 500;
    let host = Host::start(Uplink::None);
    host.network("app", &format!("--subnet 10.91.1.0/24 -o storm_limit={LIMIT}"));
    let [bad, one, two] = ["bad", "one", "two"].map(|name| host.sandbox(name, "--network app"));
    let own = mac(&host, &bad);
    let storm = RawListener::start(&one.ns, "eth0", is(OURS));
    let mut raw = RawSender::open(&bad.ns, "eth0");
    let frame = ethernet(own, Mac::BROADCAST, OURS, &[7; 46]);
    let start = Instant::now();
    let event = host.awaited_event("storm_limited", || {
        for at in 0..FRAMES {
            raw.send(&frame);
            // Bystanders lose nothing meanwhile, neither unicast nor ARP.
            if at % (FRAMES / 4) == 0 {
                two.ns.ip("neighbor flush all");
                assert_eq!(ping(&two.ns, one.ip, 3).received, 3);
            }
        }
    });
    assert!(event.contains(&bad.name) && event.contains("\"app\""), "{event}");
    let refused = || dropped(&host, &bad, "storm_limited");
    eventually(Duration::from_secs(5), "the storm is over", || {
        let before = refused();
        std::thread::sleep(Duration::from_millis(200));
        refused() == before
    });
    let most = LIMIT * (2 + start.elapsed().as_secs());
    // Some may not have found room in its own TAP.
    let came = received_from(&host, &bad);
    assert!(came > FRAMES / 2, "{came}");
    let passed = came - refused();
    assert!((LIMIT..=most).contains(&passed), "{passed} of {came} passed, {most} may have");
    let reached = storm.seen().len() as u64;
    assert!((1..=passed).contains(&reached), "{reached} of {passed} reached another");
    assert_eq!(dropped(&host, &two, "storm_limited"), 0);
}

#[test]
#[ignore = "needs root"]
fn macs_without_end_push_nobody_out() {
    const LIMIT: usize = 64;
    let mut host = Host::prepare(Uplink::None);
    host.configure(&format!("[limits]\nfdb = 1024\nfdb_per_port = {LIMIT}\n"));
    host.launch();
    host.network("app", "--subnet 10.91.1.0/24 -o spoof_check=false");
    let [bad, one, two, third] =
        ["bad", "one", "two", "third"].map(|name| host.sandbox(name, "--network app"));
    // Something with a MAC of its own behind an endpoint.
    let inner = Mac([2, 0, 0, 0, 0, 0xaa]);
    let mut behind_one = RawSender::open(&one.ns, "eth0");
    behind_one.send(&ethernet(inner, mac(&host, &two), OURS, &[1; 46]));
    let learned = |sandbox: &Sandbox| {
        let entries = rows(&host.json(["fdb", "show", "--network", "app"]));
        let its = |e: &&serde_json::Value| e["sandbox"] == *sandbox.name && e["kind"] == "learned";
        entries.iter().filter(its).count()
    };
    eventually(Duration::from_secs(5), "the inner MAC is learned", || learned(&one) >= 1);
    let mut raw = RawSender::open(&bad.ns, "eth0");
    for n in 0..20_000u64 {
        raw.send(&ethernet(Mac::from_u64(0x0200_1000_0000 + n), mac_of(n), OURS, &[2; 46]));
    }
    eventually(Duration::from_secs(5), "it has all it may have", || learned(&bad) == LIMIT);
    assert!(learned(&one) >= 1, "pushed out by another's");
    // Nobody else sees what goes to it.
    let [at_one, at_third] = [&one, &third].map(|s| RawListener::start(&s.ns, "eth0", is(OURS)));
    let mut raw = RawSender::open(&two.ns, "eth0");
    let frame = ethernet(mac(&host, &two), inner, OURS, &[3; 46]);
    for _ in 0..10 {
        raw.send(&frame);
    }
    assert_eq!(ping(&two.ns, one.ip, 2).received, 2);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(at_one.seen().iter().filter(|seen| **seen == frame).count(), 10);
    assert_eq!(at_third.seen().iter().filter(|seen| **seen == frame).count(), 0);

    // Who speaks with the gateway's MAC is told of.
    let gateway: Mac = gateway_mac(&two);
    let event = host.awaited_event("loop_detected", || {
        RawSender::open(&bad.ns, "eth0").send(&ethernet(gateway, Mac::BROADCAST, OURS, &[4; 46]));
    });
    assert!(event.contains(&bad.name), "{event}");
}

/// A container with two endpoints in one network bridges them: what others say to all comes back by its other one.
/// It ends there, and is told of.
#[test]
#[ignore = "needs root"]
fn who_bridges_two_endpoints_is_told_of() {
    let host = Host::start(Uplink::None);
    host.network("app", "--subnet 10.91.1.0/24 -o spoof_check=false");
    let [one, two, bridge] =
        ["one", "two", "bridge"].map(|name| host.sandbox(name, "--network app"));
    // The other end of the loop: it says again what it hears.
    let other = host.sandbox("other", "--network app");
    let own = mac(&host, &one);
    let hello = ethernet(own, Mac::BROADCAST, OURS, &[7; 46]);
    let at_two = RawListener::start(&two.ns, "eth0", is(OURS));
    let heard = RawListener::start(&bridge.ns, "eth0", is(OURS));
    RawSender::open(&one.ns, "eth0").send(&hello);
    std::thread::sleep(Duration::from_millis(200));
    let heard = heard.seen();
    assert_eq!(heard, std::slice::from_ref(&hello));
    let event = host.awaited_event("loop_detected", || {
        let mut raw = RawSender::open(&other.ns, "eth0");
        heard.iter().for_each(|frame| raw.send(frame));
    });
    assert!(event.contains(&other.name) && event.contains("bridges"), "{event}");
    assert_eq!(dropped(&host, &other, "endpoint_mac"), 1);
    assert_eq!(at_two.seen(), [hello], "once");
    assert_eq!(ping(&two.ns, one.ip, 2).received, 2);
}

/// Some unicast address that nobody has.
fn mac_of(n: u64) -> Mac {
    Mac::from_u64(0x0200_2000_0000 + n)
}

/// The gateway's MAC, from a sandbox's neighbors.
fn gateway_mac(sandbox: &Sandbox) -> Mac {
    assert_eq!(ping(&sandbox.ns, Ipv4Addr::new(10, 91, 1, 1), 1).received, 1);
    let shown = sandbox.ns.ip("neighbor show 10.91.1.1");
    let mac = shown.split_whitespace().skip_while(|word| *word != "lladdr").nth(1);
    mac.unwrap_or_else(|| panic!("{shown}")).parse().unwrap()
}
