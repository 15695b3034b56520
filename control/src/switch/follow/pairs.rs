//! The sandboxes' ends of veth pairs: those that somebody moved to another namespace.
//!
//! The host's end tells by numbers what it leads to. As long as these stay the same, so does where
//! the other end is; only when they change is the sandbox looked into. A move of an end that is up
//! takes the carrier from the host's end, of which there is a message; one that is down is seen
//! when something else happens to any interface of the host.

use std::collections::HashSet;

use dataplane::packet::types::PortId;

use super::ends::End;
use crate::error::Result;
use crate::netlink::Link;
use crate::place::Place;
use crate::switch::endpoint::open_namespace;
use crate::switch::{Switch, Work};

impl Switch {
    /// Ports whose pair has no end in its sandbox any more. Both ends of it are deleted.
    pub(super) async fn unpaired(&self, work: &mut Work) -> Vec<PortId> {
        let ends = self.ends();
        let names: HashSet<&String> = ends.iter().map(|end| &end.name).collect();
        work.pairs.retain(|name, _| names.contains(name));
        let mut unpaired = Vec::new();
        if ends.is_empty() {
            return unpaired;
        }
        let links = match self.host.links().await {
            Ok(links) => links,
            Err(error) => {
                tracing::warn!("{error}");
                return unpaired;
            }
        };
        for end in ends {
            let Some(link) = links.iter().find(|link| link.name == end.name) else { continue };
            let Some(far) = link.far.filter(|far| work.pairs.get(&end.name) != Some(far)) else {
                continue;
            };
            match self.is_paired(&end, link).await {
                Ok(Some(true)) => {
                    work.pairs.insert(end.name, far);
                }
                Ok(Some(false)) => match self.host.remove(&end.name).await {
                    Ok(()) => unpaired.push(end.port),
                    Err(error) => tracing::warn!("{error}"),
                },
                // A sandbox that is gone is told of as such.
                Ok(None) => {}
                Err(error) => tracing::debug!("sandbox {:?}: {error}", end.sandbox),
            }
        }
        unpaired
    }

    /// Whether the other end is in the sandbox; `None`: that is gone.
    async fn is_paired(&self, end: &End, link: &Link) -> Result<Option<bool>> {
        let namespace = self.sandbox_record(&end.sandbox)?.namespace;
        let Some(netns) = open_namespace(&end.sandbox, &namespace)? else { return Ok(None) };
        Place::open(netns)?.has_far_end_of(link).await.map(Some)
    }
}
