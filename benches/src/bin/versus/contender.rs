//! What is compared: switches with NAT, each built between machines of its own.

mod bare;
mod kernel;
mod ovs;
mod vswitchd;

use std::process::Command;

use control::lab::Lab;

use self::bare::Copying;
use crate::error::VersusError;
use crate::measure::{Measure, Way};
use crate::programs::{self, Ours};
use crate::wiring::Machines;

/// What the others are compared with.
pub(crate) const BASE: Kind = Kind::Bridge;

/// A way to build a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// vswitchd with TAP endpoints.
    Tap,
    /// vswitchd with veth endpoints.
    Veth,
    /// The kernel's bridge and NAT, bridged frames not seen by its firewall.
    Bridge,
    /// The same with Docker's settings: bridged frames pass the firewall, forwarding is filtered.
    BridgeNf,
    /// Open vSwitch's userspace datapath with its own connection tracking.
    Ovs,
    /// vswitchd with TAP endpoints, without io_uring.
    TapEpoll,
    /// No switch: frames copied between two TAP devices.
    Bare(Copying),
}

impl Kind {
    /// In the order of the columns.
    pub(crate) const ALL: [Self; 9] = [
        Self::Tap,
        Self::Veth,
        Self::Bridge,
        Self::BridgeNf,
        Self::Ovs,
        Self::TapEpoll,
        Self::Bare(Copying::OneRing),
        Self::Bare(Copying::TwoRings),
        Self::Bare(Copying::Blocking),
    ];

    /// Whether it takes part when nobody is named.
    pub(crate) const fn is_default(self) -> bool {
        !matches!(self, Self::TapEpoll | Self::Bare(_))
    }

    /// Whether it can carry that at all.
    pub(crate) fn carries(self, measure: Measure) -> bool {
        !matches!(self, Self::Bare(_))
            || matches!(
                measure,
                Measure::Streams(Way::Switched, ..)
                    | Measure::Udp(Way::Switched)
                    | Measure::RoundTrip(Way::Switched)
            )
    }

    /// As options and JSON have it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tap => "tap",
            Self::Veth => "veth",
            Self::Bridge => "bridge",
            Self::BridgeNf => "bridge-nf",
            Self::Ovs => "ovs",
            Self::TapEpoll => "tap-epoll",
            Self::Bare(Copying::OneRing) => "bare",
            Self::Bare(Copying::TwoRings) => "bare-two",
            Self::Bare(Copying::Blocking) => "bare-blocking",
        }
    }

    /// For people.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Tap => "vswitchd, tap",
            Self::Veth => "vswitchd, veth",
            Self::Bridge => "kernel bridge + NAT",
            Self::BridgeNf => "the same, bridge-nf on",
            Self::Ovs => "Open vSwitch, netdev",
            Self::TapEpoll => "vswitchd, tap by epoll",
            Self::Bare(Copying::OneRing) => "frames copied between TAPs",
            Self::Bare(Copying::TwoRings) => "the same, two threads and rings",
            Self::Bare(Copying::Blocking) => "the same, two threads, read and write",
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| format!("is none of {names}"))
    }

    /// Builds it. `label` tells several of one kind apart.
    pub(crate) fn build(self, lab: &Lab, ours: &Ours, label: &str) -> Result<Built, VersusError> {
        match self {
            Self::Tap | Self::Veth | Self::TapEpoll => vswitchd::build(self, lab, ours, label),
            Self::Bridge | Self::BridgeNf => kernel::build(self, lab, label),
            Self::Ovs => ovs::build(lab, label),
            Self::Bare(copying) => bare::build(lab, label, self, copying),
        }
    }
}

/// A contender, or why it cannot take part here.
#[derive(Debug)]
pub(crate) enum Built {
    Ready(Contender),
    LeftOut(String),
}

/// A switch that is ready for traffic.
#[derive(Debug)]
pub(crate) struct Contender {
    pub kind: Kind,
    pub machines: Machines,
    /// The process that switches; `None` where the kernel does.
    pub process: Option<u32>,
    /// How to ask for the number of tracked connections.
    counting: Option<Counting>,
}

/// A command, and how to read its answer.
#[derive(Debug)]
struct Counting {
    program: std::path::PathBuf,
    arguments: Vec<String>,
    read: fn(&str) -> Option<u64>,
}

impl Contender {
    /// How many connections the process tracks.
    pub(crate) fn connections(&self) -> Result<u64, VersusError> {
        let Some(counting) = &self.counting else {
            let text = format!("{} has no process that tracks connections", self.kind.name());
            return Err(VersusError::Program(text));
        };
        let mut command = Command::new(&counting.program);
        command.args(&counting.arguments);
        let answer = programs::run(&self.machines.host, command, "")?;
        (counting.read)(&answer).ok_or_else(|| {
            let program = counting.program.display();
            VersusError::Program(format!("{program} does not say how many connections there are"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_name() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.name()), Ok(kind));
        }
        let error = Kind::parse("hub").unwrap_err();
        assert_eq!(
            error,
            "is none of tap, veth, bridge, bridge-nf, ovs, tap-epoll, bare, bare-two, bare-blocking"
        );
    }
}
