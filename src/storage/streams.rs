//! What a store can do that sends versions to its like in a form of its own (`zfs send` and
//! `zfs receive`): an increment is then read from the store's own records, and is the same content
//! with the same identity on the other side. Stores that can't do so have none of this.
//!
//! A *point* is the identity of a version's content in such stores: who has the same point has
//! the same version, received as a stream or made there. What was received has no name that
//! anybody looks for until it is kept, which is for the caller to decide. Calls block.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use super::block::BlockDevice;
use super::volume::VolumeError;

/// What is called now and then by what takes long. `Err` ends it.
pub type Beat<'a> = &'a mut dyn FnMut() -> Result<(), VolumeError>;

/// A version that a stream can begin at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The version.
    pub version: Uuid,
    /// Its point.
    pub point: u64,
    /// False if only its point is left here, and nothing of its content.
    pub whole: bool,
}

/// A version that is to come as a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The version.
    pub version: Uuid,
    /// Its point, as its sender says.
    pub point: u64,
    /// Bytes of the disk.
    pub size: u64,
    /// The version and point that it begins at, which are here.
    pub base: Option<(Uuid, u64)>,
}

/// What is there of a version that comes as a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrived {
    /// Nothing.
    Nothing,
    /// Some of it; with these words its sender goes on.
    Part(String),
    /// All of it: its point.
    Whole(u64),
}

/// A stream on its way out; it ends when it is dropped.
pub trait Outgoing: Send {
    /// About how many bytes it has in all.
    fn length(&self) -> u64;

    /// The next bytes, at most 256 KiB; nothing at its end.
    ///
    /// # Errors
    /// `Io`, `Away`, and of `beat`.
    fn next(&mut self, beat: Beat<'_>) -> Result<Option<Vec<u8>>, VolumeError>;
}

/// A stream on its way in. Dropped before its end, the store keeps what there is of it.
pub trait Ingoing: Send + fmt::Debug {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// `Damaged` when it is not the stream that was wanted, or broken; `NoSpace`, `Away`, `Io`.
    fn write(&mut self, bytes: &[u8], beat: Beat<'_>) -> Result<(), VolumeError>;

    /// That was all: waits until the store has it.
    ///
    /// # Errors
    /// As `write`.
    fn finish(self: Box<Self>, beat: Beat<'_>) -> Result<(), VolumeError>;
}

/// A store that sends and receives streams.
pub trait Streams: Send + Sync {
    /// The point of a version that is here whole.
    ///
    /// # Errors
    /// `Away`, `Io`.
    fn point(&self, version: Uuid) -> Result<Option<u64>, VolumeError>;

    /// What a version can be sent from, nearest first.
    ///
    /// # Errors
    /// `Missing`, `Away`, `Io`.
    fn starts(&self, version: Uuid) -> Result<Vec<Start>, VolumeError>;

    /// Begins to send a version: whole, or from a point; with a receiver's words, where that
    /// left off. Nothing if these words can't be used (any more).
    ///
    /// # Errors
    /// `Missing` of either, `Away`, `Io`.
    fn send(
        &self,
        version: Uuid,
        from: Option<u64>,
        words: Option<&str>,
    ) -> Result<Option<Box<dyn Outgoing>>, VolumeError>;

    /// What is there of a version that comes as a stream and was not kept yet.
    ///
    /// # Errors
    /// `Away`, `Io`.
    fn arrived(&self, version: Uuid) -> Result<Arrived, VolumeError>;

    /// Receives a stream; after [`Arrived::Part`] one that goes on from there.
    ///
    /// # Errors
    /// `Missing` of the base, `Away`, `Io`.
    fn receive(&self, wanted: &Wanted) -> Result<Box<dyn Ingoing>, VolumeError>;

    /// The content of what has arrived whole, for reading.
    ///
    /// # Errors
    /// `Missing`, `Damaged` if it has another size, `Away`, `Io`.
    fn read_arrived(&self, wanted: &Wanted) -> Result<Arc<dyn BlockDevice>, VolumeError>;

    /// Makes a version of what has arrived whole, in one step.
    ///
    /// # Errors
    /// `Exists`, `NoSpace`, `Away`, `Io`.
    fn keep(&self, wanted: &Wanted) -> Result<(), VolumeError>;

    /// Removes what has arrived and was not kept.
    ///
    /// # Errors
    /// `Busy` while it comes, `Away`, `Io`.
    fn discard(&self, version: Uuid) -> Result<(), VolumeError>;

    /// Remembers the point of a version that is about to be removed, where something that is
    /// here could be sent from it later. True if it did.
    ///
    /// # Errors
    /// `Away`, `Io`.
    fn remember(&self, version: Uuid) -> Result<bool, VolumeError>;

    /// The versions whose points are remembered.
    ///
    /// # Errors
    /// `Away`, `Io`.
    fn remembered(&self) -> Result<Vec<Uuid>, VolumeError>;

    /// Forgets the point of a version; what is not remembered is no error.
    ///
    /// # Errors
    /// `Away`, `Io`.
    fn forget(&self, version: Uuid) -> Result<(), VolumeError>;
}
