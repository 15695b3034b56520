//! The attacks: who sends what, how fast, and what counts it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use dataplane::packet::types::{Mac, ethertype};
pub(crate) use tests::host::flood::Make;
use tests::host::{BOTH, Family};
use tests::packet::{Host, Wire, arp, ethernet, icmp6, lies, nd, udp};

use crate::floods::{datagrams, orphans, overlapping, scan, syns};

/// Frames a second, of most attacks.
const FAST: u32 = 100_000;
/// Frames of 9,000 bytes a second, each of which may stand for a hundred.
const LONG: u32 = 10_000;
/// Of a hundred SYNs to the gateway, those that the host answers at least: its stack takes no more than so many at a time
/// (`netdev_max_backlog`), on processors that attackers share.
const SCANNED: u64 = 10;
/// IEEE 802 local experimental: nobody else sends it.
const OURS: u16 = 0x88b5;

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
    /// What the host's own stack refuses (`stats`), at least so many of a hundred; nine tenths get to it.
    Refused(u64),
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
    /// Its own address of IPv6, the gateway's, and that of the machine beyond.
    pub(crate) own6: IpAddr,
    pub(crate) gateway6: IpAddr,
    pub(crate) beyond6: IpAddr,
}

impl View {
    pub(crate) fn outside(&self) -> Host {
        Host { mac: self.gateway.mac, ..self.beyond }
    }

    /// Its own address and that of the machine beyond the gateway.
    pub(crate) fn ends(&self, family: Family) -> (IpAddr, IpAddr) {
        family.pick([(self.own.ip.into(), self.beyond.ip.into()), (self.own6, self.beyond6)])
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
    use Counted::{Drops, Evicted, Refused};
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
    let mut all = vec![
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
        Attack { pace: None, ..storm },
        attack(
            "frames cut short",
            By::Bad,
            Drops(&["arp_malformed", "ipv4_malformed", "spoofed_arp", "spoofed_ipv4"], 99),
            turns(cut_short(bad)),
        ),
    ];
    for family in BOTH {
        let name = |names: [&'static str; 2]| family.pick(names);
        all.extend([
            attack(
                name(["SYN flood", "SYN flood, IPv6"]),
                By::Bad,
                Drops(&["endpoint_limit"], 1),
                syns(bad, family, 20_000),
            ),
            attack(
                name(["orphan fragments", "orphan fragments, IPv6"]),
                By::Bad,
                Drops(&["fragment_limit", "fragment_untracked"], 1),
                orphans(bad, family),
            ),
            attack(
                name(["overlapping fragments", "overlapping fragments, IPv6"]),
                By::Bad,
                Drops(&["fragment_overlap", "fragment_duplicate"], 1),
                overlapping(bad, family),
            ),
            attack(
                name(["conntrack fill", "conntrack fill, IPv6"]),
                By::Both,
                Evicted,
                datagrams(bad, loose, family),
            ),
            attack(
                name(["port scan of the gateway", "port scan of the gateway, IPv6"]),
                By::Bad,
                Refused(SCANNED),
                scan(bad, family),
            ),
        ]);
    }
    all
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

/// ARP and IPv4 of which not even the header is there.
fn cut_short(bad: &View) -> Vec<Vec<u8>> {
    let kinds = [(ethertype::ARP, Mac::BROADCAST), (ethertype::IPV4, bad.gateway.mac)];
    let cut =
        |(kind, to)| (1..20).map(move |len| ethernet(bad.own.mac, to, kind, &vec![0x45; len]));
    kinds.into_iter().flat_map(cut).collect()
}
