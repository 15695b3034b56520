//! Messages there and back, read by etherparse too, and every check of RFC 4861 by its section.

use etherparse::icmpv6::{Icmpv6PayloadSlice, NdpOptionSlice};
use etherparse::{Icmpv6Type, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::super::fixtures::{assert_checksums, frame, slow_l4_sum, tagged};
use super::super::parse::parse as parse_frame;
use super::*;

const US: Mac = Mac([2, 0x42, 10, 0, 0, 1]);
const THEM: Mac = Mac([2, 0x42, 10, 0, 0, 2]);
const OURS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1);
const THEIRS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0xaa, 0xbbcc);
const ROUTER_LOCAL: Ipv6Addr = link_local(US);
const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);

const PREFIX: PrefixInfo = PrefixInfo {
    prefix: Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 0),
    len: 64,
    on_link: true,
    autonomous: false,
    valid: 86_400,
    preferred: 14_400,
};
const SERVERS: [[u8; 16]; 2] = [OURS.octets(), THEIRS.octets()];

fn advertisement() -> Message {
    let body = RouterAdvertisement {
        hop_limit: 64,
        managed: true,
        other: false,
        lifetime: 1800,
        reachable_ms: 30_000,
        retransmit_ms: 1000,
    };
    Message { src: ROUTER_LOCAL, dst: ALL_NODES, body: Body::RouterAdvertisement(body) }
}

fn redirect() -> Message {
    let body = Body::Redirect { target: link_local(THEM), destination: THEIRS };
    Message { src: ROUTER_LOCAL, dst: OURS, body }
}

fn router_solicitation() -> Message {
    Message { src: link_local(THEM), dst: ALL_ROUTERS, body: Body::RouterSolicitation }
}

/// One of each, with options.
fn samples() -> Vec<(Message, Vec<NdpOption<'static>>)> {
    let solicitation = Message::solicitation(OURS, THEIRS);
    vec![
        (solicitation, vec![NdpOption::SourceLink(US)]),
        (Message::solicitation(Ipv6Addr::UNSPECIFIED, THEIRS), vec![]),
        (solicitation.answer(false).unwrap(), vec![NdpOption::TargetLink(THEM)]),
        (Message::announcement(OURS, true), vec![NdpOption::TargetLink(US)]),
        (router_solicitation(), vec![NdpOption::SourceLink(THEM)]),
        (
            advertisement(),
            vec![
                NdpOption::SourceLink(US),
                NdpOption::Mtu(1500),
                NdpOption::Prefix(PREFIX),
                NdpOption::Prefix(PrefixInfo { autonomous: true, on_link: false, ..PREFIX }),
                NdpOption::Rdnss { lifetime: 600, servers: &SERVERS },
            ],
        ),
        (redirect(), vec![NdpOption::TargetLink(THEM), NdpOption::Redirected(&[9; 48])]),
    ]
}

fn written(message: &Message, options: &[NdpOption<'_>]) -> Vec<u8> {
    let mut frame = frame(&[0xee; 300]);
    if message.dst.is_multicast() {
        message.write_multicast(&mut frame, US, options);
    } else {
        message.write(&mut frame, THEM, US, options);
    }
    frame.bytes().to_vec()
}

fn read(bytes: &[u8]) -> Result<(Message, Options<'_>), NdpError> {
    parse(bytes, &parse_frame(bytes).unwrap())
}

/// Sets the checksum anew.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[56..58].fill(0);
    let sum = slow_l4_sum(&bytes[22..38], &bytes[38..54], 58, &bytes[54..]);
    bytes[56..58].copy_from_slice(&(!sum).to_be_bytes());
    bytes
}

/// A sound frame with bytes changed.
fn changed(message: &Message, options: &[NdpOption<'_>], at: usize, values: &[u8]) -> Vec<u8> {
    let mut bytes = written(message, options);
    bytes[at..at + values.len()].copy_from_slice(values);
    seal(bytes)
}

/// What `message` is refused for.
fn refusal(message: &Message, options: &[NdpOption<'_>]) -> Option<NdpError> {
    read(&written(message, options)).err()
}

#[test]
fn a_solicitation_has_the_bytes_of_rfc_4861() {
    let bytes = written(&Message::solicitation(OURS, THEIRS), &[NdpOption::SourceLink(US)]);
    assert_eq!(bytes[..6], [0x33, 0x33, 0xff, 0xaa, 0xbb, 0xcc], "RFC 2464 §7");
    assert_eq!(bytes[6..22], [2, 0x42, 10, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
    assert_eq!(bytes[22..38], OURS.octets());
    assert_eq!(bytes[38..54], [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xaa, 0xbb, 0xcc]);
    assert_eq!(bytes[54..56], [135, 0]);
    assert_eq!(bytes[58..62], [0; 4]);
    assert_eq!(bytes[62..78], THEIRS.octets());
    assert_eq!(bytes[78..], [1, 1, 2, 0x42, 10, 0, 0, 1]);
}

#[test]
fn what_is_written_is_read() {
    for (message, options) in samples() {
        let bytes = written(&message, &options);
        assert_checksums(&bytes);
        let (again, read_options) = read(&bytes).unwrap();
        assert_eq!(again, message);
        assert_eq!(read_options.iter().collect::<Vec<_>>(), options);
        let behind_tags = tagged(&bytes, &[(0x8100, 7)]);
        assert_eq!(read(&behind_tags).unwrap().0, message);
    }
}

#[test]
fn etherparse_reads_the_same() {
    for (message, options) in samples() {
        let bytes = written(&message, &options);
        let sliced = SlicedPacket::from_ethernet(&bytes).unwrap();
        let Some(TransportSlice::Icmpv6(slice)) = &sliced.transport else { panic!("{message:?}") };
        assert!(slice.is_checksum_valid(message.src.octets(), message.dst.octets()));
        let payload = slice.payload_slice().unwrap();
        let theirs = match (&payload, slice.icmp_type(), message.body) {
            (
                Icmpv6PayloadSlice::NeighborSolicitation(it),
                Icmpv6Type::NeighborSolicitation,
                Body::NeighborSolicitation { target },
            ) => {
                assert_eq!(it.target_address(), target);
                it.options_iterator()
            }
            (
                Icmpv6PayloadSlice::NeighborAdvertisement(it),
                Icmpv6Type::NeighborAdvertisement(header),
                Body::NeighborAdvertisement { target, router, solicited, overrides },
            ) => {
                assert_eq!(it.target_address(), target);
                assert_eq!((header.router, header.solicited), (router, solicited));
                assert_eq!(header.r#override, overrides);
                it.options_iterator()
            }
            (
                Icmpv6PayloadSlice::RouterAdvertisement(it),
                Icmpv6Type::RouterAdvertisement(header),
                Body::RouterAdvertisement(ours),
            ) => {
                assert_eq!(it.reachable_time(), ours.reachable_ms);
                assert_eq!(it.retrans_timer(), ours.retransmit_ms);
                assert_eq!(header.cur_hop_limit, ours.hop_limit);
                assert_eq!(header.managed_address_config, ours.managed);
                assert_eq!(header.other_config, ours.other);
                assert_eq!(header.router_lifetime, ours.lifetime);
                it.options_iterator()
            }
            (
                Icmpv6PayloadSlice::RouterSolicitation(it),
                Icmpv6Type::RouterSolicitation,
                Body::RouterSolicitation,
            ) => it.options_iterator(),
            (
                Icmpv6PayloadSlice::Redirect(it),
                Icmpv6Type::Redirect,
                Body::Redirect { target, destination },
            ) => {
                assert_eq!((it.target_address(), it.destination_address()), (target, destination));
                it.options_iterator()
            }
            other => panic!("{other:?}"),
        };
        let theirs: Vec<_> = theirs.map(Result::unwrap).collect();
        assert_eq!(theirs.len(), options.len());
        for (theirs, ours) in theirs.iter().zip(&options) {
            match (theirs, ours) {
                (NdpOptionSlice::SourceLinkLayerAddress(it), NdpOption::SourceLink(mac)) => {
                    assert_eq!(it.link_layer_address(), mac.0);
                }
                (NdpOptionSlice::TargetLinkLayerAddress(it), NdpOption::TargetLink(mac)) => {
                    assert_eq!(it.link_layer_address(), mac.0);
                }
                (NdpOptionSlice::Mtu(it), NdpOption::Mtu(mtu)) => assert_eq!(it.mtu(), *mtu),
                (NdpOptionSlice::RedirectedHeader(it), NdpOption::Redirected(packet)) => {
                    assert_eq!(it.redirected_packet(), *packet);
                }
                (NdpOptionSlice::PrefixInformation(it), NdpOption::Prefix(info)) => {
                    assert_eq!((it.prefix(), it.prefix_length()), (info.prefix.octets(), info.len));
                    assert_eq!(it.on_link(), info.on_link);
                    assert_eq!(it.autonomous_address_configuration(), info.autonomous);
                    assert_eq!(it.valid_lifetime(), info.valid);
                    assert_eq!(it.preferred_lifetime(), info.preferred);
                }
                // It does not know name servers.
                (NdpOptionSlice::Unknown(it), NdpOption::Rdnss { .. }) => {
                    assert_eq!(it.as_bytes()[..8], [25, 5, 0, 0, 0, 0, 2, 88]);
                    assert_eq!(it.as_bytes()[8..], SERVERS.concat());
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn answers_go_to_who_asked() {
    let solicitation = Message::solicitation(OURS, THEIRS);
    let answer = solicitation.answer(true).unwrap();
    assert_eq!((answer.src, answer.dst), (THEIRS, OURS));
    let Body::NeighborAdvertisement { target, router, solicited, overrides } = answer.body else {
        panic!("{answer:?}")
    };
    assert_eq!((target, router, solicited, overrides), (THEIRS, true, true, true));
    // RFC 4861 §7.2.4: without a source, all nodes are told, unsolicited.
    let probe = Message::solicitation(Ipv6Addr::UNSPECIFIED, THEIRS);
    assert!(probe.is_probe() && !solicitation.is_probe() && !answer.is_probe());
    let defence = probe.answer(false).unwrap();
    assert_eq!((defence.src, defence.dst), (THEIRS, ALL_NODES));
    assert!(matches!(defence.body, Body::NeighborAdvertisement { solicited: false, .. }));
    assert_eq!(answer.answer(true), None);
}

#[test]
fn addresses_of_rfc_4291() {
    let mac = Mac([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]);
    assert_eq!(link_local(mac), "fe80::3656:78ff:fe9a:bcde".parse::<Ipv6Addr>().unwrap());
    assert_eq!(eui64(THEIRS, mac), "fd00:0:0:1:3656:78ff:fe9a:bcde".parse::<Ipv6Addr>().unwrap());
    // RFC 4291 §2.7.1's example.
    let address = "4037::01:800:200e:8c6c".parse().unwrap();
    assert_eq!(solicited_node(address), "ff02::1:ff0e:8c6c".parse::<Ipv6Addr>().unwrap());
    assert_eq!(multicast_mac(ALL_NODES), Mac([0x33, 0x33, 0, 0, 0, 1]));
}

#[test]
fn section_6_1_and_7_1_what_all_messages_must_be() {
    for (message, options) in samples() {
        let sound = written(&message, &options);
        let with = |at: usize, value: u8| changed(&message, &options, at, &[value]);
        assert_eq!(read(&with(21, 254)).unwrap_err(), NdpError::HopLimit, "{message:?}");
        assert_eq!(read(&with(55, 1)).unwrap_err(), NdpError::Code, "{message:?}");
        let mut wrong = sound.clone();
        wrong[59] ^= 1;
        assert_eq!(read(&wrong).unwrap_err(), NdpError::Checksum, "{message:?}");
        // Cut short: everything from a bare header to one byte less than the fixed part.
        let (_, length) = message.body.shape();
        for keep in 8..length {
            let mut short = sound[..54 + keep].to_vec();
            short[19] = u8::try_from(keep).unwrap();
            assert_eq!(read(&seal(short)).unwrap_err(), NdpError::Length, "{message:?} {keep}");
        }
        let mut bare = sound[..54 + length].to_vec();
        bare[19] = u8::try_from(length).unwrap();
        assert!(read(&seal(bare)).is_ok(), "options are optional: {message:?}");
    }
}

/// RFC 6980 §5.
#[test]
fn fragments_are_refused() {
    for (word, error) in [(0, NdpError::Fragment), (1, NdpError::Fragment), (8, NdpError::Other)] {
        let mut bytes = written(&Message::solicitation(OURS, THEIRS), &[]);
        bytes.splice(54..54, [58, 0, 0, word, 0, 0, 0, 9]);
        (bytes[19], bytes[20]) = (32, 44);
        assert_eq!(read(&bytes).unwrap_err(), error, "{word}");
    }
    // Other extension headers are no reason.
    let mut bytes = written(&Message::solicitation(OURS, THEIRS), &[]);
    bytes.splice(54..54, [58, 0, 1, 4, 0, 0, 0, 0]);
    (bytes[19], bytes[20]) = (32, 0);
    assert_eq!(read(&bytes).unwrap().0, Message::solicitation(OURS, THEIRS));
}

#[test]
fn other_packets_are_not_ours() {
    let solicitation = Message::solicitation(OURS, THEIRS);
    for kind in [1, 128, 130, 132, 138, 143] {
        let bytes = changed(&solicitation, &[], 54, &[kind]);
        assert_eq!(read(&bytes).unwrap_err(), NdpError::Other, "type {kind}");
    }
    let mut udp = written(&solicitation, &[]);
    udp[20] = 17;
    assert_eq!(read(&udp).unwrap_err(), NdpError::Other);
}

#[test]
fn section_7_1_1_neighbor_solicitations() {
    let ask = |src, dst, target| Message { src, dst, body: Body::NeighborSolicitation { target } };
    let nobody = Ipv6Addr::UNSPECIFIED;
    let link = [NdpOption::SourceLink(US)];
    assert_eq!(refusal(&ask(OURS, ALL_NODES, GROUP), &link), Some(NdpError::Target));
    assert_eq!(refusal(&ask(nobody, THEIRS, THEIRS), &[]), Some(NdpError::Destination));
    assert_eq!(refusal(&ask(nobody, ALL_NODES, THEIRS), &[]), Some(NdpError::Destination));
    assert_eq!(
        refusal(&ask(nobody, solicited_node(THEIRS), THEIRS), &link),
        Some(NdpError::Option)
    );
    assert_eq!(refusal(&ask(nobody, solicited_node(THEIRS), THEIRS), &[]), None);
    // A neighbor known is asked directly (§7.2.2), with or without its link address.
    assert_eq!(refusal(&ask(OURS, THEIRS, THEIRS), &[]), None);
    assert_eq!(refusal(&ask(OURS, THEIRS, THEIRS), &link), None);
}

#[test]
fn section_7_1_2_neighbor_advertisements() {
    let tell = |dst, target, solicited| {
        let body =
            Body::NeighborAdvertisement { target, router: false, solicited, overrides: true };
        Message { src: THEIRS, dst, body }
    };
    assert_eq!(refusal(&tell(OURS, GROUP, true), &[]), Some(NdpError::Target));
    assert_eq!(refusal(&tell(ALL_NODES, THEIRS, true), &[]), Some(NdpError::Destination));
    assert_eq!(refusal(&tell(ALL_NODES, THEIRS, false), &[]), None);
    assert_eq!(refusal(&tell(OURS, THEIRS, true), &[]), None);
}

#[test]
fn section_6_1_1_router_solicitations() {
    let nobody = Message { src: Ipv6Addr::UNSPECIFIED, ..router_solicitation() };
    assert_eq!(refusal(&nobody, &[NdpOption::SourceLink(US)]), Some(NdpError::Option));
    assert_eq!(refusal(&nobody, &[]), None);
}

#[test]
fn section_6_1_2_router_advertisements() {
    for src in [OURS, Ipv6Addr::UNSPECIFIED, GROUP] {
        assert_eq!(refusal(&Message { src, ..advertisement() }, &[]), Some(NdpError::Source));
    }
}

#[test]
fn section_8_1_redirects() {
    assert_eq!(refusal(&Message { src: OURS, ..redirect() }, &[]), Some(NdpError::Source));
    let to = |target, destination| {
        let body = Body::Redirect { target, destination };
        refusal(&Message { body, ..redirect() }, &[])
    };
    assert_eq!(to(link_local(THEM), GROUP), Some(NdpError::Destination));
    assert_eq!(to(OURS, THEIRS), Some(NdpError::Target));
    assert_eq!(to(THEIRS, THEIRS), None, "on the link");
}

#[test]
fn section_4_6_options() {
    let advertisement = advertisement();
    let options = |bytes: &[u8]| {
        let mut frame = written(&advertisement, &[]);
        frame.extend_from_slice(bytes);
        frame[19] = u8::try_from(16 + bytes.len()).unwrap();
        let frame = seal(frame);
        read(&frame).map(|(_, options)| {
            options.iter().map(|option| format!("{option:?}")).collect::<Vec<_>>().join(" ")
        })
    };
    let refused = Err(NdpError::Option);
    assert_eq!(options(&[1, 0, 2, 0, 0, 0, 0, 1]), refused, "no length");
    assert_eq!(options(&[200, 0, 0, 0, 0, 0, 0, 0]), refused, "no length, not even of others");
    assert_eq!(options(&[1]), refused);
    assert_eq!(options(&[1, 1, 2, 0, 0, 0, 0]), refused, "ends behind the message");
    assert_eq!(options(&[5, 1, 0, 0, 0, 0, 5, 220, 200, 2, 0, 0, 0, 0, 0, 0]), refused);
    let long = [1, 2, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(options(&long), refused, "no MAC");
    assert_eq!(options(&[]), Ok(String::new()));
    let two = [200, 1, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1];
    assert_eq!(options(&two), Ok("Other(200) SourceLink(02:00:00:00:00:01)".into()), "skipped");
    // Known ones of another form say nothing.
    for (kind, units) in [(3, 1), (5, 2), (25, 1), (25, 2), (25, 4)] {
        let mut option = vec![kind, units];
        option.resize(usize::from(units) * 8, 0);
        assert_eq!(options(&option), Ok(format!("Other({kind})")), "{units} units");
    }
    let mut prefix = vec![3, 4, 129];
    prefix.resize(32, 0);
    assert_eq!(options(&prefix), Ok("Other(3)".into()), "more bits than an address has");
}

#[test]
fn the_first_of_several_link_addresses_counts() {
    let both = [NdpOption::SourceLink(US), NdpOption::SourceLink(THEM), NdpOption::TargetLink(US)];
    let bytes = written(&Message::solicitation(OURS, THEIRS), &both);
    let (_, options) = read(&bytes).unwrap();
    assert_eq!((options.source_link(), options.target_link()), (Some(US), Some(US)));
    assert_eq!(options.iter().count(), 3);
}

#[test]
fn options_that_do_not_fit_are_cut() {
    let servers = [[7; 16]; 200];
    let options = [NdpOption::Rdnss { lifetime: 1, servers: &servers }, NdpOption::Mtu(9)];
    let bytes = written(&advertisement(), &options);
    let (_, read_options) = read(&bytes).unwrap();
    let expected = NdpOption::Rdnss { lifetime: 1, servers: &servers[..127] };
    assert_eq!(read_options.iter().collect::<Vec<_>>(), [expected, NdpOption::Mtu(9)]);
    // What is not known cannot be written.
    let bytes = written(&advertisement(), &[NdpOption::Other(9), NdpOption::Mtu(9)]);
    assert_eq!(read(&bytes).unwrap().1.iter().collect::<Vec<_>>(), [NdpOption::Mtu(9)]);
    // A quote is filled up with zeros, or cut.
    for (length, quoted) in [(1, 8), (8, 8), (9, 16), (2032, 2032), (5000, 2032)] {
        let packet = vec![5; length];
        let bytes = written(&redirect(), &[NdpOption::Redirected(&packet)]);
        let (_, options) = read(&bytes).unwrap();
        let Some(NdpOption::Redirected(again)) = options.iter().next() else { panic!("{length}") };
        assert_eq!(again.len(), quoted);
        let both = length.min(quoted);
        assert_eq!(again[..both], packet[..both]);
        assert!(again[both..].iter().all(|&byte| byte == 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Nothing panics, and whatever is read can be written and read again.
    #[test]
    fn damaged_messages(
        sample in 0..7usize,
        changes in proptest::collection::vec((14usize..200, any::<u8>()), 0..6),
        cut in proptest::option::of(54usize..200),
    ) {
        let (message, options) = samples().swap_remove(sample);
        let mut bytes = written(&message, &options);
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.max(62));
        }
        let length = u16::try_from(bytes.len() - 54).unwrap();
        bytes[18..20].copy_from_slice(&length.to_be_bytes());
        let bytes = seal(bytes);
        if let Ok((message, options)) = read(&bytes) {
            let known: Vec<_> =
                options.iter().filter(|it| !matches!(it, NdpOption::Other(_))).collect();
            let again = written(&message, &known);
            let (message_again, options_again) = read(&again).unwrap();
            prop_assert_eq!(message_again, message);
            prop_assert_eq!(options_again.iter().collect::<Vec<_>>(), known);
        }
    }
}
