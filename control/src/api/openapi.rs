//! The API's description, served at `/v1/openapi.json`.
//!
//! One list of operations says what there is: path, parameters, body, answer. The schemas come
//! from the types themselves. A test compares the list with the routes agreed in the contract.

use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, Parameter, ParameterBuilder, ParameterIn,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ComponentsBuilder, ObjectBuilder, Schema};
use utoipa::openapi::{
    ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, PathsBuilder, Ref, RefOr,
    Required, ResponseBuilder,
};
use utoipa::{IntoParams, ToSchema};

use super::types::{
    CaptureQuery, ConnectRequest, Connection, ConnectionEvent, ConntrackFilter, ConntrackStats,
    DisconnectRequest, DropCount, DropsQuery, ErrorBody, Event, FdbAdd, FdbEntry, FdbFlush,
    FdbQuery, FdbRemove, Imported, MdbEntry, MdbQuery, NatRule, Neighbor, Network, NetworkCreate,
    NetworkEndpoint, PolicyAdd, PolicyQuery, PolicyRemove, PolicyRule, PortMapping, PortStats,
    Pruned, PublishRequest, Purged, Removed, Route, RouteAdd, RouteRemove, Sandbox, SandboxCreate,
    State, StatsQuery, Status, Trace, TraceRequest, Uplink, UplinkAdd,
};
use crate::error::Kind;

/// Content type of every body that is not a stream.
pub const JSON: &str = "application/json";
/// Content type of `GET /v1/capture`.
pub const PCAPNG: &str = "application/x-pcapng";
/// Content type of `GET /v1/events`.
pub const NDJSON: &str = "application/x-ndjson";

/// A schema with those it refers to.
struct Described {
    schema: RefOr<Schema>,
    parts: Vec<(String, RefOr<Schema>)>,
}

fn one<T: ToSchema>() -> Described {
    let name = T::name().into_owned();
    let mut parts = vec![(name.clone(), T::schema())];
    T::schemas(&mut parts);
    Described { schema: Ref::from_schema_name(name).into(), parts }
}

fn list<T: ToSchema>() -> Described {
    let Described { schema, parts } = one::<T>();
    Described { schema: ArrayBuilder::new().items(schema).into(), parts }
}

fn stream() -> Described {
    Described { schema: ObjectBuilder::new().build().into(), parts: Vec::new() }
}

/// One method of one path.
struct Operation {
    method: HttpMethod,
    path: &'static str,
    summary: &'static str,
    parameters: Vec<Parameter>,
    body: Option<Described>,
    /// Status, content type, schema; without a schema, the answer has no body.
    answer: (&'static str, &'static str, Option<Described>),
    errors: &'static [Kind],
}

impl Operation {
    fn new(method: HttpMethod, path: &'static str, summary: &'static str) -> Self {
        let parameters = path
            .split('/')
            .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| {
                ParameterBuilder::new()
                    .name(name)
                    .parameter_in(ParameterIn::Path)
                    .required(Required::True)
                    .schema(Some(
                        ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::String),
                    ))
                    .build()
            })
            .collect::<Vec<_>>();
        // Everything can be asked in a way that makes no sense: with a query, say.
        let errors: &[Kind] = if parameters.is_empty() {
            &[Kind::Invalid, Kind::Failed]
        } else {
            &[Kind::Invalid, Kind::NotFound, Kind::Failed]
        };
        Self { method, path, summary, parameters, body: None, answer: ("204", JSON, None), errors }
    }

    fn query<T: IntoParams>(mut self) -> Self {
        self.parameters.extend(T::into_params(|| Some(ParameterIn::Query)));
        self.errors = &[Kind::Invalid, Kind::NotFound, Kind::Failed];
        self
    }

    fn takes<T: ToSchema>(mut self) -> Self {
        self.body = Some(one::<T>());
        self.errors = &[Kind::Invalid, Kind::NotFound, Kind::Conflict, Kind::Failed];
        self
    }

    fn answers(mut self, answer: Described) -> Self {
        self.answer = ("200", JSON, Some(answer));
        self
    }

    fn creates(mut self, answer: Described) -> Self {
        self.answer = ("201", JSON, Some(answer));
        self
    }

    fn streams(mut self, content_type: &'static str, answer: Described) -> Self {
        self.answer = ("200", content_type, Some(answer));
        self
    }

    fn conflicts(mut self) -> Self {
        self.errors = &[Kind::Invalid, Kind::NotFound, Kind::Conflict, Kind::Failed];
        self
    }
}

fn get(path: &'static str, summary: &'static str) -> Operation {
    Operation::new(HttpMethod::Get, path, summary)
}

fn post(path: &'static str, summary: &'static str) -> Operation {
    Operation::new(HttpMethod::Post, path, summary)
}

fn delete(path: &'static str, summary: &'static str) -> Operation {
    Operation::new(HttpMethod::Delete, path, summary).conflicts()
}

/// Everything the API does.
fn operations() -> Vec<Operation> {
    vec![
        get("/v1/status", "The daemon itself").answers(one::<Status>()),
        get("/v1/networks", "Networks, sorted by name").answers(list::<Network>()),
        post("/v1/networks", "Create a network").takes::<NetworkCreate>().creates(one::<Network>()),
        post("/v1/networks/prune", "Remove the networks nobody uses").answers(one::<Pruned>()),
        get("/v1/networks/{name}", "A network").answers(one::<Network>()),
        delete("/v1/networks/{name}", "Remove a network nobody uses"),
        post("/v1/networks/{name}/connect", "Give a sandbox an interface in the network")
            .takes::<ConnectRequest>()
            .answers(one::<NetworkEndpoint>()),
        post("/v1/networks/{name}/disconnect", "Take a sandbox's interface in the network away")
            .takes::<DisconnectRequest>(),
        get("/v1/sandboxes", "Sandboxes, sorted by name").answers(list::<Sandbox>()),
        post("/v1/sandboxes", "Create a sandbox")
            .takes::<SandboxCreate>()
            .creates(one::<Sandbox>()),
        get("/v1/sandboxes/{name}", "A sandbox").answers(one::<Sandbox>()),
        delete("/v1/sandboxes/{name}", "Remove a sandbox: what the daemon made of it"),
        post("/v1/sandboxes/{name}/ports", "Publish ports; answers with the new mappings")
            .takes::<PublishRequest>()
            .answers(list::<PortMapping>()),
        post("/v1/sandboxes/{name}/ports/unpublish", "Unpublish ports; answers with what is gone")
            .takes::<PublishRequest>()
            .answers(list::<PortMapping>()),
        get("/v1/ports", "Published ports").answers(list::<PortMapping>()),
        get("/v1/uplinks", "Ways out").answers(list::<Uplink>()),
        post("/v1/uplinks", "Add a way out").takes::<UplinkAdd>().creates(one::<Uplink>()),
        delete("/v1/uplinks/{interface}", "Remove a way out; the interface is as before"),
        get("/v1/routes", "Routes").answers(list::<Route>()),
        post("/v1/routes", "Add a static route").takes::<RouteAdd>().creates(one::<Route>()),
        post("/v1/routes/remove", "Remove a static route").takes::<RouteRemove>(),
        get("/v1/policy", "Rules of policies with their counters, in order")
            .query::<PolicyQuery>()
            .answers(list::<PolicyRule>()),
        post("/v1/policy", "Add a rule to a network's policy")
            .takes::<PolicyAdd>()
            .creates(one::<PolicyRule>()),
        post("/v1/policy/remove", "Remove a rule").takes::<PolicyRemove>(),
        get("/v1/neighbors", "Neighbors found by ARP").answers(list::<Neighbor>()),
        get("/v1/fdb", "Where MAC addresses are").query::<FdbQuery>().answers(list::<FdbEntry>()),
        get("/v1/mdb", "Who is in which multicast group")
            .query::<MdbQuery>()
            .answers(list::<MdbEntry>()),
        post("/v1/fdb", "Add a static entry").takes::<FdbAdd>().creates(one::<FdbEntry>()),
        post("/v1/fdb/remove", "Remove a learned or static entry").takes::<FdbRemove>(),
        post("/v1/fdb/flush", "Forget what was learned")
            .takes::<FdbFlush>()
            .answers(one::<Removed>()),
        get("/v1/conntrack", "Tracked connections")
            .query::<ConntrackFilter>()
            .answers(list::<Connection>()),
        post("/v1/conntrack/flush", "End the connections that match")
            .takes::<ConntrackFilter>()
            .answers(one::<Removed>()),
        get("/v1/conntrack/events", "What happens to connections: one JSON object a line")
            .query::<ConntrackFilter>()
            .streams(NDJSON, one::<ConnectionEvent>()),
        get("/v1/conntrack/stats", "Totals of the connection table")
            .answers(one::<ConntrackStats>()),
        get("/v1/nat/rules", "NAT rules with their counters").answers(list::<NatRule>()),
        get("/v1/drops", "Dropped frames by reason")
            .query::<DropsQuery>()
            .answers(list::<DropCount>()),
        get("/v1/stats", "Totals of each port").query::<StatsQuery>().answers(list::<PortStats>()),
        get("/v1/capture", "Copies of frames, as they pass, in a pcapng stream")
            .query::<CaptureQuery>()
            .streams(PCAPNG, stream()),
        get("/v1/events", "What happens, as it happens: one JSON object a line")
            .streams(NDJSON, one::<Event>()),
        post("/v1/trace", "What would become of a packet or of frames, stage by stage")
            .takes::<TraceRequest>()
            .answers(list::<Trace>()),
        get("/v1/state", "Everything that was asked for, to import elsewhere")
            .answers(one::<State>()),
        post("/v1/state", "Make everything of such a document, or nothing")
            .takes::<State>()
            .answers(one::<Imported>()),
        post("/v1/purge", "Remove everything the daemon made").answers(one::<Purged>()),
        get("/v1/openapi.json", "This description").streams(JSON, stream()),
    ]
}

fn status_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Busy => "Others do as much of it as may be done at a time",
        Kind::Conflict => "Exists already, is in use, overlaps or is exhausted",
        Kind::Failed => "Carrying it out failed",
        Kind::Invalid => "The request makes no sense",
        Kind::NotFound => "No such thing",
        Kind::Unreachable => "Not ready",
    }
}

/// The whole document.
#[must_use]
pub fn document() -> OpenApi {
    let mut paths = PathsBuilder::new();
    let error = one::<ErrorBody>();
    let mut schemas = error.parts;
    for operation in operations() {
        let tag = operation.path.trim_start_matches("/v1/").split('/').next().unwrap_or_default();
        let mut builder = OperationBuilder::new()
            .tag(tag)
            .summary(Some(operation.summary))
            .parameters((!operation.parameters.is_empty()).then_some(operation.parameters));
        if let Some(body) = operation.body {
            schemas.extend(body.parts);
            let content = ContentBuilder::new().schema(Some(body.schema)).build();
            builder = builder.request_body(Some(
                RequestBodyBuilder::new()
                    .content(JSON, content)
                    .required(Some(Required::True))
                    .build(),
            ));
        }
        let (status, content_type, answer) = operation.answer;
        let mut response = ResponseBuilder::new().description(operation.summary);
        if let Some(answer) = answer {
            schemas.extend(answer.parts);
            let content = ContentBuilder::new().schema(Some(answer.schema)).build();
            response = response.content(content_type, content);
        }
        builder = builder.response(status, response.build());
        for kind in operation.errors {
            let content = ContentBuilder::new().schema(Some(error.schema.clone())).build();
            let response = ResponseBuilder::new()
                .description(status_text(*kind))
                .content(JSON, content)
                .build();
            builder = builder.response(kind.http_status().to_string(), response);
        }
        paths = paths.path(operation.path, PathItem::new(operation.method, builder.build()));
    }
    let mut components = ComponentsBuilder::new();
    for (name, schema) in schemas {
        components = components.schema(name, schema);
    }
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("vswitchd")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some("HTTP/JSON on the daemon's unix socket"))
                .build(),
        )
        .paths(paths.build())
        .components(Some(components.build()))
        .build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// The routes that server and client agreed on.
    const ROUTES: &[(&str, &str)] = &[
        ("get", "/v1/status"),
        ("get", "/v1/networks"),
        ("post", "/v1/networks"),
        ("post", "/v1/networks/prune"),
        ("get", "/v1/networks/{name}"),
        ("delete", "/v1/networks/{name}"),
        ("post", "/v1/networks/{name}/connect"),
        ("post", "/v1/networks/{name}/disconnect"),
        ("get", "/v1/sandboxes"),
        ("post", "/v1/sandboxes"),
        ("get", "/v1/sandboxes/{name}"),
        ("delete", "/v1/sandboxes/{name}"),
        ("get", "/v1/ports"),
        ("post", "/v1/sandboxes/{name}/ports"),
        ("post", "/v1/sandboxes/{name}/ports/unpublish"),
        ("get", "/v1/uplinks"),
        ("post", "/v1/uplinks"),
        ("delete", "/v1/uplinks/{interface}"),
        ("get", "/v1/routes"),
        ("post", "/v1/routes"),
        ("post", "/v1/routes/remove"),
        ("get", "/v1/policy"),
        ("post", "/v1/policy"),
        ("post", "/v1/policy/remove"),
        ("get", "/v1/neighbors"),
        ("get", "/v1/fdb"),
        ("get", "/v1/mdb"),
        ("post", "/v1/fdb"),
        ("post", "/v1/fdb/remove"),
        ("post", "/v1/fdb/flush"),
        ("get", "/v1/conntrack"),
        ("post", "/v1/conntrack/flush"),
        ("get", "/v1/conntrack/events"),
        ("get", "/v1/conntrack/stats"),
        ("get", "/v1/nat/rules"),
        ("get", "/v1/drops"),
        ("get", "/v1/stats"),
        ("get", "/v1/capture"),
        ("get", "/v1/events"),
        ("post", "/v1/trace"),
        ("get", "/v1/state"),
        ("post", "/v1/state"),
        ("post", "/v1/purge"),
        ("get", "/v1/openapi.json"),
    ];

    fn json() -> Value {
        serde_json::to_value(document()).unwrap()
    }

    #[test]
    fn every_route_and_no_other() {
        let document = json();
        let described: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                item.as_object().unwrap().keys().map(move |method| (method.clone(), path.clone()))
            })
            .collect();
        let agreed: BTreeSet<(String, String)> =
            ROUTES.iter().map(|(m, p)| ((*m).to_owned(), (*p).to_owned())).collect();
        assert_eq!(described, agreed);
    }

    /// Calls `visit` with every `$ref` of the document.
    fn references(value: &Value, visit: &mut dyn FnMut(&str)) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    visit(target);
                }
                map.values().for_each(|value| references(value, visit));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, visit)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        let document = json();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let mut count = 0;
        references(&document, &mut |target| {
            count += 1;
            let name = target.strip_prefix("#/components/schemas/").unwrap();
            assert!(schemas.contains_key(name), "{target}");
        });
        assert!(count > 100, "{count}");
        for name in ["Network", "Sandbox", "Connection", "ErrorBody", "PublishSpec", "Name"] {
            assert!(schemas.contains_key(name), "{name}");
        }
    }

    #[test]
    fn every_field_is_described() {
        let document = json();
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            let described = schema.get("description").is_some();
            assert!(described, "schema {name}");
            let none = serde_json::Map::new();
            let fields = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
            for (field, schema) in fields {
                // An optional reference has its description one level down.
                let described = schema.to_string().contains("\"description\":");
                assert!(described, "{name}.{field}: {schema}");
            }
        }
    }

    #[test]
    fn the_contract_s_fields_have_their_names() {
        let document = json();
        let fields = |schema: &str| -> BTreeSet<String> {
            let properties = &document["components"]["schemas"][schema]["properties"];
            properties.as_object().unwrap().keys().cloned().collect()
        };
        let table: &[(&str, &[&str])] = &[
            (
                "Network",
                &[
                    "name",
                    "id",
                    "driver",
                    "internal",
                    "ipv6",
                    "subnets",
                    "options",
                    "labels",
                    "endpoints",
                ],
            ),
            ("Subnet", &["subnet", "gateway", "ip_range", "aux_addresses"]),
            ("NetworkEndpoint", &["sandbox", "ifname", "mac", "ipv4", "ipv6", "options", "port"]),
            (
                "PortMapping",
                &["sandbox", "proto", "host_ip", "host_port", "host_port_end", "port", "port_end"],
            ),
            (
                "Status",
                &["version", "pid", "uptime_s", "workers", "networks", "endpoints", "conntrack"],
            ),
            ("WorkerStatus", &["id", "rx_frames", "tx_frames", "drops"]),
            ("ConntrackUse", &["entries", "grace_s", "limit"]),
            ("FdbUse", &["entries", "limit", "moves", "evictions", "refused"]),
            ("FdbEntry", &["network", "mac", "vlan", "port", "sandbox", "kind", "age_s"]),
            (
                "Connection",
                &[
                    "proto",
                    "state",
                    "orig",
                    "reply",
                    "nat",
                    "timeout_s",
                    "packets",
                    "bytes",
                    "network",
                ],
            ),
            ("Tuple", &["src", "dst", "sport", "dport"]),
            ("NatRule", &["kind", "network", "match", "to", "packets", "bytes"]),
            ("DropCount", &["reason", "count"]),
            (
                "PortStats",
                &[
                    "port",
                    "sandbox",
                    "network",
                    "rx_frames",
                    "rx_bytes",
                    "tx_frames",
                    "tx_bytes",
                    "rx_drops",
                    "rx_missed",
                    "refused",
                    "tx_drops",
                ],
            ),
        ];
        for (schema, names) in table {
            let have = fields(schema);
            for name in *names {
                assert!(have.contains(*name), "{schema}.{name} is missing: {have:?}");
            }
        }
    }
}
