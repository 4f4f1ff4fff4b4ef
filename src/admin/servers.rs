//! `/api/v1/servers`: those that share the catalog.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::Shared;
use super::error::ApiError;
use super::extract::{Asked, Called, shown};
use crate::replicate::NotReplicated;

/// `GET /api/v1/servers`
pub(super) async fn list(State(api): State<Shared>, asked: Asked) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    let site = api.catalog.site().await?;
    let own = api.replication.server_id();
    let told = site.servers.iter().map(|server| {
        let mut told = json!(server);
        told["this"] = json!(server.id == own);
        told
    });
    Ok(Json(json!({"servers": told.collect::<Vec<_>>()})))
}

/// `DELETE /api/v1/servers/{server}`: it is gone for good. Its lease blocks are free for others
/// at once, and its replicas are no more.
pub(super) async fn forget(
    State(api): State<Shared>,
    Called(name): Called,
    asked: Asked,
) -> Result<StatusCode, ApiError> {
    asked.finish()?;
    let server = match api.replication.called(&name).await {
        Err(error @ NotReplicated::NoServer(_)) => {
            return Err(ApiError::NotFound(error.to_string()));
        }
        found => found?,
    };
    if !api.catalog.forget_server(server.id).await? {
        return Err(ApiError::Conflict {
            field: "",
            message: format!(
                "the server `{}` is alive (its heartbeat is younger than 35 s): stop it first",
                shown(&server.name)
            ),
        });
    }
    tracing::warn!(
        server = server.name,
        "a server is forgotten; its lease blocks are free for others"
    );
    Ok(StatusCode::NO_CONTENT)
}
