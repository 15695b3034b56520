//! Tunnels between sandboxes, and a sandbox that is a router: what they send is cut before it comes
//! to us, whatever the device of the endpoint could take.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::host::namespace::Namespace;
use tests::host::{Host, Sandbox, Uplink, eventually, ran};

/// Addresses in the tunnel.
const INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 200, 0, 1), Ipv4Addr::new(10, 200, 0, 2)];
const AMOUNT: usize = 40_000_000;
/// Far above what any machine needs, far below what a tunnel without its long frames takes, which
/// goes on by one segment for each timeout.
const BOUND: Duration = Duration::from_secs(20);
/// What no device of an endpoint may announce.
const UNTOLD: [&str; 8] = [
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-gre-segmentation",
    "tx-gre-csum-segmentation",
    "tx-ipxip4-segmentation",
    "tx-ipxip6-segmentation",
    "tx-gso-list",
    "tx-sctp-segmentation",
];

/// Those of the features that are on.
fn announced(sandbox: &Sandbox) -> Vec<String> {
    let shown = sandbox.ns.ok("ethtool -k eth0");
    let on = shown.lines().filter_map(|line| line.trim().strip_suffix(": on"));
    on.filter(|name| UNTOLD.contains(name)).map(str::to_owned).collect()
}

fn is_veth(sandbox: &Sandbox) -> bool {
    sandbox.ns.ip("-d link show eth0").contains(" veth ")
}

/// Sends bytes that do not repeat within a segment, and compares every one at the other end.
fn transfer(from: &Namespace, to: &Namespace, at: impl Into<SocketAddr>) -> Duration {
    let word = |number: usize| (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let sent: Vec<u8> = (0..AMOUNT / 8).flat_map(word).collect();
    let at = at.into();
    let listener = to.enter(|| TcpListener::bind(at)).unwrap();
    let began = Instant::now();
    let mut out = from.enter(|| TcpStream::connect_timeout(&at, BOUND)).unwrap();
    out.set_write_timeout(Some(BOUND)).unwrap();
    let received = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        let mut received = Vec::with_capacity(AMOUNT);
        stream.read_to_end(&mut received).unwrap();
        received
    });
    for piece in sent.chunks(1 << 16) {
        out.write_all(piece).unwrap();
        assert!(began.elapsed() < BOUND, "not done after {BOUND:?}");
    }
    drop(out);
    let received = received.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert!(received == sent, "{} bytes of {AMOUNT}, or others", received.len());
    began.elapsed()
}

/// Makes a tunnel between two sandboxes, or says that the kernel has none of the kind.
fn connect(kind: &str, [a, b]: [&Sandbox; 2], outer: [&str; 2]) -> bool {
    let (device, options) = kind.split_once(' ').unwrap_or((kind, ""));
    for ((sandbox, [local, remote]), inside) in
        [(a, outer), (b, [outer[1], outer[0]])].into_iter().zip(INSIDE)
    {
        let made = sandbox.ns.run(&format!(
            "ip link add tunnel0 type {device} local {local} remote {remote} dev eth0 {options}"
        ));
        if made.stderr.contains("Unknown device type") {
            // Not by `println!`, which is not shown of a test that passes.
            let said = writeln!(std::io::stderr(), "netns_tunnel: not tried, no {device} here");
            said.unwrap();
            return false;
        }
        assert_eq!(made.code, 0, "{made}");
        sandbox.ns.ip(&format!("address add {inside}/24 dev tunnel0"));
        sandbox.ns.ip("link set tunnel0 up");
    }
    true
}

fn no_lies(host: &Host) {
    let drops = host.json(["drops"]).to_string();
    assert!(!drops.contains("vnet_invalid"), "{drops}");
}

#[test]
#[ignore = "needs root"]
fn tunnels_of_every_kind_carry_a_transfer() {
    let host = Host::start(Uplink::None);
    host.ns.enable_ipv6();
    host.network("app", "--subnet 10.91.1.0/24 --subnet fd00:91::/64");
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network app"));
    let by_four = [&a, &b].map(|sandbox| sandbox.ip.to_string());
    let by_six = [&a, &b].map(|sandbox| {
        let shown = sandbox.ns.ip("-o -6 address show dev eth0 scope global");
        let address = shown.split("inet6 ").nth(1).and_then(|rest| rest.split('/').next());
        address.expect("an address").to_owned()
    });
    let mut tried = 0;
    for (kind, outer) in [
        ("vxlan id 7 dstport 4789 noudpcsum", &by_four),
        ("vxlan id 7 dstport 4789 udpcsum", &by_four),
        ("vxlan id 7 dstport 4789", &by_six),
        ("gre", &by_four),
        ("gre csum", &by_four),
        ("gretap", &by_four),
        ("ipip", &by_four),
        ("ip6gre", &by_six),
        ("ip6tnl mode any", &by_six),
    ] {
        let outer = outer.each_ref().map(String::as_str);
        if !connect(kind, [&a, &b], outer) {
            continue;
        }
        tried += 1;
        let took = transfer(&a.ns, &b.ns, (INSIDE[1], 7000));
        println!("{kind} by {}: {took:?}", outer[0]);
        for sandbox in [&a, &b] {
            sandbox.ns.ip("link delete tunnel0");
        }
        no_lies(&host);
    }
    assert!(tried >= 3, "VXLAN at least: {tried}");
    // What a header has words for stays with the device.
    assert!(a.ns.ok("ethtool -k eth0").contains("tx-tcp-segmentation: on"));
}

/// The address of an interface.
fn address_of(sandbox: &Sandbox, interface: &str) -> Ipv4Addr {
    let shown = sandbox.ns.ip(&format!("-o -4 address show dev {interface}"));
    let address = shown.split("inet ").nth(1).and_then(|rest| rest.split('/').next());
    address.expect("an address").parse().unwrap()
}

/// The router merges what it forwards into lists of segments whose checksums are complete.
#[test]
#[ignore = "needs root"]
fn a_router_that_merges_into_lists_loses_nothing() {
    let mut host = Host::prepare(Uplink::None);
    // Else they come to it merged.
    host.configure("[daemon]\ngro = false\n");
    host.launch();
    for (name, subnet) in [("near", "10.91.1.0/24"), ("far", "10.91.2.0/24")] {
        host.network(name, &format!("--subnet {subnet} -o spoof_check=false"));
    }
    let router = host.sandbox("router", "--network near --network far");
    let (a, b) = (host.sandbox("a", "--network near"), host.sandbox("b", "--network far"));
    for (end, to, interface) in [(&a, "10.91.2.0/24", "eth0"), (&b, "10.91.1.0/24", "eth1")] {
        end.ns.ip(&format!("route add {to} via {}", address_of(&router, interface)));
    }
    let set = |path: &str, value: &str| {
        let script = format!("echo {value} > {path}");
        let mut ip = Command::new("ip");
        // By `ip netns`, since `/sys` shows the devices of the namespace it was mounted in.
        let _ = ran(ip.args(["netns", "exec", router.ns.name(), "sh", "-c", &script])).succeeded();
    };
    set("/proc/sys/net/ipv4/ip_forward", "1");
    for interface in ["eth0", "eth1"] {
        router.ns.ok(&format!("ethtool -K {interface} gro on rx-gro-list on"));
        // Waits for more, so that there is something to merge.
        set(&format!("/sys/class/net/{interface}/gro_flush_timeout"), "500000");
        set(&format!("/sys/class/net/{interface}/napi_defer_hard_irqs"), "5");
    }
    // Each segment by itself, complete.
    a.ns.ok("ethtool -K eth0 tx off");
    let took = transfer(&a.ns, &b.ns, (b.ip, 7000));
    println!("{took:?}");
    no_lies(&host);
}

#[test]
#[ignore = "needs root"]
fn a_tunnel_outlives_the_daemon_and_what_was_turned_on_inside() {
    let mut host = Host::start(Uplink::None);
    host.network("app", "--subnet 10.91.1.0/24");
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network app"));
    let outer = [&a, &b].map(|sandbox| sandbox.ip.to_string());
    let vxlan = "vxlan id 7 dstport 4789";
    assert!(connect(vxlan, [&a, &b], outer.each_ref().map(String::as_str)), "no VXLAN");
    transfer(&a.ns, &b.ns, (INSIDE[1], 7000));
    host.stop(Signal::SIGKILL);
    // As on devices that an earlier version made.
    if is_veth(&a) {
        for sandbox in [&a, &b] {
            let on: Vec<_> = UNTOLD.iter().map(|name| format!("{name} on")).collect();
            sandbox.ns.ok(&format!("ethtool -K eth0 {}", on.join(" ")));
            assert_eq!(announced(sandbox).len(), UNTOLD.len());
        }
    }
    host.launch();
    for sandbox in [&a, &b] {
        assert_eq!(announced(sandbox), Vec::<String>::new());
    }
    transfer(&a.ns, &b.ns, (INSIDE[1], 7001));
    no_lies(&host);
    // Made anew because somebody deleted it.
    a.ns.ip("link delete eth0");
    eventually(Duration::from_secs(8), "the device is there again", || {
        a.ns.run("ip link show eth0").code == 0
    });
    eventually(Duration::from_secs(8), "it announces as little as before", || {
        announced(&a).is_empty()
    });
}
