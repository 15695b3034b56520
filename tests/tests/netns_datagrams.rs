//! Datagrams that come in trains leave as one frame, and arrive one by one, whole and in order.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use tests::host::namespace::Namespace;
use tests::host::traffic::{ping, uninterrupted};
use tests::host::{APP, BOTH, Host, Uplink, rows};

/// Datagrams of one stream.
const COUNT: u32 = 40_000;
/// As many of one length follow each other; the last of them is shorter.
const BLOCK: u32 = 50;
/// Datagrams without a pause.
const BURST: u32 = 200;
/// How long the receiver waits for one more.
const SILENCE: Duration = Duration::from_millis(500);
/// Streams until some of it was merged: whether frames wait together is up to the machine.
const ROUNDS: usize = 10;

/// What the number says a datagram must be.
fn datagram(number: u32) -> Vec<u8> {
    let block = number / BLOCK;
    let shorter = u32::from(number % BLOCK == BLOCK - 1);
    let length = [18, 100, 1300, 5, 1472 - 20][(block % 5) as usize] - shorter;
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(length as usize, number.to_le_bytes()[0]);
    bytes
}

/// Sends a stream; says how many arrived. Each must be what was sent, later than the one before.
fn stream(from: &Namespace, to: &Namespace, at: SocketAddr) -> u32 {
    let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let receiving = to.enter(|| UdpSocket::bind((any, at.port()))).unwrap();
    receiving.set_read_timeout(Some(SILENCE)).unwrap();
    let receiver = thread::spawn(move || {
        let (mut buffer, mut next, mut came) = ([0; 65_536], 0, 0);
        while let Ok(length) = uninterrupted(|| receiving.recv(&mut buffer)) {
            let bytes = &buffer[..length];
            let number = u32::from_be_bytes(*bytes.first_chunk().unwrap());
            assert_eq!(bytes, datagram(number), "number {number}");
            assert!(number >= next, "{number} came after {next}");
            next = number + 1;
            came += 1;
        }
        came
    });
    let sending = from.enter(|| UdpSocket::bind((any, 0))).unwrap();
    from.enter(|| sending.connect(at)).unwrap();
    for number in 0..COUNT {
        if number % BURST == 0 {
            thread::sleep(Duration::from_micros(500));
        }
        let _ = sending.send(&datagram(number));
    }
    receiver.join().unwrap()
}

fn merged(host: &Host) -> u64 {
    let workers = rows(&host.json(["status"])["workers"]);
    workers.iter().map(|worker| worker["merged"].as_u64().unwrap()).sum()
}

/// Streams until some were merged.
fn assert_arrives(host: &Host, from: &Namespace, to: &Namespace, at: IpAddr) {
    // What waits in the sender's stack for a neighbor is overtaken there by what is sent next.
    assert_eq!(ping(from, at, 1).received, 1, "{at}");
    let before = merged(host);
    for round in 1..=ROUNDS {
        let came = stream(from, to, (at, 7000).into());
        println!("{at}: {came} of {COUNT} came, {} merged", merged(host) - before);
        assert!(came > COUNT / 4, "{at}: {came} came");
        if merged(host) > before {
            return;
        }
        assert!(round < ROUNDS, "{at}: nothing was merged");
    }
}

fn between_sandboxes(sender: &str) {
    let host = Host::start_dual(Uplink::None);
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network app"));
    a.ns.ok(sender);
    for family in BOTH {
        assert_arrives(&host, &a.ns, &b.ns, family.of(&b));
    }
}

fn leave(uplink: Uplink) {
    let host = Host::start_dual(uplink);
    let a = host.sandbox("a", "--network app");
    for family in BOTH {
        assert_arrives(&host, &a.ns, &host.outside, family.outside());
    }
}

#[test]
#[ignore = "needs root"]
fn trains_between_sandboxes_arrive_one_by_one() {
    between_sandboxes("ethtool -K eth0 gso on");
}

/// Then every checksum is there and is verified before two become one.
#[test]
#[ignore = "needs root"]
fn trains_of_a_sender_without_offloads_do_too() {
    between_sandboxes("ethtool -K eth0 tx off");
}

#[test]
#[ignore = "needs root"]
fn trains_leave_by_a_dedicated_uplink() {
    leave(Uplink::Dedicated);
}

#[test]
#[ignore = "needs root"]
fn trains_leave_by_a_shared_uplink() {
    leave(Uplink::Shared);
}

#[test]
#[ignore = "needs root"]
fn with_gro_off_none_is_merged() {
    let mut host = Host::prepare_dual(Uplink::None);
    host.flags(["--gro", "false"]);
    host.launch();
    host.network("app", APP);
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network app"));
    for family in BOTH {
        assert_eq!(ping(&a.ns, family.of(&b), 1).received, 1);
        let came = stream(&a.ns, &b.ns, (family.of(&b), 7000).into());
        assert!(came > COUNT / 4, "{came} came by {family}");
    }
    assert_eq!(merged(&host), 0);
}
