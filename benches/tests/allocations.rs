//! The rule that frames never allocate, tested: a counting allocator watches the core while frames
//! of every kind of load pass through it.
#![allow(clippy::unwrap_used, reason = "test code: a failure here is a failed test")]

use std::net::{Ipv4Addr, Ipv6Addr};

use benches::frames::{
    CONTAINER, CONTAINER_MAC, CONTAINER6, GATEWAY_MAC, Load, MacPairs, NatFlows, NewFlows,
    OUTSIDE6, ROUTER_MAC, SERVER_PORT, SERVER6, UPLINK_MAC, Way, flow, mac,
};
use benches::segments::{Bursts, Step, Streams, TcpFlows};
use benches::switch::{INSIDE, OTHER, Switch, UPLINK};
use dataplane::frame::Frame;
use dataplane::io::vnet_hdr::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, VnetHdr};
use dataplane::packet::types::{Mac, PortId};
use etherparse::{IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, PacketBuilder};

/// Sends some batches, so that every queue has the size it needs, then counts what the next ones
/// allocate. Frames become `times` as many.
fn assert_allocates_nothing_for(
    switch: &mut Switch,
    load: &mut impl Load,
    batch: usize,
    times: u64,
) {
    for round in 0..32 {
        let mut frames = switch.prepare(load, batch);
        let expected = frames.len() as u64 * times;
        let mut sent = 0;
        let counted = allocation_counter::measure(|| sent = switch.process(&mut frames));
        assert_eq!(sent, expected, "every frame went out: {:?}", switch.stats());
        if round >= 16 {
            assert_eq!(counted.count_total, 0, "{counted:?} for {batch} frames");
        }
    }
}

fn assert_allocates_nothing(switch: &mut Switch, load: &mut impl Load, batch: usize) {
    switch.run(load, batch, 1024);
    assert_allocates_nothing_for(switch, load, batch, 1);
}

/// Datagrams of IPv6: `ports` gives the container's port of each.
struct Datagrams6<P> {
    way: Way,
    ports: P,
}

impl<P: FnMut() -> u16> Load for Datagrams6<P> {
    fn fill(&mut self, frame: &mut Frame) {
        let port = (self.ports)();
        let mut bytes = Vec::new();
        let (macs, from, to, ports) = match self.way {
            Way::Out => {
                let macs = (CONTAINER_MAC, GATEWAY_MAC);
                (macs, CONTAINER6, SERVER6, (port, SERVER_PORT))
            }
            Way::In => ((ROUTER_MAC, UPLINK_MAC), SERVER6, OUTSIDE6, (SERVER_PORT, port)),
        };
        PacketBuilder::ethernet2(macs.0.0, macs.1.0)
            .ipv6(from.octets(), to.octets(), 64)
            .udp(ports.0, ports.1)
            .write(&mut bytes, b"datagram")
            .unwrap();
        frame.copy_from(&bytes);
        frame.ingress = if self.way == Way::Out { INSIDE } else { UPLINK };
    }
}

/// Segments of one TCP stream each way of [`MacPairs`], one after the other, of either family: as many
/// at a time in one frame as `at_once` says.
struct Stream {
    is_ipv6: bool,
    at_once: u16,
    sequence: u32,
    macs: (Mac, Mac),
    ingress: PortId,
}

/// Payload of a segment; 1,500 bytes with the headers of IPv6.
const SEGMENT: u16 = 1440;

impl Stream {
    fn new(is_ipv6: bool, at_once: u16) -> Self {
        Self { is_ipv6, at_once, sequence: 1, macs: (mac(0, 0), mac(1, 0)), ingress: INSIDE }
    }
}

impl Load for Stream {
    fn fill(&mut self, frame: &mut Frame) {
        let payload = vec![0x5a; usize::from(SEGMENT * self.at_once)];
        let link = PacketBuilder::ethernet2(self.macs.0.0, self.macs.1.0);
        let to = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
        let ip = if self.is_ipv6 {
            link.ipv6(CONTAINER6.octets(), to.octets(), 64)
        } else {
            link.ipv4(CONTAINER.octets(), [10, 0, 0, 3], 64)
        };
        let mut bytes = Vec::new();
        ip.tcp(40_000, SERVER_PORT, self.sequence, 1000)
            .ack(1)
            .write(&mut bytes, &payload)
            .unwrap();
        self.sequence = self.sequence.wrapping_add(u32::from(SEGMENT * self.at_once));
        frame.copy_from(&bytes);
        frame.ingress = self.ingress;
        if self.at_once > 1 {
            let transport = if self.is_ipv6 { 14 + 40 } else { 14 + 20 };
            frame.vnet = VnetHdr {
                flags: F_NEEDS_CSUM,
                gso_type: if self.is_ipv6 { GSO_TCPV6 } else { GSO_TCPV4 },
                hdr_len: transport + 20,
                gso_size: SEGMENT,
                csum_start: transport,
                csum_offset: 16,
            };
        }
    }
}

/// Datagrams of the container too long for the link outside, each with another identification.
struct Long {
    connections: u16,
    number: u16,
}

impl Load for Long {
    fn fill(&mut self, frame: &mut Frame) {
        self.number = self.number.wrapping_add(1);
        let (server, port) = flow((self.number % self.connections).into());
        let ip = Ipv4Header {
            identification: self.number,
            dont_fragment: false,
            time_to_live: 64,
            protocol: IpNumber::UDP,
            source: CONTAINER.octets(),
            destination: server.octets(),
            ..Ipv4Header::default()
        };
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(CONTAINER_MAC.0, GATEWAY_MAC.0)
            .ip(IpHeaders::Ipv4(ip, Ipv4Extensions::default()))
            .udp(port, SERVER_PORT)
            .write(&mut bytes, &[0x5a; 1450])
            .unwrap();
        frame.copy_from(&bytes);
        frame.ingress = INSIDE;
    }
}

#[test]
fn the_counter_counts() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![1u8; 100])));
    assert_eq!((counted.count_total, counted.bytes_total), (1, 100));
}

#[test]
fn switching() {
    let mut switch = Switch::bridge(100).unwrap();
    for batch in [1, 64, 256] {
        for len in [64, 1500] {
            assert_allocates_nothing(&mut switch, &mut MacPairs::new(len, 100), batch);
        }
    }
}

/// What is said of a group by turns: a member renews its report, and somebody sends to it.
struct Multicast(bool);

/// Messages of IGMPv2: who is in any group, with a second to answer; 239.1.2.3 is joined.
const QUESTION: [u8; 8] = [0x11, 10, 0xee, 0xf5, 0, 0, 0, 0];
const JOIN: [u8; 8] = [0x16, 0, 0xf8, 0xfa, 239, 1, 2, 3];

/// A packet for 239.1.2.3, with the sum of its header.
fn for_the_group(port: PortId, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let group = [239, 1, 2, 3];
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(mac(3, port.0.into()).0, [1, 0, 0x5e, 1, 2, 3])
        .ipv4([10, 0, 0, 9], group, 1)
        .write(&mut bytes, protocol.into(), payload)
        .unwrap();
    bytes
}

impl Load for Multicast {
    fn fill(&mut self, frame: &mut Frame) {
        self.0 = !self.0;
        let (port, protocol, payload) =
            if self.0 { (INSIDE, 2, JOIN) } else { (OTHER, 253, [7; 8]) };
        frame.copy_from(&for_the_group(port, protocol, &payload));
        frame.ingress = port;
    }
}

#[test]
fn sending_groups_where_they_were_joined() {
    let mut switch = Switch::snooping().unwrap();
    let mut question = switch.prepare(&mut Multicast(false), 1);
    question[0].copy_from(&for_the_group(OTHER, 2, &QUESTION));
    question[0].ingress = OTHER;
    assert_eq!(switch.process(&mut question), 1);
    switch.pass(std::time::Duration::from_secs(3));
    for batch in [2, 64, 256] {
        assert_allocates_nothing(&mut switch, &mut Multicast(false), batch);
    }
    let groups = switch.plane.groups();
    assert_eq!(groups.iter().map(|entry| entry.port).collect::<Vec<_>>(), [OTHER, INSIDE]);
    // Nobody is in another one, and nobody is asked for who is in it: it was kept.
    let mut stranger = switch.prepare(&mut Multicast(true), 1);
    stranger[0].bytes_mut()[14 + 19] = 4;
    assert_eq!(switch.process(&mut stranger), 0);
}

#[test]
fn translating_established_connections() {
    let mut switch = Switch::nat(1000).unwrap();
    for batch in [1, 64, 256] {
        for way in [Way::Out, Way::In] {
            let mut load = NatFlows::random(64, 1000, way);
            assert_allocates_nothing(&mut switch, &mut load, batch);
        }
    }
}

#[test]
fn beginning_connections() {
    let mut switch = Switch::clients(0, 65_536, (1024, 65_535)).unwrap();
    let mut client = 0x0a10_0000u32;
    // Always from the same port, so that an outside port has to be searched.
    let mut load = NewFlows::new(|| {
        client += 1;
        (Ipv4Addr::from(client), 40_000)
    });
    assert_allocates_nothing(&mut switch, &mut load, 64);
}

#[test]
fn beginning_connections_of_ipv6_and_translating_them() {
    let mut switch = Switch::nat(0).unwrap();
    let mut next = 10_000;
    let mut load = Datagrams6 {
        way: Way::Out,
        ports: || {
            next += 1;
            next
        },
    };
    assert_allocates_nothing(&mut switch, &mut load, 64);
    let begun = u16::try_from(switch.plane.conntrack_stats().entries).unwrap();
    assert!(begun > 1000, "{begun}");
    for batch in [1, 64, 256] {
        for way in [Way::Out, Way::In] {
            let mut turn = 0;
            let ports = || {
                turn += 1;
                // As they were begun: they keep their ports outside, as nothing stands in the way.
                10_001 + turn % begun
            };
            assert_allocates_nothing(&mut switch, &mut Datagrams6 { way, ports }, batch);
        }
    }
    assert_eq!(switch.plane.conntrack_stats().entries, u32::from(begun));
}

/// The same of batches of 32 of which `merged` frames become part of others.
fn assert_merges_without_allocating(switch: &mut Switch, load: &mut impl Load, merged: u64) {
    for round in 0..32 {
        let mut frames = switch.prepare(load, 32);
        let before = switch.stats().merged;
        let mut sent = 0;
        let counted = allocation_counter::measure(|| sent = switch.process(&mut frames));
        let stats = switch.stats();
        assert_eq!((sent, stats.merged - before), (32 - merged, merged), "{stats:?}");
        if round >= 16 {
            assert_eq!(counted.count_total, 0, "{counted:?}");
        }
    }
}

#[test]
fn merging_segments() {
    for is_ipv6 in [false, true] {
        let mut switch = Switch::bridge(1).unwrap();
        assert_merges_without_allocating(&mut switch, &mut Stream::new(is_ipv6, 1), 31);
    }
}

#[test]
fn merging_segments_of_translated_connections() {
    let streams = Streams::new(1);
    let mut switch = Switch::nat_tcp(&streams).unwrap();
    for way in [Way::Out, Way::In] {
        let mut load = TcpFlows::new(1500, &streams, way, Step::Data);
        assert_merges_without_allocating(&mut switch, &mut load, 31);
    }
}

#[test]
fn merging_datagrams() {
    let mut switch = Switch::bridge(1).unwrap().merging_datagrams();
    // What comes in twos is left as it is, and so is what is of another flow each time.
    for (in_a_row, merged) in [(1, 0), (2, 0), (8, 28), (16, 30)] {
        for len in [64, 1500] {
            let mut load = Bursts::new(len, 16, in_a_row, Way::Out);
            assert_merges_without_allocating(&mut switch, &mut load, merged);
        }
    }
    let mut switch = Switch::nat(1).unwrap().merging_datagrams();
    for way in [Way::Out, Way::In] {
        let mut load = Datagrams6 { way, ports: || 10_000 };
        assert_merges_without_allocating(&mut switch, &mut load, 31);
    }
}

/// Established connections by TCP, whose segments are looked at each by itself.
#[test]
fn translating_segments() {
    let streams = Streams::new(100);
    let mut switch = Switch::nat_tcp(&streams).unwrap();
    for batch in [1, 64, 256] {
        for way in [Way::Out, Way::In] {
            let mut load = TcpFlows::new(64, &streams, way, Step::Data);
            assert_allocates_nothing(&mut switch, &mut load, batch);
        }
    }
}

#[test]
fn cutting_segments() {
    for is_ipv6 in [false, true] {
        let mut switch = Switch::bridge(1).unwrap();
        switch.take_offloads_from(OTHER);
        for batch in [1, 16] {
            assert_allocates_nothing_for(&mut switch, &mut Stream::new(is_ipv6, 10), batch, 10);
        }
    }
}

/// Each is a datagram that those who put it together must not take for another, so that it is noted; soon
/// those noted before have to make room.
#[test]
fn cutting_packets_into_fragments() {
    let mut switch = Switch::nat_by_narrow_links(100, 1400).unwrap();
    for batch in [1, 64] {
        let mut load = Long { connections: 100, number: 0 };
        assert_allocates_nothing_for(&mut switch, &mut load, batch, 2);
    }
    // All identifications there are, of which many are in use by then.
    let mut load = Long { connections: 1, number: 0 };
    for _ in 0..1024 {
        let mut frames = switch.prepare(&mut load, 64);
        assert_eq!(switch.process(&mut frames), 128, "{:?}", switch.stats());
    }
    assert_allocates_nothing_for(&mut switch, &mut load, 64, 2);
}
