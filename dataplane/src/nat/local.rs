//! Packets to our own addresses that no published port takes: the gateway's echo, and what is the
//! business of the host's stack.

use crate::config::LocalAddress;
use crate::core::Cx;
use crate::frame::Frame;
use crate::l3::report::{Trouble, report};
use crate::nat::ip::Ip;
use crate::nat::translate::not_ours;
use crate::packet::headers::L4;
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
    match lane.from {
        From::Uplink(_) if echo && matches!(local, LocalAddress::Uplink(_)) => {
            P::answer_echo(frame, &lane.headers)?;
            Ok(Verdict::Answer)
        }
        From::Endpoint(_) | From::Host(_) if echo && ours => {
            P::answer_echo(frame, &lane.headers)?;
            Ok(Verdict::Answer)
        }
        From::Endpoint(id) => {
            let host_port = cx.config.network(id).and_then(|network| network.host_port);
            match host_port {
                // The host's leg has the gateway's MAC: the frame is addressed to it already.
                Some(port) if !matches!(local, LocalAddress::Uplink(_)) => {
                    Ok(Verdict::Forward(port))
                }
                _ => {
                    report(cx, frame, &lane.headers, lane.from, Trouble::PortUnreachable);
                    Err(DropReason::NoService)
                }
            }
        }
        From::Uplink(_) => not_ours(cx, lane.from, DropReason::Unsolicited),
        From::Host(_) | From::Nowhere => Err(DropReason::NoService),
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
