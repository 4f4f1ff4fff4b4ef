//! `/api/v1/doctor/storage`: catalog and store, checked against each other, and what can be done
//! about what is found.
//!
//! Nothing is destroyed but what was named with `remove`, one finding at a time; `repair` and
//! `all` lose nothing. Each is looked for anew before it is acted upon, under the lock of writes.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use super::error::ApiError;
use super::extract::{Asked, JsonObject, shown};
use super::images::{Unsaved, begin, blocking, erase, finished, fresh, save_new, vacant};
use crate::cache::Snapshot;
use crate::model::{Image, ImageKind};
use crate::steps::{self, Step};
use crate::storage::{
    Directory, HoldTag, Intent, Noted, Pending, SnapshotId, Storage, Volume, VolumeError,
    VolumeInfo, mend,
};
use crate::truth::{
    self, Disk, Finding, Hold, ImageRow, Kind, Name, Rows, Store, Target, Unfinished, VersionRow,
};
use crate::validate::{self, Reader, Write};

/// Label of a finding.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    finding: &'static str,
}

/// How many findings there were at the last look; clones share it.
#[derive(Debug, Clone, Default)]
pub struct DoctorMetrics {
    findings: Family<KindLabel, Gauge>,
}

impl DoctorMetrics {
    /// Makes them known as `dls_storage_findings`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "storage_findings",
            "Where catalog and store did not agree at the last look, by the finding's name",
            self.findings.clone(),
        );
    }

    fn set(&self, found: &[Finding]) {
        for kind in Kind::ALL {
            let finding = kind.as_str();
            let count = found.iter().filter(|f| f.kind == *kind).count();
            let gauge = self.findings.get_or_create(&KindLabel { finding });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

/// Checks catalog and store against each other at the start: each finding is logged once, and
/// counted. Nothing is changed.
pub async fn look_over(
    storage: &Directory,
    disks: &std::sync::Arc<dyn Storage>,
    catalog: &Snapshot,
    pending: &Pending,
    metrics: &DoctorMetrics,
    server: Uuid,
) {
    let found = match read(storage, disks, pending, &BTreeSet::new()).await {
        Ok(store) => compare(catalog, server, store),
        Err(e) => {
            return tracing::warn!(why = e.sentence(), "catalog and store can't be compared");
        }
    };
    for finding in &found {
        tracing::warn!(
            finding = finding.id(),
            sentence = finding.sentence,
            "catalog and store do not agree: see `dls doctor storage`"
        );
    }
    metrics.set(&found);
}

/// `GET /api/v1/doctor/storage`: what is found.
pub(super) async fn get(State(api): State<Shared>, asked: Asked) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    // Rows that were made in psql a moment ago count.
    api.cache.refresh().await?;
    let found = look(&api).await?;
    Ok(Json(json!({"findings": told(&found)})))
}

/// `POST /api/v1/doctor/storage/repair`: `repair` (names of findings) or `all`, `remove` (names),
/// `name` (of the image that a disk is adopted as).
pub(super) async fn repair(
    State(api): State<Shared>,
    JsonObject(body): JsonObject,
) -> Result<Json<Value>, ApiError> {
    let wanted = validate::doctor(Reader::new(body, Write::Create, api.strictness))?;
    let task = tokio::spawn(async move {
        let _one = api.writes.lock().await;
        api.cache.refresh().await?;
        let found = look(&api).await?;
        for name in wanted.repair.iter().chain(&wanted.remove) {
            if !found.iter().any(|finding| finding.id() == *name) {
                return Err(ApiError::NotFound(format!(
                    "there is no finding `{}` (any more)",
                    shown(name)
                )));
            }
        }
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for finding in &found {
            let id = finding.id();
            let deed = if wanted.remove.contains(&id) {
                finding.kind.removal().map(|what| (what, true))
            } else if wanted.repair.contains(&id) || wanted.all && finding.kind.is_plain() {
                finding.kind.repair().map(|what| (what, false))
            } else {
                continue;
            };
            let acted = match deed {
                Some((_, true)) => remove(&api, finding).await,
                Some((_, false)) => mend_one(&api, finding, wanted.name.as_deref()).await,
                None => Err(ApiError::Conflict {
                    field: "",
                    message: "there is nothing that could be done about it from here".to_owned(),
                }),
            };
            match acted {
                Ok(()) => {
                    tracing::info!(
                        finding = id,
                        deed = deed.map(|d| d.0),
                        "a finding is dealt with"
                    );
                    done.push(id);
                }
                Err(e) => failed.push(json!({"id": id, "error": e.sentence()})),
            }
        }
        api.settle().await;
        let left = look(&api).await?;
        Ok(json!({"done": done, "failed": failed, "findings": told(&left)}))
    });
    finished(task).await.map(Json)
}

fn told(found: &[Finding]) -> Vec<Value> {
    let one = |finding: &Finding| {
        json!({
            "id": finding.id(),
            "finding": finding.kind,
            "sentence": finding.sentence,
            "repair": finding.kind.repair(),
            "remove": finding.kind.removal(),
            "by_hand": finding.kind.by_hand(),
        })
    };
    found.iter().map(one).collect()
}

/// What is found now.
pub(super) async fn look(api: &Shared) -> Result<Vec<Finding>, ApiError> {
    let aside = api.aside.all();
    let store = read(&api.storage, &api.disks, &api.pending, &aside).await?;
    let found = compare(&api.cache.get(), api.replication.server_id(), store);
    api.doctor.set(&found);
    Ok(found)
}

/// What is found on a server; what is on its way there from another one is not whole yet.
fn compare(catalog: &Snapshot, server: Uuid, mut store: Store) -> Vec<Finding> {
    store.busy.extend(catalog.arriving(server));
    truth::compare(&rows(catalog, server), &store)
}

fn name_of(volume: Volume) -> Name {
    match volume {
        Volume::Image(id) => Name::Image(id),
        Volume::Session(id) => Name::Session(id),
        Volume::Personal { client, image } => Name::Personal { client, image },
    }
}

pub(super) fn volume_of(name: Name) -> Volume {
    match name {
        Name::Image(id) => Volume::Image(id),
        Name::Session(id) => Volume::Session(id),
        Name::Personal { client, image } => Volume::Personal { client, image },
    }
}

fn disk(info: VolumeInfo) -> Disk {
    let made_for = info.snapshots.iter();
    let made_for = made_for.filter_map(|s| Some((s.as_str().to_owned(), mend::version_of(s)?)));
    Disk {
        name: name_of(info.volume),
        size: info.size,
        used: info.used,
        made_for: made_for.collect(),
        origin: info
            .origin
            .map(|o| (name_of(o.volume), o.name.as_str().to_owned())),
        snapshots: info
            .snapshots
            .iter()
            .map(|s| s.as_str().to_owned())
            .collect(),
    }
}

/// What the store has; `aside` tells which intentions wait for a person.
async fn read(
    storage: &Directory,
    disks: &std::sync::Arc<dyn Storage>,
    pending: &Pending,
    aside: &BTreeSet<Uuid>,
) -> Result<Store, ApiError> {
    let files = storage.images().await?;
    let (disks, pending) = (disks.clone(), pending.clone());
    let (noted, holds, volumes) = blocking(move || {
        let noted = pending.intents().map_err(ApiError::from)?;
        // In this order: a disk that is made meanwhile lacks no hold, and none is left over.
        let holds = disks.holds()?;
        Ok::<_, ApiError>((noted, holds, disks.list()?))
    })
    .await?;
    let holds = holds.into_iter().map(|hold| Hold {
        on: (
            name_of(hold.snapshot.volume),
            hold.snapshot.name.as_str().to_owned(),
        ),
        clone: match hold.tag {
            HoldTag::Clone(volume) => Some(name_of(volume)),
            HoldTag::Replication(_) => None,
        },
    });
    let (waiting, busy): (Vec<Noted>, Vec<Noted>) = noted
        .into_iter()
        .partition(|n| aside.contains(&n.intent.id()));
    Ok(Store {
        disks: volumes.into_iter().map(disk).collect(),
        files,
        holds: holds.collect(),
        unfinished: waiting.iter().map(unfinished).collect(),
        busy: busy.iter().map(|n| n.intent.id()).collect(),
    })
}

fn unfinished(noted: &Noted) -> Unfinished {
    let what = match noted.intent {
        Intent::Image { image: id } | Intent::Version { version: id, .. } => format!(
            "{id} was being made or removed and has no row; the database is another one than then, or was put back to an older state, so nothing of it was removed"
        ),
        Intent::Reset { client, .. } => format!(
            "the persistent disk of the client {client} was being thrown away and could not be at the start; its machine may have written to it since"
        ),
    };
    Unfinished {
        id: noted.intent.id(),
        what,
    }
}

/// What the catalog says of a server.
fn rows(catalog: &Snapshot, server: Uuid) -> Rows {
    let mut rows = Rows::default();
    for image in catalog.images() {
        for version in catalog.versions(image.id) {
            let holders = catalog.holders(version.id);
            if !holders.is_empty() && !holders.contains(&server) {
                rows.elsewhere.insert(version.id);
            }
        }
        let assigned = catalog.clients();
        let assigned = assigned.filter(|c| c.assigned_image_id == Some(image.id));
        let mut used_by: Vec<String> = assigned.map(|c| format!("client {}", c.hostname)).collect();
        used_by.sort();
        rows.images.push(ImageRow {
            id: image.id,
            name: image.name.clone(),
            disk: image.kind == ImageKind::Disk,
            files: !image.files.is_empty(),
            size: image.size_bytes,
            used_by,
        });
        for version in catalog.versions(image.id).iter().filter(|v| !v.is_first()) {
            let pinned = catalog.clients();
            let pinned = pinned.filter(|c| c.pinned_version_id == Some(version.id));
            let mut used_by: Vec<String> =
                pinned.map(|c| format!("client {}", c.hostname)).collect();
            used_by.sort();
            if version.stage.is_released() {
                used_by.insert(0, format!("it is in {}", version.stage));
            }
            rows.versions.push(VersionRow {
                id: version.id,
                image: image.name.clone(),
                name: version.name.clone(),
                used_by,
            });
        }
    }
    rows.images.sort_by(|a, b| a.name.cmp(&b.name));
    rows.clients = catalog.clients().map(|c| c.id).collect();
    rows
}

/// What loses nothing.
async fn mend_one(api: &Shared, finding: &Finding, name: Option<&str>) -> Result<(), ApiError> {
    let disks = api.disks.clone();
    match (&finding.target, finding.kind) {
        (Target::Disk(Name::Image(id)), Kind::DiskWithoutBase) => {
            let base = SnapshotId::base(*id);
            blocking(move || disks.snapshot(&base)).await
        }
        (Target::Disk(disk), _) => adopt(api, volume_of(*disk), name).await,
        (Target::Hold(hold), _) => {
            let Some(clone) = hold.clone else {
                return Ok(());
            };
            let snapshot = snapshot(hold.on.0, &hold.on.1)?;
            let tag = HoldTag::Clone(volume_of(clone));
            blocking(move || disks.release(&snapshot, tag)).await
        }
        (Target::Image(id), Kind::SizeDiffers) => {
            let (row, volume) = (*id, Volume::Image(*id));
            let info = blocking(move || disks.info(volume)).await?;
            let image = api.catalog.get_image_metadata(row).await?;
            if let (Some(info), Some(mut image)) = (info, image) {
                image.size_bytes = i64::try_from(info.size).unwrap_or(i64::MAX);
                // It was of something else.
                image.sha256 = None;
                api.catalog.save_image_metadata(&image).await?;
            }
            Ok(())
        }
        (Target::Intention(id), _) => {
            api.settled(*id);
            api.aside.remove(*id);
            Ok(())
        }
        (Target::Image(_) | Target::Version(_) | Target::Files(_) | Target::Snapshot(..), _) => {
            Ok(())
        }
    }
}

fn snapshot(name: Name, snapshot: &str) -> Result<SnapshotId, VolumeError> {
    Ok(SnapshotId {
        volume: volume_of(name),
        name: snapshot.parse()?,
    })
}

/// What was asked for: destroys it.
pub(super) async fn remove(api: &Shared, finding: &Finding) -> Result<(), ApiError> {
    let disks = api.disks.clone();
    match &finding.target {
        Target::Disk(name) => {
            let volume = volume_of(*name);
            blocking(move || {
                if matches!(volume, Volume::Personal { .. }) {
                    mend::free_of(&*disks, volume, &CancellationToken::new())?;
                }
                match disks.info(volume)? {
                    Some(info) => mend::remove_clone(&*disks, &info),
                    None => Ok(()),
                }
            })
            .await
        }
        Target::Files(id) => Ok(api.storage.remove_image(*id).await?),
        Target::Snapshot(name, of) => {
            let snapshot = snapshot(*name, of)?;
            blocking(move || disks.remove_snapshot(&snapshot)).await
        }
        Target::Version(id) => match api.catalog.delete_version(*id).await {
            Ok(_) => Ok(()),
            Err(e) => Err(ApiError::in_use(e)),
        },
        Target::Intention(id) => finish(api, *id).await,
        Target::Image(_) | Target::Hold(_) => Ok(()),
    }
}

/// Carries an intention out that was set aside.
async fn finish(api: &Shared, id: Uuid) -> Result<(), ApiError> {
    let pending = api.pending.clone();
    let noted = blocking(move || pending.intents()).await?;
    let Some(noted) = noted.into_iter().find(|n| n.intent.id() == id) else {
        api.aside.remove(id);
        return Ok(());
    };
    match noted.intent {
        Intent::Reset { client, image, .. } => {
            let disks = api.boot_disks.clone();
            let done = tokio::task::spawn_blocking(move || disks.reset(client, image)).await;
            done.map_err(|e| ApiError::Internal(e.to_string()))?
                .map_err(|why| ApiError::Conflict {
                    field: "",
                    message: why.to_string(),
                })?;
        }
        Intent::Image { .. } | Intent::Version { .. } => erase(api, id).await,
    }
    api.aside.remove(id);
    Ok(())
}

/// A disk that nobody knows becomes an image: one of an image itself, a client's as a copy.
async fn adopt(api: &Shared, volume: Volume, name: Option<&str>) -> Result<(), ApiError> {
    let id = match volume {
        Volume::Image(id) => id,
        Volume::Personal { .. } | Volume::Session(_) => Uuid::new_v4(),
    };
    let mut image = Image {
        kind: ImageKind::Disk,
        name: name.map_or_else(
            || format!("adopted-{}", &id.simple().to_string()[..8]),
            str::to_owned,
        ),
        description: Some(format!("Adopted from the disk {volume}, which had no row")),
        ..fresh(id)
    };
    vacant(api, &image.name).await?;
    let disks = api.disks.clone();
    if let Volume::Personal { client, image } = volume {
        let intent = Intent::Version {
            version: id,
            client,
            image,
            reset: false,
        };
        begin(api, intent).await?;
        steps::reach(Step::AdoptBegun);
    }
    let made = blocking(move || {
        if volume != Volume::Image(id) {
            let origin = SnapshotId {
                volume,
                name: mend::version_snapshot(id)?,
            };
            disks.snapshot(&origin)?;
            disks.clone_volume(&origin, Volume::Image(id))?;
        }
        match disks.snapshot(&SnapshotId::base(id)) {
            Ok(()) | Err(VolumeError::Exists(_)) => {}
            Err(e) => return Err(e),
        }
        disks.info(Volume::Image(id))
    });
    let stored = match made.await {
        Ok(Some(info)) => {
            image.size_bytes = i64::try_from(info.size).unwrap_or(i64::MAX);
            image.path = info.path;
            steps::reach(Step::AdoptWhole);
            save_new(api, &image).await
        }
        Ok(None) => Err(Unsaved::Surely(ApiError::NotFound(
            "the disk is gone".into(),
        ))),
        Err(e) => Err(Unsaved::Surely(e)),
    };
    let is_copy = volume != Volume::Image(id);
    match stored {
        Ok(()) => {
            steps::reach(Step::AdoptStored);
            if is_copy {
                api.settled(id);
            }
            tracing::info!(image.name, %volume, "a disk without a row is adopted");
            Ok(())
        }
        Err(Unsaved::Surely(e)) => {
            // The disk itself stays what it was.
            if is_copy {
                erase(api, id).await;
            }
            Err(e)
        }
        Err(Unsaved::Perhaps(e)) => {
            if is_copy {
                api.works.leave(id);
            }
            Err(e)
        }
    }
}
