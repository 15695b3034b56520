//! Offloads: large segments go through whole, and nothing depends on which a side has. Each in both families.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::host::family::ANY;
use tests::host::namespace::{Namespace, Process};
use tests::host::traffic::uninterrupted;
use tests::host::{BOTH, Host, Sandbox, Uplink, WIRE, eventually, rows};

const MTU: u64 = 1500;

/// How much goes over a connection with everything on.
const LARGE: usize = 100_000_000;

/// How much goes over a connection where segments are cut early: a frame each, on some paths.
const SMALL: usize = 20_000_000;

/// Bytes that do not repeat within a segment, from the position alone.
fn pattern(position: usize, buffer: &mut [u8]) {
    for (at, word) in buffer.chunks_mut(8).enumerate() {
        let mixed = ((position / 8 + at) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&mixed.to_le_bytes()[..word.len()]);
    }
}

/// Sends so many bytes and compares every one of them at the other end.
fn transfer(amount: usize, from: &Namespace, to: &Namespace, at: (IpAddr, u16)) -> Duration {
    const CHUNK: usize = 1 << 16;
    let listener = to.enter(|| TcpListener::bind((ANY, at.1))).unwrap();
    let began = Instant::now();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (mut got, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut position = 0;
        while position < amount {
            let length = CHUNK.min(amount - position);
            stream.read_exact(&mut got[..length]).unwrap();
            pattern(position, &mut expected[..length]);
            assert!(got[..length] == expected[..length], "wrong bytes after {position}");
            position += length;
        }
        assert_eq!(uninterrupted(|| stream.read(&mut got)).unwrap(), 0, "more than was sent");
    });
    let mut stream =
        from.enter(|| TcpStream::connect_timeout(&at.into(), Duration::from_secs(5))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while position < amount {
        let length = CHUNK.min(amount - position);
        pattern(position, &mut buffer[..length]);
        stream.write_all(&buffer[..length]).unwrap();
        position += length;
    }
    drop(stream);
    receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    began.elapsed()
}

fn ethtool(ns: &Namespace, device: &str, features: &str) {
    ns.ok(&format!("ethtool -K {device} {features}"));
}

const OFF: [&str; 6] =
    ["tx off", "tso off", "gso off", "gro off", "tso off gso off gro off", "tx off rx off gro off"];

/// What turns everything on again.
const ON: &str = "tx on rx on tso on gso on gro on";

/// Rows: VPP `test_vm_tap_*: with and without gso, gro, csum; bridged and routed`.
#[test]
#[ignore = "needs root"]
fn every_offload_delivers_the_same_bytes_within_a_network() {
    let host = Host::start_dual(Uplink::None);
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network app"));
    let send = |amount, what: &str| {
        for family in BOTH {
            println!(
                "{what}, {family}: {:?}",
                transfer(amount, &a.ns, &b.ns, (family.of(&b), 7000))
            );
        }
    };
    send(LARGE, "all on");
    for features in OFF {
        for (side, sandbox) in [("sender", &a), ("receiver", &b)] {
            ethtool(&sandbox.ns, "eth0", features);
            send(SMALL, &format!("{features} at the {side}"));
            ethtool(&sandbox.ns, "eth0", ON);
        }
    }
}

fn every_offload_through_nat(uplink: Uplink) {
    let host = Host::start_dual(uplink);
    let a = host.sandbox("a", "--network app -p 7000:7000");
    let send = |amount, what: &str| {
        for family in BOTH {
            let out = transfer(amount, &a.ns, &host.outside, (family.outside(), 7000));
            let published = transfer(amount, &host.outside, &a.ns, (family.host(), 7000));
            println!("{what}, {family}: out {out:?}, in {published:?}");
        }
    };
    send(LARGE, "all on");
    for features in OFF {
        for (ns, device) in [(&a.ns, "eth0"), (&host.outside, WIRE)] {
            ethtool(ns, device, features);
            send(SMALL, &format!("{features} on {device}"));
            ethtool(ns, device, ON);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn every_offload_delivers_the_same_bytes_through_a_dedicated_uplink() {
    every_offload_through_nat(Uplink::Dedicated);
}

/// Rows: VPP `test_vm_af_packet_*`.
#[test]
#[ignore = "needs root"]
fn every_offload_delivers_the_same_bytes_through_a_shared_uplink() {
    every_offload_through_nat(Uplink::Shared);
}

/// Frames and bytes that came from the sandbox.
fn received_from(host: &Host, sandbox: &Sandbox) -> (u64, u64) {
    let stats = rows(&host.json(["stats", "--sandbox", &sandbox.name]));
    let sum = |field: &str| stats.iter().map(|port| port[field].as_u64().unwrap()).sum();
    (sum("rx_frames"), sum("rx_bytes"))
}

/// Gigabits a second of one TCP stream, as iperf3 counts them.
fn iperf3(client: &Namespace, server: &Namespace, to: IpAddr) -> f64 {
    let mut command = server.command("iperf3");
    let _server = Process::start(command.args(["-s", "-1"]).stdout(Stdio::null()));
    eventually(Duration::from_secs(5), "iperf3 listens", || {
        server.ok("ss -H -l -n -t").contains(":5201")
    });
    let shown = client.ok(&format!("iperf3 -c {to} -t 2 -J"));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    shown["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e9
}

#[test]
#[ignore = "needs root"]
fn large_segments_go_through_whole() {
    let host = Host::start_dual(Uplink::Shared);
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network app"));
    for family in BOTH {
        for (what, server, to) in [
            ("within a network", &b.ns, family.of(&b)),
            ("through NAT", &host.outside, family.outside()),
        ] {
            let (frames, bytes) = received_from(&host, &a);
            let speed = iperf3(&a.ns, server, to);
            let (frames_after, bytes_after) = received_from(&host, &a);
            let average = (bytes_after - bytes) / (frames_after - frames).max(1);
            println!("{what}, {family}: {speed:.2} Gbit/s, {average} bytes a frame");
            assert!(average > 4 * MTU, "{what}, {family}: {average} bytes a frame");
            // Far below what any machine does, far above what retransmissions leave.
            assert!(speed > 0.2, "{what}, {family}: {speed} Gbit/s");
        }
    }
}

/// What one TCP stream of a sender without segmentation offload has under way.
const BURST: u64 = 1900;

#[test]
#[ignore = "needs root"]
fn a_tap_keeps_what_a_sender_without_offloads_has_under_way() {
    let host = Host::start_dual(Uplink::None);
    host.network("taps", "--subnet 10.91.2.0/24 --subnet fd00:91:2::/64 -o link=tap");
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network taps"));
    let lost = || {
        let shown: Value = serde_json::from_str(&a.ns.ip("-s -j link show eth0")).unwrap();
        shown[0]["stats64"]["tx"]["dropped"].as_u64().unwrap()
    };
    for family in BOTH {
        // Not later: with the daemon held, nobody would answer who asks for a neighbor.
        a.ns.ok(&format!("ping -c 1 -W 5 {}", family.of(&b)));
        let (lost_before, (received_before, _)) = (lost(), received_from(&host, &a));
        let daemon = Pid::from_raw(i32::try_from(host.pid()).unwrap());
        kill(daemon, Signal::SIGSTOP).unwrap();
        a.ns.enter(|| {
            let socket = UdpSocket::bind((family.any(), 0)).unwrap();
            for _ in 0..BURST {
                // An error tells of an earlier datagram that nobody listens for.
                let _ = socket.send_to(&[0; 1400], (family.of(&b), 9));
            }
        });
        kill(daemon, Signal::SIGCONT).unwrap();
        eventually(Duration::from_secs(5), "all frames were read", || {
            received_from(&host, &a).0 >= received_before + BURST
        });
        assert_eq!(lost() - lost_before, 0, "frames of {family} lost by the device");
    }
}
