//! Expressions against frames.

use etherparse::{PacketBuilder, VlanId};
use proptest::prelude::*;

use super::*;

const MAC_A: [u8; 6] = [2, 0x42, 10, 0, 0, 2];
const MAC_B: [u8; 6] = [2, 0x42, 10, 0, 0, 3];
const A: [u8; 4] = [10, 0, 0, 2];
const B: [u8; 4] = [10, 0, 0, 3];

fn view(bytes: &[u8]) -> View {
    View::parse(bytes, u32::try_from(bytes.len()).unwrap())
}

fn tcp(src: u16, dst: u16) -> View {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(MAC_A, MAC_B).ipv4(A, B, 64).tcp(src, dst, 1, 1);
    builder.write(&mut frame, &[0; 10]).unwrap();
    view(&frame)
}

fn udp(src: u16, dst: u16) -> View {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(MAC_A, MAC_B).ipv4(A, B, 64).udp(src, dst);
    builder.write(&mut frame, &[0; 10]).unwrap();
    view(&frame)
}

fn udp6() -> View {
    let mut frame = Vec::new();
    let (mut src, mut dst) = ([0; 16], [0; 16]);
    (src[0], src[15], dst[0], dst[15]) = (0xfd, 1, 0xfd, 2);
    PacketBuilder::ethernet2(MAC_A, MAC_B)
        .ipv6(src, dst, 64)
        .udp(5, 53)
        .write(&mut frame, &[])
        .unwrap();
    view(&frame)
}

fn ping(vlan: Option<u16>) -> View {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(MAC_A, MAC_B);
    match vlan {
        Some(id) => builder.single_vlan(VlanId::try_new(id).unwrap()).ipv4(A, B, 64),
        None => builder.ipv4(A, B, 64),
    }
    .icmpv4_echo_request(1, 1)
    .write(&mut frame, &[])
    .unwrap();
    view(&frame)
}

fn arp() -> View {
    let mut frame = Vec::new();
    let packet = etherparse::ArpPacket::new(
        etherparse::ArpHardwareId::ETHERNET,
        etherparse::EtherType::IPV4,
        etherparse::ArpOperation::REQUEST,
        &MAC_A,
        &A,
        &[0; 6],
        &B,
    )
    .unwrap();
    PacketBuilder::ethernet2(MAC_A, [255; 6]).arp(packet).write(&mut frame).unwrap();
    view(&frame)
}

#[test]
fn expressions_choose_frames() {
    let frames = [
        ("http", tcp(4000, 80)),
        ("dns", udp(4000, 53)),
        ("dns6", udp6()),
        ("ping", ping(None)),
        ("vping", ping(Some(12))),
        ("arp", arp()),
    ];
    let all = "http dns dns6 ping vping arp";
    let table = [
        ("host 10.0.0.2", "http dns ping vping arp"),
        ("10.0.0.2", "http dns ping vping arp"),
        ("src host 10.0.0.2", "http dns ping vping arp"),
        ("src 10.0.0.3", ""),
        ("dst host 10.0.0.3", "http dns ping vping arp"),
        ("host fd00::1", "dns6"),
        ("dst fd00::2", "dns6"),
        ("net 10.0.0.0/8", "http dns ping vping arp"),
        ("net 10.0.0.77/24", "http dns ping vping arp"),
        ("src net 11.0.0.0/8", ""),
        ("fd00::/16", "dns6"),
        ("port 53", "dns dns6"),
        ("src port 4000", "http dns"),
        ("dst port 80", "http"),
        ("portrange 50-60", "dns dns6"),
        ("tcp", "http"),
        ("udp", "dns dns6"),
        ("icmp", "ping vping"),
        ("arp", "arp"),
        ("ip", "http dns ping vping"),
        ("ip6", "dns6"),
        ("vlan", "vping"),
        ("vlan 12", "vping"),
        ("vlan 13", ""),
        ("vlan and icmp", "vping"),
        ("udp port 53", "dns dns6"),
        ("tcp port 53", ""),
        ("tcp dst port 80 or 53", "http"),
        ("dst port 80 or 53", "http dns dns6"),
        ("host 10.0.0.9 or 10.0.0.2", "http dns ping vping arp"),
        ("ip host 10.0.0.2", "http dns ping vping"),
        ("arp host 10.0.0.3", "arp"),
        ("ether host 02:42:0a:00:00:02", all),
        ("ether dst 02:42:0a:00:00:02", ""),
        ("ether src host 02:42:0a:00:00:02", all),
        ("ether broadcast", "arp"),
        ("broadcast", "arp"),
        ("multicast", "arp"),
        ("not arp", "http dns dns6 ping vping"),
        ("! ( arp || icmp )", "http dns dns6"),
        ("!arp&&!icmp", "http dns dns6"),
        ("not not arp", "arp"),
        ("tcp and port 80 and host 10.0.0.3", "http"),
        // Equal precedence from the left: (tcp or udp) and port 53.
        ("tcp or udp and port 53", "dns dns6"),
        ("tcp or (udp and port 53)", "http dns dns6"),
        ("(tcp)", "http"),
        ("less 42", "ping arp"),
        ("greater 43", "http dns dns6 vping"),
        ("sctp or icmp6", ""),
    ];
    for (text, expected) in table {
        let filter: Filter = text.parse().unwrap();
        let chosen: Vec<_> =
            frames.iter().filter(|(_, view)| filter.matches(view)).map(|(name, _)| *name).collect();
        assert_eq!(chosen.join(" "), expected, "{text}");
        let again: Filter = filter.to_string().parse().unwrap();
        for (name, view) in &frames {
            assert_eq!(again.matches(view), filter.matches(view), "{text} as {filter}: {name}");
        }
    }
}

#[test]
fn faults_are_named() {
    let deep = "(".repeat(100);
    let bangs = "!".repeat(100);
    let long = "arp or ".repeat(1000);
    let table = [
        ("", "ends where a condition is expected"),
        ("tcp and", "ends where a condition is expected"),
        ("and tcp", "\"and\""),
        ("host", "a value is missing after \"host\""),
        ("host and tcp", "a value is missing after \"host\""),
        ("host web", "\"web\" is not an IP address"),
        ("host 10.0.0.1/8", "is not an IP address"),
        ("net 10.0.0", "is not a prefix"),
        ("port http", "\"http\" is not a port number"),
        ("port 65536", "is not a port number"),
        ("port -1", "is not a port number"),
        ("portrange 80", "is not a range of ports"),
        ("ether host 10.0.0.1", "is not a MAC address"),
        ("ether port 80", "'ether' takes"),
        ("vlan 4096", "not 0 to 4095"),
        ("hots 10.0.0.1", "\"hots\" is not known; known are host"),
        ("tcp udp", "\"udp\" follows where 'and' or 'or' is expected"),
        ("(tcp", "'(' without ')'"),
        ("tcp)", "')' without '('"),
        ("(tcp udp)", "where ')' is expected"),
        ("tcp & udp", "\"&\""),
        ("less than", "less needs a number"),
        (&deep, "nested deeper"),
        (&bangs, "nested deeper"),
        (&long, "longer than 4096 bytes"),
    ];
    for (text, fault) in table {
        let error = text.parse::<Filter>().unwrap_err();
        assert!(error.message.contains(fault), "{text:?}: {}", error.message);
        assert!(error.message.starts_with("filter"), "{}", error.message);
        assert_eq!(error.exit_code(), 2);
    }
}

fn any_test() -> impl Strategy<Value = Test> {
    let side = prop_oneof![Just(Side::Either), Just(Side::Source), Just(Side::Destination)];
    (side, any::<u32>(), 0..=32u8, any::<u16>(), any::<u16>(), any::<[u8; 6]>(), 0..8u8).prop_map(
        |(side, ip, len, a, b, mac, which)| match which {
            0 => Test::EtherHost(side, Mac(mac)),
            1 => Test::Net(side, IpNet::new(IpAddr::from(ip.to_be_bytes()), len).unwrap().trunc()),
            2 => Test::Ports(side, a.min(b), a.max(b)),
            3 => Test::Vlan(Some(a % 4096)),
            4 => Test::Vlan(None),
            5 => Test::Protocol(Protocol::Tcp),
            6 => Test::Less(ip),
            _ => Test::EtherBroadcast,
        },
    )
}

fn any_expr() -> impl Strategy<Value = Expr> {
    any_test().prop_map(Expr::Test).prop_recursive(5, 32, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|a| Expr::Not(Box::new(a))),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Expr::And(Box::new(a), Box::new(b))),
            (inner.clone(), inner).prop_map(|(a, b)| Expr::Or(Box::new(a), Box::new(b))),
        ]
    })
}

proptest! {
    #[test]
    fn text_and_back(root in any_expr()) {
        let filter = Filter { root };
        prop_assert_eq!(filter.to_string().parse::<Filter>().unwrap(), filter);
    }

    #[test]
    fn nonsense_is_told_in_one_line(text in "[a-z0-9 ().:/!&|-]{0,60}") {
        if let Err(error) = text.parse::<Filter>() {
            prop_assert!(!error.message.contains('\n'));
        }
    }
}
