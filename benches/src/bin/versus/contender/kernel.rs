//! The kernel's own bridge, veth pairs and nf_tables NAT, as Docker builds them.

use std::process::Command;

use control::lab::Lab;

use super::{Built, Contender, Kind};
use crate::error::VersusError;
use crate::programs;
use crate::wiring::{B, B6, HOST, HOST6, Machines, PUBLISHED, UPLINK, carry_out};

const BRIDGE: &str = "br0";
/// Settings of a namespace; there only where `br_netfilter` is.
const BRIDGE_NF: [&str; 2] =
    ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];

pub(super) fn build(kind: Kind, lab: &Lab, label: &str) -> Result<Built, VersusError> {
    let Some(nft) = programs::find("nft") else {
        return Ok(Built::LeftOut("nft is not installed (apt-get install nftables)".to_owned()));
    };
    let machines = Machines::new(lab, label)?;
    let seen_by_firewall = kind == Kind::BridgeNf;
    if BRIDGE_NF.iter().all(|key| machines.host.read_sysctl(key).is_ok()) {
        let value = if seen_by_firewall { "1" } else { "0" };
        for key in BRIDGE_NF {
            machines.host.write_sysctl(key, value)?;
        }
    } else if seen_by_firewall {
        let note = "this kernel has no br_netfilter (modprobe br_netfilter)";
        return Ok(Built::LeftOut(note.to_owned()));
    }
    carry_out(async {
        machines.wire_outside().await?;
        machines.wire_containers().await?;
        machines.bridge(BRIDGE).await
    })?;
    machines.host.write_sysctl("net/ipv4/ip_forward", "1")?;
    machines.host.write_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let mut command = Command::new(nft);
    command.args(["-f", "-"]);
    programs::run(&machines.host, command, &rules(seen_by_firewall))?;
    Ok(Built::Ready(Contender { kind, machines, process: None, counting: None }))
}

/// What `iptables -j MASQUERADE` and `-j DNAT` come to; `filtered`: with the checks of Docker's
/// FORWARD chain.
fn rules(filtered: bool) -> String {
    let both = [
        ("ip", HOST.to_string(), format!("{B}:{PUBLISHED}")),
        ("ip6", HOST6.to_string(), format!("[{B6}]:{PUBLISHED}")),
    ];
    let tables = both.map(|(family, host, to)| {
        let nat = format!(
            "table {family} nat {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat;
                    {family} daddr {host} tcp dport {PUBLISHED} dnat to {to}
                }}
                chain postrouting {{
                    type nat hook postrouting priority srcnat;
                    oifname \"{UPLINK}\" masquerade
                }}
            }}
            "
        );
        let filter = format!(
            "table {family} filter {{
                chain forward {{
                    type filter hook forward priority filter; policy drop;
                    oifname \"{BRIDGE}\" ct state related,established accept
                    iifname \"{BRIDGE}\" oifname != \"{BRIDGE}\" accept
                    iifname \"{BRIDGE}\" oifname \"{BRIDGE}\" accept
                    iifname != \"{BRIDGE}\" oifname \"{BRIDGE}\" ct status dnat accept
                }}
            }}
            "
        );
        if filtered { nat + &filter } else { nat }
    });
    tables.concat()
}
