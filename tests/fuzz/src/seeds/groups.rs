//! Inputs of the pipeline about multicast groups: hosts that join and leave by IGMP and MLD, a router that
//! asks, and what is sent to those groups.

use dataplane::packet::types::{Mac, PortId};
use tests::lab::{A, B, C};
use tests::packet::{Host, Wire, ethernet};

use crate::targets::pipeline;

const GROUP: [u8; 4] = [239, 1, 2, 3];
/// `ff05::1234`.
const GROUP6: [u8; 16] = [0xff, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34];

const IGMP: u8 = 2;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const PIM: u8 = 103;

/// Nobody's in `pipeline::play`: lengths and sums are made, and nothing else.
const ITSELF: u8 = 8;

fn ipv4(from: &Host, to: [u8; 4], proto: u8, payload: &[u8]) -> Wire {
    let mut ip = vec![0x45, 0xc0, 0, 0, 0, 0, 0x40, 0, 1, proto, 0, 0];
    ip.extend(from.ip.octets());
    ip.extend(to);
    ip.extend(payload);
    let [_, b, c, d] = to;
    ethernet(from.mac, Mac([1, 0, 0x5e, b & 0x7f, c, d]), 0x0800, &ip).into()
}

fn ipv6(from: &Host, to: [u8; 16], head: &[u8], proto: u8, payload: &[u8]) -> Wire {
    let [a, b, c, d, e, f] = from.mac.0;
    let mut ip = vec![0x60, 0, 0, 0, 0, 0, if head.is_empty() { proto } else { 0 }, 1];
    ip.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    ip.extend(to);
    ip.extend(head);
    ip.extend(payload);
    let [.., a, b, c, d] = to;
    ethernet(from.mac, Mac([0x33, 0x33, a, b, c, d]), 0x86dd, &ip).into()
}

fn igmp(from: &Host, to: [u8; 4], message: &[u8]) -> Wire {
    ipv4(from, to, IGMP, message)
}

/// Behind a router alert.
fn mld(from: &Host, message: &[u8]) -> Wire {
    ipv6(from, GROUP6, &[ICMPV6, 0, 5, 2, 0, 0, 1, 0], ICMPV6, message)
}

/// A report of the newest version: as many groups as a port may be in, and more.
fn report(kind: u8, record: u8, group: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 8];
    for n in 0..8 {
        message.extend([record, 0, 0, 0]);
        message.extend(&group[..group.len() - 1]);
        message.push(n);
    }
    message
}

/// What is said of groups, in order.
fn said() -> Vec<(PortId, Wire)> {
    let old = |kind: u8| [&[kind, 0, 0, 0][..], &GROUP].concat();
    let old6 = |kind: u8| [&[kind, 0, 0, 0, 3, 232, 0, 0][..], &GROUP6].concat();
    // Robustness 2, every 20 s, no sources.
    let newer = [2, 20, 0, 0];
    let of_group = [&[0x11, 10, 0, 0][..], &GROUP, &newer].concat();
    let of_group6 = [&old6(130)[..], &newer].concat();
    let from = |host: Host, wire: Wire| (host.port, wire);
    vec![
        from(B, igmp(&B, GROUP, &old(0x12))),
        from(B, igmp(&B, GROUP, &old(0x16))),
        from(A, igmp(&A, [224, 0, 0, 22], &report(0x22, 4, &GROUP))),
        from(C, igmp(&C, [224, 0, 0, 1], &[0x11, 100, 0, 0, 0, 0, 0, 0])),
        from(C, igmp(&C, GROUP, &of_group)),
        from(B, igmp(&B, [224, 0, 0, 2], &old(0x17))),
        from(A, igmp(&A, [224, 0, 0, 22], &report(0x22, 3, &GROUP))),
        from(B, mld(&B, &old6(131))),
        from(A, mld(&A, &report(143, 4, &GROUP6))),
        from(C, mld(&C, &[&[130, 0, 0, 0, 3, 232, 0, 0][..], &[0; 16]].concat())),
        from(C, mld(&C, &of_group6)),
        from(B, mld(&B, &old6(132))),
        from(A, mld(&A, &report(143, 3, &GROUP6))),
        from(C, ipv4(&C, [224, 0, 0, 13], PIM, &[0x20, 0, 0, 0])),
        from(B, igmp(&B, GROUP, &of_group)),
    ]
}

/// Steps of [`pipeline`] between them: time to answer, or no guard.
const PAUSES: [&[u8]; 4] = [&[], &[250, 176, 4], &[252, 2], &[252, 2, 250, 176, 4]];

/// After each, something is sent to both groups.
pub(super) fn programs() -> impl Iterator<Item = Vec<u8>> {
    let data = ipv4(&A, GROUP, UDP, &[0, 9, 0, 9, 0, 10, 0, 0, 1, 2]);
    let data6 = ipv6(&A, GROUP6, &[], UDP, &[0, 9, 0, 9, 0, 10, 0, 0, 1, 2]);
    PAUSES.into_iter().flat_map(move |pause| {
        let (data, data6) = (data.clone(), data6.clone());
        // As many as fit into the steps of an input.
        said()
            .chunks(9)
            .map(move |said| {
                let mut program = vec![0];
                program.extend(pause);
                for (port, wire) in said {
                    pipeline::write(&mut program, *port, ITSELF, wire);
                    program.extend(pause);
                    for wire in [&data, &data6] {
                        pipeline::write(&mut program, A.port, ITSELF, wire);
                    }
                }
                program
            })
            .collect::<Vec<_>>()
    })
}

#[cfg(test)]
mod check {
    use super::*;
    use crate::sound;
    use crate::under_test::{UnderTest, topology};

    #[test]
    fn what_is_said_is_believed() {
        let mut test = UnderTest::new(topology(), true);
        let (mut members, mut routers) = ([0; 2], 0);
        for (port, mut wire) in said() {
            sound::make(&mut wire);
            test.feed(&[(port, wire)]);
            let groups = test.plane.groups();
            let known: Vec<_> = groups.iter().filter_map(|entry| entry.group).collect();
            let six = known.iter().filter(|group| group.is_ipv6()).count();
            members = [members[0].max(known.len() - six), members[1].max(six)];
            routers = groups.iter().filter(|entry| entry.group.is_none()).count();
        }
        // As many as a port may be in, and the one of the other port.
        assert_eq!((members, routers), ([7, 7], 1));
        // Those of A have left; so has B, whose port is guarded too.
        let left: Vec<_> =
            test.plane.groups().into_iter().filter_map(|entry| entry.group).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
