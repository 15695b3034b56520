//! Links and addresses between the demo's machines: the wire to the outside, and the kernel's own
//! bridge with NAT that ours is compared with.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use super::{DemoError, nft};
use crate::lab::Lab;
use crate::netlink::{Handle, IfExists, LinkChange, RouteSpec};
use crate::netns::Netns;

/// The uplink's name on both hosts.
pub(super) const UPLINK: &str = "uplink0";
/// RFC 5737 TEST-NET-1: the wire between host and outside.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const WIRE_PREFIX: u8 = 24;
/// RFC 5737 TEST-NET-3: a server somewhere beyond the first hop.
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
/// The kernel bridge's subnet, which no other machine knows.
const KERNEL_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
const KERNEL_HOSTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 255, 0, 2), Ipv4Addr::new(10, 255, 0, 3)];
const KERNEL_PREFIX: u8 = 24;

/// Joins a host's uplink and an outside machine by a veth pair. The outside machine is the host's
/// default gateway, has [`SERVER`] as an address of its own, and no route to any inside address:
/// without NAT nothing comes back.
pub(super) async fn wire_outside(host: &Netns, outside: &Netns) -> Result<(), DemoError> {
    let (ours, theirs) = (Handle::open_in(host)?, Handle::open_in(outside)?);
    let up = LinkChange::new().up();
    ours.add_veth(UPLINK, &up, "eth0", &LinkChange::new(), outside).await?;
    let uplink = ours.link_by_name(UPLINK).await?.index;
    let eth0 = theirs.link_by_name("eth0").await?.index;
    theirs.change_link(eth0, &up).await?;
    let lo = theirs.link_by_name("lo").await?.index;
    ours.add_address(uplink, net(HOST, WIRE_PREFIX)?, IfExists::Fail).await?;
    theirs.add_address(eth0, net(ROUTER, WIRE_PREFIX)?, IfExists::Fail).await?;
    theirs.add_address(lo, net(SERVER, 32)?, IfExists::Fail).await?;
    ours.add_route(&RouteSpec::default_via(ROUTER, uplink), IfExists::Fail).await?;
    Ok(())
}

/// The same as the demo's network, built of the kernel's parts: bridge, veth pairs, nf_tables
/// masquerade.
#[derive(Debug)]
pub(super) struct KernelSwitch {
    /// Two machines on the bridge.
    pub machines: [Netns; 2],
    /// The second one's address.
    pub peer: Ipv4Addr,
    /// The outside machine, at [`SERVER`].
    pub outside: Netns,
    // Holds the bridge.
    _host: Netns,
}

impl KernelSwitch {
    pub(super) async fn build(lab: &Lab) -> Result<Self, DemoError> {
        let host = lab.machine("kernel-host")?;
        let outside = lab.machine("kernel-outside")?;
        let machines = [lab.machine("kernel-a")?, lab.machine("kernel-b")?];
        wire_outside(&host, &outside).await?;

        let handle = Handle::open_in(&host)?;
        handle.add_bridge("br0", &LinkChange::new().up()).await?;
        let bridge = handle.link_by_name("br0").await?.index;
        handle.add_address(bridge, net(KERNEL_GATEWAY, KERNEL_PREFIX)?, IfExists::Fail).await?;
        for (machine, (port, address)) in
            machines.iter().zip(["port0", "port1"].into_iter().zip(KERNEL_HOSTS))
        {
            let up = LinkChange::new().up();
            handle.add_veth(port, &up, "eth0", &LinkChange::new(), machine).await?;
            let index = handle.link_by_name(port).await?.index;
            handle.change_link(index, &LinkChange::new().controller(bridge)).await?;
            let inside = Handle::open_in(machine)?;
            let eth0 = inside.link_by_name("eth0").await?.index;
            inside.change_link(eth0, &up).await?;
            inside.add_address(eth0, net(address, KERNEL_PREFIX)?, IfExists::Fail).await?;
            inside.add_route(&RouteSpec::default_via(KERNEL_GATEWAY, eth0), IfExists::Fail).await?;
        }
        host.write_sysctl("net/ipv4/ip_forward", "1")?;
        // The kernel at its best: bridged frames need not pass its firewall. The setting is there
        // only where br_netfilter is.
        if let Ok(value) = host.read_sysctl("net/bridge/bridge-nf-call-iptables")
            && value != "0"
        {
            host.write_sysctl("net/bridge/bridge-nf-call-iptables", "0")?;
        }
        host.run(|| nft::masquerade(UPLINK))?.map_err(|source| DemoError::Io {
            action: "set up the kernel's masquerading (nf_tables)".to_owned(),
            source,
        })?;
        Ok(Self { machines, peer: KERNEL_HOSTS[1], outside, _host: host })
    }
}

fn net(address: Ipv4Addr, prefix: u8) -> Result<IpNet, DemoError> {
    Ipv4Net::new(address, prefix).map(IpNet::V4).map_err(|error| DemoError::Io {
        action: format!("address {address}/{prefix}"),
        source: std::io::Error::other(error),
    })
}
