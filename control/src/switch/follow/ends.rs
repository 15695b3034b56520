//! What we have at the ingress of links of the host: the filters of the host's ends of veth pairs
//! and of shared uplinks. And those ends that are gone.
//!
//! A filter is put back when a message says that something happened at the ingress of its link, at
//! most once in [`PAUSE`], and every two seconds while that fails. Between the loss and the
//! message's being read, 200 ms later, the host's stack has the sandbox's frames too, or answers
//! those of connections through the uplink with RST.

use std::collections::HashSet;
use std::time::Instant;

use dataplane::packet::types::PortId;

use super::PAUSE;
use crate::error::Result;
use crate::model::{Edit, Wire};
use crate::name::Name;
use crate::netlink::tc::Qdisc;
use crate::netlink::{Event, Link};
use crate::switch::warnings::Subject;
use crate::switch::{Switch, Work};

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
pub(super) struct End {
    pub(super) sandbox: Name,
    pub(super) name: String,
    pub(super) port: PortId,
}

/// A link with a filter of ours.
struct Filtered {
    /// Whose end of a pair it is; `None`: a shared uplink.
    sandbox: Option<Name>,
    link: String,
}

impl Filtered {
    /// What its filter is remembered by in [`Work::remade`].
    fn key(&self) -> (Option<Name>, String) {
        (self.sandbox.clone(), format!("filter of {}", self.link))
    }
}

impl Switch {
    /// Puts filters back that somebody took off.
    pub async fn follow_filters(&self, touched: &Touched) {
        if touched.is_empty() && self.world().unfiltered.is_empty() {
            return;
        }
        // A link that is coming has its filter soon, one that is going needs none.
        let mut work = self.work.lock().await;
        let filtered = self.filtered(&work);
        let known = |name: &String| filtered.iter().any(|filtered| filtered.link == *name);
        self.world_mut().unfiltered.retain(known);
        let links = match self.host.links().await {
            Ok(links) => links,
            Err(error) => {
                tracing::warn!("{error}");
                if !touched.is_empty() {
                    // Nothing will tell of it again, and it may have been any.
                    let all = filtered.into_iter().map(|filtered| filtered.link);
                    self.world_mut().unfiltered.extend(all);
                }
                return;
            }
        };
        work.remade.retain(|_, at| at.elapsed() < PAUSE);
        for filtered in filtered {
            let Some(link) = links.iter().find(|link| link.name == filtered.link) else { continue };
            if touched.has(link.index) || self.world().unfiltered.contains(&filtered.link) {
                self.restore_filter(&mut work, &filtered, link).await;
            }
        }
    }

    async fn restore_filter(&self, work: &mut Work, filtered: &Filtered, link: &Link) {
        let name = &filtered.link;
        let outcome = if work.remade.contains_key(&filtered.key()) {
            self.lacks_filter(link).await.map(|lacks| (lacks, false))
        } else {
            self.set_filter(work, filtered, link).await.map(|restored| (false, restored))
        };
        match outcome {
            Ok((true, _)) => {
                self.world_mut().unfiltered.insert(name.clone());
            }
            Ok((false, restored)) => {
                self.world_mut().unfiltered.remove(name);
                if restored {
                    work.remade.insert(filtered.key(), Instant::now());
                    tracing::warn!("interface {name:?}: its filter was gone, set again");
                }
            }
            Err(error) => {
                self.world_mut().unfiltered.insert(name.clone());
                let harm = filtered.sandbox.as_ref().map_or_else(
                    || format!("uplink {name:?}: the host answers what is for sandboxes"),
                    |sandbox| format!("sandbox {sandbox:?}: the host's stack gets its frames"),
                );
                let text = format!(
                    "{harm}, since the filter of {name} is gone and cannot be set again: {error}; \
                     try `tc qdisc del dev {name} clsact`"
                );
                self.warn(Subject::Filter(name.clone()), text);
            }
        }
    }

    async fn lacks_filter(&self, link: &Link) -> Result<bool> {
        Ok(!self.host.has_filter(link).await?)
    }

    /// Sets the filter if it is not there. True: it was not.
    async fn set_filter(&self, work: &Work, filtered: &Filtered, link: &Link) -> Result<bool> {
        if filtered.sandbox.is_some() {
            return self.host.ensure_filter(link).await;
        }
        if self.host.has_filter(link).await? {
            return Ok(false);
        }
        let Some(live) = work.uplinks.get(&filtered.link) else { return Ok(false) };
        let qdisc = live.steer(&self.host, link.index).await?;
        let record = self.world().desired.uplinks.get(&filtered.link).cloned();
        if let (Some(Qdisc::Made), Some(mut uplink)) = (qdisc, record) {
            // Somebody deleted theirs, and this one is to go with us.
            uplink.made_qdisc = true;
            self.commit(work, vec![Edit::PutUplink(uplink)])?;
        }
        Ok(true)
    }

    fn filtered(&self, work: &Work) -> Vec<Filtered> {
        let ends = self.ends().into_iter();
        let ends = ends.map(|end| Filtered { sandbox: Some(end.sandbox), link: end.name });
        let uplinks = work.uplinks.iter().filter(|(_, live)| live.is_shared());
        let uplinks = uplinks.map(|(name, _)| Filtered { sandbox: None, link: name.clone() });
        ends.chain(uplinks).collect()
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

    pub(super) fn ends(&self) -> Vec<End> {
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
