//! `vswitchctl policy`.

use clap::{ArgGroup, Args, Subcommand};

use super::output::{Column, Reply, or_dash};
use super::{Outcome, values};
use crate::api::client::Client;
use crate::api::types::{
    IpProtocol, PolicyAction, PolicyAdd, PolicyDirection, PolicyPeer, PolicyQuery, PolicyRemove,
    PolicyRule,
};
use crate::check;
use crate::error::Result;
use crate::name::Name;
use crate::publish::PortRange;

/// Verbs of policies.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add a rule: the first that matches a new connection decides, and what none matches is allowed
    Add(Add),
    /// List rules in order, with what they did
    #[command(visible_alias = "list")]
    Ls {
        /// Only this network
        #[arg(long, value_parser = values::network)]
        network: Option<Name>,
    },
    /// Remove a rule
    #[command(visible_aliases = ["remove", "del"])]
    Rm {
        /// Network
        #[arg(value_parser = values::network)]
        network: Name,
        /// Number of the rule, as policy ls shows it
        id: u32,
    },
}

/// `policy add`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("action").required(true))]
#[command(group = ArgGroup::new("direction"))]
pub struct Add {
    /// Network
    #[arg(value_parser = values::network)]
    network: Name,
    /// Let matching connections begin, without asking later rules
    #[arg(long, group = "action")]
    allow: bool,
    /// Drop the packets of matching connections
    #[arg(long, group = "action")]
    deny: bool,
    /// Only connections from elsewhere to sandboxes of the network
    #[arg(long = "in", group = "direction")]
    into: bool,
    /// Only connections from sandboxes of the network to elsewhere
    #[arg(long, group = "direction")]
    out: bool,
    /// Only connections between sandboxes of the network
    #[arg(long, group = "direction")]
    inside: bool,
    /// Who begins the connection: CIDR, IP, network:NAME or sandbox:NAME
    #[arg(long, visible_alias = "from", value_name = "WHO")]
    src: Option<PolicyPeer>,
    /// Whom it is for, likewise: the sandbox, also behind a published port
    #[arg(long, visible_alias = "to", value_name = "WHO")]
    dst: Option<PolicyPeer>,
    /// tcp, udp, sctp, icmp (of both IP versions) or a protocol number
    #[arg(long)]
    proto: Option<IpProtocol>,
    /// Port of whom it is for: the sandbox's own
    #[arg(long, visible_alias = "dport", value_name = "PORT[-END]")]
    port: Option<PortRange>,
    /// Published port that leads in
    #[arg(long, value_name = "PORT[-END]")]
    host_port: Option<PortRange>,
    /// Place among the network's rules, from 1; left out, last
    #[arg(long, value_name = "N")]
    position: Option<u32>,
}

const COLUMNS: &[Column<PolicyRule>] = &[
    ("NETWORK", |rule| rule.network.to_string()),
    ("POSITION", |rule| rule.position.to_string()),
    ("ID", |rule| rule.id.to_string()),
    ("ACTION", |rule| rule.action.to_string()),
    ("DIRECTION", |rule| rule.direction.to_string()),
    ("SRC", |rule| or_dash(rule.src.as_ref())),
    ("DST", |rule| or_dash(rule.dst.as_ref())),
    ("PROTO", |rule| or_dash(rule.proto.as_ref())),
    ("PORT", |rule| or_dash(rule.port.as_ref())),
    ("HOST PORT", |rule| or_dash(rule.host_port.as_ref())),
    ("PACKETS", |rule| rule.packets.to_string()),
    ("BYTES", |rule| rule.bytes.to_string()),
];

impl Command {
    pub(super) async fn run(self, client: &Client) -> Result<Outcome> {
        match self {
            Self::Add(add) => {
                let request = add.request();
                check::policy(&request)?;
                let rule: PolicyRule = client.post("/v1/policy", &request).await?;
                Ok(Reply::done(&rule, rule.id.to_string())?.into())
            }
            Self::Ls { network } => {
                let rules: Vec<PolicyRule> =
                    client.query("/v1/policy", &PolicyQuery { network }).await?;
                Ok(Reply::list(&rules, COLUMNS)?.into())
            }
            Self::Rm { network, id } => {
                let request = PolicyRemove { network, id };
                client.post::<()>("/v1/policy/remove", &request).await?;
                Ok(Reply::done(&request, id.to_string())?.into())
            }
        }
    }
}

impl Add {
    fn request(self) -> PolicyAdd {
        PolicyAdd {
            network: self.network,
            action: if self.deny { PolicyAction::Deny } else { PolicyAction::Allow },
            direction: match (self.into, self.out, self.inside) {
                (true, ..) => PolicyDirection::In,
                (_, true, _) => PolicyDirection::Out,
                (.., true) => PolicyDirection::Inside,
                _ => PolicyDirection::Any,
            },
            src: self.src,
            dst: self.dst,
            proto: self.proto,
            port: self.port,
            host_port: self.host_port,
            position: self.position,
        }
    }
}
