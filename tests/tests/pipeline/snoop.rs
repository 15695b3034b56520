//! IGMP and MLD snooping: who gets packets for a group, after what was said of it and when (RFC 4541, ADR 23).
//! The rows of the kernel's bridge_igmp.sh and bridge_mld.sh.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::config::{PortRole, SnapshotSpec, Vlans};
use dataplane::engine::GroupLimits;
use dataplane::packet::checksum::{Sum, pseudo_ipv6};
use dataplane::packet::types::{Mac, PortId};
use tests::lab::{A, B, C, GATEWAY1, Lab, NET1, dual, endpoint, small, topology, without_guard};
use tests::packet::nd::solicitation;
use tests::packet::{Host, Wire, ethernet};

const G: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const G6: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0x1234);
const HOST: PortId = GATEWAY1.port;
/// Reports of version 3, whatever they say.
const V3: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 22);

fn snooping(querier: bool, change: impl FnOnce(&mut SnapshotSpec)) -> Lab {
    let mut spec = topology();
    (spec.networks[0].snooping, spec.networks[0].querier) = (true, querier);
    change(&mut spec);
    Lab::new(spec)
}

fn ipv4(from: &Host, to: Ipv4Addr, proto: u8, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = (20 + payload.len() as u16).to_be_bytes();
    let mut ip = vec![0x45, 0, l0, l1, 0, 0, 0, 0, 1, proto, 0, 0];
    ip.extend(from.ip.octets());
    ip.extend(to.octets());
    let sum = Sum::ZERO.add_bytes(&ip).checksum();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend(payload);
    let [_, b, c, d] = to.octets();
    ethernet(from.mac, Mac([1, 0, 0x5e, b & 0x7f, c, d]), 0x0800, &ip)
}

fn igmp(from: &Host, to: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let sum = Sum::ZERO.add_bytes(&message).checksum();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(from, to, 2, &message)
}

/// A report of version 2.
fn join(from: &Host, group: Ipv4Addr) -> Vec<u8> {
    igmp(from, group, &[&[0x16, 0, 0, 0][..], &group.octets()].concat())
}

fn leave(from: &Host, group: Ipv4Addr) -> Vec<u8> {
    let to = Ipv4Addr::new(224, 0, 0, 2);
    igmp(from, to, &[&[0x17, 0, 0, 0][..], &group.octets()].concat())
}

/// Of version 3, with one record without sources.
fn report3(from: &Host, kind: u8, group: Ipv4Addr) -> Vec<u8> {
    igmp(from, V3, &[&[0x22, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0][..], &group.octets()].concat())
}

fn query(from: &Host) -> Vec<u8> {
    igmp(from, Ipv4Addr::new(224, 0, 0, 1), &[0x11, 100, 0, 0, 0, 0, 0, 0])
}

/// A datagram for a group.
fn data(from: &Host, group: Ipv4Addr) -> Vec<u8> {
    ipv4(from, group, 17, &[0, 9, 0, 9, 0, 10, 0, 0, 1, 2])
}

/// Who only asks for a group: version 2, with ten seconds to answer, or version 3.
fn query_of(from: &Host, group: Ipv4Addr, rest: &[u8]) -> Vec<u8> {
    igmp(from, group, &[&[0x11, 100, 0, 0][..], &group.octets(), rest].concat())
}

fn tagged(frame: &[u8], vlan: u8) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, vlan], &frame[12..]].concat()
}

/// Who got a frame that a port sent.
fn reached(lab: &mut Lab, port: PortId, frame: impl Into<Wire>) -> Vec<PortId> {
    let mut ports: Vec<_> = lab.rx(port, frame).sent().into_iter().map(|(port, _)| port).collect();
    ports.sort_unstable();
    ports
}

/// Time passes in steps in which no question is left out.
fn pass(lab: &mut Lab, seconds: u64) {
    for _ in 0..seconds {
        lab.after(Duration::from_secs(1)).only_balanced();
    }
}

/// Lets the querier begin, and members have time to answer.
fn begun(lab: &mut Lab) {
    pass(lab, 13);
}

fn role_of<'a>(spec: &'a mut SnapshotSpec, host: &Host) -> &'a mut PortRole {
    &mut spec.ports.iter_mut().find(|port| port.id == host.port).unwrap().role
}

fn trust(spec: &mut SnapshotSpec, host: &Host) {
    let PortRole::Endpoint { trusted, .. } = role_of(spec, host) else { panic!("{host:?}") };
    *trusted = true;
}

#[test]
fn without_snooping_every_group_floods() {
    let mut lab = Lab::default();
    let all = [A.port, B.port, C.port, HOST];
    let wrong = ipv4(&A, G, 2, &[0x16, 0, 0, 0, 239, 1, 2, 3]);
    for (port, frame) in
        [(B.port, join(&B, G)), (C.port, query(&C)), (A.port, data(&A, G)), (A.port, wrong)]
    {
        let others: Vec<_> = all.into_iter().filter(|other| *other != port).collect();
        assert_eq!(reached(&mut lab, port, frame), others);
    }
    assert_eq!(lab.plane.groups(), []);
}

/// Rows: RFC 4541 §2.1.1; RFC 4541 §2.1.2; Linux
/// `bridge_igmp.sh, bridge_mld.sh, bridge_mdb*.sh, bridge_vlan_mcast.sh`.
#[test]
fn with_a_querier_a_group_goes_where_it_was_joined() {
    let mut lab = snooping(true, |_| {});
    // Nobody was asked yet, or had time to answer: everybody gets all. Reports reach routers alone.
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, C.port, HOST]);
    assert_eq!(reached(&mut lab, B.port, join(&B, G)), [HOST]);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, C.port, HOST]);
    begun(&mut lab);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, HOST]);
    assert_eq!(reached(&mut lab, C.port, report3(&C, 4, G)), [HOST]);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, C.port, HOST]);
    // A group that nobody joined goes to routers alone; those of the link to all.
    assert_eq!(reached(&mut lab, A.port, data(&A, Ipv4Addr::new(239, 9, 9, 9))), [HOST]);
    for group in [[224, 0, 0, 251], [224, 0, 0, 1]] {
        let all = [B.port, C.port, HOST];
        assert_eq!(reached(&mut lab, A.port, data(&A, group.into())), all);
    }
    // Broadcasts and groups that are of no IP go to all, and IGMP that nobody knows.
    for to in [Mac::BROADCAST, Mac([1, 0, 0x0c, 0xcc, 0xcc, 0xcd])] {
        let frame = ethernet(A.mac, to, 0x88b5, &[1; 46]);
        assert_eq!(reached(&mut lab, A.port, frame), [B.port, C.port, HOST]);
    }
    let unknown = igmp(&A, Ipv4Addr::new(239, 9, 9, 9), &[0x30, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(reached(&mut lab, A.port, unknown), [B.port, C.port, HOST]);
    // Who leaves by a guarded port has left.
    assert_eq!(reached(&mut lab, B.port, leave(&B, G)), [HOST]);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [C.port, HOST]);
    assert_eq!(reached(&mut lab, C.port, report3(&C, 3, G)), [HOST]);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [HOST]);
    // The host's own packets find members too; what it reports is for no sandbox.
    assert_eq!(reached(&mut lab, B.port, join(&B, G)), [HOST]);
    assert_eq!(reached(&mut lab, HOST, data(&GATEWAY1, G)), [B.port]);
    assert_eq!(reached(&mut lab, HOST, join(&GATEWAY1, G)), []);
}

/// Rows: RFC 3376 §8.4, RFC 3810 §9.4.
#[test]
fn memberships_end_when_nobody_renews_them() {
    let mut lab = snooping(true, |_| {});
    begun(&mut lab);
    lab.rx(B.port, join(&B, G)).only_balanced();
    lab.rx(C.port, join(&C, G)).only_balanced();
    pass(&mut lab, 200);
    lab.rx(C.port, report3(&C, 2, G)).only_balanced();
    pass(&mut lab, 59);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, C.port, HOST]);
    pass(&mut lab, 3);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [C.port, HOST]);
    pass(&mut lab, 200);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [HOST]);
    assert_eq!(lab.plane.groups(), []);
}

/// Rows: RFC 3376 §4.1, RFC 3810 §5.1.
#[test]
fn the_querier_asks_every_port_but_the_host() {
    let mut spec = dual();
    (spec.networks[0].snooping, spec.networks[0].querier) = (true, true);
    // With fewer buffers than there are questions.
    let mut lab = Lab::with(&EngineOptions { buffers_per_worker: 2, ..small() }, spec);
    let frames = lab.after(Duration::from_secs(1)).sent();
    assert_eq!(frames.len(), 6);
    let to_a: Vec<_> = frames.iter().filter(|(port, _)| *port == A.port).collect();
    assert_eq!(to_a.len(), 2, "one of each family: {to_a:#?}");
    assert_eq!(to_a[0].1.bytes[..14], [1, 0, 0x5e, 0, 0, 1, 2, 0x42, 10, 1, 0, 1, 8, 0]);
    assert_eq!(to_a[0].1.bytes[38..40], [0x11, 100]);
    assert_eq!(to_a[1].1.bytes[..6], [0x33, 0x33, 0, 0, 0, 1]);
    lab.after(Duration::from_secs(15));
    for wait in [16, 125, 125] {
        assert_eq!(lab.after(Duration::from_secs(wait)).sent().len(), 6, "{wait}");
    }
    lab.reconfigure(|spec| spec.networks[0].querier = false);
    lab.after(Duration::from_secs(300));
}

#[test]
fn a_new_port_is_asked_at_once_and_gets_all_until_it_had_time_to_answer() {
    let mut lab = snooping(true, |spec| spec.ports.retain(|port| port.id != C.port));
    begun(&mut lab);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [HOST]);
    lab.spec.ports.push(endpoint(&C, NET1));
    lab.set_offloads(C.port, dataplane::io::Offloads::ALL);
    lab.publish();
    let asked = lab.after(Duration::from_secs(1)).sent();
    assert_eq!(asked.iter().map(|(port, _)| *port).collect::<Vec<_>>(), [C.port]);
    assert_eq!(asked[0].1.bytes[38], 0x11);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [C.port, HOST]);
    // What hosts say is for routers, and it is none.
    assert_eq!(reached(&mut lab, B.port, join(&B, G)), [HOST]);
    pass(&mut lab, 12);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, HOST]);
}

/// Rows: RFC 4541 §2.1.1.
#[test]
fn a_trusted_router_is_found_by_its_queries_and_by_pim() {
    let mut lab = snooping(false, |spec| {
        trust(spec, &C);
        trust(spec, &B);
    });
    pass(&mut lab, 140);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, C.port, HOST]);
    // A querier without an address is a switch.
    let nameless = Host { ip: Ipv4Addr::UNSPECIFIED, ..C };
    assert_eq!(reached(&mut lab, C.port, query(&nameless)), [A.port, B.port, HOST]);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, C.port, HOST]);
    pass(&mut lab, 12);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [HOST]);
    assert_eq!(reached(&mut lab, C.port, query(&C)), [A.port, B.port, HOST]);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [C.port, HOST]);
    assert_eq!(reached(&mut lab, A.port, join(&A, G)), [C.port, HOST]);
    let pim = Ipv4Addr::new(224, 0, 0, 13);
    assert_eq!(
        reached(&mut lab, B.port, ipv4(&B, pim, 103, &[0x20, 0, 0, 0])),
        [A.port, C.port, HOST]
    );
    let other = Ipv4Addr::new(239, 9, 9, 9);
    assert_eq!(reached(&mut lab, A.port, data(&A, other)), [B.port, C.port, HOST]);
    let routers = lab.plane.groups();
    let routers: Vec<_> = routers.iter().filter(|e| e.group.is_none()).map(|e| e.port).collect();
    assert_eq!(routers, [B.port, C.port]);
    // It is silent: nobody asks any more, and nothing is kept from anybody.
    pass(&mut lab, 261);
    assert_eq!(reached(&mut lab, C.port, data(&C, G)), [A.port, B.port, HOST]);
    assert_eq!(lab.plane.groups(), []);
}

#[test]
fn whom_a_router_asks_for_a_group_has_to_answer() {
    let mut lab = snooping(true, |spec| trust(spec, &C));
    begun(&mut lab);
    let all = [B.port, C.port, HOST];
    lab.rx(C.port, query(&C)).only_balanced();
    lab.rx(B.port, join(&B, G)).only_balanced();
    // For some sources, or without effect on routers: silence says nothing.
    for rest in [&[0, 0, 0, 1, 9, 9, 9, 9][..], &[8, 0, 0, 0]] {
        assert_eq!(reached(&mut lab, C.port, query_of(&C, G, rest)), [A.port, B.port, HOST]);
        pass(&mut lab, 30);
        assert_eq!(reached(&mut lab, A.port, data(&A, G)), all);
    }
    // Twice as long as it gives to answer.
    lab.rx(C.port, query_of(&C, G, &[])).only_balanced();
    pass(&mut lab, 21);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), all);
    pass(&mut lab, 1);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [C.port, HOST]);
    lab.rx(B.port, join(&B, G)).only_balanced();
    lab.rx(C.port, query_of(&C, G, &[])).only_balanced();
    lab.rx(B.port, join(&B, G)).only_balanced();
    pass(&mut lab, 30);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), all);
}

#[test]
fn nobody_decides_for_others_who_is_not_trusted() {
    let mut lab = snooping(false, |_| {});
    lab.rx(C.port, query(&C)).dropped("c", "querier_untrusted");
    lab.rx(C.port, query_of(&C, G, &[])).dropped("c", "querier_untrusted");
    let pim = ipv4(&C, Ipv4Addr::new(224, 0, 0, 13), 103, &[0x20, 0, 0, 0]);
    assert_eq!(reached(&mut lab, C.port, pim), [A.port, B.port, HOST]);
    assert_eq!(lab.plane.groups(), []);
    // The host's question reaches not all who are in a VLAN.
    assert_eq!(reached(&mut lab, HOST, query(&GATEWAY1)), [A.port, B.port, C.port]);
    pass(&mut lab, 12);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, C.port, HOST]);
    // Nor who is, where the others do not hear it.
    let mut lab = snooping(false, |spec| {
        trust(spec, &C);
        spec.networks[0].icc = false;
    });
    assert_eq!(reached(&mut lab, C.port, query(&C)), [HOST]);
    pass(&mut lab, 12);
    assert_eq!(reached(&mut lab, HOST, data(&GATEWAY1, G)), [A.port, B.port, C.port]);
}

/// Rows: RFC 4541 §2.1.1.
#[test]
fn what_is_not_sound_reaches_nobody() {
    let mut lab = snooping(true, |_| {});
    begun(&mut lab);
    let sound = join(&B, G);
    let mut changed = sound.clone();
    changed[14 + 20 + 7] ^= 1;
    lab.rx(B.port, changed).dropped("b", "group_malformed");
    // Hosts would put it together, and hold back their own.
    let mut fragment = sound;
    fragment[14 + 6] = 0x20;
    fragment[14 + 10..14 + 12].fill(0);
    let sum = Sum::ZERO.add_bytes(&fragment[14..34]).checksum();
    fragment[14 + 10..14 + 12].copy_from_slice(&sum.to_be_bytes());
    lab.rx(B.port, fragment).dropped("b", "group_malformed");
    // Or take it, for a broadcast.
    let mut broadcast =
        igmp(&B, Ipv4Addr::BROADCAST, &[&[0x16, 0, 0, 0][..], &G.octets()].concat());
    broadcast[..6].fill(0xff);
    lab.rx(B.port, broadcast).dropped("b", "group_malformed");
    assert_eq!(lab.plane.groups(), []);
}

/// Rows: RFC 3376 §6.4.2, §6.6.1.
#[test]
fn behind_an_unguarded_port_others_may_stay() {
    let mut lab = snooping(true, without_guard);
    begun(&mut lab);
    lab.rx(B.port, join(&B, G)).only_balanced();
    let inner = Host { mac: Mac([2, 0, 0, 0, 0, 9]), ip: Ipv4Addr::new(10, 1, 0, 9), ..B };
    // The others behind the port are asked, and one answers.
    let asked = lab.rx(B.port, leave(&inner, G)).sent();
    let question = &asked.iter().find(|(port, _)| *port == B.port).unwrap().1.bytes;
    assert_eq!(question[..6], [1, 0, 0x5e, 1, 2, 3]);
    assert_eq!((question[38], &question[42..46]), (0x11, &G.octets()[..]));
    lab.rx(B.port, join(&B, G)).only_balanced();
    pass(&mut lab, 4);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, HOST]);
    lab.rx(B.port, leave(&B, G)).only_balanced();
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, HOST]);
    pass(&mut lab, 4);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [HOST]);
    // One report does not make questions without end.
    let groups: Vec<u8> = (0..20).flat_map(|n| [4, 0, 0, 0, 239, 8, 8, n]).collect();
    let records = |kind: u8| {
        let mut groups = groups.clone();
        groups.chunks_mut(8).for_each(|record| record[0] = kind);
        igmp(&B, V3, &[&[0x22, 0, 0, 0, 0, 0, 0, 20][..], &groups].concat())
    };
    lab.rx(B.port, records(4)).only_balanced();
    let asked = lab.rx(B.port, records(3)).sent();
    assert_eq!(asked.iter().filter(|(port, _)| *port == B.port).count(), 8);
    // Without a querier of ours a router hears it, and asks.
    lab.reconfigure(|spec| spec.networks[0].querier = false);
    lab.rx(B.port, join(&B, G)).only_balanced();
    assert_eq!(reached(&mut lab, B.port, leave(&B, G)), [HOST]);
    pass(&mut lab, 10);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, HOST]);
}

/// How many frames of a port ended for a reason.
fn dropped(lab: &Lab, port: PortId, name: &str) -> u64 {
    let drops = lab.plane.port_stats(port).unwrap().rx_drops;
    let reasons = dataplane::verdict::DropReason::ALL.iter().zip(drops.iter());
    reasons.filter(|(reason, _)| reason.name() == name).map(|(_, n)| *n).sum()
}

#[test]
fn what_is_said_of_groups_counts_against_the_storm_limit_before_it_is_believed() {
    let limited = |limit: u32| {
        let mut lab = snooping(false, |spec| {
            trust(spec, &C);
            spec.networks[0].storm_limit = limit;
        });
        pass(&mut lab, 2);
        lab
    };
    let pim = ipv4(&C, Ipv4Addr::new(224, 0, 0, 13), 103, &[0x20, 0, 0, 0]);
    // Once each.
    for said in [query(&C), query_of(&C, G, &[]), pim.clone(), join(&C, G)] {
        let mut lab = limited(5);
        for _ in 0..7 {
            lab.rx(C.port, said.clone()).only_balanced();
        }
        assert_eq!(dropped(&lab, C.port, "storm_limited"), 2);
    }
    let mut malformed = join(&C, G);
    malformed[14 + 20 + 7] ^= 1;
    let mut lab = limited(5);
    for _ in 0..5 {
        lab.rx(C.port, malformed.clone()).dropped("c", "group_malformed");
    }
    lab.rx(C.port, malformed).dropped("c", "storm_limited");
    // A question that the limit keeps from the others says nothing of those who do not answer.
    for said in [query(&C), pim] {
        lab.rx(C.port, said).dropped("c", "storm_limited");
    }
    assert_eq!(lab.plane.groups(), []);
    pass(&mut lab, 12);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, C.port, HOST]);
}

#[test]
fn who_leaves_pays_for_asking_the_others() {
    let mut lab = snooping(true, |spec| {
        without_guard(spec);
        spec.networks[0].storm_limit = 6;
    });
    begun(&mut lab);
    let groups: Vec<Ipv4Addr> = (0..8).map(|n| Ipv4Addr::new(239, 8, 8, n)).collect();
    let records = |kind: u8| {
        let records =
            groups.iter().flat_map(|group| [&[kind, 0, 0, 0][..], &group.octets()].concat());
        igmp(&B, V3, &[0x22, 0, 0, 0, 0, 0, 0, 8].into_iter().chain(records).collect::<Vec<u8>>())
    };
    lab.rx(B.port, records(4)).only_balanced();
    let asked = lab.rx(B.port, records(3)).sent();
    assert_eq!(asked.iter().filter(|(port, _)| *port == B.port).count(), 4);
    // Whoever could not be asked is not gone.
    pass(&mut lab, 4);
    let hears = |lab: &mut Lab, group| {
        // A second's frames of A are fewer than these.
        pass(lab, 1);
        reached(lab, A.port, data(&A, group)).contains(&B.port)
    };
    let still = groups.iter().filter(|group| hears(&mut lab, **group));
    assert_eq!(still.collect::<Vec<_>>(), groups[4..].iter().collect::<Vec<_>>());
}

#[test]
fn a_new_port_waits_for_another_querier_where_ours_has_no_address() {
    let mut spec = dual();
    (spec.networks[0].snooping, spec.networks[0].querier) = (true, true);
    for subnet in &mut spec.networks[0].subnets {
        subnet.gateway = subnet.gateway.filter(IpAddr::is_ipv6);
    }
    trust(&mut spec, &C);
    spec.ports.retain(|port| port.id != B.port);
    let mut lab = Lab::new(spec);
    lab.rx(C.port, query(&C)).only_balanced();
    begun(&mut lab);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [C.port, HOST]);
    lab.spec.ports.push(endpoint(&B, NET1));
    lab.set_offloads(B.port, dataplane::io::Offloads::ALL);
    lab.publish();
    pass(&mut lab, 13);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, C.port, HOST]);
    lab.rx(C.port, query(&C)).only_balanced();
    pass(&mut lab, 249);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [C.port, HOST]);
}

#[test]
fn groups_are_those_of_a_vlan() {
    let mut lab = snooping(true, |spec| {
        for (host, own) in [(A, Vlans::Access(10)), (B, Vlans::Access(20)), (C, Vlans::All)] {
            let PortRole::Endpoint { vlans, .. } = role_of(spec, &host) else { panic!("{host:?}") };
            *vlans = own;
        }
    });
    // Who is in a VLAN with a tag is asked with it.
    let asked = lab.after(Duration::from_secs(1)).sent();
    let mut asked: Vec<_> = (asked.iter())
        .map(|(port, wire)| (*port, wire.bytes[12..16].to_vec()))
        .map(|(port, kind)| (port, (kind[..2] == [0x81, 0]).then_some(kind[3])))
        .collect();
    asked.sort_unstable();
    let expected =
        [(A.port, None), (B.port, None), (C.port, None), (C.port, Some(10)), (C.port, Some(20))];
    assert_eq!(asked, expected);
    pass(&mut lab, 12);
    lab.rx(C.port, tagged(&join(&C, G), 20)).only_balanced();
    assert_eq!(reached(&mut lab, B.port, data(&B, G)), [C.port, HOST]);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [HOST]);
    lab.rx(C.port, tagged(&join(&C, G), 10)).only_balanced();
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [C.port, HOST]);
    let members = lab.plane.groups();
    assert_eq!(
        members.iter().map(|e| (e.vlan, e.port)).collect::<Vec<_>>(),
        [(10, C.port), (20, C.port)]
    );
    assert!(members.iter().all(|e| e.network == NET1 && e.group == Some(IpAddr::V4(G))));
    // The host's go untagged to all VLANs.
    lab.rx(A.port, join(&A, G)).only_balanced();
    assert_eq!(reached(&mut lab, HOST, data(&GATEWAY1, G)), [A.port, C.port]);
}

#[test]
fn nobody_is_asked_in_a_vlan_without_untagged_frames_so_that_it_floods() {
    let mut lab = snooping(true, |_| {});
    begun(&mut lab);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [HOST]);
    let tagged = tagged(&data(&A, G), 30);
    assert_eq!(reached(&mut lab, A.port, tagged), [B.port, C.port, HOST]);
}

fn local(host: &Host) -> Ipv6Addr {
    let [a, b, c, d, e, f] = host.mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

fn ipv6(from: &Host, to: Ipv6Addr, head: &[u8], proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0, 0, (head.len() + payload.len()) as u8];
    ip.extend([if head.is_empty() { proto } else { 0 }, 1]);
    ip.extend(local(from).octets());
    ip.extend(to.octets());
    ip.extend(head);
    ip.extend(payload);
    let [.., a, b, c, d] = to.octets();
    ethernet(from.mac, Mac([0x33, 0x33, a, b, c, d]), 0x86dd, &ip)
}

fn snooping6() -> Lab {
    let mut spec = dual();
    (spec.networks[0].snooping, spec.networks[0].querier) = (true, true);
    let mut lab = Lab::new(spec);
    begun(&mut lab);
    lab
}

/// A datagram for a group.
fn data6(from: &Host, to: Ipv6Addr) -> Vec<u8> {
    ipv6(from, to, &[], 253, &[1, 2, 3, 4])
}

#[test]
fn listeners_of_ipv6_are_found_too() {
    let mut lab = snooping6();
    let alert = [58, 0, 5, 2, 0, 0, 1, 0];
    let report = |from: &Host, kind: u8, head: &[u8]| {
        let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
        let mut mld = [&[143, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0][..], &G6.octets()].concat();
        let sum = pseudo_ipv6(local(from), to, 58, mld.len() as u32).add_bytes(&mld).checksum();
        mld[2..4].copy_from_slice(&sum.to_be_bytes());
        ipv6(from, to, head, 58, &mld)
    };
    assert_eq!(reached(&mut lab, A.port, data6(&A, G6)), [HOST]);
    assert_eq!(reached(&mut lab, B.port, report(&B, 4, &alert)), [HOST]);
    assert_eq!(reached(&mut lab, A.port, data6(&A, G6)), [B.port, HOST]);
    assert_eq!(reached(&mut lab, B.port, report(&B, 3, &alert)), [HOST]);
    assert_eq!(reached(&mut lab, A.port, data6(&A, G6)), [HOST]);
    lab.rx(B.port, report(&B, 4, &[])).dropped("b", "group_malformed");
}

#[test]
fn neighbor_discovery_needs_no_reports() {
    let mut lab = snooping6();
    let all = [B.port, C.port, HOST];
    assert_eq!(reached(&mut lab, A.port, data6(&A, G6)), [HOST]);
    for group in ["ff02::1", "ff02::2", "ff02::fb", "ff02::1:ff00:5", "ff12::5"] {
        assert_eq!(reached(&mut lab, A.port, data6(&A, group.parse().unwrap())), all, "{group}");
    }
    for target in [B.ip6(), local(&B)] {
        let question = solicitation(&A, local(&A), target);
        assert_eq!(reached(&mut lab, A.port, question), all, "{target}");
    }
}

#[test]
fn what_was_known_is_forgotten_when_a_network_snoops_no_more() {
    let mut lab = snooping(true, |_| {});
    begun(&mut lab);
    lab.rx(B.port, join(&B, G)).only_balanced();
    lab.reconfigure(|spec| spec.networks[0].snooping = false);
    assert_eq!(lab.plane.groups(), []);
    pass(&mut lab, 40);
    // C joins meanwhile: nobody reads it.
    assert_eq!(reached(&mut lab, C.port, join(&C, G)), [A.port, B.port, HOST]);
    lab.reconfigure(|spec| spec.networks[0].snooping = true);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, C.port, HOST]);
    pass(&mut lab, 60);
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, C.port, HOST]);
}

#[test]
fn groups_without_end_cost_their_port_alone() {
    let mut spec = topology();
    (spec.networks[0].snooping, spec.networks[0].querier) = (true, true);
    spec.networks[0].storm_limit = 1000;
    let groups = GroupLimits { network: 40, port: 30 };
    let mut lab = Lab::with(&EngineOptions { groups, ..small() }, spec);
    begun(&mut lab);
    for n in 0..1200u32 {
        let [_, b, c, d] = n.to_be_bytes();
        lab.rx(B.port, report3(&B, 4, [239, b, c, d].into())).only_balanced();
    }
    let of = |lab: &Lab, port| lab.plane.groups().iter().filter(|e| e.port == port).count();
    assert_eq!(of(&lab, B.port), 30);
    let limited = |lab: &Lab| dropped(lab, B.port, "storm_limited");
    assert_eq!((dropped(&lab, B.port, "group_limit"), limited(&lab)), (970, 200));
    // A neighbor joins, and hears.
    assert_eq!(reached(&mut lab, C.port, join(&C, G)), [HOST]);
    // Who has more groups than it may gets every one, so that none is kept from it.
    assert_eq!(reached(&mut lab, A.port, data(&A, G)), [B.port, C.port, HOST]);
    let other = Ipv4Addr::new(239, 9, 9, 9);
    assert_eq!(reached(&mut lab, C.port, data(&C, other)), [B.port, HOST]);
    for n in 0..9 {
        lab.rx(C.port, join(&C, [239, 7, 7, n].into())).only_balanced();
    }
    assert_eq!(of(&lab, C.port), 10);
    // At the network's limit too; that others have filled it keeps nothing from routers.
    assert_eq!(reached(&mut lab, A.port, join(&A, other)), [HOST]);
    assert_eq!(reached(&mut lab, C.port, data(&C, other)), [A.port, B.port, HOST]);
    let limits = lab.plane.limits();
    let shown = |name| limits.iter().find(|l| l.name == name).map(|l| (l.current, l.peak, l.limit));
    assert_eq!(shown("groups"), Some((40, 40, 40)));
    assert_eq!(shown("groups_per_endpoint"), Some((30, 30, 30)));
    // A report of many groups costs as much as several frames.
    pass(&mut lab, 2);
    let groups: Vec<u8> = (0..160).flat_map(|n| [4, 0, 0, 0, 239, 8, 8, n]).collect();
    let many = igmp(&B, V3, &[&[0x22, 0, 0, 0, 0, 0, 0, 160][..], &groups].concat());
    let before = limited(&lab);
    for _ in 0..200 {
        lab.rx(B.port, many.clone()).only_balanced();
    }
    assert_eq!(limited(&lab) - before, 200 - 1000 / 11);
}
