//! Sandboxes in VLANs of their own, by real devices: kernels speak untagged on access ports, raw sockets
//! write and read the tags of a trunk (not every kernel has 802.1Q devices).
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use dataplane::packet::types::{Mac, PortId, ethertype};
use nix::sys::signal::Signal;
use tests::host::raw::{RawListener, RawSender};
use tests::host::traffic::{UdpServer, ping, udp_ask};
use tests::host::{APP, BOTH, Host, Sandbox, Uplink, eventually, one, rows};
use tests::packet::{self, arp_reply, arp_request, echo, echo_reply, ethernet, udp};

/// IEEE 802 local experimental: nobody else sends it.
const OURS: u16 = 0x88b5;

fn on_the_wire(host: &Host, sandbox: &Sandbox) -> packet::Host {
    let shown = one(&host.json(["sandbox", "inspect", &sandbox.name]));
    let mac = shown["endpoints"][0]["mac"].as_str().unwrap().parse().unwrap();
    packet::Host { port: PortId(0), mac, ip: sandbox.ip }
}

fn dropped(host: &Host, sandbox: &Sandbox, reason: &str) -> u64 {
    let counts = rows(&host.json(["drops", "--sandbox", &sandbox.name]));
    let row = counts.into_iter().find(|row| row["reason"] == reason);
    row.map_or(0, |row| row["count"].as_u64().unwrap())
}

fn tagged(frame: &[u8], kind: u16, tci: u16) -> Vec<u8> {
    [&frame[..12], &kind.to_be_bytes(), &tci.to_be_bytes(), &frame[12..]].concat()
}

/// What comes from this MAC, by any EtherType but those of the kernel's own chatter.
fn from(mac: Mac) -> impl Fn(&[u8]) -> bool + Send + 'static {
    move |frame| {
        let kind = frame.get(12..14).map(|kind| u16::from_be_bytes([kind[0], kind[1]]));
        frame.get(6..12) == Some(&mac.0) && kind != Some(ethertype::IPV6)
    }
}

/// What each of `hear` hears of `frames` that `by` sends.
fn heard(by: &Sandbox, frames: &[Vec<u8>], from_mac: Mac, hear: &[&Sandbox]) -> Vec<Vec<Vec<u8>>> {
    let listeners: Vec<_> =
        hear.iter().map(|at| RawListener::start(&at.ns, "eth0", from(from_mac))).collect();
    let mut raw = RawSender::open(&by.ns, "eth0");
    for frame in frames {
        raw.send(frame);
    }
    std::thread::sleep(Duration::from_millis(300));
    listeners.into_iter().map(RawListener::seen).collect()
}

/// How many of a question each are answered, all at once: who is not answered waits for seconds.
fn answers<const N: usize>(of: [(&Sandbox, IpAddr); N]) -> [u32; N] {
    std::thread::scope(|scope| {
        of.map(|(from, to)| scope.spawn(move || ping(&from.ns, to, 1).received))
            .map(|asking| asking.join().unwrap())
    })
}

fn vlans_keep_apart(link: &str) {
    let mut host = Host::prepare_dual(Uplink::None);
    host.launch();
    host.network("app", &format!("{APP} -o link={link}"));
    let on = |name: &str, options: &str| host.sandbox(name, &format!("--network app {options}"));
    let (a, b) = (on("a", "-o vlan=10"), on("b", "-o vlan=10"));
    let (c, t) = (on("c", "-o vlan=20"), on("t", "-o trunk=10,20-30"));
    let n = on("n", "-o vlan=20 -o trunk=10");
    let [at_a, at_b, at_c, at_t] = [&a, &b, &c, &t].map(|sandbox| on_the_wire(&host, sandbox));

    // Kernels: who is in one VLAN, and the gateway. `n` has VLAN 20 untagged.
    for family in BOTH {
        let gateway = family.gateway();
        assert_eq!(ping(&a.ns, family.of(&b), 3).received, 3, "{family}");
        assert_eq!(ping(&c.ns, family.of(&n), 2).received, 2, "{family}");
        let in_vain = [(&a, family.of(&c)), (&b, family.of(&n)), (&t, gateway)];
        assert_eq!(answers(in_vain), [0; 3], "{family}: `t` has no untagged frames");
        for sandbox in [&a, &c, &n] {
            assert_eq!(ping(&sandbox.ns, gateway, 2).received, 2, "{}, {family}", sandbox.name);
        }
        // Nor by way of the gateway, whose MAC stands for the other's address.
        let shown = a.ns.ip(&format!("neighbor show {gateway}"));
        let mac = shown.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).unwrap();
        a.ns.ip(&format!("neighbor replace {} lladdr {mac} dev eth0", family.of(&c)));
        let before = dropped(&host, &a, "vlan_denied");
        assert_eq!(ping(&a.ns, family.of(&c), 1).received, 0, "{family}");
        assert!(dropped(&host, &a, "vlan_denied") > before, "{family}");
        // The host reaches each of them.
        let _server = UdpServer::start(&c.ns, (family.of(&c), 7000));
        assert!(udp_ask(&host.ns, (family.of(&c), 7000)).is_some(), "{family}");
    }

    // Frames from an access port: plain in its VLAN, tagged at the trunks, nowhere else.
    let all = ethernet(at_a.mac, Mac::BROADCAST, OURS, &[1; 46]);
    let seen = heard(&a, std::slice::from_ref(&all), at_a.mac, &[&b, &c, &t, &n]);
    let with_tag = tagged(&all, 0x8100, 10);
    let expected = [vec![all.clone()], vec![], vec![with_tag.clone()], vec![with_tag.clone()]];
    assert_eq!(seen, expected);

    // From the trunk: by the tag, with the tag of its kind; never untagged, and of two tags never the inner
    // one alone.
    let hello = |to: Mac| ethernet(at_t.mac, to, OURS, &[2; 46]);
    let inner = tagged(&hello(Mac::BROADCAST), 0x8100, 7);
    let frames = [
        tagged(&hello(at_a.mac), 0x8100, 10),
        tagged(&hello(at_c.mac), 0x8100, 20),
        tagged(&inner, 0x88a8, 20),
        hello(at_a.mac),
        tagged(&hello(at_a.mac), 0x8100, 31),
        tagged(&hello(Mac::BROADCAST), 0x8100, 4095),
        tagged(&hello(Mac::BROADCAST), 0x8100, 0),
    ];
    let refused = dropped(&host, &t, "vlan_denied");
    let seen = heard(&t, &frames, at_t.mac, &[&a, &b, &c, &n]);
    let expected = [vec![hello(at_a.mac)], vec![], vec![hello(at_c.mac)], vec![]];
    assert_eq!(seen, expected);
    // Its kernel speaks untagged meanwhile, in vain.
    eventually(Duration::from_secs(5), "the drops are counted", || {
        dropped(&host, &t, "vlan_denied") >= refused + 3 && dropped(&host, &t, "vlan_invalid") == 1
    });

    // The hopper: its own VLAN's tag before another's, and the other's alone; and the guard sees behind
    // tags.
    let refused = dropped(&host, &a, "vlan_denied");
    let hop = ethernet(at_a.mac, Mac::BROADCAST, OURS, &[3; 46]);
    let hops = [tagged(&tagged(&hop, 0x8100, 20), 0x8100, 10), tagged(&hop, 0x8100, 20)];
    assert_eq!(heard(&a, &hops, at_a.mac, &[&b, &c, &t, &n]), [const { Vec::<Vec<u8>>::new() }; 4]);
    assert_eq!(dropped(&host, &a, "vlan_denied"), refused + 2);
    let lie = udp(&packet::Host { ip: b.ip, ..at_t }, 1, &at_a, 2);
    let lies = [lie.clone(), lie.src6(b.ip6).dst6(a.ip6)];
    let lies = lies.map(|lie| tagged(&lie.bytes(), 0x8100, 10));
    assert_eq!(heard(&t, &lies, at_t.mac, &[&a]), [Vec::<Vec<u8>>::new()]);
    let refused = ["spoofed_ipv4", "spoofed_ipv6"].map(|reason| dropped(&host, &t, reason));
    assert_eq!(refused, [1, 1]);

    // A kernel's datagram with its checksum left open gets its tag, and its answer is taken without.
    let listener = RawListener::start(&t.ns, "eth0", from(at_b.mac));
    let mut raw = RawSender::open(&t.ns, "eth0");
    raw.send(&tagged(&arp_request(&at_t, b.ip), 0x8100, 10));
    eventually(Duration::from_secs(5), "the neighbor answers with a tag", || {
        b.ns.ip("neighbor show").contains(&at_t.mac.to_string())
            || ping(&b.ns, t.ip, 1).received > 0
    });
    raw.send(&tagged(&arp_reply(&at_t, &at_b), 0x8100, 10));
    assert!(udp_ask(&b.ns, (t.ip, 9)).is_none());
    let seen = listener.seen();
    let datagram = seen.iter().find(|f| f[12..14] == [0x81, 0] && f.get(27) == Some(&17));
    let datagram = datagram.unwrap_or_else(|| panic!("{seen:x?}"));
    assert_eq!(datagram[14..16], [0, 10]);
    assert!(datagram.ends_with(b"question 0"), "{datagram:x?}");

    // As asked for, and as decided.
    let shown = one(&host.json(["sandbox", "inspect", &n.name]));
    let options = &shown["endpoints"][0]["options"];
    assert_eq!((&options["vlan"], &options["trunk"]), (&"20".into(), &"10".into()));
    let known = rows(&host.json(["fdb", "show", "--network", "app"]));
    assert!(known.iter().any(|e| e["sandbox"] == *a.name && e["vlan"] == 10), "{known:?}");
}

/// Open vSwitch's `ping on vlan, cvlan` and the same by IPv6. Where the kernel has no 802.1Q devices nobody can
/// be given one: what such a device would write and read, raw sockets do. Behind the access port a kernel answers.
#[test]
#[ignore = "needs root"]
fn pings_with_one_tag_and_with_two() {
    let host = Host::start_dual(Uplink::None);
    let on = |name: &str, options: &str| host.sandbox(name, &format!("--network app {options}"));
    let (trunk, access) = (on("trunk", "-o trunk=10"), on("access", "-o vlan=10"));
    let (x, y) = (on("x", ""), on("y", ""));
    let [at_trunk, at_access, at_x, at_y] =
        [&trunk, &access, &x, &y].map(|sandbox| on_the_wire(&host, sandbox));
    let both = |make: fn(&packet::Host, &packet::Host, u16) -> packet::Packet,
                (from, src): (&packet::Host, Ipv6Addr),
                (to, dst): (&packet::Host, Ipv6Addr)| {
        let asked = make(from, to, 77);
        [asked.bytes(), asked.v6().src6(src).dst6(dst).bytes()]
    };
    for address in [trunk.ip.to_string(), trunk.ip6.to_string()] {
        access.ns.ip(&format!("neighbor replace {address} lladdr {} dev eth0", at_trunk.mac));
    }
    // One tag; it is answered with one.
    let asked = both(echo, (&at_trunk, trunk.ip6), (&at_access, access.ip6));
    let answered = RawListener::start(&trunk.ns, "eth0", move |frame| {
        frame.get(6..12) == Some(&at_access.mac.0) && frame.get(12..16) == Some(&[0x81, 0, 0, 10])
    });
    let mut raw = RawSender::open(&trunk.ns, "eth0");
    for frame in &asked {
        raw.send(&tagged(frame, ethertype::VLAN, 10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let answered = answered.seen();
    let is_answer = |frame: &&Vec<u8>| {
        let (four, six) =
            (frame.get(16..18) == Some(&[8, 0]), frame.get(16..18) == Some(&[0x86, 0xdd]));
        four && frame[27] == 1 && frame[38] == 0 || six && frame[24] == 58 && frame[58] == 129
    };
    assert_eq!(answered.iter().filter(is_answer).count(), 2, "{answered:02x?}");
    // Two, from and to endpoints that are in all VLANs.
    for (from, to, make) in [(&at_x, &at_y, echo as fn(&_, &_, _) -> _), (&at_y, &at_x, echo_reply)]
    {
        let of = |host: &packet::Host| if host.mac == at_x.mac { &x } else { &y };
        let frames = both(make, (from, of(from).ip6), (to, of(to).ip6));
        let frames =
            frames.map(|frame| tagged(&tagged(&frame, ethertype::VLAN, 5), ethertype::QINQ, 9));
        let seen = heard(of(from), &frames, from.mac, &[of(to), &access, &trunk]);
        assert_eq!(seen, [frames.to_vec(), vec![], vec![]]);
    }
}

#[test]
#[ignore = "needs root"]
fn vlans_keep_taps_apart() {
    vlans_keep_apart("tap");
}

#[test]
#[ignore = "needs root"]
fn vlans_keep_veths_apart() {
    vlans_keep_apart("veth");
}

#[test]
#[ignore = "needs root"]
fn bad_vlans_are_refused_and_good_ones_survive_the_daemon() {
    let mut host = Host::start_dual(Uplink::None);
    let name = host.name("a");
    for (options, words) in [
        ("vlan=4095", "from 0 to 4094"),
        ("trunk=10,4095", "no list of VLANs"),
        ("trunk=0", "no list of VLANs"),
    ] {
        let args = ["sandbox", "create", &name, "--network", "app", "-o", options];
        host.refused(2, &["option", words], args);
    }
    let both = ["sandbox", "create", &name, "--network", "app", "-o", "vlan=5", "-o", "trunk=5"];
    host.refused(2, &["vlan=5", "trunk"], both);
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app -o vlan=10");
    assert_eq!(answers(BOTH.map(|family| (&a, family.of(&b)))), [0, 0]);
    host.network("other", "--subnet 10.92.2.0/24");
    host.ok(["network", "connect", "-o", "vlan=7", "other", &a.name]);
    host.stop(Signal::SIGKILL);
    host.launch();
    assert_eq!(answers(BOTH.map(|family| (&a, family.of(&b)))), [0, 0]);
    for family in BOTH {
        assert_eq!(ping(&b.ns, family.gateway(), 2).received, 2, "{family}");
    }
    let shown = one(&host.json(["sandbox", "inspect", &a.name]));
    assert_eq!(shown["endpoints"][1]["options"]["vlan"], "7");
    // The trace tells what decides.
    let flags = format!("trace --sandbox {} -- udp {}:1 > {}:2", b.name, b.ip, a.ip);
    let traced = host.ok(flags.split_whitespace());
    assert!(traced.contains("vlan"), "{traced}");
}
