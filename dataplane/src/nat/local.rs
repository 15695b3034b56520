//! Packets to our own addresses that no published port takes: the gateway's echo, and what is the
//! business of the host's stack.

use crate::config::LocalAddress;
use crate::core::Cx;
use crate::frame::Frame;
use crate::l2::forward::{fits, to_host};
use crate::l3::report::{Trouble, report};
use crate::nat::ip::{Addr, Ip};
use crate::nat::translate::not_ours;
use crate::packet::headers::L4;
use crate::packet::rewrite::Rewrite;
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

/// Delivers a packet to one of our addresses.
pub(super) fn deliver<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &Lane,
    ip: &P,
    local: LocalAddress,
) -> Result<Verdict, DropReason> {
    let request = matches!(ip.l4(), L4::Icmp { kind, .. } if kind == P::ECHO_REQUEST);
    let echo = request && !ip.is_fragment();
    let ours = !matches!(local, LocalAddress::Host);
    let unicast = P::unicast_for(cx, local, ip.src(), ip.dst());
    match lane.from {
        From::Uplink(_) if echo && matches!(local, LocalAddress::Uplink(_)) => {
            answer(cx, frame, lane, ip, None)
        }
        From::Endpoint(_) | From::Host(_) if echo && ours => answer(cx, frame, lane, ip, unicast),
        From::Endpoint(id) => {
            // The host's stack need not have an anycast address.
            let is_the_host_s = !matches!(local, LocalAddress::Uplink(_)) && unicast.is_none();
            let network = cx.config.network(id).filter(|_| is_the_host_s);
            match network.and_then(|network| to_host(cx, network, frame, lane.headers.l3)) {
                Some(verdict) => Ok(verdict),
                None => {
                    report(cx, frame, &lane.headers, lane.from, Trouble::PortUnreachable);
                    Err(DropReason::NoService)
                }
            }
        }
        From::Uplink(_) => not_ours(cx, lane.from, DropReason::Unsolicited),
        From::Host(_) | From::Nowhere => Err(DropReason::NoService),
    }
}

/// Sends an echo back, unless it is longer than what goes where it came from; from another address than it
/// went to, if that is no source.
fn answer<P: Ip>(
    cx: &Cx<'_>,
    frame: &mut Frame,
    lane: &Lane,
    ip: &P,
    unicast: Option<Addr<P>>,
) -> Result<Verdict, DropReason> {
    let mut headers = lane.headers;
    if let Some(unicast) = unicast
        && let L4::Icmp { id, .. } = ip.l4()
        && let Some(own) = P::of(&mut headers)
    {
        own.translate(frame, &Rewrite::dnat(unicast, id));
    }
    P::answer_echo(frame, &headers)?;
    let mtu = match lane.from {
        From::Uplink(id) => cx.config.uplink(id).map(|uplink| uplink.mtu),
        _ => cx.config.port(frame.ingress).map(|port| port.config.mtu),
    };
    if mtu.is_some_and(|mtu| fits(frame, lane.headers.l3, mtu)) {
        Ok(Verdict::Answer)
    } else {
        Err(DropReason::Oversize)
    }
}

/// A packet that cannot have a connection: later fragments, and ICMP that is neither query nor
/// error.
pub(super) fn untracked<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &Lane,
    ip: &P,
) -> Result<Verdict, DropReason> {
    let reason = match ip.l4() {
        L4::LaterFragment => DropReason::FragmentUntracked,
        _ => DropReason::UnsupportedProtocol,
    };
    match (P::local(cx, lane.from, ip.dst()), lane.from) {
        (Some(local), From::Endpoint(_)) => deliver(cx, frame, lane, ip, local),
        (_, from) => not_ours(cx, from, reason),
    }
}
