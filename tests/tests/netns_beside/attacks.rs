//! The attacks: who sends what, how fast, and what counts it.

use std::net::Ipv4Addr;
use std::sync::Arc;

use dataplane::packet::types::tcp_flags::SYN;
use dataplane::packet::types::{Mac, ethertype};
use tests::fragments::{in_pieces, piece};
pub(crate) use tests::host::flood::Make;
use tests::packet::{Host, Wire, arp, ethernet, icmp6, lies, nd, tcp, udp};
use tests::sums;

/// Frames a second, of most attacks.
const FAST: u32 = 100_000;
/// Frames of 9,000 bytes a second, each of which may stand for a hundred.
const LONG: u32 = 10_000;
/// IEEE 802 local experimental: nobody else sends it.
const OURS: u16 = 0x88b5;
/// Ethernet and IPv4 header.
const L4: usize = 34;

/// Where an attack is sent from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// A sandbox as they all are.
    Bad,
    /// One in a network without source guard.
    Loose,
    /// Both of them, half each.
    Both,
    /// One with an access port, in a VLAN.
    Access,
}

/// What tells of an attack.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Counted {
    /// Its frames, by these drop reasons: at least so many of a hundred that the switch received; 0: some.
    Drops(&'static [&'static str], u64),
    /// Connections that had to make room (`conntrack stats`), while the sender is refused more.
    Evicted,
    /// Frames to the host's own stack (`stats`), which answers.
    ToHost,
}

/// One of them.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) by: By,
    /// Frames a second; none: as many as it can.
    pub(crate) pace: Option<u32>,
    pub(crate) counted: Counted,
    pub(crate) make: Make,
}

/// Who is who, in the eyes of one sender.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    pub(crate) own: Host,
    /// The gateway of its network.
    pub(crate) gateway: Host,
    /// A neighbor in it, the one with the load.
    pub(crate) neighbor: Host,
    /// A machine beyond the gateway.
    pub(crate) beyond: Host,
}

impl View {
    fn outside(&self) -> Host {
        Host { mac: self.gateway.mac, ..self.beyond }
    }
}

fn attack(
    name: &'static str,
    by: By,
    counted: Counted,
    make: impl Fn(u64) -> Wire + Send + Sync + 'static,
) -> Attack {
    Attack { name, by, pace: Some(FAST), counted, make: Arc::new(make) }
}

/// These frames in turn.
fn turns(frames: Vec<Vec<u8>>) -> impl Fn(u64) -> Wire {
    move |n| frames[n as usize % frames.len()].clone().into()
}

/// All of them, as `bad`, `loose` and `access` send them.
pub(crate) fn all(bad: &View, loose: &View, access: &View) -> Vec<Attack> {
    use Counted::{Drops, Evicted, ToHost};
    let mut lying = lies(&bad.own, &bad.neighbor);
    lying.extend(lies(&bad.own, &bad.outside()));
    let told = &["vnet_invalid", "l4_malformed"];
    let lying = attack("lying virtio-net headers", By::Bad, Drops(told, 0), move |n| {
        lying[n as usize % lying.len()].clone()
    });
    let storm = ethernet(bad.own.mac, Mac::BROADCAST, OURS, &[7; 46]);
    let storm = attack("broadcast storm", By::Bad, Drops(&["storm_limited"], 30), move |_| {
        storm.clone().into()
    });
    vec![
        Attack { pace: Some(LONG), ..lying },
        attack("macof", By::Bad, Drops(&["spoofed_mac"], 99), macof()),
        attack("macof, without source guard", By::Loose, Drops(&["storm_limited"], 30), macof()),
        attack("ARP spoofing", By::Bad, Drops(&["spoofed_arp"], 99), turns(arps(bad))),
        attack(
            "ND spoofing",
            By::Bad,
            Drops(&["spoofed_nd", "spoofed_ipv6"], 99),
            turns(neighbor_claims(bad)),
        ),
        attack("rogue RA", By::Bad, Drops(&["ra_untrusted"], 99), turns(router_claims(bad))),
        attack("rogue DHCP", By::Bad, Drops(&["dhcp_untrusted"], 99), turns(offers(bad))),
        attack(
            "VLAN hop",
            By::Access,
            Drops(&["vlan_denied", "vlan_invalid"], 99),
            turns(hops(access)),
        ),
        attack("SYN flood", By::Bad, Drops(&["endpoint_limit"], 1), syns(bad, 20_000)),
        attack(
            "orphan fragments",
            By::Bad,
            Drops(&["fragment_limit", "fragment_untracked"], 1),
            orphans(bad),
        ),
        attack(
            "overlapping fragments",
            By::Bad,
            Drops(&["fragment_overlap", "fragment_duplicate"], 1),
            overlapping(bad),
        ),
        Attack { pace: None, ..storm },
        attack("conntrack fill", By::Both, Evicted, datagrams(bad, loose)),
        attack("port scan of the gateway", By::Bad, ToHost, scan(bad)),
        attack(
            "frames cut short",
            By::Bad,
            Drops(&["arp_malformed", "ipv4_malformed", "spoofed_arp", "spoofed_ipv4"], 99),
            turns(cut_short(bad)),
        ),
    ]
}

/// From and to others' MACs without end.
fn macof() -> impl Fn(u64) -> Wire {
    |n| {
        let (from, to) = (Mac::from_u64(0x0200_1000_0000 + n), 0x0200_2000_0000 + n);
        ethernet(from, Mac::from_u64(to), OURS, &[2; 46]).into()
    }
}

/// The gateway's and a neighbor's address are at its MAC.
fn arps(bad: &View) -> Vec<Vec<u8>> {
    let (own, victim) = (bad.own.mac, bad.neighbor);
    let claim = |op, ip| {
        let to_all = arp(op, (own, Mac::BROADCAST), (own, ip), (Mac::BROADCAST, ip));
        [to_all, arp(op, (own, victim.mac), (own, ip), (victim.mac, victim.ip))]
    };
    let addresses = [bad.gateway.ip, victim.ip];
    addresses
        .into_iter()
        .flat_map(|ip| [1, 2].into_iter().flat_map(move |op| claim(op, ip)))
        .collect()
}

/// The network's IPv6 prefix with `host` as its end.
fn in_network6(host: u16) -> std::net::Ipv6Addr {
    std::net::Ipv6Addr::new(0xfd00, 0x91, 0, 0, 0, 0, 0, host)
}

fn neighbor_claims(bad: &View) -> Vec<Vec<u8>> {
    let claims = [1, 2, 0x99].map(in_network6);
    let one = |ip| [nd::announcement(&bad.own, ip), nd::router_s_announcement(&bad.own, ip)];
    claims.into_iter().flat_map(one).map(|packet| packet.bytes()).collect()
}

/// Router Advertisements of no lifetime.
fn router_claims(bad: &View) -> Vec<Vec<u8>> {
    let message = icmp6(&bad.own, &bad.own, 134, 0, [64, 0, 0, 0]).payload(&[0; 8]);
    let message = message.src6(bad.own.link_local()).ttl(255);
    let all = Mac([0x33, 0x33, 0, 0, 0, 1]);
    let to_all = message.dst6("ff02::1".parse().unwrap());
    [all, bad.neighbor.mac].map(|to| to_all.clone().macs(bad.own.mac, to).bytes()).into()
}

fn offers(bad: &View) -> Vec<Vec<u8>> {
    let all = Host { mac: Mac::BROADCAST, ip: Ipv4Addr::BROADCAST, ..bad.own };
    [all, bad.neighbor].map(|to| udp(&bad.own, 67, &to, 68).payload(&[2; 300]).bytes()).into()
}

/// Tags of all kinds, its own before others' among them.
fn hops(access: &View) -> Vec<Vec<u8>> {
    let frame = ethernet(access.own.mac, Mac::BROADCAST, OURS, &[3; 46]);
    let tagged = |frame: &[u8], kind: u16, id: u16| {
        [&frame[..12], &kind.to_be_bytes(), &id.to_be_bytes(), &frame[12..]].concat()
    };
    let ids = (1..=64).filter(|id| *id != super::ACCESS_VLAN);
    ids.flat_map(|id| {
        let inner = tagged(&frame, ethertype::VLAN, id);
        let outer = tagged(&inner, ethertype::VLAN, super::ACCESS_VLAN);
        [tagged(&inner, ethertype::QINQ, id), inner, outer]
    })
    .collect()
}

/// SYNs, each of another connection, to a machine that drops them.
fn syns(bad: &View, first_port: u16) -> impl Fn(u64) -> Wire + use<> {
    let (own, to) = (bad.own, bad.outside());
    let frame = tcp(&own, 1024, &to, first_port, SYN).bytes();
    move |n| {
        let mut frame = frame.clone();
        let ports = [1024 | (n as u16), first_port.wrapping_add((n >> 16) as u16 % 100)];
        with_ports(&mut frame, ports);
        let tcp = &mut frame[L4..];
        tcp[16..18].fill(0);
        let sum = sums::sum(tcp);
        let pseudo = sums::pseudo_header(&own.ip.octets(), &to.ip.octets(), 6, tcp.len());
        let both = sums::sum(&[sum.to_be_bytes(), pseudo.to_be_bytes()].concat());
        tcp[16..18].copy_from_slice(&(!both).to_be_bytes());
        frame.into()
    }
}

fn with_ports(frame: &mut [u8], [src, dst]: [u16; 2]) {
    frame[L4..L4 + 2].copy_from_slice(&src.to_be_bytes());
    frame[L4 + 2..L4 + 4].copy_from_slice(&dst.to_be_bytes());
}

/// Datagrams, each of another connection, which nobody answers: from one sender and the other by turns.
fn datagrams(bad: &View, loose: &View) -> impl Fn(u64) -> Wire + use<> {
    let frames = [bad, loose].map(|view| udp(&view.own, 1024, &view.outside(), 9).bytes());
    move |n| {
        let mut frame = frames[n as usize % 2].clone();
        let n = n / 2;
        with_ports(&mut frame, [1024 | (n as u16), 20_000 + (n >> 16) as u16 % 100]);
        // None (RFC 768).
        frame[L4 + 6..L4 + 8].fill(0);
        frame.into()
    }
}

/// SYNs to all ports of the gateway.
fn scan(bad: &View) -> impl Fn(u64) -> Wire + use<> {
    let view = View { beyond: bad.gateway, ..*bad };
    let make: Vec<_> = (0..656).map(|n| syns(&view, n * 100)).collect();
    // Each of them has a hundred ports, by the upper bits of its number.
    move |n| make[n as usize / 100 % make.len()](n % 100 * 65_536 + n % 0xfc00)
}

/// Last parts of datagrams of which nothing else ever comes.
fn orphans(bad: &View) -> impl Fn(u64) -> Wire + use<> {
    let whole = udp(&bad.own, 5000, &bad.outside(), 53).may_fragment().long(600);
    let orphan = piece(&whole.bytes(), 256, 512);
    move |n| numbered(&orphan, n)
}

/// The first part, the one behind it, one over both, and the first again.
fn overlapping(bad: &View) -> impl Fn(u64) -> Wire + use<> {
    let whole = udp(&bad.own, 5000, &bad.outside(), 53).may_fragment().long(600);
    let parts = in_pieces(&whole, 256);
    let over = piece(&whole.bytes(), 128, 384);
    let parts = [parts[0].clone(), parts[1].clone(), over, parts[0].clone()];
    move |n| numbered(&parts[n as usize % 4], n / 4)
}

/// A fragment with another identification.
fn numbered(frame: &[u8], n: u64) -> Wire {
    let mut frame = frame.to_vec();
    frame[18..20].copy_from_slice(&(n as u16).to_be_bytes());
    frame[24..26].fill(0);
    let sum = !sums::sum(&frame[14..L4]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.into()
}

/// ARP and IPv4 of which not even the header is there.
fn cut_short(bad: &View) -> Vec<Vec<u8>> {
    let kinds = [(ethertype::ARP, Mac::BROADCAST), (ethertype::IPV4, bad.gateway.mac)];
    let cut =
        |(kind, to)| (1..20).map(move |len| ethernet(bad.own.mac, to, kind, &vec![0x45; len]));
    kinds.into_iter().flat_map(cut).collect()
}
