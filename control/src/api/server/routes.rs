//! The routes, each a few lines: read the request, ask the switch, answer.

use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};

use super::input::{Body, Named, Nothing, Params, StateBody, without_query};
use super::stream;
use super::{Api, Failure};
use crate::api::openapi;
use crate::api::types::{
    self, CaptureQuery, ConnectRequest, ConntrackFilter, DisconnectRequest, DropsQuery, FdbAdd,
    FdbFlush, FdbQuery, FdbRemove, NetworkCreate, PolicyAdd, PolicyQuery, PolicyRemove,
    PublishRequest, Removed, RouteAdd, RouteRemove, SandboxCreate, StatsQuery, TraceRequest,
    UplinkAdd,
};
use crate::error::Error;

type Answer<T> = Result<Json<T>, Failure>;
type Created<T> = Result<(StatusCode, Json<T>), Failure>;
type Gone = Result<StatusCode, Failure>;

fn created<T>(made: T) -> Created<T> {
    Ok((StatusCode::CREATED, Json(made)))
}

fn removed(count: usize) -> Answer<Removed> {
    Ok(Json(Removed { removed: u64::try_from(count).unwrap_or(u64::MAX) }))
}

/// All routes.
pub(super) fn router(api: Api) -> Router {
    let with_query = Router::new()
        .route("/v1/fdb", get(fdb))
        .route("/v1/mdb", get(mdb))
        .route("/v1/conntrack", get(connections))
        .route("/v1/conntrack/events", get(connection_events))
        .route("/v1/policy", get(policies))
        .route("/v1/drops", get(drops))
        .route("/v1/stats", get(stats))
        .route("/v1/capture", get(capture));
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/networks", get(networks).post(create_network))
        .route("/v1/networks/prune", post(prune_networks))
        .route("/v1/networks/{name}", get(network).delete(remove_network))
        .route("/v1/networks/{name}/connect", post(connect))
        .route("/v1/networks/{name}/disconnect", post(disconnect))
        .route("/v1/sandboxes", get(sandboxes).post(create_sandbox))
        .route("/v1/sandboxes/{name}", get(sandbox).delete(remove_sandbox))
        .route("/v1/sandboxes/{name}/ports", post(publish))
        .route("/v1/sandboxes/{name}/ports/unpublish", post(unpublish))
        .route("/v1/ports", get(ports))
        .route("/v1/uplinks", get(uplinks).post(add_uplink))
        .route("/v1/uplinks/{interface}", delete(remove_uplink))
        .route("/v1/routes", get(routes).post(add_route))
        .route("/v1/routes/remove", post(remove_route))
        .route("/v1/policy", post(add_policy))
        .route("/v1/policy/remove", post(remove_policy))
        .route("/v1/neighbors", get(neighbors))
        .route("/v1/fdb", post(fdb_add))
        .route("/v1/fdb/remove", post(fdb_remove))
        .route("/v1/fdb/flush", post(fdb_flush))
        .route("/v1/conntrack/flush", post(flush_connections))
        .route("/v1/conntrack/stats", get(conntrack_stats))
        .route("/v1/nat/rules", get(nat_rules))
        .route("/v1/events", get(events))
        .route("/v1/trace", post(trace))
        .route("/v1/state", get(export).post(import))
        .route("/v1/purge", post(purge))
        .route("/v1/openapi.json", get(openapi_document))
        .route_layer(middleware::from_fn(without_query))
        .merge(with_query)
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .with_state(api)
}

async fn unknown_path(uri: axum::http::Uri) -> Failure {
    Failure(Error::not_found(format!("{}: no such path; see /v1/openapi.json", uri.path())))
}

async fn unknown_method(method: axum::http::Method, uri: axum::http::Uri) -> Failure {
    Failure(Error::invalid(format!(
        "{method} {}: not with this method; see /v1/openapi.json",
        uri.path()
    )))
}

async fn status(State(api): State<Api>) -> Json<types::Status> {
    Json(api.switch.status())
}

async fn networks(State(api): State<Api>) -> Json<Vec<types::Network>> {
    Json(api.switch.networks())
}

async fn create_network(
    State(api): State<Api>,
    Body(request): Body<NetworkCreate>,
) -> Created<types::Network> {
    created(api.change(|switch| async move { switch.create_network(request).await }).await?)
}

async fn prune_networks(
    State(api): State<Api>,
    Body(Nothing {}): Body<Nothing>,
) -> Answer<types::Pruned> {
    Ok(Json(api.change(|switch| async move { switch.prune_networks().await }).await?))
}

async fn network(State(api): State<Api>, path: Named) -> Answer<types::Network> {
    Ok(Json(api.switch.network(&path.name("network")?)?))
}

async fn remove_network(State(api): State<Api>, path: Named) -> Gone {
    let name = path.name("network")?;
    api.change(|switch| async move { switch.remove_network(&name).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn connect(
    State(api): State<Api>,
    path: Named,
    Body(request): Body<ConnectRequest>,
) -> Answer<types::NetworkEndpoint> {
    let name = path.name("network")?;
    Ok(Json(api.change(|switch| async move { switch.connect(&name, request).await }).await?))
}

async fn disconnect(
    State(api): State<Api>,
    path: Named,
    Body(request): Body<DisconnectRequest>,
) -> Gone {
    let name = path.name("network")?;
    api.change(|switch| async move { switch.disconnect(&name, &request.sandbox).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn sandboxes(State(api): State<Api>) -> Json<Vec<types::Sandbox>> {
    Json(api.switch.sandboxes())
}

async fn create_sandbox(
    State(api): State<Api>,
    Body(request): Body<SandboxCreate>,
) -> Created<types::Sandbox> {
    created(api.change(|switch| async move { switch.create_sandbox(request).await }).await?)
}

async fn sandbox(State(api): State<Api>, path: Named) -> Answer<types::Sandbox> {
    Ok(Json(api.switch.sandbox(&path.name("sandbox")?)?))
}

async fn remove_sandbox(State(api): State<Api>, path: Named) -> Gone {
    let name = path.name("sandbox")?;
    api.change(|switch| async move { switch.remove_sandbox(&name).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn publish(
    State(api): State<Api>,
    path: Named,
    Body(request): Body<PublishRequest>,
) -> Answer<Vec<types::PortMapping>> {
    let name = path.name("sandbox")?;
    let added = api
        .change(|switch| async move { switch.publish_on(&name, &request.publish).await })
        .await?;
    Ok(Json(added))
}

async fn unpublish(
    State(api): State<Api>,
    path: Named,
    Body(request): Body<PublishRequest>,
) -> Answer<Vec<types::PortMapping>> {
    let name = path.name("sandbox")?;
    let gone =
        api.change(|switch| async move { switch.unpublish(&name, &request.publish).await }).await?;
    Ok(Json(gone))
}

async fn ports(State(api): State<Api>) -> Json<Vec<types::PortMapping>> {
    Json(api.switch.ports())
}

async fn uplinks(State(api): State<Api>) -> Json<Vec<types::Uplink>> {
    Json(api.switch.uplinks())
}

async fn add_uplink(
    State(api): State<Api>,
    Body(request): Body<UplinkAdd>,
) -> Created<types::Uplink> {
    created(api.change(|switch| async move { switch.add_uplink(request).await }).await?)
}

async fn remove_uplink(State(api): State<Api>, path: Named) -> Gone {
    api.change(|switch| async move { switch.remove_uplink(path.text()).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn routes(State(api): State<Api>) -> Json<Vec<types::Route>> {
    Json(api.switch.routes())
}

async fn add_route(State(api): State<Api>, Body(request): Body<RouteAdd>) -> Created<types::Route> {
    created(api.change(|switch| async move { switch.add_route(request).await }).await?)
}

async fn remove_route(State(api): State<Api>, Body(request): Body<RouteRemove>) -> Gone {
    api.change(|switch| async move { switch.remove_route(request.destination).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn policies(
    State(api): State<Api>,
    Params(query): Params<PolicyQuery>,
) -> Answer<Vec<types::PolicyRule>> {
    Ok(Json(api.switch.policies(&query)?))
}

async fn add_policy(
    State(api): State<Api>,
    Body(request): Body<PolicyAdd>,
) -> Created<types::PolicyRule> {
    created(api.change(|switch| async move { switch.add_policy(request).await }).await?)
}

async fn remove_policy(State(api): State<Api>, Body(request): Body<PolicyRemove>) -> Gone {
    api.change(|switch| async move { switch.remove_policy(request).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn neighbors(State(api): State<Api>) -> Json<Vec<types::Neighbor>> {
    Json(api.switch.neighbors())
}

async fn mdb(
    State(api): State<Api>,
    Params(query): Params<types::MdbQuery>,
) -> Answer<Vec<types::MdbEntry>> {
    Ok(Json(api.switch.mdb(&query)?))
}

async fn fdb(
    State(api): State<Api>,
    Params(query): Params<FdbQuery>,
) -> Answer<Vec<types::FdbEntry>> {
    Ok(Json(api.switch.fdb(&query)?))
}

async fn fdb_add(State(api): State<Api>, Body(request): Body<FdbAdd>) -> Created<types::FdbEntry> {
    created(api.switch.fdb_add(&request)?)
}

async fn fdb_remove(State(api): State<Api>, Body(request): Body<FdbRemove>) -> Gone {
    api.switch.fdb_remove(&request)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn fdb_flush(State(api): State<Api>, Body(request): Body<FdbFlush>) -> Answer<Removed> {
    removed(api.switch.fdb_flush(request.network.as_ref())?)
}

async fn connections(
    State(api): State<Api>,
    Params(filter): Params<ConntrackFilter>,
) -> Answer<Vec<types::Connection>> {
    Ok(Json(api.switch.connections(&filter)?))
}

async fn flush_connections(
    State(api): State<Api>,
    Body(filter): Body<ConntrackFilter>,
) -> Answer<Removed> {
    removed(api.switch.flush_connections(&filter)?)
}

async fn connection_events(
    State(api): State<Api>,
    Params(filter): Params<ConntrackFilter>,
) -> Result<Response, Failure> {
    Ok(stream::connection_events(&api, filter)?)
}

async fn conntrack_stats(State(api): State<Api>) -> Json<types::ConntrackStats> {
    Json(api.switch.conntrack_stats())
}

async fn nat_rules(State(api): State<Api>) -> Json<Vec<types::NatRule>> {
    Json(api.switch.nat_rules())
}

async fn drops(
    State(api): State<Api>,
    Params(query): Params<DropsQuery>,
) -> Answer<Vec<types::DropCount>> {
    Ok(Json(api.switch.drops(&query)?))
}

async fn stats(
    State(api): State<Api>,
    Params(query): Params<StatsQuery>,
) -> Answer<Vec<types::PortStats>> {
    Ok(Json(api.switch.port_stats(query.sandbox.as_ref())?))
}

async fn capture(
    State(api): State<Api>,
    Params(query): Params<CaptureQuery>,
) -> Result<Response, Failure> {
    Ok(stream::capture(&api, &query)?)
}

async fn trace(
    State(api): State<Api>,
    Body(request): Body<TraceRequest>,
) -> Answer<Vec<types::Trace>> {
    Ok(Json(api.switch.trace(&request)?))
}

async fn events(State(api): State<Api>) -> Response {
    stream::events(&api)
}

async fn export(State(api): State<Api>) -> Json<types::State> {
    Json(api.switch.export())
}

async fn import(State(api): State<Api>, StateBody(state): StateBody) -> Answer<types::Imported> {
    Ok(Json(api.change(|switch| async move { switch.import(state).await }).await?))
}

async fn purge(State(api): State<Api>, Body(Nothing {}): Body<Nothing>) -> Answer<types::Purged> {
    Ok(Json(api.change(|switch| async move { switch.purge().await }).await?))
}

async fn openapi_document() -> Response {
    Json(openapi::document()).into_response()
}
