//! Needs root: each test works in namespaces without names, which end with the test.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use dataplane::io::steer::Steering;
use futures::StreamExt;
use netlink_packet_core::DefaultNla;
use netlink_packet_route::tc::TcFilterBpfOption;

use super::tc::{Qdisc, STEER_NAME};
use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[tokio::test]
#[ignore = "needs root"]
async fn links_are_made_changed_moved_and_deleted() {
    let (a, b) = (Netns::anonymous().unwrap(), Netns::anonymous().unwrap());
    let (ha, hb) = (Handle::open_in(&a).unwrap(), Handle::open_in(&b).unwrap());
    let mac = "02:42:0a:00:00:02".parse().unwrap();
    ha.add_veth("v0", &LinkChange::new().mtu(1400).up(), "eth0", &LinkChange::new().mac(mac), &b)
        .await
        .unwrap();
    let again =
        ha.add_veth("v0", &LinkChange::new(), "eth1", &LinkChange::new(), &b).await.unwrap_err();
    assert!(again.is_exists(), "{again}");
    assert_eq!(again.to_string(), "create interface \"v0\": File exists");

    let v0 = ha.link_by_name("v0").await.unwrap();
    assert_eq!((v0.mtu, v0.up, v0.kind.as_deref()), (1400, true, Some("veth")));
    let eth0 = hb.link_by_name("eth0").await.unwrap();
    assert_eq!((eth0.mac, eth0.up), (Some(mac), false));

    let change = LinkChange::new().name("lan").alias("by test").mtu(9000).up();
    hb.change_link(eth0.index, &change).await.unwrap();
    let lan = hb.link_by_index(eth0.index).await.unwrap();
    assert_eq!((lan.name.as_str(), lan.mtu, lan.up), ("lan", 9000, true));
    assert_eq!(lan.alias.as_deref(), Some("by test"));
    let gone = hb.link_by_name("eth0").await.unwrap_err();
    assert_eq!(gone.to_string(), "there is no interface \"eth0\"");
    let long = hb.link_by_name(&"x".repeat(300)).await.unwrap_err();
    assert!(long.is_not_found(), "{long}");

    hb.move_link(lan.index, &a, Some("back")).await.unwrap();
    let back = ha.link_by_name("back").await.unwrap();
    ha.delete_link(back.index).await.unwrap();
    assert!(ha.link_by_name("v0").await.unwrap_err().is_not_found(), "the pair goes together");
    assert_eq!(ha.links().await.unwrap().len(), 1, "lo stays");
}

#[tokio::test]
#[ignore = "needs root"]
async fn addresses_routes_and_neighbors() {
    let netns = Netns::anonymous().unwrap();
    let handle = Handle::open_in(&netns).unwrap();
    handle.add_bridge("br0", &LinkChange::new().up()).await.unwrap();
    let link = handle.link_by_name("br0").await.unwrap().index;
    let address = net("192.0.2.1/24");
    handle.add_address(link, address, IfExists::Fail).await.unwrap();
    assert!(handle.add_address(link, address, IfExists::Fail).await.unwrap_err().is_exists());
    handle.add_address(link, address, IfExists::Replace).await.unwrap();
    let v4: Vec<_> = handle.addresses(Some(link)).await.unwrap();
    assert!(
        v4.contains(&LinkAddress { link, net: address, standing: Standing::Lasting }),
        "{v4:?}"
    );

    assert_eq!(handle.default_route().await.unwrap(), None);
    let gateway = Ipv4Addr::new(192, 0, 2, 254);
    let far = RouteSpec { metric: Some(500), ..RouteSpec::default_via(gateway, link) };
    handle.add_route(&far, IfExists::Fail).await.unwrap();
    let near = RouteSpec {
        metric: Some(10),
        ..RouteSpec::default_via(Ipv4Addr::new(192, 0, 2, 253), link)
    };
    handle.add_route(&near, IfExists::Fail).await.unwrap();
    let best = handle.default_route().await.unwrap().unwrap();
    assert_eq!((best.metric, best.link), (10, Some(link)));
    assert_eq!(best.gateway, Some("192.0.2.253".parse().unwrap()));
    let found = handle.route_to("198.51.100.7".parse().unwrap()).await.unwrap();
    assert_eq!(found.gateway, best.gateway);
    assert_eq!(found.source, Some("192.0.2.1".parse().unwrap()));
    handle.delete_route(&near).await.unwrap();
    handle.delete_route(&far).await.unwrap();
    assert!(handle.delete_route(&far).await.unwrap_err().is_not_found());
    let unreachable = handle.route_to("198.51.100.7".parse().unwrap()).await.unwrap_err();
    assert_eq!(
        unreachable.to_string(),
        "look up the route to 198.51.100.7: Network is unreachable"
    );
    let off_link = RouteSpec::default_via(Ipv4Addr::new(203, 0, 113, 1), link);
    handle.add_route(&off_link, IfExists::Fail).await.unwrap_err();

    let mac = "02:00:00:00:00:07".parse().unwrap();
    let peer = "192.0.2.7".parse().unwrap();
    handle.set_neighbor(link, peer, mac).await.unwrap();
    let neighbors = handle.neighbors(Some(link)).await.unwrap();
    assert!(
        neighbors.contains(&Neighbor { link, address: peer, mac: Some(mac), usable: true }),
        "{neighbors:?}"
    );
    handle.delete_neighbor(link, peer).await.unwrap();

    handle.delete_address(link, address).await.unwrap();
    assert!(handle.delete_address(link, address).await.unwrap_err().is_not_found());
}

#[tokio::test]
#[ignore = "needs root"]
async fn the_monitor_sees_what_changes() {
    let netns = Netns::anonymous().unwrap();
    let mut monitor = Monitor::open_in(&netns).unwrap();
    let handle = Handle::open_in(&netns).unwrap();
    handle.add_bridge("br0", &LinkChange::new().up()).await.unwrap();
    let link = handle.link_by_name("br0").await.unwrap().index;
    let address = LinkAddress { link, net: net("192.0.2.1/24"), standing: Standing::Lasting };
    handle.add_address(link, address.net, IfExists::Fail).await.unwrap();
    let route = RouteSpec::default_via(Ipv4Addr::new(192, 0, 2, 254), link);
    handle.add_route(&route, IfExists::Fail).await.unwrap();
    handle.delete_link(link).await.unwrap();

    let mut seen = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(5), monitor.next())
            .await
            .unwrap_or_else(|_| panic!("no removal among {seen:?}"))
            .unwrap();
        let last = matches!(&event, Event::LinkRemoved(gone) if gone.index == link);
        seen.push(event);
        if last {
            break;
        }
    }
    assert!(seen.iter().any(|e| matches!(e, Event::LinkChanged(l) if l.name == "br0" && l.up)));
    assert!(seen.contains(&Event::AddressAdded(address)));
    assert!(seen.iter().any(
        |e| matches!(e, Event::RouteAdded(r) if r.gateway == Some("192.0.2.254".parse().unwrap()))
    ));
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_dropped_handle_lets_the_namespace_go() {
    let outside = Netns::anonymous().unwrap();
    let outer = Handle::open_in(&outside).unwrap();
    let inside = Netns::anonymous().unwrap();
    let inner = Handle::open_in(&inside).unwrap();
    outer.add_veth("v0", &LinkChange::new(), "eth0", &LinkChange::new(), &inside).await.unwrap();
    inner.links().await.unwrap();
    drop(inside);
    drop(inner);
    // The end of the namespace takes the peer, and so ours, with it.
    let deadline = Instant::now() + Duration::from_secs(20);
    while outer.link_by_name("v0").await.is_ok() {
        assert!(Instant::now() < deadline, "the namespace is still alive");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What 200 sandboxes need of this module, within a quarter of the 20 s they may take in all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn two_hundred_namespaces_are_wired_in_time() {
    let host = Netns::anonymous().unwrap();
    let handle = Handle::open_in(&host).unwrap();
    let start = Instant::now();
    let mut made = Vec::new();
    for n in 0..200u32 {
        let netns = Netns::anonymous().unwrap();
        let inner = Handle::open_in(&netns).unwrap();
        let quiet = LinkChange::new();
        handle.add_veth(&format!("v{n}"), &quiet, "eth0", &quiet, &netns).await.unwrap();
        let link = inner.link_by_name("eth0").await.unwrap().index;
        netns.disable_ipv6("eth0").unwrap();
        let change = LinkChange::new().mtu(1450).up();
        inner.change_link(link, &change).await.unwrap();
        let host_part = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 1, 0)) + n);
        let address = IpNet::new(host_part.into(), 16).unwrap();
        inner.add_address(link, address, IfExists::Fail).await.unwrap();
        let route = RouteSpec::default_via(Ipv4Addr::new(10, 0, 0, 1), link);
        inner.add_route(&route, IfExists::Fail).await.unwrap();
        made.push(netns);
    }
    let took = start.elapsed();
    println!("200 namespaces wired in {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Classic BPF that lets everything pass: `ret #-1`. It stands for another program's filter.
fn foreign_program() -> Vec<TcFilterBpfOption> {
    let mut instruction = vec![6, 0, 0, 0];
    instruction.extend(u32::MAX.to_ne_bytes());
    vec![
        // linux/pkt_cls.h: TCA_BPF_OPS_LEN, TCA_BPF_OPS.
        TcFilterBpfOption::Other(DefaultNla::new(4, 1u16.to_ne_bytes().to_vec())),
        TcFilterBpfOption::Other(DefaultNla::new(5, instruction)),
    ]
}

#[tokio::test]
#[ignore = "needs root"]
async fn steering_leaves_another_programs_filter_alone() {
    let netns = Netns::anonymous().unwrap();
    let handle = Handle::open_in(&netns).unwrap();
    handle.add_bridge("br0", &LinkChange::new().up()).await.unwrap();
    let link = handle.link_by_name("br0").await.unwrap().index;
    assert!(!handle.has_steering(link).await.unwrap());
    handle.remove_steering(link, Qdisc::Made).await.unwrap();

    assert_eq!(handle.set_filter(link, foreign_program()).await.unwrap(), Qdisc::Made);
    assert!(!handle.has_steering(link).await.unwrap());
    let taken = handle.set_filter(link, foreign_program()).await.unwrap_err();
    assert!(matches!(taken, NetlinkError::Foreign(_)), "{taken}");
    handle.remove_steering(link, Qdisc::Made).await.unwrap();
    let still = handle.set_filter(link, foreign_program()).await.unwrap_err();
    assert!(matches!(still, NetlinkError::Foreign(_)), "{still}");

    handle.delete_link(link).await.unwrap();
    handle.remove_steering(link, Qdisc::Made).await.unwrap();
    assert!(!handle.has_steering(link).await.unwrap());
}

#[tokio::test]
#[ignore = "needs root"]
async fn steering_is_replaced_in_place_and_leaves_nothing() {
    let netns = Netns::anonymous().unwrap();
    let handle = Handle::open_in(&netns).unwrap();
    handle.add_bridge("br0", &LinkChange::new().up()).await.unwrap();
    let link = handle.link_by_name("br0").await.unwrap().index;
    let (first, second) = (Steering::load().unwrap(), Steering::load().unwrap());
    assert_eq!(handle.set_steering(link, first.classifier_fd()).await.unwrap(), Qdisc::Made);
    assert!(handle.has_steering(link).await.unwrap());
    // A restart: the new program takes the old one's place.
    assert_eq!(handle.set_steering(link, second.classifier_fd()).await.unwrap(), Qdisc::Found);
    let list = || {
        let arguments = ["filter", "show", "dev", "br0", "ingress"];
        let output = netns.run(|| Command::new("tc").args(arguments).output()).unwrap().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = list();
    assert_eq!(shown.matches(STEER_NAME).count(), 1, "{shown}");
    assert!(shown.contains("direct-action"), "{shown}");

    handle.remove_steering(link, Qdisc::Found).await.unwrap();
    assert!(!handle.has_steering(link).await.unwrap());
    // The qdisc that was found stayed; that which is made goes.
    assert_eq!(handle.set_steering(link, first.classifier_fd()).await.unwrap(), Qdisc::Found);
    handle.remove_steering(link, Qdisc::Made).await.unwrap();
    assert_eq!(list(), "");
    assert_eq!(handle.set_steering(link, first.classifier_fd()).await.unwrap(), Qdisc::Made);
}

#[tokio::test]
#[ignore = "needs root"]
async fn features_are_switched_off_by_name() {
    let netns = Netns::anonymous().unwrap();
    let handle = Handle::open_in(&netns).unwrap();
    handle.add_veth("v0", &LinkChange::new(), "v1", &LinkChange::new(), &netns).await.unwrap();
    let (v0, lo) =
        (handle.link_by_name("v0").await.unwrap(), handle.link_by_name("lo").await.unwrap());
    let shown = |name: &str| {
        let mut ethtool = Command::new("ethtool");
        let output = netns.run(|| ethtool.args(["-k", name]).output()).unwrap().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let off = |index: u32, names: &[&str]| {
        netns.run(|| features::switch_off(index, names)).unwrap().unwrap()
    };
    let before = shown("v0");
    assert!(before.contains("tx-gre-segmentation: on"), "{before}");
    let names = ["tx-gre-segmentation", "what no kernel has", "tx-udp_tnl-segmentation"];
    // The second time there is nothing to do.
    for _ in 0..2 {
        assert_eq!(off(v0.index, &names), Vec::<String>::new());
        let expected = before
            .replace("tx-gre-segmentation: on", "tx-gre-segmentation: off")
            .replace("tx-udp_tnl-segmentation: on", "tx-udp_tnl-segmentation: off");
        assert_eq!(shown("v0"), expected);
    }
    assert_eq!(shown("v1").replace("v1", "v0"), before);
    assert!(shown("lo").contains("loopback: on [fixed]"));
    assert_eq!(off(lo.index, &["loopback", "tx-gre-segmentation"]), ["loopback"]);
    let gone = netns.run(|| features::switch_off(u32::MAX, &names)).unwrap().unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(Errno::ENODEV as i32));
}
