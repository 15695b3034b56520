//! Multicast between real kernels: it goes where it was joined, and a sandbox that joins without end harms
//! itself alone.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use dataplane::packet::checksum::Sum;
use dataplane::packet::types::Mac;
use nix::net::if_::if_nametoindex;
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::host::raw::{RawListener, RawSender};
use tests::host::traffic::{assert_ping, uninterrupted};
use tests::host::{Host, Sandbox, Uplink, eventually, one, rows};
use tests::packet::ethernet;

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0x1234);
const GROUP_MAC: [u8; 6] = [1, 0, 0x5e, 1, 2, 3];
const GROUP6_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0x12, 0x34];
const PORT: u16 = 5007;
const PORT6: u16 = 5008;

fn members(host: &Host, sandbox: &Sandbox) -> Vec<Value> {
    let all = rows(&host.json(["mdb", "show", "--network", "app"]));
    all.into_iter().filter(|entry| entry["sandbox"] == *sandbox.name).collect()
}

fn is_in(host: &Host, sandbox: &Sandbox, group: impl Into<IpAddr>) -> bool {
    let group = group.into().to_string();
    members(host, sandbox).iter().any(|entry| entry["group"] == *group)
}

/// Joined by the kernel of a sandbox.
fn join(sandbox: &Sandbox) -> UdpSocket {
    let socket = sandbox.ns.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))).unwrap();
    sandbox.ns.enter(|| socket.join_multicast_v4(&GROUP, &sandbox.ip)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

fn say(sandbox: &Sandbox, word: &str) {
    let socket = sandbox.ns.enter(|| UdpSocket::bind((sandbox.ip, 0))).unwrap();
    sandbox.ns.enter(|| socket.send_to(word.as_bytes(), (GROUP, PORT))).unwrap();
}

fn hears(socket: &UdpSocket, word: &str) -> bool {
    let mut buffer = [0; 64];
    uninterrupted(|| socket.recv(&mut buffer))
        .is_ok_and(|length| buffer[..length] == *word.as_bytes())
}

/// Of IPv6.
fn join6(sandbox: &Sandbox) -> UdpSocket {
    let socket = sandbox.ns.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT6))).unwrap();
    let eth0 = sandbox.ns.enter(|| if_nametoindex("eth0")).unwrap();
    socket.join_multicast_v6(&GROUP6, eth0).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

fn say6(sandbox: &Sandbox, word: &str) {
    let socket = sandbox.ns.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))).unwrap();
    let eth0 = sandbox.ns.enter(|| if_nametoindex("eth0")).unwrap();
    socket.send_to(word.as_bytes(), SocketAddrV6::new(GROUP6, PORT6, 0, eth0)).unwrap();
}

/// Reports of `count` groups from a sandbox, by as few frames as there may be.
fn reports(sandbox: &Sandbox, mac: Mac, count: u32) -> Vec<Vec<u8>> {
    let groups: Vec<u32> = (0..count).map(|n| 0xe800_0000 + n).collect();
    let frame = |groups: &[u32]| {
        let [n0, n1] = u16::try_from(groups.len()).unwrap().to_be_bytes();
        let mut igmp = vec![0x22, 0, 0, 0, 0, 0, n0, n1];
        for group in groups {
            igmp.extend([4, 0, 0, 0]);
            igmp.extend(group.to_be_bytes());
        }
        let sum = Sum::ZERO.add_bytes(&igmp).checksum();
        igmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let [l0, l1] = u16::try_from(20 + igmp.len()).unwrap().to_be_bytes();
        let mut ip = vec![0x45, 0, l0, l1, 0, 0, 0, 0, 1, 2, 0, 0];
        ip.extend(sandbox.ip.octets());
        ip.extend([224, 0, 0, 22]);
        let sum = Sum::ZERO.add_bytes(&ip).checksum();
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip.extend(igmp);
        ethernet(mac, Mac([1, 0, 0x5e, 0, 0, 22]), 0x0800, &ip)
    };
    groups.chunks(180).map(frame).collect()
}

#[test]
#[ignore = "needs root"]
fn multicast_goes_where_it_was_joined() {
    let host = Host::start(Uplink::None);
    let subnets = "--subnet 10.93.1.0/24 --subnet fd00:93:1::/64";
    host.network("app", &format!("{subnets} -o snooping=true -o querier=true"));
    let [a, b, c] = ["a", "b", "c"]
        .map(|name| host.sandbox(name, &format!("--network app --ip6 fd00:93:1::{name}")));
    let at_b = join(&b);
    eventually(Duration::from_secs(5), "the report is read", || is_in(&host, &b, GROUP));
    // Before everybody had time to answer the querier, all get all.
    say(&a, "first");
    assert!(hears(&at_b, "first"));
    eventually(Duration::from_secs(30), "who has not joined gets nothing", || {
        let listener = RawListener::start(&c.ns, "eth0", |frame| frame.starts_with(&GROUP_MAC));
        say(&a, "again");
        assert!(hears(&at_b, "again"));
        listener.seen().is_empty()
    });
    // Neighbor discovery depends on no report.
    for last in [0xb, 0xc] {
        assert_ping(&a.ns, Ipv6Addr::new(0xfd00, 0x93, 1, 0, 0, 0, 0, last), 64);
    }
    // The kernel answers the querier.
    let shown = members(&host, &b);
    let entry = shown.iter().find(|entry| entry["group"] == *GROUP.to_string()).unwrap();
    assert_eq!((&entry["kind"], &entry["vlan"]), (&"member".into(), &0.into()));
    assert!((1..=260).contains(&entry["expires_s"].as_u64().unwrap()), "{entry}");

    // One joins 10^5 groups.
    let shown = one(&host.json(["sandbox", "inspect", &c.name]));
    let mac: Mac = shown["endpoints"][0]["mac"].as_str().unwrap().parse().unwrap();
    let mut raw = RawSender::open(&c.ns, "eth0");
    for frame in reports(&c, mac, 100_000) {
        raw.send(&frame);
    }
    let limit = |name: &str| {
        let limits = host.json(["status"])["limits"].clone();
        let limit = rows(&limits).into_iter().find(|limit| limit["name"] == name).unwrap();
        (limit["current"].as_u64().unwrap(), limit["limit"].as_u64().unwrap())
    };
    eventually(Duration::from_secs(10), "it has all it may have", || {
        let (current, limit) = limit("groups_per_endpoint");
        current == limit && members(&host, &c).len() as u64 == limit
    });
    let drops = rows(&host.json(["drops", "--sandbox", &c.name]));
    assert!(drops.iter().any(|drop| drop["reason"] == "group_limit"), "{drops:?}");
    say(&a, "still");
    assert!(hears(&at_b, "still"));
    let at_a = join(&a);
    eventually(Duration::from_secs(5), "a neighbor joins", || is_in(&host, &a, GROUP));
    say(&b, "hello");
    assert!(hears(&at_a, "hello"));

    // Who leaves hears no more, at once.
    drop(at_b);
    eventually(Duration::from_secs(5), "it has left", || !is_in(&host, &b, GROUP));
    let listener = RawListener::start(&b.ns, "eth0", |frame| frame.starts_with(&GROUP_MAC));
    say(&a, "gone");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(listener.seen(), Vec::<Vec<u8>>::new());
    // With the sandbox its memberships go.
    host.ok(["sandbox", "rm", &c.name]);
    eventually(Duration::from_secs(5), "nothing is left of it", || limit("groups").0 <= 2);
}

/// Whoever joined before the daemon stopped is a member after it: everybody gets all until all were asked.
///
/// Rows: RFC 4541 §3.
#[test]
#[ignore = "needs root"]
fn members_of_both_families_outlive_the_daemon() {
    let mut host = Host::start(Uplink::None);
    let subnets = "--subnet 10.93.2.0/24 --subnet fd00:93:2::/64";
    host.network("app", &format!("{subnets} -o snooping=true -o querier=true"));
    let [a, b, c] = ["a", "b", "c"]
        .map(|name| host.sandbox(name, &format!("--network app --ip6 fd00:93:2::{name}")));
    let (at_b, at_b6) = (join(&b), join6(&b));
    let members_alone = |host: &Host, since: &str| {
        eventually(Duration::from_secs(30), &format!("members alone hear it {since}"), || {
            let listener = RawListener::start(&c.ns, "eth0", |frame| {
                frame.starts_with(&GROUP_MAC) || frame.starts_with(&GROUP6_MAC)
            });
            say(&a, since);
            say6(&a, since);
            assert!(hears(&at_b, since) && hears(&at_b6, since));
            std::thread::sleep(Duration::from_millis(100));
            listener.seen().is_empty()
        });
        assert!(is_in(host, &b, GROUP) && is_in(host, &b, GROUP6));
    };
    members_alone(&host, "at first");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        host.stop(signal);
        host.launch();
        // None is lost, from the first one on.
        members_alone(&host, &format!("after {signal}"));
    }
}
