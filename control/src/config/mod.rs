//! The daemon's configuration: defaults, overridden by the file, overridden by the flags.
//!
//! [`mod@file`] is the file as it is written, [`validate`] makes a [`Config`] of it, [`args`] is the
//! command line, [`schema`] describes the file to editors. A [`Config`] is sound by itself; whether it fits the host is found out at start.

pub mod args;
pub mod file;
pub mod manual;
mod memory;
pub mod schema;
pub mod validate;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dataplane::config::{DEFAULT_FDB_AGEING, Timeouts};
use dataplane::engine::{ErrorRate, GroupLimits, HelperLimits, NeighborLimits};
use ipnet::{Ipv4Net, Ipv6Net};
use utoipa::ToSchema;

use crate::api::types::{NetworkCreate, UplinkAdd};
use crate::error::{Error, Result};
use crate::ipam::Prefix;
use crate::options::LinkKind;
use crate::place::TAP_QUEUE;

/// Where the configuration is looked for.
pub const DEFAULT_CONFIG: &str = "/etc/vswitchd/vswitchd.toml";
/// Where the API's socket is.
pub const DEFAULT_SOCKET: &str = "/run/vswitchd/vswitchd.sock";
/// Where the state is kept.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/vswitchd";
/// Where what is only true while the daemon runs is kept.
pub const DEFAULT_RUN_DIR: &str = "/run/vswitchd";

/// Everything the daemon is told before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The process.
    pub daemon: Daemon,
    /// What networks get that do not say.
    pub defaults: Defaults,
    /// Idle timeouts of connections.
    pub timeouts: Timeouts,
    /// For how long segments from the middle of connections begin them after a start without a table.
    pub grace: Duration,
    /// How long an FDB entry lives without a frame from it.
    pub fdb_ageing: Duration,
    /// Sizes of the tables.
    pub limits: Limits,
    /// Declared ways out.
    pub uplinks: Vec<UplinkAdd>,
    /// Declared networks.
    pub networks: Vec<NetworkCreate>,
    /// What was read and has no effect, one line each, for the log.
    pub warnings: Vec<String>,
}

/// The process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// The API's socket.
    pub socket: PathBuf,
    /// Where the state is kept.
    pub state_dir: PathBuf,
    /// Where what is only true while the daemon runs is kept.
    pub run_dir: PathBuf,
    /// Worker threads; `None`: one per core.
    pub workers: Option<usize>,
    /// Which worker receives from which port.
    pub placement: Placement,
    /// How devices are read and written; `None`: the fastest way that the kernel allows.
    pub io: Option<Io>,
    /// Merge TCP segments, and trains of UDP datagrams, that wait for the same device.
    pub gro: bool,
    /// Where Docker looks for plugin sockets; `None`: no plugin.
    pub docker_plugin_dir: Option<PathBuf>,
    /// Where metrics are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Where mappings are logged; `None`: nowhere.
    pub nat_log: Option<PathBuf>,
    /// Mebibytes after which that file is set aside.
    pub nat_log_size: u32,
}

/// How TAPs and uplinks are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, clap::ValueEnum, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Io {
    /// By io_uring or not at all.
    #[value(name = "io_uring")]
    IoUring,
    /// By epoll, read and write.
    Epoll,
}

/// Which worker receives from which port.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, clap::ValueEnum, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// One worker from all ports, others when it has too much to do.
    #[default]
    Load,
    /// All workers from equally many.
    Spread,
}

impl From<Placement> for dataplane::engine::Placement {
    fn from(placement: Placement) -> Self {
        match placement {
            Placement::Load => Self::Load,
            Placement::Spread => Self::Spread,
        }
    }
}

impl Daemon {
    /// What the engine is told: [`Daemon::io`] or the best there is.
    #[must_use]
    pub const fn io_choice(&self) -> dataplane::io::IoChoice {
        use dataplane::io::IoChoice;
        match self.io {
            None => IoChoice::Auto,
            Some(Io::IoUring) => IoChoice::Uring,
            Some(Io::Epoll) => IoChoice::Epoll,
        }
    }

    /// Worker threads: as configured, else one per core this process may use.
    #[must_use]
    pub fn worker_count(&self) -> usize {
        self.workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
            .min(validate::MAX_WORKERS)
    }
}

impl Default for Daemon {
    fn default() -> Self {
        Self {
            socket: DEFAULT_SOCKET.into(),
            state_dir: DEFAULT_STATE_DIR.into(),
            run_dir: DEFAULT_RUN_DIR.into(),
            workers: None,
            placement: Placement::Load,
            io: None,
            gro: true,
            docker_plugin_dir: None,
            metrics: None,
            nat_log: None,
            nat_log_size: 1024,
        }
    }
}

/// Where subnets come from that nobody named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool<N: Prefix = Ipv4Net> {
    /// The range.
    pub base: N,
    /// Prefix length of each subnet taken from it.
    pub size: u8,
}

/// What networks get that do not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Where their subnets come from, first pool first.
    pub pools: Vec<Pool>,
    /// The same for those of IPv6; empty: from a prefix of the installation's own.
    pub pools6: Vec<Pool<Ipv6Net>>,
    /// Their MTU.
    pub mtu: u16,
    /// What connects their endpoints to the engine.
    pub link: LinkKind,
}

impl Default for Defaults {
    fn default() -> Self {
        // Docker's second default pool; the contract fixes it.
        let base = Ipv4Net::new_assert(std::net::Ipv4Addr::new(172, 16, 0, 0), 12);
        let pools = vec![Pool { base, size: 16 }];
        Self { pools, pools6: Vec::new(), mtu: 1500, link: LinkKind::Tap }
    }
}

/// Sizes of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections tracked at most.
    pub conntrack: u32,
    /// Connections of one endpoint at most.
    pub conntrack_per_endpoint: u32,
    /// Connections that one endpoint begins in a second at most; `None`: as many as it likes.
    pub new_connections_per_endpoint: Option<u32>,
    /// MAC addresses learned at most, over all networks.
    pub fdb: u32,
    /// MAC addresses learned at most behind one port.
    pub fdb_per_port: u32,
    /// Unfinished datagrams whose fragments are followed at most.
    pub fragments: u32,
    /// Fragments that each of them may have.
    pub fragments_per_datagram: u32,
    /// Bytes of fragments that wait at each worker.
    pub fragment_bytes: u32,
    /// Frame buffers of each worker.
    pub buffers: usize,
    /// Neighbors at most.
    pub neighbors: NeighborLimits,
    /// Memberships in multicast groups at most.
    pub groups: GroupLimits,
    /// Frames that a worker lets wait for neighbors at most.
    pub waiting_frames: usize,
    /// Of those, for one neighbor.
    pub waiting_frames_per_neighbor: usize,
    /// What helpers may have to do with at most.
    pub helpers: HelperLimits,
    /// ICMP errors that a worker sends.
    pub icmp_errors: ErrorRate,
    /// Traces under way at most.
    pub traces: u32,
    /// Frames that wait for the reader of each capture.
    pub capture_frames: u32,
    /// Events that wait for each reader of what happens to connections.
    pub conntrack_events: u32,
    /// Of what the daemon does beside moving frames.
    pub services: ServiceLimits,
}

/// How many there may be of what is done beside moving frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Readers of what happens to connections: each costs whoever begins or ends one, and memory. The NAT log has
    /// a place of its own.
    pub event_readers: u32,
    /// TCP connections of the host itself by one published mapping.
    pub host_connections: u32,
    /// Clients of the host itself that send datagrams by one published mapping.
    pub host_datagram_clients: u32,
    /// Rules of one network's policy: they are gone through for each new connection.
    pub policy_rules: u32,
    /// Events about the switch that wait for the slowest of their readers.
    pub events: u32,
    /// Bytes of the NAT log that wait for a disk in trouble.
    pub nat_log_bytes: u32,
    /// Frames that wait in the TAP of a sandbox for a worker.
    pub tap_queue: u32,
    /// Host ports of one published range that the host itself reaches: a task for each port of a range of thousands
    /// would cost more than somebody who asks for that many wants from the host.
    pub served_ports: u32,
    /// Host ports of all longer ranges that are held.
    pub held_ports: u32,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self {
            event_readers: 8,
            host_connections: 1024,
            host_datagram_clients: 512,
            policy_rules: 256,
            events: 1024,
            nat_log_bytes: 4 << 20,
            tap_queue: TAP_QUEUE,
            served_ports: 256,
            held_ports: 16_384,
        }
    }
}

impl Default for Limits {
    /// Those of a host with memory enough.
    fn default() -> Self {
        let engine = dataplane::EngineOptions::default();
        Self {
            conntrack: engine.conntrack_limit,
            conntrack_per_endpoint: engine.conntrack_per_endpoint,
            new_connections_per_endpoint: None,
            fdb: engine.fdb_limit,
            fdb_per_port: engine.fdb_per_port,
            fragments: engine.fragment_limit,
            fragments_per_datagram: engine.fragments_per_datagram,
            fragment_bytes: engine.fragment_bytes,
            buffers: engine.buffers_per_worker,
            neighbors: engine.neighbors,
            groups: engine.groups,
            waiting_frames: engine.waiting_frames,
            waiting_frames_per_neighbor: engine.waiting_frames_per_neighbor,
            helpers: engine.helpers,
            icmp_errors: engine.icmp_errors,
            traces: engine.traces,
            capture_frames: engine.capture_frames,
            conntrack_events: engine.conntrack_events,
            services: ServiceLimits::default(),
        }
    }
}

impl Limits {
    /// Those of a host with so many bytes of memory. Each table gets the same share of it, about one
    /// hundredth, down to a size that a small host needs too; from 4 GiB on it is as large as
    /// [`Limits::default`] says.
    fn for_memory(bytes: u64) -> Self {
        let full = Self::default();
        let share = |full: u32, least: u32, each: u64| {
            u32::try_from(bytes / each).unwrap_or(u32::MAX).clamp(least, full)
        };
        let conntrack = share(full.conntrack, 16_384, MEMORY_PER_CONNECTION);
        let buffers = u32::try_from(full.buffers).unwrap_or(u32::MAX);
        let buffers = share(buffers, 256, MEMORY_PER_BUFFER);
        let neighbors = share(full.neighbors.all, 2048, MEMORY_PER_NEIGHBOR);
        Self {
            conntrack,
            conntrack_per_endpoint: conntrack / 2,
            fdb: share(full.fdb, 4096, MEMORY_PER_MAC),
            fragment_bytes: share(full.fragment_bytes, 1 << 20, MEMORY_PER_FRAGMENT_BYTE),
            buffers: usize::try_from(buffers).unwrap_or(full.buffers),
            neighbors: NeighborLimits { all: neighbors, uplink: neighbors / 2, ..full.neighbors },
            capture_frames: share(full.capture_frames, 128, MEMORY_PER_CAPTURED),
            conntrack_events: share(full.conntrack_events, 1024, MEMORY_PER_EVENT),
            services: ServiceLimits {
                nat_log_bytes: share(full.services.nat_log_bytes, 1 << 20, MEMORY_PER_LOG_BYTE),
                tap_queue: share(full.services.tap_queue, 500, MEMORY_PER_TAP_FRAME),
                ..full.services
            },
            ..full
        }
    }
}

// Bytes of the host's memory for which there is one entry; `docs/configuration.md` has them too.
const MEMORY_PER_CONNECTION: u64 = 16 << 10;
const MEMORY_PER_MAC: u64 = 64 << 10;
const MEMORY_PER_NEIGHBOR: u64 = 256 << 10;
const MEMORY_PER_BUFFER: u64 = 8 << 20;
const MEMORY_PER_FRAGMENT_BYTE: u64 = 1 << 10;
const MEMORY_PER_LOG_BYTE: u64 = 1 << 10;
const MEMORY_PER_EVENT: u64 = 512 << 10;
const MEMORY_PER_TAP_FRAME: u64 = 2 << 20;
const MEMORY_PER_CAPTURED: u64 = 4 << 20;

/// What waits for an acknowledgment is sent again every 120 s at the longest (`TCP_RTO_MAX` of Linux; RFC 6298
/// §2.5 asks for 60 s at least), so that in this time each sender has tried twice.
const GRACE: Duration = Duration::from_secs(300);

impl Default for Config {
    fn default() -> Self {
        Self {
            daemon: Daemon::default(),
            defaults: Defaults::default(),
            timeouts: Timeouts::default(),
            grace: GRACE,
            fdb_ageing: DEFAULT_FDB_AGEING,
            limits: Limits::default(),
            uplinks: Vec::new(),
            networks: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

impl Config {
    /// What applies on this host without a file.
    fn of_this_host() -> Self {
        let limits = memory::of_this_host().map_or_else(Limits::default, Limits::for_memory);
        Self { limits, ..Self::default() }
    }

    /// Reads the file; one that does not exist stands for the defaults.
    ///
    /// # Errors
    /// When it cannot be read, or is wrong: one line with file, line and key.
    pub fn load(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::of_this_host()),
            Err(error) => {
                let fault = match error.kind() {
                    ErrorKind::InvalidData => "not UTF-8 text".to_owned(),
                    ErrorKind::IsADirectory => "is a directory; name the file in it".to_owned(),
                    _ => error.to_string(),
                };
                // Whatever the reason: what the user named is no configuration.
                Err(Error::invalid(format!("{}: {fault}", path.display())))
            }
        }
    }

    /// The sections that differ and are read at the start only.
    #[must_use]
    pub fn sections_unlike(&self, other: &Self) -> Vec<&'static str> {
        let timers = |config: &Self| (config.timeouts, config.grace, config.fdb_ageing);
        [
            ("daemon", self.daemon != other.daemon),
            ("defaults", self.defaults != other.defaults),
            ("timeouts", timers(self) != timers(other)),
            ("limits", self.limits != other.limits),
            ("uplink", self.uplinks != other.uplinks),
        ]
        .into_iter()
        .filter_map(|(section, differs)| differs.then_some(section))
        .collect()
    }

    /// Reads the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// When it is wrong: one line with file, line and key.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let file = file::parse(text, path)?;
        validate::config(file, text, path)
    }
}

#[cfg(test)]
mod tests;
