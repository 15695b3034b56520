//! Every verb: what it asks, what it prints, how it ends.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::fake::{Answer, Asked, Ended, Fake, client};

fn network(name: &str) -> Value {
    json!({
        "name": name, "id": "0123456789abcdef", "driver": "bridge", "internal": false, "ipv6": false,
        "subnets": [{"subnet": "10.1.0.0/24", "gateway": "10.1.0.1", "ip_range": null, "aux_addresses": {}}],
        "options": {"mtu": "1400"}, "labels": {},
        "endpoints": [{"sandbox": "sb", "ifname": "eth0", "mac": "02:42:0a:01:00:02",
            "ipv4": "10.1.0.2", "ipv6": null, "port": "sb/eth0", "options": {}}],
    })
}

pub(crate) fn sandbox(name: &str, netns: &str) -> Value {
    json!({
        "name": name, "mode": "network", "netns": netns, "adopted": false,
        "endpoints": [{"network": "app", "ifname": "eth0", "mac": "02:42:0a:01:00:02",
            "ipv4": "10.1.0.2", "ipv6": null, "gateway": "10.1.0.1", "gateway6": null, "aliases": [],
            "link": "tap", "options": {}, "port": "sb/eth0"}],
        "ports": [mapping()],
    })
}

fn mapping() -> Value {
    json!({"sandbox": "sb", "proto": "tcp", "host_ip": "0.0.0.0", "host_port": 8080,
        "host_port_end": 8081, "port": 80, "port_end": 81})
}

fn uplink() -> Value {
    json!({"interface": "eth0", "mode": "shared", "mac": "02:00:00:00:00:01",
        "addresses": ["192.0.2.2/24"], "gateway": "192.0.2.1", "gateway6": null,
        "nat_ports": ["20000-29999"],
        "up": true, "automatic": true})
}

fn route() -> Value {
    json!({"destination": "10.9.0.0/16", "via": "192.0.2.1", "uplink": "eth0", "network": null, "kind": "static"})
}

fn fdb() -> Value {
    json!({"network": "app", "mac": "02:42:0a:01:00:02", "vlan": 0, "port": "sb/eth0",
        "sandbox": "sb", "kind": "learned", "age_s": 3})
}

fn connection() -> Value {
    let tuple = |src: &str, dst: &str| json!({"src": src, "dst": dst, "sport": 40000, "dport": 80});
    json!({"proto": "tcp", "state": "ESTABLISHED", "orig": tuple("10.1.0.2", "198.51.100.7"),
        "reply": tuple("198.51.100.7", "192.0.2.2"), "nat": "snat", "timeout_s": 431999,
        "packets": [5, 4], "bytes": [500, 400], "network": "app"})
}

fn asked(method: &str, path: &str, body: Value) -> Asked {
    Asked { method: method.to_owned(), path: path.to_owned(), body }
}

struct Case {
    line: &'static str,
    asks: (&'static str, &'static str, Value),
    answer: (u16, Value),
    /// A part of the table.
    shows: &'static str,
    /// What JSON output is, where it is not the answer itself.
    json: Option<Value>,
}

fn case(
    line: &'static str,
    method: &'static str,
    path: &'static str,
    body: Value,
    status: u16,
    answer: Value,
    shows: &'static str,
) -> Case {
    Case { line, asks: (method, path, body), answer: (status, answer), shows, json: None }
}

fn get(line: &'static str, path: &'static str, answer: Value, shows: &'static str) -> Case {
    case(line, "GET", path, Value::Null, 200, answer, shows)
}

impl Case {
    fn json(mut self, json: Value) -> Self {
        self.json = Some(json);
        self
    }
}

fn cases() -> Vec<Case> {
    let status = json!({"version": "1.2.3", "pid": 7, "uptime_s": 60, "io": "io_uring",
        "workers": [{"id": 0, "rx_frames": 10, "tx_frames": 8, "drops": 2, "replicated": 0, "merged": 0,
            "generated": 0, "consumed": 0, "queued": 0}],
        "networks": 3, "endpoints": 1, "conntrack": {"entries": 4, "limit": 262_144, "grace_s": 12},
        "fdb": {"entries": 5, "limit": 65_536, "moves": 6, "evictions": 7, "refused": 8},
        "limits": [{"name": "conntrack", "current": 4, "peak": 9, "limit": 262_144,
            "drop_reason": "conntrack_full", "refusal": null, "refused": null},
            {"name": "fdb", "current": 5, "peak": 6, "limit": 65_536, "drop_reason": null,
            "refusal": "busy", "refused": 3}],
        "warnings": ["no uplink"]});
    let none = Value::Null;
    let filter = json!({"proto": "tcp", "src": "10.0.0.0/8", "dport": 80});
    let create = json!({"name": "app", "driver": "bridge",
        "subnets": [{"subnet": "10.1.0.0/24", "gateway": "10.1.0.9", "ip_range": "10.1.0.128/25",
            "aux_addresses": {"nas": "10.1.0.7"}}],
        "internal": true, "ipv6": false, "options": {"mtu": "1400"}, "labels": {"a": "b"}});
    let create_sandbox = json!({"name": "sb", "networks": ["app"], "ip": "10.1.0.2", "ip6": null,
        "mac": null, "aliases": ["www"], "options": {}, "publish": ["127.0.0.1:8080:80/tcp", "53/udp"],
        "netns": null});
    let add_uplink = json!({"interface": "eth1", "mode": "dedicated", "addresses": ["192.0.2.9/24"],
        "gateway": "192.0.2.1", "gateway6": null, "nat_ports": null});
    let connect = json!({"sandbox": "sb", "ip": "10.1.0.2", "ip6": null,
        "mac": "02:00:00:00:00:09", "aliases": [], "options": {"trusted": "true"}});
    let endpoint = network("app")["endpoints"][0].clone();
    let fdb_add = json!({"network": "app", "mac": "02:00:00:00:00:09", "sandbox": "sb", "port": null, "vlan": 5});
    let fdb_del = json!({"network": "app", "mac": "02:00:00:00:00:09", "vlan": 0});
    let stats = json!({"port": "sb/eth0", "sandbox": "sb", "network": "app", "rx_frames": 1, "rx_bytes": 2,
        "tx_frames": 3, "tx_bytes": 4, "rx_drops": 5, "tx_drops": 6, "rx_missed": 7, "refused": 8});
    let conntrack_stats = json!({"entries": 1, "limit": 2, "inserted": 3, "expired": 4, "flushed": 5,
        "full": 6, "clashes": 7, "ports_exhausted": 8, "picked_up": 17, "evicted": 9,
        "helpers": {"expected": 10, "used": 11, "foreign": 12, "full": 13, "no_port": 14,
            "privileged": 15, "too_long": 16}});
    let rule = json!({"kind": "masquerade", "network": "app", "match": "10.1.0.0/24", "to": "eth0",
        "packets": 1, "bytes": 60});
    let drop =
        json!({"reason": "no_route", "count": 3, "description": "No route to the destination."});
    let neighbor =
        json!({"address": "192.0.2.1", "mac": null, "network": null, "uplink": "eth0", "age_s": 0});
    let trace = json!({"frame": "IP 10.1.0.2.1 > 10.1.0.3.2: UDP, length 0", "port": "sb/eth0",
        "steps": [{"stage": "switch", "facts": [{"name": "fdb", "value": "hit"}]}],
        "verdict": "drop", "drop_reason": "icc_disabled", "waits_for": null,
        "sent": [{"port": "eth9", "from": "02:00:00:00:00:01", "to": "02:00:00:00:00:02",
            "length": 60, "summary": "ARP"}],
        "drops": [drop.clone()]});
    let asks_trace = json!({"sandbox": "sb", "network": null, "uplink": null,
        "packet": "udp 10.1.0.2:1 > 10.1.0.3:2 ttl 9", "frames": []});
    let purged =
        json!({"sandboxes": ["a"], "networks": [], "uplinks": [], "devices": ["vsw-1", "vsw-2"]});
    vec![
        get("status", "/v1/status", status.clone(), "warning: no uplink"),
        get("status", "/v1/status", status, "those of sandboxes are picked up for 12 s more"),
        get(
            "network ls",
            "/v1/networks",
            json!([network("app")]),
            "0123456789ab   app    bridge   10.1.0.0/24",
        ),
        get("network inspect app", "/v1/networks/app", network("app"), "  - sandbox: sb"),
        case(
            "network create app --subnet 10.1.0.0/24 --gateway 10.1.0.9 --ip-range 10.1.0.128/25 \
             --aux-address nas=10.1.0.7 --internal -o mtu=1400 --label a=b",
            "POST",
            "/v1/networks",
            create,
            201,
            network("app"),
            "app\n",
        ),
        case(
            "network rm app",
            "DELETE",
            "/v1/networks/app",
            none.clone(),
            204,
            none.clone(),
            "app\n",
        )
        .json(json!([{"name": "app"}])),
        case(
            "network prune",
            "POST",
            "/v1/networks/prune",
            none.clone(),
            200,
            json!({"networks": ["x", "y"]}),
            "x\ny\n",
        )
        .json(json!([{"name": "x"}, {"name": "y"}])),
        case(
            "trace --sandbox sb udp 10.1.0.2:1 > 10.1.0.3:2 ttl 9",
            "POST",
            "/v1/trace",
            asks_trace,
            200,
            json!([trace]),
            "  switch     fdb hit\n  sent       eth9: 02:00:00:00:00:01 > 02:00:00:00:00:02, ARP\n  \
             dropped    3 no_route\nverdict: drop: icc_disabled\n",
        )
        .json(trace),
        case(
            "network connect app sb --ip 10.1.0.2 --mac 02:00:00:00:00:09 -o trusted=true",
            "POST",
            "/v1/networks/app/connect",
            connect,
            200,
            endpoint,
            "",
        ),
        case(
            "network disconnect app sb",
            "POST",
            "/v1/networks/app/disconnect",
            json!({"sandbox": "sb"}),
            204,
            none.clone(),
            "",
        )
        .json(json!({"network": "app", "sandbox": "sb"})),
        get(
            "sandbox ls",
            "/v1/sandboxes",
            json!([sandbox("sb", "/run/netns/sb")]),
            "0.0.0.0:8080-8081->80-81/tcp",
        ),
        get(
            "sandbox inspect sb",
            "/v1/sandboxes/sb",
            sandbox("sb", "/run/netns/sb"),
            "netns: /run/netns/sb",
        ),
        case(
            "sandbox create sb --network app --ip 10.1.0.2 --alias www -p 127.0.0.1:8080:80 -p 53/udp",
            "POST",
            "/v1/sandboxes",
            create_sandbox,
            201,
            sandbox("sb", "/run/netns/sb"),
            "sb\n",
        ),
        case(
            "sandbox rm sb",
            "DELETE",
            "/v1/sandboxes/sb",
            none.clone(),
            204,
            none.clone(),
            "sb\n",
        )
        .json(json!([{"name": "sb"}])),
        get("port ls", "/v1/ports", json!([mapping()]), "sb        0.0.0.0:8080-8081   80-81/tcp"),
        case(
            "port publish sb 8080-8081:80-81",
            "POST",
            "/v1/sandboxes/sb/ports",
            json!({"publish": ["8080-8081:80-81/tcp"]}),
            200,
            json!([mapping()]),
            "80-81/tcp",
        ),
        case(
            "port unpublish sb 80-81",
            "POST",
            "/v1/sandboxes/sb/ports/unpublish",
            json!({"publish": ["80-81/tcp"]}),
            200,
            json!([mapping()]),
            "80-81/tcp",
        ),
        get("uplink ls", "/v1/uplinks", json!([uplink()]), "20000-29999"),
        case(
            "uplink add eth1 --mode dedicated --address 192.0.2.9/24 --gateway 192.0.2.1",
            "POST",
            "/v1/uplinks",
            add_uplink,
            201,
            uplink(),
            "eth0\n",
        ),
        case(
            "uplink rm a%b",
            "DELETE",
            "/v1/uplinks/a%25b",
            none.clone(),
            204,
            none.clone(),
            "a%b\n",
        )
        .json(json!([{"name": "a%b"}])),
        get(
            "route ls",
            "/v1/routes",
            json!([route()]),
            "10.9.0.0/16   192.0.2.1   eth0     -         static",
        ),
        case(
            "route add 10.9.0.0/16 via 192.0.2.1",
            "POST",
            "/v1/routes",
            json!({"destination": "10.9.0.0/16", "via": "192.0.2.1", "uplink": null}),
            201,
            route(),
            "",
        ),
        case(
            "route rm default",
            "POST",
            "/v1/routes/remove",
            json!({"destination": "0.0.0.0/0"}),
            204,
            none.clone(),
            "",
        )
        .json(json!({"destination": "0.0.0.0/0"})),
        get("neigh show", "/v1/neighbors", json!([neighbor]), "192.0.2.1   -     -         eth0"),
        get(
            "mdb show --network app",
            "/v1/mdb?network=app",
            json!([{"network": "app", "vlan": 0, "group": "239.1.2.3", "port": "sb/eth0",
                "sandbox": "sb", "kind": "member", "expires_s": 250}]),
            "239.1.2.3",
        ),
        get("fdb show --network app", "/v1/fdb?network=app", json!([fdb()]), "learned"),
        case(
            "fdb add 02:00:00:00:00:09 --network app --sandbox sb --vlan 5",
            "POST",
            "/v1/fdb",
            fdb_add,
            201,
            fdb(),
            "",
        ),
        case(
            "fdb del 02-00-00-00-00-09 --network app",
            "POST",
            "/v1/fdb/remove",
            fdb_del.clone(),
            204,
            none.clone(),
            "",
        )
        .json(fdb_del),
        case(
            "fdb flush",
            "POST",
            "/v1/fdb/flush",
            json!({"network": null}),
            200,
            json!({"removed": 4}),
            "removed 4 entries\n",
        ),
        get(
            "conntrack list --proto TCP --src 10.0.0.0/8 --dport 80",
            "/v1/conntrack?proto=tcp&src=10.0.0.0%2F8&dport=80",
            json!([connection()]),
            "10.1.0.2:40000 > 198.51.100.7:80   198.51.100.7:40000 > 192.0.2.2:80   snat   431999s   5/4       500/400",
        ),
        case(
            "conntrack flush --proto tcp --src 10.0.0.0/8 --dport 80",
            "POST",
            "/v1/conntrack/flush",
            filter,
            200,
            json!({"removed": 2}),
            "removed 2 connections\n",
        ),
        get("conntrack stats", "/v1/conntrack/stats", conntrack_stats, "ports_exhausted: 8"),
        get(
            "nat rules",
            "/v1/nat/rules",
            json!([rule]),
            "masquerade   app       10.1.0.0/24   eth0",
        ),
        get(
            "drops --network app --sandbox sb",
            "/v1/drops?network=app&sandbox=sb",
            json!([drop]),
            "no_route   3",
        ),
        get("stats --sandbox sb", "/v1/stats?sandbox=sb", json!([stats]), "sb/eth0"),
        case(
            "purge --yes",
            "POST",
            "/v1/purge",
            none.clone(),
            200,
            purged,
            "removed 1 sandboxes, 0 networks, 0 uplinks, 2 devices",
        ),
    ]
}

/// Rows: VPP `test_show_max_translations`.
#[test]
fn every_verb_asks_and_prints() {
    for Case { line, asks: (method, path, body), answer: (status, answer), shows, json } in cases()
    {
        let fake = Fake::new([((method, path), Answer::Json(status, answer.clone()))]);
        let arguments: Vec<_> = line.split_whitespace().collect();
        let table = fake.run(&arguments);
        assert_eq!((table.code, table.stderr.as_str()), (Some(0), ""), "{line}");
        assert_eq!(fake.asked(), [asked(method, path, body)], "{line}");
        assert!(table.stdout.contains(shows), "{line}\n{}", table.stdout);
        assert_eq!(table.stdout.is_empty(), shows.is_empty(), "{line}\n{}", table.stdout);
        assert!(!table.stdout.lines().any(|line| line.ends_with(' ')), "{line}\n{}", table.stdout);

        let arguments = [&["--format", "json"], arguments.as_slice()].concat();
        let printed = fake.run(&arguments);
        assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""), "{line}");
        assert_eq!(printed.json(), json.unwrap_or(answer), "{line}");
    }
}

#[test]
fn several_are_inspected_as_an_array() {
    let fake = Fake::new([
        (("GET", "/v1/networks/a"), Answer::Json(200, network("a"))),
        (("GET", "/v1/networks/b"), Answer::Json(200, network("b"))),
    ]);
    let ended = fake.run(&["--format", "json", "network", "inspect", "a", "b"]);
    assert_eq!(ended.json(), json!([network("a"), network("b")]));
}

#[test]
fn the_daemon_s_errors_have_their_codes() {
    for (status, kind, code) in
        [(400, "invalid", 2), (404, "not_found", 3), (409, "conflict", 4), (500, "failed", 1)]
    {
        let message = "network \"app\": is this or that";
        let body = json!({"error": {"kind": kind, "message": message}});
        let fake = Fake::new([(("GET", "/v1/networks/app"), Answer::Json(status, body))]);
        for format in ["table", "json"] {
            let ended = fake.run(&["network", "inspect", "app", "--format", format]);
            assert_eq!(ended.code, Some(code));
            assert_eq!(ended.stdout, "");
            assert_eq!(ended.stderr, format!("vswitchctl: {message}\n"));
        }
    }
}

#[test]
fn removing_goes_on_after_an_error() {
    let missing =
        json!({"error": {"kind": "not_found", "message": "sandbox \"b\": no such sandbox"}});
    let fake = Fake::new([
        (("DELETE", "/v1/sandboxes/a"), Answer::Json(204, Value::Null)),
        (("DELETE", "/v1/sandboxes/b"), Answer::Json(404, missing)),
        (("DELETE", "/v1/sandboxes/c"), Answer::Json(204, Value::Null)),
    ]);
    let ended = fake.run(&["sandbox", "rm", "a", "b", "c"]);
    assert_eq!(ended.code, Some(3));
    assert_eq!(ended.stdout, "a\nc\n");
    assert_eq!(ended.stderr, "vswitchctl: sandbox \"b\": no such sandbox\n");
}

#[test]
fn strange_answers_are_told() {
    let fake = Fake::new([
        (("GET", "/v1/status"), Answer::Text(200, "{\"version\": 1}")),
        (("GET", "/v1/ports"), Answer::Text(502, "bad\ngateway")),
    ]);
    let table = [
        (&["status"][..], "not understood"),
        (&["port", "ls"], "answered 502 Bad Gateway: bad gateway"),
        (&["uplink", "ls"], "does not know /v1/uplinks (is it older than this client?)"),
    ];
    for (arguments, message) in table {
        let ended = fake.run(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
        assert!(ended.stderr.contains(message), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
}

#[test]
fn the_socket_comes_from_flag_or_environment() {
    let fake = Fake::new([(("GET", "/v1/networks"), Answer::Json(200, json!([])))]);
    let output =
        client().env("VSWITCHD_SOCKET", fake.socket()).args(["network", "ls"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    // The flag wins, also behind the verb.
    let elsewhere = fake.dir().join("elsewhere");
    let output = client()
        .env("VSWITCHD_SOCKET", fake.socket())
        .args(["network", "ls", "--socket"])
        .arg(&elsewhere)
        .output()
        .unwrap();
    let ended = Ended::new(&output);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(5), ""));
    let expected = format!(
        "vswitchctl: daemon not reachable at {}: No such file or directory (os error 2) (is vswitchd running?)\n",
        elsewhere.display()
    );
    assert_eq!(ended.stderr, expected);
}

#[test]
fn bad_lines_end_with_2_and_one_line() {
    // No server: what syntax decides is refused before anything is sent.
    let lines = [
        ("network create a/b", "network name \"a/b\": contains '/'"),
        ("network create a --subnet 10.1.0.1/24", "write 10.1.0.0/24"),
        ("network create a --subnet 10.1.0.0/24 --gateway 10.2.0.1", "lies in none of the subnets"),
        ("network create a -o colour=red", "known options of driver bridge are"),
        ("network create a -o mtu=1 -o mtu=2", "network \"a\": option mtu is given twice"),
        ("network create a -d overlay", "driver overlay is not built yet"),
        ("network create a --ipv6 -o mtu=1000", "IPv6 needs an MTU of 1280"),
        ("uplink add e --gateway fd00::1 --gateway fd00::2", "two gateways of IPv6"),
        ("route add fd00::/48 via 192.0.2.1", "not of the same family"),
        ("sandbox create s --network host -p 80:80", "-p needs an interface"),
        ("sandbox create s -p ::1:80:80", "write it in brackets, [::1]"),
        ("run --network none --ip 10.0.0.1 true", "--ip needs an interface"),
        ("uplink add e --mode dedicated", "add --address CIDR"),
        ("capture --network a hots 10.0.0.1", "\"hots\" is not known"),
        ("trace --sandbox a tcp 10.0.0.1:1 syn", "quote the packet"),
        ("trace --sandbox a", "|PACKET>"),
        ("trace udp 10.0.0.1:1 > 10.0.0.2:2", "--sandbox"),
        ("purge", "give --yes"),
        ("network create", "<NAME>; see 'vswitchctl network create --help'"),
        ("conntrack lst", "unrecognized subcommand 'lst'"),
        ("", "requires a subcommand"),
    ];
    for (line, message) in lines {
        let output = client().args(line.split_whitespace()).output().unwrap();
        let ended = Ended::new(&output);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{line}: {ended:?}");
        assert!(ended.stderr.starts_with("vswitchctl: "), "{line}: {ended:?}");
        assert!(ended.stderr.contains(message), "{line}: {ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{line}: {ended:?}");
    }
}

#[test]
fn help_goes_to_stdout() {
    for arguments in [&["--help"][..], &["network", "create", "-h"], &["--version"]] {
        let ended = Ended::new(&client().args(arguments).output().unwrap());
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        assert!(!ended.stdout.is_empty());
    }
}

#[test]
fn a_closed_pipe_is_no_error_and_a_full_disk_is() {
    let networks: Vec<_> = (0..2000).map(|n| network(&format!("n{n}"))).collect();
    let fake = Fake::new([(("GET", "/v1/networks"), Answer::Json(200, Value::from(networks)))]);
    let mut child = fake
        .client(&["network", "ls"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = Ended::new(&child.wait_with_output().unwrap());
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));

    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = Ended::new(&fake.client(&["network", "ls"]).stdout(full).output().unwrap());
    assert_eq!(ended.code, Some(1));
    assert_eq!(
        ended.stderr,
        "vswitchctl: write to stdout: No space left on device (os error 28)\n"
    );
}
