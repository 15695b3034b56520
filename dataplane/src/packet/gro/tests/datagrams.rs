//! Trains of UDP datagrams: the cases of Linux's `udpgro.sh` that have a counterpart, and what is ours.

use super::*;

/// A datagram between fixed ports; IPv4 with this identification and "don't fragment" as told.
fn datagram(v6: bool, length: usize, id: u16, dont_fragment: bool) -> Vec<u8> {
    let payload: Vec<u8> = (0..length).map(|at| (at + usize::from(id)).to_le_bytes()[0]).collect();
    let ethernet = etherparse::PacketBuilder::ethernet2(CLIENT_MAC, GATEWAY_MAC);
    let mut bytes = Vec::new();
    if v6 {
        let ip = ethernet.ipv6([0xfd; 16], [0xfe; 16], 8);
        ip.udp(1500, 8000).write(&mut bytes, &payload).unwrap();
    } else {
        let ip = ethernet.ipv4(CLIENT, SERVER, 8);
        ip.udp(1500, 8000).write(&mut bytes, &payload).unwrap();
        bytes[L3 + 4..L3 + 6].copy_from_slice(&id.to_be_bytes());
        bytes[L3 + 6] = if dont_fragment { 0x40 } else { 0 };
        seal(&mut bytes);
    }
    bytes
}

/// Sets the checksum of the IPv4 header anew.
fn seal(bytes: &mut [u8]) {
    bytes[L3 + 10..L3 + 12].fill(0);
    let sum = !slow_sum(&bytes[L3..L3 + 20]);
    bytes[L3 + 10..L3 + 12].copy_from_slice(&sum.to_be_bytes());
}

/// Datagrams of these lengths, one after the other.
fn train(v6: bool, lengths: &[usize]) -> Vec<Frame> {
    let made = |(id, length): (u16, &usize)| frame(&datagram(v6, *length, id, false));
    (7..).zip(lengths).map(made).collect()
}

fn joined(frames: Vec<Frame>, expected: &[usize]) {
    assert_eq!(payloads(frames), expected);
}

type Change<'a> = &'a dyn Fn(&mut Vec<u8>);

/// Four datagrams of 18 bytes, the third of them changed.
fn with_third(v6: bool, change: impl Fn(&mut Vec<u8>)) -> Vec<Frame> {
    let mut all: Vec<_> = (7..11).map(|id| datagram(v6, 18, id, false)).collect();
    change(&mut all[2]);
    all.iter().map(|bytes| frame(bytes)).collect()
}

#[test]
fn datagrams_of_the_same_size_become_one_frame() {
    for v6 in [false, true] {
        joined(train(v6, &[18; 4]), &[72]);
        joined(train(v6, &[1; 5]), &[5]);
        joined(train(v6, &[1472; 7]), &[7 * 1472]);
        let mut queue = merge(train(v6, &[18; 4]));
        let whole = queue.pop().unwrap();
        assert_eq!((whole.vnet.gso_type, whole.vnet.gso_size), (GSO_UDP_L4, 18));
        assert_eq!((whole.vnet.csum_offset, whole.vnet.flags), (6, F_NEEDS_CSUM));
    }
}

#[test]
fn a_shorter_one_ends_the_train_and_a_longer_one_begins_another() {
    for v6 in [false, true] {
        joined(train(v6, &[18, 18, 18, 10, 18, 18, 18, 18]), &[64, 72]);
        joined(train(v6, &[18, 18, 18, 18, 20, 20, 20, 20]), &[72, 80]);
    }
}

#[test]
fn fewer_than_four_stay_as_they_are() {
    for v6 in [false, true] {
        joined(train(v6, &[18; 3]), &[18; 3]);
        joined(train(v6, &[18, 18, 18, 20, 20]), &[18, 18, 18, 20, 20]);
    }
}

#[test]
fn no_more_than_sixty_four_and_no_more_than_an_ip_packet() {
    for v6 in [false, true] {
        joined(train(v6, &[18; 68]), &[64 * 18, 4 * 18]);
        let most = 65_535 - if v6 { 48 } else { 28 };
        joined(train(v6, &[8000; 12]), &[most / 8000 * 8000, (12 - most / 8000) * 8000]);
    }
}

#[test]
fn what_is_in_between_ends_a_train() {
    let mut frames = train(false, &[18; 8]);
    frames.insert(4, frame(&udp(b"another flow")));
    joined(frames, &[72, 12, 72]);
    let mut frames = train(false, &[18; 8]);
    frames.insert(4, Made::new(false, 0, 100).into());
    joined(frames, &[72, 100, 72]);
}

#[test]
fn segments_and_datagrams_in_one_queue() {
    let segment = |at| Frame::from(Made::new(false, at, 100));
    let mut frames = vec![segment(0), segment(100)];
    frames.extend(train(false, &[18; 4]));
    frames.extend([segment(200), segment(300)]);
    frames.extend(train(true, &[18; 5]));
    let lengths: Vec<_> = merge(frames).iter().map(Frame::len).collect();
    assert_eq!(lengths, [54 + 400, 42 + 72, 62 + 90]);
}

#[test]
fn other_headers_do_not_join() {
    // MAC address, type of service, TTL, addresses, ports.
    for at in [0, 6, L3 + 1, L3 + 8, L3 + 12, L3 + 19, L3 + 20, L3 + 23] {
        let frames = with_third(false, |bytes| {
            bytes[at] ^= 2;
            seal(bytes);
            let sum = !slow_l4_sum(&bytes[L3 + 12..L3 + 20], &[], 17, &{
                let mut segment = bytes[L3 + 20..].to_vec();
                segment[6..8].fill(0);
                segment
            });
            bytes[L3 + 26..L3 + 28].copy_from_slice(&sum.to_be_bytes());
        });
        joined(frames, &[18; 4]);
    }
    // Traffic class, flow label, hop limit.
    for at in [1, 3, 7] {
        joined(with_third(true, |bytes| bytes[L3 + at] ^= 2), &[18; 4]);
    }
}

#[test]
fn wrong_and_missing_checksums_do_not_join() {
    for v6 in [false, true] {
        let sum = if v6 { L3 + 46 } else { L3 + 26 };
        joined(with_third(v6, |bytes| bytes[sum] ^= 1), &[18; 4]);
        joined(with_third(v6, |bytes| bytes[sum..sum + 2].fill(0)), &[18; 4]);
    }
    joined(with_third(false, |bytes| bytes[L3 + 10] ^= 1), &[18; 4]);
}

#[test]
fn partial_checksums_join_each_other_and_complete_ones() {
    for v6 in [false, true] {
        for partial in 0..16 {
            let mut frames = train(v6, &[18; 4]);
            for (at, frame) in frames.iter_mut().enumerate() {
                if partial & 1 << at != 0 {
                    make_partial(frame);
                }
            }
            joined(frames, &[72]);
        }
    }
}

#[test]
fn identifications_count_up_or_mean_nothing() {
    let of = |ids: [u16; 5], df| {
        ids.iter().map(|id| frame(&datagram(false, 18, *id, df))).collect::<Vec<_>>()
    };
    joined(of([7, 8, 9, 10, 11], false), &[90]);
    joined(of([0xfffe, 0xffff, 0, 1, 2], true), &[90]);
    joined(of([7; 5], true), &[90]);
    joined(of([7; 5], false), &[18; 5]);
    joined(of([7, 8, 9, 10, 12], true), &[72, 18]);
    let mut changed = of([7, 8, 9, 10, 11], false);
    changed[3] = frame(&datagram(false, 18, 10, true));
    joined(changed, &[18; 5]);
}

#[test]
fn fragments_options_lengths_that_lie_groups_and_padding_stay_alone() {
    joined(with_third(false, |bytes| bytes.extend([0; 3])), &[18; 4]);
    let cases: [Change<'_>; 3] = [
        &|bytes| {
            bytes[L3 + 6] |= 0x20;
            seal(bytes);
        },
        &|bytes| bytes[L3 + 25] -= 1,
        &|bytes| bytes[L3 + 25] += 1,
    ];
    for change in cases {
        let mut all: Vec<_> = (7..11).map(|id| datagram(false, 18, id, false)).collect();
        all.iter_mut().for_each(change);
        let queue = merge(all.iter().map(|bytes| frame(bytes)).collect());
        assert_eq!(queue.len(), 4);
    }
    let mut all: Vec<_> = (7..11).map(|id| datagram(false, 18, id, false)).collect();
    all.iter_mut().for_each(|bytes| bytes[0] |= 1);
    joined(all.iter().map(|bytes| frame(bytes)).collect(), &[18; 4]);
}

#[test]
fn tags_are_kept() {
    for tags in [&[(0x8100, 5)][..], &[(0x88a8, 7), (0x8100, 5)][..]] {
        let frames = (7..12).map(|id| frame(&tagged(&datagram(false, 18, id, false), tags)));
        joined(frames.collect(), &[90]);
    }
}

#[test]
fn a_device_that_does_not_take_them_gets_each_by_itself() {
    for offloads in
        [Offloads { uso: false, ..Offloads::ALL }, Offloads { csum: false, ..Offloads::ALL }]
    {
        let mut queue = train(false, &[18; 8]);
        assert_eq!(Gro::default().merge(&mut queue, offloads, &mut Pool::new(0)), 0);
        assert_eq!(queue.len(), 8);
    }
}

/// A train: IPv6, ninths of a payload, how many, the step of the identification, "don't fragment"; and what
/// is wrong with one of them: its number, and a byte from the end that is changed.
type Kind = (bool, usize, u16, u16, bool, Option<(u16, usize)>);

fn kinds() -> impl Strategy<Value = Vec<Kind>> {
    let wrong = prop::option::weighted(0.3, (0_u16..12, 1_usize..24));
    let kind = (any::<bool>(), 0_usize..4, 1_u16..12, 0_u16..3, any::<bool>(), wrong);
    prop::collection::vec(kind, 1..8)
}

fn frames(kinds: &[Kind]) -> Vec<Frame> {
    let mut id = 5_u16;
    let mut frames = Vec::new();
    for (v6, length, count, step, df, wrong) in kinds {
        for number in 0..*count {
            id = id.wrapping_add(*step);
            let mut bytes = datagram(*v6, length * 9, id, *df);
            if let Some((_, from_end)) = wrong.filter(|(which, _)| *which == number) {
                let at = bytes.len() - from_end;
                bytes[at] ^= 1;
            }
            frames.push(frame(&bytes));
        }
    }
    frames
}

proptest! {
    /// Whatever follows each other: cut again it is what it was, and none is lost (`payloads` looks).
    #[test]
    fn any_datagrams_are_what_they_were(kinds in kinds()) {
        payloads(frames(&kinds));
    }

    #[test]
    fn undisturbed_trains_are_merged(v6: bool, ninths in 1_usize..160, count in 4_u16..64) {
        let most = (MAX_PACKET - if v6 { 48 } else { 28 }) / (ninths * 9);
        let (full, rest) = (usize::from(count) / most, usize::from(count) % most);
        let rest = if rest < 4 { rest } else { 1 };
        prop_assert_eq!(merge(frames(&[(v6, ninths, count, 1, false, None)])).len(), full + rest);
    }
}
