//! Intentions: images whose making or removal was begun and is not known to be finished.
//!
//! One empty file per image in `pending/`, durable before the first step and gone after the
//! last. Whoever opens the store after a crash asks the catalog about each: an image that has
//! its row is whole (the row comes last and goes first), one that has none leaves nothing.

use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::directory::{StorageError, sync_folder};

const PENDING: &str = "pending";

/// The journal of intentions; clones share it. Calls block for as long as a sync takes.
#[derive(Debug, Clone)]
pub struct Pending {
    root: Arc<Path>,
    folder: Arc<Path>,
}

impl Pending {
    /// Opens (making it where missing) the journal below the storage root.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn open(root: &Path) -> Result<Self, StorageError> {
        let folder = root.join(PENDING);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(&folder)
            .map_err(|e| StorageError::io("making", &folder, root, e))?;
        Ok(Self {
            root: root.into(),
            folder: folder.into(),
        })
    }

    fn path(&self, image: Uuid) -> PathBuf {
        self.folder.join(image.to_string())
    }

    fn failed(&self, action: &'static str, source: io::Error) -> StorageError {
        StorageError::io(action, &self.folder, &self.root, source)
    }

    /// Says that an image is about to be made or removed; durable when this returns. Saying
    /// it twice is no error.
    ///
    /// # Errors
    /// When it can't be written; then nothing must be begun.
    pub fn begin(&self, image: Uuid) -> Result<(), StorageError> {
        std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o640)
            .open(self.path(image))
            .and_then(|file| file.sync_all())
            .and_then(|()| sync_folder(&self.folder))
            .map_err(|e| self.failed("writing in", e))
    }

    /// Says that it is done or undone. Not being written at once does no harm: it is looked
    /// at once more at the next start.
    ///
    /// # Errors
    /// When the file can't be removed.
    pub fn end(&self, image: Uuid) -> Result<(), StorageError> {
        match std::fs::remove_file(self.path(image)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed("removing from", e)),
            _ => Ok(()),
        }
    }

    /// Images that were begun and not ended, sorted.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn list(&self) -> Result<Vec<Uuid>, StorageError> {
        let failed = |e| self.failed("reading", e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            found.extend(name.to_str().and_then(|n| Uuid::try_parse(n).ok()));
        }
        found.sort();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_is_told_after_a_restart_until_it_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let pending = Pending::open(dir.path()).unwrap();
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        pending.begin(b).unwrap();
        pending.begin(a).unwrap();
        pending.begin(a).unwrap();
        let again = Pending::open(dir.path()).unwrap();
        assert_eq!(again.list().unwrap(), [a, b]);
        again.end(a).unwrap();
        again.end(a).unwrap();
        assert_eq!(pending.list().unwrap(), [b]);
    }
}
