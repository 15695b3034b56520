//! What fuzzing begins with: for the targets of frames the first ones of each capture in
//! `tests/captures` and, if it is set, below `VSWITCHD_PCAPS`; for the others what is well-formed.

mod groups;

use std::env;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use dataplane::io::pcap::PcapReader;
use dataplane::packet::types::{PortId, tcp_flags};
use tests::lab::{A, B, GATEWAY1, ROUTER, SERVER, UP};
use tests::packet::sctp::{INIT, INIT_ACK, sctp};
use tests::packet::{Packet, Wire, arp_reply, arp_request, echo, icmp_error, nd, tcp, udp};

use crate::targets::{Piece, Target, pipeline};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// Frames of a capture in one input of the pipeline.
const TOGETHER: usize = 8;
/// What is read of a capture: as long as libFuzzer lets an input become.
const LONGEST: u64 = 16 << 10;
/// Inputs of one capture.
const EACH: usize = 12;

/// The seeds of a target.
///
/// # Panics
/// When a file that is there cannot be read.
#[must_use]
pub fn of(target: &Target) -> Vec<Vec<u8>> {
    match target.name {
        "api" => bodies(),
        "config" => texts(),
        "errors" => (0..20u8).map(|n| vec![n, n % 2, n % 7, n % 5, 0, 64, 0]).collect(),
        "fragments" => orders(),
        "parse" => frames().map(|(_, wire)| [&[1], wire.bytes.as_slice()].concat()).collect(),
        "pcap" => captures().map(|path| beginning(&path)).collect(),
        "pipeline" => programs().into_iter().chain(groups::programs()).collect(),
        _ => vec![vec![0; 16], vec![1; 64], vec![2; 64]],
    }
}

/// Writes the seeds of a target, each into a file of its own.
///
/// # Panics
/// When that cannot be done.
pub fn write(target: &Target, directory: &Path) {
    for (number, seed) in of(target).iter().enumerate() {
        fs::write(directory.join(format!("seed-{number}")), seed).unwrap();
    }
}

fn below(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            below(&path, into);
        } else if path
            .extension()
            .is_some_and(|end| end == "cap" || end == "pcap" || end == "pcapng")
        {
            into.push(path);
        }
    }
}

fn captures() -> impl Iterator<Item = PathBuf> {
    let mut paths = Vec::new();
    below(&Path::new(ROOT).join("tests/captures"), &mut paths);
    if let Some(foreign) = env::var_os("VSWITCHD_PCAPS") {
        below(Path::new(&foreign), &mut paths);
    }
    paths.sort();
    paths.into_iter()
}

/// As much of a capture as goes into one input.
fn beginning(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    fs::File::open(path).unwrap().take(LONGEST).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The first frames of each, and whether the capture was made outside.
fn frames() -> impl Iterator<Item = (bool, Wire)> {
    captures().flat_map(|path| {
        let outside = path.to_string_lossy().contains(".outside.");
        let bytes = beginning(&path);
        let mut frames = Vec::new();
        if let Ok(mut reader) = PcapReader::new(bytes.as_slice()) {
            while let Ok(Some(frame)) = reader.next_frame() {
                frames.push((outside, Wire::from(frame.bytes)));
            }
        }
        frames.truncate(EACH);
        frames
    })
}

/// Inputs of the pipeline: captures as they are and played by hosts of the topology, and
/// conversations with their offloads.
fn programs() -> Vec<Vec<u8>> {
    let all: Vec<_> = frames().collect();
    let mut programs = Vec::new();
    for group in all.chunks(TOGETHER) {
        let (mut plain, mut played) = (vec![0], vec![1]);
        for (at, (outside, wire)) in group.iter().enumerate() {
            let port = if *outside { UP.port } else { A.port };
            pipeline::write(&mut plain, port, 0, wire);
            let role = if *outside { 4 } else { [1, 6, 7][at % 3] };
            pipeline::write(&mut played, port, role, wire);
        }
        programs.extend([plain, played]);
    }
    for six in [false, true] {
        let by = |packet: Packet| if six { packet.v6() } else { packet };
        let out = |packet: Packet| (A.port, 0, by(packet).via(GATEWAY1.mac));
        let syn = tcp(&A, 2000, &SERVER, 80, tcp_flags::SYN);
        let back = |packet: Packet| (UP.port, 0, by(packet).macs(ROUTER.mac, UP.mac));
        let answer = tcp(&SERVER, 80, &UP, 2000, tcp_flags::SYN | tcp_flags::ACK);
        let ack = tcp(&A, 2000, &SERVER, 80, tcp_flags::ACK);
        let error = icmp_error(&SERVER, &UP, 3, 3, &udp(&UP, 2000, &SERVER, 53), 28);
        let init = sctp(&A, 2000, &SERVER, 36_412, 0).asks_for(INIT, 7);
        let init_ack = sctp(&SERVER, 36_412, &UP, 2000, 7).asks_for(INIT_ACK, 8);
        let ftp = |flags| tcp(&A, 2001, &SERVER, 21, flags);
        let welcome = tcp(&SERVER, 21, &UP, 2001, tcp_flags::SYN | tcp_flags::ACK);
        let address = A.ip6();
        let says =
            if six { format!("EPRT |2|{address}|2002|") } else { "PORT 10,1,0,2,7,210".into() };
        let says = ftp(tcp_flags::ACK).payload(format!("{says}\r\n").as_bytes());
        let read = udp(&A, 2003, &SERVER, 69).payload(b"\0\x01a\0octet\0");
        let steps: [(PortId, u8, Packet); 16] = [
            out(ftp(tcp_flags::SYN)),
            back(welcome),
            out(says),
            back(tcp(&SERVER, 20, &UP, 2002, tcp_flags::SYN)),
            out(read),
            back(udp(&SERVER, 9, &UP, 2003)),
            out(syn),
            back(answer),
            out(ack.clone().payload(b"hello")),
            out(udp(&A, 2000, &SERVER, 53)),
            out(echo(&A, &SERVER, 9)),
            out(init),
            back(init_ack),
            out(udp(&A, 2000, &SERVER, 53).long(1700).may_fragment()),
            back(udp(&SERVER, 53, &UP, 8080)),
            if six { out(nd::router_solicitation(&A, A.ip6())) } else { back(error) },
        ];
        let mut program = vec![0];
        for (port, role, packet) in &steps {
            pipeline::write(&mut program, *port, *role, &Wire::from(packet));
        }
        let gso = by(ack).via(GATEWAY1.mac).long(3500).gso(1000);
        pipeline::write(&mut program, A.port, 0, &gso);
        pipeline::write(&mut program, A.port, 6, &by(udp(&A, 1, &B, 2)).long(3000).gso(500));
        pipeline::write(&mut program, A.port, 0, &arp_request(&A, GATEWAY1.ip).into());
        pipeline::write(&mut program, UP.port, 0, &arp_reply(&ROUTER, &UP).into());
        program.extend([252, 1, 251, 200, 1]);
        programs.push(program);
    }
    programs
}

/// Fragments in order, reversed, overlapping, and of two datagrams at once.
fn orders() -> Vec<Vec<u8>> {
    let piece = |datagram: u8, from: u8, units: u8, last: bool| Piece {
        datagram,
        from,
        units,
        flags: u8::from(last),
    };
    (0..16u8)
        .flat_map(|datagram| {
            let pieces = [
                piece(datagram, 0, 31, false),
                piece(datagram, 32, 31, false),
                piece(datagram, 64, 31, true),
                piece(datagram ^ 4, 0, 15, false),
                piece(datagram ^ 8, 32, 31, false),
            ];
            let overlapping = [pieces[0], piece(datagram, 31, 7, false), pieces[1], pieces[2]];
            let reversed: Vec<Piece> = pieces.iter().rev().copied().collect();
            [pieces.to_vec(), reversed, overlapping.to_vec()]
        })
        .map(|pieces| {
            let mut bytes = vec![0];
            pieces.into_iter().for_each(|piece| piece.write(&mut bytes));
            bytes
        })
        .collect()
}

fn texts() -> Vec<Vec<u8>> {
    let shipped = fs::read_to_string(Path::new(ROOT).join("docs/examples/vswitchd.toml")).unwrap();
    let sections = shipped.split("\n\n").map(|section| section.as_bytes().to_vec());
    sections.chain([shipped.as_bytes().to_vec()]).collect()
}

/// One body of each kind, in the order of the target's readers.
fn bodies() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"name":"app","driver":"bridge","subnets":[{"subnet":"10.9.0.0/24","gateway":"10.9.0.1"}],"internal":false,"options":{"mtu":"1400","icc":"false"},"labels":{"a":"b"}}"#,
        r#"{"sandbox":"web","ip":"10.9.0.2","mac":"02:42:0a:09:00:02","aliases":["w"],"options":{"trusted":"true"}}"#,
        r#"{"name":"web","networks":["app"],"publish":["8080:80/tcp"]}"#,
        r#"{"publish":["127.0.0.1:8080-8090:80-90/udp"]}"#,
        r#"{"interface":"eth0","mode":"dedicated","addresses":["192.0.2.2/24"],"gateway":"192.0.2.1"}"#,
        r#"{"destination":"10.0.0.0/8","via":"192.0.2.1","uplink":"eth0"}"#,
        r#"{"destination":"10.0.0.0/8"}"#,
        r#"{"network":"app","mac":"02:00:00:00:00:01","sandbox":"web"}"#,
        r#"{"network":"app","mac":"02:00:00:00:00:01"}"#,
        r#"{"network":"app"}"#,
        r#"{"proto":"tcp","src":"10.9.0.0/24","dport":80,"state":"ESTABLISHED"}"#,
        r#"{"sandbox":"web","packet":"tcp 10.9.0.2:40000 > 203.0.113.2:80 syn","frames":["ffff"]}"#,
        "network=app",
        "proto=udp&sport=53&network=app",
        "network=app&sandbox=web",
        "sandbox=web",
        "sandbox=web&count=5&filter=tcp%20port%2080",
        "udp [2001:db8::1]:5 > [2001:db8::2]:53 len 9 ttl 3 from 02:00:00:00:00:01",
        "not (tcp dst port 80 or 443) and src net 10.0.0.0/8 or vlan 5 and greater 100",
        "[::1]:8080-8081:80-81/tcp",
        "container:web",
        "02:42:0a:01:00:02",
        "icmp",
        "ffffffffffff02420a0100020806",
        "bridge",
    ];
    let numbered = texts.iter().enumerate();
    numbered.map(|(number, text)| [&[number as u8], text.as_bytes()].concat()).collect()
}
