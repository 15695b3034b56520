//! Signs that something goes wrong on a port: a loop, a storm, a MAC at two places. The engine counts
//! frames; here their beginning is told, once, as an event and in the log.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use dataplane::packet::types::PortId;
use dataplane::verdict::DropReason;

use super::{Switch, World};
use crate::name::Name;

/// What is told of, under which name, and what it means.
const SIGNS: [(DropReason, &str, &str); 4] = [
    (
        DropReason::OwnMac,
        "loop_detected",
        "our own MAC came in: a loop behind it, or somebody who plays the gateway; take the loop \
         apart, or find who sends by `vswitchctl drops`",
    ),
    (
        DropReason::EndpointMac,
        "loop_detected",
        "the MAC of another sandbox came in: somebody bridges two endpoints of the network, or plays \
         the other; take the bridge apart, or find who sends by `vswitchctl drops`",
    ),
    (
        DropReason::MacFlap,
        "mac_flap",
        "a MAC moves to and fro between this port and another: a loop, or two hosts with one MAC; \
         `vswitchctl fdb` says whose it is now",
    ),
    (
        DropReason::StormLimited,
        "storm_limited",
        "it sends more frames to everybody than the network's storm_limit allows; stop it, or raise \
         the network's `-o storm_limit`",
    ),
];

/// The same of what is the whole switch's.
const EVERYWHERE: [(DropReason, &str, &str); 2] = [
    (
        DropReason::ConntrackFull,
        "conntrack_full",
        "the connection table is full: new connections are refused, those that are there go on; find \
         who has them by `vswitchctl conntrack list`, or raise limits.conntrack",
    ),
    (
        DropReason::SnatPortsExhausted,
        "snat_ports_exhausted",
        "no outside port is free for new connections to one destination; widen the uplink's \
         nat_ports, or find who has so many by `vswitchctl conntrack list`",
    ),
];

/// No port has this number.
const NOWHERE: PortId = PortId(0);

/// It is over when nothing has come for so long; then the next one is told again.
const QUIET: Duration = Duration::from_secs(60);

/// What has been told.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    seen: HashMap<(PortId, DropReason), Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    count: u64,
    /// When it last went on.
    last: Option<Instant>,
}

impl Alarms {
    /// Whether something begins: the counter stands at `count` now.
    fn begins(&mut self, port: PortId, reason: DropReason, count: u64, now: Instant) -> bool {
        let seen = self.seen.entry((port, reason)).or_default();
        // A port with the number of one that is gone counts from zero again.
        let goes_on = count != seen.count && count != 0;
        seen.count = count;
        if !goes_on {
            return false;
        }
        let before = seen.last.replace(now);
        before.is_none_or(|before| now.duration_since(before) > QUIET)
    }

    fn forget_all_but(&mut self, ports: &[Where]) {
        let ports: HashSet<PortId> = ports.iter().map(|there| there.port).collect();
        self.seen.retain(|(port, _), _| ports.contains(port) || *port == NOWHERE);
    }
}

/// A port as people know it.
struct Where {
    port: PortId,
    network: Option<Name>,
    sandbox: Option<Name>,
    /// `SANDBOX/IFNAME`, the host's leg or the uplink.
    name: String,
}

impl World {
    fn places(&self) -> Vec<Where> {
        let attached = &self.attached;
        let network_of = |sandbox: &Name, ifname: &str| {
            let endpoints = self.desired.sandboxes.get(sandbox)?.endpoints.iter();
            endpoints.clone().find(|e| e.ifname == ifname).map(|e| e.network.clone())
        };
        let endpoints = attached.endpoints.iter().map(|((sandbox, ifname), port)| Where {
            port: *port,
            network: network_of(sandbox, ifname),
            sandbox: Some(sandbox.clone()),
            name: format!("{sandbox}/{ifname}"),
        });
        let hosts = attached.hosts.iter().map(|(network, port)| Where {
            port: *port,
            network: Some(network.clone()),
            sandbox: None,
            name: "the host's leg".to_owned(),
        });
        let uplinks = attached.uplinks.iter().map(|(interface, state)| Where {
            port: state.port,
            network: None,
            sandbox: None,
            name: format!("uplink {interface}"),
        });
        endpoints.chain(hosts).chain(uplinks).collect()
    }
}

impl Switch {
    /// `uplink NAME: ` of the only one, else the names of all.
    fn uplink_names(&self) -> String {
        let world = self.world();
        let names: Vec<&str> = world.attached.uplinks.keys().map(String::as_str).collect();
        match names.as_slice() {
            [] => String::new(),
            [one] => format!("uplink {one}: "),
            several => format!("one of the uplinks {}: ", several.join(", ")),
        }
    }

    /// Tells what has begun since the last look.
    pub fn tell_alarms(&self) {
        let places = self.world().places();
        let now = Instant::now();
        let mut alarms = self.alarms.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        alarms.forget_all_but(&places);
        let totals = self.engine.conntrack_stats();
        for (reason, event, meaning) in EVERYWHERE {
            let (count, which) = match reason {
                DropReason::SnatPortsExhausted => (totals.ports_exhausted, self.uplink_names()),
                _ => (totals.full, String::new()),
            };
            if alarms.begins(NOWHERE, reason, count, now) {
                let detail = format!("{which}{meaning}");
                tracing::warn!("{event}: {detail}");
                self.emit(event, None, None, Some(detail));
            }
        }
        for place in places {
            let Some(stats) = self.engine.port_stats(place.port) else { continue };
            for (reason, event, meaning) in SIGNS {
                let count = stats.rx_drops.get(reason.index()).copied().unwrap_or(0);
                if alarms.begins(place.port, reason, count, now) {
                    let detail = format!("{}: {meaning}", place.name);
                    tracing::warn!("{event}: {detail}");
                    let (network, sandbox) = (place.network.as_ref(), place.sandbox.as_ref());
                    self.emit(event, network, sandbox, Some(detail));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_told_once_and_again_after_a_pause() {
        let mut alarms = Alarms::default();
        let start = Instant::now();
        let mut at = |port, secs, count| {
            let now = start + Duration::from_secs(secs);
            alarms.begins(PortId(port), DropReason::OwnMac, count, now)
        };
        assert!(!at(1, 0, 0));
        assert!(at(1, 2, 5));
        assert!(at(2, 2, 5), "another port");
        for secs in 1..100 {
            assert!(!at(1, 2 + secs * 2, 5 + secs), "{secs}");
        }
        // The last one came at 200.
        assert!(!at(1, 250, 104));
        assert!(!at(1, 260, 105), "59 seconds are no pause");
        assert!(!at(1, 400, 105));
        assert!(at(1, 402, 106));
    }

    /// Rows: VPP `test_ipfix_addr_exhausted, test_ipfix_max_sessions`.
    #[test]
    fn what_is_everybody_s_outlives_the_ports() {
        let mut alarms = Alarms::default();
        let now = Instant::now();
        assert!(alarms.begins(NOWHERE, DropReason::ConntrackFull, 3, now));
        alarms.forget_all_but(&[]);
        assert!(!alarms.begins(NOWHERE, DropReason::ConntrackFull, 9, now));
    }

    #[test]
    fn a_port_of_the_same_number_counts_from_zero() {
        let mut alarms = Alarms::default();
        let now = Instant::now();
        let gone = Where { port: PortId(1), network: None, sandbox: None, name: String::new() };
        assert!(alarms.begins(PortId(1), DropReason::MacFlap, 9, now));
        alarms.forget_all_but(&[gone]);
        assert!(!alarms.begins(PortId(1), DropReason::MacFlap, 9, now));
        alarms.forget_all_but(&[]);
        assert!(alarms.begins(PortId(1), DropReason::MacFlap, 9, now));
    }
}
