//! The running switch: what should exist, what is attached, and the operations that change both.
//!
//! Every change runs alone, under one async lock (`Work`): it checks everything, announces what
//! it is about to make, makes it with an undo list at hand, commits the records in one durable
//! transaction and publishes a new snapshot. A change that fails half-way takes back what it did,
//! the records first. A removal goes on to its end instead: from the moment the record is gone,
//! what it stood for is to go too.
//! Readers never wait for that: they look at [`World`] under a lock that is held for moments only.
//!
//! A change must run to its end: callers whose client may go away run it in a task of its own.
//!
//! Lock order: `Work`, then [`World`]. The world's lock is never held across an await.

mod adopt;
mod alarms;
mod declare;
mod endpoint;
mod export;
mod follow;
mod former;
mod import;
mod network;
mod policy;
mod port;
pub mod purge;
mod route;
mod sandbox;
#[cfg(test)]
pub(crate) mod tests;
mod undo;
mod uplink;
pub mod view;
mod warnings;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use dataplane::Engine;
use dataplane::config::Snapshot;
use dataplane::packet::types::PortId;
use ipnet::Ipv6Net;
use tokio::sync::broadcast;

use crate::api::types::{Event, UplinkAdd};
use crate::compile::{Attached, Tuning, compile};
use crate::config::{Pool, ServiceLimits};
use crate::error::{Error, Result, ResultExt};
use crate::host::HostFacts;
use crate::model::{Counters, Desired, Edit, Intent};
use crate::name::Name;
use crate::nat_log::NatLog;
use crate::netlink::Far;
use crate::netlink::sockets::HostPorts;
use crate::options::LinkKind;
use crate::place::Place;
use crate::places::Services;
use crate::proxy::OwnAddresses;
use crate::state::Store;
use alarms::Alarms;
pub use former::Former;
use undo::{Done, Undo};

pub use follow::Touched;
pub use uplink::Look;
use warnings::Warnings;

/// What the configuration says about networks and uplinks.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where subnets come from that nobody named.
    pub pools: Vec<Pool>,
    /// The same for those of IPv6; empty: from a prefix of the installation's own.
    pub pools6: Vec<Pool<Ipv6Net>>,
    /// MTU of networks that do not say.
    pub mtu: u16,
    /// What connects endpoints of networks that do not say.
    pub link: LinkKind,
    /// Timers.
    pub tuning: Tuning,
    /// Declared ways out; empty: the interface of the host's default route, shared.
    pub uplinks: Vec<UplinkAdd>,
    /// Limits of what is done beside moving frames.
    pub services: ServiceLimits,
}

/// The running switch.
#[derive(Debug)]
pub struct Switch {
    engine: Engine,
    host: Place,
    settings: Settings,
    services: Services,
    work: tokio::sync::Mutex<Work>,
    world: RwLock<World>,
    /// Addresses of [`World::host`], for those who serve the host's own programs.
    own: OwnAddresses,
    events: broadcast::Sender<Event>,
    alarms: Mutex<Alarms>,
    nat_log: OnceLock<Arc<NatLog>>,
    started: Instant,
}

/// What only changes need.
#[derive(Debug)]
struct Work {
    store: Store,
    /// Addresses by network.
    pools: HashMap<Name, network::Pools>,
    /// Host ports held for published ports, by [`crate::model::Publish::half`].
    reservations: HashMap<u32, port::Reservation>,
    /// Where the search for a free host port continues.
    next_free_port: u16,
    /// The host's ports as last read.
    host_ports: Option<HostPorts>,
    /// Uplinks that are attached, by interface.
    uplinks: HashMap<String, uplink::Live>,
    /// When devices and filters were made anew that somebody had deleted, by sandbox (`None`: the
    /// host) and what names them.
    remade: HashMap<(Option<Name>, String), Instant>,
    /// What our ends of pairs led to when the other was last seen in its sandbox.
    pairs: HashMap<String, Far>,
    /// Uplinks that had no port for NAT when last looked at.
    without_nat_ports: BTreeSet<warnings::NoPorts>,
}

/// What readers see.
#[derive(Debug, Default)]
pub struct World {
    /// What should exist.
    pub desired: Desired,
    /// What the networks were called that were removed last.
    pub former: Former,
    /// What is attached.
    pub attached: Attached,
    /// What the host looked like when last asked.
    pub host: HostFacts,
    /// Sandboxes whose namespace is gone or not ours any more.
    pub gone: BTreeSet<Name>,
    /// Host's ends of veth pairs and shared uplinks that lost their filter, or may have, and have
    /// it not again.
    pub unfiltered: BTreeSet<String>,
    /// Published ports that are not held on the host, by [`crate::model::Publish::id`]: why not.
    pub unheld: BTreeMap<u32, String>,
    /// What failed and is not mended yet.
    pub warnings: Warnings,
    /// The workers do not have what the records say, since the last try to tell them failed. The
    /// follower tries again.
    pub stale: bool,
    /// Everything was purged, and nothing has been asked for since: nothing comes back by itself.
    pub purged: bool,
}

impl World {
    fn apply(&mut self, edit: Edit) {
        if let Edit::RemoveNetwork(name) = &edit
            && let Some(network) = self.desired.networks.get(name)
        {
            self.former.note(network.network_id(), network.name.clone());
        }
        self.desired.apply(edit);
    }
}

impl Switch {
    /// A switch with records and nothing attached. [`Switch::adopt`] brings it to life.
    #[must_use]
    pub fn new(
        engine: Engine,
        host: Place,
        settings: Settings,
        store: Store,
        desired: Desired,
        warnings: Vec<String>,
    ) -> Arc<Self> {
        let services = Services::new(&settings.services);
        let backlog = usize::try_from(services.events.limit()).unwrap_or(usize::MAX);
        let (events, _) = broadcast::channel(backlog.max(1));
        let work = Work {
            store,
            pools: HashMap::new(),
            reservations: HashMap::new(),
            next_free_port: 0,
            host_ports: None,
            uplinks: HashMap::new(),
            remade: HashMap::new(),
            pairs: HashMap::new(),
            without_nat_ports: BTreeSet::new(),
        };
        let world = World { desired, warnings: Warnings::new(warnings), ..World::default() };
        Arc::new(Self {
            engine,
            host,
            services,
            settings,
            work: tokio::sync::Mutex::new(work),
            world: RwLock::new(world),
            own: OwnAddresses::default(),
            events,
            alarms: Mutex::default(),
            nat_log: OnceLock::new(),
            started: Instant::now(),
        })
    }

    /// The engine, to look inside.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How many there may be of what is done beside moving frames.
    #[must_use]
    pub const fn services(&self) -> &Services {
        &self.services
    }

    /// Makes the log of mappings known, so that `status` warns of it; only once.
    pub fn set_nat_log(&self, log: Arc<NatLog>) {
        // A second one is not there: the daemon begins one at its start.
        let _ = self.nat_log.set(log);
    }

    /// The log of mappings, if there is one.
    #[must_use]
    pub fn nat_log(&self) -> Option<&NatLog> {
        self.nat_log.get().map(Arc::as_ref)
    }

    /// What there is now. Hold it for moments only.
    pub fn world(&self) -> RwLockReadGuard<'_, World> {
        self.world.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn world_mut(&self) -> RwLockWriteGuard<'_, World> {
        self.world.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every change from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    fn emit(
        &self,
        event: &str,
        network: Option<&Name>,
        sandbox: Option<&Name>,
        detail: Option<String>,
    ) {
        // An error says that nobody listens.
        let _ = self.events.send(Event {
            time_ms: u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX),
            event: event.to_owned(),
            network: network.cloned(),
            sandbox: sandbox.cloned(),
            detail,
        });
        let waiting = u32::try_from(self.events.len()).unwrap_or(u32::MAX);
        self.services.events.note(waiting);
    }

    /// Makes the edits durable, then visible. Nothing changed when it fails. Older announcements let
    /// go of what is recorded now.
    fn commit(&self, work: &Work, mut edits: Vec<Edit>) -> Result<()> {
        edits.extend(self.world().desired.settled_by(&edits));
        blocking(|| work.store.commit(&edits))?;
        let mut world = self.world_mut();
        for edit in edits {
            world.apply(edit);
        }
        Ok(())
    }

    /// As [`Switch::commit`], with a note of how to take it back.
    fn commit_noting(&self, work: &Work, mut edits: Vec<Edit>, undo: &mut Undo) -> Result<()> {
        let inverse = {
            let desired = &self.world().desired;
            edits.extend(desired.settled_by(&edits));
            desired.inverse(&edits)
        };
        self.commit(work, edits)?;
        undo.push(Done::Records(inverse));
        Ok(())
    }

    /// Announces work. The number takes it back.
    fn announce(&self, work: &Work, intent: Intent) -> Result<u64> {
        let mut counters = self.counters();
        counters.intent = counters.intent.wrapping_add(1);
        let id = counters.intent;
        self.commit(work, vec![Edit::Counters(counters), Edit::PutIntent(id, intent)])?;
        Ok(id)
    }

    fn counters(&self) -> Counters {
        self.world().desired.counters
    }

    /// Compiles what there is now and gives it to the workers.
    fn publish(&self) -> Result<()> {
        let outcome = self.compile_and_publish();
        if outcome.is_err() {
            self.world_mut().stale = true;
        }
        outcome
    }

    fn compile_and_publish(&self) -> Result<()> {
        let spec = {
            let world = self.world();
            let addresses = world.host.host_addresses();
            compile(&world.desired, &world.attached, &addresses, &self.settings.tuning)?
        };
        let snapshot = Snapshot::build(spec).failed("internal: inconsistent snapshot")?;
        self.engine.publish(snapshot);
        Ok(())
    }

    /// Gives a port back to nobody.
    fn detach(&self, port: PortId) {
        if let Err(error) = blocking(|| self.engine.detach(port)) {
            tracing::warn!("port {}: {error}", port.0);
        }
    }

    fn attach(&self, device: Box<dyn dataplane::io::Port>) -> Result<PortId> {
        blocking(|| self.engine.attach(device)).failed("attach to the engine")
    }

    async fn refresh_host(&self) -> Result<()> {
        let facts = HostFacts::read(&self.host.netlink).await?;
        self.note_host(facts);
        Ok(())
    }

    /// True: it has changed.
    fn note_host(&self, facts: HostFacts) -> bool {
        self.own.set(facts.nets().map(|(_, net)| net.addr()).collect());
        let mut world = self.world_mut();
        let changed = world.host != facts;
        world.host = facts;
        changed
    }
}

/// Runs something that may wait for a disk or a worker, without holding up other tasks.
fn blocking<T>(f: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(f)
}

fn since_epoch() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// `digits` random hexadecimal digits.
fn random_hex(digits: usize) -> Result<String> {
    use std::fmt::Write as _;

    let mut bytes = vec![0u8; digits.div_ceil(2)];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .failed("/dev/urandom")?;
    let mut text = String::with_capacity(digits + 1);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.truncate(digits);
    Ok(text)
}

/// The next number after `last` that is not in use, going round; neither 0 nor 65535 is ever given:
/// a network of the latter would be the engine's outside.
fn next_number(last: u16, used: impl Fn(u16) -> bool) -> Result<u16> {
    (1..=u16::MAX)
        .chain([0])
        .map(|step| last.wrapping_add(step))
        .find(|candidate| *candidate != 0 && *candidate != u16::MAX && !used(*candidate))
        .ok_or_else(|| Error::conflict("all 65534 numbers are in use; remove something first"))
}
