//! Static routes.

use ipnet::IpNet;

use super::undo::Undo;
use super::{Switch, Work};
use crate::api::types::{self, RouteAdd};
use crate::check;
use crate::compile::uplink_reaching;
use crate::error::{Error, Result};
use crate::model::{Edit, Route};

impl Switch {
    /// Adds a route.
    ///
    /// # Errors
    /// When it makes no sense, exists, or its uplink is unknown.
    pub async fn add_route(&self, request: RouteAdd) -> Result<types::Route> {
        let wrap = |error: Error| error.context(format!("route {}", request.destination));
        let mut work = self.work.lock().await;
        let mut undo = Undo::default();
        if let Err(error) = self.make_route(&mut work, &request, &mut undo).await {
            self.roll_back(&mut work, undo).await;
            return Err(error);
        }
        drop(work);
        self.routes()
            .into_iter()
            .find(|route| route.destination == request.destination)
            .ok_or_else(|| wrap(Error::failed("has no uplink that is up")))
    }

    /// Adds a route; what is done when that fails is for the caller to take back.
    pub(super) async fn make_route(
        &self,
        work: &mut Work,
        request: &RouteAdd,
        undo: &mut Undo,
    ) -> Result<()> {
        let wrap = |error: Error| error.context(format!("route {}", request.destination));
        let route = self.plan_route(request).map_err(wrap)?;
        self.commit_noting(work, vec![Edit::PutRoute(route)], undo).map_err(wrap)?;
        self.publish_ports(work).await.map_err(wrap)
    }

    fn plan_route(&self, request: &RouteAdd) -> Result<Route> {
        let destination = request.destination;
        if destination.trunc() != destination {
            return Err(Error::invalid(format!(
                "has host bits set; write {}",
                destination.trunc()
            )));
        }
        check::unicast(request.via)?;
        let world = self.world();
        if world.desired.routes.contains_key(&destination) {
            return Err(Error::conflict("exists already; remove it first"));
        }
        let inside = world.desired.networks.values().find(|network| {
            network.prefixes().any(|prefix| check::overlap(&prefix, &destination))
                && destination.prefix_len() > 0
        });
        if let Some(network) = inside {
            return Err(Error::conflict(format!("overlaps network {:?}", network.name)));
        }
        let interface = match &request.uplink {
            Some(interface) if world.desired.uplinks.contains_key(interface) => interface.clone(),
            Some(interface) => return Err(super::uplink::unknown(interface)),
            None => uplink_reaching(&world.attached, request.via).cloned().ok_or_else(|| {
                Error::invalid(format!(
                    "no uplink has {} on its wire; name one with --uplink",
                    request.via
                ))
            })?,
        };
        let on_link =
            world.attached.uplinks.get(&interface).is_none_or(|state| state.reaches(request.via));
        if !on_link {
            return Err(Error::invalid(format!(
                "next hop {} is not on the wire of uplink {interface:?}",
                request.via
            )));
        }
        Ok(Route { destination, via: request.via, uplink: Some(interface) })
    }

    /// Removes a route.
    ///
    /// # Errors
    /// When there is none.
    pub async fn remove_route(&self, destination: IpNet) -> Result<()> {
        let mut work = self.work.lock().await;
        if !self.world().desired.routes.contains_key(&destination) {
            return Err(Error::not_found(format!(
                "route {destination}: no such static route; see `vswitchctl route ls`"
            )));
        }
        self.commit(&work, vec![Edit::RemoveRoute(destination)])?;
        self.publish_or_later(&mut work).await;
        Ok(())
    }
}
