//! What is measured, on one contender, in one run.
//!
//! Traffic is made and taken by the kernel's own sockets, opened in the namespaces and used by
//! threads of this program.

mod connections;
mod cpu;
mod flows;
mod round_trip;
mod stream;
mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use control::netns::Netns;
use serde::Serialize;

use crate::contender::Contender;
use crate::error::VersusError;
use crate::wiring::{B, B6, HOST, HOST6, NOWHERE, NOWHERE6, OUTSIDE, OUTSIDE6, PUBLISHED};

/// Slow start, address resolution and the first wakeups are not what is to be measured.
pub(crate) const WARM_UP: Duration = Duration::from_millis(200);
/// What stands still for so long has failed.
const STALL: Duration = Duration::from_secs(5);

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// New TCP connections a second through SNAT, opened and closed by so many clients at once: a
    /// few wait for their own round trips, many for a processor.
    Connections(usize),
    /// What a daemon keeps for tracked connections.
    Memory(Family),
    /// One byte there and back over TCP.
    RoundTrip(Way),
    /// So many TCP streams at once.
    Streams(Way, usize, Family),
    /// 64-byte UDP frames.
    Udp(Way),
}

/// Which way through the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From outside to a container that asked for it, back through SNAT.
    Back,
    /// From outside into a published port.
    Down,
    /// From container to container.
    Switched,
    /// From a container to outside, through SNAT.
    Up,
}

/// Which version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Which of two figures is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Less,
    More,
}

/// One figure of one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// What it is a figure of, unless the measure has only one.
    pub figure: &'static str,
    pub unit: &'static str,
    pub better: Better,
    pub value: f64,
}

impl Sample {
    const fn new(figure: &'static str, unit: &'static str, better: Better, value: f64) -> Self {
        Self { figure, unit, better, value }
    }
}

/// How a run is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    pub duration: Duration,
    /// Congestion control of TCP; `None`: the kernel's default.
    pub cc: Option<&'a str>,
    /// Connections of the memory measure.
    pub connections: u32,
}

impl Measure {
    /// All, in the order of the table.
    pub(crate) const ALL: [Self; 23] = [
        Self::Streams(Way::Switched, 1, Family::V4),
        Self::Streams(Way::Switched, 4, Family::V4),
        Self::Streams(Way::Switched, 16, Family::V4),
        Self::Streams(Way::Up, 1, Family::V4),
        Self::Streams(Way::Up, 4, Family::V4),
        Self::Streams(Way::Up, 16, Family::V4),
        Self::Streams(Way::Back, 1, Family::V4),
        Self::Streams(Way::Back, 4, Family::V4),
        Self::Streams(Way::Back, 16, Family::V4),
        Self::Streams(Way::Down, 1, Family::V4),
        Self::Streams(Way::Down, 4, Family::V4),
        Self::Streams(Way::Down, 16, Family::V4),
        Self::Streams(Way::Switched, 1, Family::V6),
        Self::Streams(Way::Up, 1, Family::V6),
        Self::Streams(Way::Down, 1, Family::V6),
        Self::Udp(Way::Switched),
        Self::Udp(Way::Up),
        Self::RoundTrip(Way::Switched),
        Self::RoundTrip(Way::Up),
        Self::Connections(4),
        Self::Connections(32),
        Self::Memory(Family::V4),
        Self::Memory(Family::V6),
    ];

    /// As options and JSON have it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Connections(4) => "conn".to_owned(),
            Self::Connections(clients) => format!("conn{clients}"),
            Self::Memory(family) => format!("memory{}", family.suffix()),
            Self::RoundTrip(Way::Switched) => "rtt".to_owned(),
            Self::RoundTrip(way) => format!("rtt-{}", way.name()),
            Self::Streams(way, streams, family) => {
                format!("{}{streams}{}", way.name(), family.suffix())
            }
            Self::Udp(Way::Switched) => "udp".to_owned(),
            Self::Udp(way) => format!("udp-{}", way.name()),
        }
    }

    /// For people.
    pub(crate) fn title(&self) -> String {
        match self {
            Self::Connections(clients) => format!("new connections, {clients} clients, SNAT"),
            Self::Memory(family) => format!("memory{}", family.title()),
            Self::RoundTrip(way) => format!("round trip, {}", way.title()),
            Self::Streams(way, streams, family) => {
                let plural = if *streams == 1 { "" } else { "s" };
                format!("TCP{}, {streams} stream{plural}, {}", family.title(), way.title())
            }
            Self::Udp(way) => format!("64-byte UDP frames, {}", way.title()),
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|measure| measure.name() == text);
        found.ok_or_else(|| {
            let names: Vec<String> = Self::ALL.iter().map(Self::name).collect();
            format!("is none of {}", names.join(", "))
        })
    }

    /// Whether the choice of congestion control matters to it.
    pub(crate) const fn has_congestion_control(self) -> bool {
        matches!(self, Self::Streams(..))
    }

    /// Measures once.
    pub(crate) fn run(self, on: &Contender, run: Run<'_>) -> Result<Vec<Sample>, VersusError> {
        match self {
            Self::Connections(clients) => connections::measure(on, clients, run.duration),
            Self::Memory(family) => flows::measure(on, family, run.connections),
            Self::RoundTrip(way) => round_trip::measure(&way.path(on, Family::V4), run.duration),
            Self::Streams(way, streams, family) => stream::measure(on, (way, family), streams, run),
            Self::Udp(way) => udp::measure(&way.path(on, Family::V4), run.duration),
        }
    }
}

/// From where to where.
#[derive(Debug, Clone, Copy)]
struct Path<'a> {
    client: &'a Netns,
    server: &'a Netns,
    /// What the client connects to.
    address: IpAddr,
    /// Where the server must listen; 0: anywhere.
    port: u16,
}

impl Path<'_> {
    fn target(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address, port))
    }
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Back => "back",
            Self::Down => "down",
            Self::Switched => "tcp",
            Self::Up => "up",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Back => "back through SNAT",
            Self::Down => "into a published port",
            Self::Switched => "switched",
            Self::Up => "out through SNAT",
        }
    }

    const fn path(self, on: &Contender, family: Family) -> Path<'_> {
        let machines = &on.machines;
        let (host, b, outside) = match family {
            Family::V4 => (IpAddr::V4(HOST), IpAddr::V4(B), IpAddr::V4(OUTSIDE)),
            Family::V6 => (IpAddr::V6(HOST6), IpAddr::V6(B6), IpAddr::V6(OUTSIDE6)),
        };
        match self {
            Self::Down => Path {
                client: &machines.outside,
                server: &machines.b,
                address: host,
                port: PUBLISHED,
            },
            Self::Switched => {
                Path { client: &machines.a, server: &machines.b, address: b, port: 0 }
            }
            Self::Back | Self::Up => {
                Path { client: &machines.a, server: &machines.outside, address: outside, port: 0 }
            }
        }
    }
}

impl Family {
    const fn suffix(self) -> &'static str {
        match self {
            Self::V4 => "",
            Self::V6 => "-6",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::V4 => "",
            Self::V6 => " over IPv6",
        }
    }

    const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// What leads outside and ends there.
    const fn nowhere(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(NOWHERE),
            Self::V6 => IpAddr::V6(NOWHERE6),
        }
    }
}

/// For figures: what is counted here is far below 2^52.
#[allow(clippy::cast_precision_loss, reason = "see above")]
const fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_is_found_by_its_name() {
        for measure in Measure::ALL {
            assert_eq!(Measure::parse(&measure.name()), Ok(measure));
        }
        let names: Vec<String> = Measure::ALL.iter().map(Measure::name).collect();
        assert_eq!(
            names.join(" "),
            "tcp1 tcp4 tcp16 up1 up4 up16 back1 back4 back16 down1 down4 down16 tcp1-6 up1-6 down1-6 udp \
             udp-up rtt rtt-up conn conn32 memory memory-6"
        );
        assert!(Measure::parse("tcp").is_err());
    }
}
