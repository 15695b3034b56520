//! Networks of the config file: kept equal to their declarations at start and on reload.
//!
//! What can change under connected sandboxes does, for all networks in one durable commit and one
//! snapshot. What cannot (prefix, gateway) takes a network made anew, which needs it to be unused;
//! else a warning says what differs and what to do. One that has left the file goes, if it is
//! unused. A network made by hand is nobody else's: it becomes the file's when it is as declared
//! there, and is never removed or changed because of it. `bridge` exists always, so whoever
//! declares it has it.
//!
//! Each network is one line in the log; no fault of one keeps the others from being carried out.

mod compare;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};

use self::compare::Comparison;
pub(super) use self::compare::compare;
use super::adopt::filled_pools;
use super::network::{shortened, subnet_views};
use super::undo::Undo;
use super::warnings::Subject;
use super::{Switch, Work, next_number};
use crate::api::types::{NetworkCreate, Subnet};
use crate::error::{Error, Kind, Result};
use crate::ipam;
use crate::model::{BRIDGE_NETWORK, Desired, Edit, Endpoint, Network, Origin, Sandbox};
use crate::name::Name;
use crate::place::Place;

/// The predefined network's subnet unless taken or configured.
const BRIDGE_SUBNET: ipnet::Ipv4Net = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(172, 30, 0, 0), 16);

/// A network that changes in place.
struct Change {
    before: Network,
    after: Network,
    what: Vec<String>,
}

/// What is to be done, in this order.
#[derive(Default)]
struct Plan {
    /// Not declared any more, and unused.
    remove: Vec<Network>,
    /// To be changed in place.
    change: Vec<Change>,
    /// To be made anew, with what differs.
    replace: Vec<(Network, String)>,
}

impl Switch {
    /// Brings networks in line with a configuration.
    ///
    /// # Errors
    /// When the state cannot be written, or the predefined network is missing and cannot be made.
    /// What cannot be done for one network is warned of.
    pub async fn declare(&self, networks: &[NetworkCreate]) -> Result<()> {
        let mut work = self.work.lock().await;
        if !networks.is_empty() {
            self.revive(&mut work).await?;
        }
        self.declare_networks(&mut work, networks).await
    }

    pub(super) async fn declare_networks(
        &self,
        work: &mut Work,
        declared: &[NetworkCreate],
    ) -> Result<()> {
        self.forget_warnings(|subject| {
            matches!(
                subject,
                Subject::Declared(_) | Subject::MissingNetwork(_) | Subject::Undeclared(_)
            )
        });
        let plan = self.plan_declared(declared);
        for network in &plan.remove {
            match self.drop_network(work, network).await {
                Ok(()) => {
                    tracing::info!("network {:?}: removed, as from the config file", network.name);
                    self.emit("network_remove", Some(&network.name), None, None);
                }
                Err(error) => self.warn_declared(network, &error),
            }
        }
        self.change_networks(work, &plan.change).await?;
        // All go before any is made: they may have each other's prefixes.
        let mut replaced = BTreeMap::new();
        for (network, difference) in plan.replace {
            match self.drop_network(work, &network).await {
                Ok(()) => {
                    replaced.insert(network.name.clone(), (network, difference));
                }
                Err(error) => self.warn_declared(&network, &error),
            }
        }
        let missing =
            |request: &&NetworkCreate| !self.world().desired.networks.contains_key(&request.name);
        for request in declared.iter().filter(missing) {
            let made = self.create_network_in(work, request, Origin::Config).await;
            match (made, replaced.remove(&request.name)) {
                (Ok(()), None) => tracing::info!("network {:?}: made as declared", request.name),
                (Ok(()), Some((before, difference))) => {
                    self.hand_policy_on(work, &before).await?;
                    tracing::info!("network {:?}: made anew for {difference}", request.name);
                }
                (Err(error), None) => self.warn_missing(request, &error),
                (Err(error), Some((before, _))) => {
                    self.warn_missing(request, &error);
                    self.restore(work, before).await;
                }
            }
        }
        self.ensure_bridge(work).await
    }

    /// Gives a network that was made anew the policy of the one before. Nobody is in it yet.
    async fn hand_policy_on(&self, work: &mut Work, before: &Network) -> Result<()> {
        let network = self.world().desired.networks.get(&before.name).cloned();
        let Some(network) = network.filter(|_| !before.policy.is_empty()) else { return Ok(()) };
        let network = Network { policy: before.policy.clone(), ..network };
        self.commit(work, vec![Edit::PutNetwork(network)])?;
        self.publish_or_later(work).await;
        Ok(())
    }

    fn warn_declared(&self, network: &Network, why: &dyn Display) {
        let subject = Subject::Declared(network.uid.clone());
        self.warn(subject, format!("network {:?}: {why}", network.name));
    }

    fn warn_missing(&self, request: &NetworkCreate, why: &Error) {
        self.warn(Subject::MissingNetwork(request.name.clone()), why.to_string());
    }

    /// Looks at every network; what cannot be done is warned of here.
    fn plan_declared(&self, declared: &[NetworkCreate]) -> Plan {
        let mut plan = Plan::default();
        let desired = self.world().desired.clone();
        for network in desired.networks.values() {
            let users = users_of(&desired, &network.name);
            let request = declared.iter().find(|request| request.name == network.name);
            match request.map(|request| compare(request, network, self.settings.mtu)) {
                None if network.origin != Origin::Config => {}
                // It exists always.
                None if network.name.as_str() == BRIDGE_NETWORK => {
                    let after = Network { origin: Origin::Automatic, ..network.clone() };
                    plan.change.push(Change { before: network.clone(), after, what: Vec::new() });
                }
                None if users.is_empty() => plan.remove.push(network.clone()),
                None => {
                    let users = shortened(&users);
                    let text = format!(
                        "is not in the config file any more, but in use by {users}; disconnect \
                         and reload, or put it back"
                    );
                    let subject = Subject::Undeclared(network.uid.clone());
                    self.warn(subject, format!("network {:?}: {text}", network.name));
                }
                Some(Ok(comparison)) => {
                    self.plan_one(&mut plan, &desired, network, comparison, &users);
                }
                Some(Err(error)) => self.warn_declared(network, &error),
            }
        }
        plan
    }

    fn plan_one(
        &self,
        plan: &mut Plan,
        desired: &Desired,
        network: &Network,
        mut comparison: Comparison,
        users: &[String],
    ) {
        let name = &network.name;
        let by_hand = network.origin != Origin::Config && name.as_str() != BRIDGE_NETWORK;
        if by_hand && !comparison.is_equal() {
            let differences = comparison.differences();
            let text = format!(
                "was not made from the config file and differs from it in {differences}; remove \
                 it to have it made as declared, or declare another name"
            );
            return self.warn_declared(network, &text);
        }
        obstacles(desired, network, &mut comparison);
        if !comparison.fixed.is_empty() && users.is_empty() {
            return plan.replace.push((network.clone(), comparison.differences()));
        }
        if !comparison.fixed.is_empty() {
            let text = format!(
                "differs from the config file in {}, which cannot change while it is used by {}; \
                 disconnect and reload, or declare it as it is",
                comparison.fixed.join(", "),
                shortened(users)
            );
            self.warn_declared(network, &text);
        }
        let after = Network { origin: Origin::Config, ..comparison.after };
        if after != *network {
            let what = comparison.live;
            plan.change.push(Change { before: network.clone(), after, what });
        }
    }

    /// Records, snapshot, then what the kernel has to know.
    async fn change_networks(&self, work: &mut Work, changes: &[Change]) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let before = self.ways_out();
        self.commit(work, changes.iter().map(|c| Edit::PutNetwork(c.after.clone())).collect())?;
        for Change { after, .. } in changes {
            let pools = filled_pools(&self.world().desired, after);
            work.pools.insert(after.name.clone(), pools);
        }
        self.publish_or_later(work).await;
        for change in changes {
            if change.after.internal && !change.before.internal {
                // Nothing that was begun before may go on through the gateway.
                let id = change.after.network_id();
                self.engine.flush_connections(&|connection| connection.network == id);
            }
            if change.after.mtu != change.before.mtu {
                self.change_mtu(work, change).await;
            }
        }
        for (name, was) in before {
            if let Err(error) = self.move_way_out(work, &name, was).await {
                let text = format!("sandbox {name:?}: {error}");
                self.warn(Subject::InSandbox(name), text);
            }
        }
        for change in changes {
            if change.before.origin == Origin::User {
                tracing::info!("network {:?}: is the config file's from now on", change.after.name);
            }
            if change.what.is_empty() {
                continue;
            }
            let (name, what) = (&change.after.name, change.what.join(", "));
            tracing::info!("network {name:?}: changed as declared: {what}");
            self.emit("network_change", Some(name), None, Some(what));
        }
        Ok(())
    }

    /// By which endpoint and gateway of each family each sandbox with endpoints gets out.
    fn ways_out(&self) -> Vec<(Name, Vec<(Endpoint, IpAddr)>)> {
        let world = self.world();
        let sandboxes = world.desired.sandboxes.values().filter(|s| !s.endpoints.is_empty());
        sandboxes.map(|s| (s.name.clone(), ways_out(&world.desired, s))).collect()
    }

    /// Moves default routes and published ports of a sandbox if they lead by another network now.
    async fn move_way_out(
        &self,
        work: &mut Work,
        name: &Name,
        was: Vec<(Endpoint, IpAddr)>,
    ) -> Result<()> {
        let sandbox = self.sandbox_record(name)?;
        let is = ways_out(&self.world().desired, &sandbox);
        if is == was {
            return Ok(());
        }
        let place = self.enter(&sandbox)?;
        let sandbox = self.follow_names(work, &place, &sandbox).await?;
        for (endpoint, gateway) in was.into_iter().filter(|way| !is.contains(way)) {
            let now = sandbox.endpoints.iter().find(|now| now.network == endpoint.network);
            if let Some(now) = now {
                place.remove_default_route(&now.ifname, gateway).await?;
            }
        }
        self.route_by_gateway(&place, &sandbox).await?;
        self.hold_publishes(work, &sandbox).await;
        Ok(())
    }

    /// Sets the MTU of all devices of a network that still had the one before.
    async fn change_mtu(&self, work: &Work, change: &Change) {
        let name = &change.after.name;
        let leg = change.after.host_device();
        if let Err(error) = set_mtu(&self.host, &leg, change).await {
            self.warn_declared(&change.after, &error);
        }
        let sandboxes: Vec<Sandbox> = {
            let world = self.world();
            world.desired.endpoints_of(name.as_str()).map(|(sandbox, _)| sandbox.clone()).collect()
        };
        for sandbox in sandboxes {
            if let Err(error) = self.change_mtu_inside(work, &sandbox, change).await {
                let text = format!("sandbox {:?}: {error}", sandbox.name);
                self.warn(Subject::InSandbox(sandbox.name), text);
            }
        }
    }

    async fn change_mtu_inside(
        &self,
        work: &Work,
        sandbox: &Sandbox,
        change: &Change,
    ) -> Result<()> {
        let place = self.enter(sandbox)?;
        let sandbox = self.follow_names(work, &place, sandbox).await?;
        for endpoint in sandbox.endpoints.iter().filter(|e| e.network == change.after.name) {
            if let Some(host_end) = endpoint.wire.host_end() {
                set_end_mtu(&self.host, host_end, change).await?;
            }
            set_mtu(&place, &endpoint.ifname, change).await?;
        }
        Ok(())
    }

    /// Makes a network again as it was, when what should have replaced it cannot be made.
    async fn restore(&self, work: &mut Work, before: Network) {
        let id = {
            let world = self.world();
            let used = |id| world.desired.networks.values().any(|network| network.id == id);
            next_number(world.desired.counters.network, used)
        };
        let mut undo = Undo::default();
        let outcome = match id {
            Ok(id) => {
                let network = Network { id, ..before.clone() };
                self.build_network(work, &network, &mut undo).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            self.roll_back(work, undo).await;
            let text =
                format!("network {:?}: is gone, and not made as it was: {error}", before.name);
            self.warn(Subject::MissingNetwork(before.name), text);
        }
    }

    /// Makes the predefined network if it is not there.
    pub(super) async fn ensure_bridge(&self, work: &mut Work) -> Result<()> {
        let name: Name = Name::parse("network", BRIDGE_NETWORK)?;
        if self.world().desired.networks.contains_key(&name) {
            return Ok(());
        }
        let mut request = NetworkCreate {
            name,
            driver: Default::default(),
            subnets: vec![Subnet {
                subnet: BRIDGE_SUBNET.into(),
                gateway: None,
                ip_range: None,
                aux_addresses: Default::default(),
            }],
            internal: false,
            ipv6: false,
            options: Default::default(),
            labels: Default::default(),
        };
        let mut taken = self.world().taken_prefixes().into_iter();
        let taken = taken.any(|net| ipam::overlaps(net, BRIDGE_SUBNET));
        if taken {
            request.subnets.clear();
        }
        match self.create_network_in(work, &request, Origin::Automatic).await {
            // Every pool is full: the others still work.
            Err(error) if error.kind == Kind::Conflict => {
                self.warn_missing(&request, &error);
                Ok(())
            }
            other => other,
        }
    }
}

/// Takes out of a comparison what those who are connected stand against.
fn obstacles(desired: &Desired, network: &Network, comparison: &mut Comparison) {
    let after = subnet_views(&comparison.after);
    let taken = desired.endpoints_of(network.name.as_str()).find_map(|(sandbox, endpoint)| {
        let own: Vec<IpAddr> = endpoint.addresses().iter().map(ipnet::IpNet::addr).collect();
        let mut aux = after.iter().flat_map(|subnet| &subnet.aux_addresses);
        let (name, address) = aux.find(|(_, address)| own.contains(address))?;
        Some(format!("aux_address {name}={address} (sandbox {:?} has it)", sandbox.name))
    });
    if let Some(reason) = taken {
        comparison.after.subnets.clone_from(&network.subnets);
        comparison.after.subnets6.clone_from(&network.subnets6);
        comparison.cannot(&["aux_address", "ip_range"], reason);
    }
    if comparison.after.internal && !network.internal {
        let mut then = desired.clone();
        then.apply(Edit::PutNetwork(comparison.after.clone()));
        let led_here = |sandbox: &&Sandbox| {
            let mut all = sandbox.publishes.iter();
            all.any(|p| desired.leads_in(sandbox, p) && !then.leads_in(sandbox, p))
        };
        if let Some(sandbox) = desired.sandboxes.values().find(led_here) {
            comparison.after.internal = false;
            let name = &sandbox.name;
            comparison
                .cannot(&["internal"], format!("internal (sandbox {name:?} has ports there)"));
        }
    }
}

fn users_of(desired: &Desired, network: &Name) -> Vec<String> {
    desired.endpoints_of(network.as_str()).map(|(sandbox, _)| sandbox.name.to_string()).collect()
}

fn ways_out(desired: &Desired, sandbox: &Sandbox) -> Vec<(Endpoint, IpAddr)> {
    let ways = desired.ways_out(sandbox).into_iter();
    ways.map(|(endpoint, gateway)| (endpoint.clone(), gateway)).collect()
}

/// A device with another MTU was set by somebody, and one that is gone is made with the new one.
async fn set_mtu(place: &Place, ifname: &str, change: &Change) -> Result<()> {
    let before = u32::from(change.before.mtu);
    place.change_mtu(ifname, change.after.mtu, |mtu| mtu == before).await
}

/// As [`set_mtu`], for our end of a pair, which must not have less than its network.
async fn set_end_mtu(host: &Place, host_end: &str, change: &Change) -> Result<()> {
    let (before, after) = (u32::from(change.before.mtu), u32::from(change.after.mtu));
    host.change_mtu(host_end, change.after.mtu, |mtu| mtu == before || mtu < after).await
}
