//! Deletion of images.
//!
//! The intention is durable first; then the row goes, so that no new machine gets the disk;
//! then disks and files. A crash in between leaves an image that is whole or one that is gone
//! at the next start ([`settle_pending`]). A disk that a machine still has open stays until it
//! lets go.

use axum::extract::State;
use axum::http::StatusCode;
use uuid::Uuid;

use super::{blocking, find, finished, not_found};
use crate::admin::Shared;
use crate::admin::error::ApiError;
use crate::admin::extract::{Asked, Called};
use crate::catalog::CatalogError;
use crate::steps::{self, Step};
use crate::storage::{Intent, Noted, Storage, Volume, VolumeError, mend};

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
        // Its versions go with it, also those that stand on their own feet by now.
        let mut ids = vec![id];
        let versions = api.catalog.list_versions(id).await?;
        ids.extend(versions.iter().filter(|v| !v.is_first()).map(|v| v.id));
        let all = |what: &dyn Fn(Uuid)| ids.iter().for_each(|id| what(*id));
        for id in &ids {
            if let Err(e) = begin(&api, Intent::Image { image: *id }).await {
                all(&|id| api.settled(id));
                return Err(e);
            }
        }
        steps::reach(Step::DeleteBegun);
        match api.catalog.delete_image_metadata(id, force).await {
            Ok(true) => {}
            Ok(false) => {
                all(&|id| api.settled(id));
                return Err(not_found(&name));
            }
            // It may be deleted or not: the intentions stay.
            Err(e @ CatalogError::Unavailable(_)) => {
                all(&|id| api.works.leave(id));
                return Err(e.into());
            }
            Err(e) => {
                all(&|id| api.settled(id));
                return Err(ApiError::in_use(e));
            }
        }
        steps::reach(Step::DeleteRowGone);
        api.settle().await;
        for id in ids {
            erase(&api, id).await;
        }
        tracing::info!(image.name, image.id = %id, "image deleted");
        Ok(StatusCode::NO_CONTENT)
    });
    finished(task).await
}

/// Writes an intention down, with the catalog's mark, before its first step.
///
/// # Errors
/// When the catalog or the journal can't be written; then nothing must be begun.
pub(in crate::admin) async fn begin(api: &Shared, intent: Intent) -> Result<(), ApiError> {
    let mark = api.catalog.next_mark().await?;
    let pending = api.pending.clone();
    blocking(move || pending.note(intent, Some(mark))).await
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
    let (disks, known) = (api.disks.clone(), api.cache.get());
    let of_others = move |id: Uuid| known.image(id).is_some() || known.version(id).is_some();
    let erased = blocking(move || {
        erase_disks(&*disks, id, &of_others)?;
        steps::reach(Step::EraseDiskGone);
        mend::forget_version(&*disks, id)?;
        steps::reach(Step::EraseSnapshotGone);
        Ok::<_, VolumeError>(())
    })
    .await;
    let files = api.storage.remove_image(id).await.map_err(ApiError::from);
    steps::reach(Step::EraseFilesGone);
    match erased.and(files) {
        Ok(()) => api.settled(id),
        Err(e) => {
            tracing::warn!(image.id = %id, why = e.sentence(), "what is stored of a deleted image stays for now");
            api.works.leave(id);
        }
    }
}

/// What was made of it and then itself: clones of boots, clients' disks, and versions that
/// nobody knows any more; `of_others` are images and versions that are in the catalog.
fn erase_disks(
    disks: &dyn Storage,
    id: Uuid,
    of_others: &dyn Fn(Uuid) -> bool,
) -> Result<(), VolumeError> {
    let all = disks.list()?;
    let mut doomed = vec![Volume::Image(id)];
    let mine = |v: &Volume| matches!(v, Volume::Personal { image, .. } if *image == id);
    doomed.extend(all.iter().map(|info| info.volume).filter(mine));
    loop {
        let more: Vec<Volume> = all
            .iter()
            .filter(|info| {
                let origin = info.origin.as_ref().map(|o| o.volume);
                let goes_with_it = match info.volume {
                    Volume::Session(_) => true,
                    Volume::Image(other) => !of_others(other),
                    Volume::Personal { .. } => false,
                };
                goes_with_it
                    && !doomed.contains(&info.volume)
                    && origin.is_some_and(|origin| doomed.contains(&origin))
            })
            .map(|info| info.volume)
            .collect();
        if more.is_empty() {
            break;
        }
        doomed.extend(more);
    }
    // What others stand upon goes after them: as long as something goes, it is tried again.
    loop {
        let before = doomed.len();
        let mut why = None;
        let gone = |volume: Volume| match disks.info(volume)? {
            Some(info) => mend::remove_clone(disks, &info),
            None => Ok(()),
        };
        doomed.retain(|volume| match gone(*volume) {
            Ok(()) => false,
            Err(e) => {
                why = Some(e);
                true
            }
        });
        match why {
            None => return Ok(()),
            Some(e) if doomed.len() == before => return Err(e),
            Some(_) => {}
        }
    }
}

/// Finishes or undoes what a crash cut short; those it can't tell about yet are given back.
pub(in crate::admin) async fn settle_pending(api: &Shared, left: Vec<Uuid>) -> Vec<Uuid> {
    if left.is_empty() {
        return left;
    }
    let pending = api.pending.clone();
    let noted = match blocking(move || pending.intents()).await {
        Ok(noted) => noted,
        Err(e) => {
            tracing::warn!(
                why = e.sentence(),
                "the journal of intentions can't be read"
            );
            return left;
        }
    };
    let mut unknown = Vec::new();
    for noted in noted.iter().filter(|n| left.contains(&n.intent.id())) {
        let id = noted.intent.id();
        // What is being imported has its own way of going on; afterwards it is settled.
        if api.uploads.list().iter().any(|s| s.upload.image.id == id) {
            unknown.push(id);
            continue;
        }
        let _one = api.writes.lock().await;
        match settle_one(api, noted).await {
            Ok(Settled::Done) => api.settled(id),
            Ok(Settled::Left) => {}
            Ok(Settled::Aside(why)) => {
                tracing::warn!(intent = ?noted.intent, why, "what was begun waits for a person: see `dls doctor storage`");
                api.aside.add(id);
            }
            Err(_) => unknown.push(id),
        }
    }
    unknown
}

/// How it stands with an intention.
enum Settled {
    /// It is over.
    Done,
    /// Whoever was called has ended it, or tries again later.
    Left,
    /// It is not for us to decide.
    Aside(&'static str),
}

async fn settle_one(api: &Shared, noted: &Noted) -> Result<Settled, ApiError> {
    let (id, mark) = (noted.intent.id(), noted.mark);
    if let Intent::Reset {
        client,
        maintenance,
        ..
    } = noted.intent
    {
        let Some(begun) = maintenance else {
            return Ok(Settled::Aside(
                "a disk that was being thrown away could not be: its machine may have written to it since",
            ));
        };
        // The disk went at the start. Another maintenance may have begun since.
        let row = api.catalog.get_maintenance(client).await?;
        if row.is_some_and(|row| row.begun_at == begun) {
            api.catalog.end_maintenance(client).await?;
            api.settle().await;
        }
        return Ok(Settled::Done);
    }
    let image = api.catalog.get_image_metadata(id).await?;
    let version = api.catalog.get_version(id).await?;
    if image.is_none() && version.is_none() {
        let now = api.catalog.mark().await?;
        if mark.is_some_and(|then| !then.is_within(now)) {
            return Ok(Settled::Aside(
                "the database is another one, or was put back to an older state: that it has no row says nothing",
            ));
        }
        tracing::info!(image.id = %id, "removing what is stored of an image or version that is not in the catalog");
        erase(api, id).await;
        return Ok(Settled::Left);
    }
    if image.is_some_and(|image| image.files.is_empty()) {
        // Files that were on their way in or out.
        api.storage.remove_image(id).await?;
    }
    if let Intent::Version {
        client,
        image,
        reset: true,
        ..
    } = noted.intent
    {
        // It may take as long as a copy.
        let api = api.clone();
        tokio::spawn(async move {
            super::maintenance::finish(&api, client, image).await;
            api.settled(id);
        });
        return Ok(Settled::Left);
    }
    Ok(Settled::Done)
}
