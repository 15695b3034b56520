//! `vswitchd demo` as built: everything true, the object of the contract, nothing left.

use std::fs;
use std::process::Command;

use serde_json::Value;

/// Namespaces and files of the demo with that process id.
fn left(pid: u32) -> Vec<String> {
    let own = format!("vswitchd-demo-{pid}");
    [std::env::temp_dir(), "/run/netns".into()]
        .into_iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flat_map(|entries| entries.flatten())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&own))
        .collect()
}

#[test]
#[ignore = "needs root"]
fn every_step_is_true_and_nothing_is_left() {
    let links = || fs::read_to_string("/proc/self/net/dev").map(|text| text.lines().count());
    let before = links().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_vswitchd"))
        .args(["demo", "--format", "json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();

    let steps = report["steps"].as_array().unwrap();
    let names: Vec<&str> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    let expected =
        ["setup", "ping", "ping_out", "snat", "dnat", "fdb", "conntrack", "throughput", "cleanup"];
    assert_eq!(names, expected);
    assert!(steps.iter().all(|step| step["ok"] == Value::Bool(true)), "{text}");
    assert!(steps.iter().all(|step| step["detail"].is_string()), "{text}");
    for figure in ["vswitchd_gbps", "kernel_gbps", "ratio"] {
        assert!(report["throughput"][figure].as_f64().unwrap() > 0.0, "{figure}: {text}");
    }
    assert_eq!(left(pid), Vec::<String>::new());
    assert_eq!(links().unwrap(), before, "the caller's interfaces");
}
