//! The client's side of the API: HTTP/1.1 on the unix socket, one connection for each request.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::openapi::JSON;
use super::types::ErrorBody;
use crate::error::{Error, Result, ResultExt as _};

/// No answer of ours is longer: a million connections are half of it.
const MAX_ANSWER: usize = 1 << 30;

/// Knows where the daemon is.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon at this socket. Connects with each request, not before.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Where the daemon is.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET path`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Unreachable`] without a daemon, else what the daemon said.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, None).await
    }

    /// `GET path?query`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn query<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> Result<T> {
        self.call(Method::GET, &with_query(path, query)?, None).await
    }

    /// `POST path` with a body. For an answer without a body, `T` is `()`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body).failed("request")?;
        self.call(Method::POST, path, Some(body)).await
    }

    /// `POST path` without a body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post_empty<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::POST, path, None).await
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.call(Method::DELETE, path, None).await
    }

    /// `GET path?query`, the answer piece by piece.
    ///
    /// # Errors
    /// As [`Client::get`]; later, [`Stream::next`] may fail.
    pub async fn stream(&self, path: &str, query: &impl Serialize) -> Result<Stream> {
        let response = self.send(Method::GET, &with_query(path, query)?, None).await?;
        if response.status().is_success() {
            return Ok(Stream { body: response.into_body(), socket: self.socket.clone() });
        }
        Err(self.refusal(response, path).await)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T> {
        let response = self.send(method, path, body).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response, path).await);
        }
        let body = self.collect(response.into_body()).await?;
        let text: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(text).map_err(|error| {
            Error::failed(format!(
                "answer of the daemon to {path} not understood: {error} \
                 (is it of another version than this client?)"
            ))
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error, hint(error.kind())))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        // Ends with the connection; its errors come back through the request.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            // The socket is the authority; HTTP/1.1 wants a name nevertheless (RFC 9112 §3.2).
            .header(header::HOST, "vswitchd");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, JSON);
        }
        let request =
            request.body(Full::new(Bytes::from(body.unwrap_or_default()))).failed("request")?;
        sender.send_request(request).await.map_err(|error| self.broken(&error))
    }

    async fn collect(&self, mut body: Incoming) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(&error))?;
            bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            if bytes.len() > MAX_ANSWER {
                return Err(Error::failed("the daemon's answer is too long"));
            }
        }
        Ok(bytes)
    }

    /// What the daemon said in a response that is not a success.
    async fn refusal(&self, response: Response<Incoming>, path: &str) -> Error {
        let status = response.status();
        let body = match self.collect(response.into_body()).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => body.into(),
            Err(_) if matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) => {
                Error::failed(format!(
                    "the daemon at {} does not know {path} (is it older than this client?)",
                    self.socket.display()
                ))
            }
            Err(_) => Error::failed(format!(
                "the daemon at {} answered {status}: {}",
                self.socket.display(),
                String::from_utf8_lossy(&body)
            )),
        }
    }

    fn unreachable(&self, error: &dyn std::fmt::Display, hint: &str) -> Error {
        unreachable(&self.socket, error, hint)
    }

    fn broken(&self, error: &hyper::Error) -> Error {
        self.unreachable(error, "did vswitchd end?")
    }
}

fn unreachable(socket: &Path, error: &dyn std::fmt::Display, hint: &str) -> Error {
    Error::unreachable(format!("daemon not reachable at {}: {error} ({hint})", socket.display()))
}

fn hint(kind: std::io::ErrorKind) -> &'static str {
    match kind {
        std::io::ErrorKind::PermissionDenied => "are you root?",
        _ => "is vswitchd running?",
    }
}

/// An answer that comes piece by piece.
#[derive(Debug)]
pub struct Stream {
    body: Incoming,
    socket: PathBuf,
}

impl Stream {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// When the daemon ended before the answer did.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(unreachable(&self.socket, &error, "did vswitchd end?"));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

fn with_query(path: &str, query: &impl Serialize) -> Result<String> {
    let query = serde_urlencoded::to_string(query).failed("request")?;
    Ok(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") })
}

/// A path segment: what is not unreserved (RFC 3986 §2.3) is percent-encoded.
#[must_use]
pub fn segment(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{ConntrackFilter, FdbQuery};

    #[test]
    fn paths_are_encoded() {
        assert_eq!(segment("eth0.12"), "eth0.12");
        assert_eq!(segment("a b%/ä"), "a%20b%25%2F%C3%A4");
        assert_eq!(with_query("/v1/fdb", &FdbQuery::default()).unwrap(), "/v1/fdb");
        let filter = ConntrackFilter {
            src: Some("10.0.0.0/8".parse().unwrap()),
            dport: Some(80),
            ..ConntrackFilter::default()
        };
        let path = with_query("/v1/conntrack", &filter).unwrap();
        assert_eq!(path, "/v1/conntrack?src=10.0.0.0%2F8&dport=80");
    }

    #[tokio::test]
    async fn no_daemon_is_unreachable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let error = Client::new(&path).get::<()>("/v1/status").await.unwrap_err();
        assert_eq!(error.exit_code(), 5);
        let expected = format!(
            "daemon not reachable at {}: No such file or directory (os error 2) (is vswitchd running?)",
            path.display()
        );
        assert_eq!(error.message, expected);
        // A socket that nobody listens at, as a killed daemon leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let error = Client::new(&path).get::<()>("/v1/status").await.unwrap_err();
        assert!(error.message.contains("Connection refused"), "{}", error.message);
    }
}
