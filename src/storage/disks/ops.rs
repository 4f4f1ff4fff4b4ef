//! The calls of [`Storage`] on volumes. Each writes what is new first and the manifest that
//! names it last, in one step; what that step made useless is removed after it.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio_util::sync::CancellationToken;

use super::handle::{Disk, Handle};
use super::manifest::{Form, LayerName, Manifest, file_name};
use super::shelf::Role;
use super::{DiskStore, MOST_LAYERS, Record, io_error};
use crate::storage::directory::sync_folder;
use crate::storage::layer::Content;
use crate::storage::layer::format::Geometry;
use crate::storage::{
    Access, BlockDevice, DiskFormat, HeldSnapshot, HoldTag, Imported, Progress, SnapshotId,
    SnapshotName, Storage, Volume, VolumeError, VolumeInfo,
};

/// Takes a volume's turn.
pub(super) fn turn(order: &Mutex<()>) -> MutexGuard<'_, ()> {
    order.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn busy(what: impl ToString, by: impl ToString) -> VolumeError {
    VolumeError::Busy {
        what: what.to_string(),
        by: by.to_string(),
    }
}

impl Record {
    /// Refuses if somebody has it open or reads it.
    pub(super) fn unused(&self) -> Result<(), VolumeError> {
        let volume = self.manifest.volume;
        if self.disk.strong_count() > 0 {
            return Err(busy(volume, "a machine has it open"));
        }
        match self.users.first() {
            Some(user) => Err(busy(volume, user)),
            None => Ok(()),
        }
    }
}

impl DiskStore {
    pub(super) fn order(&self, volume: Volume) -> Result<Arc<Mutex<()>>, VolumeError> {
        Ok(self.state().get(volume)?.order.clone())
    }

    pub(super) fn short(&self, volume: Volume) -> Result<Arc<Mutex<()>>, VolumeError> {
        Ok(self.state().get(volume)?.short.clone())
    }

    fn manifest(&self, volume: Volume) -> Result<Manifest, VolumeError> {
        Ok(self.state().get(volume)?.manifest.clone())
    }

    /// A new layer and the manifest that names it; the layer goes if that fails.
    pub(super) fn publish(&self, layer: LayerName, manifest: Manifest) -> Result<(), VolumeError> {
        let shelf = &self.inner.shelf;
        let settled = if manifest.settled {
            let settled = shelf.settle(layer);
            settled.map_err(|e| io_error("syncing a new layer", e))
        } else {
            Ok(())
        };
        let volume = manifest.volume;
        let done = settled.and_then(|()| self.store(manifest));
        if done.is_err() {
            // If the error came after the manifest was replaced, the layer has a name.
            let there = fs::read(self.inner.volumes.join(file_name(volume)));
            let there = there.ok().and_then(|bytes| Manifest::decode(&bytes).ok());
            if there.is_none_or(|m| m.top != layer) {
                let _ = shelf.remove(layer);
            }
        }
        done
    }

    pub(super) fn new_layer(
        &self,
        form: Form,
        size: u64,
        below: Option<LayerName>,
    ) -> Result<LayerName, VolumeError> {
        let layer = LayerName::fresh(form);
        let made = self.inner.shelf.create(layer, size, below);
        made.map_err(|e| io_error("making a layer", e))?;
        Ok(layer)
    }

    /// Makes it durable that a volume exists.
    pub(super) fn settle(&self, volume: Volume) -> std::io::Result<()> {
        let short = self.short(volume).map_err(std::io::Error::other)?;
        let _short = turn(&short);
        let mut manifest = self.manifest(volume).map_err(std::io::Error::other)?;
        if manifest.settled {
            return Ok(());
        }
        for layer in manifest.layers() {
            self.inner.shelf.settle(layer)?;
        }
        manifest.settled = true;
        match self.store(manifest) {
            Ok(()) => Ok(()),
            Err(VolumeError::NoSpace) => Err(std::io::ErrorKind::StorageFull.into()),
            Err(VolumeError::Io { source, .. }) => Err(source),
            Err(other) => Err(std::io::Error::other(other)),
        }
    }

    /// Refuses if something was cloned from a snapshot, or it is held.
    fn removable(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        let state = self.state();
        let is_it = |other: &SnapshotId| other == snapshot;
        if let Some(user) = state.child(snapshot.volume, is_it) {
            return Err(busy(snapshot, format!("{user} was cloned from it")));
        }
        match state.holder(snapshot.volume, is_it) {
            Some(holder) => Err(busy(snapshot, holder)),
            None => Ok(()),
        }
    }

    /// Frozen layers without a name that nothing of the volume lies upon any more, because
    /// what lay there was flattened.
    fn unneeded(&self, manifest: &Manifest) -> Result<Vec<LayerName>, VolumeError> {
        let shelf = &self.inner.shelf;
        let above = manifest.layers().skip(1);
        let mut free = Vec::new();
        for ((name, layer), above) in manifest.snapshots.iter().zip(above) {
            if *name == SnapshotName::nameless() && shelf.below(above)? != Some(*layer) {
                free.push(*layer);
            }
        }
        Ok(free)
    }

    fn used(&self, manifest: &Manifest) -> u64 {
        manifest.layers().map(|layer| self.taken(layer)).sum()
    }

    fn taken(&self, layer: LayerName) -> u64 {
        fs::metadata(self.inner.shelf.path(layer)).map_or(0, |m| m.blocks() * 512)
    }

    /// Bytes of what a volume stands upon.
    fn below(&self, manifest: &Manifest) -> u64 {
        let mut sum = 0;
        let mut next = manifest.origin.clone();
        while let Some(origin) = next {
            let Ok(below) = self.manifest(origin.volume) else {
                break;
            };
            let at = below.snapshots.iter().position(|s| s.0 == origin.name);
            let needed = below.snapshots.iter().take(at.map_or(0, |at| at + 1));
            sum += needed.map(|s| self.taken(s.1)).sum::<u64>();
            next = below.origin;
        }
        sum
    }

    fn describe(&self, manifest: &Manifest) -> VolumeInfo {
        let used = self.used(manifest);
        VolumeInfo {
            volume: manifest.volume,
            size: manifest.size,
            used,
            referenced: used + self.below(manifest),
            origin: manifest.origin.clone(),
            snapshots: manifest.names().cloned().collect(),
            path: format!("disks/layers/{}", manifest.top.file()),
        }
    }

    /// The layer that a snapshot froze, and its size.
    pub(super) fn frozen(&self, snapshot: &SnapshotId) -> Result<(LayerName, u64), VolumeError> {
        let state = self.state();
        let manifest = &state.get(snapshot.volume)?.manifest;
        let layer = manifest.frozen(&snapshot.name);
        let layer = layer.ok_or_else(|| VolumeError::Missing(snapshot.to_string()))?;
        Ok((layer, manifest.size))
    }

    /// Flattens a frozen layer on a thread of its own, when its turn comes and if it is still
    /// too high then: the layers of snapshots that come while one below them is flattened are
    /// not all to be made whole copies.
    fn flatten_soon(&self, volume: Volume, layer: LayerName, size: u64) {
        let (shelf, stopping) = (self.inner.shelf.clone(), self.inner.stopping.clone());
        let one_by_one = self.inner.flatten_turn.clone();
        let work = move || {
            let _turn = turn(&one_by_one);
            let mut step = |_| match stopping.load(Ordering::Acquire) {
                true => Err(VolumeError::Cancelled),
                false => Ok(()),
            };
            let open = shelf.open(layer, Role::Ground, size);
            let filled = open.and_then(|open| match open.depth() < MOST_LAYERS {
                true => Ok(()),
                false => open.fill(Role::Ground, &mut step),
            });
            match filled {
                Ok(()) | Err(VolumeError::Cancelled) => {}
                Err(e) => tracing::warn!(%volume, error = %e, "a chain of layers stays long"),
            }
        };
        let mut threads = self
            .inner
            .flattening
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        threads.retain(|t| !t.is_finished());
        let named = std::thread::Builder::new().name("flatten".to_owned());
        match named.spawn(work) {
            Ok(thread) => threads.push(thread),
            Err(e) => tracing::warn!(%volume, error = %e, "a chain of layers stays long"),
        }
    }

    /// The open disk of a volume.
    pub(super) fn disk(&self, volume: Volume) -> Result<Arc<Disk>, VolumeError> {
        let short = self.short(volume)?;
        let _short = turn(&short);
        let manifest = {
            let state = self.state();
            let record = state.get(volume)?;
            if let Some(disk) = record.disk.upgrade() {
                return Ok(disk);
            }
            record.manifest.clone()
        };
        let shelf = &self.inner.shelf;
        let top = shelf.open(manifest.top, Role::Top, manifest.size)?;
        let disk = Arc::new(Disk {
            volume,
            size: manifest.size,
            top: RwLock::new(top),
            unsettled: AtomicBool::new(!manifest.settled),
            store: self.clone(),
        });
        self.state().get_mut(volume)?.disk = Arc::downgrade(&disk);
        Ok(disk)
    }
}

impl Storage for DiskStore {
    fn create(&self, volume: Volume, size: u64) -> Result<(), VolumeError> {
        if Geometry::new(size).is_none() {
            return Err(VolumeError::BadSource(format!(
                "a disk can't have {size} bytes: it takes a multiple of 512, up to 128 TiB"
            )));
        }
        let _claim = self.claim(volume)?;
        let top = self.new_layer(Form::Raw, size, None)?;
        let manifest = Manifest {
            volume,
            size,
            top,
            snapshots: Vec::new(),
            origin: None,
            settled: true,
            boot: self.inner.shelf.boot(),
        };
        self.publish(top, manifest)
    }

    fn import(
        &self,
        volume: Volume,
        source: &Path,
        format: DiskFormat,
        progress: &mut dyn FnMut(Progress),
        cancel: &CancellationToken,
    ) -> Result<Imported, VolumeError> {
        let _claim = self.claim(volume)?;
        let layer = LayerName::fresh(Form::Raw);
        let path = self.inner.shelf.path(layer);
        let imported = super::import::import(source, format, &path, progress, cancel);
        let imported = match imported {
            Ok(imported) => imported,
            Err(e) => {
                let _ = fs::remove_file(&path);
                return Err(e);
            }
        };
        let manifest = Manifest {
            volume,
            size: imported.size,
            top: layer,
            snapshots: Vec::new(),
            origin: None,
            settled: true,
            boot: self.inner.shelf.boot(),
        };
        self.publish(layer, manifest)?;
        Ok(imported)
    }

    fn export(
        &self,
        snapshot: &SnapshotId,
        to: &Path,
        format: DiskFormat,
        progress: &mut dyn FnMut(Progress),
        cancel: &CancellationToken,
    ) -> Result<(), VolumeError> {
        let _pin = self.pin(snapshot.volume, "it is being exported")?;
        let (layer, size) = self.frozen(snapshot)?;
        let open = self.inner.shelf.open(layer, Role::Ground, size)?;
        let path = self.inner.shelf.path(layer);
        super::export::export(&open, &path, layer.form, to, format, progress, cancel)
    }

    fn snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        let volume = snapshot.volume;
        let order = self.order(volume)?;
        let disk = self.state().get(volume)?.disk.upgrade();
        if let Some(disk) = &disk {
            // Most of the work while machines go on writing.
            let top = disk.top().clone();
            let done = top.checkpoint();
            done.map_err(|e| io_error("flushing a volume", e))?;
        }
        let _turn = turn(&order);
        let short = self.short(volume)?;
        let _short = turn(&short);
        let mut manifest = self.manifest(volume)?;
        if manifest.frozen(&snapshot.name).is_some() {
            return Err(VolumeError::Exists(snapshot.to_string()));
        }
        let (old, size) = (manifest.top, manifest.size);
        let new = self.new_layer(Form::Qcow2, size, Some(old))?;
        manifest.snapshots.push((snapshot.name.clone(), old));
        manifest.top = new;
        manifest.settled = true;
        let shelf = &self.inner.shelf;
        let disk = self.state().get(volume)?.disk.upgrade();
        let depth = {
            let open = match &disk {
                Some(disk) => disk.top().clone(),
                None => shelf.open(old, Role::Top, size)?,
            };
            let mut top = disk.as_ref().map(|d| {
                let top = d.top.write();
                top.unwrap_or_else(PoisonError::into_inner)
            });
            let frozen = open.freeze().and_then(|()| shelf.settle(old));
            let frozen = frozen.map_err(|e| io_error("freezing a layer", e));
            let next = frozen.and_then(|()| shelf.open(new, Role::Top, size));
            let next = match next {
                Ok(next) => next,
                Err(e) => {
                    let _ = shelf.remove(new);
                    return Err(e);
                }
            };
            // Only now does the manifest name it; before, all is as it was.
            self.publish(new, manifest)?;
            let depth = next.depth();
            if let Some(top) = top.as_mut() {
                **top = next;
            }
            if let Some(disk) = &disk {
                disk.unsettled.store(false, Ordering::Release);
            }
            depth
        };
        if depth > MOST_LAYERS {
            self.flatten_soon(volume, old, size);
        }
        Ok(())
    }

    fn clone_volume(&self, origin: &SnapshotId, clone: Volume) -> Result<(), VolumeError> {
        let _claim = self.claim(clone)?;
        let _pin = self.pin(origin.volume, "a clone of it is being made")?;
        let (below, size) = self.frozen(origin)?;
        let top = self.new_layer(Form::Qcow2, size, Some(below))?;
        let manifest = Manifest {
            volume: clone,
            size,
            top,
            snapshots: Vec::new(),
            origin: Some(origin.clone()),
            // Durable with its first flush.
            settled: false,
            boot: self.inner.shelf.boot(),
        };
        self.publish(top, manifest)
    }

    fn rollback(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        let volume = snapshot.volume;
        let order = self.order(volume)?;
        let _turn = turn(&order);
        let short = self.short(volume)?;
        let _short = turn(&short);
        let (below, size) = self.frozen(snapshot)?;
        let mut manifest = {
            let state = self.state();
            let record = state.get(volume)?;
            record.unused()?;
            record.manifest.clone()
        };
        let at = manifest.snapshots.iter().position(|s| s.0 == snapshot.name);
        let keep = at.map_or(0, |at| at + 1);
        for (later, _) in &manifest.snapshots[keep..] {
            let later = SnapshotId {
                volume,
                name: later.clone(),
            };
            self.removable(&later)?;
        }
        let top = self.new_layer(Form::Qcow2, size, Some(below))?;
        let mut gone: Vec<_> = manifest.snapshots.drain(keep..).map(|s| s.1).collect();
        gone.push(manifest.top);
        manifest.top = top;
        manifest.settled = true;
        self.publish(top, manifest)?;
        for layer in gone {
            let removed = self.inner.shelf.remove(layer);
            removed.map_err(|e| io_error("removing a layer", e))?;
        }
        Ok(())
    }

    fn promote(
        &self,
        volume: Volume,
        progress: &mut dyn FnMut(Progress),
        cancel: &CancellationToken,
    ) -> Result<(), VolumeError> {
        let step = "flattening";
        let order = self.order(volume)?;
        let _turn = turn(&order);
        let _pin = self.pin(volume, "it is being freed from its origin")?;
        let manifest = self.manifest(volume)?;
        if manifest.origin.is_some() {
            self.settle(volume)
                .map_err(|e| io_error("syncing a volume", e))?;
            let lowest = manifest.layers().next().unwrap_or(manifest.top);
            let role = if lowest == manifest.top {
                Role::Top
            } else {
                Role::Ground
            };
            let open = self.inner.shelf.open(lowest, role, manifest.size)?;
            open.fill(role, &mut |done| {
                progress(Progress { step, done });
                match cancel.is_cancelled() {
                    true => Err(VolumeError::Cancelled),
                    false => Ok(()),
                }
            })?;
            let short = self.short(volume)?;
            let _short = turn(&short);
            let mut manifest = self.manifest(volume)?;
            manifest.origin = None;
            self.store(manifest)?;
        }
        progress(Progress { step, done: 1.0 });
        Ok(())
    }

    fn destroy(&self, volume: Volume) -> Result<(), VolumeError> {
        let order = match self.order(volume) {
            Err(VolumeError::Missing(_)) => return Ok(()),
            other => other?,
        };
        let _turn = turn(&order);
        let short = match self.short(volume) {
            Err(VolumeError::Missing(_)) => return Ok(()),
            other => other?,
        };
        let _short = turn(&short);
        let record = {
            let mut state = self.state();
            match state.volumes.get(&volume) {
                None => return Ok(()),
                Some(record) => record.unused()?,
            }
            if let Some(user) = state.child(volume, |_| true) {
                return Err(busy(volume, format!("{user} was cloned from it")));
            }
            if let Some(holder) = state.holder(volume, |_| true) {
                return Err(busy(volume, holder));
            }
            // Nobody finds it from here on, and nobody takes its name before it is gone.
            state.claimed.insert(volume);
            state.volumes.remove(&volume)
        };
        let path = self.inner.volumes.join(file_name(volume));
        // The name first, and for good: a name without layers would be damage.
        let removed = fs::remove_file(path).and_then(|()| sync_folder(&self.inner.volumes));
        let mut state = self.state();
        state.claimed.remove(&volume);
        let Some(record) = record else { return Ok(()) };
        if let Err(e) = removed {
            state.volumes.insert(volume, record);
            return Err(io_error("removing a volume", e));
        }
        drop(state);
        for layer in record.manifest.layers() {
            let removed = self.inner.shelf.remove(layer);
            removed.map_err(|e| io_error("removing a layer", e))?;
        }
        Ok(())
    }

    fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        let volume = snapshot.volume;
        let order = match self.order(volume) {
            Err(VolumeError::Missing(_)) => return Ok(()),
            other => other?,
        };
        let _turn = turn(&order);
        let _pin = self.pin(volume, "a snapshot of it is being removed")?;
        let short = self.short(volume)?;
        let _short = turn(&short);
        let mut manifest = self.manifest(volume)?;
        let Some(found) = manifest.snapshots.iter_mut().find(|s| s.0 == snapshot.name) else {
            return Ok(());
        };
        self.removable(snapshot)?;
        // The layers above still read what it has.
        found.0 = SnapshotName::nameless();
        let free = self.unneeded(&manifest)?;
        manifest
            .snapshots
            .retain(|(_, layer)| !free.contains(layer));
        manifest.settled = true;
        self.store(manifest)?;
        for layer in free {
            let removed = self.inner.shelf.remove(layer);
            removed.map_err(|e| io_error("removing a layer", e))?;
        }
        Ok(())
    }

    fn hold(&self, snapshot: &SnapshotId, tag: HoldTag) -> Result<(), VolumeError> {
        let snapshot = snapshot.clone();
        self.hold_now(HeldSnapshot { snapshot, tag })
    }

    fn release(&self, snapshot: &SnapshotId, tag: HoldTag) -> Result<(), VolumeError> {
        let snapshot = snapshot.clone();
        self.release_now(&HeldSnapshot { snapshot, tag })
    }

    fn holds(&self) -> Result<Vec<HeldSnapshot>, VolumeError> {
        Ok(self.state().holds.iter().cloned().collect())
    }

    fn open(&self, volume: Volume, access: Access) -> Result<Arc<dyn BlockDevice>, VolumeError> {
        let disk = self.disk(volume)?;
        Ok(Arc::new(Handle { disk, access }))
    }

    fn changes(
        &self,
        from: Option<&SnapshotId>,
        to: &SnapshotId,
    ) -> Result<Vec<Range<u64>>, VolumeError> {
        self.find_changes(from, to)
    }

    fn own(&self, volume: Volume) -> Result<Vec<Range<u64>>, VolumeError> {
        self.find_own(volume)
    }

    /// The manifest is replaced; what it named before is removed after that, or at the next
    /// start.
    fn renew(&self, origin: &SnapshotId, volume: Volume) -> Result<(), VolumeError> {
        self.renew_now(origin, volume)
    }

    fn info(&self, volume: Volume) -> Result<Option<VolumeInfo>, VolumeError> {
        match self.manifest(volume) {
            Ok(manifest) => Ok(Some(self.describe(&manifest))),
            Err(VolumeError::Missing(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn list(&self) -> Result<Vec<VolumeInfo>, VolumeError> {
        let mut all: Vec<Manifest> = {
            let state = self.state();
            state.volumes.values().map(|r| r.manifest.clone()).collect()
        };
        all.sort_by_key(|m| m.volume);
        Ok(all.iter().map(|m| self.describe(m)).collect())
    }
}
