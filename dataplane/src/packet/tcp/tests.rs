use proptest::prelude::*;

use super::*;
use crate::packet::fixtures::slow_l4_sum;
use crate::packet::types::ip_proto;

const SRC: [u8; 4] = [10, 0, 0, 1];
const DST: [u8; 4] = [10, 0, 0, 2];

/// A SYN with these options, its checksum sound.
fn syn(options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x9c, 0x40, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, 0, 2, 0xfa, 0xf0, 0, 0, 0, 0];
    bytes.extend_from_slice(options);
    bytes.resize(bytes.len().next_multiple_of(4), END);
    bytes[12] = u8::try_from(bytes.len() / 4).unwrap() << 4;
    let sum = !slow_l4_sum(&SRC, &DST, ip_proto::TCP, &bytes);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn is_sound(bytes: &[u8]) -> bool {
    slow_l4_sum(&SRC, &DST, ip_proto::TCP, bytes) == 0xffff
}

fn len(bytes: &[u8]) -> u8 {
    u8::try_from(bytes.len()).unwrap()
}

#[test]
fn numbers_are_read() {
    let expected = Numbers { seq: 0x0102_0304, ack: 0x0506_0708, window: 0xfaf0 };
    assert_eq!(numbers(&syn(&[]), 0), Some(expected));
    assert_eq!(numbers(&syn(&[])[..19], 0), None);
}

#[test]
fn options_are_found_behind_others() {
    for (options, scale) in [
        (&[WINDOW_SCALE, 3, 7][..], Some(7)),
        (&[NOP, NOP, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, NOP, WINDOW_SCALE, 3, 14], Some(14)),
        (&[MSS, 4, 5, 180, NOP, WINDOW_SCALE, 3, 2], Some(2)),
        (&[], None),
        // Behind the end, of another length, cut short, of no length.
        (&[END, WINDOW_SCALE, 3, 7], None),
        (&[WINDOW_SCALE, 4, 7, 7], None),
        (&[NOP, NOP, NOP, WINDOW_SCALE], None),
        (&[8, 0, WINDOW_SCALE, 3, 7], None),
        (&[8, 1, WINDOW_SCALE, 3, 7], None),
        (&[8, 40, WINDOW_SCALE, 3, 7], None),
    ] {
        let bytes = syn(options);
        assert_eq!(window_scale(&bytes, 0, len(&bytes)), scale, "{options:?}");
    }
    assert_eq!(window_scale(&syn(&[WINDOW_SCALE, 3, 7]), 0, 60), None, "beyond the frame");
}

#[test]
fn the_mss_is_lowered_and_never_raised() {
    for (offered, limit, after) in [(1460, 1240, 1240), (1240, 1240, 1240), (536, 1240, 536)] {
        let [high, low] = u16::to_be_bytes(offered);
        let mut bytes = syn(&[MSS, 4, high, low]);
        let len = len(&bytes);
        assert_eq!(clamp_mss(&mut bytes, 0, len, false, limit), after != offered);
        assert_eq!(read_u16(&bytes, 22), Some(after));
        assert!(is_sound(&bytes));
    }
}

#[test]
fn a_partial_checksum_does_not_know_of_options() {
    let mut bytes = syn(&[MSS, 4, 5, 180]);
    let len = len(&bytes);
    let sum = read_u16(&bytes, TCP_CHECKSUM);
    assert!(clamp_mss(&mut bytes, 0, len, true, 1000));
    assert_eq!(read_u16(&bytes, TCP_CHECKSUM), sum);
}

proptest! {
    #[test]
    fn any_options_keep_the_checksum_sound(
        options in prop::collection::vec(prop_oneof![Just(NOP), Just(MSS), Just(4), any::<u8>()], 0..40),
        limit: u16,
    ) {
        let mut bytes = syn(&options);
        let before = bytes.clone();
        let len = len(&bytes);
        let changed = clamp_mss(&mut bytes, 0, len, false, limit);
        prop_assert!(is_sound(&bytes));
        prop_assert_eq!(changed, bytes != before);
    }

    #[test]
    fn an_odd_place_is_no_hindrance(offered in 1001u16.., limit in 0u16..1000) {
        let [high, low] = offered.to_be_bytes();
        let mut bytes = syn(&[NOP, MSS, 4, high, low]);
        let len = len(&bytes);
        prop_assert!(clamp_mss(&mut bytes, 0, len, false, limit));
        prop_assert!(is_sound(&bytes));
    }
}
