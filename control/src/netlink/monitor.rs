//! What changes in a namespace, as it changes: links, addresses, routes, filters at the ingress of
//! links.
//!
//! The kernel never waits for a slow reader: it drops messages and says so once. The stream passes
//! that on as [`Event::Overrun`]; the reader must then list everything anew.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use futures::StreamExt;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::tc::{TcHandle, TcMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::{AsyncSocket, SocketAddr};

use super::{Link, LinkAddress, NetlinkError, Route};
use crate::netns::Netns;

/// Room for bursts, such as 200 sandboxes at once: 4 MiB where the process may have it.
const RECEIVE_BUFFER: u32 = 4 << 20;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An address was added, or its flags changed.
    AddressAdded(LinkAddress),
    /// An address was removed.
    AddressRemoved(LinkAddress),
    /// A filter or qdisc at the ingress of a link, by its index, was added, replaced or removed.
    IngressChanged(u32),
    /// A link appeared or changed.
    LinkChanged(Link),
    /// A link is gone, deleted or moved to another namespace.
    LinkRemoved(Link),
    /// Changes were lost: list everything anew.
    Overrun,
    /// A route was added or replaced.
    RouteAdded(Route),
    /// A route was removed.
    RouteRemoved(Route),
}

type Received = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr);

/// A stream of [`Event`]s. It ends only if the kernel closes the socket.
pub struct Monitor {
    messages: Pin<Box<dyn Stream<Item = Received> + Send>>,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

impl Monitor {
    /// Starts watching `netns`. Everything that changes after this call is reported.
    ///
    /// # Errors
    /// When the namespace cannot be entered or no socket is left.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open_in(netns: &Netns) -> Result<Self, NetlinkError> {
        let runtime = tokio::runtime::Handle::current();
        netns.run(|| {
            let _entered = runtime.enter();
            Self::open()
        })?
    }

    /// Starts watching the namespace of the calling thread.
    ///
    /// # Errors
    /// When no socket is left.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Tc,
        ];
        let (mut connection, handle, messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        let socket = connection.socket_mut().socket_mut();
        if let Err(error) = socket.set_rx_buf_sz(RECEIVE_BUFFER) {
            tracing::debug!("netlink monitor keeps its default receive buffer: {error}");
        }
        tokio::spawn(connection);
        // The connection ends with its last handle, so the stream keeps it.
        let messages = messages.map(move |received| {
            let _ = &handle;
            received
        });
        Ok(Self { messages: Box::pin(messages) })
    }
}

impl Stream for Monitor {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            match self.messages.poll_next_unpin(cx) {
                Poll::Ready(Some((message, _))) => {
                    if let Some(event) = event_of(&message.payload) {
                        return Poll::Ready(Some(event));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

fn event_of(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Event> {
    use RouteNetlinkMessage as Message;
    match payload {
        NetlinkPayload::Overrun(_) => Some(Event::Overrun),
        NetlinkPayload::InnerMessage(message) => match message {
            // A bridge reports about its ports in the same messages under its own family, where
            // "deleted" means "left the bridge".
            Message::NewLink(link) | Message::DelLink(link)
                if link.header.interface_family != AddressFamily::Unspec =>
            {
                None
            }
            Message::NewLink(link) => Some(Event::LinkChanged(Link::parse(link))),
            Message::DelLink(link) => Some(Event::LinkRemoved(Link::parse(link))),
            Message::NewAddress(address) => LinkAddress::parse(address).map(Event::AddressAdded),
            Message::DelAddress(address) => LinkAddress::parse(address).map(Event::AddressRemoved),
            Message::NewRoute(route) => Route::parse(route).map(Event::RouteAdded),
            Message::DelRoute(route) => Route::parse(route).map(Event::RouteRemoved),
            Message::NewQueueDiscipline(message)
            | Message::DelQueueDiscipline(message)
            | Message::NewTrafficFilter(message)
            | Message::DelTrafficFilter(message) => ingress_of(message).map(Event::IngressChanged),
            _ => None,
        },
        _ => None,
    }
}

/// The link that a message is about; `None`: it is not about the link's ingress.
fn ingress_of(message: &TcMessage) -> Option<u32> {
    // Qdisc and filters there have parents of the same major number.
    let at_ingress = message.header.parent.major == TcHandle::CLSACT.major;
    at_ingress.then(|| u32::try_from(message.header.index).ok()).flatten()
}
