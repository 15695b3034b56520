//! Published ports: publish and unpublish.

mod choose;
mod hold;

use super::undo::Undo;
use super::{Switch, Work, view};
use crate::api::types::PortMapping;
use crate::check;
use crate::error::{Error, Result};
use crate::model::{Edit, Publish, Sandbox};
use crate::name::Name;
use crate::publish::PublishSpec;

pub(super) use crate::proxy::Reservation;

impl Switch {
    /// Publishes ports of a sandbox that is there.
    ///
    /// # Errors
    /// When a port is taken, or the sandbox has no network with a way in. All or nothing.
    pub async fn publish_on(&self, name: &Name, specs: &[PublishSpec]) -> Result<Vec<PortMapping>> {
        let wrap = |error: Error| error.context(format!("sandbox {name:?}"));
        check::publish(specs).map_err(wrap)?;
        let mut work = self.work.lock().await;
        let sandbox = self.sandbox_record(name)?;
        let mut undo = Undo::default();
        match self.publish_in(&mut work, sandbox, specs, &mut undo).await {
            Ok(added) => {
                let world = self.world();
                Ok(added.iter().flat_map(|p| world.desired.mappings_of(name, p)).collect())
            }
            Err(error) => {
                self.roll_back(&mut work, undo).await;
                Err(wrap(error))
            }
        }
    }

    async fn publish_in(
        &self,
        work: &mut Work,
        mut sandbox: Sandbox,
        specs: &[PublishSpec],
        undo: &mut Undo,
    ) -> Result<Vec<Publish>> {
        let mut counters = self.counters();
        let added = self.plan_publishes(work, &sandbox, specs, &mut counters, undo).await?;
        sandbox.publishes.extend(&added);
        let name = sandbox.name.clone();
        let edits = vec![Edit::Counters(counters), Edit::PutSandbox(sandbox)];
        self.commit_noting(work, edits, undo)?;
        self.publish_ports(work).await?;
        for publish in &added {
            let detail = view::describe_publish(publish);
            self.emit("port_publish", None, Some(&name), Some(detail));
        }
        Ok(added)
    }

    /// Takes published ports back. Connections through them end, others do not notice.
    ///
    /// # Errors
    /// When one of them is not published. All or nothing.
    pub async fn unpublish(&self, name: &Name, specs: &[PublishSpec]) -> Result<Vec<PortMapping>> {
        let mut work = self.work.lock().await;
        let mut sandbox = self.sandbox_record(name)?;
        let mut removed: Vec<Publish> = Vec::new();
        let mut mappings = Vec::new();
        for spec in specs {
            let before = sandbox.publishes.len();
            sandbox.publishes.retain(|publish| {
                let hit = names(spec, publish);
                if hit {
                    mappings.extend(self.world().desired.mappings_of(name, publish));
                    removed.push(*publish);
                }
                !hit
            });
            if sandbox.publishes.len() == before {
                return Err(Error::not_found(format!(
                    "sandbox {name:?}: {spec} is not published; see `vswitchctl port ls`"
                )));
            }
        }
        let mut undo = Undo::default();
        self.commit_noting(&work, vec![Edit::PutSandbox(sandbox)], &mut undo)?;
        if let Err(error) = self.publish_ports(&mut work).await {
            self.roll_back(&mut work, undo).await;
            return Err(error.context(format!("sandbox {name:?}")));
        }
        for publish in &removed {
            work.unreserve(publish.id).await;
            let detail = view::describe_publish(publish);
            self.emit("port_unpublish", None, Some(name), Some(detail));
        }
        Ok(mappings)
    }

    /// Gives workers and steering the rules as they are now.
    pub(super) async fn publish_ports(&self, work: &mut Work) -> Result<()> {
        self.note_nat_ports(work);
        if !self.needs_hairpin_ports() {
            // Whoever publishes next has them read anew.
            self.world_mut().attached.hairpin_ports = None;
        } else if self.world().attached.hairpin_ports.is_none()
            && let Ok(ports) = self.host_ports()
        {
            self.note_hairpin_ports(&ports);
        }
        let outcome = self.publish().and_then(|()| self.refresh_steering(work));
        self.world_mut().stale = outcome.is_err();
        outcome
    }

    /// As [`Switch::publish_ports`], where there is no way back: what fails is tried again by the
    /// follower.
    pub(super) async fn publish_or_later(&self, work: &mut Work) {
        if let Err(error) = self.publish_ports(work).await {
            tracing::warn!("{error}");
        }
    }
}

/// Whether the user means this mapping. A host port left out means every one, and a range to choose
/// one from every one of that range; a host address left out every one, and all of a family also
/// those of both.
fn names(spec: &PublishSpec, publish: &Publish) -> bool {
    spec.proto == publish.proto
        && spec.ports == publish.ports
        && spec.host_ports.is_none_or(|ports| {
            ports == publish.host_ports || spec.chooses() && ports.contains(publish.host_ports)
        })
        && spec.host_ip.is_none_or(|ip| {
            publish.host_ip.map_or(ip.is_unspecified(), |published| published == ip)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::{PortRange, Proto};

    fn range(first: u16, last: u16) -> PortRange {
        PortRange::new(first, last).unwrap()
    }

    #[test]
    fn unpublishing_names_mappings_as_publishing_does() {
        let publish = Publish {
            id: 1,
            proto: Proto::Tcp,
            host_ip: Some([127, 0, 0, 1].into()),
            host_ports: range(8080, 8080),
            ports: range(80, 80),
        };
        for (text, hit) in [
            ("80", true),
            ("8080:80", true),
            ("127.0.0.1:8080:80", true),
            ("127.0.0.1::80", true),
            ("80/udp", false),
            ("8081:80", false),
            ("10.0.0.1:8080:80", false),
            ("[::1]:8080:80", false),
            ("0.0.0.0:8080:80", false),
            ("81", false),
            ("8000-8100:80", true),
            ("8080-8081:80", true),
            ("8081-8090:80", false),
            ("8079-8080:79-80", false),
        ] {
            assert_eq!(names(&text.parse().unwrap(), &publish), hit, "{text}");
        }
        let everywhere = Publish { host_ip: None, ..publish };
        for (text, hit) in [
            ("8080:80", true),
            ("0.0.0.0:8080:80", true),
            ("[::]:8080:80", true),
            ("[::1]:8080:80", false),
            ("127.0.0.1:8080:80", false),
        ] {
            assert_eq!(names(&text.parse().unwrap(), &everywhere), hit, "{text}");
        }
    }
}
