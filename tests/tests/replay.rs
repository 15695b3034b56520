//! Captures through the engine: the project's own with what must come out, frame by frame, and any
//! folder of foreign ones with what must never happen.
//!
//! `captures/NAME.SIDE.expected.pcap` holds what the engine sends for `captures/NAME.*.pcap`.
//! `UPDATE_EXPECTED=1` writes them anew: look at the difference before you commit it.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dataplane::config::{
    DnatRule, NetworkConfig, PortConfig, PortRole, SnapshotSpec, Subnet, UplinkConfig, UplinkMode,
    Vlans,
};
use dataplane::engine::Link;
use dataplane::io::pcap::{PcapReader, PcapWriter};
use dataplane::io::vnet_hdr::{F_NEEDS_CSUM, GSO_TCPV4, VnetHdr};
use dataplane::l3::route::Prefix;
use dataplane::packet::types::{Mac, NetworkId, PortId, UplinkId, ip_proto, tcp_flags};
use tests::packet::{Host, Wire, describe, tcp};
use tests::rig::{Rig, network_header};
use tests::sums;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const CLIENT_MAC: Mac = Mac([2, 0x42, 0x0a, 0x32, 0, 2]);
const GATEWAY_MAC: Mac = Mac([2, 0x42, 0x0a, 0x32, 0, 1]);
const OUTSIDE_MAC: Mac = Mac([2, 0x42, 0xc0, 0, 2, 1]);
const SERVER_MAC: Mac = Mac([2, 0x42, 0xc0, 0, 2, 2]);
/// Ports of the engine.
const INSIDE_PORT: PortId = PortId(1);
const SECOND_PORT: PortId = PortId(2);
const UPLINK_PORT: PortId = PortId(3);
const NETWORK: NetworkId = NetworkId(1);
const UPLINK: UplinkId = UplinkId(0);

/// Captures of both sides of the kernel's NAT.
const PAIRS: [&str; 8] = [
    "dns",
    "fragments",
    "http",
    "http-published",
    "icmp-echo",
    "icmp-frag-needed",
    "icmp-unreachable",
    "tcp-retransmits",
];
/// Captures of the inside alone that the gateway takes part in.
const INSIDE_ONLY: [&str; 2] = ["arp", "icmp-ttl"];

struct Captured {
    unix_nanos: u64,
    bytes: Vec<u8>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("captures")
}

fn load(path: &Path) -> Vec<Captured> {
    let file = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut reader = PcapReader::new(file).unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame().unwrap() {
        frames.push(Captured { unix_nanos: frame.unix_nanos, bytes: frame.bytes.to_vec() });
    }
    frames
}

fn source(bytes: &[u8]) -> Mac {
    Mac(bytes[6..12].try_into().unwrap())
}

fn port(id: PortId, role: PortRole) -> PortConfig {
    PortConfig { id, role, mtu: 1500 }
}

fn endpoint(id: PortId, mac: Mac, ip: Ipv4Addr, guard: bool) -> PortConfig {
    let (ipv4, ipv6) = (vec![ip], Vec::new());
    let (trusted, vlans) = (true, Vlans::All);
    port(id, PortRole::Endpoint { network: NETWORK, mac, ipv4, ipv6, guard, trusted, vlans })
}

/// The router of the captures: a network with the client, a dedicated uplink, a published port.
fn router(uplink_mtu: u16) -> SnapshotSpec {
    SnapshotSpec {
        ports: vec![
            endpoint(INSIDE_PORT, CLIENT_MAC, CLIENT, true),
            port(UPLINK_PORT, PortRole::Uplink { uplink: UPLINK }),
        ],
        networks: vec![NetworkConfig {
            // The kernel's router, whose frames are expected, was not told to.
            mss_clamp: false,
            ..NetworkConfig::new(
                NETWORK,
                GATEWAY_MAC,
                vec![Subnet { prefix: Prefix::new(GATEWAY, 24), gateway: Some(GATEWAY.into()) }],
            )
        }],
        uplinks: vec![UplinkConfig {
            id: UPLINK,
            port: UPLINK_PORT,
            mode: UplinkMode::Dedicated,
            mac: OUTSIDE_MAC,
            addresses: vec![(OUTSIDE.into(), Prefix::new(OUTSIDE, 24))],
            gateway: Some(SERVER),
            gateway6: None,
            nat_ports: vec![(1, 65_535)],
            mtu: uplink_mtu,
            carrier_ups: 0,
        }],
        dnat: vec![DnatRule {
            id: 1,
            proto: ip_proto::TCP,
            host_ip: None,
            host_ports: (8080, 8080),
            to: CLIENT.into(),
            to_port: 80,
            network: NETWORK,
        }],
        ..SnapshotSpec::default()
    }
}

/// A tag that names no VLAN is taken out (IEEE 802.1Q-2018 §6.9.1).
fn without_priority_tag(frame: &[u8]) -> Vec<u8> {
    let (macs, rest) = frame.split_at(12);
    match rest {
        [0x81, 0x00, priority, 0, untagged @ ..] if priority & 0xf == 0 => {
            [macs, untagged].concat()
        }
        _ => frame.to_vec(),
    }
}

#[test]
fn the_switch_passes_every_capture_byte_for_byte() {
    let mut frames = 0;
    let mut files: Vec<_> =
        std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.retain(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.ends_with(".pcap") && !name.contains(".expected.")
    });
    assert!(files.len() >= 19, "{files:?}");
    for path in &files {
        let captured = load(path);
        let first = source(&captured[0].bytes);
        let other = captured.iter().map(|f| source(&f.bytes)).find(|mac| *mac != first).unwrap();
        let mut spec = router(1500);
        spec.networks[0].gateway_mac = Mac([2, 0, 0, 0, 0, 0x99]);
        spec.networks[0].subnets.clear();
        spec.dnat.clear();
        spec.ports[0] = endpoint(INSIDE_PORT, first, CLIENT, false);
        spec.ports.push(endpoint(SECOND_PORT, other, GATEWAY, false));
        let mut rig = Rig::new(spec);
        for (number, frame) in captured.iter().enumerate() {
            let (from, to) = if source(&frame.bytes) == first {
                (INSIDE_PORT, SECOND_PORT)
            } else {
                (SECOND_PORT, INSIDE_PORT)
            };
            let what = format!("{} frame {number}", path.display());
            let sent = Wire::from(&without_priority_tag(&frame.bytes)[..]);
            assert_eq!(
                rig.feed(from, &Wire::from(&frame.bytes[..]), &what),
                [(to, sent)],
                "{what}"
            );
            frames += 1;
        }
    }
    assert!(frames > 400, "{frames} frames");
}

/// What the engine sends when the client and the server of a capture say what they said.
struct Replayed {
    inside: Vec<Captured>,
    outside: Vec<Captured>,
}

fn replay(name: &str) -> Replayed {
    let mtu = if name == "icmp-frag-needed" { 1280 } else { 1500 };
    let mut rig = Rig::new(router(mtu));
    let side = |side: &str| folder().join(format!("{name}.{side}.pcap"));
    let mut said: Vec<(PortId, Captured)> = Vec::new();
    for (from, mac, path) in
        [(INSIDE_PORT, CLIENT_MAC, side("inside")), (UPLINK_PORT, SERVER_MAC, side("outside"))]
    {
        if from == INSIDE_PORT || PAIRS.contains(&name) {
            let frames = load(&path).into_iter().filter(|f| source(&f.bytes) == mac);
            said.extend(frames.map(|frame| (from, frame)));
        }
    }
    said.sort_by_key(|(_, frame)| frame.unix_nanos);
    let (start, begin) = (rig.now, said[0].1.unix_nanos);
    let mut replayed = Replayed { inside: Vec::new(), outside: Vec::new() };
    for (number, (from, frame)) in said.iter().enumerate() {
        rig.now = start + Duration::from_nanos(frame.unix_nanos - begin);
        let what = format!("{name} frame {number} from {from:?}");
        for (to, wire) in rig.feed(*from, &Wire::from(&frame.bytes[..]), &what) {
            let sent = Captured { unix_nanos: frame.unix_nanos, bytes: wire.bytes };
            match to {
                INSIDE_PORT => replayed.inside.push(sent),
                _ => replayed.outside.push(sent),
            }
        }
    }
    replayed
}

fn compare_with_expected(name: &str, side: &str, sent: &[Captured]) {
    let path = folder().join(format!("{name}.{side}.expected.pcap"));
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        for frame in sent {
            let length = u32::try_from(frame.bytes.len()).unwrap();
            writer.write(frame.unix_nanos, length, &frame.bytes).unwrap();
        }
        // Whole or not at all: other tests read along.
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, writer.into_inner()).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
        eprintln!("written: {}", path.display());
        return;
    }
    let expected = load(&path);
    for (number, (ours, expected)) in sent.iter().zip(&expected).enumerate() {
        assert!(
            ours.bytes == expected.bytes,
            "{name}.{side} frame {number}\n  expected {}\n  came     {}",
            describe(&expected.bytes),
            describe(&ours.bytes)
        );
        assert_eq!(ours.unix_nanos, expected.unix_nanos, "{name}.{side} frame {number}: when");
    }
    assert_eq!(sent.len(), expected.len(), "{name}.{side}: frames");
}

#[test]
fn the_router_sends_what_is_expected() {
    for name in PAIRS.into_iter().chain(INSIDE_ONLY) {
        let replayed = replay(name);
        compare_with_expected(name, "inside", &replayed.inside);
        if PAIRS.contains(&name) {
            compare_with_expected(name, "outside", &replayed.outside);
        } else {
            assert!(replayed.outside.iter().all(|f| f.bytes[12..14] == [8, 6]), "{name}");
        }
    }
}

/// The expected captures are right because the kernel's router, given the same frames, forwarded
/// the same ones: but for those that it was told to lose (`tcp-retransmits`).
#[test]
fn the_router_forwards_what_the_kernel_forwards() {
    for name in PAIRS {
        let replayed = replay(name);
        for (side, mac, sent) in
            [("inside", GATEWAY_MAC, &replayed.inside), ("outside", OUTSIDE_MAC, &replayed.outside)]
        {
            let is_forwarded = |bytes: &[u8]| {
                bytes[12..14] == [8, 0] && source(bytes) == mac && bytes[26..30] != GATEWAY.octets()
            };
            let kernel: Vec<_> = load(&folder().join(format!("{name}.{side}.pcap")))
                .into_iter()
                .filter(|frame| is_forwarded(&frame.bytes))
                .map(|frame| frame.bytes)
                .collect();
            let ours: Vec<_> =
                sent.iter().map(|f| f.bytes.clone()).filter(|bytes| is_forwarded(bytes)).collect();
            assert!(!kernel.is_empty(), "{name}.{side}");
            if name == "tcp-retransmits" {
                let mut rest = ours.iter();
                for bytes in &kernel {
                    assert!(rest.any(|ours| ours == bytes), "{name}: {}", describe(bytes));
                }
                assert!(ours.len() > kernel.len());
            } else {
                let texts =
                    |frames: &[Vec<u8>]| frames.iter().map(|f| describe(f)).collect::<Vec<_>>();
                assert_eq!(texts(&ours), texts(&kernel), "{name}.{side}");
                assert!(ours == kernel, "{name}.{side}");
            }
        }
    }
}

/// A switch and a router without guards, from the wire open to `published` ports.
fn rig(published: &[u8]) -> Rig {
    let mut spec = router(1500);
    spec.ports[0] = endpoint(INSIDE_PORT, CLIENT_MAC, CLIENT, false);
    let second = Ipv4Addr::new(10, 50, 0, 3);
    spec.ports.push(endpoint(SECOND_PORT, Mac([2, 0, 0, 0, 0, 3]), second, false));
    let all_ports = |proto: &u8| DnatRule {
        id: u32::from(*proto),
        proto: *proto,
        host_ip: Some(OUTSIDE.into()),
        host_ports: (1, 65_535),
        to: CLIENT.into(),
        to_port: 1,
        network: NETWORK,
    };
    spec.dnat = published.iter().map(all_ports).collect();
    Rig::new(spec)
}

/// Gives an IPv4 packet another address at `at` (12: source, 16: destination). Checksums that were
/// right are right again, those that were wrong stay as wrong as they were (RFC 1624).
fn readdress(bytes: &mut [u8], at: usize, address: Ipv4Addr) {
    let l3 = network_header(bytes);
    let is_ipv4 = l3 >= 14 && bytes.get(l3 - 2..l3) == Some(&[8, 0]);
    let Some(header) = bytes.get(l3..l3 + 20).filter(|_| is_ipv4) else { return };
    let first_fragment = header[6] & 0x1f == 0 && header[7] == 0;
    let l4 = l3 + usize::from(header[0] & 15) * 4;
    let field = match header[9] {
        6 if first_fragment => Some(l4 + 16),
        17 if first_fragment => Some(l4 + 6),
        _ => None,
    };
    let old: [u8; 4] = bytes[l3 + at..l3 + at + 4].try_into().unwrap();
    bytes[l3 + at..l3 + at + 4].copy_from_slice(&address.octets());
    for field in [Some(l3 + 10), field].into_iter().flatten() {
        let Some(&[high, low]) = bytes.get(field..field + 2).and_then(|f| f.first_chunk()) else {
            continue;
        };
        let stored = u16::from_be_bytes([high, low]);
        if field != l3 + 10 && bytes[l3 + 9] == 17 && stored == 0 {
            continue;
        }
        let inverted = old.map(|byte| !byte);
        let sum = sums::sum(&[&(!stored).to_be_bytes()[..], &inverted, &address.octets()].concat());
        bytes[field..field + 2].copy_from_slice(&(!sum).to_be_bytes());
    }
}

/// An answer to a frame: addresses and ports change places, which no checksum notices.
fn mirrored(bytes: &[u8]) -> Vec<u8> {
    let mut answer = bytes.to_vec();
    let swap = |answer: &mut Vec<u8>, at: usize, len: usize| {
        if answer.len() >= at + 2 * len {
            let (low, high) = answer[at..at + 2 * len].split_at_mut(len);
            low.swap_with_slice(high);
        }
    };
    swap(&mut answer, 0, 6);
    let l3 = network_header(bytes);
    if l3 == 14 && answer.get(12..14) == Some(&[8, 0]) && answer.len() > 34 {
        swap(&mut answer, l3 + 12, 4);
        let l4 = l3 + usize::from(answer[l3] & 15) * 4;
        if matches!(answer[23], 6 | 17) && answer[20] & 0x1f == 0 && answer[21] == 0 {
            swap(&mut answer, l4, 2);
        }
    }
    answer
}

/// A TCP packet as a kernel sends it that leaves checksum and segmentation to the device; `None`
/// for what is none, or not sound.
fn offloaded(bytes: &[u8]) -> Option<Wire> {
    const SIZE: u16 = 500;
    let (l3, l4) = (14, 34);
    let sums = sums::check(&bytes.into());
    let plain = bytes.get(12..16)?[..3] == [8, 0, 0x45] && bytes.get(23) == Some(&6);
    if !plain || (sums.ip, sums.l4) != (Some(true), Some(true)) {
        return None;
    }
    let end = l3 + usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    let header = usize::from(bytes[46] >> 4) * 4;
    // SYN and RST are never cut.
    let mut bytes = bytes[..end].to_vec();
    let payload = (end - l4).checked_sub(header)?;
    let sum = sums::pseudo_header(&bytes[26..30], &bytes[30..34], 6, end - l4);
    bytes[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
    let mut vnet =
        VnetHdr { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..VnetHdr::default() };
    if payload > usize::from(SIZE) && bytes[47] & 6 == 0 {
        vnet =
            VnetHdr { gso_type: GSO_TCPV4, gso_size: SIZE, hdr_len: (l4 + header) as u16, ..vnet };
    }
    Some(Wire { bytes, vnet })
}

/// The SYN of the connection that a TCP segment belongs to, so that captures that begin in the
/// middle get through NAT. Its mirror image answers: a simultaneous open lets all segments pass.
fn opening(bytes: &[u8]) -> Option<Wire> {
    let plain = bytes.get(12..16)?[..3] == [8, 0, 0x45] && bytes.get(23) == Some(&6);
    let segment = bytes.get(34..54).filter(|_| plain)?;
    let word = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    let address = |at: usize| Ipv4Addr::from(*bytes[at..].first_chunk::<4>().unwrap());
    let from = Host { port: INSIDE_PORT, mac: source(bytes), ip: address(26) };
    let to = Host { mac: Mac(*bytes.first_chunk().unwrap()), ip: address(30), ..from };
    let syn = segment[13] & tcp_flags::SYN != 0;
    (!syn).then(|| tcp(&from, word(0), &to, word(2), tcp_flags::SYN).into())
}

#[derive(Default)]
struct Totals {
    files: u64,
    unreadable: Vec<String>,
    frames: u64,
    answers: u64,
    offloaded: u64,
    sent: u64,
    consumed: u64,
    drops: BTreeMap<&'static str, u64>,
}

impl Totals {
    fn file(&mut self, path: &Path) {
        let bytes = std::fs::read(path).unwrap();
        let mut rigs = [rig(&[]), rig(&[]), rig(&[ip_proto::TCP, ip_proto::UDP])];
        let mut reader = match PcapReader::new(bytes) {
            Ok(reader) => reader,
            Err(error) => {
                self.unreadable.push(format!("{}: {error}", path.display()));
                return;
            }
        };
        self.files += 1;
        let (mut number, mut first) = (0u64, None);
        loop {
            let frame = match reader.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    self.unreadable.push(format!("{}: {error}", path.display()));
                    break;
                }
            };
            number += 1;
            let nanos = frame.unix_nanos;
            let passed = Duration::from_nanos(nanos.saturating_sub(*first.get_or_insert(nanos)));
            for rig in &mut rigs {
                // Times in captures jump; ours goes on, and not for years.
                rig.now = rig.now + passed.min(Duration::from_secs(20));
            }
            first = Some(nanos);
            let what = format!("{} frame {number}", path.display());
            let bytes = &frame.bytes[..frame.bytes.len().min(dataplane::frame::MAX_FRAME_LEN)];
            self.frame(&mut rigs, bytes, &what);
        }
        for rig in &rigs {
            rig.add_drops(&mut self.drops);
            let (sent, consumed) = rig.sent_and_consumed();
            self.sent += sent;
            self.consumed += consumed;
        }
    }

    /// One frame three ways: between endpoints, to the gateway, from the wire.
    fn frame(&mut self, rigs: &mut [Rig; 3], bytes: &[u8], what: &str) {
        self.frames += 1;
        let [switch, out, inward] = rigs;
        let ingress =
            if bytes.get(11).is_some_and(|byte| byte & 1 == 0) { INSIDE_PORT } else { SECOND_PORT };
        switch.feed(ingress, &bytes.into(), &format!("{what}, switched"));

        let mut to_gateway = bytes.to_vec();
        if to_gateway.len() >= 12 {
            to_gateway[..6].copy_from_slice(&GATEWAY_MAC.0);
            to_gateway[6..12].copy_from_slice(&CLIENT_MAC.0);
        }
        readdress(&mut to_gateway, 12, CLIENT);
        let mut from_wire = bytes.to_vec();
        if from_wire.len() >= 12 {
            from_wire[..6].copy_from_slice(&OUTSIDE_MAC.0);
            from_wire[6..12].copy_from_slice(&SERVER_MAC.0);
        }
        readdress(&mut from_wire, 16, OUTSIDE);
        for (rig, port, bytes, way) in [
            (out, INSIDE_PORT, to_gateway, "to the gateway"),
            (inward, UPLINK_PORT, from_wire, "from the wire"),
        ] {
            let link = Link::Uplink(UPLINK);
            rig.plane.tables().neighbors.confirm(link, SERVER, SERVER_MAC, true, rig.now);
            let what = format!("{what}, {way}");
            let mut sent = Vec::new();
            if let Some(syn) = opening(&bytes) {
                sent.extend(rig.feed(port, &syn, &format!("{what}, opened")));
            }
            for (to, wire) in std::mem::take(&mut sent) {
                if to != port {
                    rig.feed(to, &mirrored(&wire.bytes)[..].into(), &what);
                }
            }
            sent.extend(rig.feed(port, &bytes[..].into(), &what));
            if let Some(wire) = offloaded(&bytes) {
                self.offloaded += 1;
                sent.extend(rig.feed(port, &wire, &format!("{what}, offloaded")));
            }
            for (to, wire) in sent {
                if to != port {
                    self.answers += 1;
                    let answer = mirrored(&wire.bytes);
                    rig.feed(to, &answer[..].into(), &format!("{what}, answered"));
                }
            }
        }
    }
}

fn captures_below(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("VSWITCHD_PCAPS: {}: {error}", folder.display()));
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            captures_below(&path, found);
        } else if !matches!(
            path.extension().and_then(|e| e.to_str()),
            Some("md" | "new" | "py" | "sh" | "txt")
        ) {
            found.push(path);
        }
    }
}

fn replay_folder(folder: &Path) -> Totals {
    let mut files = Vec::new();
    captures_below(folder, &mut files);
    files.sort();
    let mut totals = Totals::default();
    for path in &files {
        totals.file(path);
    }
    totals
}

/// The same as below with the captures at hand, so that it is tried everywhere.
///
/// Rows: Open vSwitch `ovstest test-conntrack pcap`.
#[test]
fn own_captures_break_nothing() {
    let totals = replay_folder(&folder());
    assert!(totals.files >= 19 && totals.frames > 400, "{} files", totals.files);
    assert!(totals.unreadable.is_empty(), "{:?}", totals.unreadable);
    assert!(totals.answers > 400 && totals.offloaded > 100, "{} answers", totals.answers);
}

#[test]
#[ignore = "needs VSWITCHD_PCAPS, a folder of captures"]
fn foreign_captures_break_nothing() {
    let Some(folder) = std::env::var_os("VSWITCHD_PCAPS") else {
        panic!("VSWITCHD_PCAPS is not set: name a folder of captures, or do not ask for this test");
    };
    let totals = replay_folder(Path::new(&folder));
    for line in &totals.unreadable {
        println!("not read to its end: {line}");
    }
    println!(
        "{} files, {} frames, {} answers, {} offloaded; {} sent, {} consumed, dropped: {:?}",
        totals.files,
        totals.frames,
        totals.answers,
        totals.offloaded,
        totals.sent,
        totals.consumed,
        totals.drops
    );
    assert!(totals.frames > 0, "no capture in {}", Path::new(&folder).display());
}
