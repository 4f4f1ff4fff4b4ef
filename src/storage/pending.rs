//! Intentions: what was begun with images, versions and clients' disks and is not known to be
//! finished.
//!
//! One file for each in `pending/`, durable before the first step and gone after the last. What
//! needs no catalog is undone or finished when the store is opened ([`super::mend`]), whether
//! PostgreSQL is there or not. For the rest the catalog is asked once it can be: an image or a version
//! that has its row is whole (the row comes last and goes first), one that has none leaves
//! nothing. The mark in an entry says which state of which catalog may be believed in that.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::directory::{StorageError, sync_folder};
use crate::model::{Mark, Timestamp};

const PENDING: &str = "pending";

/// The journal of intentions; clones share it. Calls block for as long as a sync takes.
#[derive(Debug, Clone)]
pub struct Pending {
    root: Arc<Path>,
    folder: Arc<Path>,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Intent {
    /// An image is being made or removed, or a version removed, or files given to an image.
    Image {
        /// Its id, or the version's.
        image: Uuid,
    },
    /// A version is being made from a client's disk.
    Version {
        /// Its id.
        version: Uuid,
        /// Whose disk.
        client: Uuid,
        /// Of which image.
        image: Uuid,
        /// That disk is thrown away once the version has its row.
        reset: bool,
    },
    /// A client's persistent disks are being thrown away; nobody has them open, and nobody
    /// does before this is over.
    Reset {
        /// Whose.
        client: Uuid,
        /// Only that of this image.
        image: Option<Uuid>,
        /// The maintenance that ends with it, by its beginning.
        maintenance: Option<Timestamp>,
    },
}

impl Intent {
    /// Under which id it is written down and ended: the image's, the version's, the client's.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        match self {
            Self::Image { image } => *image,
            Self::Version { version, .. } => *version,
            Self::Reset { client, .. } => *client,
        }
    }
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// What.
    pub intent: Intent,
    /// The catalog's state when it was begun, as far as that was asked for.
    pub mark: Option<Mark>,
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

    fn path(&self, id: Uuid) -> PathBuf {
        self.folder.join(id.to_string())
    }

    fn failed(&self, action: &'static str, source: io::Error) -> StorageError {
        StorageError::io(action, &self.folder, &self.root, source)
    }

    /// Says that an image or a version is about to be made or removed; durable when this
    /// returns. Saying it twice is no error.
    ///
    /// # Errors
    /// When it can't be written; then nothing must be begun.
    pub fn begin(&self, image: Uuid) -> Result<(), StorageError> {
        self.note(Intent::Image { image }, None)
    }

    /// The same of any intention, with the mark that the catalog gave for it.
    ///
    /// # Errors
    /// When it can't be written; then nothing must be begun.
    pub fn note(&self, intent: Intent, mark: Option<Mark>) -> Result<(), StorageError> {
        let bytes = serde_json::to_vec(&Noted { intent, mark }).unwrap_or_default();
        std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o640)
            .open(self.path(intent.id()))
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| sync_folder(&self.folder))
            .map_err(|e| self.failed("writing in", e))
    }

    /// Says that it is done or undone. Not being written at once does no harm: it is looked
    /// at once more at the next start.
    ///
    /// # Errors
    /// When the file can't be removed.
    pub fn end(&self, id: Uuid) -> Result<(), StorageError> {
        match std::fs::remove_file(self.path(id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed("removing from", e)),
            _ => Ok(()),
        }
    }

    /// What was begun and not ended, by id.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn intents(&self) -> Result<Vec<Noted>, StorageError> {
        let failed = |e| self.failed("reading", e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(id) = name.to_str().and_then(|n| Uuid::try_parse(n).ok()) else {
                continue;
            };
            let bytes = match std::fs::read(entry.path()) {
                Ok(bytes) => bytes,
                // It was ended meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            // What is empty or torn was being written when the power went: nothing was begun,
            // which is found out in the same way.
            let torn = Noted {
                intent: Intent::Image { image: id },
                mark: None,
            };
            let noted = serde_json::from_slice(&bytes).ok();
            found.push(
                noted
                    .filter(|n: &Noted| n.intent.id() == id)
                    .unwrap_or(torn),
            );
        }
        found.sort_by_key(|noted| noted.intent.id());
        Ok(found)
    }

    /// Images and versions that were begun and not ended, sorted.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn list(&self) -> Result<Vec<Uuid>, StorageError> {
        let all = self.intents()?.into_iter().map(|noted| noted.intent);
        let images = all.filter(|intent| !matches!(intent, Intent::Reset { .. }));
        Ok(images.map(|intent| intent.id()).collect())
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

    #[test]
    fn entries_come_back_and_torn_ones_are_looked_into_as_images() {
        let dir = tempfile::tempdir().unwrap();
        let pending = Pending::open(dir.path()).unwrap();
        let id = Uuid::from_u128;
        let mark = Mark {
            catalog: id(9),
            number: 7,
        };
        let entries = [
            (Intent::Image { image: id(1) }, None),
            (
                Intent::Version {
                    version: id(2),
                    client: id(3),
                    image: id(4),
                    reset: true,
                },
                Some(mark),
            ),
            (
                Intent::Reset {
                    client: id(5),
                    image: None,
                    maintenance: Some(chrono::DateTime::UNIX_EPOCH),
                },
                Some(mark),
            ),
        ];
        for (intent, mark) in entries {
            pending.note(intent, mark).unwrap();
        }
        let found = pending.intents().unwrap();
        let expected = entries.map(|(intent, mark)| Noted { intent, mark });
        assert_eq!(found, expected);
        assert_eq!(pending.list().unwrap(), [id(1), id(2)], "no image");
        for torn in ["", "{\"intent\":{\"ki"] {
            std::fs::write(pending.path(id(5)), torn).unwrap();
            let last = pending.intents().unwrap()[2];
            assert_eq!(last.intent, Intent::Image { image: id(5) });
        }
    }
}
