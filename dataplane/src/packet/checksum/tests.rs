//! Full and incremental sums against the slow and obvious way.

use proptest::prelude::*;

use super::super::fixtures::{slow_l4_sum, slow_sum};
use super::*;

#[test]
fn the_example_of_rfc_1071() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(Sum::ZERO.add_bytes(&bytes).fold(), 0xddf2);
    assert_eq!(checksum(&bytes), 0x220d);
}

#[test]
fn the_example_of_rfc_1624() {
    // §4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 gives 0x0000; equation 2 gave the wrong 0xFFFF.
    assert_eq!(Delta::of_u16(0x5555, 0x3285).apply(0xdd2f), 0x0000);
}

#[test]
fn a_real_ipv4_header_is_valid() {
    let header = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7,
    ];
    assert!(ipv4_header_is_valid(&header));
    for at in 0..header.len() {
        let mut broken = header;
        broken[at] ^= 1;
        assert!(!ipv4_header_is_valid(&broken), "byte {at}");
    }
}

#[test]
fn the_longest_frame_of_ones_does_not_overflow() {
    let bytes = vec![0xff; crate::frame::MAX_FRAME_LEN];
    assert_eq!(Sum::ZERO.add_bytes(&bytes).fold(), 0xffff);
}

#[test]
fn udp_without_checksum_stays_so_and_a_sum_of_zero_is_sent_as_ones() {
    assert_eq!(Delta::of_u16(1, 2).apply_udp(0), 0);
    assert_eq!(Delta::of_u16(0x5555, 0x3285).apply_udp(0xdd2f), 0xffff);
    assert_eq!(Sum::ZERO.add_u16(0xffff).udp_checksum(), 0xffff);
}

/// Words in which the corners of one's complement are frequent.
fn word() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), Just(0xffff), Just(1), Just(0xfffe), any::<u16>()]
}

proptest! {
    #[test]
    fn sum_equals_the_slow_sum(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(Sum::ZERO.add_bytes(&bytes).fold(), slow_sum(&bytes));
    }

    #[test]
    fn sums_of_pieces_add_up(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        cut in 0usize..100,
    ) {
        let (head, tail) = bytes.split_at((cut * 2).min(bytes.len() & !1));
        prop_assert_eq!(
            Sum::ZERO.add_bytes(tail).add_bytes(head).fold(),
            slow_sum(&bytes)
        );
    }

    #[test]
    fn pseudo_headers(src: [u8; 4], dst: [u8; 4], src6: [u8; 16], dst6: [u8; 16], proto in 2u8..,
                      body in proptest::collection::vec(any::<u8>(), 0..100)) {
        let length = u32::try_from(body.len()).unwrap();
        let v4 = pseudo_ipv4(src.into(), dst.into(), proto, length).add_bytes(&body);
        prop_assert_eq!(v4.fold(), slow_l4_sum(&src, &dst, proto, &body));
        let v6 = pseudo_ipv6(src6.into(), dst6.into(), proto, length).add_bytes(&body);
        prop_assert_eq!(v6.fold(), slow_l4_sum(&src6, &dst6, proto, &body));
    }

    /// Rows: RFC 3022 §4.1, §4.2.
    #[test]
    fn incremental_equals_full(
        // A header is never all zeros: its version or its ports are not. Without that, one's
        // complement has two zeros and no update can tell which one was meant.
        constant in 1u16..,
        words in proptest::collection::vec(word(), 1..20),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), word()), 0..6),
    ) {
        let sum = |words: &[u16]| {
            words.iter().fold(Sum::ZERO.add_u16(constant), |sum, word| sum.add_u16(*word))
        };
        let mut after = words.clone();
        let mut delta = Delta::NONE;
        for (at, new) in changes {
            let at = at.index(after.len());
            delta = delta.and(Delta::of_u16(after[at], new));
            after[at] = new;
        }
        prop_assert_eq!(delta.apply(sum(&words).checksum()), sum(&after).checksum());
        prop_assert_eq!(delta.apply_partial(sum(&words).fold()), sum(&after).fold());
        prop_assert_eq!(
            delta.apply_udp(sum(&words).udp_checksum()),
            sum(&after).udp_checksum()
        );
    }

    #[test]
    fn incremental_u32_equals_full(rest in 1u16.., old: u32, new: u32) {
        let sum = |field| Sum::ZERO.add_u16(rest).add_u32(field).checksum();
        prop_assert_eq!(Delta::of_u32(old, new).apply(sum(old)), sum(new));
    }
}
