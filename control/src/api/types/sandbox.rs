//! Bodies about sandboxes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{MacAddr, PortMapping};
use crate::error::{Error, Result};
use crate::name::Name;
use crate::options::LinkKind;
use crate::publish::PublishSpec;
use crate::text::serde_as_text;

/// What a sandbox is to be connected to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NetworkRef {
    /// Shares the namespace of another sandbox.
    Container(Name),
    /// Shares the host's namespace.
    Host,
    /// An interface in this network.
    Network(Name),
    /// No interface but loopback.
    None,
}

serde_as_text!(NetworkRef, "a network's name, none, host or container:OTHER", "bridge");

impl fmt::Display for NetworkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(other) => write!(f, "container:{other}"),
            Self::Host => f.write_str("host"),
            Self::Network(name) => fmt::Display::fmt(name, f),
            Self::None => f.write_str("none"),
        }
    }
}

impl FromStr for NetworkRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "host" => Ok(Self::Host),
            "none" => Ok(Self::None),
            _ => match text.strip_prefix("container:") {
                Some(other) => Name::parse("sandbox", other).map(Self::Container),
                None => Name::parse("network", text).map(Self::Network),
            },
        }
    }
}

/// A namespace that exists already.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NetnsRef {
    /// The file it is mounted at.
    Path(PathBuf),
    /// That of a process.
    Pid(u32),
}

serde_as_text!(NetnsRef, "an absolute path, or pid:N", "/run/netns/web");

impl NetnsRef {
    /// The file to open.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }
}

impl fmt::Display for NetnsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Pid(pid) => write!(f, "pid:{pid}"),
        }
    }
}

impl FromStr for NetnsRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(pid) = text.strip_prefix("pid:") {
            return match pid.parse() {
                Ok(pid) if pid > 0 => Ok(Self::Pid(pid)),
                _ => Err(Error::invalid(format!("netns {text:?}: {pid:?} is not a process id"))),
            };
        }
        if !text.starts_with('/') || text.contains('\0') {
            return Err(Error::invalid(format!(
                "netns {text:?}: neither an absolute path nor pid:N"
            )));
        }
        Ok(Self::Path(PathBuf::from(text)))
    }
}

/// `POST /v1/sandboxes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxCreate {
    /// Its name, which `ip netns list` shows.
    pub name: Name,
    /// What it is connected to; empty: the network `bridge`. `none`, `host` and `container:OTHER`
    /// stand alone.
    #[serde(default)]
    pub networks: Vec<NetworkRef>,
    /// IPv4 address in the first network; left out: the next free one.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub ip: Option<Ipv4Addr>,
    /// IPv6 address in the first network; left out: the next free one.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Ipv6)]
    pub ip6: Option<Ipv6Addr>,
    /// MAC in the first network; left out: `02:42` and the IPv4 address.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// More names by which the networks' other sandboxes find it.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Options of the endpoint in the first network.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Published ports.
    #[serde(default)]
    pub publish: Vec<PublishSpec>,
    /// Adopt this namespace instead of making one.
    #[serde(default)]
    pub netns: Option<NetnsRef>,
}

/// How a sandbox is connected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SandboxMode {
    /// It shares the namespace of another sandbox.
    Container(Name),
    /// It is the host's namespace.
    Host,
    /// It has interfaces, or can get some.
    Network,
    /// It was made without any.
    None,
}

serde_as_text!(SandboxMode, "network, none, host or container:OTHER", "network");

impl fmt::Display for SandboxMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(other) => write!(f, "container:{other}"),
            Self::Host => f.write_str("host"),
            Self::Network => f.write_str("network"),
            Self::None => f.write_str("none"),
        }
    }
}

impl FromStr for SandboxMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "host" => Ok(Self::Host),
            "network" => Ok(Self::Network),
            "none" => Ok(Self::None),
            _ => match text.strip_prefix("container:") {
                Some(other) => Name::parse("sandbox", other).map(Self::Container),
                None => Err(Error::invalid(format!("sandbox mode {text:?} is unknown"))),
            },
        }
    }
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// Its name.
    pub name: Name,
    /// How it is connected.
    pub mode: SandboxMode,
    /// The file to enter its namespace by. For `host`, that of the daemon; for `container:OTHER`,
    /// that of the other.
    #[schema(value_type = String, example = "/run/netns/web")]
    pub netns: PathBuf,
    /// The namespace existed before and stays when the sandbox goes.
    pub adopted: bool,
    /// Its interfaces, in the order of their names.
    pub endpoints: Vec<SandboxEndpoint>,
    /// Its published ports.
    pub ports: Vec<PortMapping>,
}

/// A sandbox's interface, seen from the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxEndpoint {
    /// The network.
    pub network: Name,
    /// The interface's name in the sandbox.
    pub ifname: String,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its IPv4 address, without prefix length.
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address, without prefix length.
    #[schema(value_type = Option<String>, format = Ipv6)]
    pub ipv6: Option<Ipv6Addr>,
    /// The network's gateway.
    #[schema(value_type = Option<String>)]
    pub gateway: Option<IpAddr>,
    /// That of IPv6.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Ipv6)]
    pub gateway6: Option<Ipv6Addr>,
    /// More names by which the network's other sandboxes find it.
    pub aliases: Vec<Name>,
    /// What connects it to the engine.
    pub link: LinkKind,
    /// Its options.
    pub options: BTreeMap<String, String>,
    /// The switch port: `SANDBOX/IFNAME`.
    pub port: String,
}
