//! Uplinks of a host that does not behave: what cannot be had is tried again, what is had stays.

use nix::mount::{MsFlags, mount};

use super::*;
use crate::netlink::tc::Qdisc;
use crate::netlink::{self, Event, IfExists, LinkChange, RouteSpec};

/// The host's interface to the outside, which carries 192.0.2.2/24 and the default route.
struct Wire {
    place: Place,
    index: u32,
    _far: Netns,
}

impl Wire {
    async fn new() -> Self {
        let place = Place::open(Netns::current().unwrap()).unwrap();
        let (far, plain) = (Netns::anonymous().unwrap(), LinkChange::new());
        place.netlink.add_veth("wan0", &plain, "far0", &plain, &far).await.unwrap();
        let index = place.netlink.link_by_name("wan0").await.unwrap().index;
        place.netlink.change_link(index, &plain.up()).await.unwrap();
        let wire = Self { place, index, _far: far };
        wire.add_address("192.0.2.2/24").await;
        let route = RouteSpec::default_via([192, 0, 2, 1], index);
        wire.place.netlink.add_route(&route, IfExists::Fail).await.unwrap();
        wire
    }

    async fn add_address(&self, net: &str) {
        let net = net.parse().unwrap();
        self.place.netlink.add_address(self.index, net, IfExists::Fail).await.unwrap();
    }

    async fn is_steered(&self) -> bool {
        self.place.netlink.has_steering(self.index).await.unwrap()
    }
}

#[test]
#[ignore = "needs root"]
fn an_address_with_two_prefixes_is_one_address() {
    on_a_host(|host| async move {
        let wire = Wire::new().await;
        wire.add_address("192.0.2.2/32").await;
        let switch = host.start().await;
        assert!(wire.is_steered().await);
        switch.create_sandbox(sandbox(&host.name("web"), &[])).await.unwrap();
        assert_eq!(switch.world().warnings(), Vec::<String>::new());

        for last in 3..=17 {
            wire.add_address(&format!("192.0.2.{last}/24")).await;
        }
        switch.follow_host(Look::All).await.unwrap();
        assert_eq!(switch.world().warnings(), Vec::<String>::new());
        wire.add_address("192.0.2.18/24").await;
        switch.follow_host(Look::All).await.unwrap();
        assert_eq!(switch.uplinks()[0].addresses.len(), 17);
        let warnings = switch.world().warnings();
        assert!(warnings[0].contains("only the first 16 addresses"), "{warnings:?}");
        switch.stop().await;
    });
}

#[test]
#[ignore = "needs root"]
fn an_uplink_that_came_up_by_half_is_tried_again() {
    on_a_host(|host| async move {
        let wire = Wire::new().await;
        let switch = host.start().await;
        switch.create_network(network("broken", "10.9.0.0/24")).await.unwrap();
        let uplink = switch.world().desired.uplinks["wan0"].clone();
        {
            let mut work = switch.work.lock().await;
            switch.lay_down(&mut work, "wan0").await.unwrap();
        }
        records::break_publishing(&switch);
        {
            let mut work = switch.work.lock().await;
            switch.bring_up(&mut work, &uplink).await.unwrap_err();
            assert!(work.uplinks.is_empty());
        }
        assert!(switch.world().attached.uplinks.is_empty());
        assert!(!wire.is_steered().await);

        records::mend_publishing(&switch);
        switch.follow_host(Look::Ports).await.unwrap();
        assert!(switch.world().attached.uplinks.contains_key("wan0"));
        assert!(wire.is_steered().await);
        switch.stop().await;
    });
}

/// A netlink connection that nobody serves any more.
fn dead_handle() -> netlink::Handle {
    std::thread::scope(|scope| {
        let open = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let netns = Netns::current().unwrap();
            runtime.unwrap().block_on(async { netlink::Handle::open_in(&netns).unwrap() })
        };
        scope.spawn(open).join().unwrap()
    })
}

#[test]
#[ignore = "needs root"]
fn steering_is_set_again_also_when_the_first_look_fails() {
    on_a_host(|host| async move {
        let wire = Wire::new().await;
        let mut switch = host.start().await;
        let take_off = || async {
            wire.place.netlink.remove_steering(wire.index, Qdisc::Found).await.unwrap();
            assert!(!wire.is_steered().await);
        };
        let mut touched = Touched::default();
        touched.note(&Event::IngressChanged(wire.index));
        let nothing = Touched::default();

        take_off().await;
        switch.follow_filters(&nothing).await;
        assert!(!wire.is_steered().await, "nobody told of it");
        let working =
            std::mem::replace(&mut Arc::get_mut(&mut switch).unwrap().host.netlink, dead_handle());
        switch.follow_filters(&touched).await;
        Arc::get_mut(&mut switch).unwrap().host.netlink = working;
        assert!(!wire.is_steered().await);
        switch.follow_filters(&nothing).await;
        assert!(wire.is_steered().await);
        assert!(switch.world().unfiltered.is_empty());

        // Again at once: two who disagree about it do not keep each other busy.
        take_off().await;
        switch.follow_filters(&touched).await;
        assert!(!wire.is_steered().await);
        assert!(switch.world().unfiltered.contains("wan0"));
        switch.work.lock().await.remade.clear();
        switch.follow_filters(&nothing).await;
        assert!(wire.is_steered().await);
        assert!(switch.world().unfiltered.is_empty());
        assert_eq!(switch.world().warnings(), Vec::<String>::new());
        switch.stop().await;
    });
}

#[test]
#[ignore = "needs root"]
fn a_qdisc_that_was_made_in_place_of_anothers_goes_with_the_uplink() {
    on_a_host(|host| async move {
        let wire = Wire::new().await;
        let tc = |what: &str| {
            let mut command = std::process::Command::new("tc");
            let done = command.args(["qdisc", what, "dev", "wan0", "clsact"]).status().unwrap();
            assert!(done.success(), "{what}");
        };
        tc("add");
        let switch = host.start().await;
        assert!(!switch.world().desired.uplinks["wan0"].made_qdisc);
        tc("delete");
        let mut touched = Touched::default();
        touched.note(&Event::Overrun);
        switch.follow_filters(&touched).await;
        assert!(wire.is_steered().await);
        switch.stop().await;
        assert!(!wire.place.netlink.has_clsact(wire.index).await.unwrap());
    });
}

/// Port shadow (CVE-2021-3773): who is led in by a gateway's address must not stand where the host serves.
#[test]
#[ignore = "needs root"]
fn hairpins_keep_off_what_the_host_listens_on() {
    on_a_host(|host| async move {
        let switch = host.start().await;
        let web = host.name("web");
        switch.create_sandbox(sandbox(&web, &[])).await.unwrap();
        switch.publish_on(&web, &["8080:80".parse().unwrap()]).await.unwrap();
        let is_free = |port| {
            let world = switch.world();
            let ranges = world.attached.hairpin_ports.as_ref().unwrap();
            ranges.iter().any(|range| (range.first()..=range.last()).contains(&port))
        };
        // Linux' ephemeral ports, those of the system, and what is published are never.
        assert!(is_free(5353) && !is_free(40_000) && !is_free(1023));
        let served = std::net::UdpSocket::bind("0.0.0.0:5353").unwrap();
        switch.follow_host(Look::Ports).await.unwrap();
        assert!(!is_free(5353) && is_free(5352) && is_free(5354));
        drop(served);
        switch.follow_host(Look::Ports).await.unwrap();
        assert!(is_free(5353));
        switch.stop().await;
    });
}

/// A host that hands out every port itself leaves none of those to hairpins.
#[test]
#[ignore = "needs root"]
fn hairpins_take_what_nobody_is_bound_to_where_the_host_hands_out_every_port() {
    on_a_host(|host| async move {
        let hand_out = |range| {
            let here = Netns::current().unwrap();
            here.write_sysctl("net/ipv4/ip_local_port_range", range).unwrap();
        };
        hand_out("1024 65535");
        let switch = host.start().await;
        let web = host.name("web");
        switch.create_sandbox(sandbox(&web, &[])).await.unwrap();
        let served = std::net::UdpSocket::bind("0.0.0.0:5353").unwrap();
        switch.publish_on(&web, &["8080:80".parse().unwrap()]).await.unwrap();
        let is_free = |port| {
            let world = switch.world();
            let ranges = world.attached.hairpin_ports.as_ref().unwrap();
            ranges.iter().any(|range| (range.first()..=range.last()).contains(&port))
        };
        assert!(is_free(40_000) && is_free(5352) && !is_free(5353) && !is_free(1023));
        switch.follow_host(Look::Ports).await.unwrap();
        let warnings = || switch.world().warnings();
        let of_hairpins = || warnings().iter().filter(|text| text.contains("hairpins")).count();
        assert_eq!(of_hairpins(), 1, "{:?}", warnings());
        hand_out("32768 60999");
        switch.follow_host(Look::Ports).await.unwrap();
        assert!(!is_free(40_000) && !is_free(5353));
        assert_eq!(of_hairpins(), 0);
        drop(served);
        switch.stop().await;
    });
}

#[test]
#[ignore = "needs root"]
fn ports_for_hairpins_are_looked_for_anew_with_the_first_publication() {
    on_a_host(|host| async move {
        let switch = host.start().await;
        let web = host.name("web");
        switch.create_sandbox(sandbox(&web, &[])).await.unwrap();
        let specs = ["8080:80".parse().unwrap()];
        switch.publish_on(&web, &specs).await.unwrap();
        switch.unpublish(&web, &specs).await.unwrap();
        assert_eq!(switch.world().attached.hairpin_ports, None);
        let served = std::net::UdpSocket::bind("0.0.0.0:5353").unwrap();
        switch.publish_on(&web, &specs).await.unwrap();
        let ranges = switch.world().attached.hairpin_ports.clone().unwrap();
        assert!(ranges.iter().all(|range| !(range.first()..=range.last()).contains(&5353)));
        drop(served);
        switch.stop().await;
    });
}

/// From now on this thread, and those that it starts, cannot read which ports the host hands out.
fn hide_host_ports() {
    const SETTING: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    mount(Some("/dev/null"), SETTING, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

#[test]
#[ignore = "needs root"]
fn ports_that_cannot_be_read_are_not_free() {
    on_a_host(|host| async move {
        let wire = Wire::new().await;
        let switch = host.start().await;
        switch.follow_host(Look::Ports).await.unwrap();
        let before = switch.uplinks();
        assert!(!before[0].nat_ports.is_empty());
        let web = host.name("web");
        switch.create_sandbox(sandbox(&web, &[])).await.unwrap();

        hide_host_ports();
        switch.follow_host(Look::Ports).await.unwrap();
        assert_eq!(switch.uplinks(), before);
        let warnings = switch.world().warnings();
        assert!(warnings[0].contains("ip_local_port_range"), "{warnings:?}");
        switch.publish_on(&web, &["8080:80".parse().unwrap()]).await.unwrap_err();
        {
            let uplink = switch.world().desired.uplinks["wan0"].clone();
            let mut work = switch.work.lock().await;
            switch.lay_down(&mut work, "wan0").await.unwrap();
            switch.bring_up(&mut work, &uplink).await.unwrap_err();
        }
        assert!(!wire.is_steered().await);
        switch.stop().await;
    });
}
