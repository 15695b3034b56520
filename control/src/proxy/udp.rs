//! UDP has no connections: each client gets a socket of its own towards the container, so that
//! answers find back, until it has been idle for a while.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{Instant, timeout};

use super::OwnAddresses;
use crate::places::Places;

/// `docker-proxy` forgets a client after 90 s as well (its `UDPConnTrackTimeout`).
const IDLE: Duration = Duration::from_secs(90);

/// The longest UDP payload over IPv4: 65,535 less both headers.
const MAX_DATAGRAM: usize = 65_507;

struct Client {
    socket: Arc<UdpSocket>,
    last_sent: Instant,
    task: AbortHandle,
}

pub(super) async fn serve(
    socket: UdpSocket,
    target: SocketAddr,
    limit: Places,
    own: OwnAddresses,
    mut stopped: watch::Receiver<()>,
) {
    let socket = Arc::new(socket);
    let mut clients: HashMap<SocketAddr, Client> = HashMap::new();
    let mut by_task: HashMap<Id, SocketAddr> = HashMap::new();
    let mut replies = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        tokio::select! {
            // An error says that the sender is gone, which is what is waited for.
            _ = stopped.changed() => break,
            received = socket.recv_from(&mut buffer) => {
                // Errors are ICMP answers to what was sent to a client that is gone.
                let Ok((length, from)) = received else { continue };
                if !own.contains(from.ip()) {
                    continue;
                }
                let Some(datagram) = buffer.get(..length) else { continue };
                let client = match clients.entry(from) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        let opened = open(&socket, from, target, &limit, &mut replies).await;
                        let Some(client) = opened else { continue };
                        by_task.insert(client.task.id(), from);
                        new.insert(client)
                    }
                };
                client.last_sent = Instant::now();
                // As lossy as UDP is: a full or refused send is a lost datagram.
                let _ = client.socket.send(datagram).await;
            }
            Some(ended) = replies.join_next_with_id() => {
                let id = match &ended {
                    Ok((id, ())) => *id,
                    Err(error) => error.id(),
                };
                let Some(from) = by_task.remove(&id) else { continue };
                let Some(mut client) = clients.remove(&from) else { continue };
                // No answers for a while; but the client may still be talking.
                if client.last_sent.elapsed() < IDLE
                    && let Some(permit) = limit.try_take()
                {
                    let task = pass_answers(
                        Arc::clone(&socket), Arc::clone(&client.socket), from, permit,
                    );
                    client.task = replies.spawn(task);
                    by_task.insert(client.task.id(), from);
                    clients.insert(from, client);
                }
            }
        }
    }
    // Each of them has the socket: the port is free when the last one is gone.
    replies.shutdown().await;
}

async fn open(
    socket: &Arc<UdpSocket>,
    from: SocketAddr,
    target: SocketAddr,
    limit: &Places,
    replies: &mut JoinSet<()>,
) -> Option<Client> {
    let permit = limit.try_take()?;
    let any = match target {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let inside = UdpSocket::bind((any, 0)).await.ok()?;
    inside.connect(target).await.ok()?;
    let inside = Arc::new(inside);
    let task = replies.spawn(pass_answers(Arc::clone(socket), Arc::clone(&inside), from, permit));
    Some(Client { socket: inside, last_sent: Instant::now(), task })
}

/// Ends when no answer came for [`IDLE`].
async fn pass_answers(
    outside: Arc<UdpSocket>,
    inside: Arc<UdpSocket>,
    client: SocketAddr,
    _permit: OwnedSemaphorePermit,
) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    while let Ok(received) = timeout(IDLE, inside.recv(&mut buffer)).await {
        // Errors are ICMP answers of the container, such as "port unreachable" until it listens.
        let Ok(length) = received else { continue };
        if let Some(datagram) = buffer.get(..length) {
            let _ = outside.send_to(datagram, client).await;
        }
    }
}
