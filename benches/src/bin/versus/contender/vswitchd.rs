//! vswitchd, driven by `vswitchctl` as a person would.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use control::lab::Lab;

use super::{Built, Contender, Counting, Kind};
use crate::error::{VersusError, io};
use crate::programs::{self, Ours};
use crate::wiring::{A, A6, B, B6, Machines, PUBLISHED, SUBNET, SUBNET6, carry_out};

/// A loaded machine may take its time to start it.
const START_TIMEOUT: Duration = Duration::from_secs(15);
const START_POLL: Duration = Duration::from_millis(50);
const NETWORK: &str = "versus";

pub(super) fn build(kind: Kind, lab: &Lab, ours: &Ours, label: &str) -> Result<Built, VersusError> {
    let machines = Machines::new(lab, label)?;
    carry_out(machines.wire_outside())?;
    let directory = lab.directory().join(label);
    std::fs::create_dir(&directory).map_err(io(format!("create {}", directory.display())))?;
    let socket = directory.join("vswitchd.sock");
    let mut command = Command::new(&ours.vswitchd);
    // No configuration file: defaults, whatever this machine has in /etc.
    for (flag, file) in [
        ("--config", "vswitchd.toml"),
        ("--socket", "vswitchd.sock"),
        ("--state-dir", "state"),
        ("--run-dir", "run"),
    ] {
        command.arg(flag).arg(directory.join(file));
    }
    if kind == Kind::TapEpoll {
        command.arg("--io=epoll");
    }
    if let Some(workers) = ours.workers {
        command.arg(format!("--workers={workers}"));
    }
    let pid = programs::start(lab, &machines.host, command, &directory.join("log"))?;
    let contender = Contender {
        kind,
        machines,
        process: Some(pid),
        counting: Some(Counting {
            program: ours.vswitchctl.clone(),
            arguments: vec![
                "--socket".to_owned(),
                socket.display().to_string(),
                "status".to_owned(),
                "--format=json".to_owned(),
            ],
            read: connections,
        }),
    };
    wait_for(&contender, lab, pid, &directory.join("log"))?;

    let control = |arguments: &[&str]| {
        let mut command = Command::new(&ours.vswitchctl);
        command.arg("--socket").arg(&socket).args(arguments);
        programs::run(&contender.machines.host, command, "")
    };
    let link = if kind == Kind::Veth { "link=veth" } else { "link=tap" };
    let network = [
        "network", "create", NETWORK, "--subnet", SUBNET, "--subnet", SUBNET6, "--ipv6", "-o", link,
    ];
    match control(&network) {
        Ok(_) => {}
        Err(refusal) if kind == Kind::Veth => {
            lab.end(pid);
            return Ok(Built::LeftOut(refusal.to_string()));
        }
        Err(error) => return Err(error),
    }
    let [a, b] = contender.machines.paths().each_ref().map(|path| path.display().to_string());
    let sandbox = |name: &str, address: String, address6: String, path: &str, more: &[&str]| {
        let mut arguments = vec![
            "sandbox",
            "create",
            name,
            "--network",
            NETWORK,
            "--ip",
            &address,
            "--ip6",
            &address6,
            "--netns",
            path,
        ];
        arguments.extend(more);
        control(&arguments)
    };
    sandbox("a", A.to_string(), A6.to_string(), &a, &[])?;
    sandbox("b", B.to_string(), B6.to_string(), &b, &["-p", &format!("{PUBLISHED}:{PUBLISHED}")])?;
    Ok(Built::Ready(contender))
}

/// Waits until the daemon answers.
fn wait_for(contender: &Contender, lab: &Lab, pid: u32, log: &Path) -> Result<(), VersusError> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let Err(error) = contender.connections() else { return Ok(()) };
        if let Some(status) = lab.ended(pid) {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let last = log.lines().last().unwrap_or_default();
            return Err(VersusError::Program(format!("vswitchd ended, {status}: {last}")));
        }
        if Instant::now() >= deadline {
            return Err(error);
        }
        thread::sleep(START_POLL);
    }
}

/// From `vswitchctl status --format json`.
fn connections(status: &str) -> Option<u64> {
    let status: serde_json::Value = serde_json::from_str(status).ok()?;
    status.get("conntrack")?.get("entries")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_tells_how_many_connections_there_are() {
        assert_eq!(connections(r#"{"conntrack":{"entries":7,"limit":9}}"#), Some(7));
        assert_eq!(connections("{}"), None);
        assert_eq!(connections("not reachable"), None);
    }
}
