//! Answers without an end: events and captures. They end with the client or with the daemon; a
//! capture with the last of its ports, too.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use dataplane::conntrack::Watch;
use dataplane::engine::Capture;
use futures::stream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::Api;
use crate::api::openapi::{NDJSON, PCAPNG};
use crate::api::types::{CaptureQuery, ConntrackFilter, Event};
use crate::capture::Recorder;
use crate::error::{Error, Result};
use crate::places::Limit;
use crate::switch::Switch;

/// Captured frames are whole.
const SNAPLEN: usize = 65_535 + 18;

/// How often an idle capture looks for frames.
const CAPTURE_PAUSE: Duration = Duration::from_millis(10);

/// How often an idle stream of connections looks for events.
const EVENT_PAUSE: Duration = Duration::from_millis(20);

/// Bytes sent in one piece of a busy capture.
const CAPTURE_PIECE: usize = 256 << 10;

/// `GET /v1/events`: every change from now on, one JSON object in a line.
pub(super) fn events(api: &Api) -> Response {
    let limit = Arc::clone(&api.switch.services().events);
    let state = (api.switch.subscribe(), api.stopping.clone(), limit);
    let lines = stream::unfold(state, |(mut events, mut stopping, limit)| async move {
        let line = next_line(&mut events, &mut stopping, &limit).await?;
        Some((Ok::<_, Infallible>(line), (events, stopping, limit)))
    });
    ([(CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response()
}

async fn next_line(
    events: &mut broadcast::Receiver<Event>,
    stopping: &mut watch::Receiver<bool>,
    limit: &Limit,
) -> Option<Bytes> {
    let event = tokio::select! {
        event = events.recv() => event,
        _ = stopping.wait_for(|stop| *stop) => return None,
    };
    let event = match event {
        Ok(event) => event,
        Err(RecvError::Closed) => return None,
        Err(RecvError::Lagged(missed)) => {
            limit.refuse_all(missed);
            missed_event(missed)
        }
    };
    let mut line = serde_json::to_vec(&event).ok()?;
    line.push(b'\n');
    Some(line.into())
}

/// `GET /v1/conntrack/events`: what happens to connections from now on, one JSON object in a line.
pub(super) fn connection_events(api: &Api, filter: ConntrackFilter) -> Result<Response> {
    // A network that is not there is an error, not silence.
    api.switch.check_filter(&filter)?;
    let full = || {
        let all = api.switch.services().event_readers.limit();
        Error::busy(format!(
            "conntrack events: {all} read them already; end one of those first, or raise \
             limits.event_readers"
        ))
    };
    // Given back after the watch, so that whoever has a place finds one in the engine.
    let place = api.readers.try_take().ok_or_else(full)?;
    let watch = api.switch.engine().watch_connections(true).ok_or_else(full)?;
    let state = (watch, place, filter, Arc::clone(&api.switch), api.stopping.clone());
    let pieces = stream::unfold(state, |(watch, place, filter, switch, stopping)| async move {
        loop {
            let over = *stopping.borrow();
            let piece = events_of(&watch, &filter, &switch);
            if !piece.is_empty() {
                let state = (watch, place, filter, switch, stopping);
                return Some((Ok::<_, Infallible>(Bytes::from(piece)), state));
            }
            if over {
                return None;
            }
            tokio::time::sleep(EVENT_PAUSE).await;
        }
    });
    Ok(([(CONTENT_TYPE, NDJSON)], Body::from_stream(pieces)).into_response())
}

/// The lines of what has happened since the last look, as many as go into one piece.
fn events_of(watch: &Watch, filter: &ConntrackFilter, switch: &Switch) -> Vec<u8> {
    let mut piece = Vec::new();
    let Some(first) = watch.next_event() else { return piece };
    let names = switch.network_names();
    let mut next = Some(first);
    while let Some(event) = next {
        if let Some(shown) = switch.connection_event(&event, filter, &names) {
            append_line(&mut piece, &shown);
        }
        next = if piece.len() < CAPTURE_PIECE { watch.next_event() } else { None };
    }
    let missed = watch.take_missed();
    if missed > 0 {
        append_line(&mut piece, &missed_event(missed));
    }
    piece
}

fn append_line(piece: &mut Vec<u8>, value: &impl serde::Serialize) {
    // Types of the API are always JSON.
    if let Ok(mut line) = serde_json::to_vec(value) {
        piece.append(&mut line);
        piece.push(b'\n');
    }
}

/// Said in the stream, so that the reader knows to list everything anew.
fn missed_event(missed: u64) -> Event {
    Event {
        time_ms: 0,
        event: "missed".to_owned(),
        network: None,
        sandbox: None,
        detail: Some(format!("{missed} events")),
    }
}

/// `GET /v1/capture`.
pub(super) fn capture(api: &Api, query: &CaptureQuery) -> Result<Response> {
    if query.count == Some(0) {
        return Err(Error::invalid("capture: count must be 1 or more; leave it out for no end"));
    }
    let ports = api.switch.capture_ports(
        query.sandbox.as_ref(),
        query.uplink.as_deref(),
        query.network.as_ref(),
    )?;
    let filter = match &query.filter {
        Some(text) => Some(text.parse().map_err(|error: Error| error.context("capture"))?),
        None => None,
    };
    let recorder = Recorder::new(&ports, filter, query.count)?;
    let ids: Vec<_> = ports.iter().map(|(port, _)| *port).collect();
    let source = api.switch.engine().capture(&ids, SNAPLEN);
    let state = (source, recorder, api.stopping.clone());
    let pieces = stream::unfold(state, |(source, mut recorder, stopping)| async move {
        loop {
            let mut piece = recorder.take();
            // Asked before the last frames are taken out, so that none is left behind.
            let over = source.is_over();
            if piece.is_empty() && (recorder.finished() || *stopping.borrow()) {
                warn_of_missed(&source);
                return None;
            }
            while piece.len() < CAPTURE_PIECE && !recorder.finished() {
                let Some(frame) = source.next_frame() else { break };
                if recorder.record(&frame) {
                    piece.append(&mut recorder.take());
                }
            }
            if !piece.is_empty() {
                return Some((
                    Ok::<_, Infallible>(Bytes::from(piece)),
                    (source, recorder, stopping),
                ));
            }
            if over {
                warn_of_missed(&source);
                return None;
            }
            tokio::time::sleep(CAPTURE_PAUSE).await;
        }
    });
    Ok(([(CONTENT_TYPE, PCAPNG)], Body::from_stream(pieces)).into_response())
}

fn warn_of_missed(source: &Capture) {
    let missed = source.missed();
    if missed > 0 {
        tracing::warn!("a capture missed {missed} frames");
    }
}
