//! What the workers get to read, for a host with two networks.

use std::collections::BTreeMap;

use dataplane::config::{DEFAULT_HOST_PORTS, LocalAddress, Snapshot, Vlans};
use dataplane::l3::route::RouteTarget;
use dataplane::packet::types::{NetworkId, ip_proto};
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
        subnets6: Vec::new(),
        cursors6: Vec::new(),
        internal,
        options: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        labels: BTreeMap::new(),
        mtu: 1400,
        created: 0,
        origin: Origin::User,
        policy: Vec::new(),
    }
}

fn endpoint(network: &str, ifname: &str, address: &str) -> Endpoint {
    Endpoint {
        network: network.parse().unwrap(),
        ifname: ifname.to_owned(),
        mac: mac_for(ip(address)).into(),
        ipv4: ip(address),
        prefix_len: 24,
        ipv6: None,
        aliases: Vec::new(),
        wire: Wire::Tap,
        options: BTreeMap::new(),
    }
}

/// `web` is in the internal network `db` first, then in `app`, and publishes 8080-8081.
fn scene() -> (Desired, Attached) {
    let mut desired = Desired::default();
    desired.apply(Edit::PutNetwork(network("app", 1, false, &[("icc", "false")])));
    let open = [("spoof_check", "false"), ("storm_limit", "500"), ("mss_clamp", "off")];
    desired.apply(Edit::PutNetwork(network("db", 2, true, &open)));
    let mut trusted = endpoint("db", "eth0", "10.2.0.2");
    trusted.options.insert("trusted".to_owned(), "true".to_owned());
    trusted.options.insert("vlan".to_owned(), "10".to_owned());
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
        gateway6: None,
        nat_ports: Vec::new(),
        made_qdisc: false,
    }));
    for (destination, uplink) in [("10.99.0.0/16", None), ("10.98.0.0/16", Some("wan0"))] {
        desired.apply(Edit::PutRoute(Route {
            destination: destination.parse().unwrap(),
            via: ip("192.0.2.9").into(),
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
                ipv6: UplinkIpv6::default(),
                nat_ports: vec![range(1024, 65535)],
                mtu: 1500,
                up: true,
                carrier_ups: 1,
            },
        )]),
        hairpin_ports: None,
    };
    (desired, attached)
}

#[test]
fn names_in_a_policy_are_the_addresses_of_now() {
    let (mut desired, attached) = scene();
    let rule = |id, src: &str| crate::model::PolicyRule {
        id,
        action: crate::api::types::PolicyAction::Deny,
        direction: crate::api::types::PolicyDirection::Out,
        src: Some(src.parse().unwrap()),
        dst: None,
        proto: Some("udp".parse().unwrap()),
        port: Some(range(53, 54)),
        host_port: None,
    };
    let app: Name = "app".parse().unwrap();
    let db: Name = "db".parse().unwrap();
    let mut network = desired.networks[&app].clone();
    network.policy = ["network:db", "sandbox:web", "sandbox:gone", "fd00::/8"]
        .into_iter()
        .zip(1..)
        .map(|(src, id)| rule(id, src))
        .collect();
    desired.apply(Edit::PutNetwork(network));
    let sources = |desired: &Desired| -> Vec<Vec<String>> {
        let spec = spec(desired, &attached);
        let [app, db] = [&spec.networks[0], &spec.networks[1]];
        assert!(db.policy.is_empty());
        let first = &app.policy[0];
        assert_eq!((first.id, first.proto, first.ports), (1, Some(ip_proto::UDP), Some((53, 54))));
        assert_eq!(first.way, dataplane::config::PolicyWay::Out);
        let all = app.policy.iter().map(|rule| rule.src.as_ref().unwrap());
        all.map(|of| of.iter().map(ToString::to_string).collect()).collect()
    };
    let mut expected =
        vec![vec!["10.2.0.0/24"], vec!["10.2.0.2/32", "10.1.0.2/32"], vec![], vec!["fd00::/8"]];
    assert_eq!(sources(&desired), expected);
    // Another prefix and IPv6 with its link-local addresses.
    let mut network = desired.networks[&db].clone();
    let plan = SubnetPlan::new("fd00:2::/64".parse().unwrap(), None, None, BTreeMap::new());
    network.subnets6 = vec![plan.unwrap()];
    desired.apply(Edit::PutNetwork(network));
    expected[0] = vec!["10.2.0.0/24", "fd00:2::/64", "fe80::/10"];
    let mut web = desired.sandboxes["web"].clone();
    web.endpoints.truncate(1);
    web.endpoints[0].ipv6 = Some("fd00:2::2/64".parse().unwrap());
    web.endpoints[0].mac = "02:42:0a:02:00:02".parse().unwrap();
    desired.apply(Edit::PutSandbox(web));
    expected[1] = vec!["10.2.0.2/32", "fd00:2::2/128", "fe80::42:aff:fe02:2/128"];
    assert_eq!(sources(&desired), expected);
}

fn spec(desired: &Desired, attached: &Attached) -> SnapshotSpec {
    compile(desired, attached, &[ip("192.0.2.2").into()], &Tuning::default()).unwrap()
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
    assert_eq!((app.mss_clamp, db.mss_clamp), (true, false));
    let guards: Vec<_> = spec
        .ports
        .iter()
        .filter_map(|port| match &port.role {
            PortRole::Endpoint { guard, trusted, vlans, .. } => {
                Some((*guard, *trusted, vlans.clone()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(guards, [(true, false, Vlans::All), (false, true, Vlans::Access(10))]);
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
fn a_port_is_published_in_the_families_that_it_names_and_the_sandbox_has() {
    let (mut desired, attached) = dual_scene();
    let rules = |desired: &Desired| {
        let rules = spec(desired, &attached).dnat.into_iter();
        rules.map(|rule| (rule.id, rule.host_ip, rule.to)).collect::<Vec<_>>()
    };
    let to = |text: &str| text.parse::<IpAddr>().unwrap();
    let (v4, v6) = (to("10.1.0.2"), to("fd00:1::2"));
    let mut at = |host_ip: Option<IpAddr>| {
        desired.sandboxes.get_mut("web").unwrap().publishes[0].host_ip = host_ip;
        rules(&desired)
    };
    assert_eq!(at(None), [(77, None, v4), (77 | 1 << 31, None, v6)]);
    assert_eq!(at(Some(to("0.0.0.0"))), [(77, None, v4)]);
    assert_eq!(at(Some(to("::"))), [(77 | 1 << 31, None, v6)]);
    let host = Some(to("2001:db8::2"));
    assert_eq!(at(host), [(77 | 1 << 31, host, v6)]);
    desired.sandboxes.get_mut("web").unwrap().endpoints[1].ipv6 = None;
    assert_eq!(rules(&desired), []);
    assert_eq!(
        [Publish::next_id(0), Publish::next_id(77), Publish::next_id(i32::MAX as u32)],
        [1, 78, 1]
    );
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
fn hairpins_speak_from_what_the_host_does_not_use() {
    let (desired, mut attached) = scene();
    let left = |attached: &Attached, proto| {
        let snapshot = Snapshot::build(spec(&desired, attached)).unwrap();
        snapshot.free_ports.at_host(proto, ip("10.1.0.1")).to_vec()
    };
    assert_eq!(left(&attached, ip_proto::UDP), DEFAULT_HOST_PORTS, "nobody has looked");
    attached.hairpin_ports = Some(vec![range(1024, 5352), range(5354, 9000)]);
    assert_eq!(left(&attached, ip_proto::UDP), [(1024, 5352), (5354, 9000)]);
    assert_eq!(left(&attached, ip_proto::TCP), [(1024, 5352), (5354, 8079), (8082, 9000)]);
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

/// The scene with IPv6 in `app`, in both endpoints' reach and on the uplink.
fn dual_scene() -> (Desired, Attached) {
    let (mut desired, mut attached) = scene();
    let plan = SubnetPlan::new("fd00:1::/64".parse().unwrap(), None, None, BTreeMap::new());
    desired.networks.get_mut("app").unwrap().subnets6 = vec![plan.unwrap()];
    let web = desired.sandboxes.get_mut("web").unwrap();
    web.endpoints[1].ipv6 = Some("fd00:1::2/64".parse().unwrap());
    let uplink = desired.uplinks.get_mut("wan0").unwrap();
    uplink.mode = UplinkMode::Dedicated;
    let state = attached.uplinks.get_mut("wan0").unwrap();
    state.ipv6 = UplinkIpv6 {
        addresses: vec!["2001:db8::2/64".parse().unwrap()],
        gateway: Some("fe80::1".parse().unwrap()),
    };
    desired.apply(Edit::PutRoute(Route {
        destination: "2001:db8:99::/48".parse().unwrap(),
        via: "2001:db8::9".parse().unwrap(),
        uplink: None,
    }));
    (desired, attached)
}

#[test]
fn both_families_are_in_the_snapshot() {
    let (desired, attached) = dual_scene();
    let host: IpAddr = "2001:db8:5::5".parse().unwrap();
    let spec = compile(&desired, &attached, &[host], &Tuning::default()).unwrap();
    let ip6 = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    let owned: Vec<Vec<Ipv6Addr>> = spec
        .ports
        .iter()
        .filter_map(|port| match &port.role {
            PortRole::Endpoint { ipv6, .. } => Some(ipv6.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(owned, [vec![ip6("fd00:1::2")], vec![]]);
    let snapshot = Snapshot::build(spec).unwrap();
    let app = NetworkId(1);
    let local = |text: &str| snapshot.local(ip6(text));
    assert_eq!(local("fd00:1::1"), Some(LocalAddress::Gateway(app)));
    assert_eq!(local("2001:db8::2"), Some(LocalAddress::Uplink(UplinkId(5))));
    assert_eq!(snapshot.local(host), Some(LocalAddress::Host));
    let route = |text: &str| snapshot.routes.lookup(ip6(text));
    let out = |via: Option<&str>| {
        let via = via.map(|via| IpAddr::V6(ip6(via)));
        Some(RouteTarget::Uplink { uplink: UplinkId(5), via })
    };
    assert_eq!(route("fd00:1::9"), Some(RouteTarget::Network(app)));
    assert_eq!(route("2001:db8::77"), out(None));
    assert_eq!(route("2001:db8:99::1"), out(Some("2001:db8::9")));
    assert_eq!(route("2a00::1"), out(Some("fe80::1")));
}

#[test]
fn each_family_has_the_way_out_of_the_first_network_with_it() {
    let (mut desired, _) = dual_scene();
    let ways = |desired: &Desired| {
        let ways = desired.ways_out(&desired.sandboxes["web"]);
        ways.iter().map(|(e, gateway)| format!("{} {gateway}", e.ifname)).collect::<Vec<_>>()
    };
    assert_eq!(ways(&desired), ["eth1 10.1.0.1", "eth1 fd00:1::1"]);
    desired.networks.get_mut("db").unwrap().internal = false;
    assert_eq!(ways(&desired), ["eth0 10.2.0.1", "eth1 fd00:1::1"]);
    desired.networks.get_mut("app").unwrap().internal = true;
    assert_eq!(ways(&desired), ["eth0 10.2.0.1"]);
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
