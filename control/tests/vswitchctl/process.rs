//! `exec` and `run`: exit codes, signals, cleaning up. They enter namespaces, so they need root;
//! the namespace is the one the test runs in, which changes nothing.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::fake::{Answer, Ended, Fake};
use crate::verbs::sandbox;

const HERE: &str = "/proc/thread-self/ns/net";

fn fake() -> Fake {
    Fake::new([
        (("GET", "/v1/sandboxes/sb"), Answer::Json(200, sandbox("sb", HERE))),
        (("POST", "/v1/sandboxes"), Answer::Json(201, sandbox("sb", HERE))),
        (("DELETE", "/v1/sandboxes/sb"), Answer::Json(204, Value::Null)),
    ])
}

fn methods(fake: &Fake) -> Vec<String> {
    fake.asked().into_iter().map(|asked| asked.method).collect()
}

/// A file that nobody may execute.
fn plain_file(fake: &Fake) -> String {
    let path = fake.dir().join("plain");
    std::fs::write(&path, "text").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs root"]
fn exec_passes_the_code_on() {
    let fake = fake();
    let plain = plain_file(&fake);
    let table = [
        (&["true"][..], 0, ""),
        (&["--", "sh", "-c", "exit 7"], 7, ""),
        (&["sh", "-c", "exit 255"], 255, ""),
        (
            &["/nonexistent/x"],
            127,
            "vswitchctl: command \"/nonexistent/x\": No such file or directory (os error 2)\n",
        ),
    ];
    for (command, code, stderr) in table {
        let ended = fake.run(&[&["exec", "sb"], command].concat());
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(code), stderr), "{command:?}");
    }
    let ended = fake.run(&["exec", "sb", &plain]);
    assert_eq!(ended.code, Some(126));
    assert_eq!(
        ended.stderr,
        format!("vswitchctl: command {plain:?}: Permission denied (os error 13)\n")
    );
    let output = fake.client(&["exec", "sb", "sh", "-c", "kill -TERM $$"]).output().unwrap();
    assert_eq!(output.status.signal(), Some(15), "exec is the command, also to signals");
    // Arguments that look like ours belong to the command.
    let ended = fake.run(&["exec", "sb", "--", "echo", "--format", "json", "-h"]);
    assert_eq!(ended.stdout, "--format json -h\n");
}

#[test]
#[ignore = "needs root"]
fn exec_needs_the_sandbox_and_its_namespace() {
    let missing =
        json!({"error": {"kind": "not_found", "message": "sandbox \"no\": no such sandbox"}});
    let fake = Fake::new([
        (("GET", "/v1/sandboxes/no"), Answer::Json(404, missing)),
        (("GET", "/v1/sandboxes/sb"), Answer::Json(200, sandbox("sb", "/etc/hosts"))),
    ]);
    let ended = fake.run(&["exec", "no", "true"]);
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(3), "vswitchctl: sandbox \"no\": no such sandbox\n")
    );
    let ended = fake.run(&["exec", "sb", "true"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("is not a network namespace"), "{ended:?}");
}

#[test]
#[ignore = "needs root"]
fn run_creates_runs_and_removes() {
    let table = [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["--", "true"], 0),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
        (&["/nonexistent/x"], 127),
    ];
    for (command, code) in table {
        let fake = fake();
        let ended = fake.run(&[&["run", "--name", "sb", "--network", "app"], command].concat());
        assert_eq!(ended.code, Some(code), "{command:?}: {ended:?}");
        assert_eq!(methods(&fake), ["POST", "DELETE"], "{command:?}");
    }
    let fake = fake();
    let ended = fake.run(&["run", "--name", "sb", &plain_file(&fake)]);
    assert_eq!(ended.code, Some(126), "{ended:?}");
    assert_eq!(methods(&fake), ["POST", "DELETE"]);
}

#[test]
#[ignore = "needs root"]
fn run_names_its_sandbox() {
    let fake = fake();
    assert_eq!(fake.run(&["run", "true"]).code, Some(0));
    let name = fake.asked()[0].body["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("run-") && name.len() == 12, "{name}");
}

#[test]
#[ignore = "needs root"]
fn run_tells_when_it_cannot_create_or_remove() {
    let taken = json!({"error": {"kind": "conflict", "message": "sandbox \"sb\": exists"}});
    let fake = Fake::new([(("POST", "/v1/sandboxes"), Answer::Json(409, taken))]);
    let ended = fake.run(&["run", "--name", "sb", "true"]);
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(4), "vswitchctl: sandbox \"sb\": exists\n")
    );
    assert_eq!(methods(&fake), ["POST"], "what was not created is not removed");

    let stuck = || json!({"error": {"kind": "failed", "message": "sandbox \"sb\": stuck"}});
    for (command, code) in [("exit 0", 1), ("exit 7", 7)] {
        let fake = Fake::new([
            (("POST", "/v1/sandboxes"), Answer::Json(201, sandbox("sb", HERE))),
            (("DELETE", "/v1/sandboxes/sb"), Answer::Json(500, stuck())),
        ]);
        let ended = fake.run(&["run", "--name", "sb", "sh", "-c", command]);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert_eq!(ended.stderr, "vswitchctl: sandbox \"sb\": stuck\n");
    }
}

#[test]
#[ignore = "needs root"]
fn run_passes_signals_on_and_removes() {
    for (signal, number) in [(Signal::SIGTERM, 15), (Signal::SIGINT, 2), (Signal::SIGHUP, 1)] {
        let fake = fake();
        let mut child = fake
            .client(&["run", "--name", "sb", "sh", "-c", "echo up; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        let begun = Instant::now();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let ended = Ended::new(&child.wait_with_output().unwrap());
        assert_eq!(ended.code, Some(128 + number), "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "waited for the command instead");
        assert_eq!(methods(&fake), ["POST", "DELETE"]);
    }
}
