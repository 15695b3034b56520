//! The way out of sandboxes by IPv6, with the kernel's own stack on both sides: masquerade, what the
//! gateway says when a packet cannot go on, and restarts.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{IpAddr, Ipv6Addr};

use nix::sys::signal::Signal;
use tests::host::traffic::{PATIENCE, TcpClient, TcpServer, UdpServer, assert_ping, ping, udp_ask};
use tests::host::{Host, Uplink, eventually, one, rows};

/// What the daemon answers for.
const HOST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// The machine at the other end of the wire, which routes to [`FAR`].
const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const FAR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const ANY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

/// A host with both families on a dedicated uplink whose wire has this MTU, and the network `app`.
fn started(mtu: u16) -> Host {
    let mut host = Host::prepare(Uplink::Dedicated);
    for ns in [&host.ns, &host.outside] {
        ns.enable_ipv6();
        ns.ip(&format!("link set up0 mtu {mtu}"));
    }
    host.outside.ip(&format!("-6 address add {ROUTER}/64 dev up0 nodad"));
    host.outside.ip("link set lo up");
    host.outside.ip(&format!("-6 address add {FAR}/128 dev lo nodad"));
    host.launch();
    let line = format!(
        "uplink add up0 --mode dedicated --address 192.0.2.2/24 --address {HOST}/64 \
         --gateway 192.0.2.1 --gateway {ROUTER}"
    );
    host.ok(line.split_whitespace());
    host.network("app", "--ipv6");
    host
}

#[test]
#[ignore = "needs root"]
fn the_way_out_translates_and_outlives_a_kill() {
    let mut host = started(1500);
    let a = host.sandbox("a", "--network app");
    for to in [ROUTER, FAR] {
        assert_ping(&a.ns, to, 63);
    }
    let _tcp = TcpServer::start(&host.outside, (ANY, 80));
    let _udp = UdpServer::start(&host.outside, (ANY, 53));
    let mut connection = TcpClient::connect(&a.ns, (FAR, 80));
    connection.echo("hello");
    assert_eq!(connection.seen_as.ip(), HOST);
    assert_eq!(connection.seen_as.port(), connection.local().port());
    // It answers from the address next to us.
    assert_eq!(udp_ask(&a.ns, (ROUTER, 53)).expect("an answer").ip(), HOST);

    let shown = rows(&host.json(["conntrack", "list"]));
    let of = |proto: &str| shown.iter().filter(|entry| entry["proto"] == proto).count();
    assert_eq!((of("tcp"), of("udp"), of("icmpv6")), (1, 1, 2), "{shown:#?}");

    host.stop(Signal::SIGKILL);
    host.launch();
    connection.echo("again");
    host.ok(["conntrack", "flush", "--proto", "icmpv6"]);
    assert_eq!(rows(&host.json(["conntrack", "list"])).len(), 2);

    // Nobody comes in who was not asked.
    let inside = one(&host.json(["sandbox", "inspect", &a.name]))["endpoints"][0]["ipv6"].clone();
    let inside: IpAddr = inside.as_str().unwrap().parse().unwrap();
    host.outside.ip(&format!("-6 route add {inside}/128 via {HOST}"));
    assert_eq!(ping(&host.outside, inside, 1).received, 0);
    // The uplink's own address is answered for.
    assert_ping(&host.outside, HOST, 64);
}

#[test]
#[ignore = "needs root"]
fn the_gateway_says_why_a_packet_cannot_go_on() {
    let host = started(1400);
    let a = host.sandbox("a", "--network app");
    let says = |what: &str, line: &str| {
        let said = a.ns.run(&format!("ping -n -c 1 -W 2 {line}")).stdout;
        assert!(said.contains(what), "{line}: {said}");
    };
    says("Time exceeded: Hop limit", &format!("-t 1 {FAR}"));
    says("Packet too big: mtu=1400", &format!("-M do -s 1400 {FAR}"));
    // The kernel of the sandbox has learned it, and cuts itself from now on.
    eventually(PATIENCE, "a narrower path", || {
        a.ns.ip(&format!("-6 route get {FAR}")).contains("mtu 1400")
    });
    let seen = a.ns.run(&format!("ping -n -c 2 -i 0.1 -W 2 -M dont -s 3000 {FAR}")).stdout;
    assert!(seen.contains(" 2 received"), "{seen}");
    host.ok(["uplink", "rm", "up0"]);
    says("Destination unreachable: No route", &FAR.to_string());
}
