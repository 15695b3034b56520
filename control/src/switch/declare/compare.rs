//! What a declaration asks of a network that exists. Pure.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::api::types::{Driver, NetworkCreate, Subnet};
use crate::check;
use crate::error::Result;
use crate::ipam::{Prefix, SubnetPlan};
use crate::model::Network;
use crate::options::{NetworkOptions, canonical};
use crate::switch::network::{plan_of, subnet_view};

/// How a declaration and a record differ. Differences are named as in the config file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::switch) struct Comparison {
    /// The record with everything that can change in place.
    pub(in crate::switch) after: Network,
    /// What changes in place.
    pub(in crate::switch) live: Vec<String>,
    /// What cannot change while somebody is connected, with both values.
    pub(in crate::switch) fixed: Vec<String>,
}

impl Comparison {
    /// Whether the record is as declared.
    pub(in crate::switch) fn is_equal(&self) -> bool {
        self.live.is_empty() && self.fixed.is_empty()
    }

    /// All that differs, for a message.
    pub(in crate::switch) fn differences(&self) -> String {
        self.fixed.iter().chain(&self.live).cloned().collect::<Vec<_>>().join(", ")
    }

    /// Leaves one thing as it is in `network`, for a reason.
    pub(super) fn cannot(&mut self, what: &[&str], reason: String) {
        self.live.retain(|name| !what.contains(&name.as_str()));
        self.fixed.push(reason);
    }

    /// Leaves the mode of the gateway as it is in `network`, whose host's leg has its addresses or has not.
    fn keep_gateways(&mut self, network: &Network) {
        let isolated = |network: &Network| {
            let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
            any.map(|address| network.is_isolated(address))
        };
        if isolated(&self.after) == isolated(network) {
            return;
        }
        let mut reasons = Vec::new();
        for key in ["gateway_mode", "gateway_mode_ipv6"] {
            let (is, declared) = (network.options.get(key), self.after.options.get(key).cloned());
            if is == declared.as_ref() {
                continue;
            }
            let shown = |mode: Option<&String>| mode.map_or("not set", |mode| mode).to_owned();
            reasons.push(format!("{key} {} (declared: {})", shown(is), shown(declared.as_ref())));
            match is {
                Some(mode) => self.after.options.insert(key.to_owned(), mode.clone()),
                None => self.after.options.remove(key),
            };
        }
        self.cannot(&["gateway_mode", "gateway_mode_ipv6"], reasons.join(", "));
    }

    /// Leaves the MTU as it is in `network`, which has IPv6 as long as somebody uses it.
    fn keep_mtu(&mut self, network: &Network) {
        let declared = self.after.mtu;
        self.after.mtu = network.mtu;
        match network.options.get("mtu") {
            Some(mtu) => self.after.options.insert("mtu".to_owned(), mtu.clone()),
            None => self.after.options.remove("mtu"),
        };
        let reason = format!("mtu {} (declared: {declared}, too short for IPv6)", network.mtu);
        self.cannot(&["mtu"], reason);
    }
}

/// Compares. A declaration without a subnet is content with the one the network has.
///
/// # Errors
/// When the declaration is wrong by itself, which a checked one is not.
pub(in crate::switch) fn compare(
    request: &NetworkCreate,
    network: &Network,
    default_mtu: u16,
) -> Result<Comparison> {
    let mut after = network.clone();
    let mut live = Vec::new();
    if request.labels != network.labels {
        after.labels.clone_from(&request.labels);
        live.push("labels".to_owned());
    }
    if request.internal != network.internal {
        after.internal = request.internal;
        live.push("internal".to_owned());
    }
    let options = canonical(request.driver, &request.options)?;
    let keys: BTreeSet<&String> = options.keys().chain(network.options.keys()).collect();
    let changed = keys.into_iter().filter(|key| options.get(*key) != network.options.get(*key));
    live.extend(changed.cloned());
    if live.iter().any(|key| key == "mtu") {
        after.mtu = NetworkOptions::parse(Driver::Bridge, &options)?.mtu.unwrap_or(default_mtu);
    }
    after.options = options;
    if request.wants_ipv6() && after.mtu < check::MIN_MTU_WITH_IPV6 {
        return Err(check::short_for_ipv6());
    }
    let mut comparison = Comparison { after, live, fixed: Vec::new() };
    comparison.keep_gateways(network);
    if request.wants_ipv6() != network.has_ipv6() {
        let (is, declared) = (network.has_ipv6(), request.wants_ipv6());
        comparison.fixed.push(format!("ipv6 {is} (declared: {declared})"));
        if is && comparison.after.mtu < check::MIN_MTU_WITH_IPV6 {
            comparison.keep_mtu(network);
        }
    } else if let Some(subnets6) = compare_subnets(request, &network.subnets6, &mut comparison)? {
        comparison.after.subnets6 = subnets6;
    }
    if let Some(subnets) = compare_subnets(request, &network.subnets, &mut comparison)? {
        comparison.after.subnets = subnets;
    }
    Ok(comparison)
}

/// The subnets of one family as declared, unless they cannot change to that.
fn compare_subnets<N: Prefix>(
    request: &NetworkCreate,
    is: &[SubnetPlan<N>],
    comparison: &mut Comparison,
) -> Result<Option<Vec<SubnetPlan<N>>>> {
    let named = request.subnets.iter().filter(|subnet| N::of(subnet.subnet).is_some());
    let mut wanted: Vec<SubnetPlan<N>> = named.map(plan_of).collect::<Result<_>>()?;
    if wanted.is_empty() {
        let plain = |plan| Subnet {
            gateway: None,
            ip_range: None,
            aux_addresses: Default::default(),
            ..subnet_view(plan)
        };
        wanted = is.first().map(plain).iter().map(plan_of).collect::<Result<_>>()?;
    }
    let prefixes = |plans: &[SubnetPlan<N>]| listed(plans.iter().map(|plan| plan.subnet));
    let gateways = |plans: &[SubnetPlan<N>]| listed(plans.iter().map(|plan| plan.gateway));
    for (key, is, declared) in
        [("subnet", prefixes(is), prefixes(&wanted)), ("gateway", gateways(is), gateways(&wanted))]
    {
        if is != declared {
            comparison.fixed.push(format!("{key} {is} (declared: {declared})"));
            // The gateways differ because the subnets do.
            return Ok(None);
        }
    }
    let pairs = || is.iter().zip(&wanted);
    let mut differs = |key: &str, differs: bool| {
        // Once for both families.
        if differs && comparison.live.iter().all(|known| known != key) {
            comparison.live.push(key.to_owned());
        }
    };
    differs("ip_range", pairs().any(|(is, declared)| is.ip_range != declared.ip_range));
    differs(
        "aux_address",
        pairs().any(|(is, declared)| is.aux_addresses != declared.aux_addresses),
    );
    Ok(Some(wanted))
}

fn listed(items: impl Iterator<Item = impl Display>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::Origin;

    fn record() -> Network {
        let plan = SubnetPlan::new(
            "10.1.0.0/24".parse().unwrap(),
            None,
            Some("10.1.0.128/25".parse().unwrap()),
            BTreeMap::from([("printer".to_owned(), [10, 1, 0, 9].into())]),
        );
        Network {
            id: 1,
            uid: "1".repeat(64),
            name: "app".parse().unwrap(),
            subnets: vec![plan.unwrap()],
            cursors: vec![0],
            subnets6: Vec::new(),
            cursors6: Vec::new(),
            internal: false,
            options: BTreeMap::from([("mtu".to_owned(), "1400".to_owned())]),
            labels: BTreeMap::from([("team".to_owned(), "a".to_owned())]),
            mtu: 1400,
            created: 0,
            origin: Origin::Config,
            policy: Vec::new(),
        }
    }

    fn declared() -> NetworkCreate {
        NetworkCreate {
            name: "app".parse().unwrap(),
            driver: Driver::Bridge,
            subnets: record().subnets.iter().map(subnet_view).collect(),
            internal: false,
            ipv6: false,
            options: BTreeMap::from([(
                "com.docker.network.driver.mtu".to_owned(),
                "1400".to_owned(),
            )]),
            labels: record().labels,
        }
    }

    /// An edit of the file.
    type Edit = fn(&mut NetworkCreate);

    fn compared(change: impl FnOnce(&mut NetworkCreate)) -> Comparison {
        let mut request = declared();
        change(&mut request);
        compare(&request, &record(), 1500).unwrap()
    }

    #[test]
    fn what_is_declared_alike_is_equal() {
        for comparison in [
            compared(|_| {}),
            // The default gateway, written out or not.
            compared(|request| request.subnets[0].gateway = None),
        ] {
            assert!(comparison.is_equal(), "{comparison:?}");
            assert_eq!(comparison.after, record());
        }
    }

    #[test]
    fn what_can_change_in_place_does() {
        let table: [(Edit, &[&str]); 8] = [
            (|r| r.labels.clear(), &["labels"]),
            (|r| r.internal = true, &["internal"]),
            (|r| r.options = BTreeMap::from([("icc".to_owned(), "0".to_owned())]), &["icc", "mtu"]),
            (|r| r.options.clear(), &["mtu"]),
            (|r| r.subnets[0].ip_range = None, &["ip_range"]),
            (|r| r.subnets[0].aux_addresses.clear(), &["aux_address"]),
            // The subnet is as the daemon chose it, with nothing more said about it.
            (|r| r.subnets.clear(), &["ip_range", "aux_address"]),
            (
                |r| {
                    r.subnets[0].aux_addresses =
                        BTreeMap::from([("x".to_owned(), [10, 1, 0, 8].into())]);
                },
                &["aux_address"],
            ),
        ];
        for (change, live) in table {
            let comparison = compared(change);
            assert_eq!(comparison.live, live);
            assert_eq!(comparison.fixed, Vec::<String>::new());
            // Changed once, it is equal.
            let mut request = declared();
            change(&mut request);
            let again = compare(&request, &comparison.after, 1500).unwrap();
            assert!(again.is_equal(), "{again:?}");
        }
        assert_eq!(compared(|r| r.options.clear()).after.mtu, 1500);
    }

    #[test]
    fn what_cannot_change_is_named_and_left() {
        let table: [(Edit, &str); 3] = [
            (
                |r| r.subnets[0].gateway = Some([10, 1, 0, 254].into()),
                "gateway 10.1.0.1 (declared: 10.1.0.254)",
            ),
            (
                |r| {
                    r.subnets = vec![Subnet {
                        subnet: "10.2.0.0/24".parse().unwrap(),
                        gateway: None,
                        ip_range: None,
                        aux_addresses: BTreeMap::new(),
                    }];
                },
                "subnet 10.1.0.0/24 (declared: 10.2.0.0/24)",
            ),
            (
                |r| {
                    let mut more = r.subnets[0].clone();
                    more.subnet = "10.2.0.0/24".parse().unwrap();
                    (more.gateway, more.ip_range) = (None, None);
                    more.aux_addresses.clear();
                    r.subnets.push(more);
                },
                "subnet 10.1.0.0/24 (declared: 10.1.0.0/24 and 10.2.0.0/24)",
            ),
        ];
        for (change, fixed) in table {
            let comparison = compared(change);
            assert_eq!(comparison.fixed, [fixed]);
            assert_eq!(comparison.after, record());
        }
        // Whether there is a gateway.
        let isolated =
            compared(|r| drop(r.options.insert("gateway_mode".to_owned(), "isolated".to_owned())));
        assert_eq!(isolated.fixed, ["gateway_mode not set (declared: isolated)"]);
        assert_eq!((isolated.live.len(), &isolated.after), (0, &record()));
        let routed =
            compared(|r| drop(r.options.insert("gateway_mode".to_owned(), "routed".to_owned())));
        assert_eq!((routed.live, routed.fixed.len()), (vec!["gateway_mode".to_owned()], 0));
        // IPv6 that stays keeps the MTU that it needs.
        let mut six = record();
        six.subnets6 = vec![
            SubnetPlan::new("fd00::/64".parse().unwrap(), None, None, BTreeMap::new()).unwrap(),
        ];
        let mut request = declared();
        request.options = BTreeMap::from([("mtu".to_owned(), "1000".to_owned())]);
        request.labels.clear();
        let kept = compare(&request, &six, 1500).unwrap();
        let fixed =
            ["ipv6 true (declared: false)", "mtu 1400 (declared: 1000, too short for IPv6)"];
        assert_eq!(
            (kept.fixed.as_slice(), kept.live.as_slice()),
            (&fixed.map(String::from)[..], &["labels".to_owned()][..])
        );
        assert_eq!((kept.after.mtu, &kept.after.options), (1400, &six.options));
        // The rest changes all the same.
        let both = compared(|r| {
            r.subnets[0].gateway = Some([10, 1, 0, 254].into());
            r.labels.clear();
        });
        assert_eq!(both.live, ["labels"]);
        assert_eq!(both.after.subnets, record().subnets);
        assert_eq!(both.differences(), "gateway 10.1.0.1 (declared: 10.1.0.254), labels");
    }
}
