//! `/api/v1/sessions`: every power-on, from its first packet on.
//!
//! A session here is a boot attempt with its events, and, once client and image are known, the
//! row of `boot_sessions` of the same id.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;

use super::error::ApiError;
use super::extract::{Asked, Called, shown};
use super::{Shared, clients};
use crate::catalog::AttemptFilter;
use crate::model::{Attempt, BootEvent, BootSession, MacAddr};

/// Sessions in an answer if the question sets no limit: history has no end.
const LIMIT: i64 = 100;
/// A stream that has nothing to tell says so, so that both ends notice a dead peer.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One session as it is answered.
#[derive(serde::Serialize)]
struct View<'a> {
    #[serde(flatten)]
    attempt: &'a Attempt,
    session: Option<&'a BootSession>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<&'a [BootEvent]>,
}

/// `GET /api/v1/sessions?active=&client=&mac=&limit=&offset=`, newest first.
pub(super) async fn list(
    State(api): State<Shared>,
    mut asked: Asked,
) -> Result<Json<Value>, ApiError> {
    let mut page = asked.page();
    page.limit = page.limit.or(Some(LIMIT));
    let open_only = asked.parsed::<bool>("active", "true or false") == Some(true);
    let mac = asked.parsed::<MacAddr>("mac", "a MAC address");
    let client = asked.text("client");
    asked.finish()?;
    let client_id = match client {
        Some(name) => Some(clients::find(&api, &name).await?.id),
        None => None,
    };
    let filter = AttemptFilter {
        open_only,
        mac,
        client_id,
    };
    let found = api.catalog.list_attempts(filter, page).await?;
    let sessions: Vec<View<'_>> = found
        .iter()
        .map(|(attempt, session)| View {
            attempt,
            session: session.as_ref(),
            events: None,
        })
        .collect();
    Ok(Json(json!({"sessions": sessions})))
}

/// `GET /api/v1/sessions/{session}`, with its events.
pub(super) async fn get(
    State(api): State<Shared>,
    Called(name): Called,
) -> Result<Response, ApiError> {
    let found = match name.parse::<Uuid>() {
        Ok(id) => api.catalog.get_attempt(id).await?,
        Err(_) => None,
    };
    let Some((attempt, events, session)) = found else {
        return Err(ApiError::NotFound(format!(
            "there is no session `{}`",
            shown(&name)
        )));
    };
    let view = View {
        attempt: &attempt,
        session: session.as_ref(),
        events: Some(&events),
    };
    Ok(Json(view).into_response())
}

/// How a stream is written.
#[derive(Clone, Copy)]
enum Framing {
    /// One JSON object a line; empty lines keep it alive.
    Lines,
    /// `text/event-stream`, for browsers.
    Events,
}

/// `GET /api/v1/sessions/watch`: events of boots as they happen, until either side ends.
/// One JSON object a line (`application/x-ndjson`), or server-sent events for whoever accepts
/// `text/event-stream`. A watcher that is too slow is told how many it missed.
pub(super) async fn watch(
    State(api): State<Shared>,
    asked: Asked,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    asked.finish()?;
    let accepts = headers.get(header::ACCEPT).and_then(|a| a.to_str().ok());
    let (framing, kind) = if accepts.is_some_and(|a| a.contains("text/event-stream")) {
        (Framing::Events, "text/event-stream")
    } else {
        (Framing::Lines, "application/x-ndjson")
    };
    let live = api.tracker.subscribe();
    // An empty frame at once: whoever watches knows that nothing is missed from here on.
    let start = stream::iter([Ok::<_, Infallible>(frame(framing, None))]);
    let events = stream::unfold((live, api), move |(mut live, api)| async move {
        let next = tokio::select! {
            () = api.cancel.cancelled() => return None,
            next = tokio::time::timeout(KEEP_ALIVE, live.recv()) => next,
        };
        let json = match next {
            Err(_) => None,
            Ok(Ok(event)) => serde_json::to_string(&*event).ok(),
            Ok(Err(RecvError::Lagged(missed))) => Some(json!({"missed": missed}).to_string()),
            Ok(Err(RecvError::Closed)) => return None,
        };
        Some((Ok(frame(framing, json.as_deref())), (live, api)))
    });
    let body = Body::from_stream(futures_util::StreamExt::chain(start, events));
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}

/// JSON as `serde_json` writes it has no line ends, so one line is one event.
fn frame(framing: Framing, json: Option<&str>) -> String {
    match (framing, json) {
        (Framing::Lines, json) => format!("{}\n", json.unwrap_or_default()),
        (Framing::Events, Some(json)) => format!("data: {json}\n\n"),
        (Framing::Events, None) => ":\n\n".to_owned(),
    }
}
