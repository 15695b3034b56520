//! TCP over a wire that is shorter than either end knows, where nobody is told so, in both families: what SYNs
//! offer is all that helps.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use tests::host::family::ANY;
use tests::host::namespace::Namespace;
use tests::host::raw::RawListener;
use tests::host::{APP, BOTH, Host, Sandbox, Uplink, WIRE};

/// IPv6's least, which PPPoE and tunnels of tunnels come near.
const MTU: u16 = 1280;
const BYTES: usize = 1 << 20;

/// No ICMP error reaches either end, as behind many a firewall.
const DEAF: &str = "add table inet deaf; \
    add chain inet deaf in { type filter hook input priority 0; }; \
    add rule inet deaf in icmp type destination-unreachable drop; \
    add rule inet deaf in icmpv6 type packet-too-big drop";

fn deafen(ns: &Namespace) {
    let mut command = ns.command("nft");
    assert!(command.arg(DEAF).status().unwrap().success());
}

/// The MSS that a SYN offers, if the frame is one of this port's.
fn offer(frame: &[u8], port: u16) -> Option<u16> {
    let (proto, tcp) = match frame.get(12..14)? {
        [8, 0] => (frame.get(23)?, frame.get(34..)?),
        [0x86, 0xdd] => (frame.get(20)?, frame.get(54..)?),
        _ => return None,
    };
    let ports = [tcp.get(..2)?, tcp.get(2..4)?];
    let is_ours = *proto == 6 && ports.contains(&&port.to_be_bytes()[..]);
    if !is_ours || tcp.get(13)? & 2 == 0 {
        return None;
    }
    // Linux puts it first.
    let &[2, 4, high, low] = tcp.get(20..24)? else { return None };
    Some(u16::from_be_bytes([high, low]))
}

fn offers(listener: RawListener, port: u16) -> Vec<u16> {
    let mut offers: Vec<u16> =
        listener.seen().iter().filter_map(|frame| offer(frame, port)).collect();
    offers.sort_unstable();
    offers.dedup();
    offers
}

/// Both sides send `BYTES`; true if all came within some seconds.
fn talk(client: &Namespace, to: (IpAddr, u16), server: &Namespace, port: u16) -> bool {
    let listener = server.enter(|| TcpListener::bind((ANY, port))).unwrap();
    let exchange = |mut stream: TcpStream| {
        let patience = Some(Duration::from_secs(4));
        stream.set_read_timeout(patience).unwrap();
        stream.set_write_timeout(patience).unwrap();
        let mut reader = stream.try_clone().unwrap();
        let writer = thread::spawn(move || stream.write_all(&vec![7; BYTES]).is_ok());
        let came = reader.read_exact(&mut vec![0; BYTES]).is_ok();
        if !came {
            let _ = reader.shutdown(std::net::Shutdown::Both);
        }
        came && writer.join().unwrap()
    };
    let serving = thread::spawn(move || exchange(listener.accept().unwrap().0));
    let stream = client.enter(|| TcpStream::connect(to)).unwrap();
    exchange(stream) & serving.join().unwrap()
}

/// A host whose uplink is shorter than what both ends have, and a sandbox with a published port.
fn short_wire(uplink: Uplink, options: &str) -> (Host, Sandbox) {
    let mut host = Host::prepare_dual(uplink);
    host.ns.ip(&format!("link set {WIRE} mtu {MTU}"));
    host.launch();
    if uplink == Uplink::Dedicated {
        host.dedicate("");
    }
    host.network("app", &format!("{APP} {options}"));
    let sandbox = host.sandbox("a", "--network app -p 7001:7001");
    for ns in [&sandbox.ns, &host.outside] {
        deafen(ns);
    }
    (host, sandbox)
}

fn clamped(uplink: Uplink) {
    let (host, sandbox) = short_wire(uplink, "");
    for family in BOTH {
        for (client, to, server, port) in [
            (&sandbox.ns, (family.outside(), 7000), &host.outside, 7000),
            (&host.outside, (family.host(), 7001), &sandbox.ns, 7001),
        ] {
            let wanted = move |frame: &[u8]| offer(frame, port).is_some();
            // What the stack there sends is seen too, as it was before it came to us.
            let outside = RawListener::start(&host.outside, WIRE, wanted);
            let inside = RawListener::start(&sandbox.ns, "eth0", wanted);
            assert!(talk(client, to, server, port), "{to:?}");
            let clamped = MTU - family.pick([40, 60]);
            for (offers, place) in
                [(offers(outside, port), "outside"), (offers(inside, port), "inside")]
            {
                assert!(offers.contains(&clamped), "{family}, {place}: {offers:?}");
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_short_dedicated_uplink_is_known_to_both_ends() {
    clamped(Uplink::Dedicated);
}

#[test]
#[ignore = "needs root"]
fn a_short_shared_uplink_is_known_to_both_ends() {
    clamped(Uplink::Shared);
}

#[test]
#[ignore = "needs root"]
fn without_it_nobody_is_told() {
    let (host, sandbox) = short_wire(Uplink::Dedicated, "-o mss_clamp=off");
    for family in BOTH {
        let wanted = |frame: &[u8]| offer(frame, 7000).is_some();
        let outside = RawListener::start(&host.outside, WIRE, wanted);
        let far = (family.outside(), 7000);
        assert!(!talk(&sandbox.ns, far, &host.outside, 7000), "what did the test show?");
        assert_eq!(offers(outside, 7000), [family.pick([1460, 1440])]);
    }
}
