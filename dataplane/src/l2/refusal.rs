//! What the host's own stack refuses: whoever looks for its open ports is told so, port by port.

use crate::packet::types::{ethertype, ip_proto, tcp_flags};

/// Type and code (RFC 792, RFC 4443 §3.1).
const PORT_UNREACHABLE: [u8; 2] = [3, 3];
const PORT_UNREACHABLE6: [u8; 2] = [1, 4];

/// Whether an IP packet of the host's says that nothing serves what it answers: a reset that answers a SYN or a stray
/// segment (RFC 9293 §3.10.7.1), which no connection that was there ends with, or that a port is unreachable.
pub(crate) fn is_one(bytes: &[u8], l3: usize, kind: u16) -> bool {
    look(bytes.get(l3..).unwrap_or_default(), kind).unwrap_or(false)
}

fn look(packet: &[u8], kind: u16) -> Option<bool> {
    let (proto, start) = match kind {
        ethertype::IPV4 => (*packet.get(9)?, usize::from(*packet.first()? & 0xf) * 4),
        ethertype::IPV6 => (*packet.get(6)?, 40),
        _ => return None,
    };
    let upper = packet.get(start..)?;
    Some(match proto {
        ip_proto::TCP => {
            let flags = *upper.get(13)?;
            let answers_a_syn = upper.get(4..8)? == [0; 4];
            flags & tcp_flags::RST != 0 && (answers_a_syn || flags & tcp_flags::ACK == 0)
        }
        ip_proto::ICMP => upper.get(..2)? == PORT_UNREACHABLE,
        ip_proto::ICMPV6 => upper.get(..2)? == PORT_UNREACHABLE6,
        _ => false,
    })
}
