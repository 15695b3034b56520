//! Records and what they stand for go together: whatever fails, neither is left without the other.

use super::*;
use crate::api::types::ConnectRequest;
use crate::place::DeviceSpec;

/// What a failed change must leave as it was.
fn books(switch: &Switch) -> (Desired, Attached) {
    let world = switch.world();
    let desired = Desired { counters: Counters::default(), ..world.desired.clone() };
    (desired, world.attached.clone())
}

/// From now on nothing can be published: a network has an option that nobody knows.
pub(super) fn break_publishing(switch: &Switch) {
    let mut world = switch.world_mut();
    let broken = world.desired.networks.get_mut("broken").unwrap();
    broken.options.insert("nonsense".to_owned(), "1".to_owned());
}

pub(super) fn mend_publishing(switch: &Switch) {
    switch.world_mut().desired.networks.get_mut("broken").unwrap().options.clear();
}

fn connect_to(name: &Name) -> ConnectRequest {
    ConnectRequest {
        sandbox: name.clone(),
        ip: None,
        ip6: None,
        mac: None,
        aliases: Vec::new(),
        options: Default::default(),
    }
}

/// A device by that name, as a run that was killed leaves it.
async fn leave_device(netns: Netns, ifname: &str) {
    let spec = DeviceSpec {
        ifname: ifname.to_owned(),
        mac: "02:42:0a:00:00:09".parse().unwrap(),
        mtu: 1500,
        addresses: Vec::new(),
        queue: 2000,
    };
    drop(Place::open(netns).unwrap().make(&spec).await.unwrap());
}

#[test]
#[ignore = "needs root"]
fn a_change_that_cannot_be_published_is_taken_back() {
    on_a_host(|host| async move {
        let switch = host.start().await;
        for (name, subnet) in [("good", "10.8.0.0/24"), ("broken", "10.9.0.0/24")] {
            switch.create_network(network(name, subnet)).await.unwrap();
        }
        let (old, ghost) = (host.name("old"), host.name("ghost"));
        let mut request = sandbox(&old, &["bridge"]);
        request.publish = vec!["8080:80".parse().unwrap()];
        switch.create_sandbox(request).await.unwrap();
        let good: Name = "good".parse().unwrap();
        let at_first = host_links().await;
        break_publishing(&switch);
        let before = books(&switch);

        let mut request = sandbox(&ghost, &["good"]);
        request.publish = vec!["8081:80".parse().unwrap()];
        switch.create_sandbox(request.clone()).await.unwrap_err();
        assert_eq!(books(&switch), before, "create");
        assert_eq!(host.namespaces(), [old.to_string()]);
        std::net::TcpListener::bind("0.0.0.0:8081").unwrap();
        switch.connect(&good, connect_to(&old)).await.unwrap_err();
        assert_eq!(books(&switch), before, "connect");
        assert!(!links(Netns::open(old.as_str()).unwrap()).await.contains("eth1"));
        switch.publish_on(&old, &["8082:80".parse().unwrap()]).await.unwrap_err();
        assert_eq!(books(&switch), before, "publish");
        std::net::TcpListener::bind("0.0.0.0:8082").unwrap();
        switch.unpublish(&old, &["8080:80".parse().unwrap()]).await.unwrap_err();
        assert_eq!(books(&switch), before, "unpublish");
        assert!(std::net::TcpListener::bind("0.0.0.0:8080").is_err());
        switch.create_network(network("more", "10.10.0.0/24")).await.unwrap_err();
        assert_eq!(books(&switch), before, "network");
        assert_eq!(host_links().await, at_first);

        mend_publishing(&switch);
        assert!(switch.world().stale);
        switch.follow_host(Look::Ports).await.unwrap();
        assert!(!switch.world().stale);
        // Nothing was lost, and nothing is in the way of the same request.
        let made = switch.create_sandbox(request).await.unwrap();
        assert_eq!(made.endpoints[0].ipv4, Some([10, 8, 0, 2].into()));
        switch.create_network(network("more", "10.10.0.0/24")).await.unwrap();
        // What is on disk says the same.
        let before = books(&switch).0;
        switch.stop().await;
        drop(switch);
        assert_eq!(books(&*host.start().await).0, before);
    });
}

#[test]
#[ignore = "needs root"]
fn a_removal_goes_on_to_its_end() {
    on_a_host(|host| async move {
        let switch = host.start().await;
        for (name, subnet) in [("good", "10.8.0.0/24"), ("broken", "10.9.0.0/24")] {
            switch.create_network(network(name, subnet)).await.unwrap();
        }
        let (one, two) = (host.name("one"), host.name("two"));
        for name in [&one, &two] {
            let mut request = sandbox(name, &["bridge", "good"]);
            request.publish = vec!["80".parse().unwrap()];
            switch.create_sandbox(request).await.unwrap();
        }
        break_publishing(&switch);
        let good: Name = "good".parse().unwrap();
        switch.disconnect(&good, &two).await.unwrap();
        assert!(!links(Netns::open(two.as_str()).unwrap()).await.contains("eth1"));
        switch.remove_sandbox(&one).await.unwrap();
        assert_eq!(host.namespaces(), [two.to_string()]);
        let leg = switch.network_record(&good).unwrap().host_device();
        switch.remove_network(&good).await.unwrap();
        assert!(!host_links().await.contains(&leg));
        {
            let world = switch.world();
            assert!(world.desired.intents.is_empty());
            assert_eq!(world.attached.endpoints.len(), 1);
            assert_eq!(world.attached.hosts.len(), 2);
            assert!(world.stale);
        }
        mend_publishing(&switch);
        switch.follow_host(Look::Ports).await.unwrap();
        assert_eq!(switch.engine().snapshot().networks().count(), 2);
        let made = switch.create_sandbox(sandbox(&one, &["bridge"])).await.unwrap();
        assert_eq!(made.endpoints.len(), 1);
    });
}

#[test]
#[ignore = "needs root"]
fn an_announcement_ends_where_a_record_begins() {
    on_a_host(|host| async move {
        let switch = host.start().await;
        switch.create_network(network("app", "10.8.0.0/24")).await.unwrap();
        let (web, app) = (host.name("web"), "app".parse().unwrap());
        switch.create_sandbox(sandbox(&web, &["bridge"])).await.unwrap();
        let namespace = switch.sandbox_record(&web).unwrap().namespace;
        let devices = |ifname: &str| Intent::Endpoints {
            name: web.clone(),
            namespace: namespace.clone(),
            ifnames: vec![ifname.to_owned()],
            host_ends: Vec::new(),
        };
        // As a disconnection that failed after its record leaves it.
        switch.announce(&*switch.work.lock().await, devices("eth1")).unwrap();
        switch.connect(&app, connect_to(&web)).await.unwrap();
        assert_eq!(switch.world().desired.intents.len(), 0);
        // As a version that did not look wrote it; beside something that is to go.
        let whole = Intent::Sandbox {
            name: web.clone(),
            namespace: None,
            ifnames: Vec::new(),
            host_ends: Vec::new(),
        };
        for intent in [devices("eth1"), whole, devices("eth5")] {
            switch.announce(&*switch.work.lock().await, intent).unwrap();
        }
        leave_device(Netns::open(web.as_str()).unwrap(), "eth5").await;
        switch.stop().await;
        drop(switch);

        let switch = host.start().await;
        assert_eq!(switch.world().desired.intents.len(), 0);
        assert_eq!(switch.sandbox_record(&web).unwrap().namespace, namespace);
        let inside = links(Netns::open(web.as_str()).unwrap()).await;
        assert_eq!(inside, ["eth0", "eth1", "lo"].map(str::to_owned).into());
    });
}

#[test]
#[ignore = "needs root"]
fn a_namespace_that_came_later_stays() {
    on_a_host(|host| async move {
        let switch = host.start().await;
        let web = host.name("web");
        // Killed after the announcement: nothing has the name yet.
        let gone = Netns::anonymous().unwrap();
        let intent = Intent::Sandbox {
            name: web.clone(),
            namespace: Some(Namespace::Made { inode: endpoint::inode_of(&gone).unwrap() }),
            ifnames: vec!["eth0".to_owned()],
            host_ends: Vec::new(),
        };
        switch.announce(&*switch.work.lock().await, intent).unwrap();
        switch.stop().await;
        drop(switch);
        Netns::create(web.as_str()).unwrap();

        let switch = host.start().await;
        assert!(switch.world().desired.intents.is_empty());
        assert!(netns::exists(web.as_str()).unwrap());
    });
}

#[test]
#[ignore = "needs root"]
fn the_loopback_of_others_is_raised_last() {
    on_a_host(|host| async move {
        let switch = host.start().await;
        let (web, theirs) = (host.name("web"), host.name("theirs"));
        let place = Place::open(Netns::create(theirs.as_str()).unwrap()).unwrap();
        let lo = place.netlink.link_by_name("lo").await.unwrap().index;
        place.netlink.change_link(lo, &crate::netlink::LinkChange::new().down()).await.unwrap();
        let is_up = async || place.netlink.link_by_name("lo").await.unwrap().up;
        switch.create_network(network("broken", "10.9.0.0/24")).await.unwrap();
        let mut request = sandbox(&web, &["bridge"]);
        request.netns = Some(format!("{}/{theirs}", netns::NETNS_DIR).parse().unwrap());

        let taken = std::net::TcpListener::bind("0.0.0.0:8080").unwrap();
        request.publish = vec!["8080:80".parse().unwrap()];
        switch.create_sandbox(request.clone()).await.unwrap_err();
        assert!(!is_up().await, "refused");
        drop(taken);
        break_publishing(&switch);
        switch.create_sandbox(request.clone()).await.unwrap_err();
        assert!(!is_up().await, "taken back");
        mend_publishing(&switch);
        switch.create_sandbox(request).await.unwrap();
        assert!(is_up().await);
    });
}

#[test]
#[ignore = "needs root"]
fn a_removal_that_was_broken_off_takes_what_cannot_be_told_inside() {
    on_a_host(|host| async move {
        let switch = host.start().await;
        let before = host_links().await;
        let (web, theirs) = (host.name("web"), host.name("theirs"));
        let place = Place::open(Netns::create(theirs.as_str()).unwrap()).unwrap();
        let mut fast = network("fast", "10.8.0.0/24");
        fast.options.insert("link".to_owned(), "veth".to_owned());
        switch.create_network(fast).await.unwrap();
        let mut request = sandbox(&web, &["fast"]);
        request.netns = Some(format!("{}/{theirs}", netns::NETNS_DIR).parse().unwrap());
        switch.create_sandbox(request).await.unwrap();
        let record = switch.sandbox_record(&web).unwrap();
        let inner = place.netlink.link_by_name("eth0").await.unwrap().index;
        let disguise = crate::netlink::LinkChange::new()
            .name("other0")
            .mac("02:00:00:00:00:99".parse::<crate::api::types::MacAddr>().unwrap().0);
        let down = crate::netlink::LinkChange::new().down();
        for change in [down, disguise] {
            place.netlink.change_link(inner, &change).await.unwrap();
        }
        // Killed right after the record was gone.
        let intent = Intent::Sandbox {
            name: web.clone(),
            namespace: Some(record.namespace.clone()),
            ifnames: vec!["eth0".to_owned()],
            host_ends: record.host_ends(),
        };
        let edits = vec![Edit::PutIntent(99, intent), Edit::RemoveSandbox(web)];
        switch.commit(&*switch.work.lock().await, edits).unwrap();
        switch.stop().await;
        drop(switch);

        let switch = host.start().await;
        assert!(switch.world().desired.intents.is_empty());
        let fast = switch.network_record(&"fast".parse().unwrap()).unwrap();
        switch.remove_network(&fast.name).await.unwrap();
        assert_eq!(host_links().await, before);
        assert!(!links(place.netns).await.contains("other0"));
    });
}
