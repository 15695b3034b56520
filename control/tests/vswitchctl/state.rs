//! `state export` and `state import`: what is asked, what is refused before anything is.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::fake::{Answer, Ended, Fake, client};

fn state() -> Value {
    json!({
        "version": 1,
        "policy": [], "networks": [{"name": "app", "driver": "bridge",
            "subnets": [{"subnet": "10.1.0.0/24", "gateway": "10.1.0.1", "ip_range": null,
                "aux_addresses": {}}],
            "internal": false, "ipv6": false, "options": {}, "labels": {}}],
        "sandboxes": [{"name": "sb", "host": false, "netns": null,
            "endpoints": [{"network": "app", "ifname": "eth0", "ip": "10.1.0.2", "ip6": null,
                "mac": "02:42:0a:01:00:02", "aliases": [], "options": {}}],
            "publish": ["8080:80/tcp"]}],
        "uplinks": [], "routes": [], "fdb": [],
    })
}

fn imported() -> Value {
    json!({"networks": ["app"], "policy": [], "sandboxes": ["sb"], "uplinks": [], "routes": [], "fdb": [],
        "kept": 2})
}

fn server() -> Fake {
    Fake::new([
        (("GET", "/v1/state"), Answer::Json(200, state())),
        (("POST", "/v1/state"), Answer::Json(200, imported())),
    ])
}

#[test]
fn an_export_is_the_document_whatever_the_format() {
    let fake = server();
    let plain = fake.run(&["state", "export"]);
    assert_eq!((plain.code, plain.json()), (Some(0), state()));
    assert!(plain.stdout.ends_with("}\n"));
    for arguments in [&["state", "export", "-"][..], &["--format", "json", "state", "export"]] {
        assert_eq!(fake.run(arguments).stdout, plain.stdout);
    }
    let path = fake.dir().join("state.json");
    let path = path.to_str().unwrap();
    let named = fake.run(&["state", "export", path]);
    assert_eq!((named.code, named.stdout), (Some(0), format!("{path}\n")));
    assert_eq!(fs::read_to_string(path).unwrap(), plain.stdout);
    let json = fake.run(&["--format", "json", "state", "export", path]);
    assert_eq!(json.json(), json!([{"name": path}]));
}

#[test]
fn an_import_sends_the_document() {
    let fake = server();
    let path = fake.dir().join("state.json");
    fs::write(&path, state().to_string()).unwrap();
    let shown = fake.run(&["state", "import", path.to_str().unwrap()]);
    let line = "made 1 networks, 0 policies, 1 sandboxes, 0 uplinks, 0 routes, 0 FDB entries; 2 were there\n";
    assert_eq!((shown.code, shown.stdout.as_str()), (Some(0), line));
    let mut command = fake.client(&["--format", "json", "state", "import", "-"]);
    command.stdin(Stdio::from(fs::File::open(&path).unwrap()));
    assert_eq!(Ended::new(&command.output().unwrap()).json(), imported());
    let asked = fake.asked();
    assert_eq!(asked.len(), 2);
    for asked in asked {
        assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/v1/state"));
        assert_eq!(asked.body, state());
    }
}

#[test]
fn what_is_no_state_is_refused_before_anything_is_asked() {
    let fake = server();
    let path = fake.dir().join("state.json");
    let whole = state().to_string();
    let newer = json!({"version": 2, "comets": []}).to_string();
    let unknown = json!({"version": 1, "network": []}).to_string();
    let twice = json!({"version": 1, "networks": [{"name": "a"}, {"name": "a"}]}).to_string();
    for (text, words) in [
        (
            "",
            "state.json: is not JSON: EOF while parsing a value at line 1 column 0; it ends too early",
        ),
        (&whole[..whole.len() - 2], "it ends too early"),
        ("[]", "is not a JSON object"),
        ("{}", "field \"version\": is missing"),
        (&newer, "has version 2, the newest known here is 1; upgrade vswitchd, or export from one"),
        (&unknown, "field \"network\": is unknown; known are version, networks"),
        (&twice, "state.json: network a: is there twice; leave one out"),
    ] {
        fs::write(&path, text).unwrap();
        let ended = fake.run(&["state", "import", path.to_str().unwrap()]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{text}: {ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        assert!(ended.stderr.contains(words), "{text}: {ended:?}");
    }
    let ended = fake.run(&["state", "import", "/nowhere"]);
    assert_eq!(ended.code, Some(2));
    assert_eq!(ended.stderr, "vswitchctl: /nowhere: No such file or directory (os error 2)\n");
    assert_eq!(fake.asked(), []);
    let ended = fake.run(&["state", "export", "/nowhere/x"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""));
    assert!(ended.stderr.starts_with("vswitchctl: /nowhere/x: No such file"), "{ended:?}");
    let ended =
        Ended::new(&client().args(["--socket", "/nowhere", "state", "export"]).output().unwrap());
    assert_eq!(ended.code, Some(5), "{ended:?}");
}

#[test]
fn completions_and_pages_need_no_daemon() {
    let run = |arguments: &[&str]| Ended::new(&client().args(arguments).output().unwrap());
    for shell in ["bash", "fish", "zsh"] {
        for program in ["vswitchctl", "vswitchd"] {
            let ended = run(&["completions", shell, "--program", program]);
            assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
            assert!(ended.stdout.contains(program), "{shell} {program}");
        }
    }
    let ended = run(&["completions", "tcsh"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{ended:?}");
    assert!(ended.stderr.contains("possible values: bash"), "{ended:?}");
    let ended = run(&["pages", "/proc/nowhere"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
    assert!(ended.stderr.starts_with("vswitchctl: /proc/nowhere: "), "{ended:?}");
    // A shell takes what it is given.
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("completions");
    fs::write(&script, run(&["completions", "bash"]).stdout).unwrap();
    let bash = std::process::Command::new("bash").arg("-n").arg(&script).output().unwrap();
    assert!(bash.status.success() && bash.stderr.is_empty(), "{bash:?}");
}
