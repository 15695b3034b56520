//! The daemon's side of the API: HTTP/1.1 on the unix socket.
//!
//! A request that changes something runs in a task of its own: a client that goes away does not
//! leave it half-done. Bodies are limited in size and in the time they may take to arrive, and
//! answers that are no stream end; streams end with the daemon.

mod fault;
mod input;
mod routes;
mod stream;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::api::types::ErrorBody;
use crate::error::{Error, Result, ResultExt};
use crate::places::Places;
use crate::switch::Switch;

pub use self::fault::{read_body, read_query, read_state};

/// What open requests get to end before they are cut off at a stop.
const GRACE: Duration = Duration::from_secs(5);

/// What every handler can reach.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    switch: Arc<Switch>,
    /// True: the daemon stops, streams end.
    stopping: watch::Receiver<bool>,
    /// Places for those who read what happens to connections.
    readers: Places,
}

impl Api {
    /// Runs a change to its end, whatever becomes of the client.
    async fn change<T, F>(&self, change: impl FnOnce(Arc<Switch>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        match tokio::spawn(change(Arc::clone(&self.switch))).await {
            Ok(outcome) => outcome,
            Err(error) => Err(Error::failed(format!("internal: {error}"))),
        }
    }
}

/// An error as an answer.
#[derive(Debug)]
struct Failure(Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.http_status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody::from(&self.0))).into_response()
    }
}

/// Looks whether another daemon listens on the socket, changing nothing.
///
/// # Errors
/// A conflict when one does, or when the path is something else.
pub fn probe(path: &Path) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;

    let conflict =
        |fault: &str| Err(Error::conflict(format!("socket {}: {fault}", path.display())));
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            conflict("is a file of another kind; remove it or give another --socket")
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            conflict("another vswitchd listens there; stop that one or give another --socket")
        }
        _ => Ok(()),
    }
}

/// Binds the socket, in place of one that nobody listens on.
///
/// # Errors
/// A conflict when another daemon listens there; else when the socket cannot be made.
pub fn bind(path: &Path) -> Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;

    let context = || format!("socket {}", path.display());
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            probe(path)?;
            std::fs::remove_file(path).failed(context())?;
            UnixListener::bind(path).failed(context())?
        }
        other => other.failed(context())?,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).failed(context())?;
    Ok(listener)
}

/// Serves until `stopping` says so.
///
/// # Errors
/// When the socket fails.
pub async fn serve(
    listener: UnixListener,
    switch: Arc<Switch>,
    mut stopping: watch::Receiver<bool>,
) -> Result<()> {
    let readers = switch.services().event_readers.places();
    let router = routes::router(Api { switch, stopping: stopping.clone(), readers });
    let mut told = stopping.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        // An error says that the sender is gone, which is a stop too.
        let _ = told.wait_for(|stop| *stop).await;
    });
    let mut server = std::pin::pin!(server.into_future());
    tokio::select! {
        outcome = &mut server => return outcome.failed("serve the API"),
        _ = stopping.wait_for(|stop| *stop) => {}
    }
    if tokio::time::timeout(GRACE, server).await.is_err() {
        tracing::warn!("some clients did not end in time and are cut off");
    }
    Ok(())
}
