//! veth endpoints: long frames of both IP versions, what the host's stack sees of them, and what
//! becomes of their other end.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use dataplane::frame::Frame;
use dataplane::io::packet_socket::{PacketOptions, PacketSocket};
use dataplane::io::{Port, PortHalves};
use dataplane::pool::Pool;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::host::inventory::Inventory;
use tests::host::namespace::Namespace;
use tests::host::traffic::{TcpClient, TcpServer, assert_ping, uninterrupted};
use tests::host::{GATEWAY, Host, Sandbox, Uplink, eventually, one, ran, rows};

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
/// The gateway of [`veth_host`]'s network.
const GATEWAY_OF_FAST: Ipv4Addr = Ipv4Addr::new(10, 91, 1, 1);
const MENDED: Duration = Duration::from_secs(8);
/// How long what was mended a moment ago may take: five seconds more.
const MENDED_AGAIN: Duration = Duration::from_secs(13);

/// More than a frame of a plain device can have.
const PLAIN: u64 = 65_600;

/// Sends bytes that do not repeat within a frame, and compares every one at the other end.
fn transfer(from: &Namespace, to: &Namespace, at: SocketAddr) {
    const WORDS: u64 = 10_000_000;
    let word = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let listener = to.enter(|| TcpListener::bind(at)).unwrap();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut bytes = vec![0; 800_000];
        for chunk in 0..WORDS / 100_000 {
            stream.read_exact(&mut bytes).unwrap();
            let wrong = bytes
                .chunks_exact(8)
                .zip(chunk * 100_000..)
                .find(|(bytes, number)| **bytes != word(*number));
            assert!(wrong.is_none(), "wrong bytes after {wrong:?}");
        }
        assert_eq!(uninterrupted(|| stream.read(&mut bytes)).unwrap(), 0, "more than was sent");
    });
    let mut stream =
        from.enter(|| TcpStream::connect_timeout(&at, Duration::from_secs(5))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    for chunk in 0..WORDS / 100_000 {
        let bytes: Vec<u8> = (chunk * 100_000..(chunk + 1) * 100_000).flat_map(word).collect();
        stream.write_all(&bytes).unwrap();
    }
    drop(stream);
    receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Bytes of an average frame that the sandbox sent while `what` ran.
fn average_frame(host: &Host, sandbox: &Sandbox, what: impl FnOnce()) -> u64 {
    let read = || {
        let stats = rows(&host.json(["stats", "--sandbox", &sandbox.name]));
        let sum = |field: &str| stats.iter().map(|port| port[field].as_u64().unwrap()).sum::<u64>();
        (sum("rx_frames"), sum("rx_bytes"))
    };
    let (frames, bytes) = read();
    what();
    let (frames_after, bytes_after) = read();
    (bytes_after - bytes) / (frames_after - frames).max(1)
}

/// The host's ends of all veth endpoints.
fn host_ends(host: &Host) -> Vec<String> {
    let links: Value = serde_json::from_str(&host.ns.ip("-j link show")).unwrap();
    let names = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap());
    names.filter(|name| name.starts_with("vswe-")).map(str::to_owned).collect()
}

fn veth_host(uplink: Uplink) -> (Host, Sandbox, Sandbox) {
    veth_host_with(uplink, "")
}

/// Whose sandboxes may have addresses that they were not given.
fn unguarded_host(uplink: Uplink) -> (Host, Sandbox, Sandbox) {
    veth_host_with(uplink, " -o spoof_check=false")
}

fn veth_host_with(uplink: Uplink, options: &str) -> (Host, Sandbox, Sandbox) {
    let host = Host::start(uplink);
    host.network("fast", &format!("--subnet 10.91.1.0/24 -o link=veth{options}"));
    let a = host.sandbox("a", "--network fast -p 8080:80");
    let b = host.sandbox("b", "--network fast");
    (host, a, b)
}

/// An IPv6 address in the sandbox.
fn add_ipv6(sandbox: &Sandbox, address: &str) -> IpAddr {
    sandbox.ns.enter(|| fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "0")).unwrap();
    sandbox.ns.ip(&format!("-6 address add {address}/64 dev eth0 nodad"));
    address.parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn frames_beyond_64_kib_go_through_whole_or_are_cut() {
    let (host, a, b) = unguarded_host(Uplink::Shared);
    for (sandbox, name) in [(&a, "eth0"), (&b, "eth0")] {
        let shown = one(&host.json(["sandbox", "inspect", &sandbox.name]));
        assert_eq!(shown["endpoints"][0]["link"], "veth", "{name}");
    }
    // Whole, from one veth device to the other.
    let v4 = average_frame(&host, &a, || {
        transfer(&a.ns, &b.ns, SocketAddr::new(b.ip.into(), 7000));
    });
    assert!(v4 > PLAIN, "IPv4: {v4} bytes a frame");
    add_ipv6(&a, "fd00::2");
    let to = add_ipv6(&b, "fd00::3");
    let v6 = average_frame(&host, &a, || transfer(&a.ns, &b.ns, SocketAddr::new(to, 7000)));
    assert!(v6 > PLAIN, "IPv6: {v6} bytes a frame");
    // Cut for a TAP, which the host's leg is, and for an uplink behind NAT.
    let leg = Ipv4Addr::new(10, 91, 1, 1);
    let to_host = average_frame(&host, &a, || {
        transfer(&a.ns, &host.ns, SocketAddr::new(leg.into(), 7000));
    });
    assert!(to_host > PLAIN, "to the host: {to_host} bytes a frame");
    let out = average_frame(&host, &a, || {
        transfer(&a.ns, &host.outside, SocketAddr::new(GATEWAY.into(), 7000));
    });
    assert!(out > PLAIN, "out: {out} bytes a frame");
    assert!(host.json(["drops"]).to_string().find("vnet_invalid").is_none());
}

#[test]
#[ignore = "needs root"]
fn longer_frames_than_a_buffer_holds_are_counted_and_sent_again() {
    let (host, a, b) = unguarded_host(Uplink::None);
    add_ipv6(&a, "fd00::2");
    let to = add_ipv6(&b, "fd00::3");
    a.ns.ip("link set eth0 gso_max_size 500000");
    transfer(&a.ns, &b.ns, SocketAddr::new(to, 7000));
    let drops = rows(&host.json(["drops"]));
    let oversize = drops.iter().find(|drop| drop["reason"] == "oversize");
    let count = oversize.and_then(|drop| drop["count"].as_u64());
    assert!(count.is_some_and(|count| count > 0), "{drops:?}");
}

/// The host got a datagram that the sandbox sent to everybody.
fn hears(host: &Host, sandbox: &Sandbox) -> bool {
    let ear = host.ns.enter(|| UdpSocket::bind((ANY, 7100))).unwrap();
    ear.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mouth = sandbox.ns.enter(|| UdpSocket::bind((ANY, 0))).unwrap();
    mouth.set_broadcast(true).unwrap();
    mouth.send_to(b"anybody?", (Ipv4Addr::BROADCAST, 7100)).unwrap();
    match uninterrupted(|| ear.recv(&mut [0; 16])) {
        Ok(_) => true,
        Err(error) => {
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
            false
        }
    }
}

#[test]
#[ignore = "needs root"]
fn the_hosts_stack_has_no_part_in_the_other_end() {
    let (mut host, a, b) = veth_host(Uplink::None);
    assert!(hears(&host, &a), "by its leg in the network");
    let ends = host_ends(&host);
    assert_eq!(ends.len(), 2);
    for end in &ends {
        let shown = host.ns.ip(&format!("-o address show dev {end}"));
        assert_eq!(shown, "", "no address, of IPv6 neither");
        assert!(host.ns.ip(&format!("link show {end}")).contains("NOARP"));
    }
    // Nobody serves the leg now: what the host hears it hears by the other end.
    host.stop(Signal::SIGKILL);
    assert!(!hears(&host, &a));
    for end in &ends {
        host.ns.ok(&format!("tc qdisc del dev {end} clsact"));
    }
    assert!(hears(&host, &a), "the filter is what kept it from hearing");
    host.launch();
    host.stop(Signal::SIGKILL);
    assert!(!hears(&host, &a), "the filter is there again");
    host.launch();
    assert_ping(&a.ns, b.ip, 64);
}

/// What `status` warns of.
fn warnings(host: &Host) -> Vec<String> {
    let status = one(&host.json(["status"]));
    let texts = rows(&status["warnings"]);
    texts.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
#[ignore = "needs root"]
fn the_filter_of_the_other_end_is_put_back() {
    let (mut host, a, b) = veth_host(Uplink::None);
    let filtered = |host: &Host, end: &String| {
        host.ns.ok(&format!("tc filter show dev {end} ingress")).contains("vswitchd-steer")
    };
    let ends = host_ends(&host);
    // With the qdisc it hangs on, and alone; the second time it is not set at once.
    for what in ["qdisc del dev END clsact", "filter del dev END ingress"] {
        for end in &ends {
            host.ns.ok(&format!("tc {}", what.replace("END", end)));
        }
        eventually(MENDED_AGAIN, "the filters are there again", || {
            ends.iter().all(|end| filtered(&host, end))
        });
    }
    // Another's filter in its place stays, and is warned of.
    let end = &ends[0];
    let replace = format!("filter replace dev {end} ingress pref 22099 protocol all handle 1");
    let mut tc = host.ns.command("tc");
    tc.args(replace.split_whitespace()).args(["bpf", "bytecode", "1,6 0 0 0"]);
    let _ = ran(&mut tc).succeeded();
    let warned = |host: &Host| warnings(host).iter().any(|text| text.contains(end.as_str()));
    eventually(MENDED_AGAIN, "status says so", || warned(&host));
    assert_eq!(warnings(&host).len(), 1, "{:?}", warnings(&host));
    assert!(!filtered(&host, end));
    host.ns.ok(&format!("tc qdisc del dev {end} clsact"));
    eventually(MENDED_AGAIN, "the filter is there again", || {
        filtered(&host, end) && !warned(&host)
    });
    assert_eq!(warnings(&host), Vec::<String>::new());
    assert_ping(&a.ns, b.ip, 64);
    host.stop(Signal::SIGKILL);
    assert!(!hears(&host, &a) && !hears(&host, &b));
    host.launch();
}

#[test]
#[ignore = "needs root"]
fn an_end_that_was_moved_elsewhere_is_made_anew() {
    let (mut host, a, b) = veth_host(Uplink::Shared);
    let inside = || {
        let shown: Value = serde_json::from_str(&a.ns.ip("-j -4 address show dev eth0")).unwrap();
        let of = |key: &str| shown[0]["addr_info"][0][key].clone();
        let link: Value = serde_json::from_str(&a.ns.ip("-j link show dev eth0")).unwrap();
        let link = &link[0];
        let settings = [of("local"), of("prefixlen"), link["address"].clone(), link["mtu"].clone()];
        (settings, a.ns.ip("route show"))
    };
    let before = inside();
    let mut ends = host_ends(&host);
    ends.sort();
    let end = ends.iter().find(|end| has_far_end_in(&host, end, &a)).unwrap().clone();
    // The last time it was made unrecognisable inside, but for its alias.
    for (running, disguised) in [(true, false), (false, false), (false, true)] {
        if !running {
            host.stop(Signal::SIGTERM);
        }
        if disguised {
            a.ns.ip("link set eth0 down");
            a.ns.ip("link set eth0 address 02:00:00:00:00:99 name other0");
        }
        host.ns.ip(&format!("link set {end} netns {}", host.outside.name()));
        if !running {
            host.launch();
        }
        eventually(MENDED, "the pair is whole again", || {
            let mut now = host_ends(&host);
            now.sort();
            now == ends && a.ns.run("ip link show eth0").code == 0
        });
        eventually(MENDED, "the sandbox is reached", || {
            a.ns.run(&format!("ping -c 1 -W 1 {}", b.ip)).code == 0
        });
        assert_eq!(inside(), before);
        assert_ping(&a.ns, GATEWAY, 63);
        assert!(!host.outside.ip("link show").contains("vswe-"), "the old one is gone");
        assert!(!a.ns.ip("link show").contains("other0"), "both of it");
        assert_eq!(warnings(&host), Vec::<String>::new());
        // A device that was just made anew stays away for a while when it goes again.
        thread::sleep(Duration::from_secs(5));
    }
}

#[test]
#[ignore = "needs root"]
fn the_other_end_is_kept_and_goes_with_the_endpoint() {
    let (mut host, a, b) = veth_host(Uplink::None);
    let _server = TcpServer::start(&b.ns, (ANY, 7000));
    let mut client = TcpClient::connect(&a.ns, (b.ip, 7000));
    client.echo("before");
    let ends = host_ends(&host);
    // Renamed while it runs, and while it does not.
    for (at, running) in [(0, true), (1, false)] {
        if !running {
            host.stop(Signal::SIGTERM);
        }
        host.ns.ip(&format!("link set {} down", ends[at]));
        host.ns.ip(&format!("link set {} name other{at} up", ends[at]));
        if !running {
            host.launch();
        }
        eventually(MENDED, "the end has its name again", || host_ends(&host) == ends);
        client.echo("after");
    }
    // Deleted: both come back.
    host.ns.ip(&format!("link delete {}", ends[0]));
    eventually(MENDED, "the pair is there again", || {
        host_ends(&host).len() == 2 && a.ns.run("ip link show eth0").code == 0
    });
    eventually(MENDED, "the sandbox is reached", || {
        a.ns.run(&format!("ping -c 1 -W 1 {}", b.ip)).code == 0
    });
    // Down and up again inside.
    b.ns.ip("link set eth0 down");
    assert_ne!(a.ns.run(&format!("ping -c 1 -W 1 {}", b.ip)).code, 0);
    b.ns.ip("link set eth0 up");
    // The kernel sets its interface up at once, and lets it send a moment later.
    eventually(MENDED, "the sandbox is reached again", || {
        a.ns.run(&format!("ping -c 1 -W 1 {}", b.ip)).code == 0
    });
    assert_ping(&a.ns, b.ip, 64);
    host.ok(["network", "disconnect", "fast", &b.name]);
    assert_eq!(host_ends(&host).len(), 1);
    host.ok(["sandbox", "rm", &a.name]);
    assert_eq!(host_ends(&host), Vec::<String>::new());
}

#[test]
#[ignore = "needs root"]
fn what_was_made_unrecognisable_inside_goes_all_the_same() {
    let mut host = Host::start(Uplink::None);
    host.network("fast", "--subnet 10.91.1.0/24 -o link=veth");
    let lent = Namespace::create(&host.name("lent"));
    let netns = lent.handle().path().display().to_string();
    let before = Inventory::of_namespace(&lent.handle());
    let disguise = |ns: &Namespace| {
        ns.ip("link set eth0 down");
        ns.ip("link set eth0 address 02:00:00:00:00:99 name other0 up");
    };
    let ways = ["disconnect", "rm", "purge"];
    for (way, renamed) in ways.into_iter().flat_map(|way| [(way, false), (way, true)]) {
        let a = host.sandbox("a", &format!("--network fast --netns {netns}"));
        disguise(&a.ns);
        let end = host_ends(&host).remove(0);
        let rename = |host: &Host| {
            if renamed {
                host.ns.ip(&format!("link set {end} down"));
                host.ns.ip(&format!("link set {end} name other9 up"));
            }
        };
        match way {
            "disconnect" => {
                rename(&host);
                host.ok(["network", "disconnect", "fast", &a.name]);
                assert_eq!(host_ends(&host), Vec::<String>::new());
                host.ok(["sandbox", "rm", &a.name]);
            }
            "rm" => {
                rename(&host);
                host.ok(["sandbox", "rm", &a.name]);
            }
            _ => {
                host.stop(Signal::SIGKILL);
                rename(&host);
                host.purge_offline();
                if !renamed {
                    host.launch();
                    host.network("fast", "--subnet 10.91.1.0/24 -o link=veth");
                }
            }
        }
        assert_eq!(host_ends(&host), Vec::<String>::new(), "{way}");
        assert!(!host.ns.ip("link show").contains("other9"), "{way}");
        before.assert_same(&Inventory::of_namespace(&lent.handle()), way);
    }
}

#[test]
#[ignore = "needs root"]
fn somebody_elses_interface_with_the_name_stays() {
    let (host, _, b) = veth_host(Uplink::None);
    let lent = Namespace::create(&host.name("lent"));
    let flags = format!("--network fast --netns {}", lent.handle().path().display());
    let lent = lent.handle();
    for way in ["disconnect", "rm"] {
        let a = host.sandbox("lent", &flags);
        // Ours is not to be known by its name or MAC any more.
        lent.ip("link set eth0 down");
        lent.ip("link set eth0 address 02:00:00:00:00:99 name other0");
        lent.ip("link add eth0 type veth peer name theirs");
        if way == "disconnect" {
            host.ok(["network", "disconnect", "fast", &a.name]);
        }
        host.ok(["sandbox", "rm", &a.name]);
        let left = lent.ip("-o link show");
        assert!(left.contains("eth0") && left.contains("theirs"), "{way}: {left}");
        assert!(!left.contains("other0"), "{way}: {left}");
        assert_eq!(host_ends(&host).len(), 2, "{way}: those of a and b");
        lent.ip("link delete eth0");
    }
    assert_ping(&b.ns, GATEWAY_OF_FAST, 64);
}

#[test]
#[ignore = "needs root"]
fn a_pair_of_an_earlier_version_can_be_recognised_after_a_start() {
    let (mut host, a, b) = veth_host(Uplink::None);
    let alias = |sandbox: &Sandbox| {
        let link: Value = serde_json::from_str(&sandbox.ns.ip("-j link show dev eth0")).unwrap();
        link[0]["ifalias"].as_str().map(str::to_owned)
    };
    let before = alias(&a);
    assert!(before.as_ref().is_some_and(|alias| host_ends(&host).contains(alias)), "{before:?}");
    let set = |sandbox: &Sandbox, alias: &str| {
        let mut ip = sandbox.ns.command("ip");
        let _ = ran(ip.args(["link", "set", "eth0", "alias", alias])).succeeded();
    };
    host.stop(Signal::SIGTERM);
    set(&a, "");
    set(&b, "mine");
    assert_eq!(alias(&a), None);
    host.launch();
    assert_eq!(alias(&a), before);
    assert_eq!(alias(&b).as_deref(), Some("mine"));
    assert_ping(&a.ns, b.ip, 64);
}

#[test]
#[ignore = "needs root"]
fn a_pair_that_was_left_half_made_is_made_anew() {
    let (mut host, a, b) = veth_host(Uplink::None);
    let inside = || (a.ns.ip("-o -4 address show dev eth0"), a.ns.ip("route show"));
    let address = |shown: &str| shown.split_whitespace().nth(3).map(str::to_owned);
    let mac = || {
        let shown = a.ns.ip("-o link show dev eth0");
        shown.split_once("link/ether ").unwrap().1.split_whitespace().next().map(str::to_owned)
    };
    let (before, mac_before) = (inside(), mac());
    let ends = host_ends(&host);
    host.stop(Signal::SIGKILL);
    // As a daemon leaves it that is killed right after it made the pair.
    let end = ends.iter().find(|end| !has_far_end_in(&host, end, &b)).unwrap();
    host.ns.ip(&format!("link delete {end}"));
    host.ns.ip(&format!("link add {end} type veth peer name eth0 netns {}", a.ns.name()));
    // And one that somebody lent IPv6.
    for end in ends.iter().filter(|other| *other != end) {
        let key = format!("/proc/sys/net/ipv6/conf/{end}/disable_ipv6");
        host.ns.enter(|| fs::write(key, "0")).unwrap();
    }
    host.launch();
    let mut after = host_ends(&host);
    after.sort();
    let mut expected = ends.clone();
    expected.sort();
    assert_eq!(after, expected);
    assert_eq!(mac(), mac_before);
    assert_eq!(address(&inside().0), address(&before.0));
    assert_eq!(inside().1, before.1, "routes");
    assert_ping(&a.ns, b.ip, 64);
    for end in &ends {
        let shown = host.ns.ip(&format!("-o address show dev {end}"));
        assert_eq!(shown, "", "no address, of IPv6 neither");
        let key = format!("/proc/sys/net/ipv6/conf/{end}/disable_ipv6");
        assert_eq!(host.ns.enter(|| fs::read_to_string(key)).unwrap(), "1\n");
    }
    // What was finished is taken over as it is.
    let index = |host: &Host| {
        let shown = host.ns.ip(&format!("-o link show {end}"));
        shown.split(':').next().map(str::to_owned)
    };
    let index_before = index(&host);
    host.stop(Signal::SIGKILL);
    host.launch();
    assert_eq!(index(&host), index_before);
    assert_ping(&a.ns, b.ip, 64);
}

/// What the kernel says of IPv6 on a host's end: off, or nothing where there is none.
fn ipv6_off(host: &Host, end: &str) -> Option<String> {
    let key = format!("/proc/sys/net/ipv6/conf/{end}/disable_ipv6");
    host.ns.enter(|| fs::read_to_string(key)).ok().map(|text| text.trim_end().to_owned())
}

#[test]
#[ignore = "needs root"]
fn an_mtu_below_that_of_ipv6_is_as_good_as_any() {
    let mut host = Host::start(Uplink::None);
    // As on any host: the tests' own are without IPv6.
    host.ns.enter(|| fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0")).unwrap();
    host.network("small", "--subnet 10.91.1.0/24 -o link=veth -o mtu=576");
    let a = host.sandbox("a", "--network small");
    let b = host.sandbox("b", "--network small");
    let reached = |size: u16| {
        let ping = format!("ping -c 1 -W 1 -M do -s {size} {}", b.ip);
        a.ns.run(&ping).code == 0
    };
    assert!(reached(548) && !reached(549));
    let ends = host_ends(&host);
    for end in &ends {
        assert_eq!(ipv6_off(&host, end), None);
    }
    host.stop(Signal::SIGKILL);
    host.launch();
    assert!(reached(548));
    // Raised by others, the end has IPv6 until the next start.
    host.stop(Signal::SIGTERM);
    for end in &ends {
        host.ns.ip(&format!("link set {end} mtu 1500"));
        assert_eq!(ipv6_off(&host, end).as_deref(), Some("0"));
    }
    host.launch();
    for end in &ends {
        assert_eq!(ipv6_off(&host, end).as_deref(), Some("1"));
        assert_eq!(host.ns.ip(&format!("-o address show dev {end}")), "");
    }
    assert_eq!(host_ends(&host), ends);
    assert!(reached(548) && !reached(549));
}

#[test]
#[ignore = "needs root"]
fn an_end_shorter_than_its_network_is_put_right_at_start() {
    let (mut host, a, b) = veth_host(Uplink::None);
    let reached = || a.ns.run(&format!("ping -c 1 -W 1 -M do -s 1472 {}", b.ip)).code == 0;
    assert!(reached());
    let ends = host_ends(&host);
    for end in &ends {
        host.ns.ip(&format!("link set {end} mtu 1000"));
    }
    assert!(!reached(), "longer frames than the end takes");
    host.stop(Signal::SIGTERM);
    host.launch();
    assert!(reached());
    assert_eq!(host_ends(&host), ends, "no new ones");
    for end in &ends {
        assert_eq!(ipv6_off(&host, end).as_deref(), Some("1"));
    }
    assert_eq!(warnings(&host), Vec::<String>::new());
}

/// The other end of the pair is `eth0` of the sandbox.
fn has_far_end_in(host: &Host, end: &str, sandbox: &Sandbox) -> bool {
    let far: Value = serde_json::from_str(&sandbox.ns.ip("-j link show dev eth0")).unwrap();
    let near: Value =
        serde_json::from_str(&host.ns.ip(&format!("-j link show dev {end}"))).unwrap();
    far[0]["link_index"] == near[0]["ifindex"]
}

#[test]
#[ignore = "needs root"]
fn frames_lost_before_the_daemon_reads_them_are_counted_apart() {
    const SENT: u64 = 12_000;
    let (host, a, b) = veth_host(Uplink::None);
    // Not later: with the daemon held, nobody would answer ARP.
    assert_ping(&a.ns, b.ip, 64);
    let read = || {
        let stats = one(&host.json(["stats", "--sandbox", &a.name]));
        ["rx_frames", "rx_missed"].map(|field| stats[field].as_u64().unwrap())
    };
    let before = read();
    assert_eq!(before[1], 0, "missed without load");
    let daemon = Pid::from_raw(i32::try_from(host.pid()).unwrap());
    kill(daemon, Signal::SIGSTOP).unwrap();
    a.ns.enter(|| {
        let socket = UdpSocket::bind((ANY, 0)).unwrap();
        for _ in 0..SENT {
            // An error tells of an earlier datagram that nobody listens for.
            let _ = socket.send_to(&[0; 1400], (b.ip, 9));
        }
    });
    kill(daemon, Signal::SIGCONT).unwrap();
    eventually(Duration::from_secs(5), "each frame is received or missed", || {
        read().iter().sum::<u64>() >= before[0] + SENT
    });
    assert!(read()[1] > 0, "the buffer was never full");
    let status = host.json(["status"]);
    for worker in rows(&status["workers"]) {
        let sum = |fields: &[&str]| -> u64 {
            fields.iter().map(|field| worker[*field].as_u64().unwrap()).sum()
        };
        assert_eq!(
            sum(&["rx_frames", "replicated", "generated"]),
            sum(&["tx_frames", "merged", "consumed", "queued", "drops"]),
            "{worker}"
        );
    }
}

/// A packet socket on the sandbox's interface.
fn wire(sandbox: &Sandbox) -> PortHalves {
    let options = PacketOptions::default();
    let socket = sandbox.ns.enter(|| PacketSocket::open("eth0", &options)).unwrap();
    Box::new(socket).split(1).unwrap()
}

#[test]
#[ignore = "needs root"]
fn tagged_frames_arrive_as_they_were_sent() {
    const KIND: [u8; 2] = [0x88, 0xb5];
    let (_host, a, b) = veth_host(Uplink::None);
    let mac = |sandbox: &Sandbox| -> Vec<u8> {
        let shown: Value = serde_json::from_str(&sandbox.ns.ip("-j link show eth0")).unwrap();
        let bytes = shown[0]["address"].as_str().unwrap().split(':');
        bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
    };
    let (mut from, mut to) = (wire(&a), wire(&b));
    let mut pool = Pool::new(64);
    for tags in
        [&[][..], &[0x81, 0, 0x20, 5], &[0x88, 0xa8, 0, 9], &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 5]]
    {
        let mut sent = Frame::new();
        sent.copy_from(&[&mac(&b), &mac(&a), tags, &KIND[..], &[7; 64]].concat());
        assert_eq!(from.tx[0].tx_copy(&mut sent, &mut pool).sent, 1);
        let mut batch = Vec::new();
        eventually(Duration::from_secs(5), "the frame arrives", || {
            to.rx.rx(64, &mut pool, &mut batch).unwrap();
            batch.iter().any(|frame| frame.bytes() == sent.bytes())
        });
        batch.drain(..).for_each(|frame| pool.put(frame));
    }
}
