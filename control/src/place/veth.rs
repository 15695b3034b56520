//! A veth pair as the device of an endpoint: one end in the sandbox, the other in the host's
//! namespace, read and written by a packet socket.
//!
//! The host's end is nothing that the host's stack may have a part in: it has no address, no IPv6
//! and no ARP, and a filter on its ingress drops every frame once the packet socket has its copy.
//! The filter is there before the end is up, and stays when no daemon runs.
//!
//! Both ends go together, so deleting either, or the namespace that either is in, deletes the pair.

use std::os::fd::AsFd;

use dataplane::frame::MAX_BIG_PACKET_LEN;
use dataplane::io::packet_socket::{PacketOptions, PacketSocket, Receive};
use dataplane::io::steer;

use super::{DeviceSpec, Found, Place};
use crate::error::{Error, Result, ResultExt};
use crate::netlink::{Link, LinkChange};

impl Place {
    /// Makes a pair, up and with its addresses: `spec` is the end here, `host_end` the one in
    /// `host`.
    ///
    /// # Errors
    /// A conflict when a name is taken; else when the kernel refuses. Nothing is left then.
    pub async fn make_veth(
        &self,
        spec: &DeviceSpec,
        host: &Self,
        host_end: &str,
    ) -> Result<PacketSocket> {
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

    /// Takes over a pair that is there, or makes it. The second value says which.
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
        if host.has(host_end).await? {
            Ok((host.open_veth(host_end).await?, Found::Existing))
        } else {
            Ok((self.make_veth(spec, host, host_end).await?, Found::Made))
        }
    }

    /// Gives our end of a pair its name back, if somebody renamed it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn restore_end(&self, host_end: &str) -> Result<()> {
        let ours = |link: &Link| {
            link.kind.as_deref() == Some("veth") && link.alias.as_deref() == Some(host_end)
        };
        self.restore(host_end, ours).await
    }

    async fn set_up(&self, spec: &DeviceSpec, host: &Self, host_end: &str) -> Result<PacketSocket> {
        let context = || format!("interface {host_end:?}");
        host.netns.disable_ipv6(host_end, true).failed(context())?;
        let inner = self.netlink.link_by_name(&spec.ifname).await;
        let inner = inner.failed(format!("interface {:?}", spec.ifname))?;
        self.allow_big_tcp(&inner).await;
        let socket = host.open_veth(host_end).await?;
        self.configure(spec).await?;
        Ok(socket)
    }

    /// Opens our end of a pair, and sees to it that only we have its frames.
    async fn open_veth(&self, host_end: &str) -> Result<PacketSocket> {
        let context = || format!("interface {host_end:?}");
        let link = self.netlink.link_by_name(host_end).await.failed(context())?;
        if !self.netlink.has_steering(link.index).await.failed(context())? {
            let program = steer::hold_back().failed("load the filter of a veth endpoint")?;
            let set = self.netlink.set_steering(link.index, program.as_fd()).await;
            set.failed(context())?;
        }
        let big_tcp = self.allow_big_tcp(&link).await;
        let options =
            PacketOptions { receive: Receive::Stream, big_tcp, ..PacketOptions::default() };
        let socket = self
            .netns
            .run(|| PacketSocket::open(host_end, &options))
            .failed(context())?
            .map_err(|error| Error::failed(error.to_string()))?;
        // The alias: making a link takes none.
        let up = LinkChange::new().alias(host_end).up();
        self.netlink.change_link(link.index, &up).await.failed(context())?;
        Ok(socket)
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
