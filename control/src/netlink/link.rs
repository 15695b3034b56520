//! Links: find, change, make, move and delete interfaces.

use std::os::fd::AsRawFd;

use dataplane::packet::types::Mac;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

use super::{Handle, NetlinkError};
use crate::netns::Netns;

/// An interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index, unique in the namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Ethernet address, for links that have one.
    pub mac: Option<Mac>,
    /// Longest IP packet.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up, and the other side is there (`LOWER_UP`).
    pub carrier: bool,
    /// How often it has got a carrier.
    pub carrier_ups: u32,
    /// `lo` or another loopback.
    pub loopback: bool,
    /// An Ethernet-like link, one that carries frames.
    pub ethernet: bool,
    /// The driver's kind (`veth`, `tun`, `bridge`, …); `None` for hardware.
    pub kind: Option<String>,
    /// Index of the bridge, bond or VRF it is part of.
    pub controller: Option<u32>,
    /// Alternative text set by an administrator or by us.
    pub alias: Option<String>,
    /// What it leads to, for a link that has such a thing.
    pub far: Option<Far>,
}

/// What a link leads to: the other end of a veth pair, or the device that a VLAN is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Far {
    /// Its index in its namespace.
    pub index: u32,
    /// The number that the link's namespace has for that one; `None`: it is the same.
    pub netns: Option<i32>,
}

impl Link {
    /// Reads a link message.
    #[must_use]
    pub fn parse(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            carrier_ups: 0,
            loopback: flags.contains(LinkFlags::Loopback),
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            kind: None,
            controller: None,
            alias: None,
            far: None,
        };
        let mut far_netns = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::CarrierUpCount(count) => link.carrier_ups = *count,
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) => {
                    link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
                }
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Link(index) => link.far = Some(Far { index: *index, netns: None }),
                LinkAttribute::LinkNetNsId(id) => far_netns = Some(*id),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        if let Some(far) = &mut link.far {
            far.netns = far_netns;
        }
        link
    }
}

/// What to change of a link, in one request. Unset fields stay as they are.
#[derive(Debug, Clone, Default)]
pub struct LinkChange {
    name: Option<String>,
    mac: Option<Mac>,
    mtu: Option<u32>,
    up: Option<bool>,
    controller: Option<u32>,
    alias: Option<String>,
    big_tcp: Option<u32>,
    queue: Option<u32>,
    no_arp: bool,
}

impl LinkChange {
    /// Changes nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Rename. The link must be down on kernels before 6.0.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Set the Ethernet address.
    #[must_use]
    pub fn mac(mut self, mac: Mac) -> Self {
        self.mac = Some(mac);
        self
    }

    /// Set the longest IP packet.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// Set up.
    #[must_use]
    pub fn up(mut self) -> Self {
        self.up = Some(true);
        self
    }

    /// Set down.
    #[must_use]
    pub fn down(mut self) -> Self {
        self.up = Some(false);
        self
    }

    /// Make it part of a bridge, by the bridge's index; 0 takes it out.
    #[must_use]
    pub fn controller(mut self, index: u32) -> Self {
        self.controller = Some(index);
        self
    }

    /// Set the alternative text (`ip link set … alias`).
    #[must_use]
    pub fn alias(mut self, alias: impl Into<String>) -> Self {
        self.alias = Some(alias.into());
        self
    }

    /// Do not answer or ask by ARP.
    #[must_use]
    pub fn no_arp(mut self) -> Self {
        self.no_arp = true;
        self
    }

    /// Set the largest GSO and GRO packets of both IP versions (BIG TCP, Linux 6.3).
    #[must_use]
    pub fn big_tcp(mut self, bytes: u32) -> Self {
        self.big_tcp = Some(bytes);
        self
    }

    /// Set how many frames wait for the device. Costs little only while the link is down.
    #[must_use]
    pub fn queue(mut self, frames: u32) -> Self {
        self.queue = Some(frames);
        self
    }

    fn apply(&self, message: &mut LinkMessage) {
        match self.up {
            Some(true) => {
                message.header.flags |= LinkFlags::Up;
                message.header.change_mask |= LinkFlags::Up;
            }
            Some(false) => message.header.change_mask |= LinkFlags::Up,
            None => {}
        }
        if self.no_arp {
            message.header.flags |= LinkFlags::Noarp;
            message.header.change_mask |= LinkFlags::Noarp;
        }
        let attributes = &mut message.attributes;
        attributes.extend(self.name.clone().map(LinkAttribute::IfName));
        attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        attributes.extend(self.controller.map(LinkAttribute::Controller));
        attributes.extend(self.alias.clone().map(LinkAttribute::IfAlias));
        attributes.extend(self.queue.map(LinkAttribute::TxQueueLen));
        // That of IPv6 first: it sets the other too, as far as that is not beyond 64 KiB.
        attributes.extend(self.big_tcp.map(LinkAttribute::GsoMaxSize));
        attributes.extend(self.big_tcp.map(LinkAttribute::GroMaxSize));
        attributes.extend(self.big_tcp.map(LinkAttribute::GsoIpv4MaxSize));
        attributes.extend(self.big_tcp.map(LinkAttribute::GroIpv4MaxSize));
    }
}

impl Handle {
    /// Every link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump("list interfaces", message).await?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(Link::parse(message)),
                _ => None,
            })
            .collect())
    }

    /// The link of that name.
    ///
    /// # Errors
    /// [`NetlinkError::NoLink`] when there is none.
    pub async fn link_by_name(&self, name: &str) -> Result<Link, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.link(name.to_owned(), message).await
    }

    /// The link of that index.
    ///
    /// # Errors
    /// [`NetlinkError::NoLink`] when there is none.
    pub async fn link_by_index(&self, index: u32) -> Result<Link, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.link(index.to_string(), message).await
    }

    async fn link(&self, text: String, message: LinkMessage) -> Result<Link, NetlinkError> {
        let action = format!("look up interface {text:?}");
        match self.one(action, RouteNetlinkMessage::GetLink(message)).await {
            Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Link::parse(&message)),
            Ok(_) => Err(NetlinkError::NoLink(text)),
            Err(error) if error.is_not_found() => Err(NetlinkError::NoLink(text)),
            // ERANGE and EINVAL: too long or otherwise no name a link could have.
            Err(NetlinkError::Refused {
                code: nix::errno::Errno::ERANGE | nix::errno::Errno::EINVAL,
                ..
            }) => Err(NetlinkError::NoLink(text)),
            Err(error) => Err(error),
        }
    }

    /// Changes a link.
    ///
    /// # Errors
    /// When the link is gone or refuses.
    pub async fn change_link(&self, index: u32, change: &LinkChange) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        change.apply(&mut message);
        // RTM_NEWLINK, not RTM_SETLINK: only it takes every attribute.
        let request = RouteNetlinkMessage::NewLink(message);
        self.acked(format!("change interface {index}"), request, 0).await
    }

    /// Moves a link into a namespace, under a new name if given.
    ///
    /// # Errors
    /// When the link is gone, may not move, or the name is taken there.
    pub async fn move_link(
        &self,
        index: u32,
        netns: &Netns,
        name: Option<&str>,
    ) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::NetNsFd(netns_raw(netns)));
        message.attributes.extend(name.map(|name| LinkAttribute::IfName(name.to_owned())));
        let request = RouteNetlinkMessage::NewLink(message);
        self.acked(format!("move interface {index}"), request, 0).await
    }

    /// Deletes a link.
    ///
    /// # Errors
    /// When it is gone already or cannot be deleted.
    pub async fn delete_link(&self, index: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let request = RouteNetlinkMessage::DelLink(message);
        self.acked(format!("delete interface {index}"), request, 0).await
    }

    /// Makes a veth pair: `name` here, `peer` in `peer_netns`. The kernel refuses to set the peer up
    /// in the same request; change it afterwards from its own namespace.
    ///
    /// # Errors
    /// When a name is taken.
    pub async fn add_veth(
        &self,
        name: &str,
        change: &LinkChange,
        peer: &str,
        peer_change: &LinkChange,
        peer_netns: &Netns,
    ) -> Result<(), NetlinkError> {
        let mut peer_message = LinkMessage::default();
        peer_message.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        peer_message.attributes.push(LinkAttribute::NetNsFd(netns_raw(peer_netns)));
        peer_change.apply(&mut peer_message);
        let info = vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer_message))),
        ];
        self.add_link(name, change, info).await
    }

    /// Makes a bridge of the kernel.
    ///
    /// # Errors
    /// When the name is taken.
    pub async fn add_bridge(&self, name: &str, change: &LinkChange) -> Result<(), NetlinkError> {
        self.add_link(name, change, vec![LinkInfo::Kind(InfoKind::Bridge)]).await
    }

    async fn add_link(
        &self,
        name: &str,
        change: &LinkChange,
        info: Vec<LinkInfo>,
    ) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        change.apply(&mut message);
        message.attributes.push(LinkAttribute::LinkInfo(info));
        let request = RouteNetlinkMessage::NewLink(message);
        self.acked(format!("create interface {name:?}"), request, NLM_F_CREATE | NLM_F_EXCL).await
    }
}

fn netns_raw(netns: &Netns) -> i32 {
    std::os::fd::AsFd::as_fd(netns).as_raw_fd()
}
