//! A machine that mends its image: `/api/v1/clients/{client}/maintenance`.
//!
//! From its next boot on the machine has a disk of its own, made from the version that it follows,
//! and keeps what it writes there, until that is published as a version or discarded.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use super::versions::{Publication, publish, told};
use super::{blocking, finished, not_found};
use crate::admin::error::ApiError;
use crate::admin::extract::{Asked, Called, JsonObject, shown};
use crate::admin::{Shared, clients};
use crate::model::{Client, DiskMode, Image, ImageKind, Maintenance};
use crate::steps::{self, Step};
use crate::storage::{Intent, Volume};
use crate::validate::{self, Reader, Write};

/// How long a request waits for the disk of an earlier maintenance to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it looks.
const AGAIN: Duration = Duration::from_millis(50);

fn answer(client: &Client, image: &Image, row: &Maintenance) -> Json<Value> {
    let mut told = json!(row);
    told["client"] = json!(client.hostname);
    told["image"] = json!(image.name);
    Json(told)
}

/// # Errors
/// 404 if it mends none.
async fn under_way(api: &Shared, client: &Client) -> Result<(Maintenance, Image), ApiError> {
    let row = api.catalog.get_maintenance(client.id).await?;
    let row = row.ok_or_else(|| {
        ApiError::NotFound(format!(
            "client `{}` does not mend an image",
            shown(&client.hostname)
        ))
    })?;
    let image = api.catalog.get_image_metadata(row.image_id).await?;
    let image = image.ok_or_else(|| not_found(&row.image_id.to_string()))?;
    Ok((row, image))
}

/// `GET`: what it mends.
pub(in crate::admin) async fn get(
    State(api): State<Shared>,
    Called(name): Called,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    let client = clients::find(&api, &name).await?;
    let (row, image) = under_way(&api, &client).await?;
    Ok(answer(&client, &image, &row))
}

/// True while a disk of that client, of which a version was published, is about to be thrown away.
async fn is_put_away(api: &Shared, client: Uuid) -> Result<bool, ApiError> {
    let pending = api.pending.clone();
    let noted = blocking(move || pending.intents()).await?;
    let goes = |intent: &Intent| matches!(intent, Intent::Version { client: of, reset: true, .. } if *of == client);
    Ok(noted.iter().any(|noted| goes(&noted.intent)))
}

/// `POST`: its next boot is to mend its image. 409 while it has a persistent disk of that.
pub(in crate::admin) async fn begin(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let author = validate::mender(Reader::new(body, Write::Create, api.strictness))?;
    let mut waited = Duration::ZERO;
    // What was published here last may still be copied from the disk that goes then: that is no
    // disk of the client's. Not under the lock, others go on meanwhile.
    let (_one, client) = loop {
        let one = api.writes.lock().await;
        let client = clients::find(&api, &name).await?;
        if let Ok((row, image)) = under_way(&api, &client).await {
            return Ok((StatusCode::OK, answer(&client, &image, &row)));
        }
        if !is_put_away(&api, client.id).await? {
            break (one, client);
        }
        drop(one);
        if waited >= PATIENCE {
            return Err(ApiError::Conflict {
                field: "",
                message: format!(
                    "what client `{}` published is still being copied from its disk: try again in a while (`dls doctor storage` tells whether that is stuck)",
                    shown(&client.hostname)
                ),
            });
        }
        tokio::time::sleep(AGAIN).await;
        waited += AGAIN;
    };
    let refused = |message| Err(ApiError::Conflict { field: "", message });
    let image = match client.assigned_image_id {
        Some(id) => api.catalog.get_image_metadata(id).await?,
        None => None,
    };
    let image = match image {
        Some(image) if image.kind == ImageKind::Disk => image,
        Some(image) => {
            return refused(format!(
                "the image `{}` has no disk, and so no versions",
                shown(&image.name)
            ));
        }
        None => {
            return refused(format!(
                "client `{}` has no image assigned",
                shown(&client.hostname)
            ));
        }
    };
    let volume = Volume::Personal {
        client: client.id,
        image: image.id,
    };
    let disks = api.disks.clone();
    if blocking(move || disks.info(volume)).await?.is_some() {
        return refused(format!(
            "client `{}` has a persistent disk of `{}`, which would be mended instead: make a version of that (`dls snapshot create`), or throw it away (`dls client reset-disk`)",
            shown(&client.hostname),
            shown(&image.name)
        ));
    }
    api.catalog
        .begin_maintenance(client.id, image.id, author.as_deref())
        .await?;
    api.settle().await;
    tracing::info!(client.hostname, image.name, author, "maintenance begun");
    let (row, image) = under_way(&api, &client).await?;
    Ok((StatusCode::CREATED, answer(&client, &image, &row)))
}

/// `POST ../publish`: what it has mended becomes a version, and is released unless that shall stay
/// a draft.
pub(in crate::admin) async fn done(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let task = tokio::spawn(async move {
        let reader = Reader::new(body, Write::Create, api.strictness);
        let (mut new, release) = validate::publication(reader)?;
        let _one = api.writes.lock().await;
        let client = clients::find(&api, &name).await?;
        let (row, image) = under_way(&api, &client).await?;
        new.author = new.author.or(row.author);
        let with = Publication {
            mended: true,
            release,
            reset: client.disk_mode == DiskMode::Ephemeral,
        };
        let version = publish(&api, &image, &client, new, &with).await?;
        if let Some(release) = &with.release {
            tracing::info!(image.name, version = version.name, stage = %version.stage, release.ring, release.good_boots, "version released");
        }
        // The disk has done its duty; the version gets a copy of what it shares with it, which
        // takes its time. A client that keeps its disk goes on with what it has mended.
        if with.reset {
            let (api, version) = (api.clone(), version.id);
            tokio::spawn(async move {
                finish(&api, client.id, image.id).await;
                api.settled(version);
            });
        }
        told(&api, version).await
    });
    let version = finished(task).await?;
    Ok((StatusCode::CREATED, Json(version)))
}

/// Throws the disk of a maintenance away that was published; one that somebody has or keeps by now
/// stays.
pub(super) async fn finish(api: &Shared, client: Uuid, image: Uuid) {
    if api.cache.get().disk_mode(client, image) == Some(DiskMode::Persistent) {
        return;
    }
    let disks = api.boot_disks.clone();
    let done = tokio::task::spawn_blocking(move || disks.reset(client, Some(image))).await;
    match done {
        Ok(Ok(_)) => {}
        Ok(Err(why)) => {
            tracing::warn!(client.id = %client, %why, "the disk of a maintenance is kept");
        }
        Err(error) => tracing::error!(%error, "throwing away the disk of a maintenance"),
    }
}

/// `DELETE`: what it has written is thrown away. 409 while the machine has its disk.
pub(in crate::admin) async fn discard(
    State(api): State<Shared>,
    Called(name): Called,
    asked: Asked,
) -> Result<StatusCode, ApiError> {
    asked.finish()?;
    let _one = api.writes.lock().await;
    let client = clients::find(&api, &name).await?;
    let (row, image) = under_way(&api, &client).await?;
    let (disks, id) = (api.boot_disks.clone(), client.id);
    let begun = row.begun_at;
    let removed = tokio::task::spawn_blocking(move || disks.discard(id, row.image_id, begun)).await;
    removed
        .map_err(|error| ApiError::Internal(error.to_string()))?
        .map_err(|why| clients::not_reset(&client, &why))?;
    steps::reach(Step::DiscardReset);
    if let Err(e) = api.catalog.end_maintenance(client.id).await {
        api.works.leave(id);
        return Err(e.into());
    }
    api.settled(id);
    api.settle().await;
    tracing::info!(client.hostname, image.name, "maintenance discarded");
    Ok(StatusCode::NO_CONTENT)
}
