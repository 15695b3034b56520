//! Published ports as the host sees them: reserved, and reachable from the host itself.
//!
//! The dataplane serves connections that come in by an uplink. What a host process sends to a
//! published port never leaves the host's stack, so a socket of ours listens there, as
//! `docker-proxy` does, and passes it on to the container. The same socket keeps other programs
//! off the port.
//!
//! Invariants: a reservation holds every port of its range or none; dropping it ends its sockets
//! and the connections through them. Limits: IPv4; a range beyond [`MAX_BOUND_PORTS`] is checked
//! against the host's sockets but not bound, so the host itself does not reach it and another
//! program may take a port of it later; SCTP is not bound either.

#[cfg(test)]
mod tests;
mod udp;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::error::{Error, Kind};
use crate::netlink::sockets::{HostPorts, SocketsError};
use crate::publish::{PortRange, Proto};

/// Longer ranges are only checked: a socket for each port of a range of thousands would use up the
/// process's descriptors.
pub const MAX_BOUND_PORTS: u16 = 256;

/// TCP connections of one reservation at a time. Further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 1024;

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
    /// No range of that length is free.
    #[error("no {count} consecutive free {proto} ports on the host")]
    Exhausted {
        /// How many were asked for.
        count: u16,
        /// Their protocol.
        proto: Proto,
    },
    /// The address is not one of the host.
    #[error("{0} is not an address of this host")]
    NotOurs(Ipv4Addr),
    /// The host's sockets could not be listed.
    #[error(transparent)]
    Sockets(#[from] SocketsError),
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
            ProxyError::Busy { .. } | ProxyError::Exhausted { .. } => Kind::Conflict,
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
    /// Address on the host; unspecified: any.
    pub host_ip: Ipv4Addr,
    /// Ports on the host.
    pub host_ports: PortRange,
    /// The container.
    pub to: Ipv4Addr,
    /// The container's port for the first of `host_ports`.
    pub to_port: u16,
}

/// Reserved ports. Dropping it frees them.
#[derive(Debug)]
pub struct Reservation {
    ports: PortRange,
    // Dropping the set aborts every task, and with it every connection.
    tasks: JoinSet<()>,
}

impl Reservation {
    /// Ends the sockets and the connections through them; returns when the ports are free. Dropping
    /// does the same, a moment later.
    pub async fn release(mut self) {
        self.tasks.shutdown().await;
    }

    /// The ports.
    #[must_use]
    pub const fn ports(&self) -> PortRange {
        self.ports
    }
}

enum Bound {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Reserves the ports in the network namespace of the calling thread and serves them on the
/// current tokio runtime.
///
/// # Errors
/// When a port is in use or the address is not the host's; nothing stays reserved then.
///
/// # Panics
/// Outside a tokio runtime.
pub fn reserve(publication: &Publication) -> Result<Reservation, ProxyError> {
    let Publication { proto, host_ip, host_ports, .. } = *publication;
    if host_ports.len() > MAX_BOUND_PORTS || proto == Proto::Sctp {
        if let Some(port) = HostPorts::read()?.first_busy(proto, host_ip, host_ports) {
            return Err(ProxyError::Busy { port, proto });
        }
        return Ok(Reservation { ports: host_ports, tasks: JoinSet::new() });
    }
    let bound = (host_ports.first()..=host_ports.last())
        .map(|port| bind(proto, host_ip, port))
        .collect::<Result<Vec<_>, _>>()?;
    serve(publication, bound)
}

/// Reserves as many consecutive ports as `publication.host_ports` has, wherever the host has them
/// free. They are taken from the end of `ip_local_port_range`, which the NAT of a shared uplink
/// never uses.
///
/// # Errors
/// When no such range is free.
///
/// # Panics
/// Outside a tokio runtime.
pub fn reserve_any(publication: &Publication) -> Result<Reservation, ProxyError> {
    let Publication { proto, host_ip, host_ports, .. } = *publication;
    let count = host_ports.len();
    let exhausted = ProxyError::Exhausted { count, proto };
    let (floor, ceiling) = HostPorts::read()?.ephemeral();
    let mut last = ceiling;
    loop {
        let first = match last.checked_sub(count - 1) {
            Some(first) if first >= floor => first,
            _ => return Err(exhausted),
        };
        let Some(host_ports) = PortRange::new(first, last) else { return Err(exhausted) };
        match reserve(&Publication { host_ports, ..*publication }) {
            // Everything from the busy port upwards is out; try right below it.
            Err(ProxyError::Busy { port, .. }) => last = port.saturating_sub(1),
            Err(ProxyError::NotOurs(_)) => return Err(ProxyError::NotOurs(host_ip)),
            other => return other,
        }
    }
}

fn bind(proto: Proto, host_ip: Ipv4Addr, port: u16) -> Result<Bound, ProxyError> {
    let address = SocketAddrV4::new(host_ip, port);
    let bound = match proto {
        Proto::Udp => UdpSocket::bind(address).map(Bound::Udp),
        Proto::Tcp | Proto::Sctp => TcpListener::bind(address).map(Bound::Tcp),
    };
    bound.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ProxyError::Busy { port, proto },
        io::ErrorKind::AddrNotAvailable => ProxyError::NotOurs(host_ip),
        _ => ProxyError::System { port, proto, source },
    })
}

fn serve(publication: &Publication, bound: Vec<Bound>) -> Result<Reservation, ProxyError> {
    let Publication { proto, host_ports, to, to_port, .. } = *publication;
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let clients = Arc::new(Semaphore::new(udp::MAX_CLIENTS));
    let mut tasks = JoinSet::new();
    for (offset, socket) in (0..=u16::MAX).zip(bound) {
        let target = SocketAddr::from((to, to_port.saturating_add(offset)));
        let failed = |source| {
            let port = host_ports.first().saturating_add(offset);
            ProxyError::System { port, proto, source }
        };
        match socket {
            Bound::Tcp(listener) => {
                listener.set_nonblocking(true).map_err(failed)?;
                let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
                tasks.spawn(serve_tcp(listener, target, Arc::clone(&connections)));
            }
            Bound::Udp(socket) => {
                socket.set_nonblocking(true).map_err(failed)?;
                let socket = tokio::net::UdpSocket::from_std(socket).map_err(failed)?;
                tasks.spawn(udp::serve(socket, target, Arc::clone(&clients)));
            }
        }
    }
    Ok(Reservation { ports: host_ports, tasks })
}

async fn serve_tcp(
    listener: tokio::net::TcpListener,
    target: SocketAddr,
    connections: Arc<Semaphore>,
) {
    let mut tasks = JoinSet::new();
    loop {
        // The permit first: what is beyond the limit waits in the backlog, unaccepted.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((client, _)) => {
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
