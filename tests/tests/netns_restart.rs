//! Stop and start: sandboxes, ports and running connections of both families outlive the daemon.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::host::family::ANY;
use tests::host::namespace::Namespace;
use tests::host::traffic::{TcpClient, TcpServer, assert_ping};
use tests::host::{
    APP, BOTH, Family, GATEWAY, HOST_IP, Host, Sandbox, Uplink, eventually, one, ran, rows,
};

/// How long a connection may take to go on.
const GOES_ON: Duration = Duration::from_secs(15);

/// What the API says of everything made, and what the kernel says of a sandbox.
fn made(host: &Host, sandbox: &Sandbox) -> Vec<String> {
    let shown = [["network", "ls"], ["sandbox", "ls"], ["port", "ls"], ["uplink", "ls"]];
    let mut made: Vec<String> = shown.into_iter().map(|args| host.json(args).to_string()).collect();
    made.push(sandbox.ns.ip("-o address show"));
    made.push(sandbox.ns.ip("route show table all"));
    made
}

/// The connection from the sandbox to the outside server.
fn way_out(host: &Host, from: &Sandbox, family: Family) -> Value {
    let filter = ["conntrack", "list", "--proto", "tcp", "--dport", "7000"];
    let source = family.of(from).to_string();
    let found = rows(&host.json(filter.into_iter().chain(["--src", &source])));
    let found: Vec<_> = found.into_iter().filter(|entry| entry["nat"] == "snat").collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]["reply"].clone()
}

fn everything_goes_on(uplink: Uplink, signal: Signal) {
    let mut host = Host::prepare_dual(uplink);
    host.launch();
    if uplink == Uplink::Dedicated {
        host.dedicate("");
    }
    host.network("app", &format!("{APP} --label team=a"));
    host.network("other", "--subnet 10.91.2.0/24 --subnet fd00:91:2::/64");
    let a = host.sandbox("a", "--network app");
    let b = host
        .sandbox("b", "--network app --ip 10.91.1.50 --ip6 fd00:91::50 --mac 02:00:00:00:00:50");
    let web = host.sandbox("web", "--network other -p 8080:80 -p 9000-9009:9000-9009/udp");
    let _servers = [
        TcpServer::start(&b.ns, (ANY, 7000)),
        TcpServer::start(&web.ns, (ANY, 80)),
        TcpServer::start(&host.outside, (ANY, 7000)),
    ];
    // Within the network, out, and in by a published port.
    let connect = |family: Family| {
        [
            TcpClient::connect(&a.ns, (family.of(&b), 7000)),
            TcpClient::connect(&a.ns, (family.outside(), 7000)),
            TcpClient::connect(&host.outside, (family.host(), 8080)),
        ]
    };
    let mut connections = BOTH.map(connect);
    for connection in connections.as_flattened_mut() {
        connection.echo("before");
    }
    let before = made(&host, &a);
    let ways_out = |host: &Host| BOTH.map(|family| way_out(host, &a, family));
    let entries = ways_out(&host);
    for (entry, [_, out, _]) in entries.iter().zip(&connections) {
        assert_eq!(entry["dport"], out.seen_as.port(), "{entry}");
    }
    let pid = host.pid();

    // Delayed acknowledgments are still to come, and must not meet the host, see below.
    std::thread::sleep(Duration::from_millis(300));
    host.stop(signal);
    // Nobody answers now; the kernel sends it again later. Only after a clean stop on a shared
    // uplink would somebody answer: the host, to whom its interface belongs again.
    let waiting = if (uplink, signal) == (Uplink::Shared, Signal::SIGTERM) { 1 } else { 3 };
    for connection in connections.iter_mut().flat_map(|all| all.iter_mut().take(waiting)) {
        connection.send("meanwhile").unwrap();
    }
    host.launch();
    let from = Instant::now();
    assert_ne!(host.pid(), pid);
    for connection in connections.iter_mut().flat_map(|all| all.iter_mut().take(waiting)) {
        assert_eq!(connection.receive("meanwhile".len(), GOES_ON).unwrap(), "meanwhile");
    }
    for connection in connections.as_flattened_mut() {
        let local = connection.local();
        connection
            .try_echo("after", GOES_ON)
            .unwrap_or_else(|error| panic!("connection of {local}: {error}"));
    }
    println!("{uplink:?}, {signal}: connections went on within {:?}", from.elapsed());
    for (was, is) in before.iter().zip(made(&host, &a)) {
        assert_eq!(*was, is);
    }
    assert_eq!(ways_out(&host), entries, "the outside port changed");
    // And new ones work too.
    let c = host.sandbox("c", "--network app");
    for family in BOTH {
        assert_ping(&a.ns, family.of(&b), 64);
        assert_ping(&a.ns, family.outside(), 63);
        TcpClient::connect(&a.ns, (family.outside(), 7000)).echo("new");
        TcpClient::connect(&host.outside, (family.host(), 8080)).echo("new");
        assert_ping(&c.ns, family.of(&a), 64);
        assert!(![family.of(&a), family.of(&b)].contains(&family.of(&c)), "it is taken");
    }
}

#[test]
#[ignore = "needs root"]
fn a_clean_restart_with_a_dedicated_uplink() {
    everything_goes_on(Uplink::Dedicated, Signal::SIGTERM);
}

#[test]
#[ignore = "needs root"]
fn a_clean_restart_with_a_shared_uplink() {
    everything_goes_on(Uplink::Shared, Signal::SIGTERM);
}

#[test]
#[ignore = "needs root"]
fn a_kill_with_a_dedicated_uplink() {
    everything_goes_on(Uplink::Dedicated, Signal::SIGKILL);
}

#[test]
#[ignore = "needs root"]
fn a_kill_with_a_shared_uplink() {
    everything_goes_on(Uplink::Shared, Signal::SIGKILL);
}

/// The table is lost: what a sandbox says goes on by its own port, for a time.
#[test]
#[ignore = "needs root"]
fn without_its_table_what_sandboxes_say_goes_on() {
    let mut host = Host::start_dual(Uplink::Dedicated);
    let a = host.sandbox("a", "--network app -p 8080:80");
    let _servers =
        [TcpServer::start(&host.outside, (ANY, 7000)), TcpServer::start(&a.ns, (ANY, 80))];
    let mut connections = BOTH.map(|family| {
        let mut out = TcpClient::connect(&a.ns, (family.outside(), 7000));
        out.echo("before");
        out
    });
    let ways_out = |host: &Host| BOTH.map(|family| way_out(host, &a, family));
    let entries = ways_out(&host);
    for (entry, out) in entries.iter().zip(&connections) {
        assert_eq!(entry["dport"], out.local().port(), "kept: {entry}");
    }
    let grace = |host: &Host| host.json(["status"])["conntrack"]["grace_s"].as_u64().unwrap();
    let lose = |host: &mut Host| {
        host.stop(Signal::SIGKILL);
        for file in std::fs::read_dir(host.path("run/vswitchd")).unwrap() {
            let file = file.unwrap();
            if file.file_name().to_string_lossy().starts_with("conntrack") {
                std::fs::remove_file(file.path()).unwrap();
            }
        }
    };
    lose(&mut host);
    for out in &mut connections {
        out.send("meanwhile").unwrap();
    }
    host.launch();
    assert!((1..=300).contains(&grace(&host)));
    for out in &mut connections {
        assert_eq!(out.receive("meanwhile".len(), GOES_ON).unwrap(), "meanwhile");
        out.try_echo("after", GOES_ON).unwrap();
    }
    assert_eq!(ways_out(&host), entries);
    assert_eq!(host.json(["conntrack", "stats"])["picked_up"], 2);
    assert!(host.ok(["status"]).contains("picked up"));
    // With the table it is as ever.
    host.stop(Signal::SIGKILL);
    host.launch();
    assert_eq!(grace(&host), 0);
    for out in &mut connections {
        out.try_echo("again", GOES_ON).unwrap();
    }
    assert_eq!(host.json(["conntrack", "stats"])["picked_up"], 0);
    // Turned off, its end is the end.
    host.configure("[timeouts]\nrestart_grace = 0\n");
    lose(&mut host);
    host.launch();
    for out in &mut connections {
        out.send("nobody").unwrap();
        assert!(out.receive("nobody".len(), Duration::from_secs(3)).is_err());
    }
    assert_eq!(
        (grace(&host), host.json(["conntrack", "stats"])["picked_up"].clone()),
        (0, 0.into())
    );
}

#[test]
#[ignore = "needs root"]
fn a_kill_while_sandboxes_come_leaves_nothing_half_made() {
    let mut host = Host::start(Uplink::None);
    host.network("app", "--subnet 10.91.1.0/24");
    let names: Vec<_> = (0..12).map(|n| host.name(&format!("s{n}"))).collect();
    let mut clients: Vec<_> = names
        .iter()
        .map(|name| {
            let args = ["sandbox", "create", name, "--network", "app"];
            let mut command = host.ctl_command(args);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            tests::host::namespace::Process::start(&mut command)
        })
        .collect();
    // In the middle of it, as far as that can be hit from here.
    std::thread::sleep(Duration::from_millis(120));
    host.stop(Signal::SIGKILL);
    for client in &mut clients {
        client.wait(Duration::from_secs(10));
    }
    host.launch();
    let known: Vec<_> = rows(&host.json(["sandbox", "ls"]))
        .iter()
        .map(|sandbox| sandbox["name"].as_str().unwrap().to_owned())
        .collect();
    let there = tests::host::namespace::names(host.prefix());
    println!("{} of {} were made before the kill", known.len(), names.len());
    for name in &names {
        assert_eq!(known.contains(name), there.contains(name), "{name}: {known:?}, {there:?}");
        if known.contains(name) {
            assert_ping(&host.find(name).ns, Ipv4Addr::new(10, 91, 1, 1), 64);
            host.ok(["sandbox", "rm", name]);
        }
        // The name is free, whatever became of it.
        host.ok(["sandbox", "create", name, "--network", "app"]);
    }
}

#[test]
#[ignore = "needs root"]
fn taps_that_were_left_half_made_are_finished() {
    let mut host = Host::start(Uplink::Dedicated);
    host.network("app", "--subnet 10.91.1.0/24 -o mtu=1400 -o link=tap");
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app");
    let shown = one(&host.json(["network", "inspect", "app"]));
    let leg = format!("vsw-{}", &shown["id"].as_str().unwrap()[..8]);
    let settings = |ns: &Namespace, ifname: &str| {
        let get = |args: &str| -> Value { serde_json::from_str(&ns.ip(args)).unwrap() };
        let link = get(&format!("-j link show dev {ifname}"))[0].clone();
        let address = get(&format!("-j address show dev {ifname}"))[0]["addr_info"][0].clone();
        let sysctl = |key: &str| ns.ok(&format!("sysctl -n net.{key}"));
        [
            link["address"].to_string(),
            link["mtu"].to_string(),
            link["txqlen"].to_string(),
            link["flags"].to_string(),
            address["local"].to_string() + "/" + &address["prefixlen"].to_string(),
            sysctl(&format!("ipv6.conf.{ifname}.disable_ipv6")),
            sysctl(&format!("ipv4.conf.{ifname}.arp_announce")),
            ns.ip(&format!("route show dev {ifname}")),
        ]
    };
    let all = |host: &Host| [settings(&a.ns, "eth0"), settings(&host.ns, &leg)];
    let before = all(&host);
    // As a daemon leaves them that is killed on the way: at once, and before the address.
    for steps in [&[][..], &["address MAC", "mtu 1400", "up"]] {
        host.stop(Signal::SIGKILL);
        for (ns, ifname, was) in [(&a.ns, "eth0", &before[0]), (&host.ns, leg.as_str(), &before[1])]
        {
            ns.ip(&format!("link delete {ifname}"));
            ns.ip(&format!("tuntap add dev {ifname} mode tap vnet_hdr"));
            for step in steps {
                let step = step.replace("MAC", was[0].trim_matches('"'));
                ns.ip(&format!("link set dev {ifname} {step}"));
            }
        }
        host.launch();
        assert_eq!(all(&host), before, "{steps:?}");
        assert_ping(&a.ns, b.ip, 64);
        assert_ping(&a.ns, GATEWAY, 63);
        assert_ping(&host.ns, a.ip, 64);
    }
    // What is finished keeps what was set on it since; so does what an earlier version made, which
    // marked nothing.
    for alias in [None, Some(""), Some("somebody's label")] {
        a.ns.ip("link set eth0 mtu 1300");
        host.stop(Signal::SIGTERM);
        for (ns, ifname) in [(&a.ns, "eth0"), (&host.ns, leg.as_str())] {
            if let Some(alias) = alias {
                let mut ip = ns.command("ip");
                let _ = ran(ip.args(["link", "set", ifname, "alias", alias])).succeeded();
            }
        }
        host.launch();
        assert!(a.ns.ip("link show eth0").contains("mtu 1300"), "{alias:?}");
        assert_ping(&a.ns, b.ip, 64);
    }
    // A label does not make it half made either when it lacks something, and stays.
    host.stop(Signal::SIGTERM);
    a.ns.ip("link set eth0 down");
    host.launch();
    let shown = a.ns.ip("link show eth0");
    assert!(shown.contains("somebody's label") && shown.contains("state DOWN"), "{shown}");
    assert!(shown.contains("mtu 1300"), "{shown}");
    host.ok(["sandbox", "rm", &a.name]);
}

#[test]
#[ignore = "needs root"]
fn connections_by_an_address_that_the_file_gave_away_end() {
    let mut host = Host::prepare(Uplink::Dedicated);
    let uplink = |address: &str| {
        format!(
            "[[uplink]]\ninterface = \"up0\"\nmode = \"dedicated\"\naddresses = [\"{address}/24\"]\n\
             gateway = \"{GATEWAY}\"\n"
        )
    };
    host.configure(&uplink("192.0.2.2"));
    host.launch();
    let a = host.sandbox("a", "");
    let _server = TcpServer::start(&host.outside, (ANY, 7000));
    let mut before = TcpClient::connect(&a.ns, (GATEWAY, 7000));
    before.echo("before");
    assert_eq!(way_out(&host, &a, Family::V4)["dst"], "192.0.2.2");

    host.stop(Signal::SIGTERM);
    host.configure(&uplink("192.0.2.5"));
    host.launch();
    let listed = host.json(["conntrack", "list", "--proto", "tcp", "--dport", "7000"]);
    assert_eq!(rows(&listed), Vec::<Value>::new());
    TcpClient::connect(&a.ns, (GATEWAY, 7000)).echo("after");
    assert_eq!(way_out(&host, &a, Family::V4)["dst"], "192.0.2.5");
}

/// The interface and the MAC that the outside machine has for the host.
fn known_outside(host: &Host) -> [String; 2] {
    let shown = host.outside.ip(&format!("neighbor show to {HOST_IP}"));
    let after = |word: &str| {
        let mut words = shown.split_whitespace().skip_while(|it| *it != word);
        words.nth(1).unwrap_or_else(|| panic!("no {word}: {shown:?}")).to_owned()
    };
    [after("dev"), after("lladdr")]
}

#[test]
#[ignore = "needs root"]
fn a_start_tells_the_wire_of_a_dedicated_uplink_its_mac() {
    let mut host = Host::start(Uplink::Dedicated);
    let a = host.sandbox("a", "");
    assert_ping(&a.ns, GATEWAY, 63);
    let [interface, mac] = known_outside(&host);
    host.stop(Signal::SIGKILL);
    // As if another machine had had the address.
    let other = "02:00:00:00:00:99";
    host.outside
        .ip(&format!("neighbor replace {HOST_IP} dev {interface} lladdr {other} nud stale"));
    assert_eq!(known_outside(&host)[1], other);
    host.launch();
    // Nobody speaks: it is told.
    eventually(Duration::from_secs(10), "the announcement", || known_outside(&host)[1] == mac);
}

#[test]
#[ignore = "needs root"]
fn a_carrier_that_returns_tells_the_wire_of_a_dedicated_uplink_its_mac() {
    let host = Host::start(Uplink::Dedicated);
    let a = host.sandbox("a", "");
    assert_ping(&a.ns, GATEWAY, 63);
    let [interface, mac] = known_outside(&host);
    let other = "02:00:00:00:00:99";
    let forget = || {
        let entry = format!("{HOST_IP} dev {interface} lladdr {other} nud stale");
        host.outside.ip(&format!("neighbor replace {entry}"));
    };
    // All of the start's announcements are over.
    std::thread::sleep(Duration::from_secs(7));
    forget();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(known_outside(&host)[1], other);
    // The carrier goes and comes, and nobody speaks.
    host.outside.ip(&format!("link set {interface} down"));
    std::thread::sleep(Duration::from_secs(1));
    host.outside.ip(&format!("link set {interface} up"));
    forget();
    eventually(Duration::from_secs(10), "the announcement", || known_outside(&host)[1] == mac);
    assert_ping(&a.ns, GATEWAY, 63);
}
