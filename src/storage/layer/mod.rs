//! Copy-on-write layers in files that are standard qcow2: a clone costs some KiB, its first
//! write of 4 KiB copies nothing, and its memory is bounded whatever the size of its disk.
//!
//! [`mod@format`]: the layout (pure). [`medium`]: what is asked of a file. [`cache`]: pages of
//! tables, shared. [`journal`]: changed entries, for the end of the process. [`cow`]: a layer,
//! look-up and reading. [`mod@write`]: writing, zeroing, filling. [`checkpoint`]: flush, close,
//! recovery. [`raw`]: a raw file as the lowest layer. The rules: docs/storage.md.

pub(crate) mod cache;
mod checkpoint;
pub(crate) mod cow;
pub(crate) mod format;
pub(crate) mod journal;
pub(crate) mod medium;
pub(crate) mod raw;
pub(crate) mod write;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::Arc;

use super::{Extent, Lent};

/// May a read wait for the disk?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It may.
    Yes,
    /// It must not.
    No,
}

/// The content of a disk as some layer and all below it give it.
pub(crate) trait Content: Send + Sync + fmt::Debug {
    /// Bytes.
    fn size(&self) -> u64;

    /// Fills the buffer; `false` if that would have to wait. The range lies within the disk.
    fn read(&self, at: u64, buffer: &mut [u8], wait: Wait) -> io::Result<bool>;

    /// The range as a part of a file that never changes, if it is that and in memory.
    fn lend(&self, _at: u64, _length: u64) -> io::Result<Option<Lent>> {
        Ok(None)
    }

    /// What lies at `at`, and for how many of `most` bytes.
    fn run(&self, at: u64, most: u64) -> io::Result<Extent>;

    /// Is what lies at `at` this layer's own, and for how many of `most` bytes is it so?
    /// What lies upon nothing has all of its own.
    fn own(&self, _at: u64, most: u64) -> io::Result<(bool, u64)> {
        Ok((true, most))
    }

    /// What it lies upon, now.
    fn under(&self) -> Option<Arc<dyn Content>> {
        None
    }

    /// How many layers lie below, now.
    fn depth(&self) -> usize {
        0
    }
}

/// Why a layer can't be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Its file is not what it should be.
    #[error("{0}")]
    Damaged(String),
    /// The file can't be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}
