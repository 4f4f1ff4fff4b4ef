//! What is known of images: their rows, read and changed, and what uses them.

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::{blocking, find, fresh};
use crate::admin::Shared;
use crate::admin::error::ApiError;
use crate::admin::extract::{Asked, Called, JsonObject};
use crate::admin::known;
use crate::catalog::Page;
use crate::model::{Image, ImageKind};
use crate::storage::Volume;
use crate::validate::{self, Reader, Write};

/// `GET /api/v1/images[?templates=true]`
pub(in crate::admin) async fn list(
    State(api): State<Shared>,
    mut asked: Asked,
) -> Result<Json<Value>, ApiError> {
    let page = asked.page();
    let templates = asked.parsed::<bool>("templates", "true or false") == Some(true);
    asked.finish()?;
    let away = api.catalog.is_away();
    let images = if templates || away {
        let all = match away {
            true => known::images(&api),
            false => api.catalog.list_images(Page::default()).await?,
        };
        let wanted = |image: &Image| image.is_template || !templates;
        known::cut(all.into_iter().filter(wanted), page)
    } else {
        api.catalog.list_images(page).await?
    };
    Ok(Json(json!({"images": images})))
}

/// `GET /api/v1/images/{image}`, by name or id.
pub(in crate::admin) async fn get(
    State(api): State<Shared>,
    Called(name): Called,
) -> Result<Json<Image>, ApiError> {
    find(&api, &name).await.map(Json)
}

/// `PUT /api/v1/images/{image}`: all fields anew; the files stay.
pub(in crate::admin) async fn replace(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<Json<Image>, ApiError> {
    write(&api, &name, body, Write::Replace).await.map(Json)
}

/// `PATCH /api/v1/images/{image}`: only the given fields.
pub(in crate::admin) async fn change(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<Json<Image>, ApiError> {
    write(&api, &name, body, Write::Change).await.map(Json)
}

async fn write(
    api: &Shared,
    name: &str,
    body: Map<String, Value>,
    write: Write,
) -> Result<Image, ApiError> {
    let _one = api.writes.lock().await;
    let current = find(api, name).await?;
    let mut image = match write {
        Write::Create | Write::Replace => Image {
            size_bytes: current.size_bytes,
            format: current.format,
            kind: current.kind,
            path: current.path,
            zfs_dataset: current.zfs_dataset,
            sha256: current.sha256,
            source_format: current.source_format,
            created_at: current.created_at,
            files: current.files,
            ..fresh(current.id)
        },
        Write::Change => current,
    };
    validate::image(Reader::new(body, write, api.strictness), &mut image)?;
    api.catalog.save_image_metadata(&image).await?;
    api.settle().await;
    tracing::info!(image.name, "image changed");
    Ok(api
        .catalog
        .get_image_metadata(image.id)
        .await?
        .unwrap_or(image))
}

/// `GET /api/v1/images/{image}/usage`: who uses it, and what it takes.
pub(in crate::admin) async fn usage(
    State(api): State<Shared>,
    Called(name): Called,
) -> Result<Json<Value>, ApiError> {
    let image = find(&api, &name).await?;
    let users = api.catalog.image_users(image.id).await?;
    let used = if image.kind == ImageKind::Disk {
        let disks = api.disks.clone();
        let info = blocking(move || disks.info(Volume::Image(image.id))).await?;
        info.map(|info| info.used)
    } else {
        u64::try_from(image.size_bytes).ok()
    };
    Ok(Json(json!({
        "used_bytes": used,
        "clients": users.clients,
        "sessions": users.sessions,
        "children": users.children,
    })))
}
