//! ICMP errors to the sender of a packet that cannot go on.

use crate::core::Cx;
use crate::family::Address;
use crate::frame::Frame;
use crate::packet::headers::{Headers, Net};
use crate::packet::icmp::{self, IcmpError};
use crate::packet::icmp6::{self, Icmp6Error};
use crate::pipeline::From;

/// Why a packet cannot go on, as its sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// 3/13; 1/1.
    AdminProhibited,
    /// 1/2, which IPv4 does not have: a link-local source would leave its link.
    BeyondScope,
    /// 3/1; 1/3.
    NeighborSilent,
    /// 3/0; 1/0.
    NoRoute,
    /// 3/3; 1/4.
    PortUnreachable,
    /// 11/0; 3/0.
    TimeExceeded,
    /// 3/4; 2/0.
    TooLong {
        /// The longest IP packet the next hop takes.
        mtu: u16,
    },
}

impl Trouble {
    const fn v4(self) -> Option<IcmpError> {
        Some(match self {
            Self::AdminProhibited => IcmpError::AdminProhibited,
            Self::BeyondScope => return None,
            Self::NeighborSilent => IcmpError::HostUnreachable,
            Self::NoRoute => IcmpError::NetUnreachable,
            Self::PortUnreachable => IcmpError::PortUnreachable,
            Self::TimeExceeded => IcmpError::TimeExceeded,
            Self::TooLong { mtu } => IcmpError::FragmentationNeeded { mtu },
        })
    }

    const fn v6(self) -> Icmp6Error {
        match self {
            Self::AdminProhibited => Icmp6Error::AdminProhibited,
            Self::BeyondScope => Icmp6Error::BeyondScope,
            Self::NeighborSilent => Icmp6Error::AddressUnreachable,
            Self::NoRoute => Icmp6Error::NoRoute,
            Self::PortUnreachable => Icmp6Error::PortUnreachable,
            Self::TimeExceeded => Icmp6Error::HopLimitExceeded,
            Self::TooLong { mtu } => Icmp6Error::PacketTooBig { mtu: mtu as u32 },
        }
    }
}

/// Sends an error back to where the frame came from, unless the rules (RFC 1122 §3.2.2, RFC 4443 §2.4)
/// or the rate limit forbid it. The frame must be as it was received: its own bytes are quoted.
pub(crate) fn report(
    cx: &mut Cx<'_>,
    frame: &Frame,
    headers: &Headers,
    from: From,
    trouble: Trouble,
) {
    match &headers.net {
        Net::Ipv4(ip) => {
            let (Some(source), Some(error)) = (speaker(cx, from, ip.src), trouble.v4()) else {
                return;
            };
            if icmp::may_report(headers) {
                send(cx, frame, |reply| icmp::write_error(reply, frame, headers, source, error));
            }
        }
        Net::Ipv6(ip) => {
            let Some(source) = speaker(cx, from, ip.src) else { return };
            let error = trouble.v6();
            if icmp6::may_report(headers, error) {
                send(cx, frame, |reply| icmp6::write_error(reply, frame, headers, source, error));
            }
        }
        _ => {}
    }
}

/// Sends what `write` makes, if that is not too much already, of all or of this port's.
fn send(cx: &mut Cx<'_>, about: &Frame, write: impl FnOnce(&mut Frame) -> bool) {
    if !cx.errors.allow(about.ingress, cx.now, &cx.counters.errors) {
        return;
    }
    let Some(mut reply) = cx.pool.take() else { return };
    if write(&mut reply) {
        cx.ports.push_generated(cx.counters, about.ingress, reply);
    } else {
        cx.pool.put(reply);
    }
}

/// The address we speak from to `to`.
fn speaker<A: Address>(cx: &Cx<'_>, from: From, to: A) -> Option<A> {
    match from {
        From::Endpoint(id) | From::Host(id) => cx.config.network(id)?.gateway_for(to),
        From::Uplink(id) => cx.config.uplink(id)?.first_address(to),
        From::Nowhere => None,
    }
}
