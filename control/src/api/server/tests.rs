//! The server on a socket, with a real switch behind it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::*;
use crate::api::types::{ErrorBody, Refusal, Status};
use crate::config::ServiceLimits;
use crate::error::Kind;
use crate::switch::tests::{Host, on_a_host};

/// Runs `client` against a server; it may block.
async fn with_server(host: Host, client: impl FnOnce(&Path) + Send + 'static) {
    let switch = host.start().await;
    let path = host.daemon().socket;
    let listener = bind(&path).unwrap();
    let (stop, stopping) = watch::channel(false);
    let server = tokio::spawn(serve(listener, switch, stopping));
    let socket = path.clone();
    let outcome = tokio::task::spawn_blocking(move || client(&socket)).await;
    stop.send(true).unwrap();
    server.await.unwrap().unwrap();
    if let Err(error) = outcome {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Sends a request; the status and, unless it is a stream's, the body.
fn ask(socket: &Path, request: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The server may refuse before it has read all.
    let _ = stream.write_all(body.as_bytes());
    let mut answer = Vec::new();
    let mut piece = [0; 65_536];
    loop {
        // A server that refuses may close before it has read all; what it said comes first.
        let len = match stream.read(&mut piece) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            // A child of another test ended.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other.unwrap(),
        };
        answer.extend_from_slice(&piece[..len]);
        let text = String::from_utf8_lossy(&answer);
        let streams = text.contains("application/x-");
        if len == 0 || streams && text.contains("\r\n\r\n") {
            let status = text.split(' ').nth(1).unwrap().parse().unwrap();
            let body = text.split_once("\r\n\r\n").unwrap().1.to_owned();
            return (status, body);
        }
    }
}

fn refusal(body: &str) -> Error {
    serde_json::from_str::<ErrorBody>(body).unwrap_or_else(|e| panic!("{e}: {body}")).into()
}

#[test]
#[ignore = "needs root"]
fn every_described_operation_is_served() {
    on_a_host(|host| {
        with_server(host, |socket| {
            let document = serde_json::to_value(crate::api::openapi::document()).unwrap();
            let mut count = 0;
            for (path, item) in document["paths"].as_object().unwrap() {
                for method in item.as_object().unwrap().keys() {
                    let path = path.replace("{name}", "nobody").replace("{interface}", "nobody0");
                    let request = format!("{} {path}", method.to_uppercase());
                    let (status, body) = ask(socket, &request, "");
                    assert_ne!(status, 500, "{request}: {body}");
                    assert!(!body.contains("see /v1/openapi.json"), "{request}: {body}");
                    if status >= 400 {
                        assert_eq!(refusal(&body).http_status(), status);
                    }
                    count += 1;
                }
            }
            assert!(count > 30, "{count}");
        })
    });
}

#[test]
#[ignore = "needs root"]
fn what_is_not_served_is_refused_in_one_line() {
    on_a_host(|host| {
        with_server(host, |socket| {
            let long = format!("{{\"name\":\"{}\"}}", "x".repeat(2 << 20));
            for (request, body, kind, part) in [
                ("GET /v2/status", "", Kind::NotFound, "/v2/status: no such path"),
                ("PUT /v1/networks", "", Kind::Invalid, "PUT /v1/networks: not with this method"),
                ("POST /v1/networks", "{", Kind::Invalid, "body: is not JSON: "),
                ("POST /v1/networks", "", Kind::Invalid, "body: field \"name\": is missing"),
                ("POST /v1/state", "{\"version\": 1", Kind::Invalid, "it ends too early"),
                ("POST /v1/state", "", Kind::Invalid, "state: field \"version\": is missing"),
                ("POST /v1/state", "{\"version\": 2}", Kind::Invalid, "state: has version 2, "),
                ("GET /v1/state?x=1", "", Kind::Invalid, "query: field \"x\": is unknown"),
                ("POST /v1/networks", "[\"a\"]", Kind::Invalid, "body: is not a JSON object"),
                ("POST /v1/networks", "{\"name\":\"a/b\"}", Kind::Invalid, "contains '/'"),
                (
                    "POST /v1/networks",
                    "{\"name\":\"a\",\"x\":1}",
                    Kind::Invalid,
                    "\"x\": is unknown",
                ),
                ("POST /v1/networks", &long, Kind::Invalid, "body: is longer than"),
                ("GET /v1/networks/a%2Fb", "", Kind::Invalid, "network name \"a/b\""),
                ("GET /v1/networks/nope", "", Kind::NotFound, "network \"nope\": no such network"),
                ("GET /v1/networks/%ff", "", Kind::Invalid, "%ff: the name is not UTF-8"),
                (
                    "GET /v1/fdb?colour=red",
                    "",
                    Kind::Invalid,
                    "query: field \"colour\": is unknown",
                ),
                ("GET /v1/conntrack?proto=foo", "", Kind::Invalid, "\"proto\": protocol \"foo\""),
                ("GET /v1/conntrack?state=foo", "", Kind::Invalid, "known are SYN_SENT"),
                // What is asked to do less than everything does not do everything.
                ("GET /v1/events?network=a", "", Kind::Invalid, "\"network\": is unknown"),
                ("POST /v1/networks/prune?x=1", "", Kind::Invalid, "\"x\": is unknown"),
                ("POST /v1/networks/prune", "{\"x\":1}", Kind::Invalid, "\"x\": is unknown"),
                ("POST /v1/purge", "{\"network\":\"a\"}", Kind::Invalid, "\"network\": is unknown"),
                ("POST /v1/conntrack/flush", "{\"state\":\"foo\"}", Kind::Invalid, "known are"),
                ("PUT /v1/fdb", "", Kind::Invalid, "PUT /v1/fdb: not with this method"),
                (
                    "GET /v1/fdb?network=nope",
                    "",
                    Kind::NotFound,
                    "network \"nope\": no such network",
                ),
                ("POST /v1/trace", "{}", Kind::Invalid, "name one of sandbox and uplink"),
                ("POST /v1/trace", "{\"sandbox\":\"s\"}", Kind::Invalid, "a packet, or frames"),
                (
                    "POST /v1/trace",
                    "{\"sandbox\":\"nope\",\"frames\":[\"00\"]}",
                    Kind::NotFound,
                    "nope",
                ),
                (
                    "POST /v1/trace",
                    "{\"uplink\":\"u\",\"packet\":\"tcp x\"}",
                    Kind::Invalid,
                    "source \"x\"",
                ),
                ("GET /v1/capture?network=none", "", Kind::Conflict, "no interface to capture at"),
                ("GET /v1/capture?network=bridge&count=0", "", Kind::Invalid, "count must be 1"),
                (
                    "POST /v1/networks/none/connect",
                    "{\"sandbox\":\"s\"}",
                    Kind::Invalid,
                    "network \"none\": cannot be connected to",
                ),
                (
                    "POST /v1/networks/host/disconnect",
                    "{\"sandbox\":\"s\"}",
                    Kind::Invalid,
                    "network \"host\": cannot be disconnected from",
                ),
                ("GET /v1/capture", "", Kind::Invalid, "name one of sandbox, uplink and network"),
            ] {
                let (status, answer) = ask(socket, request, body);
                let error = refusal(&answer);
                assert_eq!((error.kind, error.http_status()), (kind, status), "{request}");
                assert!(error.message.contains(part), "{request}: {}", error.message);
                assert!(!error.message.contains('\n'));
            }
        })
    });
}

#[test]
#[ignore = "needs root"]
fn networks_that_are_but_a_name_have_nothing_to_show() {
    on_a_host(|host| {
        with_server(host, |socket| {
            for network in ["host", "none"] {
                for path in ["fdb", "conntrack", "drops"] {
                    let request = format!("GET /v1/{path}?network={network}");
                    assert_eq!(ask(socket, &request, ""), (200, "[]".to_owned()), "{request}");
                }
                let entry = format!("{{\"network\":\"{network}\"}}");
                let (status, body) = ask(socket, "POST /v1/fdb/flush", &entry);
                assert_eq!(status, 400, "{body}");
                assert!(refusal(&body).message.contains("has no ports, FDB"), "{body}");
            }
        })
    });
}

#[test]
#[ignore = "needs root"]
fn events_are_lines_and_end_with_the_daemon() {
    on_a_host(|host| {
        with_server(host, |socket| {
            let mut events = UnixStream::connect(socket).unwrap();
            events.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            events.write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut head = [0; 15];
            events.read_exact(&mut head).unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK");
            let made = ask(socket, "POST /v1/networks", "{\"name\":\"app\"}");
            assert_eq!(made.0, 201, "{}", made.1);
            let mut text = String::new();
            while !(text.contains("network_create") && text.ends_with('\n')) {
                let mut byte = [0];
                events.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {text}"));
                text.push_str(&String::from_utf8_lossy(&byte));
            }
            assert!(text.contains("\"network\":\"app\"}\n"), "{text}");
        })
    });
}

#[test]
#[ignore = "needs root"]
fn so_many_read_what_happens_to_connections_and_no_more() {
    on_a_host(|host| {
        with_server(host, |socket| {
            let read = || {
                let mut stream = UnixStream::connect(socket).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                stream.write_all(b"GET /v1/conntrack/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                let mut head = [0; 12];
                stream.read_exact(&mut head).unwrap();
                (stream, String::from_utf8_lossy(&head).into_owned())
            };
            let readers: Vec<_> =
                (0..ServiceLimits::default().event_readers).map(|_| read()).collect();
            assert!(readers.iter().all(|(_, head)| head == "HTTP/1.1 200"));
            let (status, body) = ask(socket, "GET /v1/conntrack/events", "");
            let error = refusal(&body);
            assert_eq!((status, error.kind), (503, Kind::Busy));
            assert!(error.message.contains("8 read them already"), "{error}");
            let status: Status =
                serde_json::from_str(&ask(socket, "GET /v1/status", "").1).unwrap();
            let of = |name: &str| status.limits.iter().find(|it| it.name == name).unwrap().clone();
            let shown = of("event_readers");
            assert_eq!((shown.current, shown.peak, shown.limit), (8, 8, 8));
            assert_eq!((shown.refusal, shown.refused), (Some(Refusal::Busy), Some(1)));
            for (name, limit) in
                [("policy_rules", 256), ("host_connections", 1024), ("host_datagram_clients", 512)]
            {
                let shown = of(name);
                assert_eq!((shown.current, shown.peak, shown.limit), (0, 0, limit), "{name}");
                assert!(shown.refusal.is_some(), "{name}");
            }
            // Who goes leaves a place.
            drop(readers);
            let until = std::time::Instant::now() + Duration::from_secs(5);
            while read().1 != "HTTP/1.1 200" {
                assert!(std::time::Instant::now() < until, "nobody's place is free again");
                std::thread::sleep(Duration::from_millis(50));
            }
        })
    });
}

#[tokio::test]
async fn a_socket_that_is_served_is_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let first = bind(&path).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o660);
    assert_eq!(bind(&path).unwrap_err().kind, Kind::Conflict);
    // Its owner was killed: the file is nobody's.
    drop(first);
    drop(bind(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "text").unwrap();
    assert_eq!(bind(&path).unwrap_err().kind, Kind::Conflict);
    assert_eq!(std::fs::read(&path).unwrap(), b"text");
}
