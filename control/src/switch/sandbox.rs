//! Sandboxes: create and remove.

use std::collections::{BTreeMap, HashSet};

use super::endpoint::{Wanted, inode_of, interface_names, open_namespace};
use super::follow::interfaces_now;
use super::undo::{Done, Undo};
use super::{Switch, Work, since_epoch};
use crate::api::types::{self, NetnsRef, NetworkRef, SandboxCreate};
use crate::check;
use crate::compile::Attached;
use crate::error::{Error, Result, ResultExt};
use crate::model::{BRIDGE_NETWORK, Counters, Edit, Endpoint, Intent, Namespace, Network, Sandbox};
use crate::name::Name;
use crate::netns::{self, Netns, NetnsError};
use crate::place::Place;
use crate::publish::PublishSpec;

/// The loopback device of every namespace.
pub(super) const LOOPBACK: &str = "lo";

/// A sandbox to be made, its requests checked.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    /// Its name, which is free.
    pub(super) name: &'a Name,
    /// The namespace to adopt; `None`: one is made.
    pub(super) netns: Option<&'a NetnsRef>,
    /// Networks, and what is asked of the interface in each.
    pub(super) endpoints: Vec<(Name, Wanted)>,
    /// Ports to publish.
    pub(super) publish: &'a [PublishSpec],
}

impl Switch {
    /// Makes a sandbox, or adopts a namespace as one.
    ///
    /// # Errors
    /// When the request is wrong, clashes with what is there, or cannot be carried out. Nothing of
    /// it is left then.
    pub async fn create_sandbox(&self, request: SandboxCreate) -> Result<types::Sandbox> {
        check::sandbox(&request)?;
        let wrap = |error: Error| error.context(format!("sandbox {:?}", request.name));
        let mut work = self.work.lock().await;
        if self.world().desired.sandboxes.contains_key(&request.name) {
            return Err(wrap(Error::conflict(
                "exists already; choose another name or remove it first",
            )));
        }
        let mut undo = Undo::default();
        match self.create_sandbox_in(&mut work, &request, &mut undo).await {
            Ok(()) => {
                drop(work);
                self.emit("sandbox_create", None, Some(&request.name), None);
                self.sandbox(&request.name)
            }
            Err(error) => {
                self.roll_back(&mut work, undo).await;
                Err(wrap(error))
            }
        }
    }

    async fn create_sandbox_in(
        &self,
        work: &mut Work,
        request: &SandboxCreate,
        undo: &mut Undo,
    ) -> Result<()> {
        let names = match request.networks.as_slice() {
            [NetworkRef::Container(_)] => {
                return Err(Error::invalid(
                    "network container:OTHER is not built yet; connect both to one network",
                ));
            }
            [NetworkRef::Host] => return self.create_host_sandbox(work, &request.name, undo),
            [] => vec![bridge_name()?],
            refs => refs
                .iter()
                .filter_map(|r| match r {
                    NetworkRef::Network(name) => Some(name.clone()),
                    _ => None,
                })
                .collect(),
        };
        // Address, MAC and options of the request are those in the first network; names hold in all.
        let wanted = |at| Wanted {
            ip: request.ip.filter(|_| at == 0),
            ip6: request.ip6.filter(|_| at == 0),
            mac: request.mac.filter(|_| at == 0),
            aliases: request.aliases.clone(),
            options: if at == 0 { request.options.clone() } else { BTreeMap::new() },
            ifname: None,
        };
        let asked = Asked {
            name: &request.name,
            netns: request.netns.as_ref(),
            endpoints: names.into_iter().enumerate().map(|(at, name)| (name, wanted(at))).collect(),
            publish: &request.publish,
        };
        self.revive(work).await?;
        self.make_sandbox(work, &asked, undo).await
    }

    /// Makes a sandbox whose name is free.
    pub(super) async fn make_sandbox(
        &self,
        work: &mut Work,
        asked: &Asked<'_>,
        undo: &mut Undo,
    ) -> Result<()> {
        let networks = asked
            .endpoints
            .iter()
            .map(|(name, _)| self.network_record(name))
            .collect::<Result<Vec<_>>>()?;
        let adopted =
            asked.netns.map(|reference| open_adopted(reference, &self.host.netns)).transpose()?;
        let (mut ifnames, without) = match &adopted {
            Some((_, place)) => {
                let without = place.netns.without_ipv6().failed("look for IPv6")?;
                (interface_names(place).await?, without)
            }
            // Made as if nobody had set anything.
            None => (HashSet::new(), netns::kernel_without_ipv6()),
        };
        let mut endpoints: Vec<Endpoint> = Vec::with_capacity(networks.len());
        for ((_, wanted), network) in asked.endpoints.iter().zip(&networks) {
            let sandbox = (asked.name, without);
            let endpoint =
                self.plan_endpoint(work, sandbox, network, wanted, &mut ifnames, undo)?;
            endpoints.push(endpoint);
        }
        let sandbox = Sandbox {
            name: asked.name.clone(),
            namespace: match &adopted {
                Some((namespace, _)) => namespace.clone(),
                // Filled in when it is made.
                None => Namespace::Made { inode: 0 },
            },
            endpoints,
            publishes: Vec::new(),
            created: since_epoch().as_secs(),
        };
        let place = adopted.map(|(_, place)| place);
        self.build_sandbox(work, sandbox, &networks, place, asked.publish, undo).await
    }

    async fn build_sandbox(
        &self,
        work: &mut Work,
        mut sandbox: Sandbox,
        networks: &[Network],
        adopted: Option<Place>,
        publish: &[PublishSpec],
        undo: &mut Undo,
    ) -> Result<()> {
        let mut counters = self.counters();
        sandbox.publishes =
            self.plan_publishes(work, &sandbox, publish, &mut counters, undo).await?;
        // Before the announcement: what has the name after it is ours.
        if adopted.is_none() && netns_file_exists(&sandbox.name) {
            return Err(name_taken(&sandbox.name));
        }
        let place = match adopted {
            Some(place) => place,
            None => {
                let netns = Netns::anonymous()?;
                sandbox.namespace = Namespace::Made { inode: inode_of(&netns)? };
                Place::open(netns)?
            }
        };
        let intent = self.announce(
            work,
            Intent::Sandbox {
                name: sandbox.name.clone(),
                namespace: Some(sandbox.namespace.clone()),
                ifnames: sandbox.endpoints.iter().map(|e| e.ifname.clone()).collect(),
                host_ends: sandbox.host_ends(),
            },
        )?;
        undo.push(Done::Intent(intent));
        if matches!(sandbox.namespace, Namespace::Made { .. }) {
            name_namespace(&place.netns, &sandbox.name)?;
            undo.push(Done::Namespace(sandbox.name.clone()));
        }
        let mut ports = Vec::with_capacity(networks.len());
        for (network, endpoint) in networks.iter().zip(&sandbox.endpoints) {
            let port = self.make_endpoint(&place, network, endpoint, undo).await?;
            ports.push(((sandbox.name.clone(), endpoint.ifname.clone()), port));
        }
        self.route_by_gateway(&place, &sandbox).await?;
        raise_loopback(&place, undo).await?;
        let counters = Counters { publish: counters.publish, ..self.counters() };
        let mut edits = vec![Edit::Counters(counters), Edit::RemoveIntent(intent)];
        edits.extend(networks.iter().map(|network| Edit::PutNetwork(work.with_cursors(network))));
        edits.push(Edit::PutSandbox(sandbox));
        self.commit_noting(work, edits, undo)?;
        self.world_mut().attached.endpoints.extend(ports);
        self.publish_ports(work).await
    }

    pub(super) fn create_host_sandbox(
        &self,
        work: &Work,
        name: &Name,
        undo: &mut Undo,
    ) -> Result<()> {
        let sandbox = Sandbox {
            name: name.clone(),
            namespace: Namespace::Host,
            endpoints: Vec::new(),
            publishes: Vec::new(),
            created: since_epoch().as_secs(),
        };
        self.commit_noting(work, vec![Edit::PutSandbox(sandbox)], undo)
    }

    /// Removes a sandbox with all that we made for it.
    ///
    /// # Errors
    /// When there is none, or the kernel refuses to let something go.
    pub async fn remove_sandbox(&self, name: &Name) -> Result<()> {
        let mut work = self.work.lock().await;
        let sandbox = self.sandbox_record(name)?;
        self.drop_sandbox(&mut work, &sandbox)
            .await
            .map_err(|error| error.context(format!("sandbox {name:?}")))?;
        self.emit("sandbox_remove", None, Some(name), None);
        Ok(())
    }

    /// Removes record, rules and devices. The announcement covers namespace and devices from the
    /// moment the record is gone.
    pub(super) async fn drop_sandbox(&self, work: &mut Work, sandbox: &Sandbox) -> Result<()> {
        let counters = self.next_intent();
        let intent = Intent::Sandbox {
            name: sandbox.name.clone(),
            namespace: Some(sandbox.namespace.clone()),
            ifnames: interfaces_now(sandbox).await,
            host_ends: sandbox.host_ends(),
        };
        self.commit(
            work,
            vec![
                Edit::Counters(counters),
                Edit::PutIntent(counters.intent, intent.clone()),
                Edit::RemoveSandbox(sandbox.name.clone()),
            ],
        )?;
        for endpoint in &sandbox.endpoints {
            self.let_go(work, &sandbox.name, endpoint);
        }
        for publish in &sandbox.publishes {
            work.unreserve(publish.id).await;
        }
        let ports = {
            let mut world = self.world_mut();
            world.gone.remove(&sandbox.name);
            take_ports(&mut world.attached, sandbox)
        };
        self.publish_or_later(work).await;
        for port in ports {
            self.detach(port);
        }
        clear_away(&self.host, &intent).await?;
        self.commit(work, vec![Edit::RemoveIntent(counters.intent)])
    }
}

/// Removes devices and namespace that an announcement names, as far as they are there and ours.
pub(super) async fn clear_away(host: &Place, intent: &Intent) -> Result<()> {
    let host_ends = match intent {
        Intent::HostDevice { ifname } => return host.remove(ifname).await,
        Intent::Endpoints { host_ends, .. } | Intent::Sandbox { host_ends, .. } => host_ends,
    };
    let mut outcome = Ok(());
    for host_end in host_ends {
        outcome = first_error(outcome, host.remove_end(host_end).await);
    }
    first_error(outcome, clear_inside(intent).await)
}

/// Of two things that were both tried. The log has the second error where there is a first.
pub(super) fn first_error(first: Result<()>, second: Result<()>) -> Result<()> {
    match (first, second) {
        (Err(first), Err(second)) => {
            tracing::warn!("{second}");
            Err(first)
        }
        (first, second) => first.and(second),
    }
}

/// The namespace of an announcement, and what lies in it.
async fn clear_inside(intent: &Intent) -> Result<()> {
    match intent {
        Intent::HostDevice { .. } => Ok(()),
        Intent::Endpoints { name, namespace, ifnames, host_ends } => {
            match open_namespace(name, namespace)? {
                Some(netns) => Place::open(netns)?.remove_ours(ifnames, host_ends).await,
                None => Ok(()),
            }
        }
        Intent::Sandbox { name, namespace: Some(namespace), ifnames, host_ends } => {
            let netns = open_namespace(name, namespace)?;
            let ours = netns.is_some() || is_empty_file(name);
            if let Some(netns) = netns {
                Place::open(netns)?.remove_ours(ifnames, host_ends).await?;
            }
            match namespace {
                Namespace::Made { .. } if ours => delete_namespace(name),
                Namespace::Made { .. } | Namespace::Adopted { .. } | Namespace::Host => Ok(()),
            }
        }
        // A version that announced before it made the namespace, when none had the name.
        Intent::Sandbox { name, namespace: None, ifnames, host_ends } => {
            match Netns::open(name.as_str()) {
                Ok(netns) => Place::open(netns)?.remove_ours(ifnames, host_ends).await?,
                Err(NetnsError::NotFound(_)) => return Ok(()),
                // The file was made, the namespace was not bound to it yet.
                Err(NetnsError::NotANetns(_)) => {}
                Err(error) => return Err(error).failed("open the namespace"),
            }
            delete_namespace(name)
        }
    }
}

/// Takes the sandbox's ports out of the books.
pub(super) fn take_ports(
    attached: &mut Attached,
    sandbox: &Sandbox,
) -> Vec<dataplane::packet::types::PortId> {
    sandbox
        .endpoints
        .iter()
        .filter_map(|e| attached.endpoints.remove(&(sandbox.name.clone(), e.ifname.clone())))
        .collect()
}

fn delete_namespace(name: &Name) -> Result<()> {
    match netns::delete(name.as_str()) {
        Ok(()) | Err(NetnsError::NotFound(_)) => Ok(()),
        Err(error) => Err(error).failed("remove the namespace"),
    }
}

/// Makes a namespace known by a name.
pub(super) fn name_namespace(netns: &Netns, name: &Name) -> Result<()> {
    netns.bind(name.as_str()).map_err(|error| match error {
        NetnsError::Exists(_) => name_taken(name),
        other => Error::failed(other.to_string()),
    })
}

/// What is left of a name between the two steps of its removal: a file with nothing bound to it.
fn is_empty_file(name: &Name) -> bool {
    let path = netns::path_of(name.as_str());
    path.is_ok_and(|path| {
        matches!(Netns::open_path(&path), Err(NetnsError::NotANetns(_)))
            && path.symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == 0)
    })
}

fn netns_file_exists(name: &Name) -> bool {
    netns::path_of(name.as_str()).is_ok_and(|path| path.symlink_metadata().is_ok())
}

fn name_taken(name: &Name) -> Error {
    Error::conflict(format!(
        "a network namespace of that name exists already; choose another name, or adopt it with \
         --netns {}/{name}",
        netns::NETNS_DIR
    ))
}

fn open_adopted(reference: &NetnsRef, host: &Netns) -> Result<(Namespace, Place)> {
    let path = reference.path();
    let netns = Netns::open_path(&path).map_err(|error| match error {
        NetnsError::NotFound(_) => Error::not_found(format!("netns {reference}: there is none")),
        NetnsError::NotANetns(_) => {
            Error::invalid(format!("netns {reference}: is not a network namespace"))
        }
        other => Error::failed(other.to_string()),
    })?;
    let inode = inode_of(&netns)?;
    if inode == inode_of(host)? {
        return Err(Error::invalid(format!(
            "netns {reference}: is the host's own; use --network host"
        )));
    }
    Ok((Namespace::Adopted { path, inode }, Place::open(netns)?))
}

/// `lo` is up in every sandbox. Somebody else's namespace gets it last, when nothing can be refused
/// any more.
async fn raise_loopback(place: &Place, undo: &mut Undo) -> Result<()> {
    let loopback = place.netlink.link_by_name(LOOPBACK).await.failed("look at lo")?;
    if !loopback.up {
        let netns = place.netns.try_clone().failed("duplicate a namespace")?;
        place.netns.raise_loopback()?;
        undo.push(Done::Loopback(netns));
    }
    Ok(())
}

fn bridge_name() -> Result<Name> {
    Name::parse("network", BRIDGE_NETWORK)
}

pub(super) fn unknown(name: &Name) -> Error {
    Error::not_found(format!("sandbox {name:?}: no such sandbox; see `vswitchctl sandbox ls`"))
}
