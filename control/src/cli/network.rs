//! `vswitchctl network`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::output::{Column, Reply, joined};
use super::{Outcome, inspect, remove, values};
use crate::api::client::{Client, segment};
use crate::api::types::{
    ConnectRequest, DisconnectRequest, Driver, MacAddr, Network, NetworkCreate, NetworkEndpoint,
    Pruned,
};
use crate::check;
use crate::error::Result;
use crate::name::Name;

/// Verbs of networks.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a network
    Create(Box<Create>),
    /// List networks
    #[command(visible_alias = "list")]
    Ls,
    /// Show networks in full
    Inspect {
        /// Networks
        #[arg(required = true, value_name = "NAME", value_parser = values::network)]
        names: Vec<Name>,
    },
    /// Remove networks that nobody uses
    #[command(visible_alias = "remove")]
    Rm {
        /// Networks
        #[arg(required = true, value_name = "NAME", value_parser = values::network)]
        names: Vec<Name>,
    },
    /// Remove all networks that nobody uses
    Prune,
    /// Give a sandbox an interface in a network
    Connect(Connect),
    /// Take a sandbox's interface in a network away
    Disconnect {
        /// Network
        #[arg(value_parser = values::network)]
        network: Name,
        /// Sandbox
        #[arg(value_parser = values::sandbox)]
        sandbox: Name,
    },
}

/// `network create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Name of the network
    #[arg(value_parser = values::network)]
    name: Name,
    /// What makes it: bridge (macvlan, ipvlan and overlay are not built yet)
    #[arg(short, long, default_value = "bridge")]
    driver: Driver,
    /// Address range; left out, the next free one of the pools
    #[arg(long, value_name = "CIDR", value_parser = values::cidr)]
    subnet: Vec<IpNet>,
    /// Gateway's address; left out, the first of the subnet
    #[arg(long, value_name = "IP", value_parser = values::ip)]
    gateway: Vec<IpAddr>,
    /// Give out addresses of this part of the subnet only
    #[arg(long, value_name = "CIDR", value_parser = values::cidr)]
    ip_range: Vec<IpNet>,
    /// Never give out this address: something else has it
    #[arg(long, value_name = "NAME=IP", value_parser = values::aux_address)]
    aux_address: Vec<(String, IpAddr)>,
    /// No way out and no way in
    #[arg(long)]
    internal: bool,
    /// Give it an IPv6 range too
    #[arg(long)]
    ipv6: bool,
    /// Option of the driver, under its own or Docker's name
    #[arg(short = 'o', long = "opt", value_name = "KEY=VALUE", value_parser = values::key_value)]
    options: Vec<(String, String)>,
    /// Label
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::label)]
    labels: Vec<(String, String)>,
}

/// `network connect`.
#[derive(Debug, Args)]
pub struct Connect {
    /// Network
    #[arg(value_parser = values::network)]
    network: Name,
    /// Sandbox
    #[arg(value_parser = values::sandbox)]
    sandbox: Name,
    /// IPv4 address; left out, the next free one
    #[arg(long, value_parser = values::ipv4)]
    ip: Option<Ipv4Addr>,
    /// IPv6 address
    #[arg(long, value_name = "IP", value_parser = values::ipv6)]
    ip6: Option<Ipv6Addr>,
    /// MAC address; left out, made of the IPv4 address
    #[arg(long)]
    mac: Option<MacAddr>,
    /// One more name by which the network's other sandboxes find it
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<Name>,
    /// Option of the endpoint: trusted=true lets it be the network's DHCP server, IPv6 router or
    /// multicast querier, vlan=10 puts it into a VLAN, trunk=10,20-30 gives it several, tagged
    #[arg(short = 'o', long = "opt", value_name = "KEY=VALUE", value_parser = values::key_value)]
    options: Vec<(String, String)>,
}

const COLUMNS: &[Column<Network>] = &[
    ("NETWORK ID", |network| network.id.chars().take(12).collect()),
    ("NAME", |network| network.name.to_string()),
    ("DRIVER", |network| network.driver.to_string()),
    ("SUBNET", |network| joined(network.subnets.iter().map(|subnet| subnet.subnet))),
    ("GATEWAY", |network| joined(network.subnets.iter().filter_map(|subnet| subnet.gateway))),
    ("INTERNAL", |network| network.internal.to_string()),
    ("ENDPOINTS", |network| network.endpoints.len().to_string()),
];

fn path(name: &Name) -> String {
    format!("/v1/networks/{}", segment(name.as_str()))
}

impl Command {
    pub(super) async fn run(self, client: &Client) -> Result<Outcome> {
        match self {
            Self::Create(create) => {
                let request = create.request()?;
                let network: Network = client.post("/v1/networks", &request).await?;
                Ok(Reply::done(&network, network.name.as_str())?.into())
            }
            Self::Ls => {
                let networks: Vec<Network> = client.get("/v1/networks").await?;
                Ok(Reply::list(&networks, COLUMNS)?.into())
            }
            Self::Inspect { names } => inspect::<Network>(client, &names, path).await,
            Self::Rm { names } => Ok(remove(client, names, path).await),
            Self::Prune => {
                let pruned: Pruned = client.post_empty("/v1/networks/prune").await?;
                Ok(Reply::names(&pruned.networks).into())
            }
            Self::Connect(connect) => {
                let path = format!("{}/connect", path(&connect.network));
                let request = connect.request()?;
                let endpoint: NetworkEndpoint = client.post(&path, &request).await?;
                Ok(Reply::done(&endpoint, "")?.into())
            }
            Self::Disconnect { network, sandbox } => {
                let path = format!("{}/disconnect", path(&network));
                check::disconnect(&network)?;
                let request = DisconnectRequest { sandbox };
                client.post::<()>(&path, &request).await?;
                let done = serde_json::json!({ "network": network, "sandbox": request.sandbox });
                Ok(Reply::done(&done, "")?.into())
            }
        }
    }
}

impl Create {
    fn request(self) -> Result<NetworkCreate> {
        let context =
            |error: crate::error::Error| error.context(format_args!("network {:?}", self.name));
        let aux = values::unique("--aux-address", self.aux_address).map_err(context)?;
        let request = NetworkCreate {
            subnets: check::subnets(&self.subnet, &self.gateway, &self.ip_range, &aux)
                .map_err(context)?,
            driver: self.driver,
            internal: self.internal,
            ipv6: self.ipv6,
            options: values::unique("option", self.options).map_err(context)?,
            labels: values::unique("--label", self.labels).map_err(context)?,
            name: self.name,
        };
        check::network(&request)?;
        Ok(request)
    }
}

impl Connect {
    fn request(self) -> Result<ConnectRequest> {
        let options = values::unique("option", self.options)
            .map_err(|error| error.context(format_args!("sandbox {:?}", self.sandbox)))?;
        let request = ConnectRequest {
            sandbox: self.sandbox,
            ip: self.ip,
            ip6: self.ip6,
            mac: self.mac,
            aliases: self.aliases,
            options,
        };
        check::connect(&self.network, &request)?;
        Ok(request)
    }
}
