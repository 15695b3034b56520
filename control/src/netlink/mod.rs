//! Kernel networking by netlink: links, addresses, routes, neighbors, traffic control.
//!
//! A [`Handle`] belongs to one network namespace: its socket is opened there, on a thread of its
//! own, and used from outside. Requests of several tasks may be in flight on one handle.
//!
//! Limits: an open handle keeps its namespace alive, so drop it before the namespace is to go.
//! Names from users are passed to the kernel as they are; it checks them.

pub mod blocking;
pub mod features;
pub mod link;
pub mod monitor;
pub mod route;
pub mod sockets;
pub mod tc;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use futures::StreamExt;
use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use nix::errno::Errno;

pub use link::{Far, Link, LinkChange};
pub use monitor::{Event, Monitor};
pub use route::{Neighbor, Route, RouteSpec};

use crate::error::{Error, Kind};
use crate::netns::{Netns, NetnsError};

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No netlink socket.
    #[error("open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("{action}: {}", code.desc())]
    Refused {
        /// What was tried.
        action: String,
        /// What the kernel said.
        code: Errno,
    },
    /// No such link.
    #[error("there is no interface {0:?}")]
    NoLink(String),
    /// What is there belongs to another program.
    #[error("{0}")]
    Foreign(String),
    /// The connection ended before the answer.
    #[error("{0}: the netlink connection has ended")]
    Closed(String),
}

impl NetlinkError {
    /// The kernel has no such thing (any more).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NoLink(_) => true,
            Self::Refused { code, .. } => matches!(
                code,
                Errno::ENOENT | Errno::ENODEV | Errno::ESRCH | Errno::EADDRNOTAVAIL | Errno::ENXIO
            ),
            _ => false,
        }
    }

    /// The kernel has it already.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        matches!(self, Self::Refused { code: Errno::EEXIST, .. })
    }
}

impl From<NetlinkError> for Error {
    fn from(error: NetlinkError) -> Self {
        let kind = match &error {
            NetlinkError::NoLink(_) => Kind::NotFound,
            NetlinkError::Foreign(_) => Kind::Conflict,
            NetlinkError::Netns(NetnsError::NotFound(_)) => Kind::NotFound,
            error if error.is_exists() => Kind::Conflict,
            _ => Kind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}

/// Whether a request may find what it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    /// That is an error.
    Fail,
    /// It is replaced.
    Replace,
}

impl IfExists {
    const fn flags(self) -> u16 {
        match self {
            Self::Fail => NLM_F_CREATE | NLM_F_EXCL,
            Self::Replace => NLM_F_CREATE | NLM_F_REPLACE,
        }
    }
}

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkAddress {
    /// The link's index.
    pub link: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// What it is good for.
    pub standing: Standing,
}

/// What an address is good for, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// It is there to stay, and to speak from. So is every one of IPv4.
    Lasting,
    /// Nothing new is to speak from it (RFC 4862).
    Deprecated,
    /// It is replaced every day or so (RFC 8981).
    Temporary,
    /// Somebody else may have it, or has.
    Doubtful,
}

impl Standing {
    fn of(ip: IpAddr, flags: AddressFlags) -> Self {
        // Of IPv4 the flag of temporary ones says "secondary", which is no less of an address.
        if ip.is_ipv4() {
            Self::Lasting
        } else if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed) {
            Self::Doubtful
        } else if flags.contains(AddressFlags::Secondary) {
            Self::Temporary
        } else if flags.contains(AddressFlags::Deprecated) {
            Self::Deprecated
        } else {
            Self::Lasting
        }
    }
}

impl LinkAddress {
    /// Reads the address of a message; `None` for families other than IP.
    #[must_use]
    pub fn parse(message: &AddressMessage) -> Option<Self> {
        let find = |local: bool| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) if local => Some(*ip),
                AddressAttribute::Address(ip) if !local => Some(*ip),
                _ => None,
            })
        };
        // On point-to-point links IFA_ADDRESS is the peer; IFA_LOCAL is absent for IPv6.
        let ip = find(true).or_else(|| find(false))?;
        let net = IpNet::new(ip, message.header.prefix_len).ok()?;
        let flags = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
        let few = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        let standing = Standing::of(ip, flags.unwrap_or(few));
        Some(Self { link: message.header.index, net, standing })
    }
}

/// A connection to the kernel's routing tables in one namespace.
#[derive(Debug, Clone)]
pub struct Handle {
    inner: rtnetlink::Handle,
}

impl Handle {
    /// Connects inside `netns`. The connection is served by the current tokio runtime and ends
    /// with the last clone of the handle.
    ///
    /// # Errors
    /// When the namespace cannot be entered or no socket is left.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open_in(netns: &Netns) -> Result<Self, NetlinkError> {
        let runtime = tokio::runtime::Handle::current();
        netns.run(|| {
            let _entered = runtime.enter();
            Self::open()
        })?
    }

    /// Connects in the namespace of the calling thread.
    ///
    /// # Errors
    /// When no socket is left.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let (mut connection, inner, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        // Without the acknowledgement a connection that died would look like success.
        connection.set_forward_ack(true);
        tokio::spawn(connection);
        Ok(Self { inner })
    }

    /// Every address, or those of one link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn addresses(&self, link: Option<u32>) -> Result<Vec<LinkAddress>, NetlinkError> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump("list addresses", message).await?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => LinkAddress::parse(message),
                _ => None,
            })
            // The kernel filters a dump by index only in strict mode; older ones never.
            .filter(|address| link.is_none_or(|index| address.link == index))
            .collect())
    }

    /// Every address by link index.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn addresses_by_link(&self) -> Result<HashMap<u32, Vec<IpNet>>, NetlinkError> {
        let mut by_link: HashMap<u32, Vec<IpNet>> = HashMap::new();
        for address in self.addresses(None).await? {
            by_link.entry(address.link).or_default().push(address.net);
        }
        Ok(by_link)
    }

    /// Gives a link an address, with the broadcast address `ip addr add … brd +` would set. One of
    /// IPv6 can be used at once: whoever gives it knows that nobody else has it.
    ///
    /// # Errors
    /// When the link is gone or has the address already and `if_exists` says so.
    pub async fn add_address(
        &self,
        link: u32,
        net: IpNet,
        if_exists: IfExists,
    ) -> Result<(), NetlinkError> {
        let mut message = address_message(link, net);
        if let IpNet::V4(v4) = net
            && v4.prefix_len() < 31
        {
            message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        if net.addr().is_ipv6() {
            message.header.flags |= AddressHeaderFlags::Nodad;
        }
        let request = RouteNetlinkMessage::NewAddress(message);
        self.acked(format!("add address {net}"), request, if_exists.flags()).await
    }

    /// Takes an address away.
    ///
    /// # Errors
    /// When the link does not have it.
    pub async fn delete_address(&self, link: u32, net: IpNet) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelAddress(address_message(link, net));
        self.acked(format!("delete address {net}"), message, 0).await
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) async fn acked(
        &self,
        action: impl Into<String>,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let action = action.into();
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let Ok(mut answers) = self.inner.clone().request(request) else {
            return Err(NetlinkError::Closed(action));
        };
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return match error.code {
                    None => Ok(()),
                    Some(_) => Err(refused(action, error.raw_code())),
                };
            }
        }
        Err(NetlinkError::Closed(action))
    }

    /// Sends a request for one object.
    pub(crate) async fn one(
        &self,
        action: impl Into<String>,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, NetlinkError> {
        let action = action.into();
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST;
        let Ok(mut answers) = self.inner.clone().request(request) else {
            return Err(NetlinkError::Closed(action));
        };
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => return Ok(inner),
                NetlinkPayload::Error(error) => return Err(refused(action, error.raw_code())),
                _ => {}
            }
        }
        Err(NetlinkError::Closed(action))
    }

    /// Sends a request for all objects of a kind.
    pub(crate) async fn dump(
        &self,
        action: impl Into<String>,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let action = action.into();
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let Ok(mut answers) = self.inner.clone().request(request) else {
            return Err(NetlinkError::Closed(action));
        };
        let mut found = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => found.push(inner),
                NetlinkPayload::Error(error) => return Err(refused(action, error.raw_code())),
                _ => {}
            }
        }
        Ok(found)
    }
}

fn refused(action: String, raw_code: i32) -> NetlinkError {
    NetlinkError::Refused { action, code: Errno::from_raw(raw_code.wrapping_neg()) }
}

fn address_message(link: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = link;
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    message
}

fn family_of(ip: IpAddr) -> netlink_packet_route::AddressFamily {
    match ip {
        IpAddr::V4(_) => netlink_packet_route::AddressFamily::Inet,
        IpAddr::V6(_) => netlink_packet_route::AddressFamily::Inet6,
    }
}
