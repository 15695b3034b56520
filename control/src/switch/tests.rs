//! The switch in network namespaces of its own: what it makes, takes over, undoes and leaves.

mod ipv6;
mod records;
mod uplinks;

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use dataplane::EngineOptions;
use nix::sched::{CloneFlags, unshare};

use super::purge::{conntrack_files, purge_offline};
use super::*;
use crate::api::types::{NetworkCreate, NetworkRef, SandboxCreate, Subnet, UplinkMode};
use crate::config::{Config, Daemon, ServiceLimits};
use crate::error::Kind;
use crate::model::Namespace;
use crate::netns::{self, Netns};
use crate::options::LinkKind;
use crate::place::DeviceSpec;
use crate::state::Lock;

/// Runs a test on threads in a fresh network namespace, which is "the host" to it.
pub(crate) fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce(Host) -> F + Send) {
    std::thread::scope(|scope| {
        let outcome = scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                // Threads of the runtime are made by this one, and so are in its namespace.
                tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(test(Host::new()));
            })
            .join();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A state directory, and names for sandboxes that are gone at the end even if the test fails.
pub(crate) struct Host {
    directory: tempfile::TempDir,
    prefix: String,
}

impl Host {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("vswt-{}-{number}-", std::process::id());
        Self { directory: tempfile::tempdir().unwrap(), prefix }
    }

    fn name(&self, suffix: &str) -> Name {
        format!("{}{suffix}", self.prefix).parse().unwrap()
    }

    pub(crate) fn daemon(&self) -> Daemon {
        Daemon {
            socket: self.directory.path().join("socket"),
            state_dir: self.directory.path().join("state"),
            run_dir: self.directory.path().join("run"),
            ..Daemon::default()
        }
    }

    /// As the daemon starts.
    pub(crate) async fn start(&self) -> Arc<Switch> {
        let config = Config::default();
        let daemon = self.daemon();
        let (store, desired) = Store::open(Lock::take(&daemon.state_dir).unwrap(), false).unwrap();
        std::fs::create_dir_all(&daemon.run_dir).unwrap();
        let [conntrack_file, conntrack6_file] =
            conntrack_files(&daemon.run_dir, store.installation());
        let options = EngineOptions {
            conntrack_limit: 1024,
            conntrack_file: Some(conntrack_file),
            conntrack6_file: Some(conntrack6_file),
            ..EngineOptions::default()
        };
        let engine = Engine::start(&options).unwrap();
        let host = Place::open(Netns::current().unwrap()).unwrap();
        let settings = Settings {
            pools: config.defaults.pools,
            pools6: Vec::new(),
            mtu: 1500,
            link: LinkKind::Tap,
            tuning: Tuning::default(),
            uplinks: Vec::new(),
            services: ServiceLimits::default(),
        };
        let switch = Switch::new(engine, host, settings, store, desired, Vec::new());
        switch.adopt(&[]).await.unwrap();
        switch
    }

    /// Namespaces with this test's names.
    fn namespaces(&self) -> Vec<String> {
        let mut names = netns::list().unwrap();
        names.retain(|name| name.starts_with(&self.prefix));
        names
    }

    fn files(&self) -> Vec<PathBuf> {
        // Nobody has named a namespace on this machine yet: there is no folder either.
        let Ok(entries) = std::fs::read_dir(netns::NETNS_DIR) else { return Vec::new() };
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains(&self.prefix))
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for path in self.files() {
            let _ = netns::delete(&path.file_name().unwrap().to_string_lossy());
        }
    }
}

async fn links(netns: Netns) -> BTreeSet<String> {
    let place = Place::open(netns).unwrap();
    place.netlink.links().await.unwrap().into_iter().map(|link| link.name).collect()
}

async fn host_links() -> BTreeSet<String> {
    links(Netns::current().unwrap()).await
}

fn network(name: &str, subnet: &str) -> NetworkCreate {
    NetworkCreate {
        name: name.parse().unwrap(),
        driver: Default::default(),
        subnets: vec![Subnet {
            subnet: subnet.parse().unwrap(),
            gateway: None,
            ip_range: None,
            aux_addresses: Default::default(),
        }],
        internal: false,
        ipv6: false,
        options: Default::default(),
        labels: Default::default(),
    }
}

fn sandbox(name: &Name, networks: &[&str]) -> SandboxCreate {
    SandboxCreate {
        name: name.clone(),
        networks: networks.iter().map(|name| name.parse::<NetworkRef>().unwrap()).collect(),
        ip: None,
        ip6: None,
        mac: None,
        aliases: Vec::new(),
        options: Default::default(),
        publish: Vec::new(),
        netns: None,
    }
}

#[test]
fn numbers_go_round_and_skip_what_is_used() {
    assert_eq!(next_number(0, |_| false), Ok(1));
    assert_eq!(next_number(u16::MAX, |n| n == 1), Ok(2));
    assert_eq!(next_number(u16::MAX - 1, |_| false), Ok(1), "65535 is the outside");
    assert_eq!(next_number(7, |n| n != 7), Ok(7));
    assert_eq!(next_number(7, |_| true).unwrap_err().exit_code(), 4);
}

#[test]
fn random_digits_differ() {
    let (a, b) = (random_hex(64).unwrap(), random_hex(64).unwrap());
    assert_eq!(a.len(), 64);
    assert!(a.chars().all(|c| c.is_ascii_hexdigit()));
    assert_ne!(a, b);
}

#[test]
#[ignore = "needs root"]
fn what_is_made_goes_again() {
    on_a_host(|host| async move {
        let before = host_links().await;
        let switch = host.start().await;
        switch.create_network(network("app", "10.9.0.0/24")).await.unwrap();
        let web = host.name("web");
        let mut request = sandbox(&web, &["app"]);
        request.publish = vec!["8080:80".parse().unwrap()];
        let made = switch.create_sandbox(request).await.unwrap();
        assert_eq!(made.netns, Path::new(netns::NETNS_DIR).join(web.as_str()));
        assert_eq!(host.namespaces(), [web.to_string()]);
        let inside = links(Netns::open(web.as_str()).unwrap()).await;
        assert_eq!(inside, BTreeSet::from(["eth0".to_owned(), "lo".to_owned()]));
        // The port is the sandbox's, on the host too.
        assert!(std::net::TcpListener::bind("0.0.0.0:8080").is_err());

        switch.remove_sandbox(&web).await.unwrap();
        std::net::TcpListener::bind("0.0.0.0:8080").unwrap();
        assert_eq!(host.files(), Vec::<PathBuf>::new());
        switch.remove_network(&"app".parse().unwrap()).await.unwrap();
        assert!(switch.world().desired.intents.is_empty());

        drop(switch);
        purge_offline(&host.daemon(), false).await.unwrap();
        assert_eq!(host_links().await, before);
        assert!(!host.daemon().state_dir.exists());
    });
}

#[test]
#[ignore = "needs root"]
fn a_network_that_fails_half_way_leaves_nothing() {
    on_a_host(|host| async move {
        let switch = host.start().await;
        let before = host_links().await;
        let mut work = switch.work.lock().await;
        let mut network = switch.network_record(&"bridge".parse().unwrap()).unwrap();
        network.name = "big".parse().unwrap();
        network.uid = "f".repeat(64);
        // More than a TAP takes.
        network.mtu = 65_535;
        let mut undo = undo::Undo::default();
        switch.build_network(&mut work, &network, &mut undo).await.unwrap_err();
        switch.roll_back(&mut work, undo).await;
        assert_eq!(host_links().await, before);
        let world = switch.world();
        assert!(world.desired.intents.is_empty());
        assert!(!world.desired.networks.contains_key("big"));
        assert_eq!(world.attached.hosts.len(), 1);
    });
}

#[test]
#[ignore = "needs root"]
fn a_sandbox_that_fails_half_way_leaves_nothing() {
    on_a_host(|host| async move {
        let switch = host.start().await;
        switch.create_network(network("good", "10.8.0.0/24")).await.unwrap();
        switch.create_network(network("bad", "10.9.0.0/24")).await.unwrap();
        // The device in the first network is made, the one in the second refuses.
        switch.world_mut().desired.networks.get_mut("bad").unwrap().mtu = 65_535;
        let web = host.name("web");
        let mut request = sandbox(&web, &["good", "bad"]);
        request.publish = vec!["8080:80".parse().unwrap()];
        let error = switch.create_sandbox(request.clone()).await.unwrap_err();
        assert_eq!(error.kind, Kind::Failed);
        assert_eq!(host.files(), Vec::<PathBuf>::new());
        {
            let world = switch.world();
            assert!(world.desired.intents.is_empty() && world.desired.sandboxes.is_empty());
            assert!(world.attached.endpoints.is_empty());
        }
        std::net::TcpListener::bind("0.0.0.0:8080").unwrap();
        // Once mended, the same request gets the first address: nothing was lost.
        switch.world_mut().desired.networks.get_mut("bad").unwrap().mtu = 1500;
        let made = switch.create_sandbox(request).await.unwrap();
        let addresses: Vec<_> =
            made.endpoints.iter().map(|e| e.ipv4.unwrap().to_string()).collect();
        assert_eq!(addresses, ["10.8.0.2", "10.9.0.2"]);
    });
}

#[test]
#[ignore = "needs root"]
fn a_restart_takes_over_what_is_there_and_makes_what_is_missing() {
    on_a_host(|host| async move {
        let switch = host.start().await;
        let (stays, vanishes) = (host.name("stays"), host.name("vanishes"));
        for name in [&stays, &vanishes] {
            switch.create_sandbox(sandbox(name, &[])).await.unwrap();
        }
        let before = host_links().await;
        let inode = std::fs::metadata(Path::new(netns::NETNS_DIR).join(stays.as_str()));
        let inode = std::os::unix::fs::MetadataExt::ino(&inode.unwrap());
        switch.stop().await;
        drop(switch);
        // As after a reboot.
        netns::delete(vanishes.as_str()).unwrap();

        let switch = host.start().await;
        assert_eq!(host_links().await, before);
        assert_eq!(switch.world().attached.endpoints.len(), 2);
        assert!(switch.world().gone.is_empty());
        assert_eq!(switch.world().desired.sandboxes[&stays].namespace, Namespace::Made { inode });
        let inside = links(Netns::open(vanishes.as_str()).unwrap()).await;
        assert!(inside.contains("eth0"));
        // Addresses in use are known again.
        let next = switch.create_sandbox(sandbox(&host.name("next"), &[])).await.unwrap();
        assert_eq!(next.endpoints[0].ipv4, Some([172, 30, 0, 4].into()));
    });
}

#[test]
#[ignore = "needs root"]
fn a_namespace_of_others_is_never_touched() {
    on_a_host(|host| async move {
        let switch = host.start().await;
        let (web, theirs) = (host.name("web"), host.name("theirs"));
        Netns::create(theirs.as_str()).unwrap();
        // The name is taken.
        let error = switch.create_sandbox(sandbox(&theirs, &[])).await.unwrap_err();
        assert_eq!(error.kind, Kind::Conflict);
        // Adopted: the interface comes and goes, the namespace stays.
        let path = format!("{}/{theirs}", netns::NETNS_DIR);
        let mut request = sandbox(&web, &[]);
        request.netns = Some(path.parse().unwrap());
        switch.create_sandbox(request.clone()).await.unwrap();
        assert!(links(Netns::open(theirs.as_str()).unwrap()).await.contains("eth0"));
        switch.remove_sandbox(&web).await.unwrap();
        assert!(!links(Netns::open(theirs.as_str()).unwrap()).await.contains("eth0"));
        // A namespace put in the place of ours is not ours.
        switch.create_sandbox(sandbox(&web, &[])).await.unwrap();
        netns::delete(web.as_str()).unwrap();
        Netns::create(web.as_str()).unwrap();
        switch.remove_sandbox(&web).await.unwrap();
        assert!(netns::exists(web.as_str()).unwrap());
    });
}

#[test]
#[ignore = "needs root"]
fn what_a_crash_left_is_cleared_away() {
    on_a_host(|host| async move {
        let switch = host.start().await;
        let before = host_links().await;
        let (web, old) = (host.name("web"), host.name("old"));
        {
            // Killed between the namespace and the record, in this version and in an older one.
            let work = switch.work.lock().await;
            for (name, knows) in [(&web, true), (&old, false)] {
                let netns = Netns::anonymous().unwrap();
                let inode = endpoint::inode_of(&netns).unwrap();
                let intent = Intent::Sandbox {
                    name: name.clone(),
                    namespace: knows.then_some(Namespace::Made { inode }),
                    ifnames: vec!["eth0".to_owned()],
                    host_ends: Vec::new(),
                };
                switch.announce(&work, intent).unwrap();
                netns.bind(name.as_str()).unwrap();
            }
            let intent = Intent::HostDevice { ifname: "vsw-test".to_owned() };
            switch.announce(&work, intent).unwrap();
        }
        let spec = DeviceSpec {
            ifname: "vsw-test".to_owned(),
            mac: "02:42:0a:00:00:01".parse().unwrap(),
            mtu: 1500,
            addresses: Vec::new(),
            queue: 2000,
        };
        drop(switch.host.make(&spec).await.unwrap());
        drop(switch);
        assert!(host_links().await.contains("vsw-test"));

        let switch = host.start().await;
        assert!(switch.world().desired.intents.is_empty());
        assert_eq!(host_links().await, before);
        assert_eq!(host.files(), Vec::<PathBuf>::new());
    });
}

#[test]
#[ignore = "needs root"]
fn a_shared_uplink_follows_its_interface_and_leaves_no_trace() {
    on_a_host(|host| async move {
        let place = Place::open(Netns::current().unwrap()).unwrap();
        let far = Netns::anonymous().unwrap();
        let plain = crate::netlink::LinkChange::new();
        place.netlink.add_veth("wan0", &plain, "far0", &plain, &far).await.unwrap();
        let wan = place.netlink.link_by_name("wan0").await.unwrap().index;
        place.netlink.change_link(wan, &plain.up()).await.unwrap();
        let address = |text: &str| text.parse().unwrap();
        let fail = crate::netlink::IfExists::Fail;
        place.netlink.add_address(wan, address("192.0.2.2/24"), fail).await.unwrap();
        let route = crate::netlink::RouteSpec::default_via([192, 0, 2, 1], wan);
        place.netlink.add_route(&route, fail).await.unwrap();

        // Nobody named an uplink: that of the default route.
        let switch = host.start().await;
        let [uplink] = switch.uplinks().try_into().unwrap();
        assert_eq!((uplink.mode, uplink.automatic), (UplinkMode::Shared, true));
        assert_eq!(uplink.gateway, Some([192, 0, 2, 1].into()));
        assert!(place.netlink.has_steering(wan).await.unwrap());

        // A service of the host takes its port out of those for NAT.
        let free = uplink.nat_ports[0].first();
        let listener = std::net::TcpListener::bind(("0.0.0.0", free)).unwrap();
        place.netlink.add_address(wan, address("192.0.2.3/24"), fail).await.unwrap();
        switch.follow_host(Look::All).await.unwrap();
        let [uplink] = switch.uplinks().try_into().unwrap();
        assert_eq!(uplink.addresses.len(), 2);
        assert!(
            uplink.nat_ports.iter().all(|range| !(range.first()..=range.last()).contains(&free))
        );
        drop(listener);

        switch.stop().await;
        drop(switch);
        assert!(!place.netlink.has_steering(wan).await.unwrap());
        assert!(!place.netlink.has_clsact(wan).await.unwrap());
        purge_offline(&host.daemon(), false).await.unwrap();
    });
}
