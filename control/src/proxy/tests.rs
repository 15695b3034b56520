//! On loopback, with ports the kernel hands out; those of namespaces need root.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;
use crate::config::ServiceLimits;
use crate::netns::Netns;

const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;
fn limits() -> HostLimits {
    HostLimits::new(&ServiceLimits::default())
}

const NO_ROOM: LongRanges = LongRanges { room: 0, shared: false };

fn publication(proto: Proto, count: u16, to: SocketAddr) -> Publication {
    Publication {
        proto,
        host_ip: LOCAL.into(),
        host_ports: PortRange::new(1, count).unwrap(),
        to: to.ip(),
        to_port: to.port(),
    }
}

/// Reserves as many ports as `publication` has wherever they are free, as the kernel hands out a
/// first one.
fn reserve_any(publication: &Publication) -> Result<Reservation, ProxyError> {
    reserve_within(publication, &limits())
}

fn reserve_within(
    publication: &Publication,
    limits: &HostLimits,
) -> Result<Reservation, ProxyError> {
    reserve_long(publication, NO_ROOM, limits)
}

fn reserve_long(
    publication: &Publication,
    long: LongRanges,
    limits: &HostLimits,
) -> Result<Reservation, ProxyError> {
    let count = publication.host_ports.len();
    loop {
        let first = std::net::TcpListener::bind((LOCAL, 0)).unwrap().local_addr().unwrap().port();
        let Some(host_ports) = PortRange::new(first, first.saturating_add(count - 1)) else {
            continue;
        };
        let candidate = Publication { host_ports, ..*publication };
        match reserve(&candidate, long, &OwnAddresses::default(), limits) {
            Err(ProxyError::Busy { .. }) => {}
            other => return other,
        }
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

fn one_each() -> HostLimits {
    let one = ServiceLimits { host_connections: 1, host_datagram_clients: 1, ..Default::default() };
    HostLimits::new(&one)
}

#[tokio::test]
async fn datagrams_of_more_clients_than_may_be_are_lost_and_counted() {
    let server = UdpSocket::bind((LOCAL, 0)).await.unwrap();
    let publication = publication(Proto::Udp, 1, server.local_addr().unwrap());
    let limits = one_each();
    let reserved = reserve_within(&publication, &limits).unwrap();
    let port = reserved.ports().first();
    let mut buffer = [0; 16];
    let first = UdpSocket::bind((LOCAL, 0)).await.unwrap();
    first.send_to(b"one", (LOCAL, port)).await.unwrap();
    within(server.recv_from(&mut buffer)).await.unwrap();
    let second = UdpSocket::bind((LOCAL, 0)).await.unwrap();
    second.send_to(b"two", (LOCAL, port)).await.unwrap();
    first.send_to(b"three", (LOCAL, port)).await.unwrap();
    let (length, _) = within(server.recv_from(&mut buffer)).await.unwrap();
    assert_eq!(&buffer[..length], b"three");
    let shown = limits.datagram_clients.view();
    assert_eq!((shown.current, shown.peak, shown.limit, shown.refused), (1, 1, 1, Some(1)));
}

#[tokio::test]
async fn a_connection_more_than_may_be_waits_for_the_end_of_another() {
    let server = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let publication = publication(Proto::Tcp, 1, server.local_addr().unwrap());
    let limits = one_each();
    let reserved = reserve_within(&publication, &limits).unwrap();
    let port = reserved.ports().first();
    let first = TcpStream::connect((LOCAL, port)).await.unwrap();
    let (served, _) = within(server.accept()).await.unwrap();
    let _second = TcpStream::connect((LOCAL, port)).await.unwrap();
    assert!(timeout(Duration::from_millis(300), server.accept()).await.is_err());
    let shown = limits.connections.view();
    assert_eq!((shown.current, shown.peak, shown.limit, shown.refused), (1, 1, 1, None));
    drop((first, served));
    within(server.accept()).await.unwrap();
}

#[tokio::test]
async fn who_only_listens_has_no_place() {
    // More ports than places.
    let (first, second) = loop {
        let first = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let next = first.local_addr().unwrap().port().saturating_add(1);
        if let Ok(second) = TcpListener::bind((LOCAL, next)).await {
            break (first, second);
        }
    };
    let publication = publication(Proto::Tcp, 2, first.local_addr().unwrap());
    let limits = one_each();
    let reserved = reserve_within(&publication, &limits).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let current = || limits.connections.view().current;
    assert_eq!(current(), 0, "nobody is connected");
    for _ in 0..2 {
        for (offset, server) in (0..).zip([&first, &second]) {
            let client = TcpStream::connect((LOCAL, reserved.ports().first() + offset)).await;
            let (served, _) = within(server.accept()).await.unwrap();
            assert_eq!(current(), 1);
            drop((client.unwrap(), served));
            within(async {
                while current() > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
            .await;
        }
    }
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
    let error = reserve(&again, NO_ROOM, &OwnAddresses::default(), &limits()).unwrap_err();
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
    let error = reserve(&again, NO_ROOM, &OwnAddresses::default(), &limits()).unwrap_err();
    assert!(matches!(error, ProxyError::Busy { port, .. } if port == ports.last()), "{error}");
    drop(squatter);
    let held = reserve(&again, NO_ROOM, &OwnAddresses::default(), &limits()).unwrap();
    assert_eq!(held.ports(), ports);

    let foreign = Publication { host_ip: [192, 0, 2, 9].into(), ..again };
    let error = reserve(&foreign, NO_ROOM, &OwnAddresses::default(), &limits()).unwrap_err();
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
            let held = reserve(&long, NO_ROOM, &OwnAddresses::default(), &limits()).unwrap();
            let program = std::net::TcpListener::bind((LOCAL, 15_000)).unwrap();
            let error = reserve(&long, NO_ROOM, &OwnAddresses::default(), &limits()).unwrap_err();
            assert!(matches!(error, ProxyError::Busy { port: 15_000, .. }), "{error}");
            drop((held, program));
            assert!(reserve(&long, NO_ROOM, &OwnAddresses::default(), &limits()).is_ok());
        })
        .unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn whoever_is_not_the_host_is_reset() {
    let place = crate::place::Place::open(Netns::anonymous().unwrap()).unwrap();
    let lo = place.netlink.link_by_name("lo").await.unwrap().index;
    let fail = crate::netlink::IfExists::Fail;
    place.netlink.change_link(lo, &crate::netlink::LinkChange::new().up()).await.unwrap();
    place.netlink.add_address(lo, "203.0.113.77/32".parse().unwrap(), fail).await.unwrap();
    let runtime = tokio::runtime::Handle::current();
    let own = OwnAddresses::default();
    let any = Publication {
        host_ip: Ipv4Addr::UNSPECIFIED.into(),
        host_ports: PortRange::new(8080, 8080).unwrap(),
        ..publication(Proto::Tcp, 1, SocketAddr::from((LOCAL, 9)))
    };
    let (held, mut client) = place
        .netns
        .run(|| {
            let _entered = runtime.enter();
            let held = reserve(&any, NO_ROOM, &own, &limits()).unwrap();
            (held, std::net::TcpStream::connect(("203.0.113.77", 8080)).unwrap())
        })
        .unwrap();
    let read = tokio::task::spawn_blocking(move || io::Read::read(&mut client, &mut [0]));
    let error = within(read).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    drop(held);
}

#[test]
fn long_ranges_have_room_for_so_many() {
    // The soft limit of descriptors may be lower than the ports that fit.
    let limits = limits();
    let all = LongRanges::new(&limits, true);
    assert!(all.room <= 16_384 && all.room >= 128, "{all:?}");
    let held = limits.held_ports.try_take_all(100).unwrap();
    assert_eq!(LongRanges::new(&limits, true).room, all.room - 100);
    drop(held);
    assert_eq!(LongRanges::new(&limits, true), all);
    let few = ServiceLimits { held_ports: 0, ..ServiceLimits::default() };
    assert_eq!(LongRanges::new(&HostLimits::new(&few), false), NO_ROOM);
}

#[tokio::test]
async fn so_many_ports_are_served_and_so_many_held() {
    let few = ServiceLimits { served_ports: 2, held_ports: 3, ..ServiceLimits::default() };
    let limits = HostLimits::new(&few);
    let reserve = |count| {
        let wanted = publication(Proto::Tcp, count, SocketAddr::from((LOCAL, 9)));
        reserve_long(&wanted, LongRanges::new(&limits, false), &limits).unwrap()
    };
    let shown = || {
        [limits.served_ports.view(), limits.held_ports.limit().view()]
            .map(|it| (it.current, it.peak, it.limit, it.refused))
    };
    let one = reserve(1);
    let two = reserve(2);
    assert_eq!((one.held(), two.held()), (0, 0));
    assert_eq!(shown(), [(2, 2, 2, Some(0)), (0, 0, 3, Some(0))]);
    let long = reserve(3);
    assert_eq!((long.held(), long.is_only_checked()), (3, false));
    assert_eq!(shown(), [(2, 2, 2, Some(1)), (3, 3, 3, Some(0))]);
    // No room to hold any more.
    assert!(reserve(3).is_only_checked());
    assert_eq!(shown(), [(2, 2, 2, Some(2)), (3, 3, 3, Some(1))]);
    two.release().await;
    drop(long);
    assert_eq!(shown(), [(1, 2, 2, Some(2)), (0, 3, 3, Some(1))]);
    assert_eq!(reserve(3).held(), 3);
}

#[tokio::test]
#[ignore = "needs root"]
async fn long_ranges_are_held_and_refused() {
    let netns = Netns::anonymous().unwrap();
    netns.write_sysctl("net/ipv4/ip_local_port_range", "30000 31000").unwrap();
    let runtime = tokio::runtime::Handle::current();
    netns
        .run(|| {
            let _entered = runtime.enter();
            let room = LongRanges { room: 400, shared: true };
            for proto in [Proto::Tcp, Proto::Udp] {
                let range = |first, last| Publication {
                    host_ip: Ipv4Addr::UNSPECIFIED.into(),
                    host_ports: PortRange::new(first, last).unwrap(),
                    ..publication(proto, 1, SocketAddr::from((LOCAL, 9)))
                };
                let held =
                    reserve(&range(30_800, 31_199), room, &OwnAddresses::default(), &limits())
                        .unwrap();
                assert_eq!((held.held(), held.is_only_checked()), (400, false));
                for address in [LOCAL, Ipv4Addr::UNSPECIFIED] {
                    let tcp = std::net::TcpListener::bind((address, 31_000)).is_err();
                    let udp = std::net::UdpSocket::bind((address, 31_000)).is_err();
                    assert_eq!((tcp, udp), (proto == Proto::Tcp, proto == Proto::Udp));
                }
                let error =
                    reserve(&range(31_190, 31_400), room, &OwnAddresses::default(), &limits())
                        .unwrap_err();
                assert!(matches!(error, ProxyError::Busy { port: 31_190, .. }), "{error}");
                drop(held);

                let error =
                    reserve(&range(30_900, 31_300), room, &OwnAddresses::default(), &limits())
                        .unwrap_err();
                let text = format!("ports 30900-31300/{proto} overlap 30000-31000, which the host");
                assert!(error.to_string().starts_with(&text), "{error}");
                assert_eq!(Error::from(error).kind, Kind::Conflict);
                assert!(
                    reserve(&range(31_001, 32_000), room, &OwnAddresses::default(), &limits())
                        .unwrap()
                        .is_only_checked()
                );
                let own = LongRanges { shared: false, ..room };
                assert!(
                    reserve(&range(30_900, 31_300), own, &OwnAddresses::default(), &limits())
                        .unwrap()
                        .is_only_checked()
                );
            }
        })
        .unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_socket_of_ipv6_alone_keeps_no_port_of_ipv4() {
    let netns = Netns::anonymous().unwrap();
    netns.write_sysctl("net/ipv6/conf/all/disable_ipv6", "0").unwrap();
    let runtime = tokio::runtime::Handle::current();
    netns
        .run(|| {
            let _entered = runtime.enter();
            let range = Publication {
                host_ip: Ipv4Addr::UNSPECIFIED.into(),
                host_ports: PortRange::new(20_000, 20_999).unwrap(),
                ..publication(Proto::Tcp, 1, SocketAddr::from((LOCAL, 9)))
            };
            let any6 = std::net::Ipv6Addr::UNSPECIFIED;
            let reserve = || reserve(&range, NO_ROOM, &OwnAddresses::default(), &limits());
            let alone = bind::serve(Proto::Tcp, any6.into(), 20_500).unwrap();
            assert!(reserve().unwrap().is_only_checked());
            drop(alone);
            let both = std::net::TcpListener::bind((any6, 20_501)).unwrap();
            let error = reserve().unwrap_err();
            assert!(matches!(error, ProxyError::Busy { port: 20_501, .. }), "{error}");
            drop(both);
        })
        .unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn what_a_connection_keeps_is_held_when_it_has_ended() {
    let netns = Netns::anonymous().unwrap();
    let runtime = tokio::runtime::Handle::current();
    netns
        .run(|| {
            let _entered = runtime.enter();
            let range = Publication {
                host_ports: PortRange::new(31_000, 31_299).unwrap(),
                ..publication(Proto::Udp, 1, SocketAddr::from((LOCAL, 9)))
            };
            let room = LongRanges { room: 300, shared: true };
            let program = std::net::UdpSocket::bind((LOCAL, 31_100)).unwrap();
            let error = reserve(&range, room, &OwnAddresses::default(), &limits()).unwrap_err();
            assert!(matches!(error, ProxyError::Busy { port: 31_100, .. }), "{error}");
            program.connect((LOCAL, 9)).unwrap();
            let mut held = reserve(&range, room, &OwnAddresses::default(), &limits()).unwrap();
            assert_eq!(held.held(), 300);
            held.complete();
            drop(program);
            drop(std::net::UdpSocket::bind((LOCAL, 31_100)).unwrap());
            held.complete();
            assert!(std::net::UdpSocket::bind((LOCAL, 31_100)).is_err());
            assert_eq!(held.held(), 300);
        })
        .unwrap();
}

#[tokio::test]
async fn every_program_is_kept_off_a_reserved_port() {
    for proto in [Proto::Tcp, Proto::Udp] {
        let anywhere = Publication {
            host_ip: Ipv4Addr::UNSPECIFIED.into(),
            ..publication(proto, 1, SocketAddr::from((LOCAL, 9)))
        };
        let held = reserve_any(&anywhere).unwrap();
        let port = held.ports().first();
        for address in [LOCAL, Ipv4Addr::UNSPECIFIED] {
            let refused = match proto {
                Proto::Udp => std::net::UdpSocket::bind((address, port)).err(),
                _ => std::net::TcpListener::bind((address, port)).err(),
            };
            assert_eq!(refused.map(|e| e.kind()), Some(io::ErrorKind::AddrInUse), "{address}");
        }
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_port_is_free_at_once() {
    let server = UdpSocket::bind((LOCAL, 0)).await.unwrap();
    let wanted = publication(Proto::Udp, 1, server.local_addr().unwrap());
    for _ in 0..50 {
        let reserved = reserve_any(&wanted).unwrap();
        let port = reserved.ports().first();
        // Each client has a task that answers by the reserved socket.
        let mut buffer = [0; 16];
        let mut clients = Vec::new();
        for _ in 0..20 {
            let client = UdpSocket::bind((LOCAL, 0)).await.unwrap();
            client.send_to(b"hello", (LOCAL, port)).await.unwrap();
            within(server.recv_from(&mut buffer)).await.unwrap();
            clients.push(client);
        }
        within(reserved.release()).await;
        std::net::UdpSocket::bind((LOCAL, port)).unwrap();
    }
}

#[tokio::test]
async fn each_family_has_sockets_of_its_own() {
    let v6 = IpAddr::from(std::net::Ipv6Addr::LOCALHOST);
    if std::net::TcpListener::bind((v6, 0)).is_err() {
        // A host without IPv6 has nothing to tell apart.
        return;
    }
    let server = TcpListener::bind((v6, 0)).await.unwrap();
    let target = server.local_addr().unwrap();
    for proto in [Proto::Tcp, Proto::Udp] {
        let both = [[0; 4].into(), IpAddr::from([0; 16])];
        let reserved = loop {
            let free = std::net::TcpListener::bind((LOCAL, 0)).unwrap().local_addr().unwrap();
            let host_ports = PortRange::new(free.port(), free.port()).unwrap();
            let side =
                |host_ip| Publication { host_ip, host_ports, ..publication(proto, 1, target) };
            let own = OwnAddresses::default();
            let made = both.map(|host_ip| reserve(&side(host_ip), NO_ROOM, &own, &limits()));
            if let [Ok(v4), Ok(v6)] = made {
                break [v4, v6];
            }
        };
        let port = reserved[0].ports().first();
        for any in both {
            let again = match proto {
                Proto::Udp => std::net::UdpSocket::bind((any, port)).err(),
                _ => std::net::TcpListener::bind((any, port)).err(),
            };
            assert_eq!(again.unwrap().kind(), std::io::ErrorKind::AddrInUse, "{proto} {any}");
        }
        if proto == Proto::Tcp {
            let mut client = TcpStream::connect((v6, port)).await.unwrap();
            let (mut served, _) = within(server.accept()).await.unwrap();
            client.write_all(b"six").await.unwrap();
            let mut buffer = [0; 3];
            within(served.read_exact(&mut buffer)).await.unwrap();
            assert_eq!(&buffer, b"six");
        }
    }
}
