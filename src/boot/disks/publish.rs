//! A machine's persistent disk becomes a version of its image, and what stands in the way of a
//! version's end. All calls block.
//!
//! The version is a clone of a snapshot of that disk, so that making it costs nothing, and has a
//! snapshot of its own, from which machines' disks are made. The client's disk goes on as it
//! is; before it is thrown away, versions that were made from it are freed of it.

use uuid::Uuid;

use super::service::{Disks, Shared};
use crate::boot::tracker::{Known, OpenAttempt};
use crate::model::DiskMode;
use crate::steps::{self, Step};
use crate::storage::{SnapshotId, Volume, VolumeError, mend};

/// Why a disk did not become a version.
#[derive(Debug, thiserror::Error)]
pub enum NotPublished {
    /// A connection has it.
    #[error("the machine has its disk open: shut it down first")]
    InUse,
    /// Nothing is connected, but its boot is not over: it may be cut off, with writes on their way.
    #[error("its boot {0} is not over yet: shut it down, or wait until that has ended")]
    Booted(Uuid),
    /// There is no such disk here.
    #[error("it has no persistent disk of this image on this server")]
    NoDisk,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] VolumeError),
}

/// What a version takes in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of its own.
    pub used: u64,
    /// All that it refers to, what it shares included.
    pub referenced: u64,
}

impl Disks {
    /// Makes the volume of a version from what a client has on its persistent disk of an image.
    /// Durable when it returns; takes milliseconds, and the machine can't log in meanwhile.
    ///
    /// # Errors
    /// See [`NotPublished`]. A volume that was made in part is the caller's to remove.
    pub fn publish(&self, client: Uuid, image: Uuid, version: Uuid) -> Result<(), NotPublished> {
        let shared = &self.shared;
        let volume = Volume::Personal { client, image };
        let desk = shared.desk(client);
        let _one = desk.serial();
        let boot = shared.keeps_writing(client);
        if !desk.vacate(boot.is_none(), |hold| hold.volume == volume) {
            return Err(NotPublished::InUse);
        }
        if let Some(boot) = boot {
            return Err(NotPublished::Booted(boot));
        }
        if shared.store.info(volume)?.is_none() {
            return Err(NotPublished::NoDisk);
        }
        let name = mend::version_snapshot(version)?;
        let origin = SnapshotId { volume, name };
        shared.store.snapshot(&origin)?;
        steps::reach(Step::PublishFrozen);
        shared.store.clone_volume(&origin, Volume::Image(version))?;
        steps::reach(Step::PublishCloned);
        shared.store.snapshot(&SnapshotId::base(version))?;
        steps::reach(Step::PublishWhole);
        Ok(())
    }

    /// What a version takes; `None` if it is not on this server.
    ///
    /// # Errors
    /// When the store can't tell.
    pub fn taken(&self, version: Uuid) -> Result<Option<Taken>, VolumeError> {
        let base = SnapshotId::base(version);
        let Some(info) = self.shared.store.info(base.volume)? else {
            return Ok(None);
        };
        if !info.snapshots.contains(&base.name) {
            return Ok(None);
        }
        Ok(Some(Taken {
            used: info.used,
            referenced: info.referenced,
        }))
    }

    /// Who has or may come back to a disk that was made from a version, and what else of this
    /// store stands upon it; in sentences.
    ///
    /// # Errors
    /// When the store can't tell.
    pub fn version_users(&self, version: Uuid) -> Result<Vec<String>, VolumeError> {
        let shared = &self.shared;
        let snapshot = shared.view.get();
        let host = |client: Option<Uuid>| {
            let client = client.and_then(|id| snapshot.client(id));
            client.map_or_else(
                || "a client that is gone".to_owned(),
                |c| format!("client {}", c.hostname),
            )
        };
        let mut users = Vec::new();
        for info in shared.store.list()? {
            if !info.stands_upon(Volume::Image(version)) {
                continue;
            }
            let user = match info.volume {
                Volume::Session(attempt) => match shared.tracker.known(attempt) {
                    Known::Open(boot) => {
                        format!("{} has booted it (session {attempt})", host(boot.client_id))
                    }
                    Known::Over(boot) if boot.may_attach => format!(
                        "{} may come back to it (session {attempt}) until it boots again",
                        host(boot.client_id)
                    ),
                    Known::Over(_) | Known::Never => continue,
                },
                Volume::Personal { client, .. } => {
                    format!(
                        "the persistent disk of {} was made from it",
                        host(Some(client))
                    )
                }
                Volume::Image(other) => match (snapshot.version(other), snapshot.image(other)) {
                    (_, Some(image)) => format!("image {} was made from it", image.name),
                    (Some(version), None) => format!("version {} was made from it", version.name),
                    (None, None) => format!("a disk that nobody needs was made from it ({other})"),
                },
            };
            users.push(user);
        }
        users.sort();
        Ok(users)
    }
}

impl Shared {
    /// The boot of a client that is not over and whose writes are kept.
    pub(super) fn keeps_writing(&self, client: Uuid) -> Option<Uuid> {
        let snapshot = self.view.get();
        let macs = snapshot.client(client).into_iter().flat_map(|c| c.macs());
        let boots = macs.filter_map(|mac| self.tracker.open_attempt(mac));
        let kept = |b: &OpenAttempt| b.disk_mode == Some(DiskMode::Persistent);
        boots.filter(kept).map(|b| b.id).next()
    }
}
