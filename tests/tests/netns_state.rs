//! `vswitchctl state export` and `import`: what one daemon has, another makes, or nothing of it.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::host::inventory::{Inventory, filters};
use tests::host::namespace::Namespace;
use tests::host::traffic::{TcpClient, TcpServer, assert_ping};
use tests::host::{HOST_IP, Host, Uplink, one, rows};

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn export(host: &Host) -> Value {
    serde_json::from_str(&host.ok(["state", "export"])).unwrap()
}

/// A file with this in it.
fn file(host: &Host, text: &str) -> PathBuf {
    let path = host.path("state.json");
    fs::write(&path, text).unwrap();
    path
}

fn import(host: &Host, state: &Value) -> Value {
    let path = file(host, &state.to_string());
    host.json(["state".as_ref(), "import".as_ref(), path.as_os_str()])
}

/// A daemon with one of everything that an export has.
fn furnished(adopted: &Namespace) -> Host {
    let host = Host::start(Uplink::Dedicated);
    host.network("app", "--subnet 10.91.1.0/24 --gateway 10.91.1.9 --label tier=front -o mtu=1400");
    host.network(
        "dual",
        "--subnet 10.91.2.0/24 --subnet fd00:91:2::/64 --aux-address nas=10.91.2.7",
    );
    host.network("alone", "--subnet 10.91.3.0/24 -o gateway_mode=isolated --internal");
    host.sandbox("a", "--network app --network dual -p 8080:80 -p 9000-9009:9000-9009/udp");
    let b = host.sandbox("b", "--network dual --ip 10.91.2.99 --alias db");
    host.sandbox("c", "--network none");
    host.sandbox("d", "--network host");
    let path = adopted.path().to_str().unwrap();
    host.sandbox("e", &format!("--network app --netns {path}"));
    // Not the next free name: the one before it is gone.
    host.ok(["network", "disconnect", "dual", &b.name]);
    let connect = ["network", "connect", "alone", &b.name, "--mac", "02:00:00:00:00:77"];
    host.ok(connect);
    host.ok(["network", "connect", "dual", &b.name, "--ip", "10.91.2.99", "--alias", "db"]);
    host.ok(["network", "disconnect", "alone", &b.name]);
    host.ok(["route", "add", "10.99.0.0/16", "via", "192.0.2.1"]);
    let to = format!("sandbox:{}", host.name("a"));
    host.ok(["policy", "add", "app", "--allow", "--in", "--to", &to]);
    host.ok(["policy", "add", "app", "--deny", "--src", "network:dual"]);
    let first = ["--position", "1", "--proto", "tcp", "--port", "25"];
    host.ok(["policy", "add", "app", "--deny", "--out"].into_iter().chain(first));
    let fdb = ["fdb", "add", "02:00:00:00:00:05", "--network", "dual", "--vlan", "7"];
    host.ok(fdb.into_iter().chain(["--sandbox", &b.name]));
    let leg = format!(
        "vsw-{}",
        &one(&host.json(["network", "inspect", "app"]))["id"].as_str().unwrap()[..8]
    );
    host.ok(["fdb", "add", "02:00:00:00:00:06", "--network", "app", "--port", &leg]);
    host
}

#[test]
#[ignore = "needs root"]
fn what_one_daemon_has_another_makes() {
    let owned = Namespace::create(&format!("vsw-t-{}-adopted", std::process::id()));
    let adopted = owned.handle();
    let host = furnished(&adopted);
    let state = export(&host);
    assert_eq!(state["version"], 1);
    let names = |list: &str| -> Vec<String> {
        let rows = rows(&state[list]).into_iter();
        rows.map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("networks"), ["alone", "app", "dual"], "bridge is nobody's choice");
    let all = ["a", "b", "c", "d", "e"].map(|short| host.name(short));
    assert_eq!(names("sandboxes"), all);
    let b = &state["sandboxes"][1];
    assert_eq!((&b["endpoints"][0]["ifname"], &b["netns"]), (&json!("eth1"), &Value::Null));
    assert_eq!(state["sandboxes"][3]["host"], true);
    assert_eq!(state["sandboxes"][4]["netns"], adopted.path().to_str().unwrap());
    let publish = json!(["8080:80/tcp", "9000-9009:9000-9009/udp"]);
    assert_eq!(state["sandboxes"][0]["publish"], publish);
    assert_eq!(state["uplinks"][0]["interface"], "up0");
    assert_eq!(state["routes"][0]["destination"], "10.99.0.0/16");
    assert_eq!(state["fdb"].as_array().unwrap().len(), 2, "{}", state["fdb"]);
    let ports: Vec<_> =
        rows(&state["policy"]).into_iter().map(|rule| rule["port"].clone()).collect();
    assert_eq!(ports, [json!("25"), Value::Null, Value::Null], "{}", state["policy"]);
    let shown =
        |host: &Host| all.each_ref().map(|name| one(&host.json(["sandbox", "inspect", name])));
    let before = shown(&host);

    // Another daemon: other directories in another namespace.
    host.ok(["purge", "--yes"]);
    let other = Host::prepare(Uplink::Dedicated);
    let mut other = other;
    other.launch();
    let made = import(&other, &state);
    assert_eq!(made["networks"], json!(["alone", "app", "dual"]));
    assert_eq!(made["sandboxes"], json!(all));
    assert_eq!((&made["uplinks"], &made["kept"]), (&json!(["up0"]), &json!(0)));
    assert_eq!(made["routes"], json!(["10.99.0.0/16"]));
    assert_eq!(made["policy"], json!(["app"]));
    assert_eq!(made["fdb"].as_array().unwrap().len(), 2);
    assert_eq!(export(&other), state, "the same again");
    let after = shown(&other);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before["endpoints"], after["endpoints"]);
        assert_eq!(before["ports"], after["ports"]);
        assert_eq!(before["adopted"], after["adopted"]);
    }
    // And it carries traffic.
    let [a, e] = [0, 4].map(|at| other.find(&all[at]));
    assert_ping(&a.ns, e.ip, 64);
    assert_ping(&a.ns, other.find(&all[1]).ip, 64);
    let _server = TcpServer::start(&a.ns, (ANY, 80));
    TcpClient::connect(&other.outside, (HOST_IP, 8080)).echo("published");
    // What it made outlives it as what others make does; the state file is a whole one.
    other.stop(Signal::SIGKILL);
    other.launch();
    let mut again = export(&other);
    again["fdb"] = state["fdb"].clone();
    assert_eq!(again, state, "but for static MACs, which end with the process");
    other.ok(["purge", "--yes"]);
    assert!(adopted.exists() && !adopted.ip("-o link").contains("eth0"));
}

#[test]
#[ignore = "needs root"]
fn what_is_there_exactly_so_is_kept() {
    let adopted = Namespace::create(&format!("vsw-t-{}-kept", std::process::id()));
    let host = furnished(&adopted.handle());
    let mut state = export(&host);
    state["sandboxes"] = json!([]);
    file(&host, "");
    let before = Inventory::of(&host);
    let made = import(&host, &state);
    assert_eq!(made["kept"], 3 + 3 + 1 + 1 + 2, "{made}");
    for list in ["networks", "policy", "sandboxes", "uplinks", "routes", "fdb"] {
        assert_eq!(made[list], json!([]), "{list}");
    }
    before.assert_same(&Inventory::of(&host), "nothing was to be made");
    host.ok(["purge", "--yes"]);
}

#[test]
#[ignore = "needs root"]
fn an_import_that_cannot_be_carried_out_leaves_nothing() {
    let adopted = Namespace::create(&format!("vsw-t-{}-refused", std::process::id()));
    let host = furnished(&adopted.handle());
    let state = export(&host);
    let [a, new] = [host.name("a"), host.name("new")];
    file(&host, "");
    let inventory = Inventory::of(&host);
    let network = |name: &str, subnet: &str| json!({"name": name, "subnets": [{"subnet": subnet}]});
    let good = network("fresh", "10.91.20.0/24");
    let sandbox = |name: &str, network: &str, publish: &str| json!({"name": name, "endpoints": [{"network": network}], "publish": [publish]});
    for (code, words, part) in [
        (
            4,
            "network \"app\": exists already and differs from the document in",
            json!({
            "networks": [good, network("app", "10.91.1.0/24")]}),
        ),
        (4, "overlaps network \"app\"", json!({"networks": [good, network("n", "10.91.1.0/25")]})),
        (
            4,
            "overlaps network \"fresh\"",
            json!({"networks": [good, network("n", "10.91.20.0/25")]}),
        ),
        (4, "exists already; remove it first", json!({"sandboxes": [{"name": a}]})),
        (3, "no such network", json!({"sandboxes": [sandbox(&new, "nowhere", "80")]})),
        // Found only when it is made, after others.
        (
            4,
            "is published by sandbox",
            json!({
            "networks": [good], "sandboxes": [sandbox(&new, "fresh", "8080:80")]}),
        ),
        (
            4,
            "is published by sandbox",
            json!({"networks": [good], "sandboxes": [
            sandbox(&new, "fresh", "7000:80"), sandbox(&host.name("new2"), "fresh", "7000:80")]}),
        ),
        (
            4,
            "belongs to sandbox",
            json!({"sandboxes": [
            {"name": new, "endpoints": [{"network": "app"}]},
            {"name": host.name("new2"), "endpoints": [
                {"network": "app", "mac": state["sandboxes"][0]["endpoints"][0]["mac"]}]}]}),
        ),
        (
            3,
            "there is none",
            json!({"networks": [good], "sandboxes": [
            {"name": new, "netns": "/run/netns/no-such", "endpoints": [{"network": "fresh"}]}]}),
        ),
        (
            4,
            "has an interface \"eth0\" already",
            json!({"sandboxes": [
            {"name": new, "netns": state["sandboxes"][4]["netns"],
             "endpoints": [{"network": "dual", "ifname": "eth0"}]}]}),
        ),
        (
            4,
            "uplink \"up0\": exists already and differs",
            json!({"uplinks": [{"interface": "up0"}]}),
        ),
        (
            3,
            "there is no such interface",
            json!({
            "networks": [good], "uplinks": [{"interface": "nowhere0"}]}),
        ),
        (
            4,
            "route 10.99.0.0/16: exists already, via 192.0.2.1",
            json!({
            "routes": [{"destination": "10.99.0.0/16", "via": "192.0.2.7"}]}),
        ),
        (
            3,
            "no such uplink",
            json!({"networks": [good], "routes": [
            {"destination": "10.98.0.0/16", "via": "192.0.2.1"},
            {"destination": "10.97.0.0/16", "via": "192.0.2.1", "uplink": "eth9"}]}),
        ),
        (
            3,
            "is not in network \"fresh\"",
            json!({"networks": [good], "fdb": [
            {"network": "app", "mac": "02:00:00:00:00:aa"},
            {"network": "fresh", "mac": "02:00:00:00:00:ab", "sandbox": a}]}),
        ),
        (
            4,
            "network \"app\": has other rules",
            json!({"policy": [{"network": "app", "action": "deny"}]}),
        ),
        (
            3,
            "no such sandbox",
            json!({"networks": [good], "policy": [
            {"network": "fresh", "action": "deny", "src": "sandbox:nobody"}]}),
        ),
        (3, "no such network", json!({"policy": [{"network": "nowhere", "action": "deny"}]})),
        (
            2,
            "leave \"position\" out",
            json!({"policy": [{"network": "dual", "action": "deny", "position": 1}]}),
        ),
        (
            3,
            "no such sandbox",
            json!({"fdb": [
            {"network": "app", "mac": "02:00:00:00:00:ab", "sandbox": "nobody"}]}),
        ),
        (
            4,
            "behind another port already",
            json!({"fdb": [
            {"network": "app", "mac": "02:00:00:00:00:06", "sandbox": a}]}),
        ),
        (2, "field \"sandboxes[0].publish[0]\"", json!({"sandboxes": [sandbox(&new, "app", "x")]})),
        (2, "field \"netwrks\": is unknown", json!({"netwrks": []})),
        (2, "field \"version\": must be 1", json!({"version": 0})),
        (2, "has version 2, the newest known here is 1", json!({"version": 2, "comets": []})),
    ] {
        let mut document = json!({"version": 1});
        document.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        let path = file(&host, &document.to_string());
        host.refused(code, &[words], ["state".as_ref(), "import".as_ref(), path.as_os_str()]);
        assert_eq!(export(&host), state, "{words}");
        inventory.assert_same(&Inventory::of(&host), words);
    }
    // The same by the API: the daemon trusts no client.
    let torn = state.to_string();
    let torn = &torn[..torn.len() / 2];
    let path = file(&host, torn);
    let torn = ["state.json: is not JSON: EOF", "it ends too early"];
    host.refused(2, &torn, ["state".as_ref(), "import".as_ref(), path.as_os_str()]);
    host.refused(2, &["/nowhere: No such file"], ["state", "import", "/nowhere"]);
    host.refused(1, &["/nowhere/x: No such file"], ["state", "export", "/nowhere/x"]);
    assert_eq!(export(&host), state);
    host.ok(["purge", "--yes"]);
}

#[test]
#[ignore = "needs root"]
fn files_and_pipes_are_the_same() {
    let host = Host::start(Uplink::None);
    host.network("app", "--subnet 10.91.1.0/24");
    let path = host.path("out.json");
    let text = path.to_str().unwrap();
    assert_eq!(host.ok(["state", "export", text]), format!("{text}\n"));
    let written = fs::read_to_string(&path).unwrap();
    assert_eq!(written, host.ok(["state", "export", "-"]));
    assert_eq!(written, host.ok(["--format", "json", "state", "export"]));
    host.ok(["network", "rm", "app"]);
    let mut command = host.ctl_command(["state", "import", "-"]);
    let ran = tests::host::ran(command.stdin(Stdio::from(fs::File::open(&path).unwrap())));
    assert_eq!(ran.code, 0, "{ran}");
    assert!(ran.stdout.starts_with("made 1 networks, 0 policies, 0 sandboxes"), "{ran}");
    assert_eq!(host.ok(["state", "export"]), written);
}

#[test]
#[ignore = "needs root"]
fn the_uplink_that_nobody_chose_gives_way_or_comes_back() {
    let host = Host::start(Uplink::Shared);
    assert_eq!(export(&host)["uplinks"], json!([]), "another host finds its own");
    let uplink = || one(&host.json(["uplink", "ls"]));
    assert_eq!(uplink()["automatic"], true);
    // The steering is loaded anew, under another number.
    let steering = || {
        let shown = filters(&host.ns);
        let words = shown.split_whitespace().filter(|word| word.parse::<u32>().is_err());
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = (uplink(), steering());
    assert!(!before.1.is_empty());
    let chosen = json!({"interface": "up0", "nat_ports": "30000-30099"});
    let bad = json!({"version": 1, "uplinks": [chosen],
        "routes": [{"destination": "10.98.0.0/16", "via": "198.51.100.1", "uplink": "up0"}]});
    let path = file(&host, &bad.to_string());
    let words = ["next hop 198.51.100.1 is not on the wire"];
    host.refused(2, &words, ["state".as_ref(), "import".as_ref(), path.as_os_str()]);
    assert_eq!((uplink(), steering()), before);
    let a = host.sandbox("a", "");
    assert_ping(&a.ns, tests::host::GATEWAY, 63);
    let made = import(&host, &json!({"version": 1, "uplinks": [chosen]}));
    assert_eq!(made["uplinks"], json!(["up0"]));
    assert_eq!(
        (&uplink()["automatic"], &uplink()["nat_ports"]),
        (&json!(false), &json!(["30000-30099"]))
    );
    assert_eq!(export(&host)["uplinks"][0]["nat_ports"], "30000-30099");
    assert_ping(&a.ns, tests::host::GATEWAY, 63);
}
