//! Routes and neighbors of the host's own stack.

use std::net::{IpAddr, Ipv4Addr};

use dataplane::packet::types::Mac;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Handle, IfExists, NetlinkError, family_of};

/// A route as the kernel holds it. Of a multipath route: the first next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Next hop; `None`: on link.
    pub gateway: Option<IpAddr>,
    /// Index of the link it leaves by.
    pub link: Option<u32>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Lower wins.
    pub metric: u32,
    /// Table number; 254 is `main`.
    pub table: u32,
    /// Leads somewhere (is not `blackhole`, `local`, …).
    pub unicast: bool,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
}

impl Route {
    /// The number of the table that routes are in unless somebody says otherwise.
    pub const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

    /// Reads a route message; `None` for families other than IP.
    #[must_use]
    pub fn parse(message: &RouteMessage) -> Option<Self> {
        let any = match message.header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let length = message.header.destination_prefix_length;
        let mut route = Self {
            destination: IpNet::new(any, length).ok()?,
            gateway: None,
            link: None,
            source: None,
            metric: 0,
            table: u32::from(message.header.table),
            unicast: message.header.kind == RouteType::Unicast,
            protocol: u8::from(message.header.protocol),
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    route.destination = IpNet::new(ip_of(address)?, length).ok()?;
                }
                RouteAttribute::Oif(index) => route.link = Some(*index),
                RouteAttribute::Gateway(address) => route.gateway = ip_of(address),
                RouteAttribute::PrefSource(address) => route.source = ip_of(address),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::MultiPath(hops) => {
                    if let Some(hop) = hops.first() {
                        route.link = Some(hop.interface_index);
                        route.gateway = gateway_of(hop);
                    }
                }
                _ => {}
            }
        }
        Some(route)
    }
}

/// A route to make or to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteSpec {
    /// Destination.
    pub destination: IpNet,
    /// Next hop; `None`: on link.
    pub gateway: Option<IpAddr>,
    /// Index of the link; `None`: found by the gateway.
    pub link: Option<u32>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Lower wins; `None`: 0.
    pub metric: Option<u32>,
}

impl RouteSpec {
    /// The default route of the gateway's family.
    #[must_use]
    pub fn default_via(gateway: impl Into<IpAddr>, link: u32) -> Self {
        let gateway = gateway.into();
        Self {
            destination: match gateway {
                IpAddr::V4(_) => Ipv4Net::default().into(),
                IpAddr::V6(_) => Ipv6Net::default().into(),
            },
            gateway: Some(gateway),
            link: Some(link),
            source: None,
            metric: None,
        }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(self.destination.addr());
        message.header.destination_prefix_length = self.destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = match self.gateway {
            Some(_) => RouteScope::Universe,
            None => RouteScope::Link,
        };
        let attributes = &mut message.attributes;
        if self.destination.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(address_of(self.destination.network())));
        }
        attributes.extend(self.gateway.map(|ip| RouteAttribute::Gateway(address_of(ip))));
        attributes.extend(self.link.map(RouteAttribute::Oif));
        attributes.extend(self.source.map(|ip| RouteAttribute::PrefSource(address_of(ip))));
        attributes.extend(self.metric.map(RouteAttribute::Priority));
        message
    }
}

/// An entry of the kernel's own neighbor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbor {
    /// Index of the link.
    pub link: u32,
    /// Address.
    pub address: IpAddr,
    /// MAC, once resolved.
    pub mac: Option<Mac>,
    /// The kernel may send to it now.
    pub usable: bool,
}

impl Neighbor {
    fn parse(message: &NeighbourMessage) -> Option<Self> {
        let mut address = None;
        let mut mac = None;
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    address = Some(IpAddr::V4(*ip));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    address = Some(IpAddr::V6(*ip));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
                }
                _ => {}
            }
        }
        let unusable = matches!(
            message.header.state,
            NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None
        );
        Some(Self {
            link: message.header.ifindex,
            address: address?,
            mac,
            usable: !unusable && mac.is_some(),
        })
    }
}

impl Handle {
    /// Every route of every table, those of IPv4 first.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = self.routes_of(AddressFamily::Inet).await?;
        routes.retain(|route| route.destination.addr().is_ipv4());
        let v6 = self.routes_of(AddressFamily::Inet6).await?;
        // A kernel without IPv6 answers with all that it has.
        routes.extend(v6.into_iter().filter(|route| route.destination.addr().is_ipv6()));
        Ok(routes)
    }

    async fn routes_of(&self, family: AddressFamily) -> Result<Vec<Route>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let answers = self.dump("list routes", RouteNetlinkMessage::GetRoute(message)).await?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => Route::parse(message),
                _ => None,
            })
            .collect())
    }

    /// The IPv4 default route of the main table with the lowest metric.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn default_route(&self) -> Result<Option<Route>, NetlinkError> {
        self.default_route_to(Ipv4Addr::UNSPECIFIED.into()).await
    }

    /// As [`Self::default_route`], of the family of `any`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn default_route_to(&self, any: IpAddr) -> Result<Option<Route>, NetlinkError> {
        let mut routes = self.routes().await?;
        routes.retain(|route| {
            route.destination.prefix_len() == 0
                && route.destination.addr().is_ipv4() == any.is_ipv4()
                && route.unicast
                && route.link.is_some()
                && route.table == Route::MAIN_TABLE
        });
        Ok(routes.into_iter().min_by_key(|route| route.metric))
    }

    /// The route a packet to `destination` would take.
    ///
    /// # Errors
    /// When there is none ([`NetlinkError::Refused`] with `ENETUNREACH` or the code of the route
    /// that forbids it).
    pub async fn route_to(&self, destination: IpAddr) -> Result<Route, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(destination);
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(address_of(destination)));
        let action = format!("look up the route to {destination}");
        match self.one(action.clone(), RouteNetlinkMessage::GetRoute(message)).await? {
            RouteNetlinkMessage::NewRoute(message) => {
                Route::parse(&message).ok_or(NetlinkError::Closed(action))
            }
            _ => Err(NetlinkError::Closed(action)),
        }
    }

    /// Makes a route.
    ///
    /// # Errors
    /// When it is there already and `if_exists` says so, or the gateway is not on link.
    pub async fn add_route(
        &self,
        route: &RouteSpec,
        if_exists: IfExists,
    ) -> Result<(), NetlinkError> {
        let action = format!("add route to {}", route.destination);
        let message = RouteNetlinkMessage::NewRoute(route.message());
        self.acked(action, message, if_exists.flags()).await
    }

    /// Removes a route.
    ///
    /// # Errors
    /// When there is none like it.
    pub async fn delete_route(&self, route: &RouteSpec) -> Result<(), NetlinkError> {
        let action = format!("delete route to {}", route.destination);
        self.acked(action, RouteNetlinkMessage::DelRoute(route.message()), 0).await
    }

    /// The kernel's neighbors, of every link or of one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn neighbors(&self, link: Option<u32>) -> Result<Vec<Neighbor>, NetlinkError> {
        let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let answers = self.dump("list neighbors", message).await?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) => Neighbor::parse(message),
                _ => None,
            })
            .filter(|neighbor| link.is_none_or(|index| neighbor.link == index))
            .collect())
    }

    /// Sets a permanent neighbor.
    ///
    /// # Errors
    /// When the link is gone.
    pub async fn set_neighbor(
        &self,
        link: u32,
        address: IpAddr,
        mac: Mac,
    ) -> Result<(), NetlinkError> {
        let mut message = neighbor_message(link, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let request = RouteNetlinkMessage::NewNeighbour(message);
        self.acked(format!("set neighbor {address}"), request, IfExists::Replace.flags()).await
    }

    /// Forgets a neighbor.
    ///
    /// # Errors
    /// When there is none.
    pub async fn delete_neighbor(&self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::DelNeighbour(neighbor_message(link, address));
        self.acked(format!("delete neighbor {address}"), request, 0).await
    }
}

fn neighbor_message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(address);
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }));
    message
}

fn address_of(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn gateway_of(hop: &RouteNextHop) -> Option<IpAddr> {
    hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip_of(address),
        _ => None,
    })
}
