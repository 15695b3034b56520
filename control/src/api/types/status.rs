//! Bodies about counters and the daemon itself.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::name::Name;

/// `GET /v1/drops`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DropsQuery {
    /// Only frames of ports in this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
    /// Only frames of this sandbox's ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Name>,
}

/// Frames dropped for one reason; reasons without drops are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DropCount {
    /// Stable `snake_case` name.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// The reason in a sentence.
    pub description: String,
}

/// `GET /v1/stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StatsQuery {
    /// Only this sandbox's ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Name>,
}

/// Totals of one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortStats {
    /// The switch port: `SANDBOX/IFNAME`, or the name of a host's leg or an uplink.
    pub port: String,
    /// The sandbox behind it.
    pub sandbox: Option<Name>,
    /// The network it is in.
    pub network: Option<Name>,
    /// Frames received from the port.
    pub rx_frames: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Frames sent to the port.
    pub tx_frames: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Frames received from the port and dropped.
    pub rx_drops: u64,
    /// Frames for the port that it did not take.
    pub tx_drops: u64,
    /// Frames that the port's device lost before they were received: they came faster than they
    /// were read, or were too long for its buffer. In no other sum.
    #[serde(default)]
    pub rx_missed: u64,
    /// Answers of the host's own stack that nothing serves what came from the port: resets of segments that fit no
    /// connection of the host's, and ports that are unreachable.
    #[serde(default)]
    pub refused: u64,
}

/// Totals of one worker: `rx + replicated + generated = tx + merged + consumed + queued + drops`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerStatus {
    /// Its number.
    pub id: u32,
    /// Frames received.
    pub rx_frames: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Frames dropped.
    pub drops: u64,
    /// Copies made by floods, and segments.
    pub replicated: u64,
    /// Segments that became part of another frame before it was sent.
    #[serde(default)]
    pub merged: u64,
    /// Frames made by the daemon.
    pub generated: u64,
    /// Frames that were for the daemon or left to the host.
    pub consumed: u64,
    /// Frames waiting for a neighbor.
    pub queued: u64,
}

/// How full the connection table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConntrackUse {
    /// Entries now.
    pub entries: u64,
    /// Entries at most.
    pub limit: u64,
    /// Seconds for which segments from the middle of connections begin them still; zero but after a start
    /// without a table.
    #[serde(default)]
    pub grace_s: u64,
}

/// How full the forwarding database is, and what it had to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FdbUse {
    /// Learned and static entries now.
    pub entries: u64,
    /// Learned and static entries at most.
    pub limit: u64,
    /// MACs that were seen behind another port than before.
    pub moves: u64,
    /// Learned entries that went to make room.
    pub evictions: u64,
    /// MACs that were not entered, because nothing could go to make room.
    pub refused: u64,
}

/// How full something is that has a limit. Where each worker, port or link has its own, the fullest
/// one is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitUse {
    /// Its stable name: that of the key in `[limits]`, where there is one.
    pub name: String,
    /// Now.
    pub current: u64,
    /// At most since the daemon was started.
    pub peak: u64,
    /// What it may hold.
    pub limit: u64,
    /// As what a frame is dropped that finds no room; none where none is.
    pub drop_reason: Option<String>,
    /// What becomes of somebody else who finds no place; none where that is a frame.
    #[serde(default)]
    pub refusal: Option<Refusal>,
    /// How often that was; none where it is counted elsewhere, or nowhere.
    #[serde(default)]
    pub refused: Option<u64>,
}

/// What becomes of who finds no place and is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Refused until another ends: 503, exit code 4.
    Busy,
    /// Refused: 409, exit code 4.
    Conflict,
    /// The datagram is lost.
    DatagramLost,
    /// Whom it was for misses it, and is told how much.
    Missed,
    /// It is not entered, and things go on without.
    NotEntered,
    /// The ports are only looked at once; refused where that would take frames from the host.
    NotHeld,
    /// It is not sent.
    NotSent,
    /// The host itself cannot reach it.
    NotServed,
    /// It is entered, and an older one is forgotten for it.
    PushedOut,
    /// It waits.
    Waits,
}

impl Refusal {
    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Conflict => "conflict",
            Self::DatagramLost => "datagram_lost",
            Self::Missed => "missed",
            Self::NotEntered => "not_entered",
            Self::NotHeld => "not_held",
            Self::NotSent => "not_sent",
            Self::NotServed => "not_served",
            Self::PushedOut => "pushed_out",
            Self::Waits => "waits",
        }
    }
}

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it was started.
    pub uptime_s: u64,
    /// How TAPs and uplinks are read and written: `io_uring` or `epoll`.
    #[serde(default)]
    pub io: String,
    /// Its workers.
    pub workers: Vec<WorkerStatus>,
    /// How many networks there are, `host` and `none` included.
    pub networks: u64,
    /// How many endpoints there are.
    pub endpoints: u64,
    /// How full the connection table is.
    pub conntrack: ConntrackUse,
    /// How full the forwarding database is.
    #[serde(default)]
    pub fdb: FdbUse,
    /// How full everything is that has a limit.
    #[serde(default)]
    pub limits: Vec<LimitUse>,
    /// What a person should know: each one line.
    #[serde(default)]
    pub warnings: Vec<String>,
}
