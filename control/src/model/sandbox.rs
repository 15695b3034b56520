//! Records of sandboxes: where they are, and their interfaces.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::Publish;
use crate::api::types::MacAddr;
use crate::name::Name;
use crate::netns::NETNS_DIR;
use crate::options::{EndpointOptions, LinkKind};

/// A namespace with endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Name.
    pub name: Name,
    /// Where it is.
    pub namespace: Namespace,
    /// Its interfaces, in the order they were connected.
    pub endpoints: Vec<Endpoint>,
    /// Its published ports.
    pub publishes: Vec<Publish>,
    /// Seconds since the epoch.
    pub created: u64,
}

/// Whose namespace it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Namespace {
    /// Made by us, with a file that `ip netns` shows.
    Made {
        /// Inode of the namespace: tells whether the file is still ours.
        inode: u64,
    },
    /// Made by someone else; we only add interfaces.
    Adopted {
        /// File that leads to it.
        path: PathBuf,
        /// Inode of the namespace: tells whether the file still leads to it.
        inode: u64,
    },
    /// The host's own.
    Host,
}

/// A sandbox's interface in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The network.
    pub network: Name,
    /// Interface name in the sandbox.
    pub ifname: String,
    /// MAC.
    pub mac: MacAddr,
    /// Address.
    pub ipv4: Ipv4Addr,
    /// Length of the subnet's prefix.
    pub prefix_len: u8,
    /// IPv6 address with the length of the subnet's prefix. None: its network has no IPv6, or its
    /// namespace had none when it was connected.
    #[serde(default)]
    pub ipv6: Option<Ipv6Net>,
    /// Further names.
    pub aliases: Vec<Name>,
    /// What connects it to the engine. Records of before there was a choice do not say.
    #[serde(default)]
    pub wire: Wire,
    /// Options, checked. Records of before there were any do not say.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// What connects an endpoint to the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// Its interface is a TAP.
    #[default]
    Tap,
    /// Its interface is one end of a veth pair.
    Veth {
        /// The other end, in the host's namespace. Never changes, whatever happens inside.
        host_end: String,
    },
}

impl Wire {
    /// As users call it.
    #[must_use]
    pub const fn kind(&self) -> LinkKind {
        match self {
            Self::Tap => LinkKind::Tap,
            Self::Veth { .. } => LinkKind::Veth,
        }
    }

    /// Our end of its pair, if it has one.
    #[must_use]
    pub fn host_end(&self) -> Option<&str> {
        match self {
            Self::Tap => None,
            Self::Veth { host_end } => Some(host_end),
        }
    }

    /// What the kernel calls the kind of its interface.
    #[must_use]
    pub const fn link_kind(&self) -> &'static str {
        match self {
            Self::Tap => "tun",
            Self::Veth { .. } => "veth",
        }
    }
}

impl Endpoint {
    /// Its addresses with their on-link prefixes.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpNet> {
        let v4 = Ipv4Net::new(self.ipv4, self.prefix_len).ok().map(IpNet::V4);
        v4.into_iter().chain(self.ipv6.map(IpNet::V6)).collect()
    }

    /// Whether it has untagged frames: those of the gateway have no tag.
    #[must_use]
    pub fn hears_the_gateway(&self) -> bool {
        EndpointOptions::parse(&self.options).is_ok_and(|own| own.vlans.untagged().is_some())
    }
}

impl Sandbox {
    /// The file to enter its namespace by; `None`: it is the host's.
    #[must_use]
    pub fn namespace_path(&self) -> Option<PathBuf> {
        self.namespace.path(&self.name)
    }

    /// Our ends of its veth pairs.
    #[must_use]
    pub fn host_ends(&self) -> Vec<String> {
        self.endpoints.iter().filter_map(|e| e.wire.host_end()).map(str::to_owned).collect()
    }
}

impl Namespace {
    /// The file to enter it by; `None`: it is the host's.
    #[must_use]
    pub fn path(&self, name: &Name) -> Option<PathBuf> {
        match self {
            Self::Made { .. } => Some(Path::new(NETNS_DIR).join(name.as_str())),
            Self::Adopted { path, .. } => Some(path.clone()),
            Self::Host => None,
        }
    }

    /// Its inode; `None`: it is the host's.
    #[must_use]
    pub const fn inode(&self) -> Option<u64> {
        match self {
            Self::Made { inode } | Self::Adopted { inode, .. } => Some(*inode),
            Self::Host => None,
        }
    }
}
