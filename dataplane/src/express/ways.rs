//! How routed packets leave, by ingress port and next hop.
//!
//! A connection notes the number of its way. Numbers are never used twice, by any worker, as long as the
//! process runs: a number that is found in a connection means this way or none. A way keeps its number
//! when it is found again the same under the same configuration; when its place goes to another next hop,
//! or the configuration has changed, it gets a new one, and the connections find theirs anew.

use std::net::IpAddr;

use super::{Basis, Express};
use crate::engine::Link;
use crate::packet::types::{Mac, PortId};

/// Ways a worker remembers. One that is used in this second keeps its place, so that more of them than
/// this take nothing from each other; their packets go the whole way.
const WAYS: usize = 1024;
/// Bits of a number that say where the way is.
const PLACE_BITS: u32 = WAYS.trailing_zeros();
/// Bits above them that count, for each place by itself; the worker's are above those. A place gets a new
/// way at most once a second and with each configuration: enough for 34 years.
const COUNT_BITS: u32 = 30;
/// Bits of a number: as many as an entry of the connection table has room for.
const NUMBER_BITS: u32 = 48;

/// From where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) ingress: PortId,
    pub(crate) link: Link,
    pub(crate) next_hop: IpAddr,
}

impl Ends {
    fn place(&self) -> usize {
        let (kind, link) = match self.link {
            Link::Network(id) => (0, id.0),
            Link::Uplink(id) => (1, id.0),
        };
        let next_hop = match self.next_hop {
            IpAddr::V4(address) => address.to_bits(),
            IpAddr::V6(address) => fold(address.to_bits()),
        };
        let word = u64::from(next_hop) << 32 | u64::from(self.ingress.0) << 16 | u64::from(link);
        let mixed = (word ^ kind).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> (u64::BITS - PLACE_BITS)) as usize % WAYS
    }
}

/// What happens to packets on their way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) port: PortId,
    pub(crate) mtu: u16,
    /// Destination and source.
    pub(crate) macs: [u8; 12],
}

impl Exit {
    pub(crate) fn new(port: PortId, mtu: u16, dst: Mac, src: Mac) -> Self {
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (dst.0, src.0);
        Self { port, mtu, macs: [a, b, c, d, e, f, g, h, i, j, k, l] }
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Way {
    number: u64,
    pub(crate) epoch: u64,
    pub(crate) exit: Exit,
    pub(crate) ends: Ends,
    /// The low half of the configuration's number: the next one that has the same is 2^32
    /// publications away.
    config: u32,
    /// When it was last found.
    secs: u32,
}

// A way is found in one cache line.
const _: () = assert!(size_of::<Option<Way>>() == 64);

/// The low half of a configuration's number.
#[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
const fn low_half(config: u64) -> u32 {
    config as u32
}

#[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
const fn fold(address: u128) -> u32 {
    (address ^ address >> 32 ^ address >> 64 ^ address >> 96) as u32
}

/// The ways, each in the one place that follows from its ends.
#[derive(Debug)]
pub(crate) struct Ways {
    worker: u64,
    /// How many each place has had.
    made: Vec<u32>,
    places: Vec<Option<Way>>,
}

impl Ways {
    pub(crate) fn new(worker: usize) -> Self {
        Self { worker: worker as u64, made: vec![0; WAYS], places: vec![None; WAYS] }
    }

    /// The place of the way with this number, if it is still there.
    #[inline]
    pub(crate) fn find(&self, number: u64) -> Option<&Way> {
        self.at(place_of(number)).filter(|way| way.number == number)
    }

    /// The way in a place that [`place_of`] gave for one that was found there.
    #[inline]
    pub(crate) fn at(&self, place: u16) -> Option<&Way> {
        self.places.get(usize::from(place))?.as_ref()
    }

    fn number(&mut self, place: usize) -> Option<u64> {
        let made = self.made.get_mut(place)?;
        if self.worker >= 1 << (NUMBER_BITS - COUNT_BITS - PLACE_BITS)
            || *made + 1 >= 1 << COUNT_BITS
        {
            return None;
        }
        *made += 1;
        let count = u64::from(*made);
        Some(self.worker << (COUNT_BITS + PLACE_BITS) | count << PLACE_BITS | place as u64)
    }
}

/// The place that a number names.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "reduced to the number of places")]
pub(crate) const fn place_of(number: u64) -> u16 {
    (number % WAYS as u64) as u16
}

impl Express {
    /// Notes how a packet went just now; returns the number of its way if there is room for it.
    pub(crate) fn learn_way(&mut self, ends: Ends, exit: Exit) -> Option<u64> {
        let (epoch, Basis { config, secs, .. }) = (self.epoch, self.basis);
        let config = low_half(config);
        let at = ends.place();
        let known = self.ways.places.get(at).copied().flatten();
        let same = known.filter(|way| way.ends == ends && way.config == config);
        let number = match (same, known) {
            (Some(way), _) => way.number,
            // Somebody goes it.
            (None, Some(way)) if way.config == config && way.secs == secs => return None,
            (None, _) => self.ways.number(at)?,
        };
        let place = self.ways.places.get_mut(at)?;
        *place = Some(Way { number, epoch, exit, ends, config, secs });
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::types::UplinkId;

    fn ends(ingress: u16, last: u8) -> Ends {
        let next_hop = IpAddr::from([192, 0, 2, last]);
        Ends { ingress: PortId(ingress), link: Link::Uplink(UplinkId(1)), next_hop }
    }

    fn exit(mac: u8) -> Exit {
        Exit::new(PortId(9), 1500, Mac([mac; 6]), Mac([1; 6]))
    }

    #[test]
    fn a_way_found_again_keeps_its_number_under_one_configuration() {
        let mut express = Express::new(3);
        let number = express.learn_way(ends(1, 1), exit(5)).unwrap();
        express.epoch += 1;
        assert_eq!(express.learn_way(ends(1, 1), exit(6)), Some(number));
        assert_eq!(express.ways.find(number).unwrap().exit, exit(6));
        express.epoch += 1;
        express.basis.config += 1;
        let next = express.learn_way(ends(1, 1), exit(6)).unwrap();
        assert_ne!(next, number, "another configuration may route elsewhere");
        assert!(express.ways.find(number).is_none());
    }

    #[test]
    fn a_way_in_use_keeps_its_place() {
        let mut express = Express::new(0);
        let first = ends(1, 1);
        let meets = |other: &Ends| other.place() == first.place() && *other != first;
        let second = (2..u16::MAX).map(|port| ends(port, 1)).find(meets).unwrap();
        let number = express.learn_way(first, exit(1)).unwrap();
        assert_eq!(express.learn_way(second, exit(2)), None);
        assert_eq!(express.ways.find(number).unwrap().ends, first);
        express.basis.secs += 1;
        let other = express.learn_way(second, exit(2)).unwrap();
        assert_ne!(other, number);
        assert!(express.ways.find(number).is_none());
    }

    #[test]
    fn no_number_is_another_workers() {
        let mut numbers: Vec<u64> = (0..64)
            .map(|worker| Express::new(worker).learn_way(ends(1, 1), exit(1)).unwrap())
            .collect();
        numbers.dedup();
        assert_eq!(numbers.len(), 64);
        assert!(!numbers.contains(&0));
    }

    #[test]
    fn who_has_run_out_of_numbers_goes_the_whole_way() {
        let mut express = Express::new(0);
        express.ways.made[ends(1, 1).place()] = (1 << COUNT_BITS) - 2;
        let last = express.learn_way(ends(1, 1), exit(1)).unwrap();
        assert!(last < 1 << NUMBER_BITS);
        express.basis.config += 1;
        assert_eq!(express.learn_way(ends(1, 1), exit(1)), None);
        assert!(Express::new(255).learn_way(ends(1, 1), exit(1)).unwrap() < 1 << NUMBER_BITS);
        assert_eq!(Express::new(256).learn_way(ends(1, 1), exit(1)), None);
    }
}
