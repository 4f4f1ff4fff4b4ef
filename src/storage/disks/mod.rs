//! The `directory` backend for disks: volumes as chains of layer files below `ROOT/disks/`.
//! It needs nothing but a file system with holes, and takes reflinks where there are some.
//!
//! `manifest`: what is kept of a volume. `shelf`: open layers. `handle`: an open volume.
//! `ops`: the calls of `Storage`. `opening`: finding a consistent state after anything.
//! `changes`: what differs between two snapshots. `holds`: who needs a snapshot. `renewal`: a fresh clone in a volume's place.
//! `import`, `export`: files from and for outside; `qemu`: the child process for them; `vhdx`:
//! the log of such a file.

mod changes;
mod export;
mod handle;
mod holds;
mod import;
mod manifest;
mod opening;
mod ops;
mod qemu;
mod renewal;
mod shelf;
#[cfg(test)]
mod tests;
mod vhdx;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use handle::Disk;
use manifest::Manifest;
use shelf::Shelf;

use super::{HeldSnapshot, SnapshotId, Volume, VolumeError};

/// Layers below a volume's top before a snapshot has the chain flattened.
pub const MOST_LAYERS: usize = 8;
/// Bytes of tables in memory that a store keeps unless told otherwise.
pub const TABLE_CACHE: usize = 64 * 1024 * 1024;

/// A store of disks in a folder; clones of the handle share it.
#[derive(Clone)]
pub struct DiskStore {
    inner: Arc<Inner>,
}

struct Inner {
    staging: PathBuf,
    volumes: PathBuf,
    holds: PathBuf,
    shelf: Arc<Shelf>,
    state: Mutex<State>,
    /// Set when the store goes: flattening ends.
    stopping: Arc<AtomicBool>,
    flattening: Mutex<Vec<JoinHandle<()>>>,
    /// Chains are flattened one after the other.
    flatten_turn: Arc<Mutex<()>>,
    /// Keeps other processes out.
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    volumes: HashMap<Volume, Record>,
    /// Names of volumes that are being made.
    claimed: HashSet<Volume>,
    /// Volumes whose manifest can't be read, and why.
    damaged: HashMap<Volume, String>,
    /// Snapshots that somebody needs.
    holds: BTreeSet<HeldSnapshot>,
}

/// A volume.
#[derive(Debug)]
struct Record {
    manifest: Manifest,
    disk: Weak<Disk>,
    /// Orders calls that change its layers, which may take long. Taken before `short`.
    order: Arc<Mutex<()>>,
    /// Held while its top or its manifest changes, and while it is opened.
    short: Arc<Mutex<()>>,
    /// What reads its layers now, by other names than a handle: exports, clones being made.
    users: Vec<&'static str>,
}

impl fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskStore({})", self.inner.volumes.display())
    }
}

impl Record {
    fn new(manifest: Manifest) -> Self {
        Self {
            manifest,
            disk: Weak::new(),
            order: Arc::default(),
            short: Arc::default(),
            users: Vec::new(),
        }
    }
}

impl State {
    fn get(&self, volume: Volume) -> Result<&Record, VolumeError> {
        self.check(volume)?;
        let found = self.volumes.get(&volume);
        found.ok_or_else(|| VolumeError::Missing(volume.to_string()))
    }

    fn get_mut(&mut self, volume: Volume) -> Result<&mut Record, VolumeError> {
        self.check(volume)?;
        let found = self.volumes.get_mut(&volume);
        found.ok_or_else(|| VolumeError::Missing(volume.to_string()))
    }

    fn check(&self, volume: Volume) -> Result<(), VolumeError> {
        match self.damaged.get(&volume) {
            Some(why) => Err(VolumeError::Damaged {
                what: volume.to_string(),
                why: why.clone(),
            }),
            None => Ok(()),
        }
    }

    /// A volume that was cloned from this one, or from this snapshot of it.
    fn child(&self, of: Volume, snapshot: impl Fn(&SnapshotId) -> bool) -> Option<Volume> {
        let depends = |r: &&Record| {
            let origin = r.manifest.origin.as_ref();
            origin.is_some_and(|o| o.volume == of && snapshot(o))
        };
        self.volumes
            .values()
            .find(depends)
            .map(|r| r.manifest.volume)
    }
}

/// A name that is being made a volume; given back when dropped.
struct Claim<'a> {
    store: &'a DiskStore,
    volume: Volume,
}

/// A volume whose layers must stay; let go when dropped.
struct Pin<'a> {
    store: &'a DiskStore,
    volume: Volume,
    why: &'static str,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.store.state().claimed.remove(&self.volume);
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        if let Ok(record) = self.store.state().get_mut(self.volume)
            && let Some(at) = record.users.iter().position(|u| *u == self.why)
        {
            record.users.swap_remove(at);
        }
    }
}

impl DiskStore {
    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name for a new volume.
    fn claim(&self, volume: Volume) -> Result<Claim<'_>, VolumeError> {
        let mut state = self.state();
        state.check(volume)?;
        if state.volumes.contains_key(&volume) || !state.claimed.insert(volume) {
            return Err(VolumeError::Exists(volume.to_string()));
        }
        Ok(Claim {
            store: self,
            volume,
        })
    }

    /// Keeps a volume's layers from being removed.
    fn pin(&self, volume: Volume, why: &'static str) -> Result<Pin<'_>, VolumeError> {
        self.state().get_mut(volume)?.users.push(why);
        Ok(Pin {
            store: self,
            volume,
            why,
        })
    }

    /// Writes a manifest, and takes it as the volume's.
    fn store(&self, manifest: Manifest) -> Result<(), VolumeError> {
        let stored = manifest.store(&self.inner.staging, &self.inner.volumes);
        stored.map_err(|e| io_error("writing the manifest of a volume", e))?;
        let mut state = self.state();
        match state.volumes.get_mut(&manifest.volume) {
            Some(record) => record.manifest = manifest,
            None => {
                state.volumes.insert(manifest.volume, Record::new(manifest));
            }
        }
        Ok(())
    }
}

/// An I/O error as the store's.
fn io_error(what: &str, source: io::Error) -> VolumeError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => VolumeError::NoSpace,
        _ => VolumeError::Io {
            what: what.to_owned(),
            source,
        },
    }
}
