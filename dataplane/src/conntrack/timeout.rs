//! How long an idle connection lives.

use std::time::Duration;

use super::sctp::SctpState;
use super::tcp::TcpState;
use crate::config::Timeouts;
use crate::packet::types::ip_proto;

/// DNS: one question, one answer.
const DNS_PORT: u16 = 53;

/// The idle timeout of a connection of protocol `proto` to `dst_port` in state `state` (a
/// [`TcpState`] for TCP, an [`SctpState`] for SCTP, ignored otherwise).
#[must_use]
#[inline]
pub fn idle(timeouts: &Timeouts, proto: u8, dst_port: u16, state: u8) -> Duration {
    match proto {
        ip_proto::TCP => tcp(timeouts, state),
        ip_proto::UDP if dst_port == DNS_PORT => timeouts.udp_dns,
        ip_proto::UDP => timeouts.udp,
        ip_proto::ICMP | ip_proto::ICMPV6 => timeouts.icmp,
        ip_proto::SCTP if state == SctpState::Established as u8 => timeouts.sctp_established,
        ip_proto::SCTP => timeouts.sctp_other,
        _ => timeouts.other,
    }
}

const fn tcp(timeouts: &Timeouts, state: u8) -> Duration {
    match TcpState::from_u8(state) {
        Some(TcpState::Established) => timeouts.tcp_established,
        Some(
            TcpState::FinWait
            | TcpState::ReplyFinWait
            | TcpState::CloseWait
            | TcpState::ReplyCloseWait
            | TcpState::LastAck
            | TcpState::ReplyLastAck,
        ) => timeouts.tcp_closing,
        Some(TcpState::TimeWait) => timeouts.tcp_time_wait,
        Some(TcpState::Close | TcpState::CloseDoubted | TcpState::ReplyCloseDoubted) => {
            timeouts.tcp_reset
        }
        // What is picked up and not answered is not known to be there.
        Some(
            TcpState::SynSent | TcpState::SynSent2 | TcpState::SynReceived | TcpState::PickedUp,
        )
        | None => timeouts.tcp_opening,
    }
}
