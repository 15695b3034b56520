mod ipv6;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::*;
use crate::frame::Frame;
use crate::io::Port;
use crate::io::packet_socket::{PacketOptions, PacketSocket};
use crate::io::sys::bpf::test_run;
use crate::io::testing::{Netns, command, ip, uninterrupted, wait_until_up};
use crate::pool::Pool;

const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// What both programs make of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Ours,
    Both,
    Host,
}

fn run(steering: &Steering, frame: &[u8]) -> Seen {
    let classified = test_run(steering.classifier_fd(), frame).unwrap();
    match (classified.cast_signed(), filter(steering, frame)) {
        (TC_ACT_SHOT, ACCEPT) => Seen::Ours,
        (TC_ACT_UNSPEC, ACCEPT) => Seen::Both,
        (TC_ACT_UNSPEC, REJECT) => Seen::Host,
        other => panic!("{other:?}"),
    }
}

fn filter(steering: &Steering, frame: &[u8]) -> i32 {
    // A socket filter is test-run from the network header on, but runs from the Ethernet header on
    // in a packet socket: one more Ethernet header in front makes up for it.
    let mut padded = vec![0; 14];
    padded.extend(frame);
    test_run(steering.filter_fd(), &padded).unwrap().cast_signed()
}

/// An IPv4 packet with `options` words of options and `fragment` in the flags and offset field.
fn ipv4(
    proto: u8,
    (src, dst): (Ipv4Addr, Ipv4Addr),
    options: u8,
    fragment: u16,
    l4: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x45 + options, 0, 0, 60, 0, 1];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, proto, 0, 0]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend(vec![1; usize::from(options) * 4]);
    packet.extend(l4);
    packet
}

/// To the null MAC, that of the loopback device on which a test run takes place.
fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn l4(src_port: u16, dst_port: u16) -> Vec<u8> {
    [src_port.to_be_bytes(), dst_port.to_be_bytes(), [0; 2], [0; 2]].concat()
}

fn echo(kind: u8, id: u16) -> Vec<u8> {
    [[kind, 0], [0; 2], id.to_be_bytes(), [0; 2]].concat()
}

fn to_us(proto: u8, l4: &[u8]) -> Vec<u8> {
    ethernet(0x0800, &ipv4(proto, (PEER, OURS), 0, 0, l4))
}

/// An ICMP error of `kind` to us about `inner`.
fn error(kind: u8, inner: &[u8]) -> Vec<u8> {
    to_us(1, &[&[kind, 0, 0, 0, 0, 0, 0, 0], inner].concat())
}

/// Slot 3 has our address, TCP ports 40000-40999 and 80, UDP port 65535, SCTP port 36412 and identifier 7.
fn steering() -> Steering {
    let mut steering = Steering::load().unwrap();
    let mut tcp = PortBitmap::new();
    tcp.insert_range(40_000, 40_999);
    tcp.insert(80);
    let [mut udp, mut icmp, mut sctp] = [(); 3].map(|()| PortBitmap::new());
    udp.insert(65_535);
    sctp.insert(36_412);
    icmp.insert(7);
    steering.slots.set_address(3, Some(OURS.into())).unwrap();
    steering.slots.set_ports(3, SteerProto::Tcp, &tcp).unwrap();
    steering.slots.set_ports(3, SteerProto::Udp, &udp).unwrap();
    steering.slots.set_ports(3, SteerProto::Icmp, &icmp).unwrap();
    steering.slots.set_ports(3, SteerProto::Sctp, &sctp).unwrap();
    steering
}

#[test]
fn a_bitmap_is_a_set() {
    let mut bitmap = PortBitmap::new();
    for (first, last) in [(0, 0), (63, 64), (100, 300), (65_535, 65_535), (9, 8)] {
        bitmap.insert_range(first, last);
    }
    bitmap.remove_range(128, 191);
    bitmap.remove_range(300, 300);
    let expected = |port| {
        matches!(port, 0 | 63 | 64 | 65_535)
            || (100..300).contains(&port) && !(128..192).contains(&port)
    };
    for port in 0..=u16::MAX {
        assert_eq!(bitmap.contains(port), expected(port), "{port}");
    }
    assert_eq!(bitmap.count(), 4 + 200 - 64);
    bitmap.insert_range(0, u16::MAX);
    assert_eq!(bitmap.count(), 65_536);
}

#[test]
#[ignore = "needs root"]
fn ports_and_identifiers_decide() {
    let steering = steering();
    for (proto, bytes, expected) in [
        (6, l4(1, 40_000), Seen::Ours),
        (6, l4(1, 40_999), Seen::Ours),
        (6, l4(1, 80), Seen::Ours),
        (6, l4(1, 39_999), Seen::Host),
        (6, l4(1, 41_000), Seen::Host),
        (6, l4(40_000, 1), Seen::Host),
        (6, l4(1, 65_535), Seen::Host),
        (17, l4(1, 65_535), Seen::Ours),
        (17, l4(1, 40_000), Seen::Host),
        (17, l4(1, 65_534), Seen::Host),
        (1, echo(0, 7), Seen::Both),
        (1, echo(0, 8), Seen::Host),
        (1, echo(8, 7), Seen::Host),
        (1, echo(13, 7), Seen::Host),
        (132, l4(1, 36_412), Seen::Ours),
        (132, l4(36_412, 1), Seen::Host),
        (132, l4(1, 40_000), Seen::Host),
        (33, l4(1, 36_412), Seen::Host),
    ] {
        assert_eq!(run(&steering, &to_us(proto, &bytes)), expected, "{proto} {bytes:?}");
        let options = ipv4(proto, (PEER, OURS), 10, 0, &bytes);
        assert_eq!(run(&steering, &ethernet(0x0800, &options)), expected, "{proto} {bytes:?}");
        let elsewhere = ipv4(proto, (PEER, OTHER), 0, 0, &bytes);
        assert_eq!(run(&steering, &ethernet(0x0800, &elsewhere)), Seen::Host);
    }
}

#[test]
#[ignore = "needs root"]
fn errors_follow_the_packet_within() {
    let steering = steering();
    let inner = |proto, l4: &[u8]| ipv4(proto, (OURS, PEER), 0, 0x4000, l4);
    for kind in [3, 4, 5, 11, 12] {
        for (packet, expected) in [
            (inner(6, &l4(40_000, 1)), Seen::Ours),
            (inner(6, &l4(1, 40_000)), Seen::Host),
            (inner(17, &l4(65_535, 1)), Seen::Ours),
            (inner(17, &l4(40_000, 1)), Seen::Host),
            (inner(1, &echo(8, 7)), Seen::Both),
            (inner(1, &echo(8, 6)), Seen::Host),
            (inner(1, &echo(0, 7)), Seen::Host),
            (inner(132, &l4(36_412, 1)), Seen::Ours),
            (inner(132, &l4(40_000, 1)), Seen::Host),
            // With options; the first fragment; a later one; of somebody else.
            (ipv4(6, (OURS, PEER), 5, 0, &l4(40_000, 1)), Seen::Ours),
            (ipv4(6, (OURS, PEER), 0, 0x2000, &l4(40_000, 1)), Seen::Ours),
            (ipv4(6, (OURS, PEER), 0, 0x2001, &l4(40_000, 1)), Seen::Both),
            (ipv4(6, (OTHER, PEER), 0, 0x2001, &l4(40_000, 1)), Seen::Host),
            (ipv4(6, (OTHER, PEER), 0, 0, &l4(40_000, 1)), Seen::Host),
        ] {
            assert_eq!(run(&steering, &error(kind, &packet)), expected, "{kind} {packet:?}");
        }
    }
    // A message that is none of these errors, whatever is in it.
    assert_eq!(run(&steering, &error(14, &inner(6, &l4(40_000, 1)))), Seen::Host);
}

#[test]
#[ignore = "needs root"]
fn what_cannot_be_told_apart_goes_to_both() {
    let steering = steering();
    let fragment = |dst, field| {
        run(&steering, &ethernet(0x0800, &ipv4(17, (PEER, dst), 0, field, &l4(1, 65_535))))
    };
    assert_eq!(fragment(OURS, 0x2000), Seen::Ours); // the first one has the ports
    assert_eq!(fragment(OURS, 0x2001), Seen::Both);
    assert_eq!(fragment(OURS, 0x0001), Seen::Both);
    assert_eq!(fragment(OTHER, 0x0001), Seen::Host);
    assert_eq!(run(&steering, &ethernet(0x0806, &[0; 28])), Seen::Both);
}

#[test]
#[ignore = "needs root"]
fn malformed_and_foreign_frames_are_the_host_s() {
    let steering = steering();
    let sound = to_us(6, &l4(1, 80));
    let within = error(3, &ipv4(1, (OURS, PEER), 0, 0, &echo(8, 7)));
    for (whole, seen) in [(&sound[..38], Seen::Ours), (&within[..], Seen::Both)] {
        assert_eq!(run(&steering, whole), seen);
        for len in 1..whole.len() {
            assert_eq!(filter(&steering, &whole[..len]), REJECT, "{len} bytes");
        }
        // The kernel test-runs a classifier on whole IPv4 headers only.
        for len in 34..whole.len() {
            assert_eq!(run(&steering, &whole[..len]), Seen::Host, "{len} bytes");
        }
    }
    for version in [0x35, 0x55, 0x65, 0x44, 0x40, 0x4f] {
        let mut frame = sound.clone();
        frame[14] = version;
        assert_eq!(run(&steering, &frame), Seen::Host, "{version:x}");
    }
    let mut tagged = ethernet(0x8100, &[0, 5, 8, 0]);
    tagged.extend(&sound[14..]);
    assert_eq!(run(&steering, &tagged), Seen::Host);
    let mut for_another = sound;
    for_another[5] = 9;
    assert_eq!(
        test_run(steering.classifier_fd(), &for_another).unwrap().cast_signed(),
        TC_ACT_UNSPEC
    );
}

#[test]
#[ignore = "needs root"]
fn slots_change_while_programs_run() {
    let mut steering = steering();
    let frame = to_us(6, &l4(1, 80));
    let elsewhere = ethernet(0x0800, &ipv4(6, (PEER, OTHER), 0, 0, &l4(1, 80)));
    // The same address twice, and no such slot.
    assert_eq!(
        steering.slots.set_address(4, Some(OURS.into())).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    let bitmap = PortBitmap::new();
    assert!(steering.slots.set_address(SLOTS, Some(OTHER.into())).is_err());
    assert!(steering.slots.set_ports(SLOTS, SteerProto::Tcp, &bitmap).is_err());
    // Another address for the slot takes its ports along.
    steering.slots.set_address(3, Some(OTHER.into())).unwrap();
    assert_eq!((run(&steering, &frame), run(&steering, &elsewhere)), (Seen::Host, Seen::Ours));
    // Slots have ports of their own, up to the last one.
    steering.slots.set_address(SLOTS - 1, Some(OURS.into())).unwrap();
    assert_eq!(run(&steering, &frame), Seen::Host);
    let mut all = PortBitmap::new();
    all.insert_range(0, u16::MAX);
    steering.slots.set_ports(SLOTS - 1, SteerProto::Icmp, &all).unwrap();
    assert_eq!(run(&steering, &frame), Seen::Host);
    assert_eq!(run(&steering, &to_us(1, &echo(0, u16::MAX))), Seen::Both);
    steering.slots.set_ports(SLOTS - 1, SteerProto::Icmp, &bitmap).unwrap();
    assert_eq!(run(&steering, &to_us(1, &echo(0, u16::MAX))), Seen::Host);
    // A slot without address has no ports when it gets one again.
    steering.slots.set_address(3, None).unwrap();
    assert_eq!(run(&steering, &elsewhere), Seen::Host);
    steering.slots.set_address(3, Some(OTHER.into())).unwrap();
    assert_eq!(run(&steering, &elsewhere), Seen::Host);
    for slot in 0..SLOTS {
        let last = u8::try_from(slot).unwrap();
        steering.slots.set_address(slot, Some(Ipv4Addr::new(10, 0, 0, last).into())).unwrap();
    }
}

/// Sends one netlink request and waits for its acknowledgement.
fn netlink(kind: u16, flags: u16, tcm: [u32; 4], attributes: &[u8]) {
    let ifindex = if_nametoindex("ours").unwrap();
    let len = u32::try_from(16 + 20 + attributes.len()).unwrap();
    let mut message = Vec::new();
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | 0x5).to_ne_bytes()); // NLM_F_REQUEST | NLM_F_ACK
    message.extend([0; 8]);
    let [family, handle, parent, info] = tcm;
    for field in [family, ifindex, handle, parent, info] {
        message.extend(field.to_ne_bytes());
    }
    message.extend(attributes);
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
    .unwrap();
    send(fd.as_raw_fd(), &message, MsgFlags::empty()).unwrap();
    let mut answer = [0; 4096];
    recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
    let errno = i32::from_ne_bytes(answer[16..20].try_into().unwrap());
    assert_eq!(errno, 0, "netlink request {kind}");
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(value.len() + 4).unwrap();
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Attaches the classifier to the ingress of `ours`, as control does.
fn attach(steering: &Steering) {
    const CREATE: u16 = 0x400;
    let clsact = attribute(1, b"clsact\0");
    netlink(36, CREATE, [0, 0xffff_0000, 0xffff_fff1, 0], &clsact); // RTM_NEWQDISC
    let fd = steering.classifier_fd().as_raw_fd();
    let options = [
        attribute(6, &fd.to_ne_bytes()),   // TCA_BPF_FD
        attribute(7, b"vswitchd\0"),       // TCA_BPF_NAME
        attribute(8, &1u32.to_ne_bytes()), // TCA_BPF_FLAGS: direct action
    ]
    .concat();
    let filter = [attribute(1, b"bpf\0"), attribute(2, &options)].concat();
    let all_protocols = u32::from(3u16.to_be());
    netlink(44, CREATE, [0, 0, 0xffff_fff2, 1 << 16 | all_protocols], &filter); // RTM_NEWTFILTER
}

#[test]
#[ignore = "needs root"]
fn on_a_shared_interface_host_and_engine_get_what_is_theirs() {
    // Answers come at once, but the machine may be busy; silence is not waited for that long.
    const LONG: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(300);
    let (near, far) = (Netns::new(), Netns::new());
    near.run(|| {
        ip("link add ours type veth peer name theirs");
        ip(&format!("link set theirs netns {}", far.path()));
        ip("address add 192.0.2.2/24 dev ours");
        ip("link set ours up");
    });
    far.run(|| {
        ip("address add 192.0.2.1/24 dev theirs");
        ip("link set theirs up");
        wait_until_up("theirs");
    });
    near.run(|| wait_until_up("ours"));
    let mut steering = steering();
    let mut udp = PortBitmap::new();
    udp.insert(40_000);
    steering.slots.set_ports(3, SteerProto::Udp, &udp).unwrap();
    let (listener, socket) = near.run(|| {
        attach(&steering);
        let filter = Some(steering.filter_fd());
        let options = PacketOptions { filter, ..PacketOptions::default() };
        (
            TcpListener::bind("192.0.2.2:8080").unwrap(),
            PacketSocket::open("ours", &options).unwrap(),
        )
    });
    let connect = |port, timeout| {
        far.run(|| TcpStream::connect_timeout(&(OURS, port).into(), timeout).map(|_| ()))
            .map_err(|error| error.kind())
    };
    // The host's own: a service answers, a closed port refuses, ping gets its reply.
    assert_eq!(connect(8080, LONG), Ok(()));
    listener.accept().unwrap();
    assert_eq!(connect(8081, LONG), Err(ErrorKind::ConnectionRefused));
    far.run(|| command("ping -c 1 -W 5 192.0.2.2"));
    // Ours: nobody in the host answers, neither with RST nor with ICMP.
    assert_eq!(connect(40_500, SHORT), Err(ErrorKind::TimedOut));
    let datagram = |port: u16, timeout| {
        far.run(|| {
            let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
            socket.connect((OURS, port)).unwrap();
            socket.set_read_timeout(Some(timeout)).unwrap();
            socket.send(b"x").unwrap();
            uninterrupted(|| socket.recv(&mut [0; 8])).unwrap_err().kind()
        })
    };
    assert_eq!(datagram(40_001, LONG), ErrorKind::ConnectionRefused);
    assert_eq!(datagram(40_000, SHORT), ErrorKind::WouldBlock);
    // The engine's socket has seen ARP, neighbors, the connection attempt and the datagram, nothing else.
    let mut rx = Box::new(socket).split(0).unwrap().rx;
    let mut frames: Vec<Frame> = Vec::new();
    rx.rx(64, &mut Pool::new(64), &mut frames).unwrap();
    let mut tcp = 0;
    let mut udp = 0;
    for frame in &frames {
        let bytes = frame.bytes();
        match (&bytes[12..14], bytes[23]) {
            ([8, 6], _) => {}
            // The kernel looks whether it has its link-local address alone.
            ([0x86, 0xdd], _) => assert_eq!(bytes[54], 135, "not ours: {bytes:02x?}"),
            ([8, 0], 6) => {
                assert_eq!(bytes[36..38], 40_500u16.to_be_bytes());
                tcp += 1;
            }
            ([8, 0], 17) => {
                assert_eq!(bytes[36..38], 40_000u16.to_be_bytes());
                udp += 1;
            }
            _ => panic!("not ours: {bytes:02x?}"),
        }
    }
    assert!(tcp >= 1 && udp == 1, "{tcp} {udp}");
    // When the engine has gone, the interface still holds the program.
    drop((steering, rx));
    assert_eq!(connect(40_500, SHORT), Err(ErrorKind::TimedOut));
    assert_eq!(connect(8080, LONG), Ok(()));
}
