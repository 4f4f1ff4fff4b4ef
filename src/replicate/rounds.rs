//! Keeps the rows of `image_replicas` that are this server's in step with its store, and its
//! store in step with what was taken from it in the catalog: when anything changes there, and
//! each minute. What it removes was received as a replica and has no version or no row any
//! more; what was made here it never removes. That a received version is whole is its sender's
//! to say; should that one be gone, it is said here.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use super::content::is_whole;
use crate::catalog::CatalogError;
use crate::model::{Replica, ReplicaState};
use crate::storage::VolumeError;

/// Between two rounds when nothing changes.
const ROUND: Duration = Duration::from_secs(60);
/// Changes that come together cost one round.
const GATHER: Duration = Duration::from_millis(200);

/// Goes round until cancelled.
pub(super) async fn keep(shared: Arc<Shared>, cancel: CancellationToken) {
    let mut changes = shared.cache.watch();
    loop {
        if let Err(error) = shared.clone().round().await {
            tracing::debug!(%error, "the replicas can't be compared with the catalog yet");
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(GATHER) => {}
        }
        changes.mark_unchanged();
    }
}

impl Shared {
    async fn round(self: Arc<Self>) -> Result<(), CatalogError> {
        let rows = self.catalog.list_replicas(None).await?;
        for row in &rows {
            self.go_on(row);
        }
        let mine: Vec<Replica> = rows
            .into_iter()
            .filter(|row| row.server_id == self.server_id)
            .collect();
        let (shared, known) = (self.clone(), mine.clone());
        let looked = tokio::task::spawn_blocking(move || shared.look(&known)).await;
        let Ok(Found { have, gone }) = looked else {
            return Ok(());
        };
        for (image, version, sha256) in have {
            // A version that was deleted this moment is no matter.
            self.have(image, version, sha256.as_deref()).await;
        }
        for version in gone {
            tracing::warn!(version.id = %version, "a version is not in this server's store any more");
            self.catalog.drop_replica(version, self.server_id).await?;
        }
        self.forget().await;
        self.sweep(&mine).await
    }

    /// Tells the catalog that this server has a version whole.
    pub(super) async fn have(&self, image: Uuid, version: Uuid, sha256: Option<&str>) {
        if let Err(error) = self.catalog.have_replica(image, version, sha256).await {
            tracing::debug!(version.id = %version, %error, "a replica can't be told of yet");
        }
    }

    /// Blocks.
    fn look(&self, mine: &[Replica]) -> Found {
        let snapshot = self.cache.get();
        let mut found = Found::default();
        let pending = self.pending.list().unwrap_or_default();
        for image in snapshot.images() {
            for version in snapshot.versions(image.id) {
                let row = mine.iter().find(|row| row.version_id == version.id);
                let told = row.is_some_and(|row| row.state == ReplicaState::Verified);
                if pending.contains(&version.id) {
                    continue;
                }
                match is_whole(&*self.disks, version.id) {
                    Ok(true) if !told => {
                        let note = self.inbox.notes().read(version.id).ok().flatten();
                        let sha256 = note.and_then(|note| note.sha256);
                        found.have.push((image.id, version.id, sha256));
                    }
                    Ok(false) if told => found.gone.push(version.id),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(version.id = %version.id, %error, "a version can't be looked at");
                    }
                }
            }
        }
        found
    }

    /// Forgets versions that are remembered to send later ones from: those that are here again, and
    /// those that nobody else has.
    async fn forget(self: &Arc<Self>) {
        let shared = self.clone();
        let forgot = tokio::task::spawn_blocking(move || {
            let Some(streams) = shared.disks.streams() else {
                return Ok(());
            };
            let snapshot = shared.cache.get();
            for version in streams.remembered()? {
                let others = snapshot.holders(version).iter();
                let needed = { others }.any(|id| *id != shared.server_id);
                if !needed || is_whole(&*shared.disks, version)? {
                    streams.forget(version)?;
                    tracing::info!(version.id = %version, "nobody needs to be sent what follows this version: it is forgotten");
                }
            }
            Ok::<_, VolumeError>(())
        });
        if let Ok(Err(error)) = forgot.await {
            tracing::debug!(%error, "versions that are remembered can't be looked at");
        }
    }

    /// Removes what was received and is nobody's any more.
    async fn sweep(self: &Arc<Self>, mine: &[Replica]) -> Result<(), CatalogError> {
        for version in self.inbox.notes().list().unwrap_or_default() {
            let row = mine.iter().find(|row| row.version_id == version);
            if row.is_some_and(|row| row.state != ReplicaState::Failed) {
                continue;
            }
            let in_catalog = self.catalog.get_version(version).await?.is_some();
            let shared = self.clone();
            let removed = tokio::task::spawn_blocking(move || {
                // Whole and in the catalog: the row is what is missing, and comes back.
                if in_catalog && is_whole(&*shared.disks, version)? {
                    return Ok(false);
                }
                shared.inbox.remove(version).map(|()| true)
            });
            match removed.await {
                Ok(Ok(true)) => {
                    tracing::info!(version.id = %version, "what was received of a version is removed");
                }
                Ok(Ok(false)) | Err(_) => {}
                Ok(Err(why)) => {
                    tracing::debug!(version.id = %version, why = why.sentence, "what was received of a version stays for now");
                }
            }
        }
        Ok(())
    }
}

/// How the store stands to the rows.
#[derive(Debug, Default)]
struct Found {
    /// Image, version and hash of what is here and not told.
    have: Vec<(Uuid, Uuid, Option<String>)>,
    /// Versions that are told and not here.
    gone: Vec<Uuid>,
}
