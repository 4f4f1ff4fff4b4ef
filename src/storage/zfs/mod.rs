//! The `zfs` backend for disks: each volume a zvol below one parent dataset. Clones and
//! snapshots are ZFS's own, and nothing of the store is kept elsewhere.
//!
//! `names`: what datasets and snapshots are called, made by us from volumes. `listing`: what is
//! there, by `zfs list`. `library`: libzfs_core's calls; `gate`: all calls go through it and
//! come back, whatever the pool does. `device`: a zvol's block device, found by identity, where `search` says it may be; `ioctl`: its
//! requests. `holds`: who needs a snapshot. `ops`: the calls of `Storage`; `renewal`: one of them. `transfer`: files from and
//! for outside. `changes`: what differs between two snapshots, by the records of a `stream`.
//! `replica`: streams to and from other servers.
//! `doctor`: which rights this machine's user lacks.
//!
//! Races: ZFS orders what is one call of its own. What takes several (destroying a volume
//! with snapshots, going back past later ones) is written on the dataset first (`dls:intent`)
//! and finished when the store is opened again. A volume's slot keeps opening and removing apart.

mod changes;
mod device;
mod doctor;
mod gate;
mod holds;
mod ioctl;
mod library;
mod listing;
mod names;
mod ops;
mod renewal;
mod replica;
mod search;
mod stream;
#[cfg(test)]
mod tests;
mod transfer;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use device::Disk;
pub use doctor::{Finding, RIGHTS, examine};
use library::Library;
use listing::Listing;
use names::Parent;

use super::{DiskStore, SnapshotId, Volume, VolumeError};

/// How new zvols compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As the parent dataset says.
    Inherit,
    /// Not at all.
    Off,
    /// Fast.
    Lz4,
    /// Smaller.
    Zstd,
}

/// For which new zvols the pool sets space aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// None: they are sparse.
    Nothing,
    /// Those that are no clones.
    Images,
    /// Clones as well.
    All,
}

/// What the store is told.
#[derive(Debug, Clone)]
pub struct ZfsOptions {
    /// The parent dataset, such as `tank/dls`; it must exist.
    pub dataset: String,
    /// Bytes of a zvol's block, a power of two from 4096 to 131072.
    pub block: u32,
    /// Compression of new zvols.
    pub compression: Compression,
    /// For which new zvols space is set aside.
    pub reserve: Reserve,
}

/// A store of disks on ZFS; clones of the handle share it.
#[derive(Clone)]
pub struct ZfsStore {
    inner: Arc<Inner>,
}

struct Inner {
    library: Library,
    parent: Parent,
    options: ZfsOptions,
    /// Where files are converted on their way in and out.
    staging: DiskStore,
    slots: Mutex<HashMap<Volume, Slot>>,
    moved: Condvar,
    /// Orders what changes who stands upon whom.
    tree: Mutex<()>,
    /// They never change, and a boot storm asks for them.
    shapes: Mutex<HashMap<Volume, Shape>>,
}

/// What of a volume never changes.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Bytes that a machine sees.
    size: u64,
    /// Bytes of a block.
    block: u32,
}

/// What happens with a volume in this process.
#[derive(Debug)]
enum Slot {
    /// It is being opened, removed or put back.
    Taken,
    /// It is open, or was.
    Open(Weak<Disk>),
}

impl fmt::Debug for ZfsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ZfsStore({})", self.inner.parent)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A volume that this process does something to; let go when dropped.
struct Taken<'a> {
    store: &'a ZfsStore,
    volume: Volume,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut slots = lock(&self.store.inner.slots);
        if matches!(slots.get(&self.volume), Some(Slot::Taken)) {
            slots.remove(&self.volume);
        }
        self.store.inner.moved.notify_all();
    }
}

impl ZfsStore {
    /// Opens the store, and finishes or undoes what a crash has interrupted. `root` is a folder
    /// in which files are converted.
    ///
    /// # Errors
    /// Without ZFS, without the dataset, or without the rights to it: `Io` or `Damaged` with a
    /// sentence for the admin.
    pub fn open(options: ZfsOptions, root: &Path) -> Result<Self, VolumeError> {
        let parent = Parent::parse(&options.dataset)?;
        let library = Library::open()?;
        let listing = Listing::read(&parent)?;
        let staging = root.join("zfs-staging");
        std::fs::create_dir_all(&staging)
            .map_err(|e| io_error("making the folder for conversions", e))?;
        let staging = DiskStore::open(&staging, super::disks::TABLE_CACHE)?;
        let store = Self {
            inner: Arc::new(Inner {
                library,
                parent,
                options,
                staging,
                slots: Mutex::default(),
                moved: Condvar::new(),
                tree: Mutex::default(),
                shapes: Mutex::default(),
            }),
        };
        store.one_device_each()?;
        store.mend(&listing)?;
        Ok(store)
    }

    /// Has each zvol be one block device, in whose partitions this machine takes no interest. It is
    /// the parent's property, for all below it: OpenZFS 2.3 makes a new zvol's device before it
    /// sets the zvol's own, and then makes another one in its place. Who had opened the first by
    /// then would read and write nothing but errors, and no device of the pool would come or go
    /// until it was closed.
    fn one_device_each(&self) -> Result<(), VolumeError> {
        let parent = self.inner.parent.as_str();
        let mode = listing::zfs(&["get", "-Hp", "-o", "value", "volmode", parent])?;
        if mode.trim() != "dev" {
            listing::zfs(&["set", "volmode=dev", parent])?;
        }
        Ok(())
    }

    fn listing(&self) -> Result<Listing, VolumeError> {
        Listing::read(&self.inner.parent)
    }

    /// One volume, if it is there, with its snapshots; who carries some of them is in it, too. A
    /// volume's snapshots lie on its own line: in it, or in what it stands upon.
    fn listing_of(&self, volume: Volume) -> Result<Listing, VolumeError> {
        let place = self.place(volume);
        if !self.exists(&place)? {
            return Ok(Listing::default());
        }
        let mut found = match Listing::read_one(&self.inner.parent, volume) {
            // It went away meanwhile.
            Err(_) if !self.exists(&place)? => return Ok(Listing::default()),
            near => near?,
        };
        let mut at = volume;
        for _ in 0..ops::MOST_STEPS {
            at = match found.volumes.get(&at).map(|d| &d.stands_on) {
                Some(Some((carrier, id))) if id.volume == volume => *carrier,
                Some(_) => return Ok(found),
                // Its size is to be told by what it came from.
                None => break,
            };
            let Ok(older) = Listing::read_one(&self.inner.parent, at) else {
                // The tree is being turned round.
                break;
            };
            found.volumes.extend(older.volumes);
            found.snapshots.splice(0..0, older.snapshots);
        }
        self.listing()
    }

    /// A snapshot's place as ZFS names it.
    fn place_of(&self, id: &SnapshotId) -> Result<String, VolumeError> {
        let own = self.inner.parent.snapshot(id.volume, id);
        if self.exists(&own)? {
            return Ok(own);
        }
        match self.listing_of(id.volume)?.find(id) {
            Ok(near) => Ok(self.lies(near)),
            // Its volume may be gone, and another have it still.
            Err(_) => Ok(self.lies(self.listing()?.find(id)?)),
        }
    }

    /// Takes a volume's slot; its open disk if it is open.
    fn take(&self, volume: Volume) -> Result<Taken<'_>, Arc<Disk>> {
        let mut slots = lock(&self.inner.slots);
        loop {
            match slots.get(&volume) {
                Some(Slot::Taken) => {
                    let waited = self.inner.moved.wait(slots);
                    slots = waited.unwrap_or_else(PoisonError::into_inner);
                }
                Some(Slot::Open(disk)) if disk.strong_count() > 0 => {
                    if let Some(disk) = disk.upgrade() {
                        return Err(disk);
                    }
                }
                Some(Slot::Open(_)) | None => {
                    slots.insert(volume, Slot::Taken);
                    return Ok(Taken {
                        store: self,
                        volume,
                    });
                }
            }
        }
    }

    /// The disk, if it is open.
    fn opened(&self, volume: Volume) -> Option<Arc<Disk>> {
        match lock(&self.inner.slots).get(&volume) {
            Some(Slot::Open(disk)) => disk.upgrade(),
            _ => None,
        }
    }

    fn place(&self, volume: Volume) -> String {
        self.inner.parent.volume(volume)
    }
}

/// An I/O error as the store's.
fn io_error(what: &str, source: io::Error) -> VolumeError {
    match source.kind() {
        _ if gate::is_away(&source) => VolumeError::Away(source.to_string()),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => VolumeError::NoSpace,
        _ => VolumeError::Io {
            what: what.to_owned(),
            source,
        },
    }
}

fn busy(what: impl ToString, by: impl ToString) -> VolumeError {
    VolumeError::Busy {
        what: what.to_string(),
        by: by.to_string(),
    }
}

fn damaged(what: impl ToString, why: impl ToString) -> VolumeError {
    VolumeError::Damaged {
        what: what.to_string(),
        why: why.to_string(),
    }
}
