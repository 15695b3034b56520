//! `vswitchctl sandbox` and `vswitchctl port`.

use std::net::{Ipv4Addr, Ipv6Addr};

use clap::{Args, Subcommand};

use super::output::{Column, Reply, joined};
use super::{Outcome, inspect, remove, values};
use crate::api::client::{Client, segment};
use crate::api::types::{
    MacAddr, NetnsRef, NetworkRef, PortMapping, PublishRequest, Sandbox, SandboxCreate,
};
use crate::check;
use crate::error::Result;
use crate::name::Name;
use crate::publish::PublishSpec;

/// Verbs of sandboxes.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a sandbox
    Create(Box<Create>),
    /// List sandboxes
    #[command(visible_alias = "list")]
    Ls,
    /// Show sandboxes in full
    Inspect {
        /// Sandboxes
        #[arg(required = true, value_name = "NAME", value_parser = values::sandbox)]
        names: Vec<Name>,
    },
    /// Remove sandboxes: what the daemon made of them
    #[command(visible_alias = "remove")]
    Rm {
        /// Sandboxes
        #[arg(required = true, value_name = "NAME", value_parser = values::sandbox)]
        names: Vec<Name>,
    },
}

/// `sandbox create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Name of the sandbox, which `ip netns list` shows
    #[arg(value_parser = values::sandbox)]
    name: Name,
    #[command(flatten)]
    flags: CreateFlags,
}

/// The flags that `sandbox create` and `run` share.
#[derive(Debug, Args)]
pub(super) struct CreateFlags {
    /// Connect to NET: a network's name, none, host or container:OTHER [default: bridge]
    #[arg(long = "network", visible_alias = "net", value_name = "NET")]
    networks: Vec<NetworkRef>,
    /// IPv4 address in the first network; left out, the next free one
    #[arg(long, value_parser = values::ipv4)]
    ip: Option<Ipv4Addr>,
    /// IPv6 address in the first network
    #[arg(long, value_name = "IP", value_parser = values::ipv6)]
    ip6: Option<Ipv6Addr>,
    /// MAC address in the first network; left out, made of the IPv4 address
    #[arg(long, visible_alias = "mac-address")]
    mac: Option<MacAddr>,
    /// One more name by which other sandboxes of its networks find it
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<Name>,
    /// Option of the endpoint in the first network: trusted=true lets it be the network's DHCP
    /// server, IPv6 router or multicast querier, vlan=10 puts it into a VLAN, trunk=10,20-30 gives it several, tagged
    #[arg(short = 'o', long = "opt", value_name = "KEY=VALUE", value_parser = values::key_value)]
    options: Vec<(String, String)>,
    /// Publish a port: [HOSTIP:][HOSTPORT[-END]:]PORT[-END][/tcp|udp|sctp]; a range of host ports
    /// for one PORT: the first free one of it
    #[arg(short, long, value_name = "PUBLISH")]
    publish: Vec<PublishSpec>,
    /// Adopt the namespace at PATH, or of process N as pid:N, instead of making one
    #[arg(long, value_name = "PATH|pid:N")]
    netns: Option<NetnsRef>,
}

impl CreateFlags {
    /// The request, checked.
    pub(super) fn request(self, name: Name) -> Result<SandboxCreate> {
        let options = values::unique("option", self.options)
            .map_err(|error| error.context(format_args!("sandbox {name:?}")))?;
        let request = SandboxCreate {
            name,
            networks: self.networks,
            ip: self.ip,
            ip6: self.ip6,
            mac: self.mac,
            aliases: self.aliases,
            options,
            publish: self.publish,
            netns: self.netns,
        };
        check::sandbox(&request)?;
        Ok(request)
    }
}

const COLUMNS: &[Column<Sandbox>] = &[
    ("NAME", |sandbox| sandbox.name.to_string()),
    ("MODE", |sandbox| sandbox.mode.to_string()),
    ("NETWORKS", |sandbox| joined(sandbox.endpoints.iter().map(|end| &end.network))),
    ("ADDRESSES", |sandbox| joined(sandbox.endpoints.iter().filter_map(|end| end.ipv4))),
    ("PORTS", |sandbox| joined(sandbox.ports.iter().map(port))),
    ("NETNS", |sandbox| sandbox.netns.display().to_string()),
];

const PORT_COLUMNS: &[Column<PortMapping>] = &[
    ("SANDBOX", |mapping| mapping.sandbox.to_string()),
    ("HOST", |mapping| {
        format!("{}:{}", mapping.host_ip, range(mapping.host_port, mapping.host_port_end))
    }),
    ("PORT", |mapping| format!("{}/{}", range(mapping.port, mapping.port_end), mapping.proto)),
];

/// As `docker ps` writes a published port.
fn port(mapping: &PortMapping) -> String {
    format!(
        "{}:{}->{}/{}",
        mapping.host_ip,
        range(mapping.host_port, mapping.host_port_end),
        range(mapping.port, mapping.port_end),
        mapping.proto
    )
}

fn range(first: u16, last: u16) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// Where a sandbox is in the API.
pub(super) fn path(name: &Name) -> String {
    format!("/v1/sandboxes/{}", segment(name.as_str()))
}

impl Command {
    pub(super) async fn run(self, client: &Client) -> Result<Outcome> {
        match self {
            Self::Create(create) => {
                let request = create.flags.request(create.name)?;
                let sandbox: Sandbox = client.post("/v1/sandboxes", &request).await?;
                Ok(Reply::done(&sandbox, sandbox.name.as_str())?.into())
            }
            Self::Ls => {
                let sandboxes: Vec<Sandbox> = client.get("/v1/sandboxes").await?;
                Ok(Reply::list(&sandboxes, COLUMNS)?.into())
            }
            Self::Inspect { names } => inspect::<Sandbox>(client, &names, path).await,
            Self::Rm { names } => Ok(remove(client, names, path).await),
        }
    }
}

/// Verbs of published ports.
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// List published ports
    #[command(visible_alias = "list")]
    Ls,
    /// Publish ports of a live sandbox
    Publish(PublishArgs),
    /// Unpublish ports of a live sandbox; connections through them end
    Unpublish(PublishArgs),
}

/// `port publish` and `port unpublish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// Sandbox
    #[arg(value_parser = values::sandbox)]
    sandbox: Name,
    /// [HOSTIP:][HOSTPORT[-END]:]PORT[-END][/tcp|udp|sctp]
    #[arg(required = true, value_name = "PUBLISH")]
    publish: Vec<PublishSpec>,
}

impl PortCommand {
    pub(super) async fn run(self, client: &Client) -> Result<Outcome> {
        let mappings: Vec<PortMapping> = match self {
            Self::Ls => client.get("/v1/ports").await?,
            Self::Publish(args) => {
                check::publish(&args.publish)
                    .map_err(|error| error.context(format_args!("sandbox {:?}", args.sandbox)))?;
                let request = PublishRequest { publish: args.publish };
                client.post(&format!("{}/ports", path(&args.sandbox)), &request).await?
            }
            Self::Unpublish(args) => {
                let request = PublishRequest { publish: args.publish };
                client.post(&format!("{}/ports/unpublish", path(&args.sandbox)), &request).await?
            }
        };
        Ok(Reply::list(&mappings, PORT_COLUMNS)?.into())
    }
}
