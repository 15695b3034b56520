//! The store: what was committed comes back; what is broken is refused and left alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::api::types::{PolicyAction, PolicyDirection, UplinkMode};
use crate::error::Kind;
use crate::ipam::SubnetPlan;
use crate::model::{Endpoint, Namespace, Origin, PolicyRule, Publish, Wire};
use crate::publish::{PortRange, Proto};

fn network(name: &str, id: u16) -> Network {
    let subnet = format!("10.{id}.0.0/24").parse().unwrap();
    Network {
        id,
        uid: format!("{id:064x}"),
        name: name.parse().unwrap(),
        subnets: vec![SubnetPlan::new(subnet, None, None, BTreeMap::new()).unwrap()],
        cursors: vec![7],
        subnets6: Vec::new(),
        cursors6: Vec::new(),
        internal: false,
        options: BTreeMap::from([("mtu".to_owned(), "1400".to_owned())]),
        labels: BTreeMap::new(),
        mtu: 1400,
        created: 1,
        origin: Origin::Config,
        policy: vec![PolicyRule {
            id: 5,
            action: PolicyAction::Deny,
            direction: PolicyDirection::In,
            src: Some("sandbox:s1".parse().unwrap()),
            dst: Some("203.0.113.0/24".parse().unwrap()),
            proto: Some("icmp".parse().unwrap()),
            port: PortRange::new(80, 81),
            host_port: None,
        }],
    }
}

/// With IPv6, and a cursor beyond 64 bits.
fn dual(network: Network) -> Network {
    let subnet = "fd00:1::/64".parse().unwrap();
    let plan = SubnetPlan::new(subnet, None, None, BTreeMap::new()).unwrap();
    let cursors6 = vec!["fd00:1::ffff:ffff:ffff:fffe".parse().unwrap()];
    Network { subnets6: vec![plan], cursors6, ..network }
}

fn sandbox(name: &str, network: &str) -> Sandbox {
    Sandbox {
        name: name.parse().unwrap(),
        namespace: Namespace::Made { inode: 4_026_531_840 },
        endpoints: vec![Endpoint {
            network: network.parse().unwrap(),
            ifname: "eth0".to_owned(),
            mac: "02:42:0a:01:00:02".parse().unwrap(),
            ipv4: Ipv4Addr::new(10, 1, 0, 2),
            prefix_len: 24,
            ipv6: None,
            aliases: Vec::new(),
            wire: Wire::Tap,
            options: BTreeMap::new(),
        }],
        publishes: vec![Publish {
            id: 3,
            proto: Proto::Tcp,
            host_ip: None,
            host_ports: PortRange::new(8080, 8081).unwrap(),
            ports: PortRange::new(80, 81).unwrap(),
        }],
        created: 2,
    }
}

fn edits() -> Vec<Edit> {
    vec![
        Edit::Counters(Counters { network: 2, uplink: 1, publish: 3, policy: 5, intent: 9 }),
        Edit::PutNetwork(network("app", 1)),
        Edit::PutNetwork(dual(network("web", 2))),
        Edit::PutSandbox(sandbox("s1", "app")),
        Edit::PutUplink(Uplink {
            id: 1,
            interface: "eth0".to_owned(),
            mode: UplinkMode::Shared,
            origin: Origin::Automatic,
            addresses: Vec::new(),
            gateway: None,
            gateway6: None,
            nat_ports: Vec::new(),
            made_qdisc: false,
        }),
        Edit::PutRoute(Route {
            destination: "10.99.0.0/16".parse().unwrap(),
            via: [192, 0, 2, 9].into(),
            uplink: None,
        }),
        Edit::PutIntent(9, Intent::HostDevice { ifname: "vsw-0".to_owned() }),
    ]
}

fn open(directory: &Path) -> Result<(Store, Desired)> {
    Store::open(Lock::take(directory)?, false)
}

fn filled(directory: &Path) -> Desired {
    let (store, mut desired) = open(directory).unwrap();
    store.commit(&edits()).unwrap();
    for edit in edits() {
        desired.apply(edit);
    }
    desired
}

#[test]
fn committed_records_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let expected = filled(directory.path());
    let (store, desired) = open(directory.path()).unwrap();
    assert_eq!(desired, expected);
    let removals = [
        Edit::RemoveNetwork("web".parse().unwrap()),
        Edit::RemoveSandbox("s1".parse().unwrap()),
        Edit::RemoveUplink("eth0".to_owned()),
        Edit::RemoveRoute("10.99.0.0/16".parse().unwrap()),
        Edit::RemoveIntent(9),
    ];
    store.commit(&removals).unwrap();
    drop(store);
    let (_store, desired) = open(directory.path()).unwrap();
    let mut left = Desired { counters: expected.counters, ..Desired::default() };
    left.apply(Edit::PutNetwork(network("app", 1)));
    assert_eq!(desired, left);
}

#[test]
fn records_of_before_a_field_was_kept_are_read() {
    let written = serde_json::to_value(network("app", 1)).unwrap();
    let mut older = written.clone();
    assert_eq!(older.as_object_mut().unwrap().remove("origin").unwrap(), "config");
    assert_eq!(older.as_object_mut().unwrap().remove("policy").unwrap()[0]["src"], "sandbox:s1");
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open(directory.path()).unwrap();
    let txn = store.db.begin_write().unwrap();
    let bytes = serde_json::to_vec(&older).unwrap();
    txn.open_table(NETWORKS).unwrap().insert("app", bytes.as_slice()).unwrap();
    txn.commit().unwrap();
    drop(store);
    let (_store, desired) = open(directory.path()).unwrap();
    let expected = Network { origin: Origin::User, policy: Vec::new(), ..network("app", 1) };
    assert_eq!(desired.networks["app"], expected);
}

/// Puts records into a file as they are, byte for byte.
fn write_raw(directory: &Path, tables: &serde_json::Value) {
    let (store, _) = open(directory).unwrap();
    let txn = store.db.begin_write().unwrap();
    for table in [META, NETWORKS, SANDBOXES, UPLINKS, ROUTES] {
        let rows = &tables[redb::TableHandle::name(&table)];
        let mut table = txn.open_table(table).unwrap();
        for (key, row) in rows.as_object().unwrap() {
            let bytes = serde_json::to_vec(row).unwrap();
            table.insert(key.as_str(), bytes.as_slice()).unwrap();
        }
    }
    txn.commit().unwrap();
}

fn version_in(directory: &Path) -> u32 {
    let db = Database::open(directory.join(FILE_NAME)).unwrap();
    let txn = db.begin_read().unwrap();
    let version = txn.open_table(META).unwrap().get(VERSION_KEY).unwrap().unwrap();
    decode(VERSION_KEY, version.value()).unwrap()
}

#[test]
fn a_file_of_version_1_is_converted() {
    // Written by the last build that had it.
    let tables: serde_json::Value = serde_json::from_str(include_str!("version1.json")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    write_raw(directory.path(), &tables);
    assert_eq!(version_in(directory.path()), 1);
    let (store, desired) = open(directory.path()).unwrap();
    assert_eq!(store.installation().id, "295727f44c5589f4");
    let [app, web] = [&desired.networks["app"], &desired.networks["web"]];
    let expected = Network { uid: app.uid.clone(), policy: Vec::new(), ..network("app", 1) };
    assert_eq!(*app, expected);
    assert!(!web.has_ipv6() && web.cursors6.is_empty());
    assert_eq!(desired.sandboxes["s1"], sandbox("s1", "app"));
    let s2 = &desired.sandboxes["s2"];
    assert_eq!(s2.endpoints[0].wire.host_end(), Some("vswe-0123456789"));
    assert_eq!(s2.endpoints[0].ipv6, None);
    assert_eq!(s2.publishes[0].host_ip, Some([192, 0, 2, 7].into()));
    let wan = &desired.uplinks["wan0"];
    assert_eq!(wan.addresses, ["192.0.2.7/24".parse().unwrap()]);
    assert_eq!((wan.gateway, wan.gateway6), (Some([192, 0, 2, 1].into()), None));
    let route = &desired.routes[&"10.99.0.0/16".parse::<ipnet::IpNet>().unwrap()];
    assert_eq!(route.via, IpAddr::from([192, 0, 2, 9]));
    drop(store);
    // From now on a daemon that does not know IPv6 refuses it, instead of losing what it cannot read.
    assert_eq!(version_in(directory.path()), 2);
    assert_eq!(open(directory.path()).unwrap().1, desired);
}

/// Changes what the file says about whose it is.
fn rewrite_installation(directory: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let (store, _) = open(directory).unwrap();
    let mut installation = serde_json::to_value(store.installation()).unwrap();
    change(&mut installation);
    let bytes = serde_json::to_vec(&installation).unwrap();
    let txn = store.db.begin_write().unwrap();
    txn.open_table(META).unwrap().insert(INSTALLATION_KEY, bytes.as_slice()).unwrap();
    txn.commit().unwrap();
}

#[test]
fn a_file_of_before_hosts_were_kept_becomes_that_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let here = Some(HostId::current().unwrap());
    let expected = filled(directory.path());
    rewrite_installation(directory.path(), |installation| {
        assert!(installation.as_object_mut().unwrap().remove("host").is_some());
    });
    let path = directory.path().join(FILE_NAME);
    assert_eq!(check::sound(&path).unwrap().host, None);
    let (store, desired) = open(directory.path()).unwrap();
    assert_eq!((&store.installation().host, desired), (&here, expected));
    drop(store);
    assert_eq!(check::sound(&path).unwrap().host, here);
}

#[test]
fn after_another_boot_the_file_is_this_hosts() {
    let directory = tempfile::tempdir().unwrap();
    let expected = filled(directory.path());
    rewrite_installation(directory.path(), |installation| {
        let host = installation["host"].as_object_mut().unwrap();
        host.insert("boot".to_owned(), "before".into());
        host.insert("netns".to_owned(), 1.into());
    });
    let (store, desired) = open(directory.path()).unwrap();
    assert_eq!(desired, expected);
    assert_eq!(store.installation().host, Some(HostId::current().unwrap()));
}

#[test]
fn the_installation_is_stable_and_private() {
    let directory = tempfile::tempdir().unwrap();
    let nested = directory.path().join("a/b");
    let (mut store, _) = open(&nested).unwrap();
    let id = store.installation().id.clone();
    let created = [directory.path().join("a"), nested.clone()];
    assert_eq!(store.installation().created_directories, created);
    store.remember_directories(vec![PathBuf::from("/run/x")]).unwrap();
    drop(store);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&nested), 0o700);
    assert_eq!(mode(&nested.join(FILE_NAME)), 0o600);
    let (store, _) = open(&nested).unwrap();
    assert_eq!(store.installation().id, id);
    assert_eq!(store.installation().created_directories.last(), Some(&PathBuf::from("/run/x")));
    store.remove().unwrap();
    assert!(!nested.join(FILE_NAME).exists());
}

#[test]
fn a_second_daemon_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path()).unwrap();
    let error = open(directory.path()).unwrap_err();
    assert_eq!(error.kind, Kind::Conflict);
    assert!(error.message.contains("another vswitchd is running"), "{error}");
    drop(first);
    assert!(open(directory.path()).is_ok());
}

/// Opens must fail in one line and change nothing.
fn refused(directory: &Path, bytes: &[u8]) -> Error {
    let path = directory.join(FILE_NAME);
    fs::write(&path, bytes).unwrap();
    let error = open(directory).unwrap_err();
    assert_eq!(error.kind, Kind::Failed);
    assert!(error.message.contains(&path.display().to_string()), "{error}");
    assert!(fs::read(&path).unwrap() == bytes, "the broken file was changed");
    error
}

#[test]
fn nonsense_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    for bytes in [&b"x"[..], b"not a database at all", &[0; 4096], &[0xff; 100_000]] {
        let error = refused(directory.path(), bytes);
        assert!(error.message.contains("move it away to start afresh"), "{error}");
    }
}

#[test]
fn a_truncated_file_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    let whole = fs::read(directory.path().join(FILE_NAME)).unwrap();
    for len in [0, 1, 63, 64, 319, 320, 4095, 4096, whole.len() / 2, whole.len() - 1] {
        refused(directory.path(), &whole[..len]);
    }
}

#[test]
fn a_newer_version_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    let path = directory.path().join(FILE_NAME);
    {
        let db = Database::create(&path).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(META).unwrap().insert(VERSION_KEY, b"3".as_slice()).unwrap();
        txn.commit().unwrap();
    }
    let error = refused(directory.path(), &fs::read(&path).unwrap());
    assert!(error.message.contains("has version 3, this vswitchd knows 2"), "{error}");
}

#[test]
fn a_file_of_another_program_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    let other: TableDefinition<u64, u64> = TableDefinition::new("other");
    {
        let db = Database::create(&path).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(other).unwrap().insert(1, 1).unwrap();
        txn.commit().unwrap();
    }
    let error = refused(directory.path(), &fs::read(&path).unwrap());
    assert!(error.message.contains("not a state file of vswitchd"), "{error}");
}

#[test]
fn a_file_that_was_not_closed_is_taken_as_committed() {
    let directory = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let (store, _) = open(directory.path()).unwrap();
    store.commit(&edits()).unwrap();
    // What a kill leaves: the file as it is while the store is open.
    fs::copy(directory.path().join(FILE_NAME), copy.path().join(FILE_NAME)).unwrap();
    let (_copy, desired) = open(copy.path()).unwrap();
    assert_eq!(desired.sandboxes.len(), 1);
    assert_eq!(desired.networks.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// One damaged byte is either found, or hit nothing that counts: what opens is what was stored.
    #[test]
    fn a_damaged_byte_never_becomes_another_record(at in any::<prop::sample::Index>(), bit in 0u32..8) {
        let directory = tempfile::tempdir().unwrap();
        let expected = filled(directory.path());
        let path = directory.path().join(FILE_NAME);
        let mut bytes = fs::read(&path).unwrap();
        // Most of the file is empty pages; the damage goes where the records are.
        let end = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
        let at = at.index(end);
        bytes[at] ^= 1 << bit;
        fs::write(&path, &bytes).unwrap();
        match open(directory.path()) {
            Ok((_store, desired)) => prop_assert_eq!(desired, expected),
            Err(error) => {
                prop_assert!(!error.message.contains('\n'));
                prop_assert!(fs::read(&path).unwrap() == bytes);
            }
        }
    }
}
