//! `/api/v1/orphans`: what is stored for nobody, and images without what they need. They are
//! findings of the doctor's, in a table; all that is nobody's is removed at once when asked.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Shared;
use super::doctor::{self, volume_of};
use super::error::ApiError;
use super::extract::Asked;
use super::images::{blocking, finished};
use crate::cache::Snapshot;
use crate::storage::VolumeInfo;
use crate::truth::{Finding, Kind, Target};

/// `GET`: both lists.
pub(super) async fn get(State(api): State<Shared>, asked: Asked) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    api.cache.refresh().await?;
    let found = doctor::look(&api).await?;
    told(&api, &found).await
}

/// `DELETE`: removes what is stored for nobody; answers what is left.
pub(super) async fn remove(
    State(api): State<Shared>,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    let task = tokio::spawn(async move {
        let _one = api.writes.lock().await;
        api.cache.refresh().await?;
        let mut found = doctor::look(&api).await?;
        // What a disk stands upon can go once that disk has: again until nothing more goes.
        loop {
            let orphans: Vec<&Finding> = found.iter().filter(|f| reason(f).is_some()).collect();
            for orphan in &orphans {
                let finding = orphan.id();
                match doctor::remove(&api, orphan).await {
                    Ok(()) => tracing::info!(finding, "an orphan is removed"),
                    Err(e) => tracing::warn!(finding, why = e.sentence(), "an orphan stays"),
                }
            }
            let before = orphans.len();
            found = doctor::look(&api).await?;
            let left = found.iter().filter(|f| reason(f).is_some()).count();
            if left == 0 || left >= before {
                return told(&api, &found).await;
            }
        }
    });
    finished(task).await
}

/// Why it is nobody's; nothing if it is somebody's.
const fn reason(finding: &Finding) -> Option<&'static str> {
    match finding.kind {
        Kind::DiskWithoutRow => Some("no image of the catalog has this disk"),
        Kind::DiskWithoutClient => Some("its client is not in the catalog"),
        Kind::DiskWithoutImage => Some("its image is not in the catalog"),
        Kind::FilesWithoutRow => Some("no image of the catalog has these files"),
        _ => None,
    }
}

async fn told(api: &Shared, found: &[Finding]) -> Result<Json<Value>, ApiError> {
    let disks = api.disks.clone();
    let volumes = blocking(move || disks.list()).await?;
    let catalog = api.cache.get();
    let orphans = found.iter().filter_map(|finding| orphan(finding, &volumes));
    let missing = found.iter().filter_map(|finding| lacks(finding, &catalog));
    Ok(Json(json!({
        "orphans": orphans.collect::<Vec<_>>(),
        "missing": missing.collect::<Vec<_>>(),
    })))
}

/// What it is, where below the storage root, and the bytes it takes where known.
fn orphan(finding: &Finding, volumes: &[VolumeInfo]) -> Option<Value> {
    let reason = reason(finding)?;
    let (what, path, used) = match &finding.target {
        Target::Disk(name) => {
            let volume = volume_of(*name);
            let info = volumes.iter().find(|info| info.volume == volume)?;
            (format!("disk {volume}"), info.path.clone(), Some(info.used))
        }
        Target::Files(id) => (format!("files {id}"), format!("images/{id}"), None),
        _ => return None,
    };
    Some(json!({"what": what, "path": path, "used_bytes": used, "reason": reason}))
}

/// The image, and what of it is not here: `disk`, `files`, or `version NAME`.
fn lacks(finding: &Finding, catalog: &Snapshot) -> Option<Value> {
    let (id, what) = match (&finding.target, finding.kind) {
        (Target::Image(id), Kind::ImageWithoutDisk) => (*id, "disk".to_owned()),
        (Target::Image(id), Kind::ImageWithoutFiles) => (*id, "files".to_owned()),
        (Target::Version(id), Kind::VersionWithoutDisk) => {
            let version = catalog.version(*id)?;
            (version.image_id, format!("version {}", version.name))
        }
        _ => return None,
    };
    let name = &catalog.image(id)?.name;
    Some(json!({"id": id, "name": name, "what": what}))
}
