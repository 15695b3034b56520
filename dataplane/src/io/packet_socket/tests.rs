use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::socket::setsockopt;

use super::*;
use crate::io::poll::Poller;
use crate::io::ring::Ring;
use crate::io::testing::{Netns, WAIT, command, halves, ip, receive, uninterrupted, wait_until_up};
use crate::io::vnet_hdr::{F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_UDP_L4};
use crate::packet::types::PortId;

const BOTH: [Receive; 2] = [Receive::Ring(DEFAULT_SLOTS), Receive::Stream];

/// Two namespaces with a cable between `ours` in the first and `theirs` (192.0.2.1/24) in the
/// second. The neighbor 192.0.2.2 of the second is only an entry in its table.
struct Cable {
    near: Netns,
    far: Netns,
}

impl Cable {
    fn new() -> Self {
        let (near, far) = (Netns::new(), Netns::new());
        near.run(|| {
            ip("link add ours address 02:00:00:00:00:02 type veth peer name theirs");
            ip(&format!("link set theirs netns {}", far.path()));
            ip("link set ours up");
        });
        far.run(|| {
            // Silence: no router solicitations among the frames counted below.
            command("sysctl -qw net.ipv6.conf.theirs.disable_ipv6=1");
            ip("link set theirs address 02:00:00:00:00:01 up");
            ip("address add 192.0.2.1/24 dev theirs");
            ip("neighbor add 192.0.2.2 lladdr 02:00:00:00:00:02 dev theirs");
            wait_until_up("theirs");
        });
        // What is sent before is lost without a word.
        near.run(|| wait_until_up("ours"));
        Self { near, far }
    }

    fn open(&self, options: &PacketOptions<'_>) -> PacketSocket {
        self.near.run(|| PacketSocket::open("ours", options).unwrap())
    }
}

fn is_udp(frame: &Frame) -> bool {
    frame.bytes().get(12..14) == Some(&[8, 0]) && frame.bytes().get(23) == Some(&17)
}

/// Turns addresses and ports of an untagged UDP frame round: a partial or complete checksum stays.
fn turn_round(frame: &mut Frame) {
    let bytes = frame.bytes_mut();
    let (left, right) = bytes.split_at_mut(6);
    left.swap_with_slice(&mut right[..6]);
    bytes[26..34].rotate_left(4);
    bytes[34..38].rotate_left(2);
}

#[test]
fn kernel_releases_are_compared_by_number() {
    for (release, expected) in [
        ("6.2.0", true),
        ("6.18.44-fc", true),
        ("10.0", true),
        ("6.1.99", false),
        ("5.10.0-21-amd64", false),
        ("6.2rc1", true),
        ("unknown", false),
        ("", false),
    ] {
        assert_eq!(at_least(release, (6, 2)), expected, "{release}");
    }
}

#[test]
fn a_frame_that_is_not_all_there_is_refused() {
    let mut frame = Frame::new();
    let vnet = VnetHdr { csum_start: 34, hdr_len: 54, ..VnetHdr::default() };
    let bytes = b"dst-mmsrc-mm\x08\x00payload";
    let tag = [0x81, 0, 0x20, 5];
    let received = Received { vnet: vnet.encode(), bytes, whole: true, tag: Some(tag) };
    assert!(fill(&mut frame, received));
    assert_eq!(frame.bytes(), b"dst-mmsrc-mm\x81\x00\x20\x05\x08\x00payload");
    assert!(fill(&mut frame, Received { tag: None, ..received }));
    assert_eq!((frame.bytes(), frame.vnet), (&bytes[..], vnet));
    assert!(!fill(&mut frame, Received { whole: false, ..received }));
    let huge = vec![0; MAX_FRAME_LEN];
    assert!(fill(&mut frame, Received { bytes: &huge, tag: None, ..received }));
    assert!(!fill(&mut frame, Received { bytes: &huge, ..received }));
    // Shorter than the addresses: cannot come from a kernel, must not panic.
    assert!(fill(&mut frame, Received { bytes: b"abc", ..received }));
}

#[test]
#[ignore = "needs root"]
fn interfaces_that_cannot_be_had_are_named() {
    Netns::new().run(|| {
        let options = PacketOptions::default();
        let error = PacketSocket::open("nosuch", &options).unwrap_err();
        assert!(matches!(error, PacketSocketError::NoInterface(_)), "{error}");
        let error = PacketSocket::open("a-name-far-too-long", &options).unwrap_err();
        assert!(matches!(error, PacketSocketError::NoInterface(_)), "{error}");
        let error = PacketSocket::open("lo", &options).unwrap_err();
        assert!(matches!(error, PacketSocketError::NotEthernet(_)), "{error}");
    });
}

#[test]
#[ignore = "needs root"]
fn frames_and_offload_state_pass_both_ways() {
    for how in BOTH {
        let cable = Cable::new();
        let (mut rx, mut tx) =
            halves(cable.open(&PacketOptions { receive: how, ..PacketOptions::default() }));
        let mut pool = Pool::new(4);
        let socket = cable.far.run(|| UdpSocket::bind("192.0.2.1:5000").unwrap());
        socket.set_read_timeout(WAIT).unwrap();
        socket.send_to(b"over there", "192.0.2.2:6000").unwrap();
        let mut frame = receive(&mut *rx, &mut pool, is_udp);
        assert_eq!(frame.len(), 52);
        assert_eq!(frame.vnet.flags, F_NEEDS_CSUM);
        assert_eq!((frame.vnet.csum_start, frame.vnet.csum_offset), (34, 6));
        turn_round(&mut frame);
        let report = tx.tx_copy(&mut frame, &mut pool);
        assert_eq!(report, TxReport { sent: 1, sent_bytes: 52, ..TxReport::default() });
        let mut buffer = [0; 64];
        let (len, from) = uninterrupted(|| socket.recv_from(&mut buffer)).unwrap();
        assert_eq!(&buffer[..len], b"over there");
        assert_eq!(from.to_string(), "192.0.2.2:6000");
        // What we sent ourselves does not come back.
        let mut batch = Vec::new();
        while rx.rx(4, &mut pool, &mut batch).unwrap() > 0 {
            assert!(!batch.drain(..).any(|frame| is_udp(&frame)));
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_large_send_passes_both_ways_as_one_frame() {
    for how in BOTH {
        let cable = Cable::new();
        let (mut rx, mut tx) =
            halves(cable.open(&PacketOptions { receive: how, ..PacketOptions::default() }));
        let mut pool = Pool::new(4);
        let socket = cable.far.run(|| UdpSocket::bind("192.0.2.1:5000").unwrap());
        socket.set_read_timeout(WAIT).unwrap();
        setsockopt(&socket, sockopt::UdpGsoSegment, &1000).unwrap();
        socket.send_to(&[7; 40_000], "192.0.2.2:6000").unwrap();
        let mut frame = receive(&mut *rx, &mut pool, is_udp);
        // Before Linux 6.2 the stack segments by itself.
        let whole = kernel_has_uso();
        let expected = if whole { (40_042, GSO_UDP_L4, 1000) } else { (1042, GSO_NONE, 0) };
        assert_eq!((frame.len(), frame.vnet.gso_type, frame.vnet.gso_size), expected);
        turn_round(&mut frame);
        assert_eq!(tx.tx_copy(&mut frame, &mut pool).sent, 1);
        let mut buffer = [0; 2000];
        for _ in 0..if whole { 40 } else { 1 } {
            assert_eq!(uninterrupted(|| socket.recv(&mut buffer)).unwrap(), 1000);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn the_kernel_cuts_and_sums_for_a_card_that_does_not() {
    if !kernel_has_uso() {
        // Nothing to cut: such a kernel refuses the frame.
        eprintln!(
            "SKIPPED: the_kernel_cuts_and_sums_for_a_card_that_does_not: no UDP segmentation"
        );
        return;
    }
    let cable = Cable::new();
    cable.near.run(|| command("ethtool -K ours tx off tso off gso off"));
    let (_rx, mut tx) = halves(cable.open(&PacketOptions::default()));
    let mut pool = Pool::new(1);
    let socket = cable.far.run(|| UdpSocket::bind("192.0.2.1:5000").unwrap());
    socket.set_read_timeout(WAIT).unwrap();
    let mut bytes = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4([192, 0, 2, 2], [192, 0, 2, 1], 64)
        .udp(6000, 5000)
        .write(&mut bytes, &[7; 5000])
        .unwrap();
    let mut frame = pool.take().unwrap();
    frame.copy_from(&bytes);
    // The sum of the pseudo-header, not inverted.
    let words = [0xc000, 0x0202, 0xc000, 0x0201, 17, frame.len() - 34];
    let sum = words.iter().sum::<usize>();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap().to_be_bytes();
    frame.bytes_mut()[40..42].copy_from_slice(&sum);
    frame.vnet = VnetHdr {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        hdr_len: 42,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 6,
    };
    assert_eq!(tx.tx_copy(&mut frame, &mut pool).sent, 1);
    let mut buffer = [0; 2000];
    for _ in 0..5 {
        assert_eq!(uninterrupted(|| socket.recv(&mut buffer)).unwrap(), 1000);
    }
}

/// Addresses, tag (priority 1, VLAN 5), IPv4, UDP whose checksum is left to the device.
fn tagged(tpid: [u8; 2]) -> Frame {
    let mut bytes = vec![2; 12];
    bytes.extend(tpid);
    bytes.extend([0x20, 5, 8, 0, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0]);
    bytes.extend([192, 0, 2, 1, 192, 0, 2, 2, 0, 7, 0, 9, 0, 12, 0, 0, 1, 2, 3, 4]);
    let mut frame = Frame::new();
    frame.copy_from(&bytes);
    frame.vnet =
        VnetHdr { flags: F_NEEDS_CSUM, csum_start: 38, csum_offset: 6, ..Default::default() };
    frame
}

/// Of one kind, of the other, none, two in a row.
fn with_and_without_tags() -> [Frame; 4] {
    let [mut none, mut two] = [Frame::new(), Frame::new()];
    none.copy_from(&[&[2; 12], &[0x88, 0xb5][..], &[7; 46]].concat());
    two.copy_from(
        &[&[2; 12], &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 5, 0x88, 0xb5][..], &[7; 46]].concat(),
    );
    [tagged([0x81, 0]), tagged([0x88, 0xa8]), none, two]
}

#[test]
#[ignore = "needs root"]
fn a_vlan_tag_arrives_as_it_was_sent() {
    for how in BOTH {
        let cable = Cable::new();
        let options = PacketOptions { receive: how, ..PacketOptions::default() };
        let (mut rx, _tx) = halves(cable.open(&options));
        let far = cable.far.run(|| PacketSocket::open("theirs", &options).unwrap());
        let (_far_rx, mut far_tx) = halves(far);
        let mut pool = Pool::new(4);
        for mut frame in with_and_without_tags() {
            assert_eq!(far_tx.tx_copy(&mut frame, &mut pool).sent, 1);
            let came = receive(&mut *rx, &mut pool, |came| came.bytes().starts_with(&[2; 12]));
            assert_eq!((came.bytes(), came.vnet), (frame.bytes(), frame.vnet), "{how:?}");
            pool.put(came);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_vlan_tag_arrives_by_a_workers_ring_too() {
    const PORT: PortId = PortId(1);
    let Ok(mut ring) = Ring::new() else {
        return eprintln!("SKIPPED: no io_uring here");
    };
    let cable = Cable::new();
    let options = PacketOptions { receive: Receive::Stream, ..PacketOptions::default() };
    let (rx, _tx) = halves(cable.open(&options));
    let far = cable.far.run(|| PacketSocket::open("theirs", &options).unwrap());
    let (_far_rx, mut far_tx) = halves(far);
    let (mut pool, poller) = (Pool::new(80), Poller::new().unwrap());
    ring.add(PORT, rx.reading());
    let next = |ring: &mut Ring, pool: &mut Pool| {
        let mut came = Vec::new();
        for _ in 0..100 {
            ring.wait(Duration::from_millis(100), pool, poller.fd(), |_| rx.stream());
            ring.take(&mut came, 1, usize::MAX);
            if let Some(frame) = came.pop() {
                if frame.bytes().starts_with(&[2; 12]) {
                    return frame;
                }
                pool.put(frame);
            }
        }
        panic!("no frame in time")
    };
    // Until it is being read.
    ring.wait(Duration::ZERO, &mut pool, poller.fd(), |_| rx.stream());
    // More than there are buffers.
    for _ in 0..40 {
        for mut frame in with_and_without_tags() {
            assert_eq!(far_tx.tx_copy(&mut frame, &mut pool).sent, 1);
            let came = next(&mut ring, &mut pool);
            assert_eq!((came.bytes(), came.vnet), (frame.bytes(), frame.vnet));
            assert_eq!(came.ingress, PORT);
            pool.put(came);
        }
    }
    ring.remove(PORT, &mut pool);
}

#[test]
#[ignore = "needs root"]
fn only_the_frame_at_fault_is_refused() {
    let cable = Cable::new();
    let (_rx, mut tx) = halves(cable.open(&PacketOptions::default()));
    let mut pool = Pool::new(100);
    let mut frames = Vec::new();
    for number in 0..100 {
        let mut frame = pool.take().unwrap();
        frame.copy_from(&[0; 60]);
        match number {
            3 | 40 => frame.vnet.gso_type = GSO_TCPV4, // without a segment size
            70 => frame.copy_from(&[0; 2000]),         // beyond the MTU
            99 => frame.copy_from(&[0; 13]),           // shorter than a header
            _ => {}
        }
        frames.push(frame);
    }
    let report = tx.tx(&mut frames, &mut pool);
    let expected = TxReport { sent: 96, sent_bytes: 96 * 60, refused: 4, ..TxReport::default() };
    assert_eq!(report, expected);
    assert_eq!(pool.available(), 100);
    let mut frame = pool.take().unwrap();
    frame.copy_from(&[0; 60]);
    assert_eq!(tx.tx_copy(&mut frame, &mut pool).sent, 1);
}

#[test]
#[ignore = "needs root"]
fn a_full_ring_is_counted() {
    let cable = Cable::new();
    let socket = cable
        .open(&PacketOptions { receive: Receive::Ring(NonZeroUsize::MIN), ..Default::default() });
    let counters = socket.counters();
    let (mut rx, _tx) = halves(socket);
    let sender = cable.far.run(|| UdpSocket::bind("192.0.2.1:5000").unwrap());
    for _ in 0..10 {
        sender.send_to(b"burst", "192.0.2.2:6000").unwrap();
    }
    let mut pool = Pool::new(2);
    let frame = receive(&mut *rx, &mut pool, |_| true);
    pool.put(frame);
    assert!(counters.read().full >= 9, "{:?}", counters.read());
    let before = counters.read();
    assert_eq!(counters.read(), before);
    sender.send_to(b"later", "192.0.2.2:6000").unwrap();
    receive(&mut *rx, &mut pool, is_udp);
    drop(rx);
    assert_eq!(counters.read(), before);
}

#[test]
#[ignore = "needs root"]
fn a_full_receive_buffer_is_counted() {
    const SENT: usize = 12_000;
    let cable = Cable::new();
    let socket = cable.open(&PacketOptions { receive: Receive::Stream, ..Default::default() });
    let missed = socket.missed().unwrap();
    let (mut rx, _tx) = halves(socket);
    let sender = cable.far.run(|| UdpSocket::bind("192.0.2.1:5000").unwrap());
    assert_eq!(missed.frames(), 0);
    for _ in 0..SENT {
        sender.send_to(&[0; 1400], "192.0.2.2:6000").unwrap();
    }
    let lost = usize::try_from(missed.frames()).unwrap();
    assert!(lost > 0, "a buffer for {SENT} frames");
    let (mut pool, mut batch, mut came) = (Pool::new(64), Vec::new(), 0);
    while rx.rx(64, &mut pool, &mut batch).unwrap() > 0 {
        came += batch.iter().filter(|frame| is_udp(frame)).count();
        batch.drain(..).for_each(|frame| pool.put(frame));
    }
    assert_eq!(came + lost, SENT);
}

#[test]
#[ignore = "needs root"]
fn frames_for_other_macs_come_only_when_promiscuous() {
    let cable = Cable::new();
    let flags = || cable.near.run(|| command("ip -d link show ours")).contains("promiscuity 1");
    let socket = cable.open(&PacketOptions { promiscuous: true, ..Default::default() });
    assert!(flags());
    let (rx, _tx) = halves(socket);
    drop(rx);
    crate::io::testing::eventually("promiscuity ends", || !flags());
}

#[test]
#[ignore = "needs root"]
fn a_downed_interface_waits_and_a_removed_one_is_gone() {
    let cable = Cable::new();
    let (mut rx, mut tx) = halves(cable.open(&PacketOptions::default()));
    let mut pool = Pool::new(64);
    let mut frame = pool.take().unwrap();
    frame.copy_from(&[0; 60]);
    let mut poller = Poller::new().unwrap();
    poller.add(rx.fd().unwrap(), 0).unwrap();
    cable.near.run(|| ip("link set ours down"));
    assert_eq!(tx.tx_copy(&mut frame, &mut pool).down, 1);
    // The error ends after a few calls, so that a worker does not spin.
    let (mut events, mut batch) = (Vec::new(), Vec::new());
    let mut calls = 0;
    loop {
        poller.wait(Some(Duration::from_millis(20)), &mut events).unwrap();
        if events.is_empty() {
            break;
        }
        calls += 1;
        assert!(calls < 100, "spins on a downed interface");
        rx.rx(64, &mut pool, &mut batch).unwrap();
        batch.drain(..).for_each(|frame| pool.put(frame));
    }
    cable.near.run(|| ip("link set ours up"));
    assert_eq!(tx.tx_copy(&mut frame, &mut pool).sent, 1);
    cable.far.run(|| wait_until_up("theirs"));
    let sender = cable.far.run(|| UdpSocket::bind("192.0.2.1:5000").unwrap());
    sender.send_to(b"again", "192.0.2.2:6000").unwrap();
    let received = receive(&mut *rx, &mut pool, is_udp);
    pool.put(received);
    cable.near.run(|| ip("link delete ours"));
    for _ in 0..100 {
        poller.wait(WAIT, &mut events).unwrap();
        assert!(!events.is_empty(), "the interface never told");
        let result = rx.rx(64, &mut pool, &mut batch);
        batch.drain(..).for_each(|frame| pool.put(frame));
        if result == Err(Gone) {
            assert_eq!(tx.tx_copy(&mut frame, &mut pool).down, 1);
            return;
        }
    }
    panic!("the interface is still there");
}

#[test]
#[ignore = "needs root"]
fn a_device_whose_other_end_is_down_takes_nothing() {
    let cable = Cable::new();
    let watching = PacketOptions { watch_carrier: true, ..PacketOptions::default() };
    let (_rx, mut tx) = halves(cable.open(&watching));
    let (_other_rx, mut unwatched) = halves(cable.open(&PacketOptions::default()));
    let [first, soon, later, last] =
        [1000, 1001, 2000, 2001].map(|ms| Timestamp::from_nanos(ms * 1_000_000));
    cable.near.run(|| wait_until_up("ours"));
    assert!(!tx.loses_all(first));
    // A name is not what it is known by.
    cable.near.run(|| {
        ip("link set ours down");
        ip("link set ours name renamed");
        ip("link set renamed up");
        wait_until_up("renamed");
    });
    cable.far.run(|| ip("link set theirs down"));
    cable.near.run(|| {
        crate::io::testing::eventually("its carrier is lost", || {
            command("ip -br link show dev renamed").contains("NO-CARRIER")
        });
    });
    assert!(!tx.loses_all(soon), "asked again at once");
    assert!(tx.loses_all(later));
    assert!(!unwatched.loses_all(later));
    // Asked once a batch only while there is none.
    cable.far.run(|| ip("link set theirs up"));
    cable.near.run(|| wait_until_up("renamed"));
    assert!(tx.loses_all(later), "asked twice in a batch");
    assert!(!tx.loses_all(last));
    // One that is gone is for sending to find out.
    cable.near.run(|| ip("link delete renamed"));
    assert!(!tx.loses_all(Timestamp::from_secs(10)));
    let mut pool = Pool::new(2);
    let mut frame = pool.take().unwrap();
    frame.copy_from(&[0; 60]);
    assert_eq!(tx.tx_copy(&mut frame, &mut pool).down, 1);
}
