//! Published ports as the host sees them: reserved, and reachable from the host itself.
//!
//! The dataplane serves connections that come in by an uplink or from a container. What a host
//! process sends to a published port never leaves the host's stack, so a socket of ours listens
//! there, as `docker-proxy` does, and passes it on to the container. The same socket keeps other
//! programs off the port, and the host's own outgoing connections.
//!
//! Clients whose address is the host's own are served. Others who reach the port by a way that is
//! none of ours (an interface that is no uplink) are refused, since the container would see the
//! gateway's address in place of theirs: a TCP connection is reset as soon as it is there, a
//! datagram is lost. Confining the sockets to `lo` would be no way to tell the two apart: for what
//! the host says to an address of its own, the kernel looks for sockets of the interface that has
//! the address (`ip_route_output_key_hash_rcu`).
//!
//! Invariants: a reservation holds every port of its range or none; dropping it ends its sockets
//! and the connections through them. Each family has sockets of its own
//! (`IPV6_V6ONLY`). Limits: a range beyond `limits.served_ports` is held by
//! sockets that nobody can connect to; one that [`LongRanges`] has no room for is only checked
//! against the host's sockets, and so is SCTP, which is not served to the host itself; a program that binds to a device first
//! (`SO_BINDTODEVICE`) can take a port of ours on that device.

mod bind;
mod own;
#[cfg(test)]
mod tests;
mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;

use self::bind::{Held, Served};
pub use self::own::OwnAddresses;
use crate::error::{Error, Kind};
use crate::netlink::sockets::{HostPorts, SocketsError};
use crate::places::{HostLimits, Places};
use crate::publish::{PortRange, Proto};

/// A container that does not answer must not hold the host's client for minutes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a port could not be reserved.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Another program has it.
    #[error("port {port}/{proto} is in use on the host by another program")]
    Busy {
        /// The first such port.
        port: u16,
        /// Its protocol.
        proto: Proto,
    },
    /// The host has a connection from it, which would lose its frames.
    #[error("port {port}/{proto} is in use by a connection of the host")]
    Connected {
        /// The first such port.
        port: u16,
        /// Its protocol.
        proto: Proto,
    },
    /// The kernel keeps it for a connection of the host that has ended.
    #[error(
        "port {port}/{proto} is kept for a minute after a connection of the host \
         (TIME_WAIT, see `ss -tan`)"
    )]
    Closing {
        /// The first such port.
        port: u16,
        /// Its protocol.
        proto: Proto,
    },
    /// The address is not one of the host.
    #[error("{0} is not an address of this host")]
    NotOurs(IpAddr),
    /// The host's sockets could not be listed.
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    /// More than can be held, where the host would take ports of it for its own connections.
    #[error(
        "ports {ports}/{proto} overlap {first}-{last}, which the host gives to its own connections \
         (ip_local_port_range), and are more than vswitchd holds against that \
         ({most} in all: limits.held_ports, and half of the open files at most); publish at the \
         address of a dedicated uplink, or a range outside of {first}-{last}"
    )]
    TooMany {
        /// The ports asked for.
        ports: PortRange,
        /// Their protocol.
        proto: Proto,
        /// How many may be held.
        most: u32,
        /// The host's first.
        first: u16,
        /// The host's last.
        last: u16,
    },
    /// The kernel refused.
    #[error("reserve port {port}/{proto}: {source}")]
    System {
        /// The port.
        port: u16,
        /// Its protocol.
        proto: Proto,
        /// What the kernel said.
        source: io::Error,
    },
}

impl From<ProxyError> for Error {
    fn from(error: ProxyError) -> Self {
        let kind = match &error {
            ProxyError::Busy { .. }
            | ProxyError::Closing { .. }
            | ProxyError::Connected { .. }
            | ProxyError::TooMany { .. } => Kind::Conflict,
            ProxyError::NotOurs(_) => Kind::Invalid,
            ProxyError::Sockets(_) | ProxyError::System { .. } => Kind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}

/// What to reserve, and where its connections go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publication {
    /// Protocol.
    pub proto: Proto,
    /// Address on the host; unspecified: any of its family.
    pub host_ip: IpAddr,
    /// Ports on the host.
    pub host_ports: PortRange,
    /// The container, by an address of the same family.
    pub to: IpAddr,
    /// The container's port for the first of `host_ports`.
    pub to_port: u16,
}

/// What may be done with ranges that are too long to be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongRanges {
    /// How many more ports may be held.
    pub room: usize,
    /// An uplink takes their frames at an address that the host has connections from: what cannot
    /// be held must be none of the ports that the host gives to those.
    pub shared: bool,
}

impl LongRanges {
    /// With what is held already.
    #[must_use]
    pub fn new(limits: &HostLimits, shared: bool) -> Self {
        Self { room: limits.held_ports.left(), shared }
    }
}

/// Reserved ports. Dropping it frees them.
#[derive(Debug)]
pub struct Reservation {
    ports: PortRange,
    // Dropping the set aborts every task, and with it every connection.
    tasks: JoinSet<()>,
    /// Dropping it lets every task end by itself, once what it began has ended.
    serving: watch::Sender<()>,
    held: Vec<Held>,
    /// Ports still to be held.
    rest: Option<Rest>,
    /// As many of the ports that may be held, or that may be served in one range.
    _places: Option<OwnedSemaphorePermit>,
}

/// Ports of a range that connections of the host keep from being bound: some end soon (TIME_WAIT),
/// and the others are where no uplink takes their frames. Nobody is served at them meanwhile.
#[derive(Debug)]
struct Rest {
    proto: Proto,
    host_ip: IpAddr,
    ports: Vec<u16>,
}

impl Reservation {
    fn unserved(ports: PortRange, held: Vec<Held>, rest: Option<Rest>) -> Self {
        let (serving, _) = watch::channel(());
        Self { ports, tasks: JoinSet::new(), serving, held, rest, _places: None }
    }

    /// Ends the sockets and the connections through them; returns when the ports are free. Dropping
    /// does the same, a moment later.
    pub async fn release(self) {
        let Self { mut tasks, serving, .. } = self;
        drop(serving);
        while tasks.join_next().await.is_some() {}
    }

    /// The ports.
    #[must_use]
    pub const fn ports(&self) -> PortRange {
        self.ports
    }

    /// How many of them are held without being served, or will be.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len() + self.rest.as_ref().map_or(0, |rest| rest.ports.len())
    }

    /// Holds what could not be held before, in the network namespace of the calling thread.
    pub fn complete(&mut self) {
        let Self { held, rest, .. } = self;
        let Some(waiting) = rest else { return };
        let Rest { proto, host_ip, ports } = waiting;
        ports.retain(|port| match bind::hold(*proto, *host_ip, *port) {
            Ok(socket) => {
                held.push(socket);
                false
            }
            Err(_) => true,
        });
        if ports.is_empty() {
            *rest = None;
        }
    }

    /// Nothing keeps others off them: they were free when looked at.
    #[must_use]
    pub fn is_only_checked(&self) -> bool {
        self.held.is_empty() && self.tasks.is_empty() && self.rest.is_none()
    }
}

/// Reserves the ports in the network namespace of the calling thread and serves them on the
/// current tokio runtime.
///
/// # Errors
/// When a port is in use or the address is not the host's; nothing stays reserved then.
///
/// # Panics
/// Outside a tokio runtime.
pub fn reserve(
    publication: &Publication,
    long: LongRanges,
    own: &OwnAddresses,
    limits: &HostLimits,
) -> Result<Reservation, ProxyError> {
    let Publication { proto, host_ip, host_ports, .. } = *publication;
    let ports = host_ports.first()..=host_ports.last();
    let bindable = proto != Proto::Sctp;
    let length = u32::from(host_ports.len());
    if bindable {
        if let Some(places) = limits.served_ports.places().try_take_all(length) {
            let bound = ports
                .map(|port| bind::serve(proto, host_ip, port))
                .collect::<Result<Vec<_>, _>>()?;
            let served = serve(publication, bound, own, limits);
            return Ok(Reservation { _places: Some(places), ..served });
        }
        if usize::from(host_ports.len()) <= long.room
            && let Some(places) = limits.held_ports.try_take_all(length)
        {
            return Ok(Reservation { _places: Some(places), ..hold(publication)? });
        }
        limits.held_ports.limit().refuse();
    }
    let host = HostPorts::read()?;
    let (first, last) = host.ephemeral();
    let overlap = PortRange::new(first, last).is_some_and(|own| own.overlaps(host_ports));
    if bindable && long.shared && overlap {
        let most = limits.held_ports.limit().limit();
        return Err(ProxyError::TooMany { ports: host_ports, proto, most, first, last });
    }
    match first_busy(&host, publication) {
        Some(port) => Err(ProxyError::Busy { port, proto }),
        None => Ok(Reservation::unserved(host_ports, Vec::new(), None)),
    }
}

/// The first port at which the host itself serves. Its list does not say whether a socket at `::` takes
/// IPv4 too (`IPV6_V6ONLY`), so the kernel is asked.
fn first_busy(host: &HostPorts, publication: &Publication) -> Option<u16> {
    let Publication { proto, host_ip, host_ports, .. } = *publication;
    let mut left = Some(host_ports);
    while let Some(ports) = left {
        let port = host.first_busy(proto, host_ip, ports)?;
        // A socket of SCTP would make the kernel load it.
        if proto == Proto::Sctp || bind::hold(proto, host_ip, port).is_err() {
            return Some(port);
        }
        left = port.checked_add(1).and_then(|next| PortRange::new(next, ports.last()));
    }
    None
}

/// Holds every port but those that connections keep.
fn hold(publication: &Publication) -> Result<Reservation, ProxyError> {
    let Publication { proto, host_ip, host_ports, .. } = *publication;
    let (mut held, mut kept) = (Vec::new(), Vec::new());
    for port in host_ports.first()..=host_ports.last() {
        match bind::hold(proto, host_ip, port) {
            Ok(socket) => held.push(socket),
            Err(ProxyError::Busy { port, .. } | ProxyError::Closing { port, .. }) => {
                kept.push(port);
            }
            Err(error) => return Err(error),
        }
    }
    let mut rest = None;
    if !kept.is_empty() {
        let host = HostPorts::read()?;
        for port in &kept {
            let only = PortRange::new(*port, *port);
            let served = only.and_then(|only| host.first_busy(proto, host_ip, only)).is_some();
            // A socket that is bound and nothing else is in no table.
            if served || !host.has_socket(proto, host_ip, *port) {
                return Err(ProxyError::Busy { port: *port, proto });
            }
        }
        rest = Some(Rest { proto, host_ip, ports: kept });
    }
    Ok(Reservation::unserved(host_ports, held, rest))
}

fn serve(
    publication: &Publication,
    bound: Vec<Served>,
    own: &OwnAddresses,
    limits: &HostLimits,
) -> Reservation {
    let Publication { host_ports, to, to_port, .. } = *publication;
    let connections = limits.connections.places();
    let clients = limits.datagram_clients.places();
    let mut tasks = JoinSet::new();
    let (serving, stopped) = watch::channel(());
    for (offset, socket) in (0..=u16::MAX).zip(bound) {
        let target = SocketAddr::from((to, to_port.saturating_add(offset)));
        match socket {
            Served::Tcp(listener) => {
                let serve = serve_tcp(listener, target, connections.clone(), own.clone());
                tasks.spawn(until(stopped.clone(), serve));
            }
            Served::Udp(socket) => {
                let limit = clients.clone();
                tasks.spawn(udp::serve(socket, target, limit, own.clone(), stopped.clone()));
            }
        }
    }
    let held = Vec::new();
    Reservation { ports: host_ports, tasks, serving, held, rest: None, _places: None }
}

/// Runs until the reservation goes.
async fn until(mut stopped: watch::Receiver<()>, serve: impl Future<Output = ()>) {
    tokio::select! {
        // An error says that the sender is gone, which is what is waited for.
        _ = stopped.changed() => {}
        () = serve => {}
    }
}

async fn serve_tcp(
    listener: tokio::net::TcpListener,
    target: SocketAddr,
    connections: Places,
    own: OwnAddresses,
) {
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((client, from)) if !own.contains(from.ip()) => {
                // Dropping it resets it then; failing that it is closed.
                let _ = client.set_zero_linger();
                tracing::debug!("{from} reaches published {target} by no uplink, refused");
            }
            Ok((client, _)) => {
                // Who only listens has no place. What is beyond the limit waits: one here, the others in the
                // backlog, unaccepted.
                let Some(permit) = connections.take().await else { return };
                tasks.spawn(async move {
                    let _permit = permit;
                    if let Err(error) = relay(client, target).await {
                        tracing::debug!("connection to published {target}: {error}");
                    }
                });
            }
            Err(error) => {
                tracing::warn!("accept for published {target}: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Copies both ways. The end of one direction is passed on while the other goes on.
async fn relay(mut client: TcpStream, target: SocketAddr) -> io::Result<()> {
    let mut server = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
