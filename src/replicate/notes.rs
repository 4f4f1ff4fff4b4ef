//! What this server has received so far, on disk: one small file per version in `replicas/`
//! below the storage root, replaced as a whole. Durable before the store has anything of a
//! version, and gone after the store has nothing of it any more, so that a crash leaves nothing
//! that nobody knows of. It knows no store and no catalog.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

const FOLDER: &str = "replicas";

/// What is there of a version that was, or is being, received.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Note {
    /// The version.
    pub version: Uuid,
    /// Its image.
    pub image: Uuid,
    /// Bytes of the disk.
    pub size: u64,
    /// The version that it was begun from.
    pub base: Option<Uuid>,
    /// All that differs from that below this offset is flushed.
    pub through: u64,
    /// SHA-256 of the whole content, once it was verified.
    pub sha256: Option<String>,
}

/// The folder of notes. Calls block for as long as a sync takes.
#[derive(Debug)]
pub struct Notes {
    folder: PathBuf,
}

impl Notes {
    /// Opens (making it where missing) the folder below the storage root.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn open(root: &Path) -> io::Result<Self> {
        let folder = root.join(FOLDER);
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(&folder)?;
        Ok(Self { folder })
    }

    fn path(&self, version: Uuid) -> PathBuf {
        self.folder.join(format!("{version}.json"))
    }

    /// Writes a note; it is durable when this returns.
    ///
    /// # Errors
    /// As the file system.
    pub fn write(&self, note: &Note) -> io::Result<()> {
        let path = self.path(note.version);
        let draft = path.with_extension("new");
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(true).write(true).mode(0o640);
        let mut file = options.open(&draft)?;
        file.write_all(&serde_json::to_vec(note)?)?;
        file.sync_all()?;
        std::fs::rename(&draft, &path)?;
        File::open(&self.folder)?.sync_all()
    }

    /// The note of a version. One that can't be read is none: what it was of begins anew.
    ///
    /// # Errors
    /// As the file system.
    pub fn read(&self, version: Uuid) -> io::Result<Option<Note>> {
        match std::fs::read(self.path(version)) {
            Ok(bytes) => {
                let note: Option<Note> = serde_json::from_slice(&bytes).ok();
                Ok(note.filter(|note| note.version == version && note.through <= note.size))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Forgets a version.
    ///
    /// # Errors
    /// As the file system.
    pub fn remove(&self, version: Uuid) -> io::Result<()> {
        match std::fs::remove_file(self.path(version)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// The versions that there are notes of, sorted.
    ///
    /// # Errors
    /// As the file system.
    pub fn list(&self) -> io::Result<Vec<Uuid>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let stem = name.to_str().and_then(|n| n.strip_suffix(".json"));
            found.extend(stem.and_then(|n| Uuid::try_parse(n).ok()));
        }
        found.sort();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_stay_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::open(dir.path()).unwrap();
        let note = Note {
            version: Uuid::from_u128(1),
            image: Uuid::from_u128(2),
            size: 4096,
            base: None,
            through: 512,
            sha256: None,
        };
        notes.write(&note).unwrap();
        let further = Note {
            through: 1024,
            ..note.clone()
        };
        notes.write(&further).unwrap();
        let again = Notes::open(dir.path()).unwrap();
        assert_eq!(again.read(note.version).unwrap(), Some(further));
        assert_eq!(again.list().unwrap(), [note.version]);
        // Of another version, beyond the disk, or no note at all: as if it were not there.
        std::fs::copy(again.path(note.version), again.path(note.image)).unwrap();
        assert_eq!(again.read(note.image).unwrap(), None);
        let beyond = Note {
            through: 4097,
            ..note.clone()
        };
        again.write(&beyond).unwrap();
        assert_eq!(again.read(note.version).unwrap(), None);
        again.remove(note.version).unwrap();
        again.remove(note.version).unwrap();
        assert_eq!(again.list().unwrap(), [note.image]);
    }
}
