//! From the file to a [`Config`]: everything that takes more than one value to judge.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::file::{
    DaemonSection, DefaultsSection, File, LimitsSection, NetworkSection, PoolSection, Seconds,
    TimeoutsSection, fault, line_of,
};
use super::{Config, Pool};
use crate::api::types::{NetworkCreate, UplinkAdd};
use crate::check;
use crate::error::{Error, Result};
use crate::ipam::{self, Prefix};

/// Workers at most. More would only wait for each other: the largest hosts have fewer cores to
/// spare for their switch.
pub const MAX_WORKERS: usize = MAX_WORKERS_U32 as usize;
pub(super) const MAX_WORKERS_U32: u32 = 64;

/// `sun_path` of a unix socket's address, without the final NUL (linux/un.h).
const MAX_SOCKET_PATH: usize = 107;

/// Where in the file something stands, for messages.
struct Source<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Source<'_> {
    fn fault(&self, span: &Range<usize>, message: &str) -> Error {
        fault(self.path, Some(line_of(self.text, span.start)), message)
    }

    fn at(&self, span: &Range<usize>) -> impl Fn(Error) -> Error {
        move |error| self.fault(span, &error.message)
    }
}

/// Checks a file and fills what it leaves out with the defaults.
///
/// # Errors
/// When it is wrong: one line with file, line and key.
pub fn config(file: File, text: &str, path: &Path) -> Result<Config> {
    let source = Source { text, path };
    let mut config = Config::of_this_host();
    if let Some(cluster) = file.cluster {
        return Err(source.fault(
            &cluster.span(),
            "[cluster] needs overlay networks, which are not built yet; remove the section",
        ));
    }
    daemon(file.daemon, &mut config, &source)?;
    defaults(file.defaults, &mut config, &source)?;
    timeouts(&file.timeouts, &mut config);
    limits(&file.limits, &mut config);
    uplinks(file.uplink, &mut config, &source)?;
    networks(file.network, &mut config, &source)?;
    Ok(config)
}

fn daemon(section: DaemonSection, config: &mut Config, source: &Source<'_>) -> Result<()> {
    let absolute = |key: &str, value: Option<Spanned<PathBuf>>, to: &mut PathBuf| match value {
        None => Ok(()),
        Some(value) if value.get_ref().is_absolute() => {
            *to = value.into_inner();
            Ok(())
        }
        Some(value) => {
            let message = format!(
                "daemon.{key}: {:?} is not an absolute path; begin it with '/'",
                value.get_ref()
            );
            Err(source.fault(&value.span(), &message))
        }
    };
    let socket_span = section.socket.as_ref().map(Spanned::span);
    absolute("socket", section.socket, &mut config.daemon.socket)?;
    if let Some(span) = socket_span {
        socket_path(&config.daemon.socket)
            .map_err(|error| error.context("daemon.socket"))
            .map_err(source.at(&span))?;
    }
    absolute("state_dir", section.state_dir, &mut config.daemon.state_dir)?;
    absolute("run_dir", section.run_dir, &mut config.daemon.run_dir)?;
    if section.docker_plugin_dir.is_some() {
        let mut dir = PathBuf::new();
        absolute("docker_plugin_dir", section.docker_plugin_dir, &mut dir)?;
        config.daemon.docker_plugin_dir = Some(dir);
    }
    if let Some(value) = section.nat_log {
        let span = value.span();
        let mut path = PathBuf::new();
        absolute("nat_log", Some(value), &mut path)?;
        if path.file_name().is_none() {
            let message = format!("daemon.nat_log: {path:?} does not name a file");
            return Err(source.fault(&span, &message));
        }
        config.daemon.nat_log = Some(path);
    }
    if let Some(size) = section.nat_log_size {
        config.daemon.nat_log_size = size.0;
    }
    config.daemon.workers =
        section.workers.map(|workers| usize::try_from(workers.0).unwrap_or(MAX_WORKERS));
    config.daemon.placement = section.placement.unwrap_or_default();
    config.daemon.io = section.io;
    config.daemon.gro = section.gro.unwrap_or(config.daemon.gro);
    config.daemon.metrics = section.metrics;
    Ok(())
}

/// Whether a unix socket can be bound at `path`.
///
/// # Errors
/// When the path is too long for an address, or no file's name.
pub fn socket_path(path: &Path) -> Result<()> {
    let len = path.as_os_str().len();
    if len > MAX_SOCKET_PATH {
        return Err(Error::invalid(format!(
            "{} is {len} bytes long; a socket's path has at most {MAX_SOCKET_PATH}",
            path.display()
        )));
    }
    if path.file_name().is_none() {
        return Err(Error::invalid(format!(
            "{:?} does not name a file",
            path.display().to_string()
        )));
    }
    Ok(())
}

fn defaults(section: DefaultsSection, config: &mut Config, source: &Source<'_>) -> Result<()> {
    if let Some(pools) = section.pools {
        let span = pools.span();
        let fault = |message: String| source.fault(&span, &format!("defaults.pools: {message}"));
        let sections = pools.into_inner();
        if sections.is_empty() {
            return Err(fault("is empty; give at least one pool".to_owned()));
        }
        let v4 = pools_of(&sections, 30).map_err(fault)?;
        // Those of IPv6 alone leave the default for IPv4.
        if !v4.is_empty() {
            config.defaults.pools = v4;
        }
        config.defaults.pools6 = pools_of(&sections, 126).map_err(fault)?;
    }
    if let Some(mtu) = section.mtu {
        config.defaults.mtu = u16::try_from(mtu.0).unwrap_or(u16::MAX);
    }
    if let Some(link) = section.link {
        config.defaults.link = link.0;
    }
    if section.dns == Some(true) {
        without_effect(config, "defaults.dns");
    }
    Ok(())
}

/// The pools of one family, whose subnets have prefixes of at most `longest` bits.
fn pools_of<N: Prefix>(
    sections: &[PoolSection],
    longest: u8,
) -> std::result::Result<Vec<Pool<N>>, String> {
    let mut checked: Vec<Pool<N>> = Vec::new();
    for section in sections {
        let Some(base) = N::of(section.base) else { continue };
        let pool = Pool { base, size: u8::try_from(section.size.0).unwrap_or(u8::MAX) };
        let fault = |message: String| format!("pool {base}: {message}");
        if section.base.addr() != section.base.network() {
            return Err(fault(format!("has host bits set; write {}", base.trunc())));
        }
        let shortest = base.length().max(N::SHORTEST);
        if !(shortest..=longest).contains(&pool.size) {
            return Err(fault(format!(
                "holds no subnet of size {}; give a size from {shortest} to {longest}",
                pool.size
            )));
        }
        ipam::for_containers(base).map_err(|error| fault(error.to_string()))?;
        if let Some(other) = checked.iter().find(|other| ipam::overlaps(other.base, base)) {
            return Err(fault(format!("overlaps pool {}", other.base)));
        }
        checked.push(pool);
    }
    Ok(checked)
}

/// Notes a key of the contract whose part is not built yet.
fn without_effect(config: &mut Config, key: &str) {
    config.warnings.push(format!("{key}: not built yet, has no effect"));
}

fn timeouts(section: &TimeoutsSection, config: &mut Config) {
    let set = |to: &mut Duration, value: Option<Seconds>| {
        if let Some(value) = value {
            *to = Duration::from_secs(u64::from(value.0));
        }
    };
    let to = &mut config.timeouts;
    set(&mut to.tcp_established, section.tcp_established);
    set(&mut to.tcp_opening, section.tcp_opening);
    set(&mut to.tcp_closing, section.tcp_closing);
    set(&mut to.tcp_reset, section.tcp_reset);
    set(&mut to.tcp_time_wait, section.tcp_time_wait);
    set(&mut to.udp, section.udp);
    set(&mut to.udp_dns, section.udp_dns);
    set(&mut to.icmp, section.icmp);
    set(&mut to.sctp_established, section.sctp_established);
    set(&mut to.sctp_other, section.sctp_other);
    set(&mut to.other, section.other);
    set(&mut to.fragments, section.fragments);
    set(&mut to.fragments_v6, section.fragments_v6);
    set(&mut config.fdb_ageing, section.fdb_ageing);
    if let Some(grace) = section.restart_grace {
        config.grace = Duration::from_secs(grace.0.into());
    }
}

fn limits(section: &LimitsSection, config: &mut Config) {
    if let Some(limit) = section.conntrack {
        config.limits.conntrack = limit.0;
    }
    // Half of the table, whatever its size, unless told otherwise.
    config.limits.conntrack_per_endpoint =
        section.conntrack_per_endpoint.map_or(config.limits.conntrack / 2, |limit| limit.0);
    if let Some(rate) = section.new_connections_per_endpoint {
        config.limits.new_connections_per_endpoint = Some(rate.0);
    }
    if let Some(limit) = section.fdb {
        config.limits.fdb = limit.0;
    }
    if let Some(limit) = section.groups {
        config.limits.groups.network = limit.0;
    }
    if let Some(limit) = section.groups_per_endpoint {
        config.limits.groups.port = limit.0;
    }
    if let Some(limit) = section.fdb_per_port {
        config.limits.fdb_per_port = limit.0;
    }
    if let Some(buffers) = section.buffers {
        config.limits.buffers = usize::try_from(buffers.0).unwrap_or(usize::MAX);
    }
    if let Some(limit) = section.neighbors {
        config.limits.neighbors.all = limit.0;
    }
    // Half of the table, whatever its size, unless told otherwise.
    config.limits.neighbors.uplink =
        section.neighbors_per_uplink.map_or(config.limits.neighbors.all / 2, |limit| limit.0);
    if let Some(limit) = section.neighbors_unanswered {
        config.limits.neighbors.unanswered = limit.0;
    }
    if let Some(limit) = section.waiting_frames_per_neighbor {
        config.limits.waiting_frames_per_neighbor = usize::try_from(limit.0).unwrap_or(usize::MAX);
    }
    if let Some(limit) = section.expectations {
        config.limits.helpers.expectations = limit.0;
    }
    if let Some(limit) = section.helped_controls {
        config.limits.helpers.controls = limit.0;
    }
    if let Some(limit) = section.capture_frames {
        config.limits.capture_frames = limit.0;
    }
    if let Some(limit) = section.conntrack_events {
        config.limits.conntrack_events = limit.0;
    }
    if let Some(limit) = section.neighbors_per_network {
        config.limits.neighbors.network = limit.0;
    }
    if let Some(frames) = section.waiting_frames {
        config.limits.waiting_frames = usize::try_from(frames.0).unwrap_or(usize::MAX);
    }
    if let Some(rate) = section.icmp_errors_per_second {
        config.limits.icmp_errors.per_second = rate.0;
    }
    if let Some(limit) = section.fragments {
        config.limits.fragments = limit.0;
    }
    if let Some(limit) = section.fragments_per_datagram {
        config.limits.fragments_per_datagram = limit.0;
    }
    if let Some(bytes) = section.fragment_bytes {
        config.limits.fragment_bytes = bytes.0;
    }
    if let Some(limit) = section.traces {
        config.limits.traces = limit.0;
    }
    let services = &mut config.limits.services;
    if let Some(limit) = section.event_readers {
        services.event_readers = limit.0;
    }
    if let Some(limit) = section.host_connections {
        services.host_connections = limit.0;
    }
    if let Some(limit) = section.host_datagram_clients {
        services.host_datagram_clients = limit.0;
    }
    if let Some(limit) = section.policy_rules {
        services.policy_rules = limit.0;
    }
    if let Some(limit) = section.events {
        services.events = limit.0;
    }
    if let Some(bytes) = section.nat_log_bytes {
        services.nat_log_bytes = bytes.0;
    }
    if let Some(frames) = section.tap_queue {
        services.tap_queue = frames.0;
    }
    if let Some(limit) = section.served_ports {
        services.served_ports = limit.0;
    }
    if let Some(limit) = section.held_ports {
        services.held_ports = limit.0;
    }
}

fn uplinks(
    sections: Vec<Spanned<UplinkAdd>>,
    config: &mut Config,
    source: &Source<'_>,
) -> Result<()> {
    for section in sections {
        let span = section.span();
        let uplink = section.into_inner();
        check::uplink(&uplink).map_err(source.at(&span))?;
        if config.uplinks.iter().any(|other| other.interface == uplink.interface) {
            let message = format!("uplink {:?} is declared twice", uplink.interface);
            return Err(source.fault(&span, &message));
        }
        config.uplinks.push(uplink);
    }
    Ok(())
}

fn networks(
    sections: Vec<Spanned<NetworkSection>>,
    config: &mut Config,
    source: &Source<'_>,
) -> Result<()> {
    for section in sections {
        let span = section.span();
        let network = network(section.into_inner()).map_err(source.at(&span))?;
        let name = &network.name;
        for other in &config.networks {
            if other.name == *name {
                return Err(source.fault(&span, &format!("network {name:?} is declared twice")));
            }
            let clash = network.subnets.iter().find_map(|subnet| {
                let hit = other.subnets.iter().find(|o| check::overlap(&subnet.subnet, &o.subnet));
                hit.map(|_| subnet.subnet)
            });
            if let Some(subnet) = clash {
                let message =
                    format!("network {name:?}: subnet {subnet} overlaps network {:?}", other.name);
                return Err(source.fault(&span, &message));
            }
        }
        config.networks.push(network);
    }
    Ok(())
}

/// The request that `network create` would send.
fn network(section: NetworkSection) -> Result<NetworkCreate> {
    let subnets = check::subnets(
        &section.subnet.0,
        &section.gateway.0,
        &section.ip_range.0,
        &section.aux_address,
    )
    .map_err(|error| error.context(format_args!("network {:?}", section.name)))?;
    let options = section.options.into_iter().map(|(k, v)| (k, v.to_string())).collect();
    let network = NetworkCreate {
        name: section.name,
        driver: section.driver,
        subnets,
        internal: section.internal,
        ipv6: section.ipv6,
        options,
        labels: section.labels,
    };
    if network.name == "host" || network.name == "none" {
        return Err(Error::invalid(format!(
            "network {:?} exists always and cannot be declared; remove it",
            network.name
        )));
    }
    check::network(&network)?;
    Ok(network)
}
