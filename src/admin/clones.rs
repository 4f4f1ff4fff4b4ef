//! What machines write to: `/api/v1/clones`, and how much they may:
//! `/api/v1/images/{image}/clone-quota`, `/api/v1/clients/{client}/clone-quota`.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::error::ApiError;
use super::extract::{Asked, Called, JsonObject};
use super::{Shared, clients, images};
use crate::model::{Client, Image};
use crate::validate::{self, Reader, Write};

/// `GET /api/v1/clones[?client=NAME]`: as their servers last told of them, which is a minute ago
/// at most.
pub(super) async fn list(
    State(api): State<Shared>,
    mut asked: Asked,
) -> Result<Json<Value>, ApiError> {
    let client = asked.text("client");
    asked.finish()?;
    let client = match client {
        Some(name) => Some(clients::find(&api, &name).await?.id),
        None => None,
    };
    Ok(Json(
        json!({"clones": api.catalog.list_clones(client).await?}),
    ))
}

fn of_image(api: &Shared, image: &Image) -> Json<Value> {
    let set = api.cache.get().quota_of(image.id);
    Json(json!({"image": image.name, "clone_quota_mb": set}))
}

fn of_client(api: &Shared, client: &Client) -> Json<Value> {
    let snapshot = api.cache.get();
    let image = client.assigned_image_id;
    let holds = image.and_then(|image| snapshot.clone_quota(client.id, image));
    Json(json!({
        "client": client.hostname, "clone_quota_mb": snapshot.quota_of(client.id), "quota_bytes": holds,
    }))
}

/// `GET /api/v1/images/{image}/clone-quota`
pub(super) async fn image_quota(
    State(api): State<Shared>,
    Called(name): Called,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    let image = images::find(&api, &name).await?;
    Ok(of_image(&api, &image))
}

/// `PUT /api/v1/images/{image}/clone-quota`: `{"clone_quota_mb": MIB or null}`. Machines that run are held
/// to it from their next write on.
pub(super) async fn set_image_quota(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<Json<Value>, ApiError> {
    let mib = validate::image_quota(Reader::new(body, Write::Replace, api.strictness))?;
    let _one = api.writes.lock().await;
    let image = images::find(&api, &name).await?;
    if !api.catalog.set_image_quota(image.id, mib).await? {
        return Err(images::not_found(&name));
    }
    api.settle().await;
    tracing::info!(image.name, mib, "quota of clones set");
    Ok(of_image(&api, &image))
}

/// `GET /api/v1/clients/{client}/clone-quota`
pub(super) async fn client_quota(
    State(api): State<Shared>,
    Called(name): Called,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    let client = clients::find(&api, &name).await?;
    Ok(of_client(&api, &client))
}

/// `PUT /api/v1/clients/{client}/clone-quota`: the client's own, which wins over its image's; 0: no limit.
pub(super) async fn set_client_quota(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<Json<Value>, ApiError> {
    let mib = validate::client_quota(Reader::new(body, Write::Replace, api.strictness))?;
    let _one = api.writes.lock().await;
    let client = clients::find(&api, &name).await?;
    if !api.catalog.set_client_quota(client.id, mib).await? {
        return Err(ApiError::NotFound("the client is gone".into()));
    }
    api.settle().await;
    tracing::info!(client.hostname, mib, "quota of a client's clones set");
    Ok(of_client(&api, &client))
}
