//! Configurations: what the switch of a bench is told.

use std::net::{Ipv4Addr, Ipv6Addr};

use dataplane::config::{
    NetworkConfig, PortConfig, PortRole, SnapshotSpec, Subnet, UplinkConfig, UplinkMode, Vlans,
};
use dataplane::l3::route::Prefix;
use dataplane::packet::types::{NetworkId, PortId, UplinkId};

use crate::frames::{
    CONTAINER, CONTAINER_MAC, CONTAINER6, GATEWAY_MAC, OUTSIDE, OUTSIDE6, ROUTER, ROUTER6,
    UPLINK_MAC, mac,
};
use crate::switch::{INSIDE, UPLINK};

/// The only network.
pub(crate) const NETWORK: NetworkId = NetworkId(1);

fn network() -> NetworkConfig {
    NetworkConfig::new(
        NETWORK,
        GATEWAY_MAC,
        vec![
            Subnet {
                prefix: Prefix::new(CONTAINER, 8),
                gateway: Some(Ipv4Addr::new(10, 0, 0, 1).into()),
            },
            Subnet {
                prefix: Prefix::new(CONTAINER6, 64),
                gateway: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into()),
            },
        ],
    )
}

/// Two ports with these identifiers on one network, no guard.
#[must_use]
pub fn two_ports([one, other]: [PortId; 2]) -> SnapshotSpec {
    let port = |id, number| PortConfig {
        id,
        role: PortRole::Endpoint {
            network: NETWORK,
            mac: mac(3, number),
            ipv4: Vec::new(),
            ipv6: Vec::new(),
            guard: false,
            trusted: false,
            vlans: Vlans::All,
        },
        mtu: 1500,
    };
    SnapshotSpec {
        networks: vec![network()],
        ports: vec![port(one, 1), port(other, 2)],
        ..SnapshotSpec::default()
    }
}

/// A container behind masquerading to these ports of an uplink.
pub(crate) fn container_and_uplink(guard: bool, nat_ports: (u16, u16)) -> SnapshotSpec {
    let uplink = UplinkId(1);
    SnapshotSpec {
        networks: vec![network()],
        ports: vec![
            PortConfig {
                id: INSIDE,
                role: PortRole::Endpoint {
                    network: NETWORK,
                    mac: CONTAINER_MAC,
                    ipv4: vec![CONTAINER],
                    ipv6: vec![CONTAINER6],
                    guard,
                    trusted: false,
                    vlans: Vlans::All,
                },
                mtu: 1500,
            },
            PortConfig { id: UPLINK, role: PortRole::Uplink { uplink }, mtu: 1500 },
        ],
        uplinks: vec![UplinkConfig {
            id: uplink,
            port: UPLINK,
            mode: UplinkMode::Dedicated,
            mac: UPLINK_MAC,
            addresses: vec![
                (OUTSIDE.into(), Prefix::new(OUTSIDE, 24)),
                (OUTSIDE6.into(), Prefix::new(OUTSIDE6, 64)),
            ],
            gateway: Some(ROUTER),
            gateway6: Some(ROUTER6),
            nat_ports: vec![nat_ports],
            mtu: 1500,
            carrier_ups: 0,
        }],
        ..SnapshotSpec::default()
    }
}
