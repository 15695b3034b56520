//! The sockets behind a reservation.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, bind, setsockopt, socket, sockopt,
};
use tokio::net::{TcpListener, TcpSocket};

use super::ProxyError;
use crate::netlink::sockets::HostPorts;
use crate::publish::Proto;

/// Every namespace has one, under this name.
const LOOPBACK: &str = "lo";

/// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 1024;

/// A socket that passes on what it gets.
#[derive(Debug)]
pub(super) enum Served {
    Tcp(TcpListener),
    Udp(tokio::net::UdpSocket),
}

/// A socket that only keeps others off its port: the host answers as if there were none.
#[derive(Debug)]
pub(super) enum Held {
    Tcp { _socket: TcpSocket },
    Udp { _socket: UdpSocket },
}

pub(super) fn serve(proto: Proto, host_ip: IpAddr, port: u16) -> Result<Served, ProxyError> {
    let address = SocketAddr::from((host_ip, port));
    let bound = match proto {
        // What is left of closed connections does not keep the port from its next owner.
        Proto::Tcp | Proto::Sctp => {
            tcp(address, true).and_then(|socket| socket.listen(BACKLOG)).map(Served::Tcp)
        }
        Proto::Udp => udp(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            tokio::net::UdpSocket::from_std(socket).map(Served::Udp)
        }),
    };
    bound.map_err(|source| explain(source, proto, host_ip, port))
}

pub(super) fn hold(proto: Proto, host_ip: IpAddr, port: u16) -> Result<Held, ProxyError> {
    let address = SocketAddr::from((host_ip, port));
    let bound = match proto {
        Proto::Tcp | Proto::Sctp => match tcp(address, false) {
            // Two sockets that do not listen share a port if both allow it, so ours allows it only
            // beside what is left of closed connections.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => tcp(address, true),
            other => other,
        }
        .map(|socket| Held::Tcp { _socket: socket }),
        Proto::Udp => udp(address).and_then(|socket| {
            // Nobody reads it. It contends for its port at every interface, since it is bound, and
            // then gets datagrams by `lo` only; of these it keeps as few as there can be.
            setsockopt(&socket, sockopt::BindToDevice, &OsString::from(LOOPBACK))?;
            setsockopt(&socket, sockopt::RcvBuf, &0)?;
            Ok(Held::Udp { _socket: socket })
        }),
    };
    bound.map_err(|source| explain(source, proto, host_ip, port))
}

fn tcp(address: SocketAddr, reuse: bool) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    socket.set_reuseaddr(reuse)?;
    socket.bind(address)?;
    Ok(socket)
}

fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let SocketAddr::V6(address) = address else { return UdpSocket::bind(address) };
    let kind = (AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC);
    let socket = socket(kind.0, kind.1, kind.2, None)?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn6::from(address))?;
    Ok(socket.into())
}

fn explain(source: io::Error, proto: Proto, host_ip: IpAddr, port: u16) -> ProxyError {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            let closing = HostPorts::read().is_ok_and(|ports| ports.is_closing(proto, port));
            if closing {
                ProxyError::Closing { port, proto }
            } else {
                ProxyError::Busy { port, proto }
            }
        }
        io::ErrorKind::AddrNotAvailable => ProxyError::NotOurs(host_ip),
        _ => ProxyError::System { port, proto, source },
    }
}
