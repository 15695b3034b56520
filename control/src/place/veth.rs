//! A veth pair as the device of an endpoint: one end in the sandbox, the other in the host's
//! namespace, read and written by a packet socket.
//!
//! The host's end is nothing that the host's stack may have a part in: it has no address, no IPv6
//! and no ARP, and a filter on its ingress drops every frame once the packet socket has its copy.
//! The filter is there before the end is up, and stays when no daemon runs.
//!
//! Both ends go together, so deleting either, or the namespace that either is in, deletes the pair.
//!
//! The alias of the host's end is its name, and is given last: what has none was left half made by
//! a daemon that was killed, and is made anew. The end in the sandbox has that alias too, from the
//! beginning: by it the pair is found again when somebody moved the host's end elsewhere.

use std::os::fd::AsFd;

use dataplane::frame::MAX_BIG_PACKET_LEN;
use dataplane::io::packet_socket::{PacketOptions, PacketSocket, Receive};
use dataplane::io::steer;

use super::{DeviceSpec, Found, Place};
use crate::error::{Error, Result, ResultExt};
use crate::netlink::{Link, LinkChange, features};

/// What a veth device announces to cut and a virtio-net header has no words for
/// (`virtio_net_hdr_from_skb`): segments in tunnels, which it shows as those of plain TCP; lists of
/// segments that were forwarded (`SKB_GSO_FRAGLIST`), which it shows as segments without a
/// checksum; and those of SCTP, which it refuses, so that they are lost.
const UNTOLD: [&str; 8] = [
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-gre-segmentation",
    "tx-gre-csum-segmentation",
    "tx-ipxip4-segmentation",
    "tx-ipxip6-segmentation",
    "tx-gso-list",
    "tx-sctp-segmentation",
];

impl Place {
    /// Makes a pair, up and with its addresses: `spec` is the end here, `host_end` the one in
    /// `host`. It is not finished before [`Self::mark_end`].
    ///
    /// # Errors
    /// A conflict when a name is taken; else when the kernel refuses. Nothing is left then.
    pub async fn make_veth(
        &self,
        spec: &DeviceSpec,
        host: &Self,
        host_end: &str,
    ) -> Result<PacketSocket> {
        self.remove_stray(spec, host_end).await?;
        if self.has(&spec.ifname).await? {
            return Err(Error::conflict(format!(
                "interface {:?} exists already; remove or rename it",
                spec.ifname
            )));
        }
        let mtu = LinkChange::new().mtu(u32::from(spec.mtu));
        let ours = mtu.clone().no_arp();
        host.netlink
            .add_veth(host_end, &ours, &spec.ifname, &mtu, &self.netns)
            .await
            .failed(format!("interface {:?}", spec.ifname))?;
        let outcome = self.set_up(spec, host, host_end).await;
        if outcome.is_err()
            && let Err(error) = host.remove(host_end).await
        {
            tracing::warn!("interface {host_end:?} stays behind: {error}");
        }
        outcome
    }

    /// Takes over a pair that is there and was finished, or makes it. The second value says which.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn adopt_veth(
        &self,
        spec: &DeviceSpec,
        host: &Self,
        host_end: &str,
    ) -> Result<(PacketSocket, Found)> {
        host.restore_end(host_end).await?;
        if let Some(link) = host.find(host_end).await? {
            let finished = link.alias.as_deref() == Some(host_end);
            if finished && self.has_far_end_of(&link).await? {
                host.raise_mtu(&link, spec.mtu).await?;
                if let Some(far) = link.far {
                    self.cut_tunnels(&spec.ifname, far.index);
                }
                let socket = host.open_veth(host_end).await?;
                self.mark_inner_end(spec, host_end).await;
                return Ok((socket, Found::Existing));
            }
            if finished {
                tracing::warn!(
                    "interface {:?}: is in its namespace no more, making it anew",
                    spec.ifname
                );
            } else {
                tracing::info!("interface {host_end:?}: was left half made, making it anew");
            }
            host.remove(host_end).await?;
        }
        Ok((self.make_veth(spec, host, host_end).await?, Found::Made))
    }

    /// Marks our end of a pair as that of one where nothing is left to do.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn mark_end(&self, host_end: &str) -> Result<()> {
        self.set_alias(host_end, host_end).await
    }

    /// Gives our end of a pair its name back, if somebody renamed it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn restore_end(&self, host_end: &str) -> Result<()> {
        self.restore(host_end, |link| is_end(link, host_end)).await
    }

    /// Whether the other end of a pair, of which `link` is the end in the host's namespace, is here.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn has_far_end_of(&self, link: &Link) -> Result<bool> {
        let Some(far) = link.far else { return Ok(false) };
        let leads_back = |here: &Link| {
            here.kind.as_deref() == Some("veth")
                && here.index == far.index
                && here.far.is_some_and(|near| near.index == link.index)
        };
        Ok(self.links().await?.iter().any(leads_back))
    }

    /// Sees to it that our end of a pair takes frames of this MTU: a shorter one loses the longer
    /// frames of both directions without a word.
    async fn raise_mtu(&self, link: &Link, mtu: u16) -> Result<()> {
        if link.mtu >= u32::from(mtu) {
            return Ok(());
        }
        tracing::info!("interface {:?}: MTU {mtu} instead of {}", link.name, link.mtu);
        let change = LinkChange::new().mtu(u32::from(mtu));
        let changed = self.netlink.change_link(link.index, &change).await;
        changed.failed(format!("interface {:?}", link.name))
    }

    /// Whether a filter of ours is at the ingress of the link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn has_filter(&self, link: &Link) -> Result<bool> {
        let found = self.netlink.has_steering(link.index).await;
        found.failed(format!("interface {:?}", link.name))
    }

    /// Sets the filter of our end of a pair, if it is not there. True: it was not.
    ///
    /// # Errors
    /// When the kernel refuses, or another program's filter is in its place.
    pub async fn ensure_filter(&self, link: &Link) -> Result<bool> {
        let context = || format!("interface {:?}", link.name);
        if self.has_filter(link).await? {
            return Ok(false);
        }
        let program = steer::hold_back().failed("load the filter of a veth endpoint")?;
        self.netlink.set_steering(link.index, program.as_fd()).await.failed(context())?;
        Ok(true)
    }

    /// Deletes our end of a pair, whatever it is called by now, and with it the other, which may be
    /// anywhere and have any name and MAC.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_end(&self, host_end: &str) -> Result<()> {
        if self.has(host_end).await? {
            return self.remove(host_end).await;
        }
        let links = self.links().await?;
        match links.iter().find(|link| is_end(link, host_end)) {
            Some(link) => self.remove(&link.name).await,
            None => Ok(()),
        }
    }

    async fn set_up(&self, spec: &DeviceSpec, host: &Self, host_end: &str) -> Result<PacketSocket> {
        let inner = self.netlink.link_by_name(&spec.ifname).await;
        let inner = inner.failed(format!("interface {:?}", spec.ifname))?;
        self.allow_big_tcp(&inner).await;
        self.cut_tunnels(&spec.ifname, inner.index);
        self.set_alias(&spec.ifname, host_end).await?;
        let socket = host.open_veth(host_end).await?;
        self.configure(spec).await?;
        Ok(socket)
    }

    /// Deletes the end here of a pair that has no end in the host's namespace, and so the other
    /// too, wherever somebody moved it.
    async fn remove_stray(&self, spec: &DeviceSpec, host_end: &str) -> Result<()> {
        let links = self.links().await?;
        let Some(link) = links.iter().find(|link| is_inner_end(link, spec, host_end)) else {
            return Ok(());
        };
        tracing::warn!(
            "interface {:?}: its other end {host_end:?} is in the host's namespace no more; making \
             both anew",
            link.name
        );
        self.remove(&link.name).await
    }

    /// Gives the end here its alias, if it has none: that of a pair that an earlier version made.
    async fn mark_inner_end(&self, spec: &DeviceSpec, host_end: &str) {
        let mark = async {
            match self.find(&spec.ifname).await? {
                Some(link) if link.alias.is_none() && is_inner_end(&link, spec, host_end) => {
                    self.set_alias(&spec.ifname, host_end).await
                }
                _ => Ok(()),
            }
        };
        // Nothing that the pair's work depends on.
        if let Err(error) = mark.await {
            tracing::warn!("{error}");
        }
    }

    /// Opens our end of a pair, and sees to it that only we have its frames.
    async fn open_veth(&self, host_end: &str) -> Result<PacketSocket> {
        let context = || format!("interface {host_end:?}");
        let link = self.netlink.link_by_name(host_end).await.failed(context())?;
        self.netns.disable_ipv6(host_end).failed(context())?;
        self.ensure_filter(&link).await?;
        let big_tcp = self.allow_big_tcp(&link).await;
        let options = PacketOptions {
            receive: Receive::Stream,
            big_tcp,
            watch_carrier: true,
            ..PacketOptions::default()
        };
        let socket = self
            .netns
            .run(|| PacketSocket::open(host_end, &options))
            .failed(context())?
            .map_err(|error| Error::failed(error.to_string()))?;
        let up = LinkChange::new().up();
        self.netlink.change_link(link.index, &up).await.failed(context())?;
        Ok(socket)
    }

    /// Has the stack here cut, before it sends them by this link, the frames that cannot be told of.
    fn cut_tunnels(&self, ifname: &str, index: u32) {
        let stay = match self.netns.run(|| features::switch_off(index, &UNTOLD)) {
            Ok(Ok(stay)) if stay.is_empty() => return,
            Ok(Ok(stay)) => format!("{} cannot be switched off", stay.join(", ")),
            Ok(Err(error)) => format!("switch off what it announces for them: {error}"),
            Err(error) => error.to_string(),
        };
        tracing::warn!(
            "interface {ifname:?}: segments of tunnels and of SCTP by it will be dropped: {stay}"
        );
    }

    /// Whether the link takes BIG TCP now. Linux before 6.3 does not know it.
    async fn allow_big_tcp(&self, link: &Link) -> bool {
        let change = LinkChange::new().big_tcp(MAX_BIG_PACKET_LEN);
        match self.netlink.change_link(link.index, &change).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!("interface {:?}: no BIG TCP: {error}", link.name);
                false
            }
        }
    }
}

/// Whether the link is the end in a sandbox of the pair whose other end was made by this name. One
/// whose alias was taken off is known by all that is left.
fn is_inner_end(link: &Link, spec: &DeviceSpec, host_end: &str) -> bool {
    link.kind.as_deref() == Some("veth")
        && match link.alias.as_deref() {
            Some(alias) => alias == host_end,
            None => link.name == spec.ifname && link.mac == Some(spec.mac),
        }
}

/// Whether the link is the finished end that was made by this name.
fn is_end(link: &Link, host_end: &str) -> bool {
    link.kind.as_deref() == Some("veth") && link.alias.as_deref() == Some(host_end)
}
