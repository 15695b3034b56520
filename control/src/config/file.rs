//! The configuration file as it is written (TOML), and its faults as one line.
//!
//! Ranges of single values are part of their types here, so that the parser can name the line.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use dataplane::config::MAX_TIMEOUT_SECS;
use ipnet::IpNet;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use toml::Spanned;

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

/// A timer.
pub type Seconds = Ranged<1, MAX_TIMEOUT_SECS>;

/// A list that may be written as its only element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneOrMany<T>(pub Vec<T>);

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

fn parse_item<T: std::str::FromStr<Err: fmt::Display>, E: de::Error>(
    text: &str,
) -> std::result::Result<T, E> {
    text.parse().map_err(|error| E::custom(format_args!("{text:?}: {error}")))
}

/// A value of `options`: what TOML writes without quotes is as good as the string.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
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

/// The whole file.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// The process.
    pub daemon: DaemonSection,
    /// What networks get that do not say.
    pub defaults: DefaultsSection,
    /// Timers in seconds.
    pub timeouts: TimeoutsSection,
    /// Sizes of the tables.
    pub limits: LimitsSection,
    /// Declared ways out.
    pub uplink: Vec<Spanned<UplinkAdd>>,
    /// Declared networks.
    pub network: Vec<Spanned<NetworkSection>>,
    /// Multi-host: not built yet.
    pub cluster: Option<Spanned<toml::Table>>,
}

/// `[daemon]`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "docs/configuration.md describes every key")]
pub struct DaemonSection {
    pub socket: Option<Spanned<PathBuf>>,
    pub state_dir: Option<Spanned<PathBuf>>,
    pub run_dir: Option<Spanned<PathBuf>>,
    pub workers: Option<Ranged<1, { super::validate::MAX_WORKERS_U32 }>>,
    pub placement: Option<super::Placement>,
    pub io: Option<super::Io>,
    pub gro: Option<bool>,
    pub docker_plugin_dir: Option<Spanned<PathBuf>>,
    pub metrics: Option<SocketAddr>,
    pub nat_log: Option<Spanned<PathBuf>>,
    pub nat_log_size: Option<Ranged<1, 1_048_576>>,
}

/// An element of `defaults.pools`.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "docs/configuration.md describes every key")]
pub struct PoolSection {
    pub base: IpNet,
    pub size: Ranged<1, 126>,
}

/// `[defaults]`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "docs/configuration.md describes every key")]
pub struct DefaultsSection {
    pub pools: Option<Spanned<Vec<PoolSection>>>,
    pub mtu: Option<Ranged<576, 65_521>>,
    pub link: Option<LinkName>,
    pub dns: Option<bool>,
}

/// `defaults.link`.
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

/// `[timeouts]`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "docs/configuration.md describes every key")]
pub struct TimeoutsSection {
    pub tcp_established: Option<Seconds>,
    pub tcp_opening: Option<Seconds>,
    pub tcp_closing: Option<Seconds>,
    pub tcp_reset: Option<Seconds>,
    pub tcp_time_wait: Option<Seconds>,
    pub udp: Option<Seconds>,
    pub udp_dns: Option<Seconds>,
    pub icmp: Option<Seconds>,
    pub sctp_established: Option<Seconds>,
    pub sctp_other: Option<Seconds>,
    pub other: Option<Seconds>,
    pub fragments: Option<Seconds>,
    pub fragments_v6: Option<Seconds>,
    pub fdb_ageing: Option<Seconds>,
    pub restart_grace: Option<Ranged<0, MAX_TIMEOUT_SECS>>,
}

/// `[limits]`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "docs/configuration.md describes every key")]
pub struct LimitsSection {
    pub conntrack: Option<Ranged<1024, 16_777_216>>,
    pub conntrack_per_endpoint: Option<Ranged<1, 16_777_216>>,
    pub new_connections_per_endpoint: Option<Ranged<1, 16_777_216>>,
    pub fdb: Option<Ranged<1024, 16_777_216>>,
    pub fdb_per_port: Option<Ranged<1, 16_777_216>>,
    pub groups: Option<Ranged<1, 1_048_576>>,
    pub groups_per_endpoint: Option<Ranged<1, 1_048_576>>,
    pub fragments: Option<Ranged<1, 65_536>>,
    pub buffers: Option<Ranged<256, 65_536>>,
    pub neighbors: Option<Ranged<256, 1_048_576>>,
    pub neighbors_per_network: Option<Ranged<1, 1_048_576>>,
    pub waiting_frames: Option<Ranged<1, 1024>>,
    pub icmp_errors_per_second: Option<Ranged<1, 1_000_000>>,
}

/// `[[network]]`: the flags of `network create`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "docs/configuration.md describes every key")]
pub struct NetworkSection {
    pub name: Name,
    #[serde(default)]
    pub driver: Driver,
    #[serde(default)]
    pub subnet: OneOrMany<IpNet>,
    #[serde(default)]
    pub gateway: OneOrMany<IpAddr>,
    #[serde(default)]
    pub ip_range: OneOrMany<IpNet>,
    #[serde(default)]
    pub aux_address: BTreeMap<String, IpAddr>,
    #[serde(default)]
    pub internal: bool,
    #[serde(default)]
    pub ipv6: bool,
    #[serde(default)]
    pub options: BTreeMap<String, OptionValue>,
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
