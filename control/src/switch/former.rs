//! The names of networks that are gone: connections end with their network, and those who are told of it read a
//! moment later.

use std::collections::VecDeque;

use dataplane::packet::types::NetworkId;

use crate::name::Name;

/// As many as are remembered. A reader that is so many removed networks behind has missed events long since.
const MOST: usize = 256;

/// The latest ones.
#[derive(Debug, Default)]
pub struct Former(VecDeque<(NetworkId, Name)>);

impl Former {
    /// Remembers the name of a network that goes.
    pub(super) fn note(&mut self, id: NetworkId, name: Name) {
        self.0.truncate(MOST - 1);
        self.0.push_front((id, name));
    }

    /// The oldest first, so that of two with one number the later one counts in a map.
    pub(super) fn names(&self) -> impl Iterator<Item = (NetworkId, Name)> {
        self.0.iter().rev().cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn the_latest_name_of_a_number_counts_and_the_oldest_are_forgotten() {
        let mut former = Former::default();
        for (id, text) in [(1, "a"), (2, "b"), (1, "c")] {
            former.note(NetworkId(id), name(text));
        }
        let names: HashMap<_, _> = former.names().collect();
        assert_eq!(names, HashMap::from([(NetworkId(1), name("c")), (NetworkId(2), name("b"))]));
        for id in 0..1000 {
            former.note(NetworkId(id), name("n"));
        }
        let names: HashMap<_, _> = former.names().collect();
        assert_eq!(names.len(), MOST);
        assert!(names.contains_key(&NetworkId(999)) && !names.contains_key(&NetworkId(743)));
    }
}
