//! The wire between a host and the outside: a veth pair, TEST-NET-1 (RFC 5737) on it, and in those with both
//! families addresses of RFC 3849.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::eventually;
use super::namespace::Namespace;

/// The outside machine.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// What the host, or its daemon, answers for.
pub const HOST_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// The outside machine, by IPv6.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// What the host, or its daemon, answers for by IPv6.
pub const HOST_IP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// The interface's name on both sides.
pub const WIRE: &str = "up0";

/// How long the link watch may take on a busy machine.
const CARRIER: Duration = Duration::from_secs(10);

/// Which way out a host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// The host has the interface without an address: the daemon answers for [`HOST_IP`].
    Dedicated,
    /// No wire.
    None,
    /// The host has [`HOST_IP`] and a default route, which the daemon shares.
    Shared,
}

/// Connects them; `dual`: by both families, of which IPv6 is on in their namespaces.
pub(super) fn connect(host: &Namespace, outside: &Namespace, uplink: Uplink, dual: bool) {
    if uplink == Uplink::None {
        return;
    }
    let peer = outside.name();
    host.ip(&format!("link add {WIRE} type veth peer name {WIRE} netns {peer}"));
    outside.ip(&format!("address add {GATEWAY}/24 dev {WIRE}"));
    outside.ip(&format!("link set {WIRE} up"));
    if uplink == Uplink::Shared {
        host.ip(&format!("address add {HOST_IP}/24 dev {WIRE}"));
    }
    host.ip(&format!("link set {WIRE} up"));
    if uplink == Uplink::Shared {
        host.ip(&format!("route add default via {GATEWAY}"));
    }
    if dual {
        outside.ip(&format!("-6 address add {GATEWAY6}/64 dev {WIRE} nodad"));
        if uplink == Uplink::Shared {
            host.ip(&format!("-6 address add {HOST_IP6}/64 dev {WIRE} nodad"));
            host.ip(&format!("-6 route add default via {GATEWAY6}"));
        }
    }
    // The kernel lets frames through only when its link watch, which looks once a second, has
    // seen both carriers.
    for ns in [host, outside] {
        eventually(CARRIER, "the wire has carrier", || {
            ns.ip(&format!("-o link show {WIRE}")).contains("state UP")
        });
    }
}
