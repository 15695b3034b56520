//! From frame to stream and back, and into `PcapReader`.

use dataplane::io::pcap::PcapReader;
use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::stream::StreamReader;
use super::summary::{describe, time_of_day};
use super::view::NetView;
use super::*;

const MAC_A: [u8; 6] = [2, 0x42, 10, 0, 0, 2];
const MAC_B: [u8; 6] = [2, 0x42, 10, 0, 0, 3];

fn udp(dst_port: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MAC_A, MAC_B)
        .ipv4([10, 0, 0, 2], [10, 0, 0, 3], 64)
        .udp(4000, dst_port);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"hello").unwrap();
    frame
}

fn captured(port: u16, egress: bool, bytes: Vec<u8>) -> CapturedFrame {
    let original_len = u32::try_from(bytes.len()).unwrap();
    CapturedFrame {
        port: PortId(port),
        egress,
        unix_nanos: 1_700_000_000_123_456_789,
        original_len,
        bytes,
    }
}

fn recorder(filter: Option<&str>, count: Option<u64>) -> Recorder {
    let ports = [(PortId(7), "web/eth0".to_owned()), (PortId(9), "eth1".to_owned())];
    Recorder::new(&ports, filter.map(|text| text.parse().unwrap()), count).unwrap()
}

#[test]
fn frames_come_back_with_port_and_direction() {
    let mut recorder = recorder(Some("port 53"), Some(2));
    let mut reader = StreamReader::default();
    reader.push(&recorder.take());
    assert_eq!(reader.next_frame().unwrap(), None);
    assert!(!recorder.record(&captured(7, false, udp(80))));
    assert!(!recorder.record(&captured(8, false, udp(53))), "a port that was not asked for");
    assert!(recorder.record(&captured(7, false, udp(53))));
    assert!(!recorder.finished());
    assert!(recorder.record(&captured(9, true, udp(53))));
    assert!(recorder.finished());
    assert!(!recorder.record(&captured(7, false, udp(53))));
    for byte in recorder.take() {
        reader.push(&[byte]);
    }
    let first = reader.next_frame().unwrap().unwrap();
    assert_eq!((first.port.as_str(), first.direction), ("web/eth0", Direction::Inbound));
    assert_eq!((first.unix_nanos, first.bytes), (1_700_000_000_123_456_789, udp(53)));
    let second = reader.next_frame().unwrap().unwrap();
    assert_eq!((second.port.as_str(), second.direction), ("eth1", Direction::Outbound));
    assert_eq!(reader.next_frame().unwrap(), None);
}

#[test]
fn the_stream_is_a_capture_file() {
    let mut recorder = recorder(None, None);
    recorder.record(&captured(9, false, udp(1)));
    recorder.record(&captured(7, true, udp(2)));
    let mut reader = PcapReader::new(recorder.take()).unwrap();
    let first = reader.next_frame().unwrap().unwrap();
    assert_eq!((first.interface, first.unix_nanos), (1, 1_700_000_000_123_456_789));
    assert_eq!(first.bytes, udp(1));
    assert_eq!(reader.next_frame().unwrap().unwrap().interface, 0);
    assert!(reader.next_frame().unwrap().is_none());
}

#[test]
fn damaged_streams_are_told() {
    for bytes in
        [[0u8; 12].as_slice(), &[6, 0, 0, 0, 13, 0, 0, 0], &[6, 0, 0, 0, 255, 255, 255, 255]]
    {
        let mut reader = StreamReader::default();
        reader.push(bytes);
        assert!(reader.next_frame().is_err(), "{bytes:?}");
    }
    // An enhanced packet that claims more bytes than its block has.
    let mut block = [6, 32, 0, 0, 0, 1000, 1000, 32u32].map(u32::to_le_bytes).concat();
    block[4..8].copy_from_slice(&32u32.to_le_bytes());
    let mut reader = StreamReader::default();
    reader.push(&block);
    assert!(reader.next_frame().is_err());
}

#[test]
fn summaries() {
    assert_eq!(time_of_day(1_700_000_000_123_456_789), "22:13:20.123456");
    let line = |bytes: &[u8]| describe(&View::parse(bytes, u32::try_from(bytes.len()).unwrap()));
    assert_eq!(line(&udp(53)), "IP 10.0.0.2.4000 > 10.0.0.3.53: UDP, length 5");
    assert_eq!(line(&[0; 5]), "cut short, length 5");

    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC_A, MAC_B)
        .ipv4([10, 0, 0, 2], [10, 0, 0, 3], 64)
        .tcp(1, 2, 7, 64_000)
        .syn()
        .ack(9)
        .write(&mut frame, &[])
        .unwrap();
    assert_eq!(
        line(&frame),
        "IP 10.0.0.2.1 > 10.0.0.3.2: Flags [S.], seq 7, ack 9, win 64000, length 0"
    );

    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC_A, MAC_B)
        .single_vlan(etherparse::VlanId::try_new(12).unwrap())
        .ipv4([10, 0, 0, 2], [10, 0, 0, 3], 64)
        .icmpv4_echo_request(3, 4)
        .write(&mut frame, &[0; 8])
        .unwrap();
    assert_eq!(
        line(&frame),
        "vlan 12, IP 10.0.0.2 > 10.0.0.3: ICMP echo request, id 3, seq 4, length 16"
    );

    let mut frame = Vec::new();
    let arp = etherparse::ArpPacket::new(
        etherparse::ArpHardwareId::ETHERNET,
        etherparse::EtherType::IPV4,
        etherparse::ArpOperation::REQUEST,
        &MAC_A,
        &[10, 0, 0, 2],
        &[0; 6],
        &[10, 0, 0, 1],
    )
    .unwrap();
    PacketBuilder::ethernet2(MAC_A, [255; 6]).arp(arp).write(&mut frame).unwrap();
    assert_eq!(line(&frame), "ARP, Request who-has 10.0.0.1 tell 10.0.0.2, length 42");
}

/// An IPv6 packet whose payload begins with these bytes.
fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&MAC_B[..], &MAC_A[..], &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend([next, 64]);
    frame.extend([0xfd; 32]);
    frame.extend(payload);
    frame
}

/// Extension headers that say more follows than does: what is not there is not read.
#[test]
fn extension_headers_that_are_cut_short_have_no_fragment() {
    const HOP_BY_HOP: u8 = 0;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    let later = |bytes: &[u8]| {
        let view = View::parse(bytes, u32::try_from(bytes.len()).unwrap());
        match view.net {
            NetView::Ip { later_fragment, .. } => later_fragment,
            other => panic!("{other:?}"),
        }
    };
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let fragment = |offset: u16| {
        let [high, low] = (offset << 3).to_be_bytes();
        [17, 0, high, low, 0, 0, 0, 1]
    };
    assert!(later(&ipv6(FRAGMENT, &fragment(3))));
    assert!(!later(&ipv6(FRAGMENT, &fragment(0))));
    assert!(later(&ipv6(
        HOP_BY_HOP,
        &[options(DESTINATION), options(FRAGMENT), fragment(1)].concat()
    )));
    for next in [HOP_BY_HOP, DESTINATION, FRAGMENT, 43, 51] {
        for length in 0..8 {
            assert!(!later(&ipv6(next, &options(17)[..length])), "{next}, {length} bytes");
            let chain = [&options(next)[..], &[next, 255, 9, 9, 9, 9, 9, 9][..length]].concat();
            assert!(!later(&ipv6(HOP_BY_HOP, &chain)), "{next} behind another, {length} bytes");
        }
        // Longer than the packet.
        assert!(!later(&ipv6(HOP_BY_HOP, &[next, 255, 9, 9, 9, 9, 9, 9])), "{next}");
    }
}

proptest! {
    #[test]
    fn any_bytes_can_be_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let view = View::parse(&bytes, 200);
        prop_assert!(!describe(&view).is_empty());
    }

    #[test]
    fn any_stream_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut reader = StreamReader::default();
        reader.push(&bytes);
        while let Ok(Some(_)) = reader.next_frame() {}
    }
}
