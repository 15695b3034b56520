//! Random data over random offloads: every byte arrives, no checksum is wrong, no segment is longer
//! than the MTU.
//!
//! `VSWITCHD_TEST_SEED` repeats what a run did; each prints its own.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tests::host::namespace::Namespace;
use tests::host::traffic::uninterrupted;
use tests::host::watch::{Seen, Watch};
use tests::host::{APP, BOTH, Family, Host, Uplink, WIRE};
use tests::sim::Rng;

/// Of every device here, unless it is made smaller.
const MTU: usize = 1500;
/// Data that is sent in all, over all rounds of both uplinks: 1 GiB.
const ALL: usize = 1 << 30;
/// Those of the sandboxes' devices.
const MTUS: [u16; 5] = [1500, 1500, 1499, 1280, 576];
/// The same with IPv6, which a device with a shorter one has not.
const MTUS6: [u16; 4] = [1500, 1500, 1499, 1280];
/// Settings that are tried with each uplink, half of them with IPv6.
const ROUNDS: usize = 16;
/// Data of one round.
const AMOUNT: usize = ALL / (2 * ROUNDS);
/// The longest pause of a connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// Random bytes, over and over: their number is a prime, so that no part of a segment is what it is
/// one segment further on.
fn data(rng: &mut Rng) -> Vec<u8> {
    const LENGTH: usize = 1_048_583;
    let mut bytes: Vec<u8> = (0..=LENGTH / 8).flat_map(|_| rng.number().to_le_bytes()).collect();
    bytes.truncate(LENGTH);
    bytes
}

/// Sizes from one byte to 256 KiB, small ones as often as large ones.
fn size(rng: &mut Rng) -> usize {
    let most = 1 << (rng.number() % 19);
    1 + usize::try_from(rng.number()).unwrap() % most
}

/// Sends so much by writes of random sizes; every byte is compared where it arrives.
fn transfer(
    amount: usize,
    from: &Namespace,
    to: &Namespace,
    at: (impl Into<IpAddr>, u16),
    rng: &mut Rng,
) {
    let at = SocketAddr::from((at.0.into(), at.1));
    let any: IpAddr =
        if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let sent = data(rng);
    let expected = sent.clone();
    let listener = to.enter(|| TcpListener::bind((any, at.port()))).unwrap();
    let mut sizes = Rng(rng.number());
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut got = vec![0; 1 << 18];
        let mut position = 0;
        loop {
            let most = size(&mut sizes).max(1000);
            let length = uninterrupted(|| stream.read(&mut got[..most])).unwrap();
            if length == 0 {
                break;
            }
            let mut here = &got[..length];
            while !here.is_empty() {
                let at = position % expected.len();
                let (now, later) = here.split_at(here.len().min(expected.len() - at));
                assert!(*now == expected[at..at + now.len()], "wrong bytes after {position}");
                position += now.len();
                here = later;
            }
        }
        assert_eq!(position, amount, "received");
    });
    let mut stream =
        from.enter(|| TcpStream::connect_timeout(&at, Duration::from_secs(5))).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(rng.happens(500)).unwrap();
    let mut position = 0;
    while position < amount {
        let at = position % sent.len();
        let length = size(rng).min(amount - position).min(sent.len() - at);
        stream.write_all(&sent[at..at + length]).unwrap();
        position += length;
    }
    drop(stream);
    receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Segments that the stack of a namespace refused for their checksum, and IP packets it refused.
fn errors(ns: &Namespace) -> Vec<(String, u64)> {
    let text = ns.ok("cat /proc/net/snmp");
    let mut found = Vec::new();
    let lines: Vec<_> = text.lines().collect();
    for pair in lines.chunks_exact(2) {
        for (name, value) in pair[0].split_whitespace().zip(pair[1].split_whitespace()) {
            if name.contains("Csum") || name == "InHdrErrors" {
                found.push((name.to_owned(), value.parse().unwrap()));
            }
        }
    }
    assert!(found.iter().any(|(name, _)| name == "InCsumErrors"), "{text}");
    // Of IPv6 each counter has a line; TCP has those above for both.
    for line in ns.ok("cat /proc/net/snmp6").lines() {
        let (name, value) = line.split_once(char::is_whitespace).unwrap();
        if name.contains("Csum") || name == "Ip6InHdrErrors" {
            found.push((name.to_owned(), value.trim().parse().unwrap()));
        }
    }
    found
}

/// What a device is set to.
#[derive(Debug)]
struct Setting {
    mtu: usize,
    #[allow(dead_code, reason = "printed")]
    off: String,
}

/// Turns each feature of a device on or off; says which are off.
fn features(ns: &Namespace, device: &str, rng: &mut Rng) -> String {
    ns.ok(&format!("ethtool -K {device} tx on rx on tso on gso on gro on"));
    let all_off = rng.happens(250);
    let off: Vec<_> = ["tx", "rx", "tso", "gso", "gro"]
        .into_iter()
        .filter(|_| all_off || rng.happens(400))
        .map(|feature| format!("{feature} off"))
        .collect();
    if !off.is_empty() {
        ns.ok(&format!("ethtool -K {device} {}", off.join(" ")));
    }
    off.join(" ")
}

/// The same, and gives it another MTU unless it is the wire's.
fn shuffle(ns: &Namespace, device: &str, mtus: &[u16], rng: &mut Rng) -> Setting {
    let off = features(ns, device, rng);
    let mtu = mtus[usize::try_from(rng.number()).unwrap() % mtus.len()];
    if device == WIRE {
        return Setting { mtu: MTU, off };
    }
    ns.ip(&format!("link set {device} mtu {mtu}"));
    Setting { mtu: mtu.into(), off }
}

fn seed() -> u64 {
    let seed = std::env::var("VSWITCHD_TEST_SEED").map_or_else(
        |_| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            u64::from(now.subsec_nanos()) ^ now.as_secs()
        },
        |text| text.parse().expect("a number"),
    );
    println!("VSWITCHD_TEST_SEED={seed}");
    seed
}

fn random_transfers(uplink: Uplink) {
    let mut rng = Rng(seed());
    let host = Host::start_dual(uplink);
    let a = host.sandbox("a", "--network app -p 7000-7100:7000-7100");
    let b = host.sandbox("b", "--network app");
    let spaces = [&a.ns, &b.ns, &host.outside];
    let before = spaces.map(errors);
    assert!(before[0].iter().any(|(name, _)| name == "Ip6InHdrErrors"), "{before:?}");
    for (round, port) in (7000..).take(ROUNDS).enumerate() {
        // IPv6 first: a device with the shortest MTU loses its addresses of that.
        let (family, mtus) = match round < ROUNDS / 2 {
            true => (Family::V6, &MTUS6[..]),
            false => (Family::V4, &MTUS[..]),
        };
        let settings = [
            shuffle(&a.ns, "eth0", mtus, &mut rng),
            shuffle(&b.ns, "eth0", mtus, &mut rng),
            shuffle(&host.ns, WIRE, mtus, &mut rng),
            shuffle(&host.outside, WIRE, mtus, &mut rng),
        ];
        let [in_a, in_b, _, outside] = settings.each_ref().map(|setting| setting.mtu);
        let beyond = &host.outside;
        let (what, from, to, device, at, mtu) = match round % 4 {
            0 => ("switched", &a.ns, &b.ns, "eth0", family.of(&b), in_a.min(in_b)),
            1 => ("through SNAT", &b.ns, beyond, WIRE, family.outside(), in_b.min(outside)),
            2 => ("into a published port", beyond, &a.ns, "eth0", family.host(), in_a.min(outside)),
            _ => ("switched", &b.ns, &a.ns, "eth0", family.of(&a), in_a.min(in_b)),
        };
        println!("{what} by {family}, {settings:#?}");
        let watch = Watch::start(to, device);
        let began = Instant::now();
        transfer(AMOUNT, from, to, (at, port), &mut rng);
        println!("{:?}", began.elapsed());
        let seen = watch.seen();
        println!("{seen:?}");
        seen.assert_sound(mtu);
    }
    for (ns, before) in spaces.into_iter().zip(before) {
        assert_eq!(errors(ns), before, "{}", ns.name());
    }
    assert_balanced(&host);
}

/// Every worker's frames are accounted for.
fn assert_balanced(host: &Host) {
    tests::host::eventually(Duration::from_secs(5), "the sums balance", || {
        let status = host.json(["status"]);
        tests::host::rows(&status["workers"]).iter().all(|worker| {
            let of = |name: &str| worker[name].as_u64().unwrap();
            of("rx_frames") + of("replicated") + of("generated")
                == of("tx_frames") + of("merged") + of("consumed") + of("queued") + of("drops")
        })
    });
}

/// Set when it goes, also by a panic.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One stream of each family, while features of both sides are turned on and off again and again.
#[test]
#[ignore = "needs root"]
fn a_gibibyte_arrives_while_offloads_come_and_go() {
    let mut rng = Rng(seed());
    let host = Host::start_dual(Uplink::None);
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network app"));
    let before = [&a.ns, &b.ns].map(errors);
    let watch = Watch::start(&b.ns, "eth0");
    let ended = AtomicBool::new(false);
    let mut changes = Rng(rng.number());
    let changed = thread::scope(|scope| {
        let changing = scope.spawn(|| {
            let mut changed = 0;
            while !ended.load(Ordering::Relaxed) {
                for sandbox in [&a, &b] {
                    features(&sandbox.ns, "eth0", &mut changes);
                }
                changed += 1;
            }
            changed
        });
        let guard = Ended(&ended);
        for (port, family) in (7000..).zip(BOTH) {
            transfer(ALL / 2, &a.ns, &b.ns, (family.of(&b), port), &mut rng);
        }
        drop(guard);
        changing.join().unwrap()
    });
    let seen = watch.seen();
    println!("changed {changed} times, {seen:?}");
    seen.assert_sound(MTU);
    assert!(changed >= 3, "changed {changed} times only");
    for (sandbox, before) in [&a, &b].into_iter().zip(before) {
        assert_eq!(errors(&sandbox.ns), before, "{}", sandbox.name);
    }
    assert_balanced(&host);
}

/// Rows: Linux `nft_flowtable.sh`; passt `tcp: 10 MB and 101 kB both ways with cmp`.
#[test]
#[ignore = "needs root"]
fn random_data_over_random_offloads_by_a_shared_uplink() {
    random_transfers(Uplink::Shared);
}

#[test]
#[ignore = "needs root"]
fn random_data_over_random_offloads_by_a_dedicated_uplink() {
    random_transfers(Uplink::Dedicated);
}

/// What the far end of the wire sees when the host's end cuts and sums: nothing is left to be
/// believed.
fn over_a_wire_without_offloads(uplink: Uplink) {
    let mut rng = Rng(seed());
    let host = Host::start_dual(uplink);
    let a = host.sandbox("a", "--network app");
    host.outside.ok(&format!("ethtool -K {WIRE} gro off"));
    host.ns.ok(&format!("ethtool -K {WIRE} tx off tso off gso off"));
    let before = errors(&host.outside);
    let settings = ["gso on", "tx off tso off gso off"];
    let ways = settings.iter().flat_map(|features| BOTH.map(|family| (*features, family)));
    for (port, (features, family)) in (7000..).zip(ways) {
        a.ns.ok(&format!("ethtool -K eth0 {features}"));
        let watch = Watch::start(&host.outside, WIRE);
        transfer(10_000_000, &a.ns, &host.outside, (family.outside(), port), &mut rng);
        let seen = watch.seen();
        seen.assert_sound(MTU);
        assert!(seen.longest <= MTU, "{family}, {features}: {seen:?}");
        assert_eq!((seen.large, seen.complete), (0, seen.frames), "{family}, {features}: {seen:?}");
    }
    assert_eq!(errors(&host.outside), before);
}

#[test]
#[ignore = "needs root"]
fn a_wire_without_offloads_carries_frames_of_the_mtu_with_complete_checksums() {
    over_a_wire_without_offloads(Uplink::Shared);
}

#[test]
#[ignore = "needs root"]
fn a_dedicated_wire_without_offloads_does_so_too() {
    over_a_wire_without_offloads(Uplink::Dedicated);
}

/// Sends from a sandbox without offloads to another one; what arrived there, and how many segments
/// were merged.
fn from_a_plain_sender(host: &Host) -> (Seen, u64) {
    host.network("app", APP);
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network app"));
    a.ns.ok("ethtool -K eth0 tx off tso off gso off");
    let watch = Watch::start(&b.ns, "eth0");
    for (port, family) in (7000..).zip(BOTH) {
        transfer(30_000_000, &a.ns, &b.ns, (family.of(&b), port), &mut Rng(seed()));
    }
    assert_balanced(host);
    let workers = tests::host::rows(&host.json(["status"])["workers"]);
    (watch.seen(), workers.iter().map(|worker| worker["merged"].as_u64().unwrap()).sum())
}

#[test]
#[ignore = "needs root"]
fn segments_of_a_sender_without_offloads_are_merged() {
    let mut host = Host::prepare_dual(Uplink::None);
    host.launch();
    let (seen, merged) = from_a_plain_sender(&host);
    println!("{seen:?}, {merged} merged");
    seen.assert_sound(MTU);
    // How many of about 41,000 depends on how many wait at the same moment: on the machine.
    assert!(seen.large > 0 && merged > 0, "{seen:?}, {merged} merged");
}

#[test]
#[ignore = "needs root"]
fn with_gro_off_they_arrive_as_they_were_sent() {
    let mut host = Host::prepare_dual(Uplink::None);
    host.flags(["--gro", "false"]);
    host.launch();
    let (seen, merged) = from_a_plain_sender(&host);
    println!("{seen:?}");
    seen.assert_sound(MTU);
    assert!(seen.longest <= MTU, "{seen:?}");
    assert_eq!((seen.large, seen.complete, merged), (0, seen.frames, 0), "{seen:?}");
}
