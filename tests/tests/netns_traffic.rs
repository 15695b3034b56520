//! Real traffic of the kernel's stacks through the built daemon, in both families: within a network, out, in
//! through published ports, and between host and containers.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{IpAddr, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use dataplane::packet::types::{Mac, PortId};
use tests::host::family::ANY;
use tests::host::namespace::Process;
use tests::host::raw::RawSender;
use tests::host::traffic::{
    TcpClient, TcpServer, UdpServer, assert_ping, ping, udp_ask, uninterrupted,
};
use tests::host::{BOTH, Family, Host, Uplink, WIRE, eventually, one, rows};
use tests::packet::{self, udp};

/// Another network with both families.
const OTHER: &str =
    "--subnet 10.91.2.0/24 --gateway 10.91.2.1 --subnet fd00:91:2::/64 --gateway fd00:91:2::1";

/// Rows: Open vSwitch `datapath: ping between two ports`; Open vSwitch `datapath: http between two ports`; moby
/// `TestBridgeICC`; passt `udp`.
#[test]
#[ignore = "needs root"]
fn sandboxes_of_a_network_reach_each_other() {
    let host = Host::start_dual(Uplink::None);
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app --ip 10.91.1.77 --ip6 fd00:91::77");
    assert_eq!(BOTH.map(|family| family.of(&b).to_string()), ["10.91.1.77", "fd00:91::77"]);
    for family in BOTH {
        assert_ping(&a.ns, family.of(&b), 64);
        assert_ping(&b.ns, family.of(&a), 64);
        assert_ping(&a.ns, family.gateway(), 64);
        for (client, server) in [(&a, &b), (&b, &a)] {
            let _tcp = TcpServer::start(&server.ns, (ANY, 7000));
            let mut connection = TcpClient::connect(&client.ns, (family.of(server), 7000));
            connection.echo("hello");
            assert_eq!(connection.seen_as.ip(), family.of(client));
            let _udp = UdpServer::start(&server.ns, (ANY, 7001));
            let seen = udp_ask(&client.ns, (family.of(server), 7001)).expect("an answer");
            assert_eq!(seen.ip(), family.of(client));
        }
    }
}

/// Rows: netavark `isolated networks`; moby `TestBridgeINC`.
#[test]
#[ignore = "needs root"]
fn networks_are_apart() {
    let host = Host::start_dual(Uplink::None);
    host.network("other", OTHER);
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network other");
    let counted = || {
        let drops = rows(&host.json(["drops", "--sandbox", &a.name]));
        let row = drops.iter().find(|row| row["reason"] == "inter_network");
        row.map_or(0, |row| row["count"].as_u64().unwrap())
    };
    for family in BOTH {
        let before = counted();
        assert_eq!(ping(&a.ns, family.of(&b), 2).received, 0);
        assert!(counted() > before, "{family}");
    }
}

/// A server in two networks answers by the one that has the default route, whichever address it
/// was asked at: it must find the gateway there all the same.
#[test]
#[ignore = "needs root"]
fn an_address_of_one_network_does_not_keep_the_gateway_of_another_away() {
    let host = Host::start_dual(Uplink::None);
    host.network("other", OTHER);
    let both = host.sandbox("both", "--network app --network other");
    for (family, gateway) in BOTH.into_iter().zip(["10.91.2.1", "fd00:91:2::1"]) {
        // The source guard keeps the packet itself out of the other network.
        let own = family.of(&both);
        let from_app = both.ns.run(&format!("ping -n -c 1 -W 1 -I {own} {gateway}"));
        assert!(from_app.stdout.contains(" 0 received"), "{}", from_app.stdout);
        let known = both.ns.ip(&format!("neighbor show to {gateway} dev eth1"));
        assert!(known.contains("lladdr"), "{known:?}");
    }
    let drops = rows(&host.json(["drops", "--sandbox", &both.name]));
    let said = ["spoofed_arp", "spoofed_nd"];
    assert!(drops.iter().all(|d| !said.contains(&d["reason"].as_str().unwrap())), "{drops:?}");
}

/// The TTLs and source addresses of the next two echo requests that the outside gets.
fn requests_outside(host: &Host, family: Family, ping_from: impl FnOnce()) -> String {
    let filter = family.pick(["icmp[icmptype] == icmp-echo", "icmp6[icmp6type] == icmp6-echo"]);
    let mut tcpdump = host.outside.command("tcpdump");
    tcpdump
        .args(["-i", WIRE, "-n", "-v", "-l", "-c", "2", "--immediate-mode", filter])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let tcpdump = Process::start(&mut tcpdump);
    // It says on no channel of its own that it listens.
    eventually(Duration::from_secs(10), "tcpdump listens", || {
        !host
            .outside
            .enter(|| std::fs::read_to_string("/proc/thread-self/net/packet"))
            .unwrap()
            .lines()
            .skip(1)
            .collect::<String>()
            .is_empty()
    });
    std::thread::sleep(Duration::from_millis(200));
    ping_from();
    tcpdump.output(Duration::from_secs(10))
}

fn the_way_out(uplink: Uplink) {
    let host = Host::start_dual(uplink);
    let a = host.sandbox("a", "--network app");
    let _tcp = TcpServer::start(&host.outside, (ANY, 7000));
    let _udp = UdpServer::start(&host.outside, (ANY, 7001));
    let translated = || {
        let rules = rows(&host.json(["nat", "rules"]));
        let own = rules.iter().filter(|rule| rule["network"] == "app");
        own.map(|rule| rule["packets"].as_u64().unwrap()).sum::<u64>()
    };
    for family in BOTH {
        let (own, far, before) = (family.host(), family.outside(), translated());
        let seen = requests_outside(&host, family, || assert_ping(&a.ns, far, 63));
        let lifetime = family.pick(["ttl 63", "hlim 63"]);
        assert_eq!(seen.matches(lifetime).count(), 2, "{seen}");
        assert_eq!(seen.matches(&format!("{own} > {far}")).count(), 2, "{seen}");

        let mut connection = TcpClient::connect(&a.ns, (far, 7000));
        connection.echo("hello");
        assert_eq!(connection.seen_as.ip(), own);
        let seen = udp_ask(&a.ns, (far, 7001)).expect("an answer");
        assert_eq!(seen.ip(), own);
        assert!(translated() > before, "{family}: {}", host.ok(["nat", "rules"]));
    }
}

/// Rows: Open vSwitch `conntrack: simple SNAT, more complex SNAT`; passt `icmp`.
#[test]
#[ignore = "needs root"]
fn the_way_out_by_a_dedicated_uplink_translates() {
    the_way_out(Uplink::Dedicated);
}

/// Rows: Linux `nft_nat.sh: masquerade`.
#[test]
#[ignore = "needs root"]
fn the_way_out_by_a_shared_uplink_translates() {
    the_way_out(Uplink::Shared);
}

fn published_ports(uplink: Uplink) {
    let host = Host::start_dual(uplink);
    let web = host.sandbox("web", "--network app -p 8080:80 -p 5353:53/udp");
    let _tcp = TcpServer::start(&web.ns, (ANY, 80));
    let _udp = UdpServer::start(&web.ns, (ANY, 53));
    let ports = rows(&host.json(["port", "ls"]));
    assert_eq!(ports.len(), 4, "{ports:?}");
    for family in BOTH {
        let mut connection = TcpClient::connect(&host.outside, (family.host(), 8080));
        connection.echo("hello");
        assert_eq!(connection.seen_as.ip(), family.outside());
        assert_eq!(connection.seen_as.port(), connection.local().port());
        let seen = udp_ask(&host.outside, (family.host(), 5353)).expect("an answer");
        assert_eq!(seen.ip(), family.outside());

        let any = family.any().to_string();
        let own = |port: &&serde_json::Value| port["proto"] == "tcp" && port["host_ip"] == *any;
        let tcp = ports.iter().find(own).unwrap();
        assert_eq!(tcp["sandbox"], web.name.as_str());
        for (field, value) in
            [("host_port", 8080), ("host_port_end", 8080), ("port", 80), ("port_end", 80)]
        {
            assert_eq!(tcp[field], value, "{field} of {tcp}");
        }
        // Nothing else of it is reachable.
        assert!(TcpClient::try_connect(&host.outside, (family.host(), 80)).is_err());
    }
}

#[test]
#[ignore = "needs root"]
fn a_published_port_of_a_dedicated_uplink_shows_the_client() {
    published_ports(Uplink::Dedicated);
}

/// Rows: netavark `port forwarding, tcp and udp, IPv4`; CNI `portmap: TCP forward`; moby
/// `TestAccessPublishedPortFromRemoteHost`.
#[test]
#[ignore = "needs root"]
fn a_published_port_of_a_shared_uplink_shows_the_client() {
    published_ports(Uplink::Shared);
}

/// Of each family.
///
/// Rows: netavark `port forwarding, ranges`.
#[test]
#[ignore = "needs root"]
fn a_range_is_one_mapping() {
    let host = Host::start_dual(Uplink::Shared);
    let web = host.sandbox("web", "--network app -p 9000-9199:7000-7199");
    let ports = rows(&host.json(["port", "ls"]));
    assert_eq!(ports.len(), 2, "{ports:?}");
    for port in &ports {
        for (field, value) in
            [("host_port", 9000), ("host_port_end", 9199), ("port", 7000), ("port_end", 7199)]
        {
            assert_eq!(port[field], value, "{field}");
        }
    }
    for offset in [0, 100, 199] {
        let _server = TcpServer::start(&web.ns, (ANY, 7000 + offset));
        for family in BOTH {
            TcpClient::connect(&host.outside, (family.host(), 9000 + offset)).echo("hello");
        }
    }
    host.ok(["port", "unpublish", &web.name, "9000-9199:7000-7199"]);
    assert_eq!(rows(&host.json(["port", "ls"])).len(), 0);
}

#[test]
#[ignore = "needs root"]
fn a_free_host_port_is_chosen_and_told() {
    let host = Host::start_dual(Uplink::Shared);
    let web = host.sandbox("web", "--network app -p 80");
    let ports = rows(&host.json(["port", "ls"]));
    assert_eq!(ports.len(), 2, "{ports:?}");
    assert_eq!(ports[0]["host_port"], ports[1]["host_port"], "one for both families");
    let port = u16::try_from(ports[0]["host_port"].as_u64().unwrap()).unwrap();
    let _server = TcpServer::start(&web.ns, (ANY, 80));
    for family in BOTH {
        TcpClient::connect(&host.outside, (family.host(), port)).echo("hello");
    }
}

/// Rows: moby `TestAccessToPublishedPort, TestAccessPublishedPortFromAnotherNetwork`; moby
/// `TestAccessPublishedPortFromCtr`; moby `TestPortMappedHairpinTCP, TestPortMappedHairpinUDP`.
#[test]
#[ignore = "needs root"]
fn published_ports_are_reachable_from_inside() {
    for uplink in [Uplink::Dedicated, Uplink::Shared] {
        let host = Host::start_dual(uplink);
        host.network("other", OTHER);
        let web = host.sandbox("web", "--network app -p 8080:80 -p 5353:53/udp");
        let same = host.sandbox("same", "--network app");
        let other = host.sandbox("other", "--network other");
        let _server = TcpServer::start(&web.ns, (ANY, 80));
        let _udp = UdpServer::start(&web.ns, (ANY, 53));
        // Its own port, a neighbor's, and one of another network.
        for client in [&web, &same, &other] {
            for family in BOTH {
                TcpClient::connect(&client.ns, (family.host(), 8080)).echo("hello");
                assert!(
                    udp_ask(&client.ns, (family.host(), 5353)).is_some(),
                    "{uplink:?}: {} asks by UDP over {family}",
                    client.name
                );
            }
        }
    }
}

fn unpublishing(uplink: Uplink) {
    let host = Host::start_dual(uplink);
    let web = host.sandbox("web", "--network app -p 8080:80 -p 8081:81");
    let _servers = [80, 81].map(|port| TcpServer::start(&web.ns, (ANY, port)));
    let to = |port| BOTH.map(|family| TcpClient::connect(&host.outside, (family.host(), port)));
    let (mut ended, mut kept) = (to(8080), to(8081));
    ended.iter_mut().chain(&mut kept).for_each(|connection| connection.echo("before"));
    host.ok(["port", "unpublish", &web.name, "8080:80"]);
    let left = rows(&host.json(["conntrack", "list", "--proto", "tcp"]));
    let dports: Vec<_> = left.iter().map(|entry| entry["orig"]["dport"].clone()).collect();
    assert_eq!(dports, [8081, 8081], "{left:?}");
    for connection in &mut ended {
        assert!(connection.try_echo("after", Duration::from_secs(1)).is_err());
    }
    kept.iter_mut().for_each(|connection| connection.echo("after"));
    for family in BOTH {
        assert!(TcpClient::try_connect(&host.outside, (family.host(), 8080)).is_err(), "{family}");
    }
    // And back again, without disturbing what runs.
    host.ok(["port", "publish", &web.name, "8080:80"]);
    to(8080).iter_mut().for_each(|connection| connection.echo("again"));
    kept.iter_mut().for_each(|connection| connection.echo("still"));
}

#[test]
#[ignore = "needs root"]
fn unpublishing_on_a_dedicated_uplink_ends_connections_at_once() {
    unpublishing(Uplink::Dedicated);
}

#[test]
#[ignore = "needs root"]
fn unpublishing_on_a_shared_uplink_ends_connections_at_once() {
    unpublishing(Uplink::Shared);
}

#[test]
#[ignore = "needs root"]
fn host_and_containers_reach_each_other() {
    let host = Host::start_dual(Uplink::None);
    let a = host.sandbox("a", "--network app");
    let _inside = TcpServer::start(&a.ns, (ANY, 80));
    for family in BOTH {
        let (own, gateway) = (family.of(&a), family.gateway());
        assert_ping(&host.ns, own, 64);
        let mut connection = TcpClient::connect(&host.ns, (own, 80));
        connection.echo("hello");
        assert_eq!(connection.seen_as.ip(), gateway);
        let _at_gateway = TcpServer::start(&host.ns, (gateway, 7000));
        let mut connection = TcpClient::connect(&a.ns, (gateway, 7000));
        connection.echo("hello");
        assert_eq!(connection.seen_as.ip(), own);
        let _udp = UdpServer::start(&host.ns, (gateway, 7001));
        assert_eq!(udp_ask(&a.ns, (gateway, 7001)).expect("an answer").ip(), own);
    }
}

/// By its gateway, after three questions to the wire.
fn a_silent_neighbor_is_told_of(uplink: Uplink) {
    let host = Host::start_dual(uplink);
    let a = host.sandbox("a", "--network app");
    for family in BOTH {
        let nobody = family.pick(["192.0.2.99", "2001:db8::99"]);
        let said = a.ns.run(&format!("ping -n -c 1 -W 10 {nobody}")).stdout;
        let from = format!("From {} icmp_seq=1 Destination ", family.gateway());
        let why = family.pick(["Host Unreachable", "unreachable: Address unreachable"]);
        assert!(said.contains(&format!("{from}{why}")), "{said}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_silent_neighbor_of_a_dedicated_uplink_is_told_of() {
    a_silent_neighbor_is_told_of(Uplink::Dedicated);
}

#[test]
#[ignore = "needs root"]
fn a_silent_neighbor_of_a_shared_uplink_is_told_of() {
    a_silent_neighbor_is_told_of(Uplink::Shared);
}

/// What Linux' `local_termination.sh` sends to an interface, by the addresses that it has: unicast of a stranger
/// and a group that nobody joined are not for the host's stack, although both flood.
#[test]
#[ignore = "needs root"]
fn what_is_for_others_ends_before_the_host_s_stack() {
    const STRANGER: Mac = Mac([0xde, 0xad, 0xbe, 0xef, 0xee, 0x03]);
    let host = Host::start_dual(Uplink::None);
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network app"));
    let mac_in = |shown: &str, word: &str| -> Mac {
        shown.split(word).nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
    };
    let own = mac_in(&a.ns.ip("-o link show eth0"), "link/ether ");
    let neighbor = mac_in(&b.ns.ip("-o link show eth0"), "link/ether ");
    let network = one(&host.json(["network", "inspect", "app"]));
    let leg = format!("vsw-{}", &network["id"].as_str().unwrap()[..8]);
    let number = host.ns.enter(|| nix::net::if_::if_nametoindex(leg.as_str())).unwrap();
    let groups = [("225.1.2.3", "225.1.2.4"), ("ff2e::102:304", "ff2e::102:305")];
    for (family, (joined, unknown)) in BOTH.into_iter().zip(groups) {
        assert_eq!(ping(&a.ns, family.gateway(), 1).received, 1);
        let gateway = mac_in(&a.ns.ip(&format!("neighbor show {}", family.gateway())), "lladdr ");
        let socket = host.ns.enter(|| UdpSocket::bind((family.any(), 7100))).unwrap();
        match (joined.parse().unwrap(), family.gateway()) {
            (IpAddr::V4(group), IpAddr::V4(at)) => socket.join_multicast_v4(&group, &at).unwrap(),
            (IpAddr::V6(group), _) => socket.join_multicast_v6(&group, number).unwrap(),
            other => panic!("{other:?}"),
        }
        let [joined, unknown] = [joined, unknown].map(|group| group.parse::<IpAddr>().unwrap());
        let to = |mac, address: IpAddr, name: &str| {
            let end = |mac| packet::Host { port: PortId(0), mac, ip: a.ip };
            let packet = udp(&end(own), 4000, &end(mac), 7100).payload(name.as_bytes());
            packet.between(family.of(&a), address).bytes()
        };
        let frames = [
            to(gateway, family.gateway(), "the gateway's"),
            to(STRANGER, family.gateway(), "a stranger's"),
            to(neighbor, family.gateway(), "a neighbor's"),
            to(group_mac(joined), joined, "a group that was joined"),
            to(group_mac(unknown), unknown, "another group"),
            to(gateway, family.gateway(), "the last"),
        ];
        let mut sender = RawSender::open(&a.ns, "eth0");
        for frame in &frames {
            sender.send(frame);
        }
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut came = Vec::new();
        while came.last().is_none_or(|last| last != "the last") {
            let mut bytes = [0; 100];
            let length = uninterrupted(|| socket.recv(&mut bytes)).unwrap();
            came.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
        }
        assert_eq!(came, ["the gateway's", "a group that was joined", "the last"], "{family}");
    }
}

/// RFC 1112 §6.4, RFC 2464 §7.
fn group_mac(group: IpAddr) -> Mac {
    match group {
        IpAddr::V4(group) => {
            let [_, b, c, d] = group.octets();
            Mac([1, 0, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(group) => {
            let [.., a, b, c, d] = group.octets();
            Mac([0x33, 0x33, a, b, c, d])
        }
    }
}

/// Rows: Linux `nft_nat.sh: local dnat, dnat port only`; netavark `port forwarding, localhost`; moby
/// `TestAccessPublishedPortFromHost`.
#[test]
#[ignore = "needs root"]
fn the_host_itself_reaches_published_ports() {
    let host = Host::start_dual(Uplink::Shared);
    let web = host.sandbox("web", "--network app -p 8080:80 -p 5353:53/udp");
    let _server = TcpServer::start(&web.ns, (ANY, 80));
    let _udp = UdpServer::start(&web.ns, (ANY, 53));
    for family in BOTH {
        for address in [family.localhost(), family.host(), family.gateway()] {
            TcpClient::connect(&host.ns, (address, 8080)).echo("hello");
            assert!(udp_ask(&host.ns, (address, 5353)).is_some(), "UDP to {address}");
        }
    }
}

/// Rows: netavark `port forwarding, host IP, wildcard host IP`; moby
/// `TestAccessPortPublishedOnLoopbackAddress`.
#[test]
#[ignore = "needs root"]
fn a_port_published_on_one_address_is_closed_on_others() {
    let host = Host::start_dual(Uplink::Shared);
    let addresses = BOTH.map(|family| match (family.localhost(), family.host()) {
        (local, own) if family == Family::V4 => (local.to_string(), own.to_string()),
        (local, own) => (format!("[{local}]"), format!("[{own}]")),
    });
    let ports = addresses.map(|(local, own)| format!("-p {local}:8080:80 -p {own}:8081:80"));
    let web = host.sandbox("web", &format!("--network app {}", ports.join(" ")));
    let _server = TcpServer::start(&web.ns, (ANY, 80));
    for family in BOTH {
        TcpClient::connect(&host.ns, (family.localhost(), 8080)).echo("hello");
        TcpClient::connect(&host.outside, (family.host(), 8081)).echo("hello");
        assert!(TcpClient::try_connect(&host.outside, (family.host(), 8080)).is_err());
        assert!(TcpClient::try_connect(&host.ns, (family.localhost(), 8081)).is_err());
    }
}
