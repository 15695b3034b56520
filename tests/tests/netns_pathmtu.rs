//! A router beyond the uplink says that a packet is too long for its next link: the program in the sandbox that
//! sent it is told, and what it sends from then on arrives (Linux' `pmtu.sh` and `conntrack_icmp_related.sh`).
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use dataplane::packet::types::{Mac, PortId};
use nix::sys::socket::{getsockopt, sockopt};
use tests::host::namespace::Owned;
use tests::host::raw::{RawListener, RawSender};
use tests::host::traffic::{TcpClient, TcpServer, UdpServer, udp_ask, uninterrupted};
use tests::host::{GATEWAY, HOST_IP, Host, Uplink, WIRE, eventually, rows};
use tests::packet::{self, icmp_error, udp};

const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);
/// Of the far link: what every link of IPv6 has at least, and what Linux' script has.
const MTU: i32 = 1280;

/// A host in both families, and a machine behind a narrow link of the one outside.
fn narrow(uplink: Uplink) -> (Host, Owned) {
    let mut host = Host::prepare(uplink);
    host.ns.enable_ipv6();
    host.outside.enable_ipv6();
    host.outside.ip(&format!("-6 address add 2001:db8::1/64 dev {WIRE} nodad"));
    if uplink == Uplink::Shared {
        host.ns.ip(&format!("-6 address add 2001:db8::2/64 dev {WIRE} nodad"));
        host.ns.ip("-6 route add default via 2001:db8::1");
    }
    host.launch();
    if uplink == Uplink::Dedicated {
        let line = "uplink add up0 --mode dedicated --address 192.0.2.2/24 --address 2001:db8::2/64 \
                    --gateway 192.0.2.1 --gateway 2001:db8::1";
        host.ok(line.split_whitespace());
    }
    let far = tests::host::namespace::Namespace::create(&host.name("far"));
    let ns = far.handle();
    ns.enable_ipv6();
    let peer = format!("peer name far1 mtu {MTU} netns {}", ns.name());
    host.outside.ip(&format!("link add far0 mtu {MTU} type veth {peer}"));
    for (there, end, last) in [(&host.outside, "far0", 1), (&ns, "far1", 2)] {
        there.ip(&format!("address add 198.51.100.{last}/24 dev {end}"));
        there.ip(&format!("-6 address add 2001:db8:2::{last}/64 dev {end} nodad"));
        there.ip(&format!("link set {end} up"));
    }
    ns.ip("route add default via 198.51.100.1");
    ns.ip("-6 route add default via 2001:db8:2::1");
    host.outside.enter(|| {
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{key}"), "1").unwrap();
        }
    });
    eventually(Duration::from_secs(10), "the narrow link carries packets", || {
        ns.run("ping -n -c 1 -W 1 2001:db8:2::1").code == 0
            && ns.run("ping -n -c 1 -W 1 198.51.100.1").code == 0
    });
    (host, far)
}

fn programs_are_told(uplink: Uplink) {
    let (host, far) = narrow(uplink);
    let far = far.handle();
    host.network("app", "--subnet 10.91.1.0/24 --subnet fd00:91::/64 --ipv6");
    let a = host.sandbox("a", "--network app");
    let any = Ipv6Addr::UNSPECIFIED;
    let _servers = (TcpServer::start(&far, (any, 7000)), UdpServer::start(&far, (any, 7001)));
    let pings = [(IpAddr::from(FAR), "mtu = 1280"), (IpAddr::from(FAR6), "mtu=1280")];
    for (to, said) in pings {
        // The first comes back as an error from the router; the kernel refuses the others itself.
        let ran = a.ns.run(&format!("ping -n -c 4 -i 0.2 -W 1 -M do -s 1400 {to}"));
        let all = format!("{}{}", ran.stdout, ran.stderr).to_lowercase();
        assert!(all.contains(said), "{to}: {ran}");
        assert!(all.contains("message too long"), "{to}: {ran}");
        // One that is as long as may be passes.
        let headers = if to.is_ipv4() { 28 } else { 48 };
        let fits = format!("ping -n -c 1 -W 2 -M do -s {} {to}", MTU - headers);
        assert_eq!(a.ns.run(&fits).code, 0, "{fits}");
        // A program that does not mind fragments sends some from now on, and segments are shorter.
        let own: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { any.into() };
        let socket = a.ns.enter(|| UdpSocket::bind((own, 0))).unwrap();
        a.ns.enter(|| socket.connect((to, 7001))).unwrap();
        if to.is_ipv4() {
            assert_eq!(getsockopt(&socket, sockopt::IpMtu).unwrap(), MTU);
        }
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let answer = (0..3).find_map(|_| {
            socket.send(&[b'x'; 1400]).unwrap();
            uninterrupted(|| socket.recv(&mut [0; 2048])).ok()
        });
        assert!(answer.is_some_and(|length| length > 1400), "{to}: {answer:?}");
        TcpClient::connect(&a.ns, (to, 7000)).echo(&"long ".repeat(4000));
    }
}

/// A redirect about what was translated names a router of a link that the sandbox is not on: it ends here, and
/// whatever else is said of the same datagram arrives. (Of IPv6 it is Neighbor Discovery, which no router passes on.)
fn redirects(uplink: Uplink) {
    let host = Host::start(uplink);
    host.network("app", "--subnet 10.91.1.0/24 --gateway 10.91.1.1");
    let a = host.sandbox("a", "--network app");
    let _server = UdpServer::start(&host.outside, (GATEWAY, 7001));
    let seen = udp_ask(&a.ns, (GATEWAY, 7001)).expect("an answer");
    assert_eq!(seen.ip(), IpAddr::from(HOST_IP));
    let mac = |shown: &str, word: &str| -> Mac {
        shown.split(word).nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
    };
    let shown = host.outside.ip(&format!("neighbor show {HOST_IP} dev {WIRE}"));
    let end = |mac, ip| packet::Host { port: PortId(0), mac, ip };
    let ours = end(mac(&shown, "lladdr "), HOST_IP);
    let shown = host.outside.ip(&format!("-o link show {WIRE}"));
    let router = end(mac(&shown, "link/ether "), GATEWAY);
    let about = udp(&ours, seen.port(), &router, 7001);
    let heard = RawListener::start(&a.ns, "eth0", |frame| {
        frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&1)
    });
    let mut wire = RawSender::open(&host.outside, WIRE);
    // To a network, to a host, and the same of its type of service (RFC 792); then that it is unreachable.
    for code in 0..4 {
        wire.send(&icmp_error(&router, &ours, 5, code, &about, 36).bytes());
    }
    wire.send(&icmp_error(&router, &ours, 3, 1, &about, 36).bytes());
    let connections = || {
        let shown = rows(&host.json(["conntrack", "list", "--proto", "udp"]));
        shown.iter().filter(|it| it["orig"]["dport"] == 7001).count()
    };
    std::thread::sleep(Duration::from_millis(300));
    let kinds: Vec<_> = heard.seen().iter().map(|frame| (frame[34], frame[35])).collect();
    assert_eq!(kinds, [(3, 1)]);
    assert_eq!(connections(), 1, "it goes on");
    assert!(udp_ask(&a.ns, (GATEWAY, 7001)).is_some());
}

#[test]
#[ignore = "needs root"]
fn redirects_by_a_dedicated_uplink_reach_no_sandbox() {
    redirects(Uplink::Dedicated);
}

#[test]
#[ignore = "needs root"]
fn redirects_by_a_shared_uplink_reach_no_sandbox() {
    redirects(Uplink::Shared);
}

#[test]
#[ignore = "needs root"]
fn programs_behind_a_dedicated_uplink_are_told() {
    programs_are_told(Uplink::Dedicated);
}

#[test]
#[ignore = "needs root"]
fn programs_behind_a_shared_uplink_are_told() {
    programs_are_told(Uplink::Shared);
}
