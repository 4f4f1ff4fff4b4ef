//! Kernels and initrds of disk images, which go with their versions: machines that boot by
//! them load them from the server that has the disk. The catalog says what each must be: size
//! and SHA-256 are compared before a file gets its place.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::Shared;
use super::inbox::Rejected;
use super::wire::Refusal;
use crate::model::{ImageFile, hex};
use crate::storage::Scratch;

/// A file on its way in.
#[derive(Debug)]
pub(super) struct Arriving {
    image: Uuid,
    wanted: ImageFile,
    scratch: Scratch,
    file: File,
    hasher: Sha256,
    length: u64,
}

impl Arriving {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// When there are more than the catalog says, or they can't be written.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), Rejected> {
        self.length = self.length.saturating_add(bytes.len() as u64);
        if i64::try_from(self.length).map_or(true, |length| length > self.wanted.size_bytes) {
            let sentence = "a file is longer than the catalog says";
            return Err(Rejected::new(Refusal::Confused, sentence));
        }
        self.hasher.update(bytes);
        Ok(self.file.write_all(bytes)?)
    }
}

impl Shared {
    /// The file of that number of an image.
    pub(super) fn file(&self, image: Uuid, number: u16) -> Option<ImageFile> {
        let snapshot = self.cache.get();
        let image = snapshot.image(image)?;
        image.files.get(usize::from(number)).cloned()
    }

    /// Whether a file is still to be sent here; `None` if it is there.
    pub(super) fn file_wanted(
        &self,
        image: Uuid,
        number: u16,
    ) -> Result<Option<Arriving>, Rejected> {
        let Some(wanted) = self.file(image, number) else {
            let sentence = "the catalog does not know the file, or not yet";
            return Err(Rejected::new(Refusal::Unknown, sentence));
        };
        let there = Handle::current().block_on(self.storage.open_file(&wanted.path));
        if there.is_ok_and(|(_, size)| i64::try_from(size).ok() == Some(wanted.size_bytes)) {
            return Ok(None);
        }
        let scratch = self.storage.scratch();
        let file = File::create(scratch.path())?;
        Ok(Some(Arriving {
            image,
            wanted,
            scratch,
            file,
            hasher: Sha256::new(),
            length: 0,
        }))
    }

    /// Compares a file that is all there with the catalog, and puts it into its place.
    pub(super) fn place(self: &Arc<Self>, arriving: Arriving) -> Result<(), Rejected> {
        let Arriving {
            image,
            wanted,
            scratch,
            file,
            hasher,
            ..
        } = arriving;
        drop(file);
        if hex(&hasher.finalize()) != wanted.sha256 {
            let sentence = "a file is not what the catalog says";
            return Err(Rejected::new(Refusal::Confused, sentence));
        }
        let placed = Handle::current().block_on(async {
            let source = tokio::fs::File::open(scratch.path()).await;
            let source = source.map_err(|e| e.to_string())?;
            let staged = self.storage.stage(source).await;
            let staged = staged.map_err(|e| e.to_string())?;
            let placed = self
                .storage
                .place(staged, image, wanted.role, wanted.position)
                .await;
            placed.map_err(|e| e.to_string())
        });
        placed.map_err(|why| Rejected::new(Refusal::Store, why))?;
        Ok(())
    }
}
