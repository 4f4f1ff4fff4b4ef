//! The `directory` backend: files of images below one root, written once, never changed.
//!
//! A file arrives in `staging/`, is hashed while it is written, is fsynced, and is renamed to
//! its place with its directory fsynced: a crash leaves either the whole file or only litter
//! in `staging/`, which [`Directory::open`] sweeps. No path from outside is ever joined:
//! names here come from ids of ours.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::model::FileRole;

/// The storage root.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
}

/// A file that has been received whole and hashed, not yet in its place. Dropped: removed.
#[derive(Debug)]
pub struct Staged {
    /// Bytes.
    pub size_bytes: i64,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
}

/// What can go wrong with stored files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// An input or output error at a path.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried, as a gerund phrase (`writing`, `opening`).
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Directory {
    /// Opens (making it where missing) the root and sweeps `staging/`.
    ///
    /// # Errors
    /// When the root can't be made, read or written.
    pub async fn open(root: &Path) -> Result<Self, StorageError> {
        let _ = root;
        unimplemented!()
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Receives a file into staging, hashing as it goes; fsynced when this returns.
    ///
    /// # Errors
    /// When reading the source or writing fails.
    pub async fn stage<R: tokio::io::AsyncRead + Unpin>(
        &self,
        source: R,
    ) -> Result<Staged, StorageError> {
        let _ = source;
        unimplemented!()
    }

    /// Puts a staged file in its place; returns its path below the root,
    /// `images/<id>/kernel` or `images/<id>/initrd<position>`.
    ///
    /// # Errors
    /// When renaming or syncing fails.
    pub async fn place(
        &self,
        staged: Staged,
        image: Uuid,
        role: FileRole,
        position: i32,
    ) -> Result<String, StorageError> {
        let _ = (staged, image, role, position);
        unimplemented!()
    }

    /// Opens a placed file for reading, by its path below the root as the catalog holds it.
    /// The path may not leave the root (no `..`, no absolute path, no symlink out).
    ///
    /// # Errors
    /// When it is not there or can't be read.
    pub async fn open_file(&self, path: &str) -> Result<(tokio::fs::File, u64), StorageError> {
        let _ = path;
        unimplemented!()
    }

    /// Removes all files of an image; fine if there are none.
    ///
    /// # Errors
    /// When removal fails.
    pub async fn remove_image(&self, image: Uuid) -> Result<(), StorageError> {
        let _ = image;
        unimplemented!()
    }

    /// Image ids that have files here (to compare with the catalog after a crash).
    ///
    /// # Errors
    /// When the root can't be read.
    pub async fn images(&self) -> Result<Vec<Uuid>, StorageError> {
        unimplemented!()
    }
}
