//! What the workers get to read, for a host with two networks.

use std::collections::BTreeMap;

use dataplane::config::Snapshot;
use dataplane::packet::types::ip_proto;
use proptest::prelude::*;

use super::*;
use crate::ipam::{SubnetPlan, mac_for};
use crate::model::{Edit, Endpoint, Namespace, Origin, Publish, Uplink, Wire};
use crate::publish::Proto;

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn range(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).unwrap()
}

fn network(name: &str, id: u16, internal: bool, options: &[(&str, &str)]) -> Network {
    let subnet = format!("10.{id}.0.0/24").parse().unwrap();
    Network {
        id,
        uid: format!("{id:064x}"),
        name: name.parse().unwrap(),
        subnets: vec![SubnetPlan::new(subnet, None, None, BTreeMap::new()).unwrap()],
        cursors: vec![0],
        internal,
        options: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        labels: BTreeMap::new(),
        mtu: 1400,
        created: 0,
        origin: Origin::User,
    }
}

fn endpoint(network: &str, ifname: &str, address: &str) -> Endpoint {
    Endpoint {
        network: network.parse().unwrap(),
        ifname: ifname.to_owned(),
        mac: mac_for(ip(address)).into(),
        ipv4: ip(address),
        prefix_len: 24,
        aliases: Vec::new(),
        wire: Wire::Tap,
        options: BTreeMap::new(),
    }
}

/// `web` is in the internal network `db` first, then in `app`, and publishes 8080-8081.
fn scene() -> (Desired, Attached) {
    let mut desired = Desired::default();
    desired.apply(Edit::PutNetwork(network("app", 1, false, &[("icc", "false")])));
    let open = [("spoof_check", "false"), ("storm_limit", "500")];
    desired.apply(Edit::PutNetwork(network("db", 2, true, &open)));
    let mut trusted = endpoint("db", "eth0", "10.2.0.2");
    trusted.options.insert("trusted".to_owned(), "true".to_owned());
    desired.apply(Edit::PutSandbox(Sandbox {
        name: "web".parse().unwrap(),
        namespace: Namespace::Made { inode: 1 },
        endpoints: vec![trusted, endpoint("app", "eth1", "10.1.0.2")],
        publishes: vec![Publish {
            id: 77,
            proto: Proto::Tcp,
            host_ip: None,
            host_ports: range(8080, 8081),
            ports: range(80, 81),
        }],
        created: 0,
    }));
    desired.apply(Edit::PutUplink(Uplink {
        id: 5,
        interface: "wan0".to_owned(),
        mode: UplinkMode::Shared,
        origin: Origin::User,
        addresses: Vec::new(),
        gateway: None,
        nat_ports: Vec::new(),
        made_qdisc: false,
    }));
    for (destination, uplink) in [("10.99.0.0/16", None), ("10.98.0.0/16", Some("wan0"))] {
        desired.apply(Edit::PutRoute(Route {
            destination: destination.parse().unwrap(),
            via: ip("192.0.2.9"),
            uplink: uplink.map(str::to_owned),
        }));
    }
    let web: Name = "web".parse().unwrap();
    let attached = Attached {
        endpoints: HashMap::from([
            ((web.clone(), "eth0".to_owned()), PortId(1)),
            ((web, "eth1".to_owned()), PortId(2)),
        ]),
        hosts: HashMap::from([
            ("app".parse().unwrap(), PortId(3)),
            ("db".parse().unwrap(), PortId(4)),
        ]),
        uplinks: BTreeMap::from([(
            "wan0".to_owned(),
            UplinkState {
                port: PortId(9),
                mac: Mac([2, 0, 0, 0, 0, 9]),
                addresses: vec!["192.0.2.2/24".parse().unwrap()],
                gateway: Some(ip("192.0.2.1")),
                nat_ports: vec![range(1024, 65535)],
                mtu: 1500,
                up: true,
            },
        )]),
    };
    (desired, attached)
}

fn spec(desired: &Desired, attached: &Attached) -> SnapshotSpec {
    compile(desired, attached, &[ip("192.0.2.2")], &Tuning::default()).unwrap()
}

#[test]
fn everything_attached_is_in_the_snapshot() {
    let (desired, attached) = scene();
    let spec = spec(&desired, &attached);
    assert_eq!(spec.ports.len(), 5);
    assert_eq!(spec.routes.len(), 2);
    assert!(spec.routes.iter().all(|route| route.uplink == UplinkId(5)));
    let [app, db] = spec.networks.as_slice() else { panic!("{:?}", spec.networks) };
    assert_eq!((app.internal, app.icc, app.masquerade, app.mtu), (false, false, true, 1400));
    assert_eq!(app.gateway_mac.to_string(), "02:42:0a:01:00:01");
    assert_eq!((db.internal, db.icc), (true, true));
    assert_eq!((app.storm_limit, db.storm_limit), (10_000, 500));
    let guards: Vec<(bool, bool)> = spec
        .ports
        .iter()
        .filter_map(|port| match port.role {
            PortRole::Endpoint { guard, trusted, .. } => Some((guard, trusted)),
            _ => None,
        })
        .collect();
    assert_eq!(guards, [(true, false), (false, true)]);
    Snapshot::build(spec).unwrap();
}

#[test]
fn published_ports_lead_to_the_network_with_a_way_in() {
    let (desired, attached) = scene();
    let spec = spec(&desired, &attached);
    let [rule] = spec.dnat.as_slice() else { panic!("{:?}", spec.dnat) };
    assert_eq!((rule.id, rule.to, rule.to_port), (77, ip("10.1.0.2").into(), 80));
    assert_eq!(rule.host_ports, (8080, 8081));
}

#[test]
fn snat_never_uses_a_port_that_is_published_for_its_protocol() {
    let (desired, attached) = scene();
    let snapshot = Snapshot::build(spec(&desired, &attached)).unwrap();
    let uplink = snapshot.uplinks().next().unwrap();
    let left = |proto| snapshot.free_ports.at(uplink, proto, ip("192.0.2.2"));
    assert_eq!(left(ip_proto::TCP), [(1024, 8079), (8082, 65535)]);
    assert_eq!(left(ip_proto::UDP), [(1024, 65535)]);
    assert_eq!(left(ip_proto::ICMP), [(1024, 65535)]);
}

#[test]
fn what_is_not_attached_is_left_out() {
    let (desired, _) = scene();
    let spec = spec(&desired, &Attached::default());
    assert!(spec.ports.is_empty() && spec.uplinks.is_empty());
    assert!(spec.dnat.is_empty() && spec.routes.is_empty());
    assert_eq!(spec.networks.len(), 2);
    Snapshot::build(spec).unwrap();
}

fn any_ranges() -> impl Strategy<Value = Vec<PortRange>> {
    proptest::collection::vec((1u16.., 1u16..).prop_map(|(a, b)| range(a.min(b), a.max(b))), 0..5)
}

proptest! {
    #[test]
    fn subtract_agrees_with_sets(from in any_ranges(), taken in any_ranges(), probe in 1u16..) {
        let left = subtract(&from, &taken);
        let inside = |ranges: &[PortRange], port: u16| {
            ranges.iter().any(|r| (r.first()..=r.last()).contains(&port))
        };
        let edges = from.iter().chain(&taken).flat_map(|r| {
            [r.first().saturating_sub(1), r.first(), r.last(), r.last().saturating_add(1)]
        });
        for port in edges.chain([probe]).filter(|port| *port > 0) {
            prop_assert_eq!(inside(&left, port), inside(&from, port) && !inside(&taken, port));
        }
        for pair in left.windows(2) {
            prop_assert!(pair[0].last() < pair[1].first());
        }
    }
}
