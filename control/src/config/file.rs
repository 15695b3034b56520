//! The configuration file as it is written (TOML), and its faults as one line.
//!
//! Ranges of single values are part of their types here, so that the parser can name the line.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use dataplane::config::MAX_TIMEOUT_SECS;
use ipnet::IpNet;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use toml::Spanned;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};

use crate::api::types::{Driver, UplinkAdd};
use crate::error::{Error, Result};
use crate::name::Name;
use crate::options::LinkKind;

/// An integer from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranged<const MIN: u32, const MAX: u32>(pub u32);

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Ranged<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Range<const MIN: u32, const MAX: u32>;

        impl<const MIN: u32, const MAX: u32> Visitor<'_> for Range<MIN, MAX> {
            type Value = u32;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number from {MIN} to {MAX}")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> std::result::Result<u32, E> {
                u32::try_from(value).ok().filter(|value| (MIN..=MAX).contains(value)).ok_or_else(
                    || E::custom(format_args!("{value} is not a number from {MIN} to {MAX}")),
                )
            }
        }

        deserializer.deserialize_i64(Range::<MIN, MAX>).map(Self)
    }
}

impl<const MIN: u32, const MAX: u32> utoipa::PartialSchema for Ranged<MIN, MAX> {
    fn schema() -> RefOr<Schema> {
        let number = ObjectBuilder::new().schema_type(Type::Integer);
        number.minimum(Some(f64::from(MIN))).maximum(Some(f64::from(MAX))).into()
    }
}

impl<const MIN: u32, const MAX: u32> ToSchema for Ranged<MIN, MAX> {
    // Each range is a schema of its own.
    fn name() -> Cow<'static, str> {
        format!("From{MIN}To{MAX}").into()
    }
}

/// A timer.
pub type Seconds = Ranged<1, MAX_TIMEOUT_SECS>;
/// A timer that may be off.
pub type SecondsOrNone = Ranged<0, MAX_TIMEOUT_SECS>;
/// `daemon.workers`.
pub type Workers = Ranged<1, { super::validate::MAX_WORKERS_U32 }>;
/// `daemon.nat_log_size`.
pub type Mebibytes = Ranged<1, 1_048_576>;
/// The size of a pool's subnets, of either family.
pub type PrefixLength = Ranged<1, 126>;
/// `defaults.mtu`.
pub type Mtu = Ranged<576, 65_521>;
/// Entries of a large table.
pub type TableSize = Ranged<1024, 16_777_216>;
/// Entries of a large table that one may have.
pub type Share = Ranged<1, 16_777_216>;
/// Entries of a smaller table.
pub type SmallShare = Ranged<1, 1_048_576>;
/// `limits.fragments`.
pub type Datagrams = Ranged<1, 65_536>;
/// `limits.fragments_per_datagram`: a datagram has no more.
pub type Fragments = Ranged<1, 8192>;
/// `limits.fragment_bytes`.
pub type FragmentBytes = Ranged<1_048_576, 1_073_741_824>;
/// `limits.held_ports`: a descriptor each.
pub type Ports = Ranged<0, 65_535>;
/// `limits.served_ports`: a task and a descriptor each.
pub type ServedPorts = Ranged<0, 4096>;
/// `limits.tap_queue`.
pub type TapFrames = Ranged<1, 65_535>;
/// `limits.capture_frames`, `limits.events`: the memory is there from the start.
pub type Waiting = Ranged<16, 65_536>;
/// `limits.conntrack_events`.
pub type ConnectionEvents = Ranged<16, 1_048_576>;
/// `limits.nat_log_bytes`.
pub type LogBytes = Ranged<65_536, 1_073_741_824>;
/// `limits.traces`.
pub type Traces = Ranged<1, 16>;
/// `limits.event_readers`: one place of the engine is left for the NAT log.
pub type Readers = Ranged<1, 15>;
const _: () = assert!(dataplane::conntrack::WATCHERS == 16, "one more than there may be readers");
/// `limits.host_connections`, `limits.host_datagram_clients`.
pub type HostClients = Ranged<1, 65_536>;
/// `limits.policy_rules`: they are gone through one after the other.
pub type Rules = Ranged<1, 4096>;
/// `limits.expectations`, `limits.helped_controls`.
pub type HelperShare = Ranged<8, 65_536>;
/// `limits.buffers`.
pub type Buffers = Ranged<256, 65_536>;
/// `limits.neighbors`.
pub type Neighbors = Ranged<256, 1_048_576>;
/// `limits.waiting_frames`.
pub type Frames = Ranged<1, 1024>;
/// `limits.icmp_errors_per_second`.
pub type Rate = Ranged<1, 1_000_000>;

/// A list that may be written as its only element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneOrMany<T>(pub Vec<T>);

/// What a schema has of all of these.
type Texts = OneOrMany<String>;

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: std::str::FromStr<Err: fmt::Display>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Either<T>(std::marker::PhantomData<T>);

        impl<'de, T: std::str::FromStr<Err: fmt::Display>> Visitor<'de> for Either<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Vec<T>, E> {
                Ok(vec![parse_item(text)?])
            }

            fn visit_seq<A: de::SeqAccess<'de>>(
                self,
                mut items: A,
            ) -> std::result::Result<Vec<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(text) = items.next_element::<String>()? {
                    list.push(parse_item(&text)?);
                }
                Ok(list)
            }
        }

        deserializer.deserialize_any(Either(std::marker::PhantomData)).map(Self)
    }
}

impl utoipa::PartialSchema for Texts {
    fn schema() -> RefOr<Schema> {
        let one = || ObjectBuilder::new().schema_type(Type::String);
        OneOfBuilder::new().item(one()).item(ArrayBuilder::new().items(one())).into()
    }
}

impl ToSchema for Texts {}

fn parse_item<T: std::str::FromStr<Err: fmt::Display>, E: de::Error>(
    text: &str,
) -> std::result::Result<T, E> {
    text.parse().map_err(|error| E::custom(format_args!("{text:?}: {error}")))
}

/// A value of `options`: what TOML writes without quotes is as good as the string.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string, number or boolean")]
pub enum OptionValue {
    /// `true` or `false`.
    Boolean(bool),
    /// A number.
    Integer(i64),
    /// Anything else.
    Text(String),
}

impl fmt::Display for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(value) => fmt::Display::fmt(value, f),
            Self::Integer(value) => fmt::Display::fmt(value, f),
            Self::Text(value) => f.write_str(value),
        }
    }
}

/// The configuration of vswitchd.
#[derive(Debug, Default, serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The process.
    #[serde(default)]
    pub daemon: DaemonSection,
    /// What networks get that do not say.
    #[serde(default)]
    pub defaults: DefaultsSection,
    /// Seconds without a packet after which things are forgotten.
    #[serde(default)]
    pub timeouts: TimeoutsSection,
    /// Sizes of the tables.
    #[serde(default)]
    pub limits: LimitsSection,
    /// Ways out; without any, the interface of the host's default route is used in shared mode.
    #[schema(value_type = Vec<UplinkAdd>)]
    #[serde(default)]
    pub uplink: Vec<Spanned<UplinkAdd>>,
    /// Networks: made at the start, and kept equal to this on reload.
    #[schema(value_type = Vec<NetworkSection>)]
    #[serde(default)]
    pub network: Vec<Spanned<NetworkSection>>,
    /// Multi-host: not built yet, and refused.
    #[schema(ignore)]
    pub cluster: Option<Spanned<toml::Table>>,
}

/// `[daemon]`: the process.
#[derive(Debug, Default, serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DaemonSection {
    /// The API's socket, an absolute path of at most 107 bytes [default: /run/vswitchd/vswitchd.sock]
    #[schema(value_type = Option<String>)]
    pub socket: Option<Spanned<PathBuf>>,
    /// Where what must survive a restart is kept, an absolute path [default: /var/lib/vswitchd]
    #[schema(value_type = Option<String>)]
    pub state_dir: Option<Spanned<PathBuf>>,
    /// Where what is only true since boot is kept, an absolute path [default: /run/vswitchd]
    #[schema(value_type = Option<String>)]
    pub run_dir: Option<Spanned<PathBuf>>,
    /// Worker threads [default: one per core]
    pub workers: Option<Workers>,
    /// Which worker receives from which device [default: load]
    pub placement: Option<super::Placement>,
    /// How TAPs and uplinks are read and written [default: by io_uring where the kernel allows it]
    pub io: Option<super::Io>,
    /// Merge TCP segments, and trains of UDP datagrams, that wait for the same device [default: true]
    pub gro: Option<bool>,
    /// Where Docker looks for plugins, an absolute path; not built yet, has no effect
    #[schema(value_type = Option<String>)]
    pub docker_plugin_dir: Option<Spanned<PathBuf>>,
    /// `ADDRESS:PORT` of Prometheus metrics; not built yet, has no effect
    #[schema(value_type = Option<String>)]
    pub metrics: Option<SocketAddr>,
    /// A file with a line for each outside port that SNAT gives and takes back, an absolute path
    /// [default: off]
    #[schema(value_type = Option<String>)]
    pub nat_log: Option<Spanned<PathBuf>>,
    /// MiB after which that file is set aside and a new one begun [default: 1024]
    pub nat_log_size: Option<Mebibytes>,
}

/// An element of `defaults.pools`.
#[derive(Clone, Copy, Debug, serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolSection {
    /// The range that subnets are taken from.
    #[schema(value_type = String)]
    pub base: IpNet,
    /// Prefix length of each: 1 to 30; with IPv6, 48 to 126.
    pub size: PrefixLength,
}

/// `[defaults]`: what networks get that do not say.
#[derive(Debug, Default, serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DefaultsSection {
    /// Where subnets come from, in order, not overlapping [default: 172.16.0.0/12 in /16s; IPv6: /64s of a
    /// /48 of the installation's own]
    #[schema(value_type = Option<Vec<PoolSection>>)]
    pub pools: Option<Spanned<Vec<PoolSection>>>,
    /// MTU [default: 1500]
    pub mtu: Option<Mtu>,
    /// What connects endpoints to the switch [default: tap]
    pub link: Option<LinkName>,
    /// A resolver at the gateway; not built yet, has no effect [default: false]
    pub dns: Option<bool>,
}

/// `defaults.link`: `tap` or `veth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkName(pub LinkKind);

impl<'de> Deserialize<'de> for LinkName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "tap" => Ok(Self(LinkKind::Tap)),
            "veth" => Ok(Self(LinkKind::Veth)),
            other => Err(de::Error::custom(format_args!("{other:?} is neither tap nor veth"))),
        }
    }
}

impl utoipa::PartialSchema for LinkName {
    fn schema() -> RefOr<Schema> {
        LinkKind::schema()
    }
}

impl ToSchema for LinkName {}

/// `[timeouts]`: seconds without a packet.
#[derive(Debug, Default, serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeoutsSection {
    /// TCP connections that are established [default: 432000]
    pub tcp_established: Option<Seconds>,
    /// TCP connections that are being opened [default: 240]
    pub tcp_opening: Option<Seconds>,
    /// TCP connections that are being closed [default: 240]
    pub tcp_closing: Option<Seconds>,
    /// TCP connections that were reset [default: 240]
    pub tcp_reset: Option<Seconds>,
    /// TCP connections that were closed [default: 120]
    pub tcp_time_wait: Option<Seconds>,
    /// UDP [default: 300]
    pub udp: Option<Seconds>,
    /// UDP to port 53 [default: 30]
    pub udp_dns: Option<Seconds>,
    /// ICMP echo [default: 60]
    pub icmp: Option<Seconds>,
    /// SCTP associations that are established [default: 432000]
    pub sctp_established: Option<Seconds>,
    /// SCTP associations in any other state [default: 60]
    pub sctp_other: Option<Seconds>,
    /// Any other protocol [default: 600]
    pub other: Option<Seconds>,
    /// IPv4 datagrams of which fragments are missing [default: 30]
    pub fragments: Option<Seconds>,
    /// The same of IPv6 [default: 60]
    pub fragments_v6: Option<Seconds>,
    /// Learned MACs [default: 300]
    pub fdb_ageing: Option<Seconds>,
    /// For so long after a start without a table of connections, TCP segments from the middle of connections
    /// begin them [default: 300]
    pub restart_grace: Option<SecondsOrNone>,
}

/// `[limits]`: sizes of the tables.
#[derive(Debug, Default, serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsSection {
    /// Connections [default: by memory, 16384 to 262144]
    pub conntrack: Option<TableSize>,
    /// Connections of one endpoint [default: half of `conntrack`]
    pub conntrack_per_endpoint: Option<Share>,
    /// Connections that one endpoint begins in a second [default: no limit]
    pub new_connections_per_endpoint: Option<Share>,
    /// Learned MACs [default: by memory, 4096 to 65536]
    pub fdb: Option<TableSize>,
    /// Learned MACs behind one port [default: 1024]
    pub fdb_per_port: Option<Share>,
    /// Memberships in multicast groups, of one network [default: 4096]
    pub groups: Option<SmallShare>,
    /// Memberships of one endpoint [default: 256]
    pub groups_per_endpoint: Option<SmallShare>,
    /// Unfinished datagrams whose fragments are followed [default: 4096]
    pub fragments: Option<Datagrams>,
    /// Fragments that each of them may have; further ones only while few have that many [default: 64]
    pub fragments_per_datagram: Option<Fragments>,
    /// Bytes of fragments that wait at each worker for the first of their datagram [default: by memory, 1 to 4 MiB]
    pub fragment_bytes: Option<FragmentBytes>,
    /// Frame buffers of each worker [default: by memory, 256 to 512]
    pub buffers: Option<Buffers>,
    /// Neighbors [default: by memory, 2048 to 16384]
    pub neighbors: Option<Neighbors>,
    /// Neighbors of one network [default: 1024]
    pub neighbors_per_network: Option<SmallShare>,
    /// Neighbors at one uplink [default: half of `neighbors`]
    pub neighbors_per_uplink: Option<SmallShare>,
    /// Neighbors of one link that are asked for and have never answered [default: 512]
    pub neighbors_unanswered: Option<SmallShare>,
    /// Frames of each worker that wait for neighbors [default: 128]
    pub waiting_frames: Option<Frames>,
    /// Of those, for one neighbor [default: 32]
    pub waiting_frames_per_neighbor: Option<Frames>,
    /// Connections that others have announced (FTP, TFTP); an eighth for one inside address [default: 1024]
    pub expectations: Option<HelperShare>,
    /// Control connections of FTP that a helper follows; an eighth for one inside address [default: 1024]
    pub helped_controls: Option<HelperShare>,
    /// ICMP errors that each worker sends in a second [default: 1000]
    pub icmp_errors_per_second: Option<Rate>,
    /// Traces under way [default: 2]
    pub traces: Option<Traces>,
    /// Frames that wait for the reader of each capture [default: by memory, 128 to 1024]
    pub capture_frames: Option<Waiting>,
    /// Readers of what happens to connections [default: 8]
    pub event_readers: Option<Readers>,
    /// Events that wait for each of them, and for the NAT log [default: by memory, 1024 to 8192]
    pub conntrack_events: Option<ConnectionEvents>,
    /// Bytes of the NAT log that wait for a disk in trouble [default: by memory, 1 to 4 MiB]
    pub nat_log_bytes: Option<LogBytes>,
    /// Events about the switch that wait for the slowest of their readers [default: 1024]
    pub events: Option<Waiting>,
    /// Frames that wait in the TAP of a sandbox for a worker [default: by memory, 500 to 2000]
    pub tap_queue: Option<TapFrames>,
    /// Host ports of one published range that the host itself reaches; longer ones are only held [default: 256]
    pub served_ports: Option<ServedPorts>,
    /// Host ports of all longer ranges that are held [default: 16384]
    pub held_ports: Option<Ports>,
    /// TCP connections of the host itself by one published mapping [default: 1024]
    pub host_connections: Option<HostClients>,
    /// Clients of the host itself that send datagrams by one published mapping [default: 512]
    pub host_datagram_clients: Option<HostClients>,
    /// Rules of one network's policy [default: 256]
    pub policy_rules: Option<Rules>,
}

/// `[[network]]`: the flags of `network create`.
#[derive(Debug, serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSection {
    /// Its name.
    pub name: Name,
    /// What makes it; `bridge` alone is built [default: bridge]
    #[serde(default)]
    pub driver: Driver,
    /// Its prefixes, of either family [default: the next free one of `defaults.pools`]
    #[serde(default)]
    #[schema(value_type = Texts)]
    pub subnet: OneOrMany<IpNet>,
    /// An address in each of them [default: the first]
    #[serde(default)]
    #[schema(value_type = Texts)]
    pub gateway: OneOrMany<IpAddr>,
    /// Where in them addresses are given out from [default: everywhere]
    #[serde(default)]
    #[schema(value_type = Texts)]
    pub ip_range: OneOrMany<IpNet>,
    /// Addresses that are never given out, by name.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub aux_address: BTreeMap<String, IpAddr>,
    /// No way out and no way in [default: false]
    #[serde(default)]
    pub internal: bool,
    /// Give it an IPv6 prefix too [default: false]
    #[serde(default)]
    pub ipv6: bool,
    /// Options by their own or Docker's names.
    #[serde(default)]
    #[schema(schema_with = super::schema::network_options)]
    pub options: BTreeMap<String, OptionValue>,
    /// The user's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Reads the text of a file; `path` is for messages.
///
/// # Errors
/// When it is no TOML, or a key is unknown or has a value of the wrong kind.
pub fn parse(text: &str, path: &Path) -> Result<File> {
    toml::from_str(text).map_err(|mut error: toml::de::Error| {
        let line = error.span().map(|span| line_of(text, span.start));
        // Without the text, the error's display ends with the key it is about: the only place
        // where the parser tells it.
        error.set_input(None);
        let whole = error.to_string();
        let key = whole
            .rsplit_once("in `")
            .and_then(|(_, key)| key.trim_end().strip_suffix('`'))
            .map(str::to_owned);
        fault(path, line, &explain(error.message(), key.as_deref()))
    })
}

/// Puts a parser's message into the words of this project.
fn explain(message: &str, key: Option<&str>) -> String {
    if let Some(rest) = message.strip_prefix("unknown field `")
        && let Some((unknown, known)) = rest.split_once("`, ")
    {
        let known = known.trim_start_matches("expected one of ").trim_start_matches("expected ");
        // The parser's path may or may not end with the unknown key itself.
        let table = key.unwrap_or_default();
        let table = table.strip_suffix(unknown).unwrap_or(table).trim_end_matches('.');
        let place = if table.is_empty() { String::new() } else { format!(" in [{table}]") };
        return format!(
            "unknown key {unknown:?}{place}; known keys are {}",
            known.replace("` or `", ", ").replace('`', "")
        );
    }
    if let Some(missing) = message.strip_prefix("missing field `").and_then(|m| m.strip_suffix('`'))
    {
        let place = key.map(|key| format!(" in [{key}]")).unwrap_or_default();
        return format!("key {missing:?} is missing{place}");
    }
    match key {
        Some(key) if !key.is_empty() => format!("{key}: {message}"),
        _ => message.to_owned(),
    }
}

/// The number of the line with the byte at `offset`, from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// An error about a line of the file.
pub(super) fn fault(path: &Path, line: Option<usize>, message: &str) -> Error {
    let place = line.map(|line| format!(":{line}")).unwrap_or_default();
    Error::invalid(format!("{}{place}: {message}", path.display()))
}
