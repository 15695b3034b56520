//! Who asks for neighbors of one link that have never answered, and for which.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rustc_hash::FxHashMap;

use super::Asker;
use crate::packet::types::PortId;

/// The open questions of one link.
#[derive(Debug, Clone, Default)]
pub(super) struct Askers {
    /// Of each port, by number: the oldest first.
    ports: FxHashMap<PortId, BTreeMap<u64, IpAddr>>,
    /// Of all ports.
    questions: u32,
    number: u64,
}

impl Askers {
    /// Questions of ports.
    pub(super) const fn questions(&self) -> u32 {
        self.questions
    }

    /// Notes a question, and says its number; `None`: ports ask for so many already.
    pub(super) fn begin(&mut self, asker: Asker, address: IpAddr, most: u32) -> Option<u64> {
        if let Asker::Port(port) = asker {
            if self.questions >= most {
                return None;
            }
            self.questions += 1;
            self.number += 1;
            self.ports.entry(port).or_default().insert(self.number, address);
        }
        Some(self.number)
    }

    /// A question was answered, or nobody waits for the answer.
    pub(super) fn end(&mut self, asker: Asker, number: u64) {
        let Asker::Port(port) = asker else { return };
        let Some(open) = self.ports.get_mut(&port) else { return };
        if open.remove(&number).is_some() {
            self.questions -= 1;
        }
        if open.is_empty() {
            self.ports.remove(&port);
        }
    }

    /// The oldest question of the port that asks the most, if that still asks as much as `port` when it
    /// has one less and `port` one more.
    pub(super) fn heavier_than(&self, port: PortId) -> Option<IpAddr> {
        let own = self.ports.get(&port).map_or(0, BTreeMap::len);
        let most = self.ports.values().max_by_key(|open| open.len())?;
        (most.len() > own + 1).then(|| most.first_key_value().map(|(_, address)| *address))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_question_of_the_heaviest_goes() {
        let mut askers = Askers::default();
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let [one, two] = [PortId(1), PortId(2)];
        let mut numbers = Vec::new();
        for n in 0..3 {
            numbers.push(askers.begin(Asker::Port(one), address(n), 4).unwrap());
        }
        assert_eq!(askers.heavier_than(two), Some(address(0)));
        assert_eq!(askers.heavier_than(one), None, "its own");
        askers.end(Asker::Port(one), numbers[0]);
        askers.end(Asker::Port(one), numbers[0]);
        assert_eq!((askers.questions(), askers.heavier_than(two)), (2, Some(address(1))));
        askers.begin(Asker::Port(two), address(9), 4).unwrap();
        assert_eq!(askers.heavier_than(two), None, "it would be the other way round then");
        askers.begin(Asker::Port(two), address(8), 4).unwrap();
        assert_eq!(askers.begin(Asker::Port(two), address(7), 4), None);
        assert!(askers.begin(Asker::Engine, address(7), 4).is_some());
        assert_eq!(askers.questions(), 4);
    }
}
