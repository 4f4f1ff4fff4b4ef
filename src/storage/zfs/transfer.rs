//! Files from and for outside. Formats are the directory backend's affair: a file is taken
//! into a store of that kind first (`zfs-staging` below the storage root), with all its checks,
//! and copied from there; the other way round on the way out. What is not whole lies in a
//! dataset `scratch.ID`, which gets its name last.

use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::device::{Disk, Handle};
use super::{Shape, ZfsStore, damaged};
use crate::storage::{
    Access, BlockDevice, DiskFormat, Durability, Imported, Progress, SnapshotId, Storage, Volume,
    VolumeError,
};

/// Bytes copied at a time; zeroes of that many are left out.
const CHUNK: u64 = 128 * 1024;

/// A dataset that goes unless it got a name.
pub(super) struct Scratch<'a> {
    store: &'a ZfsStore,
    pub(super) dataset: String,
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        // An error is told by what follows.
        if !self.store.exists(&self.dataset).unwrap_or(true) {
            return;
        }
        if let Err(e) = self.store.remove(&self.dataset) {
            tracing::warn!(dataset = %self.dataset, error = %e, "a dataset of an import or export stays until the next start");
        }
    }
}

/// A volume of the staging store that goes in the end.
struct Staged<'a>(&'a ZfsStore, Volume);

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.0.inner.staging.destroy(self.1) {
            tracing::warn!(volume = %self.1, error = %e, "what was converted stays until the next start");
        }
    }
}

/// Takes a piece, and where it lies.
type Each<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), VolumeError>;

/// Reads a disk in pieces, in order.
fn walk(
    from: &dyn BlockDevice,
    step: &'static str,
    progress: &mut dyn FnMut(Progress),
    cancel: &CancellationToken,
    each: Each<'_>,
) -> Result<(), VolumeError> {
    let size = from.info().size;
    let mut chunk = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
    let mut at = 0;
    while at < size {
        if cancel.is_cancelled() {
            return Err(VolumeError::Cancelled);
        }
        let length = usize::try_from((size - at).min(CHUNK)).unwrap_or(0);
        let part = &mut chunk[..length];
        from.read_at(at, part)?;
        each(at, part)?;
        at += length as u64;
        progress(Progress {
            step,
            done: at as f64 / size as f64,
        });
    }
    Ok(())
}

fn hash(
    from: &dyn BlockDevice,
    progress: &mut dyn FnMut(Progress),
    cancel: &CancellationToken,
) -> Result<String, VolumeError> {
    let mut sha = Sha256::new();
    walk(from, "verifying", progress, cancel, &mut |_, part| {
        sha.update(part);
        Ok(())
    })?;
    Ok(sha.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Copies a disk to an empty one.
fn copy(
    from: &dyn BlockDevice,
    to: &dyn BlockDevice,
    progress: &mut dyn FnMut(Progress),
    cancel: &CancellationToken,
) -> Result<(), VolumeError> {
    walk(from, "copying", progress, cancel, &mut |at, part| {
        if part.iter().all(|b| *b == 0) {
            return Ok(());
        }
        Ok(to.write_at(at, part, Durability::Volatile)?)
    })?;
    Ok(to.flush()?)
}

impl ZfsStore {
    pub(super) fn scratch(&self) -> Scratch<'_> {
        Scratch {
            store: self,
            dataset: self.inner.parent.scratch(Uuid::new_v4()),
        }
    }

    pub(super) fn open_scratch(
        &self,
        scratch: &Scratch<'_>,
        shape: Shape,
        access: Access,
    ) -> Result<Handle, VolumeError> {
        let disk = Disk::open(&scratch.dataset, shape.size, shape.block)?;
        Ok(Handle {
            disk: Arc::new(disk),
            access,
        })
    }

    pub(super) fn bring_in(
        &self,
        volume: Volume,
        source: &Path,
        format: DiskFormat,
        progress: &mut dyn FnMut(Progress),
        cancel: &CancellationToken,
    ) -> Result<Imported, VolumeError> {
        let library = &self.inner.library;
        let name = self.place(volume);
        if self.exists(&name)? {
            return Err(VolumeError::Exists(volume.to_string()));
        }
        let staged = Staged(self, Volume::Image(Uuid::new_v4()));
        let staging = &self.inner.staging;
        let taken = staging.import(staged.1, source, format, progress, cancel)?;
        let scratch = self.scratch();
        self.make(&scratch.dataset, taken.size)?;
        let from = staging.open(staged.1, Access::Read)?;
        let shape = Shape {
            size: taken.size,
            block: self.inner.options.block,
        };
        let to = self.open_scratch(&scratch, shape, Access::Write)?;
        copy(&*from, &to, progress, cancel)?;
        // Closed and opened again, so that it is ZFS that is read and not the page cache.
        drop((from, to));
        let stored = self.open_scratch(&scratch, shape, Access::Read)?;
        if hash(&stored, progress, cancel)? != taken.sha256 {
            return Err(damaged(volume, "what was stored is not what was read"));
        }
        drop(stored);
        library
            .rename(&scratch.dataset, &name)
            .map_err(|e| self.failed(volume, "rename,create,mount", &e))?;
        let used = self.listing_of(volume)?.get(volume)?.used;
        Ok(Imported { used, ..taken })
    }

    pub(super) fn give_out(
        &self,
        snapshot: &SnapshotId,
        to: &Path,
        format: DiskFormat,
        progress: &mut dyn FnMut(Progress),
        cancel: &CancellationToken,
    ) -> Result<(), VolumeError> {
        let shape = self.shape(snapshot.volume)?;
        let size = shape.size;
        let scratch = self.scratch();
        self.make_clone(snapshot, &scratch.dataset, size)?;
        let from = self.open_scratch(&scratch, shape, Access::Read)?;
        let staged = Staged(self, Volume::Image(Uuid::new_v4()));
        let staging = &self.inner.staging;
        staging.create(staged.1, size)?;
        let copied = staging.open(staged.1, Access::Write)?;
        copy(&from, &*copied, progress, cancel)?;
        drop((from, copied));
        let Volume::Image(id) = staged.1 else {
            return Err(damaged(snapshot, "it is staged under no image's name"));
        };
        let base = SnapshotId::base(id);
        staging.snapshot(&base)?;
        staging.export(&base, to, format, progress, cancel)
    }
}
