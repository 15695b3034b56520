//! The server, and the client started against it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::mpsc::UnboundedReceiver;

/// What the client sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) body: Value,
}

/// What it gets.
pub(crate) enum Answer {
    Json(u16, Value),
    Text(u16, &'static str),
    /// Each piece when it comes; the end when the sender is dropped.
    Stream(UnboundedReceiver<Vec<u8>>),
}

type Key = (&'static str, &'static str);

struct Shared {
    answers: HashMap<Key, Answer>,
    asked: Vec<Asked>,
}

/// A server on a socket of its own. Ends with the test.
pub(crate) struct Fake {
    dir: TempDir,
    shared: Arc<Mutex<Shared>>,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    /// Answers by method and path; anything else is 404 without a body of ours.
    pub(crate) fn new(answers: impl IntoIterator<Item = (Key, Answer)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shared = Shared { answers: answers.into_iter().collect(), asked: Vec::new() };
        let shared = Arc::new(Mutex::new(shared));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let listener = {
            let _entered = runtime.enter();
            UnixListener::bind(dir.path().join("sock")).unwrap()
        };
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { dir, shared, _runtime: runtime }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.lock().unwrap().asked.clone()
    }

    /// The client, to be started.
    pub(crate) fn client(&self, arguments: &[&str]) -> Command {
        let mut command = client();
        command.arg("--socket").arg(self.socket()).args(arguments);
        command
    }

    /// The client, to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        Ended::new(&self.client(arguments).output().unwrap())
    }
}

/// The built program without any setting of this machine.
pub(crate) fn client() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vswitchctl"));
    command.env_remove("VSWITCHD_SOCKET").stdin(std::process::Stdio::null());
    command
}

/// How the client ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn new(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

async fn answer(State(shared): State<Arc<Mutex<Shared>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let path = parts.uri.path_and_query().unwrap().to_string();
    let mut shared = shared.lock().unwrap();
    shared.asked.push(Asked {
        method: parts.method.to_string(),
        path: path.clone(),
        body: if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() },
    });
    let key = shared
        .answers
        .keys()
        .find(|(method, wanted)| *method == parts.method.as_str() && *wanted == path)
        .copied();
    let response = |status: u16, body: Body| Response::builder().status(status).body(body).unwrap();
    match key.and_then(|key| shared.answers.get_mut(&key)) {
        None => response(404, Body::empty()),
        Some(Answer::Text(status, text)) => response(*status, Body::from(*text)),
        Some(Answer::Json(status, Value::Null)) => response(*status, Body::empty()),
        Some(Answer::Json(status, value)) => response(*status, Body::from(value.to_string())),
        Some(Answer::Stream(pieces)) => {
            let (_, empty) = tokio::sync::mpsc::unbounded_channel();
            let pieces = std::mem::replace(pieces, empty);
            let stream = futures::stream::unfold(pieces, |mut pieces| async {
                let piece = pieces.recv().await?;
                Some((Ok::<_, std::convert::Infallible>(Bytes::from(piece)), pieces))
            });
            response(200, Body::from_stream(stream))
        }
    }
}
