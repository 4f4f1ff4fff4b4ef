//! Versions of disk images: `/api/v1/images/{image}/snapshots`.
//!
//! A version is made in the store first, its row last; it goes the other way round. What a
//! crash leaves in between is removed at the next start, as with images. A release or a return
//! changes rows only: machines that run keep what they have, the next boot gets the new one.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{begin, blocking, erase, find, finished};
use crate::admin::error::ApiError;
use crate::admin::extract::{Asked, Called, CalledTwo, JsonObject, shown};
use crate::admin::{Shared, clients};
use crate::boot::disks::{NotPublished, Taken};
use crate::catalog::CatalogError;
use crate::model::version::former;
use crate::model::{Client, Image, ImageKind, Version, VersionStage};
use crate::steps::{self, Step};
use crate::storage::Intent;
use crate::validate::{self, NewVersion, Reader, Release, Write};

/// A disk image.
///
/// # Errors
/// 404, or 409 for a kernel image.
pub(super) async fn disk_image(api: &Shared, name: &str) -> Result<Image, ApiError> {
    let image = find(api, name).await?;
    if image.kind != ImageKind::Disk {
        return Err(ApiError::Conflict {
            field: "",
            message: format!(
                "the image `{}` has no disk, and so no versions",
                shown(&image.name)
            ),
        });
    }
    Ok(image)
}

/// The version of an image that a name or an id means.
pub(super) fn called<'a>(
    versions: &'a [Version],
    image: &Image,
    name: &str,
) -> Result<&'a Version, ApiError> {
    let id = name.parse::<Uuid>().ok();
    let found = versions.iter().find(|v| v.name == name || Some(v.id) == id);
    found.ok_or_else(|| {
        ApiError::NotFound(format!(
            "the image `{}` has no version `{}`",
            shown(&image.name),
            shown(name)
        ))
    })
}

/// As it is answered: the row, with what it takes on this server now, if it is here.
pub(super) async fn told(api: &Shared, version: Version) -> Result<Value, ApiError> {
    let (disks, id) = (api.boot_disks.clone(), version.id);
    let taken = blocking(move || disks.taken(id)).await?;
    let mut told = json!(version);
    told["stored"] = json!(taken.is_some());
    if let Some(Taken { used, referenced }) = taken {
        told["size_bytes"] = json!(used);
        told["referenced_bytes"] = json!(referenced);
    }
    Ok(told)
}

/// `GET /api/v1/images/{image}/snapshots`, oldest first.
pub(in crate::admin) async fn list(
    State(api): State<Shared>,
    Called(name): Called,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    let image = disk_image(&api, &name).await?;
    let mut all = Vec::new();
    let running = api.catalog.version_boots(image.id).await?;
    for version in api.catalog.list_versions(image.id).await? {
        let boots = running.iter().find(|(id, _)| *id == version.id);
        let boots = boots.map_or(0, |(_, boots)| *boots);
        let mut version = told(&api, version).await?;
        version["running"] = json!(boots);
        all.push(version);
    }
    Ok(Json(json!({"snapshots": all})))
}

/// `POST /api/v1/images/{image}/snapshots`: a draft of what a client has on its persistent disk.
pub(in crate::admin) async fn create(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let task = tokio::spawn(async move {
        let new = validate::new_version(Reader::new(body, Write::Create, api.strictness))?;
        let _one = api.writes.lock().await;
        let image = disk_image(&api, &name).await?;
        let client = from_client(&api, &new.from_client).await?;
        let made = publish(&api, &image, &client, new, &Publication::default()).await?;
        Ok((image.id, told(&api, made).await?))
    });
    let (image, made) = finished(task).await?;
    let name = made["name"].as_str().unwrap_or_default();
    let location = format!("/api/v1/images/{image}/snapshots/{name}");
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(made),
    )
        .into_response())
}

/// What goes with a new version.
#[derive(Debug, Default)]
pub(super) struct Publication {
    /// The client's maintenance ends.
    pub(super) mended: bool,
    /// It is released at once.
    pub(super) release: Option<Release>,
    /// The client's disk is thrown away afterwards, by the caller, who ends the intention then.
    pub(super) reset: bool,
}

/// Makes a version of what a client has on its persistent disk of an image. Under the lock of
/// writes, in a task that a peer can't stop by hanging up.
pub(super) async fn publish(
    api: &Shared,
    image: &Image,
    client: &Client,
    new: NewVersion,
    with: &Publication,
) -> Result<Version, ApiError> {
    let versions = api.catalog.list_versions(image.id).await?;
    if versions.iter().any(|v| v.name == new.name) {
        return Err(ApiError::Conflict {
            field: "name",
            message: format!(
                "the image `{}` has a version `{}` already",
                shown(&image.name),
                new.name
            ),
        });
    }
    let id = Uuid::new_v4();
    let intent = Intent::Version {
        version: id,
        client: client.id,
        image: image.id,
        reset: with.reset,
    };
    begin(api, intent).await?;
    steps::reach(Step::PublishBegun);
    if let Err(e) = make(api, image, client, new, id, with).await {
        match &e {
            // Whether it was committed is not known: the intention stays.
            ApiError::Unavailable => api.works.leave(id),
            _ => erase(api, id).await,
        }
        return Err(e);
    }
    steps::reach(Step::PublishStored);
    if !with.reset {
        api.settled(id);
    }
    api.settle().await;
    let made = api.catalog.get_version(id).await?;
    let made = made.ok_or_else(|| ApiError::NotFound("the version is gone".into()))?;
    tracing::info!(
        image.name,
        version = made.name,
        client.hostname,
        "version made"
    );
    Ok(made)
}

async fn from_client(api: &Shared, name: &str) -> Result<Client, ApiError> {
    match clients::find(api, name).await {
        Err(ApiError::NotFound(why) | ApiError::Conflict { message: why, .. }) => {
            Err(ApiError::invalid("from_client", why))
        }
        other => other,
    }
}

/// Disk first, then the row.
async fn make(
    api: &Shared,
    image: &Image,
    client: &Client,
    new: NewVersion,
    id: Uuid,
    with: &Publication,
) -> Result<(), ApiError> {
    let (disks, from, of) = (api.boot_disks.clone(), client.id, image.id);
    let made = tokio::task::spawn_blocking(move || {
        disks.publish(from, of, id)?;
        Ok::<_, NotPublished>(disks.taken(id)?)
    });
    let made = made.await.map_err(|e| ApiError::Internal(e.to_string()))?;
    let taken = made.map_err(|why| match why {
        NotPublished::Store(error) => error.into(),
        NotPublished::InUse | NotPublished::Booted(_) | NotPublished::NoDisk => {
            ApiError::Conflict {
                field: "from_client",
                message: format!("{}: {why}", client.hostname),
            }
        }
    })?;
    let bytes = |n: Option<u64>| i64::try_from(n.unwrap_or(0)).unwrap_or(i64::MAX);
    let version = Version {
        id,
        image_id: image.id,
        name: new.name,
        stage: VersionStage::Draft,
        ring: None,
        description: new.description,
        size_bytes: bytes(taken.map(|t| t.used)),
        referenced_bytes: bytes(taken.map(|t| t.referenced)),
        author: new.author,
        from_client: Some(client.hostname.clone()),
        created_at: chrono::DateTime::UNIX_EPOCH,
        released_at: None,
        returned_at: None,
        reason: None,
        canary_at: None,
        good_boots: None,
    };
    if let Some(wanted) = &with.release {
        validate::may_release(&version, wanted)?;
    }
    let release = with.release.as_ref();
    let release = release.map(|r| (r.ring.as_deref(), r.good_boots));
    let mended_by = with.mended.then_some(client.id);
    api.catalog
        .publish_version(&version, mended_by, release)
        .await?;
    Ok(())
}

/// # Errors
/// 409 if the version is neither on this server nor on another one.
pub(super) async fn stored(api: &Shared, version: &Version) -> Result<(), ApiError> {
    let (disks, id) = (api.boot_disks.clone(), version.id);
    match blocking(move || disks.taken(id)).await? {
        Some(_) => Ok(()),
        None if !api.cache.get().holders(id).is_empty() => Ok(()),
        None => Err(ApiError::Conflict {
            field: "",
            message: format!(
                "the version `{}` is not on this server: its machines could not boot",
                version.name
            ),
        }),
    }
}

/// `POST /api/v1/images/{image}/snapshots/{snapshot}/release`: to all, or to a ring.
pub(in crate::admin) async fn release(
    State(api): State<Shared>,
    CalledTwo(name, version): CalledTwo,
    JsonObject(body): JsonObject,
) -> Result<Json<Value>, ApiError> {
    let wanted = validate::release(Reader::new(body, Write::Create, api.strictness))?;
    let _one = api.writes.lock().await;
    let image = disk_image(&api, &name).await?;
    let versions = api.catalog.list_versions(image.id).await?;
    let version = called(&versions, &image, &version)?;
    let done = let_go(&api, &image, version, &wanted).await?;
    told(&api, done).await.map(Json)
}

/// Releases a version. Under the lock of writes.
pub(super) async fn let_go(
    api: &Shared,
    image: &Image,
    version: &Version,
    wanted: &Release,
) -> Result<Version, ApiError> {
    validate::may_release(version, wanted)?;
    stored(api, version).await?;
    let ring = wanted.ring.as_deref();
    let done = api
        .catalog
        .release_version(version.id, ring, wanted.good_boots)
        .await?;
    let done = done.ok_or_else(|| ApiError::NotFound("the version is gone".into()))?;
    api.settle().await;
    tracing::info!(image.name, version = done.name, stage = %done.stage, ring, wanted.good_boots, "version released");
    Ok(done)
}

/// `POST /api/v1/images/{image}/snapshots/{snapshot}/return`: its machines boot the version
/// before it again, or that which is in production if it is a canary.
pub(in crate::admin) async fn send_back(
    State(api): State<Shared>,
    CalledTwo(name, version): CalledTwo,
    JsonObject(body): JsonObject,
) -> Result<Json<Value>, ApiError> {
    let wanted = validate::sending_back(Reader::new(body, Write::Create, api.strictness))?;
    let _one = api.writes.lock().await;
    let image = disk_image(&api, &name).await?;
    let versions = api.catalog.list_versions(image.id).await?;
    let from = called(&versions, &image, &version)?;
    let to = where_to(&versions, &image, from, wanted.to.as_deref())?;
    stored(&api, to).await?;
    let target = (from.stage == VersionStage::Production).then_some(to.id);
    let reason = wanted.reason.as_deref();
    let done = api.catalog.return_version(from.id, target, reason).await?;
    if !done {
        return Err(ApiError::Conflict {
            field: "",
            message: format!("the version `{}` is not released any more", from.name),
        });
    }
    api.settle().await;
    tracing::info!(
        image.name,
        from = from.name,
        to = to.name,
        reason,
        "version returned"
    );
    let (from, to) = (from.id, to.id);
    let row = async |id| {
        let row = api.catalog.get_version(id).await?;
        row.ok_or_else(|| ApiError::NotFound("the version is gone".into()))
    };
    let returned = told(&api, row(from).await?).await?;
    let now = told(&api, row(to).await?).await?;
    Ok(Json(json!({"returned": returned, "now": now})))
}

/// What machines boot when they are sent back.
fn where_to<'a>(
    versions: &'a [Version],
    image: &Image,
    from: &Version,
    to: Option<&str>,
) -> Result<&'a Version, ApiError> {
    let refused = |message: String| Err(ApiError::invalid("to", message));
    match (from.stage, to) {
        (VersionStage::Draft | VersionStage::Retired, _) => Err(ApiError::Conflict {
            field: "",
            message: format!(
                "the version `{}` is not released: it is a {} one",
                from.name, from.stage
            ),
        }),
        (VersionStage::Canary, Some(_)) => {
            refused("is for production: machines of a ring go back to what is in production".into())
        }
        (VersionStage::Canary, None) => {
            let mut all = versions.iter();
            let production = all.find(|v| v.stage == VersionStage::Production);
            production.ok_or_else(|| ApiError::NotFound("nothing is in production".into()))
        }
        (VersionStage::Production, None) => former(versions).ok_or_else(|| ApiError::Conflict {
            field: "to",
            message: format!(
                "no version was in production before `{}` that machines were not sent back from: release another one",
                from.name
            ),
        }),
        (VersionStage::Production, Some(name)) => {
            let to = called(versions, image, name)?;
            if to.stage != VersionStage::Retired
                || to.released_at.is_none()
                || to.released_at >= from.released_at
            {
                return refused(format!(
                    "the version `{}` was not in production before `{}`: release it instead",
                    to.name, from.name
                ));
            }
            Ok(to)
        }
    }
}

/// `DELETE /api/v1/images/{image}/snapshots/{snapshot}`. 409 while it is of use to anybody.
pub(in crate::admin) async fn delete(
    State(api): State<Shared>,
    CalledTwo(name, version): CalledTwo,
    asked: Asked,
) -> Result<StatusCode, ApiError> {
    asked.finish()?;
    let task = tokio::spawn(async move {
        let _one = api.writes.lock().await;
        let image = disk_image(&api, &name).await?;
        let versions = api.catalog.list_versions(image.id).await?;
        let version = called(&versions, &image, &version)?;
        let id = version.id;
        needed_by_nobody(&api, version).await?;
        begin(&api, Intent::Image { image: id }).await?;
        steps::reach(Step::RetireBegun);
        match api.catalog.delete_version(id).await {
            Ok(_) => {}
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
        steps::reach(Step::RetireRowGone);
        api.settle().await;
        erase(&api, id).await;
        tracing::info!(image.name, version = version.name, "version deleted");
        Ok(StatusCode::NO_CONTENT)
    });
    finished(task).await
}

/// # Errors
/// 409 if it is the image's first, released, or if anything in the store stands upon it.
async fn needed_by_nobody(api: &Shared, version: &Version) -> Result<(), ApiError> {
    let refused = |field, message| Err(ApiError::Conflict { field, message });
    if version.is_first() {
        let message = "the first version of an image goes with the image only";
        return refused("id", message.to_owned());
    }
    if version.stage.is_released() {
        return refused(
            "stage",
            format!(
                "the version `{}` is in {}: release another one first, or send its machines back",
                version.name, version.stage
            ),
        );
    }
    let (disks, id) = (api.boot_disks.clone(), version.id);
    let users = blocking(move || disks.version_users(id)).await?;
    if users.is_empty() {
        return Ok(());
    }
    let more = if users.len() > 20 { ", and more" } else { "" };
    let named: Vec<String> = users.into_iter().take(20).collect();
    refused(
        "id",
        format!("the version is in use: {}{more}", named.join(", ")),
    )
}

/// Writes down what a version takes, for people who look into the catalog.
pub(in crate::admin) async fn measure(api: &Shared, version: Uuid) {
    let disks = api.boot_disks.clone();
    let taken = blocking(move || disks.taken(version)).await;
    let Ok(Some(Taken { used, referenced })) = taken else {
        return;
    };
    let bytes = |n| i64::try_from(n).unwrap_or(i64::MAX);
    let noted = api
        .catalog
        .measure_version(version, bytes(used), bytes(referenced))
        .await;
    if let Err(error) = noted {
        tracing::debug!(%error, "the size of a version is not noted");
    }
}
