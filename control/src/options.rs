//! Options (`-o KEY=VALUE`) of networks and of endpoints: which there are, their Docker names, their
//! values.
//!
//! The API and the store keep options as the user wrote them, under their short names;
//! [`NetworkOptions::parse`] turns them into values in one place. Options of drivers that are not
//! built yet are known here, so that the error says "not built yet" rather than "unknown".

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use dataplane::config::{Helpers, MAX_TIMEOUT_SECS, MAX_VLAN, Routed, Timeouts, VlanSet, Vlans};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::types::Driver;
use crate::error::{Error, Result};

/// Smallest MTU: RFC 791 asks every link for 68 bytes; below 576 no host is obliged to take a
/// datagram whole, and DHCP and DNS break.
pub const MIN_MTU: u16 = 576;

/// Largest MTU of a TAP device: 65,535 without the Ethernet header (drivers/net/tun.c, `MAX_MTU`).
pub const MAX_MTU: u16 = 65_521;

/// Every option: short name, the drivers that take it, Docker's long names for it.
const KNOWN: &[(&str, &[Driver], &[&str])] = {
    use Driver::{Bridge, Ipvlan, Macvlan, Overlay};
    &[
        ("conntrack_limit", &[Bridge, Overlay], &[]),
        ("encrypted", &[Overlay], &[]),
        ("endpoint_independent", &[Bridge, Overlay], &[]),
        ("fdb_limit", &[Bridge, Overlay], &[]),
        ("gateway_mode", &[Bridge], &["com.docker.network.bridge.gateway_mode_ipv4"]),
        ("gateway_mode_ipv6", &[Bridge], &["com.docker.network.bridge.gateway_mode_ipv6"]),
        ("helpers", &[Bridge, Overlay], &[]),
        ("host_access", &[Macvlan, Ipvlan], &[]),
        ("host_binding", &[Bridge], &["com.docker.network.bridge.host_binding_ipv4"]),
        ("icc", &[Bridge, Overlay], &["com.docker.network.bridge.enable_icc"]),
        (
            "iface_prefix",
            &[Bridge, Macvlan, Ipvlan, Overlay],
            &["com.docker.network.container_iface_prefix"],
        ),
        ("ipvlan_mode", &[Ipvlan], &[]),
        ("link", &[Bridge, Overlay], &[]),
        ("macvlan_mode", &[Macvlan], &[]),
        ("masquerade", &[Bridge, Overlay], &["com.docker.network.bridge.enable_ip_masquerade"]),
        ("mss_clamp", &[Bridge, Overlay], &[]),
        ("mtu", &[Bridge, Macvlan, Ipvlan, Overlay], &["com.docker.network.driver.mtu"]),
        ("parent", &[Macvlan, Ipvlan], &[]),
        ("querier", &[Bridge, Overlay], &[]),
        ("ra", &[Bridge, Overlay], &[]),
        ("snooping", &[Bridge, Overlay], &[]),
        ("spoof_check", &[Bridge, Overlay], &[]),
        ("storm_limit", &[Bridge, Overlay], &[]),
        ("timeout_fdb_ageing", &[Bridge, Overlay], &[]),
        ("timeout_fragments", &[Bridge, Overlay], &[]),
        ("timeout_fragments_v6", &[Bridge, Overlay], &[]),
        ("timeout_icmp", &[Bridge, Overlay], &[]),
        ("timeout_other", &[Bridge, Overlay], &[]),
        ("timeout_sctp_established", &[Bridge, Overlay], &[]),
        ("timeout_sctp_other", &[Bridge, Overlay], &[]),
        ("timeout_tcp_closing", &[Bridge, Overlay], &[]),
        ("timeout_tcp_established", &[Bridge, Overlay], &[]),
        ("timeout_tcp_opening", &[Bridge, Overlay], &[]),
        ("timeout_tcp_reset", &[Bridge, Overlay], &[]),
        ("timeout_tcp_time_wait", &[Bridge, Overlay], &[]),
        ("timeout_udp", &[Bridge, Overlay], &[]),
        ("timeout_udp_dns", &[Bridge, Overlay], &[]),
        ("vni", &[Overlay], &["com.docker.network.driver.overlay.vxlanid_list"]),
    ]
};

/// Frames of one port that are sent to all others in a second, unless a network says otherwise. ARP,
/// mDNS and DHCP of hundreds of sandboxes are far below it, and so is a multicast stream of 100 Mbit/s;
/// without a limit a sandbox can send a hundred times as many, to everybody.
const STORM_LIMIT: u32 = 10_000;

/// Highest storm limit: one frame a nanosecond.
const MAX_STORM_LIMIT: u32 = 1_000_000_000;

/// Largest limit of entries, as of the tables themselves (`[limits]`).
const MAX_ENTRIES: u32 = 16_777_216;

/// The lifetime of the network's FDB entries, as an option.
const FDB_AGEING: &str = "timeout_fdb_ageing";

/// A timer of connections or fragments.
type Timer = fn(&mut Timeouts) -> &mut Duration;

/// The timers that a network may set, as options.
const TIMERS: &[(&str, Timer)] = &[
    ("timeout_fragments", |timeouts| &mut timeouts.fragments),
    ("timeout_fragments_v6", |timeouts| &mut timeouts.fragments_v6),
    ("timeout_icmp", |timeouts| &mut timeouts.icmp),
    ("timeout_other", |timeouts| &mut timeouts.other),
    ("timeout_sctp_established", |timeouts| &mut timeouts.sctp_established),
    ("timeout_sctp_other", |timeouts| &mut timeouts.sctp_other),
    ("timeout_tcp_closing", |timeouts| &mut timeouts.tcp_closing),
    ("timeout_tcp_established", |timeouts| &mut timeouts.tcp_established),
    ("timeout_tcp_opening", |timeouts| &mut timeouts.tcp_opening),
    ("timeout_tcp_reset", |timeouts| &mut timeouts.tcp_reset),
    ("timeout_tcp_time_wait", |timeouts| &mut timeouts.tcp_time_wait),
    ("timeout_udp", |timeouts| &mut timeouts.udp),
    ("timeout_udp_dns", |timeouts| &mut timeouts.udp_dns),
];

/// What a bridge network's gateway does for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GatewayMode {
    /// Routes and translates; outside reaches published ports only, at the host's addresses.
    #[default]
    Nat,
    /// Routes; outside reaches published ports at the endpoints' own addresses too.
    Routed,
    /// There is none: endpoints reach each other, and nobody else.
    Isolated,
}

impl GatewayMode {
    /// Reads its name; says what is wrong with it.
    fn parse(name: &str) -> std::result::Result<Self, &'static str> {
        match name {
            "nat" => Ok(Self::Nat),
            "routed" => Ok(Self::Routed),
            "isolated" => Ok(Self::Isolated),
            _ => Err("is neither nat, routed nor isolated"),
        }
    }
}

/// Whether options that were checked ask for no gateway of the family of `address`.
#[must_use]
pub fn is_isolated(options: &BTreeMap<String, String>, address: IpAddr) -> bool {
    let mode = options.get("gateway_mode");
    let mode = match address {
        IpAddr::V4(_) => mode,
        IpAddr::V6(_) => options.get("gateway_mode_ipv6").or(mode),
    };
    mode.is_some_and(|mode| GatewayMode::parse(mode) == Ok(GatewayMode::Isolated))
}

/// What connects an endpoint to the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// A TAP device in the sandbox.
    #[default]
    Tap,
    /// A veth pair: one end in the sandbox, the other on the host.
    Veth,
}

/// The options of a bridge network as values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Connections of the network at most; `None`: as many as there may be.
    pub conntrack_limit: Option<u32>,
    /// Whoever speaks from one port through an uplink does so from one outside port, to all.
    pub endpoint_independent: bool,
    /// Learned MACs of the network at most; `None`: as many as there may be.
    pub fdb_limit: Option<u32>,
    /// What the gateway does.
    pub gateway_mode: GatewayMode,
    /// What it does for IPv6; `None`: the same.
    pub gateway_mode_ipv6: Option<GatewayMode>,
    /// Protocols that announce further connections, which are let through.
    pub helpers: Helpers,
    /// Host address of published ports that name none; `None`: every one.
    pub host_binding: Option<Ipv4Addr>,
    /// Endpoints may talk to each other.
    pub icc: bool,
    /// Beginning of interface names in sandboxes.
    pub iface_prefix: String,
    /// What connects an endpoint to the engine; `None`: `defaults.link`.
    pub link: Option<LinkKind>,
    /// Rewrite the source of what leaves.
    pub masquerade: bool,
    /// SYNs through the gateway offer no larger segments than both links take.
    pub mss_clamp: bool,
    /// MTU; `None`: `defaults.mtu`.
    pub mtu: Option<u16>,
    /// The gateway asks who is in which multicast group.
    pub querier: bool,
    /// The gateway tells hosts that it is a router of IPv6, where it has an address of it.
    pub ra: bool,
    /// Packets for a multicast group go to who is in it, and not to all.
    pub snooping: bool,
    /// Seconds for which a learned MAC of the network is known; `None`: as everywhere.
    pub fdb_ageing: Option<u32>,
    /// Drop frames from endpoints that use addresses they do not own.
    pub spoof_check: bool,
    /// Frames of one port that are sent to all others in a second; zero: as many as come.
    pub storm_limit: u32,
    /// Seconds of the timers that are the network's own, by the names of their options.
    pub timeouts: BTreeMap<&'static str, u32>,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            conntrack_limit: None,
            endpoint_independent: false,
            fdb_limit: None,
            gateway_mode: GatewayMode::default(),
            gateway_mode_ipv6: None,
            helpers: Helpers::default(),
            host_binding: None,
            icc: true,
            iface_prefix: "eth".to_owned(),
            link: None,
            masquerade: true,
            mss_clamp: true,
            mtu: None,
            querier: false,
            ra: true,
            snooping: false,
            fdb_ageing: None,
            spoof_check: true,
            storm_limit: STORM_LIMIT,
            timeouts: BTreeMap::new(),
        }
    }
}

/// Replaces Docker's long names by ours.
///
/// # Errors
/// When an option is unknown, is not one of `driver`'s, or is given under two names.
pub fn canonical(
    driver: Driver,
    options: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    let mut short_names = BTreeMap::new();
    for (key, value) in options {
        let Some((name, drivers, _)) =
            KNOWN.iter().find(|(name, _, aliases)| name == key || aliases.contains(&key.as_str()))
        else {
            return Err(Error::invalid(format!(
                "option {key:?} is unknown; known options of driver {driver} are {}",
                known_names(driver)
            )));
        };
        if !drivers.contains(&driver) {
            return Err(Error::invalid(format!(
                "option {key:?} is not one of driver {driver}; known options are {}",
                known_names(driver)
            )));
        }
        if short_names.insert((*name).to_owned(), value.clone()).is_some() {
            return Err(Error::invalid(format!("option {name:?} is given twice, once as {key:?}")));
        }
    }
    Ok(short_names)
}

/// Every name by which an option of a driver can be given, Docker's too.
pub fn names_of(driver: Driver) -> impl Iterator<Item = &'static str> {
    KNOWN
        .iter()
        .filter(move |(_, drivers, _)| drivers.contains(&driver))
        .flat_map(|(name, _, aliases)| std::iter::once(name).chain(*aliases).copied())
}

fn known_names(driver: Driver) -> String {
    let names: Vec<_> = KNOWN
        .iter()
        .filter(|(_, drivers, _)| drivers.contains(&driver))
        .map(|(name, _, _)| *name)
        .collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl NetworkOptions {
    /// Reads the options of a network.
    ///
    /// # Errors
    /// When an option is unknown, its value is malformed, or what it asks for is not built yet.
    pub fn parse(driver: Driver, options: &BTreeMap<String, String>) -> Result<Self> {
        let mut parsed = Self::default();
        for (key, value) in &canonical(driver, options)? {
            let fault = |fault: &str| Error::invalid(format!("option {key}={value}: {fault}"));
            let limit = || {
                let limit = value.parse().ok().filter(|limit| (1..=MAX_ENTRIES).contains(limit));
                limit.ok_or_else(|| fault(&format!("is not a number from 1 to {MAX_ENTRIES}")))
            };
            match key.as_str() {
                "conntrack_limit" => parsed.conntrack_limit = Some(limit()?),
                "fdb_limit" => parsed.fdb_limit = Some(limit()?),
                "endpoint_independent" => {
                    parsed.endpoint_independent =
                        boolean(value).ok_or_else(|| fault(NOT_BOOLEAN))?;
                }
                "gateway_mode" => parsed.gateway_mode = GatewayMode::parse(value).map_err(fault)?,
                "gateway_mode_ipv6" => {
                    parsed.gateway_mode_ipv6 = Some(GatewayMode::parse(value).map_err(fault)?);
                }
                "helpers" => {
                    parsed.helpers = helpers(value)
                        .ok_or_else(|| fault("is not a list of ftp and tftp, such as ftp,tftp"))?;
                }
                "host_binding" => {
                    let ip: Ipv4Addr =
                        value.parse().map_err(|_| fault("is not an IPv4 address"))?;
                    parsed.host_binding = Some(ip).filter(|ip| !ip.is_unspecified());
                }
                "icc" => parsed.icc = boolean(value).ok_or_else(|| fault(NOT_BOOLEAN))?,
                "iface_prefix" => {
                    // IFNAMSIZ is 16 with the final NUL (linux/if.h); up to three digits follow.
                    let letters = value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                    if value.is_empty() || value.len() > 12 || !letters || value == "lo" {
                        return Err(fault("must be 1 to 12 letters, digits or '_', and not lo"));
                    }
                    parsed.iface_prefix.clone_from(value);
                }
                "link" => match value.as_str() {
                    "tap" => parsed.link = Some(LinkKind::Tap),
                    "veth" => parsed.link = Some(LinkKind::Veth),
                    _ => return Err(fault("is neither tap nor veth")),
                },
                "masquerade" => {
                    parsed.masquerade = boolean(value).ok_or_else(|| fault(NOT_BOOLEAN))?;
                }
                "mss_clamp" => match value.as_str() {
                    "auto" => parsed.mss_clamp = true,
                    "off" => parsed.mss_clamp = false,
                    _ => return Err(fault("is neither auto nor off")),
                },
                "mtu" => {
                    let mtu = value.parse().ok().filter(|mtu| (MIN_MTU..=MAX_MTU).contains(mtu));
                    parsed.mtu = Some(mtu.ok_or_else(|| {
                        fault(&format!("is not a number from {MIN_MTU} to {MAX_MTU}"))
                    })?);
                }
                "querier" => parsed.querier = boolean(value).ok_or_else(|| fault(NOT_BOOLEAN))?,
                "snooping" => {
                    parsed.snooping = boolean(value).ok_or_else(|| fault(NOT_BOOLEAN))?;
                }
                "ra" => parsed.ra = boolean(value).ok_or_else(|| fault(NOT_BOOLEAN))?,
                "spoof_check" => {
                    parsed.spoof_check = boolean(value).ok_or_else(|| fault(NOT_BOOLEAN))?;
                }
                "storm_limit" => {
                    let limit = value.parse().ok().filter(|limit| *limit <= MAX_STORM_LIMIT);
                    parsed.storm_limit = limit.ok_or_else(|| {
                        fault(&format!("is not a number from 0 to {MAX_STORM_LIMIT}; 0: no limit"))
                    })?;
                }
                key => {
                    if key != FDB_AGEING && !TIMERS.iter().any(|(name, _)| *name == key) {
                        return Err(fault("is not built yet"));
                    }
                    let range = 1..=MAX_TIMEOUT_SECS;
                    let seconds = value.parse().ok().filter(|seconds| range.contains(seconds));
                    let seconds = seconds.ok_or_else(|| {
                        fault(&format!("is not a number of seconds from 1 to {MAX_TIMEOUT_SECS}"))
                    })?;
                    match TIMERS.iter().find(|(name, _)| *name == key) {
                        Some((name, _)) => drop(parsed.timeouts.insert(name, seconds)),
                        None => parsed.fdb_ageing = Some(seconds),
                    }
                }
            }
        }
        Ok(parsed)
    }

    /// The families whose addresses are used outside.
    #[must_use]
    pub fn routed(&self) -> Routed {
        let is_routed = |mode| mode == GatewayMode::Routed;
        Routed {
            ipv4: is_routed(self.gateway_mode),
            ipv6: is_routed(self.gateway_mode_ipv6.unwrap_or(self.gateway_mode)),
        }
    }

    /// The timers of its connections and fragments, if some are its own; the others are as everywhere.
    #[must_use]
    pub fn timers(&self, everywhere: &Timeouts) -> Option<Timeouts> {
        let mut timeouts = *everywhere;
        for (name, seconds) in &self.timeouts {
            if let Some((_, timer)) = TIMERS.iter().find(|(known, _)| known == name) {
                *timer(&mut timeouts) = Duration::from_secs(u64::from(*seconds));
            }
        }
        (!self.timeouts.is_empty()).then_some(timeouts)
    }
}

/// The options of an endpoint as values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointOptions {
    /// It may be the network's DHCP server, IPv6 router or multicast querier.
    pub trusted: bool,
    /// The VLANs it is in: `vlan` and `trunk`.
    pub vlans: Vlans,
}

impl EndpointOptions {
    /// Every option.
    const KNOWN: &[&str] = &["trunk", "trusted", "vlan"];

    /// Reads the options of an endpoint.
    ///
    /// # Errors
    /// When an option is unknown, its value is malformed, or two of them contradict each other.
    pub fn parse(options: &BTreeMap<String, String>) -> Result<Self> {
        let mut parsed = Self::default();
        let (mut vlan, mut trunk) = (None, None);
        for (key, value) in options {
            let fault = |fault: &str| Error::invalid(format!("option {key}={value}: {fault}"));
            match key.as_str() {
                "trunk" => trunk = Some(vlan_list(value).ok_or_else(|| fault(NOT_VLANS))?),
                "trusted" => parsed.trusted = boolean(value).ok_or_else(|| fault(NOT_BOOLEAN))?,
                "vlan" => {
                    let number = value.parse().ok().filter(|vlan| *vlan <= MAX_VLAN);
                    vlan = Some(number.ok_or_else(|| fault(NOT_VLAN))?);
                }
                key if KNOWN.iter().any(|(name, ..)| *name == key) => {
                    return Err(Error::invalid(format!(
                        "option {key:?} is unknown to endpoints, which know {}: it is one of networks, \
                         for 'vswitchctl network create'",
                        Self::KNOWN.join(", ")
                    )));
                }
                _ => {
                    return Err(Error::invalid(format!(
                        "option {key:?} is unknown; known options of an endpoint are {}",
                        Self::KNOWN.join(", ")
                    )));
                }
            }
        }
        parsed.vlans = match (vlan, trunk) {
            (None, None) => Vlans::All,
            (Some(vlan), None) => Vlans::Access(vlan),
            (Some(vlan), Some(tagged)) if tagged.contains(vlan) => {
                return Err(Error::invalid(format!(
                    "option vlan={vlan}: is in trunk too; beside trunk it is the VLAN of untagged frames"
                )));
            }
            (native, Some(tagged)) => Vlans::Trunk { native, tagged: Box::new(tagged) },
        };
        Ok(parsed)
    }
}

/// VLANs and ranges of them, as `10,20-30`.
fn vlan_list(text: &str) -> Option<VlanSet> {
    let mut vlans = VlanSet::default();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > MAX_VLAN || !(first..=last).all(|vlan| vlans.insert(vlan)) {
            return None;
        }
    }
    Some(vlans)
}

const NOT_VLAN: &str = "is not a number from 0 to 4094; 0: the VLAN of untagged frames";
const NOT_VLANS: &str = "is no list of VLANs from 1 to 4094, as 10,20-30";
const NOT_BOOLEAN: &str = "is neither true nor false";

/// The spellings Go's `strconv.ParseBool` takes, as Docker does.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The names of helpers with commas between them; none for none.
fn helpers(text: &str) -> Option<Helpers> {
    let mut helpers = Helpers::default();
    for name in text.split(',').filter(|_| !text.is_empty()) {
        let helper = match name {
            "ftp" => &mut helpers.ftp,
            "tftp" => &mut helpers.tftp,
            _ => return None,
        };
        *helper = true;
    }
    Some(helpers)
}

#[cfg(test)]
mod tests;
