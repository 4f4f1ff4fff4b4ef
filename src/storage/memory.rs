//! A store in memory, for tests of what is built upon disks. Whole behaviour of the traits,
//! no durability, no import and export of files.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio_util::sync::CancellationToken;

use super::block::{BlockDevice, BlockError, DeviceInfo, Durability, Extent, ExtentKind};
use super::holds::{HeldSnapshot, HoldTag};
use super::ranges::tidy;
use super::volume::{
    Access, DiskFormat, Imported, Progress, SnapshotId, SnapshotName, Storage, Volume, VolumeError,
    VolumeInfo,
};

/// Bytes that are kept together.
const CHUNK: usize = 64 * 1024;

/// A disk's content: chunks that were written, by number.
type Chunks = BTreeMap<u64, Arc<Vec<u8>>>;

/// A store in memory.
#[derive(Debug, Default)]
pub struct Memory {
    volumes: Mutex<HashMap<Volume, Stored>>,
}

#[derive(Debug)]
struct Stored {
    disk: Arc<Disk>,
    origin: Option<SnapshotId>,
    snapshots: Vec<(SnapshotName, Chunks)>,
    holds: Vec<(SnapshotName, HoldTag)>,
}

#[derive(Debug)]
struct Disk {
    size: u64,
    chunks: RwLock<Chunks>,
}

/// One handle on a disk in memory.
#[derive(Debug)]
struct Handle {
    disk: Arc<Disk>,
    access: Access,
}

impl Memory {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Volume, Stored>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn missing(what: impl ToString) -> VolumeError {
    VolumeError::Missing(what.to_string())
}

impl Stored {
    fn at(&self, snapshot: &SnapshotId) -> Result<&Chunks, VolumeError> {
        let found = self.snapshots.iter().find(|(n, _)| *n == snapshot.name);
        found.map(|(_, c)| c).ok_or_else(|| missing(snapshot))
    }

    fn info(&self, volume: Volume) -> VolumeInfo {
        VolumeInfo {
            volume,
            size: self.disk.size,
            used: (self.disk.read().len() * CHUNK) as u64,
            referenced: (self.disk.read().len() * CHUNK) as u64,
            origin: self.origin.clone(),
            snapshots: self.snapshots.iter().map(|(n, _)| n.clone()).collect(),
            path: format!("memory/{volume}"),
        }
    }

    /// Refuses if a snapshot that `of` picks is held.
    fn unheld(
        &self,
        what: impl ToString,
        of: impl Fn(&SnapshotName) -> bool,
    ) -> Result<(), VolumeError> {
        match self.holds.iter().find(|(name, _)| of(name)) {
            None => Ok(()),
            Some((_, tag)) => Err(VolumeError::Busy {
                what: what.to_string(),
                by: format!("it is held ({tag})"),
            }),
        }
    }

    fn busy(&self, what: impl ToString) -> Result<(), VolumeError> {
        if Arc::strong_count(&self.disk) > 1 {
            return Err(VolumeError::Busy {
                what: what.to_string(),
                by: "it is open".to_owned(),
            });
        }
        Ok(())
    }
}

impl Storage for Memory {
    fn create(&self, volume: Volume, size: u64) -> Result<(), VolumeError> {
        let mut volumes = self.lock();
        if volumes.contains_key(&volume) {
            return Err(VolumeError::Exists(volume.to_string()));
        }
        volumes.insert(volume, stored(size, Chunks::new(), None));
        Ok(())
    }

    fn import(
        &self,
        _volume: Volume,
        _source: &Path,
        _format: DiskFormat,
        _progress: &mut dyn FnMut(Progress),
        _cancel: &CancellationToken,
    ) -> Result<Imported, VolumeError> {
        Err(VolumeError::BadSource(
            "the store in memory takes no files".to_owned(),
        ))
    }

    fn export(
        &self,
        _snapshot: &SnapshotId,
        _to: &Path,
        _format: DiskFormat,
        _progress: &mut dyn FnMut(Progress),
        _cancel: &CancellationToken,
    ) -> Result<(), VolumeError> {
        Err(VolumeError::BadSource(
            "the store in memory writes no files".to_owned(),
        ))
    }

    fn snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        let mut volumes = self.lock();
        let stored = volumes
            .get_mut(&snapshot.volume)
            .ok_or_else(|| missing(snapshot.volume))?;
        if stored.at(snapshot).is_ok() {
            return Err(VolumeError::Exists(snapshot.to_string()));
        }
        let now = stored.disk.read().clone();
        stored.snapshots.push((snapshot.name.clone(), now));
        Ok(())
    }

    fn clone_volume(&self, origin: &SnapshotId, clone: Volume) -> Result<(), VolumeError> {
        let mut volumes = self.lock();
        if volumes.contains_key(&clone) {
            return Err(VolumeError::Exists(clone.to_string()));
        }
        let from = volumes
            .get(&origin.volume)
            .ok_or_else(|| missing(origin.volume))?;
        let made = stored(
            from.disk.size,
            from.at(origin)?.clone(),
            Some(origin.clone()),
        );
        volumes.insert(clone, made);
        Ok(())
    }

    fn rollback(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        let mut volumes = self.lock();
        let stored = volumes
            .get(&snapshot.volume)
            .ok_or_else(|| missing(snapshot.volume))?;
        stored.busy(snapshot.volume)?;
        let then = stored.at(snapshot)?.clone();
        let position = stored.snapshots.iter().position(|s| s.0 == snapshot.name);
        let keep = position.map_or(0, |p| p + 1);
        for (later, _) in stored.snapshots.iter().skip(keep) {
            stored.unheld(later.as_str(), |name| name == later)?;
            let later = SnapshotId {
                volume: snapshot.volume,
                name: later.clone(),
            };
            if let Some((user, _)) = volumes
                .iter()
                .find(|(_, v)| v.origin.as_ref() == Some(&later))
            {
                return Err(VolumeError::Busy {
                    what: later.to_string(),
                    by: format!("{user} was cloned from it"),
                });
            }
        }
        if let Some(stored) = volumes.get_mut(&snapshot.volume) {
            stored.snapshots.truncate(keep);
            *stored.disk.write() = then;
        }
        Ok(())
    }

    fn promote(
        &self,
        volume: Volume,
        progress: &mut dyn FnMut(Progress),
        _cancel: &CancellationToken,
    ) -> Result<(), VolumeError> {
        let mut volumes = self.lock();
        let stored = volumes.get_mut(&volume).ok_or_else(|| missing(volume))?;
        stored.origin = None;
        progress(Progress {
            step: "flattening",
            done: 1.0,
        });
        Ok(())
    }

    fn destroy(&self, volume: Volume) -> Result<(), VolumeError> {
        let mut volumes = self.lock();
        let Some(stored) = volumes.get(&volume) else {
            return Ok(());
        };
        stored.busy(volume)?;
        unneeded(&volumes, volume)?;
        volumes.remove(&volume);
        Ok(())
    }

    fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        let mut volumes = self.lock();
        let users = volumes.iter();
        let mut users = users.filter(|(_, v)| v.origin.as_ref() == Some(snapshot));
        if let Some((user, _)) = users.next() {
            return Err(VolumeError::Busy {
                what: snapshot.to_string(),
                by: format!("{user} was cloned from it"),
            });
        }
        if let Some(stored) = volumes.get_mut(&snapshot.volume) {
            stored.unheld(snapshot, |name| *name == snapshot.name)?;
            stored.snapshots.retain(|(name, _)| *name != snapshot.name);
        }
        Ok(())
    }

    fn hold(&self, snapshot: &SnapshotId, tag: HoldTag) -> Result<(), VolumeError> {
        let mut volumes = self.lock();
        let stored = volumes.get_mut(&snapshot.volume);
        let stored = stored.ok_or_else(|| missing(snapshot))?;
        stored.at(snapshot)?;
        let hold = (snapshot.name.clone(), tag);
        if !stored.holds.contains(&hold) {
            stored.holds.push(hold);
        }
        Ok(())
    }

    fn release(&self, snapshot: &SnapshotId, tag: HoldTag) -> Result<(), VolumeError> {
        if let Some(stored) = self.lock().get_mut(&snapshot.volume) {
            stored
                .holds
                .retain(|(name, of)| (name, *of) != (&snapshot.name, tag));
        }
        Ok(())
    }

    fn holds(&self) -> Result<Vec<HeldSnapshot>, VolumeError> {
        let volumes = self.lock();
        let all = volumes.iter().flat_map(|(volume, stored)| {
            stored.holds.iter().map(|(name, tag)| HeldSnapshot {
                snapshot: SnapshotId {
                    volume: *volume,
                    name: name.clone(),
                },
                tag: *tag,
            })
        });
        let mut all: Vec<_> = all.collect();
        all.sort();
        Ok(all)
    }

    fn open(&self, volume: Volume, access: Access) -> Result<Arc<dyn BlockDevice>, VolumeError> {
        let volumes = self.lock();
        let stored = volumes.get(&volume).ok_or_else(|| missing(volume))?;
        Ok(Arc::new(Handle {
            disk: stored.disk.clone(),
            access,
        }))
    }

    fn changes(
        &self,
        from: Option<&SnapshotId>,
        to: &SnapshotId,
    ) -> Result<Vec<Range<u64>>, VolumeError> {
        let volumes = self.lock();
        let of = |id: &SnapshotId| {
            let stored = volumes.get(&id.volume).ok_or_else(|| missing(id.volume))?;
            Ok::<_, VolumeError>((stored.at(id)?, stored.disk.size))
        };
        let (new, size) = of(to)?;
        let none = Chunks::new();
        let old = from.map(of).transpose()?.map_or(&none, |o| o.0);
        Ok(differences(old, new, size))
    }

    fn own(&self, volume: Volume) -> Result<Vec<Range<u64>>, VolumeError> {
        let volumes = self.lock();
        let stored = volumes.get(&volume).ok_or_else(|| missing(volume))?;
        let none = Chunks::new();
        let old = match &stored.origin {
            Some(id) => volumes
                .get(&id.volume)
                .ok_or_else(|| missing(id.volume))?
                .at(id)?,
            None => &none,
        };
        Ok(differences(old, &stored.disk.read(), stored.disk.size))
    }

    fn renew(&self, origin: &SnapshotId, volume: Volume) -> Result<(), VolumeError> {
        let mut volumes = self.lock();
        let from = volumes
            .get(&origin.volume)
            .ok_or_else(|| missing(origin.volume))?;
        let made = stored(
            from.disk.size,
            from.at(origin)?.clone(),
            Some(origin.clone()),
        );
        let old = volumes.get(&volume).ok_or_else(|| missing(volume))?;
        old.busy(volume)?;
        unneeded(&volumes, volume)?;
        volumes.insert(volume, made);
        Ok(())
    }

    fn info(&self, volume: Volume) -> Result<Option<VolumeInfo>, VolumeError> {
        Ok(self.lock().get(&volume).map(|s| s.info(volume)))
    }

    fn list(&self) -> Result<Vec<VolumeInfo>, VolumeError> {
        let mut all: Vec<_> = self.lock().iter().map(|(v, s)| s.info(*v)).collect();
        all.sort_by_key(|v| v.volume);
        Ok(all)
    }
}

/// Refuses if something was cloned from a volume, or one of its snapshots is held.
fn unneeded(volumes: &HashMap<Volume, Stored>, volume: Volume) -> Result<(), VolumeError> {
    let depends = |v: &Stored| v.origin.as_ref().is_some_and(|o| o.volume == volume);
    match volumes.iter().find(|(_, v)| depends(v)) {
        None => volumes
            .get(&volume)
            .map_or(Ok(()), |v| v.unheld(volume, |_| true)),
        Some((user, _)) => Err(VolumeError::Busy {
            what: volume.to_string(),
            by: format!("{user} was cloned from it"),
        }),
    }
}

/// Chunks that are not the same ones.
fn differences(old: &Chunks, new: &Chunks, size: u64) -> Vec<Range<u64>> {
    let same = |n: &u64| match (old.get(n), new.get(n)) {
        (Some(old), Some(new)) => Arc::ptr_eq(old, new),
        (old, new) => old.is_none() && new.is_none(),
    };
    let numbers = old.keys().chain(new.keys()).filter(|n| !same(n));
    let chunk = CHUNK as u64;
    tidy(numbers.map(|n| n * chunk..(n + 1) * chunk).collect(), size)
}

fn stored(size: u64, chunks: Chunks, origin: Option<SnapshotId>) -> Stored {
    Stored {
        disk: Arc::new(Disk {
            size,
            chunks: RwLock::new(chunks),
        }),
        origin,
        snapshots: Vec::new(),
        holds: Vec::new(),
    }
}

impl Disk {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Chunks> {
        self.chunks.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Chunks> {
        self.chunks.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(BlockError::OutOfRange),
        }
    }
}

/// A range cut at chunk borders: number, start within the chunk, start within the range, length.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < length).then(|| {
            let at = offset + done as u64;
            let within = usize::try_from(at % CHUNK as u64).unwrap_or(0);
            let here = (CHUNK - within).min(length - done);
            let piece = (at / CHUNK as u64, within, done, here);
            done += here;
            piece
        })
    })
}

impl Handle {
    fn may_write(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        if self.access == Access::Read {
            return Err(BlockError::ReadOnly);
        }
        self.disk.check(offset, length)
    }
}

impl BlockDevice for Handle {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            size: self.disk.size,
            preferred_block: 4096,
            read_only: self.access == Access::Read,
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        self.disk.check(offset, buffer.len() as u64)?;
        let chunks = self.disk.read();
        for (number, within, from, length) in pieces(offset, buffer.len()) {
            let target = &mut buffer[from..from + length];
            match chunks.get(&number) {
                Some(chunk) => target.copy_from_slice(&chunk[within..within + length]),
                None => target.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8], _: Durability) -> Result<(), BlockError> {
        self.may_write(offset, data.len() as u64)?;
        let mut chunks = self.disk.write();
        for (number, within, from, length) in pieces(offset, data.len()) {
            let chunk = chunks
                .entry(number)
                .or_insert_with(|| Arc::new(vec![0; CHUNK]));
            Arc::make_mut(chunk)[within..within + length]
                .copy_from_slice(&data[from..from + length]);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        self.write_zeroes(offset, length, false, Durability::Volatile)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        _keep_space: bool,
        _: Durability,
    ) -> Result<(), BlockError> {
        self.may_write(offset, length)?;
        let mut chunks = self.disk.write();
        let (first, last) = (offset / CHUNK as u64, (offset + length) / CHUNK as u64);
        let stored: Vec<u64> = chunks.range(first..=last).map(|(n, _)| *n).collect();
        for number in stored {
            let start = number * CHUNK as u64;
            let from = usize::try_from(offset.saturating_sub(start)).unwrap_or(CHUNK);
            let to = (offset + length).saturating_sub(start).min(CHUNK as u64);
            let to = usize::try_from(to).unwrap_or(CHUNK);
            if from == 0 && to == CHUNK {
                chunks.remove(&number);
            } else if from < to
                && let Some(chunk) = chunks.get_mut(&number)
            {
                Arc::make_mut(chunk)[from..to].fill(0);
            }
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Extent>, BlockError> {
        self.disk.check(offset, length)?;
        let chunks = self.disk.read();
        let mut runs: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < offset + length {
            let number = at / CHUNK as u64;
            let end = ((number + 1) * CHUNK as u64).min(offset + length);
            let kind = if chunks.contains_key(&number) {
                ExtentKind::Data
            } else {
                ExtentKind::Hole
            };
            let full = runs.len() == most;
            match runs.last_mut() {
                Some(run) if run.kind == kind => run.length += end - at,
                _ if full => break,
                _ => runs.push(Extent {
                    length: end - at,
                    kind,
                }),
            }
            at = end;
        }
        Ok(runs)
    }
}
