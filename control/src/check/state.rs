//! Whole states, as they are imported.

use std::collections::HashSet;
use std::fmt::Display;
use std::hash::Hash;

use super::{interface, network, policy, publish, route, unicast, unicast_mac, uplink, vlan};
use crate::api::types::{EndpointState, FdbState, SandboxState, State};
use crate::error::{Error, Result};
use crate::model::is_unswitched;
use crate::options::EndpointOptions;

/// Checks a state by itself.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] naming the thing.
pub fn state(state: &State) -> Result<()> {
    once("network", state.networks.iter().map(|network| &network.name))?;
    state.networks.iter().try_for_each(|request| network(request).map(drop))?;
    state.policy.iter().try_for_each(|rule| match rule.position {
        None => policy(rule),
        Some(_) => Err(Error::invalid(format!(
            "policy of network {:?}: rules stand in the document's order; leave \"position\" out",
            rule.network
        ))),
    })?;
    once("sandbox", state.sandboxes.iter().map(|sandbox| &sandbox.name))?;
    state.sandboxes.iter().try_for_each(|request| {
        let context = |error: Error| error.context(format_args!("sandbox {:?}", request.name));
        sandbox(request).map_err(context)
    })?;
    once("uplink", state.uplinks.iter().map(|uplink| &uplink.interface))?;
    state.uplinks.iter().try_for_each(uplink)?;
    once("route", state.routes.iter().map(|route| route.destination))?;
    state.routes.iter().try_for_each(route)?;
    once("fdb", state.fdb.iter().map(Place))?;
    state.fdb.iter().try_for_each(|entry| {
        let checked = unicast_mac(entry.mac).and_then(|()| vlan(entry.vlan));
        checked.map_err(|error| error.context(format_args!("fdb {}", entry.mac)))
    })
}

/// Nothing is there twice.
fn once<T: Copy + Eq + Hash + Display>(
    what: &str,
    mut names: impl Iterator<Item = T>,
) -> Result<()> {
    let mut seen = HashSet::new();
    match names.find(|name| !seen.insert(*name)) {
        Some(twice) => {
            Err(Error::invalid(format!("{what} {twice}: is there twice; leave one out")))
        }
        None => Ok(()),
    }
}

/// What names an FDB entry.
#[derive(Clone, Copy)]
struct Place<'a>(&'a FdbState);

impl Place<'_> {
    const fn key(&self) -> (&crate::name::Name, u16, crate::api::types::MacAddr) {
        (&self.0.network, self.0.vlan, self.0.mac)
    }
}

impl PartialEq for Place<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Place<'_> {}

impl Hash for Place<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in network {:?}, VLAN {}", self.0.mac, self.0.network, self.0.vlan)
    }
}

fn sandbox(request: &SandboxState) -> Result<()> {
    if request.host && request.netns.is_some() {
        return Err(Error::invalid(
            "\"host\" and \"netns\" both say which namespace; leave one of them out",
        ));
    }
    if request.endpoints.is_empty() || request.host {
        let given = [
            ("endpoints", !request.endpoints.is_empty()),
            ("publish", !request.publish.is_empty()),
        ];
        if let Some((field, _)) = given.iter().find(|(_, given)| *given) {
            return Err(Error::invalid(format!(
                "{field:?} needs an interface of its own, which it has not; leave it out"
            )));
        }
    }
    once("network", request.endpoints.iter().map(|endpoint| &endpoint.network))?;
    once("interface", request.endpoints.iter().filter_map(|e| e.ifname.as_deref()))?;
    request.endpoints.iter().try_for_each(endpoint)?;
    publish(&request.publish)
}

fn endpoint(request: &EndpointState) -> Result<()> {
    if is_unswitched(&request.network) {
        return Err(Error::invalid(format!(
            "network {:?} gives no interface; leave the endpoint out",
            request.network
        )));
    }
    if let Some(name) = &request.ifname {
        let checked = match name.as_str() {
            "lo" => Err(Error::invalid("is the loopback's name")),
            name => interface(name),
        };
        checked.map_err(|error| error.context(format_args!("interface {name:?}")))?;
    }
    request.addresses().try_for_each(unicast)?;
    request.mac.map_or(Ok(()), unicast_mac)?;
    EndpointOptions::parse(&request.options).map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(value: serde_json::Value) -> std::result::Result<(), String> {
        let request: State = serde_json::from_value(value).unwrap();
        state(&request).map_err(|error| {
            assert_eq!(error.exit_code(), 2, "{}", error.message);
            error.message
        })
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let mac = "02:00:00:00:00:05";
        for (field, value, words) in [
            ("networks", json!([{"name": "a"}, {"name": "a"}]), "network a: is there twice"),
            ("networks", json!([{"name": "a", "driver": "overlay"}]), "network \"a\": driver"),
            ("networks", json!([{"name": "host", "driver": "host"}]), "exists always"),
            ("sandboxes", json!([{"name": "s"}, {"name": "s"}]), "sandbox s: is there twice"),
            ("sandboxes", json!([{"name": "s", "host": true, "netns": "/x"}]), "both say"),
            (
                "sandboxes",
                json!([{"name": "s", "host": true, "endpoints": [{"network": "a"}]}]),
                "sandbox \"s\": \"endpoints\" needs",
            ),
            ("sandboxes", json!([{"name": "s", "publish": ["80"]}]), "\"publish\" needs"),
            (
                "sandboxes",
                json!([{"name": "s", "endpoints": [{"network": "a"}, {"network": "a"}]}]),
                "sandbox \"s\": network a: is there twice",
            ),
            (
                "sandboxes",
                json!([{"name": "s", "endpoints": [
                    {"network": "a", "ifname": "eth0"}, {"network": "b", "ifname": "eth0"}]}]),
                "interface eth0: is there twice",
            ),
            (
                "sandboxes",
                json!([{"name": "s", "endpoints": [{"network": "a", "ifname": "lo"}]}]),
                "interface \"lo\": is the loopback's name",
            ),
            (
                "sandboxes",
                json!([{"name": "s", "endpoints": [{"network": "a", "ifname": "a/b"}]}]),
                "interface \"a/b\": not an interface name",
            ),
            (
                "sandboxes",
                json!([{"name": "s", "endpoints": [{"network": "none"}]}]),
                "network \"none\" gives no interface",
            ),
            (
                "sandboxes",
                json!([{"name": "s", "endpoints": [{"network": "a", "ip": "127.0.0.1"}]}]),
                "address 127.0.0.1 cannot be a host's",
            ),
            (
                "sandboxes",
                json!([{"name": "s", "endpoints": [{"network": "a", "ip6": "ff02::1"}]}]),
                "address ff02::1 cannot be a host's",
            ),
            (
                "sandboxes",
                json!([{"name": "s", "endpoints": [{"network": "a", "mac": "01:00:00:00:00:01"}]}]),
                "cannot be an interface's",
            ),
            (
                "sandboxes",
                json!([{"name": "s", "endpoints": [{"network": "a", "options": {"x": "y"}}]}]),
                "option \"x\"",
            ),
            (
                "sandboxes",
                json!([{"name": "s", "endpoints": [{"network": "a"}], "publish": ["80:80", "80:81"]}]),
                "overlaps publish",
            ),
            (
                "uplinks",
                json!([{"interface": "e"}, {"interface": "e"}]),
                "uplink e: is there twice",
            ),
            ("uplinks", json!([{"interface": "e", "mode": "dedicated"}]), "needs an address"),
            (
                "routes",
                json!([{"destination": "10.0.0.0/8", "via": "192.0.2.1"},
                    {"destination": "10.0.0.0/8", "via": "192.0.2.2"}]),
                "route 10.0.0.0/8: is there twice",
            ),
            ("routes", json!([{"destination": "10.0.0.1/8", "via": "192.0.2.1"}]), "host bits"),
            (
                "fdb",
                json!([{"network": "a", "mac": mac}, {"network": "a", "mac": mac}]),
                "fdb 02:00:00:00:00:05 in network \"a\", VLAN 0: is there twice",
            ),
            ("fdb", json!([{"network": "a", "mac": mac, "vlan": 4095}]), "VLAN 4095 is above"),
            (
                "fdb",
                json!([{"network": "a", "mac": "00:00:00:00:00:00"}]),
                "cannot be an interface's",
            ),
        ] {
            let message = checked(json!({"version": 1, field: value})).unwrap_err();
            assert!(message.contains(words), "{field}: {message}");
        }
        let both = json!([{"network": "a", "mac": mac}, {"network": "b", "mac": mac},
            {"network": "a", "mac": mac, "vlan": 5}]);
        assert_eq!(checked(json!({"version": 1, "fdb": both})), Ok(()));
        assert_eq!(checked(json!({"version": 1})), Ok(()));
    }
}
