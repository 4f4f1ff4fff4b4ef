//! Child images: `POST /api/v1/images/{image}/clone`. They take no time and share the space
//! of what they were made from (the version in production), template or not.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::removal::{begin, erase};
use super::{Unsaved, blocking, find, finished, measure, save_new, vacant};
use crate::admin::Shared;
use crate::admin::error::ApiError;
use crate::admin::extract::{Called, JsonObject};
use crate::model::version::followed;
use crate::model::{Image, ImageKind};
use crate::steps::{self, Step};
use crate::storage::{Intent, SnapshotId, Volume, VolumeError};
use crate::validate::{self, Reader, Write};

/// `POST /api/v1/images/{image}/clone`: `name`, and what shall differ from the parent.
pub(in crate::admin) async fn clone(
    State(api): State<Shared>,
    Called(parent): Called,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let task = tokio::spawn(async move {
        let _one = api.writes.lock().await;
        let parent = find(&api, &parent).await?;
        let id = Uuid::new_v4();
        let mut child = Image {
            id,
            name: String::new(),
            path: format!("images/{id}"),
            is_template: false,
            parent_image_id: Some(parent.id),
            ..parent.clone()
        };
        validate::image(Reader::new(body, Write::Create, api.strictness), &mut child)?;
        if child.parent_image_id != Some(parent.id) {
            let sentence = "is the image that is cloned";
            return Err(ApiError::invalid("parent_image_id", sentence));
        }
        vacant(&api, &child.name).await?;
        begin(&api, Intent::Image { image: id }).await?;
        steps::reach(Step::CopyBegun);
        match make(&api, &parent, &mut child).await {
            Ok(()) => api.settled(id),
            Err(Unsaved::Surely(e)) => {
                erase(&api, id).await;
                return Err(e);
            }
            Err(Unsaved::Perhaps(e)) => {
                api.works.leave(id);
                return Err(e);
            }
        }
        api.settle().await;
        tracing::info!(image.name = child.name, image.id = %id, parent = parent.name, "image cloned");
        let stored = api.catalog.get_image_metadata(id).await?;
        Ok(stored.unwrap_or(child))
    });
    let image: Image = finished(task).await?;
    let headers = [(header::LOCATION, format!("/api/v1/images/{}", image.id))];
    Ok((StatusCode::CREATED, headers, Json(image)).into_response())
}

/// Disk and files first, then the row.
async fn make(api: &Shared, parent: &Image, child: &mut Image) -> Result<(), Unsaved> {
    if parent.kind == ImageKind::Disk {
        let versions = api.catalog.list_versions(parent.id).await;
        let versions = versions.map_err(|e| Unsaved::Surely(e.into()))?;
        let version = followed(&versions, None, None).map_or(parent.id, |v| v.id);
        if version != parent.id {
            // That sum is of the disk as it was imported.
            child.sha256 = None;
        }
        let (disks, to) = (api.disks.clone(), child.id);
        let path = blocking(move || {
            disks.clone_volume(&SnapshotId::base(version), Volume::Image(to))?;
            steps::reach(Step::CopyCloned);
            disks.snapshot(&SnapshotId::base(to))?;
            steps::reach(Step::CopySnapshotted);
            let info = disks.info(Volume::Image(to))?;
            Ok::<_, VolumeError>(info.map(|info| info.path))
        })
        .await
        .map_err(Unsaved::Surely)?;
        child.path = path.unwrap_or_else(|| child.path.clone());
    }
    if !parent.files.is_empty() {
        let linked = api.storage.link_image(parent.id, child.id).await;
        linked.map_err(|e| Unsaved::Surely(e.into()))?;
        let (old, new) = (parent.id.to_string(), child.id.to_string());
        for file in &mut child.files {
            file.path = file.path.replace(&old, &new);
        }
    }
    steps::reach(Step::CopyLinked);
    save_new(api, child).await?;
    steps::reach(Step::CopyStored);
    if child.kind == ImageKind::Disk {
        measure(api, child.id).await;
    }
    Ok(())
}
