//! What versions differ in: `/api/v1/images/{image}/snapshots/{snapshot}/diff`; and persistent
//! disks that begin anew from another version: `/api/v1/clients/{client}/disk/rebase`.
//!
//! Two of these at a time, off the async threads; one ends when whoever asked for it hangs up.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::versions::{called, disk_image, stored};
use super::{blocking, finished, not_found};
use crate::admin::error::ApiError;
use crate::admin::extract::{Asked, Called, CalledTwo, JsonObject, shown};
use crate::admin::{Shared, clients};
use crate::boot::disks::{Loss, NotPublished};
use crate::model::difference::Rebase;
use crate::model::{Client, Image, ImageKind, Version, VersionStage};
use crate::storage::Volume;
use crate::validate::{self, Reader, Write};

/// `GET ../snapshots/{snapshot}/diff[?to=VERSION]`: what `to` (production, if it is not said)
/// differs in from that one.
pub(in crate::admin) async fn diff(
    State(api): State<Shared>,
    CalledTwo(name, from): CalledTwo,
    mut asked: Asked,
) -> Result<Json<Value>, ApiError> {
    let to = asked.text("to");
    asked.finish()?;
    let image = disk_image(&api, &name).await?;
    let versions = api.catalog.list_versions(image.id).await?;
    let from = called(&versions, &image, &from)?;
    let to = match to {
        Some(to) => called(&versions, &image, &to)?,
        None => versions
            .iter()
            .find(|v| v.stage == VersionStage::Production)
            .ok_or_else(|| ApiError::NotFound("nothing is in production".into()))?,
    };
    stored(&api, from).await?;
    stored(&api, to).await?;
    let cancel = CancellationToken::new();
    let _gone = cancel.clone().drop_guard();
    let _turn = api.checks.acquire().await;
    let (disks, a, b) = (api.boot_disks.clone(), from.id, to.id);
    let found = blocking(move || disks.difference(a, b, &cancel)).await?;
    let mut told = json!(found);
    told["from"] = json!(from.name);
    told["to"] = json!(to.name);
    Ok(Json(told))
}

/// What is asked for: whose disk, of which image, and the version that it begins from.
struct Wanted {
    client: Client,
    image: Image,
    to: Version,
    versions: Vec<Version>,
}

async fn wanted(api: &Shared, name: &str, to: Option<&str>) -> Result<Wanted, ApiError> {
    let client = clients::find(api, name).await?;
    let refused = |message| Err(ApiError::Conflict { field: "", message });
    let image = match client.assigned_image_id {
        Some(id) => api.catalog.get_image_metadata(id).await?,
        None => None,
    };
    let Some(image) = image.filter(|image| image.kind == ImageKind::Disk) else {
        return refused(format!(
            "client `{}` has no disk image assigned",
            shown(&client.hostname)
        ));
    };
    if api.catalog.get_maintenance(client.id).await?.is_some() {
        return refused(format!(
            "client `{}` mends its image: publish or discard that first",
            shown(&client.hostname)
        ));
    }
    let versions = api.catalog.list_versions(image.id).await?;
    let to = match to {
        Some(name) => called(&versions, &image, name)?,
        None => {
            let (pin, ring) = (client.pinned_version_id, client.ring.as_deref());
            let followed = crate::model::version::followed(&versions, pin, ring);
            followed.ok_or_else(|| ApiError::NotFound("nothing is in production".into()))?
        }
    };
    stored(api, to).await?;
    Ok(Wanted {
        to: to.clone(),
        client,
        image,
        versions,
    })
}

fn refusal(client: &Client, why: NotPublished) -> ApiError {
    match why {
        NotPublished::Store(error) => error.into(),
        NotPublished::InUse | NotPublished::Booted(_) | NotPublished::NoDisk => {
            ApiError::Conflict {
                field: "",
                message: format!("{}: {why}", client.hostname),
            }
        }
    }
}

/// What would be lost.
async fn plan(api: &Shared, wanted: &Wanted) -> Result<Rebase, ApiError> {
    let cancel = CancellationToken::new();
    let _gone = cancel.clone().drop_guard();
    let _turn = api.checks.acquire().await;
    let (client, image, to) = (wanted.client.id, wanted.image.id, wanted.to.id);
    let disks = api.boot_disks.clone();
    let loss = tokio::task::spawn_blocking(move || disks.loss(client, image, to, &cancel)).await;
    let Loss { from, used, lost } = loss
        .map_err(|error| ApiError::Internal(error.to_string()))?
        .map_err(|why| refusal(&wanted.client, why))?;
    let name = Volume::Personal { client, image }.to_string();
    let clones = api.catalog.list_clones(Some(client)).await?;
    let of_version = |id: Uuid| wanted.versions.iter().find(|v| v.id == id);
    Ok(Rebase {
        client: wanted.client.hostname.clone(),
        image: wanted.image.name.clone(),
        from: from.and_then(of_version).map(|v| v.name.clone()),
        to: wanted.to.name.clone(),
        since: clones.iter().find(|c| c.name == name).map(|c| c.created_at),
        used_bytes: used,
        lost,
        done: false,
    })
}

/// `GET /api/v1/clients/{client}/disk/rebase[?to=VERSION]`: what would be lost. Changes nothing.
pub(in crate::admin) async fn rebase_plan(
    State(api): State<Shared>,
    Called(name): Called,
    mut asked: Asked,
) -> Result<Json<Rebase>, ApiError> {
    let to = asked.text("to");
    asked.finish()?;
    let wanted = wanted(&api, &name, to.as_deref()).await?;
    plan(&api, &wanted).await.map(Json)
}

/// `POST /api/v1/clients/{client}/disk/rebase`: `{"to": VERSION or null}`. 409 while the machine has
/// its disk open.
pub(in crate::admin) async fn rebase(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<Json<Rebase>, ApiError> {
    let to = validate::rebase(Reader::new(body, Write::Create, api.strictness))?;
    let first = wanted(&api, &name, to.as_deref()).await?;
    let mut told = plan(&api, &first).await?;
    let task = tokio::spawn(async move {
        let _one = api.writes.lock().await;
        // Again, now that nobody removes the version.
        let now = wanted(&api, &name, to.as_deref()).await?;
        if (now.client.id, now.image.id, now.to.id)
            != (first.client.id, first.image.id, first.to.id)
        {
            return Err(ApiError::Conflict {
                field: "",
                message: "client or image were changed meanwhile: look again".to_owned(),
            });
        }
        if api.catalog.get_version(now.to.id).await?.is_none() {
            return Err(not_found(&now.to.name));
        }
        let (disks, client, image, to) = (
            api.boot_disks.clone(),
            now.client.id,
            now.image.id,
            now.to.id,
        );
        let done = tokio::task::spawn_blocking(move || disks.rebase(client, image, to)).await;
        done.map_err(|error| ApiError::Internal(error.to_string()))?
            .map_err(|why| refusal(&now.client, why))?;
        tracing::info!(
            client.mac = %now.client.mac_address, now.client.hostname, version = now.to.name,
            "a persistent disk begins anew"
        );
        Ok(())
    });
    finished(task).await?;
    told.done = true;
    Ok(Json(told))
}
