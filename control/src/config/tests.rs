//! The file: what it may say, and how its faults are told.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::api::types::UplinkMode;

fn parse(text: &str) -> Result<Config> {
    Config::parse(text, Path::new("v.toml"))
}

#[test]
fn nothing_means_the_defaults() {
    assert_eq!(parse("").unwrap(), Config::of_this_host());
    assert_eq!(Config::load(Path::new("/nonexistent/v.toml")).unwrap(), Config::of_this_host());
    let config = Config::default();
    assert_eq!(config.timeouts.tcp_established, Duration::from_secs(432_000));
    assert_eq!(config.defaults.pools[0].base.to_string(), "172.16.0.0/12");
    assert_eq!(config.defaults.pools[0].size, 16);
    assert!(config.defaults.pools6.is_empty());
    assert_eq!(config.daemon.socket, Path::new("/run/vswitchd/vswitchd.sock"));
}

#[test]
fn the_shipped_example_is_valid_and_complete() {
    let text = include_str!("../../../docs/examples/vswitchd.toml");
    let config = parse(text).unwrap();
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.networks.len(), 2);
    assert_eq!(config.uplinks.len(), 2);
    // What the example says outside of networks and uplinks is what would apply without it.
    let plain = Config { networks: Vec::new(), uplinks: Vec::new(), ..config };
    let defaults = Config::default();
    assert_eq!(plain.timeouts, defaults.timeouts);
    assert_eq!(plain.limits, defaults.limits);
    assert_eq!(plain.defaults, defaults.defaults);
    assert_eq!(Daemon { workers: None, ..plain.daemon }, defaults.daemon);
}

#[test]
fn a_small_host_gets_small_tables() {
    let of = |mebibytes: u64| Limits::for_memory(mebibytes << 20);
    assert_eq!(of(4096), Limits::default());
    assert_eq!(of(1 << 20), Limits::default(), "more memory, the same tables");
    let half = of(2048);
    assert_eq!((half.conntrack, half.fdb, half.neighbors.all), (131_072, 32_768, 8192));
    assert_eq!((half.buffers, half.conntrack_per_endpoint), (256, 65_536));
    let least = of(16);
    assert_eq!((least.conntrack, least.fdb, least.neighbors.all), (16_384, 4096, 2048));
    assert_eq!((half.fragment_bytes, least.fragment_bytes), (2 << 20, 1 << 20));
    assert_eq!((half.neighbors.uplink, least.neighbors.uplink), (4096, 1024));
    assert_eq!((half.capture_frames, least.capture_frames), (512, 128));
    assert_eq!((half.conntrack_events, least.conntrack_events), (4096, 1024));
    let (half, fewest) = (half.services, least.services);
    assert_eq!((half.nat_log_bytes, fewest.nat_log_bytes), (2 << 20, 1 << 20));
    assert_eq!((half.tap_queue, fewest.tap_queue), (1024, 500));
    assert_eq!(least.fdb_per_port, Limits::default().fdb_per_port);
}

#[test]
fn every_section() {
    let config = parse(
        r#"
        [daemon]
        socket = "/s"
        state_dir = "/st"
        run_dir = "/r"
        workers = 4
        [defaults]
        pools = [{ base = "10.64.0.0/10", size = 24 }]
        mtu = 9000
        link = "tap"
        dns = false
        [timeouts]
        udp = 31
        fragments = 6
        fragments_v6 = 7
        fdb_ageing = 5
        [limits]
        conntrack = 2048
        new_connections_per_endpoint = 50
        fdb = 4096
        fdb_per_port = 7
        groups = 90
        groups_per_endpoint = 9
        fragments = 8
        buffers = 256
        neighbors = 300
        neighbors_per_network = 30
        neighbors_unanswered = 31
        waiting_frames = 20
        waiting_frames_per_neighbor = 21
        expectations = 22
        helped_controls = 23
        capture_frames = 24
        conntrack_events = 25
        nat_log_bytes = 70000
        events = 26
        tap_queue = 27
        served_ports = 28
        held_ports = 29
        icmp_errors_per_second = 10
        fragments_per_datagram = 70
        fragment_bytes = 2000000
        traces = 3
        event_readers = 9
        host_connections = 11
        host_datagram_clients = 12
        policy_rules = 13
        [[uplink]]
        interface = "eth0"
        [[uplink]]
        interface = "eth1"
        mode = "dedicated"
        addresses = ["192.0.2.2/24"]
        gateway = "192.0.2.1"
        nat_ports = "2000-3000"
        [[network]]
        name = "a"
        subnet = "10.1.0.0/24"
        gateway = "10.1.0.254"
        ip_range = "10.1.0.128/25"
        aux_address = { nas = "10.1.0.9" }
        internal = true
        options = { mtu = 1400, icc = false, iface_prefix = "net" }
        labels = { tier = "front" }
        [[network]]
        name = "b"
        subnet = ["10.2.0.0/24", "10.3.0.0/24"]
        "#,
    )
    .unwrap();
    assert_eq!(config.daemon.workers, Some(4));
    assert_eq!(config.defaults.mtu, 9000);
    assert_eq!(config.timeouts.udp, Duration::from_secs(31));
    assert_eq!(config.fdb_ageing, Duration::from_secs(5));
    assert_eq!(config.grace, Duration::from_secs(300));
    assert_eq!(config.timeouts.fragments, Duration::from_secs(6));
    assert_eq!(config.timeouts.fragments_v6, Duration::from_secs(7));
    let limits = Limits {
        conntrack: 2048,
        conntrack_per_endpoint: 1024,
        new_connections_per_endpoint: Some(50),
        fdb: 4096,
        fdb_per_port: 7,
        fragments: 8,
        buffers: 256,
        neighbors: NeighborLimits { all: 300, network: 30, uplink: 150, unanswered: 31 },
        groups: GroupLimits { network: 90, port: 9 },
        waiting_frames: 20,
        waiting_frames_per_neighbor: 21,
        helpers: HelperLimits { expectations: 22, controls: 23 },
        icmp_errors: ErrorRate { per_second: 10 },
        fragments_per_datagram: 70,
        fragment_bytes: 2_000_000,
        traces: 3,
        capture_frames: 24,
        conntrack_events: 25,
        services: ServiceLimits {
            event_readers: 9,
            host_connections: 11,
            host_datagram_clients: 12,
            policy_rules: 13,
            events: 26,
            nat_log_bytes: 70_000,
            tap_queue: 27,
            served_ports: 28,
            held_ports: 29,
        },
    };
    assert_eq!(config.limits, limits);
    let own = parse("[limits]\nneighbors_per_uplink = 77").unwrap();
    assert_eq!(own.limits.neighbors.uplink, 77);
    assert_eq!(config.uplinks[0].mode, UplinkMode::Shared);
    assert_eq!(config.uplinks[1].nat_ports.unwrap().to_string(), "2000-3000");
    let a = &config.networks[0];
    assert_eq!(a.subnets[0].gateway, Some("10.1.0.254".parse().unwrap()));
    assert_eq!(a.subnets[0].aux_addresses["nas"].to_string(), "10.1.0.9");
    let options = [("mtu", "1400"), ("icc", "false"), ("iface_prefix", "net")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(a.options, BTreeMap::from(options));
    assert_eq!(config.networks[1].subnets.len(), 2);
}

#[test]
fn faults_name_line_and_key() {
    let table = [
        (
            "\n[daemon]\nsokcet = \"/x\"",
            "v.toml:3: unknown key \"sokcet\" in [daemon]; known keys are socket, state_dir, run_dir, workers, placement, io, gro, docker_plugin_dir, metrics, nat_log, nat_log_size",
        ),
        (
            "[deamon]",
            "v.toml:1: unknown key \"deamon\"; known keys are daemon, defaults, timeouts, limits, uplink, network, cluster",
        ),
        (
            "[defaults]\npools = [{ base = \"10.0.0.0/8\", size = 16, x = 1 }]",
            "v.toml:2: unknown key \"x\" in [defaults.pools]; known keys are base, size",
        ),
        (
            "[[network]]\nname = \"a\"\n\ntypo = 1",
            "v.toml:4: unknown key \"typo\" in [network]; known keys are name, driver",
        ),
        ("[[network]]\nsubnet = \"10.0.0.0/8\"", "v.toml:1: key \"name\" is missing in [network]"),
        ("[[network]]\nname = \"a/b\"", "v.toml:2: network.name: name \"a/b\": contains '/'"),
        (
            "[[network]]\nname = \"a\"\nsubnet = \"10.0.0.300/8\"",
            "v.toml:3: network.subnet: \"10.0.0.300/8\": ",
        ),
        (
            "[[network]]\nname = \"a\"\nsubnet = 7",
            "v.toml:3: network.subnet: invalid type: integer `7`, expected a string or an array",
        ),
        (
            "[[network]]\nname = \"a\"\ndriver = \"brigde\"",
            "v.toml:3: network.driver: unknown variant `brigde`",
        ),
        (
            "[[network]]\nname = \"a\"\noptions = { colour = \"red\" }",
            "v.toml:1: network \"a\": option \"colour\" is unknown; known options",
        ),
        ("[[network]]\nname = \"host\"", "v.toml:1: network \"host\" exists always"),
        (
            "[[network]]\nname = \"a\"\ngateway = \"10.0.0.1\"",
            "v.toml:1: network \"a\": gateway 10.0.0.1 needs a subnet",
        ),
        (
            "[[network]]\nname = \"a\"\n[[network]]\nname = \"a\"",
            "v.toml:3: network \"a\" is declared twice",
        ),
        (
            "[[network]]\nname = \"a\"\nsubnet = \"10.0.0.0/8\"\n[[network]]\nname = \"b\"\nsubnet = \"10.1.0.0/24\"",
            "v.toml:4: network \"b\": subnet 10.1.0.0/24 overlaps network \"a\"",
        ),
        (
            "[[uplink]]\ninterface = \"e\"\n[[uplink]]\ninterface = \"e\"",
            "v.toml:3: uplink \"e\" is declared twice",
        ),
        (
            "[[uplink]]\ninterface = \"e\"\nmode = \"dedicated\"",
            "v.toml:1: uplink \"e\": mode dedicated needs an address",
        ),
        (
            "[[uplink]]\ninterface = \"e\"\nnat_ports = \"9-8\"",
            "v.toml:3: uplink.nat_ports: port range \"9-8\": ends before it begins",
        ),
        (
            "[daemon]\nnat_log = \"nat.log\"",
            "v.toml:2: daemon.nat_log: \"nat.log\" is not an absolute path; begin it with '/'",
        ),
        ("[daemon]\nnat_log = \"/\"", "v.toml:2: daemon.nat_log: \"/\" does not name a file"),
        (
            "[daemon]\nnat_log_size = 0",
            "v.toml:2: daemon.nat_log_size: 0 is not a number from 1 to",
        ),
        (
            "[limits]\nfragment_bytes = 65536",
            "v.toml:2: limits.fragment_bytes: 65536 is not a number from 1048576 to",
        ),
        (
            "[limits]\nevent_readers = 16",
            "v.toml:2: limits.event_readers: 16 is not a number from 1 to 15",
        ),
        (
            "[limits]\nexpectations = 7",
            "v.toml:2: limits.expectations: 7 is not a number from 8 to 65536",
        ),
        (
            "[limits]\ncapture_frames = 15",
            "v.toml:2: limits.capture_frames: 15 is not a number from 16 to 65536",
        ),
        (
            "[limits]\nnat_log_bytes = 4096",
            "v.toml:2: limits.nat_log_bytes: 4096 is not a number from 65536 to",
        ),
        (
            "[limits]\nserved_ports = 4097",
            "v.toml:2: limits.served_ports: 4097 is not a number from 0 to 4096",
        ),
        (
            "[limits]\ntap_queue = 0",
            "v.toml:2: limits.tap_queue: 0 is not a number from 1 to 65535",
        ),
        ("[limits]\nbuffers = 255", "v.toml:2: limits.buffers: 255 is not a number from 256 to"),
        (
            "[limits]\nneighbors = 255",
            "v.toml:2: limits.neighbors: 255 is not a number from 256 to 1048576",
        ),
        (
            "[limits]\nneighbors_per_network = 0",
            "v.toml:2: limits.neighbors_per_network: 0 is not a number from 1 to 1048576",
        ),
        (
            "[limits]\nwaiting_frames = 1025",
            "v.toml:2: limits.waiting_frames: 1025 is not a number from 1 to 1024",
        ),
        (
            "[limits]\nicmp_errors_per_second = -1",
            "v.toml:2: limits.icmp_errors_per_second: -1 is not a number from 1 to 1000000",
        ),
        ("[timeouts]\nudp = 0", "v.toml:2: timeouts.udp: 0 is not a number from 1 to 31536000"),
        (
            "[timeouts]\nudp = \"30s\"",
            "v.toml:2: timeouts.udp: invalid type: string \"30s\", expected a number from 1 to",
        ),
        ("[defaults]\nmtu = 100", "v.toml:2: defaults.mtu: 100 is not a number from 576 to 65521"),
        ("[defaults]\nlink = \"tun\"", "v.toml:2: defaults.link: \"tun\" is neither tap nor veth"),
        (
            "[defaults]\npools = [{ base = \"169.254.0.0/16\", size = 24 }]",
            "v.toml:2: defaults.pools: pool 169.254.0.0/16: subnet 169.254.0.0/16 overlaps",
        ),
        (
            "[[network]]\nname = \"a\"\nsubnet = \"169.254.7.0/24\"",
            "v.toml:1: network \"a\": subnet 169.254.7.0/24 overlaps 169.254.0.0/16, which is link-local",
        ),
        ("[defaults]\npools = []", "v.toml:2: defaults.pools: is empty"),
        (
            "[defaults]\npools = [{ base = \"10.0.0.0/16\", size = 31 }]",
            "v.toml:2: defaults.pools: pool 10.0.0.0/16: holds no subnet of size 31; give a size \
             from 16 to 30",
        ),
        (
            "[defaults]\npools = [{ base = \"fe80::/32\", size = 64 }]",
            "v.toml:2: defaults.pools: pool fe80::/32: subnet fe80::/32 overlaps fe80::/10",
        ),
        (
            "[defaults]\npools = [{ base = \"10.0.0.0/16\", size = 8 }]",
            "v.toml:2: defaults.pools: pool 10.0.0.0/16: holds no subnet of size 8",
        ),
        (
            "[defaults]\npools = [{ base = \"fd00:20::/32\", size = 47 }]",
            "v.toml:2: defaults.pools: pool fd00:20::/32: holds no subnet of size 47; give a size \
             from 48 to 126",
        ),
        (
            "[defaults]\npools = [{ base = \"10.0.0.1/16\", size = 24 }]",
            "host bits set; write 10.0.0.0/16",
        ),
        ("[daemon]\nworkers = 65", "v.toml:2: daemon.workers: 65 is not a number from 1 to 64"),
        ("[daemon]\nrun_dir = \"x\"", "v.toml:2: daemon.run_dir: \"x\" is not an absolute path"),
        ("[daemon]\nmetrics = \"x\"", "v.toml:2: daemon.metrics: "),
        (
            "[cluster]\nstore = \"etcd\"",
            "v.toml:1: [cluster] needs overlay networks, which are not built yet",
        ),
        ("[daemon\n", "v.toml:1: "),
        ("[daemon]\nworkers = 1\nworkers = 2", "v.toml:3: "),
    ];
    for (text, start) in table {
        let error = parse(text).unwrap_err();
        assert!(error.message.contains(start), "{text:?}\n got {}\nwant {start}", error.message);
        assert!(error.message.starts_with("v.toml:"), "{}", error.message);
        assert!(!error.message.contains('\n'), "{}", error.message);
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn keys_of_parts_not_built_yet_are_noted() {
    let config = parse("[defaults]\ndns = true\n").unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].starts_with("defaults.dns: not built yet"));
}

#[test]
fn the_timers_of_sctp_are_set() {
    assert_eq!(parse("[timeouts]\nrestart_grace = 0\n").unwrap().grace, Duration::ZERO);
    let config = parse("[timeouts]\nsctp_established = 7\nsctp_other = 8\n").unwrap();
    let timers = (config.timeouts.sctp_established, config.timeouts.sctp_other);
    assert_eq!(timers, (Duration::from_secs(7), Duration::from_secs(8)));
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn sections_that_wait_for_a_restart_are_named() {
    let running = parse("[daemon]\nworkers = 2\n[limits]\nfdb = 2048\n").unwrap();
    let unlike = |text: &str| parse(text).unwrap().sections_unlike(&running);
    assert_eq!(unlike("[daemon]\nworkers = 2\n[limits]\nfdb = 2048\n"), Vec::<&str>::new());
    let networks = "[daemon]\nworkers = 2\n[limits]\nfdb = 2048\n[[network]]\nname = \"a\"\n";
    assert_eq!(unlike(networks), Vec::<&str>::new());
    assert_eq!(
        unlike("[limits]\nfdb = 2048\n[timeouts]\nfdb_ageing = 9\n"),
        ["daemon", "timeouts"]
    );
    assert_eq!(
        unlike("[daemon]\nworkers = 2\n[defaults]\nmtu = 1400\n[[uplink]]\ninterface = \"e\"\n"),
        ["defaults", "limits", "uplink"]
    );
}

#[test]
fn unreadable_files_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let error = Config::load(dir.path()).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{}", error.message);
    assert!(error.message.ends_with(": is a directory; name the file in it"), "{}", error.message);
    let error = Config::load(&dir.path().join("b.toml/c.toml"));
    assert_eq!(error.unwrap().warnings, Vec::<String>::new(), "nothing there: the defaults");
    let binary = dir.path().join("b.toml");
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    let error = Config::load(&binary).unwrap_err();
    assert!(error.message.ends_with("b.toml: not UTF-8 text"), "{}", error.message);
    let error = Config::load(&binary.join("c.toml")).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{}", error.message);
    assert!(error.message.contains("b.toml/c.toml: Not a directory"), "{}", error.message);
}

#[test]
fn pools_of_one_family_leave_the_others_as_they_are() {
    let pools = |text: &str| parse(&format!("[defaults]\npools = [{text}]")).unwrap().defaults;
    let six = pools("{ base = \"fd00:20::/32\", size = 64 }");
    assert_eq!(six.pools, Defaults::default().pools);
    assert_eq!((six.pools6[0].base.to_string(), six.pools6[0].size), ("fd00:20::/32".into(), 64));
    let both =
        pools("{ base = \"fd00:20::/32\", size = 64 }, { base = \"10.0.0.0/8\", size = 24 }");
    assert_eq!(both.pools[0].base.to_string(), "10.0.0.0/8");
    assert_eq!(both.pools6, six.pools6);
}

proptest! {
    #[test]
    fn any_text_is_read_or_told_in_one_line(text in "[\\[\\]a-z=\"0-9\\. {}\n]{0,80}") {
        if let Err(error) = parse(&text) {
            prop_assert!(!error.message.contains('\n'));
        }
    }
}

#[test]
fn every_key_is_documented() {
    let docs = include_str!("../../../docs/configuration.md");
    let mut count = 0;
    for section in ["[daemon]", "[defaults]", "[timeouts]", "[limits]", "[[uplink]]", "[[network]]"]
    {
        // The error that a wrong key causes lists the right ones.
        let message = parse(&format!("{section}\nno_such_key = 1")).unwrap_err().message;
        let (_, keys) = message.split_once("known keys are ").unwrap();
        let documented = docs.split(&format!("## `{section}`")).nth(1).unwrap();
        let documented = documented.split("\n## ").next().unwrap();
        for key in keys.split(", ") {
            assert!(documented.contains(&format!("| `{key}`")), "{section} {key}");
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}
