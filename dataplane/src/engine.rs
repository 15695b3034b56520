//! The engine as control sees it: start, attach, publish, look inside, stop.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::balance::{Balancer, Load, Meter};
pub use crate::capture::Capture;
use crate::config::Snapshot;
use crate::conntrack::DEFAULT_EVENT_QUEUE;
use crate::crew::Crew;
use crate::io::{IoBackend, IoChoice, Port, Tether};
pub use crate::l2::fdb::StaticRefused;
pub use crate::l2::groups::GroupLimits;
use crate::l3::fragments;
pub use crate::l3::neighbor::NeighborLimits;
use crate::l3::neighbor::{MAX_WAITING, MAX_WAITING_FOR_ONE};
pub use crate::limiter::ErrorRate;
pub use crate::limits::{LimitUse, Refusal};
pub use crate::nat::helpers::HelperLimits;
use crate::packet::types::{Mac, NetworkId, PortId, UplinkId};
use crate::plane::Plane;
use crate::sync::Mutex;
use crate::trace::Tracer;
use crate::worker::{GonePorts, WorkerHandle};

/// Sizes that are fixed for the life of the engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Worker threads; at least 1.
    pub workers: usize,
    /// Frame buffers of each worker.
    pub buffers_per_worker: usize,
    /// Connections tracked at most, of both families together.
    pub conntrack_limit: u32,
    /// Connections of one endpoint at most: those it began, and those that came from outside for what it
    /// publishes, three quarters of them at most. Also those of a network from addresses that are no endpoint's.
    pub conntrack_per_endpoint: u32,
    /// Connections that one endpoint begins in a second at most, or that come for it.
    pub new_connections_per_endpoint: u32,
    /// Where the connections of IPv4 live, so that they outlive the process. `None`: in anonymous
    /// memory. A file of an earlier run is adopted when it is sound.
    pub conntrack_file: Option<PathBuf>,
    /// The same for those of IPv6.
    pub conntrack6_file: Option<PathBuf>,
    /// MAC addresses learned at most, over all networks.
    pub fdb_limit: u32,
    /// MAC addresses learned at most behind one port.
    pub fdb_per_port: u32,
    /// Neighbors at most.
    pub neighbors: NeighborLimits,
    /// Frames that a worker lets wait for neighbors at most.
    pub waiting_frames: usize,
    /// Of those, for one neighbor.
    pub waiting_frames_per_neighbor: usize,
    /// What helpers may have to do with at most.
    pub helpers: HelperLimits,
    /// ICMP errors that a worker sends.
    pub icmp_errors: ErrorRate,
    /// Memberships of ports in multicast groups at most.
    pub groups: GroupLimits,
    /// Unfinished datagrams whose fragments are followed at most.
    pub fragment_limit: u32,
    /// Fragments that each of them may have; those with more share as many as a full table could have.
    pub fragments_per_datagram: u32,
    /// Bytes of fragments that came before the first of their datagram, at each worker at most; a quarter of them
    /// may have come by one port.
    pub fragment_bytes: u32,
    /// Traces under way at a time: each has copies of all tables.
    pub traces: u32,
    /// Frames that wait for the reader of each capture.
    pub capture_frames: u32,
    /// Events that wait for each who is told of connections ([`crate::plane::Plane::watch_connections`]).
    pub conntrack_events: u32,
    /// How devices are read and written.
    pub io: IoChoice,
    /// Merge TCP segments that wait for the same device (GRO).
    pub gro: bool,
    /// Which worker receives from which port.
    pub placement: Placement,
    /// Tell those on the wire of a dedicated uplink, when it appears, which MAC its addresses have.
    pub announce: bool,
}

/// Which worker receives from which port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Placement {
    /// One worker receives from all, until it has more to do than it can; then ports move to
    /// others, and back when it is quiet. The least time a frame, and the most processor time for
    /// everybody else.
    #[default]
    Load,
    /// Each worker receives from as many ports as every other, for good.
    Spread,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            workers: 1,
            buffers_per_worker: 512,
            conntrack_limit: 262_144,
            conntrack_per_endpoint: 131_072,
            new_connections_per_endpoint: u32::MAX,
            conntrack_file: None,
            conntrack6_file: None,
            fdb_limit: 65_536,
            fdb_per_port: 1024,
            neighbors: NeighborLimits::default(),
            groups: GroupLimits::default(),
            waiting_frames: MAX_WAITING,
            waiting_frames_per_neighbor: MAX_WAITING_FOR_ONE,
            helpers: HelperLimits::default(),
            icmp_errors: ErrorRate::default(),
            fragment_limit: fragments::DEFAULT_LIMIT,
            fragments_per_datagram: fragments::DEFAULT_PER_DATAGRAM,
            fragment_bytes: fragments::DEFAULT_BYTES,
            traces: crate::trace::DEFAULT_TRACES,
            capture_frames: crate::capture::DEFAULT_SLOTS,
            conntrack_events: DEFAULT_EVENT_QUEUE,
            io: IoChoice::Auto,
            gro: true,
            announce: false,
            placement: Placement::Load,
        }
    }
}

/// Why the engine refused.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A device or thread could not be set up.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
    /// All 65,535 port numbers are in use.
    #[error("no free port number")]
    PortsExhausted,
    /// No such port.
    #[error("no such port")]
    UnknownPort,
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
    /// [`EngineOptions::traces`] are under way.
    #[error("as many traces are under way as there may be")]
    TooManyTraces,
}

/// Totals of one worker. `rx + replicated + generated = tx + merged + consumed + queued + Σ drops`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Copies made by floods and segments made by software segmentation, beyond the original.
    pub replicated: u64,
    /// Frames the engine made itself (ARP, ICMP).
    pub generated: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Frames that became part of another one before it was sent (GRO), which counts once as sent
    /// or dropped.
    pub merged: u64,
    /// Frames that ended here by design: ARP and echo for us, what is left to the host's stack.
    pub consumed: u64,
    /// Frames waiting for a neighbor, or fragments for the first of their datagram, now.
    pub queued: u64,
    /// Drops, indexed by [`crate::verdict::DropReason::index`].
    pub drops: Vec<u64>,
}

/// Totals of one port, over all workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames received from the device.
    pub rx_frames: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Frames that the device lost before they were received: part of no other sum.
    pub rx_missed: u64,
    /// Frames the device took.
    pub tx_frames: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Answers of the host's own stack that nothing serves what this port's owner asked it for: resets of segments
    /// that fit no connection of the host's, and ports that are unreachable. They count as sent, too.
    pub refused: u64,
    /// Frames received here and dropped, by [`crate::verdict::DropReason::index`].
    pub rx_drops: Vec<u64>,
    /// Frames meant for here that the device did not take, by [`crate::verdict::DropReason::index`].
    pub tx_drops: Vec<u64>,
}

/// A port that is in a multicast group, or behind which a multicast router is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupEntry {
    /// Network.
    pub network: NetworkId,
    /// VLAN, 0 for untagged.
    pub vlan: u16,
    /// The group; `None`: a router.
    pub group: Option<IpAddr>,
    /// The port.
    pub port: PortId,
    /// Seconds until it is forgotten, if it is not heard of.
    pub expires: u32,
}

/// One FDB entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdbEntry {
    /// Network.
    pub network: NetworkId,
    /// MAC.
    pub mac: Mac,
    /// VLAN id, 0 for untagged.
    pub vlan: u16,
    /// Port behind which it is.
    pub port: PortId,
    /// Who says so.
    pub kind: FdbKind,
    /// Time since the last frame from it.
    pub age: Duration,
}

/// Who says where a MAC is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FdbKind {
    /// A frame.
    Learned,
    /// Control: the endpoint's own MAC, the gateway.
    Local,
    /// The user.
    Static,
}

/// Totals of the FDB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FdbStats {
    /// Learned and static entries now.
    pub entries: u32,
    /// Learned and static entries at most.
    pub limit: u32,
    /// MACs that were seen behind another port than before.
    pub moves: u64,
    /// Learned entries that went to make room.
    pub evictions: u64,
    /// MACs that were not entered, because nothing could go to make room.
    pub refused: u64,
}

/// Where a neighbor entry belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Link {
    /// In a network.
    Network(NetworkId),
    /// On an uplink's wire.
    Uplink(UplinkId),
}

/// One neighbor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighborEntry {
    /// Where.
    pub link: Link,
    /// Address.
    pub address: IpAddr,
    /// MAC, once known.
    pub mac: Option<Mac>,
    /// Time since it was last confirmed.
    pub age: Duration,
}

/// One direction's addresses. For ICMP queries both ports are the identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowTuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
}

/// One tracked connection, as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// IP protocol number.
    pub proto: u8,
    /// State, as `conntrack -L` names it (`SYN_SENT`, `ESTABLISHED`, …); `UNREPLIED` or `ASSURED`
    /// for protocols without states.
    pub state: &'static str,
    /// As the first packet came.
    pub original: FlowTuple,
    /// As the replies come.
    pub reply: FlowTuple,
    /// The source was rewritten.
    pub snat: bool,
    /// The destination was rewritten.
    pub dnat: bool,
    /// Time until it expires if idle.
    pub timeout: Duration,
    /// Packets in original and reply direction.
    pub packets: [u64; 2],
    /// Bytes in original and reply direction, IP header included.
    pub bytes: [u64; 2],
    /// The inside network.
    pub network: NetworkId,
}

/// Totals of the connection tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConntrackStats {
    /// Entries now.
    pub entries: u32,
    /// Entries at most.
    pub limit: u32,
    /// Connections made.
    pub inserted: u64,
    /// Connections that timed out, or whose first packets waited in vain for a neighbor.
    pub expired: u64,
    /// Connections ended by flush, unpublish or removal.
    pub flushed: u64,
    /// New connections refused because the table was full.
    pub full: u64,
    /// Two workers made the same connection at once; one of them won.
    pub clashes: u64,
    /// New connections refused because no outside port was free.
    pub ports_exhausted: u64,
    /// Connections that began with a segment from their middle, after the table was lost.
    pub picked_up: u64,
    /// Connections that nobody had answered, ended to make room for others.
    pub evicted: u64,
    /// What connections have announced to helpers, of both tables.
    pub helpers: HelperStats,
}

/// What connections have announced to helpers, and became of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HelperStats {
    /// Connections that were expected.
    pub expected: u64,
    /// Those that came.
    pub used: u64,
    /// Announcements of another address than the sender's own.
    pub foreign: u64,
    /// Announcements, and control connections, beyond the limits.
    pub full: u64,
    /// Announcements for which no outside port was free.
    pub no_port: u64,
    /// Announcements of a port below 1024.
    pub privileged: u64,
    /// Announcements that would not have fitted into their segment in other words, or after too many others.
    pub too_long: u64,
}

impl ConntrackStats {
    /// The totals of two tables with one limit.
    #[must_use]
    pub const fn and(&self, other: &Self) -> Self {
        Self {
            entries: self.entries + other.entries,
            limit: self.limit,
            inserted: self.inserted + other.inserted,
            expired: self.expired + other.expired,
            flushed: self.flushed + other.flushed,
            full: self.full + other.full,
            clashes: self.clashes + other.clashes,
            ports_exhausted: self.ports_exhausted + other.ports_exhausted,
            picked_up: self.picked_up + other.picked_up,
            // One account for both.
            evicted: self.evicted,
            helpers: self.helpers,
        }
    }
}

/// A rule with counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NatRule {
    /// [`crate::config::DnatRule::id`].
    Dnat(u32),
    /// Masquerade of a network.
    Masquerade(NetworkId),
    /// [`crate::config::PolicyRule::id`].
    Policy(u32),
}

/// What a capture saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedFrame {
    /// Port.
    pub port: PortId,
    /// Sent to the port rather than received from it.
    pub egress: bool,
    /// Wall-clock time in nanoseconds since the epoch.
    pub unix_nanos: u64,
    /// Length on the wire.
    pub original_len: u32,
    /// The bytes, up to the snap length.
    pub bytes: Vec<u8>,
}

/// The running engine. Dropping it stops the workers.
#[derive(Debug)]
pub struct Engine {
    plane: Plane,
    /// Before the workers it moves ports between. `None`: there is nobody to move them to.
    _balancer: Option<Balancer>,
    crew: Arc<Crew>,
    gone: GonePorts,
    /// Of devices that go on working where somebody moved them to.
    tethers: Mutex<HashMap<PortId, Arc<dyn Tether>>>,
}

impl Engine {
    /// Starts the workers with an empty snapshot.
    ///
    /// # Errors
    /// When threads or tables cannot be made.
    pub fn start(options: &EngineOptions) -> Result<Self, EngineError> {
        let plane = Plane::new(options)
            .map_err(|error| EngineError::Io("cannot make the engine's tables", error))?;
        let gone = GonePorts::default();
        let (notes, inbox) = Balancer::channel();
        let (mut workers, mut loads) = (Vec::new(), Vec::new());
        for number in 0..options.workers.max(1) {
            let load = Arc::<Load>::default();
            let meter = Meter::new(Arc::clone(&load), notes.clone());
            let gone = Arc::clone(&gone);
            let handle = plane
                .core(number)
                .and_then(|core| WorkerHandle::spawn(number, core, gone, meter, options.io))
                .map_err(|error| EngineError::Io("cannot start a worker", error))?;
            workers.push(handle);
            loads.push(load);
        }
        let moves = options.placement == Placement::Load && workers.len() > 1;
        let crew = Arc::new(Crew::new(workers, loads, options.placement));
        let balancer = moves
            .then(|| Balancer::start(Arc::clone(&crew), notes, inbox))
            .transpose()
            .map_err(|error| EngineError::Io("cannot start the balancer", error))?;
        Ok(Self { plane, _balancer: balancer, crew, gone, tethers: Mutex::default() })
    }

    /// Takes a device. Its frames are dropped as `port_unconfigured` until a snapshot with the
    /// returned id is published.
    ///
    /// # Errors
    /// When no number is free or the device cannot be split.
    pub fn attach(&self, device: Box<dyn Port>) -> Result<PortId, EngineError> {
        let offloads = device.offloads();
        let missed = device.missed();
        let tether = device.tether();
        let halves = device
            .split(self.crew.workers().len())
            .map_err(|error| EngineError::Io("cannot share the device", error))?;
        let port = self.crew.attach(halves, offloads, &self.plane)?;
        if let Some(missed) = missed {
            self.plane.ask_for_missed(port, missed);
        }
        if let Some(tether) = tether {
            self.tethers.lock().insert(port, tether);
        }
        Ok(port)
    }

    /// Closes the device; returns when no worker uses it any more. Its FDB entries are gone then.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn detach(&self, port: PortId) -> Result<(), EngineError> {
        self.crew.detach(port)?;
        self.tethers.lock().remove(&port);
        self.plane.unregister(port);
        self.gone.lock().retain(|gone| *gone != port);
        Ok(())
    }

    /// Lets the worker of this number receive from a port, its frames in order as ever. With
    /// [`Placement::Load`] it may move again. False: it has it already, frames of it wait for a
    /// neighbor, or there is no such port or worker.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub fn receive_by(&self, port: PortId, worker: usize) -> Result<bool, EngineError> {
        self.crew.hand_over(port, worker)
    }

    /// Replaces the configuration. Workers use it from their next batch on. Connections end whose
    /// DNAT rule, network, endpoint or outside address is gone.
    pub fn publish(&self, snapshot: Snapshot) {
        self.plane.publish_then(snapshot, || self.crew.sync());
    }

    /// Finds out what would become of frames that come in by a port: see [`Plane::tracer`].
    ///
    /// # Errors
    /// When there is no such port, the engine has stopped, memory cannot be had, or others are under way.
    pub fn tracer(&self, port: PortId) -> Result<Tracer, EngineError> {
        let state = self.crew.state_of(port)?;
        self.plane.tracer(state).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => EngineError::TooManyTraces,
            _ => EngineError::Io("cannot copy the tables", error),
        })
    }

    /// How the workers read and write devices; the same for all.
    #[must_use]
    pub fn backend(&self) -> IoBackend {
        let first = self.crew.workers().first().map(WorkerHandle::backend);
        first.cloned().unwrap_or(IoBackend::Epoll { refused: None })
    }

    /// Notes that the device of a port is gone, for those who know by other ways.
    pub fn lose(&self, port: PortId) {
        let mut gone = self.gone.lock();
        if !gone.contains(&port) {
            gone.push(port);
        }
    }

    /// Notes devices as gone that were deleted, or moved to another network namespace. They end with
    /// their ports, persistent or not. Asks the kernel for each device: not for every frame.
    pub fn look_for_lost(&self) {
        let tethers = self.tethers.lock().clone();
        for (port, tether) in tethers.into_iter().filter(|(_, tether)| tether.is_lost()) {
            // Refused by one that was deleted just now.
            let _ = tether.let_go();
            self.lose(port);
        }
    }

    /// Ports whose device turned out to be gone.
    #[must_use]
    pub fn gone_ports(&self) -> Vec<PortId> {
        self.gone.lock().clone()
    }

    /// Stops the workers and closes the devices. Persistent devices stay.
    pub fn stop(self) {}
}

/// What control looks at and changes by hand has nothing to do with threads and devices: it is the
/// plane's. [`Engine::publish`] takes the place of [`Plane::publish`], because it waits for the workers.
impl Deref for Engine {
    type Target = Plane;

    fn deref(&self) -> &Plane {
        &self.plane
    }
}
