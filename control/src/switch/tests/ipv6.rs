//! What is done for one family when the other cannot have it.

use std::net::{IpAddr, TcpListener};

use super::*;
use crate::api::types::{ConnectRequest, TraceRequest};

/// The host has IPv6.
async fn with_ipv6() {
    let netns = Netns::current().unwrap();
    netns.write_sysctl("net/ipv6/conf/all/disable_ipv6", "0").unwrap();
    let place = Place::open(netns).unwrap();
    let lo = place.netlink.link_by_name("lo").await.unwrap().index;
    place.netlink.change_link(lo, &crate::netlink::LinkChange::new().up()).await.unwrap();
}

fn dual(name: &str, third: u8) -> NetworkCreate {
    NetworkCreate { ipv6: true, ..network(name, &format!("10.{third}.0.0/24")) }
}

async fn own_address6(switch: &Switch, sandbox: &Name, at: usize) -> IpAddr {
    switch.world().desired.sandboxes[sandbox].endpoints[at].ipv6.unwrap().addr().into()
}

#[test]
#[ignore = "needs root"]
fn each_half_of_a_mapping_is_held_by_itself() {
    on_a_host(|host| async move {
        with_ipv6().await;
        let web = host.name("web");
        let rules = {
            let switch = host.start().await;
            switch.create_network(dual("app", 9)).await.unwrap();
            switch.create_sandbox(sandbox(&web, &["app"])).await.unwrap();
            switch.publish_on(&web, &["8080:80".parse().unwrap()]).await.unwrap();
            let publish = switch.world().desired.sandboxes[&web].publishes[0];
            switch.stop().await;
            crate::model::Publish::rules(publish.id)
        };
        let held = async |switch: &Switch| {
            let work = switch.work.lock().await;
            rules.map(|rule| work.reservations.contains_key(&rule))
        };
        // Somebody has the one half when the daemon comes back.
        let listener = TcpListener::bind("[::1]:8080").unwrap();
        let switch = host.start().await;
        assert_eq!(held(&switch).await, [true, false]);
        let warnings = switch.world().warnings();
        assert!(warnings[0].contains("8080/tcp is in use"), "{warnings:?}");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        TcpListener::bind("127.0.0.1:8080").unwrap_err();
        switch.follow_host(Look::Ports).await.unwrap();
        assert_eq!(held(&switch).await, [true, false]);
        drop(listener);
        switch.follow_host(Look::Ports).await.unwrap();
        assert_eq!(held(&switch).await, [true, true]);
        assert_eq!(switch.world().warnings(), Vec::<String>::new());
        TcpListener::bind("[::1]:8080").unwrap_err();
        switch.stop().await;
    });
}

#[test]
#[ignore = "needs root"]
fn a_trace_knows_the_way_and_the_rules_of_ipv6() {
    on_a_host(|host| async move {
        with_ipv6().await;
        let web = host.name("web");
        let switch = host.start().await;
        switch.create_network(network("plain", "10.8.0.0/24")).await.unwrap();
        switch.create_network(dual("app", 9)).await.unwrap();
        switch.create_sandbox(sandbox(&web, &["plain", "app"])).await.unwrap();
        switch.publish_on(&web, &["8080:80".parse().unwrap()]).await.unwrap();
        let own = own_address6(&switch, &web, 1).await;
        let gateway = switch.world().desired.networks["app"].subnets6[0].gateway;
        let trace = |packet: String| {
            let request = TraceRequest {
                sandbox: Some(web.clone()),
                packet: Some(packet.parse().unwrap()),
                ..TraceRequest::default()
            };
            let [trace] = switch.trace(&request).unwrap().try_into().unwrap();
            trace
        };
        let by = |packet: &str| trace(packet.to_owned()).port;
        assert_eq!(by("udp [2001:db8::9]:1 > [2001:db8::1]:2"), format!("{web}/eth1"));
        assert_eq!(by("udp 192.0.2.9:1 > 192.0.2.1:2"), format!("{web}/eth0"));
        for (from, to, rule) in [
            (own, IpAddr::from(gateway), "tcp [::]:8080"),
            ([10, 8, 0, 2].into(), [10, 8, 0, 1].into(), "tcp *:8080"),
        ] {
            let [from, to] = [from, to].map(crate::publish::bracketed);
            let trace = trace(format!("tcp {from}:4000 > {to}:8080"));
            let facts = trace.steps.iter().flat_map(|step| &step.facts);
            let text = format!("{rule} of {web}");
            assert!(facts.clone().any(|fact| fact.value == text), "{trace:?}");
        }
        switch.stop().await;
    });
}

#[test]
#[ignore = "needs root"]
fn a_network_whose_ipv6_carries_ports_does_not_become_internal() {
    on_a_host(|host| async move {
        with_ipv6().await;
        let web = host.name("web");
        let switch = host.start().await;
        let declared = [dual("app", 9), network("plain", "10.8.0.0/24")];
        switch.declare(&declared).await.unwrap();
        switch.create_sandbox(sandbox(&web, &["app", "plain"])).await.unwrap();
        let spec = ["[::]:8080:80".parse().unwrap()];
        switch.publish_on(&web, &spec).await.unwrap();
        let internal = [NetworkCreate { internal: true, ..dual("app", 9) }, declared[1].clone()];
        switch.declare(&internal).await.unwrap();
        assert!(!switch.world().desired.networks["app"].internal);
        let warnings = switch.world().warnings();
        assert!(warnings[0].contains("has ports there"), "{warnings:?}");
        // IPv4 goes on by the other network.
        switch.unpublish(&web, &spec).await.unwrap();
        switch.publish_on(&web, &["0.0.0.0:8080:80".parse().unwrap()]).await.unwrap();
        switch.declare(&internal).await.unwrap();
        assert!(switch.world().desired.networks["app"].internal);
        assert_eq!(switch.world().warnings(), Vec::<String>::new());
        switch.stop().await;
    });
}

#[test]
#[ignore = "needs root"]
fn a_sandbox_that_turned_ipv6_off_goes_on_with_ipv4() {
    on_a_host(|host| async move {
        with_ipv6().await;
        let switch = host.start().await;
        for (name, third) in [("app", 9), ("more", 10), ("last", 11)] {
            switch.create_network(dual(name, third)).await.unwrap();
        }
        let web = host.name("web");
        switch.create_sandbox(sandbox(&web, &["app"])).await.unwrap();
        let inside = Netns::open_path(&std::path::Path::new(netns::NETNS_DIR).join(web.as_str()));
        let inside = inside.unwrap();
        let connect = async |network: &str| {
            let request = ConnectRequest {
                sandbox: web.clone(),
                ip: None,
                ip6: None,
                mac: None,
                aliases: Vec::new(),
                options: Default::default(),
            };
            switch.connect(&network.parse().unwrap(), request).await.unwrap()
        };
        inside.write_sysctl("net/ipv6/conf/eth0/disable_ipv6", "1").unwrap();
        assert!(connect("more").await.ipv6.is_some());
        let warnings = switch.world().warnings();
        assert!(warnings[0].contains("eth0 has no way out by IPv6: disable_ipv6"), "{warnings:?}");
        inside.write_sysctl("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        assert_eq!(connect("last").await.ipv6, None);
        let warnings = switch.world().warnings();
        assert!(warnings.iter().any(|w| w.contains("network \"last\"")), "{warnings:?}");
        switch.stop().await;
    });
}
