//! On loopback, with ports the kernel hands out; those of namespaces need root.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;
use crate::netns::Netns;

const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn publication(proto: Proto, count: u16, to: SocketAddr) -> Publication {
    let SocketAddr::V4(to) = to else { panic!("IPv4 only") };
    Publication {
        proto,
        host_ip: LOCAL,
        host_ports: PortRange::new(1, count).unwrap(),
        to: *to.ip(),
        to_port: to.port(),
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(5), future).await.expect("no answer within 5 s")
}

#[tokio::test]
async fn one_direction_may_end_before_the_other() {
    let server = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let reserved = reserve_any(&publication(Proto::Tcp, 1, server.local_addr().unwrap())).unwrap();
    let served = tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        let mut request = String::new();
        stream.read_to_string(&mut request).await.unwrap();
        stream.write_all(request.to_uppercase().as_bytes()).await.unwrap();
    });
    let mut client = TcpStream::connect((LOCAL, reserved.ports().first())).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    within(client.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "HELLO");
    within(served).await.unwrap();
}

#[tokio::test]
async fn every_udp_client_gets_its_own_answers() {
    let server = UdpSocket::bind((LOCAL, 0)).await.unwrap();
    let reserved = reserve_any(&publication(Proto::Udp, 1, server.local_addr().unwrap())).unwrap();
    let port = reserved.ports().first();
    let (one, two) =
        (UdpSocket::bind((LOCAL, 0)).await.unwrap(), UdpSocket::bind((LOCAL, 0)).await.unwrap());
    let mut buffer = [0; 16];
    for (client, text) in [(&one, b"one"), (&two, b"two")] {
        client.connect((LOCAL, port)).await.unwrap();
        client.send(text).await.unwrap();
    }
    let mut peers = Vec::new();
    for _ in 0..2 {
        let (length, from) = within(server.recv_from(&mut buffer)).await.unwrap();
        peers.push(from);
        server.send_to(&buffer[..length].to_ascii_uppercase(), from).await.unwrap();
    }
    assert_ne!(peers[0], peers[1]);
    for (client, text) in [(&one, b"ONE"), (&two, b"TWO")] {
        let length = within(client.recv(&mut buffer)).await.unwrap();
        assert_eq!(&buffer[..length], text);
    }
}

#[tokio::test]
async fn a_taken_port_is_a_conflict_and_nothing_stays_reserved() {
    let target = SocketAddr::from((LOCAL, 9));
    let free = reserve_any(&publication(Proto::Tcp, 3, target)).unwrap();
    let ports = free.ports();
    assert_eq!(ports.len(), 3);
    let again = Publication { host_ports: ports, ..publication(Proto::Tcp, 3, target) };
    let error = reserve(&again).unwrap_err();
    let text = format!("port {}/tcp is in use on the host by another program", ports.first());
    assert_eq!(error.to_string(), text);
    assert_eq!(Error::from(error).kind, Kind::Conflict);
    drop(free);

    let squatter = within(async {
        // The sockets close when the runtime has dropped the aborted tasks.
        loop {
            match TcpListener::bind((LOCAL, ports.last())).await {
                Ok(listener) => return listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    })
    .await;
    let error = reserve(&again).unwrap_err();
    assert!(matches!(error, ProxyError::Busy { port, .. } if port == ports.last()), "{error}");
    drop(squatter);
    let held = reserve(&again).unwrap();
    assert_eq!(held.ports(), ports);

    let foreign = Publication { host_ip: Ipv4Addr::new(192, 0, 2, 9), ..again };
    let error = reserve(&foreign).unwrap_err();
    assert_eq!(error.to_string(), "192.0.2.9 is not an address of this host");
}

#[tokio::test]
#[ignore = "needs root"]
async fn long_ranges_are_checked_but_not_bound() {
    let netns = Netns::anonymous().unwrap();
    let runtime = tokio::runtime::Handle::current();
    netns
        .run(|| {
            let _entered = runtime.enter();
            let long = Publication {
                host_ports: PortRange::new(10_000, 20_000).unwrap(),
                ..publication(Proto::Tcp, 1, SocketAddr::from((LOCAL, 9)))
            };
            let held = reserve(&long).unwrap();
            let program = std::net::TcpListener::bind((LOCAL, 15_000)).unwrap();
            let error = reserve(&long).unwrap_err();
            assert!(matches!(error, ProxyError::Busy { port: 15_000, .. }), "{error}");
            drop((held, program));
            assert!(reserve(&long).is_ok());
            let whole = publication(Proto::Tcp, 40_000, SocketAddr::from((LOCAL, 9)));
            let error = reserve_any(&whole).unwrap_err();
            assert_eq!(error.to_string(), "no 40000 consecutive free tcp ports on the host");
        })
        .unwrap();
}

#[tokio::test]
async fn dropping_a_reservation_ends_its_connections() {
    let server = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let reserved = reserve_any(&publication(Proto::Tcp, 1, server.local_addr().unwrap())).unwrap();
    let mut client = TcpStream::connect((LOCAL, reserved.ports().first())).await.unwrap();
    let (_held, _) = within(server.accept()).await.unwrap();
    drop(reserved);
    let mut byte = [0];
    let ended = within(client.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}
