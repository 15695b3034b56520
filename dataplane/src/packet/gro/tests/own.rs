//! Cases that the kernel's `gro.c` does not have, and the property that holds them all together.

use super::*;

#[test]
fn fin_ends_coalescing_and_nothing_joins_it() {
    let made = |v6, at| Made::new(v6, at, 100);
    both(|v6| vec![made(v6, 0), made(v6, 100).flags(tcp_flags::FIN | tcp_flags::PSH)], &[200]);
    both(|v6| vec![made(v6, 0).flags(tcp_flags::FIN), made(v6, 100)], &[100, 100]);
}

#[test]
fn congestion_marks_stay_where_they_are() {
    let made = |v6, at| Made::new(v6, at, 100);
    let cwr = tcp_flags::CWR;
    both(|v6| vec![made(v6, 0).flags(cwr), made(v6, 100), made(v6, 200)], &[100, 200]);
    both(|v6| vec![made(v6, 0), made(v6, 100).flags(cwr), made(v6, 200)], &[100, 100, 100]);
    let ece = tcp_flags::ECE;
    both(|v6| vec![made(v6, 0).flags(ece), made(v6, 100).flags(ece)], &[200]);
    both(|v6| vec![made(v6, 0), made(v6, 100).flags(ece)], &[100, 100]);
    // Accurate ECN's bit (RFC 9768) is in the byte of the header length.
    both(|v6| vec![made(v6, 0), made(v6, 100).tcp(12, 0x51)], &[100, 100]);
}

#[test]
fn a_changed_window_acknowledgement_or_urgent_pointer_does_not_coalesce() {
    for at in [8, 11, 14, 15, 18, 19] {
        both(|v6| vec![Made::new(v6, 0, 100), Made::new(v6, 100, 100).tcp(at, 0x77)], &[100; 2]);
    }
}

#[test]
fn a_changed_flow_label_does_not_coalesce() {
    v4([Made::new(true, 0, 100), Made::new(true, 100, 100).ip(3, 1)], &[100, 100]);
}

#[test]
fn an_ack_of_the_same_flow_is_not_overtaken() {
    let made = |v6, at, length| Made::new(v6, at, length);
    both(|v6| vec![made(v6, 0, 100), made(v6, 100, 0), made(v6, 100, 100)], &[100, 0, 100]);
}

#[test]
fn a_wrong_checksum_of_the_first_or_of_the_ip_header_stays_alone() {
    both(
        |v6| {
            let mut wrong = Made::new(v6, 0, 100);
            *wrong.bytes.last_mut().unwrap() ^= 1;
            vec![wrong, Made::new(v6, 100, 100), Made::new(v6, 200, 100)]
        },
        &[100, 200],
    );
    let mut wrong = Made::new(false, 100, 100);
    wrong.bytes[L3 + 11] ^= 1;
    v4([Made::new(false, 0, 100), wrong.clone(), Made::new(false, 200, 100)], &[100; 3]);
    // Partial or not.
    let mut partial = Frame::from(wrong);
    make_partial(&mut partial);
    let queue = merge(vec![Made::new(false, 0, 100).into(), partial]);
    assert_eq!(queue.len(), 2);
}

#[test]
fn partial_checksums_coalesce_with_each_other_and_with_complete_ones() {
    for v6 in [false, true] {
        for partial in 0..8 {
            let train = (0..3).map(|i| {
                let mut frame = Frame::from(Made::new(v6, i * 100, 100));
                if partial & 1 << i != 0 {
                    make_partial(&mut frame);
                }
                frame
            });
            assert_eq!(payloads(train.collect()), [300]);
        }
    }
}

#[test]
fn padding_keeps_a_frame_alone() {
    both(
        |v6| {
            let mut padded = Made::new(v6, 100, 2);
            padded.bytes.resize(padded.bytes.len() + 4, 0);
            vec![Made::new(v6, 0, 100), padded]
        },
        &[100, 2],
    );
}

#[test]
fn tags_and_addresses_are_part_of_the_flow() {
    let made = |v6, at, tags: &[(u16, u16)]| {
        let made = Made::new(v6, at, 100);
        Made { bytes: tagged(&made.bytes, tags), ..made }
    };
    both(|v6| vec![made(v6, 0, &[(0x8100, 5)]), made(v6, 100, &[(0x8100, 5)])], &[200]);
    both(|v6| vec![made(v6, 0, &[(0x8100, 5)]), made(v6, 100, &[(0x8100, 6)])], &[100; 2]);
    both(|v6| vec![made(v6, 0, &[]), made(v6, 100, &[(0x8100, 0)])], &[100; 2]);
    let two = [(0x88a8, 1), (0x8100, 5)];
    both(|v6| vec![made(v6, 0, &two), made(v6, 100, &two)], &[200]);
    let three = [(0x88a8, 1), (0x8100, 5), (0x8100, 5)];
    both(|v6| vec![made(v6, 0, &three), made(v6, 100, &three)], &[100; 2]);
    both(
        |v6| {
            let mut other = Made::new(v6, 100, 100);
            other.bytes[5] ^= 1;
            vec![Made::new(v6, 0, 100), other]
        },
        &[100; 2],
    );
}

#[test]
fn flows_between_each_other_coalesce_each_for_itself() {
    let frames = (0..12).map(|i| Made::from_port(i % 4, i % 2 == 0, usize::from(i / 4) * 90, 90));
    let queue = merge(frames.map(Frame::from).collect());
    let lengths: Vec<_> = queue.iter().map(Frame::len).collect();
    assert_eq!(lengths, [14 + 60 + 270, 14 + 40 + 270, 14 + 60 + 270, 14 + 40 + 270]);
    // More than are gathered at a time: the oldest goes out as it is.
    let ports = (0..=u16::try_from(MAX_FLOWS).unwrap()).chain([1, 0]);
    let frames = ports.enumerate().map(|(i, port)| {
        Made::from_port(port, false, if i > MAX_FLOWS { 100 } else { 0 }, 100).into()
    });
    assert_eq!(merge(frames.collect()).len(), MAX_FLOWS + 2);
}

#[test]
fn no_more_segments_than_another_switch_believes() {
    let train = |v6| (0..MAX_SEGMENTS + 2).map(|i| Made::new(v6, i * 90, 90)).collect();
    both(train, &[MAX_SEGMENTS * 90, 180]);
}

#[test]
fn what_stands_for_segments_already_is_left_alone_and_not_overtaken() {
    let large = |at| gso(&Made::new(false, at, 5000).bytes, GSO_TCPV4, 1000);
    let small = |at| Frame::from(Made::new(false, at, 1000));
    let queue = merge(vec![small(0), large(1000), small(1000), small(2000)]);
    let lengths: Vec<_> = queue.iter().map(|frame| frame.len() - 54).collect();
    assert_eq!(lengths, [1000, 5000, 2000]);
    assert_eq!(merge(vec![large(0), large(5000)]).len(), 2);
}

#[test]
fn short_frames_are_left_alone() {
    for v6 in [false, true] {
        for (frame, left) in [(SHORTEST, 1), (SHORTEST - 1, 2)] {
            let length = frame - if v6 { 74 } else { 54 };
            let train = (0..2).map(|i| Made::new(v6, i * length, length).into());
            assert_eq!(merge(train.collect()).len(), left);
        }
    }
}

#[test]
fn other_protocols_are_not_touched() {
    let frames = vec![frame(&udp(&[1; 100])), frame(&udp(&[1; 100])), frame(&[2; 60])];
    assert_eq!(merge(frames).len(), 3);
}

#[test]
fn nothing_is_merged_for_a_device_that_does_not_take_it() {
    let cases = [
        (Offloads::NONE, [2, 2]),
        (Offloads { csum: false, ..Offloads::ALL }, [2, 2]),
        (Offloads { tso4: false, ..Offloads::ALL }, [2, 1]),
        (Offloads { tso6: false, ..Offloads::ALL }, [1, 2]),
    ];
    for (offloads, expected) in cases {
        for (v6, left) in [false, true].into_iter().zip(expected) {
            let mut queue: Vec<Frame> =
                vec![Made::new(v6, 0, 99).into(), Made::new(v6, 99, 99).into()];
            Gro::default().merge(&mut queue, offloads, &mut Pool::new(0));
            assert_eq!(queue.len(), left, "{offloads:?}");
        }
    }
}

/// How a segment differs from one that continues its flow.
#[derive(Clone, Copy, Debug)]
enum Twist {
    None,
    Gap,
    Flags(u8),
    Shorter(usize),
    Ip(usize, u8),
    Tcp(usize, u8),
    Id(u16),
    Corrupt(usize),
    Padded,
    Tagged,
    Partial,
}

fn twist() -> impl Strategy<Value = Twist> {
    prop_oneof![
        12 => Just(Twist::None),
        1 => Just(Twist::Gap),
        2 => any::<u8>().prop_map(Twist::Flags),
        2 => (0..200usize).prop_map(Twist::Shorter),
        1 => (0..10usize, any::<u8>()).prop_map(|(at, value)| Twist::Ip(at, value)),
        1 => (8..20usize, any::<u8>()).prop_map(|(at, value)| Twist::Tcp(at, value)),
        1 => any::<u16>().prop_map(Twist::Id),
        2 => any::<usize>().prop_map(Twist::Corrupt),
        1 => Just(Twist::Padded),
        1 => Just(Twist::Tagged),
        2 => Just(Twist::Partial),
    ]
}

/// One frame after the other for up to three flows.
fn build(v6: bool, size: usize, options: usize, train: &[(u16, Twist)]) -> Vec<Frame> {
    let (mut at, mut id) = ([0; 3], [7u16, 0xfffe, 100]);
    let mut one = |(flow, twist): &(u16, Twist)| {
        let number = usize::from(*flow);
        if let Twist::Gap = twist {
            at[number] += 1;
        }
        let length = if let Twist::Shorter(length) = twist { *length } else { size };
        let mut made = Made::from_port(1000 + flow, v6, at[number], length);
        if !v6 {
            // One flow whose identification stands still, one that may be fragmented.
            id[number] = id[number].wrapping_add(u16::from(number != 0));
            let this = if let Twist::Id(id) = twist { *id } else { id[number] };
            made = made.id(this, number != 2);
        }
        at[number] += length;
        let made = made.options(&timestamp(1, 0)[..options * 4]);
        let made = match twist {
            Twist::Flags(flags) => made.flags(*flags),
            Twist::Ip(at, value) => {
                let mut made = made;
                made.bytes[L3 + at] = *value;
                made
            }
            Twist::Tcp(at, value) if *at != 12 => made.tcp(*at, *value),
            Twist::Corrupt(at) => {
                let mut made = made;
                let at = L3 + at % (made.bytes.len() - L3);
                made.bytes[at] ^= 0x10;
                made
            }
            Twist::Padded => {
                let mut made = made;
                made.bytes.extend_from_slice(&[0; 3]);
                made
            }
            Twist::Tagged => Made { bytes: tagged(&made.bytes, &[(0x8100, 3)]), ..made },
            _ => made,
        };
        let mut frame = frame(&made.bytes);
        if let Twist::Partial = twist {
            make_partial(&mut frame);
        }
        frame
    };
    train.iter().map(&mut one).collect()
}

/// Frames by flow: whatever is no TCP of a known port any more is one of its own.
fn by_flow(frames: &[Vec<u8>]) -> std::collections::BTreeMap<u16, Vec<Vec<u8>>> {
    let mut flows = std::collections::BTreeMap::<u16, Vec<Vec<u8>>>::new();
    for bytes in frames {
        let port = match parse(bytes).unwrap().net {
            Net::Ipv4(crate::packet::headers::Ipv4 { l4, .. })
            | Net::Ipv6(crate::packet::headers::Ipv6 { l4, .. }) => match l4 {
                crate::packet::headers::L4::Tcp { src_port, .. } => src_port,
                _ => 0,
            },
            _ => 0,
        };
        flows.entry(port).or_default().push(without_atomic_id(bytes.clone()));
    }
    flows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn cut_again_it_is_what_it_was_and_in_order(
        v6: bool,
        size in prop_oneof![Just(1448usize), 1..300usize],
        options in prop_oneof![Just(0usize), Just(3usize)],
        train in prop::collection::vec((0..3u16, twist()), 2..64),
    ) {
        let frames = build(v6, size, options, &train);
        let before: Vec<_> = frames.iter().flat_map(cut).collect();
        let queue = merge(frames);
        let after: Vec<_> = queue.iter().flat_map(cut).collect();
        prop_assert_eq!(before.len(), after.len());
        prop_assert_eq!(by_flow(&before), by_flow(&after));
    }

    #[test]
    fn an_undisturbed_train_becomes_as_few_frames_as_can_be(
        v6: bool,
        size in 74..1449usize,
        count in 2..64usize,
    ) {
        let train: Vec<_> = (0..count).map(|_| (1, Twist::None)).collect();
        let most = (MAX_PACKET - if v6 { 60 } else { 40 }) / size;
        prop_assert_eq!(merge(build(v6, size, 0, &train)).len(), count.div_ceil(most.min(64)));
    }

    #[test]
    fn arbitrary_bytes_are_no_harm(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 2..8),
        kind in prop_oneof![Just([8u8, 0]), Just([0x86, 0xdd]), Just([0x81, 0])],
        vi in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
    ) {
        let with_head = |mut bytes: Vec<u8>| {
            for (at, value) in [(12, kind[0]), (13, kind[1]), (14, vi), (20, 6), (23, 6)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            frame(&bytes)
        };
        merge(frames.into_iter().map(with_head).collect());
    }
}
