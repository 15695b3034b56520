//! A sandbox with raw sockets against its neighbors, in both families: each attack has its counter, and costs
//! nobody else what they came for.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dataplane::packet::types::tcp_flags::SYN;
use dataplane::packet::types::{Mac, PortId};
use tests::host::bystander::Waits;
use tests::host::family::ANY;
use tests::host::namespace::Namespace;
use tests::host::raw::RawSender;
use tests::host::traffic::UdpServer;
use tests::host::{APP, BOTH, Family, Host, Sandbox, Uplink, rows};
use tests::packet::{self, Wire, tcp, udp};

/// Connections that the daemon of a test tracks at most.
const LIMIT: u64 = 4096;
const CONFIGURED: &str = "[limits]\nconntrack = 4096\n";
/// Fewer than that by far, as they stay in the table for two minutes each.
const VISITS: u32 = 300;

/// The first MAC in what `ip` says.
fn mac_in(shown: &str, word: &str) -> Mac {
    let text = shown.split(word).nth(1).unwrap().split_whitespace().next().unwrap();
    text.parse().unwrap()
}

/// What a sandbox is to the engine, with its way out.
fn attacker(sandbox: &Sandbox, family: Family) -> (packet::Host, Mac) {
    let mac = mac_in(&sandbox.ns.ip("-o link show eth0"), "link/ether ");
    let gateway = family.gateway();
    sandbox.ns.ok(&format!("ping -c 1 -W 2 {gateway}"));
    let router = mac_in(&sandbox.ns.ip(&format!("neighbor show {gateway}")), "lladdr ");
    (packet::Host { port: PortId(0), mac, ip: sandbox.ip }, router)
}

/// SYNs to a machine outside, each of another connection, as fast as they can be sent.
struct SynFlood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl SynFlood {
    fn start(sandbox: &Sandbox, family: Family, service: Option<u16>) -> Self {
        let (from, router) = attacker(sandbox, family);
        let (own, to) = (family.of(sandbox), family.outside());
        let mut sender = RawSender::open(&sandbox.ns, "eth0");
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = thread::spawn(move || {
            let target = packet::Host { mac: router, ..from };
            while !told.load(Ordering::Relaxed) {
                let n = count.fetch_add(1, Ordering::Relaxed);
                let [.., a, b, c, d] = n.to_be_bytes();
                let source = 1024 | u16::from_be_bytes([c, d]);
                let port = service.unwrap_or(20_000 + u16::from_be_bytes([a, b]) % 100);
                let syn = tcp(&from, source, &target, port, SYN).between(own, to);
                sender.send(&Wire::from(&syn).bytes);
            }
        });
        Self { stop, sent, thread: Some(thread) }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for SynFlood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A server that greets and closes.
struct Greeter {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Greeter {
    fn start(ns: &Namespace, port: u16) -> Self {
        let listener = ns.enter(|| TcpListener::bind((ANY, port))).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => drop(stream.write_all(b"hello")),
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Connects, is greeted, and waits for the end, a few hundred times; none may fail, and few take long. How
/// long it took.
fn visits(from: &Sandbox, to: (IpAddr, u16)) -> Duration {
    let began = Instant::now();
    let mut waits = Waits::default();
    for count in 0..VISITS {
        let start = Instant::now();
        let connect = || TcpStream::connect_timeout(&to.into(), Duration::from_secs(5));
        let stream = from.ns.enter(connect);
        let mut stream = stream.unwrap_or_else(|error| panic!("visit {count} of {to:?}: {error}"));
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting).unwrap();
        assert_eq!(greeting, "hello");
        waits.note(start.elapsed());
    }
    waits.assert_short("a visitor");
    began.elapsed()
}

fn drops(host: &Host, reason: &str) -> u64 {
    let shown = rows(&host.json(["drops"]));
    shown
        .iter()
        .filter(|row| row["reason"] == reason)
        .map(|row| row["count"].as_u64().unwrap())
        .sum()
}

/// What was dropped of a sandbox's frames, by reason. Before its port is configured its kernel may have asked for
/// routers already.
fn refused_of(host: &Host, sandbox: &Sandbox) -> Vec<(String, u64)> {
    let shown = rows(&host.json(["drops", "--sandbox", &sandbox.name]));
    let counted = shown.iter().filter(|row| row["count"] != 0);
    let of = |row: &serde_json::Value| {
        (row["reason"].as_str().unwrap().to_owned(), row["count"].as_u64().unwrap())
    };
    counted.map(of).collect()
}

fn conntrack(host: &Host, what: &str) -> u64 {
    host.json(["conntrack", "stats"])[what].as_u64().unwrap()
}

/// Those who attack, and who has to do with none of it.
fn flooded(flags: &str) -> (Host, [Sandbox; 3]) {
    let mut host = Host::prepare_dual(Uplink::Dedicated);
    host.configure(CONFIGURED);
    host.launch();
    host.dedicate(flags);
    host.network("app", APP);
    let sandboxes = ["one", "two", "neighbor"].map(|name| host.sandbox(name, "--network app"));
    host.outside.ok("nft add table inet t");
    host.outside.ok("nft add chain inet t c { type filter hook input priority 0 ; }");
    (host, sandboxes)
}

#[test]
#[ignore = "needs root"]
fn a_syn_flood_costs_a_neighbor_no_connection() {
    // A host for each: who has as many connections as each of the flood, closed ones too, may have no more.
    for family in BOTH {
        let (host, [one, two, neighbor]) = flooded("");
        // Nobody takes SYNs to these ports, and nobody answers them either: what a flood leaves is never agreed on.
        host.outside.ok("nft add rule inet t c tcp dport 20000-20099 drop");
        let _greeter = Greeter::start(&host.outside, 7000);
        let refused = refused_of(&host, &neighbor);
        let service = (family.outside(), 7000);
        let before = visits(&neighbor, service);
        let mut talk = neighbor.ns.enter(|| TcpStream::connect(service)).unwrap();
        let floods = [&one, &two].map(|sandbox| SynFlood::start(sandbox, family, None));
        // The table's room is one for both families.
        tests::host::eventually(Duration::from_secs(20), "the table is full", || {
            conntrack(&host, "entries") >= LIMIT
        });
        // For the other family's packets as for its own.
        let during = BOTH.map(|visited| visits(&neighbor, (visited.outside(), 7000)));
        let sent: u64 = floods.iter().map(SynFlood::sent).sum();
        drop(floods);
        let (evicted, limited) = (conntrack(&host, "evicted"), drops(&host, "endpoint_limit"));
        println!(
            "{VISITS} visits in {before:?} alone, in {during:?} beside {sent} SYNs of {family}; \
             {evicted} evicted, {limited} over the limit"
        );
        assert!(evicted > 0 || limited > 0);
        assert!(conntrack(&host, "entries") <= LIMIT);
        assert_eq!(refused_of(&host, &neighbor), refused);
        let mut greeting = String::new();
        talk.read_to_string(&mut greeting).unwrap();
        assert_eq!(greeting, "hello");
    }
}

/// All outside ports to one server are taken by connections that it does not answer.
#[test]
#[ignore = "needs root"]
fn a_flood_to_one_service_keeps_no_neighbor_from_it() {
    // The flood's SYNs are dropped, by what only they have: no options.
    const NO_OPTIONS: &str = "tcp flags syn / syn,ack tcp option maxseg missing drop";
    for family in BOTH {
        let (host, [one, _, neighbor]) = flooded("--nat-ports 30000-30999");
        host.outside.ok(&format!("nft add rule inet t c tcp dport 7000 {NO_OPTIONS}"));
        let _greeter = Greeter::start(&host.outside, 7000);
        let refused = refused_of(&host, &neighbor);
        let mut flood = None;
        let event = host.awaited_event("snat_ports_exhausted", || {
            flood = Some(SynFlood::start(&one, family, Some(7000)));
        });
        assert!(event.contains("uplink up0"), "{event}");
        let flood = flood.unwrap();
        assert!(drops(&host, "snat_ports_exhausted") > 0);
        let during = visits(&neighbor, (family.outside(), 7000));
        let sent = flood.sent();
        drop(flood);
        println!("{VISITS} visits in {during:?} beside {sent} SYNs of {family}");
        assert!(conntrack(&host, "evicted") >= 1);
        assert_eq!(refused_of(&host, &neighbor), refused);
    }
}

/// Every place of the table has an answered connection, which nobody's new one takes: whoever listens is told.
#[test]
#[ignore = "needs root"]
fn a_full_table_is_told_to_who_listens() {
    let (host, [one, two, neighbor]) = flooded("");
    let _server = UdpServer::start(&host.outside, (ANY, 7001));
    // Two have half of it each, which is as much as one may have.
    for (sandbox, family) in [(&one, Family::V4), (&two, Family::V6)] {
        let (from, router) = attacker(sandbox, family);
        let (own, to) = (family.of(sandbox), family.outside());
        let target = packet::Host { mac: router, ..from };
        let mut sender = RawSender::open(&sandbox.ns, "eth0");
        for port in 10_000..10_000 + u16::try_from(LIMIT / 2 + 100).unwrap() {
            sender.send(&udp(&from, port, &target, 7001).between(own, to).bytes());
            // No faster than one server answers.
            if port % 20 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
    let event = host.awaited_event("conntrack_full", || {
        for _ in 0..200 {
            let _ = neighbor.ns.enter(|| {
                let socket = UdpSocket::bind((Family::V4.any(), 0))?;
                socket.send_to(b"one more", (Family::V4.outside(), 7001))
            });
        }
    });
    assert!(event.contains("find who has them"), "{event}");
    assert!(drops(&host, "conntrack_full") > 0);
    assert!(conntrack(&host, "entries") <= LIMIT);
    let status = host.json(["conntrack", "stats"]);
    assert_eq!(status["evicted"], 0, "all were answered: {status}");
}
