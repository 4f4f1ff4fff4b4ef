//! Disk files on their way in: received in pieces, kept over restarts until they are used,
//! given up or too old.
//!
//! Each upload has a folder `uploads/ID/` with the `data` so far and a `record` of what it is to
//! become. ID will be the image's. What is held by one connection or conversion can be touched by
//! no other: [`Uploads::claim`] gives a [`Held`], and that is the only way to write. Runs of
//! zeroes are not stored. How much is there after a restart is told by the file's length if
//! the machine has not been restarted, else by what was synced. Calls block.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::directory::{StorageError, sync_folder};
use crate::model::{Image, Timestamp};

const UPLOADS: &str = "uploads";
/// Bytes that are received between two syncs, so that none of them takes long.
const SYNC_EVERY: u64 = 64 * 1024 * 1024;
/// Zeroes are looked for in steps of so many bytes.
const GRAIN: usize = 4096;

/// What an upload is, and is to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// The image as it will be; its id names the upload too.
    pub image: Image,
    /// Bytes of the whole file, once known.
    pub total: Option<u64>,
    /// Format it is said to have; `None` if its beginning shall tell.
    pub format: Option<String>,
    /// SHA-256 that the whole file is said to have, 64 hex digits in lower case.
    pub sha256: Option<String>,
    /// It is refused if its disk is found not to boot.
    #[serde(default)]
    pub require_bootable: bool,
    /// A file of this server that is imported instead of received data.
    pub source: Option<PathBuf>,
    /// When it was begun.
    pub begun: Timestamp,
    /// Bytes known to be on disk.
    synced: u64,
    /// The run of the machine that wrote this.
    machine_run: String,
}

impl Upload {
    /// A new one, nothing received.
    #[must_use]
    pub fn new(image: Image, begun: Timestamp) -> Self {
        Self {
            image,
            total: None,
            format: None,
            sha256: None,
            require_bootable: false,
            source: None,
            begun,
            synced: 0,
            machine_run: machine_run(),
        }
    }
}

/// What holds an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// A connection that brings more of it.
    Receiving,
    /// Its conversion.
    Importing,
}

impl Hold {
    /// For messages: `it is being ..`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Receiving => "received",
            Self::Importing => "imported",
        }
    }
}

/// An upload, as it stands.
#[derive(Debug, Clone)]
pub struct Standing {
    /// What it is.
    pub upload: Upload,
    /// Bytes that are there.
    pub offset: u64,
    /// Who has it now.
    pub hold: Option<Hold>,
}

impl Standing {
    /// True if all of it is there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.upload.source.is_some() || self.upload.total == Some(self.offset)
    }
}

/// All uploads of a store; clones share it.
#[derive(Debug, Clone)]
pub struct Uploads {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// By the name of the image that is to be.
    known: Mutex<HashMap<String, Standing>>,
}

/// One upload, and the right to change it. Dropped: it stays as it is, for others.
#[derive(Debug)]
pub struct Held {
    shared: Arc<Shared>,
    name: String,
    upload: Upload,
    file: Option<File>,
    offset: u64,
    unsynced: u64,
}

impl Uploads {
    /// Opens (making it where missing) the folder of uploads below the storage root, and
    /// removes what can't be gone on with.
    ///
    /// # Errors
    /// When the folder can't be made or read.
    pub fn open(root: &Path) -> Result<Self, StorageError> {
        let shared = Shared {
            root: root.to_owned(),
            known: Mutex::default(),
        };
        let folder = shared.folder();
        let failed = |action, e| StorageError::io(action, &folder, root, e);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(&folder)
            .map_err(|e| failed("making", e))?;
        for entry in std::fs::read_dir(&folder).map_err(|e| failed("reading", e))? {
            let place = entry.map_err(|e| failed("reading", e))?.path();
            match read(&place) {
                Some(standing) => {
                    let name = standing.upload.image.name.clone();
                    shared.lock().insert(name, standing);
                }
                // A record is written whole before anything else is: this is a beginning.
                None => std::fs::remove_dir_all(&place).map_err(|e| failed("sweeping", e))?,
            }
        }
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// All, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Standing> {
        let mut all: Vec<Standing> = self.shared.lock().values().cloned().collect();
        all.sort_by(|a, b| a.upload.image.name.cmp(&b.upload.image.name));
        all
    }

    /// One, by the name of the image that is to be.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Standing> {
        self.shared.lock().get(name).cloned()
    }

    /// When something last came in.
    #[must_use]
    pub fn touched(&self, standing: &Standing) -> Option<Timestamp> {
        let place = self.shared.place(standing.upload.image.id);
        let newest = ["data", "record"]
            .iter()
            .filter_map(|name| std::fs::metadata(place.join(name)).ok()?.modified().ok())
            .max()?;
        Some(newest.into())
    }

    /// Takes an upload for oneself: the one of that name, or else the one that `new` makes.
    ///
    /// # Errors
    /// `Ok(Err(standing))` if somebody has it; `Err` if it can't be written.
    pub fn claim(
        &self,
        name: &str,
        hold: Hold,
        new: impl FnOnce() -> Option<Upload>,
    ) -> Result<Result<Option<Held>, Box<Standing>>, StorageError> {
        let (upload, offset, is_new) = {
            let mut known = self.shared.lock();
            match known.get_mut(name) {
                Some(standing) if standing.hold.is_some() => {
                    return Ok(Err(Box::new(standing.clone())));
                }
                Some(standing) => {
                    standing.hold = Some(hold);
                    (standing.upload.clone(), standing.offset, false)
                }
                None => {
                    let Some(upload) = new() else {
                        return Ok(Ok(None));
                    };
                    let standing = Standing {
                        upload: upload.clone(),
                        offset: 0,
                        hold: Some(hold),
                    };
                    known.insert(name.to_owned(), standing);
                    (upload, 0, true)
                }
            }
        };
        let mut held = Held {
            shared: self.shared.clone(),
            name: name.to_owned(),
            upload,
            file: None,
            offset,
            unsynced: 0,
        };
        if is_new && let Err(e) = held.begin() {
            held.discard();
            return Err(e);
        }
        Ok(Ok(Some(held)))
    }
}

impl Shared {
    fn folder(&self) -> PathBuf {
        self.root.join(UPLOADS)
    }

    fn place(&self, id: Uuid) -> PathBuf {
        self.folder().join(id.to_string())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Standing>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// What it is.
    #[must_use]
    pub fn upload(&self) -> &Upload {
        &self.upload
    }

    /// Bytes that are there.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The file to import.
    #[must_use]
    pub fn source(&self) -> PathBuf {
        let own = || self.place().join("data");
        self.upload.source.clone().unwrap_or_else(own)
    }

    fn place(&self) -> PathBuf {
        self.shared.place(self.upload.image.id)
    }

    fn failed(&self, action: &'static str, source: io::Error) -> StorageError {
        StorageError::io(action, &self.place(), &self.shared.root, source)
    }

    /// Makes folder, record and empty data.
    fn begin(&mut self) -> Result<(), StorageError> {
        let place = self.place();
        std::fs::DirBuilder::new()
            .mode(0o750)
            .create(&place)
            .map_err(|e| self.failed("making", e))?;
        self.open_data()?;
        self.write_record()?;
        sync_folder(&self.shared.folder()).map_err(|e| self.failed("syncing", e))
    }

    fn open_data(&mut self) -> Result<(), StorageError> {
        if self.file.is_none() {
            let file = std::fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o640)
                .open(self.place().join("data"))
                .map_err(|e| self.failed("opening", e))?;
            self.file = Some(file);
        }
        Ok(())
    }

    fn write_record(&self) -> Result<(), StorageError> {
        let (draft, record) = (self.place().join("record.new"), self.place().join("record"));
        serde_json::to_vec(&self.upload)
            .map_err(io::Error::other)
            .and_then(|text| {
                let mut file = std::fs::OpenOptions::new()
                    .create(true)
                    .truncate(true)
                    .write(true)
                    .mode(0o640)
                    .open(&draft)?;
                io::Write::write_all(&mut file, &text)?;
                file.sync_all()?;
                std::fs::rename(&draft, &record)?;
                sync_folder(&self.place())
            })
            .map_err(|e| self.failed("writing in", e))
    }

    /// Changes what is known of it; durable when this returns.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn change(&mut self, change: impl FnOnce(&mut Upload)) -> Result<(), StorageError> {
        change(&mut self.upload);
        self.write_record()?;
        self.tell();
        Ok(())
    }

    /// Forgets what has been received.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn rewind(&mut self) -> Result<(), StorageError> {
        self.open_data()?;
        if let Some(file) = &self.file {
            file.set_len(0).map_err(|e| self.failed("emptying", e))?;
        }
        self.offset = 0;
        self.unsynced = 0;
        self.change(|upload| {
            upload.synced = 0;
            upload.total = None;
        })
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// When they can't be written: what was there before stays.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.open_data()?;
        let Some(file) = &self.file else {
            return Ok(());
        };
        let written = write_sparse(file, self.offset, bytes);
        let end = self.offset + bytes.len() as u64;
        // The length says how much is there, zeroes at the end too.
        if let Err(e) = written.and_then(|()| file.set_len(end)) {
            let _ = file.set_len(self.offset);
            return Err(self.failed("writing", e));
        }
        self.offset = end;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_EVERY {
            self.sync()?;
        }
        self.tell();
        Ok(())
    }

    /// Makes what is there durable.
    ///
    /// # Errors
    /// When that fails.
    pub fn sync(&mut self) -> Result<(), StorageError> {
        if let Some(file) = &self.file
            && self.unsynced > 0
        {
            file.sync_all().map_err(|e| self.failed("syncing", e))?;
            self.unsynced = 0;
            self.upload.synced = self.offset;
            self.upload.machine_run = machine_run();
            self.write_record()?;
            self.tell();
        }
        Ok(())
    }

    /// Bytes that can be written where the uploads lie.
    #[must_use]
    pub fn room(&self) -> Option<u64> {
        let stat = nix::sys::statvfs::statvfs(&self.shared.folder()).ok()?;
        Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }

    /// Says what it is being done with from now on.
    pub fn hold_for(&self, hold: Hold) {
        self.standing(|standing| standing.hold = Some(hold));
    }

    /// Removes it for good.
    pub fn discard(mut self) {
        self.file = None;
        if let Err(e) = std::fs::remove_dir_all(self.place())
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.place().display(), error = %e, "an upload can't be removed");
        }
        self.shared.lock().remove(&self.name);
    }

    /// Shows others how it stands.
    fn tell(&self) {
        self.standing(|standing| {
            standing.upload = self.upload.clone();
            standing.offset = self.offset;
        });
    }

    /// Changes our own entry, not one of the same name that came after it.
    fn standing(&self, change: impl FnOnce(&mut Standing)) {
        let mut known = self.shared.lock();
        let ours = known.get_mut(&self.name);
        if let Some(standing) = ours.filter(|s| s.upload.image.id == self.upload.image.id) {
            change(standing);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.standing(|standing| standing.hold = None);
    }
}

/// Writes what is not zero; what is, stays a hole (the file ends at `offset` before).
fn write_sparse(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let is_zero = |grain: &[u8]| grain.iter().all(|b| *b == 0);
    let mut grains = bytes.chunks(GRAIN).peekable();
    let mut at = 0;
    while let Some(grain) = grains.next() {
        let start = at;
        at += grain.len();
        if is_zero(grain) {
            continue;
        }
        while let Some(next) = grains.next_if(|next| !is_zero(next)) {
            at += next.len();
        }
        let run = bytes.get(start..at).unwrap_or_default();
        file.write_all_at(run, offset + start as u64)?;
    }
    Ok(())
}

/// Reads an upload's folder; `None` if it is not one.
fn read(place: &Path) -> Option<Standing> {
    let text = std::fs::read(place.join("record")).ok()?;
    let upload: Upload = serde_json::from_slice(&text).ok()?;
    if place.file_name()?.to_str()? != upload.image.id.to_string() {
        return None;
    }
    let data = place.join("data");
    let length = std::fs::metadata(&data).ok()?.len();
    let offset = if upload.machine_run == machine_run() {
        length
    } else {
        // After a power cut a file may be longer than what was written of it.
        length.min(upload.synced)
    };
    if offset < length {
        let file = std::fs::OpenOptions::new().write(true).open(&data).ok()?;
        file.set_len(offset).ok()?;
    }
    Some(Standing {
        upload,
        offset,
        hold: None,
    })
}

/// Another text after each start of the machine; empty where the system does not tell.
fn machine_run() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests;
