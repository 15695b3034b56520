//! A network namespace with a netlink connection, and the devices we keep in it: TAPs here, veth
//! pairs in `veth`.
//!
//! A device is made persistent, configured and handed over open, or it is not there. All its
//! settings live in the kernel: after a restart it is attached to again without touching them.
//!
//! The alias of a TAP is given last: one without any may have been left half made by a daemon that
//! was killed, and is given what it lacks. An alias that somebody else gave stays.

mod veth;

use std::net::IpAddr;

use dataplane::io::tap::{Tap, TapOptions};
use dataplane::packet::types::Mac;
use ipnet::IpNet;

use crate::error::{Error, Result, ResultExt};
use crate::netlink::{Handle, IfExists, Link, LinkChange, RouteSpec};
use crate::netns::{IPV6_MIN_MTU, Netns};

/// "Always use the best local address for this target" (`ip-sysctl.rst`, `arp_announce`).
const ARP_ANNOUNCE_BEST: &str = "2";

/// Frames that wait in a TAP for us, where nothing else is configured. It never holds its sender up (`tun_net_xmit`), so that what
/// comes beyond is lost; and one TCP stream in frames of one MTU has more than the default of 1,000
/// under way. Not more than this: for a container that floods with frames of 64 KiB it is 128 MiB
/// of the host's memory already. Figures: docs/performance.md.
pub const TAP_QUEUE: u32 = 2000;

/// The alias that a TAP is given where nothing is left to do.
const FINISHED: &str = "vswitchd";

/// A namespace that devices are made in.
#[derive(Debug)]
pub struct Place {
    /// The namespace.
    pub netns: Netns,
    /// Its routing tables.
    pub netlink: Handle,
}

/// A device to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Name.
    pub ifname: String,
    /// MAC.
    pub mac: Mac,
    /// Longest IP packet.
    pub mtu: u16,
    /// Addresses with their on-link prefix. Without one of IPv6 it has no IPv6 at all.
    pub addresses: Vec<IpNet>,
    /// Frames that wait in it for us, if it is a TAP.
    pub queue: u32,
}

impl DeviceSpec {
    fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|net| net.addr().is_ipv6())
    }
}

impl Place {
    /// Connects to the namespace.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub fn open(netns: Netns) -> Result<Self> {
        let netlink = Handle::open_in(&netns).failed("open a netlink socket")?;
        Ok(Self { netns, netlink })
    }

    /// Makes a persistent device, up and with its addresses. It is not finished before
    /// [`Self::mark`].
    ///
    /// # Errors
    /// A conflict when the name is taken; else when the kernel refuses. Nothing is left then.
    pub async fn make(&self, spec: &DeviceSpec) -> Result<Tap> {
        if self.has(&spec.ifname).await? {
            return Err(Error::conflict(format!(
                "interface {:?} exists already; remove or rename it",
                spec.ifname
            )));
        }
        let tap = self.open_tap(&spec.ifname)?;
        match self.configure_tap(spec).await {
            Ok(()) => Ok(tap),
            Err(error) => {
                if let Err(again) = tap.set_persistent(false) {
                    tracing::warn!("interface {:?} stays behind: {again}", spec.ifname);
                }
                Err(error)
            }
        }
    }

    /// Attaches to a persistent device, or makes it if it is not there. The second value says
    /// which, and whether it is to be marked.
    ///
    /// # Errors
    /// When somebody else uses the device, or the kernel refuses.
    pub async fn adopt(&self, spec: &DeviceSpec) -> Result<(Tap, Found)> {
        let Some(link) = self.find(&spec.ifname).await? else {
            return Ok((self.make(spec).await?, Found::Made));
        };
        let tap = self.open_tap(&spec.ifname)?;
        // Ours, or somebody's own label in its place: a half made one has none.
        if link.alias.as_ref().is_some_and(|alias| !alias.is_empty()) {
            return Ok((tap, Found::Existing));
        }
        // Addresses come last. One that has them was made by a version that marked none, and what
        // was set on it since stays.
        if !link.up || !self.has_addresses(&link, &spec.addresses).await? {
            tracing::info!("interface {:?}: was left half made, finishing it", spec.ifname);
            self.configure_tap(spec).await?;
        }
        Ok((tap, Found::Unfinished))
    }

    /// Marks a device of [`Self::make`] or [`Self::adopt`] as one where nothing is left to do.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn mark(&self, ifname: &str) -> Result<()> {
        self.set_alias(ifname, FINISHED).await
    }

    /// Deletes a device, if it is there. It must not be attached any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove(&self, ifname: &str) -> Result<()> {
        let Some(link) = self.find(ifname).await? else { return Ok(()) };
        match self.netlink.delete_link(link.index).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error).failed(format!("interface {ifname:?}")),
        }
    }

    /// Deletes what is left here of a sandbox's devices: TAPs of these names, whatever their alias
    /// is by now, and what our ends of pairs lead to, whatever it is called. An interface of
    /// another kind that has one of the names stays, also a TUN.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_ours(&self, ifnames: &[String], host_ends: &[String]) -> Result<()> {
        let is_ours = |link: &Link| match link.kind.as_deref() {
            Some("tun") => link.ethernet && ifnames.contains(&link.name),
            Some("veth") => link.alias.as_ref().is_some_and(|alias| host_ends.contains(alias)),
            _ => false,
        };
        for link in self.links().await?.iter().filter(|link| is_ours(link)) {
            self.remove(&link.name).await?;
        }
        Ok(())
    }

    /// Gives a device of ours, known by its MAC, its name back, if somebody renamed it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn restore_name(&self, ifname: &str, mac: Mac) -> Result<()> {
        self.restore(ifname, |link| link.kind.as_deref() == Some("tun") && link.mac == Some(mac))
            .await
    }

    /// Gives the link that is `ours` its name back, if there is none of that name.
    async fn restore(&self, ifname: &str, ours: impl Fn(&Link) -> bool) -> Result<()> {
        if self.has(ifname).await? {
            return Ok(());
        }
        let links = self.links().await?;
        let Some(link) = links.iter().find(|link| ours(link)) else { return Ok(()) };
        let context = || format!("interface {:?}: rename it to {ifname:?}", link.name);
        // Before Linux 6.0 only a link that is down can be renamed.
        let down = LinkChange::new().down();
        self.netlink.change_link(link.index, &down).await.failed(context())?;
        let up = LinkChange::new().name(ifname).up();
        self.netlink.change_link(link.index, &up).await.failed(context())?;
        tracing::info!("interface {:?}: is called {ifname:?} again", link.name);
        Ok(())
    }

    /// Makes the default route of a family lead to `gateway` by this device.
    ///
    /// # Errors
    /// When the device is gone, there is a route and `if_exists` says so, or the kernel refuses.
    pub async fn set_default_route(
        &self,
        ifname: &str,
        gateway: IpAddr,
        if_exists: IfExists,
    ) -> Result<()> {
        let context = || format!("interface {ifname:?}: default route via {gateway}");
        let link = self.netlink.link_by_name(ifname).await.failed(context())?;
        let route = RouteSpec::default_via(gateway, link.index);
        self.netlink.add_route(&route, if_exists).await.failed(context())
    }

    /// Takes the default route to `gateway` by this device away, if that is the one there is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_default_route(&self, ifname: &str, gateway: IpAddr) -> Result<()> {
        let context = || format!("interface {ifname:?}: default route via {gateway}");
        let link = match self.netlink.link_by_name(ifname).await {
            Ok(link) => link,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error).failed(context()),
        };
        let route = RouteSpec::default_via(gateway, link.index);
        match self.netlink.delete_route(&route).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error).failed(context()),
        }
    }

    /// Whether an interface of that name is there.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn has(&self, ifname: &str) -> Result<bool> {
        Ok(self.find(ifname).await?.is_some())
    }

    /// The interface of that name, if it is there.
    async fn find(&self, ifname: &str) -> Result<Option<Link>> {
        match self.netlink.link_by_name(ifname).await {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error).failed(format!("interface {ifname:?}")),
        }
    }

    async fn has_addresses(&self, link: &Link, addresses: &[IpNet]) -> Result<bool> {
        let context = || format!("interface {:?}", link.name);
        let there = self.netlink.addresses(Some(link.index)).await.failed(context())?;
        let has = |address: &IpNet| there.iter().any(|found| found.net == *address);
        Ok(addresses.iter().all(has))
    }

    async fn set_alias(&self, ifname: &str, alias: &str) -> Result<()> {
        let context = || format!("interface {ifname:?}");
        let link = self.netlink.link_by_name(ifname).await.failed(context())?;
        let change = LinkChange::new().alias(alias);
        self.netlink.change_link(link.index, &change).await.failed(context())
    }

    /// Sets the MTU of a device that it is `wanted` for. IPv6 stays off where it was: below
    /// [`IPV6_MIN_MTU`] the kernel has forgotten that, and no network with IPv6 has so little.
    ///
    /// # Errors
    /// When the kernel refuses. A device that is not there is none.
    pub async fn change_mtu(
        &self,
        ifname: &str,
        mtu: u16,
        wanted: impl FnOnce(u32) -> bool,
    ) -> Result<()> {
        let Some(link) = self.find(ifname).await?.filter(|link| wanted(link.mtu)) else {
            return Ok(());
        };
        let context = || format!("interface {ifname:?}");
        let change = LinkChange::new().mtu(u32::from(mtu));
        self.netlink.change_link(link.index, &change).await.failed(context())?;
        if (link.mtu..u32::from(mtu)).contains(&(IPV6_MIN_MTU - 1)) {
            self.netns.disable_ipv6(ifname).failed(context())?;
        }
        Ok(())
    }

    /// Every interface.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn links(&self) -> Result<Vec<Link>> {
        self.netlink.links().await.failed("list interfaces")
    }

    fn open_tap(&self, ifname: &str) -> Result<Tap> {
        let options = TapOptions { name: ifname.to_owned(), persistent: true };
        self.netns
            .run(|| Tap::create(&options))
            .failed(format!("interface {ifname:?}"))?
            .map_err(|error| Error::failed(error.to_string()))
    }

    async fn configure_tap(&self, spec: &DeviceSpec) -> Result<()> {
        let context = || format!("interface {:?}", spec.ifname);
        let link = self.netlink.link_by_name(&spec.ifname).await.failed(context())?;
        // Before it is up: after that the kernel would stop and start its queue.
        let queue = LinkChange::new().queue(spec.queue);
        self.netlink.change_link(link.index, &queue).await.failed(context())?;
        self.configure(spec).await
    }

    async fn configure(&self, spec: &DeviceSpec) -> Result<()> {
        let context = || format!("interface {:?}", spec.ifname);
        let mut addresses = spec.addresses.clone();
        if !spec.has_ipv6() {
            self.netns.disable_ipv6(&spec.ifname).failed(context())?;
        } else if !self.netns.enable_ipv6(&spec.ifname).failed(context())? {
            tracing::warn!("interface {:?}: gets no IPv6, the kernel has none", spec.ifname);
            addresses.retain(|net| net.addr().is_ipv4());
        }
        // A sandbox in two networks may send from one's address by the other. Left to itself, Linux
        // then asks for the gateway in the name of that address, which the source guard refuses.
        let announce = format!("net/ipv4/conf/{}/arp_announce", spec.ifname);
        self.netns.write_sysctl(&announce, ARP_ANNOUNCE_BEST).failed(context())?;
        let link = self.netlink.link_by_name(&spec.ifname).await.failed(context())?;
        let change = LinkChange::new().mac(spec.mac).mtu(u32::from(spec.mtu)).up();
        self.netlink.change_link(link.index, &change).await.failed(context())?;
        for address in addresses {
            let added = self.netlink.add_address(link.index, address, IfExists::Replace).await;
            added.failed(context())?;
        }
        Ok(())
    }
}

/// Whether a device was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It was, with its settings.
    Existing,
    /// It was not, and is fresh.
    Made,
    /// It was, perhaps without all its settings, and has them now.
    Unfinished,
}
