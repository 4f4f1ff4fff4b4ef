//! The trait on bytes: one open disk. It names no protocol and no backend.
//!
//! All calls may be made from many threads at once, and block until done: the block path is
//! synchronous, on threads of its own. Offsets and lengths are bytes of any alignment; a call
//! that goes past the end fails whole and changes nothing.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

/// What a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Bytes; a multiple of 512.
    pub size: u64,
    /// Bytes that are best read and written at once, a power of two.
    pub preferred_block: u32,
    /// Writes are refused.
    pub read_only: bool,
}

/// What must hold when a write returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It survives the end of this process, not a power cut before the next flush.
    Volatile,
    /// Force unit access: it survives a power cut.
    Fua,
}

/// What lies in a part of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that are stored.
    Data,
    /// Stored, and known to read as zeroes.
    Zero,
    /// Not stored; reads as zeroes.
    Hole,
}

/// A run of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, more than 0.
    pub length: u64,
    /// What it is.
    pub kind: ExtentKind,
}

/// Why a disk did not do what it was asked. Only the connection concerned hears of it.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Past the end of the disk.
    #[error("past the end of the disk")]
    OutOfRange,
    /// The disk was opened for reading only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The store is full; the disk is as it was, and goes on when there is space again.
    #[error("no space is left in the image store")]
    NoSpace,
    /// A newer login has this disk now.
    #[error("a newer login of the same machine has taken the disk over")]
    Fenced,
    /// The store failed.
    #[error("the image store failed: {0}")]
    Io(#[source] io::Error),
}

impl From<io::Error> for BlockError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io(error),
        }
    }
}

/// Bytes of a disk as they lie in a file of the system, in memory and never to change: they can
/// go to a socket without being copied.
#[derive(Debug, Clone)]
pub struct Lent {
    /// The file.
    pub file: Arc<File>,
    /// Where in it they begin.
    pub at: u64,
}

/// One open disk.
pub trait BlockDevice: Send + Sync + fmt::Debug {
    /// Size and nature; never changes while it is open.
    fn info(&self) -> DeviceInfo;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// See [`BlockError`]; the buffer's content is then of no use.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BlockError>;

    /// As [`BlockDevice::read_at`], but only if that needs no disk access: `false` if it might
    /// have to wait, and then the buffer is of no use. So that a connection's own thread can
    /// serve what is in memory and hand over the rest.
    ///
    /// # Errors
    /// See [`BlockError`].
    fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, BlockError> {
        self.read_at(offset, buffer).map(|()| true)
    }

    /// A range as a part of a file, where it is that: data of an image that nobody writes any
    /// more, in memory already. `None` where it has to be read.
    ///
    /// # Errors
    /// See [`BlockError`].
    fn lend(&self, _offset: u64, _length: usize) -> Result<Option<Lent>, BlockError> {
        Ok(None)
    }

    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// See [`BlockError`]; what the range holds is then, byte for byte, the old or the new.
    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), BlockError>;

    /// When it returns, every write that was answered before the call survives a power cut.
    ///
    /// # Errors
    /// See [`BlockError`]; nothing is known of those writes' durability then.
    fn flush(&self) -> Result<(), BlockError>;

    /// Says that a range is not needed any more: it reads as zeroes from now on (a stronger
    /// promise than the protocols ask for), and its space is given back where possible.
    ///
    /// # Errors
    /// See [`BlockError`].
    fn discard(&self, offset: u64, length: u64) -> Result<(), BlockError>;

    /// Makes a range read as zeroes. `keep_space` asks that later writes to it find their
    /// space reserved, as far as the backend can.
    ///
    /// # Errors
    /// See [`BlockError`].
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        keep_space: bool,
        durability: Durability,
    ) -> Result<(), BlockError>;

    /// What lies in a range: runs that cover it exactly once from its start, at most `most`
    /// of them (then fewer bytes are covered). Never says `Hole` or `Zero` of what may hold data.
    ///
    /// # Errors
    /// See [`BlockError`].
    fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Extent>, BlockError>;
}
