//! Uplinks follow what the host does with their interfaces, addresses, routes and ports.

use dataplane::packet::types::PortId;

use super::uplink_state;
use crate::api::types::{UplinkAdd, UplinkMode};
use crate::error::{Result, ResultExt};
use crate::host::HostFacts;
use crate::model::{Origin, Uplink};
use crate::netlink::sockets::HostPorts;
use crate::publish::PortRange;
use crate::switch::warnings::Subject;
use crate::switch::{Switch, Work};

/// How much of the host to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Interfaces, addresses, routes and ports: something changed.
    All,
    /// Only what no message tells.
    Ports,
}

impl Switch {
    /// Adds the interface of the host's default route if nobody named an uplink, and follows it
    /// when the default route moves.
    pub(in crate::switch) async fn follow_default_route(&self, work: &mut Work) -> Result<()> {
        let (present, wanted) = {
            let world = self.world();
            let uplinks = &world.desired.uplinks;
            if uplinks.values().any(|uplink| uplink.origin != Origin::Automatic) {
                return Ok(());
            }
            let wanted = world.host.default_interface().map(str::to_owned);
            (uplinks.values().next().cloned(), wanted)
        };
        let Some(interface) = wanted else { return Ok(()) };
        match present {
            Some(uplink) if uplink.interface == interface => return Ok(()),
            Some(uplink) => self.drop_uplink(work, &uplink).await?,
            None => {}
        }
        let request = UplinkAdd {
            interface,
            mode: UplinkMode::Shared,
            addresses: Vec::new(),
            gateway: None,
            gateway6: None,
            nat_ports: None,
        };
        self.add_uplink_in(work, &request, Origin::Automatic).await
    }

    /// Lets uplinks follow the host: ports in use, and with [`Look::All`] addresses, gateways, and
    /// interfaces that came or went.
    ///
    /// # Errors
    /// When the host cannot be read; what fails for one uplink is logged.
    pub async fn follow_host(&self, look: Look) -> Result<()> {
        let mut work = self.work.lock().await;
        let mut changed = self.world().stale;
        if look == Look::All {
            changed |= self.note_host(HostFacts::read(&self.host.netlink).await?);
        }
        let uplinks: Vec<Uplink> = self.world().desired.uplinks.values().cloned().collect();
        let (ports, gone) = (self.host_ports_or_last(&mut work)?, self.engine.gone_ports());
        for uplink in uplinks {
            changed |= self.follow_interface(&mut work, &uplink, &ports, &gone).await;
        }
        changed |= self.note_hairpin_ports(&ports);
        if changed {
            self.publish_ports(&mut work).await?;
        }
        let purged = self.world().purged;
        if purged {
            return Ok(());
        }
        if look == Look::All {
            self.add_missing_uplinks(&mut work).await;
        }
        if let Err(error) = self.follow_default_route(&mut work).await {
            self.warn(Subject::AutomaticUplink, error.to_string());
        }
        self.retry_publishes(&mut work, &ports);
        self.settle_warnings();
        Ok(())
    }

    /// Declared uplinks whose interface was not there at the start.
    async fn add_missing_uplinks(&self, work: &mut Work) {
        for request in &self.settings.uplinks {
            let due = {
                let world = self.world();
                world.misses_uplink(&request.interface)
                    && world.host.link(&request.interface).is_some()
            };
            if !due {
                continue;
            }
            if let Err(error) = self.add_uplink_in(work, request, Origin::Config).await {
                let subject = Subject::MissingUplink(request.interface.clone());
                self.warn(subject, error.to_string());
            }
        }
    }

    /// Brings one uplink in line with its interface; true: something changed.
    async fn follow_interface(
        &self,
        work: &mut Work,
        uplink: &Uplink,
        ports: &HostPorts,
        gone: &[PortId],
    ) -> bool {
        let name = &uplink.interface;
        let (before, after) = {
            let world = self.world();
            let before = world.attached.uplinks.get(name).cloned();
            let port = before.as_ref().map_or(PortId(0), |state| state.port);
            let id = &work.store.installation().id;
            (before, uplink_state(&world.host, uplink, port, id, ports))
        };
        let outcome = match (before, after) {
            (None, None) => return false,
            (Some(before), Some(after)) if !gone.contains(&before.port) => {
                let changed = before != after;
                self.note_addresses(uplink);
                self.world_mut().attached.uplinks.insert(name.clone(), after);
                return changed;
            }
            (None, Some(_)) => {
                tracing::info!("uplink {name:?}: its interface is there");
                self.bring_up(work, uplink).await
            }
            (Some(_), after) => {
                self.warn(
                    Subject::Uplink(name.clone()),
                    format!("uplink {name:?}: its interface went away"),
                );
                match (self.lay_down(work, name).await, after) {
                    (Ok(()), Some(_)) => self.bring_up(work, uplink).await,
                    (outcome, _) => outcome,
                }
            }
        };
        if let Err(error) = outcome {
            self.warn(Subject::Uplink(name.clone()), format!("uplink {name:?}: {error}"));
        }
        true
    }

    /// Ports in use by the host's own stack, those that we hold for it among them.
    ///
    /// # Errors
    /// When the host cannot be read. Nothing may be taken for free then.
    pub(in crate::switch) fn host_ports(&self) -> Result<HostPorts> {
        if !self.world().has_shared_uplink() {
            // The host's own ports are nobody else's concern.
            return Ok(HostPorts::default());
        }
        HostPorts::read_in(&self.host.netns).failed("look at the host's ports")
    }

    /// Looks what ports are left for hairpins by the host's own addresses: those that the host does not use, as
    /// on a shared uplink. Without publications nothing needs them. `known`: as [`Switch::host_ports`] has found
    /// them. True: others than before.
    pub(in crate::switch) fn note_hairpin_ports(&self, known: &HostPorts) -> bool {
        if !self.needs_hairpin_ports() {
            return self.world_mut().attached.hairpin_ports.take().is_some();
        }
        let is_known = self.world().has_shared_uplink();
        let read;
        let ports = if is_known {
            known
        } else {
            match HostPorts::read_in(&self.host.netns) {
                Ok(ports) => read = ports,
                Err(error) => {
                    // They stay as they were. A shared uplink would be told of as well.
                    tracing::debug!("look at the host's ports: {error}");
                    return false;
                }
            }
            &read
        };
        let ranges = ports
            .hairpin_ports()
            .into_iter()
            .filter_map(|(first, last)| PortRange::new(first, last));
        let free = Some(ranges.collect());
        let before = std::mem::replace(&mut self.world_mut().attached.hairpin_ports, free.clone());
        if ports.nat_ports().is_empty() {
            self.warn(
                Subject::HairpinPorts,
                "the host hands out every port itself: containers that reach published ports by addresses that no \
                 uplink has (hairpins) share ports with its connections; narrow ip_local_port_range"
                    .to_owned(),
            );
        } else {
            self.forget_warnings(|subject| *subject == Subject::HairpinPorts);
        }
        before != free
    }

    /// Whether anything is published, so that there can be hairpins.
    pub(in crate::switch) fn needs_hairpin_ports(&self) -> bool {
        self.world().desired.publishes().next().is_some()
    }

    /// Ports in use by the host, or those of the last time if they cannot be read now.
    fn host_ports_or_last(&self, work: &mut Work) -> Result<HostPorts> {
        match (self.host_ports(), &work.host_ports) {
            (Ok(ports), _) => {
                self.forget_warnings(|subject| *subject == Subject::HostPorts);
                work.host_ports = Some(ports.clone());
                Ok(ports)
            }
            (Err(error), Some(last)) => {
                self.warn(Subject::HostPorts, error.to_string());
                Ok(last.clone())
            }
            (Err(error), None) => Err(error),
        }
    }
}
