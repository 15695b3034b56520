//! Everything a host has, as text, to compare before with after.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::namespace::{Namespace, names};
use super::{Host, WIRE};

/// What is looked at; each part is text that is equal when nothing changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    parts: Vec<(&'static str, String)>,
}

impl Inventory {
    /// Looks at the host's namespace, the names of namespaces that begin with the host's prefix,
    /// and the daemon's files.
    #[must_use]
    pub fn of(host: &Host) -> Self {
        let mut inventory = Self::of_namespace(&host.ns);
        inventory.parts.push(("namespaces", names(host.prefix()).join("\n")));
        let mut files = String::new();
        list(&host.path(""), &mut files);
        inventory.parts.push(("files", files));
        inventory
    }

    /// Looks at one namespace.
    #[must_use]
    pub fn of_namespace(ns: &Namespace) -> Self {
        let parts = vec![
            ("links", links(ns)),
            ("addresses", ns.ip("-o address show").lines().map(squeeze).collect()),
            ("routes", ns.ip("route show table all").replace(" linkdown", "")),
            ("rules", ns.ip("rule show") + &ns.ip("-6 rule show")),
            ("nft", ns.ok("nft list ruleset")),
            ("qdiscs", ns.ok("tc qdisc show")),
            ("filters", filters(ns)),
            ("listening", listening(ns)),
            ("sysctls", ns.enter(sysctls)),
        ];
        Self { parts }
    }

    /// Asserts that nothing differs.
    ///
    /// # Panics
    /// When something does; names what.
    pub fn assert_same(&self, after: &Self, what: &str) {
        let mut differences = String::new();
        for ((name, before), (_, after)) in self.parts.iter().zip(&after.parts) {
            if before != after {
                let _ = write!(differences, "\n[{name}] was:\n{before}\n[{name}] is:\n{after}");
            }
        }
        assert!(differences.is_empty(), "{what} left traces:{differences}");
    }

    /// One part, for a look of its own.
    ///
    /// # Panics
    /// When there is no such part.
    #[must_use]
    pub fn part(&self, name: &str) -> &str {
        let found = self.parts.iter().find(|(part, _)| *part == name);
        &found.unwrap_or_else(|| panic!("no part {name:?}")).1
    }
}

/// Names, indices, kinds, MACs and flags; not the counters.
fn links(ns: &Namespace) -> String {
    let links: Value = serde_json::from_str(&ns.ip("-j -d link show")).unwrap();
    links.as_array().unwrap().iter().fold(String::new(), |mut text, link| {
        let kind = &link["linkinfo"]["info_kind"];
        // Whether the kernel's link watch has seen a carrier yet is a matter of time.
        let fields = ["ifindex", "ifname", "address", "mtu", "promiscuity", "master", "linkmode"];
        for field in fields {
            let _ = write!(text, "{} ", link[field]);
        }
        let _ = writeln!(text, "{kind}");
        text
    })
}

/// Traffic filters of the wire.
#[must_use]
pub fn filters(ns: &Namespace) -> String {
    let shown = ns.run(&format!("tc filter show dev {WIRE} ingress"));
    // Without the wire there is nothing to show.
    if shown.code == 0 { shown.stdout } else { String::new() }
}

fn listening(ns: &Namespace) -> String {
    let mut lines: Vec<_> = ns.ok("ss -H -l -n -t -u").lines().map(squeeze).collect::<Vec<_>>();
    lines.sort();
    lines.concat()
}

fn sysctls() -> String {
    // The host's own settings that a switch could be tempted to change.
    [
        "ipv4/ip_forward",
        "ipv4/ip_local_reserved_ports",
        "ipv4/ip_local_port_range",
        "ipv4/conf/all/route_localnet",
        "ipv6/conf/all/accept_ra",
        "ipv6/conf/all/disable_ipv6",
        "ipv6/conf/all/forwarding",
        "ipv6/conf/default/disable_ipv6",
    ]
    .iter()
    .map(|name| {
        let path = format!("/proc/sys/net/{name}");
        format!("{name} = {}", fs::read_to_string(path).unwrap_or_default())
    })
    .collect()
}

fn squeeze(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n"
}

fn list(directory: &Path, text: &mut String) {
    let mut entries: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    entries.sort();
    for path in entries {
        let _ = writeln!(text, "{}", path.display());
        if path.is_dir() {
            list(&path, text);
        }
    }
}
