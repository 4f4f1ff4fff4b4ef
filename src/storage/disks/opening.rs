//! Opening a store: whatever a kill or a power cut left is made consistent. What has no name
//! is removed; what has one is kept, or said to be damaged.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::manifest::{LayerName, Manifest, Unreadable, volume_of};
use super::shelf::Shelf;
use super::{DiskStore, Inner, Record, State, io_error};
use crate::storage::VolumeError;
use crate::storage::layer::cache::Cache;
use crate::storage::layer::cow::Surroundings;
use crate::storage::layer::journal::Boot;

/// The kernel's id of this boot. Where it can't be read each opening is a boot of its own, and
/// no journal counts.
fn boot() -> Boot {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let id = uuid::Uuid::try_parse(text.trim());
    Boot(*id.unwrap_or_else(|_| uuid::Uuid::new_v4()).as_bytes())
}

impl DiskStore {
    /// Opens the store below a root, making it where there is none, with at most `cache`
    /// bytes of tables in memory ([`super::TABLE_CACHE`] is enough for some hundred clients).
    ///
    /// # Errors
    /// `Busy` if another process has it; `Io`.
    pub fn open(root: &Path, cache: usize) -> Result<Self, VolumeError> {
        let surroundings = Surroundings {
            cache: Arc::new(Cache::new(cache)),
            boot: boot(),
        };
        Self::open_with(root, surroundings)
    }

    pub(super) fn open_with(root: &Path, with: Surroundings) -> Result<Self, VolumeError> {
        let disks = root.join("disks");
        let what = format!("opening the store of disks {}", disks.display());
        let failed = |e| io_error(&what, e);
        let folder = |name: &str| -> io::Result<std::path::PathBuf> {
            let path = disks.join(name);
            // Absolute, so that QEMU's programs can take no path for a protocol.
            let path = std::path::absolute(path)?;
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o750).create(&path)?;
            Ok(path)
        };
        let staging = folder("staging").map_err(failed)?;
        let volumes = folder("volumes").map_err(failed)?;
        let layers = folder("layers").map_err(failed)?;
        let holds = folder("holds").map_err(failed)?;
        let lock = lock_file(&disks.join("lock")).map_err(failed)?;
        if !locked(&lock) {
            return Err(VolumeError::Busy {
                what: format!("the store of disks {}", disks.display()),
                by: "another process has it open".to_owned(),
            });
        }
        let shelf = Arc::new(Shelf::new(layers.clone(), with));
        for entry in fs::read_dir(&staging).map_err(failed)?.flatten() {
            let _ = fs::remove_file(entry.path());
        }
        let mut state = load(&volumes, &shelf).map_err(failed)?;
        state.holds = super::holds::load(&holds).map_err(failed)?;
        // A manifest that can't be read may name any layer.
        if state.damaged.is_empty() {
            sweep(&layers, &state).map_err(failed)?;
        }
        Ok(Self {
            inner: Arc::new(Inner {
                staging,
                volumes,
                holds,
                shelf,
                state: Mutex::new(state),
                stopping: Arc::default(),
                flattening: Mutex::default(),
                flatten_turn: Arc::default(),
                _lock: lock,
            }),
        })
    }
}

/// Takes the lock. A child that a process before this one started, and that has not become
/// another program yet, may have it for a moment longer.
fn locked(lock: &File) -> bool {
    (0..25).any(|n| {
        if n > 0 {
            thread::sleep(Duration::from_millis(20));
        }
        lock.try_lock().is_ok()
    })
}

fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o640)
        .open(path)
}

/// Reads all manifests.
fn load(volumes: &Path, shelf: &Shelf) -> io::Result<State> {
    let mut state = State::default();
    for entry in fs::read_dir(volumes)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(volume) = name.to_str().and_then(volume_of) else {
            tracing::warn!(file = ?name, "a file in the store of disks is none of ours");
            continue;
        };
        let read = fs::read(entry.path()).map(|bytes| Manifest::decode(&bytes));
        match read {
            Ok(Ok(manifest)) if manifest.volume == volume => {
                let fresh = manifest.settled || manifest.boot == shelf.boot();
                // Made before a power cut and never flushed: it may be broken, and then it
                // never was.
                if fresh || manifest.layers().all(|l| shelf.inspect(l).is_ok()) {
                    state.volumes.insert(volume, Record::new(manifest));
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(Err(Unreadable::NeverWritten)) => fs::remove_file(entry.path())?,
            Ok(_) => {
                let why = "its manifest is damaged".to_owned();
                tracing::error!(%volume, "{why}");
                state.damaged.insert(volume, why);
            }
            Err(e) => {
                let why = format!("its manifest can't be read: {e}");
                tracing::error!(%volume, "{why}");
                state.damaged.insert(volume, why);
            }
        }
    }
    Ok(state)
}

/// Removes layers that no manifest names: what a crash left of work that was not finished.
fn sweep(layers: &Path, state: &State) -> io::Result<()> {
    let manifests = state.volumes.values().map(|r| &r.manifest);
    let named: HashSet<LayerName> = manifests.flat_map(Manifest::layers).collect();
    let journals: HashSet<String> = named.iter().map(LayerName::journal).collect();
    for entry in fs::read_dir(layers)? {
        let entry = entry?;
        let file = entry.file_name();
        let Some(file) = file.to_str() else { continue };
        let ours = LayerName::parse(file);
        let litter = match ours {
            Some(layer) => !named.contains(&layer),
            None => {
                std::path::Path::new(file)
                    .extension()
                    .is_some_and(|e| e == "journal")
                    && !journals.contains(file)
            }
        };
        if litter {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        let threads = std::mem::take(
            self.flattening
                .get_mut()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        for thread in threads {
            let _ = thread.join();
        }
    }
}
