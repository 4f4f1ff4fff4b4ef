//! Deletion of images, and what is stored for nobody.
//!
//! The intention is durable first; then the row goes, so that no new machine gets the disk;
//! then disks and files. A crash in between leaves an image that is whole or one that is gone
//! at the next start ([`settle_pending`]). A disk that a machine still has open stays until it
//! lets go.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{blocking, find, finished, not_found};
use crate::admin::error::ApiError;
use crate::admin::extract::{Asked, Called};
use crate::admin::stock::{Stock, What};
use crate::admin::{Shared, stock};
use crate::catalog::CatalogError;
use crate::storage::{Storage, Volume, VolumeError};

/// `DELETE /api/v1/images/{image}[?force=true][&discard_disks=true]`: row, disk and files.
pub(in crate::admin) async fn delete(
    State(api): State<Shared>,
    Called(name): Called,
    mut asked: Asked,
) -> Result<StatusCode, ApiError> {
    let mut flag = |name| asked.parsed::<bool>(name, "true or false") == Some(true);
    let (force, discard) = (flag("force"), flag("discard_disks"));
    asked.finish()?;
    let task = tokio::spawn(async move {
        let _one = api.writes.lock().await;
        let image = find(&api, &name).await?;
        let id = image.id;
        if !discard {
            kept_by_nobody(&api, id).await?;
        }
        let pending = api.pending.clone();
        blocking(move || pending.begin(id)).await?;
        match api.catalog.delete_image_metadata(id, force).await {
            Ok(true) => {}
            Ok(false) => {
                api.settled(id);
                return Err(not_found(&name));
            }
            // It may be deleted or not: the intention stays.
            Err(e @ CatalogError::Unavailable(_)) => {
                api.works.leave(id);
                return Err(e.into());
            }
            Err(e) => {
                api.settled(id);
                return Err(ApiError::in_use(e));
            }
        }
        api.settle().await;
        erase(&api, id).await;
        tracing::info!(image.name, image.id = %id, "image deleted");
        Ok(StatusCode::NO_CONTENT)
    });
    finished(task).await
}

/// # Errors
/// 409 if clients have written to copies of their own of this image.
async fn kept_by_nobody(api: &Shared, id: Uuid) -> Result<(), ApiError> {
    let disks = api.disks.clone();
    let volumes = blocking(move || disks.list()).await?;
    let cache = api.cache.get();
    let mut owners: Vec<String> = volumes
        .iter()
        .filter_map(|info| match info.volume {
            Volume::Personal { client, image } if image == id => Some(client),
            _ => None,
        })
        .map(|client| match cache.client(client) {
            Some(client) => format!("client {}", client.hostname),
            None => format!("a client that is gone ({client})"),
        })
        .collect();
    owners.sort();
    if owners.is_empty() {
        return Ok(());
    }
    Err(ApiError::Conflict {
        field: "id",
        message: format!(
            "the image is in use: what these have written to disks of their own would be lost: {} (discard_disks says that it may be)",
            owners.join(", ")
        ),
    })
}

/// Removes whatever is stored for an image that has no row, and the intention with it. What is
/// still open, or can't be removed, is tried again later.
pub(in crate::admin) async fn erase(api: &Shared, id: Uuid) {
    let disks = api.disks.clone();
    let erased = blocking(move || erase_disks(&*disks, id)).await;
    let files = api.storage.remove_image(id).await.map_err(ApiError::from);
    match erased.and(files) {
        Ok(()) => api.settled(id),
        Err(e) => {
            tracing::warn!(image.id = %id, why = e.sentence(), "what is stored of a deleted image stays for now");
            api.works.leave(id);
        }
    }
}

/// Clones of it, then itself.
fn erase_disks(disks: &dyn Storage, id: Uuid) -> Result<(), VolumeError> {
    for info in disks.list()? {
        let is_clone = match info.volume {
            Volume::Image(_) => false,
            Volume::Session(_) => {
                let origin = info.origin.as_ref();
                origin.is_some_and(|origin| origin.volume == Volume::Image(id))
            }
            Volume::Personal { image, .. } => image == id,
        };
        if is_clone {
            disks.destroy(info.volume)?;
        }
    }
    disks.destroy(Volume::Image(id))
}

/// Finishes or undoes what a crash cut short; those it can't tell about yet are given back.
pub(in crate::admin) async fn settle_pending(api: &Shared, left: Vec<Uuid>) -> Vec<Uuid> {
    let mut unknown = Vec::new();
    for id in left {
        // What is being imported has its own way of going on; afterwards it is settled.
        if api.uploads.list().iter().any(|s| s.upload.image.id == id) {
            unknown.push(id);
            continue;
        }
        match api.catalog.get_image_metadata(id).await {
            Ok(Some(_)) => api.settled(id),
            Ok(None) => {
                tracing::info!(image.id = %id, "removing what is stored of an image that is not in the catalog");
                erase(api, id).await;
            }
            Err(_) => unknown.push(id),
        }
    }
    unknown
}

/// `GET /api/v1/orphans`: what is stored for nobody, and images without what they need.
pub(in crate::admin) async fn orphans(
    State(api): State<Shared>,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    Ok(Json(json!(look(&api).await?)))
}

/// `DELETE /api/v1/orphans`: removes what is stored for nobody; answers what is left.
pub(in crate::admin) async fn remove_orphans(
    State(api): State<Shared>,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    let task = tokio::spawn(async move {
        let _one = api.writes.lock().await;
        api.cache.refresh().await?;
        for orphan in look(&api).await?.orphans {
            let disks = api.disks.clone();
            let removed = match orphan.what {
                What::Disk(volume) => blocking(move || disks.destroy(volume)).await,
                What::Files(id) => api.storage.remove_image(id).await.map_err(Into::into),
            };
            match removed {
                Ok(()) => tracing::info!(path = orphan.path, "an orphan is removed"),
                Err(e) => {
                    tracing::warn!(path = orphan.path, why = e.sentence(), "an orphan stays");
                }
            }
        }
        Ok(Json(json!(look(&api).await?)))
    });
    finished(task).await
}

async fn look(api: &Shared) -> Result<Stock, ApiError> {
    let busy = {
        let pending = api.pending.clone();
        blocking(move || pending.list()).await?
    };
    let files = api.storage.images().await?;
    let disks: Arc<dyn Storage> = api.disks.clone();
    let volumes = blocking(move || disks.list()).await?;
    Ok(stock::compare(&api.cache.get(), &files, &volumes, &busy))
}
