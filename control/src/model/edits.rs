//! What edits mean beyond themselves: the edits that take them back, and the older announcements
//! that they settle.

use super::{Desired, Edit, Intent, Namespace, Network, Sandbox};
use crate::name::Name;

impl Desired {
    /// The edits that bring back what there is now, once `edits` were applied. Numbers given out
    /// stay given: nothing may get them again.
    #[must_use]
    pub fn inverse(&self, edits: &[Edit]) -> Vec<Edit> {
        edits.iter().rev().filter_map(|edit| self.inverse_of(edit)).collect()
    }

    fn inverse_of(&self, edit: &Edit) -> Option<Edit> {
        Some(match edit {
            Edit::Counters(_) => return None,
            Edit::PutNetwork(Network { name, .. }) | Edit::RemoveNetwork(name) => {
                match self.networks.get(name) {
                    Some(network) => Edit::PutNetwork(network.clone()),
                    None => Edit::RemoveNetwork(name.clone()),
                }
            }
            Edit::PutSandbox(Sandbox { name, .. }) | Edit::RemoveSandbox(name) => {
                match self.sandboxes.get(name) {
                    Some(sandbox) => Edit::PutSandbox(sandbox.clone()),
                    None => Edit::RemoveSandbox(name.clone()),
                }
            }
            Edit::PutUplink(super::Uplink { interface, .. }) | Edit::RemoveUplink(interface) => {
                match self.uplinks.get(interface) {
                    Some(uplink) => Edit::PutUplink(uplink.clone()),
                    None => Edit::RemoveUplink(interface.clone()),
                }
            }
            Edit::PutRoute(super::Route { destination, .. }) | Edit::RemoveRoute(destination) => {
                match self.routes.get(destination) {
                    Some(route) => Edit::PutRoute(route.clone()),
                    None => Edit::RemoveRoute(*destination),
                }
            }
            Edit::PutIntent(id, _) | Edit::RemoveIntent(id) => match self.intents.get(id) {
                Some(intent) => Edit::PutIntent(*id, intent.clone()),
                None => Edit::RemoveIntent(*id),
            },
        })
    }

    /// What becomes of older announcements when `edits` record things of the same names: an
    /// announcement must never clear away what a record owns.
    #[must_use]
    pub fn settled_by(&self, edits: &[Edit]) -> Vec<Edit> {
        let spoken_of = |id: &u64| {
            edits.iter().any(
                |edit| matches!(edit, Edit::PutIntent(i, _) | Edit::RemoveIntent(i) if i == id),
            )
        };
        let mut settled = Vec::new();
        for (id, intent) in self.intents.iter().filter(|(id, _)| !spoken_of(id)) {
            let left = edits.iter().try_fold(intent.clone(), |left, edit| match edit {
                Edit::PutNetwork(network) => left.beside_network(network),
                Edit::PutSandbox(sandbox) => left.beside_sandbox(sandbox),
                _ => Some(left),
            });
            match left {
                None => settled.push(Edit::RemoveIntent(*id)),
                Some(left) if left != *intent => settled.push(Edit::PutIntent(*id, left)),
                Some(_) => {}
            }
        }
        settled
    }

    /// What an announcement may still clear away: nothing that a record owns.
    #[must_use]
    pub fn unowned(&self, intent: Intent) -> Option<Intent> {
        let left =
            self.networks.values().try_fold(intent, |left, network| left.beside_network(network));
        self.sandboxes.values().try_fold(left?, |left, sandbox| left.beside_sandbox(sandbox))
    }
}

impl Intent {
    /// The announcement without what belongs to `network`; `None`: nothing is left of it.
    fn beside_network(self, network: &Network) -> Option<Self> {
        match &self {
            Self::HostDevice { ifname } if *ifname == network.host_device() => None,
            _ => Some(self),
        }
    }

    /// The announcement without what belongs to `sandbox`; `None`: nothing is left of it.
    fn beside_sandbox(self, sandbox: &Sandbox) -> Option<Self> {
        match self {
            Self::HostDevice { .. } => Some(self),
            Self::Endpoints { name, namespace, ifnames, host_ends } => {
                let host_ends = beside_ends(host_ends, sandbox);
                if !is_same(&name, Some(&namespace), sandbox) {
                    return Some(Self::Endpoints { name, namespace, ifnames, host_ends });
                }
                let ifnames = beside_endpoints(ifnames, sandbox);
                Self::endpoints(name, namespace, ifnames, host_ends)
            }
            Self::Sandbox { name, namespace, ifnames, host_ends } => {
                let host_ends = beside_ends(host_ends, sandbox);
                if !is_same(&name, namespace.as_ref(), sandbox) {
                    return Some(Self::Sandbox { name, namespace, ifnames, host_ends });
                }
                // The namespace is the record's now; a device of before may still lie in it.
                let ifnames = beside_endpoints(ifnames, sandbox);
                Self::endpoints(name, sandbox.namespace.clone(), ifnames, host_ends)
            }
        }
    }

    /// An announcement of these; `None`: there are none.
    fn endpoints(
        name: Name,
        namespace: Namespace,
        ifnames: Vec<String>,
        host_ends: Vec<String>,
    ) -> Option<Self> {
        let some = !ifnames.is_empty() || !host_ends.is_empty();
        some.then_some(Self::Endpoints { name, namespace, ifnames, host_ends })
    }
}

/// Whether an announcement means the namespace of the record. A name that we make a namespace by is
/// one namespace at a time; else the inode tells, by whatever path.
fn is_same(name: &Name, announced: Option<&Namespace>, sandbox: &Sandbox) -> bool {
    let by_name = !matches!(announced, Some(Namespace::Adopted { .. }))
        && matches!(sandbox.namespace, Namespace::Made { .. })
        && *name == sandbox.name;
    let inode = announced.and_then(Namespace::inode);
    by_name || inode.is_some() && inode == sandbox.namespace.inode()
}

fn beside_endpoints(mut ifnames: Vec<String>, sandbox: &Sandbox) -> Vec<String> {
    ifnames.retain(|ifname| sandbox.endpoints.iter().all(|endpoint| endpoint.ifname != *ifname));
    ifnames
}

/// Names of our ends are random: one is the record's wherever its namespace is.
fn beside_ends(mut host_ends: Vec<String>, sandbox: &Sandbox) -> Vec<String> {
    host_ends.retain(|end| sandbox.endpoints.iter().all(|e| e.wire.host_end() != Some(end)));
    host_ends
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Counters, Endpoint, Wire};

    fn sandbox(name: &str, namespace: Namespace, ifnames: &[&str]) -> Sandbox {
        let endpoint = |ifname: &&str| Endpoint {
            network: "app".parse().unwrap(),
            ifname: (*ifname).to_owned(),
            mac: "02:42:0a:00:00:02".parse().unwrap(),
            ipv4: [10, 0, 0, 2].into(),
            prefix_len: 24,
            ipv6: None,
            aliases: Vec::new(),
            wire: Wire::Tap,
            options: Default::default(),
        };
        Sandbox {
            name: name.parse().unwrap(),
            namespace,
            endpoints: ifnames.iter().map(endpoint).collect(),
            publishes: Vec::new(),
            created: 0,
        }
    }

    fn adopted(inode: u64) -> Namespace {
        Namespace::Adopted { path: format!("/proc/{inode}/ns/net").into(), inode }
    }

    #[test]
    fn edits_can_be_taken_back() {
        let mut desired = Desired::default();
        let made = |inode| Namespace::Made { inode };
        desired.apply(Edit::PutSandbox(sandbox("stays", made(1), &["eth0"])));
        desired.apply(Edit::PutSandbox(sandbox("goes", made(2), &[])));
        desired.apply(Edit::PutIntent(3, Intent::HostDevice { ifname: "vsw-1".to_owned() }));
        let before = desired.clone();
        let edits = vec![
            Edit::Counters(Counters { intent: 9, ..Counters::default() }),
            Edit::PutSandbox(sandbox("stays", made(1), &["eth0", "eth1"])),
            Edit::RemoveSandbox("goes".parse().unwrap()),
            Edit::PutSandbox(sandbox("comes", made(4), &[])),
            Edit::RemoveIntent(3),
            Edit::PutIntent(9, Intent::HostDevice { ifname: "vsw-2".to_owned() }),
        ];
        let inverse = desired.inverse(&edits);
        for edit in edits {
            desired.apply(edit);
        }
        assert_ne!(desired, before);
        for edit in inverse {
            desired.apply(edit);
        }
        assert_eq!(desired.counters.intent, 9);
        assert_eq!(Desired { counters: before.counters, ..desired }, before);
    }

    /// What it is, what was announced, what is recorded, and what is left of the announcement.
    type Case = (&'static str, Intent, Sandbox, Option<Intent>);

    #[test]
    fn an_announcement_does_not_touch_what_is_recorded_later() {
        let names = |ifnames: &[&str]| ifnames.iter().map(|name| (*name).to_owned()).collect();
        let devices = |name: &str, namespace, ifnames: &[&str]| Intent::Endpoints {
            name: name.parse().unwrap(),
            namespace,
            ifnames: names(ifnames),
            host_ends: Vec::new(),
        };
        let whole = |name: &str, namespace, ifnames: &[&str]| Intent::Sandbox {
            name: name.parse().unwrap(),
            namespace,
            ifnames: names(ifnames),
            host_ends: Vec::new(),
        };
        let made = |inode| Namespace::Made { inode };
        let table: Vec<Case> = vec![
            (
                "a device that was made again",
                devices("web", made(1), &["eth1"]),
                sandbox("web", made(1), &["eth0", "eth1"]),
                None,
            ),
            (
                "one of two",
                devices("web", made(1), &["eth1", "eth2"]),
                sandbox("web", made(1), &["eth1"]),
                Some(devices("web", made(1), &["eth2"])),
            ),
            (
                "another device",
                devices("web", made(1), &["eth1"]),
                sandbox("web", made(1), &["eth0"]),
                Some(devices("web", made(1), &["eth1"])),
            ),
            (
                "another namespace",
                devices("web", adopted(1), &["eth0"]),
                sandbox("web", adopted(2), &["eth0"]),
                Some(devices("web", adopted(1), &["eth0"])),
            ),
            (
                "a namespace that another sandbox is in now",
                devices("web", adopted(1), &["eth0"]),
                sandbox("db", adopted(1), &["eth0"]),
                None,
            ),
            (
                "a sandbox that was made again",
                whole("web", None, &["eth0"]),
                sandbox("web", made(7), &["eth0"]),
                None,
            ),
            (
                "a sandbox in the namespace that should have gone",
                whole("web", Some(made(7)), &["eth0", "eth1"]),
                sandbox("db", adopted(7), &["eth1"]),
                Some(devices("web", adopted(7), &["eth0"])),
            ),
            (
                "another sandbox",
                whole("web", Some(made(7)), &["eth0"]),
                sandbox("db", made(8), &["eth0"]),
                Some(whole("web", Some(made(7)), &["eth0"])),
            ),
        ];
        for (what, intent, record, left) in table {
            let mut desired = Desired::default();
            desired.apply(Edit::PutIntent(5, intent.clone()));
            let edits = [Edit::PutSandbox(record.clone())];
            let expected = match &left {
                None => vec![Edit::RemoveIntent(5)],
                Some(left) if *left == intent => Vec::new(),
                Some(left) => vec![Edit::PutIntent(5, left.clone())],
            };
            assert_eq!(desired.settled_by(&edits), expected, "{what}");
            // Records of before that was so are no worse off.
            desired.apply(Edit::PutSandbox(record));
            assert_eq!(desired.unowned(intent.clone()), left, "{what}");
        }
    }

    #[test]
    fn what_the_edits_announce_themselves_stands() {
        let mut desired = Desired::default();
        let record = sandbox("web", Namespace::Made { inode: 1 }, &["eth0"]);
        let intent = |ifname: &str| Intent::Endpoints {
            name: record.name.clone(),
            namespace: record.namespace.clone(),
            ifnames: vec![ifname.to_owned()],
            host_ends: Vec::new(),
        };
        desired.apply(Edit::PutIntent(1, intent("eth0")));
        let edits = [
            Edit::RemoveIntent(1),
            Edit::PutIntent(2, intent("eth0")),
            Edit::PutSandbox(record.clone()),
        ];
        assert_eq!(desired.settled_by(&edits), Vec::new());
    }

    #[test]
    fn an_announcement_keeps_the_ends_that_no_record_has() {
        let mut record = sandbox("web", adopted(1), &["eth0"]);
        record.endpoints[0].wire = Wire::Veth { host_end: "vswe-2".to_owned() };
        let announced = |namespace: Namespace, ifnames: &[&str], ends: &[&str]| Intent::Endpoints {
            name: record.name.clone(),
            namespace,
            ifnames: ifnames.iter().map(|name| (*name).to_owned()).collect(),
            host_ends: ends.iter().map(|name| (*name).to_owned()).collect(),
        };
        let mut desired = Desired::default();
        desired.apply(Edit::PutSandbox(record.clone()));
        let same = announced(adopted(1), &["eth0"], &["vswe-1", "vswe-2"]);
        assert_eq!(desired.unowned(same), Some(announced(adopted(1), &[], &["vswe-1"])));
        assert_eq!(desired.unowned(announced(adopted(1), &["eth0"], &["vswe-2"])), None);
        let other = announced(adopted(2), &["eth0"], &["vswe-1", "vswe-2"]);
        assert_eq!(desired.unowned(other), Some(announced(adopted(2), &["eth0"], &["vswe-1"])));
    }

    #[test]
    fn announcements_of_before_ends_were_kept_are_read() {
        let namespace = serde_json::to_value(adopted(1)).unwrap();
        for kind in ["endpoints", "sandbox"] {
            let older = serde_json::json!({
                kind: { "name": "web", "namespace": namespace, "ifnames": ["eth0"] }
            });
            let read: Intent = serde_json::from_value(older).unwrap();
            let (Intent::Endpoints { ifnames, host_ends, .. }
            | Intent::Sandbox { ifnames, host_ends, .. }) = read
            else {
                panic!("{kind}: {read:?}");
            };
            assert_eq!((ifnames.len(), host_ends.len()), (1, 0), "{kind}");
        }
    }
}
