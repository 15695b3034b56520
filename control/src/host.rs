//! What the host looks like now: its interfaces, addresses and routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::error::{Result, ResultExt};
use crate::netlink::{Handle, Link, LinkAddress, Route, Standing};

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
    /// What it is good for.
    pub standing: Standing,
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
        for LinkAddress { link, net, standing } in addresses {
            match net {
                IpNet::V4(net) => v4.push((link, net)),
                IpNet::V6(net) if net.addr().is_unicast_link_local() => {}
                IpNet::V6(net) => v6.push(HostAddress6 { link, net, standing }),
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

    /// IPv6 addresses of an interface, those to speak from first: lasting ones, global ones before
    /// unique local ones (RFC 4193), older ones before newer ones. None of which it is in doubt whose it
    /// is, and none at all if there are only temporary ones.
    #[must_use]
    pub fn addresses6_of(&self, index: u32) -> Vec<Ipv6Net> {
        let own = |own: &&HostAddress6| own.link == index && own.standing != Standing::Doubtful;
        // The kernel lists the newest first.
        let mut own: Vec<HostAddress6> =
            self.addresses6.iter().rev().filter(own).copied().collect();
        own.sort_by_key(|own| (own.standing, own.net.addr().is_unique_local()));
        if own.first().is_some_and(|best| best.standing == Standing::Temporary) {
            own.clear();
        }
        own.into_iter().map(|own| own.net).collect()
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

    /// The name of the interface that carries the default route: that of IPv4, or of IPv6 where there is
    /// no other.
    #[must_use]
    pub fn default_interface(&self) -> Option<&str> {
        let route = self.default_route.as_ref().or_else(|| self.default_route6())?;
        self.link_by_index(route.link?).map(|link| link.name.as_str())
    }

    /// The IPv6 default route of the main table with the lowest metric.
    fn default_route6(&self) -> Option<&Route> {
        let default = |route: &&Route| {
            route.destination.prefix_len() == 0
                && route.destination.addr().is_ipv6()
                && route.table == Route::MAIN_TABLE
                && route.gateway.is_some()
                && route.link.is_some()
        };
        self.routes.iter().filter(default).min_by_key(|route| route.metric)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn host(addresses: &[(&str, Standing)]) -> HostFacts {
        let own = |(net, standing): &(&str, Standing)| HostAddress6 {
            link: 1,
            net: net.parse().unwrap(),
            standing: *standing,
        };
        // As the kernel lists them.
        let addresses6 = addresses.iter().rev().map(own).collect();
        HostFacts { addresses6, ..HostFacts::default() }
    }

    #[test]
    fn the_address_to_speak_from_comes_first() {
        let all = [
            ("2001:db8::7/64", Standing::Doubtful),
            ("2001:db8::6/64", Standing::Temporary),
            ("fd00::5/64", Standing::Lasting),
            ("2001:db8::4/64", Standing::Deprecated),
            ("2001:db8::3/64", Standing::Lasting),
            ("2001:db8::2/128", Standing::Lasting),
        ];
        let best = |addresses: &[(&str, Standing)]| -> Vec<String> {
            let own = host(addresses).addresses6_of(1);
            own.iter().map(|net| net.addr().to_string()).collect()
        };
        let order = ["2001:db8::3", "2001:db8::2", "fd00::5", "2001:db8::4", "2001:db8::6"];
        assert_eq!(best(&all), order);
        // What is deprecated is better than nothing; temporary ones and doubts are not.
        assert_eq!(best(&all[3..4]), ["2001:db8::4"]);
        assert_eq!(best(&all[..2]), Vec::<String>::new());
        assert_eq!(host(&all).addresses6_of(2), []);
    }

    #[test]
    fn a_default_route_of_ipv6_alone_is_a_way_out() {
        let route = |destination: &str, gateway: &str, link, metric| Route {
            destination: destination.parse().unwrap(),
            gateway: Some(gateway.parse().unwrap()),
            link: Some(link),
            source: None,
            metric,
            table: Route::MAIN_TABLE,
            unicast: true,
            protocol: 9,
        };
        let link = |index, name: &str| Link {
            index,
            name: name.to_owned(),
            mac: None,
            mtu: 1500,
            up: true,
            carrier: true,
            carrier_ups: 1,
            loopback: false,
            ethernet: true,
            kind: None,
            controller: None,
            alias: None,
            far: None,
        };
        let mut host = HostFacts {
            links: vec![link(1, "wan0"), link(2, "wan1"), link(3, "wan2")],
            routes: vec![
                route("2001:db8::/32", "fe80::9", 3, 1),
                route("::/0", "fe80::2", 2, 2048),
                route("::/0", "fe80::1", 1, 1024),
            ],
            ..HostFacts::default()
        };
        assert_eq!(host.default_interface(), Some("wan0"));
        assert_eq!(host.gateway6_of(2), Some("fe80::2".parse().unwrap()));
        host.default_route = Some(route("0.0.0.0/0", "192.0.2.1", 3, 0));
        assert_eq!(host.default_interface(), Some("wan2"));
        host.default_route = None;
        host.routes.truncate(1);
        assert_eq!(host.default_interface(), None);
    }
}
