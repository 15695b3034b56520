//! Reading requests: bodies, queries and names, with errors in one line.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::fault::{read_body, read_query, read_state};
use super::{Api, Failure};
use crate::api::types::State;
use crate::error::{Error, Result};
use crate::name::Name;

/// The longest body. A network with thousands of auxiliary addresses is far below.
const MAX_BODY: usize = 1 << 20;

/// A body is there at once; a client that does not send it holds nothing up but its connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest state to import: some ten thousand sandboxes.
const MAX_STATE: usize = 16 << 20;

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &Api) -> std::result::Result<Self, Failure> {
        Ok(Self(read_body(&body(request, MAX_BODY).await?)?))
    }
}

/// A body that is a whole state.
pub(super) struct StateBody(pub(super) State);

impl FromRequest<Api> for StateBody {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &Api) -> std::result::Result<Self, Failure> {
        Ok(Self(read_state("state", &body(request, MAX_STATE).await?)?))
    }
}

/// The text of a body. One left out means all fields left out.
async fn body(request: Request, most: usize) -> std::result::Result<Bytes, Failure> {
    let body = Limited::new(request.into_body(), most).collect();
    let bytes = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err(invalid(format!("body: is longer than {most} bytes")));
        }
        Ok(Err(error)) => return Err(invalid(format!("body: {error}"))),
        Err(_) => return Err(invalid("body: did not arrive in time")),
    };
    Ok(if bytes.is_empty() { Bytes::from_static(b"{}") } else { bytes })
}

/// The query.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> std::result::Result<Self, Failure> {
        Ok(Self(read_query(parts.uri.query().unwrap_or_default())?))
    }
}

/// The body or the query of what takes none: one that asks for less than everything must not get
/// everything.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// Refuses queries before routes that take none.
pub(super) async fn without_query(request: Request, next: Next) -> Response {
    match read_query::<Nothing>(request.uri().query().unwrap_or_default()) {
        Ok(Nothing {}) => next.run(request).await,
        Err(error) => Failure(error).into_response(),
    }
}

/// The part of the path that names a thing.
pub(super) struct Named(String);

impl Named {
    /// As a name; `what` says of which kind of thing.
    pub(super) fn name(&self, what: &str) -> Result<Name> {
        Name::parse(what, &self.0)
    }

    /// As it is, for things that have other names than ours.
    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

impl FromRequestParts<Api> for Named {
    type Rejection = Failure;

    async fn from_request_parts(
        parts: &mut Parts,
        api: &Api,
    ) -> std::result::Result<Self, Failure> {
        match Path::from_request_parts(parts, api).await {
            Ok(Path(text)) => Ok(Self(text)),
            Err(_) => Err(invalid(format!("{}: the name is not UTF-8", parts.uri.path()))),
        }
    }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure(Error::invalid(message))
}
