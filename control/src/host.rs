//! What the host looks like now: its interfaces, IPv4 addresses and routes.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::error::{Result, ResultExt};
use crate::netlink::{Handle, Link, Route};

/// A reading of the host's tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Interfaces.
    pub links: Vec<Link>,
    /// IPv4 addresses with their prefixes, by interface index.
    pub addresses: Vec<(u32, Ipv4Net)>,
    /// IPv4 routes that lead somewhere.
    pub routes: Vec<Route>,
    /// The default route with the lowest metric.
    pub default_route: Option<Route>,
}

impl HostFacts {
    /// Reads the tables.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn read(netlink: &Handle) -> Result<Self> {
        let context = "read the host's interfaces and routes";
        let links = netlink.links().await.failed(context)?;
        let addresses = netlink.addresses(None).await.failed(context)?;
        let mut routes = netlink.routes().await.failed(context)?;
        routes.retain(|route| route.unicast);
        let default_route = netlink.default_route().await.failed(context)?;
        let addresses = addresses
            .into_iter()
            .filter_map(|address| match address.net {
                IpNet::V4(net) => Some((address.link, net)),
                IpNet::V6(_) => None,
            })
            .collect();
        Ok(Self { links, addresses, routes, default_route })
    }

    /// The interface of that name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The interface with that index.
    #[must_use]
    pub fn link_by_index(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// IPv4 addresses of an interface.
    #[must_use]
    pub fn addresses_of(&self, index: u32) -> Vec<Ipv4Net> {
        self.addresses.iter().filter(|(link, _)| *link == index).map(|(_, net)| *net).collect()
    }

    /// Addresses at which the host's stack answers to others: all but loopback's.
    #[must_use]
    pub fn host_addresses(&self) -> Vec<Ipv4Addr> {
        self.addresses.iter().map(|(_, net)| net.addr()).filter(|ip| !ip.is_loopback()).collect()
    }

    /// The interface that has this very address.
    #[must_use]
    pub fn link_with(&self, address: Ipv4Addr) -> Option<&Link> {
        let (index, _) = self.addresses.iter().find(|(_, net)| net.addr() == address)?;
        self.link_by_index(*index)
    }

    /// The name of the interface that carries the default route.
    #[must_use]
    pub fn default_interface(&self) -> Option<&str> {
        let index = self.default_route.as_ref()?.link?;
        self.link_by_index(index).map(|link| link.name.as_str())
    }

    /// The next hop of the default route by this interface, that with the lowest metric.
    #[must_use]
    pub fn gateway_of(&self, index: u32) -> Option<Ipv4Addr> {
        self.routes
            .iter()
            .filter(|route| route.destination.prefix_len() == 0 && route.link == Some(index))
            .min_by_key(|route| route.metric)
            .and_then(|route| match route.gateway {
                Some(IpAddr::V4(gateway)) => Some(gateway),
                _ => None,
            })
    }

    /// Prefixes that a network without `--subnet` keeps away from: everything the host has a route
    /// or an address in, the default route left out.
    #[must_use]
    pub fn prefixes(&self) -> Vec<Ipv4Net> {
        let routes = self.routes.iter().filter_map(|route| match route.destination {
            IpNet::V4(net) if net.prefix_len() > 0 => Some(net.trunc()),
            _ => None,
        });
        routes.chain(self.addresses.iter().map(|(_, net)| net.trunc())).collect()
    }
}
