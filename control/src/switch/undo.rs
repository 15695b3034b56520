//! Taking back what a change did before it failed.

use std::net::IpAddr;

use dataplane::packet::types::{Mac, NetworkId, PortId};

use super::sandbox::LOOPBACK;
use super::{Switch, Work};
use crate::error::{Result, ResultExt};
use crate::model::{Edit, Uplink};
use crate::name::Name;
use crate::netlink::LinkChange;
use crate::netns::{self, Netns};
use crate::place::Place;

/// One thing done, as what takes it back.
#[derive(Debug)]
pub(super) enum Done {
    /// An address was given out.
    Address(Name, IpAddr),
    /// A device was made in the host's namespace.
    HostDevice(String),
    /// Work was announced.
    Intent(u64),
    /// The loopback device of a namespace was set up.
    Loopback(Netns),
    /// A namespace was named.
    Namespace(Name),
    /// A TAP was made in a namespace.
    Device(Netns, String),
    /// A pair was made with this end in the host's namespace.
    Pair(String),
    /// Records were changed; these edits change them back.
    Records(Vec<Edit>),
    /// A device was attached to the engine.
    Port(PortId),
    /// Host ports were reserved.
    Reservation(u32),
    /// A static FDB entry was added.
    StaticMac(NetworkId, u16, Mac),
    /// An uplink was brought up.
    Uplink(String),
    /// An uplink was taken down.
    UplinkGone(Uplink),
}

/// What was done so far, first thing first.
#[derive(Debug, Default)]
pub(super) struct Undo {
    done: Vec<Done>,
}

impl Undo {
    /// Notes a thing done.
    pub(super) fn push(&mut self, done: Done) {
        self.done.push(done);
    }
}

impl Switch {
    /// Takes everything back, last thing first. What cannot be taken back is logged, and the
    /// announcement stays so that the next start tries again. Records that cannot be taken back keep
    /// what they stand for: they would lead to things that are gone, or are another's by then.
    pub(super) async fn roll_back(&self, work: &mut Work, undo: Undo) {
        let mut clean = true;
        for done in undo.done.into_iter().rev() {
            let outcome = match done {
                Done::Address(network, address) => {
                    work.retract(&network, address);
                    Ok(())
                }
                Done::HostDevice(ifname) => self.host.remove(&ifname).await,
                Done::Pair(host_end) => self.host.remove_end(&host_end).await,
                Done::Intent(id) if clean => self.commit(work, vec![Edit::RemoveIntent(id)]),
                Done::Intent(_) => Ok(()),
                Done::Namespace(name) => netns::delete(name.as_str())
                    .map_err(|error| crate::error::Error::failed(error.to_string())),
                Done::Loopback(netns) => lower_loopback(netns).await,
                Done::Device(netns, ifname) => match Place::open(netns) {
                    Ok(place) => place.remove(&ifname).await,
                    Err(error) => Err(error),
                },
                Done::Records(edits) => {
                    if let Err(error) = self.take_back(work, edits).await {
                        tracing::warn!("could not undo, so it stays: {error}");
                        return;
                    }
                    Ok(())
                }
                Done::Port(port) => {
                    self.world_mut().attached.forget(port);
                    self.detach(port);
                    Ok(())
                }
                Done::Reservation(publish) => {
                    work.unreserve(publish).await;
                    Ok(())
                }
                Done::StaticMac(network, vlan, mac) => {
                    // Whoever removed it meanwhile has done the same.
                    self.engine.fdb_remove(network, vlan, mac);
                    Ok(())
                }
                Done::Uplink(interface) => self.take_down_uplink(work, &interface).await,
                Done::UplinkGone(uplink) => self.raise_again(work, &uplink).await,
            };
            if let Err(error) = outcome {
                clean = false;
                tracing::warn!("could not undo: {error}");
            }
        }
    }

    /// Records as they were, and the workers told, so that no frame is on its way to a device that
    /// goes next.
    async fn take_back(&self, work: &mut Work, edits: Vec<Edit>) -> Result<()> {
        self.commit(work, edits)?;
        {
            let world = self.world();
            work.pools.retain(|network, _| world.desired.networks.contains_key(network));
        }
        self.publish_or_later(work).await;
        Ok(())
    }
}

async fn lower_loopback(netns: Netns) -> Result<()> {
    let place = Place::open(netns)?;
    let loopback = place.netlink.link_by_name(LOOPBACK).await.failed("look at lo")?;
    place.netlink.change_link(loopback.index, &LinkChange::new().down()).await.failed("set lo down")
}
