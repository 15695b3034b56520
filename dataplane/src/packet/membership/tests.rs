use super::*;
use crate::packet::parse::parse;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const G: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const G6: Ipv6Addr = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 0x123);
const NEAR: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Where the IP header begins.
const IP: usize = 14;

/// A packet of IGMP, with its sums.
fn igmp(body: &[u8]) -> Vec<u8> {
    let mut igmp = body.to_vec();
    let sum = Sum::ZERO.add_bytes(&igmp).checksum();
    write_u16(&mut igmp, 2, sum);
    let length = u8::try_from(20 + igmp.len()).unwrap();
    let ip = [0x45, 0, 0, length, 0, 0, 0, 0, 1, 2, 0, 0, 10, 0, 0, 2, 239, 1, 2, 3];
    let mut bytes = [&[1, 0, 0x5e, 1, 2, 3, 2, 0, 0, 0, 0, 2, 8, 0], &ip[..], &igmp].concat();
    sum_header(&mut bytes);
    bytes
}

fn sum_header(bytes: &mut [u8]) {
    write_u16(bytes, IP + 10, 0);
    let sum = Sum::ZERO.add_bytes(&bytes[IP..IP + 20]).checksum();
    write_u16(bytes, IP + 10, sum);
}

/// A packet of MLD from `NEAR` with a router alert, with its sum.
fn mld(body: &[u8]) -> Vec<u8> {
    let mut mld = body.to_vec();
    let length = u32::try_from(mld.len()).unwrap();
    let sum = pseudo_ipv6(NEAR, G6, 58, length).add_bytes(&mld).checksum();
    write_u16(&mut mld, 2, sum);
    let mut ip = vec![0x60, 0, 0, 0, 0, u8::try_from(8 + mld.len()).unwrap(), 0, 1];
    ip.extend(NEAR.octets());
    ip.extend(G6.octets());
    ip.extend([58, 0, 5, 2, 0, 0, 1, 0]);
    [&[0x33, 0x33, 0, 0, 1, 0x23, 2, 0, 0, 0, 0, 2, 0x86, 0xdd], &ip[..], &mld].concat()
}

fn message(bytes: &[u8]) -> Message<'_> {
    read(bytes, &parse(bytes).unwrap())
}

/// What it changes; `None`: it is not taken for a report.
fn changes(bytes: &[u8]) -> Option<Vec<(IpAddr, Change)>> {
    match message(bytes) {
        Message::Report(records) => Some(records.collect()),
        _ => None,
    }
}

fn query(bytes: &[u8]) -> Option<Query> {
    match message(bytes) {
        Message::Query(query) => Some(query),
        _ => None,
    }
}

#[track_caller]
fn assert_malformed(bytes: &[u8]) {
    let read = message(bytes);
    assert!(matches!(read, Message::Malformed), "{read:?}");
}

#[test]
fn reports_of_all_versions_of_igmp_are_read() {
    let (join, leave) = (Change::Join, Change::Leave);
    for (kind, change) in [(0x12, join), (0x16, join), (0x17, leave)] {
        let frame = igmp(&[kind, 0, 0, 0, 239, 1, 2, 3]);
        assert_eq!(changes(&frame), Some(vec![(G.into(), change)]));
    }
    assert!(matches!(message(&igmp(&[0x99, 0, 0, 0, 239, 1, 2, 3])), Message::Unknown));
    // Each kind of record with and without a source; the first one has auxiliary data, which is skipped.
    let table = [
        (1, 0, None),
        (1, 1, Some(join)),
        (2, 0, Some(join)),
        (3, 0, Some(leave)),
        (3, 1, Some(join)),
        (4, 0, Some(join)),
        (5, 1, Some(join)),
        (6, 1, None),
        (7, 0, None),
    ];
    let mut body = vec![0x22, 0, 0, 0, 0, 0, 0, u8::try_from(table.len()).unwrap()];
    let mut expected = Vec::new();
    for (at, (kind, sources, change)) in (0u8..).zip(table) {
        let aux = u8::from(at == 0);
        body.extend([kind, aux, 0, sources, 239, 1, 2, at]);
        body.extend(vec![9; usize::from(sources) * 4 + usize::from(aux) * 4]);
        expected.extend(change.map(|change| (IpAddr::from([239, 1, 2, at]), change)));
    }
    assert_eq!(changes(&igmp(&body)), Some(expected));
    // It says that it has more than it has, or lies about lengths.
    let short = igmp(&[0x22, 0, 0, 0, 0, 0, 0xff, 0xff, 4, 0, 0, 0, 239, 1, 2, 3, 4, 0, 0, 9, 1]);
    assert_eq!(changes(&short), Some(vec![(G.into(), join)]));
    match message(&short) {
        Message::Report(records) => assert_eq!(records.at_most(), 1),
        other => panic!("{other:?}"),
    }
    let long = igmp(&[0x22, 0, 0, 0, 0, 0, 0, 1, 4, 0xff, 0xff, 0xff, 239, 1, 2, 3]);
    assert_eq!(changes(&long), Some(vec![]));
}

#[test]
fn what_is_not_sound_says_nothing() {
    let sound = igmp(&[0x16, 0, 0, 0, 239, 1, 2, 3]);
    assert!(changes(&sound).is_some());
    let changed = |at: usize, to: u8| {
        let mut bytes = sound.clone();
        bytes[at] = to;
        bytes
    };
    let summed = |mut bytes: Vec<u8>| {
        sum_header(&mut bytes);
        bytes
    };
    // The last octet, the header's sum, a first and a later fragment, to one host, to all of them.
    assert_malformed(&changed(sound.len() - 1, 4));
    assert_malformed(&changed(IP + 8, 2));
    assert_malformed(&summed(changed(IP + 6, 0x20)));
    assert_malformed(&summed(changed(IP + 7, 1)));
    assert_malformed(&summed(changed(IP + 16, 10)));
    assert_malformed(&summed(changed(IP + 16, 255)));
    assert!(changes(&summed(changed(IP + 8, 2))).is_some());
    for short in [&[0x16, 0, 0, 0][..], &[0x22, 0, 0, 0, 0, 0, 0], &[]] {
        let mut body = short.to_vec();
        body.resize(body.len().max(4), 0);
        assert_malformed(&igmp(&body));
    }
    // MLD: too far, without the alert, from another link, its sum, cut short.
    let sound = mld(&[&[131, 0, 0, 0, 0, 0, 0, 0], &G6.octets()[..]].concat());
    assert!(changes(&sound).is_some());
    for (at, to) in [(7, 2), (6, 60), (8, 0x20), (40 + 8 + 23, 9)] {
        let mut bytes = sound.clone();
        bytes[IP + at] = to;
        assert_malformed(&bytes);
    }
    assert_malformed(&mld(&[131, 0, 0, 0, 0, 0, 0, 0, 1]));
}

#[test]
fn mld_in_fragments_says_nothing() {
    let report = mld(&[&[131, 0, 0, 0, 0, 0, 0, 0], &G6.octets()[..]].concat());
    // A fragment header behind the hop-by-hop options: of a whole packet, and of a first fragment.
    for more in [0, 1] {
        let mut bytes = report.clone();
        bytes[IP + 5] += 8;
        bytes[IP + 40] = 44;
        bytes.splice(IP + 48..IP + 48, [58, 0, 0, more, 0, 0, 0, 7]);
        assert_malformed(&bytes);
    }
}

#[test]
fn queries_are_written_as_they_are_read() {
    let mut frame = Frame::new();
    for group in [None, Some(G)] {
        write_query4(&mut frame, MAC, Ipv4Addr::new(10, 0, 0, 1), group);
        let headers = parse(frame.bytes()).unwrap();
        let Net::Ipv4(ip) = headers.net else { panic!("{headers:?}") };
        assert!(ipv4_header_is_valid(&frame.bytes()[14..38]));
        assert_eq!((ip.ttl, ip.dst), (1, group.unwrap_or(ALL_HOSTS)));
        let response = if group.is_some() { 1 } else { Query::OWN.response };
        let expected = Query { group: group.map(IpAddr::V4), response, ..Query::OWN };
        assert_eq!(query(frame.bytes()), Some(expected));
    }
    assert_eq!(frame.bytes()[..6], [1, 0, 0x5e, 1, 2, 3]);
    for group in [None, Some(G6)] {
        write_query6(&mut frame, MAC, NEAR, group);
        let response = if group.is_some() { 1 } else { Query::OWN.response };
        let expected = Query { group: group.map(IpAddr::V6), response, ..Query::OWN };
        assert_eq!(query(frame.bytes()), Some(expected));
    }
    assert_eq!(frame.bytes()[..6], [0x33, 0x33, 0, 0, 1, 0x23]);
}

#[test]
fn what_others_ask_is_understood_as_they_mean_it() {
    let of = |body: &[u8]| query(&igmp(body));
    let all = Query { renewal: 250, ..Query::OWN };
    let one = Query { group: Some(G.into()), ..all };
    // Versions 1 and 2: by code and length.
    assert_eq!(of(&[0x11, 0, 0, 0, 239, 1, 2, 3]), Some(Query { response: 10, ..all }));
    assert_eq!(of(&[0x11, 15, 0, 0, 239, 1, 2, 3]), Some(Query { response: 2, ..one }));
    assert_malformed(&igmp(&[0x11, 15, 0, 0, 239, 1, 2, 3, 0, 0]));
    // Version 3: robustness and interval, and a response time of (8|16) << 4 tenths.
    let v3 = |rest: &[u8]| of(&[&[0x11, 0x98, 0, 0, 239, 1, 2, 3], rest].concat());
    assert_eq!(v3(&[0, 0, 0, 0]), Some(Query { response: 39, ..one }));
    assert_eq!(v3(&[3, 60, 0, 0]), Some(Query { response: 39, renewal: 180, ..one }));
    // Neither for some sources, nor where it says so, is silence an answer.
    let none = Query { response: 39, counts: false, ..one };
    assert_eq!(v3(&[0, 0, 0, 1, 9, 9, 9, 9]), Some(none));
    assert_eq!(v3(&[8, 0, 0, 0]), Some(none));
    assert_malformed(&igmp(&[0x11, 1, 0, 0, 239, 1, 2, 3, 0, 0, 0, 2, 9, 9, 9, 9]));
    // MLD, in milliseconds; 0x8000 is 0x1000 << 3.
    let of = |code: u16, rest: &[u8]| {
        let [c0, c1] = code.to_be_bytes();
        query(&mld(&[&[130, 0, 0, 0, c0, c1, 0, 0], &G6.octets()[..], rest].concat()))
    };
    let one = Query { group: Some(G6.into()), ..all };
    assert_eq!(of(0xffff, &[]), Some(Query { response: 66, ..one }));
    assert_eq!(of(1500, &[0, 0, 0, 0]), Some(Query { response: 2, ..one }));
    assert_eq!(of(0x8000, &[0, 0, 0, 0]), Some(Query { response: 33, ..one }));
    let some = [&[0, 0, 0, 1][..], &NEAR.octets()].concat();
    assert_eq!(of(1000, &some), Some(Query { response: 1, counts: false, ..one }));
    assert_eq!(of(1000, &[0]), None);
}

#[test]
fn reports_of_mld_are_read() {
    let one = |kind: u8| [&[kind, 0, 0, 0, 0, 0, 0, 0], &G6.octets()[..]].concat();
    assert_eq!(changes(&mld(&one(131))), Some(vec![(G6.into(), Change::Join)]));
    assert_eq!(changes(&mld(&one(132))), Some(vec![(G6.into(), Change::Leave)]));
    let record = |kind: u8| [&[kind, 0, 0, 0], &G6.octets()[..]].concat();
    let both = [&[143, 0, 0, 0, 0, 0, 0, 2][..], &record(4), &record(3)].concat();
    let expected = vec![(G6.into(), Change::Join), (G6.into(), Change::Leave)];
    assert_eq!(changes(&mld(&both)), Some(expected));
}

#[test]
fn groups_of_a_link_are_for_all() {
    for (group, all) in [
        ("224.0.0.251", true),
        ("224.0.1.1", false),
        ("239.255.255.250", false),
        ("ff02::1", true),
        ("ff02::1:ff00:1", true),
        ("ff01::1", true),
        ("ff05::2", false),
        ("ff32::1234", true),
        ("ff3e::1", false),
    ] {
        assert_eq!(is_for_all(group.parse().unwrap()), all, "{group}");
    }
}
