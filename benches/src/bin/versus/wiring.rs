//! Machines, links and addresses, the same for every contender.
//!
//! ```text
//! A .2 --\
//!         +-- switch, 10.77.0.0/24 -- host 192.0.2.1 ---- outside 192.0.2.254
//! B .3 --/            published: 192.0.2.1:5000 -> B:5000
//! ```
//!
//! The same in IPv6: fd00:77::/64, 2001:db8::1 and 2001:db8::254.
//!
//! Outside is the host's default gateway and has no route to any inside address: without NAT nothing
//! comes back. What A sends to [`NOWHERE`] reaches outside and ends there without an answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use control::lab::Lab;
use control::netlink::{Handle, IfExists, LinkChange, RouteSpec};
use control::netns::{self, Netns};
use dataplane::packet::types::Mac;
use ipnet::IpNet;

use crate::error::{VersusError, io};

pub(crate) const SUBNET: &str = "10.77.0.0/24";
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(crate) const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
pub(crate) const SUBNET6: &str = "fd00:77::/64";
pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1);
pub(crate) const A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2);
pub(crate) const B6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 3);
/// RFC 5737 TEST-NET-1: the wire between host and outside.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
/// RFC 3849: the same wire.
pub(crate) const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub(crate) const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x254);
/// RFC 5737 TEST-NET-3: nobody.
pub(crate) const NOWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
/// RFC 3849: nobody.
pub(crate) const NOWHERE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x80);
/// Where B is published on the host, and where B serves.
pub(crate) const PUBLISHED: u16 = 5000;
const PREFIX: u8 = 24;
const PREFIX6: u8 = 64;

/// The host's end of the wire.
pub(crate) const UPLINK: &str = "uplink0";
/// The host's ends of what leads to A and B, where the contender has such.
pub(crate) const PORTS: [&str; 2] = ["port-a", "port-b"];

pub(crate) const MAC_A: Mac = Mac([2, 0x42, 10, 77, 0, 2]);
pub(crate) const MAC_B: Mac = Mac([2, 0x42, 10, 77, 0, 3]);
pub(crate) const MAC_HOST: Mac = Mac([2, 0x42, 192, 0, 2, 1]);
pub(crate) const MAC_OUTSIDE: Mac = Mac([2, 0x42, 192, 0, 2, 254]);

/// The namespaces of one contender.
#[derive(Debug)]
pub(crate) struct Machines {
    /// Holds the switch.
    pub host: Netns,
    /// A container.
    pub a: Netns,
    /// Another one, with a published port.
    pub b: Netns,
    /// Beyond the host's uplink.
    pub outside: Netns,
    paths: [PathBuf; 2],
}

impl Machines {
    /// Makes them, without links, under names that begin with `label`.
    pub(crate) fn new(lab: &Lab, label: &str) -> Result<Self, VersusError> {
        let role = |role: &str| format!("{label}-{role}");
        let path = |name: &str| netns::path_of(&lab.name_of(&role(name)));
        Ok(Self {
            host: lab.machine(&role("host"))?,
            a: lab.machine(&role("a"))?,
            b: lab.machine(&role("b"))?,
            outside: lab.machine(&role("outside"))?,
            paths: [path("a")?, path("b")?],
        })
    }

    /// Where the namespaces of A and B are.
    pub(crate) fn paths(&self) -> &[PathBuf; 2] {
        &self.paths
    }

    /// Joins host and outside; the host has its address and its default route.
    pub(crate) async fn wire_outside(&self) -> Result<(), VersusError> {
        let host = Handle::open_in(&self.host)?;
        let outside = Handle::open_in(&self.outside)?;
        let (ours, theirs) =
            (LinkChange::new().up().mac(MAC_HOST), LinkChange::new().mac(MAC_OUTSIDE));
        host.add_veth(UPLINK, &ours, "eth0", &theirs, &self.outside).await?;
        let eth0 = outside.link_by_name("eth0").await?.index;
        outside.change_link(eth0, &LinkChange::new().up()).await?;
        for address in [OUTSIDE.into(), OUTSIDE6.into()] {
            outside.add_address(eth0, net(address)?, IfExists::Fail).await?;
        }
        let uplink = host.link_by_name(UPLINK).await?.index;
        for (address, gateway) in
            [(HOST.into(), OUTSIDE.into()), (HOST6.into(), IpAddr::V6(OUTSIDE6))]
        {
            host.add_address(uplink, net(address)?, IfExists::Fail).await?;
            host.add_route(&RouteSpec::default_via(gateway, uplink), IfExists::Fail).await?;
        }
        Ok(())
    }

    /// Gives A and B an `eth0` with address and default route, whose other ends are the host's
    /// [`PORTS`].
    pub(crate) async fn wire_containers(&self) -> Result<(), VersusError> {
        let host = Handle::open_in(&self.host)?;
        let containers = [(&self.a, MAC_A), (&self.b, MAC_B)];
        for (port, (machine, mac)) in PORTS.into_iter().zip(containers) {
            let theirs = LinkChange::new().mac(mac);
            host.add_veth(port, &LinkChange::new().up(), "eth0", &theirs, machine).await?;
        }
        self.address_containers().await
    }

    /// Gives the `eth0` of A and of B its address and default route.
    pub(crate) async fn address_containers(&self) -> Result<(), VersusError> {
        for (machine, addresses) in [(&self.a, (A, A6)), (&self.b, (B, B6))] {
            let inside = Handle::open_in(machine)?;
            let eth0 = inside.link_by_name("eth0").await?.index;
            inside.change_link(eth0, &LinkChange::new().up()).await?;
            let both =
                [(addresses.0.into(), GATEWAY.into()), (addresses.1.into(), IpAddr::V6(GATEWAY6))];
            for (address, gateway) in both {
                inside.add_address(eth0, net(address)?, IfExists::Fail).await?;
                inside.add_route(&RouteSpec::default_via(gateway, eth0), IfExists::Fail).await?;
            }
        }
        Ok(())
    }

    /// Puts the host's ports into a bridge of the kernel that has the gateway's address.
    pub(crate) async fn bridge(&self, name: &str) -> Result<(), VersusError> {
        let host = Handle::open_in(&self.host)?;
        host.add_bridge(name, &LinkChange::new().up()).await?;
        let bridge = host.link_by_name(name).await?.index;
        for address in [GATEWAY.into(), GATEWAY6.into()] {
            host.add_address(bridge, net(address)?, IfExists::Fail).await?;
        }
        for port in PORTS {
            let index = host.link_by_name(port).await?.index;
            host.change_link(index, &LinkChange::new().controller(bridge)).await?;
        }
        Ok(())
    }

    /// For a switch that answers no ARP: who is behind the gateway's and the host's addresses.
    pub(crate) async fn name_gateway(&self, mac: Mac) -> Result<(), VersusError> {
        let inside = [GATEWAY.into(), IpAddr::V6(GATEWAY6)];
        let outside = [HOST.into(), IpAddr::V6(HOST6)];
        for (machine, addresses) in [(&self.a, inside), (&self.b, inside), (&self.outside, outside)]
        {
            let handle = Handle::open_in(machine)?;
            let eth0 = handle.link_by_name("eth0").await?.index;
            for address in addresses {
                handle.set_neighbor(eth0, address, mac).await?;
            }
        }
        Ok(())
    }
}

/// Carries out what waits for netlink. Its connections end with it: they would keep namespaces alive.
pub(crate) fn carry_out<T>(
    work: impl Future<Output = Result<T, VersusError>>,
) -> Result<T, VersusError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io("start the async runtime"))?;
    runtime.block_on(work)
}

fn net(address: IpAddr) -> Result<IpNet, VersusError> {
    let prefix = if address.is_ipv4() { PREFIX } else { PREFIX6 };
    IpNet::new(address, prefix)
        .map_err(|error| VersusError::Program(format!("address {address}/{prefix}: {error}")))
}
