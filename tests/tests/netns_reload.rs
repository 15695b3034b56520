//! Networks of the config file are kept equal to it: at start and on SIGHUP.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::host::family::ANY;
use tests::host::inventory::Inventory;
use tests::host::namespace::Namespace;
use tests::host::traffic::{TcpClient, TcpServer, assert_ping};
use tests::host::{BOTH, Family, Host, Uplink, eventually, one};

fn declare(host: &Host, config: &str) {
    host.configure(config);
}

/// SIGHUP; returns what the daemon logged on account of it.
fn reload(host: &Host, config: &str) -> String {
    declare(host, config);
    let count = |text: &str| text.matches("configuration ").count();
    let before = host.log_tail();
    kill(Pid::from_raw(i32::try_from(host.pid()).unwrap()), Signal::SIGHUP).unwrap();
    eventually(Duration::from_secs(8), "the file is read again", || {
        count(&host.log_tail()) > count(&before)
    });
    let after = host.log_tail();
    let last = before.lines().last().unwrap();
    after.rsplit_once(last).map_or(after.clone(), |(_, new)| new.trim().to_owned())
}

fn inspect(host: &Host, network: &str) -> Value {
    one(&host.json(["network", "inspect", network]))
}

fn exists(host: &Host, network: &str) -> bool {
    host.ctl(["network", "inspect", network]).code == 0
}

/// A network with both families.
fn network(name: &str, number: u8, rest: &str) -> String {
    format!(
        "[[network]]\nname = \"{name}\"\n\
         subnet = [\"10.91.{number}.0/24\", \"fd00:91:{number}::/64\"]\n\
         gateway = [\"10.91.{number}.1\", \"fd00:91:{number}::1\"]\n{rest}"
    )
}

/// The gateway of such a network.
fn gateway(family: Family, number: u8) -> IpAddr {
    let six = Ipv6Addr::new(0xfd00, 0x91, number.into(), 0, 0, 0, 0, 1);
    family.pick([Ipv4Addr::new(10, 91, number, 1).into(), six.into()])
}

fn app(rest: &str) -> String {
    network("app", 1, rest)
}

#[test]
#[ignore = "needs root"]
fn what_can_change_changes_under_connected_sandboxes() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    declare(&host, &app(""));
    host.launch();
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app");
    let _server = TcpServer::start(&b.ns, (ANY, 80));
    let mut within = BOTH.map(|family| TcpClient::connect(&a.ns, (family.of(&b), 80)));
    within.iter_mut().for_each(|it| it.echo("before"));
    let before = inspect(&host, "app");
    let log = reload(
        &host,
        &app("ip_range = [\"10.91.1.128/25\", \"fd00:91:1::100/120\"]\n\
              aux_address = { printer = \"10.91.1.129\", other = \"fd00:91:1::101\" }\n\
              labels = { team = \"b\" }\noptions = { mtu = 1400, host_binding = \"192.0.2.2\" }\n"),
    );
    let line =
        "network \"app\": changed as declared: labels, host_binding, mtu, ip_range, aux_address";
    assert_eq!(log.matches("network \"app\"").count(), 1, "{log}");
    assert!(log.contains(line), "{log}");
    let after = inspect(&host, "app");
    assert_eq!(after["id"], before["id"]);
    assert_eq!(after["endpoints"], before["endpoints"]);
    assert_eq!(after["labels"], json!({"team": "b"}));
    assert_eq!(after["subnets"][0]["ip_range"], "10.91.1.128/25");
    assert_eq!(after["subnets"][1]["ip_range"], "fd00:91:1::100/120");
    within.iter_mut().for_each(|it| it.echo("after"));
    // The MTU is that of every device; what is new comes from the range, past what is set aside.
    assert!(a.ns.ip("link show eth0").contains("mtu 1400"));
    let leg = format!("vsw-{}", &after["id"].as_str().unwrap()[..8]);
    assert!(host.ns.ip(&format!("link show {leg}")).contains("mtu 1400"));
    let c = host.sandbox("c", "--network app -p 8080:80");
    let within = |last| Ipv6Addr::new(0xfd00, 0x91, 1, 0, 0, 0, 0, last);
    assert_eq!((c.ip, c.ip6), (Ipv4Addr::new(10, 91, 1, 128), within(0x100)));
    assert_eq!(host.json(["port", "ls"])[0]["host_ip"], "192.0.2.2");
    let d = host.sandbox("d", "--network app");
    assert_eq!((d.ip, d.ip6), (Ipv4Addr::new(10, 91, 1, 130), within(0x102)));
    // Read again, it is as declared; started again, too.
    let same = fs::read_to_string(host.path("vswitchd.toml")).unwrap();
    assert!(!reload(&host, &same).contains("network"));
    host.stop(Signal::SIGTERM);
    host.launch();
    assert_eq!(inspect(&host, "app")["subnets"], after["subnets"]);
    let talk = || BOTH.iter().for_each(|family| assert_ping(&a.ns, family.of(&b), 64));
    talk();
    // Neighbors who may not talk.
    reload(&host, &app("options = { icc = false }\n"));
    for family in BOTH {
        let ping = a.ns.run(&format!("ping -c 1 -W 1 {}", family.of(&b)));
        assert_ne!(ping.code, 0, "{ping}");
    }
    // At a start as on a reload.
    host.stop(Signal::SIGTERM);
    declare(&host, &app(""));
    host.launch();
    talk();
    assert!(a.ns.ip("link show eth0").contains("mtu 1500"));
}

/// Whether IPv6 is on for an interface.
fn has_ipv6(ns: &Namespace, ifname: &str) -> bool {
    let key = format!("/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6");
    ns.enter(|| fs::read_to_string(key)).is_ok_and(|text| text.trim_end() == "0")
}

/// With both families.
#[test]
#[ignore = "needs root"]
fn packets_may_be_as_long_as_the_network_says_now() {
    let mut host = Host::prepare_dual(Uplink::None);
    let config = |mtu: u16| app(&format!("options = {{ mtu = {mtu} }}\n"));
    declare(&host, &config(1280));
    host.launch();
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network app"));
    let reached = |to: IpAddr, size: u16| {
        a.ns.run(&format!("ping -c 2 -i 0.2 -W 1 -M do -s {size} {to}")).code == 0
    };
    let longest = |mtu: u16| {
        for family in BOTH {
            let (to, size) = (family.of(&b), mtu - family.pick([28, 48]));
            assert!(reached(to, size) && !reached(to, size + 1), "MTU {mtu}, {family}");
            assert!(reached(gateway(family, 1), size), "MTU {mtu}, {family}");
        }
    };
    longest(1280);
    reload(&host, &config(9000));
    longest(9000);
    host.stop(Signal::SIGTERM);
    declare(&host, &config(1400));
    host.launch();
    longest(1400);
    // Less than every link of IPv6 has is refused, and all is as it was.
    let log = reload(&host, &config(1279));
    assert!(log.contains("1280"), "{log}");
    longest(1400);
}

/// Without IPv6, which a shorter MTU than its least does not have.
#[test]
#[ignore = "needs root"]
fn frames_may_be_as_long_as_the_network_says_now() {
    let mut host = Host::prepare(Uplink::None);
    let config = |mtu: u16| {
        format!(
            "[[network]]\nname = \"app\"\nsubnet = \"10.91.1.0/24\"\noptions = {{ mtu = {mtu} }}\n"
        )
    };
    declare(&host, &config(1200));
    // As on any host: the tests' own are without IPv6.
    host.ns.enter(|| fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0")).unwrap();
    host.launch();
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app");
    let gateway = Ipv4Addr::new(10, 91, 1, 1);
    let reached = |to: Ipv4Addr, size: u16| {
        a.ns.run(&format!("ping -c 2 -i 0.2 -W 1 -M do -s {size} {to}")).code == 0
    };
    assert!(reached(b.ip, 1172) && !reached(b.ip, 1173));
    let assert_no_ipv6 = |host: &Host| {
        let links: Value = serde_json::from_str(&host.ns.ip("-j link show")).unwrap();
        let names = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap());
        for ours in names.filter(|name| name.starts_with("vsw")) {
            assert!(!has_ipv6(&host.ns, ours), "{ours}");
        }
        assert!(!has_ipv6(&a.ns, "eth0"));
    };
    assert_no_ipv6(&host);
    reload(&host, &config(9000));
    assert!(reached(b.ip, 8000), "{}", host.log_tail());
    assert!(reached(gateway, 8000));
    assert_no_ipv6(&host);
    host.stop(Signal::SIGTERM);
    host.launch();
    assert!(reached(b.ip, 8000));
    // At a start as on a reload, down and up.
    for (mtu, most) in [(1200, 1172), (9000, 8972)] {
        host.stop(Signal::SIGTERM);
        declare(&host, &config(mtu));
        host.launch();
        assert!(reached(b.ip, most) && !reached(b.ip, most + 1), "MTU {mtu}");
        assert_no_ipv6(&host);
    }
    assert_eq!(one(&host.json(["status"]))["warnings"], json!([]));
}

#[test]
#[ignore = "needs root"]
fn a_network_becomes_internal_and_open_again() {
    let mut host = Host::prepare_dual(Uplink::Shared);
    let other = network("other", 2, "");
    let open = format!("{}{other}", app(""));
    let closed = format!("{}{other}", app("internal = true\n"));
    declare(&host, &open);
    host.launch();
    let a = host.sandbox("a", "--network app");
    let b = host.sandbox("b", "--network app --network other -p 8080:80");
    let _servers =
        [TcpServer::start(&host.outside, (ANY, 7000)), TcpServer::start(&b.ns, (ANY, 80))];
    let routes =
        |ns: &Namespace| ["-4", "-6"].map(|family| ns.ip(&format!("{family} route show default")));
    let leads = |ns: &Namespace, number| {
        let shown = routes(ns);
        BOTH.into_iter()
            .zip(&shown)
            .all(|(family, shown)| shown.contains(&format!("via {} ", gateway(family, number))))
    };
    let mut out = BOTH.map(|family| TcpClient::connect(&a.ns, (family.outside(), 7000)));
    out.iter_mut().for_each(|it| it.echo("before"));
    let published = |from: &Namespace, word: &str| {
        for family in BOTH {
            TcpClient::connect(from, (family.host(), 8080)).echo(word);
        }
    };
    published(&host.outside, "by app");

    reload(&host, &closed);
    assert_eq!(inspect(&host, "app")["internal"], true);
    assert_eq!(routes(&a.ns), ["", ""]);
    for it in &mut out {
        assert!(it.try_echo("after", Duration::from_secs(2)).is_err(), "it goes on");
    }
    // The one that has another way takes it, its published port too.
    assert!(leads(&b.ns, 2), "{:?}", routes(&b.ns));
    for family in BOTH {
        assert_ping(&b.ns, family.outside(), 63);
        TcpClient::connect(&host.ns, (family.localhost(), 8080)).echo("from the host");
    }
    published(&host.outside, "by other");

    reload(&host, &open);
    for sandbox in [&a, &b] {
        assert!(leads(&sandbox.ns, 1), "{:?}", routes(&sandbox.ns));
    }
    BOTH.iter().for_each(|family| assert_ping(&a.ns, family.outside(), 63));
    published(&host.outside, "by app");
    // Ports that would lead nowhere stand against it.
    let c = host.sandbox("c", "--network app -p 8081:80");
    let log = reload(&host, &closed);
    for word in ["\"app\"", "internal", &c.name, "disconnect and reload"] {
        assert!(log.contains(word), "{word}: {log}");
    }
    assert_eq!(inspect(&host, "app")["internal"], false);
    BOTH.iter().for_each(|family| assert_ping(&a.ns, family.outside(), 63));
}

#[test]
#[ignore = "needs root"]
fn what_cannot_change_is_made_anew_or_warned_of() {
    let mut host = Host::prepare_dual(Uplink::None);
    let pair = |one: u8, two: u8, rest: &str| {
        format!("{}{}", network("one", one, rest), network("two", two, ""))
    };
    declare(&host, &pair(1, 2, ""));
    host.launch();
    // Both of them are of one number.
    let subnet = |name: &str| {
        let shown = inspect(&host, name)["subnets"].clone();
        let number = shown[0]["subnet"].as_str().unwrap().split('.').nth(2).unwrap();
        assert_eq!(shown[1]["subnet"], format!("fd00:91:{number}::/64"));
        shown[0]["subnet"].clone()
    };
    // They take each other's prefix.
    let log = reload(&host, &pair(2, 1, ""));
    assert_eq!((subnet("one"), subnet("two")), (json!("10.91.2.0/24"), json!("10.91.1.0/24")));
    let differs =
        "fd00:91:1::/64 (declared: fd00:91:2::/64), subnet 10.91.1.0/24 (declared: 10.91.2.0/24)";
    assert!(log.contains(&format!("\"one\": made anew for subnet {differs}")), "{log}");
    let made = host.sandbox("a", "--network one");
    BOTH.iter().for_each(|family| assert_ping(&made.ns, gateway(*family, 2), 64));

    // In use: said, the rest is done all the same.
    let log = reload(&host, &pair(3, 4, "labels = { team = \"b\" }\n"));
    assert_eq!((subnet("one"), subnet("two")), (json!("10.91.2.0/24"), json!("10.91.4.0/24")));
    assert_eq!(inspect(&host, "one")["labels"]["team"], "b");
    for word in ["10.91.2.0/24 (declared: 10.91.3.0/24)", &made.name, "disconnect and reload"] {
        assert!(log.contains(word), "{word}: {log}");
    }
    assert!(one(&host.json(["status"])).to_string().contains("declared: 10.91.3.0/24"));
    host.ok(["sandbox", "rm", &made.name]);
    reload(&host, &pair(3, 4, ""));
    assert_eq!(subnet("one"), "10.91.3.0/24");

    // What cannot be made leaves what was there.
    host.ns.ip("link add taken type bridge");
    host.ns.ip("address add 10.91.9.1/24 dev taken");
    let log = reload(&host, &pair(9, 4, ""));
    assert!(log.contains("10.91.9.0/24 overlaps"), "{log}");
    assert_eq!(subnet("one"), "10.91.3.0/24");
    // A wrong file changes nothing, nor does one that is not there.
    let before = Inventory::of(&host);
    let log = reload(&host, &format!("{}[[network]]\nname = \"x/y\"\n", pair(5, 6, "")));
    assert!(log.contains("configuration not taken") && log.contains("vswitchd.toml:"), "{log}");
    let text = fs::read(host.path("vswitchd.toml")).unwrap();
    fs::remove_file(host.path("vswitchd.toml")).unwrap();
    kill(Pid::from_raw(i32::try_from(host.pid()).unwrap()), Signal::SIGHUP).unwrap();
    eventually(Duration::from_secs(8), "it says so", || host.log_tail().contains("no such file"));
    fs::write(host.path("vswitchd.toml"), text).unwrap();
    before.assert_same(&Inventory::of(&host), "a wrong file");
    // A section that waits for a restart is named.
    let log = reload(&host, &format!("[limits]\nfdb = 2048\n{}", pair(3, 4, "")));
    assert!(log.contains("[limits] has changed, restart to use it"), "{log}");
}

#[test]
#[ignore = "needs root"]
fn what_left_the_file_goes_and_what_others_made_stays() {
    let mut host = Host::prepare_dual(Uplink::None);
    let second = network("second", 2, "");
    declare(&host, &format!("{}{second}", app("")));
    host.launch();
    host.network("mine", "--subnet 10.91.3.0/24 --subnet fd00:91:3::/64");
    let a = host.sandbox("a", "--network app");
    let log = reload(&host, "");
    assert!(log.contains("\"second\": removed, as from the config file"), "{log}");
    assert!(log.contains("\"app\": is not in the config file any more, but in use by"), "{log}");
    assert!(exists(&host, "app") && !exists(&host, "second") && exists(&host, "mine"));
    assert!(host.ok(["status"]).contains("in use by"));
    host.ok(["sandbox", "rm", &a.name]);
    let status = host.ok(["status"]);
    assert!(!status.contains("in use by"), "nobody uses it any more: {status}");
    // At a start too.
    host.stop(Signal::SIGKILL);
    host.launch();
    assert!(!exists(&host, "app") && exists(&host, "mine") && exists(&host, "bridge"));

    // Made by hand: the file's if it is as declared there, else left alone.
    let mine = |number: u8| network("mine", number, "");
    let log = reload(&host, &mine(4));
    assert!(log.contains("was not made from the config file"), "{log}");
    assert_eq!(inspect(&host, "mine")["subnets"][0]["subnet"], "10.91.3.0/24");
    reload(&host, "");
    assert!(exists(&host, "mine"));
    let id = inspect(&host, "mine")["id"].clone();
    let log = reload(&host, &mine(3));
    assert!(log.contains("\"mine\": is the config file's from now on"), "{log}");
    assert_eq!(inspect(&host, "mine")["id"], id);
    reload(&host, "");
    assert!(!exists(&host, "mine"));

    // `bridge` exists always, as declared or not.
    reload(&host, &network("bridge", 7, ""));
    assert_eq!(inspect(&host, "bridge")["subnets"][0]["subnet"], "10.91.7.0/24");
    let b = host.sandbox("b", "");
    let six = Ipv6Addr::new(0xfd00, 0x91, 7, 0, 0, 0, 0, 2);
    assert_eq!((b.ip, b.ip6), (Ipv4Addr::new(10, 91, 7, 2), six));
    host.ok(["sandbox", "rm", &b.name]);
    reload(&host, "");
    assert!(exists(&host, "bridge"));
}
