use std::net::Ipv4Addr;

use super::*;

const PLACE: Place = (NetworkId(1), 0);
const GROUP: IpAddr = IpAddr::V4(Ipv4Addr::new(239, 1, 2, 3));
/// As ours.
const ASKED: Query =
    Query { group: None, is_router: true, counts: true, response: 10, renewal: 250 };

fn heard(groups: &Groups, now: u32) -> Vec<u16> {
    let mut ports = Vec::new();
    groups.audience(PLACE, Some(GROUP), now, &mut ports);
    ports.into_iter().map(|port| port.0).collect()
}

#[test]
fn memberships_live_as_long_as_the_rfc_says() {
    let groups = Groups::default();
    for (port, now) in [(1, 100), (2, 200)] {
        assert_eq!(groups.join(PLACE, GROUP, PortId(port), now), Joined::Entered);
    }
    groups.note_router(PLACE, PortId(3), None, 150);
    assert_eq!(heard(&groups, 360), [3, 1, 2]);
    assert_eq!(heard(&groups, 361), [3, 2]);
    assert_eq!(groups.join(PLACE, GROUP, PortId(1), 362), Joined::Entered);
    groups.expire(461);
    assert_eq!(groups.entries(461).len(), 1);
    assert_eq!(heard(&groups, 461), [1]);
    groups.last_call(PLACE, GROUP, Some(PortId(9)), 464);
    assert_eq!(heard(&groups, 600), [1]);
    let is_member = |port, until| groups.is_member(PLACE, GROUP, PortId(port), until);
    assert_eq!([is_member(1, 503), is_member(9, 503)], [true, false]);
    groups.last_call(PLACE, GROUP, None, 503);
    assert!(!is_member(1, 503) && is_member(1, 502));
    // No longer than before.
    groups.last_call(PLACE, GROUP, None, 504);
    assert_eq!((heard(&groups, 503), heard(&groups, 504)), (vec![1], vec![]));
    groups.leave(PLACE, GROUP, PortId(1));
    assert_eq!(groups.uses().map(|((now, most), _)| (now, most)), [(0, 3), (0, 1)]);
}

#[test]
fn a_querier_is_believed_once_members_had_time_to_answer() {
    let groups = Groups::default();
    assert!(!groups.is_asked_for(PLACE, false, 100));
    groups.note_querier(PLACE, false, &ASKED, 100);
    let asked = |now| groups.is_asked_for(PLACE, false, now);
    assert_eq!([110, 111, 355, 356].map(asked), [false, true, true, false]);
    assert!(!groups.is_asked_for(PLACE, true, 200), "the other family");
    assert!(!groups.is_asked_for((NetworkId(1), 7), false, 200), "another VLAN");
    groups.note_querier(PLACE, false, &ASKED, 225);
    assert!(asked(226) && asked(480));
    let within = |network, is_ipv6, now| groups.answered_within(NetworkId(network), is_ipv6, now);
    assert_eq!([within(1, false, 480), within(1, false, 481)], [260, 0]);
    assert_eq!([within(1, true, 300), within(2, false, 300)], [0, 0]);
    // One that was silent begins anew.
    groups.note_querier(PLACE, false, &ASKED, 600);
    assert!(!asked(610) && asked(611));
}

#[test]
fn who_is_asked_less_often_stays_longer() {
    let groups = Groups::default();
    groups.note_querier(PLACE, false, &Query { renewal: 2000, response: 20, ..ASKED }, 100);
    assert_eq!(groups.join(PLACE, GROUP, PortId(1), 100), Joined::Entered);
    assert_eq!((heard(&groups, 2120), heard(&groups, 2121)), (vec![1], vec![]));
    assert!(groups.is_asked_for(PLACE, false, 2110) && !groups.is_asked_for(PLACE, false, 2111));
    // Not for ever, whatever it says.
    let without_end = Query { renewal: u32::MAX, response: u32::MAX, ..ASKED };
    groups.note_querier(PLACE, false, &without_end, 3000);
    assert_eq!(groups.join(PLACE, GROUP, PortId(1), 3000), Joined::Entered);
    assert_eq!(heard(&groups, 3001 + 2 * LONGEST), Vec::<u16>::new());
}

/// One that asks less often than ours does is a router's all the time.
#[test]
fn a_router_is_one_until_it_should_have_asked_again() {
    let groups = Groups::default();
    let seldom = Query { renewal: 600, response: 10, ..ASKED };
    groups.note_router(PLACE, PortId(3), Some(&seldom), 100);
    assert_eq!((heard(&groups, 710), heard(&groups, 711)), (vec![3], vec![]));
    let often = Query { renewal: 20, response: 1, ..ASKED };
    groups.note_router(PLACE, PortId(3), Some(&often), 1000);
    assert_eq!((heard(&groups, 1260), heard(&groups, 1261)), (vec![3], vec![]));
}

#[test]
fn a_port_and_a_network_have_limits_of_their_own() {
    let groups = Groups::new(GroupLimits { network: 5, port: 3 });
    let group = |n: u8| IpAddr::from([239, 0, 0, n]);
    let joined = |port, from: u8| {
        let join = |n| groups.join(PLACE, group(n), PortId(port), 1);
        let all: Vec<_> = (from..from + 9).map(join).collect();
        let of = |what| all.iter().filter(|joined| **joined == what).count();
        [of(Joined::Entered), of(Joined::PortFull), of(Joined::NetworkFull)]
    };
    assert_eq!([joined(1, 0), joined(2, 100), joined(3, 200)], [[3, 6, 0], [2, 0, 7], [0, 0, 9]]);
    assert_eq!(joined(1, 0), [3, 6, 0], "what is there is renewed");
    // For want of room they get every group, and hear no reports.
    assert_eq!(heard(&groups, 261), [1, 2, 3]);
    let routers = || {
        let mut routers = Vec::new();
        groups.audience(PLACE, None, 1, &mut routers);
        routers
    };
    assert_eq!(routers(), []);
    // There is room for a router all the same.
    groups.note_router(PLACE, PortId(3), None, 1);
    assert_eq!(routers(), [PortId(3)]);
    groups.forget_port(PortId(3));
    assert_eq!(joined(3, 200), [0, 0, 9]);
    groups.forget_port(PortId(1));
    assert_eq!(heard(&groups, 261), [2, 3]);
    assert_eq!(joined(3, 200), [3, 6, 0]);
    groups.retain_networks(|network| network == NetworkId(1));
    assert_eq!(groups.entries(1).len(), 5);
    groups.retain_networks(|_| false);
    assert_eq!((groups.entries(1).len(), groups.uses()[0].0.0), (0, 0));
    assert_eq!(heard(&groups, 1), Vec::<u16>::new());
}
