//! Open vSwitch's userspace datapath, with a database, sockets and processes of its own, whatever
//! else of it runs on the machine.
//!
//! It has no router: flows rewrite the Ethernet addresses, and who is the gateway is told to the
//! machines beforehand. NAT is that of its connection tracking.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use control::lab::Lab;
use dataplane::packet::types::Mac;

use super::{Built, Contender, Counting, Kind};
use crate::error::{VersusError, io};
use crate::programs;
use crate::wiring::{
    A, A6, B, B6, HOST, HOST6, MAC_A, MAC_B, MAC_OUTSIDE, Machines, PORTS, PUBLISHED, UPLINK,
    carry_out,
};

/// Where the database's schema is, unless the variable that Open vSwitch itself reads says otherwise.
const DATA_DIR: &str = "/usr/share/openvswitch";
const DATA_DIR_VARIABLE: &str = "OVS_PKGDATADIR";
const START_TIMEOUT: Duration = Duration::from_secs(10);
const START_POLL: Duration = Duration::from_millis(50);
/// Of the router that the flows play.
const MAC_ROUTER: Mac = Mac([2, 0x42, 10, 77, 0, 1]);
/// `OpenFlow` numbers of A's and B's ports and the uplink.
const NUMBERS: [u8; 3] = [1, 2, 3];

/// The programs it needs.
struct Programs {
    tool: PathBuf,
    database: PathBuf,
    switch: PathBuf,
    vsctl: PathBuf,
    ofctl: PathBuf,
    appctl: PathBuf,
}

impl Programs {
    fn find() -> Option<Self> {
        Some(Self {
            tool: programs::find("ovsdb-tool")?,
            database: programs::find("ovsdb-server")?,
            switch: programs::find("ovs-vswitchd")?,
            vsctl: programs::find("ovs-vsctl")?,
            ofctl: programs::find("ovs-ofctl")?,
            appctl: programs::find("ovs-appctl")?,
        })
    }
}

pub(super) fn build(lab: &Lab, label: &str) -> Result<Built, VersusError> {
    let Some(programs) = Programs::find() else {
        let note = "ovs-vswitchd is not installed (apt-get install openvswitch-switch)";
        return Ok(Built::LeftOut(note.to_owned()));
    };
    let machines = Machines::new(lab, label)?;
    carry_out(async {
        machines.wire_outside().await?;
        machines.wire_containers().await?;
        machines.name_gateway(MAC_ROUTER).await
    })?;
    let directory = lab.directory().join(label);
    std::fs::create_dir(&directory).map_err(io(format!("create {}", directory.display())))?;
    let pid = start(lab, &machines, &programs, &directory)?;
    configure(&machines, &programs, &directory)?;
    let counting = Counting {
        program: programs.appctl,
        arguments: vec![
            format!("--target={}", control_socket(&directory).display()),
            "dpctl/ct-get-nconns".to_owned(),
        ],
        read: |answer| answer.trim().parse().ok(),
    };
    Ok(Built::Ready(Contender {
        kind: Kind::Ovs,
        machines,
        process: Some(pid),
        counting: Some(counting),
    }))
}

fn control_socket(directory: &Path) -> PathBuf {
    directory.join("ovs-vswitchd.ctl")
}

fn database_socket(directory: &Path) -> String {
    format!("unix:{}", directory.join("db.sock").display())
}

/// Starts database and switch; the switch's process is the one that counts.
fn start(
    lab: &Lab,
    machines: &Machines,
    programs: &Programs,
    directory: &Path,
) -> Result<u32, VersusError> {
    let command = |program: &Path| {
        let mut command = Command::new(program);
        // Whatever the programs want to write, they write here.
        for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, directory);
        }
        command
    };
    let data = std::env::var_os(DATA_DIR_VARIABLE).unwrap_or_else(|| DATA_DIR.into());
    let database = directory.join("conf.db");
    let mut tool = command(&programs.tool);
    tool.arg("create").arg(&database).arg(Path::new(&data).join("vswitch.ovsschema"));
    programs::run(&machines.host, tool, "")?;

    let mut server = command(&programs.database);
    server
        .arg(&database)
        .arg(format!("--remote=p{}", database_socket(directory)))
        .arg(format!("--unixctl={}", directory.join("ovsdb.ctl").display()));
    programs::start(lab, &machines.host, server, &directory.join("ovsdb.log"))?;
    wait_for(&directory.join("db.sock"))?;

    let mut vsctl = command(&programs.vsctl);
    // Must be known before the switch starts.
    vsctl.arg(format!("--db={}", database_socket(directory))).args([
        "--no-wait",
        "init",
        "--",
        "set",
        "Open_vSwitch",
        ".",
        "other_config:userspace-tso-enable=true",
    ]);
    programs::run(&machines.host, vsctl, "")?;

    let mut switch = command(&programs.switch);
    switch
        .arg(database_socket(directory))
        .arg(format!("--unixctl={}", control_socket(directory).display()));
    let pid = programs::start(lab, &machines.host, switch, &directory.join("ovs-vswitchd.log"))?;
    wait_for(&control_socket(directory))?;
    Ok(pid)
}

fn wait_for(socket: &Path) -> Result<(), VersusError> {
    let deadline = Instant::now() + START_TIMEOUT;
    while !socket.exists() {
        if Instant::now() >= deadline {
            let text = format!("Open vSwitch does not make {}", socket.display());
            return Err(VersusError::Program(text));
        }
        thread::sleep(START_POLL);
    }
    Ok(())
}

fn configure(
    machines: &Machines,
    programs: &Programs,
    directory: &Path,
) -> Result<(), VersusError> {
    let mut vsctl = Command::new(&programs.vsctl);
    vsctl.arg(format!("--db={}", database_socket(directory))).arg("--timeout=10").args([
        "add-br",
        "br0",
        "--",
        "set",
        "bridge",
        "br0",
        "datapath_type=netdev",
    ]);
    for (port, number) in PORTS.into_iter().chain([UPLINK]).zip(NUMBERS) {
        vsctl.args(["--", "add-port", "br0", port]);
        vsctl.args(["--", "set", "interface", port, &format!("ofport_request={number}")]);
    }
    programs::run(&machines.host, vsctl, "")?;
    let mut ofctl = Command::new(&programs.ofctl);
    ofctl.args(["--bundle", "replace-flows"]);
    ofctl.arg(format!("unix:{}", directory.join("br0.mgmt").display())).arg("-");
    programs::run(&machines.host, ofctl, &flows())?;
    Ok(())
}

/// Frames to the router are tracked and translated, all others are switched. Only new connections
/// are committed.
fn flows() -> String {
    let [a, b, uplink] = NUMBERS;
    let router = |to: Mac| format!("mod_dl_src:{MAC_ROUTER},mod_dl_dst:{to},dec_ttl");
    let to_outside = router(MAC_OUTSIDE);
    let mut text = "table=0,priority=0 actions=NORMAL\n".to_owned();
    let families = [
        ("ip", "tcp", "nw_dst", [HOST.to_string(), A.to_string(), B.to_string()]),
        // Addresses with colons stand in brackets where a port follows.
        ("ipv6", "tcp6", "ipv6_dst", [HOST6.to_string(), A6.to_string(), B6.to_string()]),
    ];
    for (ip, tcp, destination, [host, a_address, b_address]) in families {
        let bracketed = |address: &str| {
            if ip == "ip" { address.to_owned() } else { format!("[{address}]") }
        };
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "table=0,priority=10,{ip},dl_dst={MAC_ROUTER} actions=ct(zone=1,nat,table=1)\n\
             table=1,priority=20,ct_state=+trk+new,in_port={uplink},{tcp},{destination}={host},tp_dst={PUBLISHED} \
             actions=ct(commit,zone=1,nat(dst={to}:{PUBLISHED})),{to_b},output:{b}\n",
            to = bracketed(&b_address),
            to_b = router(MAC_B),
        );
        for port in [a, b] {
            let _ = write!(
                text,
                "table=1,priority=10,ct_state=+trk+new,in_port={port},{ip} \
                 actions=ct(commit,zone=1,nat(src={from}:1024-65535)),{to_outside},output:{uplink}\n\
                 table=1,priority=10,ct_state=+trk-new-inv,in_port={port},{ip} \
                 actions={to_outside},output:{uplink}\n",
                from = bracketed(&host),
            );
        }
        for (port, address, mac) in [(a, a_address, MAC_A), (b, b_address, MAC_B)] {
            let _ = writeln!(
                text,
                "table=1,priority=10,ct_state=+trk-new-inv,in_port={uplink},{ip},{destination}={address} \
                 actions={to},output:{port}",
                to = router(mac),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_connections_are_committed() {
        let flows = flows();
        for line in flows.lines() {
            assert_eq!(line.contains("commit"), line.contains("+new"), "{line}");
        }
        assert_eq!(flows.lines().count(), 1 + 2 * 8);
    }
}
