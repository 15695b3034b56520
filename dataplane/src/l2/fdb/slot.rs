//! The two words of a slot.

use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use crate::engine::{FdbEntry, FdbKind};
use crate::packet::types::{Mac, NetworkId, PortId};
use crate::sync::atomic::AtomicU64;

#[derive(Clone, Copy)]
pub(super) struct Value(pub(super) u64);

impl Value {
    pub(super) fn new(port: PortId, vlan: u16, kind: FdbKind, seen: u32) -> Self {
        let kind = match kind {
            FdbKind::Learned => 0u64,
            FdbKind::Local => 1,
            FdbKind::Static => 2,
        };
        Self(u64::from(port.0) | u64::from(vlan & 0xfff) << 16 | kind << 28 | u64::from(seen) << 32)
    }

    #[allow(clippy::cast_possible_truncation, reason = "the field is 16 bits wide")]
    pub(super) const fn port(self) -> PortId {
        PortId(self.0 as u16)
    }

    pub(super) const fn vlan(self) -> u16 {
        (self.0 >> 16 & 0xfff) as u16
    }

    pub(super) const fn kind(self) -> FdbKind {
        match self.0 >> 28 & 0xf {
            0 => FdbKind::Learned,
            1 => FdbKind::Local,
            _ => FdbKind::Static,
        }
    }

    pub(super) const fn seen(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) fn is_live(self, now: u32, ageing: Duration) -> bool {
        !matches!(self.kind(), FdbKind::Learned)
            || u64::from(now.saturating_sub(self.seen())) <= ageing.as_secs()
    }
}

#[inline]
pub(in crate::l2) fn key_word(network: NetworkId, mac: Mac) -> u64 {
    mac.as_u64() << 16 | u64::from(network.0)
}

/// The network of a [`key_word`].
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the network is the low 16 bits")]
pub(crate) const fn network_of(key: u64) -> NetworkId {
    NetworkId(key as u16)
}

pub(super) fn entry_of(word: &AtomicU64, cell: &AtomicU64, now: u32) -> Option<FdbEntry> {
    let key = word.load(Ordering::Acquire);
    let value = Value(cell.load(Ordering::Acquire));
    fence(Ordering::Acquire);
    if key == 0 || word.load(Ordering::Relaxed) != key {
        return None;
    }
    Some(FdbEntry {
        network: network_of(key),
        mac: Mac::from_u64(key >> 16),
        vlan: value.vlan(),
        port: value.port(),
        kind: value.kind(),
        age: Duration::from_secs(u64::from(now.saturating_sub(value.seen()))),
    })
}
