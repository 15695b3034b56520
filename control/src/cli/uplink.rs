//! `vswitchctl uplink`, `route` and `neigh`.

use std::net::IpAddr;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::output::{Column, Reply, joined, or_dash};
use super::{Outcome, values};
use crate::api::client::{Client, segment};
use crate::api::types::{
    Neighbor, Route, RouteAdd, RouteKind, RouteRemove, Uplink, UplinkAdd, UplinkMode,
};
use crate::check;
use crate::error::{Error, Result};
use crate::publish::PortRange;

/// Verbs of uplinks.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add a way out
    Add(Add),
    /// List ways out
    #[command(visible_alias = "list")]
    Ls,
    /// Remove a way out; the interface is as before
    #[command(visible_alias = "remove")]
    Rm {
        /// Interface of the host
        #[arg(value_parser = values::interface)]
        interface: String,
    },
}

/// `uplink add`.
#[derive(Debug, Args)]
pub struct Add {
    /// Interface of the host
    #[arg(value_parser = values::interface)]
    interface: String,
    /// Who owns the interface's addresses
    #[arg(long, value_enum, default_value_t = Mode::Shared)]
    mode: Mode,
    /// Address with prefix length; with --mode dedicated, at least one
    #[arg(long = "address", value_name = "CIDR", value_parser = values::own_cidr)]
    addresses: Vec<IpNet>,
    /// Default next hop; one for each family
    #[arg(long = "gateway", value_name = "IP", value_parser = values::ip)]
    gateways: Vec<IpAddr>,
    /// Ports for SNAT
    #[arg(long, value_name = "FIRST-LAST")]
    nat_ports: Option<PortRange>,
}

/// [`UplinkMode`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// The host's stack; the daemon takes only what is its own
    Shared,
    /// The daemon alone
    Dedicated,
}

const COLUMNS: &[Column<Uplink>] = &[
    ("INTERFACE", |uplink| uplink.interface.clone()),
    ("MODE", |uplink| uplink.mode.to_string()),
    ("STATE", |uplink| if uplink.up { "up" } else { "down" }.to_owned()),
    ("MAC", |uplink| uplink.mac.to_string()),
    ("ADDRESSES", |uplink| joined(&uplink.addresses)),
    ("GATEWAY", |uplink| {
        let v4 = uplink.gateway.map(IpAddr::V4);
        joined(v4.into_iter().chain(uplink.gateway6.map(IpAddr::V6)))
    }),
    ("NAT PORTS", |uplink| joined(&uplink.nat_ports)),
    ("AUTOMATIC", |uplink| uplink.automatic.to_string()),
];

impl Command {
    pub(super) async fn run(self, client: &Client) -> Result<Outcome> {
        match self {
            Self::Add(add) => {
                let request = add.request()?;
                let uplink: Uplink = client.post("/v1/uplinks", &request).await?;
                Ok(Reply::done(&uplink, uplink.interface.as_str())?.into())
            }
            Self::Ls => {
                let uplinks: Vec<Uplink> = client.get("/v1/uplinks").await?;
                Ok(Reply::list(&uplinks, COLUMNS)?.into())
            }
            Self::Rm { interface } => {
                client.delete(&format!("/v1/uplinks/{}", segment(&interface))).await?;
                Ok(Reply::names(&[interface]).into())
            }
        }
    }
}

impl Add {
    fn request(self) -> Result<UplinkAdd> {
        let two = |family: &str| {
            let fault = format!("two gateways of {family}; give one");
            Error::invalid(fault).context(format_args!("uplink {:?}", self.interface))
        };
        let (mut gateway, mut gateway6) = (None, None);
        for given in &self.gateways {
            match given {
                IpAddr::V4(v4) if gateway.replace(*v4).is_some() => return Err(two("IPv4")),
                IpAddr::V6(v6) if gateway6.replace(*v6).is_some() => return Err(two("IPv6")),
                _ => {}
            }
        }
        let request = UplinkAdd {
            interface: self.interface,
            mode: match self.mode {
                Mode::Shared => UplinkMode::Shared,
                Mode::Dedicated => UplinkMode::Dedicated,
            },
            addresses: self.addresses,
            gateway,
            gateway6,
            nat_ports: self.nat_ports,
        };
        check::uplink(&request)?;
        Ok(request)
    }
}

/// Verbs of routes.
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// Add a static route
    Add(RouteArgs),
    /// List routes
    #[command(visible_alias = "list")]
    Ls,
    /// Remove a static route
    #[command(visible_alias = "remove")]
    Rm {
        /// Destination, or default
        #[arg(value_name = "CIDR", value_parser = values::destination)]
        destination: IpNet,
    },
}

/// `route add CIDR via IP [--uplink IFACE]`.
#[derive(Debug, Args)]
pub struct RouteArgs {
    /// Destination, or default
    #[arg(value_name = "CIDR", value_parser = values::destination)]
    destination: IpNet,
    /// The word via
    #[arg(value_name = "via", value_parser = ["via"], hide_possible_values = true)]
    _via: String,
    /// Next hop
    #[arg(value_name = "IP", value_parser = values::ip)]
    next_hop: IpAddr,
    /// The way out; left out, the one that reaches the next hop
    #[arg(long, value_name = "IFACE", value_parser = values::interface)]
    uplink: Option<String>,
}

const ROUTE_COLUMNS: &[Column<Route>] = &[
    ("DESTINATION", |route| route.destination.to_string()),
    ("VIA", |route| or_dash(route.via.as_ref())),
    ("UPLINK", |route| or_dash(route.uplink.as_ref())),
    ("NETWORK", |route| or_dash(route.network.as_ref())),
    ("KIND", |route| {
        match route.kind {
            RouteKind::Connected => "connected",
            RouteKind::Default => "default",
            RouteKind::Static => "static",
        }
        .to_owned()
    }),
];

impl RouteCommand {
    pub(super) async fn run(self, client: &Client) -> Result<Outcome> {
        match self {
            Self::Add(args) => {
                // `default` is that of the next hop's family.
                let any6 = args.next_hop.is_ipv6() && args.destination == Ipv4Net::default().into();
                let request = RouteAdd {
                    destination: if any6 { Ipv6Net::default().into() } else { args.destination },
                    via: args.next_hop,
                    uplink: args.uplink,
                };
                check::route(&request)?;
                let route: Route = client.post("/v1/routes", &request).await?;
                Ok(Reply::done(&route, "")?.into())
            }
            Self::Ls => {
                let routes: Vec<Route> = client.get("/v1/routes").await?;
                Ok(Reply::list(&routes, ROUTE_COLUMNS)?.into())
            }
            Self::Rm { destination } => {
                check::route_destination(&destination)?;
                let request = RouteRemove { destination };
                client.post::<()>("/v1/routes/remove", &request).await?;
                Ok(Reply::done(&request, "")?.into())
            }
        }
    }
}

/// Verbs of neighbors.
#[derive(Debug, Subcommand)]
pub enum NeighborCommand {
    /// List neighbors
    #[command(visible_aliases = ["ls", "list"])]
    Show,
}

const NEIGHBOR_COLUMNS: &[Column<Neighbor>] = &[
    ("ADDRESS", |neighbor| neighbor.address.to_string()),
    ("MAC", |neighbor| or_dash(neighbor.mac.as_ref())),
    ("NETWORK", |neighbor| or_dash(neighbor.network.as_ref())),
    ("UPLINK", |neighbor| or_dash(neighbor.uplink.as_ref())),
    ("AGE", |neighbor| format!("{}s", neighbor.age_s)),
];

impl NeighborCommand {
    pub(super) async fn run(self, client: &Client) -> Result<Outcome> {
        let Self::Show = self;
        let neighbors: Vec<Neighbor> = client.get("/v1/neighbors").await?;
        Ok(Reply::list(&neighbors, NEIGHBOR_COLUMNS)?.into())
    }
}
