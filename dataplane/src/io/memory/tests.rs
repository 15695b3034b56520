use std::thread;

use super::*;
use crate::io::poll::Poller;
use crate::io::vnet_hdr::{F_NEEDS_CSUM, GSO_TCPV4};

fn halves(port: MemoryPort) -> (Box<dyn PortRx>, Box<dyn PortTx>) {
    let mut halves = Box::new(port).split(1).unwrap();
    (halves.rx, halves.tx.pop().unwrap())
}

fn readable(rx: &dyn PortRx) -> bool {
    let mut fds = [PollFd::new(rx.fd().unwrap(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn frames_pass_both_ways_with_their_offload_state() {
    let (port, peer) = MemoryPort::pair(4).unwrap();
    let (mut rx, mut tx) = halves(port);
    let mut pool = Pool::new(8);
    let mut batch = Vec::new();
    let vnet =
        VnetHdr { flags: F_NEEDS_CSUM, gso_type: GSO_TCPV4, gso_size: 1448, ..VnetHdr::default() };
    assert!(peer.send(b"first", vnet));
    assert!(peer.send(b"second", VnetHdr::default()));
    assert_eq!(rx.rx(8, &mut pool, &mut batch), Ok(2));
    assert_eq!((batch[0].bytes(), batch[0].vnet), (&b"first"[..], vnet));
    assert_eq!((batch[1].bytes(), batch[1].vnet), (&b"second"[..], VnetHdr::default()));
    let report = tx.tx(&mut batch, &mut pool);
    assert_eq!(report, TxReport { sent: 2, sent_bytes: 11, ..TxReport::default() });
    assert!(batch.is_empty());
    assert_eq!(peer.recv(), Some((b"first".to_vec(), vnet)));
    assert_eq!(peer.recv(), Some((b"second".to_vec(), VnetHdr::default())));
    assert_eq!(peer.recv(), None);
    assert_eq!(pool.available(), 8);
}

#[test]
fn a_full_wire_refuses_and_loses_no_buffer() {
    let (port, peer) = MemoryPort::pair(2).unwrap();
    let (mut rx, mut tx) = halves(port);
    let mut pool = Pool::new(8);
    let mut batch = Vec::new();
    for _ in 0..3 {
        while peer.send(b"x", VnetHdr::default()) {}
        assert_eq!(rx.rx(8, &mut pool, &mut batch), Ok(2));
        batch.push(pool.take().unwrap());
        let report = tx.tx(&mut batch, &mut pool);
        assert_eq!((report.sent, report.full), (2, 1));
        let mut frame = pool.take().unwrap();
        assert_eq!(tx.tx_copy(&mut frame, &mut pool).full, 1);
        pool.put(frame);
        while peer.recv().is_some() {}
        assert_eq!(pool.available(), 8);
    }
}

#[test]
fn an_empty_pool_leaves_frames_on_the_wire_and_the_port_readable() {
    let (port, peer) = MemoryPort::pair(4).unwrap();
    let (mut rx, _tx) = halves(port);
    let mut pool = Pool::new(1);
    let mut batch = Vec::new();
    for byte in 0..3u8 {
        assert!(peer.send(&[byte], VnetHdr::default()));
    }
    for byte in 0..3u8 {
        assert!(readable(&*rx));
        assert_eq!(rx.rx(8, &mut pool, &mut batch), Ok(1));
        let frame = batch.pop().unwrap();
        assert_eq!(frame.bytes(), [byte]);
        pool.put(frame);
    }
    assert_eq!(rx.rx(8, &mut pool, &mut batch), Ok(0));
    assert!(!readable(&*rx));
}

#[test]
fn a_polled_port_has_nothing_to_wait_for_and_tells_all_the_same() {
    let (port, peer) = MemoryPort::polled(2, Offloads::ALL);
    let (mut rx, mut tx) = halves(port);
    assert!(rx.fd().is_none());
    let mut pool = Pool::new(4);
    let mut batch = Vec::new();
    for byte in 0..5u8 {
        assert_eq!(rx.rx(4, &mut pool, &mut batch), Ok(0));
        assert!(peer.send(&[byte], VnetHdr::default()));
        assert_eq!(peer.pending(), 1);
        assert_eq!(rx.rx(4, &mut pool, &mut batch), Ok(1));
        assert_eq!(tx.tx(&mut batch, &mut pool).sent, 1);
        let waited = peer.recv_timeout(Duration::from_secs(20));
        assert_eq!(waited, Some((vec![byte], VnetHdr::default())));
    }
    assert_eq!(peer.recv_timeout(Duration::from_millis(1)), None);
    peer.remove();
    assert_eq!(rx.rx(1, &mut pool, &mut batch), Err(Gone));
}

#[test]
fn a_removed_device_is_told_and_takes_nothing() {
    let (port, peer) = MemoryPort::pair(4).unwrap();
    let (mut rx, mut tx) = halves(port);
    let mut pool = Pool::new(2);
    let mut frames = vec![pool.take().unwrap()];
    peer.set_down(true);
    assert_eq!(tx.tx(&mut frames, &mut pool).down, 1);
    peer.set_down(false);
    peer.remove();
    assert!(readable(&*rx));
    assert_eq!(rx.rx(1, &mut pool, &mut Vec::new()), Err(Gone));
    let mut frame = pool.take().unwrap();
    assert_eq!(tx.tx_copy(&mut frame, &mut pool).down, 1);
}

#[test]
fn no_frame_is_left_behind_by_a_sleeping_worker() {
    const COUNT: u32 = 20_000;
    let (port, peer) = MemoryPort::pair(8).unwrap();
    let (mut rx, mut tx) = halves(port);
    let worker = thread::spawn(move || {
        let mut poller = Poller::new().unwrap();
        let mut pool = Pool::new(4);
        let (mut batch, mut events) = (Vec::new(), Vec::new());
        poller.add(rx.fd().unwrap(), 0).unwrap();
        let mut seen = 0;
        while seen < COUNT {
            poller.wait(Some(Duration::from_secs(20)), &mut events).unwrap();
            assert!(!events.is_empty(), "slept on {seen} of {COUNT}");
            let count = rx.rx(3, &mut pool, &mut batch).unwrap();
            seen += u32::try_from(count).unwrap();
            while !batch.is_empty() {
                // One after the other and only when there is room, so that none is dropped.
                let mut one = vec![batch.remove(0)];
                let began = Instant::now();
                while tx.tx_copy(&mut one[0], &mut pool).sent == 0 {
                    // The reader has given up: it says why.
                    assert!(began.elapsed() < Duration::from_secs(60), "nobody reads");
                    thread::yield_now();
                }
                pool.put(one.remove(0));
            }
        }
    });
    let reader = peer.clone();
    let reader = thread::spawn(move || {
        for expected in 0..COUNT {
            let (bytes, _) = reader.recv_timeout(Duration::from_secs(20)).unwrap();
            assert_eq!(bytes, expected.to_be_bytes());
        }
    });
    for number in 0..COUNT {
        let began = Instant::now();
        while !peer.send(&number.to_be_bytes(), VnetHdr::default()) {
            assert!(began.elapsed() < Duration::from_secs(60), "the worker takes nothing");
            thread::yield_now();
        }
    }
    worker.join().unwrap();
    reader.join().unwrap();
}
