//! Everything that reads a frame, and everything that changes one by what was read: offsets stay
//! within the frame, right checksums stay right, and no buffer is lost.

use std::net::{Ipv4Addr, Ipv6Addr};

use control::capture::summary;
use control::capture::view::View;
use dataplane::frame::Frame;
use dataplane::packet::arp::ArpPacket;
use dataplane::packet::headers::{Headers, Ipv4, Ipv6, L4, Net};
use dataplane::packet::parse::{ipv4_source, parse};
use dataplane::packet::rewrite::Rewrite;
use dataplane::packet::segment::fragment;
use dataplane::packet::{icmp, icmp6, ndp, rewrite, rewrite6, tcp};
use dataplane::pool::Pool;
use tests::packet::Wire;
use tests::sums;

use crate::input::Input;
use crate::sound;

/// Addresses, eight VLAN tags and a type, which are as many as are read.
const LONGEST_LINK: usize = 14 + 8 * 4;
/// What every link takes, and so every header (RFC 791 §3.2).
const LEAST_MTU: u16 = 68;

thread_local! {
    static POOL: std::cell::RefCell<Pool> = std::cell::RefCell::new(Pool::new(64));
}

/// One byte that says whether the frame is to be made sound, and the frame.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let how = input.u8();
    let mut wire = Wire::from(input.take(usize::MAX));
    if how & 1 != 0 {
        sound::make(&mut wire);
    }
    let view = View::parse(&wire.bytes, wire.bytes.len() as u32);
    assert!(!summary::describe(&view).contains('\n'));
    let Ok(headers) = parse(&wire.bytes) else {
        return assert!(wire.bytes.len() < LONGEST_LINK, "a frame that cannot be switched");
    };
    assert!(headers.l3_is_within(&wire.bytes));
    let _ = ipv4_source(&wire.bytes, &headers);
    match headers.net {
        Net::Arp => {
            let _ = ArpPacket::parse(&wire.bytes, &headers);
        }
        Net::Ipv4(ip) => ipv4(&wire, &headers, ip, u16::from(how) * 8),
        Net::Ipv6(ip) => ipv6(&wire, &headers, ip),
        _ => {}
    }
}

trait Within {
    fn l3_is_within(&self, bytes: &[u8]) -> bool;
}

impl Within for Headers {
    fn l3_is_within(&self, bytes: &[u8]) -> bool {
        usize::from(self.l3) <= bytes.len() && self.l3 >= 14
    }
}

/// In one of the pool's buffers.
fn with_frame(wire: &Wire, task: impl FnOnce(&mut Frame, &mut Pool)) {
    POOL.with_borrow_mut(|pool| {
        let mut frame = pool.take().expect("all are back");
        frame.copy_from(&wire.bytes);
        task(&mut frame, pool);
        pool.put(frame);
        assert_eq!(pool.available(), pool.size(), "a buffer was lost");
    });
}

fn sums_of(frame: &Frame) -> sums::Sums {
    sums::check(&Wire::from(frame.bytes()))
}

fn transport(bytes: &[u8], l4: L4, at: usize) {
    if let L4::Tcp { header_len, .. } = l4 {
        assert!(at + usize::from(header_len) <= bytes.len());
        let _ = tcp::numbers(bytes, at);
        let _ = tcp::window_scale(bytes, at, header_len);
    }
}

fn ipv4(wire: &Wire, headers: &Headers, ip: Ipv4, mtu: u16) {
    let bytes = &wire.bytes;
    assert!((20..=60).contains(&ip.header_len));
    assert!(usize::from(ip.l4_offset) <= ip.end() && ip.end() <= bytes.len());
    assert_eq!(ip.l3_offset(), usize::from(headers.l3));
    transport(bytes, ip.l4, usize::from(ip.l4_offset));
    let _ = icmp::may_report(headers);
    let quoted = icmp::parse_inner(bytes, &ip).ok();
    if let Some(inner) = quoted {
        let end = usize::from(inner.offset) + usize::from(inner.header_len);
        assert!(end + usize::from(inner.quoted_len) <= ip.end());
    }
    let before = sums::check(wire);
    // What is cut short is not translated but dropped.
    let were_right = before.are_right() && !matches!(ip.l4, L4::Truncated);
    let there = Rewrite {
        src: Some((Ipv4Addr::new(203, 0, 113, 5), 40_000)),
        dst: Some((Ipv4Addr::new(10, 1, 0, 2), 40_000)),
    };
    with_frame(wire, |frame, _| {
        let (mut ip, old) = (ip, ip);
        rewrite::apply(frame, &mut ip, &there);
        if let Some(mut inner) = quoted {
            rewrite::apply_inner(frame, &old, &mut inner, &there.reversed());
        }
        let after = sums_of(frame);
        assert!(!were_right || after.are_right(), "{before:?} became {after:?}\n{wire:?}");
        let Ok(()) = rewrite::decrement_ttl(frame, &mut ip) else { return };
        let after = sums_of(frame);
        assert!(!were_right || after.are_right(), "{before:?} became {after:?}\n{wire:?}");
    });
    with_frame(wire, |frame, _| {
        if icmp::echo_reply(frame, headers).is_ok() && before.are_right() {
            assert!(sums_of(frame).are_right(), "{wire:?}");
        }
    });
    with_frame(wire, |frame, pool| {
        let mut out = Vec::new();
        let mtu = mtu.max(LEAST_MTU);
        if let Ok(count) = fragment(frame, headers, mtu, pool, &mut out) {
            assert_eq!(count, out.len());
            for piece in &out {
                // What follows the packet is padding, which a frame that is not cut may keep.
                let Ok(Headers { net: Net::Ipv4(ip), .. }) = parse(piece.bytes()) else {
                    panic!("a piece that is no IPv4: {wire:?}");
                };
                assert!(ip.total_len <= u32::from(mtu), "{wire:?}");
                assert!(before.ip != Some(true) || sums_of(piece).ip == Some(true), "{wire:?}");
            }
        }
        out.drain(..).for_each(|piece| pool.put(piece));
    });
}

fn ipv6(wire: &Wire, headers: &Headers, ip: Ipv6) {
    let bytes = &wire.bytes;
    assert!(usize::from(ip.l4_offset) <= ip.end() && ip.end() <= bytes.len());
    assert!(ip.header_len >= 40 && ip.fragment_start() <= ip.end());
    assert_eq!(ip.l3_offset(), usize::from(headers.l3));
    transport(bytes, ip.l4, usize::from(ip.l4_offset));
    if let Ok((_, options)) = ndp::parse(bytes, headers) {
        let _ = options.iter().count();
        let _ = (options.source_link(), options.target_link());
    }
    let quoted = icmp6::parse_inner(bytes, &ip).ok();
    let before = sums::check(wire);
    let were_right = before.are_right() && !matches!(ip.l4, L4::Truncated);
    let address = |n: u16| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n);
    let there = Rewrite { src: Some((address(1), 40_000)), dst: Some((address(2), 40_000)) };
    with_frame(wire, |frame, _| {
        let (mut ip, old) = (ip, ip);
        rewrite6::apply(frame, &mut ip, &there);
        if let Some(mut inner) = quoted {
            rewrite6::apply_inner(frame, &old, &mut inner, &there.reversed());
        }
        let _ = rewrite6::decrement_hop_limit(frame, &mut ip);
        let after = sums_of(frame);
        assert!(!were_right || after.are_right(), "{before:?} became {after:?}\n{wire:?}");
    });
    with_frame(wire, |frame, _| {
        if icmp6::echo_reply(frame, headers).is_ok() && before.are_right() {
            assert!(sums_of(frame).are_right(), "{wire:?}");
        }
    });
}
