//! Echo replies and errors as the RFCs have them; quoted packets of every shape.

use super::super::fixtures::{
    CLIENT, CLIENT_MAC, EXTERNAL, GATEWAY_MAC, SERVER, assert_checksums, echo_request, ethernet,
    frame, ipv4, parsed, slow_sum, tcp, udp,
};
use super::super::parse::parse;
use super::super::types::Mac;
use super::*;

const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

#[test]
fn an_echo_request_is_answered() {
    let bytes = echo_request(b"payload");
    let (mut frame, headers) = parsed(&bytes);
    echo_reply(&mut frame, &headers).unwrap();
    assert_checksums(frame.bytes());
    let reply = parse(frame.bytes()).unwrap();
    assert_eq!((reply.dst, reply.src), (Mac(CLIENT_MAC), Mac(GATEWAY_MAC)));
    let ip = ipv4(&reply);
    assert_eq!((ip.src.octets(), ip.dst.octets(), ip.ttl), (SERVER, CLIENT, 64));
    assert_eq!(ip.l4, L4::Icmp { kind: ECHO_REPLY, code: 0, id: 0x4242 });
    assert_eq!(frame.bytes()[38..], bytes[38..], "identifier, sequence number, data");
}

#[test]
fn padding_and_options_are_not_answered() {
    let mut bytes = Vec::new();
    ethernet()
        .ip(etherparse::IpHeaders::Ipv4(
            etherparse::Ipv4Header {
                options: [7, 7, 4, 0, 0, 0, 0, 0].into(),
                time_to_live: 9,
                dscp: etherparse::IpDscp::try_new(0x2e).unwrap(),
                source: CLIENT,
                destination: SERVER,
                ..Default::default()
            },
            etherparse::Ipv4Extensions::default(),
        ))
        .icmpv4_echo_request(5, 6)
        .write(&mut bytes, b"abc")
        .unwrap();
    bytes.resize(80, 0xee);
    let (mut frame, headers) = parsed(&bytes);
    assert_eq!(ipv4(&headers).header_len, 28);
    echo_reply(&mut frame, &headers).unwrap();
    assert_checksums(frame.bytes());
    assert_eq!(frame.len(), 14 + 20 + 8 + 3);
    let ip = ipv4(&parse(frame.bytes()).unwrap());
    assert_eq!((ip.header_len, ip.total_len, ip.ttl), (20, 31, 64));
    assert_eq!(frame.bytes()[15], 0xb8, "type of service is kept");
    assert_eq!(frame.bytes()[42..], *b"abc");
}

#[test]
fn a_tagged_request_gets_a_tagged_reply() {
    let mut bytes = echo_request(b"x");
    bytes.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
    let (mut frame, headers) = parsed(&bytes);
    echo_reply(&mut frame, &headers).unwrap();
    assert_checksums(frame.bytes());
    assert_eq!(parse(frame.bytes()).unwrap().vlan, 5);
}

#[test]
fn what_is_no_sound_request_is_left_alone() {
    let mut wrong_sum = echo_request(b"x");
    wrong_sum[42] ^= 1;
    let mut fragment = echo_request(b"x");
    fragment[20] = 0x20;
    // Sound but for its type: 8 taken off the first word is added to the checksum.
    let mut reply = echo_request(b"x");
    reply[34] = 0;
    let sum = super::super::checksum::Delta::of_u16(0x0800, 0)
        .apply(u16::from_be_bytes([reply[36], reply[37]]));
    reply[36..38].copy_from_slice(&sum.to_be_bytes());
    assert_checksums(&reply);
    for bytes in [wrong_sum, fragment, reply, udp(b"x")] {
        let (mut frame, headers) = parsed(&bytes);
        assert_eq!(echo_reply(&mut frame, &headers), Err(DropReason::L4Malformed));
        assert_eq!(frame.bytes(), bytes);
    }
}

fn error_for(bytes: &[u8], error: IcmpError) -> Option<Frame> {
    let (original, headers) = parsed(bytes);
    let mut out = Frame::new();
    write_error(&mut out, &original, &headers, ROUTER, error).then_some(out)
}

#[test]
fn an_error_quotes_what_fits() {
    for size in [0, 5, 519, 520, 521, 1400] {
        let mut bytes = udp(&vec![3; size]);
        let packet = bytes.len() - 14;
        bytes.resize(bytes.len().max(60), 0xee);
        let out = error_for(&bytes, IcmpError::PortUnreachable).unwrap();
        assert_checksums(out.bytes());
        assert_eq!(out.len(), 14 + 28 + packet.min(548), "payload of {size}");
        assert_eq!(out.bytes()[42..], bytes[14..14 + packet.min(548)]);
        let headers = parse(out.bytes()).unwrap();
        assert_eq!((headers.dst, headers.src), (Mac(CLIENT_MAC), Mac(GATEWAY_MAC)));
        let ip = ipv4(&headers);
        assert_eq!((ip.src, ip.dst.octets(), ip.ttl), (ROUTER, CLIENT, 64));
        assert_eq!(ip.l4, L4::Icmp { kind: 3, code: 3, id: 0 });
        assert_eq!(out.bytes()[15], 0xc0);
    }
}

#[test]
fn types_codes_and_the_mtu() {
    let cases = [
        (IcmpError::AdminProhibited, [3, 13], 0),
        (IcmpError::FragmentationNeeded { mtu: 1400 }, [3, 4], 1400),
        (IcmpError::HostUnreachable, [3, 1], 0),
        (IcmpError::NetUnreachable, [3, 0], 0),
        (IcmpError::PortUnreachable, [3, 3], 0),
        (IcmpError::TimeExceeded, [11, 0], 0),
    ];
    for (error, kind_code, last) in cases {
        let out = error_for(&tcp(b"hello"), error).unwrap();
        assert_eq!(out.bytes()[34..36], kind_code);
        assert_eq!(out.bytes()[38..40], [0, 0]);
        assert_eq!(out.bytes()[40..42], u16::to_be_bytes(last));
        assert_checksums(out.bytes());
    }
}

#[test]
fn a_tagged_packet_gets_a_tagged_error() {
    let mut bytes = udp(b"x");
    bytes.splice(12..12, [0x88, 0xa8, 0x00, 0x05, 0x81, 0x00, 0x00, 0x06]);
    let out = error_for(&bytes, IcmpError::TimeExceeded).unwrap();
    assert_checksums(out.bytes());
    assert_eq!(out.bytes()[12..20], bytes[12..20]);
}

#[test]
fn what_must_not_be_answered_is_not() {
    let changed = |mut bytes: Vec<u8>, at: usize, values: &[u8]| {
        bytes[at..at + values.len()].copy_from_slice(values);
        bytes
    };
    let silent = [
        ("an ICMP error", changed(echo_request(b"x"), 34, &[3])),
        ("an unknown ICMP type", changed(echo_request(b"x"), 34, &[200])),
        ("ICMP cut short", changed(echo_request(b"x"), 16, &[0, 24])),
        ("a later fragment", changed(udp(b"x"), 20, &[0x00, 0x01])),
        ("an Ethernet broadcast", changed(udp(b"x"), 0, &[0xff; 6])),
        ("an Ethernet multicast", changed(udp(b"x"), 0, &[1])),
        ("a source MAC of zero", changed(udp(b"x"), 6, &[0; 6])),
        ("an IP broadcast", changed(udp(b"x"), 30, &[255; 4])),
        ("an IP multicast", changed(udp(b"x"), 30, &[224, 0, 0, 251])),
        ("no source", changed(udp(b"x"), 26, &[0; 4])),
        ("a loopback source", changed(udp(b"x"), 26, &[127, 0, 0, 1])),
        ("a multicast source", changed(udp(b"x"), 26, &[224, 0, 0, 1])),
        ("a broadcast source", changed(udp(b"x"), 26, &[255; 4])),
    ];
    for (what, bytes) in silent {
        assert!(error_for(&bytes, IcmpError::TimeExceeded).is_none(), "{what}");
    }
    let answered = [
        ("an echo request", echo_request(b"x")),
        ("an echo reply", changed(echo_request(b"x"), 34, &[0])),
        ("a first fragment", changed(udp(b"x"), 20, &[0x20, 0x00])),
        ("another protocol", changed(udp(b"x"), 23, &[132])),
    ];
    for (what, bytes) in answered {
        assert!(error_for(&bytes, IcmpError::TimeExceeded).is_some(), "{what}");
    }
}

fn inner_of(error: &Frame) -> Result<InnerPacket, DropReason> {
    parse_inner(error.bytes(), &ipv4(&parse(error.bytes()).unwrap()))
}

#[test]
fn the_quote_is_read() {
    let inner = inner_of(&error_for(&tcp(b"hello"), IcmpError::TimeExceeded).unwrap()).unwrap();
    assert_eq!((inner.offset, inner.header_len, inner.quoted_len), (42, 20, 25));
    assert_eq!((inner.src.octets(), inner.dst.octets(), inner.proto), (CLIENT, SERVER, 6));
    assert_eq!(inner.l4, InnerL4::Ports { src_port: 40_000, dst_port: 80 });
    let inner = inner_of(&error_for(&udp(b""), IcmpError::TimeExceeded).unwrap()).unwrap();
    assert_eq!(inner.l4, InnerL4::Ports { src_port: 40_000, dst_port: 53 });
    let inner = inner_of(&error_for(&echo_request(b""), IcmpError::TimeExceeded).unwrap()).unwrap();
    assert_eq!(inner.l4, InnerL4::Query { kind: 8, id: 0x4242 });
}

/// Sets the checksum of the error anew.
fn seal(error: &mut Frame) {
    let bytes = error.bytes_mut();
    bytes[36..38].copy_from_slice(&[0, 0]);
    let sum = !slow_sum(&bytes[34..]);
    bytes[36..38].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn a_quote_with_options_and_extensions() {
    // A packet with a router alert, 36 bytes quoted and padded to 128 with RFC 4884 behind it.
    let mut error = error_for(&tcp(&[1; 100]), IcmpError::TimeExceeded).unwrap();
    error.resize(14 + 28 + 128 + 8);
    let bytes = error.bytes_mut();
    bytes.copy_within(62..62 + 100, 66);
    bytes[62..66].copy_from_slice(&[0x94, 4, 0, 0]);
    bytes[42] = 0x46;
    bytes[44..46].copy_from_slice(&300u16.to_be_bytes());
    bytes[52..54].copy_from_slice(&[0, 0]);
    let sum = !slow_sum(&bytes[42..66]);
    bytes[52..54].copy_from_slice(&sum.to_be_bytes());
    bytes[39] = 32;
    let total = u16::try_from(bytes.len() - 14).unwrap();
    bytes[16..18].copy_from_slice(&total.to_be_bytes());
    seal(&mut error);
    let inner = inner_of(&error).unwrap();
    assert_eq!((inner.header_len, inner.quoted_len), (24, 128 - 24), "extensions not counted");
    assert_eq!(inner.l4, InnerL4::Ports { src_port: 40_000, dst_port: 80 });
}

/// Rows: RFC 5508 REQ-3.
#[test]
fn wrong_checksums_are_refused() {
    let good = error_for(&tcp(b"hello"), IcmpError::TimeExceeded).unwrap();
    let mut outer = frame(good.bytes());
    outer.bytes_mut()[70] ^= 1;
    assert_eq!(inner_of(&outer), Err(DropReason::L4Malformed));
    let mut inner = frame(good.bytes());
    inner.bytes_mut()[50] ^= 1;
    seal(&mut inner);
    assert_eq!(inner_of(&inner), Err(DropReason::Ipv4Checksum));
    // The quoted transport checksum is nobody's business.
    let mut transport = frame(good.bytes());
    transport.bytes_mut()[78] ^= 1;
    seal(&mut transport);
    assert!(inner_of(&transport).is_ok());
}

#[test]
fn quotes_that_are_no_packet_are_refused() {
    let good = error_for(&tcp(b"hello"), IcmpError::TimeExceeded).unwrap();
    for (at, value) in [(42, 0x65), (42, 0x44), (42, 0x4f)] {
        let mut error = frame(good.bytes());
        error.bytes_mut()[at] = value;
        seal(&mut error);
        assert!(inner_of(&error).is_err(), "byte {at} = {value:#x}");
    }
    assert_eq!(inner_of(&frame(&echo_request(b"x"))), Err(DropReason::L4Malformed));
    for keep in 0..20 {
        let mut error = frame(good.bytes());
        error.truncate(42 + keep);
        let total = u16::try_from(28 + keep).unwrap();
        error.bytes_mut()[16..18].copy_from_slice(&total.to_be_bytes());
        seal(&mut error);
        assert_eq!(inner_of(&error), Err(DropReason::L4Malformed), "{keep} bytes quoted");
    }
}

#[test]
fn an_error_from_the_outside_about_a_later_fragment_has_no_ports() {
    let mut error = error_for(&udp(&[0; 20]), IcmpError::TimeExceeded).unwrap();
    let bytes = error.bytes_mut();
    bytes[48..50].copy_from_slice(&[0, 0x10]);
    bytes[52..54].copy_from_slice(&[0, 0]);
    let sum = !slow_sum(&bytes[42..62]);
    bytes[52..54].copy_from_slice(&sum.to_be_bytes());
    seal(&mut error);
    let inner = inner_of(&error).unwrap();
    assert_eq!((inner.frag_offset, inner.l4), (128, InnerL4::None));
    assert_ne!(EXTERNAL, inner.src);
}
