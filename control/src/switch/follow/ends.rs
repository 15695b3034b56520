//! The host's ends of veth pairs: those that are gone, and their filters.
//!
//! A filter is put back when a message says that something happened at the ingress of its link, and
//! every two seconds while that fails. Between the loss and the message's being read, 200 ms later,
//! the host's stack has the sandbox's frames too.

use std::collections::HashSet;

use dataplane::packet::types::PortId;

use crate::model::Wire;
use crate::name::Name;
use crate::netlink::Event;
use crate::switch::Switch;
use crate::switch::warnings::Subject;

/// Links at whose ingress something changed.
#[derive(Debug, Default)]
pub struct Touched {
    links: HashSet<u32>,
    /// Messages were lost: it may have been any.
    all: bool,
}

impl Touched {
    /// Takes note of a change.
    pub fn note(&mut self, event: &Event) {
        match event {
            Event::IngressChanged(link) => {
                self.links.insert(*link);
            }
            Event::Overrun => self.all = true,
            _ => {}
        }
    }

    fn is_empty(&self) -> bool {
        self.links.is_empty() && !self.all
    }

    fn has(&self, link: u32) -> bool {
        self.all || self.links.contains(&link)
    }
}

/// The host's end of an endpoint that is attached.
struct End {
    sandbox: Name,
    name: String,
    port: PortId,
}

impl Switch {
    /// Puts filters back that somebody took off the host's ends of veth pairs.
    pub async fn follow_filters(&self, touched: &Touched) {
        if touched.is_empty() && self.world().unfiltered.is_empty() {
            return;
        }
        // An end that is being made has its filter soon, one that is being removed needs none.
        let _work = self.work.lock().await;
        let ends = self.ends();
        self.world_mut().unfiltered.retain(|name| ends.iter().any(|end| end.name == *name));
        let links = match self.host.links().await {
            Ok(links) => links,
            Err(error) => {
                tracing::warn!("{error}");
                return;
            }
        };
        for end in ends {
            let Some(link) = links.iter().find(|link| link.name == end.name) else { continue };
            if !touched.has(link.index) && !self.world().unfiltered.contains(&end.name) {
                continue;
            }
            match self.host.ensure_filter(link).await {
                Ok(restored) => {
                    self.world_mut().unfiltered.remove(&end.name);
                    if restored {
                        tracing::warn!("interface {:?}: its filter was gone, set again", end.name);
                    }
                }
                Err(error) => {
                    let End { sandbox, name, .. } = end;
                    self.world_mut().unfiltered.insert(name.clone());
                    let text = format!(
                        "sandbox {sandbox:?}: the host's stack gets its frames, since the filter of \
                         {name} is gone and cannot be set again: {error}; try `tc qdisc del dev {name} \
                         clsact`"
                    );
                    self.warn(Subject::Filter(name), text);
                }
            }
        }
    }

    /// Ports whose end of a veth pair is not there any more. A packet socket is told that its
    /// interface goes down, which may be all that happens, and then nothing else.
    pub(super) async fn unwired(&self) -> Vec<PortId> {
        let ends = self.ends();
        if ends.is_empty() {
            return Vec::new();
        }
        let there: HashSet<String> = match self.host.links().await {
            Ok(links) => links.into_iter().map(|link| link.name).collect(),
            Err(error) => {
                tracing::warn!("{error}");
                return Vec::new();
            }
        };
        let mut unwired = Vec::new();
        for end in ends.into_iter().filter(|end| !there.contains(&end.name)) {
            let restored = self.host.restore_end(&end.name).await;
            match restored {
                Ok(()) if self.host.has(&end.name).await.unwrap_or(true) => {}
                Ok(()) => unwired.push(end.port),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        unwired
    }

    fn ends(&self) -> Vec<End> {
        let world = self.world();
        let all = world.desired.sandboxes.values();
        all.flat_map(|s| s.endpoints.iter().map(move |endpoint| (s, endpoint)))
            .filter_map(|(sandbox, endpoint)| {
                let Wire::Veth { host_end } = &endpoint.wire else { return None };
                let key = (sandbox.name.clone(), endpoint.ifname.clone());
                let port = *world.attached.endpoints.get(&key)?;
                Some(End { sandbox: key.0, name: host_end.clone(), port })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_messages_may_have_been_about_any_link() {
        let mut touched = Touched::default();
        assert!(touched.is_empty() && !touched.has(1));
        touched.note(&Event::IngressChanged(1));
        assert!(!touched.is_empty() && touched.has(1) && !touched.has(2));
        touched.note(&Event::Overrun);
        assert!(touched.has(2));
    }
}
