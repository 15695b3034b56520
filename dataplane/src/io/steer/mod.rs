//! Steering on a shared uplink: which frames are the engine's and which are the host's.
//!
//! Two BPF programs with one match, both assembled here:
//! - a **classifier** for the ingress of the interface (`clsact`, direct action) drops the
//!   engine's frames for the host, whose stack would answer them with RST or ICMP. Packet sockets
//!   get frames before the classifier, so the engine has its copy. It leaves every other frame to
//!   the next filter (`TC_ACT_UNSPEC`) rather than accepting it (`TC_ACT_OK`): filters of others
//!   behind it work on.
//! - a **socket filter** for the engine's packet socket accepts the same frames, and those that
//!   both sides need to see: ARP and neighbor solicitations and advertisements, later fragments to our
//!   addresses, and echo replies, since the host's own `ping` takes any identifier, and says nothing about
//!   a reply it did not ask for. The host's bulk traffic is never copied.
//!
//! A frame is the engine's when it is IPv4 or IPv6, untagged, not for another MAC, to an address with a
//! slot, and its TCP, UDP or SCTP destination port, its ICMP echo reply identifier, or the source port
//! (identifier) of the packet within an ICMP error is in the slot's bitmap. Of IPv6's extension headers,
//! options and the fragment header are looked behind; a packet with another one is the host's.
//!
//! The programs live as long as something holds them: the interface holds the classifier when the
//! daemon has died, so the host goes on not answering for the engine's ports until the next run
//! replaces it.

mod asm;
mod program;
mod slots;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use program::{Maps, Verdicts, assemble, assemble_verdict};
use slots::{Entries, Slots};

use super::sys::bpf::{Map, MapKind, ProgramKind, load_program};

/// Addresses of both families at most: one for each slot.
pub const SLOTS: usize = SLOT_COUNT as usize;

/// Addresses of each family at most.
pub const MAX_ADDRESSES: usize = SLOTS / 2;

/// A power of two.
const SLOT_COUNT: i32 = 32;
const PROTOCOLS: i32 = 4;
/// Words of 64 bits for 65,536 ports.
const WORDS: i32 = 1024;
const WORD_COUNT: usize = WORDS as usize;

// linux/pkt_cls.h
const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;
/// A socket filter returns how many bytes of the frame to keep: all.
const ACCEPT: i32 = i32::MAX;
const REJECT: i32 = 0;

const CLASSIFIER: Verdicts = Verdicts {
    ours: TC_ACT_SHOT,
    echo: TC_ACT_UNSPEC,
    later_fragment: TC_ACT_UNSPEC,
    neighbor: TC_ACT_UNSPEC,
    other: TC_ACT_UNSPEC,
};
const FILTER: Verdicts = Verdicts {
    ours: ACCEPT,
    echo: ACCEPT,
    later_fragment: ACCEPT,
    neighbor: ACCEPT,
    other: REJECT,
};

/// Which numbers a bitmap is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SteerProto {
    /// TCP ports.
    Tcp,
    /// UDP ports.
    Udp,
    /// ICMP echo identifiers.
    Icmp,
    /// SCTP ports.
    Sctp,
}

impl SteerProto {
    /// All of them.
    pub const ALL: [Self; PROTOCOLS as usize] = [Self::Tcp, Self::Udp, Self::Icmp, Self::Sctp];
}

/// A set of ports or identifiers.
#[derive(Clone, PartialEq, Eq)]
pub struct PortBitmap(Box<[u64]>);

impl PortBitmap {
    /// No port.
    #[must_use]
    pub fn new() -> Self {
        Self(vec![0; WORD_COUNT].into())
    }

    /// Adds `port`.
    pub fn insert(&mut self, port: u16) {
        self.insert_range(port, port);
    }

    /// Adds `first` to `last`, both included.
    pub fn insert_range(&mut self, first: u16, last: u16) {
        self.mask_range(first, last, |word, mask| *word |= mask);
    }

    /// Removes `first` to `last`, both included.
    pub fn remove_range(&mut self, first: u16, last: u16) {
        self.mask_range(first, last, |word, mask| *word &= !mask);
    }

    /// Whether `port` is in it.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.get(usize::from(port >> 6)).is_some_and(|word| word >> (port & 63) & 1 != 0)
    }

    /// How many ports are in it.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    fn mask_range(&mut self, first: u16, last: u16, change: impl Fn(&mut u64, u64)) {
        if first > last {
            return;
        }
        let (from, to) = (usize::from(first >> 6), usize::from(last >> 6));
        for index in from..=to {
            let low = if index == from { u64::MAX << (first & 63) } else { u64::MAX };
            let high = if index == to { u64::MAX >> (63 - (last & 63)) } else { u64::MAX };
            if let Some(word) = self.0.get_mut(index) {
                change(word, low & high);
            }
        }
    }
}

impl Default for PortBitmap {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PortBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortBitmap({} ports)", self.count())
    }
}

/// Ports or identifiers of each protocol.
pub type PortsByProto = [(SteerProto, PortBitmap); PROTOCOLS as usize];

/// Both programs and what they match, for one uplink.
#[derive(Debug)]
pub struct Steering {
    classifier: OwnedFd,
    filter: OwnedFd,
    slots: Slots<BpfMaps>,
}

/// The maps of both programs.
#[derive(Debug)]
struct BpfMaps {
    addresses: Map,
    addresses6: Map,
    ports: Map,
}

impl Entries for BpfMaps {
    fn put(&mut self, address: IpAddr, slot: u32) -> io::Result<()> {
        let slot = slot.to_ne_bytes();
        match address {
            IpAddr::V4(address) => self.addresses.update(&address.octets(), &slot),
            IpAddr::V6(address) => self.addresses6.update(&address.octets(), &slot),
        }
    }

    fn remove(&mut self, address: IpAddr) -> io::Result<()> {
        let removed = match address {
            IpAddr::V4(address) => self.addresses.delete(&address.octets()),
            IpAddr::V6(address) => self.addresses6.delete(&address.octets()),
        };
        match removed {
            // Whoever took it away, it is not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn set_word(&mut self, index: u32, ports: u64) -> io::Result<()> {
        self.ports.update(&index.to_ne_bytes(), &ports.to_ne_bytes())
    }
}

impl Steering {
    /// Loads the programs. They match nothing yet.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_BPF` and `CAP_NET_ADMIN` (root), or what the kernel has
    /// against them.
    pub fn load() -> io::Result<Self> {
        let entries = u32::try_from(SLOTS).unwrap_or(0);
        let words = u32::try_from(SLOT_COUNT * PROTOCOLS * WORDS).unwrap_or(0);
        let maps = BpfMaps {
            addresses: Map::new(MapKind::Hash, 4, 4, entries, "vsw_addresses")?,
            addresses6: Map::new(MapKind::Hash, 16, 4, entries, "vsw_addresses6")?,
            ports: Map::new(MapKind::Array, 4, 8, words, "vsw_ports")?,
        };
        let named = Maps {
            addresses: maps.addresses.raw_fd(),
            addresses6: maps.addresses6.raw_fd(),
            ports: maps.ports.raw_fd(),
        };
        let load = |kind, name, verdicts| {
            let program = assemble(named, verdicts).ok_or(io::ErrorKind::InvalidData)?;
            load_program(kind, name, &program)
        };
        let classifier = load(ProgramKind::Classifier, "vsw_classifier", CLASSIFIER)?;
        let filter = load(ProgramKind::SocketFilter, "vsw_filter", FILTER)?;
        Ok(Self { classifier, filter, slots: Slots::new(maps) })
    }

    /// The classifier, to be attached to the interface's `clsact` ingress with direct action.
    #[must_use]
    pub fn classifier_fd(&self) -> BorrowedFd<'_> {
        self.classifier.as_fd()
    }

    /// The socket filter, for [`super::packet_socket::PacketOptions::filter`].
    #[must_use]
    pub fn filter_fd(&self) -> BorrowedFd<'_> {
        self.filter.as_fd()
    }

    /// From now on matches what is for `addresses`, with the ports that `ports` says of each. One that was
    /// there before is not touched, whatever its place in the list, but for those of its ports that change, 64 of
    /// them at a time: what runs there goes on. One that comes costs thousands of syscalls.
    ///
    /// # Errors
    /// `InvalidInput` when there are more than [`SLOTS`], or what the kernel says; then some of it was done,
    /// and the next call does the rest.
    pub fn follow(
        &mut self,
        addresses: &[IpAddr],
        ports: impl Fn(IpAddr) -> PortsByProto,
    ) -> io::Result<()> {
        self.slots.follow(addresses, ports)
    }
}

/// A classifier that keeps every frame from the host's stack: for our end of a veth pair, whose
/// frames only the engine may have.
///
/// # Errors
/// As [`Steering::load`].
pub fn hold_back() -> io::Result<OwnedFd> {
    let program = assemble_verdict(TC_ACT_SHOT).ok_or(io::ErrorKind::InvalidData)?;
    load_program(ProgramKind::Classifier, "vsw_hold_back", &program)
}

const fn bitmap_count() -> usize {
    PROTOCOLS as usize
}
