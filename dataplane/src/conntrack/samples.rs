//! Connections of both families to test with.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::entry::{NewConnection, SEEN_REPLY, SNAT};
use super::key::Key;
use super::tuple::{Tuple, Zone};
use super::tuple6::Tuple6;
use crate::packet::types::NetworkId;

/// A family to test.
pub(super) trait Sample: Key + Send + 'static {
    /// An inside address.
    fn inside(n: u8) -> Self::Addr;
    /// The address of a server.
    fn server(n: u8) -> Self::Addr;
    /// The address that all speak from outside.
    fn outside() -> Self::Addr;
}

impl Sample for Tuple {
    fn inside(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, n)
    }

    fn server(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, n)
    }

    fn outside() -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, 1)
    }
}

impl Sample for Tuple6 {
    fn inside(n: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, n.into())
    }

    fn server(n: u8) -> Ipv6Addr {
        // What differs is not in the low half.
        Ipv6Addr::new(0x2001, 0xdb8, n.into(), 0, 0, 0, 0, 1)
    }

    fn outside() -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xffff)
    }
}

/// Tests both families by the same functions.
macro_rules! for_both_families {
    ($($name:ident)*) => {
        mod ipv4 {
            $(#[test]
            fn $name() {
                super::$name::<super::Tuple>();
            })*
        }
        mod ipv6 {
            $(#[test]
            fn $name() {
                super::$name::<super::Tuple6>();
            })*
        }
    };
}
pub(super) use for_both_families;

/// As an inside host speaks to the server.
pub(super) fn tuple<K: Sample>(src: u8, port: u16) -> K {
    K::new(K::inside(src), K::server(1), port, 80, Zone(1), 17)
}

/// By UDP, out by an outside port.
pub(super) fn connection<K: Sample>(
    src: u8,
    port: u16,
    outside_port: u16,
    deadline: u32,
) -> NewConnection<K> {
    let original = tuple::<K>(src, port);
    let reply = K::new(original.dst(), K::outside(), 80, outside_port, Zone::OUTSIDE, 17);
    NewConnection {
        original,
        reply,
        state: 0,
        flags: SNAT,
        network: NetworkId(1),
        rule: 0,
        deadline,
    }
}

/// The same, answered already: one that is never ended for another.
pub(super) fn answered<K: Sample>(
    src: u8,
    port: u16,
    outside_port: u16,
    deadline: u32,
) -> NewConnection<K> {
    let new = connection(src, port, outside_port, deadline);
    NewConnection { flags: new.flags | SEEN_REPLY, ..new }
}
