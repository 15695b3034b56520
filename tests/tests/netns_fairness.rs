//! Real devices: who does not read, or sends all he can, is a trouble to nobody else; and datagrams
//! of a flow stay in order while ports follow load. In both families.
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

use tests::host::family::ANY;
use tests::host::namespace::Namespace;
use tests::host::traffic::{UdpServer, udp_ask, uninterrupted};
use tests::host::{APP, BOTH, Family, Host, Sandbox, Uplink, WIRE, eventually, rows};

const PATIENCE: Duration = Duration::from_secs(20);

/// Sends and receives so many bytes; how long it took.
fn transfer(amount: usize, from: &Namespace, to: &Sandbox, family: Family) -> Duration {
    let listener = to.ns.enter(|| TcpListener::bind((ANY, 0))).unwrap();
    let port = listener.local_addr().unwrap().port();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut buffer, mut got) = (vec![0; 1 << 17], 0);
        while got < amount {
            match uninterrupted(|| stream.read(&mut buffer)).unwrap() {
                0 => break,
                length => got += length,
            }
        }
        got
    });
    let mut stream = from.enter(|| TcpStream::connect((family.of(to), port))).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let (chunk, began) = (vec![1; 1 << 17], Instant::now());
    for _ in 0..amount / chunk.len() {
        stream.write_all(&chunk).unwrap();
    }
    drop(stream);
    let whole = amount / chunk.len() * chunk.len();
    assert_eq!(receiver.join().unwrap(), whole);
    began.elapsed()
}

/// Sends datagrams until its value ends: so many a millisecond, or all it can.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    fn start(from: &Namespace, to: (IpAddr, u16), a_millisecond: Option<u32>) -> Self {
        let socket = from.enter(|| UdpSocket::bind((ANY, 0))).unwrap();
        from.enter(|| socket.connect(to)).unwrap();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = thread::spawn(move || {
            let burst = a_millisecond.unwrap_or(100);
            while !told.load(Ordering::Relaxed) {
                for _ in 0..burst {
                    // The device's queue may be full, or the port closed.
                    let _ = socket.send(&[0; 18]);
                }
                count.fetch_add(u64::from(burst), Ordering::Relaxed);
                if a_millisecond.is_some() {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Self { stop, sent, thread: Some(thread) }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Frames that a sandbox's device did not take, for any reason.
fn refused_by(host: &Host, sandbox: &Sandbox) -> u64 {
    rows(&host.json(["stats", "--sandbox", &sandbox.name]))
        .iter()
        .map(|port| port["tx_drops"].as_u64().unwrap())
        .sum()
}

/// Resident memory of the daemon in KiB.
fn memory(host: &Host) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Payload of the transfers that are not to be disturbed.
const AMOUNT: usize = 100 << 20;

/// How long a transfer takes: the best of a few, as the machine has other things to do.
fn alone(from: &Sandbox, to: &Sandbox, family: Family) -> Duration {
    (0..3).map(|_| transfer(AMOUNT, &from.ns, to, family)).min().unwrap()
}

/// Sandboxes of the network with both families.
fn sandboxes<const N: usize>(host: &Host, names: [&str; N]) -> [Sandbox; N] {
    names.map(|name| host.sandbox(name, "--network app"))
}

/// How many times as long a transfer may take beside others. They take processor time too, and how much
/// of it is left is the machine's affair; who is starved gets nearly nothing.
const STARVED: u32 = 20;

/// Asserts that a transfer goes on now, and is not starved. All of it has to arrive, and no pause is
/// longer than [`PATIENCE`].
fn assert_unharmed(what: &str, from: &Sandbox, to: &Sandbox, (family, alone): (Family, Duration)) {
    let best = (0..3).map(|_| transfer(AMOUNT, &from.ns, to, family)).min().unwrap();
    println!("{what}, {family}: {alone:?} alone, {best:?} beside it");
    assert!(best <= alone * STARVED, "{what}, {family}: {alone:?} alone, {best:?} beside it");
}

/// A connection whose receiver never reads, filled until nothing more goes in.
fn stuck(from: &Namespace, to: &Sandbox, family: Family) -> (TcpStream, TcpStream) {
    let listener = to.ns.enter(|| TcpListener::bind((ANY, 0))).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut sender = from.enter(|| TcpStream::connect((family.of(to), port))).unwrap();
    let (receiver, _) = listener.accept().unwrap();
    sender.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    while uninterrupted(|| sender.write(&[0; 1 << 16])).is_ok() {}
    (sender, receiver)
}

/// Says that it is over when it goes.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "needs root"]
fn a_receiver_that_does_not_read_stalls_nobody() {
    let host = Host::start_dual(Uplink::None);
    let [a, b, slow, sender] = sandboxes(&host, ["a", "b", "slow", "sender"]);
    let sink = slow.ns.enter(|| UdpSocket::bind((ANY, 9))).unwrap();
    for family in BOTH {
        let time = (family, alone(&a, &b, family));
        let connections: Vec<_> = (0..4).map(|_| stuck(&sender.ns, &slow, family)).collect();
        assert_unharmed("connections that are stuck", &a, &b, time);
        let flood = Flood::start(&sender.ns, (family.of(&slow), 9), Some(20));
        assert_unharmed("a socket that is full", &a, &b, time);
        drop(flood);
        let before = memory(&host);
        let flood = Flood::start(&sender.ns, (family.of(&slow), 9), None);
        thread::sleep(Duration::from_secs(1));
        let sent = flood.sent();
        drop(flood);
        // The daemon has a few buffers for it, not a queue.
        let grown = memory(&host).saturating_sub(before);
        println!("{sent} datagrams, {grown} KiB more");
        assert!(grown < 40 << 10, "{grown} KiB more after {sent} datagrams");
        drop(connections);
    }
    drop(sink);
}

/// Known as a neighbor for good, as it will answer nothing.
fn keep_neighbor(ns: &Namespace, address: IpAddr) {
    ns.ok(&format!("ping -c 1 -W 2 {address}"));
    let shown = ns.ip(&format!("neighbor show {address}"));
    let mac = shown.split("lladdr ").nth(1).unwrap().split(' ').next().unwrap();
    ns.ip(&format!("neighbor replace {address} lladdr {mac} dev eth0 nud permanent"));
}

#[test]
#[ignore = "needs root"]
fn a_device_that_takes_nothing_drops_its_own_frames_only() {
    let host = Host::start_dual(Uplink::None);
    let [a, b, down, sender] = sandboxes(&host, ["a", "b", "down", "sender"]);
    for family in BOTH {
        keep_neighbor(&sender.ns, family.of(&down));
    }
    let others = || [&a, &b, &sender].map(|other| refused_by(&host, other));
    let before = others();
    down.ns.ip("link set eth0 down");
    for family in BOTH {
        let to = family.of(&down);
        let time = (family, alone(&a, &b, family));
        let refused = refused_by(&host, &down);
        let flood = Flood::start(&sender.ns, (to, 9), Some(20));
        assert_unharmed("a device that is down", &a, &b, time);
        drop(flood);
        assert!(refused_by(&host, &down) > refused, "{}", host.ok(["stats"]));
        // Every one of them, by its reason.
        let sent = || -> u64 {
            let ports = rows(&host.json(["stats", "--sandbox", &down.name]));
            ports.iter().map(|port| port["tx_frames"].as_u64().unwrap()).sum()
        };
        let by_reason = || {
            let reasons = rows(&host.json(["drops", "--sandbox", &down.name]));
            let counted = reasons.iter().find(|row| row["reason"] == "tx_port_down");
            counted.map_or(0, |row| row["count"].as_u64().unwrap())
        };
        // What the flood left in the queues is read first.
        let mut refused = refused_by(&host, &down);
        eventually(Duration::from_secs(5), "the flood is over", || {
            thread::sleep(Duration::from_millis(100));
            let now = refused_by(&host, &down);
            std::mem::replace(&mut refused, now) == now
        });
        let (before, counted) = (sent(), by_reason());
        let socket = sender.ns.enter(|| UdpSocket::bind((family.any(), 0))).unwrap();
        // Each of a flow of its own: two of one flow that came together would be refused as one frame.
        for port in 1000..1100 {
            socket.send_to(&[0; 18], (to, port)).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        eventually(Duration::from_secs(5), "all of them are counted", || {
            refused_by(&host, &down) >= refused + 100
        });
        assert_eq!(sent(), before, "{}", host.ok(["stats"]));
        assert!(by_reason() >= counted + 100, "{}", host.ok(["drops"]));
    }
    assert_eq!(others(), before, "{}", host.ok(["stats"]));
    down.ns.ip("link set eth0 up");
    let server = UdpServer::start(&down.ns, (ANY, 53));
    for family in BOTH {
        eventually(Duration::from_secs(10), "it is up again", || {
            udp_ask(&sender.ns, (family.of(&down), 53)).is_some()
        });
    }
    drop(server);
}

/// A wire of 1 Mbit/s, for which ten times as much comes.
#[test]
#[ignore = "needs root"]
fn a_slow_uplink_drops_its_own_frames_only() {
    let host = Host::start_dual(Uplink::Dedicated);
    let [a, b, sender] = sandboxes(&host, ["a", "b", "sender"]);
    let _sink = host.outside.enter(|| UdpSocket::bind((ANY, 9))).unwrap();
    let times = BOTH.map(|family| (family, alone(&a, &b, family)));
    host.ns.ok(&format!("tc qdisc add dev {WIRE} root tbf rate 1mbit burst 32k limit 100k"));
    let listener = host.outside.enter(|| TcpListener::bind((ANY, 7000))).unwrap();
    let drops = |uplink: bool| -> u64 {
        let ports = rows(&host.json(["stats"]));
        let those = ports.iter().filter(|port| (port["port"] == WIRE) == uplink);
        those.map(|port| port["tx_drops"].as_u64().unwrap()).sum()
    };
    let others = drops(false);
    for time in times {
        let far = time.0.outside();
        // A connection goes on, as fast as the wire takes it.
        let mut upload = sender.ns.enter(|| TcpStream::connect((far, 7000))).unwrap();
        upload.write_all(&[0; 100_000]).unwrap();
        listener.accept().unwrap().0.read_exact(&mut [0; 100_000]).unwrap();
        let before = drops(true);
        let flood = Flood::start(&sender.ns, (far, 9), Some(20));
        assert_unharmed("a wire that is full", &a, &b, time);
        eventually(PATIENCE, "the wire drops what is too much", || drops(true) > before + 1000);
        drop(flood);
        // What waits for the wire is sent, so that the next one has its share.
        thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(drops(false), others, "{}", host.ok(["stats"]));
}

#[test]
#[ignore = "needs root"]
fn a_flood_leaves_others_their_share() {
    const ASKED: usize = 1000;
    // Until then an answer is late, as the machine has much to do; after that it is lost.
    const LATE: Duration = Duration::from_secs(2);
    let host = Host::start_dual(Uplink::None);
    let [a, b, flooder, sink] = sandboxes(&host, ["a", "b", "flooder", "sink"]);
    let _socket = sink.ns.enter(|| UdpSocket::bind((ANY, 9))).unwrap();
    let _server = UdpServer::start(&b.ns, (ANY, 53));
    for family in BOTH {
        let server = (family.of(&b), 53);
        let asking = a.ns.enter(|| UdpSocket::bind((family.any(), 0))).unwrap();
        a.ns.enter(|| asking.connect(server)).unwrap();
        assert!(udp_ask(&a.ns, server).is_some());
        let floods: Vec<_> =
            (0..2).map(|_| Flood::start(&flooder.ns, (family.of(&sink), 9), None)).collect();
        thread::sleep(Duration::from_millis(200));
        let (before, began) = (floods.iter().map(Flood::sent).sum::<u64>(), Instant::now());
        asking.set_read_timeout(Some(LATE)).unwrap();
        let (mut lost, mut buffer) = (0, [0; 100]);
        for number in 0..ASKED {
            let question = format!("question {number}");
            asking.send(question.as_bytes()).unwrap();
            loop {
                let Ok(length) = uninterrupted(|| asking.recv(&mut buffer)) else {
                    lost += 1;
                    let flooded = floods.iter().map(Flood::sent).sum::<u64>() - before;
                    assert!(lost <= 10 + number / 10, "{lost} of {number} lost beside {flooded}");
                    break;
                };
                if String::from_utf8_lossy(&buffer[..length]).ends_with(&question) {
                    break;
                }
            }
        }
        let flooded = floods.iter().map(Flood::sent).sum::<u64>() - before;
        let took = began.elapsed();
        println!("{lost} of {ASKED} lost in {took:?} beside {flooded} datagrams of {family}");
        println!("a transfer beside it: {:?}", transfer(AMOUNT, &a.ns, &b, family));
    }
}

/// Numbered datagrams from one socket to another: how many came, and how many came after one that was sent later.
fn out_of_order(from: &Namespace, to: &Namespace, at: (IpAddr, u16)) -> (u64, u64) {
    const COUNT: u64 = 30_000;
    let receiving = to.enter(|| UdpSocket::bind((ANY, at.1))).unwrap();
    receiving.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let receiver = thread::spawn(move || {
        let (mut buffer, mut last, mut came, mut late) = ([0; 8], None, 0, 0);
        while let Ok(8) = uninterrupted(|| receiving.recv(&mut buffer)) {
            let number = u64::from_le_bytes(buffer);
            came += 1;
            late += u64::from(last.is_some_and(|last| number <= last));
            last = last.max(Some(number));
        }
        (came, late)
    });
    let any = if at.0.is_ipv4() { Family::V4 } else { Family::V6 }.any();
    let sending = from.enter(|| UdpSocket::bind((any, 0))).unwrap();
    from.enter(|| sending.connect(at)).unwrap();
    for number in 0..COUNT {
        // Not all of it is to be lost in full queues.
        if number % 32 == 0 {
            thread::sleep(Duration::from_micros(200));
        }
        let _ = sending.send(&number.to_le_bytes());
    }
    receiver.join().unwrap()
}

/// Frames that the second worker has received. All ports begin at the first one.
fn frames_of_the_second_worker(host: &Host) -> u64 {
    rows(&host.json(["status"])["workers"])[1]["rx_frames"].as_u64().unwrap()
}

/// Which ports move meanwhile is up to the load; that of the datagrams need not be among them. Its order
/// while it moves itself is shown by the simulation.
#[test]
#[ignore = "needs root"]
fn datagrams_of_a_flow_stay_in_order_while_ports_move() {
    // Until a port has moved and been there for a while, but no longer than this.
    const ROUNDS: usize = 25;
    const ENOUGH: u64 = 5000;
    let mut host = Host::prepare_dual(Uplink::Dedicated);
    host.flags(["--workers", "2", "--placement", "load"]);
    host.launch();
    host.dedicate("");
    host.network("app", APP);
    // Without this a veth device queues what it gets by the sender's processor, and a worker that is
    // moved to another one overtakes itself there.
    host.outside.ok(&format!("ethtool -K {WIRE} gro on rx-udp-gro-forwarding on"));
    let [a, b, c, d] = sandboxes(&host, ["a", "b", "c", "d"]);
    // What waits in the sender's stack for a neighbor is overtaken there by what is sent next.
    for family in BOTH {
        for to in [family.of(&b), family.outside()] {
            a.ns.ok(&format!("ping -c 1 -W 2 {to}"));
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Load comes and goes.
            while !over.load(Ordering::Relaxed) {
                thread::scope(|scope| {
                    scope.spawn(|| transfer(300 << 20, &c.ns, &d, Family::V4));
                    scope.spawn(|| transfer(300 << 20, &d.ns, &c, Family::V6));
                });
                thread::sleep(Duration::from_millis(300));
            }
        });
        // Also when what follows panics: the load would go on, and the scope wait for it.
        let _end = Ending(&over);
        let paths = BOTH.map(|family| {
            [("switched", &b.ns, family.of(&b)), ("SNAT", &host.outside, family.outside())]
        });
        let mut seen = Vec::new();
        for _ in 0..ROUNDS {
            let late = |(what, to, address): (_, &Namespace, _)| {
                (what, out_of_order(&a.ns, to, (address, 7000)))
            };
            seen.extend(paths.concat().into_iter().map(late));
            if frames_of_the_second_worker(&host) > ENOUGH {
                break;
            }
        }
        for (what, (came, late)) in seen {
            println!("{what}: {came} came, {late} late");
            assert!(came > 5000, "{what}: {came} came");
            assert_eq!(late, 0, "{what}: of {came}");
        }
    });
    let moved = frames_of_the_second_worker(&host);
    println!("{moved} frames received by the second worker");
    assert!(moved > 0, "no port moved: {}", host.ok(["status"]));
}
