//! `vswitchctl fdb`, `mdb`, `conntrack`, `nat`, `drops` and `stats`: the engine's tables and counters.

use clap::{Args, Subcommand};

use super::output::{Column, Format, Reply, or_dash, print};
use super::{Outcome, values};
use crate::api::client::Client;
use crate::api::types::{
    AddressMatch, Connection, ConnectionEvent, ConnectionState, ConntrackFilter, ConntrackStats,
    DropCount, DropsQuery, Event, FdbAdd, FdbEntry, FdbFlush, FdbKind, FdbQuery, FdbRemove,
    IpProtocol, MacAddr, MdbEntry, MdbKind, MdbQuery, NatKind, NatRule, PortStats, Removed,
    StatsQuery, Tuple,
};
use crate::capture::summary::time_of_day;
use crate::check;
use crate::error::{Result, ResultExt as _};
use crate::name::Name;

/// Verbs of the FDB.
#[derive(Debug, Subcommand)]
pub enum FdbCommand {
    /// List entries
    #[command(visible_aliases = ["ls", "list"])]
    Show {
        /// Only this network
        #[arg(long, value_parser = values::network)]
        network: Option<Name>,
    },
    /// Add a static entry
    Add(FdbAddArgs),
    /// Remove a learned or static entry
    #[command(visible_alias = "rm")]
    Del {
        /// MAC address
        mac: MacAddr,
        /// Network
        #[arg(long, value_parser = values::network)]
        network: Name,
        /// VLAN id; 0 is untagged
        #[arg(long, default_value_t = 0, value_parser = values::vlan)]
        vlan: u16,
    },
    /// Forget what was learned
    Flush {
        /// Only in this network
        #[arg(long, value_parser = values::network)]
        network: Option<Name>,
    },
}

/// `fdb add`.
#[derive(Debug, Args)]
pub struct FdbAddArgs {
    /// MAC address
    mac: MacAddr,
    /// Network
    #[arg(long, value_parser = values::network)]
    network: Name,
    /// Behind this sandbox's interface
    #[arg(long, value_parser = values::sandbox, required_unless_present = "port", conflicts_with = "port")]
    sandbox: Option<Name>,
    /// Behind this port, as fdb show names it
    #[arg(long)]
    port: Option<String>,
    /// VLAN id; 0 is untagged
    #[arg(long, default_value_t = 0, value_parser = values::vlan)]
    vlan: u16,
}

const FDB_COLUMNS: &[Column<FdbEntry>] = &[
    ("NETWORK", |entry| entry.network.to_string()),
    ("MAC", |entry| entry.mac.to_string()),
    ("VLAN", |entry| entry.vlan.to_string()),
    ("PORT", |entry| entry.port.clone()),
    ("SANDBOX", |entry| or_dash(entry.sandbox.as_ref())),
    ("KIND", |entry| {
        match entry.kind {
            FdbKind::Learned => "learned",
            FdbKind::Local => "local",
            FdbKind::Remote => "remote",
            FdbKind::Static => "static",
        }
        .to_owned()
    }),
    ("AGE", |entry| format!("{}s", entry.age_s)),
];

/// Verbs of multicast groups.
#[derive(Debug, Subcommand)]
pub enum MdbCommand {
    /// List members and routers
    #[command(visible_aliases = ["ls", "list"])]
    Show {
        /// Only this network
        #[arg(long, value_parser = values::network)]
        network: Option<Name>,
    },
}

const MDB_COLUMNS: &[Column<MdbEntry>] = &[
    ("NETWORK", |entry| entry.network.to_string()),
    ("VLAN", |entry| entry.vlan.to_string()),
    ("GROUP", |entry| or_dash(entry.group.as_ref())),
    ("PORT", |entry| entry.port.clone()),
    ("SANDBOX", |entry| or_dash(entry.sandbox.as_ref())),
    ("KIND", |entry| {
        match entry.kind {
            MdbKind::Member => "member",
            MdbKind::Router => "router",
        }
        .to_owned()
    }),
    ("EXPIRES", |entry| format!("{}s", entry.expires_s)),
];

impl MdbCommand {
    pub(super) async fn run(self, client: &Client) -> Result<Outcome> {
        let Self::Show { network } = self;
        let entries: Vec<MdbEntry> = client.query("/v1/mdb", &MdbQuery { network }).await?;
        Ok(Reply::list(&entries, MDB_COLUMNS)?.into())
    }
}

impl FdbCommand {
    pub(super) async fn run(self, client: &Client) -> Result<Outcome> {
        match self {
            Self::Show { network } => {
                let query = FdbQuery { network };
                let entries: Vec<FdbEntry> = client.query("/v1/fdb", &query).await?;
                Ok(Reply::list(&entries, FDB_COLUMNS)?.into())
            }
            Self::Add(args) => {
                let request = FdbAdd {
                    network: args.network,
                    mac: args.mac,
                    sandbox: args.sandbox,
                    port: args.port,
                    vlan: args.vlan,
                };
                check::fdb_add(&request)?;
                let entry: FdbEntry = client.post("/v1/fdb", &request).await?;
                Ok(Reply::done(&entry, "")?.into())
            }
            Self::Del { mac, network, vlan } => {
                let request = FdbRemove { network, mac, vlan };
                client.post::<()>("/v1/fdb/remove", &request).await?;
                Ok(Reply::done(&request, "")?.into())
            }
            Self::Flush { network } => {
                let removed = client.post("/v1/fdb/flush", &FdbFlush { network }).await?;
                removed_reply(removed, "entries")
            }
        }
    }
}

fn removed_reply(removed: Removed, what: &str) -> Result<Outcome> {
    Ok(Reply::done(&removed, format!("removed {} {what}", removed.removed))?.into())
}

/// Verbs of connections.
#[derive(Debug, Subcommand)]
pub enum ConntrackCommand {
    /// List tracked connections
    #[command(visible_alias = "ls")]
    List(Matching),
    /// End connections: all, or those that match
    Flush(Matching),
    /// Totals of the connection table
    Stats,
    /// Show connections as they begin, change and end
    Events(Events),
}

/// `conntrack events`.
#[derive(Debug, Args)]
pub struct Events {
    /// One JSON object a line, as with --format json
    #[arg(long)]
    json: bool,
    /// Which
    #[command(flatten)]
    matching: Matching,
}

impl Events {
    async fn run(self, client: &Client, format: Format) -> Result<Outcome> {
        let json = self.json || format == Format::Json;
        let mut stream = client.stream("/v1/conntrack/events", &self.matching.filter()).await?;
        let mut rest = Vec::new();
        while let Some(piece) = stream.next().await? {
            rest.extend_from_slice(&piece);
            // Whole lines only.
            let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
            let lines: Vec<u8> = rest.drain(..=end).collect();
            let text = if json { lines } else { for_people(&lines)?.into_bytes() };
            if !print(&text)? {
                break;
            }
        }
        Ok(Outcome::Exit(0))
    }
}

fn for_people(lines: &[u8]) -> Result<String> {
    let mut text = String::new();
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let shown = match serde_json::from_slice::<ConnectionEvent>(line) {
            Ok(event) => one_line(&event),
            // Not a connection: some were missed.
            Err(_) => serde_json::from_slice::<Event>(line)
                .map(|event| format!("{}: {}", event.event, or_dash(event.detail.as_ref())))
                .failed("answer of the daemon to /v1/conntrack/events not understood")?,
        };
        text.push_str(&shown);
        text.push('\n');
    }
    Ok(text)
}

/// In the manner of `conntrack -E`.
fn one_line(event: &ConnectionEvent) -> String {
    let ConnectionEvent { time_ms, event, reason, connection } = event;
    let mut text = format!(
        "{} {event:<7} {} {} {} | {} network {}",
        time_of_day(time_ms.saturating_mul(1_000_000)),
        connection.proto,
        connection.state,
        tuple(&connection.orig),
        tuple(&connection.reply),
        or_dash(connection.network.as_ref()),
    );
    if let Some(reason) = reason {
        let (packets, bytes) = (pair(connection.packets), pair(connection.bytes));
        text.push_str(&format!(" {reason}, packets {packets}, bytes {bytes}"));
    }
    text
}

/// Which connections: all that is given must match.
#[derive(Debug, Args)]
pub struct Matching {
    /// tcp, udp, icmp, sctp or a protocol number
    #[arg(long)]
    proto: Option<IpProtocol>,
    /// Source in original direction: address or prefix
    #[arg(long, value_name = "IP|CIDR")]
    src: Option<AddressMatch>,
    /// Destination in original direction: address or prefix
    #[arg(long, value_name = "IP|CIDR")]
    dst: Option<AddressMatch>,
    /// Source port in original direction; the id of ICMP
    #[arg(long, value_name = "PORT", value_parser = values::port)]
    sport: Option<u16>,
    /// Destination port in original direction; the id of ICMP
    #[arg(long, value_name = "PORT", value_parser = values::port)]
    dport: Option<u16>,
    /// State, as the list shows it
    #[arg(long)]
    state: Option<ConnectionState>,
    /// Inside network
    #[arg(long, value_parser = values::network)]
    network: Option<Name>,
}

impl Matching {
    fn filter(self) -> ConntrackFilter {
        ConntrackFilter {
            proto: self.proto,
            src: self.src,
            dst: self.dst,
            sport: self.sport,
            dport: self.dport,
            state: self.state,
            network: self.network,
        }
    }
}

const CONNECTION_COLUMNS: &[Column<Connection>] = &[
    ("PROTO", |connection| connection.proto.to_string()),
    ("STATE", |connection| connection.state.clone()),
    ("ORIGINAL", |connection| tuple(&connection.orig)),
    ("REPLY", |connection| tuple(&connection.reply)),
    ("NAT", |connection| {
        match connection.nat {
            NatKind::Both => "both",
            NatKind::Dnat => "dnat",
            NatKind::None => "none",
            NatKind::Snat => "snat",
        }
        .to_owned()
    }),
    ("TIMEOUT", |connection| format!("{}s", connection.timeout_s)),
    ("PACKETS", |connection| pair(connection.packets)),
    ("BYTES", |connection| pair(connection.bytes)),
    ("NETWORK", |connection| or_dash(connection.network.as_ref())),
];

fn tuple(tuple: &Tuple) -> String {
    format!("{}:{} > {}:{}", tuple.src, tuple.sport, tuple.dst, tuple.dport)
}

fn pair([original, reply]: [u64; 2]) -> String {
    format!("{original}/{reply}")
}

impl ConntrackCommand {
    pub(super) async fn run(self, client: &Client, format: Format) -> Result<Outcome> {
        match self {
            Self::Events(args) => args.run(client, format).await,
            Self::List(matching) => {
                let connections: Vec<Connection> =
                    client.query("/v1/conntrack", &matching.filter()).await?;
                Ok(Reply::list(&connections, CONNECTION_COLUMNS)?.into())
            }
            Self::Flush(matching) => {
                let removed = client.post("/v1/conntrack/flush", &matching.filter()).await?;
                removed_reply(removed, "connections")
            }
            Self::Stats => {
                let stats: ConntrackStats = client.get("/v1/conntrack/stats").await?;
                Ok(Reply::thing(&stats)?.into())
            }
        }
    }
}

/// Verbs of address translation.
#[derive(Debug, Subcommand)]
pub enum NatCommand {
    /// List rules with their counters
    Rules,
}

const RULE_COLUMNS: &[Column<NatRule>] = &[
    ("KIND", |rule| rule.kind.clone()),
    ("NETWORK", |rule| or_dash(rule.network.as_ref())),
    ("MATCH", |rule| rule.r#match.clone()),
    ("TO", |rule| rule.to.clone()),
    ("PACKETS", |rule| rule.packets.to_string()),
    ("BYTES", |rule| rule.bytes.to_string()),
];

impl NatCommand {
    pub(super) async fn run(self, client: &Client) -> Result<Outcome> {
        let Self::Rules = self;
        let rules: Vec<NatRule> = client.get("/v1/nat/rules").await?;
        Ok(Reply::list(&rules, RULE_COLUMNS)?.into())
    }
}

/// `drops`.
#[derive(Debug, Args)]
pub struct Drops {
    /// Only frames of ports in this network
    #[arg(long, value_parser = values::network)]
    network: Option<Name>,
    /// Only frames of this sandbox's ports
    #[arg(long, value_parser = values::sandbox)]
    sandbox: Option<Name>,
}

const DROP_COLUMNS: &[Column<DropCount>] = &[
    ("REASON", |drop| drop.reason.clone()),
    ("COUNT", |drop| drop.count.to_string()),
    ("DESCRIPTION", |drop| drop.description.clone()),
];

impl Drops {
    pub(super) async fn run(self, client: &Client) -> Result<Outcome> {
        let query = DropsQuery { network: self.network, sandbox: self.sandbox };
        let drops: Vec<DropCount> = client.query("/v1/drops", &query).await?;
        Ok(Reply::list(&drops, DROP_COLUMNS)?.into())
    }
}

/// `stats`.
#[derive(Debug, Args)]
pub struct Stats {
    /// Only this sandbox's ports
    #[arg(long, value_parser = values::sandbox)]
    sandbox: Option<Name>,
}

const STATS_COLUMNS: &[Column<PortStats>] = &[
    ("PORT", |port| port.port.clone()),
    ("SANDBOX", |port| or_dash(port.sandbox.as_ref())),
    ("NETWORK", |port| or_dash(port.network.as_ref())),
    ("RX FRAMES", |port| port.rx_frames.to_string()),
    ("RX BYTES", |port| port.rx_bytes.to_string()),
    ("TX FRAMES", |port| port.tx_frames.to_string()),
    ("TX BYTES", |port| port.tx_bytes.to_string()),
    ("RX DROPS", |port| port.rx_drops.to_string()),
    ("TX DROPS", |port| port.tx_drops.to_string()),
    ("RX MISSED", |port| port.rx_missed.to_string()),
    ("REFUSED", |port| port.refused.to_string()),
];

impl Stats {
    pub(super) async fn run(self, client: &Client) -> Result<Outcome> {
        let query = StatsQuery { sandbox: self.sandbox };
        let stats: Vec<PortStats> = client.query("/v1/stats", &query).await?;
        Ok(Reply::list(&stats, STATS_COLUMNS)?.into())
    }
}
