use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use super::*;
use crate::io::poll::Poller;
use crate::io::testing::{Netns, WAIT, command, eventually, halves, ip, receive, uninterrupted};
use crate::io::vnet_hdr::{F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_UDP_L4};
use crate::io::{Gone, PortRx};

fn options(name: &str, persistent: bool) -> TapOptions {
    TapOptions { name: name.to_owned(), persistent }
}

fn is_ipv4(frame: &Frame) -> bool {
    frame.bytes().get(12..14) == Some(&[8, 0])
}

#[test]
fn bad_names_are_refused_before_the_kernel_sees_them() {
    for name in ["", ".", "..", "a/b", "a b", "tap%d", "a:1", "sixteen-bytes-xx", "nul\0"] {
        let error = Tap::create(&options(name, false)).unwrap_err();
        assert!(matches!(&error, TapError::Name(bad) if bad == name), "{error}");
    }
}

#[test]
fn a_header_needs_its_headroom() {
    let mut frame = Frame::new();
    frame.copy_from(b"frame");
    frame.vnet.gso_size = 0x1234;
    assert_eq!(with_vnet_hdr(&mut frame).unwrap(), b"\0\0\0\0\x34\x12\0\0\0\0frame");
}

#[test]
#[ignore = "needs root"]
fn a_temporary_device_goes_with_its_last_half_and_a_persistent_one_stays() {
    Netns::new().run(|| {
        drop(Tap::create(&options("t0", false)).unwrap());
        eventually("t0 is deleted", || if_nametoindex("t0").is_err());
        drop(Tap::create(&options("t1", true)).unwrap());
        let index = if_nametoindex("t1").unwrap();
        ip("address add 192.0.2.1/24 dev t1");
        ip("link set t1 up");
        eventually("t1 is free", || command("ip -br link show dev t1").contains("NO-CARRIER"));
        let tap = Tap::create(&options("t1", true)).unwrap();
        assert_eq!(if_nametoindex("t1"), Ok(index));
        assert!(command("ip -br address show dev t1").contains("UP"));
        assert!(command("ip -br address show dev t1").contains("192.0.2.1/24"));
        tap.set_persistent(false).unwrap();
        let (rx, tx) = halves(tap);
        drop(rx);
        assert!(if_nametoindex("t1").is_ok());
        drop(tx);
        eventually("t1 is deleted", || if_nametoindex("t1").is_err());
    });
}

#[test]
#[ignore = "needs root"]
fn a_device_that_was_moved_is_known_and_goes_with_its_port() {
    let elsewhere = Netns::new();
    Netns::new().run(|| {
        let tap = Tap::create(&options("t0", true)).unwrap();
        let tether = tap.tether().unwrap();
        let halves = halves(tap);
        ip("link set t0 up");
        ip("link set t0 name other0");
        assert!(!tether.is_lost());
        ip(&format!("link set other0 netns {}", elsewhere.path()));
        assert!(tether.is_lost());
        tether.let_go().unwrap();
        elsewhere.run(|| if_nametoindex("other0").unwrap());
        drop(halves);
        eventually("it is deleted", || elsewhere.run(|| if_nametoindex("other0").is_err()));
        // Of what is closed there is nothing to tell.
        assert!(!tether.is_lost());
        tether.let_go().unwrap();
    });
}

#[test]
#[ignore = "needs root"]
fn a_multi_queue_device_of_another_maker_is_attached_to_as_it_is() {
    Netns::new().run(|| {
        ip("tuntap add dev mq mode tap multi_queue vnet_hdr");
        let index = if_nametoindex("mq").unwrap();
        let _tap = Tap::create(&options("mq", true)).unwrap();
        assert_eq!(if_nametoindex("mq"), Ok(index));
    });
}

#[test]
#[ignore = "needs root"]
fn devices_that_cannot_be_had_are_named() {
    Netns::new().run(|| {
        ip("link add veth0 type veth peer name veth1");
        let error = Tap::create(&options("veth0", false)).unwrap_err();
        assert!(matches!(error, TapError::NotTap(_)), "{error}");
        ip("tuntap add dev tun0 mode tun");
        let error = Tap::create(&options("tun0", false)).unwrap_err();
        assert!(matches!(error, TapError::NotTap(_)), "{error}");
        let _first = Tap::create(&options("t0", false)).unwrap();
        let error = Tap::create(&options("t0", false)).unwrap_err();
        assert!(matches!(error, TapError::InUse(_)), "{error}");
    });
}

#[test]
#[ignore = "needs root"]
fn frames_and_offload_state_pass_both_ways() {
    Netns::new().run(|| {
        let tap = Tap::create(&options("t0", false)).unwrap();
        assert_eq!(tap.offloads().csum, Offloads::ALL.csum);
        ip("link set t0 address 02:00:00:00:00:01 up");
        ip("address add 192.0.2.1/24 dev t0");
        ip("neighbor add 192.0.2.2 lladdr 02:00:00:00:00:02 dev t0");
        let (mut rx, mut tx) = halves(tap);
        let mut pool = Pool::new(4);
        let socket = UdpSocket::bind("192.0.2.1:5000").unwrap();
        socket.set_read_timeout(WAIT).unwrap();
        socket.send_to(b"over there", "192.0.2.2:6000").unwrap();
        let mut frame = receive(&mut *rx, &mut pool, is_ipv4);
        assert_eq!(frame.len(), 14 + 20 + 8 + 10);
        assert_eq!(frame.bytes()[..6], [2, 0, 0, 0, 0, 2]);
        // The stack leaves the checksum to the device.
        assert_eq!(frame.vnet.flags, F_NEEDS_CSUM);
        assert_eq!((frame.vnet.csum_start, frame.vnet.csum_offset), (34, 6));
        // Send it back with both addresses turned round; the partial checksum stays right.
        let bytes = frame.bytes_mut();
        let (left, right) = bytes.split_at_mut(6);
        left.swap_with_slice(&mut right[..6]);
        bytes[26..34].rotate_left(4);
        bytes[34..38].rotate_left(2);
        let report = tx.tx_copy(&mut frame, &mut pool);
        assert_eq!(report, TxReport { sent: 1, sent_bytes: 52, ..TxReport::default() });
        let report = tx.tx(&mut vec![frame], &mut pool);
        assert_eq!(report.sent, 1);
        assert_eq!(pool.available(), 4);
        let mut buffer = [0; 64];
        for _ in 0..2 {
            let (len, from) = uninterrupted(|| socket.recv_from(&mut buffer)).unwrap();
            assert_eq!(
                (&buffer[..len], from.to_string()),
                (&b"over there"[..], "192.0.2.2:6000".into())
            );
        }
    });
}

#[test]
#[ignore = "needs root"]
fn refusals_are_told_apart() {
    Netns::new().run(|| {
        let (_rx, mut tx) = halves(Tap::create(&options("t0", false)).unwrap());
        let mut pool = Pool::new(2);
        let mut frame = pool.take().unwrap();
        frame.copy_from(&[0; 60]);
        let down = TxReport { down: 1, ..TxReport::default() };
        assert_eq!(tx.tx_copy(&mut frame, &mut pool), down);
        ip("link set t0 up");
        assert_eq!(tx.tx_copy(&mut frame, &mut pool).sent, 1);
        let refused = TxReport { refused: 1, ..TxReport::default() };
        frame.vnet.gso_type = GSO_TCPV4; // without a segment size
        assert_eq!(tx.tx_copy(&mut frame, &mut pool), refused);
        frame.copy_from(&[0; 13]);
        assert_eq!(tx.tx_copy(&mut frame, &mut pool), refused);
    });
}

#[test]
#[ignore = "needs root"]
fn a_deleted_device_is_gone_for_good() {
    Netns::new().run(|| {
        let tap = Tap::create(&options("t0", true)).unwrap();
        let tether = tap.tether().unwrap();
        let (mut rx, mut tx) = halves(tap);
        ip("link set t0 up");
        let mut poller = Poller::new().unwrap();
        poller.add(rx.fd().unwrap(), 1).unwrap();
        assert!(!tether.is_lost());
        ip("link delete t0");
        assert!(tether.is_lost());
        gone(&mut *rx, &mut *tx, &mut poller);
    });
}

#[test]
#[ignore = "needs root"]
fn a_device_goes_with_the_namespace_it_was_moved_to() {
    let (host, sandbox) = (Netns::new(), Netns::new());
    let (mut rx, mut tx) = host.run(|| {
        let tap = Tap::create(&options("t0", true)).unwrap();
        ip(&format!("link set t0 netns {}", sandbox.path()));
        halves(tap)
    });
    sandbox.run(|| ip("link set t0 up"));
    let mut pool = Pool::new(2);
    let mut frame = pool.take().unwrap();
    frame.copy_from(&[0; 60]);
    assert_eq!(tx.tx_copy(&mut frame, &mut pool).sent, 1);
    let mut poller = Poller::new().unwrap();
    poller.add(rx.fd().unwrap(), 1).unwrap();
    drop(sandbox);
    gone(&mut *rx, &mut *tx, &mut poller);
}

/// Waits for the error bit, as a worker would.
fn gone(rx: &mut dyn PortRx, tx: &mut dyn PortTx, poller: &mut Poller) {
    let mut pool = Pool::new(64);
    let (mut events, mut batch) = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        poller.wait(WAIT, &mut events).unwrap();
        assert!(!events.is_empty(), "the device never told");
        let result = rx.rx(64, &mut pool, &mut batch);
        batch.drain(..).for_each(|frame| pool.put(frame));
        if result == Err(Gone) {
            assert!(events[0].error);
            poller.remove(rx.fd().unwrap()).unwrap();
            let mut frame = pool.take().unwrap();
            frame.copy_from(&[0; 60]);
            assert_eq!(tx.tx_copy(&mut frame, &mut pool).down, 1);
            return;
        }
    }
    panic!("the device is still there");
}

#[test]
#[ignore = "needs root"]
fn a_large_send_arrives_as_one_frame_with_its_segment_size() {
    Netns::new().run(|| {
        let tap = Tap::create(&options("t0", false)).unwrap();
        // Before Linux 6.2 the stack segments by itself.
        let expected =
            if tap.offloads().uso { (40_000, GSO_UDP_L4, 1000) } else { (1000, GSO_NONE, 0) };
        ip("link set t0 up");
        ip("address add 192.0.2.1/24 dev t0");
        ip("neighbor add 192.0.2.2 lladdr 02:00:00:00:00:02 dev t0");
        let (mut rx, _tx) = halves(tap);
        let mut pool = Pool::new(4);
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::UdpGsoSegment, &1000)
            .unwrap();
        socket.send_to(&[7; 40_000], "192.0.2.2:6000").unwrap();
        let frame = receive(&mut *rx, &mut pool, is_ipv4);
        assert_eq!((frame.len() - 42, frame.vnet.gso_type, frame.vnet.gso_size), expected);
    });
}

#[test]
#[ignore = "needs root"]
fn a_device_takes_one_descriptor_for_any_number_of_workers() {
    Netns::new().run(|| {
        let tap = Tap::create(&options("t0", false)).unwrap();
        let PortHalves { rx, tx } = Box::new(tap).split(8).unwrap();
        let used = rx.fd().unwrap().as_raw_fd();
        assert_eq!(tx.len(), 8);
        for half in &tx {
            assert_eq!(half.stream().unwrap().as_raw_fd(), used);
        }
    });
}
