//! Looking inside a running daemon, in both families: what would become of a packet, and how full everything is.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::host::family::ANY;
use tests::host::namespace::Process;
use tests::host::traffic::{TcpClient, TcpServer, assert_ping};
use tests::host::{APP, BOTH, Host, Uplink, WIRE, eventually, one, rows};

/// The facts of a stage, as `NAME VALUE` lines.
fn facts(trace: &Value, stage: &str) -> String {
    let steps = rows(&trace["steps"]);
    let step = steps.iter().find(|step| step["stage"] == stage);
    let facts = rows(&step.unwrap_or_else(|| panic!("no {stage}: {trace}"))["facts"]);
    let line = |fact: &Value| {
        format!("{} {}\n", fact["name"].as_str().unwrap(), fact["value"].as_str().unwrap())
    };
    facts.iter().map(line).collect()
}

#[test]
#[ignore = "needs root"]
fn a_trace_says_what_then_happens_and_does_nothing() {
    let host = Host::start_dual(Uplink::Shared);
    let a = host.sandbox("a", "--network app -p 8080:7000");
    let b = host.sandbox("b", "--network app");
    let trace = |words: &str| {
        let mut arguments = vec!["trace", "--sandbox", &a.name, "--json", "--"];
        arguments.extend(words.split(' '));
        let text = host.ok(arguments);
        serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    // The router is asked for once, so that it is known.
    for family in BOTH {
        assert_ping(&a.ns, family.outside(), 63);
    }
    host.ok(["conntrack", "flush"]);
    let quiet = || {
        let drops = host.json(["drops"]);
        let sums = rows(&host.json(["stats"]))
            .iter()
            .map(|port| port["tx_frames"].clone())
            .collect::<Vec<_>>();
        (rows(&host.json(["conntrack", "list"])).len(), drops, sums)
    };
    let at = |address: IpAddr, port: u16| SocketAddr::from((address, port));
    for family in BOTH {
        let (own, near, far) = (family.of(&a), family.of(&b), family.outside());
        let all = || {
            let out = trace(&format!("tcp {} > {} syn", at(own, 40_000), at(far, 7000)));
            assert_eq!(out["verdict"], "forward", "{out}");
            assert_eq!(out["port"], format!("{}/eth0", a.name).as_str());
            assert_eq!(out["sent"][0]["port"], WIRE);
            assert!(facts(&out, "admit").contains("network app"), "{out}");
            assert!(facts(&out, "translate").contains("nat snat"), "{out}");
            let next = trace(&format!("udp {} {} len 100", at(own, 1), at(near, 2)));
            assert_eq!(next["sent"][0]["port"], format!("{}/eth0", b.name).as_str(), "{next}");
            let another: IpAddr = family.pick(["10.91.1.200", "fd00:91::200"]).parse().unwrap();
            let spoofed = trace(&format!("udp {} > {}", at(another, 1), at(family.gateway(), 2)));
            let reason = family.pick(["spoofed_ipv4", "spoofed_ipv6"]);
            assert_eq!(
                (&spoofed["verdict"], &spoofed["drop_reason"]),
                (&"drop".into(), &reason.into())
            );
            let echo = trace(&format!("icmp echo {own} > {}", family.gateway()));
            assert_eq!(echo["verdict"], "answer", "{echo}");
            let expired = trace(&format!("udp {} > {} ttl 1", at(own, 1), at(far, 2)));
            assert_eq!(expired["drop_reason"], "ttl_exceeded");
            let asked = trace(&format!("tcp {} > {}", at(own, 40_000), at(family.host(), 8080)));
            assert!(facts(&asked, "dnat").contains(&format!("of {}", a.name)), "{asked}");
            // From outside, for people.
            let line = format!("tcp {} > {}", at(far, 5000), at(family.host(), 8080));
            let text = host.ok(["trace", "--uplink", WIRE, &line]);
            assert!(text.contains("verdict: forward") && text.contains("dnat"), "{text}");
        };
        // What the kernels ask of their neighbors now and then is nothing that comes of it.
        let nothing_came_of_it = (0..5).any(|_| {
            let before = quiet();
            all();
            quiet() == before
        });
        assert!(nothing_came_of_it, "{family}");
    }
    // It says what then happens.
    let _server = TcpServer::start(&a.ns, (ANY, 7000));
    for family in BOTH {
        let _client = TcpClient::connect(&host.outside, (family.host(), 8080));
    }

    host.refused(
        2,
        &["packet", "ttl"],
        ["trace", "--sandbox", &a.name, "udp 1.2.3.4:1 1.2.3.5:2 ttl x"],
    );
    host.refused(3, &["nosuch"], ["trace", "--sandbox", "nosuch", "udp 1.2.3.4:1 1.2.3.5:2"]);
    host.refused(
        4,
        &["nobody", "10.91.1.77", "to MAC"],
        ["trace", "--sandbox", &a.name, &format!("udp {}:1 10.91.1.77:2", a.ip)],
    );
}

#[test]
#[ignore = "needs root"]
fn captured_frames_are_traced_one_after_the_other() {
    let host = Host::start_dual(Uplink::Shared);
    let a = host.sandbox("a", "--network app");
    for family in BOTH {
        // Neighbors are asked for in ICMPv6 too, in shorter frames.
        let filter = family.pick(["icmp", "icmp6 and greater 100 and not multicast"]);
        let file = host.path(&format!("{family}.pcapng"));
        let path = file.to_str().unwrap().to_owned();
        let mut command =
            host.ctl_command(["capture", "--sandbox", &a.name, "-w", &path, "-c", "2", filter]);
        let mut capture = Process::start(&mut command);
        std::thread::sleep(Duration::from_millis(500));
        assert_ping(&a.ns, family.outside(), 63);
        assert!(capture.wait(Duration::from_secs(5)).success());
        host.ok(["conntrack", "flush"]);
        let traces = rows(&host.json(["trace", "--sandbox", &a.name, "--pcap", &path]));
        assert_eq!(traces.len(), 2);
        assert_eq!(traces[0]["verdict"], "forward", "{:?}", traces[0]);
        let first = rows(&host.json(["trace", "--sandbox", &a.name, "--pcap", &path, "-c", "1"]));
        assert_eq!(first, traces[..1]);
        assert_eq!(rows(&host.json(["conntrack", "list"])).len(), 0);
    }
}

/// Rows: RFC 6888 REQ-10.
#[test]
#[ignore = "needs root"]
fn status_shows_every_limit() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    host.configure(
        "[limits]\nconntrack = 2048\nwaiting_frames = 7\nneighbors_per_network = 9\n\
         fragments = 100\nfragments_per_datagram = 70\nfragment_bytes = 2097152\ntraces = 3\n\
         event_readers = 5\nhost_connections = 7\nhost_datagram_clients = 6\npolicy_rules = 9\n\
         neighbors_per_uplink = 90\nneighbors_unanswered = 91\nwaiting_frames_per_neighbor = 6\n\
         expectations = 92\nhelped_controls = 93\ncapture_frames = 94\nconntrack_events = 95\n\
         nat_log_bytes = 100000\nevents = 96\ntap_queue = 97\nserved_ports = 3\nheld_ports = 10\n",
    );
    host.launch();
    host.network("app", APP);
    let a = host.sandbox("a", "--network app");
    for family in BOTH {
        assert_ping(&a.ns, family.outside(), 63);
    }
    let status = one(&host.json(["status"]));
    let limits = rows(&status["limits"]);
    let of = |name: &str| {
        let found = limits.iter().find(|limit| limit["name"] == name);
        found.unwrap_or_else(|| panic!("{name}: {status}")).clone()
    };
    assert_eq!((&of("conntrack")["limit"], &of("conntrack")["peak"]), (&2048.into(), &2.into()));
    assert_eq!(of("conntrack")["drop_reason"], "conntrack_full");
    assert_eq!(of("waiting_frames")["limit"], 7);
    assert_eq!(of("neighbors_per_network")["limit"], 9);
    assert_eq!(of("neighbors_per_uplink")["peak"], 2);
    for (name, limit) in [
        ("fragment_pieces", 2 * 100 * 70),
        ("fragment_bytes", 2 << 20),
        ("fragment_bytes_per_port", 1 << 19),
        ("traces", 3),
        ("event_readers", 5),
        ("host_connections", 7),
        ("host_datagram_clients", 6),
        ("policy_rules", 9),
        ("neighbors_per_uplink", 90),
        ("neighbors_unanswered", 91),
        ("waiting_frames_per_neighbor", 6),
        ("expectations", 92),
        ("helped_controls", 93),
        ("capture_frames", 94),
        ("conntrack_events", 95),
        ("nat_log_bytes", 100_000),
        // As many places as a queue of it has.
        ("events", 128),
        ("served_ports", 3),
        ("held_ports", 10),
        ("departed_datagrams", 112),
        ("uplink_addresses", 16),
        ("storm_frames", 10_000),
    ] {
        assert_eq!(of(name)["limit"], limit, "{name}");
    }
    assert_eq!(of("policy_rules")["refusal"], "conflict");
    for limit in &limits {
        let reasons = [&limit["drop_reason"], &limit["refusal"]];
        assert!(reasons.iter().filter(|it| !it.is_null()).count() <= 1, "{limit}");
        let number = |name: &str| limit[name].as_u64().unwrap();
        assert!(
            number("current") <= number("peak") && number("peak") <= number("limit"),
            "{limit}"
        );
    }
    assert_eq!(of("uplink_addresses")["current"], 1, "of each family");
    // A TAP's queue; a veth device has none of ours.
    if tests::link() != Some("veth") {
        let device = a.ns.ip("link show dev eth0");
        assert!(device.contains("qlen 97"), "{device}");
    }
    // Two ports are served, five are held, six more are too many to hold.
    for (ports, served, held, refused) in
        [("5001-5002", 2, 0, 0), ("5101-5105", 2, 5, 0), ("5201-5206", 2, 5, 1)]
    {
        host.ok(["port", "publish", &a.name, &format!("127.0.0.1:{ports}:{ports}")]);
        let status = one(&host.json(["status"]));
        let limits = rows(&status["limits"]);
        let of = |name: &str| limits.iter().find(|limit| limit["name"] == name).unwrap().clone();
        assert_eq!(of("served_ports")["current"], served, "{ports}");
        assert_eq!(
            (&of("held_ports")["current"], &of("held_ports")["peak"]),
            (&held.into(), &held.into())
        );
        assert_eq!(of("held_ports")["refused"], refused, "{ports}");
        assert_eq!(of("held_ports")["refusal"], "not_held");
    }
    let text = host.ok(["status"]);
    assert!(text.contains("conntrack_full") && text.contains("waiting_frames"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn events_tell_what_becomes_of_connections() {
    let host = Host::start_dual(Uplink::Shared);
    let path = host.path("events");
    let log = fs::File::create(&path).unwrap();
    let mut command = host.ctl_command(["conntrack", "events", "--json", "--proto", "tcp"]);
    let mut events = Process::start(command.stdout(Stdio::from(log)));
    std::thread::sleep(Duration::from_millis(500));
    let all = || {
        let text = fs::read_to_string(&path).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let _server = TcpServer::start(&host.outside, (ANY, 7000));
    let limit = Duration::from_secs(5);
    for family in BOTH {
        let a = host.sandbox("a", "--network app");
        let far = family.outside();
        let told = || {
            let mut told = all();
            told.retain(|line| line["orig"]["dst"] == far.to_string());
            told
        };
        let mut client = TcpClient::connect(&a.ns, (far, 7000));
        client.echo("hello");
        assert_ping(&a.ns, far, 63);
        let has = |event: &str, state: &str| {
            told().iter().any(|line| line["event"] == event && line["state"] == state)
        };
        eventually(limit, "it began", || has("new", "SYN_SENT"));
        eventually(limit, "it is established", || has("update", "ESTABLISHED"));
        host.ok(["conntrack", "flush"]);
        eventually(limit, "it ended", || has("destroy", "ESTABLISHED"));
        let own = told();
        let first = own.iter().find(|line| line["event"] == "new").unwrap();
        assert_eq!(first["network"], "app");
        let end = own.iter().find(|line| line["event"] == "destroy").unwrap();
        assert_eq!((&end["reason"], &end["nat"]), (&"flushed".into(), &"snat".into()));
        assert!(end["packets"][0].as_u64().unwrap() >= 3 && end["time_ms"].as_u64().unwrap() > 0);
        // Who is gone is told too.
        let _client = TcpClient::connect(&a.ns, (far, 7000));
        host.ok(["sandbox", "rm", &a.name]);
        eventually(limit, "its sandbox went", || {
            told().iter().any(|line| line["reason"] == "endpoint_gone")
        });
    }
    assert!(all().iter().all(|line| line["proto"] == "tcp"), "{:#?}", all());
    events.signal(Signal::SIGTERM);
    events.wait(limit);
    host.refused(3, &["nope"], ["conntrack", "events", "--network", "nope"]);
}

/// Who reads of a connection's end reads it a moment later.
#[test]
#[ignore = "needs root"]
fn what_ends_with_its_network_is_told_with_its_name() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    let (log, events) = (host.path("nat.log"), host.path("events"));
    host.configure(&format!("[daemon]\nnat_log = {log:?}\n"));
    host.launch();
    let to = Stdio::from(fs::File::create(&events).unwrap());
    let mut reader = host.ctl_command(["conntrack", "events", "--json", "--proto", "tcp"]);
    let mut reader = Process::start(reader.stdout(to));
    std::thread::sleep(Duration::from_millis(500));
    let _server = TcpServer::start(&host.outside, (ANY, 7000));
    let names: Vec<String> = (0..5).map(|number| format!("gone{number}")).collect();
    for name in &names {
        host.network(name, APP);
        let a = host.sandbox("a", &format!("--network {name}"));
        let _clients = BOTH.map(|family| TcpClient::connect(&a.ns, (family.outside(), 7000)));
        host.ok(["sandbox", "rm", &a.name]);
        host.ok(["network", "rm", name]);
    }
    let text = |path: &std::path::Path| fs::read_to_string(path).unwrap_or_default();
    let limit = Duration::from_secs(5);
    for name in &names {
        let released = format!("release network={name} ");
        eventually(limit, "the log says whose they were", || {
            text(&log).lines().filter(|line| line.contains(&released)).count() == 2
        });
        eventually(limit, "the events say whose they were", || {
            let text = text(&events);
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let ends = |line: &Value| line["event"] == "destroy" && line["network"] == **name;
            lines.filter(ends).count() == 2
        });
    }
    assert!(!text(&log).contains("network=-"), "{}", text(&log));
    reader.signal(Signal::SIGTERM);
    reader.wait(limit);
}

#[test]
#[ignore = "needs root"]
fn readers_of_events_are_limited() {
    let host = Host::start_dual(Uplink::Shared);
    let read = || Process::start(host.ctl_command(["conntrack", "events"]).stdout(Stdio::null()));
    let mut readers: Vec<_> = (0..8).map(|_| read()).collect();
    std::thread::sleep(Duration::from_secs(1));
    host.refused(4, &["8 read them already"], ["conntrack", "events"]);
    for reader in &mut readers {
        reader.signal(Signal::SIGTERM);
        reader.wait(Duration::from_secs(5));
    }
}

/// Rows: VPP `test_syslog_sess, test_syslog_sess_reopen`.
#[test]
#[ignore = "needs root"]
fn mappings_are_logged_without_destinations() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    let log = host.path("nat.log");
    host.configure(&format!("[daemon]\nnat_log = {log:?}\n"));
    host.launch();
    host.network("app", APP);
    let a = host.sandbox("a", "--network app");
    let _servers = [7000, 7001].map(|port| TcpServer::start(&host.outside, (ANY, port)));
    let clients = BOTH.map(|family| TcpClient::connect(&a.ns, (family.outside(), 7000)));
    let text = || fs::read_to_string(&log).unwrap_or_default();
    let lines = |what: &str, client: &TcpClient| {
        let (text, inside) = (text(), format!("inside={}", client.local()));
        text.lines().filter(|line| line.contains(what) && line.contains(&inside)).count()
    };
    let limit = Duration::from_secs(5);
    for (family, client) in BOTH.into_iter().zip(&clients) {
        eventually(limit, "it is allocated", || {
            lines("allocate network=app proto=tcp", client) == 1
        });
        assert!(!text().contains(&family.outside().to_string()), "{}", text());
        let outside = format!("outside={}", SocketAddr::from((family.host(), 1)));
        assert!(text().contains(outside.trim_end_matches('1')), "{}", text());
    }
    // Rotated meanwhile.
    fs::rename(&log, host.path("nat.log.1")).unwrap();
    host.ok(["conntrack", "flush"]);
    for client in &clients {
        eventually(limit, "it is released", || lines("release network=app proto=tcp", client) == 1);
        assert_eq!(lines("allocate", client), 0, "in the new file");
    }
    // A file that cannot be written stops nothing.
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    let mut others = BOTH.map(|family| TcpClient::connect(&a.ns, (family.outside(), 7001)));
    others.iter_mut().for_each(|other| other.echo("all the same"));
    eventually(limit, "status warns", || {
        let warnings = rows(&one(&host.json(["status"]))["warnings"]);
        warnings.iter().any(|line| line.as_str().unwrap().contains("nat_log"))
    });
    fs::remove_dir(&log).unwrap();
    host.ok(["conntrack", "flush"]);
    for other in &others {
        eventually(limit, "it is written again", || {
            lines("allocate network=app proto=tcp", other) == 1 && lines("release", other) == 1
        });
    }
}
