//! Reading requests: bodies, queries and names, with errors in one line.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::{Api, Failure};
use crate::error::{Error, Result};
use crate::name::Name;

/// The longest body. A network with thousands of auxiliary addresses is far below.
const MAX_BODY: usize = 1 << 20;

/// A body is there at once; a client that does not send it holds nothing up but its connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &Api) -> std::result::Result<Self, Failure> {
        let body = Limited::new(request.into_body(), MAX_BODY).collect();
        let bytes = match tokio::time::timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return Err(invalid(format!("body is longer than {MAX_BODY} bytes")));
            }
            Ok(Err(error)) => return Err(invalid(format!("body: {error}"))),
            Err(_) => return Err(invalid("body did not arrive in time")),
        };
        // A body left out means all fields left out.
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Self).map_err(|error| invalid(format!("body: {error}")))
    }
}

/// The query.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> std::result::Result<Self, Failure> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(query)) => Ok(Self(query)),
            Err(error) => Err(invalid(format!("query: {}", error.body_text()))),
        }
    }
}

/// A name out of the path; `what` says of which kind of thing.
pub(super) fn name(what: &str, text: &str) -> Result<Name> {
    Name::parse(what, text)
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure(Error::invalid(message))
}
