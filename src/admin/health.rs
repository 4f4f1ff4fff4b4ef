//! `/healthz` (alive), `/readyz` (fit to serve), `/metrics`. No token, and nothing secret.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Shared;
use super::error::ApiError;

/// One part that has to work before machines can boot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Part {
    /// `database`, `tftp`, `http`, `dhcp eth1`, ...
    pub name: String,
    /// True if it works.
    pub ready: bool,
    /// Why not, or where it listens.
    pub detail: String,
}

/// Says how the listeners stand; asked at each `/readyz`, so it must not wait. The database is
/// looked at by the admin API itself.
pub type Readiness = Arc<dyn Fn() -> Vec<Part> + Send + Sync>;

/// How long the database may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The process runs and answers; how the database stands, and since when.
pub(super) async fn alive(State(api): State<Shared>) -> Json<serde_json::Value> {
    let database = match api.catalog.is_away() {
        true => "away",
        false if api.catalog.is_not_writing() => "not writing",
        false => "here",
    };
    Json(serde_json::json!({
        "status": "alive",
        "version": env!("CARGO_PKG_VERSION"),
        "database": database,
    }))
}

/// 200 when machines are served, else 503; and how each part stands. A database that is away is
/// told and does not make the server unfit: machines boot on from what is known.
pub(super) async fn ready(State(api): State<Shared>) -> Response {
    let database = database(&api).await;
    let degraded = !database.ready || api.catalog.is_behind();
    let parts = (api.readiness)();
    let borne = api.catalog.is_away() || api.catalog.is_not_writing();
    let ready = (database.ready || borne) && parts.iter().all(|part| part.ready);
    let parts: Vec<Part> = std::iter::once(database).chain(parts).collect();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        Json(serde_json::json!({"ready": ready, "degraded": degraded, "parts": parts})),
    )
        .into_response()
}

async fn database(api: &Shared) -> Part {
    let part = |ready, detail: String| Part {
        name: "database".into(),
        ready,
        detail,
    };
    if api.catalog.is_away() {
        return part(false, "away; machines are served from what is known".into());
    }
    if api.catalog.is_not_writing() {
        return part(
            false,
            "there, and can't write; what machines do is kept in the local journal".into(),
        );
    }
    match tokio::time::timeout(PATIENCE, api.catalog.health_check()).await {
        Ok(Ok((_, asked))) => part(
            true,
            format!("answered in {} ms", asked.elapsed().as_millis()),
        ),
        // The error's inside may name hosts and users: not for everybody.
        Ok(Err(_)) => part(false, "can't be reached".into()),
        Err(_) => part(
            false,
            format!("did not answer within {} s", PATIENCE.as_secs()),
        ),
    }
}

/// Every counter, in OpenMetrics text.
pub(super) async fn metrics(State(api): State<Shared>) -> Result<Response, ApiError> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &api.registry)
        .map_err(|e| ApiError::Internal(format!("encoding metrics: {e}")))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
