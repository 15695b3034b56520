//! Which VLANs a port is in, and how their frames are on its wire.
//!
//! Inside the engine a frame is in one VLAN: that of its outermost tag, or the one that untagged frames of
//! its port are in. Zero is the VLAN of untagged frames where nothing else is said; it has no tag.
//! The gateway and the host's leg are untagged and in whatever VLAN untagged frames of a port are in
//! (ADR 22).

/// The highest VLAN: 4095 is reserved (IEEE 802.1Q-2018 table 9-2).
pub const MAX_VLAN: u16 = 4094;

/// In place of a VLAN: the frame is from the gateway or the host, and for every port that takes untagged
/// frames.
pub(crate) const FROM_GATEWAY: u16 = 0x1000;

/// The VLANs of a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Vlans {
    /// All of them; tags are carried as they are.
    #[default]
    All,
    /// This one, untagged. No tagged frame passes.
    Access(u16),
    /// Those of a set, tagged, and perhaps one untagged, which is not in the set.
    Trunk {
        /// The VLAN of untagged frames; `None`: there are none.
        native: Option<u16>,
        /// The others.
        tagged: Box<VlanSet>,
    },
}

impl Vlans {
    /// The VLAN of untagged frames.
    #[must_use]
    pub const fn untagged(&self) -> Option<u16> {
        match self {
            Self::All => Some(0),
            Self::Access(vlan) => Some(*vlan),
            Self::Trunk { native, .. } => *native,
        }
    }

    /// Whether a VLAN is one that the port was given. One without options may be in all by their tags, but was
    /// given none but that of untagged frames.
    #[must_use]
    pub fn are_given(&self, vlan: u16) -> bool {
        self.untagged() == Some(vlan)
            || matches!(self, Self::Trunk { tagged, .. } if tagged.contains(vlan))
    }

    /// The VLAN of a frame that came with this tag, or without. `None`: it may not come so.
    #[must_use]
    pub fn admit(&self, tag: Option<u16>) -> Option<u16> {
        match (self, tag) {
            (_, None) => self.untagged(),
            (Self::All, Some(vlan)) => Some(vlan),
            (Self::Access(_), Some(_)) => None,
            (Self::Trunk { tagged, .. }, Some(vlan)) => tagged.contains(vlan).then_some(vlan),
        }
    }

    /// Whether a frame of this VLAN leaves with a tag. `None`: it does not leave.
    #[must_use]
    pub fn leaves_tagged(&self, vlan: u16) -> Option<bool> {
        match self {
            _ if vlan == FROM_GATEWAY => self.untagged().map(|_| false),
            Self::All => Some(vlan != 0),
            _ if self.untagged() == Some(vlan) => Some(false),
            Self::Access(_) => None,
            Self::Trunk { tagged, .. } => tagged.contains(vlan).then_some(true),
        }
    }
}

/// Some VLANs out of 1 to [`MAX_VLAN`].
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet([u64; 64]);

impl Default for VlanSet {
    fn default() -> Self {
        Self([0; 64])
    }
}

impl VlanSet {
    /// Adds a VLAN. False: it is none that a tag can name.
    pub fn insert(&mut self, vlan: u16) -> bool {
        let names_one = (1..=MAX_VLAN).contains(&vlan);
        if names_one && let Some(word) = self.0.get_mut(usize::from(vlan >> 6)) {
            *word |= 1 << (vlan & 63);
        }
        names_one
    }

    /// Whether it has this one.
    #[must_use]
    pub fn contains(&self, vlan: u16) -> bool {
        self.0.get(usize::from(vlan >> 6)).is_some_and(|word| word >> (vlan & 63) & 1 != 0)
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        (1..=MAX_VLAN).filter(|vlan| self.contains(*vlan))
    }
}

impl FromIterator<u16> for VlanSet {
    fn from_iter<I: IntoIterator<Item = u16>>(vlans: I) -> Self {
        let mut set = Self::default();
        for vlan in vlans {
            set.insert(vlan);
        }
        set
    }
}

impl std::fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trunk(native: Option<u16>, tagged: &[u16]) -> Vlans {
        Vlans::Trunk { native, tagged: Box::new(tagged.iter().copied().collect()) }
    }

    #[test]
    fn a_set_has_what_a_tag_can_name() {
        let mut set = VlanSet::default();
        for (vlan, can) in [(0, false), (1, true), (63, true), (64, true), (4094, true)] {
            assert_eq!(set.insert(vlan), can, "{vlan}");
        }
        assert!(!set.insert(4095) && !set.insert(u16::MAX));
        assert_eq!(set.iter().collect::<Vec<_>>(), [1, 63, 64, 4094]);
        assert!(!set.contains(0) && !set.contains(4095) && !set.contains(FROM_GATEWAY));
    }

    #[test]
    fn a_trunk_was_given_what_it_carries() {
        // VLAN 0, 5, 10, 20.
        for (port, given) in [
            (Vlans::All, [true, false, false, false]),
            (Vlans::Access(10), [false, false, true, false]),
            (trunk(None, &[10, 20]), [false, false, true, true]),
            (trunk(Some(5), &[10]), [false, true, true, false]),
        ] {
            assert_eq!([0, 5, 10, 20].map(|vlan| port.are_given(vlan)), given, "{port:?}");
        }
    }

    #[test]
    fn frames_come_and_leave_by_membership() {
        // (port, [untagged, tag 5, tag 10, tag 20] admitted as, [VLAN 0, 5, 10, 20, from the gateway] leaves)
        type Row = (Vlans, [Option<u16>; 4], [Option<bool>; 5]);
        let (tag, plain) = (Some(true), Some(false));
        let table: [Row; 5] = [
            (Vlans::All, [Some(0), Some(5), Some(10), Some(20)], [plain, tag, tag, tag, plain]),
            (Vlans::Access(10), [Some(10), None, None, None], [None, None, plain, None, plain]),
            (Vlans::Access(0), [Some(0), None, None, None], [plain, None, None, None, plain]),
            (
                trunk(None, &[10, 20]),
                [None, None, Some(10), Some(20)],
                [None, None, tag, tag, None],
            ),
            (
                trunk(Some(5), &[10, 20]),
                [Some(5), None, Some(10), Some(20)],
                [None, plain, tag, tag, plain],
            ),
        ];
        for (port, comes, leaves) in table {
            let came = [None, Some(5), Some(10), Some(20)].map(|tag| port.admit(tag));
            assert_eq!(came, comes, "{port:?}");
            let left = [0, 5, 10, 20, FROM_GATEWAY].map(|vlan| port.leaves_tagged(vlan));
            assert_eq!(left, leaves, "{port:?}");
        }
    }
}
