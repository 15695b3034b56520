//! What the maps hold: which address has which slot, and the ports of each.
//!
//! An address keeps its slot for as long as it is wanted, wherever it stands among the others. If it lost it for
//! a moment, the host's stack would get frames of what runs there, and end it with a RST or an ICMP error.

use std::io;
use std::net::IpAddr;

use super::{PortBitmap, PortsByProto, SLOTS, SteerProto, WORD_COUNT, bitmap_count};

/// Where the programs look things up.
pub(super) trait Entries {
    /// From now on the bitmaps of `slot` decide about frames to `address`.
    fn put(&mut self, address: IpAddr, slot: u32) -> io::Result<()>;

    /// From now on frames to `address` are the host's.
    fn remove(&mut self, address: IpAddr) -> io::Result<()>;

    /// Sets 64 ports at once: word `index` of all bitmaps, slot by slot and protocol by protocol.
    fn set_word(&mut self, index: u32, ports: u64) -> io::Result<()>;
}

/// The slots, and where they are written to.
#[derive(Debug)]
pub(super) struct Slots<E> {
    entries: E,
    slots: Vec<Slot>,
}

/// What is written for a slot.
#[derive(Debug, Clone, Default)]
struct Slot {
    address: Option<IpAddr>,
    bitmaps: [PortBitmap; bitmap_count()],
}

impl<E: Entries> Slots<E> {
    /// None has an address.
    pub(super) fn new(entries: E) -> Self {
        Self { entries, slots: vec![Slot::default(); SLOTS] }
    }

    /// As [`super::Steering::follow`].
    pub(super) fn follow(
        &mut self,
        addresses: &[IpAddr],
        ports: impl Fn(IpAddr) -> PortsByProto,
    ) -> io::Result<()> {
        for slot in 0..SLOTS {
            let address = self.slots.get(slot).and_then(|slot| slot.address);
            if address.is_some_and(|address| !addresses.contains(&address)) {
                self.set_address(slot, None)?;
            }
        }
        for address in addresses {
            let slot = self.slot_of(Some(*address)).or_else(|| self.slot_of(None));
            let slot = slot.ok_or(io::ErrorKind::InvalidInput)?;
            // Ports before the address: a slot without one matches nothing.
            for (proto, bitmap) in ports(*address) {
                self.set_ports(slot, proto, &bitmap)?;
            }
            self.set_address(slot, Some(*address))?;
        }
        Ok(())
    }

    /// The first slot that has this address, or none.
    fn slot_of(&self, address: Option<IpAddr>) -> Option<usize> {
        self.slots.iter().position(|slot| slot.address == address)
    }

    /// Gives `slot` an address, or takes it away. The ports of a slot stay with it; those of a
    /// slot that loses its address are cleared.
    ///
    /// # Errors
    /// `InvalidInput` when there is no such slot (see [`SLOTS`]), `AlreadyExists` when
    /// another slot has the address, or what the kernel says.
    pub(super) fn set_address(&mut self, slot: usize, address: Option<IpAddr>) -> io::Result<()> {
        let taken = |(index, other): (usize, &Slot)| {
            index != slot && address.is_some() && other.address == address
        };
        if self.slots.iter().enumerate().any(taken) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let number = u32::try_from(slot).map_err(|_| io::ErrorKind::InvalidInput)?;
        let entry = self.slots.get_mut(slot).ok_or(io::ErrorKind::InvalidInput)?;
        if entry.address == address {
            return Ok(());
        }
        if let Some(old) = entry.address {
            self.entries.remove(old)?;
            entry.address = None;
        }
        if let Some(new) = address {
            self.entries.put(new, number)?;
            entry.address = Some(new);
            return Ok(());
        }
        for proto in SteerProto::ALL {
            self.set_ports(slot, proto, &PortBitmap::new())?;
        }
        Ok(())
    }

    /// Replaces the ports of `slot`, 64 at a time. Costs a syscall for each 64 ports among which
    /// something changes; the others are not touched.
    ///
    /// # Errors
    /// `InvalidInput` when there is no such slot, or what the kernel says.
    pub(super) fn set_ports(
        &mut self,
        slot: usize,
        proto: SteerProto,
        ports: &PortBitmap,
    ) -> io::Result<()> {
        let proto = proto as usize;
        let bitmap = self
            .slots
            .get_mut(slot)
            .and_then(|entry| entry.bitmaps.get_mut(proto))
            .ok_or(io::ErrorKind::InvalidInput)?;
        let first = (slot * bitmap_count() + proto) * WORD_COUNT;
        for (index, (have, want)) in bitmap.0.iter_mut().zip(&ports.0).enumerate() {
            if have != want {
                let key = u32::try_from(first + index).map_err(|_| io::ErrorKind::InvalidInput)?;
                self.entries.set_word(key, *want)?;
                *have = *want;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// Words of one slot.
    const STRIDE: u32 = 4 * 1024;
    const NOTHING: [Done; 0] = [];

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Done {
        Put(IpAddr, u32),
        Remove(IpAddr),
        Word(u32, u64),
    }

    /// The maps, and what was done to them since somebody asked.
    #[derive(Debug, Default)]
    struct Recorder {
        addresses: BTreeMap<IpAddr, u32>,
        words: BTreeMap<u32, u64>,
        done: Vec<Done>,
    }

    impl Entries for Recorder {
        fn put(&mut self, address: IpAddr, slot: u32) -> io::Result<()> {
            self.done.push(Done::Put(address, slot));
            self.addresses.insert(address, slot);
            Ok(())
        }

        fn remove(&mut self, address: IpAddr) -> io::Result<()> {
            self.done.push(Done::Remove(address));
            self.addresses.remove(&address);
            Ok(())
        }

        fn set_word(&mut self, index: u32, ports: u64) -> io::Result<()> {
            self.done.push(Done::Word(index, ports));
            self.words.insert(index, ports);
            Ok(())
        }
    }

    impl Recorder {
        /// What was done to an address that has this slot.
        fn touched(done: &[Done], address: IpAddr, slot: u32) -> Vec<Done> {
            let touches = |done: &Done| match *done {
                Done::Put(other, to) => other == address || to == slot,
                Done::Remove(other) => other == address,
                Done::Word(index, _) => index / STRIDE == slot,
            };
            done.iter().copied().filter(touches).collect()
        }

        fn is_ours(&self, address: IpAddr, proto: SteerProto, port: u16) -> bool {
            let Some(slot) = self.addresses.get(&address) else { return false };
            let index = slot * STRIDE + proto as u32 * 1024 + u32::from(port >> 6);
            self.words.get(&index).is_some_and(|word| word >> (port & 63) & 1 != 0)
        }
    }

    fn slots() -> Slots<Recorder> {
        Slots::new(Recorder::default())
    }

    /// Of one family and the other.
    fn ip(number: u8) -> IpAddr {
        match number % 2 {
            0 => Ipv4Addr::new(192, 0, 2, number).into(),
            _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
        }
    }

    fn ranges(ranges: &[(u16, u16)]) -> PortsByProto {
        SteerProto::ALL.map(|proto| {
            let mut bitmap = PortBitmap::new();
            for (first, last) in ranges {
                bitmap.insert_range(*first, *last);
            }
            (proto, bitmap)
        })
    }

    fn nat(_: IpAddr) -> PortsByProto {
        ranges(&[(20_000, 29_999)])
    }

    #[test]
    fn an_address_that_stays_is_never_touched() {
        let [a, b, c, d] = [2, 3, 4, 5].map(ip);
        let mut slots = slots();
        slots.follow(&[a, b, c], nat).unwrap();
        let slot = |slots: &Slots<Recorder>, address: IpAddr| slots.entries.addresses[&address];
        let (of_a, of_b, of_c) = (slot(&slots, a), slot(&slots, b), slot(&slots, c));

        // Another order, or one of them named twice, is nothing to do.
        slots.entries.done.clear();
        for order in [[c, a, b], [b, c, a], [a, b, c]] {
            slots.follow(&order, nat).unwrap();
            slots.follow(&[order[0], order[0], order[1], order[2]], nat).unwrap();
        }
        assert_eq!(slots.entries.done, NOTHING);

        // One goes, one comes, and those that stay change places.
        slots.follow(&[c, d, a], nat).unwrap();
        let done = std::mem::take(&mut slots.entries.done);
        for (address, slot) in [(a, of_a), (c, of_c)] {
            assert_eq!(Recorder::touched(&done, address, slot), NOTHING);
        }
        // First it has no address, then the ports change, then it has one.
        assert_eq!(
            (done.first(), done.last()),
            (Some(&Done::Remove(b)), Some(&Done::Put(d, of_b)))
        );
        let between = &done[1..done.len() - 1];
        let of_the_slot =
            |done: &Done| matches!(done, Done::Word(index, _) if index / STRIDE == of_b);
        assert!(!between.is_empty() && between.iter().all(of_the_slot));

        // One that only comes, and one that only goes.
        slots.follow(&[b, c, d, a], nat).unwrap();
        slots.follow(&[a, b, c], nat).unwrap();
        let done = std::mem::take(&mut slots.entries.done);
        for (address, slot) in [(a, of_a), (c, of_c)] {
            assert_eq!(Recorder::touched(&done, address, slot), NOTHING);
        }
        assert_eq!(
            slots.entries.addresses,
            BTreeMap::from([(a, of_a), (b, slot(&slots, b)), (c, of_c)])
        );
    }

    #[test]
    fn ports_change_by_the_words_that_differ() {
        let [a, b] = [2, 3].map(ip);
        let mut slots = slots();
        slots.follow(&[a, b], nat).unwrap();
        slots.entries.done.clear();
        // At one address, of all protocols.
        let published = |address: IpAddr| {
            if address == b { ranges(&[(80, 80), (20_000, 29_999)]) } else { nat(address) }
        };
        slots.follow(&[b, a], published).unwrap();
        let slot = slots.entries.addresses[&b];
        let word = |proto: u32| Done::Word(slot * STRIDE + proto * 1024 + 80 / 64, 1 << (80 % 64));
        assert_eq!(slots.entries.done, [0, 1, 2, 3].map(word));
    }

    #[test]
    fn addresses_that_come_and_go_have_their_ports_and_those_that_stay_their_slots() {
        let mut slots = slots();
        let own = |number: u8| 1000 + u16::from(number) * 500;
        let ports = |address: IpAddr| {
            let number = (0..40).find(|number| ip(*number) == address).unwrap();
            ranges(&[(own(number), own(number) + 499)])
        };
        for round in 0..60u8 {
            // 24 of 40: each time eight go and eight come.
            let wants = |number: &u8| (number + round) % 5 > 1;
            let numbers: Vec<u8> = (0..40).filter(wants).collect();
            let mut addresses: Vec<IpAddr> = numbers.iter().copied().map(ip).collect();
            addresses.rotate_left(usize::from(round) % numbers.len());
            let before = slots.entries.addresses.clone();
            slots.entries.done.clear();
            slots.follow(&addresses, ports).unwrap();
            for (address, slot) in before.iter().filter(|(address, _)| addresses.contains(address))
            {
                let touched = Recorder::touched(&slots.entries.done, *address, *slot);
                assert_eq!(touched, NOTHING, "{address} in round {round}");
            }
            for number in 0..40 {
                for port in [own(number) - 1, own(number), own(number) + 499] {
                    let expected = numbers.contains(&number) && port >= own(number);
                    let is_ours = slots.entries.is_ours(ip(number), SteerProto::Sctp, port);
                    assert_eq!(is_ours, expected, "{} port {port} in round {round}", ip(number));
                }
            }
        }
    }

    #[test]
    fn there_are_as_many_as_slots() {
        let mut slots = slots();
        let all: Vec<IpAddr> = (0..33).map(ip).collect();
        slots.follow(&all[..SLOTS], nat).unwrap();
        assert_eq!(slots.entries.addresses.len(), SLOTS);
        let error = slots.follow(&all, nat).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        // All others, in the same slots.
        let others: Vec<IpAddr> = (100..132).map(ip).collect();
        slots.follow(&others, nat).unwrap();
        assert!(others.iter().all(|it| slots.entries.is_ours(*it, SteerProto::Tcp, 20_000)));
        assert_eq!(slots.entries.addresses.len(), SLOTS);
    }
}
