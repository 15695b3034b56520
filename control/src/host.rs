//! What the host looks like now: its interfaces, addresses and routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::error::{Result, ResultExt};
use crate::netlink::{Handle, Link, LinkAddress, Route};

/// A reading of the host's tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Interfaces.
    pub links: Vec<Link>,
    /// IPv4 addresses with their prefixes, by interface index.
    pub addresses: Vec<(u32, Ipv4Net)>,
    /// The same of IPv6, without link-local ones, which are those of one wire only.
    pub addresses6: Vec<HostAddress6>,
    /// Routes that lead somewhere, of both families.
    pub routes: Vec<Route>,
    /// The IPv4 default route with the lowest metric.
    pub default_route: Option<Route>,
}

/// An IPv6 address of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostAddress6 {
    /// Index of its interface.
    pub link: u32,
    /// Address and prefix.
    pub net: Ipv6Net,
    /// As [`LinkAddress::lasting`].
    pub lasting: bool,
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
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for LinkAddress { link, net, lasting } in addresses {
            match net {
                IpNet::V4(net) => v4.push((link, net)),
                IpNet::V6(net) if net.addr().is_unicast_link_local() => {}
                IpNet::V6(net) => v6.push(HostAddress6 { link, net, lasting }),
            }
        }
        Ok(Self { links, addresses: v4, addresses6: v6, routes, default_route })
    }

    /// Addresses of both families with their prefixes, by interface index.
    pub fn nets(&self) -> impl Iterator<Item = (u32, IpNet)> {
        let v4 = self.addresses.iter().map(|(link, net)| (*link, IpNet::V4(*net)));
        v4.chain(self.addresses6.iter().map(|own| (own.link, IpNet::V6(own.net))))
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

    /// IPv6 addresses of an interface that last.
    #[must_use]
    pub fn addresses6_of(&self, index: u32) -> Vec<Ipv6Net> {
        let own = self.addresses6.iter().filter(|own| own.link == index && own.lasting);
        own.map(|own| own.net).collect()
    }

    /// Addresses at which the host's stack answers to others: all but loopback's.
    #[must_use]
    pub fn host_addresses(&self) -> Vec<IpAddr> {
        self.nets().map(|(_, net)| net.addr()).filter(|ip| !ip.is_loopback()).collect()
    }

    /// The interface that has this very address.
    #[must_use]
    pub fn link_with(&self, address: IpAddr) -> Option<&Link> {
        let (index, _) = self.nets().find(|(_, net)| net.addr() == address)?;
        self.link_by_index(index)
    }

    /// The name of the interface that carries the default route.
    #[must_use]
    pub fn default_interface(&self) -> Option<&str> {
        let index = self.default_route.as_ref()?.link?;
        self.link_by_index(index).map(|link| link.name.as_str())
    }

    /// The next hop of the IPv4 default route by this interface, that with the lowest metric.
    #[must_use]
    pub fn gateway_of(&self, index: u32) -> Option<Ipv4Addr> {
        match self.next_hop(index, |destination| destination.is_ipv4())? {
            IpAddr::V4(gateway) => Some(gateway),
            IpAddr::V6(_) => None,
        }
    }

    /// The same of IPv6.
    #[must_use]
    pub fn gateway6_of(&self, index: u32) -> Option<Ipv6Addr> {
        match self.next_hop(index, |destination| destination.is_ipv6())? {
            IpAddr::V4(_) => None,
            IpAddr::V6(gateway) => Some(gateway),
        }
    }

    fn next_hop(&self, index: u32, family: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        self.routes
            .iter()
            .filter(|route| route.destination.prefix_len() == 0 && route.link == Some(index))
            .filter(|route| family(route.destination.addr()))
            .min_by_key(|route| route.metric)?
            .gateway
    }

    /// Prefixes that a network without `--subnet` keeps away from: everything the host has a route
    /// or an address in, the default route left out.
    #[must_use]
    pub fn prefixes(&self) -> Vec<IpNet> {
        let routes = self.routes.iter().map(|route| route.destination);
        let routes = routes.filter(|net| net.prefix_len() > 0);
        routes.chain(self.nets().map(|(_, net)| net)).map(|net| net.trunc()).collect()
    }
}
