//! The cases of Linux's own test (`tools/testing/selftests/net/gro.c`), named as there, each with
//! both IP versions where it has both; what that test does not cover; and random trains. Every one
//! checks that cutting what came out gives what went in.

mod datagrams;
mod own;

use proptest::prelude::*;

use super::super::fixtures::{
    CLIENT, CLIENT_MAC, GATEWAY_MAC, SERVER, frame, gso, make_partial, slow_l4_sum, slow_sum,
    tagged, udp,
};
use super::super::headers::Net;
use super::super::parse::parse;
use super::super::segment::{complete_checksum, segment};
use super::*;
use crate::packet::offload;

/// As in `gro.c`.
const PAYLOAD: usize = 100;

/// A TCP segment to be changed and sealed: what `create_packet` makes.
#[derive(Clone, Debug)]
struct Made {
    v6: bool,
    bytes: Vec<u8>,
}

const L3: usize = 14;

impl Made {
    fn new(v6: bool, sequence: usize, length: usize) -> Self {
        Self::from_port(1500, v6, sequence, length)
    }

    fn from_port(port: u16, v6: bool, sequence: usize, length: usize) -> Self {
        let payload: Vec<u8> = (0..length).map(|at| (sequence + at).to_le_bytes()[0]).collect();
        let sequence = 0xffff_ff00_u32.wrapping_add(low_u32(sequence));
        let ethernet = etherparse::PacketBuilder::ethernet2(CLIENT_MAC, GATEWAY_MAC);
        let mut bytes = Vec::new();
        if v6 {
            let ip = ethernet.ipv6([0xfd; 16], [0xfe; 16], 8);
            ip.tcp(port, 8000, sequence, 1000).ack(100).write(&mut bytes, &payload).unwrap();
        } else {
            let ip = ethernet.ipv4(CLIENT, SERVER, 8);
            ip.tcp(port, 8000, sequence, 1000).ack(100).write(&mut bytes, &payload).unwrap();
        }
        Self { v6, bytes }
    }

    fn l4(&self) -> usize {
        if self.v6 { L3 + 40 } else { L3 + 20 }
    }

    /// Changes a byte behind the Ethernet header.
    fn ip(mut self, at: usize, value: u8) -> Self {
        self.bytes[L3 + at] = value;
        self.sealed()
    }

    /// Changes a byte of the TCP header.
    fn tcp(mut self, at: usize, value: u8) -> Self {
        let at = self.l4() + at;
        self.bytes[at] = value;
        self.sealed()
    }

    fn flags(self, flags: u8) -> Self {
        self.tcp(TCP_FLAGS, flags | tcp_flags::ACK)
    }

    fn id(mut self, id: u16, dont_fragment: bool) -> Self {
        self.bytes[L3 + 4..L3 + 6].copy_from_slice(&id.to_be_bytes());
        self.ip(6, if dont_fragment { 0x40 } else { 0 })
    }

    /// Puts TCP options, a multiple of four bytes, behind the header.
    fn options(mut self, options: &[u8]) -> Self {
        let at = self.l4() + 20;
        self.bytes.splice(at..at, options.iter().copied());
        let l4 = self.l4();
        self.bytes[l4 + 12] += u8::try_from(options.len() / 4).unwrap() << 4;
        self.sealed()
    }

    /// Puts an extension header, or IPv4 options, before the TCP header.
    fn extension(mut self, kind: u8, payload: [u8; 6]) -> Self {
        let at = L3 + 40;
        let header = [vec![6, 0], payload.to_vec()].concat();
        self.bytes.splice(at..at, header);
        self.bytes[L3 + 6] = kind;
        let length = u16::try_from(self.bytes.len() - L3 - 40).unwrap();
        self.bytes[L3 + 4..L3 + 6].copy_from_slice(&length.to_be_bytes());
        self
    }

    fn ip_options(mut self, options: &[u8]) -> Self {
        self.bytes.splice(L3 + 20..L3 + 20, options.iter().copied());
        self.bytes[L3] += u8::try_from(options.len() / 4).unwrap();
        let length = u16::try_from(self.bytes.len() - L3).unwrap();
        self.bytes[L3 + 2..L3 + 4].copy_from_slice(&length.to_be_bytes());
        self.bytes[L3 + 10..L3 + 12].fill(0);
        let end = L3 + 20 + options.len();
        let sum = !slow_sum(&self.bytes[L3..end]);
        self.bytes[L3 + 10..L3 + 12].copy_from_slice(&sum.to_be_bytes());
        self
    }

    /// Sets lengths and checksums anew.
    fn sealed(mut self) -> Self {
        let l4 = self.l4();
        let bytes = &mut self.bytes;
        let (addresses, length) = if self.v6 { (8..40, 4) } else { (12..20, 2) };
        let counted = bytes.len() - L3 - if self.v6 { 40 } else { 0 };
        let counted = u16::try_from(counted).unwrap().to_be_bytes();
        bytes[L3 + length..L3 + length + 2].copy_from_slice(&counted);
        if !self.v6 {
            bytes[L3 + 10..L3 + 12].fill(0);
            let sum = !slow_sum(&bytes[L3..l4]);
            bytes[L3 + 10..L3 + 12].copy_from_slice(&sum.to_be_bytes());
        }
        bytes[l4 + 16..l4 + 18].fill(0);
        let addresses = &bytes[L3 + addresses.start..L3 + addresses.end];
        let sum = !slow_l4_sum(addresses, &[], 6, &bytes[l4..]);
        bytes[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
        self
    }
}

impl From<Made> for Frame {
    fn from(made: Made) -> Self {
        frame(&made.bytes)
    }
}

/// Merges and returns what is in the queue afterwards.
fn merge(frames: Vec<Frame>) -> Vec<Frame> {
    let mut queue = frames;
    let count = queue.len();
    let mut pool = Pool::new(0);
    let merged = Gro::default().merge(&mut queue, Offloads::ALL, &mut pool);
    assert_eq!(queue.len() as u64 + merged, count as u64);
    assert_eq!(pool.available() as u64, merged, "buffers of merged frames");
    queue
}

/// What a device does with a frame: segments with complete checksums.
fn cut(whole: &Frame) -> Vec<Vec<u8>> {
    let headers = parse(whole.bytes()).unwrap();
    if whole.vnet.is_gso() {
        let mut out = Vec::new();
        segment(whole, &headers, &mut Pool::new(64), &mut out).unwrap();
        return out.iter().map(|piece| piece.bytes().to_vec()).collect();
    }
    let mut plain = frame(whole.bytes());
    plain.vnet = whole.vnet;
    complete_checksum(&mut plain, &headers);
    vec![plain.bytes().to_vec()]
}

/// Without the identification, and the checksum that covers it, of a packet that must not be
/// fragmented.
fn without_atomic_id(mut bytes: Vec<u8>) -> Vec<u8> {
    let l3 = usize::from(parse(&bytes).unwrap().l3);
    if let Net::Ipv4(ip) = parse(&bytes).unwrap().net
        && ip.dont_fragment
        && !ip.is_fragment()
    {
        // Whether the sum is right stays to be seen.
        let right = slow_sum(&bytes[l3..l3 + usize::from(ip.header_len)]) == 0xffff;
        bytes[l3 + 4..l3 + 6].fill(0);
        bytes[l3 + 10..l3 + 12].fill(u8::from(right));
    }
    bytes
}

/// TCP payload of each frame, as `gro.c` looks at them. Also: cut again it is what it was, and what
/// was merged is admitted as it is.
fn payloads(frames: Vec<Frame>) -> Vec<usize> {
    let before: Vec<_> = frames.iter().flat_map(cut).map(without_atomic_id).collect();
    let mut queue = merge(frames);
    let after: Vec<_> = queue.iter().flat_map(cut).map(without_atomic_id).collect();
    assert_eq!(before, after);
    let payload = |frame: &mut Frame| {
        let headers = parse(frame.bytes()).unwrap();
        let vnet = frame.vnet;
        offload::admit(frame, &headers).unwrap();
        assert_eq!(frame.vnet, vnet);
        Transport::of(&headers)
            .map_or_else(|| frame.len().saturating_sub(54), |l4| l4.end - l4.payload)
    };
    queue.iter_mut().map(payload).collect()
}

fn both(test: impl Fn(bool) -> Vec<Made>, expected: &[usize]) {
    for v6 in [false, true] {
        let frames = test(v6).into_iter().map(Frame::from).collect();
        assert_eq!(payloads(frames), expected, "IPv6: {v6}");
    }
}

fn v4(frames: impl IntoIterator<Item = Made>, expected: &[usize]) {
    assert_eq!(payloads(frames.into_iter().map(Frame::from).collect()), expected);
}

/// Rows: Linux `gro.sh`.
#[test]
fn data_of_the_same_size_coalesces() {
    both(|v6| vec![Made::new(v6, 0, 100), Made::new(v6, 100, 100)], &[200]);
}

#[test]
fn data_followed_by_a_smaller_segment_coalesces_and_that_ends_it() {
    both(|v6| vec![Made::new(v6, 0, 100), Made::new(v6, 100, 50)], &[150]);
    let four = [(0, 100), (100, 50), (150, 50), (200, 50)];
    both(|v6| four.map(|(at, len)| Made::new(v6, at, len)).to_vec(), &[150, 50, 50]);
}

#[test]
fn a_small_segment_followed_by_a_larger_does_not_coalesce() {
    both(|v6| vec![Made::new(v6, 0, 50), Made::new(v6, 50, 100)], &[50, 100]);
}

#[test]
fn pure_and_duplicate_acks_do_not_coalesce() {
    let ack = |v6| Made::new(v6, 0, 0);
    both(|v6| vec![ack(v6), ack(v6), ack(v6).tcp(11, 101)], &[0, 0, 0]);
}

/// Four segments of data with one that has a flag in the middle.
fn with_flag(v6: bool, flag: u8) -> Vec<Made> {
    let length = if flag == tcp_flags::PSH { PAYLOAD } else { 0 };
    let flagged = Made::new(v6, 2 * length, length).flags(flag);
    (0..5)
        .map(|i| if i == 2 { flagged.clone() } else { Made::new(v6, i * PAYLOAD, PAYLOAD) })
        .collect()
}

#[test]
fn psh_ends_coalescing() {
    both(|v6| with_flag(v6, tcp_flags::PSH), &[300, 200]);
}

#[test]
fn syn_ends_coalescing() {
    both(|v6| with_flag(v6, tcp_flags::SYN), &[200, 0, 200]);
}

#[test]
fn rst_ends_coalescing() {
    both(|v6| with_flag(v6, tcp_flags::RST), &[200, 0, 200]);
}

#[test]
fn urg_ends_coalescing() {
    both(|v6| with_flag(v6, tcp_flags::URG), &[200, 0, 200]);
}

#[test]
fn a_changed_checksum_does_not_coalesce() {
    both(
        |v6| {
            let mut wrong = Made::new(v6, 100, 100);
            let at = wrong.l4() + 17;
            wrong.bytes[at] ^= 1;
            vec![Made::new(v6, 0, 100), wrong]
        },
        &[100, 100],
    );
}

#[test]
fn a_wrong_sequence_number_does_not_coalesce() {
    for next in [101, 99, 0] {
        both(|v6| vec![Made::new(v6, 0, 100), Made::new(v6, next, 100)], &[100, 100]);
    }
}

/// Timestamps in the three orders that `gro.c` knows.
fn timestamp(value: u8, order: usize) -> Vec<u8> {
    let option = [8, 10, 0, 0, 0, value, 0, 0, 0, 0];
    let (before, after) = [(2, 0), (1, 1), (0, 2)][order];
    [vec![1; before], option.to_vec(), vec![1; after]].concat()
}

#[test]
fn different_timestamps_do_not_coalesce() {
    let options = [(0, 0), (0, 0), (100, 0), (100, 1), (100, 2)];
    let train = |v6| {
        let made = |(i, (value, order))| {
            Made::new(v6, i * PAYLOAD, PAYLOAD).options(&timestamp(value, order))
        };
        (0..).zip(options).map(made).collect()
    };
    both(train, &[200, 100, 100, 100]);
}

#[test]
fn different_options_do_not_coalesce() {
    both(
        |v6| {
            vec![
                Made::new(v6, 0, 100).options(&timestamp(0, 0)),
                Made::new(v6, 100, 100).options(&timestamp(0, 0)),
                Made::new(v6, 200, 100).options(&[1, 3, 3, 0]),
            ]
        },
        &[200, 100],
    );
}

#[test]
fn different_ecn_does_not_coalesce() {
    both(
        |v6| {
            let changed = if v6 { (1, 0x20) } else { (1, 0x02) };
            vec![Made::new(v6, 0, 100), Made::new(v6, 100, 100).ip(changed.0, changed.1)]
        },
        &[100, 100],
    );
}

#[test]
fn different_type_of_service_does_not_coalesce() {
    both(
        |v6| {
            let changed = if v6 { (0, 0x6f) } else { (1, 0x01) };
            vec![Made::new(v6, 0, 100), Made::new(v6, 100, 100).ip(changed.0, changed.1)]
        },
        &[100, 100],
    );
}

#[test]
fn different_ttl_does_not_coalesce() {
    // Linux does not look at the hop limit of IPv6; cut again, it would not be what it was.
    both(
        |v6| {
            let at = if v6 { 7 } else { 8 };
            vec![Made::new(v6, 0, 100), Made::new(v6, 100, 100).ip(at, 7)]
        },
        &[100, 100],
    );
}

#[test]
fn ip_options_do_not_coalesce() {
    let option = [68, 8, 5, 0, 0, 0, 0, 0];
    let made = |at| Made::new(false, at, 100);
    v4([made(0), made(100).ip_options(&option), made(200)], &[100, 100, 100]);
}

#[test]
fn ipv4_fragments_do_not_coalesce() {
    let made = |at| Made::new(false, at, 100);
    let frames = vec![made(0).into(), made(100).ip(6, 0x60).into()];
    let queue = merge(frames);
    assert_eq!(queue.len(), 2);
    assert!(queue.iter().all(|frame| !frame.vnet.is_gso()));
    // Nor does anything across one.
    let queue = merge(vec![made(0).into(), made(100).ip(6, 0x60).into(), made(100).into()]);
    assert_eq!(queue.len(), 3);
}

/// Three segments with these identifications.
fn ids(dont_fragment: bool, ids: &[u16]) -> Vec<Made> {
    let made = |(i, id): (usize, &u16)| Made::new(false, i * 100, 100).id(*id, dont_fragment);
    ids.iter().enumerate().map(made).collect()
}

#[test]
fn df_set_id_incrementing_coalesces() {
    v4(ids(true, &[8, 9]), &[200]);
    v4(ids(true, &[0xffff, 0]), &[200]);
}

#[test]
fn df_set_id_fixed_coalesces() {
    v4(ids(true, &[8, 8]), &[200]);
    v4(ids(true, &[0, 0, 0, 0]), &[400]);
}

#[test]
fn df_clear_id_incrementing_coalesces() {
    v4(ids(false, &[8, 9]), &[200]);
}

/// Here Linux of late coalesces, because it can note that the identification stands still. A
/// virtio-net header cannot, and of packets that may be fragmented it means something.
#[test]
fn df_clear_id_fixed_does_not_coalesce() {
    v4(ids(false, &[8, 8]), &[100, 100]);
}

#[test]
fn df_set_two_incrementing_and_one_fixed_coalesces_the_first_two() {
    v4(ids(true, &[8, 9, 9]), &[200, 100]);
}

#[test]
fn df_set_two_fixed_and_one_incrementing_coalesces_the_first_two() {
    v4(ids(true, &[8, 8, 9]), &[200, 100]);
    v4(ids(true, &[8, 8, 10]), &[200, 100]);
}

#[test]
fn a_changed_df_does_not_coalesce() {
    let made = |at, id, df| Made::new(false, at, 100).id(id, df);
    v4([made(0, 8, true), made(100, 9, false)], &[100, 100]);
}

#[test]
fn ipv6_fragments_do_not_coalesce() {
    let made = |at| Made::new(true, at, 100);
    // Offset zero and no more fragments: a whole packet all the same, which parsing sees as one.
    let atomic = made(200).extension(44, [0; 6]);
    let queue = merge([made(0), made(100), atomic, made(300)].map(Frame::from).into());
    assert_eq!(queue.len(), 3);
    assert_eq!(queue[0].len(), 14 + 60 + 200);
}

#[test]
fn ipv6_with_the_same_extension_header_coalesces() {
    for kind in [0, 60] {
        let made = |at| Made::new(true, at, 100).extension(kind, [0; 6]);
        v4([made(0), made(100)], &[200]);
    }
}

#[test]
fn ipv6_with_different_extension_headers_does_not_coalesce() {
    let made = |at, bytes| Made::new(true, at, 100).extension(0, bytes);
    v4([made(0, [0; 6]), made(100, [0x11; 6])], &[100, 100]);
    let frames = [made(0, [0; 6]), Made::new(true, 100, 100).extension(43, [0; 6])];
    assert_eq!(merge(frames.map(Frame::from).into()).len(), 2, "a routing header");
}

#[test]
fn nothing_becomes_longer_than_an_ip_packet() {
    const MSS: usize = 4096 - 20 - 40;
    for v6 in [false, true] {
        let most = 65_535 - if v6 { 60 } else { 40 };
        let (count, remainder) = (most / MSS, most % MSS);
        let train = |last: usize| {
            let full = (0..count).map(|i| Made::new(v6, i * MSS, MSS));
            let end = [Made::new(v6, count * MSS, last), Made::new(v6, (count + 1) * MSS, last)];
            payloads(full.chain(end).map(Frame::from).collect())
        };
        assert_eq!(train(remainder), [most, remainder]);
        assert_eq!(train(remainder + 1), [most - remainder, remainder + 1, remainder + 1]);
    }
}
